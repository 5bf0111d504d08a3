//! Reads a profile: the memory of the whole process, and its division into accounts.
//!
//! Unknown names, missing names and sums that do not fit are errors that name the fault and its size.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

use super::account::Account;
use super::account::{AccountRow, WhenEmpty};
use super::meter;
use crate::base::{gathered, sort_few_by};

/// Every account of memory. A profile has each of them and no other; a new one is added here and to each file of
/// `memory-budgets/`.
pub const ACCOUNTS: &[&str] = &[
    "database_cache",
    "push_rules",
    "state_nodes",
    "search",
    "connections",
    "relay",
    "request_bodies",
    "response_bodies",
    "sync_waiters",
    "ephemeral",
    "inbound_transactions",
    "gaps",
    "outbound",
    "join",
    "state_resolution",
    "signing_keys",
    "media",
    "password_hashing",
    "pictures",
    "backup",
    "admin",
];

/// The memory of the process outside the accounts. A profile has each of these and no other.
pub const FIXED: &[&str] = &["text", "stacks", "slack"];

/// Accounts of scratch disk; they do not count towards the memory.
pub const DISK_ACCOUNTS: &[&str] = &["spill_disk"];

/// Every named size: buffers, windows, pools and stacks of ours and of the libraries.
pub const SIZES: &[&str] = &[
    "redb_cache",
    "write_queue_jobs",
    "writer_stack",
    "worker_threads",
    "worker_stack",
    "blocking_threads",
    "blocking_stack",
    "connections_max",
    "http1_buffer",
    "tls_buffer",
    "request_body_max",
    "outbound_connections_max",
    "join_workers",
    "state_conflicts_max",
];

/// The part of `password_hashing` that checking one password takes: 7 MiB of Argon2's blocks, and the library's other
/// memory. The same under every profile, so that a data folder may move to a smaller board.
pub const PASSWORD_HASH_BYTES: u64 = (7 << 20) + (64 << 10);

/// The memory redb needs beside its cache while it writes: the pages changed since the last checkpoint are most of it, 1.0 MiB
/// by `benches/store.rs`. The journal's record has 256 KiB.
const REDB_BESIDE_BYTES: u64 = 3 << 19;

const SHIPPED: &[(&str, &str)] = &[
    ("router-32", include_str!("../../memory-budgets/router-32.toml")),
    ("pi-zero-2w", include_str!("../../memory-budgets/pi-zero-2w.toml")),
    ("pi-3", include_str!("../../memory-budgets/pi-3.toml")),
    ("pi-4-2g", include_str!("../../memory-budgets/pi-4-2g.toml")),
    ("pi-5", include_str!("../../memory-budgets/pi-5.toml")),
    ("scaleway-arm", include_str!("../../memory-budgets/scaleway-arm.toml")),
];

/// A checked profile: its accounts and its fixed cost fit its total.
#[derive(Debug, Clone)]
pub struct Profile {
    pub name: String,
    /// One sentence: the board it is meant for.
    pub board: String,
    /// The cap on the resident memory of the whole process, in bytes.
    pub total: u64,
    /// The memory that no account pays for, in the order of [`FIXED`]. Measured, and held by a test for every profile.
    pub fixed: Vec<FixedRow>,
    pub accounts: Vec<AccountRow>,
    pub disk: Vec<AccountRow>,
    sizes: BTreeMap<String, u64>,
}

#[derive(Debug, Clone)]
pub struct FixedRow {
    pub name: String,
    pub bytes: u64,
    pub reason: String,
}

/// Why a profile cannot be used; a sentence for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProfileError(pub String);

impl Profile {
    /// A shipped profile by its name.
    pub fn get(name: &str) -> Result<Self, ProfileError> {
        match SHIPPED.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Self::parse(name, text),
            None => {
                let known: Vec<_> = Self::names().collect();
                Err(ProfileError(format!(
                    "there is no memory budget {name:?}; the known budgets are {}",
                    known.join(", ")
                )))
            }
        }
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    /// A profile of the operator's own.
    pub fn from_file(path: &Path) -> Result<Self, ProfileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|failed| ProfileError(format!("memory budget {}: {failed}", path.display())))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// A shipped name, or the path of a file when it looks like one.
    pub fn named(name_or_path: &str) -> Result<Self, ProfileError> {
        if is_path(name_or_path) { Self::from_file(Path::new(name_or_path)) } else { Self::get(name_or_path) }
    }

    pub fn parse(name: &str, text: &str) -> Result<Self, ProfileError> {
        let wrong = |what: String| ProfileError(format!("memory budget {name}: {what}"));
        let raw: Raw = toml::from_str(text).map_err(|failed| wrong(failed.to_string()))?;
        let profile = raw.into_profile(name);
        profile.check().map_err(wrong)?;
        Ok(profile)
    }

    /// A named size. An unknown name is a mistake in the program, since `check` has seen that all are there.
    pub fn size(&self, name: &str) -> u64 {
        match self.sizes.get(name) {
            Some(size) => *size,
            None => panic!("every size asked for is in the profiles: {name} is not one of {}", SIZES.join(", ")),
        }
    }

    pub fn sizes(&self) -> impl Iterator<Item = (&str, u64)> {
        self.sizes.iter().map(|(name, size)| (name.as_str(), *size))
    }

    /// The account of memory of that name. An unknown name is a mistake in the program, as in [`Profile::size`].
    pub fn account(&self, name: &str) -> u64 {
        match self.accounts.iter().find(|row| row.name == name) {
            Some(row) => row.bytes,
            None => panic!("every account asked for is in the profiles: {name} is not one of {}", ACCOUNTS.join(", ")),
        }
    }

    /// The most that one connection from outside may hold, in bytes, with the request that is answered on it; other
    /// memory of bodies and answers is on accounts of their own.
    pub fn connection_bytes(&self, tls: bool) -> u64 {
        let (buffer, tls_buffer) = (self.size("http1_buffer"), self.size("tls_buffer"));
        // The read buffer, a piece of a body before it is taken, and the request's text twice: as it came, and parsed.
        // hyper's buffer for response heads has 8 KiB; the state of the tasks gets as much.
        let plain = 4 * buffer + (16 << 10);
        // An incoming record (rustls may join some: `http/listen/` ends that at 24 KiB), the one before as plain
        // text, the data waiting to be sent, and the state of TLS.
        let secret = (24 << 10) + (16 << 10) + tls_buffer + (4 << 10);
        if tls { plain + secret } else { plain }
    }

    /// One of [`FIXED`], in bytes.
    pub fn fixed(&self, name: &str) -> u64 {
        self.fixed.iter().filter(|row| row.name == name).map(|row| row.bytes).sum()
    }

    /// Fixed cost and all accounts of memory, in bytes.
    pub fn sum(&self) -> u64 {
        let accounts = self.accounts.iter().filter(|row| row.within.is_none());
        self.fixed.iter().map(|row| row.bytes).chain(accounts.map(|row| row.bytes)).sum()
    }

    fn check(&self) -> Result<(), String> {
        same_names("account", self.accounts.iter().map(|row| row.name.as_str()), ACCOUNTS)?;
        same_names("fixed cost", self.fixed.iter().map(|row| row.name.as_str()), FIXED)?;
        same_names("disk account", self.disk.iter().map(|row| row.name.as_str()), DISK_ACCOUNTS)?;
        same_names("size", self.sizes.keys().map(String::as_str), SIZES)?;
        if let Some(silent) = self.accounts.iter().chain(&self.disk).find(|row| row.reason.is_empty()) {
            return Err(format!("account {} gives no reason", silent.name));
        }
        self.accounts.iter().chain(&self.disk).try_for_each(|row| self.check_within(row))?;
        let sum = self.sum();
        if sum > self.total {
            let (total, over) = (human(self.total), human(sum - self.total));
            return Err(format!(
                "its accounts and its fixed cost make {}, which is {over} more than its total of {total}",
                human(sum)
            ));
        }
        self.check_pairs()
    }

    fn check_within(&self, row: &AccountRow) -> Result<(), String> {
        let (name, Some(within)) = (&row.name, &row.within) else { return Ok(()) };
        match self.accounts.iter().find(|other| other.name == *within && other.within.is_none()) {
            Some(outer) if outer.bytes >= row.bytes => Ok(()),
            Some(outer) => {
                Err(format!("account {name} has {}, and {within} only {}", human(row.bytes), human(outer.bytes)))
            }
            None => Err(format!("account {name} is within {within:?}, which is not an account with bytes of its own")),
        }
    }

    /// Sizes that spend from an account must fit it; otherwise the account would refuse everything, or be exceeded.
    fn check_pairs(&self) -> Result<(), String> {
        let (connections, buffer) = (self.size("connections_max"), self.size("http1_buffer"));
        // hyper's own minimum.
        if buffer < 8 << 10 {
            return Err(format!("http1_buffer is {}, and hyper needs 8.0 KiB at least", human(buffer)));
        }
        let fits = [
            (
                "connections_max with http1_buffer and tls_buffer",
                connections.saturating_mul(self.connection_bytes(true)),
                "connections",
            ),
            (
                "redb_cache, and the 1.5 MiB redb needs beside it,",
                self.size("redb_cache").saturating_add(REDB_BESIDE_BYTES),
                "database_cache",
            ),
            ("request_body_max", self.size("request_body_max"), "request_bodies"),
            (
                "join_workers with 128 KiB each, and 4 MiB for what else two joins need,",
                self.size("join_workers").saturating_mul(128 << 10).saturating_add(4 << 20),
                "join",
            ),
            (
                "state_conflicts_max with 300 bytes each, and 170 KiB for what else a resolution needs,",
                self.size("state_conflicts_max").saturating_mul(300).saturating_add(170 << 10),
                "state_resolution",
            ),
            (
                "state_conflicts_max with 24 bytes each, and one event of 64 KiB and 72 KiB for what else a gap needs, in \
                 half of the account,",
                self.size("state_conflicts_max").saturating_mul(24).saturating_add(136 << 10).saturating_mul(2),
                "gaps",
            ),
            (
                "outbound_connections_max with 40 KiB each in half of the account",
                self.size("outbound_connections_max").saturating_mul(2 * (40 << 10)),
                "outbound",
            ),
            ("one answer of 256 KiB in half of the account", 512 << 10, "outbound"),
            ("one file on its way from another server, and its reader", 60 << 10, "media"),
            ("one sync that waits", 8 << 10, "sync_waiters"),
            ("one password", PASSWORD_HASH_BYTES, "password_hashing"),
            ("one small picture", 2 << 20, "pictures"),
            ("one piece of a long answer", 256 << 10, "response_bodies"),
            ("one event of 64 KiB and its copies", 512 << 10, "inbound_transactions"),
            ("one command and a page of its answer", self.connection_bytes(false) + (32 << 10), "admin"),
        ];
        for (what, needed, account) in fits {
            let there = self.account(account);
            if needed > there {
                let (needed, there) = (human(needed), human(there));
                return Err(format!("{what} takes {needed}, but the account {account} has {there}"));
            }
        }
        let some = [
            "write_queue_jobs",
            "worker_threads",
            "blocking_threads",
            "connections_max",
            "request_body_max",
            "outbound_connections_max",
            "join_workers",
            "state_conflicts_max",
        ];
        match some.iter().find(|name| self.size(name) == 0) {
            Some(none) => Err(format!("{none} is 0, so that no work of its kind could be done")),
            None => Ok(()),
        }
    }
}

fn same_names<'a>(what: &str, found: impl Iterator<Item = &'a str>, wanted: &[&str]) -> Result<(), String> {
    let found: Vec<_> = found.collect();
    if let Some(unknown) = found.iter().find(|name| !wanted.contains(name)) {
        return Err(format!("{what} {unknown:?} is unknown; the known names are {}", wanted.join(", ")));
    }
    match wanted.iter().find(|name| !found.contains(name)) {
        Some(missing) => Err(format!("{what} {missing:?} is missing")),
        None => Ok(()),
    }
}

/// The file as written. Names are checked by `Profile::check`, which can list the known ones.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    board: String,
    total: Bytes,
    fixed: BTreeMap<String, RawFixed>,
    accounts: BTreeMap<String, RawAccount>,
    disk: BTreeMap<String, RawAccount>,
    sizes: BTreeMap<String, Bytes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFixed {
    bytes: Bytes,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAccount {
    bytes: Bytes,
    reason: String,
    when_empty: WhenEmpty,
    #[serde(default)]
    wait_ms: u64,
    within: Option<String>,
}

impl Raw {
    fn into_profile(self, name: &str) -> Profile {
        let rows = |raw: BTreeMap<String, RawAccount>, order: &[&str]| {
            let mut rows: Vec<_> = raw.into_iter().map(|(name, raw)| raw.into_row(name)).collect();
            sort_few_by(&mut rows, |row| order.iter().position(|known| *known == row.name));
            rows
        };
        let row = |(name, raw): (String, RawFixed)| FixedRow { name, bytes: raw.bytes.0, reason: raw.reason };
        let mut fixed: Vec<_> = self.fixed.into_iter().map(row).collect();
        sort_few_by(&mut fixed, |row| FIXED.iter().position(|known| *known == row.name));
        Profile {
            name: name.to_owned(),
            board: self.board,
            total: self.total.0,
            fixed,
            accounts: rows(self.accounts, ACCOUNTS),
            disk: rows(self.disk, DISK_ACCOUNTS),
            sizes: gathered(self.sizes.into_iter().map(|(name, size)| (name, size.0))),
        }
    }
}

impl RawAccount {
    fn into_row(self, name: String) -> AccountRow {
        let RawAccount { bytes, reason, when_empty, wait_ms, within } = self;
        AccountRow { name, bytes: bytes.0, within, reason, when_empty, wait_ms }
    }
}

/// A number of bytes as people write it: 4096, "64 KiB", "1.5 MiB", "1 GiB".
#[derive(Deserialize)]
#[serde(try_from = "NumberOrText")]
struct Bytes(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl TryFrom<NumberOrText> for Bytes {
    type Error = String;

    fn try_from(raw: NumberOrText) -> Result<Self, String> {
        match raw {
            NumberOrText::Number(number) => Ok(Bytes(number)),
            NumberOrText::Text(text) => parse_bytes(&text).map(Bytes),
        }
    }
}

/// Reads "64 KiB", "1.5 MiB", "1 GiB" or a plain number of bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let units = [("KiB", 1u64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number.trim(), *unit)))
        .unwrap_or((text, 1));
    match number.parse::<f64>() {
        Ok(number) if (0.0..1e12).contains(&number) => Ok((number * unit as f64).round() as u64),
        _ => Err(format!("{text:?} is not a number of bytes such as 4096, \"64 KiB\" or \"1.5 MiB\"")),
    }
}

/// Whether a profile's name is that of a file.
pub fn is_path(name_or_path: &str) -> bool {
    name_or_path.contains('/') || name_or_path.ends_with(".toml")
}

/// Bytes for people: "1.50 MiB".
pub fn human(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.2} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

impl Profile {
    /// The profile as a table for people, without a server that uses it.
    pub fn table(&self) -> String {
        table(self, None)
    }
}

/// The width of the table: that of a usual terminal window.
const TABLE_CHARS: usize = 100;

/// A profile as a table for people; with the accounts of a running server, the use of each is shown too. What an
/// account is for stands below its numbers.
pub fn table(profile: &Profile, running: Option<&[Account]>) -> String {
    let mut out = format!("{} — {}\n\n", profile.name, profile.board);
    let used = |name: &str| {
        let account = running?.iter().find(|account| account.name() == name)?;
        Some([human(account.used()), human(account.high_water()), account.refusals().to_string()])
    };
    let mut line = |name: &str, bytes: &str, used: Option<[String; 3]>, empty: &str, reason: &str| {
        let mut text = format!("{name:<22} {bytes:>11}");
        if running.is_some() {
            let [now, high, refused] = used.unwrap_or_default();
            let _ = write!(text, " {now:>11} {high:>11} {refused:>8}");
        }
        let _ = writeln!(out, "{}", format!("{text}  {empty}").trim_end());
        for part in wrapped(reason, TABLE_CHARS - 4) {
            let _ = writeln!(out, "    {part}");
        }
    };
    let head = ["in use", "high water", "refused"].map(ToOwned::to_owned);
    line("account", "bytes", Some(head), "when empty", "");
    for row in &profile.fixed {
        let measured = match row.name.as_str() {
            "text" => Some(meter::text()),
            // The kernel does not distinguish stacks from the heap's pages.
            "slack" => Some(meter::beside()),
            _ => None,
        };
        let used = measured.map(|seen| [human(seen.now_bytes), human(seen.high_water_bytes), String::new()]);
        line(&format!("({})", row.name), &human(row.bytes), used, "", &row.reason);
    }
    for row in profile.accounts.iter().chain(&profile.disk) {
        let reason = match &row.within {
            Some(outer) => format!("{}; out of {outer}", row.reason),
            None => row.reason.clone(),
        };
        line(&row.name, &human(row.bytes), used(&row.name), &row.when_empty.to_string(), &reason);
    }
    line("(left over)", &human(profile.total - profile.sum()), None, "", "");
    line("total", &human(profile.total), None, "", "scratch disk is not counted");
    out
}

/// The words of a text in lines of at most `chars_max` characters; a longer word has a line of its own.
fn wrapped(text: &str, chars_max: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= chars_max => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const PI_ZERO: &str = include_str!("../../memory-budgets/pi-zero-2w.toml");

    #[test]
    fn shipped_profiles_add_up() {
        for name in Profile::names() {
            let profile = Profile::get(name).unwrap();
            assert!(profile.sum() <= profile.total);
            assert!(table(&profile, None).contains("database_cache"));
            let budget = crate::budget::Budget::from_profile(profile.clone());
            for table in [table(&profile, None), budget.table()] {
                assert!(table.lines().all(|line| line.chars().count() <= TABLE_CHARS), "{table}");
            }
            assert!(!table(&profile, None).contains("high water"), "no server runs");
        }
    }

    #[test]
    fn says_by_how_much_a_profile_does_not_fit() {
        let total = Profile::parse("shipped", PI_ZERO).unwrap().sum() - (1 << 20);
        let text = PI_ZERO.replace("total = \"48 MiB\"", &format!("total = {total}"));
        let message = Profile::parse("mine", &text).unwrap_err().0;
        assert!(message.contains("1.00 MiB more than its total"), "{message}");
    }

    /// The smallest shipped profile with one line changed: the resulting error.
    fn wrong(line: &str, with: &str) -> String {
        assert!(PI_ZERO.contains(line), "{line} is in the profile");
        Profile::parse("mine", &PI_ZERO.replace(line, with)).unwrap_err().0
    }

    #[test]
    fn names_both_halves_of_a_pair_that_does_not_fit() {
        let says = |message: String, words: [&str; 2]| {
            assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
        };
        says(wrong("connections_max = 23", "connections_max = 40"), ["connections_max", "account connections"]);
        says(wrong("tls_buffer = \"8 KiB\"", "tls_buffer = \"1 MiB\""), ["tls_buffer", "account connections"]);
        says(wrong("http1_buffer = \"8 KiB\"", "http1_buffer = \"4 KiB\""), ["http1_buffer", "8.0 KiB"]);
        says(wrong("redb_cache = \"2.25 MiB\"", "redb_cache = \"7 MiB\""), ["redb_cache", "account database_cache"]);
        says(
            wrong("request_body_max = \"512 KiB\"", "request_body_max = \"2 MiB\""),
            ["request_body_max", "account request_bodies"],
        );
        says(wrong("join_workers = 2", "join_workers = 64"), ["join_workers", "account join"]);
        says(wrong("join_workers = 2", "join_workers = 0"), ["join_workers", "is 0"]);
        says(
            wrong("512 KiB\"\nreason = \"events", "300 KiB\"\nreason = \"events"),
            ["state_conflicts_max", "account gaps"],
        );
        says(
            wrong("outbound_connections_max = 8 ", "outbound_connections_max = 16"),
            ["outbound_connections_max", "account outbound"],
        );
        says(
            wrong("state_conflicts_max = 2000", "state_conflicts_max = 3000"),
            ["state_conflicts_max", "account state_resolution"],
        );
        says(wrong("bytes = \"7.125 MiB\"", "bytes = \"6 MiB\""), ["one password", "account password_hashing"]);
    }

    #[test]
    fn an_account_may_draw_from_another() {
        let small = Profile::get("router-32").unwrap();
        let outer = small.accounts.iter().find(|row| row.name == "password_hashing").unwrap().within.clone();
        assert_eq!(outer.as_deref(), Some("join"));
        let within = |what: &str| {
            let hashing = "[accounts.password_hashing]\n";
            let pictures = "within = \"password_hashing\"";
            let text = PI_ZERO.replace(pictures, &format!("within = {what:?}"));
            let text = text.replace(hashing, &format!("{hashing}within = {what:?}\n"));
            Profile::parse("mine", &text).map(|profile| profile.sum()).map_err(|error| error.0)
        };
        let whole = Profile::get("pi-zero-2w").unwrap().sum();
        assert_eq!(within("join").unwrap(), whole - (7 << 20) - (128 << 10));
        assert!(within("admin").unwrap_err().contains("admin only 128.0 KiB"));
        assert!(within("joy").unwrap_err().contains("\"joy\", which is not an account"));
        assert!(within("password_hashing").unwrap_err().contains("not an account"));
    }

    /// The bound of all connections together is within the account for them.
    #[test]
    fn connections_pay_for_what_they_may_hold() {
        for name in Profile::names() {
            let profile = Profile::get(name).unwrap();
            let (secret, plain) = (profile.connection_bytes(true), profile.connection_bytes(false));
            assert!(profile.size("connections_max") * secret <= profile.account("connections"), "{name}");
            assert!(plain >= 4 * profile.size("http1_buffer") && secret >= plain + (40 << 10), "{name}");
        }
    }

    #[test]
    fn names_what_is_unknown() {
        let text = PI_ZERO.replace("[accounts.join]", "[accounts.jion]");
        assert!(Profile::parse("mine", &text).unwrap_err().0.contains("account \"jion\" is unknown"));
        let text = PI_ZERO.replace("redb_cache", "rdb_cache");
        assert!(Profile::parse("mine", &text).unwrap_err().0.contains("rdb_cache"));
        assert!(Profile::get("pi-9").unwrap_err().0.contains("pi-zero-2w"));
    }

    #[test]
    fn reads_bytes_as_people_write_them() {
        assert_eq!(parse_bytes("64 KiB"), Ok(65_536));
        assert_eq!(parse_bytes("1.5MiB"), Ok(1_572_864));
        assert_eq!(parse_bytes("12"), Ok(12));
        assert!(parse_bytes("many").is_err());
    }

    #[test]
    fn any_bytes_are_a_profile_or_an_error() {
        crate::base::any_bytes::any_bytes(&[PI_ZERO.as_bytes(), b"4 MiB", b"18446744073709551615 GiB"], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(profile) = Profile::parse("odd", &text) {
                assert!(profile.sum() <= profile.total);
            }
            let _ = parse_bytes(&text);
        });
    }
}
