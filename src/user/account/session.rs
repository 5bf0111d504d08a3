//! Access tokens, logging in and out.
//!
//! A token is random; only its SHA-256 is stored. A device has one at a time. Those that end and are refreshed are in
//! `refresh.rs`.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use sha2::{Digest, Sha256};

use super::{Pace, Standing};
use crate::base::{Owner, Shares};
use crate::store::tables::user::device::{self, Device, Refresh, Token};
use crate::store::tables::user::to_device;
use crate::store::tables::{hex, user};
use crate::store::{Get, UserNum, Write};
use crate::user::device::{DEVICE_ID_BYTES_MAX, DEVICES_MAX, NAME_BYTES_MAX, forget};
use crate::user::lookup;
use crate::user::{Error, Users};

const TOKEN_CHARS: usize = 43;
const DEVICE_ID_CHARS: usize = 10;
/// The age at which a device's last-seen is written anew: a write is a sync of the card.
const SEEN_MS: u64 = 10 * 60 * 1000;
/// Devices whose last-seen is known to be fresh, about 100 bytes each; beyond that the user with most entries loses
/// one.
const SEEN_MAX: usize = 256;

/// The user and device of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requester {
    pub user_id: OwnedUserId,
    pub user_num: UserNum,
    pub device_id: String,
    pub is_admin: bool,
    pub is_guest: bool,
    /// The account is locked: nothing is allowed but to log out.
    pub is_locked: bool,
    /// The account is suspended: it may read, and not speak.
    pub is_suspended: bool,
    /// What the account sends reaches nobody, and it is not told so.
    pub is_shadow_banned: bool,
    /// A bot's account: no person.
    pub is_bot: bool,
    /// How often it may ask, where that is not what everybody may.
    pub pace: Option<Pace>,
    /// Which terms the user has agreed to, as a digest of theirs; 0 is none.
    pub agreed: u64,
    /// The application service that makes the request, with its own token.
    pub service: Option<Arc<str>>,
    /// When the token ends.
    pub(in crate::user) expires_ms: Option<u64>,
}

/// The options of a login.
#[derive(Debug, Clone, Default)]
pub struct Login {
    /// An app that logs in again names its device; the device's old token ends.
    pub device_id: Option<String>,
    /// The name of a new device.
    pub display_name: Option<String>,
    pub ip: Option<IpAddr>,
    /// How long the access token lasts, of an app that refreshes it; otherwise it lasts until the session ends.
    pub lifetime_ms: Option<u64>,
}

impl Login {
    /// Whether a device may have this id and this name.
    pub fn check(&self) -> Result<(), Error> {
        let is_id = |id: &String| !id.is_empty() && id.len() <= DEVICE_ID_BYTES_MAX && !id.contains('\0');
        if !self.device_id.as_ref().is_none_or(is_id) {
            return Err(Error::invalid("This device id is empty, too long, or has a zero byte"));
        }
        if self.display_name.as_ref().is_some_and(|name| name.len() > NAME_BYTES_MAX) {
            return Err(Error::TooLarge("The device name is too long".to_owned()));
        }
        Ok(())
    }
}

/// The result of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub user_id: OwnedUserId,
    pub device_id: String,
    pub access_token: String,
    pub refreshed: Option<Refreshed>,
}

/// What comes with an access token that ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refreshed {
    pub refresh_token: String,
    pub expires_in_ms: u64,
}

/// The times at which devices' last-seen were last written.
pub(in crate::user) struct Seen(Mutex<Shares<(UserNum, String), u64>>);

impl Default for Seen {
    fn default() -> Seen {
        Seen(Mutex::new(Shares::new(SEEN_MAX, 0)))
    }
}

impl Users {
    /// The user and device of a token; `UnknownToken` when the token is of neither, `ExpiredToken` when it has ended.
    /// Mostly it is known without reading. With the first request that shows a refreshed token, the one before it ends.
    pub async fn requester(&self, token: &str, ip: IpAddr) -> Result<Requester, Error> {
        let (hash, now_ms) = (token_hash(token), self.now_ms());
        let has_ended = |requester: &Requester| requester.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms);
        let requester = match self.0.known.get(&hash) {
            Ok(requester) => requester,
            Err(since) => {
                let (requester, is_unused) = self.read(move |get| session_of(get, &hash)).await?;
                match is_unused {
                    true if has_ended(&requester) => {}
                    true => self.begin_use(hash).await?,
                    false => self.0.known.put(since, hash, &requester),
                }
                requester
            }
        };
        if has_ended(&requester) {
            return Err(Error::ExpiredToken);
        }
        self.note_seen(&requester, ip);
        Ok(requester)
    }

    /// Begins a session on a device, which is created when it is new. The caller has authenticated the user.
    pub async fn login(&self, user_id: &UserId, login: Login) -> Result<Session, Error> {
        login.check()?;
        let device_id = login.device_id.unwrap_or_else(|| self.0.parts.random.token(DEVICE_ID_CHARS).to_uppercase());
        let access_token = self.new_token();
        let hash = token_hash(&access_token);
        let expires_in_ms = login.lifetime_ms;
        let refreshed =
            expires_in_ms.map(|expires_in_ms| Refreshed { refresh_token: self.new_refresh_token(), expires_in_ms });
        let session = Session { user_id: user_id.to_owned(), device_id, access_token, refreshed };
        let (name, ip, now_ms) = (login.display_name, login.ip.map(|ip| ip.to_string()), self.now_ms());
        let (server, given) = (self.server().to_owned(), session.clone());
        self.empty_before(user_id, &session.device_id, true).await?;
        let job = move |w: &mut Write<'_>| {
            let num = lookup::local(w, &given.user_id)?;
            let mut ended = None;
            check_may_log_in(w, num)?;
            if device::is_dehydrated(w, num, &given.device_id)? {
                // From now on it has a session, which makes keys of its own.
                forget(w, num, &given.device_id)?;
            }
            let old = device::get(w, num, &given.device_id)?;
            if old.is_none() {
                // Of a device that had this id, nothing was left above.
                to_device::remove_device(w, num, &given.device_id, usize::MAX)?;
            }
            if old.is_none()
                && let Some(oldest) = oldest_beyond_cap(w, num)?
            {
                forget(w, num, &oldest)?;
                ended = Some(num);
                crate::user::device::announce::device_gone(w, &server, num, &given.user_id, &oldest)?;
            }
            if let Some(old) = &old {
                device::remove_tokens(w, old)?;
            }
            let mut row = old.unwrap_or(Device { display_name: name, created_ms: now_ms, ..Device::default() });
            row.seen_ms = now_ms;
            row.seen_ip = ip.or(row.seen_ip);
            row.token_hash = Some(hex(&hash));
            row.refresh = None;
            let expires_ms = expires_in_ms.map(|ms| now_ms.saturating_add(ms));
            if let Some(refreshed) = &given.refreshed {
                let hash = token_hash(&refreshed.refresh_token);
                row.refresh = Some(Refresh { hash: hex(&hash), next: None });
                device::put_refresh_token(w, &hash, num, &given.device_id)?;
            }
            device::put(w, num, &given.device_id, &row)?;
            let token = Token { user: num, device_id: given.device_id, expires_ms, is_unused: false };
            device::put_token(w, &hash, &token)?;
            Ok(ended)
        };
        if let Some(user) = self.write(job).await? {
            self.tidy_sliding(user);
            self.empty_ended();
        }
        Ok(session)
    }

    pub(super) fn new_token(&self) -> String {
        format!("snug_{}", self.0.parts.random.token(TOKEN_CHARS))
    }

    pub(super) fn new_refresh_token(&self) -> String {
        format!("snugr_{}", self.0.parts.random.token(TOKEN_CHARS))
    }

    /// Ends one session: its device is removed, with its keys and queued messages.
    pub async fn logout(&self, requester: &Requester) -> Result<(), Error> {
        self.remove_devices(requester.user_num, &requester.user_id, vec![requester.device_id.clone()]).await
    }

    /// Ends all sessions of a user, except one when it is named.
    pub async fn logout_all(&self, user_id: &UserId, except: Option<&str>) -> Result<(), Error> {
        let (user, except) = (user_id.to_owned(), except.map(ToOwned::to_owned));
        let (num, ids) = self
            .read(move |get| {
                let num = lookup::local(get, &user)?;
                let mut ids = device::ids(get, num)?;
                ids.retain(|id| Some(id) != except.as_ref());
                Ok((num, ids))
            })
            .await?;
        self.remove_devices(num, user_id, ids).await
    }

    /// Writes a device's last-seen, when the stored one is old. No request waits for it, and a power cut may lose it.
    pub(super) fn note_seen(&self, requester: &Requester, ip: IpAddr) {
        let now_ms = self.now_ms();
        let key = (requester.user_num, requester.device_id.clone());
        {
            let mut seen = self.0.seen.0.lock();
            // The interval counts from the write, not from the last request.
            if seen.get(&key).is_some_and(|last| now_ms.saturating_sub(*last) < SEEN_MS) {
                return;
            }
            seen.put(Owner::Known(requester.user_num), key, now_ms);
        }
        let (users, num, device_id) = (self.clone(), requester.user_num, requester.device_id.clone());
        let noting = async move {
            let noted = users
                .write(move |w| {
                    let Some(mut row) = device::get(w, num, &device_id)? else { return Ok(()) };
                    let ip = Some(ip.to_string());
                    if now_ms.saturating_sub(row.seen_ms) < SEEN_MS && row.seen_ip == ip {
                        return Ok(());
                    }
                    row.seen_ms = now_ms;
                    row.seen_ip = ip;
                    Ok(device::put(w, num, &device_id, &row)?)
                })
                .await;
            if let Err(failed) = noted {
                tracing::debug!("the last-seen time of a device could not be stored: {failed}");
            }
        };
        crate::base::detached(noting);
    }
}

pub(in crate::user) fn token_hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// `Deactivated` or `Locked` for an account that nobody may log in to.
pub(super) fn check_may_log_in(get: &impl Get, user: UserNum) -> Result<(), Error> {
    match user::account(get, user)? {
        Some(row) if row.standing == Standing::Deactivated => Err(Error::Deactivated),
        Some(row) if row.locked => Err(Error::Locked),
        Some(_) => Ok(()),
        None => Err(Error::Deactivated),
    }
}

/// The session of a token, and whether the token was not used before.
fn session_of(get: &impl Get, hash: &[u8; 32]) -> Result<(Requester, bool), Error> {
    let Token { user: user_num, device_id, expires_ms, is_unused } =
        device::token(get, hash)?.ok_or(Error::UnknownToken)?;
    let row = user::account(get, user_num)?.ok_or(Error::UnknownToken)?;
    if row.standing == Standing::Deactivated {
        return Err(Error::UnknownToken);
    }
    let is_guest = user::is_guest(get, user_num)?;
    let user_id = lookup::id_of(get, user_num)?;
    let user::Account { admin: is_admin, locked: is_locked, suspended: is_suspended, agreed, .. } = row;
    let (is_shadow_banned, is_bot, pace) = (row.shadow_banned, row.bot, row.pace);
    Ok((
        Requester {
            user_id,
            user_num,
            device_id,
            is_admin,
            is_guest,
            is_locked,
            is_suspended,
            is_shadow_banned,
            is_bot,
            pace,
            agreed,
            service: None,
            expires_ms,
        },
        is_unused,
    ))
}

/// The device with the oldest last-seen, when a user has as many as allowed. The dehydrated one is never seen and stays.
fn oldest_beyond_cap(get: &impl Get, user: UserNum) -> Result<Option<String>, Error> {
    let (mut count, mut oldest) = (0, None::<(u64, String)>);
    let dehydrated = device::dehydrated(get, user)?.map(|dehydrated| dehydrated.device_id);
    device::each(get, user, &mut |id, row| {
        if dehydrated.as_deref() == Some(id) {
            return Ok(std::ops::ControlFlow::Continue(()));
        }
        count += 1;
        if oldest.as_ref().is_none_or(|(seen_ms, _)| row.seen_ms < *seen_ms) {
            oldest = Some((row.seen_ms, id.to_owned()));
        }
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    Ok(if count >= DEVICES_MAX { oldest.map(|(_, id)| id) } else { None })
}
