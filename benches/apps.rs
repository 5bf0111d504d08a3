//! What an app's first hour costs: `cargo bench --bench apps -- [--budget BUDGET] [--rooms N] [--keys N] [--events N] [--children N] [--updates N] [--profile NAME] [--users N] [--listed N] [--binary FILE] [--only PART]`.
//!
//! Parts: `screens` (first screen and incremental sync by sliding sync, beside `/sync` version 3), `devices` (three devices
//! sync for the first time by both at once), `backup` (a backup of many keys, uploaded and fetched), `push` (from a message to the
//! request at a push gateway, also beside many notifications for gateways that are gone), `media` (a file of 50 MiB of another
//! server, asked for by ten people at once, then by one from the disk), `pictures` (thumbnails of a
//! camera's picture, of a bomb), `search` (many messages, with the index of words and without it; the time of a search; the size
//! of the index), `hierarchy` (a space of N rooms, page by page), `presence` (what another server tells of N people in a room
//! that is shared: processor time for each, and memory; `--profile NAME` names the room), `admin` (the administration API's lists
//! of N accounts and N rooms, page by page, and the members of a room that is shared). Processor time is the server's own;
//! the yardstick of the same run is the answer of `/versions`, which reads nothing.

#[path = "../tests/lab/mod.rs"]
mod lab;

use lab::certificates::Certificates;
use lab::control;
use lab::drive::{NAME, Person, SLIDING_SYNC, Setup, Snug};
use lab::render::Rendered;
use lab::resident::{Dials, Resident};
use lab::room::{self, RESIDENT};
use lab::wire::percent_encode;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Keys an app sends in one request.
const KEYS_A_REQUEST: u64 = 200;
/// Messages for each figure of an incremental sync.
const MESSAGES: u32 = 500;

struct Words(Vec<String>);

impl Words {
    fn after(&self, name: &str) -> Option<String> {
        self.0.iter().position(|word| word == name).and_then(|at| self.0.get(at + 1)).cloned()
    }

    fn number(&self, name: &str, or: u64) -> u64 {
        self.after(name).and_then(|text| text.parse().ok()).unwrap_or(or)
    }
}

fn main() -> io::Result<()> {
    let words = Words(std::env::args().skip(1).collect());
    let budget = words.after("--budget").unwrap_or_else(|| "pi-zero-2w".into());
    let profile = snug::budget::Profile::named(&budget).map_err(|error| io::Error::other(error.to_string()))?;
    let only = words.after("--only");
    let wants = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let room = match wants("presence") || wants("admin") {
        true => words.after("--profile").unwrap_or_else(|| "s".into()),
        false => "xs".to_owned(),
    };
    let elsewhere = (wants("media") || wants("presence") || wants("admin")).then(|| elsewhere(&room)).transpose()?;
    let setup = Setup {
        binary: words.after("--binary").map_or_else(|| env!("CARGO_BIN_EXE_snug").into(), Into::into),
        budget,
        cap: Some(profile.total),
        disk: None,
        resident_port: elsewhere.as_ref().map_or(1, |(resident, _)| resident.address.port()),
        log: "warn".to_owned(),
    };
    let mut snug = Snug::start(&setup)?;
    let mut owner = snug.register("owner")?;
    let mut other = snug.register("other")?;
    yardstick(&snug, &mut owner)?;
    if wants("screens") || wants("devices") {
        let many = words.number("--rooms", 2_000);
        let mut rooms = Vec::new();
        for step in [many / 4, many] {
            more_rooms(&mut owner, &mut other, &mut rooms, step)?;
            if wants("screens") {
                screens(&snug, &mut owner, &mut other, &rooms)?;
            }
        }
        if wants("devices") {
            devices(&snug, &owner)?;
        }
    }
    if wants("backup") {
        backup(&snug, &mut owner, words.number("--keys", 100_000))?;
    }
    if wants("push") {
        push(&mut snug, &owner, &other, words.number("--waiting", 10_000))?;
    }
    if let Some((resident, _)) = &elsewhere {
        resident.meet(NAME, &snug.federation_url())?;
        if wants("media") {
            media(&snug, &owner, resident)?;
        }
    }
    if wants("pictures") {
        pictures(&snug, &mut owner)?;
    }
    if wants("search") {
        search(&mut snug, &owner, &other, words.number("--events", 200_000))?;
    }
    if wants("hierarchy") {
        hierarchy(&snug, &mut owner, words.number("--children", 1_000))?;
    }
    if let Some((resident, room)) = elsewhere.as_ref().filter(|_| wants("presence")) {
        presence(&mut snug, &owner, resident, room, words.number("--updates", 40_000))?;
    }
    if let Some((_, room)) = elsewhere.as_ref().filter(|_| wants("admin")) {
        let (users, listed) = (words.number("--users", 1_000), words.number("--listed", 5_000));
        admin(&snug, &setup, (&mut owner, &mut other), room, users, listed)?;
    }
    let usage = snug.usage();
    println!(
        "peak resident {:.1} MiB, {} KiB on disk",
        usage.peak as f64 / f64::from(1 << 20),
        snug.disk_bytes() >> 10
    );
    if usage.peak > profile.total {
        eprintln!("above the cap of {} MiB", profile.total >> 20);
        std::process::exit(1);
    }
    Ok(())
}

/// Milliseconds of the server's processor time that each of `times` took, and of the clock.
fn each(snug: &Snug, times: u32, mut work: impl FnMut() -> io::Result<()>) -> io::Result<(f64, f64)> {
    let (before, began) = (snug.usage().cpu, Instant::now());
    for _ in 0..times {
        work()?;
    }
    let (cpu, wall) = (snug.usage().cpu - before, began.elapsed().as_secs_f64());
    Ok((cpu * 1e3 / f64::from(times), wall * 1e3 / f64::from(times)))
}

fn yardstick(snug: &Snug, person: &mut Person) -> io::Result<()> {
    let (cpu, wall) = each(snug, 2_000, || person.call("GET", "/_matrix/client/versions", None).map(drop))?;
    println!("yardstick: /versions {cpu:.3} ms CPU, {wall:.2} ms");
    Ok(())
}

/// Another server, which has files and a room; with the room's id.
fn elsewhere(profile: &str) -> io::Result<(Resident, String)> {
    let cache = control::cache();
    let certificates = Certificates::get(&cache.join("certificates"))?;
    let dials = room::Dials::named(profile).ok_or_else(|| io::Error::other("no room has this name"))?;
    let rendered = Rendered::get(&cache, &dials)?;
    let id = rendered.room.room_id.clone();
    Ok((Resident::start("127.0.0.1:0", certificates, vec![rendered], Dials::default())?, id))
}

/// A file of another server: by how many it is asked for at once, how often it was fetched, and how long all took.
fn media(snug: &Snug, owner: &Person, resident: &Resident) -> io::Result<()> {
    const BYTES: u64 = 50 << 20;
    let path = format!("/_matrix/client/v1/media/download/{RESIDENT}/bytes{BYTES}");
    for people in [10, 1] {
        let (before, began, calls) = (snug.usage().cpu, Instant::now(), resident.shared.calls("media"));
        let got = thread::scope(|scope| {
            let asking: Vec<_> = (0..people)
                .map(|_| {
                    let (mut person, path) = (owner.again(snug), &path);
                    scope.spawn(move || person.stream(path, &mut |_| {}))
                })
                .collect();
            asking.into_iter().map(|one| one.join().expect("no reader panics")).collect::<io::Result<Vec<_>>>()
        })?;
        let wall = began.elapsed().as_secs_f64();
        if got.iter().any(|(status, bytes)| *status != 200 || *bytes != BYTES) {
            return Err(io::Error::other(format!("a file of {BYTES} bytes came as {got:?}")));
        }
        println!(
            "media: 50 MiB for {people} at once in {wall:.1} s, {:.2} s CPU, fetched {} times; peak resident {:.1} MiB",
            snug.usage().cpu - before,
            resident.shared.calls("media") - calls,
            snug.usage().peak as f64 / f64::from(1 << 20),
        );
    }
    Ok(())
}

/// Rooms of two people with a name and a message each, up to `count`.
fn more_rooms(owner: &mut Person, other: &mut Person, rooms: &mut Vec<String>, count: u64) -> io::Result<()> {
    while (rooms.len() as u64) < count {
        let about = json!({"name": format!("room {}", rooms.len()), "preset": "public_chat"});
        let room = owner.call("POST", "/_matrix/client/v3/createRoom", Some(&about))?;
        let room = room["room_id"].as_str().unwrap_or_default().to_owned();
        other.join(&room, lab::drive::NAME)?.good("join")?;
        other.say(&room, "the first message")?;
        rooms.push(room);
    }
    Ok(())
}

/// What the core of Element X asks for: the first rooms, then all of them a hundred at a time.
fn request(conn: &str, rooms: usize) -> Value {
    let state = json!([
        ["m.room.name", ""],
        ["m.room.encryption", ""],
        ["m.room.member", "$LAZY"],
        ["m.room.member", "$ME"],
        ["m.room.topic", ""],
        ["m.room.avatar", ""],
        ["m.room.canonical_alias", ""],
        ["m.room.power_levels", ""],
        ["m.room.create", ""],
        ["m.room.history_visibility", ""],
        ["m.room.join_rules", ""],
        ["m.room.tombstone", ""]
    ]);
    json!({
        "conn_id": conn,
        "lists": {"all_rooms": {
            "ranges": [[0, rooms.saturating_sub(1)]], "timeline_limit": 1, "required_state": state, "include_heroes": true
        }},
        "extensions": {
            "to_device": {"enabled": true}, "e2ee": {"enabled": true}, "account_data": {"enabled": true},
            "receipts": {"enabled": true, "rooms": ["*"]}, "typing": {"enabled": true}
        }
    })
}

/// A sync from `pos`, which an app sends beside the place of its messages to the device: here there are none.
fn slide(person: &mut Person, pos: Option<&str>, body: &Value, timeout_ms: u64) -> io::Result<Value> {
    let mut body = body.clone();
    if let Some(place) = pos.and_then(|pos| pos.split('_').nth(1)) {
        body["extensions"]["to_device"]["since"] = json!(place);
    }
    let pos = pos.map(|pos| format!("&pos={}", percent_encode(pos))).unwrap_or_default();
    person.call("POST", &format!("{SLIDING_SYNC}?timeout={timeout_ms}{pos}"), Some(&body))
}

fn next(answer: &Value, member: &str) -> String {
    answer[member].as_str().unwrap_or_default().to_owned()
}

fn screens(snug: &Snug, owner: &mut Person, other: &mut Person, rooms: &[String]) -> io::Result<()> {
    println!("an account in {} rooms:", rooms.len());
    let mut number = 0;
    let (cpu, wall) = each(snug, 20, || {
        number += 1;
        let answer = slide(owner, None, &request(&format!("first {}{number}", rooms.len()), 20), 0)?;
        let told = answer["rooms"].as_object().map_or(0, serde_json::Map::len);
        if told != 20 { Err(io::Error::other(format!("{told} rooms on the first screen"))) } else { Ok(()) }
    })?;
    println!("  first screen of 20 rooms: {cpu:.1} ms CPU, {wall:.1} ms");
    let (cpu, wall) = each(snug, 1, || owner.stream("/_matrix/client/v3/sync?timeout=0", &mut |_| {}).map(drop))?;
    println!("  first /sync of all rooms: {cpu:.0} ms CPU, {wall:.0} ms");

    // All rooms, as an app comes to have them in the end.
    let mut pos = None;
    let mut told = 0;
    let (cpu, wall) = each(snug, 1, || {
        let mut upto = 20;
        while told < rooms.len() {
            let answer = slide(owner, pos.as_deref(), &request("all", upto), 0)?;
            told += answer["rooms"].as_object().map_or(0, serde_json::Map::len);
            pos = Some(next(&answer, "pos"));
            upto += 100;
        }
        Ok(())
    })?;
    println!("  all rooms by sliding sync, a hundred at a time: {cpu:.0} ms CPU, {wall:.0} ms");
    let mut pos = pos.unwrap_or_default();
    let mut since = next(&owner.sync(None, 0)?, "next_batch");
    let (alone, _) = each(snug, MESSAGES, || other.say(&rooms[0], "another message").map(drop))?;
    let everything = request("all", rooms.len());
    for _ in 0..2 {
        pos = next(&slide(owner, Some(&pos), &everything, 0)?, "pos");
        since = next(&owner.sync(Some(&since), 0)?, "next_batch");
    }
    let mut told = 0;
    let (sliding, _) = each(snug, MESSAGES, || {
        other.say(&rooms[0], "another message")?;
        let answer = slide(owner, Some(&pos), &everything, 1_000)?;
        told += answer["rooms"].as_object().map_or(0, serde_json::Map::len);
        pos = next(&answer, "pos");
        Ok(())
    })?;
    since = next(&owner.sync(Some(&since), 0)?, "next_batch");
    let (v3, _) = each(snug, MESSAGES, || {
        other.say(&rooms[0], "another message")?;
        since = next(&owner.sync(Some(&since), 1_000)?, "next_batch");
        Ok(())
    })?;
    println!(
        "  incremental sync of one message: sliding {:.2} ms CPU ({told} rooms told in {MESSAGES}), version 3 {:.2}",
        sliding - alone,
        v3 - alone
    );
    Ok(())
}

/// Three devices at once, each by both ways.
fn devices(snug: &Snug, owner: &Person) -> io::Result<()> {
    let began = Instant::now();
    let all: Vec<_> = (0..3)
        .flat_map(|device| [(device, false), (device, true)])
        .map(|(device, sliding)| {
            let mut person = owner.again(snug);
            thread::spawn(move || -> io::Result<()> {
                if !sliding {
                    return person.stream("/_matrix/client/v3/sync?timeout=0", &mut |_| {}).map(drop);
                }
                let (mut pos, mut upto, mut told) = (None::<String>, 20, 1);
                while told > 0 {
                    let answer = slide(&mut person, pos.as_deref(), &request(&format!("device {device}"), upto), 0)?;
                    told = answer["rooms"].as_object().map_or(0, serde_json::Map::len);
                    pos = Some(next(&answer, "pos"));
                    upto += 100;
                }
                Ok(())
            })
        })
        .collect();
    for one in all {
        one.join().map_err(|_| io::Error::other("a client failed"))??;
    }
    let peak = snug.usage().peak as f64 / f64::from(1 << 20);
    println!(
        "three devices sync for the first time by both at once: {:.1} s, peak {peak:.1} MiB",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Thumbnails of a picture of twelve megapixels, made and then kept; and of one that says it has 900.
fn pictures(snug: &Snug, owner: &mut Person) -> io::Result<()> {
    let picture = lab::picture::jpeg(4000, 3000, 1);
    let id = owner.upload("image/jpeg", &picture)?;
    println!("a JPEG of 4000 x 3000, {:.1} MB, thumbnails:", picture.len() as f64 / 1e6);
    for (width, height, method) in [(800, 600, "scale"), (320, 240, "scale"), (96, 96, "crop")] {
        let path = format!("/_matrix/client/v1/media/thumbnail/{id}?width={width}&height={height}&method={method}");
        let mut small = Vec::new();
        let (cpu, wall) = each(snug, 1, || owner.stream(&path, &mut |some| small.extend_from_slice(some)).map(drop))?;
        if lab::picture::size(&small) != (width, height) {
            return Err(io::Error::other(format!("no thumbnail but {} bytes", small.len())));
        }
        let (again, _) = each(snug, 200, || owner.stream(&path, &mut |_| {}).map(drop))?;
        println!(
            "  {width} x {height} ({method}): {cpu:.0} ms CPU, {wall:.0} ms, {:.1} KB; kept {again:.2} ms CPU",
            small.len() as f64 / 1e3
        );
    }
    let mut bomb = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x75\x30\0\0\x75\x30\x08\x02\0\0\0\0\0\0\0".to_vec();
    bomb.extend(b"\0\0\0\x02IDAT\x78\x9c\0\0\0\0");
    let id = owner.upload("image/png", &bomb)?;
    let path = format!("/_matrix/client/v1/media/thumbnail/{id}?width=32&height=32&method=crop");
    let (cpu, wall) = each(snug, 1, || match owner.stream(&path, &mut |_| {})? {
        (200, bytes) if bytes == bomb.len() as u64 => Ok(()),
        other => Err(io::Error::other(format!("a PNG of 30,000 x 30,000: {other:?}"))),
    })?;
    println!("a PNG of 30,000 x 30,000 is shown as it is: {cpu:.1} ms CPU, {wall:.1} ms");
    Ok(())
}

fn backup(snug: &Snug, owner: &mut Person, keys: u64) -> io::Result<()> {
    let about = json!({"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "k".repeat(43), "signatures": {}}});
    let version = owner.call("POST", "/_matrix/client/v3/room_keys/version", Some(&about))?;
    let version = next(&version, "version");
    let session = json!({
        "first_message_index": 0, "forwarded_count": 0, "is_verified": true,
        "session_data": {"ciphertext": "c".repeat(900), "ephemeral": "e".repeat(43), "mac": "m".repeat(11)}
    });
    let (before, began) = (snug.usage(), Instant::now());
    for part in 0..keys / KEYS_A_REQUEST {
        let sessions: serde_json::Map<String, Value> =
            (0..KEYS_A_REQUEST).map(|at| (format!("{:>043}", part * KEYS_A_REQUEST + at), session.clone())).collect();
        let rooms = json!({"rooms": {format!("!{}:example.org", part % 50): {"sessions": sessions}}});
        owner.call("PUT", &format!("/_matrix/client/v3/room_keys/keys?version={version}"), Some(&rooms))?;
    }
    let (used, took) = (snug.usage(), began.elapsed().as_secs_f64());
    println!(
        "a backup of {keys} keys: {took:.1} s, {:.2} ms CPU and {:.1} KB to disk for each key, peak {:.1} MiB",
        (used.cpu - before.cpu) * 1e3 / keys as f64,
        (used.written - before.written) as f64 / keys as f64 / 1e3,
        used.peak as f64 / f64::from(1 << 20)
    );
    let (before, began) = (snug.usage(), Instant::now());
    let (status, bytes) = owner.stream(&format!("/_matrix/client/v3/room_keys/keys?version={version}"), &mut |_| {})?;
    println!(
        "  fetched: status {status}, {:.0} MB in {:.1} s, {:.1} s CPU, peak {:.1} MiB",
        bytes as f64 / 1e6,
        began.elapsed().as_secs_f64(),
        snug.usage().cpu - before.cpu,
        snug.usage().peak as f64 / f64::from(1 << 20)
    );
    Ok(())
}

/// Answers every request with an empty list of rejected keys; tells when each came.
fn gateway() -> io::Result<(u16, mpsc::Receiver<Instant>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let (came, heard) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The receiver is gone at the end of the run.
            let _ = answer(stream, &came);
        }
    });
    Ok((port, heard))
}

fn answer(mut stream: TcpStream, came: &mpsc::Sender<Instant>) -> io::Result<()> {
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece)?;
        head.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&head).to_lowercase();
        let length = text.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse::<usize>().ok());
        if let (Some(end), Some(length)) = (text.find("\r\n\r\n"), length)
            && head.len() >= end + 4 + length
        {
            break;
        }
        if read == 0 {
            return Ok(());
        }
    }
    let _ = came.send(Instant::now());
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\nconnection: close\r\n\r\n{\"rejected\":[]}")
}

fn pusher(url: &str, key: &str) -> Value {
    json!({
        "kind": "http", "app_id": "org.example.bench", "app_display_name": "bench", "device_display_name": "bench",
        "pushkey": key, "lang": "en", "append": true, "data": {"url": url}
    })
}

fn push(snug: &mut Snug, owner: &Person, other: &Person, waiting: u64) -> io::Result<()> {
    let (port, heard) = gateway()?;
    // A port that nobody listens on: the connection is refused at once, again and again.
    let gone = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    snug.stop()?;
    let mut config = fs::OpenOptions::new().append(true).open(snug.folder.join("snug.toml"))?;
    let [live, dead] = [port, gone].map(|port| format!("http://127.0.0.1:{port}"));
    writeln!(config, "\n[push]\nprivate_urls = [{live:?}, {dead:?}]")?;
    snug.run()?;
    let snug = &*snug;
    let (owner, other) = (&mut owner.again(snug), &mut other.again(snug));
    let about = json!({"preset": "public_chat"});
    let room = owner.call("POST", "/_matrix/client/v3/createRoom", Some(&about))?;
    let room = next(&room, "room_id");
    other.join(&room, lab::drive::NAME)?.good("join")?;
    let set = "/_matrix/client/v3/pushers/set";
    owner.call("POST", set, Some(&pusher(&format!("{live}/_matrix/push/v1/notify"), "live")))?;
    let measure = |other: &mut Person| -> io::Result<Vec<f64>> {
        let mut took = Vec::new();
        for _ in 0..50 {
            while heard.try_recv().is_ok() {}
            let sent = Instant::now();
            other.say(&room, "ring")?;
            let came = heard.recv_timeout(Duration::from_secs(10)).map_err(io::Error::other)?;
            took.push(came.duration_since(sent).as_secs_f64() * 1e3);
        }
        took.sort_by(f64::total_cmp);
        Ok(took)
    };
    let took = measure(other)?;
    println!("from a message to the gateway's request: p50 {:.1} ms, longest {:.1} ms", took[25], took[49]);
    for number in 0..8 {
        let url = format!("{dead}/_matrix/push/v1/notify");
        owner.call("POST", set, Some(&pusher(&url, &format!("gone {number}"))))?;
    }
    let before = snug.usage();
    for _ in 0..waiting / 8 {
        other.say(&room, "ring")?;
    }
    let used = snug.usage();
    println!(
        "  {waiting} notifications wait for gateways that are gone: {:.2} ms CPU for each message, resident {:.1} MiB then",
        (used.cpu - before.cpu) * 1e3 * 8.0 / waiting as f64,
        used.resident as f64 / f64::from(1 << 20)
    );
    thread::sleep(Duration::from_secs(2));
    let took = measure(other)?;
    println!("  beside them to a gateway that lives: p50 {:.1} ms, longest {:.1} ms", took[25], took[49]);
    Ok(())
}

/// Words as a language has them: the nth is as frequent as 1/n, and there are 40,000 of them.
struct Language(lab::random::Stream);

impl Language {
    fn text(&mut self) -> String {
        let count = 3 + self.0.below(15);
        let word = |stream: &mut lab::random::Stream| {
            let rank = 40_000f64.powf(stream.unit()) as u64;
            lab::random::Stream::new(7, "word", rank).token(2 + (rank % 8) as usize, false)
        };
        (0..count).map(|_| word(&mut self.0)).collect::<Vec<_>>().join(" ")
    }
}

/// A space of many rooms, in spaces of a hundred, walked to its end.
fn hierarchy(snug: &Snug, owner: &mut Person, children: u64) -> io::Result<()> {
    const PAGE_BYTES_MAX: usize = 256 << 10;
    let create = |owner: &mut Person, name: String, is_space: bool| {
        let kind = if is_space { json!({"type": "m.space"}) } else { json!({}) };
        let about = json!({"name": name, "topic": "t".repeat(200), "preset": "public_chat", "creation_content": kind});
        let made = owner.call("POST", "/_matrix/client/v3/createRoom", Some(&about))?;
        Ok::<_, io::Error>(made["room_id"].as_str().unwrap_or_default().to_owned())
    };
    let adopt = |owner: &mut Person, space: &str, child: &str| {
        let [space, child] = [space, child].map(percent_encode);
        let path = format!("/_matrix/client/v3/rooms/{space}/state/m.space.child/{child}");
        owner.call("PUT", &path, Some(&json!({"via": [NAME]}))).map(drop)
    };
    let root = create(owner, "all".to_owned(), true)?;
    let mut space = root.clone();
    for number in 0..children {
        if number % 100 == 0 {
            space = create(owner, format!("space {}", number / 100), true)?;
            adopt(owner, &root, &space)?;
        }
        let room = create(owner, format!("room {number}"), false)?;
        adopt(owner, &space, &room)?;
    }
    let wanted = children + children.div_ceil(100) + 1;
    for turn in ["first", "again"] {
        let (before, began) = (snug.usage().cpu, Instant::now());
        let (mut from, mut rooms, mut pages, mut largest) = (String::new(), 0, 0u32, 0);
        loop {
            let path = format!("/_matrix/client/v1/rooms/{}/hierarchy?limit=50{from}", percent_encode(&root));
            let page = owner.call("GET", &path, None)?;
            largest = largest.max(page.to_string().len());
            rooms += page["rooms"].as_array().map_or(0, Vec::len) as u64;
            pages += 1;
            match page["next_batch"].as_str() {
                Some(next) => from = format!("&from={next}"),
                None => break,
            }
        }
        let each = |seconds: f64| seconds * 1e3 / f64::from(pages);
        println!(
            "hierarchy of {rooms} rooms, {turn}: {pages} pages, {:.1} ms and {:.1} ms CPU for each, the largest {} KiB",
            each(began.elapsed().as_secs_f64()),
            each(snug.usage().cpu - before),
            largest >> 10
        );
        if rooms != wanted || largest > PAGE_BYTES_MAX {
            return Err(io::Error::other(format!("{wanted} rooms were to come, in pages of {PAGE_BYTES_MAX} bytes")));
        }
    }
    Ok(())
}

/// What another server tells of the people in a room that is shared, one after the other, where that is taken and where it is not.
fn presence(snug: &mut Snug, owner: &Person, resident: &Resident, room: &str, updates: u64) -> io::Result<()> {
    /// Each of them tells something this often.
    const EVERY_SECONDS: f64 = 300.0;
    /// People of the measure, and the part of a core that they may take.
    const PEOPLE: f64 = 40_000.0;
    const CPU_PART_MAX: f64 = 0.01;
    let joined = owner.again(snug).join(room, RESIDENT)?;
    if joined.status != 200 {
        return Err(io::Error::other(format!("the join ended with {}", joined.status)));
    }
    let config = snug.folder.join("snug.toml");
    let before = fs::read_to_string(&config)?;
    for mode in ["local", "all"] {
        snug.stop()?;
        fs::write(&config, format!("presence = \"{mode}\"\n{before}"))?;
        snug.run()?;
        // Somebody looks on.
        let mut looks = owner.again(snug);
        let synced = looks.call("GET", "/_matrix/client/v3/sync?timeout=0", None)?;
        let since = next(&synced, "next_batch");
        resident.shared.push_presence(room, updates / 20, 50)?;
        let (used, began) = (snug.usage(), Instant::now());
        let told = resident.shared.push_presence(room, updates, 50)?;
        let now = snug.usage();
        let cpu = (now.cpu - used.cpu) / told as f64;
        let part = cpu * PEOPLE / EVERY_SECONDS;
        let path = format!("/_matrix/client/v3/sync?timeout=0&since={since}");
        let (_, sync_bytes) = looks.stream(&path, &mut |_| {})?;
        println!(
            "presence of others, {mode}: {told} told in {:.1} s, {:.1} µs CPU for each: {:.2} % of a core for {PEOPLE} people who tell \
             something each {EVERY_SECONDS} s; {} KiB more in memory, {} KiB written; the next sync is {} KiB",
            began.elapsed().as_secs_f64(),
            cpu * 1e6,
            part * 100.0,
            ((now.resident - now.file) as i64 - (used.resident - used.file) as i64) >> 10,
            (now.written - used.written) >> 10,
            sync_bytes >> 10
        );
        if part > CPU_PART_MAX {
            eprintln!("above {} % of a core", CPU_PART_MAX * 100.0);
        }
    }
    snug.stop()?;
    fs::write(&config, before)?;
    snug.run()
}

fn search(snug: &mut Snug, owner: &Person, other: &Person, events: u64) -> io::Result<()> {
    let mut language = Language(lab::random::Stream::new(1, "messages", 0));
    let mut rooms = Vec::new();
    // The last two tenths are measured beside each other, in a database of nearly the same size.
    let tenth = events / 10;
    let config = snug.folder.join("snug.toml");
    let before = fs::read_to_string(&config)?;
    for (enabled, count) in [(true, tenth * 8), (false, tenth), (true, tenth)] {
        snug.stop()?;
        fs::write(&config, format!("{before}\n[search]\nenabled = {enabled}\n"))?;
        snug.run()?;
        let (owner, other) = (&mut owner.again(snug), &mut other.again(snug));
        more_rooms(owner, other, &mut rooms, 20)?;
        let (used, began) = (snug.usage(), Instant::now());
        for number in 0..count {
            let who = if number % 3 == 0 { &mut *other } else { &mut *owner };
            who.say(&rooms[(number * number % 20) as usize], &language.text())?;
        }
        let now = snug.usage();
        println!(
            "{count} messages {}: {:.2} KB written and {:.2} ms CPU for each, {:.0} s",
            if enabled { "with the index" } else { "without an index" },
            (now.written - used.written) as f64 / count as f64 / 1e3,
            (now.cpu - used.cpu) * 1e3 / count as f64,
            began.elapsed().as_secs_f64()
        );
    }
    let mut cpu = snug.usage().cpu;
    loop {
        thread::sleep(Duration::from_secs(10));
        let now = snug.usage().cpu;
        if now - cpu < 0.1 {
            break;
        }
        cpu = now;
    }
    let mut owner = owner.again(snug);
    let common = lab::random::Stream::new(7, "word", 1).token(3, false);
    let rare = lab::random::Stream::new(7, "word", 900).token(6, false);
    for term in [format!("{common} {rare}"), common.clone(), rare] {
        for order in ["recent", "rank"] {
            let asked = json!({"search_categories": {"room_events": {"search_term": term, "order_by": order}}});
            let mut count = 0;
            let (cpu, wall) = each(snug, 20, || {
                let found = owner.call("POST", "/_matrix/client/v3/search", Some(&asked))?;
                count = found["search_categories"]["room_events"]["count"].as_u64().unwrap_or(0);
                Ok(())
            })?;
            println!("  {term:?} by {order}: {count} found, {wall:.1} ms, {cpu:.1} ms CPU");
        }
    }
    snug.stop()?;
    let data = snug.folder.join("data");
    let store =
        snug::store::Store::open(snug::store::StoreOptions::new(data.join("database"))).map_err(io::Error::other)?;
    let read = store.read().map_err(io::Error::other)?;
    let index = snug::store::tables::room::search::status::get(&read).map_err(io::Error::other)?.unwrap_or_default();
    let (mut json_bytes, mut stored) = (0, 0);
    let count = &mut |_, room: snug::store::tables::room::Room| {
        json_bytes += room.bytes;
        Ok(std::ops::ControlFlow::Continue(()))
    };
    snug::store::tables::room::list(&read, count).map_err(io::Error::other)?;
    use snug::store::schema::{EVENT, EVENT_BODY, EVENT_ID, EVENT_ID_RECENT, TIMELINE};
    for table in [&EVENT, &EVENT_BODY, &EVENT_ID, &EVENT_ID_RECENT, &TIMELINE] {
        let sum = &mut |key: &[u8], value: &[u8]| {
            stored += (key.len() + value.len()) as u64;
            Ok(std::ops::ControlFlow::Continue(()))
        };
        snug::store::Get::prefix(&read, table, &[], sum).map_err(io::Error::other)?;
    }
    println!(
        "  the index: {} KiB in {} segments; the events: {} KiB as JSON, {} KiB as they are stored",
        index.bytes() >> 10,
        index.segments.len(),
        json_bytes >> 10,
        stored >> 10
    );
    drop(read);
    store.close_blocking();
    drop(store);
    snug.run()
}

/// The administration API's lists, a hundred rows a page: the first and the last page, all of them, two at once; and the members of a
/// room with many people of other servers.
fn admin(
    snug: &Snug,
    setup: &Setup,
    (owner, other): (&mut Person, &mut Person),
    room: &str,
    users: u64,
    listed: u64,
) -> io::Result<()> {
    let joined = owner.join(room, RESIDENT)?;
    if joined.status != 200 {
        return Err(io::Error::other(format!("the join ended with {}", joined.status)));
    }
    let mut made = std::process::Command::new(&setup.binary);
    made.args(["user", "admin", &owner.user_id, "--config"]).arg(snug.folder.join("snug.toml"));
    if !made.output()?.status.success() {
        return Err(io::Error::other("no administrator could be made"));
    }
    for number in 0..users {
        let path = format!("/_synapse/admin/v2/users/@user{number:06}:{NAME}");
        let made = owner.ask("PUT", &path, Some(&json!({ "displayname": format!("User {number}") })))?;
        if made.status != 201 {
            return Err(io::Error::other(format!("{path}: status {}", made.status)));
        }
    }
    more_rooms(owner, other, &mut Vec::new(), listed)?;
    for (list, total) in [("v2/users", "total"), ("v1/rooms", "total_rooms")] {
        let path = format!("/_synapse/admin/{list}?limit=100");
        let count = owner.call("GET", &path, None)?[total].as_u64().unwrap_or_default();
        let first = each(snug, 20, || owner.call("GET", &path, None).map(drop))?;
        let last =
            each(snug, 5, || owner.call("GET", &format!("{path}&from={}", count.saturating_sub(100)), None).map(drop))?;
        let (mut again, path_again) = (owner.again(snug), path.clone());
        let beside = thread::spawn(move || (0..20).try_for_each(|_| again.call("GET", &path_again, None).map(drop)));
        (0..20).try_for_each(|_| owner.call("GET", &path, None).map(drop))?;
        beside.join().map_err(|_| io::Error::other("a list beside another failed"))??;
        println!(
            "{list}: {count} rows; the first page {:.1} ms CPU, {:.0} ms; the last {:.1} ms CPU, {:.0} ms",
            first.0, first.1, last.0, last.1
        );
    }
    let path = format!("/_synapse/admin/v1/rooms/{}/members", percent_encode(room));
    let (_, bytes) = owner.stream(&path, &mut |_| {})?;
    let said = snug.budget()?;
    let table = said["table"].as_str().unwrap_or_default();
    let held = table.lines().find(|line| line.trim_start().starts_with("admin")).unwrap_or_default();
    println!("members of the shared room: {} KiB; the account: {held}", bytes >> 10);
    Ok(())
}
