//! Certificates by ACME (RFC 8555): when one is asked for, and what is kept of it.
//!
//! A round asks when there is no certificate, when it lacks a name, when another authority is configured, and a month
//! before its end (or when the authority wants it, `renewal.rs`). A failure is followed by a pause that grows to a day.
//! A start tries at once, unless the authority itself said when: who has just forwarded a port need not wait. What an
//! order may hold is charged to the `outbound` account, and bounded in `asking.rs`.

mod asking;
mod order;
mod renewal;
mod said;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;

use super::{Failed, Inner, Options, Parts, Source, failed, read_file, renewal_ms};
use crate::base::private::write_secret;
use crate::base::{Worker, blocking, brief, date, span};
use crate::http::tls::Pair;
use crate::remote::web::Web;
use asking::Asking;
use order::Missed;

/// Chain and key.
pub const CERTIFICATE: &str = "acme.pem";
/// The account, the order under way, and how the last one went.
const STATE: &str = "acme.json";

/// Let's Encrypt, and where it lets one try things out: its certificates are not believed by anybody.
pub const PRODUCTION: &str = "https://acme-v02.api.letsencrypt.org/directory";
pub const STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
/// The pauses after failures one after the other. Let's Encrypt allows five failed checks of a name in an hour.
const PAUSES_MS: [u64; 7] = [MINUTE_MS, 12 * MINUTE_MS, 40 * MINUTE_MS, 2 * HOUR_MS, 6 * HOUR_MS, 12 * HOUR_MS, DAY_MS];
/// Those while the authority cannot be reached, or is busy: that costs nobody anything.
const SHORT_PAUSES_MS: [u64; 5] = [20_000, MINUTE_MS, 5 * MINUTE_MS, 15 * MINUTE_MS, 30 * MINUTE_MS];
/// A start waits for this since the last try: a server that starts again and again asks seldom.
const AFTER_START_MS: u64 = 2 * MINUTE_MS;
/// The longest sleep: a clock may be set meanwhile.
const SLEEP: Duration = Duration::from_secs(3600);
/// How often a state is looked at that cannot be read.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(300);
/// How often a clock that is wrong is looked at.
const CLOCK_PAUSE: Duration = Duration::from_secs(30);
/// The shortest pause after a certificate, whatever its dates are.
const AFTER_SUCCESS_MS: u64 = 10_000;
/// How often an authority is asked when it wants a renewal.
const RENEWAL_EVERY_MS: u64 = DAY_MS;
/// What an order holds: a text of the authority (16 KiB) and its parsed form (32 KiB), the keys, the requests.
const ORDER_BYTES: u64 = 96 * 1024;
/// A whole order, with all waiting for the authority.
const ORDER_MAX: Duration = Duration::from_secs(600);

/// How an authority checks that a name is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Challenge {
    /// Over HTTP where port 80 is open, else by TLS; after a failure the other.
    #[default]
    Any,
    /// HTTP-01: the authority asks on port 80.
    Http,
    /// TLS-ALPN-01: the authority connects to port 443.
    Tls,
}

/// `[acme]`.
#[derive(Clone, Default)]
pub struct AcmeOptions {
    /// The URL of the authority's directory.
    pub directory: String,
    /// Where the authority writes to when something concerns the certificates.
    pub email: Option<String>,
    /// External account binding: the name of a key, and the key.
    pub external_account: Option<(String, Vec<u8>)>,
    /// Roots in PEM under which the authority itself is reached, beside the usual ones.
    pub root_pem: Option<Vec<u8>>,
    pub challenge: Challenge,
}

/// Without the key of the external account.
impl std::fmt::Debug for AcmeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("AcmeOptions");
        shown.field("directory", &self.directory).field("email", &self.email).field("challenge", &self.challenge);
        shown.finish_non_exhaustive()
    }
}

impl AcmeOptions {
    /// The authority's name for people.
    pub fn authority(&self) -> String {
        match self.directory.as_str() {
            PRODUCTION => "Let's Encrypt".to_owned(),
            STAGING => "Let's Encrypt (for trying out)".to_owned(),
            other => other.split('/').nth(2).unwrap_or(other).to_owned(),
        }
    }

    /// Whether the operator named the authority, which may then be in the own network.
    fn is_named(&self) -> bool {
        self.directory != PRODUCTION && self.directory != STAGING
    }
}

/// What is shared with the rest of the server.
pub struct Acme {
    web: Option<Web>,
    /// Answers to challenges over HTTP, by their tokens.
    answers: Mutex<Vec<(String, String)>>,
    is_80_open: AtomicBool,
    wake: Notify,
}

/// What is kept between runs. Its keys are secrets, so it is shown nowhere.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct State {
    /// The directory that the account is of.
    directory: String,
    account: Option<Value>,
    email: Option<String>,
    /// The directory that gave the certificate.
    issued_by: String,
    order: Option<Pending>,
    failures: u32,
    last_ms: u64,
    next_ms: u64,
    /// The authority said when, so that a start does not ask earlier.
    is_told_when: bool,
    said: Option<String>,
    #[serde(skip)]
    file: PathBuf,
    /// When the authority was asked last when it wants a renewal, and what it said.
    #[serde(skip)]
    wanted: Option<(u64, Option<u64>)>,
}

/// An order whose key exists already: if the power goes now, the next start takes the certificate of it.
#[derive(Clone, Serialize, Deserialize)]
struct Pending {
    url: String,
    names: Vec<String>,
    key: String,
}

impl Acme {
    pub fn new(options: &Options, parts: &Parts) -> Result<Acme, Failed> {
        let web = match (options.source, &options.acme.root_pem) {
            (Source::Acme, Some(pem)) => Some(parts.web.trusting(pem).map_err(Failed)?),
            (Source::Acme, None) => Some(parts.web.clone()),
            _ => None,
        };
        Ok(Acme { web, answers: Mutex::default(), is_80_open: AtomicBool::new(false), wake: Notify::new() })
    }

    pub fn answer(&self, token: &str) -> Option<String> {
        self.answers.lock().iter().find(|(known, _)| known == token).map(|(_, answer)| answer.clone())
    }

    pub fn note_port_80(&self, is_open: bool) {
        self.is_80_open.store(is_open, Ordering::Relaxed);
    }

    fn is_80_open(&self) -> bool {
        self.is_80_open.load(Ordering::Relaxed)
    }

    pub fn try_now(&self) {
        self.wake.notify_one();
    }
}

impl Inner {
    /// Asks and renews for ever.
    pub async fn keep_acme(self: &Arc<Self>, worker: &Worker) {
        let mut state = loop {
            match self.known_state().await {
                Ok(state) => break state,
                // The account is in it: a card that cannot be read now is no reason to make another.
                Err(error) => {
                    tracing::error!("what is kept of {} cannot be read: {error}", self.options.acme.authority());
                    self.status.lock().said = Some(format!("{error}."));
                    worker.failed(&error);
                    worker.idle_for(UNREADABLE_PAUSE);
                    self.parts.clock.sleep(UNREADABLE_PAUSE).await;
                }
            }
        };
        loop {
            let pause = self.round(&mut state, worker).await;
            worker.idle_for(pause);
            tokio::select! {
                () = self.parts.clock.sleep(pause) => {}
                () = self.acme.wake.notified() => state.next_ms = if state.is_told_when { state.next_ms } else { 0 },
            }
        }
    }

    /// What an earlier run kept. An error when it is there and cannot be read; what is damaged is as good as none.
    async fn known_state(&self) -> Result<State, Failed> {
        let file = self.options.folder.join(STATE);
        let read = blocking({
            let file = file.clone();
            move || read_file(&file)
        });
        let known = match read.await? {
            Some(text) => serde_json::from_str(&text).map_err(|error| failed(&file, brief(error))),
            None => Ok(State::default()),
        };
        let mut state = known.unwrap_or_else(|error| {
            tracing::warn!("a new account is made at {}: {error}", self.options.acme.authority());
            State::default()
        });
        state.file = file;
        state.begin(&self.options.acme.directory);
        self.note(&state);
        Ok(state)
    }

    fn note(&self, state: &State) {
        let mut status = self.status.lock();
        (status.said, status.next_ms) = (state.said.clone(), Some(state.next_ms).filter(|next_ms| *next_ms > 0));
    }

    /// Asks when it is time to. Answers how long nothing is to be done.
    async fn round(self: &Arc<Self>, state: &mut State, worker: &Worker) -> Duration {
        let now_ms = self.parts.clock.now_ms();
        let awaits_clock = !self.parts.clock.is_plausible();
        if awaits_clock && !self.status.lock().awaits_clock {
            tracing::warn!("the clock says {}: certificates are asked for when it is right", date(now_ms));
        }
        self.status.lock().awaits_clock = awaits_clock;
        if awaits_clock {
            return CLOCK_PAUSE;
        }
        let due_ms = self.due_ms(state, worker).await;
        let next_ms = due_ms.max(state.next_ms.min(now_ms + DAY_MS));
        self.status.lock().next_ms = Some(next_ms);
        if next_ms > now_ms {
            return Duration::from_millis(next_ms - now_ms).min(SLEEP);
        }
        let names = self.status.lock().names.clone();
        worker.works_on(format_args!("a certificate for {}", names.join(", ")));
        state.last_ms = now_ms;
        match self.attempt(state, &names).await {
            Ok(()) => {
                worker.done(1);
                (state.failures, state.said, state.is_told_when) = (0, None, false);
                let until_ms = self.certificate.validity_ms().map_or(0, |(_, until_ms)| until_ms);
                state.next_ms = now_ms + pause_after(until_ms.saturating_sub(now_ms));
            }
            Err(missed) => {
                let pause_ms = state.missed(&missed, self.parts.random.u64());
                let said = state.said.clone().unwrap_or_default();
                worker.failed(&said);
                tracing::error!("{said} It is tried again in {}.", span(pause_ms));
                state.next_ms = self.parts.clock.now_ms() + pause_ms;
            }
        }
        self.note(state);
        state.write().await;
        Duration::from_secs(1)
    }

    /// From when on a certificate is to be asked for.
    async fn due_ms(&self, state: &mut State, worker: &Worker) -> u64 {
        let is_ours = state.issued_by == self.options.acme.directory && self.missing().is_empty();
        let Some((from_ms, until_ms)) = self.certificate.validity_ms().filter(|_| is_ours) else { return 0 };
        let ours_ms = renewal_ms(from_ms, until_ms);
        self.wanted_ms(state, worker).await.map_or(ours_ms, |wanted_ms| wanted_ms.min(ours_ms))
    }

    /// When the authority wants a renewal, asked once a day.
    async fn wanted_ms(&self, state: &mut State, worker: &Worker) -> Option<u64> {
        let now_ms = self.parts.clock.now_ms();
        if let Some((asked_ms, wanted_ms)) = state.wanted
            && now_ms < asked_ms + RENEWAL_EVERY_MS
        {
            return wanted_ms;
        }
        worker.works_on("asking when to renew");
        let (asking, leaf) = (self.asking()?, self.certificate.leaf()?);
        let found = renewal::asked(&asking, &self.options.acme.directory, &leaf).await;
        let wanted_ms = match found {
            // Somewhere in between, so that not all servers come at once.
            Ok(found) => {
                found.map(|(from_ms, to_ms)| from_ms + self.parts.random.u64() % to_ms.saturating_sub(from_ms).max(1))
            }
            Err(why) => {
                tracing::debug!("when to renew is unknown: {why}");
                None
            }
        };
        state.wanted = Some((now_ms, wanted_ms));
        wanted_ms
    }

    fn asking(&self) -> Option<Asking> {
        Some(Asking::new(self.acme.web.clone()?, self.options.acme.is_named()))
    }

    /// One try for all names. If some of them are refused and there is no good certificate for the others, those get
    /// one; the refused ones are tried again later.
    async fn attempt(&self, state: &mut State, names: &[String]) -> Result<(), Missed> {
        let missed = match self.order(state, names).await {
            Ok(pair) => return self.take(state, pair).await,
            Err(missed) => missed,
        };
        let rest: Vec<String> = names.iter().filter(|name| !missed.bad.contains(name)).cloned().collect();
        let now_ms = self.parts.clock.now_ms();
        let is_fresh = self.certificate.validity_ms().is_some_and(|(from, until)| now_ms < renewal_ms(from, until));
        let is_served = is_fresh
            && state.issued_by == self.options.acme.directory
            && rest.iter().all(|name| self.certificate.is_for(name));
        if !missed.bad.is_empty() && !rest.is_empty() && !is_served {
            tracing::warn!("a certificate is asked for without {}", missed.bad.join(", "));
            let pair = self.order(state, &rest).await?;
            self.take(state, pair).await?;
        }
        Err(missed)
    }

    /// One order, within its memory and its time.
    async fn order(&self, state: &mut State, names: &[String]) -> Result<(Pair, String), Missed> {
        let asking = self.asking().ok_or_else(|| Missed::of("no authority is configured"))?;
        let grant = self.parts.account.take(ORDER_BYTES).await;
        let _grant = grant.map_err(|refused| Missed::soon(format!("There is no memory for an order: {refused}.")))?;
        let ordered = order::run(self, state, &asking, names);
        let ordered = self.parts.clock.timeout(ORDER_MAX, ordered).await;
        self.acme.answers.lock().clear();
        self.certificate.end_challenges();
        let slow = || Missed::soon(format!("{} takes too long with its answer.", self.options.acme.authority()));
        let mut ordered = ordered.unwrap_or_else(|| Err(slow()));
        if let Err(missed) = &mut ordered {
            missed.wait_ms = missed.wait_ms.or(asking.told_to_wait_ms().filter(|_| missed.is_limited));
        }
        ordered
    }

    /// Shows a new certificate and keeps it.
    async fn take(&self, state: &mut State, (pair, pem): (Pair, String)) -> Result<(), Missed> {
        self.certificate.put(pair);
        state.issued_by = self.options.acme.directory.clone();
        state.wanted = None;
        if let Some((_, until_ms)) = self.certificate.validity_ms() {
            let (from, until) = (self.options.acme.authority(), date(until_ms));
            tracing::info!("a certificate of {from} is in use, until {until}");
        }
        let file = self.options.folder.join(CERTIFICATE);
        let written = blocking({
            let file = file.clone();
            move || write_secret(&file, &pem)
        });
        // The order stays noted: the next start asks for its certificate again.
        written.await.map_err(|error| {
            Missed::soon(format!("The new certificate is in use, but cannot be kept: {}: {error}.", file.display()))
        })?;
        state.order = None;
        Ok(())
    }
}

impl State {
    /// At a start: an account of another authority is of no use here, and what waited for its time is tried at once.
    fn begin(&mut self, directory: &str) {
        if self.directory != directory {
            (self.account, self.order, self.email, self.said) = (None, None, None, None);
            (self.failures, self.next_ms, self.is_told_when) = (0, 0, false);
            self.directory = directory.to_owned();
        }
        if !self.is_told_when {
            // After a success it is the dates and the names that say when.
            let soonest_ms = if self.failures == 0 { 0 } else { self.last_ms.saturating_add(AFTER_START_MS) };
            self.next_ms = self.next_ms.min(soonest_ms);
        }
    }

    /// Notes a failure. Answers the pause after it; `random` spreads it.
    fn missed(&mut self, missed: &Missed, random: u64) -> u64 {
        let pauses = if missed.is_soon { &SHORT_PAUSES_MS[..] } else { &PAUSES_MS[..] };
        let pause_ms = pauses[(self.failures as usize).min(pauses.len() - 1)];
        self.failures = self.failures.saturating_add(1);
        self.said = Some(missed.said.clone());
        self.is_told_when = missed.is_limited;
        let told_ms = match (missed.wait_ms, missed.is_limited) {
            (Some(ms), _) => ms,
            (None, true) => HOUR_MS,
            (None, false) => 0,
        };
        (pause_ms + random % (pause_ms / 8)).max(told_ms).min(DAY_MS)
    }

    /// Writes it down. A card that takes no more is no reason to do nothing else.
    async fn write(&self) {
        let (file, text) = (self.file.clone(), serde_json::to_string(self));
        let written = match text {
            Ok(text) => blocking(move || write_secret(&file, &text)).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = written {
            tracing::error!("{}: {error}", self.file.display());
        }
    }
}

/// How long nothing is asked after a certificate that ends in `left_ms`. One whose renewal is due as soon as it is there
/// (this machine's clock is weeks ahead, or the authority always wants another) would be asked for each second.
fn pause_after(left_ms: u64) -> u64 {
    (left_ms / 2).clamp(AFTER_SUCCESS_MS, DAY_MS)
}

/// What the last order of a stopped server came to, if it failed.
pub fn said_last(folder: &Path) -> Option<String> {
    let text = read_file(&folder.join(STATE)).ok().flatten()?;
    serde_json::from_str::<State>(&text).ok()?.said
}

#[cfg(test)]
mod tests;
