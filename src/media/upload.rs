//! A file on its way in: written as it comes, hashed, moved into its place, then made known.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::quota::Part;
use super::{Error, MEDIA_ID_CHARS, Media};
use crate::base::blocking;
use crate::budget::{Card, Grant};
use crate::store::tables::{hex, media};
use crate::store::{UserNum, WriteError};

/// The folder of files that are not whole yet.
pub(super) const INCOMING: &str = "incoming";
/// Pieces are gathered to this size before they are written.
const BUFFER_BYTES: usize = 32 << 10;
/// How often the free disk is looked at while a file grows.
const LOOK_EVERY_BYTES: u64 = 8 << 20;
const TEXT_BYTES_MAX: usize = 255;

/// The uploader's description of a file.
#[derive(Debug, Clone, Default)]
pub struct About {
    pub content_type: Option<String>,
    pub name: Option<String>,
}

/// A file on its way in. Dropped before [`Upload::finish`], it leaves nothing.
pub struct Upload {
    media: Media,
    uploader: UserNum,
    buffer: Vec<u8>,
    /// None while a blocking job has it.
    sink: Option<Sink>,
    bytes: u64,
    share: Part,
    _grant: Grant,
}

struct Sink {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    looked_at: u64,
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Gone already when it was moved into its place.
        let _ = fs::remove_file(&self.path);
    }
}

impl Media {
    /// Begins a file of a local user, of as many bytes as are announced, if they are. Refused when the user's share has
    /// no room for it.
    pub async fn begin(&self, uploader: UserNum, announced: Option<u64>) -> Result<Upload, Error> {
        let grant = self.0.parts.budget.account("media").take(BUFFER_BYTES as u64 + (8 << 10)).await?;
        let (folder, name) = (self.0.parts.folder.join(INCOMING), self.0.parts.random.token(MEDIA_ID_CHARS));
        let media = self.clone();
        let (sink, share) = blocking(move || {
            let used = || media::used_by(&media.0.parts.store.read()?, uploader);
            let share = media.0.quotas.begin(uploader, used)?;
            share.check(announced.unwrap_or(1))?;
            fs::create_dir_all(&folder)?;
            check_free(&folder)?;
            let path = folder.join(name);
            let file = File::create_new(&path)?;
            Ok::<_, Error>((Sink { file, path, hasher: Sha256::new(), looked_at: 0 }, share))
        })
        .await?;
        let buffer = Vec::with_capacity(BUFFER_BYTES);
        Ok(Upload { media: self.clone(), uploader, buffer, sink: Some(sink), bytes: 0, share, _grant: grant })
    }
}

impl Upload {
    /// Adds a piece.
    pub async fn write(&mut self, piece: Bytes) -> Result<(), Error> {
        self.bytes += piece.len() as u64;
        let bytes_max = self.media.0.parts.upload_bytes_max;
        if self.bytes > bytes_max {
            return Err(Error::TooLarge { bytes_max });
        }
        self.share.add(piece.len() as u64)?;
        let mut rest = &piece[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BUFFER_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            rest = later;
            if self.buffer.len() == BUFFER_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// The file is whole: it gets its place, and a media id, which is a promised one or new.
    pub async fn finish(mut self, about: About, promised: Option<String>) -> Result<String, Error> {
        self.flush().await?;
        let Some(sink) = self.sink.take() else { return Err(Error::NotFound) };
        let media = self.media.clone();
        let (hash, media) = blocking(move || {
            let hash = move_into_place(&media, sink)?;
            Ok::<_, Error>((hash, media))
        })
        .await?;
        let media_id = promised.clone().unwrap_or_else(|| media.0.parts.random.token(MEDIA_ID_CHARS));
        let short = |text: Option<String>| text.filter(|text| !text.is_empty() && text.len() <= TEXT_BYTES_MAX);
        let row = media::Media {
            file: hash,
            bytes: self.bytes,
            content_type: short(about.content_type),
            name: short(about.name),
            uploader: Some(self.uploader.0),
            created_ms: media.0.parts.clock.now_ms(),
        };
        let (server, id) = (media.0.parts.server.clone(), media_id.clone());
        let written = media.0.parts.store.write(move |w| {
            if media::get(w, server.as_str(), &id)?.is_some() {
                return Err(Error::Taken);
            }
            Ok(media::put(w, server.as_str(), &id, &row)?)
        });
        written.await.map_err(WriteError::into_inner)?;
        self.share.arrived();
        if promised.is_some() {
            media.promised().remove(&media_id);
            media.0.arrived.notify_waiters();
        }
        Ok(media_id)
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let (Some(mut sink), buffer) = (self.sink.take(), std::mem::take(&mut self.buffer)) else {
            return Err(Error::NotFound);
        };
        let bytes = self.bytes;
        let (sink, mut buffer) = blocking(move || {
            if bytes >= sink.looked_at + LOOK_EVERY_BYTES {
                sink.looked_at = bytes;
                check_free(&sink.path)?;
            }
            sink.file.write_all(&buffer)?;
            sink.hasher.update(&buffer);
            Ok::<_, Error>((sink, buffer))
        })
        .await?;
        buffer.clear();
        (self.sink, self.buffer) = (Some(sink), buffer);
        Ok(())
    }
}

/// Moves a whole file into its place, durably. Answers its hash. An existing file of the same hash stays.
fn move_into_place(media: &Media, mut sink: Sink) -> Result<String, Error> {
    sink.file.sync_data()?;
    let hash = hex(&sink.hasher.finalize_reset());
    let path = media.path(&hash);
    let Some(folder) = path.parent() else { return Err(Error::NotFound) };
    fs::create_dir_all(folder)?;
    if !path.exists() {
        fs::rename(&sink.path, &path)?;
        File::open(folder)?.sync_all()?;
    }
    Ok(hash)
}

fn check_free(path: &Path) -> Result<(), Error> {
    match Card::at(path)?.spare_bytes() {
        1.. => Ok(()),
        0 => Err(Error::Full(
            "The server's disk is nearly full: it accepts no uploads. Its administrator can make room".to_owned(),
        )),
    }
}
