//! One room's share of a sync (client-server API, "Syncing"), written a bounded piece at a time.
//!
//! A sync tells the changes between two positions: the one of the app's `since` token and the one of the snapshot. The
//! timeline is a range of orders, the state the difference of two trees, receipts a range of their log. Nothing is
//! remembered between two syncs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::event_json::{self, Format};
use super::filter::Filter;
use super::state::StateList;
use super::timeline::Page;
use super::token::SyncToken;
use super::token::Token;
use super::{Reader, RoomView, until};
use crate::base::{ChunkError, ChunkWriter, comma};
use crate::matrix::json;
use crate::room::Rooms;
use crate::room::error::Result;
use crate::room::ignored::Ignored;
use crate::room::state::stripped;
use crate::room::state::stripped::read_stripped;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Kind, Membership, Root};
use crate::store::tables::room::receipt::{self, Receipt, Whose};
use crate::store::tables::room::user_room::Mine;
use crate::store::tables::room::{self, member, state_tree, timeline, unread};
use crate::store::tables::room::{current_state, event_row, user_room};
use crate::store::tables::user;
use crate::store::{self, EventNum, Position, Read, RoomNum, StateKeyNum, UserNum};

/// Timeline events of one room when the filter asks for no number, and the most it may ask for.
const TIMELINE_EVENTS: usize = 10;
const TIMELINE_EVENTS_MAX: usize = 100;
/// The most receipts of a room in one sync, newest first.
const RECEIPTS_MAX: usize = 256;
/// Keys of a difference of states read ahead of what is being written: 16 bytes each.
const DIFFERENCE_BATCH: usize = 1_024;
/// The most `m.heroes`: members that name a room without a name.
const HEROES: usize = 5;

/// The four lists of rooms in a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncSection {
    Join,
    Invite,
    Knock,
    Leave,
}

impl SyncSection {
    pub const ALL: [SyncSection; 4] = [SyncSection::Join, SyncSection::Invite, SyncSection::Knock, SyncSection::Leave];

    pub fn as_str(self) -> &'static str {
        match self {
            SyncSection::Join => "join",
            SyncSection::Invite => "invite",
            SyncSection::Knock => "knock",
            SyncSection::Leave => "leave",
        }
    }

    fn of(membership: Membership) -> SyncSection {
        match membership {
            Membership::Join => SyncSection::Join,
            Membership::Invite => SyncSection::Invite,
            Membership::Knock => SyncSection::Knock,
            Membership::Leave | Membership::Ban => SyncSection::Leave,
        }
    }
}

/// One app's sync request over all its rooms, in one snapshot.
#[derive(Clone)]
pub struct SyncView {
    pub rooms: Rooms,
    pub read: Arc<Read>,
    pub reader: Reader,
    /// None for the first sync.
    pub since: Option<SyncToken>,
    /// The position up to which this sync tells the app.
    pub now: SyncToken,
    pub full_state: bool,
    pub filter: Arc<Filter>,
    ignored: Ignored,
}

/// A room of the app's user that has news.
#[derive(Clone, Debug)]
pub struct ChangedRoom {
    pub num: RoomNum,
    pub id: String,
    mine: Mine,
}

impl Rooms {
    /// Prepares a sync over a snapshot taken now.
    pub fn asked(
        &self,
        reader: Reader,
        since: Option<SyncToken>,
        full_state: bool,
        filter: Arc<Filter>,
    ) -> Result<SyncView> {
        // The typing serial is read first: a change in between is told twice rather than never.
        let typing = self.0.typing.serial();
        let read = Arc::new(self.read()?);
        let at = store::Get::position(&*read)?;
        let now = SyncToken { at, typing, messages: at };
        // A token from the future comes from a database that was since restored: everything is told anew.
        let since = since.filter(|since| since.at <= now.at);
        let ignored = Ignored::of(&*read, reader.user)?;
        Ok(SyncView { rooms: self.clone(), read, reader, since, now, full_state, filter, ignored })
    }
}

impl SyncView {
    fn since(&self) -> Position {
        self.since.map_or(Position(0), |since| since.at)
    }

    /// The next room of a list with something to tell, behind `after`. `also` are rooms with news kept elsewhere, in order.
    pub fn next(&self, list: SyncSection, after: Option<RoomNum>, also: &[RoomNum]) -> Result<Option<ChangedRoom>> {
        let mut found = None;
        user_room::list_mine(&*self.read, self.reader.user, after, &mut |num, mine| {
            if SyncSection::of(mine.membership) == list && self.has_news(list, num, &mine, also)? {
                let id = room::get_of(&*self.read, num)?.id;
                if self.filter.room.wants_room(&id) {
                    found = Some(ChangedRoom { num, id, mine });
                }
            }
            Ok(until(found.is_some()))
        })?;
        Ok(found)
    }

    /// Whether any room has something to tell.
    pub fn any(&self, also: &[RoomNum]) -> Result<bool> {
        let mut any = false;
        user_room::list_mine(&*self.read, self.reader.user, None, &mut |num, mine| {
            any = self.has_news(SyncSection::of(mine.membership), num, &mine, also)?
                && self.filter.room.wants_room(&room::get_of(&*self.read, num)?.id);
            Ok(until(any))
        })?;
        Ok(any)
    }

    fn has_news(&self, list: SyncSection, num: RoomNum, mine: &Mine, also: &[RoomNum]) -> store::Result<bool> {
        let is_new = self.since.is_none() || mine.since > self.since();
        match list {
            SyncSection::Join => {
                Ok(is_new || self.full_state || also.binary_search(&num).is_ok() || self.room_moved(num)?)
            }
            SyncSection::Invite => Ok((is_new || self.full_state) && !self.is_inviter_ignored(num, mine)?),
            SyncSection::Knock => Ok(is_new || self.full_state),
            // After a leave with a forget at once, the user's other devices still learn of the leave.
            SyncSection::Leave if mine.forgotten => Ok(self.since.is_some() && is_new),
            // A first sync, or one with `full_state`, lists rooms left long ago only when the filter asks for them.
            SyncSection::Leave if self.since.is_none() || self.full_state && !is_new => {
                Ok(self.filter.room.include_leave)
            }
            SyncSection::Leave => Ok(is_new),
        }
    }

    /// Whether the invite comes from a user whom the reader ignores; such invites are not shown.
    fn is_inviter_ignored(&self, num: RoomNum, mine: &Mine) -> store::Result<bool> {
        if self.ignored.is_empty() {
            return Ok(false);
        }
        if let Some(own) = mine.event {
            return Ok(self.ignored.contains(event::row_of(&*self.read, own)?.sender));
        }
        // For an invite from outside: the member event is the last of its stripped state.
        let stripped = user_room::stripped(&*self.read, self.reader.user, num)?.unwrap_or_default();
        let Some(own) = read_stripped(&stripped).pop() else { return Ok(false) };
        Ok(user::num(&*self.read, &own.sender)?.is_some_and(|inviter| self.ignored.contains(inviter)))
    }

    fn room_moved(&self, num: RoomNum) -> store::Result<bool> {
        let since = self.since();
        if room::get_of(&*self.read, num)?.latest > since || self.typing_moved(num) {
            return Ok(true);
        }
        let mut moved = false;
        receipt::list_newest(&*self.read, num, since, self.now.at, &mut |whose, _| {
            moved = self.is_shown(&whose) || (whose.kind == receipt::Kind::FullyRead && whose.user == self.reader.user);
            Ok(until(moved))
        })?;
        Ok(moved)
    }

    /// The typing users, when they changed; for a room told whole, when there are any.
    fn typing(&self, num: RoomNum, whole: bool) -> Option<Vec<UserNum>> {
        let since = if whole { 0 } else { self.since.map_or(0, |since| since.typing) };
        self.rooms.0.typing.changed(num, since).filter(|users| !whole || !users.is_empty())
    }

    /// An empty list, for an app that may still show users who typed before this server was restarted. Wakes no app: it
    /// is added to the next news of the room.
    fn typing_of_before(&self, num: RoomNum, whole: bool) -> Option<Vec<UserNum>> {
        let since = self.since.filter(|_| !whole)?;
        self.rooms.0.typing.may_be_stale(num, since.typing).then(Vec::new)
    }

    fn typing_moved(&self, num: RoomNum) -> bool {
        self.typing(num, false).is_some()
    }

    /// Writes the members of one room's object, without the room account data.
    pub async fn write(&self, pen: &ChunkWriter, list: SyncSection, news: &ChangedRoom) -> Result<(), ChunkError> {
        match list {
            SyncSection::Join => self.write_joined(pen, news).await,
            SyncSection::Leave => self.write_left(pen, news).await,
            SyncSection::Invite => self.write_stripped(pen, news, "invite_state"),
            SyncSection::Knock => self.write_stripped(pen, news, "knock_state"),
        }
    }

    fn visit(&self, news: &ChangedRoom) -> store::Result<RoomView> {
        let format = Format {
            now_ms: self.rooms.0.parts.clock.now_ms(),
            user: self.reader.user,
            device: self.reader.device.clone(),
            room_id: None,
            fields: self.filter.fields(),
            federation: self.filter.is_federation(),
            ignored: self.ignored.clone(),
            ..Format::default()
        };
        RoomView::new(self.read.clone(), news.num, self.reader.user_id.as_str(), format)
    }

    // ---- joined rooms --------------------------------------------------------------------------------------------

    async fn write_joined(&self, pen: &ChunkWriter, news: &ChangedRoom) -> Result<(), ChunkError> {
        let mut visit = self.visit(news)?;
        let is_new = self.since.is_none() || news.mine.since > self.since();
        let share = RoomDelta::new(self, &mut visit, news, is_new, self.now.at)?;
        let members_moved = share.write_timeline(self, pen, &mut visit).await?;
        if share.full || members_moved {
            self.write_summary(pen, &visit)?;
        }
        self.write_unread(pen, news.num)?;
        self.write_ephemeral(pen, news, share.full)
    }

    fn write_summary(&self, pen: &ChunkWriter, visit: &RoomView) -> store::Result<()> {
        let heroes = heroes(visit)?;
        pen.with(|out| {
            out.extend_from_slice(b",\"summary\":{");
            let counts = (visit.room.joined, visit.room.invited);
            let counts = format!("\"m.joined_member_count\":{},\"m.invited_member_count\":{}", counts.0, counts.1);
            out.extend_from_slice(counts.as_bytes());
            if let Some(heroes) = &heroes {
                out.extend_from_slice(b",\"m.heroes\":[");
                let mut first = true;
                for hero in heroes {
                    comma(out, &mut first);
                    json::write_string(out, &user::id_of(&*visit.read, *hero)?);
                }
                out.push(b']');
            }
            out.push(b'}');
            Ok(())
        })
    }

    fn write_unread(&self, pen: &ChunkWriter, num: RoomNum) -> store::Result<()> {
        let unread = unread::get(&*self.read, self.reader.user, num)?;
        let split = self.filter.room.timeline.unread_thread_notifications;
        let (main, threads) = match split {
            true => unread.by_thread(),
            false => ((unread.notifications, unread.highlights), BTreeMap::new()),
        };
        pen.text(",\"unread_notifications\":");
        pen.text(&counts(main));
        if split {
            pen.text(",\"unread_thread_notifications\":{");
            let mut first = true;
            for (root, unread) in threads {
                let root = event::row_of(&*self.read, root)?.id.text();
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
    fn write_ephemeral(&self, pen: &ChunkWriter, news: &ChangedRoom, full: bool) -> Result<(), ChunkError> {
        let wants =
            |kind| self.filter.room.ephemeral.wants_type(kind) && self.filter.room.ephemeral.wants_room(&news.id);
        pen.text(",\"ephemeral\":{\"events\":[");
        let mut first = true;
        if wants("m.receipt") {
            self.write_receipts(pen, news.num, if full { Position(0) } else { self.since() }, &mut first)?;
        }
        if wants("m.typing")
            && let Some(users) = self.typing(news.num, full).or_else(|| self.typing_of_before(news.num, full))
        {
            let ids = users.iter().map(|user| user::id_of(&*self.read, *user)).collect::<store::Result<Vec<_>>>()?;
            pen.with(|out| {
                comma(out, &mut first);
                out.extend_from_slice(b"{\"type\":\"m.typing\",\"content\":{\"user_ids\":[");
                let mut first = true;
                for id in &ids {
                    comma(out, &mut first);
                    json::write_string(out, id);
                }
                out.extend_from_slice(b"]}}");
            });
        }
        pen.text("]}");
        Ok(())
    }

    fn is_shown(&self, whose: &Whose) -> bool {
        match whose.kind {
            receipt::Kind::Read => true,
            receipt::Kind::Private => whose.user == self.reader.user,
            receipt::Kind::FullyRead => false,
        }
    }

    /// The newest receipts, by event: at most `RECEIPTS_MAX`, whatever the number of members.
    fn write_receipts(&self, pen: &ChunkWriter, num: RoomNum, since: Position, first: &mut bool) -> store::Result<()> {
        let mut newest: Vec<(Whose, Receipt)> = Vec::new();
        receipt::list_newest(&*self.read, num, since, self.now.at, &mut |whose, receipt| {
            if self.is_shown(&whose) {
                newest.push((whose, receipt));
            }
            Ok(until(newest.len() == RECEIPTS_MAX))
        })?;
        if newest.len() == RECEIPTS_MAX {
            self.add_own(num, since, &mut newest)?;
        }
        if newest.is_empty() {
            return Ok(());
        }
        newest.sort_by(|(a_whose, a), (b_whose, b)| {
            let a_at = a.at;
            let a = (&a.event_id, a_whose.kind as u8, a_whose.user, !a_whose.thread.is_empty(), b.at);
            a.cmp(&(&b.event_id, b_whose.kind as u8, b_whose.user, !b_whose.thread.is_empty(), a_at))
        });
        // A user may have one receipt in each thread and one outside all threads. For each event and user only one is
        // told: the one that covers most.
        newest.dedup_by(|(whose, receipt), (kept_whose, kept)| {
            receipt.event_id == kept.event_id && whose.kind == kept_whose.kind && whose.user == kept_whose.user
        });
        pen.with(|out| {
            comma(out, first);
            write_receipts(&self.read, &newest, out)
        })
    }

    /// Adds the reader's own receipts, which other users' receipts must not crowd out: the app computes unread counts
    /// by them.
    fn add_own(&self, num: RoomNum, since: Position, newest: &mut Vec<(Whose, Receipt)>) -> store::Result<()> {
        for kind in [receipt::Kind::Read, receipt::Kind::Private] {
            let own = Whose { user: self.reader.user, kind, thread: String::new() };
            if newest.iter().all(|(told, _)| *told != own)
                && let Some(mark) = receipt::get(&*self.read, num, &own)?
                && mark.at > since
                && mark.at <= self.now.at
            {
                newest.push((own, mark));
            }
        }
        Ok(())
    }

    /// The read marker in its form as room account data; nothing when it was told already.
    pub fn fully_read(&self, news: &ChangedRoom) -> Result<Option<String>> {
        let whose = Whose { user: self.reader.user, kind: receipt::Kind::FullyRead, thread: String::new() };
        let is_new = self.since.is_none() || self.full_state || news.mine.since > self.since();
        let marker = receipt::get(&*self.read, news.num, &whose)?;
        Ok(marker.filter(|marker| is_new || marker.at > self.since()).map(|marker| marker.event_id))
    }

    /// Whether the whole room is told, not only the changes.
    pub fn is_whole(&self, news: &ChangedRoom) -> bool {
        self.since.is_none() || self.full_state || news.mine.since > self.since()
    }

    // ---- rooms left ----------------------------------------------------------------------------------------------

    async fn write_left(&self, pen: &ChunkWriter, news: &ChangedRoom) -> Result<(), ChunkError> {
        let mut visit = self.visit(news)?;
        let left_now = news.mine.left_at == Some(news.mine.since);
        // No event after a leave is shown; neither a ban nor a declined invite reveals any.
        let upto = match news.mine.left_at {
            Some(left_at) if left_now || self.since.is_none() || self.full_state => left_at,
            _ => return self.write_own_leave(pen, news, &mut visit).await,
        };
        let was_told = match self.since {
            Some(since) if since.at < upto => was_joined(&visit, self.reader.user_id.as_str(), since.at)?,
            _ => false,
        };
        let share = RoomDelta::new(self, &mut visit, news, !was_told, upto)?;
        share.write_timeline(self, pen, &mut visit).await?;
        Ok(())
    }

    /// Writes a leave of a room in which the user was not joined before: only the member event, if we have it.
    async fn write_own_leave(
        &self,
        pen: &ChunkWriter,
        news: &ChangedRoom,
        visit: &mut RoomView,
    ) -> Result<(), ChunkError> {
        pen.text("\"timeline\":{\"limited\":false,\"events\":[");
        if let Some(own) = news.mine.event.filter(|_| !news.mine.outside)
            && self.filter.room.timeline.wants(&*self.read, &event::row_of(&*self.read, own)?)?
        {
            visit.write_events(pen, &[(0, own)]).await?;
        }
        pen.text("]},\"state\":{\"events\":[]}");
        Ok(())
    }

    // ---- invites and knocks --------------------------------------------------------------------------------------

    fn write_stripped(&self, pen: &ChunkWriter, news: &ChangedRoom, name: &str) -> Result<(), ChunkError> {
        pen.text(&format!("\"{name}\":{{\"events\":"));
        match user_room::stripped(&*self.read, self.reader.user, news.num)? {
            Some(stripped) => pen.bytes(&stripped),
            None => self.write_own_stripped(pen, news)?,
        }
        pen.text("}");
        Ok(())
    }

    /// Stripped state of a room we hold: the state shown to users outside, and the invite itself.
    fn write_own_stripped(&self, pen: &ChunkWriter, news: &ChangedRoom) -> store::Result<()> {
        let mut shown = Vec::with_capacity(stripped::SHOWN.len() + 2);
        for kind in stripped::SHOWN {
            shown.extend(present(&self.read, news.num, kind.name().unwrap_or_default(), "")?);
        }
        if let Some(own) = news.mine.event {
            let inviter = user::id_of(&*self.read, event::row_of(&*self.read, own)?.sender)?;
            if inviter != self.reader.user_id.as_str() {
                shown.extend(present(&self.read, news.num, "m.room.member", &inviter)?);
            }
            shown.push(own);
        }
        pen.with(|out| {
            out.push(b'[');
            let mut first = true;
            for num in shown {
                comma(out, &mut first);
                event_json::write_stripped(&*self.read, &event::row_of(&*self.read, num)?, out)?;
            }
            out.push(b']');
            Ok(())
        })
    }
}

fn counts((notifications, highlights): (u64, u64)) -> String {
    format!("{{\"highlight_count\":{highlights},\"notification_count\":{notifications}}}")
}

/// Timeline and state of one room, which must fit together.
struct RoomDelta {
    /// The whole room is told, not only the changes.
    full: bool,
    page: Page,
    limited: bool,
    prev_batch: Token,
    /// The state the app knows, the one at the timeline's start, and the one at its end.
    known: Option<Root>,
    start: Option<Root>,
    end: Option<Root>,
}

impl RoomDelta {
    fn new(
        asked: &SyncView,
        visit: &mut RoomView,
        news: &ChangedRoom,
        is_new: bool,
        upto: Position,
    ) -> store::Result<RoomDelta> {
        let filter = &asked.filter.room.timeline;
        let from = if is_new { i64::MIN } else { asked.since().0 as i64 };
        // The missing events in between are fetched when the app pages back from there.
        let hole = visit.room.hole_below(upto.0 as i64).map(|hole| hole.next - 1).filter(|hole| *hole > from);
        let from = hole.unwrap_or(from);
        let limit = filter.limit(TIMELINE_EVENTS, TIMELINE_EVENTS_MAX);
        let mut page = match filter.wants_room(&news.id) {
            true => visit.between(from, upto.0 as i64, true, limit, filter)?,
            false => visit.between(from, from, true, limit, filter)?,
        };
        page.events.reverse();
        let begins_elsewhere = from == i64::MIN && visit.begins_elsewhere()?;
        let limited = page.next.is_some() || hole.is_some() || begins_elsewhere;
        let oldest = page.events.first().map(|(order, _)| *order);
        let prev_batch = match (oldest, page.next) {
            (Some(oldest), _) => Token(oldest - 1),
            (None, Some(next)) => next,
            (None, None) => Token(if is_new && hole.is_none() { upto.0 as i64 } else { from }),
        };
        let end = state_at(visit, upto)?;
        let start = match page.events.first() {
            None => end,
            Some((order, _)) if *order > 0 => state_at(visit, Position(*order as u64 - 1))?,
            Some((_, num)) => event::row_of(&*visit.read, *num)?.before,
        };
        let full = is_new || asked.full_state;
        let known = match full {
            true => None,
            false => state_at(visit, asked.since())?,
        };
        Ok(RoomDelta { full, page, limited, prev_batch, known, start, end })
    }

    /// Answers whether the joined members changed since the state the app knows.
    async fn write_timeline(
        &self,
        asked: &SyncView,
        pen: &ChunkWriter,
        visit: &mut RoomView,
    ) -> Result<bool, ChunkError> {
        pen.text(&format!(
            "\"timeline\":{{\"limited\":{},\"prev_batch\":\"{}\",\"events\":[",
            self.limited, self.prev_batch
        ));
        let mut members = visit.write_events(pen, &self.page.events).await?;
        pen.text("]},\"state\":{\"events\":[");
        let filter = &asked.filter.room.state;
        let list = |members| StateList {
            root: self.end,
            members,
            filter: Some(filter),
            told: &self.page.events,
            before: self.start,
        };
        let mut first = true;
        let moved = !self.full && self.write_difference(pen, visit, &list(None), &mut first).await?;
        if filter.lazy_load_members {
            if self.full || moved {
                members.extend(heroes(visit)?.unwrap_or_default());
            }
            if self.full {
                members.push(asked.reader.user);
            }
            members.sort_unstable();
            members.dedup();
        }
        let members = filter.lazy_load_members.then_some(&members[..]);
        match (self.full, members) {
            (true, _) => visit.write_state(pen, &list(members)).await?,
            (false, Some(members)) => {
                let unchanged = self.unchanged(visit, members)?;
                visit.write_members_of(pen, &list(None), &unchanged, &mut first).await?;
            }
            (false, None) => {}
        }
        pen.text("]}");
        Ok(moved)
    }

    /// Those users whose member event no difference contains.
    fn unchanged(&self, visit: &RoomView, users: &[UserNum]) -> store::Result<Vec<UserNum>> {
        let mut unchanged = Vec::with_capacity(users.len());
        for user in users {
            let user_id = user::id_of(&*visit.read, *user)?;
            let Some(key) = state_tree::key(&*visit.read, "m.room.member", &user_id)? else { continue };
            let event = |root: Option<Root>| root.map_or(Ok(None), |root| state_tree::get(&*visit.read, root, key));
            if event(self.known)? == event(self.end)? {
                unchanged.push(*user);
            }
        }
        Ok(unchanged)
    }

    /// Writes the state that changed between the state the app knows and the end, except for events in the timeline.
    /// Member events are included even for lazy loading: nothing else would tell such an app of joins and leaves in a
    /// gap. Answers whether the joined members changed.
    async fn write_difference(
        &self,
        pen: &ChunkWriter,
        visit: &mut RoomView,
        list: &StateList<'_>,
        first: &mut bool,
    ) -> Result<bool, ChunkError> {
        let mut moved = false;
        let mut after = None;
        let mut more = self.known != self.end;
        while more {
            let batch = difference(visit, self.known, self.end, after)?;
            for (key, old, new) in &batch {
                after = Some(*key);
                let row = event::row_of(&*visit.read, *new)?;
                moved |= row.kind == Kind::MEMBER;
                if self.is_told(visit, *old, *new, &row)? {
                    continue;
                }
                visit.write_state_event(pen, list, *new, first)?;
                pen.pause().await;
            }
            more = batch.len() == DIFFERENCE_BATCH;
        }
        Ok(moved)
    }

    /// Whether the timeline contains the new event, and the state at the timeline's start has the event the app knows.
    fn is_told(
        &self,
        visit: &RoomView,
        old: Option<EventNum>,
        new: EventNum,
        row: &event_row::Row,
    ) -> store::Result<bool> {
        if !self.page.events.iter().any(|(_, told)| *told == new) {
            return Ok(false);
        }
        let at_start = match (self.start, row.state_key) {
            (Some(start), Some(key)) => state_tree::get(&*visit.read, start, key)?,
            _ => None,
        };
        Ok(at_start == old)
    }
}

/// The keys after `after` in which two states differ and the second state has an event.
fn difference(
    visit: &RoomView,
    known: Option<Root>,
    end: Option<Root>,
    after: Option<StateKeyNum>,
) -> store::Result<Vec<(StateKeyNum, Option<EventNum>, EventNum)>> {
    let mut batch = Vec::new();
    state_tree::diff(&*visit.read, known, end, &mut |key, old, new| {
        if after.is_none_or(|after| key > after)
            && let Some(new) = new
        {
            batch.push((key, old, new));
        }
        Ok(until(batch.len() == DIFFERENCE_BATCH))
    })?;
    Ok(batch)
}

/// The room's state as of a position; the newest is the row's own.
fn state_at(visit: &RoomView, at: Position) -> store::Result<Option<Root>> {
    if at >= visit.room.latest && visit.room.latest != Position(0) && visit.room.state.is_some() {
        return Ok(visit.room.state);
    }
    Ok(timeline::state_at(&*visit.read, visit.num, at)?.map(|(_, root)| root))
}

/// Whether a user was joined as of a position.
fn was_joined(visit: &RoomView, user_id: &str, at: Position) -> store::Result<bool> {
    let (Some(root), Some(key)) = (state_at(visit, at)?, state_tree::key(&*visit.read, "m.room.member", user_id)?)
    else {
        return Ok(false);
    };
    let Some(event) = state_tree::get(&*visit.read, root, key)? else { return Ok(false) };
    let member = event::row_of(&*visit.read, event)?.member;
    Ok(member.is_some_and(|(membership, _)| membership == Membership::Join))
}

/// The event that is a room's state now for a type and key.
fn present(read: &Read, num: RoomNum, kind: &str, state_key: &str) -> store::Result<Option<EventNum>> {
    match state_tree::key(read, kind, state_key)? {
        Some(key) => current_state::state(read, num, Kind::of(kind), key),
        None => Ok(None),
    }
}

/// The members that stand for a room without a name or alias; none for a room that has one.
fn heroes(visit: &RoomView) -> store::Result<Option<Vec<UserNum>>> {
    for (kind, field) in [("m.room.name", "name"), ("m.room.canonical_alias", "alias")] {
        let Some(named) = present(&visit.read, visit.num, kind, "")? else { continue };
        let content = event_json::content(&*visit.read, &event::row_of(&*visit.read, named)?)?;
        // A removed name is an event without a name.
        if json::read::get_text(&content, field).is_some_and(|name| !name.is_empty()) {
            return Ok(None);
        }
    }
    let mut heroes = Vec::new();
    let present = [Membership::Join, Membership::Invite];
    for membership in present.into_iter().chain([Membership::Leave, Membership::Ban]) {
        if !present.contains(&membership) && !heroes.is_empty() {
            break;
        }
        member::list(&*visit.read, visit.num, membership, None, &mut |user, _| {
            if user != visit.viewer.user && heroes.len() < HEROES {
                heroes.push(user);
            }
            Ok(until(heroes.len() == HEROES))
        })?;
    }
    Ok(Some(heroes))
}

/// One `m.receipt` event out of receipts sorted by event, then kind.
fn write_receipts(read: &Read, sorted: &[(Whose, Receipt)], out: &mut Vec<u8>) -> store::Result<()> {
    out.extend_from_slice(b"{\"type\":\"m.receipt\",\"content\":{");
    let mut first_event = true;
    for of_event in sorted.chunk_by(|(_, a), (_, b)| a.event_id == b.event_id) {
        comma(out, &mut first_event);
        json::write_string(out, &of_event[0].1.event_id);
        out.extend_from_slice(b":{");
        let mut first_kind = true;
        for of_kind in of_event.chunk_by(|(a, _), (b, _)| a.kind == b.kind) {
            comma(out, &mut first_kind);
            json::write_string(out, of_kind[0].0.kind.as_str());
            out.extend_from_slice(b":{");
            let mut first_user = true;
            for (whose, receipt) in of_kind {
                comma(out, &mut first_user);
                json::write_string(out, &user::id_of(read, whose.user)?);
                out.extend_from_slice(format!(":{{\"ts\":{}", receipt.ts).as_bytes());
                if !whose.thread.is_empty() {
                    out.extend_from_slice(b",\"thread_id\":");
                    json::write_string(out, &whose.thread);
                }
                out.push(b'}');
            }
            out.push(b'}');
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"}}");
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
