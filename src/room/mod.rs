//! Everything that changes or reads a room.
//!
//! Sub-rooms, lowest floor first; `tests/it/floors.rs` holds them:
//!
//! - `error.rs`, `lock.rs`, `ignored.rs`, `invite_rules.rs`, `policies.rs` (what the operator lets people do): the ground; `words/`: the words of events, and the index of them;
//! - `state/`: read only: room state as the rules read it, state resolution, which servers may ask, stripped state;
//! - `append/`: the one door in. Nothing but it (and the flip of a big join) makes an event part of a room;
//! - `policy_server.rs`: the signature that rooms with a policy server want;
//! - `receive/`: events from other servers, and the gaps before them; `send/`: events of local users;
//!   `ephemeral/`: typing and receipts;
//! - `handshake/`: `make_*` and `send_*` with another server, invites, memberships of rooms we are not in;
//!   `directory/`: aliases and room lists;
//! - `read/`: rooms as apps get them; `serve/`: requests of other servers; `join/`: the big join;
//! - `membership/`: which of these paths a join, leave, invite, kick, ban or knock takes;
//!   `create/`: new rooms and upgrades;
//! - `spaces/`: the tree below a room, and what a room is from outside;
//! - `guests.rs`: which rooms are open to guests;
//! - `notify.rs`: what notifies a user, for push gateways and apps;
//! - `threads.rs`: subscriptions to threads; `delayed.rs`: events that are sent later;
//! - `user_redaction.rs`: redacts what a user said, as an administrator asks;
//! - `invited.rs`: invites that the server accepts for people;
//! - `mass_redaction.rs`: redacts what a kick or ban takes along, aside;
//! - `policy_lists.rs`: the policy lists that the server follows;
//! - `make_admin.rs`: power for somebody in a room whose own administrators are gone;
//! - `tasks/`: what administrators have done with rooms behind their request;
//! - `operator.rs`: the operator's view and permissions.
//!
//! The rest of the server calls [`Rooms`]; nothing below names it but for the type.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ruma::{OwnedEventId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::base::{self, Clock, KeyedLock, Random, brief};
use crate::budget::Budget;
use crate::feed::Feed;
use crate::matrix::sign;
use crate::remote::Remote;
use crate::store::{Read, Store, Write, tables};

/// How long sticky events wait for the join of their room: its servers send them as soon as they know of our user, and only
/// once. A large join takes longer than its senders wait for their answer; who is in a call then renews theirs.
const STICKY_PATIENCE: Duration = Duration::from_secs(10);

mod append;
mod blocked;
mod create;
mod days;
mod delayed;
mod directory;
mod ephemeral;
mod guests;
mod handshake;
mod ignored;
mod inspect;
mod invite_rules;
mod invited;
pub mod join;
mod lock;
mod mass_redaction;
mod make_admin;
mod membership;
mod neighbours;
mod read;
mod notify;
mod operator;
mod policies;
mod policy_lists;
mod policy_server;
mod purge;
mod receive;
mod send;
mod spaces;
mod state;
mod tasks;
#[cfg(test)]
pub(crate) mod testing;
mod serve;
mod threads;
mod user_redaction;
mod words;
mod error;

pub use append::sticky::STICKY_MS_MAX;
pub use create::plan::Preset;
pub use create::{Create, StateDraft};
pub use days::Day;
pub use delayed::{
    Asked, CallWatch, DELAY_MS_MAX, Delay, DelayAction, DelayedEvent, Managed, SCHEDULED_MAX, Scheduled,
};
pub use directory::alias::Resolved;
pub use directory::{PUBLIC_PAGE_BYTES, PublicPage, PublicQuery};
pub use ephemeral::receipt::{Marker, ReadMarkers};
pub use handshake::Verb;
pub use handshake::invite::Invitation;
pub use inspect::{BriefRoom, ListedRoom, RoomOrder, WantedRooms};
pub use invited::{AutoAccept, OpenInvite};
pub use join::admission::Policy;
pub use membership::profile::Renewal;
pub use neighbours::{Destination, DestinationOrder, Neighbour, SharedRoom};
pub use notify::{NotificationQuery, PAGE_MAX as NOTIFICATIONS_MAX, Waiting};
pub use policies::{Policies, Who};
pub use policy_lists::{LISTS_MAX as POLICY_LISTS_MAX, PolicyHits, PolicyList, PolicyRule};
pub use purge::{LeftRooms, Lifetimes, Purging, Space};
pub use read::filter::{Events, Filter};
pub use read::jump::NearestEvent;
pub use read::relations::{Related, Threads};
pub use read::search::{Batch, Context, RESULTS_MAX, SearchQuery};
pub use read::state::MemberQuery;
pub use read::stream::StreamPage;
#[cfg(test)]
pub use read::sync::RECEIPTS_MAX;
pub use read::sync::{
    Activity, DeltaQuery, Hero, Reach, ReadMark, RoomDelta, StateMoved, StateQuery, StateWish, SyncView, UserRoom,
};
pub use read::timeline::Paging;
pub use read::token::Token;
pub use read::token::{SlidingToken, SyncToken};
pub use read::{ANSWER_BYTES, PAGE_EVENTS_MAX, Reader, RoomView};
pub use receive::{NotTaken, TIME_MAX as RECEIVE_TIME_MAX};
pub use send::Sending;
pub use send::member::Joining;
pub use serve::history::Missing;
pub use serve::long_answer::Served;
pub use serve::membership::{Drawn, Submitted};
pub use serve::state::JoinAnswer;
pub use spaces::{HierarchyQuery, RoomSummary};
pub use state::moment::Direction;
pub use state::stripped::STRIPPED_EVENTS_MAX;
pub use threads::{Subscribed, ThreadChange, ThreadChanges, thread_changes};
pub use user_redaction::{RedactStatus, RedactUser};
pub use words::Key as SearchKey;
pub use words::keep::SearchOptions;

pub use crate::store::tables::room::blocked::Blocked;
pub use crate::store::tables::room::event_row::Membership;
pub use crate::store::tables::room::task::{Close, Stage as TaskStage, Task};
pub use crate::store::{EventNum, Position, RoomNum};
pub use error::{Error, Result};
pub use tasks::{TASKS_MAX, task_begun_ms};

/// The parts the rooms are built from.
pub struct Parts {
    pub store: Store,
    pub feed: Feed,
    pub clock: Clock,
    pub random: Random,
    pub budget: Budget,
    pub remote: Remote,
    pub server: OwnedServerName,
    pub key: Arc<sign::Key>,
    /// The folder for spill files.
    pub scratch: PathBuf,
}

/// The rooms. Cheap to clone.
#[derive(Clone)]
pub struct Rooms(Arc<Inner>);

struct Inner {
    parts: Parts,
    locks: lock::Locks,
    nums: state::Nums,
    joins: join::list::Joins,
    /// Locks for the filling of gaps: one at a time in each room.
    gaps: lock::Locks,
    /// And one at a time for each sending server; servers outside the room all count as one.
    gap_senders: KeyedLock,
    turns: serve::slots::Slots,
    typing: ephemeral::typing::Typing,
    rules: Arc<append::rules_cache::Rules>,
    verdicts: invite_rules::Verdicts,
    renewals: membership::profile::Renewals,
    intake: receive::intake::Intake,
    /// Whoever leaves a room forgets it too.
    forgets: AtomicBool,
    /// For how long moderators see what redacted events said.
    redacted_kept_ms: AtomicU64,
    /// Which rooms and messages are removed by themselves.
    keeping: purge::Keeping,
    /// There is a room to remove, or state trees that no room has any more.
    purge: tokio::sync::Notify,
    space: purge::space::Keeper,
    sweep: tokio::sync::Notify,
    /// There is something to be done for an administrator.
    tasks: tokio::sync::Notify,
    delays: delayed::Delays,
    leaving: Arc<guests::Leaving>,
    redactions: Arc<mass_redaction::Waiting>,
    asked_redactions: user_redaction::Asked,
    invited: Arc<invited::Invited>,
    words: words::keep::Keeper,
    days: days::Days,
    policy_lists: policy_lists::Lists,
    policy_asking: policy_server::Asking,
    counts: Arc<append::new_event::Counts>,
    /// What people here may do, by the settings; and the account in whose name the server acts.
    policies: base::Live<Policies>,
    own_user: OnceLock<OwnedUserId>,
}

impl Rooms {
    pub fn new(parts: Parts) -> Rooms {
        let typing = ephemeral::typing::Typing::new(parts.budget.account("ephemeral"), parts.clock.clone());
        let rules = Arc::new(append::rules_cache::Rules::new(parts.budget.account("push_rules")));
        let intake = receive::intake::Intake::new(parts.clock.clone());
        let leaving = guests::leaving_of(&parts.store);
        let redactions = Arc::new(mass_redaction::Waiting::default());
        parts.store.follow(redactions.clone());
        let invited = Arc::new(invited::Invited::default());
        parts.store.follow(invited.clone());
        let words = words::keep::Keeper::new(&parts.store);
        let days = days::Days::new(&parts.store, parts.clock.clone());
        Rooms(Arc::new(Inner {
            parts,
            locks: lock::Locks::default(),
            nums: state::Nums::default(),
            joins: join::list::Joins::default(),
            gaps: lock::Locks::default(),
            gap_senders: KeyedLock::default(),
            turns: serve::slots::Slots::default(),
            typing,
            rules,
            verdicts: invite_rules::Verdicts::default(),
            renewals: membership::profile::Renewals::default(),
            intake,
            forgets: AtomicBool::new(false),
            redacted_kept_ms: AtomicU64::new(0),
            keeping: purge::Keeping::default(),
            purge: tokio::sync::Notify::new(),
            space: purge::space::Keeper::default(),
            sweep: tokio::sync::Notify::new(),
            tasks: tokio::sync::Notify::new(),
            delays: delayed::Delays::default(),
            leaving,
            redactions,
            asked_redactions: user_redaction::Asked::default(),
            invited,
            words,
            days,
            policy_lists: policy_lists::Lists::default(),
            policy_asking: policy_server::Asking::default(),
            counts: Arc::default(),
            policies: base::Live::default(),
            own_user: OnceLock::new(),
        }))
    }

    /// This server's name.
    pub fn server(&self) -> &ServerName {
        &self.0.parts.server
    }

    /// Events that entered rooms since the start, outside of joins: those of people here, and others'.
    pub fn appended(&self) -> (u64, u64) {
        let counts = &self.0.counts;
        (counts.sent.load(Relaxed), counts.received.load(Relaxed))
    }

    /// Sets whether whoever leaves a room forgets it too.
    pub fn set_forgets_left_rooms(&self, forgets: bool) {
        self.0.forgets.store(forgets, Relaxed);
    }

    /// Sets for how long moderators see what redacted events said.
    pub fn set_redacted_kept(&self, days: Option<u32>) {
        self.0.redacted_kept_ms.store(u64::from(days.unwrap_or(0)) * 24 * 3600 * 1000, Relaxed);
    }

    /// For how long moderators see what redacted events said (MSC2815); 0 for not at all.
    pub fn redacted_kept_ms(&self) -> u64 {
        self.0.redacted_kept_ms.load(Relaxed)
    }

    /// Whether whoever leaves a room forgets it too (MSC4267).
    pub fn forgets_left_rooms(&self) -> bool {
        self.0.forgets.load(Relaxed)
    }

    /// A snapshot for reading rooms. Keep it no longer than an answer takes.
    pub fn read(&self) -> Result<Read> {
        Ok(self.0.parts.store.read()?)
    }

    /// Whether a server shares a room with us. One row for each room.
    pub fn is_with(&self, server: &ServerName) -> Result<bool> {
        let read = self.read()?;
        let mut found = false;
        tables::room::list(&read, &mut |num, _| {
            found = tables::room::member::server(&read, num, server.as_str())?.is_some();
            Ok(if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(found)
    }

    /// Whether a user is joined to a room that this server is in.
    pub async fn is_in_room(&self, user: &UserId, room_id: &RoomId) -> Result<bool> {
        let (user, room_id) = (user.to_owned(), room_id.to_owned());
        self.reading(move |_, read| {
            let room = tables::room::num(read, room_id.as_str())?;
            let user = tables::user::num(read, user.as_str())?;
            room.zip(user).map_or(Ok(false), |(room, user)| Ok(tables::room::member::is_joined(read, room, user)?))
        })
        .await
    }

    /// Whether this server and another one are both in a room.
    pub async fn is_server_in_room(&self, server: &ServerName, room_id: &RoomId) -> Result<bool> {
        let (server, room_id) = (server.to_owned(), room_id.to_owned());
        self.reading(move |rooms, read| {
            let Some(room) = tables::room::num(read, room_id.as_str())? else { return Ok(false) };
            let here = tables::room::member::server(read, room, rooms.server().as_str())?;
            Ok(here.is_some() && tables::room::member::server(read, room, server.as_str())?.is_some())
        })
        .await
    }

    /// Sends an event. Membership events take the path of [`Rooms::join`] and its like.
    pub async fn send(&self, sender: &UserId, room_id: &RoomId, sending: Sending) -> Result<OwnedEventId> {
        let content: Value = serde_json::from_str(sending.content.get())
            .map_err(|failed| Error::bad("M_BAD_JSON", format!("the content is not JSON: {}", brief(failed))))?;
        if !content.is_object() {
            return Err(Error::bad("M_BAD_JSON", "the content is not an object"));
        }
        match &sending.state_key {
            Some(target) if sending.kind == "m.room.member" => {
                membership::send_member(self, sender, room_id, target, content, sending.ts).await
            }
            _ => send::send(self, sender, room_id, sending, content).await,
        }
    }

    /// Receives events of one room that `origin` sent in a transaction. Each is handled by itself: a refused event does
    /// not keep the others out. An event that cannot be read has no id and is left out of the answer. Fails only where
    /// [`Error::is_passing`]: then the same events should come again, and those that were appended are known by then.
    /// Other servers are waited for `until` then, on the clock of spans.
    ///
    /// Call it in a task of its own: an append that was begun must be finished.
    pub async fn receive(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        pdus: Vec<Box<RawValue>>,
        until: Duration,
    ) -> Result<Vec<receive::Outcome>> {
        if let Some(mut over) = self.0.joins.under_way(room_id)
            && pdus.iter().any(|pdu| append::sticky::is_sticky(pdu.get().as_bytes()))
        {
            let _ = self.0.parts.clock.timeout(STICKY_PATIENCE, over.wait_for(|over| *over)).await;
        }
        let id = room_id.to_owned();
        let resident = self.reading(move |_, read| Ok(state::known(read, id.as_str())?.is_resident()));
        match resident.await {
            Ok(true) => receive::receive(self, origin, room_id, pdus, until).await,
            Err(failed) if failed.is_passing() => Err(failed),
            _ => handshake::invite::receive_ends(self, origin, room_id, pdus).await,
        }
    }

    /// Waits for a room's lock. Never wait for a grant or another server while holding the guard.
    async fn lock(&self, room: RoomNum) -> lock::Guard {
        self.0.locks.lock(room).await
    }

    /// This server's name, the present time, and the rules' cache.
    fn here(&self) -> append::new_event::Here {
        let parts = &self.0.parts;
        append::new_event::Here {
            server: parts.server.clone(),
            now_ms: parts.clock.now_ms(),
            rules: self.0.rules.clone(),
            forgets: self.forgets_left_rooms(),
            counts: self.0.counts.clone(),
            // While the clock is doubted, what it makes seem old stays.
            redacted_kept_ms: match self.redacted_kept_ms() {
                0 => 0,
                kept_ms => kept_ms + parts.clock.doubted_ms(),
            },
        }
    }

    /// Appends a judged event and notifies the followers of the room.
    async fn append_locked(
        &self,
        guard: &lock::Guard,
        new: append::new_event::Append,
    ) -> Result<append::new_event::Done> {
        debug_assert_eq!(guard.room(), new.room, "the lock held is the one of the room that changes");
        let here = self.here();
        self.write(move |w| Ok(append::append(w, &here, new)?)).await
    }

    /// Runs one write. Errors of our own must come before its first put.
    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Write<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        Ok(self.0.parts.store.write(job).await?.0)
    }

    /// Reads and judges on a thread that may block.
    async fn reading<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Rooms, &Read) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let rooms = self.clone();
        base::blocking(move || work(&rooms, &rooms.read()?)).await
    }
}
