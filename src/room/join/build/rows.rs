//! Rows laid out in the order of their table, written in runs.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::record::{InState, Made, Nums, PlacedEvent};
use super::{ROWS_MAX, RoomBuilder, SORT_BYTES};
use crate::base::{BatchSize, StopWatch};
use crate::budget::Grant;
use crate::budget::spill::Spill;
use crate::room::join::error::JoinError;
use crate::room::join::graph::with_bytes;
use crate::room::join::order::{Log, Node, OrderError, SORTER_BYTES_MIN, Scratch, Sorter};
use crate::room::join::progress::Progress;
use crate::room::join::stage::WRITE_TARGET;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Flags, Kind, Membership, Row};
use crate::store::tables::room::join::JoinNum;
use crate::store::tables::room::staged;
use crate::store::tables::room::state_tree;
use crate::store::{self, BodyNum, EventNum, Get, RoomNum, StateKeyNum, Store, UserNum, Write, hash128};

/// Rows of one write.
const ROWS_MIN: usize = 64;

/// Short writes one after the other, sized by how long the last one took.
pub struct Writes {
    store: Store,
    pace: BatchSize,
    progress: Arc<Progress>,
}

impl Writes {
    pub fn new(builder: &RoomBuilder) -> Writes {
        let (store, progress) = (builder.store.clone(), builder.progress.clone());
        Writes { store, progress, pace: BatchSize::new(WRITE_TARGET, ROWS_MIN, ROWS_MAX) }
    }

    pub fn size(&self) -> usize {
        self.pace.size()
    }

    pub fn run<T: Send + 'static>(
        &mut self,
        rows: usize,
        job: impl FnOnce(&mut Write<'_>) -> store::Result<T> + Send + 'static,
    ) -> Result<T, JoinError> {
        if self.progress.is_cancelled() {
            return Err(JoinError::Cancelled);
        }
        let watch = StopWatch::start();
        let (done, _) = self.store.write_bulk_blocking(job).map_err(store::Error::from)?;
        self.pace.report(rows, watch.elapsed());
        Ok(done)
    }
}

/// Bodies that no row will refer to, to be removed after the flip.
pub struct Dead {
    scratch: Scratch,
    pub spill: Option<Spill>,
}

impl Dead {
    pub fn new(scratch: &Scratch) -> Dead {
        Dead { scratch: scratch.clone(), spill: None }
    }

    pub fn push(&mut self, body: BodyNum) -> Result<(), JoinError> {
        if self.spill.is_none() {
            self.spill = Some(Spill::create(&self.scratch.folder, &self.scratch.disk)?);
        }
        let spill = self.spill.as_mut().expect("made above");
        Ok(spill.append(&body.to_key())?)
    }
}

/// Visits the entries of a join's log with their attempt; events come with their body's number.
pub fn each<E: From<store::Error>>(
    store: &Store,
    join: JoinNum,
    visit: &mut dyn FnMut(u32, BodyNum, staged::Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let read = store.read()?;
    let mut problem = None;
    staged::batches(&read, join, 0, &mut |number, mut batch| {
        let mut body = batch.first_body;
        while let Some(entry) = batch.next().map_err(|_| staged::corrupt(join, number))? {
            let is_event = matches!(entry, staged::Entry::Event(_));
            if let Err(failed) = visit(batch.attempt, body, entry) {
                problem = Some(failed);
                return Ok(ControlFlow::Break(()));
            }
            body.0 += u32::from(is_event);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    problem.map_or(Ok(()), Err)
}

pub struct StagedLog<'a> {
    pub store: &'a Store,
    pub join: JoinNum,
    pub create_first: bool,
}

impl Log for StagedLog<'_> {
    fn events(&mut self, visit: &mut dyn FnMut(Node, &[Node]) -> Result<(), OrderError>) -> Result<(), OrderError> {
        let (mut parents, create_first) = (Vec::new(), self.create_first);
        each(self.store, self.join, &mut |_, _, entry| match entry {
            staged::Entry::Event(event) => {
                event.auth.read(&mut parents);
                if create_first && event.kind != Kind::CREATE {
                    parents.push(0); // the create event's node, given before any other
                }
                visit(event.node, &parents)
            }
            staged::Entry::Known { node, .. } => visit(node, &[]),
            _ => Ok(()),
        })
    }

    fn ids(&mut self, visit: &mut dyn FnMut(Node, &[u8]) -> Result<(), OrderError>) -> Result<(), OrderError> {
        let mut node = 0;
        each(self.store, self.join, &mut |_, _, entry| {
            if let staged::Entry::Node(id) = entry {
                with_bytes(&id, |bytes| visit(node, bytes))?;
                node += 1;
            }
            Ok(())
        })
    }
}

/// Rows on their way into the store.
pub struct Rows {
    room: RoomNum,
    batch: Vec<(EventNum, Row, Option<(String, String)>, bool)>,
    writes: Writes,
    ids: Sorter,
    state: Sorter,
    pub accepted: u64,
    hash_key: [u8; 16],
    _grant: Grant,
}

const ROW_BYTES: u64 = 300;

const BATCH_ROWS_MAX: usize = 1024;

impl Rows {
    pub fn new(builder: &RoomBuilder, room: RoomNum) -> Result<Rows, JoinError> {
        let grant = builder.scratch.memory.try_take(BATCH_ROWS_MAX as u64 * ROW_BYTES)?;
        let left = builder.scratch.memory.limit().saturating_sub(builder.scratch.memory.used());
        // For a room of the largest size, just the minimum of two sorters.
        let share = (left / 3).clamp(SORTER_BYTES_MIN, SORT_BYTES);
        Ok(Rows {
            room,
            batch: Vec::new(),
            writes: Writes::new(builder),
            ids: Sorter::new(&builder.scratch, share)?,
            state: Sorter::new(&builder.scratch, share)?,
            accepted: 0,
            hash_key: *builder.store.read()?.hash_key(),
            _grant: grant,
        })
    }

    pub fn in_state(
        &mut self,
        key: StateKeyNum,
        num: EventNum,
        kind: Kind,
        member: Option<(Membership, UserNum)>,
    ) -> Result<(), JoinError> {
        Ok(self.state.push(&InState { key, num, kind, member }.pack())?)
    }

    pub fn push(
        &mut self,
        nums: &Nums,
        place: u32,
        event: &PlacedEvent<'_>,
        in_state: bool,
        auth: &[u32],
    ) -> Result<(), JoinError> {
        let num = nums.of(place);
        let member = event.member.map(|(membership, target, _)| (membership, target));
        if let Some((_, _, key)) = event.member
            && in_state
        {
            self.in_state(key, num, event.kind, member)?;
        }
        let mut record = [0; 20];
        record[..16].copy_from_slice(&hash128(&self.hash_key, &[event.id.text().as_bytes()]));
        record[16..].copy_from_slice(&num.to_key());
        self.ids.push(&record)?;
        let row = Row {
            room: self.room,
            body: event.body,
            id: event.id.clone(),
            kind: event.kind,
            state_key: event.member.map(|(_, _, key)| key),
            sender: event.sender,
            member,
            flags: Flags { outlier: true, redacted: event.redacted, ..Flags::default() },
            depth: event.depth,
            origin_server_ts: event.origin_server_ts,
            auth: auth.iter().map(|&place| nums.of(place)).collect(),
            before: None,
            order: None,
            redacted_by: None,
        };
        let other = event.state_key.map(|(kind, key)| (kind.to_owned(), key.to_owned()));
        self.batch.push((num, row, other, in_state));
        self.accepted += 1;
        if self.batch.len() >= self.writes.size().min(BATCH_ROWS_MAX) {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), JoinError> {
        let mut batch = std::mem::take(&mut self.batch);
        let (mut batch, others) = self.writes.run(batch.len(), move |w| {
            let mut others = Vec::new();
            for (num, row, other, in_state) in &mut batch {
                if let Some((kind, key)) = other {
                    let key = state_tree::intern_key(w, kind, key)?;
                    row.state_key = Some(key);
                    if *in_state {
                        others.push((key, *num, row.kind));
                    }
                }
            }
            event::put_rows(w, batch.iter().map(|(num, row, _, _)| (*num, row)))?;
            Ok((batch, others))
        })?;
        for (key, num, kind) in others {
            self.in_state(key, num, kind, None)?;
        }
        batch.clear();
        self.batch = batch;
        Ok(())
    }

    pub fn finish(mut self, create: EventNum) -> Result<Made, JoinError> {
        if !self.batch.is_empty() {
            self.flush()?;
        }
        Ok(Made { ids: self.ids, state: self.state, create, accepted: self.accepted })
    }
}
