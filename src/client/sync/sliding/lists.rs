//! Which rooms an answer tells of: those in the windows of the lists and those subscribed to, as far as they have news.
//!
//! A list is the user's rooms that its filters want, by their last activity. Its windows are found with the newest rooms up
//! to the last window's end in hand, whatever the number of rooms. When it is known that nothing changed but events of a few
//! rooms, which stand at the top of each list then, only those are read.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, OnceLock};

use super::filters::{Facts, Filters, Spaces};
use super::request::{Asked, Form, RoomConfig, hash};
use super::required::Combined;
use crate::client::{Client, Error};
use crate::room::{Events, Filter, Membership, Position, RoomNum, SlidingToken, SyncView, UserRoom};
use crate::user::{SlidingConnection, Told, UserSync};

/// Rooms told by one answer; what is more comes with the next, at once. 40 bytes each.
pub const ROOMS_MAX: usize = 256;
/// Rooms in the windows of all lists together, 16 bytes each: a window ends there.
const WINDOW_ROOMS_MAX: usize = 4_096;
/// Rooms in windows that are found without a grant of their own.
const WINDOW_ROOMS_FREE: usize = 512;
const WINDOW_ROOM_BYTES: usize = size_of::<(Position, RoomNum)>();

/// One look at what there is for a connection.
#[derive(Clone)]
pub struct Look {
    pub client: Arc<Client>,
    pub view: SyncView,
    pub own: Arc<UserSync>,
    pub asked: Arc<Asked>,
    /// In the order of their numbers.
    pub subscriptions: Arc<[(RoomNum, RoomConfig)]>,
    pub connection: Arc<SlidingConnection>,
    /// None for the first answer of a connection.
    pub since: Option<SlidingToken>,
    /// What was known before, and the rooms that alone can have changed since, where that is known.
    pub only: Option<(Arc<Seen>, Arc<[RoomNum]>)>,
    pub direct: Arc<OnceLock<Vec<RoomNum>>>,
    pub spaces: Arc<OnceLock<Spaces>>,
}

/// What was found by an answer, or by a look after it that found no news.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Up to here, for the same request.
    pub upto: SlidingToken,
    pub counts: Vec<u32>,
    pub settled: bool,
}

/// A room that the answer tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Planned {
    pub latest: Position,
    pub num: RoomNum,
    /// A bit for each list that it stands in.
    pub lists: u128,
}

/// What an answer tells of rooms.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The newest first.
    pub rooms: Vec<Planned>,
    /// The number of rooms in each list.
    pub counts: Vec<u32>,
    /// No room was left to the next answer.
    pub settled: bool,
    /// See [`SlidingToken::complete`].
    pub complete: Position,
}

/// The newest rooms of one list, up to the end of its last window.
struct Window {
    most: usize,
    newest: BinaryHeap<Reverse<(Position, RoomNum)>>,
}

impl Window {
    fn put(&mut self, at: Position, room: RoomNum) {
        if self.newest.len() < self.most {
            self.newest.push(Reverse((at, room)));
        } else if self.newest.peek().is_some_and(|oldest| oldest.0 < (at, room)) {
            self.newest.pop();
            self.newest.push(Reverse((at, room)));
        }
    }
}

/// The rooms of a window: the newest first, and whether each place is in a range.
struct Placed<'a> {
    rooms: Vec<Reverse<(Position, RoomNum)>>,
    ranges: Option<&'a [(u32, u32)]>,
}

impl Placed<'_> {
    fn is_in(&self, place: usize) -> bool {
        self.ranges
            .is_none_or(|ranges| ranges.iter().any(|(first, last)| (*first as usize..=*last as usize).contains(&place)))
    }

    fn has(&self, at: Position, room: RoomNum) -> bool {
        // In descending order, since each entry is reversed.
        self.rooms
            .binary_search_by_key(&Reverse((at, room)), |entry| Reverse(entry.0))
            .is_ok_and(|place| self.is_in(place))
    }
}

/// The rooms that are told, as far as they fit.
#[derive(Default)]
struct Chosen {
    rooms: BinaryHeap<Reverse<Planned>>,
    more: bool,
}

impl Chosen {
    fn put(&mut self, room: Planned) {
        self.rooms.push(Reverse(room));
        if self.rooms.len() > ROOMS_MAX {
            self.rooms.pop();
            self.more = true;
        }
    }
}

/// The memory for the windows of a request of a user who has so many rooms, beyond what any look has.
pub fn window_bytes(asked: &Asked, rooms_max: usize) -> u64 {
    let rooms: usize = shares(asked).into_iter().map(|share| share.min(rooms_max)).sum();
    if rooms <= WINDOW_ROOMS_FREE { 0 } else { (rooms * WINDOW_ROOM_BYTES) as u64 }
}

/// How many of its newest rooms each list gets: what its windows need, as far as all fit.
fn shares(asked: &Asked) -> Vec<usize> {
    let need = |list: &super::request::List| match &list.ranges {
        Some(ranges) => ranges.iter().map(|(_, last)| (*last as usize).saturating_add(1)).max().unwrap_or(0),
        None => usize::MAX,
    };
    let mut by_need: Vec<_> = asked.lists.iter().map(need).enumerate().collect();
    by_need.sort_unstable_by_key(|(_, need)| *need);
    let (mut shares, mut left) = (vec![0; by_need.len()], WINDOW_ROOMS_MAX);
    for (place, (list, need)) in by_need.iter().enumerate() {
        shares[*list] = (*need).min(left / (by_need.len() - place));
        left -= shares[*list];
    }
    shares
}

impl Look {
    /// Decides what to tell.
    pub fn plan(&self) -> Result<Plan, Error> {
        match self.few() {
            Some(few) => self.plan_few(few),
            None => self.plan_all(),
        }
    }

    /// The memory for finding the windows, beyond what any look has.
    pub fn window_bytes(&self) -> Result<u64, Error> {
        if self.few().is_some() || window_bytes(&self.asked, usize::MAX) == 0 {
            return Ok(0);
        }
        let mut rooms = 0;
        self.view.find_room(None, |_| {
            rooms += 1;
            Ok(false)
        })?;
        Ok(window_bytes(&self.asked, rooms))
    }

    /// The user's direct chats, in order.
    pub fn direct(&self) -> Result<&[RoomNum], Error> {
        if self.direct.get().is_none() {
            let _ = self.direct.set(self.own.direct_rooms()?);
        }
        Ok(self.direct.get().map(Vec::as_slice).unwrap_or_default())
    }

    /// The spaces that the lists' filters name.
    fn spaces(&self) -> Result<&Spaces, Error> {
        if self.spaces.get().is_none() {
            let filters = self.asked.lists.iter().map(|list| &list.filters[..]);
            let _ = self.spaces.set(Spaces::read(filters, &self.view)?);
        }
        Ok(self.spaces.get_or_init(Spaces::default))
    }

    /// Whether an extension that is bounded to these lists and subscriptions concerns a room: one that this answer or one
    /// before it told of. `*` stands for all of them. A list's windows are not asked about, only its filters.
    pub fn concerns(&self, plan: &Plan, room: RoomNum, lists: &[String], rooms: &[String]) -> Result<bool, Error> {
        let planned = plan.rooms.iter().find(|planned| planned.num == room);
        if planned.is_none() && self.told(room)?.is_none() {
            return Ok(false);
        }
        if let Ok(at) = self.subscriptions.binary_search_by_key(&room, |(num, _)| *num) {
            let num = self.subscriptions[at].0;
            let is_named = |id: &String| id == "*" || self.view.room_num(id).is_ok_and(|named| named == Some(num));
            if rooms.iter().any(is_named) {
                return Ok(true);
            }
        }
        if lists.iter().any(|name| name == "*") {
            return Ok(true);
        }
        let Some(found) = self.view.user_room(room)? else { return Ok(false) };
        let mut facts = Facts::new(&self.view, &self.own, self.direct()?, self.spaces()?, found);
        for list in self.asked.lists.iter().filter(|list| lists.contains(&list.name)) {
            if Filters::parse(&list.filters)?.wants(&mut facts)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the app was told of a room by the answers before.
    pub fn told(&self, room: RoomNum) -> Result<Option<Told>, Error> {
        Ok(self.connection.told(&self.view.read, room)?)
    }

    /// Up to where the app was told of a room.
    pub fn told_upto(&self, told: &Told) -> Position {
        told.at.max(self.since.map_or(Position(0), |since| since.complete))
    }

    /// What is asked of a room by the rules that it matches: the timeline, and the required state.
    pub fn config(&self, room: RoomNum, lists: u128) -> (u32, Combined<'_>) {
        let of_lists = self.asked.lists.iter().enumerate().filter(|(place, _)| lists >> place & 1 != 0);
        let subscribed = self.subscriptions.binary_search_by_key(&room, |(num, _)| *num);
        let subscribed = subscribed.ok().map(|at| self.subscriptions[at].1);
        let configs = || of_lists.clone().map(|(_, list)| list.config).chain(subscribed);
        let timeline = configs().map(|config| config.timeline).max().unwrap_or(0);
        (timeline, Combined::new(configs().map(|config| &self.asked.states[config.state as usize])))
    }

    /// Whether the unread counts, which are told with a room, may have changed by the user's own receipt alone.
    fn was_read(&self, room: RoomNum, since: Position) -> Result<bool, Error> {
        Ok(self.asked.form == Form::Unstable && self.view.has_read(room, since)?)
    }

    /// The rooms that alone can have changed, when each list shows those at its top and nothing else moves into one.
    fn few(&self) -> Option<&(Arc<Seen>, Arc<[RoomNum]>)> {
        let (seen, only) = self.only.as_ref()?;
        let shows_top = |list: &super::request::List| {
            let holds_all =
                |(first, last): &(u32, u32)| *first == 0 && only.len() <= (*last as usize).saturating_add(1);
            list.ranges.as_ref().is_none_or(|ranges| !ranges.is_empty() && ranges.iter().all(holds_all))
        };
        let is_same = seen.settled && seen.counts.len() == self.asked.lists.len();
        self.only.as_ref().filter(|_| is_same && self.asked.lists.iter().all(shows_top))
    }

    fn plan_few(&self, (seen, few): &(Arc<Seen>, Arc<[RoomNum]>)) -> Result<Plan, Error> {
        let mut filters = self.filters()?;
        let mut told = Chosen::default();
        let mut is_complete = seen.upto.complete == seen.upto.at;
        for num in few.iter().copied() {
            let Some(room) = self.view.user_room(num)? else { continue };
            let latest = self.view.activity(&room)?.latest;
            let known = self.told(num)?;
            if latest <= seen.upto.at {
                // A room that was only read stays in its place, which may be outside of the windows.
                if known.is_some() && self.was_read(num, seen.upto.at)? {
                    return self.plan_all();
                }
                // Somebody may only be typing there.
                continue;
            }
            if !self.is_listed(&room, known.as_ref())? {
                continue;
            }
            let lists = self.lists_of(&mut filters, &room)?;
            let is_asked = lists != 0 || self.is_subscribed(&room)?;
            let has_news = known.as_ref().is_none_or(|known| latest > self.told_upto(known));
            if !is_asked {
                is_complete &= known.is_none() || !has_news;
            } else if has_news && self.shows_news(&room, known.as_ref())? {
                told.put(Planned { latest, num, lists });
            }
        }
        self.finish(told, seen.counts.clone(), is_complete)
    }

    fn plan_all(&self) -> Result<Plan, Error> {
        // A connection for extensions alone.
        if self.asked.lists.is_empty() && self.subscriptions.is_empty() {
            let complete = self.since.map_or(self.view.now.at, |since| since.complete);
            return Ok(Plan { settled: true, complete, ..Plan::default() });
        }
        let mut filters = self.filters()?;
        let mut windows: Vec<Window> =
            shares(&self.asked).into_iter().map(|most| Window { most, newest: BinaryHeap::new() }).collect();
        let mut counts = vec![0u32; self.asked.lists.len()];
        let complete = self.since.map(|since| since.complete);
        let mut moved = 0usize;
        self.each_room(&mut |room, latest| {
            moved += usize::from(complete.is_some_and(|complete| latest > complete));
            let lists = self.lists_of(&mut filters, &room)?;
            for (place, window) in windows.iter_mut().enumerate().filter(|(place, _)| lists >> place & 1 != 0) {
                counts[place] += 1;
                window.put(latest, room.num);
            }
            Ok(true)
        })?;
        let placed: Vec<Placed<'_>> = windows
            .into_iter()
            .zip(&self.asked.lists)
            .map(|(window, list)| Placed { rooms: window.newest.into_sorted_vec(), ranges: list.ranges.as_deref() })
            .collect();
        let lists_of = |at, room| {
            let is_in = placed.iter().enumerate().filter(|(_, window)| window.has(at, room));
            is_in.fold(0u128, |lists, (place, _)| lists | 1 << place)
        };
        let mut told = Chosen::default();
        let mut news = News::default();
        for (list, window) in placed.iter().enumerate() {
            for (place, Reverse((latest, num))) in window.rooms.iter().enumerate() {
                let lists = if window.is_in(place) { lists_of(*latest, *num) } else { 0 };
                // Each room with the first of its lists.
                if lists != 0
                    && lists.trailing_zeros() as usize == list
                    && self.has_news(&mut news, *num, *latest, lists)?
                {
                    told.put(Planned { latest: *latest, num: *num, lists });
                }
            }
        }
        for (num, _) in self.subscriptions.iter() {
            let Some(room) = self.view.user_room(*num)? else { continue };
            if !self.is_subscribed(&room)? {
                continue;
            }
            let latest = self.view.activity(&room)?.latest;
            if lists_of(latest, *num) == 0 && self.has_news(&mut news, *num, latest, 0)? {
                told.put(Planned { latest, num: *num, lists: 0 });
            }
        }
        let is_complete = self.leaves_none(&told, moved)?;
        let plan = self.finish(told, counts, is_complete)?;
        Ok(Plan { settled: plan.settled && !self.tells_leave(&plan)?, ..plan })
    }

    /// Whether a room is told as left: it stands in no list of the next answer then, or not as it does in this one.
    fn tells_leave(&self, plan: &Plan) -> Result<bool, Error> {
        for planned in &plan.rooms {
            let Some(room) = self.view.user_room(planned.num)? else { continue };
            if matches!(room.membership(), Membership::Leave | Membership::Ban)
                && self.told(planned.num)?.is_some_and(|known| !known.is_left)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn finish(&self, told: Chosen, counts: Vec<u32>, is_complete: bool) -> Result<Plan, Error> {
        let now = self.view.now.at;
        let complete = match self.since {
            Some(since) if !is_complete || told.more => since.complete,
            _ => now,
        };
        let rooms = told.rooms.into_sorted_vec().into_iter().map(|Reverse(room)| room).collect();
        Ok(Plan { rooms, counts, settled: !told.more, complete })
    }

    /// Whether no room that the app knows has news that are not told now. `moved`: the listed rooms that changed since all
    /// was told.
    fn leaves_none(&self, told: &Chosen, moved: usize) -> Result<bool, Error> {
        let Some(since) = self.since else { return Ok(true) };
        // Of those with a subscription alone, some stand in no list and are not among the moved.
        let is_told = told.rooms.iter().filter(|room| room.0.lists != 0 && room.0.latest > since.complete).count();
        if moved == is_told {
            return Ok(true);
        }
        let mut nums: Vec<RoomNum> = told.rooms.iter().map(|room| room.0.num).collect();
        nums.sort_unstable();
        let mut leaves_none = true;
        self.each_room(&mut |room, latest| {
            if latest > since.complete && nums.binary_search(&room.num).is_err() {
                leaves_none = self.told(room.num)?.is_none_or(|known| latest <= self.told_upto(&known));
            }
            Ok(leaves_none)
        })?;
        Ok(leaves_none)
    }

    /// Visits the rooms that may stand in lists, with their last activity, while the visitor says so.
    fn each_room(&self, visit: &mut dyn FnMut(UserRoom, Position) -> Result<bool, Error>) -> Result<(), Error> {
        let mut failed = None;
        let found = self.view.find_room(None, |room| {
            let mut look = || -> Result<bool, Error> {
                if !self.is_in_lists(room)? {
                    return Ok(false);
                }
                Ok(!visit(*room, self.view.activity(room)?.latest)?)
            };
            Ok(look().unwrap_or_else(|wrong| {
                failed = Some(wrong);
                true
            }))
        });
        match failed {
            Some(failed) => Err(failed),
            None => Ok(found.map(drop)?),
        }
    }

    /// Whether a room may stand in lists: not one that the user left without the app knowing it, or never was in.
    fn is_in_lists(&self, room: &UserRoom) -> Result<bool, Error> {
        let known = match room.membership() {
            Membership::Leave | Membership::Ban => self.told(room.num)?,
            _ => None,
        };
        self.is_listed(room, known.as_ref())
    }

    /// The same with what the app was told of a room that the user left.
    fn is_listed(&self, room: &UserRoom, known: Option<&Told>) -> Result<bool, Error> {
        let is_new_leave = || known.is_some_and(|known| !known.is_left);
        Ok(match room.membership() {
            Membership::Join | Membership::Knock => true,
            Membership::Invite => !self.view.is_invite_hidden(room)?,
            Membership::Leave | Membership::Ban if room.is_forgotten() || !self.view.was_in(room) => is_new_leave(),
            Membership::Ban => true,
            Membership::Leave => !self.view.left_by_self(room)? || is_new_leave(),
        })
    }

    /// Whether a room is subscribed to, by a user who may see something of it.
    fn is_subscribed(&self, room: &UserRoom) -> Result<bool, Error> {
        if self.subscriptions.binary_search_by_key(&room.num, |(num, _)| *num).is_err() {
            return Ok(false);
        }
        Ok(match room.membership() {
            Membership::Join | Membership::Knock => true,
            Membership::Invite => !self.view.is_invite_hidden(room)?,
            Membership::Leave | Membership::Ban => {
                self.view.was_in(room) && !room.is_forgotten() || self.is_in_lists(room)?
            }
        })
    }

    fn filters(&self) -> Result<Vec<Filters<'_>>, Error> {
        let read = self.asked.lists.iter().map(|list| Filters::parse(&list.filters));
        Ok(read.collect::<Result<_, _>>()?)
    }

    /// A bit for each list whose filters want a room.
    fn lists_of(&self, filters: &mut [Filters<'_>], room: &UserRoom) -> Result<u128, Error> {
        let asks_direct = filters.iter().any(Filters::asks_direct);
        let direct = if asks_direct { self.direct()? } else { &[] };
        let mut facts = Facts::new(&self.view, &self.own, direct, self.spaces()?, *room);
        let mut lists = 0;
        for (place, filter) in filters.iter().enumerate() {
            lists |= u128::from(filter.wants(&mut facts)?) << place;
        }
        Ok(lists)
    }

    /// Whether the app is to be told of a room.
    fn has_news(&self, news: &mut News, num: RoomNum, latest: Position, lists: u128) -> Result<bool, Error> {
        let Some(known) = self.told(num)? else { return Ok(true) };
        if latest > self.told_upto(&known) {
            return Ok(true);
        }
        // Of a room seen from outside, or left, there is no more than was told.
        if known.is_outside() {
            return Ok(false);
        }
        if self.was_read(num, self.told_upto(&known))? {
            return Ok(true);
        }
        if known.is_dm != self.direct()?.binary_search(&num).is_ok() {
            return Ok(true);
        }
        self.asks_more(news, num, &known, lists)
    }

    /// Whether more is asked of a room than when it was told of.
    fn asks_more(&self, news: &mut News, num: RoomNum, known: &Told, lists: u128) -> Result<bool, Error> {
        let is_subscribed = self.subscriptions.binary_search_by_key(&num, |(num, _)| *num).is_ok();
        let asked = match news.asked {
            // Of most rooms the same is asked as of the one before.
            Some((of, timeline, state)) if of == lists && !is_subscribed => (timeline, state),
            _ => {
                let (timeline, state) = self.config(num, lists);
                let asked = (timeline, state_hash(&state.text()));
                news.asked = (!is_subscribed).then_some((lists, asked.0, asked.1));
                asked
            }
        };
        if asked.0 > known.timeline {
            return Ok(true);
        }
        if asked.1 == known.state {
            return Ok(false);
        }
        if let Some((before, now, more)) = news.compared
            && (before, now) == (known.state, asked.1)
        {
            return Ok(more);
        }
        let more = !self.added(known, &self.config(num, lists).1)?.is_empty();
        news.compared = Some((known.state, asked.1, more));
        Ok(more)
    }

    /// What is asked of a room's state beyond what was asked when it was told of.
    pub fn added(&self, known: &Told, state: &Combined<'_>) -> Result<Combined<'static>, Error> {
        let text = self.connection.state(&self.view.read, known.state)?.unwrap_or_default();
        Ok(state.added(&Combined::read(&text, self.view.reader.user_id.as_str())))
    }

    /// Whether what happened in a room is for the app's eyes: messages of ignored users are not.
    fn shows_news(&self, room: &UserRoom, known: Option<&Told>) -> Result<bool, Error> {
        let Some(known) = known.filter(|_| room.membership() == Membership::Join) else { return Ok(true) };
        let since = self.told_upto(known);
        if room.since() > since {
            return Ok(true);
        }
        let all = Events::default();
        let mut view = self.view.open(room.num, &Filter::default())?;
        Ok(view.has_events(since, self.view.now.at, Some(&all), &all)?)
    }
}

/// What was worked out for the room before, which most often holds for the next.
#[derive(Default)]
struct News {
    asked: Option<(u128, u32, u64)>,
    compared: Option<(u64, u64, bool)>,
}

/// The hash by which a connection remembers required state.
pub fn state_hash(text: &[u8]) -> u64 {
    hash(&[text])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_keeps_the_newest_rooms() {
        let mut window = Window { most: 3, newest: BinaryHeap::new() };
        for at in [5, 1, 9, 7, 3, 8] {
            window.put(Position(at), RoomNum(at as u32));
        }
        let ranges = vec![(0, 0), (2, 9)];
        let placed = Placed { rooms: window.newest.into_sorted_vec(), ranges: Some(&ranges) };
        let nums: Vec<u32> = placed.rooms.iter().map(|entry| entry.0.1.0).collect();
        assert_eq!(nums, [9, 8, 7]);
        let has = |at: u64| placed.has(Position(at), RoomNum(at as u32));
        assert_eq!([9, 8, 7, 5].map(has), [true, false, true, false]);
        assert!(!placed.has(Position(9), RoomNum(8)));
    }

    /// A list of all rooms pays for the rooms that there are.
    #[test]
    fn windows_take_memory_for_the_rooms_of_their_user() {
        use crate::client::sync::sliding::request::{Form, List};
        let config = RoomConfig { timeline: 1, state: 0 };
        let list = List { name: "all".to_owned(), ranges: None, filters: b"{}".to_vec(), config };
        let asked = Asked {
            presence: None,
            form: Form::V4,
            conn_id: String::new(),
            pos: None,
            timeout: std::time::Duration::ZERO,
            lists: vec![list],
            subscriptions: Vec::new(),
            states: Vec::new(),
            hash: 0,
        };
        assert_eq!([500, 1_000, usize::MAX].map(|rooms| window_bytes(&asked, rooms)), [0, 16_000, 65_536]);
    }

    #[test]
    fn an_answer_tells_the_newest_rooms_and_leaves_the_rest() {
        let mut told = Chosen::default();
        let most = ROOMS_MAX as u64;
        for at in 0..most + 5 {
            told.put(Planned { latest: Position(at * 7 % (most + 5)), num: RoomNum(at as u32), lists: 1 });
        }
        let rooms: Vec<_> = told.rooms.into_sorted_vec().into_iter().map(|room| room.0.latest.0).collect();
        assert!(told.more && rooms.is_sorted_by(|newer, older| newer > older));
        assert_eq!((rooms.len(), rooms.first(), rooms.last()), (ROOMS_MAX, Some(&(most + 4)), Some(&5)));
    }
}
