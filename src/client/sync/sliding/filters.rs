//! The filters of a list (MSC4186, `SlidingRoomFilter`): which of the user's rooms stand in it.

use std::borrow::Cow;

use super::bad;
use crate::client::Error;
use crate::http::ErrorResponse;
use crate::matrix::json::read;
use crate::room::{Membership, RoomNum, SyncView, UserRoom};
use crate::user::UserSync;

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
    /// The rooms of the spaces, in order.
    children: Vec<RoomNum>,
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
            children: Vec::new(),
        })
    }

    /// Reads what is asked once for all rooms: which rooms the spaces name.
    pub fn prepare(&mut self, view: &SyncView) -> Result<(), Error> {
        for space in self.spaces.into_iter().flat_map(read::items).filter_map(read::text) {
            self.children.extend(view.children(&space)?);
        }
        self.children.sort_unstable();
        self.children.dedup();
        Ok(())
    }

    /// Whether direct chats are told from others.
    pub fn asks_direct(&self) -> bool {
        self.is_dm.is_some()
    }

    /// Whether a room stands in the list.
    pub fn wants(&self, facts: &mut Facts<'_>) -> Result<bool, Error> {
        let is_invited = facts.room.membership() == Membership::Invite;
        if self.is_invited.is_some_and(|wanted| wanted != is_invited)
            || self.spaces.is_some() && self.children.binary_search(&facts.room.num).is_err()
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
    pub room: UserRoom,
    encrypted: Option<bool>,
    room_type: Option<Option<Cow<'static, str>>>,
    tags: Option<Vec<String>>,
}

impl<'a> Facts<'a> {
    /// `direct`: the direct chats, in order.
    pub fn new(view: &'a SyncView, own: &'a UserSync, direct: &'a [RoomNum], room: UserRoom) -> Facts<'a> {
        Facts { view, own, direct, room, encrypted: None, room_type: None, tags: None }
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
