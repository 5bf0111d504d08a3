//! The authorisation rules for memberships, decided on columns.
//!
//! Nearly all events of a large room are memberships, and nearly all of those are decided by who, whom, from what to
//! what, and three levels. This file decides exactly those; whatever hangs on more (a restricted join, an invite by
//! e-mail, the creator's first join) is left to `matrix::auth` with the bodies in hand. Where both can decide they
//! agree; a test asks both.
//!
//! Follows "Authorization rules" of the room versions' pages, rule for `m.room.member`.

use serde_json::Value;

use crate::matrix::RoomVersion;
use crate::store::num::UserNum;
use crate::store::tables::event::{Kind, Membership};

/// What the rules need of an auth event beside its body, in five bytes per event.
pub struct Columns {
    codes: Vec<u8>,
    targets: Vec<UserNum>,
}

/// Bytes of memory per event, for the account.
pub const COLUMN_BYTES: u64 = 5;

/// One event's columns, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub role: Role,
    pub member: Option<(Membership, UserNum)>,
    /// Absent, refused, or resting on something refused: cannot be an auth event.
    pub usable: bool,
}

/// What an event can be to the rules.
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
    pub fn of(kind: Kind) -> Role {
        match kind {
            Kind::CREATE => Role::Create,
            Kind::MEMBER => Role::Member,
            Kind::POWER_LEVELS => Role::PowerLevels,
            Kind::JOIN_RULES => Role::JoinRules,
            Kind::THIRD_PARTY_INVITE => Role::ThirdPartyInvite,
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
}

const USABLE: u8 = 0x80;

impl Columns {
    /// Columns of events placed 0 to `count`; all unusable until set.
    pub fn new(count: u32) -> Columns {
        Columns { codes: vec![0; count as usize], targets: vec![UserNum(0); count as usize] }
    }

    pub fn set(&mut self, place: u32, column: Column) {
        let membership = column.member.map_or(0, |(membership, _)| membership as u8);
        self.codes[place as usize] = column.role as u8 | membership << 3 | if column.usable { USABLE } else { 0 };
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

/// What is asked: may `sender` set `target` to `membership`?
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    pub sender: UserNum,
    pub target: UserNum,
    pub membership: Membership,
}

/// What the event's auth events say.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    pub join_rule: JoinRule,
    pub levels: &'a Levels,
    /// Memberships of sender and target by the auth events.
    pub of_sender: Option<Membership>,
    pub of_target: Option<Membership>,
}

/// A join rule as the rules tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinRule {
    Public,
    Invite,
    Knock,
    Restricted,
    KnockRestricted,
    /// Anything else lets nobody in.
    Other,
}

impl JoinRule {
    /// By the content of a join rules event.
    pub fn of(content: &str) -> JoinRule {
        match crate::matrix::json::get_text(content.as_bytes(), "join_rule").as_deref() {
            Some("public") => JoinRule::Public,
            Some("invite") => JoinRule::Invite,
            Some("knock") => JoinRule::Knock,
            Some("restricted") => JoinRule::Restricted,
            Some("knock_restricted") => JoinRule::KnockRestricted,
            _ => JoinRule::Other,
        }
    }

    fn lets_invited_in(self, version: &RoomVersion) -> bool {
        match self {
            JoinRule::Invite => true,
            JoinRule::Knock => version.knock,
            JoinRule::Restricted => version.restricted,
            JoinRule::KnockRestricted => version.knock_restricted,
            JoinRule::Public | JoinRule::Other => false,
        }
    }

    fn lets_knock(self, version: &RoomVersion) -> bool {
        match self {
            JoinRule::Knock => version.knock,
            JoinRule::KnockRestricted => version.knock_restricted,
            _ => false,
        }
    }
}

/// The levels memberships hang on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    pub ban: i64,
    pub kick: i64,
    pub invite: i64,
    users_default: i64,
    /// Sorted; at most what fits a 64 KiB event.
    users: Vec<(UserNum, i64)>,
    /// Above every level (room version 12).
    creators: Vec<UserNum>,
}

impl Levels {
    /// Without a power levels event: the creator has 100, and bans and kicks take 50.
    pub fn before_any(version: &RoomVersion, creators: &[UserNum]) -> Levels {
        let mut levels = Levels { ban: 50, kick: 50, invite: 0, users_default: 0, users: Vec::new(), creators: Vec::new() };
        levels.set_creators(version, creators, 100);
        levels
    }

    /// By the content of a power levels event. `None` where a level is written in a way that is not ours to read.
    pub fn of(
        version: &RoomVersion,
        content: &str,
        creators: &[UserNum],
        num: &mut dyn FnMut(&str) -> Option<UserNum>,
    ) -> Option<Levels> {
        let content: Value = serde_json::from_str(content).ok()?;
        let level = |value: Option<&Value>, default: i64| match value {
            None => Some(default),
            Some(Value::Number(number)) => number.as_i64(),
            Some(_) => None,
        };
        let mut users = Vec::new();
        match content.get("users") {
            None => {}
            Some(Value::Object(list)) => {
                for (user, value) in list {
                    let value = level(Some(value), 0)?;
                    users.extend(num(user).map(|num| (num, value)));
                }
            }
            Some(_) => return None,
        }
        users.sort_unstable();
        let mut levels = Levels {
            ban: level(content.get("ban"), 50)?,
            kick: level(content.get("kick"), 50)?,
            invite: level(content.get("invite"), 0)?,
            users_default: level(content.get("users_default"), 0)?,
            users,
            creators: Vec::new(),
        };
        if version.creators_infinite {
            levels.creators = creators.to_vec();
        }
        Some(levels)
    }

    fn set_creators(&mut self, version: &RoomVersion, creators: &[UserNum], level: i64) {
        if version.creators_infinite {
            self.creators = creators.to_vec();
        } else {
            self.users = creators.iter().map(|creator| (*creator, level)).collect();
        }
    }

    fn of_user(&self, user: UserNum) -> i64 {
        if self.creators.contains(&user) {
            return i64::MAX;
        }
        match self.users.binary_search_by_key(&user, |(user, _)| *user) {
            Ok(at) => self.users[at].1,
            Err(_) => self.users_default,
        }
    }
}

/// Whether the rules allow a membership. `None`: not to be decided on columns.
pub fn check(version: &RoomVersion, claim: Claim, given: Given<'_>) -> Option<Result<(), &'static str>> {
    match claim.membership {
        Membership::Join => check_join(version, claim, given),
        Membership::Invite => Some(check_invite(claim, given)),
        Membership::Leave => Some(check_leave(version, claim, given)),
        Membership::Ban => Some(check_ban(claim, given)),
        Membership::Knock => Some(check_knock(version, claim, given)),
    }
}

fn check_join(version: &RoomVersion, claim: Claim, given: Given<'_>) -> Option<Result<(), &'static str>> {
    if claim.sender != claim.target {
        return Some(Err("somebody joins for somebody else"));
    }
    if given.of_target == Some(Membership::Ban) {
        return Some(Err("a banned user joins"));
    }
    if given.join_rule == JoinRule::Public {
        return Some(Ok(()));
    }
    let was_let_in = matches!(given.of_target, Some(Membership::Join | Membership::Invite));
    if was_let_in && given.join_rule.lets_invited_in(version) {
        return Some(Ok(()));
    }
    // The creator's first join follows the create event alone, which stands in `prev_events`.
    if given.of_target.is_none() { None } else { Some(Err("a user joins who was not let in")) }
}

fn check_invite(claim: Claim, given: Given<'_>) -> Result<(), &'static str> {
    if given.of_sender != Some(Membership::Join) {
        return Err("somebody invites who is not there");
    }
    if matches!(given.of_target, Some(Membership::Join | Membership::Ban)) {
        return Err("a user is invited who is joined or banned");
    }
    if given.levels.of_user(claim.sender) >= given.levels.invite { Ok(()) } else { Err("somebody invites without the power to") }
}

fn check_leave(version: &RoomVersion, claim: Claim, given: Given<'_>) -> Result<(), &'static str> {
    if claim.sender == claim.target {
        return match given.of_target {
            Some(Membership::Join | Membership::Invite) => Ok(()),
            Some(Membership::Knock) if version.knock => Ok(()),
            _ => Err("somebody leaves who is not there"),
        };
    }
    if given.of_sender != Some(Membership::Join) {
        return Err("somebody kicks who is not there");
    }
    let levels = given.levels;
    let power = levels.of_user(claim.sender);
    if given.of_target == Some(Membership::Ban) && power < levels.ban {
        return Err("somebody lifts a ban without the power to");
    }
    let may = power >= levels.kick && levels.of_user(claim.target) < power;
    if may { Ok(()) } else { Err("somebody kicks without the power to") }
}

fn check_ban(claim: Claim, given: Given<'_>) -> Result<(), &'static str> {
    if given.of_sender != Some(Membership::Join) {
        return Err("somebody bans who is not there");
    }
    let power = given.levels.of_user(claim.sender);
    let may = power >= given.levels.ban && given.levels.of_user(claim.target) < power;
    if may { Ok(()) } else { Err("somebody bans without the power to") }
}

fn check_knock(version: &RoomVersion, claim: Claim, given: Given<'_>) -> Result<(), &'static str> {
    if !given.join_rule.lets_knock(version) {
        return Err("somebody knocks where nobody may");
    }
    if claim.sender != claim.target {
        return Err("somebody knocks for somebody else");
    }
    match given.of_sender {
        Some(Membership::Ban | Membership::Invite | Membership::Join) => Err("somebody knocks who is banned or let in"),
        _ => Ok(()),
    }
}
