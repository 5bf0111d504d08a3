//! What an event stands on and we do not have.
//!
//! First the events between it and what we have, in a few rounds of `get_missing_events`; then, where a gap stays, the
//! state before the event as its sender's server tells it (`state_ids`, with single events or the whole `state` for what
//! is unknown); and for any event the ones it cites. Everything fetched passes the same checks as what is pushed to us.
//!
//! Every step is bounded: rounds, events, states, bytes of a share of the `gaps` account that is set aside before anything is
//! asked, and the time of it all. What cannot be had within that makes the event refused. Events that were checked stay, each whole: the next attempt goes on
//! from there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ruma::{EventId, OwnedEventId, OwnedServerName, RoomId, ServerName};

use super::append::{Append, append};
use super::fetch::Fetch;
use super::judge::{self, Around, Lacking};
use super::receive::{How, Inbox, Settled, Step, read_event};
use super::resolve::Tree;
use super::state::{Known, known_num};
use super::{Error, Result};
use crate::budget::{Account, Grant};
use crate::matrix::{Event, Reject};
use crate::remote::Failed;
use crate::store::tables::event::{self, Flags, Root};
use crate::store::tables::snapshot;
use crate::store::{self, EventNum, Get, RoomNum, StateKeyNum};

/// Rounds of `get_missing_events` for one gap, and events asked for in each: what Synapse gives at most.
const GAP_ROUNDS_MAX: usize = 6;
const GAP_EVENTS_PER_ROUND: usize = 20;
/// Events fetched one by one because others cite them or they are part of a state, for one event that was sent to us; and
/// how far below.
const CITED_MAX: usize = 100;
const CITED_ROUNDS_MAX: usize = 10;
/// States fetched for one gap.
const STATES_MAX: usize = 3;
/// From so many unknown events of a state on, the whole of it is fetched instead of each.
const SINGLE_EVENTS_MAX: usize = 60;
/// Unknown events of one state; the ids of them are about 80 bytes each.
const UNKNOWN_MAX: usize = 4000;
/// Everything for one event together.
const TIME_MAX: Duration = Duration::from_secs(50);
/// Memory of one filling; half the account where that is less, so that two rooms' gaps are filled beside each other.
const BYTES_MAX: u64 = 4 << 20;
/// Outliers stored in one commit.
const OUTLIERS_AT_ONCE: usize = 16;
/// Events of a streamed state whose signatures are checked together.
const CHECKED_AT_ONCE: usize = 32;

/// The filling of one gap.
pub(super) struct Filling<'i, F> {
    inbox: &'i Inbox<F>,
    origin: OwnedServerName,
    room: Known,
    room_id: ruma::OwnedRoomId,
    /// On the clock of spans.
    until: Duration,
    cited_left: usize,
    states_left: usize,
    /// The filling's own memory; what does not fit it never will, so that is no reason to be asked again.
    own: Account,
    /// Pays, out of that, for what is held until it is stored.
    grant: Grant,
    _paid: Grant,
}

impl<'i, F: Fetch> Filling<'i, F> {
    /// Waits for memory. The caller has the room's turn to fill gaps, and nobody who has memory waits for that.
    pub async fn new(inbox: &'i Inbox<F>, origin: &ServerName, num: RoomNum) -> Result<Filling<'i, F>> {
        let parts = &inbox.rooms.0.parts;
        let room = inbox.rooms.reading(move |_, read| known_num(read, num)).await?;
        let room_id = ruma::OwnedRoomId::try_from(room.row.id.as_str()).map_err(|_| Error::NotFound)?;
        let gaps = parts.budget.account("gaps");
        let (own, paid) = gaps.part((gaps.limit() / 2).min(BYTES_MAX)).await?;
        Ok(Filling {
            inbox,
            origin: origin.to_owned(),
            room,
            room_id,
            until: parts.clock.instant() + TIME_MAX,
            cited_left: CITED_MAX,
            states_left: STATES_MAX,
            grant: own.try_take(0)?,
            own,
            _paid: paid,
        })
    }

    /// Fetches what an event lacks and appends it. `None` when it has to be judged again.
    pub async fn settle(&mut self, event: Arc<Event>, how: How) -> Result<Option<Settled>> {
        let mut grant = None;
        match self.inbox.try_settle(self.room.num, event.clone(), how.clone(), &mut grant).await? {
            Step::Done(settled) => return Ok(Some(settled)),
            Step::Hungry => return Ok(None),
            Step::Unresolved => {}
            Step::Lacking(lacking) if lacking.prev.is_empty() => {}
            Step::Lacking(lacking) => self.close_gap(&event, lacking).await?,
        }
        self.admit(event, how).await.map(Some)
    }

    /// One event, with whatever single events or states it lacks.
    async fn admit(&mut self, event: Arc<Event>, mut how: How) -> Result<Settled> {
        let mut grant = None;
        for _ in 0..4 {
            match self.inbox.try_settle(self.room.num, event.clone(), how.clone(), &mut grant).await? {
                Step::Done(settled) => return Ok(settled),
                Step::Hungry => grant = Some(self.inbox.means().wait().await?),
                Step::Lacking(lacking) if !lacking.auth.is_empty() => self.fetch_cited(lacking.auth).await?,
                Step::Lacking(_) | Step::Unresolved => how.given = Some(self.state_before(event.id()).await?),
            }
        }
        Err(Reject::auth("what the event stands on cannot be had").into())
    }

    fn check_time(&self) -> Result<()> {
        match self.inbox.rooms.0.parts.clock.instant() < self.until {
            true => Ok(()),
            false => Err(Error::Remote(Failed::Timeout)),
        }
    }

    // ---- events between ----------------------------------------------------------------------------------------

    /// Fetches and appends what lies between an event and what we have, as far as its server gives it.
    async fn close_gap(&mut self, event: &Event, lacking: Lacking) -> Result<()> {
        let mut found: HashMap<OwnedEventId, Arc<Event>> = HashMap::new();
        let mut latest = vec![event.id().to_owned()];
        let mut open: BTreeSet<OwnedEventId> = lacking.prev.into_iter().collect();
        for _ in 0..GAP_ROUNDS_MAX {
            self.check_time()?;
            let earliest = self.extremities().await?;
            let limit = GAP_EVENTS_PER_ROUND;
            let asked = self.inbox.fetch.missing_events(&self.origin, &self.room_id, &earliest, &latest, limit).await;
            let raws = match asked {
                Ok(raws) => raws,
                Err(failed) => {
                    tracing::debug!(origin = %self.origin, %failed, "missing events cannot be had");
                    break;
                }
            };
            let events = raws.iter().filter_map(|raw| self.read(raw.get().as_bytes()).ok()).collect();
            let mut fresh: HashMap<OwnedEventId, Event> =
                self.inbox.check(events).await.into_iter().filter_map(|(id, event)| Some((id, event.ok()?))).collect();
            // Only what leads to the event counts; a server that sends anything else is not asked to.
            let before = found.len();
            let mut next: Vec<OwnedEventId> = open.iter().cloned().collect();
            while let Some(id) = next.pop() {
                let Some(event) = fresh.remove(&id) else { continue };
                if self.grant.grow(event.weight() as u64).is_err() {
                    break;
                }
                next.extend(event.prev_events().map(ToOwned::to_owned));
                found.insert(id, Arc::new(event));
            }
            open = self.still_open(event, &found).await?;
            if open.is_empty() || found.len() == before {
                break;
            }
            let leads = |event: &Event| event.prev_events().any(|prev| open.contains(prev));
            latest = found.values().filter(|event| leads(event)).map(|event| event.id().to_owned()).collect();
        }
        for event in in_order(found, |event| event.prev_events().map(ToOwned::to_owned).collect()) {
            let (id, weight) = (event.id().to_owned(), event.weight() as u64);
            let admitted = self.admit(event, How::default()).await;
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

    /// What the event and those found follow, and is neither among them nor stored with its place.
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
                if !judge::stored(read, id.as_str())?.is_some_and(|(_, row)| judge::is_placed(&row)) {
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

    /// Fetches events one by one, and what they cite, and stores them as outliers.
    pub async fn fetch_cited(&mut self, wanted: Vec<OwnedEventId>) -> Result<()> {
        let mut found: HashMap<OwnedEventId, Arc<Event>> = HashMap::new();
        let mut open = wanted;
        for _ in 0..CITED_ROUNDS_MAX {
            let mut events = Vec::with_capacity(open.len());
            for id in open.drain(..) {
                events.push(self.fetch_one(&id).await?);
            }
            for (id, event) in self.inbox.check(events).await {
                found.insert(id, Arc::new(event?));
            }
            open = self.unknown_cited(&found).await?;
            if open.is_empty() {
                return self.store_outliers(found).await;
            }
        }
        Err(Reject::auth("the events it cites lead too far back").into())
    }

    async fn fetch_one(&mut self, id: &EventId) -> Result<Event> {
        self.check_time()?;
        self.cited_left =
            self.cited_left.checked_sub(1).ok_or_else(|| Reject::auth("it cites too much we do not have"))?;
        let raw = self.inbox.fetch.event(&self.origin, id).await?;
        let event = self.read(raw.get().as_bytes())?;
        if event.id() != id {
            return Err(Failed::BadAnswer("another event than the one asked for".into()).into());
        }
        self.pay(&event)?;
        Ok(event)
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

    /// Stores events without their place, what they cite first: numbers rise along the citations. Those that what they cite
    /// rejects are marked so.
    pub async fn store_outliers(&mut self, found: HashMap<OwnedEventId, Arc<Event>>) -> Result<()> {
        let events = in_order(found, |event| event.auth_events().map(ToOwned::to_owned).collect());
        let weight: u64 = events.iter().map(|event| event.weight() as u64).sum();
        let num = self.room.num;
        for batch in events.chunks(OUTLIERS_AT_ONCE).map(<[_]>::to_vec) {
            let _guard = self.inbox.rooms.lock(num).await;
            let here = self.inbox.rooms.here();
            let store = move |w: &mut store::Write<'_>| {
                for event in &batch {
                    let room = known_num(w, num)?;
                    // A reading error of our own is the database's; a malformed reference is passed over.
                    let Ok(around) = Around::of(w, &room, event) else { continue };
                    if !around.lacking.auth.is_empty() || event::num(w, event.id().as_str())?.is_some() {
                        continue;
                    }
                    let rejected = judge::rejects_by_cited(w, &room, event, &around.auth)?.is_some();
                    let outlier = Append::outlier(num, (**event).clone());
                    append(w, &here, Append { flags: Flags { rejected, ..Flags::default() }, ..outlier })?;
                }
                Ok(())
            };
            self.inbox.rooms.write(store).await?;
        }
        self.grant.shrink(weight);
        Ok(())
    }

    // ---- states ------------------------------------------------------------------------------------------------

    /// The state before an event, as the server that sent it tells.
    async fn state_before(&mut self, id: &EventId) -> Result<Tree> {
        self.check_time()?;
        self.states_left =
            self.states_left.checked_sub(1).ok_or_else(|| Reject::auth("too many gaps in the history before it"))?;
        let mut survey = self.survey(id).await?;
        let unknown = std::mem::take(&mut survey.unknown);
        if unknown.len() > SINGLE_EVENTS_MAX {
            self.fetch_state(id, &unknown).await?;
        } else if !unknown.is_empty() {
            self.fetch_cited(unknown.clone()).await?;
        }
        let create = self.room.row.create;
        let tree = self.inbox.rooms.reading(move |_, read| {
            for id in unknown {
                survey.look_at(read, id)?;
            }
            if !survey.unknown.is_empty() {
                return Err(Reject::auth("a part of the state before it cannot be had").into());
            }
            let tree = survey.finish(read)?;
            let key = snapshot::key(read, "m.room.create", "")?.ok_or(Error::NotFound)?;
            match tree.get(read, key)? == create {
                true => Ok(tree),
                false => Err(Reject::auth("the state before it has another create event").into()),
            }
        });
        tree.await
    }

    /// Compares the state another server tells with our present one, id by id as it comes.
    async fn survey(&self, id: &EventId) -> Result<Survey> {
        let num = self.room.num;
        let most = self.inbox.means().changes_max();
        let mut grant = self.own.try_take(0)?;
        hold(&mut grant, (most * 12) as u64)?;
        let present = self.inbox.rooms.reading(move |_, read| Ok(known_num(read, num)?.row.state)).await?;
        let mut survey = Survey::new(num, present, most, grant);
        let (out, mut pieces) = tokio::sync::mpsc::channel(1);
        let asking = self.inbox.fetch.state_ids(&self.origin, &self.room_id, id, out);
        let taking = async move {
            while let Some(ids) = pieces.recv().await {
                let look = move |_: &super::Rooms, read: &store::Read| {
                    for raw in ids {
                        let id =
                            serde_json::from_slice(&raw).map_err(|_| Reject::shape("a state id is no event id"))?;
                        survey.look_at(read, id)?;
                    }
                    Ok(survey)
                };
                survey = self.inbox.rooms.reading(look).await?;
            }
            Ok::<_, Error>(survey)
        };
        let (asked, survey) = tokio::join!(asking, taking);
        let survey = survey?;
        asked?;
        Ok(survey)
    }

    /// Reads a whole state and keeps of it what is wanted and not stored, and what that cites.
    async fn fetch_state(&mut self, id: &EventId, wanted: &[OwnedEventId]) -> Result<()> {
        let wanted: BTreeSet<OwnedEventId> = wanted.iter().cloned().collect();
        let (out, mut pieces) = tokio::sync::mpsc::channel(1);
        let inbox = self.inbox;
        let asking = inbox.fetch.state(&self.origin, &self.room_id, id, out);
        let (version, room_id) = (self.room.version, self.room.row.id.clone());
        let grant = &mut self.grant;
        let taking = async {
            let mut found = HashMap::new();
            let mut batch = Vec::new();
            while let Some(raws) = pieces.recv().await {
                let room_id = room_id.clone();
                let unknown = inbox.rooms.reading(move |_, read| {
                    let mut unknown = Vec::new();
                    for raw in raws {
                        if let Ok(event) = read_event(version, &room_id, &raw)
                            && event::num(read, event.id().as_str())?.is_none()
                        {
                            unknown.push(event);
                        }
                    }
                    Ok(unknown)
                });
                for event in unknown.await? {
                    hold(grant, event.weight() as u64)?;
                    batch.push(event);
                }
                if batch.len() >= CHECKED_AT_ONCE {
                    keep(&mut found, inbox.check(std::mem::take(&mut batch)).await);
                }
            }
            keep(&mut found, inbox.check(batch).await);
            Ok::<_, Error>(found)
        };
        let (asked, found) = tokio::join!(asking, taking);
        let found: HashMap<OwnedEventId, Arc<Event>> = found?;
        asked?;
        if wanted.iter().any(|id| !found.contains_key(id)) {
            return Err(Reject::auth("a part of the state before it cannot be had").into());
        }
        self.store_outliers(found).await
    }
}

/// Takes bytes out of the filling's own memory.
fn hold(grant: &mut Grant, bytes: u64) -> Result<()> {
    Ok(grant.grow(bytes).map_err(|_| Reject::auth("what it stands on and is not here needs too much memory"))?)
}

fn keep(found: &mut HashMap<OwnedEventId, Arc<Event>>, checked: Vec<(OwnedEventId, Result<Event>)>) {
    found.extend(checked.into_iter().filter_map(|(id, event)| Some((id, Arc::new(event.ok()?)))));
}

/// Events so that each comes after those of them it refers to. A circle, which hashes do not allow, would be cut anywhere.
pub(super) fn in_order(
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

/// Another server's idea of a state beside our present one.
struct Survey {
    room: RoomNum,
    present: Option<Root>,
    /// A bit for each state key it has.
    seen: Vec<u64>,
    changes: BTreeMap<StateKeyNum, Option<EventNum>>,
    changes_max: usize,
    unknown: Vec<OwnedEventId>,
    grant: Grant,
}

impl Survey {
    fn new(room: RoomNum, present: Option<Root>, changes_max: usize, grant: Grant) -> Survey {
        let (seen, changes, unknown) = (Vec::new(), BTreeMap::new(), Vec::new());
        Survey { room, present, seen, changes, changes_max, unknown, grant }
    }

    fn look_at(&mut self, get: &impl Get, id: OwnedEventId) -> Result<()> {
        let Some((num, row)) = judge::stored(get, id.as_str())? else {
            if self.unknown.len() == UNKNOWN_MAX {
                return Err(Reject::auth("too much of the state before it is unknown here").into());
            }
            hold(&mut self.grant, 96)?;
            self.unknown.push(id);
            return Ok(());
        };
        let key = row.state_key.filter(|_| row.room == self.room);
        let key = key.ok_or_else(|| Reject::auth("the state before it holds what is no state of the room"))?;
        if row.flags.rejected {
            return Ok(());
        }
        if self.was_seen(key)? {
            return Err(Reject::auth("the state before it has two events for one key").into());
        }
        if self.present.map_or(Ok(None), |root| snapshot::get(get, root, key))? != Some(num) {
            self.change(key, Some(num))?;
        }
        Ok(())
    }

    fn was_seen(&mut self, key: StateKeyNum) -> Result<bool> {
        let (word, bit) = ((key.0 / 64) as usize, 1u64 << (key.0 % 64));
        if word >= self.seen.len() {
            let words = (word + 1).next_power_of_two().max(1024);
            hold(&mut self.grant, ((words - self.seen.len()) * 8) as u64)?;
            self.seen.resize(words, 0);
        }
        let seen = self.seen[word] & bit != 0;
        self.seen[word] |= bit;
        Ok(seen)
    }

    fn change(&mut self, key: StateKeyNum, event: Option<EventNum>) -> Result<()> {
        if self.changes.len() == self.changes_max {
            return Err(Reject::auth("the state before it is too different from the present one").into());
        }
        self.changes.insert(key, event);
        Ok(())
    }

    /// What it has not is not in the state.
    fn finish(mut self, get: &impl Get) -> Result<Tree> {
        let (mut page, mut after, mut ended) = (Vec::with_capacity(512), None, self.present.is_none());
        while !ended {
            page.clear();
            let Some(root) = self.present else { break };
            ended = snapshot::page(get, root, after, 512, &mut page)?;
            after = page.last().map(|entry| entry.key).or(after);
            for entry in &page {
                if !self.was_seen(entry.key)? {
                    self.change(entry.key, None)?;
                }
            }
        }
        Ok(Tree::over(self.present, self.changes))
    }
}
