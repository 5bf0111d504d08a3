//! Server access control lists (client-server API, "Server Access Control Lists (ACLs) for rooms").

use super::{id, json};

/// The content of `m.room.server_acl`, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    allow: Vec<Box<str>>,
    deny: Vec<Box<str>>,
    allow_ip_literals: bool,
}

impl Acl {
    /// Reads canonical text in place: an event full of other members becomes no tree. A malformed part counts as left
    /// out.
    pub fn parse(content: &str) -> Acl {
        let content = content.as_bytes();
        let globs = |key: &str| -> Vec<Box<str>> {
            let entries = json::read::items(json::read::get(content, key).unwrap_or(b"[]"));
            entries.filter_map(json::read::text).map(|glob| glob.to_ascii_lowercase().into_boxed_str()).collect()
        };
        let allow_ip_literals = json::read::get(content, "allow_ip_literals") != Some(b"false");
        Acl { allow: globs("allow"), deny: globs("deny"), allow_ip_literals }
    }

    /// Whether a server may take part. Its port does not count. Time: entries × (name + glob), all bounded by one event.
    pub fn allows(&self, server: &str) -> bool {
        let (host, _) = id::split_port(server);
        if !self.allow_ip_literals && id::is_ip_literal(host) {
            return false;
        }
        let host = host.to_ascii_lowercase();
        let matches = |globs: &[Box<str>]| globs.iter().any(|glob| glob_matches(glob.as_bytes(), host.as_bytes()));
        !matches(&self.deny) && matches(&self.allow)
    }

    /// Memory held, for the account that pays for it.
    pub fn weight(&self) -> usize {
        self.allow.iter().chain(&self.deny).map(|glob| glob.len() + 16).sum::<usize>() + size_of::<Acl>()
    }
}

/// `*` stands for any text, `?` for one character. Never goes back beyond the last `*`, so no glob is slow.
pub fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    g = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::tests::{list, vectors};

    #[test]
    fn verdicts() {
        for case in list(&vectors()["server_acl"], "cases") {
            let acl = Acl::parse(&case["content"].to_string());
            for (server, verdict) in case["verdicts"].as_object().unwrap() {
                assert_eq!(acl.allows(server), verdict.as_bool().unwrap(), "{server} in {}", case["content"]);
            }
        }
    }

    #[test]
    fn globs() {
        for (glob, text, matches) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*.a", "b.a", true),
            ("?", "", false),
            ("a?", "ab", true),
            ("**a", "bba", true),
            ("*a*a*a*a*a*b", "aaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(glob_matches(glob.as_bytes(), text.as_bytes()), matches, "{glob} {text}");
        }
    }
}
