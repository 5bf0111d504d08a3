//! Whatever bytes come, they are read or refused.

use std::sync::LazyLock;

use crate::base::any_bytes::any_bytes;
use crate::matrix::auth::{JoinRule, PowerLevels};
use crate::matrix::json::{self, Canon, Mode, partial, read};
use crate::matrix::scan::EventScanner;
use crate::matrix::sign::{self, Key, PublicKey, request};
use crate::matrix::{Event, acl, id, push, version};

const MESSAGE: &[u8] = br#"{"type":"m.room.message","room_id":"!r:a.example","sender":"@u:a.example","content":{"body":"hi \u00e9\n","msgtype":"m.text","n":-5},"depth":5,"origin_server_ts":1700000000000,"prev_events":["$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"],"auth_events":["$BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"],"hashes":{"sha256":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},"signatures":{"a.example":{"ed25519:1":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}},"unsigned":{"age":1}}"#;
const MEMBER: &[u8] = br#"{"type":"m.room.member","state_key":"@u:a.example","room_id":"!r:a.example","event_id":"$e:a.example","sender":"@u:a.example","content":{"membership":"join","displayname":"U"},"depth":1,"origin_server_ts":1,"prev_events":[["$p:a.example",{"sha256":"AA"}]],"auth_events":[],"hashes":{"sha256":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},"signatures":{}}"#;
const POWERS: &[u8] = br#"{"users":{"@a:a.example":100,"@b:a.example":"50"},"users_default":0,"events":{"m.room.name":50},"state_default":50,"ban":1.0,"notifications":{"room":50}}"#;
const NESTED: &[u8] = br#"[{"a":[[],{},[1,-2,"\ud83d\ude00",null,true]]},"x"]"#;

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

#[test]
fn any_bytes_are_canonical_json_once_or_never() {
    any_bytes(&[MESSAGE, MEMBER, POWERS, NESTED], |bytes| {
        for mode in [Mode::Lenient, Mode::Strict] {
            let Ok(once) = json::canonical(bytes, mode) else { continue };
            assert_eq!(json::canonical(&once, mode).as_ref(), Ok(&once), "what is canonical stays as it is");
            // Another parser that refuses it may know less; one that takes it reads the same.
            let parsed = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes);
            if let Ok(before) = parsed(bytes) {
                assert_eq!(whole_numbers(before), whole_numbers(parsed(&once).unwrap()), "what it says stays");
            }
        }
        let _ = json::canonical_shown(bytes, Mode::Lenient);
        let mut canon = Canon::new();
        if canon.read(bytes, Mode::Lenient, &["unsigned", "signatures"]).is_ok() {
            assert!(canon.members().all(|(key, _)| key != b"unsigned"));
        }
    });
}

/// `1e3` is 1000.
fn whole_numbers(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => Value::from(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(whole_numbers).collect(),
        Value::Object(members) => members.into_iter().map(|(key, value)| (key, whole_numbers(value))).collect(),
        other => other,
    }
}

#[test]
fn any_bytes_are_looked_at_in_place() {
    any_bytes(&[MESSAGE, MEMBER, POWERS, NESTED], |bytes| {
        json::is_deeper_than(bytes, 5);
        for (key, value) in read::members(bytes) {
            let (_, _, _) = (read::text(key), read::text(value), read::integer(value));
            assert!(read::items(value).count() <= value.len());
        }
        assert!(read::items(bytes).take(bytes.len() + 1).count() <= bytes.len(), "each takes a byte at least");
        let _ =
            (read::get(bytes, "content"), read::get_text(bytes, "type"), read::get_path(bytes, &["content", "body"]));
        let _ = (read::compact_member(bytes, "unsigned"), read::skip_value(bytes), read::skip_string(bytes));
        read::unescape(bytes).for_each(drop);
        read::dot_path(&text(bytes));
        let _: Option<Vec<String>> = partial::member(bytes, "prev_events");
        let _: Option<String> = partial::member(bytes, "type");
    });
}

/// A list of a damaged row that went on for ever: `[}` had endless items of no length.
#[test]
fn a_list_without_a_value_has_no_items() {
    for list in [&b"[}"[..], b"[,}", b"[1,}", b"[,,"] {
        assert!(read::items(list).take(5).count() <= 1, "{list:?}");
    }
    assert_eq!(read::members(br#"{"a":}"#).take(5).count(), 0);
}

#[test]
fn any_bytes_are_an_event_or_refused() {
    let versions = ["1", "3", "6", "10", "11", "12"].map(|id| version::get(id).unwrap());
    any_bytes(&[MESSAGE, MEMBER], |bytes| {
        for version in versions {
            let mut scanner = EventScanner::new();
            if let Ok(seen) = scanner.read(version, bytes) {
                let _ =
                    (seen.event_id(), seen.kind(), seen.state_key(), seen.sender(), seen.room_id(), seen.membership());
                let _ = (seen.auth_events().count(), seen.prev_events().count(), seen.depth(), seen.signers().is_ok());
                seen.write_redacted(&mut Vec::new());
            }
            if let Ok(event) = Event::from_wire(version, bytes) {
                look_at(&event);
                let again = Event::from_wire(version, event.to_federation()).expect("what was read can be read again");
                assert_eq!(again.id(), event.id());
                look_at(&event.redacted());
                push::Flat::new(&event);
            }
            // As a damaged disk may give it back.
            if let Ok(event) = Event::from_stored(version, bytes.to_vec(), "$e".try_into().unwrap()) {
                look_at(&event);
            }
        }
    });
}

fn look_at(event: &Event) {
    let _ = (event.room_id(), event.sender(), event.kind(), event.state_key(), event.redacts(), event.membership());
    let _ =
        (event.prev_events().count(), event.auth_events().count(), event.members().count(), event.signers().is_ok());
    let _ = (event.content_text("body"), event.get("unsigned"), event.weight(), event.is_intact());
}

#[test]
fn any_bytes_are_an_authorization_header_or_refused() {
    let seeds: [&[u8]; 3] = [
        br#"X-Matrix origin="a.example",destination="b.example",key="ed25519:1",sig="AAAA""#,
        br"X-Matrix origin=a.example,key=ed25519:1,sig=AA",
        br#"x-matrix  sig="a\"b" , key="k",origin=[::1]:80"#,
    ];
    any_bytes(&seeds, |bytes| drop(request::parse(&text(bytes))));
}

#[test]
fn any_bytes_are_rules_or_refused() {
    let acl: &[u8] = br#"{"allow":["*","*.example"],"deny":["?vil.*","a*b*c*d"],"allow_ip_literals":false}"#;
    let join: &[u8] = br#"{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"!a:b"}]}"#;
    let versions = ["1", "10", "12"].map(|id| version::get(id).unwrap());
    any_bytes(&[POWERS, acl, join], |bytes| {
        let content = text(bytes);
        let rules = acl::Acl::parse(&content);
        let _ = (rules.allows("a.example"), rules.allows("[::1]:8448"), rules.weight());
        let _ = JoinRule::parse(&content);
        for version in versions {
            let _ = PowerLevels::parse(version, &content);
        }
    });
}

#[test]
fn any_bytes_are_a_name_or_refused() {
    let server = ruma::server_name!("a.example");
    let seeds: [&[u8]; 5] =
        [b"@anna:a.example", b"#room:a.example", b"a.example:8448", b"[2001:db8::1]:80", b"1.2.3.4"];
    any_bytes(&seeds, |bytes| {
        let text = text(bytes);
        let _ = (id::new_user(&text, server), id::typed_user(&text, server), id::new_alias(&text, server));
        let _ = (id::split_port(&text), id::is_ip_literal(&text));
    });
}

#[test]
fn any_bytes_are_a_key_or_refused() {
    static KEY: LazyLock<Key> = LazyLock::new(|| Key::from_seed("1", [7; 32]));
    let (file, public) = (KEY.to_file(), KEY.public());
    any_bytes(&[file.as_bytes(), public.to_base64().as_bytes(), MESSAGE], |bytes| {
        if let Ok(key) = Key::parse(&text(bytes)) {
            assert_eq!(Key::parse(&key.to_file()).unwrap().public().to_bytes(), key.public().to_bytes());
        }
        let _ =
            (PublicKey::from_base64(&text(bytes)), sign::json_key_ids(bytes, "a.example"), sign::json_message(bytes));
        assert!(
            sign::check_json(bytes, "a.example", "ed25519:1", &public).is_err(),
            "nothing here is signed by that key"
        );
    });
}
