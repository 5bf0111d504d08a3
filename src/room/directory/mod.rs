//! The public list of this server.

use std::ops::ControlFlow;

use ruma::{RoomId, UserId};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::Rooms;
use super::error::{Error, Result};
use super::state::description::Description;
use super::state::{known, known_num};
use crate::base::unhex;
use crate::budget::Grant;
use crate::room::policies::Act;
use crate::room::state;
use crate::store::tables::room;
use crate::store::{Read, RoomNum};
use alias::may_list;

pub mod alias;
pub mod remote;
#[cfg(test)]
mod tests;

/// Rooms on one page.
const PAGE_MAX: usize = 100;
/// A page ends early at this size: a name and a topic may have thousands of letters.
const PAGE_BYTES: usize = 64 * 1024;
/// The memory of a page while it is made and written: its rooms, one room more, and their text.
pub const PUBLIC_PAGE_BYTES: u64 = 192 * 1024;
/// Rooms in the public list of one network: 20 bytes each.
const NETWORK_ROOMS_MAX: usize = 10_000;
/// Rooms looked at for one page of a search.
const SEARCHED_MAX: usize = 1000;
/// The largest estimate of the total number of rooms; counting stops there.
const COUNTED_MAX: usize = 10_000;

/// Which part of the public list.
#[derive(Debug, Clone, Default)]
pub struct PublicQuery {
    pub limit: Option<usize>,
    pub since: Option<String>,
    /// A text to find in the name, the topic or the alias, in any case.
    pub search: Option<String>,
    /// Only rooms of these types; `None` in the list stands for rooms without a type.
    pub room_types: Option<Vec<Option<String>>>,
    /// The list of this network, instead of the server's own (`third_party_instance_id`).
    pub network: Option<String>,
    /// With the rooms of all networks, behind the server's own.
    pub all_networks: bool,
}

/// A page of the public list, in its final shape: at most [`PAGE_MAX`] rooms, or [`PAGE_BYTES`] and one room more.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PublicPage {
    pub chunk: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_batch: Option<String>,
    pub total_room_count_estimate: u64,
}

impl PublicPage {
    /// The page as JSON, and the part of `grant` that pays for it.
    pub fn into_json(self, mut grant: Grant) -> (Vec<u8>, Grant) {
        let text: usize = self.chunk.iter().map(|room| room.get().len() + 1).sum();
        let mut json = Vec::with_capacity(text + 512);
        serde_json::to_writer(&mut json, &self).expect("a page is JSON, and a list takes it");
        grant.shrink(grant.bytes().saturating_sub(json.capacity() as u64));
        (json, grant)
    }
}

impl Rooms {
    /// A page of the public list.
    pub async fn public_rooms(&self, query: PublicQuery) -> Result<PublicPage> {
        self.reading(move |_, read| page(read, &query)).await
    }

    /// Puts a room into the public list of an application service's network, or takes it out.
    pub async fn set_public_in(&self, network: &str, room_id: &RoomId, listed: bool) -> Result<()> {
        let num = state::num_of(self, room_id).await.map_err(|_| Error::NotFound)?;
        let network = network.to_owned();
        self.write(move |w| match room::directory::set_in_network(w, &network, num, listed, NETWORK_ROOMS_MAX)? {
            true => Ok(()),
            false => Err(Error::forbidden("the network has too many public rooms")),
        })
        .await
    }

    /// Whether a room is in the public list.
    pub async fn is_public(&self, room_id: &RoomId) -> Result<bool> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| Ok(known(read, room_id.as_str())?.row.public)).await
    }

    /// Puts a room into the public list or takes it out; for users who may set the room's canonical alias, and admins.
    pub async fn set_public(&self, user: &UserId, room_id: &RoomId, public: bool, is_admin: bool) -> Result<()> {
        if public && !is_admin {
            self.check_policy(Act::PublishRooms, user).await?;
        }
        let num = state::num_of(self, room_id).await.map_err(|_| Error::NotFound)?;
        let _guard = self.lock(num).await;
        let user = user.to_owned();
        self.write(move |w| {
            let mut room = known_num(w, num)?;
            if !is_admin && !may_list(w, num, &user)? {
                return Err(Error::forbidden("the user may not publish the room in the directory"));
            }
            let before = room.row.public.then_some(room.row.joined);
            room.row.public = public;
            room::directory::set_public(w, num, before, public.then_some(room.row.joined))?;
            Ok(room::put(w, num, &room.row)?)
        })
        .await
    }
}

fn page(read: &Read, query: &PublicQuery) -> Result<PublicPage> {
    let limit = query.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let (from, backwards) = match &query.since {
        None => (Vec::new(), false),
        Some(token) => {
            place_of(token).ok_or_else(|| Error::bad("M_INVALID_PARAM", "the token is not one of this server"))?
        }
    };
    let search = query.search.as_deref().map(str::to_lowercase).filter(|text| !text.is_empty());
    // A place is the point where a page begins; the page before it ends there.
    let mut places: Vec<(Vec<u8>, Box<RawValue>)> = Vec::new();
    let (mut bytes, mut looked, mut stopped) = (0, 0, None);
    let mut visit = |place: &[u8], num: RoomNum| {
        if places.len() == limit || bytes >= PAGE_BYTES || looked == SEARCHED_MAX {
            stopped = Some(place.to_vec());
            return Ok(ControlFlow::Break(()));
        }
        looked += 1;
        let room = match known_num(read, num) {
            Ok(room) => room,
            Err(Error::Store(failed)) => return Err(failed),
            Err(_) => return Ok(ControlFlow::Continue(())),
        };
        let shown = Description::listed(read, &room)?;
        if is_wanted(&shown, search.as_deref(), query.room_types.as_deref()) {
            let shown = to_raw_value(&shown).expect("texts are JSON");
            bytes += shown.get().len();
            places.push((place.to_vec(), shown));
        }
        Ok(ControlFlow::Continue(()))
    };
    match &query.network {
        Some(network) => room::directory::list_network(read, Some(network), &from, backwards, &mut visit)?,
        None => room::directory::list_public(read, &from, backwards, &mut visit)?,
    }
    if query.all_networks && stopped.is_none() && !backwards {
        add_networks(read, &mut places, limit)?;
    }
    let (next, prev) = match backwards {
        false => {
            let first = places.first().map(|(place, _)| place.clone()).unwrap_or(from.clone());
            (stopped.map(|place| token(&place, false)), (!from.is_empty()).then(|| token(&first, true)))
        }
        true => {
            places.reverse();
            let first = places.first().map(|(place, _)| place.clone()).unwrap_or_default();
            (Some(token(&from, false)), stopped.map(|_| token(&first, true)))
        }
    };
    Ok(PublicPage {
        chunk: places.into_iter().map(|(_, shown)| shown).collect(),
        next_batch: next,
        prev_batch: prev,
        total_room_count_estimate: estimate(read, query.network.as_deref())?,
    })
}

/// Adds rooms of networks to the last page of the server's own list, as far as it has room for them. Those of one network alone
/// are its own list.
fn add_networks(read: &Read, places: &mut Vec<(Vec<u8>, Box<RawValue>)>, limit: usize) -> Result<()> {
    let mut looked = 0;
    room::directory::list_network(read, None, &[], false, &mut |place, num| {
        looked += 1;
        if places.len() >= limit || looked > SEARCHED_MAX {
            return Ok(ControlFlow::Break(()));
        }
        match known_num(read, num) {
            Ok(room) if !room.row.public => {
                let shown = to_raw_value(&Description::listed(read, &room)?).expect("texts are JSON");
                places.push((place.to_vec(), shown));
            }
            Err(Error::Store(failed)) => return Err(failed),
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(())
}

fn estimate(read: &Read, network: Option<&str>) -> Result<u64> {
    let mut count = 0;
    let mut visit = |_: &[u8], _| {
        count += 1;
        Ok(if count < COUNTED_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    };
    match network {
        Some(network) => room::directory::list_network(read, Some(network), &[], false, &mut visit)?,
        None => room::directory::list_public(read, &[], false, &mut visit)?,
    }
    Ok(count as u64)
}

/// A page token: `n` or `p` and the place in hex.
fn token(place: &[u8], backwards: bool) -> String {
    let mut token = String::from(if backwards { "p" } else { "n" });
    place.iter().for_each(|byte| token.push_str(&format!("{byte:02x}")));
    token
}

fn place_of(token: &str) -> Option<(Vec<u8>, bool)> {
    let backwards = match token.as_bytes().first()? {
        b'p' => true,
        b'n' => false,
        _ => return None,
    };
    let place = token.get(1..).filter(|hex| hex.len() == 16).and_then(unhex)?;
    Some((place, backwards))
}

fn is_wanted(shown: &Description, search: Option<&str>, types: Option<&[Option<String>]>) -> bool {
    let found = search.is_none_or(|wanted| {
        [&shown.name, &shown.topic, &shown.canonical_alias]
            .into_iter()
            .flatten()
            .any(|text| text.to_lowercase().contains(wanted))
    });
    found && types.is_none_or(|types| types.iter().any(|wanted| wanted.as_deref() == shown.room_type.as_deref()))
}
