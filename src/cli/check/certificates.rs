//! `snug check`: the certificates, from files and those that the server gets or makes by itself.

use serde_json::Value;

use super::report::Report;
use crate::base::date;
use crate::certificates::{self, Ending, Source};
use crate::cli::Local;
use crate::config::Config;
use crate::http::tls::{Certificate, Pair};
use crate::serve::{self, CERTIFICATES};

/// The certificates of the files, and what is kept of those that the server gets or makes.
pub fn of_files(config: &Config, now_ms: u64, report: &mut Report) {
    let sections = [
        ("client", &config.client.tls_certificate, &config.client.tls_private_key),
        ("federation", &config.federation.tls_certificate, &config.federation.tls_private_key),
    ];
    for (section, chain, key) in sections {
        let what = format!("The certificate of [{section}]");
        match serve::ports::certificate(chain, key) {
            Ok(None) => {}
            Ok(Some(certificate)) => dates(&what, certificate.validity_ms(), now_ms, report),
            Err(error) => report.bad(format!("{what} cannot be used: {error}.")),
        }
    }
}

/// What a stopped server has kept of the certificates that it gets or makes.
pub fn kept(config: &Config, now_ms: u64, report: &mut Report) {
    let (source, folder) = (config.certificates.source, config.data_dir.join(CERTIFICATES));
    if source == Source::Files {
        return;
    }
    match certificates::kept(&folder, source) {
        Ok(None) => report.note(format!(
            "A certificate for {} will be {} when the server runs.",
            config.certificate_names().join(", "),
            if source == Source::Own { "made" } else { "asked for" }
        )),
        Ok(Some(pair)) => {
            dates("The server's own certificate", pair.validity_ms(), now_ms, report);
            missing(&config.certificate_names(), &pair, report);
        }
        Err(error) => report.bad(format!("{error}.")),
    }
    if let Some(said) = certificates::said_last(&folder).filter(|_| source == Source::Acme) {
        report.bad(format!("The last order of a certificate failed. {said}"));
    }
}

fn missing(names: &[String], pair: &Pair, report: &mut Report) {
    let missing: Vec<&str> = names.iter().filter(|name| !pair.is_for(name)).map(String::as_str).collect();
    if !missing.is_empty() {
        report.bad(format!("The server's own certificate is not for {}.", missing.join(", ")));
    }
}

/// The same as a running server says it, since its config may have changed since.
pub fn of_running(local: &mut Local, report: &mut Report) {
    let said = match local.get("/certificates") {
        Ok(said) => said,
        Err(error) => return report.bad(format!("It was asked for its certificates: {error}.")),
    };
    let list = |field: &str| {
        let names = said[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        names.collect::<Vec<_>>().join(", ")
    };
    let (from, now_ms) = (said["from"].as_str().unwrap_or_default(), said["now_ms"].as_u64().unwrap_or_default());
    if from.is_empty() {
        return;
    }
    for shown in said["shown"].as_array().into_iter().flatten().filter(|shown| shown["file"].is_null()) {
        let validity = shown["from_ms"].as_u64().zip(shown["until_ms"].as_u64());
        match validity {
            // The findings say it.
            Some(_) if shown["warning"].is_string() => {}
            Some(validity) => {
                dates(shown["what"].as_str().unwrap_or("The certificate"), Some(validity), now_ms, report)
            }
            None => report.note(format!("There is no certificate of {from} for {} yet.", list("names"))),
        }
    }
    if let Some(fingerprint) = said["root"].as_str() {
        report.note(format!(
            "Phones install the authority of this house from /_snug/certificate. Its fingerprint is {fingerprint}."
        ));
    }
    if said["awaits_clock"] == true {
        report.note("A certificate is asked for when the clock is right.");
    }
    let missing = list("missing");
    if said["said"].is_null() && !missing.is_empty() {
        report.note(format!("A certificate for {missing} is being asked for at {from}."));
    }
}

fn dates(what: &str, validity: Option<(u64, u64)>, now_ms: u64, report: &mut Report) {
    let Some((from, until)) = validity else {
        return report.note(format!("{what} has no expiry date that can be read."));
    };
    let days = until.saturating_sub(now_ms) / 86_400_000;
    match Ending::of((from, until), now_ms) {
        _ if now_ms < from => report.bad(format!("{what} is valid only from {} on.", date(from))),
        Some(Ending::Over) => report.bad(format!("{what} ended on {}.", date(until))),
        Some(Ending::VerySoon) => report.bad(format!("{what} ends in {days} days: its renewal seems to fail.")),
        Some(Ending::Soon) => report.note(format!("{what} ends in {days} days, and was not renewed yet.")),
        None => report.good(format!("{what} is valid until {}.", date(until))),
    }
}

/// The certificate that other servers see, or will see.
pub fn is_for(config: &Config, name: &str) -> Option<bool> {
    let settings = &config.federation;
    // One that cannot be read has been reported already.
    if settings.tls_certificate.is_some() {
        let certificate = serve::ports::certificate(&settings.tls_certificate, &settings.tls_private_key);
        return certificate.ok().flatten().map(|certificate| certificate.is_for(name));
    }
    let kept = certificates::kept(&config.data_dir.join(CERTIFICATES), config.certificates.source);
    kept.ok().flatten().map(|pair| pair.is_for(name))
}

/// What apps are met with.
pub fn for_apps(config: &Config) -> Option<std::sync::Arc<Certificate>> {
    let certificate = serve::ports::certificate(&config.client.tls_certificate, &config.client.tls_private_key);
    let own =
        || (config.certificates.source != Source::Files).then(|| Certificate::awaited(config.certificate_names()));
    certificate.ok()?.or_else(own)
}
