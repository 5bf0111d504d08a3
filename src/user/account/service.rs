//! Users of application services: accounts without a password, and requests in their name ("Identity assertion").

use std::net::IpAddr;

use ruma::{OwnedUserId, UserId};

use super::session::{Requester, check_may_log_in};
use super::{Standing, check_free};
use crate::matrix::appservice;
use crate::remote::service::{Service, Services};
use crate::store::tables::user;
use crate::store::tables::user::device::{self, Device};
use crate::store::{Get, UserNum};
use crate::user::device::{DEVICES_MAX, announce};
use crate::user::{Error, Login, Users, lookup};

impl Users {
    /// The application services.
    pub fn services(&self) -> &Services {
        self.0.parts.remote.app_services()
    }

    /// `M_EXCLUSIVE` when the user is another application service's alone.
    pub fn check_not_exclusive(&self, user: &UserId, except: Option<&str>) -> Result<(), Error> {
        match self.services().owner_of_user(user, except) {
            None => Ok(()),
            Some(_) => Err(exclusive("This user ID is reserved by an application service of this server")),
        }
    }

    /// The user and device that an application service is in a request: the named ones, or its sender without a device.
    ///
    /// `Forbidden` for a user outside its namespace, and for one that it has not registered; `M_UNKNOWN_DEVICE` for a device
    /// that the user does not have. Mostly it is known without reading.
    pub async fn masquerade(
        &self,
        service: &Service,
        user_id: Option<OwnedUserId>,
        device_id: Option<String>,
        ip: IpAddr,
    ) -> Result<Requester, Error> {
        let user_id = user_id.unwrap_or_else(|| service.sender.clone());
        if user_id.server_name() != self.server() || !service.may_be(&user_id) {
            return Err(Error::Forbidden(format!("Application service cannot masquerade as this user ({user_id})")));
        }
        let device_id = device_id.unwrap_or_default();
        let hash = asserted_hash(&service.id, &user_id, &device_id);
        let requester = match self.0.known.get(&hash) {
            Ok(requester) => requester,
            Err(since) => {
                let id = service.id.clone();
                let requester = self.read(move |get| asserted(get, id, user_id, device_id)).await?;
                self.0.known.put(since, hash, &requester);
                requester
            }
        };
        if !requester.device_id.is_empty() {
            self.note_seen(&requester, ip);
        }
        Ok(requester)
    }

    /// The id of a user of an application service by its first part, which may be of the historical kind.
    pub fn service_user_id(&self, localpart: &str) -> Result<OwnedUserId, Error> {
        appservice::user_id(localpart, self.server())
            .ok_or_else(|| Error::bad("M_INVALID_USERNAME", "This is not the first part of a user ID"))
    }

    /// Creates an account of an application service. `Taken` when there is or was one of this name.
    pub async fn create_service_user(&self, user_id: &UserId) -> Result<(), Error> {
        let (user_id, created_ms) = (user_id.to_owned(), self.now_ms());
        self.write(move |w| {
            check_free(w, &user_id)?;
            let num = user::intern(w, user_id.as_str())?;
            user::set_account(w, num, &user::Account::new(created_ms, false, None))?;
            let name = serde_json::Value::from(user_id.localpart());
            Ok(user::set_profile_field(w, num, "displayname", Some(&name))?)
        })
        .await
    }

    /// Creates a device without a session (MSC4190); false when it was there, which then only takes the new name.
    pub async fn create_device(
        &self,
        user: UserNum,
        user_id: &UserId,
        device_id: &str,
        name: Option<String>,
    ) -> Result<bool, Error> {
        let login = Login { device_id: Some(device_id.to_owned()), display_name: name.clone(), ..Login::default() };
        login.check()?;
        let (user_id, server) = (user_id.to_owned(), self.server().to_owned());
        let (device_id, now_ms) = (device_id.to_owned(), self.now_ms());
        self.empty_before(&user_id, &device_id, true).await?;
        self.write(move |w| {
            if let Some(mut row) = device::get(w, user, &device_id)? {
                if name.is_some() && row.display_name != name {
                    row.display_name = name;
                    device::put(w, user, &device_id, &row)?;
                    announce::device_changed(w, &server, user, &user_id, &device_id)?;
                }
                return Ok(false);
            }
            check_may_log_in(w, user)?;
            if device::ids(w, user)?.len() >= DEVICES_MAX {
                return Err(Error::Forbidden("This user has as many devices as one may have".to_owned()));
            }
            let row = Device { display_name: name, created_ms: now_ms, seen_ms: now_ms, ..Device::default() };
            device::put(w, user, &device_id, &row)?;
            Ok(true)
        })
        .await
    }
}

/// Under which a requester is known. The bytes between the parts are in no text, so in no access token, which may come in the
/// query with any character: nobody can send a token that has this hash.
fn asserted_hash(service: &str, user_id: &UserId, device_id: &str) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let parts = [service.as_bytes(), user_id.as_str().as_bytes(), device_id.as_bytes()];
    Sha256::digest(parts.join(&u8::MAX)).into()
}

/// The answer to a name that is not the asker's to have.
pub fn exclusive(why: &str) -> Error {
    Error::bad("M_EXCLUSIVE", why)
}

fn asserted(get: &impl Get, service: String, user_id: OwnedUserId, device_id: String) -> Result<Requester, Error> {
    let unregistered = || Error::Forbidden(format!("Application service has not registered this user ({user_id})"));
    let user_num = match lookup::local(get, &user_id) {
        Err(Error::NotFound(_)) => return Err(unregistered()),
        num => num?,
    };
    let row = user::account(get, user_num)?.ok_or_else(unregistered)?;
    if row.standing == Standing::Deactivated {
        return Err(Error::Deactivated);
    }
    if !device_id.is_empty() && (device_id.contains('\0') || device::get(get, user_num, &device_id)?.is_none()) {
        return Err(Error::bad("M_UNKNOWN_DEVICE", "This user has no device with this ID"));
    }
    let user::Account { admin: is_admin, locked: is_locked, suspended: is_suspended, agreed, .. } = row;
    let (is_shadow_banned, is_bot, pace) = (row.shadow_banned, row.bot, row.pace);
    Ok(Requester {
        user_id,
        user_num,
        device_id,
        is_admin,
        is_guest: false,
        is_locked,
        is_suspended,
        is_shadow_banned,
        is_bot,
        pace,
        agreed,
        service: Some(service.into()),
        expires_ms: None,
    })
}
