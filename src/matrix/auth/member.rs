//! The rule "If type is m.room.member".

use super::{Create, Named, Powers, State, Subject, content_text, need};
use crate::matrix::json;
use crate::matrix::scan::{BASE64, BASE64_URL};
use crate::matrix::sign::{self, PublicKey};
use crate::matrix::version::RoomVersion;
use crate::matrix::{Event, Reject};
use base64::Engine;
use ruma::{EventId, OwnedUserId, UserId};
use std::borrow::Cow;

/// Public keys and signatures of a third-party invite that are tried at most; the lengths of both lists are a peer's
/// choice.
const THIRD_PARTY_TRIES_MAX: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Membership {
    Leave = 0,
    Join = 1,
    Invite = 2,
    Ban = 3,
    Knock = 4,
}

impl Membership {
    pub fn parse(text: &str) -> Option<Membership> {
        Some(match text {
            "leave" => Membership::Leave,
            "join" => Membership::Join,
            "invite" => Membership::Invite,
            "ban" => Membership::Ban,
            "knock" => Membership::Knock,
            _ => return None,
        })
    }
    pub fn as_str(self) -> &'static str {
        match self {
            Membership::Leave => "leave",
            Membership::Join => "join",
            Membership::Invite => "invite",
            Membership::Ban => "ban",
            Membership::Knock => "knock",
        }
    }
    /// For columns and rows.
    pub fn from_number(n: u8) -> Option<Membership> {
        use Membership::*;
        [Leave, Join, Invite, Ban, Knock].get(n as usize).copied()
    }
    /// Of a canonical `m.room.member` content.
    pub fn of_content(content: &str) -> Option<Membership> {
        json::read::get_text(content.as_bytes(), "membership").and_then(|m| Membership::parse(&m))
    }
}

/// A change of membership, as the rules read it. Most of a large room's events are decided from this alone.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub sender: &'a UserId,
    pub target: &'a UserId,
    pub membership: Membership,
    pub only_prev_event: Option<&'a EventId>,
    /// Canonical JSON; read only for joins of restricted rooms and third-party invites.
    pub content: &'a str,
}

impl<'a> Change<'a> {
    pub fn parse(version: &RoomVersion, event: &Subject<'a>) -> Result<Change<'a>, Reject> {
        let target = event.state_key.ok_or_else(|| Reject::auth("the member event has no state key"))?;
        let target = <&UserId>::try_from(target).map_err(|_| Reject::auth("the state key is not a user ID"))?;
        let membership = membership(event.content)?;
        need(version.knock || membership != Membership::Knock, "this room version does not support knocking")?;
        let (sender, only_prev_event, content) = (event.sender, event.only_prev_event, event.content);
        Ok(Change { sender, target, membership, only_prev_event, content })
    }
}

fn membership(content: &str) -> Result<Membership, Reject> {
    let text =
        content_text(content, "membership")?.ok_or_else(|| Reject::auth("the member event has no membership"))?;
    Membership::parse(&text).ok_or_else(|| Reject::auth("unknown membership"))
}

/// Judges a change of membership. The signature of the server that authorised a join of a restricted room is checked
/// with the other signatures.
pub fn check_member<S: State>(
    version: &RoomVersion,
    change: &Change<'_>,
    create: &Create,
    state: &S,
) -> Result<(), S::Error> {
    match change.membership {
        Membership::Join => check_join(version, change, create, state),
        Membership::Invite => check_invite(version, change, create, state),
        Membership::Leave => check_leave(version, change, create, state),
        Membership::Ban => check_ban(version, change, create, state),
        Membership::Knock => check_knock(version, change, state),
    }
}

fn check_join<S: State>(v: &RoomVersion, change: &Change<'_>, create: &Create, state: &S) -> Result<(), S::Error> {
    if change.only_prev_event == Some(&create.id) && create.creators[0] == change.target {
        return Ok(());
    }
    need(change.sender == change.target, "a user cannot join on behalf of another user")?;
    let current = state.membership(change.target)?;
    need(current != Membership::Ban, "the user is banned")?;
    let rule = state.join_rule()?.ok_or_else(|| Reject::auth("the room has no join rules"))?;
    let known = matches!(current, Membership::Join | Membership::Invite);
    if rule == super::JoinRule::Public || (known && (rule.lets_invited_in(v) || rule.is_restricted(v))) {
        return Ok(());
    }
    need(rule.is_restricted(v), "the room can be joined only with an invite")?;
    let by = authorising_user(change.content)?;
    let by = by.ok_or_else(|| {
        Reject::auth("the join of a restricted room names no authorising user (join_authorised_via_users_server)")
    })?;
    need(state.membership(&by)? == Membership::Join, "the authorising user is not joined")?;
    let levels = state.power_levels()?;
    let powers = Powers::new(v, create, levels.as_deref());
    Ok(need(powers.user(&by) >= powers.named(Named::Invite), "the authorising user may not invite")?)
}

fn check_invite<S: State>(v: &RoomVersion, change: &Change<'_>, create: &Create, state: &S) -> Result<(), S::Error> {
    if let Some(invite) = third_party_invite(change.content) {
        return check_third_party(change, invite, state);
    }
    need(state.membership(change.sender)? == Membership::Join, "the sender is not joined")?;
    let current = state.membership(change.target)?;
    need(!matches!(current, Membership::Join | Membership::Ban), "the invited user is joined or banned")?;
    let levels = state.power_levels()?;
    let powers = Powers::new(v, create, levels.as_deref());
    Ok(need(powers.user(change.sender) >= powers.named(Named::Invite), "the sender may not invite")?)
}

fn check_leave<S: State>(v: &RoomVersion, change: &Change<'_>, create: &Create, state: &S) -> Result<(), S::Error> {
    let sender = state.membership(change.sender)?;
    if change.sender == change.target {
        let inside =
            matches!(sender, Membership::Join | Membership::Invite) || (v.knock && sender == Membership::Knock);
        return Ok(need(inside, "the user is not in the room")?);
    }
    need(sender == Membership::Join, "the sender is not joined")?;
    let levels = state.power_levels()?;
    let powers = Powers::new(v, create, levels.as_deref());
    let level = powers.user(change.sender);
    let banned = state.membership(change.target)? == Membership::Ban;
    need(!banned || level >= powers.named(Named::Ban), "the sender may not lift a ban")?;
    let may = level >= powers.named(Named::Kick) && powers.user(change.target) < level;
    Ok(need(may, "the sender may not remove that user")?)
}

fn check_ban<S: State>(v: &RoomVersion, change: &Change<'_>, create: &Create, state: &S) -> Result<(), S::Error> {
    need(state.membership(change.sender)? == Membership::Join, "the sender is not joined")?;
    let levels = state.power_levels()?;
    let powers = Powers::new(v, create, levels.as_deref());
    let level = powers.user(change.sender);
    let may = level >= powers.named(Named::Ban) && powers.user(change.target) < level;
    Ok(need(may, "the sender may not ban that user")?)
}

fn check_knock<S: State>(version: &RoomVersion, change: &Change<'_>, state: &S) -> Result<(), S::Error> {
    let rule = state.join_rule()?.ok_or_else(|| Reject::auth("the room has no join rules"))?;
    need(rule.lets_knock(version), "the room's join rules do not allow knocking")?;
    need(change.sender == change.target, "a user cannot knock on behalf of another user")?;
    let current = state.membership(change.sender)?;
    let outside = !matches!(current, Membership::Ban | Membership::Invite | Membership::Join);
    Ok(need(outside, "the user is banned, invited or joined")?)
}

/// An invite that proves itself: signed by a key that a third-party invite in the room names.
fn check_third_party<S: State>(change: &Change<'_>, invite: &[u8], state: &S) -> Result<(), S::Error> {
    need(state.membership(change.target)? != Membership::Ban, "the invited user is banned")?;
    let signed = json::read::get(invite, "signed").filter(|s| s.first() == Some(&b'{'));
    let signed = signed.ok_or_else(|| Reject::auth("the third-party invite is not signed"))?;
    let token =
        json::read::get_text(signed, "token").ok_or_else(|| Reject::auth("the third-party invite has no token"))?;
    let user =
        json::read::get_text(signed, "mxid").ok_or_else(|| Reject::auth("the third-party invite has no mxid"))?;
    need(user == change.target.as_str(), "the third-party invite is for another user")?;
    let promise = state.third_party_invite(&token)?;
    let promise = promise.ok_or_else(|| Reject::auth("the room has no third-party invite with that token"))?;
    need(promise.sender() == change.sender, "the third-party invite was sent by another user")?;
    Ok(need(is_signed_by_any(signed, &public_keys(&promise)), "no signature of the third-party invite is valid")?)
}

/// `public_key` and `public_keys[].public_key`.
fn public_keys(promise: &Event) -> Vec<PublicKey> {
    let content = promise.content().as_bytes();
    let several = json::read::get(content, "public_keys").unwrap_or(b"[]");
    let several = json::read::items(several).filter_map(|item| json::read::get(item, "public_key"));
    let texts = json::read::get(content, "public_key").into_iter().chain(several).take(THIRD_PARTY_TRIES_MAX);
    texts.filter_map(json::read::text).filter_map(|text| public_key(&text)).collect()
}

fn public_key(text: &str) -> Option<PublicKey> {
    let bytes = BASE64.decode(text).or_else(|_| BASE64_URL.decode(text)).ok()?;
    PublicKey::from_bytes(&bytes.try_into().ok()?)
}

fn is_signed_by_any(signed: &[u8], keys: &[PublicKey]) -> bool {
    let Ok(message) = sign::json_message(signed) else { return false };
    let signatures = json::read::get(signed, "signatures").unwrap_or(b"{}");
    let all = json::read::members(signatures).flat_map(|(_, by_key)| json::read::members(by_key));
    let ed25519 = all.filter(|(id, _)| id.starts_with(b"ed25519:")).take(THIRD_PARTY_TRIES_MAX);
    let bytes = ed25519.filter_map(|(_, value)| BASE64.decode(&*json::read::text(value)?).ok()?.try_into().ok());
    bytes.into_iter().any(|signature: [u8; 64]| keys.iter().any(|key| key.verify(&message, &signature)))
}

fn third_party_invite(content: &str) -> Option<&[u8]> {
    json::read::get(content.as_bytes(), "third_party_invite").filter(|v| *v != b"null")
}

fn authorising_user(content: &str) -> Result<Option<OwnedUserId>, Reject> {
    let key = "join_authorised_via_users_server";
    let user =
        |text: Cow<'_, str>| OwnedUserId::try_from(&*text).map_err(|_| Reject::auth(format!("{key} is not a user ID")));
    content_text(content, key)?.map(user).transpose()
}

/// The events a member event must cite beyond those of every event.
pub(super) fn add_auth_types<'a>(
    version: &RoomVersion,
    state_key: Option<&'a str>,
    content: &'a str,
    types: &mut Vec<(&'static str, Cow<'a, str>)>,
) -> Result<(), Reject> {
    let target = state_key.ok_or_else(|| Reject::auth("the member event has no state key"))?;
    let mut add = |kind: &'static str, key: Cow<'a, str>| {
        if !types.iter().any(|(k, s)| *k == kind && *s == key) {
            types.push((kind, key));
        }
    };
    add("m.room.member", Cow::Borrowed(target));
    let text =
        content_text(content, "membership")?.ok_or_else(|| Reject::auth("the member event has no membership"))?;
    if matches!(&*text, "join" | "invite" | "knock") {
        add("m.room.join_rules", Cow::Borrowed(""));
    }
    if text == "invite"
        && let Some(invite) = third_party_invite(content)
    {
        let token = json::read::get_path(invite, &["signed", "token"]).and_then(json::read::text);
        add("m.room.third_party_invite", token.ok_or_else(|| Reject::auth("the third-party invite has no token"))?);
    }
    if text == "join"
        && version.restricted
        && let Some(user) = authorising_user(content)?
    {
        add("m.room.member", Cow::Owned(user.to_string()));
    }
    Ok(())
}
