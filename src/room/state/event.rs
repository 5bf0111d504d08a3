//! Events as they are stored, read for the rules.

use ruma::OwnedEventId;
use serde_json::Value;

use crate::matrix::version::IdFormat;
use crate::matrix::{Event, RoomVersion};
use crate::room::error::Result;
use crate::room::state::RoomRef;
use crate::store::schema::EVENT_BODY;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Id, IdForm, Kind, Row};
use crate::store::{self, EventNum, Get, RoomNum};

/// An event's id in a room of that version, as rows keep it.
pub fn id_in(version: &RoomVersion, id: &str) -> Id {
    let form = match version.id_format {
        IdFormat::UrlSafe => IdForm::Hash,
        IdFormat::Standard => IdForm::HashStandard,
        IdFormat::Opaque => IdForm::Named,
    };
    Id::read(form, id)
}

/// An event's number and columns.
pub fn stored(get: &impl Get, id: &str) -> store::Result<Option<(EventNum, Row)>> {
    match event::num(get, id)? {
        Some(num) => Ok(Some((num, event::row_of(get, num)?))),
        None => Ok(None),
    }
}

/// Whether the event stored under an event's id is that event. In versions 1 and 2 the sender chooses the id.
pub fn is_same(get: &impl Get, row: &Row, room: RoomNum, event: &Event) -> store::Result<bool> {
    let same_text = || -> store::Result<bool> {
        Ok(load_row(get, event.version(), row)?.reference_hash() == event.reference_hash())
    };
    Ok(row.room == room && (!event.version().event_id_in_event() || same_text()?))
}

/// Whether an event is known with its place in the history.
pub fn is_placed(row: &Row) -> bool {
    !row.flags.outlier && (row.before.is_some() || row.kind == Kind::CREATE)
}

pub fn id_of(get: &impl Get, num: EventNum) -> Result<OwnedEventId> {
    let corrupt = || crate::store::Error::corrupt(&crate::store::schema::EVENT, &num.to_key());
    Ok(OwnedEventId::try_from(event::id_of(get, num)?).map_err(|_| corrupt())?)
}

pub fn ids_of(get: &impl Get, nums: &[EventNum]) -> Result<Vec<OwnedEventId>> {
    nums.iter().map(|num| id_of(get, *num)).collect()
}

/// An event out of the store.
pub fn load(get: &impl Get, version: &'static RoomVersion, num: EventNum) -> store::Result<Event> {
    load_row(get, version, &event::row_of(get, num)?)
}

/// An event whose columns are at hand.
pub fn load_row(get: &impl Get, version: &'static RoomVersion, row: &Row) -> store::Result<Event> {
    let corrupt = || store::Error::corrupt(&EVENT_BODY, &row.body.to_key());
    let id = OwnedEventId::try_from(row.id.text()).map_err(|_| corrupt())?;
    Event::from_stored(version, event::body(get, row)?, id).map_err(|_| corrupt())
}

/// The content of a state event without a key.
pub(in crate::room) fn content(get: &impl Get, room: &RoomRef, kind: &str) -> Result<Option<Value>> {
    let event = room.view(get).event(kind, "")?;
    Ok(event.and_then(|event| serde_json::from_str(event.content()).ok()))
}
