//! The background workers of the running server.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Admin, error::Error};
use crate::base::{Doing, Status};
use crate::http::{Request, Response};

/// `GET /workers`: every background worker with its status, and the server's time. Times are Unix milliseconds. Bounded
/// by the number of workers, about ten, and their texts.
pub async fn list(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    let workers: Vec<_> = admin.workers.list().into_iter().map(shown).collect();
    Ok(Response::json(&json!({ "workers": workers, "now_ms": admin.clock.now_ms() })))
}

fn shown(worker: Status) -> Value {
    let (doing, on) = match worker.doing {
        Doing::Idle => ("idle", None),
        Doing::Working(on) => ("working", Some(on)),
        Doing::Panicked => ("panicked", None),
        Doing::Ended => ("ended", None),
    };
    let error = worker.error.map(|(at_ms, text)| json!({ "at_ms": at_ms, "text": text }));
    json!({
        "name": worker.name, "doing": doing, "on": on, "since_ms": worker.since_ms, "done": worker.done,
        "restarts": worker.restarts, "next_ms": worker.next_ms, "error": error,
    })
}
