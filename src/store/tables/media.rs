//! Media: the meaning of each media id, and the files that lie beside the database.
//!
//! A file is named by the SHA-256 of its bytes and counted: it may be removed when no media id refers to it any more.

use serde::{Deserialize, Serialize};

use crate::store::schema::{MEDIA, MEDIA_FILE, MEDIA_USED};
use crate::store::{Error, Get, Result, UserNum, Write, tables};

/// The meaning of a media id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Media {
    /// SHA-256 of the bytes, in hex: the name of the file.
    pub file: String,
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The local uploader; none for a file fetched from another server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploader: Option<u32>,
    pub created_ms: u64,
}

pub fn get(get: &impl Get, server: &str, media_id: &str) -> Result<Option<Media>> {
    tables::get_json(get, &MEDIA, &row(server, media_id))
}

/// Records a media id, counts its file and charges its uploader. The file is already in place.
pub fn put(w: &mut Write<'_>, server: &str, media_id: &str, media: &Media) -> Result<()> {
    tables::put_json(w, &MEDIA, &row(server, media_id), media)?;
    let uses = file_uses(w, &media.file)? + 1;
    w.put(&MEDIA_FILE, media.file.as_bytes(), &uses.to_be_bytes())?;
    if let Some(uploader) = media.uploader {
        let used = used_by(w, UserNum(uploader))? + media.bytes;
        w.put(&MEDIA_USED, &uploader.to_be_bytes(), &used.to_be_bytes())?;
    }
    if uses == 1 {
        let all = used_in_all(w)? + media.bytes;
        w.put(&MEDIA_USED, ALL, &all.to_be_bytes())?;
    }
    Ok(())
}

/// How many media ids refer to a file.
pub fn file_uses(get: &impl Get, file: &str) -> Result<u64> {
    number(get.get(&MEDIA_FILE, file.as_bytes())?)
}

/// Bytes a local user has uploaded.
pub fn used_by(get: &impl Get, user: UserNum) -> Result<u64> {
    number(get.get(&MEDIA_USED, &user.to_key())?)
}

/// Bytes all files take together.
pub fn used_in_all(get: &impl Get) -> Result<u64> {
    number(get.get(&MEDIA_USED, ALL)?)
}

/// The row of the total; users' rows are four bytes.
const ALL: &[u8] = b"all";

fn number(value: Option<Vec<u8>>) -> Result<u64> {
    let Some(value) = value else { return Ok(0) };
    let bytes = value.as_slice().try_into().map_err(|_| Error::corrupt(&MEDIA_USED, &value))?;
    Ok(u64::from_be_bytes(bytes))
}

fn row(server: &str, media_id: &str) -> Vec<u8> {
    [server.as_bytes(), &[0], media_id.as_bytes()].concat()
}
