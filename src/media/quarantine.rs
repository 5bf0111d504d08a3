//! What administrators do with files: look through them, withhold them from everybody, keep some safe from that, delete those that
//! are large and old.
//!
//! What is withheld are bytes: the same file under another media id, or uploaded again, is withheld too. A file of another server is
//! withheld by its name as well, so that it is not fetched either. Lists are walks over the files of this server, a page at a time.

use std::cmp::Reverse;

use ruma::ServerName;

use super::scan::SCANNER;
use super::tidy::DAY_MS;
use super::{Error, Media};
use crate::base::{Ranked, blocking, bounded, ranked};
use crate::store::tables::media::{self, Mark};
use crate::store::{Read, UserNum, Write, WriteError};

/// Characters of a text by which files are put in order.
const ORDER_CHARS: usize = 48;
/// Files looked at in one step, of up to 1.3 KiB each where somebody chose long names: 21 KiB.
const LOOKED_AT: usize = 16;
/// Files removed in one write, each about four rows.
const STEP: usize = 32;
/// A file as a list shows it, with a name and a type of 255 characters.
#[derive(Debug, Clone)]
pub struct ListedFile {
    pub media_id: String,
    pub uploader: Option<UserNum>,
    pub bytes: u64,
    pub content_type: Option<String>,
    pub name: Option<String>,
    pub created_ms: u64,
    /// The beginning of the day on which it was last asked for, where that is noted.
    pub used_ms: Option<u64>,
    pub authenticated: bool,
    /// The SHA-256 in hex.
    pub hash: String,
    pub quarantined_by: Option<String>,
    pub is_safe: bool,
}

/// What files are put in order by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MediaOrder {
    #[default]
    Created,
    Id,
    Name,
    Used,
    Bytes,
    Type,
    Quarantined,
    Safe,
}

type Key = (u64, String, String);

impl Media {
    /// The uploads of a user at the ranks `from..from + most`, and how many there are in all. `most` is at most 96.
    pub async fn uploads_of(
        &self,
        uploader: UserNum,
        order: MediaOrder,
        backwards: bool,
        from: usize,
        most: usize,
    ) -> Result<(Vec<String>, usize), Error> {
        let media = self.clone();
        blocking(move || {
            let (read, here) = (media.0.parts.store.read()?, media.0.parts.server.as_str());
            let (page, total): (Vec<Key>, usize) = match backwards {
                false => {
                    let Ranked { page, total } =
                        ranked(from, most, &mut |visit| each(&read, here, uploader, order, visit))?;
                    (page, total)
                }
                true => {
                    let Ranked { page, total } = ranked(from, most, &mut |visit| {
                        each(&read, here, uploader, order, &mut |key| visit(Reverse(key)))
                    })?;
                    (page.into_iter().map(|key: Reverse<Key>| key.0).collect(), total)
                }
            };
            Ok((page.into_iter().map(|(_, _, media_id)| media_id).collect(), total))
        })
        .await
    }

    /// One upload, for a long answer: it blocks. None for one that is not there any more.
    pub fn listed_now(&self, media_id: &str) -> Result<Option<ListedFile>, Error> {
        let read = self.0.parts.store.read()?;
        let row = media::get(&read, self.0.parts.server.as_str(), media_id)?;
        Ok(row.map(|row| listed(&read, media_id.to_owned(), row)).transpose()?)
    }

    /// How many files each of some users has uploaded in a time, and their bytes. One walk over the uploads of everybody.
    pub async fn uploads_by(
        &self,
        users: Vec<UserNum>,
        times_ms: std::ops::Range<u64>,
    ) -> Result<Vec<(UserNum, u64, u64)>, Error> {
        let mut counts: std::collections::BTreeMap<UserNum, (u64, u64)> =
            users.iter().map(|user| (*user, (0, 0))).collect();
        let mut after = String::new();
        while let Some((page, last)) = self.page(after).await? {
            after = last;
            for (_, row) in page {
                if let Some(count) = row.uploader.and_then(|num| counts.get_mut(&UserNum(num)))
                    && times_ms.contains(&row.created_ms)
                {
                    *count = (count.0 + 1, count.1 + row.bytes);
                }
            }
        }
        Ok(users.into_iter().map(|user| (user, counts[&user].0, counts[&user].1)).collect())
    }

    /// One file of this server, or one that is kept of another.
    pub async fn listed(&self, server: &ServerName, media_id: &str) -> Result<Option<ListedFile>, Error> {
        let (media, of, id) = (self.clone(), server.to_owned(), media_id.to_owned());
        blocking(move || {
            let read = media.0.parts.store.read()?;
            let row = media::get(&read, of.as_str(), &id)?;
            Ok(row.map(|row| listed(&read, id, row)).transpose()?)
        })
        .await
    }

    /// Withholds a file from everybody, or with nobody gives it out again. False when it is safe from that; `NotFound` for one of this
    /// server that does not exist. A file of another server that is not kept here any more is given out again by what is noted with its
    /// name, so that it comes through when it is next fetched.
    pub async fn quarantine(&self, server: &ServerName, media_id: &str, by: Option<&str>) -> Result<bool, Error> {
        let (here, of, id, by) =
            (self.is_here(server), server.to_owned(), media_id.to_owned(), by.map(ToOwned::to_owned));
        let done = self.0.parts.store.write(move |w| {
            let kept = media::get(w, of.as_str(), &id)?.map(|row| row.file);
            if here {
                let file = kept.ok_or(Error::NotFound)?;
                return Ok((set_withheld(w, &file, by.as_deref())?, true));
            }
            let named = media::mark_of_name(w, of.as_str(), &id)?;
            match by {
                Some(by) => {
                    if let Some(file) = &kept
                        && !set_withheld(w, file, Some(&by))?
                    {
                        return Ok((false, true));
                    }
                    let file = kept.or(named.file);
                    media::set_mark_of_name(w, of.as_str(), &id, &Mark { quarantined_by: Some(by), file, ..named })?;
                    Ok::<_, Error>((true, true))
                }
                None => {
                    let is_known = named.quarantined_by.is_none() || kept.is_some() || named.file.is_some();
                    for file in [kept, named.file].into_iter().flatten() {
                        set_withheld(w, &file, None)?;
                    }
                    media::set_mark_of_name(w, of.as_str(), &id, &Mark::default())?;
                    Ok((true, is_known))
                }
            }
        });
        let ((done, is_known), _) = done.await.map_err(WriteError::into_inner)?;
        if !is_known {
            // Withheld by a version that did not note it.
            tracing::warn!(
                "mxc://{server}/{media_id} may be fetched again; which bytes were withheld along with it is not known, so that \
                 it has to be given out once more if it is withheld still"
            );
        }
        Ok(done)
    }

    /// Withholds all that a user has uploaded and is not safe from that. Answers how many files.
    pub async fn quarantine_uploads(&self, uploader: UserNum, by: &str) -> Result<u64, Error> {
        let (mut after, mut count) = (String::new(), 0);
        while let Some((page, last)) = self.page(after).await? {
            after = last;
            for (media_id, row) in page {
                let here = self.0.parts.server.clone();
                if row.uploader == Some(uploader.0) && self.quarantine(&here, &media_id, Some(by)).await? {
                    count += 1;
                }
            }
        }
        Ok(count)
    }

    /// Whether a file of this server is safe from being withheld, from now on. `NotFound` for one that does not exist.
    pub async fn set_safe(&self, media_id: &str, is_safe: bool) -> Result<(), Error> {
        let (here, id) = (self.0.parts.server.clone(), media_id.to_owned());
        let done = self.0.parts.store.write(move |w| {
            let row = media::get(w, here.as_str(), &id)?.ok_or(Error::NotFound)?;
            let mark = media::mark(w, &row.file)?;
            Ok::<_, Error>(media::set_mark(w, &row.file, &Mark { is_safe, ..mark })?)
        });
        done.await.map_err(WriteError::into_inner)?;
        Ok(())
    }

    /// The next uploads behind a media id that were last used before a time and are larger than `bytes`, and the last that was looked
    /// at. None at the end. Only since [`Media::uses_noted_since_ms`] is it known when they were used.
    pub async fn old_uploads(
        &self,
        after: String,
        before_ms: u64,
        bytes: u64,
    ) -> Result<Option<(Vec<String>, String)>, Error> {
        let Some((page, last)) = self.page(after).await? else { return Ok(None) };
        let is_old = |row: &media::Media| {
            let used_ms = row.used_day.map_or(0, |day| (u64::from(day) + 1) * DAY_MS).max(row.created_ms);
            used_ms < before_ms && row.bytes > bytes
        };
        Ok(Some((page.into_iter().filter(|(_, row)| is_old(row)).map(|(id, _)| id).collect(), last)))
    }

    /// The day since which it is noted when uploads are asked for, in Unix milliseconds; none while it is not.
    pub async fn uses_noted_since_ms(&self) -> Result<Option<u64>, Error> {
        self.write_touched().await?;
        let media = self.clone();
        let since = blocking(move || media::noted_since(&media.0.parts.store.read()?)).await?;
        Ok(since.map(|day| u64::from(day) * DAY_MS))
    }

    /// Removes uploads for good. Answers those that were there.
    pub async fn remove_uploads(&self, ids: Vec<String>) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        for some in ids.chunks(STEP) {
            let (here, some) = (self.0.parts.server.clone(), some.to_vec());
            let gone = self.0.parts.store.write_freeing(move |w| {
                let mut gone = Vec::new();
                for id in some {
                    if media::remove(w, here.as_str(), &id)?.is_some() {
                        gone.push(id);
                    }
                }
                Ok::<_, Error>(gone)
            });
            removed.extend(gone.await.map_err(WriteError::into_inner)?.0);
            self.sweep_gone(STEP).await?;
        }
        Ok(removed)
    }

    /// `NotFound` for a file whose name is withheld.
    pub(super) async fn check_not_withheld(&self, server: &ServerName, media_id: &str) -> Result<(), Error> {
        let (media, of, id) = (self.clone(), server.to_owned(), media_id.to_owned());
        let mark = blocking(move || media::mark_of_name(&media.0.parts.store.read()?, of.as_str(), &id)).await?;
        match mark.quarantined_by {
            None => Ok(()),
            Some(_) => Err(Error::NotFound),
        }
    }

    /// Some uploads behind one, and the last of them.
    async fn page(&self, after: String) -> Result<Option<(Vec<(String, media::Media)>, String)>, Error> {
        let media = self.clone();
        let page = blocking(move || {
            media::of_server(&media.0.parts.store.read()?, media.0.parts.server.as_str(), &after, LOOKED_AT)
        });
        let page = page.await?;
        let last = page.last().map(|(id, _)| id.clone());
        Ok(last.map(|last| (page, last)))
    }
}

/// Withholds the bytes of a file, or with nobody gives them out again. False, and nothing is changed, when they are safe from that.
fn set_withheld(w: &mut Write<'_>, file: &str, by: Option<&str>) -> crate::store::Result<bool> {
    let mark = media::mark(w, file)?;
    if mark.is_safe && by.is_some() {
        return Ok(false);
    }
    // Whoever gives out what the scanner found knows better than the scanner, which is not asked again.
    let is_cleared = by.is_none() && (mark.is_cleared || mark.quarantined_by.as_deref() == Some(SCANNER));
    media::set_mark(w, file, &Mark { quarantined_by: by.map(ToOwned::to_owned), is_cleared, ..mark })?;
    Ok(true)
}

fn listed(read: &Read, media_id: String, row: media::Media) -> crate::store::Result<ListedFile> {
    let Mark { quarantined_by, is_safe, .. } = media::mark(read, &row.file)?;
    Ok(ListedFile {
        media_id,
        uploader: row.uploader.map(UserNum),
        bytes: row.bytes,
        content_type: row.content_type,
        name: row.name,
        created_ms: row.created_ms,
        used_ms: row.used_day.map(|day| u64::from(day) * DAY_MS),
        authenticated: row.authenticated,
        hash: row.file,
        quarantined_by,
        is_safe,
    })
}

/// Visits the uploads of a user with what puts them in order.
fn each(
    read: &Read,
    here: &str,
    uploader: UserNum,
    order: MediaOrder,
    visit: &mut dyn FnMut(Key),
) -> Result<(), Error> {
    let mut after = String::new();
    loop {
        let page = media::of_server(read, here, &after, LOOKED_AT)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after.clone_from(last);
        for (media_id, row) in page {
            if row.uploader != Some(uploader.0) {
                continue;
            }
            let mark = match order {
                MediaOrder::Quarantined | MediaOrder::Safe => media::mark(read, &row.file)?,
                _ => Mark::default(),
            };
            let (number, text) = match order {
                MediaOrder::Created => (row.created_ms, None),
                MediaOrder::Id => (0, None),
                MediaOrder::Used => (row.used_day.unwrap_or(0).into(), None),
                MediaOrder::Bytes => (row.bytes, None),
                MediaOrder::Safe => (mark.is_safe.into(), None),
                MediaOrder::Name => (0, row.name),
                MediaOrder::Type => (0, row.content_type),
                MediaOrder::Quarantined => (0, mark.quarantined_by),
            };
            visit((number, bounded(text.unwrap_or_default(), ORDER_CHARS), media_id));
        }
    }
}
