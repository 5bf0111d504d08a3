//! Previews of links: what a web page says about itself, and its picture, made smaller and kept here.
//!
//! Any user may have any address asked, so the address policy of `remote/web` holds: never a machine of the home network but
//! those that the settings name, also not behind a redirect or a second look-up. A page is parsed while it streams (`page.rs`),
//! and read no further than needed. Two pages are fetched at a time, one for each user, each address once for all who ask, and
//! the answer is kept for a day. A page that its site's robots.txt forbids is not asked for (`robots.rs`), unless the settings say so.
//! A picture of a page is stored as a file of the user who asked first, in the size of a thumbnail.
//!
//! Client-server API, "Content Repository", `preview_url`.

mod fetch;
mod page;
mod robots;
mod text;

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use url::Url;

use super::picture::{HEAD_BYTES, Shape};
use super::place::INCOMING;
use super::thumbnail::{Small, Tried};
use super::{About, Error, MEDIA_ID_CHARS, Media, upload};
use crate::base::{KeyedLock, Live, blocking, gathered, unbroken};
use crate::budget::{Grant, turn_with_memory};
use crate::remote::web::{WebAnswer, WebFailed};
use crate::store::tables::preview::{self, Preview};
use crate::store::{UserNum, WriteError};
use fetch::{KnownRules, What};
use page::{Facts, Page, forbids_text};
use text::Encoding;

/// A page is read so far: what it says about itself stands at its beginning, but for one whose scripts come first.
const PAGE_BYTES_MAX: u64 = 2 << 20;
/// A larger picture is not fetched.
const PICTURE_BYTES_MAX: u64 = 10 << 20;
/// A picture that cannot be made smaller is kept when it has no more than this.
const OWN_BYTES_MAX: u64 = 256 << 10;
/// Fetched at a time, pages with their pictures.
const AT_ONCE: usize = 2;
/// Waiting for that, and being fetched.
const WAITING_MAX: usize = 32;
/// The same of one user: what an app asks for when it opens a room. Four people who open theirs do not keep others waiting.
const OF_USER_MAX: usize = 8;
const PATIENCE: Duration = Duration::from_secs(20);
/// What a page that is fetched holds, one after the other: what its site asks of programs, itself, the head of its picture.
const HELD_BYTES: u64 = 40 << 10;
const _: () = assert!(page::BYTES <= HELD_BYTES && robots::BYTES <= HELD_BYTES && HEAD_BYTES <= HELD_BYTES);
/// The picture is made, and waits for memory to be stored so long at most: others wait for the turn.
const STORING: Duration = Duration::from_secs(5);
const KEPT_MS: u64 = 24 * 60 * 60 * 1000;
/// What failed is tried again after this.
const FAILED_KEPT_MS: u64 = 10 * 60 * 1000;
const URL_BYTES_MAX: usize = 2048;
/// Why a page is not read that its site's robots.txt forbids; what is kept of it.
const UNWANTED: &str = "asks programs not to read this page (robots.txt)";

/// The settings of previews.
#[derive(Debug, Clone, Default)]
pub struct PreviewOptions {
    pub enabled: bool,
    /// Hosts that are not asked, with all below them.
    pub deny: Vec<String>,
    /// Hosts of the home network that may be asked: those alone, not what is below them.
    pub private_hosts: Vec<String>,
    /// Whether pages that robots.txt forbids are left alone.
    pub robots_txt: bool,
    /// Whether the home network may be asked. For tests, where all servers are on the loopback.
    pub allow_private: bool,
}

/// What previews are bounded by.
pub(super) struct Previews {
    options: Live<PreviewOptions>,
    turns: Arc<Semaphore>,
    /// Who waits or is served, once for each page: at most [`WAITING_MAX`].
    waiting: Arc<Mutex<Vec<UserNum>>>,
    /// Users whose page is fetched, or next.
    of_users: KeyedLock,
    fetching: KeyedLock,
    known_rules: KnownRules,
}

/// A place among those who wait.
struct Place {
    of: UserNum,
    waiting: Arc<Mutex<Vec<UserNum>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock();
        if let Some(at) = waiting.iter().position(|user| *user == self.of) {
            waiting.swap_remove(at);
        }
    }
}

impl Previews {
    pub(super) fn new() -> Previews {
        Previews {
            options: Live::new(PreviewOptions::default()),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Arc::default(),
            of_users: KeyedLock::default(),
            fetching: KeyedLock::default(),
            known_rules: KnownRules::default(),
        }
    }

    /// A place for one page of a user; none when all are taken, or all of the user's.
    fn place(&self, of: UserNum) -> Option<Place> {
        let mut waiting = self.waiting.lock();
        let own = waiting.iter().filter(|user| **user == of).count();
        if own >= OF_USER_MAX || waiting.len() >= WAITING_MAX {
            return None;
        }
        waiting.push(of);
        Some(Place { of, waiting: self.waiting.clone() })
    }
}

/// Why there is no preview.
#[derive(Debug, thiserror::Error)]
pub enum NoPreview {
    #[error("This server makes no previews of links")]
    Off,
    #[error("{0}")]
    BadUrl(String),
    /// The operator or the address policy forbids it.
    #[error("{0}")]
    Denied(String),
    /// The site forbids it.
    #[error("No preview of this link: its site {UNWANTED}")]
    Unwanted,
    /// Too many are being made.
    #[error("Too many previews are being made just now")]
    Busy,
    /// The web server gives no usable answer.
    #[error("No preview of this link: the web server {0}")]
    Failed(String),
    #[error(transparent)]
    Media(#[from] Error),
}

/// A preview that is kept, or the need to make it.
pub enum Looked {
    /// The JSON of the answer.
    Kept(String),
    Missing,
}

impl Media {
    /// Sets how previews are made from now on.
    pub fn set_previews(&self, options: PreviewOptions) {
        self.0.previews.options.set(options);
    }

    pub fn makes_previews(&self) -> bool {
        self.0.previews.options.get().enabled
    }

    /// A preview that was made before, or the error that came of it.
    pub async fn kept_preview(&self, url: &str) -> Result<Looked, NoPreview> {
        let url = self.allowed(url)?;
        self.look_up(url.as_str()).await.map(|kept| kept.map_or(Looked::Missing, Looked::Kept))
    }

    /// The JSON of a link's preview. Fetches the page, and its picture for that user; also when the one who asked has gone
    /// away meanwhile: a picture that is stored and then not noted would stay for ever.
    pub async fn preview(&self, user: UserNum, url: &str) -> Result<String, NoPreview> {
        let (media, url) = (self.clone(), self.allowed(url)?);
        unbroken(async move { media.make_preview(user, url).await }).await
    }

    async fn make_preview(&self, user: UserNum, url: Url) -> Result<String, NoPreview> {
        let previews = &self.0.previews;
        let clock = &self.0.parts.clock;
        let _place = previews.place(user).ok_or(NoPreview::Busy)?;
        // In this order everywhere: who has an address to fetch waits for a turn alone.
        let owner = user.0.to_string();
        let own = clock.timeout(PATIENCE, previews.of_users.take(&owner));
        let _own = own.await.ok_or(NoPreview::Busy)?;
        let fetching = clock.timeout(PATIENCE, previews.fetching.take(url.as_str()));
        let _fetching = fetching.await.ok_or(NoPreview::Busy)?;
        if let Some(kept) = self.look_up(url.as_str()).await? {
            return Ok(kept);
        }
        let account = self.0.parts.budget.account("media");
        let turn = clock.timeout(PATIENCE, turn_with_memory(clock, &previews.turns, &account, HELD_BYTES)).await;
        let (turn, grant) = turn.ok_or(NoPreview::Busy)?.map_err(Error::from)?;
        let made = self.fetch_preview(user, &url, grant).await;
        drop(turn);
        let (answer, failed, media_id, kept_ms) = match &made {
            Ok(made) => (made.answer.clone(), None, made.media_id.clone(), made.kept_ms),
            Err(NoPreview::Failed(why)) => (String::new(), Some(why.clone()), None, FAILED_KEPT_MS),
            Err(NoPreview::Unwanted) => (String::new(), Some(UNWANTED.to_owned()), None, FAILED_KEPT_MS),
            // Ours, or not worth a row.
            Err(_) => return made.map(|made| made.answer),
        };
        let expires_ms = self.0.parts.clock.now_ms() + kept_ms;
        self.keep_preview(url.as_str(), Preview { expires_ms, answer, failed, media_id }).await?;
        made.map(|made| made.answer)
    }

    /// The address, if it may be asked.
    fn allowed(&self, url: &str) -> Result<Url, NoPreview> {
        if !self.makes_previews() {
            return Err(NoPreview::Off);
        }
        let bad = |why: &str| NoPreview::BadUrl(format!("This is no link that can be shown: {why}"));
        if url.len() > URL_BYTES_MAX {
            return Err(bad("it is too long"));
        }
        self.allowed_url(Url::parse(url).map_err(|failed| bad(&failed.to_string()))?)
    }

    /// The same of one that a redirect may have led to.
    fn allowed_url(&self, mut url: Url) -> Result<Url, NoPreview> {
        let options = self.0.previews.options.get();
        let bad = |why: &str| NoPreview::BadUrl(format!("This is no link that can be shown: {why}"));
        if !matches!(url.scheme(), "https" | "http") || !url.username().is_empty() || url.password().is_some() {
            return Err(bad("it is not https or http, or holds a password"));
        }
        let Some(host) = url.host_str() else { return Err(bad("it has no host")) };
        match is_one_of(host, &options.deny) {
            true => {
                Err(NoPreview::Denied("The administrator of this server allows no previews of this site".to_owned()))
            }
            false => {
                url.set_fragment(None);
                Ok(url)
            }
        }
    }

    async fn look_up(&self, url: &str) -> Result<Option<String>, NoPreview> {
        let (media, url, now_ms) = (self.clone(), url.to_owned(), self.0.parts.clock.now_ms());
        let read = move || preview::get(&media.0.parts.store.read()?, &url);
        let found = blocking(read).await.map_err(Error::from)?;
        match found.filter(|kept| kept.expires_ms > now_ms) {
            // Since then the setting may have been switched off.
            Some(Preview { failed: Some(why), .. }) if why == UNWANTED => {
                if self.0.previews.options.get().robots_txt {
                    Err(NoPreview::Unwanted)
                } else {
                    Ok(None)
                }
            }
            Some(Preview { failed: Some(why), .. }) => Err(NoPreview::Failed(why)),
            Some(kept) => Ok(Some(kept.answer)),
            None => Ok(None),
        }
    }

    async fn keep_preview(&self, url: &str, row: Preview) -> Result<(), Error> {
        let (url, now_ms) = (url.to_owned(), self.0.parts.clock.now_ms());
        let written = self.0.parts.store.write(move |w| Ok::<_, Error>(preview::put(w, &url, &row, now_ms)?));
        let (gone, _) = written.await.map_err(WriteError::into_inner)?;
        for picture in gone {
            self.remove(&self.0.parts.server, &picture).await?;
        }
        Ok(())
    }

    async fn fetch_preview(&self, user: UserNum, url: &Url, grant: Grant) -> Result<Made, NoPreview> {
        let mut answer = self.ask(url, What::Page).await?;
        let head =
            |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let content_type = head("content-type");
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let robots = head("x-robots-tag");
        let base = Url::parse(&answer.url).unwrap_or_else(|_| url.clone());
        if essence.starts_with("image/") {
            let name = base.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default().to_owned();
            let mut facts = Map::new();
            if !name.is_empty() {
                facts.insert(
                    "og:title".to_owned(),
                    json!(percent_encoding::percent_decode_str(&name).decode_utf8_lossy()),
                );
            }
            let media_id = self.picture(user, answer, &mut facts, grant).await?;
            return Ok(Made::of(facts, media_id));
        }
        if !matches!(essence.as_str(), "text/html" | "application/xhtml+xml" | "application/xml" | "text/xml") {
            return Ok(Made::of(Map::new(), None));
        }
        let (mut page, mut bytes) = (Page::new(Encoding::of_content_type(&content_type)), 0);
        while let Some(piece) = answer.next().await.map_err(failed)? {
            bytes += piece.len() as u64;
            if !page.read(&piece) || bytes >= PAGE_BYTES_MAX {
                break;
            }
        }
        // Before another connection is made.
        drop(answer);
        let Facts { properties, picture } = page.facts(forbids_text(&robots));
        let mut facts: Map<_, _> =
            gathered(properties.into_iter().map(|(name, text)| (name.to_owned(), Value::from(text))));
        let (mut media_id, mut kept_ms) = (None, KEPT_MS);
        if let Some(picture) =
            picture.and_then(|picture| base.join(&picture).ok()).and_then(|url| self.allowed(url.as_str()).ok())
        {
            // A page without its picture is still worth showing.
            match self.ask(&picture, What::Picture).await {
                Ok(answer) => match self.picture(user, answer, &mut facts, grant).await {
                    Ok(stored) => media_id = stored,
                    Err(failed) => {
                        tracing::debug!("a preview has no picture: {failed}");
                        // Another time there is memory or room for it.
                        kept_ms = FAILED_KEPT_MS;
                    }
                },
                Err(failed) => tracing::debug!("a preview has no picture: {failed}"),
            }
        }
        Ok(Made { kept_ms, ..Made::of(facts, media_id) })
    }

    /// Stores a picture, made smaller, and says so in `facts`. None for what is no picture, or too large.
    async fn picture(
        &self,
        user: UserNum,
        mut answer: WebAnswer,
        facts: &mut Map<String, Value>,
        grant: Grant,
    ) -> Result<Option<String>, NoPreview> {
        let content_type = answer.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut content_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if !content_type.starts_with("image/") {
            return Ok(None);
        }
        let mut scratch = Scratch::new(self).await?;
        while let Some(piece) = answer.next().await.map_err(failed)? {
            scratch = scratch.write(piece.to_vec()).await?;
        }
        drop(answer);
        let mut size = None;
        match self.preview_picture(&scratch.file, scratch.bytes, grant).await? {
            Some((small, is)) => {
                size = Some(is);
                if let Some(small) = small {
                    content_type = small.made.content_type.to_owned();
                    scratch = Scratch::of(small)?;
                }
            }
            None if scratch.bytes > OWN_BYTES_MAX => return Ok(None),
            None => {}
        }
        let Some(bytes) = Some(scratch.bytes).filter(|bytes| *bytes > 0) else { return Ok(None) };
        let media_id = self.store(user, scratch, &content_type).await?;
        facts.insert("og:image".to_owned(), json!(format!("mxc://{}/{media_id}", self.0.parts.server)));
        facts.insert("og:image:type".to_owned(), json!(content_type));
        facts.insert("matrix:image:size".to_owned(), json!(bytes));
        if let Some((width, height)) = size {
            facts.insert("og:image:width".to_owned(), json!(width));
            facts.insert("og:image:height".to_owned(), json!(height));
        }
        Ok(Some(media_id))
    }

    /// A smaller picture with its size, or the size of one that need not be smaller; none for what is not decoded.
    async fn preview_picture(
        &self,
        file: &File,
        bytes: u64,
        grant: Grant,
    ) -> Result<Option<(Option<Small>, (u32, u32))>, Error> {
        // The memory is others' while one for pictures is waited for.
        let Some((size, plan)) = self.plan_of(file, bytes, Shape::Scale800, grant).await? else { return Ok(None) };
        let Some((shape, holds)) = plan else { return Ok(Some((None, size)).filter(|_| bytes <= OWN_BYTES_MAX)) };
        match self.small(file, shape, holds).await? {
            Tried::Made(small) => {
                let size = (small.made.width, small.made.height);
                Ok(Some((Some(small), size)))
            }
            _ => Ok(Some((None, size)).filter(|_| bytes <= OWN_BYTES_MAX)),
        }
    }

    async fn store(&self, user: UserNum, scratch: Scratch, content_type: &str) -> Result<String, NoPreview> {
        let account = self.0.parts.budget.account("media");
        let grant = self.0.parts.clock.timeout(STORING, account.take(upload::HELD_BYTES)).await;
        let grant = grant.ok_or(NoPreview::Busy)?.map_err(Error::from)?;
        let mut upload = self.begin(user, Some(scratch.bytes)).await?.paid_by(grant);
        let mut at = 0;
        while at < scratch.bytes {
            let file = scratch.file.try_clone().map_err(Error::from)?;
            let piece = blocking(move || piece_at(&file, at)).await?;
            if piece.is_empty() {
                break;
            }
            at += piece.len() as u64;
            upload.write(piece.into()).await?;
        }
        let about = About { content_type: Some(content_type.to_owned()), name: None };
        Ok(upload.finish(about, None).await?)
    }
}

/// An answer made just now.
struct Made {
    answer: String,
    media_id: Option<String>,
    kept_ms: u64,
}

impl Made {
    fn of(facts: Map<String, Value>, media_id: Option<String>) -> Made {
        Made { answer: Value::Object(facts).to_string(), media_id, kept_ms: KEPT_MS }
    }
}

/// A file for a moment. Dropped, it leaves nothing.
struct Scratch {
    file: File,
    bytes: u64,
    path: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Scratch {
    async fn new(media: &Media) -> Result<Scratch, Error> {
        let folder = media.0.parts.folder.join(INCOMING);
        let path = folder.join(media.0.parts.random.token(MEDIA_ID_CHARS));
        blocking(move || {
            fs::create_dir_all(&folder)?;
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            Ok(Scratch { file, bytes: 0, path })
        })
        .await
    }

    fn of(small: Small) -> Result<Scratch, Error> {
        let (path, bytes) = small.into_parts();
        // Removes the file whatever happens.
        let file = File::open(&path);
        match file {
            Ok(file) => Ok(Scratch { file, bytes, path }),
            Err(failed) => {
                let _ = fs::remove_file(&path);
                Err(failed.into())
            }
        }
    }

    async fn write(mut self, piece: Vec<u8>) -> Result<Scratch, Error> {
        blocking(move || {
            std::io::Write::write_all(&mut &self.file, &piece)?;
            self.bytes += piece.len() as u64;
            Ok(self)
        })
        .await
    }
}

fn piece_at(file: &File, at: u64) -> Result<Vec<u8>, Error> {
    let mut piece = vec![0; 16 << 10];
    let read = std::os::unix::fs::FileExt::read_at(file, &mut piece, at)?;
    piece.truncate(read);
    Ok(piece)
}

fn failed(failed: WebFailed) -> NoPreview {
    match failed {
        WebFailed::BadUrl(why) => NoPreview::BadUrl(format!("This link cannot be asked: {why}")),
        WebFailed::Forbidden(_) => NoPreview::Denied("This link leads into a private network".to_owned()),
        WebFailed::Refused(refused) => NoPreview::Media(refused.into()),
        other => NoPreview::Failed(other.to_string()),
    }
}

/// Whether a host is one of these or below it.
fn is_one_of(host: &str, these: &[String]) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    these.iter().any(|one| {
        let one = one.trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase();
        host.strip_suffix(&one).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Clock;
    use crate::budget::Budget;

    /// Two that waited for memory kept all others waiting, also those whose link was no page.
    #[tokio::test]
    async fn who_waits_for_memory_leaves_the_turn_to_others() {
        let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
        let (account, media) = (budget.account("media"), crate::media::tests::media(&clock, &budget));
        media.set_previews(PreviewOptions { enabled: true, ..PreviewOptions::default() });
        let all = account.try_take(account.limit()).unwrap();
        let asked: Vec<_> = (1..4)
            .map(|user| {
                let media = media.clone();
                tokio::spawn(async move { media.preview(UserNum(user), &format!("http://127.0.0.1/{user}")).await })
            })
            .collect();
        while media.0.previews.waiting.lock().len() < 3 || !account.is_awaited() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        crate::base::testing::settled().await;
        assert_eq!(media.0.previews.turns.available_permits(), AT_ONCE);
        drop(all);
        for asked in asked {
            assert!(matches!(asked.await.unwrap(), Err(NoPreview::Denied(_))));
        }
        assert_eq!((account.used(), media.0.previews.turns.available_permits()), (0, AT_ONCE));
        let _ = std::fs::remove_dir_all(&media.0.parts.folder);
    }

    /// One user's links took all turns and all places of those who wait.
    #[test]
    fn one_user_has_a_share_of_the_places() {
        let previews = Previews::new();
        let of =
            |user: u32, places: usize| (0..places).map_while(|_| previews.place(UserNum(user))).collect::<Vec<_>>();
        let mut one = of(1, WAITING_MAX);
        assert_eq!(one.len(), OF_USER_MAX);
        let others: Vec<_> = (2..9).map(|user| of(user, WAITING_MAX).len()).collect();
        assert_eq!(others, [OF_USER_MAX; 7], "dropped, they are free again");
        let held: Vec<_> = (2..9).flat_map(|user| of(user, WAITING_MAX)).collect();
        assert_eq!(held.len(), WAITING_MAX - OF_USER_MAX);
        assert!(previews.place(UserNum(1)).is_none());
        one.pop();
        assert!(previews.place(UserNum(99)).is_some());
    }

    #[test]
    fn hosts_are_denied_with_all_below_them() {
        let deny = ["example.org".to_owned(), "*.Example.com".to_owned()];
        for (host, is) in [
            ("example.org", true),
            ("a.example.org.", true),
            ("A.EXAMPLE.COM", true),
            ("notexample.org", false),
            ("example.org.evil.test", false),
        ] {
            assert_eq!(is_one_of(host, &deny), is, "{host}");
        }
    }
}
