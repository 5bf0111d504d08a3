//! The user directory: users who share a room with the searching user, users in public rooms, and where the operator wants
//! that all local users.
//!
//! Client-server API, "User Directory". The name of another server's user is that of their membership, and that of a local
//! user the one of their profile: the name they have in a room may be meant for that room.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use ruma::UserId;
use serde_json::{Map, Value};

use crate::matrix::json;
use crate::store::tables::room::event_row::{Kind, Membership};
use crate::store::tables::room::{self, Status, current_state, event, member, state_tree};
use crate::store::tables::user::{self, Standing};
use crate::store::{EventNum, Get, RoomNum, UserNum};
use crate::user::lookup;
use crate::user::{Error, Users, sharing};

/// The most members of rooms looked at in one search, small rooms first: a row each.
const LOOKED_AT_MAX: usize = 2_000;
/// Of those, the most whose name is read out of their membership: some 50 ms on a small board. The others are found by their
/// ids.
const NAMES_READ_MAX: usize = 500;
/// The most rooms of this server looked at for being public.
const ROOMS_MAX: usize = 1_000;
const TERM_BYTES_MAX: usize = 256;

impl Users {
    /// The other users whose id or name contains the term, and whether there may be more. `all`: every local user counts.
    pub async fn search(
        &self,
        asker: UserNum,
        term: &str,
        most: usize,
        all: bool,
    ) -> Result<(Vec<Value>, bool), Error> {
        let term = term.trim().to_lowercase();
        if term.is_empty() || term.len() > TERM_BYTES_MAX {
            return Ok((Vec::new(), false));
        }
        self.read(move |get| {
            let seen = BTreeSet::from([asker]);
            let mut found = Found { term, most, seen, results: Vec::new(), limited: false };
            let mut here = Vec::new();
            if all {
                user::accounts_after(get, None, &mut |num, row| {
                    if row.standing == Standing::Active {
                        here.push(num);
                    }
                    Ok(ControlFlow::Continue(()))
                })?;
            }
            for num in here {
                let profile = user::profile(get, num)?;
                if found.is_full() || !found.look(get, num, &mut |_| Ok(Some(profile.clone())))? {
                    break;
                }
            }
            let (mut left, mut names, mut passed_over) = (LOOKED_AT_MAX, NAMES_READ_MAX, false);
            let shared = by_size(get, sharing::rooms(get, asker)?)?;
            let public = by_size(get, public_rooms(get, &shared)?)?;
            for room in shared.into_iter().chain(public) {
                let mut members = Vec::new();
                member::list(get, room, Membership::Join, None, &mut |num, event| {
                    // Who is known already costs nothing.
                    if found.seen.contains(&num) {
                        return Ok(ControlFlow::Continue(()));
                    }
                    if left == 0 {
                        return Ok(ControlFlow::Break(()));
                    }
                    left -= 1;
                    members.push((num, event));
                    Ok(ControlFlow::Continue(()))
                })?;
                for (num, event) in members {
                    let mut shown = |is_wanted: bool| match user::account(get, num)? {
                        Some(row) if row.standing == Standing::Active => Ok(Some(user::profile(get, num)?)),
                        Some(_) => Ok(None),
                        None if !is_wanted && names == 0 => {
                            passed_over = true;
                            Ok(None)
                        }
                        None => {
                            names -= usize::from(!is_wanted);
                            shown_in(get, event).map(Some)
                        }
                    };
                    if !found.look(get, num, &mut shown)? {
                        return Ok((found.results, true));
                    }
                }
            }
            Ok((found.results, found.limited || passed_over || left == 0))
        })
        .await
    }
}

impl Users {
    /// The name and picture that another user has in the rooms of a local user, by the newest membership; none when they
    /// share no room. Bounded by the rooms of the local user.
    pub(super) async fn profile_in_rooms(
        &self,
        viewer: UserNum,
        user_id: &UserId,
    ) -> Result<Option<Map<String, Value>>, Error> {
        let user_id = user_id.to_owned();
        self.read(move |get| {
            let Some(num) = user::num(get, user_id.as_str())? else { return Ok(None) };
            let mut newest = None;
            for room in sharing::rooms(get, viewer)? {
                if let Some((Membership::Join, event)) = member::get(get, room, num)? {
                    newest = newest.max(Some((event::row_of(get, event)?.origin_server_ts, event)));
                }
            }
            newest.map(|(_, event)| shown_in(get, event)).transpose()
        })
        .await
    }
}

/// Rooms, the smallest first: people look for those they know.
fn by_size(get: &impl Get, rooms: Vec<RoomNum>) -> Result<Vec<RoomNum>, Error> {
    let mut sized = Vec::with_capacity(rooms.len());
    for num in rooms {
        sized.push((room::get_of(get, num)?.joined, num));
    }
    sized.sort_unstable();
    Ok(sized.into_iter().map(|(_, num)| num).collect())
}

/// The other rooms that local users are in and that everybody may join.
fn public_rooms(get: &impl Get, shared: &[RoomNum]) -> Result<Vec<RoomNum>, Error> {
    let (mut rooms, mut looked_at) = (Vec::new(), 0);
    room::list_after(get, None, &mut |num, row| {
        looked_at += 1;
        if row.status == Status::Resident && !shared.contains(&num) {
            rooms.push(num);
        }
        Ok(if looked_at < ROOMS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let Some(key) = state_tree::key(get, "m.room.join_rules", "")? else { return Ok(Vec::new()) };
    let mut public = Vec::new();
    for num in rooms {
        let Some(rules) = current_state::state(get, num, Kind::JOIN_RULES, key)? else { continue };
        let body = event::shown(get, &event::row_of(get, rules)?)?;
        let rule = json::read::get(&body, "content").and_then(|content| json::read::get_text(content, "join_rule"));
        if rule.as_deref() == Some("public") {
            public.push(num);
        }
    }
    Ok(public)
}

/// The longest name or avatar address that is shown; servers elsewhere choose its length.
const SHOWN_BYTES_MAX: usize = 1_000;

/// The name and picture of a membership.
fn shown_in(get: &impl Get, member: EventNum) -> Result<Map<String, Value>, Error> {
    let body = event::shown(get, &event::row_of(get, member)?)?;
    let content = json::read::get(&body, "content").unwrap_or(b"{}");
    let fields = ["displayname", "avatar_url"].into_iter();
    let text = |field| json::read::get_text(content, field).filter(|text| text.len() <= SHOWN_BYTES_MAX);
    let texts = fields.filter_map(|field| Some((field.to_owned(), text(field)?.into())));
    Ok(texts.collect())
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

    /// Adds a user that matches; false when the answer is full. `profile` is told whether the id matches, and has none for a
    /// user who is not to be found.
    fn look(
        &mut self,
        get: &impl Get,
        num: UserNum,
        profile: &mut dyn FnMut(bool) -> Result<Option<Map<String, Value>>, Error>,
    ) -> Result<bool, Error> {
        if self.is_full() {
            return Ok(false);
        }
        if !self.seen.insert(num) {
            return Ok(true);
        }
        let id = lookup::id_of(get, num)?;
        let by_id = id.as_str().to_lowercase().contains(&self.term);
        let Some(profile) = profile(by_id)? else { return Ok(true) };
        let name = profile.get("displayname").and_then(Value::as_str);
        if by_id || name.is_some_and(|name| name.to_lowercase().contains(&self.term)) {
            let mut result = Map::from_iter([("user_id".to_owned(), id.as_str().into())]);
            result.extend(name.map(|name| ("display_name".to_owned(), name.into())));
            result.extend(profile.get("avatar_url").map(|url| ("avatar_url".to_owned(), url.clone())));
            self.results.push(result.into());
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Position;
    use crate::store::tables::room::user_room::{self, Mine};
    use crate::user::tests::{room_with, town, town_that};
    use serde_json::json;

    /// A user of another server was found by id only, and not at all in a public room.
    #[tokio::test]
    async fn people_elsewhere_are_found_by_the_name_they_have_in_shared_and_in_public_rooms() {
        let town = town();
        let anna = town.person("anna").await;
        let who = anna.user_num;
        let made = town.users.write(move |w| {
            let shared = room_with(w, "!shared:here.test", "@x:far.test", "Robert", "invite")?;
            let mine = Mine::joined(Position(1));
            user_room::set_mine(w, who, shared, &mine)?;
            room_with(w, "!public:here.test", "@y:far.test", "Roberta", "public")?;
            room_with(w, "!secret:here.test", "@z:far.test", "Roberto", "invite")?;
            Ok(())
        });
        made.await.unwrap();
        let (found, limited) = town.users.search(who, "robert", 10, false).await.unwrap();
        let expected = [("@x:far.test", "Robert"), ("@y:far.test", "Roberta")];
        let expected = expected.map(|(id, name)| json!({ "user_id": id, "display_name": name }));
        assert_eq!((found, limited), (expected.to_vec(), false));
    }

    /// Anybody with an account could list all others, and found people by names that they have in some room only.
    #[tokio::test]
    async fn people_here_are_found_where_they_can_be_met_by_the_name_of_their_profile() {
        let town = town();
        let (anna, carl, dora) = (town.person("anna").await, town.person("carl").await, town.person("dora").await);
        let made = town.users.write(move |w| {
            room_with(w, "!public:here.test", "@carl:here.test", "Uncle C", "public")?;
            room_with(w, "!secret:here.test", "@dora:here.test", "Aunt D", "invite").map(drop)
        });
        made.await.unwrap();
        let found = async |term: &str, all| {
            let (found, _) = town.users.search(anna.user_num, term, 10, all).await.unwrap();
            found.iter().map(|user| user["user_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found("here.test", false).await, [carl.user_id.as_str()]);
        assert_eq!(found("uncle", false).await, [""; 0]);
        assert_eq!(found("here.test", true).await, [&carl.user_id, &dora.user_id].map(|id| id.as_str()));
    }

    /// At home without the Internet, an app could not show the name of a person whose messages it had.
    #[tokio::test]
    async fn people_elsewhere_have_the_name_of_a_shared_room_while_their_server_does_not_answer() {
        let town = town_that(crate::budget::Budget::for_tests(), |options| {
            options.overrides = vec![("far.test".to_owned(), "127.0.0.1:1".to_owned())];
        });
        let (anna, bert) = (town.person("anna").await, town.person("bert").await);
        let who = anna.user_num;
        let made = town.users.write(move |w| {
            let shared = room_with(w, "!shared:here.test", "@x:far.test", "Robert", "invite")?;
            let mine = Mine::joined(Position(1));
            Ok(user_room::set_mine(w, who, shared, &mine)?)
        });
        made.await.unwrap();
        let profile = async |user: &str, viewer| town.users.profile(user.try_into().unwrap(), viewer).await;
        let (shown, _) = profile("@x:far.test", Some(who)).await.unwrap();
        assert_eq!(Value::from(shown), json!({ "displayname": "Robert" }));
        for (user, viewer) in [("@x:far.test", None), ("@x:far.test", Some(bert.user_num)), ("@y:far.test", Some(who))]
        {
            assert!(matches!(profile(user, viewer).await, Err(Error::Remote(_))), "{user}");
        }
    }
}
