//! Who is in which room: the present state, the members by membership, the servers, and the local users' own rooms.

use std::ops::ControlFlow;

use super::event::{Kind, Membership};
use crate::store::row_encoding::{Unpack, put_u64};
use crate::store::schema::{CURRENT_STATE, MEMBER, ROOM_LOCAL, ROOM_SERVER, STRIPPED, USER_ROOM};
use crate::store::{Error, Get, Result, Write, after_prefix};
use crate::store::{EventNum, Position, RoomNum, StateKeyNum, UserNum};

// ---- the present state -------------------------------------------------------------------------------------------

fn state_key(room: RoomNum, kind: Kind, key: StateKeyNum) -> [u8; 9] {
    let mut out = [0; 9];
    out[..4].copy_from_slice(&room.to_key());
    out[4] = kind.0;
    out[5..].copy_from_slice(&key.to_key());
    out
}

/// The event that is the room's state for a key now.
pub fn state(get: &impl Get, room: RoomNum, kind: Kind, key: StateKeyNum) -> Result<Option<EventNum>> {
    let row = state_key(room, kind, key);
    let Some(value) = get.get(&CURRENT_STATE, &row)? else { return Ok(None) };
    EventNum::from_key(&value).map(Some).ok_or_else(|| Error::corrupt(&CURRENT_STATE, &row))
}

/// Sets or removes a key of the room's state now.
pub fn set_state(w: &mut Write, room: RoomNum, kind: Kind, key: StateKeyNum, event: Option<EventNum>) -> Result<()> {
    let row = state_key(room, kind, key);
    match event {
        Some(event) => w.put(&CURRENT_STATE, &row, &event.to_key()),
        None => {
            w.remove(&CURRENT_STATE, &row)?;
            Ok(())
        }
    }
}

/// Entries of a state that is written from nothing, a piece after the other: key, event, and of a membership whose.
pub struct NewState {
    pub kind: Kind,
    pub key: StateKeyNum,
    pub event: EventNum,
    pub member: Option<(Membership, UserNum)>,
}

/// Sets many keys of a room's state and the members among them. No member has a row yet. Bounded by the list.
pub fn put_new(w: &mut Write, room: RoomNum, entries: &[NewState]) -> Result<()> {
    let mut rows: Vec<_> = entries.iter().map(|one| (state_key(room, one.kind, one.key), one.event.to_key())).collect();
    rows.sort_unstable();
    w.put_sorted(&CURRENT_STATE, &rows)?;
    let members = entries.iter().filter_map(|one| Some((one.member?, one.event)));
    let mut rows: Vec<_> =
        members.map(|((what, user), event)| (member_key(room, what, user), event.to_key())).collect();
    rows.sort_unstable();
    w.put_sorted(&MEMBER, &rows)
}

/// Where a walk over the present state stands; begin with the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCursor(Option<[u8; 5]>);

impl StateCursor {
    /// Behind all rows of a type.
    pub fn behind(kind: Kind) -> StateCursor {
        StateCursor(Some([kind.0, 0xff, 0xff, 0xff, 0xff]))
    }

    /// The key it stands on; none at the start.
    pub fn key(self) -> Option<StateKeyNum> {
        self.0.and_then(|place| StateKeyNum::from_key(&place[1..]))
    }
}

/// Visits the room's state now behind `after`, ordered by type code; `only` bounds it to one type. Breaks when the
/// visitor does; the cursor in the visitor is where to go on.
pub fn list_state(
    get: &impl Get,
    room: RoomNum,
    only: Option<Kind>,
    after: StateCursor,
    visit: &mut dyn FnMut(StateCursor, Kind, EventNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let mut from = room.to_key().to_vec();
    match (after.0, only) {
        (Some(place), _) => {
            from.extend_from_slice(&place);
            from.push(0);
        }
        (None, Some(kind)) => from.push(kind.0),
        (None, None) => {}
    }
    let end = match only {
        Some(kind) => after_prefix(&[&room.to_key()[..], &[kind.0]].concat()),
        None => after_prefix(&room.to_key()),
    };
    get.range(&CURRENT_STATE, &from, end.as_deref(), false, &mut |key, value| {
        let corrupt = || Error::corrupt(&CURRENT_STATE, key);
        let place: [u8; 5] = key.get(4..9).and_then(|place| place.try_into().ok()).ok_or_else(corrupt)?;
        visit(StateCursor(Some(place)), Kind(place[0]), EventNum::from_key(value).ok_or_else(corrupt)?)
    })
}

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

/// How many of a server's users are joined, and since which position it has been in the room without a break.
pub fn server(get: &impl Get, room: RoomNum, server: &str) -> Result<Option<(u64, Position)>> {
    let key = server_key(room, server);
    let Some(value) = get.get(&ROOM_SERVER, &key)? else { return Ok(None) };
    unpack_server(&value).map(Some).ok_or_else(|| Error::corrupt(&ROOM_SERVER, &key))
}

fn unpack_server(value: &[u8]) -> Option<(u64, Position)> {
    let mut unpack = Unpack::new(value);
    unpack.u64().zip(unpack.u64().map(Position))
}

/// Counts a server's joined users up or down; the row goes with the last of them. Answers whether it is still there.
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

/// Whether people of a server are in a room together with people of this one. Bounded by the rooms people here are in.
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

/// Removes at most `rows_max` rows of a room's present state, members and servers; fewer means that none are left.
/// For a room that is made anew, or was never finished.
pub fn clear(w: &mut Write, room: RoomNum, rows_max: usize) -> Result<usize> {
    let mut removed = 0;
    for table in [&CURRENT_STATE, &MEMBER, &ROOM_SERVER] {
        removed += w.remove_prefix(table, &room.to_key(), rows_max - removed)?;
    }
    Ok(removed)
}

// ---- local users' own rooms --------------------------------------------------------------------------------------

/// What a local user is to a room, seen from the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mine {
    pub membership: Membership,
    /// When it became so: a sync from before this position has to tell.
    pub since: Position,
    /// The member event; none for an invite or knock we only hold a stripped copy of.
    pub event: Option<EventNum>,
    /// The user asked not to see the room any more (only for rooms left or banned from).
    pub forgotten: bool,
    /// Known only from outside: the invite or knock stands in the stripped table, we hold no state of the room.
    pub outside: bool,
    /// The membership before this one; what a sync of a left room may still show depends on it.
    pub before: Option<Membership>,
    /// When they last stopped being joined; how far back into the room they may still see.
    pub left_at: Option<Position>,
}

impl Mine {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12);
        out.push(self.membership as u8);
        out.push(u8::from(self.forgotten) | u8::from(self.outside) << 1);
        out.push(self.before.map_or(0, |before| before as u8));
        put_u64(&mut out, self.since.0);
        put_u64(&mut out, self.event.map_or(0, |event| event.0.into()));
        put_u64(&mut out, self.left_at.map_or(0, |at| at.0));
        out
    }

    fn decode(row: &[u8]) -> Option<Mine> {
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

/// What a local user is to a room.
pub fn mine(get: &impl Get, user: UserNum, room: RoomNum) -> Result<Option<Mine>> {
    let key = pair(user.to_key(), room.to_key());
    let Some(value) = get.get(&USER_ROOM, &key)? else { return Ok(None) };
    Mine::decode(&value).map(Some).ok_or_else(|| Error::corrupt(&USER_ROOM, &key))
}

/// Sets what a local user is to a room, on both sides.
pub fn set_mine(w: &mut Write, user: UserNum, room: RoomNum, mine: &Mine) -> Result<()> {
    w.put(&USER_ROOM, &pair(user.to_key(), room.to_key()), &mine.encode())?;
    w.put(&ROOM_LOCAL, &pair(room.to_key(), user.to_key()), &[mine.membership as u8])
}

/// Forgets that a local user ever had to do with a room; a purge does, and an invite from outside that is gone.
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

/// Visits a room's local users, whatever the membership. Bounded by the people of this server, never by the room.
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

/// The stripped state that came with an invite or knock from outside: a JSON array.
pub fn stripped(get: &impl Get, user: UserNum, room: RoomNum) -> Result<Option<Vec<u8>>> {
    get.get(&STRIPPED, &pair(user.to_key(), room.to_key()))
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

#[cfg(test)]
mod tests {
    use super::*;

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
