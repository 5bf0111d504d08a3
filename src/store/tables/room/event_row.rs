//! The columns of an event.

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::store::row_encoding::{Unpack, put_bytes, put_i64, put_u64};
use crate::store::{BodyNum, EventNum, RoomNum, StateKeyNum, UserNum};

/// A state tree (`state_tree/`): the number of its top node. Trees of equal content have equal numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Root(pub(in crate::store) u32);

/// An event type as one byte: the common ones have a code, all others share [`Kind::OTHER`].
///
/// Codes are on disk: append, never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u8);

impl Kind {
    pub const OTHER: Kind = Kind(0);
    pub const CREATE: Kind = Kind(1);
    pub const MEMBER: Kind = Kind(2);
    pub const POWER_LEVELS: Kind = Kind(3);
    pub const JOIN_RULES: Kind = Kind(4);
    pub const HISTORY_VISIBILITY: Kind = Kind(5);
    pub const NAME: Kind = Kind(6);
    pub const TOPIC: Kind = Kind(7);
    pub const AVATAR: Kind = Kind(8);
    pub const CANONICAL_ALIAS: Kind = Kind(9);
    pub const GUEST_ACCESS: Kind = Kind(10);
    pub const ENCRYPTION: Kind = Kind(11);
    pub const TOMBSTONE: Kind = Kind(12);
    pub const SERVER_ACL: Kind = Kind(13);
    pub const THIRD_PARTY_INVITE: Kind = Kind(14);
    pub const PINNED_EVENTS: Kind = Kind(15);
    pub const ALIASES: Kind = Kind(16);
    pub const SPACE_CHILD: Kind = Kind(17);
    pub const SPACE_PARENT: Kind = Kind(18);
    pub const MESSAGE: Kind = Kind(32);
    pub const ENCRYPTED: Kind = Kind(33);
    pub const REACTION: Kind = Kind(34);
    pub const REDACTION: Kind = Kind(35);
    pub const STICKER: Kind = Kind(36);

    /// The code of an event type.
    pub fn of(kind: &str) -> Kind {
        NAMES.iter().find(|(_, name)| *name == kind).map_or(Kind::OTHER, |(kind, _)| *kind)
    }

    /// The event type of a code; `None` for [`Kind::OTHER`], whose type stands in the body.
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(kind, _)| *kind == self).map(|(_, name)| *name)
    }
}

/// A membership, as the member table and event rows spell it. On disk: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Membership {
    Join = 1,
    Invite = 2,
    Knock = 3,
    Leave = 4,
    Ban = 5,
}

impl Membership {
    pub const ALL: [Membership; 5] =
        [Membership::Join, Membership::Invite, Membership::Knock, Membership::Leave, Membership::Ban];

    pub fn of(text: &str) -> Option<Membership> {
        Membership::ALL.into_iter().find(|membership| membership.as_str() == text)
    }

    pub fn from_code(code: u8) -> Option<Membership> {
        Membership::ALL.into_iter().find(|membership| *membership as u8 == code)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Membership::Join => "join",
            Membership::Invite => "invite",
            Membership::Knock => "knock",
            Membership::Leave => "leave",
            Membership::Ban => "ban",
        }
    }
}

/// The flags of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Failed the authorisation rules by its auth events or by the state before it: never in any state, never shown.
    pub rejected: bool,
    /// Allowed where it stands in the history, but not by the room's present state: kept, not shown, not built upon.
    pub soft_failed: bool,
    /// Its content was taken out by a redaction.
    pub redacted: bool,
    /// Known without its place in the history: state and auth events of a join.
    pub outlier: bool,
    /// The state before it was worked out backwards from later events: good enough to show, not for others to build
    /// upon.
    pub guessed: bool,
}

/// Characters of a hash in base64 without padding.
const HASH_CHARS: usize = 43;

/// An event's id as its row keeps it. Rows of version 3 rooms that were written before [`IdForm`] was may have the form
/// of later versions where the text is the same in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Id {
    /// Room versions 4 and later: `$` and the URL-safe base64 of the reference hash.
    Hash([u8; 32]),
    /// Room version 3: the same with the standard alphabet.
    HashStandard([u8; 32]),
    /// Room versions 1 and 2: a name its server chose, kept in the row.
    Named(String),
}

/// What the ids of a room's events are. It follows from the room's version and never from an id: most text is base64 in
/// both alphabets, and an id read in two ways is two ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdForm {
    Hash,
    HashStandard,
    Named,
}

impl Id {
    /// Reads an id. Anything that does not come back exactly is kept as text, so no id is ever changed by storing it.
    pub fn read(form: IdForm, id: &str) -> Id {
        let hash = |alphabet: &GeneralPurpose| {
            let text = id.strip_prefix('$').filter(|text| text.len() == HASH_CHARS)?;
            alphabet.decode(text).ok()?.try_into().ok()
        };
        let read = match form {
            IdForm::Hash => hash(&URL_SAFE_NO_PAD).map(Id::Hash),
            IdForm::HashStandard => hash(&STANDARD_NO_PAD).map(Id::HashStandard),
            IdForm::Named => None,
        };
        read.unwrap_or_else(|| Id::Named(id.to_owned()))
    }

    /// The id as other servers and apps spell it.
    pub fn text(&self) -> String {
        match self {
            Id::Hash(hash) => with_dollar(URL_SAFE_NO_PAD.encode(hash)),
            Id::HashStandard(hash) => with_dollar(STANDARD_NO_PAD.encode(hash)),
            Id::Named(id) => id.clone(),
        }
    }
}

fn with_dollar(text: String) -> String {
    let mut id = String::with_capacity(text.len() + 1);
    id.push('$');
    id.push_str(&text);
    id
}

/// An event's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub room: RoomNum,
    pub body: BodyNum,
    pub id: Id,
    pub kind: Kind,
    /// The number of (type, state key) when this is a state event.
    pub state_key: Option<StateKeyNum>,
    pub sender: UserNum,
    /// For member events: the new membership and its user.
    pub member: Option<(Membership, UserNum)>,
    pub flags: Flags,
    pub depth: u64,
    /// The time on the sending server's clock, Unix milliseconds; a peer's claim, never used for ordering what we show.
    pub origin_server_ts: u64,
    /// The auth events in the event's own order. Each is smaller than the event's number.
    pub auth: Vec<EventNum>,
    /// The state before the event, for events with a place in the history.
    pub before: Option<Root>,
    /// Its place in the room's timeline, when it is shown there.
    pub order: Option<i64>,
    /// The redaction that took its content out.
    pub redacted_by: Option<EventNum>,
}

const REJECTED: u8 = 1;

const SOFT_FAILED: u8 = 2;

const OUTLIER: u8 = 4;

const HAS_STATE_KEY: u8 = 8;

/// The row has a membership and its user; without a state key's number, the state key is that user's.
const HAS_MEMBER: u8 = 16;

/// Beside the membership: the user is the sender.
const OWN: u8 = 128;
const HAS_BEFORE: u8 = 32;

const HAS_ORDER: u8 = 64;

/// The byte after this one says more: the id's kind and the redaction. Most events need neither.
const HAS_MORE: u8 = 128;
const MORE_ID_STANDARD: u8 = 1;

const MORE_ID_NAMED: u8 = 2;

const MORE_REDACTED: u8 = 4;

const MORE_GUESSED: u8 = 8;

impl Row {
    /// Whether the event takes part in room state: it is a state event and was not rejected.
    pub fn is_state(&self) -> bool {
        self.state_key.is_some() && !self.flags.rejected
    }

    /// Packs the row for the event numbered `num`.
    pub fn encode(&self, num: EventNum) -> Vec<u8> {
        let mut out = Vec::with_capacity(80);
        let more = self.more();
        out.push(self.first(more));
        if more != 0 {
            out.push(more);
        }
        out.push(self.kind.0);
        put_u64(&mut out, self.room.0.into());
        put_u64(&mut out, self.body.0.into());
        put_u64(&mut out, self.sender.0.into());
        if let Some(state_key) = self.state_key.filter(|_| !self.is_usual_member()) {
            put_u64(&mut out, state_key.0.into());
        }
        if let Some((membership, target)) = self.member {
            let own = target == self.sender;
            out.push(membership as u8 | if own { OWN } else { 0 });
            if !own {
                put_u64(&mut out, target.0.into());
            }
        }
        put_u64(&mut out, self.depth);
        put_u64(&mut out, self.origin_server_ts);
        match &self.id {
            Id::Hash(hash) | Id::HashStandard(hash) => out.extend_from_slice(hash),
            Id::Named(id) => put_bytes(&mut out, id.as_bytes()),
        }
        if let Some(before) = &self.before {
            put_u64(&mut out, before.0.into());
        }
        if let Some(order) = self.order {
            put_i64(&mut out, order);
        }
        if self.flags.redacted {
            put_u64(&mut out, self.redacted_by.map_or(0, |num| u64::from(num.0) + 1));
        }
        // Last, and without a count: the edges run to the row's end.
        for &auth in &self.auth {
            assert!(auth < num, "an event's auth events have smaller numbers than the event");
            put_u64(&mut out, u64::from(num.0 - auth.0));
        }
        out
    }

    fn first(&self, more: u8) -> u8 {
        let mut first = 0;
        for (bit, set) in [
            (REJECTED, self.flags.rejected),
            (SOFT_FAILED, self.flags.soft_failed),
            (OUTLIER, self.flags.outlier),
            (HAS_STATE_KEY, self.state_key.is_some() && !self.is_usual_member()),
            (HAS_MEMBER, self.member.is_some()),
            (HAS_BEFORE, self.before.is_some()),
            (HAS_ORDER, self.order.is_some()),
            (HAS_MORE, more != 0),
        ] {
            first |= if set { bit } else { 0 };
        }
        first
    }

    /// Whether the state key follows from the membership's user.
    fn is_usual_member(&self) -> bool {
        self.member.is_some_and(|(_, target)| self.state_key == Some(StateKeyNum::of_member(target)))
    }

    fn more(&self) -> u8 {
        let id = match self.id {
            Id::Hash(_) => 0,
            Id::HashStandard(_) => MORE_ID_STANDARD,
            Id::Named(_) => MORE_ID_NAMED,
        };
        let redacted = if self.flags.redacted { MORE_REDACTED } else { 0 };
        id | redacted | if self.flags.guessed { MORE_GUESSED } else { 0 }
    }

    /// The id alone, without the rest.
    pub fn decode_id(row: &[u8]) -> Option<Id> {
        let mut unpack = Unpack::new(row);
        let first = unpack.u8()?;
        let has = |bit| first & bit != 0;
        let more = if has(HAS_MORE) { unpack.u8()? } else { 0 };
        // Type; room, body and sender; state key; membership and target; depth and time.
        unpack.u8()?;
        for _ in 0..3 + usize::from(has(HAS_STATE_KEY)) {
            unpack.u64()?;
        }
        if has(HAS_MEMBER) && unpack.u8()? & OWN == 0 {
            unpack.u64()?;
        }
        unpack.u64()?;
        unpack.u64()?;
        unpack_id(&mut unpack, more)
    }

    /// The body's number alone.
    pub fn decode_body(row: &[u8]) -> Option<BodyNum> {
        let mut unpack = Unpack::new(row);
        if unpack.u8()? & HAS_MORE != 0 {
            unpack.u8()?;
        }
        // Type and room.
        unpack.u8()?;
        unpack.u64()?;
        unpack.u32().map(BodyNum)
    }

    /// Unpacks the row of the event numbered `num`.
    pub fn decode(num: EventNum, row: &[u8]) -> Option<Row> {
        let mut unpack = Unpack::new(row);
        let first = unpack.u8()?;
        let has = |bit| first & bit != 0;
        let more = if has(HAS_MORE) { unpack.u8()? } else { 0 };
        let kind = Kind(unpack.u8()?);
        let room = RoomNum(unpack.u32()?);
        let body = BodyNum(unpack.u32()?);
        let sender = UserNum(unpack.u32()?);
        let state_key = if has(HAS_STATE_KEY) { Some(StateKeyNum(unpack.u32()?)) } else { None };
        let member = match has(HAS_MEMBER) {
            true => {
                let code = unpack.u8()?;
                let target = if code & OWN != 0 { sender } else { UserNum(unpack.u32()?) };
                Some((Membership::from_code(code & !OWN)?, target))
            }
            false => None,
        };
        let state_key = state_key.or_else(|| member.map(|(_, target)| StateKeyNum::of_member(target)));
        let depth = unpack.u64()?;
        let origin_server_ts = unpack.u64()?;
        let id = unpack_id(&mut unpack, more)?;
        let before = if has(HAS_BEFORE) { Some(Root(unpack.u32()?)) } else { None };
        let order = if has(HAS_ORDER) { Some(unpack.i64()?) } else { None };
        let redacted = more & MORE_REDACTED != 0;
        let redacted_by = match redacted {
            true => unpack.u32()?.checked_sub(1).map(EventNum),
            false => None,
        };
        let mut auth = Vec::new();
        while !unpack.is_empty() {
            let back = unpack.u32().filter(|back| *back > 0)?;
            auth.push(EventNum(num.0.checked_sub(back)?));
        }
        let (rejected, soft_failed, outlier) = (has(REJECTED), has(SOFT_FAILED), has(OUTLIER));
        let flags = Flags { rejected, soft_failed, redacted, outlier, guessed: more & MORE_GUESSED != 0 };
        Some(Row {
            room,
            body,
            id,
            kind,
            state_key,
            sender,
            member,
            flags,
            depth,
            origin_server_ts,
            auth,
            before,
            order,
            redacted_by,
        })
    }
}

fn unpack_id(unpack: &mut Unpack<'_>, more: u8) -> Option<Id> {
    Some(match more & (MORE_ID_STANDARD | MORE_ID_NAMED) {
        0 => Id::Hash(unpack.array()?),
        MORE_ID_STANDARD => Id::HashStandard(unpack.array()?),
        _ => Id::Named(unpack.text()?.to_owned()),
    })
}

pub const NAMES: [(Kind, &str); 23] = [
    (Kind::MEMBER, "m.room.member"),
    (Kind::MESSAGE, "m.room.message"),
    (Kind::ENCRYPTED, "m.room.encrypted"),
    (Kind::REACTION, "m.reaction"),
    (Kind::REDACTION, "m.room.redaction"),
    (Kind::CREATE, "m.room.create"),
    (Kind::POWER_LEVELS, "m.room.power_levels"),
    (Kind::JOIN_RULES, "m.room.join_rules"),
    (Kind::HISTORY_VISIBILITY, "m.room.history_visibility"),
    (Kind::NAME, "m.room.name"),
    (Kind::TOPIC, "m.room.topic"),
    (Kind::AVATAR, "m.room.avatar"),
    (Kind::CANONICAL_ALIAS, "m.room.canonical_alias"),
    (Kind::GUEST_ACCESS, "m.room.guest_access"),
    (Kind::ENCRYPTION, "m.room.encryption"),
    (Kind::TOMBSTONE, "m.room.tombstone"),
    (Kind::SERVER_ACL, "m.room.server_acl"),
    (Kind::THIRD_PARTY_INVITE, "m.room.third_party_invite"),
    (Kind::PINNED_EVENTS, "m.room.pinned_events"),
    (Kind::ALIASES, "m.room.aliases"),
    (Kind::SPACE_CHILD, "m.space.child"),
    (Kind::SPACE_PARENT, "m.space.parent"),
    (Kind::STICKER, "m.sticker"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_a_row_or_damage() {
        crate::base::any_bytes::any_bytes(&[&[1; 60], b"$abc:a.example"], |bytes| {
            let _ = Row::decode_id(bytes);
            if let Some(row) = Row::decode(EventNum(1), bytes) {
                assert_eq!(Row::decode_body(bytes), Some(row.body));
                assert_eq!(Row::decode(EventNum(1), &row.encode(EventNum(1))).as_ref(), Some(&row));
            }
            for form in [IdForm::Hash, IdForm::HashStandard, IdForm::Named] {
                Id::read(form, &String::from_utf8_lossy(bytes));
            }
        });
    }
}
