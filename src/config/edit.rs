//! Changing one setting in the text of a config file; all else of it stays as it is, comments too.
//!
//! Where a value stands is what the parser says of it. What comes out is believed only after it was read as any config file is,
//! and says what the old one said but for that setting: whoever calls this checks that.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::http::page::Input;

/// What somebody typed, as it stands in a config file. An error is a sentence.
pub fn value(input: Input, typed: &str) -> Result<String, String> {
    let typed = typed.trim();
    match input {
        Input::Flag if matches!(typed, "true" | "false") => Ok(typed.to_owned()),
        Input::Flag => Err("must be true or false".to_owned()),
        Input::Choice(known) if known.contains(&typed) => Ok(quoted(typed)),
        Input::Choice(known) => Err(format!("must be one of {}", known.join(", "))),
        Input::Number if (1..=18).contains(&typed.len()) && typed.bytes().all(|byte| byte.is_ascii_digit()) => {
            // A number of TOML does not begin with a zero.
            let number: u64 = typed.parse().map_err(|_| "must be a number".to_owned())?;
            Ok(number.to_string())
        }
        Input::Number => Err("must be a number".to_owned()),
        Input::Line => Ok(quoted(typed)),
        Input::List => {
            let texts: Vec<_> = typed.lines().map(str::trim).filter(|line| !line.is_empty()).map(quoted).collect();
            Ok(format!("[{}]", texts.join(", ")))
        }
        Input::WordOrList(known) if known.contains(&typed) => Ok(quoted(typed)),
        Input::WordOrList(_) => value(Input::List, typed),
        Input::Rate => {
            let mut numbers = typed.split_whitespace().map(rate_number);
            match (numbers.next(), numbers.next(), numbers.next()) {
                (Some(Some(per_second)), Some(Some(burst)), None) => {
                    Ok(format!("{{ per_second = {per_second}, burst_count = {burst} }}"))
                }
                _ => {
                    Err("must be two numbers: how often a second, such as 0.2, and how many at once, such as 20"
                        .to_owned())
                }
            }
        }
    }
}

/// A number of a rate as TOML has it: `0.5`, never `.5` or `1e3`.
fn rate_number(typed: &str) -> Option<String> {
    let is_plain = (1..=18).contains(&typed.len()) && typed.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = is_plain.then(|| typed.parse().ok())??;
    Some(number.to_string())
}

/// A value of a config file as somebody would type it.
pub fn typed(written: &str) -> String {
    let Ok(value) = DeValue::parse(written) else { return written.to_owned() };
    let one = |value: &DeValue<'_>| match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        _ => String::new(),
    };
    match value.get_ref() {
        DeValue::Table(rate) => {
            let number = |name: &str| match rate.get(name)?.get_ref() {
                DeValue::Integer(number) => Some(number.as_str().to_owned()),
                DeValue::Float(number) => Some(number.as_str().to_owned()),
                _ => None,
            };
            [number("per_second"), number("burst_count")].into_iter().flatten().collect::<Vec<_>>().join(" ")
        }
        DeValue::Array(list) => list.iter().map(|value| one(value.get_ref())).collect::<Vec<_>>().join("\n"),
        value => one(value),
    }
}

/// A text in quotes, as TOML has it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The text with a setting set to a value, which is TOML; without one the setting is taken out. An error is a sentence.
pub fn with(text: &str, name: &str, value: Option<&str>) -> Result<String, String> {
    let table = DeTable::parse(text).map_err(|_| "the file cannot be read".to_owned())?;
    let (section, key) = name.rsplit_once('.').unwrap_or(("", name));
    match (place(table.get_ref(), name), value) {
        (Some((_, old)), Some(value)) => Ok(spliced(text, old, value)),
        (Some((key, old)), None) => {
            let lines = whole_lines(text, key.start..old.end).ok_or_else(elsewhere)?;
            Ok(spliced(text, lines, ""))
        }
        (None, None) => Ok(text.to_owned()),
        (None, Some(value)) => {
            let line = format!("{key} = {value}\n");
            match region(text, section) {
                Some(region) => {
                    let at = place_in(text, region, key);
                    let begins_line = at == 0 || text[..at].ends_with('\n');
                    Ok(spliced(text, at..at, &if begins_line { line } else { format!("\n{line}") }))
                }
                None if place(table.get_ref(), section).is_some() => Err(elsewhere()),
                None => {
                    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
                    Ok(format!("{text}{end}\n[{section}]\n{line}"))
                }
            }
        }
    }
}

fn elsewhere() -> String {
    "the file says it in another way than in a line of its own".to_owned()
}

fn spliced(text: &str, range: Range<usize>, new: &str) -> String {
    format!("{}{new}{}", &text[..range.start], &text[range.end..])
}

/// Where the key and the value of a setting are in the text.
fn place(table: &DeTable<'_>, name: &str) -> Option<(Range<usize>, Range<usize>)> {
    let (first, rest) = match name.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (name, None),
    };
    let (key, value) = table.iter().find(|(key, _)| key.get_ref().as_ref() == first)?;
    match rest {
        Some(rest) => place(value.get_ref().as_table()?, rest),
        None => Some((key.span(), value.span())),
    }
}

/// The lines that have nothing but this in them, and a comment behind it.
fn whole_lines(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let start = text[..range.start].rfind('\n').map_or(0, |at| at + 1);
    let end = text[range.end..].find('\n').map_or(text.len(), |at| range.end + at + 1);
    let behind = text[range.end..end].trim();
    let is_alone = text[start..range.start].trim().is_empty() && (behind.is_empty() || behind.starts_with('#'));
    is_alone.then_some(start..end)
}

/// The lines of a section, without its head; those of none are before the first head.
fn region(text: &str, section: &str) -> Option<Range<usize>> {
    let (mut at, mut begin) = (0, section.is_empty().then_some(0));
    for line in text.split_inclusive('\n') {
        let bare = line.trim_start();
        if bare.starts_with('[') {
            if let Some(begin) = begin {
                return Some(begin..at);
            }
            let named = bare.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(name, _)| name.trim());
            begin = (named == Some(section)).then_some(at + line.len());
        }
        at += line.len();
    }
    begin.map(|begin| begin..text.len())
}

/// Where in a section's lines a setting goes: behind the comment that shows it, or else behind the last one.
fn place_in(text: &str, region: Range<usize>, key: &str) -> usize {
    let (mut at, mut last) = (region.start, region.start);
    for line in text[region].split_inclusive('\n') {
        at += line.len();
        let shown = line.trim_start().strip_prefix('#').and_then(|line| line.trim_start().strip_prefix(key));
        if shown.is_some_and(|rest| rest.trim_start().starts_with('=')) {
            return at;
        }
        if !line.trim().is_empty() && !line.trim_start().starts_with('#') {
            last = at;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# My server.\nserver_name = \"a.example\" # for ever\n\n# How long.\n# log = \"info\"\n\n\
        [rooms] # big ones\n# all of them\nadmission = \"ask\"\nhistory_days = 7 # a week\n\n[backup]\ntarget = \"/mnt\"";

    #[track_caller]
    fn check(name: &str, value: Option<&str>, before: &str, after: &str) {
        let new = with(FILE, name, value).unwrap();
        assert_eq!(new, FILE.replacen(before, after, 1), "{new}");
        DeTable::parse(&new).unwrap();
    }

    #[test]
    fn only_the_value_changes() {
        check("rooms.admission", Some("\"allow\""), "\"ask\"", "\"allow\"");
        check("rooms.history_days", Some("365"), "= 7 #", "= 365 #");
        check("server_name", Some("\"b\""), "\"a.example\"", "\"b\"");
    }

    #[test]
    fn what_is_taken_out_leaves_the_comments_around_it() {
        check("rooms.history_days", None, "history_days = 7 # a week\n", "");
        check("backup.target", None, "target = \"/mnt\"", "");
        check("rooms.forget_left", None, "", "");
    }

    #[test]
    fn a_new_one_goes_behind_its_example_or_behind_the_last_of_its_section() {
        check("log", Some("\"warn\""), "# log = \"info\"\n", "# log = \"info\"\nlog = \"warn\"\n");
        check("guests", Some("true"), "for ever\n", "for ever\nguests = true\n");
        check("rooms.forget_left", Some("true"), "a week\n", "a week\nforget_left = true\n");
        check("backup.keep_days", Some("3"), "\"/mnt\"", "\"/mnt\"\nkeep_days = 3\n");
        assert_eq!(
            with(FILE, "media.free_bytes_min", Some("\"1 GiB\"")).unwrap(),
            format!("{FILE}\n\n[media]\nfree_bytes_min = \"1 GiB\"\n")
        );
        assert_eq!(with("", "log", Some("\"warn\"")).unwrap(), "log = \"warn\"\n");
    }

    #[test]
    fn other_ways_to_write_it_are_changed_or_left_alone() {
        let inline = "rooms = { admission = \"ask\", forget_left = true }\n";
        assert_eq!(with(inline, "rooms.admission", Some("\"allow\"")).unwrap(), inline.replace("ask", "allow"));
        for (text, name, value) in [
            (inline, "rooms.admission", None),
            (inline, "rooms.purge_left", Some("true")),
            ("rooms.forget_left = true\n", "rooms.purge_left", Some("true")),
            ("not = [", "log", Some("\"warn\"")),
        ] {
            with(text, name, value).unwrap_err();
        }
        let list = "[previews]\ndeny = [\n  \"a\", # one\n  \"b\",\n]\n# end\n";
        assert_eq!(with(list, "previews.deny", Some("[\"c\"]")).unwrap(), "[previews]\ndeny = [\"c\"]\n# end\n");
        assert_eq!(with(list, "previews.deny", None).unwrap(), "[previews]\n# end\n");
    }

    #[test]
    fn what_is_typed_is_a_value_and_never_more() {
        let good = [
            (Input::Flag, " true ", "true"),
            (Input::Choice(&["own", "all"]), "all", "\"all\""),
            (Input::Number, "007", "7"),
            (Input::Line, "a \"b\" \\ \n[x]", "\"a \\\"b\\\" \\\\ \\u000A[x]\""),
            (Input::List, "a\r\n\n b \n", "[\"a\", \"b\"]"),
            (Input::WordOrList(&["all"]), " all ", "\"all\""),
            (Input::WordOrList(&["all"]), "@a:b\nall", "[\"@a:b\", \"all\"]"),
            (Input::Rate, "0.20 020", "{ per_second = 0.2, burst_count = 20 }"),
        ];
        for (input, given, written) in good {
            assert_eq!(value(input, given).unwrap(), written);
        }
        for (input, given) in [
            (Input::Flag, "yes"),
            (Input::Choice(&["own"]), "\"own\""),
            (Input::Number, "-1"),
            (Input::Number, "1 = 2"),
            (Input::Rate, "1"),
            (Input::Rate, "1 2 3"),
            (Input::Rate, "1e3 -2"),
            (Input::Rate, ". 1"),
        ] {
            value(input, given).unwrap_err();
        }
        for (written, shown) in [
            ("\"50 MiB\"", "50 MiB"),
            ("14", "14"),
            ("true", "true"),
            ("[\"a\", \"b\"]", "a\nb"),
            ("[]", ""),
            ("{ per_second = 0.2, burst_count = 20 }", "0.2 20"),
        ] {
            assert_eq!(typed(written), shown);
        }
    }

    #[test]
    fn any_bytes_are_changed_or_refused() {
        crate::base::any_bytes::any_bytes(&[FILE.as_bytes()], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            drop(with(&text, "rooms.forget_left", Some("true")));
            drop(with(&text, "rooms.history_days", None));
            typed(&text);
        });
    }
}
