//! What a push gateway is told (push gateway API, `POST /_matrix/push/v1/notify`).
//!
//! Bounded by the event it is about: [`BODY_BYTES_MAX`].

use serde::Serialize;
use serde_json::value::RawValue;

use super::Outcome;
use crate::matrix::json::partial;

/// A longer content is left out: the services that reach phones take 4 KiB.
pub const CONTENT_BYTES_MAX: usize = 16 << 10;
/// Of a name of a room or person. Longer ones are cut.
const NAME_CHARS_MAX: usize = 255;
/// A whole body: the content, a pusher's data (8 KiB) and pushkey, four ids of 255 bytes and two names, escaped.
pub const BODY_BYTES_MAX: u64 = 40 << 10;
/// What a UnifiedPush endpoint takes (UnifiedPush, "Application server").
pub const ENDPOINT_BYTES_MAX: usize = 4096;

/// A notification about an event.
#[derive(Debug, Clone, Default)]
pub struct Notice {
    /// None for an invite that came without its event.
    pub event_id: Option<String>,
    pub room_id: String,
    pub kind: String,
    pub sender: String,
    pub sender_display_name: Option<String>,
    pub room_name: Option<String>,
    pub room_alias: Option<String>,
    /// For a member event: whether it is about the notified user, and the membership.
    pub target: Option<(bool, String)>,
    /// A JSON object.
    pub content: Option<String>,
    /// What the user's rules say.
    pub outcome: Outcome,
}

/// The pusher that a gateway is told for.
#[derive(Debug, Clone, Copy)]
pub struct Device<'a> {
    pub app_id: &'a str,
    pub pushkey: &'a str,
    pub set_ms: u64,
    /// The pusher's `data`, a JSON object.
    pub data: &'a str,
    /// Ids alone, whatever the pusher wants: its gateway does not take more of this notification.
    pub short: bool,
}

impl Device<'_> {
    /// Whether its gateway is to be told ids alone.
    pub fn wants_ids_only(&self) -> bool {
        self.short
            || partial::member::<String>(self.data.as_bytes(), "format").is_some_and(|format| format == "event_id_only")
    }
}

#[derive(Serialize)]
struct Body<'a> {
    notification: Notification<'a>,
}

#[derive(Serialize, Default)]
struct Notification<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender_display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_alias: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_is_target: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'a str>,
    prio: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<Counts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<[Told<'a>; 1]>,
}

#[derive(Serialize)]
struct Counts {
    unread: u64,
}

#[derive(Serialize)]
struct Told<'a> {
    app_id: &'a str,
    pushkey: &'a str,
    /// In seconds.
    pushkey_ts: u64,
    data: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tweaks: Option<Tweaks<'a>>,
}

#[derive(Serialize)]
struct Tweaks<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    sound: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    highlight: bool,
}

/// The body of the request about an event. `badge`: the number of rooms with something unread, unless the app counts
/// for itself.
pub fn body(notice: &Notice, badge: Option<u64>, device: &Device<'_>) -> Vec<u8> {
    let ids_only = device.wants_ids_only();
    let mut notification = about(notice, badge, ids_only);
    notification.devices = Some([told(device, (!ids_only).then_some(&notice.outcome))]);
    json(notification)
}

/// The body of the request that sets the badge and rings nobody.
pub fn badge_body(badge: u64, device: &Device<'_>) -> Vec<u8> {
    json(Notification { prio: "low", devices: Some([told(device, None)]), ..counted(Some(badge)) })
}

/// The message to a UnifiedPush endpoint: no devices, since the endpoint is one, and ids alone where all would be too
/// long. `notice`: none for a badge alone.
pub fn endpoint_body(notice: Option<&Notice>, badge: Option<u64>, device: &Device<'_>) -> Vec<u8> {
    let Some(notice) = notice else { return json(Notification { prio: "low", ..counted(badge) }) };
    let whole = json(about(notice, badge, device.wants_ids_only()));
    if whole.len() <= ENDPOINT_BYTES_MAX { whole } else { json(about(notice, badge, true)) }
}

fn about(notice: &Notice, badge: Option<u64>, ids_only: bool) -> Notification<'_> {
    let notification = Notification {
        event_id: notice.event_id.as_deref(),
        room_id: Some(&notice.room_id),
        prio: priority(notice),
        ..counted(badge)
    };
    if ids_only {
        return notification;
    }
    let content = notice.content.as_deref().filter(|content| content.len() <= CONTENT_BYTES_MAX);
    Notification {
        kind: Some(&notice.kind),
        sender: Some(&notice.sender),
        sender_display_name: notice.sender_display_name.as_deref().map(cut),
        room_name: notice.room_name.as_deref().map(cut),
        room_alias: notice.room_alias.as_deref(),
        user_is_target: notice.target.as_ref().map(|(is_target, _)| *is_target),
        membership: notice.target.as_ref().map(|(_, membership)| &**membership),
        content: content.and_then(|content| serde_json::from_str(content).ok()),
        ..notification
    }
}

fn counted<'a>(badge: Option<u64>) -> Notification<'a> {
    Notification { counts: badge.map(|unread| Counts { unread }), ..Notification::default() }
}

/// What may ring wakes a phone at once. Nobody knows what an encrypted event is.
fn priority(notice: &Notice) -> &'static str {
    let rings = notice.outcome.highlight || notice.outcome.sound.is_some() || notice.kind == "m.room.encrypted";
    if rings { "high" } else { "low" }
}

fn told<'a>(device: &Device<'a>, outcome: Option<&'a Outcome>) -> Told<'a> {
    Told {
        app_id: device.app_id,
        pushkey: device.pushkey,
        pushkey_ts: device.set_ms / 1000,
        data: without_url(device.data),
        tweaks: outcome.map(|outcome| Tweaks { sound: outcome.sound.as_deref(), highlight: outcome.highlight }),
    }
}

/// The pusher's data without the gateway's address. The rest stays as the app wrote it.
fn without_url(data: &str) -> Box<RawValue> {
    let kept = members(data, |key| key != "url").and_then(RawValue::from_string);
    kept.unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn cut(name: &str) -> String {
    name.chars().take(NAME_CHARS_MAX).collect()
}

fn json(notification: Notification<'_>) -> Vec<u8> {
    // Texts, numbers and raw JSON: nothing of it can fail to be written.
    serde_json::to_vec(&Body { notification }).unwrap_or_default()
}

/// The message to an endpoint, of a notification that another homeserver made: all but the devices, or ids alone where
/// all would be too long.
pub fn forwarded(notification: &str) -> Vec<u8> {
    let all = |key: &str| key != "devices";
    let few = |key: &str| matches!(key, "event_id" | "room_id" | "counts" | "prio");
    kept(notification, all).or_else(|| kept(notification, few)).unwrap_or_else(|| b"{\"notification\":{}}".to_vec())
}

/// Only what an endpoint takes is put together.
fn kept(notification: &str, wanted: impl Fn(&str) -> bool) -> Option<Vec<u8>> {
    let mut length = 0;
    partial::each_member(notification.as_bytes(), &mut |key, value| {
        length += if wanted(key) { value.get().len() } else { 0 };
        Ok::<_, serde_json::Error>(())
    })
    .ok()?;
    let kept = (length <= ENDPOINT_BYTES_MAX).then(|| members(notification, wanted))?.ok()?;
    Some(format!("{{\"notification\":{kept}}}").into_bytes()).filter(|whole| whole.len() <= ENDPOINT_BYTES_MAX)
}

/// An object with some of its members, which stay as they are written.
fn members(object: &str, wanted: impl Fn(&str) -> bool) -> Result<String, serde_json::Error> {
    let mut out = String::new();
    partial::each_member(object.as_bytes(), &mut |key, value| {
        if wanted(key) {
            out.push(if out.is_empty() { '{' } else { ',' });
            out.push_str(&serde_json::to_string(key)?);
            out.push(':');
            out.push_str(value.get());
        }
        Ok::<_, serde_json::Error>(())
    })?;
    out.push_str(if out.is_empty() { "{}" } else { "}" });
    Ok(out)
}

/// The actions of a matching rule, in the form of the API: those that clients know.
pub fn actions(outcome: &Outcome) -> serde_json::Value {
    let mut actions = Vec::new();
    if outcome.notify {
        actions.push(serde_json::json!("notify"));
    }
    if let Some(sound) = &outcome.sound {
        actions.push(serde_json::json!({ "set_tweak": "sound", "value": sound }));
    }
    if outcome.highlight {
        actions.push(serde_json::json!({ "set_tweak": "highlight" }));
    }
    actions.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn notice() -> Notice {
        Notice {
            event_id: Some("$e".into()),
            room_id: "!r:x".into(),
            kind: "m.room.message".into(),
            sender: "@a:x".into(),
            sender_display_name: Some("Anna".into()),
            room_name: Some("Kitchen".into()),
            room_alias: Some("#k:x".into()),
            content: Some(r#"{"body":"hi","msgtype":"m.text"}"#.into()),
            outcome: Outcome { notify: true, highlight: false, sound: Some("default".into()) },
            ..Notice::default()
        }
    }

    fn device(data: &str) -> Device<'_> {
        Device { app_id: "app", pushkey: "https://up.example/x", set_ms: 5_999, data, short: false }
    }

    fn parsed(body: Vec<u8>) -> Value {
        serde_json::from_slice::<Value>(&body).unwrap()["notification"].clone()
    }

    #[test]
    fn everything_is_told_unless_ids_are_enough() {
        let data = r#"{"url":"https://g/_matrix/push/v1/notify","default_payload":{"aps":{"b":[1,"é"]}}}"#;
        assert_eq!(
            parsed(body(&notice(), Some(3), &device(data))),
            json!({
                "event_id": "$e", "room_id": "!r:x", "type": "m.room.message", "sender": "@a:x",
                "sender_display_name": "Anna", "room_name": "Kitchen", "room_alias": "#k:x", "prio": "high",
                "content": { "body": "hi", "msgtype": "m.text" }, "counts": { "unread": 3 },
                "devices": [{
                    "app_id": "app", "pushkey": "https://up.example/x", "pushkey_ts": 5,
                    "data": { "default_payload": { "aps": { "b": [1, "é"] } } }, "tweaks": { "sound": "default" },
                }],
            })
        );
        let data = r#"{"url":"https://g/_matrix/push/v1/notify","format":"event_id_only"}"#;
        let quiet = Notice { outcome: Outcome { notify: true, ..Outcome::default() }, ..notice() };
        let told = json!({ "app_id": "app", "pushkey": "https://up.example/x", "pushkey_ts": 5, "data": { "format": "event_id_only" } });
        assert_eq!(
            parsed(body(&quiet, None, &device(data))),
            json!({ "event_id": "$e", "room_id": "!r:x", "prio": "low", "devices": [told] })
        );
        assert_eq!(
            parsed(badge_body(0, &device(data))),
            json!({ "counts": { "unread": 0 }, "prio": "low", "devices": [told] })
        );
        let short = Device { short: true, ..device("{}") };
        assert_eq!(parsed(body(&notice(), None, &short)).get("content"), None);
    }

    #[test]
    fn an_invite_says_whom_it_is_for() {
        let invite = Notice { kind: "m.room.member".into(), target: Some((true, "invite".into())), ..notice() };
        let told = parsed(body(&invite, None, &device("{}")));
        assert_eq!((&told["user_is_target"], &told["membership"]), (&json!(true), &json!("invite")));
    }

    #[test]
    fn what_an_endpoint_does_not_take_is_told_by_ids() {
        let mut long = notice();
        let short = parsed(endpoint_body(Some(&long), Some(1), &device("{}")));
        assert_eq!((short.get("devices"), &short["content"]["body"]), (None, &json!("hi")));
        long.content = Some(json!({ "body": "x".repeat(4000) }).to_string());
        let ids = endpoint_body(Some(&long), Some(1), &device("{}"));
        assert!(ids.len() < 200);
        assert_eq!(parsed(ids)["event_id"], "$e");
        assert_eq!(parsed(endpoint_body(None, Some(2), &device("{}")))["counts"], json!({ "unread": 2 }));
    }

    #[test]
    fn the_longest_body_is_within_its_bound() {
        let text = "\u{1}".repeat(NAME_CHARS_MAX * 3);
        let mut long = notice();
        long.content = Some(format!("{{\"b\":\"{}\"}}", "x".repeat(CONTENT_BYTES_MAX - 9)));
        (long.room_name, long.sender_display_name) = (Some(text.clone()), Some(text));
        let data = format!("{{\"b\":\"{}\"}}", "x".repeat((8 << 10) - 9));
        let body = body(&long, Some(1), &device(&data));
        assert!(body.len() > CONTENT_BYTES_MAX && body.len() as u64 <= BODY_BYTES_MAX, "{}", body.len());
    }
}
