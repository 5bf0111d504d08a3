//! Checks on names beyond what ruma's types make sure of.

use super::Reject;
use ruma::{OwnedRoomAliasId, OwnedUserId, ServerName};
use std::net::{Ipv4Addr, Ipv6Addr};

const ID_BYTES_MAX: usize = 255;

/// So many wrong characters of a name are named in the error.
const WRONG_NAMED_MAX: usize = 3;

/// A new user's id: only the letters the specification allows for new ones, and short enough.
pub fn new_user(localpart: &str, server: &ServerName) -> Result<OwnedUserId, Reject> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '=' | '-' | '/' | '+');
    if localpart.is_empty() {
        return Err(Reject::shape("a user name needs at least one character"));
    }
    let mut wrong: Vec<char> = Vec::new();
    for c in localpart.chars().filter(|c| !fine(*c)) {
        if wrong.len() < WRONG_NAMED_MAX && !wrong.contains(&c) {
            wrong.push(c);
        }
    }
    if !wrong.is_empty() {
        let wrong: Vec<String> = wrong.into_iter().map(named).collect();
        return Err(Reject::shape(format!(
            "a user name may contain only the letters a-z, digits and . _ = - / +, not {}",
            wrong.join(" and not ")
        )));
    }
    let id = format!("@{localpart}:{server}");
    if id.len() > ID_BYTES_MAX {
        return Err(Reject::shape(format!(
            "the user name is too long: with the server's name it may have {ID_BYTES_MAX} bytes, and has {}",
            id.len()
        )));
    }
    OwnedUserId::try_from(id).map_err(|e| Reject::shape(format!("not a user ID: {e}")))
}

/// A character in words that can be read.
fn named(c: char) -> String {
    match c {
        ' ' => "a space".to_owned(),
        c if c.is_control() || c.is_whitespace() => format!("the character U+{:04X}", c as u32),
        c if c.is_uppercase() => format!("the capital letter {c}"),
        c => format!("\u{201c}{c}\u{201d}"),
    }
}

/// The user named at login: the text is a name or a whole id. Names of local users have no capitals, however typed.
pub fn typed_user(text: &str, server: &ServerName) -> Option<OwnedUserId> {
    let text = text.trim();
    if text.starts_with('@') {
        let id = OwnedUserId::try_from(text).ok()?;
        if id.server_name() != server {
            return Some(id);
        }
        return OwnedUserId::try_from(format!("@{}:{server}", id.localpart().to_lowercase())).ok();
    }
    OwnedUserId::try_from(format!("@{}:{server}", text.to_lowercase())).ok()
}

/// A new alias's id from the text between `#` and the colon.
pub fn new_alias(localpart: &str, server: &ServerName) -> Result<OwnedRoomAliasId, Reject> {
    let wrong = localpart.is_empty() || localpart.chars().any(|c| c == ':' || c == '\0' || c.is_whitespace());
    let id = format!("#{localpart}:{server}");
    if wrong || id.len() > ID_BYTES_MAX {
        return Err(Reject::shape(
            "the name of an alias may contain no blanks and no colon, and the whole alias 255 bytes at most",
        ));
    }
    OwnedRoomAliasId::try_from(id).map_err(|e| Reject::shape(format!("not a room alias: {e}")))
}

/// Host (an IPv6 address keeps its brackets) and port of a server name.
pub fn split_port(server: &str) -> (&str, Option<u16>) {
    let after_host = if server.starts_with('[') { server.find(']').map_or(0, |at| at + 1) } else { 0 };
    match server[after_host..].find(':') {
        Some(colon) => (&server[..after_host + colon], server[after_host + colon + 1..].parse().ok()),
        None => (server, None),
    }
}

/// Whether a host is an IPv4 address or an IPv6 address in brackets.
pub fn is_ip_literal(host: &str) -> bool {
    let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    host.parse::<Ipv4Addr>().is_ok() || v6.is_some_and(|h| h.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let server = <&ServerName>::try_from("box.example:8448").unwrap();
        assert_eq!(new_user("anna.b=1", server).unwrap(), "@anna.b=1:box.example:8448");
        for wrong in ["", "Anna", "a b", "a:b", "ä", &"x".repeat(250)] {
            assert!(new_user(wrong, server).is_err(), "{wrong}");
        }
        for (wrong, named) in [
            ("anna müller", "not a space and not \u{201c}ü\u{201d}"),
            ("Anna", "not the capital letter A"),
            ("a:b::c", "not \u{201c}:\u{201d}"),
            ("a\tb", "not the character U+0009"),
            ("!?#%", "not \u{201c}!\u{201d} and not \u{201c}?\u{201d} and not \u{201c}#\u{201d}"),
        ] {
            let said = new_user(wrong, server).unwrap_err().to_string();
            assert!(said.ends_with(named), "{said}");
        }
        assert_eq!(typed_user(" Anna ", server).unwrap(), "@anna:box.example:8448");
        assert_eq!(typed_user("@ANNA:box.example:8448", server).unwrap(), "@anna:box.example:8448");
        assert_eq!(typed_user("@Anna:x.y", server).unwrap(), "@Anna:x.y");
        assert!(
            new_alias("café", server).is_ok() && new_alias("a b", server).is_err() && new_alias("", server).is_err()
        );
    }

    #[test]
    fn ports_and_addresses() {
        for (server, host, port, ip) in [
            ("a.b", "a.b", None, false),
            ("a.b:1", "a.b", Some(1), false),
            ("1.2.3.4:8448", "1.2.3.4", Some(8448), true),
            ("[::1]", "[::1]", None, true),
            ("[2001:db8::1]:443", "[2001:db8::1]", Some(443), true),
        ] {
            assert_eq!((split_port(server), is_ip_literal(split_port(server).0)), ((host, port), ip), "{server}");
        }
    }
}
