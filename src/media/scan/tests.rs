use std::sync::atomic::AtomicBool;

use ruma::ServerName;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::base::Clock;
use crate::media::tests::media_with;
use crate::media::{About, Options};
use crate::store::UserNum;
use crate::store::tables::hex;

/// A daemon that speaks as clamd does.
#[derive(Clone, Default)]
struct Lab(Arc<State>);

#[derive(Default)]
struct State {
    port: AtomicUsize,
    /// It takes what comes, and says nothing.
    hangs: AtomicBool,
    /// It ends each connection without a word.
    fails: AtomicBool,
    /// Of its database.
    version: AtomicUsize,
    harmful: Mutex<Option<&'static [u8]>>,
    /// What it was sent to judge.
    sent: Mutex<Vec<Vec<u8>>>,
}

impl Lab {
    async fn open() -> Lab {
        let lab = Lab::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        lab.0.port.store(listener.local_addr().unwrap().port().into(), Ordering::Release);
        let of_all = lab.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let lab = of_all.clone();
                tokio::spawn(async move { lab.serve(stream).await });
            }
        });
        lab
    }

    async fn serve(self, mut stream: TcpStream) -> Option<()> {
        let mut command = Vec::new();
        while command.last() != Some(&0) {
            command.push(stream.read_u8().await.ok()?);
        }
        if self.0.hangs.load(Ordering::Acquire) {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            return None;
        }
        if self.0.fails.load(Ordering::Acquire) {
            return None;
        }
        if command == b"zVERSION\0" {
            let version = format!("ClamAV 1.4.3/{}/x\0", self.0.version.load(Ordering::Acquire));
            return stream.write_all(version.as_bytes()).await.ok();
        }
        assert_eq!(command, b"zINSTREAM\0");
        let mut file = Vec::new();
        loop {
            let mut piece = vec![0; stream.read_u32().await.ok()? as usize];
            stream.read_exact(&mut piece).await.ok()?;
            if piece.is_empty() {
                break;
            }
            file.extend_from_slice(&piece);
        }
        let answer: &[u8] = match *self.0.harmful.lock() {
            _ if file == b"too large" => b"INSTREAM size limit exceeded. ERROR\0",
            Some(harmful) if file == harmful => b"stream: Test-Thing FOUND\0",
            _ => b"stream: OK\0",
        };
        if !file.starts_with(b"Snug asks") {
            self.0.sent.lock().push(file);
        }
        stream.write_all(answer).await.ok()
    }

    fn scanner(&self) -> Option<Scanner> {
        let port = self.0.port.load(Ordering::Acquire) as u16;
        Some(Scanner::Clamd { host: "127.0.0.1".to_owned(), port })
    }

    fn count(&self) -> usize {
        self.0.sent.lock().len()
    }
}

fn nowhere() -> Option<Scanner> {
    Some(Scanner::ClamdSocket("/nowhere/clamd.ctl".into()))
}

fn media_scanned(clock: &Clock, scan: ScanOptions) -> Media {
    let options = Options { upload_bytes_max: 1000, scan, ..Options::default() };
    media_with(clock, &Budget::for_tests(), options)
}

async fn upload(media: &Media, bytes: &'static [u8]) -> String {
    let mut upload = media.begin(UserNum(1), None).await.unwrap();
    upload.write(bytes.into()).await.unwrap();
    upload.finish(About::default(), None).await.unwrap()
}

/// A file as it is given out when the clock stands still: `bytes`, or why not.
async fn given(media: &Media, id: &str) -> Result<u64, Error> {
    let asked = media.open(id, Duration::from_secs(20));
    let asked = tokio::time::timeout(Duration::from_secs(60), asked).await;
    asked.expect("an answer").map(|opened| opened.bytes)
}

fn is_unscanned(given: Result<u64, Error>) -> bool {
    matches!(given, Err(Error::Unscanned { retry_after_ms: 1.., .. }))
}

/// Lets time pass until something is so.
async fn until(clock: &Clock, is_so: impl Fn() -> bool) {
    while !is_so() {
        clock.pass(Duration::from_secs(1)).await;
    }
}

fn remove(media: &Media) {
    let _ = std::fs::remove_dir_all(&media.0.parts.folder);
}

/// One file that a scanner took long over, asked for again and again, had all places, and no other was scanned.
#[tokio::test]
async fn who_waits_for_a_file_that_is_being_scanned_takes_no_place() {
    let clock = Clock::simulated(1_000_000);
    let media = media_scanned(&clock, ScanOptions { scanner: nowhere(), ..ScanOptions::default() });
    let held = media.0.scans.of_files.take(&hex(&Sha256::digest(b"abc"))).await;
    let id = upload(&media, b"abc").await;
    for _ in 0..3 {
        let (asking, id) = (media.clone(), id.clone());
        let asked = tokio::spawn(async move { asking.open(&id, Duration::ZERO).await.map(|opened| opened.bytes) });
        until(&clock, || asked.is_finished()).await;
        assert!(is_unscanned(asked.await.unwrap()));
    }
    assert_eq!(media.0.scans.waiting.load(Ordering::Acquire), 0);
    drop(held);
    remove(&media);
}

/// Who uploaded one harmful file after the other filled the rooms of the administrators.
#[test]
fn administrators_are_told_of_a_few_within_an_hour() {
    let scans = Scans::new(&Budget::for_tests(), ScanOptions::default());
    let at = Duration::from_secs;
    let told = (0..TOLD_MAX).map(|_| scans.tells_of_one(at(5))).collect::<Vec<_>>();
    assert_eq!((told[0], told.last().copied().flatten()), (Some(false), Some(true)));
    assert_eq!((scans.tells_of_one(at(3604)), scans.tells_of_one(at(3605))), (None, Some(false)));
}

/// Whoever had less patience than the scanner took got nothing, though the owner has files given out that were not judged.
#[tokio::test]
async fn what_is_given_out_unscanned_does_not_wait_longer_than_who_asks() {
    let clock = Clock::simulated(1_000_000);
    let scan = ScanOptions { scanner: nowhere(), gives_out_unscanned: true, ..ScanOptions::default() };
    let media = media_scanned(&clock, scan);
    // The scan that is under way does not end.
    let held = media.0.scans.of_files.take(&hex(&Sha256::digest(b"abc"))).await;
    let id = upload(&media, b"abc").await;
    let asking = media.clone();
    let asked = tokio::spawn(async move { asking.open(&id, Duration::from_secs(20)).await.map(|opened| opened.bytes) });
    until(&clock, || asked.is_finished()).await;
    assert!(matches!(asked.await.unwrap(), Ok(3)));
    drop(held);
    remove(&media);
}

/// A scan that waited for memory kept its turn, and with one turn no other file was scanned.
#[tokio::test]
async fn a_scan_that_waits_for_memory_keeps_no_turn() {
    let (clock, lab) = (Clock::simulated(1_000_000), Lab::open().await);
    let media = media_scanned(&clock, ScanOptions::default());
    let id = upload(&media, b"abc").await;
    media.set_scanning(ScanOptions { scanner: lab.scanner(), ..ScanOptions::default() });
    let (account, turns) = (media.0.parts.budget.account("media"), media.0.scans.turns.available_permits());
    let all = account.try_take(account.limit()).unwrap();
    let asking = media.clone();
    let asked = tokio::spawn(async move { given(&asking, &id).await });
    while media.0.scans.waiting.load(Ordering::Acquire) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((asked.is_finished(), media.0.scans.turns.available_permits()), (false, turns));
    drop(all);
    assert!(matches!(asked.await.unwrap(), Ok(3)));
    remove(&media);
}

/// A scanner that took files and said nothing cost each of them two minutes, and nobody was told of it.
#[tokio::test]
async fn a_scanner_that_hangs_is_away() {
    let (clock, lab) = (Clock::simulated(1_000_000), Lab::open().await);
    let media = media_scanned(&clock, ScanOptions { scanner: lab.scanner(), ..ScanOptions::default() });
    lab.0.hangs.store(true, Ordering::Release);
    let one = upload(&media, b"abc").await;
    until(&clock, || media.scanner_away().is_some()).await;
    assert!(media.scanner_away().unwrap().why.contains("does not answer"));
    // Others need not wait to see that: the clock stands still.
    let two = upload(&media, b"def").await;
    assert!(is_unscanned(given(&media, &two).await));
    // At last that scan is given up.
    let hash = hex(&Sha256::digest(b"abc"));
    until(&clock, || media.0.scans.of_files.try_take(&hash).is_some()).await;
    lab.0.hangs.store(false, Ordering::Release);
    clock.advance(Duration::from_secs(301));
    assert!(matches!(given(&media, &two).await, Ok(3)));
    assert!(media.scanner_away().is_none());
    assert!(matches!(given(&media, &one).await, Ok(3)));
    assert_eq!(*lab.0.sent.lock(), [b"def", b"abc"]);
    remove(&media);
}

/// What it does not judge says nothing of others, unless it judges nothing.
#[tokio::test]
async fn a_scanner_that_does_not_judge_one_file_is_there() {
    let (clock, lab) = (Clock::simulated(1_000_000), Lab::open().await);
    let media = media_scanned(&clock, ScanOptions { scanner: lab.scanner(), ..ScanOptions::default() });
    let large = upload(&media, b"too large").await;
    for _ in 0..2 {
        assert!(is_unscanned(given(&media, &large).await));
    }
    assert_eq!((lab.count(), media.scanner_away().is_none()), (1, true), "it is not sent again");
    let small = upload(&media, b"abc").await;
    assert!(matches!(given(&media, &small).await, Ok(3)));
    lab.0.fails.store(true, Ordering::Release);
    let other = upload(&media, b"def").await;
    assert!(is_unscanned(given(&media, &other).await));
    assert!(media.scanner_away().is_some());
    remove(&media);
}

#[test]
fn how_long_a_verdict_counts() {
    let days = |days: u64| days * DAY_MS;
    let clean = |first: u64, last: u64| Some(Clean { first_ms: days(first), last_ms: days(last), edition: 7 });
    for (clean, most, now_ms, worth) in [
        (None, Some(30), days(100), Verdict::None),
        (clean(100, 100), None, days(9000), Verdict::Counts),
        (clean(100, 100), Some(30), days(101) - 1, Verdict::Counts),
        (clean(100, 100), Some(30), days(101), Verdict::Due(7)),
        (clean(100, 100), Some(30), days(130), Verdict::Over(7)),
        (clean(100, 104), Some(30), days(108) - 1, Verdict::Counts),
        (clean(100, 104), Some(30), days(108), Verdict::Due(7)),
        (clean(100, 200), Some(30), days(230) - 1, Verdict::Counts),
        (clean(100, 200), Some(30), days(230), Verdict::Over(7)),
        (clean(100, 100), Some(1), days(101), Verdict::Over(7)),
        // A clock that was set back.
        (clean(100, 100), Some(30), days(90), Verdict::Counts),
    ] {
        assert_eq!(Verdict::of(clean, most, now_ms), worth, "{clean:?} {most:?} {now_ms}");
    }
    assert!(Verdict::Over(7).is_by(Some(7)) && !Verdict::Over(7).is_by(Some(8)) && !Verdict::Over(7).is_by(None));
    assert!(!Verdict::Due(0).is_by(Some(0)) && !Verdict::Due(0).is_by(None));
}

/// What was called clean on the day it was made, before anybody knew it, stayed so for ever.
#[tokio::test]
async fn what_was_called_clean_is_asked_about_again() {
    let (clock, lab) = (Clock::simulated(1_000_000), Lab::open().await);
    let scan = ScanOptions { scanner: lab.scanner(), verdict_days: Some(30), ..ScanOptions::default() };
    let media = media_scanned(&clock, scan.clone());
    let (id, other) = (upload(&media, b"abc").await, upload(&media, b"def").await);
    for id in [&id, &other, &id] {
        assert!(matches!(given(&media, id).await, Ok(3)));
    }
    assert_eq!(lab.count(), 2);
    // The same database would say the same.
    clock.advance(Duration::from_millis(DAY_MS));
    assert!(matches!(given(&media, &id).await, Ok(3)));
    assert_eq!(lab.count(), 2);
    lab.0.version.store(2, Ordering::Release);
    clock.advance(Duration::from_millis(DAY_MS));
    for _ in 0..2 {
        assert!(matches!(given(&media, &id).await, Ok(3)));
    }
    assert_eq!(lab.count(), 3);
    *lab.0.harmful.lock() = Some(b"abc");
    lab.0.version.store(3, Ordering::Release);
    assert!(matches!(given(&media, &id).await, Ok(3)));
    clock.advance(Duration::from_millis(2 * DAY_MS));
    assert!(matches!(given(&media, &id).await, Err(Error::NotFound)));
    assert_eq!(lab.count(), 4);

    // While the scanner is away its word counts for as long as the owner says.
    media.set_scanning(ScanOptions { scanner: nowhere(), ..scan });
    assert!(matches!(given(&media, &other).await, Ok(3)));
    assert!(media.scanner_away().is_some());
    clock.advance(Duration::from_millis(30 * DAY_MS));
    assert!(is_unscanned(given(&media, &other).await));
    remove(&media);
}

#[tokio::test]
async fn a_scanner_that_is_set_counts_at_once() {
    let (clock, lab) = (Clock::simulated(1_000_000), Lab::open().await);
    let media = media_scanned(&clock, ScanOptions::default());
    let id = upload(&media, b"abc").await;
    assert!(matches!(given(&media, &id).await, Ok(3)));
    media.set_scanning(ScanOptions { scanner: nowhere(), ..ScanOptions::default() });
    assert!(is_unscanned(given(&media, &id).await));
    media.set_scanning(ScanOptions { scanner: lab.scanner(), ..ScanOptions::default() });
    assert!(media.scanner_away().is_none(), "that was another");
    assert!(matches!(given(&media, &id).await, Ok(3)));
    media.set_scanning(ScanOptions::default());
    assert_eq!((lab.count(), media.is_scanned()), (1, false));
    remove(&media);
}

/// A file of another server that is kept.
async fn keep(media: &Media, server: &ServerName, id: &str, bytes: &[u8]) -> String {
    let mut staged = media.stage().unwrap();
    staged.write(media, 0, bytes).unwrap();
    let row = media::Media {
        file: String::new(),
        bytes: bytes.len() as u64,
        content_type: None,
        name: None,
        uploader: None,
        created_ms: 0,
        authenticated: true,
        used_day: Some(1),
    };
    media.place(staged, server.as_str(), id, row).await.unwrap()
}

/// A file of another server that was given out again when it was not kept any more came back, and was withheld by its bytes.
#[tokio::test]
async fn what_is_given_out_again_comes_through_when_it_is_fetched_again() {
    let clock = Clock::simulated(1_000_000);
    let media = media_scanned(&clock, ScanOptions::default());
    let there = ServerName::parse("there.test").unwrap();
    let kept = async |id: &str| media.kept(&there, id).await.map(|opened| opened.map(|opened| opened.bytes));
    for (id, by_scanner) in [("a", false), ("b", true), ("c", false)] {
        let hash = keep(&media, &there, id, id.as_bytes()).await;
        match by_scanner {
            true => drop(media.found(there.as_str(), id, &hash, "Test-Thing".to_owned()).await),
            false => assert!(media.quarantine(&there, id, Some("@admin:here.test")).await.unwrap()),
        }
        if id == "c" {
            // As a version wrote it that did not note what was withheld.
            let (of, id) = (there.clone(), id.to_owned());
            let old = Mark { quarantined_by: Some("@admin:here.test".to_owned()), ..Mark::default() };
            media.0.parts.store.write(move |w| media::set_mark_of_name(w, of.as_str(), &id, &old)).await.unwrap();
        }
        assert!(matches!(kept(id).await, Err(Error::NotFound)), "{id}");
        assert!(media.remove(&there, id).await.unwrap());
        assert!(matches!(media.check_not_withheld(&there, id).await, Err(Error::NotFound)), "{id}");
        // Its bytes are withheld under other names still.
        keep(&media, &there, "other", id.as_bytes()).await;
        assert!(matches!(kept("other").await, Err(Error::NotFound)), "{id}");
        assert!(media.remove(&there, "other").await.unwrap());

        assert!(media.quarantine(&there, id, None).await.unwrap());
        assert!(media.check_not_withheld(&there, id).await.is_ok());
        media.set_scanning(ScanOptions { scanner: by_scanner.then(nowhere).flatten(), ..ScanOptions::default() });
        keep(&media, &there, id, id.as_bytes()).await;
        assert!(matches!(kept(id).await, Ok(Some(1))), "{id}: the scanner is not asked about what it found");
        media.set_scanning(ScanOptions::default());
        assert!(media.quarantine(&there, id, Some("@admin:here.test")).await.unwrap());
        assert!(matches!(kept(id).await, Err(Error::NotFound)), "{id}");
    }
    // Nothing of it is done for what is protected.
    let id = upload(&media, b"safe").await;
    media.set_safe(&id, true).await.unwrap();
    keep(&media, &there, "safe", b"safe").await;
    assert!(!media.quarantine(&there, "safe", Some("@admin:here.test")).await.unwrap());
    assert!(media.check_not_withheld(&there, "safe").await.is_ok());
    remove(&media);
}
