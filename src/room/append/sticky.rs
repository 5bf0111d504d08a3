//! Sticky events (MSC4354): an event that says so is told to everybody who is joined, for an hour at most.
//!
//! Whether the room's present state allows them is judged again whenever the memberships change, so that all servers come
//! to tell the same ones. Those of who is no longer joined are held back, and so is one that was soft-failed as it came;
//! when the state allows one again, it is told then.

use std::ops::ControlFlow;

use ruma::ServerName;
use serde_json::value::RawValue;

use super::derived::{Appended, Derived, StateChange};
use super::new_event::{Place, server_of};
use crate::matrix::draft::STICKY;
use crate::matrix::{Event, RoomVersion, auth, json};
use crate::room::error::Error;
use crate::room::state::StateView;
use crate::room::state::event::load_row;
use crate::store::tables::room::event_row::{Kind, Membership, Row};
use crate::store::tables::room::sticky::{self, Sticky};
use crate::store::tables::room::{event, member};
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::user;
use crate::store::{Change, Get, Result, RoomNum, Write};

/// The longest stickiness that counts.
pub const STICKY_MS_MAX: u64 = 60 * 60 * 1000;

/// The most of our sticky events that a server is sent when it comes into a room, the newest: two transactions, some 40 bytes
/// each in the log. Who is in a call renews theirs every few minutes.
pub const SENT_MAX: usize = 100;

/// The list of sticky events.
pub struct StickyEvents;

impl Derived for StickyEvents {
    fn on_append(&self, w: &mut Write<'_>, appended: &mut Appended<'_>) -> Result<()> {
        let Appended { here, new, num, row, .. } = appended;
        let Some(duration_ms) = duration_ms(&new.event) else { return Ok(()) };
        // A time in the future makes it no longer.
        let since_ms = new.event.origin_server_ts().min(here.now_ms);
        let until_ms = since_ms.saturating_add(duration_ms.min(STICKY_MS_MAX));
        if until_ms <= here.now_ms {
            return Ok(());
        }
        let order = row.order.and_then(|order| u64::try_from(order).ok()).filter(|_| new.is_shown());
        let sticky = Sticky { order: order.unwrap_or(0), event: *num, sender: row.sender, until_ms };
        if order.is_some() {
            return sticky::put(w, new.room, sticky, here.now_ms);
        }
        let is_back = new.flags.soft_failed && new.place == Place::Newest && row.state_key.is_none();
        // What the state allows was refused by the room's policy server, and that stays.
        match is_back && !is_allowed(w, new.room, &new.event)? {
            true => sticky::hold(w, new.room, sticky, here.now_ms),
            false => Ok(()),
        }
    }

    /// Of who leaves, nothing is told any more. A server that comes into the room is sent our sticky events: they came
    /// before what it asks for.
    fn on_state(&self, w: &mut Write<'_>, change: &mut StateChange<'_>) -> Result<()> {
        hold_back(w, change)?;
        let joined = change.after.as_ref().and_then(|(_, row)| row.member);
        let Some((Membership::Join, target)) = joined.filter(|_| change.kind == Kind::MEMBER) else { return Ok(()) };
        let target = user::id_of(w, target)?;
        if change.here.is_local(&target) {
            return Ok(());
        }
        // The servers of the room are counted by now: this is the server's first user there.
        let (server, room) = (server_of(&target), change.num);
        let is_new = member::server(w, room, server)?.is_some_and(|(count, since)| count == 1 && since == change.at);
        if !is_new || <&ServerName>::try_from(server).is_err() {
            return Ok(());
        }
        let mut sticky = Vec::new();
        sticky::each(w, room, 0, &mut |one| {
            if one.until_ms > change.here.now_ms {
                sticky.push((one.event, one.sender));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let (mut ours, mut last) = (Vec::new(), None);
        for (event, sender) in sticky {
            let is_ours = match last {
                Some((known, is_ours)) if known == sender => is_ours,
                _ => change.here.is_local(&user::id_of(w, sender)?),
            };
            last = Some((sender, is_ours));
            ours.extend(is_ours.then_some(event));
        }
        for event in ours.iter().skip(ours.len().saturating_sub(SENT_MAX)) {
            let at = w.next_position();
            outbox::post(w, at, &Outbound::EventTo { room, event: *event, to: server.to_owned() })?;
        }
        if !ours.is_empty() {
            w.announce(Change { outbound: true, ..Change::default() });
        }
        Ok(())
    }

    fn on_redact(&self, w: &mut Write<'_>, event: &Event, row: &Row) -> Result<()> {
        match event::num(w, event.id().as_str())? {
            Some(num) => sticky::remove_event(w, row.room, num),
            None => Ok(()),
        }
    }
}

/// Holds back what is sticky of a user who is joined no more.
fn hold_back(w: &mut Write<'_>, change: &StateChange<'_>) -> Result<()> {
    let joined = |row: &Row| row.member.and_then(|(membership, user)| (membership == Membership::Join).then_some(user));
    let Some(user) = change.before.and_then(joined).filter(|_| change.kind == Kind::MEMBER) else { return Ok(()) };
    if change.after.as_ref().is_some_and(|(_, row)| joined(row).is_some()) {
        return Ok(());
    }
    let mut theirs = Vec::new();
    sticky::each(w, change.num, 0, &mut |one| {
        theirs.extend((one.sender == user && one.until_ms > change.here.now_ms).then_some(one));
        Ok(ControlFlow::Continue(()))
    })?;
    for one in theirs {
        sticky::remove(w, change.num, one.order)?;
        sticky::hold(w, change.num, one, change.here.now_ms)?;
    }
    Ok(())
}

/// Takes the events that the room's present state allows again out of those that are held back. Judges [`Sticky`] events that
/// are held back, which are few.
pub fn take_allowed(
    w: &mut Write<'_>,
    room: RoomNum,
    version: &'static RoomVersion,
    now_ms: u64,
) -> Result<Vec<(Sticky, Event, Row)>> {
    let mut allowed = Vec::new();
    for held in sticky::held_back(w, room)? {
        if held.until_ms <= now_ms {
            continue;
        }
        // Old messages are removed.
        let Some(row) = event::row(w, held.event)? else {
            sticky::remove(w, room, held.order)?;
            continue;
        };
        let event = load_row(w, version, &row)?;
        // Nobody asked the policy server about an event that was soft-failed.
        let is_vetted = row.order.is_some() || !has_policy_server(w, room, version)?;
        if is_vetted && is_allowed(w, room, &event)? {
            sticky::remove(w, room, held.order)?;
            allowed.push((held, event, row));
        }
    }
    Ok(allowed)
}

fn is_allowed(get: &impl Get, room: RoomNum, event: &Event) -> Result<bool> {
    match auth::check(event.version(), &event.subject(), &StateView::present(get, room, event.version())) {
        Ok(()) => Ok(true),
        Err(Error::Store(failed)) => Err(failed),
        Err(_) => Ok(false),
    }
}

fn has_policy_server(get: &impl Get, room: RoomNum, version: &'static RoomVersion) -> Result<bool> {
    let view = StateView::present(get, room, version);
    Ok(view.num("m.room.policy", "")?.is_some() || view.num("org.matrix.msc4284.policy", "")?.is_some())
}

/// Whether an event, any JSON text, says that it is sticky.
pub fn is_sticky(event: &[u8]) -> bool {
    json::partial::member::<Box<RawValue>>(event, STICKY).is_some()
}

/// How long an event asks to be sticky.
fn duration_ms(event: &Event) -> Option<u64> {
    let sticky = event.get(STICKY)?;
    let duration = json::read::get(sticky.as_bytes(), "duration_ms")?;
    std::str::from_utf8(duration).ok()?.parse().ok()
}
