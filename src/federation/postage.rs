//! The allowance of one server for EDUs: each is charged by the bytes it adds here, whatever the transaction it came
//! in.
//!
//! A purse for each server in a room with local users, and one for each network neighbourhood of other servers, in a
//! bounded table. Further EDUs of a server with an empty purse are dropped until it has filled again; events are not
//! charged here.

use parking_lot::{Mutex, MutexGuard};
use ruma::ServerName;

use crate::base::{Clock, Owner, Shares};

/// Purses of known servers, and of unknown ones: each about 120 bytes.
const KNOWN_MAX: usize = 512;
const STRANGERS_MAX: usize = 256;
/// Every EDU is a commit, however small it is.
const MESSAGE_BYTES: usize = 1 << 10;
/// A refusal is logged once in so long.
const TOLD_EVERY_MS: u64 = 60_000;

/// The size of a purse, and how much comes into it in a second. A server with hundreds of users in large encrypted
/// rooms with local users sends some megabytes when all of them renew their keys.
struct Rate {
    bytes_max: f64,
    bytes_per_s: f64,
}

const KNOWN: Rate = Rate { bytes_max: 16e6, bytes_per_s: 256e3 };
const STRANGER: Rate = Rate { bytes_max: 1e6, bytes_per_s: 16e3 };

pub struct Postage {
    clock: Clock,
    /// None when the owner switched limits off.
    purses: Option<Mutex<Shares<String, Purse>>>,
}

struct Purse {
    /// Negative when the last EDU was longer than the rest of the purse.
    bytes: f64,
    at_ms: u64,
    refused: u64,
    told_ms: Option<u64>,
}

impl Postage {
    pub fn new(clock: Clock, is_limited: bool) -> Postage {
        let purses = is_limited.then(|| Mutex::new(Shares::new(KNOWN_MAX, STRANGERS_MAX)));
        Postage { clock, purses }
    }

    /// Whether a server may send one more EDU. A refusal is logged.
    pub(super) fn may_bring(&self, origin: &ServerName, owner: &Owner<String>) -> bool {
        let Some(purses) = &self.purses else { return true };
        let now_ms = self.clock.instant().as_millis() as u64;
        let mut purses = lock(purses);
        let purse = filled(&mut purses, owner, now_ms);
        if purse.bytes > 0.0 {
            return true;
        }
        purse.refused += 1;
        if purse.told_ms.is_none_or(|told| now_ms >= told + TOLD_EVERY_MS) {
            tracing::info!(%origin, refused = purse.refused, "EDUs of a server are dropped: it sends more than the \
             rate limit allows");
            (purse.told_ms, purse.refused) = (Some(now_ms), 0);
        }
        false
    }

    /// Charges an accepted EDU.
    pub(super) fn charge(&self, owner: &Owner<String>, bytes: usize) {
        let Some(purses) = &self.purses else { return };
        let mut purses = lock(purses);
        filled(&mut purses, owner, self.clock.instant().as_millis() as u64).bytes -= (bytes + MESSAGE_BYTES) as f64;
    }
}

fn filled<'p>(purses: &'p mut Shares<String, Purse>, owner: &Owner<String>, now_ms: u64) -> &'p mut Purse {
    let (name, rate) = match owner {
        Owner::Known(name) => (name, KNOWN),
        Owner::Stranger(name) => (name, STRANGER),
    };
    let full = || Purse { bytes: rate.bytes_max, at_ms: now_ms, refused: 0, told_ms: None };
    let purse = purses.get_or_put(owner.clone(), name.clone(), full);
    let earned = now_ms.saturating_sub(purse.at_ms) as f64 / 1000.0 * rate.bytes_per_s;
    purse.bytes = (purse.bytes + earned).min(rate.bytes_max);
    purse.at_ms = now_ms;
    purse
}

fn lock(purses: &Mutex<Shares<String, Purse>>) -> MutexGuard<'_, Shares<String, Purse>> {
    purses.lock()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A transaction counted as one request, with a hundred messages of 64 KiB in it or with none.
    #[test]
    fn who_sends_much_is_not_heard_until_time_has_passed() {
        let (clock, one) = (Clock::simulated(0), ruma::server_name!("one.example"));
        let postage = Postage::new(clock.clone(), true);
        let (known, stranger) = (Owner::Known("one.example".to_owned()), Owner::Stranger("evil.example".to_owned()));
        let mut taken = 0;
        while postage.may_bring(one, &stranger) {
            postage.charge(&stranger, 64 << 10);
            taken += 1;
        }
        assert_eq!(taken, 16);
        assert!(postage.may_bring(one, &known), "another's purse");
        clock.advance(Duration::from_secs(3));
        assert!(!postage.may_bring(one, &stranger));
        clock.advance(Duration::from_secs(3));
        assert!(postage.may_bring(one, &stranger));
        // Any number of unknown servers makes no known server begin anew.
        postage.charge(&known, 20_000_000);
        for n in 0..5000 {
            postage.charge(&Owner::Stranger(n.to_string()), 1);
        }
        assert!(!postage.may_bring(one, &known));
        assert!(postage.purses.as_ref().is_some_and(|purses| lock(purses).len() <= KNOWN_MAX + STRANGERS_MAX));
        assert!(Postage::new(clock, false).may_bring(one, &stranger));
    }
}
