//! Registration with a shared secret, which `register_new_matrix_user` speaks.
//!
//! The secret stands in the setting `registration_shared_secret`; without it the endpoints refuse everybody. A request proves that it
//! knows the secret with an HMAC-SHA1 over a nonce of this server and what it asks for, so that nobody who reads along can say it again.

use std::sync::Arc;

use parking_lot::Mutex;
use ring::hmac;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::base::unbroken;
use crate::client::{Client, Error, rates};
use crate::flow::{self, Propagate};
use crate::http::{ErrorResponse, Request, Response};
use crate::user::{Login, New};

/// How long a nonce is good for; Synapse's.
const NONCE_MS: u64 = 60_000;
/// Nonces handed out and not used yet; beyond that the oldest ends. 100 bytes each.
const NONCES_MAX: usize = 64;
const NONCE_CHARS: usize = 64;

/// The nonces that may be used.
#[derive(Debug, Default)]
pub struct Nonces(Mutex<Vec<(String, u64)>>);

impl Nonces {
    fn add(&self, nonce: String, now_ms: u64) {
        let mut nonces = self.0.lock();
        nonces.retain(|(_, until_ms)| *until_ms > now_ms);
        if nonces.len() >= NONCES_MAX {
            nonces.remove(0);
        }
        nonces.push((nonce, now_ms + NONCE_MS));
    }

    /// Whether this was a nonce that may be used; it may not any more.
    fn take(&self, nonce: &str, now_ms: u64) -> bool {
        let mut nonces = self.0.lock();
        nonces.retain(|(_, until_ms)| *until_ms > now_ms);
        let at = nonces.iter().position(|(known, _)| known == nonce);
        // In their order: the first is the oldest.
        at.map(|at| nonces.remove(at)).is_some()
    }
}

/// GET /_synapse/admin/v1/register
pub async fn nonce(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    request.limit(&rates::REGISTER_NONCE)?;
    secret(&client)?;
    let nonce = client.random.token(NONCE_CHARS);
    client.nonces.add(nonce.clone(), client.clock.now_ms());
    Ok(Response::json(&json!({ "nonce": nonce })))
}

#[derive(Deserialize)]
struct Register {
    nonce: String,
    username: String,
    password: String,
    displayname: Option<String>,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    mac: String,
    #[serde(default)]
    inhibit_login: bool,
}

/// POST /_synapse/admin/v1/register
///
/// 400 `M_UNKNOWN` for a nonce that is not known or too old; 403 `M_UNKNOWN` for a wrong mac; 400 `M_USER_IN_USE`,
/// `M_INVALID_USERNAME`, `M_WEAK_PASSWORD`.
pub async fn register(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    request.limit(&rates::REGISTER_NONCE)?;
    let key = secret(&client)?;
    let asked: Register = request.json_max(crate::client::STRANGER_BYTES_MAX).await?;
    if !client.nonces.take(&asked.nonce, client.clock.now_ms()) {
        return Err(ErrorResponse::bad("M_UNKNOWN", "unrecognised nonce").into());
    }
    let fields = [&asked.nonce, &asked.username, &asked.password];
    if fields.iter().any(|field| field.contains('\0')) {
        return Err(ErrorResponse::bad("M_UNKNOWN", "Invalid username or password").into());
    }
    let role = if asked.admin { "admin" } else { "notadmin" };
    let mut text = format!("{}\0{}\0{}\0{role}", asked.nonce, asked.username, asked.password);
    if let Some(user_type) = &asked.user_type {
        text = format!("{text}\0{user_type}");
    }
    let is_right = hex(&asked.mac).is_some_and(|mac| hmac::verify(&key, text.as_bytes(), &mac).is_ok());
    if !is_right {
        return Err(ErrorResponse::new(crate::http::StatusCode::FORBIDDEN, "M_UNKNOWN", "HMAC incorrect").into());
    }
    let bot = asked.user_type.is_some();
    if asked.user_type.is_some_and(|kind| kind != "bot") {
        return Err(ErrorResponse::bad("M_UNKNOWN", "Accounts of this server have no types but \"bot\"").into());
    }
    let ip = request.peer().ip;
    unbroken(async move {
        let localpart = asked.username.to_lowercase();
        let new = New { localpart, password: Some(asked.password), admin: asked.admin, agreed: 0, bot, token: None };
        let login = (!asked.inhibit_login).then(|| Login { ip: Some(ip), ..Login::default() });
        let made = flow::register(&client.users, new, login).await?;
        if let Some(name) = asked.displayname.filter(|name| !name.is_empty()) {
            let name = Some(Value::String(name));
            flow::rename(&client.users, &client.rooms, &made.user_id, "displayname", name, Propagate::None).await?;
        }
        let mut value = json!({ "user_id": made.user_id, "home_server": client.users.server() });
        if let Some(session) = made.session {
            value["access_token"] = session.access_token.into();
            value["device_id"] = session.device_id.into();
        }
        Ok(Response::json(&value))
    })
    .await
}

fn secret(client: &Client) -> Result<hmac::Key, ErrorResponse> {
    let options = client.options();
    let secret = options.registration_shared_secret.as_deref();
    let secret = secret.ok_or_else(|| ErrorResponse::bad("M_UNKNOWN", "Shared secret registration is not enabled"))?;
    Ok(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes()))
}

/// Bytes of hexadecimal digits.
fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    bytes.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}
