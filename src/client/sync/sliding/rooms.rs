//! One room's object in an answer, and what the connection remembers of it.

use std::collections::BTreeMap;

use super::lists::{Look, Plan, Planned, state_hash};
use super::request::Form;
use super::required::Combined;
use crate::base::{ChunkError, ChunkWriter, comma};
use crate::client::Error;
use crate::matrix::json;
use crate::room::{
    DeltaQuery, Events, Filter, Hero, Membership, Position, RoomDelta, RoomNum, RoomView, StateQuery, StateWish,
    UserRoom,
};
use crate::user::{Answer, NOTED_ROOMS, Noted, STATE_BYTES_MAX, Told, UserNum};

/// Texts and members noted in one write, beside the grant of the answer: once read and once encoded.
const NOTED_BYTES: usize = 4 * 1024;
/// Members remembered for one room as told; beyond that all are forgotten but those of the answer, and told again.
const MEMBERS_MAX: usize = 128;

/// Where the timelines begin that an answer tells anew: the position before the first event. At most as many as an answer
/// tells of rooms.
pub type Starts = BTreeMap<RoomNum, Position>;

/// What is to be noted of an answer while it is written.
pub struct Notes<'a> {
    pub starts: Starts,
    look: &'a Look,
    answer: Answer,
    noted: Noted,
    /// The bytes of texts and members in `noted`.
    bytes: usize,
    num: Option<Position>,
}

impl<'a> Notes<'a> {
    pub fn new(look: &'a Look, plan: &Plan) -> Notes<'a> {
        let (asked, settled, counts) = (look.asked.hash, plan.settled, plan.counts.clone());
        let answer = Answer { num: Position(0), asked, settled, counts };
        Notes { starts: Starts::new(), look, answer, noted: Noted::default(), bytes: 0, num: None }
    }

    fn put(&mut self, room: RoomNum, told: Told, state: Option<Vec<u8>>) -> Result<(), crate::user::Error> {
        if let Some(text) = state.filter(|text| text.len() <= STATE_BYTES_MAX) {
            self.bytes += text.len();
            self.noted.states.insert(told.state, text);
        }
        self.bytes += told.members.len() * size_of::<UserNum>();
        self.noted.rooms.insert(room, told);
        if self.noted.rooms.len() >= NOTED_ROOMS || self.bytes >= NOTED_BYTES {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), crate::user::Error> {
        let (look, noted) = (self.look, std::mem::take(&mut self.noted));
        self.bytes = 0;
        self.num = Some(look.client.users.note_sliding(&look.connection, self.num, self.answer.clone(), noted)?);
        Ok(())
    }

    /// Notes the rest, when there is any, and answers the number of the answer.
    pub fn finish(mut self) -> Result<Position, crate::user::Error> {
        let connection = &self.look.connection;
        let before = Answer { num: Position(0), ..connection.answer.clone() };
        let is_same = !connection.is_new() && before == self.answer;
        let is_noted = self.num.is_some() && self.noted.rooms.is_empty();
        let has_nothing = is_same && self.num.is_none() && self.noted.rooms.is_empty();
        if !is_noted && (!has_nothing || self.look.client.users.is_long_unused(connection)) {
            self.write()?;
        }
        Ok(self.num.unwrap_or(connection.answer.num))
    }
}

/// Writes a room's member of `rooms`.
pub async fn write(
    pen: &ChunkWriter,
    look: &Look,
    plan: &Plan,
    notes: &mut Notes<'_>,
    planned: &Planned,
    first: &mut bool,
) -> Result<(), ChunkError> {
    let Some(room) = look.view.user_room(planned.num)? else { return Ok(()) };
    let id = look.view.room_id(planned.num)?;
    pen.with(|out| {
        comma(out, first);
        json::write_string(out, &id);
        out.extend_from_slice(b":{\"membership\":\"");
        out.extend_from_slice(room.membership().as_str().as_bytes());
        out.push(b'"');
    });
    let told = look.told(planned.num).map_err(of_client)?;
    let since = told.as_ref().map(|told| look.told_upto(told));
    // Who came back, or accepted an invite, has seen nothing of the room yet.
    let is_new = since.is_none_or(|since| room.membership() == Membership::Join && room.since() > since);
    let mut writing = Writing { pen, look, planned, room, told, since: since.filter(|_| !is_new), start: None };
    let after = match room.membership() {
        Membership::Join => writing.joined().await?,
        Membership::Invite | Membership::Knock => writing.stripped()?,
        Membership::Leave | Membership::Ban => writing.left().await?,
    };
    writing.common()?;
    notes.starts.extend(writing.start.map(|start| (planned.num, start)));
    pen.text("}");
    let (after, state) = after;
    // Of a room that is not noted, the position up to which all was told says how much of it was.
    let is_moving = plan.complete < look.view.now.at;
    if is_moving || writing.told.as_ref().is_none_or(|told| Told { at: told.at, ..after.clone() } != *told) {
        notes.put(planned.num, after, state)?;
    }
    pen.pause().await;
    Ok(())
}

/// An error of the surface inside of an answer.
pub fn of_client(failed: Error) -> ChunkError {
    ChunkError::new(format!("{failed:?}"))
}

struct Writing<'a> {
    pen: &'a ChunkWriter,
    look: &'a Look,
    planned: &'a Planned,
    room: UserRoom,
    told: Option<Told>,
    /// Up to where the app knows the room; none for a room that is told whole.
    since: Option<Position>,
    /// Where the timeline begins, when it is told anew.
    start: Option<Position>,
}

type Noting = (Told, Option<Vec<u8>>);

impl Writing<'_> {
    // ---- joined rooms --------------------------------------------------------------------------------------------

    async fn joined(&mut self) -> Result<Noting, ChunkError> {
        let mut view = self.look.view.open(self.planned.num, &Filter::default())?;
        let noting = self.events(&mut view, self.look.view.now.at).await?;
        self.unread()?;
        Ok(noting)
    }

    /// Writes timeline and state, and what follows from the state.
    async fn events(&mut self, view: &mut RoomView, upto: Position) -> Result<Noting, ChunkError> {
        let (look, pen) = (self.look, self.pen);
        let (timeline, state) = look.config(self.planned.num, self.planned.lists);
        let before = self.told.clone().filter(|_| self.since.is_some());
        let is_expanded = before.as_ref().is_some_and(|told| timeline > told.timeline);
        let all = Events::default();
        let delta = view.delta(&DeltaQuery {
            since: self.since.filter(|_| !is_expanded),
            known: self.since,
            upto,
            limit: timeline as usize,
            timeline: Some(&all),
        })?;
        if self.since.is_none() {
            pen.text(",\"initial\":true");
        } else if is_expanded {
            let name = if look.asked.form == Form::V4 { "expanded_timeline" } else { "unstable_expanded_timeline" };
            pen.text(&format!(",\"{name}\":true"));
        }
        let live = look.since.map_or(0, |since| delta.live(since.at));
        let (limited, prev_batch) = (delta.limited, delta.prev_batch);
        if self.since.is_none() || is_expanded {
            self.start = Some(Position(u64::try_from(prev_batch.0).unwrap_or(0)));
        }
        pen.text(&format!(",\"limited\":{limited},\"num_live\":{live},\"prev_batch\":\"{prev_batch}\",\"timeline\":["));
        let senders = delta.write_timeline(pen, view).await?;
        pen.text("],\"required_state\":[");
        let noting = self.state(view, &delta, (before, timeline, state), senders).await?;
        Ok(noting)
    }

    /// Writes the rest of the required state, the name and the counts. The list was begun.
    async fn state(
        &mut self,
        view: &mut RoomView,
        delta: &RoomDelta,
        (before, timeline, state): (Option<Told>, u32, Combined<'_>),
        senders: Vec<UserNum>,
    ) -> Result<Noting, ChunkError> {
        let look = self.look;
        let text = state.text();
        let hash = state_hash(&text);
        let added = match before.as_ref().filter(|told| told.state != hash) {
            Some(told) => Some(look.added(told, &state).map_err(of_client)?).filter(|added| !added.is_empty()),
            None => None,
        };
        let (lazy, mut members) = (state.is_lazy(), Vec::new());
        if lazy {
            members = senders;
            members.extend(delta.targets(view)?);
            members.sort_unstable();
            members.dedup();
        }
        // In a gap an app forgets the members it has, and what changed is not told of them when none are asked for.
        let are_kept = !delta.limited && (lazy || !delta.has_moved());
        let known = before.as_ref().filter(|_| are_kept).map(|told| told.members.clone()).unwrap_or_default();
        members.retain(|member| known.binary_search(member).is_err());
        let (named, reach) = (state.named(), state.reach());
        let wants = |kind: &str, key: Option<&str>| state.wants(kind, key);
        let (added_named, added_reach) = added.as_ref().map(|added| (added.named(), added.reach())).unzip();
        let added_wants = |kind: &str, key: Option<&str>| added.as_ref().and_then(|added| added.wants(kind, key));
        let added_wish = added_reach.map(|reach| StateWish {
            wants: &added_wants,
            reach,
            named: added_named.as_deref().unwrap_or_default(),
        });
        let query = StateQuery {
            wish: StateWish { wants: &wants, reach, named: &named },
            moved_members: lazy && !delta.limited,
            added: added_wish,
            members: &members,
            stubs: look.asked.form == Form::V4,
        };
        let moved = delta.write_required(self.pen, view, &query).await?;
        self.pen.text("]");
        let is_named = self.names(view, delta, moved)?;
        if moved.members || moved.name {
            self.members(view, is_named)?;
        }
        let has_all = !delta.limited;
        let told_timeline = match &before {
            Some(told) if timeline <= told.timeline => {
                if has_all {
                    told.timeline
                } else {
                    timeline
                }
            }
            _ => {
                if has_all {
                    u32::MAX
                } else {
                    timeline
                }
            }
        };
        // What was asked for once more stays known while nothing of it changes.
        let told_state = match &before {
            Some(told) if added_reach.is_none() && !delta.has_moved() => told.state,
            _ => hash,
        };
        let is_new_state = before.as_ref().is_none_or(|told| told.state != told_state);
        let mut told_members = known;
        if told_members.len() + members.len() > MEMBERS_MAX {
            told_members.clear();
        }
        told_members.extend(members);
        told_members.sort_unstable();
        let after = Told {
            at: look.view.now.at,
            timeline: told_timeline,
            state: told_state,
            is_dm: self.is_dm()?,
            is_left: self.room.membership() != Membership::Join,
            members: told_members,
        };
        Ok((after, is_new_state.then_some(text)))
    }

    /// Writes name and avatar, as far as they changed; null for one that is gone. Answers whether the room has a name.
    fn names(&self, view: &RoomView, delta: &RoomDelta, moved: crate::room::StateMoved) -> Result<bool, ChunkError> {
        let mut is_named = false;
        let is_whole = self.since.is_none();
        for (key, kind, field, moved) in
            [("name", "m.room.name", "name", moved.name), ("avatar", "m.room.avatar", "url", moved.avatar)]
        {
            // Whether there is a name is asked for the heroes' sake too.
            let value = view.text_of(delta, kind, field)?;
            is_named |= key == "name" && value.is_some();
            match value {
                Some(value) if moved => self.pen.with(|out| {
                    out.extend_from_slice(format!(",\"{key}\":").as_bytes());
                    json::write_string(out, &value);
                }),
                None if moved && !is_whole => self.pen.text(&format!(",\"{key}\":null")),
                _ => {}
            }
        }
        Ok(is_named)
    }

    /// Writes the counts, and who stands for the name of a room without one.
    fn members(&self, view: &RoomView, is_named: bool) -> Result<(), ChunkError> {
        if self.room.membership() != Membership::Join {
            return Ok(());
        }
        let (joined, invited) = view.counts();
        self.pen.text(&format!(",\"joined_count\":{joined},\"invited_count\":{invited}"));
        if is_named {
            return Ok(());
        }
        let heroes = view.hero_profiles()?;
        self.pen.with(|out| {
            out.extend_from_slice(b",\"heroes\":[");
            let mut first = true;
            for hero in &heroes {
                comma(out, &mut first);
                write_hero(out, hero);
            }
            out.push(b']');
        });
        Ok(())
    }

    fn unread(&self) -> Result<(), ChunkError> {
        if self.look.asked.form == Form::Unstable {
            let ((notifications, highlights), _) = self.look.view.unread(self.planned.num, false)?;
            self.pen.text(&format!(",\"notification_count\":{notifications},\"highlight_count\":{highlights}"));
        }
        Ok(())
    }

    // ---- other rooms ---------------------------------------------------------------------------------------------

    /// A room that the user left. No event after that is shown; neither a ban nor a declined invite reveals any.
    async fn left(&mut self) -> Result<Noting, ChunkError> {
        let mut view = self.look.view.open(self.planned.num, &Filter::default())?;
        if let Some(left_at) = self.room.left_at().filter(|left_at| *left_at == self.room.since()) {
            let was_told = match self.since {
                Some(since) if since < left_at => view.was_joined(since)?,
                _ => false,
            };
            self.since = self.since.filter(|_| was_told);
            return self.events(&mut view, left_at).await;
        }
        if self.told.is_none() {
            self.pen.text(",\"initial\":true");
        }
        self.pen.text(",\"limited\":false,\"num_live\":0,\"timeline\":[],\"required_state\":[");
        view.write_own_member(self.pen, &self.room, &Events::default()).await?;
        self.pen.text("]");
        Ok((self.outside(true)?, None))
    }

    fn stripped(&mut self) -> Result<Noting, ChunkError> {
        let name = if self.look.asked.form == Form::V4 { "stripped_state" } else { "invite_state" };
        self.pen.text(&format!(",\"initial\":true,\"{name}\":"));
        self.look.view.write_stripped(self.pen, &self.room)?;
        Ok((self.outside(false)?, None))
    }

    fn outside(&self, is_left: bool) -> Result<Told, ChunkError> {
        Ok(Told { at: self.look.view.now.at, is_dm: self.is_dm()?, is_left, ..Told::default() })
    }

    // ---- all rooms -----------------------------------------------------------------------------------------------

    fn is_dm(&self) -> Result<bool, ChunkError> {
        Ok(self.look.direct().map_err(of_client)?.binary_search(&self.planned.num).is_ok())
    }

    fn common(&self) -> Result<(), ChunkError> {
        let look = self.look;
        let bump = look.view.activity(&self.room)?.bump;
        self.pen.text(&format!(",\"bump_stamp\":{bump}"));
        let is_dm = self.is_dm()?;
        if is_dm || self.told.as_ref().is_some_and(|told| told.is_dm) {
            self.pen.text(&format!(",\"is_dm\":{is_dm}"));
        }
        if look.asked.form == Form::V4 && self.planned.lists != 0 {
            self.pen.with(|out| {
                out.extend_from_slice(b",\"lists\":[");
                let mut first = true;
                for (place, list) in look.asked.lists.iter().enumerate() {
                    if self.planned.lists >> place & 1 != 0 {
                        comma(out, &mut first);
                        json::write_string(out, &list.name);
                    }
                }
                out.push(b']');
            });
        }
        Ok(())
    }
}

fn write_hero(out: &mut Vec<u8>, hero: &Hero) {
    out.extend_from_slice(b"{\"user_id\":");
    json::write_string(out, &hero.user_id);
    for (key, value) in [("displayname", &hero.displayname), ("avatar_url", &hero.avatar_url)] {
        if let Some(value) = value {
            out.extend_from_slice(format!(",\"{key}\":").as_bytes());
            json::write_string(out, value);
        }
    }
    out.push(b'}');
}
