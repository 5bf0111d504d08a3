//! Rooms we are not in, of which other servers tell: `GET /hierarchy` of the server-server API.
//!
//! The answer is read as a stream: of a room one value at a time, each bounded, and of a space's children only as much as is kept.
//! What was told stays in the store for a while (`store/tables/room/told.rs`), and so does that nobody told anything: a hierarchy
//! that is read page by page comes by the same rooms on every page.

use std::borrow::Cow;
use std::time::Duration;

use http::Method;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::children::VIA_MAX;
use crate::base::comma;
use crate::matrix::json;
use crate::matrix::json::partial;
use crate::remote::json_stream::{Events, Item, Limits, Malformed};
use crate::remote::{Failed, StreamLimits, Urgency, encode};
use crate::room::Rooms;
use crate::room::error::Result;
use crate::room::state::description::{Description, shown_text};
use crate::store::tables::room::told::{self, Told};
use crate::store::{Get, Write};

/// How long what was told is as good as asking again.
pub const FRESH_MS: u64 = 5 * 60 * 1000;
/// Servers asked about one room, and the time for each.
pub const SERVERS_MAX: usize = 3;
const EACH: Duration = Duration::from_secs(10);
/// An answer may be this long: it is not kept.
const BODY_BYTES_MAX: u64 = 8 << 20;
/// A room with its `children_state`, of about 300 bytes each; and a summary of a child, which is smaller.
const ROOM_BYTES_MAX: usize = 256 * 1024;
/// The largest value of the answer and a frame, on the account of what other servers answer.
const WINDOW_BYTES: u64 = ROOM_BYTES_MAX as u64 + 64 * 1024;
/// What is kept of one room's description, of one child's event, and of all of them: with the keys around them less than a row.
const DESCRIPTION_BYTES_MAX: usize = 12 * 1024;
const CHILD_BYTES_MAX: usize = 2 * 1024;
const CHILDREN_BYTES_MAX: usize = 48 * 1024;
/// Rooms told of beside the one that was asked for, and the bytes kept of them.
const BESIDE_MAX: usize = 100;
const BESIDE_BYTES_MAX: usize = 48 * 1024;
/// The longest content of a child's event that is looked at.
const CONTENT_BYTES_MAX: usize = 8 * 1024;
const ALLOWED_MAX: usize = 100;

/// What was told of a room: JSON as it is kept.
pub struct Kept<'a>(pub &'a [u8]);

impl Kept<'_> {
    pub fn description(&self) -> Option<Description> {
        serde_json::from_slice(json::read::get(self.0, "room")?).ok()
    }

    /// The events that name the children of a space, in the order in which they were told.
    pub fn children(&self) -> impl Iterator<Item = &[u8]> {
        let list = json::read::get(self.0, "children_state").filter(|list| list.starts_with(b"["));
        json::read::items(list.unwrap_or(b"[]"))
    }

    /// Whether a server told of the room for itself, and so of its children, and not only beside another.
    pub fn is_whole(&self) -> bool {
        json::read::get(self.0, "children_state").is_some()
    }
}

/// What was told of a room lately; none when it has to be asked for. With `any_age` whatever is kept.
pub fn kept(get: &impl Get, name: &told::Name, now_ms: u64, any_age: bool) -> Result<Option<Told>> {
    let is_fresh = |told: &Told| any_age || now_ms.saturating_sub(told.at_ms) < FRESH_MS;
    Ok(told::get(get, name)?.filter(is_fresh))
}

/// Asks other servers about a room, one after the other, and keeps what the first of them tells under the room's name, or that none
/// did. What it tells of other rooms beside is kept as this room's word.
pub async fn ask(rooms: &Rooms, name: told::Name, room_id: &RoomId, via: &[OwnedServerName]) -> Result<()> {
    let parts = &rooms.0.parts;
    let mut answer = None;
    for server in via.iter().filter(|server| !parts.remote.is_me(server)).take(SERVERS_MAX) {
        match parts.clock.timeout(EACH, ask_one(rooms, server, room_id)).await.unwrap_or(Err(Failed::Timeout)) {
            Ok(told) => {
                answer = Some(told);
                break;
            }
            Err(Failed::Refused(refused)) => return Err(refused.into()),
            Err(failed) => tracing::debug!(%server, %room_id, %failed, "the server told nothing of the room"),
        }
    }
    let at_ms = parts.clock.now_ms();
    if let Err(failed) = rooms.write(move |w| keep(w, name, answer, at_ms)).await {
        tracing::debug!(%failed, "what another server told of a room could not be kept");
    }
    Ok(())
}

/// Keeps an answer about the room of a name, or that there was none.
fn keep(w: &mut Write<'_>, name: told::Name, answer: Option<Answer>, at_ms: u64) -> Result<()> {
    let mut rows = Vec::new();
    match answer {
        // What another server told of it beside its own room stays.
        None if told::get(w, &name)?.is_some_and(|told| !told.text.is_empty()) => {}
        None => rows.push((name, Told { at_ms, text: Vec::new() })),
        Some(answer) => {
            for (id, text) in answer.beside {
                let beside = told::name_within(w, &name, id.as_str());
                // What a server told of a space for itself says more than what another says beside its own.
                if kept(w, &beside, at_ms, false)?.is_none_or(|told| !Kept(&told.text).is_whole()) {
                    rows.push((beside, Told { at_ms, text }));
                }
            }
            rows.push((name, Told { at_ms, text: answer.text }));
        }
    }
    Ok(told::put(w, &rows)?)
}

/// What a server told, in the form in which it is kept.
struct Answer {
    text: Vec<u8>,
    /// Of other rooms: their descriptions, or nothing where no server of ours may know more.
    beside: Vec<(OwnedRoomId, Vec<u8>)>,
}

async fn ask_one(rooms: &Rooms, server: &ServerName, room_id: &RoomId) -> Result<Answer, Failed> {
    let target = format!("/_matrix/federation/v1/hierarchy/{}?suggested_only=false", encode(room_id.as_str()));
    let _window = rooms.0.parts.budget.account("outbound").take(WINDOW_BYTES).await?;
    let limits = StreamLimits {
        first: EACH,
        stall: EACH,
        bytes_min: 1024,
        stretch: EACH,
        max_bytes: BODY_BYTES_MAX,
        urgency: Urgency::Person,
    };
    let mut body = rooms.0.parts.remote.stream(server, Method::GET, &target, None, limits).await?;
    let mut reading = Reading::new(room_id);
    while let Some(frame) = body.next().await? {
        reading.feed(&frame)?;
    }
    reading.finish()
}

/// An answer as it comes.
struct Reading<'a> {
    room_id: &'a RoomId,
    events: Events,
    text: Option<Vec<u8>>,
    beside: Vec<(OwnedRoomId, Vec<u8>)>,
    beside_bytes: usize,
}

impl<'a> Reading<'a> {
    fn new(room_id: &'a RoomId) -> Reading<'a> {
        let limits = Limits { body_bytes_max: BODY_BYTES_MAX, item_bytes_max: ROOM_BYTES_MAX };
        Reading { room_id, events: Events::new(limits), text: None, beside: Vec::new(), beside_bytes: 0 }
    }

    fn feed(&mut self, frame: &[u8]) -> Result<(), Failed> {
        let (text, beside, bytes) = (&mut self.text, &mut self.beside, &mut self.beside_bytes);
        let room_id = self.room_id;
        let mut add = |id: &str, text: Vec<u8>| {
            if let Ok(id) = OwnedRoomId::try_from(id)
                && id != room_id
                && beside.len() < BESIDE_MAX
                && *bytes + text.len() <= BESIDE_BYTES_MAX
            {
                *bytes += text.len();
                beside.push((id, text));
            }
        };
        let read = self.events.feed::<Malformed>(frame, &mut |item| {
            match item {
                Item::Value { key: "room", raw } => *text = read_space(raw, room_id),
                Item::Element { array: "children", raw } => {
                    if let Some(shown) = read_description(raw, &mut |_| {}) {
                        let text = [b"{\"room\":", &as_kept(&shown).unwrap_or_default()[..], b"}"].concat();
                        add(&shown.room_id, text);
                    }
                }
                Item::Element { array: "inaccessible_children", raw } => {
                    if let Ok(id) = serde_json::from_slice::<Cow<'_, str>>(raw) {
                        add(&id, Vec::new());
                    }
                }
                _ => {}
            }
            Ok(())
        });
        read.map_err(|malformed| Failed::BadAnswer(malformed.to_string()))
    }

    fn finish(self) -> Result<Answer, Failed> {
        self.events.finish().map_err(|malformed| Failed::BadAnswer(malformed.to_string()))?;
        let text = self.text.ok_or_else(|| Failed::BadAnswer("it does not describe the room".to_owned()))?;
        Ok(Answer { text, beside: self.beside })
    }
}

/// A room with its children, as it is kept; none for another room than the one asked for.
fn read_space(raw: &[u8], room_id: &RoomId) -> Option<Vec<u8>> {
    let mut children = Vec::new();
    let shown = read_description(raw, &mut |child| {
        if let Some(child) = read_child(child).filter(|child| children.len() + child.len() < CHILDREN_BYTES_MAX) {
            let mut is_first = children.is_empty();
            comma(&mut children, &mut is_first);
            children.extend_from_slice(&child);
        }
    })?;
    if shown.room_id != room_id.as_str() {
        return None;
    }
    Some([b"{\"room\":", &as_kept(&shown)?[..], b",\"children_state\":[", &children, b"]}"].concat())
}

/// A description as text, without its longest parts where it is too long.
fn as_kept(shown: &Description) -> Option<Vec<u8>> {
    let fits = |text: &Vec<u8>| text.len() <= DESCRIPTION_BYTES_MAX;
    let write = |shown: &Description| serde_json::to_vec(shown).ok().filter(fits);
    write(shown).or_else(|| write(&Description { topic: None, allowed_room_ids: Vec::new(), ..shown.clone() }))
}

/// A room as another server describes it. Fields of another type than the specification's are left out.
fn read_description(raw: &[u8], child: &mut dyn FnMut(&[u8])) -> Option<Description> {
    let mut shown = Description::default();
    let mut events = Events::new(Limits { body_bytes_max: raw.len() as u64, item_bytes_max: raw.len() });
    let read = events.feed::<Malformed>(raw, &mut |item| {
        match item {
            Item::Value { key, raw } => read_field(&mut shown, key, raw),
            Item::Element { array: "allowed_room_ids", raw } if shown.allowed_room_ids.len() < ALLOWED_MAX => {
                shown.allowed_room_ids.extend(text(raw));
            }
            Item::Element { array: "children_state", raw } => child(raw),
            _ => {}
        }
        Ok(())
    });
    (read.is_ok() && events.finish().is_ok() && !shown.room_id.is_empty()).then_some(shown)
}

fn read_field(shown: &mut Description, key: &str, raw: &[u8]) {
    let flag = || raw == b"true";
    match key {
        "room_id" => shown.room_id = text(raw).unwrap_or_default(),
        "name" => shown.name = text(raw),
        "topic" => shown.topic = text(raw),
        "canonical_alias" => shown.canonical_alias = text(raw),
        "avatar_url" => shown.avatar_url = text(raw),
        "join_rule" => shown.join_rule = text(raw),
        "room_type" => shown.room_type = text(raw),
        "room_version" => shown.room_version = text(raw),
        "encryption" => shown.encryption = text(raw),
        "num_joined_members" => shown.num_joined_members = serde_json::from_slice(raw).unwrap_or(0),
        "world_readable" => shown.world_readable = flag(),
        "guest_can_join" => shown.guest_can_join = flag(),
        _ => {}
    }
}

fn text(raw: &[u8]) -> Option<String> {
    serde_json::from_slice::<Cow<'_, str>>(raw).ok().and_then(|text| shown_text(&text))
}

/// A child's event as it is kept: what apps and the walk read of it.
fn read_child(raw: &[u8]) -> Option<Vec<u8>> {
    #[derive(Deserialize)]
    struct Given<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
        #[serde(borrow)]
        state_key: Cow<'a, str>,
        #[serde(borrow)]
        sender: Cow<'a, str>,
        origin_server_ts: u64,
        #[serde(borrow)]
        content: &'a RawValue,
    }
    #[derive(Serialize)]
    struct Content {
        #[serde(skip_serializing_if = "Option::is_none")]
        order: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        suggested: Option<bool>,
        via: Vec<String>,
    }
    #[derive(Serialize)]
    struct Child<'a> {
        content: Content,
        origin_server_ts: u64,
        sender: &'a str,
        state_key: &'a str,
        r#type: &'a str,
    }
    let Given { kind, state_key, sender, origin_server_ts, content } = serde_json::from_slice(raw).ok()?;
    let content = Some(content.get().as_bytes()).filter(|content| content.len() <= CONTENT_BYTES_MAX)?;
    let mut via: Vec<String> = partial::member(content, "via").unwrap_or_default();
    via.retain(|name| <&ServerName>::try_from(name.as_str()).is_ok());
    via.truncate(VIA_MAX);
    if kind != "m.space.child" || via.is_empty() || <&RoomId>::try_from(&*state_key).is_err() {
        return None;
    }
    let content =
        Content { via, order: partial::member(content, "order"), suggested: partial::member(content, "suggested") };
    let child = Child { content, origin_server_ts, sender: &sender, state_key: &state_key, r#type: "m.space.child" };
    serde_json::to_vec(&child).ok().filter(|child| child.len() <= CHILD_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::spaces::children::Child;
    use crate::room::testing::house;
    use serde_json::{Value, json};

    fn read(answer: &[u8], at_once: usize) -> Result<Answer, Failed> {
        let room_id = RoomId::parse("!space:there.example").unwrap();
        let mut reading = Reading::new(&room_id);
        for frame in answer.chunks(at_once) {
            reading.feed(frame)?;
        }
        reading.finish()
    }

    #[tokio::test]
    async fn what_a_server_tells_beside_its_space_is_no_word_about_others_rooms() {
        let house = house();
        let (bank, bad) = ("!bank:good.example", "!space:there.example");
        let answer = json!({
            "room": { "room_id": bad, "room_type": "m.space", "children_state": [] },
            "children": [{ "room_id": bank, "name": "lies" }], "inaccessible_children": ["!shop:good.example"],
        });
        let answer = read(answer.to_string().as_bytes(), 64).unwrap();
        house.rooms.write(move |w| keep(w, told::name(w, bad), Some(answer), 1)).await.unwrap();
        let get = &house.read();
        let space = told::name(get, bad);
        let at = |name| kept(get, &name, 1, false).unwrap();
        assert!(at(space).is_some());
        for room in [bank, "!shop:good.example"] {
            assert_eq!(at(told::name(get, room)), None);
            assert!(at(told::name_within(get, &space, room)).is_some());
            assert_eq!(at(told::name_within(get, &told::name(get, "!other:good.example"), room)), None);
        }
    }

    #[test]
    fn what_is_told_of_a_space_is_kept_as_far_as_it_is_wanted() {
        let child = |id: &str, via: Value| {
            json!({ "type": "m.space.child", "state_key": id, "sender": "@a:there.example", "origin_server_ts": 7,
                "content": { "via": via, "order": "a", "suggested": true, "x": [1] }, "more": {} })
        };
        let answer = json!({
            "room": {
                "room_id": "!space:there.example", "name": "Space ä\"", "topic": 7, "room_type": "m.space",
                "num_joined_members": 3, "world_readable": true, "guest_can_join": "yes", "extra": { "a": [] },
                "allowed_room_ids": ["!a:here", 5],
                "children_state": [child("!one:a", json!(["there.example"])), child("!two:a", json!([])), 5,
                    child("no id", json!(["there.example"]))],
            },
            "children": [{ "room_id": "!one:a", "name": "One", "num_joined_members": 1 }, {}, "x"],
            "inaccessible_children": ["!three:a", "!space:there.example", 9],
        });
        for at_once in [1, 10, 100_000] {
            let told = read(&serde_json::to_vec_pretty(&answer).unwrap(), at_once).unwrap();
            let kept = Kept(&told.text);
            let shown = kept.description().unwrap();
            assert_eq!((shown.name.as_deref(), &shown.topic, shown.num_joined_members), (Some("Space ä\""), &None, 3));
            assert!(shown.is_space() && shown.world_readable && !shown.guest_can_join);
            assert_eq!(shown.allowed_room_ids, ["!a:here"]);
            let children: Vec<_> = kept.children().collect();
            assert_eq!(children.len(), 1);
            let child = Child::of(children[0]).unwrap();
            assert_eq!((child.room_id.as_str(), child.via[0].as_str()), ("!one:a", "there.example"));
            assert!(super::super::children::is_suggested(children[0]));
            assert_eq!(told.beside.len(), 2);
            let one = Kept(&told.beside[0].1);
            assert!(!one.is_whole() && one.description().unwrap().name.as_deref() == Some("One"));
            assert_eq!((told.beside[1].0.as_str(), &told.beside[1].1[..]), ("!three:a", &b""[..]));
        }
    }

    #[test]
    fn an_answer_of_any_length_is_kept_within_a_row() {
        let child = |nth: usize| {
            json!({ "type": "m.space.child", "state_key": format!("!{nth}:a"), "sender": "@a:there.example",
                "origin_server_ts": 7, "content": { "via": ["a.example", "b.example"] } })
        };
        let room = |id: String| json!({ "room_id": id, "name": "n".repeat(9_000), "topic": "\u{1}".repeat(3_000) });
        let mut space = room("!space:there.example".to_owned());
        space["children_state"] = (0..1_000).map(child).collect();
        let children: Vec<_> = (0..150).map(|nth| room(format!("!{nth}:a"))).collect();
        let answer = json!({ "children": children, "room": space, "inaccessible_children": [] }).to_string();
        let told = read(answer.as_bytes(), 16 * 1024).unwrap();
        assert!(told.text.len() <= told::BYTES_MAX, "{}", told.text.len());
        assert!(Kept(&told.text).children().count() > 200);
        assert!(told.beside.len() <= BESIDE_MAX && told.beside.iter().all(|(_, text)| text.len() <= told::BYTES_MAX));
        let wrong = json!({ "room": { "room_id": "!other:there.example" }, "children": [] }).to_string();
        assert!(read(wrong.as_bytes(), 10).is_err());
    }

    #[test]
    fn any_bytes_are_told_or_not() {
        let good = br#"{"room":{"room_id":"!space:there.example","children_state":[{"type":"m.space.child","state_key":"!a:b","sender":"@a:b","origin_server_ts":1,"content":{"via":["b"]}}]},"children":[{"room_id":"!a:b"}],"inaccessible_children":["!c:d"]}"#;
        crate::base::any_bytes::any_bytes(&[good, b"{}", b"[]"], |bytes| {
            if let Ok(told) = read(bytes, 7) {
                assert!(told.text.len() <= told::BYTES_MAX);
                Kept(&told.text).children().for_each(|child| drop(Child::of(child)));
            }
        });
    }
}
