//! Events of local users: built on the room's present state, judged, signed, appended.
//!
//! A message is read for, judged, signed and appended in one job of the writer, so that several of one room share a commit.
//! What changes state is one reading job and one write, whatever the room's size. The room's lock is held over both, and no
//! remote server is waited for meanwhile.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedUserId, RoomId, UserId};
use serde_json::Value;
use serde_json::value::RawValue;

use super::Rooms;
use super::append;
use super::append::new_event::{Append, Before, Done, Here};
use super::error::{Error, Result};
use super::lock::Guard;
use super::policy_server::{self, PolicyServer, Whose};
use super::state::event::load;
use super::state::event::{id_of, ids_of};
use super::state::resolve::Means;
use super::state::{RoomRef, StateView, known_num};
use super::state::{fork, not_in_room};
use crate::base;
use crate::budget::Grant;
use crate::matrix::{Draft, Event, auth, json};
use crate::room::state;
use crate::store::tables::room::event_row::Root;
use crate::store::tables::room::txn::{self, Txn};
use crate::store::tables::{room, user};
use crate::store::{Change, EventNum, Get, Read, RoomNum, Status, Write};
use checks::unchanged;

pub mod checks;
pub mod member;
mod related;
mod unsent;
#[cfg(test)]
mod tests;

/// The longest content, as the app wrote it, that is worked on in the writer, where other writes wait. Few longer ones fit
/// an event; they are judged, and mostly refused, on a reading thread.
const PLAIN_BYTES_MAX: usize = 64 * 1024;

/// The largest depth that may be written: integers in canonical JSON end at 2⁵³ − 1.
const DEPTH_MAX: u64 = (1 << 53) - 1;

/// An event an app sends into a room.
#[derive(Clone)]
pub struct Sending {
    pub kind: String,
    /// Present for state events.
    pub state_key: Option<String>,
    pub content: Box<RawValue>,
    /// The event a redaction is for.
    pub redacts: Option<OwnedEventId>,
    /// How long it is sticky (MSC4354), in milliseconds.
    pub sticky_ms: Option<u64>,
    /// The time that it says it was sent at; now without it. For application services ("Timestamp massaging").
    pub ts: Option<u64>,
    /// The device and its transaction id: a repeat gets the answer of the first request.
    pub txn: Option<(String, String)>,
    /// Pays for the content.
    pub paid: Option<Arc<Grant>>,
}

/// An event of ours before its place in the room is known.
#[derive(Debug, Clone)]
pub struct New {
    pub kind: String,
    pub state_key: Option<String>,
    pub sender: OwnedUserId,
    pub content: Value,
    pub redacts: Option<OwnedEventId>,
    pub sticky_ms: Option<u64>,
    /// As in [`Sending`].
    pub ts: Option<u64>,
}

impl New {
    pub fn state(kind: &str, state_key: &str, sender: &UserId, content: Value) -> New {
        New {
            kind: kind.to_owned(),
            state_key: Some(state_key.to_owned()),
            sender: sender.to_owned(),
            content,
            redacts: None,
            sticky_ms: None,
            ts: None,
        }
    }

    /// With the time that it says it was sent at.
    pub fn at(self, ts: Option<u64>) -> New {
        New { ts, ..self }
    }
}

/// A signed event of ours, with the state and events it was built upon.
#[derive(Debug, Clone)]
pub(super) struct Built {
    pub event: Event,
    pub room: RoomNum,
    /// The state and extremities that the event follows: while they are unchanged, it follows the whole room.
    pub before: Option<Root>,
    pub extremities: Vec<EventNum>,
    /// The numbers of its auth events.
    pub cites: Vec<EventNum>,
}

/// Sends an event of any type but a membership.
pub(super) async fn send(
    rooms: &Rooms,
    sender: &UserId,
    room_id: &RoomId,
    sending: Sending,
    content: Value,
) -> Result<OwnedEventId> {
    // On a full disk the writer runs no job: a repeat still has its answer and a refusal its reason by reading.
    let goes_in_one = sending.content.get().len() <= PLAIN_BYTES_MAX && rooms.0.parts.store.status() != Status::Full;
    let Sending { kind, state_key, redacts, sticky_ms, ts, txn, paid, .. } = sending;
    let mut new = New { kind, state_key, sender: sender.to_owned(), content, redacts, sticky_ms, ts };
    if goes_in_one && checks::is_plain(&new) {
        match send_plain(rooms, room_id, new, txn.clone(), paid.clone()).await? {
            Plain::Sent(id) => return Ok(id),
            Plain::NotSo(given_back) => new = *given_back,
        }
    }
    let (rooms, room_id) = (rooms.clone(), room_id.to_owned());
    let sent = async move {
        let sent = send_new(&rooms, &room_id, new, txn).await;
        drop(paid);
        sent
    };
    base::unbroken(sent).await
}

enum Plain {
    Sent(OwnedEventId),
    /// The room has several ends, which have to be resolved before an event of ours follows them, or a policy server that has to
    /// be asked; or it has another number by now.
    NotSo(Box<New>),
}

/// Sends an event that changes no state, in one job. Once that is queued it is done even when the caller goes away.
async fn send_plain(
    rooms: &Rooms,
    room_id: &RoomId,
    new: New,
    txn: Option<(String, String)>,
    paid: Option<Arc<Grant>>,
) -> Result<Plain> {
    let num = state::num_in_use(rooms, room_id).await?;
    let share = rooms.0.locks.share(num).await;
    let (rooms_here, here) = (rooms.clone(), rooms.here());
    let job = move |w: &mut Write<'_>| {
        let sent = append_plain(&rooms_here, w, &here, num, new, txn)?;
        // Shared until the commit is there: whoever then has the room alone sees it.
        Ok((sent, share, paid))
    };
    let (sent, _share, _paid) = rooms.write(job).await?;
    if matches!(sent, Plain::NotSo(_)) {
        state::forget_num(rooms, room_id);
    }
    Ok(sent)
}

fn append_plain(
    rooms: &Rooms,
    w: &mut Write<'_>,
    here: &Here,
    num: RoomNum,
    new: New,
    txn: Option<(String, String)>,
) -> Result<Plain> {
    let room = match known_num(w, num) {
        Ok(room) if room.row.extremities.len() <= 1 => room,
        Ok(_) | Err(Error::NotFound) => return Ok(Plain::NotSo(Box::new(new))),
        Err(failed) => return Err(failed),
    };
    let txn = txn_of(w, num, &new, txn)?;
    if let Some(sent) = sent_before(w, txn.as_ref(), here.now_ms)? {
        return Ok(Plain::Sent(sent));
    }
    if policy_server::of(w, &room, rooms.server())?.is_some() {
        return Ok(Plain::NotSo(Box::new(new)));
    }
    checks::check_relation(w, &room, &new)?;
    let Built { event, cites, .. } = build(rooms, w, &room, new)?;
    let id = event.id().to_owned();
    append::append(w, here, Append { txn, outbound: true, cites: Some(cites), ..Append::next(num, event) })?;
    Ok(Plain::Sent(id))
}

/// Sends an event of any type, within [`base::unbroken`].
pub(super) async fn send_new(
    rooms: &Rooms,
    room_id: &RoomId,
    new: New,
    txn: Option<(String, String)>,
) -> Result<OwnedEventId> {
    let num = state::num_of(rooms, room_id).await?;
    let guard = rooms.lock(num).await;
    send_locked(rooms, guard, new, txn).await
}

/// The lock is given back before a policy server is asked.
pub(super) async fn send_locked(
    rooms: &Rooms,
    guard: Guard,
    new: New,
    txn: Option<(String, String)>,
) -> Result<OwnedEventId> {
    let num = guard.room();
    resolve_ends(rooms, &guard).await?;
    let step = rooms.reading(move |rooms, read| prepare(rooms, read, num, new, txn)).await?;
    let (built, txn) = match step {
        Step::Repeated(id) => return Ok(id),
        Step::Built(built, txn) => (built, txn),
        Step::Unsigned(policy, built, txn) => {
            drop(guard);
            let event = policy.ask(rooms, &built.event, Whose::Ours).await?;
            return append_built(rooms, Built { event, ..*built }, txn).await;
        }
    };
    let id = built.event.id().to_owned();
    let append = Append { txn, outbound: true, ..Append::next(num, built.event) };
    let done: Done = rooms.append_locked(&guard, append).await?;
    debug_assert!(done.order.is_some(), "an event of ours is shown");
    Ok(id)
}

/// Resolves the state of all forward extremities and makes it the room's state, before an event of ours follows
/// them. On a long fork the room may have gone on without that. Does nothing in a room without a fork.
pub(super) async fn resolve_ends(rooms: &Rooms, guard: &Guard) -> Result<()> {
    let num = guard.room();
    let resolved = move |rooms: &Rooms, read: &Read| match room::get(read, num)? {
        Some(row) if row.extremities.len() > 1 => {
            fork::resolve_ends(read, &known_num(read, num)?, &Means::new(&rooms.0.parts.budget))
        }
        _ => Ok(Vec::new()),
    };
    let changes = match rooms.reading(resolved).await {
        Ok(changes) => changes,
        // The state stays as it is; how other servers judge our event does not depend on it.
        Err(Error::Refused(_) | Error::Reject(_)) => return Ok(()),
        Err(failed) => return Err(failed),
    };
    if changes.is_empty() {
        return Ok(());
    }
    let here = rooms.here();
    let set = move |w: &mut Write<'_>| {
        let mut row = room::get_of(w, num)?;
        let at = w.next_position();
        let mut users = append::current_state::set_present_state(w, &here, num, &mut row, &changes, at)?;
        append::members::add_local_joined(w, num, &mut users)?;
        row.latest = at;
        room::put(w, num, &row)?;
        w.announce(Change { users, room: Some(num), ..Change::default() });
        Ok(())
    };
    rooms.write(set).await
}

fn prepare(rooms: &Rooms, read: &Read, num: RoomNum, new: New, txn: Option<(String, String)>) -> Result<Step> {
    let room = known_num(read, num).map_err(|failed| match failed {
        Error::NotFound => not_in_room(),
        other => other,
    })?;
    let txn = txn_of(read, num, &new, txn)?;
    if let Some(sent) = sent_before(read, txn.as_ref(), rooms.0.parts.clock.now_ms())? {
        return Ok(Step::Repeated(sent));
    }
    if let Some(same) = unchanged(read, &room, &new)? {
        return Ok(Step::Repeated(same));
    }
    checks::check_beyond_rules(rooms, read, &room, &new)?;
    let built = Box::new(build(rooms, read, &room, new)?);
    Ok(match policy_server::lacking(read, &room, rooms.server(), &built.event)? {
        Some(policy) => Step::Unsigned(Box::new(policy), built, txn),
        None => Step::Built(built, txn),
    })
}

/// Has the room's policy server sign an event of ours, where the room has one.
pub(super) async fn signed_by_policy(rooms: &Rooms, built: Built) -> Result<Built> {
    let (num, event) = (built.room, built.event.clone());
    let policy =
        rooms.reading(move |rooms, read| policy_server::lacking(read, &known_num(read, num)?, rooms.server(), &event));
    match policy.await? {
        Some(policy) => Ok(Built { event: policy.ask(rooms, &built.event, Whose::Ours).await?, ..built }),
        None => Ok(built),
    }
}

/// Appends an event that was built under the lock and shown to another server since, perhaps signed by it too. The room may
/// have changed meanwhile: the event is then judged again by the present state, and still follows the events it was built
/// upon. The same transaction may have sent another one meanwhile: then that one's id is the answer.
pub(super) async fn append_built(rooms: &Rooms, built: Built, txn: Option<Txn>) -> Result<OwnedEventId> {
    let rooms = rooms.clone();
    base::unbroken(async move {
        let guard = rooms.lock(built.room).await;
        let id = built.event.id().to_owned();
        let append = rooms.reading(move |rooms, read| {
            if let Some(sent) = sent_before(read, txn.as_ref(), rooms.0.parts.clock.now_ms())? {
                return Ok(Err(sent));
            }
            rejudged(read, built).map(|append| Ok(Append { txn, ..append }))
        });
        match append.await? {
            Ok(append) => rooms.append_locked(&guard, append).await.map(|_| id),
            Err(sent) => Ok(sent),
        }
    })
    .await
}

fn rejudged(read: &Read, built: Built) -> Result<Append> {
    let room = known_num(read, built.room)?;
    let append = Append { outbound: true, ..Append::next(built.room, built.event) };
    if room.row.extremities == built.extremities {
        return Ok(append);
    }
    auth::check(room.version, &append.event.subject(), &room.view(read))?;
    let before = built.before.map_or(Before::Present, Before::At);
    Ok(Append { before, current: fork::Current::Resolved { changes: Vec::new(), wins: true }, ..append })
}

/// Builds, signs and judges an event that follows all extremities of the room. Does no I/O beyond the store: a few
/// lookups, a hash, a signature.
pub(super) fn build(rooms: &Rooms, read: &impl Get, room: &RoomRef, new: New) -> Result<Built> {
    let parts = &rooms.0.parts;
    let view = room.view(read);
    let (draft, cites) = draft(rooms, read, room, new, &view)?;
    let event = draft.build(room.version, &parts.server, &parts.key)?;
    auth::check(room.version, &event.subject(), &view)?;
    let (before, extremities) = (room.row.state, room.row.extremities.clone());
    Ok(Built { event, room: room.num, before, extremities, cites })
}

/// An event without hashes and signatures: what [`Rooms::build`] signs, and what we hand out as a template. And the
/// numbers of its auth events.
pub(super) fn draft<G: Get>(
    rooms: &Rooms,
    read: &G,
    room: &RoomRef,
    new: New,
    view: &StateView<'_, G>,
) -> Result<(Draft, Vec<EventNum>)> {
    let parts = &rooms.0.parts;
    let content = json::canonical_value(&new.content, room.version.json_mode())?;
    let content_text = std::str::from_utf8(&content).unwrap_or("{}");
    let cited =
        auth::auth_types_for_event(room.version, &new.kind, &new.sender, new.state_key.as_deref(), content_text)?;
    let mut auth_nums = Vec::with_capacity(cited.len());
    for (kind, key) in &cited {
        auth_nums.extend(view.num(kind, key)?);
    }
    let mut reference_hashes = Vec::new();
    if room.version.event_id_in_event() {
        for num in auth_nums.iter().chain(&room.row.extremities) {
            let event = load(read, room.version, *num)?;
            reference_hashes.push((event.id().to_owned(), event.reference_hash()));
        }
    }
    let draft = Draft {
        prev_events: ids_of(read, &room.row.extremities)?,
        auth_events: ids_of(read, &auth_nums)?,
        depth: (room.row.depth + 1).min(DEPTH_MAX),
        origin_server_ts: new.ts.unwrap_or_else(|| parts.clock.now_ms()),
        room_id: Some(room.row.id.as_str().try_into().map_err(|_| Error::NotFound)?),
        kind: new.kind,
        state_key: new.state_key,
        sender: new.sender,
        content: new.content,
        redacts: new.redacts,
        sticky_ms: new.sticky_ms,
        opaque_id: parts.random.token(18),
        reference_hashes,
    };
    Ok((draft, auth_nums))
}

enum Step {
    /// The same request was handled before.
    Repeated(OwnedEventId),
    Built(Box<Built>, Option<Txn>),
    /// The room's policy server is to sign it first.
    Unsigned(Box<PolicyServer>, Box<Built>, Option<Txn>),
}

/// The event that the same transaction made before. None when it was removed since, as old messages are.
fn sent_before(get: &impl Get, txn: Option<&Txn>, now_ms: u64) -> Result<Option<OwnedEventId>> {
    let Some(txn) = txn else { return Ok(None) };
    let Some(sent) = txn::get(get, txn, now_ms)? else { return Ok(None) };
    room::event::row(get, sent)?.map(|_| id_of(get, sent)).transpose()
}

fn txn_of(read: &impl Get, room: RoomNum, new: &New, txn: Option<(String, String)>) -> Result<Option<Txn>> {
    let Some((device, id)) = txn else { return Ok(None) };
    let user = user::num(read, new.sender.as_str())?;
    let what = match &new.redacts {
        Some(target) => format!("{} {target}", new.kind),
        None => new.kind.clone(),
    };
    Ok(user.map(|user| Txn { user, room, device, id, what }))
}
