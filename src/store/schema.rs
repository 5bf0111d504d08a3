//! The catalogue: every table, its key and value, and the part that owns it.
//!
//! All tables are bytes to bytes; keys keep their order (`key_encoding.rs`). A table is written by its owner only,
//! through the verbs of a file in `store/tables/`. Each table whose rows may be lost in a power cut says so here.

use super::shape::Shape;

/// One table. `name` is its name in the file and never changes; `owner` is the part that writes it.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    pub name: &'static str,
    pub owner: &'static str,
    /// key → value, and its peculiarities
    pub doc: &'static str,
    /// The lengths of keys and values, where all are alike.
    pub shape: Shape,
}

const fn table(name: &'static str, owner: &'static str, doc: &'static str) -> Table {
    Table { name, owner, doc, shape: Shape::Free }
}

impl Table {
    const fn shaped(self, shape: Shape) -> Table {
        Table { shape, ..self }
    }

    /// The lengths of its keys and of its values, each where all are alike.
    pub fn lengths(&self) -> (Option<usize>, Option<usize>) {
        self.shape.lengths()
    }
}

// ---- store: the engine itself
pub const META: Table = table(
    "meta",
    "store",
    "name → value: format, hash_key, journal, time, counters (the position and each next number), lost",
);

// ---- room: state trees and the numbers of state keys (tables/room/state_tree)
pub const STATE_NODE: Table = table("state_node", "room", "u32 → node of a state tree (tables/room/state_tree)");
pub const STATE_NAME: Table = table("state_name", "room", "keyed hash64(node) → u32 in state_node");
pub const STATE_SWEEP: Table = table("state_sweep", "room", "of a sweep of state_node: its limit; u32 → used again");
pub const STATE_KEY: Table =
    table("state_key", "room", "keyed hash128(type, state key) → StateKeyNum; a member's follows from their UserNum");

// ---- user: accounts, devices, keys, account data (tables/user)
pub const USER_ID: Table = table("user_id", "user", "UserNum → user id").shaped(Shape::Key4);
pub const USER_NUM: Table = table("user_num", "user", "keyed hash64(user id), UserNum → nothing").shaped(Shape::Key12);
pub const USER_META: Table = table("user_meta", "user", "name → JSON: the one-time setup code");
pub const ACCOUNT: Table = table("account", "user", "UserNum → JSON Account; local users only");
pub const PASSWORD_LINK: Table =
    table("password_link", "user", "SHA-256 of a link's code → JSON: whose password it sets, until when");
pub const REGISTRATION_TOKEN: Table =
    table("registration_token", "user", "token → JSON: for how many accounts, until when, how many there are");
pub const GUEST: Table = table("guest", "user", "UserNum → nothing: guest accounts").shaped(Shape::Key4);
pub const NEWCOMER: Table =
    table("newcomer", "user", "UserNum → nothing: accounts to be joined to the rooms of new people")
        .shaped(Shape::Key4);
pub const ERASED: Table =
    table("erased", "user", "UserNum → nothing: closed accounts that asked for erasure").shaped(Shape::Key4);
pub const NOTICE_ROOM: Table =
    table("notice_room", "user", "local UserNum → RoomNum of what the server tells that user, UserNum who made it")
        .shaped(Shape::Key4);
pub const PROFILE: Table = table("profile", "user", "UserNum, field name → JSON; local users only");
pub const PROFILE_CHANGE: Table =
    table("profile_change", "user", "Position → local UserNum whose profile changed; the latest of each");
pub const PROFILE_FIELD_CHANGE: Table = table(
    "profile_field_change",
    "user",
    "local UserNum, field name → Position of its latest change, u8 whether removed; no name → that in profile_change",
);
pub const PRESENCE: Table = table("presence", "user", "local UserNum → status message; only who has one");
pub const TOKEN: Table = table(
    "token",
    "user",
    "SHA-256 of an access token → UserNum, device id; of a refreshed one 0, u64 when it ends, u8 whether it is unused",
);
pub const REFRESH: Table = table("refresh", "user", "SHA-256 of a refresh token → UserNum, device id");
pub const DEVICE: Table = table("device", "user", "UserNum, device id, 0 → JSON Device; last-seen may be lost");
pub const DEHYDRATED: Table =
    table("dehydrated", "user", "UserNum → JSON: which device is dehydrated, and what it is made of again with");
pub const DEVICE_CHANGE: Table =
    table("device_change", "user", "Position → UserNum whose devices changed; the latest of each");
pub const DEVICE_CHANGE_LATEST: Table =
    table("device_change_latest", "user", "UserNum → its Position in device_change");
pub const DEVICE_KEYS: Table = table("device_keys", "user", "UserNum, device id, 0 → JSON identity keys");
pub const ONE_TIME_KEY: Table = table("one_time_key", "user", "UserNum, device id, 0, algorithm, 0, u64 → JSON key");
pub const FALLBACK_KEY: Table = table("fallback_key", "user", "UserNum, device id, 0, algorithm → JSON key, used");
pub const CROSS_KEY: Table = table("cross_key", "user", "UserNum, u8 purpose → JSON cross-signing key");
pub const KEY_SIGNATURE: Table =
    table("key_signature", "user", "owner UserNum, device id or key, 0, signer UserNum, key id → signature");
pub const TO_DEVICE: Table = table("to_device", "user", "UserNum, device id, 0, Position → JSON message");
pub const TO_DEVICE_COUNT: Table =
    table("to_device_count", "user", "UserNum, device id, 0 → counts of a queue from before to_device_share was kept");
pub const TO_DEVICE_SHARE: Table =
    table("to_device_share", "user", "UserNum, device id, 0 → what waits from each circle of senders: three u64");
pub const TO_DEVICE_FROM: Table = table(
    "to_device_from",
    "user",
    "UserNum, device id, 0, u8 circle, Position → of that message: hash32 of who and of whom there, u32 what it weighs",
);
pub const TO_DEVICE_TXN: Table = table("to_device_txn", "user", "UserNum, device id, 0 → hash128 of recent txn ids");
pub const TO_DEVICE_KNOWN: Table = table(
    "to_device_known",
    "user",
    "u8 whether known here, hash64(server) → Position when last noted, hash64 of its last message ids",
);
pub const REMOTE_LIST: Table = table(
    "remote_list",
    "user",
    "remote UserNum → of the kept device list: whether stale, stream id, Position, day last used, weight, hash32(server)",
);
pub const REMOTE_KEY: Table =
    table("remote_key", "user", "remote UserNum, u8 kind, device id → JSON key as its server told it");
pub const REMOTE_LIST_USED: Table =
    table("remote_list_used", "user", "u32 day last used, remote UserNum → hash32(server), u32 weight");
pub const REMOTE_LIST_SHARE: Table =
    table("remote_list_share", "user", "hash32(server), or nothing for all → u64 weight of the kept device lists");
pub const ACCOUNT_DATA: Table = table("account_data", "user", "UserNum, RoomNum or 0, type → Position, JSON");
pub const ACCOUNT_DATA_LOG: Table =
    table("account_data_log", "user", "UserNum, Position → RoomNum, type; the latest of each");
pub const BACKUP_USER: Table = table(
    "backup_user",
    "user",
    "UserNum → u64 last version given; u64 keys and u64 bytes of all versions, and of what is to be swept",
)
.shaped(Shape::Key4);
pub const BACKUP_VERSION: Table =
    table("backup_version", "user", "UserNum, u32 version → u64 generation, u64 keys and u64 bytes of it, u64 etag");
pub const BACKUP_INFO: Table =
    table("backup_info", "user", "UserNum, u32 version → JSON of its algorithm and auth_data");
pub const BACKUP_KEY: Table = table(
    "backup_key",
    "user",
    "UserNum, u32 version, u32 generation, room id, 0, session id → u8 is verified, u64 first message, u64 forwards, JSON",
);
pub const BACKUP_GONE: Table =
    table("backup_gone", "user", "UserNum, u32 version, u32 generation → nothing: keys that are to be swept");
pub const PUSHER: Table = table(
    "pusher",
    "user",
    "UserNum, keyed hash128(app id, pushkey) → JSON Pusher: what an app wants told to a gateway",
);
pub const PUSHER_KEY: Table =
    table("pusher_key", "user", "keyed hash128(app id, pushkey), UserNum → nothing: the users with such a pusher");
pub const PUSHER_STATUS: Table = table(
    "pusher_status",
    "user",
    "as pusher → how far it was told, the last badge; since when its gateway fails, how often, when to try again",
);
pub const PUSHER_RETRY: Table =
    table("pusher_retry", "user", "u64 when to try again, key of pusher → nothing; only while its gateway fails");
pub const REPORT: Table = table("report", "user", "u32 → JSON Report: what users reported to the administrator");
pub const REPORT_BY: Table = table("report_by", "user", "UserNum of who reported, u32 → nothing");
pub const REPORT_OWED: Table =
    table("report_owed", "user", "u32 of a report that a bot is to be told of → u8 how often it would not have it");
pub const FILTER: Table = table("filter", "user", "UserNum, u32 → JSON sync filter");
pub const SLIDING_CONNECTION: Table =
    table("sliding_connection", "user", "UserNum, device id, 0, its Position → conn_id, its last two answers");
pub const SLIDING_ROOM: Table =
    table("sliding_room", "user", "UserNum, device id, 0, connection, RoomNum → what it was told, and by which answer");
pub const SLIDING_STATE: Table =
    table("sliding_state", "user", "UserNum, device id, 0, connection, hash64 → the required state with that hash");

// ---- room: counts for the administrators (tables/room/day.rs)
pub const DAY: Table = table("day", "room", "u32 days since 1970 → u64 messages, u64 bytes written");

// ---- media (tables/media.rs); the files lie beside the database
pub const MEDIA: Table = table("media", "media", "server name, 0, media id → JSON Media");
pub const MEDIA_FILE: Table = table("media_file", "media", "SHA-256 in hex → u64 media ids that refer to it");
pub const MEDIA_USED: Table =
    table("media_used", "media", "UserNum, `all`, `local` or `remote` → u64 bytes; `noted` → u64 day");
pub const MEDIA_IDLE: Table =
    table("media_idle", "media", "day of the last use, server name, 0, media id → nothing; of other servers' files");
pub const MEDIA_GONE: Table =
    table("media_gone", "media", "SHA-256 in hex → nothing: its file, if there is one, is to be removed");
pub const MEDIA_PROMISED: Table =
    table("media_promised", "media", "media id without its file yet → UserNum it was given to, u64 ms until when");
pub const MEDIA_MARK: Table = table(
    "media_mark",
    "media",
    "SHA-256 in hex, or server name, 0, media id → JSON Mark: who had it withheld, whether it is safe from that or given out again",
);
pub const MEDIA_CLEAN: Table = table(
    "media_clean",
    "media",
    "SHA-256 in hex → u64 ms when a scanner first called the file clean, u64 ms when last, u64 of its database then",
);
pub const THUMBNAIL: Table =
    table("thumbnail", "media", "SHA-256 in hex, shape → JSON Thumbnail; `all` → u64 bytes of all of them");
pub const PREVIEW: Table =
    table("preview", "media", "keyed hash128(URL) → JSON Preview of a link; `count` → u64 how many there are");
pub const PREVIEW_END: Table = table("preview_end", "media", "u64 ms when it is over, key of preview → nothing");

// ---- backup (tables/backups.rs)
pub const BACKUP_NOTED: Table =
    table("backup_noted", "backup", "`noted` → JSON: when backups were made, and that this server was restored");

// ---- remote and deliver: other servers
pub const SERVER_STANDING: Table =
    table("server_standing", "remote", "server name → failures in a row, when to ask again; only while it fails");
pub const SERVER_CURSOR: Table = table(
    "server_cursor",
    "deliver",
    "server name → position in the outbox, since when; only while it lags. \"\" → the reader",
);
pub const SERVICE: Table = table(
    "service",
    "deliver",
    "id of an application service → JSON Status: how far it was told, and its transaction under way",
);
pub const SERVER_KEY: Table =
    table("server_key", "remote", "server name NUL key id → valid until, whether retired, the 32 bytes of the key");
pub const SERVER_KEY_ANSWER: Table =
    table("server_key_answer", "remote", "server name → when fetched, its answer about its keys as signed");
// ---- room: events (tables/room: event.rs, event_row.rs, body/)
pub const EVENT: Table =
    table("event", "room", "EventNum → an event's columns; numbers are topological in a room").shaped(Shape::Key4);
pub const EVENT_BODY: Table =
    table("event_body", "room", "BodyNum → how it is packed, the packed event").shaped(Shape::Key4);
pub const EVENT_ID: Table =
    table("event_id", "room", "keyed hash48(event id), EventNum → nothing; but for recent ones").shaped(Shape::Key10);
pub const EVENT_ID_RECENT: Table =
    table("event_id_recent", "room", "as event_id, of at most 8,192 new events").shaped(Shape::Key10);
pub const REDACTION_PENDING: Table =
    table("redaction_pending", "room", "keyed hash128(RoomNum, event id we lack) → EventNums of its redactions");
pub const MASS_REDACTION: Table = table(
    "mass_redaction",
    "room",
    "RoomNum, EventNum of a kick or ban → UserNum whose events it redacts, place in the timeline up to which that is left",
);
pub const USER_REDACTION: Table = table(
    "user_redaction",
    "room",
    "id → JSON: what an administrator asked to be redacted of a user, and how far that is",
);
pub const FOLLOWED: Table = table(
    "followed",
    "room",
    "keyed hash128(RoomNum, id of an event without its place here that others follow) → nothing",
);

// ---- room: rooms and their order (tables/room: mod.rs, directory.rs, timeline.rs)
pub const ROOM: Table = table("room", "room", "RoomNum → id, version, extremities, present state, counts");
pub const ROOM_NUM: Table = table("room_num", "room", "keyed hash128(room id) → RoomNum");
pub const ROOM_PUBLIC: Table =
    table("room_public", "room", "inverted joined count, RoomNum → nothing: the public list");
pub const NETWORK_ROOM: Table = table(
    "network_room",
    "room",
    "keyed hash128(service id, |, network id), RoomNum → nothing: the public lists of application services",
);
pub const ALIAS: Table = table("alias", "room", "alias → RoomNum, creator");
pub const ROOM_ALIAS: Table = table("room_alias", "room", "RoomNum, alias → nothing");
pub const TIMELINE: Table = table("timeline", "room", "RoomNum, order → EventNum; order is the position it came with");
pub const STATE_LOG: Table = table("state_log", "room", "RoomNum, position → root of the state since then");

// ---- room: members and the present state (tables/room: member.rs, current_state.rs, user_room.rs)
pub const CURRENT_STATE: Table =
    table("current_state", "room", "RoomNum, type code, StateKeyNum → EventNum").shaped(Shape::Key9Value4);
pub const MEMBER: Table = table("member", "room", "RoomNum, membership, UserNum → EventNum").shaped(Shape::Key9Value4);
pub const ROOM_SERVER: Table = table("room_server", "room", "RoomNum, server name → joined users, since position");
pub const ROOM_LOCAL: Table = table("room_local", "room", "RoomNum, local UserNum → membership");
pub const USER_ROOM: Table = table("user_room", "room", "local UserNum, RoomNum → membership, since, forgotten");
pub const GUESTS_NOTED: Table =
    table("guests_noted", "room", "RoomNum → nothing: a room whose guest access changed, to be looked at for guests")
        .shaped(Shape::Key4);
pub const STRIPPED: Table =
    table("stripped", "room", "local UserNum, RoomNum → stripped state of an invite from outside");

// ---- room: data attached to events (tables/room: unread.rs, relation.rs, receipt.rs, txn.rs)
pub const UNREAD: Table =
    table("unread", "room", "local UserNum, or 0 for what counts for many, RoomNum → unread counts and their places");
pub const RELATION: Table = table("relation", "room", "RoomNum, target EventNum, relation type, order → EventNum");
pub const RELATION_PENDING: Table =
    table("relation_pending", "room", "keyed hash128(RoomNum, event id we lack) → relation type, EventNum of each");
pub const RECEIPT: Table = table("receipt", "room", "RoomNum, UserNum, kind, thread → position, time, event id");
pub const RECEIPT_LOG: Table = table("receipt_log", "room", "RoomNum, position → the receipt set then");
pub const THREAD_SUBSCRIPTION: Table = table(
    "thread_subscription",
    "room",
    "local UserNum, RoomNum, EventNum of the root → u8 status, Position of its change; UserNum → u32 how many",
);
pub const THREAD_SUBSCRIPTION_LOG: Table =
    table("thread_subscription_log", "room", "local UserNum, Position → RoomNum, EventNum; the latest change of each");
pub const TXN: Table =
    table("txn", "room", "UserNum, hash128(device, transaction id) → EventNum; of format 3, empty after a day");
pub const TXN_ID: Table = table(
    "txn_id",
    "room",
    "UserNum, hash32(device), the transaction id's beginning, hash64 of it all → EventNum; kept for a day",
);
pub const TXN_EVENT: Table = table("txn_event", "room", "EventNum → expiry, user, device, transaction id");
pub const TOLD_ROOM: Table = table(
    "told_room",
    "room",
    "keyed hash128(room id) → u64 when, JSON of what other servers told of a room elsewhere, or nothing; kept for an hour",
);
pub const TOLD_ROOM_AGE: Table = table("told_room_age", "room", "u64 when, key of told_room → u32 its length");

pub const REDACTED: Table = table(
    "redacted",
    "room",
    "EventNum → u64 when it was redacted, its JSON before; 0 → u64 bytes of them all; kept as the settings say",
);
pub const REDACTED_AGE: Table = table("redacted_age", "room", "u64 when, EventNum → nothing");
pub const STICKY: Table = table(
    "sticky",
    "room",
    "RoomNum, order of a sticky event → u64 until when, EventNum, UserNum; removed some time after",
);
pub const DELAYED: Table = table("delayed", "room", "id of a delayed event → JSON Delayed");
pub const DELAYED_DUE: Table = table(
    "delayed_due",
    "room",
    "u64 when it is to be sent, or forgotten when it is over; id of a delayed event → nothing",
);
pub const DELAYED_USER: Table = table(
    "delayed_user",
    "room",
    "local UserNum, id of a delayed event → u64 when it ended, or 0; UserNum, and nothing for all → u64 how many, u64 bytes",
);

// ---- room: the words of events (tables/room/search)
pub const SEARCH: Table = table(
    "search",
    "room",
    "segment, hash32(word), RoomNum, place of the first event from the newest on → events by word and room, packed",
);
pub const SEARCH_STATUS: Table =
    table("search_status", "room", "nothing → which events are in the index, its segments, the merge under way");
pub const SEARCH_LATE: Table =
    table("search_late", "room", "EventNum → nothing: got its place in a timeline behind the index");
pub const SEARCH_GONE: Table =
    table("search_gone", "room", "RoomNum, place of a redacted event → hash32 of each word that is to be taken out");
pub const SEARCH_STALE: Table = table(
    "search_stale",
    "room",
    "RoomNum → u64 place of the newest event that was removed, u64 how often: words of removed events are to be taken out",
);

// ---- room: joins under way (tables/room: join.rs, staged.rs)
pub const JOIN: Table = table("join", "room", "join number → JSON Journal of a join under way");
pub const STAGED: Table = table("staged", "room", "join number, batch → what the batch stored; gone after the join");

pub const PURGE: Table =
    table("purge", "room", "RoomNum → JSON Purge: a room that is being removed for good").shaped(Shape::Key4);

pub const POLICY_LIST: Table = table(
    "policy_list",
    "room",
    "room id of a policy list that is followed → u8 whether its rules are all there, its name in the settings",
);
pub const POLICY_RULE: Table = table(
    "policy_rule",
    "room",
    "RoomNum of a list, u8 subject, u8 form, what it names, 0, StateKeyNum → EventNum, u8 whether a takedown, reason",
);
pub const POLICY_HIT: Table = table(
    "policy_hit",
    "room",
    "u8 subject, what a rule names → u64 how often it kept somebody out, u64 when last, whom",
);

pub const ROOM_ALLOWED: Table =
    table("room_allowed", "room", "room id → JSON: a large room an admin allowed, or somebody asked for");

pub const ROOM_BLOCKED: Table =
    table("room_blocked", "room", "room id → JSON: who blocked it, and when; nobody here may come into it");
pub const ROOM_TASK: Table = table(
    "room_task",
    "room",
    "u64 when it began, u64 of chance → JSON Task: a room that is closed, history that goes",
);

// ---- the outbound log: any part posts, deliver takes (tables/server/outbox.rs)
pub const OUTBOX: Table =
    table("outbox", "deliver", "position → what other servers must hear of, and what followers read");
pub const FOLLOWER: Table =
    table("follower", "deliver", "name → position in the outbox; one for each reader that is no server");

/// Every table above, for the sweep, the statistics and the tests. A table is added here when it is made.
pub const TABLES: &[&Table] = &[
    &META,
    &STATE_NODE,
    &DAY,
    &STATE_NAME,
    &STATE_SWEEP,
    &STATE_KEY,
    &USER_ID,
    &USER_NUM,
    &USER_META,
    &ACCOUNT,
    &PASSWORD_LINK,
    &REGISTRATION_TOKEN,
    &GUEST,
    &NEWCOMER,
    &ERASED,
    &NOTICE_ROOM,
    &PROFILE,
    &PROFILE_CHANGE,
    &PROFILE_FIELD_CHANGE,
    &PRESENCE,
    &TOKEN,
    &REFRESH,
    &DEVICE,
    &DEHYDRATED,
    &DEVICE_CHANGE,
    &DEVICE_CHANGE_LATEST,
    &DEVICE_KEYS,
    &ONE_TIME_KEY,
    &FALLBACK_KEY,
    &CROSS_KEY,
    &KEY_SIGNATURE,
    &TO_DEVICE,
    &TO_DEVICE_COUNT,
    &TO_DEVICE_SHARE,
    &TO_DEVICE_FROM,
    &TO_DEVICE_TXN,
    &TO_DEVICE_KNOWN,
    &REMOTE_LIST,
    &REMOTE_KEY,
    &REMOTE_LIST_USED,
    &REMOTE_LIST_SHARE,
    &ACCOUNT_DATA,
    &ACCOUNT_DATA_LOG,
    &BACKUP_USER,
    &BACKUP_VERSION,
    &BACKUP_INFO,
    &BACKUP_KEY,
    &BACKUP_GONE,
    &REPORT,
    &REPORT_BY,
    &REPORT_OWED,
    &FILTER,
    &PUSHER,
    &PUSHER_KEY,
    &PUSHER_STATUS,
    &PUSHER_RETRY,
    &SLIDING_CONNECTION,
    &SLIDING_ROOM,
    &SLIDING_STATE,
    &MEDIA,
    &MEDIA_FILE,
    &MEDIA_USED,
    &MEDIA_IDLE,
    &MEDIA_GONE,
    &MEDIA_PROMISED,
    &MEDIA_MARK,
    &MEDIA_CLEAN,
    &THUMBNAIL,
    &PREVIEW,
    &PREVIEW_END,
    &BACKUP_NOTED,
    &SERVER_STANDING,
    &SERVER_CURSOR,
    &SERVICE,
    &SERVER_KEY,
    &SERVER_KEY_ANSWER,
    &EVENT,
    &EVENT_BODY,
    &EVENT_ID,
    &EVENT_ID_RECENT,
    &REDACTION_PENDING,
    &MASS_REDACTION,
    &USER_REDACTION,
    &FOLLOWED,
    &ROOM,
    &ROOM_NUM,
    &ROOM_PUBLIC,
    &NETWORK_ROOM,
    &ALIAS,
    &ROOM_ALIAS,
    &TIMELINE,
    &STATE_LOG,
    &CURRENT_STATE,
    &MEMBER,
    &ROOM_SERVER,
    &ROOM_LOCAL,
    &USER_ROOM,
    &GUESTS_NOTED,
    &STRIPPED,
    &UNREAD,
    &RELATION,
    &RELATION_PENDING,
    &RECEIPT,
    &RECEIPT_LOG,
    &THREAD_SUBSCRIPTION,
    &THREAD_SUBSCRIPTION_LOG,
    &TXN,
    &TXN_ID,
    &TXN_EVENT,
    &STICKY,
    &DELAYED,
    &DELAYED_DUE,
    &DELAYED_USER,
    &TOLD_ROOM,
    &TOLD_ROOM_AGE,
    &REDACTED,
    &REDACTED_AGE,
    &SEARCH,
    &SEARCH_STATUS,
    &SEARCH_LATE,
    &SEARCH_GONE,
    &SEARCH_STALE,
    &JOIN,
    &STAGED,
    &PURGE,
    &ROOM_ALLOWED,
    &POLICY_LIST,
    &POLICY_RULE,
    &POLICY_HIT,
    &ROOM_BLOCKED,
    &ROOM_TASK,
    &OUTBOX,
    &FOLLOWER,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = TABLES.iter().map(|table| table.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLES.len());
    }

    #[test]
    fn every_table_is_listed() {
        let made = include_str!("schema.rs")
            .lines()
            .filter(|line| line.starts_with("pub const") && line.contains(": Table ="));
        assert_eq!(made.count(), TABLES.len());
    }
}
