//! The servers with which people here share rooms, and which rooms those are: for the operator.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ruma::ServerName;

use super::Rooms;
use super::error::Result;
use super::state;
use crate::base::bounded;
use crate::store::tables::room::{self, Status, member};

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

impl Rooms {
    /// At most `most` servers whose names begin with `begins`, by name behind `after`. Reads the servers of each room here in
    /// order of their names, and `most` and a few more of each at most.
    pub async fn neighbours(&self, begins: &str, after: Option<String>, most: usize) -> Result<Vec<Neighbour>> {
        let begins = begins.to_lowercase();
        self.reading(move |rooms, read| {
            let mut found: BTreeMap<String, u64> = BTreeMap::new();
            room::list_after(read, None, &mut |num, row| {
                if row.status != Status::Resident {
                    return Ok(ControlFlow::Continue(()));
                }
                // The list begins behind a name, and the text itself may be one.
                if after.is_none() && !begins.is_empty() && member::server(read, num, &begins)?.is_some() {
                    note(&mut found, &begins, most);
                }
                let from = after.as_deref().filter(|after| *after > begins.as_str());
                let from = from.or(Some(begins.as_str()).filter(|begins| !begins.is_empty()));
                member::list_servers(read, num, from, &mut |name, _| {
                    let is_beyond = !name.starts_with(&begins)
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
