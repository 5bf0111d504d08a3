//! Previews of links: GET media preview_url, on the new path and the old.

use std::sync::Arc;

use super::{Client, Error, auth, rates};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::media::{Looked, NoPreview};

/// How long an app that came while too many were made is to wait.
const BUSY_MS: u64 = 5_000;

/// GET /_matrix/client/v1/media/preview_url, and its older path
///
/// 400 `M_MISSING_PARAM` without `url`; 400 `M_INVALID_PARAM` for what is no link; 403 `M_FORBIDDEN` when previews are off, for a
/// site that the operator leaves out, for a page that its site asks programs not to read, and for an address in a private network; 502 `M_UNKNOWN` when the web server gives no
/// usable answer.
pub async fn preview_url(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let url = request.query("url").ok_or_else(|| ErrorResponse::missing_param("url"))?;
    let answer = match client.media.kept_preview(&url).await.map_err(error)? {
        Looked::Kept(answer) => answer,
        Looked::Missing => {
            request.limit_user(&rates::PREVIEW, requester.user_id.as_str())?;
            client.media.preview(requester.user_num, &url).await.map_err(error)?
        }
    };
    Ok(Response::json_bytes(StatusCode::OK, answer))
}

fn error(failed: NoPreview) -> Error {
    match failed {
        NoPreview::Off | NoPreview::Denied(_) | NoPreview::Unwanted => {
            ErrorResponse::forbidden(failed.to_string()).into()
        }
        NoPreview::BadUrl(why) => ErrorResponse::invalid_param(why).into(),
        NoPreview::Busy => ErrorResponse::limit_exceeded(BUSY_MS).into(),
        NoPreview::Failed(_) => ErrorResponse::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", failed.to_string()).into(),
        NoPreview::Media(failed) => failed.into(),
    }
}
