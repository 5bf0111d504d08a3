use super::*;
use crate::base::private::make_folder;
use crate::budget::Budget;
use crate::remote::tests::{Lab, us};

const DAY_MS: u64 = 86_400_000;
const NOW_MS: u64 = 1_800_000_000_000;

pub struct House {
    pub folder: PathBuf,
    pub clock: Clock,
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl House {
    pub fn new(name: &str) -> House {
        let folder = std::env::temp_dir().join(format!("snug-certificates-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        make_folder(&folder).unwrap();
        House { folder, clock: Clock::simulated(NOW_MS) }
    }

    fn own(&self, server: &str, names: &[&str]) -> Certificates {
        let options = Options {
            source: Source::Own,
            server: server.to_owned(),
            names: names.iter().map(|name| name.to_string()).collect(),
            folder: self.folder.clone(),
            acme: AcmeOptions::default(),
            addresses: || vec!["192.168.1.20".parse().unwrap(), "2001:db8::5".parse().unwrap()],
        };
        let parts = Parts {
            clock: self.clock.clone(),
            random: Random::seeded(1),
            web: us(&Lab::new(), &[], &[]).remote.web().clone(),
            account: Budget::for_tests().account("outbound"),
        };
        Certificates::new(options, parts).unwrap()
    }
}

/// What a client that trusts only the house's root makes of the certificate in use.
fn believes(certificates: &Certificates, name: &str, now_ms: u64) -> bool {
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(certificates.root().unwrap().der.clone())).unwrap();
    let provider = crate::http::tls::provider();
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let leaf = certificates.certificate().unwrap().leaf().unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
    verifier.verify_server_cert(&leaf, &[], &name, &[], now).is_ok()
}

#[tokio::test]
async fn a_house_has_an_authority_of_its_own() {
    let house = House::new("own");
    let own = house.own("home.example", &["home.example", "chat.home.example"]);
    for name in
        ["home.example", "chat.home.example", "192.168.1.20", "snug.local", "home.local", "localhost", "127.0.0.1"]
    {
        assert!(believes(&own, name, NOW_MS), "{name}");
    }
    assert!(!believes(&own, "2001:db8::5", NOW_MS), "no private address");
    assert!(!believes(&own, "example.org", NOW_MS) && !believes(&own, "home.example", NOW_MS + 400 * DAY_MS));
    let (root, leaf) = (own.root().unwrap().clone(), own.certificate().unwrap().leaf());
    assert_eq!((root.name.as_str(), own.status().said), ("Snug at home.example", None));
    // A start finds both; other names make another certificate of the same authority.
    let again = house.own("home.example", &["home.example", "chat.home.example"]);
    assert_eq!(
        (again.root().unwrap().der.clone(), again.certificate().unwrap().leaf()),
        (root.der.clone(), leaf.clone())
    );
    let fewer = house.own("home.example", &["home.example"]);
    assert_eq!(fewer.root().unwrap().der, root.der);
    // A third of 397 days is more than a month: it is renewed a month early.
    house.clock.advance(Duration::from_millis(360 * DAY_MS));
    let kept = fewer.certificate().unwrap().leaf();
    fewer.keep_own_once().unwrap();
    assert_eq!(fewer.certificate().unwrap().leaf(), kept);
    house.clock.advance(Duration::from_millis(10 * DAY_MS));
    fewer.keep_own_once().unwrap();
    assert_ne!(fewer.certificate().unwrap().leaf(), kept);
    assert!(believes(&fewer, "home.example", NOW_MS + 400 * DAY_MS));
    use std::os::unix::fs::PermissionsExt;
    for file in [own::ROOT, own::CERTIFICATE] {
        let mode = std::fs::metadata(house.folder.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

/// Phones trust the root: a board whose clock is years ahead for an hour must not take another one.
#[tokio::test]
async fn a_clock_that_is_years_ahead_makes_no_other_authority() {
    let house = House::new("ahead");
    let root = house.own("home.example", &["home.example"]).root().unwrap().der.clone();
    house.clock.advance(Duration::from_millis(4_000 * DAY_MS));
    let ahead = house.own("home.example", &["home.example"]);
    assert_eq!(ahead.root().unwrap().der, root);
    let leaf = ahead.certificate().unwrap().leaf();
    ahead.keep_own_once().unwrap();
    assert_eq!(ahead.certificate().unwrap().leaf(), leaf, "none is made each minute");
    assert!(ahead.status().said.is_some_and(|said| said.contains("clock") && said.contains("own-root.pem")));
}

/// The root of a friend, or a stolen one, must not vouch for a bank.
#[tokio::test]
async fn the_authority_vouches_for_the_house_alone() {
    let house = House::new("limits");
    drop(house.own("home.example", &["home.example"]));
    let own = house.own("home.example", &["home.example", "bank.example", "203.0.113.5"]);
    assert!(believes(&own, "home.example", NOW_MS));
    let leaf = own.certificate().unwrap();
    assert!(!leaf.is_for("bank.example") && !leaf.is_for("203.0.113.5"));
    assert!(own.status().said.unwrap().contains("not for bank.example, 203.0.113.5"));
    assert_eq!(own.status().missing, ["bank.example", "203.0.113.5"]);
    // The name of the server itself can only have changed before there was an account.
    let other = house.own("other.example", &["other.example"]);
    assert!(believes(&other, "other.example", NOW_MS) && other.root().unwrap().name == "Snug at other.example");
    // A file that is no authority is not replaced without a word: phones trust what was in it.
    std::fs::write(house.folder.join(own::ROOT), "rubbish").unwrap();
    let failed = own::Authority::open(&house.folder, "other.example", &[], NOW_MS).err().unwrap().to_string();
    assert!(failed.contains("own-root.pem") && failed.contains("backup"), "{failed}");
}

#[test]
fn phones_are_given_the_root_in_their_forms() {
    let root = Root { name: "Snug at <a> & b".to_owned(), der: vec![0x30, 1, 2] };
    assert_eq!(root.pem(), "-----BEGIN CERTIFICATE-----\nMAEC\n-----END CERTIFICATE-----\n");
    assert_eq!(root.fingerprint().len(), 95);
    let profile = root.apple_profile();
    assert!(profile.contains("<data>MAEC</data>") && profile.contains("com.apple.security.root"), "{profile}");
    assert!(profile.contains("<string>Snug at &lt;a> &amp; b</string>"), "{profile}");
    assert_eq!(profile, root.apple_profile(), "installed again it takes the place of itself");
}

#[test]
fn a_renewal_comes_a_month_early_or_with_a_third_left() {
    let of = |days: u64| renewal_ms(0, days * DAY_MS) / DAY_MS;
    assert_eq!([of(397), of(90), of(45), of(6)], [367, 60, 30, 4]);
    assert_eq!(renewal_ms(10, 5), 5);
}
