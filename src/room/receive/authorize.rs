//! Whether an event of another server is allowed at its place in the history, and the room's state after it.
//!
//! Server-server API, "Checks performed on receipt of a PDU", from the fourth on: by the events it cites, by the state
//! before it (either failing rejects it), by the room's present state (failing that, it is kept but not shown or built
//! upon). The checks before those, of an event's shape and signatures, are in `inbox.rs`; missing events are fetched by
//! `gap.rs`.
//!
//! Plain reads on a snapshot, under the room's lock: a few dozen rows, whatever the room's size, unless the history
//! forks. On a short fork the states of its extremities are resolved for each event. On a long fork, which may last as
//! long as a server does not receive our events, the present state goes on from its last value, and the extremities are
//! resolved when they meet.

use ruma::OwnedEventId;

use crate::budget::Grant;
use crate::matrix::auth::{self, Cited};
use crate::room::error::{Error, Result};
use crate::room::state::fork::Current;
use crate::room::state::resolve::{self, Means};
use crate::room::state::tree::Tree;
use crate::room::state::{RoomRef, StateView};

use crate::matrix::{Event, Reject};
use crate::room::state::event::{is_placed, is_same, stored};
use crate::room::state::fork::{Ends, of};
use crate::room::state::tree;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Flags, Row};
use crate::store::tables::room::state_tree;
use crate::store::{self, EventNum, Get};

/// Events that an event cites or follows and that we do not have, or not with their place in the history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissingEvents {
    pub prev: Vec<OwnedEventId>,
    pub auth: Vec<OwnedEventId>,
}

impl MissingEvents {
    pub fn is_empty(&self) -> bool {
        self.prev.is_empty() && self.auth.is_empty()
    }
}

/// Events that an event cites or follows and that we have.
pub struct CitedEvents {
    pub prev: Vec<(EventNum, Row)>,
    pub auth: Vec<(EventNum, Row)>,
    pub lacking: MissingEvents,
}

impl CitedEvents {
    pub fn of(get: &impl Get, room: &RoomRef, event: &Event) -> Result<CitedEvents> {
        let mut around = CitedEvents { prev: Vec::new(), auth: Vec::new(), lacking: MissingEvents::default() };
        for id in event.prev_events() {
            match stored(get, id.as_str())? {
                Some((_, row)) if row.room != room.num => {
                    return Err(Reject::shape("a previous event belongs to another room").into());
                }
                Some((num, row)) if is_placed(&row) => around.prev.push((num, row)),
                _ => around.lacking.prev.push(id.to_owned()),
            }
        }
        for id in event.auth_events() {
            match stored(get, id.as_str())? {
                Some(found) => around.auth.push(found),
                None => around.lacking.auth.push(id.to_owned()),
            }
        }
        Ok(around)
    }

    /// Whether the event follows all extremities and nothing else: then the state before it is the present one.
    fn follows_all(&self, room: &RoomRef) -> bool {
        let extremities = &room.row.extremities;
        !extremities.is_empty()
            && self.lacking.prev.is_empty()
            && self.prev.iter().all(|(num, _)| extremities.contains(num))
            && extremities.iter().all(|extremity| self.prev.iter().any(|(num, _)| num == extremity))
    }
}

/// The outcome.
pub enum Verdict {
    Missing(MissingEvents),
    /// The event is here already.
    Known(EventNum, Row),
    /// The event is state on a fork, and resolution needs its number: store it as an outlier first.
    Unnumbered,
    /// The events it follows differ in too much: the state before it must be requested from its server.
    Unresolved,
    Ready(Box<Ready>),
}

/// How an event is to be appended.
pub struct Ready {
    pub before: Tree,
    pub current: Current,
    pub flags: Flags,
    /// Why it was rejected or soft-failed.
    pub reason: Option<Reject>,
}

impl Ready {
    fn refused(before: Tree, flags: Flags, reason: Reject) -> Ready {
        Ready { before, current: Current::Keep, flags, reason: Some(reason) }
    }

    /// Allowed by all rules, and yet not to be shown nor built upon.
    pub fn soft_fail(&mut self, reason: Reject) {
        (self.current, self.reason) = (Current::Keep, Some(reason));
        self.flags.soft_failed = true;
    }
}

/// Authorises an event. `given`: the state before it, when it was requested from the event's server.
pub fn judge(
    get: &impl Get,
    room: &RoomRef,
    event: &Event,
    given: Option<Tree>,
    means: &Means,
    mut grant: Option<&mut Grant>,
) -> Result<Verdict> {
    let known = stored(get, event.id().as_str())?;
    let num = match known {
        Some((_, row)) if !is_same(get, &row, room.num, event)? => {
            return Err(Reject::shape("another event has this event ID").into());
        }
        Some((num, row)) if !row.flags.outlier => return Ok(Verdict::Known(num, row)),
        Some((num, _)) => Some(num),
        None => None,
    };
    if event.kind() == "m.room.create" && num != room.row.create {
        return Err(Reject::auth("the room has another create event").into());
    }
    let around = CitedEvents::of(get, room, event)?;
    if !around.lacking.auth.is_empty() || (given.is_none() && !around.lacking.prev.is_empty()) {
        return Ok(Verdict::Missing(around.lacking));
    }
    let follows_all = around.follows_all(room);
    let is_next = given.is_none() && follows_all && around.prev.len() == 1;
    let is_given = given.is_some();
    let before = match given {
        Some(given) => given,
        None if is_next => Tree::stored(room.row.state),
        None => {
            let trees: store::Result<Vec<Tree>> =
                around.prev.iter().map(|(num, row)| tree::after(get, *num, row)).collect();
            match resolve::resolve(get, of(room)?, trees?, means, grant.as_deref_mut())? {
                Some(before) => before,
                None if follows_all => Tree::stored(room.row.state),
                None => return Ok(Verdict::Unresolved),
            }
        }
    };
    if let Some(reason) = rejects(get, room, event, &around.auth, &before)? {
        let flags = Flags { rejected: true, ..Flags::default() };
        return Ok(Verdict::Ready(Box::new(Ready::refused(before, flags, reason))));
    }
    // What came with a state that was fetched is part of the present state before it has a place: held against itself, a leave would
    // be one of somebody who is not there.
    let is_present = match (num, event.state_key()) {
        (Some(num), Some(state_key)) => room.view(get).num(event.kind(), state_key)? == Some(num),
        _ => false,
    };
    if before != Tree::stored(room.row.state) && !is_present {
        let present = auth::check(room.version, &event.subject(), &room.view(get));
        if let Some(reason) = verdict(present)? {
            let flags = Flags { soft_failed: true, ..Flags::default() };
            return Ok(Verdict::Ready(Box::new(Ready::refused(before, flags, reason))));
        }
    }
    let current = match is_next {
        true => Some(Current::Follow),
        false => Ends { get, room, event, num, before: &before, is_given, means }.current(grant)?,
    };
    Ok(match current {
        Some(current) => {
            let flags = Flags::default();
            Verdict::Ready(Box::new(Ready { before, current, flags, reason: None }))
        }
        None => Verdict::Unnumbered,
    })
}

/// The usual case alone: everything is here and the event follows the only extremity. `None` for any other.
pub fn judge_next(get: &impl Get, room: &RoomRef, event: &Event) -> Result<Option<Ready>> {
    if event.kind() == "m.room.create" || event::num(get, event.id().as_str())?.is_some() {
        return Ok(None);
    }
    let around = CitedEvents::of(get, room, event)?;
    // Extremities that meet are resolved.
    if !around.lacking.is_empty() || !around.follows_all(room) || around.prev.len() > 1 {
        return Ok(None);
    }
    let before = Tree::stored(room.row.state);
    Ok(Some(match rejects(get, room, event, &around.auth, &before)? {
        Some(reason) => Ready::refused(before, Flags { rejected: true, ..Flags::default() }, reason),
        None => Ready { before, current: Current::Follow, flags: Flags::default(), reason: None },
    }))
}

/// Why the event is rejected: by the events it cites, or by the state before it.
fn rejects(
    get: &impl Get,
    room: &RoomRef,
    event: &Event,
    cited: &[(EventNum, Row)],
    before: &Tree,
) -> Result<Option<Reject>> {
    if let Some(reason) = rejects_by_cited(get, room, event, cited)? {
        return Ok(Some(reason));
    }
    let view = StateView::overlaid(get, room.num, room.version, before.clone());
    verdict(auth::check(room.version, &event.subject(), &view))
}

/// Why the events it cites reject the event.
pub fn rejects_by_cited(
    get: &impl Get,
    room: &RoomRef,
    event: &Event,
    cited: &[(EventNum, Row)],
) -> Result<Option<Reject>> {
    let create = match room.row.create {
        Some(create) => Some((create, event::row_of(get, create)?)),
        None => None,
    };
    let create_accepted = create.as_ref().is_some_and(|(_, row)| !row.flags.rejected);
    if let Some(reason) = verdict(check_list(get, room, event, cited, create_accepted))? {
        return Ok(Some(reason));
    }
    let entries = cited.iter().filter_map(|(num, row)| Some((row.state_key?, *num)));
    // Version 12 does not cite the create event; the room's id does.
    let implied = create.filter(|_| room.version.room_id_is_create_hash());
    let implied = implied.and_then(|(num, row)| Some((row.state_key?, num)));
    let view = StateView::overlaid(get, room.num, room.version, Tree::of(entries.chain(implied)));
    verdict(auth::check(room.version, &event.subject(), &view))
}

/// The rules for the list itself. The text of a state key is not kept, so each key is compared by its number.
fn check_list(
    get: &impl Get,
    room: &RoomRef,
    event: &Event,
    cited: &[(EventNum, Row)],
    create_accepted: bool,
) -> Result<()> {
    let subject = event.subject();
    let mut expected = Vec::with_capacity(6);
    for (kind, key) in
        auth::auth_types_for_event(room.version, subject.kind, subject.sender, subject.state_key, subject.content)?
    {
        if let Some(num) = state_tree::key(get, kind, &key)? {
            expected.push((num, kind, key));
        }
    }
    let each = cited.iter().map(|(_, row)| {
        let found = row.state_key.and_then(|key| expected.iter().find(|(num, ..)| *num == key));
        Cited {
            kind: found.map_or("of that kind", |(_, kind, _)| *kind),
            state_key: found.map(|(.., key)| &**key).or(row.state_key.map(|_| "")),
            same_room: row.room == room.num,
            rejected: row.flags.rejected,
        }
    });
    Ok(auth::check_auth_events(room.version, &subject, each, create_accepted)?)
}

/// A rejection by the rules is an outcome; any other error is a failure.
fn verdict(checked: Result<()>) -> Result<Option<Reject>> {
    match checked {
        Ok(()) => Ok(None),
        Err(Error::Reject(reject)) => Ok(Some(reject)),
        Err(failed) => Err(failed),
    }
}
