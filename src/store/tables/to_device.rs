//! Messages to single devices: queued under a position, handed to the device's syncs, dropped once a later sync token
//! shows that they arrived.

use std::ops::ControlFlow;

use crate::store::schema::{TO_DEVICE, TO_DEVICE_COUNT, TO_DEVICE_KNOWN, TO_DEVICE_TXN};
use crate::store::tables::device;
use crate::store::{Error, Get, Position, Result, UserNum, Write, tables};

/// How many transaction ids of one device are remembered. An app that repeats a request does so within its next few.
const TXNS_KEPT: usize = 32;

/// Messages of other servers that are recognised when they come again: of forty servers a whole transaction each. At about
/// 40 bytes, whoever sends them.
const KNOWN_MAX: u32 = 4096;

/// Messages waiting for one device, and their bytes. One that has not synced for so long loses its oldest: the senders cannot
/// wait, and a board's card is not a post office.
const WAITING_MAX: u32 = 20_000;
const WAITING_BYTES_MAX: u64 = 16 << 20;

/// How much waits for a device.
#[derive(Clone, Copy, Default)]
struct Waiting {
    count: u32,
    bytes: u64,
}

impl Waiting {
    fn without(self, message: &[u8]) -> Waiting {
        Waiting { count: self.count.saturating_sub(1), bytes: self.bytes.saturating_sub(message.len() as u64) }
    }
}

/// Queues a message (the JSON of `type`, `sender` and `content`) and tells its position.
pub fn push(w: &mut Write<'_>, user: UserNum, device_id: &str, message: &[u8]) -> Result<Position> {
    let position = w.next_position();
    let prefix = device::prefix(user, device_id);
    let mut now = waiting(w, &prefix)?;
    while (now.count >= WAITING_MAX || now.bytes + message.len() as u64 > WAITING_BYTES_MAX)
        && let Some((oldest, lost)) = w.first_in_prefix(&TO_DEVICE, &prefix)?
    {
        w.remove(&TO_DEVICE, &oldest)?;
        now = now.without(&lost);
    }
    w.put(&TO_DEVICE, &[&prefix[..], &position.to_key()].concat(), message)?;
    let Waiting { count, bytes } = now;
    set_waiting(w, &prefix, Waiting { count: count + 1, bytes: bytes + message.len() as u64 })?;
    Ok(position)
}

fn waiting(get: &impl Get, prefix: &[u8]) -> Result<Waiting> {
    let Some(row) = get.get(&TO_DEVICE_COUNT, prefix)? else { return Ok(Waiting::default()) };
    let parts = row.split_first_chunk().map(|(count, bytes)| (u32::from_be_bytes(*count), bytes));
    match parts.ok_or_else(|| Error::corrupt(&TO_DEVICE_COUNT, prefix))? {
        // Written before bytes were counted: those are taken for none.
        (count, []) => Ok(Waiting { count, bytes: 0 }),
        (count, bytes) => match bytes.try_into() {
            Ok(bytes) => Ok(Waiting { count, bytes: u64::from_be_bytes(bytes) }),
            Err(_) => Err(Error::corrupt(&TO_DEVICE_COUNT, prefix)),
        },
    }
}

fn set_waiting(w: &mut Write<'_>, prefix: &[u8], now: Waiting) -> Result<()> {
    match now.count {
        0 => w.remove(&TO_DEVICE_COUNT, prefix).map(drop),
        count => w.put(&TO_DEVICE_COUNT, prefix, &[&count.to_be_bytes()[..], &now.bytes.to_be_bytes()].concat()),
    }
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
    w.range(&TO_DEVICE, &from, Some(&end), false, &mut |row, message| {
        rows.push(row.to_vec());
        left = left.without(message);
        Ok(if rows.len() >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    for row in &rows {
        w.remove(&TO_DEVICE, row)?;
    }
    if !rows.is_empty() {
        set_waiting(w, &prefix, left)?;
    }
    Ok(rows.len() >= most)
}

/// Forgets a device's queue.
pub fn remove_device(w: &mut Write<'_>, user: UserNum, device_id: &str) -> Result<()> {
    let prefix = device::prefix(user, device_id);
    w.remove(&TO_DEVICE_TXN, &prefix)?;
    w.remove(&TO_DEVICE_COUNT, &prefix)?;
    tables::remove_all(w, &TO_DEVICE, &prefix)
}

/// Whether a device has lately sent messages of this type under this transaction id.
pub fn txn_seen(get: &impl Get, user: UserNum, device_id: &str, kind: &str, txn: &str) -> Result<bool> {
    let hash = get.hash128(&[kind.as_bytes(), b"\0", txn.as_bytes()]);
    let seen = get.get(&TO_DEVICE_TXN, &device::prefix(user, device_id))?.unwrap_or_default();
    Ok(seen.chunks_exact(hash.len()).any(|one| one == &hash[..]))
}

/// Remembers a transaction id, forgetting the oldest beyond the number kept.
pub fn note_txn(w: &mut Write<'_>, user: UserNum, device_id: &str, kind: &str, txn: &str) -> Result<()> {
    let hash = w.hash128(&[kind.as_bytes(), b"\0", txn.as_bytes()]);
    let row = device::prefix(user, device_id);
    let mut seen = w.get(&TO_DEVICE_TXN, &row)?.unwrap_or_default();
    let too_many = (seen.len() + hash.len()).saturating_sub(TXNS_KEPT * hash.len());
    seen.drain(..too_many);
    seen.extend_from_slice(&hash[..]);
    w.put(&TO_DEVICE_TXN, &row, &seen)
}

/// Remembers a message of another server by its id, in the place of the oldest; false when it came before, lately.
pub fn note_received(w: &mut Write<'_>, server: &str, message_id: &str) -> Result<bool> {
    let hash = &w.hash128(&[server.as_bytes(), message_id.as_bytes()])[..8];
    if w.get(&TO_DEVICE_KNOWN, hash)?.is_some() {
        return Ok(false);
    }
    let noted = match w.get(&TO_DEVICE_KNOWN, NOTED)? {
        Some(row) => u32::from_be_bytes(row.try_into().map_err(|_| Error::corrupt(&TO_DEVICE_KNOWN, NOTED))?),
        None => 0,
    };
    let place = ((noted % KNOWN_MAX) as u16).to_be_bytes();
    if let Some(oldest) = w.get(&TO_DEVICE_KNOWN, &place)? {
        w.remove(&TO_DEVICE_KNOWN, &oldest)?;
    }
    w.put(&TO_DEVICE_KNOWN, &place, hash)?;
    w.put(&TO_DEVICE_KNOWN, hash, &[])?;
    w.put(&TO_DEVICE_KNOWN, NOTED, &noted.wrapping_add(1).to_be_bytes())?;
    Ok(true)
}

/// The row that counts: no place and no hash is empty.
const NOTED: &[u8] = b"";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    /// Only their number was bounded: another server's messages of half a megabyte filled the card.
    #[tokio::test]
    async fn a_queue_has_so_many_bytes_and_loses_its_oldest() {
        let store = Store::in_memory();
        let written = store.write(|w| {
            let (user, long) = (UserNum(1), vec![b'x'; 64 << 10]);
            push(w, user, "D", b"first")?;
            for _ in 0..WAITING_BYTES_MAX / long.len() as u64 + 10 {
                push(w, user, "D", &long)?;
            }
            let prefix = device::prefix(user, "D");
            let now = waiting(w, &prefix)?;
            assert_eq!((now.bytes, u64::from(now.count)), (WAITING_BYTES_MAX, WAITING_BYTES_MAX / long.len() as u64));
            let newest = push(w, user, "D", b"last")?;
            remove_up_to(w, user, "D", Position(newest.0 - 1), usize::MAX)?;
            let now = waiting(w, &prefix)?;
            assert_eq!((now.count, now.bytes), (1, 4));
            w.put(&TO_DEVICE_COUNT, &prefix, &7_u32.to_be_bytes())?;
            assert_eq!(waiting(w, &prefix)?.count, 7, "as it was written once");
            remove_up_to(w, user, "D", newest, usize::MAX)?;
            assert_eq!(waiting(w, &prefix)?.count, 6);
            Ok::<_, Error>(())
        });
        written.await.unwrap();
    }

    #[tokio::test]
    async fn the_oldest_known_messages_are_forgotten() {
        let store = Store::in_memory();
        let written = store.write(|w| {
            for n in 0..KNOWN_MAX + 5 {
                assert!(note_received(w, "one.example", &n.to_string())?);
            }
            assert!(!note_received(w, "one.example", "5")?);
            assert!(note_received(w, "one.example", "4")?, "pushed out");
            assert!(note_received(w, "two.example", "7")?, "another server's");
            let mut rows = 0;
            w.range(&TO_DEVICE_KNOWN, &[], None, false, &mut |_, _| {
                rows += 1;
                Ok(ControlFlow::Continue(()))
            })?;
            assert_eq!(rows, 2 * KNOWN_MAX + 1);
            Ok::<_, Error>(())
        });
        written.await.unwrap();
    }
}
