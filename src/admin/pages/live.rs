//! Pages that change by themselves: server-sent events, with pieces of HTML by the ids of their elements.
//!
//! Only a page that somebody looks at asks for them, and only what differs from what was sent before is sent. At most
//! [`WATCHING_MAX`] look at once; each holds a connection and, for a moment every two seconds, [`PIECES_BYTES`] of the account
//! `admin`.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::frame::{Pieces, Visit, Visitor};
use super::{backups, home, rooms, workers};
use crate::admin::error::Error;
use crate::http::{Body, ErrorResponse, Response, StatusCode, channel};

/// Two administrators with a phone and a computer each; a small board has fifteen connections.
const WATCHING_MAX: usize = 4;
const EVERY: Duration = Duration::from_secs(2);
/// After this long the browser asks again, which also shows that it is still signed in.
const LIFE: Duration = Duration::from_secs(10 * 60);
/// Memory for the pieces of a page, and their event: 27 accounts are 12 KiB.
const PIECES_BYTES: u64 = 32 * 1024;
/// Something is sent at least this often, so that a browser that went away is noticed.
const QUIET_ROUNDS_MAX: u32 = 10;

/// The pages that have such pieces.
const PARTS: [&str; 4] = ["home", "rooms", "backups", "workers"];

/// The pieces of a page that change by themselves; none for a name that no page has.
async fn pieces(visitor: &Visitor, part: &str) -> Result<Option<Pieces>, Error> {
    let admin = &visitor.admin;
    Ok(match part {
        "home" => Some(home::pieces(admin).await?),
        "rooms" => Some(rooms::pieces(admin, &visitor.token).await?),
        "backups" => Some(backups::pieces(admin, &visitor.token).await?),
        "workers" => Some(workers::pieces(admin)?),
        _ => None,
    })
}

/// `GET live/{part}`: the events. 204 when there are too many who look already: the script asks again after a while.
pub async fn events(visit: Visit) -> Result<Response, Error> {
    let part = visit.request.param("part").to_owned();
    if !PARTS.contains(&part.as_str()) {
        return Err(ErrorResponse::not_found("no page has such pieces").into());
    }
    let Some(watching) = visit.admin.page.watch(WATCHING_MAX) else {
        return Ok(Response::empty(StatusCode::NO_CONTENT));
    };
    // A browser that goes away is noticed at once, and the place of its connection is one that can be asked for.
    visit.request.cancel_when_peer_leaves();
    let (sender, body) = channel(None);
    tokio::spawn(async move {
        let _watching = watching;
        let clock = visit.admin.clock.clone();
        let end = clock.instant() + LIFE;
        let (mut before, mut quiet) = (BTreeMap::new(), 0);
        // When the stream has ended the browser asks for the next after so many milliseconds.
        if !sender.send("retry: 5000\n\n".into()).await {
            return;
        }
        while clock.instant() < end {
            let next = match next(&visit, &part, &mut before).await {
                Some(text) => {
                    quiet = 0;
                    Some(text)
                }
                None => {
                    quiet += 1;
                    (quiet % QUIET_ROUNDS_MAX == 0).then(|| ":\n\n".to_owned())
                }
            };
            if let Some(text) = next
                && !sender.send(text.into()).await
            {
                return;
            }
            tokio::select! {
                () = clock.sleep(EVERY) => {}
                // Who goes from page to page leaves one behind each time: its place is another's at once.
                () = sender.closed() => return,
                // The place of the connection is needed, or the server stops.
                () = visit.request.hurried() => break,
            }
        }
        sender.finish().await;
    });
    Ok(stream(body))
}

/// The event with what has changed, when there is something and memory for it.
async fn next(visitor: &Visitor, part: &str, before: &mut BTreeMap<&'static str, u64>) -> Option<String> {
    let account = visitor.admin.budget.account("admin");
    // What nobody asked for waits for the next round, and is no refusal.
    if account.used() + PIECES_BYTES > account.limit() {
        return None;
    }
    let _grant = account.try_take(PIECES_BYTES).ok()?;
    let mut pieces = pieces(visitor, part).await.ok()??;
    pieces.retain(|id, html| {
        let mut hasher = DefaultHasher::new();
        html.hash(&mut hasher);
        let hash = hasher.finish();
        before.insert(id, hash) != Some(hash)
    });
    if pieces.is_empty() {
        return None;
    }
    // JSON has no line breaks in it, as the line of an event must not.
    serde_json::to_string(&pieces).ok().map(|json| format!("data: {json}\n\n"))
}

fn stream(body: Body) -> Response {
    Response::of(StatusCode::OK, "text/event-stream", body)
        .header("cache-control", "no-store")
        .header("x-accel-buffering", "no")
        .header("x-content-type-options", "nosniff")
}

#[cfg(test)]
mod tests {
    use super::super::frame::Desk;
    use std::sync::Arc;

    use super::*;
    use crate::http::{AttemptRates, Rate};

    #[test]
    fn so_many_may_look_at_once_and_a_place_comes_back() {
        let rate = Rate { name: "looks in a test", per_second: 1.0, burst: 1.0 };
        let desk = Arc::new(Desk::new(None, AttemptRates { wrong: rate, all: rate }));
        let mut places: Vec<_> = (0..WATCHING_MAX).map(|_| desk.watch(WATCHING_MAX).unwrap()).collect();
        assert!(desk.watch(WATCHING_MAX).is_none());
        places.pop();
        places.push(desk.watch(WATCHING_MAX).unwrap());
        assert!(desk.watch(WATCHING_MAX).is_none());
    }
}
