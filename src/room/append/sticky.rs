//! Sticky events (MSC4354): an event that says so is told to everybody who is joined, for an hour at most.

use std::ops::ControlFlow;

use ruma::ServerName;
use serde_json::value::RawValue;

use super::derived::{Appended, Derived, StateChange};
use super::new_event::server_of;
use crate::matrix::draft::STICKY;
use crate::matrix::{Event, json};
use crate::store::tables::room::event_row::{Kind, Membership, Row};
use crate::store::tables::room::member;
use crate::store::tables::room::sticky::{self, Sticky};
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::user;
use crate::store::{Change, Result, Write};

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
        let order = row.order.and_then(|order| u64::try_from(order).ok());
        let (Some(order), Some(duration_ms)) = (order.filter(|_| new.is_shown()), duration_ms(&new.event)) else {
            return Ok(());
        };
        // A time in the future makes it no longer.
        let since_ms = new.event.origin_server_ts().min(here.now_ms);
        let until_ms = since_ms.saturating_add(duration_ms.min(STICKY_MS_MAX));
        if until_ms <= here.now_ms {
            return Ok(());
        }
        sticky::put(w, new.room, Sticky { order, event: *num, sender: row.sender, until_ms }, here.now_ms)
    }

    /// A server that comes into the room is sent our sticky events: they came before what it asks for.
    fn on_state(&self, w: &mut Write<'_>, change: &mut StateChange<'_>) -> Result<()> {
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

    fn on_redact(&self, w: &mut Write<'_>, _: &Event, row: &Row) -> Result<()> {
        match row.order.and_then(|order| u64::try_from(order).ok()) {
            Some(order) if sticky::get(w, row.room, order)?.is_some() => sticky::remove(w, row.room, order),
            _ => Ok(()),
        }
    }
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
