//! The dehydrated device of a user (MSC3814): it has keys and is sent messages like every other, but has no session. Its
//! private keys lie here, encrypted for the user, and so does what it is sent, until an app of the user takes it up.

use std::ops::ControlFlow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::keys::Upload;
use super::{DEVICE_ID_BYTES_MAX, NAME_BYTES_MAX, announce, forget};
use crate::matrix::json::{self, partial};
use crate::store::tables::user::device::{self, Dehydrated, Device};
use crate::store::tables::user::{e2ee_key, to_device};
use crate::store::{Get, Position, Store, UserNum, Write};
use crate::user::{Error, Requester, Users};

/// The longest `device_data`: a hundred one-time keys are 4 KB.
const DATA_BYTES_MAX: usize = 32 << 10;
/// The most messages in one answer; each ends at 64 KiB, and they are read one by one.
const MESSAGES_MAX: usize = 1_000;
const DEPTH_MAX: u32 = json::EVENT_DEPTH_MAX;

/// A dehydrated device as an app puts it.
#[derive(Deserialize)]
pub struct NewDehydrated {
    device_id: String,
    device_data: Box<RawValue>,
    #[serde(default)]
    initial_device_display_name: Option<String>,
    #[serde(flatten)]
    keys: Upload,
}

/// Some of the messages to a dehydrated device, read one by one.
pub struct DehydratedMessages {
    store: Store,
    user: UserNum,
    device_id: String,
    at: Position,
    end: Position,
    /// Whether there are more behind these.
    pub is_limited: bool,
}

impl DehydratedMessages {
    /// The next message, JSON. Blocks. Each call reads a snapshot of its own, so that a slow reader keeps none; what was
    /// removed meanwhile is left out.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let (read, mut next) = (self.store.read()?, None);
        if !device::is_dehydrated(&read, self.user, &self.device_id)? {
            return Ok(None);
        }
        to_device::each(&read, self.user, &self.device_id, self.at, self.end, &mut |position, message| {
            next = Some((position, message.to_vec()));
            Ok(ControlFlow::Break(()))
        })?;
        let Some((position, message)) = next else { return Ok(None) };
        self.at = position;
        Ok(Some(message))
    }

    /// Where to go on behind all of these.
    pub fn next_batch(&self) -> String {
        format!("d{}", self.end.0)
    }
}

impl Users {
    /// Puts the user's dehydrated device in the place of the one before, whose keys and messages go with it, and answers its
    /// id. Of the same device with other data the messages stay; the same with the same data changes nothing. Bounded by
    /// the limits of two devices.
    pub async fn dehydrate(&self, requester: &Requester, new: NewDehydrated) -> Result<String, Error> {
        let NewDehydrated { device_id, device_data, initial_device_display_name: name, keys } = new;
        if device_id.is_empty() || device_id.len() > DEVICE_ID_BYTES_MAX || device_id.contains('\0') {
            return Err(Error::invalid("This device id is empty, too long, or has a zero byte"));
        }
        if name.as_ref().is_some_and(|name| name.len() > NAME_BYTES_MAX) {
            return Err(Error::TooLarge("The device name is too long".to_owned()));
        }
        check_data(device_data.get().as_bytes())?;
        if !keys.has_device_keys() {
            return Err(Error::bad("M_BAD_JSON", "A dehydrated device comes with its device_keys"));
        }
        let keys = keys.check(&requester.user_id, &device_id)?;
        let (user, user_id) = (requester.user_num, requester.user_id.clone());
        let (server, now_ms) = (self.server().to_owned(), self.now_ms());
        self.empty_before(&requester.user_id, &device_id, false).await?;
        let job = move |w: &mut Write<'_>| {
            let before = device::dehydrated(w, user)?;
            let is_same = before.as_ref().is_some_and(|before| before.device_id == device_id);
            match device::get(w, user, &device_id)? {
                Some(_) if !is_same => return Err(Error::invalid("This is the id of a device with a session")),
                Some(_) => {}
                // Of a device that had this id, nothing was left above.
                None => drop(to_device::remove_device(w, user, &device_id, usize::MAX)?),
            }
            match before {
                // The answer was lost. Its keys may have been given out since.
                Some(before) if is_same && before.device_data.get() == device_data.get() => return Ok(device_id),
                // The id is the identity: what was sent to it can still be read.
                Some(_) if is_same => e2ee_key::remove_device(w, user, &device_id)?,
                Some(before) => {
                    forget(w, user, &before.device_id)?;
                    announce::device_gone(w, &server, user, &user_id, &before.device_id)?;
                }
                None => {}
            }
            let row = Device { display_name: name, created_ms: now_ms, seen_ms: now_ms, ..Device::default() };
            device::put(w, user, &device_id, &row)?;
            device::set_dehydrated(w, user, &Dehydrated { device_id: device_id.clone(), device_data })?;
            keys.store(w, user, &device_id)?;
            announce::device_changed(w, &server, user, &user_id, &device_id)?;
            Ok(device_id)
        };
        let device_id = self.write(job).await?;
        self.empty_ended();
        Ok(device_id)
    }

    /// The id of the dehydrated device and its data; `NotFound` when there is none.
    pub async fn dehydrated(&self, user: UserNum) -> Result<(String, Box<RawValue>), Error> {
        self.read(move |get| {
            let found = device::dehydrated(get, user)?.ok_or(NONE)?;
            Ok((found.device_id, found.device_data))
        })
        .await
    }

    /// Removes the dehydrated device and answers its id; `NotFound` when there is none.
    pub async fn remove_dehydrated(&self, requester: &Requester) -> Result<String, Error> {
        let (user, user_id, server) = (requester.user_num, requester.user_id.clone(), self.server().to_owned());
        let job = move |w: &mut Write<'_>| {
            let device_id = device::dehydrated(w, user)?.ok_or(NONE)?.device_id;
            forget(w, user, &device_id)?;
            announce::device_gone(w, &server, user, &user_id, &device_id)?;
            Ok(device_id)
        };
        let device_id = self.write(job).await?;
        self.empty_ended();
        Ok(device_id)
    }

    /// At most `most` messages to the dehydrated device, from its first on or behind a batch. They stay: an app may be
    /// interrupted, and another begins again. `Forbidden` when this is not the dehydrated device.
    pub async fn dehydrated_messages(
        &self,
        user: UserNum,
        device_id: &str,
        from: Option<&str>,
        most: usize,
    ) -> Result<DehydratedMessages, Error> {
        let from = from.map_or(Some(0), |from| from.strip_prefix('d').and_then(|at| at.parse().ok()));
        let Some(from) = from.map(Position) else {
            return Err(Error::invalid("This is no place in the messages of a dehydrated device"));
        };
        let (device_id, store) = (device_id.to_owned(), self.0.parts.store.clone());
        let most = most.clamp(1, MESSAGES_MAX);
        crate::base::blocking(move || {
            let read = store.read()?;
            if !device::is_dehydrated(&read, user, &device_id)? {
                return Err(Error::Forbidden("This is not the dehydrated device of the user".to_owned()));
            }
            let (mut count, mut end, mut is_limited) = (0, from, false);
            to_device::each(&read, user, &device_id, from, read.position()?, &mut |position, _| {
                if count == most {
                    is_limited = true;
                    return Ok(ControlFlow::Break(()));
                }
                (count, end) = (count + 1, position);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(DehydratedMessages { store, user, device_id, at: from, end, is_limited })
        })
        .await
    }
}

const NONE: Error = Error::NotFound("dehydrated device");

fn check_data(data: &[u8]) -> Result<(), Error> {
    if data.len() > DATA_BYTES_MAX {
        return Err(Error::TooLarge(format!("device_data may have {DATA_BYTES_MAX} bytes at most")));
    }
    if json::is_deeper_than(data, DEPTH_MAX) || partial::member::<String>(data, "algorithm").is_none() {
        return Err(Error::bad("M_BAD_JSON", "device_data is a JSON object with its algorithm, not nested too deeply"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::store::schema;
    use crate::user::device::MESSAGES_PER_WRITE;
    use crate::user::tests::{Town, town};
    use crate::user::{Login, Messages, Txn};

    fn dry(who: &Requester, device_id: &str, pickle: &str) -> NewDehydrated {
        let keys =
            json!({ "user_id": who.user_id, "device_id": device_id, "algorithms": [], "keys": {}, "signatures": {} });
        let new = json!({
            "device_id": device_id, "device_keys": keys, "device_data": { "algorithm": "a", "pickle": pickle },
            "one_time_keys": { "curve:A": "a", "curve:B": "b" },
        });
        serde_json::from_value(new).unwrap()
    }

    /// Sends so many messages to a device.
    async fn send(town: &Town, who: &Requester, device_id: &str, count: usize) {
        let messages = json!({ &who.user_id: { device_id: { "a": 1 } } }).to_string();
        for nth in 0..count {
            let messages: Messages = serde_json::from_str(&messages).unwrap();
            town.users.send_to_device(who, "m.x", Txn::whole(format!("{device_id} {nth}")), messages).await.unwrap();
        }
    }

    async fn messages(town: &Town, who: &Requester, device_id: &str) -> usize {
        let mut messages = town.users.dehydrated_messages(who.user_num, device_id, None, 1_000).await.unwrap();
        std::iter::from_fn(|| messages.next().unwrap()).count()
    }

    fn rows(town: &Town) -> usize {
        let (mut rows, get) = (0, town.users.0.parts.store.read().unwrap());
        for table in [&schema::TO_DEVICE, &schema::TO_DEVICE_FROM, &schema::TO_DEVICE_SHARE] {
            get.range(table, &[], None, false, &mut |_, _| {
                rows += 1;
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        }
        rows
    }

    /// Whose answer was lost lost what had come meanwhile, and its one-time keys were given out twice.
    #[tokio::test]
    async fn the_same_device_again_keeps_its_messages() {
        let town = town();
        let anna = town.person("anna").await;
        let counts = || {
            let get = town.users.0.parts.store.read().unwrap();
            e2ee_key::one_time_counts(&get, anna.user_num, "dry").unwrap()
        };
        town.users.dehydrate(&anna, dry(&anna, "dry", "one")).await.unwrap();
        send(&town, &anna, "dry", 3).await;
        let claim = serde_json::from_value(json!({ &anna.user_id: { "dry": "curve" } })).unwrap();
        town.users.keys_claim(crate::user::Viewer::Local(anna.user_num), claim, None).await.unwrap();
        town.users.dehydrate(&anna, dry(&anna, "dry", "one")).await.unwrap();
        assert_eq!((messages(&town, &anna, "dry").await, counts()), (3, vec![("curve".to_owned(), 1)]));
        town.users.dehydrate(&anna, dry(&anna, "dry", "two")).await.unwrap();
        assert_eq!((messages(&town, &anna, "dry").await, counts()), (3, vec![("curve".to_owned(), 2)]));
        let kept: Value = serde_json::from_str(town.users.dehydrated(anna.user_num).await.unwrap().1.get()).unwrap();
        assert_eq!(kept["pickle"], "two");
    }

    /// A slow reader kept the database as it was when it began.
    #[tokio::test]
    async fn what_is_removed_is_read_no_more() {
        let town = town();
        let anna = town.person("anna").await;
        town.users.dehydrate(&anna, dry(&anna, "dry", "one")).await.unwrap();
        send(&town, &anna, "dry", 3).await;
        let mut reading = town.users.dehydrated_messages(anna.user_num, "dry", None, 9).await.unwrap();
        assert!(reading.next().unwrap().is_some());
        town.users.dehydrate(&anna, dry(&anna, "other", "two")).await.unwrap();
        assert_eq!(reading.next().unwrap(), None);
        assert_eq!(rows(&town), 0);
    }

    /// The messages of an ended device were removed in one write, with those of all others that ended with it.
    #[tokio::test]
    async fn many_messages_of_an_ended_device_go_aside_and_none_come_to_the_next() {
        let town = town();
        let anna = town.person("anna").await;
        let more = MESSAGES_PER_WRITE + 20;
        town.users.dehydrate(&anna, dry(&anna, "dry", "one")).await.unwrap();
        send(&town, &anna, "dry", more).await;
        town.users.dehydrate(&anna, dry(&anna, "other", "two")).await.unwrap();
        // Before what is aside had its turn: there is one thread.
        assert_eq!(rows(&town), 2 * 20 + 1);
        town.users.dehydrate(&anna, dry(&anna, "dry", "three")).await.unwrap();
        assert_eq!((messages(&town, &anna, "dry").await, rows(&town)), (0, 0));

        send(&town, &anna, "dry", 2 * more).await;
        let login = Login { device_id: Some("dry".to_owned()), ..Login::default() };
        town.users.login(&anna.user_id, login).await.unwrap();
        assert_eq!(rows(&town), 0);
        send(&town, &anna, &anna.device_id, more).await;
        town.users.logout_all(&anna.user_id, None).await.unwrap();
        while rows(&town) > 0 {
            tokio::task::yield_now().await;
        }
    }
}
