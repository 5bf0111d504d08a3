//! The part of YAML that registrations are written in, as a tree of texts, lists and maps.
//!
//! Scalars stay texts, whatever tag they have: an `as_token` of digits alone is a text all the same. Anchors are refused: no
//! bridge writes them, and they make a short file a long value. Bounded by [`BYTES_MAX`], [`DEPTH_MAX`] and [`NODES_MAX`].

use saphyr_parser::{Event, Parser, ScalarStyle};

/// The longest file that is read. Real ones are a kilobyte.
pub const BYTES_MAX: usize = 64 * 1024;
const DEPTH_MAX: usize = 8;
const NODES_MAX: usize = 2_000;

/// A value in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// `plain`: it stood there without quotation marks, so that `null`, `true` and `~` mean something.
    Text {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// Nothing was given: `null`, `~`, or an empty value.
    pub fn is_null(&self) -> bool {
        matches!(self, Node::Text { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The value of a map's key. The last one counts, as with most readers.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Node::Map(members) => members.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Which kind of value it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            null if null.is_null() => "nothing",
            Node::Text { .. } => "a text",
            Node::List(_) => "a list",
            Node::Map(_) => "a map",
        }
    }
}

/// A list or map under way, and the key whose value comes next.
enum Open {
    List(Vec<Node>),
    Map(Vec<(String, Node)>, Option<String>),
}

/// Reads the first document of a text. An error names the line.
pub fn read(text: &str) -> Result<Node, String> {
    if text.len() > BYTES_MAX {
        return Err(format!("the file is longer than {} KiB", BYTES_MAX / 1024));
    }
    let (mut open, mut nodes): (Vec<Open>, usize) = (Vec::new(), 0);
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(not_yaml)?;
        let line = span.start.line();
        nodes += 1;
        if nodes > NODES_MAX {
            return Err(format!("line {line}: more than {NODES_MAX} values"));
        }
        let done = match event {
            Event::Alias(_) => return Err(format!("line {line}: anchors and aliases are not read")),
            Event::Scalar(_, _, anchor, _) | Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _)
                if anchor != 0 =>
            {
                return Err(format!("line {line}: anchors and aliases are not read"));
            }
            Event::Scalar(text, style, _, _) => {
                Some(Node::Text { text: text.into_owned(), plain: style == ScalarStyle::Plain })
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == DEPTH_MAX => {
                return Err(format!("line {line}: more than {DEPTH_MAX} levels"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Vec::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(|open| match open {
                Open::List(items) => Node::List(items),
                Open::Map(members, _) => Node::Map(members),
            }),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                None
            }
        };
        let Some(done) = done else { continue };
        match open.last_mut() {
            None => return Ok(done),
            Some(Open::List(items)) => items.push(done),
            Some(Open::Map(members, key)) => match (key.take(), done) {
                (Some(key), value) => members.push((key, value)),
                (None, Node::Text { text, .. }) => *key = Some(text),
                (None, _) => return Err(format!("line {line}: a key must be a text")),
            },
        }
    }
    Err("the file is empty".to_owned())
}

/// What the parser says, cut where it may quote the file at length.
fn not_yaml(wrong: saphyr_parser::ScanError) -> String {
    format!("not YAML: {}", wrong.to_string().chars().take(200).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Node {
        Node::Text { text: text.to_owned(), plain: false }
    }

    #[test]
    fn what_bridges_write_is_read() {
        let file = "# a comment\n---\nid: irc # the bridge\nas_token: 0123456789\nhs_token: \"a\\tb\"\nurl: null\n\
                    namespaces:\n  users:\n  - exclusive: true\n    regex: '@irc_.*:here\\.test'\n  aliases: []\n  rooms:\n\
                    protocols: [\"irc\", two]\nempty: {}\n";
        let node = read(file).unwrap();
        assert_eq!(node.get("as_token"), Some(&Node::Text { text: "0123456789".to_owned(), plain: true }));
        assert_eq!(node.get("hs_token"), Some(&text("a\tb")));
        assert!(node.get("url").unwrap().is_null());
        let namespaces = node.get("namespaces").unwrap();
        let Some(Node::List(users)) = namespaces.get("users") else { panic!("{namespaces:?}") };
        assert_eq!(users[0].get("regex").unwrap(), &text("@irc_.*:here\\.test"));
        assert_eq!(namespaces.get("aliases"), Some(&Node::List(Vec::new())));
        assert!(namespaces.get("rooms").unwrap().is_null());
    }

    #[test]
    fn what_would_grow_is_refused() {
        assert!(read("a: &x 1\nb: *x").unwrap_err().contains("anchors"));
        assert!(read(&"- ".repeat(9)).unwrap_err().contains("levels"));
        assert!(read(&format!("[{}]", "1,".repeat(NODES_MAX))).unwrap_err().contains("values"));
        assert!(read(&" ".repeat(BYTES_MAX + 1)).unwrap_err().contains("longer"));
        assert!(read("").unwrap_err().contains("empty"));
        assert!(read("a: [1").unwrap_err().contains("not YAML"));
    }

    #[test]
    fn any_bytes_are_a_value_or_an_error() {
        crate::base::any_bytes::any_bytes(&[b"a: 'b'\nc:\n - {x: [1, 2]}\n - |\n  y\n"], |bytes| {
            let _ = std::str::from_utf8(bytes).map(read);
        });
    }
}
