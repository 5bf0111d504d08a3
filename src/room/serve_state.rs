//! A room's state and the events it rests on, for another server: `send_join`'s answer, `state`, `state_ids`, `event_auth`.
//!
//! Two cursors written straight to the body: one over the state's tree, then one over the auth chain, which is one pass
//! down the event numbers with a bit for each (an event's auth events have smaller numbers than the event). What is held
//! is one piece of the answer and that bitmap, whatever the room. Each piece reads from a snapshot of its own, so that a
//! slow reader keeps no pages of the database: trees and events never change.

use std::ops::ControlFlow;
use std::sync::Arc;

use ruma::{EventId, RoomId, ServerName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::state::Known;
use super::visitor;
use super::{Error, Result, Rooms};
use crate::base::{self, ChunkError, Chunks};
use crate::budget::{Budget, Grant, Refused};
use crate::matrix::Event;
use crate::matrix::json::write_string;
use crate::store::tables::event::{self, Kind, Membership, Root};
use crate::store::tables::{member, snapshot};
use crate::store::{self, EventNum, Get, Read, RoomNum, StateKeyNum};

/// Answers of this kind at once; each reads the whole of a room.
const AT_ONCE: usize = 2;
/// How long the next asker waits for its turn before it is told to come back, in milliseconds.
const TURN_MS: u64 = 60_000;
/// A piece is full at this size; the event that fills it may be 64 KiB itself, and is held once more while it is read.
const PIECE_BYTES: usize = 16 * 1024;
const PIECE_BYTES_MAX: u64 = 16 * 1024 + 3 * 64 * 1024;
/// State entries read at once, and looked at for one piece.
const PAGE: usize = 128;
const LOOKED_AT_MAX: usize = 2048;
/// A bitmap larger than this is the `join` account's to pay: it is a room of its size that is being handed over.
const SMALL_BITMAP_BYTES: u64 = 64 * 1024;
/// Members named to a joining server for a room without a name.
const HEROES_MAX: usize = 6;

/// Takes turns with the long answers.
#[derive(Clone)]
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Turns {
        Turns(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

/// A turn, and the memory for it.
pub(super) struct Turn {
    permit: OwnedSemaphorePermit,
    grant: Grant,
    bitmap: Option<Grant>,
    bits_max: u32,
}

/// A long answer and what pays for it.
pub struct Served {
    pub grant: Grant,
    pub chunks: Box<dyn Chunks>,
}

impl Rooms {
    /// Waits for a turn. Nothing may be held meanwhile.
    pub(super) async fn turn(&self) -> Result<Turn> {
        let parts = &self.0.parts;
        let waiting = self.0.turns.0.clone().acquire_owned();
        let permit = parts.clock.timeout(std::time::Duration::from_millis(TURN_MS), waiting).await;
        let Some(Ok(permit)) = permit else { return Err(busy(&parts.budget).into()) };
        let rooms = self.clone();
        let bits_max = base::blocking(move || rooms.highest_event()).await?;
        let bytes = u64::from(bits_max) / 8 + 64;
        let (small, bitmap) = match bytes <= SMALL_BITMAP_BYTES {
            true => (bytes, None),
            false => (0, Some(parts.budget.account("join").take(bytes).await?)),
        };
        let grant = parts.budget.account("response_bodies").take(PIECE_BYTES_MAX + small).await?;
        Ok(Turn { permit, grant, bitmap, bits_max })
    }

    /// The highest number an event has; those of this answer are lower, or it.
    fn highest_event(&self) -> store::Result<u32> {
        let mut highest = 0;
        event::rows_down(&self.0.parts.store.read()?, EventNum(u32::MAX - 1), &mut |num, _| {
            highest = num.0;
            Ok(ControlFlow::Break(()))
        })?;
        // Room for what is appended before the answer begins: the joining event itself.
        Ok(highest.saturating_add(64))
    }

    /// `GET /state` and `/state_ids`: the state before an event, and the events it rests on.
    pub async fn serve_state(
        &self,
        origin: &ServerName,
        room: &RoomId,
        at: &EventId,
        ids_only: bool,
    ) -> Result<Served> {
        let turn = self.turn().await?;
        let (rooms, origin, room, at) = (self.clone(), origin.to_owned(), room.to_owned(), at.to_owned());
        base::blocking(move || {
            let read = rooms.0.parts.store.read()?;
            let held = visitor::enter_as_member(&read, &origin, &room)?;
            let num = known_event(&read, &held, &at)?;
            let before = event::row_of(&read, num)?.before.ok_or(Error::NotFound)?;
            let names = if ids_only { ("pdu_ids", "auth_chain_ids") } else { ("pdus", "auth_chain") };
            let mut answer = LongAnswer::new(&rooms, &held, turn, b"{".to_vec(), names);
            answer.ids_only = ids_only;
            answer.state = Some(before);
            Ok(answer.served())
        })
        .await
    }

    /// `GET /event_auth`: what an event rests on.
    pub async fn serve_event_auth(&self, origin: &ServerName, room: &RoomId, of: &EventId) -> Result<Served> {
        let turn = self.turn().await?;
        let (rooms, origin, room, of) = (self.clone(), origin.to_owned(), room.to_owned(), of.to_owned());
        base::blocking(move || {
            let read = rooms.0.parts.store.read()?;
            let held = visitor::enter_as_member(&read, &origin, &room)?;
            let num = known_event(&read, &held, &of)?;
            let mut answer = LongAnswer::new(&rooms, &held, turn, b"{".to_vec(), ("", "auth_chain"));
            answer.chain.mark_all(&event::row_of(&read, num)?.auth)?;
            Ok(answer.served())
        })
        .await
    }

    /// `send_join`'s answer for the event numbered `joined`, which is in the room by now. `old_api`: version 1 of it.
    pub(super) fn answer_join(
        &self,
        get: &impl Get,
        held: &Known,
        turn: Turn,
        (joined, event): (EventNum, &Event),
        how: JoinAnswer,
    ) -> Result<Served> {
        let row = event::row_of(get, joined)?;
        let before = row.before.ok_or(Error::NotFound)?;
        let mut head = if how.old_api { b"[200,{".to_vec() } else { b"{".to_vec() };
        head.extend_from_slice(b"\"event\":");
        head.extend_from_slice(event.to_federation());
        head.extend_from_slice(b",\"origin\":");
        write_string(&mut head, self.0.parts.server.as_str());
        head.extend_from_slice(format!(",\"members_omitted\":{},", how.omit_members).as_bytes());
        let mut answer = LongAnswer::new(self, held, turn, head, ("state", "auth_chain"));
        if how.old_api {
            answer.tail = b"}]";
        }
        answer.chain.mark_all(&row.auth)?;
        answer.state = Some(before);
        if how.omit_members {
            answer.servers = true;
            answer.members_kept = Some(members_kept(get, held, before, event)?);
        }
        Ok(answer.served())
    }
}

/// What a joining server asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct JoinAnswer {
    pub omit_members: bool,
    pub old_api: bool,
}

fn busy(budget: &Budget) -> Refused {
    Refused {
        account: "response_bodies".to_owned(),
        asked: PIECE_BYTES_MAX,
        limit: budget.account("response_bodies").limit(),
        retry_after_ms: TURN_MS,
        too_large: false,
    }
}

/// An event of the room that has not been rejected.
fn known_event(get: &impl Get, held: &Known, id: &EventId) -> Result<EventNum> {
    let num = event::num(get, id.as_str())?.ok_or(Error::NotFound)?;
    let row = event::row_of(get, num)?;
    if row.room != held.num || row.flags.rejected { Err(Error::NotFound) } else { Ok(num) }
}

/// Whose member events a server gets that asked for none: its own user's, and enough to name a nameless room by.
fn members_kept(get: &impl Get, held: &Known, state: Root, joined: &Event) -> Result<Vec<EventNum>> {
    let mut kept = Vec::new();
    let mut keep = |kind: &str, key: &str| -> Result<bool> {
        let Some(key) = snapshot::key(get, kind, key)? else { return Ok(false) };
        let found = snapshot::get(get, state, key)?;
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

/// Which event numbers are still to come, highest first.
struct Chain {
    bits: Vec<u64>,
    /// Everything at or above this word has been handed out.
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

    fn mark_all(&mut self, nums: &[EventNum]) -> store::Result<()> {
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
    State(Option<StateKeyNum>),
    Chain,
    Done,
}

/// The answer under way.
struct LongAnswer {
    rooms: Rooms,
    room: RoomNum,
    step: Step,
    head: Vec<u8>,
    tail: &'static [u8],
    names: (&'static str, &'static str),
    ids_only: bool,
    servers: bool,
    state: Option<Root>,
    /// With members left out: those that are not.
    members_kept: Option<Vec<EventNum>>,
    chain: Chain,
    /// The next element of the list needs no comma before it.
    first: bool,
    grant: Option<Grant>,
    _bitmap: Option<Grant>,
    _permit: OwnedSemaphorePermit,
}

impl LongAnswer {
    fn new(rooms: &Rooms, held: &Known, turn: Turn, head: Vec<u8>, names: (&'static str, &'static str)) -> LongAnswer {
        let mut chain = Chain::new(turn.bits_max);
        // Version 12 events do not cite the create event: their room's id does.
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
            state: None,
            members_kept: None,
            chain,
            first: true,
            grant: Some(turn.grant),
            _bitmap: turn.bitmap,
            _permit: turn.permit,
        }
    }

    fn served(mut self) -> Served {
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

    fn emit(&mut self, read: &Read, row: &event::Row, out: &mut Vec<u8>) -> store::Result<()> {
        self.comma(out);
        match self.ids_only {
            true => write_string(out, &row.id.text()),
            false => out.extend_from_slice(&event::body(read, row)?),
        }
        Ok(())
    }

    /// One list's share of a piece, or the step to the next list.
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
                        Step::State(None)
                    }
                    (false, None) => {
                        self.open(self.names.1, out);
                        Step::Chain
                    }
                };
            }
            Step::Servers(after) => self.servers(read, after, full_at, out)?,
            Step::State(after) => self.state(read, after, full_at, out)?,
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
            self.comma(out);
            write_string(out, server);
            last = Some(server.to_owned());
            Ok(ControlFlow::Continue(()))
        })?;
        if out.len() < full_at {
            out.extend_from_slice(b"],");
            self.open(self.names.0, out);
            self.step = Step::State(None);
        } else {
            self.step = Step::Servers(last.or(after));
        }
        Ok(())
    }

    fn state(
        &mut self,
        read: &Read,
        mut after: Option<StateKeyNum>,
        full_at: usize,
        out: &mut Vec<u8>,
    ) -> store::Result<()> {
        let Some(root) = self.state else { return Ok(()) };
        let mut entries = Vec::with_capacity(PAGE);
        for _ in 0..LOOKED_AT_MAX / PAGE {
            entries.clear();
            let ended = snapshot::page(read, root, after, PAGE, &mut entries)?;
            for entry in &entries {
                if out.len() >= full_at {
                    self.step = Step::State(after);
                    return Ok(());
                }
                after = Some(entry.key);
                self.state_entry(read, entry.event, out)?;
            }
            if ended {
                out.extend_from_slice(b"],");
                self.open(self.names.1, out);
                self.step = Step::Chain;
                return Ok(());
            }
        }
        self.step = Step::State(after);
        Ok(())
    }

    fn state_entry(&mut self, read: &Read, num: EventNum, out: &mut Vec<u8>) -> store::Result<()> {
        let row = event::row_of(read, num)?;
        if row.kind == Kind::MEMBER && self.members_kept.as_ref().is_some_and(|kept| !kept.contains(&num)) {
            return Ok(());
        }
        self.chain.mark_all(&row.auth)?;
        self.emit(read, &row, out)
    }

    fn chain(&mut self, read: &Read, full_at: usize, out: &mut Vec<u8>) -> store::Result<()> {
        while out.len() < full_at {
            let Some(num) = self.chain.next() else {
                out.push(b']');
                out.extend_from_slice(self.tail);
                self.step = Step::Done;
                return Ok(());
            };
            let row = event::row_of(read, num)?;
            self.chain.mark_all(&row.auth)?;
            self.emit(read, &row, out)?;
        }
        Ok(())
    }
}

impl Chunks for LongAnswer {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        let read = self.rooms.0.parts.store.read()?;
        let full_at = out.len() + PIECE_BYTES;
        // Three lists and two ends at most end in one piece; a list that is left unfinished has filled it.
        for _ in 0..5 {
            if out.len() < full_at && !matches!(self.step, Step::Done) {
                self.go_on(&read, full_at, out)?;
            }
        }
        Ok(!matches!(self.step, Step::Done))
    }
}
