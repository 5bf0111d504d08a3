//! Where an event's known members stand in its canonical bytes.

use super::json;

/// A stretch of the canonical bytes; empty when the member is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    pub fn of(self, bytes: &[u8]) -> Option<&[u8]> {
        if self.end == 0 { None } else { bytes.get(self.start as usize..self.end as usize) }
    }
    pub fn is_some(self) -> bool {
        self.end != 0
    }
}

/// The members the rules look at. Values, not keys; strings with their quotes.
#[derive(Debug, Clone, Default)]
pub(super) struct Header {
    pub auth_events: Span,
    pub content: Span,
    pub depth: Span,
    pub event_id: Span,
    pub hashes: Span,
    pub kind: Span,
    pub origin_server_ts: Span,
    pub prev_events: Span,
    pub redacts: Span,
    pub room_id: Span,
    pub sender: Span,
    pub signatures: Span,
    pub state_key: Span,
}

impl Header {
    /// From canonical bytes, by one scan over the outermost members.
    pub fn scan(bytes: &[u8]) -> Header {
        let mut header = Header::default();
        let base = bytes.as_ptr() as usize;
        for (key, value) in json::read::members(bytes) {
            let start = (value.as_ptr() as usize - base) as u32;
            header.note(key, (start, start + value.len() as u32));
        }
        header
    }

    pub fn note(&mut self, key: &[u8], (start, end): (u32, u32)) {
        let place = match key {
            b"auth_events" => &mut self.auth_events,
            b"content" => &mut self.content,
            b"depth" => &mut self.depth,
            b"event_id" => &mut self.event_id,
            b"hashes" => &mut self.hashes,
            b"origin_server_ts" => &mut self.origin_server_ts,
            b"prev_events" => &mut self.prev_events,
            b"redacts" => &mut self.redacts,
            b"room_id" => &mut self.room_id,
            b"sender" => &mut self.sender,
            b"signatures" => &mut self.signatures,
            b"state_key" => &mut self.state_key,
            b"type" => &mut self.kind,
            _ => return,
        };
        *place = Span { start, end };
    }
}

/// The ids in a `prev_events` or `auth_events` list, whether plain or (room versions 1, 2) as pairs. Items of another shape
/// are skipped; the format check has refused them.
pub(super) fn references(list: &[u8]) -> impl Iterator<Item = &str> + Clone {
    json::read::items(list).filter_map(reference)
}

pub(super) fn reference(item: &[u8]) -> Option<&str> {
    let id = if item.first() == Some(&b'[') { json::read::items(item).next()? } else { item };
    let inner = id.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    // No id we could ever look up holds a quote, a backslash or a control character.
    if inner.contains(&b'\\') { None } else { std::str::from_utf8(inner).ok() }
}
