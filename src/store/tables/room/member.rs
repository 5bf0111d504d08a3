//! Membership of rooms: the members by membership, their servers, and the local users of a room.

use std::ops::ControlFlow;

use super::current_state::NewState;
use super::event_row::Membership;
use crate::store::row_encoding::{Unpack, put_u64};
use crate::store::schema::{MEMBER, ROOM_LOCAL, ROOM_SERVER};
use crate::store::{Error, Get, Result, Write, after_prefix};
use crate::store::{EventNum, Position, RoomNum, UserNum};

// ---- members -----------------------------------------------------------------------------------------------------

fn member_key(room: RoomNum, membership: Membership, user: UserNum) -> [u8; 9] {
    let mut out = [0; 9];
    out[..4].copy_from_slice(&room.to_key());
    out[4] = membership as u8;
    out[5..].copy_from_slice(&user.to_key());
    out
}

/// Moves a user from one membership of a room to another. The caller keeps the counts.
pub fn set(
    w: &mut Write,
    room: RoomNum,
    user: UserNum,
    before: Option<Membership>,
    after: Option<(Membership, EventNum)>,
) -> Result<()> {
    if let Some(before) = before
        && after.is_none_or(|(after, _)| after != before)
    {
        w.remove(&MEMBER, &member_key(room, before, user))?;
    }
    if let Some((after, event)) = after {
        w.put(&MEMBER, &member_key(room, after, user), &event.to_key())?;
    }
    Ok(())
}

/// Adds the members among entries of a room's state. None has a row yet. Bounded by the list.
pub fn put_new(w: &mut Write, room: RoomNum, entries: &[NewState]) -> Result<()> {
    let members = entries.iter().filter_map(|one| Some((one.member?, one.event)));
    let mut rows: Vec<_> =
        members.map(|((what, user), event)| (member_key(room, what, user), event.to_key())).collect();
    rows.sort_unstable();
    w.put_sorted(&MEMBER, &rows)
}

/// A user's membership of a room now, and the event that says so. Five lookups at most.
pub fn get(get: &impl Get, room: RoomNum, user: UserNum) -> Result<Option<(Membership, EventNum)>> {
    for membership in Membership::ALL {
        let key = member_key(room, membership, user);
        if let Some(value) = get.get(&MEMBER, &key)? {
            let event = EventNum::from_key(&value).ok_or_else(|| Error::corrupt(&MEMBER, &key))?;
            return Ok(Some((membership, event)));
        }
    }
    Ok(None)
}

/// Whether a user is joined now.
pub fn is_joined(get: &impl Get, room: RoomNum, user: UserNum) -> Result<bool> {
    Ok(get.get(&MEMBER, &member_key(room, Membership::Join, user))?.is_some())
}

/// Visits the users of a room with one membership, behind `after`, in the order they were first heard of.
pub fn list(
    get: &impl Get,
    room: RoomNum,
    membership: Membership,
    after: Option<UserNum>,
    visit: &mut dyn FnMut(UserNum, EventNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let from = member_key(room, membership, UserNum(after.map_or(0, |user| user.0.saturating_add(1))));
    let end = after_prefix(&from[..5]);
    get.range(&MEMBER, &from, end.as_deref(), false, &mut |key, value| {
        let corrupt = || Error::corrupt(&MEMBER, key);
        let user = key.get(5..).and_then(UserNum::from_key).ok_or_else(corrupt)?;
        visit(user, EventNum::from_key(value).ok_or_else(corrupt)?)
    })
}

// ---- servers -----------------------------------------------------------------------------------------------------

fn server_key(room: RoomNum, server: &str) -> Vec<u8> {
    [&room.to_key()[..], server.as_bytes()].concat()
}

/// The number of a server's joined users, and the position since which it has been in the room without a break.
pub fn server(get: &impl Get, room: RoomNum, server: &str) -> Result<Option<(u64, Position)>> {
    let key = server_key(room, server);
    let Some(value) = get.get(&ROOM_SERVER, &key)? else { return Ok(None) };
    unpack_server(&value).map(Some).ok_or_else(|| Error::corrupt(&ROOM_SERVER, &key))
}

fn unpack_server(value: &[u8]) -> Option<(u64, Position)> {
    let mut unpack = Unpack::new(value);
    unpack.u64().zip(unpack.u64().map(Position))
}

/// Counts a server's joined users up or down; the row goes with the last of them. Answers whether the row is still
/// there.
pub fn count_server(w: &mut Write, room: RoomNum, name: &str, change: i64, now: Position) -> Result<bool> {
    let (count, since) = server(w, room, name)?.unwrap_or((0, now));
    let count = count.saturating_add_signed(change);
    if count == 0 {
        w.remove(&ROOM_SERVER, &server_key(room, name))?;
        return Ok(false);
    }
    put_server(w, room, name, count, since)?;
    Ok(true)
}

/// Sets a server's count outright: a join's flip writes them once.
pub fn put_server(w: &mut Write, room: RoomNum, server: &str, count: u64, since: Position) -> Result<()> {
    let mut row = Vec::with_capacity(8);
    put_u64(&mut row, count);
    put_u64(&mut row, since.0);
    w.put(&ROOM_SERVER, &server_key(room, server), &row)
}

/// Visits the servers with joined users behind `after`, by name.
pub fn list_servers(
    get: &impl Get,
    room: RoomNum,
    after: Option<&str>,
    visit: &mut dyn FnMut(&str, u64) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let mut from = room.to_key().to_vec();
    if let Some(after) = after {
        from.extend_from_slice(after.as_bytes());
        from.push(0);
    }
    get.range(&ROOM_SERVER, &from, after_prefix(&room.to_key()).as_deref(), false, &mut |key, value| {
        let corrupt = || Error::corrupt(&ROOM_SERVER, key);
        let name = std::str::from_utf8(&key[4..]).map_err(|_| corrupt())?;
        visit(name, unpack_server(value).ok_or_else(corrupt)?.0)
    })
}

/// Whether users of a server share a room with local users. Bounded by the rooms of local users.
pub fn shares_room(get: &impl Get, name: &str) -> Result<bool> {
    let (mut shares, mut last) = (false, None);
    get.range(&ROOM_LOCAL, &[], None, false, &mut |key, value| {
        let room = RoomNum::from_key(key).ok_or_else(|| Error::corrupt(&ROOM_LOCAL, key))?;
        if value.first() == Some(&(Membership::Join as u8)) && last != Some(room) {
            last = Some(room);
            shares = get.has(&ROOM_SERVER, &server_key(room, name))?;
        }
        Ok(if shares { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(shares)
}

/// Removes at most `rows_max` rows of a room's members and servers; fewer means that none are left.
pub fn clear(w: &mut Write, room: RoomNum, rows_max: usize) -> Result<usize> {
    let mut removed = 0;
    for table in [&MEMBER, &ROOM_SERVER] {
        removed += w.remove_prefix(table, &room.to_key(), rows_max - removed)?;
    }
    Ok(removed)
}

// ---- local users' own rooms --------------------------------------------------------------------------------------

/// Visits a room's local users, whatever the membership. Bounded by the number of local users, never by the room.
pub fn list_local(
    get: &impl Get,
    room: RoomNum,
    visit: &mut dyn FnMut(UserNum, Membership) -> Result<ControlFlow<()>>,
) -> Result<()> {
    get.prefix(&ROOM_LOCAL, &room.to_key(), &mut |key, value| {
        let corrupt = || Error::corrupt(&ROOM_LOCAL, key);
        let user = key.get(4..).and_then(UserNum::from_key).ok_or_else(corrupt)?;
        let membership = value.first().and_then(|code| Membership::from_code(*code)).ok_or_else(corrupt)?;
        visit(user, membership)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tables::room::user_room::Mine;

    #[test]
    fn a_row_comes_back_as_it_was() {
        for mine in [
            Mine {
                membership: Membership::Leave,
                since: Position(7_000),
                event: Some(EventNum(9)),
                forgotten: true,
                outside: false,
                before: Some(Membership::Join),
                left_at: Some(Position(7_000)),
            },
            Mine {
                membership: Membership::Invite,
                since: Position(1),
                event: None,
                forgotten: false,
                outside: true,
                before: None,
                left_at: None,
            },
        ] {
            assert_eq!(Mine::decode(&mine.encode()), Some(mine));
        }
    }
}
