//! The relations of an event, and the threads of a room.

use std::ops::ControlFlow;

use ruma::RoomId;

use super::event_json::{relation_type, took_part};
use super::filter::Events;
use super::timeline::Page;
use super::token::Token;
use super::{Reader, RoomView, visit};
use crate::base::{self, ChunkError, ChunkWriter, Chunks};
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::store::tables::room::event;
use crate::store::tables::room::relation::{self, Rel};
use crate::store::{self, EventNum, Read, RoomNum};

/// How far from an event `recurse` goes.
const RELATED_HOPS: usize = 3;

/// Which relations of an event to list.
#[derive(Clone, Debug)]
pub struct Related {
    pub event_id: String,
    pub rel_type: Option<String>,
    pub kind: Option<String>,
    pub from: Option<Token>,
    pub to: Option<Token>,
    pub backwards: bool,
    pub limit: usize,
    /// Follow relations of relations too, a few hops on (`RELATED_HOPS`).
    pub recurse: bool,
}

/// Which threads of a room to list.
#[derive(Clone, Debug)]
pub struct Threads {
    /// Only threads in which the reader participated.
    pub participated: bool,
    pub from: Option<Token>,
    pub limit: usize,
}

impl Rooms {
    /// The events that relate to an event.
    pub async fn relations(&self, reader: &Reader, room_id: &RoomId, related: Related) -> Result<impl Chunks> {
        let mut visit = visit(self, reader, room_id).await?;
        let recurse = related.recurse;
        let (visit, page) = base::blocking(move || {
            let page = visit.related(&related)?;
            Ok::<_, Error>((visit, page))
        })
        .await?;
        Ok(base::written(move |pen| visit.write_related(pen, page, recurse)))
    }

    /// The roots of a room's threads, the thread with the newest reply first.
    pub async fn threads(&self, reader: &Reader, room_id: &RoomId, threads: Threads) -> Result<impl Chunks> {
        let mut visit = visit(self, reader, room_id).await?;
        let (visit, page) = base::blocking(move || {
            let page = visit.threads(&threads)?;
            Ok::<_, Error>((visit, page))
        })
        .await?;
        Ok(base::written(move |pen| visit.write_related(pen, page, false)))
    }
}

impl RoomView {
    fn related(&mut self, related: &Related) -> Result<Page> {
        let (target, _) = self.visible(&related.event_id)?;
        let only = related.rel_type.as_deref().map(Rel::of);
        let filter = Events { types: related.kind.clone().map(|kind| vec![kind]), ..Events::default() };
        // Ordered by place in the timeline over all types. Bounded: the newest (or oldest) of each kind that could be
        // on the page.
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
            let is_other =
                only == Some(Rel::OTHER) && relation_type(read, &row)?.as_deref() != related.rel_type.as_deref();
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

    /// One pass over the room's relations that holds no more than a page. Events the reader may not see are left out of
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
            // Another server may have taken a thread that begins at an event which relates to another.
            if relation_type(&*self.read, &row)?.is_some() {
                continue;
            }
            let is_theirs = !threads.participated || took_part(&*self.read, root, &row, &self.format)?;
            if is_theirs && !self.format.ignored.contains(row.sender) && self.viewer.sees(&*self.read, &row)? {
                events.push((order, root));
            }
        }
        Ok(Page { events, next, gap: None })
    }

    async fn write_related(mut self, pen: ChunkWriter, page: Page, recurse: bool) -> Result<(), ChunkError> {
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

/// Visits the place and number of each event that relates to an event, by one type or any, and to as many hops as asked
/// for, whatever the types on the way. Every event relates to at most one other, so no event comes twice; only the path
/// to the current event is held.
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
