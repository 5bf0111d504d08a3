//! The operator's view of the rooms.

use std::ops::ControlFlow;

use ruma::{RoomId, UserId};
use serde::Serialize;

use super::error::Result;
use super::join::JoinStatus;
use super::join::admission::{ASKED_ROOMS_MAX, Policy};
use super::{Rooms, state};
use crate::base::{blocking, bounded, unhex};
use crate::store::RoomNum;
use crate::store::tables::hex;
use crate::store::tables::room::blocked::{self, Blocked};
use crate::store::tables::room::join;
use crate::store::tables::room::join::{Allowed, Stage};
use crate::store::tables::room::{self, Room, Status};

/// Rows measured at once: some 100 ms on a small board.
const MEASURED_MAX: u64 = 20_000;
/// Characters of a room's name; its members choose its length. Control characters are spaces.
const NAME_CHARS_MAX: usize = 100;

/// A room in the operator's list.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    pub room_id: String,
    pub name: Option<String>,
    pub version: String,
    /// Whether this server is in the room; otherwise it knows the room by an invite, or was in it once.
    pub resident: bool,
    /// Joined members, of all servers.
    pub joined: u64,
    /// Events stored, and the bytes of their bodies as stored.
    pub events: u64,
    pub bytes: u64,
}

impl Rooms {
    /// At most `most` rooms after `after`, in the order in which they became known.
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
                    true => state::known_num(&read, num)?
                        .view(&read)
                        .text("m.room.name", "name")?
                        .map(|name| bounded(name, NAME_CHARS_MAX)),
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

/// What a part of a table takes.
#[derive(Debug, Clone, Serialize)]
pub struct Disk {
    pub table: &'static str,
    pub rows: u64,
    pub bytes: u64,
    /// Where the next part begins; none behind the last table.
    pub next: Option<String>,
}

impl Rooms {
    /// What the rows of a table take, from a place on; at most [`MEASURED_MAX`] rows. None behind the last table.
    pub async fn measure(&self, from: &str) -> Result<Option<Disk>> {
        let (rooms, from) = (self.clone(), from.to_owned());
        blocking(move || {
            let (at, key) = from.split_once('-').unwrap_or(("0", ""));
            let place = (at.parse::<usize>().unwrap_or(0), unhex(key).unwrap_or_default());
            let measured = rooms.0.parts.store.measure(place, MEASURED_MAX)?;
            Ok(measured.map(|found| Disk {
                table: found.table,
                rows: found.rows,
                bytes: found.bytes,
                next: found.next.map(|(at, key)| format!("{at}-{}", hex(&key))),
            }))
        })
        .await
    }

    /// Bytes of the database's file.
    pub fn database_bytes(&self) -> u64 {
        self.0.parts.store.file_bytes()
    }

    /// Whether this server knows a room, in it or not.
    pub async fn is_known(&self, room_id: &RoomId) -> Result<bool> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| Ok(room::num(read, room_id.as_str())?.is_some())).await
    }

    /// Sets the owner's policy for joins. `serve` does so once.
    pub fn set_admission(&self, policy: Policy) {
        *self.0.joins.policy.lock() = policy;
    }

    /// Lets one room in whatever its size, or revokes that, which also ends a join that is under way.
    pub async fn allow(&self, room_id: &RoomId, allowed: bool) -> Result<()> {
        if !allowed {
            self.0.joins.cancel(room_id);
        }
        let (room_id, at_ms) = (room_id.to_owned(), self.0.parts.clock.now_ms());
        self.write(move |w| {
            let before = join::allowed(w, room_id.as_str())?;
            let new = Allowed { allowed: true, user_id: String::new(), events: 0, at_ms };
            let new = Allowed { allowed: true, ..before.unwrap_or(new) };
            Ok(join::set_allowed(w, room_id.as_str(), allowed.then_some(&new))?)
        })
        .await
    }

    /// Blocks a room, known here or not: nobody of this server comes into it, and a join that is under way ends. `None` takes that
    /// back.
    pub async fn block(&self, room_id: &RoomId, by: Option<&UserId>) -> Result<()> {
        let at_ms = self.0.parts.clock.now_ms();
        let (id, row) = (room_id.to_owned(), by.map(|by| Blocked { by: by.to_string(), at_ms }));
        self.write(move |w| Ok(blocked::set(w, id.as_str(), row.as_ref())?)).await?;
        if by.is_some() {
            self.cancel_join(room_id).await?;
        }
        Ok(())
    }

    /// Who blocked a room, if anybody did.
    pub async fn blocked(&self, room_id: &RoomId) -> Result<Option<Blocked>> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| Ok(blocked::get(read, room_id.as_str())?)).await
    }

    /// At most `most` blocked rooms, by their ids from behind `after` on.
    pub async fn blocked_rooms(&self, after: &str, most: usize) -> Result<Vec<(String, Blocked)>> {
        let after = after.to_owned();
        self.reading(move |_, read| Ok(blocked::list_after(read, &after, most)?)).await
    }

    /// Rooms allowed by an admin whatever their size, and rooms that wait for that.
    pub async fn allowed_rooms(&self) -> Result<Vec<(String, Allowed)>> {
        self.reading(|_, read| Ok(join::list_allowed(read, ASKED_ROOMS_MAX)?)).await
    }

    /// Joins under way.
    pub fn joins(&self) -> Vec<JoinStatus> {
        self.0.joins.list(self.0.parts.clock.instant())
    }

    /// Joins that are begun and not under way, each with the events it has stored: they resume at the next start.
    pub async fn interrupted_joins(&self) -> Result<Vec<(String, u64)>> {
        let under_way: Vec<String> = self.joins().into_iter().map(|join| join.room_id).collect();
        let journals = self.reading(|_, read| Ok(join::journals(read)?)).await?;
        let interrupted = journals
            .into_iter()
            .map(|(_, journal)| journal)
            .filter(|journal| journal.stage < Stage::Live && !under_way.contains(&journal.room_id));
        Ok(interrupted.map(|journal| (journal.room_id, journal.events)).collect())
    }
}

impl Rooms {
    /// Ends the join of a room: a running join at its next step, an interrupted one when it resumes. Its rows are
    /// removed, and the resident server that accepted us is told that we leave. False when there is no join.
    pub async fn cancel_join(&self, room_id: &RoomId) -> Result<bool> {
        if self.0.joins.cancel(room_id) {
            return Ok(true);
        }
        let of = room_id.to_owned();
        let found = self.write(move |w| {
            let mut found = false;
            for (num, mut journal) in join::journals(w)? {
                if journal.room_id == of.as_str() && journal.stage < Stage::Live {
                    journal.stage = Stage::Cancelled;
                    join::set_journal(w, num, &journal)?;
                    found = true;
                }
            }
            Ok(found)
        });
        let found = found.await?;
        // A join that resumed meanwhile may have read its journal before it was marked.
        Ok(self.0.joins.cancel(room_id) || found)
    }
}
