//! The form of the table of settings. The sample file is written from the table, and config files are read against it.

use std::net::SocketAddr;

use ruma::OwnedServerName;

use super::given::Given;
use super::{Config, settings};
use crate::http::page::Input;

/// One setting.
pub struct Setting {
    /// The name with its section: `federation.listen`.
    pub name: &'static str,
    /// The default, as written in the config file.
    pub default: Option<&'static str>,
    /// The value that the sample shows when there is no default.
    pub example: &'static str,
    /// The description in the sample file.
    pub doc: &'static str,
    /// Whether the short file of the first start shows it.
    pub first: bool,
    /// Whether a change is in force without a restart.
    pub live: bool,
    /// How a page asks for it, where an administrator may change it there: nothing that leads to files or to hosts of the home
    /// network, that a secret is, or that could lock them out. Whoever administers the server need not be who owns the machine.
    pub input: Option<Input>,
    /// By this setting something goes that does not come back.
    pub removes: bool,
    pub set: fn(&mut Config, &Given<'_>) -> Result<(), String>,
}

/// A setting without a default.
pub const fn optional(
    name: &'static str,
    example: &'static str,
    doc: &'static str,
    set: fn(&mut Config, &Given<'_>) -> Result<(), String>,
) -> Setting {
    Setting { name, default: None, example, doc, first: false, live: false, input: None, removes: false, set }
}

/// A setting with a default.
pub const fn setting(
    name: &'static str,
    default: &'static str,
    doc: &'static str,
    set: fn(&mut Config, &Given<'_>) -> Result<(), String>,
) -> Setting {
    Setting {
        name,
        default: Some(default),
        example: default,
        doc,
        first: false,
        live: false,
        input: None,
        removes: false,
        set,
    }
}

impl Setting {
    /// A change of the setting is in force as soon as the settings are read again.
    pub const fn live(mut self) -> Setting {
        self.live = true;
        self
    }

    /// Administrators may change it on the page.
    pub const fn on_page(mut self, input: Input) -> Setting {
        self.input = Some(input);
        self
    }

    /// The same, and are told that what goes by it does not come back.
    pub const fn on_page_with_care(mut self, input: Input) -> Setting {
        self.removes = true;
        self.on_page(input)
    }

    /// Whether its value is for nobody's eyes: a page shows only that it is set. What names a file is no secret itself.
    pub fn is_secret(&self) -> bool {
        const WORDS: [&str; 8] =
            ["secret", "tokens", ".token", "passphrase", "password", "login", "livekit_key", "eab_key"];
        WORDS.iter().any(|word| self.name.contains(word)) && !self.name.ends_with("_file")
    }

    /// Shows the setting in the file of the first start too.
    pub const fn shown_first(mut self) -> Setting {
        self.first = true;
        self
    }
}

/// The server's own name. In lower case only: names are compared letter by letter, and other servers write it as in the
/// DNS.
pub fn own_name(text: &str) -> Result<OwnedServerName, String> {
    match text.contains(|c: char| c.is_ascii_uppercase()) {
        true => Err(format!("{text:?} must be written in small letters: {:?}", text.to_ascii_lowercase())),
        false => server_name(text),
    }
}

pub fn server_name(text: &str) -> Result<OwnedServerName, String> {
    text.try_into().map_err(|_| format!("{text:?} is not a server name such as example.org or example.org:8448"))
}

pub fn addresses(given: &Given<'_>) -> Result<Vec<SocketAddr>, String> {
    given.texts()?.into_iter().map(address).collect()
}

pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address with a port, such as \"127.0.0.1:8008\", \"0.0.0.0:8008\" or \"[::]:8008\"")
    })
}

pub fn url(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(char::is_whitespace) => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(format!("{text:?} is not a URL such as \"https://matrix.example.org\"")),
    }
}

/// Registration tokens. The allowed characters are those of the specification.
pub fn tokens<'a>(found: impl Iterator<Item = &'a str>) -> Result<Vec<String>, String> {
    let fits = |token: &str| {
        (1..=64).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b))
    };
    let wrong = "a token has 1 to 64 letters, digits, and any of . _ ~ -";
    found.map(|token| if fits(token) { Ok(token.to_owned()) } else { Err(wrong.to_owned()) }).collect()
}

/// Writes the settings that `shown` selects, with their descriptions. `chosen` gives the value of a setting that is
/// set.
pub fn write_settings(out: &mut String, shown: impl Fn(&Setting) -> bool, chosen: impl Fn(&Setting) -> Option<String>) {
    let mut section = "";
    for setting in settings().filter(|setting| shown(setting)) {
        let (of, name) = setting.name.rsplit_once('.').unwrap_or(("", setting.name));
        if of != section {
            section = of;
            out.push_str(&format!("\n[{section}]\n"));
        }
        out.push('\n');
        for line in wrapped(setting.doc, 100) {
            out.push_str(&format!("# {line}\n"));
        }
        match chosen(setting) {
            Some(value) => out.push_str(&format!("{name} = {value}\n")),
            None => out.push_str(&format!("# {name} = {}\n", setting.example)),
        }
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
