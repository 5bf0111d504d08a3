//! From the log to a room: order, numbers, judgement, rows, indexes, state.
//!
//! Plain blocking passes, each front to back over the log or over a sorted file, each writing in short batches in the
//! order of the keys. Nothing points to what is written here until the flip; a crash repeats the passes under the same
//! numbers and writes the same rows.
//!
//! ```text
//! log ─ order ─┬─ users by hash → numbers
//!              └─ events by place → judge → rows ─┬─ ids by hash → index
//!                                                  └─ state by key → tree, present state, members → servers by name
//! ```

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use ruma::{OwnedEventId, OwnedServerName, OwnedUserId, UserId};

use super::graph::{Bits, with_bytes};
use super::order::{Log, Node, Order, OrderError, SORTER_BYTES_MIN, Scratch, Sorter, take_up_to};
use super::progress::{Phase, Progress};
use super::stage::WRITE_TARGET;
use super::{Error, Stop, flip};
use crate::base::{Pace, StopWatch};
use crate::budget::Grant;
use crate::budget::spill::Spill;
use crate::matrix::{Event, RoomVersion};
use crate::room::state;
use crate::store::row_encoding::{Unpack, put_bytes, put_u64};
use crate::store::tables::room::event::{self, Flags, Id, Kind, Membership, Root, Row};
use crate::store::tables::room::member::NewState;
use crate::store::tables::room::staged::{self, JoinNum, Journal, Stage, UserPrint};
use crate::store::tables::room::state_tree::{self, Entry};
use crate::store::tables::room::{self, body, member};
use crate::store::tables::user::{self, Met};
use crate::store::{
    self, BodyNum, EventNum, Get, Read, RoomNum, StateKeyNum, Store, UserNum, Write, WriteError, hash128,
};
use authorize::{Bodies, COLUMN_BYTES, Claim, Column, Columns, Judge, Role};

pub mod authorize;

/// Sorters' share of memory: so much each, or what there is.
const SORT_BYTES: u64 = 1 << 20;
/// Rows of one write.
const ROWS_MIN: usize = 64;
const ROWS_MAX: usize = 4096;
/// Local users of a room that are told of it at the flip. They have accounts here.
const LOCALS_MAX: usize = 10_000;

/// What the passes need.
pub struct Settle {
    pub store: Store,
    pub join: JoinNum,
    pub journal: Journal,
    pub version: &'static RoomVersion,
    /// Memory is the join's own part of the account.
    pub scratch: Scratch,
    pub progress: Arc<Progress>,
    pub server: OwnedServerName,
    /// Under which ids that have several nodes are told apart.
    pub merge_key: [u8; 16],
}

/// A room that needs only the flip.
pub struct Settled {
    pub room: RoomNum,
    pub root: Option<Root>,
    pub create: EventNum,
    pub joined: u64,
    pub invited: u64,
    pub events: u64,
    /// Users of this server in the state, but not those joining.
    pub locals: Vec<(UserNum, Membership, EventNum)>,
    /// Bodies of events that were left out.
    pub dead: Option<Spill>,
    pub journal: Journal,
}

impl Settle {
    /// Everything but the flip.
    pub fn run(mut self) -> Result<Settled, Stop> {
        self.progress.enter(Phase::Ordering);
        let forgetful = self.journal.forgetful.then_some(self.merge_key);
        let watch = StopWatch::start();
        let mut log = StagedLog { store: &self.store, join: self.join, create_first: self.is_create_first() };
        let order = Order::of(&mut log, self.journal.nodes, forgetful, &self.scratch)?;
        let missing = order.missing().take(1000).count();
        tracing::info!(
            room_id = %self.journal.room_id, placed = order.count(), nodes = self.journal.nodes, missing,
            passes = order.passes(), ms = watch.elapsed().as_millis() as u64, "ordered"
        );
        let (room, first) = self.reserve(order.count())?;
        let (users, in_state) = self.survey(&order)?;
        let mut dead = Dead::new(&self.scratch);
        let (sorted, any_known) = self.by_place(&order, &users, &in_state, &mut dead)?;
        let count = order.count();
        drop((order, users, in_state));
        self.progress.enter(Phase::Judging);
        let made = self.judge(sorted, count, any_known, room, first, &mut dead)?;
        self.progress.enter(Phase::Indexing);
        self.index(made.ids)?;
        let mut settled = self.state(made.state, room)?;
        settled.create = made.create;
        settled.events = made.accepted;
        settled.dead = dead.spill;
        settled.journal = self.journal;
        Ok(settled)
    }

    /// Every event of such a room comes after the create event, though it does not name it.
    fn is_create_first(&self) -> bool {
        self.version.room_id_is_create_hash()
    }

    /// The room's number and the events', the same ones again after a crash.
    fn reserve(&mut self, count: u32) -> Result<(RoomNum, EventNum), Stop> {
        if let (Some(room), Some((first, reserved))) = (self.journal.room, self.journal.event_nums)
            && reserved == count
        {
            self.clear(RoomNum(room))?; // a crash may have come before
            return Ok((RoomNum(room), EventNum(first)));
        }
        let (join, mut journal) = (self.join, self.journal.clone());
        let job = move |w: &mut Write<'_>| {
            let room = room::intern(w, &journal.room_id, &journal.version)?;
            let first = event::reserve(w, count)?;
            journal.room = Some(room.0);
            journal.event_nums = Some((first.0, count));
            journal.stage = Stage::Indexed;
            staged::set_journal(w, join, &journal)?;
            Ok::<_, store::Error>((room, first, journal))
        };
        let ((room, first, journal), _) = self.store.write_blocking(job).map_err(store::Error::from)?;
        self.journal = journal;
        self.clear(room)?;
        Ok((room, first))
    }

    /// What an earlier stay left of the room's present state goes, a batch at a time.
    fn clear(&self, room: RoomNum) -> Result<(), Stop> {
        loop {
            let job = move |w: &mut Write<'_>| {
                flip::check_not_here(w, room)?;
                Ok::<_, Error>(member::clear(w, room, ROWS_MAX / 2)?)
            };
            let (removed, _) = self.store.write_bulk_blocking(job).map_err(WriteError::into_inner)?;
            if removed < ROWS_MAX / 2 {
                return Ok(());
            }
        }
    }

    /// One reading of the log: who is mentioned, and what is in the state.
    fn survey(&self, order: &Order) -> Result<(Users, Bits), Stop> {
        let mut in_state = Bits::new(&self.scratch.memory)?;
        let mut sorter = Sorter::new(&self.scratch, SORT_BYTES)?;
        let hash_key = *self.store.read()?.hash_key();
        let mut record = Vec::new();
        let attempt = self.journal.attempt;
        each(&self.store, self.join, &mut |of, _, entry| {
            match entry {
                staged::Entry::User(id) => {
                    record.clear();
                    record.extend_from_slice(&hash128(&hash_key, &[id.as_bytes()]));
                    record.extend_from_slice(id.as_bytes());
                    sorter.push(&record)?;
                }
                staged::Entry::Event(event) if event.in_state && of == attempt => {
                    in_state.set(order.canonical(event.node))?;
                }
                staged::Entry::InState(node) if of == attempt => in_state.set(order.canonical(node))?,
                _ => {}
            }
            Ok::<_, Stop>(())
        })?;
        Ok((self.meet(sorter)?, in_state))
    }

    /// Everybody gets their number, in the order of their hashes.
    fn meet(&self, sorter: Sorter) -> Result<Users, Stop> {
        let mut users = Users::new(&self.store, sorter.count(), &self.scratch)?;
        let mut sorted = sorter.finish()?;
        let mut writes = Writes::new(self);
        let (mut batch, mut last) = (Vec::new(), [0; 16]);
        loop {
            let next = sorted.next()?.and_then(|record| record.split_first_chunk::<16>());
            let is_end = next.is_none();
            if let Some((hash, id)) = next
                && (*hash != last || batch.is_empty())
            {
                last = *hash;
                let id = String::from_utf8(id.to_vec()).map_err(|_| Stop::Corrupt)?;
                batch.push((*hash, id));
            }
            if batch.len() >= writes.size() || is_end && !batch.is_empty() {
                let list = std::mem::take(&mut batch);
                let (list, met) = writes.run(list.len(), move |w| {
                    let met = user::meet(w, &list)?;
                    Ok((list, met))
                })?;
                for ((hash, _), met) in list.iter().zip(met) {
                    users.put(u64::from_be_bytes(*hash.first_chunk().expect("a hash has sixteen bytes")), met);
                }
            }
            if is_end {
                return Ok(users);
            }
        }
    }

    /// The events in their order, each with what the rules and its row need.
    fn by_place(
        &self,
        order: &Order,
        users: &Users,
        in_state: &Bits,
        dead: &mut Dead,
    ) -> Result<(super::order::Sorted, bool), Stop> {
        let mut sorter = Sorter::new(&self.scratch, 2 * SORT_BYTES)?;
        let (mut record, mut nodes, mut any_known) = (Vec::new(), Vec::new(), false);
        each(&self.store, self.join, &mut |_, body, entry| {
            match entry {
                staged::Entry::Event(event) => {
                    let Some(place) = order.place(event.node) else { return dead.push(body) };
                    event.auth.read(&mut nodes);
                    let is_in_state = in_state.get(order.canonical(event.node));
                    pack(&mut record, place, body, &event, is_in_state, users, order, &nodes)?;
                    sorter.push(&record)?;
                }
                staged::Entry::Known { node, num } => {
                    let Some(place) = order.place(node) else { return Ok(()) };
                    any_known = true;
                    record.clear();
                    record.extend_from_slice(&place.to_be_bytes());
                    record.push(KNOWN | if in_state.get(order.canonical(node)) { IN_STATE } else { 0 });
                    put_u64(&mut record, num.0.into());
                    sorter.push(&record)?;
                }
                _ => {}
            }
            Ok::<_, Stop>(())
        })?;
        Ok((sorter.finish()?, any_known))
    }

    /// Parents first: the rules, and a row for what they allow.
    fn judge(
        &self,
        mut sorted: super::order::Sorted,
        count: u32,
        any_known: bool,
        room: RoomNum,
        first: EventNum,
        dead: &mut Dead,
    ) -> Result<Made, Stop> {
        let bytes = u64::from(count) * (COLUMN_BYTES + if any_known { 4 } else { 0 });
        let _grant = self.scratch.memory.try_take(bytes)?;
        let mut columns = Columns::new(count);
        let mut nums = Nums { first, known: if any_known { vec![0; count as usize] } else { Vec::new() } };
        let (store, room_id) = (self.store.clone(), self.journal.room_id.clone());
        let reads = FromStore { store, version: self.version, room_id, read: RefCell::default() };
        let mut judge = Judge::new(self.version, reads);
        let mut rows = Rows::new(self, room)?;
        let (mut last, mut rejected, mut sample) = (None, 0u64, None);
        let mut auth = Vec::new();
        while let Some(record) = sorted.next()? {
            let one = Placed::unpack(record, &mut auth).ok_or(Stop::Corrupt)?;
            if last == Some(one.place) {
                if let Some(event) = &one.event {
                    dead.push(event.body)?; // the second copy of one event
                }
                continue;
            }
            last = Some(one.place);
            let Some(event) = &one.event else {
                nums.known[one.place as usize] = one.known.0;
                self.known(&mut judge, &mut columns, &mut rows, &one)?;
                continue;
            };
            let role = Role::of(event.kind, event.state_key.map(|(_, key)| key), event.member.is_some());
            let member = event.member.map(|(membership, target, _)| (membership, target));
            let id = match role {
                Role::Create => Some(OwnedEventId::try_from(event.id.text()).map_err(|_| Stop::Corrupt)?),
                _ => None,
            };
            let claim = Claim {
                place: one.place,
                body: event.body,
                role,
                sender: event.sender,
                member,
                needs_body: event.needs_body,
                auth: &auth,
                id: id.as_deref(),
            };
            match judge.check(&columns, &claim)? {
                Ok(()) => {
                    columns.set(one.place, Column { role, member, usable: true }, event.body, event.sender);
                    rows.push(&nums, one.place, event, one.in_state, &auth)?;
                }
                Err(reject) => {
                    rejected += 1;
                    sample.get_or_insert(reject);
                    dead.push(event.body)?;
                }
            }
        }
        let create = judge.create_place().ok_or_else(|| Stop::Lying("the room has no create event".into()))?;
        tracing::info!(
            room_id = %self.journal.room_id, accepted = rows.accepted, rejected, bodies = judge.bodies_read,
            sample = sample.map(|reject| reject.to_string()), "judged"
        );
        rows.finish(nums.of(create))
    }

    /// An event we held before counts as what its row says.
    fn known(
        &self,
        judge: &mut Judge<FromStore>,
        columns: &mut Columns,
        rows: &mut Rows,
        one: &Placed<'_>,
    ) -> Result<(), Stop> {
        let read = self.store.read()?;
        let row = event::row_of(&read, one.known)?;
        let event = match row.kind {
            Kind::CREATE | Kind::POWER_LEVELS | Kind::JOIN_RULES | Kind::THIRD_PARTY_INVITE => {
                Some(state::event::load_row(&read, self.version, &row)?)
            }
            _ => None,
        };
        let role = Role::of(row.kind, event.as_ref().and_then(|event| event.state_key()), row.member.is_some());
        let usable = !row.flags.rejected;
        if let Some(event) = event.filter(|_| role == Role::Create && usable) {
            judge.set_create(one.place, &event.subject())?;
        }
        columns.set(one.place, Column { role, member: row.member, usable }, row.body, row.sender);
        if let Some(key) = row.state_key.filter(|_| one.in_state && usable) {
            rows.in_state(key, one.known, row.kind, row.member)?;
        }
        rows.accepted += 1;
        Ok(())
    }

    /// The index from ids to numbers.
    fn index(&self, ids: Sorter) -> Result<(), Stop> {
        let mut sorted = ids.finish()?;
        let mut writes = Writes::new(self);
        loop {
            let mut batch = Vec::with_capacity(writes.size());
            while batch.len() < writes.size()
                && let Some(record) = sorted.next()?
            {
                let (hash, num) = record.split_first_chunk::<16>().ok_or(Stop::Corrupt)?;
                batch.push((*hash, EventNum::from_key(num).ok_or(Stop::Corrupt)?));
            }
            if batch.is_empty() {
                return Ok(());
            }
            writes.run(batch.len(), move |w| event::put_id_hashes(w, &batch))?;
        }
    }

    /// The tree, the present state, members and servers.
    fn state(&self, entries: Sorter, room: RoomNum) -> Result<Settled, Stop> {
        let mut sorted = entries.finish()?;
        let mut servers = Sorter::new(&self.scratch, SORT_BYTES / 2)?;
        let mut settled = Settled {
            room,
            root: None,
            create: EventNum(0),
            joined: 0,
            invited: 0,
            events: 0,
            locals: Vec::new(),
            dead: None,
            journal: self.journal.clone(),
        };
        let (mut builder, mut writes) = (state_tree::Builder::default(), Writes::new(self));
        let mut batch: Vec<InState> = Vec::new();
        loop {
            let next = match sorted.next()? {
                Some(record) => Some(InState::unpack(record).ok_or(Stop::Corrupt)?),
                None => None,
            };
            // Of two events for one key the later stands; the last of a batch may yet have a double.
            if let Some(next) = &next
                && batch.last().is_some_and(|last| last.key == next.key)
            {
                batch.pop();
            } else if batch.len() >= writes.size() || next.is_none() && !batch.is_empty() {
                self.count(&batch, &mut settled, &mut servers)?;
                let list = std::mem::take(&mut batch);
                let mut open = std::mem::take(&mut builder);
                builder = writes.run(list.len(), move |w| {
                    let entries: Vec<_> = list.iter().map(|one| Entry { key: one.key, event: one.num }).collect();
                    open.push(w, &entries)?;
                    let new =
                        |one: &InState| NewState { kind: one.kind, key: one.key, event: one.num, member: one.member };
                    member::put_new(w, room, &list.iter().map(new).collect::<Vec<_>>())?;
                    Ok(open)
                })?;
            }
            match next {
                Some(next) => batch.push(next),
                None => break,
            }
        }
        settled.root = Some(writes.run(1, move |w| builder.finish(w))?);
        self.servers(servers, room)?;
        Ok(settled)
    }

    fn count(&self, batch: &[InState], settled: &mut Settled, servers: &mut Sorter) -> Result<(), Stop> {
        let read = self.store.read()?;
        for one in batch {
            let Some((membership, user)) = one.member else { continue };
            match membership {
                Membership::Join => settled.joined += 1,
                Membership::Invite => settled.invited += 1,
                _ => {}
            }
            let id = user::id_of(&read, user)?;
            let server = id.split_once(':').map_or("", |(_, server)| server);
            if membership == Membership::Join {
                servers.push(server.as_bytes())?;
            }
            if server == self.server.as_str() && settled.locals.len() < LOCALS_MAX && user::is_local(&read, user)? {
                settled.locals.push((user, membership, one.num));
            }
        }
        Ok(())
    }

    fn servers(&self, servers: Sorter, room: RoomNum) -> Result<(), Stop> {
        let mut sorted = servers.finish()?;
        let mut writes = Writes::new(self);
        let since = self.store.read()?.position()?;
        let mut batch: Vec<(String, u64)> = Vec::new();
        loop {
            let next = match sorted.next()? {
                Some(name) => Some(std::str::from_utf8(name).map_err(|_| Stop::Corrupt)?),
                None => None,
            };
            match (next, batch.last_mut()) {
                (Some(name), Some((last, count))) if last == name => {
                    *count += 1;
                    continue;
                }
                _ => {}
            }
            if batch.len() >= writes.size() || next.is_none() && !batch.is_empty() {
                let list = std::mem::take(&mut batch);
                writes.run(list.len(), move |w| {
                    for (name, count) in &list {
                        member::put_server(w, room, name, *count, since)?;
                    }
                    Ok(())
                })?;
            }
            match next {
                Some(name) => batch.push((name.to_owned(), 1)),
                None => return Ok(()),
            }
        }
    }
}

/// Short writes one after the other, sized by how long the last one took.
struct Writes {
    store: Store,
    pace: Pace,
    progress: Arc<Progress>,
}

impl Writes {
    fn new(settle: &Settle) -> Writes {
        let (store, progress) = (settle.store.clone(), settle.progress.clone());
        Writes { store, progress, pace: Pace::new(WRITE_TARGET, ROWS_MIN, ROWS_MAX) }
    }

    fn size(&self) -> usize {
        self.pace.size()
    }

    fn run<T: Send + 'static>(
        &mut self,
        rows: usize,
        job: impl FnOnce(&mut Write<'_>) -> store::Result<T> + Send + 'static,
    ) -> Result<T, Stop> {
        if self.progress.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        let watch = StopWatch::start();
        let (done, _) = self.store.write_bulk_blocking(job).map_err(store::Error::from)?;
        self.pace.report(rows, watch.elapsed());
        Ok(done)
    }
}

/// Bodies that no row will name, to be removed after the flip.
struct Dead {
    scratch: Scratch,
    spill: Option<Spill>,
}

impl Dead {
    fn new(scratch: &Scratch) -> Dead {
        Dead { scratch: scratch.clone(), spill: None }
    }

    fn push(&mut self, body: BodyNum) -> Result<(), Stop> {
        if self.spill.is_none() {
            self.spill = Some(Spill::create(&self.scratch.folder, &self.scratch.disk)?);
        }
        let spill = self.spill.as_mut().expect("made above");
        Ok(spill.append(&body.to_key())?)
    }
}

// ---------------------------------------------------------------------------------------------------------- the log

/// Visits the entries of a join's log with their attempt; events come with their body's number.
fn each<E: From<store::Error>>(
    store: &Store,
    join: JoinNum,
    visit: &mut dyn FnMut(u32, BodyNum, staged::Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let read = store.read()?;
    let mut problem = None;
    staged::batches(&read, join, 0, &mut |number, mut batch| {
        let mut body = batch.first_body;
        while let Some(entry) = batch.next().map_err(|_| staged::corrupt(join, number))? {
            let is_event = matches!(entry, staged::Entry::Event(_));
            if let Err(failed) = visit(batch.attempt, body, entry) {
                problem = Some(failed);
                return Ok(ControlFlow::Break(()));
            }
            body.0 += u32::from(is_event);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    problem.map_or(Ok(()), Err)
}

struct StagedLog<'a> {
    store: &'a Store,
    join: JoinNum,
    create_first: bool,
}

impl Log for StagedLog<'_> {
    fn events(&mut self, visit: &mut dyn FnMut(Node, &[Node]) -> Result<(), OrderError>) -> Result<(), OrderError> {
        let (mut parents, create_first) = (Vec::new(), self.create_first);
        each(self.store, self.join, &mut |_, _, entry| match entry {
            staged::Entry::Event(event) => {
                event.auth.read(&mut parents);
                if create_first && event.kind != Kind::CREATE {
                    parents.push(0); // the create event's node, given before any other
                }
                visit(event.node, &parents)
            }
            staged::Entry::Known { node, .. } => visit(node, &[]),
            _ => Ok(()),
        })
    }

    fn ids(&mut self, visit: &mut dyn FnMut(Node, &[u8]) -> Result<(), OrderError>) -> Result<(), OrderError> {
        let mut node = 0;
        each(self.store, self.join, &mut |_, _, entry| {
            if let staged::Entry::Node(id) = entry {
                with_bytes(&id, |bytes| visit(node, bytes))?;
                node += 1;
            }
            Ok(())
        })
    }
}

// ------------------------------------------------------------------------------------------------------------ users

/// Numbers by print. Whom it has no room for is looked up in the store.
struct Users {
    slots: Vec<Slot>,
    used: usize,
    store: Store,
    read: std::cell::OnceCell<Read>,
    _grant: Grant,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    print: [u32; 2],
    user: u32,
    key: u32,
}

impl Users {
    fn new(store: &Store, users: u64, scratch: &Scratch) -> Result<Users, Stop> {
        let wanted = (users + users / 4 + 16) * size_of::<Slot>() as u64;
        // The sorters that come next need theirs.
        let left = scratch.memory.limit().saturating_sub(scratch.memory.used()).saturating_sub(SORT_BYTES);
        let grant = take_up_to(&scratch.memory, wanted.min(left), 4096)?;
        let slots = vec![Slot::default(); grant.bytes() as usize / size_of::<Slot>()];
        Ok(Users { slots, used: 0, store: store.clone(), read: Default::default(), _grant: grant })
    }

    fn put(&mut self, print: UserPrint, met: Met) {
        if self.used * 10 >= self.slots.len() * 9 {
            return;
        }
        let parts = [print as u32, (print >> 32) as u32];
        let mut at = self.home(print);
        while self.slots[at].user != 0 {
            if self.slots[at].print == parts {
                return;
            }
            at = (at + 1) % self.slots.len();
        }
        self.slots[at] = Slot { print: parts, user: met.user.0, key: met.member_key.0 };
        self.used += 1;
    }

    fn home(&self, print: UserPrint) -> usize {
        ((print as u32 as u64 * self.slots.len() as u64) >> 32) as usize
    }

    fn get(&self, print: UserPrint) -> Result<Met, Stop> {
        let parts = [print as u32, (print >> 32) as u32];
        let mut at = self.home(print);
        while self.slots[at].user != 0 {
            let slot = self.slots[at];
            if slot.print == parts {
                return Ok(Met { user: UserNum(slot.user), member_key: StateKeyNum(slot.key) });
            }
            at = (at + 1) % self.slots.len();
        }
        if self.read.get().is_none() {
            let _ = self.read.set(self.store.read()?);
        }
        let read = self.read.get().expect("set above");
        user::met(read, print)?.ok_or(Stop::Corrupt)
    }
}

// ---------------------------------------------------------------------------------------------------------- records

const IN_STATE: u8 = 1;
const NEEDS_BODY: u8 = 2;
const REDACTED: u8 = 4;
const MEMBER: u8 = 8;
const STATE_KEY: u8 = 16;
const KNOWN: u8 = 32;

/// An event between the log and its row.
struct Placed<'a> {
    place: u32,
    in_state: bool,
    known: EventNum,
    event: Option<PlacedEvent<'a>>,
}

struct PlacedEvent<'a> {
    body: BodyNum,
    needs_body: bool,
    redacted: bool,
    kind: Kind,
    sender: UserNum,
    member: Option<(Membership, UserNum, StateKeyNum)>,
    state_key: Option<(&'a str, &'a str)>,
    id: Id,
    depth: u64,
    origin_server_ts: u64,
}

#[allow(clippy::too_many_arguments)] // one line of a file; a struct would be named once and taken apart once
fn pack(
    out: &mut Vec<u8>,
    place: u32,
    body: BodyNum,
    event: &staged::Staged<'_>,
    in_state: bool,
    users: &Users,
    order: &Order,
    auth: &[Node],
) -> Result<(), Stop> {
    out.clear();
    out.extend_from_slice(&place.to_be_bytes());
    let mut bits = 0;
    for (bit, set) in [
        (IN_STATE, in_state),
        (NEEDS_BODY, event.needs_body),
        (REDACTED, event.redacted),
        (MEMBER, event.member.is_some()),
        (STATE_KEY, event.state_key.is_some()),
    ] {
        bits |= if set { bit } else { 0 };
    }
    out.push(bits);
    put_u64(out, body.0.into());
    out.push(event.kind.0);
    let sender = users.get(event.sender)?;
    put_u64(out, sender.user.0.into());
    if let Some((membership, print)) = event.member {
        let target = if print == event.sender { sender } else { users.get(print)? };
        out.push(membership as u8);
        put_u64(out, target.user.0.into());
        put_u64(out, target.member_key.0.into());
    }
    if let Some((kind, key)) = event.state_key {
        put_bytes(out, kind.as_bytes());
        put_bytes(out, key.as_bytes());
    }
    put_u64(out, event.depth);
    put_u64(out, event.origin_server_ts);
    out.push(match event.id {
        Id::Hash(_) => 0,
        Id::HashStandard(_) => 1,
        Id::Named(_) => 2,
    });
    match &event.id {
        Id::Hash(hash) | Id::HashStandard(hash) => out.extend_from_slice(hash),
        Id::Named(name) => put_bytes(out, name.as_bytes()),
    }
    for &node in auth {
        // An event is placed after all its parents.
        put_u64(out, order.place(node).ok_or(Stop::Corrupt)?.into());
    }
    Ok(())
}

impl<'a> Placed<'a> {
    fn unpack(record: &'a [u8], auth: &mut Vec<u32>) -> Option<Placed<'a>> {
        auth.clear();
        let mut rest = Unpack::new(record);
        let place = u32::from_be_bytes(rest.array()?);
        let bits = rest.u8()?;
        let has = |bit| bits & bit != 0;
        let in_state = has(IN_STATE);
        if has(KNOWN) {
            return Some(Placed { place, in_state, known: EventNum(rest.u32()?), event: None });
        }
        let body = BodyNum(rest.u32()?);
        let kind = Kind(rest.u8()?);
        let sender = UserNum(rest.u32()?);
        let member = match has(MEMBER) {
            true => Some((Membership::from_code(rest.u8()?)?, UserNum(rest.u32()?), StateKeyNum(rest.u32()?))),
            false => None,
        };
        let state_key = if has(STATE_KEY) { Some((rest.text()?, rest.text()?)) } else { None };
        let (depth, origin_server_ts) = (rest.u64()?, rest.u64()?);
        let id = match rest.u8()? {
            0 => Id::Hash(rest.array()?),
            1 => Id::HashStandard(rest.array()?),
            _ => Id::Named(rest.text()?.to_owned()),
        };
        while !rest.is_empty() {
            auth.push(rest.u32()?);
        }
        let (needs_body, redacted) = (has(NEEDS_BODY), has(REDACTED));
        let event =
            PlacedEvent { body, needs_body, redacted, kind, sender, member, state_key, id, depth, origin_server_ts };
        Some(Placed { place, in_state, known: EventNum(0), event: Some(event) })
    }
}

/// Which number a place has: reserved in a row, but for events we held before.
struct Nums {
    first: EventNum,
    known: Vec<u32>,
}

impl Nums {
    fn of(&self, place: u32) -> EventNum {
        match self.known.get(place as usize) {
            Some(&num) if num != 0 => EventNum(num),
            _ => EventNum(self.first.0 + place),
        }
    }
}

/// An entry of the state on its way to the tree.
#[derive(Clone, Copy)]
struct InState {
    key: StateKeyNum,
    num: EventNum,
    kind: Kind,
    member: Option<(Membership, UserNum)>,
}

impl InState {
    fn pack(&self) -> [u8; 14] {
        let mut out = [0; 14];
        out[..4].copy_from_slice(&self.key.to_key());
        out[4..8].copy_from_slice(&self.num.to_key());
        out[8] = self.kind.0;
        if let Some((membership, user)) = self.member {
            out[9] = membership as u8;
            out[10..].copy_from_slice(&user.to_key());
        }
        out
    }

    fn unpack(record: &[u8]) -> Option<InState> {
        let member = match record.get(9)? {
            0 => None,
            code => Some((Membership::from_code(*code)?, UserNum::from_key(record.get(10..)?)?)),
        };
        let key = StateKeyNum::from_key(record)?;
        Some(InState { key, num: EventNum::from_key(record.get(4..)?)?, kind: Kind(record[8]), member })
    }
}

/// What judging made beside the rows.
struct Made {
    ids: Sorter,
    state: Sorter,
    create: EventNum,
    accepted: u64,
}

/// Rows on their way into the store.
struct Rows {
    room: RoomNum,
    batch: Vec<(EventNum, Row, Option<(String, String)>, bool)>,
    writes: Writes,
    ids: Sorter,
    state: Sorter,
    accepted: u64,
    hash_key: [u8; 16],
    _grant: Grant,
}

const ROW_BYTES: u64 = 300;
const BATCH_ROWS_MAX: usize = 1024;

impl Rows {
    fn new(settle: &Settle, room: RoomNum) -> Result<Rows, Stop> {
        let grant = settle.scratch.memory.try_take(BATCH_ROWS_MAX as u64 * ROW_BYTES)?;
        let left = settle.scratch.memory.limit().saturating_sub(settle.scratch.memory.used());
        // Of a room as large as can be, just what two sorters take at least.
        let share = (left / 3).clamp(SORTER_BYTES_MIN, SORT_BYTES);
        Ok(Rows {
            room,
            batch: Vec::new(),
            writes: Writes::new(settle),
            ids: Sorter::new(&settle.scratch, share)?,
            state: Sorter::new(&settle.scratch, share)?,
            accepted: 0,
            hash_key: *settle.store.read()?.hash_key(),
            _grant: grant,
        })
    }

    fn in_state(
        &mut self,
        key: StateKeyNum,
        num: EventNum,
        kind: Kind,
        member: Option<(Membership, UserNum)>,
    ) -> Result<(), Stop> {
        Ok(self.state.push(&InState { key, num, kind, member }.pack())?)
    }

    fn push(
        &mut self,
        nums: &Nums,
        place: u32,
        event: &PlacedEvent<'_>,
        in_state: bool,
        auth: &[u32],
    ) -> Result<(), Stop> {
        let num = nums.of(place);
        let member = event.member.map(|(membership, target, _)| (membership, target));
        if let Some((_, _, key)) = event.member
            && in_state
        {
            self.in_state(key, num, event.kind, member)?;
        }
        let mut record = [0; 20];
        record[..16].copy_from_slice(&hash128(&self.hash_key, &[event.id.text().as_bytes()]));
        record[16..].copy_from_slice(&num.to_key());
        self.ids.push(&record)?;
        let row = Row {
            room: self.room,
            body: event.body,
            id: event.id.clone(),
            kind: event.kind,
            state_key: event.member.map(|(_, _, key)| key),
            sender: event.sender,
            member,
            flags: Flags { outlier: true, redacted: event.redacted, ..Flags::default() },
            depth: event.depth,
            origin_server_ts: event.origin_server_ts,
            auth: auth.iter().map(|&place| nums.of(place)).collect(),
            before: None,
            order: None,
            redacted_by: None,
        };
        let other = event.state_key.map(|(kind, key)| (kind.to_owned(), key.to_owned()));
        self.batch.push((num, row, other, in_state));
        self.accepted += 1;
        if self.batch.len() >= self.writes.size().min(BATCH_ROWS_MAX) {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let mut batch = std::mem::take(&mut self.batch);
        let (mut batch, others) = self.writes.run(batch.len(), move |w| {
            let mut others = Vec::new();
            for (num, row, other, in_state) in &mut batch {
                if let Some((kind, key)) = other {
                    let key = state_tree::intern_key(w, kind, key)?;
                    row.state_key = Some(key);
                    if *in_state {
                        others.push((key, *num, row.kind));
                    }
                }
            }
            event::put_rows(w, batch.iter().map(|(num, row, _, _)| (*num, row)))?;
            Ok((batch, others))
        })?;
        for (key, num, kind) in others {
            self.in_state(key, num, kind, None)?;
        }
        batch.clear();
        self.batch = batch;
        Ok(())
    }

    fn finish(mut self, create: EventNum) -> Result<Made, Stop> {
        if !self.batch.is_empty() {
            self.flush()?;
        }
        Ok(Made { ids: self.ids, state: self.state, create, accepted: self.accepted })
    }
}

/// Bodies and names out of the store.
struct FromStore {
    store: Store,
    version: &'static RoomVersion,
    room_id: String,
    /// A snapshot and how often it was used. Renewed now and then, so that pages written meanwhile can be used again.
    read: RefCell<(Option<Read>, u32)>,
}

const READ_USES_MAX: u32 = 2000;

impl FromStore {
    fn with<T>(&self, f: impl FnOnce(&Read) -> store::Result<T>) -> Result<T, Stop> {
        let mut held = self.read.borrow_mut();
        if held.1 == 0 {
            *held = (Some(self.store.read()?), READ_USES_MAX);
        }
        held.1 -= 1;
        let read = held.0.as_ref().expect("taken above");
        Ok(f(read)?)
    }
}

impl Bodies for FromStore {
    type Error = Stop;

    fn event(&self, num: BodyNum, sender: UserNum, target: Option<UserNum>) -> Result<Event, Stop> {
        let stored = self.with(|read| event::stored_body(read, num))?;
        let opened = body::open(&stored).ok_or(Stop::Corrupt)?;
        let sender = self.with(|read| user::id_of(read, sender))?;
        let target = match target.filter(|_| opened.wants().target()) {
            Some(target) => self.with(|read| user::id_of(read, target))?,
            None => String::new(),
        };
        let known = body::Known { room_id: &self.room_id, sender: &sender, target: &target, ..body::Known::default() };
        let bytes = opened.restore(&known).ok_or(Stop::Corrupt)?;
        // Judged by its content and by the places of its auth events: neither its id nor theirs matter.
        let id = OwnedEventId::try_from("$id").map_err(|_| Stop::Corrupt)?;
        Event::from_stored(self.version, bytes, id).map_err(|_| Stop::Corrupt)
    }

    fn user(&self, num: UserNum) -> Result<OwnedUserId, Stop> {
        let id = self.with(|read| user::id_of(read, num))?;
        UserId::parse(&id).map_err(|_| Stop::Corrupt)
    }
}
