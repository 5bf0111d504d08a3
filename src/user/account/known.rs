//! Sessions whose tokens were lately shown, so that not every request reads the database.
//!
//! A commit that changes any token or account makes all of them be forgotten, before its caller has an answer: a token
//! that has ended is refused from then on. What was read from a snapshot of before is not kept either.

use parking_lot::Mutex;

use super::session::Requester;
use crate::base::{Owner, Shares};
use crate::store::{Change, Follower, Position};

/// Sessions kept, about 300 bytes each; beyond that the user with most entries loses one.
const KNOWN_MAX: usize = 128;

/// The sessions by the hashes of their tokens.
pub(in crate::user) struct Known(Mutex<Book>);

struct Book {
    /// Rises whenever all are forgotten.
    epoch: u64,
    by_hash: Shares<[u8; 32], Requester>,
}

impl Default for Known {
    fn default() -> Known {
        Known(Mutex::new(Book { epoch: 0, by_hash: Shares::new(KNOWN_MAX, 0) }))
    }
}

impl Known {
    /// The session of a token; without one, what [`Known::put`] has to be told of the time before reading.
    pub fn get(&self, hash: &[u8; 32]) -> Result<Requester, Epoch> {
        let mut book = self.0.lock();
        book.by_hash.get(hash).cloned().ok_or(Epoch(book.epoch))
    }

    /// Keeps a session that was read from a snapshot taken since.
    pub fn put(&self, since: Epoch, hash: [u8; 32], requester: &Requester) {
        let mut book = self.0.lock();
        if book.epoch == since.0 {
            book.by_hash.put(Owner::Known(requester.user_num), hash, requester.clone());
        }
    }

    fn forget(&self) {
        let mut book = self.0.lock();
        book.epoch += 1;
        book.by_hash.retain(|_, _| false);
    }
}

/// A time between two changes of tokens.
pub(in crate::user) struct Epoch(u64);

impl Follower for Known {
    fn committed(&self, changes: &[&Change], _: Position) {
        if changes.iter().any(|change| change.sessions) {
            self.forget();
        }
    }

    fn lost(&self, _: Position) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::UserNum;

    fn requester() -> Requester {
        let user_id = "@anna:here.test".try_into().unwrap();
        Requester {
            user_id,
            user_num: UserNum(1),
            device_id: "PHONE".to_owned(),
            is_admin: false,
            is_guest: false,
            is_locked: false,
            is_suspended: false,
            is_shadow_banned: false,
            is_bot: false,
            pace: None,
            agreed: 0,
            service: None,
            expires_ms: None,
        }
    }

    #[test]
    fn what_was_read_before_a_change_of_tokens_is_not_kept() {
        let (known, hash, other) = (Known::default(), [1; 32], [2; 32]);
        let Err(before) = known.get(&hash) else { panic!("nothing was kept") };
        known.put(before, hash, &requester());
        assert!(known.get(&hash).is_ok());
        let Err(before) = known.get(&other) else { panic!("nothing was kept") };
        known.committed(&[&Change::default()], Position(1));
        assert!(known.get(&hash).is_ok());
        known.committed(&[&Change { sessions: true, ..Change::default() }], Position(2));
        assert!(known.get(&hash).is_err());
        known.put(before, other, &requester());
        assert!(known.get(&other).is_err());
    }
}
