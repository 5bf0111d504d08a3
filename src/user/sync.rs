//! The part of a sync outside of rooms: account data, to-device messages, changed device lists, one-time key counts.
//! Written piece by piece, as of one snapshot.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::device::keys::FALLBACK_KEYS_MAX;
use super::{Error, Requester, Users, sharing};
use crate::base::{ChunkError, ChunkWriter, comma};
use crate::matrix::json;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Kind, Membership, Root};
use crate::store::tables::room::member;
use crate::store::tables::room::user_room::Mine;
use crate::store::tables::room::{self, state_tree, timeline};
use crate::store::tables::room::{current_state, user_room};
use crate::store::tables::user::account_data::{self, GLOBAL};
use crate::store::tables::user::{self, device, e2ee_key, push_rule, to_device};
use crate::store::{self, EventNum, Position, Read, RoomNum, StateKeyNum, UserNum};

/// The number of rows read ahead of the writing.
const BATCH: usize = 128;
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
        UserSync { read, user: requester.user_num, requester: requester.clone(), since, received, now }
    }
}

impl UserSync {
    fn since(&self) -> Position {
        self.since.unwrap_or_default()
    }

    /// Whether there are any changes.
    pub fn any(&self) -> Result<bool, Error> {
        if self.since.is_none() {
            return Ok(true);
        }
        let (read, mut any) = (&*self.read, false);
        to_device::each(read, self.user, &self.requester.device_id, self.received, self.now, &mut |_, _| {
            any = true;
            Ok(ControlFlow::Break(()))
        })?;
        if !any {
            account_data::changes(read, self.user, self.since(), self.now, &mut |_, _| {
                any = true;
                Ok(ControlFlow::Break(()))
            })?;
        }
        Ok(any || !self.changed_devices(self.since(), 1)?.0.is_empty())
    }

    /// The rooms whose account data changed, in order. Bounded by the cap on entries of one user.
    pub fn rooms(&self) -> Result<Vec<RoomNum>, Error> {
        let mut rooms = Vec::new();
        if self.since.is_some() {
            account_data::changes(&*self.read, self.user, self.since(), self.now, &mut |room, _| {
                if room != GLOBAL {
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

    /// Writes the account data for all rooms together, or for one: the changes, or everything when `whole`. Each event
    /// is preceded by a comma, except the list's first.
    pub async fn write_account_data(
        &self,
        pen: &ChunkWriter,
        room: Option<RoomNum>,
        whole: bool,
        wants: impl Fn(&str) -> bool,
        mut first: bool,
    ) -> Result<(), ChunkError> {
        let room_num = room.unwrap_or(GLOBAL);
        for kind in self.account_data_kinds(room_num, whole)? {
            let Some(content) = account_data::get(&*self.read, self.user, room_num, &kind)? else { continue };
            if !wants(&kind) {
                continue;
            }
            write_event(pen, &kind, &content, &mut first).await;
            pen.pause().await;
        }
        let rules = "m.push_rules";
        if room.is_none() && whole && wants(rules) && push_rule::is_default(&*self.read, self.user)? {
            let user_id = &self.requester.user_id;
            let content = push_rule::to_json(push_rule::get(&*self.read, self.user, user_id)?)?;
            write_event(pen, rules, &content, &mut first).await;
        }
        Ok(())
    }

    /// Bounded by the cap on entries of one user.
    fn account_data_kinds(&self, room: RoomNum, whole: bool) -> store::Result<Vec<String>> {
        let mut kinds = Vec::new();
        let whole = whole || self.since.is_none();
        // A room has few entries; the global account data may have many.
        if whole || room != GLOBAL {
            account_data::each(&*self.read, self.user, room, &mut |kind, at, _| {
                if whole || at > self.since() {
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

    /// The position up to which one answer holds the to-device messages: the end, unless there are many.
    pub fn messages_end(&self) -> Result<Position, Error> {
        let (mut count, mut bytes, mut end) = (0, 0, self.now);
        let mut last = None;
        let device = &self.requester.device_id;
        to_device::each(&*self.read, self.user, device, self.received, self.now, &mut |position, message| {
            count += 1;
            bytes += message.len();
            if let Some(last) = last.filter(|_| count > MESSAGES_MAX || bytes > MESSAGES_BYTES_MAX) {
                end = last;
                return Ok(ControlFlow::Break(()));
            }
            last = Some(position);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(end)
    }

    /// Writes the device's queued messages, up to `end`. They stay until a later token acknowledges them.
    pub async fn write_to_device(&self, pen: &ChunkWriter, end: Position) -> Result<(), ChunkError> {
        let (mut first, mut after) = (true, self.received);
        loop {
            // One at a time: each may be tens of kilobytes.
            let mut next = None;
            let device = &self.requester.device_id;
            to_device::each(&*self.read, self.user, device, after, end, &mut |position, message| {
                next = Some((position, message.to_vec()));
                Ok(ControlFlow::Break(()))
            })?;
            let Some((position, message)) = next else { return Ok(()) };
            pen.with(|out| comma(out, &mut first));
            pen.long(&message).await;
            after = position;
            pen.pause().await;
        }
    }

    // ---- keys ----------------------------------------------------------------------------------------------------

    /// Writes the counts of the device's one-time keys and its unused fallback keys.
    pub fn write_keys(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        const USUAL: &str = "signed_curve25519";
        let device = &self.requester.device_id;
        let mut counts = e2ee_key::one_time_counts(&*self.read, self.user, device)?;
        if !counts.iter().any(|(algorithm, _)| algorithm == USUAL) {
            counts.push((USUAL.to_owned(), 0));
        }
        let unused = e2ee_key::unused_fallbacks(&*self.read, self.user, device, FALLBACK_KEYS_MAX)?;
        out.extend_from_slice(b"\"device_one_time_keys_count\":{");
        let mut first = true;
        for (algorithm, count) in &counts {
            comma(out, &mut first);
            json::write_string(out, algorithm);
            out.extend_from_slice(format!(":{count}").as_bytes());
        }
        out.extend_from_slice(b"},\"device_unused_fallback_key_types\":[");
        let mut first = true;
        for algorithm in &unused {
            comma(out, &mut first);
            json::write_string(out, algorithm);
        }
        out.push(b']');
        Ok(())
    }

    // ---- whose devices changed -----------------------------------------------------------------------------------

    /// Writes `changed` and `left` of `device_lists`: users with changed keys, users who newly share an encrypted room,
    /// and users who share none any more. A user may be named twice, which does no harm.
    pub async fn write_device_lists(&self, pen: &ChunkWriter) -> Result<(), ChunkError> {
        pen.text("\"changed\":[");
        if self.since.is_some() {
            self.write_changed(pen).await?;
        }
        pen.text("],\"left\":[");
        if self.since.is_some() {
            self.write_gone(pen).await?;
        }
        pen.text("]");
        Ok(())
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
            let Some(encrypted) = self.encryption(num)? else { continue };
            if mine.since > self.since() || encrypted > self.since() {
                self.write_members(pen, num, &mut first, false).await?;
                continue;
            }
            self.write_moved(pen, num, &mut first, true).await?;
        }
        Ok(())
    }

    async fn write_gone(&self, pen: &ChunkWriter) -> Result<(), ChunkError> {
        let mut first = true;
        let mut room = None;
        while let Some((num, _)) = self.next_room(room, Membership::Join)? {
            room = Some(num);
            if self.encryption(num)?.is_some() {
                self.write_moved(pen, num, &mut first, false).await?;
            }
        }
        for membership in [Membership::Leave, Membership::Ban] {
            let mut room = None;
            while let Some((num, mine)) = self.next_room(room, membership)? {
                room = Some(num);
                if mine.left_at.is_some_and(|at| at > self.since()) && self.encryption(num)?.is_some() {
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

    /// The position since which a room has been encrypted; none for a room that is not.
    fn encryption(&self, num: RoomNum) -> store::Result<Option<Position>> {
        let Some(key) = state_tree::key(&*self.read, "m.room.encryption", "")? else { return Ok(None) };
        let Some(event) = current_state::state(&*self.read, num, Kind::ENCRYPTION, key)? else { return Ok(None) };
        let order = event::row_of(&*self.read, event)?.order;
        Ok(Some(Position(order.and_then(|order| u64::try_from(order).ok()).unwrap_or(0))))
    }

    /// Writes the users joined to a room; or those of them with whom no encrypted room is shared any more.
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
                if *user != self.user && !(gone && self.shares_encrypted(*user)?) {
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

    /// Writes the users who joined a room since then, or those who left it and share no other encrypted room.
    async fn write_moved(
        &self,
        pen: &ChunkWriter,
        num: RoomNum,
        first: &mut bool,
        came: bool,
    ) -> Result<(), ChunkError> {
        let row = room::get_of(&*self.read, num)?;
        if row.latest <= self.since() {
            return Ok(());
        }
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
                if came || !self.shares_encrypted(user)? {
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

    fn shares_encrypted(&self, other: UserNum) -> store::Result<bool> {
        let mut room = None;
        while let Some((num, _)) = self.next_room(room, Membership::Join)? {
            room = Some(num);
            if member::is_joined(&*self.read, num, other)? && self.encryption(num)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
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

async fn write_event(pen: &ChunkWriter, kind: &str, content: &[u8], first: &mut bool) {
    pen.with(|out| {
        comma(out, first);
        out.extend_from_slice(b"{\"type\":");
        json::write_string(out, kind);
        out.extend_from_slice(b",\"content\":");
    });
    pen.long(content).await;
    pen.text("}");
}
