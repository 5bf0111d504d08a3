//! What a connection of a sliding sync was told (MSC4186): a row for the connection, one for each room it was told of,
//! and the texts of what it asked of a room's state.
//!
//! An answer may get lost, and the app then asks once more from the one before. So what an answer told stands beside what
//! was told before it, under the number of the answer, and counts from the request on that names this number. Answers are
//! numbered by positions, which never come twice; so are connections, and rows that a broken-off removal left behind are
//! of no connection that will ever be.

use std::ops::ControlFlow;

use super::device;
use crate::store::row_encoding::{Unpack, put_bytes, put_u64};
use crate::store::schema::{SLIDING_CONNECTION, SLIDING_ROOM, SLIDING_STATE};
use crate::store::{Error, Get, Position, Result, RoomNum, UserNum, Write, after_prefix};

/// Connections of one device; a further one takes the place of the one that was used least lately.
pub const CONNECTIONS_MAX: usize = 8;
/// Texts of required state kept for one connection, each of at most [`STATE_BYTES_MAX`]. What is not kept is taken for
/// changed, and told anew.
pub const STATES_MAX: usize = 32;
pub const STATE_BYTES_MAX: usize = 4 * 1024;

/// What is remembered of one answer beside its rooms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its number: the position of the write that noted it.
    pub num: Position,
    /// A hash of the lists and subscriptions it was asked with.
    pub asked: u64,
    /// Nothing that was asked for was left to a later answer.
    pub settled: bool,
    /// The number of rooms in each list, in the order of their names.
    pub counts: Vec<u32>,
}

/// A connection's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub conn_id: String,
    /// When it was last written, at most a day before it was last used.
    pub used_ms: u64,
    /// The answer that a request named last; none before the first.
    pub known: Option<Answer>,
    /// The answer that was given since, and may have got lost.
    pub given: Option<Answer>,
}

/// What a connection was told of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Up to here.
    pub at: Position,
    /// The newest events of the timeline that the app has; `u32::MAX` for all.
    pub timeline: u32,
    /// The hash of the text of the required state; 0 for a room seen from outside.
    pub state: u64,
    pub is_dm: bool,
    /// Told as left: nothing more is told of it before the user comes back.
    pub is_left: bool,
    /// The members whose events were told because they were in the timeline, in order.
    pub members: Vec<UserNum>,
}

/// What was told of a room before the last answer that changed it, and by that one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    before: Option<Told>,
    by: Option<(Position, Told)>,
}

impl Told {
    /// Told from outside, as an invite or as left: what is asked of a room's timeline and state is not told of it.
    pub fn is_outside(&self) -> bool {
        self.is_left || self.state == 0
    }
}

impl Row {
    /// What was told up to the answer `num`.
    fn upto(&self, num: Position) -> Option<&Told> {
        match &self.by {
            Some((by, told)) if *by <= num => Some(told),
            _ => self.before.as_ref(),
        }
    }
}

impl Answer {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.num.0);
        put_u64(out, self.asked);
        put_u64(out, u64::from(self.settled) | (self.counts.len() as u64) << 1);
        self.counts.iter().for_each(|count| put_u64(out, (*count).into()));
    }

    fn decode(unpack: &mut Unpack<'_>) -> Option<Answer> {
        let (num, asked, rest) = (Position(unpack.u64()?), unpack.u64()?, unpack.u64()?);
        let counts = (0..rest >> 1).map(|_| unpack.u32()).collect::<Option<_>>()?;
        Some(Answer { num, asked, settled: rest & 1 != 0, counts })
    }
}

impl Connection {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.known.is_some()) | u8::from(self.given.is_some()) << 1];
        put_bytes(&mut out, self.conn_id.as_bytes());
        put_u64(&mut out, self.used_ms);
        self.known.iter().chain(&self.given).for_each(|answer| answer.encode(&mut out));
        out
    }

    fn decode(row: &[u8]) -> Option<Connection> {
        let mut unpack = Unpack::new(row);
        let flags = unpack.u8()?;
        let (conn_id, used_ms) = (unpack.text()?.to_owned(), unpack.u64()?);
        let mut answer = |bit| match flags & bit {
            0 => Some(None),
            _ => Answer::decode(&mut unpack).map(Some),
        };
        Some(Connection { conn_id, used_ms, known: answer(1)?, given: answer(2)? })
    }
}

impl Told {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.at.0);
        put_u64(out, self.timeline.into());
        out.extend_from_slice(&self.state.to_be_bytes());
        put_u64(out, u64::from(self.is_dm) | u64::from(self.is_left) << 1 | (self.members.len() as u64) << 2);
        let mut before = 0;
        for member in &self.members {
            put_u64(out, (member.0 - before).into());
            before = member.0;
        }
    }

    fn decode(unpack: &mut Unpack<'_>) -> Option<Told> {
        let (at, timeline) = (Position(unpack.u64()?), unpack.u32()?);
        let (state, rest) = (u64::from_be_bytes(unpack.array()?), unpack.u64()?);
        let (mut members, mut last) = (Vec::new(), 0u32);
        for _ in 0..rest >> 2 {
            last = last.checked_add(unpack.u32()?)?;
            members.push(UserNum(last));
        }
        Some(Told { at, timeline, state, is_dm: rest & 1 != 0, is_left: rest & 2 != 0, members })
    }
}

impl Row {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.before.is_some()) | u8::from(self.by.is_some()) << 1];
        if let Some(before) = &self.before {
            before.encode(&mut out);
        }
        if let Some((num, told)) = &self.by {
            put_u64(&mut out, num.0);
            told.encode(&mut out);
        }
        out
    }

    fn decode(row: &[u8]) -> Option<Row> {
        let mut unpack = Unpack::new(row);
        let flags = unpack.u8()?;
        let before = if flags & 1 != 0 { Some(Told::decode(&mut unpack)?) } else { None };
        let by = if flags & 2 != 0 { Some((Position(unpack.u64()?), Told::decode(&mut unpack)?)) } else { None };
        Some(Row { before, by })
    }
}

fn key(user: UserNum, device_id: &str, conn: Position) -> Vec<u8> {
    [&device::prefix(user, device_id)[..], &conn.to_key()].concat()
}

/// The connections of a device, each with its number. Bounded by [`CONNECTIONS_MAX`].
pub fn connections(get: &impl Get, user: UserNum, device_id: &str) -> Result<Vec<(Position, Connection)>> {
    let prefix = device::prefix(user, device_id);
    let mut all = Vec::new();
    get.prefix(&SLIDING_CONNECTION, &prefix, &mut |key, row| {
        let corrupt = || Error::corrupt(&SLIDING_CONNECTION, key);
        let conn = Position::from_key(&key[prefix.len()..]).ok_or_else(corrupt)?;
        all.push((conn, Connection::decode(row).ok_or_else(corrupt)?));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(all)
}

/// One connection.
pub fn connection(get: &impl Get, user: UserNum, device_id: &str, conn: Position) -> Result<Option<Connection>> {
    let key = key(user, device_id, conn);
    let Some(row) = get.get(&SLIDING_CONNECTION, &key)? else { return Ok(None) };
    Connection::decode(&row).map(Some).ok_or_else(|| Error::corrupt(&SLIDING_CONNECTION, &key))
}

pub fn put_connection(
    w: &mut Write<'_>,
    user: UserNum,
    device_id: &str,
    conn: Position,
    row: &Connection,
) -> Result<()> {
    w.put(&SLIDING_CONNECTION, &key(user, device_id, conn), &row.encode())
}

/// Forgets a connection. Its other rows are of no use from now on; [`remove_stale`] takes them away.
pub fn remove_connection(w: &mut Write<'_>, user: UserNum, device_id: &str, conn: Position) -> Result<()> {
    w.remove(&SLIDING_CONNECTION, &key(user, device_id, conn)).map(drop)
}

fn room_key(user: UserNum, device_id: &str, conn: Position, room: RoomNum) -> Vec<u8> {
    [&key(user, device_id, conn)[..], &room.to_key()].concat()
}

fn row(get: &impl Get, key: &[u8]) -> Result<Option<Row>> {
    let Some(row) = get.get(&SLIDING_ROOM, key)? else { return Ok(None) };
    Row::decode(&row).map(Some).ok_or_else(|| Error::corrupt(&SLIDING_ROOM, key))
}

/// What a connection was told of a room by its answers up to `num`.
pub fn told(
    get: &impl Get,
    user: UserNum,
    device_id: &str,
    conn: Position,
    room: RoomNum,
    num: Position,
) -> Result<Option<Told>> {
    let row = row(get, &room_key(user, device_id, conn, room))?;
    Ok(row.and_then(|row| row.upto(num).cloned()))
}

/// Notes what the answer `by` tells of a room, which comes after the answer `num`.
#[allow(clippy::too_many_arguments)] // a key of four parts, and what stands there
pub fn put_told(
    w: &mut Write<'_>,
    user: UserNum,
    device_id: &str,
    conn: Position,
    room: RoomNum,
    num: Position,
    by: Position,
    told: Told,
) -> Result<()> {
    let key = room_key(user, device_id, conn, room);
    let before = row(w, &key)?.and_then(|row| row.upto(num).cloned());
    w.put(&SLIDING_ROOM, &key, &Row { before, by: Some((by, told)) }.encode())
}

/// Takes back what the lost answer `num` told: at most `rows_max` rows; fewer means that none are left. Reads all rows of
/// the connection: one for each room it was told of.
pub fn take_back(
    w: &mut Write<'_>,
    user: UserNum,
    device_id: &str,
    conn: Position,
    num: Position,
    rows_max: usize,
) -> Result<usize> {
    let prefix = key(user, device_id, conn);
    let mut lost: Vec<(Vec<u8>, Option<Told>)> = Vec::new();
    w.prefix(&SLIDING_ROOM, &prefix, &mut |key, value| {
        let row = Row::decode(value).ok_or_else(|| Error::corrupt(&SLIDING_ROOM, key))?;
        if row.by.as_ref().is_some_and(|(by, _)| *by == num) {
            lost.push((key.to_vec(), row.before));
        }
        Ok(if lost.len() == rows_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    for (key, before) in &lost {
        match before {
            // Whatever it was told by is older than every answer that may still come back.
            Some(_) => w.put(&SLIDING_ROOM, key, &Row { before: before.clone(), by: None }.encode())?,
            None => w.remove(&SLIDING_ROOM, key).map(drop)?,
        }
    }
    Ok(lost.len())
}

fn state_key(user: UserNum, device_id: &str, conn: Position, hash: u64) -> Vec<u8> {
    [&key(user, device_id, conn)[..], &hash.to_be_bytes()].concat()
}

/// The text of required state with a hash, when it is kept.
pub fn state(get: &impl Get, user: UserNum, device_id: &str, conn: Position, hash: u64) -> Result<Option<Vec<u8>>> {
    get.get(&SLIDING_STATE, &state_key(user, device_id, conn, hash))
}

/// Keeps the text of required state. Beyond the most that are kept, any other gives way.
pub fn put_state(
    w: &mut Write<'_>,
    user: UserNum,
    device_id: &str,
    conn: Position,
    hash: u64,
    text: &[u8],
) -> Result<()> {
    let row = state_key(user, device_id, conn, hash);
    if text.len() > STATE_BYTES_MAX || w.has(&SLIDING_STATE, &row)? {
        return Ok(());
    }
    let (mut kept, mut any) = (0, Vec::new());
    w.prefix(&SLIDING_STATE, &key(user, device_id, conn), &mut |key, _| {
        kept += 1;
        any = key.to_vec();
        Ok(ControlFlow::Continue(()))
    })?;
    if kept >= STATES_MAX {
        w.remove(&SLIDING_STATE, &any)?;
    }
    w.put(&SLIDING_STATE, &row, text)
}

/// Removes rows of a user's connections that are no more: at most `rows_max`; fewer means that none are left. Seeks once
/// for each connection that lives.
pub fn remove_stale(w: &mut Write<'_>, user: UserNum, rows_max: usize) -> Result<usize> {
    let end = after_prefix(&user.to_key());
    let mut removed = 0;
    for table in [&SLIDING_ROOM, &SLIDING_STATE] {
        let mut from = user.to_key().to_vec();
        while removed < rows_max {
            let Some((key, _)) = w.first(table, &from, end.as_deref(), false)? else { break };
            let conn = connection_key(&key).ok_or_else(|| Error::corrupt(table, &key))?;
            match w.has(&SLIDING_CONNECTION, conn)? {
                true => from = after_prefix(conn).unwrap_or(key),
                false => removed += w.remove_prefix(table, conn, rows_max - removed)?,
            }
        }
    }
    Ok(removed)
}

/// The key of the connection that a row belongs to.
fn connection_key(of: &[u8]) -> Option<&[u8]> {
    let user = size_of::<UserNum>();
    let device_end = user + of.get(user..)?.iter().position(|byte| *byte == 0)? + 1;
    of.get(..device_end + size_of::<Position>())
}

/// Forgets all connections of a device, [`CONNECTIONS_MAX`] rows; [`remove_stale`] takes away the others.
pub fn remove_device(w: &mut Write<'_>, user: UserNum, device_id: &str) -> Result<()> {
    w.remove_prefix(&SLIDING_CONNECTION, &device::prefix(user, device_id), usize::MAX).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn told_at(at: u64) -> Told {
        let members = vec![UserNum(3), UserNum(9), UserNum(70_000)];
        Told { at: Position(at), timeline: 20, state: u64::MAX - 5, is_dm: true, is_left: false, members }
    }

    #[test]
    fn rows_come_back_as_they_were() {
        let answer = Answer { num: Position(7), asked: u64::MAX, settled: true, counts: vec![0, 70_000] };
        for known in [None, Some(Answer::default())] {
            let given = Some(answer.clone());
            let row = Connection { conn_id: "main".to_owned(), used_ms: 1 << 40, known, given };
            assert_eq!(Connection::decode(&row.encode()), Some(row));
        }
        for before in [None, Some(told_at(3))] {
            let row = Row { before, by: Some((Position(9), Told { is_left: true, ..told_at(5) })) };
            assert_eq!(Row::decode(&row.encode()), Some(row));
        }
    }

    #[test]
    fn any_bytes_are_a_row_or_damage() {
        let row = Row { before: Some(told_at(3)), by: Some((Position(9), told_at(5))) }.encode();
        let given = Some(Answer { num: Position(7), asked: 3, settled: true, counts: vec![0, 70_000] });
        let connection = Connection { conn_id: "main".to_owned(), used_ms: 9, known: None, given }.encode();
        crate::base::any_bytes::any_bytes(&[&row, &connection], |bytes| {
            if let Some(row) = Row::decode(bytes) {
                assert_eq!(Row::decode(&row.encode()), Some(row));
            }
            if let Some(row) = Connection::decode(bytes) {
                assert_eq!(Connection::decode(&row.encode()), Some(row));
            }
        });
    }

    /// An answer that was lost told nothing, and the one after it counts only when it is named.
    #[test]
    fn what_a_lost_answer_told_is_taken_back() {
        let job = |w: &mut Write<'_>| {
            let (user, conn, room) = (UserNum(1), Position(5), RoomNum(9));
            let told = |w: &Write<'_>, num| told(w, user, "D", conn, room, Position(num));
            put_told(w, user, "D", conn, room, Position(0), Position(5), told_at(5))?;
            assert_eq!((told(w, 4)?, told(w, 5)?), (None, Some(told_at(5))));
            put_told(w, user, "D", conn, room, Position(5), Position(8), told_at(8))?;
            put_told(w, user, "D", conn, RoomNum(10), Position(5), Position(8), told_at(8))?;
            assert_eq!((told(w, 5)?, told(w, 8)?), (Some(told_at(5)), Some(told_at(8))));
            assert_eq!(take_back(w, user, "D", conn, Position(8), 10)?, 2);
            assert_eq!((told(w, 5)?, told(w, 11)?), (Some(told_at(5)), Some(told_at(5))));
            assert_eq!(super::told(w, user, "D", conn, RoomNum(10), Position(11))?, None);
            put_told(w, user, "D", conn, room, Position(5), Position(11), told_at(11))?;
            put_state(w, user, "D", conn, 3, b"[]")?;
            let row = Connection { conn_id: String::new(), used_ms: 0, known: None, given: None };
            put_connection(w, user, "D", Position(6), &row)?;
            put_told(w, user, "D", Position(6), room, Position(6), Position(6), told_at(6))?;
            assert_eq!(remove_stale(w, user, 1)?, 1);
            assert_eq!((remove_stale(w, user, 9)?, remove_stale(w, user, 9)?), (1, 0));
            assert_eq!(super::told(w, user, "D", Position(6), room, Position(6))?, Some(told_at(6)));
            put_told(w, user, "Other", Position(6), room, Position(6), Position(6), told_at(6))?;
            put_told(w, UserNum(2), "D", Position(6), room, Position(6), Position(6), told_at(6))?;
            remove_device(w, user, "D")?;
            assert_eq!(remove_stale(w, user, 9)?, 2);
            assert_eq!(super::told(w, user, "D", Position(6), room, Position(6))?, None);
            assert!(connections(w, user, "D")?.is_empty());
            Ok::<_, Error>(())
        };
        Store::in_memory().write_blocking(job).unwrap();
    }

    /// An app that asks for more and more different state is told only what is new to it.
    #[test]
    fn the_newest_text_of_required_state_is_kept() {
        let job = |w: &mut Write<'_>| {
            for hash in 0..100 {
                put_state(w, UserNum(1), "D", Position(5), hash, b"[]")?;
                assert!(state(w, UserNum(1), "D", Position(5), hash)?.is_some());
            }
            let mut kept = 0;
            w.prefix(&SLIDING_STATE, &[], &mut |_, _| {
                kept += 1;
                Ok(ControlFlow::Continue(()))
            })?;
            assert_eq!(kept, STATES_MAX);
            Ok::<_, Error>(())
        };
        Store::in_memory().write_blocking(job).unwrap();
    }
}
