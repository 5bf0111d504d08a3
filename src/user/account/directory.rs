//! The user directory: all local users, and users who share a room with the searching user.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use serde_json::{Map, Value};

use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::member;
use crate::store::tables::user::{self, Standing};
use crate::store::{Get, UserNum};
use crate::user::lookup;
use crate::user::{Error, Users, sharing};

/// The most members of shared rooms looked at in one search: a tenth of a second on a small board.
const LOOKED_AT_MAX: usize = 5_000;
const TERM_BYTES_MAX: usize = 256;

impl Users {
    /// The users whose id (or, for local users, name) contains the term, and whether there may be more.
    pub async fn search(&self, asker: UserNum, term: &str, most: usize) -> Result<(Vec<Value>, bool), Error> {
        let term = term.trim().to_lowercase();
        if term.is_empty() || term.len() > TERM_BYTES_MAX {
            return Ok((Vec::new(), false));
        }
        self.read(move |get| {
            let mut found = Found { term, most, seen: BTreeSet::new(), results: Vec::new(), limited: false };
            let mut here = Vec::new();
            user::accounts_after(get, None, &mut |num, row| {
                if row.standing == Standing::Active {
                    here.push(num);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            for num in here {
                let profile = user::profile(get, num)?;
                if found.is_full() || !found.look(get, num, &profile)? {
                    break;
                }
            }
            let mut left = LOOKED_AT_MAX;
            for room in sharing::rooms(get, asker)? {
                let mut members = Vec::new();
                member::list(get, room, Membership::Join, None, &mut |num, _| {
                    if left == 0 {
                        return Ok(ControlFlow::Break(()));
                    }
                    left -= 1;
                    members.push(num);
                    Ok(ControlFlow::Continue(()))
                })?;
                for num in members {
                    if !found.look(get, num, &Map::new())? {
                        return Ok((found.results, true));
                    }
                }
            }
            Ok((found.results, found.limited || left == 0))
        })
        .await
    }
}

struct Found {
    term: String,
    most: usize,
    seen: BTreeSet<UserNum>,
    results: Vec<Value>,
    limited: bool,
}

impl Found {
    fn is_full(&mut self) -> bool {
        self.limited |= self.results.len() >= self.most;
        self.limited
    }

    /// Adds a user that matches; false when the answer is full.
    fn look(&mut self, get: &impl Get, num: UserNum, profile: &Map<String, Value>) -> Result<bool, Error> {
        if self.is_full() {
            return Ok(false);
        }
        if !self.seen.insert(num) {
            return Ok(true);
        }
        let id = lookup::id_of(get, num)?;
        let name = profile.get("displayname").and_then(Value::as_str);
        let fits = id.as_str().to_lowercase().contains(&self.term)
            || name.is_some_and(|name| name.to_lowercase().contains(&self.term));
        if fits {
            let mut result = Map::from_iter([("user_id".to_owned(), id.as_str().into())]);
            result.extend(name.map(|name| ("display_name".to_owned(), name.into())));
            result.extend(profile.get("avatar_url").map(|url| ("avatar_url".to_owned(), url.clone())));
            self.results.push(result.into());
        }
        Ok(true)
    }
}
