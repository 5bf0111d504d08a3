//! Events on their way through the pipeline, some hundred at a time.

use super::order::Node;
use crate::store::EventNum;
use crate::store::tables::room::event_row::{Id, Kind, Membership};
use crate::store::tables::room::staged::{UserPrint, WirePrint};

/// Events as received, one behind the other.
#[derive(Default)]
pub struct RawBatch {
    pub bytes: Vec<u8>,
    /// The end of each event, and whether it is in the room's state.
    pub ends: Vec<(u32, bool)>,
    /// The events waited for their keys: they are not in the stream's order.
    pub is_late: bool,
    /// The keys have been requested already: an event that still lacks one is dropped.
    pub last_chance: bool,
}

/// About how many bytes and events make a batch. One event of the largest size may stand on top.
pub const BATCH_BYTES: usize = 48 * 1024;
pub const BATCH_EVENTS: usize = 64;

impl RawBatch {
    /// An empty batch with room for a usual load.
    pub fn roomy() -> RawBatch {
        RawBatch { bytes: Vec::with_capacity(BATCH_BYTES + 4096), ..RawBatch::default() }
    }

    pub fn push(&mut self, raw: &[u8], in_state: bool) {
        self.bytes.extend_from_slice(raw);
        self.ends.push((self.bytes.len() as u32, in_state));
    }

    pub fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES || self.ends.len() >= BATCH_EVENTS
    }

    pub fn weight(&self) -> u64 {
        (self.bytes.len() + self.ends.len() * 8) as u64
    }

    pub fn events(&self) -> impl Iterator<Item = (&[u8], bool)> {
        let mut from = 0;
        self.ends.iter().map(move |&(end, in_state)| {
            let raw = &self.bytes[from..end as usize];
            from = end as usize;
            (raw, in_state)
        })
    }
}

/// A stretch of [`CheckedBatch::text`].
pub type Span = (u32, u32);

/// The result of a batch. All text is in one piece of memory.
#[derive(Default)]
pub struct CheckedBatch {
    pub text: Vec<u8>,
    pub events: Vec<Checked>,
    /// Stored events that came again unchanged, and whether each is in the room's state.
    pub familiar: Vec<(Node, bool)>,
    /// Raw events whose keys are not known yet, and the keys.
    pub pending: RawBatch,
    pub wanted: Vec<(String, String)>,
    pub refused: u64,
    pub looked_at: u64,
    pub sample: Option<String>,
}

/// One event that passed the checks.
pub struct Checked {
    pub id: Id,
    pub wire: WirePrint,
    pub in_state: bool,
    /// Seen before in this join, or in the database: only its id is known.
    pub repeated: bool,
    pub known: Option<EventNum>,
    pub needs_body: bool,
    pub redacted: bool,
    pub kind: Kind,
    pub sender: (UserPrint, Span),
    pub member: Option<(Membership, UserPrint, Span)>,
    /// Type and state key of state events that are not memberships.
    pub state_key: Option<(Span, Span)>,
    pub depth: u64,
    pub origin_server_ts: u64,
    pub auth: Vec<Id>,
    /// As the body table keeps it.
    pub body: Span,
    /// Length of its canonical JSON.
    pub json_bytes: u32,
}

impl CheckedBatch {
    pub fn weight(&self) -> u64 {
        let wanted: usize = self.wanted.iter().map(|(server, id)| server.len() + id.len() + 48).sum();
        let familiar = self.familiar.len() * size_of::<(Node, bool)>();
        let auth: usize = self.events.iter().map(|event| event.auth.len() * 40).sum();
        (self.text.len() + self.events.len() * size_of::<Checked>() + auth + wanted + familiar) as u64
            + self.pending.weight()
    }

    pub fn slice(&self, span: Span) -> &[u8] {
        &self.text[span.0 as usize..span.1 as usize]
    }

    pub fn str(&self, span: Span) -> &str {
        std::str::from_utf8(self.slice(span)).expect("spans of text are of whole strings")
    }

    pub fn keep(&mut self, bytes: &[u8]) -> Span {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(bytes);
        (start, self.text.len() as u32)
    }
}

impl Checked {
    pub fn again(id: Id, in_state: bool, known: Option<EventNum>) -> Checked {
        Checked {
            id,
            wire: 0,
            in_state,
            repeated: true,
            known,
            needs_body: false,
            redacted: false,
            kind: Kind::OTHER,
            sender: (0, (0, 0)),
            member: None,
            state_key: None,
            depth: 0,
            origin_server_ts: 0,
            auth: Vec::new(),
            body: (0, 0),
            json_bytes: 0,
        }
    }
}
