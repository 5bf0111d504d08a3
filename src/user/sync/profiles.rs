//! What changed in the profiles of users who share a room (MSC4262 in a sliding sync, MSC4429 in version 3).
//!
//! Only local users' profiles are told: what another server's user has as profile is known there, and asking that server
//! is for the app that shows it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::UserSync;
use crate::base::{ChunkError, ChunkWriter, comma};
use crate::matrix::json;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::user_room::{self, Mine};
use crate::store::tables::room::{self, event, member, state_tree, timeline};
use crate::store::tables::user::{self, profile_change};
use crate::store::{self, RoomNum, StateKeyNum, UserNum};
use crate::user::{Error, sharing};

/// Which profiles an app asks for.
#[derive(Clone, Copy, Debug)]
pub struct ProfileQuery<'a> {
    /// Only these fields; all when there is no list.
    pub fields: Option<&'a [String]>,
    /// All profiles are told, not only what changed.
    pub whole: bool,
}

/// What is told of one user's profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// The fields that changed.
    Changed,
    /// All of it: the user newly shares a room.
    Whole,
    /// The user shares no room any more.
    Gone,
}

impl UserSync {
    /// Whether there is anything to tell of the profiles of local users who share a room, our user among them.
    pub fn any_profiles(&self, query: ProfileQuery<'_>) -> Result<bool, Error> {
        for (user, news) in self.profile_news(query.whole)? {
            if self.told(user, news, query)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes the object `users`: what is new in each profile. Holds a few bytes for each local user, and one profile.
    pub async fn write_profiles(&self, pen: &ChunkWriter, query: ProfileQuery<'_>) -> Result<(), ChunkError> {
        pen.text("{");
        let mut first = true;
        for (user, news) in self.profile_news(query.whole)? {
            let Some(fields) = self.told(user, news, query)? else { continue };
            self.write_user(pen, user, &mut first)?;
            match news {
                News::Gone => pen.text(":null"),
                _ => self.write_profile(pen, user, &fields).await?,
            }
            pen.pause().await;
        }
        pen.text("}");
        Ok(())
    }

    /// The same in the form of version 3 of `/sync`: each user with their `profile_updates`, in which a removed field is null,
    /// and which are null themselves for who shares no room any more.
    pub async fn write_profile_updates(&self, pen: &ChunkWriter, query: ProfileQuery<'_>) -> Result<(), ChunkError> {
        pen.text("{");
        let mut first = true;
        for (user, news) in self.profile_news(query.whole)? {
            let Some(fields) = self.told(user, news, query)? else { continue };
            self.write_user(pen, user, &mut first)?;
            pen.text(":{\"profile_updates\":");
            match news {
                News::Gone => pen.text("null"),
                _ => self.write_fields(pen, user, &fields).await?,
            }
            pen.text("}");
            pen.pause().await;
        }
        pen.text("}");
        Ok(())
    }

    /// The fields that are told of a user, none of one who is gone; `None` when nothing of the user is told.
    fn told(&self, user: UserNum, news: News, query: ProfileQuery<'_>) -> Result<Option<Vec<String>>, Error> {
        if news == News::Gone {
            return Ok(Some(Vec::new()));
        }
        Ok(Some(self.told_fields(user, news, query.fields)?).filter(|fields| !fields.is_empty()))
    }

    async fn write_fields(&self, pen: &ChunkWriter, user: UserNum, fields: &[String]) -> Result<(), ChunkError> {
        let mut first = true;
        pen.text("{");
        for field in fields {
            let value = user::profile_field_json(&*self.read, user, field)?;
            pen.with(|out| {
                comma(out, &mut first);
                json::write_string(out, field);
                out.push(b':');
            });
            pen.long(value.as_deref().unwrap_or(b"null")).await;
        }
        pen.text("}");
        Ok(())
    }

    async fn write_profile(&self, pen: &ChunkWriter, user: UserNum, fields: &[String]) -> Result<(), ChunkError> {
        let (mut removed, mut first) = (Vec::new(), true);
        pen.text(":{");
        for field in fields {
            let Some(value) = user::profile_field_json(&*self.read, user, field)? else {
                removed.push(field);
                continue;
            };
            pen.with(|out| {
                out.extend_from_slice(if first { b"\"updated\":{" } else { b"," });
                json::write_string(out, field);
                out.push(b':');
            });
            first = false;
            pen.long(&value).await;
        }
        pen.text(if first { "" } else { "}" });
        if !removed.is_empty() {
            pen.text(if first { "\"removed\":[" } else { ",\"removed\":[" });
            let mut first = true;
            for field in removed {
                pen.with(|out| {
                    comma(out, &mut first);
                    json::write_string(out, field);
                });
            }
            pen.text("]");
        }
        pen.text("}");
        Ok(())
    }

    /// The fields to tell of a user's profile.
    fn told_fields(&self, user: UserNum, news: News, wanted: Option<&[String]>) -> Result<Vec<String>, Error> {
        let mut fields = match news {
            News::Changed => profile_change::fields(&*self.read, user, self.since())?,
            News::Whole | News::Gone => user::profile_fields(&*self.read, user)?,
        };
        fields.retain(|field| wanted.is_none_or(|wanted| wanted.contains(field)));
        Ok(fields)
    }

    /// Whose profiles are told. Bounded by the local users.
    fn profile_news(&self, whole: bool) -> Result<BTreeMap<UserNum, News>, Error> {
        if whole || self.since.is_none() {
            let users = sharing::locals(&*self.read, self.user)?;
            return Ok(users.into_iter().map(|user| (user, News::Whole)).collect());
        }
        let mut news = BTreeMap::new();
        if self.quiet {
            return Ok(news);
        }
        let mut changed = Vec::new();
        profile_change::users(&*self.read, self.since(), self.now, &mut |user| {
            changed.push(user);
            Ok(ControlFlow::Continue(()))
        })?;
        for user in changed {
            if user == self.user || self.shares_room(user)? {
                news.insert(user, News::Changed);
            }
        }
        for membership in [Membership::Join, Membership::Leave, Membership::Ban] {
            let mut room = None;
            while let Some((num, mine)) = self.next_room(room, membership)? {
                room = Some(num);
                if membership == Membership::Join || mine.left_at.is_some_and(|at| at > self.since()) {
                    self.moved_in(num, &mine, &mut news)?;
                }
            }
        }
        Ok(news)
    }

    /// Adds the local users who came to share a room through this one since then, and those who ceased to share any.
    fn moved_in(&self, num: RoomNum, mine: &Mine, news: &mut BTreeMap<UserNum, News>) -> Result<(), Error> {
        let (is_in, is_new) = (mine.membership == Membership::Join, mine.since > self.since());
        if is_in && !is_new && room::get_of(&*self.read, num)?.latest <= self.since() {
            return Ok(());
        }
        let mut locals = Vec::new();
        member::list_local(&*self.read, num, &mut |other, membership| {
            locals.push((other, membership == Membership::Join));
            Ok(ControlFlow::Continue(()))
        })?;
        for (other, joined) in locals {
            if other == self.user {
                continue;
            }
            if is_in && joined {
                let came = is_new
                    || user_room::mine(&*self.read, other, num)?.is_some_and(|theirs| theirs.since > self.since());
                if came {
                    news.insert(other, News::Whole);
                }
            } else if self.shared(num, other)? && !self.shares_room(other)? {
                news.insert(other, News::Gone);
            }
        }
        Ok(())
    }

    /// Whether our user and another were both joined to a room as of the position that is told from. Of who came after
    /// our user left nothing is told.
    fn shared(&self, num: RoomNum, other: UserNum) -> store::Result<bool> {
        let Some((_, root)) = timeline::state_at(&*self.read, num, self.since())? else { return Ok(false) };
        for user in [self.user, other] {
            let Some(member) = state_tree::get(&*self.read, root, StateKeyNum::of_member(user))? else {
                return Ok(false);
            };
            let member = event::row_of(&*self.read, member)?.member;
            if member.is_none_or(|(membership, _)| membership != Membership::Join) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::base::{Chunks, written};
    use crate::store::{EventNum, Get, Position};
    use crate::user::tests::{Town, town};
    use crate::user::{Requester, lookup};

    /// Joins users to a room, at a position of their own each.
    async fn join(town: &Town, room_id: &'static str, users: &[&Requester]) {
        let users: Vec<_> = users.iter().map(|user| user.user_num).collect();
        let joined = town.users.write(move |w| {
            let room = room::intern(w, room_id, "12")?;
            for user in users {
                let at = w.next_position();
                user_room::set_mine(w, user, room, &Mine::joined(at))?;
                member::set(w, room, user, None, Some((Membership::Join, EventNum(1))))?;
                let mut row = room::get_of(w, room)?;
                row.latest = at;
                room::put(w, room, &row)?;
            }
            Ok(())
        });
        joined.await.unwrap();
    }

    /// What a user is told of profiles since a position, and the position it is told up to.
    fn told(town: &Town, who: &Requester, since: Option<Position>, fields: Option<&[&str]>) -> (Position, Value) {
        let read = Arc::new(town.users.0.parts.store.read().unwrap());
        let now = Get::position(&*read).unwrap();
        let own = town.users.own(read, who, since, now, now);
        let fields = fields.map(|fields| fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>());
        let any = own.any_profiles(ProfileQuery { fields: fields.as_deref(), whole: false }).unwrap();
        let wanted = fields.clone();
        let mut chunks = written(move |pen| async move {
            own.write_profiles(&pen, ProfileQuery { fields: fields.as_deref(), whole: false }).await
        });
        let mut out = Vec::new();
        while chunks.next(&mut out).unwrap() {}
        let users: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(any, users != json!({}), "{users}");
        // The form of version 3 tells the same.
        let read = Arc::new(town.users.0.parts.store.read().unwrap());
        let own = town.users.own(read, who, since, now, now);
        let query = ProfileQuery { fields: wanted.as_deref(), whole: false };
        assert_eq!(own.any_profiles(query).unwrap(), any);
        let mut chunks = written(move |pen| async move {
            own.write_profile_updates(&pen, ProfileQuery { fields: wanted.as_deref(), whole: false }).await
        });
        let mut out = Vec::new();
        while chunks.next(&mut out).unwrap() {}
        let updates: Value = serde_json::from_slice(&out).unwrap();
        for (user, news) in users.as_object().unwrap() {
            let mut fields = news["updated"].as_object().cloned().unwrap_or_default();
            let removed = news["removed"].as_array().into_iter().flatten();
            fields.extend(removed.map(|field| (field.as_str().unwrap().to_owned(), Value::Null)));
            let told = if news.is_null() { Value::Null } else { fields.into() };
            assert_eq!(updates[user], json!({ "profile_updates": told }));
        }
        assert_eq!(updates.as_object().unwrap().len(), users.as_object().unwrap().len());
        (now, users)
    }

    #[tokio::test]
    async fn who_shares_a_room_is_told_what_changed_and_nobody_else() {
        let town = town();
        let (anna, bob, carl) = (town.person("anna").await, town.person("bob").await, town.person("carl").await);
        join(&town, "!r:here.test", &[&anna, &bob]).await;
        let set = async |who: &Requester, field: &str, value: Option<Value>| {
            town.users.set_profile_field(&who.user_id, field, value).await.unwrap()
        };
        let (first, users) = told(&town, &anna, None, None);
        let name = |name: &str| json!({ "updated": { "displayname": name } });
        assert_eq!(users, json!({ &anna.user_id: name("anna"), &bob.user_id: name("bob") }));
        assert_eq!(told(&town, &anna, Some(first), None).1, json!({}));

        set(&bob, "m.status", Some(json!({ "text": "out" }))).await;
        set(&bob, "displayname", None).await;
        set(&carl, "m.status", Some(json!("never seen"))).await;
        set(&anna, "m.tz", Some(Value::Null)).await;
        let (second, users) = told(&town, &anna, Some(first), None);
        let of_bob = json!({ "updated": { "m.status": { "text": "out" } }, "removed": ["displayname"] });
        assert_eq!(users, json!({ &anna.user_id: { "updated": { "m.tz": null } }, &bob.user_id: of_bob }));
        let (_, users) = told(&town, &anna, Some(first), Some(&["displayname", "x"]));
        assert_eq!(users, json!({ &bob.user_id: { "removed": ["displayname"] } }));
        assert_eq!(told(&town, &anna, Some(first), Some(&["x"])).1, json!({}));
        assert_eq!(
            told(&town, &anna, None, Some(&["m.tz"])).1,
            json!({ &anna.user_id: { "updated": { "m.tz": null } } })
        );

        join(&town, "!r:here.test", &[&carl]).await;
        let (third, users) = told(&town, &anna, Some(second), None);
        let whole = json!({ "updated": { "displayname": "carl", "m.status": "never seen" } });
        assert_eq!(users, json!({ &carl.user_id: whole }));
        let (_, users) = told(&town, &carl, Some(second), Some(&["m.status"]));
        assert_eq!(users, json!({ &bob.user_id: { "updated": { "m.status": { "text": "out" } } } }));
        assert_eq!(told(&town, &anna, Some(third), None).1, json!({}));
    }

    /// A closed account leaves nothing in the log.
    #[tokio::test]
    async fn a_closed_account_has_no_profile_to_tell() {
        let town = town();
        let (anna, bob) = (town.person("anna").await, town.person("bob").await);
        join(&town, "!r:here.test", &[&anna, &bob]).await;
        let (first, _) = told(&town, &anna, None, None);
        town.users.set_profile_field(&bob.user_id, "m.tz", Some(json!("UTC"))).await.unwrap();
        town.users.close(&bob.user_id, false).await.unwrap();
        for since in [Some(first), None] {
            assert_eq!(told(&town, &anna, since, Some(&["m.tz"])).1, json!({}));
        }
        let read = town.users.0.parts.store.read().unwrap();
        assert_eq!(lookup::local(&read, &bob.user_id).unwrap(), bob.user_num);
        assert!(profile_change::fields(&read, bob.user_num, Position(0)).unwrap().is_empty());
    }
}
