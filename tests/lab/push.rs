//! What the resident does of its own accord: sends further events into a joined room, and joins as another server.

use super::event::{Draft, Hash, Key, event_id, from_value, hash_of_id, open};
use super::json::map;
use super::resident::{Live, Shared, lock, member_content, now_ms, word};
use super::room::{GUEST, Kind, RESIDENT};
use super::wire::{Client, percent_encode};
use serde_json::{Value, json};
use std::io;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Users on the resident change their names.
    Rename,
    /// New users of the resident join.
    Join,
    /// Users on the resident leave.
    Leave,
    Message,
    /// Messages of 30 KB and more, which do not compress.
    LargeMessage,
}

/// What became of a push.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Pushed {
    pub events: u64,
    pub seconds: f64,
    /// Events the server under test refused, as it said.
    pub refused: Vec<String>,
    /// The id of the last event.
    pub last: String,
}

/// What another server got when it joined a room of the server under test.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct GuestJoin {
    pub bytes: u64,
    pub state: u64,
    pub auth_chain: u64,
    pub seconds_to_first_byte: f64,
    pub seconds: f64,
    pub room_version: String,
    /// Events that could not be read or whose hash was wrong, when they were looked at.
    pub bad: u64,
    /// Hash over the sorted ids of the state, when they were looked at.
    pub state_digest: String,
}

impl Shared {
    /// Sends `count` events, `each` to a transaction, one transaction after the other.
    pub fn push(&self, room: &str, what: What, count: u64, each: u64) -> io::Result<Pushed> {
        let live = self.rooms.get(room).ok_or_else(|| io::Error::other("no such room"))?;
        let mut client = self.client().ok_or_else(|| io::Error::other("the server under test is not known"))?;
        let users = resident_users(live);
        let (start, mut pushed) = (Instant::now(), Pushed::default());
        let mut number = 0;
        while number < count {
            let events: Vec<Vec<u8>> = (number..count.min(number + each.clamp(1, 50)))
                .map(|number| self.next_event(live, what, &users, number))
                .collect();
            number += events.len() as u64;
            pushed.refused.extend(self.send(&mut client, &events)?);
        }
        pushed.events = count;
        pushed.seconds = start.elapsed().as_secs_f64();
        pushed.last = lock(&live.tail).extremities.last().map(event_id).unwrap_or_default();
        Ok(pushed)
    }

    /// Tells of `count` changes of presence, `each` to a transaction, each of another of the room's people as long as there are such.
    /// Answers how many were told.
    pub fn push_presence(&self, room: &str, count: u64, each: u64) -> io::Result<u64> {
        let live = self.rooms.get(room).ok_or_else(|| io::Error::other("no such room"))?;
        let mut client = self.client().ok_or_else(|| io::Error::other("the server under test is not known"))?;
        let users = resident_users(live);
        let mut number = 0;
        while number < count {
            let end = count.min(number + each.clamp(1, 100));
            let told = (number..end).map(|number| {
                let (_, user) = users[number as usize % users.len()];
                let state = ["online", "unavailable", "offline"][fresh() as usize % 3];
                let push = json!({"user_id": live.rendered.room.user_id(user), "presence": state,
                    "last_active_ago": 1000 + number % 5000, "currently_active": state == "online"});
                json!({"edu_type": "m.presence", "content": {"push": [push]}})
            });
            let body =
                json!({"origin": RESIDENT, "origin_server_ts": now_ms(), "pdus": [], "edus": told.collect::<Vec<_>>()});
            self.transact(&mut client, &body)?;
            number = end;
        }
        Ok(number)
    }

    fn next_event(&self, live: &Live, what: What, users: &[(u32, u32)], number: u64) -> Vec<u8> {
        let key = self.key();
        // Far from the start of the list, so that pushes of different kinds meet different users.
        let offset = match what {
            What::Leave => users.len() / 2,
            _ => 0,
        };
        let (row, user) = users[(offset + number as usize) % users.len()];
        let user = live.rendered.room.user_id(user);
        let newest = lock(&live.tail).members.get(&user).copied().unwrap_or(live.rendered.room.rows[row as usize].id);
        let auth = |joining: bool| -> Vec<Hash> { live.auth_base(joining).into_iter().chain([newest]).collect() };
        match what {
            What::Rename => {
                let content = member_content(&word("rename", number));
                live.make(key, "m.room.member", &user, Some(&user), content, auth(true))
            }
            What::Join => {
                let user = format!("@late{}{number}:{RESIDENT}", word("late", now_ms()).to_lowercase());
                live.make(key, "m.room.member", &user, Some(&user), member_content("late"), live.auth_base(true))
            }
            What::Leave => {
                let content = map([("membership", "leave".into())]);
                live.make(key, "m.room.member", &user, Some(&user), content, auth(false))
            }
            What::LargeMessage => {
                let body = super::random::Stream::new(2, "large", number).token(31_000, false);
                let content = map([("msgtype", "m.text".into()), ("body", body.into())]);
                live.make(key, "m.room.message", &user, None, content, auth(false))
            }
            What::Message => {
                let content = map([("msgtype", "m.text".into()), ("body", word("message", number).into())]);
                live.make(key, "m.room.message", &user, None, content, auth(false))
            }
        }
    }

    /// One transaction; returns what the server refused.
    fn send(&self, client: &mut Client, events: &[Vec<u8>]) -> io::Result<Vec<String>> {
        let pdus = events.iter().map(|event| serde_json::from_slice(event)).collect::<Result<Vec<Value>, _>>()?;
        let answer = self.transact(client, &json!({"origin": RESIDENT, "origin_server_ts": now_ms(), "pdus": pdus}))?;
        let results = answer["pdus"].as_object().cloned().unwrap_or_default();
        Ok(results
            .into_iter()
            .filter_map(|(id, result)| Some(format!("{id}: {}", result["error"].as_str()?)))
            .collect())
    }

    /// One transaction, as often as it is put off.
    fn transact(&self, client: &mut Client, body: &Value) -> io::Result<Value> {
        let path = format!("/_matrix/federation/v1/send/{}{}", now_ms(), word("transaction", fresh()));
        loop {
            let answer = client.signed(self.key(), "PUT", &path, Some(body))?;
            if answer.status == 429 {
                std::thread::sleep(Duration::from_millis(
                    answer.json()["retry_after_ms"].as_u64().unwrap_or(500).min(5000),
                ));
                continue;
            }
            return answer.good("a transaction");
        }
    }

    /// Joins a room of the server under test as a server that is in none yet. With `look`, every event is opened and counted
    /// bad when its hash is wrong.
    pub fn guest_join(&self, room: &str, localpart: &str, look: bool) -> io::Result<GuestJoin> {
        let mut client = self
            .client()
            .ok_or_else(|| io::Error::other("the server under test is not known"))?
            .with_timeout(Duration::from_secs(600));
        let user = format!("@{localpart}:{GUEST}");
        let versions = "ver=10&ver=11&ver=12";
        let path =
            format!("/_matrix/federation/v1/make_join/{}/{}?{versions}", percent_encode(room), percent_encode(&user));
        let template = client.signed(&self.guest, "GET", &path, None)?.good("make_join")?;
        let version = template["room_version"].as_str().unwrap_or_default().to_owned();
        let version =
            super::event::Version::from_name(&version).ok_or_else(|| io::Error::other("a version the guest lacks"))?;
        let (id, event) = sign_template(&self.guest, &template["event"], &user, version)
            .ok_or_else(|| io::Error::other("an unusable template"))?;
        let path = format!(
            "/_matrix/federation/v2/send_join/{}/{}?omit_members=false",
            percent_encode(room),
            percent_encode(&id)
        );
        let authorization = super::wire::x_matrix(
            &self.guest,
            &lock(&self.peer).as_ref().expect("known").host,
            "PUT",
            &path,
            Some(&event),
        );
        let body = event.to_string().into_bytes();
        let (start, mut first) = (Instant::now(), None);
        let mut result = GuestJoin { room_version: version.name().to_owned(), ..GuestJoin::default() };
        let mut state_ids: Vec<Hash> = Vec::new();
        let mut seen = |list: &str, bytes: &[u8]| {
            let in_state = list == "state";
            *(if in_state { &mut result.state } else { &mut result.auth_chain }) += 1;
            if look {
                let opened = serde_json::from_slice(bytes).ok().and_then(|event| open(&event, version));
                match opened.filter(|opened| opened.hash_matches) {
                    Some(opened) if in_state => state_ids.push(opened.id),
                    Some(_) => {}
                    None => result.bad += 1,
                }
            }
        };
        let mut scan = Scanner::new(&mut seen);
        let mut bytes = 0;
        let (status, _) =
            client.stream("PUT", &path, &[("authorization", &authorization)], Some(&body), &mut |piece| {
                first.get_or_insert_with(|| start.elapsed());
                bytes += piece.len() as u64;
                scan.take(piece);
            })?;
        if status != 200 || !scan.is_complete() {
            return Err(io::Error::other(format!("send_join: status {status} after {bytes} bytes")));
        }
        result.bytes = bytes;
        result.seconds_to_first_byte = first.unwrap_or_default().as_secs_f64();
        result.seconds = start.elapsed().as_secs_f64();
        result.state_digest = digest(state_ids);
        Ok(result)
    }
}

fn digest(mut ids: Vec<Hash>) -> String {
    use sha2::Digest;
    ids.sort_unstable();
    sha2::Sha256::digest(ids.concat()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Joined users of the resident with the row of their member event.
fn resident_users(live: &Live) -> Vec<(u32, u32)> {
    let room = &live.rendered.room;
    let fault = |user: u32| user >= room.dials.joined + room.dials.gone;
    (0..room.rows.len() as u32)
        .filter_map(|row| {
            let it = room.rows[row as usize];
            // The creator and the moderators are left alone.
            let usable =
                it.in_state && it.kind == Kind::Join && it.user > 200.min(room.dials.joined / 2) && !fault(it.user);
            (usable && room.home(it.user) == 0).then_some((row, it.user))
        })
        .collect()
}

fn fresh() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Fills in what a template leaves to the joining server.
fn sign_template(key: &Key, template: &Value, user: &str, version: super::event::Version) -> Option<(String, Value)> {
    let hashes =
        |field: &str| template[field].as_array()?.iter().map(|id| hash_of_id(id.as_str()?)).collect::<Option<Vec<_>>>();
    let draft = Draft {
        kind: "m.room.member".into(),
        state_key: Some(user.to_owned()),
        sender: user.to_owned(),
        room_id: Some(template["room_id"].as_str()?.to_owned()),
        content: from_value(&template["content"]),
        origin_server_ts: now_ms(),
        depth: template["depth"].as_u64()?,
        prev_events: hashes("prev_events")?,
        auth_events: hashes("auth_events")?,
    };
    let sealed = draft.seal(version);
    let event = serde_json::from_slice(&sealed.canonical(sealed.signatures(&[key]))).ok()?;
    Some((event_id(&sealed.id), event))
}

/// Finds the elements of an object's arrays in a body that comes in pieces: `{"state":[here, here], …}`.
pub struct Scanner<'a> {
    seen: &'a mut dyn FnMut(&str, &[u8]),
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The last string at the outermost level: the name of what follows.
    name: Vec<u8>,
    naming: bool,
    element: Vec<u8>,
    ended: bool,
}

impl<'a> Scanner<'a> {
    pub fn new(seen: &'a mut dyn FnMut(&str, &[u8])) -> Scanner<'a> {
        Scanner {
            seen,
            depth: 0,
            in_string: false,
            escaped: false,
            name: Vec::new(),
            naming: true,
            element: Vec::new(),
            ended: false,
        }
    }

    pub fn is_complete(&self) -> bool {
        self.ended
    }

    pub fn take(&mut self, piece: &[u8]) {
        for &byte in piece {
            if self.depth >= 3 || (self.depth == 2 && byte == b'{') {
                self.element.push(byte);
            }
            if self.in_string {
                self.in_text(byte);
            } else {
                self.between(byte);
            }
        }
    }

    fn in_text(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_string = false,
            _ if self.depth == 1 && self.naming => self.name.push(byte),
            _ => {}
        }
    }

    fn between(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == 1 && self.naming {
                    self.name.clear();
                }
            }
            b':' if self.depth == 1 => self.naming = false,
            b',' if self.depth == 1 => self.naming = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.ended = self.depth == 0;
                let name = String::from_utf8_lossy(&self.name);
                if self.depth == 2 && byte == b'}' && (name == "state" || name == "auth_chain") {
                    (self.seen)(&name, &self.element);
                }
                if self.depth <= 2 {
                    self.element.clear();
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scanner_finds_events_across_pieces() {
        let body = br#"{"event":{"state":[{"a":1}]},"state":[{"a":"}]\""},{"b":[{}]}],"auth_chain":[{"c":1}],"members_omitted":false}"#;
        for size in [1, 7, 1000] {
            let mut found = Vec::new();
            let mut seen = |list: &str, bytes: &[u8]| found.push(format!("{list} {}", String::from_utf8_lossy(bytes)));
            let mut scanner = Scanner::new(&mut seen);
            body.chunks(size).for_each(|piece| scanner.take(piece));
            assert!(scanner.is_complete());
            assert_eq!(found, [r#"state {"a":"}]\""}"#, r#"state {"b":[{}]}"#, r#"auth_chain {"c":1}"#]);
        }
    }
}
