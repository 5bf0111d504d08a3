//! The log of changed profiles, for the apps that follow them.
//!
//! Only the latest change of a field is kept, and only the latest of a user stands in the log itself. So the log is never
//! longer than the list of local users, and a user's part of it never longer than the profile and the fields that were
//! lately removed.

use std::ops::ControlFlow;

use crate::store::schema::{PROFILE_CHANGE, PROFILE_FIELD_CHANGE};
use crate::store::{Error, Get, Position, Result, UserNum, Write, tables};

/// Removed fields of which each user's removal is remembered, those removed last: at most 64 rows of 270 bytes. An app that
/// asks since before an older removal goes on showing the field.
const REMOVED_MAX: usize = 64;

/// Notes that a field of a local user's profile was set or removed, at a position of its own. Reads a row for each field
/// that the user has or lately had when it was removed.
pub fn changed(w: &mut Write<'_>, user: UserNum, field: &str, is_removed: bool) -> Result<Position> {
    debug_assert!(!field.is_empty(), "a field has a name");
    let position = w.next_position();
    if let Some(before) = last(w, user)? {
        w.remove(&PROFILE_CHANGE, &before.to_key())?;
    }
    w.put(&PROFILE_CHANGE, &position.to_key(), &user.to_key())?;
    w.put(&PROFILE_FIELD_CHANGE, &key(user, ""), &position.to_key())?;
    w.put(&PROFILE_FIELD_CHANGE, &key(user, field), &[&position.to_key()[..], &[u8::from(is_removed)]].concat())?;
    if is_removed {
        forget_removed(w, user)?;
    }
    Ok(position)
}

fn forget_removed(w: &mut Write<'_>, user: UserNum) -> Result<()> {
    let mut removed = Vec::new();
    each(w, user, &mut |field, at, is_removed| {
        if is_removed {
            removed.push((at, field.to_owned()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    removed.sort_unstable();
    for (_, field) in &removed[..removed.len().saturating_sub(REMOVED_MAX)] {
        w.remove(&PROFILE_FIELD_CHANGE, &key(user, field))?;
    }
    Ok(())
}

/// Forgets all changes of a user whose account is closed.
pub fn remove_user(w: &mut Write<'_>, user: UserNum) -> Result<()> {
    if let Some(last) = last(w, user)? {
        w.remove(&PROFILE_CHANGE, &last.to_key())?;
    }
    tables::remove_all(w, &PROFILE_FIELD_CHANGE, &user.to_key())
}

/// The position of a user's latest change.
fn last(get: &impl Get, user: UserNum) -> Result<Option<Position>> {
    let key = key(user, "");
    let Some(value) = get.get(&PROFILE_FIELD_CHANGE, &key)? else { return Ok(None) };
    Position::from_key(&value).map(Some).ok_or_else(|| Error::corrupt(&PROFILE_FIELD_CHANGE, &key))
}

/// Visits the users whose profiles changed after `since`, up to and with `to`, in the order of their last changes.
pub fn users(
    get: &impl Get,
    since: Position,
    to: Position,
    visit: &mut dyn FnMut(UserNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let (from, end) = tables::after_up_to(&[], since, to);
    get.range(&PROFILE_CHANGE, &from, Some(&end), false, &mut |key, value| {
        visit(UserNum::from_key(value).ok_or_else(|| Error::corrupt(&PROFILE_CHANGE, key))?)
    })
}

/// The names of the fields of one user that changed after `since`. Bounded by the limits of a profile.
pub fn fields(get: &impl Get, user: UserNum, since: Position) -> Result<Vec<String>> {
    let mut fields = Vec::new();
    each(get, user, &mut |field, at, _| {
        if at > since {
            fields.push(field.to_owned());
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(fields)
}

/// Visits a user's changed fields by name: the position of the latest change, and whether that was its removal.
fn each(
    get: &impl Get,
    user: UserNum,
    visit: &mut dyn FnMut(&str, Position, bool) -> Result<ControlFlow<()>>,
) -> Result<()> {
    get.prefix(&PROFILE_FIELD_CHANGE, &user.to_key(), &mut |key, value| {
        let corrupt = || Error::corrupt(&PROFILE_FIELD_CHANGE, key);
        let field = std::str::from_utf8(&key[4..]).map_err(|_| corrupt())?;
        if field.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let (at, is_removed) = value.split_at_checked(8).ok_or_else(corrupt)?;
        visit(field, Position::from_key(at).ok_or_else(corrupt)?, is_removed == [1])
    })
}

fn key(user: UserNum, field: &str) -> Vec<u8> {
    [&user.to_key()[..], field.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn the_log_has_the_latest_change_of_each_user_and_few_removals() {
        let store = Store::in_memory();
        let (anna, bob) = (UserNum(1), UserNum(2));
        let since = |w: &Write<'_>, since: Position| {
            let mut found = Vec::new();
            users(w, since, Position(u64::MAX - 1), &mut |user| {
                found.push(user);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok::<_, Error>(found)
        };
        let job = move |w: &mut Write<'_>| {
            let first = changed(w, anna, "displayname", false)?;
            let second = changed(w, bob, "m.tz", false)?;
            assert_eq!(since(w, Position(0))?, [anna, bob]);
            let third = changed(w, anna, "m.tz", false)?;
            assert_eq!(since(w, Position(0))?, [bob, anna]);
            assert_eq!(since(w, second)?, [anna]);
            assert_eq!(fields(w, anna, Position(0))?, ["displayname", "m.tz"]);
            assert_eq!(fields(w, anna, first)?, ["m.tz"]);
            assert!(fields(w, anna, third)?.is_empty());
            for n in 0..REMOVED_MAX + 3 {
                changed(w, anna, &format!("x{n:03}"), true)?;
            }
            let kept = fields(w, anna, third)?;
            assert_eq!((kept.len(), kept[0].as_str()), (REMOVED_MAX, "x003"));
            assert_eq!(fields(w, anna, first)?.len(), REMOVED_MAX + 1, "what is set stays");
            remove_user(w, anna)?;
            assert_eq!(since(w, Position(0))?, [bob]);
            assert!(fields(w, anna, Position(0))?.is_empty());
            Ok::<_, Error>(())
        };
        store.write_blocking(job).unwrap();
    }
}
