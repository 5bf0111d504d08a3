//! The connections of sliding syncs (MSC4186): what each app was told of which room.
//!
//! A request names the answer it builds upon, and sees what was told up to that one. What its own answer tells is noted
//! before the answer's end goes out, so that its position is known when it comes back. An answer that changes nothing of
//! what is remembered is not noted, and has the number of the one before it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::{Error, Requester, Users};
use crate::base::shares::{Owner, Shares};
use crate::base::sort_few_by;
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
/// Connections whose newest request is known, about 100 bytes each.
const NEWEST_MAX: usize = 256;

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
    /// Counts requests.
    serial: u64,
}

/// The newest request of each connection, with the time it came. One that another has overtaken is one that the app gave up:
/// what it told would take back what the app knows by now.
pub(super) struct Newest(Mutex<(u64, Shares<Position, (u64, u64)>)>);

impl Default for Newest {
    fn default() -> Newest {
        Newest(Mutex::new((0, Shares::new(NEWEST_MAX, 0))))
    }
}

impl Newest {
    /// Counts a request of a connection.
    fn count(&self, user: UserNum, conn: Position, now_ms: u64) -> u64 {
        let (serial, newest) = &mut *self.0.lock();
        *serial += 1;
        newest.put(Owner::Known(user), conn, (*serial, now_ms));
        *serial
    }

    /// The number and the time of a connection's newest request, where that is known.
    fn get(&self, conn: Position) -> Option<(u64, u64)> {
        self.0.lock().1.peek(&conn).copied()
    }
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
            serial: 0,
        };
        let Some(num) = num else { return Ok(Some(found)) };
        let read = self.0.parts.store.read()?;
        for (conn, row) in sliding::connections(&read, user, &found.device_id)? {
            if row.conn_id != found.conn_id {
                continue;
            }
            let answer = row.known.into_iter().chain(row.given).find(|answer| answer.num == num);
            if let Some(answer) = answer {
                (found.conn, found.answer, found.used_ms) = (Some(conn), answer, row.used_ms);
                found.serial = self.0.sliding.count(user, conn, self.now_ms());
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Whether the connection is to be noted though nothing changed, so that it counts as used.
    pub fn is_long_unused(&self, connection: &SlidingConnection) -> bool {
        self.now_ms().saturating_sub(connection.used_ms) > USED_MS
    }

    /// Whether a later request goes on with the connection.
    pub fn is_overtaken(&self, connection: &SlidingConnection) -> bool {
        let newest = connection.conn.and_then(|conn| self.0.sliding.get(conn));
        newest.is_some_and(|(serial, _)| serial > connection.serial)
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
        let (users, user) = (self.clone(), connection.user);
        let is_new = connection.conn.is_none() && num.is_none();
        let (connection, now_ms) = (connection.clone(), self.now_ms());
        let job = move |w: &mut Write<'_>| match num {
            _ if users.is_overtaken(&connection) => Err(unknown()),
            None => note_first(w, &users.0.sliding, &connection, answer, noted, now_ms),
            Some(num) => note_more(w, &connection, num, noted),
        };
        let (num, _) = self.0.parts.store.write_blocking(job).map_err(WriteError::into_inner)?;
        if is_new {
            self.tidy_sliding(user);
        }
        Ok(num)
    }

    /// Takes away, aside and in short writes, what a user's ended connections left. Each new connection does, and each end
    /// of a device: so what is there is of the connections that live, and of what ended just now.
    pub(super) fn tidy_sliding(&self, user: UserNum) {
        let users = self.clone();
        let tidying = async move {
            loop {
                match users.write(move |w| Ok(sliding::remove_stale(w, user, STALE_ROWS)?)).await {
                    Ok(STALE_ROWS) => {}
                    Ok(_) => return,
                    Err(failed) => return tracing::debug!("an ended connection of a sync was not tidied: {failed}"),
                }
            }
        };
        crate::base::detached(tidying);
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
    newest: &Newest,
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
            make_room(w, newest, connection)?;
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
fn make_room(w: &mut Write<'_>, newest: &Newest, connection: &SlidingConnection) -> Result<(), Error> {
    let SlidingConnection { user, device_id, conn_id, .. } = connection;
    let mut others = sliding::connections(w, *user, device_id)?;
    // One that has nothing to note is in use all the same.
    let used_ms =
        |conn: Position, noted_ms: u64| newest.get(conn).map_or(noted_ms, |(_, used_ms)| used_ms.max(noted_ms));
    // Of those last used in the same millisecond the one that began first counts as the older.
    sort_few_by(&mut others, |(conn, row)| (row.conn_id == *conn_id, Reverse((used_ms(*conn, row.used_ms), *conn))));
    for (place, (conn, row)) in others.iter().enumerate() {
        if row.conn_id == *conn_id || place + 1 >= CONNECTIONS_MAX {
            sliding::remove_connection(w, *user, device_id, *conn)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::time::Duration;

    use super::*;
    use crate::base::blocking;
    use crate::base::testing::settled;
    use crate::store::Get;
    use crate::store::schema::SLIDING_ROOM;
    use crate::user::tests::{Town, town};

    fn rows(town: &Town) -> usize {
        let mut rows = 0;
        let each = &mut |_: &[u8], _: &[u8]| {
            rows += 1;
            Ok(ControlFlow::Continue(()))
        };
        town.users.0.parts.store.read().unwrap().prefix(&SLIDING_ROOM, &[], each).unwrap();
        rows
    }

    async fn rows_come_to(town: &Town, wanted: usize) {
        for _ in 0..1_000 {
            if rows(town) == wanted {
                return;
            }
            settled().await;
        }
        panic!("{} rows are left, not {wanted}", rows(town));
    }

    async fn note(town: &Town, connection: &SlidingConnection, rooms: u32) -> Result<Position, Error> {
        let (users, connection) = (town.users.clone(), connection.clone());
        let told = |room| (RoomNum(room), Told { state: 1, ..Told::default() });
        let noted = Noted { rooms: (1..=rooms).map(told).collect(), ..Noted::default() };
        blocking(move || users.note_sliding(&connection, None, Answer::default(), noted)).await
    }

    /// A poll that hangs on a dead line wakes after the app has gone on with another.
    #[tokio::test]
    async fn a_request_that_was_overtaken_takes_nothing_back() {
        let town = town();
        let anna = town.person("anna").await;
        let find = |num| town.users.sliding_connection(&anna, "main", num).unwrap().unwrap();
        let one = note(&town, &find(None), 1).await.unwrap();
        let (hangs, goes_on) = (find(Some(one)), find(Some(one)));
        let two = note(&town, &goes_on, 1).await.unwrap();
        let waits = find(Some(two));
        assert!(town.users.is_overtaken(&hangs) && !town.users.is_overtaken(&waits));
        assert!(note(&town, &hangs, 1).await.is_err());
        note(&town, &waits, 1).await.unwrap();
    }

    /// An app that looks after each push begins a connection each time, and never goes on with it.
    #[tokio::test]
    async fn connections_that_only_begin_leave_the_rows_of_one() {
        let town = town();
        let anna = town.person("anna").await;
        for _ in 0..5 {
            let new = town.users.sliding_connection(&anna, "push", None).unwrap().unwrap();
            note(&town, &new, 700).await.unwrap();
        }
        rows_come_to(&town, 700).await;
        let device = vec![anna.device_id.clone()];
        town.users.remove_devices(anna.user_num, &anna.user_id, device).await.unwrap();
        rows_come_to(&town, 0).await;
    }

    /// A fast machine begins several within a millisecond.
    #[tokio::test]
    async fn of_connections_used_at_the_same_time_the_first_one_ends() {
        let town = town();
        let anna = town.person("anna").await;
        let mut begun = Vec::new();
        for name in 0..=CONNECTIONS_MAX {
            let new = town.users.sliding_connection(&anna, &name.to_string(), None).unwrap().unwrap();
            begun.push(note(&town, &new, 1).await.unwrap());
        }
        let lives =
            |name: usize| town.users.sliding_connection(&anna, &name.to_string(), Some(begun[name])).unwrap().is_some();
        let alive: Vec<_> = (0..begun.len()).filter(|&name| lives(name)).collect();
        assert_eq!(alive, (1..begun.len()).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_connection_in_use_outlives_later_ones_without_a_note() {
        let town = town();
        let anna = town.person("anna").await;
        let begun = town.users.sliding_connection(&anna, "main", None).unwrap().unwrap();
        let main = note(&town, &begun, 1).await.unwrap();
        for name in 0..CONNECTIONS_MAX {
            town.clock.advance(Duration::from_secs(1));
            assert!(town.users.sliding_connection(&anna, "main", Some(main)).unwrap().is_some(), "{name}");
            let other = town.users.sliding_connection(&anna, &name.to_string(), None).unwrap().unwrap();
            note(&town, &other, 1).await.unwrap();
        }
        assert!(town.users.sliding_connection(&anna, "main", Some(main)).unwrap().is_some());
    }
}
