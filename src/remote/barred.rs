//! With whom this server has no dealings: what rules of the policy lists name that its owner follows.
//!
//! The rules are rows (`store/tables/room/policy.rs`), kept up by the room part. Here names are looked up, and what the rules
//! kept out is counted, until the room part writes that down. This server, and who belongs to it, can never be named.
//! A server is looked up with every request; so the last answers are kept, until a commit changes a rule.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName, UserId};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::Failed;
use crate::base::{self, Clock, bounded};
use crate::matrix::acl::glob_matches;
use crate::matrix::id;
use crate::matrix::policy::{Form, Subject};
use crate::store::tables::room;
use crate::store::tables::room::policy::{self, Hits, Wanted};
use crate::store::{self, Change, Follower, Get, Position, RoomNum, Store};

/// Servers whose answers are kept: 24 bytes each.
const KEPT_MAX: usize = 256;
/// Rules whose counts wait to be written, some 600 bytes each at most.
const HITS_MAX: usize = 64;
/// Characters kept of whom a rule kept out last.
const LAST_CHARS_MAX: usize = 200;

/// What a rule keeps somebody out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Request,
    Asking,
    Invite,
    Join,
}

impl Deed {
    fn as_str(self) -> &'static str {
        match self {
            Deed::Request => "a request of",
            Deed::Asking => "a request to",
            Deed::Invite => "an invite by",
            Deed::Join => "a join of",
        }
    }
}

/// Somebody whom a rule names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The user, server or room.
    pub name: String,
    /// The name or pattern in the rule.
    pub rule: String,
}

impl Named {
    /// The refusal, for who asked.
    pub fn sentence(&self) -> String {
        let (name, rule) = (&self.name, &self.rule);
        match name.eq_ignore_ascii_case(rule) {
            true => format!("{name} is on a policy list that this server follows"),
            false => format!("{name} is on a policy list that this server follows (as {})", bounded(rule, 100)),
        }
    }
}

pub struct Barred {
    store: Store,
    clock: Clock,
    us: OwnedServerName,
    /// Without a list nothing is looked up.
    any: AtomicBool,
    hasher: RandomState,
    answers: Arc<Answers>,
    hits: Mutex<HashMap<(u8, String), Hits>>,
    has_hits: Notify,
}

/// Answers about servers. Apart, since the database holds who follows it, and a follower with the database in it would keep that open.
#[derive(Default)]
struct Answers {
    /// Changes with the rules.
    generation: AtomicU64,
    /// Each at the place that its hash names.
    kept: Mutex<Vec<Option<Kept>>>,
}

#[derive(Clone)]
struct Kept {
    hash: u64,
    rule: Option<Arc<str>>,
}

impl Barred {
    pub(super) fn new(store: Store, clock: Clock, us: OwnedServerName) -> Barred {
        let answers = Arc::<Answers>::default();
        store.follow(answers.clone());
        // A database that cannot be read is looked at again with each question.
        let any = store.read().and_then(|read| policy::lists(&read)).map_or(true, |lists| !lists.is_empty());
        Barred {
            store,
            clock,
            us,
            any: AtomicBool::new(any),
            hasher: RandomState::new(),
            answers,
            hits: Mutex::new(HashMap::new()),
            has_hits: Notify::new(),
        }
    }

    /// The rule that names a server, before a request to or from it. A database that fails names nobody.
    pub async fn server(self: &Arc<Self>, server: &ServerName, deed: Deed) -> Option<Named> {
        if !self.any.load(Ordering::Acquire) || *server == *self.us {
            return None;
        }
        let rule = match self.kept_answer(server) {
            Some(rule) => rule,
            None => {
                let (barred, asked) = (self.clone(), server.to_owned());
                base::blocking(move || barred.look_up(&asked)).await.unwrap_or_else(|failed| {
                    tracing::warn!(%failed, "the policy lists could not be read");
                    None
                })
            }
        }?;
        let named = Named { name: server.to_string(), rule: rule.to_string() };
        self.count(Subject::Server, &named, deed);
        Some(named)
    }

    fn kept_answer(&self, server: &ServerName) -> Option<Option<Arc<str>>> {
        let hash = self.hasher.hash_one(server.as_str());
        let kept = self.answers.kept.lock();
        let kept = kept.get(hash as usize % KEPT_MAX)?.as_ref()?;
        (kept.hash == hash).then(|| kept.rule.clone())
    }

    fn look_up(&self, server: &ServerName) -> store::Result<Option<Arc<str>>> {
        let generation = self.answers.generation.load(Ordering::Acquire);
        let read = self.store.read()?;
        let rule: Option<Arc<str>> = of_server(&read, &lists(&read)?, server)?.map(Into::into);
        let hash = self.hasher.hash_one(server.as_str());
        let mut kept = self.answers.kept.lock();
        if self.answers.generation.load(Ordering::Acquire) == generation {
            kept.resize(KEPT_MAX, None);
            kept[hash as usize % KEPT_MAX] = Some(Kept { hash, rule: rule.clone() });
        }
        Ok(rule)
    }

    /// The rule that names a user, or the user's server.
    pub fn user(&self, get: &impl Get, user: &UserId, deed: Deed) -> store::Result<Option<Named>> {
        if !self.any.load(Ordering::Acquire) || *user.server_name() == *self.us {
            return Ok(None);
        }
        let lists = lists(get)?;
        let (subject, rule) = match find(get, &lists, Subject::User, user.as_str())? {
            Some(rule) => (Subject::User, rule),
            None => match of_server(get, &lists, user.server_name())? {
                Some(rule) => (Subject::Server, rule),
                None => return Ok(None),
            },
        };
        let named = Named { name: user.to_string(), rule };
        self.count(subject, &named, deed);
        Ok(Some(named))
    }

    /// The rule that names a room, by its id or by an alias.
    pub fn room(&self, get: &impl Get, room: &str, deed: Deed) -> store::Result<Option<Named>> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(None);
        }
        let Some(rule) = find(get, &lists(get)?, Subject::Room, room)? else { return Ok(None) };
        let named = Named { name: room.to_owned(), rule };
        self.count(Subject::Room, &named, deed);
        Ok(Some(named))
    }

    /// Whether lists are followed at all.
    pub fn set_any(&self, any: bool) {
        self.any.store(any, Ordering::Release);
        self.answers.forget();
    }

    fn count(&self, subject: Subject, named: &Named, deed: Deed) {
        let key = (subject as u8, named.rule.clone());
        let (now_ms, mut hits) = (self.clock.now_ms(), self.hits.lock());
        if hits.len() >= HITS_MAX && !hits.contains_key(&key) {
            return;
        }
        let is_first = hits.is_empty();
        let hit = hits.entry(key).or_default();
        hit.count += 1;
        hit.last_ms = now_ms;
        hit.last = bounded(format!("{} {}", deed.as_str(), named.name), LAST_CHARS_MAX);
        drop(hits);
        if is_first {
            self.has_hits.notify_one();
        }
    }

    /// Returns when there is something to write down.
    pub async fn has_hits(&self) {
        self.has_hits.notified().await;
    }

    /// What rules kept out since it was asked last: by what they are about and name.
    pub fn take_hits(&self) -> Vec<((u8, String), Hits)> {
        std::mem::take(&mut *self.hits.lock()).into_iter().collect()
    }
}

impl Answers {
    fn forget(&self) {
        let mut kept = self.kept.lock();
        self.generation.fetch_add(1, Ordering::AcqRel);
        *kept = Vec::new();
    }
}

impl From<Named> for Failed {
    fn from(named: Named) -> Failed {
        Failed::Barred(named.sentence())
    }
}

/// The rooms of the lists, as far as they are known here.
fn lists(get: &impl Get) -> store::Result<Vec<RoomNum>> {
    let mut found = Vec::new();
    for list in policy::lists(get)? {
        found.extend(room::num(get, &list.room_id)?);
    }
    Ok(found)
}

/// What the first rule that names something says it names: in small letters, or its hash.
fn find(get: &impl Get, lists: &[RoomNum], subject: Subject, name: &str) -> store::Result<Option<String>> {
    let folded = name.to_ascii_lowercase();
    let hash = STANDARD_NO_PAD.encode(Sha256::digest(name.as_bytes()));
    let names = [(Form::Exact as u8, folded.clone()), (Form::Hash as u8, hash)];
    let wanted = Wanted { subject: subject as u8, names: &names, patterns: Form::Glob as u8 };
    policy::find(get, lists, &wanted, &|glob| glob_matches(glob, folded.as_bytes()))
}

/// The port does not count, as in a room's access control list.
fn of_server(get: &impl Get, lists: &[RoomNum], server: &ServerName) -> store::Result<Option<String>> {
    find(get, lists, Subject::Server, id::split_port(server.as_str()).0)
}

impl Follower for Answers {
    fn committed(&self, changes: &[&Change], _: Position) {
        if changes.iter().any(|change| change.policies) {
            self.forget();
        }
    }

    fn lost(&self, _: Position) {
        self.forget();
    }
}
