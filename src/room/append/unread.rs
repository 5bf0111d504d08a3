//! Counts unread events: each local member's push rules, applied once as an event comes in.
//!
//! Bounded by the local members of the room, each some microseconds and a row or two; no remote server can raise it.

use std::cell::{Cell, OnceCell};

use ruma::UserId;

use super::derived::{Appended, Derived};
use super::relations::relation_of;
use super::rules_cache::Rules;
use crate::matrix::auth::{JoinRule, Powers, State as _};
use crate::matrix::version::RoomVersion;
use crate::matrix::{Event, push};
use crate::room::error::Error;
use crate::room::ignored;
use crate::room::invite_rules::{self, Verdict};
use crate::room::state::StateView;
use crate::room::state::event::load;
use crate::room::state::join_conditions::local_joined;
use crate::store::tables::room as tables_room;
use crate::store::tables::room::event_row::{Membership, Row};
use crate::store::tables::room::relation::Rel;
use crate::store::tables::room::thread_subscription::{self, Status};
use crate::store::tables::room::unread::{self, Outcome, Part};
use crate::store::tables::room::user_room;
use crate::store::tables::user;
use crate::store::{self, EventNum, Get, Push, Result, RoomNum, UserNum, Write};

/// How far from a thread an event may be and still belong to it, as the specification has it.
const THREAD_HOPS_MAX: usize = 3;

/// The call of two, which apps ring for (client-server API, "Voice over IP").
pub const CALL_INVITE: &str = "m.call.invite";

/// Unread events of local members.
pub struct UnreadCounts;

impl Derived for UnreadCounts {
    fn on_append(&self, w: &mut Write<'_>, appended: &mut Appended<'_>) -> Result<()> {
        let Some(order) = appended.row.order.filter(|_| appended.new.is_new()) else { return Ok(()) };
        if count(w, appended, order)? || is_invite_here(w, appended)? {
            appended.change.push = Push::Notified;
        }
        Ok(())
    }

    fn on_redact(&self, w: &mut Write<'_>, _: &Event, row: &Row) -> Result<()> {
        let Some(order) = row.order else { return Ok(()) };
        let members = local_joined(w, row.room)?;
        unread::uncount(w, row.room, order, &members)
    }
}

/// Whether the event invites a user of this server.
fn is_invite_here(get: &impl Get, appended: &Appended<'_>) -> Result<bool> {
    match appended.row.member {
        Some((Membership::Invite, target)) => user::is_local(get, target),
        _ => Ok(false),
    }
}

/// Counts an event that was just shown for each local member it notifies. Its sender has read up to it. Answers whether
/// it notifies anybody.
fn count(w: &mut Write<'_>, appended: &Appended<'_>, order: i64) -> Result<bool> {
    let Appended { here, room, new, row, .. } = appended;
    let members = local_joined(w, new.room)?;
    if members.is_empty() {
        return Ok(false);
    }
    let thread = thread_of(w, new.room, &new.event)?;
    let part = row.state_key.is_none().then_some(thread.map_or(Part::Main, Part::Thread));
    if members == [row.sender] {
        if let Some(part) = part {
            unread::read_up_to(w, row.sender, new.room, order, part)?;
        }
        return Ok(false);
    }
    let flat = push::Flat::new(&new.event);
    let seen = push::Room::new(&new.event, room.joined);
    let (found, levels) = (OnceCell::from(thread), OnceCell::new());
    let (mut outcomes, mut notifies) = (Vec::with_capacity(members.len()), false);
    for user in members {
        let outcome = match user == row.sender {
            true => Outcome::Own(part),
            false => {
                let event = &new.event;
                let failed = Cell::new(None);
                let asked = Asked { get: w, room: new.room, event, user, thread: &found, levels: &levels, failed };
                match outcome(&asked, &here.rules, &flat, &seen)? {
                    push::Outcome { notify: false, .. } => Outcome::Quiet,
                    push::Outcome { highlight: false, .. } => Outcome::Notify,
                    push::Outcome { .. } => Outcome::Highlight,
                }
            }
        };
        notifies |= matches!(outcome, Outcome::Notify | Outcome::Highlight);
        outcomes.push((user, outcome));
    }
    unread::count(w, new.room, order, thread, &outcomes)?;
    Ok(notifies)
}

/// What a user's push rules of today make of an event that is in a room.
pub fn judge(get: &impl Get, rules: &Rules, room: RoomNum, event: &Event, user: UserNum) -> Result<push::Outcome> {
    let joined = tables_room::get_of(get, room)?.joined;
    let (flat, seen) = (push::Flat::new(event), push::Room::new(event, joined));
    let (thread, levels) = (OnceCell::new(), OnceCell::new());
    let asked = Asked { get, room, event, user, thread: &thread, levels: &levels, failed: Cell::new(None) };
    outcome(&asked, rules, &flat, &seen)
}

/// What the push rules of a member make of an event of another.
fn outcome<G: Get>(asked: &Asked<'_, G>, rules: &Rules, flat: &push::Flat, seen: &push::Room) -> Result<push::Outcome> {
    let (get, user) = (asked.get, asked.user);
    let (event, sender) = (asked.event, asked.event.sender().as_str());
    if ignored::is_ignored(get, user, sender)? || calls_everybody(get, asked.room, event)? {
        return Ok(push::Outcome::default());
    }
    let user_id = user::id_of(get, user)?;
    let is_invited = event.state_key() == Some(&user_id) && event.membership().as_deref() == Some("invite");
    if is_invited && invite_rules::verdict(get, user, sender)? != Verdict::Allow {
        return Ok(push::Outcome::default());
    }
    let Ok(id) = <&UserId>::try_from(user_id.as_str()) else { return Ok(push::Outcome::default()) };
    let rules = rules.get(get, user, id)?;
    let outcome = push::evaluate(&rules, flat, seen, id, asked);
    if let Some(failed) = asked.failed.take() {
        return Err(failed);
    }
    Ok(outcome)
}

/// Whether it is a call in a room that anybody may come into. People here cannot send one (`send/checks.rs`); those of other
/// servers might, and ring the phones of thousands.
fn calls_everybody(get: &impl Get, room: RoomNum, event: &Event) -> Result<bool> {
    if event.kind() != CALL_INVITE || event.state_key().is_some() {
        return Ok(false);
    }
    // A join rule that cannot be read is none.
    Ok(matches!(StateView::present(get, room, event.version()).join_rule(), Ok(Some(JoinRule::Public))))
}

/// What the rules of a member may ask for.
struct Asked<'a, G> {
    get: &'a G,
    room: RoomNum,
    event: &'a Event,
    user: UserNum,
    /// The root of the event's thread, the same for all members.
    thread: &'a OnceCell<Option<EventNum>>,
    /// The same for all members.
    levels: &'a OnceCell<push::Levels>,
    failed: Cell<Option<store::Error>>,
}

impl<G: Get> Asked<'_, G> {
    /// The rules go on without what could not be read; their caller fails then.
    fn found<T: Default>(&self, result: Result<T>) -> T {
        result.unwrap_or_else(|failed| {
            self.failed.set(Some(failed));
            T::default()
        })
    }
}

impl<G: Get> push::Lookup for Asked<'_, G> {
    fn display_name(&self) -> String {
        let name = display_name(self.get, self.room, self.event.version(), self.user);
        self.found(name)
    }

    fn levels(&self) -> push::Levels {
        let find = || {
            self.found(levels(self.get, self.room, self.event).map(Some))
                .unwrap_or_else(|| push::levels(self.event, None))
        };
        self.levels.get_or_init(find).clone()
    }

    fn is_subscribed(&self) -> Option<bool> {
        let find = || self.found(thread_of(self.get, self.room, self.event));
        let root = (*self.thread.get_or_init(find))?;
        let subscribed = is_subscribed(self.get, self.user, self.room, root);
        self.found(subscribed)
    }
}

/// Whether a user is subscribed to a thread; none when the user's apps never subscribed to any: they show threads in their
/// old way, and would be silent in all of them.
fn is_subscribed(get: &impl Get, user: UserNum, room: RoomNum, root: EventNum) -> Result<Option<bool>> {
    if !thread_subscription::has_any(get, user)? {
        return Ok(None);
    }
    let now = thread_subscription::get(get, user, room, root)?;
    Ok(Some(now.is_some_and(|now| now.status != Status::Unsubscribed)))
}

/// The root of the event's thread: named by the event itself, or by the events it relates to. A few hops at most.
fn thread_of(get: &impl Get, room: RoomNum, event: &Event) -> Result<Option<EventNum>> {
    let mut relation = relation_of(get, room, event)?;
    for _ in 0..THREAD_HOPS_MAX {
        match relation {
            Some((Rel::THREAD, root)) => return Ok(Some(root)),
            Some((_, target)) => relation = relation_of(get, room, &load(get, event.version(), target)?)?,
            None => return Ok(None),
        }
    }
    Ok(None)
}

/// The levels that push rules ask for.
fn levels(get: &impl Get, room: RoomNum, event: &Event) -> Result<push::Levels> {
    let version = event.version();
    let view = StateView::present(get, room, version);
    let (create, levels) = (readable(view.create())?, readable(view.power_levels())?);
    let powers = create.as_ref().map(|create| Powers::new(version, create, levels.as_deref()));
    Ok(push::levels(event, powers.as_ref()))
}

/// State that cannot be read counts as absent.
fn readable<T>(state: Result<Option<T>, Error>) -> Result<Option<T>> {
    match state {
        Ok(found) => Ok(found),
        Err(Error::Store(failed)) => Err(failed),
        Err(_) => Ok(None),
    }
}

/// A member's display name in the room, else the name in their id.
fn display_name(get: &impl Get, room: RoomNum, version: &'static RoomVersion, user: UserNum) -> Result<String> {
    if let Some(member) = user_room::mine(get, user, room)?.and_then(|mine| mine.event)
        && let Some(name) = name_in(&load(get, version, member)?)
    {
        return Ok(name);
    }
    let id = user::id_of(get, user)?;
    Ok(<&UserId>::try_from(id.as_str()).map_or_else(|_| String::new(), |id| id.localpart().to_owned()))
}

fn name_in(member: &Event) -> Option<String> {
    member.content_text("displayname").map(|name| name.into_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use crate::room::append::rules_cache::{Parsed, Rules};
    use std::sync::Arc;

    use ruma::push::Ruleset;

    use super::*;
    use crate::budget::Budget;

    /// One set of rules that found no place removed those of all other users.
    #[test]
    fn large_rules_push_out_no_smaller_ones() {
        let account = Budget::for_tests().account("ephemeral");
        let rules = Rules::new(account.clone());
        let put = |user: u32, bytes: u64| {
            let mut parsed = rules.lock();
            let grant = rules.make_room(&mut parsed, bytes);
            let kept = grant.is_some();
            let empty = Arc::new(Ruleset::default());
            grant.map(|grant| parsed.insert(UserNum(user), Parsed { hash: None, rules: empty, grant }));
            kept
        };
        let quarter = account.limit() / 4;
        assert!(put(1, quarter) && put(2, quarter) && put(3, quarter * 2));
        assert!(!put(4, quarter * 3));
        assert!(put(5, quarter));
        let mut kept: Vec<_> = rules.lock().keys().map(|user| user.0).collect();
        kept.sort_unstable();
        assert_eq!(kept, [1, 2, 5]);
    }
}
