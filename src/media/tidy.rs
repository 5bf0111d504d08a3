//! What goes again: files of other servers that nobody asked for longest, uploads where the operator says so.
//!
//! Works in small writes. Which day a file was last asked for is noted in memory, and written for many files at once: a
//! power cut loses some of it, and such a file counts as last used on the day before.

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use parking_lot::Mutex;
use ruma::ServerName;

use super::arriving::thumbnail_names;
use super::{Error, Media};
use crate::base::{Worker, blocking};
use crate::budget::Card;
use crate::store::tables::media;
use crate::store::{self, WriteError};

/// The day's length.
pub(super) const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Files asked for whose day is not written yet, about 150 bytes each; at this many they are written.
const TOUCHED_MAX: usize = 64;
/// The longest until they are written, and between two looks at what is due.
const LOOK: Duration = Duration::from_secs(60 * 60);
/// After an error.
const FAILED_PAUSE: Duration = Duration::from_secs(60);
/// Files in one step, each about four rows.
const STEP: usize = 32;
/// Rows looked at in one step.
const LOOKED_AT: usize = 200;

/// The files asked for whose day is not written yet, with that day.
#[derive(Default)]
pub(super) struct Touched(Mutex<Pending>);

#[derive(Default)]
struct Pending {
    files: BTreeMap<(String, String), u32>,
    /// The day on which unused uploads were looked for.
    looked: Option<u32>,
}

/// What the files take, and may.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub local_bytes: u64,
    /// None: as much as the disk has.
    pub local_bytes_max: Option<u64>,
    pub remote_bytes: u64,
    pub remote_bytes_max: u64,
    /// What the files take on the disk: those that are alike are one.
    pub disk_bytes: u64,
    /// What files may still take of the disk.
    pub spare_bytes: u64,
    pub free_bytes: u64,
}

impl Media {
    /// Notes that a file was asked for, at most once a day for each.
    pub(super) fn touch(&self, server: &ServerName, media_id: &str, row: &media::Media) {
        let day = self.today();
        let is_noted = row.uploader.is_none() || self.0.parts.options.local_unused_days.is_some();
        if !is_noted || row.used_day >= Some(day) {
            return;
        }
        let mut pending = self.0.touched.0.lock();
        if pending.files.len() < TOUCHED_MAX {
            pending.files.insert((server.as_str().to_owned(), media_id.to_owned()), day);
        }
        if pending.files.len() == TOUCHED_MAX {
            self.0.untidy.notify_one();
        }
    }

    pub(super) fn today(&self) -> u32 {
        (self.0.parts.clock.settled_ms() / DAY_MS) as u32
    }

    /// Removes what is to go, as it becomes due.
    pub async fn keep_tidy(&self, worker: &Worker) {
        loop {
            worker.works_on("removing files nobody needs");
            let pause = match self.tidy(worker).await {
                Ok(()) => LOOK,
                Err(failed) => {
                    tracing::warn!(%failed, "files could not be removed; this is tried again");
                    worker.failed(failed);
                    FAILED_PAUSE
                }
            };
            worker.idle_for(pause);
            tokio::select! {
                () = self.0.parts.clock.sleep(pause) => {}
                () = self.0.untidy.notified(), if pause == LOOK => {}
            }
        }
    }

    pub(super) async fn tidy(&self, worker: &Worker) -> Result<(), Error> {
        self.write_touched().await?;
        loop {
            match self.sweep_gone(STEP).await? {
                0 => break,
                gone => worker.done(gone as u64),
            }
        }
        while self.has_too_much().await? && self.remove_idle(None).await?.0 > 0 {}
        if let Some(days) = self.0.parts.options.remote_unused_days {
            while self.remove_idle(Some(self.today().saturating_sub(days))).await?.0 > 0 {}
        }
        match self.0.parts.options.local_unused_days {
            Some(days) => self.remove_unused_uploads(days).await,
            None => self.uploads_noted_since(None).await.map(drop),
        }
    }

    /// Writes which files were asked for lately.
    pub async fn write_touched(&self) -> Result<(), Error> {
        let files = mem::take(&mut self.0.touched.0.lock().files);
        if files.is_empty() {
            return Ok(());
        }
        let written = self.0.parts.store.write(move |w| {
            files.iter().try_for_each(|((server, media_id), day)| media::touch(w, server, media_id, *day))
        });
        written.await.map_err(WriteError::into_inner)?;
        Ok(())
    }

    /// Whether files of other servers have to go, since they take too much or the disk is nearly full.
    async fn has_too_much(&self) -> Result<bool, Error> {
        let media = self.clone();
        blocking(move || {
            let kept = media::used(&media.0.parts.store.read()?)?.remote;
            Ok(kept > media.0.limits.remote_bytes_max || kept > 0 && media.spare_bytes()? == 0)
        })
        .await
    }

    /// Removes some of the files of other servers that were asked for longest ago, before a day if there is one. Answers
    /// how many, and their bytes.
    async fn remove_idle(&self, before_day: Option<u32>) -> Result<(u64, u64), Error> {
        let (store, media) = (&self.0.parts.store, self.clone());
        let (written, _) = store
            .write_freeing(move |w| {
                let (mut count, mut bytes) = (0, 0);
                let mut remote = media::used(w)?.remote;
                for file in media::longest_idle(w, before_day, STEP)? {
                    let Some(row) = media::remove(w, &file.server, &file.media_id)? else { continue };
                    (count, bytes, remote) = (count + 1, bytes + row.bytes, remote.saturating_sub(row.bytes));
                    // Of those that only take too much, no more than that.
                    if before_day.is_none() && remote <= media.0.limits.remote_bytes_max {
                        break;
                    }
                }
                Ok::<_, Error>((count, bytes))
            })
            .await
            .map_err(WriteError::into_inner)?;
        self.sweep_gone(STEP).await?;
        Ok(written)
    }

    /// Removes uploads that nobody asked for in so many days. Looks once a day.
    async fn remove_unused_uploads(&self, days: u32) -> Result<(), Error> {
        let today = self.today();
        if self.0.touched.0.lock().looked.replace(today) == Some(today) {
            return Ok(());
        }
        // When it was asked for before that is not known.
        let since = self.uploads_noted_since(Some(today)).await?;
        let before = today.saturating_sub(days);
        if since >= Some(before) {
            return Ok(());
        }
        let mut after = String::new();
        loop {
            let (media, from) = (self.clone(), after.clone());
            let rows = blocking(move || {
                media::of_server(&media.0.parts.store.read()?, media.0.parts.server.as_str(), &from, LOOKED_AT)
            })
            .await?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            after.clone_from(last);
            let is_unused =
                |row: &media::Media| row.used_day.max(Some((row.created_ms / DAY_MS) as u32)) < Some(before);
            let unused: Vec<_> = rows.into_iter().filter(|(_, row)| is_unused(row)).map(|(id, _)| id).collect();
            self.remove_uploads(unused).await?;
        }
    }

    /// The day since which it is noted when uploads are asked for. It begins with `today`, and ends with none.
    pub(super) async fn uploads_noted_since(&self, today: Option<u32>) -> Result<Option<u32>, Error> {
        let media = self.clone();
        let since = blocking(move || media::noted_since(&media.0.parts.store.read()?)).await?;
        if since.is_some() == today.is_some() {
            return Ok(since);
        }
        let written = self.0.parts.store.write(move |w| Ok::<_, Error>(media::put_noted_since(w, today)?));
        written.await.map_err(WriteError::into_inner)?;
        Ok(today)
    }

    /// Removes one file, of this server or kept of another, and what that one made of it. False when there is none.
    pub async fn remove(&self, server: &ServerName, media_id: &str) -> Result<bool, Error> {
        let (of, id) = (server.as_str().to_owned(), media_id.to_owned());
        let is_here = self.is_here(server);
        let removed = self.0.parts.store.write_freeing(move |w| {
            let mut removed = media::remove(w, &of, &id)?.is_some();
            for name in thumbnail_names(&id).filter(|_| !is_here) {
                removed |= media::remove(w, &of, &name)?.is_some();
            }
            Ok::<_, store::Error>(removed)
        });
        let (removed, _) = removed.await.map_err(WriteError::into_inner)?;
        while self.sweep_gone(STEP).await? > 0 {}
        Ok(removed)
    }

    /// Removes the kept files of other servers that nobody asked for in so many days; with 0 all of them. Answers how
    /// many, and their bytes.
    pub async fn remove_remote(&self, unused_days: u32) -> Result<(u64, u64), Error> {
        self.remove_remote_before((self.today() + 1).saturating_sub(unused_days)).await
    }

    /// Removes the kept files of other servers that nobody asked for since before a day, counted from 1970. Answers how many, and
    /// their bytes.
    pub async fn remove_remote_before(&self, before: u32) -> Result<(u64, u64), Error> {
        self.write_touched().await?;
        let (mut count, mut bytes) = (0, 0);
        loop {
            match self.remove_idle(Some(before)).await? {
                (0, _) => return Ok((count, bytes)),
                (more, of) => (count, bytes) = (count + more, bytes + of),
            }
        }
    }

    /// What the files take, and may.
    pub async fn usage(&self) -> Result<Usage, Error> {
        let media = self.clone();
        blocking(move || {
            let used = media::used(&media.0.parts.store.read()?)?;
            let parts = &media.0.parts;
            Ok(Usage {
                local_bytes: used.local,
                local_bytes_max: parts.options.local_bytes_max,
                remote_bytes: used.remote,
                remote_bytes_max: media.0.limits.remote_bytes_max,
                disk_bytes: used.all,
                spare_bytes: media.spare_bytes()?,
                free_bytes: Card::at(&parts.folder)?.free_bytes,
            })
        })
        .await
    }
}
