//! A card that loses data: damaged pages anywhere in the file, and unreadable pages. Nothing panics out of the store,
//! and operations that do not need the page go on.

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use crate::store::access::Get;
use crate::store::schema::{
    EVENT, EVENT_BODY, EVENT_ID, EVENT_ID_RECENT, MEMBER, ROOM_NUM, STATE_NODE, TABLES, TIMELINE, USER_ID,
};
use crate::store::tables::{room, user};
use crate::store::*;

const PAGE: usize = 4096;

/// A file in memory with some unreadable pages.
#[derive(Clone, Default)]
struct Card(Arc<Mutex<Cells>>);

#[derive(Debug, Default)]
struct Cells {
    bytes: Vec<u8>,
    gone: Vec<usize>,
}

impl Card {
    fn of(bytes: Vec<u8>) -> Card {
        Card(Arc::new(Mutex::new(Cells { bytes, gone: Vec::new() })))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }

    /// The pages that contain these bytes.
    fn pages_with(&self, needle: &[u8]) -> Vec<usize> {
        let bytes = self.bytes();
        let mut pages: Vec<_> = memchr::memmem::find_iter(&bytes, needle).map(|at| at / PAGE).collect();
        pages.dedup();
        pages
    }
}

impl Medium for Card {
    fn open(&self) -> io::Result<Box<dyn Disk>> {
        Ok(Box::new(Slot(self.0.clone())))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

#[derive(Debug)]
struct Slot(Arc<Mutex<Cells>>);

impl Disk for Slot {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let cells = self.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let range = from..from.saturating_add(out.len());
        if cells.gone.iter().any(|page| range.start < (page + 1) * PAGE && page * PAGE < range.end) {
            return Err(io::Error::other("input/output error"));
        }
        out.copy_from_slice(cells.bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

fn options() -> StoreOptions {
    let mut options = StoreOptions::new("");
    options.random = Random::seeded(1);
    options.cache_bytes = 256 << 10;
    options
}

fn open(card: &Card) -> Result<Store> {
    Store::open_on(Arc::new(card.clone()), options())
}

/// Rows of every shape, over a few hundred pages.
fn filled() -> Card {
    let card = Card::default();
    let store = open(&card).unwrap();
    for batch in 0..8u32 {
        store
            .write_bulk_blocking(move |w| -> Result<()> {
                for n in batch * 300..(batch + 1) * 300 {
                    let key = n.to_be_bytes();
                    w.put(&EVENT, &key, format!("event-row-{n:05}-{}", "e".repeat(60)).as_bytes())?;
                    w.put(&EVENT_BODY, &key, &vec![b'b'; 20 + (n as usize * 37) % 900])?;
                    w.put(&STATE_NODE, &key, format!("node-row-{n:05}").as_bytes())?;
                    w.put(&MEMBER, &[&1u32.to_be_bytes()[..], &[1], &key].concat(), &key)?;
                    w.put(&USER_ID, &key, format!("@user{n}:example.org").as_bytes())?;
                }
                Ok(())
            })
            .unwrap();
    }
    store.close_blocking();
    card
}

/// Reads every row of every table, as far as possible; answers the failures.
fn read_all(store: &Store) -> Vec<Error> {
    let read = match store.read() {
        Ok(read) => read,
        Err(failed) => return vec![failed],
    };
    let mut failures = Vec::new();
    for table in TABLES {
        for rev in [false, true] {
            let walked = read.range(table, &[], None, rev, &mut |key, value| {
                std::hint::black_box((key.to_vec(), value.to_vec()));
                Ok(ControlFlow::Continue(()))
            });
            failures.extend(walked.err());
        }
    }
    for n in (0..2400u32).step_by(29) {
        for table in [&EVENT, &EVENT_BODY, &STATE_NODE, &USER_ID] {
            failures.extend(read.get(table, &n.to_be_bytes()).err());
        }
    }
    failures
}

/// Jobs of all kinds over all the file.
fn write_all(store: &Store, random: &Random) {
    for _ in 0..12 {
        let (first, step) = (random.below(2400) as u32, 1 + random.below(50) as u32);
        let op = random.below(4);
        let _ = store.write_blocking(move |w| -> Result<()> {
            w.next_position();
            for n in (0..20).map(|n| first + n * step) {
                match op {
                    0 => w.put(&STATE_NODE, &n.to_be_bytes(), &[7; 300])?,
                    1 => drop(w.remove(&EVENT_BODY, &n.to_be_bytes())?),
                    2 => w.put(&MEMBER, &[&2u32.to_be_bytes()[..], &[1], &n.to_be_bytes()].concat(), &[0; 4])?,
                    _ => {
                        let rows: Vec<_> = (0..30u32).map(|m| ((n * 1000 + m).to_be_bytes(), [3; 50])).collect();
                        w.put_sorted(&EVENT, &rows)?;
                    }
                }
            }
            Ok(())
        });
    }
}

fn damage(bytes: &mut Vec<u8>, random: &Random) -> String {
    let pages = (bytes.len() / PAGE) as u64;
    // The first pages are the header and its neighbours.
    let page = if random.below(8) == 0 { random.below(4) } else { random.below(pages) } as usize;
    let at = page * PAGE;
    let kind = random.below(7);
    match kind {
        0 => bytes[at..at + PAGE].fill(0),
        1 => bytes[at..at + PAGE].fill(0xff),
        2 => bytes[at + random.below(PAGE as u64) as usize] ^= 1 << random.below(8),
        3 => bytes[at + PAGE / 2..at + PAGE].fill(0),
        4 => {
            let other = random.below(pages) as usize * PAGE;
            bytes.copy_within(other..other + PAGE, at);
        }
        5 => bytes[at..at + 8].copy_from_slice(&random.u64().to_be_bytes()),
        _ => bytes.truncate(at + random.below(PAGE as u64) as usize),
    }
    format!("page {page}, kind {kind}")
}

/// Four of eight damaged files made the server refuse to start with a panic's message; with three it started and died
/// at the first sync.
#[test]
fn no_damage_panics_out_of_the_store() {
    let whole = filled().bytes();
    let random = Random::seeded(2024);
    let (mut unopened, mut failing, mut fine) = (0, 0, 0);
    for round in 0..250 {
        let mut bytes = whole.clone();
        let mut what = vec![damage(&mut bytes, &random)];
        if round % 3 == 0 && bytes.len() > PAGE * 4 {
            what.push(damage(&mut bytes, &random));
        }
        let card = Card::of(bytes.clone());
        match open(&card) {
            Err(failed) => {
                let said = failed.to_string();
                assert!(!said.is_empty() && !said.contains("thread"), "{what:?}: {said}");
                unopened += 1;
            }
            Ok(store) => {
                let failures = read_all(&store);
                write_all(&store, &random);
                read_all(&store);
                store.close_blocking();
                drop(store);
                let _ = open(&card).map(|store| store.close_blocking());
                if failures.is_empty() { fine += 1 } else { failing += 1 }
            }
        }
        if let Ok(survey) = Store::survey_on(Arc::new(Card::of(bytes)), options(), &mut |_| ()) {
            std::hint::black_box(survey.is_whole());
        }
    }
    // The damage was in pages that are used.
    assert!(unopened > 5 && failing > 20 && fine > 20, "{unopened} {failing} {fine}");
}

/// One damaged page affects only the operations that need it.
#[test]
fn a_damaged_page_fails_what_needs_it_and_the_rest_goes_on() {
    for is_gone in [false, true] {
        let card = filled();
        let pages = card.pages_with(b"event-row-01203-");
        assert!(!pages.is_empty());
        for &page in &pages {
            match is_gone {
                true => card.0.lock().unwrap().gone.push(page),
                false => card.0.lock().unwrap().bytes[page * PAGE..(page + 1) * PAGE].fill(0),
            }
        }
        let store = open(&card).unwrap();
        for _ in 0..3 {
            let read = store.read().unwrap();
            let failed = read.get(&EVENT, &1203u32.to_be_bytes()).unwrap_err();
            let Error::Damaged(said) = &failed else { panic!("{failed:?}") };
            assert!(said.contains("table event") && !failed.is_passing(), "{said}");
            assert!(read.get(&EVENT, &3u32.to_be_bytes()).unwrap().unwrap().starts_with(b"event-row-00003"));
            assert!(read.get(&EVENT, &2303u32.to_be_bytes()).unwrap().unwrap().starts_with(b"event-row-02303"));
            let mut nodes = 0;
            let count = &mut |_: &[u8], _: &[u8]| {
                nodes += 1;
                Ok(ControlFlow::Continue(()))
            };
            read.range(&STATE_NODE, &[], None, false, count).unwrap();
            assert_eq!(nodes, 2400);
        }
        // A job that reads the page fails alone, whatever it wrote before.
        let done = super::together(
            &store,
            vec![
                Box::new(|w| w.put(&STATE_NODE, b"a", b"").map(|()| 1)),
                Box::new(|w| {
                    w.put(&STATE_NODE, b"b", b"")?;
                    w.get(&EVENT, &1203u32.to_be_bytes()).map(|_| 2)
                }),
                Box::new(|w| w.put(&STATE_NODE, b"c", b"").map(|()| 3)),
            ],
        );
        assert!(done[0].is_ok() && done[2].is_ok() && matches!(done[1], Err(WriteError::Job(Error::Damaged(_)))));
        let read = store.read().unwrap();
        assert_eq!(["a", "b", "c"].map(|key| read.has(&STATE_NODE, key.as_bytes()).unwrap()), [true, false, true]);
        assert_eq!(store.reopened(), 0);
        drop(read);
        // A job that changes the page breaks its transaction; the next job succeeds.
        let change = store.write_blocking(|w| w.put(&EVENT, &1203u32.to_be_bytes(), b"new"));
        assert!(matches!(&change, Err(WriteError::Job(Error::Damaged(_) | Error::Io(_)))), "{change:?}");
        store.write_blocking(|w| w.put(&EVENT, &3u32.to_be_bytes(), b"new")).unwrap();
        assert_eq!(store.status(), Status::Working);
    }
}

/// An event whose place had nothing to do with the damage was refused, since it took other events' ids over to a damaged page.
#[test]
fn a_damaged_page_of_ids_refuses_no_event_of_another_place() {
    for is_gone in [false, true] {
        let card = Card::default();
        let store = open(&card).unwrap();
        let id = |n: u32| format!("$event{n}");
        let job = |from: u32, to: u32| {
            move |w: &mut Write<'_>| (from..to).try_for_each(|n| room::event::put_id(w, &id(n), EventNum(n)))
        };
        const FULL: u32 = 24_000;
        for from in (1..FULL).step_by(1_000) {
            store.write_bulk_blocking(job(from, from + 1_000)).unwrap();
        }
        let key = |store: &Store, n: u32| {
            let hash = store.read().unwrap().hash128(&[id(n).as_bytes()]);
            [&hash[..6], &n.to_be_bytes()].concat()
        };
        let is_over = |store: &Store, n: u32| store.read().unwrap().has(&EVENT_ID, &key(store, n)).unwrap();
        let lost = (1..FULL).find(|n| is_over(&store, *n)).unwrap();
        let lost = key(&store, lost);
        store.close_blocking();
        drop(store);
        for page in card.pages_with(&lost) {
            match is_gone {
                true => card.0.lock().unwrap().gone.push(page),
                false => card.0.lock().unwrap().bytes[page * PAGE..(page + 1) * PAGE].fill(0),
            }
        }
        let store = open(&card).unwrap();
        // New events whose ids are nearly those of the page.
        let near = (2 * FULL..).filter(|n| key(&store, *n)[0] == lost[0]).take(100);
        for n in near {
            store.write_blocking(job(n, n + 1)).unwrap();
            assert!(store.read().unwrap().has(&EVENT_ID_RECENT, &key(&store, n)).unwrap());
        }
        assert!(store.read().unwrap().has(&EVENT_ID, &lost).is_err(), "it is damaged");
        assert_eq!((store.status(), store.reopened()), (Status::Working, 0));
    }
}

#[test]
fn a_survey_tells_what_is_lost_and_reads_all_around_it() {
    let card = filled();
    let store = open(&card).unwrap();
    store
        .write_blocking(|w| -> Result<()> {
            for id in ["!one:example.org", "!two:example.org"] {
                let num = room::intern(w, id, "10")?;
                let event = if num.0 == 1 { 1200u32 } else { 3 };
                w.put(&TIMELINE, &[&num.to_key()[..], &event.to_be_bytes()].concat(), &event.to_be_bytes())?;
            }
            user::intern(w, "@alice:example.org").map(|_| ())
        })
        .unwrap();
    store.close_blocking();
    drop(store);
    let whole = Store::survey_on(Arc::new(Card::of(card.bytes())), options(), &mut |_| ()).unwrap();
    assert!(whole.is_whole());
    for needle in [&b"event-row-01203-"[..], b"node-row-00000"] {
        for page in card.pages_with(needle) {
            card.0.lock().unwrap().bytes[page * PAGE..(page + 1) * PAGE].fill(0);
        }
    }
    let before = card.bytes();
    let mut said = 0;
    let survey = Store::survey_on(Arc::new(Card::of(before)), options(), &mut |_| said += 1).unwrap();
    assert!(survey.sums.is_err() && said == TABLES.len());
    let of = |table: &Table| survey.tables.iter().find(|found| found.table.name == table.name).unwrap();
    for (table, lost) in [(&EVENT, 1203u32), (&STATE_NODE, 0)] {
        let found = of(table);
        assert!((1..200).contains(&(2400 - found.rows)), "{} of {}", found.rows, table.name);
        assert_eq!((found.told, found.gaps.len()), (Some(2400), 1));
        // Only the page: the rows between its two neighbours.
        let number = |key: &Option<Vec<u8>>| u32::from_be_bytes(key.clone().unwrap()[..].try_into().unwrap());
        let after = found.gaps[0].after.as_ref().map_or(0, |_| number(&found.gaps[0].after) + 1);
        let before = number(&found.gaps[0].before);
        assert!((after..before).contains(&lost));
        assert_eq!(u64::from(before - after), 2400 - found.rows);
    }
    assert_eq!(of(&EVENT).concerned.iter().collect::<Vec<_>>(), ["!one:example.org"]);
    assert!(of(&ROOM_NUM).is_whole() && of(&MEMBER).is_whole() && of(&USER_ID).is_whole());
}
