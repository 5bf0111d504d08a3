//! What the operator sees of the rooms.

use std::ops::ControlFlow;

use ruma::RoomId;
use serde::Serialize;

use super::error::Result;
use super::{Rooms, state};
use crate::base::blocking;
use crate::store::RoomNum;
use crate::store::tables::room::{self, Room, Status};

/// A room in the operator's list.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    pub room_id: String,
    pub name: Option<String>,
    pub version: String,
    /// Whether this server is in the room; otherwise it knows of it by an invitation, or was in it once.
    pub resident: bool,
    /// Joined members, of all servers.
    pub joined: u64,
    /// Events stored, and the bytes of their bodies as stored.
    pub events: u64,
    pub bytes: u64,
}

impl Rooms {
    /// At most `most` rooms after `after`, in the order they were first heard of.
    pub async fn overview(&self, after: Option<&RoomId>, most: usize) -> Result<Vec<Overview>> {
        let (rooms, after) = (self.clone(), after.map(ToOwned::to_owned));
        blocking(move || {
            let read = rooms.read()?;
            let after = match after {
                Some(after) => room::num(&read, after.as_str())?,
                None => None,
            };
            let mut found: Vec<(RoomNum, Room)> = Vec::new();
            room::list_after(&read, after, &mut |num, row| {
                found.push((num, row));
                Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            let overview = |(num, row): (RoomNum, Room)| {
                let resident = row.status == Status::Resident;
                let name = match resident {
                    true => state::known_num(&read, num)?.view(&read).text("m.room.name", "name")?,
                    false => None,
                };
                let Room { id: room_id, version, joined, events, bytes, .. } = row;
                Ok(Overview { room_id, name, version, resident, joined, events, bytes })
            };
            found.into_iter().map(overview).collect()
        })
        .await
    }
}
