//! The filters of a list (MSC4186, `SlidingRoomFilter`): which of the user's rooms stand in it.

use std::borrow::Cow;

use super::bad;
use crate::client::Error;
use crate::http::ErrorResponse;
use crate::matrix::json::read;
use crate::room::{Membership, RoomNum, SyncView, UserRoom};
use crate::user::UserSync;

/// Spaces in the filters of a request. The rooms of each are read at every look, a body for each.
pub const SPACES_MAX: usize = 32;
/// Types and tags in the filters of a request: each room is held against them at every look.
pub const WORDS_MAX: usize = 256;
/// Rooms of all these spaces together, 8 bytes each.
const CHILDREN_MAX: usize = 2_048;

/// A filter, read in place.
#[derive(Clone, Debug, Default)]
pub struct Filters<'t> {
    is_dm: Option<bool>,
    is_encrypted: Option<bool>,
    is_invited: Option<bool>,
    room_types: Option<&'t [u8]>,
    not_room_types: Option<&'t [u8]>,
    tags: Option<&'t [u8]>,
    not_tags: Option<&'t [u8]>,
    spaces: Option<&'t [u8]>,
}

/// The spaces that the lists of a request name, and their rooms: read once for all rooms and lists.
#[derive(Debug, Default)]
pub struct Spaces {
    /// Each once.
    ids: Vec<String>,
    /// In order, with a bit for each space that names the room. At most [`CHILDREN_MAX`].
    children: Vec<(RoomNum, u32)>,
}

impl Spaces {
    /// The rooms of the spaces that some filters name: at most [`SPACES_MAX`], as far as their rooms are few enough.
    pub fn read<'t>(filters: impl Iterator<Item = &'t [u8]>, view: &SyncView) -> Result<Spaces, Error> {
        let mut spaces = Spaces::default();
        for id in filters.filter_map(|text| read::get(text, "spaces")).flat_map(read::items).filter_map(read::text) {
            if spaces.ids.len() < SPACES_MAX && !spaces.ids.iter().any(|known| *known == id) {
                let bit = 1 << spaces.ids.len();
                let children = view.children(&id, CHILDREN_MAX - spaces.children.len())?;
                spaces.children.extend(children.into_iter().map(|room| (room, bit)));
                spaces.ids.push(id.into_owned());
            }
        }
        spaces.children.sort_unstable();
        spaces.children.dedup_by(|later, first| {
            let is_same = later.0 == first.0;
            first.1 |= if is_same { later.1 } else { 0 };
            is_same
        });
        Ok(spaces)
    }

    /// Whether one of the spaces in a list of ids names a room.
    fn have(&self, list: &[u8], room: RoomNum) -> bool {
        let Ok(at) = self.children.binary_search_by_key(&room, |(child, _)| *child) else { return false };
        let named = self.children[at].1;
        self.ids.iter().enumerate().any(|(place, id)| named >> place & 1 != 0 && has(list, Some(id)))
    }
}

impl<'t> Filters<'t> {
    /// Reads canonical JSON. `M_BAD_JSON` for a filter of another shape; unknown ones let everything through.
    pub fn parse(text: &'t [u8]) -> Result<Filters<'t>, ErrorResponse> {
        let value = |name: &str| read::get(text, name).filter(|value| *value != b"null");
        let flag = |name: &str| match value(name) {
            None => Ok(None),
            Some(b"true") => Ok(Some(true)),
            Some(b"false") => Ok(Some(false)),
            Some(_) => Err(bad(name, "true or false")),
        };
        let texts = |name: &str, may_be_null: bool| match value(name) {
            None => Ok(None),
            Some(list) => {
                let is_right = |item: &[u8]| item.starts_with(b"\"") || may_be_null && item == b"null";
                let all = list.starts_with(b"[") && read::items(list).all(is_right);
                if all { Ok(Some(list)) } else { Err(bad(name, "a list of texts")) }
            }
        };
        Ok(Filters {
            is_dm: flag("is_dm")?,
            is_encrypted: flag("is_encrypted")?,
            is_invited: flag("is_invited")?.or(flag("is_invite")?),
            room_types: texts("room_types", true)?,
            not_room_types: texts("not_room_types", true)?,
            tags: texts("tags", false)?,
            not_tags: texts("not_tags", false)?,
            spaces: texts("spaces", false)?,
        })
    }

    /// How many spaces it names, and how many types and tags.
    pub fn counts(&self) -> (usize, usize) {
        let count = |list: Option<&[u8]>| list.map_or(0, |list| read::items(list).count());
        let others = [self.room_types, self.not_room_types, self.tags, self.not_tags];
        (count(self.spaces), others.into_iter().map(count).sum())
    }

    /// Whether direct chats are told from others.
    pub fn asks_direct(&self) -> bool {
        self.is_dm.is_some()
    }

    /// Whether a room stands in the list.
    pub fn wants(&self, facts: &mut Facts<'_>) -> Result<bool, Error> {
        let is_invited = facts.room.membership() == Membership::Invite;
        if self.is_invited.is_some_and(|wanted| wanted != is_invited)
            || self.spaces.is_some_and(|list| !facts.spaces.have(list, facts.room.num))
        {
            return Ok(false);
        }
        if let Some(wanted) = self.is_dm
            && wanted != facts.is_dm()
        {
            return Ok(false);
        }
        if let Some(wanted) = self.is_encrypted
            && wanted != facts.is_encrypted()?
        {
            return Ok(false);
        }
        if self.room_types.is_some() || self.not_room_types.is_some() {
            let kind = facts.room_type()?;
            if self.not_room_types.is_some_and(|list| has(list, kind.as_deref()))
                || self.room_types.is_some_and(|list| !has(list, kind.as_deref()))
            {
                return Ok(false);
            }
        }
        if self.tags.is_some() || self.not_tags.is_some() {
            let tags = facts.tags()?;
            let has_any = |list| tags.iter().any(|tag| has(list, Some(tag)));
            if self.not_tags.is_some_and(has_any) || self.tags.is_some_and(|list| !has_any(list)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether a list has a text, or null.
fn has(list: &[u8], wanted: Option<&str>) -> bool {
    read::items(list).any(|item| match wanted {
        Some(wanted) => read::text(item).is_some_and(|item| item == wanted),
        None => item == b"null",
    })
}

/// What filters ask of one room, read when it is first asked.
pub struct Facts<'a> {
    view: &'a SyncView,
    own: &'a UserSync,
    direct: &'a [RoomNum],
    spaces: &'a Spaces,
    pub room: UserRoom,
    encrypted: Option<bool>,
    room_type: Option<Option<Cow<'static, str>>>,
    tags: Option<Vec<String>>,
}

impl<'a> Facts<'a> {
    /// `direct`: the direct chats, in order.
    pub fn new(
        view: &'a SyncView,
        own: &'a UserSync,
        direct: &'a [RoomNum],
        spaces: &'a Spaces,
        room: UserRoom,
    ) -> Facts<'a> {
        Facts { view, own, direct, spaces, room, encrypted: None, room_type: None, tags: None }
    }

    pub fn is_dm(&self) -> bool {
        self.direct.binary_search(&self.room.num).is_ok()
    }

    fn is_encrypted(&mut self) -> Result<bool, Error> {
        if self.encrypted.is_none() {
            self.encrypted = Some(self.view.is_encrypted(&self.room)?);
        }
        Ok(self.encrypted == Some(true))
    }

    fn room_type(&mut self) -> Result<Option<String>, Error> {
        if self.room_type.is_none() {
            self.room_type = Some(self.view.room_type(&self.room)?.map(Cow::Owned));
        }
        Ok(self.room_type.clone().flatten().map(Cow::into_owned))
    }

    fn tags(&mut self) -> Result<&[String], Error> {
        if self.tags.is_none() {
            self.tags = Some(self.own.tags(self.room.num)?);
        }
        Ok(self.tags.as_deref().unwrap_or_default())
    }
}
