//! Takes the words of what was removed out of the index that the search reads: those of rooms, and those of old messages, in
//! whichever way they went.

use super::PAUSE;
use crate::base::{Worker, blocking};
use crate::room::Rooms;
use crate::room::error::Result;
use crate::store::tables::room::search::stale;

/// Chunks of the index looked at in one step, a kilobyte each, and changed in one write, each of which is at most two rows for one.
const CHUNKS_LOOKED_AT: usize = 1000;
const CHUNKS_MAX: usize = 64;
/// Rooms of one walk over the index, of 24 bytes each.
const ROOMS_MAX: usize = 1000;

impl Rooms {
    /// Takes out the words of the events that removals noted. Reads the segments that are old enough, and writes what has to change;
    /// begins anew after a start. What a removal notes meanwhile is for the next wake-up, which comes when it has ended.
    pub(super) async fn forget_words(&self, worker: &Worker) -> Result<()> {
        while let Some(stale) = self.reading(|_, read| Ok(stale::next(read, ROOMS_MAX)?)).await? {
            worker.works_on("the words of what was removed");
            let mut from = Vec::new();
            loop {
                let (rooms, wanted) = (self.clone(), stale.clone());
                let look =
                    move || stale::chunks(&rooms.0.parts.store.read()?, &wanted, &from, CHUNKS_LOOKED_AT, CHUNKS_MAX);
                let (chunks, next) = blocking(look).await?;
                if !chunks.is_empty() {
                    let wanted = stale.clone();
                    self.freed(move |w| stale::take_out(w, &wanted, &chunks)).await?;
                }
                let Some(next) = next else { break };
                from = next;
                self.0.parts.clock.sleep(PAUSE).await;
            }
            if !self.freed(move |w| stale::end(w, &stale)).await? {
                break;
            }
        }
        Ok(())
    }
}
