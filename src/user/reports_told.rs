//! Reports passed on to a moderation bot, as Mjolnir and Draupnir take them ("abuse reports" in their settings): `POST
//! /api/1/report/{room_id}/{event_id}` with what the reporter said, and a token by which the bot asks this server who that is and what
//! the event says. It has no such call for rooms and users, whose reports stay with the administrators.
//!
//! The token is not the reporter's own, with which somebody could do all that the reporter can. It is made for the one request, asks
//! `account/whoami` and for that one event, and ends with it. So there is one at a time, and it is never stored.
//!
//! What is owed is a row beside the report, so no more than reports are kept. A bot that cannot be reached is tried again, ever more
//! seldom, for as long as it takes; one that answers and does not take a report is asked for it [`TIMES_MAX`] times.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use parking_lot::Mutex;
use ruma::{EventId, OwnedUserId, RoomId};
use serde_json::json;
use tokio::sync::Notify;

use super::account::session::token_hash;
use super::{Error, Requester, Users, lookup};
use crate::base::{Live, Worker};
use crate::remote::encode;
use crate::remote::web::{Plain, WebFailed, WebLimits, WebRequest};
use crate::store::tables::user::report;
use crate::store::tables::user::{self, Standing};

/// How often a bot is asked to take a report that it answers for.
const TIMES_MAX: u8 = 5;
/// The whole exchange: the bot asks this server twice before it answers.
const TIME: Duration = Duration::from_secs(30);
/// Between the rounds while something is owed: 10 s, and twice as long each time, an hour at most.
const PAUSE_MIN: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
const TOKEN_CHARS: usize = 43;

/// Where reports go, and the token that is out.
#[derive(Default)]
pub(super) struct Hand {
    to: Live<Option<String>>,
    pass: Mutex<Option<Pass>>,
    changed: Notify,
}

/// What somebody with its token may ask as the reporter.
struct Pass {
    hash: [u8; 32],
    reporter: OwnedUserId,
    room_id: String,
    event_id: String,
}

/// Takes the token back, however the request ends.
struct Out<'a>(&'a Hand);

impl Drop for Out<'_> {
    fn drop(&mut self) {
        *self.0.pass.lock() = None;
    }
}

/// What became of a report.
enum Passed {
    Taken,
    /// The bot answered, and does not take it.
    Refused(String),
    /// It is not there.
    Away(String),
}

impl Users {
    /// Where the reports of events go, from the next one on: a bot's address. With nothing those that are owed wait.
    pub fn set_reports_to(&self, to: Option<String>) {
        self.0.hand.to.set(to);
        self.0.hand.changed.notify_one();
    }

    /// Whether reports go to a bot.
    pub(super) fn tells_reports(&self) -> bool {
        self.0.hand.to.get().is_some()
    }

    /// Something is owed.
    pub(super) fn owes_report(&self) {
        self.0.hand.changed.notify_one();
    }

    /// The reporter, for whoever has the token that a report went out with: to ask who that is, or for the event that it is about.
    /// None for every other token.
    pub async fn reporter(&self, token: &str, event: Option<(&RoomId, &EventId)>) -> Result<Option<Requester>, Error> {
        let reporter = match &*self.0.hand.pass.lock() {
            Some(pass) if pass.hash == token_hash(token) => match event {
                Some((room, event)) if pass.room_id != room.as_str() || pass.event_id != event.as_str() => {
                    return Ok(None);
                }
                _ => pass.reporter.clone(),
            },
            _ => return Ok(None),
        };
        self.read(move |get| {
            let user_num = lookup::local(get, &reporter)?;
            let account = user::account(get, user_num)?;
            let account = account.filter(|account| account.standing != Standing::Deactivated && !account.locked);
            let account = account.ok_or(Error::UnknownToken)?;
            Ok(Some(Requester {
                user_id: reporter,
                user_num,
                device_id: String::new(),
                // No more than what everybody may.
                is_admin: false,
                is_guest: user::is_guest(get, user_num)?,
                is_locked: false,
                is_suspended: account.suspended,
                is_shadow_banned: account.shadow_banned,
                is_bot: account.bot,
                pace: account.pace,
                agreed: account.agreed,
                service: None,
                expires_ms: None,
            }))
        })
        .await
    }

    /// Passes reports on, as long as the server runs. A unit of the worker is a report that was taken.
    pub async fn keep_reports_told(&self, worker: &Worker) {
        let clock = &self.0.parts.clock;
        let (mut pause, mut again_at, mut to) = (PAUSE_MIN, Duration::ZERO, self.0.hand.to.get());
        loop {
            let now_to = self.0.hand.to.get();
            if now_to != to {
                (pause, again_at, to) = (PAUSE_MIN, Duration::ZERO, now_to);
            }
            // A new report is told at once. It does not bring forward those that the bot did not take, or a few reports would use up
            // all the times of theirs.
            let is_due = clock.instant() >= again_at;
            let is_owed = match self.tell_reports(worker, is_due).await {
                Ok(is_owed) => is_owed,
                Err(failed) => {
                    worker.failed(&failed);
                    true
                }
            };
            let again = is_owed && self.tells_reports();
            if again && is_due {
                again_at = clock.instant() + pause;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            let left = again_at.saturating_sub(clock.instant());
            if again {
                worker.idle_for(left);
            } else {
                (pause, again_at) = (PAUSE_MIN, Duration::ZERO);
                worker.idle();
            }
            tokio::select! {
                () = self.0.hand.changed.notified() => {}
                () = clock.sleep(left), if again => {}
            }
        }
    }

    /// Passes on what is owed, one report after the other; what the bot did not take once only when that `is_due`. Answers whether
    /// some is still owed.
    async fn tell_reports(&self, worker: &Worker, is_due: bool) -> Result<bool, Error> {
        let (mut after, mut is_owed) = (0, false);
        while let Some((number, times, report)) = self.read(move |get| Ok(report::next_owed(get, after)?)).await? {
            after = number;
            if times > 0 && !is_due {
                is_owed = true;
                continue;
            }
            let to = self.0.hand.to.get();
            let Some(to) = to.as_deref() else { return Ok(true) };
            worker.works_on(format_args!("report {number}"));
            let times = match self.tell_report(to, &report).await? {
                Passed::Taken => {
                    worker.done(1);
                    None
                }
                Passed::Refused(why) => {
                    worker.failed(&why);
                    let times = times.saturating_add(1);
                    match times < TIMES_MAX {
                        true => {
                            tracing::warn!("the bot for reports does not take number {number}: {why}");
                            Some(times)
                        }
                        false => {
                            tracing::error!(
                                "the bot for reports did not take number {number}, which it is not told again: {why}"
                            );
                            None
                        }
                    }
                }
                Passed::Away(why) => {
                    tracing::warn!("the bot for reports is not there; they wait for it: {why}");
                    worker.failed(&why);
                    return Ok(true);
                }
            };
            is_owed |= times.is_some();
            self.write(move |w| Ok(report::set_owed(w, number, times)?)).await?;
        }
        Ok(is_owed)
    }

    async fn tell_report(&self, to: &str, report: &report::Report) -> Result<Passed, Error> {
        let (Some(room_id), Some(event_id)) = (&report.room_id, &report.event_id) else { return Ok(Passed::Taken) };
        let Ok(reporter) = OwnedUserId::try_from(report.by.as_str()) else { return Ok(Passed::Taken) };
        let token = self.0.parts.random.token(TOKEN_CHARS);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(mut bearer) = HeaderValue::from_str(&format!("Bearer {token}")) {
            bearer.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, bearer);
        }
        let mut said = json!({});
        if let Some(reason) = &report.reason {
            said["reason"] = reason.as_str().into();
        }
        if let Some(score) = report.score {
            said["score"] = score.into();
        }
        let url = format!("{to}/api/1/report/{}/{}", encode(room_id), encode(event_id));
        let hash = token_hash(&token);
        *self.0.hand.pass.lock() = Some(Pass { hash, reporter, room_id: room_id.clone(), event_id: event_id.clone() });
        let _out = Out(&self.0.hand);
        let request = WebRequest { method: Method::POST, url, headers, body: Bytes::from(said.to_string()) };
        let limits = WebLimits {
            time: TIME,
            // The status says all; nobody reads the body.
            body_bytes_max: u64::MAX,
            redirects_max: 0,
            plain: Plain::WhereGiven,
            allow_private: true,
            ..WebLimits::default()
        };
        Ok(match self.0.parts.remote.web().ask(request, limits).await {
            Ok(answer) if (200..300).contains(&answer.status) => Passed::Taken,
            // A proxy says so before a bot that is not there.
            Ok(answer) if answer.status == 502 => Passed::Away("HTTP 502".to_owned()),
            Ok(answer) => Passed::Refused(format!("HTTP {}{}", answer.status, hint(answer.status))),
            // It was never asked: it is not there, this server has no memory, or the address in the settings is none.
            Err(
                failed @ (WebFailed::Unreachable { .. }
                | WebFailed::Refused(_)
                | WebFailed::BadUrl(_)
                | WebFailed::Forbidden(_)),
            ) => Passed::Away(failed.to_string()),
            // Draupnir does not answer at all where it could not read the event.
            Err(failed) => Passed::Refused(failed.to_string()),
        })
    }
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => ". Does its setting homeserverUrl or rawHomeserverUrl lead to this server?",
        404 => ". Is web.abuseReporting switched on in its settings, and moderation.reports_to its address?",
        _ => "",
    }
}
