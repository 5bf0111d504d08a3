//! A file on its way in: written as it comes, then placed and made known.
//!
//! It takes memory while there are bytes to be written, and none while it waits for more ([`Upload::pause`]): however many
//! upload as slowly as they may, others read and upload meanwhile. What comes next is paid by its connection until then.

use bytes::Bytes;

use super::place::Staged;
use super::quota::{Part, Stand};
use super::{Error, MEDIA_ID_CHARS, Media};
use crate::base::blocking;
use crate::budget::Grant;
use crate::store::tables::{media, user};
use crate::store::{self, Get, UserNum};

/// Pieces are gathered to this size before they are written.
const BUFFER_BYTES: usize = 32 << 10;
/// What an upload takes while it has bytes: the buffer, and a little for writing it.
pub(super) const HELD_BYTES: u64 = BUFFER_BYTES as u64 + (8 << 10);
const TEXT_BYTES_MAX: usize = 255;

/// The uploader's description of a file.
#[derive(Debug, Clone, Default)]
pub struct About {
    pub content_type: Option<String>,
    pub name: Option<String>,
}

impl About {
    /// Without what is too long to be kept.
    pub(super) fn short(self) -> About {
        let short = |text: Option<String>| text.filter(|text| !text.is_empty() && text.len() <= TEXT_BYTES_MAX);
        About { content_type: short(self.content_type), name: short(self.name) }
    }
}

/// A file on its way in. Dropped before [`Upload::finish`], it leaves nothing.
pub struct Upload {
    media: Media,
    uploader: UserNum,
    buffer: Vec<u8>,
    /// For the buffer; none while that is empty and more is waited for.
    grant: Option<Grant>,
    /// None while a blocking job has it.
    staged: Option<Staged>,
    bytes: u64,
    share: Part,
}

impl Media {
    /// Begins a file of a local user, of as many bytes as are announced, if they are. Refused when the user's share, or
    /// that of all, has no room for it.
    pub async fn begin(&self, uploader: UserNum, announced: Option<u64>) -> Result<Upload, Error> {
        let media = self.clone();
        let (staged, share) = blocking(move || {
            let read = media.0.parts.store.read()?;
            let share = media.0.quotas.begin(uploader, || stand_of(&read, uploader))?;
            share.check(announced.unwrap_or(1))?;
            media.0.limits.check_local(media::used(&read)?.local, announced.unwrap_or(1))?;
            Ok::<_, Error>((media.stage()?, share))
        })
        .await?;
        let (media, buffer) = (self.clone(), Vec::new());
        Ok(Upload { media, uploader, buffer, grant: None, staged: Some(staged), bytes: 0, share })
    }
}

/// What the files of a local user take, and may.
fn stand_of(get: &impl Get, uploader: UserNum) -> Result<Stand, store::Error> {
    let own_max = user::account(get, uploader)?.and_then(|account| account.quota);
    Ok(Stand { used: media::used_by(get, uploader)?, own_max })
}

impl Upload {
    /// With the memory for it, [`HELD_BYTES`], of a caller that has all that is to come.
    pub(super) fn paid_by(mut self, grant: Grant) -> Upload {
        self.grant = Some(grant);
        self
    }

    /// Adds a piece. Waits for memory as long as the account lets wait.
    pub async fn write(&mut self, piece: Bytes) -> Result<(), Error> {
        self.bytes += piece.len() as u64;
        let bytes_max = self.media.upload_bytes_max();
        if self.bytes > bytes_max {
            return Err(Error::TooLarge { bytes_max });
        }
        self.share.add(piece.len() as u64)?;
        if self.grant.is_none() {
            self.grant = Some(self.media.0.parts.budget.account("media").take(HELD_BYTES).await?);
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(BUFFER_BYTES);
        }
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

    /// Nothing more has come for now: writes what there is, and gives the memory back.
    pub async fn pause(&mut self) -> Result<(), Error> {
        if !self.buffer.is_empty() {
            self.flush().await?;
        }
        (self.buffer, self.grant) = (Vec::new(), None);
        Ok(())
    }

    /// The file is whole: it gets its place, and a media id, which is a promised one or new.
    pub async fn finish(mut self, about: About, promised: Option<String>) -> Result<String, Error> {
        self.pause().await?;
        let Some(staged) = self.staged.take() else { return Err(Error::NotFound) };
        let media = self.media.clone();
        let media_id = promised.clone().unwrap_or_else(|| media.0.parts.random.token(MEDIA_ID_CHARS));
        let About { content_type, name } = about.short();
        let row = media::Media {
            file: String::new(),
            bytes: self.bytes,
            content_type,
            name,
            uploader: Some(self.uploader.0),
            created_ms: media.0.parts.clock.now_ms(),
            authenticated: media.0.parts.options.authenticated,
            used_day: None,
        };
        let here = media.0.parts.server.as_str();
        let hash = media.place(staged, here, &media_id, row).await?;
        self.share.arrived();
        media.scan_soon(here, &media_id, &hash, self.bytes);
        if promised.is_some() {
            media.promised().remove(&media_id);
            media.0.arrived.notify_waiters();
        }
        Ok(media_id)
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let (Some(mut staged), buffer) = (self.staged.take(), std::mem::take(&mut self.buffer)) else {
            return Err(Error::NotFound);
        };
        let media = self.media.clone();
        let (staged, mut buffer) = blocking(move || {
            let at = staged.bytes();
            staged.write(&media, at, &buffer)?;
            Ok::<_, Error>((staged, buffer))
        })
        .await?;
        buffer.clear();
        (self.staged, self.buffer) = (Some(staged), buffer);
        Ok(())
    }
}
