//! `snug user`.

use std::io::{BufRead, IsTerminal};

use serde_json::{Value, json};

use super::admin_socket::Local;
use super::arguments::User;
use super::{load, print, tell, text, with_local};
use crate::base::{Random, date};
use crate::budget::human;
use crate::config::Overrides;
use crate::remote::encode;
use crate::user::check_new_password;

/// The length of a generated password: about 95 bits.
const PASSWORD_CHARS: usize = 16;
/// How often a password is asked for when it is mistyped or too short.
const PASSWORD_TRIES: u32 = 5;

pub fn user(overrides: &Overrides, command: User) -> Result<(), String> {
    let config = load(overrides)?;
    // Asked for before the server is opened: typing a password may take long.
    let password = match &command {
        User::Add { name, link: false, bot: false, .. } | User::Password { name, link: false } => new_password(name)?,
        _ => NewPassword::default(),
    };
    if let User::Deactivate { name, yes, force } = &command {
        // The server is not held open while the answer is typed.
        with_local(Local::connect(&config)?, |local| what_ends(local, name, *force))?;
        if !yes && !is_yes(&ask_line("Type yes to go on: ")?) {
            return Err("nothing was done".to_owned());
        }
    }
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

/// Who makes the first account without `--admin` has a server whose page opens for nobody.
fn without_admin(answer: &Value) -> &'static str {
    match answer["has_admin"] {
        Value::Bool(false) => {
            "No account here is an administrator's, so nobody can open the page: `snug user admin NAME` makes one so.\n"
        }
        _ => "",
    }
}

fn user_asked(local: &mut Local, command: User, new: &NewPassword) -> Result<String, String> {
    Ok(match command {
        User::Add { name, admin, bot: true, .. } => {
            let made = local.post("/users", json!({ "name": name, "admin": admin, "bot": true }))?;
            format!("{} was made, for a bot. {}", text(&made, "user_id"), the_token(&made))
        }
        User::Token { name } => {
            let made = local.post(&format!("/users/{}/token", encode(&name)), json!({})).map_err(about(&name))?;
            format!("{} has another access token; the old one has ended. {}", text(&made, "user_id"), the_token(&made))
        }
        User::Limit { name, messages_per_second, burst, none, default } => {
            let path = format!("/users/{}/limit", encode(&name));
            if none || default || messages_per_second.is_some() {
                let per_second = if none { Some(0) } else { messages_per_second };
                let wanted = match per_second {
                    Some(per_second) => {
                        json!({ "messages_per_second": per_second, "burst_count": burst.unwrap_or(per_second) })
                    }
                    None => json!({}),
                };
                local.post(&path, wanted).map_err(about(&name))?;
            }
            limit(&local.get(&path).map_err(about(&name))?)
        }
        User::Quota { name, size } => {
            let path = format!("/users/{}/quota", encode(&name));
            if !size.is_empty() {
                local.post(&path, json!({ "quota": size.join(" ") })).map_err(about(&name))?;
            }
            quota(&local.get(&path).map_err(about(&name))?)
        }
        User::Add { name, admin, link: true, .. } => {
            let made = local.post("/users", json!({ "name": name, "admin": admin }))?;
            format!("{} was made. {}{}", text(&made, "user_id"), linked(local, &name)?, without_admin(&made))
        }
        User::Password { name, link: true } => linked(local, &name)?,
        User::Add { name, admin, link: false, .. } => {
            let made = local.post("/users", json!({ "name": name, "password": new.password, "admin": admin }))?;
            format!("{} was made.{}\n{}", text(&made, "user_id"), told(new), without_admin(&made))
        }
        User::Password { name, link: false } => {
            let path = format!("/users/{}/password", encode(&name));
            let changed = local.post(&path, json!({ "password": new.password })).map_err(about(&name))?;
            format!("{} has a new password; its sessions have ended.{}\n", text(&changed, "user_id"), told(new))
        }
        User::List => users(local)?,
        User::Admin { name, remove } => {
            let path = format!("/users/{}/admin", encode(&name));
            let changed = local.post(&path, json!({ "admin": !remove })).map_err(about(&name))?;
            let now = if remove { "is not an administrator any more" } else { "is an administrator now" };
            format!("{} {now}.\n{}", text(&changed, "user_id"), without_admin(&changed))
        }
        User::Lock { name } => {
            let locked = restrict(local, &name, json!({ "locked": true }))?;
            format!("{locked} is locked: its sessions can do nothing until `snug user unlock`.\n")
        }
        User::Unlock { name } => {
            format!("{} is not locked any more.\n", restrict(local, &name, json!({ "locked": false }))?)
        }
        User::Suspend { name } => {
            let suspended = restrict(local, &name, json!({ "suspended": true }))?;
            format!("{suspended} is suspended: it can read, and not speak, until `snug user unsuspend`.\n")
        }
        User::Unsuspend { name } => {
            format!("{} is not suspended any more.\n", restrict(local, &name, json!({ "suspended": false }))?)
        }
        User::Deactivate { name, force, .. } => {
            let path = format!("/users/{}/deactivate", encode(&name));
            let closed = local.post(&path, json!({ "force": force })).map_err(about(&name))?;
            format!("{} is closed for good.\n", text(&closed, "user_id"))
        }
    })
}

/// The token of a bot, which is shown this once.
fn the_token(made: &Value) -> String {
    format!("Its access token, which is not shown again:\n\n    {}\n", text(made, "access_token"))
}

fn limit(shown: &Value) -> String {
    let (user_id, limit) = (text(shown, "user_id"), &shown["limit"]);
    let number = |name: &str| limit[name].as_u64().unwrap_or(0);
    match (limit.is_null(), number("messages_per_second"), number("burst_count").max(1)) {
        (true, ..) => format!("{user_id} has the rates that everybody has.\n"),
        (_, 0, _) => format!("No rate limits {user_id}.\n"),
        (_, rate, burst) => format!("{user_id} may send {rate} events a second, and {burst} at once.\n"),
    }
}

fn quota(shown: &Value) -> String {
    let (user_id, number) = (text(shown, "user_id"), |name: &str| shown[name].as_u64());
    let (used, bytes_max) = (number("used_bytes").unwrap_or(0), number("bytes_max"));
    let may = match (bytes_max, shown["is_own"] == true) {
        (None, _) => "and may take what there is room for".to_owned(),
        (Some(bytes_max), true) => format!(
            "and may take {}, which was set for this account; the usual is {}",
            human(bytes_max),
            human(number("everybody_max").unwrap_or(0))
        ),
        (Some(bytes_max), false) => format!("and may take {}, which is the usual", human(bytes_max)),
    };
    let full = match bytes_max.is_some_and(|bytes_max| used >= bytes_max) {
        true => "Nothing more can be uploaded before more is allowed, or files are removed (`snug media`).\n",
        false => "",
    };
    format!("The files of {user_id} take {}, {may}.\n{full}", human(used))
}

/// A new link for a password, as a running server is reached.
fn linked(local: &mut Local, name: &str) -> Result<String, String> {
    let made = local.post(&format!("/users/{}/link", encode(name)), json!({})).map_err(about(name))?;
    let user_id = text(&made, "user_id");
    let links: Vec<&str> = made["links"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if links.is_empty() {
        return Err(format!(
            "{user_id} can have no link while the server is not running: start it, then `snug user password {} --link`",
            encode(name)
        ));
    }
    let until = date(made["expires_ms"].as_u64().unwrap_or(0));
    let these = if links.len() > 1 { "One of these links" } else { "This link" };
    let listed: String = links.iter().map(|link| format!("    {link}\n")).collect();
    Ok(format!("{these} sets the password of {user_id}, once, until {until}:\n\n{listed}"))
}

/// Locks or suspends an account, or takes that back. Answers whose it is.
fn restrict(local: &mut Local, name: &str, how: Value) -> Result<String, String> {
    let done = local.post(&format!("/users/{}/restrict", encode(name)), how).map_err(about(name))?;
    Ok(text(&done, "user_id").to_owned())
}

/// What deactivating an account does; an error where it would be refused.
fn what_ends(local: &mut Local, name: &str, force: bool) -> Result<String, String> {
    let found = local.get(&format!("/users/{}", encode(name))).map_err(about(name))?;
    let account = &found["account"];
    let user_id = text(account, "user_id");
    if text(account, "standing") == "deactivated" {
        return Err(format!("{user_id} is closed already"));
    }
    if found["last_admin"] == true && !force {
        return Err(format!("{user_id} is the last administrator; --force closes the account all the same"));
    }
    Ok(format!(
        "{user_id} leaves every room; its sessions, keys, profile and settings are removed. What it wrote stays in the rooms.\n\
         This cannot be undone, and the name is never given out again.\n"
    ))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

fn about(name: &str) -> impl FnOnce(String) -> String {
    let name = name.to_owned();
    move |error| format!("{name}: {error}")
}

fn users(local: &mut Local) -> Result<String, String> {
    let head = format!("{:<40} {:<12} {:<14} {:>10}  {}\n", "user", "standing", "", "files", "made");
    let mut out = head.clone();
    local.pages("/users", &mut |page| {
        for user in page["users"].as_array().into_iter().flatten() {
            let admin = match (user["admin"] == true, user["bot"] == true) {
                (true, true) => "admin bot",
                (true, false) => "administrator",
                (false, true) => "bot",
                (false, false) => "",
            };
            let made = date(user["created_ms"].as_u64().unwrap_or(0));
            let files = human(user["uploaded_bytes"].as_u64().unwrap_or(0));
            let (id, standing) = (text(user, "user_id"), text(user, "standing"));
            out.push_str(&format!("{id:<40} {standing:<12} {admin:<14} {files:>10}  {made}\n"));
        }
    })?;
    if out == head {
        return Ok("There is no account yet. This makes the first one: snug user add NAME --admin\n".to_owned());
    }
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
    let password = match std::io::stdin().is_terminal() {
        true => asked_twice(name, &mut ask)?,
        false => line()?,
    };
    if !password.is_empty() {
        check_new_password(&password).map_err(|error| error.to_string())?;
    }
    Ok(match password.is_empty() {
        true => NewPassword { password: Random::os().token(PASSWORD_CHARS), made_up: true },
        false => NewPassword { password, made_up: false },
    })
}

/// A password that is typed twice. One that is too short, or mistyped the second time, is asked for again.
fn asked_twice(name: &str, ask: &mut dyn FnMut(&str) -> Result<String, String>) -> Result<String, String> {
    for _ in 0..PASSWORD_TRIES {
        let password = ask(&format!("Password for {name} (empty: one is made up): "))?;
        if password.is_empty() {
            return Ok(password);
        }
        if let Err(error) = check_new_password(&password) {
            tell(&format!("{error}.\n"));
            continue;
        }
        if ask("The same again: ")? == password {
            return Ok(password);
        }
        tell("The two passwords are not the same.\n");
    }
    Err("no password was given".to_owned())
}

/// Asks for one line that is shown as it is typed.
fn ask_line(question: &str) -> Result<String, String> {
    tell(question);
    line()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of typing these.
    fn typed(lines: &[&str]) -> (Result<String, String>, usize) {
        let mut at = 0;
        let password = asked_twice("anna", &mut |_| {
            at += 1;
            Ok(lines.get(at - 1).copied().unwrap_or("something else").to_owned())
        });
        (password, at)
    }

    /// A second password that was mistyped ended the command.
    #[test]
    fn a_mistyped_password_is_asked_for_again() {
        assert_eq!(
            typed(&["correct horse", "correct house", "correct horse", "correct horse"]).0.unwrap(),
            "correct horse"
        );
        assert_eq!(typed(&["short", "long enough", "long enough"]).0.unwrap(), "long enough");
        assert_eq!(typed(&[""]).0.unwrap(), "");
        let (failed, asked) = typed(&["short"; 100]);
        assert_eq!((failed.unwrap_err().as_str(), asked), ("no password was given", 5));
    }
}
