//! The memory use of the running server.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::json;

use super::{Admin, error::Error};
use crate::budget::{Granted, human, meter};
use crate::http::{Request, Response};

/// `GET /budget`: the accounts with their high-water marks, and the figures of the kernel.
pub async fn table(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    let mut table = admin.budget.table();
    let resident = meter::resident();
    let line = |name: &str, bytes: u64| format!("{name:<22} {:>11}\n", human(bytes));
    let _ = write!(
        table,
        "\n{}{}{}{}",
        line("resident now", resident.now_bytes),
        line("resident at most", resident.high_water_bytes),
        line("heap now", meter::live_bytes()),
        line("heap at most", meter::high_water_bytes()),
    );
    let lagging = admin.sender.lagging();
    let _ = writeln!(table, "servers with undelivered messages: {lagging}");
    let (profile, granted) = (admin.budget.profile(), Granted::now());
    let _ = writeln!(table, "as the server sees it: {granted}");
    Ok(Response::json(&json!({
        "table": table, "resident_bytes": resident.now_bytes, "resident_bytes_max": resident.high_water_bytes,
        "text_bytes_max": meter::text().high_water_bytes, "beside_bytes_max": meter::beside().high_water_bytes,
        "anonymous_bytes_max": meter::anonymous().high_water_bytes,
        "profile": profile.name, "total": profile.total, "granted": granted.to_string(),
        "warning": granted.warning(profile),
    })))
}
