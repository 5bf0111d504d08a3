//! A room's state as the authorisation rules read it, and events out of the store.

use std::cell::OnceCell;
use std::sync::Arc;

use parking_lot::Mutex;
use ruma::{OwnedRoomId, RoomId, UserId};

use self::event::load;
use super::Rooms;
use super::error::{Error, Result};
use crate::base::{Owner, Shares};
use crate::matrix::auth::{self, JoinRule, PowerLevels};
use crate::matrix::{Event, RoomVersion, json, version};
use crate::store::tables::room::current_state;
use crate::store::tables::room::event_row::{Kind, Membership, Root};
use crate::store::tables::room::{self, Room, Status, member, state_tree};
use crate::store::tables::user;
use crate::store::{self, EventNum, Get, RoomNum};
use tree::Tree;

pub mod resolve;
pub mod server_access;
pub mod sweep;
pub mod description;
pub mod event;
pub mod fork;
pub mod join_conditions;
pub mod moment;
pub mod preview;
pub mod redaction;
pub mod servers;
pub mod stripped;
pub mod tree;

/// A room we hold the history of, as one snapshot has it.
#[derive(Clone, Debug)]
pub struct RoomRef {
    pub num: RoomNum,
    pub row: Room,
    pub version: &'static RoomVersion,
}

impl RoomRef {
    /// Whether a user of this server is joined, so that we follow the room.
    pub fn is_resident(&self) -> bool {
        self.row.status == Status::Resident
    }

    /// Its state now.
    pub fn view<'g, G: Get>(&self, get: &'g G) -> StateView<'g, G> {
        StateView::present(get, self.num, self.version)
    }
}

/// A room by its id; `NotFound` for one known by name only.
pub fn known(get: &impl Get, room_id: &str) -> Result<RoomRef> {
    let num = room::num(get, room_id)?.ok_or(Error::NotFound)?;
    known_num(get, num)
}

/// A room by its number.
pub fn known_num(get: &impl Get, num: RoomNum) -> Result<RoomRef> {
    let row = room::get(get, num)?.ok_or(Error::NotFound)?;
    match version::get(&row.version) {
        Some(version) if row.state.is_some() => Ok(RoomRef { num, row, version }),
        _ => Err(Error::NotFound),
    }
}

/// A stored membership as the rules name it.
pub fn as_rule(membership: Membership) -> auth::Membership {
    match membership {
        Membership::Join => auth::Membership::Join,
        Membership::Invite => auth::Membership::Invite,
        Membership::Knock => auth::Membership::Knock,
        Membership::Leave => auth::Membership::Leave,
        Membership::Ban => auth::Membership::Ban,
    }
}

enum At {
    Present,
    Tree(Tree),
}

/// A room's state, now or at a point of its history: a handful of lookups, each a row or two, whatever the room's size.
pub struct StateView<'g, G> {
    get: &'g G,
    room: RoomNum,
    version: &'static RoomVersion,
    at: At,
    create: OnceCell<Option<Arc<auth::Create>>>,
    levels: OnceCell<Option<Arc<PowerLevels>>>,
}

impl<'g, G: Get> StateView<'g, G> {
    /// The room's state now.
    pub fn present(get: &'g G, room: RoomNum, version: &'static RoomVersion) -> StateView<'g, G> {
        StateView { get, room, version, at: At::Present, create: OnceCell::new(), levels: OnceCell::new() }
    }

    /// The state a tree holds; none at all without one.
    pub fn tree(get: &'g G, room: RoomNum, version: &'static RoomVersion, root: Option<Root>) -> StateView<'g, G> {
        StateView::overlaid(get, room, version, Tree::stored(root))
    }

    /// The state of a tree that need not be stored.
    pub fn overlaid(get: &'g G, room: RoomNum, version: &'static RoomVersion, tree: Tree) -> StateView<'g, G> {
        StateView { at: At::Tree(tree), ..StateView::present(get, room, version) }
    }

    /// The state event of a type and key.
    pub fn num(&self, kind: &str, state_key: &str) -> store::Result<Option<EventNum>> {
        let Some(key) = state_tree::key(self.get, kind, state_key)? else { return Ok(None) };
        match &self.at {
            At::Present => current_state::state(self.get, self.room, Kind::of(kind), key),
            At::Tree(tree) => tree.get(self.get, key),
        }
    }

    pub fn event(&self, kind: &str, state_key: &str) -> store::Result<Option<Event>> {
        self.num(kind, state_key)?.map(|num| load(self.get, self.version, num)).transpose()
    }

    /// A string in the content of a state event with an empty key.
    pub fn text(&self, kind: &str, field: &str) -> store::Result<Option<String>> {
        let Some(event) = self.event(kind, "")? else { return Ok(None) };
        Ok(json::read::get_text(event.content().as_bytes(), field).map(|text| text.into_owned()))
    }

    /// A user's membership and its event.
    pub fn member(&self, user_id: &UserId) -> store::Result<Option<(Membership, EventNum)>> {
        match &self.at {
            At::Present => match user::num(self.get, user_id.as_str())? {
                Some(user) => member::get(self.get, self.room, user),
                None => Ok(None),
            },
            At::Tree(_) => {
                let Some(num) = self.num("m.room.member", user_id.as_str())? else { return Ok(None) };
                let row = room::event::row_of(self.get, num)?;
                Ok(row.member.map(|(membership, _)| (membership, num)))
            }
        }
    }

    /// Calls `ask` with the users' powers. `None` when the room's state cannot be read, which the rules then refuse.
    pub fn with_powers<T>(&self, ask: impl FnOnce(&auth::Powers<'_>) -> T) -> Result<Option<T>> {
        use auth::State as _;
        let (Some(create), levels) = (self.create()?, self.power_levels()?) else { return Ok(None) };
        Ok(Some(ask(&auth::Powers::new(self.version, &create, levels.as_deref()))))
    }
}

impl<G: Get> auth::State for StateView<'_, G> {
    type Error = Error;

    fn create(&self) -> Result<Option<Arc<auth::Create>>> {
        if let Some(create) = self.create.get() {
            return Ok(create.clone());
        }
        let event = self.event("m.room.create", "")?;
        let create = event.map(|event| auth::Create::parse(self.version, &event.subject())).transpose()?.map(Arc::new);
        Ok(self.create.get_or_init(|| create).clone())
    }

    fn power_levels(&self) -> Result<Option<Arc<PowerLevels>>> {
        if let Some(levels) = self.levels.get() {
            return Ok(levels.clone());
        }
        let event = self.event("m.room.power_levels", "")?;
        let levels = event.map(|event| PowerLevels::parse(self.version, event.content())).transpose()?.map(Arc::new);
        Ok(self.levels.get_or_init(|| levels).clone())
    }

    fn join_rule(&self) -> Result<Option<JoinRule>> {
        let event = self.event("m.room.join_rules", "")?;
        Ok(event.map(|event| JoinRule::parse(event.content())).transpose()?)
    }

    fn membership(&self, user: &UserId) -> Result<auth::Membership> {
        Ok(self.member(user)?.map_or(auth::Membership::Leave, |(membership, _)| as_rule(membership)))
    }

    fn third_party_invite(&self, token: &str) -> Result<Option<Arc<Event>>> {
        Ok(self.event("m.room.third_party_invite", token)?.map(Arc::new))
    }
}

/// Rooms whose numbers are kept in memory: those in which people here lately sent something, about 150 bytes each.
const NUMS_KEPT: usize = 64;

/// The numbers of rooms in use. A number is never another room's, but a room that is purged and joined again gets
/// another number: under the old one there is no row then.
pub(super) struct Nums(Mutex<Shares<OwnedRoomId, RoomNum>>);

impl Default for Nums {
    fn default() -> Nums {
        Nums(Mutex::new(Shares::new(NUMS_KEPT, 0)))
    }
}

/// The number of a room we hold; a user who asks for any other has no part in it.
pub(super) async fn num_of(rooms: &Rooms, room_id: &RoomId) -> Result<RoomNum> {
    let id = room_id.to_owned();
    rooms.reading(move |_, read| room::num(read, id.as_str())?.ok_or_else(not_in_room)).await
}

/// As [`num_of`], mostly without reading: for a write that checks that the room is there.
pub(super) async fn num_in_use(rooms: &Rooms, room_id: &RoomId) -> Result<RoomNum> {
    if let Some(num) = rooms.0.nums.0.lock().get(room_id) {
        return Ok(*num);
    }
    let num = num_of(rooms, room_id).await?;
    rooms.0.nums.0.lock().put(Owner::Known(num), room_id.to_owned(), num);
    Ok(num)
}

/// Forgets the number of a room.
pub(super) fn forget_num(rooms: &Rooms, room_id: &RoomId) {
    rooms.0.nums.0.lock().remove(room_id);
}

pub(super) fn not_in_room() -> Error {
    Error::forbidden("the user is not in the room")
}

/// A room in which a local user may act; in a room we do not hold, the user has no membership.
pub(super) fn known_to_member(get: &impl Get, room_id: &RoomId) -> Result<RoomRef> {
    known(get, room_id.as_str()).map_err(|failed| match failed {
        Error::NotFound => not_in_room(),
        other => other,
    })
}
