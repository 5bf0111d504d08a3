//! Reading the settings again, for `snug reload` and the page.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use serde::Serialize;

use super::{Admin, error::Error};
use crate::http::page::Input;
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
    /// As it is written in the file; `None`: the file does not say it. A secret is `"…"`.
    pub written: Option<String>,
    pub default: Option<&'static str>,
    pub example: &'static str,
    pub doc: &'static str,
    /// Whether a change is in force without a restart.
    pub is_live: bool,
    /// How the page asks for it, where it may be changed there.
    pub input: Option<Input>,
    /// What is written, or what comes without it, as somebody would type it.
    pub typed: String,
    /// What is in force is what was written at the start.
    pub waits: bool,
    /// By this setting something goes that does not come back.
    pub removes: bool,
}

/// Who can read the settings again: the start of the server, which knows all parts.
pub trait Reload: Send + Sync {
    /// An error is a sentence about the settings; then nothing has changed.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<Reloaded, String>> + Send + '_>>;

    /// Writes a setting into the config file as somebody typed it, or takes it out, and reads the file again. An error is a
    /// sentence; then nothing has changed.
    fn change(
        &self,
        name: &str,
        typed: Option<&str>,
    ) -> Pin<Box<dyn Future<Output = Result<Reloaded, String>> + Send + '_>>;

    /// Why no setting can be written into the file; `None` where one can. Looks at the file.
    fn closed(&self) -> Option<String>;

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
