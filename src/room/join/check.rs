//! The join's workers: each event's shape, hashes, id and signatures, and what the log keeps of it.
//!
//! A batch of raw events goes in, a batch of checked ones comes out. A worker holds one of each and the buffers of its
//! scan; what it cannot check for want of a key it hands back raw.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock};

use ruma::{ServerName, UserId};

use super::graph::Graph;
use crate::base::Clock;
use crate::budget::{Account, Grant, Refused};
use crate::matrix::fast::{Scan, Seen, Signer};
use crate::matrix::sign::{self, PublicKey};
use crate::matrix::version::IdFormat;
use crate::matrix::{RoomVersion, json};
use crate::remote::{Keys, Known};
use crate::store::tables::body;
use crate::store::tables::event::{Id, Kind, Membership};
use crate::store::tables::staging::UserPrint;
use crate::store::{self, EventNum, Store, hash128};

/// Events as they came, one behind the other.
#[derive(Default)]
pub struct RawBatch {
    pub bytes: Vec<u8>,
    /// Where each ends, and whether it stands in the room's state.
    pub ends: Vec<(u32, bool)>,
    /// Their keys have been asked for already: what still lacks one is dropped.
    pub last_chance: bool,
}

/// About how many bytes and events make a batch. One event of the largest size may stand on top.
pub const BATCH_BYTES: usize = 48 * 1024;
pub const BATCH_EVENTS: usize = 64;

impl RawBatch {
    pub fn push(&mut self, raw: &[u8], in_state: bool) {
        self.bytes.extend_from_slice(raw);
        self.ends.push((self.bytes.len() as u32, in_state));
    }

    pub fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES || self.ends.len() >= BATCH_EVENTS
    }

    pub fn weight(&self) -> u64 {
        (self.bytes.len() + self.ends.len() * 8) as u64
    }

    fn events(&self) -> impl Iterator<Item = (&[u8], bool)> {
        let mut from = 0;
        self.ends.iter().map(move |&(end, in_state)| {
            let raw = &self.bytes[from..end as usize];
            from = end as usize;
            (raw, in_state)
        })
    }
}

/// A stretch of [`CheckedBatch::text`].
pub type Span = (u32, u32);

/// What came of a batch. All text is in one piece of memory.
#[derive(Default)]
pub struct CheckedBatch {
    pub text: Vec<u8>,
    pub events: Vec<Checked>,
    /// Raw events whose keys are not known yet, and the keys.
    pub pending: RawBatch,
    pub wanted: Vec<(String, String)>,
    pub refused: u64,
    pub looked_at: u64,
    pub sample: Option<String>,
}

/// One event that was found good.
pub struct Checked {
    pub id: Id,
    pub in_state: bool,
    /// Seen before in this join, or in the database: nothing more is known of it than its id.
    pub repeated: bool,
    pub known: Option<EventNum>,
    pub needs_body: bool,
    pub redacted: bool,
    pub kind: Kind,
    pub sender: (UserPrint, Span),
    pub member: Option<(Membership, UserPrint, Span)>,
    /// Type and state key of state events that are not memberships.
    pub state_key: Option<(Span, Span)>,
    pub depth: u64,
    pub origin_server_ts: u64,
    pub auth: Vec<Id>,
    /// As the body table keeps it.
    pub body: Span,
    /// Length of its canonical JSON.
    pub json_bytes: u32,
}

impl CheckedBatch {
    pub fn weight(&self) -> u64 {
        let wanted: usize = self.wanted.iter().map(|(server, id)| server.len() + id.len() + 48).sum();
        let auth: usize = self.events.iter().map(|event| event.auth.len() * 40).sum();
        (self.text.len() + self.events.len() * size_of::<Checked>() + auth + wanted) as u64 + self.pending.weight()
    }

    pub fn slice(&self, span: Span) -> &[u8] {
        &self.text[span.0 as usize..span.1 as usize]
    }

    pub fn str(&self, span: Span) -> &str {
        std::str::from_utf8(self.slice(span)).expect("spans of text are of whole strings")
    }

    fn keep(&mut self, bytes: &[u8]) -> Span {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(bytes);
        (start, self.text.len() as u32)
    }
}

/// What every worker of a join knows.
pub struct Checker {
    pub version: &'static RoomVersion,
    pub room_id: String,
    pub keys: KeyCache,
    pub store: Store,
    pub hash_key: [u8; 16],
    pub graph: Arc<Graph>,
    /// Events of the room may be in the database since before this join.
    pub look_in_store: bool,
    pub clock: Clock,
}

/// The keys a join has used, so that the servers of a large room are not read again and again. On the join's memory,
/// as many as there is room for.
pub struct KeyCache {
    pub keys: Keys,
    known: RwLock<(HashMap<u64, Known>, Grant)>,
    hasher: RandomState,
}

/// A key, decompressed, with its place in the table.
const KEY_BYTES: u64 = 320;
const KEYS_MAX: usize = 8192;

impl KeyCache {
    pub fn new(keys: Keys, memory: &Account) -> Result<KeyCache, Refused> {
        let known = RwLock::new((HashMap::new(), memory.try_take(0)?));
        Ok(KeyCache { keys, known, hasher: RandomState::new() })
    }

    fn get(&self, server: &ServerName, key_id: &str) -> Option<Known> {
        let print = self.hasher.hash_one((server.as_str(), key_id));
        if let Some(known) = self.known.read().unwrap_or_else(PoisonError::into_inner).0.get(&print) {
            return Some(known.clone());
        }
        let known = self.keys.cached(server, key_id).unwrap_or_else(|error| {
            tracing::warn!(%error, "a signing key could not be read");
            None
        })?;
        let mut table = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if table.0.len() < KEYS_MAX && table.1.grow(KEY_BYTES).is_ok() {
            table.0.insert(print, known.clone());
        }
        Some(known)
    }
}

enum Found {
    Good,
    NoKey,
    Bad(String),
}

impl Checker {
    /// Checks a batch. Bounded by the batch.
    pub fn check(&self, scan: &mut Scan, raw: &RawBatch) -> store::Result<CheckedBatch> {
        let read = if self.look_in_store { Some(self.store.read()?) } else { None };
        let mut batch = CheckedBatch::default();
        batch.events.reserve(raw.ends.len());
        for (bytes, in_state) in raw.events() {
            batch.looked_at += 1;
            match self.one(scan, bytes, in_state, read.as_ref(), &mut batch)? {
                Found::Good => {}
                Found::NoKey if !raw.last_chance => batch.pending.push(bytes, in_state),
                Found::NoKey => batch.refused += 1,
                Found::Bad(why) => {
                    batch.refused += 1;
                    batch.sample.get_or_insert(why);
                }
            }
        }
        Ok(batch)
    }

    fn one(
        &self,
        scan: &mut Scan,
        raw: &[u8],
        in_state: bool,
        read: Option<&store::Read>,
        batch: &mut CheckedBatch,
    ) -> store::Result<Found> {
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
            && let Some(num) = store::tables::event::num(read, &id.text())?
        {
            batch.events.push(Checked::again(id, in_state, Some(num)));
            return Ok(Found::Good);
        }
        match self.signed(&seen, batch) {
            Found::Good => {}
            other => return Ok(other),
        }
        self.project(&seen, id, in_state, batch);
        Ok(Found::Good)
    }

    fn id_of(&self, seen: &Seen<'_>) -> Id {
        match self.version.id_format {
            IdFormat::UrlSafe => Id::Hash(seen.reference_hash),
            IdFormat::Standard => Id::HashStandard(seen.reference_hash),
            IdFormat::Opaque => Id::parse(seen.event_id().as_str()),
        }
    }

    /// The room's own, and a create event is the one of this room and version.
    fn is_of_room(&self, seen: &Seen<'_>, id: &Id) -> bool {
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

    /// The signatures of every server that must have signed.
    fn signed(&self, seen: &Seen<'_>, batch: &mut CheckedBatch) -> Found {
        let signers = match seen.signers() {
            Ok(signers) => signers,
            Err(reject) => return Found::Bad(reject.to_string()),
        };
        let at_ts = sign::key_time(self.version, seen.origin_server_ts());
        let mut result = Found::Good;
        for signer in &signers {
            match self.by_signer(seen, signer, at_ts) {
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

    fn by_signer(&self, seen: &Seen<'_>, signer: &Signer<'_>, at_ts: u64) -> Found {
        let Ok(server) = <&ServerName>::try_from(signer.server) else {
            return Found::Bad("signed by no server name".into());
        };
        let mut known = false;
        for (key_id, signature) in &signer.signatures {
            let key = match self.key(server, key_id, at_ts) {
                Some(key) => key,
                None => continue,
            };
            known = true;
            if key.verify(seen.message, signature) {
                return Found::Good;
            }
        }
        if known { Found::Bad(format!("a wrong signature by {server}")) } else { Found::NoKey }
    }

    fn key(&self, server: &ServerName, key_id: &str, at_ts: u64) -> Option<Arc<PublicKey>> {
        let known = self.keys.get(server, key_id)?;
        known.is_valid_at(at_ts).then_some(known.key)
    }

    fn print(&self, user_id: &str) -> UserPrint {
        let hash = hash128(&self.hash_key, &[user_id.as_bytes()]);
        u64::from_be_bytes(*hash.first_chunk().expect("a hash has sixteen bytes"))
    }

    /// What the log and the body table keep of a good event.
    fn project(&self, seen: &Seen<'_>, id: Id, in_state: bool, batch: &mut CheckedBatch) {
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
            && (json::get(content, "join_authorised_via_users_server").is_some()
                || json::get(content, "third_party_invite").is_some());
        let auth_ids: Vec<&str> = seen.auth_events().collect();
        // What the event's row will say.
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
            in_state,
            repeated: false,
            known: None,
            // Redacted content says less than the columns were read from.
            needs_body: needs_body || !seen.intact,
            redacted: !seen.intact,
            kind,
            sender,
            member,
            state_key,
            depth: seen.depth(),
            origin_server_ts: seen.origin_server_ts(),
            auth: auth_ids.into_iter().map(Id::parse).collect(),
            body,
            json_bytes: seen.canonical.len() as u32,
        });
    }
}

impl Checked {
    fn again(id: Id, in_state: bool, known: Option<EventNum>) -> Checked {
        Checked {
            id,
            in_state,
            repeated: true,
            known,
            needs_body: false,
            redacted: false,
            kind: Kind::OTHER,
            sender: (0, (0, 0)),
            member: None,
            state_key: None,
            depth: 0,
            origin_server_ts: 0,
            auth: Vec::new(),
            body: (0, 0),
            json_bytes: 0,
        }
    }
}
