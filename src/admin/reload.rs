//! Reading the settings again, for `snug reload` and the page.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use serde::Serialize;

use super::{Admin, error::Error};
use crate::http::{ErrorResponse, Request, Response};

/// What reading the settings again has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// The settings that are in force as they are written now.
    pub changed: Vec<&'static str>,
    /// Those that will be with the next start.
    pub restart: Vec<&'static str>,
}

/// Who can read the settings again: the start of the server, which knows all parts.
pub trait Reload: Send + Sync {
    /// An error is a sentence about the settings; then nothing has changed.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<Reloaded, String>> + Send + '_>>;
}

/// `POST /reload`: reads the settings again. 400 with a sentence when they cannot be used; then nothing has changed.
pub async fn reload(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    let Some(reload) = admin.reload.get().and_then(Weak::upgrade) else {
        return Err(ErrorResponse::bad(
            "M_UNKNOWN",
            "This server runs for one command only and has no settings to read again",
        )
        .into());
    };
    let reloaded = reload.reload().await.map_err(|wrong| ErrorResponse::bad("M_UNKNOWN", wrong))?;
    Ok(Response::json(&reloaded))
}
