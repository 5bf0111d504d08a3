//! `snug user`.

use std::io::{BufRead, IsTerminal};

use serde_json::json;

use super::admin_socket::Local;
use super::arguments::User;
use super::{load, print, tell, text, with_local};
use crate::base::{Random, date};
use crate::budget::human;
use crate::config::Overrides;
use crate::remote::encode;

/// The length of a generated password: about 95 bits.
const PASSWORD_CHARS: usize = 16;

pub fn user(overrides: &Overrides, command: User) -> Result<(), String> {
    let config = load(overrides)?;
    // Asked for before the server is opened: typing a password may take long.
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
            let made = date(user["created_ms"].as_u64().unwrap_or(0));
            let files = human(user["uploaded_bytes"].as_u64().unwrap_or(0));
            let (id, standing) = (text(user, "user_id"), text(user, "standing"));
            out.push_str(&format!("{id:<40} {standing:<12} {admin:<14} {files:>10}  {made}\n"));
        }
    })?;
    Ok(out)
}

fn told(new: &NewPassword) -> String {
    if new.made_up { format!(" The password is {}", new.password) } else { String::new() }
}

/// A password, and whether it was generated here.
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

/// Reads one line that is typed without being shown.
pub fn ask(question: &str) -> Result<String, String> {
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

pub fn line() -> Result<String, String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|error| error.to_string())?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
