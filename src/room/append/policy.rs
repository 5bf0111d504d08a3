//! The rules of policy lists that the server follows ("Moderation policy lists"): a row for each, by what it names.
//!
//! Only rooms that the settings name have any; for others a look at one row that is not there is all, and only where the state
//! that changes is of no type that rooms live by.

use super::derived::{Derived, StateChange};
use crate::matrix::policy::{Form, Rule, rule};
use crate::matrix::{Event, RoomVersion, version};
use crate::room::state::event::load_row;
use crate::store::tables::room::current_state::NewState;
use crate::store::tables::room::event_row::{Kind, Row};
use crate::store::tables::room::policy::RuleRow;
use crate::store::tables::room::{self, event, policy};
use crate::store::{Change, Get, Result, RoomNum, Write};

pub struct PolicyRules;

impl Derived for PolicyRules {
    fn on_state(&self, w: &mut Write<'_>, change: &mut StateChange<'_>) -> Result<()> {
        if change.kind != Kind::OTHER || !policy::is_followed(w, &change.room.id)? {
            return Ok(());
        }
        let Some(version) = version::get(&change.room.version) else { return Ok(()) };
        let before = change.before.map(|row| Ok::<_, crate::store::Error>((row.state_key, read(w, version, row)?)));
        if let Some((Some(key), Some(rule))) = before.transpose()? {
            // A rule that only gives another reason keeps its count.
            let after = change.after.as_ref().map(|(_, row)| read(w, version, row)).transpose()?.flatten();
            let same =
                |after: &RuleRow| (after.subject, after.form, &after.entity) == (rule.subject, rule.form, &rule.entity);
            if !after.as_ref().is_some_and(same) {
                policy::remove_rule(w, change.num, key, None, &rule)?;
                tell(w);
            }
        }
        if let Some((num, row)) = &change.after {
            put(w, change.num, version, *num, row)?;
        }
        Ok(())
    }

    fn on_redact(&self, w: &mut Write<'_>, event: &Event, row: &Row) -> Result<()> {
        if row.kind != Kind::OTHER || row.state_key.is_none() {
            return Ok(());
        }
        let Some(rule) = rule(event.kind(), event.content().as_bytes()).map(row_of) else { return Ok(()) };
        let of = event::num(w, event.id().as_str())?;
        if let (Some(key), true) = (row.state_key, of.is_some())
            && policy::remove_rule(w, row.room, key, of, &rule)?
        {
            tell(w);
        }
        Ok(())
    }

    fn build_from_state(&self, w: &mut Write<'_>, room: RoomNum, batch: &[NewState]) -> Result<()> {
        let of = room::get_of(w, room)?;
        if !policy::is_followed(w, &of.id)? {
            return Ok(());
        }
        let Some(version) = version::get(&of.version) else { return Ok(()) };
        for new in batch.iter().filter(|new| new.kind == Kind::OTHER) {
            let row = event::row_of(w, new.event)?;
            put(w, room, version, new.event, &row)?;
        }
        Ok(())
    }

    fn forget(&self, w: &mut Write<'_>, room: RoomNum, rows_max: usize) -> Result<usize> {
        let removed = policy::forget(w, room, rows_max)?;
        if removed > 0 {
            tell(w);
        }
        Ok(removed)
    }
}

/// Writes the rule that an event of the present state is; none where it is no rule.
pub fn put(
    w: &mut Write<'_>,
    room: RoomNum,
    version: &'static RoomVersion,
    num: crate::store::EventNum,
    row: &Row,
) -> Result<()> {
    let (Some(key), Some(rule)) = (row.state_key, read(w, version, row)?) else { return Ok(()) };
    if rule.form == Form::TooWide as u8 {
        tracing::warn!(rule = %rule.entity, "a rule of a policy list that fits everybody is not followed");
    }
    policy::put_rule(w, room, key, num, &rule)?;
    tell(w);
    Ok(())
}

/// The rules are others than before.
pub fn tell(w: &mut Write<'_>) {
    w.announce(Change { policies: true, ..Change::default() });
}

fn read(get: &impl Get, version: &'static RoomVersion, row: &Row) -> Result<Option<RuleRow>> {
    let event = load_row(get, version, row)?;
    Ok(rule(event.kind(), event.content().as_bytes()).map(row_of))
}

fn row_of(rule: Rule) -> RuleRow {
    let Rule { subject, form, entity, takedown, reason } = rule;
    RuleRow { subject: subject as u8, form: form as u8, entity, takedown, reason }
}
