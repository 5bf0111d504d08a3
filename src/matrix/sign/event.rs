//! Signatures of events ("Signing Events").

use base64::Engine;
use ruma::ServerName;

use super::{Key, Keys, PublicKey};
use crate::matrix::Reject;
use crate::matrix::event::Event;
use crate::matrix::json::{self, Mode};
use crate::matrix::reject::Kind;
use crate::matrix::scan::{BASE64, Signer};
use crate::matrix::version::RoomVersion;

/// The use that a checked event may be put to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    Intact,
    /// Signed by the right servers, but the content hash is wrong: keep the redacted form.
    RedactNeeded,
}

/// Checks that every server that must have signed has, then the content hash.
pub fn check_event(event: &Event, keys: &impl Keys) -> Result<Checked, Reject> {
    let message = event.signed_message();
    // Versions before 5 accept a key whatever its validity, as the specification has it.
    let at_ts = if event.version().enforce_key_validity { event.origin_server_ts() } else { 0 };
    for signer in event.signers()? {
        check_signer(&signer, &message, at_ts, keys)?;
    }
    Ok(if event.is_intact() { Checked::Intact } else { Checked::RedactNeeded })
}

/// One of the signatures must verify under a key we know; with no key known at all it is [`Kind::Key`].
pub fn check_signer(signer: &Signer<'_>, message: &[u8], at_ts: u64, keys: &impl Keys) -> Result<(), Reject> {
    let mut known = false;
    for (key_id, signature) in &signer.signatures {
        if let Some(key) = keys.get(signer.server, key_id, at_ts) {
            known = true;
            if key.verify(message, signature) {
                return Ok(());
            }
        }
    }
    match known {
        true => Err(Reject::signature(format!("the signature by {} is wrong", signer.server))),
        false => Err(Reject::new(Kind::Key, format!("no signing key of {} is known here", signer.server))),
    }
}

/// A further server's signature on a finished event: the one that the authorising server adds for a restricted join.
pub fn add_signature(event: &Event, server: &ServerName, key: &Key) -> Result<Event, Reject> {
    let signature = key.sign_base64(&event.signed_message());
    let bytes = merge_signature(event.to_federation(), server, key.id(), &signature)?;
    Event::from_stored(event.version(), bytes, event.id().to_owned())
}

/// The event with a signature that another server gave, which is not checked here. `signature` is base64.
pub fn with_signature(event: &Event, server: &ServerName, key_id: &str, signature: &str) -> Result<Event, Reject> {
    let bytes = merge_signature(event.to_federation(), server, key_id, signature)?;
    Event::from_stored(event.version(), bytes, event.id().to_owned())
}

/// Whether a server signed the event with a key that is known from elsewhere.
pub fn is_signed_by(event: &Event, server: &ServerName, key_id: &str, key: &PublicKey) -> bool {
    let found = json::read::get_path(event.to_federation(), &["signatures", server.as_str(), key_id]);
    let signature = found.and_then(json::read::text).and_then(|text| BASE64.decode(&*text).ok());
    let signature: Option<[u8; 64]> = signature.and_then(|bytes| bytes.try_into().ok());
    signature.is_some_and(|signature| key.verify(&event.signed_message(), &signature))
}

/// Read member by member: other servers' data beside it may be of any shape inside.
fn merge_signature(object: &[u8], server: &ServerName, key_id: &str, signature: &str) -> Result<Vec<u8>, Reject> {
    let all = json::read::get(object, "signatures").unwrap_or(b"{}");
    let ours = json::read::get(all, server.as_str()).unwrap_or(b"{}");
    if !all.starts_with(b"{") || !ours.starts_with(b"{") {
        return Err(Reject::shape("signatures is not an object of objects"));
    }
    let ours = set_member(ours, key_id, format!("\"{signature}\"").as_bytes());
    let all = set_member(all, server.as_str(), &ours);
    json::canonical(&set_member(object, "signatures", &all), Mode::Lenient)
}

/// A canonical object with one member set; it comes last, so the result is not in canonical order.
fn set_member(object: &[u8], key: &str, value: &[u8]) -> Vec<u8> {
    let mut name = Vec::new();
    json::write_string(&mut name, key);
    let mut out = b"{".to_vec();
    for (other, kept) in json::read::members(object).filter(|(other, _)| *other != &name[1..name.len() - 1]) {
        out.extend_from_slice(&[b"\"", other, b"\":", kept, b","].concat());
    }
    out.extend_from_slice(&[&name, &b":"[..], value, b"}"].concat());
    out
}

/// Room versions that check when a key was valid need the key at the event's time; `RoomVersion` decides.
pub fn key_time(version: &RoomVersion, origin_server_ts: u64) -> u64 {
    if version.enforce_key_validity { origin_server_ts } else { 0 }
}
