//! The journal: what a process that is killed at any moment leaves, and journals that are not what they should be.
//! Power cuts at every sync are in `tests/it/crash.rs`.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{put, together};
use crate::base::Clock;
use crate::store::journal::{BLOCK, PLACE_ROW};
use crate::store::schema::{META, STATE_NAME, STATE_NODE};
use crate::store::*;

mod failing;

const DATABASE: usize = 0;
const JOURNAL: usize = 1;
/// A few dozen commits fill it.
const JOURNAL_BYTES: u64 = 24 * BLOCK as u64;

/// The files of a database, as a killed process leaves them.
type Image = [Vec<u8>; 2];

/// Both files in memory.
#[derive(Clone, Default)]
struct Card(Arc<Mutex<Cells>>);

#[derive(Default)]
struct Cells {
    files: Image,
    writes: [Vec<usize>; 2],
    syncs: [usize; 2],
    /// Writes of the journal fail with this.
    failing: Option<io::ErrorKind>,
    /// The last that failed: the card may have it later.
    late: Option<(usize, Vec<u8>)>,
    /// Pages that cannot be read, of the database and of the journal.
    gone: [Vec<usize>; 2],
    /// Journals that were set aside.
    aside: usize,
}

impl Card {
    fn of(files: Image) -> Card {
        Card(Arc::new(Mutex::new(Cells { files, ..Cells::default() })))
    }

    fn cells(&self) -> MutexGuard<'_, Cells> {
        self.0.lock().unwrap()
    }

    fn image(&self) -> Image {
        self.cells().files.clone()
    }
}

#[derive(Clone)]
struct Slot(Card, usize);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Disk for Slot {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.cells().files[self.1].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let cells = self.0.cells();
        let end = offset as usize + out.len();
        if cells.gone[self.1].iter().any(|page| (offset as usize) < (page + 1) * BLOCK && page * BLOCK < end) {
            return Err(io::Error::other("input/output error"));
        }
        let range = offset as usize..end;
        out.copy_from_slice(cells.files[self.1].get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.cells().files[self.1].resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.cells().syncs[self.1] += 1;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut cells = self.0.cells();
        if let Some(failing) = cells.failing.filter(|_| self.1 == JOURNAL) {
            cells.late = Some((offset as usize, data.to_vec()));
            return Err(failing.into());
        }
        cells.writes[self.1].push(data.len());
        let range = offset as usize..offset as usize + data.len();
        cells.files[self.1].get_mut(range).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }
}

impl Medium for Card {
    fn open(&self) -> io::Result<Box<dyn Disk>> {
        Ok(Box::new(Slot(self.clone(), DATABASE)))
    }

    fn open_journal(&self) -> io::Result<Option<Box<dyn Disk>>> {
        let is_there = !self.cells().files[JOURNAL].is_empty();
        Ok(is_there.then(|| Box::new(Slot(self.clone(), JOURNAL)) as Box<dyn Disk>))
    }

    fn make_journal(&self, bytes: u64) -> io::Result<Box<dyn Disk>> {
        if let Some(failing) = self.cells().failing {
            return Err(failing.into());
        }
        let slot = Slot(self.clone(), JOURNAL);
        if slot.len()? != bytes {
            slot.set_len(0)?;
            slot.set_len(bytes)?;
        }
        Ok(Box::new(slot))
    }

    fn set_journal_aside(&self) -> io::Result<()> {
        let mut cells = self.cells();
        cells.files[JOURNAL].clear();
        cells.gone[JOURNAL].clear();
        cells.aside += 1;
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

fn open_with(card: &Card, seed: u64, journal_bytes: u64) -> Store {
    try_open(card, seed, journal_bytes).unwrap()
}

fn try_open(card: &Card, seed: u64, journal_bytes: u64) -> Result<Store> {
    let mut options = StoreOptions::new("");
    options.random = Random::seeded(seed);
    options.cache_bytes = 256 << 10;
    options.journal_bytes = journal_bytes;
    Store::open_on(Arc::new(card.clone()), options)
}

fn open(card: &Card) -> Store {
    // Each opening draws something else, as it does in earnest.
    static OPENINGS: AtomicU64 = AtomicU64::new(10_000);
    open_with(card, OPENINGS.fetch_add(1, Ordering::Relaxed), JOURNAL_BYTES)
}

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// The rows of the table that these tests write, and the position.
fn rows(store: &Store) -> (Rows, Position) {
    let read = store.read().unwrap();
    let mut rows = Rows::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        rows.insert(key.to_vec(), value.to_vec());
        Ok(ControlFlow::Continue(()))
    };
    read.prefix(&STATE_NODE, b"", &mut visit).unwrap();
    (rows, read.position().unwrap())
}

/// What a start finds in such files.
fn found(image: &Image) -> (Rows, Position) {
    let store = open_with(&Card::of(image.clone()), 7, JOURNAL_BYTES);
    let found = rows(&store);
    store.close_blocking();
    found
}

/// The database as it lies, without its journal.
fn on_card(image: &Image) -> (Rows, Position) {
    found(&[image[DATABASE].clone(), Vec::new()])
}

fn write(store: &Store, number: u32) {
    let job = move |w: &mut Write| {
        let position = w.next_position();
        w.remove(&STATE_NODE, &(number.wrapping_sub(3)).to_be_bytes())?;
        w.put(&STATE_NODE, &number.to_be_bytes(), &position.to_key())
    };
    store.write_blocking(job).unwrap();
}

/// A commit wrote 27 pages at scattered places and synced twice.
#[test]
fn an_ordinary_commit_costs_one_block_and_one_sync() {
    let card = Card::default();
    let store = open(&card);
    // The first begins the journal.
    write(&store, 0);
    for number in 1..10 {
        let so_far = || {
            let cells = card.cells();
            (cells.syncs, cells.writes.clone().map(|writes| writes.len()))
        };
        let (syncs, writes) = so_far();
        write(&store, number);
        let cells = card.cells();
        assert_eq!(cells.syncs, [syncs[DATABASE], syncs[JOURNAL] + 1]);
        assert_eq!(cells.writes[DATABASE].len(), writes[DATABASE]);
        assert_eq!(cells.writes[JOURNAL][writes[JOURNAL]..], [BLOCK]);
    }
    store.close_blocking();
}

#[test]
fn a_process_killed_at_any_moment_leaves_every_acknowledged_write() {
    let random = Random::seeded(11);
    let mut card = Card::default();
    let mut store = open(&card);
    let (mut model, mut position) = (Rows::new(), 0);
    for round in 0..300u32 {
        let ops: Vec<_> = (0..1 + random.below(12))
            .map(|_| {
                (random.below(90).to_be_bytes(), random.below(3) > 0, vec![round as u8; random.below(700) as usize])
            })
            .collect();
        for (key, is_put, value) in &ops {
            match is_put {
                true => model.insert(key.to_vec(), value.clone()),
                false => model.remove(&key[..]),
            };
        }
        position += 1;
        let job = move |w: &mut Write| {
            w.next_position();
            ops.iter().try_for_each(|(key, is_put, value)| match is_put {
                true => w.put(&STATE_NODE, key, value),
                false => w.remove(&STATE_NODE, key).map(drop),
            })
        };
        match random.below(10) {
            0 => store.write_bulk_blocking(job).map(drop).unwrap(),
            _ => store.write_blocking(job).map(drop).unwrap(),
        }
        let expected = (model.clone(), Position(position));
        assert!(rows(&store) == expected, "round {round}");
        assert!(found(&card.image()) == expected, "killed in round {round}");
        match random.below(20) {
            0 => {
                card = Card::of(card.image());
                store = open(&card);
            }
            1 => {
                store.close_blocking();
                assert!(on_card(&card.image()) == expected, "nothing is left in the journal after a clean end");
                store = open(&card);
            }
            2 => assert!(store.compact_blocking().unwrap()),
            _ => {}
        }
    }
}

/// Copies of the two files from different times, and of different later histories, are put together in every way.
#[test]
fn a_database_and_a_journal_of_different_times_never_mix() {
    let card = Card::default();
    let mut store = open(&card);
    let (mut images, mut states) = (Vec::new(), vec![rows(&store)]);
    for number in 0..34 {
        match number % 9 {
            5 => store.write_bulk_blocking(move |w| w.put(&STATE_NODE, b"bulk", &[number as u8])).map(drop).unwrap(),
            8 => {
                store.close_blocking();
                store = open(&card);
            }
            _ => write(&store, number),
        }
        states.push(rows(&store));
        images.push(card.image());
    }
    // The same database, from its middle on, has another future.
    let other = Card::of(images[16].clone());
    let store = open_with(&other, 1234, JOURNAL_BYTES);
    for number in 100..116 {
        write(&store, number);
        states.push(rows(&store));
        images.push(other.image());
    }
    for database in &images {
        let least = on_card(database);
        let least = states.iter().position(|state| *state == least).expect("a state of its history");
        for journal in &images {
            let found = found(&[database[DATABASE].clone(), journal[JOURNAL].clone()]);
            let at = states.iter().position(|state| *state == found).expect("one state of one history");
            assert!(at >= least);
        }
    }
}

#[test]
fn a_torn_or_flipped_record_ends_the_replay_and_leaves_no_half() {
    let card = Card::default();
    let store = open(&card);
    let mut states = vec![rows(&store)];
    for number in 0..6 {
        write(&store, number);
        states.push(rows(&store));
    }
    let image = card.image();
    for (record, state) in states[1..6].iter().enumerate() {
        for byte in (0..100).chain([BLOCK - 1]) {
            let mut image = image.clone();
            image[JOURNAL][record * BLOCK + byte] ^= 0x10;
            let found = found(&image);
            // The rest of the last block is not part of the record.
            assert!(found == *state || byte > 60 && found == states[6], "record {record}, byte {byte}");
        }
        let mut image = image.clone();
        image[JOURNAL][record * BLOCK + 40..][..BLOCK - 40].fill(0);
        assert!(found(&image) == *state);
    }
    // What follows a start that found a torn record is not mistaken for the old records behind it.
    let mut torn = image.clone();
    torn[JOURNAL][2 * BLOCK + 20] ^= 1;
    let card = Card::of(torn);
    let store = open(&card);
    assert!(rows(&store) == states[3]);
    for number in 50..53 {
        write(&store, number);
        assert!(found(&card.image()) == rows(&store));
    }
}

#[test]
fn a_journal_of_another_database_is_none() {
    let (card, other) = (Card::default(), Card::default());
    let (store, others) = (open_with(&card, 1, JOURNAL_BYTES), open_with(&other, 2, JOURNAL_BYTES));
    for number in 0..8 {
        write(&store, number);
        write(&others, 100 + number);
    }
    let mixed = [card.image()[DATABASE].clone(), other.image()[JOURNAL].clone()];
    assert!(found(&mixed) == on_card(&card.image()));
}

#[test]
fn a_journal_of_any_length_is_applied_as_far_as_it_goes_and_made_new() {
    let card = Card::default();
    let store = open(&card);
    let mut states = vec![rows(&store)];
    for number in 0..9 {
        write(&store, number);
        states.push(rows(&store));
    }
    for (length, state) in [(0, 1), (1, 1), (BLOCK, 2), (3 * BLOCK + 30, 4), (3 * BLOCK + 400, 5), (40 * BLOCK, 9)] {
        let mut image = card.image();
        image[JOURNAL].resize(length, 0xaa);
        let after = Card::of(image);
        let store = open(&after);
        assert!(rows(&store) == states[state], "{length} bytes");
        assert_eq!(after.image()[JOURNAL].len() as u64, JOURNAL_BYTES);
        write(&store, 77);
        write(&store, 78);
        assert!(found(&after.image()) == rows(&store), "{length} bytes");
    }
    // The program's next version has a journal of another length.
    let longer = open_with(&Card::of(card.image()), 3, 2 * JOURNAL_BYTES);
    assert!(rows(&longer) == states[9]);
}

#[test]
fn a_group_too_long_for_a_record_is_durable_all_the_same() {
    let card = Card::default();
    let store = open_with(&card, 5, 2 << 20);
    write(&store, 1);
    write(&store, 2);
    for length in [200 << 10, 300 << 10] {
        let syncs = card.cells().syncs;
        store.write_blocking(move |w| w.put(&STATE_NODE, b"long", &vec![3; length])).unwrap();
        let is_short = length < journal::RECORD_BYTES_MAX;
        assert_eq!(card.cells().syncs[JOURNAL] - syncs[JOURNAL], usize::from(is_short));
        assert!(found(&card.image()) == rows(&store));
        write(&store, 3);
        assert!(found(&card.image()) == rows(&store));
    }
}

/// What a job wrote before it failed was taken back in the database; it must not come back from the journal.
#[test]
fn jobs_that_fail_in_a_group_are_not_in_the_record() {
    let card = Card::default();
    let store = open_with(&card, 5, 2 << 20);
    write(&store, 1);
    let done = together(
        &store,
        vec![
            Box::new(|w| w.put(&STATE_NODE, b"k", b"a").map(|()| 1)),
            Box::new(|w| {
                w.put(&STATE_NODE, b"k", b"b")?;
                // Longer than a record: those behind it still go into the journal.
                w.put(&STATE_NAME, b"long", &vec![0; 300 << 10])?;
                panic!("on purpose")
            }),
            Box::new(|w| {
                w.put(&STATE_NODE, b"k", b"c")?;
                Err(Error::Closed)
            }),
            Box::new(|w| w.put(&STATE_NODE, b"l", b"d").map(|()| 2)),
        ],
    );
    assert!(done[0].is_ok() && done[1].is_err() && done[2].is_err() && done[3].is_ok());
    assert_eq!(card.cells().syncs[JOURNAL], 1);
    assert!(found(&card.image()) == rows(&store));
    assert_eq!(rows(&store).0[&b"k"[..]], b"a");
}

/// The positions up to which something may have been lost.
#[derive(Default)]
struct Lost(Mutex<Vec<Position>>);

impl Follower for Lost {
    fn committed(&self, _: &[&Change], _: Position) {}

    fn lost(&self, position: Position) {
        self.0.lock().unwrap().push(position);
    }
}

/// The place of the journal stayed where it was: the record would have been applied over newer rows.
/// A record of many; a page that the others need too would be in the way of them all.
/// The rest of such a change was lost with the row, and later changes were applied over the gap.
/// The block that is being written when the power goes often cannot be read: the server did not start again.
/// A start after 16,384 rows at scattered places took many seconds on a slow card.
#[test]
fn some_thousand_rows_are_followed_by_a_checkpoint() {
    let card = Card::default();
    let store = open_with(&card, 5, 2 << 20);
    write(&store, 1);
    for round in 0..7u8 {
        let syncs = card.cells().syncs[JOURNAL];
        let many = move |w: &mut Write| (0..1000u32).try_for_each(|n| w.put(&STATE_NODE, &n.to_be_bytes(), &[round]));
        store.write_blocking(many).unwrap();
        assert_eq!(card.cells().syncs[JOURNAL] - syncs, usize::from(round < 6));
        assert!(found(&card.image()) == rows(&store));
    }
    assert!(on_card(&card.image()) == rows(&store));
}

#[test]
fn positions_go_on_where_the_journal_ends() {
    let card = Card::default();
    let store = open(&card);
    for number in 0..7 {
        write(&store, number);
    }
    let store = open(&Card::of(card.image()));
    let (position, changes) = store.write_blocking(|w| Ok::<_, Error>(w.next_position())).unwrap();
    // Nothing was put, so nothing was committed.
    assert_eq!((position, changes.position()), (Position(8), Position(7)));
    write(&store, 9);
    assert_eq!(rows(&store).1, Position(8));
    assert!(
        !store.read().unwrap().has(&META, b"nothing").unwrap() && store.read().unwrap().has(&META, PLACE_ROW).unwrap()
    );
}

/// A board without a battery knows at its second start in 1970 what time it was at the first.
#[test]
fn the_latest_time_is_kept_with_each_checkpoint_and_no_other_row() {
    let (card, clock) = (Card::default(), Clock::simulated(1_000));
    let open = || {
        let mut options = StoreOptions::new("");
        (options.random, options.clock) = (Random::seeded(3), Some(clock.clone()));
        options.journal_bytes = JOURNAL_BYTES;
        Store::open_on(Arc::new(card.clone()), options).unwrap()
    };
    let store = open();
    let kept = |store: &Store| store.time_kept().unwrap().map(|kept| (kept.latest_ms, kept.settled_ms));
    assert_eq!(kept(&store), None);
    clock.advance(std::time::Duration::from_secs(5));
    write(&store, 1);
    assert_eq!(kept(&store), Some((6_000, Some(6_000))), "the first commit of a run is a checkpoint");
    clock.advance(std::time::Duration::from_secs(5));
    write(&store, 2);
    assert_eq!(kept(&store), Some((6_000, Some(6_000))), "a message writes no more rows for it");
    store.close_blocking();
    drop(store);
    assert_eq!(kept(&open()), Some((11_000, Some(11_000))));
}

/// `snug check --database` changes nothing, and the start after it still has its journal.
#[test]
fn a_survey_counts_the_journal_and_leaves_it() {
    let folder = std::env::temp_dir().join(format!("snug-journal-{}", std::process::id()));
    let options = |name: &str| StoreOptions::new(folder.join(name).join("database"));
    ["running", "killed"].iter().for_each(|name| std::fs::create_dir_all(folder.join(name)).unwrap());
    let store = Store::open(options("running")).unwrap();
    (0..5).for_each(|number| write(&store, number));
    let expected = rows(&store);
    for file in ["database", "database.journal"] {
        std::fs::copy(folder.join("running").join(file), folder.join("killed").join(file)).unwrap();
    }
    store.close_blocking();
    let files =
        || ["database", "database.journal"].map(|file| std::fs::read(folder.join("killed").join(file)).unwrap());
    let before = files();
    let survey = Store::survey(options("killed"), &mut |_| ()).unwrap();
    assert!(survey.is_whole() && survey.waiting == Ok(4) && files() == before);
    let store = Store::open(options("killed")).unwrap();
    assert!(rows(&store) == expected);
    store.close_blocking();
    drop(store);
    assert_eq!(Store::survey(options("killed"), &mut |_| ()).unwrap().waiting, Ok(0));
    assert_eq!(files()[JOURNAL].len() as u64, journal::JOURNAL_BYTES);
    let _ = std::fs::remove_dir_all(&folder);
}
