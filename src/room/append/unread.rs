//! Counts unread events: each local member's push rules, applied once as an event comes in.
//!
//! Bounded by the local members of the room, each some microseconds and a row or two; no remote server can raise it.

use std::cell::{Cell, OnceCell};

use ruma::UserId;

use super::derived::{Appended, Derived};
use super::new_event::{Append, Here};
use super::relations::relation_of;
use crate::matrix::auth::{Powers, State as _};
use crate::matrix::{Event, push};
use crate::room::error::Error;
use crate::room::ignored;
use crate::room::state::StateView;
use crate::room::state::event::load;
use crate::room::state::join_conditions::local_joined;
use crate::store::tables::room::relation::Rel;
use crate::store::tables::room::unread::{self, Outcome, Part};
use crate::store::tables::room::user_room;
use crate::store::tables::user;
use crate::store::{self, EventNum, Get, Result, UserNum, Write};

/// How far from a thread an event may be and still belong to it, as the specification has it.
const THREAD_HOPS_MAX: usize = 3;

/// Unread events of local members.
pub struct UnreadCounts;

impl Derived for UnreadCounts {
    fn on_append(&self, w: &mut Write<'_>, appended: &mut Appended<'_>) -> Result<()> {
        match appended.row.order {
            Some(order) if appended.new.is_new() => count(w, appended, order),
            _ => Ok(()),
        }
    }
}

/// Counts an event that was just shown for each local member it notifies. Its sender has read up to it.
fn count(w: &mut Write<'_>, appended: &Appended<'_>, order: i64) -> Result<()> {
    let Appended { here, room, new, row, .. } = appended;
    let members = local_joined(w, new.room)?;
    if members.is_empty() {
        return Ok(());
    }
    let thread = thread_of(w, new)?;
    let part = row.state_key.is_none().then_some(thread.map_or(Part::Main, Part::Thread));
    if members == [row.sender] {
        return part.map_or(Ok(()), |part| unread::read_up_to(w, row.sender, new.room, order, part));
    }
    let flat = push::Flat::new(&new.event);
    let seen = push::Room::new(&new.event, room.joined);
    let levels = OnceCell::new();
    let mut outcomes = Vec::with_capacity(members.len());
    for user in members {
        let outcome = match user == row.sender {
            true => Outcome::Own(part),
            false => {
                let asked = Asked { get: w, new, user, levels: &levels, failed: Cell::new(None) };
                outcome(&asked, here, &flat, &seen)?
            }
        };
        outcomes.push((user, outcome));
    }
    unread::count(w, new.room, order, thread, &outcomes)
}

/// What the push rules of a member make of an event of another.
fn outcome<G: Get>(asked: &Asked<'_, G>, here: &Here, flat: &push::Flat, seen: &push::Room) -> Result<Outcome> {
    let (get, user) = (asked.get, asked.user);
    if ignored::is_ignored(get, user, asked.new.event.sender().as_str())? {
        return Ok(Outcome::Quiet);
    }
    let user_id = user::id_of(get, user)?;
    let Ok(id) = <&UserId>::try_from(user_id.as_str()) else { return Ok(Outcome::Quiet) };
    let rules = here.rules.get(get, user, id)?;
    let outcome = push::evaluate(&rules, flat, seen, id, asked);
    if let Some(failed) = asked.failed.take() {
        return Err(failed);
    }
    Ok(match (outcome.notify, outcome.highlight) {
        (false, _) => Outcome::Quiet,
        (true, false) => Outcome::Notify,
        (true, true) => Outcome::Highlight,
    })
}

/// What the rules of a member may ask for.
struct Asked<'a, G> {
    get: &'a G,
    new: &'a Append,
    user: UserNum,
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
        let name = display_name(self.get, self.new, self.user);
        self.found(name)
    }

    fn levels(&self) -> push::Levels {
        let find =
            || self.found(levels(self.get, self.new).map(Some)).unwrap_or_else(|| push::levels(&self.new.event, None));
        self.levels.get_or_init(find).clone()
    }
}

/// The root of the event's thread: named by the event itself, or by the events it relates to. A few hops at most.
fn thread_of(get: &impl Get, new: &Append) -> Result<Option<EventNum>> {
    let mut relation = relation_of(get, new.room, &new.event)?;
    for _ in 0..THREAD_HOPS_MAX {
        match relation {
            Some((Rel::THREAD, root)) => return Ok(Some(root)),
            Some((_, target)) => relation = relation_of(get, new.room, &load(get, new.event.version(), target)?)?,
            None => return Ok(None),
        }
    }
    Ok(None)
}

/// The levels that push rules ask for.
fn levels(get: &impl Get, new: &Append) -> Result<push::Levels> {
    let version = new.event.version();
    let view = StateView::present(get, new.room, version);
    let (create, levels) = (readable(view.create())?, readable(view.power_levels())?);
    let powers = create.as_ref().map(|create| Powers::new(version, create, levels.as_deref()));
    Ok(push::levels(&new.event, powers.as_ref()))
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
fn display_name(get: &impl Get, new: &Append, user: UserNum) -> Result<String> {
    if let Some(member) = user_room::mine(get, user, new.room)?.and_then(|mine| mine.event)
        && let Some(name) = name_in(&load(get, new.event.version(), member)?)
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
