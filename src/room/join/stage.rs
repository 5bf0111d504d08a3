//! Stores checked events: bodies under arrival numbers, and beside them the log of the events.
//!
//! One thread. It numbers the nodes, packs the log and hands both to the writer in batches sized so that other rooms'
//! commits stay short. A power cut leaves a log whose last batch is whole.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::batch::{Checked, CheckedBatch};
use super::error::JoinError;
use super::graph::Graph;
use super::order::{Node, Seen};
use super::progress::Progress;
use crate::base::{BatchSize, StopWatch};
use crate::budget::{Account, Grant};
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::Id;
use crate::store::tables::room::join;
use crate::store::tables::room::join::{JoinNum, Journal};
use crate::store::tables::room::staged::{self, BatchWriter, Staged, UserPrint};
use crate::store::{self, BodyNum, Store};

/// How long a staged write may hold the writer, about.
pub const WRITE_TARGET: Duration = Duration::from_millis(50);
const EVENTS_MIN: usize = 32;
const EVENTS_MAX: usize = 2048;
/// Bodies and log that wait to be written.
pub const STAGED_BYTES: u64 = 320 * 1024;
/// User ids written recently, so that each stands in the log about once.
const USERS_REMEMBERED: usize = 14 * 1024;

/// Stores the checked batches of a join.
pub struct Stager {
    store: Store,
    join: JoinNum,
    pub journal: Journal,
    graph: Arc<Graph>,
    progress: Arc<Progress>,
    batch: BatchWriter,
    bodies: Vec<u8>,
    ends: Vec<u32>,
    json_bytes: u64,
    users: HashSet<UserPrint>,
    auth: Vec<u32>,
    pace: BatchSize,
    events_max: u64,
    _grant: Grant,
}

impl Stager {
    pub fn new(
        store: Store,
        join: JoinNum,
        journal: Journal,
        graph: Arc<Graph>,
        progress: Arc<Progress>,
        memory: &Account,
        events_max: u64,
    ) -> Result<Stager, JoinError> {
        let users_max = users_max(memory);
        let grant = memory.try_take(bytes(memory))?;
        let batch = BatchWriter::new(journal.attempt);
        Ok(Stager {
            store,
            join,
            graph,
            progress,
            batch,
            bodies: Vec::new(),
            ends: Vec::new(),
            json_bytes: 0,
            users: HashSet::with_capacity(users_max),
            auth: Vec::new(),
            pace: BatchSize::new(WRITE_TARGET, EVENTS_MIN, EVENTS_MAX),
            events_max,
            journal,
            _grant: grant,
        })
    }

    /// Gives an id its node before anything else has one: the create event of a room that is named after it.
    pub fn begin_with(&mut self, id: &Id) -> Result<(), JoinError> {
        let graph = self.graph.clone();
        graph.with(|open| self.node(open, id)).map(drop)
    }

    /// Reads the log of earlier attempts back, so that their events are not checked again.
    pub fn remember(&mut self) -> Result<(), JoinError> {
        let read = self.store.read()?;
        let (graph, join) = (self.graph.clone(), self.join);
        let mut problem = None;
        staged::batches(&read, join, 0, &mut |number, mut batch| {
            let corrupt = |_| staged::corrupt(join, number);
            let done: Result<(), JoinError> = graph.with(|open| {
                while let Some(entry) = batch.next().map_err(corrupt)? {
                    match entry {
                        staged::Entry::Node(id) => drop(open.again(&id).ok_or(JoinError::TooManyNodes)?),
                        staged::Entry::Event(event) => open.set_stored(event.node)?,
                        staged::Entry::Known { node, .. } => open.set_stored(node)?,
                        staged::Entry::User(_) | staged::Entry::InState(_) => {}
                    }
                }
                Ok(())
            });
            Ok(match done {
                Ok(()) => std::ops::ControlFlow::Continue(()),
                Err(stop) => {
                    problem = Some(stop);
                    std::ops::ControlFlow::Break(())
                }
            })
        })?;
        problem.map_or(Ok(()), Err)
    }

    /// Takes a checked batch over. Writes when enough is staged.
    pub fn take(&mut self, batch: &CheckedBatch) -> Result<(), JoinError> {
        let graph = self.graph.clone();
        graph.with(|open| {
            batch.familiar.iter().try_for_each(|&(node, in_state)| self.log_again(open, node, in_state))
        })?;
        for event in &batch.events {
            graph.with(|open| self.log(open, batch, event))?;
            let staged = self.bodies.len() + self.batch.len();
            if self.ends.len() >= self.pace.size() || staged as u64 >= STAGED_BYTES * 3 / 4 {
                self.flush()?;
            }
        }
        if self.progress.stored.load(std::sync::atomic::Ordering::Relaxed) > self.events_max {
            return Err(JoinError::TooLarge(format!(
                "it has more than {} events, the limit for this join.",
                self.events_max
            )));
        }
        Ok(())
    }

    fn log(
        &mut self,
        open: &mut super::graph::Open<'_>,
        batch: &CheckedBatch,
        event: &Checked,
    ) -> Result<(), JoinError> {
        let node = self.node(open, &event.id)?;
        if open.is_stored(node) {
            return self.log_again(open, node, event.in_state);
        }
        if event.in_state {
            open.set_in_state(node)?;
        }
        if let Some(num) = event.known {
            self.batch.known(node, num);
            if event.in_state {
                self.batch.in_state(node);
            }
            return Ok(open.set_stored(node)?);
        }
        if event.repeated {
            // The table forgot the id between the worker's look and this one; the event's own line is in the log.
            if event.in_state {
                self.batch.in_state(node);
            }
            return Ok(());
        }
        let mut auth = std::mem::take(&mut self.auth);
        auth.clear();
        for id in &event.auth {
            auth.push(self.node(open, id)?);
        }
        self.user(event.sender.0, batch.str(event.sender.1));
        if let Some((_, print, span)) = event.member {
            self.user(print, batch.str(span));
        }
        let staged = Staged {
            node,
            id: event.id.clone(),
            wire: event.wire,
            in_state: event.in_state,
            needs_body: event.needs_body,
            redacted: event.redacted,
            kind: event.kind,
            sender: event.sender.0,
            member: event.member.map(|(membership, print, _)| (membership, print)),
            state_key: event.state_key.map(|(kind, key)| (batch.str(kind), batch.str(key))),
            depth: event.depth,
            origin_server_ts: event.origin_server_ts,
            auth: staged::Edges::default(),
        };
        self.batch.event(&staged, &auth);
        self.auth = auth;
        self.bodies.extend_from_slice(batch.slice(event.body));
        self.ends.push(self.bodies.len() as u32);
        self.json_bytes += u64::from(event.json_bytes);
        Ok(open.set_stored(node)?)
    }

    /// A stored event may still be in this body's state.
    fn log_again(&mut self, open: &mut super::graph::Open<'_>, node: Node, in_state: bool) -> Result<(), JoinError> {
        if in_state && open.set_in_state(node)? {
            self.batch.in_state(node);
        }
        Ok(())
    }

    fn node(&mut self, open: &mut super::graph::Open<'_>, id: &Id) -> Result<u32, JoinError> {
        match open.node(id).ok_or(JoinError::TooManyNodes)? {
            Seen::Before(node) => Ok(node),
            Seen::First(node) => {
                self.batch.node(id);
                Ok(node)
            }
        }
    }

    fn user(&mut self, print: UserPrint, user_id: &str) {
        if self.users.contains(&print) {
            return;
        }
        // Forgetting all users at once is cheap, and a second line for one of them does no harm.
        if self.users.len() == self.users.capacity() {
            self.users.clear();
        }
        self.users.insert(print);
        self.batch.user(user_id);
    }

    /// Writes the staged rows, in one commit with the journal's row.
    pub fn flush(&mut self) -> Result<(), JoinError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::replace(&mut self.batch, BatchWriter::new(self.journal.attempt));
        let (bodies, ends) = (std::mem::take(&mut self.bodies), std::mem::take(&mut self.ends));
        let events = ends.len();
        let mut journal = self.journal.clone();
        let (join, number) = (self.join, journal.batches);
        journal.batches += batch.rows();
        journal.events += events as u64;
        journal.bytes += std::mem::take(&mut self.json_bytes);
        let after = journal.clone();
        let watch = StopWatch::start();
        let job = move |w: &mut store::Write<'_>| {
            let first = if ends.is_empty() { BodyNum(0) } else { event::reserve_bodies(w, ends.len() as u32)? };
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let each = starts.zip(&ends).map(|(start, &end)| &bodies[start as usize..end as usize]);
            event::put_bodies(w, first, each)?;
            for (number, row) in (number..).zip(batch.finish(first)) {
                staged::put_batch(w, join, number, &row)?;
            }
            join::set_journal(w, join, &journal)?;
            Ok::<_, store::Error>((bodies, ends))
        };
        let ((mut bodies, mut ends), _) = self.store.write_bulk_blocking(job).map_err(store::Error::from)?;
        self.pace.report(events, watch.elapsed());
        bodies.clear();
        ends.clear();
        (self.bodies, self.ends) = (bodies, ends);
        self.journal = after;
        Progress::add(&self.progress.stored, events as u64);
        Ok(())
    }
}

/// The part of a join's memory for staging.
pub fn bytes(memory: &Account) -> u64 {
    STAGED_BYTES + users_max(memory) as u64 * 11
}

fn users_max(memory: &Account) -> usize {
    if memory.limit() >= 4 << 20 { USERS_REMEMBERED } else { USERS_REMEMBERED / 8 }
}
