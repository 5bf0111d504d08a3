//! `certificates` and `[acme]`: certificates that the server gets or makes by itself.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};

use super::Config;
use super::file::read;
use super::setting::{Setting, addresses, optional, setting};
use crate::certificates::{AcmeOptions, Challenge, NAMES_MAX, PRODUCTION, STAGING, Source};

/// The longest contact address (RFC 5321) and name of a key.
const TEXT_BYTES_MAX: usize = 320;

/// Where certificates come from that no file is named for.
#[derive(Debug, Clone, Default)]
pub struct Certificates {
    pub source: Source,
    /// What the certificate is to be for, when that was said.
    pub names: Vec<String>,
    /// Addresses that speak plain HTTP beside those with certificates.
    pub plain_listen: Vec<std::net::SocketAddr>,
    pub acme: AcmeOptions,
    pub staging: bool,
    pub root_file: Option<PathBuf>,
    key_id: Option<String>,
    key: Option<Vec<u8>>,
}

impl Certificates {
    /// The authority as it was chosen, without the root, whose file is still to be read.
    pub fn acme(&self) -> AcmeOptions {
        let mut acme = self.acme.clone();
        if acme.directory.is_empty() {
            acme.directory = if self.staging { STAGING } else { PRODUCTION }.to_owned();
        }
        acme.external_account = self.key_id.clone().zip(self.key.clone());
        acme
    }
}

impl Config {
    /// The names that a certificate of our own must have, each once: those that were said, or else the server's name and
    /// the hosts of its other addresses.
    pub fn certificate_names(&self) -> Vec<String> {
        let host = |url: &str| url::Url::parse(url).ok()?.host_str().map(str::to_owned);
        let said = self.certificates.names.iter().cloned();
        let server = [self.server_name.host().to_owned()].into_iter();
        let public = self.apps.public_url.iter().filter_map(|url| host(url));
        let servers = self.federation.name.iter().filter_map(|name| host(&format!("https://{name}")));
        let mut names = Vec::new();
        let all: Vec<String> = if self.certificates.names.is_empty() {
            server.chain(public).chain(servers).collect()
        } else {
            said.collect()
        };
        for name in all {
            let name = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Whether other servers are met with a certificate.
    pub fn serves_federation(&self) -> bool {
        let has_certificate = self.federation.tls_certificate.is_some() || self.certificates.source != Source::Files;
        self.federation.enabled && has_certificate
    }

    /// The addresses for apps. With certificates of our own, and none said, those that apps try first.
    pub(super) fn set_default_addresses(&mut self) {
        if self.certificates.source != Source::Files && !self.is_listen_set {
            self.listen = vec![([0u16; 8], 443).into()];
        }
    }

    pub(super) fn check_certificates(&self) -> Result<(), super::Error> {
        let certificates = &self.certificates;
        let wrong = |setting: &str, why: &str| super::Error::of(setting, why);
        if certificates.key_id.is_some() != certificates.key.is_some() {
            return Err(wrong("acme.eab_key_id", "needs acme.eab_key or acme.eab_key_file, and the other way round"));
        }
        if certificates.source != Source::Acme {
            return Ok(());
        }
        let unfit = |name: &&String| name.parse::<std::net::IpAddr>().is_ok() || !name.contains('.');
        match self.certificate_names().iter().find(unfit) {
            Some(name) => Err(wrong(
                "certificates",
                &format!(
                    "no authority gives a certificate for {name}, which is no name of the DNS: set server_name to a name that you \
                     own, or certificates = \"own\" to have an authority of this house's own"
                ),
            )),
            None => Ok(()),
        }
    }
}

pub const GENERAL: &[Setting] = &[
    setting(
        "certificates",
        r#""files""#,
        "Where the certificate for HTTPS comes from where no tls_certificate is set: \"files\" (nowhere), \"acme\" (from Let's Encrypt or \
         another authority, see [acme]; server_name must lead to this machine, with ports 80 or 443 forwarded) or \"own\" (from an \
         authority that this server makes, for a home without a name in the DNS; each phone installs it once, from \
         http://this-machine/_snug/certificate). With one of the latter two `listen` is [\"[::]:443\"] when it is not set, and what \
         it names speaks HTTPS; addresses of this machine alone, such as 127.0.0.1, stay plain for a proxy.",
        |config, given| {
            let known = [("files", Source::Files), ("acme", Source::Acme), ("own", Source::Own)];
            Ok(config.certificates.source = given.one_of(&known)?)
        },
    )
    .shown_first(),
    optional(
        "certificate_names",
        r#"["example.org", "matrix.example.org"]"#,
        "What that certificate is for. When not set: the server name, and the names in public_url and federation.name.",
        |config, given| {
            let name = |text: &str| match rustls::pki_types::ServerName::try_from(text) {
                Ok(_) if text.len() < TEXT_BYTES_MAX => Ok(text.to_ascii_lowercase()),
                _ => Err(format!("{text:?} is neither a name nor an address")),
            };
            let names = given.texts()?;
            if names.len() > NAMES_MAX {
                return Err(format!("a certificate has {NAMES_MAX} names at most"));
            }
            Ok(config.certificates.names = names.into_iter().map(name).collect::<Result<_, _>>()?)
        },
    ),
    setting(
        "plain_listen",
        r#"["[::]:80"]"#,
        "With certificates of its own the server opens these addresses too. They answer the authority's questions, show the page with \
         the house's own certificate, and lead browsers to HTTPS. Without port 80 the authority asks on port 443.",
        |config, given| Ok(config.certificates.plain_listen = addresses(given)?),
    ),
];

pub const SETTINGS: &[Setting] = &[
    optional(
        "acme.directory",
        r#""https://acme.example.org/directory""#,
        "The authority. When not set: Let's Encrypt.",
        |config, given| match given.text()? {
            url if url.starts_with("https://") && url.len() <= 2048 => {
                Ok(config.certificates.acme.directory = url.to_owned())
            }
            other => Err(format!("{other:?} is not a URL such as \"https://acme.example.org/directory\"")),
        },
    ),
    setting(
        "acme.staging",
        "false",
        "Asks Let's Encrypt's servers for trying out. Their limits are wide, and nobody believes their certificates.",
        |config, given| Ok(config.certificates.staging = given.flag()?),
    ),
    optional(
        "acme.email",
        r#""me@example.org""#,
        "Where the authority writes to. Let's Encrypt needs none and sends no warnings.",
        |config, given| {
            let text = given.text()?;
            let fits = text.len() <= TEXT_BYTES_MAX && !text.contains(|c: char| c.is_whitespace() || ",?".contains(c));
            match text.split_once('@') {
                Some((who, place)) if fits && !who.is_empty() && !place.is_empty() => {
                    Ok(config.certificates.acme.email = Some(text.to_owned()))
                }
                _ => Err(format!("{text:?} is no address such as \"me@example.org\"")),
            }
        },
    ),
    setting(
        "acme.challenge",
        r#""any""#,
        "How the authority checks a name: \"http-01\" (it asks on port 80), \"tls-alpn-01\" (it connects to port 443, which may be \
         forwarded to any port here that speaks HTTPS) or \"any\" (one after the other).",
        |config, given| {
            let known = [("any", Challenge::Any), ("http-01", Challenge::Http), ("tls-alpn-01", Challenge::Tls)];
            Ok(config.certificates.acme.challenge = given.one_of(&known)?)
        },
    ),
    optional(
        "acme.extra_ca_file",
        r#""/etc/snug/acme-root.pem""#,
        "Authorities under which the servers of acme.directory are believed, beside the usual ones: for an authority in a company or at \
         home, such as step-ca.",
        |config, given| Ok(config.certificates.root_file = Some(given.path()?)),
    ),
    optional(
        "acme.eab_key_id",
        r#""kid-1""#,
        "External account binding: some authorities want to know whose account it is, and give out a name and a key for that.",
        |config, given| match given.text()? {
            text if !text.is_empty() && text.len() <= TEXT_BYTES_MAX => {
                Ok(config.certificates.key_id = Some(text.to_owned()))
            }
            _ => Err(format!("must have 1 to {TEXT_BYTES_MAX} bytes")),
        },
    ),
    optional(
        "acme.eab_key",
        r#""zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W""#,
        "That key, as base64.",
        |config, given| Ok(config.certificates.key = Some(key(given.text()?)?)),
    ),
    optional("acme.eab_key_file", r#""/etc/snug/eab-key""#, "The same in a file of its own.", |config, given| {
        let file = given.path()?;
        let text = read(&file)?;
        config.secret_files.push(file);
        Ok(config.certificates.key = Some(key(text.trim())?))
    }),
];

fn key(text: &str) -> Result<Vec<u8>, String> {
    let plain = text.replace('+', "-").replace('/', "_");
    let key = URL_SAFE_NO_PAD.decode(&plain).or_else(|_| URL_SAFE.decode(&plain));
    key.ok().filter(|key| (8..=512).contains(&key.len())).ok_or_else(|| "is no key in base64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parse(text: &str) -> Result<Config, String> {
        let mut config = Config::parse(text, Path::new("/etc/x/snug.toml")).map_err(|error| error.to_string())?;
        config.set_default_addresses();
        config.check_certificates().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn one_word_beside_the_name_is_enough() {
        let config = parse("server_name = \"example.org\"\ncertificates = \"acme\"\n").unwrap();
        assert_eq!(config.certificate_names(), ["example.org"]);
        assert_eq!(config.listen, ["[::]:443".parse().unwrap()]);
        assert_eq!(config.certificates.plain_listen, ["[::]:80".parse().unwrap()]);
        assert_eq!(config.certificates.acme().directory, PRODUCTION);
        assert!(config.serves_federation());
        let kept = parse("server_name = \"a.example\"\ncertificates = \"own\"\nlisten = [\"127.0.0.1:8008\"]").unwrap();
        assert_eq!(kept.listen, ["127.0.0.1:8008".parse().unwrap()], "what was said stays");
        assert!(!parse("").unwrap().serves_federation());
    }

    #[test]
    fn the_names_are_those_under_which_the_server_is_reached() {
        let config = parse(
            "server_name = \"example.org:8449\"\npublic_url = \"https://Matrix.example.org:8443/x\"\ncertificates = \"acme\"\n\
             [federation]\nname = \"fed.example.org:443\"\n[acme]\nstaging = true",
        )
        .unwrap();
        assert_eq!(config.certificate_names(), ["example.org", "matrix.example.org", "fed.example.org"]);
        assert_eq!(config.certificates.acme().directory, STAGING);
        let said = parse("certificates = \"own\"\ncertificate_names = [\"nas.lan\", \"10.0.0.5\"]").unwrap();
        assert_eq!(said.certificate_names(), ["nas.lan", "10.0.0.5"]);
    }

    #[test]
    fn what_no_authority_would_do_is_said_at_once() {
        let wrong = |text: &str| parse(text).unwrap_err();
        assert!(wrong("certificates = \"acme\"").contains("no authority gives a certificate for localhost"));
        assert!(wrong("server_name = \"10.0.0.5\"\ncertificates = \"acme\"").contains("certificates = \"own\""));
        assert!(wrong("[acme]\neab_key_id = \"x\"").contains("acme.eab_key"));
        assert!(wrong("[acme]\neab_key = \"!\"").contains("no key in base64"));
        assert!(wrong("[acme]\ndirectory = \"http://ca\"").contains("not a URL"));
        assert!(wrong("[acme]\nemail = \"me\"").contains("no address"));
        let many = ["\"a.example\""; NAMES_MAX + 1].join(", ");
        assert!(wrong(&format!("certificate_names = [{many}]")).contains("at most"));
        let bound = parse("[acme]\neab_key_id = \"x\"\neab_key = \"AAECAwQFBgcICQ==\"").unwrap();
        let bound = bound.certificates.acme().external_account;
        assert_eq!(bound, Some(("x".to_owned(), (0..10).collect())));
    }
}
