//! Public rooms, and aliases.

use std::ops::ControlFlow;

use crate::store::row_encoding::{Unpack, put_u64};
use crate::store::schema::{ALIAS, NETWORK_ROOM, ROOM_ALIAS, ROOM_PUBLIC};
use crate::store::{Error, Get, Result, RoomNum, UserNum, Write, after_prefix};

/// A public room's place in the list: most members first, then the older room.
pub fn public_key(joined: u64, num: RoomNum) -> [u8; 8] {
    let mut key = [0; 8];
    let joined = u32::try_from(joined).unwrap_or(u32::MAX);
    key[..4].copy_from_slice(&(!joined).to_be_bytes());
    key[4..].copy_from_slice(&num.to_key());
    key
}

/// Puts a room into the public list, moves it there, or takes it out: from the listed count (`before`) to the new count
/// (`after`), both as joined members, `None` for not listed.
pub fn set_public(w: &mut Write, num: RoomNum, before: Option<u64>, after: Option<u64>) -> Result<()> {
    if before == after {
        return Ok(());
    }
    if let Some(joined) = before {
        w.remove(&ROOM_PUBLIC, &public_key(joined, num))?;
    }
    if let Some(joined) = after {
        w.put(&ROOM_PUBLIC, &public_key(joined, num), &[])?;
    }
    Ok(())
}

/// Visits the public list from a place in it (a key of [`public_key`]; empty for the start), in either direction. The
/// place itself is included forwards and excluded backwards.
pub fn list_public(
    reads: &impl Get,
    from: &[u8],
    backwards: bool,
    visit: &mut dyn FnMut(&[u8], RoomNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let (start, end): (&[u8], Option<&[u8]>) = if backwards { (&[], Some(from)) } else { (from, None) };
    reads.range(&ROOM_PUBLIC, start, end, backwards, &mut |key, _| {
        let num = key.get(4..).and_then(RoomNum::from_key).ok_or_else(|| Error::corrupt(&ROOM_PUBLIC, key))?;
        visit(key, num)
    })
}

/// Puts a room into the public list of a network, or takes it out. `most`: the rooms that it may have; false when it has as
/// many.
pub fn set_in_network(w: &mut Write, network: &str, num: RoomNum, listed: bool, most: usize) -> Result<bool> {
    let prefix = w.hash128(&[network.as_bytes()]);
    let key = [&prefix[..], &num.to_key()].concat();
    if !listed {
        w.remove(&NETWORK_ROOM, &key)?;
        return Ok(true);
    }
    if w.has(&NETWORK_ROOM, &key)? {
        return Ok(true);
    }
    let mut count = 0;
    w.prefix(&NETWORK_ROOM, &prefix, &mut |_, _| {
        count += 1;
        Ok(if count < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if count >= most {
        return Ok(false);
    }
    w.put(&NETWORK_ROOM, &key, &[])?;
    Ok(true)
}

/// Takes a room that is removed out of the public lists of all networks. Looks at every row of those.
pub fn leave_networks(w: &mut Write, num: RoomNum) -> Result<()> {
    let (room, mut listed) = (num.to_key(), Vec::new());
    w.range(&NETWORK_ROOM, &[], None, false, &mut |key, _| {
        if key.ends_with(&room) {
            listed.push(key.to_vec());
        }
        Ok(ControlFlow::Continue(()))
    })?;
    listed.iter().try_for_each(|key| w.remove(&NETWORK_ROOM, key).map(drop))
}

/// Visits the public list of a network, or of all of them one after the other, as [`list_public`] does; the newest room
/// last.
pub fn list_network(
    reads: &impl Get,
    network: Option<&str>,
    from: &[u8],
    backwards: bool,
    visit: &mut dyn FnMut(&[u8], RoomNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let prefix = network.map_or(Vec::new(), |network| reads.hash128(&[network.as_bytes()]).to_vec());
    // A place has eight bytes in every list.
    let at = |place: &[u8]| [&prefix[..], place.get(4..).unwrap_or_default()].concat();
    let (start, end) = match backwards {
        true => (prefix.clone(), Some(at(from))),
        false => (at(from), after_prefix(&prefix)),
    };
    reads.range(&NETWORK_ROOM, &start, end.as_deref(), backwards, &mut |key, _| {
        let num = key.get(16..).and_then(RoomNum::from_key).ok_or_else(|| Error::corrupt(&NETWORK_ROOM, key))?;
        visit(&[&[0; 4], &key[16..]].concat(), num)
    })
}

/// The target of an alias of this server, and its creator.
pub fn alias(reads: &impl Get, alias: &str) -> Result<Option<(RoomNum, UserNum)>> {
    let Some(value) = reads.get(&ALIAS, alias.as_bytes())? else { return Ok(None) };
    let mut unpack = Unpack::new(&value);
    let both = unpack.u32().zip(unpack.u32()).ok_or_else(|| Error::corrupt(&ALIAS, alias.as_bytes()))?;
    Ok(Some((RoomNum(both.0), UserNum(both.1))))
}

/// Points an alias of this server at a room.
pub fn put_alias(w: &mut Write, alias: &str, room: RoomNum, creator: UserNum) -> Result<()> {
    let mut row = Vec::new();
    put_u64(&mut row, room.0.into());
    put_u64(&mut row, creator.0.into());
    w.put(&ALIAS, alias.as_bytes(), &row)?;
    w.put(&ROOM_ALIAS, &room_alias_key(room, alias), &[])
}

/// Takes an alias away. Answers whether it was there.
pub fn remove_alias(w: &mut Write, name: &str) -> Result<bool> {
    let Some((room, _)) = alias(w, name)? else { return Ok(false) };
    w.remove(&ALIAS, name.as_bytes())?;
    w.remove(&ROOM_ALIAS, &room_alias_key(room, name))?;
    Ok(true)
}

/// A room's aliases on this server, in order of name; at most `most`.
pub fn aliases(reads: &impl Get, room: RoomNum, most: usize) -> Result<Vec<String>> {
    let mut aliases = Vec::new();
    reads.prefix(&ROOM_ALIAS, &room.to_key(), &mut |key, _| {
        if aliases.len() == most {
            return Ok(ControlFlow::Break(()));
        }
        let alias = std::str::from_utf8(&key[4..]).map_err(|_| Error::corrupt(&ROOM_ALIAS, key))?;
        aliases.push(alias.to_owned());
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(aliases)
}

fn room_alias_key(room: RoomNum, alias: &str) -> Vec<u8> {
    [&room.to_key()[..], alias.as_bytes()].concat()
}
