//! End-to-end keys: what devices upload, what others are told, and handing out one-time keys.
//!
//! Client-server API, "End-to-End Encryption"; server-server API, "End-to-End Encryption". The server understands no
//! key; it keeps them, counts them and hands them out. Keys of other servers' users are asked for each time, never kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::time::Duration;

use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

use crate::base::blocking;
use crate::budget::{Grant, parsed_bytes_max};
use crate::matrix::json::{self, partial};
use crate::remote::{Failed, Options};
use crate::store::tables::user::e2ee_key::{self, FallbackKey, OneTimeKey, Purpose};
use crate::store::tables::user::{self, device};
use crate::store::{Change, Get, UserNum};
use crate::user::{Error, Requester, Users, account, sharing};

/// Of one device, all algorithms together; apps keep some fifty.
const ONE_TIME_KEYS_MAX: usize = 1000;
/// Of one device, one for each algorithm; there is one algorithm that apps use.
pub(in crate::user) const FALLBACK_KEYS_MAX: usize = 16;
const KEY_BYTES_MAX: usize = 4 << 10;
const DEVICE_KEYS_BYTES_MAX: usize = 16 << 10;
/// And what they may take when they are read: a handful of objects.
const DEVICE_KEYS_PARSED_BYTES_MAX: u64 = 64 << 10;
const KEY_NAME_BYTES_MAX: usize = 128;
/// The algorithm every app counts, even at none.
const USUAL_ALGORITHM: &str = "signed_curve25519";

/// Other servers asked at once for one request.
const ASKED_AT_ONCE: usize = 4;
/// Users asked for in one question; halved when the answer is too long.
const USERS_PER_QUESTION: usize = 50;
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// One-time keys handed out in one write; each is paid for in full before it is taken.
const CLAIMS_PER_WRITE: usize = 24;
/// A longer master key of another server's user is shown as it came, without the viewer's own signature.
const MASTER_PARSED_BYTES_MAX: u64 = 128 << 10;
/// A key is held as it was told, and once more in the answer that is written.
const COPIES: u64 = 2;
/// What holds it beside its text: its place in a map, its name.
const ENTRY_BYTES: u64 = 256;
/// Paid for before anything is looked up.
const ANSWER_BYTES: u64 = 16 << 10;

/// What an app uploads.
#[derive(Deserialize)]
pub struct Upload {
    #[serde(default)]
    device_keys: Option<Value>,
    #[serde(default)]
    one_time_keys: Map<String, Value>,
    #[serde(default)]
    fallback_keys: Map<String, Value>,
}

/// User → device → algorithm.
pub type Claims = BTreeMap<OwnedUserId, BTreeMap<String, String>>;

/// Who may see what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    Local(UserNum),
    OtherServer,
}

impl Viewer {
    fn num(self) -> Option<UserNum> {
        match self {
            Viewer::Local(num) => Some(num),
            Viewer::OtherServer => None,
        }
    }
}

/// The answer about keys, in the shape it is sent in, with what pays for it.
#[derive(Serialize)]
pub struct Answered {
    device_keys: BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>,
    master_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    self_signing_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    user_signing_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    failures: BTreeMap<OwnedServerName, Value>,
    #[serde(skip)]
    grant: Grant,
}

impl Answered {
    /// The JSON and the grant that pays for it.
    pub fn into_json(self) -> (Vec<u8>, Grant) {
        (serde_json::to_vec(&self).unwrap_or_else(|_| b"{}".to_vec()), self.grant)
    }
}

/// The answer about one-time keys, in the shape it is sent in, with what pays for it.
#[derive(Serialize)]
pub struct Claimed {
    one_time_keys: BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>,
    /// Other servers are told of none.
    #[serde(skip_serializing_if = "Option::is_none")]
    failures: Option<BTreeMap<OwnedServerName, Value>>,
    #[serde(skip)]
    grant: Grant,
}

impl Claimed {
    /// The JSON and the grant that pays for it.
    pub fn into_json(self) -> (Vec<u8>, Grant) {
        (serde_json::to_vec(&self).unwrap_or_else(|_| b"{}".to_vec()), self.grant)
    }
}

impl Users {
    /// Keeps a device's keys. Answers how many one-time keys it has of each algorithm.
    pub async fn upload_keys(&self, requester: &Requester, upload: Upload) -> Result<BTreeMap<String, u64>, Error> {
        let device_keys = upload.device_keys.map(|keys| checked_device_keys(requester, keys)).transpose()?;
        let one_time = checked_keys(upload.one_time_keys)?;
        let fallback = checked_keys(upload.fallback_keys)?;
        let (requester, server) = (requester.clone(), self.server().to_owned());
        self.write(move |w| {
            let (user, device_id) = (requester.user_num, &requester.device_id);
            let fresh = new_one_time(w, user, device_id, one_time)?;
            for (algorithm, key) in &fresh {
                e2ee_key::add_one_time(w, user, device_id, algorithm, key)?;
            }
            check_fallback_count(w, user, device_id, &fallback)?;
            for (algorithm, OneTimeKey { id, key }) in fallback {
                let before = e2ee_key::fallback(w, user, device_id, &algorithm)?;
                let used = before.is_some_and(|before| before.used && before.id == id && before.key == key);
                e2ee_key::set_fallback(w, user, device_id, &algorithm, &FallbackKey { id, key, used })?;
            }
            if let Some(keys) = device_keys
                && e2ee_key::device_keys(w, user, device_id)?.as_ref() != Some(&keys)
            {
                e2ee_key::set_device_keys(w, user, device_id, &keys)?;
                sharing::device_changed(w, &server, user, &requester.user_id, device_id)?;
            }
            counts(w, user, device_id)
        })
        .await
    }

    /// The identity and cross-signing keys of users, of all their devices where none are named. What another server does
    /// not tell is among the failures.
    pub async fn keys_query(
        &self,
        viewer: Viewer,
        wanted: BTreeMap<OwnedUserId, Vec<String>>,
        timeout: Option<Duration>,
    ) -> Result<Answered, Error> {
        let grant = self.0.parts.budget.account("response_bodies").take(ANSWER_BYTES).await?;
        let mut answered = Answered {
            device_keys: BTreeMap::new(),
            master_keys: BTreeMap::new(),
            self_signing_keys: BTreeMap::new(),
            user_signing_keys: BTreeMap::new(),
            failures: BTreeMap::new(),
            grant,
        };
        let server = self.server().to_owned();
        let (here, elsewhere): (BTreeMap<_, _>, BTreeMap<_, _>) =
            wanted.into_iter().partition(|(user, _)| user.server_name() == server);
        let store = self.0.parts.store.clone();
        answered = blocking(move || {
            let get = store.read()?;
            for (user_id, devices) in here {
                answered.add_local(&get, viewer, user_id, &devices)?;
            }
            Ok::<_, Error>(answered)
        })
        .await?;
        if let Viewer::Local(num) = viewer {
            self.ask_keys(elsewhere, timeout.unwrap_or(QUESTION_TIMEOUT), &mut answered).await;
            self.add_viewers_signatures(num, &mut answered).await?;
        }
        Ok(answered)
    }

    /// Hands out a one-time key for each device named, or its fallback key.
    pub async fn keys_claim(
        &self,
        viewer: Viewer,
        wanted: Claims,
        timeout: Option<Duration>,
    ) -> Result<Claimed, Error> {
        let grant = self.0.parts.budget.account("response_bodies").take(ANSWER_BYTES).await?;
        let failures = (viewer != Viewer::OtherServer).then(BTreeMap::new);
        let mut claimed = Claimed { one_time_keys: BTreeMap::new(), failures, grant };
        let server = self.server().to_owned();
        let (here, elsewhere): (Claims, Claims) =
            wanted.into_iter().partition(|(user, _)| user.server_name() == server);
        self.claim_local(here, &mut claimed).await?;
        if viewer != Viewer::OtherServer {
            self.claim_elsewhere(elsewhere, timeout.unwrap_or(QUESTION_TIMEOUT), &mut claimed).await;
        }
        Ok(claimed)
    }

    /// What another server is told of a local user's devices: JSON, with what pays for it.
    pub async fn devices_for_server(&self, user_id: &UserId) -> Result<(Vec<u8>, Grant), Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            device_id: &'a str,
            keys: Value,
            #[serde(skip_serializing_if = "Option::is_none")]
            device_display_name: Option<String>,
        }
        let mut grant = self.0.parts.budget.account("response_bodies").take(ANSWER_BYTES).await?;
        let user_id = user_id.to_owned();
        self.read(move |get| {
            let num = account::local(get, &user_id)?;
            let stream_id = device::last_change(get, num)?.map_or(0, |at| at.0);
            let mut out = format!("{{\"user_id\":{},\"stream_id\":{stream_id}", json!(user_id)).into_bytes();
            for (name, purpose) in [("master_key", Purpose::Master), ("self_signing_key", Purpose::SelfSigning)] {
                if let Some(found) = cross_key(get, num, &user_id, purpose, None)? {
                    out.extend_from_slice(format!(",\"{name}\":{found}").as_bytes());
                }
            }
            out.extend_from_slice(b",\"devices\":[");
            let mut first = true;
            for id in device::ids(get, num)? {
                let Some(keys) = device_keys(get, num, &user_id, &id, None)? else { continue };
                let device_display_name = device::get(get, num, &id)?.and_then(|row| row.display_name);
                let shown = serde_json::to_vec(&Shown { device_id: &id, keys, device_display_name })?;
                // The list grows by doubling.
                grant.grow(shown.len() as u64 * COPIES)?;
                out.extend_from_slice(if std::mem::take(&mut first) { b"" } else { b"," });
                out.extend_from_slice(&shown);
            }
            out.extend_from_slice(b"]}");
            Ok((out, grant))
        })
        .await
    }

    /// Another server says (in an `m.device_list_update` or `m.signing_key_update` unit) that one of its users has other
    /// devices or keys. Whoever shares a room with that user will ask for them; nothing else of the unit is believed.
    pub async fn devices_changed_elsewhere(&self, origin: &ServerName, content: &RawValue) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Whose {
            user_id: OwnedUserId,
        }
        let Whose { user_id } =
            serde_json::from_str(content.get()).map_err(|wrong| Error::invalid(wrong.to_string()))?;
        if user_id.server_name() != origin {
            return Err(Error::Forbidden("News of another server's user".to_owned()));
        }
        let circle = self
            .read(move |get| match user::num(get, user_id.as_str())? {
                Some(num) => Ok(Some((num, sharing::locals_of_remote(get, num)?))),
                None => Ok(None),
            })
            .await?;
        let Some((num, users)) = circle.filter(|(_, users)| !users.is_empty()) else { return Ok(()) };
        self.write(move |w| {
            device::changed(w, num)?;
            w.announce(Change { users, ..Change::default() });
            Ok(())
        })
        .await
    }

    /// Asks the servers of other users, a few at once.
    async fn ask_keys(&self, wanted: BTreeMap<OwnedUserId, Vec<String>>, timeout: Duration, answered: &mut Answered) {
        let mut questions: VecDeque<(OwnedServerName, Vec<(OwnedUserId, Vec<String>)>)> = VecDeque::new();
        let mut by_server: BTreeMap<OwnedServerName, Vec<(OwnedUserId, Vec<String>)>> = BTreeMap::new();
        for (user, devices) in wanted {
            by_server.entry(user.server_name().to_owned()).or_default().push((user, devices));
        }
        for (server, users) in by_server {
            questions.extend(users.chunks(USERS_PER_QUESTION).map(|part| (server.clone(), part.to_vec())));
        }
        let mut asked = JoinSet::new();
        loop {
            while asked.len() < ASKED_AT_ONCE
                && let Some((server, users)) = questions.pop_front()
            {
                if answered.failures.contains_key(&server) {
                    continue;
                }
                let users_here = self.clone();
                asked.spawn(async move {
                    let wanted: BTreeMap<_, _> = users.iter().map(|(user, devices)| (user, devices)).collect();
                    let body = serde_json::to_vec(&BTreeMap::from([("device_keys", wanted)])).unwrap_or_default();
                    let path = "/_matrix/federation/v1/user/keys/query";
                    let answer = users_here.ask(&server, path, body, timeout).await;
                    (server, users, answer)
                });
            }
            let Some(done) = asked.join_next().await else { return };
            let Ok((server, mut users, answer)) = done else { continue };
            match answer {
                Ok(answer) => {
                    let asked_for: BTreeSet<_> = users.into_iter().map(|(user, _)| user).collect();
                    if let Err(failed) = answered.add_remote(&asked_for, &answer.body) {
                        answered.failures.insert(server, failure(&failed));
                    }
                }
                Err(Failed::TooLarge { .. }) if users.len() > 1 => {
                    let half = users.split_off(users.len() / 2);
                    questions.push_front((server.clone(), half));
                    questions.push_front((server, users));
                }
                Err(failed) => {
                    answered.failures.insert(server, failure(&failed));
                }
            }
        }
    }

    /// Adds what the viewer signed of other servers' users: only they may see that.
    async fn add_viewers_signatures(&self, viewer: UserNum, answered: &mut Answered) -> Result<(), Error> {
        let masters = std::mem::take(&mut answered.master_keys);
        let server = self.server().to_owned();
        answered.master_keys = self
            .read(move |get| {
                let mut out = BTreeMap::new();
                for (user_id, raw) in masters {
                    let signed = match user_id.server_name() == server {
                        true => None,
                        false => signed_by_viewer(get, viewer, &user_id, &raw)?,
                    };
                    out.insert(user_id, signed.unwrap_or(raw));
                }
                Ok(out)
            })
            .await?;
        Ok(())
    }

    async fn ask(
        &self,
        server: &ServerName,
        path: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<crate::remote::Answer, Failed> {
        let options = Options { timeout: timeout.min(Duration::from_secs(30)), ..Options::insisting() };
        self.0.parts.remote.request(server, http::Method::POST, path, Some(body), options).await
    }

    async fn claim_local(&self, wanted: Claims, claimed: &mut Claimed) -> Result<(), Error> {
        let mut claims = wanted.into_iter().flat_map(|(user, devices)| {
            devices.into_iter().map(move |(device, algorithm)| (user.clone(), device, algorithm))
        });
        loop {
            let part: Vec<(OwnedUserId, String, String)> = claims.by_ref().take(CLAIMS_PER_WRITE).collect();
            if part.is_empty() {
                return Ok(());
            }
            // Ahead: a key that was taken and then could not be told would be lost.
            let before = claimed.grant.bytes();
            claimed.grant.grow(part.len() as u64 * price(KEY_BYTES_MAX + KEY_NAME_BYTES_MAX))?;
            let taken = self.write(move |w| take_keys(w, part)).await?;
            let paid: u64 = taken.iter().map(|(_, _, key)| price(key.get().len())).sum();
            claimed.grant.shrink((claimed.grant.bytes() - before).saturating_sub(paid));
            for (user, device_id, key) in taken {
                claimed.one_time_keys.entry(user).or_default().insert(device_id, key);
            }
        }
    }

    async fn claim_elsewhere(&self, wanted: Claims, timeout: Duration, claimed: &mut Claimed) {
        let mut by_server: BTreeMap<OwnedServerName, Claims> = BTreeMap::new();
        for (user, devices) in wanted {
            by_server.entry(user.server_name().to_owned()).or_default().insert(user, devices);
        }
        let mut left = by_server.into_iter();
        let mut asked = JoinSet::new();
        loop {
            while asked.len() < ASKED_AT_ONCE
                && let Some((server, claims)) = left.next()
            {
                let users = self.clone();
                asked.spawn(async move {
                    let body = serde_json::to_vec(&BTreeMap::from([("one_time_keys", &claims)])).unwrap_or_default();
                    let answer = users.ask(&server, "/_matrix/federation/v1/user/keys/claim", body, timeout).await;
                    (server, claims, answer)
                });
            }
            let Some(done) = asked.join_next().await else { return };
            let Ok((server, claims, answer)) = done else { continue };
            let taken = answer.and_then(|answer| claimed.add_remote(&claims, &answer.body));
            if let Err(failed) = taken {
                claimed.failures.get_or_insert_default().insert(server, failure(&failed));
            }
        }
    }
}

impl Claimed {
    /// Takes over what a server tells of the devices it was asked for, and of no others. What of it is not too long and fits
    /// our memory stays, also when the rest does not.
    fn add_remote(&mut self, asked_for: &Claims, told: &[u8]) -> Result<(), Failed> {
        each_of(told, "one_time_keys", &mut |user, devices| {
            let Some((user, asked)) = asked_for.iter().find(|(name, _)| name.as_str() == user) else { return Ok(()) };
            each_in(devices, &mut |device, key| {
                if asked.contains_key(device) && key.get().len() <= KEY_BYTES_MAX && !is_too_deep(key) {
                    self.grant.grow(price(key.get().len()))?;
                    self.one_time_keys.entry(user.clone()).or_default().insert(device.to_owned(), key.to_owned());
                }
                Ok(())
            })
        })
    }
}

/// Shows the members of one member of an object.
fn each_of(
    object: &[u8],
    name: &str,
    visit: &mut dyn FnMut(&str, &RawValue) -> Result<(), Failed>,
) -> Result<(), Failed> {
    partial::each_member(object, &mut |key, value| match key == name {
        true => each_in(value, visit),
        false => Ok(()),
    })
}

/// Shows the members of what a server tells of one user, or of all. What is no object tells of nobody, and what is told
/// beside it is taken.
fn each_in(object: &RawValue, visit: &mut dyn FnMut(&str, &RawValue) -> Result<(), Failed>) -> Result<(), Failed> {
    match partial::each_member(object.get().as_bytes(), visit) {
        Err(Failed::BadAnswer(_)) => Ok(()),
        told => told,
    }
}

/// Apps get a key beside others, in one answer.
fn is_too_deep(key: &RawValue) -> bool {
    json::is_deeper_than(key.get().as_bytes(), json::EVENT_DEPTH_MAX)
}

/// What a key in an answer is charged.
fn price(bytes: usize) -> u64 {
    bytes as u64 * COPIES + ENTRY_BYTES
}

impl Answered {
    fn add_local(
        &mut self,
        get: &impl Get,
        viewer: Viewer,
        user_id: OwnedUserId,
        devices: &[String],
    ) -> Result<(), Error> {
        let Ok(num) = account::local(get, &user_id) else { return Ok(()) };
        let mut found = BTreeMap::new();
        let mut ids = Vec::new();
        e2ee_key::each_device_keys(get, num, &mut |id, _| {
            ids.push(id.to_owned());
            Ok(ControlFlow::Continue(()))
        })?;
        for id in ids.into_iter().filter(|id| devices.is_empty() || devices.contains(id)) {
            if let Some(keys) = device_keys(get, num, &user_id, &id, viewer.num())? {
                found.insert(id, self.raw(&keys)?);
            }
        }
        let mut cross = |purpose| match cross_key(get, num, &user_id, purpose, viewer.num())? {
            Some(key) => self.raw(&key).map(Some),
            None => Ok(None),
        };
        let (master, own) = (cross(Purpose::Master)?, cross(Purpose::SelfSigning)?);
        let others = if viewer == Viewer::Local(num) { cross(Purpose::UserSigning)? } else { None };
        self.master_keys.extend(master.map(|key| (user_id.clone(), key)));
        self.self_signing_keys.extend(own.map(|key| (user_id.clone(), key)));
        self.user_signing_keys.extend(others.map(|key| (user_id.clone(), key)));
        self.device_keys.insert(user_id, found);
        Ok(())
    }

    fn raw(&mut self, value: &Value) -> Result<Box<RawValue>, Error> {
        let raw = to_raw_value(value).map_err(|wrong| Error::invalid(wrong.to_string()))?;
        self.grant.grow(raw.get().len() as u64 * 2)?;
        Ok(raw)
    }

    /// Takes over what a server says of the users it was asked for, and of no others.
    fn add_remote(&mut self, asked_for: &BTreeSet<OwnedUserId>, told: &[u8]) -> Result<(), Failed> {
        let Answered { device_keys, master_keys, self_signing_keys, grant, .. } = self;
        each_of(told, "device_keys", &mut |user, devices| {
            let Some(user) = asked_for.iter().find(|asked| asked.as_str() == user) else { return Ok(()) };
            grant.grow(ENTRY_BYTES)?;
            let of_user = device_keys.entry(user.clone()).or_default();
            each_in(devices, &mut |device, keys| {
                if is_too_deep(keys) {
                    return Ok(());
                }
                grant.grow(price(device.len() + keys.get().len()))?;
                of_user.insert(device.to_owned(), keys.to_owned());
                Ok(())
            })
        })?;
        for (name, kept) in [("master_keys", master_keys), ("self_signing_keys", self_signing_keys)] {
            each_of(told, name, &mut |user, key| {
                let asked = asked_for.iter().find(|asked| asked.as_str() == user && !is_too_deep(key));
                let Some(user) = asked else { return Ok(()) };
                grant.grow(price(key.get().len()))?;
                kept.insert(user.clone(), key.to_owned());
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// A device's identity keys as `viewer` may see them, with the signatures over them and its name.
pub(in crate::user) fn device_keys(
    get: &impl Get,
    user: UserNum,
    user_id: &UserId,
    device_id: &str,
    viewer: Option<UserNum>,
) -> Result<Option<Value>, Error> {
    let Some(mut keys) = e2ee_key::device_keys(get, user, device_id)? else { return Ok(None) };
    add_signatures(get, &mut keys, user, user_id, device_id, viewer)?;
    if let Some(name) = device::get(get, user, device_id)?.and_then(|row| row.display_name) {
        keys["unsigned"] = json!({ "device_display_name": name });
    }
    Ok(Some(keys))
}

/// A cross-signing key as `viewer` may see it.
pub(in crate::user) fn cross_key(
    get: &impl Get,
    user: UserNum,
    user_id: &UserId,
    purpose: Purpose,
    viewer: Option<UserNum>,
) -> Result<Option<Value>, Error> {
    let Some(mut found) = e2ee_key::cross(get, user, purpose)? else { return Ok(None) };
    if let Some(key_id) = public_key(&found).map(ToOwned::to_owned) {
        add_signatures(get, &mut found, user, user_id, &key_id, viewer)?;
    }
    Ok(Some(found))
}

/// The one public key of a cross-signing key, in base64.
pub(in crate::user) fn public_key(found: &Value) -> Option<&str> {
    found.get("keys")?.as_object()?.values().next()?.as_str()
}

fn add_signatures(
    get: &impl Get,
    signed: &mut Value,
    owner: UserNum,
    owner_id: &UserId,
    key_id: &str,
    viewer: Option<UserNum>,
) -> Result<(), Error> {
    for one in e2ee_key::signatures(get, owner, key_id, viewer)? {
        let signer = if one.signer == owner { owner_id.to_owned() } else { account::id_of(get, one.signer)? };
        add_signature(signed, signer.as_str(), &one.signing_key, one.signature);
    }
    Ok(())
}

/// Puts a signature into an object that may come from elsewhere, so nothing is taken for granted about its shape.
fn add_signature(signed: &mut Value, signer: &str, signing_key: &str, signature: String) {
    let Some(object) = signed.as_object_mut() else { return };
    let all = object.entry("signatures").or_insert_with(|| json!({}));
    let Some(by) = all.as_object_mut().map(|all| all.entry(signer).or_insert_with(|| json!({}))) else { return };
    if let Some(by) = by.as_object_mut() {
        by.insert(signing_key.to_owned(), signature.into());
    }
}

fn signed_by_viewer(
    get: &impl Get,
    viewer: UserNum,
    user_id: &UserId,
    raw: &RawValue,
) -> Result<Option<Box<RawValue>>, Error> {
    let Some(owner) = user::num(get, user_id.as_str())? else { return Ok(None) };
    if parsed_bytes_max(raw.get().as_bytes()) > MASTER_PARSED_BYTES_MAX {
        return Ok(None);
    }
    let Ok(mut master) = serde_json::from_str::<Value>(raw.get()) else { return Ok(None) };
    let Some(key_id) = public_key(&master).filter(|id| !id.contains('\0')).map(ToOwned::to_owned) else {
        return Ok(None);
    };
    let signatures = e2ee_key::signatures(get, owner, &key_id, Some(viewer))?;
    if signatures.is_empty() {
        return Ok(None);
    }
    for one in signatures {
        let signer = account::id_of(get, one.signer)?;
        add_signature(&mut master, signer.as_str(), &one.signing_key, one.signature);
    }
    Ok(to_raw_value(&master).ok())
}

fn counts(get: &impl Get, user: UserNum, device_id: &str) -> Result<BTreeMap<String, u64>, Error> {
    let mut counts: BTreeMap<String, u64> = e2ee_key::one_time_counts(get, user, device_id)?.into_iter().collect();
    counts.entry(USUAL_ALGORITHM.to_owned()).or_insert(0);
    Ok(counts)
}

/// Device keys fit to be kept: of the device that sends them, without others' signatures.
fn checked_device_keys(requester: &Requester, mut keys: Value) -> Result<Value, Error> {
    let same = keys["user_id"] == requester.user_id.as_str() && keys["device_id"] == requester.device_id.as_str();
    if !same || !keys["algorithms"].is_array() || !keys["keys"].is_object() {
        return Err(Error::invalid("These are not the keys of this device"));
    }
    keep_own_signatures(&mut keys, &requester.user_id);
    let text = keys.to_string();
    if text.len() > DEVICE_KEYS_BYTES_MAX || parsed_bytes_max(text.as_bytes()) > DEVICE_KEYS_PARSED_BYTES_MAX {
        return Err(Error::TooLarge(format!("The keys of a device may have {DEVICE_KEYS_BYTES_MAX} bytes")));
    }
    Ok(keys)
}

/// Drops what is not signed content: `unsigned`, and signatures by others.
pub(in crate::user) fn keep_own_signatures(signed: &mut Value, user_id: &UserId) {
    let Some(object) = signed.as_object_mut() else { return };
    object.remove("unsigned");
    if let Some(signatures) = object.get_mut("signatures").and_then(Value::as_object_mut) {
        signatures.retain(|signer, _| signer == user_id.as_str());
    }
}

/// `algorithm:id` → key, taken apart.
fn checked_keys(keys: Map<String, Value>) -> Result<Vec<(String, OneTimeKey)>, Error> {
    if keys.len() > ONE_TIME_KEYS_MAX {
        return Err(Error::TooLarge(format!("A device may have {ONE_TIME_KEYS_MAX} one-time keys")));
    }
    let mut checked = Vec::with_capacity(keys.len());
    for (name, key) in keys {
        let parts = name.split_once(':').filter(|_| name.len() <= KEY_NAME_BYTES_MAX && !name.contains('\0'));
        let Some((algorithm, id)) = parts else {
            return Err(Error::invalid("A one-time key is named by its algorithm, a colon and an id"));
        };
        if !(key.is_object() || key.is_string()) || key.to_string().len() > KEY_BYTES_MAX {
            return Err(Error::invalid("A one-time key is a text or an object, and not long"));
        }
        checked.push((algorithm.to_owned(), OneTimeKey { id: id.to_owned(), key }));
    }
    Ok(checked)
}

/// The keys a device does not have yet. The same id with another key is refused: somebody may have been given the first.
fn new_one_time(
    get: &impl Get,
    user: UserNum,
    device_id: &str,
    uploaded: Vec<(String, OneTimeKey)>,
) -> Result<Vec<(String, OneTimeKey)>, Error> {
    if uploaded.is_empty() {
        return Ok(uploaded);
    }
    let mut known = BTreeMap::new();
    e2ee_key::each_one_time(get, user, device_id, &mut |algorithm, _, key| {
        known.insert((algorithm.to_owned(), key.id), key.key);
        Ok(ControlFlow::Continue(()))
    })?;
    let mut fresh = Vec::new();
    for (algorithm, key) in uploaded {
        match known.get(&(algorithm.clone(), key.id.clone())) {
            None => fresh.push((algorithm, key)),
            Some(same) if same_key(same, &key.key) => {}
            Some(_) => return Err(Error::invalid(format!("The one-time key {} exists with another value", key.id))),
        }
    }
    if known.len() + fresh.len() > ONE_TIME_KEYS_MAX {
        return Err(Error::TooLarge(format!("A device may have {ONE_TIME_KEYS_MAX} one-time keys")));
    }
    Ok(fresh)
}

/// Every sync lists the algorithms that a device has fallback keys of.
fn check_fallback_count(
    get: &impl Get,
    user: UserNum,
    device_id: &str,
    uploaded: &[(String, OneTimeKey)],
) -> Result<(), Error> {
    let mut fresh: BTreeSet<&str> = BTreeSet::new();
    for (algorithm, _) in uploaded {
        if e2ee_key::fallback(get, user, device_id, algorithm)?.is_none() {
            fresh.insert(algorithm);
        }
    }
    if fresh.is_empty() || e2ee_key::fallback_count(get, user, device_id)? + fresh.len() <= FALLBACK_KEYS_MAX {
        return Ok(());
    }
    Err(Error::TooLarge(format!("A device may have fallback keys of {FALLBACK_KEYS_MAX} algorithms")))
}

/// Signatures may differ between two uploads of one key.
fn same_key(one: &Value, other: &Value) -> bool {
    match (one.get("key"), other.get("key")) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// Takes a key for each claim. Answers user, device and `{"algorithm:id": key}`; devices without one are left out.
fn take_keys(
    w: &mut crate::store::Write<'_>,
    claims: Vec<(OwnedUserId, String, String)>,
) -> Result<Vec<(OwnedUserId, String, Box<RawValue>)>, Error> {
    let mut taken = Vec::new();
    let mut wake = BTreeSet::new();
    for (user_id, device_id, algorithm) in claims {
        let Ok(num) = account::local(w, &user_id) else { continue };
        if device_id.contains('\0') || algorithm.contains('\0') {
            continue;
        }
        let key = match e2ee_key::take_one_time(w, num, &device_id, &algorithm)? {
            Some(OneTimeKey { id, key }) => Some((id, key)),
            None => match e2ee_key::fallback(w, num, &device_id, &algorithm)? {
                Some(mut fallback) => {
                    let given = (fallback.id.clone(), fallback.key.clone());
                    if !fallback.used {
                        fallback.used = true;
                        e2ee_key::set_fallback(w, num, &device_id, &algorithm, &fallback)?;
                    }
                    Some(given)
                }
                None => None,
            },
        };
        if let Some((id, key)) = key {
            wake.insert(num);
            let named = to_raw_value(&BTreeMap::from([(format!("{algorithm}:{id}"), key)]));
            taken.push((user_id, device_id, named.map_err(|wrong| Error::invalid(wrong.to_string()))?));
        }
    }
    w.announce(Change { users: wake.into_iter().collect(), ..Change::default() });
    Ok(taken)
}

fn failure(failed: &Failed) -> Value {
    json!({ "errcode": "M_UNKNOWN", "error": format!("The server {failed}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    fn claimed(budget: &Budget) -> Claimed {
        let grant = budget.account("response_bodies").try_take(ANSWER_BYTES).unwrap();
        Claimed { one_time_keys: BTreeMap::new(), failures: Some(BTreeMap::new()), grant }
    }

    /// One user's keys of another shape, or nested without end, once lost those of everybody on that server.
    #[test]
    fn odd_keys_of_one_user_leave_those_of_others_alone() {
        let budget = Budget::for_tests();
        let mut answer = claimed(&budget);
        let users = ["@a:far.test", "@b:far.test", "@c:far.test", "@d:far.test"];
        let device = || BTreeMap::from([("D".to_owned(), "curve".to_owned())]);
        let asked: Claims = users.iter().map(|user| ((*user).try_into().unwrap(), device())).collect();
        let deep = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
        let told = format!(
            r#"{{"one_time_keys":{{"@a:far.test":[],"@b:far.test":{{"D":{deep}}},"@c:far.test":{{"\ud800":1}},"@d:far.test":{{"D":1}}}}}}"#
        );
        answer.add_remote(&asked, told.as_bytes()).unwrap();
        let json = answer.into_json().0;
        assert_eq!(String::from_utf8(json).unwrap(), r#"{"one_time_keys":{"@d:far.test":{"D":1}},"failures":{}}"#);
    }

    /// A key `[0,0,…]` of half a megabyte once became sixteen on the heap, and on nobody's account.
    #[test]
    fn of_another_servers_keys_only_those_asked_for_are_kept_and_paid_for() {
        let budget = Budget::for_tests();
        let mut answer = claimed(&budget);
        let (bob, device) = ("@bob:far.test", BTreeMap::from([("D".to_owned(), "curve".to_owned())]));
        let asked: Claims = [(bob.try_into().unwrap(), device)].into();
        let long = format!("[{}0]", "0,".repeat(200_000));
        let others: String = (0..10_000).map(|n| format!("\"X{n}\":0,")).collect();
        let told = format!(
            r#"{{"one_time_keys": {{"@eve:far.test": {{"D": 1}}, "{bob}": {{{others} "D": {long}, "D": {{"curve:A": "key"}}}}}}}}"#
        );
        answer.add_remote(&asked, told.as_bytes()).unwrap();
        assert!(answer.grant.bytes() > ANSWER_BYTES && answer.grant.bytes() < ANSWER_BYTES + 1024);
        let json = answer.into_json().0;
        let expected = format!(r#"{{"one_time_keys":{{"{bob}":{{"D":{{"curve:A": "key"}}}}}},"failures":{{}}}}"#);
        assert_eq!(String::from_utf8(json).unwrap(), expected);
        let account = budget.account("response_bodies");
        let mut answer = claimed(&budget);
        let _rest = account.try_take(account.limit() - account.used()).unwrap();
        let refused = answer.add_remote(&asked, told.as_bytes());
        assert!(matches!(refused, Err(Failed::Refused(_))) && answer.one_time_keys.is_empty());
    }
}
