//! What this server tells its users, each in a room of their own (client-server API, "Server Notices").
//!
//! A user has one such room, made at the first notice, in which nobody else speaks. It is tagged, so that apps show it as
//! what it is. Who left it is invited again by the next notice: a stranger who gives cause for many makes no rooms. An
//! invite to it cannot be declined.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

use crate::base::{KeyedLock, Live, gathered, unbroken};
use crate::room::{self, Create, Joining, Membership, Preset, Renewal, Rooms, Sending, StateDraft};
use crate::user::{self, Requester, Users};

const TAG: &str = "m.server_notice";
/// As many administrators are told: each is a room and a commit.
const ADMINISTRATORS_MAX: usize = 32;
/// The text of a notice, in bytes: far below what an event may have.
pub const NOTICE_BYTES_MAX: usize = 16 * 1024;
/// Below what sending anything needs.
const OTHERS_LEVEL: i64 = -10;

/// Who tells users something, and where.
#[derive(Debug, Clone)]
pub struct NoticeOptions {
    /// The part before the colon of the account that notices come from.
    pub user: String,
    pub name: String,
    pub avatar: Option<String>,
    pub room_name: String,
    /// Whether users are joined to the room of their notices, and not only invited.
    pub join: bool,
}

impl Default for NoticeOptions {
    fn default() -> NoticeOptions {
        let name = "Server notices".to_owned();
        NoticeOptions { user: "notices".to_owned(), room_name: name.clone(), name, avatar: None, join: false }
    }
}

/// The notices. Cheap to clone.
#[derive(Clone)]
pub struct Notices(Arc<Inner>);

struct Inner {
    users: Users,
    rooms: Rooms,
    options: Live<NoticeOptions>,
    /// Who tells them, once that account is known to exist.
    account: OnceCell<OwnedUserId>,
    /// One at a time for each user, so that nobody has two such rooms.
    each: KeyedLock,
}

/// The reason that somebody could not be told.
#[derive(Debug, thiserror::Error)]
pub enum NotTold {
    #[error(transparent)]
    User(#[from] user::Error),
    #[error(transparent)]
    Room(#[from] room::Error),
}

impl Notices {
    pub fn new(users: Users, rooms: Rooms, options: NoticeOptions) -> Notices {
        if let Ok(own) = users.new_id(&options.user) {
            rooms.set_own_user(&own);
        }
        Notices(Arc::new(Inner {
            users,
            rooms,
            options: Live::new(options),
            account: OnceCell::default(),
            each: KeyedLock::default(),
        }))
    }

    /// Sets how notices are told from now on. The account that tells them stays the same one.
    pub fn set_options(&self, options: NoticeOptions) {
        let before = self.0.options.get();
        let (user, name, avatar) = (before.user.clone(), before.name.clone(), before.avatar.clone());
        self.0.options.set(NoticeOptions { user, name, avatar, ..options });
    }

    /// Whether the account of notices has this name: nobody may take it, also before there is that account.
    pub fn is_reserved(&self, localpart: &str) -> bool {
        localpart == self.0.options.get().user
    }

    /// Tells a local user a text, in their room of notices. The account of notices itself is told nothing: `Forbidden`.
    /// `NotFound` or `Deactivated` for an account that is not there or was closed.
    pub async fn tell(&self, user_id: &UserId, text: &str) -> Result<OwnedEventId, NotTold> {
        let body = cut(text);
        self.send(user_id, json!({ "msgtype": "m.text", "body": body })).await
    }

    /// Tells every administrator a text, each in their room of notices. Answers how many were told: who could not be is
    /// named in the log. For what happens without the operator's doing, such as reports.
    pub async fn tell_administrators(&self, text: &str) -> usize {
        let administrators = match self.0.users.administrators(ADMINISTRATORS_MAX).await {
            Ok(administrators) => administrators,
            Err(failed) => {
                tracing::warn!("the administrators could not be told: {failed}");
                return 0;
            }
        };
        let mut told = 0;
        for user_id in administrators {
            match self.tell(&user_id, text).await {
                Ok(_) => told += 1,
                Err(failed) => tracing::warn!("the administrator {user_id} could not be told: {failed}"),
            }
        }
        told
    }

    /// Sends the content of a message into a user's room of notices.
    pub async fn send(&self, user_id: &UserId, content: Value) -> Result<OwnedEventId, NotTold> {
        let (notices, user_id) = (self.clone(), user_id.to_owned());
        // Not cancelled when the caller goes away: a room would be made that no row leads to.
        unbroken(async move { notices.send_now(&user_id, content).await }).await
    }

    /// Whether a user would decline an invite to their room of notices, which they may not. They may leave it once they
    /// have joined.
    pub async fn would_decline(&self, requester: &Requester, room_id: &RoomId) -> Result<bool, NotTold> {
        let is_theirs = self.0.users.notice_room(requester.user_num).await?.is_some_and(|(room, _)| room == room_id);
        if !is_theirs {
            return Ok(false);
        }
        let membership = self.0.rooms.membership(&requester.user_id, room_id).await?;
        Ok(membership == Some(Membership::Invite))
    }

    /// Whether a room is the one of a user's notices.
    pub async fn is_notice_room(&self, requester: &Requester, room_id: &RoomId) -> Result<bool, NotTold> {
        Ok(self.0.users.notice_room(requester.user_num).await?.is_some_and(|(room, _)| room == room_id))
    }

    async fn send_now(&self, user_id: &UserId, content: Value) -> Result<OwnedEventId, NotTold> {
        let inner = &*self.0;
        let user = inner.users.active(user_id).await?;
        if inner.users.sends_notices(user_id).await? {
            return Err(user::Error::Forbidden("the account of notices is told nothing".to_owned()).into());
        }
        let from = inner.account.get_or_try_init(|| self.make_account()).await?;
        let _turn = inner.each.take(user_id.as_str()).await;
        let room_id = match self.room_of(user, from).await? {
            Some(room_id) => room_id,
            None => self.make_room(user, user_id, from).await?,
        };
        self.bring(user, user_id, from, &room_id).await?;
        let content = to_raw_value(&content).map_err(user::Error::from)?;
        let kind = "m.room.message".to_owned();
        let sending =
            Sending { kind, state_key: None, content, redacts: None, sticky_ms: None, ts: None, txn: None, paid: None };
        Ok(inner.rooms.send(from, &room_id, sending).await?)
    }

    /// The account that notices come from, as the settings want it. A new name or picture is told to its rooms.
    async fn make_account(&self) -> Result<OwnedUserId, NotTold> {
        let NoticeOptions { user, name, avatar, .. } = &*self.0.options.get();
        let fields =
            vec![("displayname", Some(name.as_str().into())), ("avatar_url", avatar.as_deref().map(Value::from))];
        let (account, is_new) = self.0.users.notices_account(user, fields).await?;
        if is_new {
            self.0.rooms.renew_profile(&account, Renewal::All);
        }
        Ok(account)
    }

    /// The room of a user's notices. None while there is no room in which the account of today's settings is.
    async fn room_of(&self, user: user::UserNum, from: &UserId) -> Result<Option<OwnedRoomId>, NotTold> {
        let Some((room_id, by)) = self.0.users.notice_room(user).await? else { return Ok(None) };
        let is_there = by == from && self.0.rooms.membership(from, &room_id).await? == Some(Membership::Join);
        Ok(is_there.then_some(room_id))
    }

    async fn make_room(&self, user: user::UserNum, user_id: &UserId, from: &UserId) -> Result<OwnedRoomId, NotTold> {
        let NoticeOptions { room_name, avatar, .. } = &*self.0.options.get();
        let picture = avatar.as_ref().map(|url| StateDraft {
            kind: "m.room.avatar".to_owned(),
            state_key: String::new(),
            content: json!({ "url": url }),
        });
        let levels = gathered([("users_default".to_owned(), Value::from(OTHERS_LEVEL))]);
        let create = Create {
            preset: Some(Preset::Private),
            name: Some(room_name.clone()),
            initial_state: picture.into_iter().collect(),
            power_level_content_override: levels,
            ..Create::default()
        };
        let room_id = self.0.rooms.create(from, create).await?;
        self.0.users.set_notice_room(user, &room_id, from).await?;
        tracing::info!("{room_id} is the room of notices for {user_id}");
        Ok(room_id)
    }

    /// Invites a user to their room of notices, unless they are there or invited, and tags it.
    async fn bring(
        &self,
        user: user::UserNum,
        user_id: &UserId,
        from: &UserId,
        room_id: &RoomId,
    ) -> Result<(), NotTold> {
        let Inner { users, rooms, options, .. } = &*self.0;
        if matches!(rooms.membership(user_id, room_id).await?, Some(Membership::Join | Membership::Invite)) {
            return Ok(());
        }
        // Before the invite: an app is to know what it is invited to.
        users.set_tag(user, room_id, TAG, Some(Map::new())).await?;
        rooms.invite(from, room_id, user_id, None).await?;
        if options.get().join {
            rooms.join(user_id, room_id, Joining::default()).await?;
        }
        Ok(())
    }
}

/// The beginning of a text that is longer than a notice may be.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(NOTICE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
