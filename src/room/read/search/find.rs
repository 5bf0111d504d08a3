//! Finds the events for a search: first by the index, then by their texts.
//!
//! The index tells of each room the newest first. Of all events under the words the newest few hundred are kept; whether
//! one is shown follows from its row, its text and what the user may see.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::terms::Terms;
use super::{Batch, ROOMS_MAX, SearchQuery};
use crate::base::{sort_few, sort_few_by};
use crate::matrix::json;
use crate::room::Rooms;
use crate::room::ignored::Ignored;
use crate::room::read::event_json::{self, Format};
use crate::room::read::{Reader, RoomView, until};
use crate::room::words::Key;
use crate::room::words::keep::{BEHIND, searchable};
use crate::store::tables::room::event_row::{Membership, Row};
use crate::store::tables::room::search::{self, Down, Onward, Place};
use crate::store::tables::room::user_room::{self, Mine};
use crate::store::tables::room::{self, event, timeline};
use crate::store::{self, EventNum, Get, Read, RoomNum, UserNum};

/// Events that one search looks at, the newest under the words: 32 bytes each, and each one's text is read. Behind so many
/// the count is a lower bound.
const CANDIDATES_MAX: usize = 512;
/// Events that are not in the index yet: so many rows are looked at, and so many texts.
const TAIL_ROWS_MAX: usize = 8_192;
const TAIL_TEXTS_MAX: usize = 1_024;
/// Late events of them.
const LATE_MAX: usize = 64;
/// Rooms before others by upgrade, for all rooms of a filter.
const PREDECESSORS_MAX: usize = 64;
/// Views of rooms that are kept: some 700 bytes each.
const VIEWS_MAX: usize = 16;

/// An event that is shown.
pub struct Hit {
    pub at: Batch,
    pub num: EventNum,
    pub id: String,
    pub sender: UserNum,
    pub rank: f64,
}

/// What was found.
pub struct Found {
    pub hits: Vec<Hit>,
    /// Of the newest [`CANDIDATES_MAX`] under the words those that the user may see. What stands in others must not even be
    /// counted: whoever came later could ask for one word after the other of what was said before.
    pub count: u64,
    /// The last event that was looked at, when there may be more behind it.
    pub next: Option<Batch>,
    pub words: Vec<String>,
}

/// A room that is searched.
struct Searched {
    num: RoomNum,
    /// Nothing newer is shown.
    from: Down,
    /// The first place that came while we were in the room: its history from before stands there among the other rooms.
    live: Option<i64>,
}

/// Rooms as one user sees them. A few are kept, since neighbouring results are often of one room.
pub struct Views {
    rooms: Rooms,
    reader: Reader,
    read: Arc<Read>,
    ignored: Ignored,
    kept: Vec<(RoomNum, RoomView)>,
}

impl Views {
    pub fn new(rooms: &Rooms, reader: &Reader) -> store::Result<Views> {
        let read = Arc::new(rooms.0.parts.store.read()?);
        let ignored = Ignored::of(&*read, reader.user)?;
        Ok(Views { rooms: rooms.clone(), reader: reader.clone(), read, ignored, kept: Vec::new() })
    }

    pub fn read(&self) -> &Arc<Read> {
        &self.read
    }

    pub fn of(&mut self, num: RoomNum) -> store::Result<&mut RoomView> {
        if let Some(at) = self.kept.iter().position(|(kept, _)| *kept == num) {
            return Ok(&mut self.kept[at].1);
        }
        let format = Format {
            now_ms: self.rooms.0.parts.clock.now_ms(),
            user: self.reader.user,
            device: self.reader.device.clone(),
            room_id: room::id(&*self.read, num)?,
            ignored: self.ignored.clone(),
            ..Format::default()
        };
        let view = RoomView::new(&self.rooms, self.read.clone(), num, self.reader.user_id.as_str(), format)?;
        if self.kept.len() >= VIEWS_MAX {
            self.kept.remove(0);
        }
        self.kept.push((num, view));
        let last = self.kept.len() - 1;
        Ok(&mut self.kept[last].1)
    }
}

/// The results of a search, at most as many as are asked for.
pub fn find(views: &mut Views, query: &SearchQuery) -> store::Result<Found> {
    let terms = Terms::parse(&query.term);
    let mut found = Found { hits: Vec::new(), count: 0, next: None, words: terms.shown().to_vec() };
    if terms.is_empty() {
        return Ok(found);
    }
    let read = views.read().clone();
    let mut rooms = rooms_of(&read, views.reader.user, query)?;
    if rooms.is_empty() {
        return Ok(found);
    }
    let page = query.batch.filter(|_| !query.by_rank).map(|before| (before, Newest::default()));
    let mut under = Under { newest: Newest::default(), page };
    by_index(&read, &terms, &mut rooms, &mut under)?;
    let behind = by_text(&read, &terms, &mut rooms, &mut under)?;
    if behind > BEHIND {
        views.rooms.0.words.is_behind();
    }
    let Under { newest, page } = under;
    let is_first_page = page.is_none();
    let candidates = match page {
        None => newest,
        Some((_, page)) => {
            for at in newest.in_order() {
                found.count += u64::from(visible(views, query, at)?.is_some());
            }
            page
        }
    };
    let (limit, is_cut) = (query.limit, candidates.is_cut);
    for at in candidates.in_order() {
        if !query.by_rank && found.hits.len() == limit {
            if !is_first_page {
                break;
            }
            found.count += u64::from(visible(views, query, at)?.is_some());
            continue;
        }
        found.next = Some(at);
        if let Some(hit) = look(views, query, &terms, at, &mut found.words)? {
            found.hits.push(hit);
            found.count += u64::from(is_first_page);
        }
    }
    // A page that is full may have more behind it, as may one for which enough was looked at.
    if query.by_rank || !(is_cut || found.hits.len() == limit) {
        found.next = None;
    }
    if query.by_rank {
        let by_rank = |one: &Hit, other: &Hit| other.rank.total_cmp(&one.rank).then(other.at.cmp(&one.at));
        sort_few(&mut found.hits, by_rank);
        found.hits.truncate(limit);
    }
    Ok(found)
}

/// The newest of some events.
#[derive(Default)]
struct Newest {
    places: BinaryHeap<Reverse<Batch>>,
    /// There were more than are kept.
    is_cut: bool,
}

impl Newest {
    /// Answers whether it is among them, as far as is known.
    fn add(&mut self, at: Batch) -> bool {
        if self.places.len() < CANDIDATES_MAX {
            self.places.push(Reverse(at));
            return true;
        }
        self.is_cut = true;
        let is_newer = self.places.peek().is_some_and(|Reverse(oldest)| at > *oldest);
        if is_newer {
            self.places.pop();
            self.places.push(Reverse(at));
        }
        is_newer
    }

    /// The newest first.
    fn in_order(self) -> impl Iterator<Item = Batch> {
        self.places.into_sorted_vec().into_iter().map(|Reverse(at)| at)
    }
}

/// The events under the words: the newest of all, which are counted, and of those behind a place the page that begins there.
struct Under {
    newest: Newest,
    page: Option<(Batch, Newest)>,
}

impl Under {
    /// Answers whether what follows in the same room, which is older, may be of use.
    fn add(&mut self, at: Batch) -> bool {
        let is_new = self.newest.add(at);
        match &mut self.page {
            None => is_new,
            Some((before, _)) if at.place() >= before.place() => true,
            Some((_, page)) => page.add(at),
        }
    }
}

/// The rooms that are searched, by number: those the user is in or was in, which the filter and the batch allow.
fn rooms_of(read: &Read, user: UserNum, query: &SearchQuery) -> store::Result<Vec<Searched>> {
    let nums = |ids: &[String]| -> store::Result<Vec<RoomNum>> {
        let nums = ids.iter().map(|id| room::num(read, id)).collect::<store::Result<Vec<_>>>()?;
        Ok(nums.into_iter().flatten().collect())
    };
    let mut only = query.filter.rooms.as_deref().map(nums).transpose()?;
    if let Some(only) = &mut only {
        with_predecessors(read, only)?;
    }
    let not = nums(&query.filter.not_rooms)?;
    let within = query.batch.and_then(|batch| batch.within);
    let mut rooms = Vec::new();
    user_room::list_mine(read, user, None, &mut |num, mine| {
        let is_wanted =
            within.is_none_or(|within| within == num) && only.as_ref().is_none_or(|only| only.contains(&num));
        if let Some(from) = newest_shown(&mine).filter(|_| is_wanted && !not.contains(&num)) {
            rooms.push(Searched { num, from, live: None });
        }
        Ok(until(rooms.len() as u64 == ROOMS_MAX))
    })?;
    Ok(rooms)
}

/// The newest place that a member or former member may see.
fn newest_shown(mine: &Mine) -> Option<Down> {
    match (mine.membership, mine.left_at) {
        (Membership::Join, _) => Some(Down::MIN),
        (_, Some(left)) if !mine.forgotten => Some(Down::of(left.0 as i64)),
        _ => None,
    }
}

/// Adds the rooms that were upgraded to these, and those before them.
fn with_predecessors(read: &Read, rooms: &mut Vec<RoomNum>) -> store::Result<()> {
    let (mut at, most) = (0, rooms.len() + PREDECESSORS_MAX);
    while let Some(&num) = rooms.get(at)
        && rooms.len() < most
    {
        at += 1;
        let Some(create) = room::get_of(read, num)?.create else { continue };
        let body = event::shown(read, &event::row_of(read, create)?)?;
        let id = json::read::get_path(&body, &["content", "predecessor", "room_id"]).and_then(json::read::text);
        if let Some(before) = id.map(|id| room::num(read, &id)).transpose()?.flatten()
            && !rooms.contains(&before)
        {
            rooms.push(before);
        }
    }
    Ok(())
}

/// Where an event stands among those of all rooms.
fn at(get: &impl Get, rooms: &mut [Searched], room: RoomNum, order: i64) -> store::Result<Option<Batch>> {
    let Ok(nth) = rooms.binary_search_by_key(&room, |room| room.num) else { return Ok(None) };
    let searched = &mut rooms[nth];
    if Down::of(order) < searched.from {
        return Ok(None);
    }
    let live = match searched.live {
        _ if order >= 0 => order,
        Some(live) => live,
        None => {
            let live = timeline::first_after(get, room, 0)?.map_or(0, |(first, _)| first);
            searched.live = Some(live);
            live
        }
    };
    Ok(Some(Batch { live, order, room, within: None }))
}

fn by_index(read: &Read, terms: &Terms, rooms: &mut [Searched], under: &mut Under) -> store::Result<()> {
    let Some(status) = search::status::get(read)? else { return Ok(()) };
    let hashes = terms.hashes(read);
    let places: Vec<Place> = rooms.iter().map(|room| (room.num, room.from)).collect();
    let mut segments: Vec<_> = status.segments.iter().collect();
    sort_few_by(&mut segments, |segment| segment.newest);
    for segment in segments {
        search::matches(read, segment, &hashes, &places, &mut |(room, down)| {
            let Some(at) = at(read, rooms, room, down.order())? else { return Ok(Onward::Next) };
            Ok(if under.add(at) { Onward::Next } else { Onward::NextRoom })
        })?;
    }
    Ok(())
}

/// Events that are not in the index yet, by their texts. Answers how many rows that were.
fn by_text(read: &Read, terms: &Terms, rooms: &mut [Searched], under: &mut Under) -> store::Result<u64> {
    let status = search::status::get(read)?;
    let (mut rows, mut texts) = (0, 0);
    let mut look = |row: &Row| {
        rows += 1;
        if let (Some(key), Some(order)) = (searchable(row), row.order)
            && let Some(at) = at(read, rooms, row.room, order)?
        {
            texts += 1;
            let body = event::shown(read, row)?;
            if terms.fits(key, json::read::get(&body, "content").unwrap_or(b"{}")).is_some() {
                under.add(at);
            }
        }
        let enough = rows >= TAIL_ROWS_MAX || texts >= TAIL_TEXTS_MAX;
        Ok::<_, store::Error>(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    for late in search::list_late(read, LATE_MAX)? {
        if let Some(row) = event::row(read, late)?
            && look(&row)?.is_break()
        {
            break;
        }
    }
    let high = status.map_or(EventNum(0), |status| status.high);
    event::rows_down(read, EventNum(u32::MAX), &mut |num, row| match num < high {
        true => Ok(ControlFlow::Break(())),
        false => look(&row),
    })?;
    Ok(rows as u64)
}

/// An event that the user may see and asks for, whatever its text.
fn visible(views: &mut Views, query: &SearchQuery, at: Batch) -> store::Result<Option<(EventNum, Row, Key)>> {
    let read = views.read().clone();
    let Some((_, num)) = timeline::at_or_before(&*read, at.room, at.order)?.filter(|(order, _)| *order == at.order)
    else {
        return Ok(None);
    };
    let row = event::row_of(&*read, num)?;
    let Some(key) = searchable(&row).filter(|key| query.keys.contains(key)) else { return Ok(None) };
    let view = views.of(at.room)?;
    let is_ignored = row.state_key.is_none() && view.format.ignored.contains(row.sender);
    let is_shown = !is_ignored && view.viewer.sees(&*read, &row)? && query.filter.wants(&*read, &row)?;
    Ok(is_shown.then_some((num, row, key)))
}

/// Whether an event is shown.
fn look(
    views: &mut Views,
    query: &SearchQuery,
    terms: &Terms,
    at: Batch,
    forms: &mut Vec<String>,
) -> store::Result<Option<Hit>> {
    let Some((num, row, key)) = visible(views, query, at)? else { return Ok(None) };
    let read = views.read().clone();
    let view = views.of(at.room)?;
    let body = event_json::readable_body(&*read, &row, &view.format)?;
    let content = json::read::get(&body, "content").unwrap_or(b"{}");
    let Some(rank) = terms.fits(key, content) else { return Ok(None) };
    terms.forms(key, content, &mut |form| {
        if forms.len() < FORMS_MAX && !forms.contains(&form) {
            forms.push(form);
        }
    });
    Ok(Some(Hit { at, num, id: row.id.text(), sender: row.sender, rank }))
}

/// Forms of words that are marked in the results.
const FORMS_MAX: usize = 64;
