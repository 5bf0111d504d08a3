//! End-to-end keys.

use ruma::UserId;
use serde_json::{Value, json};

use super::Error;
use crate::store::tables::{device, key};
use crate::store::{Get, UserNum};

/// A device's identity keys as `viewer` may see them, with the signatures over them and its name.
pub(super) fn device_keys(
    get: &impl Get,
    user: UserNum,
    user_id: &UserId,
    device_id: &str,
    viewer: Option<UserNum>,
) -> Result<Option<Value>, Error> {
    let Some(mut keys) = key::device_keys(get, user, device_id)? else { return Ok(None) };
    add_signatures(get, &mut keys, user, user_id, device_id, viewer)?;
    if let Some(name) = device::get(get, user, device_id)?.and_then(|row| row.display_name) {
        keys["unsigned"] = json!({ "device_display_name": name });
    }
    Ok(Some(keys))
}

/// A cross-signing key as `viewer` may see it.
pub(super) fn cross_key(
    get: &impl Get,
    user: UserNum,
    user_id: &UserId,
    purpose: key::Purpose,
    viewer: Option<UserNum>,
) -> Result<Option<Value>, Error> {
    let Some(mut found) = key::cross(get, user, purpose)? else { return Ok(None) };
    if let Some(key_id) = public_key(&found).map(ToOwned::to_owned) {
        add_signatures(get, &mut found, user, user_id, &key_id, viewer)?;
    }
    Ok(Some(found))
}

/// The one public key of a cross-signing key, in base64.
fn public_key(found: &Value) -> Option<&str> {
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
    for one in key::signatures(get, owner, key_id, viewer)? {
        let signer = if one.signer == owner { owner_id.to_owned() } else { super::account::id_of(get, one.signer)? };
        signed["signatures"][signer.as_str()][&one.signing_key] = one.signature.into();
    }
    Ok(())
}
