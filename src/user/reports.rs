//! What users report to the administrator: events, rooms, other users (client-server API, "Reporting Content").

use crate::base::bounded;
use crate::store::tables::user;
use crate::store::tables::user::report;
use crate::user::{Error, Requester, Users};

pub use crate::store::tables::user::report::Report;

/// Characters of a reason; Synapse's bound.
pub const REASON_CHARS_MAX: usize = 1_000;
/// Characters kept of a reported event's text.
const EXCERPT_CHARS_MAX: usize = 300;

/// What the texts of one page of reports take, in bytes: behind the report that reaches it the page ends. One has 6 KiB at most.
const FOUND_BYTES_MAX: usize = 24 * 1024;

/// What is reported.
#[derive(Debug, Clone, Default)]
pub struct Reported {
    pub room_id: Option<String>,
    pub event_id: Option<String>,
    /// The reported user, or the sender of the reported event.
    pub user_id: Option<String>,
    pub reason: Option<String>,
    pub score: Option<i64>,
    /// The reported event's text.
    pub text: Option<String>,
}

impl Users {
    /// Keeps a report for the administrator; its reason and excerpt are cut to what is kept of one. Answers its number.
    pub async fn report(&self, requester: &Requester, reported: Reported) -> Result<u32, Error> {
        let (by, at_ms) = (requester.user_num, self.now_ms());
        let Reported { room_id, event_id, user_id, reason, score, text } = reported;
        let report = Report {
            at_ms,
            by: requester.user_id.to_string(),
            room_id,
            event_id,
            user_id,
            reason: reason.map(|reason| bounded(reason, REASON_CHARS_MAX)).filter(|reason| !reason.is_empty()),
            score,
            excerpt: text.map(|text| bounded(text, EXCERPT_CHARS_MAX)),
        };
        // Only of events a bot can be told.
        let is_owed = self.tells_reports() && report.event_id.is_some();
        let number = self.write(move |w| Ok(report::add(w, by, &report, is_owed)?)).await?;
        if is_owed {
            self.owes_report();
        }
        tracing::warn!(by = %requester.user_id, number, "something was reported: `snug reports` shows it");
        Ok(number)
    }

    /// Whether a user is known here, of this server or another.
    pub async fn is_known(&self, user_id: &ruma::UserId) -> Result<bool, Error> {
        let (user_id, is_ours) = (user_id.to_owned(), user_id.server_name() == self.server());
        self.read(move |get| match user::num(get, user_id.as_str())? {
            Some(num) => Ok(!is_ours || user::is_local(get, num)?),
            None => Ok(false),
        })
        .await
    }

    /// At most `most` reports behind a number, oldest first.
    pub async fn reports(&self, after: u32, most: usize) -> Result<Vec<(u32, Report)>, Error> {
        self.read(move |get| Ok(report::list(get, after, most)?)).await
    }

    /// The number of reports, counted up to `most`.
    pub async fn count_reports_up_to(&self, most: usize) -> Result<usize, Error> {
        self.read(move |get| Ok(report::count_up_to(get, most)?)).await
    }

    /// The reports of the ranks `from..from + most` among those that are wanted, and how many these are: fewer where their texts
    /// are long. All reports are read, 2,000 at most.
    pub async fn find_reports(
        &self,
        wanted: impl Fn(&Report) -> bool + Send + 'static,
        backwards: bool,
        from: usize,
        most: usize,
    ) -> Result<(Vec<(u32, Report)>, usize), Error> {
        self.read(move |get| {
            let (mut after, mut numbers) = (0, Vec::new());
            while let Some((number, report)) = report::list(get, after, 1)?.pop() {
                after = number;
                if wanted(&report) {
                    numbers.push(number);
                }
            }
            if backwards {
                numbers.reverse();
            }
            let (mut page, total, mut bytes) = (Vec::new(), numbers.len(), 0);
            for number in numbers.into_iter().skip(from).take(most) {
                let found = report::list(get, number - 1, 1)?;
                bytes += found.iter().map(|(_, report)| text_bytes(report)).sum::<usize>();
                page.extend(found);
                if bytes >= FOUND_BYTES_MAX {
                    break;
                }
            }
            Ok((page, total))
        })
        .await
    }

    /// Removes a report. `NotFound` when there is none of that number.
    pub async fn remove_report(&self, number: u32) -> Result<(), Error> {
        self.write(move |w| match report::remove(w, number)? {
            true => Ok(()),
            false => Err(Error::NotFound("report")),
        })
        .await
    }
}

/// Bytes of the texts of a report.
fn text_bytes(report: &Report) -> usize {
    let Report { by, room_id, event_id, user_id, reason, excerpt, .. } = report;
    by.len() + [room_id, event_id, user_id, reason, excerpt].into_iter().flatten().map(String::len).sum::<usize>()
}
