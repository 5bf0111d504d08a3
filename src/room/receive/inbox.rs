//! One event of another server: checked, authorised, appended.

use std::collections::BTreeSet;
use std::sync::Arc;

use ruma::OwnedEventId;

use super::KEYS_TIME_MAX;
use super::authorize::{MissingEvents, Ready, Verdict, judge};
use super::fetch::{Fetch, signing_keys};
use crate::budget::Grant;
use crate::matrix::sign;
use crate::matrix::sign::event::Checked;
use crate::matrix::{Event, Reject, RoomVersion};
use crate::room::Rooms;
use crate::room::append::append;
use crate::room::append::new_event::{Append, Before, Done, Here, Place};
use crate::room::error::{Error, Result};
use crate::room::policy_server::{self, PolicyServer, Whose};
use crate::room::state::known_num;
use crate::room::state::resolve::Means;
use crate::room::state::tree::Tree;
use crate::store::{EventNum, RoomNum, Write};

/// The rooms, and the source of missing events.
#[derive(Clone)]
pub struct Inbox<F> {
    pub rooms: Rooms,
    pub fetch: F,
}

/// The outcome of one try.
pub enum Step {
    Done(Processed),
    Missing(MissingEvents),
    /// The events it follows differ in more than is resolved here.
    Unresolved,
    /// Resolving needs memory that was not there at once.
    NeedsMemory,
    /// The state before the event rejects it, but is not known whole.
    StateIncomplete,
}

/// What a try came to, or whom to ask before another.
enum Tried {
    Step(Step),
    Unsigned(PolicyServer),
}

pub struct Processed {
    pub num: EventNum,
    pub reason: Option<Reject>,
    pub rejected: bool,
    /// The event was here already.
    pub is_known: bool,
}

/// How an event is to be received.
#[derive(Clone, Default)]
pub struct How {
    /// The state before it, when it was requested from the event's server.
    pub given: Option<Given>,
    pub outbound: bool,
}

impl<F: Fetch> Inbox<F> {
    pub fn means(&self) -> Means {
        Means::new(&self.rooms.0.parts.budget)
    }

    /// Authorises an event and appends it, if all events it needs are here. The memory is given back unless it is used
    /// again.
    pub async fn try_process(
        &self,
        room: RoomNum,
        mut event: Arc<Event>,
        how: How,
        grant: &mut Option<Grant>,
    ) -> Result<Step> {
        let mut refused = None;
        loop {
            let policy = match self.try_with(room, event.clone(), how.clone(), grant, &refused).await? {
                Tried::Step(step) => return Ok(step),
                Tried::Unsigned(policy) => policy,
            };
            // A room changes its policy server less often than that.
            match policy.ask(&self.rooms, &event, Whose::Others).await {
                Ok(signed) => event = Arc::new(signed),
                Err(failed) if failed.is_passing() => return Err(failed),
                Err(failed) => {
                    let server = &policy.server;
                    refused = Some(Reject::auth(format!("the room's policy server {server} is not for it: {failed}")));
                }
            }
        }
    }

    /// The same. `refused`: the room's policy server was asked and is not for it.
    async fn try_with(
        &self,
        room: RoomNum,
        event: Arc<Event>,
        how: How,
        grant: &mut Option<Grant>,
        refused: &Option<Reject>,
    ) -> Result<Tried> {
        let step = |step| Ok(Tried::Step(step));
        let guard = self.rooms.lock(room).await;
        // Twice when the event has to get a number first.
        for _ in 0..2 {
            let given = how.given.as_ref().map(|given| given.tree.clone());
            let (means, judged, mut memory) = (self.means(), event.clone(), grant.take());
            let is_asked = refused.is_some();
            let judging = move |rooms: &Rooms, read: &_| {
                let known = known_num(read, room)?;
                let verdict = judge(read, &known, &judged, given, &means, memory.as_mut())?;
                let policy = match &verdict {
                    Verdict::Ready(ready) if !is_asked && ready.reason.is_none() => {
                        policy_server::lacking(read, &known, rooms.server(), &judged)?
                    }
                    _ => None,
                };
                Ok((verdict, policy))
            };
            let mut ready = match self.rooms.reading(judging).await {
                Ok((_, Some(policy))) => return Ok(Tried::Unsigned(policy)),
                Ok((Verdict::Ready(ready), None)) => ready,
                Ok((Verdict::Missing(lacking), None)) => return step(Step::Missing(lacking)),
                Ok((Verdict::Unresolved, None)) => return step(Step::Unresolved),
                Ok((Verdict::Known(num, row), None)) => {
                    let (rejected, is_refused) = (row.flags.rejected, row.flags.rejected || row.flags.soft_failed);
                    let reason = is_refused.then(|| Reject::auth("the event was rejected before"));
                    return step(Step::Done(Processed { num, reason, rejected, is_known: true }));
                }
                Ok((Verdict::Unnumbered, None)) => {
                    self.rooms.append_locked(&guard, Append::outlier(room, (*event).clone())).await?;
                    continue;
                }
                Err(Error::Refused(refused)) if !refused.too_large => return step(Step::NeedsMemory),
                Err(failed) => return Err(failed),
            };
            if let (Some(refused), None) = (refused, &ready.reason) {
                ready.soft_fail(refused.clone());
            }
            let (here, outbound) = (self.rooms.here(), how.outbound);
            let reason = ready.reason.clone();
            let rejected = ready.flags.rejected;
            if rejected && how.given.as_ref().is_some_and(|given| !given.is_whole) {
                return step(Step::StateIncomplete);
            }
            let append = move |w: &mut Write<'_>| append_ready(w, &here, room, (*event).clone(), *ready, outbound);
            let done = self.rooms.write(append).await?;
            return step(Step::Done(Processed { num: done.num, reason, rejected, is_known: false }));
        }
        Err(Reject::auth("the event has no position in the history").into())
    }

    /// Checks signatures and content hashes; the keys of all are fetched together. An event whose content was tampered with
    /// is kept as a redaction would leave it.
    pub async fn check(&self, events: Vec<Event>) -> Vec<(OwnedEventId, Result<Event>)> {
        let mut names = BTreeSet::new();
        let mut at_ms = 0;
        let now_ms = self.rooms.0.parts.clock.now_ms();
        for (keys, for_ms) in events.iter().filter_map(|event| signing_keys(event, now_ms).ok()) {
            names.extend(keys);
            at_ms = at_ms.max(for_ms);
        }
        let keys = self.fetch.keys(names.into_iter().collect(), at_ms);
        if let Some(Err(failed)) = self.rooms.0.parts.clock.timeout(KEYS_TIME_MAX, keys).await {
            return events.into_iter().map(|event| (event.id().to_owned(), Err(failed.clone()))).collect();
        }
        let fetch = self.fetch.clone();
        let one = move |event: Event| (event.id().to_owned(), check_one(&fetch, event));
        crate::base::blocking(move || events.into_iter().map(one).collect()).await
    }
}

fn check_one<F: Fetch>(fetch: &F, event: Event) -> Result<Event> {
    let keys = |server: &str, key_id: &str, at_ms: u64| fetch.key(server, key_id, at_ms);
    match sign::event::check_event(&event, &keys)? {
        Checked::Intact => Ok(event),
        Checked::RedactNeeded => Ok(event.redacted()),
    }
}

/// Reads an event as one of a room.
pub(super) fn read_event(version: &'static RoomVersion, room_id: &str, raw: &[u8]) -> Result<Event, Reject> {
    let event = Event::from_wire(version, raw)?;
    match event.room_id() == room_id {
        true => Ok(event),
        false => Err(Reject::shape("the event belongs to another room")),
    }
}

/// Stores the state before the event where it is not stored yet, and the event. One commit.
pub fn append_ready(
    w: &mut Write<'_>,
    here: &Here,
    room: RoomNum,
    event: Event,
    ready: Ready,
    outbound: bool,
) -> Result<Done> {
    let before = ready.before.write(w)?;
    let new = Append {
        room,
        event,
        outbound: outbound && ready.reason.is_none(),
        flags: ready.flags,
        before: Before::At(before),
        current: ready.current,
        place: Place::Newest,
        txn: None,
        cites: None,
    };
    Ok(append(w, here, new)?)
}

/// A state received from another server.
#[derive(Clone)]
pub(in crate::room) struct Given {
    pub tree: Tree,
    /// No event of it was left out.
    pub is_whole: bool,
    /// Pays for the changes in `tree`.
    pub _paid: Option<Arc<Grant>>,
}
