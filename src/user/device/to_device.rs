//! To-device messages: sent, received from other servers, delivered by syncs.
//!
//! Client-server API, "Send-to-Device messaging"; server-server API, `m.direct_to_device`.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use parking_lot::Mutex;
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::announce;
use crate::base::shares::neighbourhood;
use crate::base::{Owner, Shares};
use crate::matrix::json::partial;
use crate::matrix::json::{self, Mode};
use crate::store::tables::user::to_device::{self, Circle, Sender};
use crate::store::tables::user::{self, device};
use crate::store::{Change, Get, Position, UserNum, Write};
use crate::user::{Error, Requester, Users, sharing};

/// EDUs for another server are cut at about this size, so that one fits a transaction beside others.
const UNIT_BYTES: usize = 48 << 10;
const TYPE_BYTES_MAX: usize = 255;
/// The limit of one message's content: that of an event.
const CONTENT_BYTES_MAX: usize = 64 << 10;
/// The nesting limit of one message's content: apps get it beside others, in one answer.
const CONTENT_DEPTH_MAX: u32 = json::EVENT_DEPTH_MAX;
/// The most bytes one request may add to local queues, copies for all of a user's devices included: it is one write.
const COPIES_BYTES_MAX: usize = 2 << 20;
/// The number of rows dropped in one write.
const DROPPED_PER_WRITE: usize = 500;

/// The parts of one long request.
const PARTS_MAX: u32 = 64;

/// The name of a request, by which its repetition is known.
#[derive(Debug, Clone)]
pub struct Txn {
    pub id: String,
    /// Of a long request that is sent in parts: which one this is, from 0 on. All together are remembered as one, so the
    /// same request must be cut in the same way again.
    pub part: Option<u32>,
}

impl Txn {
    /// The name of a request that is sent at once.
    pub fn whole(id: impl Into<String>) -> Txn {
        Txn { id: id.into(), part: None }
    }

    fn named(&self, part: Option<u32>) -> String {
        match part {
            Some(number) => format!("{}\n{number}", self.id),
            None => self.id.clone(),
        }
    }

    /// Whether this, or a later part of the same request, was sent already.
    fn is_seen(&self, get: &impl Get, sender: &Requester, kind: &str) -> Result<bool, Error> {
        let seen = |part| to_device::txn_seen(get, sender.user_num, &sender.device_id, kind, &self.named(part));
        let Some(number) = self.part else { return Ok(seen(None)?) };
        for part in number..PARTS_MAX {
            if seen(Some(part))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A part takes the place of the one before it: a long request forgets no others.
    fn note(&self, w: &mut Write<'_>, sender: &Requester, kind: &str) -> Result<(), Error> {
        let before = self.part.and_then(|part| part.checked_sub(1)).map(|before| self.named(Some(before)));
        let name = self.named(self.part);
        Ok(to_device::note_txn(w, sender.user_num, &sender.device_id, kind, &name, before.as_deref())?)
    }
}

/// User → device id or `*` → content.
pub type Messages = BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>;

/// A message in a device's sync.
#[derive(Serialize)]
struct Delivered<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    sender: &'a str,
    content: &'a RawValue,
}

/// The content of an `m.direct_to_device` EDU to another server.
#[derive(Serialize)]
struct Unit<'a> {
    edu_type: &'a str,
    content: Posted<'a>,
}

#[derive(Serialize)]
struct Posted<'a> {
    sender: &'a UserId,
    #[serde(rename = "type")]
    kind: &'a str,
    message_id: String,
    messages: Messages,
}

/// The content of an `m.direct_to_device` EDU from another server.
#[derive(Deserialize)]
struct Received {
    sender: OwnedUserId,
    #[serde(rename = "type")]
    kind: String,
    /// Required by the specification; without it a repetition is not detected.
    message_id: Option<String>,
    /// In the shape of [`Messages`]. Only its bytes bound the number of messages, so they are read one by one.
    messages: Box<RawValue>,
}

impl Users {
    /// Whether a part of a long request would be refused. All parts are asked about before any is sent.
    pub async fn check_to_device(&self, kind: &str, part: u32, messages: Messages) -> Result<(), Error> {
        check(kind, &messages)?;
        if part >= PARTS_MAX {
            return Err(Error::TooLarge("These are too many to-device messages for one request".to_owned()));
        }
        let server = self.server().to_owned();
        self.read(move |get| check_copies(get, &of_server(messages, &server).0)).await
    }

    /// Queues messages for local devices, and sends the others to the servers of their users. A known transaction id
    /// changes nothing.
    pub async fn send_to_device(
        &self,
        requester: &Requester,
        kind: &str,
        txn: Txn,
        mut messages: Messages,
    ) -> Result<(), Error> {
        check(kind, &messages)?;
        if requester.is_shadow_banned {
            // Its own devices go on to share keys.
            messages.retain(|user_id, _| *user_id == requester.user_id);
        }
        let (requester, kind) = (requester.clone(), kind.to_owned());
        let (server, random) = (self.server().to_owned(), self.0.parts.random.clone());
        let has_others = self.0.parts.remote.is_enabled();
        self.write(move |w| {
            if txn.is_seen(w, &requester, &kind)? {
                return Ok(());
            }
            let (here, elsewhere) = of_server(messages, &server);
            check_copies(w, &here)?;
            txn.note(w, &requester, &kind)?;
            let mut post = Post::new(&kind, &requester.user_id);
            let from = Sender::new(w, Circle::Near, requester.user_id.as_str(), "");
            for (user_id, devices) in &here {
                let Some(num) = local(w, user_id.as_str())? else { continue };
                for (device_id, content) in devices {
                    post.put(w, num, &from, device_id, content)?;
                }
            }
            let mut change = Change { users: post.wake, ..Change::default() };
            // On a server without federation these messages would never be taken.
            let elsewhere = if has_others { elsewhere } else { Messages::new() };
            for (server, content) in units(&kind, &requester.user_id, elsewhere, &mut || random.token(16)) {
                let unit = serde_json::to_vec(&Unit { edu_type: "m.direct_to_device", content })?;
                announce::post_to(w, server, unit)?;
                change.outbound = true;
            }
            w.announce(change);
            Ok(())
        })
        .await
    }

    /// Queues the messages of an `m.direct_to_device` EDU, and answers how many bytes that took. An EDU received
    /// before, by its `message_id`, changes nothing: servers repeat transactions whose answer they did not get.
    pub async fn to_device_received(&self, origin: &ServerName, content: &RawValue) -> Result<usize, Error> {
        let received: Received = serde_json::from_str(content.get())?;
        let is_object = received.messages.get().starts_with('{');
        if received.sender.server_name() != origin || received.kind.len() > TYPE_BYTES_MAX || !is_object {
            return Err(Error::invalid("The sender of the to-device message belongs to another server"));
        }
        let origin = origin.to_owned();
        // Read before the write, which is to be short.
        let (received, circles) = self
            .read(move |get| {
                let circles = circles(get, &received)?;
                Ok((received, circles))
            })
            .await?;
        if circles.is_empty() {
            return Ok(0);
        }
        self.write(move |w| {
            let nearest = circles.values().min().copied().unwrap_or(Circle::Stranger);
            let strangers = neighbourhood(origin.as_str());
            let stranger = (nearest == Circle::Stranger).then_some(&*strangers);
            if let Some(id) = &received.message_id
                && !to_device::note_received(w, origin.as_str(), stranger, id)?
            {
                return Ok(0);
            }
            let mut post = Post::new(&received.kind, &received.sender);
            partial::each_member::<Error>(received.messages.get().as_bytes(), &mut |user_id, devices| {
                let Some(num) = local(w, user_id)? else { return Ok(()) };
                let Some(circle) = circles.get(&num).copied() else { return Ok(()) };
                if !devices.get().starts_with('{') {
                    return Ok(());
                }
                let owner = if circle == Circle::Stranger { &*strangers } else { origin.as_str() };
                let from = Sender::new(w, circle, owner, received.sender.as_str());
                partial::each_member(devices.get().as_bytes(), &mut |device_id, content| match is_readable(content) {
                    true => post.put(w, num, &from, device_id, content),
                    false => Ok(()),
                })
            })?;
            let bytes = COPIES_BYTES_MAX - post.bytes_left;
            w.announce(Change { users: post.wake, ..Change::default() });
            Ok(bytes)
        })
        .await
    }

    /// A later sync token shows that a device has its messages up to `upto`: they are removed. A token whose position
    /// `of` lies beyond this database, since that was restored, shows nothing.
    pub async fn to_device_arrived(
        &self,
        user: UserNum,
        device_id: &str,
        upto: Position,
        of: Position,
    ) -> Result<(), Error> {
        if self.0.emptied.is_empty(user, device_id, upto) {
            return Ok(());
        }
        loop {
            let device = device_id.to_owned();
            // Mostly there is nothing to remove; a read is cheaper than a commit.
            let any = self
                .read(move |get| {
                    let mut any = false;
                    if of > get.position()? {
                        return Ok(None);
                    }
                    to_device::each(get, user, &device, Position(0), upto, &mut |_, _| {
                        any = true;
                        Ok(ControlFlow::Break(()))
                    })?;
                    Ok(Some(any))
                })
                .await?;
            if any == Some(false) {
                self.0.emptied.set(user, device_id, upto);
            }
            if any != Some(true) {
                return Ok(());
            }
            let device = device_id.to_owned();
            self.write(move |w| Ok(to_device::remove_up_to(w, user, &device, upto, DROPPED_PER_WRITE)?)).await?;
        }
    }
}

/// Devices whose queues are known to be empty up to a position, about 100 bytes each; beyond [`EMPTIED_MAX`] the user
/// with most entries loses one.
pub(in crate::user) struct Emptied(Mutex<Shares<(UserNum, String), Position>>);

const EMPTIED_MAX: usize = 128;

impl Default for Emptied {
    fn default() -> Emptied {
        Emptied(Mutex::new(Shares::new(EMPTIED_MAX, 0)))
    }
}

impl Emptied {
    fn is_empty(&self, user: UserNum, device_id: &str, upto: Position) -> bool {
        self.0.lock().get(&(user, device_id.to_owned())).is_some_and(|known| *known >= upto)
    }

    /// A queue has no message up to `upto`, and never will: messages get later positions.
    fn set(&self, user: UserNum, device_id: &str, upto: Position) {
        self.0.lock().put(Owner::Known(user), (user, device_id.to_owned()), upto);
    }

    /// A queue got no message after `since` up to `upto`.
    pub fn none_came(&self, user: UserNum, device_id: &str, since: Position, upto: Position) {
        if let Some(known) = self.0.lock().get(&(user, device_id.to_owned()))
            && *known >= since
        {
            *known = upto.max(*known);
        }
    }
}

/// Puts messages into the queues of local devices. Unknown devices and messages over the limits are skipped.
struct Post<'p> {
    kind: &'p str,
    sender: &'p UserId,
    bytes_left: usize,
    wake: Vec<UserNum>,
}

impl<'p> Post<'p> {
    fn new(kind: &'p str, sender: &'p UserId) -> Post<'p> {
        Post { kind, sender, bytes_left: COPIES_BYTES_MAX, wake: Vec::new() }
    }

    fn put(
        &mut self,
        w: &mut Write<'_>,
        user: UserNum,
        from: &Sender,
        device_id: &str,
        content: &RawValue,
    ) -> Result<(), Error> {
        if content.get().len() > CONTENT_BYTES_MAX || is_too_deep(content) {
            return Ok(());
        }
        let devices = addressed(w, user, device_id)?;
        let Some(left) = self.bytes_left.checked_sub(devices.len() * content.get().len()) else { return Ok(()) };
        self.bytes_left = left;
        let delivered = Delivered { kind: self.kind, sender: self.sender.as_str(), content };
        let message = serde_json::to_vec(&delivered)?;
        for device_id in devices {
            to_device::push(w, user, &device_id, from, &message)?;
        }
        if self.wake.last() != Some(&user) {
            self.wake.push(user);
        }
        Ok(())
    }
}

/// Whether apps can read a message of another server: an object with a canonical form.
fn is_readable(content: &RawValue) -> bool {
    let text = content.get().as_bytes();
    text.starts_with(b"{") && text.len() <= CONTENT_BYTES_MAX && json::canonical(text, Mode::Lenient).is_ok()
}

fn is_too_deep(content: &RawValue) -> bool {
    json::is_deeper_than(content.get().as_bytes(), CONTENT_DEPTH_MAX)
}

/// The local users a message is for, and how near its sender is to each. Bounded by the local users.
fn circles(get: &impl Get, received: &Received) -> Result<HashMap<UserNum, Circle>, Error> {
    let (server, sender) = (received.sender.server_name(), user::num(get, received.sender.as_str())?);
    let mut circles = HashMap::new();
    partial::each_member::<Error>(received.messages.get().as_bytes(), &mut |user_id, _| {
        if let Some(num) = local(get, user_id)?
            && !circles.contains_key(&num)
        {
            circles.insert(num, sharing::of_sender(get, num, server, sender)?);
        }
        Ok(())
    })?;
    Ok(circles)
}

/// A local user; none for other users.
fn local(get: &impl Get, user_id: &str) -> Result<Option<UserNum>, Error> {
    Ok(user::num(get, user_id)?.filter(|num| user::is_local(get, *num).unwrap_or(false)))
}

/// What can be said about messages without looking at their devices.
fn check(kind: &str, messages: &Messages) -> Result<(), Error> {
    if kind.len() > TYPE_BYTES_MAX {
        return Err(Error::invalid("This event type is too long"));
    }
    for content in messages.values().flat_map(BTreeMap::values) {
        if content.get().len() > CONTENT_BYTES_MAX {
            return Err(Error::TooLarge(format!("A to-device message may have {CONTENT_BYTES_MAX} bytes at most")));
        }
        if !content.get().starts_with('{') {
            return Err(Error::bad("M_BAD_JSON", "A message to a device is an object"));
        }
        if is_too_deep(content) {
            return Err(Error::invalid("A to-device message is nested too deeply"));
        }
        // Content without a canonical form cannot be signed for another server, and may break readers of a sync.
        json::canonical(content.get().as_bytes(), Mode::Lenient)
            .map_err(|reject| Error::Bad { errcode: "M_BAD_JSON", message: reject.to_string() })?;
    }
    Ok(())
}

/// The messages for users of this server, and the others.
fn of_server(messages: Messages, server: &ServerName) -> (Messages, Messages) {
    messages.into_iter().partition(|(user, _)| user.server_name() == server)
}

fn check_copies(get: &impl Get, here: &Messages) -> Result<(), Error> {
    match copies_bytes(get, here)? > COPIES_BYTES_MAX {
        true => Err(Error::TooLarge("The to-device messages of this request are too long together".to_owned())),
        false => Ok(()),
    }
}

/// The bytes that messages take in the queues of their devices.
fn copies_bytes(get: &impl Get, messages: &Messages) -> Result<usize, Error> {
    let mut bytes = 0;
    for (user_id, devices) in messages {
        let Some(num) = local(get, user_id.as_str())? else { continue };
        for (device_id, content) in devices {
            bytes += addressed(get, num, device_id)?.len() * content.get().len();
        }
    }
    Ok(bytes)
}

/// The devices an address names: all of them for `*`.
fn addressed(get: &impl Get, user: UserNum, device_id: &str) -> Result<Vec<String>, Error> {
    if device_id == "*" {
        return Ok(device::ids(get, user)?);
    }
    let known = !device_id.contains('\0') && device::get(get, user, device_id)?.is_some();
    Ok(known.then(|| device_id.to_owned()).into_iter().collect())
}

/// Messages for remote users as contents of `m.direct_to_device`, several for a server with many messages.
fn units<'a>(
    kind: &'a str,
    sender: &'a UserId,
    messages: Messages,
    message_id: &mut dyn FnMut() -> String,
) -> Vec<(OwnedServerName, Posted<'a>)> {
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
        .map(|(server, (messages, _))| (server, Posted { sender, kind, message_id: message_id(), messages }))
        .collect()
}
