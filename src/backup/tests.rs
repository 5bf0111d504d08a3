use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::*;
use crate::base::any_bytes::any_bytes;
use crate::store::schema::{ONE_TIME_KEY, TIMELINE};
use crate::store::tables::hex;
use crate::store::tables::media::{self, Media as Row};
use crate::store::{Error as StoreError, Write};
use sha2::{Digest, Sha256};

/// Tests run where nothing may block.
fn write(store: &Store, job: impl FnOnce(&mut Write<'_>) -> store::Result<()> + Send + 'static) {
    let store = store.clone();
    std::thread::spawn(move || store.write_blocking(job).map(drop).unwrap()).join().unwrap();
}

/// A server's folder with some rows, files and media, and a place for its backups.
struct House {
    folder: PathBuf,
    store: Store,
    clock: Clock,
    backups: Backups,
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl House {
    fn new(name: &str) -> House {
        let folder = std::env::temp_dir().join(format!("snug-backup-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let data = folder.join("data");
        for made in ["media", "scratch", "acme"] {
            fs::create_dir_all(data.join(made)).unwrap();
        }
        fs::write(data.join("signing.key"), "ed25519 a secret").unwrap();
        fs::write(data.join("acme/account.key"), "another").unwrap();
        fs::write(data.join("database"), "not read as a file").unwrap();
        let (store, clock, random) = (Store::in_memory(), Clock::simulated(1_764_462_317_000), Random::seeded(3));
        let parts = Parts {
            store: store.clone(),
            clock: clock.clone(),
            random,
            budget: Budget::for_tests(),
            server: "example.org".to_owned(),
            media: data.join("media"),
            scratch: data.join("scratch"),
            config_outside: None,
            folder: data,
        };
        let house = House { folder, store, clock, backups: Backups::new(parts, Options::default()) };
        house.rows(0..3_000);
        for (media_id, bytes, uploader) in
            [("a", &b"picture"[..], Some(7)), ("b", &[9; 300_000], Some(7)), ("c", b"far", None)]
        {
            house.media(media_id, bytes, uploader);
        }
        house
    }

    fn rows(&self, range: std::ops::Range<u32>) {
        let job = move |w: &mut Write<'_>| {
            for at in range {
                w.put(&TIMELINE, &at.to_be_bytes(), &at.to_le_bytes().repeat(30))?;
            }
            w.put(&ONE_TIME_KEY, b"a", b"secret")?;
            w.next_position();
            Ok::<_, StoreError>(())
        };
        write(&self.store, job);
    }

    fn media(&self, media_id: &'static str, bytes: &[u8], uploader: Option<u32>) -> PathBuf {
        let file = hex(&Sha256::digest(bytes));
        let path = self.folder.join("data/media").join(&file[..2]).join(&file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        let (content_type, name, bytes) = (None, None, bytes.len() as u64);
        let server = if uploader.is_some() { "example.org" } else { "far.example" };
        let row = Row { file, bytes, content_type, name, uploader, created_ms: 0, authenticated: true, used_day: None };
        write(&self.store, move |w| media::put(w, server, media_id, &row));
        path
    }

    fn target(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn order(&self, name: &str) -> Order {
        Order { target: self.target(name), media: Media::All, ..Order::default() }
    }

    /// Makes one, while the clock goes on.
    async fn make(&self, order: Order) -> Result<String, Error> {
        let ticking = async {
            loop {
                self.clock.pass(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            made = self.backups.make(order) => made,
            () = ticking => unreachable!("it ticks for ever"),
        }
    }
}

/// What was read of a backup.
#[derive(Default, PartialEq, Debug)]
struct Kept {
    files: BTreeMap<String, Vec<u8>>,
    rows: u64,
    media: BTreeMap<String, usize>,
}

impl Sink for Kept {
    fn head(&mut self, _: &Head) -> Result<(), Error> {
        Ok(())
    }

    fn file(&mut self, name: &str, text: Vec<u8>) -> Result<(), Error> {
        self.files.insert(name.to_owned(), text);
        Ok(())
    }

    fn rows(&mut self, piece: Vec<u8>) -> Result<u64, Error> {
        let rows = crate::store::copy::each_row(&piece, &mut |_, _, _| Ok(())).map_err(bad_piece)?;
        self.rows += rows;
        Ok(rows)
    }

    fn media(&mut self, hash: &str, input: &mut dyn Read) -> Result<(), Error> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        self.media.insert(hash.to_owned(), bytes.len());
        Ok(())
    }
}

fn source(path: &Path) -> Source {
    Source { path: path.to_owned(), stamp: None, key: None, piece_bytes_max: 1 << 20 }
}

fn read(source: &Source) -> Result<Kept, Error> {
    let mut kept = Kept::default();
    source.read(&mut kept, &mut |_| ())?;
    Ok(kept)
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_folder_has_each_thing_once_and_all_of_it_comes_back() {
    let house = House::new("folder");
    let said = house.make(house.order("to")).await.unwrap();
    assert!(said.contains("is whole") && said.contains("on the same disk"), "{said}");
    let first = read(&source(&house.target("to"))).unwrap();
    assert_eq!(first.files.keys().collect::<Vec<_>>(), ["acme/account.key", "signing.key"]);
    assert_eq!(first.media.values().sum::<usize>(), 7 + 300_000 + 3);
    assert!(first.rows > 3_000);
    let before = files_below(&house.target("to"));
    use std::os::unix::fs::PermissionsExt;
    let is_open = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o077 != 0;
    assert!(!before.iter().any(|path| is_open(path) && path.file_name().is_some_and(|name| name != "lock")));

    house.clock.advance(Duration::from_secs(60));
    house.rows(3_000..3_010);
    let said = house.make(house.order("to")).await.unwrap();
    let new = files_below(&house.target("to")).len() - before.len();
    assert!(new <= 4, "the list, the end of the table, and what was noted of the first: {new}: {said}");
    let status = house.backups.status().unwrap();
    assert!(status.running.is_none() && status.noted.failed_ms.is_none());
    assert!(status.noted.made_ms.is_some_and(|made| made <= house.clock.now_ms()));
    assert_eq!(read(&source(&house.target("to"))).unwrap().rows, first.rows + 11, "and what was noted");
    let stamps = backups_in(&house.target("to")).unwrap();
    let older = Source { stamp: Some(stamps[0].stamp.clone()), ..source(&house.target("to")) };
    assert_eq!(read(&older).unwrap(), first);
}

#[tokio::test]
async fn one_file_has_all_of_it() {
    let house = House::new("file");
    house.make(house.order("to")).await.unwrap();
    let folder = read(&source(&house.target("to"))).unwrap();
    house.make(house.order("all.tar.zst")).await.unwrap();
    let file = read(&source(&house.target("all.tar.zst"))).unwrap();
    assert_eq!((&file.files, &file.media, file.rows), (&folder.files, &folder.media, folder.rows + 1));
    let again = house.make(house.order("all.tar.zst")).await.unwrap_err().to_string();
    assert!(again.contains("is there already"), "{again}");
    assert!(!house.target("all.tar.zst.part").exists());
    let own = Order { media: Media::Own, ..house.order("own.tar.zst") };
    house.make(own).await.unwrap();
    assert_eq!(read(&source(&house.target("own.tar.zst"))).unwrap().media.len(), 2);
}

#[tokio::test]
async fn a_sealed_one_opens_for_who_has_the_key_alone() {
    let house = House::new("sealed");
    house.make(house.order("plain")).await.unwrap();
    let plain = read(&source(&house.target("plain"))).unwrap();
    let (one, other) = (Identity::new(&Random::seeded(5)), Identity::new(&Random::seeded(6)));
    for name in ["to", "all.tar.zst.age"] {
        let order = Order { recipient: Some(one.recipient().to_string()), ..house.order(name) };
        house.make(order).await.unwrap();
        let with = |key| read(&Source { key, ..source(&house.target(name)) });
        assert!(source(&house.target(name)).is_sealed().unwrap());
        assert!(matches!(with(None), Err(Error::Sealed)), "{name}");
        assert!(with(Some(Key::Identity(other))).is_err(), "{name}");
        assert_eq!(with(Some(Key::Identity(one))).unwrap().media, plain.media, "{name}");
    }
    let hash = plain.media.keys().next().unwrap();
    for path in files_below(&house.target("to")) {
        let text = fs::read(&path).unwrap();
        assert!(!path.to_string_lossy().contains(hash) && !text.windows(7).any(|part| part == b"picture"));
    }
    let found = backups_in(&house.target("to")).unwrap();
    assert!(check_names(&house.target("to"), &found[0]).unwrap().0 > 5);
    let names = house.target("to").join(format!("{}.names", found[0].stamp));
    let whole = fs::read(&names).unwrap();
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    // Cut off in the middle, behind a name, or with a name less: what they do not name would be removed.
    for wrong in [&whole[..whole.len() - 3], &whole[..first], &whole[first..], b"", &[b'a'; 10_000]] {
        fs::write(&names, wrong).unwrap();
        assert!(check_names(&house.target("to"), &found[0]).unwrap_err().to_string().contains("is damaged"));
    }

    let words = "a long passphrase";
    let order = || Order { passphrase: Some(words.to_owned()), ..house.order("words") };
    house.make(order()).await.unwrap();
    house.make(order()).await.unwrap();
    let opened = identity(&house.target("words"), words, None).unwrap();
    let key = Some(Key::Identity(opened));
    assert_eq!(read(&Source { key, ..source(&house.target("words")) }).unwrap().media, plain.media);
    let wrong = Order { passphrase: Some("another passphrase".to_owned()), ..house.order("words") };
    assert!(house.make(wrong).await.unwrap_err().to_string().contains("passphrase"));
    let short = Order { passphrase: Some("short".to_owned()), ..house.order("short") };
    assert!(house.make(short).await.unwrap_err().to_string().contains("too short"));
}

/// Whatever is damaged in a folder is found, set aside, and written again.
#[tokio::test]
async fn damage_is_found_and_mended() {
    let house = House::new("damage");
    house.make(house.order("to")).await.unwrap();
    let whole = read(&source(&house.target("to"))).unwrap();
    let is_thing =
        |path: &PathBuf| ["rows", "media", "files"].iter().any(|kind| path.starts_with(house.target("to").join(kind)));
    for path in files_below(&house.target("to")).into_iter().filter(is_thing) {
        let text = fs::read(&path).unwrap();
        let mut flipped = text.clone();
        flipped[text.len() / 2] ^= 4;
        for wrong in [flipped, text[..text.len() / 2].to_vec(), [&text[..], b"x"].concat()] {
            fs::write(&path, &wrong).unwrap();
            assert!(read(&source(&house.target("to"))).is_err(), "{}", path.display());
        }
        let mut bad = Vec::new();
        let surveyed = source(&house.target("to")).survey(&mut |_| (), &mut |head, entry, failed| {
            set_aside(&house.target("to"), head, entry);
            bad.push(failed.to_string());
        });
        assert!(surveyed.is_ok() && bad.len() == 1, "{bad:?}");
        assert!(!path.exists());
        fs::write(&path, text).unwrap();
    }
    // Nobody waits for what is no file, nor reads what has no end: the folder may be on somebody else's machine.
    let is_aside = |path: &PathBuf| path.extension().is_some_and(|end| end == "bad");
    for path in files_below(&house.target("to")).into_iter().filter(|path| is_thing(path) && !is_aside(path)) {
        let aside = path.with_extension("aside");
        fs::rename(&path, &aside).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let no_file = |failed: Error| failed.to_string().contains("it is no file");
        assert!(read(&source(&house.target("to"))).is_err_and(no_file));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(read(&source(&house.target("to"))).is_err_and(no_file));
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    // A piece that is longer than this board has memory for is none that is damaged.
    let (small, mut told) = (Source { piece_bytes_max: 10, ..source(&house.target("to")) }, Vec::new());
    small.survey(&mut |_| (), &mut |_, _, failed| told.push(failed)).unwrap();
    let is_unusable = |failed: &Error| matches!(failed, Error::Unusable(why) if why.starts_with("piece 0") && why.contains("--budget"));
    assert!(!told.is_empty() && told.iter().all(is_unusable), "{told:?}");
    let picture = files_below(&house.target("to/media")).into_iter().find(|path| path.extension().is_none()).unwrap();
    fs::remove_file(&picture).unwrap();
    house.clock.advance(Duration::from_secs(60));
    house.make(house.order("to")).await.unwrap();
    assert_eq!(read(&source(&house.target("to"))).unwrap().media, whole.media);
}

#[test]
fn which_disk_is_full_is_said() {
    let full = || io::Error::from(io::ErrorKind::StorageFull);
    let target = Path::new("/mnt/disk/snug");
    for failed in [Error::Io(full()), Error::File(target.join("media/ab"), full())] {
        let said = of_target(failed, target).to_string();
        assert!(said.starts_with("the disk of /mnt/disk/snug is full: make room there"), "{said}");
    }
    let scratch = Error::File("/var/lib/snug/scratch".into(), full());
    assert!(of_target(scratch, target).to_string().starts_with("/var/lib/snug/scratch"));
}

#[tokio::test]
async fn no_damaged_file_is_believed() {
    let house = House::new("bits");
    house.make(house.order("all.tar.zst")).await.unwrap();
    let path = house.target("all.tar.zst");
    let text = fs::read(&path).unwrap();
    let (whole, mut without_meaning) = (read(&source(&path)).unwrap(), 0);
    for at in (0..text.len()).step_by(1 + text.len() / 150) {
        let mut flipped = text.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, &flipped).unwrap();
        // Some bits of the packing say nothing, such as those that fill up the last byte of a stream.
        if let Ok(kept) = read(&source(&path)) {
            assert!(kept == whole, "{at} of {}", text.len());
            without_meaning += 1;
        }
        fs::write(&path, &text[..at]).unwrap();
        assert!(read(&source(&path)).is_err(), "{at} of {}", text.len());
    }
    assert!(without_meaning <= 2, "{without_meaning} of some 150 bits");
}

/// Backups that were made to harm: each is refused, with little memory and nothing written.
#[test]
fn what_somebody_made_up_is_refused() {
    let house = House::new("hostile");
    let path = house.target("evil.tar.zst");
    let random = Random::seeded(1);
    let made = |things: &[(&str, u64, &[u8])]| {
        let _ = fs::remove_file(&path);
        let mut archive = archive::Archive::begin(&path, None, &random).unwrap();
        for (name, told, bytes) in things {
            archive.begin_named(name, *told).unwrap();
            archive.write(bytes).unwrap();
            let _ = archive.end();
        }
        archive.finish().unwrap();
        read(&source(&path)).unwrap_err().to_string()
    };
    let head = Head {
        server: "example.org".to_owned(),
        made_ms: 0,
        program: "1".to_owned(),
        format: 3,
        media: Media::All,
        rows: 1,
        names: None,
    };
    let head = head.text();
    let (head, hash) = (head.as_bytes(), "0".repeat(64));
    let begun = ("head", head.len() as u64, head);
    for name in ["files/../../evil", "files//etc/passwd", "files/database", "media/../evil", "rows/../x", "else/x", "x"]
    {
        let said = made(&[begun, (name, 1, b"x")]);
        assert!(said.contains("not made by"), "{name}: {said}");
    }
    let said = made(&[begun, (&format!("media/00/{hash}"), 1, b"x")]);
    assert!(said.contains("SHA-256"), "{said}");
    assert!(made(&[begun, ("rows/000001", 1 << 40, b"x")]).contains("longer than"));
    assert!(made(&[begun, ("files/a", 1 << 40, b"x")]).contains("longer than"));
    assert!(made(&[begun, ("rows/000002", 0, b"")]).contains("is missing"));
    assert!(made(&[begun, (&format!("media/00/{hash}"), 1 << 45, b"x")]).contains("end is missing"));
    assert!(made(&[begun]).contains("not whole"));
    assert!(made(&[begun, ("list", 1, b"x")]).contains("other things"));
    assert!(made(&[("head", 3, b"abc")]).contains("no backup"));

    // A window of 128 MiB, of which zstd would make a buffer.
    let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(27).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(40 << 20), &mut wide).unwrap();
    fs::write(&path, wide.finish().unwrap()).unwrap();
    assert!(read(&source(&path)).is_err());

    // A piece that unpacks to more than its list says.
    let folder = house.target("bomb");
    let bomb = zstd::bulk::compress(&vec![0; 50 << 20], 1).unwrap();
    let entry = Entry { kind: list::Kind::Rows, name: "000001".to_owned(), hash: [7; 32], bytes: 1000 };
    let place = folder.join("rows/07").join(format!("{}.zst", hex(&[7; 32])));
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::write(&place, bomb).unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(head), entry.line());
    let end = list::end_line(1, Sha256::new().chain_update(&text));
    fs::write(folder.join("2026-01-01T000000Z.list"), text + &end).unwrap();
    let said = read(&source(&folder)).unwrap_err().to_string();
    assert!(said.contains("cannot be unpacked"), "{said}");
}

#[tokio::test]
async fn any_bytes_are_a_backup_or_not() {
    let house = House::new("any");
    house.make(house.order("all.tar.zst")).await.unwrap();
    let path = house.target("any.tar.zst");
    let text = fs::read(house.target("all.tar.zst")).unwrap();
    any_bytes(&[&text[..2000]], |bytes| {
        fs::write(&path, bytes).unwrap();
        let _ = read(&source(&path));
    });
}

#[tokio::test]
async fn old_ones_go_with_what_they_alone_had_and_the_newest_stays() {
    let house = House::new("old");
    let order = || Order { keep_days: Some(10), ..house.order("to") };
    let gone = house.media("d", b"gone soon", Some(7));
    house.make(order()).await.unwrap();
    // On a disk that has other things too, these stay.
    let others =
        ["media/films/film.mkv", "media/ab/cd", "1.list", "incoming/letter.txt", "incoming/scans/0123456789abcdef"]
            .map(|name| house.target("to").join(name));
    let half = house.target("to/incoming/0123456789abcdef");
    fs::write(&half, "half a thing").unwrap();
    for path in &others {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "somebody's own").unwrap();
    }
    let name = gone.file_name().unwrap().to_owned();
    let kept = house.target("to/media").join(&name.to_str().unwrap()[..2]).join(&name);
    assert!(kept.exists());
    write(&house.store, |w| media::remove(w, "example.org", "d").map(drop));
    house.clock.advance(Duration::from_millis(9 * DAY_MS));
    house.make(order()).await.unwrap();
    assert!(kept.exists() && backups_in(&house.target("to")).unwrap().len() == 2);
    house.clock.advance(Duration::from_millis(2 * DAY_MS));
    house.make(order()).await.unwrap();
    let left = backups_in(&house.target("to")).unwrap();
    assert!(!kept.exists() && left.len() == 2);
    for one in left {
        read(&Source { stamp: Some(one.stamp), ..source(&house.target("to")) }).unwrap();
    }
    house.clock.advance(Duration::from_millis(90 * DAY_MS));
    house.make(order()).await.unwrap();
    assert_eq!(backups_in(&house.target("to")).unwrap().len(), 1);
    assert!(others.iter().all(|path| path.exists()) && !half.exists(), "{others:?}");
}

/// A key that is a link to another disk is a key; what cannot be taken along is said.
#[tokio::test]
async fn links_are_followed_and_what_is_left_out_is_said() {
    let house = House::new("links");
    let data = house.folder.join("data");
    fs::write(house.folder.join("elsewhere"), "a third").unwrap();
    std::os::unix::fs::symlink(house.folder.join("elsewhere"), data.join("linked.key")).unwrap();
    std::os::unix::fs::symlink(house.folder.join("nowhere"), data.join("leads-nowhere")).unwrap();
    let said = house.make(house.order("one")).await.unwrap();
    assert!(!said.contains("not in it"), "{said}");
    let files = read(&source(&house.target("one"))).unwrap().files;
    assert_eq!(files.get("linked.key").map(Vec::as_slice), Some(&b"a third"[..]));
    fs::write(data.join("long"), vec![b'x'; list::FILE_BYTES_MAX as usize + 1]).unwrap();
    fs::write(data.join("a name"), "x").unwrap();
    let said = house.make(house.order("other")).await.unwrap();
    assert!(said.contains("2 files in the data folder are not in it"), "{said}");
}

/// A backup that was ended half-way leaves what it wrote, and the next one does not write that again.
#[tokio::test]
async fn an_interrupted_one_goes_on() {
    let house = House::new("again");
    let mut whole = None;
    for steps in [3, 8, 20, 40] {
        let order = house.order("to");
        let mut run = begin(house.backups.0.parts.clone(), &order, house.clock.now_ms() + steps).unwrap();
        for _ in 0..steps {
            if let Step::Over(_) = run.step(STEP_BYTES).unwrap() {
                whole = Some(steps);
                break;
            }
        }
        let is_there = !backups_in(&house.target("to")).unwrap().is_empty();
        assert!(whole.is_some() || !is_there || matches!(run.progress.stage, Stage::Check | Stage::List));
    }
    assert!(whole.is_some());
    let things = files_below(&house.target("to")).len();
    house.make(house.order("to")).await.unwrap();
    assert!(files_below(&house.target("to")).len() <= things + 2);
}

/// A wrong answer of NTP, ten years ahead, had all backups removed but the one of that night; and that one stayed the newest.
#[tokio::test]
async fn a_clock_that_is_years_ahead_removes_no_backup() {
    let house = House::new("ahead");
    let order = || Order { keep_days: Some(10), ..house.order("to") };
    house.make(order()).await.unwrap();
    house.clock.advance(Duration::from_millis(DAY_MS));
    house.make(order()).await.unwrap();
    house.clock.set_forward(Duration::from_millis(3650 * DAY_MS));
    house.clock.advance(Duration::from_millis(DAY_MS));
    house.make(order()).await.unwrap();
    let stamps: Vec<_> = backups_in(&house.target("to")).unwrap().into_iter().map(|found| found.stamp).collect();
    assert_eq!(stamps.len(), 3);
    assert_eq!(stamps[0][..4], stamps[2][..4], "it is named by the time that is believed: {stamps:?}");
    // It was right after all.
    house.clock.advance(Duration::from_millis(3 * DAY_MS));
    house.make(order()).await.unwrap();
    assert_eq!(backups_in(&house.target("to")).unwrap().len(), 1);
}

#[tokio::test]
async fn the_schedule_makes_one_a_day_and_tells_of_failures() {
    let mut house = House::new("daily");
    let target = house.target("to");
    let inner = Arc::get_mut(&mut house.backups.0).unwrap();
    inner.options = Options { target: Some(target.clone()), minute: 210, keep_days: Some(30), ..Options::default() };
    let worker = Worker::new("backup", &house.clock);
    let told = Mutex::new(Vec::new());
    let keeping = house.backups.keep(&worker, |text| {
        told.lock().push(text);
        std::future::ready(())
    });
    let house = &house;
    let day = async {
        let count = || backups_in(&target).map_or(0, |found| found.len());
        let until = async |done: &dyn Fn() -> bool| {
            for _ in 0..100_000 {
                if done() {
                    return true;
                }
                house.clock.pass(Duration::from_secs(5)).await;
            }
            false
        };
        assert!(until(&|| count() == 1).await && until(&|| count() == 2).await);
        fs::remove_dir_all(&target).unwrap();
        fs::write(&target, "in the way").unwrap();
        assert!(until(&|| !told.lock().is_empty()).await);
        fs::remove_file(&target).unwrap();
        assert!(until(&|| count() == 1).await);
    };
    tokio::select! {
        () = keeping => unreachable!("it goes on for ever"),
        () = day => {}
    }
    let told = told.into_inner();
    assert!(told.len() == 1 && told[0].contains("failed") && told[0].contains("The last one is of 20"), "{told:?}");
}

/// The stick was pulled out: its mount point is an empty folder on the server's own disk, or is not there.
#[tokio::test]
async fn a_target_whose_own_disk_is_gone_is_refused() {
    let house = House::new("unmounted");
    let order = house.order("stick");
    house.make(order.clone()).await.unwrap();
    let made = noted::get(&house.store.read().unwrap()).unwrap().made.pop().unwrap();
    assert!(!made.is_apart);
    // As if it had been another disk.
    let apart = Made { is_apart: true, ..made };
    write(&house.store, move |w| noted::made(w, apart, false));
    fs::remove_dir_all(&order.target).unwrap();
    for there in [false, true] {
        if there {
            fs::create_dir(&order.target).unwrap();
        }
        let why = house.make(order.clone()).await.unwrap_err().to_string();
        assert!(why.contains("seems not to be mounted"), "{why}");
        assert!(!order.target.exists() || order.target.read_dir().unwrap().next().is_none());
    }
    house.make(house.order("elsewhere")).await.unwrap();
}

/// A copy that somebody takes along is none of those that are kept by the schedule.
#[tokio::test]
async fn one_by_hand_is_none_of_the_schedule() {
    let mut house = House::new("hand");
    let target = house.target("daily");
    let inner = Arc::get_mut(&mut house.backups.0).unwrap();
    inner.options = Options { target: Some(target), ..Options::default() };
    house.make(house.order("elsewhere")).await.unwrap();
    let noted = house.backups.status().unwrap().noted;
    assert!(noted.made_ms.is_some() && noted.scheduled_ms.is_none(), "{noted:?}");
    house.make(house.order("daily")).await.unwrap();
    let noted = house.backups.status().unwrap().noted;
    assert!(noted.made_ms.is_some() && noted.scheduled_ms == noted.made_ms, "{noted:?}");
}

/// Whoever logs an order must not log what opens its backup.
#[test]
fn an_order_is_shown_without_its_passphrase() {
    let order = Order { passphrase: Some("correct horse battery".to_owned()), ..Order::default() };
    assert!(!format!("{order:?}").contains("horse"));
}

#[test]
fn the_time_of_day() {
    let half_past_three = 210;
    for (now, due) in [(0, 0), (3 * 3_600_000, 0), (12_600_000, 12_600_000), (DAY_MS + 1, 12_600_000)] {
        assert_eq!(latest_due(now, half_past_three), due);
    }
}
