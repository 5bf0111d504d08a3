//! Missing events that a received event cites or follows.
//!
//! First the events between it and our own, in a few rounds of `get_missing_events`; then, where a gap stays, the state
//! before it as its sender's server tells it (`gap_state.rs`); and for any event the ones it cites, one by one or, where
//! they are many, as an auth chain (`event_auth`, `gap_whole.rs`). Everything fetched passes the same checks as pushed
//! events.
//!
//! An event that nobody gives out, or that cannot be verified, fails those that cite it, and no other: whoever follows
//! them stands on the state before the gap.
//!
//! Every step is bounded: rounds, events, states, bytes of a share of the `gaps` account that is set aside before any
//! request, and the time of it all. An event whose missing events cannot be had within that is refused. Events that
//! were checked stay, each whole: the next attempt goes on from there.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ruma::{EventId, OwnedEventId, OwnedServerName, RoomId, ServerName};

use super::authorize::{self, CitedEvents, MissingEvents};
use super::fetch::{Fetch, fewer};
use super::inbox::{How, Inbox, Processed, Step, read_event};
use crate::budget::{Account, Grant};
use crate::matrix::{Event, Reject};
use crate::remote::Failed;
use crate::room::append::append;
use crate::room::append::new_event::Append;
use crate::room::error::{Error, Result};
use crate::room::receive::intake;
use crate::room::state;
use crate::room::state::{RoomRef, known_num};
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::Flags;
use crate::store::tables::room::member;
use crate::store::{self, RoomNum};

/// Rounds of `get_missing_events` for one gap, and events requested in each: Synapse's limit.
const GAP_ROUNDS_MAX: usize = 6;
/// How often a server is asked for missing events when the request or its answer is lost on the way.
const GAP_TRIES: u32 = 3;
const GAP_PAUSE: Duration = Duration::from_millis(500);
const GAP_EVENTS_PER_ROUND: usize = 20;
/// Events fetched one by one because others cite them or they are part of a state, for one event that was sent to us;
/// and how far below. An auth chain that goes on further down is fetched whole: a user who changes a name adds an event
/// to it each time, so its length says nothing about the room.
const CITED_MAX: usize = 100;
const CITED_ROUNDS_MAX: usize = 4;
/// Auth chains fetched whole for one gap.
const CHAINS_MAX: usize = 3;
const GUEST_CHAINS_MAX: usize = 1;
/// States fetched for one gap.
const STATES_MAX: usize = 3;
/// Waiting for other servers, for one gap.
const TIME_MAX: Duration = Duration::from_secs(50);
/// The bound for a server that is not in the room as far as we know: its join may be the missing event.
const GUEST_CITED_MAX: usize = 20;
const GUEST_TIME_MAX: Duration = Duration::from_secs(15);
/// Memory of one filling; half the account where that is less, so that two rooms' gaps are filled beside each other.
const BYTES_MAX: u64 = 4 << 20;
/// Outliers stored in one commit.
const OUTLIERS_AT_ONCE: usize = 16;
/// Events remembered as not to be had, and a bound of what one takes: 16 KiB. Beyond it they are asked for again.
const LOST_MAX: usize = 128;
const LOST_BYTES: u64 = 128;

/// The filling of one gap.
pub(in crate::room) struct GapFill<'i, F> {
    pub(super) inbox: &'i Inbox<F>,
    pub(super) origin: OwnedServerName,
    pub(super) room: RoomRef,
    pub(super) room_id: ruma::OwnedRoomId,
    /// On the clock of spans: when the gap is given up, and the deadline of the task that waits for it.
    pub(super) until: Duration,
    pub(super) share_until: Duration,
    pub(super) is_guest: bool,
    cited_left: usize,
    chains_left: usize,
    pub(super) states_left: usize,
    /// Events that cannot be had one by one, or cannot be stored since they cite such ones. With [`LOST_BYTES`] of each
    /// of them, from the first on.
    pub(super) lost: BTreeSet<OwnedEventId>,
    lost_paid: Grant,
    /// A state was fetched for the sake of auth events that cannot be had one by one.
    is_state_tried: bool,
    /// The filling's own memory; an event that does not fit it never will, so the sender is not told to retry.
    pub(super) own: Account,
    /// Pays, from the filling's own memory, for events until they are stored.
    pub(super) grant: Grant,
    _paid: Grant,
}

impl<'i, F: Fetch> GapFill<'i, F> {
    /// Waits for memory. The caller holds the room's lock for gaps, and no task that holds memory waits for that lock.
    pub async fn new(
        inbox: &'i Inbox<F>,
        origin: &ServerName,
        num: RoomNum,
        share_until: Duration,
    ) -> Result<GapFill<'i, F>> {
        let parts = &inbox.rooms.0.parts;
        let asking = origin.to_owned();
        let (room, is_guest) = inbox
            .rooms
            .reading(move |_, read| Ok((known_num(read, num)?, member::server(read, num, asking.as_str())?.is_none())))
            .await?;
        let room_id = ruma::OwnedRoomId::try_from(room.row.id.as_str()).map_err(|_| Error::NotFound)?;
        let gaps = parts.budget.account("gaps");
        let (own, paid) = gaps.part((gaps.limit() / 2).min(BYTES_MAX)).await?;
        Ok(GapFill {
            inbox,
            origin: origin.to_owned(),
            room,
            room_id,
            until: share_until.min(parts.clock.instant() + if is_guest { GUEST_TIME_MAX } else { TIME_MAX }),
            share_until,
            is_guest,
            chains_left: if is_guest { GUEST_CHAINS_MAX } else { CHAINS_MAX },
            cited_left: if is_guest { GUEST_CITED_MAX } else { CITED_MAX },
            states_left: if is_guest { 0 } else { STATES_MAX },
            lost: BTreeSet::new(),
            lost_paid: own.try_take(0)?,
            is_state_tried: false,
            grant: own.try_take(0)?,
            own,
            _paid: paid,
        })
    }

    /// Fetches the events missing for an event and appends it. `None` when it has to be authorised again.
    pub async fn process(&mut self, event: Arc<Event>, how: How) -> Result<Option<Processed>> {
        let mut grant = None;
        match self.inbox.try_process(self.room.num, event.clone(), how.clone(), &mut grant).await? {
            Step::Done(processed) => return Ok(Some(processed)),
            Step::NeedsMemory => return Ok(None),
            Step::Unresolved | Step::StateIncomplete => {}
            Step::Missing(lacking) if lacking.prev.is_empty() => {}
            Step::Missing(lacking) => Box::pin(self.close_gap(&event, lacking)).await?,
        }
        self.admit(event, how, false).await.map(Some)
    }

    /// One event, with the single events or states it lacks. `is_pulled`: its server gave it as one that was missing.
    async fn admit(&mut self, event: Arc<Event>, mut how: How, is_pulled: bool) -> Result<Processed> {
        let mut grant = None;
        for _ in 0..4 {
            match self.inbox.try_process(self.room.num, event.clone(), how.clone(), &mut grant).await? {
                Step::Done(processed) => return Ok(processed),
                Step::NeedsMemory => grant = Some(self.inbox.means().wait().await?),
                Step::Missing(lacking) if !lacking.auth.is_empty() => {
                    let is_in_gap = !lacking.prev.is_empty() && how.given.is_none();
                    match Box::pin(self.fetch_cited(lacking.auth)).await {
                        // A server that gives out no auth chain by itself gives it with the state before the event. Once: the
                        // states that may be fetched are for the events behind those that cannot be had.
                        Err(Error::Reject(_)) if is_in_gap && self.states_left > 0 && !self.is_state_tried => {
                            self.is_state_tried = true;
                            self.lose(event.id());
                            how.given = Some(Box::pin(self.state_for(&event, &lacking.prev, is_pulled)).await?);
                        }
                        Err(failed @ Error::Reject(_)) => {
                            self.lose(event.id());
                            return Err(failed);
                        }
                        fetched => fetched?,
                    }
                }
                Step::Missing(lacking) => {
                    how.given = Some(Box::pin(self.state_for(&event, &lacking.prev, is_pulled)).await?);
                }
                Step::Unresolved => how.given = Some(Box::pin(self.state_before(event.id())).await?),
                Step::StateIncomplete => break,
            }
        }
        Err(Reject::missing("the previous events or auth events of the event cannot be fetched").into())
    }

    /// Remembers, as long as this gap is filled, that an event cannot be had.
    pub(super) fn lose(&mut self, id: &EventId) {
        if self.lost.len() < LOST_MAX && !self.lost.contains(id) && self.lost_paid.grow(LOST_BYTES).is_ok() {
            self.lost.insert(id.to_owned());
        }
    }

    pub(super) fn forget_lost(&mut self) {
        self.lost.clear();
        self.lost_paid.shrink(self.lost_paid.bytes());
    }

    pub(super) fn check_time(&self) -> Result<()> {
        match self.inbox.rooms.0.parts.clock.instant() < self.until {
            true => Ok(()),
            false => Err(Error::Remote(Failed::Timeout)),
        }
    }

    /// Whether more of the room may be stored for this server. Checked before each part that has a bound of its own;
    /// the part is then finished, since events fetched and given up would only be fetched again.
    pub(super) fn check_intake(&self) -> Result<()> {
        intake::check_fetching(&self.inbox.rooms, &self.origin, self.room.num)
    }

    /// Counts an event that is to be stored.
    pub(super) fn charge(&self, event: &Event) {
        let (room, bytes) = ((self.room.num, self.room_id.as_str()), event.to_federation().len() as u64);
        intake::charge_fetched(&self.inbox.rooms, &self.origin, room, bytes);
    }

    /// Waits for another server as long as there is time. Our own work is not waited for in there: a write that was
    /// begun is finished.
    pub(super) fn in_time<T, A: Future<Output = Result<T, Failed>>>(
        &self,
        asking: A,
    ) -> impl Future<Output = Result<T, Failed>> + use<T, A, F> {
        let clock = self.inbox.rooms.0.parts.clock.clone();
        let left = self.until.saturating_sub(clock.instant());
        let asking = Box::pin(asking);
        async move { clock.timeout(left, asking).await.unwrap_or(Err(Failed::Timeout)) }
    }

    // ---- events between ----------------------------------------------------------------------------------------

    /// Fetches and appends the events between an event and our own, as far as its server gives them.
    async fn close_gap(&mut self, event: &Event, lacking: MissingEvents) -> Result<()> {
        let mut found: HashMap<OwnedEventId, Arc<Event>> = HashMap::new();
        let mut latest = vec![event.id().to_owned()];
        let mut open: BTreeSet<OwnedEventId> = lacking.prev.into_iter().collect();
        let mut limit = GAP_EVENTS_PER_ROUND;
        self.check_intake()?;
        for _ in 0..GAP_ROUNDS_MAX {
            self.check_time()?;
            let earliest = self.extremities().await?;
            let mut tries = 1;
            let fetched = loop {
                let asking = self.inbox.fetch.missing_events(&self.origin, &self.room_id, &earliest, &latest, limit);
                match self.in_time(asking).await {
                    // Large events: as many as fit into an answer.
                    Err(Failed::TooLarge { .. }) if limit > 1 => limit = fewer(limit),
                    Err(failed) if failed.is_of_the_way() && tries < GAP_TRIES => {
                        tries += 1;
                        let clock = self.inbox.rooms.0.parts.clock.clone();
                        self.in_time(async move { Ok(clock.sleep(GAP_PAUSE).await) }).await?;
                    }
                    asked => break asked,
                }
            };
            let fetched = match fetched {
                Ok(fetched) => fetched,
                Err(failed) => {
                    tracing::debug!(origin = %self.origin, %failed, "missing events cannot be fetched");
                    // Who has not been asked has not said that there is nothing. Accepted over the gap, the event would be where
                    // the next one's gap ends, and nobody would ask for what is missing again.
                    if failed.is_of_the_way() {
                        return Err(failed.into());
                    }
                    if matches!(failed, Failed::BadAnswer(_)) {
                        return Err(unreadable());
                    }
                    break;
                }
            };
            // As many as fit, the newest first: older ones could not be reached without them.
            let (held, mut events) = (self.grant.bytes(), Vec::new());
            let mut is_readable = fetched.iter().next().is_none();
            // Servers walk back as far as they were asked to; from one that stopped this early nothing comes before it.
            let is_all = fetched.iter().count() * 2 < limit;
            for raw in fetched.iter().rev() {
                let Ok(event) = self.read(raw) else { continue };
                is_readable = true;
                if self.grant.grow(event.weight() as u64).is_err() {
                    break;
                }
                events.push(event);
            }
            drop(fetched);
            // No server that keeps to the rules builds upon what nobody can read, or has a state behind it. Should others build
            // upon this event, it comes again as one that they miss nothing of but this.
            if !is_readable && found.is_empty() {
                return Err(unreadable());
            }
            let mut fresh: HashMap<OwnedEventId, Event> =
                self.inbox.check(events).await.into_iter().filter_map(|(id, event)| Some((id, event.ok()?))).collect();
            // Only events that lead to this event count; any other that the server sends was not requested.
            let before = found.len();
            let mut kept = 0;
            let mut next: Vec<OwnedEventId> = open.iter().cloned().collect();
            while let Some(id) = next.pop() {
                let Some(event) = fresh.remove(&id) else { continue };
                kept += event.weight() as u64;
                self.charge(&event);
                next.extend(event.prev_events().map(ToOwned::to_owned));
                found.insert(id, Arc::new(event));
            }
            drop(fresh);
            self.grant.shrink((self.grant.bytes() - held).saturating_sub(kept));
            open = self.still_open(event, &found).await?;
            if open.is_empty() || found.len() == before || is_all {
                break;
            }
            let leads = |event: &Event| event.prev_events().any(|prev| open.contains(prev));
            latest = found.values().filter(|event| leads(event)).map(|event| event.id().to_owned()).collect();
        }
        for event in in_order(found, |event| event.prev_events().map(ToOwned::to_owned).collect()) {
            let (id, weight) = (event.id().to_owned(), event.weight() as u64);
            let admitted = self.admit(event, How::default(), true).await;
            self.grant.shrink(weight);
            if let Err(failed) = admitted {
                if failed.is_passing() {
                    return Err(failed);
                }
                tracing::debug!(origin = %self.origin, %id, %failed, "a missing event is refused");
            }
        }
        Ok(())
    }

    async fn extremities(&self) -> Result<Vec<OwnedEventId>> {
        let num = self.room.num;
        let ids = self.inbox.rooms.reading(move |_, read| {
            let room = known_num(read, num)?;
            Ok(event::ids(read, &room.row.extremities)?)
        });
        Ok(ids.await?.into_iter().filter_map(|id| OwnedEventId::try_from(id).ok()).collect())
    }

    /// Events that the event and those found follow, and that are neither among them nor stored with their place.
    async fn still_open(
        &self,
        event: &Event,
        found: &HashMap<OwnedEventId, Arc<Event>>,
    ) -> Result<BTreeSet<OwnedEventId>> {
        let all = found.values().flat_map(|event| event.prev_events()).chain(event.prev_events());
        let ids: BTreeSet<OwnedEventId> = all.filter(|id| !found.contains_key(*id)).map(ToOwned::to_owned).collect();
        let open = self.inbox.rooms.reading(move |_, read| {
            let mut open = BTreeSet::new();
            for id in ids {
                if !state::event::stored(read, id.as_str())?.is_some_and(|(_, row)| state::event::is_placed(&row)) {
                    open.insert(id);
                }
            }
            Ok(open)
        });
        open.await
    }

    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// Charges for an event until it is stored.
    pub fn pay(&mut self, event: &Event) -> Result<()> {
        hold(&mut self.grant, event.weight() as u64)
    }

    pub fn read(&self, raw: &[u8]) -> Result<Event, Reject> {
        read_event(self.room.version, self.room.row.id.as_str(), raw)
    }

    // ---- events cited ------------------------------------------------------------------------------------------

    /// Fetches events one by one, and the events they cite, and stores them as outliers: all of them, or it fails.
    pub async fn fetch_cited(&mut self, wanted: Vec<OwnedEventId>) -> Result<()> {
        match self.fetch_singly(wanted).await? {
            0 => Ok(()),
            _ => Err(Reject::missing("an auth event or previous event cannot be fetched").into()),
        }
    }

    /// Fetches events one by one, and the events they cite, and stores the complete ones as outliers. What they cite is
    /// fetched one by one where it is little, else as whole auth chains. Answers how many could not be had. Fails with a
    /// refusal when there are too many.
    pub async fn fetch_singly(&mut self, wanted: Vec<OwnedEventId>) -> Result<usize> {
        let held = self.grant.bytes();
        let done = self.fetch_and_store(wanted).await;
        self.grant.shrink(self.grant.bytes() - held);
        done
    }

    async fn fetch_and_store(&mut self, wanted: Vec<OwnedEventId>) -> Result<usize> {
        let mut found: HashMap<OwnedEventId, Arc<Event>> = HashMap::new();
        let (mut open, mut lost) = (wanted.clone(), BTreeSet::new());
        let held = self.grant.bytes();
        open.retain(|id| !self.lost.contains(id) || !lost.insert(id.clone()));
        for _ in 0..CITED_ROUNDS_MAX {
            if open.len() > self.cited_left {
                break;
            }
            let mut events = Vec::with_capacity(open.len().min(CITED_MAX));
            for id in open.drain(..) {
                match self.fetch_one(&id).await? {
                    Some(event) => events.push(event),
                    None => {
                        self.lose(&id);
                        lost.insert(id);
                    }
                }
            }
            for (id, event) in self.inbox.check(events).await {
                match event {
                    Ok(event) => drop(found.insert(id, Arc::new(event))),
                    Err(failed) if failed.is_passing() => return Err(failed),
                    Err(failed) => {
                        tracing::debug!(%id, %failed, "an event that others refer to cannot be verified");
                        self.lose(&id);
                        lost.insert(id);
                    }
                }
            }
            open = self.unknown_cited(&found).await?;
            open.retain(|id| !lost.contains(id) && !self.lost.contains(id));
            if open.is_empty() {
                // What waits cites one that is lost.
                let waiting = self.store_outliers(found).await?;
                waiting.iter().for_each(|event| self.lose(event.id()));
                return Ok(lost.len() + waiting.len());
            }
        }
        if found.is_empty() {
            return Err(Reject::missing("too many auth events are missing").into());
        }
        // What was fetched below the wanted events comes again with their auth chains.
        found.retain(|id, _| wanted.contains(id));
        lost.retain(|id| wanted.contains(id));
        let kept: usize = found.values().map(|event| event.weight()).sum();
        self.grant.shrink((self.grant.bytes() - held).saturating_sub(kept as u64));
        for (id, event) in &found {
            let one = HashMap::from([(id.clone(), event.clone())]);
            if !self.unknown_cited(&one).await?.is_empty() {
                self.fetch_chain(id).await?;
            }
        }
        let waiting = self.store_outliers(found).await?;
        Ok(lost.len() + waiting.len())
    }

    /// Stores the unknown events of an event's auth chain, which the server lists as a whole.
    async fn fetch_chain(&mut self, id: &EventId) -> Result<()> {
        self.check_time()?;
        self.check_intake()?;
        self.chains_left =
            self.chains_left.checked_sub(1).ok_or_else(|| Reject::missing("too many long auth chains are missing"))?;
        match self.fetch_whole_chain(id).await {
            Err(Error::Remote(failed)) if failed.is_refusal() => {
                tracing::debug!(%id, origin = %self.origin, %failed, "an auth chain cannot be fetched");
                Err(Reject::missing("too many auth events are missing").into())
            }
            fetched => fetched,
        }
    }

    /// `None` when the server does not give the event out, or gives another instead.
    pub(super) async fn fetch_one(&mut self, id: &EventId) -> Result<Option<Event>> {
        self.check_time()?;
        self.cited_left = self.cited_left.saturating_sub(1);
        let raw = match self.in_time(self.inbox.fetch.event(&self.origin, id)).await {
            Ok(raw) => raw,
            Err(failed) if failed.is_refusal() || matches!(failed, Failed::BadAnswer(_) | Failed::TooLarge { .. }) => {
                tracing::debug!(%id, origin = %self.origin, %failed, "an event that others refer to cannot be fetched");
                return Ok(None);
            }
            Err(failed) => return Err(failed.into()),
        };
        match self.read(raw.get().as_bytes()) {
            Ok(event) if event.id() == id => {
                self.pay(&event)?;
                self.charge(&event);
                Ok(Some(event))
            }
            _ => Ok(None),
        }
    }

    pub async fn unknown_cited(&self, found: &HashMap<OwnedEventId, Arc<Event>>) -> Result<Vec<OwnedEventId>> {
        let all = found.values().flat_map(|event| event.auth_events());
        let ids: BTreeSet<OwnedEventId> = all.filter(|id| !found.contains_key(*id)).map(ToOwned::to_owned).collect();
        let unknown = self.inbox.rooms.reading(move |_, read| {
            let mut unknown = Vec::new();
            for id in ids {
                if event::num(read, id.as_str())?.is_none() {
                    unknown.push(id);
                }
            }
            Ok(unknown)
        });
        unknown.await
    }

    /// Stores events without their place, cited events first: numbers rise along the citations. Events rejected by the
    /// events they cite are marked so. Answers the events that cite a missing one.
    pub async fn store_outliers(&mut self, found: HashMap<OwnedEventId, Arc<Event>>) -> Result<Vec<Arc<Event>>> {
        let events = in_order(found, |event| event.auth_events().map(ToOwned::to_owned).collect());
        let num = self.room.num;
        let mut waiting = Vec::new();
        for batch in events.chunks(OUTLIERS_AT_ONCE).map(<[_]>::to_vec) {
            let _guard = self.inbox.rooms.lock(num).await;
            let here = self.inbox.rooms.here();
            let store = move |w: &mut store::Write<'_>| {
                let mut waiting = Vec::new();
                for event in batch {
                    let room = known_num(w, num)?;
                    // A reading error of our own is the database's; a malformed reference is passed over.
                    let Ok(around) = CitedEvents::of(w, &room, &event) else { continue };
                    if event::num(w, event.id().as_str())?.is_some() {
                        continue;
                    }
                    if !around.lacking.auth.is_empty() {
                        waiting.push(event);
                        continue;
                    }
                    let rejected = authorize::rejects_by_cited(w, &room, &event, &around.auth)?.is_some();
                    let outlier = Append::outlier(num, (*event).clone());
                    append(w, &here, Append { flags: Flags { rejected, ..Flags::default() }, ..outlier })?;
                }
                Ok(waiting)
            };
            waiting.extend(self.inbox.rooms.write(store).await?);
        }
        Ok(waiting)
    }
}

fn unreadable() -> Error {
    Reject::missing("the previous events, as the sender's server gives them, cannot be read").into()
}

/// Takes bytes out of the filling's own memory.
pub(super) fn hold(grant: &mut Grant, bytes: u64) -> Result<()> {
    Ok(grant
        .grow(bytes)
        .map_err(|_| Reject::auth("the missing auth events need more memory than the budget allows"))?)
}

/// Events in an order where each comes after those of them it refers to. A circle, which hashes do not allow, would be
/// cut anywhere.
pub(in crate::room) fn in_order(
    mut events: HashMap<OwnedEventId, Arc<Event>>,
    refers: impl Fn(&Event) -> Vec<OwnedEventId>,
) -> Vec<Arc<Event>> {
    let mut ordered = Vec::with_capacity(events.len());
    let mut starts: Vec<OwnedEventId> = events.keys().cloned().collect();
    starts.sort_unstable();
    for start in starts {
        // A stack of our own: a chain may be as long as there are events.
        let mut stack: Vec<(Arc<Event>, Vec<OwnedEventId>)> = Vec::new();
        let mut enter = events.remove(&start);
        loop {
            if let Some(event) = enter.take() {
                let below = refers(&event);
                stack.push((event, below));
            }
            let Some((_, below)) = stack.last_mut() else { break };
            match below.pop() {
                Some(id) => enter = events.remove(&id),
                None => ordered.extend(stack.pop().map(|(event, _)| event)),
            }
        }
    }
    ordered
}
