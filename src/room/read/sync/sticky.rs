//! The sticky events of a room (MSC4354), for a sync: whoever is joined is told of them, whatever the history's visibility,
//! but for those of users whom they ignore.

use std::ops::ControlFlow;

use super::super::until;
use super::{RoomDelta, SyncView};
use crate::base::{ChunkError, ChunkWriter};
use crate::room::error::Result;
use crate::room::read::RoomView;
use crate::store::tables::room::sticky::{self, Sticky};
use crate::store::{EventNum, Position, RoomNum};

impl SyncView {
    /// Whether a room has sticky events that came after a position and are not over.
    pub fn has_sticky(&self, room: RoomNum, since: Position) -> Result<bool> {
        let (now_ms, mut any) = (self.rooms.0.parts.clock.now_ms(), false);
        sticky::each(&*self.read, room, since.0, &mut |sticky| {
            any = self.is_told(&sticky, now_ms);
            Ok(until(any))
        })?;
        Ok(any)
    }

    /// The sticky events that came after a position, all without one, but for those that `told` has in its timeline.
    /// Bounded by the sticky events of a room: twelve bytes each.
    pub fn sticky(
        &self,
        room: RoomNum,
        since: Option<Position>,
        told: Option<&RoomDelta>,
    ) -> Result<Vec<(i64, EventNum)>> {
        let (now_ms, mut found) = (self.rooms.0.parts.clock.now_ms(), Vec::new());
        sticky::each(&*self.read, room, since.map_or(0, |since| since.0), &mut |sticky| {
            let order = sticky.order as i64;
            if self.is_told(&sticky, now_ms) && !told.is_some_and(|told| told.has(order)) {
                found.push((order, sticky.event));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    fn is_told(&self, sticky: &Sticky, now_ms: u64) -> bool {
        sticky.until_ms > now_ms && sticky.order <= self.now.at.0 && !self.ignored.contains(sticky.sender)
    }
}

impl RoomView {
    /// Writes sticky events, with commas between.
    pub async fn write_sticky(&mut self, pen: &ChunkWriter, sticky: &[(i64, EventNum)]) -> Result<(), ChunkError> {
        self.write_events(pen, sticky).await.map(drop)
    }
}
