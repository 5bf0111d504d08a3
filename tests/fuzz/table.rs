//! Every endpoint of the server with what an honest request holds; `tests/it/tidy.rs` compares it with the server's own routes.
//!
//! `<name>` in a body stands for a value of that kind (`known.rs`), `<<name>>` for a bare number or word, `SIGN` for a signature of
//! the caller's key over the object it is in. A query is a list of `parameter=kind`. Parameters of paths are named as in the server's templates, and their names are kinds too.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    Anybody,
    User,
    Server,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holds {
    Nothing,
    /// JSON, one of these.
    Json(&'static [&'static str]),
    /// An event of another server, signed: its membership, or nothing for any.
    Event(&'static str),
    /// An event within the envelope of `PUT /v2/invite`.
    Invite,
    /// A transaction of events and EDUs.
    Transaction,
    Bytes,
}

pub struct Endpoint {
    pub method: &'static str,
    pub prefixes: &'static [&'static str],
    pub path: &'static str,
    pub who: Who,
    pub query: &'static str,
    pub body: Holds,
    /// How often, in comparison with the others.
    pub weight: usize,
}

impl Endpoint {
    pub fn templates(&self) -> impl Iterator<Item = String> + '_ {
        self.prefixes.iter().map(|prefix| format!("{prefix}{}", self.path))
    }

    const fn weighs(self, weight: usize) -> Endpoint {
        Endpoint { weight, ..self }
    }

    const fn asks(self, query: &'static str) -> Endpoint {
        Endpoint { query, ..self }
    }

    const fn of(self, who: Who) -> Endpoint {
        Endpoint { who, ..self }
    }
}

const BARE: &[&str] = &[""];
const V1: &[&str] = &["/_matrix/client/v1"];
const PINGS: &[&str] = &["/_matrix/client/v1/appservice", "/_matrix/client/unstable/fi.mau.msc2659/appservice"];
const DELAYED: &[&str] = &["/_matrix/client/unstable/org.matrix.msc4140", "/_matrix/client/v1"];
const DELAYED_ROOMS: &[&str] = &["/_matrix/client/unstable/org.matrix.msc4140", "/_matrix/client/v3"];
const TRANSPORTS: &[&str] = &["/_matrix/client/unstable/org.matrix.msc4143", "/_matrix/client/v1"];
const SLIDING: &[&str] = &["/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", "/_matrix/client/v4/sync"];
const V3: &[&str] = &["/_matrix/client/r0", "/_matrix/client/v3"];
const FIELDS: &[&str] = &["/_matrix/client/r0", "/_matrix/client/v3", "/_matrix/client/unstable/uk.tcpip.msc4133"];
const SIGNING: &[&str] = &["/_matrix/client/r0", "/_matrix/client/v3", "/_matrix/client/unstable"];
const THREADS: &[&str] = &["/_matrix/client/unstable/io.element.msc4306", "/_matrix/client/v1"];
const REMOVED: &[&str] = &["/_matrix/client/unstable/org.matrix.msc3391"];
const SUMMARY: &[&str] = &["/_matrix/client/v1/room_summary", "/_matrix/client/unstable/im.nheko.summary/summary"];
const MUTUAL: &[&str] =
    &["/_matrix/client/v1/mutual_rooms", "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms"];
const MODERATION: &[&str] = &["/_matrix/client/v1/admin", "/_matrix/client/unstable/uk.timedout.msc4323/admin"];
const SYNAPSE: &[&str] = &["/_synapse/admin/v1"];
const SYNAPSE2: &[&str] = &["/_synapse/admin/v2"];
const DEHYDRATED: &[&str] = &["/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"];
const MEDIA: &[&str] = &["/_matrix/media/r0", "/_matrix/media/v1", "/_matrix/media/v3"];
const FED: &[&str] = &["/_matrix/federation/v1"];
const FED2: &[&str] = &["/_matrix/federation/v2"];

use Holds::{Bytes, Event, Invite, Json, Nothing, Transaction};
use Who::{Anybody, Server, User};

const fn get(prefixes: &'static [&'static str], path: &'static str) -> Endpoint {
    Endpoint { method: "GET", prefixes, path, who: User, query: "", body: Nothing, weight: 2 }
}

const fn delete(prefixes: &'static [&'static str], path: &'static str, body: Holds) -> Endpoint {
    Endpoint { method: "DELETE", body, ..get(prefixes, path) }
}

const fn post(prefixes: &'static [&'static str], path: &'static str, body: Holds) -> Endpoint {
    Endpoint { method: "POST", body, ..get(prefixes, path) }
}

const fn put(prefixes: &'static [&'static str], path: &'static str, body: Holds) -> Endpoint {
    Endpoint { method: "PUT", body, ..get(prefixes, path) }
}

const SHARED_SECRET: Holds =
    Json(&[r#"{"nonce":"<text>","username":"<localpart>","password":"<password>","admin":"<<bool>>","mac":"<text>"}"#]);
const SERVER_NOTICE: Holds =
    Json(&[r#"{"user_id":"<user_id>","content":{"msgtype":"m.text","body":"<text>"},"type":"m.room.message"}"#]);
const DELETE_ROOM: Holds = Json(&[
    "{}",
    r#"{"block":"<<bool>>","purge":"<<bool>>","new_room_user_id":"<user_id>","room_name":"<text>","message":"<text>"}"#,
]);
const EMPTY: Holds = Json(&["{}"]);
const SEARCHES: &[&str] = &[
    r#"{"search_categories":{"room_events":{"search_term":"<text>","keys":["content.body","content.name","content.topic"],"filter":{"limit":"<<number>>","rooms":["<room_id>"],"types":["m.room.*"],"senders":["<user_id>"]},"order_by":"recent","event_context":{"before_limit":"<<number>>","after_limit":2,"include_profile":true},"include_state":true,"groupings":{"group_by":[{"key":"room_id"},{"key":"sender"}]}}}}"#,
    r#"{"search_categories":{"room_events":{"search_term":"\"<text>\" -<text>","order_by":"rank","filter":{"not_rooms":["<room_id>"]}}}}"#,
];
const LISTS: Holds = Json(&[
    r#"{"conn_id":"a","lists":{"all":{"ranges":[[0,19]],"timeline_limit":"<<number>>","required_state":[["m.room.name",""],["m.room.member","$LAZY"],["m.room.member","$ME"],["m.space.child","*"]],"include_heroes":true,"filters":{"is_invite":false,"not_room_types":["m.space"]}}},"room_subscriptions":{"<room_id>":{"timeline_limit":20,"required_state":[["*","*"]]}},"extensions":{"to_device":{"enabled":true,"since":"<number>","limit":"<<number>>"},"e2ee":{"enabled":true},"account_data":{"enabled":true,"lists":["*"],"rooms":["<room_id>"]},"receipts":{"enabled":true},"typing":{"enabled":true,"lists":["all","<text>"]},"io.element.msc4308.thread_subscriptions":{"enabled":true,"limit":"<<number>>"},"org.matrix.msc4354.sticky_events":{"enabled":true},"org.matrix.msc4262.profiles":{"enabled":true,"fields":["displayname","m.status"]}}}"#,
    r#"{"conn_id":"<text>","pos":"<pos>","timeout":0,"lists":{"a":{"range":[0,"<<number>>"],"timeline_limit":1,"required_state":{"include":[{},{"type":"m.room.member","state_key":"<user_id>"}],"exclude":[{"type":"m.room.create"}],"lazy_members":true},"filters":{"is_dm":true,"is_encrypted":false,"room_types":[null,"m.space"],"tags":["m.favourite"],"not_tags":["m.lowpriority"],"spaces":["<room_id>"],"is_invited":true}},"b":{"timeline_limit":0,"required_state":{}}}}"#,
]);
const REASON: Holds = Json(&[r#"{"reason":"<text>"}"#]);
const TARGET: Holds = Json(&[
    r#"{"user_id":"<user_id>","reason":"<text>"}"#,
    r#"{"user_id":"<their_user>","reason":"<text>","redact_events":"<<bool>>"}"#,
]);
const AUTH: &str =
    r#"{"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"<me>"},"password":"<password>"}}"#;
const PASSWORD_CHANGE: &str = r#"{"new_password":"<password>","logout_devices":false,"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"<me>"},"password":"<password>"}}"#;
const DEVICES_END: &str = r#"{"devices":["A","<device_id>"],"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"<me>"},"password":"<password>"}}"#;
const PROFILE: Holds = Json(&[
    r#"{"displayname":"<text>","avatar_url":"<mxc>","m.tz":"Europe/Berlin","org.example.field":{"a":1},"m.status":{"text":"<text>"}}"#,
    r#"{"avatar_url":"<mxc>"}"#,
]);
const PAGE: &str = "limit=number&since=page&server=server";
const SEARCH: Holds = Json(&[
    r#"{"limit":"<<number>>","since":"<page>","filter":{"generic_search_term":"<text>","room_types":[null,"m.space"]}}"#,
]);
const EDITED: &str = "from=page&to=page&limit=number&dir=dir&recurse=bool";
const PICTURE: &str =
    "width=number&height=number&method=method&animated=bool&timeout_ms=wait&allow_remote=bool&allow_redirect=bool";
const PUSHER: Holds = Json(&[
    r#"{"kind":"http","app_id":"<localpart>","pushkey":"<text>","app_display_name":"<text>","device_display_name":"<text>","profile_tag":"<text>","lang":"en","data":{"url":"https://push.invalid/_matrix/push/v1/notify","format":"event_id_only","default_payload":{"a":1}},"append":true,"org.matrix.msc3881.enabled":true}"#,
    r#"{"kind":"http","app_id":"<localpart>","pushkey":"https://push.invalid/<text>","app_display_name":"a","device_display_name":"<text>","lang":"en","data":{"url":"https://localhost/_matrix/push/v1/notify","org.matrix.msc4076.disable_badge_count":true}}"#,
    r#"{"kind":null,"app_id":"<localpart>","pushkey":"<text>"}"#,
]);
const NOTIFY: Holds = Json(&[
    r#"{"notification":{"event_id":"<event_id>","room_id":"<room_id>","type":"m.room.message","sender":"<user_id>","content":{"body":"<text>"},"counts":{"unread":"<<number>>"},"prio":"high","devices":[{"app_id":"<localpart>","pushkey":"https://push.invalid/<text>","pushkey_ts":"<<number>>","data":{},"tweaks":{"sound":"default"}},{"app_id":"a","pushkey":"<text>"}]}}"#,
]);
const CONTENT: Holds = Json(&[
    r#"{"msgtype":"m.text","body":"<text>"}"#,
    r#"{"msgtype":"m.text","body":"* <text>","m.new_content":{"msgtype":"m.text","body":"<text>"},"m.relates_to":{"rel_type":"m.replace","event_id":"<event_id>"}}"#,
    r#"{"m.relates_to":{"rel_type":"m.annotation","event_id":"<event_id>","key":"<text>"}}"#,
    r#"{"msgtype":"m.text","body":"<text>","m.relates_to":{"rel_type":"m.thread","event_id":"<event_id>","is_falling_back":true,"m.in_reply_to":{"event_id":"<event_id>"}},"m.mentions":{"user_ids":["<user_id>"],"room":true}}"#,
    r#"{"msgtype":"m.image","body":"a","url":"<mxc>","info":{"w":"<<number>>","h":"<<number>>","size":"<<number>>"}}"#,
    r#"{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"<base64>","device_id":"<device_id>","sender_key":"<base64>","session_id":"<base64>"}"#,
    r#"{"redacts":"<event_id>","reason":"<text>"}"#,
]);
const STATE: Holds = Json(&[
    r#"{"membership":"<membership>","displayname":"<text>","avatar_url":"<mxc>","reason":"<text>","is_direct":true}"#,
    r#"{"membership":"join","join_authorised_via_users_server":"<user_id>"}"#,
    r#"{"membership":"invite","third_party_invite":{"display_name":"<text>","signed":{"mxid":"<user_id>","token":"<text>","signatures":{"<server>":{"ed25519:0":"<base64>"}}}}}"#,
    r#"{"users":{"<me>":100,"<user_id>":"<<number>>"},"users_default":"<<number>>","events":{"m.room.name":"<<number>>"},"events_default":0,"state_default":50,"ban":50,"kick":50,"redact":50,"invite":0,"notifications":{"room":50}}"#,
    r#"{"join_rule":"<join_rule>","allow":[{"type":"m.room_membership","room_id":"<room_id>"}]}"#,
    r#"{"history_visibility":"<visibility>"}"#,
    r#"{"guest_access":"can_join"}"#,
    r#"{"name":"<text>","topic":"<text>","url":"<mxc>"}"#,
    r#"{"alias":"<alias>","alt_aliases":["<alias>"]}"#,
    r#"{"pinned":["<event_id>","<event_id>"]}"#,
    r#"{"algorithm":"m.megolm.v1.aes-sha2","rotation_period_ms":"<<number>>"}"#,
    r#"{"allow":["*"],"deny":["evil.example"],"allow_ip_literals":true}"#,
    r#"{"body":"<text>","replacement_room":"<room_id>"}"#,
    r#"{"via":["<server>"],"order":"<text>","suggested":true}"#,
    r#"{"creator":"<me>","room_version":"11","type":"m.space","predecessor":{"room_id":"<room_id>","event_id":"<event_id>"},"m.federate":true}"#,
    r#"{"public_key":"<base64>","display_name":"<text>","public_keys":[{"public_key":"<base64>","key_validity_url":"https://a.example"}]}"#,
]);
const CREATE: Holds = Json(&[
    r#"{"preset":"public_chat","name":"<text>","topic":"<text>","room_version":"<version>"}"#,
    r#"{"preset":"private_chat","invite":["<user_id>"],"is_direct":true,"initial_state":[{"type":"<state_type>","state_key":"","content":{"name":"<text>"}}]}"#,
    r#"{"visibility":"public","room_alias_name":"<localpart>","creation_content":{"m.federate":true,"type":"m.space","additional_creators":["<user_id>"]},"power_level_content_override":{"users":{"<me>":100},"events":{"m.room.name":"<<number>>"}},"room_version":"<version>"}"#,
]);
const KEYS: Holds = Json(&[
    r#"{"device_keys":{"user_id":"<me>","device_id":"<device_id>","algorithms":["m.olm.v1.curve25519-aes-sha2"],"keys":{"curve25519:<device_id>":"<base64>","ed25519:<device_id>":"<own_key>"},"signatures":{"<me>":{"ed25519:<device_id>":"SIGN"}}}}"#,
    r#"{"one_time_keys":{"signed_curve25519:<key_id>":{"key":"<base64>","signatures":{"<me>":{"ed25519:<device_id>":"SIGN"}}},"curve25519:<key_id>":"<base64>"},"fallback_keys":{"signed_curve25519:<key_id>":{"key":"<base64>","fallback":true,"signatures":{"<me>":{"ed25519:<device_id>":"SIGN"}}}}}"#,
]);
const QUERY_KEYS: Holds = Json(&[
    r#"{"device_keys":{"<user_id>":[],"<me>":["<device_id>"],"<their_user>":[]},"timeout":"<<wait>>"}"#,
    r#"{"device_keys":{"<user_id>":["<device_id>","<device_id>"]}}"#,
]);
const CLAIM_KEYS: Holds = Json(&[
    r#"{"one_time_keys":{"<user_id>":{"<device_id>":"signed_curve25519"},"<their_user>":{"<device_id>":"signed_curve25519"}},"timeout":"<<wait>>"}"#,
]);
const CROSS: Holds = Json(&[
    r#"{"master_key":{"user_id":"<me>","usage":["master"],"keys":{"ed25519:<own_key>":"<own_key>"}},"self_signing_key":{"user_id":"<me>","usage":["self_signing"],"keys":{"ed25519:<own_key>":"<own_key>"},"signatures":{"<me>":{"ed25519:<own_key>":"SIGN"}}},"user_signing_key":{"user_id":"<me>","usage":["user_signing"],"keys":{"ed25519:<own_key>":"<own_key>"},"signatures":{"<me>":{"ed25519:<own_key>":"SIGN"}}}}"#,
]);
const SIGNATURES: Holds = Json(&[
    r#"{"<user_id>":{"<own_key>":{"user_id":"<user_id>","usage":["master"],"keys":{"ed25519:<own_key>":"<own_key>"},"signatures":{"<me>":{"ed25519:<own_key>":"SIGN"}}},"<device_id>":{"user_id":"<user_id>","device_id":"<device_id>","algorithms":["a"],"keys":{"ed25519:<device_id>":"<own_key>"},"signatures":{"<me>":{"ed25519:<own_key>":"SIGN"}}}}}"#,
]);
const TO_DEVICE: Holds = Json(&[
    r#"{"messages":{"<user_id>":{"<device_id>":{"body":"<text>"},"*":{"body":"<text>"}},"<their_user>":{"*":{"a":1}}}}"#,
]);
const FILTER: Holds = Json(&[
    r#"{"room":{"timeline":{"limit":"<<number>>","types":["m.room.*"],"not_types":["*.member"],"senders":["<user_id>"],"not_senders":["<user_id>"],"rooms":["<room_id>"],"contains_url":true,"unread_thread_notifications":true},"state":{"lazy_load_members":true,"include_redundant_members":true,"types":["*"]},"ephemeral":{"not_types":["m.receipt"]},"account_data":{"types":[]},"include_leave":true,"rooms":["<room_id>"],"not_rooms":["<room_id>"]},"presence":{"types":[]},"account_data":{"limit":"<<number>>"},"event_fields":["type","content.body","sender","content.a\\.b"],"event_format":"federation"}"#,
    r#"{"room":{"state":{"lazy_load_members":true}}}"#,
    r#"{"profile_fields":{"ids":["displayname","m.status"]},"org.matrix.msc4429.profile_fields":{"ids":["<text>"]}}"#,
]);
const RULE: Holds = Json(&[
    r#"{"actions":["notify",{"set_tweak":"sound","value":"default"},{"set_tweak":"highlight"}],"pattern":"<text>"}"#,
    r#"{"actions":["dont_notify"],"conditions":[{"kind":"event_match","key":"content.body","pattern":"*<text>?*"},{"kind":"room_member_count","is":"<count>"},{"kind":"contains_display_name"},{"kind":"sender_notification_permission","key":"room"},{"kind":"event_property_is","key":"content.m\\.relates_to.rel_type","value":"m.thread"},{"kind":"event_property_contains","key":"content.m\\.mentions.user_ids","value":"<me>"}]}"#,
    r#"{"actions":[]}"#,
]);
const LOGIN: Holds = Json(&[
    r#"{"type":"m.login.password","identifier":{"type":"m.id.user","user":"<me>"},"password":"<password>","device_id":"<device_id>","initial_device_display_name":"<text>"}"#,
    r#"{"type":"m.login.password","user":"<localpart>","password":"<text>"}"#,
    r#"{"type":"m.login.token","token":"<text>"}"#,
]);
const REGISTER: Holds = Json(&[
    r#"{"username":"<localpart>","password":"<password>","auth":{"type":"m.login.dummy"},"device_id":"<device_id>","inhibit_login":true}"#,
    r#"{"username":"<localpart>","password":"<password>","auth":{"type":"m.login.dummy","session":"<session>"}}"#,
    r#"{"username":"<localpart>","password":"<password>"}"#,
]);
const ACCOUNT_DATA: Holds = Json(&[
    r#"{"<user_id>":["<room_id>"]}"#,
    r#"{"ignored_users":{"<user_id>":{},"<their_user>":{}}}"#,
    r#"{"event_id":"<event_id>"}"#,
    r#"{"a":"<text>"}"#,
    r#"{"default_action":"block"}"#,
    r#"{"enabled":"<<bool>>","allowed_users":["<user_id>"],"ignored_users":["<their_user>"],"blocked_servers":["*","<server>"]}"#,
]);

const DRY: Holds = Json(&[
    r#"{"device_id":"<device_id>","device_data":{"algorithm":"m.dehydration.v2","device_pickle":"<base64>","nonce":"<base64>"},"initial_device_display_name":"<text>","device_keys":{"user_id":"<me>","device_id":"<device_id>","dehydrated":true,"algorithms":["m.olm.v1.curve25519-aes-sha2"],"keys":{"ed25519:<device_id>":"<own_key>"},"signatures":{"<me>":{"ed25519:<device_id>":"SIGN"}}},"fallback_keys":{"signed_curve25519:<key_id>":{"key":"<base64>","fallback":true,"signatures":{"<me>":{"ed25519:<device_id>":"SIGN"}}}}}"#,
    r#"{"device_id":"DRY","device_data":{"algorithm":"m.dehydration.v2"},"device_keys":{"user_id":"<me>","device_id":"DRY","algorithms":["a"],"keys":{"ed25519:DRY":"<own_key>"},"signatures":{"<me>":{"ed25519:DRY":"SIGN"}}},"one_time_keys":{"curve25519:<key_id>":"<base64>"}}"#,
]);
const BACKUP: Holds = Json(&[
    r#"{"algorithm":"m.megolm_backup.v1.curve25519-aes-sha2","auth_data":{"public_key":"<base64>","signatures":{"<me>":{"ed25519:<device_id>":"<base64>"}}}}"#,
    r#"{"algorithm":"m.megolm_backup.v1.curve25519-aes-sha2","auth_data":{"a":"<text>"},"version":"<number>"}"#,
]);
const BACKED_UP: &str = r#"{"first_message_index":"<<number>>","forwarded_count":"<<number>>","is_verified":true,"session_data":{"ephemeral":"<base64>","ciphertext":"<base64>","mac":"<base64>"}}"#;
const BACKED_UP_ROOM: &str = r#"{"sessions":{"<key_id>":{"first_message_index":"<<number>>","forwarded_count":0,"is_verified":false,"session_data":{"ephemeral":"<base64>"}},"<key_id>":{"first_message_index":0,"forwarded_count":"<<number>>","is_verified":true,"session_data":"<text>"}}}"#;
const BACKED_UP_ROOMS: &str = r#"{"rooms":{"<room_id>":{"sessions":{"<key_id>":{"first_message_index":"<<number>>","forwarded_count":0,"is_verified":false,"session_data":{"ephemeral":"<base64>"}}}},"<room_id>":{"sessions":{}}}}"#;

/// Every endpoint.
pub const TABLE: &[Endpoint] = &[
    // What this server is.
    get(BARE, "/_matrix/client/versions").of(Anybody),
    get(BARE, "/.well-known/matrix/client").of(Anybody),
    get(V3, "/capabilities"),
    get(V3, "/voip/turnServer"),
    get(BARE, "/_matrix/client/unstable/org.matrix.msc1763/retention/configuration"),
    post(V3, "/user/{user_id}/openid/request_token", Json(&["{}"])),
    get(TRANSPORTS, "/rtc/transports"),
    post(V1, "/rtc/livekit/get_token", Json(&[r#"{"server_name":"<server>","room_id":"<room_id>","slot_id":"m.call#ROOM","member":{"id":"<text>","claimed_device_id":"<device_id>"}}"#, r#"{"room_id":"<room_id>","slot_id":"<text>","member":{"id":"<text>","claimed_device_id":"<device_id>"}}"#])),
    post(V1, "/rtc/livekit/delegate_delayed_leave", Json(&[r#"{"room_id":"<room_id>","slot_id":"<text>","member":{"id":"<text>","claimed_device_id":"<device_id>"},"delay_id":"<delay_id>"}"#])),
    post(BARE, "/_snug/livekit/delegate_delayed_leave", Json(&[r#"{"room_id":"<room_id>","slot_id":"<text>","openid_token":{"access_token":"<text>","matrix_server_name":"<server>"},"member":{"id":"<text>","claimed_device_id":"<device_id>","claimed_user_id":"<user_id>"},"delay_id":"<delay_id>","delay_timeout":60000}"#])).of(Anybody),
    post(BARE, "/_snug/livekit/sfu/get", Json(&[r#"{"room":"<room_id>","openid_token":{"access_token":"<text>","token_type":"Bearer","matrix_server_name":"<server>","expires_in":3600},"device_id":"<device_id>"}"#])).of(Anybody),
    post(BARE, "/_snug/livekit/get_token", Json(&[r#"{"room_id":"<room_id>","slot_id":"<text>","openid_token":{"access_token":"<text>","matrix_server_name":"<server>"},"member":{"id":"<text>","claimed_device_id":"<device_id>","claimed_user_id":"<user_id>"}}"#])).of(Anybody),
    get(BARE, "/.well-known/matrix/support").of(Anybody),
    get(BARE, "/_snug/terms").of(Anybody).asks("u=localpart&h=text"),
    post(BARE, "/_snug/terms", Bytes).of(Anybody),
    get(BARE, "/_snug/terms/{policy}/{language}").of(Anybody),
    get(V3, "/thirdparty/protocols"),
    post(PINGS, "/{service_id}/ping", Json(&[r#"{"transaction_id":"<text>"}"#])),
    get(V3, "/thirdparty/protocol/{protocol}"),
    get(V3, "/thirdparty/location").asks("alias=alias"),
    get(V3, "/thirdparty/location/{protocol}").asks("search=text"),
    get(V3, "/thirdparty/user").asks("userid=user_id"),
    get(V3, "/thirdparty/user/{protocol}").asks("search=text"),
    get(V3, "/auth/{auth_type}/fallback/web").of(Anybody).asks("session=session"),
    post(V3, "/auth/{auth_type}/fallback/web", Bytes).of(Anybody).asks("session=session"),
    get(BARE, "/").of(Anybody),
    get(BARE, "/_matrix/static/client/login/").of(Anybody).asks("device_id=device_id"),
    get(BARE, "/_snug/first/{code}").of(Anybody),
    post(BARE, "/_snug/first/{code}", Bytes).of(Anybody),
    // The administrators' page. What needs a session there leads to the sign-in.
    get(BARE, "/_snug/").of(Anybody).asks("done=text"),
    get(BARE, "/_snug/metrics").of(Anybody),
    get(BARE, "/_snug/health").of(Anybody),
    get(BARE, "/_snug/page.css").of(Anybody),
    get(BARE, "/_snug/page.js").of(Anybody),
    get(BARE, "/_snug/mark.svg").of(Anybody),
    get(BARE, "/_snug/sign-in").of(Anybody).asks("next=text"),
    post(BARE, "/_snug/sign-in", Bytes).of(Anybody),
    post(BARE, "/_snug/sign-out", Bytes).of(Anybody),
    get(BARE, "/_snug/live/{part}").of(Anybody),
    get(BARE, "/_snug/people/").of(Anybody).asks("find=text&after=user_id&bridges=text&done=text"),
    get(BARE, "/_snug/people/add").of(Anybody),
    post(BARE, "/_snug/people/add", Bytes).of(Anybody),
    get(BARE, "/_snug/people/of/{user}").of(Anybody).asks("from=number"),
    post(BARE, "/_snug/people/of/{user}", Bytes).of(Anybody),
    get(BARE, "/_snug/people/of/{user}/close").of(Anybody),
    post(BARE, "/_snug/people/of/{user}/close", Bytes).of(Anybody),
    get(BARE, "/_snug/rooms/").of(Anybody).asks("find=text&order=text&from=number&done=text"),
    post(BARE, "/_snug/rooms/", Bytes).of(Anybody),
    get(BARE, "/_snug/rooms/of/{room}").of(Anybody),
    post(BARE, "/_snug/rooms/of/{room}", Bytes).of(Anybody),
    get(BARE, "/_snug/rooms/blocked").of(Anybody).asks("after=text&done=text"),
    post(BARE, "/_snug/rooms/blocked", Bytes).of(Anybody),
    get(BARE, "/_snug/rooms/left").of(Anybody),
    post(BARE, "/_snug/rooms/left", Bytes).of(Anybody),
    get(BARE, "/_snug/rooms/of/{room}/remove").of(Anybody),
    post(BARE, "/_snug/rooms/of/{room}/remove", Bytes).of(Anybody),
    get(BARE, "/_snug/rooms/of/{room}/shorten").of(Anybody).asks("days=number"),
    post(BARE, "/_snug/rooms/of/{room}/shorten", Bytes).of(Anybody),
    get(BARE, "/_snug/reports/").of(Anybody).asks("after=number&done=text"),
    post(BARE, "/_snug/reports/", Bytes).of(Anybody),
    get(BARE, "/_snug/servers/").of(Anybody).asks("find=text&after=server&behind=server"),
    get(BARE, "/_snug/servers/find").of(Anybody).asks("server=server"),
    get(BARE, "/_snug/servers/of/{server}").of(Anybody).asks("done=text"),
    post(BARE, "/_snug/servers/of/{server}", Bytes).of(Anybody),
    get(BARE, "/_snug/servers/rooms").of(Anybody).asks("server=server&find=text&since=text"),
    get(BARE, "/_snug/backups/").of(Anybody).asks("from=number&done=text"),
    post(BARE, "/_snug/backups/", Bytes).of(Anybody),
    get(BARE, "/_snug/backups/of/{stamp}").of(Anybody),
    post(BARE, "/_snug/backups/of/{stamp}", Bytes).of(Anybody),
    get(BARE, "/_snug/settings/").of(Anybody),
    post(BARE, "/_snug/settings/", Bytes).of(Anybody),
    get(BARE, "/_snug/settings/in/{section}").of(Anybody).asks("done=text"),
    get(BARE, "/_snug/settings/of/{name}").of(Anybody),
    post(BARE, "/_snug/settings/of/{name}", Bytes).of(Anybody),
    get(BARE, "/_snug/workers").of(Anybody),
    get(BARE, "/_snug/log").of(Anybody).asks("only=text"),
    get(BARE, "/_snug/password/{code}").of(Anybody),
    post(BARE, "/_snug/password/{code}", Bytes).of(Anybody),
    get(BARE, "/_snug/{*rest}").of(Anybody),
    get(BARE, "/_snug/certificate").of(Anybody),
    get(BARE, "/_snug/certificate.pem").of(Anybody),
    get(BARE, "/_snug/certificate.crt").of(Anybody),
    get(BARE, "/_snug/certificate.mobileconfig").of(Anybody),
    get(BARE, "/.well-known/acme-challenge/{token}").of(Anybody),
    // Accounts.
    get(V3, "/login").of(Anybody),
    post(V3, "/login", LOGIN).of(Anybody),
    post(BARE, "/_matrix/client/v1/login/get_token", Json(&["{}", AUTH])),
    post(BARE, "/_matrix/client/unstable/org.matrix.msc3882/login/token", Json(&["{}", AUTH])),
    post(V3, "/refresh", Json(&[r#"{"refresh_token":"<text>"}"#])).of(Anybody),
    get(V3, "/admin/whois/{user_id}"),
    get(MODERATION, "/suspend/{user_id}"),
    put(MODERATION, "/suspend/{user_id}", Json(&[r#"{"suspended":"<<bool>>"}"#])),
    get(MODERATION, "/lock/{user_id}"),
    put(MODERATION, "/lock/{user_id}", Json(&[r#"{"locked":"<<bool>>"}"#])),
    post(V3, "/logout", Nothing).weighs(1),
    post(V3, "/logout/all", Nothing).weighs(1),
    get(V3, "/account/whoami"),
    post(V3, "/register", REGISTER).of(Anybody).asks("kind=register_kind"),
    get(V3, "/register/available").of(Anybody).asks("username=localpart"),
    get(V1, "/register/m.login.registration_token/validity").of(Anybody).asks("token=text"),
    post(V3, "/account/password", Json(&[r#"{"new_password":"<password>","logout_devices":false}"#, PASSWORD_CHANGE])),
    post(V3, "/account/deactivate", Json(&["{}", r#"{"auth":{"session":"<session>"}}"#, AUTH])).weighs(1),
    get(V3, "/account/3pid"),
    get(V3, "/devices"),
    get(V3, "/devices/{device_id}"),
    put(V3, "/devices/{device_id}", Json(&[r#"{"display_name":"<text>"}"#])),
    delete(V3, "/devices/{device_id}", Json(&["{}", AUTH])),
    post(V3, "/delete_devices", Json(&[r#"{"devices":["<device_id>","<device_id>"]}"#, DEVICES_END])),
    get(V3, "/profile/{user_id}").of(Anybody),
    get(FIELDS, "/profile/{user_id}/{field}").of(Anybody),
    put(FIELDS, "/profile/{user_id}/{field}", PROFILE).asks("propagate_to=propagate_to"),
    delete(FIELDS, "/profile/{user_id}/{field}", Nothing).asks("propagate_to=propagate_to"),
    post(V3, "/search", Json(SEARCHES)).asks("next_batch=text").weighs(4),
    post(V3, "/user_directory/search", Json(&[r#"{"search_term":"<text>","limit":"<<number>>"}"#])),
    post(V3, "/rooms/{room_id}/report/{event_id}", Json(&["{}", r#"{"reason":"<text>","score":"<<number>>"}"#])),
    post(BARE, "/_matrix/client/v3/rooms/{room_id}/report", REASON),
    post(BARE, "/_matrix/client/v3/users/{user_id}/report", REASON),
    // Synapse's administration API.
    get(SYNAPSE2, "/users").asks("from=number&limit=number&order_by=text&name=text&deactivated=bool&not_user_type=text"),
    get(BARE, "/_synapse/admin/v3/users").asks("from=number&user_id=text&dir=text&locked=bool"),
    get(SYNAPSE2, "/users/{user_id}"),
    put(SYNAPSE2, "/users/{user_id}", Json(&[r#"{"password":"<password>","displayname":"<text>","admin":"<<bool>>"}"#])),
    get(SYNAPSE2, "/users/{user_id}/devices"),
    post(SYNAPSE2, "/users/{user_id}/devices", Json(&[r#"{"device_id":"<device_id>"}"#])),
    get(SYNAPSE2, "/users/{user_id}/devices/{device_id}"),
    put(SYNAPSE2, "/users/{user_id}/devices/{device_id}", Json(&[r#"{"display_name":"<text>"}"#])),
    delete(SYNAPSE2, "/users/{user_id}/devices/{device_id}", EMPTY),
    post(SYNAPSE2, "/users/{user_id}/delete_devices", Json(&[r#"{"devices":["<device_id>"]}"#])),
    post(SYNAPSE, "/deactivate/{user_id}", Json(&["{}", r#"{"erase":"<<bool>>"}"#])),
    put(SYNAPSE, "/suspend/{user_id}", Json(&[r#"{"suspend":"<<bool>>"}"#])),
    post(SYNAPSE, "/reset_password/{user_id}", Json(&[r#"{"new_password":"<password>","logout_devices":"<<bool>>"}"#])),
    get(SYNAPSE, "/users/{user_id}/admin"),
    put(SYNAPSE, "/users/{user_id}/admin", Json(&[r#"{"admin":"<<bool>>"}"#])),
    get(SYNAPSE, "/users/{user_id}/override_ratelimit"),
    post(SYNAPSE, "/users/{user_id}/override_ratelimit", Json(&[r#"{"messages_per_second":"<<number>>","burst_count":"<<number>>"}"#])),
    delete(SYNAPSE, "/users/{user_id}/override_ratelimit", EMPTY),
    post(SYNAPSE, "/users/{user_id}/shadow_ban", EMPTY),
    delete(SYNAPSE, "/users/{user_id}/shadow_ban", EMPTY),
    post(SYNAPSE, "/user/{user_id}/redact", Json(&[r#"{"rooms":[],"limit":"<<number>>","use_admin":"<<bool>>"}"#, r#"{"rooms":["<room_id>"],"reason":"<text>"}"#])),
    get(SYNAPSE, "/user/redact_status/{redact_id}"),
    get(SYNAPSE, "/users/{user_id}/pushers"),
    get(SYNAPSE, "/users/{user_id}/joined_rooms"),
    get(SYNAPSE, "/users/{user_id}/memberships"),
    get(SYNAPSE, "/users/{user_id}/accountdata"),
    post(SYNAPSE, "/users/{user_id}/login", Json(&["{}", r#"{"valid_until_ms":"<<number>>"}"#])),
    get(SYNAPSE, "/whois/{user_id}"),
    get(SYNAPSE, "/username_available").asks("username=localpart"),
    get(SYNAPSE, "/statistics/users/media").asks("from=number&search_term=text&order_by=text&from_ts=number&until_ts=number"),
    get(SYNAPSE, "/statistics/database/rooms"),
    get(SYNAPSE, "/scheduled_tasks").asks("action_name=text&resource_id=room_id&job_status=text&max_timestamp=number"),
    get(SYNAPSE, "/experimental_features/{user_id}"),
    put(SYNAPSE, "/experimental_features/{user_id}", Json(&[r#"{"features":{"msc3881":"<<bool>>"}}"#])),
    get(SYNAPSE, "/register").of(Anybody),
    post(SYNAPSE, "/register", SHARED_SECRET).of(Anybody),
    get(SYNAPSE, "/rooms").asks("from=number&limit=number&order_by=text&dir=text&search_term=text&public_rooms=bool"),
    get(SYNAPSE, "/rooms/{room_id}"),
    get(SYNAPSE, "/rooms/{room_id}/members"),
    get(SYNAPSE, "/rooms/{room_id}/forward_extremities"),
    post(SYNAPSE, "/join/{room_id_or_alias}", Json(&[r#"{"user_id":"<user_id>"}"#])).asks("server_name=server"),
    delete(SYNAPSE, "/rooms/{room_id}", DELETE_ROOM).weighs(1),
    delete(SYNAPSE2, "/rooms/{room_id}", DELETE_ROOM).weighs(1),
    get(SYNAPSE2, "/rooms/{room_id}/delete_status"),
    get(SYNAPSE2, "/rooms/delete_status/{delete_id}"),
    get(SYNAPSE, "/rooms/{room_id}/block"),
    put(SYNAPSE, "/rooms/{room_id}/block", Json(&[r#"{"block":"<<bool>>"}"#])),
    post(SYNAPSE, "/purge_history/{room_id}", Json(&["{}", r#"{"purge_up_to_ts":"<<number>>","delete_local_events":"<<bool>>"}"#])),
    post(SYNAPSE, "/purge_history/{room_id}/{event_id}", EMPTY),
    get(SYNAPSE, "/purge_history_status/{purge_id}"),
    get(SYNAPSE, "/rooms/{room_id}/state").asks("type=text"),
    get(SYNAPSE, "/rooms/{room_id}/messages").asks("from=text&to=text&dir=dir&limit=number"),
    get(SYNAPSE, "/rooms/{room_id}/context/{event_id}").asks("limit=number"),
    get(SYNAPSE, "/rooms/{room_id}/timestamp_to_event").asks("ts=number&dir=dir"),
    get(SYNAPSE, "/rooms/{room_id}/hierarchy").asks("from=text&limit=number&max_depth=number"),
    post(SYNAPSE, "/rooms/{room_id_or_alias}/make_room_admin", Json(&["{}", r#"{"user_id":"<user_id>"}"#])),
    get(SYNAPSE, "/fetch_event/{event_id}"),
    get(SYNAPSE, "/room/{room_id}/media"),
    post(SYNAPSE, "/room/{room_id}/media/quarantine", EMPTY),
    post(SYNAPSE, "/quarantine_media/{room_id}", EMPTY),
    post(SYNAPSE, "/user/{user_id}/media/quarantine", EMPTY),
    get(SYNAPSE, "/users/{user_id}/media").asks("from=number&limit=number&order_by=text&dir=text"),
    delete(SYNAPSE, "/users/{user_id}/media", EMPTY).asks("limit=number&order_by=text").weighs(1),
    get(SYNAPSE, "/media/{server}/{media_id}"),
    delete(SYNAPSE, "/media/{server}/{media_id}", EMPTY),
    post(SYNAPSE, "/media/delete", EMPTY).asks("before_ts=number&size_gt=number&keep_profiles=bool&dry_run=bool"),
    post(SYNAPSE, "/media/{server}/delete", EMPTY).asks("before_ts=number"),
    post(SYNAPSE, "/media/quarantine/{server}/{media_id}", EMPTY),
    post(SYNAPSE, "/media/unquarantine/{server}/{media_id}", EMPTY),
    post(SYNAPSE, "/media/protect/{media_id}", EMPTY),
    post(SYNAPSE, "/media/unprotect/{media_id}", EMPTY),
    post(SYNAPSE, "/purge_media_cache", EMPTY).asks("before_ts=number"),
    get(SYNAPSE, "/event_reports").asks("from=number&limit=number&dir=text&user_id=text&room_id=text"),
    get(SYNAPSE, "/event_reports/{report_id}"),
    delete(SYNAPSE, "/event_reports/{report_id}", EMPTY),
    get(SYNAPSE, "/room_reports").asks("from=number"),
    get(SYNAPSE, "/user_reports").asks("from=number&target_user_id=text"),
    get(SYNAPSE, "/user_reports/{report_id}"),
    delete(SYNAPSE, "/user_reports/{report_id}", EMPTY),
    get(SYNAPSE, "/server_version").of(Anybody),
    post(SYNAPSE, "/send_server_notice", SERVER_NOTICE),
    put(SYNAPSE, "/send_server_notice/{txn_id}", SERVER_NOTICE),
    get(SYNAPSE, "/background_updates/status"),
    get(SYNAPSE, "/background_updates/enabled"),
    get(SYNAPSE, "/registration_tokens").asks("valid=bool"),
    post(
        SYNAPSE,
        "/registration_tokens/new",
        Json(&["{}", r#"{"token":"<text>","length":"<<number>>","uses_allowed":"<<number>>","expiry_time":"<<number>>"}"#]),
    ),
    get(SYNAPSE, "/registration_tokens/{token}"),
    put(SYNAPSE, "/registration_tokens/{token}", Json(&["{}", r#"{"uses_allowed":"<<number>>","expiry_time":null}"#])),
    delete(SYNAPSE, "/registration_tokens/{token}", EMPTY),
    get(SYNAPSE, "/federation/destinations").asks("from=number&limit=number&order_by=text&dir=text&destination=text"),
    get(SYNAPSE, "/federation/destinations/{destination}"),
    get(SYNAPSE, "/federation/destinations/{destination}/rooms").asks("from=number&limit=number&dir=text"),
    post(SYNAPSE, "/federation/destinations/{destination}/reset_connection", EMPTY),
    // End-to-end keys.
    post(V3, "/keys/upload", KEYS),
    post(V3, "/keys/upload/{device_id}", KEYS),
    post(V3, "/keys/query", QUERY_KEYS),
    post(V3, "/keys/claim", CLAIM_KEYS),
    get(V3, "/keys/changes").asks("from=sync&to=sync"),
    post(SIGNING, "/keys/device_signing/upload", CROSS),
    post(SIGNING, "/keys/signatures/upload", SIGNATURES),
    put(V3, "/sendToDevice/{event_type}/{txn_id}", TO_DEVICE).weighs(4),
    get(SIGNING, "/room_keys/version"),
    post(SIGNING, "/room_keys/version", BACKUP),
    get(SIGNING, "/room_keys/version/{version}"),
    put(SIGNING, "/room_keys/version/{version}", BACKUP),
    delete(SIGNING, "/room_keys/version/{version}", Nothing),
    get(SIGNING, "/room_keys/keys").asks("version=number"),
    put(SIGNING, "/room_keys/keys", Json(&[BACKED_UP_ROOMS])).asks("version=number"),
    delete(SIGNING, "/room_keys/keys", Nothing).asks("version=number"),
    get(SIGNING, "/room_keys/keys/{room_id}").asks("version=number"),
    put(SIGNING, "/room_keys/keys/{room_id}", Json(&[BACKED_UP_ROOM])).asks("version=number"),
    delete(SIGNING, "/room_keys/keys/{room_id}", Nothing).asks("version=number"),
    get(SIGNING, "/room_keys/keys/{room_id}/{session_id}").asks("version=number"),
    put(SIGNING, "/room_keys/keys/{room_id}/{session_id}", Json(&[BACKED_UP])).asks("version=number"),
    delete(SIGNING, "/room_keys/keys/{room_id}/{session_id}", Nothing).asks("version=number"),
    put(DEHYDRATED, "", DRY),
    get(DEHYDRATED, ""),
    delete(DEHYDRATED, "", Nothing),
    get(DEHYDRATED, "/{device_id}/events").asks("from=text&limit=number"),
    post(DEHYDRATED, "/{device_id}/events", Json(&["{}", r#"{"next_batch":"d<number>"}"#])),
    get(THREADS, "/rooms/{room_id}/thread/{event_id}/subscription"),
    put(THREADS, "/rooms/{room_id}/thread/{event_id}/subscription", Json(&["{}", r#"{"automatic":"<event_id>"}"#])),
    delete(THREADS, "/rooms/{room_id}/thread/{event_id}/subscription", Nothing),
    get(BARE, "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions").asks("dir=dir&from=sync&to=sync&limit=number"),
    get(V1, "/thread_subscriptions").asks("dir=dir&from=sync&to=sync&limit=number"),
    // Account data, filters, push rules.
    delete(REMOVED, "/user/{user_id}/account_data/{kind}", Nothing),
    delete(REMOVED, "/user/{user_id}/rooms/{room_id}/account_data/{kind}", Nothing),
    get(V3, "/user/{user_id}/account_data/{kind}"),
    put(V3, "/user/{user_id}/account_data/{kind}", ACCOUNT_DATA).weighs(4),
    get(V3, "/user/{user_id}/rooms/{room_id}/account_data/{kind}"),
    put(V3, "/user/{user_id}/rooms/{room_id}/account_data/{kind}", ACCOUNT_DATA),
    get(V3, "/user/{user_id}/rooms/{room_id}/tags"),
    put(V3, "/user/{user_id}/rooms/{room_id}/tags/{tag}", Json(&[r#"{"order":"<<fraction>>"}"#])),
    delete(V3, "/user/{user_id}/rooms/{room_id}/tags/{tag}", Nothing),
    post(V3, "/user/{user_id}/filter", FILTER).weighs(4),
    get(V3, "/user/{user_id}/filter/{filter_id}"),
    get(V3, "/pushrules/"),
    get(V3, "/pushrules/global/"),
    get(V3, "/pushrules/global/{rule_kind}/{rule_id}"),
    put(V3, "/pushrules/global/{rule_kind}/{rule_id}", RULE).asks("after=rule_id&before=rule_id").weighs(6),
    delete(V3, "/pushrules/global/{rule_kind}/{rule_id}", Nothing),
    get(V3, "/pushrules/global/{rule_kind}/{rule_id}/enabled"),
    put(V3, "/pushrules/global/{rule_kind}/{rule_id}/enabled", Json(&[r#"{"enabled":"<<bool>>"}"#])),
    get(V3, "/pushrules/global/{rule_kind}/{rule_id}/actions"),
    put(V3, "/pushrules/global/{rule_kind}/{rule_id}/actions", RULE),
    get(V3, "/presence/{user_id}/status"),
    put(V3, "/presence/{user_id}/status", Json(&[r#"{"presence":"<presence>","status_msg":"<text>"}"#])),
    get(V3, "/pushers"),
    post(V3, "/pushers/set", PUSHER),
    get(V3, "/notifications").asks("from=page&limit=number&only=text"),
    get(BARE, "/_matrix/push/v1/notify").of(Anybody),
    post(BARE, "/_matrix/push/v1/notify", NOTIFY).of(Anybody),
    // Reading.
    post(SLIDING, "", LISTS).asks("pos=pos&timeout=wait&set_presence=presence").weighs(12),
    get(V3, "/sync").asks("since=sync&timeout=wait&filter=filter&full_state=bool&set_presence=presence&use_state_after=bool&org.matrix.msc4222.use_state_after=bool").weighs(16),
    get(V3, "/rooms/{room_id}/event/{event_id}").weighs(4),
    get(V3, "/rooms/{room_id}/messages").asks("from=page&to=page&dir=dir&limit=number&filter=filter_text").weighs(8),
    get(V3, "/rooms/{room_id}/context/{event_id}").asks("limit=number&filter=filter_text").weighs(4),
    get(V1, "/rooms/{room_id}/threads").asks("from=page&limit=number&include=include"),
    get(V1, "/rooms/{room_id}/relations/{event_id}").asks(EDITED),
    get(V1, "/rooms/{room_id}/relations/{event_id}/{rel_type}").asks(EDITED),
    get(V1, "/rooms/{room_id}/relations/{event_id}/{rel_type}/{event_type}").asks(EDITED),
    get(V3, "/rooms/{room_id}/state"),
    get(V3, "/rooms/{room_id}/state/{event_type}/").asks("format=format"),
    get(V3, "/rooms/{room_id}/state/{event_type}/{state_key}").asks("format=format"),
    get(V3, "/rooms/{room_id}/members").asks("at=page&membership=membership&not_membership=membership"),
    get(V3, "/rooms/{room_id}/joined_members"),
    get(V3, "/joined_rooms"),
    get(V3, "/events").asks("from=sync&timeout=wait&room_id=room_id").weighs(4),
    get(V3, "/events/{event_id}"),
    get(V3, "/initialSync").asks("limit=number&archived=bool"),
    get(V3, "/rooms/{room_id}/initialSync").asks("limit=number"),
    get(V1, "/rooms/{room_id}/hierarchy").asks("suggested_only=bool&max_depth=number&limit=number&from=page").weighs(4),
    get(SUMMARY, "/{room_id_or_alias}").of(Anybody).asks("via=server&via=server"),
    get(BARE, "/_matrix/client/unstable/im.nheko.summary/rooms/{room_id_or_alias}/summary").asks("via=server"),
    get(MUTUAL, "").asks("user_id=user_id&from=page"),
    get(V1, "/rooms/{room_id}/timestamp_to_event").asks("ts=ts&dir=dir").weighs(4),
    // Rooms.
    post(V3, "/createRoom", CREATE),
    post(V3, "/rooms/{room_id}/upgrade", Json(&[r#"{"new_version":"<version>"}"#])).weighs(1),
    get(V3, "/directory/room/{alias}").of(Anybody),
    put(V3, "/directory/room/{alias}", Json(&[r#"{"room_id":"<room_id>"}"#])),
    delete(V3, "/directory/room/{alias}", Nothing),
    get(V3, "/rooms/{room_id}/aliases"),
    get(V3, "/directory/list/room/{room_id}").of(Anybody),
    put(V3, "/directory/list/room/{room_id}", Json(&[r#"{"visibility":"public"}"#])),
    put(V3, "/directory/list/appservice/{network_id}/{room_id}", Json(&[r#"{"visibility":"public"}"#])),
    get(V3, "/publicRooms").of(Anybody).asks(PAGE),
    post(V3, "/publicRooms", SEARCH).asks("server=server"),
    post(V3, "/rooms/{room_id}/receipt/{receipt_type}/{event_id}", Json(&["{}", r#"{"thread_id":"main"}"#, r#"{"thread_id":"<event_id>"}"#])),
    post(V3, "/rooms/{room_id}/read_markers", Json(&[r#"{"m.fully_read":"<event_id>","m.read":"<event_id>","m.read.private":"<event_id>","com.beeper.allow_backward":"<<bool>>"}"#])),
    put(V3, "/rooms/{room_id}/typing/{user_id}", Json(&[r#"{"typing":"<<bool>>","timeout":"<<number>>"}"#])),
    post(V3, "/join/{room_id_or_alias}", REASON).asks("via=server&server_name=server").weighs(6),
    post(V3, "/knock/{room_id_or_alias}", REASON).asks("via=server&server_name=server"),
    post(V3, "/rooms/{room_id}/join", REASON).weighs(4),
    post(V3, "/rooms/{room_id}/leave", REASON),
    post(V3, "/rooms/{room_id}/forget", EMPTY),
    post(V3, "/rooms/{room_id}/invite", TARGET).weighs(4),
    post(V3, "/rooms/{room_id}/kick", TARGET),
    post(V3, "/rooms/{room_id}/ban", TARGET),
    post(V3, "/rooms/{room_id}/unban", TARGET),
    put(V3, "/rooms/{room_id}/send/{event_type}/{txn_id}", CONTENT).weighs(16).asks("org.matrix.msc4140.delay=delay&org.matrix.msc4354.sticky_duration_ms=number"),
    put(V3, "/rooms/{room_id}/state/{state_type}/", STATE).weighs(6),
    put(DELAYED_ROOMS, "/rooms/{room_id}/delayed_event/{event_type}/{txn_id}", Json(&[r#"{"delay_ms":"<<number>>","content":{"body":"<text>"}}"#, r#"{"delay_ms":"<<number>>","state_key":"<state_key>","content":{"name":"<text>"}}"#])),
    get(DELAYED, "/delayed_events"),
    get(DELAYED, "/delayed_events/{delay_id}"),
    post(DELAYED, "/delayed_events/{delay_id}", Json(&[r#"{"action":"restart"}"#, r#"{"action":"cancel"}"#, r#"{"action":"send"}"#])),
    post(DELAYED, "/delayed_events/{delay_id}/restart", Json(&["{}"])),
    post(DELAYED, "/delayed_events/{delay_id}/cancel", Json(&["{}"])),
    post(DELAYED, "/delayed_events/{delay_id}/send", Json(&["{}"])),
    put(V3, "/rooms/{room_id}/state/{state_type}/{state_key}", STATE).weighs(8),
    put(V3, "/rooms/{room_id}/redact/{event_id}/{txn_id}", Json(&[r#"{"reason":"<text>"}"#, r#"{"with_rel_types":["*","m.annotation","<text>"]}"#])),
    // Files.
    post(MEDIA, "/upload", Bytes).asks("filename=name"),
    post(BARE, "/_matrix/media/v1/create", EMPTY),
    put(BARE, "/_matrix/media/v3/upload/{server}/{media_id}", Bytes).asks("filename=name"),
    get(BARE, "/_matrix/client/v1/media/config"),
    get(MEDIA, "/config"),
    get(BARE, "/_matrix/client/v1/media/download/{server}/{media_id}").asks("timeout_ms=wait"),
    get(BARE, "/_matrix/client/v1/media/download/{server}/{media_id}/{name}").asks("timeout_ms=wait"),
    get(MEDIA, "/download/{server}/{media_id}").of(Anybody).asks("timeout_ms=wait&allow_remote=bool&allow_redirect=bool"),
    get(MEDIA, "/download/{server}/{media_id}/{name}").of(Anybody).asks("timeout_ms=wait"),
    get(BARE, "/_matrix/client/v1/media/preview_url").asks("url=url&ts=ts"),
    get(MEDIA, "/preview_url").asks("url=url&ts=ts"),
    get(BARE, "/_matrix/client/v1/media/thumbnail/{server}/{media_id}").asks(PICTURE),
    get(MEDIA, "/thumbnail/{server}/{media_id}").of(Anybody).asks(PICTURE),
    // Servers: what this server is.
    get(BARE, "/_matrix/key/v2/server").of(Anybody),
    get(BARE, "/_matrix/key/v2/query/{server}").of(Anybody).asks("minimum_valid_until_ts=ts"),
    post(BARE, "/_matrix/key/v2/query", Json(&[r#"{"server_keys":{"<server>":{"<server_key>":{"minimum_valid_until_ts":"<<ts>>"}},"<server>":{}}}"#]))
        .of(Anybody),
    get(BARE, "/.well-known/matrix/server").of(Anybody),
    get(FED, "/version").of(Anybody),
    // Servers: joining, leaving, inviting.
    get(FED, "/make_join/{room_id}/{their_user}").of(Server).asks("ver=version&ver=version&ver=version"),
    put(FED, "/send_join/{room_id}/{event_id}", Event("join")).of(Server),
    put(FED2, "/send_join/{room_id}/{event_id}", Event("join")).of(Server).asks("omit_members=bool").weighs(6),
    get(FED, "/make_leave/{room_id}/{their_user}").of(Server),
    put(FED, "/send_leave/{room_id}/{event_id}", Event("leave")).of(Server),
    put(FED2, "/send_leave/{room_id}/{event_id}", Event("leave")).of(Server),
    get(FED, "/make_knock/{room_id}/{their_user}").of(Server).asks("ver=version&ver=version"),
    put(FED, "/send_knock/{room_id}/{event_id}", Event("knock")).of(Server),
    put(FED, "/invite/{room_id}/{event_id}", Event("invite")).of(Server),
    put(FED2, "/invite/{room_id}/{event_id}", Invite).of(Server).weighs(6),
    // Servers: states and events.
    get(FED, "/state/{room_id}").of(Server).asks("event_id=event_id"),
    get(FED, "/state_ids/{room_id}").of(Server).asks("event_id=event_id"),
    get(FED, "/event_auth/{room_id}/{event_id}").of(Server),
    get(FED, "/event/{event_id}").of(Server),
    put(FED, "/send/{txn_id}", Transaction).of(Server).weighs(60),
    get(FED, "/backfill/{room_id}").of(Server).asks("v=event_id&v=event_id&limit=number"),
    post(FED, "/get_missing_events/{room_id}", Json(&[r#"{"earliest_events":["<event_id>"],"latest_events":["<event_id>","<event_id>"],"limit":"<<number>>","min_depth":"<<number>>"}"#]))
        .of(Server)
        .weighs(4),
    get(FED, "/hierarchy/{room_id}").of(Server).asks("suggested_only=bool"),
    get(FED, "/timestamp_to_event/{room_id}").of(Server).asks("ts=ts&dir=dir"),
    get(BARE, "/_matrix/federation/unstable/rooms/{room_id}/complexity").of(Server),
    // Servers: people and files.
    get(FED, "/query/profile").of(Server).asks("user_id=user_id&field=field"),
    get(FED, "/query/directory").of(Server).asks("room_alias=alias"),
    get(FED, "/query/{query_type}").of(Server).asks("user_id=user_id"),
    get(FED, "/publicRooms").of(Server).asks("limit=number&since=page&include_all_networks=bool&third_party_instance_id=text"),
    post(FED, "/publicRooms", SEARCH).of(Server),
    get(FED, "/user/devices/{user_id}").of(Server),
    post(FED, "/user/keys/query", Json(&[r#"{"device_keys":{"<user_id>":[],"<me>":["<device_id>"]}}"#])).of(Server),
    get(FED, "/openid/userinfo").of(Anybody).asks("access_token=text"),
    post(FED, "/rtc/livekit/get_token", Json(&[r#"{"room_id":"<room_id>","slot_id":"m.call#ROOM","member":{"id":"<text>","claimed_device_id":"<device_id>","claimed_user_id":"<their_user>"}}"#])).of(Server),
    post(FED, "/user/keys/claim", Json(&[r#"{"one_time_keys":{"<user_id>":{"<device_id>":"signed_curve25519"}}}"#])).of(Server),
    get(FED, "/media/download/{media_id}").of(Server).asks("timeout_ms=wait"),
    get(FED, "/media/thumbnail/{media_id}").of(Server).asks(PICTURE),
];

/// EDUs of every kind, and what they hold.
pub const EDUS: &[&str] = &[
    r#"{"edu_type":"m.typing","content":{"room_id":"<room_id>","user_id":"<their_user>","typing":true}}"#,
    r#"{"edu_type":"m.receipt","content":{"<room_id>":{"m.read":{"<their_user>":{"event_ids":["<event_id>"],"data":{"ts":"<<ts>>","thread_id":"main"}}}}}}"#,
    r#"{"edu_type":"m.presence","content":{"push":[{"user_id":"<their_user>","presence":"online","last_active_ago":"<<number>>","currently_active":true,"status_msg":"<text>"}]}}"#,
    r#"{"edu_type":"m.device_list_update","content":{"user_id":"<their_user>","device_id":"<device_id>","device_display_name":"<text>","stream_id":"<<number>>","prev_id":["<<number>>"],"deleted":false,"keys":{"user_id":"<their_user>","device_id":"<device_id>","algorithms":["m.olm.v1.curve25519-aes-sha2"],"keys":{"curve25519:<device_id>":"<base64>","ed25519:<device_id>":"<base64>"},"signatures":{"<their_user>":{"ed25519:<device_id>":"SIGN"}}}}}"#,
    r#"{"edu_type":"m.device_list_update","content":{"user_id":"<their_user>","device_id":"<device_id>","stream_id":"<<number>>","prev_id":[],"deleted":true}}"#,
    r#"{"edu_type":"m.direct_to_device","content":{"sender":"<their_user>","type":"<event_type>","message_id":"<txn_id>","messages":{"<user_id>":{"*":{"a":"<text>"},"<device_id>":{"b":1}},"<me>":{"*":{"a":"<text>"}}}}}"#,
    r#"{"edu_type":"m.signing_key_update","content":{"user_id":"<their_user>","master_key":{"user_id":"<their_user>","usage":["master"],"keys":{"ed25519:<base64>":"<base64>"}},"self_signing_key":{"user_id":"<their_user>","usage":["self_signing"],"keys":{"ed25519:<base64>":"<base64>"},"signatures":{"<their_user>":{"ed25519:<base64>":"SIGN"}}}}}"#,
    r#"{"edu_type":"org.example.unknown","content":{"a":1}}"#,
];

/// Contents of ordinary events.
pub fn contents() -> &'static [&'static str] {
    if let Json(list) = CONTENT { list } else { &[] }
}

/// The contents that fit a type of state events, or all.
pub fn state_contents(kind: &str) -> &'static [&'static str] {
    let Json(all) = STATE else { return &[] };
    match kind {
        "m.room.member" => &all[..3],
        "m.room.power_levels" => &all[3..4],
        "m.room.join_rules" => &all[4..5],
        "m.room.history_visibility" => &all[5..6],
        "m.room.guest_access" => &all[6..7],
        "m.room.name" | "m.room.topic" | "m.room.avatar" => &all[7..8],
        "m.room.canonical_alias" => &all[8..9],
        "m.room.pinned_events" => &all[9..10],
        "m.room.encryption" => &all[10..11],
        "m.room.server_acl" => &all[11..12],
        "m.room.tombstone" => &all[12..13],
        "m.space.child" | "m.space.parent" => &all[13..14],
        "m.room.create" => &all[14..15],
        "m.room.third_party_invite" => &all[15..16],
        _ => all,
    }
}

/// The pairs of a query.
pub fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter_map(|pair| pair.split_once('='))
}
