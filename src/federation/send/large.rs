//! Transactions longer than the memory for them: fifty events of 64 KiB are more than a small board's account holds.
//!
//! The body goes to a scratch file as it comes. Once complete it is taken apart: each event and each EDU is brought
//! into canonical form by itself, into two more files, and the signature is checked over these in the order of the
//! signed text. Only then are they read back, a batch at a time.
//!
//! Bounds: a body of [`BODY_BYTES_MAX`] on disk, three times over with its parts; a file's buffer while it comes,
//! [`WORK_BYTES`] afterwards, on the account of transactions.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::transaction::{Transaction, begin, process};
use super::{EDUS_MAX, PDUS_MAX};
use crate::base;
use crate::budget::spill::{BUFFER_BYTES, Spill, SpillError, SpillReader};
use crate::budget::{Account, Budget};
use crate::federation::auth::{self, Claim};
use crate::federation::error::disk_is_short;
use crate::federation::{Error, Federation, rates};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::matrix::json::{Mode, canonical, write_string};
use crate::remote::json_stream::{Events, Item, Limits, Malformed};
use crate::room;

/// All events and EDUs at 64 KiB, and a little for the JSON around them.
const BODY_BYTES_MAX: u64 = (PDUS_MAX + EDUS_MAX) as u64 * 64 * 1024 + 64 * 1024;
/// One event or EDU as written. Canonical events end at 64 KiB.
const ITEM_BYTES_MAX: usize = 128 * 1024;
/// All other top-level members: `origin`, `origin_server_ts`, experimental ones.
const REST_BYTES_MAX: usize = 16 * 1024;
/// A batch is full at this size; one more item may extend beyond it.
const BATCH_BYTES: usize = 64 * 1024;
/// One item and its canonical form twice; or a batch and its parsed form. The buffers of three files.
const WORK_BYTES: u64 = 4 * ITEM_BYTES_MAX as u64 + 6 * BUFFER_BYTES as u64;

/// Whether a body has a length for this file: more than is taken in memory, and not beyond all bounds.
pub(in crate::federation) fn is_long(request: &Request, bytes_max: u64) -> bool {
    request.content_length().is_some_and(|length| length > bytes_max && length <= BODY_BYTES_MAX)
}

/// Takes a long transaction in. A repeated one is processed again, which changes nothing.
pub(in crate::federation) async fn send(
    federation: Arc<Federation>,
    request: Request,
    claim: Claim,
) -> Result<Response, Error> {
    let account = federation.budget.account("inbound_transactions");
    let grant = account.take(2 * BUFFER_BYTES as u64).await?;
    let limits = request.limits();
    let body = receive(request, &federation).await?;
    let bytes = body.bytes();
    drop(grant);
    let grant = account.take(WORK_BYTES).await?;
    let (origin, valid_until_ms, federation_too) = (claim.origin.clone(), claim.valid_until_ms(), federation.clone());
    let (mut pdus, mut edus) = base::blocking(move || {
        let scratch = Scratch::of(&federation_too.scratch, &federation_too.budget);
        let parts = Parts::read(body, &scratch).map_err(ErrorResponse::from)?;
        let refusal = |reject| claim.refusal(reject, || None);
        let mut check = claim.in_pieces(&federation_too.server_name).map_err(refusal)?;
        let (pdus, edus) = parts.content(&mut |text| check.update(text)).map_err(ErrorResponse::from)?;
        check.finish().map_err(refusal)?;
        Ok::<_, ErrorResponse>((pdus, edus))
    })
    .await?;
    limits.take_server(&rates::TRANSACTION, origin.as_str())?;
    auth::heard_from(&federation, &origin, valid_until_ms).await;
    let under_way = begin(&federation, &origin)?;
    federation.rooms.charge_intake(&origin, bytes);
    let work = base::unbroken(async move {
        let _under_way = under_way;
        // One time limit for all batches: the memory is kept that long.
        let until = federation.clock.instant() + room::RECEIVE_TIME_MAX;
        let mut outcomes: Map<String, Value> = Map::new();
        while let Some(batch) = next_batch(&mut pdus)? {
            outcomes.extend(process(&federation, &origin, Transaction { pdus: batch, edus: Vec::new() }, until).await?);
        }
        while let Some(batch) = next_batch(&mut edus)? {
            process(&federation, &origin, Transaction { pdus: Vec::new(), edus: batch }, until).await?;
        }
        drop(grant);
        Ok::<_, Error>(json!({ "pdus": outcomes }))
    });
    let said = work.await?;
    Ok(Response::json_with(StatusCode::OK, &said))
}

/// The directory of the files, and the account that pays.
struct Scratch<'a> {
    folder: &'a Path,
    disk: Account,
}

impl Scratch<'_> {
    fn of<'a>(folder: &'a Path, budget: &Budget) -> Scratch<'a> {
        Scratch { folder, disk: budget.account("spill_disk") }
    }

    fn file(&self) -> Result<Spill, Wrong> {
        Ok(Spill::create(self.folder, &self.disk)?)
    }
}

/// The body as it comes, in frames of no meaning.
async fn receive(request: Request, federation: &Federation) -> Result<Spill, Error> {
    let mut pieces = request.into_stream(BODY_BYTES_MAX)?;
    let mut body = Scratch::of(&federation.scratch, &federation.budget).file().map_err(ErrorResponse::from)?;
    while let Some(piece) = pieces.next().await? {
        // A piece is as large as the connection's buffer, of any size.
        let append = move || piece.chunks(BUFFER_BYTES).try_for_each(|frame| body.append(frame)).map(|()| body);
        body = base::blocking(append).await.map_err(Wrong::from).map_err(ErrorResponse::from)?;
    }
    Ok(body)
}

/// A batch of the remaining items; none at the end.
fn next_batch(file: &mut SpillReader) -> Result<Option<Vec<Box<RawValue>>>, ErrorResponse> {
    let (mut batch, mut bytes, mut frame) = (Vec::new(), 0, Vec::new());
    while bytes < BATCH_BYTES && file.next(&mut frame).map_err(Wrong::from)? {
        bytes += frame.len();
        let text = String::from_utf8(std::mem::take(&mut frame)).map_err(ErrorResponse::internal)?;
        batch.push(RawValue::from_string(text).map_err(ErrorResponse::internal)?);
    }
    Ok((!batch.is_empty()).then_some(batch))
}

/// Why a body cannot be accepted.
#[derive(Debug)]
enum Wrong {
    Malformed(Malformed),
    Content(ErrorResponse),
    Scratch(SpillError),
}

impl From<Malformed> for Wrong {
    fn from(malformed: Malformed) -> Wrong {
        Wrong::Malformed(malformed)
    }
}

impl From<SpillError> for Wrong {
    fn from(failed: SpillError) -> Wrong {
        Wrong::Scratch(failed)
    }
}

impl From<Wrong> for ErrorResponse {
    fn from(wrong: Wrong) -> ErrorResponse {
        match wrong {
            Wrong::Malformed(malformed) => {
                ErrorResponse::bad("M_NOT_JSON", format!("The body is not a transaction: {malformed}"))
            }
            Wrong::Content(answer) => answer,
            Wrong::Scratch(SpillError::Refused(refused)) => refused.into(),
            Wrong::Scratch(SpillError::Io(failed)) if failed.kind() == std::io::ErrorKind::StorageFull => {
                disk_is_short().into()
            }
            Wrong::Scratch(failed) => ErrorResponse::internal(failed),
        }
    }
}

/// A body taken apart.
struct Parts {
    pdus: Spill,
    edus: Spill,
    /// Other members by name, in canonical form; for arrays their elements.
    rest: BTreeMap<String, Rest>,
    rest_bytes: usize,
    /// Every member's name; an array that is listed only here is empty.
    names: Vec<String>,
}

#[derive(Debug)]
enum Rest {
    Value(Vec<u8>),
    Array(Vec<Vec<u8>>),
}

impl Parts {
    fn read(body: Spill, scratch: &Scratch<'_>) -> Result<Parts, Wrong> {
        let (pdus, edus, rest) = (scratch.file()?, scratch.file()?, BTreeMap::new());
        let mut parts = Parts { pdus, edus, rest, rest_bytes: 0, names: Vec::new() };
        let limits = Limits { body_bytes_max: BODY_BYTES_MAX, item_bytes_max: ITEM_BYTES_MAX };
        let (mut events, mut body, mut frame) = (Events::new(limits), body.into_reader()?, Vec::new());
        while body.next(&mut frame)? {
            events.feed::<Wrong>(&frame, &mut |item| parts.add(item))?;
        }
        events.finish()?;
        parts.names = events.keys().to_vec();
        parts.names.sort_unstable();
        Ok(parts)
    }

    fn add(&mut self, item: Item<'_>) -> Result<(), Wrong> {
        let (Item::Element { raw, .. } | Item::Value { raw, .. }) = item else {
            // The item is covered by the signature, which cannot be checked without it.
            return Err(Wrong::Content(ErrorResponse::too_large("An event or EDU is too large")));
        };
        let text = canonical(raw, Mode::Lenient).map_err(|reject| {
            Wrong::Content(ErrorResponse::bad("M_NOT_JSON", format!("The body is not JSON: {reject}")))
        })?;
        match item {
            Item::Element { array: "pdus", .. } if self.pdus.frames() < PDUS_MAX as u64 => self.pdus.append(&text)?,
            Item::Element { array: "edus", .. } if self.edus.frames() < EDUS_MAX as u64 => self.edus.append(&text)?,
            Item::Element { array: "pdus" | "edus", .. } => {
                let why = format!("A transaction may have {PDUS_MAX} PDUs and {EDUS_MAX} EDUs at most");
                return Err(Wrong::Content(ErrorResponse::bad("M_TOO_LARGE", why)));
            }
            Item::Value { key: "pdus" | "edus", .. } => {
                return Err(Wrong::Content(ErrorResponse::bad("M_BAD_JSON", "pdus and edus must be arrays")));
            }
            Item::Element { array: name, .. } | Item::Value { key: name, .. } | Item::TooLarge { key: name } => {
                self.rest_bytes += text.len() + name.len() + size_of::<Rest>();
                if self.rest_bytes > REST_BYTES_MAX {
                    return Err(Wrong::Content(ErrorResponse::too_large(
                        "The fields beside pdus and edus are too long",
                    )));
                }
                match self.rest.get_mut(name) {
                    Some(Rest::Array(elements)) => elements.push(text),
                    _ if matches!(item, Item::Value { .. }) => {
                        drop(self.rest.insert(name.to_owned(), Rest::Value(text)))
                    }
                    _ => drop(self.rest.insert(name.to_owned(), Rest::Array(vec![text]))),
                }
            }
        }
        Ok(())
    }

    /// Writes the whole body in canonical form, a piece at a time; then events and messages can be read.
    fn content(self, write: &mut dyn FnMut(&[u8])) -> Result<(SpillReader, SpillReader), Wrong> {
        let (mut pdus, mut edus) = (self.pdus.into_reader()?, self.edus.into_reader()?);
        let mut between: &[u8] = b"{";
        for name in &self.names {
            write(between);
            between = b",";
            let mut text = Vec::with_capacity(name.len() + 3);
            write_string(&mut text, name);
            text.push(b':');
            write(&text);
            match (name.as_str(), self.rest.get(name)) {
                ("pdus", _) => write_array(&mut pdus, write)?,
                ("edus", _) => write_array(&mut edus, write)?,
                (_, Some(Rest::Value(text))) => write(text),
                (_, Some(Rest::Array(elements))) => {
                    write(b"[");
                    write(&elements.join(&b','));
                    write(b"]");
                }
                (_, None) => write(b"[]"),
            }
        }
        if self.names.is_empty() {
            write(b"{");
        }
        write(b"}");
        Ok((pdus, edus))
    }
}

/// The frames as an array; afterwards the file stands at its beginning again.
fn write_array(file: &mut SpillReader, write: &mut dyn FnMut(&[u8])) -> Result<(), Wrong> {
    let (mut frame, mut between): (_, &[u8]) = (Vec::new(), b"[");
    let is_empty = file.frames_left() == 0;
    while file.next(&mut frame)? {
        write(between);
        write(&frame);
        between = b",";
    }
    write(if is_empty { b"[]" } else { b"]" });
    Ok(file.rewind()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::tests::federation;
    use crate::matrix::sign::{Key, request};
    use ruma::ServerName;

    fn parts(body: &[u8], frame_bytes: usize) -> Result<Parts, Wrong> {
        let folder = std::env::temp_dir();
        let scratch = Scratch::of(&folder, &Budget::for_tests());
        let mut spill = scratch.file()?;
        for frame in body.chunks(frame_bytes) {
            spill.append(frame)?;
        }
        Parts::read(spill, &scratch)
    }

    fn content(body: &str, frame_bytes: usize) -> String {
        let mut text = Vec::new();
        parts(body.as_bytes(), frame_bytes).unwrap().content(&mut |piece| text.extend_from_slice(piece)).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_pieces_are_the_canonical_text_of_the_whole() {
        for body in [
            r#"{}"#,
            r#"{"pdus":[],"edus":[]}"#,
            r#" { "pdus" : [ {"b":1, "a":{"z":[ ],"y":null}} , {"ü":"\u00fc\n"} ], "origin":"x.example", "zz":[1, "a"], "edus":[{"c":1.5}],
                 "origin_server_ts": 12, "pdu_failures": [] } "#,
            r#"{"edus":[{"a":"\"]}"}],"a\"b":{"x":[1,2]}}"#,
        ] {
            let whole = String::from_utf8(canonical(body.as_bytes(), Mode::Lenient).unwrap()).unwrap();
            for frame_bytes in [1, 7, 1000] {
                assert_eq!(content(body, frame_bytes), whole);
            }
        }
    }

    #[test]
    fn what_is_no_transaction_is_refused() {
        let many = |count: usize| format!(r#"{{"pdus":[{}]}}"#, vec!["{}"; count].join(","));
        assert!(parts(many(PDUS_MAX).as_bytes(), 100).is_ok());
        let long = format!(r#"{{"pdus":["{}"]}}"#, "x".repeat(ITEM_BYTES_MAX));
        let beside = format!(r#"{{"other":["{}"]}}"#, "x".repeat(REST_BYTES_MAX));
        for body in [&many(PDUS_MAX + 1), &long, &beside, r#"{"pdus":{}}"#, r#"{"pdus":[}"#, r#"{"pdus":[1"#, "[]"] {
            assert!(parts(body.as_bytes(), 4096).is_err(), "{}", &body[..body.len().min(40)]);
        }
    }

    /// Fifty events of 64 KiB are 3.2 MB; a board with 2 MiB for transactions refused them, and Synapse repeats them for ever.
    #[test]
    fn the_largest_transaction_is_checked_piece_by_piece_and_read_back() {
        let key = Key::from_seed("1", [1; 32]);
        let (us, them): (&ServerName, &ServerName) =
            ("us.example".try_into().unwrap(), "them.example".try_into().unwrap());
        let event = |n: usize| json!({ "type": "m.x", "n": n, "content": { "body": "y".repeat(65_000) } });
        let body =
            json!({ "pdus": (0..PDUS_MAX).map(event).collect::<Vec<_>>(), "edus": [], "origin": them }).to_string();
        let target = "/_matrix/federation/v1/send/1";
        let header = request::sign(&key, them, us, "PUT", target, Some(body.as_bytes())).unwrap();
        let header = request::parse(&header).unwrap();
        for changed in [false, true] {
            let body = if changed { body.replacen("yy", "yx", 1) } else { body.clone() };
            let mut check = request::InPieces::new(&header, &key.public(), us, "PUT", target).unwrap();
            let (mut pdus, mut edus) =
                parts(body.as_bytes(), 16 * 1024).unwrap().content(&mut |text| check.update(text)).unwrap();
            assert_eq!(check.finish().is_ok(), !changed);
            let (mut read, mut batches) = (0, 0);
            while let Some(batch) = next_batch(&mut pdus).unwrap() {
                assert!(batch.iter().map(|event| event.get().len()).sum::<usize>() < BATCH_BYTES + ITEM_BYTES_MAX);
                read += batch.len();
                batches += 1;
            }
            assert_eq!((read, batches), (PDUS_MAX, PDUS_MAX / 2));
            assert!(next_batch(&mut edus).unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn a_long_transaction_arrives_and_everything_is_given_back() {
        let budget = Budget::from_profile(crate::budget::Profile::get("pi-zero-2w").unwrap());
        let house = crate::room::testing::house_within(budget.clone());
        let federation = Arc::new(federation(&house, &budget));
        let new = crate::user::New { localpart: "anna".to_owned(), ..Default::default() };
        let anna = federation.users.create(new).await.unwrap();
        let login = crate::user::Login { device_id: Some("DEVICE".to_owned()), ..Default::default() };
        federation.users.login(&anna, login).await.unwrap();
        // For an unknown server less would be kept.
        let room = house.public_room(&anna).await;
        let num = house.room_num(&room);
        let shared = house.store.write(move |w| {
            use crate::store::tables::room::event_row::Membership;
            use crate::store::tables::room::member;
            use crate::store::tables::user;
            let bob = user::intern(w, "@bob:them.example")?;
            member::set(w, num, bob, None, Some((Membership::Join, crate::store::EventNum(1))))?;
            member::put_server(w, num, "them.example", 1, crate::store::Position(1))
        });
        shared.await.unwrap();
        let edu = |n: usize| {
            let messages = json!({ anna.as_str(): { "*": { "n": n, "text": "z".repeat(60_000) } } });
            let content = json!({ "sender": "@bob:them.example", "type": "m.x", "message_id": n.to_string(), "messages": messages });
            json!({ "edu_type": "m.direct_to_device", "content": content })
        };
        let body = json!({ "pdus": [], "edus": (0..EDUS_MAX).map(edu).collect::<Vec<_>>() }).to_string();
        assert!(body.len() as u64 > budget.account("inbound_transactions").limit() / 4);
        let (key, target) = (Key::from_seed("1", [1; 32]), "/_matrix/federation/v1/send/1");
        let (us, them): (&ServerName, &ServerName) = (&house.server, "them.example".try_into().unwrap());
        for changed in [true, false] {
            let signed = if changed { body.replacen('z', "y", 1) } else { body.clone() };
            let header = request::sign(&key, them, us, "PUT", target, Some(signed.as_bytes())).unwrap();
            let claim = Claim::for_tests(&header, them, &key, "PUT", target);
            let length = body.len().to_string();
            let asked = Request::for_tests(http::Method::PUT, target, &body).with_header("content-length", &length);
            assert!(is_long(&asked, budget.account("inbound_transactions").limit() / 4));
            let answered = send(federation.clone(), asked, claim).await;
            assert_eq!(answered.is_err(), changed);
            assert_eq!(arrived(&house, &anna), if changed { 0 } else { EDUS_MAX });
        }
        assert_eq!((budget.account("inbound_transactions").used(), budget.account("spill_disk").used()), (0, 0));
    }

    fn arrived(house: &crate::room::testing::House, user: &ruma::UserId) -> usize {
        use crate::store::Position;
        use crate::store::tables::user::to_device;
        let mut arrived = 0;
        let ends = (Position(0), Position(i64::MAX as u64));
        to_device::each(&house.read(), house.user_num(user), "DEVICE", ends.0, ends.1, &mut |_, _| {
            arrived += 1;
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        arrived
    }
}
