//! Saved sync filters: user and a number counted up from one → the JSON the app sent.

use std::ops::ControlFlow;

use crate::store::schema::FILTER;
use crate::store::{Error, Get, Result, UserNum, Write, tables};

pub fn get(get: &impl Get, user: UserNum, number: u32) -> Result<Option<Vec<u8>>> {
    get.get(&FILTER, &row(user, number))
}

/// The number of a filter with exactly this text, if there is one. Bounded by the cap on filters of one user.
pub fn find(get: &impl Get, user: UserNum, json: &[u8]) -> Result<Option<u32>> {
    let mut found = None;
    get.prefix(&FILTER, &user.to_key(), &mut |row, value| {
        if value != json {
            return Ok(ControlFlow::Continue(()));
        }
        found = Some(number(row)?);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// Adds a filter under the next number and forgets the oldest beyond `most`.
pub fn add(w: &mut Write<'_>, user: UserNum, json: &[u8], most: u32) -> Result<u32> {
    let next = match w.last_in_prefix(&FILTER, &user.to_key())? {
        Some((row, _)) => number(&row)? + 1,
        None => 1,
    };
    w.put(&FILTER, &row(user, next), json)?;
    while let Some((oldest, _)) = w.first_in_prefix(&FILTER, &user.to_key())? {
        if next - number(&oldest)? < most {
            break;
        }
        w.remove(&FILTER, &oldest)?;
    }
    Ok(next)
}

pub fn remove_user(w: &mut Write<'_>, user: UserNum) -> Result<()> {
    tables::remove_all(w, &FILTER, &user.to_key())
}

fn row(user: UserNum, number: u32) -> Vec<u8> {
    [user.to_key().as_slice(), &number.to_be_bytes()].concat()
}

fn number(row: &[u8]) -> Result<u32> {
    let bytes = row.get(4..).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_be_bytes).ok_or_else(|| Error::corrupt(&FILTER, row))
}
