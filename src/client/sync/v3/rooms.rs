//! The object `rooms` of an answer: its four sections, which rooms stand in them, and a room's object.

use std::sync::Arc;

use parking_lot::Mutex;

use super::super::ephemeral;
use crate::base::{ChunkError, ChunkWriter, comma};
use crate::matrix::json;
use crate::room::{
    self, DeltaQuery, Events, Filter, Membership, Position, RoomNum, RoomView, SyncToken, SyncView, UserRoom,
};

/// Timeline events of one room when the filter asks for no number, and the most it may ask for.
pub const TIMELINE_EVENTS: usize = 10;
const TIMELINE_EVENTS_MAX: usize = 100;

/// The four sections of rooms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Join,
    Invite,
    Knock,
    Leave,
}

impl Section {
    pub const ALL: [Section; 4] = [Section::Join, Section::Invite, Section::Knock, Section::Leave];

    pub fn as_str(self) -> &'static str {
        match self {
            Section::Join => "join",
            Section::Invite => "invite",
            Section::Knock => "knock",
            Section::Leave => "leave",
        }
    }

    fn of(membership: Membership) -> Section {
        match membership {
            Membership::Join => Section::Join,
            Membership::Invite => Section::Invite,
            Membership::Knock => Section::Knock,
            Membership::Leave | Membership::Ban => Section::Leave,
        }
    }
}

/// The rooms as one request asks for them.
#[derive(Clone)]
pub struct RoomSections {
    pub view: SyncView,
    /// None for the first sync.
    pub since: Option<SyncToken>,
    pub full_state: bool,
    pub filter: Arc<Filter>,
    /// The state as of a timeline's end is told under this name, instead of what comes before the timeline (MSC4222).
    pub state_after: Option<&'static str>,
    /// The rooms that alone can have changed since the token, in order, when that is known.
    pub only: Option<Arc<[RoomNum]>>,
    /// The room that was looked at last: most often it is written next.
    opened: Arc<Mutex<Option<RoomView>>>,
}

/// A room that stands in the answer.
#[derive(Clone, Debug)]
pub struct ChangedRoom {
    pub room: UserRoom,
    pub id: String,
}

impl RoomSections {
    pub fn new(view: SyncView, since: Option<SyncToken>, full_state: bool, filter: Arc<Filter>) -> RoomSections {
        // A token from the future comes from a database that was since restored: everything is told anew.
        let since = since.filter(|since| since.at <= view.now.at);
        RoomSections { view, since, full_state, filter, state_after: None, only: None, opened: Arc::default() }
    }

    /// Whether everything is told, not only the changes.
    pub fn is_whole(&self) -> bool {
        self.since.is_none() || self.full_state
    }

    /// Whether one room is told whole.
    pub fn is_told_whole(&self, room: &UserRoom) -> bool {
        self.full_state || self.is_new(room)
    }

    /// Whether the app does not know of the user's present membership.
    fn is_new(&self, room: &UserRoom) -> bool {
        self.since.is_none_or(|since| room.since() > since.at)
    }

    /// The next room of a section behind `after`. `also` are rooms with wanted account data, in order.
    pub fn next(
        &self,
        section: Section,
        after: Option<RoomNum>,
        also: &[RoomNum],
    ) -> room::Result<Option<ChangedRoom>> {
        let mut id = None;
        let found = self.find_room(after, |room| {
            if Section::of(room.membership()) == section {
                id = self.listed(section, room, also)?;
            }
            Ok(id.is_some())
        })?;
        Ok(found.zip(id).map(|(room, id)| ChangedRoom { room, id }))
    }

    /// Whether there is any room to tell of.
    pub fn any(&self, also: &[RoomNum]) -> room::Result<bool> {
        let found =
            self.find_room(None, |room| Ok(self.listed(Section::of(room.membership()), room, also)?.is_some()))?;
        Ok(found.is_some())
    }

    fn find_room(
        &self,
        after: Option<RoomNum>,
        is_wanted: impl FnMut(&UserRoom) -> room::Result<bool>,
    ) -> room::Result<Option<UserRoom>> {
        match &self.only {
            Some(only) => self.view.find_room_of(only, after, is_wanted),
            None => self.view.find_room(after, is_wanted),
        }
    }

    /// The id of a room that stands in its section; none for one that does not.
    fn listed(&self, section: Section, room: &UserRoom, also: &[RoomNum]) -> room::Result<Option<String>> {
        // Asked first: of the rooms left, which may be many, no row is read.
        if !self.may_be_listed(section, room)? {
            return Ok(None);
        }
        let id = self.view.room_id(room.num)?;
        let is_listed = self.filter.room.wants_room(&id)
            && match self.since.filter(|_| section == Section::Join && !self.is_told_whole(room)) {
                Some(since) => self.has_changed(room.num, &id, since, also)?,
                None => true,
            };
        Ok(is_listed.then_some(id))
    }

    /// Whether the user's membership lets the room stand in its section.
    fn may_be_listed(&self, section: Section, room: &UserRoom) -> room::Result<bool> {
        let (is_new, is_told_whole) = (self.is_new(room), self.is_told_whole(room));
        Ok(match section {
            Section::Join => true,
            Section::Invite => is_told_whole && !self.view.is_invite_hidden(room)?,
            Section::Knock => is_told_whole,
            // After a leave with a forget at once, the user's other devices still learn of the leave.
            Section::Leave if room.is_forgotten() => self.since.is_some() && is_new,
            // A first sync, or one with `full_state`, lists rooms left long ago only when the filter asks for them.
            Section::Leave if self.since.is_none() || !is_new => self.is_whole() && self.filter.room.include_leave,
            Section::Leave => true,
        })
    }

    /// Whether anything in a joined room that the filter wants has changed. Unread counts alone are no change.
    fn has_changed(&self, room: RoomNum, id: &str, since: SyncToken, also: &[RoomNum]) -> room::Result<bool> {
        let (view, filter) = (&self.view, &self.filter.room);
        let wants = |events: &Events, kind: &str| events.wants_room(id) && events.wants_type(kind);
        Ok(also.binary_search(&room).is_ok() && filter.account_data.wants_room(id)
            || view.has_moved(room, since.at)? && self.has_events(room, id, since.at)?
            || wants(&filter.ephemeral, "m.typing") && view.has_typing(room, since.typing)
            || wants(&filter.ephemeral, "m.receipt") && view.has_receipts(room, since.at)?
            || view.has_sticky(room, since.at)?
            || wants(&filter.account_data, "m.fully_read") && view.fully_read(room, Some(since.at))?.is_some())
    }

    /// Whether there are events to tell after a position: some for the timeline, or changes of the state.
    fn has_events(&self, num: RoomNum, id: &str, since: Position) -> room::Result<bool> {
        let mut room = self.open(num)?;
        let filter = &self.filter.room;
        let timeline = filter.timeline.wants_room(id).then_some(&filter.timeline);
        let has_events = room.has_events(since, self.view.now.at, timeline, &filter.state.of_room(id))?;
        *self.opened.lock() = Some(room);
        Ok(has_events)
    }

    fn open(&self, num: RoomNum) -> room::Result<RoomView> {
        let opened = self.opened.lock().take().filter(|opened| opened.num() == num);
        opened.map_or_else(|| self.view.open(num, &self.filter), Ok)
    }

    /// Writes the members of one room's object, without the room account data.
    pub async fn write(&self, pen: &ChunkWriter, section: Section, changed: &ChangedRoom) -> Result<(), ChunkError> {
        match section {
            Section::Join => self.write_joined(pen, changed).await,
            Section::Leave => self.write_left(pen, changed).await,
            Section::Invite => self.write_stripped(pen, changed, "invite_state"),
            Section::Knock => self.write_stripped(pen, changed, "knock_state"),
        }
    }

    // ---- joined rooms --------------------------------------------------------------------------------------------

    async fn write_joined(&self, pen: &ChunkWriter, changed: &ChangedRoom) -> Result<(), ChunkError> {
        let mut room = self.open(changed.room.num)?;
        let is_new = self.is_new(&changed.room);
        let members_moved = self.write_delta(pen, &mut room, changed, is_new, self.view.now.at).await?;
        let whole = self.is_told_whole(&changed.room);
        if whole || members_moved {
            write_summary(pen, &room)?;
        }
        self.write_unread(pen, changed.room.num)?;
        self.write_ephemeral(pen, changed, whole)?;
        Ok(())
    }

    /// Writes `timeline` and `state`. Answers whether members changed. `is_new`: the app knows nothing of the room.
    async fn write_delta(
        &self,
        pen: &ChunkWriter,
        room: &mut RoomView,
        changed: &ChangedRoom,
        is_new: bool,
        upto: Position,
    ) -> Result<bool, ChunkError> {
        let since = self.since.filter(|_| !is_new).map(|since| since.at);
        let filter = &self.filter.room.timeline;
        let delta = room.delta(&DeltaQuery {
            since,
            known: since.filter(|_| !self.full_state),
            upto,
            limit: filter.limit(TIMELINE_EVENTS, TIMELINE_EVENTS_MAX),
            timeline: filter.wants_room(&changed.id).then_some(filter),
        })?;
        // A room that is new to an app which knows others: the app may have parts of its timeline from earlier, or from
        // a preview, and what it is told now does not follow on them.
        let is_newcomer = is_new && self.since.is_some() && changed.room.membership() == Membership::Join;
        let (limited, prev_batch) = (delta.limited || is_newcomer, delta.prev_batch);
        pen.text(&format!("\"timeline\":{{\"limited\":{limited},\"prev_batch\":\"{prev_batch}\",\"events\":["));
        let senders = delta.write_timeline(pen, room).await?;
        pen.text(&format!("]}},\"{}\":{{\"events\":[", self.state_name()));
        let (filter, after) = (self.filter.room.state.of_room(&changed.id), self.state_after.is_some());
        let members_moved = delta.write_state(pen, room, &filter, senders, after).await?;
        pen.text("]}");
        if Section::of(changed.room.membership()) == Section::Join {
            let sticky = self.view.sticky(changed.room.num, since.filter(|_| !self.full_state), Some(&delta))?;
            if !sticky.is_empty() {
                pen.text(",\"msc4354_sticky\":{\"events\":[");
                room.write_sticky(pen, &sticky).await?;
                pen.text("]}");
            }
        }
        Ok(members_moved)
    }

    fn state_name(&self) -> &'static str {
        self.state_after.unwrap_or("state")
    }

    fn write_unread(&self, pen: &ChunkWriter, room: RoomNum) -> room::Result<()> {
        let by_thread = self.filter.room.timeline.unread_thread_notifications;
        let (main, threads) = self.view.unread(room, by_thread)?;
        // What notifies is what this server counts (MSC2654 counts messages of muted rooms too).
        let all = main.0 + threads.values().map(|unread| unread.0).sum::<u64>();
        pen.text(&format!(",\"org.matrix.msc2654.unread_count\":{all},\"unread_notifications\":"));
        pen.text(&counts(main));
        // Left out when there are none: apps take that for all threads having been read.
        if by_thread && !threads.is_empty() {
            pen.text(",\"unread_thread_notifications\":{");
            let mut first = true;
            for (root, unread) in threads {
                let root = self.view.event_id(root)?;
                pen.with(|out| {
                    comma(out, &mut first);
                    json::write_string(out, &root);
                    out.push(b':');
                });
                pen.text(&counts(unread));
            }
            pen.text("}");
        }
        Ok(())
    }

    /// Receipts since the token, and the typing users.
    fn write_ephemeral(&self, pen: &ChunkWriter, changed: &ChangedRoom, whole: bool) -> room::Result<()> {
        let filter = &self.filter.room.ephemeral;
        let wants = |kind| filter.wants_type(kind) && filter.wants_room(&changed.id);
        let since = self.since.filter(|_| !whole);
        pen.text(",\"ephemeral\":{\"events\":[");
        let mut first = true;
        if wants("m.receipt") {
            let receipts = self.view.receipts(changed.room.num, since.map_or(Position(0), |since| since.at))?;
            if !receipts.is_empty() {
                pen.with(|out| comma(out, &mut first));
                ephemeral::write_receipts(pen, &self.view, &receipts)?;
            }
        }
        if wants("m.typing")
            && let Some(users) = self.view.typing_users(changed.room.num, since.map(|since| since.typing))?
        {
            pen.with(|out| comma(out, &mut first));
            ephemeral::write_typing(pen, &users);
        }
        pen.text("]}");
        Ok(())
    }

    // ---- rooms left ----------------------------------------------------------------------------------------------

    async fn write_left(&self, pen: &ChunkWriter, changed: &ChangedRoom) -> Result<(), ChunkError> {
        let mut room = self.view.open(changed.room.num, &self.filter)?;
        // No event after a leave is shown; neither a ban nor a declined invite reveals any.
        let upto = match changed.room.left_at() {
            Some(left_at) if left_at == changed.room.since() || self.is_whole() => left_at,
            _ => return self.write_own_leave(pen, changed, &mut room).await,
        };
        let was_told = match self.since {
            Some(since) if since.at < upto => room.was_joined(since.at)?,
            _ => false,
        };
        self.write_delta(pen, &mut room, changed, !was_told, upto).await?;
        Ok(())
    }

    /// Writes a leave of a room in which the user was not joined before: only the member event, if we have it.
    async fn write_own_leave(
        &self,
        pen: &ChunkWriter,
        changed: &ChangedRoom,
        room: &mut RoomView,
    ) -> Result<(), ChunkError> {
        pen.text("\"timeline\":{\"limited\":false,\"events\":[");
        room.write_own_member(pen, &changed.room, &self.filter.room.timeline).await?;
        pen.text(&format!("]}},\"{}\":{{\"events\":[]}}", self.state_name()));
        Ok(())
    }

    // ---- invites and knocks --------------------------------------------------------------------------------------

    fn write_stripped(&self, pen: &ChunkWriter, changed: &ChangedRoom, name: &str) -> Result<(), ChunkError> {
        pen.text(&format!("\"{name}\":{{\"events\":"));
        self.view.write_stripped(pen, &changed.room)?;
        pen.text("}");
        Ok(())
    }
}

fn write_summary(pen: &ChunkWriter, room: &RoomView) -> room::Result<()> {
    let summary = room.summary()?;
    pen.with(|out| {
        out.extend_from_slice(b",\"summary\":{");
        let counts = (summary.joined, summary.invited);
        let counts = format!("\"m.joined_member_count\":{},\"m.invited_member_count\":{}", counts.0, counts.1);
        out.extend_from_slice(counts.as_bytes());
        if let Some(heroes) = &summary.heroes {
            out.extend_from_slice(b",\"m.heroes\":[");
            let mut first = true;
            for hero in heroes {
                comma(out, &mut first);
                json::write_string(out, hero);
            }
            out.push(b']');
        }
        out.push(b'}');
    });
    Ok(())
}

fn counts((notifications, highlights): (u64, u64)) -> String {
    format!("{{\"highlight_count\":{highlights},\"notification_count\":{notifications}}}")
}
