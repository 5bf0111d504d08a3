//! Requests to other servers by the checks of received events.
//!
//! A trait, so that the checks are tested without a wire. Every answer is bounded in bytes, count and time.

use std::ops::Range;
use std::time::Duration;

use http::Method;
use ruma::{EventId, OwnedEventId, OwnedServerName, RoomId, ServerName};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::mpsc::Sender;

use super::KEYS_TIME_MAX;
use crate::base;
use crate::budget::Grant;
use crate::matrix::sign::{self, PublicKey};
use crate::matrix::{Event, Reject, json};
use crate::remote::json_stream::{self, Events, Item, Limits, Malformed};
use crate::remote::{Failed, Options, Remote, StreamLimits, Urgency, encode};
use crate::room::Rooms;
use crate::room::error::Result;

/// A server and the name of one of its keys.
pub type KeyName = (OwnedServerName, String);

/// A long answer's elements, some at a time.
pub type Pieces = Sender<Vec<Vec<u8>>>;

pub trait Fetch: Clone + Send + Sync + 'static {
    /// Fetches as many of these keys as can be had.
    fn keys(&self, names: Vec<KeyName>, at_ms: u64) -> impl Future<Output = Result<()>> + Send;
    /// A known key that is valid for a signature of that time. Plain code for blocking threads.
    fn key(&self, server: &str, key_id: &str, at_ms: u64) -> Option<PublicKey>;
    /// Events between ours and those named; at most `limit`.
    fn missing_events(
        &self,
        server: &ServerName,
        room: &RoomId,
        earliest: &[OwnedEventId],
        latest: &[OwnedEventId],
        limit: usize,
    ) -> impl Future<Output = Result<Fetched, Failed>> + Send;
    fn event(&self, server: &ServerName, id: &EventId) -> impl Future<Output = Result<Box<RawValue>, Failed>> + Send;
    /// The ids of the state before an event, as JSON strings.
    fn state_ids(
        &self,
        server: &ServerName,
        room: &RoomId,
        id: &EventId,
        out: Pieces,
    ) -> impl Future<Output = Result<(), Failed>> + Send;
    /// The events of the state before an event and of its auth chain, in no order.
    fn state(
        &self,
        server: &ServerName,
        room: &RoomId,
        id: &EventId,
        out: Pieces,
    ) -> impl Future<Output = Result<(), Failed>> + Send;
    /// The events of an event's auth chain, in no order.
    fn event_auth(
        &self,
        server: &ServerName,
        room: &RoomId,
        id: &EventId,
        out: Pieces,
    ) -> impl Future<Output = Result<(), Failed>> + Send;
    /// Events up to those named, newest first as a rule; at most `limit`.
    fn backfill(
        &self,
        server: &ServerName,
        room: &RoomId,
        from: &[OwnedEventId],
        limit: usize,
    ) -> impl Future<Output = Result<Fetched, Failed>> + Send;
}

/// Events of one answer that are looked at, whatever limit was requested.
const LIMIT_MAX: usize = 100;
/// A handful of events.
const EVENTS_BYTES_MAX: u64 = 1 << 20;
/// One event with its envelope.
const EVENT_BYTES_MAX: u64 = 256 * 1024;
/// The ids of a state of a million events.
const STATE_IDS_BYTES_MAX: u64 = 128 << 20;
/// A whole state; the largest seen in 2023 was half of this.
const STATE_BYTES_MAX: u64 = 1 << 30;
const ASK_TIMEOUT: Duration = Duration::from_secs(20);

/// The keys of an event's required signatures, and the time at which they must be valid.
pub fn signing_keys(event: &Event, now_ms: u64) -> Result<(Vec<KeyName>, u64), Reject> {
    let mut names = Vec::new();
    for signer in event.signers()? {
        let Ok(server) = OwnedServerName::try_from(signer.server) else { continue };
        names.extend(signer.signatures.iter().map(|(id, _)| (server.clone(), (*id).to_owned())));
    }
    // A key that is valid in the future cannot be had.
    Ok((names, sign::event::key_time(event.version(), event.origin_server_ts()).min(now_ms)))
}

/// How many events to request after this many did not fit into an answer.
pub fn fewer(events: usize) -> usize {
    (events / 4).max(1)
}

/// The implementation for the network.
#[derive(Clone)]
pub struct Wire {
    remote: Remote,
}

/// Events as another server sent them, in the text of its answer, with the grant that pays for it.
pub struct Fetched {
    text: Vec<u8>,
    events: Vec<Range<usize>>,
    _paid: Option<Grant>,
}

impl Fetched {
    /// The first `limit` events of an answer; those behind them are not looked at.
    fn read(text: Vec<u8>, limit: usize, paid: Option<Grant>) -> Result<Fetched, Failed> {
        // Taken apart without a look inside: the reader passes over an event that cannot be read.
        const LISTS: [&str; 2] = ["pdus", "events"];
        let events = json_stream::places(&text, &LISTS, limit.min(LIMIT_MAX));
        let events = events.map_err(|malformed| Failed::BadAnswer(malformed.to_string()))?;
        // No list is not an empty one, which says that there are none.
        let is_list = |name: &&str| json::read::get(&text, name).is_some_and(|list| list.starts_with(b"["));
        if events.is_empty() && !LISTS.iter().any(is_list) {
            return Err(Failed::BadAnswer("there is no list of events in it".into()));
        }
        Ok(Fetched { text, events, _paid: paid })
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.events.iter().map(|place| &self.text[place.clone()])
    }

    #[cfg(test)]
    pub fn for_tests(events: &[Box<RawValue>]) -> Fetched {
        let events: Vec<&str> = events.iter().map(|event| event.get()).collect();
        let text = format!("{{\"pdus\":[{}]}}", events.join(","));
        Fetched::read(text.into_bytes(), LIMIT_MAX, None).expect("that is how they are sent")
    }
}

impl Wire {
    pub fn new(remote: Remote) -> Wire {
        Wire { remote }
    }

    async fn pdus(
        &self,
        server: &ServerName,
        method: Method,
        target: &str,
        content: Option<Vec<u8>>,
        (limit, max_bytes): (usize, u64),
        urgency: Urgency,
    ) -> Result<Fetched, Failed> {
        let options = Options { timeout: ASK_TIMEOUT, max_bytes, urgency };
        let (text, paid) = self.remote.request(server, method, target, content, options).await?.into_parts();
        Fetched::read(text, limit, Some(paid))
    }

    /// Sends on the elements of the arrays named, a frame's worth at a time.
    async fn elements(
        &self,
        server: &ServerName,
        target: &str,
        arrays: &[&str],
        max_bytes: u64,
        out: Pieces,
    ) -> Result<(), Failed> {
        // What lacks these events came a moment ago: no pause that somebody else's request left behind holds it up. So it is
        // with missing events and single ones.
        let pace = StreamLimits { urgency: Urgency::Contacted, ..StreamLimits::patient(max_bytes) };
        let mut body = self.remote.stream(server, Method::GET, target, None, pace).await?;
        let mut events = Events::new(Limits::events(max_bytes));
        while let Some(frame) = body.next().await? {
            let mut found = Vec::new();
            let taken: Result<(), Malformed> = events.feed(&frame, &mut |item| {
                if let Item::Element { array, raw } = item
                    && arrays.contains(&array)
                {
                    found.push(raw.to_vec());
                }
                Ok(())
            });
            taken.map_err(|malformed| Failed::BadAnswer(malformed.to_string()))?;
            if !found.is_empty() && out.send(found).await.is_err() {
                // The receiver has seen enough.
                return Ok(());
            }
        }
        events.finish().map_err(|malformed| Failed::BadAnswer(malformed.to_string()))
    }
}

impl Fetch for Wire {
    async fn keys(&self, names: Vec<KeyName>, at_ms: u64) -> Result<()> {
        Ok(self.remote.keys().fetch(&names, at_ms).await?)
    }

    fn key(&self, server: &str, key_id: &str, at_ms: u64) -> Option<PublicKey> {
        sign::Keys::get(&self.remote.keys(), server, key_id, at_ms)
    }

    async fn missing_events(
        &self,
        server: &ServerName,
        room: &RoomId,
        earliest: &[OwnedEventId],
        latest: &[OwnedEventId],
        limit: usize,
    ) -> Result<Fetched, Failed> {
        let target = format!("/_matrix/federation/v1/get_missing_events/{}", encode(room.as_str()));
        let asked = json!({ "earliest_events": earliest, "latest_events": latest, "limit": limit, "min_depth": 0 });
        let content = Some(asked.to_string().into_bytes());
        self.pdus(server, Method::POST, &target, content, (limit, EVENTS_BYTES_MAX), Urgency::Contacted).await
    }

    async fn event(&self, server: &ServerName, id: &EventId) -> Result<Box<RawValue>, Failed> {
        let target = format!("/_matrix/federation/v1/event/{}", encode(id.as_str()));
        let events = self.pdus(server, Method::GET, &target, None, (1, EVENT_BYTES_MAX), Urgency::Contacted).await?;
        let event = events.iter().next().ok_or_else(|| Failed::BadAnswer("no event".into()))?;
        Ok(serde_json::from_slice(event)?)
    }

    async fn state_ids(&self, server: &ServerName, room: &RoomId, id: &EventId, out: Pieces) -> Result<(), Failed> {
        let (room, id) = (encode(room.as_str()), encode(id.as_str()));
        let target = format!("/_matrix/federation/v1/state_ids/{room}?event_id={id}");
        self.elements(server, &target, &["pdu_ids"], STATE_IDS_BYTES_MAX, out).await
    }

    async fn state(&self, server: &ServerName, room: &RoomId, id: &EventId, out: Pieces) -> Result<(), Failed> {
        let (room, id) = (encode(room.as_str()), encode(id.as_str()));
        let target = format!("/_matrix/federation/v1/state/{room}?event_id={id}");
        self.elements(server, &target, &["pdus", "auth_chain"], STATE_BYTES_MAX, out).await
    }

    async fn event_auth(&self, server: &ServerName, room: &RoomId, id: &EventId, out: Pieces) -> Result<(), Failed> {
        let (room, id) = (encode(room.as_str()), encode(id.as_str()));
        let target = format!("/_matrix/federation/v1/event_auth/{room}/{id}");
        self.elements(server, &target, &["auth_chain"], STATE_BYTES_MAX, out).await
    }

    async fn backfill(
        &self,
        server: &ServerName,
        room: &RoomId,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<Fetched, Failed> {
        let mut target = format!("/_matrix/federation/v1/backfill/{}?limit={limit}", encode(room.as_str()));
        for id in from {
            target.push_str("&v=");
            target.push_str(&encode(id.as_str()));
        }
        self.pdus(server, Method::GET, &target, None, (limit, EVENTS_BYTES_MAX), Urgency::Later).await
    }
}

/// Checks that an event has the required servers' signatures, and that its content is whole. Keys are fetched when
/// need be.
pub async fn check_signed(rooms: &Rooms, event: &Event) -> Result<()> {
    fetch_signing_keys(rooms, event).await?;
    let keys = rooms.0.parts.remote.keys();
    let event = event.clone();
    match base::blocking(move || sign::event::check_event(&event, &keys)).await? {
        sign::event::Checked::Intact => Ok(()),
        sign::event::Checked::RedactNeeded => Err(Reject::signature("the content hash is wrong").into()),
    }
}

/// Requests the unknown keys of an event's signatures. After a while the check goes on with the keys that are here.
pub async fn fetch_signing_keys(rooms: &Rooms, event: &Event) -> Result<()> {
    let parts = &rooms.0.parts;
    let (names, at_ms) = signing_keys(event, parts.clock.now_ms())?;
    let keys = parts.remote.keys();
    Ok(parts.clock.timeout(KEYS_TIME_MAX, keys.fetch(&names, at_ms)).await.unwrap_or(Ok(()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half a megabyte of `0,` once became ten in boxes before it was cut to the number asked for.
    #[test]
    fn of_an_answer_only_so_many_events_are_looked_at() {
        let text = format!(" {{ \"origin\": [1], \"events\": [{{\"a\": 1}}, {}2] }}", "0,".repeat(200_000));
        let read = |limit| Fetched::read(text.clone().into_bytes(), limit, None).unwrap();
        assert_eq!(read(2).iter().collect::<Vec<_>>(), [&b"{\"a\": 1}"[..], b"0"]);
        let most = read(usize::MAX);
        assert!(most.iter().count() == LIMIT_MAX && most.events.capacity() <= 2 * LIMIT_MAX);
        assert!(matches!(Fetched::read(b"[]".to_vec(), 1, None), Err(Failed::BadAnswer(_))));
    }

    /// Texts of odd bytes and odd depth once made the honest events beside them unreadable.
    #[test]
    fn an_odd_event_leaves_those_beside_it_alone() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        let text =
            [b"{\"pdus\":[{\"a\":1},{\"b\":\"\xff\xfe\"},", deep.as_bytes(), b",{\"c\":[1 2]},{\"d\":1}]}"].concat();
        let read = Fetched::read(text, 10, None).unwrap();
        let all: Vec<_> = read.iter().collect();
        assert_eq!((all.len(), all[0], all[4]), (5, &b"{\"a\":1}"[..], &b"{\"d\":1}"[..]));
    }
}
