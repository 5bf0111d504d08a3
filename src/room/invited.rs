//! Invites of people here that are accepted by the server itself, when the operator wants that.
//!
//! An invite is a row of its user's rooms, and stays one until it is accepted: the queue here only saves looking through all of
//! them. What is not in it, at the start, after a loss or when there were too many, is found by one walk over the accounts.

use std::collections::VecDeque;
use std::mem;
use std::ops::ControlFlow;

use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::Value;
use tokio::sync::Notify;

use super::Rooms;
use super::error::Result;
use super::invite_rules::{self, Verdict};
use super::state::event::load;
use super::state::known_num;
use crate::store::tables::room;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::user_room::{self, Mine};
use crate::store::tables::user::{self, Standing};
use crate::store::{Change, Follower, Position, Read, RoomNum, UserNum};

/// Invites that wait for a look, 8 bytes each. With more, all accounts are looked at.
const WAITING_MAX: usize = 256;
/// Accounts whose rooms are looked through in one read.
const ACCOUNTS_A_LOOK: usize = 20;

/// Which invites are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoAccept {
    #[default]
    Off,
    /// Those to direct chats, as the inviter's app says.
    Direct,
    All,
}

/// An invite that is to be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenInvite {
    pub user: UserNum,
    pub user_id: OwnedUserId,
    pub room_id: OwnedRoomId,
    pub inviter: OwnedUserId,
    pub is_direct: bool,
}

/// What waits for a look, and what is wanted.
#[derive(Default)]
pub(super) struct Invited {
    queue: Mutex<Queue>,
    notify: Notify,
}

#[derive(Default)]
struct Queue {
    which: AutoAccept,
    only_local: bool,
    waiting: VecDeque<(UserNum, RoomNum)>,
    /// All accounts are to be looked at, behind this one.
    all_behind: Option<Option<UserNum>>,
}

impl Queue {
    fn look_at_all(&mut self) {
        self.waiting.clear();
        self.all_behind = Some(None);
    }
}

impl Follower for Invited {
    fn committed(&self, changes: &[&Change], _: Position) {
        let invites = changes.iter().filter_map(|change| change.invited.zip(change.room));
        let mut queue = None;
        for invite in invites {
            let queue = queue.get_or_insert_with(|| self.queue.lock());
            if queue.which == AutoAccept::Off {
                return;
            }
            match queue.waiting.len() < WAITING_MAX {
                true => queue.waiting.push_back(invite),
                false => queue.look_at_all(),
            }
            self.notify.notify_one();
        }
    }

    fn lost(&self, _: Position) {
        let mut queue = self.queue.lock();
        if queue.which != AutoAccept::Off {
            queue.look_at_all();
            self.notify.notify_one();
        }
    }
}

impl Rooms {
    /// Sets which invites the server accepts for people here from now on, those that wait already too; with `only_local` none of
    /// other servers' people.
    pub fn set_auto_accept(&self, which: AutoAccept, only_local: bool) {
        let mut queue = self.0.invited.queue.lock();
        let is_new = (queue.which, queue.only_local) != (which, only_local);
        (queue.which, queue.only_local) = (which, only_local);
        match which {
            AutoAccept::Off => *queue = Queue::default(),
            _ if is_new => queue.look_at_all(),
            _ => {}
        }
        self.0.invited.notify.notify_one();
    }

    /// Waits until there may be invites to accept.
    pub async fn invited(&self) {
        self.0.invited.notify.notified().await;
    }

    /// Some invites to accept, each once: what fails is the caller's to try again. None when there are no more to look at.
    pub async fn invites_to_accept(&self) -> Result<Option<Vec<OpenInvite>>> {
        let (which, only_local, waiting, all_behind) = {
            let mut queue = self.0.invited.queue.lock();
            let waiting = mem::take(&mut queue.waiting);
            (queue.which, queue.only_local, waiting, queue.all_behind)
        };
        if waiting.is_empty() && all_behind.is_none() {
            return Ok(None);
        }
        let (found, next) = self
            .reading(move |_, read| {
                let mut found = Vec::new();
                for (user, room) in waiting {
                    if let Some(mine) = user_room::mine(read, user, room)? {
                        found.extend(open_invite(read, user, room, &mine)?);
                    }
                }
                let next = match all_behind {
                    Some(after) => look_through(read, after, &mut found)?,
                    None => None,
                };
                Ok((found, next))
            })
            .await?;
        {
            let mut queue = self.0.invited.queue.lock();
            // Unless all are to be looked at again meanwhile.
            if queue.all_behind == all_behind {
                queue.all_behind = next.map(Some);
            }
        }
        let here = self.server();
        let is_wanted = |invite: &OpenInvite| {
            (which == AutoAccept::All || which == AutoAccept::Direct && invite.is_direct)
                && !(only_local && invite.inviter.server_name() != here)
                && !self.is_of_service(&invite.user_id)
        };
        Ok(Some(found.into_iter().filter(is_wanted).collect()))
    }
}

/// Looks through the rooms of some accounts behind one, and answers the last when there may be more.
fn look_through(read: &Read, after: Option<UserNum>, found: &mut Vec<OpenInvite>) -> Result<Option<UserNum>> {
    let mut accounts = Vec::new();
    user::accounts_after(read, after, &mut |num, _| {
        accounts.push(num);
        Ok(if accounts.len() < ACCOUNTS_A_LOOK { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    for user in &accounts {
        let mut invites = Vec::new();
        user_room::list_mine(read, *user, None, &mut |room, mine| {
            if mine.membership == Membership::Invite {
                invites.push((room, mine));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for (room, mine) in invites {
            found.extend(open_invite(read, *user, room, &mine)?);
        }
    }
    Ok(accounts.last().copied().filter(|_| accounts.len() == ACCOUNTS_A_LOOK))
}

/// The invite of a user to a room, when the account may accept one and does not ignore who invites.
fn open_invite(read: &Read, user: UserNum, room: RoomNum, mine: &Mine) -> Result<Option<OpenInvite>> {
    if mine.membership != Membership::Invite {
        return Ok(None);
    }
    let may = |account: &user::Account| {
        account.standing == Standing::Active && !account.locked && !account.suspended && !account.shadow_banned
    };
    if !user::account(read, user)?.is_some_and(|account| may(&account)) || user::is_guest(read, user)? {
        return Ok(None);
    }
    let user_id = user::id_of(read, user)?;
    let Some((inviter, is_direct)) = said(read, user, &user_id, room, mine)? else { return Ok(None) };
    if invite_rules::verdict(read, user, &inviter)? != Verdict::Allow {
        return Ok(None);
    }
    let room_id = room::get_of(read, room)?.id;
    let (Ok(user_id), Ok(room_id), Ok(inviter)) = (user_id.try_into(), room_id.try_into(), inviter.try_into()) else {
        return Ok(None);
    };
    Ok(Some(OpenInvite { user, user_id, room_id, inviter, is_direct }))
}

/// Who invites, and whether to a direct chat.
fn said(read: &Read, user: UserNum, user_id: &str, num: RoomNum, mine: &Mine) -> Result<Option<(String, bool)>> {
    let is_direct = |content: &Value| content.get("is_direct") == Some(&Value::Bool(true));
    if let Some(event) = mine.event {
        let event = load(read, known_num(read, num)?.version, event)?;
        let content: Value = serde_json::from_str(event.content()).unwrap_or_default();
        return Ok(Some((event.sender().to_string(), is_direct(&content))));
    }
    let stripped = user_room::stripped(read, user, num)?.unwrap_or_default();
    let stripped: Vec<Value> = serde_json::from_slice(&stripped).unwrap_or_default();
    let own = stripped.iter().rev().find(|event| event["type"] == "m.room.member" && event["state_key"] == user_id);
    Ok(own.and_then(|event| Some((event["sender"].as_str()?.to_owned(), is_direct(&event["content"])))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::room::testing::house;

    #[tokio::test]
    async fn invites_are_found_once_and_by_what_they_say() {
        let house = house();
        let (anna, bert) = (house.user("anna").await, house.user("bert").await);
        let invite = async |direct: bool| {
            let room = house.public_room(&anna).await;
            let content = json!({ "membership": "invite", "is_direct": direct });
            house.send(&anna, &room, "m.room.member", Some(bert.as_str()), content).await.unwrap();
            room
        };
        let to_accept = async || {
            let mut all = Vec::new();
            while let Some(some) = house.rooms.invites_to_accept().await.unwrap() {
                all.extend(some.into_iter().map(|invite| (invite.user_id, invite.room_id, invite.inviter)));
            }
            all
        };
        let (plain, direct) = (invite(false).await, invite(true).await);
        assert_eq!(to_accept().await, []);
        // Those of before the setting are found too.
        house.rooms.set_auto_accept(AutoAccept::Direct, true);
        assert_eq!(to_accept().await, [(bert.clone(), direct.clone(), anna.clone())]);
        assert_eq!(to_accept().await, []);
        house.rooms.set_auto_accept(AutoAccept::All, true);
        let mut both = vec![plain.clone(), direct.clone()];
        let mut found: Vec<_> = to_accept().await.into_iter().map(|(_, room, _)| room).collect();
        both.sort();
        found.sort();
        assert_eq!(found, both);
        let third = invite(false).await;
        house.rooms.invited().await;
        assert_eq!(to_accept().await, [(bert.clone(), third, anna.clone())]);
        // Whoever is suspended accepts nothing.
        let num = house.user_num(&bert);
        let suspended = house.store.write(move |w| {
            let account = user::account(w, num)?.unwrap();
            user::set_account(w, num, &user::Account { suspended: true, ..account })
        });
        suspended.await.unwrap();
        invite(true).await;
        assert_eq!(to_accept().await, []);
    }
}
