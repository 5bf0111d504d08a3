//! Moderation policy lists (client-server API, "Moderation policy lists"): what a rule says.
//!
//! Beside the specification's types the two older spellings are read, `m.room.rule.*` and `org.matrix.mjolnir.rule.*`, which
//! lists still have; as recommendations a ban and a takedown (MSC4204); and a name that is given by its hash alone (MSC4205).

use super::json;

/// What a rule is about. The number is a part of keys on disk: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Subject {
    User = 1,
    Server = 2,
    Room = 3,
}

/// How a rule names what it is about. On disk: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Form {
    /// One name.
    Exact = 0,
    /// A pattern with `*` and `?`.
    Glob = 1,
    /// The SHA-256 of a name, in base64 without padding.
    Hash = 2,
    /// A pattern that fits everything: kept to be shown, and never followed.
    TooWide = 3,
}

/// A rule as it is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub subject: Subject,
    pub form: Form,
    /// In small letters; a hash as it is written.
    pub entity: String,
    pub takedown: bool,
    /// Its beginning.
    pub reason: String,
}

/// Bytes of a name or a pattern: an id has no more.
const ENTITY_BYTES_MAX: usize = 255;
/// Characters of a reason that are kept to be shown.
const REASON_CHARS_MAX: usize = 100;

impl Subject {
    pub const ALL: [Subject; 3] = [Subject::User, Subject::Server, Subject::Room];

    /// What a rule of an event type is about; none for other types.
    pub fn of_type(kind: &str) -> Option<Subject> {
        let prefixes = ["m.policy.rule.", "m.room.rule.", "org.matrix.mjolnir.rule."];
        match prefixes.iter().find_map(|prefix| kind.strip_prefix(prefix))? {
            "user" => Some(Subject::User),
            "server" => Some(Subject::Server),
            "room" => Some(Subject::Room),
            _ => None,
        }
    }

    pub fn from_code(code: u8) -> Option<Subject> {
        Subject::ALL.into_iter().find(|subject| *subject as u8 == code)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Subject::User => "user",
            Subject::Server => "server",
            Subject::Room => "room",
        }
    }
}

/// Reads a rule in place; none where the event is none, recommends something else, or was taken back (an empty content).
pub fn rule(kind: &str, content: &[u8]) -> Option<Rule> {
    let subject = Subject::of_type(kind)?;
    let text = |key: &str| json::read::get(content, key).and_then(json::read::text);
    let takedown = match &*text("recommendation")? {
        "m.ban" | "org.matrix.mjolnir.ban" => false,
        "m.takedown" | "org.matrix.msc4204.takedown" => true,
        _ => return None,
    };
    let reason = text("reason").unwrap_or_default();
    let reason = reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect();
    let fits = |entity: &str| (1..=ENTITY_BYTES_MAX).contains(&entity.len()) && !entity.contains(char::is_control);
    let (form, entity) = match text("entity").filter(|entity| fits(entity)) {
        Some(entity) => (form_of(&entity), entity.to_ascii_lowercase()),
        None => {
            let hashed = ["hashes", "org.matrix.msc4205.hashes"].into_iter();
            let mut hashed = hashed.filter_map(|key| json::read::get_path(content, &[key, "sha256"]));
            let hash = hashed.find_map(json::read::text).filter(|hash| fits(hash))?;
            (Form::Hash, hash.trim_end_matches('=').replace('-', "+").replace('_', "/"))
        }
    };
    Some(Rule { subject, form, entity, takedown, reason })
}

/// A pattern of which nothing is left without what stands in every name would put an end to all federation.
fn form_of(entity: &str) -> Form {
    match entity.contains(['*', '?']) {
        false => Form::Exact,
        true if entity.chars().all(|c| "*?.:@!#".contains(c)) => Form::TooWide,
        true => Form::Glob,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_in_all_their_spellings() {
        let check = |kind: &str, content: &str, wanted: Option<(Subject, Form, &str, bool)>| {
            let found = rule(kind, content.as_bytes());
            let found = found.as_ref().map(|rule| (rule.subject, rule.form, rule.entity.as_str(), rule.takedown));
            assert_eq!(found, wanted, "{kind} {content}");
        };
        let ban = r#"{"entity":"@Bad:x","recommendation":"m.ban","reason":"spam"}"#;
        for kind in ["m.policy.rule.user", "m.room.rule.user", "org.matrix.mjolnir.rule.user"] {
            check(kind, ban, Some((Subject::User, Form::Exact, "@bad:x", false)));
        }
        check("m.room.member", ban, None);
        check("m.policy.rule.user", "{}", None);
        check("m.policy.rule.user", r#"{"entity":"@a:x","recommendation":"m.allow"}"#, None);
        check("m.policy.rule.user", r#"{"entity":["@a:x"],"recommendation":"m.ban"}"#, None);
        let glob = r#"{"entity":"*.evil.example","recommendation":"org.matrix.mjolnir.ban"}"#;
        check("m.policy.rule.server", glob, Some((Subject::Server, Form::Glob, "*.evil.example", false)));
        let takedown = r#"{"entity":"!r:x","recommendation":"org.matrix.msc4204.takedown"}"#;
        check("m.policy.rule.room", takedown, Some((Subject::Room, Form::Exact, "!r:x", true)));
        let hashed = r#"{"hashes":{"sha256":"A-bb="},"recommendation":"m.takedown"}"#;
        check("m.policy.rule.room", hashed, Some((Subject::Room, Form::Hash, "A+bb", true)));
        for all in ["*", "**", "@*:*", "*.*", "*:?*"] {
            let content = format!(r#"{{"entity":"{all}","recommendation":"m.ban"}}"#);
            check("m.policy.rule.user", &content, Some((Subject::User, Form::TooWide, all, false)));
        }
        let long = format!(r#"{{"entity":"{}","recommendation":"m.ban"}}"#, "a".repeat(256));
        check("m.policy.rule.server", &long, None);
    }

    #[test]
    fn any_bytes_are_a_rule_or_none() {
        let first: &[u8] = br#"{"entity":"*.x","hashes":{"sha256":"a"},"recommendation":"m.ban","reason":"r"}"#;
        crate::base::any_bytes::any_bytes(&[first], |bytes| drop(rule("m.policy.rule.user", bytes)));
    }
}
