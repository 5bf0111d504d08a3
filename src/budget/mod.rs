//! The account book for memory.
//!
//! Everything that can grow has an account, in bytes, in a profile of `memory-budgets/`; the sum fits the board. A
//! `Grant` travels with the bytes it pays for and goes back on drop. Owns the accounts, the queues and scratch files
//! that stay within them, and the allocator that audits them. Never decides which request is refused: the account says
//! what happens when it is empty, and the asker answers accordingly.
//!
//! Never wait for a grant while holding a lock or an open write. A task that needs several asks for them together.
//!
//! Reading order: this file, `account.rs`, `profile.rs`, `choose.rs`, `parsed.rs`, `queue.rs`, `turn.rs`, `spill.rs`,
//! `card.rs`, `meter.rs`.

mod account;
mod card;
mod choose;
mod heap;
pub mod meter;
mod parsed;
mod profile;
pub mod queue;
pub mod spill;
mod turn;

use std::sync::Arc;

pub use account::{Account, Grant, Refused};
pub use account::{AccountRow, WhenEmpty};
pub use card::Card;
pub use choose::{Choice, Granted, choose};
pub use parsed::{parsed_bytes_max, quoted_bytes_max};
pub use profile::{FixedRow, PASSWORD_HASH_BYTES, Profile, ProfileError, human, is_path, parse_bytes};
pub use turn::turn_with_memory;

use account::Nth;

/// All accounts of the process. Cloning is cheap and gives the same book.
#[derive(Clone)]
pub struct Budget(Arc<Book>);

struct Book {
    profile: Profile,
    accounts: Vec<Account>,
    nth: Arc<Nth>,
}

impl Budget {
    pub fn from_profile(profile: Profile) -> Self {
        let nth = Arc::new(Nth::default());
        let rows = || profile.accounts.iter().chain(&profile.disk);
        let outer = rows().filter(|row| row.within.is_none()).map(|row| Account::new(row.clone(), nth.clone()));
        let mut accounts: Vec<Account> = outer.collect();
        for row in rows() {
            let outer = accounts.iter().find(|outer| Some(outer.name()) == row.within.as_deref());
            accounts.extend(outer.map(|outer| Account::within(outer, row.clone())).into_iter().collect::<Vec<_>>());
        }
        Budget(Arc::new(Book { profile, accounts, nth }))
    }

    /// A roomy book for tests, so that nothing is refused unless the test says so.
    pub fn for_tests() -> Self {
        Self::from_profile(Profile::get("pi-5").expect("the shipped profiles add up"))
    }

    pub fn profile(&self) -> &Profile {
        &self.0.profile
    }

    /// A named size from the profile: bytes, counts or milliseconds, as its name says.
    pub fn size(&self, name: &str) -> u64 {
        self.0.profile.size(name)
    }

    /// The account of that name, of memory or of scratch disk. An unknown name is a mistake in the program.
    pub fn account(&self, name: &str) -> Account {
        match self.0.accounts.iter().find(|account| account.name() == name) {
            Some(account) => account.clone(),
            None => {
                let known: Vec<_> = self.0.accounts.iter().map(|account| account.name()).collect();
                panic!("every account asked for is in the profiles: {name} is not one of {}", known.join(", "))
            }
        }
    }

    pub fn accounts(&self) -> &[Account] {
        &self.0.accounts
    }

    /// For tests: refuses the `n`th grant asked for from now on (counted from 1), of any account, once.
    pub fn refuse_nth(&self, n: u64) {
        self.0.nth.set(n);
    }

    /// Whether a refusal ordered by `refuse_nth` has not been reached yet.
    pub fn refusal_pending(&self) -> bool {
        self.0.nth.pending()
    }

    /// The book as a table for people: account, bytes, in use, high-water mark, refusals, what happens when it is
    /// empty, reason.
    pub fn table(&self) -> String {
        profile::table(&self.0.profile, Some(&self.0.accounts))
    }
}
