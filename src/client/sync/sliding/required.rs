//! `required_state`: which state of a room an app asks for, and what is new in it since it asked last (MSC4186).
//!
//! Two forms: pairs of type and state key with `*`, `$ME` and `$LAZY`, or an object with `include`, `exclude` and
//! `lazy_members`. The text is kept as it came and read in place.

use std::borrow::Cow;
use std::sync::Arc;

use super::bad;
use crate::http::ErrorResponse;
use crate::matrix::json::{read, write_string};
use crate::room::Reach;

const MEMBER: &str = "m.room.member";
/// Elements of all texts of a request: each state event of a room is held against them.
pub const ELEMENTS_MAX: usize = 256;

/// The required state of one list or subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Required {
    /// Canonical JSON.
    text: Vec<u8>,
    elements: usize,
    /// What `$ME` stands for.
    me: Arc<str>,
    /// Members are told when they are in the timeline.
    lazy: bool,
}

/// A type and a state key; none for any.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Element<'t> {
    kind: Option<Cow<'t, str>>,
    key: Option<Cow<'t, str>>,
}

impl Element<'_> {
    /// Whether an event matches; `None` when its key decides and is not given.
    fn fits(&self, kind: &str, key: Option<&str>) -> Option<bool> {
        if self.kind.as_ref().is_some_and(|own| own != kind) {
            return Some(false);
        }
        match (&self.key, key) {
            (None, _) => Some(true),
            (Some(own), Some(key)) => Some(own == key),
            (Some(_), None) => None,
        }
    }

    /// Whether it stands for all members, among others or not.
    fn is_all_members(&self) -> bool {
        self.key.is_none() && self.kind.as_ref().is_none_or(|kind| kind == MEMBER)
    }
}

impl Required {
    /// Reads the canonical text of a `required_state`.
    pub fn parse(text: &[u8], me: &Arc<str>) -> Result<Required, ErrorResponse> {
        let wrong = || bad("required_state", "pairs of texts, or an object with include, exclude and lazy_members");
        let elements = match text.first() {
            Some(b'[') => {
                let mut count = 0;
                for pair in read::items(text) {
                    let mut texts = read::items(pair).map(read::text);
                    let (Some(Some(_)), Some(Some(_)), None) = (texts.next(), texts.next(), texts.next()) else {
                        return Err(wrong());
                    };
                    count += 1;
                }
                count
            }
            Some(b'{') => {
                let mut count = 0;
                for name in ["include", "exclude"] {
                    let list = read::get(text, name).unwrap_or(b"[]");
                    if !list.starts_with(b"[") {
                        return Err(wrong());
                    }
                    for element in read::items(list) {
                        let is_text = |name| read::get(element, name).is_none_or(|value| read::text(value).is_some());
                        if !element.starts_with(b"{") || !is_text("type") || !is_text("state_key") {
                            return Err(wrong());
                        }
                        count += 1;
                    }
                }
                if !matches!(read::get(text, "lazy_members"), None | Some(b"true" | b"false")) {
                    return Err(wrong());
                }
                count
            }
            _ => return Err(wrong()),
        };
        let lazy = match text.first() {
            Some(b'{') => read::get(text, "lazy_members") == Some(b"true"),
            _ => pairs(text).any(|(kind, key)| kind == MEMBER && key == "$LAZY"),
        };
        Ok(Required { text: text.to_vec(), elements, me: me.clone(), lazy })
    }

    /// Whether it was read from this text.
    pub fn was(&self, text: &[u8]) -> bool {
        self.text == text
    }

    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// How many elements it has.
    pub fn elements(&self) -> usize {
        self.elements
    }

    fn include(&self) -> Box<dyn Iterator<Item = Element<'_>> + '_> {
        if self.text.starts_with(b"{") {
            return Box::new(self.objects("include"));
        }
        Box::new(pairs(&self.text).filter(|(_, key)| key != "$LAZY").map(|(kind, key)| Element {
            kind: Some(kind).filter(|kind| kind != "*"),
            key: Some(self.named(key)).filter(|key| key != "*"),
        }))
    }

    fn exclude(&self) -> Box<dyn Iterator<Item = Element<'_>> + '_> {
        if self.text.starts_with(b"{") { Box::new(self.objects("exclude")) } else { Box::new(std::iter::empty()) }
    }

    fn objects<'t>(&'t self, name: &str) -> impl Iterator<Item = Element<'t>> + 't {
        read::items(read::get(&self.text, name).unwrap_or(b"[]")).map(|element| Element {
            kind: read::get_text(element, "type"),
            key: read::get_text(element, "state_key").map(|key| self.named(key)),
        })
    }

    fn named<'t>(&'t self, key: Cow<'t, str>) -> Cow<'t, str> {
        if key == "$ME" { Cow::Borrowed(&self.me) } else { key }
    }

    /// Elements that count: with lazy members none stands for all of them.
    fn wants(&self, kind: &str, key: Option<&str>) -> Option<bool> {
        let mut included = Some(false);
        for element in self.include() {
            if self.lazy && kind == MEMBER && element.is_all_members() {
                continue;
            }
            match element.fits(kind, key) {
                Some(true) => included = Some(true),
                None if included == Some(false) => included = None,
                _ => {}
            }
            if included == Some(true) {
                break;
            }
        }
        if included == Some(false) {
            return included;
        }
        for element in self.exclude() {
            match element.fits(kind, key) {
                Some(true) => return Some(false),
                None => included = None,
                Some(false) => {}
            }
        }
        included
    }
}

/// The pairs of the older form.
fn pairs(text: &[u8]) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    read::items(text).filter_map(|pair| {
        let mut texts = read::items(pair).filter_map(read::text);
        Some((texts.next()?, texts.next()?))
    })
}

/// The required state of all rules that a room matches: what any of them asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Combined<'a> {
    /// Each once, in the order of their texts.
    parts: Vec<Cow<'a, Required>>,
}

impl<'a> Combined<'a> {
    pub fn new(parts: impl Iterator<Item = &'a Required>) -> Combined<'a> {
        let mut parts: Vec<_> = parts.collect();
        parts.sort_unstable_by(|one, other| one.text.cmp(&other.text));
        parts.dedup();
        Combined { parts: parts.into_iter().map(Cow::Borrowed).collect() }
    }

    /// As one text, by which a later request is compared with this one.
    pub fn text(&self) -> Vec<u8> {
        let mut text = b"[".to_vec();
        for part in &self.parts {
            text.extend_from_slice(if text.len() > 1 { b"," } else { b"" });
            text.extend_from_slice(&part.text);
        }
        text.push(b']');
        text
    }

    /// Reads what [`Combined::text`] wrote. What cannot be read asks for nothing.
    pub fn read(text: &[u8], me: &str) -> Combined<'static> {
        let me = Arc::from(me);
        let parts = read::items(text).filter_map(|part| Required::parse(part, &me).ok());
        Combined { parts: parts.map(Cow::Owned).collect() }
    }

    /// Whether members of the timeline are told: unless all are told anyway.
    pub fn is_lazy(&self) -> bool {
        let tells_all = |part: &Required| !part.lazy && part.wants(MEMBER, None) == Some(true);
        self.parts.iter().any(|part| part.lazy) && !self.parts.iter().any(|part| tells_all(part))
    }

    /// Whether a state event is asked for; `None` when its key decides and is not given.
    pub fn wants(&self, kind: &str, key: Option<&str>) -> Option<bool> {
        let mut wanted = Some(false);
        for part in &self.parts {
            match part.wants(kind, key) {
                Some(true) => return Some(true),
                None => wanted = None,
                Some(false) => {}
            }
        }
        wanted
    }

    /// What of a room's state may be asked for.
    pub fn reach(&self) -> Reach {
        let of = |part: &Cow<'_, Required>| {
            let of = |element: Element<'_>| match (&element.kind, &element.key) {
                (Some(_), Some(_)) => Reach::Named,
                // Of the members, one.
                (None, Some(_)) => Reach::NoMembers,
                _ if element.is_all_members() && !part.lazy => Reach::All,
                _ if element.is_all_members() && element.kind.is_some() => Reach::Named,
                _ => Reach::NoMembers,
            };
            part.include().map(of).max().unwrap_or(Reach::Named)
        };
        let reach = self.parts.iter().map(of).max().unwrap_or(Reach::Named);
        // Members that are all left out need not be read.
        if self.wants(MEMBER, None) == Some(false) { reach.min(Reach::NoMembers) } else { reach }
    }

    /// What is asked for by type and key, each once; members by their key alone too.
    pub fn named(&self) -> Vec<(String, String)> {
        let mut named = Vec::new();
        for element in self.parts.iter().flat_map(|part| part.include()) {
            let kind = element.kind.unwrap_or(Cow::Borrowed(MEMBER));
            if let Some(key) = element.key
                && self.wants(&kind, Some(&key)) == Some(true)
            {
                named.push((kind.into_owned(), key.into_owned()));
            }
        }
        named.sort_unstable();
        named.dedup();
        named
    }

    /// What this asks for and `before` did not: may be more than that, and never less.
    pub fn added(&self, before: &Combined<'_>) -> Combined<'static> {
        let mut added = Vec::new();
        for part in &self.parts {
            if before.parts.contains(part) {
                continue;
            }
            let is_known = |element: &Element<'_>| {
                before.parts.iter().any(|old| {
                    old.exclude().next().is_none()
                        && old.include().any(|known| covers(&known, element))
                        && (part.lazy || !old.lazy || !element.is_all_members())
                })
            };
            let new: Vec<_> = part.include().filter(|element| !is_known(element)).collect();
            if !new.is_empty() {
                added.push(Cow::Owned(part.with_only(&new)));
            }
        }
        Combined { parts: added }
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
}

/// Whether all that one element stands for is among what another does.
fn covers(wide: &Element<'_>, narrow: &Element<'_>) -> bool {
    let covers = |wide: &Option<Cow<'_, str>>, narrow: &Option<Cow<'_, str>>| wide.is_none() || wide == narrow;
    covers(&wide.kind, &narrow.kind) && covers(&wide.key, &narrow.key)
}

impl Required {
    /// The same with only some of its elements.
    fn with_only(&self, include: &[Element<'_>]) -> Required {
        let mut text = b"{\"exclude\":".to_vec();
        let exclude = if self.text.starts_with(b"{") { read::get(&self.text, "exclude") } else { None };
        text.extend_from_slice(exclude.unwrap_or(b"[]"));
        text.extend_from_slice(b",\"include\":[");
        for (place, element) in include.iter().enumerate() {
            text.extend_from_slice(if place > 0 { b",{" } else { b"{" });
            if let Some(key) = &element.key {
                text.extend_from_slice(b"\"state_key\":");
                write_string(&mut text, key);
            }
            if let Some(kind) = &element.kind {
                text.extend_from_slice(if element.key.is_some() { b",\"type\":" } else { b"\"type\":" });
                write_string(&mut text, kind);
            }
            text.push(b'}');
        }
        text.extend_from_slice(format!("],\"lazy_members\":{}}}", self.lazy).as_bytes());
        Required { text, elements: include.len(), me: self.me.clone(), lazy: self.lazy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ME: &str = "@me:here";

    fn required(text: &Value) -> Required {
        let text = crate::matrix::json::canonical_value(text, crate::matrix::json::Mode::Lenient).unwrap();
        Required::parse(&text, &Arc::from(ME)).unwrap()
    }

    #[test]
    fn both_forms_say_what_is_wanted() {
        let old =
            required(&json!([["m.room.name", ""], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"], ["m.x", "*"]]));
        let new = required(&json!({ "include": [{ "type": "m.room.name", "state_key": "" }, { "type": "m.x" },
            { "type": "m.room.member", "state_key": "$ME" }], "lazy_members": true }));
        for part in [&old, &new] {
            let all = Combined::new([part].into_iter());
            assert!(all.is_lazy());
            assert_eq!(all.reach(), Reach::NoMembers);
            let named = [("m.room.member", ME), ("m.room.name", "")];
            assert_eq!(all.named(), named.map(|(kind, key)| (kind.to_owned(), key.to_owned())));
            for (kind, key, wanted) in [
                ("m.room.name", None, None),
                ("m.room.name", Some(""), Some(true)),
                ("m.room.name", Some("x"), Some(false)),
                ("m.x", None, Some(true)),
                ("m.y", None, Some(false)),
                ("m.room.member", None, None),
                ("m.room.member", Some(ME), Some(true)),
                ("m.room.member", Some("@you:here"), Some(false)),
            ] {
                assert_eq!(all.wants(kind, key), wanted, "{kind} {key:?}");
            }
        }
    }

    #[test]
    fn everything_with_lazy_members_is_all_but_members() {
        let all = required(&json!([["*", "*"]]));
        let lazy = required(&json!([["*", "*"], ["m.room.member", "$LAZY"]]));
        let but = required(&json!({ "include": [{}], "exclude": [{ "type": "m.room.create", "state_key": "" }] }));
        let one = |part| Combined::new([part].into_iter());
        assert_eq!(
            (one(&all).reach(), one(&lazy).reach(), one(&but).reach()),
            (Reach::All, Reach::NoMembers, Reach::All)
        );
        assert_eq!(one(&lazy).wants("m.room.member", None), Some(false));
        assert_eq!(one(&lazy).wants("m.y", None), Some(true));
        assert_eq!(one(&all).wants("m.room.member", None), Some(true));
        assert_eq!(one(&but).wants("m.room.create", Some("")), Some(false));
        assert_eq!(one(&but).wants("m.room.create", Some("x")), Some(true));
        let both = Combined::new([&all, &lazy].into_iter());
        assert!(!both.is_lazy() && one(&lazy).is_lazy());
        let read = Combined::read(&both.text(), ME);
        assert_eq!(read, both);
    }

    /// No element makes a look over all members of a room that finds none, or one.
    #[test]
    fn members_are_read_only_where_many_may_be_wanted() {
        let one = |text: Value| Combined { parts: vec![Cow::Owned(required(&text))] };
        let by_key = one(json!([["*", "@you:here"], ["*", ""]]));
        assert_eq!(by_key.reach(), Reach::NoMembers);
        assert!(by_key.named().contains(&("m.room.member".to_owned(), "@you:here".to_owned())));
        let none = one(json!({ "include": [{}], "exclude": [{ "type": "m.room.member" }] }));
        assert_eq!(none.reach(), Reach::NoMembers);
        let but_one = one(json!({ "include": [{}], "exclude": [{ "state_key": "@you:here" }] }));
        assert_eq!(but_one.reach(), Reach::All);
    }

    #[test]
    fn what_is_added_is_told_and_what_was_asked_before_is_not() {
        let one = |text: Value| Combined { parts: vec![Cow::Owned(required(&text))] };
        let list = one(json!([["m.room.name", ""], ["m.room.member", "$LAZY"]]));
        let wide = one(json!([["m.room.name", ""], ["m.room.topic", ""], ["m.room.member", "$LAZY"]]));
        assert!(list.added(&wide).is_empty() && list.added(&list).is_empty());
        let added = wide.added(&list);
        assert_eq!(added.named(), [("m.room.topic".to_owned(), String::new())]);
        let all = one(json!([["*", "*"]]));
        assert!(wide.added(&all).is_empty());
        assert_eq!(all.added(&wide).reach(), Reach::All);
        let lazy = one(json!([["*", "*"], ["m.room.member", "$LAZY"]]));
        assert!(lazy.added(&all).is_empty());
        assert_eq!(all.added(&lazy).reach(), Reach::All);
        let but = one(json!({ "include": [{}], "exclude": [{ "type": "m.x" }] }));
        assert_eq!(all.added(&but).wants("m.x", None), Some(true));
    }

    #[test]
    fn any_bytes_are_required_state_or_none() {
        let seeds: [&[u8]; 2] = [
            br#"[["m.room.member","$LAZY"],["*","*"]]"#,
            br#"{"exclude":[{"type":"a"}],"include":[{},{"state_key":"$ME"}],"lazy_members":true}"#,
        ];
        crate::base::any_bytes::any_bytes(&seeds, |bytes| {
            if let Ok(required) = Required::parse(bytes, &Arc::from(ME)) {
                let one = Combined::new([&required].into_iter());
                let _ = (one.named(), one.reach(), one.is_lazy(), one.wants("m.room.name", Some("")));
                let _ = one.added(&Combined::read(&one.text(), ME)).text();
            }
        });
    }
}
