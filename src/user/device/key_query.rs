//! Device keys and cross-signing keys, in the form other users and servers get them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedServerName, OwnedUserId, UserId};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::key_answer::{ANSWER_BYTES, COPIES, QUESTION_TIMEOUT, each_in, each_of, is_too_deep, price};
use crate::base::blocking;
use crate::budget::{Grant, parsed_bytes_max};
use crate::remote::service::Service;
use crate::store::tables::user::e2ee_key::{self, Purpose};
use crate::store::tables::user::{self, device};
use crate::store::{Get, UserNum};
use crate::user::{Error, Users, lookup};

/// A longer master key of a remote user is shown as it came, without the viewer's own signature.
const MASTER_PARSED_BYTES_MAX: u64 = 128 << 10;

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
    pub(super) device_keys: BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>,
    pub(super) master_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    pub(super) self_signing_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    user_signing_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    pub(super) failures: BTreeMap<OwnedServerName, Value>,
    #[serde(skip)]
    pub(super) grant: Grant,
}

impl Answered {
    /// The JSON and the grant that pays for it.
    pub fn into_json(self) -> (Vec<u8>, Grant) {
        (serde_json::to_vec(&self).unwrap_or_else(|_| b"{}".to_vec()), self.grant)
    }
}

impl Users {
    /// The identity and cross-signing keys of users, of all their devices where none are named. Of users elsewhere the
    /// kept list is shown while it is followed. Servers that would have to be asked and do not answer are listed in
    /// `failures`; an old list of their users is better than none.
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
        let theirs = here.clone();
        let store = self.0.parts.store.clone();
        answered = blocking(move || {
            let get = store.read()?;
            for (user_id, devices) in here {
                answered.add_local(&get, viewer, user_id, &devices)?;
            }
            Ok::<_, Error>(answered)
        })
        .await?;
        self.add_of_services(theirs, &mut answered).await;
        if let Viewer::Local(num) = viewer {
            let (mut answered, missing) = self.add_kept(num, elsewhere, answered).await?;
            let unanswered = self.ask_keys(num, missing, timeout.unwrap_or(QUESTION_TIMEOUT), &mut answered).await;
            let mut answered = self.add_old(unanswered, answered).await?;
            self.add_viewers_signatures(num, &mut answered).await?;
            return Ok(answered);
        }
        Ok(answered)
    }

    /// Adds keys that application services have of users who are theirs alone (MSC3984); what is known here stays.
    async fn add_of_services(&self, wanted: BTreeMap<OwnedUserId, Vec<String>>, answered: &mut Answered) {
        if self.services().list().is_empty() {
            return;
        }
        let mut by_service = BTreeMap::<String, (Arc<Service>, BTreeMap<OwnedUserId, Vec<String>>)>::new();
        for (user, devices) in wanted {
            if let Some(service) = self.services().with_keys_of(&user) {
                let (_, of) = by_service.entry(service.id.clone()).or_insert((service, BTreeMap::new()));
                of.insert(user, devices);
            }
        }
        for (service, users) in by_service.into_values() {
            let body = serde_json::to_value(&users).unwrap_or_default();
            let Some(answer) = self.services().query_keys(&service, &body).await else { continue };
            // What does not fit our memory is left out.
            let _ = each_of(&answer.body, "device_keys", &mut |user, devices| {
                let Some(user) = users.keys().find(|name| name.as_str() == user) else { return Ok(()) };
                each_in(devices, &mut |device, key| {
                    let of_user = answered.device_keys.entry(user.clone()).or_default();
                    if !of_user.contains_key(device) && !is_too_deep(key) {
                        answered.grant.grow(price(key.get().len()))?;
                        of_user.insert(device.to_owned(), key.to_owned());
                    }
                    Ok(())
                })
            });
        }
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
                let Some(keys) = e2ee_key::shown_device_keys(get, num, user_id.as_str(), &id, None)? else { continue };
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
            if let Some(keys) = e2ee_key::shown_device_keys(get, num, user_id.as_str(), &id, viewer.num())? {
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
        e2ee_key::add_signatures(get, &mut found, user, user_id.as_str(), &key_id, viewer)?;
    }
    Ok(Some(found))
}

/// The one public key of a cross-signing key, in base64.
pub(in crate::user) fn public_key(found: &Value) -> Option<&str> {
    found.get("keys")?.as_object()?.values().next()?.as_str()
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
        e2ee_key::show_signature(&mut master, signer.as_str(), &one.signing_key, one.signature);
    }
    Ok(to_raw_value(&master).ok())
}
