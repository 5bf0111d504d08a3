//! The command line: one function for each command.
//!
//! The commands about users and rooms speak with the server through its socket (`local.rs`), whether it runs or not.

mod check;
mod admin_socket;

use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use crate::base::{self, Random};
use crate::budget::{Budget, human};
use crate::config::{Config, Overrides};
use crate::remote::encode;
use crate::serve;
use admin_socket::Local;

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
    /// Rooms, and joins under way: allow, cancel
    #[command(after_help = "Examples:
  snug rooms
  snug rooms allow '!big:example.org'    let one room in that rooms.admission keeps out
  snug rooms cancel '!big:example.org'   end a join that is under way")]
    Rooms {
        #[command(subcommand)]
        command: Option<RoomsCommand>,
    },
    /// The memory budget as a table, with the high-water marks of a running server
    #[command(after_help = "Examples:
  snug budget                      of the running server, or the one it would have
  snug budget --budget pi-zero-2w  that one, whether a server runs or not")]
    Budget,
    /// Check config, certificates, keys, ports, and how other servers reach this one; exit code 1 when something is wrong
    #[command(after_help = "Examples:
  snug check --config /etc/snug/snug.toml
  sudo -u snug snug check --database --config /etc/snug/snug.toml   everything in the database, of a stopped server")]
    Check {
        /// Read everything in the database instead, and say what of it is lost; the server must be stopped, nothing is changed
        #[arg(long)]
        database: bool,
    },
    /// Give the disk back what left rooms and finished joins freed in the database; the server must be stopped
    #[command(after_help = "Example:
  sudo systemctl stop snug
  sudo -u snug snug compact --config /etc/snug/snug.toml
  sudo systemctl start snug
What is free in the file is used again anyway; this makes the file smaller. It takes minutes for each GiB on an SD card, and about
25 MiB of memory for each GiB, 150 MiB at most, besides the budget's cache. Cutting it off does no harm; the next start then
takes longer.")]
    Compact,
    /// Make anew what a server must not lose: its signing key, or its database; the server must be stopped
    #[command(subcommand)]
    New(New),
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
    /// All accounts, and what the files take that each has uploaded
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
enum New {
    /// A new signing key, where the old one is lost or a stranger has seen it
    #[command(after_help = "Example:
  sudo systemctl stop snug
  sudo -u snug snug new signing-key --config /etc/snug/snug.toml
  sudo systemctl start snug
A key that is still there becomes an old one: what it signed stays good. Where it is lost, servers that never saw it cannot check
what this one sent before, so a backup of signing.key is better.")]
    SigningKey,
    /// An empty database beside the signing key, where the old one is lost
    #[command(after_help = "Example:
  snug new database --data-dir /var/lib/snug
The server begins again with its name and its key, without accounts and rooms. Files people uploaded stay in the folder `media`, and
nothing refers to them any more. A backup of the database is better. One that is there is left alone.")]
    Database,
}

#[derive(Subcommand)]
enum RoomsCommand {
    /// Let one room in, whatever rooms.admission says
    #[command(after_help = "Example:
  snug rooms allow '!big:example.org'
  snug rooms allow '!big:example.org' --remove")]
    Allow {
        room: String,
        /// Take it back: a join under way ends, and who is in the room stays
        #[arg(long)]
        remove: bool,
    },
    /// End a join that is under way, or that would go on at the next start, and remove what it stored
    #[command(after_help = "Example:
  snug rooms cancel '!big:example.org'")]
    Cancel { room: String },
}

/// Runs the command; what goes wrong is a sentence on stderr and exit code 1.
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
        Command::Rooms { command } => rooms_command(&overrides, command),
        Command::Budget => budget(&overrides),
        Command::Check { database: false } => return check::run(&overrides),
        Command::Check { database: true } => return check::database(&overrides),
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

/// To stdout; a reader that went away (`| head`) is no error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// To stderr, which may be closed too.
fn tell(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
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
        User::Add { name, .. } | User::Password { name } => new_password(name)?,
        _ => NewPassword::default(),
    };
    if !matches!(command, User::Add { .. }) {
        return with_local(Local::connect(&config)?, |local| user_asked(local, command, &password));
    }
    let (local, new) = Local::connect_or_make(&config)?;
    if new {
        print(&format!(
            "A new server was begun in {}, with the name {}.\n",
            config.data_dir.display(),
            config.server_name
        ));
    }
    with_local(local, |local| user_asked(local, command, &password))
}

/// Prints what the server answered and takes a server down that was opened for this, also when it refused.
fn with_local(mut local: Local, ask: impl FnOnce(&mut Local) -> Result<String, String>) -> Result<(), String> {
    let said = ask(&mut local);
    local.close();
    Ok(print(&said?))
}

fn user_asked(local: &mut Local, command: User, new: &NewPassword) -> Result<String, String> {
    Ok(match command {
        User::Add { name, admin } => {
            let made = local.post("/users", json!({ "name": name, "password": new.password, "admin": admin }))?;
            format!("{} was made.{}\n", text(&made, "user_id"), told(new))
        }
        User::Password { name } => {
            let path = format!("/users/{}/password", encode(&name));
            let changed = local.post(&path, json!({ "password": new.password })).map_err(about(&name))?;
            format!("{} has a new password; its sessions have ended.{}\n", text(&changed, "user_id"), told(new))
        }
        User::List => users(local)?,
        User::Admin { name, remove } => {
            let path = format!("/users/{}/admin", encode(&name));
            let changed = local.post(&path, json!({ "admin": !remove })).map_err(about(&name))?;
            let now = if remove { "is no administrator any more" } else { "is an administrator now" };
            format!("{} {now}.\n", text(&changed, "user_id"))
        }
        User::Deactivate { name } => {
            let path = format!("/users/{}/deactivate", encode(&name));
            let closed = local.post(&path, json!({})).map_err(about(&name))?;
            format!("{} is closed for good.\n", text(&closed, "user_id"))
        }
    })
}

fn about(name: &str) -> impl FnOnce(String) -> String {
    let name = name.to_owned();
    move |error| format!("{name}: {error}")
}

fn users(local: &mut Local) -> Result<String, String> {
    let mut out = format!("{:<40} {:<12} {:<14} {:>10}  {}\n", "user", "standing", "", "files", "made");
    local.pages("/users", &mut |page| {
        for user in page["users"].as_array().into_iter().flatten() {
            let admin = if user["admin"] == true { "administrator" } else { "" };
            let made = check::date(user["created_ms"].as_u64().unwrap_or(0));
            let files = human(user["uploaded_bytes"].as_u64().unwrap_or(0));
            let (id, standing) = (text(user, "user_id"), text(user, "standing"));
            out.push_str(&format!("{id:<40} {standing:<12} {admin:<14} {files:>10}  {made}\n"));
        }
    })?;
    Ok(out)
}

fn rooms_command(overrides: &Overrides, command: Option<RoomsCommand>) -> Result<(), String> {
    if let Some(RoomsCommand::Allow { room, .. } | RoomsCommand::Cancel { room }) = &command
        && !room.starts_with('!')
    {
        return Err(format!(
            "{room:?} is no room's id, such as '!big:example.org'; `snug rooms` lists those known here"
        ));
    }
    with_local(Local::connect(&load(overrides)?)?, |local| match command {
        None => rooms(local),
        Some(RoomsCommand::Allow { room, remove }) => allow(local, &room, !remove),
        Some(RoomsCommand::Cancel { room }) => cancel(local, &room),
    })
}

fn rooms(local: &mut Local) -> Result<String, String> {
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
    Ok(out)
}

fn allow(local: &mut Local, room: &str, allowed: bool) -> Result<String, String> {
    local.post(&format!("/rooms/{}/allow", encode(room)), json!({ "allowed": allowed }))?;
    Ok(match allowed {
        true => format!("{room} may be joined, however large it is.\n"),
        false => format!("{room} may be joined only if rooms.admission lets it in.\n"),
    })
}

fn cancel(local: &mut Local, room: &str) -> Result<String, String> {
    local.post(&format!("/rooms/{}/cancel", encode(room)), json!({}))?;
    Ok(match local.is_stopped() {
        true => format!("The join of {room} does not go on; what it stored is removed at the next start.\n"),
        false => format!("The join of {room} ends at its next step, and what it stored is removed.\n"),
    })
}

/// The config, where no server runs.
fn stopped(overrides: &Overrides) -> Result<Config, String> {
    let config = load(overrides)?;
    match Local::running(&config)? {
        None => Ok(config),
        Some(_) => Err("the server is running: stop it first, for example with `sudo systemctl stop snug`".to_owned()),
    }
}

/// On a stopped server only: the pages of a running one are in use.
fn compact(overrides: &Overrides) -> Result<(), String> {
    let config = stopped(overrides)?;
    if !serve::has_data(&config.data_dir).map_err(|error| error.to_string())? {
        return Err(admin_socket::nobody_home(&config));
    }
    let done = serve::compact(&config, &mut |line| tell(&format!("{line}\n")));
    let (before, after) = done.map_err(|error| error.to_string())?;
    print(&format!("The database took {} and takes {} now.\n", human(before), human(after)));
    Ok(())
}

/// On a stopped server only: a running one has read its key, and has its database open.
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
        // The first start makes both.
        (_, false) => return Err(admin_socket::nobody_home(&config)),
    }
    Ok(())
}

fn budget(overrides: &Overrides) -> Result<(), String> {
    let config = load(overrides)?;
    // A budget that is named is the one that is asked about.
    if overrides.budget.is_none()
        && let Some(mut local) = Local::running(&config)?
    {
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

fn told(new: &NewPassword) -> String {
    if new.made_up { format!(" The password is {}", new.password) } else { String::new() }
}

/// A password, and whether it was made up here.
#[derive(Default)]
struct NewPassword {
    password: String,
    made_up: bool,
}

fn new_password(name: &str) -> Result<NewPassword, String> {
    let password = if std::io::stdin().is_terminal() {
        let password = ask(&format!("Password for {name} (empty: one is made up): "))?;
        if !password.is_empty() && ask("The same again: ")? != password {
            return Err("the two passwords are not the same".to_owned());
        }
        password
    } else {
        line()?
    };
    Ok(match password.is_empty() {
        true => NewPassword { password: Random::os().token(PASSWORD_CHARS), made_up: true },
        false => NewPassword { password, made_up: false },
    })
}

/// One line typed without being shown.
fn ask(question: &str) -> Result<String, String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    tell(question);
    let stdin = std::io::stdin();
    let shown = tcgetattr(&stdin).map_err(|error| error.to_string())?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden).map_err(|error| error.to_string())?;
    let typed = line();
    let _ = tcsetattr(&stdin, OptionalActions::Flush, &shown);
    tell("\n");
    typed
}

fn line() -> Result<String, String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|error| error.to_string())?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
