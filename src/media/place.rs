//! A file on its way to its place: it grows under a name of its own, is hashed meanwhile, gets its place, then its row.
//!
//! What a power cut leaves: in `incoming` anything, which the next start removes; in a place a whole file that is noted as
//! gone (`store/tables/media.rs`), which is removed then. A row never stands without its file.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{Error, MEDIA_ID_CHARS, Media};
use crate::base::blocking;
use crate::store::WriteError;
use crate::store::tables::{hex, media};

/// The folder of files that are not whole yet.
pub(super) const INCOMING: &str = "incoming";
/// How often the free disk is looked at while a file grows.
const LOOK_EVERY_BYTES: u64 = 8 << 20;

/// A file that grows. Dropped before it has its place, it leaves nothing.
pub(super) struct Staged {
    file: Arc<File>,
    path: PathBuf,
    hasher: Sha256,
    bytes: u64,
    looked_at: u64,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already when it was moved into its place.
        let _ = fs::remove_file(&self.path);
    }
}

impl Staged {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file itself, readable up to [`Staged::bytes`], also after it got its place or was given up.
    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Adds a piece that belongs at `at`. What is there already must be the same: the piece may be of a transfer that was
    /// begun again. Blocking.
    pub(super) fn write(&mut self, media: &Media, at: u64, piece: &[u8]) -> Result<(), Error> {
        let known = self.bytes.saturating_sub(at).min(piece.len() as u64) as usize;
        if known > 0 {
            let mut before = vec![0; known];
            self.file.read_exact_at(&mut before, at)?;
            if before != piece[..known] {
                return Err(Error::Changed);
            }
        }
        let new = &piece[known..];
        if self.bytes >= self.looked_at + LOOK_EVERY_BYTES {
            self.looked_at = self.bytes;
            media.check_spare()?;
        }
        (&*self.file).write_all(new)?;
        self.hasher.update(new);
        self.bytes += new.len() as u64;
        Ok(())
    }
}

impl Media {
    /// A new file that grows. Blocking.
    pub(super) fn stage(&self) -> Result<Staged, Error> {
        let folder = self.0.parts.folder.join(INCOMING);
        fs::create_dir_all(&folder)?;
        self.check_spare()?;
        let path = folder.join(self.0.parts.random.token(MEDIA_ID_CHARS));
        let file = Arc::new(File::options().read(true).write(true).create_new(true).open(&path)?);
        Ok(Staged { file, path, hasher: Sha256::new(), bytes: 0, looked_at: 0 })
    }

    /// Gives a whole file its place, durably, and the media id its meaning. An existing file of the same bytes stays.
    /// Answers the hash; `Taken` when the media id has its file already.
    pub(super) async fn place(
        &self,
        staged: Staged,
        server: &str,
        media_id: &str,
        row: media::Media,
    ) -> Result<String, Error> {
        let (staged, hash) = blocking(move || {
            staged.file.sync_data()?;
            let hash = hex(&staged.hasher.clone().finalize());
            Ok::<_, Error>((staged, hash))
        })
        .await?;
        // Held until the row stands: nobody removes the file meanwhile.
        let _held = self.0.places.take(&hash).await;
        let expected = hash.clone();
        let noted = self.0.parts.store.write(move |w| media::expect_file(w, &expected));
        noted.await.map_err(WriteError::into_inner)?;
        let path = self.path(&hash);
        blocking(move || {
            let Some(folder) = path.parent() else { return Err(Error::NotFound) };
            fs::create_dir_all(folder)?;
            if !path.exists() {
                fs::rename(&staged.path, &path)?;
                File::open(folder)?.sync_all()?;
            }
            Ok(())
        })
        .await?;
        let row = media::Media { file: hash.clone(), ..row };
        let (server, media_id, limits) = (server.to_owned(), media_id.to_owned(), self.0.limits);
        let written = self.0.parts.store.write(move |w| {
            if media::get(w, &server, &media_id)?.is_some() {
                return Err(Error::Taken);
            }
            if row.uploader.is_some() {
                limits.check_local(media::used(w)?.local, row.bytes)?;
            }
            media::forget_promise(w, &media_id)?;
            Ok(media::put(w, &server, &media_id, &row)?)
        });
        written.await.map_err(|failed| {
            // The file is in its place for nothing.
            self.0.untidy.notify_one();
            failed.into_inner()
        })?;
        Ok(hash)
    }

    /// Removes files that nothing refers to, at most `most`. Answers how many.
    pub(super) async fn sweep_gone(&self, most: usize) -> Result<usize, Error> {
        let media = self.clone();
        let gone = blocking(move || media::gone(&media.0.parts.store.read()?, most)).await?;
        if gone.is_empty() {
            return Ok(0);
        }
        // Only this takes more than one, and only one of it runs.
        let _turn = self.0.sweeping.lock().await;
        let mut held = Vec::new();
        for hash in gone {
            held.push(self.0.places.take(&hash).await);
        }
        let (media, names): (_, Vec<String>) = (self.clone(), held.iter().map(|one| one.name().to_owned()).collect());
        let removed = blocking(move || {
            let read = media.0.parts.store.read()?;
            for hash in &names {
                if media::file_uses(&read, hash)? == 0 {
                    media.remove_file(hash)?;
                }
            }
            Ok::<_, Error>(names)
        })
        .await?;
        let count = removed.len();
        let written =
            self.0.parts.store.write_freeing(move |w| removed.iter().try_for_each(|hash| media::forget_gone(w, hash)));
        written.await.map_err(WriteError::into_inner)?;
        Ok(count)
    }

    /// Removes the file of a hash, and what was made from it.
    fn remove_file(&self, hash: &str) -> Result<(), Error> {
        self.remove_thumbnails(hash);
        match fs::remove_file(self.path(hash)) {
            Err(failed) if failed.kind() != std::io::ErrorKind::NotFound => Err(failed.into()),
            _ => Ok(()),
        }
    }

    /// An error when the disk has no room for files. Blocking.
    pub(super) fn check_spare(&self) -> Result<(), Error> {
        match self.spare_bytes()? {
            1.. => Ok(()),
            0 => {
                // There may be files of other servers to give up.
                self.0.untidy.notify_one();
                Err(Error::NoRoom(
                    "The server's disk is nearly full: it accepts no uploads. Its administrator can make room"
                        .to_owned(),
                ))
            }
        }
    }
}
