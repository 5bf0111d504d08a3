//! An authority of the house's own: a root of ten years, and a certificate for the names and addresses of this machine.
//!
//! The root may vouch for the house's names and for private addresses only ("Name Constraints", RFC 5280, section
//! 4.2.1.10): who steals its key, or gives it to a friend, cannot pose as anybody else to a phone that trusts it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use super::{Failed, NAMES_MAX, Options, Pair, failed, new_key, read_file, set_dates, write_secret};
use crate::http::{tls, x509};
use crate::remote::is_private;

/// The root and its key.
pub const ROOT: &str = "own-root.pem";
pub const CERTIFICATE: &str = "own.pem";

const DAY_MS: u64 = 86_400_000;
const ROOT_DAYS: u64 = 3652;
/// Apple's devices take no more than 825 days, also under a root that their owner installed.
const CERTIFICATE_DAYS: u64 = 397;
/// How far in the past a certificate begins: the phones' clocks differ from this machine's.
const BEGAN_DAYS: u64 = 2;
/// What names at home end with, beside the house's own.
const AT_HOME: [&str; 6] = ["local", "localhost", "home.arpa", "lan", "home", "internal"];
/// Private addresses (RFC 1918, RFC 4193), link-local ones, this machine's own, and those of VPNs (RFC 6598).
const NETWORKS_V4: [([u8; 4], u8); 6] = [
    ([10, 0, 0, 0], 8),
    ([172, 16, 0, 0], 12),
    ([192, 168, 0, 0], 16),
    ([169, 254, 0, 0], 16),
    ([127, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
];
const NETWORKS_V6: [(u16, u8); 2] = [(0xfc00, 7), (0xfe80, 10)];

/// The root as phones install it.
#[derive(Debug, Clone)]
pub struct Root {
    pub name: String,
    pub der: Vec<u8>,
}

impl Root {
    pub fn pem(&self) -> String {
        let text = STANDARD.encode(&self.der);
        let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
        for line in text.as_bytes().chunks(64) {
            pem.extend(line.iter().map(|byte| char::from(*byte)));
            pem.push('\n');
        }
        pem + "-----END CERTIFICATE-----\n"
    }

    /// What phones show of a certificate, to compare: its SHA-256 as pairs of digits.
    pub fn fingerprint(&self) -> String {
        let pairs: Vec<String> = Sha256::digest(&self.der).iter().map(|byte| format!("{byte:02X}")).collect();
        pairs.join(":")
    }

    /// The root in an Apple configuration profile, unsigned.
    pub fn apple_profile(&self) -> String {
        let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
        let (name, digest) = (escaped(&self.name), Sha256::digest(&self.der));
        // Installed again it takes the place of itself.
        let id = |at: usize| {
            let hex: String = digest[at..at + 16].iter().map(|byte| format!("{byte:02X}")).collect();
            [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
        };
        let (inner, outer, content) = (id(0), id(16), STANDARD.encode(&self.der));
        format!(
            r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0"><dict>
<key>PayloadContent</key><array><dict>
<key>PayloadCertificateFileName</key><string>snug.cer</string>
<key>PayloadContent</key><data>{content}</data>
<key>PayloadDisplayName</key><string>{name}</string>
<key>PayloadIdentifier</key><string>snug.root.{inner}</string>
<key>PayloadType</key><string>com.apple.security.root</string>
<key>PayloadUUID</key><string>{inner}</string>
<key>PayloadVersion</key><integer>1</integer>
</dict></array>
<key>PayloadDescription</key><string>Lets this device recognise the chat server of your home.</string>
<key>PayloadDisplayName</key><string>{name}</string>
<key>PayloadIdentifier</key><string>snug.{outer}</string>
<key>PayloadType</key><string>Configuration</string>
<key>PayloadUUID</key><string>{outer}</string>
<key>PayloadVersion</key><integer>1</integer>
</dict></plist>
"#
        )
    }
}

pub struct Authority {
    root: Root,
    key: KeyPair,
}

impl Authority {
    /// The authority of a data folder, made when there is none. One that may not vouch for the server's own name is of
    /// no use, and is made anew: the name can change only before there are accounts.
    pub fn open(folder: &Path, server: &str, names: &[String], now_ms: u64) -> Result<Authority, Failed> {
        let file = folder.join(ROOT);
        if let Some(text) = read_file(&file)? {
            let known = Authority::parse(&text).map_err(|error| {
                let advice =
                    "put it back from a backup, or remove it: then a new one is made, which phones install anew";
                failed(&file, format_args!("{error}; {advice}"))
            })?;
            // Phones trust this one, so a clock that is years ahead makes no other.
            if known.may_vouch_for(server, known.within_life(now_ms))? {
                if known.is_over(now_ms) {
                    tracing::warn!("{}", known.is_over_because(&file));
                }
                return Ok(known);
            }
            tracing::warn!("the authority of this house is not for {server}: a new one is made");
        }
        let made = Authority::make(server, names, now_ms)?;
        let text = made.root.pem() + &made.key.serialize_pem();
        write_secret(&file, &text).map_err(|error| failed(&file, error))?;
        tracing::info!("made an authority of this house's own: {}", made.root.fingerprint());
        Ok(made)
    }

    fn parse(text: &str) -> Result<Authority, String> {
        let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| error.to_string())?.to_vec();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes());
        let key = key.map_err(|error| error.to_string())?;
        let key = KeyPair::try_from(key.secret_pkcs8_der()).map_err(|error| error.to_string())?;
        let name = x509::common_name(&der).ok_or("it has no name")?.to_owned();
        Ok(Authority { root: Root { name, der }, key })
    }

    fn make(server: &str, names: &[String], now_ms: u64) -> Result<Authority, Failed> {
        let (key, name) = (new_key()?, format!("Snug at {server}"));
        let mut parameters = root(&name);
        set_dates(&mut parameters, now_ms.saturating_sub(BEGAN_DAYS * DAY_MS), now_ms + ROOT_DAYS * DAY_MS);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.name_constraints = Some(constraints(server, names));
        let der = parameters.self_signed(&key)?.der().to_vec();
        Ok(Authority { root: Root { name, der }, key })
    }

    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The time; the last second of the root once its life is over.
    pub fn within_life(&self, now_ms: u64) -> u64 {
        let until_ms = x509::validity_ms(&self.root.der).map_or(u64::MAX, |(_, until_ms)| until_ms);
        now_ms.min(until_ms.saturating_sub(1000))
    }

    /// Whether the root's life is over, or the clock says so.
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.within_life(now_ms) < now_ms
    }

    pub fn is_over_because(&self, file: &Path) -> String {
        format!(
            "The authority of this house has ended, if the clock of this machine is right. Set the clock; or remove {} and start \
             Snug again: then a new one is made, which phones install anew.",
            file.display()
        )
    }

    /// A certificate for the names, its text with its key, and the names that the root may not vouch for.
    pub fn issue(&self, names: &[String], now_ms: u64) -> Result<(Pair, String, Vec<String>), Failed> {
        let (mut good, mut left_out) = (Vec::new(), Vec::new());
        for name in names {
            match self.may_vouch_for(name, now_ms)? {
                true => good.push(name.clone()),
                false => left_out.push(name.clone()),
            }
        }
        let key = new_key()?;
        let leaf = self.sign(&good, &key, now_ms)?;
        let pem = leaf.pem() + &key.serialize_pem();
        let pair = Pair::parse(pem.as_bytes(), pem.as_bytes(), "the new certificate")?;
        Ok((pair, pem, left_out))
    }

    /// Whether a certificate is for all of these names that the root may vouch for.
    pub fn is_whole(&self, pair: &Pair, names: &[String], now_ms: u64) -> Result<bool, Failed> {
        for name in names.iter().filter(|name| !pair.is_for(name)) {
            if self.may_vouch_for(name, now_ms)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn sign(&self, names: &[String], key: &KeyPair, now_ms: u64) -> Result<rcgen::Certificate, Failed> {
        let mut parameters = CertificateParams::new(names)?;
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(first) = names.first() {
            parameters.distinguished_name.push(DnType::CommonName, first.as_str());
        }
        let end_ms = now_ms + CERTIFICATE_DAYS * DAY_MS;
        let root_end_ms = x509::validity_ms(&self.root.der).map_or(end_ms, |(_, until_ms)| until_ms);
        set_dates(&mut parameters, now_ms.saturating_sub(BEGAN_DAYS * DAY_MS), end_ms.min(root_end_ms));
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        let root = root(&self.root.name);
        Ok(parameters.signed_by(key, &Issuer::from_params(&root, &self.key))?)
    }

    /// Whether a certificate for this name would be believed by who trusts the root: found by trying.
    fn may_vouch_for(&self, name: &str, now_ms: u64) -> Result<bool, Failed> {
        let Ok(wanted) = ServerName::try_from(name) else { return Ok(false) };
        let leaf = self.sign(&[name.to_owned()], &self.key, now_ms)?;
        let mut roots = RootCertStore::empty();
        if roots.add(CertificateDer::from(self.root.der.clone())).is_err() {
            return Ok(false);
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider()).build();
        let verifier = verifier.map_err(|error| Failed(error.to_string()))?;
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
        Ok(verifier.verify_server_cert(leaf.der(), &[], &wanted, &[], now).is_ok())
    }
}

/// The root's certificate without its dates and limits; what it signs is made from the same.
fn root(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

fn constraints(server: &str, names: &[String]) -> NameConstraints {
    let mut permitted = Vec::new();
    let house = std::iter::once(server).chain(names.iter().map(String::as_str));
    // In order, and each once.
    let mut seen = BTreeSet::new();
    for name in house.chain(AT_HOME).take(NAMES_MAX + AT_HOME.len()).filter(|name| seen.insert(*name)) {
        permitted.push(match name.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix(ip.octets(), 32)),
            Ok(IpAddr::V6(ip)) => GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(ip.octets(), 128)),
            Err(_) => GeneralSubtree::DnsName(name.to_owned()),
        });
    }
    for (network, bits) in NETWORKS_V4 {
        permitted.push(GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix(network, bits)));
    }
    for (first, bits) in NETWORKS_V6 {
        let mut network = [0; 16];
        network[..2].copy_from_slice(&first.to_be_bytes());
        permitted.push(GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(network, bits)));
    }
    let mut here = [0; 16];
    here[15] = 1;
    permitted.push(GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(here, 128)));
    NameConstraints { permitted_subtrees: permitted, excluded_subtrees: Vec::new() }
}

/// What the certificate is for: the configured names, this machine's own, and its private addresses.
pub fn names(options: &Options) -> Vec<String> {
    let host = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let first = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let local = [first(&host), first(&options.server), "snug".to_owned()].map(|name| format!("{name}.local"));
    let here = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let addresses = (options.addresses)().into_iter().filter(|ip| is_private(*ip)).map(|ip| ip.to_string());
    let all = options.names.iter().cloned().chain(addresses).chain(local).chain(here);
    let mut seen = BTreeSet::new();
    all.filter(|name| ServerName::try_from(name.as_str()).is_ok() && seen.insert(name.clone()))
        .take(NAMES_MAX)
        .collect()
}

pub fn root_pem(folder: &Path) -> Result<Option<String>, Failed> {
    let file = folder.join(ROOT);
    let Some(text) = read_file(&file)? else { return Ok(None) };
    let known = Authority::parse(&text).map_err(|error| failed(&file, error))?;
    Ok(Some(known.root.pem()))
}
