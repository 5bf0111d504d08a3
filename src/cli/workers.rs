//! `snug workers`.

use serde_json::Value;

use super::admin_socket::{self, Local};
use super::{load, print, text};
use crate::base::{bounded, span, timestamp};
use crate::config::Overrides;
use crate::serve;

/// The width of the column that says what a worker does.
const NOW_CHARS: usize = 40;
/// An error's line, beside its time.
const ERROR_CHARS: usize = 74;

/// Prints the background workers of the running server. A server that does not run has none.
pub fn workers(overrides: &Overrides) -> Result<(), String> {
    let config = load(overrides)?;
    if let Some(mut local) = Local::running(&config)? {
        return Ok(print(&table(&local.get("/workers")?)));
    }
    match serve::has_data(&config.data_dir).map_err(|error| error.to_string())? {
        true => Err("the server is not running, so no background worker is either".to_owned()),
        false => Err(admin_socket::nobody_home(&config)),
    }
}

fn table(answer: &Value) -> String {
    let (now_ms, workers) = (answer["now_ms"].as_u64().unwrap_or(0), answer["workers"].as_array());
    let workers = workers.map_or(&[][..], Vec::as_slice);
    if workers.is_empty() {
        return "There is no background worker.\n".to_owned();
    }
    let head = ("worker", "now", "done", "restarts", "next run");
    let mut out = format!("{:<20}  {:<NOW_CHARS$}  {:>11}  {:>8}  {}\n", head.0, head.1, head.2, head.3, head.4);
    for worker in workers {
        let next = worker["next_ms"]
            .as_u64()
            .map_or(String::new(), |next| format!("in {}", span(next.saturating_sub(now_ms))));
        let (name, done, restarts) = (text(worker, "name"), number(worker, "done"), number(worker, "restarts"));
        let line = format!("{name:<20}  {:<NOW_CHARS$}  {done:>11}  {restarts:>8}  {next}", doing(worker, now_ms));
        out.push_str(line.trim_end());
        out.push('\n');
        if let Some(error) = worker["error"].as_object() {
            let at = timestamp(error["at_ms"].as_u64().unwrap_or(0));
            let what = bounded(error["text"].as_str().unwrap_or("?"), ERROR_CHARS);
            out.push_str(&format!("  {at}  {what}\n"));
        }
    }
    out
}

fn doing(worker: &Value, now_ms: u64) -> String {
    let time = span(now_ms.saturating_sub(number(worker, "since_ms")));
    match text(worker, "doing") {
        "working" => {
            let since = format!(", {time}");
            bounded(text(worker, "on"), NOW_CHARS - since.len()) + &since
        }
        "panicked" => format!("waits after a panic, {time}"),
        "ended" => format!("all done, {time} ago"),
        _ => format!("idle for {time}"),
    }
}

fn number(worker: &Value, field: &str) -> u64 {
    worker[field].as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn workers_fit_a_terminal() {
        let answer = json!({ "now_ms": 1_000_000_000, "workers": [
            { "name": "federation sender", "doing": "working", "on": "x".repeat(60), "since_ms": 1_000, "done": u32::MAX,
              "restarts": 12, "next_ms": null, "error": { "at_ms": 900_000_000, "text": "é".repeat(300) } },
            { "name": "state sweep", "doing": "idle", "since_ms": 999_000_000, "done": 0, "restarts": 0,
              "next_ms": 1_086_400_000, "error": null },
            { "name": "interrupted joins", "doing": "ended", "since_ms": 0, "done": 2, "restarts": 0 },
        ] });
        let table = table(&answer);
        assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
        assert!(table.contains("state sweep           idle for 16 min"), "{table}");
        assert!(table.contains("         0  in 24 h\n") && table.contains("all done, 11 d ago"), "{table}");
        assert!(table.contains("  1970-01-11T10:00:00Z  ééé"), "{table}");
    }

    #[test]
    fn an_empty_list_says_so() {
        assert_eq!(table(&json!({ "workers": [], "now_ms": 1 })), "There is no background worker.\n");
    }
}
