//! Device lists of other servers' users: kept, and followed by what their servers tell.
//!
//! Server-server API, "Device Management"; client-server API, "Tracking the device list for a user". A list is followed
//! only while its user shares a room with us, since their server sends updates only then. A list that missed an update
//! is asked for anew when an app wants it; apps are told of every change, so that is at once.

use std::borrow::Cow;
use std::ops::ControlFlow;

use ruma::{OwnedUserId, ServerName, UserId};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::key_answer::{each_in, each_of, is_too_deep};
use crate::budget::{Grant, parsed_bytes_max};
use crate::matrix::json::partial;
use crate::store::tables::user::remote_list::{self, Key};
use crate::store::tables::user::{self, device};
use crate::store::{Change, Get, Position, UserNum, Write};
use crate::user::{Error, Users, sharing};

/// Devices in one answer, of which only those to `GET /user/devices` are kept when there are more, and earlier updates
/// that an update names. 80 bytes each while they are read.
const LISTED_MAX: usize = 1000;
/// Longer keys are not shown with their device's name.
const NAMED_PARSED_BYTES_MAX: u64 = 64 << 10;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// What another server tells of its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// `m.device_list_update`
    Device,
    /// `m.signing_key_update`
    SigningKeys,
}

/// What an answer of another server holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Of `POST /user/keys/query`: several users, without the number of the last update.
    Query,
    /// Of `GET /user/devices`: one user.
    Devices,
}

/// What is known of the list of a user of another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub user: UserNum,
    /// The list is followed; else it has to be asked for.
    pub is_current: bool,
    /// There is a list, which is old if it is not current.
    pub is_kept: bool,
    /// The user shares a room with the viewer, so that a list can be followed from now on.
    pub shares: bool,
    /// The list was not used today yet.
    pub unused: bool,
}

/// What is known of a user's list by a viewer here; none for a user never met.
pub(super) fn known(
    get: &impl Get,
    here: &ServerName,
    viewer: UserNum,
    user_id: &UserId,
    day: u32,
) -> Result<Option<Known>, Error> {
    let Some(user) = user::num(get, user_id.as_str())? else { return Ok(None) };
    let shares = sharing::shares_room(get, viewer, user)?;
    let list = remote_list::get(get, user)?;
    let is_current = match list {
        Some(list) => shares && !list.stale && sharing::share_since(get, here, viewer, user, list.at)?,
        None => false,
    };
    let unused = list.is_some_and(|list| list.day != day);
    Ok(Some(Known { user, is_current, is_kept: list.is_some(), shares, unused }))
}

impl Users {
    pub(super) fn today(&self) -> u32 {
        u32::try_from(self.now_ms() / DAY_MS).unwrap_or(u32::MAX)
    }

    /// Notes that lists were used today.
    pub(super) async fn lists_used(&self, users: Vec<UserNum>) -> Result<(), Error> {
        if users.is_empty() {
            return Ok(());
        }
        let day = self.today();
        self.write(move |w| users.into_iter().try_for_each(|user| Ok(remote_list::used(w, user, day)?))).await
    }

    /// Keeps the lists of users in an answer that was asked for at a position. `paid` pays for the answer.
    pub(super) async fn keep_lists(
        &self,
        viewer: UserNum,
        server: &ServerName,
        users: Vec<OwnedUserId>,
        at: Position,
        form: Form,
        (answer, paid): (Vec<u8>, Grant),
    ) -> Result<(), Error> {
        if users.is_empty() || form == Form::Query && has_too_many_devices(&answer) {
            return Ok(());
        }
        let (day, server) = (self.today(), server.to_owned());
        self.write(move |w| {
            let mut keeping = Vec::new();
            for user_id in users {
                let Some(user) = user::num(w, user_id.as_str())? else { continue };
                if sharing::shares_room(w, viewer, user)? {
                    remote_list::begin(w, user, server.as_str(), None, at, day)?;
                    keeping.push((user_id, user));
                }
            }
            let stream_id = put_keys(w, &keeping, form, &answer)?;
            for (_, user) in &keeping {
                // An update may have come before the answer, which may be older.
                let stale = device::last_change(w, *user)?.is_some_and(|last| last > at);
                remote_list::followed(w, *user, stale, stream_id)?;
            }
            remote_list::make_room(w, server.as_str())?;
            drop(paid);
            Ok(())
        })
        .await
    }

    /// Another server tells (in an `m.device_list_update` or `m.signing_key_update` EDU) that one of its users has
    /// other devices or keys. A kept list follows; local users who share a room with that user will ask for it.
    pub async fn devices_changed_elsewhere(
        &self,
        origin: &ServerName,
        news: News,
        content: &RawValue,
    ) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Whose {
            user_id: OwnedUserId,
        }
        let Whose { user_id } = serde_json::from_str(content.get())?;
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
        let (content, server) = (content.to_owned(), origin.to_owned());
        self.write(move |w| {
            match news {
                News::Device => follow(w, num, &content)?,
                News::SigningKeys => put_keys_of(w, num, &content)?,
            }
            remote_list::make_room(w, server.as_str())?;
            device::changed(w, num)?;
            // Others may have come into a room with that user since the reading.
            w.announce(Change { users, anybody: true, ..Change::default() });
            Ok(())
        })
        .await
    }
}

/// An `m.device_list_update`. What has another shape counts as missing.
#[derive(Deserialize)]
struct Update<'a> {
    #[serde(borrow)]
    device_id: Cow<'a, str>,
    #[serde(borrow, default)]
    device_display_name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    keys: Option<&'a RawValue>,
    #[serde(default)]
    deleted: Option<bool>,
    stream_id: u64,
    #[serde(default, deserialize_with = "partial::first::<LISTED_MAX, _, _>")]
    prev_id: Vec<u64>,
}

/// Takes one update into a kept list. The list is stale when an earlier update is missing, or this one is not understood.
fn follow(w: &mut Write<'_>, user: UserNum, content: &RawValue) -> Result<(), Error> {
    let Some(list) = remote_list::get(w, user)? else { return Ok(()) };
    let Ok(update) = serde_json::from_str::<Update<'_>>(content.get()) else {
        return Ok(remote_list::followed(w, user, true, None)?);
    };
    if list.stream_id == Some(update.stream_id) {
        return Ok(());
    }
    let is_next = !update.prev_id.is_empty() && update.prev_id.iter().all(|prev| Some(*prev) == list.stream_id);
    let keys = update.keys.filter(|keys| update.deleted != Some(true) && keys.get().starts_with('{'));
    if keys.is_some_and(is_too_deep) || list.stream_id.is_some_and(|last| update.stream_id < last) {
        return Ok(remote_list::followed(w, user, true, None)?);
    }
    let named = keys.and_then(|keys| named(keys, update.device_display_name.as_deref()));
    let json = named.as_deref().or(keys).map(|keys| keys.get().as_bytes());
    remote_list::set_key(w, user, Key::Device(&update.device_id), json)?;
    let stale = list.stale || !is_next;
    Ok(remote_list::followed(w, user, stale, Some(update.stream_id).filter(|_| !stale))?)
}

/// Puts the cross-signing keys of an object into a kept list.
fn put_keys_of(w: &mut Write<'_>, user: UserNum, object: &RawValue) -> Result<(), Error> {
    partial::each_member(object.get().as_bytes(), &mut |name, key| {
        let kind = match name {
            "master_key" => Key::Master,
            "self_signing_key" => Key::SelfSigning,
            _ => return Ok(()),
        };
        match key.get().starts_with('{') && !is_too_deep(key) {
            true => Ok(remote_list::set_key(w, user, kind, Some(key.get().as_bytes()))?),
            false => Ok(()),
        }
    })
}

/// Whether an answer to `POST /user/keys/query` has more devices than one write should take.
fn has_too_many_devices(answer: &[u8]) -> bool {
    let mut devices = 0;
    let counted = each_of(answer, "device_keys", &mut |_, of_user| {
        each_in(of_user, &mut |_, _| {
            devices += 1;
            Ok(())
        })
    });
    counted.is_err() || devices > LISTED_MAX
}

/// Puts the keys of an answer into the lists being kept. Bounded by [`LISTED_MAX`]. Answers the number of the last update, if it says that.
fn put_keys(
    w: &mut Write<'_>,
    keeping: &[(OwnedUserId, UserNum)],
    form: Form,
    answer: &[u8],
) -> Result<Option<u64>, Error> {
    if form == Form::Devices {
        let Some((_, user)) = keeping.first() else { return Ok(None) };
        return each_in_list::<Error>(answer, &mut |key, json| {
            Ok(remote_list::set_key(w, *user, key, Some(json.get().as_bytes()))?)
        });
    }
    let num = |user_id: &str| keeping.iter().find(|(kept, _)| kept == user_id).map(|(_, user)| *user);
    partial::each_member::<Error>(answer, &mut |name, users| {
        if !matches!(name, "device_keys" | "master_keys" | "self_signing_keys") || !users.get().starts_with('{') {
            return Ok(());
        }
        partial::each_member::<Error>(users.get().as_bytes(), &mut |user_id, value| {
            let Some(user) = num(user_id) else { return Ok(()) };
            let mut put = |key: Key<'_>, json: &RawValue| match is_too_deep(json) {
                true => Ok::<_, Error>(()),
                false => Ok(remote_list::set_key(w, user, key, Some(json.get().as_bytes()))?),
            };
            match name {
                "device_keys" if value.get().starts_with('{') => {
                    partial::each_member(value.get().as_bytes(), &mut |id, keys| put(Key::Device(id), keys))
                }
                "device_keys" => Ok(()),
                "master_keys" => put(Key::Master, value),
                _ => put(Key::SelfSigning, value),
            }
        })
    })?;
    Ok(None)
}

/// Visits the keys in an answer to `GET /user/devices`, each device's with its name, and answers the number of the last
/// update in it.
pub(super) fn each_in_list<E: From<serde_json::Error>>(
    answer: &[u8],
    visit: &mut dyn FnMut(Key<'_>, &RawValue) -> Result<(), E>,
) -> Result<Option<u64>, E> {
    #[derive(Deserialize)]
    struct Told<'a> {
        #[serde(borrow, deserialize_with = "partial::first::<LISTED_MAX, _, _>")]
        devices: Vec<&'a RawValue>,
        #[serde(borrow, default)]
        stream_id: Option<&'a RawValue>,
        #[serde(borrow, default)]
        master_key: Option<&'a RawValue>,
        #[serde(borrow, default)]
        self_signing_key: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Device<'a> {
        #[serde(borrow)]
        device_id: Cow<'a, str>,
        #[serde(borrow, default)]
        keys: Option<&'a RawValue>,
        #[serde(borrow, default)]
        device_display_name: Option<Cow<'a, str>>,
    }
    let told: Told<'_> = serde_json::from_slice(answer)?;
    for raw in &told.devices {
        let Ok(device) = serde_json::from_str::<Device<'_>>(raw.get()) else { continue };
        let Some(keys) = device.keys.filter(|keys| keys.get().starts_with('{') && !is_too_deep(keys)) else { continue };
        let named = named(keys, device.device_display_name.as_deref());
        visit(Key::Device(&device.device_id), named.as_deref().unwrap_or(keys))?;
    }
    for (kind, key) in [(Key::Master, told.master_key), (Key::SelfSigning, told.self_signing_key)] {
        if let Some(key) = key.filter(|key| key.get().starts_with('{') && !is_too_deep(key)) {
            visit(kind, key)?;
        }
    }
    Ok(told.stream_id.and_then(|text| text.get().parse().ok()))
}

/// A device's keys with its name where `/keys/query` shows it; none when they stay as they are.
fn named(keys: &RawValue, name: Option<&str>) -> Option<Box<RawValue>> {
    let name = name?;
    if parsed_bytes_max(keys.get().as_bytes()) > NAMED_PARSED_BYTES_MAX {
        return None;
    }
    let mut keys: Value = serde_json::from_str(keys.get()).ok()?;
    keys["unsigned"] = json!({ "device_display_name": name });
    to_raw_value(&keys).ok()
}

/// Visits the keys of a kept list.
pub(super) fn each_kept(
    get: &impl Get,
    user: UserNum,
    visit: &mut dyn FnMut(Key<'_>, Box<RawValue>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut failed = None;
    remote_list::each_key(get, user, &mut |key, json| {
        let raw = std::str::from_utf8(json).ok().and_then(|text| RawValue::from_string(text.to_owned()).ok());
        let Some(raw) = raw else { return Ok(ControlFlow::Continue(())) };
        match visit(key, raw) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(wrong) => {
                failed = Some(wrong);
                Ok(ControlFlow::Break(()))
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests;
