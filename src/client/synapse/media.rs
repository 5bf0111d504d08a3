//! Files: those of a user and those that a room names; withheld, kept safe from that, deleted.

use std::sync::Arc;

use ruma::{OwnedRoomId, OwnedServerName, ServerName};
use serde_json::{Value, json};

use super::{
    NAMED_ROWS_MAX, Page, administrator, administrator_with_memory, administrator_with_stream, beside, done, flag,
    local_user, user,
};
use crate::base::{self, ChunkError, ChunkWriter, Chunks};
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response};
use crate::media::{ListedFile, MediaOrder};

/// The day's length.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// A time before this one was given in seconds; as Synapse has it.
const MS_OF_1971: u64 = 30_000_000_000;

/// GET /_synapse/admin/v1/users/{user_id}/media: the newest first, unless an order or a direction is named.
pub async fn of_user(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_memory(&client, &request).await?;
    let (page, found, total) = uploads(&client, &request).await?;
    let user_id = user(&request)?;
    let (many, rest) = (found.len(), beside(page, found.len(), total, |next| next.into()));
    let row = Box::new(move |at: usize| {
        Ok(client.media.listed_now(&found[at])?.map(|file| {
            let mut about = shown(&file);
            about["user_id"] = user_id.as_str().into();
            about
        }))
    });
    Ok(super::listed(grant, "media", many, rest, row))
}

/// DELETE /_synapse/admin/v1/users/{user_id}/media: those that the list of the same parameters has on its page.
pub async fn delete_of_user(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (by, _grant) = administrator_with_memory(&client, &request).await?;
    let (_, found, _) = uploads(&client, &request).await?;
    let removed = client.media.remove_uploads(found).await?;
    tracing::info!("{} deleted {} files of {}", by.user_id, removed.len(), request.param("user_id"));
    Ok(Response::json(&json!({ "deleted_media": removed, "total": removed.len() })))
}

async fn uploads(client: &Client, request: &Request) -> Result<(Page, Vec<String>, usize), Error> {
    let num = client.users.local_num(&local_user(client, request)?).await?;
    let page = Page::of(request)?;
    let asked = request.query("order_by");
    let backwards = page.backwards || asked.is_none() && request.query("dir").is_none();
    let order = match asked.as_deref() {
        None | Some("created_ts") => MediaOrder::Created,
        Some("media_id") => MediaOrder::Id,
        Some("upload_name") => MediaOrder::Name,
        Some("last_access_ts") => MediaOrder::Used,
        Some("media_length") => MediaOrder::Bytes,
        Some("media_type") => MediaOrder::Type,
        Some("quarantined_by") => MediaOrder::Quarantined,
        Some("safe_from_quarantine") => MediaOrder::Safe,
        Some(_) => {
            return Err(ErrorResponse::invalid_param("order_by names nothing that files can be ordered by").into());
        }
    };
    let (found, total) =
        client.media.uploads_of(num, order, backwards, page.from, page.most.min(NAMED_ROWS_MAX)).await?;
    Ok((page, found, total))
}

fn shown(file: &ListedFile) -> Value {
    json!({
        "media_id": file.media_id, "media_type": file.content_type, "media_length": file.bytes,
        "upload_name": file.name, "created_ts": file.created_ms, "last_access_ts": file.used_ms,
        "quarantined_by": file.quarantined_by, "safe_from_quarantine": file.is_safe,
        "authenticated": file.authenticated, "sha256": file.hash, "url_cache": null,
    })
}

/// GET /_synapse/admin/v1/media/{server}/{media_id}: of this server, or kept of another.
pub async fn info(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let (server, media_id) = named(&request)?;
    let file = client.media.listed(&server, media_id).await?.ok_or_else(unknown)?;
    let mut about = shown(&file);
    // The file is named by its bytes.
    let elsewhere = |text: &str| if client.media.is_here(&server) { Value::Null } else { text.into() };
    (about["media_origin"], about["filesystem_id"]) = (elsewhere(server.as_str()), elsewhere(&file.hash));
    about["user_id"] = match file.uploader {
        Some(num) => client.users.id_of(num).await?.as_str().into(),
        None => Value::Null,
    };
    Ok(Response::json(&json!({ "media_info": about })))
}

fn unknown() -> ErrorResponse {
    ErrorResponse::not_found("Unknown media")
}

fn named(request: &Request) -> Result<(OwnedServerName, &str), ErrorResponse> {
    Ok((request.param_as("server")?, request.param("media_id")))
}

/// DELETE /_synapse/admin/v1/media/{server}/{media_id}. 400 `M_UNKNOWN` for a file of another server.
pub async fn delete(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let (server, media_id) = named(&request)?;
    if !client.media.is_here(&server) {
        return Err(ErrorResponse::bad("M_UNKNOWN", "Can only delete local media").into());
    }
    if !client.media.remove(&server, media_id).await? {
        return Err(unknown().into());
    }
    tracing::info!("{} deleted the file {media_id}", by.user_id);
    Ok(Response::json(&json!({ "deleted_media": [media_id], "total": 1 })))
}

/// POST /_synapse/admin/v1/media/delete, and with the server's name before it: uploads last used before `before_ts` and larger than
/// `size_gt`; with `keep_profiles=false` pictures of rooms and people too. With `dry_run=true` they are listed and stay. An upload is
/// deleted with the answer that names it.
///
/// 400 `M_UNKNOWN` while it is not noted when uploads are asked for: the setting `media.local_unused_days` has that noted.
pub async fn delete_old(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (by, grant) = administrator_with_stream(&client, &request).await?;
    if let Some(server) = request.param_maybe("server")
        && ServerName::parse(server).is_ok_and(|server| !client.media.is_here(&server))
    {
        return Err(ErrorResponse::bad("M_UNKNOWN", "Can only delete local media").into());
    }
    let before_ms = before_ts(&request)?;
    let bytes = request.query_as::<u64>("size_gt")?.unwrap_or(0);
    let keeps_pictures = flag(&request, "keep_profiles")?.unwrap_or(true);
    let is_dry = flag(&request, "dry_run")?.unwrap_or(false);
    let since_ms = client.media.uses_noted_since_ms().await?;
    if since_ms.is_none_or(|since_ms| since_ms >= before_ms) {
        let message = match since_ms {
            None => {
                "This server does not note when uploads are asked for, so that none is known to be unused. The setting \
                 media.local_unused_days has it note that"
            }
            Some(_) => "When uploads were asked for is noted since a later time only: name a later before_ts",
        };
        return Err(ErrorResponse::bad("M_UNKNOWN", message).into());
    }
    if !is_dry {
        tracing::info!("{} deletes uploads that are larger than {bytes} bytes and were not used lately", by.user_id);
    }
    let state = Arc::new(tokio::sync::Mutex::new((String::new(), 0u64, true)));
    let pieces = base::stepped(move |pen: ChunkWriter| {
        let (client, state) = (client.clone(), state.clone());
        async move {
            let (after, total, first) = &mut *state.lock().await;
            if *first && *total == 0 && after.is_empty() {
                pen.text("{\"deleted_media\":[");
            }
            let found = client.media.old_uploads(std::mem::take(after), before_ms, bytes).await?;
            let Some((ids, last)) = found else {
                pen.text(&format!("],\"total\":{total}}}"));
                return Ok::<_, ChunkError>(false);
            };
            *after = last;
            let ids = if keeps_pictures { without_pictures(&client, ids).await? } else { ids };
            let gone = if is_dry { ids } else { client.media.remove_uploads(ids).await? };
            *total += gone.len() as u64;
            pen.with(|out| {
                for id in gone {
                    base::comma(out, first);
                    out.extend_from_slice(json!(id).to_string().as_bytes());
                }
            });
            Ok(true)
        }
    });
    Ok(Response::stream(grant, pieces))
}

/// Those that are the picture of no room here and of nobody here.
async fn without_pictures(client: &Client, ids: Vec<String>) -> Result<Vec<String>, ChunkError> {
    if ids.is_empty() {
        return Ok(ids);
    }
    let prefix = format!("mxc://{}/", client.users.server());
    let uris = ids.into_iter().map(|id| format!("{prefix}{id}")).collect();
    let uris = client.users.not_pictures(uris).await?;
    let uris = client.rooms.not_room_pictures(uris).await?;
    Ok(uris.into_iter().filter_map(|uri| uri.strip_prefix(&prefix).map(str::to_owned)).collect())
}

/// POST /_synapse/admin/v1/purge_media_cache: kept files of other servers that nobody asked for since the day of `before_ts`, which
/// is when it is noted.
pub async fn purge_cache(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let before_ms = before_ts(&request)?;
    let (count, bytes) = client.media.remove_remote_before((before_ms / DAY_MS).try_into().unwrap_or(u32::MAX)).await?;
    tracing::info!("{} removed {count} kept files of other servers, {bytes} bytes", by.user_id);
    Ok(Response::json(&json!({ "deleted": count })))
}

fn before_ts(request: &Request) -> Result<u64, ErrorResponse> {
    match request.query_as::<u64>("before_ts")? {
        None => Err(ErrorResponse::missing_param("before_ts")),
        // Before 1971: these are seconds, and would mean that everything is new.
        Some(before_ms) if before_ms < MS_OF_1971 => {
            Err(ErrorResponse::invalid_param("Query parameter before_ts must be in milliseconds, and positive."))
        }
        Some(before_ms) => Ok(before_ms),
    }
}

/// POST /_synapse/admin/v1/media/quarantine/{server}/{media_id}: whether it is kept here or not. The same bytes are withheld under
/// every media id.
///
/// 404 `M_NOT_FOUND` for a file of this server that does not exist; 403 `M_FORBIDDEN` for one that is protected.
pub async fn quarantine(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let (server, media_id) = named(&request)?;
    if !client.media.quarantine(&server, media_id, Some(by.user_id.as_str())).await? {
        return Err(ErrorResponse::forbidden("This file is protected from being quarantined").into());
    }
    tracing::info!("{} has mxc://{server}/{media_id} withheld", by.user_id);
    Ok(done())
}

/// POST /_synapse/admin/v1/media/unquarantine/{server}/{media_id}: also one of another server that is not kept here any more, which
/// comes through when it is next fetched. What a scanner found in it is not found again.
pub async fn unquarantine(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let (server, media_id) = named(&request)?;
    client.media.quarantine(&server, media_id, None).await?;
    tracing::info!("{} has mxc://{server}/{media_id} given out again", by.user_id);
    Ok(done())
}

/// POST /_synapse/admin/v1/media/protect/{media_id}
pub async fn protect(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    client.media.set_safe(request.param("media_id"), true).await?;
    Ok(done())
}

/// POST /_synapse/admin/v1/media/unprotect/{media_id}
pub async fn unprotect(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    client.media.set_safe(request.param("media_id"), false).await?;
    Ok(done())
}

/// POST /_synapse/admin/v1/user/{user_id}/media/quarantine: what users of this server have uploaded; nobody else has here.
pub async fn quarantine_of_user(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let user_id = user(&request)?;
    let count = match user_id.server_name() == client.users.server() {
        false => 0,
        true => {
            let num = client.users.local_num(&user_id).await?;
            client.media.quarantine_uploads(num, by.user_id.as_str()).await?
        }
    };
    tracing::info!("{} has {count} files of {user_id} withheld", by.user_id);
    Ok(Response::json(&json!({ "num_quarantined": count })))
}

/// POST /_synapse/admin/v1/room/{room_id}/media/quarantine, and its older path: what the events of the room name and is not protected.
pub async fn quarantine_of_room(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (by, _grant) = administrator_with_stream(&client, &request).await?;
    let room_id: OwnedRoomId = request.param_as("room_id")?;
    let (mut after, mut count) = (Some(i64::MIN), 0u64);
    while let Some(from) = after {
        let (uris, next) = client.rooms.media_in(&room_id, from).await?;
        after = next;
        for uri in uris {
            let Some((server, media_id)) = parted(&uri) else { continue };
            match client.media.quarantine(&server, media_id, Some(by.user_id.as_str())).await {
                Ok(withheld) => count += u64::from(withheld),
                // It was deleted.
                Err(crate::media::Error::NotFound) => {}
                Err(failed) => return Err(failed.into()),
            }
        }
    }
    tracing::info!("{} has {count} files of {room_id} withheld", by.user_id);
    Ok(Response::json(&json!({ "num_quarantined": count })))
}

fn parted(uri: &str) -> Option<(OwnedServerName, &str)> {
    let (server, media_id) = uri.strip_prefix("mxc://")?.split_once('/')?;
    Some((server.try_into().ok()?, media_id))
}

/// GET /_synapse/admin/v1/room/{room_id}/media: first what is of this server, in one walk over the room, then the others' in another.
pub async fn of_room(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_stream(&client, &request).await?;
    let room_id: OwnedRoomId = request.param_as("room_id")?;
    // Whether there is such a room is said before the answer begins.
    client.rooms.listed(&room_id).await?;
    Ok(Response::stream(grant, named_in(client, room_id)))
}

/// How far a list of a room's files is.
struct Walk {
    is_local: bool,
    after: i64,
    is_begun: bool,
    first: bool,
}

fn named_in(client: Arc<Client>, room_id: OwnedRoomId) -> impl Chunks {
    let walk = Walk { is_local: true, after: i64::MIN, is_begun: false, first: true };
    let walk = Arc::new(tokio::sync::Mutex::new(walk));
    base::stepped(move |pen: ChunkWriter| {
        let (client, room_id, walk) = (client.clone(), room_id.clone(), walk.clone());
        async move {
            let walk = &mut *walk.lock().await;
            if !std::mem::replace(&mut walk.is_begun, true) {
                pen.text("{\"local\":[");
            }
            let (uris, next) = client.rooms.media_in(&room_id, walk.after).await?;
            pen.with(|out| {
                for uri in uris {
                    let Some((server, _)) = parted(&uri) else { continue };
                    if client.media.is_here(&server) == walk.is_local {
                        base::comma(out, &mut walk.first);
                        out.extend_from_slice(json!(uri).to_string().as_bytes());
                    }
                }
            });
            if let Some(next) = next {
                walk.after = next;
                return Ok::<_, ChunkError>(true);
            }
            if std::mem::replace(&mut walk.is_local, false) {
                (walk.after, walk.first) = (i64::MIN, true);
                pen.text("],\"remote\":[");
                return Ok(true);
            }
            pen.text("]}");
            Ok(false)
        }
    })
}
