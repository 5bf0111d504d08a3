//! The user directory: users who share a room with the searching user, users in public rooms, and where the operator wants
//! that all local users.
//!
//! Client-server API, "User Directory". The name of another server's user is that of their membership, and that of a local
//! user the one of their profile: the name they have in a room may be meant for that room.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use ruma::UserId;
use serde_json::{Map, Value};

use crate::base::{fold, gathered};
use crate::matrix::json;
use crate::store::tables::room::event_row::{Kind, Membership};
use crate::store::tables::room::{self, Status, current_state, event, member, state_tree};
use crate::store::tables::user::{self, Standing};
use crate::store::{EventNum, Get, RoomNum, UserNum};
use crate::user::lookup;
use crate::user::{Error, Users, sharing};

/// The most people looked at in one search, those of small rooms first: a row each.
const LOOKED_AT_MAX: usize = 8_000;
/// Of those, the most whose name is read out of their membership: some 300 ms on a small board. The others are found by their
/// ids.
const NAMES_READ_MAX: usize = 3_000;
/// Members of a room listed at once.
const MEMBERS_AT_ONCE: usize = 500;
/// The memory of a search: 16 bytes for each who was looked at, and 50 results with an id, a name and an address each.
pub const SEARCH_BYTES: u64 = 256 * 1024;
/// The most rooms of this server looked at for being public.
const ROOMS_MAX: usize = 1_000;
const TERM_BYTES_MAX: usize = 256;
/// The words of a term that count.
const WORDS_MAX: usize = 10;

impl Users {
    /// The other users in whose id or name each word of the term is, those whom it fits best first, and whether there may be
    /// more. `all`: every local user counts. Takes [`SEARCH_BYTES`].
    pub async fn search(
        &self,
        asker: UserNum,
        term: &str,
        most: usize,
        all: bool,
    ) -> Result<(Vec<Value>, bool), Error> {
        if term.len() > TERM_BYTES_MAX {
            return Ok((Vec::new(), false));
        }
        let words: Vec<_> =
            term.split_whitespace().take(WORDS_MAX).map(folded).filter(|word| !word.is_empty()).collect();
        if words.is_empty() {
            return Ok((Vec::new(), false));
        }
        self.read(move |get| {
            let seen = BTreeSet::from([asker]);
            let mut found = Found { words, most, seen, best: Vec::new(), limited: false };
            let mut left = LOOKED_AT_MAX;
            let mut here = Vec::new();
            if all {
                user::accounts_after(get, None, &mut |num, row| {
                    if row.standing == Standing::Active {
                        here.push(num);
                    }
                    left -= 1;
                    Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })?;
            }
            for num in here {
                found.look(get, num, &mut |_| Ok(Some(user::profile(get, num)?)))?;
            }
            let mut names = NAMES_READ_MAX;
            let shared = by_size(get, sharing::rooms(get, asker)?)?;
            let public = by_size(get, public_rooms(get, &shared)?)?;
            'rooms: for room in shared.into_iter().chain(public) {
                let mut after = None;
                loop {
                    let members = members_to_see(get, room, &mut after, &mut left, &found.seen)?;
                    for (num, event) in &members {
                        found.meet(get, *num, *event, &mut names)?;
                    }
                    if found.is_perfect() {
                        break 'rooms;
                    }
                    if members.len() < MEMBERS_AT_ONCE {
                        break;
                    }
                }
            }
            let limited = found.limited || left == 0;
            Ok((found.best.into_iter().map(|(_, result)| result).collect(), limited))
        })
        .await
    }
}

/// The next members of a room that were not looked at yet, and the event of each; `left` fewer.
fn members_to_see(
    get: &impl Get,
    room: RoomNum,
    after: &mut Option<UserNum>,
    left: &mut usize,
    seen: &BTreeSet<UserNum>,
) -> Result<Vec<(UserNum, EventNum)>, Error> {
    let mut members = Vec::new();
    member::list(get, room, Membership::Join, *after, &mut |num, event| {
        // Who is known already costs nothing.
        if !seen.contains(&num) {
            if *left == 0 || members.len() == MEMBERS_AT_ONCE {
                return Ok(ControlFlow::Break(()));
            }
            *left -= 1;
            members.push((num, event));
        }
        *after = Some(num);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(members)
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
    Ok(gathered(texts))
}

struct Found {
    /// Folded.
    words: Vec<String>,
    most: usize,
    seen: BTreeSet<UserNum>,
    /// The best first, and of two that are alike the one that was found first.
    best: Vec<(Fit, Value)>,
    /// Whether somebody fits, or may fit, who is not among them.
    limited: bool,
}

/// How well the worst of the words fits (as [`fit_in`] says), and whether the user has a name.
type Fit = (u8, bool);
const WHOLE_WORD: u8 = 3;

impl Found {
    /// Whether nobody else can fit better.
    fn is_perfect(&mut self) -> bool {
        let is = self.best.len() == self.most && self.best.iter().all(|(fit, _)| *fit == (WHOLE_WORD, true));
        self.limited |= is;
        is
    }

    /// Looks at a member of a room: one elsewhere has the name of that membership.
    fn meet(&mut self, get: &impl Get, num: UserNum, event: EventNum, names: &mut usize) -> Result<(), Error> {
        let mut passed_over = false;
        let mut shown = |is_wanted: bool| match user::account(get, num)? {
            Some(row) if row.standing == Standing::Active => Ok(Some(user::profile(get, num)?)),
            Some(_) => Ok(None),
            None if !is_wanted && *names == 0 => {
                passed_over = true;
                Ok(None)
            }
            None => {
                *names -= usize::from(!is_wanted);
                shown_in(get, event).map(Some)
            }
        };
        self.look(get, num, &mut shown)?;
        self.limited |= passed_over;
        Ok(())
    }

    /// Adds a user that fits. `profile` is told whether the id fits, and has none for a user who is not to be found.
    fn look(
        &mut self,
        get: &impl Get,
        num: UserNum,
        profile: &mut dyn FnMut(bool) -> Result<Option<Map<String, Value>>, Error>,
    ) -> Result<(), Error> {
        if !self.seen.insert(num) {
            return Ok(());
        }
        let id = lookup::id_of(get, num)?;
        let id_text = folded(id.as_str());
        let by_id = fit(&self.words, &[&id_text]) > 0;
        let Some(profile) = profile(by_id)? else { return Ok(()) };
        let name = profile.get("displayname").and_then(Value::as_str);
        let name_text = name.map(folded).unwrap_or_default();
        let fits = (fit(&self.words, &[&id_text, &name_text]), name.is_some());
        if fits.0 == 0 {
            return Ok(());
        }
        let at = self.best.partition_point(|(other, _)| *other >= fits);
        if at < self.most {
            let mut result = Map::from_iter([("user_id".to_owned(), id.as_str().into())]);
            result.extend(name.map(|name| ("display_name".to_owned(), name.into())));
            result.extend(profile.get("avatar_url").map(|url| ("avatar_url".to_owned(), url.clone())));
            self.best.insert(at, (fits, result.into()));
        }
        self.limited |= at >= self.most || self.best.len() > self.most;
        self.best.truncate(self.most);
        Ok(())
    }
}

fn folded(text: &str) -> String {
    let mut out = String::new();
    fold(text, SHOWN_BYTES_MAX, &mut out);
    out
}

/// How well the worst of some words fits, in the text in which it fits best; 0 when one fits nowhere.
fn fit(words: &[String], texts: &[&str]) -> u8 {
    let best = |word: &String| texts.iter().map(|text| fit_in(text, word)).max().unwrap_or(0);
    words.iter().map(best).min().unwrap_or(0)
}

/// 0 where a word is not in a text, 1 within another word, 2 at the beginning of one, 3 as a word of its own.
fn fit_in(text: &str, word: &str) -> u8 {
    let is_edge = |char: Option<char>| char.is_none_or(|char| !char.is_alphanumeric());
    let fits = text.match_indices(word).map(|(at, _)| {
        match (is_edge(text[..at].chars().next_back()), is_edge(text[at + word.len()..].chars().next())) {
            (true, true) => WHOLE_WORD,
            (true, false) => 2,
            _ => 1,
        }
    });
    fits.max().unwrap_or(0)
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

    /// The first ten people found were shown, whomever the words fitted better; and somebody whose family name was written first
    /// was not found.
    #[tokio::test]
    async fn whom_the_words_fit_best_comes_first() {
        let town = town();
        let anna = town.person("anna").await;
        let who = anna.user_num;
        let people = [
            ("@a:far.test", "Joanna"),
            ("@b:far.test", "Annabel Smith"),
            ("@anna:far.test", "Ms Smith"),
            ("@d:far.test", "Smith, Änna"),
            ("@e:far.test", "Smithers"),
        ];
        let made = town.users.write(move |w| {
            for (n, (id, name)) in people.into_iter().enumerate() {
                let room = room_with(w, &format!("!{n}:here.test"), id, name, "invite")?;
                user_room::set_mine(w, who, room, &Mine::joined(Position(1)))?;
            }
            Ok(())
        });
        made.await.unwrap();
        let found = async |term: &str, most| {
            let (found, limited) = town.users.search(who, term, most, false).await.unwrap();
            let ids = found.iter().map(|user| user["user_id"].as_str().unwrap().split(':').next().unwrap().to_owned());
            (ids.collect::<Vec<_>>().join(" "), limited)
        };
        assert_eq!(found("anna", 10).await, ("@anna @d @b @a".to_owned(), false));
        assert_eq!(found("ANNÁ", 3).await, ("@anna @d @b".to_owned(), true));
        assert_eq!(found("anna", 2).await, ("@anna @d".to_owned(), true));
        assert_eq!(found(" smith  anna", 10).await, ("@anna @d @b".to_owned(), false));
        assert_eq!(found("smith zoe", 10).await, (String::new(), false));
        assert_eq!(found("@anna:far.test", 10).await, ("@anna".to_owned(), false));
        assert_eq!(found(" ", 10).await, (String::new(), false));
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
