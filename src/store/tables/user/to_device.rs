//! Messages to single devices: queued under a position, handed to the device's syncs, dropped once a later sync token
//! shows that they arrived.
//!
//! The queue is bounded for each circle of senders by itself, so that a distant sender cannot push out a nearer
//! sender's messages. Within a circle, the sender with most loses its own oldest messages: a server among servers, and
//! one user among a server's users.

use std::borrow::Cow;
use std::ops::ControlFlow;

use serde::Deserialize;

use super::device;
use crate::base::shares::{Held, of_the_busiest};
use crate::store::schema::{
    DEVICE, TO_DEVICE, TO_DEVICE_COUNT, TO_DEVICE_FROM, TO_DEVICE_KNOWN, TO_DEVICE_SHARE, TO_DEVICE_TXN,
};
use crate::store::{Error, Get, Position, Result, UserNum, Write, tables};

/// Transaction ids remembered for one device. A client repeats a request within its next few.
const TXNS_KEPT: usize = 64;

/// Message ids of one other server that are recognised when they come again: a whole transaction and more, 8 bytes each.
const KNOWN_IDS: usize = 128;
/// Servers in rooms with local users, and neighbourhoods of other servers, whose last message ids are remembered.
/// Beyond that a sixteenth of them is forgotten, those not heard of for longest.
const KNOWN_SERVERS_MAX: u32 = 1024;
const KNOWN_STRANGERS_MAX: u32 = 256;

/// Messages waiting for one device, in bytes. A device that has not synced for that long loses the oldest messages of
/// the busiest sender: the senders cannot wait, and a board's card is not a post office.
const WAITING_BYTES_MAX: u64 = 16 << 20;
/// The least weight of a message: no more than 20,000 wait.
const WEIGHT_MIN: u32 = (WAITING_BYTES_MAX as u32).div_ceil(20_000);

/// The distance between the sender of a message and the user of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Circle {
    /// A local user, or a user in a room with them.
    Near,
    /// A user of a server that has other users in a room with them.
    Acquainted,
    Stranger,
}

impl Circle {
    const ALL: [Circle; 3] = [Circle::Near, Circle::Acquainted, Circle::Stranger];

    /// The bound on the messages waiting for one device from all senders of the circle, by weight.
    const fn most(self) -> u64 {
        match self {
            Circle::Near => WAITING_BYTES_MAX / 4 * 3,
            Circle::Acquainted | Circle::Stranger => WAITING_BYTES_MAX / 8,
        }
    }

    fn prefix(self, device: &[u8]) -> Vec<u8> {
        [device, &[self as u8]].concat()
    }

    fn key(self, device: &[u8], position: Position) -> Vec<u8> {
        [device, &[self as u8], &position.to_key()].concat()
    }
}

/// The sender of a message: a hash of the unit that is counted together (a server, or a local user), and one of the
/// user within it.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    pub circle: Circle,
    owner: u32,
    within: u32,
}

impl Sender {
    pub fn new(get: &impl Get, circle: Circle, owner: &str, user_id: &str) -> Sender {
        let short = |name: &str| {
            let [a, b, c, d, ..] = get.hash128(&[name.as_bytes()]);
            u32::from_be_bytes([a, b, c, d])
        };
        Sender { circle, owner: short(owner), within: short(user_id) }
    }
}

/// The weight of the messages waiting for a device, for each circle.
type Waiting = [u64; Circle::ALL.len()];

fn weight(message: &[u8]) -> u32 {
    u32::try_from(message.len()).unwrap_or(u32::MAX).max(WEIGHT_MIN)
}

/// Queues a message (the JSON of `type`, `sender` and `content`) and answers its position.
pub fn push(w: &mut Write<'_>, user: UserNum, device_id: &str, from: &Sender, message: &[u8]) -> Result<Position> {
    let position = w.next_position();
    let prefix = device::prefix(user, device_id);
    let mut now = waiting(w, &prefix)?;
    put_from(w, &prefix, position, from, weight(message))?;
    w.put(&TO_DEVICE, &[&prefix[..], &position.to_key()].concat(), message)?;
    let circle = from.circle;
    now[circle as usize] += u64::from(weight(message));
    if now[circle as usize] > circle.most() {
        now[circle as usize] = make_room(w, &prefix, circle)?;
    }
    set_waiting(w, &prefix, now)?;
    Ok(position)
}

/// Drops the oldest messages of the circle's busiest senders until a sixteenth of its share is free, and answers the
/// remaining weight. The newest message stays, whatever its sender: it would be the last to go. Bounded by the share:
/// some 15,000 short rows.
fn make_room(w: &mut Write<'_>, prefix: &[u8], circle: Circle) -> Result<u64> {
    let mut held = Vec::new();
    w.prefix(&TO_DEVICE_FROM, &circle.prefix(prefix), &mut |key, value| {
        held.push(from_row(prefix, key, value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    let waiting: u64 = held.iter().map(|one| u64::from(one.weight)).sum();
    let surplus = waiting.saturating_sub(circle.most() - circle.most() / 16);
    let mut left = waiting;
    for (position, weight) in of_the_busiest(held, surplus) {
        w.remove(&TO_DEVICE, &[prefix, &position.to_key()].concat())?;
        w.remove(&TO_DEVICE_FROM, &circle.key(prefix, position))?;
        left -= u64::from(weight);
    }
    Ok(left)
}

fn put_from(w: &mut Write<'_>, prefix: &[u8], position: Position, from: &Sender, weight: u32) -> Result<()> {
    let row = [from.owner, from.within, weight].map(u32::to_be_bytes).concat();
    w.put(&TO_DEVICE_FROM, &from.circle.key(prefix, position), &row)
}

fn from_row(prefix: &[u8], key: &[u8], value: &[u8]) -> Result<Held<(Position, u32)>> {
    let position = key.get(prefix.len() + 1..).and_then(Position::from_key);
    let (numbers, rest) = value.as_chunks::<4>();
    match (position, numbers, rest) {
        (Some(position), [owner, within, weight], []) => {
            let [owner, within, weight] = [owner, within, weight].map(|number| u32::from_be_bytes(*number));
            Ok(Held { owner, within, age: position.0, weight, key: (position, weight) })
        }
        _ => Err(Error::corrupt(&TO_DEVICE_FROM, key)),
    }
}

fn waiting(w: &mut Write<'_>, prefix: &[u8]) -> Result<Waiting> {
    let Some(row) = w.get(&TO_DEVICE_SHARE, prefix)? else { return note_old(w, prefix) };
    match row.as_chunks::<8>() {
        (&[near, acquainted, stranger], []) => Ok([near, acquainted, stranger].map(u64::from_be_bytes)),
        _ => Err(Error::corrupt(&TO_DEVICE_SHARE, prefix)),
    }
}

fn set_waiting(w: &mut Write<'_>, prefix: &[u8], now: Waiting) -> Result<()> {
    match now.iter().all(|weight| *weight == 0) {
        true => w.remove(&TO_DEVICE_SHARE, prefix).map(drop),
        false => w.put(&TO_DEVICE_SHARE, prefix, &now.map(u64::to_be_bytes).concat()),
    }
}

/// Records the senders of messages queued by an earlier version, which did not keep them: all count as near. Once for a
/// device, and bounded by the most that one device may have had waiting.
fn note_old(w: &mut Write<'_>, prefix: &[u8]) -> Result<Waiting> {
    #[derive(Deserialize)]
    struct Sent<'a> {
        #[serde(borrow)]
        sender: Cow<'a, str>,
    }
    let (mut now, mut old) = (Waiting::default(), Vec::new());
    if !w.remove(&TO_DEVICE_COUNT, prefix)? {
        return Ok(now);
    }
    w.prefix(&TO_DEVICE, prefix, &mut |key, message| {
        let position = key.get(prefix.len()..).and_then(Position::from_key);
        let position = position.ok_or_else(|| Error::corrupt(&TO_DEVICE, key))?;
        let sent: Option<Sent<'_>> = serde_json::from_slice(message).ok();
        let sender = sent.map(|sent| sent.sender).unwrap_or_default();
        let server = sender.split_once(':').map_or("", |(_, server)| server);
        old.push((position, Sender::new(w, Circle::Near, server, &sender), weight(message)));
        Ok(ControlFlow::Continue(()))
    })?;
    for (position, from, weight) in old {
        put_from(w, prefix, position, &from, weight)?;
        now[Circle::Near as usize] += u64::from(weight);
    }
    set_waiting(w, prefix, now)?;
    Ok(now)
}

/// Visits the messages queued for a device after `since`, up to and with `to`, oldest first, until `visit` breaks.
pub fn each(
    get: &impl Get,
    user: UserNum,
    device_id: &str,
    since: Position,
    to: Position,
    visit: &mut dyn FnMut(Position, &[u8]) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let prefix = device::prefix(user, device_id);
    let (from, end) = tables::after_up_to(&prefix, since, to);
    get.range(&TO_DEVICE, &from, Some(&end), false, &mut |row, message| {
        let position = row.get(prefix.len()..).and_then(Position::from_key);
        visit(position.ok_or_else(|| Error::corrupt(&TO_DEVICE, row))?, message)
    })
}

/// Drops at most `most` messages up to and with `upto`; true when there may be more.
pub fn remove_up_to(w: &mut Write<'_>, user: UserNum, device_id: &str, upto: Position, most: usize) -> Result<bool> {
    let mut rows = Vec::new();
    let prefix = device::prefix(user, device_id);
    let mut left = waiting(w, &prefix)?;
    let (from, end) = tables::after_up_to(&prefix, Position(0), upto);
    w.range(&TO_DEVICE, &from, Some(&end), false, &mut |row, _| {
        rows.push(row.to_vec());
        Ok(if rows.len() >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let Some(last) = rows.last().and_then(|row| Position::from_key(row.get(prefix.len()..)?)) else { return Ok(false) };
    for row in &rows {
        w.remove(&TO_DEVICE, row)?;
    }
    for circle in Circle::ALL {
        let mut gone = Vec::new();
        let (from, end) = tables::after_up_to(&circle.prefix(&prefix), Position(0), last);
        w.range(&TO_DEVICE_FROM, &from, Some(&end), false, &mut |key, value| {
            gone.push((key.to_vec(), from_row(&prefix, key, value)?.weight));
            Ok(ControlFlow::Continue(()))
        })?;
        for (key, weight) in &gone {
            w.remove(&TO_DEVICE_FROM, key)?;
            left[circle as usize] = left[circle as usize].saturating_sub(u64::from(*weight));
        }
    }
    set_waiting(w, &prefix, left)?;
    Ok(rows.len() >= most)
}

/// Forgets a device's queue, but of its messages at most `most`: what is left is found by [`next_ended`] once the device is
/// no more. True when there may be some left. Reads no row, so that a damaged one keeps no device from ending.
pub fn remove_device(w: &mut Write<'_>, user: UserNum, device_id: &str, most: usize) -> Result<bool> {
    let prefix = device::prefix(user, device_id);
    w.remove(&TO_DEVICE_TXN, &prefix)?;
    w.remove(&TO_DEVICE_COUNT, &prefix)?;
    remove_queue(w, &prefix, most)
}

fn remove_queue(w: &mut Write<'_>, prefix: &[u8], most: usize) -> Result<bool> {
    let messages = w.remove_prefix(&TO_DEVICE, prefix, most)?;
    let senders = w.remove_prefix(&TO_DEVICE_FROM, prefix, most)?;
    let is_left = messages == most || senders == most;
    match is_left {
        // By this row the rest is known.
        true => w.put(&TO_DEVICE_SHARE, prefix, &[0; size_of::<Waiting>()])?,
        false => drop(w.remove(&TO_DEVICE_SHARE, prefix)?),
    }
    Ok(is_left)
}

/// Whether a device's queue has messages, or what was left of it may have some.
pub fn any(get: &impl Get, user: UserNum, device_id: &str) -> Result<bool> {
    let prefix = device::prefix(user, device_id);
    Ok(get.has(&TO_DEVICE_SHARE, &prefix)? || get.has(&TO_DEVICE_COUNT, &prefix)?)
}

/// The users with messages for a device. A row for each device with some.
pub fn users_waiting(get: &impl Get) -> Result<Vec<UserNum>> {
    let mut users = Vec::new();
    get.range(&TO_DEVICE_SHARE, &[], None, false, &mut |key, _| {
        let user = key.get(..4).and_then(UserNum::from_key).ok_or_else(|| Error::corrupt(&TO_DEVICE_SHARE, key))?;
        if users.last() != Some(&user) {
            users.push(user);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(users)
}

/// One message, if it is still there.
pub fn get(get: &impl Get, user: UserNum, device_id: &str, at: Position) -> Result<Option<Vec<u8>>> {
    get.get(&TO_DEVICE, &[&device::prefix(user, device_id)[..], &at.to_key()].concat())
}

/// A queue whose device is no more, which has messages left. Looks at the queues of all devices, a row each.
pub fn next_ended(get: &impl Get) -> Result<Option<Vec<u8>>> {
    let mut ended = None;
    get.range(&TO_DEVICE_SHARE, &[], None, false, &mut |key, _| {
        if get.has(&DEVICE, key)? {
            return Ok(ControlFlow::Continue(()));
        }
        ended = Some(key.to_vec());
        Ok(ControlFlow::Break(()))
    })?;
    Ok(ended)
}

/// Takes away at most `most` messages of a queue that [`next_ended`] found; true when there may be more.
pub fn remove_ended(w: &mut Write<'_>, queue: &[u8], most: usize) -> Result<bool> {
    Ok(!w.has(&DEVICE, queue)? && remove_queue(w, queue, most)?)
}

/// Whether a device has lately sent messages of this type under this transaction id.
pub fn txn_seen(get: &impl Get, user: UserNum, device_id: &str, kind: &str, txn: &str) -> Result<bool> {
    let hash = get.hash128(&[kind.as_bytes(), b"\0", txn.as_bytes()]);
    let seen = get.get(&TO_DEVICE_TXN, &device::prefix(user, device_id))?.unwrap_or_default();
    Ok(seen.chunks_exact(hash.len()).any(|one| one == &hash[..]))
}

/// Remembers a transaction id, forgetting the oldest beyond the number kept, or the one whose place it takes.
pub fn note_txn(
    w: &mut Write<'_>,
    user: UserNum,
    device_id: &str,
    kind: &str,
    txn: &str,
    instead_of: Option<&str>,
) -> Result<()> {
    let hash = w.hash128(&[kind.as_bytes(), b"\0", txn.as_bytes()]);
    let row = device::prefix(user, device_id);
    let mut seen = w.get(&TO_DEVICE_TXN, &row)?.unwrap_or_default();
    if let Some(before) = instead_of {
        let before = w.hash128(&[kind.as_bytes(), b"\0", before.as_bytes()]);
        if let Some(at) = seen.chunks_exact(hash.len()).position(|one| one == &before[..]) {
            seen.drain(at * hash.len()..(at + 1) * hash.len());
        }
    }
    let too_many = (seen.len() + hash.len()).saturating_sub(TXNS_KEPT * hash.len());
    seen.drain(..too_many);
    seen.extend_from_slice(&hash[..]);
    w.put(&TO_DEVICE_TXN, &row, &seen)
}

/// Remembers a message id of another server, in the place of that server's oldest id; false when the id came before,
/// lately. `stranger`: for a server that shares no room with local users, the name under which it shares one list with
/// its neighbours.
pub fn note_received(w: &mut Write<'_>, server: &str, stranger: Option<&str>, message_id: &str) -> Result<bool> {
    let hash = w.hash128(&[server.as_bytes(), message_id.as_bytes()]);
    let id = hash.first_chunk::<8>().expect("a hash is longer");
    let (row, most) = match stranger {
        None => (known_row(w, 1, server), KNOWN_SERVERS_MAX),
        Some(stranger) => (known_row(w, 0, stranger), KNOWN_STRANGERS_MAX),
    };
    let mut value = match w.get(&TO_DEVICE_KNOWN, &row)? {
        Some(value) if value.len() % id.len() == 0 && !value.is_empty() => value,
        Some(_) => return Err(Error::corrupt(&TO_DEVICE_KNOWN, &row)),
        None => {
            make_room_for_known(w, row[0], most)?;
            Position(0).to_key().to_vec()
        }
    };
    let (_, ids) = value.split_at(id.len());
    if ids.as_chunks::<8>().0.contains(id) {
        return Ok(false);
    }
    if ids.len() >= KNOWN_IDS * id.len() {
        value.drain(id.len()..2 * id.len());
    }
    value[..id.len()].copy_from_slice(&w.position()?.to_key());
    value.extend_from_slice(id);
    w.put(&TO_DEVICE_KNOWN, &row, &value)?;
    Ok(true)
}

fn known_row(get: &impl Get, side: u8, server: &str) -> Vec<u8> {
    [&[side][..], &get.hash128(&[server.as_bytes()])[..8]].concat()
}

/// Counts one more server of a side. When there are too many, forgets a sixteenth: those not heard of for longest.
fn make_room_for_known(w: &mut Write<'_>, side: u8, most: u32) -> Result<()> {
    // The layout of an earlier version: one list of all servers, counted by the empty row.
    if w.remove(&TO_DEVICE_KNOWN, &[])? {
        tables::remove_all(w, &TO_DEVICE_KNOWN, &[])?;
    }
    let mut count = match w.get(&TO_DEVICE_KNOWN, &[side])? {
        Some(row) => u32::from_be_bytes(row.try_into().map_err(|_| Error::corrupt(&TO_DEVICE_KNOWN, &[side]))?),
        None => 0,
    };
    if count >= most {
        let mut all: Vec<([u8; 8], Vec<u8>)> = Vec::new();
        w.prefix(&TO_DEVICE_KNOWN, &[side], &mut |key, value| {
            if key.len() > 1 {
                all.push((value.first_chunk().copied().unwrap_or_default(), key.to_vec()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        all.sort_unstable();
        count = all.len() as u32;
        for (_, key) in all.iter().take(all.len().saturating_sub((most - most / 16) as usize)) {
            w.remove(&TO_DEVICE_KNOWN, key)?;
            count -= 1;
        }
    }
    w.put(&TO_DEVICE_KNOWN, &[side], &(count + 1).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::tables::user::device;

    fn queue(get: &impl Get) -> Result<Vec<Vec<u8>>> {
        let mut all = Vec::new();
        each(get, UserNum(1), "D", Position(0), Position(i64::MAX as u64), &mut |_, message| {
            all.push(message.to_vec());
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    fn rows(get: &impl Get, table: &crate::store::Table) -> Result<usize> {
        let mut rows = 0;
        get.range(table, &[], None, false, &mut |_, _| {
            rows += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(rows)
    }

    fn run(job: impl FnOnce(&mut Write<'_>) -> Result<()> + Send + 'static) {
        Store::in_memory().write_blocking(job).unwrap();
    }

    /// Only the number of messages was bounded: another server's messages of half a megabyte filled the card.
    #[test]
    fn a_queue_has_so_many_bytes_and_loses_its_oldest() {
        run(|w| {
            let (user, long) = (UserNum(1), vec![b'x'; 64 << 10]);
            let from = Sender::new(w, Circle::Near, "@bob:here", "");
            push(w, user, "D", &from, b"first")?;
            for _ in 0..WAITING_BYTES_MAX / long.len() as u64 + 10 {
                push(w, user, "D", &from, &long)?;
            }
            let prefix = device::prefix(user, "D");
            let (now, all) = (waiting(w, &prefix)?, queue(w)?);
            assert!(!all.contains(&b"first".to_vec()));
            assert_eq!(now, [all.iter().map(|message| message.len() as u64).sum(), 0, 0]);
            assert!(now[0] <= Circle::Near.most() && now[0] > Circle::Near.most() * 7 / 8);
            let newest = push(w, user, "D", &from, b"last")?;
            remove_up_to(w, user, "D", Position(newest.0 - 1), usize::MAX)?;
            assert_eq!((queue(w)?, waiting(w, &prefix)?), (vec![b"last".to_vec()], [u64::from(WEIGHT_MIN), 0, 0]));
            remove_up_to(w, user, "D", newest, usize::MAX)?;
            assert_eq!((rows(w, &TO_DEVICE_SHARE)?, rows(w, &TO_DEVICE_FROM)?), (0, 0));
            Ok(())
        });
    }

    /// A server that shared no room with local users emptied a sleeping device's queue in under a minute, and the keys
    /// that a friend had sent were gone.
    #[test]
    fn nobody_pushes_out_what_somebody_nearer_sent() {
        run(|w| {
            let user = UserNum(1);
            let friend = Sender::new(w, Circle::Near, "friend.example", "@f:friend.example");
            let beside = Sender::new(w, Circle::Acquainted, "friend.example", "@x:friend.example");
            let once = Sender::new(w, Circle::Stranger, "once.example", "@o:once.example");
            let flood = Sender::new(w, Circle::Stranger, "evil.example", "@e:evil.example");
            push(w, user, "D", &friend, b"key of a friend")?;
            push(w, user, "D", &beside, b"greeting of one beside")?;
            push(w, user, "D", &once, b"greeting of a stranger")?;
            push(w, user, "D", &flood, b"first of the flood")?;
            for n in 0..21_000 {
                push(w, user, "D", &flood, format!("flood {n}").as_bytes())?;
            }
            let all = queue(w)?;
            for kept in ["key of a friend", "greeting of one beside", "greeting of a stranger", "flood 20999"] {
                assert!(all.contains(&kept.as_bytes().to_vec()), "{kept}");
            }
            assert!(!all.contains(&b"first of the flood".to_vec()));
            assert!(all.len() <= 20_000 / 8 + 2, "{}", all.len());
            assert_eq!(rows(w, &TO_DEVICE_FROM)?, all.len());
            assert!(remove_device(w, user, "D", 1_000)?);
            let ended = next_ended(w)?.expect("what is left of the queue");
            assert_eq!((ended.clone(), rows(w, &TO_DEVICE)?), (device::prefix(user, "D"), all.len() - 1_000));
            assert!(remove_ended(w, &ended, 1_000)? && !remove_ended(w, &ended, 5_000)? && next_ended(w)?.is_none());
            assert_eq!((rows(w, &TO_DEVICE)?, rows(w, &TO_DEVICE_FROM)?, rows(w, &TO_DEVICE_SHARE)?), (0, 0, 0));
            Ok(())
        });
    }

    /// Near senders are bounded too: a server's users, or one local user, lose their own messages.
    #[test]
    fn the_busiest_of_those_near_loses_its_own_oldest() {
        run(|w| {
            let (user, long) = (UserNum(1), "x".repeat(8 << 10));
            let here = Sender::new(w, Circle::Near, "@anna:here", "");
            let friend = Sender::new(w, Circle::Near, "big.example", "@f:big.example");
            push(w, user, "D", &here, b"of anna")?;
            push(w, user, "D", &friend, b"of a friend")?;
            for n in 0..3000 {
                let sender = Sender::new(w, Circle::Near, "big.example", "@spam:big.example");
                push(w, user, "D", &sender, format!("{n} {long}").as_bytes())?;
            }
            let all = queue(w)?;
            assert!(all.contains(&b"of anna".to_vec()) && all.contains(&b"of a friend".to_vec()));
            assert!(all.len() < 1600 && !all.iter().any(|message| message.starts_with(b"0 ")));
            Ok(())
        });
    }

    /// A queue of an earlier version does not record the senders.
    #[test]
    fn an_older_queue_is_taken_over() {
        run(|w| {
            let (user, prefix) = (UserNum(1), device::prefix(UserNum(1), "D"));
            for n in 0..5 {
                let message = format!(r#"{{"type":"m.x","sender":"@b:two.example","content":{n}}}"#);
                let key = [&prefix[..], &w.next_position().to_key()].concat();
                w.put(&TO_DEVICE, &key, message.as_bytes())?;
            }
            w.put(&TO_DEVICE_COUNT, &prefix, &5_u32.to_be_bytes())?;
            let from = Sender::new(w, Circle::Stranger, "s", "s");
            let last = push(w, user, "D", &from, b"new")?;
            let min = u64::from(WEIGHT_MIN);
            assert_eq!((waiting(w, &prefix)?, rows(w, &TO_DEVICE_COUNT)?), ([5 * min, 0, min], 0));
            assert!(remove_up_to(w, user, "D", last, 3)?);
            assert_eq!((waiting(w, &prefix)?, queue(w)?.len()), ([2 * min, 0, min], 3));
            Ok(())
        });
    }

    /// The ids of all servers were in one list of 4,096, which any server could fill.
    #[test]
    fn a_server_that_sends_much_makes_no_other_repeat_itself() {
        run(|w| {
            w.put(&TO_DEVICE_KNOWN, &[], &7_u32.to_be_bytes())?;
            w.put(&TO_DEVICE_KNOWN, &[0, 3], b"12345678")?;
            assert!(note_received(w, "friend.example", None, "a")?);
            assert_eq!(rows(w, &TO_DEVICE_KNOWN)?, 2, "what was kept once is gone");
            assert!(note_received(w, "once.example", Some("once.example"), "a")?);
            for n in 0..5000 {
                assert!(note_received(w, "evil.example", Some("evil.example"), &n.to_string())?);
                w.next_position();
            }
            assert!(!note_received(w, "friend.example", None, "a")?);
            assert!(!note_received(w, "once.example", Some("once.example"), "a")?);
            assert!(!note_received(w, "evil.example", Some("evil.example"), "4999")?);
            assert!(note_received(w, "evil.example", Some("evil.example"), "0")?, "its own oldest");
            for n in 0..2000 {
                w.next_position();
                note_received(w, "x", Some(&format!("s{n}.example")), "a")?;
            }
            assert!(!note_received(w, "friend.example", None, "a")?);
            assert!(rows(w, &TO_DEVICE_KNOWN)? <= KNOWN_STRANGERS_MAX as usize + 3);
            Ok(())
        });
    }
}
