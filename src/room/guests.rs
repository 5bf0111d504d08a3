//! Guests: which rooms are open to them, and that they leave when one is closed ("Guest Access").

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};
use tokio::sync::Notify;

use super::Rooms;
use super::error::{Error, Result};
use super::state::description::are_guests_let_in;
use super::state::known_num;
use super::state::preview::resident;
use crate::base::Worker;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::{member, user_room};
use crate::store::tables::user;
use crate::store::{Change, Follower, Position, Read, RoomNum, UserNum};

/// Guests of a room that are let go before its next look: one event each.
const LEAVING_MAX: usize = 50;
/// The pause after a guest's leave that failed.
const PAUSE: Duration = Duration::from_secs(60);

/// Wakes the worker when a commit notes a room.
#[derive(Default)]
pub(super) struct Leaving(Notify);

impl Follower for Leaving {
    fn committed(&self, changes: &[&Change], _: Position) {
        if changes.iter().any(|change| change.guests) {
            self.0.notify_one();
        }
    }

    fn lost(&self, _: Position) {
        self.0.notify_one();
    }
}

impl Rooms {
    /// Whether guests may join a room: one we are in, or one of which another server tells that. `may_ask`: whether one may be
    /// asked.
    pub async fn guests_may_join(
        &self,
        user: &UserId,
        room_id: &RoomId,
        via: Vec<OwnedServerName>,
        may_ask: impl FnOnce() -> bool,
    ) -> Result<bool> {
        let id = room_id.to_owned();
        let here = self.reading(move |_, read| match resident(read, id.as_str())? {
            Some(room) => Ok(Some(are_guests_let_in(read, &room)?)),
            None => Ok(None),
        });
        if let Some(open) = here.await? {
            return Ok(open);
        }
        match self.summary(Some(user), room_id, via, may_ask).await {
            Ok(summary) => Ok(summary.room.guest_can_join),
            Err(Error::NotFound) => Ok(false),
            Err(failed) => Err(failed),
        }
    }

    /// Until the server stops: lets guests leave the rooms that were closed to them. What was noted before a restart is done after
    /// it.
    pub async fn let_guests_go(&self, worker: &Worker) {
        loop {
            let mut round = Round::default();
            while self.let_some_go(&mut round, worker).await {}
            if round.is_left {
                worker.idle_for(PAUSE);
                self.0.parts.clock.sleep(PAUSE).await;
            } else {
                worker.idle();
                self.0.leaving.0.notified().await;
            }
        }
    }

    /// Some guests of one room. Answers whether there was a room to look at. What fails is passed over: one room must not keep
    /// guests in all others.
    pub(super) async fn let_some_go(&self, round: &mut Round, worker: &Worker) -> bool {
        let from = round.room;
        let found = match self.reading(move |_, read| Ok(user_room::guests_noted(read, from)?)).await {
            Ok(found) => found,
            Err(failed) => {
                round.failed(&failed, worker);
                return false;
            }
        };
        let Some(room) = found else { return false };
        if room != round.room {
            (round.room, round.guest) = (room, None);
        }
        match self.let_some_of_room_go(round, worker).await {
            Ok(true) => {}
            Ok(false) => round.next(),
            Err(failed) => {
                round.failed(&failed, worker);
                round.next();
            }
        }
        true
    }

    /// Answers whether there may be more guests who must leave the room.
    async fn let_some_of_room_go(&self, round: &mut Round, worker: &Worker) -> Result<bool> {
        let (room, after) = (round.room, round.guest);
        let Some((room_id, guests)) = self.reading(move |_, read| leaving(read, room, after)).await? else {
            self.write(move |w| Ok(user_room::forget_guests(w, room)?)).await?;
            return Ok(false);
        };
        worker.works_on(format_args!("letting guests leave {room_id}"));
        for (num, guest) in guests {
            match self.leave(&guest, &room_id, Some("The room is closed to guests".to_owned())).await {
                Ok(_) => worker.done(1),
                Err(failed) if failed.is_passing() => return Err(failed),
                // It would be no other the next time.
                Err(failed) => {
                    tracing::warn!(%room_id, %guest, "a guest stays in a room that is closed to them: {failed}");
                    worker.failed(failed);
                }
            }
            round.guest = Some(num);
        }
        Ok(true)
    }
}

/// How far a round of all noted rooms is.
#[derive(Debug)]
pub(super) struct Round {
    room: RoomNum,
    /// The last of its guests who was seen to.
    guest: Option<UserNum>,
    /// Whether something failed that may succeed another time.
    is_left: bool,
}

impl Default for Round {
    fn default() -> Round {
        Round { room: RoomNum(0), guest: None, is_left: false }
    }
}

impl Round {
    fn next(&mut self) {
        (self.room, self.guest) = (RoomNum(self.room.0.saturating_add(1)), None);
    }

    fn failed(&mut self, failed: &Error, worker: &Worker) {
        tracing::info!("guests could not leave a room that is closed to them: {failed}");
        worker.failed(failed);
        self.is_left = true;
    }
}

/// The guests behind `after` who must leave a room; none when there are none, or they may stay. Bounded by the users of this
/// server.
fn leaving(
    read: &Read,
    num: RoomNum,
    after: Option<UserNum>,
) -> Result<Option<(OwnedRoomId, Vec<(UserNum, OwnedUserId)>)>> {
    let room = match known_num(read, num) {
        Ok(room) if !are_guests_let_in(read, &room)? => room,
        Ok(_) | Err(Error::NotFound) => return Ok(None),
        Err(failed) => return Err(failed),
    };
    let mut guests = Vec::new();
    member::list_local(read, num, &mut |user, membership| {
        if Some(user) > after && membership == Membership::Join && user::is_guest(read, user)? {
            guests.extend(OwnedUserId::try_from(user::id_of(read, user)?).ok().map(|id| (user, id)));
        }
        Ok(if guests.len() < LEAVING_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let id = OwnedRoomId::try_from(room.row.id).ok();
    Ok(id.filter(|_| !guests.is_empty()).map(|id| (id, guests)))
}

/// The worker's wake-ups, which follow the store.
pub(super) fn leaving_of(store: &crate::store::Store) -> Arc<Leaving> {
    let leaving = Arc::new(Leaving::default());
    store.follow(leaving.clone());
    leaving
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::testing::house;
    use crate::store::EventNum;
    use crate::store::schema::ROOM_LOCAL;
    use serde_json::json;

    #[tokio::test]
    async fn guests_leave_a_room_that_is_closed_to_them() {
        let house = house();
        let (anna, ben, guest) = (house.user("anna").await, house.user("ben").await, house.user("guest").await);
        let num = house.user_num(&guest);
        house.store.write(move |w| user::set_guest(w, num, true)).await.map_err(|failed| failed.into_inner()).unwrap();
        let room = house.public_room(&anna).await;
        let worker = Worker::new("guests", &house.clock);
        let round = async || {
            let mut round = Round::default();
            while house.rooms.let_some_go(&mut round, &worker).await {}
            assert!(!round.is_left);
        };
        let may = async || house.rooms.guests_may_join(&guest, &room, Vec::new(), || false).await.unwrap();
        let set = async |access: &str| {
            house.send(&anna, &room, "m.room.guest_access", Some(""), json!({ "guest_access": access })).await.unwrap();
        };
        set("forbidden").await;
        assert!(!may().await);
        set("can_join").await;
        assert!(may().await);
        house.join(&guest, &room).await.unwrap();
        house.join(&ben, &room).await.unwrap();
        round().await;
        assert_eq!(house.membership(&room, &guest), Some(Membership::Join));
        set("forbidden").await;
        round().await;
        assert_eq!(house.membership(&room, &guest), Some(Membership::Leave));
        assert_eq!(house.membership(&room, &ben), Some(Membership::Join));
    }

    /// A guest whose leave the rules refuse kept all others in, of this room and of all behind it.
    #[tokio::test]
    async fn who_cannot_leave_keeps_no_others_in() {
        let house = house();
        let anna = house.user("anna").await;
        let (stuck, guest) = (house.user("stuck").await, house.user("guest").await);
        let guests = [&stuck, &guest].map(|user| house.user_num(user));
        let (one, two) = (house.public_room(&anna).await, house.public_room(&anna).await);
        let done = house.store.write(move |w| guests.iter().try_for_each(|num| user::set_guest(w, *num, true))).await;
        done.map_err(|failed| failed.into_inner()).unwrap();
        for room in [&one, &two] {
            let open = json!({ "guest_access": "can_join" });
            house.send(&anna, room, "m.room.guest_access", Some(""), open).await.unwrap();
            house.join(&guest, room).await.unwrap();
        }
        // In the list of members alone, and in no state.
        let num = house.room_num(&one);
        let stuck_num = guests[0];
        let wrong = house.store.write(move |w| {
            let as_joined = Some((Membership::Join, EventNum(1)));
            member::set(w, num, stuck_num, None, as_joined)?;
            w.put(&ROOM_LOCAL, &[num.to_key(), stuck_num.to_key()].concat(), &[Membership::Join as u8])
        });
        wrong.await.map_err(|failed| failed.into_inner()).unwrap();
        for room in [&one, &two] {
            let closed = json!({ "guest_access": "forbidden" });
            house.send(&anna, room, "m.room.guest_access", Some(""), closed).await.unwrap();
        }
        let (worker, mut round) = (Worker::new("guests", &house.clock), Round::default());
        while house.rooms.let_some_go(&mut round, &worker).await {}
        for room in [&one, &two] {
            assert_eq!(house.membership(room, &guest), Some(Membership::Leave));
        }
        assert_eq!(user_room::guests_noted(&house.read(), RoomNum(0)).unwrap(), None, "it is not tried for ever");
    }
}
