//! Device keys and cross-signing keys, in the form other users and servers get them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::time::Duration;

use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::base::{blocking, joined};
use crate::budget::{Grant, parsed_bytes_max};
use crate::matrix::json::partial;
use crate::remote::{Failed, Options};
use crate::store::tables::user::e2ee_key::{self, Purpose};
use crate::store::tables::user::{self, device};
use crate::store::{Change, Get, UserNum};
use crate::user::{Error, Users, lookup, sharing};

/// The number of users in one request to another server; halved when the answer is too long.
const USERS_PER_QUESTION: usize = 50;

/// A longer master key of a remote user is shown as it came, without the viewer's own signature.
const MASTER_PARSED_BYTES_MAX: u64 = 128 << 10;

/// A key is held as it was received, and once more in the answer being written.
const COPIES: u64 = 2;

/// The memory of a key beside its text: its place in a map, its name.
const ENTRY_BYTES: u64 = 256;

/// The reader of keys, which decides the signatures shown.
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

/// The answer about keys, in its final shape, with the grant that pays for it.
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

impl Users {
    /// The identity and cross-signing keys of users, of all their devices where none are named. Servers that do not
    /// answer are listed in `failures`.
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

    /// The answer to another server about a local user's devices: JSON, with the grant that pays for it.
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
            let num = lookup::local(get, &user_id)?;
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
                // The buffer grows by doubling.
                grant.grow(shown.len() as u64 * COPIES)?;
                out.extend_from_slice(if std::mem::take(&mut first) { b"" } else { b"," });
                out.extend_from_slice(&shown);
            }
            out.extend_from_slice(b"]}");
            Ok((out, grant))
        })
        .await
    }

    /// Another server tells (in an `m.device_list_update` or `m.signing_key_update` EDU) that one of its users has
    /// other devices or keys. Local users who share a room with that user will ask for them; nothing else of the EDU is
    /// used.
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

    /// Asks the servers of remote users, a few at once.
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
                let asking = async move {
                    let wanted: BTreeMap<_, _> = users.iter().map(|(user, devices)| (user, devices)).collect();
                    let body = serde_json::to_vec(&BTreeMap::from([("device_keys", wanted)])).unwrap_or_default();
                    let path = "/_matrix/federation/v1/user/keys/query";
                    let answer = users_here.ask(&server, path, body, timeout).await;
                    (server, users, answer)
                };
                asked.spawn(asking.in_current_span());
            }
            let Some(done) = asked.join_next().await else { return };
            let Some((server, mut users, answer)) = joined(done) else { continue };
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

    /// Adds the viewer's own signatures over remote users' keys: only the viewer may see those.
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

    pub async fn ask(
        &self,
        server: &ServerName,
        path: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<crate::remote::Answer, Failed> {
        let options = Options { timeout: timeout.min(Duration::from_secs(30)), ..Options::insisting() };
        self.0.parts.remote.request(server, http::Method::POST, path, Some(body), options).await
    }
}

/// Visits the members of one member of an object.
pub fn each_of(
    object: &[u8],
    name: &str,
    visit: &mut dyn FnMut(&str, &RawValue) -> Result<(), Failed>,
) -> Result<(), Failed> {
    partial::each_member(object, &mut |key, value| match key == name {
        true => each_in(value, visit),
        false => Ok(()),
    })
}

/// The bytes charged for a key in an answer.
pub fn price(bytes: usize) -> u64 {
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
        let Ok(num) = lookup::local(get, &user_id) else { return Ok(()) };
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

    /// Adds a server's answer about the users it was asked for; other users in it are skipped.
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
        let signer = if one.signer == owner { owner_id.to_owned() } else { lookup::id_of(get, one.signer)? };
        add_signature(signed, signer.as_str(), &one.signing_key, one.signature);
    }
    Ok(())
}

/// Adds a signature to an object that may come from another server, so its shape is not trusted.
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
        let signer = lookup::id_of(get, one.signer)?;
        add_signature(&mut master, signer.as_str(), &one.signing_key, one.signature);
    }
    Ok(to_raw_value(&master).ok())
}

pub fn failure(failed: &Failed) -> Value {
    json!({ "errcode": "M_UNKNOWN", "error": format!("The server {failed}") })
}

/// The number of other servers asked at once for one request.
pub const ASKED_AT_ONCE: usize = 4;
pub const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The grant taken before any lookup.
pub const ANSWER_BYTES: u64 = 16 << 10;

/// Visits the members of a server's answer, for one user or for all. A value that is no object has no members, and does
/// not spoil the values beside it.
pub fn each_in(object: &RawValue, visit: &mut dyn FnMut(&str, &RawValue) -> Result<(), Failed>) -> Result<(), Failed> {
    match partial::each_member(object.get().as_bytes(), visit) {
        Err(Failed::BadAnswer(_)) => Ok(()),
        told => told,
    }
}

/// Whether a key is nested too deep: apps get it beside others, in one answer.
pub fn is_too_deep(key: &RawValue) -> bool {
    crate::matrix::json::is_deeper_than(key.get().as_bytes(), crate::matrix::json::EVENT_DEPTH_MAX)
}
