//! `snug backup` and `snug restore`.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::admin_socket::Local;
use super::arguments::{Backup, BackupCommand, Restore};
use super::users::{ask, line};
use super::{load, print, tell, with_local};
use crate::backup::{
    self, Identity, Key, PASSPHRASE_BYTES, PASSPHRASE_CHARS_MIN, Progress, Source, Stage, check_names, set_aside,
};
use crate::base::{Random, StopWatch, date};
use crate::budget::{Budget, human};
use crate::config::{Config, Overrides};
use crate::serve;

/// How often a running backup is asked how far it is.
const LOOK: Duration = Duration::from_millis(500);
/// How often a line is written where no terminal shows a bar.
const LINE_EVERY: Duration = Duration::from_secs(15);
const BAR_CHARS: usize = 24;
/// Letters of a passphrase that is made up: 130 bits.
const MADE_UP_CHARS: usize = 26;

pub fn backup(overrides: &Overrides, given: Backup) -> Result<(), String> {
    match given.command {
        Some(BackupCommand::List { target }) => list(&target),
        Some(BackupCommand::Verify { source, at, identity, passphrase_file }) => {
            verify(&load(overrides)?, &source, at, identity, passphrase_file)
        }
        Some(BackupCommand::Status) => with_local(Local::connect(&load(overrides)?)?, status),
        Some(BackupCommand::Cancel) => with_local(Local::connect(&load(overrides)?)?, |local| {
            local.post("/backup/cancel", json!({}))?;
            Ok("The backup ends at its next step. A folder keeps what is written; the next backup goes on with it.\n"
                .to_owned())
        }),
        None => {
            let target = given.target.as_deref().ok_or("name a folder, or a file that ends with .tar.zst")?;
            // The server has another working folder.
            let target = std::path::absolute(target).map_err(|error| error.to_string())?;
            let passphrase = match (given.passphrase, &given.passphrase_file) {
                (_, Some(path)) => Some(first_line(path)?),
                (true, None) => Some(new_passphrase(backup::has_identity(&target))?),
                (false, None) => None,
            };
            let order = json!({
                "target": target, "media": given.media, "recipient": given.recipient, "passphrase": passphrase,
                "keep_days": given.keep_days,
            });
            with_local(Local::connect(&load(overrides)?)?, |local| make(local, order))
        }
    }
}

fn make(local: &mut Local, order: Value) -> Result<String, String> {
    local.post("/backup", order)?;
    let mut bar = Bar::new();
    loop {
        local.wait(LOOK);
        let status = local.get("/backup")?;
        match &status["running"] {
            Value::Null => {
                bar.end();
                let ended = &status["ended"];
                return match (ended["Ok"].as_str(), ended["Err"].as_str()) {
                    (Some(said), _) => Ok(format!("{said}\n")),
                    (None, why) => Err(hinted(why.unwrap_or("the server says nothing of its backup"))),
                };
            }
            running => {
                let number = |field: &str| running[field].as_u64().unwrap_or(0);
                let (rows, media) =
                    ((number("rows_done"), number("rows")), (number("media_done"), number("media_bytes")));
                let (written, checked) = (number("written_bytes"), number("checked_bytes"));
                bar.show(running["stage"].as_str().unwrap_or_default(), rows, media, (checked, written));
            }
        }
    }
}

/// The error of a target that the server may not write to, with what to do about it.
fn hinted(why: &str) -> String {
    let is_closed = why.contains("Permission denied") || why.contains("Read-only file system");
    match is_closed {
        true => format!(
            "{why}. The user that the server runs as must be able to write there; a server that systemd runs also needs the folder in \
             ReadWritePaths= (`systemctl edit snug`)"
        ),
        false => why.to_owned(),
    }
}

fn status(local: &mut Local) -> Result<String, String> {
    let status = local.get("/backup")?;
    let mut out = String::new();
    if let Some(running) = status["running"].as_object() {
        out += &format!("A backup is being made: {} of {} rows.\n", running["rows_done"], running["rows"]);
    }
    let at = |field: &str| status[field].as_u64().map(date);
    match (at("made_ms"), status["target"].as_str()) {
        (Some(day), Some(target)) => out += &format!("The last backup is of {day}, in {target}.\n"),
        _ => out += "There is no backup of this server that it knows of.\n",
    }
    if let (Some(day), Some(why)) = (at("failed_ms"), status["why"].as_str()) {
        out += &format!("One failed on {day}: {why}\n");
    }
    if let (Some(day), Some(from)) = (at("restored_ms"), at("restored_from_ms")) {
        out += &format!("This server was restored on {day} from a backup of {from}.\n");
    }
    if status["is_scheduled"] != true {
        out += "None is made by itself: backup.target in the config file makes one each day.\n";
    }
    Ok(out)
}

fn list(target: &Path) -> Result<(), String> {
    let found = backup::backups_in(target).map_err(|error| error.to_string())?;
    if found.is_empty() {
        return Err(format!("there is no backup in {}", target.display()));
    }
    let lines = found.iter().map(|one| format!("{}{}\n", one.stamp, if one.is_sealed { "  sealed" } else { "" }));
    Ok(print(&lines.collect::<String>()))
}

fn verify(
    config: &Config,
    path: &Path,
    at: Option<String>,
    identity: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
) -> Result<(), String> {
    let mut source = source(config, path, at)?;
    let is_sealed = source.is_sealed().map_err(|error| error.to_string())?;
    let is_asked = identity.is_some() || passphrase_file.is_some() || std::io::stdin().is_terminal();
    if is_sealed && !is_asked && path.is_dir() {
        let found = backup::backups_in(path).map_err(|error| error.to_string())?;
        let one = found.iter().rfind(|one| source.stamp.as_ref().is_none_or(|stamp| one.stamp == *stamp));
        let one = one.ok_or("there is no such backup")?;
        let (things, bytes) = check_names(path, one).map_err(|error| error.to_string())?;
        let bytes = human(bytes);
        return Ok(print(&format!(
            "All {things} things of the backup {} are there, {bytes}. What is in them only its identity can tell: --identity.\n",
            one.stamp
        )));
    }
    if is_sealed {
        source.key = Some(key(config, path, identity, passphrase_file)?);
    }
    let (mut bar, mut damaged, mut unusable, mut closed) = (Bar::new(), 0u64, 0u64, 0u64);
    let read = source.survey(&mut |progress| bar.progress(progress), &mut |head, entry, failed| {
        match &failed {
            // It is what was written: the next backup would only write the same again.
            backup::Error::Unusable(_) => unusable += 1,
            // Whoever looks may not: that says nothing of the thing.
            backup::Error::Io(why) | backup::Error::File(_, why) if why.kind() == ErrorKind::PermissionDenied => {
                closed += 1;
            }
            _ => {
                set_aside(path, head, entry);
                damaged += 1;
            }
        }
        tell(&format!("{failed}\n"));
    });
    bar.end();
    let (head, progress) = read.map_err(|error| format!("{}: {error}", path.display()))?;
    if damaged > 0 {
        return Err(format!(
            "{damaged} things of this backup are damaged. They are set aside as `….bad`, and the next backup writes them again if the \
             server still has them"
        ));
    }
    if closed > 0 {
        return Err(format!(
            "{closed} things of this backup may not be read by this user: verify it as the user that the server runs as"
        ));
    }
    if unusable > 0 {
        return Err(format!(
            "{unusable} things of this backup cannot be restored by this version with this memory budget; they stay where they are"
        ));
    }
    Ok(print(&format!(
        "The backup of {} on {} is whole: {} rows, {} of files, each as it was written.\n",
        head.server,
        date(head.made_ms),
        progress.rows_done,
        human(progress.media_done)
    )))
}

pub fn restore(overrides: &Overrides, given: Restore) -> Result<(), String> {
    let config = load(overrides)?;
    if Local::running(&config)?.is_some() {
        return Err("a server runs in that folder".to_owned());
    }
    let mut source = source(&config, &given.source, given.at)?;
    if source.is_sealed().map_err(|error| error.to_string())? {
        source.key = Some(key(&config, &given.source, given.identity, given.passphrase_file)?);
    }
    let mut bar = Bar::new();
    let restored = serve::restore::restore(&config, &source, &mut |progress| bar.progress(progress));
    bar.end();
    Ok(print(&restored.map_err(|error| error.to_string())?))
}

fn source(config: &Config, path: &Path, stamp: Option<String>) -> Result<Source, String> {
    let piece_bytes_max = serve::restore::piece_bytes_max(config).map_err(|error| error.to_string())?;
    Ok(Source { path: path.to_owned(), stamp, key: None, piece_bytes_max })
}

/// What opens a sealed backup: an identity, or the passphrase.
fn key(
    config: &Config,
    path: &Path,
    identity: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
) -> Result<Key, String> {
    if let Some(file) = identity {
        return backup::identity_file(&file).map_err(|error| error.to_string());
    }
    let passphrase = match passphrase_file {
        Some(file) => first_line(&file)?,
        None if std::io::stdin().is_terminal() => ask("Passphrase of the backup: ")?,
        None => line()?,
    };
    let budget = Budget::from_profile(serve::profile(config).map_err(|error| error.to_string())?);
    let _grant = budget.account("backup").try_take(PASSPHRASE_BYTES).map_err(|error| error.to_string())?;
    match path.is_dir() {
        true => {
            let identity: Identity = backup::identity(path, &passphrase, None).map_err(|error| error.to_string())?;
            Ok(Key::Identity(identity))
        }
        false => Ok(Key::Passphrase(passphrase)),
    }
}

/// A passphrase for a folder that has one, or a new one.
fn new_passphrase(is_known: bool) -> Result<String, String> {
    if !std::io::stdin().is_terminal() {
        return line();
    }
    if is_known {
        return ask("Passphrase of the backups there: ");
    }
    let typed = ask(&format!("Passphrase, {PASSPHRASE_CHARS_MIN} letters or more (empty: one is made up): "))?;
    if typed.is_empty() {
        let made = Random::os().token(MADE_UP_CHARS);
        print(&format!(
            "The passphrase is {made}\nKeep it somewhere else: without it nobody can restore this backup.\n"
        ));
        return Ok(made);
    }
    match ask("The same again: ")? == typed {
        true => Ok(typed),
        false => Err("the two are not the same".to_owned()),
    }
}

fn first_line(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A line that shows how far something is.
struct Bar {
    is_terminal: bool,
    watch: StopWatch,
    last: Option<Duration>,
}

impl Bar {
    fn new() -> Bar {
        Bar { is_terminal: std::io::stderr().is_terminal(), watch: StopWatch::start(), last: None }
    }

    fn progress(&mut self, progress: &Progress) {
        let stage = match progress.stage {
            Stage::Media => "media",
            _ => "rows",
        };
        self.show(stage, (progress.rows_done, progress.rows), (progress.media_done, progress.media_bytes), (0, 0));
    }

    fn show(&mut self, stage: &str, rows: (u64, u64), media: (u64, u64), checked: (u64, u64)) {
        let now = self.watch.elapsed();
        let pause = if self.is_terminal { LOOK / 2 } else { LINE_EVERY };
        if self.last.is_some_and(|last| now < last + pause) {
            return;
        }
        self.last = Some(now);
        let (what, (done, of), said) = match stage {
            "media" => ("files", media, format!("{} of {}", human(media.0), human(media.1.max(media.0)))),
            "list" | "check" => ("check", checked, format!("{} of {}", human(checked.0), human(checked.1))),
            _ => ("rows", rows, format!("{} of {}", rows.0, rows.1.max(rows.0))),
        };
        let full = (done.min(of) * BAR_CHARS as u64).checked_div(of).unwrap_or(0) as usize;
        let line = format!("{what:<6} [{}{}] {said}", "#".repeat(full), " ".repeat(BAR_CHARS - full));
        let _ = match self.is_terminal {
            true => write!(std::io::stderr(), "\r{line:<78}"),
            false => writeln!(std::io::stderr(), "{line}"),
        };
    }

    fn end(&self) {
        if self.is_terminal && self.last.is_some() {
            let _ = write!(std::io::stderr(), "\r{:<78}\r", "");
        }
    }
}
