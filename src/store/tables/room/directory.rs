//! Public rooms, and aliases.

use std::ops::ControlFlow;

use crate::store::row_encoding::{Unpack, put_u64};
use crate::store::schema::{ALIAS, ROOM_ALIAS, ROOM_PUBLIC};
use crate::store::{Error, Get, Result, RoomNum, UserNum, Write};

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
