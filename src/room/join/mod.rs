//! Joining a room through another server: three members or forty thousand, the same machine.
//!
//! ```text
//! template → sign → admission → send_join ⇒ stream (tokeniser, workers, stage) → build (order, judge, rows, state) → FLIP
//! ```
//!
//! Everything that takes long is stored as it is made, in short writes under a journal row with the join's progress;
//! nothing of it is visible until the flip. A crash before the order is known requests the state again and checks
//! nothing twice; a crash after it only repeats local passes. A join that fails removes its writes.
//!
//! Memory is a lane: a part of the `join` account that one join has to itself. There is one for large rooms and a small
//! one, so that a chat of three does not wait for a room of forty thousand.
//!
//! Reading order: this file, `ask.rs`, `stream.rs` (with `batch.rs`), `check.rs` (with `key_cache.rs`), `resume.rs`, `stage.rs`,
//! `graph.rs`, `order/`, `build/`, `flip.rs`, `cleanup.rs`; `list.rs`, `lane.rs`, `progress.rs`, `admission.rs` stand alone.

mod check;
mod resume;
mod flip;
mod graph;
mod progress;
mod build;
pub mod stage;
mod stream;
pub mod admission;
pub mod order;
pub mod ask;
pub mod batch;
pub mod cleanup;
pub mod error;
pub mod key_cache;
pub mod lane;
pub mod list;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ruma::{OwnedRoomId, OwnedServerName, RoomId, UserId};
use tokio::task::JoinSet;

use self::check::Checker;
use self::graph::Graph;
pub use self::progress::JoinStatus;
use self::progress::{Phase, Progress};
use self::stage::Stager;
use super::error::{Error, Result};
use super::{Joining, Rooms};
use crate::base::{self, Worker};
use crate::budget::Refused;
use crate::matrix::version;
use crate::matrix::{Event, RoomVersion};
use crate::remote::Body;
use crate::room::handshake;
use crate::room::state::event::id_in;
use crate::store::tables::room;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::join;
use crate::store::tables::room::join::{JoinNum, Journal, Stage};
use crate::store::{self, Get};
use admission::Admitted;
use ask::{Want, countersigned};
use build::RoomBuilder;
use cleanup::LeftOut;
use error::JoinError;
use lane::MemoryLane;
use list::{Entered, Running, Watched};
use resume::StoredEvents;
use tracing::Instrument;

/// Requests for a body before the join is given up; the events received before are kept each time.
const ATTEMPTS_MAX: u32 = 20;
/// Requests in a row that bring nothing new.
const IN_VAIN_MAX: u32 = 2;
/// Between two attempts; twice as long each time while no resident server can be reached.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a join that has begun waits for its resident servers: the network may be down, the router may start later.
const UNREACHED_MAX: Duration = Duration::from_secs(6 * 3600);
const FULL_RETRY: Duration = Duration::from_secs(60);

/// Initial nodes of the table when the size of the room is unknown.
const NODES_MIN: u64 = 2_000;
/// Nodes for each event, about: an id without its event is rare.
const NODES_PER_EVENT_TENTHS: u64 = 11;
/// Memory of a node in the table of ids, about.
const NODE_BYTES: u64 = 22;
/// Keys in use, which have two thirds of it, and the part that grows with the room: two bits for each node.
const GROWING_BYTES: u64 = 768 * 1024;
const STOP_PATIENCE: Duration = Duration::from_secs(5);
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Joins `user` to a room without members here. Returns when the room is there; goes on when the client disconnects.
/// Where another join of the room came first, `joining` comes back when that is over: the room may be here now.
pub(super) async fn from_outside(
    rooms: &Rooms,
    user: &UserId,
    room_id: &RoomId,
    joining: Joining,
) -> Result<Option<Joining>> {
    let joins = &rooms.0.joins;
    let running = match joins.enter(room_id, user, rooms.0.parts.clock.instant()) {
        Entered::First(running) => running,
        Entered::Behind(mut over) => {
            let _ = over.wait_for(|over| *over).await;
            return Ok(Some(joining));
        }
        Entered::Full => return Err(full(rooms)),
    };
    let (rooms_of, user_of, room_of) = (rooms.clone(), user.to_owned(), room_id.to_owned());
    let span = tracing::info_span!("join", room = room_id.as_str(), user = user.as_str());
    let work = async move {
        let watched = Watched { rooms: rooms_of.clone(), room_id: room_of.clone() };
        let join = Join::new(&rooms_of, &room_of, &user_of, running.progress.clone(), watched);
        // Checked again once this join is the only one of the room: another may have ended since the caller looked.
        let is_here = join.is_resident().await?;
        if !is_here {
            with_log(&join, join.begin(joining.clone())).await.map_err(JoinError::into_error)?;
        }
        Ok::<_, Error>(is_here.then_some(joining))
    };
    base::unbroken(work.instrument(span)).await
}

/// The maximum of joins is under way.
fn full(rooms: &Rooms) -> Error {
    let account = rooms.0.parts.budget.account("join");
    let (asked, limit, retry_after_ms) = (0, account.limit(), FULL_RETRY.as_millis() as u64);
    Error::Refused(Refused { account: account.name().to_owned(), asked, limit, retry_after_ms, too_large: false })
}

/// Logs a join's progress every few seconds.
async fn with_log<T>(join: &Join<'_>, work: impl Future<Output = T>) -> T {
    let clock = &join.rooms.0.parts.clock;
    let since = clock.instant();
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = clock.sleep(LOG_EVERY) => {
                let underway = join.progress.underway(
                    join.room_id.as_str(), join.user.as_str(), clock.instant().saturating_sub(since));
                tracing::info!("joining {underway}");
            }
        }
    }
}

impl Rooms {
    /// Called before the database is closed. Waits at most as long as a write takes.
    pub async fn stop_joins(&self) {
        if self.0.parts.clock.timeout(STOP_PATIENCE, self.0.joins.stop()).await.is_none() {
            tracing::warn!("a join did not stop in time; it is resumed at the next start");
        }
    }

    /// Resumes joins that a crash or a stop interrupted. `serve` spawns it once. A unit of the worker
    /// is a join that went on.
    pub async fn resume_joins(&self, worker: &Worker) {
        let read = self.reading(|_, read| Ok(join::journals(read)?)).await;
        let journals = match read {
            Ok(journals) => journals,
            Err(error) => {
                tracing::warn!(%error, "interrupted joins could not be read");
                return worker.failed(error);
            }
        };
        // All are on the list before any goes on: a request for one of the rooms waits for its join. Lanes put the
        // joins in order; a join that waits for its resident servers holds none. Where a room has two journals, the
        // second is looked at afterwards.
        let mut waiting = journals;
        while !self.0.joins.stopping.load(Relaxed) {
            let mut going_on = JoinSet::new();
            waiting.retain(|(num, journal)| match enter_again(self, journal) {
                Some((room_id, running)) => {
                    let span = tracing::info_span!("join", room = room_id.as_str(), user = running.user.as_str());
                    going_on.spawn(resume_one(self.clone(), *num, room_id, running).instrument(span));
                    false
                }
                None => true,
            });
            if going_on.is_empty() {
                return;
            }
            while !going_on.is_empty() {
                worker.works_on(format_args!("joins that go on: {}", going_on.len()));
                let _ = going_on.join_next().await;
                worker.done(1);
            }
        }
    }
}

fn enter_again(rooms: &Rooms, journal: &Journal) -> Option<(OwnedRoomId, Arc<Running>)> {
    let (room_id, user) = (RoomId::parse(&journal.room_id).ok()?, UserId::parse(&journal.user_id).ok()?);
    match rooms.0.joins.enter(&room_id, &user, rooms.0.parts.clock.instant()) {
        Entered::First(running) => Some((room_id, running)),
        Entered::Behind(_) | Entered::Full => None,
    }
}

async fn resume_one(rooms: Rooms, num: JoinNum, room_id: OwnedRoomId, running: Arc<Running>) {
    let watched = Watched { rooms: rooms.clone(), room_id: room_id.clone() };
    // Read again now that the join is on the list: it may have been cancelled, or another join of the room may have
    // ended.
    let journal = rooms.reading(move |_, read| Ok(join::journal(read, num)?)).await;
    let Ok(Some(journal)) = journal else { return };
    tracing::info!(%room_id, stage = ?journal.stage, events = journal.events, "an interrupted join is resumed");
    let join = Join::new(&rooms, &room_id, &running.user, running.progress.clone(), watched);
    if let Err(stop) = with_log(&join, join.resume(num, journal)).await {
        tracing::warn!(%room_id, %stop, "an interrupted join failed");
    }
}

/// One join.
struct Join<'a> {
    rooms: &'a Rooms,
    room_id: &'a RoomId,
    user: &'a UserId,
    progress: Arc<Progress>,
    watched: Arc<Watched>,
}

impl<'a> Join<'a> {
    fn new(
        rooms: &'a Rooms,
        room_id: &'a RoomId,
        user: &'a UserId,
        progress: Arc<Progress>,
        watched: Watched,
    ) -> Join<'a> {
        Join { rooms, room_id, user, progress, watched: Arc::new(watched) }
    }

    async fn begin(&self, joining: Joining) -> Result<(), JoinError> {
        let servers = self.servers(&joining).await?;
        let (event, version, servers) = self.draw_up(servers, joining).await?;
        let admitted = admission::admit(self.rooms, self.room_id, self.user, &servers, event.depth()).await?;
        self.clear_earlier().await?;
        let journal = Journal {
            room_id: self.room_id.to_string(),
            user_id: self.user.to_string(),
            version: version.id.to_owned(),
            stage: Stage::Asked,
            begun_ms: self.rooms.0.parts.clock.now_ms(),
            residents: servers.iter().map(ToString::to_string).collect(),
            content: Default::default(),
            event: Some(String::from_utf8_lossy(event.to_federation()).into_owned()),
            event_id: Some(event.id().to_string()),
            attempt: 0,
            batches: 0,
            events: 0,
            bytes: 0,
            nodes: 0,
            forgetful: false,
            events_expected: admitted.events_expected,
            override_size: admitted.overridden,
            room: None,
            event_nums: None,
        };
        let first = journal.clone();
        let job = move |w: &mut store::Write<'_>| {
            let num = join::new_join(w)?;
            join::set_journal(w, num, &first)?;
            Ok::<_, store::Error>(num)
        };
        let (num, _) = self.rooms.0.parts.store.write(job).await.map_err(store::Error::from)?;
        self.go_on(num, journal, event, version, admitted).await
    }

    /// Removes the remains of an earlier join of the room before a new one begins: its rows would be taken for the
    /// room's, and its journal would be resumed one day.
    async fn clear_earlier(&self) -> Result<(), JoinError> {
        let room_id = self.room_id.to_owned();
        let journals = self.rooms.reading(move |_, read| {
            let mut journals = join::journals(read)?;
            journals.retain(|(_, journal)| journal.room_id == room_id.as_str() && journal.stage < Stage::Live);
            Ok(journals)
        });
        for (num, _) in journals.await? {
            self.clean_up(num).await?;
        }
        Ok(())
    }

    async fn resume(&self, num: JoinNum, journal: Journal) -> Result<(), JoinError> {
        match journal.stage {
            Stage::Live => return self.clean_after(num, journal, LeftOut::Unknown).await,
            Stage::Cancelled => {
                self.clean_up(num).await?;
                // A resident server may have accepted our event.
                self.progress.accepted.store(true, Relaxed);
                self.leave_again(journal.residents).await;
                return Ok(());
            }
            // The room was joined by other means since.
            _ if self.is_resident().await? => return self.clean_up(num).await,
            _ => {}
        }
        // Our event may have arrived, whatever the answer was.
        self.progress.accepted.store(true, Relaxed);
        let version = version::get(&journal.version);
        let event =
            version.zip(journal.event.as_ref()).map(|(version, event)| Event::from_wire(version, event.as_bytes()));
        let (Some(version), Some(Ok(event))) = (version, event) else { return self.clean_up(num).await };
        let admitted =
            admission::admit_again(self.rooms, self.room_id, journal.events_expected, journal.override_size).await;
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(error) => {
                self.clean_up(num).await?;
                self.leave_again(journal.residents).await;
                return Err(error.into());
            }
        };
        self.go_on(num, journal, event, version, admitted).await
    }

    /// From a signed event to the room; on any failure the writes are removed.
    async fn go_on(
        &self,
        num: JoinNum,
        journal: Journal,
        event: Event,
        version: &'static RoomVersion,
        admitted: Admitted,
    ) -> Result<(), JoinError> {
        self.progress.events_expected.store(journal.events_expected, Relaxed);
        let residents = journal.residents.clone();
        let through = base::caught_in(Box::pin(self.through(num, journal, event, version, admitted))).await;
        match through.unwrap_or_else(|panicked| Err(JoinError::Panicked(panicked.say()))) {
            Ok(()) => Ok(()),
            Err(stop) if self.rooms.0.joins.stopping.load(Relaxed) => Err(stop),
            Err(stop) => {
                tracing::warn!(room_id = %self.room_id, %stop, "a join failed");
                if let Err(failed) = self.clean_up(num).await {
                    tracing::warn!(room_id = %self.room_id, %failed, "the rows of a failed join could not be removed; \
                     the next start removes them");
                }
                self.leave_again(residents).await;
                Err(match stop {
                    JoinError::TooLarge(why) if admitted.liftable => {
                        admission::outgrown(self.rooms, self.room_id, self.user, &admitted).await?;
                        JoinError::TooLarge(format!(
                            "{why} An administrator of this server can allow the room with: snug rooms allow {}",
                            self.room_id
                        ))
                    }
                    stop => stop,
                })
            }
        }
    }

    async fn is_resident(&self) -> Result<bool> {
        let room_id = self.room_id.to_owned();
        let status = self.rooms.reading(move |_, read| {
            let Some(num) = room::num(read, room_id.as_str())? else { return Ok(None) };
            Ok(room::get(read, num)?.map(|room| room.status))
        });
        Ok(status.await? == Some(room::Status::Resident))
    }

    /// Leaves again where the resident server accepted our event, unless the room is here by other means. The client
    /// does not wait for that, but the next join of the room does.
    async fn leave_again(&self, residents: Vec<String>) {
        if !self.progress.accepted.load(Relaxed) || self.is_resident().await.unwrap_or(true) {
            return;
        }
        let (rooms, room_id, user) = (self.rooms.clone(), self.room_id.to_owned(), self.user.to_owned());
        let watched = self.watched.clone();
        let leaving = async move {
            let _until_left = watched;
            for resident in residents.into_iter().take(2) {
                let Ok(server) = OwnedServerName::try_from(resident) else { continue };
                let content = super::send::member::content_of(Membership::Leave, None);
                match handshake::leave_through(&rooms, &server, &user, &room_id, content).await {
                    Ok(_) => return,
                    Err(error) => {
                        tracing::info!(%server, %room_id, %error, "the leave event after a failed join could not be \
                         sent")
                    }
                }
            }
        };
        base::detached(leaving);
    }

    async fn through(
        &self,
        num: JoinNum,
        journal: Journal,
        event: Event,
        version: &'static RoomVersion,
        admitted: Admitted,
    ) -> Result<(), JoinError> {
        let lane = self.progress.unless_cancelled(self.lane(admitted.events_expected.max(journal.events))).await??;
        let (journal, event, lane) = match journal.stage < Stage::Ordered {
            true => self.fetch(num, journal, event, version, admitted, lane).await?,
            false => (journal, event, lane),
        };
        let lane = self.widened(lane, &journal).await?;
        let parts = &self.rooms.0.parts;
        let mut merge_key = [0; 16];
        parts.random.fill(&mut merge_key);
        let builder = RoomBuilder {
            store: parts.store.clone(),
            join: num,
            journal,
            version,
            scratch: self.scratch(&lane),
            progress: self.progress.clone(),
            server: parts.server.clone(),
            merge_key,
        };
        let built = base::blocking(move || builder.run()).await?;
        drop(lane);
        let (journal, left_out) = self.flip(num, built, event, version).await?;
        self.clean_after(num, journal, left_out).await
    }

    // ---- before the stream

    // ---- the stream

    /// Stores everything the resident server has. Answers the journal at `Ordered`, and our event in its final form.
    ///
    /// A join that has stored something waits for its resident servers to be reachable, and holds no lane meanwhile.
    async fn fetch(
        &self,
        num: JoinNum,
        mut journal: Journal,
        mut event: Event,
        version: &'static RoomVersion,
        admitted: Admitted,
        mut lane: MemoryLane,
    ) -> Result<(Journal, Event, MemoryLane), JoinError> {
        let clock = &self.rooms.0.parts.clock;
        let (mut want, mut in_vain) = (Want::Join, 0);
        let (mut reached, mut pause) = (clock.instant(), PAUSE);
        loop {
            let before = journal.events;
            let (body, resident) = match self.ask(&journal, &event, want, admitted.body_bytes_max).await {
                Err(stop)
                    if stop.is_passing()
                        && journal.events > 0
                        && clock.instant().saturating_sub(reached) < UNREACHED_MAX =>
                {
                    tracing::info!(room_id = %self.room_id, %stop, "no resident server can be reached; the join waits");
                    drop(lane);
                    self.progress.unless_cancelled(clock.sleep(pause)).await?;
                    pause = (pause * 2).min(PAUSE_MAX);
                    lane = self.progress.unless_cancelled(self.lane(admitted.events_expected.max(before))).await??;
                    continue;
                }
                asked => asked?,
            };
            if let Some(at) = journal.residents.iter().position(|name| *name == resident) {
                journal.residents.swap(0, at);
            }
            let (said, after) = self.take(num, journal, version, body, admitted, &lane).await;
            journal = after;
            (reached, pause) = (clock.instant(), PAUSE);
            match said {
                Ok(said) if said.members_omitted && want == Want::Join => {
                    // Here the room could be used already; the rest follows the same way.
                    event = countersigned(version, said.event.as_deref(), event);
                    journal.stage = Stage::Partial;
                    journal.event = Some(String::from_utf8_lossy(event.to_federation()).into_owned());
                    self.save(num, &journal).await?;
                    want = Want::State;
                }
                Ok(said) => {
                    event = countersigned(version, said.event.as_deref(), event);
                    journal.stage = Stage::Ordered;
                    journal.event = Some(String::from_utf8_lossy(event.to_federation()).into_owned());
                    self.save(num, &journal).await?;
                    return Ok((journal, event, lane));
                }
                Err(stop) if stop.is_passing() && in_vain < IN_VAIN_MAX && journal.attempt < ATTEMPTS_MAX => {
                    in_vain = if journal.events > before { 0 } else { in_vain + 1 };
                    tracing::info!(room_id = %self.room_id, %stop, stored = journal.events, "the answer broke off and \
                     is requested again");
                    self.progress.unless_cancelled(clock.sleep(PAUSE)).await?;
                }
                Err(stop) => return Err(stop),
            }
        }
    }

    async fn save(&self, num: JoinNum, journal: &Journal) -> Result<(), JoinError> {
        let journal = journal.clone();
        let job = move |w: &mut store::Write<'_>| join::set_journal(w, num, &journal);
        self.rooms.0.parts.store.write(job).await.map(drop).map_err(|failed| store::Error::from(failed).into())
    }

    /// Receives one body. Answers the journal as it stands then, whatever happened.
    async fn take(
        &self,
        num: JoinNum,
        mut journal: Journal,
        version: &'static RoomVersion,
        mut body: Body,
        admitted: Admitted,
        lane: &MemoryLane,
    ) -> (Result<stream::Said, JoinError>, Journal) {
        journal.attempt += 1;
        journal.stage = journal.stage.max(Stage::Streaming);
        let before = journal.clone();
        let (checker, stager) = match self.prepare(num, journal, version, admitted, lane).await {
            Ok(both) => both,
            Err(stop) => return (Err(stop), before),
        };
        let graph = checker.graph.clone();
        let scratch = self.scratch(lane);
        let taken = stream::take(&mut body, checker, stager, lane, &scratch, &self.progress, admitted.body_bytes_max);
        let (said, stager) = taken.await;
        let mut journal = stager.map_or(before, |stager| stager.journal.clone());
        journal.nodes = graph.nodes();
        journal.forgetful = graph.is_forgetful();
        (said, journal)
    }

    async fn prepare(
        &self,
        num: JoinNum,
        journal: Journal,
        version: &'static RoomVersion,
        admitted: Admitted,
        lane: &MemoryLane,
    ) -> Result<(Arc<Checker>, Stager), JoinError> {
        let parts = &self.rooms.0.parts;
        let mut key = [0; 16];
        parts.random.fill(&mut key);
        let (store, room_id, progress) = (parts.store.clone(), self.room_id.to_string(), self.progress.clone());
        let (keys, clock, memory) = (parts.remote.keys(), parts.clock.clone(), lane.memory.clone());
        let nodes = (admitted.events_expected.max(journal.events) * NODES_PER_EVENT_TENTHS / 10).max(NODES_MIN);
        // Beside the pipeline's memory, and the part that grows with the room.
        let growing = GROWING_BYTES.min(memory.limit() / 7);
        let keys_bytes = growing * 2 / 3;
        let familiar = if journal.batches > 0 { resume::BYTES } else { 0 };
        let left = memory.limit().saturating_sub(stream::fixed_bytes(lane) + growing + familiar);
        let nodes = nodes.min(left / NODE_BYTES);
        base::blocking(move || {
            let graph = Arc::new(Graph::new(key, nodes, &memory)?);
            let read = store.read()?;
            let hash_key = *read.hash_key();
            let look_in_store = match room::num(&read, &room_id)? {
                Some(num) => room::get(&read, num)?.filter(|room| room.events > 0).map(|_| num),
                None => None,
            };
            drop(read);
            let rows = journal.batches;
            progress.stored.store(journal.events, Relaxed);
            let mut stager =
                Stager::new(store.clone(), num, journal, graph.clone(), progress, &memory, admitted.events_max)?;
            let mut familiar = StoredEvents::nothing();
            if rows > 0 {
                stager.remember()?;
                familiar = StoredEvents::of(store.clone(), num, rows, &memory)?;
            } else if version.room_id_is_create_hash() {
                stager.begin_with(&id_in(version, &room_id.replacen('!', "$", 1)))?;
            }
            let keys = key_cache::KeyCache::new(keys, &memory, keys_bytes)?;
            let checker = Checker { version, room_id, keys, store, hash_key, graph, familiar, look_in_store, clock };
            Ok((Arc::new(checker), stager))
        })
        .await
    }
}
