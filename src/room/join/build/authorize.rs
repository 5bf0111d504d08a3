//! The authorisation rules for a whole room at once: parents first, on columns.
//!
//! Nearly all events of a large room are memberships, and nearly all of those are decided by the sender, the target,
//! the old and the new membership, and the power levels; five bytes an event and the power levels parsed once hold all
//! of that. An event that the columns allow is allowed. An event that they do not allow, or cannot decide (a restricted
//! join, an invite by e-mail, the creator's first join, any event that is no membership), is authorised again with its
//! body in hand. Both ways ask the same rules of `matrix::auth`; only how much of the event is known differs.

use std::collections::HashMap;
use std::sync::Arc;

use ruma::{EventId, OwnedUserId, UserId};

use crate::matrix::auth::{self, Cited, Create, JoinRule, PowerLevels};
use crate::matrix::{Event, Reject, RoomVersion};
use crate::store::tables::room::event_row::{Kind, Membership};
use crate::store::{BodyNum, UserNum};

/// The fields of an auth event that the rules need beside its body, in five bytes per event.
pub struct Columns {
    codes: Vec<u8>,
    targets: Vec<UserNum>,
    /// Body and sender of power levels, join rules, invites by e-mail and the create event; the bodies of all other
    /// events are never read.
    bodies: HashMap<u32, (BodyNum, UserNum)>,
}

/// Bytes of memory per event, for the account.
pub const COLUMN_BYTES: u64 = 5;
/// Auth events with a body that may be asked for, at most: 24 bytes each. An event beyond that counts as no auth event;
/// the largest rooms have a few hundred.
const BODIES_MAX: usize = 20_000;

/// One event's columns, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub role: Role,
    pub member: Option<(Membership, UserNum)>,
    /// Stored and accepted; anything else cannot be an auth event.
    pub usable: bool,
}

/// The role of an event for the authorisation of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    Other = 0,
    Create = 1,
    Member = 2,
    PowerLevels = 3,
    JoinRules = 4,
    ThirdPartyInvite = 5,
}

impl Role {
    /// By type and state key: the rules know levels, rules and create events under the empty key only.
    pub fn of(kind: Kind, state_key: Option<&str>, is_member: bool) -> Role {
        match (kind, state_key) {
            (Kind::MEMBER, _) if is_member => Role::Member,
            (Kind::CREATE, Some("")) => Role::Create,
            (Kind::POWER_LEVELS, Some("")) => Role::PowerLevels,
            (Kind::JOIN_RULES, Some("")) => Role::JoinRules,
            (Kind::THIRD_PARTY_INVITE, Some(_)) => Role::ThirdPartyInvite,
            _ => Role::Other,
        }
    }

    fn from_code(code: u8) -> Role {
        match code {
            1 => Role::Create,
            2 => Role::Member,
            3 => Role::PowerLevels,
            4 => Role::JoinRules,
            5 => Role::ThirdPartyInvite,
            _ => Role::Other,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Role::Other => "",
            Role::Create => "m.room.create",
            Role::Member => "m.room.member",
            Role::PowerLevels => "m.room.power_levels",
            Role::JoinRules => "m.room.join_rules",
            Role::ThirdPartyInvite => "m.room.third_party_invite",
        }
    }
}

const USABLE: u8 = 0x80;

impl Columns {
    /// Columns of events placed 0 to `count`; all unusable until set.
    pub fn new(count: u32) -> Columns {
        let count = count as usize;
        Columns { codes: vec![0; count], targets: vec![UserNum(0); count], bodies: HashMap::new() }
    }

    pub fn set(&mut self, place: u32, mut column: Column, body: BodyNum, sender: UserNum) {
        if !matches!(column.role, Role::Other | Role::Member) {
            if self.bodies.len() < BODIES_MAX {
                self.bodies.insert(place, (body, sender));
            } else {
                column.role = Role::Other;
            }
        }
        let membership = column.member.map_or(0, |(membership, _)| membership as u8);
        let code = column.role as u8 | membership << 3 | if column.usable { USABLE } else { 0 };
        self.codes[place as usize] = code;
        self.targets[place as usize] = column.member.map_or(UserNum(0), |(_, target)| target);
    }

    pub fn get(&self, place: u32) -> Column {
        let (code, target) = (self.codes[place as usize], self.targets[place as usize]);
        Column {
            role: Role::from_code(code & 7),
            member: Membership::from_code(code >> 3 & 7).map(|membership| (membership, target)),
            usable: code & USABLE != 0,
        }
    }
}

/// An event to be authorised.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub place: u32,
    pub body: BodyNum,
    pub role: Role,
    pub sender: UserNum,
    /// For member events: the target and the new membership.
    pub member: Option<(Membership, UserNum)>,
    pub needs_body: bool,
    /// Places of its auth events.
    pub auth: &'a [u32],
    /// For a create event: its id, which the creator's first join must follow.
    pub id: Option<&'a EventId>,
}

/// The source of bodies and names when columns do not decide: the store, through the caller.
pub trait Bodies {
    type Error;

    /// The event under this body number, of this sender and, a membership, about this user. Its id, its `auth_events`,
    /// its depth and its time are arbitrary.
    fn event(&self, body: BodyNum, sender: UserNum, target: Option<UserNum>) -> Result<Event, Self::Error>;
    fn user(&self, num: UserNum) -> Result<OwnedUserId, Self::Error>;
}

/// Bytes of the texts whose parsed levels, and parsed rules, are kept at once: eight of the longest. A room has some dozens
/// of generations of each, of a few kilobytes, and its events name them by turns.
const PARSED_BYTES_MAX: usize = 8 * (64 << 10);
/// The same in number.
const PARSED_MAX: usize = 256;

/// Authorises a room's events in topological order.
pub struct Authorizer<B> {
    version: &'static RoomVersion,
    bodies: B,
    create: Option<(u32, Arc<Create>)>,
    levels: Parsed<PowerLevels>,
    rules: Parsed<JoinRule>,
    /// Events authorised with their body in hand; the point of the columns is that they are few.
    pub bodies_read: u64,
}

/// A rejection by the rules, or a failure of our own.
enum No<E> {
    Reject(Reject),
    Failed(E),
}

impl<E> From<Reject> for No<E> {
    fn from(reject: Reject) -> Self {
        No::Reject(reject)
    }
}

impl<B: Bodies> Authorizer<B> {
    pub fn new(version: &'static RoomVersion, bodies: B) -> Authorizer<B> {
        Authorizer { version, bodies, create: None, levels: Parsed::new(), rules: Parsed::new(), bodies_read: 0 }
    }

    /// The place of the room's accepted create event.
    pub fn create_place(&self) -> Option<u32> {
        self.create.as_ref().map(|(place, _)| *place)
    }

    /// Authorises an event; `Ok(Err)` is a rejection by the rules.
    pub fn check(&mut self, columns: &Columns, claim: &Claim<'_>) -> Result<Result<(), Reject>, B::Error> {
        if !claim.needs_body
            && let Some(member) = claim.member
            && self.allows(columns, claim, member)?
        {
            return Ok(Ok(()));
        }
        match self.check_with_body(columns, claim) {
            Ok(()) => Ok(Ok(())),
            Err(No::Reject(reject)) => Ok(Err(reject)),
            Err(No::Failed(failed)) => Err(failed),
        }
    }

    /// Whether the columns alone allow a membership. "No" decides nothing.
    fn allows(
        &mut self,
        columns: &Columns,
        claim: &Claim<'_>,
        (membership, target): (Membership, UserNum),
    ) -> Result<bool, B::Error> {
        let Some(cites) = self.cites(columns, claim, (membership, target))? else { return Ok(false) };
        let Some((_, create)) = self.create.clone().filter(|(_, create)| create.federate) else { return Ok(false) };
        // For a user's change of their own membership the rules only compare sender and target: the name is not looked
        // up.
        let (sender, target) = match claim.sender == target {
            true => (nobody(), nobody()),
            false => (self.bodies.user(claim.sender)?, self.bodies.user(target)?),
        };
        let change = auth::Change {
            sender: &sender,
            target: &target,
            membership: spelled(membership),
            only_prev_event: None,
            content: "{}",
        };
        let state = CitedByMember { create: create.clone(), sender: &sender, cites: &cites };
        Ok(auth::check_member(self.version, &change, &create, &state).is_ok())
    }

    /// The auth events of a membership, when they are exactly those it may cite.
    fn cites(
        &mut self,
        columns: &Columns,
        claim: &Claim<'_>,
        (membership, target): (Membership, UserNum),
    ) -> Result<Option<Cites>, B::Error> {
        let mut cites = Cites::default();
        let mut has_create = false;
        for &place in claim.auth {
            let column = columns.get(place);
            let is_first = column.usable
                && match (column.role, column.member) {
                    (Role::Create, _) => !std::mem::replace(&mut has_create, true),
                    (Role::PowerLevels, _) => match self.levels_at(columns, place)? {
                        Some(levels) => cites.levels.replace(levels).is_none(),
                        None => false,
                    },
                    (Role::JoinRules, _) if wants_join_rules(membership) => match self.rule_at(columns, place)? {
                        Some(rule) => cites.rule.replace(rule).is_none(),
                        None => false,
                    },
                    (Role::Member, Some((what, whom))) if whom == claim.sender => {
                        cites.of_sender.replace(spelled(what)).is_none()
                    }
                    (Role::Member, Some((what, whom))) if whom == target => {
                        cites.of_target.replace(spelled(what)).is_none()
                    }
                    _ => false,
                };
            if !is_first {
                return Ok(None);
            }
        }
        if claim.sender == target {
            cites.of_target = cites.of_sender;
        }
        Ok((has_create != self.version.room_id_is_create_hash()).then_some(cites))
    }

    /// The levels at a place; `None` when they cannot be read, which the rules then report with the body in hand.
    fn levels_at(&mut self, columns: &Columns, place: u32) -> Result<Option<Arc<PowerLevels>>, B::Error> {
        if let Some(levels) = self.levels.get(place) {
            return Ok(Some(levels));
        }
        let Some(&(body, sender)) = columns.bodies.get(&place) else { return Ok(None) };
        let event = self.bodies.event(body, sender, None)?;
        let levels = PowerLevels::parse(self.version, event.content());
        Ok(levels.ok().map(|levels| self.levels.put(place, levels, event.content().len())))
    }

    fn rule_at(&mut self, columns: &Columns, place: u32) -> Result<Option<Arc<JoinRule>>, B::Error> {
        if let Some(rule) = self.rules.get(place) {
            return Ok(Some(rule));
        }
        let Some(&(body, sender)) = columns.bodies.get(&place) else { return Ok(None) };
        let event = self.bodies.event(body, sender, None)?;
        let rule = JoinRule::parse(event.content());
        Ok(rule.ok().map(|rule| self.rules.put(place, rule, event.content().len())))
    }

    /// The full rules, over the full event.
    fn check_with_body(&mut self, columns: &Columns, claim: &Claim<'_>) -> Result<(), No<B::Error>> {
        self.bodies_read += 1;
        let target = claim.member.map(|(_, target)| target);
        let event = self.bodies.event(claim.body, claim.sender, target).map_err(No::Failed)?;
        let state = self.cited(columns, claim)?;
        let list = state.cited.iter().map(|one| Cited {
            kind: one.column.role.kind(),
            state_key: one.state_key.as_deref(),
            same_room: true,
            rejected: !one.column.usable,
        });
        auth::check_auth_events(self.version, &event.subject(), list, self.create.is_some())?;
        auth::check(self.version, &event.subject(), &state)?;
        if claim.role == Role::Create && self.create.is_none() {
            let mut subject = event.subject();
            subject.id = claim.id.unwrap_or(subject.id);
            self.set_create(claim.place, &subject)?;
        }
        Ok(())
    }

    /// Sets the room's create event, when it was authorised before.
    pub fn set_create(&mut self, place: u32, event: &auth::Subject<'_>) -> Result<(), Reject> {
        if self.create.is_none() {
            self.create = Some((place, Arc::new(Create::parse(self.version, event)?)));
        }
        Ok(())
    }

    /// The state an event cites, as far as rules may ask for it.
    fn cited(&mut self, columns: &Columns, claim: &Claim<'_>) -> Result<CitedState<B::Error>, No<B::Error>> {
        let create = self.create.as_ref().map(|(_, create)| create.clone());
        let mut state = CitedState { create, levels: None, rule: None, cited: Vec::new(), failed: Default::default() };
        for &place in claim.auth {
            let column = columns.get(place);
            let (mut state_key, mut event) = (Some(String::new()), None);
            match (column.role, column.member) {
                (Role::Member, Some((_, target))) => {
                    state_key = Some(self.bodies.user(target).map_err(No::Failed)?.into());
                }
                (Role::ThirdPartyInvite, _) => {
                    let (body, sender) = columns.bodies.get(&place).copied().unwrap_or_default();
                    let invite = self.bodies.event(body, sender, None).map_err(No::Failed)?;
                    state_key = invite.state_key().map(str::to_owned);
                    event = Some(Arc::new(invite));
                }
                (Role::PowerLevels, _) => state.levels = self.levels_at(columns, place).map_err(No::Failed)?,
                (Role::JoinRules, _) => state.rule = self.rule_at(columns, place).map_err(No::Failed)?,
                _ => {}
            }
            state.cited.push(One { column, state_key, event });
        }
        Ok(state)
    }
}

fn wants_join_rules(membership: Membership) -> bool {
    matches!(membership, Membership::Join | Membership::Invite | Membership::Knock)
}

fn nobody() -> OwnedUserId {
    OwnedUserId::try_from("@self:self").expect("a constant user id is one")
}

fn spelled(membership: Membership) -> auth::Membership {
    match membership {
        Membership::Join => auth::Membership::Join,
        Membership::Invite => auth::Membership::Invite,
        Membership::Knock => auth::Membership::Knock,
        Membership::Leave => auth::Membership::Leave,
        Membership::Ban => auth::Membership::Ban,
    }
}

/// The auth events of a membership, from the columns.
#[derive(Default)]
struct Cites {
    levels: Option<Arc<PowerLevels>>,
    rule: Option<Arc<JoinRule>>,
    of_sender: Option<auth::Membership>,
    of_target: Option<auth::Membership>,
}

/// The same in the form that the rules expect.
struct CitedByMember<'a> {
    create: Arc<Create>,
    sender: &'a UserId,
    cites: &'a Cites,
}

impl auth::State for CitedByMember<'_> {
    type Error = Reject;

    fn create(&self) -> Result<Option<Arc<Create>>, Reject> {
        Ok(Some(self.create.clone()))
    }
    fn power_levels(&self) -> Result<Option<Arc<PowerLevels>>, Reject> {
        Ok(self.cites.levels.clone())
    }
    fn join_rule(&self) -> Result<Option<JoinRule>, Reject> {
        Ok(self.cites.rule.as_deref().copied())
    }
    fn membership(&self, user: &UserId) -> Result<auth::Membership, Reject> {
        let known = if user == self.sender { self.cites.of_sender } else { self.cites.of_target };
        Ok(known.unwrap_or(auth::Membership::Leave))
    }
    fn third_party_invite(&self, _: &str) -> Result<Option<Arc<Event>>, Reject> {
        Ok(None)
    }
}

/// An auth event with its state key as text, and its body where a rule may need it.
struct One {
    column: Column,
    state_key: Option<String>,
    event: Option<Arc<Event>>,
}

struct CitedState<E> {
    create: Option<Arc<Create>>,
    levels: Option<Arc<PowerLevels>>,
    rule: Option<Arc<JoinRule>>,
    cited: Vec<One>,
    failed: std::marker::PhantomData<fn() -> E>,
}

impl<E> auth::State for CitedState<E> {
    type Error = No<E>;

    fn create(&self) -> Result<Option<Arc<Create>>, No<E>> {
        Ok(self.create.clone())
    }
    fn power_levels(&self) -> Result<Option<Arc<PowerLevels>>, No<E>> {
        let unread = self.levels.is_none() && self.cited.iter().any(|one| one.column.role == Role::PowerLevels);
        if unread { Err(Reject::auth("the power levels cannot be read").into()) } else { Ok(self.levels.clone()) }
    }
    fn join_rule(&self) -> Result<Option<JoinRule>, No<E>> {
        Ok(self.rule.as_deref().copied())
    }
    fn membership(&self, user: &UserId) -> Result<auth::Membership, No<E>> {
        let member = self
            .cited
            .iter()
            .find(|one| one.column.role == Role::Member && one.state_key.as_deref() == Some(user.as_str()));
        let membership = member.and_then(|one| one.column.member).map(|(membership, _)| spelled(membership));
        Ok(membership.unwrap_or(auth::Membership::Leave))
    }
    fn third_party_invite(&self, token: &str) -> Result<Option<Arc<Event>>, No<E>> {
        let invite = self
            .cited
            .iter()
            .find(|one| one.column.role == Role::ThirdPartyInvite && one.state_key.as_deref() == Some(token));
        Ok(invite.and_then(|one| one.event.clone()))
    }
}

/// The views used last, by place.
struct Parsed<T> {
    /// When each was last used, and the bytes of its text.
    list: HashMap<u32, (u64, usize, Arc<T>)>,
    turn: u64,
    bytes: usize,
}

impl<T> Parsed<T> {
    fn new() -> Parsed<T> {
        Parsed { list: HashMap::new(), turn: 0, bytes: 0 }
    }

    fn get(&mut self, place: u32) -> Option<Arc<T>> {
        self.turn += 1;
        let (used, _, view) = self.list.get_mut(&place)?;
        *used = self.turn;
        Some(view.clone())
    }

    /// Keeps a view whose text has so many bytes, in the place of those used longest ago.
    fn put(&mut self, place: u32, view: T, bytes: usize) -> Arc<T> {
        while !self.list.is_empty() && (self.list.len() >= PARSED_MAX || self.bytes + bytes > PARSED_BYTES_MAX) {
            let oldest = self.list.iter().min_by_key(|(_, (used, ..))| *used).map(|(place, _)| *place);
            let gone = oldest.and_then(|oldest| self.list.remove(&oldest));
            self.bytes -= gone.map_or(0, |(_, bytes, _)| bytes);
        }
        let view = Arc::new(view);
        self.bytes += bytes;
        if let Some((_, before, _)) = self.list.insert(place, (self.turn, bytes, view.clone())) {
            self.bytes -= before;
        }
        view
    }
}
