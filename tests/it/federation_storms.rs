//! Three servers on a simulated clock, whose wires delay, break and refuse by a seed: whatever the weather was, in the end all of
//! them hold the same events and the same state, and what was sent is there.
//!
//! `SNUG_SEEDS=1..50 cargo test --test it storms` tries more seeds; without it there are some fixed ones.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use snug::base::Random;

use crate::net::Net;
use crate::rooms::{PATIENCE, create, eventually, join, leave, q, say, sees_text, set};
use crate::server::{TestServer, TestUser};

const STEPS: usize = 60;
/// Between two steps, on the clock of the servers.
const PAUSE_MS_MAX: u64 = 2_000;

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_agree_after_any_weather() {
    for seed in seeds() {
        // Dropped while the test fails, this says how to repeat it.
        let said = OnFailure(seed);
        Story::begin(seed).await.tell().await;
        drop(said);
    }
}

/// From the environment, `7` or `1..50`; else some fixed ones: what the tests say is the same on every day.
fn seeds() -> Vec<u64> {
    let Ok(asked) = std::env::var("SNUG_SEEDS") else {
        return vec![1, 2, 3];
    };
    let number =
        |text: &str| text.trim().parse().unwrap_or_else(|_| panic!("SNUG_SEEDS is `7` or `1..50`, not {asked}"));
    match asked.split_once("..") {
        Some((first, end)) => (number(first)..number(end)).collect(),
        None => vec![number(&asked)],
    }
}

struct OnFailure(u64);

impl Drop for OnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the same once more: SNUG_SEEDS={} cargo test --test it storms", self.0);
        }
    }
}

/// A room that three servers are in, with somebody on each who stays, and somebody who comes and goes.
struct Story {
    net: Net,
    random: Random,
    staying: Vec<TestUser>,
    moving: Vec<TestUser>,
    is_here: Vec<bool>,
    room: String,
    said: BTreeSet<String>,
}

impl Story {
    async fn begin(seed: u64) -> Story {
        let net = Net::start(3, seed).await;
        let (mut staying, mut moving) = (Vec::new(), Vec::new());
        for (nth, server) in net.servers.iter().enumerate() {
            staying.push(server.register(&format!("stays{nth}")).await);
            moving.push(server.register(&format!("moves{nth}")).await);
        }
        // Whatever is set by anybody is allowed wherever it is told, so that everything must arrive.
        let powers = json!({ "state_default": 0, "events": {} });
        let options = json!({ "preset": "public_chat", "power_level_content_override": powers });
        let room = create(&net.servers[0], &staying[0], options).await;
        for nth in [1, 2] {
            join(&net.servers[nth], &staying[nth], &room, &net.servers[0]).await.ok();
        }
        let is_here = vec![false; 3];
        let story = Story { net, random: Random::seeded(seed), staying, moving, is_here, room, said: BTreeSet::new() };
        say(&story.net.servers[2], &story.staying[2], &story.room, "all are here").await;
        for (server, who) in story.all() {
            sees_text(server, who, &story.room, "all are here").await;
        }
        story
    }

    fn all(&self) -> impl Iterator<Item = (&TestServer, &TestUser)> {
        self.net.servers.iter().zip(&self.staying)
    }

    async fn tell(mut self) {
        self.net.wires().for_each(|wire| wire.storm());
        for step in 0..STEPS {
            self.step(step).await;
            let pause = self.random.below(PAUSE_MS_MAX);
            self.net.pass(Duration::from_millis(pause)).await;
        }
        self.net.wires().for_each(|wire| wire.mend());
        let lost: u64 = self.net.wires().map(|wire| wire.lost()).sum();
        assert!(lost > 0, "the weather was bad: {lost} connections were lost");
        for nth in 0..3 {
            self.say(nth, format!("last words of {nth}")).await;
        }
        self.agree().await;
        self.receipts_arrive().await;
        self.net.stop().await;
    }

    async fn step(&mut self, step: usize) {
        let nth = self.random.below(3) as usize;
        let (server, who, room) = (&self.net.servers[nth], &self.staying[nth], self.room.clone());
        let what = json!({ "topic": format!("topic {step}"), "name": format!("name {step}") });
        match self.random.below(10) {
            0 => set(server, who, &room, "m.room.topic", what).await,
            1 => set(server, who, &room, "m.room.name", what).await,
            2 => self.read_up(nth).await.map_or((), drop),
            3 if self.is_here[nth] => {
                leave(server, &self.moving[nth], &room).await;
                self.is_here[nth] = false;
            }
            3 => {
                join(server, &self.moving[nth], &room, server).await.ok();
                self.is_here[nth] = true;
            }
            _ => self.say(nth, format!("{step:03}")).await,
        }
    }

    async fn say(&mut self, nth: usize, text: String) {
        say(&self.net.servers[nth], &self.staying[nth], &self.room, &text).await;
        self.said.insert(text);
    }

    /// A receipt for what is the newest event there; answers its id.
    async fn read_up(&self, nth: usize) -> Option<String> {
        let (server, who) = (&self.net.servers[nth], &self.staying[nth]);
        let page = server.get(&format!("/rooms/{}/messages?dir=b&limit=1", q(&self.room)), who).await.ok();
        let id = page["chunk"][0]["event_id"].as_str()?.to_owned();
        server.post(&format!("/rooms/{}/receipt/m.read/{}", q(&self.room), q(&id)), who, json!({})).await.ok();
        Some(id)
    }

    async fn agree(&self) {
        let (mut seen, began) = (Vec::new(), Instant::now());
        while began.elapsed() < PATIENCE {
            seen.clear();
            for (server, who) in self.all() {
                seen.push(Seen::get(server, who, &self.room).await);
            }
            if seen.iter().all(|one| one.is_some() && *one == seen[0]) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let seen: Vec<Seen> = seen.into_iter().map(|one| one.expect("every server can be asked")).collect();
        for one in &seen[1..] {
            let lacks: Vec<_> = seen[0].events.symmetric_difference(&one.events).collect();
            assert!(lacks.is_empty(), "not on both of two servers: {lacks:#?}");
            let differs: Vec<_> = seen[0].state.symmetric_difference(&one.state).collect();
            assert!(differs.is_empty(), "not in the state of both of two servers: {differs:#?}");
        }
        let lost: Vec<_> =
            self.said.iter().filter(|text| !seen[0].events.iter().any(|(_, said)| said == *text)).collect();
        assert!(lost.is_empty(), "said and not there: {lost:?}");
    }

    /// Of a message that is the last on every server: a receipt never goes back, and what is further back differs between them.
    async fn receipts_arrive(&self) {
        say(&self.net.servers[0], &self.staying[0], &self.room, "the end").await;
        for (server, who) in self.all() {
            sees_text(server, who, &self.room, "the end").await;
        }
        for nth in 0..3 {
            let id = self.read_up(nth).await.unwrap();
            for (server, who) in self.all() {
                let of = &self.staying[nth].id;
                eventually(&format!("{} sees how far {of} has read", who.id), async || {
                    let sync = server.get("/sync", who).await.ok();
                    let told = sync["rooms"]["join"][&self.room]["ephemeral"]["events"].as_array()?.clone();
                    told.iter().any(|event| event["content"][&id]["m.read"][of].is_object()).then_some(())
                })
                .await;
            }
        }
    }
}

/// What one server knows of the room.
#[derive(Debug, PartialEq)]
struct Seen {
    /// Ids and texts.
    events: BTreeSet<(String, String)>,
    /// Ids, and what they set.
    state: BTreeSet<(String, String)>,
}

impl Seen {
    /// Everything back to the beginning; nothing when that cannot be had now.
    async fn get(server: &TestServer, who: &TestUser, room: &str) -> Option<Seen> {
        let (mut events, mut from) = (BTreeSet::new(), String::new());
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        loop {
            let path = format!("/rooms/{}/messages?dir=b&limit=50{from}", q(room));
            let reply = server.get(&path, who).await;
            if reply.status != 200 {
                return None;
            }
            let page = reply.json();
            let chunk = page["chunk"].as_array()?;
            events.extend(chunk.iter().map(|event| (text(&event["event_id"]), text(&event["content"]["body"]))));
            match page["end"].as_str() {
                Some(end) => from = format!("&from={end}"),
                None => break,
            }
        }
        let state = server.get(&format!("/rooms/{}/state", q(room)), who).await.ok();
        let set = |event: &serde_json::Value| format!("{}/{}", text(&event["type"]), text(&event["state_key"]));
        let state = state.as_array()?.iter().map(|event| (text(&event["event_id"]), set(event))).collect();
        Some(Seen { events, state })
    }
}
