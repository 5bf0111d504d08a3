//! Pushers: the gateways that an app wants told of its user's notifications, and how far each was told.
//!
//! A pusher is known by its user, its app and its pushkey. The last two are an app's free choice, so keys hold a keyed
//! hash of them. What waits for a gateway is no row: it is what its user has not read behind [`Status::reached`]
//! (`tables/room/unread.rs`), so a gateway that is dead costs the rows of its pusher, however much waits for it.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::store::row_encoding::{Unpack, put_u64};
use crate::store::schema::{PUSHER, PUSHER_KEY, PUSHER_RETRY, PUSHER_STATUS};
use crate::store::{Change, Error, Get, Position, Push, Result, UserNum, Write, tables};

/// The key of a pusher: its user, and 128 bits of a keyed hash of its app id and pushkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub user: UserNum,
    pub hash: [u8; 16],
}

impl Key {
    pub fn of(get: &impl Get, user: UserNum, app_id: &str, pushkey: &str) -> Key {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        let length = (app_id.len() as u64).to_be_bytes();
        Key { user, hash: get.hash128(&[&length[..], app_id.as_bytes(), pushkey.as_bytes()]) }
    }

    fn bytes(&self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.user.to_key());
        bytes[4..].copy_from_slice(&self.hash);
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Key> {
        let hash = bytes.get(4..)?.try_into().ok()?;
        Some(Key { user: UserNum::from_key(bytes.get(..4)?)?, hash })
    }
}

/// A pusher as its app set it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pusher {
    pub app_id: String,
    pub pushkey: String,
    pub app_display_name: String,
    pub device_display_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_tag: Option<String>,
    pub lang: String,
    /// Where the gateway is; also in `data`.
    pub url: String,
    /// A JSON object, as the app gave it.
    pub data: Box<RawValue>,
    /// The device that set it: the pusher ends with it.
    pub device_id: String,
    /// MSC3881: nothing is sent while it is off.
    pub enabled: bool,
    /// MSC4076: no badge counts are sent.
    pub without_badge: bool,
    pub set_ms: u64,
}

/// How far a gateway was told, and how it goes with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// The gateway was told of everything up to here, or it is not told any more.
    pub reached: Position,
    /// The badge it was told last.
    pub badge: Option<u64>,
    /// Since when it fails, in unix milliseconds; 0 while it does not.
    pub failing_since_ms: u64,
    pub failures: u32,
    /// No attempt before then, in unix milliseconds.
    pub retry_ms: u64,
}

impl Status {
    pub fn begin(reached: Position) -> Status {
        Status { reached, ..Status::default() }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12);
        let badge = self.badge.map_or(0, |badge| badge.saturating_add(1));
        for number in [self.reached.0, badge, self.failing_since_ms, self.failures.into(), self.retry_ms] {
            put_u64(&mut out, number);
        }
        out
    }

    fn decode(row: &[u8]) -> Option<Status> {
        let mut unpack = Unpack::new(row);
        Some(Status {
            reached: Position(unpack.u64()?),
            badge: unpack.u64()?.checked_sub(1),
            failing_since_ms: unpack.u64()?,
            failures: unpack.u32()?,
            retry_ms: unpack.u64()?,
        })
    }
}

/// Whether there is such a pusher, readable or not.
pub fn is_there(get: &impl Get, key: &Key) -> Result<bool> {
    get.with(&PUSHER, &key.bytes(), &mut |_| {})
}

pub fn get(get: &impl Get, key: &Key) -> Result<Option<Pusher>> {
    tables::get_json(get, &PUSHER, &key.bytes())
}

/// Sets a pusher. A new one, and one that was off, begins with what comes from now on; any other stays where it is, but
/// is tried at once.
pub fn put(w: &mut Write<'_>, key: &Key, pusher: &Pusher) -> Result<()> {
    let was_on = get(w, key)?.is_some_and(|old| old.enabled);
    let status = match status(w, key)?.filter(|_| was_on) {
        // The app still shows the badge that it was told.
        Some(old) => Status { badge: old.badge, ..Status::begin(old.reached) },
        None => Status::begin(w.position()?),
    };
    put_status(w, key, &status)?;
    w.put(&PUSHER_KEY, &by_hash(key), &[])?;
    w.announce(Change { users: vec![key.user], push: Push::Pushers, ..Change::default() });
    tables::put_json(w, &PUSHER, &key.bytes(), pusher)
}

pub fn remove(w: &mut Write<'_>, key: &Key) -> Result<()> {
    if let Some(status) = status(w, key)?
        && status.retry_ms > 0
    {
        w.remove(&PUSHER_RETRY, &retry(status.retry_ms, key))?;
    }
    w.remove(&PUSHER_STATUS, &key.bytes())?;
    w.remove(&PUSHER_KEY, &by_hash(key))?;
    w.announce(Change { users: vec![key.user], push: Push::Pushers, ..Change::default() });
    w.remove(&PUSHER, &key.bytes()).map(drop)
}

/// Removes the pushers that a device set. One whose row cannot be read goes too: a session can be ended all the same.
/// Bounded by the cap on pushers of one user.
pub fn remove_device(w: &mut Write<'_>, user: UserNum, device_id: &str) -> Result<()> {
    let mut keys = Vec::new();
    w.prefix(&PUSHER, &user.to_key(), &mut |key, value| {
        let parsed = Key::parse(key).ok_or_else(|| Error::corrupt(&PUSHER, key))?;
        let ends = tables::parse::<Pusher>(&PUSHER, key, value).map_or(true, |pusher| pusher.device_id == device_id);
        keys.extend(ends.then_some(parsed));
        Ok(ControlFlow::Continue(()))
    })?;
    keys.iter().try_for_each(|key| remove(w, key))
}

/// Visits a user's pushers. Bounded by the cap on pushers of one user.
pub fn each(
    get: &impl Get,
    user: UserNum,
    visit: &mut dyn FnMut(Key, Pusher) -> Result<ControlFlow<()>>,
) -> Result<()> {
    get.prefix(&PUSHER, &user.to_key(), &mut |key, value| {
        let parsed = Key::parse(key).ok_or_else(|| Error::corrupt(&PUSHER, key))?;
        visit(parsed, tables::parse(&PUSHER, key, value)?)
    })
}

/// Visits the keys of all pushers behind `after`, a user's together.
pub fn list(get: &impl Get, after: Option<Key>, visit: &mut dyn FnMut(Key) -> Result<ControlFlow<()>>) -> Result<()> {
    let from = after.map_or_else(Vec::new, |after| [&after.bytes()[..], &[0]].concat());
    get.range(&PUSHER, &from, None, false, &mut |key, _| {
        visit(Key::parse(key).ok_or_else(|| Error::corrupt(&PUSHER, key))?)
    })
}

/// The users with a pusher of the same app and pushkey as this key's. At most `most`.
pub fn users_with(get: &impl Get, key: &Key, most: usize) -> Result<Vec<UserNum>> {
    let mut users = Vec::new();
    get.prefix(&PUSHER_KEY, &key.hash, &mut |row, _| {
        let user = row.get(16..).and_then(UserNum::from_key).ok_or_else(|| Error::corrupt(&PUSHER_KEY, row))?;
        users.push(user);
        Ok(if users.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(users)
}

pub fn status(get: &impl Get, key: &Key) -> Result<Option<Status>> {
    let Some(row) = get.get(&PUSHER_STATUS, &key.bytes())? else { return Ok(None) };
    Status::decode(&row).map(Some).ok_or_else(|| Error::corrupt(&PUSHER_STATUS, &key.bytes()))
}

/// Writes the status of a pusher that is there, and when it is tried again.
pub fn put_status(w: &mut Write<'_>, key: &Key, new: &Status) -> Result<()> {
    let old = status(w, key)?.unwrap_or_default();
    if old.retry_ms != new.retry_ms {
        if old.retry_ms > 0 {
            w.remove(&PUSHER_RETRY, &retry(old.retry_ms, key))?;
        }
        if new.retry_ms > 0 {
            w.put(&PUSHER_RETRY, &retry(new.retry_ms, key), &[])?;
        }
    }
    w.put(&PUSHER_STATUS, &key.bytes(), &new.encode())
}

/// A pusher is not tried again at that time.
pub fn end_retry(w: &mut Write<'_>, key: &Key, at_ms: u64) -> Result<()> {
    match status(w, key)? {
        Some(status) if status.retry_ms == at_ms => put_status(w, key, &Status { retry_ms: 0, ..status }),
        _ => w.remove(&PUSHER_RETRY, &retry(at_ms, key)).map(drop),
    }
}

/// Visits the pushers whose gateways fail, in the order in which they are tried again, with the time of that.
pub fn retries(get: &impl Get, visit: &mut dyn FnMut(u64, Key) -> Result<ControlFlow<()>>) -> Result<()> {
    get.range(&PUSHER_RETRY, &[], None, false, &mut |row, _| {
        let corrupt = || Error::corrupt(&PUSHER_RETRY, row);
        let at = row.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)).ok_or_else(corrupt)?;
        visit(at, row.get(8..).and_then(Key::parse).ok_or_else(corrupt)?)
    })
}

fn by_hash(key: &Key) -> Vec<u8> {
    [&key.hash[..], &key.user.to_key()].concat()
}

fn retry(at_ms: u64, key: &Key) -> Vec<u8> {
    [&at_ms.to_be_bytes()[..], &key.bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn pusher(device_id: &str) -> Pusher {
        Pusher {
            app_id: "app".into(),
            pushkey: "key".into(),
            app_display_name: "App".into(),
            device_display_name: "Phone".into(),
            profile_tag: None,
            lang: "en".into(),
            url: "https://push.example/_matrix/push/v1/notify".into(),
            data: RawValue::from_string(r#"{"url":"https://push.example/_matrix/push/v1/notify"}"#.into()).unwrap(),
            device_id: device_id.into(),
            enabled: true,
            without_badge: false,
            set_ms: 1,
        }
    }

    fn retry_times(get: &impl Get) -> Vec<u64> {
        let mut times = Vec::new();
        let visit = &mut |at, _| {
            times.push(at);
            Ok(ControlFlow::Continue(()))
        };
        retries(get, visit).unwrap();
        times
    }

    #[tokio::test]
    async fn no_row_is_left_of_a_pusher_that_ended() {
        let store = Store::in_memory();
        let job = |w: &mut Write<'_>| {
            let (a, b) = (Key::of(w, UserNum(1), "app", "key"), Key::of(w, UserNum(2), "app", "key"));
            assert_eq!(a.hash, b.hash);
            assert_ne!(a.hash, Key::of(w, UserNum(1), "appk", "ey").hash);
            put(w, &a, &pusher("A"))?;
            put(w, &b, &pusher("B"))?;
            assert_eq!(users_with(w, &a, 9)?, [UserNum(1), UserNum(2)]);
            for retry_ms in [500, 900] {
                let failing =
                    Status { failing_since_ms: 5, failures: 3, retry_ms, badge: Some(2), ..Status::begin(Position(7)) };
                put_status(w, &a, &failing)?;
                assert_eq!(retry_times(w), [retry_ms]);
            }
            assert_eq!(status(w, &a)?.unwrap().failures, 3);
            // Set again: tried at once, from where it was; its app shows the same badge as before.
            put(w, &a, &pusher("A"))?;
            assert_eq!(status(w, &a)?, Some(Status { badge: Some(2), ..Status::begin(Position(7)) }));
            put_status(w, &a, &Status { retry_ms: 40, ..Status::default() })?;
            remove_device(w, UserNum(1), "B")?;
            assert!(get(w, &a)?.is_some());
            // A page that the card damaged.
            w.put(&PUSHER, &Key::of(w, UserNum(1), "app", "damaged").bytes(), b"{")?;
            remove_device(w, UserNum(1), "A")?;
            remove_device(w, UserNum(2), "B")?;
            for table in [&PUSHER, &PUSHER_KEY, &PUSHER_STATUS, &PUSHER_RETRY] {
                w.prefix(table, &[], &mut |_, _| panic!("a row of {} is left", table.name))?;
            }
            Ok::<_, Error>(())
        };
        store.write(job).await.unwrap();
    }

    #[test]
    fn any_bytes_are_a_status_or_damage() {
        let since = 1 << 41;
        let status =
            Status { badge: Some(0), failing_since_ms: since, failures: 9, retry_ms: since, ..Status::default() };
        assert_eq!(Status::decode(&status.encode()), Some(status));
        crate::base::any_bytes::any_bytes(&[&status.encode()], |bytes| {
            if let Some(status) = Status::decode(bytes) {
                assert_eq!(Status::decode(&status.encode()), Some(status));
            }
        });
    }
}
