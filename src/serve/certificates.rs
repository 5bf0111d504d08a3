//! The certificates of the listeners: from files, or those that the server gets or makes; the plain addresses beside
//! them; and the warnings before one ends.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::folder::CERTIFICATES;
use super::{Failed, addresses, failed};
use crate::base::private::write_secret;
use crate::base::{Clock, Random, Worker, blocking, read_small};
use crate::budget::Budget;
use crate::certificates::{self, Certificates, Ending, Source, Told};
use crate::config::Config;
use crate::flow::Notices;
use crate::http::tls::Certificate;
use crate::remote::Remote;

/// How often the ends of certificates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// A first look soon after the start.
const FIRST_LOOK: Duration = Duration::from_secs(20);
/// Of which ends people were told, so that a start does not tell them again.
const TOLD: &str = "told.json";
/// A line for each certificate that is shown.
const TOLD_BYTES_MAX: u64 = 16 << 10;

/// What the server gets or makes by itself.
pub fn of(
    config: &Config,
    clock: &Clock,
    random: &Random,
    budget: &Budget,
    remote: &Remote,
) -> Result<Certificates, Failed> {
    let settings = &config.certificates;
    let mut acme = settings.acme();
    if let (Source::Acme, Some(file)) = (settings.source, &settings.root_file) {
        let wrong = |error| failed(format_args!("acme.extra_ca_file: {}", file.display()), error);
        acme.root_pem = Some(super::roots(file).map_err(wrong)?);
    }
    let options = certificates::Options {
        source: settings.source,
        server: config.server_name.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
        names: config.certificate_names(),
        folder: config.data_dir.join(CERTIFICATES),
        acme,
        addresses: addresses::of_this_machine,
    };
    let parts = certificates::Parts {
        clock: clock.clone(),
        random: random.clone(),
        web: remote.web().clone(),
        account: budget.account("outbound"),
    };
    Certificates::new(options, parts).map_err(|error| failed("certificates", error))
}

/// The certificate of a section: that of its files, or else our own.
pub fn chosen(
    files: (&Option<PathBuf>, &Option<PathBuf>),
    own: &Certificates,
) -> Result<Option<Arc<Certificate>>, Failed> {
    Ok(super::ports::certificate(files.0, files.1)?.or_else(|| own.certificate()))
}

/// The certificate that an address for apps speaks with. Our own is for others: what only this machine reaches stays
/// plain, for a proxy.
pub fn spoken(address: SocketAddr, certificate: Option<&Arc<Certificate>>) -> Option<&Arc<Certificate>> {
    let is_here = match address.ip() {
        IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
        ip => ip.is_loopback(),
    };
    certificate.filter(|certificate| certificate.file().is_some() || !is_here)
}

/// Looks at the ends of the certificates for ever, and tells the administrators in time; run as a task.
pub async fn watch(
    shown: Vec<(&'static str, Arc<Certificate>)>,
    own: Certificates,
    notices: Notices,
    clock: Clock,
    folder: PathBuf,
    worker: Worker,
) {
    let file = folder.join(CERTIFICATES).join(TOLD);
    let mut told = known(&file).await;
    worker.idle_for(FIRST_LOOK);
    clock.sleep(FIRST_LOOK).await;
    loop {
        for (what, certificate) in &shown {
            let Some(ending) = certificates::ending(what, certificate, &own, &clock) else { continue };
            if !ending.ending.is_news(ending.until_ms, told.get(*what).copied()) {
                continue;
            }
            match ending.ending {
                Ending::Soon => tracing::warn!("{}", ending.sentence),
                _ => tracing::error!("{}", ending.sentence),
            }
            worker.works_on("telling the administrators");
            notices.tell_administrators(&ending.sentence).await;
            worker.done(1);
            told.insert((*what).to_owned(), Told { until_ms: ending.until_ms, ending: ending.ending });
            write(&file, &told).await;
        }
        worker.idle_for(LOOK_EVERY);
        clock.sleep(LOOK_EVERY).await;
    }
}

/// A file that cannot be read makes a warning come twice.
async fn known(file: &Path) -> BTreeMap<String, Told> {
    let file = file.to_owned();
    let read = blocking(move || read_small(&file, TOLD_BYTES_MAX).ok()).await;
    read.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

async fn write(file: &Path, told: &BTreeMap<String, Told>) {
    let (Ok(text), to) = (serde_json::to_string(told), file.to_owned()) else { return };
    let written = blocking(move || {
        to.parent().map_or(Ok(()), crate::base::private::make_folder)?;
        write_secret(&to, &text)
    });
    if let Err(error) = written.await {
        tracing::warn!("{}: {error}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_this_machine_reaches_stays_plain() {
        let own = Certificate::awaited(vec!["example.org".to_owned()]);
        let speaks = |address: &str| spoken(address.parse().unwrap(), Some(&own)).is_some();
        assert!(speaks("0.0.0.0:443") && speaks("[::]:443") && speaks("192.168.1.20:8008"));
        assert!(!speaks("127.0.0.1:8008") && !speaks("[::1]:8008") && !speaks("[::ffff:127.0.0.1]:80"));
        assert!(spoken("0.0.0.0:80".parse().unwrap(), None).is_none());
    }
}
