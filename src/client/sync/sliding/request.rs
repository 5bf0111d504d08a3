//! A request, in the form that apps send today and in that of the accepted text (MSC4186).
//!
//! The body is put into canonical form and read in place. What is kept of it while the request waits is the texts of what
//! it asks of rooms, each once: an app repeats the same required state for a hundred subscriptions.

use std::sync::Arc;
use std::time::Duration;

use super::bad;
use super::filters::{Filters, SPACES_MAX, WORDS_MAX};
use super::required::{ELEMENTS_MAX, Required};
use crate::client::{Error, Requester};
use crate::http::{ErrorResponse, Request};
use crate::matrix::json::{self, Mode, read};
use crate::room::{RoomNum, SlidingToken};

/// A hundred subscriptions with the required state that Element X asks for are 70 KB.
pub const BODY_BYTES_MAX: u64 = 128 * 1024;
/// The longest wait, whatever `timeout` the app asks for: proxies cut idle connections after about this time.
const TIMEOUT_MS_MAX: u64 = 90_000;
const LISTS_MAX: usize = 100;
const SUBSCRIPTIONS_MAX: usize = 100;
const LIST_NAME_BYTES_MAX: usize = 64;
const CONN_ID_BYTES_MAX: usize = 255;
const ROOM_ID_BYTES_MAX: usize = 255;
/// Windows of one list.
const RANGES_MAX: usize = 16;
/// The most timeline events of a room in one answer, whatever is asked for: 12 bytes each are held.
const TIMELINE_EVENTS_MAX: u32 = 100;
/// What a request may keep while it waits.
const KEPT_BYTES_MAX: usize = 32 * 1024;
/// What a list or a text costs beside its letters.
const TEXT_BYTES: usize = 48;

/// The two forms of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As Synapse has it, under the unstable name.
    Unstable,
    /// As the accepted text has it.
    V4,
}

/// A parsed request.
#[derive(Debug)]
pub struct Asked {
    pub form: Form,
    pub conn_id: String,
    /// `set_presence`.
    pub presence: Option<String>,
    pub pos: Option<SlidingToken>,
    pub timeout: Duration,
    /// In the order of their names.
    pub lists: Vec<List>,
    /// Room ids in order; taken out when their numbers are known.
    pub subscriptions: Vec<(String, RoomConfig)>,
    /// What is asked of rooms' state, each text once.
    pub states: Vec<Required>,
    /// A hash of lists and subscriptions.
    pub hash: u64,
}

/// A list.
#[derive(Debug)]
pub struct List {
    pub name: String,
    /// First and last place of each window; none for all rooms.
    pub ranges: Option<Vec<(u32, u32)>>,
    /// The canonical text of the filters.
    pub filters: Vec<u8>,
    pub config: RoomConfig,
}

/// What is asked of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomConfig {
    /// The most timeline events.
    pub timeline: u32,
    /// The place of the required state among [`Asked::states`].
    pub state: u16,
}

fn invalid(why: impl Into<String>) -> ErrorResponse {
    ErrorResponse::invalid_param(why)
}

impl Asked {
    /// Reads a request. `M_INVALID_PARAM` beyond the bounds; `M_UNKNOWN_POS` for a position
    /// that is none of ours. Answers the text of the extensions too.
    pub fn parse(form: Form, request: &Request, body: &[u8], requester: &Requester) -> Result<(Asked, Vec<u8>), Error> {
        let body: &[u8] = if body.trim_ascii().is_empty() { b"{}" } else { body };
        let text = json::canonical(body, Mode::Lenient)
            .map_err(|wrong| ErrorResponse::bad("M_NOT_JSON", format!("The body is not JSON: {wrong}")))?;
        if !text.starts_with(b"{") {
            return Err(ErrorResponse::bad("M_BAD_JSON", "The body is not an object").into());
        }
        let own = |name: &str| -> Result<Option<String>, ErrorResponse> {
            match request.query(name) {
                Some(value) => Ok(Some(value)),
                None => Ok(optional_text(&text, name)?),
            }
        };
        let pos = match own("pos")?.filter(|pos| !pos.is_empty()) {
            Some(pos) => Some(SlidingToken::parse(&pos).ok_or_else(unknown_pos)?),
            None => None,
        };
        let timeout = match request.query_as::<u64>("timeout")? {
            Some(timeout) => timeout,
            None => number(&text, "timeout")?.unwrap_or(0),
        };
        let presence = own("set_presence")?;
        let conn_id = optional_text(&text, "conn_id")?.unwrap_or_default();
        if conn_id.len() > CONN_ID_BYTES_MAX {
            return Err(invalid("conn_id is too long").into());
        }
        let mut asked = Asked {
            form,
            conn_id,
            presence,
            pos,
            timeout: Duration::from_millis(timeout.min(TIMEOUT_MS_MAX)),
            lists: Vec::new(),
            subscriptions: Vec::new(),
            states: Vec::new(),
            hash: 0,
        };
        let me = Arc::from(requester.user_id.as_str());
        asked.read_lists(&text, &me)?;
        asked.read_subscriptions(&text, &me)?;
        let [lists, subscriptions] = ["lists", "room_subscriptions"].map(|name| read::get(&text, name).unwrap_or(b""));
        asked.hash = hash(&[lists, subscriptions]);
        if asked.bytes() > KEPT_BYTES_MAX {
            return Err(invalid("The lists and subscriptions are too long").into());
        }
        Ok((asked, read::get(&text, "extensions").unwrap_or(b"{}").to_vec()))
    }

    /// The memory it keeps, with numbers for the ids of rooms.
    pub fn bytes(&self) -> usize {
        let lists = self.lists.iter().map(|list| {
            let ranges = list.ranges.as_ref().map_or(0, |ranges| ranges.len() * size_of::<(u32, u32)>());
            list.name.len() + list.filters.len() + ranges + 2 * TEXT_BYTES
        });
        let subscriptions = self.subscriptions.len() * size_of::<(RoomNum, RoomConfig)>();
        let states = self.states.iter().map(|state| state.text().len() + TEXT_BYTES);
        lists.chain(states).sum::<usize>() + subscriptions + self.conn_id.len()
    }

    fn read_lists(&mut self, text: &[u8], me: &Arc<str>) -> Result<(), ErrorResponse> {
        let (mut spaces, mut words) = (0, 0);
        for (name, list) in members(text, "lists")? {
            let name = key(name);
            if name.len() > LIST_NAME_BYTES_MAX || self.lists.len() == LISTS_MAX {
                return Err(invalid("There may be 100 lists, with names of 64 bytes"));
            }
            let filters = read::get(list, "filters").filter(|filters| *filters != b"null").unwrap_or(b"{}");
            if !filters.starts_with(b"{") {
                return Err(bad("filters", "an object"));
            }
            let (of_spaces, of_words) = Filters::parse(filters)?.counts();
            (spaces, words) = (spaces + of_spaces, words + of_words);
            if spaces > SPACES_MAX || words > WORDS_MAX {
                return Err(invalid("The filters of all lists may name 32 spaces, and 256 types and tags"));
            }
            let config = self.config(list, me)?;
            self.lists.push(List { name, ranges: ranges(list)?, filters: filters.to_vec(), config });
        }
        Ok(())
    }

    fn read_subscriptions(&mut self, text: &[u8], me: &Arc<str>) -> Result<(), ErrorResponse> {
        for (room, subscription) in members(text, "room_subscriptions")? {
            let room = key(room);
            if room.len() > ROOM_ID_BYTES_MAX || self.subscriptions.len() == SUBSCRIPTIONS_MAX {
                return Err(invalid("There may be 100 subscriptions, of room ids of 255 bytes"));
            }
            let config = self.config(subscription, me)?;
            self.subscriptions.push((room, config));
        }
        Ok(())
    }

    fn config(&mut self, of: &[u8], me: &Arc<str>) -> Result<RoomConfig, ErrorResponse> {
        if !of.starts_with(b"{") {
            return Err(bad("lists and room_subscriptions", "objects of objects"));
        }
        let timeline = number(of, "timeline_limit")?.ok_or_else(|| ErrorResponse::missing_param("timeline_limit"))?;
        let state = read::get(of, "required_state").filter(|state| *state != b"null").unwrap_or(b"[]");
        let known = self.states.iter().position(|known| known.was(state));
        let state = match known {
            Some(known) => known,
            None => {
                self.states.push(Required::parse(state, me)?);
                if self.states.iter().map(Required::elements).sum::<usize>() > ELEMENTS_MAX {
                    return Err(invalid("The required states may have 256 different elements in all"));
                }
                self.states.len() - 1
            }
        };
        let timeline = u32::try_from(timeline).unwrap_or(u32::MAX).min(TIMELINE_EVENTS_MAX);
        Ok(RoomConfig { timeline, state: state as u16 })
    }
}

/// 400 `M_UNKNOWN_POS`: the app begins a new connection.
pub fn unknown_pos() -> ErrorResponse {
    ErrorResponse::bad("M_UNKNOWN_POS", "This position is not known (any more); begin a new connection")
}

fn ranges(list: &[u8]) -> Result<Option<Vec<(u32, u32)>>, ErrorResponse> {
    let wrong = || bad("range", "a pair of numbers, the second no smaller than the first");
    let pair = |range: &[u8]| -> Result<(u32, u32), ErrorResponse> {
        let mut ends = read::items(range).map(read::integer);
        let (Some(Some(first)), Some(Some(last)), None) = (ends.next(), ends.next(), ends.next()) else {
            return Err(wrong());
        };
        if first < 0 || last < first {
            return Err(wrong());
        }
        let end = |place: i64| u32::try_from(place).unwrap_or(u32::MAX);
        Ok((end(first), end(last)))
    };
    if let Some(range) = read::get(list, "range").filter(|range| *range != b"null") {
        return Ok(Some(vec![pair(range)?]));
    }
    let Some(all) = read::get(list, "ranges").filter(|ranges| *ranges != b"null") else { return Ok(None) };
    if read::get(list, "slow_get_all_rooms") == Some(b"true") {
        return Ok(None);
    }
    if !all.starts_with(b"[") {
        return Err(wrong());
    }
    let mut ranges = Vec::new();
    for range in read::items(all) {
        if ranges.len() == RANGES_MAX {
            return Err(invalid("A list may have 16 ranges"));
        }
        ranges.push(pair(range)?);
    }
    Ok(Some(ranges))
}

/// The members of an object in the body; none when it is left out.
fn members<'t>(text: &'t [u8], name: &str) -> Result<read::Members<'t>, ErrorResponse> {
    let object = read::get(text, name).filter(|object| *object != b"null").unwrap_or(b"{}");
    if object.starts_with(b"{") { Ok(read::members(object)) } else { Err(bad(name, "an object")) }
}

/// A key as text.
fn key(escaped: &[u8]) -> String {
    String::from_utf8_lossy(&read::unescape(escaped).collect::<Vec<_>>()).into_owned()
}

fn optional_text(text: &[u8], name: &str) -> Result<Option<String>, ErrorResponse> {
    match read::get(text, name).filter(|value| *value != b"null") {
        Some(value) => Ok(Some(read::text(value).ok_or_else(|| bad(name, "a text"))?.into_owned())),
        None => Ok(None),
    }
}

fn number(text: &[u8], name: &str) -> Result<Option<u64>, ErrorResponse> {
    let Some(value) = read::get(text, name).filter(|value| *value != b"null") else { return Ok(None) };
    let number = read::integer(value).and_then(|number| u64::try_from(number).ok());
    number.map(Some).ok_or_else(|| bad(name, "a number that is not negative"))
}

/// A hash that tells texts of one user's making apart: nobody gains by making two alike.
pub fn hash(parts: &[&[u8]]) -> u64 {
    use std::hash::{Hash, Hasher};
    // Its keys are constant, and the rows that it stands in are compared after a restart: only within one build of the
    // program, and what is not found alike is told again.
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}
