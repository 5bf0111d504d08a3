//! Followers of the outbound log: its readers that are no servers, such as push gateways and application services.
//!
//! Each has a name of its own and one position. Without any follower the log holds what other servers must receive and
//! nothing else.

use std::ops::ControlFlow;

use crate::store::schema::FOLLOWER;
use crate::store::{Error, Get, Position, Result, Write};

/// The position of a follower; none when there is no such follower.
pub fn position(get: &impl Get, name: &str) -> Result<Option<Position>> {
    let Some(row) = get.get(&FOLLOWER, name.as_bytes())? else { return Ok(None) };
    Position::from_key(&row).map(Some).ok_or_else(|| Error::corrupt(&FOLLOWER, name.as_bytes()))
}

/// Sets the position of a follower; `None` ends it.
pub fn set_position(w: &mut Write, name: &str, position: Option<Position>) -> Result<()> {
    match position {
        Some(position) => w.put(&FOLLOWER, name.as_bytes(), &position.to_key()),
        None => w.remove(&FOLLOWER, name.as_bytes()).map(drop),
    }
}

/// Whether there is any follower. One row.
pub fn is_any(get: &impl Get) -> Result<bool> {
    let mut any = false;
    get.range(&FOLLOWER, &[], None, false, &mut |_, _| {
        any = true;
        Ok(ControlFlow::Break(()))
    })?;
    Ok(any)
}

/// The number of followers, and the lowest of their positions. Bounded by the followers.
pub fn rearmost(get: &impl Get) -> Result<(usize, Option<Position>)> {
    let (mut count, mut rearmost) = (0, None::<Position>);
    get.range(&FOLLOWER, &[], None, false, &mut |key, row| {
        let position = Position::from_key(row).ok_or_else(|| Error::corrupt(&FOLLOWER, key))?;
        count += 1;
        rearmost = Some(rearmost.map_or(position, |least| least.min(position)));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((count, rearmost))
}
