//! Floors inside of the parts: which sub-rooms of `room/`, `user/` and `store/tables/` may name which, and that no two files
//! import each other.
//!
//! What a file names is what its `use` declarations and its paths lead to. A folder's `mod.rs` and the files below it count as one
//! where circles are looked for: a parent lists its children, and a child its parent's types.

use std::collections::{BTreeMap, BTreeSet};

use super::tidy::{Source, fine, sources};

/// A folder below `src/`, and what each sub-room of it may name, lowest floor first.
struct Floors {
    folder: &'static str,
    may_name: &'static [(&'static str, &'static str)],
}

const FLOORS: &[Floors] = &[
    Floors {
        folder: "room",
        may_name: &[
            ("error", ""),
            ("lock", ""),
            ("ignored", ""),
            ("invite_rules", "ignored"),
            ("blocked", "error"),
            ("policies", "error"),
            ("words", "error"),
            ("state", "error lock ignored"),
            ("append", "error lock ignored invite_rules words state"),
            ("policy_server", "error state"),
            ("receive", "policy_server error lock ignored state append"),
            ("send", "policy_server error blocked lock ignored policies state append"),
            ("ephemeral", "error lock ignored state append"),
            ("handshake", "error blocked lock ignored policies invite_rules state append receive send"),
            ("directory", "error blocked lock ignored policies state send handshake"),
            ("read", "error lock ignored invite_rules words state receive ephemeral"),
            ("join", "error lock ignored state append send handshake"),
            ("serve", "error blocked lock ignored state receive send handshake"),
            ("membership", "error blocked lock ignored policies invite_rules state append receive send handshake join"),
            ("create", "error lock ignored policies state append send directory membership"),
            ("spaces", "error lock ignored state read"),
            ("guests", "error lock ignored state"),
            ("invited", "error invite_rules state"),
            ("notify", "error lock ignored state append read"),
            ("threads", "error lock ignored state read"),
            ("days", "error"),
            ("delayed", "error"),
            ("mass_redaction", "error lock state append"),
            ("user_redaction", "error state send"),
            ("purge", "error state append membership"),
            ("tasks", "error blocked state send create purge"),
            ("make_admin", "error state send"),
            ("operator", "error lock ignored state join"),
            ("policy_lists", "error append directory"),
            ("inspect", "error state"),
            ("neighbours", "error state"),
        ],
    },
    Floors {
        folder: "user",
        may_name: &[
            ("lookup", ""),
            ("sharing", "lookup"),
            ("settings", "lookup"),
            ("device", "lookup sharing"),
            ("account", "lookup sharing device"),
            ("reports", "lookup"),
            ("reports_told", "lookup account"),
            ("presence", "lookup sharing device"),
            ("calls", ""),
            ("sync", "lookup sharing device settings"),
            ("sliding", "lookup"),
        ],
    },
    Floors {
        folder: "store/tables",
        may_name: &[
            ("user", ""),
            ("server", ""),
            ("backups", ""),
            ("thumbnail", ""),
            ("media", "thumbnail"),
            ("preview", ""),
            ("room", "user"),
        ],
    },
];

#[test]
fn sub_rooms_name_only_what_is_below_them() {
    let house = Imports::new(&sources());
    assert!(house.named.len() > 200, "the imports were found");
    for floors in FLOORS {
        fine(house.wrong_floors(floors));
    }
    let canary = |path: &str, code: &str| {
        let mut sources = sources();
        sources.push(Source { path: path.into(), code: code.into() });
        let house = Imports::new(&sources);
        FLOORS.iter().flat_map(|floors| house.wrong_floors(floors)).collect::<Vec<_>>()
    };
    for (path, code) in [
        ("room/state/canary.rs", "use crate::room::append;"),
        ("room/append/canary.rs", "use super::super::receive::{gap::GapFill};"),
        ("room/send/canary.rs", "use crate::room::state;\nfn a() { crate::room::join::order::sort(); }"),
        ("user/device/canary.rs", "use crate::user::{account::session};"),
        ("store/tables/server/canary.rs", "use crate::store::tables;\nfn a() { tables::room::event::num(); }"),
        ("room/canary.rs", ""),
    ] {
        assert_eq!(canary(path, code).len(), 1, "{path}: {code}");
    }
}

#[test]
fn no_two_files_import_each_other() {
    fine(Imports::new(&sources()).circles());
    let two = |of: [(&str, &str); 3]| {
        Imports::new(&of.map(|(path, code)| Source { path: path.into(), code: code.into() })).circles().len()
    };
    let (b, c) = (("b.rs", "use crate::c;"), ("c.rs", "use crate::a::X;"));
    assert_eq!(two([("a.rs", "use super::b::Y;"), b, c]), 1);
    assert_eq!(two([("a.rs", "use std::fmt;"), b, c]), 0);
    // A parent and its child are no circle.
    assert_eq!(two([("a/mod.rs", "mod d;\nuse d::X;"), ("a/d.rs", "use super::Y;"), b]), 0);
}

type Path = Vec<String>;

/// What each file names, by the path of its module.
struct Imports {
    named: BTreeMap<Path, BTreeSet<Path>>,
}

impl Imports {
    fn new(sources: &[Source]) -> Imports {
        let modules: BTreeMap<Path, &Source> = sources.iter().map(|source| (module_of(&source.path), source)).collect();
        let imports = modules.iter().map(|(module, source)| (module.clone(), imports(&source.code))).collect();
        let names = Names { modules: modules.keys().cloned().collect(), imports };
        let mut named = BTreeMap::new();
        for (module, source) in &modules {
            let mut all: BTreeSet<Path> = BTreeSet::new();
            let used = names.imports[module].iter().map(|(_, path)| path.clone());
            for path in used.chain(inline_paths(&source.code)) {
                all.extend(names.resolve(module, &path, 0).and_then(|path| names.file_of(&path)));
            }
            all.remove(module);
            all.remove(&Path::new());
            named.insert(module.clone(), all);
        }
        Imports { named }
    }

    fn wrong_floors(&self, floors: &Floors) -> Vec<String> {
        let folder: Path = floors.folder.split('/').map(str::to_owned).collect();
        let sub_room = |path: &Path| path.strip_prefix(&folder[..]).and_then(|rest| rest.first()).cloned();
        let mut wrong = Vec::new();
        for (module, named) in &self.named {
            let Some(mine) = sub_room(module) else { continue };
            if mine == "tests" {
                continue;
            }
            let Some((_, allowed)) = floors.may_name.iter().find(|(name, _)| *name == mine) else {
                wrong.push(format!("{} is on no floor of {}", module.join("/"), floors.folder));
                continue;
            };
            for other in named {
                let theirs = sub_room(other).filter(|theirs| *theirs != mine);
                if theirs.is_some_and(|theirs| !allowed.split(' ').any(|name| name == theirs)) {
                    let (one, other) = (module.join("/"), other.join("/"));
                    wrong.push(format!("{one} names {other}, which {mine} may not"));
                }
            }
        }
        wrong
    }

    /// Files that name each other, also by way of others.
    fn circles(&self) -> Vec<String> {
        let is_kin = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
        let mut circles = BTreeSet::new();
        for start in self.named.keys() {
            let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
            while let Some(module) = open.pop() {
                for next in self.named.get(module).into_iter().flatten().filter(|next| !is_kin(module, next)) {
                    if next == start {
                        circles.insert(format!("{} is named by what it names: {}", start.join("/"), module.join("/")));
                    }
                    if seen.insert(next) {
                        open.push(next);
                    }
                }
            }
        }
        // One line for a circle is enough to find it.
        circles.into_iter().take(1).collect()
    }
}

struct Names {
    modules: BTreeSet<Path>,
    imports: BTreeMap<Path, Vec<(String, Path)>>,
}

impl Names {
    /// A path as it is from the top of the crate; `None` for what is none of ours.
    fn resolve(&self, module: &Path, path: &[String], hops: usize) -> Option<Path> {
        let (first, rest) = path.split_first()?;
        let on = |base: &[String], rest: &[String]| Some([base, rest].concat());
        match &**first {
            "crate" => on(&[], rest),
            "self" => on(module, rest),
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                on(&module[..module.len().checked_sub(ups)?], &path[ups..])
            }
            _ if self.modules.contains(&[&module[..], std::slice::from_ref(first)].concat()) => on(module, path),
            _ if hops > 4 => None,
            name => {
                let (_, import) = self.imports.get(module)?.iter().find(|(known, _)| known == name)?;
                let is_itself = import.first() == Some(first);
                let base = if is_itself { None } else { self.resolve(module, import, hops + 1) };
                on(&base?, rest)
            }
        }
    }

    /// The file that a path leads into.
    fn file_of(&self, path: &Path) -> Option<Path> {
        (0..=path.len()).rev().map(|length| path[..length].to_vec()).find(|path| self.modules.contains(path))
    }
}

fn module_of(file: &str) -> Path {
    let mut path: Path = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if path.last().is_some_and(|last| last == "mod" || last == "lib") {
        path.pop();
    }
    path
}

/// The names that `use` declarations bring, and where they come from. Declarations that only pass names on (`pub use`) are none.
fn imports(code: &str) -> Vec<(String, Path)> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let begins = rest[..at].rsplit('\n').next().unwrap_or_default().trim();
        let end = rest[at..].find(';').map_or(rest.len(), |end| at + end);
        if begins.is_empty() {
            expand(&rest[at + 4..end], &[], &mut found);
        }
        rest = &rest[if begins.is_empty() { end } else { at + 4 }..];
    }
    found
}

fn expand(tree: &str, before: &[String], found: &mut Vec<(String, Path)>) {
    let tree = tree.trim();
    let (head, group) = match tree.split_once('{') {
        Some((head, group)) => (head, Some(group.strip_suffix('}').unwrap_or(group))),
        None => (tree, None),
    };
    let (head, renamed) = head.split_once(" as ").map_or((head, None), |(head, name)| (head, Some(name.trim())));
    let parts = head.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty());
    let mut path: Path = before.iter().cloned().chain(parts).collect();
    match group {
        Some(group) => split_list(group).for_each(|tree| expand(tree, &path, found)),
        None => {
            path.pop_if(|last| last == "self" && !before.is_empty());
            let name = renamed.map(str::to_owned).or(path.last().cloned());
            found.extend(name.map(|name| (name, path)));
        }
    }
}

/// The items of a list that may have lists in it.
fn split_list(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    list.split(move |c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    })
    .filter(|item| !item.trim().is_empty())
}

/// `a::b::c` wherever it stands.
fn inline_paths(code: &str) -> Vec<Path> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for text in code.split(|c: char| !is_word(c) && c != ':') {
        let parts: Path = text.split("::").map(str::to_owned).collect();
        if parts.len() > 1 && parts.iter().all(|part| !part.is_empty() && part.chars().all(is_word)) {
            found.push(parts);
        }
    }
    found
}
