//! Keeping stored data about other servers within bounds: their keys, and their failures.
//!
//! A caller that names a server to us makes us look it up, and the result, also an empty one, is written down. Beyond
//! [`KEYS_MAX`] and [`STANDINGS_MAX`] servers the oldest go: keys are fetched again when they are needed, and a server
//! that failed months ago deserves a new try. The keys of servers in our rooms stay, however many names unknown callers
//! make up.
//!
//! A sweep is two passes over a table, [`ROWS_A_STEP`] rows at a time. It remembers how many rows are how many days old.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ruma::OwnedServerName;

use super::Remote;
use crate::base::{self, Worker};
use crate::store::tables::room::member;
use crate::store::tables::server::{self, Standing, signing_key};
use crate::store::{self, Read, Write, WriteError};

/// Servers whose keys are kept. The largest rooms have people of some thousands; each is about 1 KiB, 20 KiB at worst.
const KEYS_MAX: u64 = 16 * 1024;
/// Servers whose failures are kept; about 100 bytes each.
const STANDINGS_MAX: u64 = 16 * 1024;
/// No backoff lasts longer than a day: a server that was not asked for so many days may be asked anew.
const STANDING_DAYS_MAX: usize = 30;
const ROWS_A_STEP: usize = 500;
const PAUSE: Duration = Duration::from_millis(20);
/// A sweep follows after so many rows written, or after a day.
const ROWS_MIN: u64 = 1000;
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// Older rows count as this old.
const DAYS_MAX: usize = 400;
const DAY_MS: u64 = 24 * 3_600_000;

/// Decides when a sweep is due.
#[derive(Default)]
pub(super) struct Due {
    rows: AtomicU64,
    at_ms: AtomicU64,
}

impl Due {
    pub fn written(&self, rows: usize) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    fn is_now(&self, now_ms: u64) -> bool {
        let at = self.at_ms.load(Ordering::Relaxed);
        if at != 0 && now_ms < at && self.rows.load(Ordering::Relaxed) < ROWS_MIN {
            return false;
        }
        self.rows.store(0, Ordering::Relaxed);
        self.at_ms.store(now_ms + EVERY.as_millis() as u64, Ordering::Relaxed);
        // Not at the start, which has enough other work.
        at != 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Keys,
    Standings,
}

impl Table {
    /// Visits servers in order of name, each with the age in days of its stored data.
    fn ages(
        self,
        read: &Read,
        after: Option<&OwnedServerName>,
        now_ms: u64,
        visit: &mut dyn FnMut(OwnedServerName, usize) -> ControlFlow<()>,
    ) -> store::Result<()> {
        let days = |at_ms: u64| (now_ms.saturating_sub(at_ms) / DAY_MS).min(DAYS_MAX as u64) as usize;
        let after = after.map(|name| &**name);
        match self {
            Table::Keys => signing_key::fetched(read, after, &mut |name, at_ms| Ok(visit(name, days(at_ms)))),
            Table::Standings => {
                server::standings(read, after, &mut |name, standing| Ok(visit(name, days(standing.retry_at_ms))))
            }
        }
    }

    fn remove(self, write: &mut Write, name: &OwnedServerName) -> store::Result<()> {
        match self {
            Table::Keys => signing_key::remove(write, name),
            Table::Standings => server::set_standing(write, name, Standing::default()),
        }
    }
}

/// The rows to keep: all younger than a number of days, and a number of those of just that age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keep {
    days: usize,
    rest: u64,
}

impl Keep {
    /// At most `most` rows, the youngest. `counts`: rows by their age in days.
    fn youngest(counts: &[u64], most: u64) -> Keep {
        let mut left = most;
        for (days, count) in counts.iter().enumerate() {
            if *count > left {
                return Keep { days, rest: left };
            }
            left -= count;
        }
        Keep { days: counts.len(), rest: 0 }
    }

    fn has_place_for(&mut self, days: usize) -> bool {
        if days == self.days && self.rest > 0 {
            self.rest -= 1;
            return true;
        }
        days < self.days
    }
}

impl Remote {
    /// Sweeps both tables when due. A database that cannot be read or written is left for the next time.
    pub(super) async fn sweep_if_due(&self, worker: &Worker) {
        if !self.0.due.is_now(self.0.clock.now_ms()) {
            return;
        }
        for (table, most, days_max) in
            [(Table::Keys, KEYS_MAX, DAYS_MAX + 1), (Table::Standings, STANDINGS_MAX, STANDING_DAYS_MAX)]
        {
            worker.works_on(format_args!("forgetting {table:?} of servers long not seen"));
            match self.sweep(table, most, days_max).await {
                Ok(0) => {}
                Ok(removed) => {
                    tracing::info!(?table, removed, "rows about servers that were not seen for long were removed")
                }
                Err(error) => {
                    tracing::warn!(%error, "rows about other servers could not be removed");
                    worker.failed(error);
                }
            }
        }
    }

    async fn sweep(&self, table: Table, most: u64, days_max: usize) -> store::Result<u64> {
        let now_ms = self.0.clock.settled_ms();
        let (mut counts, mut after) = (vec![0; DAYS_MAX + 1], None);
        loop {
            let (found, last) = self.step(table, after, now_ms).await?;
            found.iter().for_each(|(_, days)| counts[*days] += 1);
            after = last;
            if after.is_none() {
                break;
            }
        }
        counts.truncate(days_max);
        let (mut keep, mut removed) = (Keep::youngest(&counts, most), 0);
        loop {
            let (mut found, last) = self.step(table, after, now_ms).await?;
            found.retain(|(_, days)| !keep.has_place_for(*days));
            if table == Table::Keys {
                found = self.without_known(found).await?;
            }
            removed += found.len() as u64;
            if !found.is_empty() {
                let written = self
                    .0
                    .store
                    .write_freeing(move |write| found.iter().try_for_each(|(name, _)| table.remove(write, name)));
                written.await.map_err(WriteError::into_inner)?;
            }
            after = last;
            if after.is_none() {
                return Ok(removed);
            }
        }
    }

    /// Leaves out the servers in rooms with local users.
    async fn without_known(
        &self,
        mut found: Vec<(OwnedServerName, usize)>,
    ) -> store::Result<Vec<(OwnedServerName, usize)>> {
        let store = self.0.store.clone();
        base::blocking(move || {
            let (read, mut failed) = (store.read()?, None);
            found.retain(|(name, _)| match member::shares_room(&read, name.as_str()) {
                Ok(is_known) => !is_known,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            });
            failed.map_or(Ok(found), Err)
        })
        .await
    }

    /// Some servers behind `after` with their ages, and the last of them when there may be more.
    async fn step(
        &self,
        table: Table,
        after: Option<OwnedServerName>,
        now_ms: u64,
    ) -> store::Result<(Vec<(OwnedServerName, usize)>, Option<OwnedServerName>)> {
        if after.is_some() {
            self.0.clock.sleep(PAUSE).await;
        }
        let store = self.0.store.clone();
        base::blocking(move || {
            let mut found = Vec::with_capacity(ROWS_A_STEP);
            table.ages(&store.read()?, after.as_ref(), now_ms, &mut |name, days| {
                found.push((name, days));
                if found.len() < ROWS_A_STEP { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            let last = (found.len() == ROWS_A_STEP).then(|| found[ROWS_A_STEP - 1].0.clone());
            Ok((found, last))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::tests::{Lab, name, share_room, us};
    use crate::store::tables::server::signing_key;

    #[test]
    fn the_youngest_are_kept() {
        for (counts, most, days, rest) in
            [(&[3, 2, 5][..], 20, 3, 0), (&[3, 2, 5], 10, 3, 0), (&[3, 2, 5], 7, 2, 2), (&[3, 2, 5], 0, 0, 0)]
        {
            assert_eq!(Keep::youngest(counts, most), Keep { days, rest });
        }
    }

    /// Made-up server names stayed for ever, each with an answer of up to 32 KiB.
    #[tokio::test]
    async fn what_is_known_of_servers_is_bounded() {
        let us = us(&Lab::new(), &[], &[]);
        // One of the oldest, and known here.
        share_room(&us.store, "s1199.example").await;
        let now = us.clock.now_ms();
        let written = us.store.write(move |write| {
            let stored = signing_key::Stored { key: [1; 32], valid_until_ms: now, expired: false };
            for n in 0..1200 {
                // The older the name.
                let (server, at) = (name(&format!("s{n}.example")), now - n * DAY_MS / 100);
                signing_key::set(write, &server, "ed25519:a", &stored)?;
                signing_key::set_answer(write, &server, at, b"{}")?;
                server::set_standing(write, &server, Standing { failures: 3, retry_at_ms: at })?;
            }
            Ok::<_, store::Error>(())
        });
        written.await.unwrap();
        let sweep = async |table, most, days_max| {
            let (us, mut sweep) = (&us, Box::pin(us.remote.sweep(table, most, days_max)));
            loop {
                tokio::select! {
                    biased;
                    removed = &mut sweep => return removed.unwrap(),
                    () = tokio::time::sleep(Duration::from_millis(1)) => us.clock.advance(PAUSE),
                }
            }
        };
        assert_eq!(sweep(Table::Keys, 5000, DAYS_MAX + 1).await, 0);
        assert_eq!(sweep(Table::Keys, 950, DAYS_MAX + 1).await, 249);
        assert_eq!(sweep(Table::Standings, 5000, 10).await, 200, "older than ten days");
        let read = us.store.read().unwrap();
        let known = |n: usize| signing_key::get(&read, &name(&format!("s{n}.example")), "ed25519:a").unwrap().is_some();
        assert!((0..900).all(known) && !(1000..1199).any(known));
        assert!(known(1199), "the keys of a server in our rooms stay");
        let mut left = 0;
        signing_key::fetched(&read, None, &mut |_, _| {
            left += 1;
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        assert_eq!(left, 951);
        assert!(server::standing(&read, &name("s1.example")).unwrap().is_some());
        assert!(server::standing(&read, &name("s1100.example")).unwrap().is_none());
    }
}
