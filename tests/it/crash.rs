//! Power cuts, full disks and wrong formats, on a card in memory that fails on demand.
//!
//! A scripted run writes a small room, one commit a step. Whatever happens to the card, what is found afterwards is the
//! database as it was after one of the steps, and after every step that was acknowledged.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use snug::base::Random;
use snug::store::schema::{META, OUTBOX, TABLES};
use snug::store::tables::room::current_state;
use snug::store::tables::room::event;
use snug::store::tables::room::event_row::{Flags, Id, Kind, Membership, Row};
use snug::store::tables::room::{self, state_tree, timeline};
use snug::store::{
    BodyNum, Disk, Error, EventNum, Get, Medium, RoomNum, Status, Store, StoreOptions, UserNum, Write, WriteError,
};

// ---- the card ----------------------------------------------------------------------------------------------------

const BLOCK: usize = 4096;
const ROOMY: usize = 1 << 20;
const RESERVE_BLOCKS: usize = 24;

/// A card in memory, with the database and its journal.
#[derive(Clone, Default)]
struct Card(Arc<Mutex<Cells>>);

#[derive(Default)]
struct Cells {
    files: [Content; 2],
    unsynced: Vec<(usize, Op)>,
    syncs: u64,
    /// The power goes at this sync, counted from 1, before it has done anything.
    cut_at: Option<u64>,
    is_off: bool,
    /// Blocks that were written to; a file takes no others, however long it is.
    blocks: BTreeSet<(usize, usize)>,
    /// Writes that need more blocks fail; the reserve takes some while it is there.
    blocks_max: usize,
    has_reserve: bool,
    /// What the file system says is free, whatever is true.
    free: u64,
}

#[derive(Default, Clone)]
struct Content {
    /// As programs see it.
    now: Vec<u8>,
    /// As it is without the writes since its last sync.
    synced: Vec<u8>,
}

/// What a card has: the database, and its journal, which is missing when it is empty.
type Image = [Vec<u8>; 2];
const DATABASE: usize = 0;
const JOURNAL: usize = 1;

enum Op {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Op {
    fn done(&self, to: &mut Vec<u8>, bytes_max: usize) {
        match self {
            Op::Length(length) => to.resize(*length, 0),
            Op::Write(at, data) => {
                let data = &data[..data.len().min(bytes_max)];
                to.resize(to.len().max(at + data.len()), 0);
                to[*at..][..data.len()].copy_from_slice(data);
            }
        }
    }
}

impl Card {
    fn roomy() -> Self {
        Self::of(Image::default())
    }

    fn of(image: Image) -> Self {
        let blocks = |file: usize| (0..image[file].len() / BLOCK).map(move |block| (file, block));
        let blocks = blocks(DATABASE).chain(blocks(JOURNAL)).collect();
        let files = image.map(|image| Content { now: image.clone(), synced: image });
        let cells = Cells { files, blocks, blocks_max: ROOMY, free: 1 << 30, ..Cells::default() };
        Card(Arc::new(Mutex::new(cells)))
    }

    fn cells(&self) -> MutexGuard<'_, Cells> {
        self.0.lock().unwrap()
    }

    /// What a process that is killed leaves.
    fn image(&self) -> Image {
        let cells = self.cells();
        [DATABASE, JOURNAL].map(|file| cells.files[file].now.clone())
    }

    /// What a power cut leaves: all that was synced, and of the rest each write or not, perhaps in part.
    fn left_by_cut(&self, random: &Random, arrived: Arrived) -> Image {
        let cells = self.cells();
        let mut image = [DATABASE, JOURNAL].map(|file| cells.files[file].synced.clone());
        for (file, op) in &cells.unsynced {
            let arrives = match arrived {
                Arrived::Nothing => false,
                Arrived::Some => random.below(2) == 0,
                Arrived::All => true,
            };
            if arrives {
                let torn = arrived == Arrived::Some && random.below(4) == 0;
                let half = if let Op::Write(_, data) = op { data.len() / 2 / 512 * 512 } else { 0 };
                op.done(&mut image[*file], if torn { half } else { usize::MAX });
            }
        }
        image
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Arrived {
    Nothing,
    Some,
    All,
}

impl Cells {
    fn check_power(&self) -> io::Result<()> {
        if self.is_off { Err(io::Error::other("no power")) } else { Ok(()) }
    }

    fn change(&mut self, file: usize, op: Op) -> io::Result<()> {
        self.check_power()?;
        if let Op::Write(at, data) = &op {
            let blocks = (at / BLOCK..(at + data.len()).div_ceil(BLOCK)).map(|block| (file, block));
            let missing = blocks.clone().filter(|block| !self.blocks.contains(block)).count();
            let reserve = if self.has_reserve { RESERVE_BLOCKS } else { 0 };
            if self.blocks.len() + missing + reserve > self.blocks_max {
                self.free = 0;
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.blocks.extend(blocks);
        }
        op.done(&mut self.files[file].now, usize::MAX);
        self.unsynced.push((file, op));
        Ok(())
    }

    fn sync(&mut self, file: usize) -> io::Result<()> {
        self.check_power()?;
        self.syncs += 1;
        if self.cut_at == Some(self.syncs) {
            self.is_off = true;
        }
        self.check_power()?;
        self.files[file].synced = self.files[file].now.clone();
        self.unsynced.retain(|(of, _)| *of != file);
        Ok(())
    }
}

/// One file of the card.
struct Slot(Card, usize);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Disk for Slot {
    fn len(&self) -> io::Result<u64> {
        let cells = self.0.cells();
        cells.check_power()?;
        Ok(cells.files[self.1].now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let cells = self.0.cells();
        cells.check_power()?;
        let content = cells.files[self.1].now.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(content.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.cells().change(self.1, Op::Length(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.cells().sync(self.1)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.cells().change(self.1, Op::Write(offset as usize, data.to_vec()))
    }
}

impl Medium for Card {
    fn open(&self) -> io::Result<Box<dyn Disk>> {
        self.cells().check_power()?;
        Ok(Box::new(Slot(self.clone(), DATABASE)))
    }

    fn open_journal(&self) -> io::Result<Option<Box<dyn Disk>>> {
        let cells = self.cells();
        cells.check_power()?;
        let is_there = !cells.files[JOURNAL].now.is_empty();
        Ok(is_there.then(|| Box::new(Slot(self.clone(), JOURNAL)) as Box<dyn Disk>))
    }

    fn make_journal(&self, bytes: u64) -> io::Result<Box<dyn Disk>> {
        let slot = Slot(self.clone(), JOURNAL);
        if slot.len()? != bytes {
            slot.set_len(0)?;
            (0..bytes).step_by(BLOCK).try_for_each(|at| slot.write(at, &[0; BLOCK]))?;
            slot.sync_data()?;
        }
        Ok(Box::new(slot))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.cells().free)
    }

    fn give_up_reserve(&self) {
        self.cells().has_reserve = false;
    }

    fn take_reserve(&self) -> io::Result<()> {
        let mut cells = self.cells();
        if !cells.has_reserve && cells.blocks.len() + RESERVE_BLOCKS > cells.blocks_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        cells.has_reserve = true;
        Ok(())
    }
}

// ---- the script --------------------------------------------------------------------------------------------------

const STEPS: u32 = 12;
const JOURNAL_BYTES: u64 = 8 * BLOCK as u64;

fn open(card: &Card) -> Result<Store, Error> {
    let mut options = StoreOptions::new("");
    options.random = Random::seeded(1);
    options.cache_bytes = 256 << 10;
    // A few steps fill it.
    options.journal_bytes = JOURNAL_BYTES;
    Store::open_on(Arc::new(card.clone()), options)
}

/// One step: an event with all that hangs on it, and a row of the step before taken away. Makes the same rows from the
/// same database every time.
fn step(store: &Store, step: u32) -> Result<(), WriteError<Error>> {
    match step {
        // A commit of its own, between those that go into the journal.
        7 => store.write_bulk_blocking(move |w| write_step(w, step)).map(drop),
        _ => store.write_blocking(move |w| write_step(w, step)).map(drop),
    }
}

fn write_step(w: &mut Write, step: u32) -> Result<(), Error> {
    let num = room::intern(w, "!a:example.org", "11")?;
    let key = state_tree::intern_key(w, "m.room.member", &format!("@u{}:example.org", step % 5))?;
    let at = w.next_position();
    let row = Row {
        room: num,
        body: BodyNum(0),
        id: Id::Named(format!("$event{step}")),
        kind: Kind::MEMBER,
        state_key: Some(key),
        sender: UserNum(step % 5 + 1),
        member: Some((Membership::Join, UserNum(step % 5 + 1))),
        flags: Flags::default(),
        depth: step.into(),
        origin_server_ts: 1_700_000_000_000,
        auth: (1..step.min(3)).map(EventNum).collect(),
        before: None,
        order: Some(at.0 as i64),
        redacted_by: None,
    };
    let canonical = format!(r#"{{"content":{{"membership":"join","text":"{}"}}}}"#, "x".repeat(step as usize * 900));
    let (event, _) = event::insert(w, row, canonical.as_bytes())?;
    let mut known = room::get_of(w, num)?;
    let root = state_tree::set(w, known.state, &[(key, Some(event))])?;
    timeline::put(w, num, at.0 as i64, event)?;
    timeline::put_state(w, num, at, root)?;
    current_state::set_state(w, num, Kind::MEMBER, key, Some(event))?;
    known.state = Some(root);
    known.extremities = vec![event];
    known.events += 1;
    room::put(w, num, &known)?;
    w.remove(&OUTBOX, &(step - 1).to_be_bytes())?;
    w.put(&OUTBOX, &step.to_be_bytes(), b"outgoing")
}

type Rows = Vec<(&'static str, Vec<u8>, Vec<u8>)>;

/// All rows of all tables, but for the journal's place.
fn content(store: &Store) -> Rows {
    let read = store.read().unwrap();
    let mut rows = Vec::new();
    for table in TABLES {
        let mut visit = |key: &[u8], value: &[u8]| {
            if key != b"journal" {
                rows.push((table.name, key.to_vec(), value.to_vec()));
            }
            Ok(ControlFlow::Continue(()))
        };
        read.prefix(table, b"", &mut visit).unwrap();
    }
    rows
}

/// The content after each step of a run in which nothing happens, the first before any, and how many syncs it took.
fn undisturbed() -> (Vec<Rows>, u64) {
    let card = Card::roomy();
    let store = open(&card).unwrap();
    let mut contents = vec![content(&store)];
    for at in 1..=STEPS {
        step(&store, at).unwrap();
        contents.push(content(&store));
    }
    let syncs = card.cells().syncs;
    store.close_blocking();
    (contents, syncs)
}

// ---- what happens to it ------------------------------------------------------------------------------------------

#[test]
fn a_power_cut_at_any_sync_leaves_a_whole_number_of_steps() {
    let (contents, syncs) = undisturbed();
    assert!(syncs > u64::from(STEPS), "every step is synced");
    for cut_at in 1..=syncs {
        for arrived in [Arrived::Nothing, Arrived::Some, Arrived::Some, Arrived::All] {
            let random = Random::seeded(cut_at);
            let card = Card::roomy();
            card.cells().cut_at = Some(cut_at);
            let mut done = 0;
            if let Ok(store) = open(&card) {
                done = (1..=STEPS).take_while(|at| step(&store, *at).is_ok()).count();
                assert_ne!(store.status(), Status::Working);
                store.close_blocking();
            }
            assert!(card.cells().is_off);
            let found = open(&Card::of(card.left_by_cut(&random, arrived)));
            let store = found.unwrap_or_else(|failed| panic!("cut at sync {cut_at}, {arrived:?}: {failed}"));
            let found = content(&store);
            let steps = contents.iter().position(|content| *content == found);
            let steps = steps.unwrap_or_else(|| panic!("cut at sync {cut_at}, {arrived:?}: half a step"));
            assert!(steps == done || steps == done + 1, "cut at sync {cut_at}: {done} steps done, {steps} found");
            // And it goes on from there as if nothing had happened.
            (steps as u32 + 1..=STEPS).for_each(|at| step(&store, at).unwrap());
            assert!(content(&store) == contents[STEPS as usize], "cut at sync {cut_at}");
            store.close_blocking();
        }
    }
}

/// A start that is cut short while it applies the journal, and the one after it too.
#[test]
fn a_power_cut_during_the_starts_after_a_power_cut_changes_nothing() {
    let (contents, syncs) = undisturbed();
    let mut cuts = 0;
    for cut_at in 1..=syncs {
        let random = Random::seeded(cut_at);
        let card = Card::roomy();
        card.cells().cut_at = Some(cut_at);
        let mut done = 0;
        if let Ok(store) = open(&card) {
            done = (1..=STEPS).take_while(|at| step(&store, *at).is_ok()).count();
            store.close_blocking();
        }
        let mut image = card.left_by_cut(&random, Arrived::Some);
        for cut_at in 1.. {
            let card = Card::of(image);
            card.cells().cut_at = Some(cut_at);
            if let Ok(store) = open(&card) {
                let found = content(&store);
                let steps = contents.iter().position(|content| *content == found).expect("whole steps");
                assert!(steps == done || steps == done + 1, "cut {cut_at} again: {done} steps done, {steps} found");
                store.close_blocking();
                break;
            }
            cuts += 1;
            image = card.left_by_cut(&random, Arrived::Some);
        }
    }
    assert!(cuts > 50, "{cuts} cuts are too few to mean anything");
}

/// The disk was filled by others while changes waited in the journal.
#[test]
fn a_start_on_a_full_disk_has_what_the_journal_has() {
    let (contents, _) = undisturbed();
    for (done, with_reserve) in (1..=STEPS as usize).flat_map(|done| [(done, false), (done, true)]) {
        let card = Card::roomy();
        let store = open(&card).unwrap();
        (1..=done as u32).for_each(|at| step(&store, at).unwrap());
        let killed = Card::of(card.image());
        {
            let mut cells = killed.cells();
            cells.has_reserve = with_reserve;
            cells.blocks_max = cells.blocks.len() + if with_reserve { RESERVE_BLOCKS } else { 0 };
        }
        let store = open(&killed).unwrap();
        assert!(content(&store) == contents[done], "after {done} steps");
        killed.cells().blocks_max = ROOMY;
        killed.cells().free = 1 << 30;
        (done as u32 + 1..=STEPS).for_each(|at| step(&store, at).unwrap());
        let again = open(&Card::of(killed.image())).unwrap();
        assert!(content(&again) == contents[STEPS as usize], "after {done} steps");
    }
}

#[test]
fn a_disk_that_fills_up_anywhere_keeps_whole_steps_and_recovers_without_a_restart() {
    let (contents, _) = undisturbed();
    let mut failures = 0;
    for (spare, with_reserve) in (0..40).flat_map(|spare| [(spare, false), (spare, true)]) {
        let card = Card::roomy();
        let store = open(&card).unwrap();
        let read_before = store.read().unwrap();
        let reserve = if with_reserve { RESERVE_BLOCKS } else { 0 };
        {
            let mut cells = card.cells();
            cells.has_reserve = with_reserve;
            cells.blocks_max = cells.blocks.len() + reserve + spare;
        }
        let done = (1..=STEPS).take_while(|at| step(&store, *at).is_ok()).count();
        if done < STEPS as usize {
            failures += 1;
            assert_eq!(step(&store, done as u32 + 1), Err(WriteError::Store(Error::Full)), "{spare} blocks spare");
            assert!(!card.cells().has_reserve);
            assert!(read_before.position().is_ok(), "reads of before go on");
        }
        let found = content(&store);
        let steps = contents.iter().position(|content| *content == found).expect("whole steps");
        assert!(steps == done || steps == done + 1, "{spare} blocks spare: {done} steps done, {steps} found");
        // Someone deletes their photos.
        card.cells().blocks_max = ROOMY;
        card.cells().free = 1 << 30;
        (steps as u32 + 1..=STEPS).for_each(|at| step(&store, at).unwrap());
        assert!(content(&store) == contents[STEPS as usize], "{spare} blocks spare");
        assert_eq!(store.status(), Status::Working);
        assert_eq!(store.reopened(), u64::from(done < STEPS as usize));
        store.close_blocking();
    }
    assert!(failures > 5, "{failures} failures is too few to mean anything");
}

#[test]
fn a_nearly_full_disk_refuses_new_work_and_lets_old_rows_go() {
    let card = Card::roomy();
    let store = open(&card).unwrap();
    step(&store, 1).unwrap();
    card.cells().free = 1 << 20;
    assert_eq!(step(&store, 2), Err(WriteError::Store(Error::Full)));
    assert_eq!(store.status(), Status::Full);
    assert!(store.read().unwrap().has(&OUTBOX, &1u32.to_be_bytes()).unwrap());
    store.write_freeing_blocking(|w| w.remove(&OUTBOX, &1u32.to_be_bytes())).unwrap();
    assert!(!store.read().unwrap().has(&OUTBOX, &1u32.to_be_bytes()).unwrap());
    card.cells().free = 1 << 30;
    step(&store, 2).unwrap();
    assert_eq!(store.status(), Status::Working);
    store.close_blocking();
}

#[test]
fn a_format_we_do_not_know_is_refused_and_left_as_it_is() {
    let card = Card::roomy();
    let store = open(&card).unwrap();
    step(&store, 1).unwrap();
    store.write_blocking(|w| w.put(&META, b"format", &7_777u32.to_be_bytes())).unwrap();
    store.close_blocking();
    drop(store);
    let image = card.image();
    match open(&Card::of(image)).map(drop) {
        Err(Error::Version { found: 7_777, known }) => assert!(known < 7_777),
        other => panic!("{other:?}"),
    }
    // No number at all is corruption, not a new database.
    let store = {
        let card = Card::roomy();
        let store = open(&card).unwrap();
        store.write_blocking(|w| w.put(&META, b"format", b"")).unwrap();
        store.close_blocking();
        let image = card.image();
        open(&Card::of(image))
    };
    assert!(matches!(store.map(drop), Err(Error::Corrupt { table: "meta", .. })));
}

/// Programs of format 2 read no journal, and would open the database without the changes in it.
#[test]
fn a_database_of_the_format_before_is_carried_over() {
    let card = Card::roomy();
    let store = open(&card).unwrap();
    step(&store, 1).unwrap();
    let before = content(&store);
    store.write_blocking(|w| w.put(&META, b"format", &2u32.to_be_bytes())).unwrap();
    store.close_blocking();
    let store = open(&card).unwrap();
    assert!(content(&store) == before, "the format is the present one again");
    step(&store, 2).unwrap();
    store.close_blocking();
}

#[test]
fn the_script_makes_what_it_says() {
    let (contents, _) = undisturbed();
    assert!(contents.windows(2).all(|pair| pair[0] != pair[1]));
    let card = Card::roomy();
    let store = open(&card).unwrap();
    (1..=STEPS).for_each(|at| step(&store, at).unwrap());
    let read = store.read().unwrap();
    let known = room::get_of(&read, RoomNum(1)).unwrap();
    let mut entries = Vec::new();
    assert!(state_tree::page(&read, known.state.unwrap(), None, 100, &mut entries).unwrap());
    assert_eq!((entries.len(), known.events), (5, u64::from(STEPS)));
}
