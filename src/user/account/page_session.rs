//! Who is signed in on the administrators' page.
//!
//! A session there is no device: it has no keys, and nobody's app is shown it. It is in memory, so a restart ends it, and
//! good for as long as the account is an active administrator's with the same password.

use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use sha2::{Digest, Sha256};

use super::session::token_hash;
use crate::base::{Owner, Shares};
use crate::store::tables::user::{self, Standing};
use crate::user::{Error, Users};

/// A session ends this long after its last request.
const IDLE_MS: u64 = 12 * 60 * 60 * 1000;
/// And this long after its beginning.
const LIFE_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Sessions kept, about 200 bytes each; beyond that the user with most of them loses one.
const SESSIONS_MAX: usize = 32;
const TOKEN_CHARS: usize = 43;
/// The characters of the token that a form of the page has: 128 bits.
const FORM_TOKEN_CHARS: usize = 32;

pub(in crate::user) struct PageSessions(Mutex<Shares<[u8; 32], PageSession>>);

impl Default for PageSessions {
    fn default() -> PageSessions {
        PageSessions(Mutex::new(Shares::new(SESSIONS_MAX, 0)))
    }
}

struct PageSession {
    user_id: OwnedUserId,
    since_ms: u64,
    seen_ms: u64,
    /// Of the password's hash: another password ends the session.
    password: [u8; 32],
}

impl PageSession {
    fn is_good(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.seen_ms) < IDLE_MS && now_ms.saturating_sub(self.since_ms) < LIFE_MS
    }
}

impl Users {
    /// Begins a session on the administrators' page. The caller has authenticated the user. `Forbidden` for an account
    /// that is no administrator's, or may not act; `Locked`.
    pub async fn open_page(&self, user_id: &UserId) -> Result<String, Error> {
        let (num, password) = self.page_account(user_id).await?;
        let (token, now_ms) = (self.0.parts.random.token(TOKEN_CHARS), self.now_ms());
        let session = PageSession { user_id: user_id.to_owned(), since_ms: now_ms, seen_ms: now_ms, password };
        let mut sessions = self.0.page_sessions.0.lock();
        sessions.retain(|_, session| session.is_good(now_ms));
        sessions.put(Owner::Known(num), token_hash(&token), session);
        Ok(token)
    }

    /// The administrator whose session on the page this is; none when it has ended, for whatever reason.
    pub async fn page_visitor(&self, token: &str) -> Result<Option<OwnedUserId>, Error> {
        let (hash, now_ms) = (token_hash(token), self.now_ms());
        let found = {
            let mut sessions = self.0.page_sessions.0.lock();
            let found = sessions.get(&hash).filter(|session| session.is_good(now_ms));
            found.map(|session| {
                session.seen_ms = now_ms;
                (session.user_id.clone(), session.password)
            })
        };
        let Some((user_id, password)) = found else { return Ok(None) };
        match self.page_account(&user_id).await {
            Ok((_, now)) if now == password => Ok(Some(user_id)),
            Ok(_) | Err(Error::Forbidden(_) | Error::Locked) => {
                self.close_page(token);
                Ok(None)
            }
            Err(failed) => Err(failed),
        }
    }

    /// Ends a session on the page.
    pub fn close_page(&self, token: &str) {
        self.0.page_sessions.0.lock().remove(&token_hash(token));
    }

    async fn page_account(&self, user_id: &UserId) -> Result<(crate::store::UserNum, [u8; 32]), Error> {
        let name = user_id.to_owned();
        let found = self
            .read(move |get| {
                let Some(num) = user::num(get, name.as_str())? else { return Ok(None) };
                Ok(user::account(get, num)?.map(|row| (num, row)))
            })
            .await?;
        let refused = |why: &str| Err(Error::Forbidden(why.to_owned()));
        match found {
            Some((_, row)) if row.standing == Standing::Active && row.locked => Err(Error::Locked),
            Some((_, row)) if row.standing == Standing::Active && row.suspended => {
                refused("this account is suspended; another administrator can change that")
            }
            Some((num, row)) if row.standing == Standing::Active && row.admin => {
                Ok((num, Sha256::digest(row.password_hash.as_deref().unwrap_or_default()).into()))
            }
            _ => refused("this is not an administrator's account"),
        }
    }
}

/// The token that a form has, beside the secret of a cookie that it follows from: a page of another site can make a
/// browser send the cookie, and not tell the token.
pub fn form_token(secret: &str) -> String {
    let digest = Sha256::new().chain_update("snug page form\0").chain_update(secret).finalize();
    let mut token: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    token.truncate(FORM_TOKEN_CHARS);
    token
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::user::tests::{Town, town};

    async fn with_an_administrator() -> (Town, OwnedUserId) {
        let town = town();
        let anna = town.person("anna").await.user_id;
        assert!(matches!(town.users.open_page(&anna).await, Err(Error::Forbidden(_))));
        town.users.set_admin(&anna, true).await.unwrap();
        (town, anna)
    }

    #[tokio::test]
    async fn a_session_ends_with_time_and_with_what_made_it_good() {
        let (town, anna) = with_an_administrator().await;
        let users = &town.users;
        let token = users.open_page(&anna).await.unwrap();
        assert_eq!(users.page_visitor("else").await.unwrap(), None);
        for _ in 0..14 {
            assert_eq!(users.page_visitor(&token).await.unwrap(), Some(anna.clone()));
            town.clock.advance(Duration::from_millis(IDLE_MS - 1));
        }
        assert_eq!(users.page_visitor(&token).await.unwrap(), Some(anna.clone()));
        town.clock.advance(Duration::from_millis(14));
        assert_eq!(users.page_visitor(&token).await.unwrap(), None, "a week is over");
        let idle = users.open_page(&anna).await.unwrap();
        town.clock.advance(Duration::from_millis(IDLE_MS));
        assert_eq!(users.page_visitor(&idle).await.unwrap(), None);
        // Each of these ends a session, also when it is taken back.
        for way in ["admin", "lock", "suspend", "password", "sign out"] {
            let token = users.open_page(&anna).await.unwrap();
            match way {
                "admin" => users.set_admin(&anna, false).await.unwrap(),
                "lock" => users.set_locked(&anna, true).await.unwrap(),
                "suspend" => users.set_suspended(&anna, true).await.unwrap(),
                "password" => users.set_password(&anna, "another one").await.unwrap(),
                _ => users.close_page(&token),
            }
            assert_eq!(users.page_visitor(&token).await.unwrap(), None, "{way}");
            users.set_admin(&anna, true).await.unwrap();
            users.set_locked(&anna, false).await.unwrap();
            users.set_suspended(&anna, false).await.unwrap();
            assert_eq!(users.page_visitor(&token).await.unwrap(), None, "{way}");
        }
    }

    #[tokio::test]
    async fn who_signs_in_very_often_ends_their_own_sessions() {
        let (town, anna) = with_an_administrator().await;
        let bert = town.person("bert").await.user_id;
        town.users.set_admin(&bert, true).await.unwrap();
        let one = town.users.open_page(&anna).await.unwrap();
        for _ in 0..1000 {
            town.users.open_page(&bert).await.unwrap();
        }
        assert_eq!(town.users.page_visitor(&one).await.unwrap(), Some(anna));
        assert!(town.users.0.page_sessions.0.lock().len() <= SESSIONS_MAX);
    }

    #[test]
    fn a_forms_token_follows_from_the_cookie_and_tells_nothing_of_it() {
        assert_eq!(form_token("a").len(), FORM_TOKEN_CHARS);
        assert_ne!(form_token("a"), form_token("b"));
    }
}
