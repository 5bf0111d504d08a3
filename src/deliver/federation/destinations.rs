//! The lagging servers and the position of each: a table in memory over the rows of the store.
//!
//! The table has a fixed number of places. A server without a place is *aside*: its position is only in the store. A
//! server that begins to lag takes the place of the one that has failed for longest, so that unreachable servers never
//! hold up reachable ones. Servers aside are taken in again in turn, by name. The log keeps the rows that either kind
//! still needs.
//!
//! Bounds: `places` servers at about [`LAG_BYTES`] each, on the account; [`NOTED_MAX`] names and those of one row for a
//! look at the log; [`TURN_ROWS`] for a look at the servers aside.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::ControlFlow,
};

use ruma::{OwnedServerName, ServerName};

use crate::base;
use crate::budget::{Account, Grant};
use crate::deliver::followers;
use crate::store::tables::room::member;
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::server::{self, Cursor, Standing};
use crate::store::{self, Get, Position, Read, Store};

/// A server's name twice, its positions, the tables' share.
pub(in crate::deliver) const LAG_BYTES: u64 = 192;
/// Rows of the log looked at in one read, and names of servers found in them, doubles included.
const DISPATCH_ROWS: usize = 128;
const SEEN_MAX: usize = 8192;
/// Servers noted in one look; the rest is taken up at the same row, behind the last name.
const NOTED_MAX: usize = 1024;
/// Positions are written down before this many servers have stopped lagging.
pub(in crate::deliver) const DONE_MAX: usize = 1024;
/// Rows dropped from the log in one write.
const DROP_ROWS: usize = 2000;
/// Servers aside are read this many at a time, and this often in one turn at most.
const TURN_ROWS: usize = 256;
const TURN_READS: usize = 16;
/// Between two turns when the last one came to the end of the list, or found no place.
const TURN_PAUSE_MS: u64 = 20_000;
/// Between two turns otherwise.
const TURN_NEXT_MS: u64 = 500;
/// A server that took nothing for so long is forgotten: its rows would keep the log for ever. When it returns, it
/// notices the gap by the next event and asks for the missing events.
pub(in crate::deliver) const FORGET_MS: u64 = 14 * 24 * 3_600_000;

/// A server that lags.
pub(in crate::deliver) struct Destination {
    /// The server has everything up to here.
    pub from: Position,
    /// The newest row that concerns the server.
    pub newest: Position,
    pub since_ms: u64,
    /// No attempt before then.
    pub due_ms: u64,
    pub busy: bool,
    /// The last attempt failed.
    pub doubtful: bool,
    /// The content of its row in the store.
    saved: Option<Cursor>,
    grant: Grant,
}

/// The dispatcher's own memory.
pub(in crate::deliver) struct Destinations {
    store: Store,
    account: Account,
    places: usize,
    pub lagging: HashMap<OwnedServerName, Destination>,
    /// Servers that no longer lag but still have a row.
    done: BTreeSet<OwnedServerName>,
    /// Servers that lag and have a row but no place.
    aside: usize,
    /// The last name whose server aside had its turn.
    turn: Option<OwnedServerName>,
    turn_at_ms: u64,
    /// The log has been looked at up to here.
    pub reader: Position,
    reader_saved: Position,
    /// Within the row behind `reader`, servers up to this name are noted: a room with thousands of servers is noted in
    /// bounded steps.
    within: Option<String>,
    /// The log may hold more rows that all servers have.
    undropped: bool,
}

impl Destination {
    fn cursor(&self) -> Cursor {
        Cursor { position: self.from, since_ms: self.since_ms }
    }

    fn stored(cursor: Cursor, standing: Standing, reader: Position, grant: Grant) -> Destination {
        Destination {
            from: cursor.position,
            newest: reader,
            since_ms: cursor.since_ms,
            due_ms: standing.retry_at_ms,
            busy: false,
            doubtful: standing.failures > 0,
            saved: Some(cursor),
            grant,
        }
    }
}

impl Destinations {
    /// The servers that lagged when this one last stopped: all of them aside at first. A database without a reader
    /// begins with the oldest row.
    pub(in crate::deliver) async fn load(store: Store, account: Account, places: usize) -> store::Result<Destinations> {
        let from = store.clone();
        let (reader, aside) = base::blocking(move || {
            let read = from.read()?;
            let mut aside = 0;
            server::cursors(&read, None, &mut |_, _| {
                aside += 1;
                Ok(ControlFlow::Continue(()))
            })?;
            Ok::<_, store::Error>((server::reader(&read)?.unwrap_or(Position(0)), aside))
        })
        .await?;
        Ok(Destinations {
            store,
            account,
            places,
            lagging: HashMap::new(),
            done: BTreeSet::new(),
            aside,
            turn: None,
            turn_at_ms: 0,
            reader,
            reader_saved: reader,
            within: None,
            undropped: false,
        })
    }

    /// Servers that do not have everything yet.
    pub(in crate::deliver) fn lagging_count(&self) -> usize {
        self.lagging.len() + self.aside
    }

    /// When the servers aside have their next turn.
    pub(in crate::deliver) fn turn_at_ms(&self) -> Option<u64> {
        (self.aside > 0).then_some(self.turn_at_ms)
    }

    /// Whether positions must be written down now.
    pub(in crate::deliver) fn is_full_of_done(&self) -> bool {
        self.done.len() >= DONE_MAX
    }

    /// The server no longer lags, or is given up.
    pub(in crate::deliver) fn finish(&mut self, server: OwnedServerName) {
        if self.lagging.remove(&server).is_some_and(|lag| lag.saved.is_some()) {
            self.done.insert(server);
        }
    }
}

// ---- taking up ---------------------------------------------------------------------------------------------------

impl Destinations {
    /// Looks at new rows and notes the servers they concern; true when there are more. Bounded steps; a server that
    /// finds no place is written down.
    pub(in crate::deliver) async fn dispatch(&mut self, me: &ServerName, now_ms: u64) -> store::Result<bool> {
        let (store, from, within, me) = (self.store.clone(), self.reader, self.within.clone(), me.to_owned());
        let noted = base::blocking(move || look(&store.read()?, &me, from, within)).await?;
        let mut fresh = Concerned::new();
        for (name, rows) in noted.concerned {
            match self.lagging.get_mut(&name) {
                Some(lag) => lag.newest = lag.newest.max(rows.newest),
                None => drop(fresh.insert(name, rows)),
            }
        }
        if !fresh.is_empty() {
            self.take_up(fresh, now_ms).await?;
        }
        self.reader = noted.reader;
        self.within = noted.within;
        Ok(noted.more)
    }

    async fn take_up(&mut self, mut fresh: Concerned, now_ms: u64) -> store::Result<()> {
        if self.aside > 0 {
            fresh = self.without_those_aside(fresh).await?;
        }
        let mut grants = self.free_places(fresh.len());
        let leaving = self.longest_failing(fresh.len() - grants.len(), |_| true);
        let begin = |rows: Rows| Cursor { position: Position(rows.oldest.0.saturating_sub(1)), since_ms: now_ms };
        let outside = fresh.iter().skip(grants.len() + leaving.len());
        let outside: Vec<_> = outside.map(|(name, rows)| (name.clone(), begin(*rows))).collect();
        self.put_aside(leaving, outside, &mut grants).await?;
        for ((name, rows), grant) in fresh.into_iter().zip(grants) {
            let cursor = begin(rows);
            // For a server that has just finished, the row in the store is older than its position.
            let saved = self.done.remove(&name).then_some(Cursor { position: Position(0), since_ms: 0 });
            let lag = Destination {
                newest: rows.newest,
                saved,
                ..Destination::stored(cursor, Standing::default(), self.reader, grant)
            };
            self.lagging.insert(name, lag);
        }
        Ok(())
    }

    /// A server aside lags already, from further back.
    async fn without_those_aside(&self, mut fresh: Concerned) -> store::Result<Concerned> {
        let mut known: Concerned = Concerned::new();
        fresh.retain(|name, rows| {
            let is_known = self.done.contains(name);
            if is_known {
                known.insert(name.clone(), *rows);
            }
            !is_known
        });
        let store = self.store.clone();
        let mut fresh = base::blocking(move || {
            let read = store.read()?;
            let mut kept = Concerned::new();
            for (name, rows) in fresh {
                if server::cursor(&read, &name)?.is_none() {
                    kept.insert(name, rows);
                }
            }
            Ok::<_, store::Error>(kept)
        })
        .await?;
        fresh.append(&mut known);
        Ok(fresh)
    }

    fn free_places(&self, wanted: usize) -> Vec<Grant> {
        let free = self.places.saturating_sub(self.lagging.len()).min(wanted);
        (0..free).map_while(|_| self.account.try_take(LAG_BYTES).ok()).collect()
    }

    /// Servers that have failed, the longest without success first; at most `count`.
    fn longest_failing(&self, count: usize, may_go: impl Fn(&Destination) -> bool) -> Vec<OwnedServerName> {
        if count == 0 {
            return Vec::new();
        }
        let failing = self.lagging.iter().filter(|(_, lag)| lag.doubtful && !lag.busy && may_go(lag));
        let mut failing: Vec<(u64, &OwnedServerName)> = failing.map(|(name, lag)| (lag.since_ms, name)).collect();
        failing.sort_unstable();
        failing.into_iter().take(count).map(|(_, name)| name.clone()).collect()
    }

    /// Takes `leaving` out of the table, and writes down their positions and those of the servers `outside` of it. The
    /// grants of `leaving` are handed over. When nothing can be written, nothing has changed.
    async fn put_aside(
        &mut self,
        leaving: Vec<OwnedServerName>,
        outside: Vec<(OwnedServerName, Cursor)>,
        grants: &mut Vec<Grant>,
    ) -> store::Result<()> {
        let mut rows = outside.clone();
        for name in &leaving {
            let lag = &self.lagging[name];
            if lag.saved != Some(lag.cursor()) {
                rows.push((name.clone(), lag.cursor()));
            }
        }
        if !rows.is_empty() {
            let written = self.store.write_freeing(move |write| {
                for (name, cursor) in &rows {
                    server::set_cursor(write, name, Some(*cursor))?;
                }
                Ok::<_, store::Error>(())
            });
            written.await.map_err(store::WriteError::into_inner)?;
        }
        self.aside += leaving.len() + outside.len();
        for (name, _) in outside {
            self.done.remove(&name);
        }
        grants.extend(leaving.iter().filter_map(|name| self.lagging.remove(name)).map(|lag| lag.grant));
        Ok(())
    }
}

// ---- those aside -------------------------------------------------------------------------------------------------

/// A row of a server aside.
type Waiting = (OwnedServerName, Cursor, Standing);

impl Destinations {
    /// Takes in some of the servers aside, in turn. A server that is still backing off is taken only while there is
    /// ample room. When there is little, an eighth of the table is cleared of those that have failed for longest.
    pub(in crate::deliver) async fn take_turns(&mut self, now_ms: u64, settled_ms: u64) -> store::Result<()> {
        // In the middle of a row it is unknown whether the row was noted for a server that comes in now.
        if self.aside == 0 || now_ms < self.turn_at_ms || self.within.is_some() || self.done.len() > DONE_MAX {
            return Ok(());
        }
        self.turn_at_ms = now_ms + TURN_PAUSE_MS;
        let wanted = (self.places / 8).max(1);
        let free = self.places.saturating_sub(self.lagging.len());
        let leaving = self.longest_failing(wanted.saturating_sub(free), |lag| lag.due_ms > now_ms);
        let left: HashSet<OwnedServerName> = leaving.iter().cloned().collect();
        self.put_aside(leaving, Vec::new(), &mut Vec::new()).await?;
        for _ in 0..TURN_READS {
            let waiting = self.waiting(self.turn.clone()).await?;
            let is_last = waiting.len() < TURN_ROWS;
            for (name, cursor, standing) in waiting {
                let is_aside = !self.lagging.contains_key(&name) && !self.done.contains(&name);
                let standing = standing.within_reason(now_ms);
                if is_aside && !left.contains(&name) && !self.take_in(&name, cursor, standing, (now_ms, settled_ms)) {
                    return Ok(());
                }
                self.turn = Some(name);
            }
            if is_last {
                self.turn = None;
                return Ok(());
            }
        }
        self.turn_at_ms = now_ms + TURN_NEXT_MS;
        Ok(())
    }

    /// False when no place is free.
    fn take_in(
        &mut self,
        name: &OwnedServerName,
        cursor: Cursor,
        standing: Standing,
        (now_ms, settled_ms): (u64, u64),
    ) -> bool {
        let is_left_alone = standing.retry_at_ms > now_ms;
        // The server failed within the last hours and will stay in backoff for some more.
        if is_left_alone && settled_ms.saturating_sub(cursor.since_ms) > FORGET_MS {
            tracing::info!(server = %name, "the server has accepted nothing for two weeks; the events and messages \
             waiting for it are dropped");
            self.aside -= 1;
            self.done.insert(name.clone());
            return true;
        }
        if is_left_alone && self.lagging.len() >= self.places - self.places / 4 {
            return true;
        }
        let Some(grant) = self.free_places(1).pop() else { return false };
        self.aside -= 1;
        self.lagging.insert(name.clone(), Destination::stored(cursor, standing, self.reader, grant));
        true
    }

    async fn waiting(&self, after: Option<OwnedServerName>) -> store::Result<Vec<Waiting>> {
        let store = self.store.clone();
        base::blocking(move || {
            let read = store.read()?;
            let mut waiting = Vec::new();
            server::cursors(&read, after.as_deref(), &mut |name, cursor| {
                let standing = server::standing(&read, &name)?.unwrap_or_default();
                waiting.push((name, cursor, standing));
                Ok(if waiting.len() < TURN_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            Ok(waiting)
        })
        .await
    }

    /// Whether [`Destinations::take_back`] may be called now.
    pub(in crate::deliver) fn is_between_rows(&self) -> bool {
        self.within.is_none()
    }

    /// A server that had failed has been heard from: it is due now, in the table or aside. It stays doubtful until it
    /// has taken something: many servers that contact us cannot be reached, and they would take all workers each time
    /// they do.
    pub(in crate::deliver) async fn take_back(&mut self, name: OwnedServerName, now_ms: u64) -> store::Result<()> {
        if let Some(lag) = self.lagging.get_mut(&name) {
            lag.due_ms = lag.due_ms.min(now_ms);
            return Ok(());
        }
        if self.aside == 0 || self.done.contains(&name) {
            return Ok(());
        }
        let (store, asked) = (self.store.clone(), name.clone());
        let cursor = base::blocking(move || server::cursor(&store.read()?, &asked)).await?;
        let Some(cursor) = cursor else { return Ok(()) };
        let mut grants = self.free_places(1);
        let leaving = self.longest_failing(1 - grants.len(), |_| true);
        self.put_aside(leaving, Vec::new(), &mut grants).await?;
        if let Some(grant) = grants.pop() {
            self.aside -= 1;
            let lag = Destination::stored(cursor, Standing::default(), self.reader, grant);
            self.lagging.insert(name, Destination { doubtful: true, due_ms: now_ms, ..lag });
        }
        Ok(())
    }
}

// ---- writing down ------------------------------------------------------------------------------------------------

impl Destinations {
    /// Writes positions down and drops the rows that all servers have, those aside included. One write, if there is
    /// anything to write.
    pub(in crate::deliver) async fn flush(&mut self) {
        let changed = self.lagging.iter().filter(|(_, lag)| lag.saved != Some(lag.cursor()));
        let changed: Vec<_> = changed.map(|(name, lag)| (name.clone(), lag.cursor())).collect();
        if self.done.is_empty() && changed.is_empty() && self.reader == self.reader_saved && !self.undropped {
            return;
        }
        let done = std::mem::take(&mut self.done);
        let (reader, someone_aside) = (self.reader, self.aside > 0);
        let passed = self.lagging.values().map(|lag| lag.from).min().unwrap_or(reader).min(reader);
        let finished = done.clone();
        let written = self.store.write_freeing(move |write| {
            for (name, cursor) in &changed {
                server::set_cursor(write, name, Some(*cursor))?;
            }
            for name in &finished {
                server::set_cursor(write, name, None)?;
            }
            server::set_reader(write, reader)?;
            let passed = if someone_aside { passed.min(rearmost(write)?.unwrap_or(passed)) } else { passed };
            let passed = passed.min(followers::kept_from(write)?.unwrap_or(passed));
            Ok::<_, store::Error>((outbox::drop_up_to(write, passed, DROP_ROWS)?, changed))
        });
        match written.await {
            Ok(((dropped, changed), _)) => {
                self.reader_saved = reader;
                self.undropped = dropped == DROP_ROWS;
                for (name, cursor) in changed {
                    if let Some(lag) = self.lagging.get_mut(&name) {
                        lag.saved = Some(cursor);
                    }
                }
            }
            Err(error) => {
                self.done = done;
                tracing::warn!(%error, "delivery positions could not be written down");
            }
        }
    }
}

/// The lowest position of all servers that have a row.
fn rearmost(get: &impl Get) -> store::Result<Option<Position>> {
    let mut rearmost: Option<Position> = None;
    server::cursors(get, None, &mut |_, cursor| {
        rearmost = Some(rearmost.map_or(cursor.position, |least| least.min(cursor.position)));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(rearmost)
}

// ---- looking at the log ------------------------------------------------------------------------------------------

/// The rows that concern a server.
#[derive(Debug, Clone, Copy)]
struct Rows {
    oldest: Position,
    newest: Position,
}

type Concerned = BTreeMap<OwnedServerName, Rows>;

/// The result of a look at the log.
struct Noted {
    concerned: Concerned,
    /// Names found, doubles included.
    seen: usize,
    reader: Position,
    within: Option<String>,
    more: bool,
}

impl Noted {
    fn add(&mut self, at: Position, name: OwnedServerName) {
        self.concerned.entry(name).and_modify(|rows| rows.newest = at).or_insert(Rows { oldest: at, newest: at });
    }

    fn is_full(&self) -> bool {
        self.concerned.len() >= NOTED_MAX || self.seen >= SEEN_MAX
    }
}

fn look(read: &Read, me: &ServerName, from: Position, within: Option<String>) -> store::Result<Noted> {
    let mut noted = Noted { concerned: Concerned::new(), seen: 0, reader: from, within, more: false };
    let mut rows = 0;
    outbox::list_after(read, from, &mut |at, row| {
        if rows == DISPATCH_ROWS || noted.is_full() {
            noted.more = true;
            return Ok(ControlFlow::Break(()));
        }
        rows += 1;
        if !note_row(read, me, at, &row, &mut noted)? {
            noted.more = true;
            return Ok(ControlFlow::Break(()));
        }
        noted.reader = at;
        noted.within = None;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(noted)
}

/// Notes the servers a row concerns; false when not all of them found a place.
fn note_row(get: &impl Get, me: &ServerName, at: Position, row: &Outbound, noted: &mut Noted) -> store::Result<bool> {
    let (room, named): (_, &[String]) = match row {
        Outbound::Event { room, also, .. } => (Some(*room), also),
        Outbound::RoomEdu { room, .. } => (Some(*room), &[]),
        Outbound::Edu { to, .. } => (None, to),
        Outbound::EventTo { to, .. } => (None, std::slice::from_ref(to)),
        Outbound::Followed { .. } => return Ok(true),
    };
    // At most a thousand servers are named, and noting one twice does no harm.
    for name in named.iter().filter_map(|name| OwnedServerName::try_from(name.as_str()).ok()) {
        noted.seen += 1;
        if name != me {
            noted.add(at, name);
        }
    }
    let Some(room) = room else { return Ok(true) };
    let after = noted.within.clone();
    let mut all = true;
    member::list_servers(get, room, after.as_deref(), &mut |name, _| {
        if noted.is_full() {
            all = false;
            return Ok(ControlFlow::Break(()));
        }
        noted.seen += 1;
        noted.within = Some(name.to_owned());
        if name != me.as_str()
            && let Ok(name) = name.try_into()
        {
            noted.add(at, name);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(all)
}
