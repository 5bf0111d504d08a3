//! The events an interrupted join has stored already, recognised by their bytes.
//!
//! A resident server that is asked again sends much the same events in much the same order. The log has a print of
//! each: sixty-four bits under the database's key. A window moves along the log beside the stream, and an event found
//! in it is not read, hashed or looked up once more. An event not found there (another order, other bytes) goes the
//! usual way.
//!
//! A server that sends bytes with the print of a stored event can only claim that this event is in the state, which it
//! could do by sending the event.

use std::collections::{HashMap, VecDeque};
use std::hash::Hasher;
use std::ops::{ControlFlow, Range};
use std::sync::LazyLock;

use memchr::memmem::Finder;
use parking_lot::Mutex;
use siphasher::sip::SipHasher13;

use super::order::Node;
use crate::budget::{Account, Grant, Refused};
use crate::matrix::json;
use crate::store::tables::room::join::JoinNum;
use crate::store::tables::room::staged::{self, Entry, WIRE_LATE, WirePrint};
use crate::store::{self, Store};

/// Events of the window behind the last one found: the workers do not finish in the stream's order.
const BEHIND: u64 = 600;
/// Events of the window ahead of it.
const AHEAD: u64 = 1192;
const SIZE: usize = (BEHIND + AHEAD) as usize;
/// The window: a queue, and a table twice as large as needed, since a fuller one would grow as rows come and go.
pub const BYTES: u64 = (4096 * (size_of::<(WirePrint, Place)>() + 1) + 2048 * size_of::<WirePrint>()) as u64;

/// The print of an event but for its top-level `unsigned`, in which servers count the seconds since they had the event.
pub fn wire_print(key: &[u8; 16], raw: &[u8]) -> WirePrint {
    let mut hasher = SipHasher13::new_with_key(key);
    let (before, after) = match unsigned_of(raw) {
        Some(unsigned) => (&raw[..unsigned.start], &raw[unsigned.end..]),
        None => (raw, &raw[..0]),
    };
    hasher.write(before);
    hasher.write(after);
    hasher.write_usize(before.len());
    hasher.finish()
}

/// Where the value of the top-level `unsigned` is. Most servers write it last, and then nothing before it is looked at:
/// a member followed by the text's own closing brace belongs to the outermost object.
fn unsigned_of(raw: &[u8]) -> Option<Range<usize>> {
    const KEY: &[u8] = b"\"unsigned\":";
    static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(KEY));
    let at = FINDER.find(raw)?;
    let start = at + KEY.len();
    let end = start + json::read::skip_value(&raw[start..])?;
    if raw[..at].ends_with(b",") && &raw[end..] == b"}" {
        return Some(start..end);
    }
    json::read::compact_member(raw, "unsigned")
}

/// Shared by the workers.
pub struct StoredEvents(Option<Mutex<Window>>);

struct Window {
    store: Store,
    join: JoinNum,
    /// The log's next row to be read, and the end of the rows from earlier attempts.
    row: u32,
    rows: u32,
    /// The log's events in the window, in its order; the first has this number.
    first: u64,
    prints: VecDeque<WirePrint>,
    places: HashMap<WirePrint, Place>,
    _grant: Grant,
}

#[derive(Clone, Copy)]
struct Place {
    node: Node,
    /// The event's number in the log, as far as it fits: the window is shorter.
    number: u32,
}

impl StoredEvents {
    /// For a join that has stored nothing yet.
    pub fn nothing() -> StoredEvents {
        StoredEvents(None)
    }

    /// For a join whose log has `rows` rows.
    pub fn of(store: Store, join: JoinNum, rows: u32, memory: &Account) -> Result<StoredEvents, Refused> {
        let grant = memory.try_take(BYTES)?;
        let (prints, places) = (VecDeque::with_capacity(SIZE), HashMap::with_capacity(2 * SIZE));
        Ok(StoredEvents(Some(Mutex::new(Window {
            store,
            join,
            row: 0,
            rows,
            first: 0,
            prints,
            places,
            _grant: grant,
        }))))
    }

    /// The node of the event with this print, when it is in the window.
    pub fn find(&self, print: WirePrint) -> store::Result<Option<Node>> {
        let Some(window) = &self.0 else { return Ok(None) };
        let mut window = window.lock();
        if window.prints.is_empty() {
            window.move_to(0)?;
        }
        let Some(place) = window.places.get(&print).copied() else { return Ok(None) };
        let number = window.first + u64::from(place.number.wrapping_sub(window.first as u32));
        window.move_to(number)?;
        Ok(Some(place.node))
    }
}

impl Window {
    /// Brings the window to about this event of the log.
    fn move_to(&mut self, number: u64) -> store::Result<()> {
        let end = self.first + self.prints.len() as u64;
        if self.row == self.rows || end >= number + AHEAD / 2 {
            return Ok(());
        }
        while self.first + BEHIND < number {
            self.forget_first();
        }
        let read = self.store.read()?;
        let (join, from, rows) = (self.join, self.row, self.rows);
        staged::batches(&read, join, from, &mut |row, mut batch| {
            let is_far_enough = self.first + self.prints.len() as u64 >= number + AHEAD;
            if is_far_enough || row >= rows {
                return Ok(ControlFlow::Break(()));
            }
            while let Some(entry) = batch.next().map_err(|_| staged::corrupt(join, row))? {
                if let Entry::Event(event) = entry
                    && event.wire != WIRE_LATE
                {
                    self.learn(event.wire, event.node);
                }
            }
            self.row = row + 1;
            Ok(ControlFlow::Continue(()))
        })
    }

    fn learn(&mut self, print: WirePrint, node: Node) {
        if self.prints.len() == SIZE {
            self.forget_first();
        }
        let number = (self.first + self.prints.len() as u64) as u32;
        self.prints.push_back(print);
        self.places.insert(print, Place { node, number });
    }

    fn forget_first(&mut self) {
        let Some(print) = self.prints.pop_front() else { return };
        if self.places.get(&print).is_some_and(|place| place.number == self.first as u32) {
            self.places.remove(&print);
        }
        self.first += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::store::BodyNum;
    use crate::store::tables::room::event_row::{Id, Kind};
    use crate::store::tables::room::staged;
    use crate::store::tables::room::staged::{BatchWriter, Edges, Staged};

    const KEY: [u8; 16] = [3; 16];

    /// A log of so many events, whose prints are their numbers plus one million; two thousand of them came late.
    fn familiar(events: u32) -> StoredEvents {
        let mut log = BatchWriter::new(1);
        for node in 0..events {
            let event = Staged {
                node,
                id: Id::Hash([node as u8; 32]),
                wire: if (7000..9000).contains(&node) { WIRE_LATE } else { print(node) },
                in_state: true,
                needs_body: false,
                redacted: false,
                kind: Kind::NAME,
                sender: 1,
                member: None,
                state_key: None,
                depth: 1,
                origin_server_ts: 1,
                auth: Edges::default(),
            };
            log.event(&event, &[]);
        }
        let (store, join, rows) = (Store::in_memory(), JoinNum(5), log.rows());
        let write = move |w: &mut store::Write<'_>| {
            (0..).zip(log.finish(BodyNum(0))).try_for_each(|(number, row)| staged::put_batch(w, join, number, &row))
        };
        store.write_blocking(write).unwrap();
        let memory = Budget::for_tests().account("join");
        StoredEvents::of(store, join, rows, &memory).unwrap()
    }

    fn print(node: u32) -> WirePrint {
        u64::from(node) + 1_000_000
    }

    #[test]
    fn a_stream_in_about_the_log_s_order_is_recognised() {
        let familiar = familiar(10_000);
        for block in (0..10_000).step_by(100) {
            // Two workers: the second hundred may be looked at first.
            for node in (block..block + 100).rev() {
                let is_late = (7000..9000).contains(&node);
                assert_eq!(familiar.find(print(node)).unwrap(), (!is_late).then_some(node));
                assert_eq!(familiar.find(print(node) + 1_000_000).unwrap(), None);
            }
        }
        assert_eq!(familiar.find(print(9_999)).unwrap(), Some(9_999), "what comes twice");
    }

    #[test]
    fn what_is_missing_from_the_stream_does_not_stop_the_window() {
        let familiar = familiar(20_000);
        let mut found = 0;
        for node in (0..20_000).filter(|node| node % 1000 >= 500) {
            found += u32::from(familiar.find(print(node)).unwrap() == Some(node));
        }
        assert_eq!(found, 9_000, "all but those of the even half that came late");
    }

    #[test]
    fn a_stream_in_another_order_finds_little_and_does_no_harm() {
        let familiar = familiar(10_000);
        let mut found = 0;
        for node in (0..10_000).rev() {
            let Some(other) = familiar.find(print(node)).unwrap() else { continue };
            assert_eq!(other, node);
            found += 1;
        }
        assert!(found >= 500, "{found}");
        let window = familiar.0.unwrap().into_inner();
        assert!(window.prints.capacity() <= 2048 && window.places.capacity() <= 4096 / 8 * 7, "the window grew");
    }

    #[test]
    fn what_a_server_says_of_an_event_s_age_does_not_matter() {
        let wire = |raw: &str| wire_print(&KEY, raw.as_bytes());
        let print = wire(r#"{"type":"a","unsigned":{"age":1},"content":{"unsigned":1}}"#);
        assert_eq!(print, wire(r#"{"type":"a","unsigned":{"age":27,"x":["}"]},"content":{"unsigned":1}}"#));
        assert_ne!(print, wire(r#"{"type":"a","unsigned":{"age":1},"content":{"unsigned":2}}"#));
        assert_ne!(print, wire(r#"{"type":"b","unsigned":{"age":1},"content":{"unsigned":1}}"#));
        assert_ne!(wire(r#"{"a":1}"#), wire_print(&[4; 16], br#"{"a":1}"#));
        // Written last, as most do, and looked for in the wrong places.
        let print = wire(r#"{"content":{"unsigned":1},"unsigned":{"age":1}}"#);
        assert_eq!(print, wire(r#"{"content":{"unsigned":1},"unsigned":{"age":22}}"#));
        assert_ne!(print, wire(r#"{"content":{"unsigned":2},"unsigned":{"age":1}}"#));
        let print = wire(r#"{"a":{"b":1,"unsigned":1}}"#);
        assert_ne!(print, wire(r#"{"a":{"b":1,"unsigned":2}}"#));
        assert_ne!(wire(r#"{"a":1,"x\"unsigned":1}"#), wire(r#"{"a":1,"x\"unsigned":2}"#));
        // Where blanks stand between the tokens, everything counts.
        assert_ne!(wire(r#"{"unsigned": 1}"#), wire(r#"{"unsigned": 2}"#));
    }
}
