//! Messages to devices: PUT sendToDevice.
//!
//! An app's library puts as many messages into one request as there are devices: 250 of them are 600 KB. A body that is longer
//! than other requests may be goes to a scratch file as it comes. Once complete it is taken apart into a second file, message
//! by message; all of them are checked, and only then are they sent, a batch at a time.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::sync::Arc;

use ruma::{OwnedUserId, UserId};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{Client, Error, auth, rates};
use crate::base;
use crate::budget::spill::{BUFFER_BYTES, Spill, SpillError, SpillReader};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::user::{Messages, Txn};

/// Sixty messages of the largest size, or some 1,700 of those that an app sends to share a room's keys.
const BODY_BYTES_MAX: u64 = 4 << 20;
/// One message with the ids around it. A message's content ends at 64 KiB.
const MESSAGE_BYTES_MAX: usize = 80 << 10;
/// A batch is full at this size; one more message may extend beyond it.
const BATCH_BYTES: usize = 96 << 10;
/// One message as it is read and as it is written, in buffers that double; or a batch and a copy of it as it is sent. The
/// buffers of two files.
const WORK_BYTES: u64 = 4 * MESSAGE_BYTES_MAX as u64 + BATCH_BYTES as u64 + 2 * BUFFER_BYTES as u64;

#[derive(Deserialize)]
struct Body {
    messages: Messages,
}

/// PUT /_matrix/client/v3/sendToDevice/{event_type}/{txn_id}
///
/// 400 `M_INVALID_PARAM` when the event type is too long or a message is nested too deeply; 400 `M_BAD_JSON` when a
/// message is no object or has no canonical form; 413 `M_TOO_LARGE` when the body, a message, or its copies for all devices,
/// are too long, or there are too many; 503 `M_RESOURCE_LIMIT_EXCEEDED` when a long body finds the disk full.
pub async fn send(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::TO_DEVICE, requester.user_id.as_str())?;
    let (kind, txn) = (request.param("event_type").to_owned(), request.param("txn_id").to_owned());
    if request.content_length().is_none_or(|length| length <= client.budget.size("request_body_max")) {
        let body: Body = request.json().await?;
        client.users.send_to_device(&requester, &kind, Txn::whole(txn), body.messages).await?;
        return Ok(Response::ok());
    }
    let _grant = request.pay(WORK_BYTES).await?;
    let body = receive(&client, request).await?;
    let scratch = scratch(&client)?;
    let mut messages = base::blocking(move || take_apart(body, scratch)).await?;
    // The whole first, so that a message that is refused keeps all of them from being sent.
    for part in 0.. {
        let (read, batch) = base::blocking(move || next_batch(messages)).await?;
        messages = read;
        if batch.is_empty() {
            break;
        }
        client.users.check_to_device(&kind, part, batch).await?;
    }
    messages.rewind().map_err(not_kept)?;
    // The same body again makes the same batches, so each is known by its number: what ends in between goes on where it
    // ended, when the app repeats it.
    for part in 0.. {
        let (read, batch) = base::blocking(move || next_batch(messages)).await?;
        messages = read;
        if batch.is_empty() {
            break;
        }
        let txn = Txn { id: txn.clone(), part: Some(part) };
        client.users.send_to_device(&requester, &kind, txn, batch).await?;
    }
    Ok(Response::ok())
}

fn scratch(client: &Client) -> Result<Spill, ErrorResponse> {
    Spill::create(&client.scratch, &client.budget.account("spill_disk")).map_err(not_kept)
}

/// The body as it comes, in frames of no meaning.
async fn receive(client: &Client, request: Request) -> Result<Spill, Error> {
    let mut pieces = request.into_stream(BODY_BYTES_MAX)?;
    let mut body = scratch(client)?;
    while let Some(piece) = pieces.next().await? {
        // A piece is as large as the connection's buffer, of any size.
        let append = move || piece.chunks(BUFFER_BYTES).try_for_each(|frame| body.append(frame)).map(|()| body);
        body = base::blocking(append).await.map_err(not_kept)?;
    }
    Ok(body)
}

/// The messages of a body, each a frame of its own: user, device, content.
fn take_apart(body: Spill, mut messages: Spill) -> Result<SpillReader, ErrorResponse> {
    let left = Cell::new(MESSAGE_BYTES_MAX);
    let source = Source { file: body.into_reader().map_err(not_kept)?, frame: Vec::new(), at: 0, left: &left };
    let mut failed = None;
    let mut each = |user: &str, device: &str, content: &RawValue| {
        left.set(MESSAGE_BYTES_MAX);
        let frame = serde_json::to_vec(&(user, device, content)).map_err(|wrong| wrong.to_string())?;
        messages.append(&frame).map_err(|wrong| {
            failed = Some(wrong);
            "not kept".to_owned()
        })
    };
    let mut text = serde_json::Deserializer::from_reader(source);
    let read = text.deserialize_map(Top { each: &mut each, left: &left }).and_then(|()| text.end());
    match (failed, read) {
        (Some(failed), _) => Err(not_kept(failed)),
        (None, Err(wrong)) if wrong.is_io() => Err(match wrong.io_error_kind() {
            Some(io::ErrorKind::FileTooLarge) => ErrorResponse::too_large("A message to a device may have 64 KiB"),
            _ => ErrorResponse::internal(wrong),
        }),
        (None, Err(wrong)) if wrong.is_data() => Err(ErrorResponse::bad("M_BAD_JSON", wrong.to_string())),
        (None, Err(wrong)) => Err(ErrorResponse::bad("M_NOT_JSON", wrong.to_string())),
        (None, Ok(())) => messages.into_reader().map_err(not_kept),
    }
}

/// The next messages, and the file with the others; none at the end.
fn next_batch(mut file: SpillReader) -> Result<(SpillReader, Messages), ErrorResponse> {
    let (mut batch, mut bytes, mut frame) = (Messages::new(), 0, Vec::new());
    while bytes < BATCH_BYTES && file.next(&mut frame).map_err(not_kept)? {
        bytes += frame.len();
        let (user, device, content): (OwnedUserId, String, Box<RawValue>) =
            serde_json::from_slice(&frame).map_err(ErrorResponse::internal)?;
        batch.entry(user).or_default().insert(device, content);
    }
    Ok((file, batch))
}

fn not_kept(failed: SpillError) -> ErrorResponse {
    match failed {
        SpillError::Refused(refused) => refused.into(),
        SpillError::Io(failed) if failed.kind() == io::ErrorKind::StorageFull => {
            let why = "This server's disk is nearly full; try again later";
            ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, "M_RESOURCE_LIMIT_EXCEEDED", why)
        }
        failed => ErrorResponse::internal(failed),
    }
}

/// A body read back. Fails when more than `left` is read without a message in between, so that no part of it is held that
/// is longer than a message.
struct Source<'l> {
    file: SpillReader,
    frame: Vec<u8>,
    at: usize,
    left: &'l Cell<usize>,
}

impl io::Read for Source<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.frame.len() {
            self.at = 0;
            self.file.next(&mut self.frame).map_err(io::Error::other)?;
        }
        let ready = &self.frame[self.at..];
        let count = ready.len().min(into.len());
        self.left.set(self.left.get().checked_sub(count).ok_or(io::ErrorKind::FileTooLarge)?);
        into[..count].copy_from_slice(&ready[..count]);
        self.at += count;
        Ok(count)
    }
}

type EachMessage<'m> = dyn FnMut(&str, &str, &RawValue) -> Result<(), String> + 'm;

/// The body: its `messages`, and anything else, which is read past.
struct Top<'t, 'm> {
    each: &'t mut EachMessage<'m>,
    left: &'t Cell<usize>,
}

impl<'de> Visitor<'de> for Top<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut any = false;
        while let Some(key) = map.next_key::<String>()? {
            self.left.set(MESSAGE_BYTES_MAX);
            if key == "messages" {
                any = true;
                map.next_value_seed(OfUsers { each: &mut *self.each })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if any { Ok(()) } else { Err(A::Error::missing_field("messages")) }
    }
}

/// User → device → message.
struct OfUsers<'t, 'm> {
    each: &'t mut EachMessage<'m>,
}

impl<'de> DeserializeSeed<'de> for OfUsers<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, text: D) -> Result<(), D::Error> {
        text.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OfUsers<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("messages by user")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(user) = map.next_key::<String>()? {
            if <&UserId>::try_from(user.as_str()).is_err() {
                return Err(A::Error::custom("messages are for users"));
            }
            map.next_value_seed(OfDevices { each: &mut *self.each, user: &user })?;
        }
        Ok(())
    }
}

/// Device → message, of one user.
struct OfDevices<'t, 'm> {
    each: &'t mut EachMessage<'m>,
    user: &'t str,
}

impl<'de> DeserializeSeed<'de> for OfDevices<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, text: D) -> Result<(), D::Error> {
        text.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OfDevices<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("messages by device")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((device, content)) = map.next_entry::<String, Box<RawValue>>()? {
            if !content.get().starts_with('{') {
                return Err(A::Error::custom("a message to a device is an object"));
            }
            (self.each)(self.user, &device, &content).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use serde_json::json;

    fn apart(body: &str) -> Result<Vec<Messages>, String> {
        let disk = Budget::for_tests().account("spill_disk");
        let file = || Spill::create(&std::env::temp_dir(), &disk).unwrap();
        let mut spill = file();
        body.as_bytes().chunks(1000).for_each(|frame| spill.append(frame).unwrap());
        let mut messages = take_apart(spill, file()).map_err(|answer| format!("{answer:?}"))?;
        let mut batches = Vec::new();
        loop {
            let (read, batch) = next_batch(messages).unwrap();
            if batch.is_empty() {
                return Ok(batches);
            }
            messages = read;
            batches.push(batch);
        }
    }

    /// What an app's library sends to 250 devices in one request was longer than a small board takes in memory.
    #[test]
    fn a_long_body_is_sent_in_batches() {
        let content = json!({ "ciphertext": "x".repeat(2_300) });
        let devices =
            |user: usize| (0..25).map(|n| (format!("D{user}_{n}"), content.clone())).collect::<serde_json::Map<_, _>>();
        let users = (0..10).map(|n| (format!("@u{n}:x"), devices(n).into())).collect::<serde_json::Map<_, _>>();
        let body = json!({ "before": [1, { "a": 2 }], "messages": users, "then": 1 }).to_string();
        let batches = apart(&body).unwrap();
        assert!(body.len() > 512 << 10 && batches.len() > 4);
        let longest = |batch: &Messages| {
            batch.values().flat_map(|devices| devices.values()).map(|content| content.get().len()).sum::<usize>()
        };
        assert!(batches.iter().all(|batch| longest(batch) < 2 * BATCH_BYTES));
        let mut count = 0;
        for (user, devices) in batches.iter().flatten() {
            for (device, content) in devices {
                let content: serde_json::Value = serde_json::from_str(content.get()).unwrap();
                assert_eq!(content, users[user.as_str()][device]);
                count += 1;
            }
        }
        assert_eq!(count, 250);
    }

    #[test]
    fn what_is_no_message_is_refused_before_any_is_sent() {
        let long = "x".repeat(100 << 10);
        for (body, errcode) in [
            ("{}".to_owned(), "M_BAD_JSON"),
            (r#"{"messages":[]}"#.to_owned(), "M_BAD_JSON"),
            (r#"{"messages":{"@u:x":{"D":"text"}}}"#.to_owned(), "M_BAD_JSON"),
            (r#"{"messages":{"nobody":{"D":{}}}}"#.to_owned(), "M_BAD_JSON"),
            (r#"{"messages":{"@u:x":{"D":{}}}"#.to_owned(), "M_NOT_JSON"),
            (r#"{"messages":{"@u:x":{"D":{}}}}x"#.to_owned(), "M_NOT_JSON"),
            (format!(r#"{{"messages":{{"@u:x":{{"D":{{"a":"{long}"}}}}}}}}"#), "M_TOO_LARGE"),
            (format!(r#"{{"messages":{{"@u:x":{{"{long}":{{}}}}}}}}"#), "M_TOO_LARGE"),
            (format!(r#"{{"{long}":1,"messages":{{}}}}"#), "M_TOO_LARGE"),
        ] {
            let wrong = apart(&body).unwrap_err();
            assert!(wrong.contains(errcode), "{errcode}: {wrong}");
        }
        assert!(apart(r#"{"messages":{}}"#).unwrap().is_empty());
    }
}
