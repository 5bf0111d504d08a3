//! Answers that are a whole state or a whole auth chain, read as they come.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ruma::{EventId, OwnedEventId};

use super::fetch::Fetch;
use super::gap::GapFill;
use super::inbox::read_event;
use crate::matrix::Event;
use crate::room::error::{Error, Result};
use crate::store::tables::room::event;

/// How often a whole state or auth chain is read. An event that cites a later one of the answer may not fit into memory
/// until that one came; in the next reading it can be stored. Each reading stores what lies lowest, as much as fits.
const READS_MAX: usize = 16;
/// Waiting for other servers, for a gap that needs a whole answer: servers take minutes for large ones.
const WHOLE_TIME_MAX: Duration = Duration::from_secs(240);
/// Events of a streamed state whose signatures are checked together.
const CHECKED_AT_ONCE: usize = 32;

impl<F: Fetch> GapFill<'_, F> {
    /// Stores the unknown events of the state before an event, and of its auth chain.
    pub(super) async fn fetch_whole_state(&mut self, id: &EventId) -> Result<()> {
        self.fetch_whole(Whole::State, id).await
    }

    /// Stores the unknown events of an event's auth chain.
    pub(super) async fn fetch_whole_chain(&mut self, id: &EventId) -> Result<()> {
        self.fetch_whole(Whole::AuthChain, id).await
    }

    async fn fetch_whole(&mut self, what: Whole, id: &EventId) -> Result<()> {
        if !self.is_guest {
            let now = self.inbox.rooms.0.parts.clock.instant();
            self.until = self.share_until.min(now + WHOLE_TIME_MAX);
        }
        for _ in 0..READS_MAX {
            let read = self.read_whole(what, id).await?;
            if read.stored > 0 {
                // What cited them may be had now.
                self.forget_lost();
            }
            if read.let_go == 0 || read.stored == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Reads the answer once. Stored events stay, should it break off.
    async fn read_whole(&mut self, what: Whole, id: &EventId) -> Result<Reading> {
        let (out, mut pieces) = tokio::sync::mpsc::channel(1);
        let (inbox, origin, room_id) = (self.inbox, self.origin.clone(), self.room_id.clone());
        let asking = async {
            match what {
                Whole::State => inbox.fetch.state(&origin, &room_id, id, out).await,
                Whole::AuthChain => inbox.fetch.event_auth(&origin, &room_id, id, out).await,
            }
        };
        let asking = self.in_time(asking);
        let held = self.grant.bytes();
        let this = &mut *self;
        // It owns the receiver: the sending side stops when this one does.
        let taking = async move {
            let mut reading = Reading { held, ..Reading::default() };
            while let Some(raws) = pieces.recv().await {
                if let Err(full) = this.check_intake() {
                    this.put_down(&mut reading).await?;
                    return Err(full);
                }
                for event in this.unknown_of(raws).await? {
                    this.take_in(&mut reading, event).await?;
                }
            }
            this.put_down(&mut reading).await?;
            Ok::<_, Error>(reading)
        };
        let (asked, taken) = tokio::join!(asking, taking);
        self.grant.shrink(self.grant.bytes() - held);
        let mut reading = taken?;
        asked?;
        // An event whose keys cannot be had never comes; the events that cite it are not missed.
        reading.found.clear();
        Ok(reading)
    }

    /// The events that can be read and are not here.
    async fn unknown_of(&self, raws: Vec<Vec<u8>>) -> Result<Vec<Event>> {
        let (version, room_id) = (self.room.version, self.room.row.id.clone());
        let unknown = self.inbox.rooms.reading(move |_, read| {
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
        unknown.await
    }

    /// Takes one event of a state, making room for it first where there is none.
    async fn take_in(&mut self, reading: &mut Reading, event: Event) -> Result<()> {
        if reading.found.contains_key(event.id()) || reading.batch.iter().any(|other| other.id() == event.id()) {
            return Ok(());
        }
        if self.pay(&event).is_err() {
            self.put_down(reading).await?;
            // The waiting events would mostly fill it again at once.
            if self.grant.bytes() - reading.held > self.own.limit() / 4 {
                reading.let_go_deepest();
                self.pay_for(reading);
            }
            if self.pay(&event).is_err() {
                reading.let_go += 1;
                return Ok(());
            }
        }
        self.charge(&event);
        reading.batch.push(event);
        match reading.batch.len() < CHECKED_AT_ONCE {
            true => Ok(()),
            false => self.verify(reading).await,
        }
    }

    async fn verify(&mut self, reading: &mut Reading) -> Result<()> {
        for (id, event) in self.inbox.check(std::mem::take(&mut reading.batch)).await {
            match event {
                Ok(event) => drop(reading.found.insert(id, Arc::new(event))),
                Err(failed) if failed.is_passing() => return Err(failed),
                Err(failed) => tracing::debug!(%id, %failed, "an event of a state or auth chain cannot be verified"),
            }
        }
        self.pay_for(reading);
        Ok(())
    }

    /// Stores every event that can be stored; the rest waits for the events it cites.
    async fn put_down(&mut self, reading: &mut Reading) -> Result<()> {
        self.verify(reading).await?;
        let count = reading.found.len();
        let waiting = self.store_outliers(std::mem::take(&mut reading.found)).await?;
        reading.stored += count - waiting.len();
        reading.found = waiting.into_iter().map(|event| (event.id().to_owned(), event)).collect();
        self.pay_for(reading);
        Ok(())
    }

    /// Returns the grant of events that are not held any more.
    fn pay_for(&mut self, reading: &Reading) {
        let found: usize = reading.found.values().map(|event| event.weight()).sum();
        self.grant.shrink(self.grant.bytes().saturating_sub(reading.held + found as u64));
    }
}

/// What another server tells as a whole.
#[derive(Clone, Copy)]
enum Whole {
    /// The state before an event, and the auth chain of that state.
    State,
    /// The auth chain of an event.
    AuthChain,
}

/// One reading of such an answer.
#[derive(Default)]
struct Reading {
    /// Bytes of the filling that were in use before.
    held: u64,
    batch: Vec<Event>,
    /// Checked, and not stored yet.
    found: HashMap<OwnedEventId, Arc<Event>>,
    stored: usize,
    /// Events that found no room until the events they cite came.
    let_go: usize,
}

impl Reading {
    /// Lets half of the waiting events go. An event lies deeper in the room than those it cites, so the ones that can be
    /// stored first stay, in whatever order the answer has them.
    fn let_go_deepest(&mut self) {
        let mut depths: Vec<u64> = self.found.values().map(|event| event.depth()).collect();
        depths.sort_unstable();
        let Some(&middle) = depths.get(depths.len() / 2) else { return };
        let count = self.found.len();
        self.found.retain(|_, event| event.depth() < middle);
        self.let_go += count - self.found.len();
    }
}
