//! The command line: one function for each command.
//!
//! The commands about users and rooms use the server's socket (`admin_socket.rs`), whether the server runs or not.

mod check;
mod admin_socket;
mod arguments;
mod backup;
mod media;
mod notices;
mod purge;
mod moderation;
mod reports;
mod rooms;
mod servers;
mod services;
mod users;
mod workers;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;

use crate::base;
use crate::budget::human;
use crate::config::{Config, Overrides};
use crate::serve;
use admin_socket::Local;
use arguments::{Arguments, Command, New};
use reports::reports_command;
use rooms::rooms_command;
use users::user;

/// Runs the command. An error is a sentence on stderr and exit code 1.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    base::log_panics();
    let given: Vec<OsString> = arguments.into_iter().collect();
    let arguments = match Arguments::try_parse_from(&given) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    // No other user may read the files this program writes: they have keys, messages and tokens in them.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let overrides = Overrides {
        config: arguments.config,
        data_dir: arguments.data_dir,
        listen: arguments.listen,
        budget: arguments.budget,
        server_name: arguments.server_name,
    };
    let done = match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(&overrides, given.first()),
        Command::User(command) => user(&overrides, command),
        Command::Rooms { command } => rooms_command(&overrides, command),
        Command::Servers { command } => servers::servers(&overrides, command),
        Command::Reports { command } => reports_command(&overrides, command),
        Command::Moderation { command } => moderation::moderation(&overrides, command),
        Command::Media { command } => media::media(&overrides, command),
        Command::Notice { all, words } => notices::notice(&overrides, all, words),
        Command::Appservice(command) => services::run(&overrides, command),
        Command::Backup(given) => backup::backup(&overrides, given),
        Command::Restore(given) => backup::restore(&overrides, given),
        Command::Purge { command } => purge::purge(&overrides, command),
        Command::Disk => purge::disk(&overrides),
        Command::Budget => budget(&overrides),
        Command::Workers => workers::workers(&overrides),
        Command::Reload => reload(&overrides),
        Command::Check { server: Some(server), .. } => return check::server(&overrides, &server),
        Command::Check { database: false, .. } => return check::run(&overrides),
        Command::Check { database: true, .. } => return check::database(&overrides),
        Command::Compact => compact(&overrides),
        Command::New(what) => new(&overrides, what),
        Command::SampleConfig => {
            print(&Config::sample());
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            tell(&format!("snug: {message}\n"));
            ExitCode::FAILURE
        }
    }
}

fn load(overrides: &Overrides) -> Result<Config, String> {
    Config::load(overrides).map_err(|error| error.to_string())
}

/// Writes to stdout. A closed pipe (`| head`) is no error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(printable(text).as_bytes());
}

/// Writes to stderr, which may be closed too.
fn tell(text: &str) {
    let _ = std::io::stderr().write_all(printable(text).as_bytes());
}

/// A text without what a terminal obeys or shows in another order: ids and names are others' texts.
fn printable(text: &str) -> String {
    let is_order =
        |letter| matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_plain = |letter: char| letter == '\n' || letter == '\t' || !letter.is_control() && !is_order(letter);
    text.chars().map(|letter| if is_plain(letter) { letter } else { '\u{fffd}' }).collect()
}

fn serve(overrides: &Overrides, program: Option<&OsString>) -> Result<(), String> {
    let config = load(overrides)?;
    let mut command = program.map_or("snug".to_owned(), |program| program.to_string_lossy().into_owned());
    for (flag, value) in [("--config", &overrides.config), ("--data-dir", &overrides.data_dir)] {
        if let Some(value) = value {
            command.push_str(&format!(" {flag} {}", value.display()));
        }
    }
    serve::run(config, &command).map_err(|error| error.to_string())
}

/// Prints the server's answer, then stops a server that was started for this command, also after an error.
fn with_local(mut local: Local, ask: impl FnOnce(&mut Local) -> Result<String, String>) -> Result<(), String> {
    let said = ask(&mut local);
    local.close();
    Ok(print(&said?))
}

/// The config. An error while the server runs.
fn stopped(overrides: &Overrides) -> Result<Config, String> {
    let config = load(overrides)?;
    match Local::running(&config)? {
        None => Ok(config),
        Some(_) => Err("the server is running: stop it first, for example with `sudo systemctl stop snug`".to_owned()),
    }
}

/// Has the running server read its settings again.
fn reload(overrides: &Overrides) -> Result<(), String> {
    let config = load(overrides)?;
    let Some(mut local) = Local::running(&config)? else {
        return Err("the server is not running; it reads its settings when it starts".to_owned());
    };
    let said = local.post("/reload", Value::Null)?;
    let names = |field: &str| {
        let names = said[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        names.collect::<Vec<_>>().join(", ")
    };
    match names("changed") {
        none if none.is_empty() => print("Nothing has changed that needs no restart.\n"),
        changed => print(&format!("In force now: {changed}.\n")),
    }
    match names("restart") {
        none if none.is_empty() => {}
        restart => print(&format!("In force with the next start only: {restart}.\n")),
    }
    Ok(())
}

/// Only for a stopped server: a running server uses the pages of its database.
fn compact(overrides: &Overrides) -> Result<(), String> {
    let config = stopped(overrides)?;
    if !serve::has_data(&config.data_dir).map_err(|error| error.to_string())? {
        return Err(admin_socket::nobody_home(&config));
    }
    let done = serve::compact::compact(&config, &mut |line| tell(&format!("{line}\n")));
    let (before, after) = done.map_err(|error| error.to_string())?;
    print(&format!("The database took {} and takes {} now.\n", human(before), human(after)));
    Ok(())
}

/// Only for a stopped server: a running server has read its key already and has its database open.
fn new(overrides: &Overrides, what: New) -> Result<(), String> {
    let config = stopped(overrides)?;
    let folder = &config.data_dir;
    let said = |error: serve::Failed| error.to_string();
    serve::check_owner(folder).map_err(said)?;
    let is_gone = serve::check_database(folder).is_err();
    match (what, serve::has_database(folder).map_err(said)?) {
        (New::SigningKey, true) => {
            let id = serve::new_signing_key(&config).map_err(said)?;
            print(&format!("The signing key is {id} now.\n"));
        }
        (New::Database, true) => return Err(format!("{} has its database", folder.display())),
        (New::Database, false) if is_gone => {
            serve::new_database(&config).map_err(said)?;
            let folder = folder.display();
            print(&format!("{folder} has an empty database now; `snug user add NAME --admin` makes an account.\n"));
        }
        // The first start of a server makes its key and its database.
        (_, false) => return Err(admin_socket::nobody_home(&config)),
    }
    Ok(())
}

fn budget(overrides: &Overrides) -> Result<(), String> {
    let config = load(overrides)?;
    // A budget named on the command line is shown instead of that of the running server.
    if overrides.budget.is_none()
        && let Some(mut local) = Local::running(&config)?
    {
        let table = local.get("/budget")?;
        print(table["table"].as_str().unwrap_or_default());
        return Ok(());
    }
    let profile = serve::profile(&config).map_err(|error| error.to_string())?;
    print(&profile.table());
    Ok(())
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    /// The id of a room, which another server chooses, could clear the operator's terminal.
    #[test]
    fn what_a_terminal_would_obey_is_not_printed() {
        let given = "!\u{1b}[2J\u{7}a\u{9b}b\u{202e}:example.org\tZo\u{eb}\r\n";
        assert_eq!(super::printable(given), "!\u{fffd}[2J\u{fffd}a\u{fffd}b\u{fffd}:example.org\tZo\u{eb}\u{fffd}\n");
    }
}
