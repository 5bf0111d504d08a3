//! What is next for a service: the events behind its position, in the order in which they came, and what else there is.
//!
//! Nothing is queued. The timelines of the rooms are the log: a service that is dead for a month costs one row. Which rooms
//! concern it is found by its namespaces, and from which event on by the memberships of its users, so that it is told
//! nothing of before one of them came and everything up to the leave of the last.
//!
//! Bounds of one look: [`EVENTS_MAX`] events kept at a time; of each room that changed, its local members' rows, and those
//! events. A look at everything passes all rooms, a row each, and reads on where something is new.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ruma::UserId;

use super::noted::News;
use crate::remote::service::Service;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::{self, directory, event, member, receipt, timeline, user_room};
use crate::store::tables::server::service::Pending;
use crate::store::tables::user::{self, device, to_device};
use crate::store::{self, EventNum, Get, Position, Read, RoomNum, UserNum};

/// Events of one transaction, as in Synapse.
pub const EVENTS_MAX: usize = 100;
const MESSAGES_MAX: usize = 100;
const MESSAGES_BYTES_MAX: usize = 32 * 1024;
/// Of more rooms that changed, all rooms of a user are looked at instead.
const FEW_ROOMS: usize = 64;
/// Users of one transaction whose devices changed.
const CHANGED_MAX: usize = 100;
/// Changes of devices looked at in one go.
const CHANGES_LOOKED_MAX: usize = 1_000;
/// Receipts of one room in one transaction, the newest.
const RECEIPTS_MAX: usize = 50;
/// What is not stored, of one transaction.
pub const EPHEMERAL_BYTES_MAX: usize = 16 * 1024;
/// Aliases of a room that are looked at.
const ALIASES_MAX: usize = 100;

/// What a look found.
#[derive(Debug, Default)]
pub struct Next {
    /// Without id. Its `to` is where the next look begins.
    pub pending: Pending,
    /// There may be more behind it, for which the same is to be looked at again.
    pub more: bool,
}

/// Looks for what is next behind `from`.
pub fn find(get: &Read, service: &Service, from: Position, news: &News) -> store::Result<Next> {
    let now = if news.all { get.position()? } else { news.upto.max(from) };
    let mut look = Look { get, service, from, to: now, more: false, found: Next::default() };
    if news.all {
        look.everything()?;
    } else {
        look.some(news)?;
    }
    let to = look.to.0;
    look.found.pending.to = to;
    // What came after the end of the events comes with the next.
    look.found.pending.messages.retain(|(_, _, at, is_alone)| *is_alone || *at <= to);
    look.found.more = look.more;
    Ok(look.found)
}

struct Look<'a> {
    get: &'a Read,
    service: &'a Service,
    from: Position,
    /// Lowered when there is too much for one transaction.
    to: Position,
    more: bool,
    found: Next,
}

/// The oldest of some messages, as many as fit a transaction.
#[derive(Default)]
struct Oldest {
    messages: BTreeMap<Position, (UserNum, String, usize)>,
    is_cut: bool,
}

impl Oldest {
    /// Answers whether a later one may have a place.
    fn add(&mut self, at: Position, message: (UserNum, String, usize)) -> bool {
        self.messages.insert(at, message);
        if self.messages.len() > MESSAGES_MAX {
            self.is_cut = true;
            return self.messages.pop_last().is_some_and(|(newest, _)| newest != at);
        }
        true
    }

    /// Leaves out the newest until the rest fits, of which there is at least one. Answers whether any is left out.
    fn fit(&mut self) -> bool {
        let mut bytes: usize = self.messages.values().map(|(.., bytes)| bytes).sum();
        while bytes > MESSAGES_BYTES_MAX && self.messages.len() > 1 {
            bytes -= self.messages.pop_last().map_or(0, |(_, (.., bytes))| bytes);
            self.is_cut = true;
        }
        self.is_cut
    }
}

/// From which event on a room's events concern a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interest {
    None,
    All,
    /// Those from one position on, those up to another, and those that are about its own users.
    Some {
        from: Position,
        upto: Position,
    },
}

impl Look<'_> {
    fn some(&mut self, news: &News) -> store::Result<()> {
        let own: Vec<UserNum> =
            news.users.iter().copied().filter_map(|user| self.own(user).transpose()).collect::<store::Result<_>>()?;
        if self.service.wants_ephemeral() {
            self.messages(&own)?;
        }
        self.changed_devices()?;
        let mut rooms = Vec::new();
        for room in &news.rooms {
            let interest = self.interest(*room)?;
            if interest != Interest::None {
                rooms.push((*room, interest));
            }
        }
        self.events(&rooms)?;
        for user in own {
            self.invites(user, Some(news))?;
        }
        if self.service.wants_ephemeral() {
            for (room, _) in rooms {
                self.receipts(room)?;
            }
        }
        Ok(())
    }

    fn everything(&mut self) -> store::Result<()> {
        if self.service.wants_ephemeral() {
            let mut own = to_device::users_waiting(self.get)?;
            let mut failed = None;
            own.retain(|user| match self.own(*user) {
                Ok(own) => own.is_some(),
                Err(error) => failed.replace(error).is_some(),
            });
            failed.map_or(Ok(()), Err)?;
            self.messages(&own)?;
        }
        self.changed_devices()?;
        let (mut rooms, from) = (Vec::new(), self.from);
        room::list(self.get, &mut |num, row| {
            if row.latest > from {
                rooms.push(num);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let mut kept = Vec::with_capacity(rooms.len().min(1024));
        for num in rooms {
            let interest = self.interest(num)?;
            if interest != Interest::None {
                kept.push((num, interest));
            }
        }
        self.events(&kept)?;
        // Of rooms with something new, as many as a transaction has room for.
        if self.service.wants_ephemeral() {
            for (room, _) in kept.iter().take(FEW_ROOMS) {
                self.receipts(*room)?;
            }
        }
        let mut outside = Vec::new();
        user_room::list_stripped(self.get, &mut |user, _| {
            if outside.last() != Some(&user) {
                outside.push(user);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for user in outside {
            if self.own(user)?.is_some() {
                self.invites(user, None)?;
            }
        }
        Ok(())
    }

    /// The user, if the service may be it.
    fn own(&self, user: UserNum) -> store::Result<Option<UserNum>> {
        Ok(is_own(self.get, self.service, user)?.then_some(user))
    }

    fn interest(&self, num: RoomNum) -> store::Result<Interest> {
        interest(self.get, self.service, num, self.from)
    }

    /// The oldest events of some rooms behind the position, and where they end.
    fn events(&mut self, rooms: &[(RoomNum, Interest)]) -> store::Result<()> {
        let mut oldest: BTreeMap<i64, EventNum> = BTreeMap::new();
        let (from, mut is_cut) = (order(self.from), false);
        for (num, interest) in rooms {
            timeline::forward(self.get, *num, from, order(self.to), &mut |at, event| {
                // Later ones have no place, nor those that follow here.
                if oldest.len() >= EVENTS_MAX && oldest.last_key_value().is_some_and(|(newest, _)| *newest < at) {
                    is_cut = true;
                    return Ok(ControlFlow::Break(()));
                }
                if !self.concerns(*interest, at, event)? {
                    return Ok(ControlFlow::Continue(()));
                }
                oldest.insert(at, event);
                if oldest.len() > EVENTS_MAX {
                    oldest.pop_last();
                    is_cut = true;
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        if is_cut && let Some((newest, _)) = oldest.last_key_value() {
            self.more = true;
            self.to = self.to.min(position(*newest));
        }
        oldest.retain(|at, _| position(*at) <= self.to);
        self.found.pending.events = oldest.into_values().map(|event| event.0).collect();
        Ok(())
    }

    fn concerns(&self, interest: Interest, at: i64, num: EventNum) -> store::Result<bool> {
        let (since, upto) = match interest {
            Interest::All => return Ok(true),
            Interest::None => return Ok(false),
            Interest::Some { from, upto } => (from, upto),
        };
        let at = position(at);
        if at >= since || at <= upto {
            return Ok(true);
        }
        let row = event::row_of(self.get, num)?;
        let target = row.member.map(|(_, target)| target);
        for user in target.into_iter().chain([row.sender]) {
            if user::is_local(self.get, user)? && self.own(user)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Invites and their ends in rooms that we do not hold.
    fn invites(&mut self, user: UserNum, news: Option<&News>) -> store::Result<()> {
        let (from, to) = (self.from, self.to);
        let is_new = |mine: &user_room::Mine| {
            mine.outside && mine.membership == Membership::Invite && mine.since > from && mine.since <= to
        };
        let mut found = Vec::new();
        match news.filter(|news| news.rooms.len() <= FEW_ROOMS) {
            Some(news) => {
                for room in &news.rooms {
                    if user_room::mine(self.get, user, *room)?.is_some_and(|mine| is_new(&mine)) {
                        found.push((user.0, room.0));
                    }
                }
            }
            None => user_room::list_mine(self.get, user, None, &mut |room, mine| {
                if is_new(&mine) {
                    found.push((user.0, room.0));
                }
                Ok(ControlFlow::Continue(()))
            })?,
        }
        let left = EVENTS_MAX.saturating_sub(self.found.pending.invites.len());
        self.found.pending.invites.extend(found.into_iter().take(left));
        Ok(())
    }

    /// The oldest messages to the devices of own users. Those for a user who is the service's alone wait until it has them; of
    /// others' it is told what came since, and what does not fit is told next.
    fn messages(&mut self, users: &[UserNum]) -> store::Result<()> {
        let (mut alone, mut shared) = (Oldest::default(), Oldest::default());
        for num in users {
            let is_alone = is_alone(self.get, self.service, *num)?;
            let since = if is_alone { Position(0) } else { self.from };
            let list = if is_alone { &mut alone } else { &mut shared };
            for id in device::ids(self.get, *num)? {
                to_device::each(self.get, *num, &id, since, self.to, &mut |at, message| {
                    Ok(match list.add(at, (*num, id.clone(), message.len())) {
                        true => ControlFlow::Continue(()),
                        false => ControlFlow::Break(()),
                    })
                })?;
            }
        }
        self.more |= alone.fit();
        if shared.fit()
            && let Some((last, _)) = shared.messages.last_key_value()
        {
            self.more = true;
            self.to = self.to.min(*last);
        }
        for (list, is_alone) in [(alone, true), (shared, false)] {
            let told = list.messages.into_iter().map(|(at, (user, id, _))| (user.0, id, at.0, is_alone));
            self.found.pending.messages.extend(told);
        }
        Ok(())
    }

    /// Users whose devices changed, of those who share a room with the service's users or are some.
    fn changed_devices(&mut self) -> store::Result<()> {
        if !self.service.keys {
            return Ok(());
        }
        let (mut changed, mut looked, mut cut) = (Vec::new(), 0, None);
        device::changes(self.get, self.from, self.to, &mut |at, user| {
            looked += 1;
            if looked > CHANGES_LOOKED_MAX || changed.len() >= CHANGED_MAX {
                cut = Some(at);
                return Ok(ControlFlow::Break(()));
            }
            if shares(self.get, self.service, user)? {
                changed.push(user.0);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some(at) = cut {
            self.more = true;
            self.to = self.to.min(Position(at.0.saturating_sub(1)));
        }
        self.found.pending.changed = changed;
        Ok(())
    }

    /// The newest receipts of a room, as one event.
    fn receipts(&mut self, num: RoomNum) -> store::Result<()> {
        let mut marks = Vec::new();
        receipt::list_newest(self.get, num, self.from, self.to, &mut |whose, mark| {
            let is_told = match whose.kind {
                receipt::Kind::Read => true,
                receipt::Kind::Private => is_own(self.get, self.service, whose.user)?,
                receipt::Kind::FullyRead => false,
            };
            if is_told {
                marks.push((whose, mark));
            }
            Ok(if marks.len() < RECEIPTS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        if marks.is_empty() {
            return Ok(());
        }
        marks.sort_by(|(a, x), (b, y)| (&x.event_id, a.kind.as_str()).cmp(&(&y.event_id, b.kind.as_str())));
        let mut content = serde_json::Map::new();
        for (whose, mark) in marks {
            let mut told = serde_json::json!({ "ts": mark.ts });
            if !whose.thread.is_empty() {
                told["thread_id"] = whose.thread.into();
            }
            let of_event = content.entry(mark.event_id).or_insert_with(|| serde_json::json!({}));
            of_event[whose.kind.as_str()][user::id_of(self.get, whose.user)?] = told;
        }
        let room_id = room::get_of(self.get, num)?.id;
        let event = serde_json::json!({ "type": "m.receipt", "room_id": room_id, "content": content });
        add(&mut self.found.pending.ephemeral, &event.to_string());
        Ok(())
    }
}

/// Adds an event that is not stored, while there is room for it.
pub fn add(list: &mut String, event: &str) {
    if list.len() + event.len() < EPHEMERAL_BYTES_MAX {
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(event);
    }
}

fn order(position: Position) -> i64 {
    i64::try_from(position.0).unwrap_or(i64::MAX - 1)
}

fn position(order: i64) -> Position {
    Position(u64::try_from(order).unwrap_or(0))
}

/// Whether a service may be a user.
pub fn is_own(get: &impl Get, service: &Service, num: UserNum) -> store::Result<bool> {
    let id = user::id_of(get, num)?;
    Ok(<&UserId>::try_from(id.as_str()).is_ok_and(|id| service.may_be(id)) && user::is_local(get, num)?)
}

fn is_alone(get: &impl Get, service: &Service, num: UserNum) -> store::Result<bool> {
    let id = user::id_of(get, num)?;
    Ok(<&UserId>::try_from(id.as_str()).is_ok_and(|id| service.is_alone(id)))
}

/// From which event on a room concerns a service. Looks at the room's local members until one says that all behind `from`
/// do.
fn interest(get: &Read, service: &Service, num: RoomNum, from: Position) -> store::Result<Interest> {
    if !service.rooms.is_empty()
        && let Some(id) = room::id(get, num)?
        && service.rooms.has(&id)
    {
        return Ok(Interest::All);
    }
    if !service.aliases.is_empty()
        && directory::aliases(get, num, ALIASES_MAX)?.iter().any(|alias| service.aliases.has(alias))
    {
        return Ok(Interest::All);
    }
    let (mut since, mut upto, mut any, mut all) = (Position(u64::MAX), Position(0), false, false);
    member::list_local(get, num, &mut |user, _| {
        if !is_own(get, service, user)? {
            return Ok(ControlFlow::Continue(()));
        }
        let Some(mine) = user_room::mine(get, user, num)? else { return Ok(ControlFlow::Continue(())) };
        any = true;
        if mine.membership == Membership::Join {
            since = since.min(mine.since);
            all = since <= from;
        }
        upto = upto.max(mine.left_at.unwrap_or_default());
        Ok(if all { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(match (all, any) {
        (true, _) => Interest::All,
        (false, true) => Interest::Some { from: since, upto },
        (false, false) => Interest::None,
    })
}

/// Whether a room concerns a service now.
pub fn concerns_room(get: &Read, service: &Service, num: RoomNum) -> store::Result<bool> {
    Ok(match interest(get, service, num, Position(u64::MAX - 1))? {
        Interest::All => true,
        Interest::None => false,
        Interest::Some { from, .. } => from < Position(u64::MAX),
    })
}

/// Whether a user is a service's or shares a room with one: of this server by the user's rooms, of another by those of the
/// service's sender, in which bridges have it.
pub fn shares(get: &Read, service: &Service, num: UserNum) -> store::Result<bool> {
    let is_local = user::is_local(get, num)?;
    if is_local && is_own(get, service, num)? {
        return Ok(true);
    }
    let of = if is_local { Some(num) } else { user::num(get, service.sender.as_str())? };
    let Some(of) = of else { return Ok(false) };
    let mut shares = false;
    user_room::list_mine(get, of, None, &mut |room, mine| {
        if mine.membership == Membership::Join {
            shares = match is_local {
                true => concerns_room(get, service, room)?,
                false => member::is_joined(get, room, num)?,
            };
        }
        Ok(if shares { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(shares)
}

/// Own users in a room, at most `most`.
pub fn own_in(get: &Read, service: &Service, num: RoomNum, most: usize, into: &mut Vec<UserNum>) -> store::Result<()> {
    member::list_local(get, num, &mut |user, membership| {
        if membership == Membership::Join && !into.contains(&user) && is_own(get, service, user)? {
            into.push(user);
        }
        Ok(if into.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })
}
