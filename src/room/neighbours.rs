//! The servers with which people here share rooms, and which rooms those are: for the operator.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ruma::ServerName;

use super::Rooms;
use super::error::Result;
use super::state;
use crate::base::{Ranked, bounded, ranked};
use crate::remote::pause_ms;
use crate::store::Read;
use crate::store::tables::room::{self, Status, member};
use crate::store::tables::server as tables;

/// Characters of a room's name.
const NAME_CHARS_MAX: usize = 80;

/// Another server in rooms of this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    pub server: String,
    /// The rooms of this server in which it is.
    pub rooms: u64,
}

/// A room in which another server is.
#[derive(Debug, Clone)]
pub struct SharedRoom {
    pub room_id: String,
    pub name: Option<String>,
    /// Its joined users.
    pub users: u64,
}

/// Another server, and how sending to it goes. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub server: String,
    /// When it was last tried in vain, 0 for one that answers; and how long after that it is tried again.
    pub retry_last_ms: u64,
    pub retry_interval_ms: u64,
    /// Since when something waits for it, or that it fails.
    pub failing_since_ms: Option<u64>,
    /// Up to where in the outbound log it has everything.
    pub position: u64,
}

/// What destinations are put in order by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DestinationOrder {
    #[default]
    Name,
    RetriedLast,
    Failures,
    BehindSince,
    Position,
}

/// Names of servers looked at together.
const NAMES_A_WALK: usize = 256;

impl Rooms {
    /// The destinations of the ranks `from..from + most` whose names have a part, and how many there are in all. Reads the servers of
    /// each room here in order of their names. `most` is at most 96.
    pub async fn destinations(
        &self,
        part: String,
        order: DestinationOrder,
        backwards: bool,
        from: usize,
        most: usize,
    ) -> Result<(Vec<Destination>, usize)> {
        let part = part.to_lowercase();
        self.reading(move |rooms, read| {
            let each = &mut |visit: &mut dyn FnMut((u64, String))| {
                let mut after = None;
                loop {
                    let names = names_after(rooms, read, "", after.as_deref(), NAMES_A_WALK)?;
                    let Some((last, _)) = names.last_key_value() else { return Ok::<_, super::error::Error>(()) };
                    after = Some(last.clone());
                    for name in names.into_keys().filter(|name| name.contains(&part)) {
                        let key = match order {
                            DestinationOrder::Name => 0,
                            _ => {
                                let one = destination(read, &name)?;
                                match order {
                                    DestinationOrder::RetriedLast => one.retry_last_ms,
                                    DestinationOrder::Failures => one.retry_interval_ms,
                                    DestinationOrder::BehindSince => one.failing_since_ms.unwrap_or(0),
                                    _ => one.position,
                                }
                            }
                        };
                        visit((key, name));
                    }
                }
            };
            let (page, total) = match backwards {
                false => {
                    let Ranked { page, total } = ranked(from, most, each)?;
                    (page, total)
                }
                true => {
                    let Ranked { page, total } = ranked(from, most, &mut |visit| each(&mut |key| visit(Reverse(key))))?;
                    (page.into_iter().map(|key: Reverse<(u64, String)>| key.0).collect(), total)
                }
            };
            let page: Result<Vec<_>> = page.into_iter().map(|(_, name)| destination(read, &name)).collect();
            Ok((page?, total))
        })
        .await
    }

    /// How sending to a server goes; none for one that shares no room with this one and did not fail.
    pub async fn destination(&self, server: &ServerName) -> Result<Option<Destination>> {
        let name = server.to_owned();
        self.reading(move |_, read| {
            let is_known = tables::standing(read, &name)?.is_some() || tables::cursor(read, &name)?.is_some();
            let mut is_shared = false;
            room::list_after(read, None, &mut |num, _| {
                is_shared = is_known || member::server(read, num, name.as_str())?.is_some();
                Ok(if is_shared { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            Ok(if is_known || is_shared { Some(destination(read, name.as_str())?) } else { None })
        })
        .await
    }

    /// The rooms here in which a server is, by their ids, of the ranks `from..from + most`, each with its latest position; and how many
    /// there are in all. One lookup for each room here. `most` is at most 96.
    pub async fn rooms_by_id_with(
        &self,
        server: &ServerName,
        backwards: bool,
        from: usize,
        most: usize,
    ) -> Result<(Vec<(String, u64)>, usize)> {
        let server = server.to_owned();
        self.reading(move |_, read| {
            let each = &mut |visit: &mut dyn FnMut((String, u64))| {
                room::list_after(read, None, &mut |num, row| {
                    if row.status == Status::Resident && member::server(read, num, server.as_str())?.is_some() {
                        visit((row.id, row.latest.0));
                    }
                    Ok(ControlFlow::Continue(()))
                })
            };
            Ok(match backwards {
                false => {
                    let Ranked { page, total } = ranked(from, most, each)?;
                    (page, total)
                }
                true => {
                    let Ranked { page, total } = ranked(from, most, &mut |visit| each(&mut |key| visit(Reverse(key))))?;
                    (page.into_iter().map(|key: Reverse<(String, u64)>| key.0).collect(), total)
                }
            })
        })
        .await
    }

    /// Has a server tried with the next thing there is for it, however often it failed.
    pub fn try_server_now(&self, server: &ServerName) {
        self.0.parts.remote.backoff().try_now(server);
    }

    /// At most `most` servers whose names begin with `begins`, by name behind `after`. Reads the servers of each room here in
    /// order of their names, and `most` and a few more of each at most.
    pub async fn neighbours(&self, begins: &str, after: Option<String>, most: usize) -> Result<Vec<Neighbour>> {
        let begins = begins.to_lowercase();
        self.reading(move |rooms, read| {
            let found = names_after(rooms, read, &begins, after.as_deref(), most)?;
            Ok(found.into_iter().map(|(server, rooms)| Neighbour { server, rooms }).collect())
        })
        .await
    }

    /// At most `most` rooms of this server in which another one is, and how many there are in all. One lookup for each room here.
    pub async fn rooms_with(&self, server: &ServerName, most: usize) -> Result<(Vec<SharedRoom>, u64)> {
        let server = server.to_owned();
        self.reading(move |_, read| {
            let (mut shared, mut total) = (Vec::new(), 0);
            room::list_after(read, None, &mut |num, row| {
                if row.status == Status::Resident
                    && let Some((users, _)) = member::server(read, num, server.as_str())?
                {
                    total += 1;
                    if shared.len() < most {
                        shared.push((num, row.id, users));
                    }
                }
                Ok(ControlFlow::Continue(()))
            })?;
            let rooms: Result<Vec<_>> = shared
                .into_iter()
                .map(|(num, room_id, users)| {
                    let name = state::known_num(read, num)?.view(read).text("m.room.name", "name")?;
                    Ok(SharedRoom { room_id, name: name.map(|name| bounded(name, NAME_CHARS_MAX)), users })
                })
                .collect();
            Ok((rooms?, total))
        })
        .await
    }
}

/// At most `most` servers whose names begin with `begins`, by name behind `after`, each with the number of its rooms here.
fn names_after(
    rooms: &Rooms,
    read: &Read,
    begins: &str,
    after: Option<&str>,
    most: usize,
) -> Result<BTreeMap<String, u64>> {
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    room::list_after(read, None, &mut |num, row| {
        if row.status != Status::Resident {
            return Ok(ControlFlow::Continue(()));
        }
        // The list begins behind a name, and the text itself may be one.
        if after.is_none() && !begins.is_empty() && member::server(read, num, begins)?.is_some() {
            note(&mut found, begins, most);
        }
        let from = after.filter(|after| *after > begins);
        let from = from.or(Some(begins).filter(|begins| !begins.is_empty()));
        member::list_servers(read, num, from, &mut |name, _| {
            let is_beyond = !name.starts_with(begins)
                || found.len() >= most && found.last_key_value().is_some_and(|(last, _)| name > last.as_str());
            if is_beyond {
                return Ok(ControlFlow::Break(()));
            }
            if name != rooms.server().as_str() {
                note(&mut found, name, most);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

fn destination(read: &Read, name: &str) -> Result<Destination> {
    let server = <&ServerName>::try_from(name).map_err(|_| super::error::Error::NotFound)?;
    let cursor = tables::cursor(read, server)?;
    let read_to = tables::reader(read)?.map_or(0, |position| position.0);
    let standing = tables::standing(read, server)?.unwrap_or_default();
    let retry_interval_ms = pause_ms(standing.failures);
    let retry_last_ms = standing.retry_at_ms.saturating_sub(retry_interval_ms);
    let failed_ms = (standing.failures > 0).then_some(retry_last_ms);
    Ok(Destination {
        server: name.to_owned(),
        retry_last_ms,
        retry_interval_ms,
        failing_since_ms: failed_ms.map(|failed_ms| cursor.map_or(failed_ms, |cursor| cursor.since_ms)),
        position: cursor.map_or(read_to, |cursor| cursor.position.0),
    })
}

/// Counts one room more of a server; the last name goes when there are more than `most`.
fn note(found: &mut BTreeMap<String, u64>, name: &str, most: usize) {
    match found.get_mut(name) {
        Some(rooms) => *rooms += 1,
        None => drop(found.insert(name.to_owned(), 1)),
    }
    if found.len() > most {
        found.pop_last();
    }
}
