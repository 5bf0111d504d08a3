//! Users whose events are to be redacted because they were kicked or banned so (MSC4293): room, member event → whose, and
//! how far the room's timeline is looked through. A row each, until a worker is done with it.

use std::ops::ControlFlow;

use crate::store::row_encoding::{Unpack, put_i64, put_u64};
use crate::store::schema::MASS_REDACTION;
use crate::store::{Error, EventNum, Get, Result, RoomNum, UserNum, Write};

/// Whose events of a room are redacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MassRedaction {
    pub room: RoomNum,
    /// The kick or ban.
    pub by: EventNum,
    pub user: UserNum,
    /// The events before this place are still to be looked at.
    pub before: i64,
}

pub fn put(w: &mut Write<'_>, task: &MassRedaction) -> Result<()> {
    let mut value = Vec::with_capacity(16);
    put_u64(&mut value, task.user.0.into());
    put_i64(&mut value, task.before);
    w.put(&MASS_REDACTION, &key(task), &value)
}

pub fn remove(w: &mut Write<'_>, task: &MassRedaction) -> Result<()> {
    w.remove(&MASS_REDACTION, &key(task)).map(drop)
}

/// The first that is to be done.
pub fn first(get: &impl Get) -> Result<Option<MassRedaction>> {
    let mut found = None;
    get.prefix(&MASS_REDACTION, b"", &mut |key, value| {
        let read = || {
            let mut unpack = Unpack::new(value);
            let (room, by) = (RoomNum::from_key(key.get(..4)?)?, EventNum::from_key(key.get(4..)?)?);
            Some(MassRedaction { room, by, user: UserNum(unpack.u32()?), before: unpack.i64()? })
        };
        found = Some(read().ok_or_else(|| Error::corrupt(&MASS_REDACTION, key))?);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

fn key(task: &MassRedaction) -> Vec<u8> {
    [task.room.to_key(), task.by.to_key()].concat()
}
