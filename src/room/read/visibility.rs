//! Which events of a room a user may see (client-server API, "Room History Visibility").

use super::event_json;
use crate::matrix::json;
use crate::matrix::visibility::{self, History};
use crate::room::state::redaction::took_effect;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Kind, Membership, Root, Row};
use crate::store::tables::room::state_tree;
use crate::store::tables::room::user_room::Mine;
use crate::store::tables::room::{current_state, user_room};
use crate::store::{EventNum, Get, Position, Result, RoomNum, StateKeyNum, UserNum};

/// A user's view of a room. Caches the state it read last, since neighbouring events share theirs.
pub struct Viewer {
    pub user: UserNum,
    pub mine: Option<Mine>,
    /// Everything that was not refused, as an administrator does who looks into a matter.
    pub sees_all: bool,
    /// The room's present history visibility.
    pub present: History,
    /// The key of the user's own member event.
    pub member_key: Option<StateKeyNum>,
    history_key: Option<StateKeyNum>,
    at: Option<(Root, History, Membership)>,
    history_of: Option<(EventNum, History)>,
}

impl Viewer {
    pub fn new(get: &impl Get, room: RoomNum, user: UserNum, user_id: &str) -> Result<Viewer> {
        let history_key = state_tree::key(get, "m.room.history_visibility", "")?;
        let mut viewer = Viewer {
            user,
            mine: user_room::mine(get, user, room)?,
            sees_all: false,
            present: History::Shared,
            member_key: state_tree::key(get, "m.room.member", user_id)?,
            history_key,
            at: None,
            history_of: None,
        };
        let present = match history_key {
            Some(key) => current_state::state(get, room, Kind::HISTORY_VISIBILITY, key)?,
            None => None,
        };
        viewer.present = viewer.history(get, present)?;
        Ok(viewer)
    }

    pub fn is_joined(&self) -> bool {
        self.mine.is_some_and(|mine| mine.membership == Membership::Join)
    }

    /// When the user last left the joined membership; none while joined.
    pub fn left_at(&self) -> Option<Position> {
        self.mine.filter(|_| !self.is_joined()).and_then(|mine| mine.left_at)
    }

    /// The place of the last event the user may see, after leaving a room that is not world-readable.
    pub fn sees_upto(&self) -> Option<i64> {
        self.left_at().filter(|_| !self.sees_all && self.present != History::WorldReadable).map(|at| at.0 as i64)
    }

    /// Whether the user may see anything of the room.
    pub fn may_enter(&self) -> bool {
        let forgotten = self.mine.is_some_and(|mine| mine.forgotten);
        self.is_joined() || (self.left_at().is_some() && !forgotten) || self.present == History::WorldReadable
    }

    /// Whether the user may see an event.
    pub fn sees(&mut self, get: &impl Get, row: &Row) -> Result<bool> {
        if row.flags.rejected || row.flags.soft_failed {
            return Ok(false);
        }
        if self.sees_all || row.member.is_some_and(|(_, target)| target == self.user) {
            // The user's own membership changes are always visible; otherwise a withdrawn invite would stay unseen.
            return Ok(true);
        }
        if row.kind == Kind::REDACTION && !took_effect(get, row)? {
            // Apps would blank the target of any redaction they see.
            return Ok(false);
        }
        let Some(order) = row.order else {
            // Known without a place in the history: a state event, which every joined user is given.
            return Ok(self.is_joined() && row.state_key.is_some());
        };
        let joined_since = self.is_joined() || self.left_at().is_some_and(|at| at.0 as i64 >= order);
        let (mut history, membership) = match row.before {
            Some(root) => self.state_at(get, root)?,
            // From before our own history, where the state is unknown: judged by the room's present visibility.
            None => (self.present, Membership::Leave),
        };
        if row.kind == Kind::HISTORY_VISIBILITY {
            // A change of the visibility is visible when its old or its new value allows it.
            history = history.min(History::of_content(std::str::from_utf8(&event_json::content(get, row)?).ok()));
        }
        Ok(visibility::allows(history, crate::room::state::as_rule(membership), joined_since))
    }

    fn state_at(&mut self, get: &impl Get, root: Root) -> Result<(History, Membership)> {
        if let Some((at, history, membership)) = self.at
            && at == root
        {
            return Ok((history, membership));
        }
        let event = |key: Option<StateKeyNum>| match key {
            Some(key) => state_tree::get(get, root, key),
            None => Ok(None),
        };
        let (history, own) = (event(self.history_key)?, event(self.member_key)?);
        let history = self.history(get, history)?;
        let membership = match own {
            Some(own) => event::row_of(get, own)?.member.map_or(Membership::Leave, |(membership, _)| membership),
            None => Membership::Leave,
        };
        self.at = Some((root, history, membership));
        Ok((history, membership))
    }

    fn history(&mut self, get: &impl Get, event: Option<EventNum>) -> Result<History> {
        let Some(event) = event else { return Ok(History::Shared) };
        if let Some((known, history)) = self.history_of
            && known == event
        {
            return Ok(history);
        }
        let body = event::shown(get, &event::row_of(get, event)?)?;
        let content = json::read::get(&body, "content").and_then(|content| std::str::from_utf8(content).ok());
        let history = History::of_content(content);
        self.history_of = Some((event, history));
        Ok(history)
    }
}
