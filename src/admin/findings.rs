//! What is not all right with the running server: one sentence for each thing, the same for `snug check`, the owner's page
//! and whoever watches the server.
//!
//! A source is a small function that looks at what a part knows anyway. It walks nothing and asks nobody, so that the list
//! may be asked for often. Sources of what this part may name are here; `serve` passes the others ([`Source`]). Bounded:
//! a source says a handful of sentences, each of a few hundred characters.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::{Admin, Registered, error::Error};
use crate::backup;
use crate::base::{Doing, Status, Workers, blocking, bounded, caught, date, sort_few_by, span};
use crate::budget::{Account, WhenEmpty};
use crate::certificates::ending;
use crate::http::{Request, Response};

/// How much a finding matters, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; nothing has to be done.
    Note,
    /// Something does not work, or soon will not, until somebody does something.
    Warning,
    /// The server cannot do what it is for: nothing can be stored, so messages are refused.
    Down,
}

/// One thing that is not all right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// What it is about: a word that does not change, for sorting and for alarms.
    pub about: &'static str,
    /// What is so, and what to do, for a person. Plain text: names in it may be other people's choice.
    pub sentence: String,
}

impl Finding {
    pub fn note(about: &'static str, sentence: impl Into<String>) -> Finding {
        Finding { severity: Severity::Note, about, sentence: sentence.into() }
    }

    pub fn warning(about: &'static str, sentence: impl Into<String>) -> Finding {
        Finding { severity: Severity::Warning, about, sentence: sentence.into() }
    }

    pub fn down(about: &'static str, sentence: impl Into<String>) -> Finding {
        Finding { severity: Severity::Down, about, sentence: sentence.into() }
    }
}

/// What one part has to say now. It may look at files, and does not wait for anybody.
pub type Source = Box<dyn Fn() -> Vec<Finding> + Send + Sync>;

/// An account is said to refuse while its last refusal is younger.
const REFUSED_LATELY: Duration = Duration::from_secs(3600);
/// A worker is said to fail after so many failures without anything done between them, and while the last is younger.
const FAILURES_MIN: u32 = 3;
const FAILED_LATELY_MS: u64 = 24 * 3_600_000;
/// A backup made by hand is enough for so long.
const BY_HAND_MS: u64 = 30 * 24 * 3_600_000;
/// For so long it is said that a server was restored.
const RESTORED_LATELY_MS: u64 = 7 * 24 * 3_600_000;
/// Characters of a worker's error.
const ERROR_CHARS_MAX: usize = 200;
/// Characters of what is wrong with a registration, which says what to do.
const REGISTRATION_CHARS_MAX: usize = 500;
/// Accounts named in one sentence, and registrations of which something is said.
const NAMED_MAX: usize = 4;
/// Reports that are counted; beyond them it is "many".
const REPORTS_MAX: usize = 100;

/// All findings, the worst first; none when all is well.
pub async fn findings(admin: &Arc<Admin>) -> Vec<Finding> {
    let below = admin.clone();
    let looked = blocking(move || {
        let mut found: Vec<Finding> = below.sources.iter().flat_map(looked_at).collect();
        found.extend(workers(&below.workers, below.clock.now_ms()));
        found.extend(memory(below.budget.accounts()));
        found.extend(certificates(&below));
        found.extend(services(&below.registrations.list()));
        found.extend(
            below.backups.status().map(|status| backups(&status, below.clock.settled_ms())).unwrap_or_default(),
        );
        found
    });
    let mut found = looked.await;
    found.extend(reports(admin).await);
    sort_few_by(&mut found, |finding| std::cmp::Reverse(finding.severity));
    found
}

/// What one source says; a fault in it hides nothing of the others.
fn looked_at(source: &Source) -> Vec<Finding> {
    caught(source).unwrap_or_else(|panicked| {
        let why = panicked.say();
        tracing::error!("a source of findings panicked: {why}");
        vec![Finding::warning("program", format!("A fault of the program hides something here: {why}."))]
    })
}

/// Backups that failed, or are old, where some are to be made; and that this is a restored server.
fn backups(status: &backup::Status, now_ms: u64) -> Vec<Finding> {
    let (mut found, noted) = (Vec::new(), &status.noted);
    let age = noted.scheduled_ms.map(|made| now_ms.saturating_sub(made));
    let last = age.map_or("There is none yet.".to_owned(), |age| format!("The last one is {} old.", span(age)));
    if status.is_scheduled && status.running.is_none() {
        match &noted.why {
            Some(why) => {
                let why = bounded(why, ERROR_CHARS_MAX);
                found.push(Finding::warning("backup", format!("The last backup failed: {why}. {last}")));
            }
            None if age.is_some_and(|age| age > backup::OLD_MS) => {
                found.push(Finding::warning("backup", format!("No backup was made when one was due. {last}")));
            }
            None => {}
        }
    }
    let made_ms = noted.made_ms.filter(|made_ms| now_ms.saturating_sub(*made_ms) < BY_HAND_MS);
    if !status.is_scheduled && status.running.is_none() && made_ms.is_none() {
        let last = match noted.made_ms {
            Some(made_ms) => format!("the last one is {} old", span(now_ms.saturating_sub(made_ms))),
            None => "there is none yet".to_owned(),
        };
        let sentence = format!(
            "No backups are made by themselves, and {last}: a memory card fails one day, and everything that people wrote here with it."
        );
        found.push(Finding::note("backup", sentence));
    }
    if let (Some(at), Some(from)) = (noted.restored_ms, noted.restored_from_ms)
        && now_ms.saturating_sub(at) < RESTORED_LATELY_MS
    {
        let ago = span(now_ms.saturating_sub(at));
        let sentence = format!(
            "This server was restored {ago} ago from a backup of {}: sessions, passwords and keys are as they were then.",
            date(from)
        );
        found.push(Finding::note("restored", sentence));
    }
    found
}

/// `GET /findings`: the list for the commands.
pub async fn list(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    Ok(Response::json(&json!({ "findings": findings(&admin).await })))
}

/// Workers that panicked, or that fail again and again.
fn workers(workers: &Workers, now_ms: u64) -> Vec<Finding> {
    workers.list().into_iter().filter_map(|worker| of_worker(&worker, now_ms)).collect()
}

fn of_worker(worker: &Status, now_ms: u64) -> Option<Finding> {
    let (at_ms, error) = worker.error.as_ref()?;
    let is_late = now_ms.saturating_sub(*at_ms) < FAILED_LATELY_MS;
    let (name, error) = (worker.name, bounded(error, ERROR_CHARS_MAX));
    let how = match &worker.doing {
        Doing::Panicked => "stopped by a fault of the program and is started again".to_owned(),
        _ if worker.restarts > 0 && is_late => {
            format!("was started again {} times after faults of the program", worker.restarts)
        }
        _ if worker.failures >= FAILURES_MIN && is_late => format!("failed {} times in a row", worker.failures),
        _ => return None,
    };
    Some(Finding::warning("workers", format!("The worker \"{name}\" {how}; the last error: {error}.")))
}

/// Accounts that had no memory left for somebody lately. A cache that is full only forgets something.
fn memory(accounts: &[Account]) -> Vec<Finding> {
    let refused = accounts.iter().filter_map(|account| {
        let ago = account.refused_ago().filter(|ago| *ago < REFUSED_LATELY)?;
        (account.row().when_empty != WhenEmpty::DropCache).then_some((account, ago))
    });
    let mut refused: Vec<_> = refused.collect();
    sort_few_by(&mut refused, |(_, ago)| *ago);
    let Some((_, last)) = refused.first() else { return Vec::new() };
    let ago = span(last.as_millis() as u64);
    let named: Vec<_> = refused
        .iter()
        .take(NAMED_MAX)
        .map(|(account, _)| format!("{} ({} times since the start)", account.name(), account.refusals()))
        .collect();
    let more = match refused.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    vec![Finding::note(
        "memory",
        format!(
            "Some requests had to wait or try again, the last {ago} ago, since a memory account was used up: {}{more}. \
             `snug budget` shows all of them.",
            named.join(", ")
        ),
    )]
}

/// Registrations of application services with something wrong in them.
fn services(registered: &[Registered]) -> Vec<Finding> {
    let wrong = registered.iter().filter_map(|row| Some((&row.file, row.error.as_ref()?)));
    let said = wrong.take(NAMED_MAX).map(|(file, why)| {
        let why = bounded(why, REGISTRATION_CHARS_MAX);
        Finding::warning("appservice", format!("Application service {file}: {why}."))
    });
    said.collect()
}

/// Certificates that end soon, and why there is none. What is asked for and not refused yet is no finding.
fn certificates(admin: &Admin) -> Vec<Finding> {
    let now_ms = admin.clock.now_ms();
    let ends = admin.shown.iter().filter_map(|(what, certificate)| {
        let warning = ending(what, certificate, &admin.certificates, &admin.clock)?;
        Some(Finding::warning("certificate", warning.sentence))
    });
    let mut found: Vec<Finding> = ends.collect();
    let status = admin.certificates.status();
    if let Some(said) = status.said.filter(|_| found.is_empty()) {
        let again = status.next_ms.filter(|next_ms| *next_ms > now_ms);
        let again = again.map_or(String::new(), |next_ms| format!(" It is tried again in {}.", span(next_ms - now_ms)));
        found.push(Finding::warning("certificate", said + &again));
    }
    found
}

/// Reports that nobody has looked at yet.
async fn reports(admin: &Admin) -> Option<Finding> {
    let count = match admin.users.count_reports_up_to(REPORTS_MAX).await {
        Ok(0) => return None,
        Ok(1) => "One report".to_owned(),
        Ok(REPORTS_MAX) => "Many reports".to_owned(),
        Ok(count) => format!("{count} reports"),
        Err(error) => return Some(Finding::warning("reports", format!("Reports cannot be read: {error}."))),
    };
    Some(Finding::note("reports", format!("{count} by people here wait for an answer: `snug reports` shows them.")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Clock, Worker};
    use crate::budget::Budget;

    #[test]
    fn a_worker_that_fails_once_is_none_that_keeps_failing() {
        let (clock, workers_of) = (Clock::simulated(1_000), Workers::default());
        let worker: Worker = workers_of.add("sweep", &clock);
        let found = || workers(&workers_of, clock.now_ms());
        worker.failed("one");
        worker.failed("two");
        assert_eq!(found(), []);
        worker.failed("three");
        assert!(found()[0].sentence.contains("\"sweep\" failed 3 times in a row; the last error: three."));
        clock.advance(Duration::from_millis(FAILED_LATELY_MS));
        assert_eq!(found(), [], "that was yesterday");
        worker.failed("four");
        assert_eq!(found().len(), 1);
        worker.done(1);
        assert_eq!(found(), [], "it works again");
    }

    #[test]
    fn accounts_that_refuse_are_named_and_caches_are_not() {
        let budget = Budget::for_tests();
        assert_eq!(memory(budget.accounts()), []);
        for account in budget.accounts() {
            let _ = account.try_take(u64::MAX);
        }
        let found = memory(budget.accounts());
        let caches = budget.accounts().iter().filter(|account| account.row().when_empty == WhenEmpty::DropCache);
        let more = budget.accounts().len() - caches.count() - NAMED_MAX;
        assert_eq!(found.len(), 1);
        assert!(found[0].sentence.contains(&format!("and {more} more")), "{}", found[0].sentence);
        assert_eq!(found[0].severity, Severity::Note);
    }
}
