//! Device lists, for servers that meet a user of ours by a join.
//!
//! Server-server API, "Device Management": when a user joins a room with servers that do not get that user's updates
//! yet, those are sent an update for each device that has keys. Without keys there is nothing that they would have to know, and
//! whoever shares the room would be told of a change a second time after the join; Synapse sends nothing at a join.

use std::ops::ControlFlow;

use serde_json::json;

use super::derived::{Appended, Derived};
use super::new_event::Here;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::{member, user_room};
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::user::{self, device, e2ee_key};
use crate::store::{Get, Result, RoomNum, UserNum, Write};

/// The most servers named, and the most lookups for finding them. Beyond that the whole room is sent the updates: a
/// server that knows the user gets them twice, which does no harm.
const SERVERS_MAX: usize = 200;
const LOOKUPS_MAX: usize = 10_000;

/// The device lists of users who join.
pub struct DeviceLists;

impl Derived for DeviceLists {
    fn on_append(&self, w: &mut Write<'_>, appended: &mut Appended<'_>) -> Result<()> {
        let Some((Membership::Join, target)) = appended.row.member else { return Ok(()) };
        let room = appended.new.room;
        // A new display name is a membership since earlier.
        if user_room::mine(w, target, room)?.is_none_or(|mine| mine.since != appended.at) {
            return Ok(());
        }
        let servers = newly_met(w, appended.here, target, room)?;
        if servers.as_ref().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        let user_id = user::id_of(w, target)?;
        // No update before is named, so that the list is asked for as a whole.
        let stream_id = device::last_change(w, target)?.map_or(0, |at| at.0);
        for device_id in device::ids(w, target)? {
            let Some(keys) = e2ee_key::shown_device_keys(w, target, &user_id, &device_id, None)? else { continue };
            let mut content = json!({
                "user_id": user_id, "device_id": device_id, "stream_id": stream_id, "prev_id": [], "keys": keys,
            });
            if let Some(name) = device::get(w, target, &device_id)?.and_then(|row| row.display_name) {
                content["device_display_name"] = name.into();
            }
            let json = json!({ "edu_type": "m.device_list_update", "content": content }).to_string().into_bytes();
            let row = match &servers {
                Some(servers) => Outbound::Edu { to: servers.clone(), json },
                None => Outbound::RoomEdu { room, json },
            };
            let at = w.next_position();
            outbox::post(w, at, &row)?;
            appended.change.outbound = true;
        }
        Ok(())
    }
}

/// The servers in a room that are in no other room of the user; none when that are too many to name.
fn newly_met(get: &impl Get, here: &Here, user: UserNum, room: RoomNum) -> Result<Option<Vec<String>>> {
    let mut others = Vec::new();
    user_room::list_mine(get, user, None, &mut |other, mine| {
        if mine.membership == Membership::Join && other != room {
            others.push(other);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let (mut met, mut lookups, mut too_many) = (Vec::new(), 0, false);
    member::list_servers(get, room, None, &mut |name, _| {
        if name == here.server.as_str() {
            return Ok(ControlFlow::Continue(()));
        }
        let mut is_known = false;
        for other in &others {
            lookups += 1;
            is_known = is_known || member::server(get, *other, name)?.is_some();
        }
        if !is_known {
            met.push(name.to_owned());
        }
        too_many = met.len() > SERVERS_MAX || lookups > LOOKUPS_MAX;
        Ok(if too_many { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok((!too_many).then_some(met))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::room::testing::house;
    use crate::store::Position;
    use crate::store::tables::room;

    /// A server that met a user by a join asked for the devices once, and was never told of their changes.
    #[tokio::test]
    async fn a_server_that_meets_a_user_by_a_join_is_sent_the_device_list() {
        let house = house();
        let (anna, bob) = (house.user("anna").await, house.user("bob").await);
        let rooms = [house.public_room(&anna).await, house.public_room(&anna).await];
        let (ids, who) = (rooms.clone(), bob.clone());
        let met = house.store.write(move |w| {
            let num = user::intern(w, who.as_str())?;
            for (id, keys) in [("PHONE", true), ("LIGHTBULB", false)] {
                let row = device::Device { display_name: Some("Bob's".to_owned()), ..device::Device::default() };
                device::put(w, num, id, &row)?;
                if keys {
                    e2ee_key::set_device_keys(w, num, id, &json!({ "device_id": id }))?;
                }
            }
            for id in &ids {
                let room = room::num(w, id.as_str())?.unwrap();
                member::put_server(w, room, "far.example", 1, Position(1))?;
            }
            Ok::<_, crate::store::Error>(())
        });
        met.await.unwrap();
        let units = || {
            let rows = house.outbox().into_iter();
            rows.filter_map(|row| match row {
                Outbound::Edu { to, json } => Some((to, serde_json::from_slice::<Value>(&json).unwrap())),
                _ => None,
            })
            .collect::<Vec<_>>()
        };
        for room in &rooms {
            house.rooms.join(&bob, room, Default::default()).await.unwrap();
            let told = units();
            assert_eq!(told.len(), 1, "once, and of the device that has keys");
            assert_eq!(told[0].0, ["far.example"]);
            let content = &told[0].1["content"];
            assert_eq!(told[0].1["edu_type"], "m.device_list_update");
            assert_eq!((&content["device_id"], &content["prev_id"]), (&json!("PHONE"), &json!([])));
            assert_eq!(content["device_display_name"], "Bob's");
        }
    }
}
