//! `snug reports`.

use serde_json::{Value, json};

use super::admin_socket::Local;
use super::arguments::ReportsCommand;
use super::{load, text, with_local};
use crate::base::timestamp;
use crate::config::Overrides;

pub fn reports_command(overrides: &Overrides, command: Option<ReportsCommand>) -> Result<(), String> {
    with_local(Local::connect(&load(overrides)?)?, |local| match command {
        None => reports(local),
        Some(ReportsCommand::Remove { numbers, all }) => {
            let numbers = if all { each(local)?.0 } else { numbers };
            for number in &numbers {
                local.post(&format!("/reports/{number}/remove"), json!({}))?;
            }
            Ok(format!("{} removed.\n", count(numbers.len())))
        }
    })
}

fn reports(local: &mut Local) -> Result<String, String> {
    let (numbers, out) = each(local)?;
    Ok(if numbers.is_empty() { "Nothing was reported.\n".to_owned() } else { out })
}

/// The numbers of all reports, and what they say.
fn each(local: &mut Local) -> Result<(Vec<u32>, String), String> {
    let (mut numbers, mut out) = (Vec::new(), String::new());
    local.pages("/reports", &mut |page| {
        for row in page["reports"].as_array().into_iter().flatten() {
            let number = row["number"].as_u64().and_then(|number| u32::try_from(number).ok());
            numbers.extend(number);
            out.push_str(&shown(number.unwrap_or(0), &row["report"]));
        }
    })?;
    Ok((numbers, out))
}

/// A report on a line, and below it what was said.
fn shown(number: u32, report: &Value) -> String {
    let is_there = |field: &str| report[field].is_string();
    let what = match (is_there("event_id"), is_there("room_id"), is_there("user_id")) {
        (true, _, true) => {
            format!("{} by {} in {}", text(report, "event_id"), text(report, "user_id"), text(report, "room_id"))
        }
        (true, ..) => format!("{} in {}", text(report, "event_id"), text(report, "room_id")),
        (_, true, _) => format!("the room {}", text(report, "room_id")),
        _ => format!("the user {}", text(report, "user_id")),
    };
    let at = timestamp(report["at_ms"].as_u64().unwrap_or(0));
    let mut out = format!("{number:>5}  {at}  {} reports {what}\n", text(report, "by"));
    if is_there("reason") {
        out.push_str(&format!("       reason: {}\n", text(report, "reason")));
    }
    if is_there("excerpt") {
        out.push_str(&format!("       the event says: {}\n", text(report, "excerpt")));
    }
    out
}

fn count(reports: usize) -> String {
    if reports == 1 { "1 report".to_owned() } else { format!("{reports} reports") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_and_why() {
        let mut report = json!({ "at_ms": 1_000, "by": "@anna:x", "room_id": "!r:x", "event_id": "$e",
            "user_id": "@bad:y", "reason": "spam", "excerpt": "buy" });
        assert_eq!(
            shown(7, &report),
            "    7  1970-01-01T00:00:01Z  @anna:x reports $e by @bad:y in !r:x\n       reason: spam\n       the event \
             says: buy\n"
        );
        for field in ["event_id", "reason", "excerpt", "user_id"] {
            report.as_object_mut().unwrap().remove(field);
        }
        assert_eq!(shown(7, &report), "    7  1970-01-01T00:00:01Z  @anna:x reports the room !r:x\n");
    }
}
