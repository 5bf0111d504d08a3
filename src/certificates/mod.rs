//! Certificates that this server gets or makes by itself.
//!
//! Owns: the certificate that both listeners show when the config names no file, where it comes from (an authority on
//! the Internet by ACME, or one of the house's own), its renewal, and what is said about its end. Never: sockets, and
//! files that somebody else renews (`http/tls.rs` reads those).
//!
//! What is kept lies in the folder `certificates` of the data folder, for its owner alone, each file written beside and
//! then moved: a power cut leaves the old one or the new one. A certificate and its key are one file, so that they
//! always fit. The old certificate is shown until the new one was checked.
//!
//! Read `own.rs`, then `acme/mod.rs` (when), `acme/order.rs` (how), `acme/asking.rs` (what an authority may send),
//! `acme/said.rs` (its errors in plain words), `acme/renewal.rs` (when the authority wants a renewal); `ending.rs` has
//! the warnings.

mod acme;
mod ending;
mod own;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair};

use crate::base::private::{make_folder, write_secret};
use crate::base::{Clock, Random, Worker, read_small};
use crate::budget::Account;
use crate::http::tls::{CHALLENGES_MAX, Certificate, Pair, Unusable};
use crate::remote::web::Web;

pub use acme::{AcmeOptions, Challenge, PRODUCTION, STAGING};
pub use ending::{Ending, Told, Warning, ending};
pub use own::Root;

/// As many names stand in a certificate: an order asks about each, by TLS about all at a time, and the lines of a page
/// stay few.
pub const NAMES_MAX: usize = CHALLENGES_MAX;
/// The largest file of ours. A chain is some KiB.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// How often the house's own authority looks at its names and dates.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Nothing that lies further in the future is believed: the last second of the year 9999.
const TIME_MS_MAX: u64 = 253_402_300_799_000;

/// Where certificates come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// The files that the config names.
    #[default]
    Files,
    /// An authority on the Internet, or in a company, by ACME (RFC 8555).
    Acme,
    /// An authority that this server makes.
    Own,
}

/// The values that `serve` passes in.
pub struct Options {
    pub source: Source,
    /// The server's name without a port.
    pub server: String,
    /// What the certificate is to be for, the most important first: names, and addresses without brackets.
    pub names: Vec<String>,
    pub folder: PathBuf,
    pub acme: AcmeOptions,
    /// The addresses of this machine that others use.
    pub addresses: fn() -> Vec<IpAddr>,
}

/// The parts that certificates are got with.
pub struct Parts {
    pub clock: Clock,
    pub random: Random,
    pub web: Web,
    /// Pays for what an order holds.
    pub account: Account,
}

/// Why there can be no certificate: a sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(String);

/// What is known of the certificate, for people.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Who gives it: "Let's Encrypt", the host of another authority, or the house's own.
    pub from: String,
    pub names: Vec<String>,
    /// Those of the names that the certificate is not for, as yet.
    pub missing: Vec<String>,
    /// What went wrong last, as long as it did not go well since.
    pub said: Option<String>,
    /// When it is tried again, in Unix milliseconds.
    pub next_ms: Option<u64>,
    /// The clock is wrong, and nothing is asked before it is right.
    pub awaits_clock: bool,
}

/// The certificates. Cheap to clone.
#[derive(Clone)]
pub struct Certificates(Arc<Inner>);

struct Inner {
    options: Options,
    parts: Parts,
    certificate: Arc<Certificate>,
    authority: Option<own::Authority>,
    /// What the own certificate was last made for.
    made_for: Mutex<Vec<String>>,
    acme: acme::Acme,
    status: Mutex<Status>,
}

impl Certificates {
    /// Reads what is there, and makes the house's own authority and certificate; blocking.
    pub fn new(options: Options, parts: Parts) -> Result<Certificates, Failed> {
        let (source, mut names) = (options.source, options.names.clone());
        names.truncate(NAMES_MAX);
        if source != Source::Files {
            make_folder(&options.folder).map_err(|error| failed(&options.folder, error))?;
        }
        let certificate = Certificate::awaited(names.clone());
        let now_ms = parts.clock.now_ms();
        let authority = match source {
            Source::Own => Some(own::Authority::open(&options.folder, &options.server, &names, now_ms)?),
            _ => None,
        };
        let from = match source {
            Source::Files => String::new(),
            Source::Acme => options.acme.authority(),
            Source::Own => "the authority of this house".to_owned(),
        };
        let status = Mutex::new(Status { from, names, ..Status::default() });
        let acme = acme::Acme::new(&options, &parts)?;
        let made_for = Mutex::default();
        let made = Certificates(Arc::new(Inner { options, parts, certificate, authority, made_for, acme, status }));
        match source {
            Source::Files => {}
            Source::Acme => made.take_kept(),
            Source::Own => made.keep_own_once()?,
        }
        Ok(made)
    }

    /// What listeners show that have no file: none when certificates come from files.
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        (self.0.options.source != Source::Files).then(|| self.0.certificate.clone())
    }

    pub fn source(&self) -> Source {
        self.0.options.source
    }

    /// The root that phones install, with the house's own authority.
    pub fn root(&self) -> Option<&Root> {
        self.0.authority.as_ref().map(own::Authority::root)
    }

    /// The answer to an authority that asks for `token` over HTTP (RFC 8555, section 8.3).
    pub fn answer(&self, token: &str) -> Option<String> {
        self.0.acme.answer(token)
    }

    /// Whether an authority gets through to port 80, as far as this machine knows.
    pub fn note_port_80(&self, is_open: bool) {
        self.0.acme.note_port_80(is_open);
    }

    /// Tries again at once what waits for its turn.
    pub fn try_now(&self) {
        self.0.acme.try_now();
    }

    pub fn status(&self) -> Status {
        let mut status = self.0.status.lock().clone();
        status.missing = self.0.missing();
        let over = self.0.authority.as_ref().filter(|authority| authority.is_over(self.0.parts.clock.now_ms()));
        if let Some(authority) = over {
            status.said = Some(authority.is_over_because(&self.0.options.folder.join(own::ROOT)));
        }
        status
    }

    /// Renews for ever; run as a task. A unit of the worker is a certificate.
    pub async fn keep(&self, worker: &Worker) {
        match self.0.options.source {
            Source::Files => worker.idle(),
            Source::Acme => self.0.keep_acme(worker).await,
            Source::Own => self.keep_own(worker).await,
        }
    }

    /// The certificate of an earlier run. One that cannot be read is got anew.
    fn take_kept(&self) {
        let file = self.0.options.folder.join(acme::CERTIFICATE);
        match read_pair(&file) {
            Ok(Some((pair, _))) => self.0.certificate.put(pair),
            Ok(None) => {}
            Err(error) => tracing::warn!("the certificate of an earlier run is of no use: {error}"),
        }
    }

    async fn keep_own(&self, worker: &Worker) {
        loop {
            worker.idle_for(LOOK_EVERY);
            self.0.parts.clock.sleep(LOOK_EVERY).await;
            let this = self.clone();
            match crate::base::blocking(move || this.keep_own_once()).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!("the house's own authority could not renew the certificate: {error}");
                    worker.failed(error);
                }
            }
        }
    }

    /// Makes a certificate when there is none, when a third of its life is left, and when this machine has other
    /// addresses; blocking.
    fn keep_own_once(&self) -> Result<(), Failed> {
        let Inner { options, parts, certificate, authority, made_for, .. } = &*self.0;
        let Some(authority) = authority else { return Ok(()) };
        let is_over = authority.is_over(parts.clock.now_ms());
        let now_ms = authority.within_life(parts.clock.now_ms());
        let names = own::names(options);
        let file = options.folder.join(own::CERTIFICATE);
        if !certificate.is_there()
            && let Ok(Some((pair, _))) = read_pair(&file)
            && authority.is_whole(&pair, &names, now_ms)?
        {
            self.say_left_out(options.names.iter().filter(|name| !pair.is_for(name)).cloned().collect());
            certificate.put(pair);
            *made_for.lock() = names.clone();
        }
        let is_fresh = certificate
            .validity_ms()
            .is_some_and(|(from_ms, until_ms)| from_ms <= now_ms && now_ms < renewal_ms(from_ms, until_ms));
        // Under a root that is over no other would be any better.
        if (is_fresh || is_over && certificate.is_there()) && *made_for.lock() == names {
            return Ok(());
        }
        let (pair, pem, mut left_out) = authority.issue(&names, now_ms)?;
        // An odd address of this machine is no loss.
        left_out.retain(|name| options.names.contains(name));
        // Shown even if the card takes no more: the next start makes another.
        certificate.put(pair);
        *made_for.lock() = names.clone();
        self.say_left_out(left_out);
        write_secret(&file, &pem).map_err(|error| failed(&file, error))
    }

    /// Says which names of this server the authority may not vouch for.
    fn say_left_out(&self, left_out: Vec<String>) {
        let said = (!left_out.is_empty()).then(|| {
            format!(
                "The authority of this house was made for other names, and its certificate is not for {}. To make a new one, \
                 remove {} and start Snug again; the phones must then install it anew.",
                left_out.join(", "),
                self.0.options.folder.join(own::ROOT).display()
            )
        });
        if let Some(said) = &said {
            tracing::warn!("{said}");
        }
        self.0.status.lock().said = said;
    }
}

impl Inner {
    /// The names that are wanted and that the certificate is not for.
    fn missing(&self) -> Vec<String> {
        let names = self.status.lock().names.clone();
        match self.certificate.is_there() {
            true => names.into_iter().filter(|name| !self.certificate.is_for(name)).collect(),
            false => names,
        }
    }
}

/// When a certificate is renewed: a month before its end, or with a third of its life left when that is later.
fn renewal_ms(from_ms: u64, until_ms: u64) -> u64 {
    const MONTH_MS: u64 = 30 * 86_400_000;
    until_ms.saturating_sub(MONTH_MS.min(until_ms.saturating_sub(from_ms) / 3))
}

fn failed(file: &Path, why: impl std::fmt::Display) -> Failed {
    Failed(format!("{}: {why}", file.display()))
}

impl From<rcgen::Error> for Failed {
    fn from(error: rcgen::Error) -> Failed {
        Failed(format!("a certificate could not be made: {error}"))
    }
}

impl From<Unusable> for Failed {
    fn from(error: Unusable) -> Failed {
        Failed(error.to_string())
    }
}

/// A file of ours, none when it is not there. What is damaged in it is found by whoever parses it.
fn read_file(file: &Path) -> Result<Option<String>, Failed> {
    match read_small(file, FILE_BYTES_MAX) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(file, error)),
    }
}

/// A chain and its key from one file.
fn read_pair(file: &Path) -> Result<Option<(Pair, String)>, Failed> {
    let Some(text) = read_file(file)? else { return Ok(None) };
    let pair = Pair::parse(text.as_bytes(), text.as_bytes(), &file.display().to_string())?;
    Ok(Some((pair, text)))
}

/// The certificate and key that a stopped server has kept, for `snug check`.
pub fn kept(folder: &Path, source: Source) -> Result<Option<Pair>, Failed> {
    let file = match source {
        Source::Files => return Ok(None),
        Source::Acme => acme::CERTIFICATE,
        Source::Own => own::CERTIFICATE,
    };
    Ok(read_pair(&folder.join(file))?.map(|(pair, _)| pair))
}

/// What a stopped server was told last when it asked for a certificate.
pub fn said_last(folder: &Path) -> Option<String> {
    acme::said_last(folder)
}

/// The root of the house's own authority in PEM, once there is one.
pub fn root_pem(folder: &Path) -> Result<Option<String>, Failed> {
    own::root_pem(folder)
}

/// Sets from when until when a certificate is valid.
fn set_dates(parameters: &mut CertificateParams, from_ms: u64, until_ms: u64) {
    let at = |unix_ms: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_ms.min(TIME_MS_MAX) / 1000);
    (parameters.not_before, parameters.not_after) = (at(from_ms), at(until_ms));
}

/// A key of a certificate: on the curve P-256, which every app knows and which is cheap on a board.
fn new_key() -> Result<KeyPair, Failed> {
    Ok(KeyPair::generate()?)
}

#[cfg(test)]
mod tests;
