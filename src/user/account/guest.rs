//! Guest accounts: without a password, and with little that they may do ("Guest Access").

use ruma::{OwnedUserId, UserId};

use super::password::check_new_password;
use crate::base::blocking;
use crate::store::UserNum;
use crate::store::tables::user::{self, Standing, device};
use crate::user::{Error, Users, lookup};

/// Guest accounts at most. The name of one that was closed is never given out again, and is some hundred bytes for ever.
const GUESTS_MAX: usize = 10_000;
/// Guests looked at in one read.
const LOOKED_AT: usize = 200;

impl Users {
    /// Creates a guest account of this name. `Taken` when an account has or had it; `M_RESOURCE_LIMIT_EXCEEDED` when there are too many
    /// guests.
    pub async fn create_guest(&self, localpart: &str) -> Result<OwnedUserId, Error> {
        let user_id = self.new_id(localpart)?;
        let created_ms = self.now_ms();
        self.write(move |w| {
            super::check_free(w, &user_id)?;
            if user::guests_up_to(w, GUESTS_MAX)? == GUESTS_MAX {
                return Err(Error::bad("M_RESOURCE_LIMIT_EXCEEDED", "There are too many guests on this server"));
            }
            let num = user::intern(w, user_id.as_str())?;
            let row = user::Account::new(created_ms, false, None);
            user::set_account(w, num, &row)?;
            user::set_guest(w, num, true)?;
            user::set_profile_field(w, num, "displayname", Some(&user_id.localpart().into()))?;
            Ok(user_id)
        })
        .await
    }

    /// Guests of whom nothing was heard since `before_ms`, among some behind `after`; and the last of those that was looked at,
    /// none when it was the last of all.
    pub async fn unused_guests(
        &self,
        after: Option<UserNum>,
        before_ms: u64,
    ) -> Result<(Vec<OwnedUserId>, Option<UserNum>), Error> {
        let users = self.clone();
        blocking(move || {
            let (read, mut unused) = (users.0.parts.store.read()?, Vec::new());
            let guests = user::guests_after(&read, after, LOOKED_AT)?;
            for num in &guests {
                let Some(account) = user::account(&read, *num)? else { continue };
                let mut seen_ms = account.created_ms;
                for id in device::ids(&read, *num)? {
                    seen_ms = device::get(&read, *num, &id)?.map_or(seen_ms, |row| seen_ms.max(row.seen_ms));
                }
                if seen_ms < before_ms {
                    unused.extend(OwnedUserId::try_from(user::id_of(&read, *num)?));
                }
            }
            Ok((unused, guests.last().copied().filter(|_| guests.len() == LOOKED_AT)))
        })
        .await
    }

    /// Makes a guest's account an ordinary one, which keeps its rooms. `Forbidden` when it is no guest's.
    pub async fn upgrade_guest(&self, user_id: &UserId, password: &str) -> Result<(), Error> {
        check_new_password(password)?;
        let hash = self.hash_password(password).await?;
        let user_id = user_id.to_owned();
        let welcomes = self.welcomes();
        let upgraded = self.write(move |w| {
            let num = lookup::local(w, &user_id)?;
            let row = user::account(w, num)?.filter(|row| row.standing == Standing::Active);
            let row = row.ok_or(Error::NotFound("account"))?;
            if !user::is_guest(w, num)? {
                return Err(Error::Forbidden("This account is not a guest's any more".to_owned()));
            }
            user::set_guest(w, num, false)?;
            user::set_newcomer(w, num, welcomes)?;
            Ok(user::set_account(w, num, &user::Account { password_hash: Some(hash), ..row })?)
        });
        upgraded.await?;
        self.0.newcomers.notify_one();
        Ok(())
    }
}
