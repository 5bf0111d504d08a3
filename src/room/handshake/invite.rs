//! Invites between servers ("Inviting to a room"), in both directions.

use http::Method;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId};
use serde_json::json;
use serde_json::value::RawValue;

use super::out_of_band::{Leave, may_end};
use super::{asking, is_unknown_path};
use crate::matrix::scan::{self, Signer};
use crate::matrix::{Event, Reject, json as text, sign, version};
use crate::remote::{Deed, Failed, encode};
use crate::room::Rooms;
use crate::room::blocked;
use crate::room::error::{Error, Result};
use crate::room::handshake::out_of_band;
use crate::room::invite_rules::{self, Verdict};
use crate::room::policies::Act;
use crate::room::receive::Outcome;
use crate::room::receive::fetch;
use crate::room::send;
use crate::room::send::{Built, New};
use crate::room::state;
use crate::room::state::servers;
use crate::room::state::stripped;
use crate::room::state::stripped::strip;
use crate::room::state::{known_to_member, server_access};
use crate::store::Read;
use crate::store::tables::room;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::user;

/// The request of an invite from another server.
pub struct Invitation {
    pub room: OwnedRoomId,
    pub version: String,
    pub event: Box<RawValue>,
    pub stripped: Vec<Box<RawValue>>,
}

impl Rooms {
    /// Accepts an invite of a local user from another server. Answers the event with our signature beside theirs.
    ///
    /// In a room that local users are in, the invite becomes part of the room when it arrives there; here it is only
    /// signed.
    pub async fn receive_invite(
        &self,
        origin: &ServerName,
        id: Option<&EventId>,
        invitation: Invitation,
    ) -> Result<Event> {
        let version =
            version::get_offered(&invitation.version).ok_or_else(|| Error::Version(invitation.version.clone()))?;
        let event = Event::from_wire(version, invitation.event.get().as_bytes())?;
        let target = check(self, origin, id, &invitation, &event)?;
        self.check_policy(Act::InvitedFromOutside, &target).await?;
        super::make_if_unknown(self, &target).await?;
        let (by, asked, of) = (origin.to_owned(), target.clone(), invitation.room.clone());
        let inviter = event.sender().to_owned();
        let is_ours = self.reading(move |rooms, read| {
            server_access::check_acl(read, &by, &of)?;
            let barred = rooms.0.parts.remote.barred();
            Error::barred(barred.user(read, &inviter, Deed::Invite)?)?;
            Error::barred(barred.room(read, of.as_str(), Deed::Invite)?)?;
            blocked::check(read, of.as_str())?;
            let is_ours = is_ours_already(read, &asked, &of)?;
            let user = user::num(read, asked.as_str())?.ok_or(Error::NotFound)?;
            match invite_rules::verdict(read, user, inviter.as_str())? {
                Verdict::Block(errcode) => Err(Error::InviteBlocked(errcode)),
                Verdict::Allow | Verdict::Ignore => Ok(is_ours),
            }
        });
        let is_ours = is_ours.await?;
        fetch::check_signed(self, &event).await?;
        let parts = &self.0.parts;
        let signed = sign::event::add_signature(&event, &parts.server, &parts.key)?;
        let stripped = strip(&invitation.stripped, &event);
        if !is_ours {
            out_of_band::record(self, &target, &invitation.room, version.id, Membership::Invite, stripped).await?;
        }
        Ok(signed)
    }
}

fn check(
    rooms: &Rooms,
    origin: &ServerName,
    id: Option<&EventId>,
    invitation: &Invitation,
    event: &Event,
) -> Result<OwnedUserId> {
    let bad = |message: &str| Error::bad("M_INVALID_PARAM", message);
    if id.is_some_and(|id| id != event.id()) {
        return Err(bad("the event's ID differs from the one in the path"));
    }
    if event.room_id() != invitation.room {
        return Err(bad("the event belongs to another room"));
    }
    if event.kind() != "m.room.member" || event.membership().as_deref() != Some("invite") {
        return Err(bad("the event is not an invite"));
    }
    if event.sender().server_name() != origin {
        return Err(Error::forbidden("the invite's sender belongs to another server"));
    }
    let target = event.state_key().and_then(|key| OwnedUserId::try_from(key).ok());
    match target {
        Some(target) if target.server_name() == rooms.0.parts.server => Ok(target),
        _ => Err(bad("the invited user does not belong to this server")),
    }
}

/// Receives events of a room without members here: the only relevant ones end an invite or a knock. An event that
/// does not is left out of the answer.
pub async fn receive_ends(
    rooms: &Rooms,
    origin: &ServerName,
    room_id: &RoomId,
    pdus: Vec<Box<RawValue>>,
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for raw in pdus {
        match end(rooms, origin, room_id, raw).await {
            Ok(id) => outcomes.push((id, Ok(()))),
            Err(failed) if failed.is_passing() => return Err(failed),
            Err(failed) => {
                tracing::debug!(%origin, %room_id, %failed, "an event of a room without this server was refused")
            }
        }
    }
    Ok(outcomes)
}

/// Accepts an event for a room we do not participate in. The only relevant events are those that end an invite or a
/// knock of a local user: an invite by its sender, a knock by a server involved in it. What apps are shown of the event
/// is kept.
pub async fn end(rooms: &Rooms, origin: &ServerName, room_id: &RoomId, raw: Box<RawValue>) -> Result<OwnedEventId> {
    let (origin, id) = (origin.to_owned(), room_id.to_owned());
    let read = rooms.reading(move |rooms, read| {
        let num = room::num(read, id.as_str())?.ok_or(Error::NotFound)?;
        let version = version::get(&room::get_of(read, num)?.version).ok_or(Error::NotFound)?;
        let event = Event::from_wire(version, raw.get().as_bytes())?;
        let target = event.state_key().and_then(|key| OwnedUserId::try_from(key).ok()).ok_or(Error::NotFound)?;
        let is_end = event.kind() == "m.room.member"
            && matches!(event.membership().as_deref(), Some("leave" | "ban"))
            && event.room_id() == id
            && event.sender().server_name() == origin;
        let user = user::num(read, target.as_str())?.ok_or(Error::NotFound)?;
        match is_end
            && servers::out_of_band_of(rooms, read, &target, &id)?.contains(&origin)
            && may_end(read, user, num, &target, event.sender())?
        {
            true => Ok((event, target)),
            false => Err(Error::NotFound),
        }
    });
    let (event, target) = read.await?;
    fetch::check_signed(rooms, &event).await?;
    let leave = Leave::of(&event);
    out_of_band::end(rooms, &target, room_id, Some(event.sender().to_owned()), Some(leave)).await?;
    Ok(event.id().to_owned())
}

/// Has the invited user's server sign our invite, which makes it known there too. `room_state` is the stripped
/// state for the invited user.
///
/// Never call it with the room's lock held: the other server may take long.
pub(super) async fn sign(rooms: &Rooms, event: &Event, room_state: Vec<Box<RawValue>>) -> Result<Event> {
    let target = event.state_key().and_then(|key| OwnedUserId::try_from(key).ok());
    let target = target.ok_or_else(|| Reject::shape("the state key of the invite is not a user ID"))?;
    let server = target.server_name();
    let signed = ask_signature(rooms, server, event, room_state).await?;
    let signed = Event::from_wire(event.version(), signed.get().as_bytes())?;
    if signed.id() != event.id() || !signed.is_intact() {
        return Err(Error::Remote(Failed::BadAnswer(
            "the other server returned another event than the invite".to_owned(),
        )));
    }
    let theirs = signature_of(&signed, server)?;
    let signer =
        Signer { server: server.as_str(), signatures: theirs.iter().map(|(id, s)| (id.as_str(), *s)).collect() };
    let at_ms = sign::event::key_time(event.version(), event.origin_server_ts());
    let names: Vec<_> = theirs.iter().map(|(id, _)| (server.to_owned(), id.clone())).collect();
    let keys = rooms.0.parts.remote.keys();
    keys.fetch(&names, at_ms).await?;
    // A handful of signatures of one event: not worth a thread.
    sign::event::check_signer(&signer, &event.signed_message(), at_ms, &keys)?;
    // Our signature must still be on the event; that it is the same event is already checked.
    sign::event::check_event(&signed, &keys)?;
    Ok(signed)
}

async fn ask_signature(
    rooms: &Rooms,
    server: &ServerName,
    event: &Event,
    room_state: Vec<Box<RawValue>>,
) -> Result<Box<RawValue>> {
    #[derive(serde::Deserialize)]
    struct Signed {
        event: Box<RawValue>,
    }
    let target = |api: &str| {
        let (room, id) = (encode(event.room_id().as_str()), encode(event.id().as_str()));
        format!("/_matrix/federation/{api}/invite/{room}/{id}")
    };
    let raw = std::str::from_utf8(event.to_federation()).map_err(|_| Reject::json("not text"))?;
    let state: Vec<&str> = room_state.iter().map(|event| event.get()).collect();
    let (version, state) = (json!(event.version().id), format!("[{}]", state.join(",")));
    let body = format!("{{\"event\":{raw},\"room_version\":{version},\"invite_room_state\":{state}}}");
    let remote = &rooms.0.parts.remote;
    let answer = remote.request(server, Method::PUT, &target("v2"), Some(body.into_bytes()), asking()).await;
    match answer {
        Err(failed) if event.version().event_id_in_event() && is_unknown_path(&failed) => {
            let inner = raw.strip_suffix('}').ok_or_else(|| Reject::json("not an object"))?;
            let body = format!("{inner},\"unsigned\":{{\"invite_room_state\":{state}}}}}").into_bytes();
            let answer = remote.request(server, Method::PUT, &target("v1"), Some(body), asking()).await?;
            let ((_, signed), _paid) = answer.json::<(u16, Signed)>()?;
            Ok(signed.event)
        }
        answer => {
            let (signed, _paid) = answer?.json::<Signed>()?;
            Ok(signed.event)
        }
    }
}

/// One server's signatures on an event.
fn signature_of(event: &Event, server: &ServerName) -> Result<Vec<(String, [u8; 64])>> {
    use base64::Engine;
    let by = text::read::get_path(event.to_federation(), &["signatures", server.as_str()]).unwrap_or(b"{}");
    let each = text::read::members(by).take(scan::SIGNATURES_TRIED_MAX).filter_map(|(id, signature)| {
        let signature = scan::BASE64.decode(&*text::read::text(signature)?).ok()?.try_into().ok()?;
        Some((String::from_utf8(id.to_vec()).ok()?, signature))
    });
    let found: Vec<_> = each.collect();
    match found.is_empty() {
        true => Err(Error::Remote(Failed::BadAnswer(format!("{server} did not sign the invite")))),
        false => Ok(found),
    }
}

/// Whether this server is in the room. Refuses an invite for a user without an account here.
fn is_ours_already(read: &Read, target: &UserId, room_id: &RoomId) -> Result<bool> {
    let account = match user::num(read, target.as_str())? {
        Some(num) => user::account(read, num)?,
        None => None,
    };
    if account.is_none_or(|account| account.standing != user::Standing::Active) {
        return Err(Error::NotFound);
    }
    match room::num(read, room_id.as_str())? {
        Some(num) => Ok(room::get_of(read, num)?.status == room::Status::Resident),
        None => Ok(false),
    }
}

pub async fn offer(rooms: &Rooms, room_id: &RoomId, new: New) -> Result<OwnedEventId> {
    let inviter = new.sender.clone();
    let built = build_for_others(rooms, room_id, new).await?;
    let built = send::signed_by_policy(rooms, built).await?;
    let shown = stripped::shown_state_of(rooms, room_id, Some(&inviter)).await?;
    let event = sign(rooms, &built.event, shown).await?;
    send::append_built(rooms, Built { event, ..built }, None).await
}

/// Builds an event of ours under the room's lock, to be shown to another server before it is appended.
pub async fn build_for_others(rooms: &Rooms, room_id: &RoomId, new: New) -> Result<Built> {
    let num = state::num_of(rooms, room_id).await?;
    let guard = rooms.lock(num).await;
    send::resolve_ends(rooms, &guard).await?;
    let room_id = room_id.to_owned();
    rooms
        .reading(move |rooms, read| {
            let room = known_to_member(read, &room_id)?;
            blocked::check_entry(read, room_id.as_str(), new.content["membership"].as_str())?;
            send::build(rooms, read, &room, new)
        })
        .await
}
