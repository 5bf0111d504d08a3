//! The policy lists that the server follows: which rooms they are, their rules by what those name, and whom the rules kept out.
//!
//! A rule is a row derived from a state event of its list. A name is looked up in a few steps for each list; only rules with
//! patterns are walked, and of those only so many.

use std::ops::ControlFlow;

use crate::store::row_encoding::{Unpack, put_bytes, put_u64};
use crate::store::schema::{POLICY_HIT, POLICY_LIST, POLICY_RULE};
use crate::store::{Error, EventNum, Get, Result, RoomNum, StateKeyNum, Write};

/// Lists followed.
pub const LISTS_MAX: usize = 50;
/// Rules with patterns that one question looks at, over all lists: some milliseconds on a small board.
pub const GLOBS_MAX: usize = 2_000;

/// A rule as its row says it. Codes are those of `matrix::policy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRow {
    /// What it is about.
    pub subject: u8,
    /// How it names that.
    pub form: u8,
    pub entity: String,
    pub takedown: bool,
    pub reason: String,
}

/// Whether a room is a list that the server follows.
pub fn is_followed(get: &impl Get, room_id: &str) -> Result<bool> {
    get.has(&POLICY_LIST, room_id.as_bytes())
}

/// A list that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    pub room_id: String,
    /// What the settings call it: the room id, or an alias.
    pub called: String,
    /// All rules of its room are rows; until then they are still to be looked through.
    pub whole: bool,
}

/// The lists, by room id. At most [`LISTS_MAX`].
pub fn lists(get: &impl Get) -> Result<Vec<List>> {
    let mut found = Vec::new();
    get.prefix(&POLICY_LIST, b"", &mut |key, value| {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| Error::corrupt(&POLICY_LIST, key));
        let (whole, called) = value.split_first().ok_or_else(|| Error::corrupt(&POLICY_LIST, key))?;
        found.push(List { room_id: text(key)?, called: text(called)?, whole: *whole != 0 });
        Ok(if found.len() < LISTS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

pub fn put_list(w: &mut Write, list: &List) -> Result<()> {
    w.put(&POLICY_LIST, list.room_id.as_bytes(), &[&[u8::from(list.whole)], list.called.as_bytes()].concat())
}

pub fn remove_list(w: &mut Write, room_id: &str) -> Result<()> {
    w.remove(&POLICY_LIST, room_id.as_bytes()).map(drop)
}

/// The rule of a state key.
pub fn put_rule(w: &mut Write, room: RoomNum, key: StateKeyNum, event: EventNum, rule: &RuleRow) -> Result<()> {
    let mut value = event.to_key().to_vec();
    value.push(u8::from(rule.takedown));
    put_bytes(&mut value, rule.reason.as_bytes());
    w.put(&POLICY_RULE, &rule_key(room, key, rule), &value)
}

/// Removes the rule of a state key. `of`: only while it is that event's.
pub fn remove_rule(
    w: &mut Write,
    room: RoomNum,
    key: StateKeyNum,
    of: Option<EventNum>,
    rule: &RuleRow,
) -> Result<bool> {
    let row = rule_key(room, key, rule);
    let Some(value) = w.get(&POLICY_RULE, &row)? else { return Ok(false) };
    if of.is_some_and(|event| value.get(..4) != Some(&event.to_key()[..])) {
        return Ok(false);
    }
    w.remove(&POLICY_RULE, &row)?;
    w.remove(&POLICY_HIT, &hit_key(rule.subject, &rule.entity))?;
    Ok(true)
}

/// Removes at most `rows_max` rules of a list; fewer means that none are left.
pub fn forget(w: &mut Write, room: RoomNum, rows_max: usize) -> Result<usize> {
    w.remove_prefix(&POLICY_RULE, &room.to_key(), rows_max)
}

/// A rule of a list as it is kept.
pub struct Kept {
    pub rule: RuleRow,
    /// The place behind which the next page begins.
    pub place: Vec<u8>,
}

/// At most `most` rules of a list behind a place, by what they are about.
pub fn rules_after(get: &impl Get, room: RoomNum, after: Option<&[u8]>, most: usize) -> Result<Vec<Kept>> {
    let mut from = [&room.to_key()[..], after.unwrap_or_default()].concat();
    if after.is_some() {
        from.push(0);
    }
    let (end, mut found) = (crate::store::after_prefix(&room.to_key()), Vec::new());
    get.range(&POLICY_RULE, &from, end.as_deref(), false, &mut |key, value| {
        let rule = read_rule(key, value).ok_or_else(|| Error::corrupt(&POLICY_RULE, key))?;
        found.push(Kept { rule, place: key[4..].to_vec() });
        Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// Visits the form of each rule of a list, at most `left` of them, which is lowered.
pub fn count(get: &impl Get, room: RoomNum, left: &mut usize, visit: &mut dyn FnMut(u8)) -> Result<()> {
    get.prefix(&POLICY_RULE, &room.to_key(), &mut |key, _| {
        if *left == 0 {
            return Ok(ControlFlow::Break(()));
        }
        *left -= 1;
        visit(*key.get(5).ok_or_else(|| Error::corrupt(&POLICY_RULE, key))?);
        Ok(ControlFlow::Continue(()))
    })
}

/// What is looked for in the rules about one kind of thing.
pub struct Wanted<'a> {
    pub subject: u8,
    /// Entities, each with the form in which a rule may name it.
    pub names: &'a [(u8, String)],
    /// The form of patterns.
    pub patterns: u8,
}

/// The entity of the first rule that names what is wanted, or whose pattern `fits`.
pub fn find(
    get: &impl Get,
    lists: &[RoomNum],
    wanted: &Wanted<'_>,
    fits: &dyn Fn(&[u8]) -> bool,
) -> Result<Option<String>> {
    let mut globs_left = GLOBS_MAX;
    for room in lists {
        for (form, entity) in wanted.names {
            if has_rule(get, *room, (wanted.subject, *form), entity)? {
                return Ok(Some(entity.clone()));
            }
        }
        let (mut found, start) = (None, prefix(*room, wanted.subject, wanted.patterns));
        get.prefix(&POLICY_RULE, &start, &mut |key, _| {
            if globs_left == 0 {
                return Ok(ControlFlow::Break(()));
            }
            globs_left -= 1;
            let glob = key.get(start.len()..key.len().saturating_sub(5)).unwrap_or_default();
            if !fits(glob) {
                return Ok(ControlFlow::Continue(()));
            }
            found = Some(String::from_utf8_lossy(glob).into_owned());
            Ok(ControlFlow::Break(()))
        })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Whether a list has a rule with just that text, of that subject and form.
pub fn has_rule(get: &impl Get, room: RoomNum, (subject, form): (u8, u8), entity: &str) -> Result<bool> {
    let row = [&prefix(room, subject, form)[..], entity.as_bytes(), &[0]].concat();
    Ok(get.first_in_prefix(&POLICY_RULE, &row)?.is_some())
}

/// How often a rule kept somebody out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    pub count: u64,
    pub last_ms: u64,
    /// Whom last, and from what.
    pub last: String,
}

pub fn hits(get: &impl Get, subject: u8, entity: &str) -> Result<Option<Hits>> {
    let key = hit_key(subject, entity);
    let Some(value) = get.get(&POLICY_HIT, &key)? else { return Ok(None) };
    let mut unpack = Unpack::new(&value);
    let read = (|| Some(Hits { count: unpack.u64()?, last_ms: unpack.u64()?, last: unpack.text()?.to_owned() }))();
    read.map(Some).ok_or_else(|| Error::corrupt(&POLICY_HIT, &key))
}

/// Adds to what a rule kept out.
pub fn add_hits(w: &mut Write, subject: u8, entity: &str, new: &Hits) -> Result<()> {
    let before = hits(w, subject, entity)?.unwrap_or_default();
    let mut value = Vec::with_capacity(32 + new.last.len());
    put_u64(&mut value, before.count.saturating_add(new.count));
    put_u64(&mut value, new.last_ms);
    put_bytes(&mut value, new.last.as_bytes());
    w.put(&POLICY_HIT, &hit_key(subject, entity), &value)
}

/// At most `most` keys of what rules kept out, behind one: subject, what the rule names.
pub fn hits_after(get: &impl Get, after: &[u8], most: usize) -> Result<Vec<Vec<u8>>> {
    let (from, mut found) = ([after, &[0]].concat(), Vec::new());
    get.range(&POLICY_HIT, &from, None, false, &mut |key, _| {
        found.push(key.to_vec());
        Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

pub fn remove_hits(w: &mut Write, key: &[u8]) -> Result<()> {
    w.remove(&POLICY_HIT, key).map(drop)
}

fn hit_key(subject: u8, entity: &str) -> Vec<u8> {
    [&[subject], entity.as_bytes()].concat()
}

fn prefix(room: RoomNum, subject: u8, form: u8) -> [u8; 6] {
    let mut out = [0; 6];
    out[..4].copy_from_slice(&room.to_key());
    (out[4], out[5]) = (subject, form);
    out
}

fn rule_key(room: RoomNum, key: StateKeyNum, rule: &RuleRow) -> Vec<u8> {
    [&prefix(room, rule.subject, rule.form)[..], rule.entity.as_bytes(), &[0], &key.to_key()].concat()
}

fn read_rule(key: &[u8], value: &[u8]) -> Option<RuleRow> {
    let entity = String::from_utf8(key.get(6..key.len().checked_sub(5)?)?.to_vec()).ok()?;
    let mut unpack = Unpack::new(value.get(4..)?);
    let (subject, form) = (*key.get(4)?, *key.get(5)?);
    Some(RuleRow { subject, form, entity, takedown: unpack.u8()? != 0, reason: unpack.text()?.to_owned() })
}
