//! The users a user ignores (client-server API, "Ignoring Users").
//!
//! Apps keep the list as account data; its length is bounded by the size limit of one user's account data.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::store::tables::user;
use crate::store::tables::user::account_data::{self, GLOBAL};
use crate::store::{Get, Result, UserNum};

pub(super) const KIND: &str = "m.ignored_user_list";

/// The users one user ignores, as far as this server knows them.
#[derive(Clone, Debug, Default)]
pub struct Ignored(Arc<HashSet<UserNum>>);

impl Ignored {
    pub fn of(get: &impl Get, user: UserNum) -> Result<Ignored> {
        let (mut nums, mut failed) = (HashSet::new(), None);
        each(get, user, &mut |id| match user::num(get, id) {
            // A user on their own list would otherwise not see their own messages.
            Ok(num) => nums.extend(num.filter(|num| *num != user)),
            Err(error) => failed = Some(error),
        })?;
        failed.map_or(Ok(Ignored(Arc::new(nums))), Err)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, user: UserNum) -> bool {
        self.0.contains(&user)
    }
}

/// Whether `user` ignores the user with the id `other`.
pub fn is_ignored(get: &impl Get, user: UserNum, other: &str) -> Result<bool> {
    let mut ignored = false;
    each(get, user, &mut |id| ignored |= id == other)?;
    Ok(ignored)
}

/// Visits the ignored users one after the other. An app may have written anything there; a malformed list ignores no
/// user.
fn each(get: &impl Get, user: UserNum, visit: &mut dyn FnMut(&str)) -> Result<()> {
    let Some(json) = account_data::get(get, user, GLOBAL, KIND)? else { return Ok(()) };
    let _ = List(visit).deserialize(&mut serde_json::Deserializer::from_slice(&json));
    Ok(())
}

/// The content, parsed without being kept.
struct List<'a>(&'a mut dyn FnMut(&str));

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, content: D) -> Result<(), D::Error> {
        content.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of ignored users")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut content: A) -> Result<(), A::Error> {
        while let Some(key) = content.next_key::<Cow<'de, str>>()? {
            match &*key {
                "ignored_users" => content.next_value_seed(Names(&mut *self.0))?,
                _ => drop(content.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct Names<'a>(&'a mut dyn FnMut(&str));

impl<'de> DeserializeSeed<'de> for Names<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, names: D) -> Result<(), D::Error> {
        names.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Names<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("users by id")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut names: A) -> Result<(), A::Error> {
        while let Some(name) = names.next_key::<Cow<'de, str>>()? {
            (self.0)(&name);
            names.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}
