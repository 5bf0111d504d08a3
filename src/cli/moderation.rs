//! `snug moderation`.

use serde_json::Value;

use super::admin_socket::Local;
use super::arguments::ModerationCommand;
use super::{load, text, with_local};
use crate::base::timestamp;
use crate::config::Overrides;
use crate::remote::encode;

pub fn moderation(overrides: &Overrides, command: Option<ModerationCommand>) -> Result<(), String> {
    with_local(Local::connect(&load(overrides)?)?, |local| match command {
        None => report(local),
        Some(ModerationCommand::Rules { list }) => rules(local, &list),
    })
}

fn report(local: &mut Local) -> Result<String, String> {
    let found = local.get("/moderation")?;
    let mut out = String::new();
    for list in found["lists"].as_array().into_iter().flatten() {
        out.push_str(&list_line(list));
    }
    for wrong in found["wrong"].as_array().into_iter().flatten() {
        out.push_str(&format!("{}\n", wrong.as_str().unwrap_or_default()));
    }
    if out.is_empty() {
        out = "No policy list is followed: moderation.policy_lists in the config file names them.\n".to_owned();
        if local.get("/servers/denied")?["denied"].as_array().is_none_or(Vec::is_empty) {
            return Ok(out);
        }
    }
    let mut hits = String::new();
    local.pages("/moderation/hits", &mut |page| {
        page["hits"].as_array().into_iter().flatten().for_each(|hit| hits.push_str(&hit_line(hit)));
    })?;
    match hits.is_empty() {
        true => out.push_str("\nNobody was kept out yet.\n"),
        false => out.push_str(&format!("\nKept out, and what last:\n{hits}")),
    }
    Ok(out)
}

fn rules(local: &mut Local, list: &str) -> Result<String, String> {
    let mut out = String::new();
    local.pages(&format!("/moderation/rules/{}", encode(list)), &mut |page| {
        page["rules"].as_array().into_iter().flatten().for_each(|rule| out.push_str(&rule_line(rule)));
    })?;
    Ok(if out.is_empty() { "The list has no rules.\n".to_owned() } else { out })
}

fn list_line(list: &Value) -> String {
    let number = |key: &str| list[key].as_u64().unwrap_or(0);
    let id = match list["called"] == list["room_id"] {
        true => String::new(),
        false => format!(" ({})", text(list, "room_id")),
    };
    let wide = match number("too_wide") {
        0 => String::new(),
        wide => format!(", {wide} of them not followed since they fit everybody"),
    };
    format!("{}{id}: {} rules{wide}\n", text(list, "called"), number("rules"))
}

fn hit_line(hit: &Value) -> String {
    let at = timestamp(hit["last_ms"].as_u64().unwrap_or(0));
    let (count, last) = (hit["count"].as_u64().unwrap_or(0), text(hit, "last"));
    format!("{count:>7}  {at}  {} {}: {last}\n", text(hit, "subject"), text(hit, "entity"))
}

fn rule_line(rule: &Value) -> String {
    let mut out = format!("{:<6}  {}", text(rule, "subject"), text(rule, "entity"));
    if rule["takedown"] == true {
        out.push_str("  (takedown)");
    }
    if rule["ignored"] == true {
        out.push_str("  (fits everybody: not followed)");
    }
    match text(rule, "reason") {
        "" => {}
        reason => out.push_str(&format!("  {reason}")),
    }
    out.push('\n');
    out
}
