//! Media: the meaning of each media id, and the files that lie beside the database.
//!
//! A file is named by the SHA-256 of its bytes and counted: when no media id refers to it any more it is noted as gone, in
//! the same write, and the note stays until the file is removed. A file that is about to get its place is noted the same
//! way, so that a power cut leaves no file that nothing knows of.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::{
    MEDIA, MEDIA_CLEAN, MEDIA_FILE, MEDIA_GONE, MEDIA_IDLE, MEDIA_MARK, MEDIA_PROMISED, MEDIA_USED,
};
use crate::store::tables::{self, thumbnail};
use crate::store::{Error, Get, Result, UserNum, Write};

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
    /// Whether it is given out to those alone who show an access token.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub authenticated: bool,
    /// The day it was last asked for, counted from 1970; not noted for every file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_day: Option<u32>,
}

/// A media id of another server's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub server: String,
    pub media_id: String,
}

/// What an administrator said of a file. Its bytes are meant, under whichever media id and however often they come again; and a file
/// of another server is meant by its name too, whether it is kept here or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Who had it withheld from everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined_by: Option<String>,
    /// It is not withheld along with others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_safe: bool,
    /// An administrator gave it out again though a scanner found something in it, which is not asked again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_cleared: bool,
    /// For a name: the SHA-256 of what was withheld along with it, in hex, since the file is not kept for long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// That a scanner called a file clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clean {
    /// The first time, and the last.
    pub first_ms: u64,
    pub last_ms: u64,
    /// What stood for the scanner's database then; 0 when it did not say.
    pub edition: u64,
}

/// Bytes of all files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Uploaded here: what the uploads have, each counted.
    pub local: u64,
    /// Kept of other servers: the same.
    pub remote: u64,
    /// On the disk: files that are alike are one.
    pub all: u64,
}

pub fn get(get: &impl Get, server: &str, media_id: &str) -> Result<Option<Media>> {
    tables::get_json(get, &MEDIA, &row(server, media_id))
}

/// Records a media id, counts its file and charges its uploader. The file is already in place.
pub fn put(w: &mut Write<'_>, server: &str, media_id: &str, media: &Media) -> Result<()> {
    remove(w, server, media_id)?;
    tables::put_json(w, &MEDIA, &row(server, media_id), media)?;
    let uses = file_uses(w, &media.file)? + 1;
    w.put(&MEDIA_FILE, media.file.as_bytes(), &uses.to_be_bytes())?;
    w.remove(&MEDIA_GONE, media.file.as_bytes())?;
    let mut used = used(w)?;
    match media.uploader {
        Some(uploader) => {
            used.local += media.bytes;
            let own = used_by(w, UserNum(uploader))? + media.bytes;
            w.put(&MEDIA_USED, &uploader.to_be_bytes(), &own.to_be_bytes())?;
        }
        None => {
            used.remote += media.bytes;
            w.put(&MEDIA_IDLE, &idle(media, server, media_id), b"")?;
        }
    }
    if uses == 1 {
        used.all += media.bytes;
    }
    put_used(w, used)
}

/// Forgets a media id, and notes its file as gone when no other refers to it. Answers what it was.
pub fn remove(w: &mut Write<'_>, server: &str, media_id: &str) -> Result<Option<Media>> {
    let Some(media) = get(w, server, media_id)? else { return Ok(None) };
    w.remove(&MEDIA, &row(server, media_id))?;
    let mut used = used(w)?;
    match media.uploader {
        Some(uploader) => {
            used.local = used.local.saturating_sub(media.bytes);
            let own = used_by(w, UserNum(uploader))?.saturating_sub(media.bytes);
            w.put(&MEDIA_USED, &uploader.to_be_bytes(), &own.to_be_bytes())?;
        }
        None => {
            used.remote = used.remote.saturating_sub(media.bytes);
            w.remove(&MEDIA_IDLE, &idle(&media, server, media_id))?;
            // Whoever gives it out again names it by this.
            let mark = mark_of_name(w, server, media_id)?;
            if mark.quarantined_by.is_some() && mark.file.is_none() {
                set_mark_of_name(w, server, media_id, &Mark { file: Some(media.file.clone()), ..mark })?;
            }
        }
    }
    match file_uses(w, &media.file)? {
        0 | 1 => {
            w.remove(&MEDIA_FILE, media.file.as_bytes())?;
            w.put(&MEDIA_GONE, media.file.as_bytes(), b"")?;
            thumbnail::forget(w, &media.file)?;
            w.remove(&MEDIA_CLEAN, media.file.as_bytes())?;
            used.all = used.all.saturating_sub(media.bytes);
        }
        uses => w.put(&MEDIA_FILE, media.file.as_bytes(), &(uses - 1).to_be_bytes())?,
    }
    put_used(w, used)?;
    Ok(Some(media))
}

/// Notes the day on which a file was asked for.
pub fn touch(w: &mut Write<'_>, server: &str, media_id: &str, day: u32) -> Result<()> {
    let Some(mut media) = get(w, server, media_id)? else { return Ok(()) };
    if media.used_day >= Some(day) {
        return Ok(());
    }
    if media.uploader.is_none() {
        w.remove(&MEDIA_IDLE, &idle(&media, server, media_id))?;
    }
    media.used_day = Some(day);
    if media.uploader.is_none() {
        w.put(&MEDIA_IDLE, &idle(&media, server, media_id), b"")?;
    }
    tables::put_json(w, &MEDIA, &row(server, media_id), &media)
}

/// At most `most` files of other servers, those first that were asked for longest ago; only those last asked for before
/// a day, if there is one.
pub fn longest_idle(get: &impl Get, before_day: Option<u32>, most: usize) -> Result<Vec<Remote>> {
    let (mut found, before) = (Vec::new(), before_day.map(u32::to_be_bytes));
    get.range(&MEDIA_IDLE, &[], before.as_ref().map(|day| &day[..]), false, &mut |key, _| {
        let (server, media_id) =
            parted(key.get(4..).unwrap_or_default()).ok_or_else(|| Error::corrupt(&MEDIA_IDLE, key))?;
        found.push(Remote { server, media_id });
        Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// At most `most` media ids of one server after `after`, with what each means.
pub fn of_server(get: &impl Get, server: &str, after: &str, most: usize) -> Result<Vec<(String, Media)>> {
    let (from, end) = (row(server, &format!("{after}\0")), [server.as_bytes(), &[1]].concat());
    let mut found = Vec::new();
    get.range(&MEDIA, &from, Some(&end), false, &mut |key, value| {
        let (_, media_id) = parted(key).ok_or_else(|| Error::corrupt(&MEDIA, key))?;
        found.push((media_id, tables::parse(&MEDIA, key, value)?));
        Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// At most `most` files behind `after`, in the order of their names.
pub fn files_after(get: &impl Get, after: &str, most: usize) -> Result<Vec<String>> {
    let mut found = Vec::new();
    get.range(&MEDIA_FILE, &[after.as_bytes(), &[0]].concat(), None, false, &mut |key, _| {
        found.push(String::from_utf8(key.to_vec()).map_err(|_| Error::corrupt(&MEDIA_FILE, key))?);
        Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// At most `most` media ids of any server behind `after`, with what each means.
pub fn ids_after(get: &impl Get, after: Option<&Remote>, most: usize) -> Result<Vec<(Remote, Media)>> {
    let from = after.map_or(Vec::new(), |after| [&row(&after.server, &after.media_id)[..], &[0]].concat());
    let mut found = Vec::new();
    get.range(&MEDIA, &from, None, false, &mut |key, value| {
        let (server, media_id) = parted(key).ok_or_else(|| Error::corrupt(&MEDIA, key))?;
        found.push((Remote { server, media_id }, tables::parse(&MEDIA, key, value)?));
        Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// What was said of a file by its bytes.
pub fn mark(get: &impl Get, file: &str) -> Result<Mark> {
    Ok(tables::get_json(get, &MEDIA_MARK, file.as_bytes())?.unwrap_or_default())
}

/// What was said of a file by its name.
pub fn mark_of_name(get: &impl Get, server: &str, media_id: &str) -> Result<Mark> {
    Ok(tables::get_json(get, &MEDIA_MARK, &row(server, media_id))?.unwrap_or_default())
}

pub fn set_mark(w: &mut Write<'_>, file: &str, mark: &Mark) -> Result<()> {
    put_mark(w, file.as_bytes(), mark)
}

pub fn set_mark_of_name(w: &mut Write<'_>, server: &str, media_id: &str, mark: &Mark) -> Result<()> {
    put_mark(w, &row(server, media_id), mark)
}

fn put_mark(w: &mut Write<'_>, key: &[u8], mark: &Mark) -> Result<()> {
    match *mark == Mark::default() {
        true => w.remove(&MEDIA_MARK, key).map(drop),
        false => tables::put_json(w, &MEDIA_MARK, key, mark),
    }
}

/// Whether and when a file was called clean.
pub fn clean(get: &impl Get, file: &str) -> Result<Option<Clean>> {
    let Some(value) = get.get(&MEDIA_CLEAN, file.as_bytes())? else { return Ok(None) };
    let number = |at: usize| value.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    let first_ms = number(0).ok_or_else(|| Error::corrupt(&MEDIA_CLEAN, file.as_bytes()))?;
    // A row of before has the first time alone.
    Ok(Some(Clean { first_ms, last_ms: number(8).unwrap_or(first_ms), edition: number(16).unwrap_or(0) }))
}

/// Notes that a file is clean, if there is one.
pub fn set_clean(w: &mut Write<'_>, file: &str, now_ms: u64, edition: u64) -> Result<()> {
    if file_uses(w, file)? == 0 {
        return Ok(());
    }
    let first_ms = clean(w, file)?.map_or(now_ms, |clean| clean.first_ms);
    let row = [first_ms, now_ms, edition].map(u64::to_be_bytes).concat();
    w.put(&MEDIA_CLEAN, file.as_bytes(), &row)
}

/// What was said of it counts no more.
pub fn forget_clean(w: &mut Write<'_>, file: &str) -> Result<()> {
    w.remove(&MEDIA_CLEAN, file.as_bytes()).map(drop)
}

/// Notes that the file is about to get its place, unless something refers to it already.
pub fn expect_file(w: &mut Write<'_>, file: &str) -> Result<()> {
    match file_uses(w, file)? {
        0 => w.put(&MEDIA_GONE, file.as_bytes(), b""),
        _ => Ok(()),
    }
}

/// At most `most` files that are to be removed.
pub fn gone(get: &impl Get, most: usize) -> Result<Vec<String>> {
    let mut found = Vec::new();
    get.range(&MEDIA_GONE, &[], None, false, &mut |key, _| {
        found.push(String::from_utf8(key.to_vec()).map_err(|_| Error::corrupt(&MEDIA_GONE, key))?);
        Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// The file is removed, or used again.
pub fn forget_gone(w: &mut Write<'_>, file: &str) -> Result<()> {
    w.remove(&MEDIA_GONE, file.as_bytes()).map(drop)
}

/// A media id given out before its file: to whom, and until when.
pub fn promise(w: &mut Write<'_>, media_id: &str, to: UserNum, expires_ms: u64) -> Result<()> {
    w.put(&MEDIA_PROMISED, media_id.as_bytes(), &[&to.to_key()[..], &expires_ms.to_be_bytes()].concat())
}

pub fn forget_promise(w: &mut Write<'_>, media_id: &str) -> Result<()> {
    w.remove(&MEDIA_PROMISED, media_id.as_bytes()).map(drop)
}

/// Forgets at most `most` media ids whose time was over at `now_ms`.
pub fn forget_promises_until(w: &mut Write<'_>, now_ms: u64, most: usize) -> Result<()> {
    let mut over = Vec::new();
    promises(w, &mut |media_id, _, expires_ms| {
        if expires_ms <= now_ms && over.len() < most {
            over.push(media_id);
        }
    })?;
    over.iter().try_for_each(|media_id| forget_promise(w, media_id))
}

/// Every media id given out before its file.
pub fn promises(get: &impl Get, f: &mut dyn FnMut(String, UserNum, u64)) -> Result<()> {
    get.range(&MEDIA_PROMISED, &[], None, false, &mut |key, value| {
        let wrong = || Error::corrupt(&MEDIA_PROMISED, key);
        let (to, expires_ms) = value.split_first_chunk::<4>().ok_or_else(wrong)?;
        let expires_ms = u64::from_be_bytes(expires_ms.try_into().map_err(|_| wrong())?);
        let media_id = String::from_utf8(key.to_vec()).map_err(|_| wrong())?;
        f(media_id, UserNum(u32::from_be_bytes(*to)), expires_ms);
        Ok(ControlFlow::Continue(()))
    })
}

/// How many media ids refer to a file.
pub fn file_uses(get: &impl Get, file: &str) -> Result<u64> {
    number(get.get(&MEDIA_FILE, file.as_bytes())?).map(|uses| uses.unwrap_or(0))
}

/// Bytes a local user has uploaded.
pub fn used_by(get: &impl Get, user: UserNum) -> Result<u64> {
    number(get.get(&MEDIA_USED, &user.to_key())?).map(|bytes| bytes.unwrap_or(0))
}

/// Bytes of all files.
pub fn used(get: &impl Get) -> Result<Used> {
    let all = number(get.get(&MEDIA_USED, ALL)?)?.unwrap_or(0);
    // While no file of other servers was kept, all of them were uploaded here.
    let local = number(get.get(&MEDIA_USED, LOCAL)?)?.unwrap_or(all);
    Ok(Used { local, remote: number(get.get(&MEDIA_USED, REMOTE)?)?.unwrap_or(0), all })
}

/// The day since which it is noted when uploads are asked for; none while it is not.
pub fn noted_since(get: &impl Get) -> Result<Option<u32>> {
    Ok(number(get.get(&MEDIA_USED, NOTED)?)?.map(|day| day as u32))
}

pub fn put_noted_since(w: &mut Write<'_>, day: Option<u32>) -> Result<()> {
    match day {
        Some(day) => w.put(&MEDIA_USED, NOTED, &u64::from(day).to_be_bytes()),
        None => w.remove(&MEDIA_USED, NOTED).map(drop),
    }
}

fn put_used(w: &mut Write<'_>, used: Used) -> Result<()> {
    for (key, bytes) in [(ALL, used.all), (LOCAL, used.local), (REMOTE, used.remote)] {
        w.put(&MEDIA_USED, key, &bytes.to_be_bytes())?;
    }
    Ok(())
}

/// The rows of the totals; users' rows are four bytes.
const ALL: &[u8] = b"all";
const LOCAL: &[u8] = b"local";
const REMOTE: &[u8] = b"remote";
/// The row of [`noted_since`].
const NOTED: &[u8] = b"noted";

fn number(value: Option<Vec<u8>>) -> Result<Option<u64>> {
    let Some(value) = value else { return Ok(None) };
    let bytes = value.as_slice().try_into().map_err(|_| Error::corrupt(&MEDIA_USED, &value))?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

fn row(server: &str, media_id: &str) -> Vec<u8> {
    [server.as_bytes(), &[0], media_id.as_bytes()].concat()
}

fn parted(key: &[u8]) -> Option<(String, String)> {
    let (server, media_id) = std::str::from_utf8(key).ok()?.split_once('\0')?;
    Some((server.to_owned(), media_id.to_owned()))
}

fn idle(media: &Media, server: &str, media_id: &str) -> Vec<u8> {
    [&media.used_day.unwrap_or(0).to_be_bytes()[..], &row(server, media_id)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn file(file: &str, bytes: u64, uploader: Option<u32>) -> Media {
        let used_day = uploader.is_none().then_some(10);
        let (content_type, name) = (None, None);
        Media {
            file: file.to_owned(),
            bytes,
            content_type,
            name,
            uploader,
            created_ms: 0,
            authenticated: true,
            used_day,
        }
    }

    #[test]
    fn what_is_removed_is_counted_back_and_its_file_noted_once_nothing_refers_to_it() {
        let store = Store::in_memory();
        let done = store.write_blocking(|w| {
            // As a database from before has it.
            w.put(&MEDIA_USED, ALL, &5u64.to_be_bytes())?;
            expect_file(w, "a")?;
            assert_eq!(gone(w, 9)?, ["a"]);
            put(w, "here", "1", &file("a", 10, Some(7)))?;
            put(w, "here", "2", &file("a", 10, Some(8)))?;
            put(w, "there", "1", &file("b", 100, None))?;
            put(w, "there", "2", &file("a", 10, None))?;
            assert_eq!(used(w)?, Used { local: 25, remote: 110, all: 115 });
            expect_file(w, "a")?;
            assert!(gone(w, 9)?.is_empty());
            assert_eq!(remove(w, "here", "1")?.map(|media| media.bytes), Some(10));
            assert_eq!((remove(w, "here", "1")?, used_by(w, UserNum(7))?, used_by(w, UserNum(8))?), (None, 0, 10));
            touch(w, "there", "1", 12)?;
            touch(w, "there", "1", 11)?;
            let names = |found: Vec<Remote>| found.into_iter().map(|one| one.media_id).collect::<Vec<_>>();
            assert_eq!(names(longest_idle(w, None, 9)?), ["2", "1"]);
            assert_eq!(names(longest_idle(w, Some(12), 9)?), ["2"]);
            remove(w, "there", "1")?;
            assert_eq!((gone(w, 9)?, used(w)?), (vec!["b".to_owned()], Used { local: 15, remote: 10, all: 15 }));
            remove(w, "there", "2")?;
            assert!(longest_idle(w, None, 9)?.is_empty());
            assert_eq!(gone(w, 9)?, ["b"]);
            let left = of_server(w, "here", "", 9)?;
            assert_eq!(left.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["2"]);
            assert!(of_server(w, "here", "2", 9)?.is_empty() && of_server(w, "he", "", 9)?.is_empty());
            remove(w, "here", "2")?;
            assert_eq!((gone(w, 1)?, used(w)?), (vec!["a".to_owned()], Used { local: 5, remote: 0, all: 5 }));
            Ok::<_, Error>(())
        });
        done.unwrap();
    }
}
