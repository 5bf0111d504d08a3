//! With whom this server has no dealings: the servers that its owner denies, and what rules of the policy lists name that the
//! owner follows.
//!
//! The denied servers are a setting. The rules are rows (`store/tables/room/policy.rs`), kept up by the room part. Here names are
//! looked up, and what was kept out is counted, until the room part writes that down. This server, and who belongs to it, can
//! never be named. A server is looked up with every request; so the last answers are kept, until a commit changes a rule.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use parking_lot::{Mutex, RwLock};
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
    pub by: By,
}

/// Whose word it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// `federation.denied_servers`.
    Owner,
    /// A policy list that the owner follows.
    List,
}

impl Named {
    /// The refusal, for who asked.
    pub fn sentence(&self) -> String {
        let (name, rule) = (&self.name, &self.rule);
        let what = match self.by {
            By::Owner => "among those with which the owner of this server wants no dealings",
            By::List => "on a policy list that this server follows",
        };
        match name.eq_ignore_ascii_case(rule) {
            true => format!("{name} is {what}"),
            false => format!("{name} is {what} (as {})", bounded(rule, 100)),
        }
    }
}

pub struct Barred {
    store: Store,
    clock: Clock,
    us: OwnedServerName,
    /// Without a list nothing is looked up in them.
    any: AtomicBool,
    /// As the setting has them, in small letters.
    denied: RwLock<Arc<[String]>>,
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
    rule: Option<Rule>,
}

type Rule = (By, Arc<str>);

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
            denied: RwLock::default(),
            hasher: RandomState::new(),
            answers,
            hits: Mutex::new(HashMap::new()),
            has_hits: Notify::new(),
        }
    }

    /// The rule that names a server, before a request to or from it. A database that fails names nobody.
    pub async fn server(self: &Arc<Self>, server: &ServerName, deed: Deed) -> Option<Named> {
        let named = self.named(server).await?;
        self.count(Subject::Server, &named, deed);
        Some(named)
    }

    /// The same for who only looks: nothing is counted.
    pub async fn named(self: &Arc<Self>, server: &ServerName) -> Option<Named> {
        if *server == *self.us || (!self.any.load(Ordering::Acquire) && self.denied.read().is_empty()) {
            return None;
        }
        let (by, rule) = match self.kept_answer(server) {
            Some(rule) => rule,
            None => {
                let (barred, asked) = (self.clone(), server.to_owned());
                base::blocking(move || barred.look_up(&asked)).await
            }
        }?;
        Some(Named { name: server.to_string(), rule: rule.to_string(), by })
    }

    /// Denies the servers that these names and patterns fit, and no others: see [`denies`]. Each question to no kept answer looks at all of
    /// them, so the setting has a bound.
    pub fn set_denied(&self, denied: Vec<String>) {
        let denied = denied.into_iter().map(|name| name.to_ascii_lowercase());
        *self.denied.write() = denied.collect();
        self.answers.forget();
    }

    /// The names and patterns of the servers that the owner denies.
    pub fn denied(&self) -> Arc<[String]> {
        self.denied.read().clone()
    }

    fn kept_answer(&self, server: &ServerName) -> Option<Option<Rule>> {
        let hash = self.hasher.hash_one(server.as_str());
        let kept = self.answers.kept.lock();
        let kept = kept.get(hash as usize % KEPT_MAX)?.as_ref()?;
        (kept.hash == hash).then(|| kept.rule.clone())
    }

    fn look_up(&self, server: &ServerName) -> Option<Rule> {
        let generation = self.answers.generation.load(Ordering::Acquire);
        let rule = match denies(&self.denied(), server) {
            Some(rule) => Some((By::Owner, rule.into())),
            None => match self.on_a_list(server) {
                Ok(rule) => rule.map(|rule| (By::List, rule.into())),
                Err(failed) => {
                    tracing::warn!(%failed, "the policy lists could not be read");
                    return None;
                }
            },
        };
        let hash = self.hasher.hash_one(server.as_str());
        let mut kept = self.answers.kept.lock();
        if self.answers.generation.load(Ordering::Acquire) == generation {
            kept.resize(KEPT_MAX, None);
            kept[hash as usize % KEPT_MAX] = Some(Kept { hash, rule: rule.clone() });
        }
        rule
    }

    fn on_a_list(&self, server: &ServerName) -> store::Result<Option<String>> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(None);
        }
        let read = self.store.read()?;
        of_server(&read, &lists(&read)?, server)
    }

    /// The rule that names a user, or the user's server.
    pub fn user(&self, get: &impl Get, user: &UserId, deed: Deed) -> store::Result<Option<Named>> {
        if *user.server_name() == *self.us {
            return Ok(None);
        }
        let Some((subject, by, rule)) = self.of_user(get, user)? else { return Ok(None) };
        let named = Named { name: user.to_string(), rule, by };
        self.count(subject, &named, deed);
        Ok(Some(named))
    }

    fn of_user(&self, get: &impl Get, user: &UserId) -> store::Result<Option<(Subject, By, String)>> {
        if let Some(rule) = denies(&self.denied(), user.server_name()) {
            return Ok(Some((Subject::Server, By::Owner, rule.to_owned())));
        }
        if !self.any.load(Ordering::Acquire) {
            return Ok(None);
        }
        let lists = lists(get)?;
        if let Some(rule) = find(get, &lists, Subject::User, user.as_str())? {
            return Ok(Some((Subject::User, By::List, rule)));
        }
        Ok(of_server(get, &lists, user.server_name())?.map(|rule| (Subject::Server, By::List, rule)))
    }

    /// The rule that names a room, by its id or by an alias.
    pub fn room(&self, get: &impl Get, room: &str, deed: Deed) -> store::Result<Option<Named>> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(None);
        }
        let Some(rule) = find(get, &lists(get)?, Subject::Room, room)? else { return Ok(None) };
        let named = Named { name: room.to_owned(), rule, by: By::List };
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

/// Which of the names and patterns denies a server. One with a port means the server at that port alone; for others the port does
/// not count. What begins with `!` is let in whatever the others say.
fn denies<'a>(denied: &'a [String], server: &ServerName) -> Option<&'a str> {
    let name = server.as_str().to_ascii_lowercase();
    let host = id::split_port(&name).0;
    let fits = |glob: &str| [name.as_str(), host].iter().any(|text| glob_matches(glob.as_bytes(), text.as_bytes()));
    let found = denied.iter().find(|glob| !glob.starts_with('!') && fits(glob))?;
    let is_let_in = denied.iter().filter_map(|glob| glob.strip_prefix('!')).any(fits);
    (!is_let_in).then_some(found.as_str())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(denied: &[&str], server: &str, by: Option<&str>) {
        let denied: Vec<_> = denied.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(denies(&denied, server.try_into().unwrap()), by, "{denied:?} {server}");
    }

    #[test]
    fn a_server_is_denied_by_its_name_or_a_pattern() {
        check(&["bad.example"], "bad.example", Some("bad.example"));
        check(&["bad.example"], "Bad.Example:8448", Some("bad.example"));
        check(&["bad.example"], "not-bad.example", None);
        check(&["bad.example"], "sub.bad.example", None);
        check(&["*.bad.example"], "sub.bad.example:443", Some("*.bad.example"));
        check(&["bad.example:8449"], "bad.example:8449", Some("bad.example:8449"));
        check(&["bad.example:8449"], "bad.example:8448", None);
        check(&["[fd00::1]"], "[fd00::1]:8448", Some("[fd00::1]"));
        check(&["*", "!friend.example"], "friend.example", None);
        check(&["!friend.example", "*"], "friend.example:8448", None);
        check(&["*", "!friend.example"], "other.example", Some("*"));
        check(&["!friend.example"], "other.example", None);
        check(&[], "other.example", None);
    }
}
