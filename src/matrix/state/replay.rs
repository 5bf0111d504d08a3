//! The iterative auth checks: each event is judged against the state so far, and joins it if it is allowed.

use super::{Parsed, Source};
use crate::matrix::auth::{self, Create, JoinRule, Membership, PowerLevels, Powers, State};
use crate::matrix::event::Event;
use crate::matrix::version::RoomVersion;
use ruma::UserId;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// Parsed power levels held at most; a room has few that matter at a time.
const LEVELS_BYTES_MAX: usize = 512 * 1024;

pub(super) struct Replay<'a, S: Source, U> {
    version: &'a RoomVersion,
    source: &'a S,
    unconflicted: &'a U,
    /// The events set by the replay; everything else is as `unconflicted` says.
    set: HashMap<(Box<str>, Box<str>), S::Id>,
    levels: RefCell<Parsed<S::Id, PowerLevels>>,
    creates: RefCell<Parsed<S::Id, Create>>,
}

impl<'a, S: Source, U: Fn(&str, &str) -> Result<Option<S::Id>, S::Error>> Replay<'a, S, U> {
    pub fn new(version: &'a RoomVersion, source: &'a S, unconflicted: &'a U) -> Self {
        Replay {
            version,
            source,
            unconflicted,
            set: HashMap::new(),
            levels: RefCell::new(Parsed::new(LEVELS_BYTES_MAX)),
            creates: RefCell::new(Parsed::new(16)), // one weighs 1 here: a room has one, a broken one a few
        }
    }

    pub fn source(&self) -> &'a S {
        self.source
    }

    /// The events that the replay has put under the keys it touched.
    pub fn into_set(self) -> HashMap<(Box<str>, Box<str>), S::Id> {
        self.set
    }

    fn replayed(&self, kind: &str, key: &str) -> Option<S::Id> {
        self.set.get(&(Box::from(kind), Box::from(key))).copied()
    }

    /// The state so far.
    pub fn current(&self, kind: &str, key: &str) -> Result<Option<S::Id>, S::Error> {
        match self.replayed(kind, key) {
            Some(id) => Ok(Some(id)),
            None => (self.unconflicted)(kind, key),
        }
    }

    /// Judges one event; an event the rules refuse is passed over.
    pub fn event(&mut self, id: S::Id) -> Result<(), S::Error> {
        let Some(event) = self.source.event(id)? else { return Ok(()) };
        let Some(key) = event.state_key() else { return Ok(()) };
        let subject = event.subject();
        let types = auth::auth_types_for_event(self.version, subject.kind, subject.sender, Some(key), subject.content);
        let Ok(types) = types else { return Ok(()) };
        let mut state = View { replay: self, at: Vec::with_capacity(types.len()) };
        state.gather(id, types)?;
        // Failing to read is not the same as being refused: the judgement is kept apart from the reading.
        let allowed = auth::check(self.version, &subject, &state);
        match allowed {
            Ok(()) => drop(self.set.insert((event.kind().into(), key.into()), id)),
            Err(Stop::Refused) => {}
            Err(Stop::Source(e)) => return Err(e),
        }
        Ok(())
    }

    /// The level of the sender of an event, as the event itself cites it.
    pub fn sender_level(&self, id: S::Id) -> Result<i64, S::Error> {
        let Some(event) = self.source.event(id)? else { return Ok(0) };
        let mut cited = Vec::new();
        self.source.auth_events(id, &mut cited)?;
        let mut levels = None;
        for id in cited {
            if self.source.is_power_levels(id)? {
                levels = self.power_levels(id)?;
                break;
            }
        }
        match self.create(self.source.create()?)? {
            Some(create) => Ok(Powers::new(self.version, &create, levels.as_deref()).user(event.sender())),
            None => Ok(levels.map_or(0, |l| l.named(auth::Named::UsersDefault))),
        }
    }

    fn power_levels(&self, id: S::Id) -> Result<Option<Arc<PowerLevels>>, S::Error> {
        if let Some(levels) = self.levels.borrow().get(id) {
            return Ok(Some(levels));
        }
        let Some(event) = self.source.event(id)? else { return Ok(None) };
        let levels = PowerLevels::parse(self.version, event.content())?;
        let weight = levels.weight();
        Ok(Some(self.levels.borrow_mut().put(id, levels, weight)))
    }

    fn create(&self, id: S::Id) -> Result<Option<Arc<Create>>, S::Error> {
        if let Some(create) = self.creates.borrow().get(id) {
            return Ok(Some(create));
        }
        let Some(event) = self.source.event(id)? else { return Ok(None) };
        let create = Create::parse(self.version, &event.subject())?;
        Ok(Some(self.creates.borrow_mut().put(id, create, 1)))
    }
}

/// The state one event is judged against: for each key it depends on, the state so far, or else the event's own auth
/// events.
struct View<'r, 'a, S: Source, U> {
    replay: &'r Replay<'a, S, U>,
    at: Vec<(&'static str, Box<str>, S::Id)>,
}

impl<S: Source, U: Fn(&str, &str) -> Result<Option<S::Id>, S::Error>> View<'_, '_, S, U> {
    fn gather(&mut self, id: S::Id, types: Vec<(&'static str, Cow<'_, str>)>) -> Result<(), S::Error> {
        let source = self.replay.source;
        let mut missing = Vec::new();
        for (kind, key) in types {
            match self.replay.current(kind, &key)? {
                Some(now) if !source.is_rejected(now)? => self.at.push((kind, Box::from(&*key), now)),
                _ => missing.push((kind, key)),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let mut cited = Vec::new();
        source.auth_events(id, &mut cited)?;
        for id in cited {
            let Some(event) = source.event(id)? else { continue };
            let wanted = missing.iter().find(|(kind, key)| event.is(kind, key));
            if let Some((kind, key)) = wanted
                && !source.is_rejected(id)?
            {
                self.at.push((kind, Box::from(&**key), id));
            }
        }
        Ok(())
    }

    fn id(&self, kind: &str, key: &str) -> Option<S::Id> {
        self.at.iter().find(|(k, s, _)| *k == kind && **s == *key).map(|(_, _, id)| *id)
    }

    fn read(&self, kind: &str, key: &str) -> Result<Option<Arc<Event>>, Stop<S::Error>> {
        match self.id(kind, key) {
            Some(id) => self.replay.source.event(id).map_err(Stop::Source),
            None => Ok(None),
        }
    }
}

/// Why a judgement stopped.
enum Stop<E> {
    Refused,
    Source(E),
}

impl<E> From<crate::matrix::Reject> for Stop<E> {
    fn from(_: crate::matrix::Reject) -> Self {
        Stop::Refused
    }
}

impl<S: Source, U: Fn(&str, &str) -> Result<Option<S::Id>, S::Error>> State for View<'_, '_, S, U> {
    type Error = Stop<S::Error>;

    fn create(&self) -> Result<Option<Arc<Create>>, Self::Error> {
        let id = match self.replay.version.room_id_is_create_hash() {
            true => Some(self.replay.source.create().map_err(Stop::Source)?),
            false => self.id("m.room.create", ""),
        };
        id.map_or(Ok(None), |id| self.replay.create(id).map_err(Stop::Source))
    }
    fn power_levels(&self) -> Result<Option<Arc<PowerLevels>>, Self::Error> {
        let id = self.id("m.room.power_levels", "");
        id.map_or(Ok(None), |id| self.replay.power_levels(id).map_err(Stop::Source))
    }
    fn join_rule(&self) -> Result<Option<JoinRule>, Self::Error> {
        let event = self.read("m.room.join_rules", "")?;
        Ok(event.map(|e| JoinRule::parse(e.content())).transpose()?)
    }
    fn membership(&self, user: &UserId) -> Result<Membership, Self::Error> {
        let event = self.read("m.room.member", user.as_str())?;
        Ok(event.and_then(|e| Membership::of_content(e.content())).unwrap_or(Membership::Leave))
    }
    fn third_party_invite(&self, token: &str) -> Result<Option<Arc<Event>>, Self::Error> {
        self.read("m.room.third_party_invite", token)
    }
}
