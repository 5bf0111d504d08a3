//! Receipts and typing users as events (client-server API, "Receipts" and "Typing Notifications").

use crate::base::{ChunkWriter, comma};
use crate::matrix::json;
use crate::room::{self, ReadMark, SyncView};

/// Writes one `m.receipt` event out of receipts sorted by event, then kind.
pub fn write_receipts(pen: &ChunkWriter, view: &SyncView, sorted: &[ReadMark]) -> room::Result<()> {
    pen.with(|out| {
        out.extend_from_slice(b"{\"type\":\"m.receipt\",\"content\":{");
        let mut first_event = true;
        for of_event in sorted.chunk_by(|(_, a), (_, b)| a.event_id == b.event_id) {
            comma(out, &mut first_event);
            json::write_string(out, &of_event[0].1.event_id);
            out.extend_from_slice(b":{");
            let mut first_kind = true;
            for of_kind in of_event.chunk_by(|(a, _), (b, _)| a.kind == b.kind) {
                comma(out, &mut first_kind);
                json::write_string(out, of_kind[0].0.kind.as_str());
                out.extend_from_slice(b":{");
                let mut first_user = true;
                for mark in of_kind {
                    comma(out, &mut first_user);
                    write_receipt(out, view, mark)?;
                }
                out.push(b'}');
            }
            out.push(b'}');
        }
        out.extend_from_slice(b"}}");
        Ok(())
    })
}

fn write_receipt(out: &mut Vec<u8>, view: &SyncView, (whose, receipt): &ReadMark) -> room::Result<()> {
    json::write_string(out, &view.user_id(whose.user)?);
    out.extend_from_slice(format!(":{{\"ts\":{}", receipt.ts).as_bytes());
    if !whose.thread.is_empty() {
        out.extend_from_slice(b",\"thread_id\":");
        json::write_string(out, &whose.thread);
    }
    out.push(b'}');
    Ok(())
}

/// Writes one `m.typing` event.
pub fn write_typing(pen: &ChunkWriter, user_ids: &[String]) {
    pen.with(|out| {
        out.extend_from_slice(b"{\"type\":\"m.typing\",\"content\":{\"user_ids\":[");
        let mut first = true;
        for id in user_ids {
            comma(out, &mut first);
            json::write_string(out, id);
        }
        out.extend_from_slice(b"]}}");
    });
}
