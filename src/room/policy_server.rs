//! Policy servers: rooms that have one want its signature on every event (server-server API, "Policy Servers"; MSC4284).
//!
//! Which server it is and its key stand in the room's state, so a signature that an event brings along is checked without asking
//! anybody. Without one it is asked, before an event of ours goes anywhere, and for others' before they are shown. A
//! policy server that cannot be reached stops its room, as the specification has it: its own state event is exempt, so
//! that the room can do without it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::Method;
use ruma::{OwnedServerName, ServerName};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::Rooms;
use super::error::{Error, Result};
use super::state::RoomRef;
use crate::budget::Refused;
use crate::matrix::sign::{self, PublicKey};
use crate::matrix::{Event, json};
use crate::remote::{Failed, Options, Urgency};
use crate::store::Get;
use crate::store::tables::room::member;

const KEY_ID: &str = "ed25519:policy_server";
/// The state event that names it, with the name from before the specification had it.
const KINDS: [&str; 2] = ["m.room.policy", "org.matrix.msc4284.policy"];
const TARGETS: [&str; 2] = ["/_matrix/policy/v1/sign", "/_matrix/policy/unstable/org.matrix.msc4284/sign"];
/// A policy server may look at files first. Synapse waits as long for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// For an event of another server, which others wait behind.
const PATIENCE_FOR_OTHERS: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 4096;
/// Events that are asked about at once, and those that wait for it, each of at most 64 KiB and again as JSON to be sent, which the
/// account `outbound` pays for: more are put off.
const AT_ONCE_MAX: usize = 4;
const WAITING_MAX: usize = 16;

/// The policy server of a room.
#[derive(Clone, Debug)]
pub struct PolicyServer {
    pub server: OwnedServerName,
    key: PublicKey,
}

/// Those that are asked.
pub struct Asking {
    turns: Semaphore,
    waiting: AtomicUsize,
}

impl Default for Asking {
    fn default() -> Asking {
        Asking { turns: Semaphore::new(AT_ONCE_MAX), waiting: AtomicUsize::new(0) }
    }
}

/// For whom it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Ours,
    Others,
}

/// A room's policy server, if it uses one: it is named with its key, and somebody of it is in the room. It is never this server.
pub fn of(get: &impl Get, room: &RoomRef, us: &ServerName) -> Result<Option<PolicyServer>> {
    let view = room.view(get);
    for kind in KINDS {
        let Some(event) = view.event(kind, "")? else { continue };
        let content = event.content().as_bytes();
        let text = |path: &[&str]| json::read::get_path(content, path).and_then(json::read::text);
        let key = text(&["public_keys", "ed25519"]).or_else(|| text(&["public_key"]).filter(|_| kind == KINDS[1]));
        let key = key.and_then(|key| PublicKey::from_base64(&key));
        let server = text(&["via"]).and_then(|via| OwnedServerName::try_from(&*via).ok());
        // Only the newer one counts where both are there.
        let (Some(key), Some(server)) = (key, server) else { return Ok(None) };
        let is_in = member::server(get, room.num, server.as_str())?.is_some();
        return Ok((is_in && server != us).then_some(PolicyServer { server, key }));
    }
    Ok(None)
}

/// Whether an event of a room needs no signature of its policy server.
pub fn is_exempt(kind: &str, state_key: Option<&str>) -> bool {
    KINDS.contains(&kind) && state_key == Some("")
}

/// The policy server that is still to be asked about an event.
pub fn lacking(get: &impl Get, room: &RoomRef, us: &ServerName, event: &Event) -> Result<Option<PolicyServer>> {
    if is_exempt(event.kind(), event.state_key()) {
        return Ok(None);
    }
    Ok(of(get, room, us)?.filter(|policy| !policy.has_signed(event)))
}

impl PolicyServer {
    fn has_signed(&self, event: &Event) -> bool {
        sign::event::is_signed_by(event, &self.server, KEY_ID, &self.key)
    }

    /// Has the policy server sign an event; answers the event with its signature. `Forbidden` in its words when it will not.
    ///
    /// Never call it with the room's lock held.
    pub async fn ask(&self, rooms: &Rooms, event: &Event, whose: Whose) -> Result<Event> {
        let asking = &rooms.0.policy_asking;
        if asking.waiting.fetch_add(1, Relaxed) >= WAITING_MAX {
            asking.waiting.fetch_sub(1, Relaxed);
            return Err(Error::Refused(Refused {
                account: "outbound".to_owned(),
                asked: event.to_federation().len() as u64,
                limit: WAITING_MAX as u64,
                retry_after_ms: 2_000,
                too_large: false,
            }));
        }
        let _waits = Waits(&asking.waiting);
        let _turn = asking.turns.acquire().await;
        let (timeout, urgency) = match whose {
            Whose::Ours => (PATIENCE, Urgency::Person),
            Whose::Others => (PATIENCE_FOR_OTHERS, Urgency::Later),
        };
        let options = Options { timeout, max_bytes: ANSWER_BYTES_MAX, urgency };
        let answer = match self.ask_at(rooms, TARGETS[0], event, options).await {
            Err(failed) if is_unknown_path(&failed) => self.ask_at(rooms, TARGETS[1], event, options).await,
            answer => answer,
        };
        let signature = answer.map_err(|failed| self.refusal(failed))?;
        let signed =
            signature.and_then(|signature| sign::event::with_signature(event, &self.server, KEY_ID, &signature).ok());
        match signed.filter(|signed| self.has_signed(signed)) {
            Some(signed) => Ok(signed),
            None => Err(Error::forbidden(format!("the room's policy server {} did not sign the event", self.server))),
        }
    }

    async fn ask_at(
        &self,
        rooms: &Rooms,
        target: &str,
        event: &Event,
        options: Options,
    ) -> Result<Option<String>, Failed> {
        let content = event.to_federation().to_vec();
        let remote = &rooms.0.parts.remote;
        let (answer, _paid) =
            remote.request(&self.server, Method::POST, target, Some(content), options).await?.json::<Value>()?;
        let signature = answer.get(self.server.as_str()).and_then(|by| by.get(KEY_ID)).and_then(Value::as_str);
        // What is no base64 would be no JSON either once it is in the event.
        let is_base64 = |text: &&str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=-_".contains(&b));
        Ok(signature.filter(is_base64).map(ToOwned::to_owned))
    }

    /// What it says goes to who sent the event as it is.
    fn refusal(&self, failed: Failed) -> Error {
        match failed {
            Failed::Refused(refused) => Error::Refused(refused),
            Failed::Status { status: 400 | 403, message, .. } if !message.is_empty() => Error::Forbidden(message),
            Failed::Status { status: 400 | 403, .. } => {
                Error::forbidden(format!("the room's policy server {} refuses the event", self.server))
            }
            failed => Error::Remote(failed.with(&format!(
                " ({}: the policy server of the room, without which nothing is sent there)",
                self.server
            ))),
        }
    }
}

struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn is_unknown_path(failed: &Failed) -> bool {
    matches!(failed.status(), Some(404 | 405)) && failed.errcode().is_none_or(|code| code == "M_UNRECOGNIZED")
}
