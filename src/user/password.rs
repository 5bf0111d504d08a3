//! Passwords: argon2id in the memory the profile sets aside for it.
//!
//! One hash takes most of the account `password_hashing`, so a burst of logins waits its turn instead of adding up. A
//! hash remembers what it cost; checking one takes what it cost then.

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::{Error, Users};
use crate::base::blocking;

const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// What the library keeps besides its blocks.
const SLACK_BYTES: u64 = 64 << 10;
/// Longer ones are refused: hashing reads all of it.
pub(super) const PASSWORD_BYTES_MAX: usize = 512;

/// What a hash costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    memory_kib: u32,
    passes: u32,
}

impl Users {
    /// The hash to keep of a password, as a PHC string.
    pub(super) async fn hash_password(&self, password: &str) -> Result<String, Error> {
        check_length(password)?;
        let mut salt = [0; SALT_BYTES];
        self.0.parts.random.fill(&mut salt);
        let cost = self.cost();
        let hash = self.hash(password, salt.to_vec(), cost).await?;
        Ok(format(cost, &salt, &hash))
    }

    /// Whether a password is the one behind a hash. Without a hash it takes as long and says no, so that nobody learns
    /// from the time whether an account exists.
    pub(super) async fn is_password(&self, password: &str, kept: Option<&str>) -> Result<bool, Error> {
        check_length(password)?;
        let Some((cost, salt, kept)) = kept.and_then(parse) else {
            self.hash(password, vec![0; SALT_BYTES], self.cost()).await?;
            return Ok(false);
        };
        let hash = self.hash(password, salt, cost).await?;
        Ok(is_equal(&hash, &kept))
    }

    fn cost(&self) -> Cost {
        let budget = &self.0.parts.budget;
        let memory_kib = (budget.size("argon2_memory") >> 10) as u32;
        Cost { memory_kib: memory_kib.max(8), passes: (budget.size("argon2_passes") as u32).max(1) }
    }

    async fn hash(&self, password: &str, salt: Vec<u8>, cost: Cost) -> Result<[u8; HASH_BYTES], Error> {
        let account = self.0.parts.budget.account("password_hashing");
        let grant = account.take((u64::from(cost.memory_kib) << 10) + SLACK_BYTES).await?;
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

/// Takes the same time wherever the first difference is.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_back() {
        let cost = Cost { memory_kib: 7168, passes: 5 };
        let text = format(cost, &[1; SALT_BYTES], &[2; HASH_BYTES]);
        assert!(text.starts_with("$argon2id$v=19$m=7168,t=5,p=1$AQEB"));
        assert_eq!(parse(&text), Some((cost, vec![1; SALT_BYTES], vec![2; HASH_BYTES])));
        assert_eq!(parse("$argon2i$v=19$m=1,t=1,p=1$AA$AA"), None);
        assert!(is_equal(b"ab", b"ab") && !is_equal(b"ab", b"ac") && !is_equal(b"ab", b"a"));
    }
}
