//! Spaces: the tree of rooms below one, and what a room is for who is not in it.
//!
//! Client-server API, "Spaces" and "Room summary"; server-server API, "Spaces". `walk.rs` goes through a tree, `children.rs` puts the
//! children of a space here in order, `elsewhere.rs` asks other servers about theirs and keeps what they tell, `serve.rs` tells
//! other servers of ours. What a room is shown as stands in `state/description.rs`, and to whom in `state/preview.rs`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};
use serde::Serialize;

use super::Rooms;
use super::error::{Error, Result};
use super::state::description::Description;
use super::state::preview::{Asker, is_shown, is_told_shown, membership, mutual_rooms, resident};
use super::state::servers;
use super::state::stripped::inviting_server;
use crate::base::{self, ChunkError, ChunkWriter, Chunks, comma};
use crate::budget::Refused;
use crate::matrix::json;
use crate::store::tables::room::{self, told, user_room};
use crate::store::tables::user;
use crate::store::{Get, Read, RoomNum};
use children::{CHILD_ROWS_MAX, child_events, is_suggested, write_children};
use elsewhere::Kept;
use walk::{Asked, Shown, Step, WALK_BYTES, Walk};

mod children;
mod elsewhere;
mod serve;
#[cfg(test)]
mod tests;
mod walk;

/// Rooms on one page of a hierarchy.
pub const PAGE_MAX: usize = 50;
/// A page ends when other servers were asked for this long.
const PAGE_TIME: Duration = Duration::from_secs(20);
/// And when this many rooms were asked for.
const QUESTIONS_MAX: usize = 64;
/// Rooms on one page of those that two users share.
const MUTUAL_MAX: usize = 100;

/// Which part of the tree below a room.
#[derive(Debug, Clone, Default)]
pub struct HierarchyQuery {
    /// How far to go down; 0 is the room alone.
    pub max_depth: Option<u16>,
    pub suggested_only: bool,
    pub limit: Option<usize>,
    pub from: Option<String>,
    /// An administrator looks: every room that this server is in is shown, and no other server asked.
    pub sees_all: bool,
}

/// What a room is, and what the asking user is in it.
#[derive(Debug, Clone, Serialize)]
pub struct RoomSummary {
    #[serde(flatten)]
    pub room: Description,
    /// Only for a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub membership: Option<&'static str>,
}

impl Rooms {
    /// A page of the rooms below a room, that one first. `may_ask`: whether another server may be asked about one more room.
    ///
    /// `Forbidden` when the user is not shown the room itself. `M_INVALID_PARAM` for a token of another question.
    pub async fn hierarchy(
        &self,
        user: &UserId,
        room_id: &RoomId,
        query: HierarchyQuery,
        may_ask: impl Fn() -> bool,
    ) -> Result<impl Chunks> {
        let limit = query.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
        let asked = Asked {
            user: user.to_owned(),
            room_id: room_id.to_owned(),
            max_depth: query.max_depth,
            suggested_only: query.suggested_only,
            sees_all: query.sees_all,
            us: self.server().to_owned(),
            via: self.to_ask(Some(user), room_id, Vec::new()).await?,
        };
        let question = self.reading({
            let asked = asked.clone();
            move |_, read| Ok(question(read, &asked))
        });
        let question = question.await?;
        let skip = match &query.from {
            None => 0,
            Some(token) => skip_of(token, &question)
                .ok_or_else(|| Error::bad("M_INVALID_PARAM", "the token is not one of this space and these filters"))?,
        };
        let clock = &self.0.parts.clock;
        let (until, mut questions) = (clock.instant() + PAGE_TIME, HashSet::new());
        let walk = loop {
            // While another server is asked nothing is held: then the walk begins again, and finds what was told.
            let paid = self.0.parts.budget.account("response_bodies").take(WALK_BYTES).await?;
            let (now_ms, mut walk) = (clock.now_ms(), Walk::new(asked.clone(), skip, limit, questions.clone()));
            let walked = self.reading(move |_, read| {
                let step = walk.go_on(read, now_ms)?;
                Ok((walk, step, paid))
            });
            let (walk, step, paid) = walked.await?;
            let Step::Ask(name, about, via) = step else { break walk };
            if walk.has_moved() && (clock.instant() >= until || questions.len() == QUESTIONS_MAX) {
                break walk;
            }
            if !may_ask() {
                match walk.has_moved() {
                    true => break walk,
                    false => return Err(ask_later()),
                }
            }
            drop((walk, paid));
            questions.insert(name);
            elsewhere::ask(self, name, &about, &via).await?;
        };
        if walk.is_refused && query.sees_all {
            return Err(Error::NotFound);
        }
        if walk.is_refused {
            return Err(Error::forbidden("the user may not see this room: it does not exist, or is not open to them"));
        }
        let next = walk.next().map(|count| format!("h{count}_{question}"));
        let (read, page, suggested_only) = (Arc::new(self.read()?), walk.page, query.suggested_only);
        Ok(base::written(move |pen| async move {
            pen.text("{\"rooms\":[");
            let mut first = true;
            for shown in page {
                match shown {
                    Shown::Here(num) => write_here(&read, &pen, num, suggested_only, &mut first).await?,
                    Shown::Told(name) => write_told(&read, &pen, &name, suggested_only, &mut first).await?,
                }
            }
            pen.text("]");
            if let Some(next) = next {
                pen.text(&format!(",\"next_batch\":\"{next}\""));
            }
            pen.text("}");
            Ok(())
        }))
    }

    /// What a room is, for a user or for somebody without an account. Other servers are asked about a room we are not in, those
    /// named first, when `may_ask` allows.
    ///
    /// `NotFound` when there is no such room or it is not open to who asks.
    pub async fn summary(
        &self,
        user: Option<&UserId>,
        room_id: &RoomId,
        via: Vec<OwnedServerName>,
        may_ask: impl FnOnce() -> bool,
    ) -> Result<RoomSummary> {
        let look = |any_age| self.look(user.map(ToOwned::to_owned), room_id.to_owned(), any_age);
        if let Some(found) = look(false).await? {
            return found.ok_or(Error::NotFound);
        }
        // What servers tell that a user named is for that user alone.
        let within = user.filter(|_| !via.is_empty()).map(ToOwned::to_owned);
        let via = self.to_ask(user, room_id, via).await?;
        if via.is_empty() {
            return Err(Error::NotFound);
        }
        if !may_ask() {
            return Err(ask_later());
        }
        let id = room_id.to_owned();
        let name = self.reading(move |_, read| {
            Ok(match within {
                Some(user) => told::name_within(read, user.as_bytes(), id.as_str()),
                None => told::name(read, id.as_str()),
            })
        });
        elsewhere::ask(self, name.await?, room_id, &via).await?;
        look(true).await?.flatten().ok_or(Error::NotFound)
    }

    /// A summary of what is known here: nothing when nothing is, and inside of that nothing when it is not shown to who asks.
    async fn look(
        &self,
        user: Option<OwnedUserId>,
        room_id: OwnedRoomId,
        any_age: bool,
    ) -> Result<Option<Option<RoomSummary>>> {
        let now_ms = self.0.parts.clock.now_ms();
        self.reading(move |_, read| {
            let asker = user.as_deref().map_or(Asker::Nobody, Asker::User);
            let membership = match &user {
                Some(user) => Some(membership(read, user, room_id.as_str())?.map_or("leave", |mine| mine.as_str())),
                None => None,
            };
            let summary = |room| Some(Some(RoomSummary { room, membership }));
            if let Some(room) = resident(read, room_id.as_str())? {
                return Ok(match is_shown(read, &room, asker)? {
                    true => summary(Description::whole(read, &room)?),
                    false => Some(None),
                });
            }
            let name = told::name(read, room_id.as_str());
            let own = user.as_ref().map(|user| told::name_within(read, user.as_bytes(), room_id.as_str()));
            let mut found = None;
            for name in [Some(name), own].into_iter().flatten() {
                let Some(told) = elsewhere::kept(read, &name, now_ms, any_age)? else { continue };
                match Kept(&told.text).description() {
                    Some(room) if is_told_shown(read, &room, asker)? => return Ok(summary(room)),
                    // A few servers knew nothing of it: others that are named now may.
                    None if !any_age => {}
                    _ => found = Some(None),
                }
            }
            Ok(found)
        })
        .await
    }

    /// The servers to ask about a room: those named, that of an invite, and the one in the room's id.
    async fn to_ask(
        &self,
        user: Option<&UserId>,
        room_id: &RoomId,
        mut via: Vec<OwnedServerName>,
    ) -> Result<Vec<OwnedServerName>> {
        let (user, id) = (user.map(ToOwned::to_owned), room_id.to_owned());
        let known = self.reading(move |rooms, read| {
            let mut known = Vec::new();
            let Some(room) = room::num(read, id.as_str())? else { return Ok(known) };
            if let Some(user) = user
                && let Some(num) = user::num(read, user.as_str())?
                && let Some(stripped) = user_room::stripped(read, num, room)?
            {
                known.extend(OwnedServerName::try_from(inviting_server(&stripped, &user)));
            }
            // A room that everybody here left: others are in it still.
            match servers::servers(read, room, rooms.server()) {
                Ok(others) => known.extend(others),
                Err(Error::NotFound) => {}
                Err(failed) => return Err(failed),
            }
            Ok(known)
        });
        via.extend(known.await?);
        via.extend(room_id.server_name().map(ToOwned::to_owned));
        let mut seen = HashSet::new();
        via.retain(|server| !self.0.parts.remote.is_me(server) && seen.insert(server.clone()));
        Ok(via)
    }

    /// The rooms in which a local user and another user are, a page of them; how many there are; and where the next page begins.
    ///
    /// `M_INVALID_PARAM` for a token of another server.
    pub async fn mutual_rooms(
        &self,
        user: &UserId,
        other: &str,
        from: Option<&str>,
    ) -> Result<(Vec<String>, u64, Option<String>)> {
        let after = match from {
            None => None,
            Some(token) => {
                let num = token.strip_prefix('m').and_then(|num| num.parse().ok()).map(RoomNum);
                Some(num.ok_or_else(|| Error::bad("M_INVALID_PARAM", "the token is not one of this server"))?)
            }
        };
        let (user, other) = (user.to_owned(), other.to_owned());
        self.reading(move |_, read| {
            let (mut nums, count) = mutual_rooms(read, &user, &other, after, MUTUAL_MAX + 1)?;
            let has_more = nums.len() > MUTUAL_MAX;
            nums.truncate(MUTUAL_MAX);
            let next = nums.last().filter(|_| has_more).map(|last| format!("m{last}"));
            let ids = nums.into_iter().map(|num| Ok(room::get_of(read, num)?.id));
            Ok((ids.collect::<Result<_>>()?, count, next))
        })
        .await
    }
}

/// What a token is for: another user, room, depth or filter has other pages.
fn question(get: &impl Get, asked: &Asked) -> String {
    let depth = asked.max_depth.map_or_else(String::new, |depth| depth.to_string());
    let suggested: &[u8] = if asked.suggested_only { b"1" } else { b"0" };
    let all: &[u8] = if asked.sees_all { b"all" } else { b"" };
    let hash = get.hash128(&[asked.user.as_bytes(), asked.room_id.as_bytes(), depth.as_bytes(), suggested, all]);
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn skip_of(token: &str, question: &str) -> Option<usize> {
    let (count, of) = token.strip_prefix('h')?.split_once('_')?;
    count.parse().ok().filter(|_| of == question)
}

/// A room we are in, with the events that name its children.
async fn write_here(
    read: &Read,
    pen: &ChunkWriter,
    num: RoomNum,
    suggested_only: bool,
    first: &mut bool,
) -> Result<(), ChunkError> {
    // Left since the walk came by: it is gone from the page.
    let Ok(room) = super::state::known_num(read, num) else { return Ok(()) };
    let shown = Description::whole(read, &room)?;
    let events = match shown.is_space() {
        true => child_events(read, num, suggested_only, CHILD_ROWS_MAX)?.0,
        false => Vec::new(),
    };
    pen.with(|out| {
        comma(out, first);
        out.extend_from_slice(&open_ended(&shown));
        out.extend_from_slice(b"\"children_state\":[");
    });
    write_children(read, pen, &events).await?;
    pen.text("]}");
    Ok(())
}

/// A room of which another server told.
async fn write_told(
    read: &Read,
    pen: &ChunkWriter,
    name: &told::Name,
    suggested_only: bool,
    first: &mut bool,
) -> Result<(), ChunkError> {
    let Some(told) = told::get(read, name)? else { return Ok(()) };
    let kept = Kept(&told.text);
    let Some(room) = json::read::get(&told.text, "room").and_then(|room| room.strip_suffix(b"}")) else {
        return Ok(());
    };
    pen.with(|out| {
        comma(out, first);
        out.extend_from_slice(room);
        out.extend_from_slice(b",\"children_state\":[");
    });
    let mut first = true;
    for child in kept.children().filter(|child| !suggested_only || is_suggested(child)) {
        pen.with(|out| {
            comma(out, &mut first);
            out.extend_from_slice(child);
        });
        pen.pause().await;
    }
    pen.text("]}");
    Ok(())
}

/// A description to which members are added: without its closing brace, and with a comma.
fn open_ended(shown: &Description) -> Vec<u8> {
    let mut text = serde_json::to_vec(shown).expect("texts and numbers are JSON");
    text.pop();
    text.push(b',');
    text
}

/// The error for a user who asks for more than other servers are asked for on that user's behalf.
fn ask_later() -> Error {
    let account = "questions to other servers".to_owned();
    Error::Refused(Refused { account, asked: 0, limit: 0, retry_after_ms: 1_000, too_large: false })
}
