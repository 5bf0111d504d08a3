//! Signing keys that a join uses often, made cheap to check with.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::RwLock;
use ruma::ServerName;

use crate::budget::{Account, Grant, Refused};
use crate::matrix::sign::Often;
use crate::remote::{Keys, Known};

/// The keys a join has used, so that the keys of a large room's servers are not read again and again. It takes a share
/// of the join's memory at once and holds as many keys as fit; the first keys in frequent use are prepared for cheaper
/// checks.
pub struct KeyCache {
    pub keys: Keys,
    table: RwLock<Table>,
    known_max: usize,
    often_max: u64,
    hasher: RandomState,
    _grant: Grant,
}

#[derive(Default)]
struct Table {
    known: HashMap<u64, InUse>,
    often: u64,
}

struct InUse {
    known: Known,
    uses: AtomicU32,
    often: Option<Arc<Often>>,
}

/// A key, decompressed, with its place in the table.
const KEY_BYTES: u64 = 320;

/// Uses from which on a key counts as often used.
const OFTEN: u32 = 24;

impl KeyCache {
    /// A third of `bytes` makes keys cheaper: in a large room sixteen servers send two events of three.
    pub fn new(keys: Keys, memory: &Account, bytes: u64) -> Result<KeyCache, Refused> {
        let often_max = bytes / 3 / Often::BYTES;
        let known_max = ((bytes - often_max * Often::BYTES) / KEY_BYTES) as usize;
        let (table, hasher) = (RwLock::default(), RandomState::new());
        Ok(KeyCache { keys, table, known_max, often_max, hasher, _grant: memory.try_take(bytes)? })
    }

    pub fn get(&self, server: &ServerName, key_id: &str) -> Option<(Known, Option<Arc<Often>>)> {
        let print = self.hasher.hash_one((server.as_str(), key_id));
        let (found, is_often) = {
            let table = self.table.read();
            let found = table.known.get(&print).map(|key| (key.known.clone(), key.often.clone(), &key.uses));
            let is_often = found.as_ref().is_some_and(|(_, often, uses)| {
                often.is_none() && uses.fetch_add(1, Relaxed) == OFTEN && table.often < self.often_max
            });
            (found.map(|(known, often, _)| (known, often)), is_often)
        };
        match found {
            Some((known, _)) if is_often => {
                let often = self.make_cheaper(print, &known);
                Some((known, often))
            }
            Some(found) => Some(found),
            None => self.look_up(print, server, key_id).map(|known| (known, None)),
        }
    }

    fn look_up(&self, print: u64, server: &ServerName, key_id: &str) -> Option<Known> {
        let known = self.keys.cached(server, key_id).unwrap_or_else(|error| {
            tracing::warn!(%error, "a signing key could not be read");
            None
        })?;
        let mut table = self.table.write();
        if table.known.len() < self.known_max {
            table.known.insert(print, InUse { known: known.clone(), uses: AtomicU32::new(0), often: None });
        }
        Some(known)
    }

    fn make_cheaper(&self, print: u64, known: &Known) -> Option<Arc<Often>> {
        let often = Arc::new(Often::new(&known.key));
        let mut table = self.table.write();
        if table.often == self.often_max {
            return None;
        }
        table.known.get_mut(&print)?.often = Some(often.clone());
        table.often += 1;
        Some(often)
    }
}
