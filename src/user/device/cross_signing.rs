//! Cross-signing: a user's own three keys, and signatures over keys.
//!
//! Client-server API, "Cross-signing". Signatures are checked here, so that no client fetches invalid ones; apps check
//! them again.

use std::collections::BTreeMap;

use ruma::{OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::announce;
use super::key_query::public_key;
use super::keys::keep_own_signatures;
use crate::matrix::sign::{self, PublicKey};
use crate::store::tables::user::e2ee_key::{self, Purpose, Signature};
use crate::store::tables::user::{self, device};
use crate::store::{Change, Get, UserNum};
use crate::user::{Error, Requester, Target, Users};

const KEY_BYTES_MAX: usize = 8 << 10;
/// The most keys of one remote user that one local user may sign: one for each time that the remote user resets
/// cross-signing.
const SIGNED_MAX: usize = 32;
/// The most signatures uploaded in one request.
const SIGNATURES_MAX: usize = 1000;

/// An upload of cross-signing keys.
#[derive(Clone, Deserialize)]
pub struct CrossKeys {
    #[serde(default)]
    master_key: Option<Value>,
    #[serde(default)]
    self_signing_key: Option<Value>,
    #[serde(default)]
    user_signing_key: Option<Value>,
}

impl CrossKeys {
    /// What user-interactive authentication is for: these keys and no others.
    pub fn target(&self) -> Target {
        let keys = [&self.master_key, &self.self_signing_key, &self.user_signing_key];
        let texts = keys.map(|key| key.as_ref().map(Value::to_string).unwrap_or_default());
        Target::of(texts.iter().map(String::as_str))
    }
}

/// The kind of an upload, which decides whether it needs user-interactive authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upload {
    /// All keys are unchanged.
    Same,
    /// The first keys of this user.
    First,
    /// The upload replaces other keys.
    Replaces,
}

/// What an upload of these public keys would do.
fn would_upload(get: &impl Get, user: UserNum, uploaded: &[(Purpose, Option<String>)]) -> Result<Upload, Error> {
    let has = e2ee_key::cross(get, user, Purpose::Master)?.is_some();
    for (purpose, uploaded) in uploaded {
        let kept = e2ee_key::cross(get, user, *purpose)?;
        if kept.as_ref().and_then(public_key) != uploaded.as_deref() {
            return Ok(if has { Upload::Replaces } else { Upload::First });
        }
    }
    Ok(Upload::Same)
}

impl CrossKeys {
    fn publics(&self) -> Vec<(Purpose, Option<String>)> {
        self.each().map(|(purpose, _, key)| (purpose, public_key(key).map(ToOwned::to_owned))).collect()
    }

    fn each(&self) -> impl Iterator<Item = (Purpose, &'static str, &Value)> {
        let all = [
            (Purpose::Master, "master", &self.master_key),
            (Purpose::SelfSigning, "self_signing", &self.self_signing_key),
            (Purpose::UserSigning, "user_signing", &self.user_signing_key),
        ];
        all.into_iter().filter_map(|(purpose, usage, key)| key.as_ref().map(|key| (purpose, usage, key)))
    }
}

impl Users {
    /// The effect that an upload of cross-signing keys would have.
    pub async fn would_upload(&self, requester: &Requester, keys: &CrossKeys) -> Result<Upload, Error> {
        let (user, uploaded) = (requester.user_num, keys.publics());
        self.read(move |get| would_upload(get, user, &uploaded)).await
    }

    /// Stores a user's cross-signing keys; false, and nothing is stored, when that would replace others and the user was
    /// not authenticated again: they were uploaded meanwhile.
    pub async fn upload_cross_keys(
        &self,
        requester: &Requester,
        mut keys: CrossKeys,
        is_proved: bool,
    ) -> Result<bool, Error> {
        let all = [&mut keys.master_key, &mut keys.self_signing_key, &mut keys.user_signing_key];
        for key in all.into_iter().flatten() {
            keep_own_signatures(key, &requester.user_id);
        }
        let (user, user_id, server) = (requester.user_num, requester.user_id.clone(), self.server().to_owned());
        self.write(move |w| {
            if !is_proved && would_upload(w, user, &keys.publics())? == Upload::Replaces {
                return Ok(false);
            }
            let kept = e2ee_key::cross(w, user, Purpose::Master)?;
            let master = keys.master_key.as_ref().or(kept.as_ref());
            for (purpose, usage, key) in keys.each() {
                check_shape(&user_id, usage, key)?;
                if purpose != Purpose::Master {
                    check_signed(&user_id, key, master)?;
                }
            }
            for (purpose, _, key) in keys.each() {
                // What the old key signed of the user's own keys, and what signed it, means nothing any more.
                let old = e2ee_key::cross(w, user, purpose)?;
                if let Some(old) = old.as_ref().and_then(public_key).filter(|old| Some(*old) != public_key(key)) {
                    e2ee_key::remove_signatures_of(w, user, old)?;
                }
                e2ee_key::set_cross(w, user, purpose, key)?;
            }
            announce::cross_keys_changed(w, &server, user, &user_id)?;
            Ok(true)
        })
        .await
    }

    /// Stores signatures over keys: of the user's own devices and master key, and of other users' master keys. Answers
    /// the errors of the rest, by user and key.
    pub async fn upload_signatures(
        &self,
        requester: &Requester,
        signed: BTreeMap<OwnedUserId, BTreeMap<String, Value>>,
    ) -> Result<Value, Error> {
        if signed.values().map(BTreeMap::len).sum::<usize>() > SIGNATURES_MAX {
            return Err(Error::TooLarge(format!("A request may have {SIGNATURES_MAX} signatures at most")));
        }
        let (requester, server) = (requester.clone(), self.server().to_owned());
        self.write(move |w| {
            let (by, by_id) = (requester.user_num, &requester.user_id);
            let signers = signing_keys(w, by)?;
            let mut failures = Map::new();
            let mut good = Vec::new();
            for (owner_id, keys) in &signed {
                for (key_id, object) in keys {
                    match check_signature(w, &signers, by_id, owner_id, key_id, object) {
                        Ok((owner, signatures)) => good.push((owner_id, owner, key_id, signatures)),
                        Err(Error::Store(failed)) => return Err(failed.into()),
                        Err(wrong) => {
                            let errcode =
                                if let Error::NotFound(_) = wrong { "M_NOT_FOUND" } else { "M_INVALID_SIGNATURE" };
                            let failure = json!({ "errcode": errcode, "error": wrong.to_string() });
                            let of = failures.entry(owner_id.as_str()).or_insert_with(|| json!({}));
                            of[key_id.as_str()] = failure;
                        }
                    }
                }
            }
            for (owner_id, owner, key_id, signatures) in good {
                let owner = owner.map_or_else(|| user::intern(w, owner_id.as_str()), Ok)?;
                if is_full(w, owner, by, key_id)? {
                    let error = "Too many keys of this user have been signed";
                    let of = failures.entry(owner_id.as_str()).or_insert_with(|| json!({}));
                    of[key_id.as_str()] = json!({ "errcode": "M_TOO_LARGE", "error": error });
                    continue;
                }
                for (signing_key, signature) in signatures {
                    e2ee_key::add_signature(w, owner, key_id, &Signature { signer: by, signing_key, signature })?;
                }
                match owner == by {
                    true if device::get(w, by, key_id)?.is_some() => {
                        announce::device_changed(w, &server, by, owner_id, key_id)?;
                    }
                    true => announce::cross_keys_changed(w, &server, by, owner_id)?,
                    // Only the signing user sees it, on all that user's devices.
                    false => {
                        device::changed(w, owner)?;
                        w.announce(Change { users: vec![by], anybody: true, ..Change::default() });
                    }
                }
            }
            Ok(Value::Object(failures))
        })
        .await
    }
}

fn check_shape(user_id: &UserId, usage: &str, key: &Value) -> Result<(), Error> {
    let public = public_key(key).and_then(PublicKey::from_base64);
    let named = key["keys"].as_object().is_some_and(|keys| {
        keys.len() == 1 && keys.iter().all(|(id, public)| id.strip_prefix("ed25519:") == public.as_str())
    });
    let used = key["usage"].as_array().is_some_and(|usages| usages.iter().any(|one| one == usage));
    if key["user_id"] != user_id.as_str() || public.is_none() || !named || !used {
        return Err(Error::invalid(format!("This is not a {usage} key of this user")));
    }
    if key.to_string().len() > KEY_BYTES_MAX {
        return Err(Error::TooLarge(format!("A cross-signing key may have {KEY_BYTES_MAX} bytes at most")));
    }
    Ok(())
}

/// Whether a key is signed by the master key.
fn check_signed(user_id: &UserId, key: &Value, master: Option<&Value>) -> Result<(), Error> {
    let master = master.and_then(public_key).ok_or_else(|| Error::bad("M_MISSING_PARAM", "There is no master key"))?;
    let wrong = || Error::bad("M_INVALID_SIGNATURE", "The key is not signed by the master key");
    let public = PublicKey::from_base64(master).ok_or_else(wrong)?;
    let signing_key = format!("ed25519:{master}");
    sign::check_json(key.to_string().as_bytes(), user_id.as_str(), &signing_key, &public).map_err(|_| wrong())
}

/// The keys with which a user may sign: key id → public key. Bounded by the cap on devices.
fn signing_keys(get: &impl Get, user: UserNum) -> Result<BTreeMap<String, PublicKey>, Error> {
    let mut keys = BTreeMap::new();
    for purpose in [Purpose::Master, Purpose::SelfSigning, Purpose::UserSigning] {
        let found = e2ee_key::cross(get, user, purpose)?;
        if let Some(text) = found.as_ref().and_then(public_key)
            && let Some(public) = PublicKey::from_base64(text)
        {
            keys.insert(format!("ed25519:{text}"), public);
        }
    }
    e2ee_key::each_device_keys(get, user, &mut |device_id, device| {
        let name = format!("ed25519:{device_id}");
        let public = device["keys"].get(&name).and_then(Value::as_str).and_then(PublicKey::from_base64);
        keys.extend(public.map(|public| (name, public)));
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    Ok(keys)
}

/// The owner of the signed object (none for a user of another server who was never met), and the requester's valid
/// signatures over it: key id and signature.
fn check_signature(
    get: &impl Get,
    signers: &BTreeMap<String, PublicKey>,
    by_id: &UserId,
    owner_id: &UserId,
    key_id: &str,
    object: &Value,
) -> Result<(Option<UserNum>, Vec<(String, String)>), Error> {
    if key_id.contains('\0') || object.to_string().len() > 2 * KEY_BYTES_MAX {
        return Err(Error::invalid("The object is not a signed key"));
    }
    let owner = user::num(get, owner_id.as_str())?;
    if owner_id.server_name() == by_id.server_name() {
        let owner = owner.ok_or(Error::NotFound("user"))?;
        let kept = kept_key(get, owner, by_id == owner_id, key_id)?.ok_or(Error::NotFound("key"))?;
        let same = |object: &Value| sign::json_message(object.to_string().as_bytes()).ok();
        if same(&kept) != same(object) {
            return Err(Error::invalid("The signed object differs from the key that is stored here"));
        }
    } else if public_key(object) != Some(key_id) || object["user_id"] != owner_id.as_str() {
        return Err(Error::invalid("Only the master keys of other servers' users may be signed"));
    }
    let text = object.to_string();
    let mut good = Vec::new();
    let claimed = object["signatures"].get(by_id.as_str()).and_then(Value::as_object);
    for (signing_key, signature) in claimed.into_iter().flatten() {
        let Some(public) = signers.get(signing_key) else { continue };
        sign::check_json(text.as_bytes(), by_id.as_str(), signing_key, public)
            .map_err(|wrong| Error::invalid(wrong.to_string()))?;
        good.extend(signature.as_str().map(|signature| (signing_key.clone(), signature.to_owned())));
    }
    if good.is_empty() { Err(Error::invalid("There is no signature by a known key")) } else { Ok((owner, good)) }
}

/// Whether there is no room for one more signed key. The master keys of a remote user are not known, so they are
/// bounded.
fn is_full(get: &impl Get, owner: UserNum, by: UserNum, key_id: &str) -> Result<bool, Error> {
    if user::is_local(get, owner)? || e2ee_key::signed_by(get, owner, by)? < SIGNED_MAX {
        return Ok(false);
    }
    Ok(!e2ee_key::signatures(get, owner, key_id, Some(by))?.iter().any(|signature| signature.signer == by))
}

/// The key that an id names: a device's keys (of the user's own only), or a master key by its public key.
fn kept_key(get: &impl Get, owner: UserNum, own: bool, key_id: &str) -> Result<Option<Value>, Error> {
    if own && let Some(keys) = e2ee_key::device_keys(get, owner, key_id)? {
        return Ok(Some(keys));
    }
    let master = e2ee_key::cross(get, owner, Purpose::Master)?;
    Ok(master.filter(|master| public_key(master) == Some(key_id)))
}
