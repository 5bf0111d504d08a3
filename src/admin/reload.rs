//! Reading the settings again, for `snug reload` and the page.

use std::future::Future;
use std::path::PathBuf;
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

/// A setting for the page.
#[derive(Debug, Clone)]
pub struct Setting {
    /// With its section: `federation.listen`.
    pub name: &'static str,
    /// As it is written in the file and in force; `None`: the file does not say it. A secret is `"…"`.
    pub written: Option<String>,
    pub default: Option<&'static str>,
    pub example: &'static str,
    pub doc: &'static str,
    /// Whether a change is in force without a restart.
    pub is_live: bool,
}

/// Who can read the settings again: the start of the server, which knows all parts.
pub trait Reload: Send + Sync {
    /// An error is a sentence about the settings; then nothing has changed.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<Reloaded, String>> + Send + '_>>;

    /// The file that the settings are from, and every setting, those of a section together.
    fn settings(&self) -> (Option<PathBuf>, Vec<Setting>);
}

/// `POST /reload`: reads the settings again. 400 with a sentence when they cannot be used; then nothing has changed.
pub async fn reload(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    Ok(Response::json(&reloaded(&admin).await?))
}

/// Reads the settings again.
pub async fn reloaded(admin: &Admin) -> Result<Reloaded, Error> {
    let reloaded = whole(admin)?.reload().await;
    Ok(reloaded.map_err(|wrong| ErrorResponse::bad("M_UNKNOWN", wrong))?)
}

/// Who knows the settings.
pub fn whole(admin: &Admin) -> Result<Arc<dyn Reload>, Error> {
    let reload = admin.reload.get().and_then(Weak::upgrade);
    Ok(reload.ok_or_else(|| {
        ErrorResponse::bad("M_UNKNOWN", "This server runs for one command only and has no settings to read again")
    })?)
}
