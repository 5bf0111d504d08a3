//! Server-side search (client-server API, "Server Side Search").
//!
//! `terms.rs`: what the user looks for; `find.rs`: the events that have it; `answer.rs`: the answer, written event by event. The
//! index is kept by `room/words`.

use super::Reader;
use super::filter::Events;
use crate::base::{self, Chunks};
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::words::Key;
use crate::store::RoomNum;
use find::{Views, find};

mod answer;
mod find;
mod terms;
#[cfg(test)]
mod tests;

/// Results on one page.
pub const RESULTS_MAX: usize = 100;
/// What finding them holds: twice 512 places, a chunk for each of 16 words, the text of one event, and what is kept of 16 rooms.
const FIND_BYTES: u64 = 112 * 1024;
/// A room of the user's, with the place from which it is searched.
const ROOM_BYTES: u64 = 48;
/// Rooms searched for one user, those of a filter where there is one. With these a search fits the smallest account.
const ROOMS_MAX: u64 = 3_000;

/// What an app asks for.
#[derive(Clone, Debug)]
pub struct SearchQuery {
    pub term: String,
    pub keys: Vec<Key>,
    pub filter: Events,
    /// At most [`RESULTS_MAX`].
    pub limit: usize,
    /// The best first, instead of the newest.
    pub by_rank: bool,
    pub context: Option<Context>,
    pub include_state: bool,
    pub by_room: bool,
    pub by_sender: bool,
    pub batch: Option<Batch>,
}

/// The events around each result.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    pub before: usize,
    pub after: usize,
    pub profiles: bool,
}

/// A place among the events of all rooms, from which older ones follow. As a token: `b` and its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Batch {
    /// For an event from before our time in its room, when that began.
    pub(in crate::room) live: i64,
    pub(in crate::room) order: i64,
    pub(in crate::room) room: RoomNum,
    /// The group of one room that is gone on with.
    pub(in crate::room) within: Option<RoomNum>,
}

impl Batch {
    pub fn parse(text: &str) -> Option<Batch> {
        let mut parts = text.strip_prefix('b')?.split('_');
        let mut number = || parts.next();
        let (live, order) = (number()?.parse().ok()?, number()?.parse().ok()?);
        let (room, within) = (RoomNum(number()?.parse().ok()?), RoomNum(number()?.parse().ok()?));
        let within = Some(within).filter(|within| within.0 != 0);
        parts.next().is_none().then_some(Batch { live, order, room, within })
    }

    fn place(&self) -> (i64, i64, RoomNum) {
        (self.live, self.order, self.room)
    }
}

impl std::fmt::Display for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let within = self.within.map_or(0, |within| within.0);
        write!(f, "b{}_{}_{}_{within}", self.live, self.order, self.room)
    }
}

impl Rooms {
    /// Whether this server searches at all.
    pub fn is_searchable(&self) -> bool {
        self.0.words.options().enabled
    }

    /// Searches the rooms that a user is in or was in. `Forbidden` when the search is switched off.
    pub async fn search(&self, reader: &Reader, query: SearchQuery) -> Result<impl Chunks> {
        if !self.is_searchable() {
            return Err(Error::bad("M_UNKNOWN", "Search is disabled on this homeserver"));
        }
        let (user, counted) = (reader.user, self.clone());
        let rooms = base::blocking(move || {
            let (read, mut rooms) = (counted.read()?, 0);
            crate::store::tables::room::user_room::list_mine(&read, user, None, &mut |_, _| {
                rooms += 1;
                Ok(super::until(rooms == ROOMS_MAX))
            })?;
            Ok::<_, Error>(rooms)
        });
        let bytes = FIND_BYTES + ROOM_BYTES * rooms.await?;
        let grant = self.0.parts.budget.account("search").take(bytes).await?;
        let (rooms, reader) = (self.clone(), reader.clone());
        let (views, query, found) = base::blocking(move || {
            let _grant = grant;
            let mut views = Views::new(&rooms, &reader)?;
            let found = find(&mut views, &query)?;
            Ok::<_, Error>((views, query, found))
        })
        .await?;
        Ok(base::written(move |pen| answer::write(pen, views, query, found)))
    }
}
