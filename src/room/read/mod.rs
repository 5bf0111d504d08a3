//! Reading a room: one event, pages of its timeline, its state, its members.
//!
//! Whatever a room decides the length of is written piece by piece from a cursor. A page holds the numbers of its events,
//! never the events.

use std::ops::ControlFlow;
use std::sync::Arc;

use ruma::{EventId, OwnedUserId, RoomId};

use super::Rooms;
use super::error::{Error, Result};
use super::ignored::Ignored;
use super::receive::backfill::Gap;
use crate::base::{self, ChunkError, Chunks, Pen, comma};
use crate::budget::Refused;
use crate::matrix::json;
use crate::matrix::visibility::History;
use crate::store::tables::room::Room;
use crate::store::tables::room::event::{self, Kind, Membership, Root, Row};
use crate::store::tables::room::member::StateCursor;
use crate::store::tables::room::relation::{self, Rel};
use crate::store::tables::room::{self, member, state_tree, timeline};
use crate::store::tables::user;
use crate::store::{self, EventNum, Position, Read, RoomNum, UserNum};
use event_json::{Detail, Format};
use filter::Events;
use visibility::Viewer;

pub mod event_json;
pub mod filter;
pub mod sync;
pub mod visibility;

/// What an answer being written should be granted: a piece, the event that goes beyond it, and the cursor.
pub const ANSWER_BYTES: u64 = 96 * 1024;
/// Events of one page; twelve bytes each are held.
pub const PAGE_EVENTS_MAX: usize = 500;
/// Rows looked at for one page. A filter that fits next to nothing gets a short page and a token to go on with.
const PAGE_ROWS_MAX: usize = 2_000;
/// Numbers read ahead of what is being written.
const BATCH: usize = 128;
/// How far from an event `recurse` goes.
const RELATED_HOPS: usize = 3;

/// Who reads.
#[derive(Clone, Debug)]
pub struct Reader {
    pub user: UserNum,
    pub user_id: OwnedUserId,
    pub device: String,
}

/// A place between two events of a timeline, as apps are given it: `t` and the order of the event before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub i64);

impl Token {
    /// Also reads the token of a sync, which stands for the end of the timeline then.
    pub fn parse(text: &str) -> Option<Token> {
        match text.split_at_checked(1)? {
            ("t", order) => order.parse().ok().map(Token),
            ("s", _) => sync::Since::parse(text).map(|since| Token(since.at.0 as i64)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// Which part of a timeline.
#[derive(Clone, Debug)]
pub struct Paging {
    pub from: Option<Token>,
    pub to: Option<Token>,
    pub backwards: bool,
    pub limit: usize,
    pub filter: Events,
}

/// Which members.
#[derive(Clone, Debug, Default)]
pub struct Who {
    pub at: Option<Token>,
    pub only: Option<Membership>,
    pub not: Option<Membership>,
}

/// Which relations of an event.
#[derive(Clone, Debug)]
pub struct Related {
    pub event_id: String,
    pub rel_type: Option<String>,
    pub kind: Option<String>,
    pub from: Option<Token>,
    pub to: Option<Token>,
    pub backwards: bool,
    pub limit: usize,
    /// What relates to the relations too, a few hops on.
    pub recurse: bool,
}

/// Which threads of a room.
#[derive(Clone, Debug)]
pub struct Threads {
    /// Only those the reader took part in.
    pub participated: bool,
    pub from: Option<Token>,
    pub limit: usize,
}

impl Rooms {
    /// One event; `NotFound` when it is not there or not theirs to see, the whole room included.
    pub async fn event(&self, reader: &Reader, room_id: &RoomId, event_id: &EventId) -> Result<Vec<u8>> {
        let event_id = event_id.to_owned();
        self.visiting(reader, room_id, move |visit| {
            let (num, row) = visit.visible(event_id.as_str())?;
            let mut out = Vec::new();
            event_json::write(&*visit.read, num, &row, &visit.format, Detail::Timeline, &mut out)?;
            Ok(out)
        })
        .await
        .map_err(|refused| if matches!(refused, Error::Forbidden(_)) { Error::NotFound } else { refused })
    }

    /// A page of the timeline. Where something is missing the servers of the room are asked for it, when `may_ask` allows.
    pub async fn messages(
        &self,
        reader: &Reader,
        room_id: &RoomId,
        paging: Paging,
        may_ask: impl FnOnce() -> bool,
    ) -> Result<impl Chunks> {
        let (mut visit, mut start, mut page) = self.page(reader, room_id, &paging, None).await?;
        if let Some(gap) = page.gap {
            let more = match may_ask() {
                true => {
                    drop(visit);
                    let more = self.backfill_for_app(room_id, gap).await;
                    let without = matches!(more, Ok(false)).then_some(gap);
                    (visit, start, page) = self.page(reader, room_id, &paging, without).await?;
                    more
                }
                false => Err(ask_later()),
            };
            // An app takes an empty page for the beginning of the room, and remembers it. After an error it asks again.
            if page.events.is_empty() && page.gap.is_some() {
                more?;
            }
        }
        Ok(base::written(move |pen| visit.write_messages(pen, paging, start, page)))
    }

    /// An event with what stands around it.
    pub async fn context(
        &self,
        reader: &Reader,
        room_id: &RoomId,
        event_id: &EventId,
        limit: usize,
        filter: Events,
    ) -> Result<impl Chunks> {
        let event_id = event_id.to_owned();
        let mut visit = self.visit(reader, room_id).await?;
        let (visit, around) = base::blocking(move || {
            let around = visit.around(event_id.as_str(), limit, &filter)?;
            Ok::<_, Error>((visit, (around, filter)))
        })
        .await?;
        let (around, filter) = around;
        Ok(base::written(move |pen| visit.write_context(pen, around, filter)))
    }

    /// The whole state: now, or when they left.
    pub async fn state(&self, reader: &Reader, room_id: &RoomId) -> Result<impl Chunks> {
        let mut visit = self.visit(reader, room_id).await?;
        Ok(base::written(move |pen| async move {
            let root = visit.root()?;
            pen.text("[");
            visit.write_state(&pen, &StateList { root, ..StateList::default() }).await?;
            pen.text("]");
            Ok(())
        }))
    }

    /// One state event's content, or all of it.
    pub async fn state_event(
        &self,
        reader: &Reader,
        room_id: &RoomId,
        kind: &str,
        state_key: &str,
        whole: bool,
    ) -> Result<Vec<u8>> {
        let (kind, state_key) = (kind.to_owned(), state_key.to_owned());
        self.visiting(reader, room_id, move |visit| {
            let key = state_tree::key(&*visit.read, &kind, &state_key)?.ok_or(Error::NotFound)?;
            let root = visit.root()?.ok_or(Error::NotFound)?;
            let num = state_tree::get(&*visit.read, root, key)?.ok_or(Error::NotFound)?;
            let row = event::row_of(&*visit.read, num)?;
            if !whole {
                return Ok(event_json::content(&*visit.read, &row)?);
            }
            let mut out = Vec::new();
            event_json::write(&*visit.read, num, &row, &visit.format, Detail::State, &mut out)?;
            Ok(out)
        })
        .await
    }

    /// The member events: now, or at a place in the timeline.
    pub async fn members(&self, reader: &Reader, room_id: &RoomId, who: Who) -> Result<impl Chunks> {
        let mut visit = self.visit(reader, room_id).await?;
        Ok(base::written(move |pen| async move {
            pen.text("{\"chunk\":[");
            visit.write_members(&pen, &who).await?;
            pen.text("]}");
            Ok(())
        }))
    }

    /// Who is joined now, with what they call themselves.
    pub async fn joined_members(&self, reader: &Reader, room_id: &RoomId) -> Result<impl Chunks> {
        let mut visit = self.visit(reader, room_id).await?;
        if !visit.viewer.is_joined() {
            return Err(Error::Forbidden("You are not in this room".to_owned()));
        }
        Ok(base::written(move |pen| async move {
            pen.text("{\"joined\":{");
            visit.write_joined_members(&pen).await?;
            pen.text("}}");
            Ok(())
        }))
    }

    /// The events that relate to an event.
    pub async fn relations(&self, reader: &Reader, room_id: &RoomId, related: Related) -> Result<impl Chunks> {
        let mut visit = self.visit(reader, room_id).await?;
        let recurse = related.recurse;
        let (visit, page) = base::blocking(move || {
            let page = visit.related(&related)?;
            Ok::<_, Error>((visit, page))
        })
        .await?;
        Ok(base::written(move |pen| visit.write_related(pen, page, recurse)))
    }

    /// The roots of a room's threads, that with the newest reply first.
    pub async fn threads(&self, reader: &Reader, room_id: &RoomId, threads: Threads) -> Result<impl Chunks> {
        let mut visit = self.visit(reader, room_id).await?;
        let (visit, page) = base::blocking(move || {
            let page = visit.threads(&threads)?;
            Ok::<_, Error>((visit, page))
        })
        .await?;
        Ok(base::written(move |pen| visit.write_related(pen, page, false)))
    }

    async fn page(
        &self,
        reader: &Reader,
        room_id: &RoomId,
        paging: &Paging,
        without: Option<Gap>,
    ) -> Result<(Visit, Token, Page)> {
        let (paging, mut visit) = (paging.clone(), self.visit(reader, room_id).await?);
        base::blocking(move || {
            let start = visit.start(&paging);
            let page = visit.page(&paging, start, without)?;
            Ok((visit, start, page))
        })
        .await
    }

    /// Opens a room for somebody who may see some of it.
    async fn visit(&self, reader: &Reader, room_id: &RoomId) -> Result<Visit> {
        let (rooms, reader, room_id) = (self.clone(), reader.clone(), room_id.to_owned());
        base::blocking(move || Visit::open(&rooms, &reader, &room_id)).await
    }

    async fn visiting<T: Send + 'static>(
        &self,
        reader: &Reader,
        room_id: &RoomId,
        work: impl FnOnce(&mut Visit) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (rooms, reader, room_id) = (self.clone(), reader.clone(), room_id.to_owned());
        base::blocking(move || work(&mut Visit::open(&rooms, &reader, &room_id)?)).await
    }
}

/// A room in one snapshot, as one user sees it.
pub(super) struct Visit {
    pub(super) read: Arc<Read>,
    pub(super) num: RoomNum,
    pub(super) room: Room,
    pub(super) viewer: Viewer,
    pub(super) format: Format,
}

/// Numbers of a page's events, in the order they are given.
pub(super) struct Page {
    pub(super) events: Vec<(i64, EventNum)>,
    /// Where the next page begins; none at the end.
    pub(super) next: Option<Token>,
    /// It ends where something is missing.
    gap: Option<Gap>,
}

/// What stands around an event.
struct Around {
    num: EventNum,
    order: i64,
    before: Page,
    after: Page,
}

/// Which state to write, and what of it.
#[derive(Default)]
pub(super) struct StateList<'a> {
    pub root: Option<Root>,
    /// Only these users' member events; all when none is given.
    pub members: Option<&'a [UserNum]>,
    pub filter: Option<&'a Events>,
    /// Events that are told of elsewhere; in their place what was in the state `before`.
    pub told: &'a [(i64, EventNum)],
    pub before: Option<Root>,
}

impl Visit {
    fn open(rooms: &Rooms, reader: &Reader, room_id: &RoomId) -> Result<Visit> {
        let read = rooms.read()?;
        let no = || Error::Forbidden("You are not in this room".to_owned());
        let num = room::num(&read, room_id.as_str())?.ok_or_else(no)?;
        let format = Format {
            now_ms: rooms.0.parts.clock.now_ms(),
            user: reader.user,
            device: reader.device.clone(),
            room_id: Some(room_id.to_string()),
            ignored: Ignored::of(&read, reader.user)?,
            ..Format::default()
        };
        let visit = Visit::new(Arc::new(read), num, reader.user_id.as_str(), format)?;
        if !visit.viewer.may_enter() {
            return Err(no());
        }
        Ok(visit)
    }

    pub(super) fn new(read: Arc<Read>, num: RoomNum, user_id: &str, mut format: Format) -> store::Result<Visit> {
        let room = room::get_of(&*read, num)?;
        let viewer = Viewer::new(&*read, num, format.user, user_id)?;
        (format.upto, format.member_key) = (viewer.sees_upto(), viewer.member_key);
        Ok(Visit { read, num, room, viewer, format })
    }

    /// The state they may see: now, or when they left.
    fn root(&self) -> store::Result<Option<Root>> {
        if self.viewer.is_joined() || self.viewer.present == History::WorldReadable {
            return Ok(self.room.state);
        }
        match self.viewer.left_at() {
            Some(at) => Ok(timeline::state_at(&*self.read, self.num, at)?.map(|(_, root)| root)),
            None => Ok(None),
        }
    }

    /// The state at a place in the timeline: before our own history of the room, what it was before the event that follows.
    fn root_at(&self, order: i64) -> store::Result<Option<Root>> {
        if let Ok(at) = u64::try_from(order)
            && let Some((_, root)) = timeline::state_at(&*self.read, self.num, Position(at))?
        {
            return Ok(Some(root));
        }
        match timeline::after(&*self.read, self.num, order)? {
            Some((_, next)) => Ok(event::row_of(&*self.read, next)?.before),
            None => Ok(self.room.state),
        }
    }

    /// An event of this room that they may see.
    fn visible(&mut self, event_id: &str) -> Result<(EventNum, Row)> {
        let num = event::num(&*self.read, event_id)?.ok_or(Error::NotFound)?;
        let row = event::row_of(&*self.read, num)?;
        if row.room != self.num || !self.viewer.sees(&*self.read, &row)? {
            return Err(Error::NotFound);
        }
        Ok((num, row))
    }

    // ---- pages ---------------------------------------------------------------------------------------------------

    /// Where a page begins: where it was asked to, or at the end of what they can see, or at the room's beginning.
    fn start(&self, paging: &Paging) -> Token {
        let end = self.viewer.sees_upto().unwrap_or(i64::MAX - 1);
        match paging.from {
            Some(from) => from,
            None if paging.backwards => Token(self.newest().min(end)),
            None => Token(i64::MIN),
        }
    }

    fn newest(&self) -> i64 {
        timeline::at_or_before(&*self.read, self.num, i64::MAX - 1).ok().flatten().map_or(0, |(order, _)| order)
    }

    /// `without`: what is missing there cannot be had.
    fn page(&mut self, paging: &Paging, start: Token, without: Option<Gap>) -> store::Result<Page> {
        let (from, to) = match (paging.backwards, paging.to) {
            (true, to) => (to.map_or(i64::MIN, |to| to.0), start.0),
            (false, to) => (start.0, to.map_or(i64::MAX - 1, |to| to.0)),
        };
        if !paging.backwards {
            return self.between(from, to, false, paging.limit, &paging.filter);
        }
        let hole =
            self.room.hole_below(to).filter(|hole| hole.next - 1 > from && without != Some(Gap::Hole(hole.bottom)));
        if let Some(hole) = hole {
            let mut page = self.between(hole.next - 1, to, true, paging.limit, &paging.filter)?;
            if page.next.is_none() {
                page.gap = Some(Gap::Hole(hole.bottom));
                page.next = Some(Token(hole.next - 1));
            }
            return Ok(page);
        }
        let mut page = self.between(from, to, true, paging.limit, &paging.filter)?;
        if paging.to.is_none() && page.next.is_none() && self.begins_elsewhere()? {
            page.gap = Some(Gap::Beginning);
            let oldest = page.events.last().map_or(start.0, |(order, _)| order - 1);
            page.next = Some(Token(oldest.min(self.room.min_order.min(0) - 1)));
        }
        // Where nobody has more it ends, lest apps ask for ever.
        if page.events.is_empty() && page.gap.is_some() && page.gap == without {
            page.next = None;
        }
        Ok(page)
    }

    /// What they may see and want of `from < order ≤ to`, at most `limit`.
    pub(super) fn between(
        &mut self,
        from: i64,
        to: i64,
        backwards: bool,
        limit: usize,
        filter: &Events,
    ) -> store::Result<Page> {
        let (read, viewer, ignored) = (&*self.read, &mut self.viewer, &self.format.ignored);
        let (mut events, mut last, mut looked_at, mut more) = (Vec::new(), None, 0, false);
        let mut visit = |order, num| {
            if events.len() == limit || looked_at == PAGE_ROWS_MAX {
                more = true;
                return Ok(ControlFlow::Break(()));
            }
            looked_at += 1;
            last = Some(order);
            let row = event::row_of(read, num)?;
            let is_ignored = row.state_key.is_none() && ignored.contains(row.sender);
            if !is_ignored && viewer.sees(read, &row)? && filter.wants(read, &row)? {
                events.push((order, num));
            }
            Ok(ControlFlow::Continue(()))
        };
        match backwards {
            true => timeline::backward(read, self.num, from, to, &mut visit)?,
            false => timeline::forward(read, self.num, from, to, &mut visit)?,
        }
        let next = match (last, backwards) {
            (Some(last), true) => Some(last - 1),
            (Some(last), false) => Some(last),
            // A limit of nothing leaves them where they are.
            (None, true) => Some(to),
            (None, false) => Some(from),
        };
        // Going forwards there may be more later on, so there is a place to go on from as long as there was anything.
        let next = next.filter(|_| more || (!backwards && !events.is_empty())).map(Token);
        Ok(Page { events, next, gap: None })
    }

    /// Whether the room has history that is not stored here.
    pub(super) fn begins_elsewhere(&self) -> store::Result<bool> {
        match self.room.create {
            Some(create) => Ok(event::row_of(&*self.read, create)?.order.is_none()),
            None => Ok(true),
        }
    }

    async fn write_messages(mut self, pen: Pen, paging: Paging, start: Token, page: Page) -> Result<(), ChunkError> {
        pen.text(&format!("{{\"start\":\"{start}\","));
        if let Some(next) = page.next {
            pen.text(&format!("\"end\":\"{next}\","));
        }
        pen.text("\"chunk\":[");
        let senders = self.write_events(&pen, &page.events).await?;
        pen.text("]");
        if paging.filter.lazy_load_members {
            pen.text(",\"state\":[");
            let mut first = true;
            let root = self.root()?;
            self.write_members_of(&pen, &StateList { root, ..StateList::default() }, &senders, &mut first).await?;
            pen.text("]");
        }
        pen.text("}");
        Ok(())
    }

    /// Writes events with commas between them; answers who sent them.
    pub(super) async fn write_events(
        &mut self,
        pen: &Pen,
        events: &[(i64, EventNum)],
    ) -> Result<Vec<UserNum>, ChunkError> {
        let mut senders = Vec::new();
        let mut first = true;
        for (_, num) in events {
            let sender = self.write_event(pen, *num, Detail::Timeline, &mut first)?;
            if !senders.contains(&sender) {
                senders.push(sender);
            }
            pen.pause().await;
        }
        Ok(senders)
    }

    fn write_event(&self, pen: &Pen, num: EventNum, detail: Detail, first: &mut bool) -> store::Result<UserNum> {
        let row = event::row_of(&*self.read, num)?;
        pen.with(|out| {
            comma(out, first);
            event_json::write(&*self.read, num, &row, &self.format, detail, out)
        })?;
        Ok(row.sender)
    }

    // ---- context -------------------------------------------------------------------------------------------------

    fn around(&mut self, event_id: &str, limit: usize, filter: &Events) -> Result<Around> {
        let (num, row) = self.visible(event_id)?;
        let order = row.order.ok_or(Error::NotFound)?;
        let from = self.room.hole_below(order - 1).map_or(i64::MIN, |hole| hole.next - 1);
        let before = self.between(from, order - 1, true, limit / 2, filter)?;
        let after = self.between(order, i64::MAX - 1, false, limit - limit / 2, filter)?;
        Ok(Around { num, order, before, after })
    }

    async fn write_context(mut self, pen: Pen, around: Around, filter: Events) -> Result<(), ChunkError> {
        let start = around.before.next.unwrap_or(Token(around.before.events.last().map_or(around.order, |e| e.0) - 1));
        let end = Token(around.after.events.last().map_or(around.order, |(order, _)| *order));
        pen.text(&format!("{{\"start\":\"{start}\",\"end\":\"{end}\",\"event\":"));
        let mut senders = self.write_events(&pen, &[(around.order, around.num)]).await?;
        for (name, page) in [("events_before", &around.before), ("events_after", &around.after)] {
            pen.text(&format!(",\"{name}\":["));
            senders.extend(self.write_events(&pen, &page.events).await?);
            pen.text("]");
        }
        senders.sort_unstable();
        senders.dedup();
        let last = around.after.events.last().map_or(around.num, |(_, num)| *num);
        let root = event::row_of(&*self.read, last)?.before.or(self.root()?);
        let members = filter.lazy_load_members.then_some(&senders[..]);
        pen.text(",\"state\":[");
        self.write_state(&pen, &StateList { root, members, ..StateList::default() }).await?;
        pen.text("]}");
        Ok(())
    }

    // ---- state ---------------------------------------------------------------------------------------------------

    /// Writes a state's events with commas between them.
    pub(super) async fn write_state(&mut self, pen: &Pen, list: &StateList<'_>) -> Result<(), ChunkError> {
        let Some(root) = list.root else { return Ok(()) };
        let mut first = true;
        if self.room.state == Some(root) {
            self.write_present(pen, list, &mut first).await?;
        } else {
            self.write_tree(pen, list, root, &mut first).await?;
        }
        if let Some(members) = list.members {
            self.write_members_of(pen, list, members, &mut first).await?;
        }
        Ok(())
    }

    /// The present state stands in a table ordered by type, where all member events can be stepped over at once.
    async fn write_present(&mut self, pen: &Pen, list: &StateList<'_>, first: &mut bool) -> Result<(), ChunkError> {
        let mut after = StateCursor::default();
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            let mut skip = false;
            member::list_state(&*self.read, self.num, None, after, &mut |cursor, kind, num| {
                if kind == Kind::MEMBER && list.members.is_some() {
                    skip = true;
                    return Ok(ControlFlow::Break(()));
                }
                batch.push((cursor, num));
                Ok(until(batch.len() == BATCH))
            })?;
            let whole = batch.len() == BATCH;
            for (cursor, num) in batch {
                after = cursor;
                self.write_state_event(pen, list, num, first)?;
                pen.pause().await;
            }
            if skip {
                after = StateCursor::behind(Kind::MEMBER);
            } else if !whole {
                return Ok(());
            }
        }
    }

    async fn write_tree(
        &mut self,
        pen: &Pen,
        list: &StateList<'_>,
        root: Root,
        first: &mut bool,
    ) -> Result<(), ChunkError> {
        let (mut after, mut batch) = (None, Vec::with_capacity(BATCH));
        loop {
            batch.clear();
            let end = state_tree::page(&*self.read, root, after, BATCH, &mut batch)?;
            for entry in &batch {
                after = Some(entry.key);
                if list.members.is_some() && event::row_of(&*self.read, entry.event)?.kind == Kind::MEMBER {
                    continue;
                }
                self.write_state_event(pen, list, entry.event, first)?;
                pen.pause().await;
            }
            if end {
                return Ok(());
            }
        }
    }

    /// The member events of some users.
    pub(super) async fn write_members_of(
        &mut self,
        pen: &Pen,
        list: &StateList<'_>,
        users: &[UserNum],
        first: &mut bool,
    ) -> Result<(), ChunkError> {
        let Some(root) = list.root else { return Ok(()) };
        for user in users {
            let user_id = user::id_of(&*self.read, *user)?;
            let Some(key) = state_tree::key(&*self.read, "m.room.member", &user_id)? else { continue };
            if let Some(num) = state_tree::get(&*self.read, root, key)? {
                self.write_state_event(pen, list, num, first)?;
                pen.pause().await;
            }
        }
        Ok(())
    }

    /// One event of a state, or what stood in its place before.
    pub(super) fn write_state_event(
        &self,
        pen: &Pen,
        list: &StateList<'_>,
        num: EventNum,
        first: &mut bool,
    ) -> store::Result<()> {
        let mut num = num;
        let mut row = event::row_of(&*self.read, num)?;
        if list.told.iter().any(|(_, told)| *told == num) {
            let (Some(before), Some(key)) = (list.before, row.state_key) else { return Ok(()) };
            let Some(old) = state_tree::get(&*self.read, before, key)? else { return Ok(()) };
            if list.told.iter().any(|(_, told)| *told == old) {
                return Ok(());
            }
            (num, row) = (old, event::row_of(&*self.read, old)?);
        }
        if let Some(filter) = list.filter
            && !filter.wants(&*self.read, &row)?
        {
            return Ok(());
        }
        pen.with(|out| {
            comma(out, first);
            event_json::write(&*self.read, num, &row, &self.format, Detail::State, out)
        })
    }

    // ---- members -------------------------------------------------------------------------------------------------

    async fn write_members(&mut self, pen: &Pen, who: &Who) -> Result<(), ChunkError> {
        let wanted = |membership: Membership| {
            who.only.is_none_or(|only| only == membership) && who.not.is_none_or(|not| not != membership)
        };
        let root = match who.at {
            Some(at) if self.viewer.is_joined() => self.root_at(at.0)?,
            _ => self.root()?,
        };
        let mut first = true;
        if root == self.room.state {
            for membership in Membership::ALL.into_iter().filter(|membership| wanted(*membership)) {
                self.write_present_members(pen, membership, &mut first).await?;
            }
            return Ok(());
        }
        let Some(root) = root else { return Ok(()) };
        let (mut after, mut batch) = (None, Vec::with_capacity(BATCH));
        loop {
            batch.clear();
            let end = state_tree::page(&*self.read, root, after, BATCH, &mut batch)?;
            for entry in &batch {
                after = Some(entry.key);
                let row = event::row_of(&*self.read, entry.event)?;
                if row.kind == Kind::MEMBER && row.member.is_some_and(|(membership, _)| wanted(membership)) {
                    self.write_event(pen, entry.event, Detail::State, &mut first)?;
                    pen.pause().await;
                }
            }
            if end {
                return Ok(());
            }
        }
    }

    async fn write_present_members(
        &mut self,
        pen: &Pen,
        membership: Membership,
        first: &mut bool,
    ) -> Result<(), ChunkError> {
        let mut after = None;
        loop {
            let batch = members_behind(&self.read, self.num, membership, after)?;
            for (_, num) in &batch {
                self.write_event(pen, *num, Detail::State, first)?;
                pen.pause().await;
            }
            match batch.last() {
                Some((user, _)) if batch.len() == BATCH => after = Some(*user),
                _ => return Ok(()),
            }
        }
    }

    async fn write_joined_members(&mut self, pen: &Pen) -> Result<(), ChunkError> {
        let (mut after, mut first) = (None, true);
        loop {
            let batch = members_behind(&self.read, self.num, Membership::Join, after)?;
            for (user, num) in &batch {
                let user_id = user::id_of(&*self.read, *user)?;
                let content = event_json::content(&*self.read, &event::row_of(&*self.read, *num)?)?;
                pen.with(|out| {
                    comma(out, &mut first);
                    json::write_string(out, &user_id);
                    write_profile(&content, out);
                });
                pen.pause().await;
            }
            match batch.last() {
                Some((user, _)) if batch.len() == BATCH => after = Some(*user),
                _ => return Ok(()),
            }
        }
    }

    // ---- relations -----------------------------------------------------------------------------------------------

    fn related(&mut self, related: &Related) -> Result<Page> {
        let (target, _) = self.visible(&related.event_id)?;
        let only = related.rel_type.as_deref().map(Rel::of);
        let filter = Events { types: related.kind.clone().map(|kind| vec![kind]), ..Events::default() };
        // By place in the timeline over all types. Bounded: the newest (or oldest) of each kind that could be on the page.
        let (read, viewer, ignored) = (&*self.read, &mut self.viewer, &self.format.ignored);
        let mut found: Vec<(i64, EventNum)> = Vec::new();
        let most = related.limit + 1;
        let (after, upto) = match related.backwards {
            true => (related.to, related.from),
            false => (related.from, related.to),
        };
        let within = |order| after.is_none_or(|after| order > after.0) && upto.is_none_or(|upto| order <= upto.0);
        let hops = if related.recurse { RELATED_HOPS } else { 1 };
        relate(read, self.num, target, (only, hops), &mut |order, num| {
            if !within(order) {
                return Ok(());
            }
            let row = event::row_of(read, num)?;
            let is_other = only == Some(Rel::OTHER)
                && event_json::relation_type(read, &row)?.as_deref() != related.rel_type.as_deref();
            if is_other || ignored.contains(row.sender) || !viewer.sees(read, &row)? || !filter.wants(read, &row)? {
                return Ok(());
            }
            let place = match related.backwards {
                true => found.partition_point(|(other, _)| *other > order),
                false => found.partition_point(|(other, _)| *other < order),
            };
            found.insert(place, (order, num));
            found.truncate(most);
            Ok(())
        })?;
        let more = found.len() == most;
        found.truncate(related.limit);
        let last = found.last().map(|(order, _)| Token(if related.backwards { order - 1 } else { *order }));
        Ok(Page { events: found, next: last.filter(|_| more), gap: None })
    }

    /// One pass over the room's relations, in which no more is held than a page. What its reader may not see is left out of
    /// the page, which may be short then.
    fn threads(&mut self, threads: &Threads) -> Result<Page> {
        let most = threads.limit + 1;
        let mut newest: Vec<(i64, EventNum)> = Vec::new();
        let mut keep = |(order, root): (i64, EventNum)| {
            if threads.from.is_none_or(|from| order <= from.0) {
                newest.insert(newest.partition_point(|(other, _)| *other > order), (order, root));
                newest.truncate(most);
            }
        };
        let seen_upto = self.viewer.sees_upto().unwrap_or(i64::MAX);
        let mut last: Option<(i64, EventNum)> = None;
        relation::list_of_room(&*self.read, self.num, Rel::THREAD, &mut |root, order, _| {
            if order > seen_upto {
                return Ok(ControlFlow::Continue(()));
            }
            if let Some(whole) = last.replace((order, root)).filter(|(_, other)| *other != root) {
                keep(whole);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        last.into_iter().for_each(&mut keep);
        let more = newest.len() == most;
        newest.truncate(threads.limit);
        let next = newest.last().map(|(order, _)| Token(order - 1)).filter(|_| more);
        let mut events = Vec::with_capacity(newest.len());
        for (order, root) in newest {
            let row = event::row_of(&*self.read, root)?;
            let is_theirs = !threads.participated || event_json::took_part(&*self.read, root, &row, &self.format)?;
            if is_theirs && !self.format.ignored.contains(row.sender) && self.viewer.sees(&*self.read, &row)? {
                events.push((order, root));
            }
        }
        Ok(Page { events, next, gap: None })
    }

    async fn write_related(mut self, pen: Pen, page: Page, recurse: bool) -> Result<(), ChunkError> {
        pen.text("{\"chunk\":[");
        self.write_events(&pen, &page.events).await?;
        pen.text("]");
        if let Some(next) = page.next {
            pen.text(&format!(",\"next_batch\":\"{next}\""));
        }
        if recurse {
            pen.text(&format!(",\"recursion_depth\":{RELATED_HOPS}"));
        }
        pen.text("}");
        Ok(())
    }
}

/// Visits what relates to an event by one type or any, and as many hops on as asked for, whatever the types on the way: place
/// and number. Every event relates to one other at most, so nothing comes twice; nothing is held but the way to it.
fn relate(
    read: &Read,
    room: RoomNum,
    target: EventNum,
    (only, hops): (Option<Rel>, usize),
    visit: &mut dyn FnMut(i64, EventNum) -> store::Result<()>,
) -> store::Result<()> {
    let direct = only.filter(|_| hops == 1);
    relation::list(read, room, target, direct, &mut |rel, order, num| {
        if only.is_none_or(|only| only == rel) {
            visit(order, num)?;
        }
        if hops > 1 {
            relate(read, room, num, (only, hops - 1), visit)?;
        }
        Ok(ControlFlow::Continue(()))
    })
}

fn members_behind(
    read: &Read,
    room: RoomNum,
    membership: Membership,
    after: Option<UserNum>,
) -> store::Result<Vec<(UserNum, EventNum)>> {
    let mut batch = Vec::with_capacity(BATCH);
    member::list(read, room, membership, after, &mut |user, num| {
        batch.push((user, num));
        Ok(until(batch.len() == BATCH))
    })?;
    Ok(batch)
}

/// Somebody asks for more history than other servers are asked for on their behalf.
fn ask_later() -> Error {
    let account = "questions to other servers".to_owned();
    Error::Refused(Refused { account, asked: 0, limit: 0, retry_after_ms: 1_000, too_large: false })
}

fn write_profile(content: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b":{");
    let first = out.len();
    for (ours, theirs) in [("display_name", "displayname"), ("avatar_url", "avatar_url")] {
        // Some apps insist on both being there.
        event_json::write_key(out, first, ours);
        out.extend_from_slice(json::get(content, theirs).filter(|value| value.starts_with(b"\"")).unwrap_or(b"null"));
    }
    out.push(b'}');
}

pub(super) fn until(enough: bool) -> ControlFlow<()> {
    if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
