//! Files: POST media upload, create and PUT upload, GET download, thumbnail and config, on the new paths and the old.
//!
//! The old paths need no access token, so they answer with files of this server only.

use std::io::{Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use ruma::OwnedServerName;
use serde_json::json;
use tracing::Instrument;

use super::{Client, Error, auth, rates};
use crate::base::blocking;
use crate::http::file::UNKNOWN_TYPE;
use crate::http::file::{Part, described, part_of};
use crate::http::{self, ErrorResponse, Request, Response, StatusCode};
use crate::media::{About, Fetched, Opened, Scaled};
use crate::user::UserNum;

/// The longest wait for a file whose media id was given out before the upload.
const PATIENCE_MAX: Duration = Duration::from_secs(60);
const PATIENCE_DEFAULT_MS: u64 = 20_000;

/// POST /_matrix/media/v3/upload
///
/// 403 `M_RESOURCE_LIMIT_EXCEEDED` when the disk or the user's share of it is used up; 413 `M_TOO_LARGE` for a file
/// larger than `m.upload.size`.
pub async fn upload(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::UPLOAD, requester.user_id.as_str())?;
    let media_id = take_in(&client, request, requester.user_num, None).await?;
    Ok(Response::json(&json!({ "content_uri": uri(&client, &media_id) })))
}

/// POST /_matrix/media/v1/create
pub async fn create(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::UPLOAD, requester.user_id.as_str())?;
    let (media_id, expires_ms) = client.media.promise(requester.user_num);
    Ok(Response::json(&json!({ "content_uri": uri(&client, &media_id), "unused_expires_at": expires_ms })))
}

/// PUT /_matrix/media/v3/upload/{server}/{media_id}
///
/// 403 `M_FORBIDDEN` when the path names another server, or the media id was given to another user; 404 `M_NOT_FOUND`
/// when the media id was not given out or has expired; 409 `M_CANNOT_OVERWRITE_MEDIA` when it has its file already;
/// 403 `M_RESOURCE_LIMIT_EXCEEDED` when the disk or the user's share of it is used up; 413 `M_TOO_LARGE` for a file
/// larger than `m.upload.size`.
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
    let mut upload = client.media.begin(uploader, announced).await?;
    while let Some(piece) = body.next().await? {
        upload.write(piece).await?;
    }
    Ok(upload.finish(about, promised).await?)
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
        return local(&client, &request).await;
    }
    request.limit_user(&rates::FETCH, requester.user_id.as_str())?;
    let fetched = client.media.fetch(&server, request.param("media_id"), None).await?;
    Ok(pass_through(fetched, request.param_maybe("name")))
}

/// GET /_matrix/media/v3/download/{server}/{media_id} and …/{name}: the old path, for files of this server.
///
/// 404 `M_NOT_FOUND` when there is no such file; 504 `M_NOT_YET_UPLOADED` when the file has not come in time; 416
/// without a body for a range beyond its end; 404 `M_NOT_FOUND` for files of other servers.
pub async fn download_old(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    only_here(&client, &request)?;
    local(&client, &request).await
}

/// GET /_matrix/client/v1/media/thumbnail/{server}/{media_id}. For an image of this server the answer is the image
/// itself: the specification allows one larger than asked for. For an image of another server it is that server's
/// thumbnail.
///
/// 400 `M_MISSING_PARAM` without `width` or `height`, or when one is 0; 400 `M_UNKNOWN` when a file of this server is
/// no image; 404 `M_NOT_FOUND` when there is no such file; 504 `M_NOT_YET_UPLOADED` when the file has not come in
/// time; 416 without a body for a range beyond its end. For another server's file: 404 `M_NOT_FOUND` when that server
/// refuses; 502 `M_UNKNOWN` when it gives no usable answer.
pub async fn thumbnail(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let server: OwnedServerName = request.param_as("server")?;
    let scaled = scaled(&request)?;
    if client.media.is_here(&server) {
        return local_image(&client, &request).await;
    }
    request.limit_user(&rates::FETCH, requester.user_id.as_str())?;
    let fetched = client.media.fetch(&server, request.param("media_id"), Some(scaled)).await?;
    Ok(pass_through(fetched, None))
}

/// GET /_matrix/media/v3/thumbnail/{server}/{media_id}
///
/// 400 `M_MISSING_PARAM` without `width` or `height`, or when one is 0; 400 `M_UNKNOWN` when a file of this server is
/// no image; 404 `M_NOT_FOUND` when there is no such file; 504 `M_NOT_YET_UPLOADED` when the file has not come in
/// time; 416 without a body for a range beyond its end; 404 `M_NOT_FOUND` for files of other servers.
pub async fn thumbnail_old(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    only_here(&client, &request)?;
    scaled(&request)?;
    local_image(&client, &request).await
}

fn only_here(client: &Client, request: &Request) -> Result<(), ErrorResponse> {
    let server: OwnedServerName = request.param_as("server")?;
    match client.media.is_here(&server) {
        true => Ok(()),
        false => Err(ErrorResponse::not_found(
            "Media of other servers needs the authenticated endpoints under /_matrix/client/v1/media",
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

async fn local_image(client: &Client, request: &Request) -> Result<Response, Error> {
    let opened = client.media.open(request.param("media_id"), patience(request)?).await?;
    if !opened.content_type.as_deref().is_some_and(|kind| kind.starts_with("image/")) {
        return Err(ErrorResponse::bad("M_UNKNOWN", "This server makes no thumbnails for this type of file").into());
    }
    send(request, opened).await
}

async fn local(client: &Client, request: &Request) -> Result<Response, Error> {
    let opened = client.media.open(request.param("media_id"), patience(request)?).await?;
    send(request, opened).await
}

fn patience(request: &Request) -> Result<Duration, ErrorResponse> {
    let ms = request.query_as("timeout_ms")?.unwrap_or(PATIENCE_DEFAULT_MS);
    Ok(Duration::from_millis(ms).min(PATIENCE_MAX))
}

/// A file of this server, or the range of it that the request names.
async fn send(request: &Request, opened: Opened) -> Result<Response, Error> {
    let Opened { mut file, bytes, content_type, name, hash, grant } = opened;
    let etag = format!("\"{hash}\"");
    let shown = request.param_maybe("name").map(ToOwned::to_owned).or(name);
    let described = |response: Response| {
        described(response, content_type.as_deref(), shown.as_deref())
            .header("etag", &etag)
            .header("accept-ranges", "bytes")
            // A media id means the same bytes for ever. `private`, since the download needs an access token.
            .header("cache-control", "private, max-age=31536000, immutable")
    };
    if request.header("if-none-match").is_some_and(|known| known.split(',').any(|one| one.trim() == etag)) {
        return Ok(described(Response::empty(StatusCode::NOT_MODIFIED)));
    }
    let range = match request.header("range").map(|range| part_of(range, bytes)) {
        None | Some(Part::All) => None,
        Some(Part::Range(from, len)) => Some((from, len)),
        Some(Part::Beyond) => {
            let response = Response::empty(StatusCode::RANGE_NOT_SATISFIABLE);
            return Ok(described(response).header("content-range", &format!("bytes */{bytes}")));
        }
    };
    let Some((from, len)) = range else {
        return Ok(described(Response::of(StatusCode::OK, UNKNOWN_TYPE, http::file(grant, file, bytes))));
    };
    let file = blocking(move || file.seek(SeekFrom::Start(from)).map(|_| file)).await;
    let file = file.map_err(|failed| ErrorResponse::internal(format_args!("a media file cannot be read: {failed}")))?;
    let response = described(Response::of(StatusCode::PARTIAL_CONTENT, UNKNOWN_TYPE, http::file(grant, file, len)));
    Ok(response.header("content-range", &format!("bytes {from}-{}/{bytes}", from + len - 1)))
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
    tokio::spawn(passing.in_current_span());
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
