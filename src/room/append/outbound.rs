//! The outbound log: the events to be sent to other servers.

use std::ops::ControlFlow;

use ruma::ServerName;

use super::derived::{Appended, Derived};
use super::new_event::server_of;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::member;
use crate::store::tables::server::follower;
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::user;
use crate::store::{Get, Result, RoomNum, Write};

/// The outbound log.
pub struct OutboundLog;

impl Derived for OutboundLog {
    fn on_append(&self, w: &mut Write<'_>, appended: &mut Appended<'_>) -> Result<()> {
        let posted = appended.new.outbound && post(w, appended)?;
        appended.change.outbound = posted || follow(w, appended)?;
        Ok(())
    }
}

/// One row for all servers in the room, if there are others. A user who left with this event may have been the last
/// member of their server: that server is sent the event too. Answers whether there was a server to tell.
fn post(w: &mut Write<'_>, appended: &Appended<'_>) -> Result<bool> {
    let Appended { here, new, num, row, at, .. } = appended;
    let mut also = Vec::new();
    if let Some((membership, target)) = row.member
        && matches!(membership, Membership::Leave | Membership::Ban)
    {
        let target = user::id_of(w, target)?;
        let server = server_of(&target);
        let is_name = <&ServerName>::try_from(server).is_ok();
        if is_name && !here.is_local(&target) && member::server(w, new.room, server)?.is_none() {
            also.push(server.to_owned());
        }
    }
    if also.is_empty() && !has_other_servers(w, new.room, &here.server)? {
        return Ok(false);
    }
    outbox::post(w, *at, &Outbound::Event { room: new.room, event: *num, also })?;
    Ok(true)
}

/// A row for followers of the log, if there are any. Answers whether there are.
fn follow(w: &mut Write<'_>, appended: &Appended<'_>) -> Result<bool> {
    if !appended.new.is_new() || !follower::is_any(w)? {
        return Ok(false);
    }
    outbox::post(w, appended.at, &Outbound::Followed { room: appended.new.room, event: appended.num })?;
    Ok(true)
}

/// Whether servers other than this one have joined users. Two rows at most.
pub fn has_other_servers(get: &impl Get, room: RoomNum, here: &ServerName) -> Result<bool> {
    let mut others = false;
    member::list_servers(get, room, None, &mut |server, _| {
        others = server != here.as_str();
        Ok(if others { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::testing::house;
    use crate::store::Position;
    use crate::store::tables::room::event;

    #[tokio::test]
    async fn a_room_without_other_servers_is_in_the_log_only_while_somebody_follows() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        house.say(&anna, &room, "nobody reads the log").await;
        assert_eq!(house.outbox(), []);
        house.store.write(|w| follower::set_position(w, "test", Some(Position(0)))).await.unwrap();
        let said = house.say(&anna, &room, "followed").await;
        let num = event::num(&house.read(), said.as_str()).unwrap().unwrap();
        let row = event::row_of(&house.read(), num).unwrap();
        assert_eq!(house.outbox(), [Outbound::Followed { room: row.room, event: num }]);
    }
}
