//! Where the bytes go that a message costs the card, by table: `cargo bench --bench writes -- [--events N] [--cache KIB]`.
//!
//! Messages of two people in twenty rooms, written by the store's own verbs as `room/append` does it, one commit each, with
//! 10,000, 50,000 and N messages (200,000) behind them. The card is in memory and notes what redb writes: each page is
//! looked up by its first row, so what is printed are pages really written, before a checkpoint and with it, and not
//! what the rows say. The bytes are the same in a build that is not optimised.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use snug::store::schema::{TABLES, UNREAD};
use snug::store::tables::room::event;
use snug::store::tables::room::event_row::{Flags, Id, Kind, Row};
use snug::store::tables::room::{self, timeline, txn};
use snug::store::{BodyNum, Disk, Get, Key, Medium, MemoryMedium, RoomNum, Store, StoreOptions, Table, UserNum, Write};

const ROOMS: u32 = 20;
/// Messages that are measured behind the others: some ten checkpoints.
const MEASURED: u32 = 5_000;
/// Messages between two looks at what was written.
const BETWEEN_LOOKS: u32 = 250;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if !words.iter().any(|word| word == "--bench") {
        return;
    }
    let number = |name: &str, or: u32| {
        let at = words.iter().position(|word| word == name);
        at.and_then(|at| words.get(at + 1)).and_then(|word| word.parse().ok()).unwrap_or(or)
    };
    let card = Card { inner: MemoryMedium::default(), log: Arc::default() };
    let log = card.log.clone();
    let mut options = StoreOptions::new("");
    // As the smallest board has it.
    options.cache_bytes = (number("--cache", 2304) as usize) << 10;
    let store = Store::open_on(Arc::new(card), options).expect("memory does not fail");
    write(&store, |w| (0..ROOMS).try_for_each(|n| room::intern(w, &format!("!room{n}:example.org"), "11").map(drop)));
    let mut sent = 0;
    let mut last = 0;
    for behind in [10_000, 50_000, number("--events", 200_000)] {
        if behind <= last {
            continue;
        }
        last = behind;
        while sent + MEASURED < behind {
            sent += 1;
            say(&store, sent);
            if sent % BETWEEN_LOOKS == 0 {
                log.lock().pages.clear();
            }
        }
        *log.lock() = Log::default();
        let mut found = BTreeMap::<&'static str, u64>::new();
        for _ in 0..MEASURED {
            sent += 1;
            say(&store, sent);
            if sent % BETWEEN_LOOKS == 0 {
                look(&store, &log, &mut found);
            }
        }
        look(&store, &log, &mut found);
        let journal = log.lock().journal;
        found.insert("(journal)", journal);
        let each = |bytes: u64| bytes as f64 / f64::from(MEASURED);
        println!("-- {behind} messages: {:.0} bytes for each, of them", each(found.values().sum()));
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        found.iter().for_each(|(name, bytes)| println!("   {name:16} {:7.0}", each(*bytes)));
    }
    store.close_blocking();
}

fn write(store: &Store, job: impl FnOnce(&mut Write<'_>) -> snug::store::Result<()> + Send + 'static) {
    store.write_blocking(job).expect("the write succeeds");
}

/// The rows of one message.
fn say(store: &Store, number: u32) {
    let mut random = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let hash: [u8; 32] = std::array::from_fn(|_| next() as u8);
    let signature: String = (0..86).map(|_| char::from(b'a' + (next() % 26) as u8)).collect();
    let room = RoomNum(1 + number.wrapping_mul(number) % ROOMS);
    let json = format!(
        r#"{{"auth_events":[],"content":{{"body":"what people say to one another here {:x}","msgtype":"m.text"}},"depth":{number},"hashes":{{"sha256":"{:x}"}},"origin_server_ts":{},"prev_events":["${:x}"],"room_id":"!room{}:example.org","sender":"@anna:example.org","signatures":{{"example.org":{{"ed25519:1":"{signature}"}}}},"type":"m.room.message"}}"#,
        next(),
        next(),
        1_700_000_000_000 + u64::from(number) * 1000,
        next(),
        room.0 - 1,
    );
    let row = Row {
        room,
        body: BodyNum(0),
        id: Id::Hash(hash),
        kind: Kind::of("m.room.message"),
        state_key: None,
        sender: UserNum(1),
        member: None,
        flags: Flags::default(),
        depth: number.into(),
        origin_server_ts: 1_700_000_000_000 + u64::from(number) * 1000,
        auth: Vec::new(),
        before: None,
        order: Some(i64::from(number)),
        redacted_by: None,
    };
    let named = txn::Txn {
        user: UserNum(1 + number % 2),
        room,
        device: "ABCDEFGHIJ".to_owned(),
        id: format!("m{}.{number}", 1_700_000_000_000 + u64::from(number) * 1000),
        what: "m.room.message".to_owned(),
    };
    write(store, move |w| {
        let now_ms = row.origin_server_ts;
        assert!(txn::get(w, &named, now_ms)?.is_none());
        let position = w.next_position();
        let (num, _) = event::insert(w, row, json.as_bytes())?;
        timeline::put(w, room, position.0 as i64, num)?;
        let mut of = room::get_of(w, room)?;
        (of.extremities, of.events, of.latest) = (vec![num], of.events + 1, position);
        room::put(w, room, &of)?;
        txn::put(w, &named, num, now_ms)?;
        for user in 0..2u32 {
            w.put(&UNREAD, &Key::new().u32(user).u32(room.0), &[7; 80])?;
        }
        Ok(())
    });
}

/// Tells the pages that were written since the last look by table.
fn look(store: &Store, log: &Mutex<Log>, found: &mut BTreeMap<&'static str, u64>) {
    let pages = std::mem::take(&mut log.lock().pages);
    let read = store.read().expect("a snapshot");
    for page in pages {
        *found.entry(table_of(&read, &page)).or_default() += page.len() as u64;
    }
}

/// The table whose row is the first of a page; rows that changed since are found by their key.
fn table_of(read: &impl Get, page: &[u8]) -> &'static str {
    match page.first() {
        Some(1) => {}
        Some(2) => return "(branches)",
        _ => return "(redb)",
    }
    let mut with_key = None;
    for table in TABLES.iter().copied() {
        let Some((key, value)) = first_row(table, page) else { continue };
        match read.get(table, key) {
            Ok(Some(there)) if there == value => return table.name,
            Ok(Some(_)) => with_key = Some(table.name),
            _ => {}
        }
    }
    // What holds such a row no longer, and redb's own tables.
    with_key.unwrap_or("(redb, or gone)")
}

/// The first row of a leaf of redb's, if it is of this table.
fn first_row<'p>(table: &Table, page: &'p [u8]) -> Option<(&'p [u8], &'p [u8])> {
    let rows = usize::from(u16::from_le_bytes([page[2], page[3]]));
    let (key_bytes, value_bytes) = table.lengths();
    let ends = [key_bytes, value_bytes].iter().filter(|length| length.is_none()).count();
    let keys = 4 + 4 * rows * ends;
    let end = |at: usize| Some(u32::from_le_bytes(*page.get(at..)?.first_chunk()?) as usize);
    let key_end = key_bytes.map_or_else(|| end(4), |length| Some(keys + length))?;
    let all_keys_end =
        key_bytes.map_or_else(|| end(4 + 4 * (rows.checked_sub(1)?)), |length| Some(keys + rows * length))?;
    let value_end = match value_bytes {
        Some(length) => all_keys_end + length,
        None => end(4 + if key_bytes.is_none() { 4 * rows } else { 0 })?,
    };
    Some((page.get(keys..key_end)?, page.get(all_keys_end..value_end)?))
}

#[derive(Default)]
struct Log {
    pages: Vec<Vec<u8>>,
    journal: u64,
}

/// A card in memory that notes what is written.
struct Card {
    inner: MemoryMedium,
    log: Arc<Mutex<Log>>,
}

impl Medium for Card {
    fn open(&self) -> io::Result<Box<dyn Disk>> {
        Ok(Box::new(Noting { inner: self.inner.open()?, log: self.log.clone(), is_journal: false }))
    }

    fn open_journal(&self) -> io::Result<Option<Box<dyn Disk>>> {
        self.inner.open_journal()
    }

    fn make_journal(&self, bytes: u64) -> io::Result<Box<dyn Disk>> {
        Ok(Box::new(Noting { inner: self.inner.make_journal(bytes)?, log: self.log.clone(), is_journal: true }))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.inner.free_bytes()
    }
}

struct Noting {
    inner: Box<dyn Disk>,
    log: Arc<Mutex<Log>>,
    is_journal: bool,
}

impl std::fmt::Debug for Noting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Noting")
    }
}

impl Disk for Noting {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut log = self.log.lock();
        match self.is_journal {
            true => log.journal += data.len() as u64,
            false => log.pages.push(data.to_vec()),
        }
        drop(log);
        self.inner.write(offset, data)
    }
}
