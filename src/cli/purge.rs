//! `snug purge` and `snug disk`.

use std::time::Duration;

use serde_json::{Value, json};

use super::admin_socket::Local;
use super::arguments::PurgeCommand;
use super::{load, tell, text, with_local};
use crate::base::{sort_few, sort_few_by};
use crate::budget::human;
use crate::config::Overrides;
use crate::remote::encode;

/// Rooms that `snug disk` shows.
const ROOMS_SHOWN: usize = 20;
/// How often it is asked how far a stopped server's purge is.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is asked how far the database is, and after how many times it is said.
const SPACE_LOOK: Duration = Duration::from_secs(1);
const SPACE_SAYS: u32 = 10;

pub fn purge(overrides: &Overrides, command: Option<PurgeCommand>) -> Result<(), String> {
    if let Some(PurgeCommand::Room { room, .. }) = &command
        && !room.starts_with('!')
    {
        return Err(format!(
            "{room:?} is not a room ID such as '!big:example.org'; `snug rooms` lists the rooms known here"
        ));
    }
    with_local(Local::connect(&load(overrides)?)?, |local| match command {
        None => under_way(local),
        Some(PurgeCommand::Room { room, force }) => {
            local.post(&format!("/rooms/{}/purge", encode(&room)), json!({ "force": force }))?;
            Ok(begun(
                local,
                &match force {
                    true => format!("People here leave {room}, and it is removed once other servers know."),
                    false => format!("{room} is being removed."),
                },
            ))
        }
        Some(PurgeCommand::Left) => {
            let done = local.post("/purge/left", json!({}))?;
            Ok(match done["count"].as_u64().unwrap_or(0) {
                0 => "There is no room that nobody here is in.\n".to_owned(),
                1 => begun(local, "1 room is being removed."),
                count => begun(local, &format!("{count} rooms are being removed.")),
            })
        }
        // A stopped server has nobody who would go on with it, and the command waits for its end.
        Some(PurgeCommand::History { .. }) if local.is_stopped() => {
            Err("the server is not running, and old messages are removed in steps while it runs: start it first"
                .to_owned())
        }
        Some(PurgeCommand::History { room, days }) => {
            let asked = json!({ "days": days, "room_id": room });
            let done = local.post_long("/purge/history", asked)?;
            let number = |field: &str| done[field].as_u64().unwrap_or(0);
            Ok(match number("events") {
                0 => "No message is as old as that.\n".to_owned(),
                count => format!(
                    "{count} messages were removed, {}.\n{}",
                    human(number("bytes")),
                    free(&local.get("/purge")?)
                ),
            })
        }
        Some(PurgeCommand::Devices { unused_days }) => {
            let done = local.post_long("/purge/devices", json!({ "unused_days": unused_days }))?;
            Ok(format!("{} devices were removed.\n", done["count"].as_u64().unwrap_or(0)))
        }
        // The same.
        Some(PurgeCommand::Space) if local.is_stopped() => {
            Err("the server is not running: `snug compact` gives the space back then".to_owned())
        }
        Some(PurgeCommand::Space) => {
            local.post("/purge/space", json!({}))?;
            space(local)
        }
        Some(PurgeCommand::Media { unused_days }) => super::media::remove_remote(local, unused_days),
    })
}

/// Waits until the database is smaller, and tells by how much.
fn space(local: &mut Local) -> Result<String, String> {
    for look in 1.. {
        local.wait(SPACE_LOOK);
        let space = &local.get("/purge")?["space"];
        let number = |field: &str| human(space[field].as_u64().unwrap_or(0));
        if space["is_under_way"] != true {
            let sizes =
                format!("The database's file had {}, and has {} now.", number("before_bytes"), number("after_bytes"));
            return match space["outcome"].as_str() {
                Some("failed") => {
                    Err(format!("the database could not be made smaller: `snug workers` says why. {sizes}"))
                }
                Some("held") => Ok(format!(
                    "{sizes} Something was read all the while, so what is free at its end goes back when the server is next \
                     stopped.\n"
                )),
                _ => Ok(format!("{sizes}\n")),
            };
        }
        if look % SPACE_SAYS == 0 {
            tell(&format!("… {:.0} % of the rows\n", space["part"].as_f64().unwrap_or(0.0) * 100.0));
        }
    }
    Ok(String::new())
}

fn begun(local: &mut Local, what: &str) -> String {
    match local.is_stopped() {
        true => format!("{what} It goes on when the server starts.\n"),
        false => {
            // Small ones are gone at once.
            local.wait(LOOK);
            format!("{what} `snug purge` says how far it is.\n")
        }
    }
}

fn under_way(local: &mut Local) -> Result<String, String> {
    let found = local.get("/purge")?;
    let mut out = String::new();
    for room in found["rooms"].as_array().into_iter().flatten() {
        let part = room["part"].as_f64().unwrap_or(0.0) * 100.0;
        let (events, rows) = (&room["events"], &room["rows"]);
        out += &format!("{:<50} {part:>3.0} %  {events} events, {rows} rows removed\n", text(room, "room_id"));
    }
    if out.is_empty() {
        out = "No room is being removed.\n".to_owned();
    }
    if found["space"]["is_under_way"] == true {
        let part = found["space"]["part"].as_f64().unwrap_or(0.0) * 100.0;
        out += &format!("The database is being made smaller: {part:.0} % of its rows.\n");
    }
    Ok(out + &free(&found))
}

/// What becomes of the space.
fn free(answer: &Value) -> String {
    format!(
        "The database's file has {}. What rows leave free in it is used again at once; `snug purge space` gives it back to the \
         disk, and follows by itself when much was removed.\n",
        human(answer["database_bytes"].as_u64().unwrap_or(0))
    )
}

/// Prints what takes the space: files, tables, rooms.
pub fn disk(overrides: &Overrides) -> Result<(), String> {
    with_local(Local::connect(&load(overrides)?)?, |local| {
        let media = local.get("/media")?;
        let number = |value: &Value, field: &str| value[field].as_u64().unwrap_or(0);
        let mut tables: Vec<(String, u64, u64)> = Vec::new();
        let (mut from, mut database) = ("0-".to_owned(), Value::Null);
        loop {
            let found = local.get(&format!("/disk?from={from}"))?;
            let part = &found["part"];
            if part.is_null() {
                database = found;
                break;
            }
            let (name, rows, bytes) = (text(part, "table").to_owned(), number(part, "rows"), number(part, "bytes"));
            match tables.last_mut() {
                Some(last) if last.0 == name => (last.1, last.2) = (last.1 + rows, last.2 + bytes),
                _ => tables.push((name, rows, bytes)),
            }
            match part["next"].as_str() {
                Some(next) => from = next.to_owned(),
                None => break,
            }
        }
        let used: u64 = tables.iter().map(|(_, _, bytes)| bytes).sum();
        tables.retain(|(_, rows, _)| *rows > 0);
        sort_few_by(&mut tables, |(_, _, bytes)| std::cmp::Reverse(*bytes));
        let mut out = format!(
            "files                     {:>11}\ndatabase                  {:>11}\n  rows in it              {:>11}\n  pages, and free \
             space   {:>11}\nfree on the disk          {:>11}\n\n{:<24} {:>11} {:>11}\n",
            human(number(&media, "disk_bytes")),
            human(number(&database, "database_bytes")),
            human(used),
            human(number(&database, "database_bytes").saturating_sub(used)),
            human(number(&media, "free_bytes")),
            "table",
            "rows",
            "bytes",
        );
        for (name, rows, bytes) in &tables {
            out += &format!("{name:<24} {rows:>11} {:>11}\n", human(*bytes));
        }
        out += &format!("\n{:<50} {:>9} {:>11}\n", "the largest rooms, by their messages", "events", "bytes");
        let mut rooms: Vec<(u64, u64, String, String)> = Vec::new();
        local.pages("/rooms", &mut |page| {
            for room in page["rooms"].as_array().into_iter().flatten() {
                let id = text(room, "room_id").to_owned();
                let about = match room["resident"] == true {
                    true => room["name"].as_str().unwrap_or_default(),
                    false => "nobody here is in it",
                };
                rooms.push((number(room, "bytes"), number(room, "events"), id, about.to_owned()));
            }
            sort_few(&mut rooms, |one, other| other.cmp(one));
            rooms.truncate(ROOMS_SHOWN);
        })?;
        for (bytes, events, id, about) in &rooms {
            let line = format!("{id:<50} {events:>9} {:>11}  {about}", human(*bytes));
            out += &format!("{}\n", line.trim_end());
        }
        Ok(out)
    })
}
