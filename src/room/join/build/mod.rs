//! From the log to a room: order, numbers, judgement, rows, indexes, state.
//!
//! Plain blocking passes, each front to back over the log or over a sorted file, each writing in short batches in the
//! order of the keys. Nothing refers to the new rows until the flip; a crash repeats the passes under the same numbers
//! and writes the same rows.
//!
//! ```text
//! log ─ order ─┬─ users by hash → numbers
//!              └─ events by place → judge → rows ─┬─ ids by hash → index
//!                                                  └─ state by key → tree, present state, members → servers by name
//! ```

use std::cell::RefCell;
use std::sync::Arc;

use ruma::{OwnedEventId, OwnedServerName};

use super::Error;
use super::cleanup;
use super::error::JoinError;
use super::graph::Bits;
use super::order::{Order, Scratch, Sorter};
use super::progress::{Phase, Progress};
use crate::base::StopWatch;
use crate::budget::spill::Spill;
use crate::matrix::RoomVersion;
use crate::room::append;
use crate::room::state;
use crate::store::row_encoding::put_u64;
use crate::store::tables::room::current_state::NewState;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Kind, Membership, Root};
use crate::store::tables::room::join;
use crate::store::tables::room::join::{JoinNum, Journal, Stage};
use crate::store::tables::room::staged;
use crate::store::tables::room::state_tree::{self, Entry};
use crate::store::tables::room::{self, member};
use crate::store::tables::user;
use crate::store::{self, EventNum, Get, RoomNum, Store, UserNum, Write, WriteError, hash128};
use authorize::{Authorizer, COLUMN_BYTES, Claim, Column, Columns, Role};
use lookup::{FromStore, Users};
use record::{InState, Made, Nums, Placed, pack};
use rows::{Dead, Rows, StagedLog, Writes, each};

pub mod authorize;
pub mod lookup;
pub mod record;
pub mod rows;

/// The memory of each sorter: this much, or what is left.
const SORT_BYTES: u64 = 1 << 20;
const ROWS_MAX: usize = 4096;
/// Local members of a room that are notified at the flip. They have accounts here.
const LOCALS_MAX: usize = 10_000;

/// The inputs of the passes.
pub struct RoomBuilder {
    pub store: Store,
    pub join: JoinNum,
    pub journal: Journal,
    pub version: &'static RoomVersion,
    /// Memory is the join's own part of the account.
    pub scratch: Scratch,
    pub progress: Arc<Progress>,
    pub server: OwnedServerName,
    /// The key of the hash that tells apart ids with several nodes.
    pub merge_key: [u8; 16],
}

/// A room that lacks only the flip.
pub struct BuiltRoom {
    pub room: RoomNum,
    pub root: Option<Root>,
    pub create: EventNum,
    pub joined: u64,
    pub invited: u64,
    pub events: u64,
    /// Users of this server in the state, without the joining user.
    pub locals: Vec<(UserNum, Membership, EventNum)>,
    /// Bodies of events that were left out.
    pub dead: Option<Spill>,
    pub journal: Journal,
}

impl RoomBuilder {
    /// Everything but the flip.
    pub fn run(mut self) -> Result<BuiltRoom, JoinError> {
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
        let mut built = self.state(made.state, room)?;
        built.create = made.create;
        built.events = made.accepted;
        built.dead = dead.spill;
        built.journal = self.journal;
        Ok(built)
    }

    /// In such a room every event comes after the create event, though it does not cite it.
    fn is_create_first(&self) -> bool {
        self.version.room_id_is_create_hash()
    }

    /// The room's number and the events', the same ones again after a crash.
    fn reserve(&mut self, count: u32) -> Result<(RoomNum, EventNum), JoinError> {
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
            join::set_journal(w, join, &journal)?;
            Ok::<_, store::Error>((room, first, journal))
        };
        let ((room, first, journal), _) = self.store.write_blocking(job).map_err(store::Error::from)?;
        self.journal = journal;
        self.clear(room)?;
        Ok((room, first))
    }

    /// Removes the present state that an earlier stay left of the room, a batch at a time.
    fn clear(&self, room: RoomNum) -> Result<(), JoinError> {
        loop {
            let job = move |w: &mut Write<'_>| {
                cleanup::check_not_here(w, room)?;
                Ok::<_, Error>(append::forget(w, room, ROWS_MAX / 2)?)
            };
            let (removed, _) = self.store.write_bulk_blocking(job).map_err(WriteError::into_inner)?;
            if removed < ROWS_MAX / 2 {
                return Ok(());
            }
        }
    }

    /// One reading of the log: the users it mentions, and the events in the state.
    fn survey(&self, order: &Order) -> Result<(Users, Bits), JoinError> {
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
            Ok::<_, JoinError>(())
        })?;
        Ok((self.meet(sorter)?, in_state))
    }

    /// Gives each user a number, in the order of their hashes.
    fn meet(&self, sorter: Sorter) -> Result<Users, JoinError> {
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
                let id = String::from_utf8(id.to_vec()).map_err(|_| JoinError::Corrupt)?;
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

    /// The events in their order, each with the fields for the rules and for its row.
    fn by_place(
        &self,
        order: &Order,
        users: &Users,
        in_state: &Bits,
        dead: &mut Dead,
    ) -> Result<(super::order::Sorted, bool), JoinError> {
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
            Ok::<_, JoinError>(())
        })?;
        Ok((sorter.finish()?, any_known))
    }

    /// Parents first: authorises each event, and writes a row for an allowed one.
    fn judge(
        &self,
        mut sorted: super::order::Sorted,
        count: u32,
        any_known: bool,
        room: RoomNum,
        first: EventNum,
        dead: &mut Dead,
    ) -> Result<Made, JoinError> {
        let bytes = u64::from(count) * (COLUMN_BYTES + if any_known { 4 } else { 0 });
        let _grant = self.scratch.memory.try_take(bytes)?;
        let mut columns = Columns::new(count);
        let mut nums = Nums { first, known: if any_known { vec![0; count as usize] } else { Vec::new() } };
        let (store, room_id) = (self.store.clone(), self.journal.room_id.clone());
        let reads = FromStore { store, version: self.version, room_id, read: RefCell::default() };
        let mut judge = Authorizer::new(self.version, reads);
        let mut rows = Rows::new(self, room)?;
        let (mut last, mut rejected, mut sample) = (None, 0u64, None);
        let mut auth = Vec::new();
        while let Some(record) = sorted.next()? {
            let one = Placed::unpack(record, &mut auth).ok_or(JoinError::Corrupt)?;
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
                Role::Create => Some(OwnedEventId::try_from(event.id.text()).map_err(|_| JoinError::Corrupt)?),
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
        let create = judge.create_place().ok_or_else(|| JoinError::Lying("the room has no create event".into()))?;
        tracing::info!(
            room_id = %self.journal.room_id, accepted = rows.accepted, rejected, bodies = judge.bodies_read,
            sample = sample.map(|reject| reject.to_string()), "authorised"
        );
        rows.finish(nums.of(create))
    }

    /// An event from before this join counts as its row says.
    fn known(
        &self,
        judge: &mut Authorizer<FromStore>,
        columns: &mut Columns,
        rows: &mut Rows,
        one: &Placed<'_>,
    ) -> Result<(), JoinError> {
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
    fn index(&self, ids: Sorter) -> Result<(), JoinError> {
        let mut sorted = ids.finish()?;
        let mut writes = Writes::new(self);
        loop {
            let mut batch = Vec::with_capacity(writes.size());
            while batch.len() < writes.size()
                && let Some(record) = sorted.next()?
            {
                let (hash, num) = record.split_first_chunk::<16>().ok_or(JoinError::Corrupt)?;
                batch.push((*hash, EventNum::from_key(num).ok_or(JoinError::Corrupt)?));
            }
            if batch.is_empty() {
                return Ok(());
            }
            writes.run(batch.len(), move |w| event::put_id_hashes(w, &batch))?;
        }
    }

    /// The tree, the present state, members and servers.
    fn state(&self, entries: Sorter, room: RoomNum) -> Result<BuiltRoom, JoinError> {
        let mut sorted = entries.finish()?;
        let mut servers = Sorter::new(&self.scratch, SORT_BYTES / 2)?;
        let mut built = BuiltRoom {
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
                Some(record) => Some(InState::unpack(record).ok_or(JoinError::Corrupt)?),
                None => None,
            };
            // Of two events for one key the later is in force; the last of a batch may still have a duplicate.
            if let Some(next) = &next
                && batch.last().is_some_and(|last| last.key == next.key)
            {
                batch.pop();
            } else if batch.len() >= writes.size() || next.is_none() && !batch.is_empty() {
                self.count(&batch, &mut built, &mut servers)?;
                let list = std::mem::take(&mut batch);
                let mut open = std::mem::take(&mut builder);
                builder = writes.run(list.len(), move |w| {
                    let entries: Vec<_> = list.iter().map(|one| Entry { key: one.key, event: one.num }).collect();
                    open.push(w, &entries)?;
                    let new =
                        |one: &InState| NewState { kind: one.kind, key: one.key, event: one.num, member: one.member };
                    append::build_from_state(w, room, &list.iter().map(new).collect::<Vec<_>>())?;
                    Ok(open)
                })?;
            }
            match next {
                Some(next) => batch.push(next),
                None => break,
            }
        }
        built.root = Some(writes.run(1, move |w| builder.finish(w))?);
        self.servers(servers, room)?;
        Ok(built)
    }

    fn count(&self, batch: &[InState], built: &mut BuiltRoom, servers: &mut Sorter) -> Result<(), JoinError> {
        let read = self.store.read()?;
        for one in batch {
            let Some((membership, user)) = one.member else { continue };
            match membership {
                Membership::Join => built.joined += 1,
                Membership::Invite => built.invited += 1,
                _ => {}
            }
            let id = user::id_of(&read, user)?;
            let server = id.split_once(':').map_or("", |(_, server)| server);
            if membership == Membership::Join {
                servers.push(server.as_bytes())?;
            }
            if server == self.server.as_str() && built.locals.len() < LOCALS_MAX && user::is_local(&read, user)? {
                built.locals.push((user, membership, one.num));
            }
        }
        Ok(())
    }

    fn servers(&self, servers: Sorter, room: RoomNum) -> Result<(), JoinError> {
        let mut sorted = servers.finish()?;
        let mut writes = Writes::new(self);
        let since = self.store.read()?.position()?;
        let mut batch: Vec<(String, u64)> = Vec::new();
        loop {
            let next = match sorted.next()? {
                Some(name) => Some(std::str::from_utf8(name).map_err(|_| JoinError::Corrupt)?),
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

// ---------------------------------------------------------------------------------------------------------- the log

// ------------------------------------------------------------------------------------------------------------ users

// ---------------------------------------------------------------------------------------------------------- records

const IN_STATE: u8 = 1;

const KNOWN: u8 = 32;
