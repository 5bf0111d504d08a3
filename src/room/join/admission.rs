//! Which rooms of other servers may be joined: an estimate before the join, and the admin's decision on it.
//!
//! The estimate comes from a resident server's complexity endpoint where it has one: entries of the present state /
//! 500. A room with few events one after the other is not asked about. The rest of a join is in proportion: some 2.3 events for each entry, some 420 bytes on disk for each event
//! until it is compacted (`BIG-ROOMS`, measured). A room that outgrows its estimate by far is stopped.

use std::time::Duration;

use http::Method;
use ruma::{OwnedServerName, RoomId, UserId};

use super::build::authorize::COLUMN_BYTES;
use crate::base::shares::{Held, of_the_busiest};
use crate::budget::Refused;
use crate::matrix::json::partial;
use crate::remote::{Options, Urgency, encode};
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::store::Get;
use crate::store::tables::room;
use crate::store::tables::room::join;
use crate::store::tables::room::join::Allowed;

/// The handling of a room that is larger than this server takes without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Policy {
    /// Any room that fits the memory budget's scratch space and the disk.
    #[default]
    Allow,
    /// Large rooms wait until an admin allows them.
    Ask,
    /// Large rooms are refused.
    Refuse,
}

/// The size of a join, as far as can be told beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    pub events: u64,
    pub disk_bytes: u64,
    pub minutes: u64,
}

/// Entries of the state for one unit of complexity.
const STATE_PER_UNIT: f64 = 500.0;
const EVENTS_PER_STATE: f64 = 2.3;
const DISK_BYTES_PER_EVENT: u64 = 420;
/// Memory that a join holds for each event at once: its places in the order, which are more than one where the table of
/// ids forgets, or its columns, and its number where the room is known already.
const MEMORY_BYTES_PER_EVENT: u64 = 7;
const MEMORY_BYTES_PER_EVENT_KNOWN: u64 = COLUMN_BYTES + 4;
const MEMORY_BYTES_PER_NODE: u64 = 4;
/// Memory beside that: rows on their way, sorters at their smallest.
const MEMORY_BYTES_BESIDE: u64 = 768 * 1024;

/// Memory for ordering and authorising a room, as far as it grows with the room.
pub(in crate::room) fn settling_bytes(nodes: u32, events: u64) -> u64 {
    (u64::from(nodes) * MEMORY_BYTES_PER_NODE).max(events * MEMORY_BYTES_PER_EVENT_KNOWN) + MEMORY_BYTES_BESIDE
}
/// Events a second on the smallest board; a careful guess for people, not a limit.
const EVENTS_PER_SECOND: u64 = 2_000;
/// Under `ask` and `refuse`, a room is large from here on: about 9,000 members.
const LARGE_EVENTS: u64 = 20_000;
/// Free disk a join leaves alone, times the estimate, in tenths.
const DISK_TENTHS: u64 = 15;
/// A join may bring so many times its estimate, and never less than this.
const OUTGROWN_TIMES: u64 = 4;
const OUTGROWN_EVENTS_MIN: u64 = 50_000;
/// A room in which our event would come at this depth or before has about as few events, and is joined in a second: to ask how
/// large it is would take as long. A server that names too low a depth meets the bound of a room that outgrows its estimate.
const SHALLOW_DEPTH: u64 = 1_000;
/// Servers asked how large the room is.
const ASKED_MAX: usize = 2;
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Rooms kept in the list of requests, so that made-up room ids cannot fill a table.
pub const ASKED_ROOMS_MAX: usize = 200;

impl Estimate {
    fn of_complexity(units: f64) -> Estimate {
        Estimate::of_events((units.clamp(0.0, 1e7) * STATE_PER_UNIT * EVENTS_PER_STATE) as u64)
    }

    fn of_events(events: u64) -> Estimate {
        Estimate {
            events,
            disk_bytes: events * DISK_BYTES_PER_EVENT,
            minutes: (events / EVENTS_PER_SECOND).div_ceil(60),
        }
    }
}

/// The bounds of a join, past which it is stopped.
#[derive(Clone, Copy, Debug)]
pub struct Admitted {
    /// 0 when no server gives an estimate.
    pub events_expected: u64,
    pub events_max: u64,
    pub body_bytes_max: u64,
    /// An admin allowed it whatever its size.
    pub overridden: bool,
    /// An admin's permission would let more in: the bound is neither memory nor disk.
    pub liftable: bool,
}

/// Whether a room may be joined, and how far. `depth`: that of our event, after all of the room's.
pub async fn admit(
    rooms: &Rooms,
    room_id: &RoomId,
    user: &UserId,
    servers: &[OwnedServerName],
    depth: u64,
) -> Result<Admitted> {
    rooms.0.parts.store.check_spare()?;
    let estimate = match (1..=SHALLOW_DEPTH).contains(&depth) {
        true => Some(Estimate::of_events(depth)),
        false => estimate(rooms, room_id, servers).await,
    };
    let room = room_id.to_owned();
    let allowed = rooms.reading(move |_, read| Ok(join::allowed(read, room.as_str())?)).await?;
    let overridden = allowed.is_some_and(|allowed| allowed.allowed);
    let known = is_partly_known(rooms, room_id).await?;
    let admitted = admitted(rooms, estimate, overridden, known)?;
    let policy = *rooms.0.joins.policy.lock();
    if overridden || policy == Policy::Allow {
        return Ok(admitted);
    }
    // Where no server gives the size of a room, the join itself shows it.
    let events_max = admitted.events_max.min(LARGE_EVENTS);
    let Some(estimate) = estimate.filter(|estimate| estimate.events >= LARGE_EVENTS) else {
        let liftable = admitted.liftable || events_max < admitted.events_max;
        return Ok(Admitted { events_max, liftable, ..admitted });
    };
    let size = in_words(&estimate);
    if policy == Policy::Refuse {
        return Err(too_large(format!(
            "The room is too large for this server ({size}), which joins rooms of up to {LARGE_EVENTS} events. An \
             administrator of the server can allow it with: snug rooms allow {room_id}"
        )));
    }
    note_asked(rooms, room_id, user, estimate.events).await?;
    Err(too_large(format!(
        "The room is large ({size}), and rooms of more than {LARGE_EVENTS} events need the permission of an \
         administrator of this server: snug rooms allow {room_id}"
    )))
}

/// The bounds of a join that was admitted before a restart.
pub async fn admit_again(rooms: &Rooms, room_id: &RoomId, events_expected: u64, overridden: bool) -> Result<Admitted> {
    let estimate = (events_expected > 0).then(|| Estimate::of_events(events_expected));
    let known = is_partly_known(rooms, room_id).await?;
    admitted(rooms, estimate, overridden, known)
}

/// Whether events of the room are here from an earlier stay.
async fn is_partly_known(rooms: &Rooms, room_id: &RoomId) -> Result<bool> {
    let room = room_id.to_owned();
    rooms
        .reading(move |_, read| match room::num(read, room.as_str())? {
            Some(num) => Ok(room::get(read, num)?.is_some_and(|row| row.events > 0)),
            None => Ok(false),
        })
        .await
}

/// The bounds of memory and disk, which an admin cannot lift.
fn admitted(rooms: &Rooms, estimate: Option<Estimate>, overridden: bool, known: bool) -> Result<Admitted> {
    let memory = rooms.0.parts.budget.account("join").limit().saturating_sub(MEMORY_BYTES_BESIDE);
    let free = rooms.0.parts.store.spare_bytes();
    let by_memory = memory / if known { MEMORY_BYTES_PER_EVENT_KNOWN } else { MEMORY_BYTES_PER_EVENT };
    let by_disk = free / DISK_BYTES_PER_EVENT / DISK_TENTHS * 10;
    let events_max = by_memory.min(by_disk);
    if let Some(estimate) = estimate.filter(|estimate| estimate.events > events_max) {
        let (size, megabytes) = (in_words(&estimate), free / 1_000_000);
        return Err(too_large(match by_disk < by_memory {
            true => format!(
                "The room is too large for this server's disk ({size}; {megabytes} MB are free beside the part \
                 reserved for local users)."
            ),
            false => format!(
                "The room is too large for this server's memory budget ({size}; the budget allows {by_memory} \
                 events). An administrator can choose a larger budget."
            ),
        }));
    }
    let outgrown = match estimate {
        Some(estimate) if !overridden => (estimate.events * OUTGROWN_TIMES).max(OUTGROWN_EVENTS_MIN),
        _ => u64::MAX,
    };
    let liftable = outgrown < events_max;
    let events_max = events_max.min(outgrown);
    Ok(Admitted {
        liftable,
        events_expected: estimate.map_or(0, |estimate| estimate.events),
        events_max,
        // An event in a body takes some 800 bytes; the bound is twice that, with an allowance for small rooms.
        body_bytes_max: events_max.saturating_mul(1600).saturating_add(16 << 20),
        overridden,
    })
}

/// A room that was taken for smaller has outgrown the size allowed without an admin: the join waits for permission.
pub async fn outgrown(rooms: &Rooms, room_id: &RoomId, user: &UserId, admitted: &Admitted) -> Result<()> {
    note_asked(rooms, room_id, user, admitted.events_max).await
}

async fn note_asked(rooms: &Rooms, room_id: &RoomId, user: &UserId, events: u64) -> Result<()> {
    let (room_id, user_id) = (room_id.to_owned(), user.to_string());
    let at_ms = rooms.0.parts.clock.now_ms();
    rooms
        .write(move |w| {
            if join::allowed(w, room_id.as_str())?.is_some() {
                return Ok(());
            }
            let listed = join::list_allowed(w, ASKED_ROOMS_MAX)?;
            if listed.len() == ASKED_ROOMS_MAX {
                let Some(room) = asked_by_the_busiest(w, listed, &user_id) else { return Ok(()) };
                join::set_allowed(w, &room, None)?;
            }
            let asked = Allowed { allowed: false, user_id, events, at_ms };
            Ok(join::set_allowed(w, room_id.as_str(), Some(&asked))?)
        })
        .await
}

/// The estimate of the resident servers; `None` when none of them gives one.
async fn estimate(rooms: &Rooms, room_id: &RoomId, servers: &[OwnedServerName]) -> Option<Estimate> {
    let target = format!("/_matrix/federation/unstable/rooms/{}/complexity", encode(room_id.as_str()));
    let options = Options { timeout: ASK_TIMEOUT, max_bytes: 4096, urgency: Urgency::Person };
    for server in servers.iter().take(ASKED_MAX) {
        let answer = rooms.0.parts.remote.request(server, Method::GET, &target, None, options).await.ok();
        if let Some(units) = answer.and_then(|answer| partial::member(&answer.body, "v1")) {
            return Some(Estimate::of_complexity(units));
        }
    }
    None
}

/// The room to forget in favour of one that `user_id` asks for: the oldest request of the user with the most requests.
/// Rooms that an admin allowed stay.
fn asked_by_the_busiest(get: &impl Get, listed: Vec<(String, Allowed)>, user_id: &str) -> Option<String> {
    let held = |user_id: &str, age, key| {
        let [a, b, c, d, ..] = get.hash128(&[user_id.as_bytes()]);
        Held { owner: u32::from_be_bytes([a, b, c, d]), within: 0, age, weight: 1, key }
    };
    let asked = listed.into_iter().filter(|(_, asked)| !asked.allowed);
    let mut all: Vec<_> = asked.map(|(room, asked)| held(&asked.user_id, asked.at_ms, Some(room))).collect();
    all.push(held(user_id, u64::MAX, None));
    of_the_busiest(all, 1).pop()?
}

fn in_words(estimate: &Estimate) -> String {
    let Estimate { events, disk_bytes, minutes } = estimate;
    format!("about {events} events, {} MB on disk, {minutes} min", disk_bytes.div_ceil(1_000_000))
}

fn too_large(message: String) -> Error {
    Error::Bad { errcode: "M_RESOURCE_LIMIT_EXCEEDED", message }
}

/// No memory for a join at present.
pub(in crate::room) fn busy(refused: Refused) -> Error {
    Error::Refused(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_of_the_largest_rooms_is_about_what_they_are() {
        let estimate = Estimate::of_complexity(170.0);
        assert!((190_000..200_000).contains(&estimate.events), "{estimate:?}");
        assert!((75_000_000..90_000_000).contains(&estimate.disk_bytes));
        assert_eq!(Estimate::of_complexity(-1.0).events, 0);
        assert!(Estimate::of_complexity(f64::INFINITY).events > 1_000_000);
    }

    /// Two hundred requests of one user filled the list that an admin is shown.
    #[test]
    fn who_asked_for_most_is_forgotten_first() {
        let get = crate::store::Store::in_memory().read().unwrap();
        let asked = |allowed, user_id: &str, at_ms| Allowed { allowed, user_id: user_id.to_owned(), events: 0, at_ms };
        let listed = [
            asked(true, "@busy:h", 0),
            asked(false, "@once:h", 1),
            asked(false, "@busy:h", 2),
            asked(false, "@busy:h", 3),
        ];
        let listed: Vec<_> = listed.into_iter().enumerate().map(|(n, asked)| (format!("!{n}:x"), asked)).collect();
        for by in ["@busy:h", "@new:h"] {
            assert_eq!(asked_by_the_busiest(&get, listed.clone(), by).as_deref(), Some("!2:x"), "{by}");
        }
        assert_eq!(asked_by_the_busiest(&get, listed[..1].to_vec(), "@new:h"), None, "all are allowed");
    }
}
