//! Closing a room: people of this server leave it, other servers are told, and it goes.

use std::time::Duration;

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::json;
use serde_json::value::to_raw_value;

use super::LOOK;
use crate::room::Rooms;
use crate::room::create::Create;
use crate::room::create::plan::Preset;
use crate::room::error::{Error, Result};
use crate::room::send::Sending;
use crate::room::send::member::Joining;
use crate::store::UserNum;
use crate::store::tables::hex;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::task::{Close, Key, Stage, Task, What};
use crate::store::tables::room::{directory, member};
use crate::store::tables::{room, server::outbox, user};

/// Leaves of people here are sent to other servers before their events go, for at most so long.
const TOLD_WITHIN_MS: u64 = 10 * 60 * 1000;
const TOLD_LOOK_MS_MIN: u64 = 500;
const TOLD_LOOK_MS_MAX: u64 = 15_000;
/// People who leave between two notes of it.
const LEAVES_A_NOTE: usize = 50;
/// The names that a task lists, in bytes: some 300 people who left, and a quarter of that who did not, and aliases.
const KICKED_BYTES_MAX: usize = 8 * 1024;
const OTHERS_BYTES_MAX: usize = 2 * 1024;
/// Aliases that lead to the new room instead, in one write of four rows each. A room has fewer here.
const ALIASES_MAX: usize = 200;
/// What people in the new room may not do: they are shown a message.
const USERS_DEFAULT: i64 = -10;

impl Rooms {
    /// A step of closing a room.
    pub(super) async fn step_of_closing(
        &self,
        key: &Key,
        task: &mut Task,
        room_id: &RoomId,
    ) -> Result<Option<Duration>> {
        match task.stage {
            Stage::Waiting => {
                let are_gone = self.empty(key, task, room_id).await?;
                let What::Close(close) = &task.what else { return Err(Error::NotFound) };
                if !close.purge {
                    task.stage = Stage::Done;
                    return Ok(None);
                }
                let since_ms = if are_gone { self.0.parts.clock.now_ms() } else { 0 };
                task.stage = Stage::Telling { since_ms };
                self.note(key, task).await?;
                Ok(Some(Duration::ZERO))
            }
            Stage::Telling { since_ms } => {
                let waited_ms = self.0.parts.clock.now_ms().saturating_sub(since_ms);
                if waited_ms < TOLD_WITHIN_MS && !self.is_told(room_id).await? {
                    // Each look goes through all that waits for other servers.
                    let pause_ms = (waited_ms / 4).clamp(TOLD_LOOK_MS_MIN, TOLD_LOOK_MS_MAX);
                    return Ok(Some(Duration::from_millis(pause_ms)));
                }
                self.purge(room_id).await?;
                task.stage = Stage::Removing;
                self.note(key, task).await?;
                Ok(Some(LOOK))
            }
            Stage::Removing if self.is_purging(room_id).await? => Ok(Some(LOOK)),
            Stage::Removing | Stage::Done | Stage::Failed => {
                task.stage = Stage::Done;
                Ok(None)
            }
        }
    }

    /// Has everybody here leave. Whether there was anybody.
    async fn empty(&self, key: &Key, task: &mut Task, room_id: &RoomId) -> Result<bool> {
        self.make_new_room(key, task).await?;
        let (mut after, mut is_any) = (None, false);
        loop {
            let page = self.people_here(room_id, after).await?;
            let Some((last, _)) = page.last() else { break };
            (after, is_any) = (Some(*last), true);
            for (_, user_id) in page {
                let left = self.leave_for(&user_id, room_id, new_room(task).as_deref()).await;
                if let Err(failed) = &left {
                    tracing::warn!(%user_id, %room_id, %failed, "somebody could not leave a room that is closed");
                }
                let What::Close(close) = &mut task.what else { return Err(Error::NotFound) };
                let (names, bytes_max) = match left {
                    Ok(()) => (&mut close.kicked, KICKED_BYTES_MAX),
                    Err(_) => (&mut close.failed, OTHERS_BYTES_MAX),
                };
                note_name(names, user_id.to_string(), bytes_max);
            }
            self.note(key, task).await?;
        }
        self.tell_new_room(key, task, room_id).await?;
        Ok(is_any)
    }

    async fn leave_for(&self, user_id: &UserId, room_id: &RoomId, new_room: Option<&RoomId>) -> Result<()> {
        self.leave(user_id, room_id, None).await?;
        match self.forget(user_id, room_id).await {
            // Nothing is left of an invite.
            Ok(()) | Err(Error::NotFound) => {}
            Err(failed) => return Err(failed),
        }
        if let Some(new_room) = new_room {
            self.join(user_id, new_room, Joining::default()).await?;
        }
        Ok(())
    }

    /// People here who are in a room, invited to it or knocking, behind one.
    async fn people_here(&self, room_id: &RoomId, after: Option<UserNum>) -> Result<Vec<(UserNum, OwnedUserId)>> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| {
            let Some(num) = room::num(read, room_id.as_str())? else { return Ok(Vec::new()) };
            let mut found = Vec::new();
            member::list_local(read, num, &mut |user, membership| {
                let is_inside = matches!(membership, Membership::Join | Membership::Invite | Membership::Knock);
                if is_inside && after.is_none_or(|after| user > after) {
                    found.push(user);
                }
                Ok(if found.len() < LEAVES_A_NOTE {
                    std::ops::ControlFlow::Continue(())
                } else {
                    std::ops::ControlFlow::Break(())
                })
            })?;
            let named = |num| Ok((num, user::id_of(read, num)?.try_into().map_err(|_| Error::NotFound)?));
            found.into_iter().map(named).collect()
        })
        .await
    }

    async fn make_new_room(&self, key: &Key, task: &mut Task) -> Result<()> {
        let What::Close(close) = &mut task.what else { return Err(Error::NotFound) };
        let (Some(by), None) = (maker(close), &close.new_room_id) else { return Ok(()) };
        let powers = json!({ "users_default": USERS_DEFAULT });
        let create = Create {
            preset: Some(Preset::Public),
            name: close.new_room_name.clone(),
            power_level_content_override: powers.as_object().cloned().unwrap_or_default(),
            ..Create::default()
        };
        close.new_room_id = Some(self.create(&by, create).await?.to_string());
        self.note(key, task).await
    }

    /// Says in the new room what happened, and has the aliases of the old one lead there.
    async fn tell_new_room(&self, key: &Key, task: &mut Task, room_id: &RoomId) -> Result<()> {
        let Some(new_room) = new_room(task) else { return Ok(()) };
        let What::Close(close) = &mut task.what else { return Err(Error::NotFound) };
        let Some(by) = maker(close) else { return Ok(()) };
        let content = json!({ "msgtype": "m.text", "body": close.message.as_deref().unwrap_or_default() });
        let content = to_raw_value(&content).map_err(|failed| Error::bad("M_BAD_JSON", failed.to_string()))?;
        // Once, also after a power cut.
        let txn = Some(("closing a room".to_owned(), hex(key)));
        let kind = "m.room.message".to_owned();
        let (state_key, redacts, sticky_ms, ts, paid) = (None, None, None, None, None);
        let sending = Sending { kind, state_key, content, redacts, sticky_ms, ts, txn, paid };
        self.send(&by, &new_room, sending).await?;
        let (old, new, by) = (room_id.to_owned(), new_room, by.to_string());
        let moved = self.write(move |w| {
            let nums = (room::num(w, old.as_str())?, room::num(w, new.as_str())?, user::num(w, &by)?);
            let (Some(old), Some(new), Some(by)) = nums else { return Ok(Vec::new()) };
            let aliases = directory::aliases(w, old, ALIASES_MAX)?;
            for alias in &aliases {
                directory::remove_alias(w, alias)?;
                directory::put_alias(w, alias, new, by)?;
            }
            Ok(aliases)
        });
        for alias in moved.await? {
            note_name(&mut close.aliases, alias, OTHERS_BYTES_MAX);
        }
        Ok(())
    }

    /// Whether other servers know of everything that happened in a room here. Bounded by what is still to be sent.
    async fn is_told(&self, room_id: &RoomId) -> Result<bool> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| match room::num(read, room_id.as_str())? {
            Some(num) => Ok(!outbox::has_room(read, num)?),
            None => Ok(true),
        })
        .await
    }
}

fn maker(close: &Close) -> Option<OwnedUserId> {
    close.new_room_by.as_deref().and_then(|id| id.try_into().ok())
}

fn new_room(task: &Task) -> Option<OwnedRoomId> {
    let What::Close(close) = &task.what else { return None };
    close.new_room_id.as_deref().and_then(|id| id.try_into().ok())
}

/// Adds a name to a list while there is room for it.
fn note_name(names: &mut Vec<String>, name: String, bytes_max: usize) {
    let bytes: usize = names.iter().map(String::len).sum();
    if bytes + name.len() <= bytes_max && !names.contains(&name) {
        names.push(name);
    }
}
