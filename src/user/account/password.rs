//! Passwords: argon2id at one cost under every profile, so that a data folder may move to a smaller board.
//!
//! Profiles choose how many passwords are hashed at once: the account `password_hashing` makes a burst of logins wait.
//! A hash records its own cost; checking it takes that cost.

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ruma::UserId;
use subtle::ConstantTimeEq;

use crate::base::blocking;
use crate::budget::{PASSWORD_HASH_BYTES, human};
use crate::user::{Error, Users};

const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// The memory of the library beside its blocks.
const SLACK_BYTES: u64 = 64 << 10;
/// The fewest characters of a new password, wherever it is set.
pub const PASSWORD_CHARS_MIN: usize = 8;
/// Longer passwords are refused: hashing reads all of it.
pub(in crate::user) const PASSWORD_BYTES_MAX: usize = 512;

/// The row of OWASP's table with the least memory: the fewer bytes, the more passes.
const COST: Cost = Cost { memory_kib: ((PASSWORD_HASH_BYTES - SLACK_BYTES) >> 10) as u32, passes: 5 };

/// The cost of a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    memory_kib: u32,
    passes: u32,
}

impl Users {
    /// The hash to store for a password, as a PHC string.
    pub(in crate::user) async fn hash_password(&self, password: &str) -> Result<String, Error> {
        check_length(password)?;
        let mut salt = [0; SALT_BYTES];
        self.0.parts.random.fill(&mut salt);
        let hash = self.hash(password, salt.to_vec(), COST).await?;
        Ok(format(COST, &salt, &hash))
    }

    /// Whether a password matches a hash. Without a hash it takes the same time and answers no, so that the time does
    /// not reveal whether an account exists. A hash from another machine may cost more memory than there is here: the
    /// log then tells the owner what to do.
    pub(in crate::user) async fn is_password(
        &self,
        user_id: &UserId,
        password: &str,
        kept: Option<&str>,
    ) -> Result<bool, Error> {
        check_length(password)?;
        let Some((cost, salt, kept)) = kept.and_then(parse) else {
            self.hash(password, vec![0; SALT_BYTES], COST).await?;
            return Ok(false);
        };
        let limit = self.0.parts.budget.account("password_hashing").limit();
        if cost.bytes() > limit {
            tracing::error!(
                "{user_id} cannot log in: the password was hashed with {}, and this memory budget has {} for hashing; \
                 give the account a new password (`snug user password {}`), or choose a larger budget for one login",
                human(cost.bytes()),
                human(limit),
                user_id.localpart(),
            );
            let message = "This password was hashed under a larger memory budget; an administrator of the server must \
             set a new one";
            return Err(Error::bad("M_UNKNOWN", message));
        }
        let hash = self.hash(password, salt, cost).await?;
        Ok(hash.ct_eq(&kept).into())
    }

    async fn hash(&self, password: &str, salt: Vec<u8>, cost: Cost) -> Result<[u8; HASH_BYTES], Error> {
        let account = self.0.parts.budget.account("password_hashing");
        let grant = account.take(cost.bytes()).await?;
        let password = password.as_bytes().to_vec();
        blocking(move || {
            let mut out = [0; HASH_BYTES];
            let params = Params::new(cost.memory_kib, cost.passes, 1, Some(HASH_BYTES));
            let done = params.and_then(|params| {
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(&password, &salt, &mut out)
            });
            drop(grant);
            done.map_err(|wrong| Error::invalid(format!("The password cannot be hashed: {wrong}")))?;
            Ok(out)
        })
        .await
    }
}

impl Cost {
    fn bytes(self) -> u64 {
        (u64::from(self.memory_kib) << 10) + SLACK_BYTES
    }
}

/// Whether a matching hash was made at another cost than today's, and should be renewed.
pub(in crate::user) fn is_outdated(kept: &str) -> bool {
    parse(kept).is_none_or(|(cost, ..)| cost != COST)
}

/// The one rule for new passwords: `M_WEAK_PASSWORD` below [`PASSWORD_CHARS_MIN`] characters, `M_INVALID_PARAM` when it
/// is too long to be hashed. A password that was set before the rule still logs in.
pub fn check_new_password(password: &str) -> Result<(), Error> {
    if password.chars().count() < PASSWORD_CHARS_MIN {
        let message = format!("A password has at least {PASSWORD_CHARS_MIN} characters");
        return Err(Error::bad("M_WEAK_PASSWORD", message));
    }
    check_length(password)
}

fn check_length(password: &str) -> Result<(), Error> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(Error::invalid(format!("A password has at most {PASSWORD_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn format(cost: Cost, salt: &[u8], hash: &[u8]) -> String {
    let Cost { memory_kib, passes } = cost;
    let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
    format!("$argon2id$v=19$m={memory_kib},t={passes},p=1${salt}${hash}")
}

fn parse(text: &str) -> Option<(Cost, Vec<u8>, Vec<u8>)> {
    let mut parts = text.strip_prefix("$argon2id$v=19$")?.split('$');
    let (cost, salt, hash) = (parts.next()?, parts.next()?, parts.next()?);
    let mut numbers = cost.split(',');
    let memory_kib = numbers.next()?.strip_prefix("m=")?.parse().ok()?;
    let passes = numbers.next()?.strip_prefix("t=")?.parse().ok()?;
    if numbers.next()? != "p=1" {
        return None;
    }
    let cost = Cost { memory_kib, passes };
    Some((cost, STANDARD_NO_PAD.decode(salt).ok()?, STANDARD_NO_PAD.decode(hash).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Profile};
    use crate::store::tables::user;
    use crate::user::account::New;
    use crate::user::tests::{Town, town_within};

    /// A town under the smallest profile with one user, whose password was hashed at some cost.
    async fn with_a_hash_of(cost: Cost, hash: Option<[u8; HASH_BYTES]>) -> (Town, ruma::OwnedUserId) {
        let town = town_within(Budget::from_profile(Profile::get("pi-zero-2w").unwrap()));
        let user_id = town.users.create(New { localpart: "anna".to_owned(), ..New::default() }).await.unwrap();
        let hash = match hash {
            Some(hash) => hash,
            None => town.users.hash("correct", vec![1; SALT_BYTES], cost).await.unwrap(),
        };
        let (name, hash) = (user_id.to_string(), format(cost, &[1; SALT_BYTES], &hash));
        let keep = move |w: &mut crate::store::Write<'_>| {
            let num = user::num(w, &name)?.unwrap();
            let mut row = user::account(w, num)?.unwrap();
            row.password_hash = Some(hash);
            Ok(user::set_account(w, num, &row)?)
        };
        town.users.write(keep).await.unwrap();
        (town, user_id)
    }

    async fn kept(town: &Town, user_id: &UserId) -> String {
        let name = user_id.to_string();
        let row = move |get: &crate::store::Read| Ok(user::account(get, user::num(get, &name)?.unwrap())?);
        town.users.read(row).await.unwrap().unwrap().password_hash.unwrap()
    }

    /// The password was right under a budget with room for its hash; under the smaller budget the error states the
    /// reason.
    #[tokio::test]
    async fn a_hash_too_dear_for_this_budget_is_no_request_too_large() {
        let dear = Cost { memory_kib: 19 << 10, passes: 2 };
        let (town, anna) = with_a_hash_of(dear, Some([7; HASH_BYTES])).await;
        match town.users.check_password(&anna, "correct").await {
            Err(Error::Bad { message, .. }) => assert!(message.contains("larger memory budget"), "{message}"),
            other => panic!("{other:?}"),
        }
        town.users.set_password(&anna, "another one").await.unwrap();
        town.users.check_password(&anna, "another one").await.unwrap();
    }

    #[tokio::test]
    async fn a_hash_of_another_cost_is_made_anew_by_who_knows_the_password() {
        let (town, anna) = with_a_hash_of(Cost { memory_kib: 64, passes: 1 }, None).await;
        let before = kept(&town, &anna).await;
        assert!(matches!(town.users.check_password(&anna, "wrong").await, Err(Error::Forbidden(_))));
        assert_eq!(kept(&town, &anna).await, before);
        town.users.check_password(&anna, "correct").await.unwrap();
        let after = kept(&town, &anna).await;
        assert!(after.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"), "{after}");
        town.users.check_password(&anna, "correct").await.unwrap();
        assert_eq!(kept(&town, &anna).await, after);
    }

    /// Any shipped profile can check what any other has hashed.
    #[test]
    fn every_profile_has_room_for_a_password() {
        for name in Profile::names() {
            let account = Budget::from_profile(Profile::get(name).unwrap()).account("password_hashing");
            assert!(COST.bytes() <= account.limit(), "{name}");
        }
    }

    #[test]
    fn hashes_are_read_back() {
        let cost = Cost { memory_kib: 7168, passes: 5 };
        let text = format(cost, &[1; SALT_BYTES], &[2; HASH_BYTES]);
        assert!(text.starts_with("$argon2id$v=19$m=7168,t=5,p=1$AQEB"));
        assert_eq!(parse(&text), Some((cost, vec![1; SALT_BYTES], vec![2; HASH_BYTES])));
        assert_eq!(parse("$argon2i$v=19$m=1,t=1,p=1$AA$AA"), None);
    }

    #[test]
    fn any_bytes_are_a_hash_or_none() {
        let seed: &[u8] =
            b"$argon2id$v=19$m=7168,t=5,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        assert!(parse(std::str::from_utf8(seed).unwrap()).is_some());
        crate::base::any_bytes::any_bytes(&[seed], |bytes| drop(parse(&String::from_utf8_lossy(bytes))));
    }
}
