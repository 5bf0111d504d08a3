//! Thumbnails: made when they are first asked for, and kept beside the files in few shapes.
//!
//! What making one takes is on the account `pictures`, charged before; one or two are made at a time, and whoever asks for
//! one that is being made waits for it. Nothing that goes wrong here is an error for who asks: the picture itself is shown.
//! What was made is no more than a cache: it has a share of the card, and others of it go when that is used up.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::picture::{Failed, HEAD_BYTES, Made, Picture, Shape, TIME_MAX, Waiting};
use super::place::INCOMING;
use super::{Error, MEDIA_ID_CHARS, Media, Opened, Scaled, TRANSFER_BYTES};
use crate::base::{KeyedLock, blocking, caught};
use crate::budget::{Account, Budget, Card, Grant, turn_with_memory};
use crate::store::WriteError;
use crate::store::tables::media;
use crate::store::tables::thumbnail::{self, Thumbnail};

/// The folder of what was made.
const FOLDER: &str = "thumbnails";
/// A picture with this many bytes at most is shown as it is where a smaller one would have as many pixels.
const SMALL_BYTES: u64 = 100 << 10;
/// A moving picture with this many bytes at most is shown as it is to whom asks for a moving one.
const ANIMATED_BYTES_MAX: u64 = 2 << 20;
/// One part of this many of the card is for thumbnails.
const CARD_PART: u64 = 50;
/// The longest wait for the turn of a picture.
const PATIENCE: Duration = Duration::from_secs(20);
/// So much is read of a picture for its head: what cameras write before the pixels, with a small picture and a profile of
/// colours. Heads are read whenever somebody asks, a whole file of gigabytes must not be.
const HEAD_READ_BYTES_MAX: u64 = 4 << 20;
/// A picture that took too long is not tried again for so long: that a board was busy says nothing of the picture.
const SLOW_PAUSE: Duration = Duration::from_secs(60 * 60);
/// So many of those are remembered, 24 bytes each: at [`TIME_MAX`] and one turn there are no more within [`SLOW_PAUSE`].
const SLOW_MAX: usize = 240;
/// The account has room for one picture at a time, or for two.
const ONE_BYTES: u64 = 7 << 20;

/// What making thumbnails is bounded by.
pub(super) struct Thumbnails {
    account: Account,
    turns: Arc<Semaphore>,
    /// What is being made, by file and shape.
    making: KeyedLock,
    /// What took too long and when, oldest first.
    slow: Mutex<VecDeque<(u64, Shape, Duration)>>,
    /// The longest that one picture is worked on.
    time_max: Duration,
    bytes_max: u64,
}

impl Thumbnails {
    pub(super) fn new(budget: &Budget, folder: &std::path::Path) -> Thumbnails {
        let account = budget.account("pictures");
        let turns = Arc::new(Semaphore::new((account.limit() / ONE_BYTES).clamp(1, 2) as usize));
        let bytes_max = Card::at(folder).map_or(u64::MAX, |card| card.total_bytes / CARD_PART);
        let (making, slow) = (KeyedLock::default(), Mutex::default());
        Thumbnails { account, turns, making, slow, time_max: TIME_MAX, bytes_max }
    }

    fn note_slow(&self, hash: &str, shape: Shape, now: Duration) {
        let mut slow = self.slow.lock();
        if slow.len() == SLOW_MAX {
            slow.pop_front();
        }
        slow.push_back((short(hash), shape, now));
    }

    fn was_slow(&self, hash: &str, shape: Shape, now: Duration) -> bool {
        let mut slow = self.slow.lock();
        while slow.front().is_some_and(|(.., at)| now.saturating_sub(*at) >= SLOW_PAUSE) {
            slow.pop_front();
        }
        slow.iter().any(|(file, of, _)| (*file, *of) == (short(hash), shape))
    }
}

/// The beginning of a file's name: whoever makes two files alike in it has both shown as they are.
fn short(hash: &str) -> u64 {
    hash.get(..16).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or_default()
}

/// What came of making a smaller picture.
pub(super) enum Tried {
    Made(Small),
    /// Whoever tries again comes to the same.
    Cannot,
    TooLong,
    /// No turn, no memory, no room on the disk, or nobody who waits.
    NotNow,
}

/// A smaller picture in a file of its own. Dropped before it is moved to its place, it leaves nothing.
pub(super) struct Small {
    path: PathBuf,
    bytes: u64,
    pub(super) made: Made,
}

impl Small {
    /// The file and its bytes; it is the caller's now.
    pub(super) fn into_parts(mut self) -> (PathBuf, u64) {
        (std::mem::take(&mut self.path), self.bytes)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Gone already when it was moved.
        let _ = fs::remove_file(&self.path);
    }
}

/// What is to be done for a thumbnail.
enum Plan {
    /// The picture itself will do, or has to.
    Itself,
    /// Made in this shape, holding so many bytes.
    Make(Shape, u64),
}

impl Media {
    /// A picture in a size near to the one wanted: a thumbnail, or the picture itself where it is small enough, cannot be made
    /// smaller, or moves and may.
    pub async fn thumbnail(&self, mut opened: Opened, wanted: &Scaled, animated: bool) -> Result<Opened, Error> {
        // Nothing is read while it is made or waited for: a list of pictures would take the memory from all other transfers.
        drop(opened.grant.split(TRANSFER_BYTES));
        let mut shown = self.smaller(opened, wanted, animated).await?;
        shown.grant.absorb(self.0.parts.budget.account("media").take(TRANSFER_BYTES).await?);
        Ok(shown)
    }

    async fn smaller(&self, opened: Opened, wanted: &Scaled, animated: bool) -> Result<Opened, Error> {
        let mut shape = Shape::of(wanted.width, wanted.height, wanted.crop);
        if animated && opened.bytes <= ANIMATED_BYTES_MAX && self.is_animated(&opened).await? {
            return Ok(opened);
        }
        // A smaller shape is tried when the memory does not suffice, and there are three of a kind.
        for _ in 0..Shape::ALL.len() {
            if let Some(kept) = self.kept_thumbnail(&opened, shape).await? {
                return Ok(shown(opened, shape, kept));
            }
            let named = name(&opened.hash, shape);
            let making = self.0.parts.clock.timeout(PATIENCE, self.0.thumbnails.making.take(&named));
            // Where the turn takes long each of those before has waited as long for it.
            let Some(_making) = making.await else { return Ok(opened) };
            // Perhaps it was made meanwhile.
            if let Some(kept) = self.kept_thumbnail(&opened, shape).await? {
                return Ok(shown(opened, shape, kept));
            }
            match self.plan(&opened, shape).await? {
                Plan::Itself => return Ok(opened),
                Plan::Make(nearest, _) if nearest != shape => shape = nearest,
                Plan::Make(shape, bytes) => {
                    let (thumbnails, clock) = (&self.0.thumbnails, &self.0.parts.clock);
                    if thumbnails.was_slow(&opened.hash, shape, clock.instant()) {
                        return Ok(opened);
                    }
                    let small = match self.small(&opened.file, shape, bytes).await? {
                        Tried::Made(small) => Some(small),
                        Tried::Cannot => None,
                        Tried::TooLong => {
                            thumbnails.note_slow(&opened.hash, shape, clock.instant());
                            return Ok(opened);
                        }
                        Tried::NotNow => return Ok(opened),
                    };
                    let kept = self.keep(&opened.hash, shape, small).await?;
                    return Ok(shown(opened, shape, kept));
                }
            }
        }
        Ok(opened)
    }

    async fn is_animated(&self, opened: &Opened) -> Result<bool, Error> {
        self.look(&opened.file, |picture| picture.is_animated()).await.map(|looked| looked.unwrap_or(false))
    }

    /// The size of a picture, and in which shape it can be made smaller, holding so many bytes: none where it need not or
    /// cannot be. None for what is no picture that is decoded here. `paid`: [`HEAD_BYTES`].
    pub(super) async fn plan_of(
        &self,
        file: &File,
        bytes: u64,
        shape: Shape,
        paid: Grant,
    ) -> Result<Option<((u32, u32), Option<(Shape, u64)>)>, Error> {
        let limit = self.0.thumbnails.account.limit();
        self.look_paid(paid, file, move |picture| {
            let is_small = picture.fits(shape) && bytes <= SMALL_BYTES;
            let plan = if is_small { None } else { picture.affordable(shape, limit) };
            (picture.upright_size(), plan)
        })
        .await
    }

    async fn plan(&self, opened: &Opened, shape: Shape) -> Result<Plan, Error> {
        let (bytes, limit) = (opened.bytes, self.0.thumbnails.account.limit());
        let planned = self.look(&opened.file, move |picture| {
            if picture.fits(shape) && bytes <= SMALL_BYTES {
                return Plan::Itself;
            }
            picture.affordable(shape, limit).map_or(Plan::Itself, |(shape, bytes)| Plan::Make(shape, bytes))
        });
        planned.await.map(|planned| planned.unwrap_or(Plan::Itself))
    }

    /// What the head of a picture says; none when it is none, or none that is decoded here, when it is longer than
    /// [`HEAD_READ_BYTES_MAX`], or when the transfers of others need the memory for long.
    async fn look<T: Send + 'static>(
        &self,
        file: &File,
        at: impl FnOnce(&Picture<'_>) -> T + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let Ok(grant) = self.0.parts.budget.account("media").take(HEAD_BYTES).await else { return Ok(None) };
        self.look_paid(grant, file, at).await
    }

    async fn look_paid<T: Send + 'static>(
        &self,
        grant: Grant,
        file: &File,
        at: impl FnOnce(&Picture<'_>) -> T + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let (file, waiting) = (file.try_clone()?, Waiting::default());
        let leash = waiting.leash();
        let looked = blocking(move || {
            let _grant = grant;
            caught(|| {
                let mut from = Positioned { file: &file, at: 0, end: HEAD_READ_BYTES_MAX };
                Picture::open(&mut from, &leash).map(|picture| at(&picture))
            })
        });
        match looked.await {
            Ok(Ok(looked)) => Ok(Some(looked)),
            Ok(Err(Failed::Io(failed))) => Err(failed.into()),
            Ok(Err(failed)) => {
                tracing::debug!("a picture is shown as it is: {failed}");
                Ok(None)
            }
            Err(panicked) => {
                tracing::error!("the head of a picture ended its decoder: {}", panicked.say());
                Ok(None)
            }
        }
    }

    /// Makes a smaller picture, which holds so many bytes. Ends soon after the caller has gone away.
    pub(super) async fn small(&self, file: &File, shape: Shape, bytes: u64) -> Result<Tried, Error> {
        let (thumbnails, clock) = (&self.0.thumbnails, &self.0.parts.clock);
        let turn = turn_with_memory(clock, &thumbnails.turns, &thumbnails.account, bytes);
        let Some(Ok((_turn, grant))) = clock.timeout(PATIENCE, turn).await else { return Ok(Tried::NotNow) };
        let folder = self.0.parts.folder.join(INCOMING);
        let path = folder.join(self.0.parts.random.token(MEDIA_ID_CHARS));
        let (media, file, waiting) = (self.clone(), file.try_clone()?, Waiting::default());
        let leash = waiting.leash_for(thumbnails.time_max);
        let made = blocking(move || {
            let _grant = grant;
            fs::create_dir_all(&folder)?;
            if media.spare_bytes()? == 0 {
                return Ok(Tried::NotNow);
            }
            let into = File::create_new(&path)?;
            // Removes the file whatever happens.
            let mut small = Small { path, bytes: 0, made: Made { content_type: "", width: 0, height: 0 } };
            let made = caught(|| {
                let (mut from, mut out) = (Positioned { file: &file, at: 0, end: u64::MAX }, BufWriter::new(&into));
                let made = Picture::open(&mut from, &leash)?.make(shape, &mut out)?;
                out.flush()?;
                Ok(made)
            });
            match made {
                Ok(Ok(made)) => {
                    into.sync_data()?;
                    (small.bytes, small.made) = (into.metadata()?.len(), made);
                    Ok(Tried::Made(small))
                }
                Ok(Err(Failed::Io(failed))) => Err(Error::from(failed)),
                // Not its fault.
                Ok(Err(Failed::Cancelled)) => Ok(Tried::NotNow),
                Ok(Err(failed)) => {
                    tracing::debug!("no thumbnail is made: {failed}");
                    Ok(if matches!(failed, Failed::TooLong) { Tried::TooLong } else { Tried::Cannot })
                }
                Err(panicked) => {
                    tracing::error!("a picture ended its decoder: {}", panicked.say());
                    Ok(Tried::Cannot)
                }
            }
        })
        .await;
        drop(waiting);
        made
    }

    /// Opens a thumbnail that was made before.
    async fn kept_thumbnail(&self, opened: &Opened, shape: Shape) -> Result<Option<Kept>, Error> {
        let (media, hash) = (self.clone(), opened.hash.clone());
        blocking(move || {
            let row = thumbnail::get(&media.0.parts.store.read()?, &hash, shape.name())?;
            let Some(Thumbnail { bytes, content_type }) = row else { return Ok(None) };
            let Some(content_type) = content_type else { return Ok(Some(Kept::Itself)) };
            match File::open(media.thumbnail_path(&hash, shape.name())) {
                Ok(file) => Ok(Some(Kept::Small { file, bytes, content_type })),
                // Made anew.
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(failed) => Err(failed.into()),
            }
        })
        .await
    }

    /// Keeps what was made, or that nothing could be, and removes what has to go for it.
    async fn keep(&self, hash: &str, shape: Shape, small: Option<Small>) -> Result<Kept, Error> {
        let (media, path) = (self.clone(), self.thumbnail_path(hash, shape.name()));
        let (row, kept) = blocking(move || {
            let Some(small) = small else { return Ok((Thumbnail::default(), Kept::Itself)) };
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::rename(&small.path, &path)?;
            let (bytes, content_type) = (small.bytes, small.made.content_type.to_owned());
            let row = Thumbnail { bytes, content_type: Some(content_type.clone()) };
            Ok::<_, Error>((row, Kept::Small { file: File::open(&path)?, bytes, content_type }))
        })
        .await?;
        let (file, bytes_max) = (hash.to_owned(), self.0.thumbnails.bytes_max);
        let from = format!("{:08x}", self.0.parts.random.below(1 << 32));
        let written = self.0.parts.store.write(move |w| match media::file_uses(w, &file)? {
            // The file was removed meanwhile, and with it its other thumbnails.
            0 => Ok::<_, Error>(vec![(file, shape.name().to_owned())]),
            _ => Ok(thumbnail::put(w, &file, shape.name(), &row, bytes_max, &from)?),
        });
        let (gone, _) = written.await.map_err(WriteError::into_inner)?;
        blocking(move || {
            for (hash, shape) in gone {
                let _ = fs::remove_file(media.thumbnail_path(&hash, &shape));
            }
        })
        .await;
        Ok(kept)
    }

    /// Removes the thumbnails of a file that is removed; the database forgets them with it. Blocking.
    pub(super) fn remove_thumbnails(&self, hash: &str) {
        for shape in Shape::ALL {
            let _ = fs::remove_file(self.thumbnail_path(hash, shape.name()));
        }
    }

    fn thumbnail_path(&self, hash: &str, shape: &str) -> PathBuf {
        let folder = self.0.parts.folder.join(FOLDER).join(hash.get(..2).unwrap_or("00"));
        folder.join(format!("{hash}-{shape}"))
    }
}

/// A thumbnail that was made, or the knowledge that none can be.
enum Kept {
    Small { file: File, bytes: u64, content_type: String },
    Itself,
}

fn shown(opened: Opened, shape: Shape, kept: Kept) -> Opened {
    match kept {
        Kept::Itself => opened,
        Kept::Small { file, bytes, content_type } => {
            let hash = name(opened.hash.get(..52).unwrap_or_default(), shape);
            let etag = format!("\"{hash}\"");
            Opened { file, bytes, content_type: Some(content_type), name: None, hash, etag, ..opened }
        }
    }
}

fn name(hash: &str, shape: Shape) -> String {
    format!("{hash}-{}", shape.name())
}

/// A file read from its beginning, wherever others that have it open read it.
struct Positioned<'a> {
    file: &'a File,
    at: u64,
    /// It seems to end here.
    end: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = self.end.saturating_sub(self.at).min(into.len() as u64) as usize;
        let read = self.file.read_at(&mut into[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Clock;
    use crate::media::tests::{media, media_with};
    use crate::media::{About, Opened, Options};
    use crate::store::UserNum;

    async fn open(media: &Media, file: &'static [u8]) -> Opened {
        let mut upload = media.begin(UserNum(1), None).await.unwrap();
        upload.write(file.into()).await.unwrap();
        let about = About { content_type: Some("image/gif".to_owned()), name: None };
        let id = upload.finish(about, None).await.unwrap();
        media.open(&id, Duration::ZERO).await.unwrap()
    }

    /// Twelve pictures asked for at once took all that the smallest board has for files while they waited for their turn,
    /// so that none was made smaller and nothing else was sent.
    #[tokio::test]
    async fn who_waits_for_a_thumbnail_takes_nothing_from_those_who_read() {
        let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
        let (account, media) = (budget.account("media"), media(&clock, &budget));
        let opened = open(&media, b"no picture").await;
        assert_eq!(account.used(), TRANSFER_BYTES);
        let held = media.0.thumbnails.making.take(&name(&opened.hash, Shape::Crop32)).await;
        let (asking, scaled) = (media.clone(), Scaled { width: 32, height: 32, crop: true });
        let asked = tokio::spawn(async move { asking.thumbnail(opened, &scaled, false).await });
        while account.used() > 0 {
            tokio::task::yield_now().await;
        }
        drop(held);
        let shown = asked.await.unwrap().unwrap();
        assert_eq!((account.used(), shown.grant.bytes()), (TRANSFER_BYTES, TRANSFER_BYTES));
        drop(shown);
        assert_eq!(account.used(), 0);
        let _ = fs::remove_dir_all(&media.0.parts.folder);
    }

    /// Those who asked for one picture waited for its turn one after the other, the last of ten for minutes.
    #[tokio::test]
    async fn who_waits_for_anothers_thumbnail_is_shown_the_picture_at_last() {
        let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
        let media = media(&clock, &budget);
        let opened = open(&media, b"no picture").await;
        let _held = media.0.thumbnails.making.take(&name(&opened.hash, Shape::Crop32)).await;
        let (asking, own) = (media.clone(), opened.hash.clone());
        let scaled = Scaled { width: 32, height: 32, crop: true };
        let asked = tokio::spawn(async move { asking.thumbnail(opened, &scaled, false).await });
        while !asked.is_finished() {
            clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(asked.await.unwrap().unwrap().hash, own);
        let _ = fs::remove_dir_all(&media.0.parts.folder);
    }

    /// A picture that a busy board did not get done in time was never made smaller again.
    #[tokio::test]
    async fn what_took_too_long_is_tried_again_later() {
        let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
        let mut media = media_with(&clock, &budget, Options { upload_bytes_max: 1 << 20, ..Options::default() });
        let picture: &'static [u8] = crate::media::picture::tests::png(200, 100, 3).leak();
        let scaled = Scaled { width: 32, height: 32, crop: true };
        for (time_max, later, is_made) in [
            (Duration::ZERO, 0, false),
            (TIME_MAX, SLOW_PAUSE.as_secs() / 2, false),
            (TIME_MAX, SLOW_PAUSE.as_secs(), true),
        ] {
            clock.advance(Duration::from_secs(later));
            std::sync::Arc::get_mut(&mut media.0).unwrap().thumbnails.time_max = time_max;
            let opened = open(&media, picture).await;
            let own = opened.hash.clone();
            let shown = media.thumbnail(opened, &scaled, false).await.unwrap();
            assert_eq!(shown.hash != own, is_made, "{later}");
        }
        let _ = fs::remove_dir_all(&media.0.parts.folder);
    }

    #[tokio::test]
    async fn a_thumbnail_that_comes_when_its_file_is_gone_is_not_kept() {
        let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
        let media = media(&clock, &budget);
        let hash = "ab".repeat(32);
        fs::create_dir_all(media.0.parts.folder.join(INCOMING)).unwrap();
        let path = media.0.parts.folder.join(INCOMING).join("x");
        fs::write(&path, b"small").unwrap();
        let small = Small { path, bytes: 5, made: Made { content_type: "image/png", width: 1, height: 1 } };
        assert!(matches!(media.keep(&hash, Shape::Crop32, Some(small)).await, Ok(Kept::Small { .. })));
        assert!(!media.thumbnail_path(&hash, Shape::Crop32.name()).exists());
        assert_eq!(thumbnail::used(&media.0.parts.store.read().unwrap()).unwrap(), 0);
        let _ = fs::remove_dir_all(&media.0.parts.folder);
    }

    #[test]
    fn the_head_of_a_picture_is_not_looked_for_in_all_of_a_large_file() {
        let path = std::env::temp_dir().join(format!("snug-head-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        file.set_len(100).unwrap();
        let read = |end: u64| io::copy(&mut Positioned { file: &file, at: 0, end }, &mut io::sink()).unwrap();
        assert_eq!((read(10), read(u64::MAX)), (10, 100));
    }
}
