//! Tokens with which one session lets another device log in (client-server API, `POST /login/get_token`).
//!
//! They are in memory: a token is good for two minutes and for one login, and a restart ends it.

use parking_lot::Mutex;
use ruma::OwnedUserId;

use super::session::token_hash;
use crate::base::{Owner, Shares};
use crate::user::{Error, Requester, Users};

/// How long a token is good; as the specification recommends.
pub const LOGIN_TOKEN_MS: u64 = 2 * 60 * 1000;
/// Tokens kept, about 200 bytes each; beyond that the user with most of them loses one.
const LOGIN_TOKENS_MAX: usize = 64;
const TOKEN_CHARS: usize = 32;

pub(in crate::user) struct LoginTokens(Mutex<Shares<[u8; 32], LoginToken>>);

struct LoginToken {
    user_id: OwnedUserId,
    expires_ms: u64,
}

impl Default for LoginTokens {
    fn default() -> LoginTokens {
        LoginTokens(Mutex::new(Shares::new(LOGIN_TOKENS_MAX, 0)))
    }
}

impl Users {
    /// A token with which one more device can log in to the requester's account, once, for [`LOGIN_TOKEN_MS`].
    pub fn login_token(&self, requester: &Requester) -> String {
        let token = self.0.parts.random.token(TOKEN_CHARS);
        let (now_ms, hash) = (self.now_ms(), token_hash(&token));
        let new = LoginToken { user_id: requester.user_id.clone(), expires_ms: now_ms + LOGIN_TOKEN_MS };
        let mut tokens = self.0.login_tokens.0.lock();
        tokens.retain(|_, token| token.expires_ms > now_ms);
        tokens.put(Owner::Known(requester.user_num), hash, new);
        token
    }

    /// The user that a login token is of. The token is gone by that. `Forbidden` for one that is not good, or not any more.
    pub fn take_login_token(&self, token: &str) -> Result<OwnedUserId, Error> {
        let now_ms = self.now_ms();
        let found = self.0.login_tokens.0.lock().remove(&token_hash(token));
        match found.filter(|token| token.expires_ms > now_ms) {
            Some(token) => Ok(token.user_id),
            None => Err(Error::Forbidden("This login token is not valid, or not any more".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::user::tests::town;

    #[tokio::test]
    async fn a_login_token_is_good_once_and_for_two_minutes() {
        let town = town();
        let anna = town.person("anna").await;
        let (one, two) = (town.users.login_token(&anna), town.users.login_token(&anna));
        assert_eq!(town.users.take_login_token(&one).unwrap(), anna.user_id);
        assert!(town.users.take_login_token(&one).is_err());
        town.clock.advance(Duration::from_millis(LOGIN_TOKEN_MS));
        assert!(town.users.take_login_token(&two).is_err());
    }

    #[tokio::test]
    async fn who_makes_many_tokens_loses_their_own() {
        let town = town();
        let (anna, bert) = (town.person("anna").await, town.person("bert").await);
        let one = town.users.login_token(&anna);
        for _ in 0..1000 {
            town.users.login_token(&bert);
        }
        assert!(town.users.take_login_token(&one).is_ok());
    }
}
