//! The authorisation rules of room versions 1 to 12 (each version's page, "Authorization rules"), in the specification's
//! order.
//!
//! [`check_auth_events`] judges the events that an event cites; [`check`] judges the event against a state, and is
//! called three times on receipt: with the cited events as the state, with the state before the event, and with the
//! current state. The state is a trait of already parsed views, so that a large room's power levels are parsed once and
//! most member events are decided without reading any event at all. Files: `power.rs` (levels), `join_rule.rs` (create
//! and join rules), `member.rs`.

mod join_rule;
mod member;
mod power;
#[cfg(test)]
mod tests;

pub use join_rule::{Create, JoinRule};
pub use member::{Change, Membership, check_member};
pub use power::{INFINITE, Named, PowerLevels, Powers};

use super::Reject;
use super::event::Event;
use super::format::is_short;
use super::json;
use super::version::RoomVersion;
use ruma::{EventId, RoomId, UserId};
use std::borrow::Cow;
use std::sync::Arc;

/// The room state an event is judged against, as the rules read it. Each method is asked only when a rule needs it.
pub trait State {
    type Error: From<Reject>;

    fn create(&self) -> Result<Option<Arc<Create>>, Self::Error>;
    fn power_levels(&self) -> Result<Option<Arc<PowerLevels>>, Self::Error>;
    fn join_rule(&self) -> Result<Option<JoinRule>, Self::Error>;
    /// [`Membership::Leave`] for a user without a member event.
    fn membership(&self, user: &UserId) -> Result<Membership, Self::Error>;
    /// The `m.room.third_party_invite` event with this token as its state key.
    fn third_party_invite(&self, token: &str) -> Result<Option<Arc<Event>>, Self::Error>;
}

/// A state whose events are looked up one by one; parses on every question. Right for a handful of questions.
pub struct Lookup<F> {
    version: &'static RoomVersion,
    get: F,
}

impl<E: From<Reject>, F: Fn(&str, &str) -> Result<Option<Arc<Event>>, E>> Lookup<F> {
    /// `get` finds the state event of a type and state key.
    pub fn new(version: &'static RoomVersion, get: F) -> Lookup<F> {
        Lookup { version, get }
    }
}

impl<E: From<Reject>, F: Fn(&str, &str) -> Result<Option<Arc<Event>>, E>> State for Lookup<F> {
    type Error = E;

    fn create(&self) -> Result<Option<Arc<Create>>, E> {
        let event = (self.get)("m.room.create", "")?;
        event.map(|e| Ok(Arc::new(Create::parse(self.version, &e.subject())?))).transpose()
    }
    fn power_levels(&self) -> Result<Option<Arc<PowerLevels>>, E> {
        let event = (self.get)("m.room.power_levels", "")?;
        event.map(|e| Ok(Arc::new(PowerLevels::parse(self.version, e.content())?))).transpose()
    }
    fn join_rule(&self) -> Result<Option<JoinRule>, E> {
        let event = (self.get)("m.room.join_rules", "")?;
        event.map(|e| Ok(JoinRule::parse(e.content())?)).transpose()
    }
    fn membership(&self, user: &UserId) -> Result<Membership, E> {
        let event = (self.get)("m.room.member", user.as_str())?;
        Ok(event.and_then(|e| Membership::of_content(e.content())).unwrap_or(Membership::Leave))
    }
    fn third_party_invite(&self, token: &str) -> Result<Option<Arc<Event>>, E> {
        (self.get)("m.room.third_party_invite", token)
    }
}

/// The event being judged, as far as the rules look at it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub id: &'a EventId,
    pub kind: &'a str,
    pub state_key: Option<&'a str>,
    pub sender: &'a UserId,
    /// None in the create event of a version 12 room.
    pub room_id: Option<&'a RoomId>,
    /// Canonical JSON.
    pub content: &'a str,
    pub has_prev_events: bool,
    /// The previous event, if there is exactly one.
    pub only_prev_event: Option<&'a EventId>,
    pub redacts: Option<&'a EventId>,
}

impl Event {
    pub fn subject(&self) -> Subject<'_> {
        let mut prev = self.prev_events();
        let first = prev.next();
        Subject {
            id: self.id(),
            kind: self.kind(),
            state_key: self.state_key(),
            sender: self.sender(),
            room_id: self.get("room_id").is_some().then(|| self.room_id()),
            content: self.content(),
            has_prev_events: first.is_some(),
            only_prev_event: first.filter(|_| prev.next().is_none()),
            redacts: self.redacts(),
        }
    }
}

/// Judges an event against a state. Checks everything but its auth events.
pub fn check<S: State>(version: &RoomVersion, event: &Subject<'_>, state: &S) -> Result<(), S::Error> {
    if !is_short(event.kind) || !event.state_key.is_none_or(is_short) {
        return Err(Reject::auth("the type or state key is longer than 255 bytes").into());
    }
    if event.kind == "m.room.create" {
        return Ok(join_rule::check_create(version, event)?);
    }
    let create = state.create()?.ok_or_else(|| Reject::auth("the room has no create event"))?;
    if !create.federate && create.sender.server_name() != event.sender.server_name() {
        return Err(
            Reject::auth("the room is not federated (m.federate) and the sender belongs to another server").into()
        );
    }
    if version.aliases_special && event.kind == "m.room.aliases" {
        return Ok(check_aliases(event)?);
    }
    if event.kind == "m.room.member" {
        let change = Change::parse(version, event)?;
        return check_member(version, &change, &create, state);
    }
    if state.membership(event.sender)? != Membership::Join {
        return Err(Reject::auth("the sender is not joined").into());
    }
    let levels = state.power_levels()?;
    let powers = Powers::new(version, &create, levels.as_deref());
    Ok(check_with_power(version, event, &powers)?)
}

/// The rules for a joined sender.
fn check_with_power(version: &RoomVersion, event: &Subject<'_>, powers: &Powers<'_>) -> Result<(), Reject> {
    let level = powers.user(event.sender);
    if event.kind == "m.room.third_party_invite" {
        return need(level >= powers.named(Named::Invite), "the sender may not invite");
    }
    if level < powers.event(event.kind, event.state_key.is_some()) {
        return Err(Reject::auth(format!("the sender may not send {}", event.kind)));
    }
    if event.state_key.is_some_and(|key| key.starts_with('@') && key != event.sender) {
        return Err(Reject::auth("the state key is the user ID of another user"));
    }
    match event.kind {
        "m.room.power_levels" => power::check_change(version, event, powers, level),
        "m.room.redaction" if version.redaction_authorised => check_redaction(event, powers, level),
        _ => Ok(()),
    }
}

fn check_aliases(event: &Subject<'_>) -> Result<(), Reject> {
    let own = event.state_key == Some(event.sender.server_name().as_str());
    need(own, "a server may set only its own aliases")
}

/// Versions 1 and 2.
fn check_redaction(event: &Subject<'_>, powers: &Powers<'_>, level: i64) -> Result<(), Reject> {
    let same_server = event.id.server_name() == event.redacts.and_then(|id| id.server_name());
    need(level >= powers.named(Named::Redact) || same_server, "the sender may not redact that event")
}

/// Whether a redaction that stands in the room takes effect on its target (version 3 and later: only when the sender
/// may redact, or their server sent the target; before, the rules decided it when the redaction was sent).
pub fn redaction_applies(version: &RoomVersion, redaction: &Event, target: &Event, powers: &Powers<'_>) -> bool {
    version.redaction_authorised
        || powers.user(redaction.sender()) >= powers.named(Named::Redact)
        || redaction.sender().server_name() == target.sender().server_name()
}

/// The state an event must cite as far as it exists (server-server API, "Auth events selection"); at most six pairs of type
/// and state key. Refuses a member event whose content cannot be read.
pub fn auth_types_for_event<'a>(
    version: &RoomVersion,
    kind: &str,
    sender: &'a UserId,
    state_key: Option<&'a str>,
    content: &'a str,
) -> Result<Vec<(&'static str, Cow<'a, str>)>, Reject> {
    if kind == "m.room.create" {
        return Ok(Vec::new());
    }
    let mut types = Vec::with_capacity(6);
    if !version.room_id_is_create_hash() {
        types.push(("m.room.create", Cow::Borrowed("")));
    }
    types.push(("m.room.power_levels", Cow::Borrowed("")));
    types.push(("m.room.member", Cow::Borrowed(sender.as_str())));
    if kind == "m.room.member" {
        member::add_auth_types(version, state_key, content, &mut types)?;
    }
    Ok(types)
}

/// One of the `auth_events` of an event, as we know it.
#[derive(Debug, Clone, Copy)]
pub struct Cited<'a> {
    pub kind: &'a str,
    pub state_key: Option<&'a str>,
    pub same_room: bool,
    pub rejected: bool,
}

/// Judges the list of events an event cites. `create_accepted`: for version 12, whether the create event named by its
/// room id is known and was not rejected.
pub fn check_auth_events<'c>(
    version: &RoomVersion,
    event: &Subject<'_>,
    cited: impl Iterator<Item = Cited<'c>>,
    create_accepted: bool,
) -> Result<(), Reject> {
    if event.kind == "m.room.create" {
        return Ok(());
    }
    let expected = auth_types_for_event(version, event.kind, event.sender, event.state_key, event.content)?;
    let mut seen = 0u32;
    for one in cited {
        need(one.same_room, "an auth event belongs to another room")?;
        let state_key = one.state_key.ok_or_else(|| Reject::auth("an auth event is not a state event"))?;
        let at = expected.iter().position(|(kind, key)| *kind == one.kind && key == state_key);
        let at = at.ok_or_else(|| Reject::auth(format!("auth event {} {state_key:?} is not needed", one.kind)))?;
        need(seen & (1 << at) == 0, "two auth events of the same type and state key")?;
        need(!one.rejected, "an auth event was rejected")?;
        seen |= 1 << at;
    }
    if version.room_id_is_create_hash() {
        return need(create_accepted, "the room ID does not match an accepted create event");
    }
    let create = expected.iter().position(|(kind, _)| *kind == "m.room.create");
    need(create.is_some_and(|at| seen & (1 << at) != 0), "the auth events contain no create event")
}

fn need(holds: bool, otherwise: &'static str) -> Result<(), Reject> {
    if holds { Ok(()) } else { Err(Reject::auth(otherwise)) }
}

/// A string in canonical content; an error if something else stands there.
fn content_text<'a>(content: &'a str, key: &'static str) -> Result<Option<Cow<'a, str>>, Reject> {
    match json::read::get(content.as_bytes(), key) {
        None | Some(b"null") => Ok(None),
        Some(value) => json::read::text(value).map(Some).ok_or_else(|| Reject::auth(format!("{key} is not a string"))),
    }
}
