//! The join's workers: each event's shape, hashes, id and signatures, and its entry for the log.
//!
//! A batch of raw events goes in, a batch of checked ones comes out. A worker holds one of each and the buffers of its
//! scan; it hands back raw any event whose key is missing.

use std::sync::Arc;

use ruma::{ServerName, UserId};

use super::batch::{Checked, CheckedBatch, RawBatch};
use super::graph::Graph;
use super::key_cache::KeyCache;
use super::resume::{StoredEvents, wire_print};
use crate::base::Clock;
use crate::matrix::scan::{EventScanner, ScannedEvent, Signer};
use crate::matrix::sign::{self, Claims, PublicKey};
use crate::matrix::version::IdFormat;
use crate::matrix::{RoomVersion, json};
use crate::room::state::event::id_in;
use crate::store::tables::room::body;
use crate::store::tables::room::event_row::{Id, Kind, Membership};
use crate::store::tables::room::staged::{UserPrint, WIRE_LATE, WirePrint};
use crate::store::{self, RoomNum, Store, hash128};

/// The data shared by all workers of a join.
pub struct Checker {
    pub version: &'static RoomVersion,
    pub room_id: String,
    pub keys: KeyCache,
    pub store: Store,
    pub hash_key: [u8; 16],
    pub graph: Arc<Graph>,
    pub familiar: StoredEvents,
    /// The room, when events of it may be in the database since before this join.
    pub look_in_store: Option<RoomNum>,
    pub clock: Clock,
}

/// Signatures still to be verified, with the places of their events in [`CheckedBatch::events`].
#[derive(Default)]
struct Unproven {
    claims: Claims,
    events: Vec<u32>,
}

impl Unproven {
    fn truncate(&mut self, len: usize) {
        self.claims.truncate(len);
        self.events.truncate(len);
    }

    /// Removes events with a wrong signature from the batch.
    fn remove_forged(self, batch: &mut CheckedBatch) {
        let good = self.claims.judge();
        let mut bad: Vec<u32> = self.events.iter().zip(good).filter(|(_, good)| !good).map(|(at, _)| *at).collect();
        bad.dedup();
        if bad.is_empty() {
            return;
        }
        batch.refused += bad.len() as u64;
        batch.sample.get_or_insert_with(|| "a wrong signature".into());
        let mut at = 0;
        batch.events.retain(|_| {
            at += 1;
            bad.binary_search(&(at - 1)).is_err()
        });
    }
}

enum Found {
    Good,
    NoKey,
    Bad(String),
}

impl Checker {
    /// Checks a batch. Bounded by the batch.
    pub fn check(&self, scan: &mut EventScanner, raw: &RawBatch) -> store::Result<CheckedBatch> {
        let read = if self.look_in_store.is_some() { Some(self.store.read()?) } else { None };
        let mut batch = CheckedBatch::default();
        batch.events.reserve(raw.ends.len());
        batch.text.reserve(raw.bytes.len() / 2);
        let mut unproven = Unproven::default();
        for (bytes, in_state) in raw.events() {
            batch.looked_at += 1;
            match self.one(scan, (bytes, in_state, raw.is_late), read.as_ref(), &mut batch, &mut unproven)? {
                Found::Good => {}
                Found::NoKey if !raw.last_chance => batch.pending.push(bytes, in_state),
                Found::NoKey => batch.refused += 1,
                Found::Bad(why) => {
                    batch.refused += 1;
                    batch.sample.get_or_insert(why);
                }
            }
        }
        unproven.remove_forged(&mut batch);
        Ok(batch)
    }

    fn one(
        &self,
        scan: &mut EventScanner,
        (raw, in_state, is_late): (&[u8], bool, bool),
        read: Option<&store::Read>,
        batch: &mut CheckedBatch,
        unproven: &mut Unproven,
    ) -> store::Result<Found> {
        let wire = if is_late { WIRE_LATE } else { wire_print(&self.hash_key, raw) };
        if let Some(node) = self.familiar.find(wire)? {
            batch.familiar.push((node, in_state));
            return Ok(Found::Good);
        }
        let seen = match scan.read(self.version, raw) {
            Ok(seen) => seen,
            Err(reject) => return Ok(Found::Bad(reject.to_string())),
        };
        let id = self.id_of(&seen);
        if !self.is_of_room(&seen, &id) {
            return Ok(Found::Bad("an event of another room".into()));
        }
        if self.graph.has(&id) {
            batch.events.push(Checked::again(id, in_state, None));
            return Ok(Found::Good);
        }
        if let Some(read) = read
            && let Some(num) = store::tables::room::event::num(read, &id.text())?
        {
            // In versions 1 and 2 the sender chooses an event's id; in later versions an id belongs to one event of one
            // room.
            if self.version.event_id_in_event()
                && Some(store::tables::room::event::row_of(read, num)?.room) != self.look_in_store
            {
                return Ok(Found::Bad("an id that an event of another room has".into()));
            }
            batch.events.push(Checked::again(id, in_state, Some(num)));
            return Ok(Found::Good);
        }
        let before = unproven.events.len();
        match self.signed(&seen, batch, unproven) {
            Found::Good => {}
            other => {
                unproven.truncate(before);
                return Ok(other);
            }
        }
        self.project(&seen, id, wire, in_state, batch);
        Ok(Found::Good)
    }

    fn id_of(&self, seen: &ScannedEvent<'_>) -> Id {
        match self.version.id_format {
            IdFormat::UrlSafe => Id::Hash(seen.reference_hash),
            IdFormat::Standard => Id::HashStandard(seen.reference_hash),
            IdFormat::Opaque => Id::Named(seen.event_id().as_str().to_owned()),
        }
    }

    /// Whether the event is of this room; a create event must be the one of this room and version.
    fn is_of_room(&self, seen: &ScannedEvent<'_>, id: &Id) -> bool {
        let is_create = seen.kind() == "m.room.create";
        if is_create {
            let version = crate::matrix::version::of_create(seen.content());
            if version != Some(self.version) {
                return false;
            }
        }
        match seen.room_id() {
            Some(room_id) => room_id == self.room_id,
            None => is_create && id.text().get(1..) == self.room_id.get(1..),
        }
    }

    /// Looks at the signatures of every server that must have signed. An event that is good but for them is yet to be
    /// verified.
    fn signed(&self, seen: &ScannedEvent<'_>, batch: &mut CheckedBatch, unproven: &mut Unproven) -> Found {
        let signers = match seen.signers() {
            Ok(signers) => signers,
            Err(reject) => return Found::Bad(reject.to_string()),
        };
        let at_ts = sign::event::key_time(self.version, seen.origin_server_ts());
        let event = batch.events.len() as u32;
        let mut result = Found::Good;
        for signer in &signers {
            match self.by_signer(seen, signer, at_ts, event, unproven) {
                Found::Good => {}
                Found::NoKey => {
                    let wanted = signer.signatures.iter().take(2);
                    batch.wanted.extend(wanted.map(|(key_id, _)| (signer.server.to_owned(), (*key_id).to_owned())));
                    result = Found::NoKey;
                }
                bad => return bad,
            }
        }
        result
    }

    /// One of a server's signatures must be right. A single one, as nearly all events have, is verified with the batch.
    fn by_signer(
        &self,
        seen: &ScannedEvent<'_>,
        signer: &Signer<'_>,
        at_ts: u64,
        event: u32,
        unproven: &mut Unproven,
    ) -> Found {
        let Ok(server) = <&ServerName>::try_from(signer.server) else {
            return Found::Bad("a signature belongs to no valid server name".into());
        };
        let wrong = || Found::Bad(format!("a wrong signature by {server}"));
        let mut usable = signer.signatures.iter().filter_map(|(key_id, signature)| {
            let (known, often) = self.keys.get(server, key_id)?;
            known.is_valid_at(at_ts).then_some((known.key, often, signature))
        });
        let Some((key, often, signature)) = usable.next() else { return Found::NoKey };
        let Some(second) = usable.next() else {
            return match unproven.claims.push(&key, often.as_deref(), seen.message, signature) {
                true => {
                    unproven.events.push(event);
                    Found::Good
                }
                false => wrong(),
            };
        };
        let is_right = |(key, signature): (&PublicKey, _)| key.verify(seen.message, signature);
        let is_good = is_right((&key, signature))
            || is_right((&second.0, second.2))
            || usable.any(|(key, _, signature)| is_right((&key, signature)));
        if is_good { Found::Good } else { wrong() }
    }

    fn print(&self, user_id: &str) -> UserPrint {
        let hash = hash128(&self.hash_key, &[user_id.as_bytes()]);
        u64::from_be_bytes(*hash.first_chunk().expect("a hash has sixteen bytes"))
    }

    /// The log entry and the stored body of a good event.
    fn project(&self, seen: &ScannedEvent<'_>, id: Id, wire: WirePrint, in_state: bool, batch: &mut CheckedBatch) {
        let kind_text = seen.kind();
        let kind = Kind::of(&kind_text);
        let sender_id = seen.sender();
        let sender = (self.print(&sender_id), batch.keep(sender_id.as_bytes()));
        let state_key_text = seen.state_key();
        let content = seen.content().as_bytes();
        let member = match &state_key_text {
            Some(target) if kind == Kind::MEMBER && UserId::parse(&**target).is_ok() => {
                seen.membership().as_deref().and_then(Membership::of).map(|membership| {
                    let own = **target == *sender_id;
                    let print = if own { sender.0 } else { self.print(target) };
                    (membership, print, if own { sender.1 } else { batch.keep(target.as_bytes()) })
                })
            }
            _ => None,
        };
        let state_key = match &state_key_text {
            Some(key) if member.is_none() => Some((batch.keep(kind_text.as_bytes()), batch.keep(key.as_bytes()))),
            _ => None,
        };
        let needs_body = member.is_some()
            && (json::read::get(content, "join_authorised_via_users_server").is_some()
                || json::read::get(content, "third_party_invite").is_some());
        let auth_ids: Vec<&str> = seen.auth_events().collect();
        // The columns of the event's row.
        let row = body::Known {
            room_id: &self.room_id,
            sender: &sender_id,
            target: state_key_text.as_deref().filter(|_| member.is_some()).unwrap_or_default(),
            depth: seen.depth(),
            origin_server_ts: seen.origin_server_ts(),
            auth: &auth_ids,
        };
        let stored = if seen.intact {
            body::encode(seen.canonical, &row, true)
        } else {
            let mut redacted = Vec::with_capacity(seen.canonical.len());
            seen.write_redacted(&mut redacted);
            body::encode(&redacted, &row, false)
        };
        let body = batch.keep(&stored);
        batch.events.push(Checked {
            id,
            wire,
            in_state,
            repeated: false,
            known: None,
            // Redacted content has fewer fields than the columns were read from.
            needs_body: needs_body || !seen.intact,
            redacted: !seen.intact,
            kind,
            sender,
            member,
            state_key,
            depth: seen.depth(),
            origin_server_ts: seen.origin_server_ts(),
            auth: auth_ids.into_iter().map(|id| id_in(self.version, id)).collect(),
            body,
            json_bytes: seen.canonical.len() as u32,
        });
    }
}
