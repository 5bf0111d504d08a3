//! Pages of a room's history, and the context of an event.

use std::ops::ControlFlow;

use ruma::{EventId, RoomId};

use super::event_json::Detail;
use super::filter::Events;
use super::state::StateList;
use super::token::Token;
use super::{Reader, RoomView, visit};
use crate::base::{self, ChunkError, ChunkWriter, Chunks};
use crate::budget::Refused;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::receive::backfill;
use crate::room::receive::backfill::Gap;
use crate::store::tables::room::event_row::Kind;
use crate::store::tables::room::{event, timeline};
use crate::store::{self, EventNum, UserNum};

/// Rows looked at for one page. When a filter matches next to nothing, the page is short and has a token to go on with.
const PAGE_ROWS_MAX: usize = 2_000;
/// What a redaction counts as among them: whether it took effect is read out of its body and its target's.
const REDACTION_ROWS: usize = 20;

/// Which part of a timeline to read.
#[derive(Clone, Debug)]
pub struct Paging {
    pub from: Option<Token>,
    pub to: Option<Token>,
    pub backwards: bool,
    pub limit: usize,
    pub filter: Events,
}

impl Rooms {
    /// A page of the timeline. At a gap the servers of the room are asked for the missing events, when `may_ask`
    /// allows.
    pub async fn messages(
        &self,
        reader: &Reader,
        room_id: &RoomId,
        paging: Paging,
        may_ask: impl FnOnce() -> bool,
    ) -> Result<impl Chunks> {
        let (mut visit, mut start, mut page) = read_page(self, reader, room_id, &paging, None).await?;
        if let Some(gap) = page.gap {
            let more = match may_ask() {
                true => {
                    drop(visit);
                    let more = backfill::backfill_for_app(self, room_id, gap).await;
                    let without = matches!(more, Ok(false)).then_some(gap);
                    (visit, start, page) = read_page(self, reader, room_id, &paging, without).await?;
                    more
                }
                false => Err(ask_later()),
            };
            // An app takes an empty page for the beginning of the room, and remembers that. After an error it asks
            // again.
            if page.events.is_empty() && page.gap.is_some() {
                more?;
            }
        }
        Ok(base::written(move |pen| visit.write_messages(pen, paging, start, page)))
    }

    /// An event with its context.
    pub async fn context(
        &self,
        reader: &Reader,
        room_id: &RoomId,
        event_id: &EventId,
        limit: usize,
        filter: Events,
    ) -> Result<impl Chunks> {
        let event_id = event_id.to_owned();
        let mut visit = visit(self, reader, room_id).await?;
        let (visit, around) = base::blocking(move || {
            let around = visit.around(event_id.as_str(), limit, &filter)?;
            Ok::<_, Error>((visit, (around, filter)))
        })
        .await?;
        let (around, filter) = around;
        Ok(base::written(move |pen| visit.write_context(pen, around, filter)))
    }
}

async fn read_page(
    rooms: &Rooms,
    reader: &Reader,
    room_id: &RoomId,
    paging: &Paging,
    without: Option<Gap>,
) -> Result<(RoomView, Token, Page)> {
    let paging = paging.clone();
    let mut visit = visit(rooms, reader, room_id).await?;
    base::blocking(move || {
        let start = visit.start(&paging);
        let page = visit.page(&paging, start, without)?;
        Ok((visit, start, page))
    })
    .await
}

/// Numbers of a page's events, in the order they are given.
pub(super) struct Page {
    pub(super) events: Vec<(i64, EventNum)>,
    /// Where the next page begins; none at the end.
    pub(super) next: Option<Token>,
    /// The gap at which the page ends.
    pub gap: Option<Gap>,
}

/// An event and the events around it.
pub(super) struct Around {
    num: EventNum,
    order: i64,
    pub(super) before: Page,
    pub(super) after: Page,
}

impl Around {
    /// Where the pages before and after it go on.
    pub(super) fn edges(&self) -> (Token, Token) {
        let start = self.before.next.unwrap_or(Token(self.before.events.last().map_or(self.order, |e| e.0) - 1));
        (start, Token(self.after.events.last().map_or(self.order, |(order, _)| *order)))
    }
}

impl RoomView {
    /// Where a page begins: at the place asked for, or at the last event the reader may see, or at the room's
    /// beginning.
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

    /// `without`: a gap whose events no server could give.
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
        // When no server has more, the page ends, so that apps do not ask for ever.
        if page.events.is_empty() && page.gap.is_some() && page.gap == without {
            page.next = None;
        }
        Ok(page)
    }

    /// The events in `from < order ≤ to` that the reader may see and the filter wants, at most `limit`.
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
            if events.len() == limit || looked_at >= PAGE_ROWS_MAX {
                more = true;
                return Ok(ControlFlow::Break(()));
            }
            last = Some(order);
            let row = event::row_of(read, num)?;
            looked_at += if row.kind == Kind::REDACTION { REDACTION_ROWS } else { 1 };
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
            // A limit of zero keeps the place.
            (None, true) => Some(to),
            (None, false) => Some(from),
        };
        // Going forwards, more events may follow later, so a page with any events has a token to go on from.
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

    async fn write_messages(
        mut self,
        pen: ChunkWriter,
        paging: Paging,
        start: Token,
        page: Page,
    ) -> Result<(), ChunkError> {
        pen.text(&format!("{{\"start\":\"{start}\","));
        // Only an answer without events has no token: apps were written against servers that do not look ahead.
        let last = page.events.last().map(|(order, _)| Token(if paging.backwards { order - 1 } else { *order }));
        if let Some(next) = page.next.or(last) {
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

    /// Writes events with commas between them; answers their senders.
    pub(super) async fn write_events(
        &mut self,
        pen: &ChunkWriter,
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

    fn around(&mut self, event_id: &str, limit: usize, filter: &Events) -> Result<Around> {
        let (num, row) = self.visible(event_id)?;
        let order = row.order.ok_or(Error::NotFound)?;
        Ok(self.around_place(num, order, limit / 2, limit - limit / 2, filter)?)
    }

    /// The events around one that the reader may see.
    pub(super) fn around_place(
        &mut self,
        num: EventNum,
        order: i64,
        before: usize,
        after: usize,
        filter: &Events,
    ) -> store::Result<Around> {
        let from = self.room.hole_below(order - 1).map_or(i64::MIN, |hole| hole.next - 1);
        let before = self.between(from, order - 1, true, before, filter)?;
        let after = self.between(order, i64::MAX - 1, false, after, filter)?;
        Ok(Around { num, order, before, after })
    }

    async fn write_context(mut self, pen: ChunkWriter, around: Around, filter: Events) -> Result<(), ChunkError> {
        let (start, end) = around.edges();
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
}

/// The error for a user who asks for more history than other servers are asked for on that user's behalf.
fn ask_later() -> Error {
    let account = "questions to other servers".to_owned();
    Error::Refused(Refused { account, asked: 0, limit: 0, retry_after_ms: 1_000, too_large: false })
}
