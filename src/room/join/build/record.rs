//! An event in the file that is sorted into the room's order.

use super::lookup::Users;
use super::{IN_STATE, KNOWN};
use crate::room::join::error::JoinError;
use crate::room::join::order::{Node, Order, Sorter};
use crate::store::row_encoding::{Unpack, put_bytes, put_u64};
use crate::store::tables::room::event_row::{Id, Kind, Membership};
use crate::store::tables::room::staged;
use crate::store::{BodyNum, EventNum, StateKeyNum, UserNum};

const NEEDS_BODY: u8 = 2;

const REDACTED: u8 = 4;

const MEMBER: u8 = 8;

const STATE_KEY: u8 = 16;

/// An event between the log and its row.
pub struct Placed<'a> {
    pub place: u32,
    pub in_state: bool,
    pub known: EventNum,
    pub event: Option<PlacedEvent<'a>>,
}

pub struct PlacedEvent<'a> {
    pub body: BodyNum,
    pub needs_body: bool,
    pub redacted: bool,
    pub kind: Kind,
    pub sender: UserNum,
    pub member: Option<(Membership, UserNum, StateKeyNum)>,
    pub state_key: Option<(&'a str, &'a str)>,
    pub id: Id,
    pub depth: u64,
    pub origin_server_ts: u64,
}

#[allow(clippy::too_many_arguments)] // one line of a file; a struct would be named once and taken apart once
pub fn pack(
    out: &mut Vec<u8>,
    place: u32,
    body: BodyNum,
    event: &staged::Staged<'_>,
    in_state: bool,
    users: &Users,
    order: &Order,
    auth: &[Node],
) -> Result<(), JoinError> {
    out.clear();
    out.extend_from_slice(&place.to_be_bytes());
    let mut bits = 0;
    for (bit, set) in [
        (IN_STATE, in_state),
        (NEEDS_BODY, event.needs_body),
        (REDACTED, event.redacted),
        (MEMBER, event.member.is_some()),
        (STATE_KEY, event.state_key.is_some()),
    ] {
        bits |= if set { bit } else { 0 };
    }
    out.push(bits);
    put_u64(out, body.0.into());
    out.push(event.kind.0);
    let sender = users.get(event.sender)?;
    put_u64(out, sender.user.0.into());
    if let Some((membership, print)) = event.member {
        let target = if print == event.sender { sender } else { users.get(print)? };
        out.push(membership as u8);
        put_u64(out, target.user.0.into());
        put_u64(out, target.member_key.0.into());
    }
    if let Some((kind, key)) = event.state_key {
        put_bytes(out, kind.as_bytes());
        put_bytes(out, key.as_bytes());
    }
    put_u64(out, event.depth);
    put_u64(out, event.origin_server_ts);
    out.push(match event.id {
        Id::Hash(_) => 0,
        Id::HashStandard(_) => 1,
        Id::Named(_) => 2,
    });
    match &event.id {
        Id::Hash(hash) | Id::HashStandard(hash) => out.extend_from_slice(hash),
        Id::Named(name) => put_bytes(out, name.as_bytes()),
    }
    for &node in auth {
        // An event is placed after all its parents.
        put_u64(out, order.place(node).ok_or(JoinError::Corrupt)?.into());
    }
    Ok(())
}

impl<'a> Placed<'a> {
    pub fn unpack(record: &'a [u8], auth: &mut Vec<u32>) -> Option<Placed<'a>> {
        auth.clear();
        let mut rest = Unpack::new(record);
        let place = u32::from_be_bytes(rest.array()?);
        let bits = rest.u8()?;
        let has = |bit| bits & bit != 0;
        let in_state = has(IN_STATE);
        if has(KNOWN) {
            return Some(Placed { place, in_state, known: EventNum(rest.u32()?), event: None });
        }
        let body = BodyNum(rest.u32()?);
        let kind = Kind(rest.u8()?);
        let sender = UserNum(rest.u32()?);
        let member = match has(MEMBER) {
            true => Some((Membership::from_code(rest.u8()?)?, UserNum(rest.u32()?), StateKeyNum(rest.u32()?))),
            false => None,
        };
        let state_key = if has(STATE_KEY) { Some((rest.text()?, rest.text()?)) } else { None };
        let (depth, origin_server_ts) = (rest.u64()?, rest.u64()?);
        let id = match rest.u8()? {
            0 => Id::Hash(rest.array()?),
            1 => Id::HashStandard(rest.array()?),
            _ => Id::Named(rest.text()?.to_owned()),
        };
        while !rest.is_empty() {
            auth.push(rest.u32()?);
        }
        let (needs_body, redacted) = (has(NEEDS_BODY), has(REDACTED));
        let event =
            PlacedEvent { body, needs_body, redacted, kind, sender, member, state_key, id, depth, origin_server_ts };
        Some(Placed { place, in_state, known: EventNum(0), event: Some(event) })
    }
}

/// The number of a place: reserved in a row, except for events from before this join.
pub struct Nums {
    pub first: EventNum,
    pub known: Vec<u32>,
}

impl Nums {
    pub fn of(&self, place: u32) -> EventNum {
        match self.known.get(place as usize) {
            Some(&num) if num != 0 => EventNum(num),
            _ => EventNum(self.first.0 + place),
        }
    }
}

/// An entry of the state on its way to the tree.
#[derive(Clone, Copy)]
pub struct InState {
    pub key: StateKeyNum,
    pub num: EventNum,
    pub kind: Kind,
    pub member: Option<(Membership, UserNum)>,
}

impl InState {
    pub fn pack(&self) -> [u8; 14] {
        let mut out = [0; 14];
        out[..4].copy_from_slice(&self.key.to_key());
        out[4..8].copy_from_slice(&self.num.to_key());
        out[8] = self.kind.0;
        if let Some((membership, user)) = self.member {
            out[9] = membership as u8;
            out[10..].copy_from_slice(&user.to_key());
        }
        out
    }

    pub fn unpack(record: &[u8]) -> Option<InState> {
        let member = match record.get(9)? {
            0 => None,
            code => Some((Membership::from_code(*code)?, UserNum::from_key(record.get(10..)?)?)),
        };
        let key = StateKeyNum::from_key(record)?;
        Some(InState { key, num: EventNum::from_key(record.get(4..)?)?, kind: Kind(record[8]), member })
    }
}

/// The results of authorisation beside the rows.
pub struct Made {
    pub ids: Sorter,
    pub state: Sorter,
    pub create: EventNum,
    pub accepted: u64,
}
