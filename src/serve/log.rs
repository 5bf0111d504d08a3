//! The log: one short line for each event on stderr, with what the line is about in brackets at its end.
//!
//! `WARN a join failed stop=no resident server answers [POST /_matrix/client/v3/join/{room} @alice:example.org room=!big:example.org]`
//!
//! What it is about comes from spans: a request has its method, its path's template (no ids, no tokens), and who asks
//! where that is known; a join its room; a delivery its server; a background worker its name. What the line says already is
//! not repeated. In a terminal a line begins with the time; journald notes the time itself, and is told the priority.

use std::collections::VecDeque;
use std::fmt::{self, Display, Write as _};
use std::io::{IsTerminal, Write as _};
use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::base::{Clock, bounded, timestamp};

/// Of one field of a span: identifiers have at most 255 bytes.
const FIELD_CHARS_MAX: usize = 255;
/// Of a line's own text, and of each of its fields.
const TEXT_CHARS_MAX: usize = 1000;
/// Spans shown for a line; they are nested no deeper.
const SPANS_MAX: usize = 6;
/// Fields that need no name in front.
const NAMELESS: [&str; 4] = ["method", "path", "user", "name"];

/// The log of this process, for changing what it says.
static LOG: OnceLock<reload::Handle<Log, Registry>> = OnceLock::new();

/// Sends the log of this process to stderr, once. `filter` is the setting `log`; `json` makes each line an object;
/// `clock` is the server's, which knows more than the machine's.
pub fn to_stderr(filter: &str, json: bool, clock: Clock) -> Result<(), ParseError> {
    let filter: Targets = filter.parse()?;
    let form = if json { Form::Json } else { Form::of_stderr() };
    let (log, handle) = reload::Layer::new(Log { filter, form, clock });
    // A second server in one process (tests) logs to the first one's log.
    if tracing_subscriber::registry().with(log).try_init().is_ok() {
        let _ = LOG.set(handle);
    }
    Ok(())
}

/// Logs what another filter says from now on. The filter has been checked by the settings.
pub fn set_filter(filter: &str) {
    if let (Some(log), Ok(filter)) = (LOG.get(), filter.parse()) {
        let _ = log.modify(|log| log.filter = filter);
    }
}

/// The last lines, for the administrators' page: the program's data, which the profile's `fixed.stacks` has in it.
const KEPT_LINES: usize = 200;
const KEPT_BYTES: usize = 32 * 1024;
static KEPT: Mutex<Kept> = Mutex::new(Kept { lines: VecDeque::new(), bytes: 0 });

/// The last lines of this process's log, oldest first: at most [`KEPT_LINES`], and [`KEPT_BYTES`] of text.
pub fn last_lines() -> Vec<String> {
    KEPT.lock().lines.iter().cloned().collect()
}

struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Kept {
    fn keep(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > KEPT_LINES || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.bytes -= oldest.len();
        }
    }
}

struct Log {
    filter: Targets,
    form: Form,
    clock: Clock,
}

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Terminal,
    /// A file, a pipe, or another program.
    Plain,
    Journal,
    /// An object in each line, for programs.
    Json,
}

impl Form {
    fn of_stderr() -> Form {
        match () {
            () if is_journal() => Form::Journal,
            () if std::io::stderr().is_terminal() => Form::Terminal,
            () => Form::Plain,
        }
    }
}

/// Whether stderr is the stream that systemd says leads to the journal.
fn is_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(found) = rustix::fs::fstat(std::io::stderr()) else { return false };
    named == format!("{}:{}", found.st_dev, found.st_ino)
}

impl Log {
    /// Spans of this program are there whatever the level, so that a warning alone also says what it is about.
    fn is_wanted(&self, metadata: &Metadata<'_>) -> bool {
        let is_own_span = metadata.is_span() && metadata.target().starts_with("snug");
        is_own_span || self.filter.would_enable(metadata.target(), metadata.level())
    }

    /// The line that is written, and the one that is kept.
    fn event_lines<S>(&self, event: &Event<'_>, context: &Context<'_, S>) -> (String, String)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let mut said = Said::default();
        event.record(&mut said);
        let mut about = Bracket { said: format!("{}{}", said.text, said.fields), text: String::new() };
        if let Some(scope) = context.event_scope(event) {
            for span in scope.from_root().take(SPANS_MAX) {
                about.add(span.name(), span.extensions().get::<About>());
            }
        }
        let about = about.finish();
        let kept = self.line(Form::Plain, event.metadata(), &said, &about);
        let written = match self.form {
            Form::Plain => kept.clone(),
            Form::Json => self.json_line(event, said, context),
            form => self.line(form, event.metadata(), &said, &about),
        };
        (written, kept)
    }

    /// The same as an object: `fields` are the line's own, `about` those of what it is about.
    fn json_line<S>(&self, event: &Event<'_>, said: Said, context: &Context<'_, S>) -> String
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let mut about = serde_json::Map::new();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()).take(SPANS_MAX) {
            let extensions = span.extensions();
            for (field, value) in extensions.get::<About>().map_or(&[][..], |about| &about.0) {
                // A worker's name is not taken for a room's or a file's.
                let name = if field.name() == "name" { span.name() } else { field.name() };
                about.insert(name.to_owned(), value.as_str().into());
            }
        }
        let metadata = event.metadata();
        let line = serde_json::json!({
            "time": timestamp(self.clock.now_ms()),
            "level": metadata.level().as_str().to_ascii_lowercase(),
            "part": metadata.target(),
            "message": said.text,
            "fields": said.named,
            "about": about,
        });
        format!("{line}\n")
    }

    fn line(&self, form: Form, metadata: &Metadata<'_>, said: &Said, about: &str) -> String {
        let (level, journal) = (*metadata.level(), form == Form::Journal);
        let mut line = String::with_capacity(said.text.len() + said.fields.len() + about.len() + 48);
        if journal {
            line.push_str(priority(level));
        } else {
            line.push_str(&timestamp(self.clock.now_ms()));
            line.push(' ');
        }
        if !journal || level <= Level::WARN {
            let name = level.as_str();
            match form {
                Form::Terminal => line.push_str(&format!("{}{name:<5}\u{1b}[0m ", color(level))),
                Form::Plain => line.push_str(&format!("{name:<5} ")),
                Form::Journal | Form::Json => line.push_str(&format!("{name} ")),
            }
        }
        // The module is of use to who looks for a fault, and for lines of libraries.
        match metadata.target().strip_prefix("snug::") {
            Some(part) if level >= Level::DEBUG => line.push_str(&format!("{part}: ")),
            None if !metadata.target().starts_with("snug") => line.push_str(&format!("{}: ", metadata.target())),
            _ => {}
        }
        line.push_str(&said.text);
        line.push_str(&said.fields);
        line.push_str(about);
        line.push('\n');
        line
    }
}

/// The prefix by which journald knows a line's priority; see sd-daemon(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

fn color(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        _ => "\u{1b}[2m",
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.is_wanted(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        match Layer::<S>::max_level_hint(&self.filter) {
            Some(LevelFilter::OFF) => Some(LevelFilter::OFF),
            wanted => wanted.map(|wanted| wanted.max(LevelFilter::INFO)),
        }
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut about = About(Vec::with_capacity(attributes.metadata().fields().len()));
        attributes.record(&mut about);
        span.extensions_mut().insert(about);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(about) = span.extensions_mut().get_mut::<About>() {
            values.record(about);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let (written, kept) = self.event_lines(event, &context);
        KEPT.lock().keep(kept);
        // A closed stderr is no error: the server runs all the same.
        let _ = std::io::stderr().lock().write_all(written.as_bytes());
    }
}

/// The fields of a span, as many as its callsite names, each bounded.
struct About(Vec<(Field, String)>);

impl About {
    fn put(&mut self, field: &Field, value: impl Display) {
        let value = bounded(value, FIELD_CHARS_MAX);
        // In the order of the callsite, also where a field is recorded later.
        match self.0.binary_search_by_key(&field.index(), |(known, _)| known.index()) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (field.clone(), value)),
        }
    }
}

impl Visit for About {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }
}

/// An event's message, and its other fields as ` name=value`.
#[derive(Default)]
struct Said {
    text: String,
    fields: String,
    /// The same fields by name.
    named: serde_json::Map<String, serde_json::Value>,
}

impl Said {
    fn put(&mut self, field: &Field, value: impl Display) {
        let value = bounded(value, TEXT_CHARS_MAX);
        match field.name() {
            "message" => self.text = value,
            // From the `log` crate: where the line is in its source.
            name if name.starts_with("log.") => {}
            name => {
                let _ = write!(self.fields, " {name}={value}");
                self.named.insert(name.to_owned(), value.into());
            }
        }
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }
}

/// The bracket at the end of a line, without what the line says already.
struct Bracket {
    said: String,
    text: String,
}

impl Bracket {
    fn add(&mut self, span: &str, about: Option<&About>) {
        // A request is known by its method and path.
        if !matches!(span, "request" | "worker") {
            self.word(span);
        }
        for (field, value) in about.map_or(&[][..], |about| &about.0) {
            let name = field.name();
            if value.is_empty() || has_word(&self.said, value) || has_word(&self.text, value) {
                continue;
            }
            match NAMELESS.contains(&name) {
                true => self.word(value),
                false => self.word(&format!("{name}={value}")),
            }
        }
    }

    fn word(&mut self, word: &str) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.push_str(word);
    }

    fn finish(self) -> String {
        if self.text.is_empty() { String::new() } else { format!(" [{}]", self.text) }
    }
}

/// Whether `text` has `word` in it, and not only as a part of a longer name.
fn has_word(text: &str, word: &str) -> bool {
    let is_inside = |char: char| char.is_alphanumeric() || matches!(char, '-' | '_' | '.' | ':' | '/' | '@');
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back().is_some_and(is_inside);
        // A colon or a full stop may end a clause.
        let mut after = text[at + word.len()..].chars();
        let after = match after.next() {
            Some(':' | '.') => after.next(),
            other => other,
        };
        !before && !after.is_some_and(is_inside)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// A log that keeps its lines.
    #[derive(Clone)]
    struct Heard(Arc<Log>, Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Heard {
        fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, S>) -> bool {
            Layer::<S>::enabled(&*self.0, metadata, context)
        }

        fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
            self.0.on_new_span(attributes, id, context);
        }

        fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
            self.0.on_record(id, values, context);
        }

        fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
            self.1.lock().unwrap().push(self.0.event_lines(event, &context).0);
        }
    }

    /// The lines of `work` under a filter.
    fn lines(filter: &str, form: Form, work: impl FnOnce()) -> Vec<String> {
        let log = Log { filter: filter.parse().unwrap(), form, clock: Clock::simulated(0) };
        let kept = Heard(Arc::new(log), Arc::default());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(kept.clone()), work);
        kept.1.lock().unwrap().clone()
    }

    #[test]
    fn what_is_kept_is_bounded_in_lines_and_in_bytes() {
        let mut kept = Kept { lines: VecDeque::new(), bytes: 0 };
        for number in 0..KEPT_LINES + 7 {
            kept.keep(format!("line {number}"));
        }
        assert_eq!((kept.lines.len(), kept.lines[0].as_str()), (KEPT_LINES, "line 7"));
        for _ in 0..100 {
            kept.keep("x".repeat(1_000));
        }
        assert_eq!((kept.lines.len(), kept.bytes), (KEPT_BYTES / 1_000, KEPT_BYTES / 1_000 * 1_000));
    }

    fn in_a_request(work: impl FnOnce()) {
        let span = tracing::info_span!(
            target: "snug::http", "request", method = "PUT", path = "/rooms/{room_id}/send",
            user = tracing::field::Empty, room = "!r:x.org"
        );
        span.record("user", "@anna:x.org");
        span.in_scope(work);
    }

    #[test]
    fn a_line_says_what_it_is_about() {
        let said = lines("info", Form::Plain, || {
            in_a_request(|| tracing::warn!(target: "snug::room", left = 3, "not complete"));
        });
        assert_eq!(
            said,
            ["1970-01-01T00:00:00Z WARN  not complete left=3 [PUT /rooms/{room_id}/send @anna:x.org room=!r:x.org]\n"]
        );
    }

    #[test]
    fn a_line_for_programs_is_an_object() {
        let said = lines("info", Form::Json, || {
            in_a_request(|| tracing::warn!(target: "snug::room", left = 3, "not\n\"complete\""));
        });
        let line: serde_json::Value = serde_json::from_str(&said[0]).unwrap();
        assert!(said[0].ends_with("}\n") && said[0].matches('\n').count() == 1);
        assert_eq!((line["level"].as_str(), line["part"].as_str()), (Some("warn"), Some("snug::room")));
        assert_eq!((line["message"].as_str(), line["fields"]["left"].as_str()), (Some("not \"complete\""), Some("3")));
        assert_eq!(line["about"]["user"], "@anna:x.org");
        assert_eq!(line["about"]["path"], "/rooms/{room_id}/send");
    }

    #[test]
    fn nothing_is_said_twice() {
        let said = lines("info", Form::Journal, || {
            in_a_request(|| {
                let join = tracing::info_span!(target: "snug::room", "join", room = "!r:x.org", server = "x.org");
                join.in_scope(|| tracing::info!(target: "snug::room", "@anna:x.org asked x.org: no"));
            });
        });
        assert_eq!(said, ["<6>@anna:x.org asked x.org: no [PUT /rooms/{room_id}/send room=!r:x.org join]\n"]);
    }

    #[test]
    fn a_warning_says_what_it_is_about_where_only_warnings_are_logged() {
        let said = lines("warn", Form::Journal, || {
            in_a_request(|| {
                tracing::info!(target: "snug::room", "not logged");
                tracing::warn!(target: "snug::room", "logged");
            });
        });
        assert_eq!(said, ["<4>WARN logged [PUT /rooms/{room_id}/send @anna:x.org room=!r:x.org]\n"]);
    }

    #[test]
    fn what_others_write_is_one_bounded_line() {
        let said = lines("debug", Form::Plain, || {
            let long = "y".repeat(5000);
            let span = tracing::info_span!(target: "snug::http", "request", room = "!a\nb");
            span.in_scope(|| tracing::debug!(target: "snug::room::join", why = "a\u{1b}[2J\nb", "{long}"));
        });
        assert!(said[0].starts_with("1970-01-01T00:00:00Z DEBUG room::join: yyy"), "{}", said[0]);
        assert!(said[0].ends_with("… why=a [2J b [room=!a b]\n") && said[0].len() < 1200, "{}", said[0]);
    }

    #[test]
    fn a_part_of_a_name_is_not_the_name() {
        for (text, word, expected) in [
            ("asked x.org", "x.org", true),
            ("asked x.org: no", "x.org", true),
            ("asked a.x.org", "x.org", false),
            ("@anna:x.org", "x.org", false),
            ("x.org:8448", "x.org", false),
            ("server=x.org", "x.org", true),
        ] {
            assert_eq!(has_word(text, word), expected, "{text}");
        }
    }
}
