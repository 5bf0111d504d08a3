//! Removes old messages: those that the owner's setting, or the room's own `m.room.retention` (MSC1763), says are to go.
//!
//! What the room needs to go on stays: events of its state, which also are all that others authorise with, redactions, the
//! newest events, and whatever newer events relate to. What goes is not fetched again, as no gap is left where it was. Its
//! words are noted, and go out of the index when all of a removal is over (`words.rs`).

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::{PAUSE, ROWS_MAX};
use crate::base::Worker;
use crate::room::Rooms;
use crate::room::append::relations::relation_of;
use crate::room::error::Result;
use crate::room::state::{self, event::load_row};
use crate::store::tables::room::event_row::{Kind, Row};
use crate::store::tables::room::search::{Down, stale};
use crate::store::tables::room::{self, Status, event, relation, timeline};
use crate::store::tables::user;
use crate::store::{self, RoomNum, Write, WriteError};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Events looked at in one write; those that go are about four rows each, and those of the relations to them: behind
/// [`ROWS_MAX`] of all these the write ends.
const EVENTS_A_STEP: usize = 200;
/// Relations to one event that are looked at: one that has more stays.
const RELATIONS_MAX: usize = 100;

/// What goes by itself.
#[derive(Default)]
pub struct Keeping {
    /// Rooms that everybody here has left and forgotten.
    pub left: AtomicBool,
    /// Days after which messages go in rooms that say nothing themselves; 0 for never.
    history_days: AtomicU32,
    /// A room's own lifetime counts, but for no less than so many days; 0: it does not count.
    retention_days_min: AtomicU32,
    /// The day on which old messages were looked for to the end.
    looked_day: AtomicU64,
}

/// How long messages live, in milliseconds; none: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// In rooms that say nothing.
    pub unsaid_ms: Option<u64>,
    /// What a room says counts within these bounds, which are one where it does not count at all.
    pub own_min_ms: Option<u64>,
    pub own_max_ms: Option<u64>,
}

/// Which messages of a room go.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// Those sent before this time,
    pub before_ms: u64,
    /// and standing before this place.
    pub before_order: i64,
    /// Those of people here stay.
    pub keeps_own: bool,
}

impl Reach {
    /// Everything sent before a time, whose ever it is.
    pub fn before(before_ms: u64) -> Reach {
        Reach { before_ms, before_order: i64::MAX, keeps_own: false }
    }

    fn holds(&self, row: &Row) -> bool {
        row.origin_server_ts < self.before_ms && row.order.is_some_and(|order| order < self.before_order)
    }
}

impl Rooms {
    /// How long messages stay. `serve` says so once.
    pub fn set_history_days(&self, history_days: Option<u32>, retention_days_min: Option<u32>) {
        self.0.keeping.history_days.store(history_days.unwrap_or(0), Relaxed);
        self.0.keeping.retention_days_min.store(retention_days_min.unwrap_or(0), Relaxed);
    }

    /// How long messages live here: where a room says nothing, and what a room may say.
    pub fn lifetimes(&self) -> Lifetimes {
        let keeping = &self.0.keeping;
        let of = |days: &AtomicU32| Some(u64::from(days.load(Relaxed)) * DAY_MS).filter(|ms| *ms > 0);
        let (unsaid_ms, own_min_ms) = (of(&keeping.history_days), of(&keeping.retention_days_min));
        let own_max_ms = unsaid_ms.map(|days| days.max(own_min_ms.unwrap_or(0)));
        Lifetimes { unsaid_ms, own_min_ms: own_min_ms.or(unsaid_ms), own_max_ms }
    }

    /// Once a day removes what the settings and the rooms say is to go.
    pub(super) async fn keep_history(&self, worker: &Worker) -> Result<()> {
        let (now_ms, keeping) = (self.0.parts.clock.settled_ms(), &self.0.keeping);
        let (days, min) = (keeping.history_days.load(Relaxed), keeping.retention_days_min.load(Relaxed));
        let today = now_ms / DAY_MS;
        if days == 0 && min == 0 || keeping.looked_day.load(Relaxed) == today {
            return Ok(());
        }
        let (mut after, mut all, mut failed) = (None, (0, 0), None);
        while let Some((num, own_ms)) = self.resident_after(after).await? {
            after = Some(num);
            let Some(lifetime_ms) = lifetime_ms(own_ms, days, min) else { continue };
            worker.works_on("removing old messages");
            match self.purge_room_history(num, Reach::before(now_ms.saturating_sub(lifetime_ms))).await {
                Ok((events, bytes)) => {
                    worker.done(events);
                    all = (all.0 + events, all.1 + bytes);
                }
                // One room with a damaged row holds up none of the others.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if all.0 > 0 {
            tracing::info!(events = all.0, bytes = all.1, "old messages were removed");
        }
        match failed {
            // The next look tries it again.
            Some(failed) => Err(failed),
            None => {
                keeping.looked_day.store(today, Relaxed);
                Ok(())
            }
        }
    }

    /// The next room that people here are in, and how long it says that messages live.
    pub(in crate::room) async fn resident_after(
        &self,
        after: Option<RoomNum>,
    ) -> Result<Option<(RoomNum, Option<u64>)>> {
        self.reading(move |_, read| {
            let mut found = None;
            room::list_after(read, after, &mut |num, row| {
                if row.status != Status::Resident {
                    return Ok(ControlFlow::Continue(()));
                }
                found = Some(num);
                Ok(ControlFlow::Break(()))
            })?;
            let Some(num) = found else { return Ok(None) };
            let own = match state::known_num(read, num) {
                Ok(known) => match state::event::content(read, &known, "m.room.retention")? {
                    Some(content) => Some(content),
                    None => state::event::content(read, &known, "org.matrix.msc1763.retention")?,
                },
                Err(_) => None,
            };
            Ok(Some((num, own.and_then(|content| content["max_lifetime"].as_u64()))))
        })
        .await
    }

    /// Removes what a reach holds, a step at a time. Answers how many messages, and their bytes.
    pub(in crate::room) async fn purge_room_history(&self, num: RoomNum, reach: Reach) -> Result<(u64, u64)> {
        let (mut from, mut events, mut bytes) = (i64::MIN, 0, 0);
        loop {
            let job = move |w: &mut Write<'_>| step(w, num, from, reach);
            let (done, _) = self.0.parts.store.write_freeing(job).await.map_err(WriteError::into_inner)?;
            (events, bytes) = (events + done.events, bytes + done.bytes);
            self.note_removed(done.events);
            match done.next {
                Some(next) => from = next,
                None => {
                    self.make_space_after_much();
                    return Ok((events, bytes));
                }
            }
            self.0.parts.clock.sleep(PAUSE).await;
        }
    }
}

/// How long messages of a room live: as it says itself, within the owner's bounds, or else as the owner says.
fn lifetime_ms(own_ms: Option<u64>, days: u32, min: u32) -> Option<u64> {
    let of = |days: u32| (days > 0).then_some(u64::from(days) * DAY_MS);
    match (own_ms, of(min)) {
        (Some(own), Some(min)) => Some(own.max(min).min(of(days).unwrap_or(u64::MAX).max(min))),
        _ => of(days),
    }
}

struct Step {
    events: u64,
    bytes: u64,
    /// The place to go on from; none at the first newer message.
    next: Option<i64>,
}

/// Looks at some events of a room's timeline, and removes the old messages among them.
fn step(w: &mut Write<'_>, num: RoomNum, from: i64, reach: Reach) -> store::Result<Step> {
    let mut done = Step { events: 0, bytes: 0, next: None };
    let Some(mut row) = room::get(w, num)? else { return Ok(done) };
    let Ok(known) = state::known_num(w, num) else { return Ok(done) };
    let (mut page, mut is_any_old) = (Vec::new(), false);
    timeline::forward(w, num, from, i64::MAX - 1, &mut |order, event| {
        page.push((order, event));
        Ok(if page.len() < EVENTS_A_STEP { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let (mut rows, mut reached, mut newest, mut is_full) = (0, None, None, page.len() == EVENTS_A_STEP);
    for (order, at) in &page {
        if rows >= ROWS_MAX {
            is_full = true;
            break;
        }
        reached = Some(*order);
        let Some(old) = event::row(w, *at)? else { continue };
        if !reach.holds(&old) {
            continue;
        }
        is_any_old = true;
        let stays = old.is_state() || old.kind == Kind::REDACTION || row.extremities.contains(at);
        let is_kept = reach.keeps_own && user::is_local(w, old.sender)?;
        if stays || is_kept || is_needed(w, num, *at, reach)? {
            continue;
        }
        let event = load_row(w, known.version, &old)?;
        if let Some((rel, target)) = relation_of(w, num, &event)? {
            relation::remove(w, num, target, rel, *order)?;
        }
        rows += 4 + relation::remove_all(w, num, *at, RELATIONS_MAX)?;
        timeline::remove(w, num, *order)?;
        event::remove(w, *at)?;
        let bytes = event.to_federation().len() as u64;
        (row.events, row.bytes) = (row.events.saturating_sub(1), row.bytes.saturating_sub(bytes));
        (done.events, done.bytes) = (done.events + 1, done.bytes + bytes);
        newest = Some(*order);
    }
    if let Some(newest) = newest {
        room::put(w, num, &row)?;
        stale::note(w, num, Down::of(newest))?;
    }
    done.next = reached.filter(|_| is_full && is_any_old);
    Ok(done)
}

/// Whether something newer relates to an event, such as the latest answer in a thread.
fn is_needed(w: &Write<'_>, room: RoomNum, at: store::EventNum, reach: Reach) -> store::Result<bool> {
    let (mut is_needed, mut looked) = (false, 0);
    relation::list(w, room, at, None, &mut |_, _, related| {
        looked += 1;
        let is_newer = event::row(w, related)?.is_some_and(|row| !reach.holds(&row));
        is_needed = is_newer || looked > RELATIONS_MAX;
        Ok(if is_needed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(is_needed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::room::testing::house;

    #[test]
    fn a_room_says_how_long_within_the_owners_bounds() {
        let days = |days: u64| Some(days * DAY_MS);
        for (own, history, min, expected) in [
            (None, 0, 0, None),
            (None, 30, 0, days(30)),
            (days(5), 30, 0, days(30)),
            (days(5), 30, 1, days(5)),
            (days(5), 0, 7, days(7)),
            (days(500), 30, 1, days(30)),
            (None, 0, 7, None),
        ] {
            assert_eq!(lifetime_ms(own, history, min), expected, "{own:?} {history} {min}");
        }
    }

    /// Apps were told that no message ever goes, and what a room says under the proposal's name did not count.
    #[tokio::test]
    async fn lifetimes_are_told_and_rooms_may_say_theirs_by_the_older_name() {
        let house = house();
        let days = |days: u64| Some(days * DAY_MS);
        for (history, min, unsaid, bounds) in [
            (None, None, None, (None, None)),
            (Some(30), None, days(30), (days(30), days(30))),
            (None, Some(2), None, (days(2), None)),
            (Some(30), Some(2), days(30), (days(2), days(30))),
        ] {
            house.rooms.set_history_days(history, min);
            let Lifetimes { unsaid_ms, own_min_ms, own_max_ms } = house.rooms.lifetimes();
            assert_eq!((unsaid_ms, (own_min_ms, own_max_ms)), (unsaid, bounds), "{history:?} {min:?}");
        }
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        for (kind, lifetime_ms) in [("org.matrix.msc1763.retention", 5), ("m.room.retention", 7)] {
            house.send(&anna, &room, kind, Some(""), json!({ "max_lifetime": lifetime_ms })).await.unwrap();
            let (_, own_ms) = house.rooms.resident_after(None).await.unwrap().unwrap();
            assert_eq!(own_ms, Some(lifetime_ms));
        }
    }

    /// A clock that was ten years ahead for an hour had every message removed that was to stay for a month.
    #[tokio::test]
    async fn a_clock_that_is_years_ahead_removes_nothing() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        let first = house.say(&anna, &room, "first").await;
        house.say(&anna, &room, "second").await;
        let has = |id: &ruma::EventId| event::num(&house.store.read().unwrap(), id.as_str()).unwrap().is_some();
        house.rooms.set_history_days(Some(30), None);
        let worker = Worker::new("purge", &house.clock);
        house.rooms.keep_history(&worker).await.unwrap();
        house.clock.set_forward(std::time::Duration::from_millis(3650 * DAY_MS));
        for _ in 0..3 {
            house.rooms.keep_history(&worker).await.unwrap();
            assert!(has(&first));
            house.clock.advance(std::time::Duration::from_millis(DAY_MS));
        }
        // It was right after all.
        let ticking = async {
            loop {
                tokio::task::yield_now().await;
                house.clock.advance(std::time::Duration::from_millis(50));
            }
        };
        tokio::select! {
            done = house.rooms.keep_history(&worker) => done.unwrap(),
            () = ticking => unreachable!("it ticks for ever"),
        }
        assert!(!has(&first));
    }

    /// Old messages go, in all their rows; the state stays, and whatever newer events need.
    #[tokio::test]
    async fn old_messages_go_and_the_room_goes_on() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        let say = async |content| house.send(&anna, &room, "m.room.message", None, content).await.unwrap();
        let text = |body: &str| json!({ "msgtype": "m.text", "body": body });
        let answers = |body: &str, rel: &str, to: &str| json!({ "msgtype": "m.text", "body": body, "m.relates_to": { "rel_type": rel, "event_id": to } });
        let old = say(text("old")).await;
        let edit = say(answers("older", "m.replace", old.as_str())).await;
        let root = say(text("root")).await;
        let early = say(answers("early", "m.thread", root.as_str())).await;
        for n in 0..500 {
            say(text(&n.to_string())).await;
        }
        house.clock.advance(std::time::Duration::from_millis(40 * DAY_MS));
        let late = say(answers("late", "m.thread", root.as_str())).await;
        let read = || house.store.read().unwrap();
        let has = |id: &ruma::EventId| event::num(&read(), id.as_str()).unwrap().is_some();
        let num = room::num(&read(), room.as_str()).unwrap().unwrap();
        let reach = Reach::before(house.clock.now_ms() - 30 * DAY_MS);
        let purging = async {
            loop {
                house.clock.pass(std::time::Duration::from_millis(50)).await;
            }
        };
        let (events, bytes) = tokio::select! {
            done = house.rooms.purge_room_history(num, reach) => done.unwrap(),
            () = purging => unreachable!("it ticks for ever"),
        };
        assert_eq!(events, 503, "all but the root");
        assert!(bytes > 503 * 200);
        assert!(!has(&old) && !has(&edit) && !has(&early) && has(&root) && has(&late));
        let root_num = event::num(&read(), root.as_str()).unwrap().unwrap();
        let mut related = Vec::new();
        relation::list(&read(), num, root_num, None, &mut |_, _, event| {
            related.push(event);
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        assert_eq!(related, [event::num(&read(), late.as_str()).unwrap().unwrap()]);
        // Everything that is left in the timeline can be read.
        timeline::forward(&read(), num, i64::MIN, i64::MAX - 1, &mut |_, at| {
            let row = event::row_of(&read(), at)?;
            event::body(&read(), &row)?;
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        say(text("on")).await;
        assert_eq!(house.rooms.purge_room_history(num, reach).await.unwrap(), (0, 0));
    }
}
