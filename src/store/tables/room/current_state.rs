//! The present state of a room, key by key.

use std::ops::ControlFlow;

use super::event_row::{Kind, Membership};
use crate::store::schema::CURRENT_STATE;
use crate::store::{Error, EventNum, Get, Result, RoomNum, StateKeyNum, UserNum, Write, after_prefix};

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

/// Entries of a state that is written from nothing, piece by piece: key, event, and for a membership its user.
pub struct NewState {
    pub kind: Kind,
    pub key: StateKeyNum,
    pub event: EventNum,
    pub member: Option<(Membership, UserNum)>,
}

/// Sets many keys of a room's state. Bounded by the list.
pub fn put_new(w: &mut Write, room: RoomNum, entries: &[NewState]) -> Result<()> {
    let mut rows: Vec<_> = entries.iter().map(|one| (state_key(room, one.kind, one.key), one.event.to_key())).collect();
    rows.sort_unstable();
    w.put_sorted(&CURRENT_STATE, &rows)
}

/// Removes at most `rows_max` rows of a room's present state; fewer means that none are left.
pub fn clear(w: &mut Write, room: RoomNum, rows_max: usize) -> Result<usize> {
    w.remove_prefix(&CURRENT_STATE, &room.to_key(), rows_max)
}

/// The cursor of a walk over the present state; begin with the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCursor(Option<[u8; 5]>);

impl StateCursor {
    /// Behind all rows of a type.
    pub fn after_all_of(kind: Kind) -> StateCursor {
        StateCursor(Some([kind.0, 0xff, 0xff, 0xff, 0xff]))
    }

    /// The key of the current row; none at the start.
    pub fn key(self) -> Option<StateKeyNum> {
        self.0.and_then(|place| StateKeyNum::from_key(&place[1..]))
    }
}

/// Visits the room's state now behind `after`, ordered by type code; `only` bounds it to one type. Breaks when the
/// visitor does; the cursor passed to the visitor is the place to continue from.
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
