//! Accounts: created, looked up, closed.

use std::ops::ControlFlow;

use ruma::{OwnedUserId, UserId};

use super::{Error, Users};
use crate::matrix::id;
use crate::store::tables::media;
use crate::store::tables::user::password_link as link_row;
use crate::store::tables::user::{self, account_data, device, e2ee_key, filter, presence};
use crate::store::{Get, UserNum, Write};
use password::{check_new_password, is_outdated};

use super::lookup::{id_of, local};
pub use crate::store::tables::user::{Pace, QUOTA_UNLIMITED, Standing};

pub mod directory;
pub mod find;
pub mod guest;
pub mod known;
pub mod login_token;
pub mod newcomers;
pub mod notices;
pub mod page_session;
pub mod password;
pub mod password_link;
pub mod people;
pub mod profile;
pub mod refresh;
pub mod registration_token;
pub mod service;
pub mod session;
pub mod terms;
pub mod uia;

/// The row of the setup code that the first-run page asks for.
const SETUP_CODE: &str = "setup_code";
/// More than 80 bits, and short enough to type from a log line.
const SETUP_CODE_CHARS: usize = 16;

/// A new account.
#[derive(Debug, Clone, Default)]
pub struct New {
    /// The part of the id between `@` and the colon.
    pub localpart: String,
    /// Without a password no login by password is possible.
    pub password: Option<String>,
    pub admin: bool,
    /// Which terms the user has agreed to, as [`Requester::agreed`] has it.
    pub agreed: u64,
    /// A program's account, for which no rate holds.
    pub bot: bool,
    /// The registration token that an administrator made, which is counted along with the account.
    pub token: Option<String>,
}

/// An account as other users may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub user_id: OwnedUserId,
    pub created_ms: u64,
    pub standing: Standing,
    pub admin: bool,
    pub has_password: bool,
    pub locked: bool,
    pub suspended: bool,
    pub bot: bool,
    pub shadow_banned: bool,
    pub pace: Option<Pace>,
    /// What its files may take in bytes, where that is not what everybody's may; [`QUOTA_UNLIMITED`]: whatever there is room for.
    pub quota: Option<u64>,
}

impl Account {
    fn new(user_id: OwnedUserId, row: user::Account) -> Account {
        let has_password = row.password_hash.is_some();
        let user::Account { created_ms, standing, admin, locked, suspended, bot, shadow_banned, pace, quota, .. } = row;
        Account {
            user_id,
            created_ms,
            standing,
            admin,
            has_password,
            locked,
            suspended,
            bot,
            shadow_banned,
            pace,
            quota,
        }
    }
}

impl Users {
    /// The id a new account would have; `M_INVALID_USERNAME` when it may not.
    pub fn new_id(&self, localpart: &str) -> Result<OwnedUserId, Error> {
        id::new_user(localpart, self.server()).map_err(|wrong| Error::bad("M_INVALID_USERNAME", wrong.to_string()))
    }

    /// Whether a new account may have this name: `Taken` when an account has or had it, `M_EXCLUSIVE` when it is an application
    /// service's alone, which could do and read everything there.
    pub async fn is_free(&self, localpart: &str) -> Result<(), Error> {
        let user_id = self.new_id(localpart)?;
        self.check_not_exclusive(&user_id, None)?;
        self.read(move |get| check_free(get, &user_id)).await
    }

    /// Creates an account.
    pub async fn create(&self, new: New) -> Result<OwnedUserId, Error> {
        let user_id = self.new_id(&new.localpart)?;
        if let Some(password) = &new.password {
            check_new_password(password)?;
        }
        // Also checked before hashing: a hash is expensive.
        self.is_free(&new.localpart).await?;
        let password_hash = match &new.password {
            Some(password) => Some(self.hash_password(password).await?),
            None => None,
        };
        let mut row = user::Account::new(self.now_ms(), new.admin, password_hash);
        row.agreed = new.agreed;
        if new.bot {
            (row.bot, row.pace) = (true, Some(Pace::UNLIMITED));
        }
        let (welcomes, token, now_ms) = (self.welcomes(), new.token, self.now_ms());
        let made = self.write(move |w| {
            check_free(w, &user_id)?;
            if let Some(token) = &token {
                registration_token::spend(w, token, now_ms)?;
            }
            let num = user::intern(w, user_id.as_str())?;
            user::set_account(w, num, &row)?;
            // A bot is invited to where it works.
            user::set_newcomer(w, num, welcomes && !row.bot)?;
            let name = serde_json::Value::from(user_id.localpart());
            user::set_profile_field(w, num, "displayname", Some(&name))?;
            Ok(user_id)
        });
        let user_id = made.await?;
        self.0.newcomers.notify_one();
        Ok(user_id)
    }

    /// A local account; none when there is no account of that name.
    pub async fn account(&self, user_id: &UserId) -> Result<Option<Account>, Error> {
        let user_id = user_id.to_owned();
        self.read(move |get| {
            let Some(num) = user::num(get, user_id.as_str())? else { return Ok(None) };
            Ok(user::account(get, num)?.map(|row| Account::new(user_id, row)))
        })
        .await
    }

    /// The number of a local account. `NotFound` when there is none.
    pub async fn local_num(&self, user_id: &UserId) -> Result<UserNum, Error> {
        let user_id = user_id.to_owned();
        self.read(move |get| local(get, &user_id)).await
    }

    /// The id of a user's number.
    pub async fn id_of(&self, num: UserNum) -> Result<OwnedUserId, Error> {
        self.read(move |get| user::id_of(get, num)?.try_into().map_err(|_| Error::NotFound("account"))).await
    }

    /// The bytes of files that each of some accounts has uploaded.
    pub async fn uploaded_by(&self, accounts: Vec<OwnedUserId>) -> Result<Vec<u64>, Error> {
        self.read(move |get| {
            let one = |id: OwnedUserId| match user::num(get, id.as_str())? {
                Some(num) => media::used_by(get, num),
                None => Ok(0),
            };
            Ok(accounts.into_iter().map(one).collect::<crate::store::Result<_>>()?)
        })
        .await
    }

    /// At most `most` accounts after `after`, in the order of their creation.
    pub async fn list(&self, after: Option<&UserId>, most: usize) -> Result<Vec<Account>, Error> {
        let after = after.map(ToOwned::to_owned);
        self.read(move |get| {
            let after = match after {
                Some(after) => user::num(get, after.as_str())?,
                None => None,
            };
            let mut rows = Vec::new();
            user::accounts_after(get, after, &mut |num, row| {
                rows.push((num, row));
                Ok(if rows.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            rows.into_iter().map(|(num, row)| Ok(Account::new(id_of(get, num)?, row))).collect()
        })
        .await
    }

    /// The number of accounts, counted no further than `most`.
    pub async fn count_up_to(&self, most: usize) -> Result<usize, Error> {
        self.read(move |get| Ok(user::count_up_to(get, most)?)).await
    }

    /// Sets an account's password.
    pub async fn set_password(&self, user_id: &UserId, password: &str) -> Result<(), Error> {
        check_new_password(password)?;
        let hash = self.hash_password(password).await?;
        self.put_password(user_id, hash).await
    }

    /// Sets an account's password and ends every session, since somebody else may know the old one. The sessions end before it
    /// too, each in a write of its own: a power cut in between leaves none open under a password that was changed.
    pub async fn replace_password(&self, user_id: &UserId, password: &str) -> Result<(), Error> {
        check_new_password(password)?;
        let hash = self.hash_password(password).await?;
        self.logout_all(user_id, None).await?;
        self.put_password(user_id, hash).await?;
        self.logout_all(user_id, None).await
    }

    async fn put_password(&self, user_id: &UserId, hash: String) -> Result<(), Error> {
        let user_id = user_id.to_owned();
        self.write(move |w| {
            let num = changed(w, &user_id, |row| row.password_hash = Some(hash))?;
            Ok(link_row::remove_of(w, num)?)
        })
        .await
    }

    /// Locks an account, or takes that back: its sessions are refused everything but their end. Its polls end now.
    pub async fn set_locked(&self, user_id: &UserId, locked: bool) -> Result<(), Error> {
        self.change(user_id, move |row| row.locked = locked).await
    }

    /// Suspends an account, or takes that back: it may read, and not speak.
    pub async fn set_suspended(&self, user_id: &UserId, suspended: bool) -> Result<(), Error> {
        self.change(user_id, move |row| row.suspended = suspended).await
    }

    /// Has all that an account sends from now on reach nobody, unknown to it; or takes that back.
    pub async fn set_shadow_banned(&self, user_id: &UserId, banned: bool) -> Result<(), Error> {
        self.change(user_id, move |row| row.shadow_banned = banned).await
    }

    /// Says of an account that it is a program's.
    pub async fn set_bot(&self, user_id: &UserId, bot: bool) -> Result<(), Error> {
        self.change(user_id, move |row| row.bot = bot).await
    }

    /// Sets how often an account may ask, at once and durably; with `None` as everybody may.
    pub async fn set_pace(&self, user_id: &UserId, pace: Option<Pace>) -> Result<(), Error> {
        self.change(user_id, move |row| row.pace = pace).await
    }

    /// Sets what the files of an account may take in bytes, for the next upload on and durably; with `None` as everybody's.
    pub async fn set_quota(&self, user_id: &UserId, quota: Option<u64>) -> Result<(), Error> {
        self.change(user_id, move |row| row.quota = quota).await
    }

    /// Notes which terms a user has agreed to.
    pub async fn set_agreed(&self, user_id: &UserId, agreed: u64) -> Result<(), Error> {
        self.change(user_id, move |row| row.agreed = agreed).await
    }

    /// Whether the account is an administrator's, and no other active one is.
    pub async fn is_last_admin(&self, user_id: &UserId) -> Result<bool, Error> {
        let user_id = user_id.to_owned();
        self.read(move |get| {
            let (this, mut is_admin, mut others) = (user::num(get, user_id.as_str())?, false, false);
            user::accounts_after(get, None, &mut |num, row| {
                let counts = row.admin && row.standing == Standing::Active;
                match Some(num) == this {
                    true => is_admin = counts,
                    false => others |= counts,
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(is_admin && !others)
        })
        .await
    }

    /// Whether any active account is an administrator's.
    pub async fn has_admin(&self) -> Result<bool, Error> {
        self.read(|get| {
            let mut found = false;
            user::accounts_after(get, None, &mut |_, row| {
                found = row.admin && row.standing == Standing::Active;
                Ok(if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            Ok(found)
        })
        .await
    }

    pub async fn set_admin(&self, user_id: &UserId, admin: bool) -> Result<(), Error> {
        self.change(user_id, move |row| row.admin = admin).await
    }

    /// `Forbidden` unless this is the account's password.
    pub async fn check_password(&self, user_id: &UserId, password: &str) -> Result<(), Error> {
        let name = user_id.to_owned();
        let row = self
            .read(move |get| match user::num(get, name.as_str())? {
                Some(num) => Ok(user::account(get, num)?),
                None => Ok(None),
            })
            .await?;
        let hash = row.as_ref().and_then(|row| row.password_hash.as_deref());
        let fits = self.is_password(user_id, password, hash).await?;
        match row {
            Some(row) if row.standing == Standing::Deactivated => Err(Error::Deactivated),
            Some(row) if fits => {
                if let Err(failed) = self.renew_hash(user_id, password, row.password_hash).await {
                    tracing::warn!(%user_id, %failed, "a password hash could not be renewed");
                }
                Ok(())
            }
            _ => Err(Error::Forbidden("Wrong user name or password".to_owned())),
        }
    }

    /// Hashes a password that was just given again at today's cost, when its hash has another: a hash from a larger
    /// board could not be checked on a smaller one.
    async fn renew_hash(&self, user_id: &UserId, password: &str, kept: Option<String>) -> Result<(), Error> {
        if !kept.as_deref().is_some_and(is_outdated) {
            return Ok(());
        }
        let hash = self.hash_password(password).await?;
        self.change(user_id, move |row| {
            // Unless the password was changed meanwhile.
            if row.password_hash == kept {
                row.password_hash = Some(hash);
            }
        })
        .await
    }

    /// Closes an account for good: its password, devices and keys are removed, and the name is never given out again.
    /// `flow::deactivate` leaves the rooms beforehand. `erase`: from now on who was not in a room at an event of the user
    /// is given that event redacted.
    pub async fn close(&self, user_id: &UserId, erase: bool) -> Result<(), Error> {
        let user_id = user_id.to_owned();
        let server = self.server().to_owned();
        let job = move |w: &mut Write<'_>| {
            let num = local(w, &user_id)?;
            let mut row = user::account(w, num)?.ok_or(Error::NotFound("account"))?;
            row.standing = Standing::Deactivated;
            row.password_hash = None;
            (row.admin, row.locked, row.suspended, row.agreed) = (false, false, false, 0);
            (row.bot, row.shadow_banned, row.pace, row.quota) = (false, false, None, None);
            user::set_account(w, num, &row)?;
            // Its place is free for another.
            user::set_guest(w, num, false)?;
            user::set_newcomer(w, num, false)?;
            if erase {
                user::set_erased(w, num)?;
            }
            for device_id in device::ids(w, num)? {
                super::device::forget(w, num, &device_id)?;
                super::device::announce::device_gone(w, &server, num, &user_id, &device_id)?;
            }
            e2ee_key::remove_cross(w, num)?;
            super::device::backup::forget_backups(w, num)?;
            account_data::remove_user(w, num)?;
            filter::remove_user(w, num)?;
            presence::set_message(w, num, None)?;
            user::remove_profile(w, num)?;
            link_row::remove_of(w, num)?;
            user::set_notice_room(w, num, None)?;
            Ok(num)
        };
        let num = self.write(job).await?;
        self.tidy_sliding(num);
        self.backups_are_gone();
        self.empty_ended();
        Ok(())
    }

    /// The setup code for the first-run page, created when there is none yet; none once there is an account.
    pub async fn setup_code(&self) -> Result<Option<String>, Error> {
        let fresh = self.0.parts.random.token(SETUP_CODE_CHARS).to_uppercase();
        self.write(move |w| {
            if user::count_up_to(w, 1)? > 0 {
                return Ok(None);
            }
            if let Some(code) = user::meta::<String>(w, SETUP_CODE)? {
                return Ok(Some(code));
            }
            user::set_meta(w, SETUP_CODE, Some(&fresh))?;
            Ok(Some(fresh))
        })
        .await
    }

    /// Whether this is the setup code, with or without blanks and capitals.
    pub async fn is_setup_code(&self, code: &str) -> Result<bool, Error> {
        let known = self.read(|get| Ok(user::meta::<String>(get, SETUP_CODE)?)).await?;
        Ok(known.is_some_and(|known| known == setup_code(code)))
    }

    /// Creates the first account, an administrator's, given the setup code; the code is removed with it.
    pub async fn create_first(&self, code: &str, localpart: &str, password: &str) -> Result<OwnedUserId, Error> {
        let typed = setup_code(code);
        let wrong = || Error::Forbidden("The setup code is wrong; the server's log has the right one".to_owned());
        let user_id = self.new_id(localpart)?;
        check_new_password(password)?;
        if !self.is_setup_code(code).await? {
            return Err(wrong());
        }
        let hash = self.hash_password(password).await?;
        let created_ms = self.now_ms();
        let welcomes = self.welcomes();
        let made = self.write(move |w| {
            if user::meta::<String>(w, SETUP_CODE)?.as_deref() != Some(typed.as_str()) || user::count_up_to(w, 1)? > 0 {
                return Err(wrong());
            }
            let num = user::intern(w, user_id.as_str())?;
            let row = user::Account::new(created_ms, true, Some(hash));
            user::set_account(w, num, &row)?;
            user::set_newcomer(w, num, welcomes)?;
            user::set_profile_field(w, num, "displayname", Some(&user_id.localpart().into()))?;
            user::set_meta::<String>(w, SETUP_CODE, None)?;
            Ok(user_id)
        });
        let user_id = made.await?;
        self.0.newcomers.notify_one();
        Ok(user_id)
    }

    async fn change(
        &self,
        user_id: &UserId,
        change: impl FnOnce(&mut user::Account) + Send + 'static,
    ) -> Result<(), Error> {
        let user_id = user_id.to_owned();
        self.write(move |w| changed(w, &user_id, change).map(drop)).await
    }
}

/// Changes the row of an account that is not closed.
fn changed(w: &mut Write<'_>, user_id: &UserId, change: impl FnOnce(&mut user::Account)) -> Result<UserNum, Error> {
    let num = local(w, user_id)?;
    let mut row = user::account(w, num)?.ok_or(Error::NotFound("account"))?;
    if row.standing == Standing::Deactivated {
        return Err(Error::Deactivated);
    }
    change(&mut row);
    user::set_account(w, num, &row)?;
    Ok(num)
}

/// A setup code as it is stored.
fn setup_code(typed: &str) -> String {
    typed.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_uppercase()
}

fn check_free(get: &impl Get, user_id: &UserId) -> Result<(), Error> {
    let Some(num) = user::num(get, user_id.as_str())? else { return Ok(()) };
    if user::is_local(get, num)? { Err(Error::Taken) } else { Ok(()) }
}
