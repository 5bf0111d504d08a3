//! A user's devices: listed, renamed, removed.

use std::ops::ControlFlow;

use ruma::UserId;
use serde_json::{Value, json};

use super::{Error, Users, lookup};
use crate::store::tables::user as table;
use crate::store::tables::user::account_data::{self, GLOBAL};
use crate::store::tables::user::device::{self, Device};
use crate::store::tables::user::e2ee_key;
use crate::store::{Change, Read, UserNum, Write, WriteError};

pub mod backup;
pub mod cross_signing;
pub mod dehydrated;
pub mod keys;
pub mod to_device;
pub mod announce;
mod unused;
pub mod key_claim;
pub mod key_answer;
pub mod key_query;
pub mod remote_list;
mod remote_query;

/// The most devices of one user; a further one replaces the one with the oldest last-seen.
pub(super) const DEVICES_MAX: usize = 100;
pub(super) const DEVICE_ID_BYTES_MAX: usize = 255;
pub(super) const NAME_BYTES_MAX: usize = 255;
/// Messages to an ended device that are removed in one write, two rows each; a device may have 20,000 waiting.
const MESSAGES_PER_WRITE: usize = 500;

impl Users {
    /// A user's devices in the API's form. Bounded by the cap on devices of one user.
    pub async fn devices(&self, user: UserNum) -> Result<Vec<Value>, Error> {
        self.read(move |get| {
            let mut list = Vec::new();
            device::each(get, user, &mut |id, row| {
                list.push(shown(id, &row));
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(list)
        })
        .await
    }

    /// The devices of a local user.
    pub async fn devices_of(&self, user_id: &UserId) -> Result<Vec<Value>, Error> {
        let user_id = user_id.to_owned();
        let user = self.read(move |get| lookup::local(get, &user_id)).await?;
        self.devices(user).await
    }

    pub async fn device(&self, user: UserNum, device_id: &str) -> Result<Value, Error> {
        let device_id = check_id(device_id)?;
        self.read(move |get| {
            let row = device::get(get, user, &device_id)?.ok_or(Error::NotFound("device"))?;
            Ok(shown(&device_id, &row))
        })
        .await
    }

    /// Sets or removes the name of a device.
    pub async fn name_device(
        &self,
        user: UserNum,
        user_id: &UserId,
        device_id: &str,
        name: Option<String>,
    ) -> Result<(), Error> {
        if name.as_ref().is_some_and(|name| name.len() > NAME_BYTES_MAX) {
            return Err(Error::TooLarge("The device name is too long".to_owned()));
        }
        let (device_id, user_id, server) = (check_id(device_id)?, user_id.to_owned(), self.server().to_owned());
        self.write(move |w| {
            let mut row = device::get(w, user, &device_id)?.ok_or(Error::NotFound("device"))?;
            row.display_name = name;
            device::put(w, user, &device_id, &row)?;
            announce::device_changed(w, &server, user, &user_id, &device_id)
        })
        .await
    }

    /// Removes devices with their tokens, keys and messages, a write each. Unknown ids are skipped.
    pub async fn remove_devices(&self, user: UserNum, user_id: &UserId, ids: Vec<String>) -> Result<(), Error> {
        let (user_id, server) = (user_id.to_owned(), self.server().to_owned());
        let known = move |get: &Read| {
            let mut known = std::collections::BTreeSet::new();
            for id in ids.into_iter().filter(|id| !id.contains('\0')) {
                if device::get(get, user, &id)?.is_some() {
                    known.insert(id);
                }
            }
            Ok(known)
        };
        for id in self.read(known).await? {
            let (user_id, server) = (user_id.clone(), server.clone());
            let job = move |w: &mut Write<'_>| {
                if device::get(w, user, &id)?.is_some() {
                    forget(w, user, &id)?;
                    announce::device_gone(w, &server, user, &user_id, &id)?;
                }
                Ok(())
            };
            self.write(job).await?;
        }
        self.tidy_sliding(user);
        self.empty_ended();
        Ok(())
    }

    /// Removes, in short writes, what is left of the messages to a device that is no more, before one with its id begins.
    /// `or_dehydrated`: also those to the dehydrated device with this id.
    pub(super) async fn empty_before(
        &self,
        user_id: &UserId,
        device_id: &str,
        or_dehydrated: bool,
    ) -> Result<(), Error> {
        loop {
            let (user_id, id) = (user_id.to_owned(), device_id.to_owned());
            // Nearly always there are none.
            let any = move |get: &Read| {
                let user = lookup::local(get, &user_id)?;
                let is_free =
                    device::get(get, user, &id)?.is_none() || or_dehydrated && device::is_dehydrated(get, user, &id)?;
                Ok((is_free && table::to_device::any(get, user, &id)?).then_some(user))
            };
            let Some(user) = self.read(any).await? else { return Ok(()) };
            let id = device_id.to_owned();
            let job = move |w: &mut Write<'_>| table::to_device::remove_device(w, user, &id, MESSAGES_PER_WRITE);
            self.0.parts.store.write_freeing(job).await.map_err(WriteError::into_inner)?;
        }
    }

    /// Removes, aside and in short writes, the messages that were left of devices that are no more. What a power cut leaves
    /// of them goes after the next device that ends.
    pub(super) fn empty_ended(&self) {
        let users = self.clone();
        let emptying = async move {
            while let Some(queue) = users.read(|get| Ok(table::to_device::next_ended(get)?)).await? {
                let job = move |w: &mut Write<'_>| table::to_device::remove_ended(w, &queue, MESSAGES_PER_WRITE);
                users.0.parts.store.write_freeing(job).await.map_err(WriteError::into_inner)?;
            }
            Ok::<_, Error>(())
        };
        let emptying = async move {
            if let Err(failed) = emptying.await {
                tracing::debug!("the messages of an ended device were not all removed: {failed}");
            }
        };
        crate::base::detached(emptying);
    }
}

/// Types of account data that end in the id of a device and are about it alone (MSC3890).
const LOCAL_SETTINGS: [&str; 2] = ["m.local_notification_settings.", "org.matrix.msc3890.local_notification_settings."];

/// Removes a device and everything that belongs to it: each session and each device ends here, however it ends, so what is
/// kept for one of them is removed here; [`Users::tidy_sliding`] takes away what its syncs were told, and
/// [`Users::empty_ended`] what is left of many messages. Other users are not told.
pub(super) fn forget(w: &mut Write<'_>, user: UserNum, device_id: &str) -> Result<(), Error> {
    if let Some(row) = device::get(w, user, device_id)? {
        device::remove_tokens(w, &row)?;
    }
    e2ee_key::remove_device(w, user, device_id)?;
    table::to_device::remove_device(w, user, device_id, MESSAGES_PER_WRITE)?;
    for kind in LOCAL_SETTINGS {
        if account_data::remove(w, user, GLOBAL, &format!("{kind}{device_id}"))? {
            // The user's other apps go on with none.
            w.announce(Change { users: vec![user], ..Change::default() });
        }
    }
    if device::is_dehydrated(w, user, device_id)? {
        device::remove_dehydrated(w, user)?;
    }
    table::pusher::remove_device(w, user, device_id)?;
    table::sliding::remove_device(w, user, device_id)?;
    Ok(device::remove(w, user, device_id)?)
}

fn check_id(device_id: &str) -> Result<String, Error> {
    if device_id.contains('\0') { Err(Error::NotFound("device")) } else { Ok(device_id.to_owned()) }
}

fn shown(id: &str, row: &Device) -> Value {
    let mut shown = json!({ "device_id": id, "last_seen_ts": row.seen_ms });
    if let Some(name) = &row.display_name {
        shown["display_name"] = name.as_str().into();
    }
    if let Some(ip) = &row.seen_ip {
        shown["last_seen_ip"] = ip.as_str().into();
    }
    shown
}
