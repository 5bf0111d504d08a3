//! Links with which people choose their own password: nobody else needs to know it.
//!
//! A link's code is random; only its SHA-256 is stored. A link is good once, and ends with time, with a newer one for the
//! same account, and when the password is set in another way.

use ruma::{OwnedUserId, UserId};

use super::session::token_hash;
use crate::store::tables::user::{self, Standing, password_link};
use crate::user::lookup::{id_of, local};
use crate::user::{Error, Users, check_new_password};

/// A link for a new account is good for a week: it may lie in somebody's letter box. One that replaces a password ends sooner.
const NEW_MS: u64 = 7 * 24 * 60 * 60 * 1000;
const RESET_MS: u64 = 2 * 24 * 60 * 60 * 1000;
/// 190 bits.
const CODE_CHARS: usize = 32;

/// A link that was just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasswordLink {
    pub code: String,
    pub expires_ms: u64,
}

impl Users {
    /// A link with which somebody chooses the password of an account. The account's earlier link ends. Its password stays
    /// until the link is used. `Deactivated` for a closed account.
    pub async fn make_password_link(&self, user_id: &UserId) -> Result<PasswordLink, Error> {
        let code = self.0.parts.random.token(CODE_CHARS);
        let (hash, now_ms, user_id) = (token_hash(&code), self.now_ms(), user_id.to_owned());
        self.write(move |w| {
            let user = local(w, &user_id)?;
            let row = user::account(w, user)?.ok_or(Error::NotFound("account"))?;
            if row.standing == Standing::Deactivated {
                return Err(Error::Deactivated);
            }
            let expires_ms = now_ms + if row.password_hash.is_some() { RESET_MS } else { NEW_MS };
            password_link::put(w, &hash, &password_link::Link { user, expires_ms }, now_ms)?;
            Ok(PasswordLink { code, expires_ms })
        })
        .await
    }

    /// Whose password a link sets, and whether there is one already; none for a link that is not good, or not any more.
    pub async fn password_link(&self, code: &str) -> Result<Option<(OwnedUserId, bool)>, Error> {
        let (hash, now_ms) = (token_hash(code), self.now_ms());
        self.read(move |get| {
            let Some(link) = password_link::get(get, &hash, now_ms)? else { return Ok(None) };
            let Some(row) = user::account(get, link.user)? else { return Ok(None) };
            Ok(Some((id_of(get, link.user)?, row.password_hash.is_some())))
        })
        .await
    }

    /// Sets the password of a link's account, and ends the link and every session of the account: somebody else may have
    /// known the old password. `Forbidden` for a link that is not good, or not any more.
    pub async fn set_password_by_link(&self, code: &str, password: &str) -> Result<OwnedUserId, Error> {
        let (hash, now_ms) = (token_hash(code), self.now_ms());
        let gone = || Error::Forbidden("This link was used, or has ended".to_owned());
        check_new_password(password)?;
        // Also before hashing: a hash is expensive.
        let (user_id, _) = self.password_link(code).await?.ok_or_else(gone)?;
        let password = self.hash_password(password).await?;
        // Before too: a power cut in between leaves no session open under a password that was changed, nor a link used.
        self.logout_all(&user_id, None).await?;
        let user_id = self
            .write(move |w| {
                let link = password_link::get(w, &hash, now_ms)?.ok_or_else(gone)?;
                let mut row = user::account(w, link.user)?.ok_or(Error::NotFound("account"))?;
                if row.standing == Standing::Deactivated {
                    return Err(Error::Deactivated);
                }
                row.password_hash = Some(password);
                user::set_account(w, link.user, &row)?;
                password_link::remove_of(w, link.user)?;
                id_of(w, link.user)
            })
            .await?;
        self.logout_all(&user_id, None).await?;
        Ok(user_id)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::user::account::New;
    use crate::user::tests::{Town, town};

    async fn with_anna() -> (Town, OwnedUserId) {
        let town = town();
        let anna = town.users.create(New { localpart: "anna".to_owned(), ..New::default() }).await.unwrap();
        (town, anna)
    }

    #[tokio::test]
    async fn a_link_is_good_once() {
        let (town, anna) = with_anna().await;
        let users = &town.users;
        let link = users.make_password_link(&anna).await.unwrap();
        assert_eq!(users.password_link(&link.code).await.unwrap(), Some((anna.clone(), false)));
        assert!(matches!(users.set_password_by_link(&link.code, "short").await, Err(Error::Bad { .. })));
        assert_eq!(users.set_password_by_link(&link.code, "correct horse").await.unwrap(), anna);
        users.check_password(&anna, "correct horse").await.unwrap();
        assert!(matches!(users.set_password_by_link(&link.code, "another one").await, Err(Error::Forbidden(_))));
        assert_eq!(users.password_link(&link.code).await.unwrap(), None);
        users.check_password(&anna, "correct horse").await.unwrap();
    }

    #[tokio::test]
    async fn a_link_ends_with_time_with_a_newer_one_and_with_another_password() {
        let (town, anna) = with_anna().await;
        let users = &town.users;
        let is_good = async |link: &PasswordLink| users.password_link(&link.code).await.unwrap().is_some();
        let first = users.make_password_link(&anna).await.unwrap();
        town.clock.advance(Duration::from_millis(NEW_MS - 1));
        assert!(is_good(&first).await);
        let second = users.make_password_link(&anna).await.unwrap();
        assert!(!is_good(&first).await && is_good(&second).await);
        users.set_password(&anna, "correct horse").await.unwrap();
        assert!(!is_good(&second).await);
        let third = users.make_password_link(&anna).await.unwrap();
        town.clock.advance(Duration::from_millis(RESET_MS));
        assert!(!is_good(&third).await);
        assert!(users.set_password_by_link(&third.code, "another one").await.is_err());
        let last = users.make_password_link(&anna).await.unwrap();
        users.close(&anna, false).await.unwrap();
        assert!(!is_good(&last).await);
        assert!(matches!(users.make_password_link(&anna).await, Err(Error::Deactivated)));
    }

    #[tokio::test]
    async fn a_new_password_ends_the_sessions() {
        let (town, _) = with_anna().await;
        let bert = town.person("bert").await;
        let link = town.users.make_password_link(&bert.user_id).await.unwrap();
        assert_eq!(town.users.devices_of(&bert.user_id).await.unwrap().len(), 1);
        town.users.set_password_by_link(&link.code, "correct horse").await.unwrap();
        assert!(town.users.devices_of(&bert.user_id).await.unwrap().is_empty());
    }
}
