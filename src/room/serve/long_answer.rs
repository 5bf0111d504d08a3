//! Answers as long as a room's state, written a piece at a time.

use std::ops::ControlFlow;

use super::slots::{Reader, Turn};
use crate::base::{ChunkError, Chunks};
use crate::budget::Grant;
use crate::matrix::Event;
use crate::matrix::json::write_string;
use crate::room::Rooms;
use crate::room::error::Result;
use crate::room::state::RoomRef;
use crate::store::tables::room::event::KnownIds;
use crate::store::tables::room::event_pile::{EventPile, ListVisitor};
use crate::store::tables::room::event_row::{self, Membership, Root};
use crate::store::tables::room::{event, member, state_tree};
use crate::store::{self, EventNum, Get, Read, RoomNum};

/// A piece is full at this size; the event that fills it may be 64 KiB itself, and is held once more while it is read.
const PIECE_BYTES: usize = 16 * 1024;

/// The number of state entries looked at together.
const PAGE: usize = 256;

/// A long answer and the grant that pays for it.
pub struct Served {
    pub grant: Grant,
    pub chunks: Box<dyn Chunks>,
}

/// The member events sent when members are omitted: the joining user's own, and enough to name a room without a name.
pub fn members_kept(get: &impl Get, held: &RoomRef, state: Root, joined: &Event) -> Result<Vec<EventNum>> {
    let mut kept = Vec::new();
    let mut keep = |kind: &str, key: &str| -> Result<bool> {
        let Some(key) = state_tree::key(get, kind, key)? else { return Ok(false) };
        let found = state_tree::get(get, state, key)?;
        kept.extend(found);
        Ok(found.is_some())
    };
    let named = keep("m.room.name", "")? | keep("m.room.canonical_alias", "")?;
    keep("m.room.member", joined.sender().as_str())?;
    if !named {
        for membership in [Membership::Join, Membership::Invite, Membership::Leave] {
            member::list(get, held.num, membership, None, &mut |_, event| {
                kept.push(event);
                Ok(if kept.len() > HEROES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
    }
    Ok(kept)
}

/// The event numbers still to be written, highest first.
pub struct Chain {
    bits: Vec<u64>,
    /// Everything at or above this word has been written.
    word: usize,
}

impl Chain {
    fn new(bits_max: u32) -> Chain {
        let words = bits_max as usize / 64 + 1;
        Chain { bits: vec![0; words], word: words }
    }

    fn mark(&mut self, num: EventNum) -> store::Result<()> {
        let (word, bit) = (num.0 as usize / 64, num.0 % 64);
        let corrupt = || store::Error::corrupt(&store::schema::EVENT, &num.0.to_be_bytes());
        *self.bits.get_mut(word).ok_or_else(corrupt)? |= 1 << bit;
        Ok(())
    }

    pub fn mark_all(&mut self, nums: &[EventNum]) -> store::Result<()> {
        nums.iter().try_for_each(|num| self.mark(*num))
    }

    fn next(&mut self) -> Option<EventNum> {
        while self.word > 0 {
            let bits = &mut self.bits[self.word - 1];
            if *bits != 0 {
                let bit = 63 - bits.leading_zeros();
                *bits &= !(1 << bit);
                return Some(EventNum((self.word as u32 - 1) * 64 + bit));
            }
            self.word -= 1;
        }
        None
    }
}

#[derive(Clone, Debug)]
enum Step {
    Head,
    Servers(Option<String>),
    State,
    Chain,
    Done,
}

/// An answer being written.
pub struct LongAnswer {
    rooms: Rooms,
    room: RoomNum,
    step: Step,
    head: Vec<u8>,
    pub tail: &'static [u8],
    names: (&'static str, &'static str),
    pub ids_only: bool,
    pub servers: bool,
    /// A server that has only come into the room with this join: the list is of those that were in it before.
    pub newcomer: Option<String>,
    pub state: Option<Root>,
    /// With members omitted: the member events that are sent all the same.
    pub members_kept: Option<Vec<EventNum>>,
    pub chain: Chain,
    /// Events of the list being written that were read already.
    pile: EventPile,
    known: KnownIds,
    /// The next element of the list needs no comma before it.
    first: bool,
    grant: Option<Grant>,
    _bitmap: Option<Grant>,
    reader: Reader,
}

impl LongAnswer {
    pub fn new(
        rooms: &Rooms,
        held: &RoomRef,
        turn: Turn,
        head: Vec<u8>,
        names: (&'static str, &'static str),
    ) -> LongAnswer {
        let mut chain = Chain::new(turn.bits_max);
        // Version 12 events do not cite the create event: their room's id refers to it.
        if held.version.room_id_is_create_hash()
            && let Some(create) = held.row.create
        {
            chain.mark(create).ok();
        }
        LongAnswer {
            rooms: rooms.clone(),
            room: held.num,
            step: Step::Head,
            head,
            tail: b"}",
            names,
            ids_only: false,
            servers: false,
            newcomer: None,
            state: None,
            members_kept: None,
            chain,
            pile: EventPile::new(&rooms.0.parts.budget.account("response_bodies")),
            known: KnownIds::new(),
            first: true,
            grant: Some(turn.grant),
            _bitmap: turn.bitmap,
            reader: Reader::new(turn.place, rooms.0.parts.clock.clone()),
        }
    }

    pub fn served(mut self) -> Served {
        let grant = self.grant.take().expect("a new answer has its grant");
        Served { grant, chunks: Box::new(self) }
    }

    fn open(&mut self, name: &str, out: &mut Vec<u8>) {
        write_string(out, name);
        out.extend_from_slice(b":[");
        self.first = true;
    }

    fn comma(&mut self, out: &mut Vec<u8>) {
        if !std::mem::take(&mut self.first) {
            out.push(b',');
        }
    }

    fn emit(&mut self, read: &Read, row: &event_row::Row, out: &mut Vec<u8>) -> store::Result<()> {
        self.comma(out);
        match self.ids_only {
            true => write_string(out, &row.id.text()),
            false => out.extend_from_slice(&event::body_of_many(read, row, &mut self.known)?),
        }
        Ok(())
    }

    /// Writes one list's share of a piece, or steps to the next list.
    fn go_on(&mut self, read: &Read, full_at: usize, out: &mut Vec<u8>) -> store::Result<()> {
        match self.step.clone() {
            Step::Head => {
                out.append(&mut self.head);
                self.step = match (self.servers, self.state) {
                    (true, _) => {
                        self.open("servers_in_room", out);
                        Step::Servers(None)
                    }
                    (false, Some(_)) => {
                        self.open(self.names.0, out);
                        Step::State
                    }
                    (false, None) => {
                        self.open(self.names.1, out);
                        Step::Chain
                    }
                };
            }
            Step::Servers(after) => self.servers(read, after, full_at, out)?,
            Step::State => self.state(read, full_at, out)?,
            Step::Chain => self.chain(read, full_at, out)?,
            Step::Done => {}
        }
        Ok(())
    }

    fn servers(&mut self, read: &Read, after: Option<String>, full_at: usize, out: &mut Vec<u8>) -> store::Result<()> {
        let mut last = None;
        member::list_servers(read, self.room, after.as_deref(), &mut |server, _| {
            if out.len() >= full_at {
                return Ok(ControlFlow::Break(()));
            }
            if self.newcomer.as_deref() != Some(server) {
                self.comma(out);
                write_string(out, server);
            }
            last = Some(server.to_owned());
            Ok(ControlFlow::Continue(()))
        })?;
        if out.len() < full_at {
            out.extend_from_slice(b"],");
            self.open(self.names.0, out);
            self.step = Step::State;
        } else {
            self.step = Step::Servers(last.or(after));
        }
        Ok(())
    }

    fn state(&mut self, read: &Read, full_at: usize, out: &mut Vec<u8>) -> store::Result<()> {
        let Some(root) = self.state else { return Ok(()) };
        while out.len() < full_at {
            let kept = self.members_kept.as_deref();
            let Some((_, row)) = self.pile.next(read, &mut |visit| list(read, root, kept, visit))? else {
                out.extend_from_slice(b"],");
                self.open(self.names.1, out);
                self.step = Step::Chain;
                return Ok(());
            };
            self.chain.mark_all(&row.auth)?;
            self.emit(read, &row, out)?;
        }
        Ok(())
    }

    fn chain(&mut self, read: &Read, full_at: usize, out: &mut Vec<u8>) -> store::Result<()> {
        while out.len() < full_at {
            let row = match self.pile.batch().pop()? {
                Some((num, row)) if self.is_in_state(read, num, &row)? => continue,
                Some((_, row)) => row,
                None if self.read_chain(read)? => continue,
                None => {
                    out.push(b']');
                    out.extend_from_slice(self.tail);
                    self.step = Step::Done;
                    return Ok(());
                }
            };
            self.emit(read, &row, out)?;
        }
        Ok(())
    }

    /// Whether an event of the chain was sent with the state, so that it need not come again. A server that wants no members
    /// knows that both lists are one ("send_join", `omit_members`); older ones may not.
    fn is_in_state(&self, read: &Read, num: EventNum, row: &event_row::Row) -> store::Result<bool> {
        let (Some(kept), Some(root), Some(key)) = (&self.members_kept, self.state, row.state_key) else {
            return Ok(false);
        };
        Ok((!key.is_of_member() || kept.contains(&num)) && state_tree::get(read, root, key)? == Some(num))
    }

    /// Reads the rows of the next events of the chain; false when there are none.
    fn read_chain(&mut self, read: &Read) -> store::Result<bool> {
        let batch = self.pile.batch();
        while !batch.is_full()
            && let Some(num) = self.chain.next()
        {
            let row = event_row::Row::decode(num, batch.read(read, num)?);
            let row = row.ok_or_else(|| store::Error::corrupt(&store::schema::EVENT, &num.to_key()))?;
            self.chain.mark_all(&row.auth)?;
        }
        Ok(batch.order())
    }
}

/// Visits the events of a state; with members omitted, those member events that are kept.
fn list(read: &Read, root: Root, kept: Option<&[EventNum]>, visit: ListVisitor) -> store::Result<()> {
    let (mut after, mut entries) = (None, Vec::with_capacity(PAGE));
    loop {
        entries.clear();
        let is_end = state_tree::page(read, root, after, PAGE, &mut entries)?;
        for entry in &entries {
            after = Some(entry.key);
            if !entry.key.is_of_member() || kept.is_none_or(|kept| kept.contains(&entry.event)) {
                visit(entry.event);
            }
        }
        if is_end {
            return Ok(());
        }
    }
}

impl Chunks for LongAnswer {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        self.reader.asks()?;
        let read = self.rooms.0.parts.store.read()?;
        let before = out.len();
        let full_at = before + PIECE_BYTES;
        // Three lists and two ends at most end in one piece; a list that is left unfinished has filled it.
        for _ in 0..5 {
            if out.len() < full_at && !matches!(self.step, Step::Done) {
                self.go_on(&read, full_at, out)?;
            }
        }
        self.reader.is_given(out.len() - before);
        Ok(!matches!(self.step, Step::Done))
    }
}

/// The most members named to a joining server for a room without a name.
pub const HEROES_MAX: usize = 6;
