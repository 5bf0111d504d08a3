//! `snug check`: checks what new operators often get wrong, and reports it in plain sentences.

mod certificates;
mod ports;
mod report;

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedServerName, ServerName};
use serde_json::Value;

use self::ports::InUse;
use self::report::Report;
use super::{Local, admin_socket, print};
use crate::base::{Clock, Random, date};
use crate::budget::{Budget, Card, Granted, human};
use crate::certificates::Source;
use crate::client::Registration;
use crate::config::{Config, Overrides};
use crate::http::Method;
use crate::matrix::sign;
use crate::remote::{self, Options, Remote, RemoteOptions};
use crate::serve;
use crate::serve::services::RunsAs;
use crate::store::{Store, Survey, TableFound};

/// From this size on, the report mentions the size of the database.
const COMPACT_BYTES: u64 = 256 << 20;

/// Runs all checks and prints the findings. Exit code 1 when something is wrong.
pub fn run(overrides: &Overrides) -> ExitCode {
    let mut report = Report::default();
    match Config::load(overrides) {
        Ok(config) => all(&config, &mut report),
        Err(error) => report.bad(format!("The config: {error}")),
    }
    let sum = match report.bad {
        0 => "\nNothing is wrong.\n".to_owned(),
        1 => "\nOne thing is wrong.\n".to_owned(),
        many => format!("\n{many} things are wrong.\n"),
    };
    print(&(report.lines + &sum));
    if report.bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Examines the way to any server, and prints the findings. Exit code 1 when something is wrong.
pub fn server(overrides: &Overrides, server: &ServerName) -> ExitCode {
    let mut report = Report::default();
    match Config::load(overrides) {
        Ok(config) => examine(&config, server, &mut report),
        Err(error) => report.bad(format!("The config: {error}")),
    }
    let sum = if report.bad == 0 { "\nNothing is wrong.\n" } else { "" };
    print(&(report.lines + sum));
    if report.bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// By the running server, whose signature others know, or as a stranger who has none.
fn examine(config: &Config, server: &ServerName, report: &mut Report) {
    match Local::running(config) {
        Ok(Some(mut local)) => match local.post("/examine", serde_json::json!({ "server": server })) {
            Ok(said) => steps(&said, report),
            Err(error) => report.bad(format!("The server was asked to look: {error}.")),
        },
        Ok(None) => {
            report.note("The server is not running: a request with its signature is not tried.");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match (stranger(config), runtime) {
                (Ok(remote), Ok(runtime)) => runtime.block_on(as_stranger(&remote, server, report)),
                (Err(error), _) => report.bad(format!("{error}.")),
                (_, Err(error)) => report.bad(error.to_string()),
            }
        }
        Err(error) => report.bad(format!("{error}.")),
    }
}

async fn as_stranger(remote: &Remote, server: &ServerName, report: &mut Report) {
    for remote::Step { verdict, text } in remote.examine_unsigned(server).await {
        match verdict {
            remote::Verdict::Good => report.good(text),
            remote::Verdict::Note => report.note(text),
            remote::Verdict::Bad => report.bad(text),
        }
    }
}

/// The answer of `/examine`.
fn steps(said: &Value, report: &mut Report) {
    for step in said["steps"].as_array().into_iter().flatten() {
        let text = step["text"].as_str().unwrap_or("?");
        match step["verdict"].as_str() {
            Some("good") => report.good(text),
            Some("note") => report.note(text),
            _ => report.bad(text),
        }
    }
}

/// Reads everything in the database and prints what is lost. Exit code 1 when something is lost.
pub fn database(overrides: &Overrides) -> ExitCode {
    let mut report = Report::default();
    match Config::load(overrides) {
        Ok(config) => whole(&config, &mut report),
        Err(error) => report.bad(format!("The config: {error}")),
    }
    let sum = if report.bad == 0 { "\nNothing is wrong.\n" } else { "" };
    print(&(report.lines + sum));
    if report.bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn whole(config: &Config, report: &mut Report) {
    match Local::running(config) {
        Ok(None) => {}
        Ok(Some(_)) => {
            return report.bad("The server is running: stop it first, for example with `sudo systemctl stop snug`.");
        }
        Err(error) => return report.bad(format!("The database cannot be checked: {error}.")),
    }
    match serve::has_data(&config.data_dir) {
        Ok(true) => {}
        Ok(false) => return report.bad(admin_socket::nobody_home(config)),
        Err(error) => return report.bad(error.to_string()),
    }
    match serve::survey(config, &mut |table| of_table(table, report)) {
        Ok(survey) => of_sums(&survey, report),
        Err(error) => report
            .bad(format!("The database cannot be read at all: {error}. Restore the whole data folder from a backup.")),
    }
}

fn of_table(found: &TableFound, report: &mut Report) {
    let (name, rows) = (found.table.name, found.rows);
    let Some(why) = &found.why else {
        // A table without rows is not reported.
        return if rows > 0 {
            report.good(format!("{name}: {rows} rows."))
        };
    };
    let lost = found.told.map_or("some".to_owned(), |told| told.saturating_sub(rows).to_string());
    let mut text = format!("{name}: {lost} rows cannot be read, {rows} can; {} ({why}).", found.table.doc);
    if !found.concerned.is_empty() {
        let names: Vec<&str> = found.concerned.iter().map(String::as_str).collect();
        text.push_str(&format!(" Concerned, at most: {}.", names.join(", ")));
    }
    report.bad(text);
}

fn of_sums(survey: &Survey, report: &mut Report) {
    match &survey.waiting {
        Ok(0) => {}
        Ok(writes) => report.note(format!(
            "{writes} writes wait in the journal beside the database, and are not counted above: the next start puts \
             them in."
        )),
        Err(error) => report.bad(format!("{error}.")),
    }
    if let Err(error) = &survey.sums
        && survey.tables.iter().all(TableFound::is_whole)
    {
        report.bad(format!(
            "Every row can be read, but a page has another content than was written: a row may be wrong, or free \
             space may count as used ({error})."
        ));
    }
    if !survey.is_whole() {
        report.note(
            "Restore the whole data folder from a backup. Until then the server works with the rows that can be read; \
             a request that needs another row fails.",
        );
    }
}

fn all(config: &Config, report: &mut Report) {
    settings(config, report);
    // First: a user who may not open the server's socket may not read its files either.
    let mut local = match Local::running(config) {
        Ok(local) => local,
        Err(error) => return report.bad(format!("The check stops here: {error}.")),
    };
    let running = local.is_some();
    report.note(if running { "The server is running." } else { "The server is not running." });
    let in_use = match &mut local {
        Some(local) => of_running(config, local, report),
        None => {
            granted(config, report);
            None
        }
    };
    let (in_use, runs_as) = in_use.unzip();
    data(config, running, report);
    if !running && serve::has_database(&config.data_dir).is_ok_and(|has| has) {
        match serve::check_start(config) {
            Ok(()) => report.good(format!("Its accounts are those of {}.", config.server_name)),
            Err(error) => report.bad(format!("`snug serve` would not start: {error}.")),
        }
    }
    serve::open_files(config).iter().for_each(|open| report.bad(open));
    services(config, runs_as.flatten(), report);
    let clock = Clock::real();
    let now_ms = clock.read_ms();
    if !running && !clock.is_plausible() {
        report.bad(format!("The clock says {}, which is wrong: set it, or let NTP do it.", date(now_ms)));
    }
    certificates::of_files(config, now_ms, report);
    match &mut local {
        Some(local) => certificates::of_running(local, report),
        None => certificates::kept(config, now_ms, report),
    }
    match &in_use {
        Some(in_use) => ports::in_use(config, in_use, report),
        None if running => {}
        None => ports::free(config, report),
    }
    let was_bad = report.bad;
    federation(config, running, report);
    // Where others get here at all: whether what they sign gets here as it was sent.
    if let Some(local) = local.as_mut().filter(|_| config.federation.enabled && report.bad == was_bad)
        && !is_local_name(config)
    {
        match local.post("/examine", serde_json::json!({})) {
            Ok(said) => steps(&said, report),
            Err(error) => report.bad(format!("The server was asked to look at itself from outside: {error}.")),
        }
    }
}

/// The files of application services, as the server's user would read them. `runs_as`: as the running server says of itself.
fn services(config: &Config, runs_as: Option<RunsAs>, report: &mut Report) {
    let runs_as = runs_as.or_else(|| RunsAs::assumed(config));
    for serve::services::Found { file, read } in serve::services::read_all(config) {
        let name = file.display();
        match (read, runs_as.as_ref().filter(|runs_as| !runs_as.may_read(&file))) {
            // The running server said it.
            (Err(wrong), _) if report.lines.contains(&format!("{name}: {wrong}")) => {}
            (Err(wrong), _) => report.bad(format!("Application service {name}: {wrong}.")),
            (Ok(_), Some(runs_as)) => {
                let who = serve::user_name(runs_as.uid);
                let assumed = match runs_as.is_assumed {
                    true => {
                        " (This takes the groups that /etc/group gives it; those that its systemd unit adds are known while it runs.)"
                    }
                    false => "",
                };
                report.bad(format!(
                    "Application service {name}: {who}, as whom the server runs, may not read it, or may not enter a folder above it. \
                     Give it to a group that {who} is in, or run: sudo cat {name} | sudo -u {who} snug appservice add -{assumed}"
                ));
            }
            (Ok(read), None) => match &read.url {
                Some(url) => report.good(format!("The application service {} is registered, at {url}.", read.id)),
                None => report.good(format!("The application service {} is registered; it is told nothing.", read.id)),
            },
        }
    }
}

fn settings(config: &Config, report: &mut Report) {
    match &config.file {
        Some(file) => report.good(format!("The config {} can be read.", file.display())),
        None => report.note("There is no config file; everything has its default."),
    }
    match serve::profile(config) {
        Ok(profile) => {
            let (total, name) = (human(profile.total), &profile.name);
            report.good(format!("The memory budget {name} adds up: {total} at most."));
        }
        Err(error) => report.bad(format!("The memory budget cannot be used. {error}.")),
    }
    if config.apps.registration == Registration::Open && config.listen.iter().any(|open| !open.ip().is_loopback()) {
        report.note("Registration is open: every person who can reach this server may create an account.");
    }
}

/// The memory that the kernel grants this command. A server started in the same way would get the same.
fn granted(config: &Config, report: &mut Report) {
    let granted = Granted::now();
    match serve::profile(config).ok().and_then(|profile| granted.warning(&profile)) {
        Some(warning) => report.bad(format!("Started like this command, {warning}.")),
        None => report.note(format!("As this command sees it, {granted}.")),
    }
}

/// The running server as it reports itself: its control group may be another than this command's, and its config has
/// perhaps changed since it started. Answers where it listens, and as whom it runs.
fn of_running(config: &Config, local: &mut Local, report: &mut Report) -> Option<(InUse, Option<RunsAs>)> {
    match local.get("/budget") {
        Ok(said) => {
            let text = |field: &str| said[field].as_str().unwrap_or("?").to_owned();
            report.note(format!("Its memory budget is {}; as it sees it, {}.", text("profile"), text("granted")));
            if let Some(warning) = said["warning"].as_str() {
                report.bad(format!("As the server runs, {warning}."));
            }
        }
        Err(error) => report.bad(format!("The server's memory use is unknown: {error}.")),
    }
    findings(local, report);
    let said = match local.get("/server") {
        Ok(said) => said,
        Err(error) => {
            report.bad(format!("It was asked for its addresses: {error}."));
            return None;
        }
    };
    let (was, now) = (said["server_name"].as_str().unwrap_or("?"), &config.server_name);
    if was != now.as_str() {
        report.bad(format!(
            "The running server is {was}, and the config says {now}: with accounts it will not start again. Set server_name = \
             \"{was}\"."
        ));
    }
    Some((InUse::of(&said), runs_as(&said)))
}

/// As whom the server runs, in the answer of `/server`; one of an earlier version does not say it.
fn runs_as(said: &Value) -> Option<RunsAs> {
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let gids = said["gids"].as_array()?.iter().filter_map(number).collect();
    Some(RunsAs { uid: number(&said["uid"])?, gids, is_assumed: false })
}

/// What the running server says is not all right.
fn findings(local: &mut Local, report: &mut Report) {
    let said = match local.get("/findings") {
        Ok(said) => said,
        Err(error) => return report.bad(format!("It was asked what is wrong: {error}.")),
    };
    for finding in said["findings"].as_array().into_iter().flatten() {
        let sentence = finding["sentence"].as_str().unwrap_or("?");
        match finding["severity"].as_str() {
            Some("note") => report.note(sentence),
            _ => report.bad(sentence),
        }
    }
}

fn data(config: &Config, running: bool, report: &mut Report) {
    let folder = &config.data_dir;
    match std::fs::metadata(folder) {
        Ok(found) if found.is_dir() => {
            report.good(format!("The data folder is {}.", folder.display()));
            files(folder, &found, report);
        }
        Ok(_) => report.bad(format!("The data folder {} is not a folder.", folder.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            report.note(format!("The data folder {} will be made at the first start.", folder.display()));
            return;
        }
        Err(error) => report.bad(format!("The data folder {}: {error}.", folder.display())),
    }
    if let Ok(card) = Card::at(folder) {
        let (free, kept) = (human(card.free_bytes), human(card.household_bytes()));
        match card.spare_bytes() {
            // The server has said so.
            0 if running => {}
            0 => report.bad(format!(
                "Only {free} are free on the disk of the data folder: with {kept} or less, neither events of other \
                 servers nor uploads are accepted."
            )),
            _ => report.good(format!("{free} are free on its disk.")),
        }
    }
    if let Err(error) = serve::check_database(folder) {
        report.bad(format!("The database cannot be used: {error}."));
    }
    match serve::known_signing_key(folder) {
        Ok(Some(key)) => report.good(format!("The signing key is {}.", key.id())),
        Ok(None) if serve::has_database(folder).is_ok_and(|has| has) => {
            report.bad(
                "The signing key is missing: put it back from a backup, or make a new one with `snug new signing-key`.",
            );
        }
        Ok(None) => report.note("The signing key will be made at the first start."),
        Err(error) => report.bad(format!("The signing key cannot be used: {error}.")),
    }
    if let Err(error) = serve::old_signing_keys(folder) {
        report.bad(format!("The old signing keys cannot be used: {error}."));
    }
}

/// Checks that everything in the data folder belongs to the folder's owner, and that no other user can read it.
fn files(folder: &Path, found: &Metadata, report: &mut Report) {
    let (owner, mode, path) = (found.uid(), found.mode() & 0o777, folder.display());
    if is_open(found, 0o022) {
        report.bad(format!("Other users of this machine may change the data folder (mode {mode:o}): chmod go= {path}"));
    } else if is_open(found, 0o055) {
        report.note(format!(
            "Other users of this machine may see the names of files in the data folder (mode {mode:o}), not what is in private ones; \
             chmod go= {path} ends that."
        ));
    }
    for file in serve::kept(folder) {
        // A missing file is no fault: the server makes it.
        let Ok(found) = std::fs::metadata(&file) else { continue };
        if found.uid() != owner {
            let (file_owner, owner) = (serve::user_name(found.uid()), serve::user_name(owner));
            let (file, folder) = (file.display(), folder.display());
            report.bad(format!(
                "{file} belongs to {file_owner}, and the data folder to {owner}, whose server cannot use the file: \
                 sudo chown -R {owner}: {folder}"
            ));
        }
    }
    if let Ok(database) = std::fs::metadata(&serve::kept(folder)[0])
        && database.len() > COMPACT_BYTES
    {
        report.note(format!(
            "The database takes {}. Its free space is used again; `snug purge space` returns that space to the disk.",
            human(database.len())
        ));
    }
}

fn is_open(found: &Metadata, bits: u32) -> bool {
    found.mode() & bits != 0
}

/// Whether the name is one that no other machine can find.
fn is_local_name(config: &Config) -> bool {
    let name = &config.server_name;
    name.as_str() == "localhost" || name.host().ends_with(".localhost")
}

fn federation(config: &Config, running: bool, report: &mut Report) {
    let name = &config.server_name;
    if !config.federation.enabled {
        return report.note("Federation is switched off (federation.enabled = false).");
    }
    if is_local_name(config) {
        return report.note(format!(
            "The server name is {name}: people on this server can chat with each other, but other servers cannot find \
             it. Set server_name to a domain name that you own before the first account is made."
        ));
    }
    if !config.serves_federation() && config.client.tls_certificate.is_none() {
        report.note(
            "There is no certificate in the config: other servers reach this one only through a reverse proxy that speaks HTTPS, \
             or with certificates = \"acme\".",
        );
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report.bad(error.to_string()),
    };
    match stranger(config) {
        Ok(remote) => runtime.block_on(reach(config, &remote, running, report)),
        Err(error) => report.bad(format!("{error}.")),
    }
}

/// A stand-in for another server. It looks up this server's name as other servers do. In a closed network it follows
/// this server's own settings.
fn stranger(config: &Config) -> Result<Remote, String> {
    let name = OwnedServerName::try_from("check.invalid").map_err(|error| error.to_string())?;
    let mut seed = [0; 32];
    Random::os().fill(&mut seed);
    let mut options = RemoteOptions::new(name, Arc::new(sign::Key::from_seed("check", seed)));
    options.overrides = config.federation.overrides.clone();
    options.allow_private = config.federation.allow_private_addresses;
    if let Some(file) = &config.federation.extra_ca_file {
        options.extra_ca_pem =
            Some(serve::roots(file).map_err(|error| format!("federation.extra_ca_file: {}: {error}", file.display()))?);
    }
    options.friends = serve::friends(config).map_err(|error| error.to_string())?;
    // What a friend would be given.
    if config.certificates.source == Source::Own
        && let Ok(Some(root)) = crate::certificates::root_pem(&config.data_dir.join(serve::CERTIFICATES))
    {
        options.friends.push((name_of(config), root.into_bytes()));
    }
    let profile = serve::profile(config).map_err(|error| error.to_string())?;
    Remote::new(options, Clock::real(), Random::os(), &Budget::from_profile(profile), Store::in_memory())
        .map_err(|error| format!("federation.extra_ca_file: {error}"))
}

/// The name under which other servers know this one, or the one it leads them to.
fn name_of(config: &Config) -> String {
    config.federation.name.clone().unwrap_or_else(|| config.server_name.to_string())
}

async fn reach(config: &Config, remote: &Remote, running: bool, report: &mut Report) {
    let name = &config.server_name;
    match remote.locate(name).await {
        Ok((host, addresses)) => {
            let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            report.good(format!("Other servers look for {name} at {} as {host}.", shown.join(", ")));
            if config.federation.overrides.iter().any(|(known, _)| known.eq_ignore_ascii_case(name.as_str())) {
                report.note(
                    "That comes from federation.overrides: other servers use this address only if their own \
                 overrides, or the DNS, say the same.",
                );
            } else if addresses.iter().all(|address| remote::is_private(address.ip())) {
                report.note("That is an address of your own network: only machines inside that network can reach it.");
            }
            led_to(config, &host, report);
        }
        Err(error) => {
            return report.bad(format!(
                "Other servers cannot find {name}: it {error}. It needs an address in the DNS, or a file \
                 https://{name}/.well-known/matrix/server that says where the server is."
            ));
        }
    }
    if !running {
        return report.note("Start the server to check whether they can reach it.");
    }
    let options = Options { timeout: Duration::from_secs(20), ..Options::insisting() };
    let answer = remote.request(name, Method::GET, "/_matrix/key/v2/server", None, options).await;
    match answer.and_then(|answer| answer.json::<Value>()) {
        Ok((said, _paid)) => whose(config, &said, report),
        Err(error) => report.bad(format!(
            "This machine does not reach the server as others would: it {error}. Is port 8448, or the one in \
             /.well-known/matrix/server, forwarded to it? Is the certificate for that name, with its whole chain, and from an \
             authority everybody trusts, such as Let's Encrypt? (Some home routers do not let a machine reach itself from inside; \
             then try from outside.)"
        )),
    }
}

/// Checks the host that other servers find: it must be that of `federation.name`, and the certificate must be for it.
fn led_to(config: &Config, host: &str, report: &mut Report) {
    let settings = &config.federation;
    if let Some(told) = settings.name.as_deref().filter(|told| *told != host) {
        report.bad(format!(
            "federation.name is {told}, but other servers are led to {host}: https://{}/.well-known/matrix/server is \
             missing or names another host.",
            config.server_name.host()
        ));
    }
    let bare = <&ServerName>::try_from(host).map_or(host, |name| name.host());
    let bare = bare.trim_start_matches('[').trim_end_matches(']');
    match certificates::is_for(config, bare) {
        Some(true) => report.good(format!("The certificate of [federation] is for {bare}.")),
        Some(false) => report
            .bad(format!("The certificate of [federation] is not for {bare}, the name that other servers require.")),
        None => {}
    }
}

/// Checks that the answer came from this server, not from another one.
fn whose(config: &Config, said: &Value, report: &mut Report) {
    let key = match serve::known_signing_key(&config.data_dir) {
        Ok(Some(key)) => key,
        _ => return,
    };
    let (name, answered) = (config.server_name.as_str(), said["server_name"].as_str().unwrap_or("nobody"));
    if answered != name {
        report.bad(format!("Another server answers there: its name is {answered}."));
    } else if said["verify_keys"][key.id()]["key"] != key.public().to_base64() {
        report.bad("A server of this name answers there, but with another signing key: is it another installation?");
    } else {
        report.good("This server can be reached in the way other servers reach it.");
    }
}
