//! The body of a transaction (application service API, "Pushing events"): the same for the same content, however often it
//! is made, but for what is redacted meanwhile, ages, and counts of keys, which are as they are then.
//!
//! Bounded by `bytes_max` and one event more; what does not fit comes with the next.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::io::Write as _;

use serde_json::json;

use super::Told;
use super::next::own_in;
use crate::base::{comma, gathered};
use crate::remote::service::Service;
use crate::store::tables::room::{event, user_room};
use crate::store::tables::server::service::Pending;
use crate::store::tables::user::{self, device, e2ee_key, to_device};
use crate::store::{self, EventNum, Position, Read, RoomNum, UserNum};

/// Own users of one transaction of whose devices the keys are counted: those of the rooms it is about.
const COUNTED_MAX: usize = 100;
/// Rooms of one transaction whose members are looked at for that.
const COUNTED_ROOMS_MAX: usize = 10;
/// Of the counts, under one name: some hundred devices. The other users are counted with what is told of their rooms next.
pub const COUNTS_BYTES_MAX: usize = 8 * 1024;
/// Unused fallback keys named of one device.
const FALLBACKS_MAX: usize = 16;

/// Makes the body. Takes out of `pending` what does not fit, if it may still be changed.
pub fn make(
    told: &dyn Told,
    get: &Read,
    service: &Service,
    pending: &mut Pending,
    bytes_max: usize,
    may_cut: bool,
) -> store::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(4096);
    out.extend_from_slice(b"{\"events\":[");
    let (mut first, mut rooms) = (true, Vec::new());
    for (at, num) in pending.events.clone().into_iter().enumerate() {
        if may_cut && at > 0 && out.len() >= bytes_max {
            cut(get, pending, at)?;
            break;
        }
        let Some(row) = event::row(get, EventNum(num))? else { continue };
        if !rooms.contains(&row.room) && rooms.len() < COUNTED_ROOMS_MAX {
            rooms.push(row.room);
        }
        let before = out.len();
        comma(&mut out, &mut first);
        if !told.event(get, EventNum(num), &mut out)? {
            out.truncate(before);
            first = before == b"{\"events\":[".len();
        }
    }
    for (user, room) in &pending.invites {
        let before = out.len();
        let was_first = first;
        comma(&mut out, &mut first);
        if !told.invite(get, UserNum(*user), RoomNum(*room), &mut out)? {
            out.truncate(before);
            first = was_first;
        }
    }
    out.push(b']');
    let list = |out: &mut Vec<u8>, name: &str, items: &str| {
        out.extend_from_slice(format!(",\"{name}\":[").as_bytes());
        out.extend_from_slice(items.as_bytes());
        out.push(b']');
    };
    if !pending.ephemeral.is_empty() {
        if service.ephemeral {
            list(&mut out, "ephemeral", &pending.ephemeral);
        }
        if service.unstable_ephemeral {
            list(&mut out, "de.sorunome.msc2409.ephemeral", &pending.ephemeral);
        }
    }
    let messages = messages(get, pending)?;
    if !messages.is_empty() {
        list(&mut out, "to_device", &messages);
        list(&mut out, "de.sorunome.msc2409.to_device", &messages);
    }
    drop(messages);
    if service.keys {
        keys(get, service, pending, rooms, &mut out)?;
    }
    out.push(b'}');
    Ok(out)
}

/// Ends a transaction before the event at an index. What came after the last that stays comes with the next one.
fn cut(get: &Read, pending: &mut Pending, at: usize) -> store::Result<()> {
    pending.events.truncate(at);
    // Some may have been removed with old messages since the look; one that stays is there, since it made the body full.
    let mut last = None;
    for num in pending.events.iter().rev() {
        let order = event::row(get, EventNum(*num))?.and_then(|row| row.order);
        last = order.and_then(|order| u64::try_from(order).ok());
        if last.is_some() {
            break;
        }
    }
    let Some(to) = last else { return Ok(()) };
    pending.to = pending.to.min(to);
    let to = pending.to;
    pending.messages.retain(|(_, _, at, is_alone)| *is_alone || *at <= to);
    let mut kept = Vec::new();
    for (user, room) in std::mem::take(&mut pending.invites) {
        let mine = user_room::mine(get, UserNum(user), RoomNum(room))?;
        if mine.is_some_and(|mine| mine.since <= Position(to)) {
            kept.push((user, room));
        }
    }
    pending.invites = kept;
    Ok(())
}

/// The messages to devices, each with whom it is for.
fn messages(get: &Read, pending: &Pending) -> store::Result<String> {
    let mut out = String::new();
    for (num, device, at, _) in &pending.messages {
        // It may have been read by a sync meanwhile.
        let Some(message) = to_device::get(get, UserNum(*num), device, Position(*at))? else { continue };
        let Ok(message) = String::from_utf8(message) else { continue };
        let Some(rest) = message.trim_start().strip_prefix('{') else { continue };
        if !out.is_empty() {
            out.push(',');
        }
        let to = json!(user::id_of(get, UserNum(*num))?);
        out.push_str(&format!("{{\"to_user_id\":{to},\"to_device_id\":{},{rest}", json!(device)));
    }
    Ok(out)
}

/// Changed device lists, and the keys that are left of the devices of own users (MSC3202).
fn keys(get: &Read, service: &Service, pending: &Pending, rooms: Vec<RoomNum>, out: &mut Vec<u8>) -> store::Result<()> {
    let both = |out: &mut Vec<u8>, names: &[&str], value: &dyn Display| {
        for name in names {
            // Into memory, which does not fail.
            let _ = write!(out, ",\"{name}\":{value}");
        }
    };
    if !pending.changed.is_empty() {
        let changed: Vec<_> =
            pending.changed.iter().map(|num| user::id_of(get, UserNum(*num))).collect::<store::Result<_>>()?;
        let lists = json!({ "changed": changed, "left": [] });
        both(out, &["device_lists", "org.matrix.msc3202.device_lists"], &lists);
    }
    let mut users: Vec<UserNum> = user::num(get, service.sender.as_str())?.into_iter().collect();
    for (num, ..) in &pending.messages {
        if !users.contains(&UserNum(*num)) {
            users.push(UserNum(*num));
        }
    }
    for room in rooms {
        own_in(get, service, room, COUNTED_MAX, &mut users)?;
    }
    let (mut counts, mut fallbacks) = (String::new(), String::new());
    for num in users.into_iter().take(COUNTED_MAX) {
        let (mut left_of, mut unused_of) = (String::new(), String::new());
        for device in device::ids(get, num)? {
            let bytes = |all: &str, of_user: &str| all.len() + of_user.len();
            if bytes(&counts, &left_of).max(bytes(&fallbacks, &unused_of)) >= COUNTS_BYTES_MAX {
                break;
            }
            // Those without keys too: by its count of none a bridge knows that it has to upload some.
            let mut left: BTreeMap<String, u64> = gathered(e2ee_key::one_time_counts(get, num, &device)?);
            left.entry("signed_curve25519".to_owned()).or_default();
            let unused = e2ee_key::unused_fallbacks(get, num, &device, FALLBACKS_MAX)?;
            add_member(&mut left_of, &device, &json!(left));
            add_member(&mut unused_of, &device, &json!(unused));
        }
        if !left_of.is_empty() {
            let id = user::id_of(get, num)?;
            add_member(&mut counts, &id, &format_args!("{{{left_of}}}"));
            add_member(&mut fallbacks, &id, &format_args!("{{{unused_of}}}"));
        }
    }
    if !counts.is_empty() {
        let names = [
            "device_one_time_keys_count",
            "org.matrix.msc3202.device_one_time_keys_count",
            "org.matrix.msc3202.device_one_time_key_counts",
        ];
        both(out, &names, &format_args!("{{{counts}}}"));
        let names = ["device_unused_fallback_key_types", "org.matrix.msc3202.device_unused_fallback_key_types"];
        both(out, &names, &format_args!("{{{fallbacks}}}"));
    }
    Ok(())
}

/// Adds a member to the text of an object that has no brackets yet.
fn add_member(object: &mut String, name: &str, value: &dyn Display) {
    if !object.is_empty() {
        object.push(',');
    }
    let _ = write!(object, "{}:{value}", json!(name));
}
