//! Other servers' signing keys (server-server API, "Retrieving server keys").
//!
//! A key is looked for in memory (decompressed, on the `signing_keys` account), in the store, at its server, at the
//! notaries. For few servers, each is asked itself first; for many, the notaries are asked first, in batches, since
//! half of a large room's servers are gone. Every answer must carry the signature of the server it describes, and a
//! notary's answer also the notary's own. A key that was not found is not asked for again for a while. Keys of servers
//! that contact us are renewed before they run out ([`Keys::renew_soon`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use lru::LruCache;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;
use tracing::Instrument;

use super::request::Urgency;
use super::{Failed, Options, Remote, json_stream};
use crate::base::{self, Shares, brief, gathered};
use crate::budget::{Account, Grant};
use crate::matrix::sign::{self, PublicKey};
use crate::store::tables::server::signing_key::{self, Stored};
use crate::store::{self, Store};

/// One remembered key: the decompressed point (about 200 bytes), its names, the table's share.
const KNOWN_BYTES: u64 = 512;
/// Servers asked of a notary at once; about 0.7 KiB each in the answer.
const BATCH_SERVERS: usize = 128;
const BATCH_BYTES_MAX: u64 = 512 * 1024;
/// Answers in one notary's response: it may give several for one server.
const ANSWERS_MAX: usize = 8 * BATCH_SERVERS;
const BATCHES_AT_ONCE: usize = 2;
const BATCH_TIMEOUT: Duration = Duration::from_secs(60);
const DIRECT_AT_ONCE: usize = 4;
/// From this number on the notaries are asked first.
const MANY_SERVERS: usize = 8;
const DIRECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One server's own answer.
const ANSWER_BYTES_MAX: u64 = 32 * 1024;
/// A longer answer is not kept for other servers; its keys are.
const ANSWER_KEPT_BYTES_MAX: usize = 4 * 1024;
/// Keys one server may publish; more is an attack on our disk.
const KEYS_MAX: usize = 32;
const KEY_ID_BYTES_MAX: usize = 128;
/// "Servers MUST use the lesser of this field and 7 days into the future."
const VALID_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// A server whose key was not found is not asked again for so long, doubling up to the second figure.
const MISSING_MS_MIN: u64 = 60_000;
const MISSING_MS_MAX: u64 = 3_600_000;
/// The pause for a server that gave no answer and contacts us now.
const MISSING_CALLER_MS: u64 = 10_000;
/// For known servers, and for unknown ones: a join asks for thousands before the room is known.
const MISSING_KNOWN_MAX: usize = 1024;
const MISSING_STRANGERS_MAX: usize = 3072;
/// A key in use is renewed when it is still to be believed for so long at most…
const RENEW_MS: u64 = 6 * 3_600_000;
/// …but not again so soon: some servers give their keys a validity of minutes.
const RENEW_PAUSE_MS: u64 = 10 * 60_000;
/// Servers whose last renewal check is remembered, and servers waiting for renewal.
const RENEWED_MAX: usize = 512;
const RENEWALS_MAX: usize = 64;
const RENEWALS_AT_ONCE: usize = 2;

/// A key and when it may be believed.
#[derive(Debug, Clone)]
pub struct Known {
    pub key: Arc<PublicKey>,
    /// Signatures made up to then, in unix milliseconds, may be believed; capped at seven days after the key was
    /// fetched.
    pub valid_until_ms: u64,
    /// The server has replaced the key: it vouches for nothing after `valid_until_ms`, and asking again will not change
    /// that.
    pub expired: bool,
}

impl Known {
    pub fn is_valid_at(&self, at_ms: u64) -> bool {
        at_ms <= self.valid_until_ms
    }
}

/// A key of a server: its name and the key's id (`ed25519:abc`).
pub type Name = (OwnedServerName, String);

/// The known keys, in memory and in the store.
pub(super) struct Book {
    own_id: String,
    own: Known,
    memory: Mutex<Memory>,
    /// By server and key id; by server alone when it gave no answer at all: the missing key may be one of several.
    missing: Mutex<Shares<u64, Missing>>,
    /// Names chosen by other servers are kept as keyed hashes; of two that collide, one waits with the other.
    hasher: RandomState,
    renewals: Mutex<Renewals>,
    store: Store,
}

/// Keys that will soon run out.
struct Renewals {
    /// When each server's keys were last checked for renewal, in unix milliseconds.
    looked_at: LruCache<u64, u64>,
    waiting: VecDeque<OwnedServerName>,
}

struct Memory {
    keys: LruCache<String, Known>,
    account: Account,
    grant: Option<Grant>,
}

#[derive(Clone, Copy, Default)]
struct Missing {
    times: u32,
    since_ms: u64,
    until_ms: u64,
}

impl Missing {
    /// A server that gave no answer is asked again sooner when it contacts us itself.
    fn is_so(&self, now_ms: u64, urgency: Urgency) -> bool {
        let soon = self.since_ms + MISSING_CALLER_MS;
        let until_ms = if urgency == Urgency::Contacted { self.until_ms.min(soon) } else { self.until_ms };
        until_ms > now_ms
    }
}

/// What came of asking servers for their keys.
#[derive(Default)]
struct Asked {
    answered: BTreeSet<OwnedServerName>,
    /// Not asked at all, since they failed a moment ago or we had no way to.
    passed_over: BTreeSet<OwnedServerName>,
}

impl Book {
    pub(super) fn new(own: &sign::Key, account: Account, store: Store) -> Book {
        let own_key = Known { key: Arc::new(own.public()), valid_until_ms: u64::MAX, expired: false };
        Book {
            own_id: own.id().to_owned(),
            own: own_key,
            memory: Mutex::new(Memory { keys: LruCache::unbounded(), account, grant: None }),
            missing: Mutex::new(Shares::new(MISSING_KNOWN_MAX, MISSING_STRANGERS_MAX)),
            hasher: RandomState::new(),
            renewals: Mutex::new(Renewals {
                looked_at: LruCache::new(NonZeroUsize::new(RENEWED_MAX).expect("not zero")),
                waiting: VecDeque::new(),
            }),
            store,
        }
    }

    fn mark(&self, server: &ServerName, id: &str) -> u64 {
        self.hasher.hash_one((server, id))
    }
}

impl Memory {
    /// Keeps a key; the least recently used ones make room when the account has none.
    fn put(&mut self, name: String, known: Known) {
        if self.keys.contains(&name) || self.charge() || self.keys.pop_lru().is_some() {
            self.keys.put(name, known);
        }
    }

    fn charge(&mut self) -> bool {
        match &mut self.grant {
            Some(grant) => grant.grow(KNOWN_BYTES).is_ok(),
            None => {
                self.grant = self.account.try_take(KNOWN_BYTES).ok();
                self.grant.is_some()
            }
        }
    }
}

/// Other servers' keys. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    remote: Remote,
}

impl Keys {
    pub(super) fn new(remote: Remote) -> Keys {
        Keys { remote }
    }

    fn book(&self) -> &Book {
        &self.remote.0.keys
    }

    /// From memory or the store, whether still valid or not; never asks a server. Plain code for blocking threads.
    pub fn cached(&self, server: &ServerName, key_id: &str) -> Result<Option<Known>, store::Error> {
        if self.remote.is_me(server) {
            return Ok((key_id == self.book().own_id).then(|| self.book().own.clone()));
        }
        let name = signing_key::name(server, key_id);
        if let Some(known) = self.book().memory.lock().keys.get(&name) {
            return Ok(Some(known.clone()));
        }
        let Some(stored) = signing_key::get(&self.book().store.read()?, server, key_id)? else { return Ok(None) };
        Ok(self.remember(name, stored))
    }

    fn remember(&self, name: String, stored: Stored) -> Option<Known> {
        let key = PublicKey::from_bytes(&stored.key)?;
        let known = Known { key: Arc::new(key), valid_until_ms: stored.valid_until_ms, expired: stored.expired };
        self.book().memory.lock().put(name, known.clone());
        Some(known)
    }

    /// One key that vouches for a signature made at `at_ms`, fetched if necessary. `None` when it cannot be found. For
    /// events of room versions 1 to 4, which ignore the validity of keys, pass 0.
    pub async fn get(&self, server: &ServerName, key_id: &str, at_ms: u64) -> Result<Option<Known>, store::Error> {
        self.get_one(server, key_id, at_ms, Urgency::Person).await
    }

    /// The same for a server that is contacting us: it is there now, so it is asked whatever failed before.
    pub async fn get_of_caller(
        &self,
        server: &ServerName,
        key_id: &str,
        at_ms: u64,
    ) -> Result<Option<Known>, store::Error> {
        self.get_one(server, key_id, at_ms, Urgency::Contacted).await
    }

    async fn get_one(
        &self,
        server: &ServerName,
        key_id: &str,
        at_ms: u64,
        urgency: Urgency,
    ) -> Result<Option<Known>, store::Error> {
        let name = (server.to_owned(), key_id.to_owned());
        let (keys, wanted) = (self.clone(), vec![name.clone()]);
        let lacking = base::blocking(move || keys.lacking(wanted, at_ms)).await?;
        self.fetch_servers(lacking, urgency).await?;
        let keys = self.clone();
        let known = base::blocking(move || keys.cached(&name.0, &name.1)).await?;
        Ok(known.filter(|known| known.is_valid_at(at_ms)))
    }

    /// Makes sure that as many of these keys as can be had are known and valid at `at_ms`. Afterwards [`Keys::cached`]
    /// finds them. Bounded by the number of names; answers are taken a batch at a time.
    pub async fn fetch(&self, names: &[Name], at_ms: u64) -> Result<(), store::Error> {
        let (keys, wanted) = (self.clone(), names.to_vec());
        let lacking = base::blocking(move || keys.lacking(wanted, at_ms)).await?;
        self.fetch_servers(lacking, Urgency::Person).await
    }

    /// [`Keys::fetch`] for the many servers of a room: from notaries alone, which answer in one go. The missing keys
    /// are returned, for [`Keys::fetch_directly`]: many of those servers are gone, and each costs a wait.
    pub async fn fetch_of_notaries(&self, names: &[Name], at_ms: u64) -> Result<Vec<Name>, store::Error> {
        let (keys, wanted) = (self.clone(), names.to_vec());
        let mut lacking = base::blocking(move || keys.lacking(wanted, at_ms)).await?;
        self.forget_missing(&mut lacking, Urgency::Person);
        self.ask_notaries(&mut lacking).await?;
        Ok(lacking.into_iter().flat_map(|(server, ids)| ids.into_iter().map(move |id| (server.clone(), id))).collect())
    }

    /// From each server itself, a few at once.
    pub async fn fetch_directly(&self, names: Vec<Name>) -> Result<(), store::Error> {
        let mut lacking = Lacking::new();
        for (server, id) in names {
            lacking.entry(server).or_default().insert(id);
        }
        let asked = self.ask_directly(&mut lacking, DIRECT_AT_ONCE, Urgency::Contacted).await?;
        self.note_missing(&lacking, &asked);
        Ok(())
    }

    /// Asks for the keys of servers that we have no keys of, before events make it urgent.
    pub async fn prefetch(&self, servers: &[OwnedServerName]) -> Result<(), store::Error> {
        let (keys, servers, now) = (self.clone(), servers.to_vec(), self.remote.0.clock.now_ms());
        let lacking = base::blocking(move || {
            let read = keys.book().store.read()?;
            let mut lacking = BTreeMap::new();
            for server in servers {
                if !keys.remote.is_me(&server) && !signing_key::has_valid(&read, &server, now)? {
                    lacking.insert(server, BTreeSet::new());
                }
            }
            Ok::<_, store::Error>(lacking)
        })
        .await?;
        self.fetch_servers(lacking, Urgency::Later).await
    }

    /// The servers with keys that are not known, or no longer believed, each with those keys.
    fn lacking(&self, names: Vec<Name>, at_ms: u64) -> Result<Lacking, store::Error> {
        let mut lacking = Lacking::new();
        for (server, key_id) in names {
            let enough = match self.cached(&server, &key_id)? {
                Some(known) => known.expired || known.is_valid_at(at_ms),
                None => self.remote.is_me(&server) || key_id.len() > KEY_ID_BYTES_MAX,
            };
            if !enough {
                lacking.entry(server).or_default().insert(key_id);
            }
        }
        Ok(lacking)
    }

    /// Whatever is the pause of a server for other requests: the keys are needed to check what came. `urgency` is about
    /// the pause after its keys were not found; with [`Urgency::Later`], about both.
    async fn fetch_servers(&self, mut lacking: Lacking, urgency: Urgency) -> Result<(), store::Error> {
        self.forget_missing(&mut lacking, urgency);
        let asking = if urgency == Urgency::Later { urgency } else { Urgency::Contacted };
        let asked = if lacking.len() < MANY_SERVERS {
            let asked = self.ask_directly(&mut lacking, DIRECT_AT_ONCE, asking).await?;
            self.ask_notaries(&mut lacking).await?;
            asked
        } else {
            self.ask_notaries(&mut lacking).await?;
            self.ask_directly(&mut lacking, DIRECT_AT_ONCE, asking).await?
        };
        self.note_missing(&lacking, &asked);
        Ok(())
    }

    /// Leaves out the servers whose keys were not found a short while ago, and keys that a server did not have.
    fn forget_missing(&self, lacking: &mut Lacking, urgency: Urgency) {
        let now = self.remote.0.clock.now_ms();
        let mut missing = self.book().missing.lock();
        let mut is_missing = |server: &ServerName, id: &str| {
            // A server that does answer is not asked again for a key that it does not have.
            let urgency = if id.is_empty() { urgency } else { Urgency::Person };
            missing.get(&self.book().mark(server, id)).is_some_and(|missing| missing.is_so(now, urgency))
        };
        lacking.retain(|server, ids| {
            if is_missing(server, "") {
                return false;
            }
            let any = ids.is_empty();
            ids.retain(|id| !is_missing(server, id));
            any || !ids.is_empty()
        });
    }

    /// A request with a made-up key id must not keep the server's real keys from being fetched: for servers that
    /// answered, only these key ids are marked as missing. A server that was not asked lacks nothing.
    fn note_missing(&self, lacking: &Lacking, asked: &Asked) {
        // While the Internet is gone no key is missing; it just cannot be fetched.
        if self.remote.0.backoff.is_offline() {
            return;
        }
        let now = self.remote.0.clock.now_ms();
        let mut missing = self.book().missing.lock();
        for (server, ids) in lacking.iter().filter(|(server, _)| !asked.passed_over.contains(*server)) {
            let owner = self.remote.0.circle.remembered(server);
            let ids = if asked.answered.contains(server) { ids.clone() } else { BTreeSet::from([String::new()]) };
            for id in ids {
                let name = self.book().mark(server, &id);
                let times = missing.peek(&name).map_or(0, |missing| missing.times);
                let pause = (MISSING_MS_MIN << times.min(10)).min(MISSING_MS_MAX);
                missing.put(owner.clone(), name, Missing { times: times + 1, since_ms: now, until_ms: now + pause });
            }
        }
    }

    /// A server stayed silent for longer than a caller would wait: it is not asked again for a while.
    pub fn give_up(&self, server: &ServerName) {
        self.note_missing(&Lacking::from([(server.to_owned(), BTreeSet::new())]), &Asked::default());
    }

    /// Whether any key of a server was ever known, valid or not. Plain code for blocking threads.
    pub fn were_known(&self, server: &ServerName) -> Result<bool, store::Error> {
        Ok(!signing_key::list(&self.book().store.read()?, server)?.is_empty())
    }

    /// Whether a key that is valid until then should be renewed; true for one server only once in a while.
    pub fn is_renewal_due(&self, server: &ServerName, valid_until_ms: u64) -> bool {
        let now = self.remote.0.clock.now_ms();
        if valid_until_ms > now + RENEW_MS {
            return false;
        }
        let mut renewals = self.book().renewals.lock();
        let mark = self.book().mark(server, "");
        let last = renewals.looked_at.get(&mark).copied();
        if last.is_some_and(|last| now < last + RENEW_PAUSE_MS) {
            return false;
        }
        renewals.looked_at.put(mark, now);
        true
    }

    /// Renews a server's keys in the background, while the old ones are still valid. Nothing waits for it.
    pub fn renew_soon(&self, server: &ServerName) {
        let mut renewals = self.book().renewals.lock();
        if renewals.waiting.len() < RENEWALS_MAX && !renewals.waiting.iter().any(|waiting| waiting == server) {
            renewals.waiting.push_back(server.to_owned());
        }
    }

    /// Fetches the keys noted by [`Keys::renew_soon`], a few at a time. Called now and then; bounded by
    /// [`RENEWALS_MAX`]. Answers how many servers gave theirs.
    pub(super) async fn renew(&self) -> store::Result<u64> {
        let waiting = std::mem::take(&mut self.book().renewals.lock().waiting);
        let mut lacking: Lacking = gathered(waiting.into_iter().map(|server| (server, BTreeSet::new())));
        // A server that does not answer now is asked again when its key is needed.
        let asked = self.ask_directly(&mut lacking, RENEWALS_AT_ONCE, Urgency::Later).await?;
        Ok(asked.answered.len() as u64)
    }

    /// Asks each server itself, a few at once.
    async fn ask_directly(
        &self,
        lacking: &mut Lacking,
        at_once: usize,
        urgency: Urgency,
    ) -> Result<Asked, store::Error> {
        let mut servers: Vec<OwnedServerName> = lacking.keys().cloned().collect();
        let (mut asking, mut asked) = (tokio::task::JoinSet::new(), Asked::default());
        loop {
            while asking.len() < at_once
                && let Some(server) = servers.pop()
            {
                let keys = self.clone();
                asking.spawn(async move { (keys.ask_one(&server, urgency).await, server) }.in_current_span());
            }
            let Some(done) = asking.join_next().await else { return Ok(asked) };
            match done {
                Ok((Ok(found), server)) => {
                    self.cross_off(lacking, &server, &found);
                    asked.answered.insert(server);
                }
                Ok((Err(Trouble::Store(error)), _)) => return Err(error),
                Ok((Err(Trouble::Failed(why)), server)) => {
                    tracing::debug!(%server, %why, "no signing keys");
                    if why.is_a_pause() || matches!(why, Failed::Refused(_)) {
                        asked.passed_over.insert(server);
                    }
                }
                Err(_) => {}
            }
        }
    }

    async fn ask_one(&self, server: &ServerName, urgency: Urgency) -> Result<Vec<String>, Trouble> {
        let options = Options { timeout: DIRECT_TIMEOUT, max_bytes: ANSWER_BYTES_MAX, urgency };
        let answer = self.remote.request(server, http::Method::GET, "/_matrix/key/v2/server", None, options).await?;
        let now = self.remote.0.clock.now_ms();
        let checked = check_answer(&answer.body, now).map_err(Failed::BadAnswer)?;
        if checked.server != server {
            return Err(Failed::BadAnswer(format!("gives the keys of {}", checked.server)).into());
        }
        let ids = checked.ids();
        self.keep(vec![checked]).await?;
        Ok(ids)
    }

    /// Asks for all keys still lacking, one notary after the other, in batches.
    async fn ask_notaries(&self, lacking: &mut Lacking) -> Result<(), store::Error> {
        for notary in self.remote.0.notaries.clone() {
            if lacking.is_empty() {
                return Ok(());
            }
            if lacking.contains_key(&notary) && lacking.len() == 1 || self.remote.is_me(&notary) {
                continue;
            }
            match self.ask_notary(&notary, lacking).await {
                Ok(()) => {}
                Err(Trouble::Store(error)) => return Err(error),
                Err(Trouble::Failed(why)) => tracing::info!(%notary, %why, "a notary server returned no keys"),
            }
        }
        Ok(())
    }

    async fn ask_notary(&self, notary: &OwnedServerName, lacking: &mut Lacking) -> Result<(), Trouble> {
        let voucher = Arc::new(self.notary_keys(notary).await?);
        let mut batches: Vec<Batch> = lacking.iter().collect::<Vec<_>>().chunks(BATCH_SERVERS).map(batch_of).collect();
        let mut asking = tokio::task::JoinSet::new();
        loop {
            while asking.len() < BATCHES_AT_ONCE
                && let Some(batch) = batches.pop()
            {
                let (keys, notary, voucher) = (self.clone(), notary.clone(), voucher.clone());
                let asked = async move { (keys.ask_batch(&notary, &voucher, &batch).await, batch) };
                asking.spawn(asked.in_current_span());
            }
            let Some(done) = asking.join_next().await else { return Ok(()) };
            match done {
                Ok((Ok(found), _)) => {
                    for (server, ids) in found {
                        self.cross_off(lacking, &server, &ids);
                    }
                }
                // One server in the batch has a great many keys: the halves may fit. Ends at a batch of one.
                Ok((Err(Trouble::Failed(Failed::TooLarge { .. } | Failed::Refused(_))), batch)) if batch.len() > 1 => {
                    let (front, back) = batch.split_at(batch.len() / 2);
                    batches.extend([front.to_vec(), back.to_vec()]);
                }
                Ok((Err(trouble), _)) => return Err(trouble),
                Err(_) => {}
            }
        }
    }

    /// The notary's own keys, fetched from the notary itself.
    async fn notary_keys(&self, notary: &OwnedServerName) -> Result<HashMap<String, Known>, Trouble> {
        let now = self.remote.0.clock.now_ms();
        let read = || {
            let (keys, notary) = (self.clone(), notary.clone());
            base::blocking(move || {
                let stored = signing_key::list(&keys.book().store.read()?, &notary)?;
                let valid = stored.into_iter().filter(|(_, stored)| !stored.expired && stored.valid_until_ms >= now);
                let remembered = valid.filter_map(|(id, stored)| {
                    let known = keys.remember(signing_key::name(&notary, &id), stored)?;
                    Some((id, known))
                });
                Ok::<_, store::Error>(remembered.collect::<HashMap<_, _>>())
            })
        };
        let known = read().await?;
        if !known.is_empty() {
            return Ok(known);
        }
        self.ask_one(notary, Urgency::Person).await?;
        Ok(read().await?)
    }

    async fn ask_batch(
        &self,
        notary: &ServerName,
        voucher: &HashMap<String, Known>,
        batch: &Batch,
    ) -> Result<Vec<(OwnedServerName, Vec<String>)>, Trouble> {
        let now = self.remote.0.clock.now_ms();
        let options = Options { timeout: BATCH_TIMEOUT, max_bytes: BATCH_BYTES_MAX, urgency: Urgency::Person };
        let content = notary_query(batch, now);
        let answer =
            self.remote.request(notary, http::Method::POST, "/_matrix/key/v2/query", Some(content), options).await?;
        let said = json_stream::places(&answer.body, &["server_keys"], ANSWERS_MAX);
        let said = said.map_err(|malformed| Failed::BadAnswer(malformed.to_string()))?;
        let mut checked = Vec::new();
        for place in said {
            match check_notarised(&answer.body[place], notary, voucher, now) {
                Ok(one) if batch.iter().any(|(server, _)| *server == one.server) => checked.push(one),
                Ok(one) => {
                    tracing::debug!(%notary, server = %one.server, "a notary server returned keys that were not \
                     requested")
                }
                Err(why) => tracing::debug!(%notary, %why, "a notary server returned unusable keys"),
            }
        }
        let found = checked.iter().map(|one| (one.server.clone(), one.ids())).collect();
        self.keep(checked).await?;
        Ok(found)
    }

    /// Writes checked answers down, all in one write, and remembers their keys.
    async fn keep(&self, checked: Vec<Checked>) -> Result<(), store::Error> {
        let checked = Arc::new(checked);
        let rows = checked.clone();
        let now = self.remote.0.clock.now_ms();
        self.remote.0.due.written(checked.len());
        let written = self.book().store.write(move |write| {
            for one in rows.iter() {
                for (id, stored) in &one.keys {
                    signing_key::set(write, &one.server, id, stored)?;
                }
                let raw = if one.raw.len() <= ANSWER_KEPT_BYTES_MAX { &one.raw[..] } else { &[] };
                signing_key::set_answer(write, &one.server, now, raw)?;
            }
            Ok::<_, store::Error>(())
        });
        written.await.map_err(store::Error::from)?;
        for one in checked.iter() {
            for (id, stored) in &one.keys {
                self.remember(signing_key::name(&one.server, id), *stored);
            }
            let mut missing = self.book().missing.lock();
            for id in std::iter::once(String::new()).chain(one.ids()) {
                missing.remove(&self.book().mark(&one.server, &id));
            }
        }
        Ok(())
    }

    /// Crosses off the keys that were found. A server for which any key would do is done with any.
    fn cross_off(&self, lacking: &mut Lacking, server: &ServerName, found: &[String]) {
        if let Some(wanted) = lacking.get_mut(server) {
            wanted.retain(|id| !found.contains(id));
            if wanted.is_empty() {
                lacking.remove(server);
            }
        }
    }

    /// The last answer a server gave about its keys, as it signed it, and when: for notary queries of other servers.
    pub fn answer_of(&self, server: &ServerName) -> Result<Option<(u64, Vec<u8>)>, store::Error> {
        Ok(signing_key::answer(&self.book().store.read()?, server)?.filter(|(_, raw)| !raw.is_empty()))
    }

    /// Asks a server for its keys unless that was done lately. For notary queries of other servers.
    pub async fn refresh(&self, server: &ServerName, valid_at_ms: u64) -> Result<(), store::Error> {
        let now = self.remote.0.clock.now_ms();
        let (keys, name) = (self.clone(), server.to_owned());
        let known = base::blocking(move || {
            let read = keys.book().store.read()?;
            signing_key::has_valid(&read, &name, valid_at_ms.max(now))
        });
        if known.await? {
            return Ok(());
        }
        let mut lacking = Lacking::from([(server.to_owned(), BTreeSet::new())]);
        self.forget_missing(&mut lacking, Urgency::Person);
        let asked = self.ask_directly(&mut lacking, DIRECT_AT_ONCE, Urgency::Later).await?;
        self.note_missing(&lacking, &asked);
        Ok(())
    }
}

/// Servers and their needed keys; an empty set means any.
type Lacking = BTreeMap<OwnedServerName, BTreeSet<String>>;
type Batch = Vec<(OwnedServerName, BTreeSet<String>)>;

fn batch_of(servers: &[(&OwnedServerName, &BTreeSet<String>)]) -> Batch {
    servers.iter().map(|(server, ids)| ((*server).clone(), (*ids).clone())).collect()
}

fn notary_query(batch: &Batch, now_ms: u64) -> Vec<u8> {
    let criteria = serde_json::json!({ "minimum_valid_until_ts": now_ms });
    let servers: serde_json::Map<String, serde_json::Value> = gathered(batch.iter().map(|(server, ids)| {
        let ids: serde_json::Map<_, _> = gathered(ids.iter().map(|id| (id.clone(), criteria.clone())));
        (server.to_string(), ids.into())
    }));
    serde_json::json!({ "server_keys": servers }).to_string().into_bytes()
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Failed(#[from] Failed),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// An answer about one server whose signatures were right.
pub(super) struct Checked {
    pub(super) server: OwnedServerName,
    pub(super) keys: Vec<(String, Stored)>,
    raw: Vec<u8>,
}

impl Checked {
    fn ids(&self) -> Vec<String> {
        self.keys.iter().map(|(id, _)| id.clone()).collect()
    }
}

#[derive(Deserialize)]
struct Published {
    server_name: OwnedServerName,
    verify_keys: BTreeMap<String, PublishedKey>,
    #[serde(default)]
    old_verify_keys: BTreeMap<String, PublishedOldKey>,
    valid_until_ts: u64,
    signatures: BTreeMap<OwnedServerName, BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct PublishedKey {
    key: String,
}

#[derive(Deserialize)]
struct PublishedOldKey {
    key: String,
    expired_ts: u64,
}

/// Checks a server's answer about its own keys: at least one of the listed keys signed it, and none of those signatures
/// is wrong.
pub(super) fn check_answer(raw: &[u8], now_ms: u64) -> Result<Checked, String> {
    if raw.len() as u64 > ANSWER_BYTES_MAX {
        return Err("too long".into());
    }
    let said: Published = serde_json::from_slice(raw).map_err(brief)?;
    if said.verify_keys.len() + said.old_verify_keys.len() > KEYS_MAX {
        return Err(format!("more than {KEYS_MAX} keys"));
    }
    let mut keys = Vec::new();
    let mut signed = false;
    let signatures = said.signatures.get(&said.server_name);
    for (id, published) in said.verify_keys.iter().filter(|(id, _)| is_usable_id(id)) {
        let key = parse_key(&published.key)?;
        if signatures.is_some_and(|signatures| signatures.contains_key(id)) {
            sign::check_json(raw, said.server_name.as_str(), id, &key).map_err(|reject| reject.to_string())?;
            signed = true;
        }
        let valid_until_ms = said.valid_until_ts.min(now_ms + VALID_MS_MAX);
        keys.push((id.clone(), Stored { key: key.to_bytes(), valid_until_ms, expired: false }));
    }
    if !signed {
        return Err(format!("{} did not sign its keys with any of them", said.server_name));
    }
    for (id, published) in said.old_verify_keys.iter().filter(|(id, _)| is_usable_id(id)) {
        if said.verify_keys.contains_key(id) {
            continue;
        }
        // A retired key may be of any age; one that cannot be read is passed over.
        if let Ok(key) = parse_key(&published.key) {
            let stored = Stored { key: key.to_bytes(), valid_until_ms: published.expired_ts, expired: true };
            keys.push((id.clone(), stored));
        }
    }
    Ok(Checked { server: said.server_name, keys, raw: raw.to_vec() })
}

/// As [`check_answer`], and the notary signed it too.
fn check_notarised(
    raw: &[u8],
    notary: &ServerName,
    voucher: &HashMap<String, Known>,
    now_ms: u64,
) -> Result<Checked, String> {
    let vouched = voucher.iter().any(|(id, known)| sign::check_json(raw, notary.as_str(), id, &known.key).is_ok());
    if !vouched {
        return Err("not signed by the notary".into());
    }
    check_answer(raw, now_ms)
}

fn is_usable_id(id: &str) -> bool {
    id.starts_with("ed25519:") && id.len() <= KEY_ID_BYTES_MAX && !id.contains('\0')
}

fn parse_key(text: &str) -> Result<PublicKey, String> {
    PublicKey::from_base64(text).ok_or_else(|| "a key is not an ed25519 key in base64".to_owned())
}

/// The keys that event checks see: cached, and to be believed for the time asked.
impl sign::Keys for Keys {
    fn get(&self, server: &str, key_id: &str, at_ts: u64) -> Option<PublicKey> {
        let server = <&ServerName>::try_from(server).ok()?;
        let known = self.cached(server, key_id).unwrap_or_else(|error| {
            tracing::warn!(%error, "a signing key could not be read");
            None
        })?;
        known.is_valid_at(at_ts).then(|| (*known.key).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_published_keys_or_refused() {
        let key = sign::Key::from_seed("k", [7; 32]);
        let mut said = serde_json::json!({
            "server_name": "a.example", "valid_until_ts": u64::MAX,
            "verify_keys": { "ed25519:k": { "key": key.public().to_base64() } },
            "old_verify_keys": { "ed25519:o": { "key": "AAAA", "expired_ts": 5 } },
        });
        let name = ruma::server_name!("a.example");
        sign::sign_json(said.as_object_mut().unwrap(), name, &key).unwrap();
        let seed = said.to_string();
        assert!(check_answer(seed.as_bytes(), 1_700_000_000_000).is_ok());
        let voucher = HashMap::new();
        crate::base::any_bytes::any_bytes(&[seed.as_bytes()], |bytes| {
            let _ = check_answer(bytes, 1_700_000_000_000).is_ok();
            let _ =
                (check_notarised(bytes, name, &voucher, 0).is_ok(), parse_key(&String::from_utf8_lossy(bytes)).is_ok());
        });
    }
}
