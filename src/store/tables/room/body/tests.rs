//! The generator the dictionary was trained on, and the guarantees of the encoding.

use super::*;

/// A small repeatable generator; which one does not matter, only that it never changes under the dictionary.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
    /// Random characters, as hashes, signatures and media ids are.
    fn base64(&mut self, chars: usize) -> String {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        (0..chars).map(|_| char::from(ALPHABET[self.below(64)])).collect()
    }
    fn event_id(&mut self) -> String {
        let mut hash = [0; 32];
        hash.fill_with(|| self.next() as u8);
        format!("${}", URL_SAFE_NO_PAD.encode(hash))
    }
    fn words(&mut self, most: usize) -> String {
        let count = 1 + self.below(most);
        (0..count).map(|_| self.pick(WORDS)).collect::<Vec<_>>().join(" ")
    }
}

const WORDS: &[&str] = &[
    "the",
    "a",
    "I",
    "you",
    "is",
    "it",
    "to",
    "and",
    "of",
    "in",
    "that",
    "have",
    "with",
    "for",
    "not",
    "on",
    "this",
    "but",
    "room",
    "server",
    "matrix",
    "thanks",
    "hello",
    "yes",
    "no",
    "can",
    "we",
    "please",
    "update",
    "release",
    "error",
    "config",
    "bridge",
    "client",
    "works",
    "issue",
    "https://github.com/",
    "https://matrix.to/#/",
    "what",
    "how",
    "there",
    "should",
    "would",
    "just",
    "like",
    "think",
    "know",
    "see",
    "now",
    "when",
    "ich",
    "und",
    "das",
    "ist",
    "nicht",
    "le",
    "de",
    "que",
    "est",
    "good",
    "morning",
    "anyone",
    "here",
    "message",
    "encryption",
    "key",
];
const SERVERS: &[&str] = &[
    "matrix.org",
    "example.org",
    "mozilla.org",
    "kde.org",
    "gnome.org",
    "fedora.im",
    "envs.net",
    "tchncs.de",
    "matrix.example.com",
    "chat.example.net",
    "t2bot.io",
    "libera.chat",
    "nitro.chat",
    "example.de",
];
const NAMES: &[&str] = &[
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "mallory", "niaj", "olivia",
    "peggy", "rupert", "sybil", "trent", "victor", "walter", "xavier", "yvonne", "zoe", "anna", "max", "lukas",
];

/// A realistic event in canonical form, with the contents of its row.
pub(crate) struct Made {
    pub whole: Vec<u8>,
    auth: Vec<String>,
    room_id: String,
    sender: String,
    depth: u64,
    origin_server_ts: u64,
}

impl Made {
    pub fn known<T>(&self, work: impl FnOnce(&Known<'_>) -> T) -> T {
        let auth: Vec<_> = self.auth.iter().map(String::as_str).collect();
        let (depth, origin_server_ts) = (self.depth, self.origin_server_ts);
        work(&Known { room_id: &self.room_id, sender: &self.sender, target: "", depth, origin_server_ts, auth: &auth })
    }

    fn stored(&self) -> Vec<u8> {
        self.known(|known| encode(&self.whole, known, true))
    }

    fn restored(&self, stored: &[u8]) -> Option<Vec<u8>> {
        self.known(|known| decode(stored, known))
    }
}

pub(crate) fn event(seed: u64) -> Made {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..8 {
        dice.next();
    }
    let server = dice.pick(SERVERS);
    let sender = format!("@{}{}:{server}", dice.pick(NAMES), dice.below(10_000));
    let (kind, state_key, content) = content(&mut dice, &sender, server);
    let auth: Vec<_> = (0..2 + dice.below(3)).map(|_| dice.event_id()).collect();
    let prev = (0..1 + dice.below(6) / 5).map(|_| format!("\"{}\"", dice.event_id())).collect::<Vec<_>>().join(",");
    let room_id = match dice.below(3) {
        0 => format!("!{}", dice.base64(43)),
        _ => format!("!{}:{}", dice.base64(18), dice.pick(SERVERS)),
    };
    let (depth, ts) = (dice.below(200_000) as u64, 1_600_000_000_000 + dice.next() % 160_000_000_000);
    let key = match dice.below(4) {
        0 | 1 => "ed25519:auto".to_owned(),
        2 => format!("ed25519:{}", dice.below(10)),
        _ => format!("ed25519:a_{}", dice.base64(4)),
    };
    let mut signature = [0; 64];
    signature.fill_with(|| dice.next() as u8);
    let signature = STANDARD_NO_PAD.encode(signature);
    let list = auth.iter().map(|id| format!("\"{id}\"")).collect::<Vec<_>>().join(",");
    let state_key = state_key.map_or(String::new(), |key| format!("\"state_key\":\"{key}\","));
    let head = format!("{{\"auth_events\":[{list}],\"content\":{content},\"depth\":{depth},");
    let tail = format!(
        "\"origin_server_ts\":{ts},\"prev_events\":[{prev}],\"room_id\":\"{room_id}\",\"sender\":\"{sender}\",\
         \"signatures\":{{\"{server}\":{{\"{key}\":\"{signature}\"}}}},{state_key}\"type\":\"{kind}\"}}"
    );
    let hash = STANDARD_NO_PAD.encode(content_hash(format!("{head}{tail}").as_bytes()));
    let whole = format!("{head}\"hashes\":{{\"sha256\":\"{hash}\"}},{tail}").into_bytes();
    Made { whole, auth, room_id, sender, depth, origin_server_ts: ts }
}

fn content(dice: &mut Dice, sender: &str, server: &str) -> (&'static str, Option<String>, String) {
    match dice.below(100) {
        0..42 => member(dice, sender, server),
        42..50 => {
            let reason = dice.words(4);
            let content = match dice.below(3) {
                0 => format!("{{\"membership\":\"leave\",\"reason\":\"{reason}\"}}"),
                _ => "{\"membership\":\"leave\"}".to_owned(),
            };
            ("m.room.member", Some(sender.to_owned()), content)
        }
        50..70 => ("m.room.message", None, message(dice)),
        70..82 => {
            let (text, device, sender_key, session) =
                (dice.base64(220), dice.base64(10).to_uppercase(), dice.base64(43), dice.base64(43));
            let content = format!(
                "{{\"algorithm\":\"m.megolm.v1.aes-sha2\",\"ciphertext\":\"AwgAEp{text}\",\"device_id\":\"{device}\",\
                 \"sender_key\":\"{sender_key}\",\"session_id\":\"{session}\"}}"
            );
            ("m.room.encrypted", None, content)
        }
        82..88 => {
            let (target, key) = (dice.event_id(), dice.pick(&["👍️", "❤️", "🎉", "😄", "👀", "✅"]));
            let content = format!(
                "{{\"m.relates_to\":{{\"event_id\":\"{target}\",\"key\":\"{key}\",\"rel_type\":\"m.annotation\"}}}}"
            );
            ("m.reaction", None, content)
        }
        88..90 => ("m.room.redaction", None, format!("{{\"redacts\":\"{}\"}}", dice.event_id())),
        90..93 => ("m.room.power_levels", Some(String::new()), power_levels(dice)),
        _ => small_state(dice, sender, server),
    }
}

fn member(dice: &mut Dice, sender: &str, server: &str) -> (&'static str, Option<String>, String) {
    let name = dice.words(2);
    let avatar = match dice.below(3) {
        0 => String::new(),
        _ => format!("\"avatar_url\":\"mxc://{server}/{}\",", dice.base64(24)),
    };
    let content = match dice.below(12) {
        0 => format!("{{{avatar}\"displayname\":\"{name}\",\"is_direct\":true,\"membership\":\"invite\"}}"),
        1 => format!("{{\"avatar_url\":null,\"displayname\":\"{name}\",\"membership\":\"join\"}}"),
        2 => "{\"membership\":\"ban\",\"reason\":\"spam\"}".to_owned(),
        3 => format!(
            "{{{avatar}\"displayname\":\"{name}\",\"join_authorised_via_users_server\":\"@admin:{server}\",\
             \"membership\":\"join\"}}"
        ),
        _ => format!("{{{avatar}\"displayname\":\"{name}\",\"membership\":\"join\"}}"),
    };
    ("m.room.member", Some(sender.to_owned()), content)
}

fn message(dice: &mut Dice) -> String {
    let text = dice.words(24);
    match dice.below(8) {
        0 => format!(
            "{{\"body\":\"{text}\",\"format\":\"org.matrix.custom.html\",\"formatted_body\":\"<p>{text}</p>\",\
             \"m.mentions\":{{}},\"msgtype\":\"m.text\"}}"
        ),
        1 => format!(
            "{{\"body\":\"image.png\",\"info\":{{\"h\":{},\"mimetype\":\"image/png\",\"size\":{},\"thumbnail_info\":\
             {{\"h\":600,\"mimetype\":\"image/jpeg\",\"size\":{},\"w\":800}},\"thumbnail_url\":\"mxc://{}/{}\",\"w\":{},\
             \"xyz.amorgan.blurhash\":\"{}\"}},\"msgtype\":\"m.image\",\"url\":\"mxc://{}/{}\"}}",
            dice.below(4000),
            dice.below(4_000_000),
            dice.below(90_000),
            dice.pick(SERVERS),
            dice.base64(24),
            dice.below(4000),
            dice.base64(28),
            dice.pick(SERVERS),
            dice.base64(24)
        ),
        2 => format!(
            "{{\"body\":\"> <@{}:{}> {text}\\n\\n{}\",\"m.mentions\":{{\"user_ids\":[\"@{}:{}\"]}},\"m.relates_to\":\
             {{\"m.in_reply_to\":{{\"event_id\":\"{}\"}}}},\"msgtype\":\"m.text\"}}",
            dice.pick(NAMES),
            dice.pick(SERVERS),
            dice.words(12),
            dice.pick(NAMES),
            dice.pick(SERVERS),
            dice.event_id()
        ),
        3 => format!("{{\"body\":\"{text}\",\"msgtype\":\"m.notice\"}}"),
        4 => format!(
            "{{\"body\":\" * {text}\",\"m.mentions\":{{}},\"m.new_content\":{{\"body\":\"{text}\",\"m.mentions\":{{}},\
             \"msgtype\":\"m.text\"}},\"m.relates_to\":{{\"event_id\":\"{}\",\"rel_type\":\"m.replace\"}},\
             \"msgtype\":\"m.text\"}}",
            dice.event_id()
        ),
        _ => format!("{{\"body\":\"{text}\",\"m.mentions\":{{}},\"msgtype\":\"m.text\"}}"),
    }
}

fn power_levels(dice: &mut Dice) -> String {
    let users = (0..1 + dice.below(6))
        .map(|at| format!("\"@{}{at}:{}\":{}", dice.pick(NAMES), dice.pick(SERVERS), dice.pick(&["50", "100"])))
        .collect::<Vec<_>>()
        .join(",");
    format!(
        "{{\"ban\":50,\"events\":{{\"m.room.avatar\":50,\"m.room.canonical_alias\":50,\"m.room.encryption\":100,\
         \"m.room.history_visibility\":100,\"m.room.name\":50,\"m.room.power_levels\":100,\"m.room.server_acl\":100,\
         \"m.room.tombstone\":100}},\"events_default\":0,\"historical\":100,\"invite\":0,\"kick\":50,\
         \"notifications\":{{\"room\":50}},\"redact\":50,\"state_default\":50,\"users\":{{{users}}},\"users_default\":0}}"
    )
}

fn small_state(dice: &mut Dice, sender: &str, server: &str) -> (&'static str, Option<String>, String) {
    let none = Some(String::new());
    let words = dice.words(8);
    match dice.below(10) {
        0 => ("m.room.create", none, format!("{{\"creator\":\"{sender}\",\"room_version\":\"10\"}}")),
        1 => ("m.room.create", none, "{\"room_version\":\"12\"}".to_owned()),
        2 => {
            ("m.room.join_rules", none, format!("{{\"join_rule\":\"{}\"}}", dice.pick(&["public", "invite", "knock"])))
        }
        3 => {
            let visibility = dice.pick(&["shared", "invited", "joined", "world_readable"]);
            ("m.room.history_visibility", none, format!("{{\"history_visibility\":\"{visibility}\"}}"))
        }
        4 => ("m.room.guest_access", none, "{\"guest_access\":\"can_join\"}".to_owned()),
        5 => ("m.room.name", none, format!("{{\"name\":\"{words}\"}}")),
        6 => ("m.room.topic", none, format!("{{\"topic\":\"{words}\"}}")),
        7 => ("m.room.encryption", none, "{\"algorithm\":\"m.megolm.v1.aes-sha2\"}".to_owned()),
        8 => ("m.space.child", Some(format!("!{}:{server}", dice.base64(18))), format!("{{\"via\":[\"{server}\"]}}")),
        _ => {
            let alias = format!("{{\"alias\":\"#{}:{server}\",\"alt_aliases\":[]}}", dice.pick(NAMES));
            ("m.room.canonical_alias", none, alias)
        }
    }
}

/// Writes the dictionary anew when asked to by name; it is committed, and changing it means a new encoding number.
#[test]
fn train() {
    let Ok(path) = std::env::var("SNUG_TRAIN_DICTIONARY") else { return };
    let samples: Vec<_> =
        (1..=8_000).map(|seed| event(seed).known(|known| shortened(&event(seed).whole, known))).collect();
    let dictionary = zstd::dict::from_samples(&samples, 16 * 1024).expect("samples are plenty");
    std::fs::write(path, dictionary).expect("the path can be written");
}

fn shortened(whole: &[u8], known: &Known<'_>) -> Vec<u8> {
    let mut short = Short { known, server: None, text: Vec::new(), raw: Vec::new() };
    short.event(whole, true);
    short.text
}

#[test]
fn events_come_back_byte_for_byte() {
    for seed in 5_000..5_300 {
        let made = event(seed);
        let stored = made.stored();
        let wants = open(&stored).unwrap().wants();
        assert!(wants.auth() && wants.sender() && wants.room_id() && !wants.target());
        assert_eq!(made.restored(&stored).as_deref(), Some(&made.whole[..]));
        assert_eq!(made.known(|known| encode(&made.whole, known, false)), stored, "the hash was right");
    }
}

#[test]
fn what_apps_are_shown_is_restored_without_the_rest() {
    for seed in 8_000..8_300 {
        let made = event(seed);
        let stored = made.stored();
        let shown =
            |known: &Known<'_>| open(&stored).unwrap().restore_shown(&Known { room_id: "", auth: &[], ..*known });
        let shown = made.known(shown).expect("it is ours");
        let mut whole: serde_json::Value = serde_json::from_slice(&made.whole).unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
        for member in ["auth_events", "hashes", "room_id", "signatures"] {
            whole[member] = shown[member].clone();
        }
        assert_eq!(shown, whole);
    }
}

#[test]
fn what_the_row_does_not_say_is_kept() {
    let made = event(7_001);
    let nothing = Known::default();
    let stored = encode(&made.whole, &nothing, true);
    let wants = open(&stored).unwrap().wants();
    assert!(!wants.auth() && !wants.sender() && !wants.room_id() && !wants.target());
    assert_eq!(decode(&stored, &nothing).as_deref(), Some(&made.whole[..]));

    let text = String::from_utf8(made.whole.clone()).unwrap();
    let redacted = text.replacen("\"content\":{", "\"content\":{\"a\":1,", 1).replace(",}", "}").into_bytes();
    let stored = made.known(|known| encode(&redacted, known, false));
    assert_eq!(made.restored(&stored).as_deref(), Some(&redacted[..]), "a hash of something else is kept");

    for (from, to) in
        [("\"depth\":", "\"depth\":1"), ("\"sender\":\"", "\"sender\":\"x"), ("\"$", "\"$$"), (":\"", ":\"\u{1}")]
    {
        let other = text.replace(from, to).into_bytes();
        let stored = made.known(|known| encode(&other, known, false));
        assert_eq!(made.restored(&stored).as_deref(), Some(&other[..]), "{from}");
    }
}

#[test]
fn a_membership_of_another_names_them_by_the_row() {
    let made = event(7_003);
    let text = String::from_utf8(made.whole.clone()).unwrap();
    let kicked = text.replace("\"type\":", "\"state_key\":\"@bob:example.org\",\"type\":").into_bytes();
    made.known(|known| {
        let known = Known { target: "@bob:example.org", ..*known };
        let stored = encode(&kicked, &known, false);
        assert!(open(&stored).unwrap().wants().target());
        assert_eq!(decode(&stored, &known).as_deref(), Some(&kicked[..]));
    });
}

#[test]
fn odd_json_comes_back() {
    let mut odd: Vec<Vec<u8>> = [
        "",
        "{",
        "{}",
        "[]",
        "{\"a\":1}",
        "{\"hashes\":{\"sha256\":\"x\"}}",
        "{\"auth_events\":[[\"$a\",{}]],\"hashes\":{},\"z\":1}",
        "{\"auth_events\":[],\"depth\":-1,\"depth\":7,\"signatures\":{\"a\":[\"\\\"",
        "{\"content\":{\"a\":\"\u{3}\"}}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    // The same hash twice, long runs of ids and signatures, and every cut of an event.
    let made = event(7_004);
    let text = String::from_utf8(made.whole.clone()).unwrap();
    odd.push(text.replace("\"origin_server_ts\"", "\"hashes\":{\"sha256\":\"$\"},\"origin_server_ts\"").into_bytes());
    odd.push(format!("{{\"prev_events\":[{}]}}", vec![format!("\"{}\"", made.auth[0]); 900].join(",")).into_bytes());
    odd.push(format!("{{\"signatures\":[\"{}\",1]}}", "A".repeat(86)).into_bytes());
    odd.push(format!("{{\"signatures\":[\"{}\",1]}}", "B".repeat(86)).into_bytes());
    odd.extend((0..made.whole.len()).map(|cut| made.whole[..cut].to_vec()));
    let mut dice = Dice(11);
    odd.extend((0..300).map(|_| {
        let mut changed = made.whole.clone();
        let at = dice.below(changed.len());
        changed[at] = dice.next() as u8;
        changed
    }));
    for odd in odd {
        let stored = made.known(|known| encode(&odd, known, false));
        assert_eq!(made.restored(&stored).as_deref(), Some(&odd[..]), "{}", String::from_utf8_lossy(&odd));
    }
}

#[test]
fn foreign_bytes_are_none_and_never_a_panic() {
    let made = event(7_002);
    let stored = made.stored();
    for cut in 0..stored.len() {
        assert_ne!(made.restored(&stored[..cut]).as_deref(), Some(&made.whole[..]));
    }
    let mut dice = Dice(13);
    for _ in 0..3_000 {
        let mut changed = stored.clone();
        let at = dice.below(changed.len());
        changed[at] = dice.next() as u8;
        made.restored(&changed); // whatever it is, it ends
    }
    assert_eq!(decode(&[0x0f, 1, 2], &Known::default()), None);
    // A row of control characters only, each of which stands for much text.
    let auth = vec!["$a"; 64];
    let bomb = [&[SHORT][..], &vec![word::AUTH; BODY_BYTES_MAX]].concat();
    assert_eq!(decode(&bomb, &Known { auth: &auth, ..Known::default() }), None);
}

#[test]
fn a_stored_event_is_small() {
    let (mut raw, mut stored) = (0, 0);
    for seed in 9_000..10_000 {
        let made = event(seed);
        raw += made.whole.len();
        stored += made.stored().len();
    }
    // Incompressible at the least: signature 64 bytes, previous events 32 each, pictures, cipher text.
    println!("raw {} B, stored {} B an event", raw / 1_000, stored / 1_000);
    assert!(stored / 1_000 <= 230, "{} B an event", stored / 1_000);
}

#[test]
fn any_bytes_are_a_body_or_damage() {
    let event: &[u8] = br#"{"auth_events":[],"content":{"body":"a message like many others","msgtype":"m.text"},"depth":5,"hashes":{"sha256":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},"origin_server_ts":1700000000000,"prev_events":[],"room_id":"!r:a.example","sender":"@u:a.example","signatures":{},"type":"m.room.message"}"#;
    let auth = ["$a", "$b"];
    let known = Known {
        room_id: "!r:a.example",
        sender: "@u:a.example",
        target: "@t:b.example",
        depth: 5,
        origin_server_ts: 1_700_000_000_000,
        auth: &auth,
    };
    let stored = encode(event, &known, false);
    assert!(decode(&stored, &known).is_some());
    crate::base::any_bytes::any_bytes(&[&stored, event], |bytes| {
        for known in [known, Known::default()] {
            let _ = decode(bytes, &known);
            let _ = open(bytes).and_then(|opened| opened.restore_shown(&known));
            // Packing takes what is canonical; what is not must come back all the same, or not be ours.
            let _ = decode(&encode(bytes, &known, false), &known);
        }
    });
}
