//! Every setting once: name, default, description for the sample file, and check.
//!
//! [`settings`] is the table of all settings; each section is a file. A config file is read against the table, so the error
//! for an unknown name can suggest the nearest known one. The sample file is the table written out. A choice
//! is an enum of the part that it configures. Only `serve` and `cli` read settings; they pass values on.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ruma::OwnedServerName;
use toml::de::{DeTable, DeValue};

use crate::client::{Options, Registration};
use crate::http::Rate;
use crate::media;
use crate::relay::Options as RelayOptions;
use crate::room::{Policies, SearchOptions};
use crate::web::Mount;
use client::Client;
use federation::Federation;
use file::{find, is_section, read, setting_at, unknown};
use given::Given;
use home::Home;
use push::Push;
use rooms::Rooms;
use setting::{address, own_name, server_name, write_settings};

mod backup;
mod calls;
mod certificates;
mod home;
mod relay;
mod rtc;
mod client;
mod edit;
mod federation;
mod file;
mod general;
mod given;
mod files;
mod metrics;
mod moderation;
mod notices;
mod page;
mod policies;
mod previews;
mod push;
mod rates;
mod rooms;
mod search;
mod setting;
mod support;
mod terms;

pub use certificates::Certificates;
pub use edit::typed;
pub use metrics::Metrics;
pub use moderation::Moderation;
pub use notices::Notices;
pub use page::Page;
pub use previews::Previews;
pub use setting::Setting;

/// The config file when none is named and the data folder has no `snug.toml`.
pub const SYSTEM_FILE: &str = "/etc/snug/snug.toml";
/// The default data folder.
pub const DATA_DIR: &str = "snug-data";
/// The default data folder with the system's config file. Absolute, so it does not depend on the working directory.
const SYSTEM_DATA_DIR: &str = "/var/lib/snug";
/// The name of the config file in the data folder.
pub const FILE_NAME: &str = "snug.toml";

/// All settings, in the order of the sample file. A section's settings stand together.
pub fn settings() -> impl Iterator<Item = &'static Setting> {
    [
        general::SETTINGS,
        certificates::GENERAL,
        client::SETTINGS,
        rates::SETTINGS,
        page::SETTINGS,
        metrics::SETTINGS,
        federation::SETTINGS,
        certificates::SETTINGS,
        rooms::SETTINGS,
        policies::SETTINGS,
        moderation::SETTINGS,
        search::SETTINGS,
        files::SETTINGS,
        previews::SETTINGS,
        push::SETTINGS,
        calls::SETTINGS,
        relay::SETTINGS,
        rtc::SETTINGS,
        home::SETTINGS,
        notices::SETTINGS,
        terms::SETTINGS,
        backup::SETTINGS,
        support::SETTINGS,
    ]
    .into_iter()
    .flatten()
}

/// The settings, in the types that the parts take.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file the settings were read from.
    pub file: Option<PathBuf>,
    pub server_name: OwnedServerName,
    pub data_dir: PathBuf,
    pub listen: Vec<SocketAddr>,
    /// Whether the operator said where to listen.
    pub is_listen_set: bool,
    pub budget: Option<String>,
    /// Registration, and the address that apps are told.
    pub apps: Options,
    /// After so many days the account of a guest is closed; `None`: never.
    pub guests_unused_days: Option<u64>,
    pub upload_bytes_max: u64,
    /// `None` is a share of the disk.
    pub account_upload_bytes_max: Option<u64>,
    /// `[media]`; the two bounds above stand outside of it.
    pub media: media::Options,
    pub trusted_proxies: Vec<IpAddr>,
    pub rate_limits: bool,
    /// Rates of the client API, each instead of the one of its name.
    pub rates: Vec<Rate>,
    /// The machine's clock is right whatever the database remembers.
    pub trust_clock: bool,
    pub log: String,
    /// Whether a line of the log is JSON.
    pub json_log: bool,
    pub client: Client,
    pub page: Page,
    pub metrics: Metrics,
    /// Folders served at paths.
    pub web: Vec<Mount>,
    pub certificates: Certificates,
    pub federation: Federation,
    pub rooms: Rooms,
    pub policies: Policies,
    pub moderation: Moderation,
    pub previews: Previews,
    pub search: SearchOptions,
    pub push: Push,
    pub notices: Notices,
    /// Files of application services, and folders of such.
    pub appservices: Vec<PathBuf>,
    /// Backups that are made each day.
    pub backup: crate::backup::Options,
    /// The relay for calls, in `[turn]`.
    pub relay: RelayOptions,
    pub home: Home,
    /// Files outside the data folder that have secrets in them.
    pub secret_files: Vec<PathBuf>,
    /// What the file says, as it is written there, by the name of the setting.
    pub written: BTreeMap<&'static str, String>,
    /// What the file says by now of settings that are in force as they were at the start.
    pub waits: BTreeMap<&'static str, Option<String>>,
    /// What the command line said, for reading the settings again.
    pub overrides: Overrides,
}

/// The values of the command line, which take precedence over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub config: Option<PathBuf>,
    pub data_dir: Option<PathBuf>,
    pub listen: Vec<String>,
    pub budget: Option<String>,
    pub server_name: Option<String>,
}

/// What to do by hand, since a setting could not be written.
fn unchanged(file: &Path, name: &str, value: &Option<String>, why: String) -> String {
    let (section, key) = name.rsplit_once('.').unwrap_or(("", name));
    let place = if section.is_empty() { "above the first section".to_owned() } else { format!("below [{section}]") };
    let what = match value {
        Some(value) => format!("write `{key} = {value}` there by hand, {place}"),
        None => format!("take `{key}` out there by hand, {place}"),
    };
    format!("{} is as it was: {why}. To change it, {what}, and have the file read again", file.display())
}

/// An error in the settings: what is wrong, where, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub file: Option<PathBuf>,
    pub line: Option<usize>,
    pub setting: Option<String>,
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            match self.line {
                Some(line) => write!(f, "{line}: ")?,
                None => write!(f, " ")?,
            }
        }
        if let Some(setting) = &self.setting {
            write!(f, "{setting}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl Error {
    fn new(message: impl Into<String>) -> Error {
        Error { file: None, line: None, setting: None, message: message.into() }
    }

    fn of(setting: &str, message: impl Into<String>) -> Error {
        Error { setting: Some(setting.to_owned()), ..Error::new(message) }
    }
}

impl Config {
    /// Finds and reads the config file, then applies the command line. Without a file every setting has its default.
    pub fn load(overrides: &Overrides) -> Result<Config, Error> {
        let file = find(overrides)?;
        let text = file.as_deref().map(read).transpose().map_err(Error::new)?;
        Config::of(overrides, file, text.as_deref())
    }

    /// The settings of a file's text, and of the command line.
    fn of(overrides: &Overrides, file: Option<PathBuf>, text: Option<&str>) -> Result<Config, Error> {
        let mut config = match (&file, text) {
            (Some(file), Some(text)) => Config::parse(text, file)?,
            _ => Config::default(),
        };
        config.apply(overrides)?;
        config.overrides = overrides.clone();
        config.set_default_addresses();
        config.check().map_err(|error| Error { file, ..error })?;
        Ok(config)
    }

    /// Parses the text of a config file. `file` is named in messages; paths are relative to its folder.
    pub fn parse(text: &str, file: &Path) -> Result<Config, Error> {
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let mut config = Config { file: Some(file.to_owned()), ..Config::default() };
        if folder.file_name().is_some_and(|name| name == DATA_DIR) || folder.join("database").exists() {
            config.data_dir = folder.clone();
        } else if file == Path::new(SYSTEM_FILE) {
            config.data_dir = SYSTEM_DATA_DIR.into();
        }
        let line_of =
            |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
        let located = |error: Error, at: usize| Error { file: Some(file.to_owned()), line: Some(line_of(at)), ..error };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            located(Error { setting: setting_at(text, at), ..Error::new(error.message()) }, at)
        })?;
        config.set_all("", table.get_ref(), &folder, text).map_err(|(error, at)| located(error, at))?;
        Ok(config)
    }

    /// Why the server cannot write into its config file; `None` where it can.
    pub fn closed(&self) -> Option<String> {
        match &self.file {
            Some(file) => file::check_open(file).err(),
            None => Some("this server was started without a config file".to_owned()),
        }
    }

    /// Writes a setting into the config file as somebody typed it, or takes it out, and nothing else of the file changes. An
    /// error is a sentence for who typed it; then the file is as it was.
    pub fn change(&self, name: &str, typed: Option<&str>) -> Result<(), String> {
        let setting = settings().find(|setting| setting.name == name);
        let found = setting.and_then(|setting| Some((setting, setting.input?)));
        let (setting, input) = found.ok_or("this setting is changed in the config file alone")?;
        let value = typed.map(|typed| edit::value(input, typed)).transpose()?;
        let file = self.file.clone().ok_or("this server was started without a config file")?;
        let before = read(&file)?;
        let after = edit::with(&before, name, value.as_deref()).map_err(|why| unchanged(&file, name, &value, why))?;
        let of = |text: &str| Config::of(&self.overrides, Some(file.clone()), Some(text));
        let old = of(&before).map_err(|error| error.to_string())?;
        let new = of(&after).map_err(|error| error.message)?;
        // Whatever the text looked like, this is what counts.
        let mut wanted = old.written;
        match &value {
            Some(value) => wanted.insert(setting.name, value.clone()),
            None => wanted.remove(setting.name),
        };
        if new.written != wanted {
            let why = "the file says it in another way than this page can change".to_owned();
            return Err(unchanged(&file, name, &value, why));
        }
        file::replace(&file, &after).map_err(|why| unchanged(&file, name, &value, why))
    }

    fn set_all(&mut self, section: &str, table: &DeTable<'_>, folder: &Path, text: &str) -> Result<(), (Error, usize)> {
        for (key, value) in table.iter() {
            let name = format!("{section}{}", key.get_ref());
            let inside = format!("{name}.");
            let at = key.span().start;
            if let Some(setting) = settings().find(|setting| setting.name == name) {
                let given = Given { value: value.get_ref(), folder, example: setting.example };
                (setting.set)(self, &given).map_err(|message| (Error::of(&name, message), at))?;
                let written = text.get(value.span()).unwrap_or_default();
                self.written.insert(setting.name, written.to_owned());
                if let Some(file) =
                    self.file.clone().filter(|file| setting.is_secret() && !self.secret_files.contains(file))
                {
                    self.secret_files.push(file);
                }
            } else if let Some(table) = value.get_ref().as_table().filter(|_| is_section(&inside)) {
                self.set_all(&inside, table, folder, text)?;
            } else if is_section(&inside) {
                let message = format!("is a section: write [{name}], and its settings below that");
                return Err((Error::of(&name, message), at));
            } else {
                return Err((Error::of(&name, unknown(&name)), at));
            }
        }
        Ok(())
    }

    fn apply(&mut self, overrides: &Overrides) -> Result<(), Error> {
        if let Some(folder) = &overrides.data_dir {
            self.data_dir = folder.clone();
        }
        if let Some(name) = &overrides.server_name {
            self.server_name = own_name(name).map_err(|message| Error::of("--server-name", message))?;
        }
        if let Some(budget) = &overrides.budget {
            self.budget = Some(budget.clone());
        }
        if !overrides.listen.is_empty() {
            let parsed = overrides.listen.iter().map(|text| address(text)).collect::<Result<_, _>>();
            self.listen = parsed.map_err(|message| Error::of("--listen", message))?;
            self.is_listen_set = true;
        }
        Ok(())
    }

    /// The settings that another reading of the file has changed: those that are in force without a restart, and the
    /// others.
    pub fn changed(&self, newer: &Config) -> (Vec<&'static str>, Vec<&'static str>) {
        let is_other = |setting: &&Setting| self.written.get(setting.name) != newer.written.get(setting.name);
        let (live, others): (Vec<_>, Vec<_>) = settings().filter(is_other).partition(|setting| setting.live);
        let names = |of: Vec<&'static Setting>| of.into_iter().map(|setting| setting.name).collect();
        (names(live), names(others))
    }

    /// The checks that need more than one setting.
    fn check(&self) -> Result<(), Error> {
        let pairs = [
            ("client", &self.client.tls_certificate, &self.client.tls_private_key),
            ("federation", &self.federation.tls_certificate, &self.federation.tls_private_key),
        ];
        for (section, certificate, key) in pairs {
            if certificate.is_some() != key.is_some() {
                let (there, missing) = match certificate {
                    Some(_) => ("tls_certificate", "tls_private_key"),
                    None => ("tls_private_key", "tls_certificate"),
                };
                let name = format!("{section}.{there}");
                return Err(Error::of(&name, format!("{section}.{missing} must be set too")));
            }
        }
        self.check_certificates()?;
        federation::check(&self.federation, &self.server_name)
            .map_err(|wrong| Error::of("federation.denied_servers", wrong))?;
        moderation::check(&self.moderation).map_err(|wrong| Error::of("moderation.policy_lists", wrong))?;
        if self.listen.is_empty() {
            return Err(Error::of("listen", "needs at least one address, or no app can connect"));
        }
        if self.backup.recipient.is_some() && self.backup.passphrase_file.is_some() {
            return Err(Error::of("backup.recipient", "cannot be set together with backup.passphrase_file"));
        }
        if self.apps.registration == Registration::Token && self.apps.registration_tokens.is_empty() {
            let message = "\"token\" needs registration_tokens or registration_tokens_file with at least one token";
            return Err(Error::of("registration", message));
        }
        if let Some(livekit) = &self.apps.calls.livekit {
            let all =
                [("livekit_url", &livekit.url), ("livekit_key", &livekit.key), ("livekit_secret", &livekit.secret)];
            for (name, value) in all {
                if value.is_empty() {
                    return Err(Error::of(&format!("rtc.{name}"), "must be set with the others of a LiveKit server"));
                }
            }
        }
        Ok(())
    }

    /// The sample file: the whole table, with every setting commented out.
    pub fn sample() -> String {
        let mut out = String::from(
            "# The settings of Snug, a Matrix homeserver. Every setting is shown with its default, or with an example where it has none.\n",
        );
        write_settings(&mut out, |_| true, |_| None);
        out
    }

    /// The short config file of a first start: the settings that are most often changed first.
    pub fn first_file(&self) -> String {
        let mut out = String::from(
            "# Settings of this Snug server. What is commented out shows the default or an example;\n\
             # `snug sample-config` prints all settings. `snug reload` makes most changes\n\
             # take effect; it names those that need a restart.\n",
        );
        let name = format!("{:?}", self.server_name.as_str());
        let chosen = |setting: &Setting| (setting.name == "server_name").then(|| name.clone());
        write_settings(&mut out, |setting| setting.first, chosen);
        out
    }
}

impl Default for Config {
    fn default() -> Config {
        let mut config = Config {
            file: None,
            server_name: server_name("localhost").expect("localhost is a server name"),
            data_dir: DATA_DIR.into(),
            listen: Vec::new(),
            is_listen_set: false,
            budget: None,
            apps: Options::default(),
            guests_unused_days: None,
            upload_bytes_max: 0,
            account_upload_bytes_max: None,
            media: media::Options::default(),
            trusted_proxies: Vec::new(),
            rate_limits: true,
            rates: Vec::new(),
            trust_clock: false,
            log: String::new(),
            json_log: false,
            client: Client::default(),
            page: Page::default(),
            metrics: Metrics::default(),
            web: Vec::new(),
            certificates: Certificates::default(),
            federation: Federation::default(),
            rooms: Rooms::default(),
            policies: Policies::default(),
            moderation: Moderation::default(),
            previews: Previews::default(),
            search: SearchOptions::default(),
            push: Push::default(),
            notices: Notices::default(),
            appservices: Vec::new(),
            backup: crate::backup::Options::default(),
            relay: RelayOptions::default(),
            home: Home::default(),
            secret_files: Vec::new(),
            written: BTreeMap::new(),
            waits: BTreeMap::new(),
            overrides: Overrides::default(),
        };
        for setting in settings() {
            let Some(default) = setting.default else { continue };
            let value = DeValue::parse(default).expect("every default is TOML");
            let given = Given { value: value.get_ref(), folder: Path::new(""), example: setting.example };
            (setting.set)(&mut config, &given).expect("every default passes its own check");
        }
        config.is_listen_set = false;
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config = Config::parse(text, Path::new("/etc/x/snug.toml")).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    fn check(text: &str, error: &str) {
        assert_eq!(parse(text).unwrap_err(), error);
    }

    #[test]
    fn secrets_are_known_as_such() {
        let secret: Vec<_> = settings().filter(|setting| setting.is_secret()).map(|setting| setting.name).collect();
        for name in [
            "registration_tokens",
            "registration_shared_secret",
            "metrics.token",
            "turn.shared_secret",
            "rtc.livekit_key",
            "acme.eab_key",
        ] {
            assert!(secret.contains(&name), "{name} in {secret:?}");
        }
        for name in ["access_token_lifetime_minutes", "registration_tokens_file", "client.tls_private_key"] {
            assert!(!secret.contains(&name), "{name}");
        }
        // Whoever else may read the file is warned of, whichever secret is in it.
        let files = |text: &str| Config::parse(text, Path::new("/etc/x/snug.toml")).unwrap().secret_files.len();
        assert_eq!(files("[turn]\nshared_secret = \"a\""), 1);
        assert_eq!(files("registration_shared_secret = \"a\"\n[rtc]\nlivekit_secret = \"b\""), 1);
        assert_eq!(files("log = \"info\""), 0);
    }

    #[test]
    fn errors_name_file_line_setting_and_what_is_allowed() {
        check(
            "\n\nregistration = \"maybe\"\n",
            "/etc/x/snug.toml:3: registration: \"maybe\" is not one of \"open\", \"token\", \"closed\"",
        );
        check(
            "listen = \"127.0.0.1:1\"",
            "/etc/x/snug.toml:1: listen: must be a list of texts in quotes, such as [\"127.0.0.1:8008\"]",
        );
        check(
            "log = \"verbose\"",
            "/etc/x/snug.toml:1: log: \"verbose\" is not one of error, warn, info, debug, trace, off or a list such as \
             \"info,snug::remote=debug\"",
        );
        parse("log = \"info,snug::remote=debug\"").unwrap();
        check(
            "[rooms]\ndefault_version = \"1\"",
            "/etc/x/snug.toml:2: rooms.default_version: this server creates no rooms of version \"1\"",
        );
        check(
            "server_name = \"Example.org\"",
            "/etc/x/snug.toml:1: server_name: \"Example.org\" must be written in small letters: \"example.org\"",
        );
        check(
            "federation = true",
            "/etc/x/snug.toml:1: federation: is a section: write [federation], and its settings below that",
        );
        check("listen = []", "listen: needs at least one address, or no app can connect");
        check(
            "[turn]\nshared_secret = \"\"",
            "/etc/x/snug.toml:2: turn.shared_secret: must not be empty: anybody could make names and passwords then",
        );
        check(
            "registration_shared_secret = \"\"",
            "/etc/x/snug.toml:1: registration_shared_secret: must not be empty: anybody could make accounts then, administrators' too",
        );
        check(
            "[federation]\nenabled = 1",
            "/etc/x/snug.toml:2: federation.enabled: must be true or false, not integer",
        );
        check(
            "server_name = \"a b\"",
            "/etc/x/snug.toml:1: server_name: \"a b\" is not a server name such as example.org or example.org:8448",
        );
    }

    /// What is no TOML had a line and no name.
    #[test]
    fn what_is_no_toml_is_an_error_of_its_setting() {
        for (text, place) in [
            ("listen = [\"127.0.0.1:8008\"\nlog = \"info\"\n", "/etc/x/snug.toml:2: log: "),
            ("log = \"info\"\nlog = \"warn\"\n", "/etc/x/snug.toml:2: log: "),
            ("[federation]\n\nname = matrix.example.org\n", "/etc/x/snug.toml:3: federation.name: "),
            ("[federation]\nenabled = true\n[federation]\n", "/etc/x/snug.toml:3: federation: "),
            ("server_name = \"a.example\n", "/etc/x/snug.toml:1: server_name: "),
            ("listen", "/etc/x/snug.toml:1: listen: "),
            ("\u{0}= 1", "/etc/x/snug.toml:1: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(place) && error.len() > place.len(), "{error}");
        }
    }

    #[test]
    fn an_unknown_setting_is_an_error_with_the_nearest_name() {
        check(
            "registratoin = 1",
            "/etc/x/snug.toml:1: registratoin: there is no such setting; the nearest is registration",
        );
        check(
            "[federation]\nserver_name = \"x\"",
            "/etc/x/snug.toml:2: federation.server_name: there is no such setting; the nearest is server_name",
        );
        let long = format!("\"{}\" = 1", "é".repeat(50_000));
        assert!(parse(&long).unwrap_err().ends_with("`snug sample-config` prints all settings"));
        check(
            "port = 8008",
            "/etc/x/snug.toml:1: port: there is no such setting; `snug sample-config` prints all settings",
        );
    }

    #[test]
    fn settings_that_need_each_other() {
        let error = parse("[federation]\ntls_certificate = \"a\"").unwrap_err();
        assert_eq!(error, "federation.tls_certificate: federation.tls_private_key must be set too");
        assert!(parse("registration = \"token\"").unwrap_err().contains("needs registration_tokens"));
        parse("registration = \"token\"\nregistration_tokens = [\"a-b\"]").unwrap();
    }

    #[test]
    fn terms_are_tables_of_policies() {
        let text = "[terms.policies.privacy_policy]\nversion = \"1.2\"\nen = { name = \"Privacy\", url = \"https://a.example/p\" }\n\
                    de = { name = \"Datenschutz\", url = \"https://a.example/d\" }\n";
        let terms = parse(text).unwrap().apps.terms;
        assert!(terms.required_to_send && terms.digest() != 0);
        assert_eq!((terms.policies.len(), terms.policies[0].texts.len()), (1, 2));
        let newer = parse(&text.replace("1.2", "1.3")).unwrap().apps.terms;
        assert_ne!(terms.digest(), newer.digest());
        let renamed = parse(&text.replace("Datenschutz", "Privatsphäre")).unwrap().apps.terms;
        assert_eq!(terms.digest(), renamed.digest());
        assert!(parse(&text.replace("version", "vers")).unwrap_err().contains("privacy_policy needs a version"));
        assert!(parse(&text.replace("url", "uri")).unwrap_err().contains("needs a name, and a url or a file"));
        let missing = text.replace("url = \"https://a.example/d\"", "file = \"nowhere.txt\"");
        assert!(parse(&missing).unwrap_err().contains("/etc/x/nowhere.txt"));
    }

    #[test]
    fn contacts_are_people() {
        let text = "[support]\ncontacts = [{ matrix_id = \"@alice:a.example\" }, { role = \"m.role.security\", email_address = \"a@b.example\" }]";
        let contacts = parse(text).unwrap().apps.support.contacts;
        assert_eq!((contacts[0].role.as_str(), contacts[1].role.as_str()), ("m.role.admin", "m.role.security"));
        assert!(parse(&text.replace("@alice", "alice")).unwrap_err().contains("is not a Matrix ID"));
        assert!(parse("[support]\ncontacts = [{ phone = \"1\" }]").unwrap_err().contains("is not one of role"));
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = parse("data_dir = \"d\"\n[federation.overrides]\n\"b.example\" = \"127.0.0.1:1\"").unwrap();
        assert_eq!(config.data_dir, Path::new("/etc/x/d"));
        assert_eq!(config.federation.overrides, [("b.example".to_owned(), "127.0.0.1:1".to_owned())]);
    }

    /// The sample has every setting. Without the comment signs it is read without an error.
    #[test]
    fn the_sample_is_the_table() {
        let sample = Config::sample();
        parse(&sample).unwrap();
        let bare: Vec<_> = sample
            .lines()
            .filter_map(|line| line.strip_prefix("# ").or(line.starts_with('[').then_some(line)))
            .collect();
        let bare: Vec<_> = bare
            .into_iter()
            .filter(|line| {
                line.contains(" = ") && line.starts_with(|c: char| c.is_ascii_lowercase()) || line.starts_with('[')
            })
            .collect();
        for setting in settings() {
            let name = setting.name.rsplit('.').next().unwrap();
            let line = format!("{name} = {}", setting.example);
            assert!(bare.contains(&line.as_str()), "{} is not in the sample", setting.name);
        }
        parse(&Config::default().first_file()).unwrap();
    }

    #[test]
    fn any_bytes_are_settings_or_an_error() {
        let seed: &[u8] =
            b"server_name = \"a.example\"\nlisten = [\"127.0.0.1:8008\"]\nupload_bytes_max = \"50 MiB\"\n\n\
            [federation]\nhourly_bytes_max = \"1 GiB\"\noverrides = { \"b.example\" = \"[::1]:8448\" }\n";
        crate::base::any_bytes::any_bytes(&[seed], |bytes| drop(parse(&String::from_utf8_lossy(bytes))));
    }
}
