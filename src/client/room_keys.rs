//! Key backups: GET and POST room_keys/version, GET, PUT and DELETE room_keys/version/{version}, and PUT, GET and DELETE
//! room_keys/keys for all keys, those of a room, and one key.
//!
//! An app puts a hundred or two hundred keys at a time, 150 or 300 KB of them. They are read in place, checked all, and then
//! stored a batch at a time. An answer with all keys is written from a cursor.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{Client, Error, auth, rates};
use crate::base::{self, ChunkError, ChunkWriter, blocking, comma};
use crate::http::{BadBody, ErrorResponse, Request, Response, StatusCode};
use crate::matrix::json::{self, partial};
use crate::user::{
    self, BACKUP_DEPTH_MAX, Backup, BackupKept, BackupKey, BackupKeys, BackupMerit, BackupScope, can_be_backed_up,
    check_session_data,
};

/// The longest body with keys, where the profile allows as much: six times what apps send. All of it is read for one key.
const BODY_BYTES_MAX: u64 = 1 << 20;
/// How much deeper than `session_data` a body may be nested: rooms, a room, its sessions, a session, and one for the whole.
const BODY_DEPTH_MAX: u32 = BACKUP_DEPTH_MAX + 5;
/// A batch of keys is full at this size: one write of the database, which the journal takes whole.
const BATCH_BYTES: usize = 64 << 10;
/// What a key costs in a batch beside its texts.
const KEY_BYTES: usize = 192;
/// A batch, its rows as they are written, and the longest key beyond it.
const WORK_BYTES: u64 = 2 * BATCH_BYTES as u64 + 32 * 1024;
/// A piece of an answer is full at this size; one more key may extend beyond it.
const PIECE_BYTES: usize = 16 << 10;
/// A piece in a buffer that doubles, the longest key twice, and the cursor.
const ANSWER_BYTES: u64 = 96 << 10;
/// The longest key, as it is read and as it is answered.
const KEY_ANSWER_BYTES: u64 = 40 << 10;
/// The longest text of a name that can be one of a room, a session or a member we know: 255 bytes, each as `\u0000`. Longer
/// names are read past and never copied.
const NAME_TEXT_MAX: usize = 6 * 255 + 2;
/// The longest text of a number or a truth: 2^64 has 20 digits.
const WORD_TEXT_MAX: usize = 24;

#[derive(Deserialize)]
struct Info {
    algorithm: String,
    auth_data: Box<RawValue>,
    #[serde(default)]
    version: Option<String>,
}

/// GET /_matrix/client/v3/room_keys/version: the newest backup.
///
/// 404 `M_NOT_FOUND` when the user has none.
pub async fn current(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    Ok(shown(client.users.backup(requester.user_num, None).await?))
}

/// POST /_matrix/client/v3/room_keys/version
///
/// 400 `M_BAD_JSON` when `algorithm` or `auth_data` is missing or of another kind; 413 `M_TOO_LARGE` when they are too long.
pub async fn create(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let info: Info = request.json().await?;
    let version = client.users.create_backup(requester.user_num, info.algorithm, info.auth_data).await?;
    Ok(Response::json(&serde_json::json!({ "version": version.to_string() })))
}

/// GET /_matrix/client/v3/room_keys/version/{version}
///
/// 404 `M_NOT_FOUND` when there is no such backup.
pub async fn version(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    Ok(shown(client.users.backup(requester.user_num, Some(request.param("version"))).await?))
}

/// PUT /_matrix/client/v3/room_keys/version/{version}
///
/// 404 `M_NOT_FOUND` when there is no such backup; 400 `M_INVALID_PARAM` when the algorithm is not that of the backup, or the
/// body names another version; 400 `M_BAD_JSON` when `algorithm` or `auth_data` is missing or of another kind; 413
/// `M_TOO_LARGE` when they are too long.
pub async fn update(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let info: Info = request.json().await?;
    let version = request.param("version");
    if info.version.is_some_and(|named| named != version) {
        return Err(ErrorResponse::invalid_param("The version in the body is not that of the path").into());
    }
    client.users.update_backup(requester.user_num, version, info.algorithm, info.auth_data).await?;
    Ok(Response::ok())
}

/// DELETE /_matrix/client/v3/room_keys/version/{version}
///
/// 404 `M_NOT_FOUND` when there never was such a backup.
pub async fn delete(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    client.users.delete_backup(requester.user_num, request.param("version")).await?;
    Ok(Response::ok())
}

/// PUT /_matrix/client/v3/room_keys/keys, and the same for a room or one session. Of two copies of a key the better one is
/// kept. A key whose room id or session id is too long to be one is read past: others choose those, and apps would send the
/// same body again without end.
///
/// 400 `M_MISSING_PARAM` without `version`; 404 `M_NOT_FOUND` when there is no such backup; 403 `M_WRONG_ROOM_KEYS_VERSION`
/// with `current_version` when it is not the newest; 400 `M_BAD_JSON` when a key lacks a member or is nested too deeply; 413
/// `M_TOO_LARGE` when the body or a key is too long, or the user has too many keys; 507 `M_RESOURCE_LIMIT_EXCEEDED` when the
/// disk is nearly full. Nothing is stored of a body with a key that is refused; of one that meets another limit, or whose
/// version is deleted meanwhile, the first batches are.
pub async fn put_keys(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::BACKUP, requester.user_id.as_str())?;
    let (version, scope) = (wanted(&request)?, scope(&request));
    // Taken before the body: two bodies that fill the account would wait for each other.
    let work = request.pay(WORK_BYTES).await?;
    let body = request.bytes(client.budget.size("request_body_max").min(BODY_BYTES_MAX)).await?;
    let paid = (work, request.take_grant());
    let (users, upload) = (client.users.clone(), Upload { body, scope });
    // The thread is kept while batches are written. What the account pays for an upload leaves most threads to others.
    let kept = blocking(move || {
        let _paid = paid;
        upload.store(&mut |keys| users.put_backed_up(requester.user_num, &version, keys))
    });
    Ok(counted(kept.await?))
}

/// GET /_matrix/client/v3/room_keys/keys, and the same for a room or one session.
///
/// 400 `M_MISSING_PARAM` without `version`; 404 `M_NOT_FOUND` when there is no such backup, or it has no such session.
pub async fn keys(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let (user, version) = (requester.user_num, wanted(&request)?);
    let scope = scope(&request);
    let is_one = matches!(scope, BackupScope::Session(..));
    let bytes = if is_one { KEY_ANSWER_BYTES } else { ANSWER_BYTES };
    let grant = client.budget.account("response_bodies").take(bytes).await?;
    match scope {
        BackupScope::Session(room, session) => {
            let (merit, data) = client.users.backed_up_key(user, &version, room, session).await?;
            let mut json = Vec::with_capacity(data.len() + 128);
            write_key(&mut json, &merit, &data);
            Ok(Response::charged(StatusCode::OK, "application/json", json, grant))
        }
        scope @ BackupScope::Room(_) => {
            let keys = client.users.backed_up(user, &version, scope).await?;
            Ok(Response::stream(grant, base::written(move |pen| write_room(pen, keys))))
        }
        scope @ BackupScope::All => {
            let keys = client.users.backed_up(user, &version, scope).await?;
            Ok(Response::stream(grant, base::written(move |pen| write_rooms(pen, keys))))
        }
    }
}

/// DELETE /_matrix/client/v3/room_keys/keys, and the same for a room or one session. What is not there is no error.
///
/// 400 `M_MISSING_PARAM` without `version`; 404 `M_NOT_FOUND` when there is no such backup.
pub async fn delete_keys(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::BACKUP, requester.user_id.as_str())?;
    let kept = client.users.delete_backed_up(requester.user_num, &wanted(&request)?, scope(&request)).await?;
    Ok(counted(kept))
}

fn counted(kept: BackupKept) -> Response {
    Response::json(&serde_json::json!({ "count": kept.count, "etag": kept.etag.to_string() }))
}

fn shown(backup: Backup) -> Response {
    #[derive(serde::Serialize)]
    struct Shown {
        algorithm: String,
        auth_data: Box<RawValue>,
        count: u64,
        etag: String,
        version: String,
    }
    let Backup { version, algorithm, auth_data, kept } = backup;
    let (etag, version) = (kept.etag.to_string(), version.to_string());
    Response::json(&Shown { algorithm, auth_data, count: kept.count, etag, version })
}

/// The version in the query.
fn wanted(request: &Request) -> Result<String, ErrorResponse> {
    request.query("version").ok_or_else(|| ErrorResponse::missing_param("version"))
}

fn scope(request: &Request) -> BackupScope {
    let named = |name| request.param_maybe(name).map(ToOwned::to_owned);
    match (named("room_id"), named("session_id")) {
        (Some(room), Some(session)) => BackupScope::Session(room, session),
        (Some(room), None) => BackupScope::Room(room),
        (None, _) => BackupScope::All,
    }
}

/// The body of a request that puts keys, and what it is about.
struct Upload {
    body: Bytes,
    scope: BackupScope,
}

/// Called with a room, a session, its merit and its `session_data`.
type Visit<'v> = dyn FnMut(&str, &str, BackupMerit, &RawValue) -> Result<(), Wrong> + 'v;

impl Upload {
    /// Hands on all keys, a batch at a time, and answers what there is after the last. Nothing is handed on when there is
    /// a key that may not be stored.
    fn store(
        &self,
        put: &mut dyn FnMut(Vec<BackupKey>) -> Result<BackupKept, user::Error>,
    ) -> Result<BackupKept, Wrong> {
        if json::is_deeper_than(&self.body, BODY_DEPTH_MAX) {
            return Err(bad("The body is nested too deeply"));
        }
        self.each(&mut |_, _, _, data| Ok(check_session_data(data.get().as_bytes())?))?;
        let (mut bytes, mut batch) = (0, Vec::new());
        self.each(&mut |room, session, merit, data| {
            if bytes >= BATCH_BYTES {
                put(std::mem::take(&mut batch))?;
                bytes = 0;
            }
            let data = data.get().as_bytes().to_vec();
            bytes += room.len() + session.len() + data.len() + KEY_BYTES;
            batch.push(BackupKey { room: room.to_owned(), session: session.to_owned(), merit, data });
            Ok(())
        })?;
        Ok(put(batch)?)
    }

    /// Shows each key that a backup can have, in place.
    fn each(&self, visit: &mut Visit<'_>) -> Result<(), Wrong> {
        match &self.scope {
            BackupScope::All => member_of(&self.body, "rooms", &mut |rooms| {
                each_named(rooms, &mut |room, object| sessions(room, object.get().as_bytes(), visit))
            }),
            BackupScope::Room(room) => sessions(room, &self.body, visit),
            BackupScope::Session(room, session) => key(room, session, &self.body, visit),
        }
    }
}

fn sessions(room: &str, object: &[u8], visit: &mut Visit<'_>) -> Result<(), Wrong> {
    member_of(object, "sessions", &mut |sessions| {
        each_named(sessions, &mut |session, object| key(room, session, object.get().as_bytes(), visit))
    })
}

fn key(room: &str, session: &str, object: &[u8], visit: &mut Visit<'_>) -> Result<(), Wrong> {
    let (mut first, mut forwarded, mut is_verified, mut data) = (None, None, None, None);
    each_named(object, &mut |name, value| {
        match name {
            "first_message_index" => first = Some(word(name, value)?),
            "forwarded_count" => forwarded = Some(word(name, value)?),
            "is_verified" => is_verified = Some(word(name, value)?),
            "session_data" => data = Some(value),
            _ => {}
        }
        Ok(())
    })?;
    let missing = |name| bad(format!("The member {name} of a key is missing"));
    let merit = BackupMerit {
        is_verified: is_verified.ok_or_else(|| missing("is_verified"))?,
        first_message_index: first.ok_or_else(|| missing("first_message_index"))?,
        forwarded_count: forwarded.ok_or_else(|| missing("forwarded_count"))?,
    };
    let data = data.ok_or_else(|| missing("session_data"))?;
    if can_be_backed_up(room, session) { visit(room, session, merit, data) } else { Ok(()) }
}

/// A number or a truth. The parser sees only what is short: its errors quote a string, whatever its length.
fn word<T: DeserializeOwned>(name: &str, value: &RawValue) -> Result<T, Wrong> {
    let short = Some(value.get()).filter(|text| text.len() <= WORD_TEXT_MAX);
    let word = short.and_then(|text| serde_json::from_str(text).ok());
    word.ok_or_else(|| bad(format!("The member {name} of a key is of another kind")))
}

/// Shows one member of an object, which has to be there.
fn member_of(object: &[u8], name: &str, visit: &mut dyn FnMut(&[u8]) -> Result<(), Wrong>) -> Result<(), Wrong> {
    let mut is_there = false;
    each_named(object, &mut |key, value| {
        if key != name {
            return Ok(());
        }
        is_there = true;
        visit(value.get().as_bytes())
    })?;
    if is_there { Ok(()) } else { Err(bad(format!("The member {name} is missing"))) }
}

/// Shows each member of an object whose name is not too long to mean anything.
fn each_named<'t>(
    object: &'t [u8],
    visit: &mut dyn FnMut(&str, &'t RawValue) -> Result<(), Wrong>,
) -> Result<(), Wrong> {
    partial::each_raw_member(object, &mut |name, value| match name.get().len() <= NAME_TEXT_MAX {
        true => visit(&partial::string(name)?, value),
        false => Ok(()),
    })
}

/// Why the keys of a body were not stored.
#[derive(Debug)]
enum Wrong {
    Json(serde_json::Error),
    Refused(user::Error),
}

fn bad(message: impl Into<String>) -> Wrong {
    Wrong::Refused(user::Error::Bad { errcode: "M_BAD_JSON", message: message.into() })
}

impl From<serde_json::Error> for Wrong {
    fn from(wrong: serde_json::Error) -> Wrong {
        Wrong::Json(wrong)
    }
}

impl From<user::Error> for Wrong {
    fn from(refused: user::Error) -> Wrong {
        Wrong::Refused(refused)
    }
}

impl From<Wrong> for Error {
    fn from(wrong: Wrong) -> Error {
        match wrong {
            Wrong::Json(wrong) => BadBody::from(wrong).into(),
            Wrong::Refused(refused) => refused.into(),
        }
    }
}

async fn write_rooms(pen: ChunkWriter, mut keys: BackupKeys) -> Result<(), ChunkError> {
    pen.text(r#"{"rooms":{"#);
    let (mut open, mut first) = (None::<String>, true);
    let mut more = true;
    while more {
        more = pen.with(|out| {
            keys.next(&mut |room, session, merit, data| {
                if open.as_deref() != Some(room) {
                    if open.is_some() {
                        out.extend_from_slice(b"}},");
                    }
                    json::write_string(out, room);
                    out.extend_from_slice(br#":{"sessions":{"#);
                    (open, first) = (Some(room.to_owned()), true);
                }
                write_session(out, &mut first, session, merit, data)
            })
        })?;
        pen.pause().await;
    }
    pen.text(if open.is_some() { "}}}}" } else { "}}" });
    Ok(())
}

async fn write_room(pen: ChunkWriter, mut keys: BackupKeys) -> Result<(), ChunkError> {
    pen.text(r#"{"sessions":{"#);
    let (mut first, mut more) = (true, true);
    while more {
        more = pen.with(|out| {
            keys.next(&mut |_, session, merit, data| write_session(out, &mut first, session, merit, data))
        })?;
        pen.pause().await;
    }
    pen.text("}}");
    Ok(())
}

/// Writes `"session":{…}`, and ends the piece when it is long enough.
fn write_session(
    out: &mut Vec<u8>,
    first: &mut bool,
    session: &str,
    merit: &BackupMerit,
    data: &[u8],
) -> ControlFlow<()> {
    comma(out, first);
    json::write_string(out, session);
    out.push(b':');
    write_key(out, merit, data);
    if out.len() >= PIECE_BYTES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

fn write_key(out: &mut Vec<u8>, merit: &BackupMerit, data: &[u8]) {
    let BackupMerit { is_verified, first_message_index, forwarded_count } = merit;
    let numbers = format!(
        r#"{{"first_message_index":{first_message_index},"forwarded_count":{forwarded_count},"is_verified":{is_verified},"session_data":"#
    );
    out.extend_from_slice(numbers.as_bytes());
    out.extend_from_slice(data);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(body: &str, scope: BackupScope) -> Upload {
        Upload { body: Bytes::copy_from_slice(body.as_bytes()), scope }
    }

    fn key(session_data: &str) -> String {
        format!(r#"{{"first_message_index":1,"forwarded_count":0,"is_verified":true,"session_data":{session_data}}}"#)
    }

    const KEPT: BackupKept = BackupKept { count: 7, etag: 1 };

    /// The code of the refusal of a body, and its message; nothing must have been handed on.
    fn refused(body: &str, scope: BackupScope) -> (String, String) {
        let stored = upload(body, scope).store(&mut |keys| panic!("{} keys are handed on", keys.len()));
        let refused = ErrorResponse::from(Error::from(stored.unwrap_err()));
        (refused.errcode.into_owned(), refused.message)
    }

    /// The rooms and sessions that are handed on, by batch.
    fn batches(upload: &Upload) -> Vec<Vec<BackupKey>> {
        let mut all = Vec::new();
        let stored = upload.store(&mut |keys| {
            all.push(keys);
            Ok(KEPT)
        });
        assert_eq!(stored.unwrap(), KEPT);
        all
    }

    /// Every key of a long body stands in one batch, and no batch is much longer than it should be.
    #[test]
    fn a_long_upload_is_cut_into_batches() {
        let data = format!(r#"{{"ciphertext":"{}"}}"#, "x".repeat(1_000));
        let room = |from: usize| {
            let keys: Vec<_> = (from..from + 100).map(|n| format!("\"s{n}\":{}", key(&data))).collect();
            format!(r#"{{"extra":[[]],"sessions":{{{}}}}}"#, keys.join(","))
        };
        let all = upload(&format!(r#"{{"rooms":{{"!a":{},"!b":{}}}}}"#, room(0), room(100)), BackupScope::All);
        let batches = batches(&all);
        let is_short =
            |batch: &Vec<BackupKey>| batch.iter().map(|key| key.data.len()).sum::<usize>() < BATCH_BYTES + 2_000;
        assert!(batches.iter().all(is_short) && batches.len() > 2, "{}", batches.len());
        let found = batches.into_iter().flatten().map(|key| format!("{} {}", key.room, key.session));
        assert!(found.eq((0..200).map(|n| format!("{} s{n}", if n < 100 { "!a" } else { "!b" }))));
    }

    #[test]
    fn a_body_of_another_shape_is_refused() {
        let room = || BackupScope::Room("!a".to_owned());
        let one = || BackupScope::Session("!a".to_owned(), "s".to_owned());
        for (body, scope, count) in [
            (key("{}"), one(), 1),
            (format!(r#"{{"sessions":{{"s":{}}}}}"#, key("\"text\"")), room(), 1),
            (r#"{"rooms":{}}"#.to_owned(), BackupScope::All, 0),
        ] {
            assert_eq!(batches(&upload(&body, scope)).concat().len(), count, "{body}");
        }
        let deep = |depth| key(&format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
        for (body, scope) in [
            ("{}", BackupScope::All),
            ("[]", BackupScope::All),
            (r#"{"rooms":[]}"#, BackupScope::All),
            (r#"{"rooms":{"!a":{}}}"#, BackupScope::All),
            (r#"{"sessions":{"s":{}}}"#, room()),
            (r#"{"first_message_index":-1,"forwarded_count":0,"is_verified":true,"session_data":{}}"#, one()),
            (r#"{"first_message_index":1,"forwarded_count":0,"is_verified":"yes","session_data":{}}"#, one()),
            (&deep(803), one()),
            (&deep(900), one()),
        ] {
            assert_eq!(refused(body, scope).0, "M_BAD_JSON", "{body}");
        }
        assert_eq!(refused(r#"{"rooms":{"#, BackupScope::All).0, "M_NOT_JSON");
        assert_eq!(refused(&key(&format!("\"{}\"", "x".repeat(20_000))), one()).0, "M_TOO_LARGE");
    }

    /// A stranger chooses the room id of a key that it sends, and the app of who received it backs it up. A body with an id
    /// that was too long was refused as a whole, and the app sent it again without end.
    #[test]
    fn a_key_that_no_event_can_name_is_read_past() {
        for (room, session) in [
            ("!".repeat(300), "s".to_owned()),
            ("!".repeat(20_000), "s".to_owned()),
            ("!a".to_owned(), "s".repeat(300)),
            ("!\\u0000".to_owned(), "s".to_owned()),
        ] {
            let (bad, good) = (key("1"), key("2"));
            let body = format!(
                r#"{{"rooms":{{"{room}":{{"sessions":{{"{session}":{bad}}}}},"!a":{{"sessions":{{"s":{good}}}}}}}}}"#
            );
            let found = batches(&upload(&body, BackupScope::All)).concat();
            assert!(matches!(&found[..], [key] if key.data == b"2"), "{found:?}");
            if !room.contains('\\') {
                assert!(batches(&upload(&bad, BackupScope::Session(room, session))).concat().is_empty());
            }
        }
    }

    /// The parser's error quotes the string that it met instead, with six bytes for each of some.
    #[test]
    fn a_refusal_does_not_repeat_the_body() {
        let long = format!("\"{}\"", "\x7f".repeat(10_000));
        for (body, scope) in [
            (long.clone(), BackupScope::All),
            (format!(r#"{{"rooms":{long}}}"#), BackupScope::All),
            (format!(r#"{{"rooms":{{"!a":{long}}}}}"#), BackupScope::All),
            (format!(r#"{{"sessions":{long}}}"#), BackupScope::Room("!a".to_owned())),
            (long.clone(), BackupScope::Session("!a".to_owned(), "s".to_owned())),
            (key("1").replace("true", &long), BackupScope::Session("!a".to_owned(), "s".to_owned())),
        ] {
            let (code, message) = refused(&body, scope);
            assert!(code == "M_BAD_JSON" && message.len() < 200, "{code} {message}");
        }
    }
}
