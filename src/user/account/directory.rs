//! The user directory: all local users, users who share a room with the searching user, and users in public rooms.
//!
//! Client-server API, "User Directory". The name of another server's user is that of their membership.

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

/// The most members of rooms looked at in one search, each with the event that has their name: some tenths of a second on
/// a small board. Small rooms come first.
const LOOKED_AT_MAX: usize = 2_000;
/// The most rooms of this server looked at for being public.
const ROOMS_MAX: usize = 1_000;
const TERM_BYTES_MAX: usize = 256;

impl Users {
    /// The users whose id or name contains the term, and whether there may be more.
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
                    if !found.look(get, num, &shown_in(get, event)?)? {
                        return Ok((found.results, true));
                    }
                }
            }
            Ok((found.results, found.limited || left == 0))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tables::room::event_row::{Flags, Id, Row};
    use crate::store::tables::room::user_room::{self, Mine};
    use crate::store::{BodyNum, Position, Write};
    use crate::user::tests::{town, town_that};
    use serde_json::json;

    /// A room with one member of another server, called `name`.
    fn room_with(w: &mut Write<'_>, id: &str, far: &str, name: &str, rule: &str) -> Result<RoomNum, Error> {
        let num = room::intern(w, id, "12")?;
        let user = user::intern(w, far)?;
        let member = ("m.room.member", far, json!({ "membership": "join", "displayname": name }));
        for (kind, key, content) in [member, ("m.room.join_rules", "", json!({ "join_rule": rule }))] {
            let state_key = state_tree::intern_key(w, kind, key)?;
            let row = Row {
                room: num,
                body: BodyNum(0),
                id: Id::Named(format!("${kind}{id}")),
                kind: Kind::of(kind),
                state_key: Some(state_key),
                sender: user,
                member: (kind == "m.room.member").then_some((Membership::Join, user)),
                flags: Flags::default(),
                depth: 1,
                origin_server_ts: 1,
                auth: Vec::new(),
                before: None,
                order: Some(1),
                redacted_by: None,
            };
            let event = json!({ "auth_events": [], "content": content, "depth": 1, "origin_server_ts": 1,
                "prev_events": [], "room_id": id, "sender": far, "state_key": key, "type": kind });
            let (event, _) = event::insert(w, row, event.to_string().as_bytes())?;
            current_state::set_state(w, num, Kind::of(kind), state_key, Some(event))?;
            if kind == "m.room.member" {
                member::set(w, num, user, None, Some((Membership::Join, event)))?;
            }
        }
        let mut row = room::get_of(w, num)?;
        (row.status, row.joined) = (Status::Resident, 2);
        room::put(w, num, &row)?;
        Ok(num)
    }

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
        let (found, limited) = town.users.search(who, "robert", 10).await.unwrap();
        let expected = [("@x:far.test", "Robert"), ("@y:far.test", "Roberta")];
        let expected = expected.map(|(id, name)| json!({ "user_id": id, "display_name": name }));
        assert_eq!((found, limited), (expected.to_vec(), false));
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
