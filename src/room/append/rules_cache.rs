//! Parsed push rules of local users, on an account.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use ruma::UserId;
use ruma::push::Ruleset;

use crate::budget::{Account, Grant};
use crate::matrix::push::default_rules;
use crate::store::tables::user::account_data::{self, GLOBAL};
use crate::store::tables::user::push_rule;
use crate::store::{Get, Result, UserNum};

/// Memory of a parsed set of rules: the defaults are some twenty rules of about 400 bytes each.
const RULES_BYTES: u64 = 10 * 1024;

/// Parsed bytes for each byte of a user's own rules as JSON.
const BYTES_PER_JSON_BYTE: u64 = 4;

/// Parsed push rules of the users counted for most recently, on the account's bytes; the rules of a user without a
/// place here are parsed again each time.
pub struct Rules {
    account: Account,
    parsed: Mutex<HashMap<UserNum, Parsed>>,
}

pub struct Parsed {
    /// Of the JSON they were parsed from; none for the defaults.
    pub hash: Option<[u8; 16]>,
    pub rules: Arc<Ruleset>,
    pub grant: Grant,
}

impl Rules {
    pub fn new(account: Account) -> Rules {
        Rules { account, parsed: Mutex::default() }
    }

    /// The rules that hold for a user now.
    pub fn get(&self, get: &impl Get, user: UserNum, user_id: &UserId) -> Result<Arc<Ruleset>> {
        let json = account_data::get(get, user, GLOBAL, push_rule::KIND)?;
        let hash = json.as_ref().map(|json| get.hash128(&[json]));
        if let Some(parsed) = self.lock().get(&user)
            && parsed.hash == hash
        {
            return Ok(parsed.rules.clone());
        }
        let rules = Arc::new(push_rule::get(get, user, default_rules(user_id))?);
        let bytes = RULES_BYTES + BYTES_PER_JSON_BYTE * json.map_or(0, |json| json.len() as u64);
        let mut parsed = self.lock();
        parsed.remove(&user);
        if let Some(grant) = self.make_room(&mut parsed, bytes) {
            parsed.insert(user, Parsed { hash, rules: rules.clone(), grant });
        }
        Ok(rules)
    }

    /// Memory for one more set of rules. Sets that take as much or more make room for it, the largest first: one user
    /// with endless rules must not have all others' rules parsed again and again.
    pub fn make_room(&self, parsed: &mut HashMap<UserNum, Parsed>, bytes: u64) -> Option<Grant> {
        loop {
            if let Ok(grant) = self.account.try_take(bytes) {
                return Some(grant);
            }
            let (user, largest) = parsed.iter().max_by_key(|(_, one)| one.grant.bytes())?;
            let user = *user;
            if largest.grant.bytes() < bytes {
                return None;
            }
            parsed.remove(&user);
        }
    }

    pub fn lock(&self) -> parking_lot::MutexGuard<'_, HashMap<UserNum, Parsed>> {
        self.parsed.lock()
    }
}
