//! Registrations of application services (application service API, "Registration"): what the file of a bridge says, and
//! which users, aliases and rooms are its own.
//!
//! Patterns come from an operator's file, and what is matched with them from strangers: the engine takes time in
//! proportion to the length of what it is given, whatever the pattern. A pattern holds from the beginning of a name and
//! need not reach its end, as in Synapse.

mod yaml;

use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};
use ruma::{OwnedUserId, ServerName, UserId};
use yaml::Node;

pub use yaml::BYTES_MAX;

/// Patterns of one kind in one registration.
const PATTERNS_MAX: usize = 32;
/// A compiled pattern. Classes of bytes keep it far below; 64 KiB are a repetition of some thousand.
const PATTERN_BYTES_MAX: usize = 64 * 1024;
/// What a pattern may keep of what it found while it searched; beyond that it searches more slowly.
const PATTERN_CACHE_BYTES: usize = 8 * 1024;
/// What the patterns of one registration may take in memory, and of all of them together: a plain one takes some 12 KiB, so that
/// 32 services of four patterns fit. Twenty characters can make one that takes 210 KiB.
pub const PATTERNS_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The names of protocols in one registration.
const PROTOCOLS_MAX: usize = 32;
/// A token, an id, a URL.
const TEXT_BYTES_MAX: usize = 1024;

/// What the file of an application service says.
#[derive(Debug, Clone)]
pub struct Registration {
    pub id: String,
    /// Where it is told what happens, without a slash at the end; none for one that only asks.
    pub url: Option<String>,
    pub as_token: String,
    pub hs_token: String,
    /// The user that it is when it names none.
    pub sender: OwnedUserId,
    pub users: Namespace,
    pub aliases: Namespace,
    pub rooms: Namespace,
    /// Whether its users other than the sender are subject to rate limits.
    pub rate_limited: bool,
    pub protocols: Vec<String>,
    /// It is told of typing, receipts, presence and messages to devices, under the names of the specification.
    pub ephemeral: bool,
    /// The same under the names from before the specification had them.
    pub unstable_ephemeral: bool,
    /// It is told of device lists and one-time keys (MSC3202).
    pub keys: bool,
    /// The token is in the query too, for a service that looks nowhere else.
    pub query_token: bool,
    /// What its patterns take in memory, at most [`PATTERNS_BYTES_MAX`].
    pub patterns_bytes: usize,
}

/// Names of one kind that concern a service.
#[derive(Debug, Clone, Default)]
pub struct Namespace(Vec<Pattern>);

#[derive(Debug, Clone)]
struct Pattern {
    exclusive: bool,
    regex: Regex,
}

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        self.regex.is_match(Input::new(name.as_bytes()).anchored(Anchored::Yes))
    }
}

impl Namespace {
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.fits(name))
    }

    /// Whether nobody else may have the name.
    pub fn has_alone(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.exclusive && pattern.fits(name))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Registration {
    /// Reads a file. An error names the field.
    pub fn read(text: &str, server: &ServerName) -> Result<Registration, String> {
        let file = yaml::read(text)?;
        if !matches!(file, Node::Map(_)) {
            return Err("the file is no registration: it must be a map with the keys id, url, as_token, hs_token, \
                        sender_localpart and namespaces"
                .to_owned());
        }
        let id = text_of(&file, "id")?;
        if id.is_empty() || id.contains(['|', '/', '\0', '\n']) {
            return Err("id: must not be empty, nor contain | or /".to_owned());
        }
        let sender_localpart = text_of(&file, "sender_localpart")?;
        let sender = user_id(&sender_localpart, server)
            .ok_or_else(|| format!("sender_localpart: \"{sender_localpart}\" is not the first part of a user ID"))?;
        let (as_token, hs_token) = (token_of(&file, "as_token")?, token_of(&file, "hs_token")?);
        if as_token == hs_token {
            return Err("hs_token: must be another one than as_token".to_owned());
        }
        let nothing = Node::Map(Vec::new());
        let namespaces = match file.get("namespaces") {
            None => &nothing,
            Some(given) if given.is_null() => &nothing,
            Some(map @ Node::Map(_)) => map,
            Some(other) => return Err(format!("namespaces: must be a map, not {}", other.kind())),
        };
        let snug = file.get("snug").unwrap_or(&nothing);
        let mut patterns_bytes = 0;
        let mut of_kind = |kind| namespace(namespaces, kind, &mut patterns_bytes);
        let (users, aliases, rooms) = (of_kind("users")?, of_kind("aliases")?, of_kind("rooms")?);
        Ok(Registration {
            url: url_of(&file)?,
            users,
            aliases,
            rooms,
            patterns_bytes,
            // Nothing is said in most files, and means that its users wait as others do; the sender itself never.
            rate_limited: flag_or(&file, "rate_limited", true)?,
            protocols: protocols(&file)?,
            ephemeral: flag(&file, "receive_ephemeral")?,
            unstable_ephemeral: flag(&file, "de.sorunome.msc2409.push_ephemeral")? || flag(&file, "push_ephemeral")?,
            keys: flag(&file, "org.matrix.msc3202")?,
            query_token: flag(&file, "snug.query_token")? || flag(snug, "query_token")?,
            id,
            as_token,
            hs_token,
            sender,
        })
    }

    /// Whether the user is the service's to act as.
    pub fn may_be(&self, user: &UserId) -> bool {
        *user == *self.sender || self.users.has(user.as_str())
    }

    /// Whether the user is the service's alone.
    pub fn is_alone(&self, user: &UserId) -> bool {
        *user == *self.sender || self.users.has_alone(user.as_str())
    }

    /// Whether it is told anything beside events.
    pub fn wants_ephemeral(&self) -> bool {
        self.ephemeral || self.unstable_ephemeral
    }
}

/// A user of this server by the first part of the id, which may be one of the historical kind.
pub fn user_id(localpart: &str, server: &ServerName) -> Option<OwnedUserId> {
    let fits = !localpart.is_empty() && !localpart.contains([':', '\0']) && !localpart.chars().any(char::is_control);
    OwnedUserId::try_from(format!("@{localpart}:{server}")).ok().filter(|id| fits && id.as_str().len() <= 255)
}

fn text_of(file: &Node, field: &str) -> Result<String, String> {
    match file.get(field) {
        Some(Node::Text { text, .. }) if text.len() > TEXT_BYTES_MAX => {
            Err(format!("{field}: longer than {TEXT_BYTES_MAX} bytes"))
        }
        Some(Node::Text { text, .. }) if !file.get(field).is_some_and(Node::is_null) => Ok(text.clone()),
        Some(other) => Err(format!("{field}: must be a text, not {}", other.kind())),
        None => Err(format!("{field}: is missing")),
    }
}

fn token_of(file: &Node, field: &str) -> Result<String, String> {
    let token = text_of(file, field)?;
    // It stands in a header.
    match token.bytes().all(|byte| byte.is_ascii_graphic()) && !token.is_empty() {
        true => Ok(token),
        false => Err(format!("{field}: must be of letters, digits and punctuation, without blanks")),
    }
}

fn url_of(file: &Node) -> Result<Option<String>, String> {
    match file.get("url") {
        None => Err("url: is missing; write url: null for a service that is told nothing".to_owned()),
        Some(none) if none.is_null() => Ok(None),
        Some(Node::Text { text, .. }) if text.is_empty() => Ok(None),
        Some(_) => {
            let text = text_of(file, "url")?;
            let url = url::Url::parse(&text).map_err(|wrong| format!("url: \"{text}\" is no URL: {wrong}"))?;
            if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
                return Err(format!("url: \"{text}\" must begin with http:// or https://"));
            }
            if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
                return Err("url: must have no user name, password or query".to_owned());
            }
            Ok(Some(text.trim_end_matches('/').to_owned()))
        }
    }
}

fn flag(file: &Node, field: &str) -> Result<bool, String> {
    flag_or(file, field, false)
}

fn flag_or(file: &Node, field: &str, default: bool) -> Result<bool, String> {
    match file.get(field) {
        None => Ok(default),
        Some(none) if none.is_null() => Ok(default),
        Some(Node::Text { text, .. }) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Node::Text { text, .. }) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(format!("{field}: must be true or false")),
    }
}

fn protocols(file: &Node) -> Result<Vec<String>, String> {
    match file.get("protocols") {
        None => Ok(Vec::new()),
        Some(none) if none.is_null() => Ok(Vec::new()),
        Some(Node::List(items)) if items.len() <= PROTOCOLS_MAX => items
            .iter()
            .map(|item| match item {
                Node::Text { text, .. } if text.len() <= 255 => Ok(text.clone()),
                _ => Err("protocols: must be a list of names".to_owned()),
            })
            .collect(),
        Some(Node::List(_)) => Err(format!("protocols: more than {PROTOCOLS_MAX}")),
        Some(other) => Err(format!("protocols: must be a list, not {}", other.kind())),
    }
}

/// Adds to `bytes` what the patterns take.
fn namespace(namespaces: &Node, kind: &str, bytes: &mut usize) -> Result<Namespace, String> {
    let items = match namespaces.get(kind) {
        None => return Ok(Namespace::default()),
        Some(none) if none.is_null() => return Ok(Namespace::default()),
        Some(Node::List(items)) => items,
        Some(other) => return Err(format!("namespaces.{kind}: must be a list, not {}", other.kind())),
    };
    if items.len() > PATTERNS_MAX {
        return Err(format!("namespaces.{kind}: more than {PATTERNS_MAX} patterns"));
    }
    let mut patterns = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let of = |wrong: String| format!("namespaces.{kind}[{at}].{wrong}");
        if !matches!(item, Node::Map(_)) {
            let kind_of = item.kind();
            return Err(format!("namespaces.{kind}[{at}]: must be a map with exclusive and regex, not {kind_of}"));
        }
        let exclusive = flag(item, "exclusive").map_err(of)?;
        let regex = compile(&text_of(item, "regex").map_err(of)?).map_err(|wrong| of(format!("regex: {wrong}")))?;
        *bytes += bytes_of(&regex);
        if *bytes > PATTERNS_BYTES_MAX {
            let most = PATTERNS_BYTES_MAX >> 20;
            return Err(of(format!(
                "regex: it and the patterns before it take more than the {most} MiB of memory for them"
            )));
        }
        patterns.push(Pattern { exclusive, regex });
    }
    Ok(Namespace(patterns))
}

/// Compiles a pattern over bytes, which is small; one that names characters beyond ASCII in a class, over characters. Without
/// the engines that take the most memory for what they save here.
fn compile(pattern: &str) -> Result<Regex, String> {
    let built = |unicode: bool| {
        let of_text = syntax::Config::new().unicode(unicode).utf8(false).dot_matches_new_line(true).nest_limit(32);
        let engines = Regex::config()
            .nfa_size_limit(Some(PATTERN_BYTES_MAX))
            .hybrid_cache_capacity(PATTERN_CACHE_BYTES)
            .utf8_empty(false)
            .onepass(false)
            .backtrack(false);
        Regex::builder().syntax(of_text).configure(engines).build(pattern).map_err(Box::new)
    };
    built(false).or_else(|_| built(true)).map_err(|wrong| match wrong.size_limit() {
        Some(_) => format!("\"{pattern}\" is too large"),
        None => {
            let reason = wrong.syntax_error().map_or_else(|| wrong.to_string(), ToString::to_string);
            // The text draws the pattern with a mark below; its last line says what is wrong.
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            format!("\"{pattern}\" is no pattern that is read here: {reason}")
        }
    })
}

/// What a pattern takes in memory: itself, what a search in the longest name made it keep, and what others may add to that.
fn bytes_of(regex: &Regex) -> usize {
    let mut kept = regex.create_cache();
    regex.search_half_with(&mut kept, &Input::new(&[b'a'; 255]).anchored(Anchored::Yes));
    regex.memory_usage() + kept.memory_usage() + PATTERN_CACHE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r##"
id: "IRC Bridge"
url: "http://127.0.0.1:1234/"
as_token: "30c05ae90a248a4188e620216fa72e349803310ec83e2a77b34fe90be6081f46"
hs_token: "312df522183efd404ec1cd22d2ffa4bbc76a8c1ccf541dd692eef281356bb74e"
sender_localpart: "_irc_bot"
namespaces:
  users:
    - exclusive: true
      regex: "@_irc_bridge_.*"
    - exclusive: false
      regex: "@anna:here\\.test"
  aliases:
    - exclusive: false
      regex: "#_irc_bridge_.*"
  rooms: []
"##;

    fn read(text: &str) -> Result<Registration, String> {
        Registration::read(text, <&ServerName>::try_from("here.test").unwrap())
    }

    fn user(id: &str) -> OwnedUserId {
        id.try_into().unwrap()
    }

    #[test]
    fn the_example_of_the_specification_is_read() {
        let read = read(FILE).unwrap();
        assert_eq!((read.id.as_str(), read.url.as_deref()), ("IRC Bridge", Some("http://127.0.0.1:1234")));
        assert_eq!(read.sender, "@_irc_bot:here.test");
        assert!(read.may_be(&user("@_irc_bridge_x:here.test")) && read.is_alone(&user("@_irc_bridge_x:here.test")));
        assert!(read.may_be(&user("@anna:here.test")) && !read.is_alone(&user("@anna:here.test")));
        assert!(read.is_alone(&read.sender));
        assert!(!read.may_be(&user("@x_irc_bridge_:here.test")), "from the beginning of the name");
        assert!(read.aliases.has("#_irc_bridge_é:here.test") && read.rooms.is_empty());
        // As Synapse has it, where nothing is said.
        assert!(read.rate_limited && !read.wants_ephemeral());
    }

    #[test]
    fn an_error_names_the_field() {
        for (from, to, says) in [
            ("id: \"IRC Bridge\"", "", "id: is missing"),
            ("id: \"IRC Bridge\"", "id: [1]", "id: must be a text, not a list"),
            ("url: \"http://127.0.0.1:1234/\"", "url: \"ftp://x\"", "url: \"ftp://x\" must begin"),
            ("url: \"http://127.0.0.1:1234/\"", "", "url: is missing"),
            ("_irc_bot", "a:b", "sender_localpart: \"a:b\""),
            ("rooms: []", "rooms: 5", "namespaces.rooms: must be a list, not a text"),
            ("#_irc_bridge_.*", "(?=x)", "namespaces.aliases[0].regex: \"(?=x)\" is no pattern"),
            ("exclusive: true", "exclusive: maybe", "namespaces.users[0].exclusive: must be true or false"),
            ("#_irc_bridge_.*", "(a{999}){999}", "is too large"),
        ] {
            let wrong = read(&FILE.replacen(from, to, 1)).unwrap_err();
            assert!(wrong.contains(says), "{wrong}");
        }
    }

    #[test]
    fn settings_under_old_and_new_names_are_read() {
        let more = "receive_ephemeral: true\nde.sorunome.msc2409.push_ephemeral: true\norg.matrix.msc3202: true\n\
                    protocols: [irc]\nrate_limited: false\nsnug.query_token: true\nio.element.msc4190: true\n";
        let all = read(&format!("{FILE}{more}")).unwrap();
        assert!(all.ephemeral && all.unstable_ephemeral && all.keys && all.query_token);
        assert_eq!(all.protocols, ["irc"]);
        assert!(!all.rate_limited && read(&format!("{FILE}rate_limited: null\n")).unwrap().rate_limited);
        assert!(read(&FILE.replace("url: \"http://127.0.0.1:1234/\"", "url: null")).unwrap().url.is_none());
        assert!(read(&format!("{FILE}snug:\n  query_token: yes\n")).unwrap_err().contains("true or false"));
    }

    /// Strangers choose what is matched.
    #[test]
    fn a_hard_pattern_costs_time_by_length_alone() {
        let hard = read(&FILE.replace("@_irc_bridge_.*", "@(a*)*b")).unwrap();
        assert!(!hard.users.has(&format!("@{}", "a".repeat(100_000))));
    }

    /// Thirty files of 96 short patterns took 250 MB.
    #[test]
    fn patterns_take_a_bounded_memory() {
        let of = |patterns: &[String]| {
            let items = patterns.iter().map(|regex| format!("  - {{exclusive: true, regex: '{regex}'}}\n"));
            read(&format!(
                "{}{}",
                FILE.split("namespaces:").next().unwrap(),
                format_args!("namespaces:\n  users:\n{}", items.collect::<String>())
            ))
        };
        let plain: Vec<_> = (0..4).map(|n| format!("@irc{n}_.*:here\\.test")).collect();
        let taken = of(&plain).unwrap().patterns_bytes;
        assert!(32 * taken < PATTERNS_BYTES_MAX, "{taken} bytes");
        let large: Vec<_> = (0..32).map(|n| format!("@(a{{1,10}}b?){{1,68}}z{n}")).collect();
        let wrong = of(&large).unwrap_err();
        assert!(wrong.contains("regex: it and the patterns before it take more than the 2 MiB"), "{wrong}");
        // A table of each state and byte is not made.
        let one = of(&[format!("@({}){{9}}", ('!'..='z').filter(|c| c.is_ascii_alphanumeric()).collect::<String>())])
            .unwrap();
        assert!(one.patterns_bytes < 512 * 1024, "{} bytes", one.patterns_bytes);
    }
}
