//! The dehydrated device of a user (MSC3814): it has keys and is sent messages like every other, but has no session. Its
//! private keys lie here, encrypted for the user, and so does what it is sent, until an app of the user takes it up.

use std::ops::ControlFlow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::keys::Upload;
use super::{DEVICE_ID_BYTES_MAX, NAME_BYTES_MAX, announce, forget};
use crate::matrix::json::{self, partial};
use crate::store::tables::user::device::{self, Dehydrated, Device};
use crate::store::tables::user::to_device;
use crate::store::{Get, Position, Read, UserNum};
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
    read: Read,
    user: UserNum,
    device_id: String,
    at: Position,
    end: Position,
    /// Whether there are more behind these.
    pub is_limited: bool,
}

impl DehydratedMessages {
    /// The next message, JSON. Blocks.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut next = None;
        to_device::each(&self.read, self.user, &self.device_id, self.at, self.end, &mut |position, message| {
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
    /// id. Bounded by the limits of two devices.
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
        self.write(move |w| {
            let before = device::dehydrated(w, user)?.map(|before| before.device_id);
            if before.as_ref() != Some(&device_id) && device::get(w, user, &device_id)?.is_some() {
                return Err(Error::invalid("This is the id of a device with a session"));
            }
            if let Some(before) = before {
                forget(w, user, &before)?;
                if before != device_id {
                    announce::device_gone(w, &server, user, &user_id, &before)?;
                }
            }
            let row = Device { display_name: name, created_ms: now_ms, seen_ms: now_ms, ..Device::default() };
            device::put(w, user, &device_id, &row)?;
            device::set_dehydrated(w, user, &Dehydrated { device_id: device_id.clone(), device_data })?;
            keys.store(w, user, &device_id)?;
            announce::device_changed(w, &server, user, &user_id, &device_id)?;
            Ok(device_id)
        })
        .await
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
        self.write(move |w| {
            let device_id = device::dehydrated(w, user)?.ok_or(NONE)?.device_id;
            forget(w, user, &device_id)?;
            announce::device_gone(w, &server, user, &user_id, &device_id)?;
            Ok(device_id)
        })
        .await
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
            Ok(DehydratedMessages { read, user, device_id, at: from, end, is_limited })
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
