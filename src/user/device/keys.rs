//! End-to-end keys: uploads by devices, queries by others, and one-time keys.
//!
//! Client-server API, "End-to-End Encryption"; server-server API, "End-to-End Encryption". The server does not
//! interpret keys; it stores them, counts them and hands them out. Keys of remote users: `remote_list.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use ruma::UserId;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::announce;
use crate::base::gathered;
use crate::budget::parsed_bytes_max;
use crate::store::tables::user::e2ee_key::{self, FallbackKey, OneTimeKey};
use crate::store::{Get, UserNum, Write};
use crate::user::{Error, Requester, Users};

/// The most one-time keys of a device, all algorithms together; apps keep some fifty.
const ONE_TIME_KEYS_MAX: usize = 1000;
/// The most fallback keys of a device, one for each algorithm; apps use one algorithm.
pub(in crate::user) const FALLBACK_KEYS_MAX: usize = 16;
pub const KEY_BYTES_MAX: usize = 4 << 10;
const DEVICE_KEYS_BYTES_MAX: usize = 16 << 10;
/// The most memory that parsed device keys may take: a handful of objects.
const DEVICE_KEYS_PARSED_BYTES_MAX: u64 = 64 << 10;
pub const KEY_NAME_BYTES_MAX: usize = 128;
/// The algorithm every app expects in the counts, even at zero.
const USUAL_ALGORITHM: &str = "signed_curve25519";

/// An upload of keys.
#[derive(Deserialize)]
pub struct Upload {
    #[serde(default)]
    device_keys: Option<Value>,
    #[serde(default)]
    one_time_keys: Map<String, Value>,
    #[serde(default)]
    fallback_keys: Map<String, Value>,
}

impl Users {
    /// Stores a device's keys. Answers how many one-time keys it has of each algorithm.
    pub async fn upload_keys(&self, requester: &Requester, upload: Upload) -> Result<BTreeMap<String, u64>, Error> {
        let keys = upload.check(&requester.user_id, &requester.device_id)?;
        let (requester, server) = (requester.clone(), self.server().to_owned());
        self.write(move |w| {
            if keys.store(w, requester.user_num, &requester.device_id)? {
                announce::device_changed(w, &server, requester.user_num, &requester.user_id, &requester.device_id)?;
            }
            counts(w, requester.user_num, &requester.device_id)
        })
        .await
    }
}

impl Upload {
    /// Whether it has the identity keys of a device.
    pub(super) fn has_device_keys(&self) -> bool {
        self.device_keys.is_some()
    }

    /// The keys as they may be stored for a device.
    pub(super) fn check(self, user_id: &UserId, device_id: &str) -> Result<Checked, Error> {
        Ok(Checked {
            device_keys: self.device_keys.map(|keys| checked_device_keys(user_id, device_id, keys)).transpose()?,
            one_time: checked_keys(self.one_time_keys)?,
            fallback: checked_keys(self.fallback_keys)?,
        })
    }
}

/// An upload of the right shape.
pub(super) struct Checked {
    device_keys: Option<Value>,
    one_time: Vec<(String, OneTimeKey)>,
    fallback: Vec<(String, OneTimeKey)>,
}

impl Checked {
    /// Stores the keys; true when the device has other identity keys than before. Bounded by the limits of one device.
    pub(super) fn store(self, w: &mut Write<'_>, user: UserNum, device_id: &str) -> Result<bool, Error> {
        let fresh = new_one_time(w, user, device_id, self.one_time)?;
        for (algorithm, key) in &fresh {
            e2ee_key::add_one_time(w, user, device_id, algorithm, key)?;
        }
        check_fallback_count(w, user, device_id, &self.fallback)?;
        for (algorithm, OneTimeKey { id, key }) in self.fallback {
            let before = e2ee_key::fallback(w, user, device_id, &algorithm)?;
            let used = before.is_some_and(|before| before.used && before.id == id && before.key == key);
            e2ee_key::set_fallback(w, user, device_id, &algorithm, &FallbackKey { id, key, used })?;
        }
        let Some(keys) = self.device_keys else { return Ok(false) };
        if e2ee_key::device_keys(w, user, device_id)?.as_ref() == Some(&keys) {
            return Ok(false);
        }
        e2ee_key::set_device_keys(w, user, device_id, &keys)?;
        Ok(true)
    }
}

fn counts(get: &impl Get, user: UserNum, device_id: &str) -> Result<BTreeMap<String, u64>, Error> {
    let mut counts: BTreeMap<String, u64> = gathered(e2ee_key::one_time_counts(get, user, device_id)?);
    counts.entry(USUAL_ALGORITHM.to_owned()).or_insert(0);
    Ok(counts)
}

/// Device keys ready to be stored: of the device that sends them, without signatures by others.
fn checked_device_keys(user_id: &UserId, device_id: &str, mut keys: Value) -> Result<Value, Error> {
    let texts = |value: &Value, of: fn(&Value) -> bool| value.as_object().is_some_and(|all| all.values().all(of));
    let named = keys["user_id"].is_string() && keys["device_id"].is_string();
    let algorithms = keys["algorithms"].as_array().is_some_and(|all| all.iter().all(Value::is_string));
    if !named || !algorithms || !texts(&keys["keys"], Value::is_string) || !is_signed(&keys) {
        let message = "Device keys have user_id, device_id, algorithms, keys and signatures";
        return Err(Error::bad("M_BAD_JSON", message));
    }
    if keys["user_id"] != user_id.as_str() || keys["device_id"] != device_id {
        return Err(Error::invalid("These are not the keys of this device"));
    }
    keep_own_signatures(&mut keys, user_id);
    let text = keys.to_string();
    if text.len() > DEVICE_KEYS_BYTES_MAX || parsed_bytes_max(text.as_bytes()) > DEVICE_KEYS_PARSED_BYTES_MAX {
        return Err(Error::TooLarge(format!("The keys of a device may have {DEVICE_KEYS_BYTES_MAX} bytes at most")));
    }
    Ok(keys)
}

/// Whether an object has signatures: user → key → signature. They are for apps to check.
fn is_signed(object: &Value) -> bool {
    let by_user = object.get("signatures").and_then(Value::as_object);
    by_user.is_some_and(|users| {
        users.values().all(|keys| keys.as_object().is_some_and(|keys| keys.values().all(Value::is_string)))
    })
}

/// Removes the parts that are no signed content: `unsigned`, and signatures by others.
pub(in crate::user) fn keep_own_signatures(signed: &mut Value, user_id: &UserId) {
    let Some(object) = signed.as_object_mut() else { return };
    object.remove("unsigned");
    if let Some(signatures) = object.get_mut("signatures").and_then(Value::as_object_mut) {
        signatures.retain(|signer, _| signer == user_id.as_str());
    }
}

/// `algorithm:id` → key, split.
fn checked_keys(keys: Map<String, Value>) -> Result<Vec<(String, OneTimeKey)>, Error> {
    if keys.len() > ONE_TIME_KEYS_MAX {
        return Err(Error::TooLarge(format!("A device may have {ONE_TIME_KEYS_MAX} one-time keys at most")));
    }
    let mut checked = Vec::with_capacity(keys.len());
    for (name, key) in keys {
        let parts = name.split_once(':').filter(|_| name.len() <= KEY_NAME_BYTES_MAX && !name.contains('\0'));
        let Some((algorithm, id)) = parts else {
            return Err(Error::invalid("A one-time key is named by its algorithm, a colon and an id"));
        };
        if !(key.is_string() || key["key"].is_string() && is_signed(&key)) {
            return Err(Error::bad("M_BAD_JSON", "A one-time key is a string, or an object with key and signatures"));
        }
        if key.to_string().len() > KEY_BYTES_MAX {
            return Err(Error::invalid(format!("A one-time key may have {KEY_BYTES_MAX} bytes")));
        }
        checked.push((algorithm.to_owned(), OneTimeKey { id: id.to_owned(), key }));
    }
    Ok(checked)
}

/// The keys a device does not have yet. A known id with another key is refused: the first may have been claimed
/// already.
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
        return Err(Error::TooLarge(format!("A device may have {ONE_TIME_KEYS_MAX} one-time keys at most")));
    }
    Ok(fresh)
}

/// Refuses too many fallback keys: every sync lists the algorithms for which a device has one.
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
    Err(Error::TooLarge(format!("A device may have fallback keys for {FALLBACK_KEYS_MAX} algorithms at most")))
}

/// Whether two uploads are of the same key; their signatures may differ.
fn same_key(one: &Value, other: &Value) -> bool {
    match (one.get("key"), other.get("key")) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::remote::Failed;
    use crate::user::device::key_answer::ANSWER_BYTES;
    use crate::user::device::key_claim::{Claimed, Claims};

    fn claimed(budget: &Budget) -> Claimed {
        let grant = budget.account("response_bodies").try_take(ANSWER_BYTES).unwrap();
        Claimed { one_time_keys: BTreeMap::new(), failures: Some(BTreeMap::new()), grant }
    }

    /// One user's malformed or deeply nested keys once lost the keys of all users of that server.
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

    /// A key `[0,0,…]` of half a megabyte once became sixteen on the heap, charged to no account.
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
