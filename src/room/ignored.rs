//! Whom somebody does not want to hear of (client-server API, "Ignoring Users").
//!
//! Kept by the app as account data; its length is bounded by what one user may keep there.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::store::tables::account_data::{self, GLOBAL};
use crate::store::tables::user;
use crate::store::{Get, Result, UserNum};

const KIND: &str = "m.ignored_user_list";

#[derive(Default, Deserialize)]
struct Content {
    #[serde(default)]
    ignored_users: BTreeMap<String, IgnoredAny>,
}

/// The users one user ignores, as far as they are known here.
#[derive(Clone, Debug, Default)]
pub struct Ignored(Arc<HashSet<UserNum>>);

impl Ignored {
    pub fn of(get: &impl Get, user: UserNum) -> Result<Ignored> {
        let mut nums = HashSet::new();
        for id in content(get, user)?.ignored_users.keys() {
            // An app that ignores its own user would see nothing of what it says.
            nums.extend(user::num(get, id)?.filter(|num| *num != user));
        }
        Ok(Ignored(Arc::new(nums)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, user: UserNum) -> bool {
        self.0.contains(&user)
    }
}

/// Whether `user` ignores whoever has this id.
pub fn is_ignored(get: &impl Get, user: UserNum, other: &str) -> Result<bool> {
    Ok(content(get, user)?.ignored_users.contains_key(other))
}

/// What an app wrote there may be anything; what is no such list ignores nobody.
fn content(get: &impl Get, user: UserNum) -> Result<Content> {
    let json = account_data::get(get, user, GLOBAL, KIND)?;
    Ok(json.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default())
}
