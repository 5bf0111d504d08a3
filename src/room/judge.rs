//! Whether an event of another server may stand where it says it stands, and what the room is after it.
//!
//! Server-server API, "Checks performed on receipt of a PDU", from the fourth on: by the events it cites, by the state
//! before it (either failing rejects it), by the room's present state (failing that, it is kept but not shown or built
//! upon). What comes before, an event's shape and signatures, is `receive.rs`; what is not stored is `missing.rs`.
//!
//! Plain reads on a snapshot, under the room's lock: a few dozen rows, whatever the room's size, unless the history forks.

use ruma::OwnedEventId;

use super::append::Current;
use super::resolve::{self, Means, Of, Tree};
use super::state::{Known, View};
use super::{Error, Result};
use crate::budget::Grant;
use crate::matrix::auth::{self, Cited};
use crate::matrix::{Event, Reject};
use crate::store::tables::event::{self, Flags, Kind, Row};
use crate::store::tables::snapshot;
use crate::store::{self, EventNum, Get};

/// Keys of the present state that one event may change, as a multiple of the conflicts a resolution may have: what one
/// side of a fork changed and the other did not is no conflict, but still a change to whoever comes from the other.
const CHANGES_PER_CONFLICT: usize = 4;

/// What an event stands on and we do not have, or not with its place in the history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    pub prev: Vec<OwnedEventId>,
    pub auth: Vec<OwnedEventId>,
}

impl Lacking {
    pub fn is_empty(&self) -> bool {
        self.prev.is_empty() && self.auth.is_empty()
    }
}

/// What an event stands on and we have.
pub struct Around {
    pub prev: Vec<(EventNum, Row)>,
    pub auth: Vec<(EventNum, Row)>,
    pub lacking: Lacking,
}

impl Around {
    pub fn of(get: &impl Get, room: &Known, event: &Event) -> Result<Around> {
        let mut around = Around { prev: Vec::new(), auth: Vec::new(), lacking: Lacking::default() };
        for id in event.prev_events() {
            match stored(get, id.as_str())? {
                Some((_, row)) if row.room != room.num => {
                    return Err(Reject::shape("a previous event is of another room").into());
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
    fn follows_all(&self, room: &Known) -> bool {
        let extremities = &room.row.extremities;
        !extremities.is_empty()
            && self.lacking.prev.is_empty()
            && self.prev.iter().all(|(num, _)| extremities.contains(num))
            && extremities.iter().all(|extremity| self.prev.iter().any(|(num, _)| num == extremity))
    }
}

/// An event's number and columns.
pub fn stored(get: &impl Get, id: &str) -> store::Result<Option<(EventNum, Row)>> {
    match event::num(get, id)? {
        Some(num) => Ok(Some((num, event::row_of(get, num)?))),
        None => Ok(None),
    }
}

/// Whether an event is known with its place in the history.
pub fn is_placed(row: &Row) -> bool {
    !row.flags.outlier && (row.before.is_some() || row.kind == Kind::CREATE)
}

/// The outcome.
pub enum Judgement {
    Lacking(Lacking),
    /// It is here already.
    Known(EventNum, Row),
    /// It is state on a fork, which only an event with a number can be resolved with: store it as an outlier first.
    Unnumbered,
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
}

/// Judges an event. `given`: the state before it, when its own server had to say.
pub fn judge(
    get: &impl Get,
    room: &Known,
    event: &Event,
    given: Option<Tree>,
    means: &Means,
    mut grant: Option<&mut Grant>,
) -> Result<Judgement> {
    let known = stored(get, event.id().as_str())?;
    let num = match known {
        Some((num, row)) if !row.flags.outlier => return Ok(Judgement::Known(num, row)),
        Some((num, _)) => Some(num),
        None => None,
    };
    if event.kind() == "m.room.create" && num != room.row.create {
        return Err(Reject::auth("the room has another create event").into());
    }
    let around = Around::of(get, room, event)?;
    if !around.lacking.auth.is_empty() || (given.is_none() && !around.lacking.prev.is_empty()) {
        return Ok(Judgement::Lacking(around.lacking));
    }
    let of = of(room)?;
    let is_next = given.is_none() && around.follows_all(room);
    let before = match given {
        Some(given) => given,
        None if is_next => Tree::stored(room.row.state),
        None => {
            let trees: store::Result<Vec<Tree>> =
                around.prev.iter().map(|(num, row)| resolve::after(get, *num, row)).collect();
            resolve::resolve(get, of, trees?, means, grant.as_deref_mut())?
        }
    };
    if let Some(reason) = rejects(get, room, event, &around.auth, &before)? {
        let flags = Flags { rejected: true, ..Flags::default() };
        return Ok(Judgement::Ready(Box::new(Ready::refused(before, flags, reason))));
    }
    if before != Tree::stored(room.row.state) {
        let present = auth::check(room.version, &event.subject(), &room.view(get));
        if let Some(reason) = verdict(present)? {
            let flags = Flags { soft_failed: true, ..Flags::default() };
            return Ok(Judgement::Ready(Box::new(Ready::refused(before, flags, reason))));
        }
    }
    let current = match is_next {
        true => Some(Current::Follow),
        false => current(get, room, event, num, &around, &before, means, grant)?,
    };
    Ok(match current {
        Some(current) => {
            let flags = Flags::default();
            Judgement::Ready(Box::new(Ready { before, current, flags, reason: None }))
        }
        None => Judgement::Unnumbered,
    })
}

/// The usual case alone: everything is here and the event follows all extremities. `None` for any other.
pub fn judge_next(get: &impl Get, room: &Known, event: &Event) -> Result<Option<Ready>> {
    if event.kind() == "m.room.create" || event::num(get, event.id().as_str())?.is_some() {
        return Ok(None);
    }
    let around = Around::of(get, room, event)?;
    if !around.lacking.is_empty() || !around.follows_all(room) {
        return Ok(None);
    }
    let before = Tree::stored(room.row.state);
    Ok(Some(match rejects(get, room, event, &around.auth, &before)? {
        Some(reason) => Ready::refused(before, Flags { rejected: true, ..Flags::default() }, reason),
        None => Ready { before, current: Current::Follow, flags: Flags::default(), reason: None },
    }))
}

/// The room as resolving needs it.
pub fn of(room: &Known) -> Result<Of> {
    let create = room.row.create.ok_or(Error::NotFound)?;
    Ok(Of { version: room.version, create })
}

/// Why the event is rejected: by what it cites, or by the state before it.
fn rejects(
    get: &impl Get,
    room: &Known,
    event: &Event,
    cited: &[(EventNum, Row)],
    before: &Tree,
) -> Result<Option<Reject>> {
    if let Some(reason) = rejects_by_cited(get, room, event, cited)? {
        return Ok(Some(reason));
    }
    let view = View::overlaid(get, room.num, room.version, before.clone());
    verdict(auth::check(room.version, &event.subject(), &view))
}

/// Why what the event cites rejects it.
pub fn rejects_by_cited(
    get: &impl Get,
    room: &Known,
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
    let view = View::overlaid(get, room.num, room.version, Tree::of(entries.chain(implied)));
    verdict(auth::check(room.version, &event.subject(), &view))
}

/// The rules about the list itself. The text of a state key is not kept, so each is told by its number.
fn check_list(
    get: &impl Get,
    room: &Known,
    event: &Event,
    cited: &[(EventNum, Row)],
    create_accepted: bool,
) -> Result<()> {
    let subject = event.subject();
    let mut expected = Vec::with_capacity(6);
    for (kind, key) in
        auth::auth_types_for_event(room.version, subject.kind, subject.sender, subject.state_key, subject.content)?
    {
        if let Some(num) = snapshot::key(get, kind, &key)? {
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

/// A no of the rules is an outcome; anything else is a failure.
fn verdict(checked: Result<()>) -> Result<Option<Reject>> {
    match checked {
        Ok(()) => Ok(None),
        Err(Error::Reject(reject)) => Ok(Some(reject)),
        Err(failed) => Err(failed),
    }
}

/// What becomes of the present state when the event does not simply follow it. `None`: the event needs a number.
#[allow(clippy::too_many_arguments)] // the event and its surroundings, and what resolving may take
fn current(
    get: &impl Get,
    room: &Known,
    event: &Event,
    num: Option<EventNum>,
    around: &Around,
    before: &Tree,
    means: &Means,
    grant: Option<&mut Grant>,
) -> Result<Option<Current>> {
    let follows = |extremity: &EventNum| around.prev.iter().any(|(num, _)| num == extremity);
    let (mut old, mut states) = (Vec::new(), Vec::new());
    for extremity in &room.row.extremities {
        let tree = resolve::after(get, *extremity, &event::row_of(get, *extremity)?)?;
        if !follows(extremity) {
            states.push(tree.clone());
        }
        old.push(tree);
    }
    let mut own = before.clone();
    if let Some(state_key) = event.state_key() {
        let key = snapshot::key(get, event.kind(), state_key)?;
        let (Some(num), Some(key)) = (num, key) else { return Ok(None) };
        own.set(get, key, Some(num))?;
    }
    states.push(own);
    if states.iter().all(|tree| old.contains(tree)) && old.iter().all(|tree| states.contains(tree)) {
        return Ok(Some(Current::Resolved { changes: Vec::new(), wins: false }));
    }
    let resolved = resolve::resolve(get, of(room)?, states, means, grant)?;
    let changes = resolved.changes_since(get, room.row.state, means.conflicts_max * CHANGES_PER_CONFLICT)?;
    let changes = changes.ok_or_else(|| Reject::auth("the event changes too much of the room's state at once"))?;
    Ok(Some(Current::Resolved { changes, wins: false }))
}
