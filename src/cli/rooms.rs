//! `snug rooms`.

use serde_json::{Value, json};

use super::admin_socket::Local;
use super::arguments::RoomsCommand;
use super::{load, text, with_local};
use crate::base::date;
use crate::budget::human;
use crate::config::Overrides;
use crate::remote::encode;

pub fn rooms_command(overrides: &Overrides, command: Option<RoomsCommand>) -> Result<(), String> {
    if let Some(RoomsCommand::Allow { room, .. } | RoomsCommand::Cancel { room }) = &command
        && !room.starts_with('!')
    {
        return Err(format!(
            "{room:?} is not a room ID such as '!big:example.org'; `snug rooms` lists the rooms known here"
        ));
    }
    with_local(Local::connect(&load(overrides)?)?, |local| match command {
        None => rooms(local),
        Some(RoomsCommand::Allow { room, remove }) => allow(local, &room, !remove),
        Some(RoomsCommand::Cancel { room }) => cancel(local, &room),
    })
}

fn rooms(local: &mut Local) -> Result<String, String> {
    let head = format!("{:<50} {:>8} {:>9} {:>11}  {}\n", "room", "members", "events", "bytes", "name");
    let mut out = head.clone();
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
    if out == head {
        out = "No room is known here.\n".to_owned();
    }
    for join in joins.iter().filter_map(Value::as_str) {
        out.push_str(&format!("joining {join}\n"));
    }
    for room in &asked {
        let (room_id, asked) = (text(room, "room_id"), &room["asked"]);
        out.push_str(&match (asked["allowed"] == true, text(asked, "user_id")) {
            (true, _) => format!("{room_id} may be joined whatever its size\n"),
            (false, user) => format!(
                "{room_id} waits for your permission: {user} asked on {}, about {} events\n",
                date(asked["at_ms"].as_u64().unwrap_or(0)),
                asked["events"]
            ),
        });
    }
    Ok(out)
}

fn allow(local: &mut Local, room: &str, allowed: bool) -> Result<String, String> {
    local.post(&format!("/rooms/{}/allow", encode(room)), json!({ "allowed": allowed }))?;
    Ok(match allowed {
        true => format!("{room} may be joined, whatever its size.\n"),
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
