//! Ruma's rules and ruma's view of our events, to compare with.

use crate::matrix::event::Event;
use crate::matrix::json::{self, Mode};
use crate::matrix::version::RoomVersion;
use ruma::events::TimelineEventType;
use ruma::room_version_rules::RoomVersionRules;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UInt, UserId};
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::Arc;

pub fn rules(version: &RoomVersion) -> RoomVersionRules {
    ruma::RoomVersionId::try_from(version.id).unwrap().rules().expect("ruma knows versions 1 to 12")
}

/// An unsigned event, under an id of the test's choosing.
pub fn event(version: &'static RoomVersion, id: &str, value: &Value) -> Arc<Event> {
    let bytes = json::canonical_value(value, Mode::Lenient).unwrap();
    Arc::new(Event::from_stored(version, bytes, id.try_into().unwrap()).unwrap())
}

#[derive(Clone, Debug)]
pub struct Pdu {
    pub event: Arc<Event>,
    id: OwnedEventId,
    kind: TimelineEventType,
    content: Box<RawValue>,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    redacts: Option<OwnedEventId>,
    pub rejected: bool,
}

impl Pdu {
    pub fn new(event: &Arc<Event>, rejected: bool) -> Pdu {
        Pdu {
            id: event.id().to_owned(),
            kind: event.kind().into(),
            content: RawValue::from_string(event.content().to_owned()).unwrap(),
            prev_events: event.prev_events().map(ToOwned::to_owned).collect(),
            auth_events: event.auth_events().map(ToOwned::to_owned).collect(),
            redacts: event.redacts().map(ToOwned::to_owned),
            event: event.clone(),
            rejected,
        }
    }
}

impl ruma::state_res::Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.id
    }
    fn room_id(&self) -> Option<&RoomId> {
        self.event.get("room_id").is_some().then(|| self.event.room_id())
    }
    fn sender(&self) -> &UserId {
        self.event.sender()
    }
    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new(self.event.origin_server_ts()).unwrap())
    }
    fn event_type(&self) -> &TimelineEventType {
        &self.kind
    }
    fn content(&self) -> &RawValue {
        &self.content
    }
    fn state_key(&self) -> Option<&str> {
        self.event.state_key()
    }
    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.prev_events.iter())
    }
    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.auth_events.iter())
    }
    fn redacts(&self) -> Option<&OwnedEventId> {
        self.redacts.as_ref()
    }
    fn rejected(&self) -> bool {
        self.rejected
    }
}
