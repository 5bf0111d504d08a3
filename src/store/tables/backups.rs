//! When backups of the server were made, and that it was restored.

use serde::{Deserialize, Serialize};

use crate::store::schema::BACKUP_NOTED;
use crate::store::{Get, Result, Write, tables};

/// How many whole backups are noted: at 350 bytes each, with an ordinary path, the row is 11 KiB.
const MADE_MAX: usize = 32;

/// A whole backup, which was read back when it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// When it began, which its name tells, and when it was whole.
    pub begun_ms: u64,
    pub at_ms: u64,
    pub target: String,
    /// Of all that is in it, as it is here, and of what was written: the rest was in the target already.
    pub bytes: u64,
    pub new_bytes: u64,
    /// The target was on another disk than the server.
    #[serde(default)]
    pub is_apart: bool,
}

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
    /// The last whole ones, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<Made>,
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
pub fn made(w: &mut Write<'_>, new: Made, is_scheduled: bool) -> Result<()> {
    let mut noted = get(w)?;
    (noted.made_ms, noted.target) = (Some(new.at_ms), Some(new.target.clone()));
    (noted.failed_ms, noted.why) = (None, None);
    if is_scheduled {
        noted.scheduled_ms = Some(new.at_ms);
    }
    noted.made.push(new);
    let many = noted.made.len().saturating_sub(MADE_MAX);
    noted.made.drain(..many);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_noted_and_the_oldest_goes_first() {
        let store = crate::store::Store::in_memory();
        let number =
            |n: u64| Made { begun_ms: n, at_ms: n, target: "/mnt".to_owned(), bytes: n, new_bytes: n, is_apart: false };
        for n in 0..MADE_MAX as u64 + 5 {
            store.write_blocking(move |w| made(w, number(n), false)).unwrap();
        }
        let noted = get(&store.read().unwrap()).unwrap();
        assert_eq!((noted.made.len(), noted.made[0].begun_ms, noted.made_ms), (MADE_MAX, 5, Some(36)));
    }
}
