//! Frees state nodes that no row refers to any more: the remains of cancelled joins and purged rooms. And what redacted events
//! said, once its time is over.
//!
//! The rules of a sweep are the store's (`store/tables/room/state_tree/sweep.rs`). Here is its pace: small steps with
//! pauses, so that other writes do not wait for long, and a day between two sweeps. A sweep that fails takes its
//! declaration back.

use std::time::Duration;

use crate::base::{self, Worker};
use crate::budget::Grant;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::store::tables::room::redacted;
use crate::store::tables::room::state_tree::sweep::{self, Sweep};

/// A board that is switched off every night must reach its first sweep too.
const FIRST: Duration = Duration::from_secs(3600);
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// Longer than anything but a join holds a state that no row refers to yet.
const GRACE: Duration = Duration::from_secs(15 * 60);

/// Fewer new nodes than this are not worth a look at every row: 1.5 MB or so, if all of them were to go.
const NODES_MIN: u32 = 20_000;

/// Rows looked at in a step, a few milliseconds on a small board. The snapshot is held over all steps, so the pauses
/// between these are short.
const ROWS_A_STEP: usize = 2000;
const NODES_A_STEP: usize = 500;
const REDACTED_A_STEP: usize = 100;
const PAUSE: Duration = Duration::from_millis(20);

impl Rooms {
    /// Sweeps now and then, as long as the server runs. A unit of the worker is a state node
    /// that was freed.
    pub async fn keep_swept(&self, worker: &Worker) {
        give_up(self).await;
        let mut pause = FIRST;
        loop {
            worker.idle_for(pause);
            let is_wanted = tokio::select! {
                () = self.0.parts.clock.sleep(pause) => false,
                () = self.0.sweep.notified() => true,
            };
            pause = EVERY;
            worker.works_on("looking for unused state nodes");
            if let Err(failed) = forget_redacted(self).await {
                tracing::warn!(%failed, "what redacted events said could not be removed; this is tried again tomorrow");
                worker.failed(failed);
            }
            let swept = match is_wanted {
                true => sweep(self).await,
                false => sweep_if_worthwhile(self).await,
            };
            match swept {
                Ok(Some(freed)) => {
                    tracing::info!(freed, "unused state nodes were freed");
                    worker.done(freed);
                }
                Ok(None) => {}
                Err(failed) => {
                    tracing::warn!(%failed, "the sweep of unused state failed; the next one runs tomorrow");
                    worker.failed(failed);
                }
            }
        }
    }
}

/// Removes what redacted events said, once nobody may see it any more.
pub async fn forget_redacted(rooms: &Rooms) -> Result<()> {
    let upto_ms = match rooms.redacted_kept_ms() {
        0 => u64::MAX,
        kept_ms => rooms.0.parts.clock.settled_ms().saturating_sub(kept_ms),
    };
    while rooms.reading(move |_, read| Ok(redacted::is_any(read, upto_ms)?)).await? {
        let gone = rooms.write(move |w| Ok(redacted::sweep(w, upto_ms, REDACTED_A_STEP)?)).await?;
        if gone < REDACTED_A_STEP {
            break;
        }
        rooms.0.parts.clock.sleep(PAUSE).await;
    }
    Ok(())
}

async fn sweep_if_worthwhile(rooms: &Rooms) -> Result<Option<u64>> {
    let made = rooms.reading(|_, read| Ok(sweep::made_since_last(read)?)).await?;
    if made < NODES_MIN { Ok(None) } else { sweep(rooms).await }
}

/// One sweep; answers how many nodes it freed, or none when a join is in its way.
pub async fn sweep(rooms: &Rooms) -> Result<Option<u64>> {
    let made = rooms.reading(|_, read| Ok(sweep::made(read)?)).await?;
    let grant = rooms.0.parts.budget.account("state_nodes").take(sweep::bytes_needed(made)).await?;
    let Some(limit) = freeing(rooms, |w| Ok(sweep::begin(w)?)).await? else { return Ok(None) };
    let swept = mark_and_free(rooms, limit, grant).await;
    if swept.is_err() {
        give_up(rooms).await;
    }
    swept.map(Some)
}

async fn mark_and_free(rooms: &Rooms, limit: u32, grant: Grant) -> Result<u64> {
    let parts = &rooms.0.parts;
    parts.clock.sleep(GRACE).await;
    let mut sweep = Sweep::over(parts.store.read()?, limit, grant)?;
    let mut ended = false;
    while !ended {
        (sweep, ended) = base::blocking(move || {
            let ended = sweep.mark(ROWS_A_STEP)?;
            Ok::<_, Error>((sweep, ended))
        })
        .await?;
        parts.clock.sleep(PAUSE).await;
    }
    ended = false;
    while !ended {
        (sweep, ended) = freeing(rooms, move |w| {
            let ended = sweep.free(w, NODES_A_STEP)?;
            Ok((sweep, ended))
        })
        .await?;
        parts.clock.sleep(PAUSE).await;
    }
    Ok(sweep.freed())
}

/// Takes back the declaration of a sweep that failed, or that a power cut ended.
async fn give_up(rooms: &Rooms) {
    let given_up = async {
        match rooms.reading(|_, read| Ok(sweep::is_declared(read)?)).await? {
            true => freeing(rooms, |w| Ok(sweep::give_up(w)?)).await,
            false => Ok(()),
        }
    };
    if let Err(failed) = given_up.await {
        tracing::warn!(%failed, "the end of a sweep of unused state could not be stored");
    }
}

/// A write that is allowed when the disk is full.
async fn freeing<T: Send + 'static>(
    rooms: &Rooms,
    job: impl FnOnce(&mut crate::store::Write<'_>) -> Result<T> + Send + 'static,
) -> Result<T> {
    Ok(rooms.0.parts.store.write_freeing(job).await?.0)
}

#[cfg(test)]
mod tests {
    use crate::store::tables::room::join;
    use serde_json::json;

    use super::*;
    use crate::room::testing::{House, house};
    use crate::store::schema::STATE_NODE;
    use crate::store::tables::room::join::{Journal, Stage};

    use crate::store::tables::room::state_tree;
    use crate::store::{EventNum, Get, StateKeyNum, Write};

    fn nodes(house: &House) -> usize {
        let mut count = 0;
        let counting = &mut |_: &[u8], _: &[u8]| {
            count += 1;
            Ok(std::ops::ControlFlow::Continue(()))
        };
        house.read().range(&STATE_NODE, &[], None, false, counting).unwrap();
        count
    }

    /// As a cancelled join leaves them: trees that no row refers to.
    async fn litter(house: &House, of: u32) {
        let job = move |w: &mut Write<'_>| {
            let mut root = None;
            for key in 0..8_000 {
                root = Some(state_tree::set(w, root, &[(StateKeyNum(key), Some(EventNum(of + key)))])?);
            }
            Ok::<_, crate::store::Error>(())
        };
        house.store.write(job).await.unwrap();
    }

    /// Advances the time until `done`, with users talking and changing the state meanwhile.
    async fn in_time(house: &House, step: Duration, mut meanwhile: impl AsyncFnMut(u32), done: impl Fn() -> bool) {
        for turn in 0..5_000 {
            if done() {
                return;
            }
            house.clock.pass(step).await;
            meanwhile(turn).await;
        }
        panic!("it never came to that");
    }

    fn declared(house: &House) -> bool {
        sweep::is_declared(&house.read()).unwrap()
    }

    #[tokio::test]
    async fn what_no_row_names_is_gone_within_hours_and_nothing_else() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        let talk = async |turn: u32| {
            house.say(&anna, &room, "on we talk").await;
            let topic = json!({ "topic": turn % 7 });
            house.send(&anna, &room, "m.room.topic", Some(""), topic).await.unwrap();
        };
        talk(3).await;
        let before = nodes(&house);
        litter(&house, 10).await;
        let littered = nodes(&house);
        assert!(littered > before + NODES_MIN as usize, "{littered}");
        let keeping = tokio::spawn({
            let rooms = house.rooms.clone();
            async move { rooms.keep_swept(&Worker::new("sweep", &crate::base::Clock::simulated(0))).await }
        });
        in_time(&house, FIRST / 4, talk, || declared(&house)).await;
        // A join that begins only now neither disturbs the sweep nor is disturbed by it.
        let num = house.store.write(join::new_join).await.unwrap().0;
        house.store.write(move |w| join::set_journal(w, num, &journal())).await.unwrap();
        in_time(&house, GRACE / 40, talk, || !declared(&house)).await;
        let after = nodes(&house);
        assert!(after < before + 4_000, "{before}, {littered}, then {after}");
        assert!(house.state(&room, "m.room.topic", "").is_some());
        house.say(&anna, &room, "still here").await;
        snapshot_is_whole(&house, &room);

        // While a join is under way none begins; the next day one does.
        litter(&house, 20_000).await;
        in_time(&house, EVERY / 2, async |_| {}, || house.clock.instant() > 2 * EVERY).await;
        assert!(nodes(&house) > littered - before && !declared(&house));
        house.store.write(move |w| join::remove_journal(w, num)).await.unwrap();
        in_time(&house, EVERY / 8, async |_| {}, || declared(&house)).await;
        in_time(&house, GRACE / 40, async |_| {}, || !declared(&house)).await;
        assert!(nodes(&house) < after + 4_000);
        keeping.abort();
    }

    fn snapshot_is_whole(house: &House, room: &ruma::RoomId) {
        let mut page = Vec::new();
        let root = house.row(room).state.unwrap();
        assert!(state_tree::page(&house.read(), root, None, usize::MAX, &mut page).unwrap());
        assert!(page.len() >= 5, "{}", page.len());
    }

    fn journal() -> Journal {
        Journal {
            room_id: "!far:example.org".into(),
            user_id: "@anna:home.example".into(),
            version: "11".into(),
            stage: Stage::Asked,
            begun_ms: 0,
            residents: Vec::new(),
            content: Default::default(),
            event: None,
            event_id: None,
            attempt: 0,
            batches: 0,
            events: 0,
            bytes: 0,
            nodes: 0,
            forgetful: false,
            events_expected: 0,
            override_size: false,
            room: None,
            event_nums: None,
        }
    }

    /// After a power cut in the middle, nodes in use again stayed written down for ever.
    #[tokio::test]
    async fn what_a_power_cut_left_declared_is_taken_back_at_the_start() {
        let house = house();
        house.store.write(sweep::begin).await.unwrap();
        assert!(declared(&house));
        let rooms = house.rooms.clone();
        let keeping =
            tokio::spawn(
                async move { rooms.keep_swept(&Worker::new("sweep", &crate::base::Clock::simulated(0))).await },
            );
        in_time(&house, Duration::from_secs(1), async |_| {}, || !declared(&house)).await;
        keeping.abort();
    }
}
