//! A room's state and its auth chain, for another server: `send_join`'s answer, `state`, `state_ids`, `event_auth`.
//!
//! Two cursors are written straight to the body: one over the state's tree, then one over the auth chain. The second is
//! one pass down the event numbers with a bit for each (an event's auth events have smaller numbers than the event).
//! One piece of the answer and that bitmap are held, whatever the room. Each piece reads from a snapshot of its own, so
//! that a slow reader keeps no pages of the database: trees and events never change.

use ruma::{EventId, RoomId, ServerName};

use super::long_answer::{LongAnswer, Served, members_kept};
use super::slots::Turn;
use crate::base;
use crate::matrix::Event;
use crate::matrix::json::write_string;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::serve::slots;
use crate::room::state::RoomRef;
use crate::room::state::server_access;
use crate::store::tables::room::{event, member};
use crate::store::{EventNum, Get};

impl Rooms {
    /// `GET /state` and `/state_ids`: the state before an event, and its auth chain.
    pub async fn serve_state(
        &self,
        origin: &ServerName,
        room: &RoomId,
        at: &EventId,
        ids_only: bool,
    ) -> Result<Served> {
        check_may_ask(self, origin, room, at).await?;
        let turn = slots::acquire(self, origin).await?;
        let (rooms, origin, room, at) = (self.clone(), origin.to_owned(), room.to_owned(), at.to_owned());
        base::blocking(move || {
            let read = rooms.0.parts.store.read()?;
            let (held, num) = asked_for(&read, &origin, &room, &at)?;
            let row = event::row_of(&read, num)?;
            // Below our history all states were worked out backwards; other servers need the true state.
            if row.flags.guessed || row.order.is_some_and(|order| order < 0) {
                return Err(Error::NotFound);
            }
            let before = row.before.ok_or(Error::NotFound)?;
            let names = if ids_only { ("pdu_ids", "auth_chain_ids") } else { ("pdus", "auth_chain") };
            let mut answer = LongAnswer::new(&rooms, &held, turn, b"{".to_vec(), names);
            answer.ids_only = ids_only;
            answer.state = Some(before);
            Ok(answer.served())
        })
        .await
    }

    /// `GET /event_auth`: the auth chain of an event.
    pub async fn serve_event_auth(&self, origin: &ServerName, room: &RoomId, of: &EventId) -> Result<Served> {
        check_may_ask(self, origin, room, of).await?;
        let turn = slots::acquire(self, origin).await?;
        let (rooms, origin, room, of) = (self.clone(), origin.to_owned(), room.to_owned(), of.to_owned());
        base::blocking(move || {
            let read = rooms.0.parts.store.read()?;
            let (held, num) = asked_for(&read, &origin, &room, &of)?;
            let mut answer = LongAnswer::new(&rooms, &held, turn, b"{".to_vec(), ("", "auth_chain"));
            answer.chain.mark_all(&event::row_of(&read, num)?.auth)?;
            Ok(answer.served())
        })
        .await
    }
}

/// Requests from servers outside the room are refused before they take a slot.
async fn check_may_ask(rooms: &Rooms, origin: &ServerName, room: &RoomId, event: &EventId) -> Result<()> {
    let (origin, room, event) = (origin.to_owned(), room.to_owned(), event.to_owned());
    rooms.reading(move |_, read| asked_for(read, &origin, &room, &event).map(drop)).await
}

/// `send_join`'s answer for the event numbered `joined`, which is in the room by now. `old_api`: version 1 of the
/// API.
pub fn answer_join(
    rooms: &Rooms,
    get: &impl Get,
    held: &RoomRef,
    turn: Turn,
    (joined, event): (EventNum, &Event),
    how: JoinAnswer,
) -> Result<Served> {
    let row = event::row_of(get, joined)?;
    let before = row.before.ok_or(Error::NotFound)?;
    let mut head = if how.old_api { b"[200,{".to_vec() } else { b"{".to_vec() };
    head.extend_from_slice(b"\"event\":");
    head.extend_from_slice(event.to_federation());
    head.extend_from_slice(b",\"origin\":");
    write_string(&mut head, rooms.0.parts.server.as_str());
    head.extend_from_slice(format!(",\"members_omitted\":{},", how.omit_members).as_bytes());
    let mut answer = LongAnswer::new(rooms, held, turn, head, ("state", "auth_chain"));
    if how.old_api {
        answer.tail = b"}]";
    }
    answer.chain.mark_all(&row.auth)?;
    answer.state = Some(before);
    if how.omit_members {
        answer.servers = true;
        let from = event.sender().server_name().as_str();
        let is_new = member::server(get, held.num, from)?.is_none_or(|(members, _)| members <= 1);
        answer.newcomer = is_new.then(|| from.to_owned());
        answer.members_kept = Some(members_kept(get, held, before, event)?);
    }
    Ok(answer.served())
}

/// The options of a joining server.
#[derive(Clone, Copy, Debug, Default)]
pub struct JoinAnswer {
    pub omit_members: bool,
    pub old_api: bool,
}

/// The room and the event that a server in the room asks about.
fn asked_for(get: &impl Get, origin: &ServerName, room: &RoomId, event: &EventId) -> Result<(RoomRef, EventNum)> {
    let held = server_access::for_member_server(get, origin, room)?;
    let num = known_event(get, &held, event)?;
    Ok((held, num))
}

/// An event of the room that has not been rejected.
fn known_event(get: &impl Get, held: &RoomRef, id: &EventId) -> Result<EventNum> {
    let num = event::num(get, id.as_str())?.ok_or(Error::NotFound)?;
    let row = event::row_of(get, num)?;
    if row.room != held.num || row.flags.rejected { Err(Error::NotFound) } else { Ok(num) }
}

#[cfg(test)]
mod tests {
    use crate::room::serve::long_answer::HEROES_MAX;
    use crate::room::serve::slots::PIECE_BYTES_MAX;
    use crate::store::tables::room::state_tree;
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use ruma::{OwnedRoomId, UserId};
    use serde_json::{Value, json};

    use super::*;
    use crate::base::{Clock, Random};
    use crate::budget::Budget;
    use crate::feed::Feed;
    use crate::matrix::{Draft, sign, version};
    use crate::remote::{Remote, RemoteOptions};
    use crate::room::append::new_event::Append;
    use crate::room::send::New;
    use crate::room::serve::membership::Submitted;
    use crate::room::{Parts, Verb};
    use crate::store::RoomNum;
    use crate::store::Store;
    use crate::store::tables::room;
    use crate::store::tables::room::event_row::Root;

    fn rooms() -> Rooms {
        let (clock, random, store) = (Clock::simulated(1_700_000_000_000), Random::seeded(1), Store::in_memory());
        let key = Arc::new(sign::Key::from_seed("1", [1; 32]));
        let (server, budget): (ruma::OwnedServerName, _) = ("us.test".try_into().unwrap(), Budget::for_tests());
        let options = RemoteOptions::new(server.clone(), key.clone());
        let remote = Remote::new(options, clock.clone(), random.clone(), &budget, store.clone()).unwrap();
        let (feed, scratch) = (Feed::new(clock.clone(), &store).unwrap(), std::env::temp_dir());
        Rooms::new(Parts { store, feed, clock, random, budget, remote, server, key, scratch })
    }

    async fn add(rooms: &Rooms, num: RoomNum, kind: &str, key: &str, sender: &str, content: Value) -> Event {
        let new = New::state(kind, key, <&UserId>::try_from(sender).unwrap(), content);
        let guard = rooms.lock(num).await;
        let room = crate::room::state::known_num(&rooms.read().unwrap(), num).unwrap();
        let built = crate::room::send::build(rooms, &rooms.read().unwrap(), &room, new).unwrap();
        rooms.append_locked(&guard, Append::next(num, built.event.clone())).await.unwrap();
        built.event
    }

    /// A public room with `members` users of seven other servers.
    async fn grown(rooms: &Rooms, version: &str, members: usize) -> (OwnedRoomId, RoomNum) {
        let version = version::get(version).unwrap();
        let admin = "@admin:us.test";
        let draft = Draft {
            kind: "m.room.create".into(),
            state_key: Some(String::new()),
            sender: admin.try_into().unwrap(),
            room_id: (!version.room_id_is_create_hash()).then(|| "!old:us.test".try_into().unwrap()),
            content: json!({ "room_version": version.id, "creator": admin }),
            prev_events: vec![],
            auth_events: vec![],
            depth: 1,
            origin_server_ts: 1,
            redacts: None,
            sticky_ms: None,
            opaque_id: "create".into(),
            reference_hashes: vec![],
        };
        let create = draft.build(version, &rooms.0.parts.server, &rooms.0.parts.key).unwrap();
        let (id, text) = (create.room_id().to_owned(), create.room_id().to_string());
        let num = rooms.write(move |w| Ok(room::intern(w, &text, version.id)?)).await.unwrap();
        let guard = rooms.lock(num).await;
        rooms.append_locked(&guard, Append::next(num, create)).await.unwrap();
        drop(guard);
        add(rooms, num, "m.room.member", admin, admin, json!({ "membership": "join" })).await;
        let levels = match version.creators_infinite {
            true => json!({}),
            false => json!({ admin: 100 }),
        };
        add(rooms, num, "m.room.power_levels", "", admin, json!({ "users": levels })).await;
        add(rooms, num, "m.room.join_rules", "", admin, json!({ "join_rule": "public" })).await;
        for n in 0..members {
            let user = format!("@u{n}:s{}.test", n % 7);
            add(rooms, num, "m.room.member", &user, &user, json!({ "membership": "join" })).await;
        }
        (id, num)
    }

    /// The body as it would be sent; no piece is larger than its grant.
    fn body(served: Served) -> Value {
        let (mut whole, mut chunks, mut more) = (Vec::new(), served.chunks, true);
        while more {
            let mut piece = Vec::new();
            more = chunks.next(&mut piece).unwrap();
            assert!(piece.len() as u64 <= PIECE_BYTES_MAX / 2, "{}", piece.len());
            whole.extend_from_slice(&piece);
        }
        serde_json::from_slice(&whole).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&whole)))
    }

    fn ids(version: &str, list: &Value) -> Vec<String> {
        let version = version::get(version).unwrap();
        let id = |event: &Value| Event::from_wire(version, event.to_string().as_bytes()).unwrap().id().to_string();
        list.as_array().unwrap().iter().map(id).collect()
    }

    fn unique(list: Vec<String>) -> BTreeSet<String> {
        let count = list.len();
        let set: BTreeSet<String> = list.into_iter().collect();
        assert_eq!(set.len(), count, "every event is there once");
        set
    }

    /// The state and its auth chain by the definition, computed from the rows.
    fn by_definition(
        rooms: &Rooms,
        num: RoomNum,
        root: Root,
        more: &[EventNum],
    ) -> (BTreeSet<String>, BTreeSet<String>) {
        let read = rooms.read().unwrap();
        let mut entries = Vec::new();
        assert!(state_tree::page(&read, root, None, usize::MAX, &mut entries).unwrap());
        let state: BTreeMap<EventNum, String> =
            entries.iter().map(|e| (e.event, event::id_of(&read, e.event).unwrap())).collect();
        let mut open: Vec<EventNum> = state.keys().copied().collect();
        let mut chain: BTreeSet<EventNum> = more.iter().copied().collect();
        open.extend(more);
        while let Some(next) = open.pop() {
            for auth in event::row_of(&read, next).unwrap().auth {
                if chain.insert(auth) {
                    open.push(auth);
                }
            }
        }
        let held = crate::room::state::known_num(&read, num).unwrap();
        if held.version.room_id_is_create_hash() {
            chain.extend(held.row.create);
        }
        (state.into_values().collect(), chain.iter().map(|num| event::id_of(&read, *num).unwrap()).collect())
    }

    #[tokio::test]
    async fn a_state_is_handed_over_whole_and_once() {
        for version in ["6", "12"] {
            let rooms = rooms();
            let (id, num) = grown(&rooms, version, 150).await;
            let last = add(&rooms, num, "m.room.topic", "", "@admin:us.test", json!({ "topic": "t" })).await;
            let origin: &ServerName = "s3.test".try_into().unwrap();
            let read = rooms.read().unwrap();
            let at = event::num(&read, last.id().as_str()).unwrap().unwrap();
            let root = event::row_of(&read, at).unwrap().before.unwrap();
            let (state, chain) = by_definition(&rooms, num, root, &[]);
            let answer = body(rooms.serve_state(origin, &id, last.id(), false).await.unwrap());
            assert_eq!(unique(ids(version, &answer["pdus"])), state);
            assert_eq!(unique(ids(version, &answer["auth_chain"])), chain);
            let answer = body(rooms.serve_state(origin, &id, last.id(), true).await.unwrap());
            let strings = |list: &Value| serde_json::from_value::<Vec<String>>(list.clone()).unwrap();
            assert_eq!(unique(strings(&answer["pdu_ids"])), state);
            assert_eq!(unique(strings(&answer["auth_chain_ids"])), chain);
            let auth = event::row_of(&read, at).unwrap().auth;
            let rests_on: BTreeSet<String> = auth.iter().map(|num| event::id_of(&read, *num).unwrap()).collect();
            let answer = body(rooms.serve_event_auth(origin, &id, last.id()).await.unwrap());
            assert!(rests_on.is_subset(&unique(ids(version, &answer["auth_chain"]))));
            // Two servers that read nothing do not delay the refusal of others.
            let slow: [ruma::OwnedServerName; 2] = ["s1.test".try_into().unwrap(), "s2.test".try_into().unwrap()];
            let one = rooms.serve_state(&slow[0], &id, last.id(), false).await.unwrap();
            let _two = rooms.serve_state(&slow[1], &id, last.id(), false).await.unwrap();
            let stranger: &ServerName = "s8.test".try_into().unwrap();
            assert!(matches!(rooms.serve_state(stranger, &id, last.id(), false).await, Err(Error::Forbidden(_))));
            let (mut chunks, mut pieces) = (one.chunks, 0);
            while chunks.next(&mut Vec::new()).unwrap_or(false) {
                rooms.0.parts.clock.advance(std::time::Duration::from_secs(40));
                pieces += 1;
            }
            assert_eq!(pieces, 1, "400 bytes a second");
            drop((chunks, one.grant, _two));
            assert_eq!(rooms.0.parts.budget.account("response_bodies").used(), 0, "every grant came back");
        }
    }

    #[tokio::test]
    async fn a_join_is_drawn_up_taken_and_answered() {
        for version in ["5", "9", "12"] {
            let rooms = rooms();
            let (id, num) = grown(&rooms, version, 100).await;
            let (origin, user) = ("new.test".try_into().unwrap(), "@eve:new.test".try_into().unwrap());
            let (origin, user): (ruma::OwnedServerName, ruma::OwnedUserId) = (origin, user);
            let drawn = rooms.draw_up(&origin, &id, &user, Verb::Join).await.unwrap();
            assert_eq!(drawn.version.id, version);
            let key = sign::Key::from_seed("2", [2; 32]);
            let text = drawn.event.to_string();
            let event = crate::matrix::draft::sign_new(drawn.version, text.as_bytes(), &origin, &key).unwrap();
            let wire = || serde_json::from_slice(event.to_federation()).unwrap();
            let submitted =
                || Submitted { origin: origin.clone(), room: id.clone(), id: event.id().to_owned(), event: wire() };
            // The key is not known yet.
            let how = JoinAnswer { omit_members: false, old_api: false };
            assert!(rooms.take_join(submitted(), how).await.is_err());
            know(&rooms, &origin, &key).await;
            let answer = body(rooms.take_join(submitted(), how).await.unwrap());
            let at = event::num(&rooms.read().unwrap(), event.id().as_str()).unwrap().unwrap();
            let row = event::row_of(&rooms.read().unwrap(), at).unwrap();
            let (state, chain) = by_definition(&rooms, num, row.before.unwrap(), &row.auth);
            assert_eq!(unique(ids(version, &answer["state"])), state);
            assert_eq!(unique(ids(version, &answer["auth_chain"])), chain);
            assert_eq!(answer["members_omitted"], false);
            assert_eq!(answer["origin"], "us.test");
            assert_eq!(ids(version, &json!([answer["event"]])), [event.id().to_string()]);
            // A repeated request (the answer was lost) gets the same event, now without the members.
            let how = JoinAnswer { omit_members: true, old_api: false };
            let answer = body(rooms.take_join(submitted(), how).await.unwrap());
            let members = answer["state"].as_array().unwrap().iter().filter(|e| e["type"] == "m.room.member").count();
            assert!(members > 0 && members <= HEROES_MAX + 1, "a nameless room's heroes, not {members}");
            assert!(unique(ids(version, &answer["state"])).is_subset(&state));
            // What the state has is not sent again.
            let chain_only = unique(ids(version, &answer["auth_chain"]));
            assert!(chain_only.is_subset(&chain) && chain_only.is_disjoint(&unique(ids(version, &answer["state"]))));
            // The servers that were there before.
            let servers = answer["servers_in_room"].as_array().unwrap();
            assert!(servers.contains(&json!("s6.test")) && !servers.contains(&json!("new.test")), "{servers:?}");
            let how = JoinAnswer { omit_members: false, old_api: true };
            assert_eq!(body(rooms.take_join(submitted(), how).await.unwrap())[0], 200);
            assert!(member::server(&rooms.read().unwrap(), num, "new.test").unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn a_banned_server_and_a_banned_user_get_nothing() {
        let rooms = rooms();
        let (id, num) = grown(&rooms, "10", 3).await;
        let admin = "@admin:us.test";
        add(&rooms, num, "m.room.server_acl", "", admin, json!({ "allow": ["*"], "deny": ["evil.*"] })).await;
        add(&rooms, num, "m.room.member", "@eve:new.test", admin, json!({ "membership": "ban" })).await;
        let draw = async |server: &str, user: &str| {
            let (server, user) = (server.try_into().unwrap(), user.try_into().unwrap());
            let (server, user): (ruma::OwnedServerName, ruma::OwnedUserId) = (server, user);
            rooms.draw_up(&server, &id, &user, Verb::Join).await.map(drop)
        };
        assert!(matches!(draw("evil.test", "@a:evil.test").await, Err(Error::Forbidden(_))));
        assert!(matches!(draw("new.test", "@eve:new.test").await, Err(Error::Forbidden(_))));
        assert!(matches!(draw("new.test", "@adam:other.test").await, Err(Error::Forbidden(_))));
        draw("new.test", "@adam:new.test").await.unwrap();
    }

    /// Stores another server's key where the joins look for it.
    async fn know(rooms: &Rooms, server: &ServerName, key: &sign::Key) {
        let (server, id, public) = (server.to_owned(), key.id().to_owned(), key.public().to_bytes());
        rooms
            .write(move |w| {
                let stored = crate::store::tables::server::signing_key::Stored {
                    key: public,
                    valid_until_ms: u64::MAX / 2,
                    expired: false,
                };
                Ok(crate::store::tables::server::signing_key::set(w, &server, &id, &stored)?)
            })
            .await
            .unwrap();
    }
}
