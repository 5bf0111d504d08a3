//! Messages to single devices: sent, received from other servers, handed to syncs.
//!
//! Client-server API, "Send-to-Device messaging"; server-server API, `m.direct_to_device`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ruma::{OwnedServerName, OwnedUserId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Error, Requester, Users, circle};
use crate::store::tables::{device, to_device, user};
use crate::store::{Change, Get, Position, UserNum, Write};

/// Units for another server are cut at about this size, so that one fits a transaction beside others.
const UNIT_BYTES: usize = 48 << 10;
const TYPE_BYTES_MAX: usize = 255;
/// Rows dropped in one write.
const DROPPED_PER_WRITE: usize = 500;

/// User → device id or `*` → content.
pub type Messages = BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>;

/// What a device finds in its sync.
#[derive(Serialize)]
struct Delivered<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    sender: &'a str,
    content: &'a RawValue,
}

/// What another server sends.
#[derive(Deserialize)]
struct Received {
    sender: OwnedUserId,
    #[serde(rename = "type")]
    kind: String,
    /// Required by the specification; without it nothing tells a repetition.
    message_id: Option<String>,
    messages: Messages,
}

impl Users {
    /// Queues messages, or passes them to the servers of their users. A transaction id seen before changes nothing.
    pub async fn send_to_device(
        &self,
        requester: &Requester,
        kind: &str,
        txn: &str,
        messages: Messages,
    ) -> Result<(), Error> {
        if kind.len() > TYPE_BYTES_MAX {
            return Err(Error::invalid("This event type is too long"));
        }
        let (requester, kind, txn) = (requester.clone(), kind.to_owned(), txn.to_owned());
        let (server, random) = (self.server().to_owned(), self.0.parts.random.clone());
        self.write(move |w| {
            if to_device::txn_seen(w, requester.user_num, &requester.device_id, &kind, &txn)? {
                return Ok(());
            }
            to_device::note_txn(w, requester.user_num, &requester.device_id, &kind, &txn)?;
            let (here, elsewhere): (Messages, Messages) =
                messages.into_iter().partition(|(user, _)| user.server_name() == server);
            let mut change = Change { users: deliver(w, &kind, &requester.user_id, &here)?, ..Change::default() };
            for (server, content) in units(&kind, &requester.user_id, elsewhere, &mut || random.token(16)) {
                circle::post_to(w, server, &json!({ "edu_type": "m.direct_to_device", "content": content }))?;
                change.outbound = true;
            }
            w.announce(change);
            Ok(())
        })
        .await
    }

    /// Queues what another server sends in an `m.direct_to_device` unit. One that came before, by its `message_id`, changes
    /// nothing: servers repeat transactions whose answer they did not get.
    pub async fn to_device_received(&self, origin: &ServerName, content: &RawValue) -> Result<(), Error> {
        let received: Received =
            serde_json::from_str(content.get()).map_err(|wrong| Error::invalid(wrong.to_string()))?;
        if received.sender.server_name() != origin || received.kind.len() > TYPE_BYTES_MAX {
            return Err(Error::invalid("A message to devices in another server's name"));
        }
        let origin = origin.to_owned();
        self.write(move |w| {
            if let Some(id) = &received.message_id
                && !to_device::note_received(w, origin.as_str(), id)?
            {
                return Ok(());
            }
            let users = deliver(w, &received.kind, &received.sender, &received.messages)?;
            w.announce(Change { users, ..Change::default() });
            Ok(())
        })
        .await
    }

    /// A later sync token shows that a device has its messages up to here: they go. A token of a future that this database
    /// has not seen, since it was restored, shows nothing.
    pub async fn to_device_arrived(&self, user: UserNum, device_id: &str, upto: Position) -> Result<(), Error> {
        loop {
            let device = device_id.to_owned();
            // Mostly there is nothing; a look is cheaper than a commit.
            let any = self
                .read(move |get| {
                    let mut any = false;
                    if upto > get.position()? {
                        return Ok(any);
                    }
                    to_device::each(get, user, &device, Position(0), upto, &mut |_, _| {
                        any = true;
                        Ok(ControlFlow::Break(()))
                    })?;
                    Ok(any)
                })
                .await?;
            if !any {
                return Ok(());
            }
            let device = device_id.to_owned();
            self.write(move |w| Ok(to_device::remove_up_to(w, user, &device, upto, DROPPED_PER_WRITE)?)).await?;
        }
    }
}

/// Puts messages into the queues of local devices. Answers whom to wake. Users and devices there are none of are passed
/// over.
fn deliver(w: &mut Write<'_>, kind: &str, sender: &OwnedUserId, messages: &Messages) -> Result<Vec<UserNum>, Error> {
    let mut wake = Vec::new();
    for (user_id, devices) in messages {
        let Some(num) = user::num(w, user_id.as_str())?.filter(|num| user::is_local(w, *num).unwrap_or(false)) else {
            continue;
        };
        for (device_id, content) in devices {
            let delivered = Delivered { kind, sender: sender.as_str(), content };
            let message = serde_json::to_vec(&delivered).map_err(|wrong| Error::invalid(wrong.to_string()))?;
            for device_id in addressed(w, num, device_id)? {
                to_device::push(w, num, &device_id, &message)?;
            }
        }
        wake.push(num);
    }
    Ok(wake)
}

/// The devices an address means: all of them for `*`.
fn addressed(get: &impl Get, user: UserNum, device_id: &str) -> Result<Vec<String>, Error> {
    if device_id == "*" {
        return Ok(device::ids(get, user)?);
    }
    let known = !device_id.contains('\0') && device::get(get, user, device_id)?.is_some();
    Ok(known.then(|| device_id.to_owned()).into_iter().collect())
}

/// Messages for other servers' users as contents of `m.direct_to_device`, several for a server with much to get.
fn units(
    kind: &str,
    sender: &OwnedUserId,
    messages: Messages,
    message_id: &mut dyn FnMut() -> String,
) -> Vec<(OwnedServerName, Value)> {
    let mut servers: BTreeMap<OwnedServerName, Vec<(Messages, usize)>> = BTreeMap::new();
    for (user, devices) in messages {
        let units = servers.entry(user.server_name().to_owned()).or_default();
        for (device_id, content) in devices {
            let bytes = device_id.len() + content.get().len();
            if units.last().is_none_or(|(_, full)| full + bytes > UNIT_BYTES) {
                units.push((Messages::new(), 0));
            }
            let Some((unit, full)) = units.last_mut() else { continue };
            unit.entry(user.clone()).or_default().insert(device_id, content);
            *full += bytes;
        }
    }
    let contents =
        servers.into_iter().flat_map(|(server, units)| units.into_iter().map(move |unit| (server.clone(), unit)));
    contents
        .map(|(server, (messages, _))| {
            let content = json!({ "sender": sender, "type": kind, "message_id": message_id(), "messages": messages });
            (server, content)
        })
        .collect()
}
