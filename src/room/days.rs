//! What a day brought: messages, and bytes written to the card. For the administrators' page.
//!
//! Counted in memory, and written once an hour while there is something to write: a power cut loses an hour's, an idle server
//! writes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Rooms;
use super::error::Result;
use crate::base::{Clock, Worker, blocking};
use crate::budget::meter;
use crate::store::tables::room::day;
use crate::store::{Change, Follower, Position, Store};

pub use crate::store::tables::room::day::Day;

const HOUR_MS: u64 = 60 * 60 * 1000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// Less than this is no reason for a write, which is about as much itself.
const BYTES_WORTH_NOTING: u64 = 256 << 10;

/// The counts of the day that is not over. Of a message, one addition is made by the writer.
pub(super) struct Days {
    messages: Arc<Messages>,
    clock: Clock,
    /// The bytes that the process had written when they were last added to a day.
    bytes_noted: AtomicU64,
}

#[derive(Default)]
struct Messages(AtomicU64);

impl Follower for Messages {
    fn committed(&self, changes: &[&Change], _: Position) {
        let messages = changes.iter().filter(|change| change.message).count();
        if messages > 0 {
            self.0.fetch_add(messages as u64, Relaxed);
        }
    }

    fn lost(&self, _: Position) {}
}

impl Days {
    pub fn new(store: &Store, clock: Clock) -> Days {
        let messages = Arc::new(Messages::default());
        store.follow(messages.clone());
        Days { messages, clock, bytes_noted: AtomicU64::new(0) }
    }

    /// The day that it is, and what is counted and not written yet.
    fn pending(&self) -> (u32, Day) {
        let bytes = meter::disk_written_bytes().unwrap_or(0).saturating_sub(self.bytes_noted.load(Relaxed));
        ((self.clock.settled_ms() / DAY_MS) as u32, Day { messages: self.messages.0.load(Relaxed), bytes })
    }
}

impl Rooms {
    /// The last `most` days that have a count, the newest last, and today's number: days since 1970.
    pub async fn days(&self, most: usize) -> Result<(u32, Vec<(u32, Day)>)> {
        let (today, pending) = self.0.days.pending();
        let rooms = self.clone();
        let mut days = blocking(move || Ok::<_, super::Error>(day::last(&rooms.read()?, most)?)).await?;
        match days.last_mut().filter(|(day, _)| *day == today) {
            Some((_, day)) => *day = *day + pending,
            None => days.push((today, pending)),
        }
        Ok((today, days))
    }

    /// Writes what was counted, once an hour.
    pub async fn keep_days(&self, worker: &Worker) {
        loop {
            let pause = Duration::from_millis(HOUR_MS);
            worker.idle_for(pause);
            self.0.days.clock.sleep(pause).await;
            if let Err(failed) = self.write_days().await {
                worker.failed(&failed);
            }
        }
    }

    /// Writes what was counted, when that is worth it.
    pub async fn write_days(&self) -> Result<()> {
        let (today, pending) = self.0.days.pending();
        if pending.messages == 0 && pending.bytes < BYTES_WORTH_NOTING {
            return Ok(());
        }
        self.write(move |w| Ok(day::add(w, today, pending)?)).await?;
        let days = &self.0.days;
        days.messages.0.fetch_sub(pending.messages, Relaxed);
        days.bytes_noted.fetch_add(pending.bytes, Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::Create;
    use crate::room::testing::*;

    #[tokio::test]
    async fn messages_are_counted_by_day_and_nothing_else_is() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.rooms.create(&anna, Create::default()).await.unwrap();
        let messages = async || {
            let (today, days) = house.rooms.days(30).await.unwrap();
            let counts = days.iter().map(|(day, count)| (today - day, count.messages));
            counts.filter(|(_, messages)| *messages > 0).collect::<Vec<_>>()
        };
        assert_eq!(messages().await, [], "what makes a room is no message");
        for text in ["one", "two", "three"] {
            house.say(&anna, &room, text).await;
        }
        assert_eq!(messages().await, [(0, 3)]);
        house.rooms.write_days().await.unwrap();
        assert_eq!(messages().await, [(0, 3)], "written once");
        house.clock.advance(Duration::from_millis(DAY_MS));
        house.say(&anna, &room, "four").await;
        house.rooms.write_days().await.unwrap();
        house.rooms.write_days().await.unwrap();
        assert_eq!(messages().await, [(1, 3), (0, 1)]);
        // A year later they are gone.
        house.clock.advance(Duration::from_millis(366 * DAY_MS));
        house.say(&anna, &room, "five").await;
        house.rooms.write_days().await.unwrap();
        assert_eq!(messages().await, [(0, 1)]);
    }
}
