//! What users reported to this server's administrator: number, counted up → the report. Those that a bot is still to be told of are
//! noted beside it, and the note ends with the report.
//!
//! The newest are kept: of one user so many, and of all together so many, where whoever reported most loses the oldest.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::{REPORT, REPORT_BY, REPORT_OWED};
use crate::store::{Error, Get, Result, UserNum, Write};

/// Reports kept of one user, and of all. One has 6 KiB at most (1,000 and 300 characters, three ids of 255 bytes): 12 MiB on
/// disk when everybody writes as much as they may.
const OF_ONE_MAX: usize = 100;
const ALL_MAX: usize = 2_000;

/// A report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub at_ms: u64,
    /// The user who reported.
    pub by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// The reported user, or the sender of the reported event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// From -100, the most offensive, to 0; of old apps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<i64>,
    /// The beginning of the reported event's text, which may be redacted later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<String>,
}

/// Keeps a report, and notes that a bot is to be told of it when it `is_owed`; answers its number. Bounded by the reports that are
/// kept, some bytes each.
pub fn add(w: &mut Write<'_>, by: UserNum, report: &Report, is_owed: bool) -> Result<u32> {
    let next = match w.last_in_prefix(&REPORT, b"")? {
        Some((row, _)) => number(&row)? + 1,
        None => 1,
    };
    let mut of: BTreeMap<UserNum, Vec<u32>> = BTreeMap::new();
    let mut all = 0;
    w.prefix(&REPORT_BY, b"", &mut |row, _| {
        let user = UserNum::from_key(&row[..4.min(row.len())]).ok_or_else(|| Error::corrupt(&REPORT_BY, row))?;
        of.entry(user).or_default().push(number(row.get(4..).unwrap_or_default())?);
        all += 1;
        Ok(ControlFlow::Continue(()))
    })?;
    let own = of.get(&by).filter(|own| own.len() >= OF_ONE_MAX).map(|own| (by, own[0]));
    let busiest = || of.iter().max_by_key(|(_, own)| own.len()).map(|(user, own)| (*user, own[0]));
    if let Some((user, oldest)) = own.or_else(|| if all >= ALL_MAX { busiest() } else { None }) {
        w.remove(&REPORT, &oldest.to_be_bytes())?;
        w.remove(&REPORT_OWED, &oldest.to_be_bytes())?;
        w.remove(&REPORT_BY, &by_key(user, oldest))?;
    }
    let text = serde_json::to_vec(report).map_err(|_| Error::corrupt(&REPORT, &next.to_be_bytes()))?;
    w.put(&REPORT, &next.to_be_bytes(), &text)?;
    w.put(&REPORT_BY, &by_key(by, next), b"")?;
    if is_owed {
        w.put(&REPORT_OWED, &next.to_be_bytes(), &[0])?;
    }
    Ok(next)
}

/// The first report behind a number that a bot is to be told of, and how often it would not have it.
pub fn next_owed(get: &impl Get, after: u32) -> Result<Option<(u32, u8, Report)>> {
    let mut found = None;
    get.range(&REPORT_OWED, &after.saturating_add(1).to_be_bytes(), None, false, &mut |row, value| {
        found = Some((number(row)?, value.first().copied().unwrap_or(0)));
        Ok(ControlFlow::Break(()))
    })?;
    let Some((number, times)) = found else { return Ok(None) };
    let row = get.get(&REPORT, &number.to_be_bytes())?;
    let row = row.ok_or_else(|| Error::corrupt(&REPORT_OWED, &number.to_be_bytes()))?;
    let report = serde_json::from_slice(&row).map_err(|_| Error::corrupt(&REPORT, &number.to_be_bytes()))?;
    Ok(Some((number, times, report)))
}

/// Notes how often a bot would not have a report; with nothing, that it is to be told no more.
pub fn set_owed(w: &mut Write<'_>, number: u32, times: Option<u8>) -> Result<()> {
    match times {
        // Removed meanwhile, it is owed no more.
        Some(times) if w.get(&REPORT_OWED, &number.to_be_bytes())?.is_some() => {
            w.put(&REPORT_OWED, &number.to_be_bytes(), &[times])
        }
        Some(_) => Ok(()),
        None => w.remove(&REPORT_OWED, &number.to_be_bytes()).map(drop),
    }
}

/// At most `most` reports behind a number, oldest first.
pub fn list(get: &impl Get, after: u32, most: usize) -> Result<Vec<(u32, Report)>> {
    let mut found = Vec::new();
    get.range(&REPORT, &after.saturating_add(1).to_be_bytes(), None, false, &mut |row, value| {
        found.push((number(row)?, serde_json::from_slice(value).map_err(|_| Error::corrupt(&REPORT, row))?));
        Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// The number of reports, counted up to `most`.
pub fn count_up_to(get: &impl Get, most: usize) -> Result<usize> {
    let mut count = 0;
    get.prefix(&REPORT_BY, b"", &mut |_, _| {
        count += 1;
        Ok(if count < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(count)
}

/// Removes a report. False when there is none of that number.
pub fn remove(w: &mut Write<'_>, number: u32) -> Result<bool> {
    let Some(row) = w.get(&REPORT, &number.to_be_bytes())? else { return Ok(false) };
    let report: Report = serde_json::from_slice(&row).map_err(|_| Error::corrupt(&REPORT, &number.to_be_bytes()))?;
    if let Some(by) = super::num(w, &report.by)? {
        w.remove(&REPORT_BY, &by_key(by, number))?;
    }
    w.remove(&REPORT, &number.to_be_bytes())?;
    w.remove(&REPORT_OWED, &number.to_be_bytes())?;
    Ok(true)
}

fn by_key(by: UserNum, number: u32) -> Vec<u8> {
    [&by.to_key()[..], &number.to_be_bytes()].concat()
}

fn number(row: &[u8]) -> Result<u32> {
    row.try_into().map(u32::from_be_bytes).map_err(|_| Error::corrupt(&REPORT, row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::tables::user;

    #[test]
    fn the_newest_of_each_user_are_kept() {
        let store = Store::in_memory();
        let job = |w: &mut Write<'_>| {
            let report = |by: &str| Report {
                at_ms: 1,
                by: by.to_owned(),
                room_id: None,
                event_id: None,
                user_id: Some("@bad:x".to_owned()),
                reason: None,
                score: None,
                excerpt: None,
            };
            let (anna, bob) = (user::intern(w, "@anna:x")?, user::intern(w, "@bob:x")?);
            assert_eq!(add(w, bob, &report("@bob:x"), false)?, 1);
            for _ in 0..OF_ONE_MAX + 5 {
                add(w, anna, &report("@anna:x"), false)?;
            }
            let all = list(w, 0, usize::MAX)?;
            assert_eq!((all.len(), all[0].0, all[1].0), (OF_ONE_MAX + 1, 1, 7));
            assert_eq!((count_up_to(w, 1_000)?, count_up_to(w, 7)?), (OF_ONE_MAX + 1, 7));
            assert_eq!(list(w, 1, 2)?.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [7, 8]);
            assert!(remove(w, 7)? && !remove(w, 7)? && !remove(w, 2)?);
            assert_eq!(list(w, 1, 1)?[0].0, 8);
            // Each of many users has as many as fit.
            for n in 0..ALL_MAX {
                let by = format!("@{}:x", n % 50);
                let num = user::intern(w, &by)?;
                add(w, num, &report(&by), false)?;
            }
            let all = list(w, 0, usize::MAX)?;
            assert_eq!(all.len(), ALL_MAX);
            assert_eq!(all[0].1.by, "@bob:x", "who reported once loses nothing");
            Ok::<_, Error>(())
        };
        store.write_blocking(job).unwrap();
    }
}
