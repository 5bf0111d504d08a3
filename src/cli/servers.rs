//! `snug servers`.

use serde_json::{Value, json};

use super::admin_socket::Local;
use super::arguments::ServersCommand;
use super::{load, with_local};
use crate::config::Overrides;
use crate::remote::encode;

pub fn servers(overrides: &Overrides, command: Option<ServersCommand>) -> Result<(), String> {
    with_local(Local::connect(&load(overrides)?)?, |local| match command {
        None => denied(local),
        Some(ServersCommand::Deny { server }) => {
            set(local, &server, true)?;
            Ok(format!("Nothing is exchanged with {server} any more.\n"))
        }
        Some(ServersCommand::LetIn { server }) => {
            set(local, &server, false)?;
            let left = local.get("/servers/denied")?;
            Ok(match names(&left).next() {
                None => format!("{server} is not denied.\n"),
                Some(_) => format!(
                    "{server} is not denied by its name; a pattern may: `snug servers` shows those that are left.\n"
                ),
            })
        }
    })
}

fn set(local: &mut Local, server: &str, denied: bool) -> Result<(), String> {
    if server.contains(['*', '?', '!']) {
        return Err("a pattern is written into federation.denied_servers, in the config file or on the page".to_owned());
    }
    if local.is_stopped() {
        return Err("the server does not run: change federation.denied_servers in the config file".to_owned());
    }
    local.post(&format!("/servers/{}/deny", encode(server)), json!({ "denied": denied }))?;
    Ok(())
}

fn denied(local: &mut Local) -> Result<String, String> {
    let found = local.get("/servers/denied")?;
    let list: String = names(&found).map(|name| format!("{name}\n")).collect();
    Ok(if list.is_empty() { "No server is denied.\n".to_owned() } else { list })
}

fn names(found: &Value) -> impl Iterator<Item = &str> {
    found["denied"].as_array().into_iter().flatten().filter_map(Value::as_str)
}
