use bytes::Bytes;

use super::elsewhere::LOCAL_BYTES_MIN;
use super::tidy::DAY_MS;
use super::*;
use crate::base::testing::settled;
use crate::matrix::sign::Key;
use crate::remote::RemoteOptions;
use crate::store::UserNum;

pub(super) fn media(clock: &Clock, budget: &Budget) -> Media {
    media_with(clock, budget, Options { upload_bytes_max: 1000, ..Options::default() })
}

/// With a folder of its own.
pub(super) fn media_with(clock: &Clock, budget: &Budget, options: Options) -> Media {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let (clock, random, budget) = (clock.clone(), Random::seeded(1), budget.clone());
    let (store, server) = (Store::in_memory(), OwnedServerName::try_from("here.test").unwrap());
    let remote = RemoteOptions::new(server.clone(), Arc::new(Key::from_seed("1", [1; 32])));
    let remote = Remote::new(remote, clock.clone(), random.clone(), &budget, store.clone()).unwrap();
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("snug-media-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    Media::new(Parts { store, clock, random, budget, remote, server, folder, options })
}

/// Six requests that waited for one missing file held all the memory for media on the smallest board.
#[tokio::test]
async fn waiting_for_what_was_promised_takes_nothing_from_those_who_read() {
    let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
    let (account, media) = (budget.account("media"), media(&clock, &budget));
    let (id, _) = media.promise(UserNum(1)).await.unwrap();
    let waiting = tokio::spawn(async move { media.open(&id, Duration::from_secs(60)).await.map(drop) });
    settled().await;
    assert_eq!((waiting.is_finished(), account.used()), (false, 0));
    clock.advance(Duration::from_secs(61));
    assert!(matches!(waiting.await.unwrap(), Err(Error::NotYet)));
}

async fn upload(media: &Media, bytes: &'static [u8]) -> String {
    let mut upload = media.begin(UserNum(1), None).await.unwrap();
    upload.write(bytes.into()).await.unwrap();
    upload.finish(About::default(), None).await.unwrap()
}

fn files(media: &Media) -> usize {
    let folders = std::fs::read_dir(&media.0.parts.folder).unwrap().flatten();
    folders.map(|folder| std::fs::read_dir(folder.path()).map_or(0, Iterator::count)).sum()
}

#[tokio::test]
async fn a_removed_upload_gives_its_bytes_back_to_the_disk_and_to_its_uploader() {
    let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
    let media = media(&clock, &budget);
    let here = media.0.parts.server.clone();
    let (one, two) = (upload(&media, b"abc").await, upload(&media, b"abc").await);
    assert_eq!(files(&media), 1);
    assert!(media.remove(&here, &one).await.unwrap() && !media.remove(&here, &one).await.unwrap());
    assert_eq!(files(&media), 1, "the other needs it");
    assert_eq!(media.kept(&here, &two).await.unwrap().map(|opened| opened.bytes), Some(3));
    media.remove(&here, &two).await.unwrap();
    assert_eq!((files(&media), media.usage().await.unwrap().local_bytes), (0, 0));
    // What came into its place and has no row, since the power was cut: what notes it is a row.
    let hash = "ab".repeat(32);
    std::fs::create_dir_all(media.path(&hash).parent().unwrap()).unwrap();
    std::fs::write(media.path(&hash), b"x").unwrap();
    let expected = hash.clone();
    media.0.parts.store.write(move |w| media::expect_file(w, &expected)).await.unwrap();
    media.sweep_gone(9).await.unwrap();
    assert_eq!((files(&media), media.sweep_gone(9).await.unwrap()), (0, 0));
    let _ = std::fs::remove_dir_all(&media.0.parts.folder);
}

#[tokio::test]
async fn all_uploads_together_have_a_bound() {
    let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
    let options = Options { upload_bytes_max: 1000, local_bytes_max: Some(5), ..Options::default() };
    let media = media_with(&clock, &budget, options);
    upload(&media, b"abc").await;
    let mut one = media.begin(UserNum(1), Some(2)).await.unwrap();
    let mut two = media.begin(UserNum(2), None).await.unwrap();
    assert!(matches!(media.begin(UserNum(2), Some(3)).await.map(drop), Err(Error::NoRoom(_))));
    one.write(Bytes::from_static(b"de")).await.unwrap();
    two.write(Bytes::from_static(b"fg")).await.unwrap();
    one.finish(About::default(), None).await.unwrap();
    // Both began while there was room for one.
    assert!(matches!(two.finish(About::default(), None).await, Err(Error::NoRoom(_))));
    media.sweep_gone(9).await.unwrap();
    assert_eq!(files(&media), 2);
    let _ = std::fs::remove_dir_all(&media.0.parts.folder);
}

#[tokio::test]
async fn unused_uploads_go_only_under_a_setting() {
    let (clock, budget) = (Clock::simulated(100 * DAY_MS), Budget::for_tests());
    for (days, left) in [(None, 2), (Some(10), 1)] {
        let options = Options { upload_bytes_max: 1000, local_unused_days: days, ..Options::default() };
        let media = media_with(&clock, &budget, options);
        let here = media.0.parts.server.clone();
        let worker = crate::base::Worker::new("media", &clock);
        media.tidy(&worker).await.unwrap();
        let (one, _) = (upload(&media, b"abc").await, upload(&media, b"def").await);
        clock.advance(Duration::from_millis(6 * DAY_MS));
        assert!(media.kept(&here, &one).await.unwrap().is_some());
        media.tidy(&worker).await.unwrap();
        clock.advance(Duration::from_millis(6 * DAY_MS));
        media.tidy(&worker).await.unwrap();
        assert_eq!(files(&media), left, "{days:?}");
        let _ = std::fs::remove_dir_all(&media.0.parts.folder);
    }
}

/// When uploads are asked for is noted only under the setting: on the day it was set, all older ones went, also those that
/// everybody saw each day.
#[tokio::test]
async fn no_upload_goes_before_its_use_was_noted_for_long_enough() {
    let (clock, budget) = (Clock::simulated(100 * DAY_MS), Budget::for_tests());
    let options = Options { upload_bytes_max: 1000, local_unused_days: Some(10), ..Options::default() };
    let media = media_with(&clock, &budget, options);
    let here = media.0.parts.server.clone();
    let (one, _) = (upload(&media, b"abc").await, upload(&media, b"def").await);
    let worker = crate::base::Worker::new("media", &clock);
    for (days, left) in [(50, 2), (9, 2), (2, 1), (11, 0)] {
        clock.advance(Duration::from_millis(days * DAY_MS));
        if days == 9 {
            assert!(media.kept(&here, &one).await.unwrap().is_some());
        }
        media.tidy(&worker).await.unwrap();
        assert_eq!(files(&media), left, "{days}");
    }
    let mut off = media.uploads_noted_since(None).await.unwrap();
    assert_eq!(off, None);
    off = media.uploads_noted_since(Some(7)).await.unwrap();
    assert_eq!(off, Some(7), "counted anew when it was off in between");
    let _ = std::fs::remove_dir_all(&media.0.parts.folder);
}

/// A server that took requests for files and said nothing had all the memory for files of other servers while it was waited for.
#[tokio::test]
async fn who_waits_for_a_turn_at_a_server_takes_no_memory() {
    let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
    let media = media(&clock, &budget);
    let server = |name: &str| OwnedServerName::try_from(name).unwrap();
    let (slow, other) = (server("slow.test"), server("other.test"));
    let (all, mut held) = (media.0.elsewhere.left(), Vec::new());
    for _ in 0..media.0.elsewhere.of_server_max() {
        held.push(media.turn_to_ask(&slow).await.unwrap());
    }
    let (asking, of) = (media.clone(), slow.clone());
    let asked = tokio::spawn(async move { asking.find(&of, "x").await.map(drop) });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((asked.is_finished(), media.0.elsewhere.left()), (false, all));
    drop(media.turn_to_ask(&other).await.unwrap());
    asked.abort();
    let _ = asked.await;
    drop(held);
    // Nobody waits for the file any more, so that server is not asked.
    while media.0.elsewhere.is_asking() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(media.0.elsewhere.left(), all);
}

/// Other servers that read as slowly as is allowed had all the memory for files, and nobody here saw a picture.
#[tokio::test]
async fn readers_from_outside_leave_memory_for_people_here() {
    let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
    let (account, media) = (budget.account("media"), media(&clock, &budget));
    let id = upload(&media, b"abc").await;
    let mut held = Vec::new();
    loop {
        let (asking, of) = (media.clone(), id.clone());
        let asked = tokio::spawn(async move { asking.open_outside(&of, Duration::ZERO).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        if !asked.is_finished() {
            // What is left is for others.
            assert!(account.limit() - account.used() >= LOCAL_BYTES_MIN && media.0.elsewhere.left() > TRANSFER_BYTES);
            assert!(media.open(&id, Duration::ZERO).await.is_ok());
            held.pop();
            assert!(asked.await.unwrap().is_ok());
            break;
        }
        held.push(asked.await.unwrap().unwrap());
        assert!(held.len() as u64 * TRANSFER_BYTES < account.limit());
    }
    let _ = std::fs::remove_dir_all(&media.0.parts.folder);
}

/// One server whose files came as slowly as is allowed had all the memory for files of other servers.
#[tokio::test]
async fn the_files_of_one_server_leave_memory_for_those_of_another() {
    let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
    let media = media(&clock, &budget);
    let server = |name: &str| OwnedServerName::try_from(name).unwrap();
    let (slow, other, one) = (server("slow.test"), server("other.test"), 60 << 10);
    let mut held = Vec::new();
    let waits = loop {
        let (waiting, of) = (media.clone(), slow.clone());
        let waits = tokio::spawn(async move { waiting.take_elsewhere(&of, TRANSFER_BYTES).await });
        settled().await;
        match waits.is_finished() {
            true => held.push(waits.await.unwrap().ok().unwrap()),
            false => break waits,
        }
    };
    assert!(media.0.elsewhere.left() >= one);
    drop(media.take_elsewhere(&other, one).await.ok().unwrap());
    // What is split off counts as well, until it is given back.
    let part = held[0].split(TRANSFER_BYTES - (1 << 10)).unwrap();
    drop(held.remove(0));
    settled().await;
    assert!(!waits.is_finished());
    drop(part);
    assert!(waits.await.unwrap().is_ok());
    let _ = std::fs::remove_dir_all(&media.0.parts.folder);
}

/// Five uploads that came as slowly as is allowed had all the memory for files of the smallest board.
#[tokio::test]
async fn uploads_take_no_memory_while_nothing_comes() {
    let clock = Clock::simulated(1_000_000);
    let budget = Budget::from_profile(crate::budget::Profile::get("router-32").unwrap());
    let (account, media) = (budget.account("media"), media(&clock, &budget));
    let (mut slow, mut ids) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let mut upload = media.begin(UserNum(1), None).await.unwrap();
        upload.write(Bytes::from_static(b"ab")).await.unwrap();
        assert!(account.used() > 0);
        upload.pause().await.unwrap();
        slow.push(upload);
    }
    assert_eq!(account.used(), 0);
    for mut upload in slow {
        upload.write(Bytes::from_static(b"c")).await.unwrap();
        upload.pause().await.unwrap();
        upload.pause().await.unwrap();
        ids.push(upload.finish(About::default(), None).await.unwrap());
    }
    for id in ids {
        let opened = media.open(&id, Duration::ZERO).await.unwrap();
        assert_eq!((opened.bytes, std::io::read_to_string(opened.file).unwrap().as_str()), (3, "abc"));
    }
    let _ = std::fs::remove_dir_all(&media.0.parts.folder);
}

/// One server whose files came as slowly as is allowed had all the memory for files, for hours.
#[tokio::test]
async fn transfers_from_elsewhere_leave_memory_for_the_files_that_are_here() {
    let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
    let (account, media) = (budget.account("media"), media(&clock, &budget));
    let (mut held, mut servers) = (Vec::new(), 0..);
    let mut server = || OwnedServerName::try_from(format!("s{}.test", servers.next().unwrap())).unwrap();
    while media.0.elsewhere.left() >= remote::PASSING_BYTES {
        held.push(media.take_elsewhere(&server(), remote::PASSING_BYTES).await.unwrap());
    }
    assert!(account.limit() - account.used() >= LOCAL_BYTES_MIN);
    let waiting = media.clone();
    let next = server();
    let waits = tokio::spawn(async move { waiting.take_elsewhere(&next, remote::PASSING_BYTES).await.map(drop) });
    settled().await;
    let id = upload(&media, b"abc").await;
    assert!(media.open(&id, Duration::ZERO).await.is_ok());
    assert!(!waits.is_finished());
    held.pop();
    assert!(waits.await.unwrap().is_ok());
    let _ = std::fs::remove_dir_all(&media.0.parts.folder);
}
