//! OpenID tokens: an app hands one to another service, which asks this server whose it is (client-server API, "OpenID").
//!
//! A token is the user's number and its end under a keyed hash, so any number of them takes no memory. The key is made at each
//! start: a token of before is not valid, and apps ask for another.

use ring::hmac;
use ruma::{OwnedUserId, ServerName};
use serde::Deserialize;

use crate::base::unhex;
use crate::remote::{Options, encode};
use crate::store::UserNum;
use crate::store::tables::user;
use crate::user::{Error, Requester, Users};

/// How long a token is valid.
pub const OPENID_MS: u64 = 60 * 60 * 1000;
/// The longest answer of another server.
const ANSWER_BYTES_MAX: u64 = 4 * 1024;
/// The number and the end, and the length of the hash behind them.
const CLAIM_BYTES: usize = 4 + 8;
const TAG_BYTES: usize = 32;

impl Users {
    /// A token that proves to others who the requester is, for [`OPENID_MS`].
    pub fn openid_token(&self, of: &Requester) -> String {
        let mut claim = of.user_num.to_key().to_vec();
        claim.extend_from_slice(&(self.now_ms() + OPENID_MS).to_be_bytes());
        let tag = hmac::sign(&self.0.desk.openid, &claim);
        claim.extend_from_slice(tag.as_ref());
        hex(&claim)
    }

    /// Whose token that is. `UnknownToken` when it is none or has ended, or the account was closed or locked.
    pub async fn openid_user(&self, token: &str) -> Result<String, Error> {
        let user = self.openid_claim(token).ok_or(Error::UnknownToken)?;
        self.read(move |get| match user::account(get, user)? {
            Some(account) if account.standing == user::Standing::Active && !account.locked => {
                Ok(user::id_of(get, user)?)
            }
            _ => Err(Error::UnknownToken),
        })
        .await
    }

    /// Whose token of any server that is: its own server is asked. `UnknownToken` when that server names nobody of its own.
    pub async fn openid_user_of(&self, server: &ServerName, token: &str) -> Result<OwnedUserId, Error> {
        #[derive(Deserialize)]
        struct Info {
            sub: OwnedUserId,
        }
        if server == self.server() {
            return self.openid_user(token).await?.try_into().map_err(|_| Error::UnknownToken);
        }
        let target = format!("/_matrix/federation/v1/openid/userinfo?access_token={}", encode(token));
        let options = Options { max_bytes: ANSWER_BYTES_MAX, ..Options::insisting() };
        let answer = self.0.parts.remote.request(server, http::Method::GET, &target, None, options).await?;
        let (Info { sub }, _grant) = answer.json()?;
        if sub.server_name() == server { Ok(sub) } else { Err(Error::UnknownToken) }
    }

    fn openid_claim(&self, token: &str) -> Option<UserNum> {
        let bytes = Some(token).filter(|token| token.len() == 2 * (CLAIM_BYTES + TAG_BYTES)).and_then(unhex)?;
        let (claim, tag) = bytes.split_at_checked(CLAIM_BYTES)?;
        hmac::verify(&self.0.desk.openid, claim, tag).ok()?;
        let (user, until) = claim.split_at_checked(4)?;
        let until_ms = u64::from_be_bytes(until.try_into().ok()?);
        (until_ms > self.now_ms()).then(|| UserNum::from_key(user)).flatten()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::user::tests::town;

    #[tokio::test]
    async fn a_token_proves_who_somebody_is_for_an_hour() {
        let town = town();
        let anna = town.person("anna").await;
        let token = town.users.openid_token(&anna);
        assert_eq!(town.users.openid_user(&token).await.unwrap(), "@anna:here.test");
        let other = if token.ends_with('0') { '1' } else { '0' };
        let forged = format!("{}{other}", &token[..token.len() - 1]);
        for wrong in ["", "00", "é", &forged, &token[2..], &format!("{token}00"), &"+1".repeat(44)] {
            assert!(matches!(town.users.openid_user(wrong).await, Err(Error::UnknownToken)), "{wrong}");
        }
        town.clock.advance(Duration::from_millis(OPENID_MS));
        assert!(matches!(town.users.openid_user(&token).await, Err(Error::UnknownToken)));
    }
}
