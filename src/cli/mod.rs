//! The command line: one function for each command.
//!
//! The commands about users and rooms speak with the server through its socket (`local.rs`), whether it runs or not.

mod check;
mod local;

use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use self::local::Local;
use crate::base::Random;
use crate::budget::{Budget, human};
use crate::config::{Config, Overrides};
use crate::remote::encode;
use crate::serve;

/// A made-up password: about 95 bits.
const PASSWORD_CHARS: usize = 16;

/// A Matrix homeserver that never outgrows the memory it was given.
///
/// Without a command it runs the server. With nothing configured its data goes to ./snug-data and it listens on
/// http://localhost:8008.
#[derive(Parser)]
#[command(
    name = "snug",
    version,
    disable_help_subcommand = true,
    after_help = "Examples:
  snug                                     run the server
  snug serve --config /etc/snug/snug.toml  the same with a config file
  snug user add alice --admin              make an account
  snug rooms                               rooms, and joins under way
  snug check                               what is wrong, and what would stop federation"
)]
struct Arguments {
    /// The config file [default: snug.toml in the data folder, or /etc/snug/snug.toml]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The folder of the database, the media and the signing key [default: ./snug-data]
    #[arg(long, value_name = "FOLDER", global = true)]
    data_dir: Option<PathBuf>,
    /// Address and port for apps; may be given several times
    #[arg(long, value_name = "ADDRESS", global = true)]
    listen: Vec<String>,
    /// The memory the server may use: a name such as pi-zero-2w, or a file
    #[arg(long, value_name = "PROFILE", global = true)]
    budget: Option<String>,
    /// The part after the colon in users' names
    #[arg(long, value_name = "NAME", global = true)]
    server_name: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server (also without a command)
    #[command(after_help = "Examples:
  snug serve
  snug serve --config /etc/snug/snug.toml
  snug serve --data-dir /var/lib/snug --listen 0.0.0.0:8008 --budget pi-zero-2w

SIGINT (Ctrl-C) and SIGTERM stop it in order.")]
    Serve,
    /// Accounts: add, password, list, admin, deactivate
    #[command(subcommand)]
    User(User),
    /// Rooms, and joins under way; `rooms allow` lets one room in that the policy keeps out
    #[command(after_help = "Examples:
  snug rooms
  snug rooms allow '!big:example.org'")]
    Rooms {
        #[command(subcommand)]
        command: Option<RoomsCommand>,
    },
    /// The memory budget as a table, with the high-water marks of a running server
    #[command(after_help = "Examples:
  snug budget
  snug budget --budget pi-zero-2w")]
    Budget,
    /// Check config, certificates, keys, ports, and how other servers reach this one; exit code 1 when something is wrong
    #[command(after_help = "Example:
  snug check --config /etc/snug/snug.toml")]
    Check,
    /// Print a config file with every setting
    #[command(after_help = "Example:
  snug sample-config > snug.toml")]
    SampleConfig,
}

#[derive(Subcommand)]
enum User {
    /// Make an account; the password is asked for, or read from standard input
    #[command(after_help = "Examples:
  snug user add alice
  snug user add alice --admin
  echo 'correct horse battery' | snug user add alice
An empty password makes one up and prints it.")]
    Add {
        /// alice, or @alice:example.org
        name: String,
        /// May administer the server
        #[arg(long)]
        admin: bool,
    },
    /// Give an account a new password; its sessions end
    #[command(after_help = "Example:
  snug user password alice")]
    Password { name: String },
    /// All accounts
    #[command(after_help = "Example:
  snug user list")]
    List,
    /// Make an account an administrator's, or with --remove an ordinary one
    #[command(after_help = "Examples:
  snug user admin alice
  snug user admin alice --remove")]
    Admin {
        name: String,
        #[arg(long)]
        remove: bool,
    },
    /// Close an account for good: it leaves its rooms, and nobody gets the name again
    #[command(after_help = "Example:
  snug user deactivate alice")]
    Deactivate { name: String },
}

#[derive(Subcommand)]
enum RoomsCommand {
    /// Let one room in, whatever rooms.admission says
    #[command(after_help = "Example:
  snug rooms allow '!big:example.org'
  snug rooms allow '!big:example.org' --remove")]
    Allow {
        room: String,
        /// Take it back; who is in the room stays
        #[arg(long)]
        remove: bool,
    },
}

/// Runs the command; what goes wrong is a sentence on stderr and exit code 1.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let given: Vec<OsString> = arguments.into_iter().collect();
    let arguments = match Arguments::try_parse_from(&given) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    // What this program writes is nobody else's to read: keys, messages, tokens.
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
        Command::Rooms { command: None } => rooms(&overrides),
        Command::Rooms { command: Some(RoomsCommand::Allow { room, remove }) } => allow(&overrides, &room, !remove),
        Command::Budget => budget(&overrides),
        Command::Check => return check::run(&overrides),
        Command::SampleConfig => {
            print(&Config::sample());
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("snug: {message}");
            ExitCode::FAILURE
        }
    }
}

fn load(overrides: &Overrides) -> Result<Config, String> {
    Config::load(overrides).map_err(|error| error.to_string())
}

/// To stdout; a reader that went away (`| head`) is no error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
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

fn user(overrides: &Overrides, command: User) -> Result<(), String> {
    let config = load(overrides)?;
    // Asked for before anything is opened: a person thinks long.
    let password = match &command {
        User::Add { name, .. } | User::Password { name } => Some(new_password(name)?),
        _ => None,
    };
    let mut local = Local::connect(&config)?;
    let said = match command {
        User::Add { name, admin } => {
            let (password, made_up) = password.expect("it was asked for");
            let made = local.post("/users", json!({ "name": name, "password": password, "admin": admin }))?;
            format!("{} was made.{}\n", text(&made, "user_id"), told(&password, made_up))
        }
        User::Password { name } => {
            let (password, made_up) = password.expect("it was asked for");
            let path = format!("/users/{}/password", encode(&name));
            let changed = local.post(&path, json!({ "password": password }))?;
            let told = told(&password, made_up);
            format!("{} has a new password; its sessions have ended.{told}\n", text(&changed, "user_id"))
        }
        User::List => users(&mut local)?,
        User::Admin { name, remove } => {
            let path = format!("/users/{}/admin", encode(&name));
            let changed = local.post(&path, json!({ "admin": !remove }))?;
            let now = if remove { "is no administrator any more" } else { "is an administrator now" };
            format!("{} {now}.\n", text(&changed, "user_id"))
        }
        User::Deactivate { name } => {
            let closed = local.post(&format!("/users/{}/deactivate", encode(&name)), json!({}))?;
            format!("{} is closed for good.\n", text(&closed, "user_id"))
        }
    };
    print(&said);
    local.close();
    Ok(())
}

fn users(local: &mut Local) -> Result<String, String> {
    let mut out = format!("{:<40} {:<12} {:<14} {}\n", "user", "standing", "", "made");
    local.pages("/users", &mut |page| {
        for user in page["users"].as_array().into_iter().flatten() {
            let admin = if user["admin"] == true { "administrator" } else { "" };
            let made = check::date(user["created_ms"].as_u64().unwrap_or(0));
            out.push_str(&format!("{:<40} {:<12} {admin:<14} {made}\n", text(user, "user_id"), text(user, "standing")));
        }
    })?;
    Ok(out)
}

fn rooms(overrides: &Overrides) -> Result<(), String> {
    let mut local = Local::connect(&load(overrides)?)?;
    let mut out = format!("{:<50} {:>8} {:>9} {:>11}  {}\n", "room", "members", "events", "bytes", "name");
    let (mut joins, mut asked) = (Vec::new(), Vec::new());
    local.pages("/rooms", &mut |page| {
        for room in page["rooms"].as_array().into_iter().flatten() {
            let number = |field: &str| room[field].as_u64().unwrap_or(0);
            let name = match room["resident"] == true {
                true => room["name"].as_str().unwrap_or(""),
                false => "(not in it)",
            };
            let (joined, events, bytes) = (number("joined"), number("events"), human(number("bytes")));
            out.push_str(&format!("{:<50} {joined:>8} {events:>9} {bytes:>11}  {name}\n", text(room, "room_id")));
        }
        joins = page["joins"].as_array().cloned().unwrap_or_default();
        asked = page["asked"].as_array().cloned().unwrap_or_default();
    })?;
    for join in joins.iter().filter_map(Value::as_str) {
        out.push_str(&format!("joining {join}\n"));
    }
    for room in &asked {
        let (room_id, asked) = (text(room, "room_id"), &room["asked"]);
        out.push_str(&match (asked["allowed"] == true, text(asked, "user_id")) {
            (true, _) => format!("{room_id} may be joined whatever its size\n"),
            (false, user) => format!(
                "{room_id} waits to be allowed: {user} asked on {}, about {} events\n",
                check::date(asked["at_ms"].as_u64().unwrap_or(0)),
                asked["events"]
            ),
        });
    }
    print(&out);
    local.close();
    Ok(())
}

fn allow(overrides: &Overrides, room: &str, allowed: bool) -> Result<(), String> {
    let mut local = Local::connect(&load(overrides)?)?;
    local.post(&format!("/rooms/{}/allow", encode(room)), json!({ "allowed": allowed }))?;
    print(&match allowed {
        true => format!("{room} may be joined, however large it is.\n"),
        false => format!("{room} may be joined only if rooms.admission lets it in.\n"),
    });
    local.close();
    Ok(())
}

fn budget(overrides: &Overrides) -> Result<(), String> {
    let config = load(overrides)?;
    if let Some(mut local) = Local::running(&config)? {
        let table = local.get("/budget")?;
        print(table["table"].as_str().unwrap_or_default());
        return Ok(());
    }
    let profile = serve::profile(&config).map_err(|error| error.to_string())?;
    print(&Budget::from_profile(profile).table());
    Ok(())
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("?")
}

fn told(password: &str, made_up: bool) -> String {
    if made_up { format!(" The password is {password}") } else { String::new() }
}

/// A new password and whether it was made up here.
fn new_password(name: &str) -> Result<(String, bool), String> {
    let password = if std::io::stdin().is_terminal() {
        let password = ask(&format!("Password for {name} (empty: one is made up): "))?;
        if !password.is_empty() && ask("The same again: ")? != password {
            return Err("the two passwords are not the same".to_owned());
        }
        password
    } else {
        line()?
    };
    match password.is_empty() {
        true => Ok((Random::os().token(PASSWORD_CHARS), true)),
        false => Ok((password, false)),
    }
}

/// One line typed without being shown.
fn ask(question: &str) -> Result<String, String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    eprint!("{question}");
    let stdin = std::io::stdin();
    let shown = tcgetattr(&stdin).map_err(|error| error.to_string())?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden).map_err(|error| error.to_string())?;
    let typed = line();
    let _ = tcsetattr(&stdin, OptionalActions::Flush, &shown);
    eprintln!();
    typed
}

fn line() -> Result<String, String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|error| error.to_string())?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
