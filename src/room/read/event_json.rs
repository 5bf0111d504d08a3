//! An event as apps see it (client-server API, "Room Event Format"), copied text by text out of its canonical JSON.
//!
//! No tree is built. Formatting an event holds its own body and at most one more at a time (the replaced event, the
//! redaction, an edit, the latest event of its thread).

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::matrix::draft::STICKY;
use crate::matrix::{json, version};
use crate::room::ANSWER_BYTES;
use crate::room::ignored::Ignored;
use crate::room::state::event::load_row;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Kind, Membership, Row};
use crate::store::tables::room::relation::{self, Rel};
use crate::store::tables::room::{self, state_tree, sticky, txn};
use crate::store::tables::user;
use crate::store::{EventNum, Get, Result, StateKeyNum, UserNum};

/// The most related events read for one event: replies, to learn whether the viewer participated in a thread; and
/// references in `unsigned`.
const RELATED_LOOKED_AT: usize = 64;
/// The most edits of one event whose rows are looked at, and of those by its sender the most that are read.
const EDITS_LOOKED_AT: usize = 512;
const EDITS_READ: usize = 8;
/// A thread is counted no further than this.
const THREAD_COUNT_MAX: u64 = 5_000;
/// Keys in one path of a filter's `event_fields`; a longer path names nothing.
const FIELD_KEYS_MAX: usize = 50;

/// The reader of an event, and its shape.
#[derive(Clone, Debug, Default)]
pub struct Format {
    pub now_ms: u64,
    /// The reading user and device: events that the device sent carry its transaction id. Without a number, nobody.
    pub user: UserNum,
    pub device: String,
    /// When given, written into each event; a sync leaves it out, since the room id stands above the events.
    pub room_id: Option<String>,
    /// The paths a filter asks for; empty for whole events.
    pub fields: Vec<Vec<String>>,
    /// Events as servers exchange them.
    pub federation: bool,
    /// The last place a user who left may see: no later event is shown, not even in `unsigned` of an earlier one.
    pub upto: Option<i64>,
    /// The users whom the reader ignores: `unsigned` tells nothing of their replies.
    pub ignored: Ignored,
    /// The key of the reader's own member event, when one exists in any room.
    pub member_key: Option<StateKeyNum>,
}

impl Format {
    /// The place of the newest event the reader may see.
    fn newest(&self) -> i64 {
        self.upto.unwrap_or(i64::MAX)
    }
}

/// How much `unsigned` tells beside the event itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// In a timeline: the replaced event, the relations, the transaction id.
    Timeline,
    /// In a list of state, which may be long.
    State,
}

/// Appends an event in the shape asked for.
pub fn write(
    get: &impl Get,
    num: EventNum,
    row: &Row,
    format: &Format,
    detail: Detail,
    out: &mut Vec<u8>,
) -> Result<()> {
    let body = match detail {
        Detail::Timeline => readable_body(get, row, format)?,
        Detail::State => stored_body(get, row, format)?,
    };
    write_with(get, (num, row, body), format, detail, out)
}

/// The same with a body that is not the stored one.
pub fn write_with(
    get: &impl Get,
    (num, row, body): (EventNum, &Row, Vec<u8>),
    format: &Format,
    detail: Detail,
    out: &mut Vec<u8>,
) -> Result<()> {
    if format.federation {
        out.extend_from_slice(&body);
        return Ok(());
    }
    let start = out.len();
    write_members(&body, row, format.room_id.as_deref(), out);
    let relation = relation_in(&body);
    let is_sticky = json::read::get(&body, STICKY).is_some();
    drop(body);
    write_unsigned(get, (num, row, relation), format, detail, out)?;
    if is_sticky {
        write_stickiness(get, row, format, out)?;
    }
    out.push(b'}');
    out.push(b'}');
    if !format.fields.is_empty() {
        let kept = keep_fields(&out[start..], &format.fields);
        out.truncate(start);
        out.extend_from_slice(&kept);
    }
    Ok(())
}

/// The relation type that an event's body states.
fn relation_in(body: &[u8]) -> Option<Rel> {
    let stated = json::read::get_path(body, &["content", "m.relates_to", "rel_type"]);
    stated.and_then(json::read::text).map(|rel_type| Rel::of(&rel_type))
}

/// Appends another event as a member of `unsigned`, itself without `unsigned`. An event that does not fit is left out.
fn write_beside(
    get: &impl Get,
    row: &Row,
    format: &Format,
    (first, key): (usize, &str),
    out: &mut Vec<u8>,
) -> Result<()> {
    let body = readable_body(get, row, format)?;
    if has_room(out, &body) {
        write_key(out, first, key);
        write_members(&body, row, format.room_id.as_deref(), out);
        out.push(b'}');
    }
    Ok(())
}

/// An event's body, redacted when its sender asked for erasure and the reader was not in the room at the event.
pub fn readable_body(get: &impl Get, row: &Row, format: &Format) -> Result<Vec<u8>> {
    if user::is_erased(get, row.sender)?
        && membership_at(get, row, format)? != Some(Membership::Join)
        && let Some(version) = version::get(&room::get_of(get, row.room)?.version)
    {
        return Ok(load_row(get, version, row)?.redacted().into_bytes());
    }
    stored_body(get, row, format)
}

/// As much of an event's body as the format needs.
fn stored_body(get: &impl Get, row: &Row, format: &Format) -> Result<Vec<u8>> {
    if format.federation { event::body(get, row) } else { event::shown(get, row) }
}

/// Whether a piece of an answer has room for more than the event itself.
fn has_room(out: &[u8], more: &[u8]) -> bool {
    out.len() + more.len() <= ANSWER_BYTES as usize
}

/// Appends a state event in stripped form, for users outside the room.
pub fn write_stripped(get: &impl Get, row: &Row, out: &mut Vec<u8>) -> Result<()> {
    let body = event::shown(get, row)?;
    out.push(b'{');
    let first = out.len();
    // Apps date an invite by its time.
    for key in SHOWN {
        if let Some(value) = json::read::get(&body, key) {
            write_member(out, first, key, value);
        }
    }
    out.push(b'}');
    Ok(())
}

/// The content of an event, an object.
pub fn content(get: &impl Get, row: &Row) -> Result<Vec<u8>> {
    let body = event::shown(get, row)?;
    Ok(json::read::get(&body, "content").unwrap_or(b"{}").to_vec())
}

/// The type of an event, read from its body when the stored code only says "other".
pub fn kind(get: &impl Get, row: &Row) -> Result<String> {
    match row.kind.name() {
        Some(name) => Ok(name.to_owned()),
        None => Ok(json::read::get_text(&event::shown(get, row)?, "type").unwrap_or_default().into_owned()),
    }
}

/// The `rel_type` of an event's relation.
/// The relation that an event states: its type, and the id of the event it relates to.
pub fn relation_of(get: &impl Get, row: &Row) -> Result<Option<(String, String)>> {
    let body = event::shown(get, row)?;
    let text = |name: &str| {
        let found = json::read::get_path(&body, &["content", "m.relates_to", name]).and_then(json::read::text);
        found.map(|text| text.into_owned())
    };
    Ok(text("rel_type").zip(text("event_id")))
}

pub fn relation_type(get: &impl Get, row: &Row) -> Result<Option<String>> {
    let body = event::shown(get, row)?;
    let found = json::read::get_path(&body, &["content", "m.relates_to", "rel_type"]).and_then(json::read::text);
    Ok(found.map(|text| text.into_owned()))
}

/// The members of an event that apps are shown, in the order in which they are written.
const SHOWN: [&str; 6] = ["content", "origin_server_ts", "sender", "state_key", "type", STICKY];

/// Everything but `unsigned` and the closing brace.
fn write_members(body: &[u8], row: &Row, room_id: Option<&str>, out: &mut Vec<u8>) {
    out.push(b'{');
    let first = out.len();
    let (mut values, mut redacts) = ([None; SHOWN.len()], None);
    for (key, value) in json::read::members(body) {
        match SHOWN.iter().position(|shown| shown.as_bytes() == key) {
            Some(at) => values[at] = values[at].or(Some(value)),
            None if key == b"redacts" => redacts = redacts.or(Some(value)),
            None => {}
        }
    }
    // Old and new room versions keep the target of a redaction in different places; apps get both.
    let in_content = || values[0].and_then(|content| json::read::get(content, "redacts"));
    let redacts = if row.kind == Kind::REDACTION { redacts.or_else(in_content) } else { None };
    for (key, value) in SHOWN.into_iter().zip(values) {
        match value {
            Some(content) if key == "content" && redacts.is_some() && json::read::get(content, "redacts").is_none() => {
                write_member(out, first, key, b"{");
                out.extend_from_slice(b"\"redacts\":");
                out.extend_from_slice(redacts.unwrap_or(b"null"));
                let rest = content.strip_prefix(b"{").unwrap_or(b"}");
                out.extend_from_slice(if rest.starts_with(b"}") { b"" } else { b"," });
                out.extend_from_slice(rest);
            }
            Some(value) => write_member(out, first, key, value),
            None => {}
        }
    }
    if let Some(redacts) = redacts {
        write_member(out, first, "redacts", redacts);
    }
    write_text(out, first, "event_id", &row.id.text());
    if let Some(room_id) = room_id {
        write_text(out, first, "room_id", room_id);
    }
}

/// Writes `unsigned`, without the brace that closes it.
fn write_unsigned(
    get: &impl Get,
    (num, row, relation): (EventNum, &Row, Option<Rel>),
    format: &Format,
    detail: Detail,
    out: &mut Vec<u8>,
) -> Result<()> {
    out.extend_from_slice(b",\"unsigned\":{");
    let first = out.len();
    let age = format.now_ms.saturating_sub(row.origin_server_ts);
    write_member(out, first, "age", age.to_string().as_bytes());
    if row.flags.redacted
        && let Some(redaction) = row.redacted_by
        && let Some(redaction) = event::row(get, redaction)?
    {
        write_beside(get, &redaction, format, (first, "redacted_because"), out)?;
    }
    if detail == Detail::Timeline {
        write_transaction(get, num, row, format, first, out)?;
        write_membership(get, row, format, first, out)?;
        write_replaced(get, row, first, out)?;
        write_relations(get, (num, row, relation), format, first, out)?;
    }
    Ok(())
}

/// Appends to `unsigned` for how long an event is still sticky.
fn write_stickiness(get: &impl Get, row: &Row, format: &Format, out: &mut Vec<u8>) -> Result<()> {
    if let Some(order) = row.order.and_then(|order| u64::try_from(order).ok())
        && let Some(left_ms) = sticky::get(get, row.room, order)?.map(|at| at.until_ms.saturating_sub(format.now_ms))
    {
        // The age stands before it.
        out.extend_from_slice(format!(",\"msc4354_sticky_duration_ttl_ms\":{left_ms}").as_bytes());
    }
    Ok(())
}

fn write_transaction(
    get: &impl Get,
    num: EventNum,
    row: &Row,
    format: &Format,
    first: usize,
    out: &mut Vec<u8>,
) -> Result<()> {
    if row.sender == format.user
        && let Some(txn) = txn::of_event(get, num)?
    {
        match &*txn.device {
            // What was scheduled is told to all devices of its sender (MSC4140).
            "" => write_text(out, first, "org.matrix.msc4140.delay_id", &txn.id),
            device if device == format.device => write_text(out, first, "transaction_id", &txn.id),
            _ => {}
        }
    }
    Ok(())
}

fn write_membership(get: &impl Get, row: &Row, format: &Format, first: usize, out: &mut Vec<u8>) -> Result<()> {
    // An application service is told of a room for several users, or for none of its own: nobody reads there.
    if format.user != UserNum::default()
        && let Some(membership) = membership_at(get, row, format)?
    {
        write_text(out, first, "membership", membership.as_str());
    }
    Ok(())
}

/// The viewer's membership at the time of the event, as far as the state before it is known.
fn membership_at(get: &impl Get, row: &Row, format: &Format) -> Result<Option<Membership>> {
    Ok(Some(match (row.member, row.before) {
        (Some((membership, target)), _) if target == format.user => membership,
        (_, Some(before)) => {
            let own = format.member_key.map_or(Ok(None), |key| state_tree::get(get, before, key))?;
            let member = own.map_or(Ok(None), |own| event::row_of(get, own).map(|row| row.member))?;
            member.map_or(Membership::Leave, |(membership, _)| membership)
        }
        // Nothing came before the create event.
        (_, None) if row.kind == Kind::CREATE => Membership::Leave,
        (_, None) => return Ok(None),
    }))
}

/// The state event that this event replaced.
fn write_replaced(get: &impl Get, row: &Row, first: usize, out: &mut Vec<u8>) -> Result<()> {
    let (Some(key), Some(before)) = (row.state_key, row.before) else { return Ok(()) };
    let Some(old) = state_tree::get(get, before, key)? else { return Ok(()) };
    let old = event::row_of(get, old)?;
    let before = content(get, &old)?;
    if has_room(out, &before) {
        write_member(out, first, "prev_content", &before);
    }
    write_text(out, first, "prev_sender", &user::id_of(get, old.sender)?);
    write_text(out, first, "replaces_state", &old.id.text());
    Ok(())
}

/// The newest edit, and a summary of the thread. `relation`: the event's own; an edit has no edits, and an event that
/// relates to another no thread.
fn write_relations(
    get: &impl Get,
    (num, row, relation): (EventNum, &Row, Option<Rel>),
    format: &Format,
    first: usize,
    out: &mut Vec<u8>,
) -> Result<()> {
    if row.state_key.is_some() || row.flags.redacted {
        return Ok(());
    }
    let edit = if relation == Some(Rel::REPLACE) { None } else { newest_edit(get, num, row, format)? };
    let thread = if relation.is_some() { None } else { thread(get, num, row, format)? };
    let references = references(get, num, row, format)?;
    if edit.is_none() && thread.is_none() && references.is_empty() {
        return Ok(());
    }
    write_key(out, first, "m.relations");
    out.push(b'{');
    let first = out.len();
    if let Some(edit) = edit {
        write_beside(get, &edit, format, (first, "m.replace"), out)?;
    }
    if let Some(thread) = thread {
        write_key(out, first, "m.thread");
        out.extend_from_slice(format!("{{\"count\":{},", thread.count).as_bytes());
        out.extend_from_slice(format!("\"current_user_participated\":{}", thread.took_part).as_bytes());
        write_latest(get, &thread, format, out)?;
        out.push(b'}');
    }
    if !references.is_empty() {
        write_key(out, first, "m.reference");
        out.extend_from_slice(b"{\"chunk\":[");
        for (nth, id) in references.iter().rev().enumerate() {
            out.extend_from_slice(if nth == 0 { b"{\"event_id\":" } else { b",{\"event_id\":" });
            json::write_string(out, id);
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    }
    out.push(b'}');
    Ok(())
}

/// The latest event of a thread, with its own relations: it is related itself, so it has no thread. Left out when it
/// does not fit.
fn write_latest(get: &impl Get, thread: &Thread, format: &Format, out: &mut Vec<u8>) -> Result<()> {
    let (num, row) = &thread.latest;
    let body = readable_body(get, row, format)?;
    if !has_room(out, &body) {
        return Ok(());
    }
    write_key(out, 0, "latest_event");
    write_members(&body, row, format.room_id.as_deref(), out);
    drop(body);
    write_unsigned(get, (*num, row, Some(Rel::THREAD)), format, Detail::Timeline, out)?;
    out.extend_from_slice(b"}}");
    Ok(())
}

/// The valid edit with the highest `origin_server_ts`, or with the largest id of those (client-server API, "Event
/// replacements"). Among the edits that came last, it is looked for in the few newest of the event's own sender.
fn newest_edit(get: &impl Get, num: EventNum, row: &Row, format: &Format) -> Result<Option<Row>> {
    let (mut newest, mut looked_at): (Vec<(u64, String, EventNum)>, usize) = (Vec::new(), 0);
    relation::list_newest(get, row.room, num, Rel::REPLACE, format.newest(), &mut |_, num| {
        looked_at += 1;
        let edit = event::row_of(get, num)?;
        if edit.sender == row.sender && edit.kind == row.kind && edit.state_key.is_none() && !edit.flags.redacted {
            let edit = (edit.origin_server_ts, edit.id.text(), num);
            newest.insert(newest.partition_point(|other| *other > edit), edit);
            newest.truncate(EDITS_READ);
        }
        Ok(match looked_at < EDITS_LOOKED_AT {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        })
    })?;
    for (_, _, num) in newest {
        let edit = event::row_of(get, num)?;
        if is_an_edit(get, &edit, row)? {
            return Ok(Some(edit));
        }
    }
    Ok(None)
}

/// Whether an edit has what takes the event's place, and its type. Only apps see into an encrypted one.
fn is_an_edit(get: &impl Get, edit: &Row, row: &Row) -> Result<bool> {
    if edit.kind == Kind::OTHER && kind(get, edit)? != kind(get, row)? {
        return Ok(false);
    }
    let body = event::shown(get, edit)?;
    let content = json::read::get_path(&body, &["content", "m.new_content"]);
    Ok(edit.kind == Kind::ENCRYPTED || content.is_some_and(|content| content.starts_with(b"{")))
}

/// Ids of the newest events that refer to the event, newest first.
fn references(get: &impl Get, num: EventNum, row: &Row, format: &Format) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    relation::list_newest(get, row.room, num, Rel::REFERENCE, format.newest(), &mut |_, event| {
        let event = event::row_of(get, event)?;
        if !format.ignored.contains(event.sender) {
            ids.push(event.id.text());
        }
        Ok(match ids.len() < RELATED_LOOKED_AT {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        })
    })?;
    Ok(ids)
}

/// Whether the viewer began a thread or sent one of its newest replies.
pub fn took_part(get: &impl Get, root: EventNum, row: &Row, format: &Format) -> Result<bool> {
    Ok(row.sender == format.user || thread(get, root, row, format)?.is_some_and(|thread| thread.took_part))
}

struct Thread {
    latest: (EventNum, Row),
    count: u64,
    took_part: bool,
}

fn thread(get: &impl Get, num: EventNum, row: &Row, format: &Format) -> Result<Option<Thread>> {
    let viewer = format.user;
    let mut thread: Option<Thread> = None;
    relation::list_newest(get, row.room, num, Rel::THREAD, format.newest(), &mut |_, reply| {
        if !format.ignored.is_empty() && format.ignored.contains(event::row_of(get, reply)?.sender) {
            return Ok(ControlFlow::Continue(()));
        }
        match &mut thread {
            None => {
                let latest = event::row_of(get, reply)?;
                let took_part = row.sender == viewer || latest.sender == viewer;
                thread = Some(Thread { latest: (reply, latest), count: 1, took_part });
            }
            Some(thread) => {
                if !thread.took_part && thread.count < RELATED_LOOKED_AT as u64 {
                    thread.took_part = event::row_of(get, reply)?.sender == viewer;
                }
                thread.count += 1;
                if thread.count == THREAD_COUNT_MAX {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(thread)
}

/// Appends `"key":`, behind a comma when it is not the object's first; `first` is where the object's first member stands.
pub fn write_key(out: &mut Vec<u8>, first: usize, key: &str) {
    if out.len() > first {
        out.push(b',');
    }
    json::write_string(out, key);
    out.push(b':');
}

fn write_member(out: &mut Vec<u8>, first: usize, key: &str, value: &[u8]) {
    write_key(out, first, key);
    out.extend_from_slice(value);
}

/// Appends a member that is a string.
pub fn write_text(out: &mut Vec<u8>, first: usize, key: &str, text: &str) {
    write_key(out, first, key);
    json::write_string(out, text);
}

/// Keeps the members of an object that the paths of a filter's `event_fields` name.
fn keep_fields(event: &[u8], fields: &[Vec<String>]) -> Vec<u8> {
    let mut kept = Vec::new();
    let paths: Vec<_> = fields.iter().map(Vec::as_slice).filter(|path| path.len() <= FIELD_KEYS_MAX).collect();
    write_fields(event, &paths, &mut kept);
    kept
}

/// Appends, as an object, the members that the paths name. Recurses as deep as the longest path.
fn write_fields(object: &[u8], paths: &[&[String]], out: &mut Vec<u8>) {
    let mut wanted: BTreeMap<Vec<u8>, Vec<&[String]>> = BTreeMap::new();
    for path in paths {
        let Some((key, rest)) = path.split_first() else { continue };
        // The key in the form it has in canonical JSON.
        let mut text = Vec::new();
        json::write_string(&mut text, key);
        wanted.entry(text).or_default().push(rest);
    }
    out.push(b'{');
    let first = out.len();
    for (key, value) in json::read::members(object) {
        let key = [b"\"", key, b"\""].concat();
        let Some(rests) = wanted.get(&key) else { continue };
        let (is_whole, is_object) = (rests.iter().any(|rest| rest.is_empty()), value.starts_with(b"{"));
        if !is_whole && !is_object {
            continue;
        }
        let before = out.len();
        out.extend_from_slice(if before > first { b"," } else { b"" });
        out.extend_from_slice(&key);
        out.push(b':');
        if is_whole {
            out.extend_from_slice(value);
            continue;
        }
        let inner = out.len();
        write_fields(value, rests, out);
        if out.len() == inner + 2 {
            out.truncate(before);
        }
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filter's path recursed on the stack as deep into an event as the authors of both chose.
    #[test]
    fn a_long_path_names_nothing() {
        let event = format!("{}1{}", r#"{"a":"#.repeat(800), "}".repeat(800));
        let path = |keys| vec![vec!["a".to_owned(); keys], vec!["b".to_owned()]];
        let kept = keep_fields(event.as_bytes(), &path(FIELD_KEYS_MAX));
        assert_eq!(String::from_utf8(kept).unwrap(), event);
        assert_eq!(keep_fields(event.as_bytes(), &path(FIELD_KEYS_MAX + 1)), b"{}");
    }
    use crate::store::tables::room::event_row::{Flags, Id};
    use crate::store::{BodyNum, RoomNum};
    use serde_json::{Value, json};

    fn row(kind: Kind) -> Row {
        Row {
            room: RoomNum(1),
            body: BodyNum(1),
            id: Id::Named("$e".into()),
            kind,
            state_key: None,
            sender: UserNum(1),
            member: None,
            flags: Flags::default(),
            depth: 1,
            origin_server_ts: 5,
            auth: vec![],
            before: None,
            order: None,
            redacted_by: None,
        }
    }

    fn check(kind: Kind, body: Value, shown: Value) {
        let mut out = Vec::new();
        write_members(body.to_string().as_bytes(), &row(kind), Some("!r:x"), &mut out);
        out.push(b'}');
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), shown);
    }

    #[test]
    fn apps_see_what_concerns_them() {
        check(
            Kind::MESSAGE,
            json!({ "auth_events": [], "content": { "body": "\"q\"" }, "depth": 3, "hashes": {}, "origin_server_ts": 5,
                "prev_events": [], "room_id": "!r:x", "sender": "@a:x", "signatures": {}, "type": "m.room.message" }),
            json!({ "content": { "body": "\"q\"" }, "event_id": "$e", "origin_server_ts": 5, "room_id": "!r:x",
                "sender": "@a:x", "type": "m.room.message" }),
        );
    }

    #[test]
    fn a_redaction_names_its_target_in_both_places() {
        let shown = json!({ "content": { "reason": "r", "redacts": "$t" }, "redacts": "$t", "event_id": "$e",
            "room_id": "!r:x", "type": "m.room.redaction" });
        let old = json!({ "content": { "reason": "r" }, "redacts": "$t", "type": "m.room.redaction" });
        let new = json!({ "content": { "reason": "r", "redacts": "$t" }, "type": "m.room.redaction" });
        check(Kind::REDACTION, old, shown.clone());
        check(Kind::REDACTION, new, shown);
    }

    #[test]
    fn a_filter_keeps_the_fields_it_names() {
        let event = json!({
            "content": { "a.b": 1, "c": { "d": 2, "e": 3 }, "f\"\u{1}": 4, "g": { "h": {} } }, "type": "t", "sender": "s",
        });
        let check = |fields: &[&str], kept: Value| {
            let fields: Vec<_> = fields.iter().map(|path| json::read::dot_path(path)).collect();
            let found: Value = serde_json::from_slice(&keep_fields(event.to_string().as_bytes(), &fields)).unwrap();
            assert_eq!(found, kept);
        };
        let some = ["type", r"content.a\.b", "content.c.d", "nothing.there", "type.t", "content.g.x"];
        check(&some, json!({ "content": { "a.b": 1, "c": { "d": 2 } }, "type": "t" }));
        check(&["content.f\"\u{1}", "content.g.h"], json!({ "content": { "f\"\u{1}": 4, "g": { "h": {} } } }));
        check(&["content", "content.c.d"], json!({ "content": event["content"] }));
        check(&["content.g.h.i", ""], json!({}));
    }
}
