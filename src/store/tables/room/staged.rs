//! Rooms on their way in: one journal row for each join, and the checked events so far, batch by batch.
//!
//! One commit of a join stores a number of bodies under consecutive arrival numbers, and beside them batches: rows here
//! with the events' ids, their auth edges and the columns that the rules need. The rows of a join, read in order, are
//! its log: they rebuild everything the join had in memory, so a restart verifies nothing twice. Only the join reads
//! these rows; a cancelled join's rows name everything it ever wrote.

use std::ops::ControlFlow;

use super::event_row::{Id, Kind, Membership};
use super::join::{JoinNum, Journal};
use crate::store::row_encoding::{Unpack, put_bytes, put_u64};
use crate::store::schema::STAGED;
use crate::store::{BodyNum, Error, EventNum, Get, Result, RoomNum, Write};

/// Stores a batch's row. The caller keeps `Journal::batches` in step in the same write.
pub fn put_batch(w: &mut Write<'_>, join: JoinNum, batch: u32, row: &[u8]) -> Result<()> {
    w.put(&STAGED, &join.batch_key(batch), row)
}

pub fn remove_batch(w: &mut Write<'_>, join: JoinNum, batch: u32) -> Result<()> {
    w.remove(&STAGED, &join.batch_key(batch)).map(drop)
}

/// Visits a join's batches in order, from batch `from` on.
pub fn batches(
    get: &impl Get,
    join: JoinNum,
    from: u32,
    visit: &mut dyn FnMut(u32, Batch<'_>) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let end = ((u64::from(join.0) + 1) << 32).to_be_bytes();
    get.range(&STAGED, &join.batch_key(from), Some(&end), false, &mut |key, value| {
        let corrupt = || Error::corrupt(&STAGED, key);
        let number = key.get(4..).and_then(|key| key.try_into().ok()).map(u32::from_be_bytes).ok_or_else(corrupt)?;
        visit(number, Batch::open(value).ok_or_else(corrupt)?)
    })
}

/// An error for a log that is wrong.
pub fn corrupt(join: JoinNum, batch: u32) -> Error {
    Error::corrupt(&STAGED, &join.batch_key(batch))
}

// ------------------------------------------------------------------------------------------------ one batch's row

/// Sixty-four bits of the database's keyed hash of a user id: the identity of a user within a join, before users have
/// numbers.
pub type UserPrint = u64;

/// Sixty-four keyed bits of an event's wire form.
pub type WirePrint = u64;
/// For an event that waited for its key: it stands later in the log than in the stream, and a comparison of the two
/// skips it.
pub const WIRE_LATE: WirePrint = 0;

/// An event as the log keeps it. Its body's number is the batch's first plus its index among the batch's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged<'a> {
    pub node: u32,
    pub id: Id,
    pub wire: WirePrint,
    /// It stands in the room's state before our join, according to this attempt's body.
    pub in_state: bool,
    /// The rules cannot be decided on these columns alone: a restricted join, a third-party invite.
    pub needs_body: bool,
    /// Its content did not match its hash, so its redacted form was stored.
    pub redacted: bool,
    pub kind: Kind,
    pub sender: UserPrint,
    pub member: Option<(Membership, UserPrint)>,
    /// Type and state key of state events that are not memberships.
    pub state_key: Option<(&'a str, &'a str)>,
    pub depth: u64,
    pub origin_server_ts: u64,
    /// Nodes of the auth events, in the event's order.
    pub auth: Edges<'a>,
}

/// A list of nodes, still packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edges<'a> {
    count: u8,
    packed: &'a [u8],
}

impl Edges<'_> {
    pub fn len(&self) -> usize {
        self.count.into()
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Empties `out` and fills it with the nodes.
    pub fn read(&self, out: &mut Vec<u32>) {
        out.clear();
        let mut unpack = Unpack::new(self.packed);
        out.extend((0..self.count).map_while(|_| unpack.u32()));
    }
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// The next node (they are numbered as they come) stands for this event id.
    Node(Id),
    /// A user id that this join may not have written before.
    User(&'a str),
    Event(Staged<'a>),
    /// The node is in the state, according to this attempt's body; its event was stored before.
    InState(u32),
    /// The node's event has been in the database since before this join.
    Known {
        node: u32,
        num: EventNum,
    },
}

const NODE_HASH: u8 = 1;
const NODE_HASH_STANDARD: u8 = 2;
const NODE_NAMED: u8 = 3;
const USER: u8 = 4;
const IN_STATE: u8 = 5;
const KNOWN: u8 = 6;
/// Entries of events have this bit; the bits below say which fields are present.
const EVENT: u8 = 0x80;
const EVENT_IN_STATE: u8 = 1;
const EVENT_NEEDS_BODY: u8 = 2;
const EVENT_REDACTED: u8 = 4;
const EVENT_MEMBER: u8 = 8;
const EVENT_OF_OTHER: u8 = 16;
const EVENT_STATE_KEY: u8 = 32;
/// Its id was given a node in an earlier batch, or is not the last one of this batch: the id is written again.
const EVENT_OWN_ID: u8 = 64;

/// Packs batches, one row after the other.
pub struct BatchWriter {
    attempt: u32,
    /// Finished rows, each with its number of events.
    rows: Vec<(Vec<u8>, u32)>,
    rows_bytes: usize,
    row: Vec<u8>,
    events: u32,
    last_id: Option<Id>,
}

/// A row as long as this takes no more entries, so that it lies in one page of the database. Larger pages come in powers
/// of two and push many small ones out of its cache.
const ROW_BYTES: usize = 3_500;

/// First body and attempt: in front of the entries, of fixed size so that they can be set last.
const HEAD_BYTES: usize = 8;

impl BatchWriter {
    pub fn new(attempt: u32) -> BatchWriter {
        BatchWriter { attempt, rows: Vec::new(), rows_bytes: 0, row: head(attempt), events: 0, last_id: None }
    }

    /// Bytes of all rows.
    pub fn len(&self) -> usize {
        self.rows_bytes + self.row.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.row.len() == HEAD_BYTES
    }

    /// Rows that [`BatchWriter::finish`] will make.
    pub fn rows(&self) -> u32 {
        self.rows.len() as u32 + u32::from(self.row.len() > HEAD_BYTES)
    }

    pub fn node(&mut self, id: &Id) {
        put_id(self.row(), id);
        self.last_id = Some(id.clone());
    }

    pub fn user(&mut self, user_id: &str) {
        let row = self.row();
        row.push(USER);
        put_bytes(row, user_id.as_bytes());
    }

    pub fn in_state(&mut self, node: u32) {
        let row = self.row();
        row.push(IN_STATE);
        put_u64(row, node.into());
    }

    pub fn known(&mut self, node: u32, num: EventNum) {
        let row = self.row();
        row.push(KNOWN);
        put_u64(row, node.into());
        put_u64(row, num.0.into());
    }

    /// The row in which the next entry goes.
    fn row(&mut self) -> &mut Vec<u8> {
        if self.row.len() >= ROW_BYTES {
            self.end_row();
        }
        &mut self.row
    }

    fn end_row(&mut self) {
        let row = std::mem::replace(&mut self.row, head(self.attempt));
        self.rows_bytes += row.len();
        self.rows.push((row, std::mem::take(&mut self.events)));
        self.last_id = None;
    }

    /// Appends an event; `event.auth` is ignored in favour of `auth` (at most 255, far above the format check's limit).
    pub fn event(&mut self, event: &Staged<'_>, auth: &[u32]) {
        let other = event.member.filter(|(_, target)| *target != event.sender);
        self.row();
        let mut first = EVENT;
        for (bit, set) in [
            (EVENT_IN_STATE, event.in_state),
            (EVENT_NEEDS_BODY, event.needs_body),
            (EVENT_REDACTED, event.redacted),
            (EVENT_MEMBER, event.member.is_some()),
            (EVENT_OF_OTHER, other.is_some()),
            (EVENT_STATE_KEY, event.state_key.is_some()),
            (EVENT_OWN_ID, self.last_id.as_ref() != Some(&event.id)),
        ] {
            first |= if set { bit } else { 0 };
        }
        let row = &mut self.row;
        row.push(first);
        if first & EVENT_OWN_ID != 0 {
            put_id(row, &event.id);
        }
        put_u64(row, event.node.into());
        row.extend_from_slice(&event.wire.to_be_bytes());
        row.push(event.kind.0);
        row.extend_from_slice(&event.sender.to_be_bytes());
        if let Some((membership, _)) = event.member {
            row.push(membership as u8);
        }
        if let Some((_, target)) = other {
            row.extend_from_slice(&target.to_be_bytes());
        }
        if let Some((kind, key)) = event.state_key {
            put_bytes(row, kind.as_bytes());
            put_bytes(row, key.as_bytes());
        }
        put_u64(row, event.depth);
        put_u64(row, event.origin_server_ts);
        row.push(auth.len().min(255) as u8);
        for node in &auth[..auth.len().min(255)] {
            put_u64(row, (*node).into());
        }
        self.events += 1;
    }

    /// The rows, once the first body's number is known.
    pub fn finish(mut self, first_body: BodyNum) -> impl Iterator<Item = Vec<u8>> {
        if self.row.len() > HEAD_BYTES {
            self.end_row();
        }
        let mut body = first_body.0;
        self.rows.into_iter().map(move |(mut row, events)| {
            row[..4].copy_from_slice(&body.to_be_bytes());
            body += events;
            row
        })
    }
}

fn head(attempt: u32) -> Vec<u8> {
    let mut row = Vec::with_capacity(ROW_BYTES + 256);
    row.extend_from_slice(&[0; 4]);
    row.extend_from_slice(&attempt.to_be_bytes());
    row
}

fn put_id(row: &mut Vec<u8>, id: &Id) {
    match id {
        Id::Hash(hash) => {
            row.push(NODE_HASH);
            row.extend_from_slice(hash);
        }
        Id::HashStandard(hash) => {
            row.push(NODE_HASH_STANDARD);
            row.extend_from_slice(hash);
        }
        Id::Named(name) => {
            row.push(NODE_NAMED);
            put_bytes(row, name.as_bytes());
        }
    }
}

fn read_id(tag: u8, rest: &mut Unpack<'_>) -> Option<Id> {
    Some(match tag {
        NODE_HASH => Id::Hash(rest.array()?),
        NODE_HASH_STANDARD => Id::HashStandard(rest.array()?),
        NODE_NAMED => Id::Named(rest.text()?.to_owned()),
        _ => return None,
    })
}

/// A batch's row, opened.
pub struct Batch<'a> {
    pub first_body: BodyNum,
    pub attempt: u32,
    rest: Unpack<'a>,
    last_id: Option<Id>,
}

impl<'a> Batch<'a> {
    fn open(row: &'a [u8]) -> Option<Batch<'a>> {
        let mut rest = Unpack::new(row);
        let first_body = BodyNum(u32::from_be_bytes(rest.array()?));
        let attempt = u32::from_be_bytes(rest.array()?);
        Some(Batch { first_body, attempt, rest, last_id: None })
    }

    /// The next entry; `Err` when the row does not unpack.
    pub fn next(&mut self) -> std::result::Result<Option<Entry<'a>>, Damaged> {
        if self.rest.is_empty() { Ok(None) } else { self.entry().map(Some).ok_or(Damaged) }
    }

    fn entry(&mut self) -> Option<Entry<'a>> {
        let rest = &mut self.rest;
        Some(match rest.u8()? {
            tag @ (NODE_HASH | NODE_HASH_STANDARD | NODE_NAMED) => {
                let id = read_id(tag, rest)?;
                self.last_id = Some(id.clone());
                Entry::Node(id)
            }
            USER => Entry::User(rest.text()?),
            IN_STATE => Entry::InState(rest.u32()?),
            KNOWN => Entry::Known { node: rest.u32()?, num: EventNum(rest.u32()?) },
            first if first & EVENT != 0 => Entry::Event(staged(rest, first, &self.last_id)?),
            _ => return None,
        })
    }
}

fn staged<'a>(rest: &mut Unpack<'a>, first: u8, last_id: &Option<Id>) -> Option<Staged<'a>> {
    let has = |bit| first & bit != 0;
    let id = if has(EVENT_OWN_ID) { read_id(rest.u8()?, rest)? } else { last_id.clone()? };
    let node = rest.u32()?;
    let wire = u64::from_be_bytes(rest.array()?);
    let kind = Kind(rest.u8()?);
    let sender = u64::from_be_bytes(rest.array()?);
    let member = match has(EVENT_MEMBER) {
        true => {
            let membership = Membership::from_code(rest.u8()?)?;
            Some((membership, if has(EVENT_OF_OTHER) { u64::from_be_bytes(rest.array()?) } else { sender }))
        }
        false => None,
    };
    let state_key = if has(EVENT_STATE_KEY) { Some((rest.text()?, rest.text()?)) } else { None };
    let depth = rest.u64()?;
    let origin_server_ts = rest.u64()?;
    let count = rest.u8()?;
    let packed = rest.rest();
    for _ in 0..count {
        rest.u32()?;
    }
    Some(Staged {
        node,
        id,
        wire,
        in_state: has(EVENT_IN_STATE),
        needs_body: has(EVENT_NEEDS_BODY),
        redacted: has(EVENT_REDACTED),
        kind,
        sender,
        member,
        state_key,
        depth,
        origin_server_ts,
        auth: Edges { count, packed: &packed[..packed.len() - rest.rest().len()] },
    })
}

/// A row that does not unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged;

/// The value for an unknown room number in a journal.
pub fn room_of(journal: &Journal) -> Option<RoomNum> {
    journal.room.map(RoomNum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_comes_back_as_it_was_written() {
        let mut writer = BatchWriter::new(3);
        let no_edges = Edges { count: 0, packed: &[] };
        let join = Staged {
            node: 2,
            id: Id::Hash([9; 32]),
            wire: 8,
            in_state: true,
            needs_body: false,
            redacted: false,
            kind: Kind::MEMBER,
            sender: 77,
            member: Some((Membership::Join, 77)),
            state_key: None,
            depth: 900,
            origin_server_ts: 1_700_000_000_000,
            auth: no_edges,
        };
        let ban =
            Staged { node: 3, in_state: false, needs_body: true, member: Some((Membership::Ban, 78)), ..join.clone() };
        let name = Staged {
            node: 4,
            redacted: true,
            kind: Kind::NAME,
            member: None,
            state_key: Some(("m.room.name", "")),
            ..join.clone()
        };
        let ban = Staged { id: Id::Named("$x:y".into()), ..ban };
        writer.node(&Id::Hash([1; 32]));
        writer.node(&Id::HashStandard([2; 32]));
        writer.node(&Id::Named("$x:y".into()));
        writer.user("@a:example.org");
        writer.event(&join, &[0, 1, 300_000]);
        writer.event(&ban, &[]);
        writer.event(&name, &[2]);
        writer.in_state(1);
        writer.known(1, EventNum(500));
        assert_eq!(writer.rows(), 1);
        let row = writer.finish(BodyNum(12)).next().unwrap();

        let mut batch = Batch::open(&row).unwrap();
        assert_eq!((batch.first_body, batch.attempt), (BodyNum(12), 3));
        let mut next = || batch.next().unwrap();
        assert_eq!(next(), Some(Entry::Node(Id::Hash([1; 32]))));
        assert_eq!(next(), Some(Entry::Node(Id::HashStandard([2; 32]))));
        assert_eq!(next(), Some(Entry::Node(Id::Named("$x:y".into()))));
        assert_eq!(next(), Some(Entry::User("@a:example.org")));
        for (want, auth) in [(join, vec![0, 1, 300_000]), (ban, vec![]), (name, vec![2])] {
            let Some(Entry::Event(got)) = next() else { panic!("an event was written here") };
            let mut nodes = vec![9];
            got.auth.read(&mut nodes);
            assert_eq!(nodes, auth);
            assert_eq!(Staged { auth: no_edges, ..got }, want);
        }
        assert_eq!(next(), Some(Entry::InState(1)));
        assert_eq!(next(), Some(Entry::Known { node: 1, num: EventNum(500) }));
        assert_eq!(next(), None);
        for cut in HEAD_BYTES + 1..row.len() {
            let mut batch = Batch::open(&row[..cut]).unwrap();
            while let Ok(Some(_)) = batch.next() {} // ends, and never panics
        }
    }

    /// Rows of a hundred kilobytes each had a page of their own, and those pages filled the database's cache and more.
    #[test]
    fn rows_stay_within_a_page_and_keep_their_bodies() {
        let event = |node| Staged {
            node,
            id: Id::Hash([node as u8; 32]),
            wire: node.into(),
            in_state: true,
            needs_body: false,
            redacted: false,
            kind: Kind::MEMBER,
            sender: 7,
            member: Some((Membership::Join, 7)),
            state_key: None,
            depth: 1,
            origin_server_ts: 1_700_000_000_000,
            auth: Edges { count: 0, packed: &[] },
        };
        let mut writer = BatchWriter::new(1);
        for node in 0..1000 {
            writer.node(&event(node).id);
            writer.user("@somebody:example.org");
            writer.event(&event(node), &[0, 1]);
        }
        let (bytes, count) = (writer.len(), writer.rows());
        let rows: Vec<_> = writer.finish(BodyNum(50)).collect();
        assert_eq!((rows.len(), rows.iter().map(Vec::len).sum::<usize>()), (count as usize, bytes));
        let (mut nodes, mut users, mut events) = (0, 0, 0);
        for row in &rows {
            assert!(row.len() < 4000);
            let mut batch = Batch::open(row).unwrap();
            assert_eq!((batch.first_body, batch.attempt), (BodyNum(50 + events), 1));
            while let Some(entry) = batch.next().unwrap() {
                match entry {
                    Entry::Node(id) => {
                        assert_eq!(id, Id::Hash([nodes as u8; 32]));
                        nodes += 1;
                    }
                    Entry::User(_) => users += 1,
                    Entry::Event(found) => {
                        assert_eq!((found.node, &found.id), (events, &event(events).id));
                        events += 1;
                    }
                    _ => panic!("nothing else was written"),
                }
            }
        }
        assert_eq!((nodes, users, events), (1000, 1000, 1000));
    }
}
