//! The part of a sync outside of rooms: account data, to-device messages, device lists, key counts.

use crate::base::{ChunkError, ChunkWriter, comma};
use crate::matrix::json;
use crate::room::{Position, RoomNum};
use crate::user::{self, UserSync};

/// Writes account data events, for all rooms together or for one: the changes, or everything when `whole`. Each event
/// is preceded by a comma, except the list's first.
pub async fn write_account_data(
    pen: &ChunkWriter,
    own: &UserSync,
    room: Option<RoomNum>,
    whole: bool,
    wants: impl Fn(&str) -> bool,
    mut first: bool,
) -> Result<(), ChunkError> {
    for kind in own.account_data_types(room, whole)? {
        if !wants(&kind) {
            continue;
        }
        let Some(content) = own.account_data(room, &kind)? else { continue };
        pen.with(|out| {
            comma(out, &mut first);
            out.extend_from_slice(b"{\"type\":");
            json::write_string(out, &kind);
            out.extend_from_slice(b",\"content\":");
        });
        pen.long(&content).await;
        pen.text("}");
        pen.pause().await;
    }
    Ok(())
}

/// Writes the device's queued messages up to `end`, with commas between.
pub async fn write_to_device(pen: &ChunkWriter, own: &UserSync, end: Position) -> Result<(), ChunkError> {
    let (mut first, mut after) = (true, None);
    while let Some((position, message)) = own.next_message(after, end)? {
        pen.with(|out| comma(out, &mut first));
        pen.long(&message).await;
        after = Some(position);
        pen.pause().await;
    }
    Ok(())
}

/// Writes the members `changed` and `left` of `device_lists`.
pub async fn write_device_lists(pen: &ChunkWriter, own: &UserSync) -> Result<(), ChunkError> {
    pen.text("\"changed\":[");
    own.write_changed_devices(pen).await?;
    pen.text("],\"left\":[");
    own.write_left_devices(pen).await?;
    pen.text("]");
    Ok(())
}

/// Appends the members `device_one_time_keys_count` and `device_unused_fallback_key_types`.
pub fn write_keys(out: &mut Vec<u8>, own: &UserSync) -> Result<(), user::Error> {
    out.extend_from_slice(b"\"device_one_time_keys_count\":{");
    let mut first = true;
    for (algorithm, count) in own.one_time_key_counts()? {
        comma(out, &mut first);
        json::write_string(out, &algorithm);
        out.extend_from_slice(format!(":{count}").as_bytes());
    }
    out.extend_from_slice(b"},\"device_unused_fallback_key_types\":[");
    let mut first = true;
    for algorithm in own.unused_fallback_keys()? {
        comma(out, &mut first);
        json::write_string(out, &algorithm);
    }
    out.push(b']');
    Ok(())
}
