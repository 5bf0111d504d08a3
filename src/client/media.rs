//! Files: POST media upload, create and PUT upload, GET download, thumbnail and config, on the new paths and the old.
//!
//! The old paths need no access token, so they answer with files of this server only, unless the settings say otherwise.

use std::future::poll_fn;
use std::io::{Seek, SeekFrom};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ruma::{OwnedServerName, ServerName};
use serde_json::json;

use super::{Client, Error, auth, rates};
use crate::base::{blocking, detached};
use crate::http::file::UNKNOWN_TYPE;
use crate::http::file::{Part, described, part_of};
use crate::http::{self, ErrorResponse, Request, Response, StatusCode};
use crate::media::{About, Coming, Fetched, Found, Opened, Scaled, Share};
use crate::user::UserNum;

/// The longest wait for a file whose media id was given out before the upload.
const PATIENCE_MAX: Duration = Duration::from_secs(60);
const PATIENCE_DEFAULT_MS: u64 = 20_000;

/// POST /_matrix/media/v3/upload
///
/// 403 `M_RESOURCE_LIMIT_EXCEEDED` when the user's share of the disk is used up, `M_USER_LIMIT_EXCEEDED` when the settings
/// name a page (`support.page`), and 507 when that of all users or the disk is; 413 `M_TOO_LARGE` for a file larger than
/// `m.upload.size`.
pub async fn upload(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::UPLOAD, requester.user_id.as_str())?;
    let media_id = take_in(&client, request, requester.user_num, None).await?;
    Ok(Response::json(&json!({ "content_uri": uri(&client, &media_id) })))
}

/// POST /_matrix/media/v1/create
///
/// 429 `M_LIMIT_EXCEEDED` while the user has 16 media ids without files.
pub async fn create(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::UPLOAD, requester.user_id.as_str())?;
    let (media_id, expires_ms) = client.media.promise(requester.user_num).await?;
    Ok(Response::json(&json!({ "content_uri": uri(&client, &media_id), "unused_expires_at": expires_ms })))
}

/// PUT /_matrix/media/v3/upload/{server}/{media_id}
///
/// 403 `M_FORBIDDEN` when the path names another server, or the media id was given to another user; 404 `M_NOT_FOUND`
/// when the media id was not given out or has expired; 409 `M_CANNOT_OVERWRITE_MEDIA` when it has its file already;
/// 403 `M_RESOURCE_LIMIT_EXCEEDED` when the user's share of the disk is used up, `M_USER_LIMIT_EXCEEDED` when the settings
/// name a page (`support.page`), and 507 when that of all users or the disk is; 413 `M_TOO_LARGE` for a file larger than
/// `m.upload.size`.
pub async fn upload_to(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let server: OwnedServerName = request.param_as("server")?;
    if !client.media.is_here(&server) {
        return Err(
            ErrorResponse::forbidden("The media ID belongs to another server; upload the file to that server").into()
        );
    }
    let media_id = request.param("media_id").to_owned();
    client.media.check_promise(&media_id, requester.user_num).await?;
    take_in(&client, request, requester.user_num, Some(media_id)).await?;
    Ok(Response::ok())
}

async fn take_in(
    client: &Client,
    request: Request,
    uploader: UserNum,
    promised: Option<String>,
) -> Result<String, Error> {
    let about =
        About { content_type: request.header("content-type").map(ToOwned::to_owned), name: request.query("filename") };
    let announced = request.content_length();
    let mut body = request.into_stream(client.media.upload_bytes_max())?;
    let refused = |failed| upload_refused(client, failed);
    let mut upload = client.media.begin(uploader, announced).await.map_err(refused)?;
    loop {
        let mut next = pin!(body.next());
        let piece = match poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await {
            Poll::Ready(piece) => piece,
            Poll::Pending => {
                upload.pause().await.map_err(refused)?;
                next.await
            }
        };
        let Some(piece) = piece? else { break };
        upload.write(piece).await.map_err(refused)?;
    }
    upload.finish(about, promised).await.map_err(refused)
}

/// Whoever has used up their share is told where to read on, when the settings name a page of who helps (MSC4335).
fn upload_refused(client: &Client, failed: crate::media::Error) -> Error {
    match (failed, &client.options().support.page) {
        (crate::media::Error::Full(why), Some(page)) => {
            ErrorResponse::new(StatusCode::FORBIDDEN, "M_USER_LIMIT_EXCEEDED", why)
                .with("info_uri", page.clone())
                .into()
        }
        (failed, _) => failed.into(),
    }
}

fn uri(client: &Client, media_id: &str) -> String {
    format!("mxc://{}/{media_id}", client.users.server())
}

/// GET /_matrix/client/v1/media/config, and its older path.
pub async fn config(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    auth::requester(&client, &request).await?;
    Ok(Response::json(&json!({ "m.upload.size": client.media.upload_bytes_max() })))
}

/// GET /_matrix/client/v1/media/download/{server}/{media_id} and …/{name}
///
/// 404 `M_NOT_FOUND` when there is no such file; 504 `M_NOT_YET_UPLOADED` when the file has not come in time; 416
/// without a body for a range beyond its end. For another server's file: 404 `M_NOT_FOUND` when that server refuses;
/// 502 `M_UNKNOWN` when it gives no usable answer.
pub async fn download(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let server: OwnedServerName = request.param_as("server")?;
    if client.media.is_here(&server) {
        return send(&request, open(&client, &request).await?).await;
    }
    if let Some(opened) = client.media.kept(&server, request.param("media_id")).await? {
        return send(&request, opened).await;
    }
    request.limit_user(&rates::FETCH, requester.user_id.as_str())?;
    let found = client.media.find(&server, request.param("media_id")).await?;
    send_found(&client, &request, found).await
}

/// GET /_matrix/media/v3/download/{server}/{media_id} and …/{name}: the old path, for files of this server from before
/// downloads were authenticated; where the settings say so, for others too.
///
/// 404 `M_NOT_FOUND` when there is no such file, or it needs an access token; 504 `M_NOT_YET_UPLOADED` when the file has not come in time; 416
/// without a body for a range beyond its end. For another server's file, where those are given out: as [`download`], and 404
/// `M_NOT_FOUND` when it is not here and `allow_remote` is false.
pub async fn download_old(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let server: OwnedServerName = request.param_as("server")?;
    if client.media.is_here(&server) {
        return send(&request, old(open_outside(&client, &request).await?)?).await;
    }
    match kept_for_all(&client, &request, &server).await? {
        Some(opened) => send(&request, opened).await,
        None => {
            let found = client.media.find(&server, request.param("media_id")).await?;
            send_found(&client, &request, found).await
        }
    }
}

/// GET /_matrix/client/v1/media/thumbnail/{server}/{media_id}. An image of this server is made smaller; where it cannot be,
/// the answer is the image itself, since the specification allows one larger than asked for. For an image of another server
/// that is not kept here it is that server's thumbnail, which is kept.
///
/// 400 `M_MISSING_PARAM` without `width` or `height`, or when one is 0; 400 `M_UNKNOWN` when a file of this server is
/// no image; 404 `M_NOT_FOUND` when there is no such file; 504 `M_NOT_YET_UPLOADED` when the file has not come in
/// time; 416 without a body for a range beyond its end. For another server's file: 404 `M_NOT_FOUND` when that server
/// refuses; 502 `M_UNKNOWN` when it gives no usable answer.
pub async fn thumbnail(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let server: OwnedServerName = request.param_as("server")?;
    let scaled = scaled(&request)?;
    let media_id = request.param("media_id");
    if client.media.is_here(&server) {
        let opened = image(open(&client, &request).await?)?;
        return send(&request, smaller(&client, &request, opened, &scaled).await?).await;
    }
    if let Some(opened) = client.media.kept(&server, media_id).await? {
        return send(&request, smaller(&client, &request, image(opened)?, &scaled).await?).await;
    }
    if let Some(opened) = client.media.kept_thumbnail_of(&server, media_id, &scaled).await? {
        return send(&request, opened).await;
    }
    request.limit_user(&rates::FETCH, requester.user_id.as_str())?;
    let found = client.media.find_thumbnail(&server, media_id, &scaled).await?;
    send_found(&client, &request, found).await
}

/// GET /_matrix/media/v3/thumbnail/{server}/{media_id}: the old path, as [`download_old`].
///
/// 400 `M_MISSING_PARAM` without `width` or `height`, or when one is 0; 400 `M_UNKNOWN` when a file of this server is
/// no image; 404 `M_NOT_FOUND` when there is no such file, or it needs an access token; 504 `M_NOT_YET_UPLOADED` when the
/// file has not come in time; 416 without a body for a range beyond its end. For another server's file, where those are
/// given out: as [`thumbnail`], and 404 `M_NOT_FOUND` when it is not here and `allow_remote` is false.
pub async fn thumbnail_old(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let server: OwnedServerName = request.param_as("server")?;
    let scaled = scaled(&request)?;
    let opened = match client.media.is_here(&server) {
        true => Some(old(open_outside(&client, &request).await?)?),
        false => kept_for_all(&client, &request, &server).await?,
    };
    match opened {
        Some(opened) => send(&request, smaller(&client, &request, image(opened)?, &scaled).await?).await,
        None => {
            let found = client.media.find_thumbnail(&server, request.param("media_id"), &scaled).await?;
            send_found(&client, &request, found).await
        }
    }
}

/// A kept file of another server for somebody without an access token; none when it may be fetched for them.
async fn kept_for_all(client: &Client, request: &Request, server: &ServerName) -> Result<Option<Opened>, Error> {
    if client.media.is_authenticated() {
        let why = "Media of other servers needs the authenticated endpoints under /_matrix/client/v1/media";
        return Err(ErrorResponse::not_found(why).into());
    }
    if let Some(opened) = client.media.kept_outside(server, request.param("media_id")).await? {
        return Ok(Some(old(opened)?));
    }
    // Servers that ask for somebody else's file would otherwise ask each other in a circle.
    if request.query_as("allow_remote")? == Some(false) {
        return Err(ErrorResponse::not_found("This file is not kept here").into());
    }
    request.limit(&rates::FETCH)?;
    Ok(None)
}

/// Client-server API, "Content Repository": the old paths are frozen, so that what is newer needs an access token.
fn old(opened: Opened) -> Result<Opened, ErrorResponse> {
    match opened.authenticated {
        false => Ok(opened),
        true => Err(ErrorResponse::not_found(
            "This file needs an access token and the endpoints under /_matrix/client/v1/media",
        )),
    }
}

fn scaled(request: &Request) -> Result<Scaled, ErrorResponse> {
    let size = |name: &str| {
        let size: Option<u32> = request.query_as(name)?;
        size.filter(|size| *size > 0).ok_or_else(|| ErrorResponse::missing_param(name))
    };
    let crop = request.query("method").is_some_and(|method| method == "crop");
    Ok(Scaled { width: size("width")?, height: size("height")?, crop })
}

fn image(opened: Opened) -> Result<Opened, ErrorResponse> {
    match opened.is_seen() {
        true => Ok(opened),
        false => Err(ErrorResponse::bad("M_UNKNOWN", "This server makes no thumbnails for this type of file")),
    }
}

async fn smaller(client: &Client, request: &Request, opened: Opened, scaled: &Scaled) -> Result<Opened, Error> {
    let animated = request.query("animated").is_some_and(|animated| animated == "true");
    Ok(client.media.thumbnail(opened, scaled, animated).await?)
}

async fn open(client: &Client, request: &Request) -> Result<Opened, Error> {
    Ok(client.media.open(request.param("media_id"), patience(request)?).await?)
}

async fn open_outside(client: &Client, request: &Request) -> Result<Opened, Error> {
    Ok(client.media.open_outside(request.param("media_id"), patience(request)?).await?)
}

fn patience(request: &Request) -> Result<Duration, ErrorResponse> {
    let ms = request.query_as("timeout_ms")?.unwrap_or(PATIENCE_DEFAULT_MS);
    Ok(Duration::from_millis(ms).min(PATIENCE_MAX))
}

async fn send_found(client: &Client, request: &Request, found: Found) -> Result<Response, Error> {
    match found {
        Found::Kept(opened) => send(request, opened).await,
        Found::Coming(coming) => send_coming(client, request, coming).await,
        Found::Passing(fetched) => Ok(pass_through(fetched, request.param_maybe("name"))),
    }
}

fn held(share: Option<Share>) -> Option<Box<dyn Send + Sync>> {
    share.map(|share| Box::new(share) as Box<dyn Send + Sync>)
}

/// A whole file, or the range of it that the request names.
async fn send(request: &Request, opened: Opened) -> Result<Response, Error> {
    let Opened { mut file, bytes, content_type, name, etag, grant, share, .. } = opened;
    let shown = request.param_maybe("name").map(ToOwned::to_owned).or(name);
    let described = |response| lasting(response, content_type.as_deref(), shown.as_deref(), &etag);
    if is_known(request, &etag) {
        return Ok(described(Response::empty(StatusCode::NOT_MODIFIED)));
    }
    let (from, len) = match wanted(request, &etag).map(|range| part_of(range, bytes)) {
        None | Some(Part::All) => {
            return Ok(described(Response::of(
                StatusCode::OK,
                UNKNOWN_TYPE,
                http::file(grant, file, bytes, held(share)),
            )));
        }
        Some(Part::Range(from, len)) => (from, len),
        Some(Part::Beyond) => return Ok(beyond(bytes, described)),
    };
    let file = blocking(move || file.seek(SeekFrom::Start(from)).map(|_| file)).await;
    let file = file.map_err(|failed| ErrorResponse::internal(format_args!("a media file cannot be read: {failed}")))?;
    let response =
        described(Response::of(StatusCode::PARTIAL_CONTENT, UNKNOWN_TYPE, http::file(grant, file, len, held(share))));
    Ok(response.header("content-range", &format!("bytes {from}-{}/{bytes}", from + len - 1)))
}

/// A file that is still arriving, or the range of it that the request names. Only as much is waited for as the range
/// asks for: its end, or where the file ends when the range is counted from there. A range from the beginning to
/// wherever the file ends is all of it, which needs no wait.
async fn send_coming(client: &Client, request: &Request, mut coming: Coming) -> Result<Response, Error> {
    let (etag, content_type) = (coming.etag.clone(), coming.content_type().map(ToOwned::to_owned));
    let shown = request.param_maybe("name").or(coming.name()).map(ToOwned::to_owned);
    let described = |response| lasting(response, content_type.as_deref(), shown.as_deref(), &etag);
    if is_known(request, &etag) {
        return Ok(described(Response::empty(StatusCode::NOT_MODIFIED)));
    }
    let mut all = coming.length();
    let range = match wanted(request, &etag) {
        None => None,
        Some(range) => match all {
            Some(bytes) => Some(part_of(range, bytes)),
            None => {
                let known = reached(client, &coming, range).await?;
                all = coming.length();
                known
            }
        },
    };
    let grant = coming.take_grant().ok_or_else(|| ErrorResponse::internal("a file that arrives is paid for"))?;
    let (from, len) = match range {
        None | Some(Part::All) => {
            let body = match all {
                Some(bytes) => http::stream_of(grant, coming.pieces(0, Some(bytes)), bytes),
                None => http::stream(grant, coming.pieces(0, None)),
            };
            return Ok(described(Response::of(StatusCode::OK, UNKNOWN_TYPE, body)));
        }
        Some(Part::Range(from, len)) => (from, len),
        Some(Part::Beyond) => return Ok(beyond(all.unwrap_or(0), described)),
    };
    let body = http::stream_of(grant, coming.pieces(from, Some(from + len)), len);
    let whole = all.map_or_else(|| "*".to_owned(), |bytes| bytes.to_string());
    let response = described(Response::of(StatusCode::PARTIAL_CONTENT, UNKNOWN_TYPE, body));
    Ok(response.header("content-range", &format!("bytes {from}-{}/{whole}", from + len - 1)))
}

/// The range of a file whose length is not known yet, once all of the range is there. None for all of the file.
async fn reached(client: &Client, coming: &Coming, range: &str) -> Result<Option<Part>, Error> {
    // Measured at the longest file there could be: whether the range says where it ends.
    let (from, len) = match part_of(range, u64::MAX) {
        Part::All | Part::Beyond | Part::Range(0, u64::MAX) => return Ok(None),
        Part::Range(from, len) => (from, len),
    };
    let end = from.saturating_add(len);
    // When it takes long, HTTP allows for everything instead.
    let Some(there) = client.clock.timeout(PATIENCE_MAX, coming.until(end)).await else { return Ok(None) };
    let there = there?;
    let is_all_there = there >= end && coming.length().is_none();
    Ok(Some(if is_all_there { Part::Range(from, len) } else { part_of(range, coming.length().unwrap_or(there)) }))
}

/// What is said of a file that means the same bytes for ever.
fn lasting(response: Response, content_type: Option<&str>, name: Option<&str>, etag: &str) -> Response {
    described(response, content_type, name)
        .header("etag", etag)
        .header("accept-ranges", "bytes")
        // `private`, since the download needs an access token.
        .header("cache-control", "private, max-age=31536000, immutable")
}

fn beyond(bytes: u64, described: impl Fn(Response) -> Response) -> Response {
    described(Response::empty(StatusCode::RANGE_NOT_SATISFIABLE)).header("content-range", &format!("bytes */{bytes}"))
}

/// Whether the caller has the file already.
fn is_known(request: &Request, etag: &str) -> bool {
    let is_same = |one: &str| one.trim() == "*" || one.trim().trim_start_matches("W/") == etag;
    request.header("if-none-match").is_some_and(|known| known.split(',').any(is_same))
}

/// The range that the request asks for: none when it was asked for of another file (RFC 9110, `If-Range`). No date is
/// told, so none is the right one.
fn wanted<'a>(request: &'a Request, etag: &str) -> Option<&'a str> {
    let range = request.header("range")?;
    request.header("if-range").is_none_or(|of| of.trim() == etag).then_some(range)
}

/// Another server's file, a piece at a time. When its transfer breaks off, the answer breaks off too.
fn pass_through(mut fetched: Fetched, name: Option<&str>) -> Response {
    let (sender, body) = http::channel(fetched.take_grant());
    let shown = name.map(ToOwned::to_owned).or_else(|| fetched.name.clone());
    let response = Response::of(StatusCode::OK, UNKNOWN_TYPE, body);
    let response = described(response, fetched.content_type.as_deref(), shown.as_deref())
        .header("cache-control", "private, max-age=86400");
    let passing = async move {
        loop {
            match fetched.next().await {
                Ok(Some(piece)) => {
                    if !sender.send(piece).await {
                        return;
                    }
                }
                Ok(None) => return sender.finish().await,
                Err(failed) => return tracing::debug!("another server's file broke off: {failed}"),
            }
        }
    };
    detached(passing);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (range, part) in [
            ("bytes=0-9", Part::Range(0, 10)),
            ("bytes=90-", Part::Range(90, 10)),
            ("bytes=-10", Part::Range(90, 10)),
            ("bytes=-1000", Part::Range(0, 100)),
            ("bytes=50-1000", Part::Range(50, 50)),
            ("bytes=100-", Part::Beyond),
            ("bytes=9-1", Part::All),
            ("bytes=0-1,5-6", Part::All),
            ("lines=1-2", Part::All),
        ] {
            assert_eq!(part_of(range, 100), part, "{range}");
        }
    }
}
