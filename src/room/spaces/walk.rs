//! A walk through a space and the spaces in it, depth first, a page at a time.
//!
//! Nothing is remembered between pages. A token says how many rooms the pages before came by, and the next page walks past these
//! again without describing them; only spaces are opened on the way, and no server is asked. A room that comes again is passed by,
//! so a loop of spaces ends.
//!
//! What a walk holds, at most: 2,500 entries of 8 bytes still to be visited (32 KiB, and half of that while the list grows), as many
//! hashes of rooms visited (37 KiB and 18), what was told of one space (64 KiB), and the children of one space while they are put
//! in order (96 KiB): within [`WALK_BYTES`].

use std::collections::HashSet;

use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId};

use super::children::{CHILD_ROWS_MAX, Child, child, child_events, is_suggested};
use super::elsewhere::{Kept, SERVERS_MAX, kept};
use crate::room::error::Result;
use crate::room::state::description::is_space;
use crate::room::state::preview::{Asker, is_shown, is_told_shown, resident};
use crate::store::tables::room::{self, event, member, told};
use crate::store::{EventNum, Get, RoomNum};

/// Rooms that one walk comes by, and entries that wait.
const ROOMS_MAX: usize = 2_500;
/// Events that name children, which one walk reads: spaces behind that have none in it. A second at most on a small board.
const ROWS_MAX: usize = 25_000;
/// The memory of a walk.
pub const WALK_BYTES: u64 = 256 * 1024;

/// Which part of which tree.
#[derive(Debug, Clone)]
pub struct Asked {
    pub user: OwnedUserId,
    pub room_id: OwnedRoomId,
    pub max_depth: Option<u16>,
    pub suggested_only: bool,
    /// Rooms here are shown whoever asks, and no others.
    pub sees_all: bool,
    /// This server, which is not asked.
    pub us: OwnedServerName,
    /// Servers to ask about the room itself.
    pub via: Vec<OwnedServerName>,
}

/// A room on a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    Here(RoomNum),
    Told(told::Name),
}

/// Why a walk stops.
pub enum Step {
    /// The page is full, or the tree is at its end.
    Done,
    /// Other servers have to be asked about a room before it can go on.
    Ask(told::Name, OwnedRoomId, Vec<OwnedServerName>),
}

/// An entry that waits to be visited.
#[derive(Clone, Copy, Debug)]
struct Open {
    whence: u16,
    depth: u16,
    /// The event here that names the room; or its place among the children of which another server told.
    at: u32,
}

/// Where an entry comes from: the beginning, a space here, or one of `parents`, counted from two.
const ROOT: u16 = 0;
const HERE: u16 = 1;
const THERE: u16 = 2;

pub struct Walk {
    asked: Asked,
    limit: usize,
    /// Rooms that the pages before came by.
    skip: usize,
    count: usize,
    open: Vec<Open>,
    /// Spaces elsewhere whose children wait.
    parents: Vec<told::Name>,
    seen: HashSet<u64>,
    /// What was told of one of `parents`.
    loaded: Option<(u16, Vec<u8>)>,
    /// Events of children that may still be read.
    rows_left: usize,
    /// Rooms asked for on this page: what could not be kept is not asked for again.
    questions: HashSet<told::Name>,
    pub page: Vec<Shown>,
    /// The first room is not shown to the user.
    pub is_refused: bool,
}

impl Walk {
    /// `questions`: the rooms that were asked for already.
    pub fn new(asked: Asked, skip: usize, limit: usize, questions: HashSet<told::Name>) -> Walk {
        Walk {
            asked,
            limit,
            skip,
            count: 0,
            open: vec![Open { whence: ROOT, depth: 0, at: 0 }],
            parents: Vec::new(),
            seen: HashSet::new(),
            loaded: None,
            rows_left: ROWS_MAX,
            questions,
            page: Vec::new(),
            is_refused: false,
        }
    }

    /// How many rooms the walk came by, when there is more to come.
    pub fn next(&self) -> Option<usize> {
        (!self.open.is_empty() && self.count < ROOMS_MAX).then_some(self.count)
    }

    /// What the walk holds, in bytes.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        let told = self.loaded.as_ref().map_or(0, |(_, text)| text.capacity());
        // A hash set has an eighth more places than it fills, and a byte for each.
        let seen = self.seen.capacity() * 8 / 7 * 9;
        self.open.capacity() * size_of::<Open>() + self.parents.capacity() * size_of::<told::Name>() + seen + told
    }

    /// Whether this page came by any room yet.
    pub fn has_moved(&self) -> bool {
        self.count > self.skip
    }

    /// Goes on to the end of the page, or to a room of which nothing is known here. A few lookups for each room, and a pass over
    /// the children of each space.
    pub fn go_on(&mut self, get: &impl Get, now_ms: u64) -> Result<Step> {
        while self.page.len() < self.limit
            && self.count < ROOMS_MAX
            && let Some(open) = self.open.pop()
        {
            let Some((room_id, via)) = self.named(get, open)? else { continue };
            let hash = get.hash128(&[room_id.as_bytes()]);
            let hash = u64::from_be_bytes(std::array::from_fn(|at| hash[at]));
            if !self.seen.insert(hash) {
                continue;
            }
            if let Some(step) = self.visit(get, now_ms, open, &room_id, via)? {
                self.seen.remove(&hash);
                self.open.push(open);
                return Ok(step);
            }
            self.count += 1;
        }
        Ok(Step::Done)
    }

    /// The room of an entry, and the servers to ask about it.
    fn named(&mut self, get: &impl Get, open: Open) -> Result<Option<(OwnedRoomId, Vec<OwnedServerName>)>> {
        let child = match open.whence {
            ROOT => return Ok(Some((self.asked.room_id.clone(), self.asked.via.clone()))),
            HERE => child(get, EventNum(open.at))?,
            there => {
                if self.loaded.as_ref().is_none_or(|(loaded, _)| *loaded != there) {
                    let told = told::get(get, &self.parents[usize::from(there - THERE)])?;
                    self.loaded = told.map(|told| (there, told.text));
                }
                let told = self.loaded.as_ref().map(|(_, text)| Kept(text));
                told.and_then(|told| Child::of(told.children().nth(open.at as usize)?))
            }
        };
        Ok(child.map(|mut child| {
            child.via.retain(|server| *server != self.asked.us);
            (child.room_id, child.via)
        }))
    }

    /// The name under which is kept what is told of an entry's room: by whom it is named decides who was asked. A server tells more
    /// once it is in the space itself, and knows who of us is: since when it is, is part of the name.
    fn name_of(&self, get: &impl Get, open: Open, room_id: &str, via: &[OwnedServerName]) -> Result<told::Name> {
        let parent = match open.whence {
            ROOT => return Ok(told::name(get, room_id)),
            HERE => {
                let space = event::row_of(get, EventNum(open.at))?.room;
                let mut word = told::name(get, &room::get_of(get, space)?.id).to_vec();
                for (at, server) in via.iter().take(SERVERS_MAX).enumerate() {
                    if let Some((_, since)) = member::server(get, space, server.as_str())? {
                        word.push(at as u8);
                        word.extend_from_slice(&since.to_key());
                    }
                }
                return Ok(told::name_within(get, &word, room_id));
            }
            there => self.parents[usize::from(there - THERE)],
        };
        Ok(told::name_within(get, &parent, room_id))
    }

    fn visit(
        &mut self,
        get: &impl Get,
        now_ms: u64,
        open: Open,
        room_id: &OwnedRoomId,
        via: Vec<OwnedServerName>,
    ) -> Result<Option<Step>> {
        let is_passed = self.count < self.skip;
        let user = self.asked.user.clone();
        let is_deepest = self.asked.max_depth.is_some_and(|max| open.depth >= max);
        if let Some(room) = resident(get, room_id.as_str())? {
            if !self.asked.sees_all && !is_shown(get, &room, Asker::User(&user))? {
                self.is_refused |= open.whence == ROOT;
                return Ok(None);
            }
            if !is_passed {
                self.page.push(Shown::Here(room.num));
            }
            if !is_deepest && is_space(get, &room)? {
                let most = self.rows_left.min(CHILD_ROWS_MAX);
                let (events, looked) = child_events(get, room.num, self.asked.suggested_only, most)?;
                self.rows_left -= looked;
                self.wait(HERE, open.depth, events.iter().map(|event| event.0).collect());
            }
            return Ok(None);
        }
        if self.asked.sees_all {
            self.is_refused |= open.whence == ROOT;
            return Ok(None);
        }
        let name = self.name_of(get, open, room_id.as_str(), &via)?;
        let mut told = kept(get, &name, now_ms, is_passed)?;
        let is_enough = told.as_ref().is_some_and(|told| {
            let kept = Kept(&told.text);
            let is_space = || kept.description().is_some_and(|shown| shown.is_space());
            told.text.is_empty() || kept.is_whole() || is_deepest || !is_space()
        });
        if !is_enough && !is_passed && !via.is_empty() && !self.questions.contains(&name) {
            return Ok(Some(Step::Ask(name, room_id.clone(), via)));
        }
        let shown = told.as_ref().and_then(|told| Kept(&told.text).description());
        let is_shown = match &shown {
            Some(shown) => is_told_shown(get, shown, Asker::User(&user))?,
            None => false,
        };
        self.is_refused |= open.whence == ROOT && !is_shown;
        let Some(shown) = shown.filter(|_| is_shown) else { return Ok(None) };
        if !is_passed {
            self.page.push(Shown::Told(name));
        }
        if !is_deepest
            && shown.is_space()
            && let Some(told) = told.take()
        {
            let wanted = |child: &[u8]| !self.asked.suggested_only || is_suggested(child);
            let kept = Kept(&told.text);
            let children = kept.children().enumerate();
            let children: Vec<u32> = children.filter(|(_, child)| wanted(child)).map(|(at, _)| at as u32).collect();
            let whence = THERE + self.parents.len() as u16;
            if !children.is_empty() {
                self.parents.push(name);
                self.wait(whence, open.depth, children);
                self.loaded = Some((whence, told.text));
            }
        }
        Ok(None)
    }

    /// Lets the children of a space wait, the first of them on top; as many as a walk may still come by.
    fn wait(&mut self, whence: u16, depth: u16, children: Vec<u32>) {
        let most = ROOMS_MAX.saturating_sub(self.open.len());
        let depth = depth.saturating_add(1);
        self.open.extend(children.into_iter().take(most).rev().map(|at| Open { whence, depth, at }));
    }
}
