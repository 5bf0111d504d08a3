//! The create event and the join rules.

use super::{Subject, content_text, need};
use crate::matrix::Reject;
use crate::matrix::json;
use crate::matrix::version::{self, RoomVersion};
use ruma::{OwnedEventId, OwnedUserId, UserId};

/// A create event, as the rules read it.
#[derive(Debug, Clone)]
pub struct Create {
    pub id: OwnedEventId,
    pub sender: OwnedUserId,
    pub federate: bool,
    /// Users with power 100 where there are no power levels, or infinite power in version 12; the first of them may
    /// join first.
    pub creators: Vec<OwnedUserId>,
}

impl Create {
    pub fn parse(version: &RoomVersion, event: &Subject<'_>) -> Result<Create, Reject> {
        let federate = match json::read::get(event.content.as_bytes(), "m.federate") {
            None | Some(b"null" | b"true") => true,
            Some(b"false") => false,
            Some(_) => return Err(Reject::auth("m.federate is not a boolean")),
        };
        let creator = match version.creator_is_sender {
            true => event.sender.to_owned(),
            false => {
                let creator = content_text(event.content, "creator")?.ok_or_else(|| Reject::auth("no creator"))?;
                OwnedUserId::try_from(&*creator).map_err(|_| Reject::auth("creator is not a user ID"))?
            }
        };
        let mut creators = vec![creator];
        for user in additional_creators(version, event.content)? {
            if !creators.contains(&user) {
                creators.push(user);
            }
        }
        Ok(Create { id: event.id.to_owned(), sender: event.sender.to_owned(), federate, creators })
    }

    pub fn is_creator(&self, user: &UserId) -> bool {
        self.creators.iter().any(|c| c == user)
    }
}

fn additional_creators(version: &RoomVersion, content: &str) -> Result<Vec<OwnedUserId>, Reject> {
    let wrong = || Reject::auth("additional_creators is not a list of user IDs");
    match json::read::get(content.as_bytes(), "additional_creators") {
        Some(list) if version.creators_infinite => {
            if list.first() != Some(&b'[') {
                return Err(wrong());
            }
            let user = |item| json::read::text(item).and_then(|id| OwnedUserId::try_from(&*id).ok()).ok_or_else(wrong);
            json::read::items(list).map(user).collect()
        }
        _ => Ok(Vec::new()),
    }
}

pub(super) fn check_create(version: &RoomVersion, event: &Subject<'_>) -> Result<(), Reject> {
    need(!event.has_prev_events, "the create event has previous events")?;
    if version.room_id_is_create_hash() {
        need(event.room_id.is_none(), "the create event carries a room_id")?;
    } else {
        let server = event.room_id.and_then(|id| id.server_name());
        need(server == Some(event.sender.server_name()), "the room ID and the creator belong to different servers")?;
    }
    need(version::of_create(event.content).is_some(), "the create event names an unknown room version")?;
    if !version.creator_is_sender {
        let creator = json::read::get(event.content.as_bytes(), "creator");
        need(creator.is_some_and(|c| c != b"null"), "the create event has no creator")?;
    }
    additional_creators(version, event.content).map(drop)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinRule {
    Public,
    Invite,
    Knock,
    Restricted,
    KnockRestricted,
    /// `private`, and any unknown rule.
    Other,
}

impl JoinRule {
    /// From the content of `m.room.join_rules`.
    pub fn parse(content: &str) -> Result<JoinRule, Reject> {
        let rule =
            content_text(content, "join_rule")?.ok_or_else(|| Reject::auth("the join rules have no join_rule"))?;
        Ok(match &*rule {
            "public" => JoinRule::Public,
            "invite" => JoinRule::Invite,
            "knock" => JoinRule::Knock,
            "restricted" => JoinRule::Restricted,
            "knock_restricted" => JoinRule::KnockRestricted,
            _ => JoinRule::Other,
        })
    }

    pub(super) fn lets_invited_in(self, version: &RoomVersion) -> bool {
        self == JoinRule::Invite || (version.knock && self == JoinRule::Knock)
    }

    pub(super) fn is_restricted(self, version: &RoomVersion) -> bool {
        (version.restricted && self == JoinRule::Restricted)
            || (version.knock_restricted && self == JoinRule::KnockRestricted)
    }

    pub(super) fn lets_knock(self, version: &RoomVersion) -> bool {
        self == JoinRule::Knock || (version.knock_restricted && self == JoinRule::KnockRestricted)
    }
}
