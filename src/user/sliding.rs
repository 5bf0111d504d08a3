//! The connections of sliding syncs (MSC4186): what each app was told of which room.
//!
//! A request names the answer it builds upon, and sees what was told up to that one. What its own answer tells is noted
//! before the answer's end goes out, so that its position is known when it comes back. An answer that changes nothing of
//! what is remembered is not noted, and has the number of the one before it.

use std::collections::BTreeMap;

use tracing::Instrument;

use super::{Error, Requester, Users};
use crate::store::tables::user::device;
use crate::store::tables::user::sliding::{self, CONNECTIONS_MAX, Connection};
use crate::store::{Position, Read, RoomNum, UserNum, Write, WriteError};

pub use crate::store::tables::user::sliding::{Answer, STATE_BYTES_MAX, Told};

/// The age at which a connection's last use is written anew.
const USED_MS: u64 = 24 * 60 * 60 * 1000;
/// Rooms noted in one write.
pub const NOTED_ROOMS: usize = 64;
/// Rows of an answer that is taken back: no answer notes more rooms.
const TAKEN_BACK: usize = 1_000;
/// Rows of ended connections that are removed in one write.
const STALE_ROWS: usize = 500;

/// A connection as one request sees it.
#[derive(Clone, Debug)]
pub struct SlidingConnection {
    user: UserNum,
    device_id: String,
    conn_id: String,
    /// None for a connection that begins.
    conn: Option<Position>,
    /// The answer that the request builds upon.
    pub answer: Answer,
    used_ms: u64,
    is_first: bool,
}

/// What an answer tells, to be noted: at most [`NOTED_ROOMS`] rooms at a time.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    pub rooms: BTreeMap<RoomNum, Told>,
    /// The texts of required state, by their hash.
    pub states: BTreeMap<u64, Vec<u8>>,
}

impl Users {
    /// The connection of a request that builds upon the answer `num`; a new one without. None when no such answer is known
    /// any more. Blocks for reading a few rows.
    pub fn sliding_connection(
        &self,
        requester: &Requester,
        conn_id: &str,
        num: Option<Position>,
    ) -> Result<Option<SlidingConnection>, Error> {
        let (user, device_id) = (requester.user_num, requester.device_id.clone());
        let conn_id = conn_id.to_owned();
        let mut found = SlidingConnection {
            user,
            device_id,
            conn_id,
            conn: None,
            answer: Answer::default(),
            used_ms: self.now_ms(),
            is_first: false,
        };
        let Some(num) = num else { return Ok(Some(found)) };
        let read = self.0.parts.store.read()?;
        for (conn, row) in sliding::connections(&read, user, &found.device_id)? {
            if row.conn_id != found.conn_id {
                continue;
            }
            let is_first = row.known.is_none();
            let answer = row.known.into_iter().chain(row.given).find(|answer| answer.num == num);
            if let Some(answer) = answer {
                (found.conn, found.answer, found.used_ms, found.is_first) = (Some(conn), answer, row.used_ms, is_first);
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Whether the connection is to be noted though nothing changed, so that it counts as used.
    pub fn is_long_unused(&self, connection: &SlidingConnection) -> bool {
        self.now_ms().saturating_sub(connection.used_ms) > USED_MS
    }

    /// Notes a part of what an answer tells, and answers the answer's number. `num`: the number, after the first part.
    /// Blocks until that is durable.
    ///
    /// `M_UNKNOWN_POS` when the connection ended meanwhile, or another request went on with it.
    pub fn note_sliding(
        &self,
        connection: &SlidingConnection,
        num: Option<Position>,
        answer: Answer,
        noted: Noted,
    ) -> Result<Position, Error> {
        let (connection, now_ms) = (connection.clone(), self.now_ms());
        let job = move |w: &mut Write<'_>| match num {
            None => note_first(w, &connection, answer, noted, now_ms),
            Some(num) => note_more(w, &connection, num, noted),
        };
        let (num, _) = self.0.parts.store.write_blocking(job).map_err(WriteError::into_inner)?;
        Ok(num)
    }

    /// Takes away, aside, what ended connections left, when a new one has begun.
    pub fn tidy_sliding(&self, connection: &SlidingConnection) {
        if !connection.is_first {
            return;
        }
        let (users, connection) = (self.clone(), connection.clone());
        let tidying = async move {
            loop {
                let of = connection.clone();
                let job = move |w: &mut Write<'_>| Ok(sliding::remove_stale(w, of.user, &of.device_id, STALE_ROWS)?);
                match users.write(job).await {
                    Ok(STALE_ROWS) => {}
                    Ok(_) => return,
                    Err(failed) => return tracing::debug!("an ended connection of a sync was not tidied: {failed}"),
                }
            }
        };
        tokio::spawn(tidying.in_current_span());
    }
}

impl SlidingConnection {
    /// Whether it begins with this request.
    pub fn is_new(&self) -> bool {
        self.conn.is_none()
    }

    /// What the app was told of a room.
    pub fn told(&self, read: &Read, room: RoomNum) -> Result<Option<Told>, Error> {
        let Some(conn) = self.conn else { return Ok(None) };
        Ok(sliding::told(read, self.user, &self.device_id, conn, room, self.answer.num)?)
    }

    /// The required state with a hash, when its text was kept.
    pub fn state(&self, read: &Read, hash: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(conn) = self.conn else { return Ok(None) };
        Ok(sliding::state(read, self.user, &self.device_id, conn, hash)?)
    }
}

fn unknown() -> Error {
    Error::bad("M_UNKNOWN_POS", "The connection went on without this request")
}

fn note_first(
    w: &mut Write<'_>,
    connection: &SlidingConnection,
    answer: Answer,
    noted: Noted,
    now_ms: u64,
) -> Result<Position, Error> {
    let SlidingConnection { user, device_id, .. } = connection;
    // The session may have ended meanwhile; its connections went with it.
    device::get(w, *user, device_id)?.ok_or_else(unknown)?;
    let num = w.next_position();
    let given = Some(Answer { num, ..answer });
    let (conn, row) = match connection.conn {
        None => {
            make_room(w, connection)?;
            (num, Connection { conn_id: connection.conn_id.clone(), used_ms: now_ms, known: None, given })
        }
        Some(conn) => {
            let mut row = sliding::connection(w, *user, device_id, conn)?.ok_or_else(unknown)?;
            let base = connection.answer.num;
            if row.given.as_ref().is_some_and(|given| given.num == base) {
                row.known = row.given.take();
            } else if row.known.as_ref().is_none_or(|known| known.num != base) {
                return Err(unknown());
            }
            if let Some(lost) = row.given.take() {
                sliding::take_back(w, *user, device_id, conn, lost.num, TAKEN_BACK)?;
            }
            (row.given, row.used_ms) = (given, now_ms);
            (conn, row)
        }
    };
    sliding::put_connection(w, *user, device_id, conn, &row)?;
    put_noted(w, connection, conn, num, noted)?;
    Ok(num)
}

fn note_more(
    w: &mut Write<'_>,
    connection: &SlidingConnection,
    num: Position,
    noted: Noted,
) -> Result<Position, Error> {
    // A new connection has the number of its first answer.
    let conn = connection.conn.unwrap_or(num);
    let row = sliding::connection(w, connection.user, &connection.device_id, conn)?.ok_or_else(unknown)?;
    if row.given.is_none_or(|given| given.num != num) {
        return Err(unknown());
    }
    put_noted(w, connection, conn, num, noted)?;
    Ok(num)
}

fn put_noted(
    w: &mut Write<'_>,
    connection: &SlidingConnection,
    conn: Position,
    num: Position,
    noted: Noted,
) -> Result<(), Error> {
    let SlidingConnection { user, device_id, answer, .. } = connection;
    for (room, told) in noted.rooms {
        sliding::put_told(w, *user, device_id, conn, room, answer.num, num, told)?;
    }
    for (hash, text) in noted.states {
        sliding::put_state(w, *user, device_id, conn, hash, &text)?;
    }
    Ok(())
}

/// Ends the connection that had the same name, and the one that was used least lately when there are too many.
fn make_room(w: &mut Write<'_>, connection: &SlidingConnection) -> Result<(), Error> {
    let SlidingConnection { user, device_id, conn_id, .. } = connection;
    let mut others = sliding::connections(w, *user, device_id)?;
    others.sort_by_key(|(_, row)| (row.conn_id == *conn_id, std::cmp::Reverse(row.used_ms)));
    for (place, (conn, row)) in others.iter().enumerate() {
        if row.conn_id == *conn_id || place + 1 >= CONNECTIONS_MAX {
            sliding::remove_connection(w, *user, device_id, *conn)?;
        }
    }
    Ok(())
}
