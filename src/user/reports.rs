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

    /// The numbers of the reports at the ranks `from..from + most` among those that are wanted, and how many these are. All reports are
    /// read, one at a time, 2,000 at most.
    pub async fn find_reports(
        &self,
        wanted: impl Fn(&Report) -> bool + Send + 'static,
        backwards: bool,
        from: usize,
        most: usize,
    ) -> Result<(Vec<u32>, usize), Error> {
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
            let total = numbers.len();
            numbers.drain(..from.min(total));
            numbers.truncate(most);
            Ok((numbers, total))
        })
        .await
    }

    /// A report, for a long answer: it blocks. None for a number that is none, or none any more.
    pub fn report_now(&self, number: u32) -> Result<Option<Report>, Error> {
        let found = report::list(&self.0.parts.store.read()?, number.saturating_sub(1), 1)?.pop();
        Ok(found.filter(|(at, _)| *at == number).map(|(_, report)| report))
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
