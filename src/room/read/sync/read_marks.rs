//! Receipts, the read marker, typing users and unread counts of one room.

use std::collections::BTreeMap;

use super::super::until;
use super::SyncView;
use crate::room::error::Result;
use crate::store::tables::room::receipt::{self, Receipt, Whose};
use crate::store::tables::room::unread;
use crate::store::tables::user;
use crate::store::{self, EventNum, Position, RoomNum};

/// The most receipts of a room in one sync, newest first.
pub const RECEIPTS_MAX: usize = 256;

/// A receipt or read marker, and whose it is.
pub type ReadMark = (Whose, Receipt);

impl SyncView {
    /// Whether there are receipts after a position.
    pub fn has_receipts(&self, room: RoomNum, since: Position) -> Result<bool> {
        let mut any = false;
        receipt::list_newest(&*self.read, room, since, self.now.at, &mut |whose, _| {
            any = self.is_shown(&whose);
            Ok(until(any))
        })?;
        Ok(any)
    }

    /// Whether the reader set a receipt after a position, so that unread counts may have changed without an event. Bounded
    /// by the reader's receipts in one room.
    pub fn has_read(&self, room: RoomNum, since: Position) -> Result<bool> {
        let mut any = false;
        receipt::list_of(&*self.read, room, self.reader.user, &mut |whose, receipt| {
            any = self.is_shown(&whose) && receipt.at > since && receipt.at <= self.now.at;
            Ok(until(any))
        })?;
        Ok(any)
    }

    fn is_shown(&self, whose: &Whose) -> bool {
        match whose.kind {
            receipt::Kind::Read => true,
            receipt::Kind::Private => whose.user == self.reader.user,
            receipt::Kind::FullyRead => false,
        }
    }

    /// The newest receipts after a position, sorted by event and kind: about [`RECEIPTS_MAX`], whatever the number of
    /// members.
    pub fn receipts(&self, room: RoomNum, since: Position) -> Result<Vec<ReadMark>> {
        let mut newest: Vec<ReadMark> = Vec::new();
        receipt::list_newest(&*self.read, room, since, self.now.at, &mut |whose, receipt| {
            if self.is_shown(&whose) {
                newest.push((whose, receipt));
            }
            Ok(until(newest.len() == RECEIPTS_MAX))
        })?;
        if newest.len() == RECEIPTS_MAX {
            self.add_own(room, since, &mut newest)?;
        }
        Ok(sorted(newest))
    }

    /// For an app that is told of a room for the first time: the receipts since a position, as [`SyncView::receipts`], and
    /// all of the reader's own, which are few.
    pub fn first_receipts(&self, room: RoomNum, since: Position) -> Result<Vec<ReadMark>> {
        let mut receipts = self.receipts(room, since)?;
        receipts.retain(|(whose, _)| whose.user != self.reader.user);
        receipt::list_of(&*self.read, room, self.reader.user, &mut |whose, receipt| {
            if self.is_shown(&whose) && receipt.at <= self.now.at {
                receipts.push((whose, receipt));
            }
            Ok(until(false))
        })?;
        Ok(sorted(receipts))
    }

    /// Adds the reader's own receipts, which other users' receipts must not crowd out: the app computes unread counts
    /// by them.
    fn add_own(&self, room: RoomNum, since: Position, newest: &mut Vec<ReadMark>) -> store::Result<()> {
        for kind in [receipt::Kind::Read, receipt::Kind::Private] {
            let own = Whose { user: self.reader.user, kind, thread: String::new() };
            if newest.iter().all(|(told, _)| *told != own)
                && let Some(mark) = receipt::get(&*self.read, room, &own)?
                && mark.at > since
                && mark.at <= self.now.at
            {
                newest.push((own, mark));
            }
        }
        Ok(())
    }

    /// The event of the read marker (`m.fully_read`), when it was set after a position; at any time when none is given.
    pub fn fully_read(&self, room: RoomNum, since: Option<Position>) -> Result<Option<String>> {
        let whose = Whose { user: self.reader.user, kind: receipt::Kind::FullyRead, thread: String::new() };
        let marker = receipt::get(&*self.read, room, &whose)?;
        Ok(marker.filter(|marker| since.is_none_or(|since| marker.at > since)).map(|marker| marker.event_id))
    }

    /// Whether the typing users changed after a typing serial.
    pub fn has_typing(&self, room: RoomNum, since: u64) -> bool {
        self.rooms.0.typing.changed(room, since).is_some()
    }

    /// The ids of the typing users, when they changed after a typing serial; without one, when there are any. Bounded
    /// by the typing users kept for a room.
    pub fn typing_users(&self, room: RoomNum, since: Option<u64>) -> Result<Option<Vec<String>>> {
        let changed =
            self.rooms.0.typing.changed(room, since.unwrap_or(0)).filter(|users| since.is_some() || !users.is_empty());
        // An app may still show users who typed before this server was restarted. They wake no app: the empty list is
        // added to the next news of the room.
        let stale = || since.filter(|since| self.rooms.0.typing.may_be_stale(room, *since)).map(|_| Vec::new());
        let Some(users) = changed.or_else(stale) else { return Ok(None) };
        let ids = users.iter().map(|user| user::id_of(&*self.read, *user));
        Ok(Some(ids.collect::<store::Result<_>>()?))
    }

    /// Notifications and highlights of the whole room; or outside of threads, and by the root of each thread. Bounded by
    /// the unread events kept for a room.
    #[allow(clippy::type_complexity)] // two counts, and two counts for each thread
    pub fn unread(&self, room: RoomNum, by_thread: bool) -> Result<((u64, u64), BTreeMap<EventNum, (u64, u64)>)> {
        let unread = unread::get(&*self.read, self.reader.user, room)?;
        Ok(match by_thread {
            true => unread.by_thread(),
            false => ((unread.notifications, unread.highlights), BTreeMap::new()),
        })
    }
}

/// Receipts by event and kind. A user may have one in each thread and one outside all threads: for each event and user only
/// one is told, the one that covers most.
fn sorted(mut newest: Vec<ReadMark>) -> Vec<ReadMark> {
    newest.sort_by(|(a_whose, a), (b_whose, b)| {
        let a_at = a.at;
        let a = (&a.event_id, a_whose.kind as u8, a_whose.user, !a_whose.thread.is_empty(), b.at);
        a.cmp(&(&b.event_id, b_whose.kind as u8, b_whose.user, !b_whose.thread.is_empty(), a_at))
    });
    newest.dedup_by(|(whose, receipt), (kept_whose, kept)| {
        receipt.event_id == kept.event_id && whose.kind == kept_whose.kind && whose.user == kept_whose.user
    });
    newest
}
