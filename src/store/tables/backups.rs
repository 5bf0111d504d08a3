//! When backups of the server were made, and that it was restored.

use serde::{Deserialize, Serialize};

use crate::store::schema::BACKUP_NOTED;
use crate::store::{Get, Result, Write, tables};

/// What is noted of backups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// When the last whole one was made, and where to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// When the last whole one of the schedule was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_ms: Option<u64>,
    /// When the last failure was, if it was after that, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When this server was restored, and of when the backup was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_from_ms: Option<u64>,
}

const ROW: &[u8] = b"noted";

pub fn get(get: &impl Get) -> Result<Noted> {
    Ok(tables::get_json(get, &BACKUP_NOTED, ROW)?.unwrap_or_default())
}

/// A whole backup was made, by the schedule or by hand.
pub fn made(w: &mut Write<'_>, at_ms: u64, target: &str, is_scheduled: bool) -> Result<()> {
    let mut noted = get(w)?;
    (noted.made_ms, noted.target) = (Some(at_ms), Some(target.to_owned()));
    (noted.failed_ms, noted.why) = (None, None);
    if is_scheduled {
        noted.scheduled_ms = Some(at_ms);
    }
    tables::put_json(w, &BACKUP_NOTED, ROW, &noted)
}

/// One could not be made.
pub fn failed(w: &mut Write<'_>, at_ms: u64, why: &str) -> Result<()> {
    let before = get(w)?;
    tables::put_json(w, &BACKUP_NOTED, ROW, &Noted { failed_ms: Some(at_ms), why: Some(why.to_owned()), ..before })
}

/// The server is what a backup had.
pub fn restored(w: &mut Write<'_>, at_ms: u64, from_ms: u64) -> Result<()> {
    let noted = Noted { restored_ms: Some(at_ms), restored_from_ms: Some(from_ms), ..Noted::default() };
    tables::put_json(w, &BACKUP_NOTED, ROW, &noted)
}
