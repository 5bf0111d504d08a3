//! Jumping to a date: the event nearest to a time, for apps.
//!
//! Client-server API, "Finding an event by its timestamp". Where the nearest event here lies at a part of the history that is
//! missing, other servers in the room are asked for theirs, and the missing part is fetched towards it, a few batches for one
//! request. What is not reached by then is not told when there is an event here: an app could show nothing of it, and whoever asks
//! again gets further.

use std::time::Duration;

use http::Method;
use ruma::{OwnedEventId, RoomId};

use super::{Reader, RoomView, visiting};
use crate::remote::{Options, Urgency, encode};
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::receive::backfill::{Gap, backfill_for_app};
use crate::room::state::event::{id_of, stored};
use crate::room::state::moment::{Direction, Moment, near, near_place};
use crate::room::state::servers::servers;
use crate::room::state::{known_num, num_of};
use crate::store::tables::room::timeline;

/// Batches of a hundred events fetched for one request.
const BATCHES_MAX: usize = 5;
/// Waiting for one server.
const EACH: Duration = Duration::from_secs(10);
/// An event's id and a number.
const ANSWER_BYTES_MAX: u64 = 4096;

/// What an app is told.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NearestEvent {
    pub event_id: OwnedEventId,
    pub origin_server_ts: u64,
}

impl Rooms {
    /// The event nearest to a time in a direction. `may_ask`: whether other servers may be asked.
    ///
    /// `NotFound` when there is none; `Forbidden` when the user may not see the room.
    pub async fn event_near(
        &self,
        reader: &Reader,
        room_id: &RoomId,
        wanted_ms: u64,
        direction: Direction,
        may_ask: impl FnOnce() -> bool,
    ) -> Result<NearestEvent> {
        let look = || visiting(self, reader, room_id, move |visit| visit.near(wanted_ms, direction));
        let (mut here, mut gap) = look().await?;
        let mut told = None;
        if gap.is_some() && may_ask() {
            told = self.ask_near(room_id, wanted_ms, direction).await?;
            told = told.filter(|told| {
                let distance = |ts: u64| ts.abs_diff(wanted_ms);
                direction.allows(wanted_ms, told.origin_server_ts)
                    && here
                        .as_ref()
                        .is_none_or(|here| distance(told.origin_server_ts) < distance(here.origin_server_ts))
            });
            for _ in 0..BATCHES_MAX {
                let (Some(wanted), Some(missing)) = (&told, gap) else { break };
                if self.is_placed(&wanted.event_id).await?
                    || !backfill_for_app(self, room_id, missing).await.unwrap_or(false)
                {
                    break;
                }
                gap = look().await?.1;
            }
            here = look().await?.0;
        }
        here.or(told).ok_or(Error::NotFound)
    }

    async fn is_placed(&self, id: &OwnedEventId) -> Result<bool> {
        let id = id.clone();
        self.reading(move |_, read| Ok(stored(read, id.as_str())?.is_some_and(|(_, row)| row.order.is_some()))).await
    }

    /// What the first of a room's servers that answers tells.
    async fn ask_near(&self, room_id: &RoomId, wanted_ms: u64, direction: Direction) -> Result<Option<NearestEvent>> {
        let num = num_of(self, room_id).await?;
        let asked = self.reading(move |rooms, read| servers(read, num, rooms.server())).await?;
        let (room, way) = (encode(room_id.as_str()), direction.as_str());
        let target = format!("/_matrix/federation/v1/timestamp_to_event/{room}?ts={wanted_ms}&dir={way}");
        let options = Options { timeout: EACH, max_bytes: ANSWER_BYTES_MAX, urgency: Urgency::Person };
        for server in asked {
            let answer = self.0.parts.remote.request(&server, Method::GET, &target, None, options).await;
            match answer.and_then(|answer| answer.json::<NearestEvent>()) {
                Ok((told, _paid)) => return Ok(Some(told)),
                Err(failed) => tracing::debug!(%server, %room_id, %failed, "the server told of no event near a time"),
            }
        }
        Ok(None)
    }
}

impl RoomView {
    /// The nearest event here, and the gap beside which it lies.
    fn near(&mut self, wanted_ms: u64, direction: Direction) -> Result<(Option<NearestEvent>, Option<Gap>)> {
        let read = self.read.clone();
        let room = known_num(&*read, self.num)?;
        let viewer = &mut self.viewer;
        let mut sees = |read: &crate::store::Read, row: &_| viewer.sees(read, row);
        let mut found = near(&*read, &room, wanted_ms, direction, &mut sees)?;
        if found.is_none()
            && direction == Direction::Forwards
            && let Some(mine) = self.viewer.mine
        {
            // Somebody who sees the room only since they came in.
            let (since, viewer) = (mine.since.0 as i64, &mut self.viewer);
            let mut sees = |read: &crate::store::Read, row: &_| viewer.sees(read, row);
            found = near_place(&*read, &room, since, wanted_ms, direction, &mut sees)?;
        }
        let gap = self.gap_beside(found, direction)?;
        let told = match found {
            Some(found) => Some(NearestEvent { event_id: id_of(&*read, found.num)?, origin_server_ts: found.ts }),
            None => None,
        };
        Ok((told, gap))
    }

    /// The missing part of the history between a time and the event found, from the other side of which it was looked for.
    fn gap_beside(&self, found: Option<Moment>, direction: Direction) -> Result<Option<Gap>> {
        let (read, num) = (&*self.read, self.num);
        let (below, above) = match (found, direction) {
            (Some(found), Direction::Forwards) => {
                (timeline::at_or_before(read, num, found.order - 1)?.map(|(order, _)| order), Some(found.order))
            }
            (Some(found), Direction::Backwards) => {
                (Some(found.order), timeline::first_after(read, num, found.order)?.map(|(order, _)| order))
            }
            // What is later than all of ours is nowhere; what is earlier may be elsewhere.
            (None, Direction::Forwards) => return Ok(None),
            (None, Direction::Backwards) => (None, timeline::first_after(read, num, i64::MIN)?.map(|(order, _)| order)),
        };
        let is_between =
            |bottom: i64| below.is_none_or(|below| below <= bottom) && above.is_some_and(|above| bottom < above);
        if let Some(hole) = self.room.holes.iter().rev().find(|hole| is_between(hole.bottom)) {
            return Ok(Some(Gap::Hole(hole.bottom)));
        }
        Ok((below.is_none() && self.begins_elsewhere()?).then_some(Gap::Beginning))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::testing::{START_MS, house};
    use serde_json::json;

    #[tokio::test]
    async fn a_date_leads_to_the_nearest_event() {
        let house = house();
        let (anna, ben) = (house.user("anna").await, house.user("ben").await);
        let room = house.public_room(&anna).await;
        let mut said = Vec::new();
        for nth in 0..40 {
            house.clock.advance(Duration::from_secs(60));
            said.push((house.say(&anna, &room, &nth.to_string()).await, house.clock.now_ms()));
        }
        let reader = |user: &ruma::UserId| Reader {
            user: house.user_num(user),
            user_id: user.to_owned(),
            device: "D".into(),
            sees_all: false,
        };
        let near = async |who: &ruma::UserId, ts: u64, direction| {
            house.rooms.event_near(&reader(who), &room, ts, direction, || false).await
        };
        for (nth, (id, ts)) in said.iter().enumerate() {
            for (wanted, direction) in [
                (*ts, Direction::Forwards),
                (*ts, Direction::Backwards),
                (ts - 30_000, Direction::Forwards),
                (ts + 30_000, Direction::Backwards),
            ] {
                let found = near(&anna, wanted, direction).await.unwrap();
                assert_eq!((&found.event_id, found.origin_server_ts), (id, *ts), "{nth} {direction:?}");
            }
        }
        let first = near(&anna, 0, Direction::Forwards).await.unwrap();
        assert!(first.origin_server_ts < said[0].1);
        assert!(matches!(near(&anna, 0, Direction::Backwards).await, Err(Error::NotFound)));
        assert!(matches!(near(&anna, u64::MAX, Direction::Forwards).await, Err(Error::NotFound)));
        let last = near(&anna, u64::MAX, Direction::Backwards).await.unwrap();
        assert_eq!(last.event_id, said[39].0);
        assert!(matches!(near(&ben, START_MS, Direction::Forwards).await, Err(Error::Forbidden(_))));

        // Who sees the room only since they came in is told of nothing before.
        house
            .send(&anna, &room, "m.room.history_visibility", Some(""), json!({ "history_visibility": "joined" }))
            .await
            .unwrap();
        for nth in 0..700 {
            house.clock.advance(Duration::from_secs(1));
            house.say(&anna, &room, &nth.to_string()).await;
        }
        let cleo = house.user("cleo").await;
        house.join(&cleo, &room).await.unwrap();
        let joined_ms = house.clock.now_ms();
        let found = near(&cleo, said[39].1 + 30_000, Direction::Forwards).await.unwrap();
        assert_eq!(found.origin_server_ts, joined_ms);
    }
}
