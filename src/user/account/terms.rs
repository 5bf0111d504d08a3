//! Who has agreed to which terms, and the marks of links with which one agrees.
//!
//! A mark is the HMAC-SHA256 of a user's id under a key of this database, so that a link names a user and nobody can make one
//! for another.

use std::ops::ControlFlow;

use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Standing, local};
use crate::store::UserNum;
use crate::store::tables::user::device;
use crate::store::tables::{hex, user};
use crate::user::{Error, Users};

/// The row of the key, as 64 letters of hex.
const TERMS_KEY: &str = "terms_key";
/// The row that says who was told of the present terms.
const TERMS_TOLD: &str = "terms_told";
/// Accounts looked at in one read.
const LOOKED_AT: usize = 100;
/// Bytes of a block of SHA-256.
const BLOCK_BYTES: usize = 64;

/// How far telling is of the terms with a digest.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    digest: u64,
    /// The last user who was told; none when all were.
    last: Option<u32>,
}

impl Users {
    /// Whether a user has agreed to the terms with this digest. `NotFound` or `Deactivated`.
    pub async fn has_agreed(&self, user_id: &UserId, digest: u64) -> Result<bool, Error> {
        let user_id = user_id.to_owned();
        self.read(move |get| {
            let num = local(get, &user_id)?;
            match user::account(get, num)? {
                Some(row) if row.standing == Standing::Deactivated => Err(Error::Deactivated),
                Some(row) => Ok(row.agreed == digest),
                None => Err(Error::NotFound("account")),
            }
        })
        .await
    }

    /// The mark of a user's link.
    pub async fn terms_mark(&self, user_id: &UserId) -> Result<String, Error> {
        Ok(hex(&hmac(self.terms_key().await?.as_bytes(), user_id.as_str().as_bytes())))
    }

    /// The link with which a user agrees on a page.
    pub async fn terms_link(&self, page: &str, user_id: &UserId) -> Result<String, Error> {
        let mark = self.terms_mark(user_id).await?;
        let name: String = form_urlencoded::byte_serialize(user_id.localpart().as_bytes()).collect();
        Ok(format!("{page}?u={name}&h={mark}"))
    }

    /// How far telling people of the terms with this digest is: none when all were told, else the last who was, if anybody.
    pub async fn told_of_terms(&self, digest: u64) -> Result<Option<Option<UserNum>>, Error> {
        self.read(move |get| {
            Ok(match user::meta::<Told>(get, TERMS_TOLD)?.filter(|told| told.digest == digest) {
                None => Some(None),
                Some(Told { last: None, .. }) => None,
                Some(Told { last: Some(last), .. }) => Some(Some(UserNum(last))),
            })
        })
        .await
    }

    /// Notes who was told last; none: all were.
    pub async fn note_told_of_terms(&self, digest: u64, last: Option<UserNum>) -> Result<(), Error> {
        let told = Told { digest, last: last.map(|last| last.0) };
        self.write(move |w| Ok(user::set_meta(w, TERMS_TOLD, Some(&told))?)).await
    }

    /// Some users behind one who have not agreed to the terms with this digest and have an app here, guests apart; and the last
    /// that was looked at, none when there are no more.
    pub async fn not_agreed(
        &self,
        digest: u64,
        after: Option<UserNum>,
    ) -> Result<(Vec<(UserNum, OwnedUserId)>, Option<UserNum>), Error> {
        self.read(move |get| {
            let (mut found, mut looked_at, mut last) = (Vec::new(), 0, None);
            user::accounts_after(get, after, &mut |num, account| {
                (looked_at, last) = (looked_at + 1, Some(num));
                let is_asked = account.standing == Standing::Active && !account.bot && account.agreed != digest;
                if is_asked && !user::is_guest(get, num)? && !device::ids(get, num)?.is_empty() {
                    found.extend(OwnedUserId::try_from(user::id_of(get, num)?).ok().map(|id| (num, id)));
                }
                Ok(if looked_at < LOOKED_AT { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            Ok((found, last))
        })
        .await
    }

    /// Whether somebody who has just logged in has no other app here, and has not agreed to the terms with this digest: the
    /// account was made by the operator, who asked nobody.
    pub async fn is_new_to_terms(&self, user_id: &UserId, digest: u64) -> Result<bool, Error> {
        let user_id = user_id.to_owned();
        self.read(move |get| {
            let num = local(get, &user_id)?;
            let is_asked = user::account(get, num)?.is_some_and(|row| !row.bot && row.agreed != digest);
            Ok(is_asked && device::ids(get, num)?.len() == 1)
        })
        .await
    }

    /// Whether this is the mark of a user's link.
    pub async fn is_terms_mark(&self, user_id: &UserId, mark: &str) -> Result<bool, Error> {
        Ok(self.terms_mark(user_id).await?.as_bytes().ct_eq(mark.as_bytes()).into())
    }

    /// The key of the marks, made when there is none.
    async fn terms_key(&self) -> Result<String, Error> {
        if let Some(key) = self.read(|get| Ok(user::meta::<String>(get, TERMS_KEY)?)).await? {
            return Ok(key);
        }
        let mut fresh = [0; 32];
        self.0.parts.random.fill(&mut fresh);
        self.write(move |w| {
            if let Some(key) = user::meta::<String>(w, TERMS_KEY)? {
                return Ok(key);
            }
            let key = hex(&fresh);
            user::set_meta(w, TERMS_KEY, Some(&key))?;
            Ok(key)
        })
        .await
    }
}

/// HMAC-SHA256 (RFC 2104) with a key of one block at most.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    debug_assert!(key.len() <= BLOCK_BYTES, "a longer key would be hashed first");
    let padded = |pad: u8| {
        let mut block = [pad; BLOCK_BYTES];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::tests::town;

    /// RFC 4231, test cases 1 and 2.
    #[test]
    fn hmacs_are_those_of_the_standard() {
        let first = hmac(&[0x0b; 20], b"Hi There");
        assert_eq!(hex(&first), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        let second = hmac(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(hex(&second), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[tokio::test]
    async fn people_are_told_and_bots_are_not() {
        let town = town();
        let (anna, robot) = (town.person("anna").await, town.person("robot").await);
        town.users.set_bot(&robot.user_id, true).await.unwrap();
        let (asked, _) = town.users.not_agreed(7, None).await.unwrap();
        assert_eq!(asked, [(anna.user_num, anna.user_id)]);
    }

    #[tokio::test]
    async fn a_mark_is_good_for_one_user() {
        let town = town();
        let (anna, bert) = (town.person("anna").await, town.person("bert").await);
        let mark = town.users.terms_mark(&anna.user_id).await.unwrap();
        assert!(town.users.is_terms_mark(&anna.user_id, &mark).await.unwrap());
        assert!(!town.users.is_terms_mark(&bert.user_id, &mark).await.unwrap());
        assert!(!town.users.is_terms_mark(&anna.user_id, "").await.unwrap());
        assert!(!town.users.has_agreed(&anna.user_id, 7).await.unwrap());
        town.users.set_agreed(&anna.user_id, 7).await.unwrap();
        assert!(town.users.has_agreed(&anna.user_id, 7).await.unwrap());
    }
}
