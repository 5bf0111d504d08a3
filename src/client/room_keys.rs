//! Key backups: GET and POST room_keys/version, GET, PUT and DELETE room_keys/version/{version}, and PUT, GET and DELETE
//! room_keys/keys for all keys, those of a room, and one key.
//!
//! An app puts a hundred or two hundred keys at a time, 150 or 300 KB of them. They are read in place, checked all, and then
//! stored a batch at a time. An answer with all keys is written from a cursor.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Client, Error, auth, rates};
use crate::base::{self, ChunkError, ChunkWriter, blocking, comma};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::matrix::json::{self, partial};
use crate::user::{Backup, BackupKey, BackupKeys, BackupMerit, BackupScope, check_backed_up};

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
/// kept.
///
/// 400 `M_MISSING_PARAM` without `version`; 404 `M_NOT_FOUND` when there is no such backup; 403 `M_WRONG_ROOM_KEYS_VERSION`
/// with `current_version` when it is not the newest; 400 `M_BAD_JSON` when a key lacks a member or is nested too deeply; 400
/// `M_INVALID_PARAM` when a room id or session id is too long; 413 `M_TOO_LARGE` when the body or a key is too long, or the
/// user has too many keys. Nothing is stored of a body that is refused for what is in it.
pub async fn put_keys(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::BACKUP, requester.user_id.as_str())?;
    let (version, scope) = (wanted(&request)?, scope(&request));
    let body = request.bytes(client.budget.size("request_body_max")).await?;
    let _grant = request.pay(WORK_BYTES).await?;
    let checked = Upload { body, scope };
    let upload = blocking(move || checked.check().map(|()| checked)).await?;
    let (mut upload, mut from) = (upload, 0);
    loop {
        let (read, batch) = blocking(move || {
            let batch = upload.batch(from);
            (upload, batch)
        })
        .await;
        upload = read;
        let Batch { keys, next } = batch?;
        let kept = client.users.put_backed_up(requester.user_num, &version, keys).await?;
        match next {
            Some(next) => from = next,
            None => {
                return Ok(Response::json(&serde_json::json!({ "count": kept.count, "etag": kept.etag.to_string() })));
            }
        }
    }
}

/// GET /_matrix/client/v3/room_keys/keys, and the same for a room or one session.
///
/// 400 `M_MISSING_PARAM` without `version`; 404 `M_NOT_FOUND` when there is no such backup, or it has no such session.
pub async fn keys(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let (user, version) = (requester.user_num, wanted(&request)?);
    let grant = client.budget.account("response_bodies").take(ANSWER_BYTES).await?;
    match scope(&request) {
        BackupScope::Session(room, session) => {
            let (merit, data) = client.users.backed_up_key(user, &version, room, session).await?;
            let mut json = Vec::with_capacity(data.len() + 128);
            write_key(&mut json, &merit, &data);
            Ok(Response::charged(StatusCode::OK, "application/json", json, grant))
        }
        BackupScope::Room(room) => {
            let keys = client.users.backed_up(user, &version, BackupScope::Room(room)).await?;
            Ok(Response::stream(grant, base::written(move |pen| write_room(pen, keys))))
        }
        BackupScope::All => {
            let keys = client.users.backed_up(user, &version, BackupScope::All).await?;
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
    Ok(Response::json(&serde_json::json!({ "count": kept.count, "etag": kept.etag.to_string() })))
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

/// One key of an upload, and where an app puts it: extra members are read past.
#[derive(Deserialize)]
struct Uploaded<'a> {
    first_message_index: u64,
    forwarded_count: u64,
    is_verified: bool,
    #[serde(borrow)]
    session_data: &'a RawValue,
}

/// The body of a request that puts keys, and what it is about.
struct Upload {
    body: Bytes,
    scope: BackupScope,
}

/// Some of the keys of an upload, and the number of the first behind them when there are more.
struct Batch {
    keys: Vec<BackupKey>,
    next: Option<usize>,
}

/// Why a body was not read to its end.
enum Stop {
    Refused(Error),
    Json(serde_json::Error),
    /// Enough was read.
    Full,
}

impl From<serde_json::Error> for Stop {
    fn from(wrong: serde_json::Error) -> Stop {
        Stop::Json(wrong)
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Error {
        match stop {
            Stop::Refused(refused) => refused,
            Stop::Json(wrong) if wrong.is_data() => ErrorResponse::bad("M_BAD_JSON", wrong.to_string()).into(),
            Stop::Json(wrong) => ErrorResponse::bad("M_NOT_JSON", format!("The body is not JSON: {wrong}")).into(),
            Stop::Full => ErrorResponse::internal("an upload of keys was not read to its end").into(),
        }
    }
}

type Visit<'v> = dyn FnMut(&str, &str, &Uploaded<'_>) -> Result<(), Stop> + 'v;

impl Upload {
    /// Whether every key of it may be stored.
    fn check(&self) -> Result<(), Error> {
        self.each(&mut |room, session, key| {
            check_backed_up(room, session, key.session_data.get().as_bytes())
                .map_err(|wrong| Stop::Refused(wrong.into()))
        })?;
        Ok(())
    }

    /// The keys from one on, as many as fit a batch. The body is read again for each batch, which is quicker than to note
    /// where the keys are: a body of 512 KiB has ten batches.
    fn batch(&self, from: usize) -> Result<Batch, Error> {
        let (mut at, mut bytes, mut keys) = (0, 0, Vec::new());
        let read = self.each(&mut |room, session, key| {
            if bytes >= BATCH_BYTES {
                return Err(Stop::Full);
            }
            if at >= from {
                let data = key.session_data.get().as_bytes().to_vec();
                bytes += room.len() + session.len() + data.len() + KEY_BYTES;
                let merit = BackupMerit {
                    is_verified: key.is_verified,
                    first_message_index: key.first_message_index,
                    forwarded_count: key.forwarded_count,
                };
                keys.push(BackupKey { room: room.to_owned(), session: session.to_owned(), merit, data });
            }
            at += 1;
            Ok(())
        });
        match read {
            Ok(()) => Ok(Batch { keys, next: None }),
            Err(Stop::Full) => Ok(Batch { keys, next: Some(at) }),
            Err(stop) => Err(stop.into()),
        }
    }

    /// Shows each key, in place.
    fn each(&self, visit: &mut Visit<'_>) -> Result<(), Stop> {
        match &self.scope {
            BackupScope::All => member_of(&self.body, "rooms", &mut |rooms| {
                partial::each_member(rooms, &mut |room, object| sessions(room, object.get().as_bytes(), visit))
            }),
            BackupScope::Room(room) => sessions(room, &self.body, visit),
            BackupScope::Session(room, session) => visit(room, session, &serde_json::from_slice(&self.body)?),
        }
    }
}

fn sessions(room: &str, object: &[u8], visit: &mut Visit<'_>) -> Result<(), Stop> {
    member_of(object, "sessions", &mut |sessions| {
        partial::each_member(sessions, &mut |session, key: &RawValue| {
            visit(room, session, &serde_json::from_str(key.get())?)
        })
    })
}

/// Shows one member of an object, which has to be there.
fn member_of(object: &[u8], name: &str, visit: &mut dyn FnMut(&[u8]) -> Result<(), Stop>) -> Result<(), Stop> {
    let mut is_there = false;
    partial::each_member(object, &mut |key, value| {
        if key != name {
            return Ok(());
        }
        is_there = true;
        visit(value.get().as_bytes())
    })?;
    match is_there {
        true => Ok(()),
        false => Err(Stop::Refused(ErrorResponse::bad("M_BAD_JSON", format!("The member {name} is missing")).into())),
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

    /// Every key of a long body stands in one batch, and no batch is much longer than it should be.
    #[test]
    fn a_long_upload_is_cut_into_batches() {
        let data = format!(r#"{{"ciphertext":"{}"}}"#, "x".repeat(1_000));
        let room = |from: usize| {
            let keys: Vec<_> = (from..from + 100).map(|n| format!("\"s{n}\":{}", key(&data))).collect();
            format!(r#"{{"extra":[[]],"sessions":{{{}}}}}"#, keys.join(","))
        };
        let all = upload(&format!(r#"{{"rooms":{{"!a":{},"!b":{}}}}}"#, room(0), room(100)), BackupScope::All);
        assert!(all.check().is_ok());
        let (mut from, mut found, mut batches) = (Some(0), Vec::new(), 0);
        while let Some(at) = from {
            let batch = all.batch(at).unwrap_or_else(|_| panic!("the body was checked"));
            assert!(batch.keys.iter().map(|key| key.data.len()).sum::<usize>() < BATCH_BYTES + 2_000);
            found.extend(batch.keys.into_iter().map(|key| format!("{} {}", key.room, key.session)));
            (from, batches) = (batch.next, batches + 1);
        }
        let wanted = (0..200).map(|n| format!("{} s{n}", if n < 100 { "!a" } else { "!b" }));
        assert!(found.into_iter().eq(wanted) && batches > 2, "{batches}");
    }

    #[test]
    fn a_body_of_another_shape_is_refused() {
        let code = |body: &str, scope| {
            let refused = upload(body, scope).check().err().map(ErrorResponse::from);
            refused.map_or("fine".to_owned(), |refused| refused.errcode.into_owned())
        };
        let room = || BackupScope::Room("!a".to_owned());
        let one = || BackupScope::Session("!a".to_owned(), "s".to_owned());
        assert_eq!(code(&key("{}"), one()), "fine");
        assert_eq!(code(&format!(r#"{{"sessions":{{"s":{}}}}}"#, key("\"text\"")), room()), "fine");
        assert_eq!(code(r#"{"rooms":{}}"#, BackupScope::All), "fine");
        for (body, scope) in [
            ("{}", BackupScope::All),
            ("[]", BackupScope::All),
            (r#"{"rooms":[]}"#, BackupScope::All),
            (r#"{"rooms":{"!a":{}}}"#, BackupScope::All),
            (r#"{"sessions":{"s":{}}}"#, room()),
            (r#"{"first_message_index":-1,"forwarded_count":0,"is_verified":true,"session_data":{}}"#, one()),
            (r#"{"first_message_index":1,"forwarded_count":0,"is_verified":"yes","session_data":{}}"#, one()),
            (&key(&format!("{}{}", "[".repeat(900), "]".repeat(900))), one()),
        ] {
            assert_eq!(code(body, scope), "M_BAD_JSON", "{body}");
        }
        assert_eq!(code(r#"{"rooms":{"#, BackupScope::All), "M_NOT_JSON");
        assert_eq!(code(&key(&format!("\"{}\"", "x".repeat(20_000))), one()), "M_TOO_LARGE");
        let long = BackupScope::Session("!".repeat(256), "s".to_owned());
        assert_eq!(code(&key("{}"), long), "M_INVALID_PARAM");
    }
}
