//! The sources themselves: who names whom, calls that have one home, forgotten files, budgets that do not add up, settings that
//! are not in the sample.
//!
//! Each check is a function over text that answers what is wrong, and has a canary: something wrong on purpose that it must
//! catch, so that a check that has gone blind fails too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use snug::budget::Profile;
use snug::config::{self, Config};

/// What each part may name besides itself. The floors, top to bottom, are in `src/README.md`.
const MAY_NAME: &[(&str, &str)] = &[
    ("base", ""),
    ("matrix", ""),
    ("budget", "base"),
    ("store", "base budget"),
    ("http", "base budget"),
    ("mdns", "base"),
    ("relay", "base budget"),
    ("feed", "base budget store"),
    ("remote", "base budget store matrix"),
    ("user", "base budget store matrix feed remote"),
    ("room", "base budget store matrix feed remote"),
    ("deliver", "base budget store matrix feed remote"),
    ("media", "base budget store matrix remote"),
    ("certificates", "base budget remote http"),
    ("backup", "base budget store"),
    ("flow", "base budget matrix user room media"),
    ("federation", "base budget matrix remote user room media http"),
    ("client", "base budget matrix feed user room media flow http"),
    ("web", "base budget http"),
    ("admin", "base budget matrix remote user room media deliver backup flow http certificates"),
    ("config", "budget relay room media backup client http web certificates"),
];
/// The start names everything.
const TOP: &[&str] = &["main", "lib", "cli", "serve"];

/// Words that may stand only in the files that begin so, and what to use instead.
const HOMES: &[(&str, &[&str], &str)] = &[
    ("Instant::now(", &["base/clock.rs"], "time is passed in: base::Clock, or base::StopWatch to measure"),
    ("SystemTime::now(", &["base/clock.rs"], "time is passed in: base::Clock"),
    ("tokio::time::", &["base/clock.rs", "budget/account.rs"], "waiting goes by base::Clock"),
    ("thread::sleep(", &[], "waiting goes by base::Clock"),
    ("getrandom::", &["base/random.rs"], "randomness is passed in: base::Random"),
    ("rand::", &[], "randomness is passed in: base::Random"),
    ("spawn_blocking(", &["base/blocking.rs"], "work that blocks goes through base::blocking"),
    ("redb::", &["store/"], "only the store knows the database"),
    ("process::exit(", &["main.rs"], "return to main"),
    ("println!(", &[], "log with tracing, or write to stdout, which may be a closed pipe, and pass its error over"),
    ("eprint!(", &[], "log with tracing, or write to stderr, which may be a closed pipe, and pass its error over"),
    ("eprintln!(", &[], "log with tracing, or write to stderr, which may be a closed pipe, and pass its error over"),
    ("dbg!(", &[], "take it out"),
    ("todo!(", &[], "write it"),
    ("unimplemented!(", &[], "write it"),
    (".unwrap()", &[], "`?`, or `expect` with the invariant that makes it true"),
    (".expect(\"\")", &[], "state the invariant"),
    ("#[ignore", &[], "assert what happens today"),
    ("#[should_panic", &[], "assert what happens today"),
];

/// What the tests prove of panics holds for what ships only when that unwinds too.
#[test]
fn what_ships_unwinds_as_the_tests_do() {
    let aborts = |manifest: &str| {
        let manifest: toml::Table = manifest.parse().unwrap();
        let profiles = manifest.get("profile").and_then(toml::Value::as_table);
        profiles
            .into_iter()
            .flatten()
            .any(|(_, profile)| profile.get("panic").is_some_and(|how| how.as_str() != Some("unwind")))
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(!aborts(&std::fs::read_to_string(folder.join("Cargo.toml")).unwrap()));
    assert!(!std::fs::read_to_string(folder.join(".ci/run")).unwrap().contains("panic_abort"));
    assert!(aborts("[profile.release]\npanic = \"abort\"\n"));
}

/// A source file, without comments and tests.
pub struct Source {
    /// Below `src/`.
    pub path: String,
    pub code: String,
}

#[test]
fn parts_name_only_what_is_below_them() {
    let sources = sources();
    assert!(sources.len() > 100, "the sources were found");
    fine(sources.iter().flat_map(wrong_names));
    // Canaries: in one line, in a group, across lines, in a path.
    for (path, code) in [
        ("client/a.rs", "use crate::store::Store;"),
        ("room/a.rs", "use crate::{base::Clock, user::Users};"),
        ("matrix/a.rs", "use crate::{\n    base::{\n        Clock,\n    },\n};"),
        ("feed.rs", "fn a() { crate::remote::encode(\"\"); }"),
    ] {
        assert_eq!(wrong_names(&Source { path: path.into(), code: code.into() }).len(), 1, "{code}");
    }
    assert!(wrong_names(&Source { path: "nowhere/a.rs".into(), code: String::new() }).len() == 1);
}

#[test]
fn some_calls_have_one_home() {
    fine(sources().iter().flat_map(wrong_calls));
    for (word, _, _) in HOMES {
        let canary = Source { path: "room/canary.rs".into(), code: format!("let a = {word}1);") };
        assert!(wrong_calls(&canary).iter().any(|wrong| wrong.contains(word)), "{word}");
    }
    assert_eq!(wrong_calls(&Source { path: "base/clock.rs".into(), code: "Instant::now()".into() }), [""; 0]);
}

/// The surfaces pass what is theirs: templates, prefixes and rates.
#[test]
fn http_knows_no_path_of_a_surface() {
    let known = |source: &Source| {
        let lines = source.code.lines().enumerate();
        let wrong =
            lines.filter(|(_, line)| ["/_matrix", "/.well-known", "/_snug"].iter().any(|path| line.contains(path)));
        wrong.map(|(at, _)| format!("src/{}:{} knows a surface's path", source.path, at + 1)).collect::<Vec<_>>()
    };
    fine(sources().iter().filter(|source| part_of(&source.path) == "http").flat_map(known));
    let canary = Source { path: "http/a.rs".into(), code: "fn a() {\n    b(\"/_matrix/client/v3\");\n}".into() };
    assert_eq!(known(&canary), ["src/http/a.rs:2 knows a surface's path"]);
}

/// Two rates of one name would take from one bucket.
#[test]
fn every_rate_has_a_name_of_its_own() {
    let twice = |code: &str| {
        let mut names: Vec<_> =
            code.split("Rate { name: \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(!names.is_empty(), "the rates were found");
        names.sort_unstable();
        let same = names.windows(2).filter(|pair| pair[0] == pair[1]);
        same.map(|pair| format!("two rates are called {:?}", pair[0])).collect::<Vec<_>>()
    };
    let code: String = sources().into_iter().map(|source| source.code).collect();
    fine(twice(&code));
    assert_eq!(twice(&format!("{code} Rate {{ name: \"joins\", burst: 1.0 }}")).len(), 1);
}

#[test]
fn no_file_is_forgotten() {
    for (root, entries) in [("src", &["lib.rs", "main.rs"][..]), ("tests/it", &["main.rs"])] {
        let root = top().join(root);
        fine(forgotten(&root, entries));
    }
    let folder = crate::server::Folder::new();
    std::fs::write(folder.path().join("lib.rs"), "mod a;\n").unwrap();
    std::fs::write(folder.path().join("a.rs"), "").unwrap();
    std::fs::write(folder.path().join("b.rs"), "").unwrap();
    assert_eq!(forgotten(folder.path(), &["lib.rs"]).len(), 1);
}

#[test]
fn every_file_says_what_it_is() {
    let silent = |path: &str, text: &str| {
        // Tests and tables may speak for themselves.
        let exempt = path.ends_with("tests.rs") || text.starts_with("//!") || text.starts_with("#!");
        (!exempt).then(|| format!("{path} does not begin with what it owns (`//!`)"))
    };
    fine(files(&top().join("src")).iter().filter_map(|(path, text)| silent(path, text)));
    assert!(silent("a.rs", "use b;").is_some());
}

#[test]
fn budgets_add_up_and_everything_in_them_is_used() {
    for name in Profile::names() {
        let profile = Profile::get(name).unwrap();
        assert!(profile.sum() <= profile.total);
        // What the kernel is told beside the unit.
        let unit = std::fs::read_to_string(top().join(format!("board/systemd/memory/{name}.conf"))).unwrap();
        let limit = format!("\nMemoryMax={}M\n", profile.total >> 20).replace("=1024M", "=1G");
        assert!(unit.contains(&limit), "{name}");
    }
    let code: String = sources().iter().filter(|source| source.path != "budget/profile.rs").map(|s| &*s.code).collect();
    let profile = Profile::get("pi-zero-2w").unwrap();
    let accounts = profile.accounts.iter().chain(&profile.disk).map(|row| row.name.clone());
    let named: Vec<String> = accounts.chain(profile.sizes().map(|(name, _)| name.to_owned())).collect();
    let unused = |code: &str| {
        let unused = named.iter().filter(|name| !code.contains(&format!("\"{name}\"")));
        unused.map(|name| format!("{name} is in the memory budgets, but nothing asks for it")).collect::<Vec<_>>()
    };
    fine(unused(&code).into_iter().filter(|wrong| !SAID.iter().any(|name| wrong.starts_with(name))));
    assert_eq!(unused("").len(), named.len());
    // A budget that does not add up is caught.
    let text = std::fs::read_to_string(top().join("memory-budgets/pi-zero-2w.toml")).unwrap();
    let wrong = text.replace("total = \"48 MiB\"", "total = \"40 MiB\"");
    assert!(Profile::parse("canary", &wrong).unwrap_err().to_string().contains("more than its total"));
}

/// What an account comes to, said for people: the profile itself checks that it fits.
const SAID: &[&str] = &["connections_max "];

#[test]
fn every_setting_is_in_the_sample() {
    let missing = |sample: &str| {
        let shown = |name: &str| sample.lines().any(|line| line.starts_with(&format!("# {name} = ")));
        let last = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
        config::settings().filter(|setting| !shown(last(setting.name))).map(|setting| setting.name).collect::<Vec<_>>()
    };
    assert_eq!(missing(&Config::sample()), [""; 0]);
    let canary: String = Config::sample().lines().filter(|line| !line.starts_with("# registration = ")).collect();
    assert!(missing(&canary).contains(&"registration"));
}

#[path = "../fuzz/table.rs"]
mod fuzzed;

/// The fuzzer sends requests to every endpoint, and knows what each holds.
#[tokio::test]
async fn every_endpoint_is_fuzzed() {
    let house = crate::server::TestServer::start().await;
    let shape = |method: &str, template: &str| {
        let bare = template.strip_suffix('/').unwrap_or(template);
        let parts = bare.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
        format!("{method} {}", parts.collect::<Vec<_>>().join("/"))
    };
    let served = house.server().router().list();
    let served: BTreeSet<String> = served.map(|(method, template)| shape(method.as_str(), template)).collect();
    let known = |table: &[fuzzed::Endpoint]| -> BTreeSet<String> {
        let all = table.iter().flat_map(|endpoint| endpoint.templates().map(|path| shape(endpoint.method, &path)));
        all.collect()
    };
    let forgotten = |table: &[fuzzed::Endpoint]| served.difference(&known(table)).cloned().collect::<Vec<_>>();
    assert_eq!(forgotten(fuzzed::TABLE), [""; 0], "these are not in tests/fuzz/table.rs");
    assert_eq!(known(fuzzed::TABLE).difference(&served).collect::<Vec<_>>(), [""; 0], "these are not served");
    assert!(!forgotten(&fuzzed::TABLE[1..]).is_empty());
    fine(fuzzed::TABLE.iter().flat_map(wrong_samples));
    let others = fuzzed::contents().iter().chain(fuzzed::state_contents("")).chain(fuzzed::EDUS);
    fine(others.filter_map(|sample| wrong_sample("contents", sample)));
    assert!(wrong_sample("canary", "{]").is_some());
    house.stop().await;
}

fn wrong_samples(endpoint: &fuzzed::Endpoint) -> Vec<String> {
    let mut wrong = Vec::new();
    if let fuzzed::Holds::Json(samples) = endpoint.body {
        wrong.extend(samples.iter().filter_map(|sample| wrong_sample(endpoint.path, sample)));
    }
    if fuzzed::pairs(endpoint.query).count() != endpoint.query.split_terminator('&').count() || endpoint.weight == 0 {
        wrong.push(format!("{}: its query or its weight is no use", endpoint.path));
    }
    let of_servers = endpoint.templates().all(|path| path.starts_with("/_matrix/federation/"));
    if (endpoint.who == fuzzed::Who::Server) != of_servers && endpoint.who != fuzzed::Who::Anybody {
        wrong.push(format!("{}: asked by {:?}", endpoint.path, endpoint.who));
    }
    wrong
}

fn wrong_sample(path: &str, sample: &str) -> Option<String> {
    let error = serde_json::from_str::<serde_json::Value>(sample).err()?;
    Some(format!("{path}: {sample}: {error}"))
}

fn wrong_names(source: &Source) -> Vec<String> {
    let part = part_of(&source.path);
    if TOP.contains(&part) {
        return Vec::new();
    }
    let Some((_, allowed)) = MAY_NAME.iter().find(|(known, _)| *known == part) else {
        return vec![format!("src/{} belongs to no part", source.path)];
    };
    let allowed: Vec<&str> = allowed.split_whitespace().collect();
    let named = named_parts(&source.code);
    let wrong = named.iter().filter(|name| **name != part && !allowed.contains(&name.as_str()));
    wrong.map(|name| format!("src/{} names {name}, which {part} may not", source.path)).collect()
}

/// The parts behind every `crate::` in some code, groups included.
fn named_parts(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, word) in code.match_indices("crate::") {
        let rest = &code[at + word.len()..];
        match rest.strip_prefix('{') {
            None => found.extend(word_at(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut begins = true;
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => begins = true,
                        c if begins && depth == 0 && !c.is_whitespace() => {
                            found.extend(word_at(&group[at..]));
                            begins = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    // Macros and what `lib.rs` itself defines are no parts.
    found.retain(|name| MAY_NAME.iter().any(|(part, _)| part == name) || TOP.contains(&name.as_str()));
    found
}

fn word_at(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

fn wrong_calls(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for (word, homes, instead) in HOMES {
        if homes.iter().any(|home| source.path.starts_with(home)) {
            continue;
        }
        for (at, _) in source.code.match_indices(word) {
            // `operand::` is not `rand::`; what fails while compiling cannot fail later.
            let before = &source.code[..at];
            let inside = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let constant = before.rsplit('\n').next().is_some_and(|line| line.contains("const "));
            if (!inside || word.starts_with('.')) && !constant {
                let line = source.code[..at].matches('\n').count() + 1;
                wrong.push(format!("src/{}:{line}: {word} stands where it may not: {instead}", source.path));
            }
        }
    }
    wrong
}

/// Files below a folder that no `mod` leads to.
fn forgotten(root: &Path, entries: &[&str]) -> Vec<String> {
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<PathBuf> = entries.iter().map(|entry| root.join(entry)).collect();
    while let Some(file) = waiting.pop() {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        if !reached.insert(file.clone()) {
            continue;
        }
        let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let folder = file.parent().unwrap_or(root);
        let below = if ["mod", "lib", "main"].contains(&stem) { folder.to_owned() } else { folder.join(stem) };
        for line in text.lines().map(str::trim) {
            let declared = line.split("//").next().unwrap_or_default().trim_end();
            let Some(name) = declared.strip_suffix(';').and_then(|line| line.rsplit("mod ").next()) else { continue };
            if declared.contains("mod ") && name.chars().all(|c| c.is_alphanumeric() || c == '_') {
                waiting.push(below.join(format!("{name}.rs")));
                waiting.push(below.join(name).join("mod.rs"));
            }
        }
    }
    let all = files(root).into_iter().map(|(path, _)| root.join(path));
    all.filter(|file| !reached.contains(file)).map(|file| format!("{} is in no module", file.display())).collect()
}

#[track_caller]
pub fn fine(wrong: impl IntoIterator<Item = String>) {
    let wrong: Vec<_> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "{}\n", wrong.join("\n"));
}

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn part_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// Every source that ships, without its comments and tests.
pub fn sources() -> Vec<Source> {
    let shipped = files(&top().join("src"))
        .into_iter()
        .filter(|(path, _)| !path.ends_with("tests.rs") && !path.contains("/tests/") && !path.ends_with("testing.rs"));
    shipped.map(|(path, text)| Source { path, code: bare(&text) }).collect()
}

/// Lines keep their numbers. The tests of a file stand at its end.
fn bare(text: &str) -> String {
    let shipped = match text.find("#[cfg(test)]\nmod tests {") {
        Some(at) => &text[..at],
        None => text,
    };
    let code = |line: &str| match line.find("//") {
        Some(at) if line[..at].trim().is_empty() || line[..at].ends_with("; ") => line[..at].to_owned(),
        _ => line.to_owned(),
    };
    shipped.lines().map(|line| code(line) + "\n").collect()
}

/// Every Rust file below a folder with its path from there.
fn files(root: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
