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
use crate::store::{Change, Follower, Position, Read, RoomNum};

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
            match self.let_some_go(worker).await {
                Ok(true) => {}
                Ok(false) => {
                    worker.idle();
                    self.0.leaving.0.notified().await;
                }
                Err(failed) => {
                    tracing::info!(%failed, "guests could not leave a room that is closed to them");
                    worker.failed(failed);
                    worker.idle_for(PAUSE);
                    self.0.parts.clock.sleep(PAUSE).await;
                }
            }
        }
    }

    /// Some guests of one room. Answers whether there was a room to look at.
    pub(super) async fn let_some_go(&self, worker: &Worker) -> Result<bool> {
        let found = self.reading(move |_, read| match user_room::guests_noted(read)? {
            Some(room) => Ok(Some((room, leaving(read, room)?))),
            None => Ok(None),
        });
        let Some((room, leaving)) = found.await? else { return Ok(false) };
        let Some((room_id, guests)) = leaving else {
            self.write(move |w| Ok(user_room::forget_guests(w, room)?)).await?;
            return Ok(true);
        };
        worker.works_on(format_args!("letting guests leave {room_id}"));
        for guest in guests {
            self.leave(&guest, &room_id, Some("The room is closed to guests".to_owned())).await?;
            worker.done(1);
        }
        Ok(true)
    }
}

/// The guests who must leave a room; none when there are none, or they may stay. Bounded by the users of this server.
fn leaving(read: &Read, num: RoomNum) -> Result<Option<(OwnedRoomId, Vec<OwnedUserId>)>> {
    let room = match known_num(read, num) {
        Ok(room) if !are_guests_let_in(read, &room)? => room,
        Ok(_) | Err(Error::NotFound) => return Ok(None),
        Err(failed) => return Err(failed),
    };
    let mut guests = Vec::new();
    member::list_local(read, num, &mut |user, membership| {
        if membership == Membership::Join && user::is_guest(read, user)? {
            guests.extend(OwnedUserId::try_from(user::id_of(read, user)?));
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
    use serde_json::json;

    #[tokio::test]
    async fn guests_leave_a_room_that_is_closed_to_them() {
        let house = house();
        let (anna, ben, guest) = (house.user("anna").await, house.user("ben").await, house.user("guest").await);
        let num = house.user_num(&guest);
        house.store.write(move |w| user::set_guest(w, num, true)).await.map_err(|failed| failed.into_inner()).unwrap();
        let room = house.public_room(&anna).await;
        let worker = Worker::new("guests", &house.clock);
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
        while house.rooms.let_some_go(&worker).await.unwrap() {}
        assert_eq!(house.membership(&room, &guest), Some(Membership::Join));
        set("forbidden").await;
        while house.rooms.let_some_go(&worker).await.unwrap() {}
        assert_eq!(house.membership(&room, &guest), Some(Membership::Leave));
        assert_eq!(house.membership(&room, &ben), Some(Membership::Join));
    }
}
