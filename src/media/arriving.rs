//! One transfer of another server's file for all who ask for it.
//!
//! The file grows on the disk, and each reader follows it there with a piece of its own: a slow reader keeps nobody
//! waiting, and ten cost one transfer. Whole, it gets its place like an upload. One that breaks off is begun again while
//! somebody reads it, and must bring the same bytes. One that nobody reads any more goes on for a while, since who
//! scrolls past a picture comes back to it.
//!
//! Bounded by the account `media`, which pays for each transfer and each reader (`elsewhere.rs`); whoever waits for the head of an answer
//! holds a request alone.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::{SemaphorePermit, watch};

use super::elsewhere::{Asking, Held, Share};
use super::picture::Shape;
use super::place::Staged;
use super::remote::Incoming;
use super::scan::{PATIENCE, still_coming};
use super::{About, Error, Fetched, Media, Opened, Reader, SCAN_LEAST, Scaled, TRANSFER_BYTES};
use crate::base::{Awaited, ChunkError, Chunks, blocking, detached};
use crate::budget::Grant;
use crate::remote::Failed;
use crate::store::tables::media;

/// The memory of a transfer: what is gathered for one write, two pieces on their way, and a little.
const ARRIVING_BYTES: u64 = 40 << 10;
/// Pieces are gathered to this size before they are written.
const GATHERED_BYTES: usize = 8 << 10;
/// What a reader takes at once.
const PIECE_BYTES: u64 = 16 << 10;
/// What a transfer brings that nobody reads any more: an ordinary picture is had whole, a long film is not.
const UNREAD_BYTES_MAX: u64 = 8 << 20;
/// And how long it goes on then: as slow as is allowed, those bytes would take two hours.
const UNREAD_TIME_MAX: Duration = Duration::from_secs(60);
/// What has to be scanned is of no use to anybody before all of it is here. So one that nobody waits for any more goes on aside, when it
/// has a place there (`elsewhere.rs`), for so long, and as long as it brings so much in each [`ASIDE_STRETCH`]: 8 KiB a second.
const ASIDE_TIME_MAX: Duration = Duration::from_secs(60 * 60);
const ASIDE_STRETCH: Duration = Duration::from_secs(60);
const ASIDE_BYTES_MIN: u64 = 480 << 10;
/// The longest silence, wherever the file comes from.
const STALL: Duration = Duration::from_secs(60);
/// How often a transfer that broke off is begun again, and after what.
const AGAIN_MAX: u32 = 2;
const AGAIN_PAUSE: Duration = Duration::from_secs(1);
/// How often a reader asks anew that comes when a transfer is being given up.
const TRIES: u32 = 3;

/// What is asked for: a file of a server, or its thumbnail in a shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    server: OwnedServerName,
    media_id: String,
    shape: Option<Shape>,
}

impl Key {
    /// The name that it is kept under.
    fn kept(&self) -> String {
        kept_name(&self.media_id, self.shape)
    }
}

/// The name that a file of another server is kept under, or a thumbnail that this server made of it. A media id that looks like
/// the latter is one of the same server: it could only bring its own files into disorder.
fn kept_name(media_id: &str, shape: Option<Shape>) -> String {
    match shape {
        None => media_id.to_owned(),
        Some(shape) => format!("{media_id}?{}", shape.name()),
    }
}

/// The names of all thumbnails of a file that may be kept.
pub(super) fn thumbnail_names(media_id: &str) -> impl Iterator<Item = String> {
    Shape::ALL.into_iter().map(move |shape| kept_name(media_id, Some(shape)))
}

/// The transfers under way.
#[derive(Default)]
pub(super) struct Fetches(Mutex<HashMap<Key, Arc<Arriving>>>);

/// One transfer.
struct Arriving {
    progress: watch::Sender<Progress>,
    /// Set before the head is told.
    file: OnceLock<Arc<File>>,
    /// Pays for the first reader, taken together with what pays for the transfer: or many transfers would leave nothing for
    /// those who read them.
    first: Mutex<Option<Held>>,
    /// What is too large to be kept, for the first who takes it.
    passing: Mutex<Option<Incoming>>,
    readers: AtomicUsize,
}

#[derive(Default)]
struct Progress {
    head: Option<Arc<Head>>,
    /// Bytes that can be read from the file.
    bytes: u64,
    end: Option<End>,
}

struct Head {
    about: About,
    length: Option<u64>,
}

#[derive(Clone)]
enum End {
    /// All of it is there.
    Whole,
    /// It is too large to be kept: each passes it through for itself.
    TooLarge,
    /// Nobody read it any more.
    GivenUp,
    Failed(Arc<Error>),
}

/// Where a file of another server is to be had.
pub enum Found {
    /// On this disk.
    Kept(Opened),
    /// On its way to this disk.
    Coming(Coming),
    /// There alone.
    Passing(Fetched),
}

/// A place at a transfer.
struct Follower(Arc<Arriving>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A file on its way to this disk, to be read as it comes.
pub struct Coming {
    reader: Follower,
    progress: watch::Receiver<Progress>,
    head: Arc<Head>,
    file: Arc<File>,
    pub etag: String,
    /// Pays for what is read.
    grant: Option<Grant>,
    /// Held as long as it is read.
    share: Option<Share>,
}

impl Media {
    /// A file of another server, from this disk or the transfer that brings it; the first who asks begins the transfer.
    /// Waits for the head of the answer.
    pub async fn find(&self, server: &ServerName, media_id: &str) -> Result<Found, Error> {
        self.find_as(Key { server: server.to_owned(), media_id: media_id.to_owned(), shape: None }).await
    }

    /// The same for a thumbnail that the other server makes of its file. It is kept like a file; what is asked for are few shapes.
    pub async fn find_thumbnail(&self, server: &ServerName, media_id: &str, wanted: &Scaled) -> Result<Found, Error> {
        let shape = Some(Shape::of(wanted.width, wanted.height, wanted.crop));
        self.find_as(Key { server: server.to_owned(), media_id: media_id.to_owned(), shape }).await
    }

    /// Such a thumbnail that is on this disk.
    pub async fn kept_thumbnail_of(
        &self,
        server: &ServerName,
        media_id: &str,
        wanted: &Scaled,
    ) -> Result<Option<Opened>, Error> {
        self.check_not_withheld(server, media_id).await?;
        let shape = Shape::of(wanted.width, wanted.height, wanted.crop);
        self.kept(server, &kept_name(media_id, Some(shape))).await
    }

    async fn find_as(&self, key: Key) -> Result<Found, Error> {
        if self.is_scanned() {
            return self.find_clean(key).await;
        }
        self.find_unscanned(key).await
    }

    /// Such a file once all of it is here and was called clean. What would be passed through is not given out.
    async fn find_clean(&self, key: Key) -> Result<Found, Error> {
        let clock = &self.0.parts.clock;
        let until = clock.instant() + PATIENCE;
        match self.find_unscanned(key.clone()).await? {
            // It was scanned when it was opened.
            Found::Kept(opened) => Ok(Found::Kept(opened)),
            Found::Coming(mut coming) => {
                coming.let_go();
                let left = until.saturating_sub(clock.instant());
                match clock.timeout(left, coming.all()).await {
                    // It was being given up, as nobody asked for it any more: whoever asks again begins anew.
                    None | Some(Err(Error::NotFound)) => return Err(still_coming()),
                    Some(came) => came?,
                };
                drop(coming);
                let left = until.saturating_sub(clock.instant());
                let kept = self.kept_within(Reader::Known, &key.server, &key.kept(), left.max(SCAN_LEAST)).await?;
                // When it came and could not be kept, the log says why.
                kept.map(Found::Kept).ok_or_else(still_coming)
            }
            Found::Passing(passing) if self.gives_out_unscanned() => Ok(Found::Passing(passing)),
            Found::Passing(_) => Err(Error::TooLarge { bytes_max: self.0.limits.remote_file_bytes_max() }),
        }
    }

    async fn find_unscanned(&self, key: Key) -> Result<Found, Error> {
        let (server, name) = (&*key.server, key.kept());
        self.check_not_withheld(server, &key.media_id).await?;
        for _ in 0..TRIES {
            if let Some(opened) = self.kept(server, &name).await? {
                return Ok(Found::Kept(opened));
            }
            if self.0.limits.remote_bytes_max == 0 {
                break;
            }
            let reader = self.reader(key.clone());
            let mut progress = reader.0.progress.subscribe();
            // The sender is in the transfer that the reader holds.
            let _ = progress.wait_for(|progress| progress.head.is_some() || progress.end.is_some()).await;
            let (head, end) = {
                let now = progress.borrow();
                (now.head.clone(), now.end.clone())
            };
            match (head, end) {
                (_, Some(End::Failed(failed))) => return Err(failed.copy()),
                (_, Some(End::TooLarge)) => {
                    let begun = reader.0.passing.lock().take();
                    match begun {
                        Some(incoming) => return Ok(Found::Passing(self.pass(&key.server, incoming).await?)),
                        None => break,
                    }
                }
                // It was kept since the look, or is to be asked for anew.
                (None, _) | (_, Some(End::GivenUp)) => {}
                (Some(head), _) => {
                    let first = reader.0.first.lock().take();
                    let held = match first {
                        Some(held) => held,
                        None => self.take_beside(TRANSFER_BYTES).await?,
                    };
                    let Some(file) = reader.0.file.get().cloned() else { continue };
                    let etag = self.etag(server, &name, "");
                    let (grant, share) = (Some(held.grant), Some(held.share));
                    return Ok(Found::Coming(Coming { reader, progress, head, file, etag, grant, share }));
                }
            }
        }
        Ok(Found::Passing(self.fetch(server, &key.media_id, key.shape).await?))
    }

    /// A place at the transfer of a file, which begins when it is the first.
    fn reader(&self, key: Key) -> Follower {
        let (reader, began) = {
            let mut all = self.0.fetches.0.lock();
            match all.get(&key) {
                Some(arriving) => {
                    arriving.readers.fetch_add(1, Ordering::AcqRel);
                    (Follower(arriving.clone()), false)
                }
                None => {
                    let arriving = Arc::new(Arriving {
                        progress: watch::Sender::new(Progress::default()),
                        file: OnceLock::new(),
                        first: Mutex::default(),
                        passing: Mutex::default(),
                        readers: AtomicUsize::new(1),
                    });
                    all.insert(key.clone(), arriving.clone());
                    (Follower(arriving), true)
                }
            }
        };
        if began {
            let transfer = Transfer { media: self.clone(), key, arriving: reader.0.clone() };
            detached(transfer.run());
        }
        reader
    }
}

impl Coming {
    pub fn content_type(&self) -> Option<&str> {
        self.head.about.content_type.as_deref()
    }

    pub fn name(&self) -> Option<&str> {
        self.head.about.name.as_deref()
    }

    /// The length of the file, once it is known: when the other server said it, or all has come.
    pub fn length(&self) -> Option<u64> {
        let now = self.progress.borrow();
        self.head.length.or_else(|| matches!(now.end, Some(End::Whole)).then_some(now.bytes))
    }

    /// Waits until all has come, or as many bytes as are named. Answers how many there are. An error when no more come.
    pub async fn until(&self, bytes: u64) -> Result<u64, Error> {
        let mut progress = self.progress.clone();
        let _ = progress.wait_for(|now| now.bytes >= bytes || now.end.is_some()).await;
        let now = progress.borrow();
        match &now.end {
            _ if now.bytes >= bytes => Ok(now.bytes),
            Some(End::Failed(failed)) => Err(failed.copy()),
            Some(End::GivenUp | End::TooLarge) => Err(Error::NotFound),
            Some(End::Whole) | None => Ok(now.bytes),
        }
    }

    /// Waits until all has come.
    pub async fn all(&self) -> Result<u64, Error> {
        self.until(u64::MAX).await
    }

    /// Gives back what pays for a reader, for who waits until all is here and reads nothing before.
    fn let_go(&mut self) {
        drop((self.grant.take(), self.share.take()));
    }

    /// Pays for what is read; to be kept as long as it is.
    pub fn take_grant(&mut self) -> Option<Grant> {
        self.grant.take()
    }

    /// The bytes from one place up to another, or to the end, as they come.
    pub fn pieces(self, from: u64, to: Option<u64>) -> impl Chunks {
        Pieces { coming: self, at: from, to: to.unwrap_or(u64::MAX) }
    }
}

struct Pieces {
    coming: Coming,
    at: u64,
    to: u64,
}

impl Chunks for Pieces {
    fn wait(&mut self) -> Option<Awaited> {
        let (mut progress, at) = (self.coming.progress.clone(), self.at);
        let is_there = move |now: &Progress| now.bytes > at || now.end.is_some();
        if is_there(&self.coming.progress.borrow()) {
            return None;
        }
        let transfer = self.coming.reader.0.clone();
        Some(Box::pin(async move {
            let _ = progress.wait_for(is_there).await;
            drop(transfer);
        }))
    }

    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        let (bytes, end) = {
            let now = self.coming.progress.borrow();
            (now.bytes, now.end.clone())
        };
        let now = bytes.min(self.to).saturating_sub(self.at).min(PIECE_BYTES);
        if now > 0 {
            let start = out.len();
            out.resize(start + now as usize, 0);
            self.coming.file.read_exact_at(&mut out[start..], self.at)?;
            self.at += now;
        }
        match end {
            _ if self.at >= self.to => Ok(false),
            Some(End::Whole) => Ok(self.at < bytes),
            Some(_) if self.at >= bytes => {
                Err(ChunkError::elsewhere("the transfer of another server's file broke off"))
            }
            _ => Ok(true),
        }
    }
}

/// The task that brings a file.
struct Transfer {
    media: Media,
    key: Key,
    arriving: Arc<Arriving>,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Also after a panic.
        self.end(End::Failed(Arc::new(Error::Changed)));
    }
}

/// What came of asking once.
enum Asked {
    Whole,
    TooLarge,
    GivenUp,
}

impl Transfer {
    async fn run(self) {
        let end = match self.bring().await {
            Ok(end) => end,
            Err(failed) => {
                tracing::debug!(server = %self.key.server, "a file of another server did not come: {failed}");
                End::Failed(Arc::new(failed))
            }
        };
        self.end(end);
    }

    /// Told once. Whoever comes after begins anew.
    fn end(&self, end: End) {
        let mut all = self.media.0.fetches.0.lock();
        if all.get(&self.key).is_some_and(|now| Arc::ptr_eq(now, &self.arriving)) {
            all.remove(&self.key);
        }
        drop(all);
        if !matches!(end, End::Whole) {
            *self.arriving.first.lock() = None;
        }
        self.arriving.progress.send_modify(|progress| {
            progress.end.get_or_insert(end);
        });
    }

    async fn bring(&self) -> Result<End, Error> {
        let (media, server, kept_as) = (&self.media, &self.key.server, self.key.kept());
        let (store, of, id) = (media.0.parts.store.clone(), server.clone(), kept_as.clone());
        // It may have been kept since the one who asked looked.
        let known = blocking(move || media::get(&store.read()?, of.as_str(), &id)).await?;
        if let Some(row) = known {
            let path = media.path(&row.file);
            if blocking(move || path.exists()).await {
                return Ok(End::Whole);
            }
            // The file is lost: the row is of no use.
            media.remove(server, &kept_as).await?;
        }
        let mut asking = Some(media.turn_to_ask(server).await?);
        if self.arriving.readers.load(Ordering::Acquire) == 0 {
            // Nobody waited so long.
            return Ok(End::GivenUp);
        }
        let mut held = media.take_elsewhere(server, ARRIVING_BYTES + TRANSFER_BYTES).await?;
        *self.arriving.first.lock() = held.split(TRANSFER_BYTES);
        let _held = held;
        let (mut staged, mut again) = (None, 0);
        loop {
            match self.ask(&mut staged, &mut asking).await {
                Ok(Asked::Whole) => break,
                Ok(Asked::TooLarge) => return Ok(End::TooLarge),
                Ok(Asked::GivenUp) => return Ok(End::GivenUp),
                Err(Error::Remote(failed)) if staged.is_some() && again < AGAIN_MAX && broke_off(&failed) => {
                    tracing::debug!(%server, "a file of another server is asked for again: {failed}");
                    again += 1;
                    media.0.parts.clock.sleep(AGAIN_PAUSE).await;
                }
                Err(failed) => return Err(failed),
            }
        }
        let Some(staged) = staged else { return Err(Error::NotFound) };
        let head = self.arriving.progress.borrow().head.clone();
        let About { content_type, name } = head.map_or_else(About::default, |head| head.about.clone());
        let row = media::Media {
            file: String::new(),
            bytes: staged.bytes(),
            content_type,
            name,
            uploader: None,
            created_ms: media.0.parts.clock.now_ms(),
            authenticated: media.is_authenticated(),
            used_day: Some(media.today()),
        };
        // Those who read it have all of it either way.
        let bytes = row.bytes;
        match media.place(staged, server.as_str(), &kept_as, row).await {
            Ok(hash) => {
                media.scan_soon(server.as_str(), &kept_as, &hash, bytes);
                media.0.untidy.notify_one();
            }
            Err(failed) => tracing::warn!("a file of another server could not be kept: {failed}"),
        }
        Ok(End::Whole)
    }

    /// Asks for the file, from its beginning, and writes what is new.
    async fn ask(&self, staged: &mut Option<Staged>, asking: &mut Option<Asking>) -> Result<Asked, Error> {
        let (media, Key { server, media_id, shape }) = (&self.media, &self.key);
        let mut incoming = media.incoming(server, media_id, *shape).await?;
        *asking = None;
        let bytes_max = media.0.limits.remote_file_bytes_max();
        if staged.is_none() {
            let (asking, bytes) = (media.clone(), incoming.at_most().unwrap_or(0));
            let begun = blocking(move || match bytes > bytes_max || bytes > asking.spare_bytes()? {
                true => Ok(None),
                false => asking.stage().map(Some),
            });
            let begun = match begun.await {
                // What cannot be kept can still be passed through.
                Ok(None) | Err(Error::NoRoom(_)) => {
                    *self.arriving.passing.lock() = Some(incoming);
                    return Ok(Asked::TooLarge);
                }
                Ok(Some(begun)) => begun,
                Err(failed) => return Err(failed),
            };
            let _ = self.arriving.file.set(begun.file());
            *staged = Some(begun);
            let head = Head { about: std::mem::take(&mut incoming.about), length: incoming.length() };
            self.arriving.progress.send_modify(|progress| progress.head = Some(Arc::new(head)));
        }
        let (mut buffer, mut at, mut unread) = (Vec::new(), 0, Unread::default());
        let clock = &media.0.parts.clock;
        while let Some(piece) = clock.timeout(STALL, incoming.next()).await.unwrap_or(Err(Failed::Timeout))? {
            buffer.extend_from_slice(&piece);
            if buffer.len() < GATHERED_BYTES {
                continue;
            }
            (buffer, at) = self.write(staged, buffer, at).await?;
            if at > bytes_max {
                return Err(Error::TooLarge { bytes_max });
            }
            match self.arriving.readers.load(Ordering::Acquire) {
                0 if !unread.goes_on(media, at) => return Ok(Asked::GivenUp),
                // Who comes back pays anew.
                0 if unread.aside.is_some() => *self.arriving.first.lock() = None,
                0 => {}
                _ => unread = Unread::default(),
            }
        }
        let (_, whole) = self.write(staged, buffer, at).await?;
        let had = staged.as_ref().map_or(0, Staged::bytes);
        if whole != had {
            return Err(Error::Changed);
        }
        Ok(Asked::Whole)
    }

    /// Writes what belongs at `at`, and tells the readers. Answers the empty buffer, and where it ended.
    async fn write(&self, staged: &mut Option<Staged>, buffer: Vec<u8>, at: u64) -> Result<(Vec<u8>, u64), Error> {
        let Some(mut file) = staged.take() else { return Err(Error::NotFound) };
        let media = self.media.clone();
        let (file, mut buffer, written) = blocking(move || {
            let written = file.write(&media, at, &buffer);
            (file, buffer, written)
        })
        .await;
        let bytes = file.bytes();
        *staged = Some(file);
        written?;
        self.arriving.progress.send_if_modified(|progress| {
            let is_more = bytes > progress.bytes;
            progress.bytes = bytes;
            is_more
        });
        let end = at + buffer.len() as u64;
        buffer.clear();
        Ok((buffer, end))
    }
}

/// How a transfer goes on that nobody reads or waits for.
#[derive(Default)]
struct Unread<'a> {
    /// Where and when nobody did any more.
    since: Option<(u64, Duration)>,
    /// Its place aside, and where and when the stretch began in which its pace is looked at.
    aside: Option<(SemaphorePermit<'a>, u64, Duration)>,
}

impl<'a> Unread<'a> {
    /// Whether it does, now that it is at some byte.
    fn goes_on(&mut self, media: &'a Media, at: u64) -> bool {
        let now = media.0.parts.clock.instant();
        let (from, since) = *self.since.get_or_insert((at, now));
        let time = now.saturating_sub(since);
        if time <= UNREAD_TIME_MAX && at - from <= UNREAD_BYTES_MAX {
            return true;
        }
        if time > ASIDE_TIME_MAX || !media.is_scanned() {
            return false;
        }
        match &mut self.aside {
            None => {
                self.aside = media.0.elsewhere.aside().map(|place| (place, at, now));
                self.aside.is_some()
            }
            Some((_, _, begun)) if now.saturating_sub(*begun) < ASIDE_STRETCH => true,
            Some((_, had, begun)) => {
                let is_slow = at.saturating_sub(*had) < ASIDE_BYTES_MIN;
                (*had, *begun) = (at, now);
                !is_slow
            }
        }
    }
}

/// Whether asking again may help.
fn broke_off(failed: &Failed) -> bool {
    matches!(failed, Failed::Timeout | Failed::BadAnswer(_) | Failed::BrokenOff(_) | Failed::Unreachable { .. })
}
