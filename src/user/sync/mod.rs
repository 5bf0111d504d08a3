//! The part of a sync outside of rooms: account data, to-device messages, changed device lists, one-time key counts.
//! As of one snapshot. The layout stands in `client/sync/`; only lists of users, which may be long, are written here.
//! `profiles.rs`: whose profiles changed.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::device::keys::FALLBACK_KEYS_MAX;
use super::settings::account_data::{DIRECT, TAG};
use super::{Error, Requester, Users, sharing};
use crate::base::{ChunkError, ChunkWriter, comma};
use crate::matrix::json::{self, partial};
use crate::matrix::push::default_rules;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Kind, Membership, Root};
use crate::store::tables::room::member;
use crate::store::tables::room::user_room::Mine;
use crate::store::tables::room::{self, Room, state_tree, timeline};
use crate::store::tables::room::{current_state, user_room};
use crate::store::tables::user::account_data::{self, GLOBAL};
use crate::store::tables::user::{self, device, e2ee_key, push_rule, to_device};
use crate::store::{self, EventNum, Position, Read, RoomNum, StateKeyNum, UserNum};

mod profiles;

pub use profiles::ProfileQuery;

/// The type of the account data that holds a user's push rules.
const PUSH_RULES: &str = "m.push_rules";
/// The number of rows read ahead of the writing.
const BATCH: usize = 128;
/// The most members of a room that is not encrypted whose coming and going an app is told of as that of their devices. The
/// specification asks for rooms that are encrypted; apps that share files or make calls elsewhere too are used to the others.
/// Some 40 bytes each: 40 KB of an answer, where a room of 40,000 would be megabytes for devices that nobody writes to.
const UNENCRYPTED_MEMBERS_MAX: u64 = 1_000;
/// The number of changed state keys read ahead.
const DIFFERENCE_BATCH: usize = 1_024;
/// The most to-device messages in one answer, and their bytes: on a poor line an interrupted answer is not begun from
/// the start each time. At least one is sent.
const MESSAGES_MAX: usize = 100;
const MESSAGES_BYTES_MAX: usize = 256 << 10;

/// The changes outside of rooms for one device, between two positions.
pub struct UserSync {
    read: Arc<Read>,
    user: UserNum,
    requester: Requester,
    /// None for the first sync.
    since: Option<Position>,
    /// The position up to which the app has received the to-device messages.
    received: Position,
    now: Position,
    /// Nothing here changed between the two positions.
    quiet: bool,
}

impl Users {
    /// Prepares the part of a sync outside of rooms.
    pub fn own(
        &self,
        read: Arc<Read>,
        requester: &Requester,
        since: Option<Position>,
        received: Position,
        now: Position,
    ) -> UserSync {
        // A position from the future comes from a database that was since restored: all messages are told anew.
        let received = if received > now { Position(0) } else { received };
        UserSync { read, user: requester.user_num, requester: requester.clone(), since, received, now, quiet: false }
    }
}

impl UserSync {
    /// It is known that nothing has changed between the positions: nothing is read.
    pub fn quiet(self, users: &Users) -> UserSync {
        users.0.emptied.none_came(self.user, &self.requester.device_id, self.received, self.now);
        UserSync { quiet: true, ..self }
    }

    /// Whether it is known that nothing has changed.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    fn since(&self) -> Position {
        self.since.unwrap_or_default()
    }

    /// Whether there are any changes outside of rooms. `wants`: which types of account data are wanted.
    pub fn any(&self, wants: impl Fn(&str) -> bool) -> Result<bool, Error> {
        if self.since.is_none() || self.quiet {
            return Ok(!self.quiet);
        }
        Ok(self.any_messages()? || self.any_account_data(wants)? || self.any_devices()?)
    }

    /// Whether messages to the device wait that its app has not received.
    pub fn any_messages(&self) -> Result<bool, Error> {
        Ok(self.next_message(None, self.now)?.is_some())
    }

    /// Whether account data of wanted types changed, for all rooms together.
    pub fn any_account_data(&self, wants: impl Fn(&str) -> bool) -> Result<bool, Error> {
        let mut any = false;
        if !self.quiet {
            account_data::changes(&*self.read, self.user, self.since(), self.now, &mut |room, kind| {
                any = room == GLOBAL && wants(kind);
                Ok(if any { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        Ok(any)
    }

    /// Whether the devices or keys of a user who shares a room changed. Who shares none any more is for the next answer and
    /// wakes no app; of who came to share one an app mostly is told an event, and else see [`UserSync::any_newcomers`].
    pub fn any_devices(&self) -> Result<bool, Error> {
        Ok(!self.quiet && self.since.is_some() && !self.changed_devices(self.since(), 1)?.0.is_empty())
    }

    /// Whether somebody newly shares an encrypted room: an app that is told no rooms has to hear of it before it sends there.
    /// Reads of a room in which no state changed two rows.
    pub fn any_newcomers(&self) -> Result<bool, Error> {
        if self.quiet || self.since.is_none() {
            return Ok(false);
        }
        let mut room = None;
        while let Some((num, mine)) = self.next_room(room, Membership::Join)? {
            room = Some(num);
            let row = room::get_of(&*self.read, num)?;
            if row.latest <= self.since() {
                continue;
            }
            let Some(encrypted) = self.encryption(num)? else { continue };
            let mut came = false;
            if mine.since > self.since() || encrypted > self.since() {
                member::list(&*self.read, num, Membership::Join, None, &mut |user, _| {
                    came = user != self.user;
                    Ok(if came { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })?;
            } else {
                let before = timeline::state_at(&*self.read, num, self.since())?.map(|(_, root)| root);
                if before == row.state {
                    continue;
                }
                state_tree::diff(&*self.read, before, row.state, &mut |_, old, new| {
                    let joined = |event| Ok::<_, store::Error>(self.member(event)?.filter(|(_, joined)| *joined));
                    came = joined(new)?.is_some_and(|(user, _)| user != self.user) && joined(old)?.is_none();
                    Ok(if came { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })?;
            }
            if came {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The rooms with changed account data of wanted types, in order. Bounded by the cap on entries of one user.
    pub fn rooms(&self, wants: impl Fn(&str) -> bool) -> Result<Vec<RoomNum>, Error> {
        let mut rooms = Vec::new();
        if self.since.is_some() && !self.quiet {
            account_data::changes(&*self.read, self.user, self.since(), self.now, &mut |room, kind| {
                if room != GLOBAL && wants(kind) {
                    rooms.push(room);
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        rooms.sort_unstable();
        rooms.dedup();
        Ok(rooms)
    }

    // ---- account data --------------------------------------------------------------------------------------------

    /// The types of account data for all rooms together, or for one room: those that changed, or all when `whole`.
    /// Bounded by the cap on entries of one user.
    pub fn account_data_types(&self, room: Option<RoomNum>, whole: bool) -> Result<Vec<String>, Error> {
        if self.quiet && !whole {
            return Ok(Vec::new());
        }
        let mut types = self.stored_types(room.unwrap_or(GLOBAL), whole)?;
        // Push rules that were never changed are no entry.
        if room.is_none() && whole && push_rule::is_default(&*self.read, self.user)? {
            types.push(PUSH_RULES.to_owned());
        }
        Ok(types)
    }

    /// The content of one entry, a JSON object; an empty one for an entry that was removed.
    pub fn account_data(&self, room: Option<RoomNum>, kind: &str) -> Result<Option<Vec<u8>>, Error> {
        if room.is_none() && kind == PUSH_RULES {
            let defaults = default_rules(&self.requester.user_id);
            return Ok(Some(push_rule::to_json(&push_rule::get(&*self.read, self.user, defaults)?)));
        }
        let told = account_data::told(&*self.read, self.user, room.unwrap_or(GLOBAL), kind)?;
        Ok(told.map(|json| if json.is_empty() { b"{}".to_vec() } else { json }))
    }

    /// The user's direct chats, in order: the rooms in `m.direct` that are known here. Bounded by the size of an entry, some
    /// thousand rooms of 4 bytes.
    pub fn direct_rooms(&self) -> Result<Vec<RoomNum>, Error> {
        let mut rooms = Vec::new();
        let Some(content) = account_data::get(&*self.read, self.user, GLOBAL, DIRECT)? else { return Ok(rooms) };
        let mut failed = None;
        let mut each = |id: &str| match room::num(&*self.read, id) {
            Ok(num) => rooms.extend(num),
            Err(wrong) => failed = Some(wrong),
        };
        let read = partial::each_member(&content, &mut |_, of_user| {
            EachText(&mut each).deserialize(&mut serde_json::Deserializer::from_str(of_user.get()))
        });
        if let Some(failed) = failed {
            return Err(failed.into());
        }
        // What an older version stored may have another shape: then nobody is chatted with.
        if read.is_err() {
            rooms.clear();
        }
        rooms.sort_unstable();
        rooms.dedup();
        Ok(rooms)
    }

    /// The user's tags of a room, of which an app may have at most a hundred.
    pub fn tags(&self, room: RoomNum) -> Result<Vec<String>, Error> {
        let content = account_data::get(&*self.read, self.user, room, TAG)?.unwrap_or_default();
        let mut tags = Vec::new();
        if let Some(all) = partial::member::<Box<RawValue>>(&content, "tags") {
            let read = partial::each_member(all.get().as_bytes(), &mut |tag, _| {
                tags.push(tag.to_owned());
                Ok::<_, serde_json::Error>(())
            });
            read.ok();
        }
        Ok(tags)
    }

    fn stored_types(&self, room: RoomNum, whole: bool) -> store::Result<Vec<String>> {
        let mut kinds = Vec::new();
        let whole = whole || self.since.is_none();
        // A room has few entries; the global account data may have many.
        if whole || room != GLOBAL {
            account_data::each(&*self.read, self.user, room, &mut |kind, at, json| {
                // An app that knows nothing yet need not hear what was removed.
                if if whole { !json.is_empty() } else { at > self.since() } {
                    kinds.push(kind.to_owned());
                }
                Ok(ControlFlow::Continue(()))
            })?;
            return Ok(kinds);
        }
        account_data::changes(&*self.read, self.user, self.since(), self.now, &mut |of, kind| {
            if of == room {
                kinds.push(kind.to_owned());
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(kinds)
    }

    // ---- messages to the device ----------------------------------------------------------------------------------

    /// The position up to which one answer holds the to-device messages: the end, unless there are many. `limit`: the most
    /// that the app wants.
    pub fn messages_end(&self, limit: usize) -> Result<Position, Error> {
        if self.quiet {
            return Ok(self.now);
        }
        let limit = limit.clamp(1, MESSAGES_MAX);
        let (mut count, mut bytes, mut end) = (0, 0, self.now);
        let mut last = None;
        let device = &self.requester.device_id;
        to_device::each(&*self.read, self.user, device, self.received, self.now, &mut |position, message| {
            count += 1;
            bytes += message.len();
            if let Some(last) = last.filter(|_| count > limit || bytes > MESSAGES_BYTES_MAX) {
                end = last;
                return Ok(ControlFlow::Break(()));
            }
            last = Some(position);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(end)
    }

    /// The device's next queued message behind `after`, up to `end`; the first when nothing is given. It stays until a
    /// later token acknowledges it. One at a time: each may be tens of kilobytes.
    pub fn next_message(&self, after: Option<Position>, end: Position) -> Result<Option<(Position, Vec<u8>)>, Error> {
        let mut next = None;
        if self.quiet {
            return Ok(next);
        }
        let (device, after) = (&self.requester.device_id, after.unwrap_or(self.received));
        to_device::each(&*self.read, self.user, device, after, end, &mut |position, message| {
            next = Some((position, message.to_vec()));
            Ok(ControlFlow::Break(()))
        })?;
        Ok(next)
    }

    // ---- keys ----------------------------------------------------------------------------------------------------

    /// The counts of the device's one-time keys by algorithm; the usual algorithm is always there.
    pub fn one_time_key_counts(&self) -> Result<Vec<(String, u64)>, Error> {
        const USUAL: &str = "signed_curve25519";
        let mut counts = e2ee_key::one_time_counts(&*self.read, self.user, &self.requester.device_id)?;
        if !counts.iter().any(|(algorithm, _)| algorithm == USUAL) {
            counts.push((USUAL.to_owned(), 0));
        }
        Ok(counts)
    }

    /// The algorithms of the device's unused fallback keys.
    pub fn unused_fallback_keys(&self) -> Result<Vec<String>, Error> {
        let device = &self.requester.device_id;
        Ok(e2ee_key::unused_fallbacks(&*self.read, self.user, device, FALLBACK_KEYS_MAX)?)
    }

    // ---- whose devices changed -----------------------------------------------------------------------------------

    /// Writes, as texts with commas between, the users with changed keys and those who newly share a room that counts (see
    /// `counts_since`). A user who shares several such rooms may be named twice, which does no harm. Nothing for a first sync.
    pub async fn write_changed_devices(&self, pen: &ChunkWriter) -> Result<(), ChunkError> {
        match self.since {
            Some(_) if !self.quiet => self.write_changed(pen).await,
            _ => Ok(()),
        }
    }

    /// Writes the users who left a room that counts and share none any more; else as [`UserSync::write_changed_devices`].
    pub async fn write_left_devices(&self, pen: &ChunkWriter) -> Result<(), ChunkError> {
        match self.since {
            Some(_) if !self.quiet => self.write_gone(pen).await,
            _ => Ok(()),
        }
    }

    async fn write_changed(&self, pen: &ChunkWriter) -> Result<(), ChunkError> {
        let (mut first, mut after) = (true, Some(self.since()));
        while let Some(from) = after {
            let (batch, next) = self.changed_devices(from, BATCH)?;
            for user in &batch {
                self.write_user(pen, *user, &mut first)?;
                pen.pause().await;
            }
            after = next;
        }
        let mut room = None;
        while let Some((num, mine)) = self.next_room(room, Membership::Join)? {
            room = Some(num);
            let row = room::get_of(&*self.read, num)?;
            if row.latest <= self.since() && mine.since <= self.since() {
                continue;
            }
            let Some(counts) = self.counts_since(num, &row)? else { continue };
            if mine.since > self.since() || counts > self.since() {
                self.write_members(pen, num, &mut first, false).await?;
                continue;
            }
            self.write_moved(pen, &row, num, &mut first, true).await?;
        }
        Ok(())
    }

    async fn write_gone(&self, pen: &ChunkWriter) -> Result<(), ChunkError> {
        let mut first = true;
        let mut room = None;
        while let Some((num, _)) = self.next_room(room, Membership::Join)? {
            room = Some(num);
            let row = room::get_of(&*self.read, num)?;
            if row.latest > self.since() && self.counts_since(num, &row)?.is_some() {
                self.write_moved(pen, &row, num, &mut first, false).await?;
            }
        }
        for membership in [Membership::Leave, Membership::Ban] {
            let mut room = None;
            while let Some((num, mine)) = self.next_room(room, membership)? {
                room = Some(num);
                let left = mine.left_at.is_some_and(|at| at > self.since());
                if left && self.counts_since(num, &room::get_of(&*self.read, num)?)?.is_some() {
                    self.write_members(pen, num, &mut first, true).await?;
                }
            }
        }
        Ok(())
    }

    /// The next users who share a room with ours and whose devices changed after a position; and where to go on, when
    /// there may be more.
    fn changed_devices(&self, after: Position, most: usize) -> Result<(Vec<UserNum>, Option<Position>), Error> {
        let (mut found, mut next) = (Vec::new(), None);
        device::changes(&*self.read, after, self.now, &mut |at, user| {
            if user == self.user || self.shares_room(user)? {
                found.push(user);
            }
            if found.len() < most {
                return Ok(ControlFlow::Continue(()));
            }
            next = Some(at);
            Ok(ControlFlow::Break(()))
        })?;
        Ok((found, next))
    }

    fn shares_room(&self, other: UserNum) -> store::Result<bool> {
        sharing::shares_room(&*self.read, self.user, other).map_err(|failed| match failed {
            Error::Store(failed) => failed,
            _ => store::Error::Closed,
        })
    }

    fn next_room(&self, after: Option<RoomNum>, membership: Membership) -> store::Result<Option<(RoomNum, Mine)>> {
        let mut found = None;
        user_room::list_mine(&*self.read, self.user, after, &mut |num, mine| {
            if mine.membership == membership {
                found = Some((num, mine));
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// The position since which an app is told whose devices come to a room and leave it: since the room has been encrypted,
    /// or for ever in a small one that is not. None for a large one.
    fn counts_since(&self, num: RoomNum, row: &Room) -> store::Result<Option<Position>> {
        let small = (row.joined <= UNENCRYPTED_MEMBERS_MAX).then_some(Position(0));
        Ok(self.encryption(num)?.or(small))
    }

    /// The position since which a room has been encrypted; none for a room that is not.
    fn encryption(&self, num: RoomNum) -> store::Result<Option<Position>> {
        let Some(key) = state_tree::key(&*self.read, "m.room.encryption", "")? else { return Ok(None) };
        let Some(event) = current_state::state(&*self.read, num, Kind::ENCRYPTION, key)? else { return Ok(None) };
        let order = event::row_of(&*self.read, event)?.order;
        Ok(Some(Position(order.and_then(|order| u64::try_from(order).ok()).unwrap_or(0))))
    }

    /// Writes the users joined to a room, ours too, whose other devices may not know the room yet; or those of them with whom
    /// no room is shared any more.
    async fn write_members(
        &self,
        pen: &ChunkWriter,
        num: RoomNum,
        first: &mut bool,
        gone: bool,
    ) -> Result<(), ChunkError> {
        let mut after = None;
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            member::list(&*self.read, num, Membership::Join, after, &mut |user, _| {
                batch.push(user);
                Ok(if batch.len() == BATCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            for user in &batch {
                let is_told = match gone {
                    true => *user == self.user || self.shares_room(*user)?,
                    false => self.is_changed(*user)?,
                };
                if !is_told {
                    self.write_user(pen, *user, first)?;
                    pen.pause().await;
                }
            }
            match batch.last() {
                Some(last) if batch.len() == BATCH => after = Some(*last),
                _ => return Ok(()),
            }
        }
    }

    /// Writes the users who joined a room since then, or those who left it and share no other room.
    async fn write_moved(
        &self,
        pen: &ChunkWriter,
        row: &Room,
        num: RoomNum,
        first: &mut bool,
        came: bool,
    ) -> Result<(), ChunkError> {
        let before = timeline::state_at(&*self.read, num, self.since())?.map(|(_, root)| root);
        let mut after = None;
        loop {
            let batch = self.difference(before, row.state, after)?;
            for (key, old, new) in &batch {
                after = Some(*key);
                let (old, new) = (self.member(*old)?, self.member(*new)?);
                let moved = match (old, new) {
                    // A user who was a member before may have left and rejoined meanwhile with another device.
                    (_, Some((user, true))) if came => Some(user),
                    (Some((user, true)), is) if !came => is.is_none_or(|(_, joined)| !joined).then_some(user),
                    _ => None,
                };
                let Some(user) = moved.filter(|user| *user != self.user) else { continue };
                if !(if came { self.is_changed(user)? } else { self.shares_room(user)? }) {
                    self.write_user(pen, user, first)?;
                    pen.pause().await;
                }
            }
            if batch.len() < DIFFERENCE_BATCH {
                return Ok(());
            }
        }
    }

    #[allow(clippy::type_complexity)] // a key with its two sides
    fn difference(
        &self,
        before: Option<Root>,
        now: Option<Root>,
        after: Option<StateKeyNum>,
    ) -> store::Result<Vec<(StateKeyNum, Option<EventNum>, Option<EventNum>)>> {
        let mut batch = Vec::new();
        if before == now {
            return Ok(batch);
        }
        state_tree::diff(&*self.read, before, now, &mut |key, old, new| {
            if after.is_none_or(|after| key > after) {
                batch.push((key, old, new));
            }
            Ok(if batch.len() == DIFFERENCE_BATCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(batch)
    }

    /// The user of a member event, and whether the event joins that user.
    fn member(&self, event: Option<EventNum>) -> store::Result<Option<(UserNum, bool)>> {
        let Some(event) = event else { return Ok(None) };
        let member = event::row_of(&*self.read, event)?.member;
        Ok(member.map(|(membership, user)| (user, membership == Membership::Join)))
    }

    /// Whether a user's devices changed, which is told of whoever shares a room.
    fn is_changed(&self, user: UserNum) -> store::Result<bool> {
        Ok(device::last_change(&*self.read, user)?.is_some_and(|at| at > self.since() && at <= self.now))
    }

    fn write_user(&self, pen: &ChunkWriter, user: UserNum, first: &mut bool) -> store::Result<()> {
        let user_id = user::id_of(&*self.read, user)?;
        pen.with(|out| {
            comma(out, first);
            json::write_string(out, &user_id);
        });
        Ok(())
    }
}

/// Shows the texts of a list one by one.
struct EachText<'f>(&'f mut dyn FnMut(&str));

impl<'de> DeserializeSeed<'de> for EachText<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, list: D) -> Result<(), D::Error> {
        list.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for EachText<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of texts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(text) = list.next_element::<Cow<'de, str>>()? {
            (self.0)(&text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Chunks, written};
    use crate::store::tables::room::user_room::Mine;
    use crate::user::tests::{room_with, town};

    /// Who joins a huge room that is not encrypted would be sent the ids of all its members.
    #[tokio::test]
    async fn devices_of_a_large_room_that_is_not_encrypted_are_not_listed() {
        let town = town();
        let anna = town.person("anna").await;
        let who = anna.user_num;
        let made = town.users.write(move |w| {
            for (room, joined) in [("!small:here.test", 2), ("!large:here.test", UNENCRYPTED_MEMBERS_MAX + 1)] {
                let far = room.replace('!', "@");
                let num = room_with(w, room, &far, "Far", "invite")?;
                user_room::set_mine(w, who, num, &Mine::joined(Position(9)))?;
                let row = Room { joined, latest: Position(9), ..room::get_of(w, num)? };
                room::put(w, num, &row)?;
            }
            Ok(())
        });
        made.await.unwrap();
        let read = Arc::new(town.users.0.parts.store.read().unwrap());
        let own = town.users.own(read, &anna, Some(Position(8)), Position(8), Position(9));
        let mut chunks = written(move |pen| async move { own.write_changed_devices(&pen).await });
        let mut told = Vec::new();
        while chunks.next(&mut told).unwrap() {}
        assert_eq!(String::from_utf8(told).unwrap(), "\"@small:here.test\"");
    }
}
