//! The account that this server's notices come from, and each user's room of them (client-server API, "Server Notices").
//!
//! The account has no password and no session. A user has one such room; it stands in a row, so that nobody else's room
//! is taken for it.

use ruma::{OwnedRoomId, OwnedUserId, RoomId};
use serde_json::Value;

use super::{Standing, check_free};
use crate::matrix::id;
use crate::store::tables::{room, user};
use crate::store::{Change, UserNum};
use crate::user::{Error, Users};

/// The row with the accounts that were made for notices: as many as names were in the settings one after the other.
const NOTICES_ACCOUNTS: &str = "notices_accounts";

impl Users {
    /// The account for notices, made when there is none. `Forbidden` when a person has an account of that name. The
    /// fields are those of its profile; answers whether one of them is new.
    pub async fn notices_account(
        &self,
        localpart: &str,
        fields: Vec<(&'static str, Option<Value>)>,
    ) -> Result<(OwnedUserId, bool), Error> {
        let user_id = id::new_user(localpart, self.server())
            .map_err(|wrong| Error::bad("M_INVALID_USERNAME", wrong.to_string()))?;
        let created_ms = self.now_ms();
        self.write(move |w| {
            let mut made = user::meta::<Vec<OwnedUserId>>(w, NOTICES_ACCOUNTS)?.unwrap_or_default();
            if !made.contains(&user_id) {
                if check_free(w, &user_id).is_err() {
                    let message = format!("{user_id} is a person's account; name another one in notices.user");
                    return Err(Error::Forbidden(message));
                }
                let num = user::intern(w, user_id.as_str())?;
                user::set_account(w, num, &user::Account::new(created_ms, false, None))?;
                made.push(user_id.clone());
                user::set_meta(w, NOTICES_ACCOUNTS, Some(&made))?;
            }
            let num = user::num(w, user_id.as_str())?.ok_or(Error::NotFound("account"))?;
            let mut is_new = false;
            for (field, value) in fields {
                if user::profile_field(w, num, field)? != value {
                    user::set_profile_field(w, num, field, value.as_ref())?;
                    is_new = true;
                }
            }
            Ok((user_id, is_new))
        })
        .await
    }

    /// Whether an account sends notices, or did so under an earlier setting.
    pub async fn sends_notices(&self, user_id: &ruma::UserId) -> Result<bool, Error> {
        let made = self.read(|get| Ok(user::meta::<Vec<OwnedUserId>>(get, NOTICES_ACCOUNTS)?)).await?;
        Ok(made.is_some_and(|made| made.iter().any(|one| one == user_id)))
    }

    /// A user's room of notices, and who made it.
    pub async fn notice_room(&self, user: UserNum) -> Result<Option<(OwnedRoomId, OwnedUserId)>, Error> {
        self.read(move |get| {
            let Some((room, by)) = user::notice_room(get, user)? else { return Ok(None) };
            // One that was removed for good is none: the next notice makes another.
            let Some(room) = room::get(get, room)? else { return Ok(None) };
            let id = room.id;
            let id = OwnedRoomId::try_from(id).map_err(|_| Error::NotFound("room"))?;
            Ok(Some((id, super::id_of(get, by)?)))
        })
        .await
    }

    /// Makes a room the one of a user's notices.
    pub async fn set_notice_room(&self, user: UserNum, room_id: &RoomId, by: &ruma::UserId) -> Result<(), Error> {
        let (room_id, by) = (room_id.to_owned(), by.to_owned());
        self.write(move |w| {
            let room = room::num(w, room_id.as_str())?.ok_or(Error::NotFound("room"))?;
            let by = user::num(w, by.as_str())?.ok_or(Error::NotFound("account"))?;
            user::set_notice_room(w, user, Some((room, by)))?;
            w.announce(Change { users: vec![user], ..Change::default() });
            Ok(())
        })
        .await
    }

    /// The first administrators, in the order of their accounts.
    pub async fn administrators(&self, most: usize) -> Result<Vec<OwnedUserId>, Error> {
        self.read(move |get| {
            let mut nums = Vec::new();
            user::accounts_after(get, None, &mut |num, row| {
                if row.admin && row.standing == Standing::Active {
                    nums.push(num);
                }
                Ok(match nums.len() < most {
                    true => std::ops::ControlFlow::Continue(()),
                    false => std::ops::ControlFlow::Break(()),
                })
            })?;
            nums.into_iter().map(|num| super::id_of(get, num)).collect()
        })
        .await
    }

    /// The number of an active local account.
    pub async fn active(&self, user_id: &ruma::UserId) -> Result<UserNum, Error> {
        let user_id = user_id.to_owned();
        self.read(move |get| {
            let num = super::local(get, &user_id)?;
            match user::account(get, num)? {
                Some(row) if row.standing == Standing::Active => Ok(num),
                Some(_) => Err(Error::Deactivated),
                None => Err(Error::NotFound("account")),
            }
        })
        .await
    }
}
