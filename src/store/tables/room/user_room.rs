//! The local users' own rows for each room.

use std::ops::ControlFlow;

use super::event_row::Membership;
use crate::store::row_encoding::{Unpack, put_u64};
use crate::store::schema::{GUESTS_NOTED, ROOM_LOCAL, STRIPPED, USER_ROOM};
use crate::store::{Error, EventNum, Get, Position, Result, RoomNum, UserNum, Write, after_prefix};

/// The relation of a local user to a room, from the user's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mine {
    pub membership: Membership,
    /// The position of that change: a sync from before it has to report it.
    pub since: Position,
    /// The member event; none for an invite or knock we only hold a stripped copy of.
    pub event: Option<EventNum>,
    /// The user asked not to see the room any more (only for rooms left or banned from).
    pub forgotten: bool,
    /// Known only from outside: the invite or knock stands in the stripped table, we hold no state of the room.
    pub outside: bool,
    /// The membership before this one; it decides which events a sync of a left room may still show.
    pub before: Option<Membership>,
    /// The time they last stopped being joined; it decides how far back into the room they may still see.
    pub left_at: Option<Position>,
}

impl Mine {
    /// Who joined at this position, for tests.
    #[cfg(test)]
    pub fn joined(since: Position) -> Mine {
        let membership = Membership::Join;
        Mine { membership, since, event: None, forgotten: false, outside: false, before: None, left_at: None }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12);
        out.push(self.membership as u8);
        out.push(u8::from(self.forgotten) | u8::from(self.outside) << 1);
        out.push(self.before.map_or(0, |before| before as u8));
        put_u64(&mut out, self.since.0);
        put_u64(&mut out, self.event.map_or(0, |event| event.0.into()));
        put_u64(&mut out, self.left_at.map_or(0, |at| at.0));
        out
    }

    pub fn decode(row: &[u8]) -> Option<Mine> {
        let mut unpack = Unpack::new(row);
        let membership = Membership::from_code(unpack.u8()?)?;
        let flags = unpack.u8()?;
        let before = Membership::from_code(unpack.u8()?);
        let since = Position(unpack.u64()?);
        let event = Some(EventNum(unpack.u32()?)).filter(|num| num.0 != 0);
        let left_at = Some(Position(unpack.u64()?)).filter(|at| at.0 != 0);
        Some(Mine { membership, since, event, forgotten: flags & 1 != 0, outside: flags & 2 != 0, before, left_at })
    }
}

fn pair(first: [u8; 4], second: [u8; 4]) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&first);
    key[4..].copy_from_slice(&second);
    key
}

/// The relation of a local user to a room.
pub fn mine(get: &impl Get, user: UserNum, room: RoomNum) -> Result<Option<Mine>> {
    let key = pair(user.to_key(), room.to_key());
    let Some(value) = get.get(&USER_ROOM, &key)? else { return Ok(None) };
    Mine::decode(&value).map(Some).ok_or_else(|| Error::corrupt(&USER_ROOM, &key))
}

/// Sets the relation of a local user to a room, on both sides.
pub fn set_mine(w: &mut Write, user: UserNum, room: RoomNum, mine: &Mine) -> Result<()> {
    w.put(&USER_ROOM, &pair(user.to_key(), room.to_key()), &mine.encode())?;
    w.put(&ROOM_LOCAL, &pair(room.to_key(), user.to_key()), &[mine.membership as u8])
}

/// Forgets every trace of a local user in a room; for a purge, and for an invite from outside that is gone.
pub fn remove_mine(w: &mut Write, user: UserNum, room: RoomNum) -> Result<()> {
    w.remove(&USER_ROOM, &pair(user.to_key(), room.to_key()))?;
    w.remove(&ROOM_LOCAL, &pair(room.to_key(), user.to_key()))?;
    w.remove(&STRIPPED, &pair(user.to_key(), room.to_key()))?;
    Ok(())
}

/// Visits a local user's rooms behind `after`, whatever the membership, forgotten ones included.
pub fn list_mine(
    get: &impl Get,
    user: UserNum,
    after: Option<RoomNum>,
    visit: &mut dyn FnMut(RoomNum, Mine) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let from = pair(user.to_key(), RoomNum(after.map_or(0, |room| room.0.saturating_add(1))).to_key());
    get.range(&USER_ROOM, &from, after_prefix(&user.to_key()).as_deref(), false, &mut |key, value| {
        let corrupt = || Error::corrupt(&USER_ROOM, key);
        let room = key.get(4..).and_then(RoomNum::from_key).ok_or_else(corrupt)?;
        visit(room, Mine::decode(value).ok_or_else(corrupt)?)
    })
}

/// The stripped state that came with an invite or knock from outside: a JSON array.
pub fn stripped(get: &impl Get, user: UserNum, room: RoomNum) -> Result<Option<Vec<u8>>> {
    get.get(&STRIPPED, &pair(user.to_key(), room.to_key()))
}

/// Visits the users and rooms with such state: invites and knocks from outside.
pub fn list_stripped(get: &impl Get, visit: &mut dyn FnMut(UserNum, RoomNum) -> Result<ControlFlow<()>>) -> Result<()> {
    get.range(&STRIPPED, &[], None, false, &mut |key, _| {
        let user = UserNum::from_key(key.get(..4).unwrap_or_default());
        let room = key.get(4..).and_then(RoomNum::from_key);
        let (user, room) = user.zip(room).ok_or_else(|| Error::corrupt(&STRIPPED, key))?;
        visit(user, room)
    })
}

/// Keeps the stripped state of an invite or knock from outside, or drops it.
pub fn set_stripped(w: &mut Write, user: UserNum, room: RoomNum, json: Option<&[u8]>) -> Result<()> {
    let key = pair(user.to_key(), room.to_key());
    match json {
        Some(json) => w.put(&STRIPPED, &key, json),
        None => {
            w.remove(&STRIPPED, &key)?;
            Ok(())
        }
    }
}

/// Notes that a room's guest access changed: guests there may have to leave.
pub fn note_guests(w: &mut Write, room: RoomNum) -> Result<()> {
    w.put(&GUESTS_NOTED, &room.to_key(), &[])
}

/// Whether that was noted of a room.
pub fn are_guests_noted(get: &impl Get, room: RoomNum) -> Result<bool> {
    get.has(&GUESTS_NOTED, &room.to_key())
}

/// The first room at or behind `from` of which it was noted.
pub fn guests_noted(get: &impl Get, from: RoomNum) -> Result<Option<RoomNum>> {
    let Some((key, _)) = get.first(&GUESTS_NOTED, &from.to_key(), None, false)? else { return Ok(None) };
    RoomNum::from_key(&key).map(Some).ok_or_else(|| Error::corrupt(&GUESTS_NOTED, &key))
}

/// Nobody has to leave a room any more.
pub fn forget_guests(w: &mut Write, room: RoomNum) -> Result<()> {
    w.remove(&GUESTS_NOTED, &room.to_key())?;
    Ok(())
}
