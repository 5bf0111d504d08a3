//! The memory of one join: a large room and small ones have a part each of the `join` account.

use super::Join;
use super::admission::settling_bytes;
use super::error::JoinError;
use super::order::Scratch;
use crate::budget::{Account, Budget, Grant};
use crate::room::error::Result;
use crate::store::tables::room::join::Journal;

/// The small lane's share, and from how many expected events on a room needs the large one.
const SMALL_BYTES: u64 = 2 << 20;
const SMALL_EVENTS: u64 = 4_000;

/// The part of the `join` account that a large room has.
fn large_lane_bytes(budget: &Budget) -> u64 {
    let all = budget.account("join").limit();
    all - SMALL_BYTES.min(all / 4)
}

/// A part of the account, for one join.
pub struct MemoryLane {
    pub memory: Account,
    pub workers: usize,
    _grant: Grant,
    _turns: Vec<tokio::sync::OwnedSemaphorePermit>,
}

impl<'a> Join<'a> {
    /// A lane: the small one for small rooms, the first free one when the size is unknown, the large one otherwise.
    pub async fn lane(&self, events_expected: u64) -> Result<MemoryLane, JoinError> {
        let joins = &self.rooms.0.joins;
        let budget = &self.rooms.0.parts.budget;
        let account = budget.account("join");
        let (turn, large) = match events_expected {
            0 => tokio::select! {
                biased;
                turn = joins.large.clone().acquire_owned() => (turn, true),
                turn = joins.small.clone().acquire_owned() => (turn, false),
            },
            1..SMALL_EVENTS => tokio::select! {
                biased;
                turn = joins.small.clone().acquire_owned() => (turn, false),
                turn = joins.large.clone().acquire_owned() => (turn, true),
            },
            _ => (joins.large.clone().acquire_owned().await, true),
        };
        let turn = turn.map_err(|_| JoinError::Cancelled)?;
        let large_bytes = large_lane_bytes(budget);
        let bytes = if large { large_bytes } else { account.limit() - large_bytes };
        let (memory, grant) = account.part(bytes).await?;
        let workers = if large { budget.size("join_workers").clamp(1, 16) as usize } else { 1 };
        Ok(MemoryLane { memory, workers, _grant: grant, _turns: vec![turn] })
    }

    /// A room whose order or columns need more than its lane takes both lanes; small joins wait meanwhile.
    pub async fn widened(&self, lane: MemoryLane, journal: &Journal) -> Result<MemoryLane, JoinError> {
        let (joins, account) = (&self.rooms.0.joins, self.rooms.0.parts.budget.account("join"));
        let needed = settling_bytes(journal.nodes, journal.events);
        if needed <= lane.memory.limit() {
            return Ok(lane);
        }
        // Its own lane is released first: two joins that wait for each other's lane would wait for ever.
        let workers = lane.workers;
        drop(lane);
        let mut turns = Vec::with_capacity(2);
        for semaphore in [&joins.small, &joins.large] {
            let turn = self.progress.unless_cancelled(semaphore.clone().acquire_owned()).await?;
            turns.push(turn.map_err(|_| JoinError::Cancelled)?);
        }
        let (memory, grant) = account.part(account.limit()).await?;
        Ok(MemoryLane { memory, workers, _grant: grant, _turns: turns })
    }

    pub fn scratch(&self, lane: &MemoryLane) -> Scratch {
        let parts = &self.rooms.0.parts;
        Scratch { memory: lane.memory.clone(), ..Scratch::new(&parts.budget, parts.scratch.clone()) }
    }
}
