//! The only place an event enters a room.
//!
//! By now the event has been checked; nothing here can refuse it. Everything that must be true once it exists is
//! written in this one transaction, the outbox included, so a power cut leaves the room before it or after it, never
//! between. Bounded by the number of local members and of state keys the event changes, never by the room.

use std::ops::ControlFlow;
use std::sync::Arc;

use ruma::{OwnedServerName, ServerName, UserId};

use super::state;
use super::state::fork::{Current, superseded};
use crate::matrix::{Event, json};
use crate::store::schema::EVENT;
use crate::store::tables::room::event::{self, Flags, Id, Kind, Membership, Root, Row};
use crate::store::tables::room::member::{self, Mine};
use crate::store::tables::room::relation::{self, Rel};
use crate::store::tables::room::txn::{self, Txn};
use crate::store::tables::room::{self, EXTREMITIES_MAX, HOLE_ORDERS, HOLES_MAX, Hole, Room, Status};
use crate::store::tables::room::{state_tree, timeline};
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::user;
use crate::store::{Change, Error, EventNum, Get, Position, Result, RoomNum, StateKeyNum, UserNum, Write};

pub mod redact;
pub mod unread;

/// Where and when we are, for what a write depends on beside its event.
#[derive(Clone)]
pub struct Here {
    /// This server: its users are the local ones.
    pub server: OwnedServerName,
    pub now_ms: u64,
    /// Its people's push rules.
    pub rules: Arc<unread::Rules>,
}

impl Here {
    pub fn is_local(&self, user_id: &str) -> bool {
        server_of(user_id) == self.server.as_str()
    }
}

/// The server a user id belongs to: what stands behind the first colon.
pub fn server_of(user_id: &str) -> &str {
    user_id.split_once(':').map_or("", |(_, server)| server)
}

/// The state before the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// What the room's state is when the write runs: for events that follow all extremities.
    Present,
    /// A tree that exists already: for events that came in elsewhere in the history.
    At(Root),
    /// Not known: outliers.
    Unknown,
}

/// Where the event stands in the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At its end.
    Newest,
    /// Before everything we have: fetched by backfilling, newest first.
    Older,
    /// In the hole with this bottom: the same.
    InHole(i64),
    /// Outside: an outlier.
    Nowhere,
}

/// A checked event on its way in.
#[derive(Clone, Debug)]
pub struct Append {
    pub room: RoomNum,
    pub event: Event,
    /// `rejected` and `soft_failed` as judged. `outlier` follows from the place, `redacted` from what is stored.
    pub flags: Flags,
    pub before: Before,
    pub current: Current,
    pub place: Place,
    /// The device's transaction, for events sent here by an app.
    pub txn: Option<Txn>,
    /// Post it to other servers: for our own events.
    pub outbound: bool,
}

impl Append {
    /// An accepted event that follows all extremities, as ours do.
    pub fn next(room: RoomNum, event: Event) -> Append {
        Append {
            room,
            event,
            flags: Flags::default(),
            before: Before::Present,
            current: Current::Follow,
            place: Place::Newest,
            txn: None,
            outbound: false,
        }
    }

    /// An event known without its place in the history: state and auth events of a join, late auth events.
    pub fn outlier(room: RoomNum, event: Event) -> Append {
        Append { before: Before::Unknown, current: Current::Keep, place: Place::Nowhere, ..Append::next(room, event) }
    }

    fn is_shown(&self) -> bool {
        !self.flags.rejected && !self.flags.soft_failed && self.place != Place::Nowhere
    }

    /// Whether it takes part in what the room is from now on.
    fn is_new(&self) -> bool {
        self.is_shown() && self.place == Place::Newest
    }
}

/// An event that is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    pub num: EventNum,
    /// Its place in the timeline, when it is shown.
    pub order: Option<i64>,
    pub at: Position,
}

/// Appends an event. The caller holds the room's lock.
///
/// An event that is stored already is not stored twice: an outlier gets its place, anything else stays as it is.
/// Always bounded: a handful of rows, and two for each local member.
pub fn append(w: &mut Write<'_>, here: &Here, new: Append) -> Result<Done> {
    let known = stored(w, &new)?;
    if let Some((num, row)) = &known
        && !state::event::is_same(w, row, new.room, &new.event)?
    {
        // Nobody appends one: it would get the other's columns, and stand for what it does not say.
        return Err(Error::corrupt(&EVENT, &num.to_key()));
    }
    if let Some((num, row)) = &known
        && !(row.flags.outlier && new.place != Place::Nowhere)
    {
        return Ok(Done { num: *num, order: row.order, at: w.position()? });
    }
    let mut room = room::get_of(w, new.room)?;
    let at = match leaves_hole(w, &room, &new)? {
        true => open_hole(w, &mut room),
        false => w.next_position(),
    };
    let (num, row) = store_event(w, &mut room, &new, known, at)?;
    if let Some(order) = row.order {
        timeline::put(w, new.room, order, num)?;
        relate(w, new.room, &new.event, order, num)?;
    }
    let is_followed = new.place != Place::Nowhere && event::take_followed(w, new.room, new.event.id().as_str())?;
    if new.is_shown() {
        note_followed(w, &room, &new)?;
    }
    let mut wake = Vec::new();
    if new.is_new() {
        follow(w, &mut room, &new.event, num, is_followed)?;
        wake = change_state(w, here, &mut room, &new, num, &row, at)?;
        add_local_joined(w, new.room, &mut wake)?;
        unread::count(w, here, &room, &new, &row)?;
        room.latest = at;
    }
    redact::settle(w, &new.event, num, &row, new.is_shown())?;
    relate_waiting(w, new.room, &new.event, num)?;
    if let Some(txn) = &new.txn {
        txn::put(w, txn, num, here.now_ms)?;
    }
    let outbound = new.outbound && post(w, here, &new, num, &row, at)?;
    room::put(w, new.room, &room)?;
    w.announce(Change { users: wake, room: Some(new.room), outbound, ..Change::default() });
    Ok(Done { num, order: row.order, at })
}

/// Whether something is missing between what we have of the room and an event: it stands on what we do not have, and
/// deeper than that alone explains. Forks from before our time in the room are no holes.
fn leaves_hole(get: &impl Get, room: &Room, new: &Append) -> Result<bool> {
    // A room joined again begins without extremities.
    let is_beyond = new.event.depth() > room.depth + 1 || room.extremities.is_empty();
    if !new.is_new() || !is_beyond || timeline::after(get, new.room, i64::MIN)?.is_none() {
        return Ok(false);
    }
    for prev in new.event.prev_events() {
        if !state::event::stored(get, prev.as_str())?.is_some_and(|(_, row)| state::event::is_placed(&row)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Leaves orders free for what is missing; answers the position behind them.
fn open_hole(w: &mut Write<'_>, room: &mut Room) -> Position {
    let bottom = w.next_position().0 as i64;
    let at = w.skip_positions(HOLE_ORDERS);
    if room.holes.len() == HOLES_MAX {
        room.holes.remove(0);
    }
    room.holes.push(Hole { bottom, next: at.0 as i64 });
    at
}

fn stored(get: &impl Get, new: &Append) -> Result<Option<(EventNum, Row)>> {
    match event::num(get, new.event.id().as_str())? {
        Some(num) => Ok(Some((num, event::row_of(get, num)?))),
        None => Ok(None),
    }
}

/// Writes the event's rows, or gives the outlier we have its place.
fn store_event(
    w: &mut Write<'_>,
    room: &mut Room,
    new: &Append,
    known: Option<(EventNum, Row)>,
    at: Position,
) -> Result<(EventNum, Row)> {
    let before = match new.before {
        Before::Present => room.state,
        Before::At(root) => Some(root),
        Before::Unknown => None,
    };
    let order = match new.place {
        _ if !new.is_shown() => None,
        Place::Newest => Some(at.0 as i64),
        Place::Older => {
            room.min_order = room.min_order.min(0) - 1;
            Some(room.min_order)
        }
        Place::InHole(bottom) => {
            let hole = room.holes.iter_mut().find(|hole| hole.bottom == bottom && hole.next - 1 > bottom);
            hole.map(|hole| {
                hole.next -= 1;
                hole.next
            })
        }
        Place::Nowhere => None,
    };
    let guessed = matches!(new.place, Place::Older | Place::InHole(_));
    let flags = Flags { outlier: new.place == Place::Nowhere, redacted: false, guessed, ..new.flags };
    if let Some((num, mut row)) = known {
        let flags = Flags { redacted: row.flags.redacted, ..flags };
        (row.before, row.order, row.flags) = (before, order, flags);
        event::put_row(w, num, &row)?;
        return Ok((num, row));
    }
    let row = row_of(w, new.room, &new.event)?;
    let row = Row { flags, before, order, ..row };
    room.events += 1;
    room.bytes += new.event.to_federation().len() as u64;
    if new.place != Place::Nowhere {
        room.depth = room.depth.max(new.event.depth());
    }
    let (num, row) = event::insert(w, row, new.event.to_federation())?;
    if row.kind == Kind::CREATE && room.create.is_none() && !flags.rejected {
        room.create = Some(num);
    }
    Ok((num, row))
}

/// An event's columns as far as the event itself says them: everything but flags, place and state before. Interns
/// whom it mentions. Auth events that are not stored are left out; the body then keeps the event's own list.
pub fn row_of(w: &mut Write<'_>, room: RoomNum, event: &Event) -> Result<Row> {
    let kind = Kind::of(event.kind());
    let state_key = match event.state_key() {
        Some(state_key) => Some(state_tree::intern_key(w, event.kind(), state_key)?),
        None => None,
    };
    let member = match event.state_key() {
        Some(target) if kind == Kind::MEMBER => member_of(w, event, target)?,
        _ => None,
    };
    let mut auth = Vec::new();
    for id in event.auth_events() {
        auth.extend(event::num(w, id.as_str())?);
    }
    Ok(Row {
        room,
        body: crate::store::BodyNum(0),
        id: Id::parse(event.id().as_str()),
        kind,
        state_key,
        sender: user::intern(w, event.sender().as_str())?,
        member,
        flags: Flags::default(),
        depth: event.depth(),
        origin_server_ts: event.origin_server_ts(),
        auth,
        before: None,
        order: None,
        redacted_by: None,
    })
}

fn member_of(w: &mut Write<'_>, event: &Event, target: &str) -> Result<Option<(Membership, UserNum)>> {
    let Some(membership) = event.membership().as_deref().and_then(Membership::of) else { return Ok(None) };
    if UserId::parse(target).is_err() {
        return Ok(None);
    }
    Ok(Some((membership, user::intern(w, target)?)))
}

/// Remembers what the event follows that has no place here: when that comes, it is no end of the history.
fn note_followed(w: &mut Write<'_>, room: &Room, new: &Append) -> Result<()> {
    for prev in new.event.prev_events() {
        let stored = event::num(w, prev.as_str())?;
        let is_placed = match stored {
            Some(num) => room.extremities.contains(&num) || state::event::is_placed(&event::row_of(w, num)?),
            None => false,
        };
        if !is_placed {
            event::set_followed(w, new.room, prev.as_str())?;
        }
    }
    Ok(())
}

/// The event takes the place of what it follows among the extremities; or nobody does, when others that follow it are here. A
/// room is never left without any.
fn follow(w: &mut Write<'_>, room: &mut Room, event: &Event, num: EventNum, is_followed: bool) -> Result<()> {
    let superseded = superseded(w, &room.extremities, event)?;
    room.extremities.retain(|extremity| !superseded.contains(extremity));
    if is_followed && !room.extremities.is_empty() {
        return Ok(());
    }
    room.extremities.push(num);
    if room.extremities.len() > EXTREMITIES_MAX {
        // The oldest goes: its state was part of every resolution since it came, so only its place as a parent of our
        // next event is lost, which other servers make up for with their own.
        room.extremities.sort_unstable();
        room.extremities.remove(0);
    }
    Ok(())
}

/// Makes the event's part of the present state true. Answers the local users whose own membership changed.
fn change_state(
    w: &mut Write<'_>,
    here: &Here,
    room: &mut Room,
    new: &Append,
    num: EventNum,
    row: &Row,
    at: Position,
) -> Result<Vec<UserNum>> {
    let own = row.state_key.map(|key| (key, Some(num)));
    let changes: Vec<_> = match &new.current {
        Current::Follow => own.into_iter().collect(),
        Current::Resolved { changes, wins } => changes.iter().copied().chain(own.filter(|_| *wins)).collect(),
        Current::Keep => Vec::new(),
    };
    set_present_state(w, here, new.room, room, &changes, at)
}

/// Changes keys of a room's present state and everything that is derived from it: the materialised state, members,
/// counts, servers, local users' own rooms, the public list, and the state log at position `at`.
///
/// Answers the local users whose membership changed. The caller writes the room's row. Bounded by the changes.
pub fn set_present_state(
    w: &mut Write<'_>,
    here: &Here,
    num: RoomNum,
    room: &mut Room,
    changes: &[(StateKeyNum, Option<EventNum>)],
    at: Position,
) -> Result<Vec<UserNum>> {
    let listed = room.public.then_some(room.joined);
    let mut effective = Vec::with_capacity(changes.len());
    let mut touched = Vec::new();
    for &(key, after) in changes {
        let before = match room.state {
            Some(root) => state_tree::get(w, root, key)?,
            None => None,
        };
        if before == after {
            continue;
        }
        effective.push((key, after));
        touched.extend(set_key(w, here, num, room, key, (before, after), at)?);
    }
    if effective.is_empty() {
        return Ok(touched);
    }
    let root = state_tree::set(w, room.state, &effective)?;
    room.state = Some(root);
    timeline::put_state(w, num, at, root)?;
    room::set_public(w, num, listed, room.public.then_some(room.joined))?;
    Ok(touched)
}

/// One key of the present state, from one event to another.
fn set_key(
    w: &mut Write<'_>,
    here: &Here,
    num: RoomNum,
    room: &mut Room,
    key: StateKeyNum,
    (before, after): (Option<EventNum>, Option<EventNum>),
    at: Position,
) -> Result<Option<UserNum>> {
    let before = before.map(|event| event::row_of(w, event)).transpose()?;
    let after = match after {
        Some(event) => Some((event, event::row_of(w, event)?)),
        None => None,
    };
    let Some(kind) = after.as_ref().map(|(_, row)| row.kind).or(before.as_ref().map(|row| row.kind)) else {
        return Ok(None);
    };
    member::set_state(w, num, kind, key, after.as_ref().map(|(event, _)| *event))?;
    if kind != Kind::MEMBER {
        return Ok(None);
    }
    let before = before.and_then(|row| row.member);
    let after = after.and_then(|(event, row)| row.member.map(|(membership, target)| (membership, target, event)));
    let Some(target) = after.map(|(_, target, _)| target).or(before.map(|(_, target)| target)) else {
        return Ok(None);
    };
    let before = before.map(|(membership, _)| membership);
    let after = after.map(|(membership, _, event)| (membership, event));
    move_member(w, here, num, room, target, before, after, at)
}

/// A user's membership changes: rows, counts, servers; and, for a local user, what they are to the room.
#[allow(clippy::too_many_arguments)] // one fact with its two sides; a struct would be named once and taken apart once
fn move_member(
    w: &mut Write<'_>,
    here: &Here,
    num: RoomNum,
    room: &mut Room,
    target: UserNum,
    before: Option<Membership>,
    after: Option<(Membership, EventNum)>,
    at: Position,
) -> Result<Option<UserNum>> {
    member::set(w, num, target, before, after)?;
    let membership = after.map(|(membership, _)| membership);
    let change = |which| i64::from(membership == Some(which)) - i64::from(before == Some(which));
    room.joined = room.joined.saturating_add_signed(change(Membership::Join));
    room.invited = room.invited.saturating_add_signed(change(Membership::Invite));
    let user_id = user::id_of(w, target)?;
    if change(Membership::Join) != 0 {
        member::count_server(w, num, server_of(&user_id), change(Membership::Join), at)?;
    }
    if !here.is_local(&user_id) {
        return Ok(None);
    }
    set_mine(w, num, target, before, after, at)?;
    room.status = match member::server(w, num, here.server.as_str())? {
        Some(_) => Status::Resident,
        None => Status::Left,
    };
    Ok(Some(target))
}

/// What a local user is to a room, after a change of membership that we hold the event of.
fn set_mine(
    w: &mut Write<'_>,
    room: RoomNum,
    user: UserNum,
    before: Option<Membership>,
    after: Option<(Membership, EventNum)>,
    at: Position,
) -> Result<()> {
    let old = member::mine(w, user, room)?;
    let Some((membership, event)) = after else {
        return member::remove_mine(w, user, room);
    };
    let was_joined = before == Some(Membership::Join);
    let stays = before == Some(membership);
    let left_at = match membership == Membership::Join || !was_joined {
        true => old.and_then(|old| old.left_at),
        false => Some(at),
    };
    let mine = Mine {
        membership,
        // A changed display name is news in the timeline, not a new membership.
        since: old.filter(|_| stays).map_or(at, |old| old.since),
        event: Some(event),
        forgotten: false,
        outside: false,
        before: if stays { old.and_then(|old| old.before) } else { before },
        left_at,
    };
    member::set_stripped(w, user, room, None)?;
    if membership != Membership::Join {
        crate::store::tables::room::unread::clear(w, user, room)?;
    }
    member::set_mine(w, user, room, &mine)
}

pub(super) fn add_local_joined(get: &impl Get, room: RoomNum, users: &mut Vec<UserNum>) -> Result<()> {
    for user in local_joined(get, room)? {
        if !users.contains(&user) {
            users.push(user);
        }
    }
    Ok(())
}

/// The joined users of this server. Bounded by its accounts.
pub fn local_joined(get: &impl Get, room: RoomNum) -> Result<Vec<UserNum>> {
    let mut joined = Vec::new();
    member::list_local(get, room, &mut |user, membership| {
        if membership == Membership::Join {
            joined.push(user);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(joined)
}

/// Remembers which event this one annotates, replaces or answers. That event may come later: what is fetched from before our
/// time comes newest first.
fn relate(w: &mut Write<'_>, room: RoomNum, event: &Event, order: i64, num: EventNum) -> Result<()> {
    let Some((rel, target)) = stated(event) else { return Ok(()) };
    match event::num(w, &target)? {
        Some(target) if is_of(w, room, target)? => relation::put(w, room, target, rel, order, num),
        Some(_) => Ok(()),
        None => relation::add_pending(w, room, &target, rel, num),
    }
}

/// Relates what has been waiting for an event. What was redacted meanwhile relates to nothing.
fn relate_waiting(w: &mut Write<'_>, room: RoomNum, event: &Event, target: EventNum) -> Result<()> {
    for (rel, num) in relation::take_pending(w, room, event.id().as_str())? {
        if let Some(row) = event::row(w, num)?
            && let Some(order) = row.order.filter(|_| row.room == room && !row.flags.redacted)
        {
            relation::put(w, room, target, rel, order, num)?;
        }
    }
    Ok(())
}

/// The relation an event states, when its target is stored and in the same room.
pub fn relation_of(get: &impl Get, room: RoomNum, event: &Event) -> Result<Option<(Rel, EventNum)>> {
    let Some((rel, target)) = stated(event) else { return Ok(None) };
    let Some(target) = event::num(get, &target)? else { return Ok(None) };
    Ok(is_of(get, room, target)?.then_some((rel, target)))
}

/// How an event says it relates to another, and to which.
fn stated(event: &Event) -> Option<(Rel, String)> {
    let relates = json::get(event.content().as_bytes(), "m.relates_to")?;
    let (rel, target) = (json::get_text(relates, "rel_type")?, json::get_text(relates, "event_id")?);
    Some((Rel::of(&rel), target.into_owned()))
}

fn is_of(get: &impl Get, room: RoomNum, num: EventNum) -> Result<bool> {
    Ok(event::row(get, num)?.is_some_and(|row| row.room == room))
}

/// One row for all servers in the room, if there are others. A user who left with this event may have been their
/// server's last one here: that server hears of it too. Answers whether there was anybody to tell.
fn post(w: &mut Write<'_>, here: &Here, new: &Append, num: EventNum, row: &Row, at: Position) -> Result<bool> {
    let mut also = Vec::new();
    if let Some((membership, target)) = row.member
        && matches!(membership, Membership::Leave | Membership::Ban)
    {
        let target = user::id_of(w, target)?;
        let server = server_of(&target);
        let is_name = <&ServerName>::try_from(server).is_ok();
        if is_name && !here.is_local(&target) && member::server(w, new.room, server)?.is_none() {
            also.push(server.to_owned());
        }
    }
    if also.is_empty() && !has_other_servers(w, new.room, &here.server)? {
        return Ok(false);
    }
    outbox::post(w, at, &Outbound::Event { room: new.room, event: num, also })?;
    Ok(true)
}

/// Whether servers other than this one have joined users. Two rows at most.
pub fn has_other_servers(get: &impl Get, room: RoomNum, here: &ServerName) -> Result<bool> {
    let mut others = false;
    member::list_servers(get, room, None, &mut |server, _| {
        others = server != here.as_str();
        Ok(if others { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(others)
}
