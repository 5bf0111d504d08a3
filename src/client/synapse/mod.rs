//! Synapse's administration API, `/_synapse/admin/`, as far as what it speaks of exists here: operators come with tools that
//! were written for it. Which calls there are stands in `routes.rs`, a matter a file beside it: users and their devices, what one
//! account may do, rooms, looking into them, deleting them and their history, files, reports, registration with the shared secret and
//! with tokens, other servers, statistics, notices and the rest. Names, types and statuses are those of Synapse's answers; where they
//! differ `tests/peers/admin.py`, which asks both, says why.
//!
//! Every call needs an administrator's access token, but for the registration with a shared secret and the server's version. What Snug
//! has no equal for is not answered as if it had been done: it is `M_UNRECOGNIZED`, or an error that says why. These are addresses and
//! identities of accounts elsewhere, the validity of accounts, `force_purge`, deleting extremities, how often somebody invited or
//! joined, the log of quarantined files, and switching off what works in the background.
//!
//! A list is one page of at most `ROWS_MAX` rows: their numbers are put in order first, and then each row is read when it is written.

use ruma::OwnedUserId;
use serde_json::{Value, json};

use super::{Client, Error, auth};
use crate::base::{self, ChunkError};
use crate::budget::Grant;
use crate::http::{ErrorResponse, Request, Response};
use crate::user::Requester;

mod federation;
mod look;
mod media;
mod moderation;
mod register;
mod removal;
mod reports;
mod rooms;
pub mod routes;
mod server;
mod statistics;
mod tokens;
mod users;

pub use register::Nonces;

/// Rows of one answer. Who asks for more is given these, and where the next ones begin.
const ROWS_MAX: usize = 500;
/// The same where rows are found by names or ids, not numbers: 28 KiB of them.
const NAMED_ROWS_MAX: usize = 96;
/// A list's answer is sent in pieces of this size, in bytes, and the row that goes beyond it.
const PIECE_BYTES: usize = 2 * 1024;
/// Memory of a call that lists. First the places by which 512 rows are put in order, of 48 bytes each, and the numbers of the 500 that
/// are listed: 28 KiB; or 96 names. Then these numbers, and a row at a time: a room has nine texts of 255 characters at most, 9 KiB, an
/// account an id, a name and a picture's address, 2.3 KiB. It is there as it was read, as JSON's values, and in the piece, where a
/// control character takes six bytes: 4 + 2 × 9 + 16 KiB.
const CALL_BYTES: u64 = 40 * 1024;
/// Memory of a call whose answer is written piece by piece: a piece of 16 KiB, an item beyond it, and what is read ahead.
const STREAM_BYTES: u64 = 64 * 1024;

/// The administrator who asks. 403 `M_FORBIDDEN` for anybody else.
async fn administrator(client: &Client, request: &Request) -> Result<Requester, Error> {
    let requester = auth::requester(client, request).await?;
    match requester.is_admin {
        true => Ok(requester),
        false => Err(ErrorResponse::forbidden("You are not a server admin").into()),
    }
}

/// As [`administrator`], with the memory for one call.
async fn administrator_with_memory(client: &Client, request: &Request) -> Result<(Requester, Grant), Error> {
    let requester = administrator(client, request).await?;
    Ok((requester, client.budget.account("admin").take(CALL_BYTES).await?))
}

/// As [`administrator`], with the memory for an answer that is written piece by piece.
async fn administrator_with_stream(client: &Client, request: &Request) -> Result<(Requester, Grant), Error> {
    let requester = administrator(client, request).await?;
    Ok((requester, client.budget.account("admin").take(STREAM_BYTES).await?))
}

/// The user in the path. 400 `M_INVALID_PARAM` for what is no user ID.
fn user(request: &Request) -> Result<OwnedUserId, ErrorResponse> {
    request.param_as("user_id")
}

/// The local user in the path, whether there is an account or not. 400 `M_UNKNOWN` for a user of another server.
fn local_user(client: &Client, request: &Request) -> Result<OwnedUserId, ErrorResponse> {
    let user_id = user(request)?;
    match user_id.server_name() == client.users.server() {
        true => Ok(user_id),
        false => Err(ErrorResponse::bad("M_UNKNOWN", "Only users of this server can be looked up or changed here")),
    }
}

/// A page in a list by offset.
#[derive(Debug, Clone, Copy)]
struct Page {
    from: usize,
    most: usize,
    backwards: bool,
}

impl Page {
    /// `from`, `limit` and `dir` of the query. 400 `M_INVALID_PARAM` for what is none.
    fn of(request: &Request) -> Result<Page, ErrorResponse> {
        let from = request.query_as::<u32>("from")?.unwrap_or(0) as usize;
        let limit = request.query_as::<u32>("limit")?.unwrap_or(ROWS_MAX as u32) as usize;
        let backwards = match request.query("dir").as_deref() {
            None | Some("f") => false,
            Some("b") => true,
            Some(_) => return Err(ErrorResponse::invalid_param("dir is \"f\" or \"b\"")),
        };
        Ok(Page { from, most: limit.min(ROWS_MAX), backwards })
    }
}

/// Makes the row of a list that stands at a place; none where it is gone since the places were looked up. It may block.
type Row = Box<dyn FnMut(usize) -> Result<Option<Value>, ChunkError> + Send>;

/// An object with a list of so many rows and some members beside it. Each row is read when it is written, so that a page has all rows
/// that were asked for however long they are, and nobody who takes it slowly keeps the database from using its pages again.
fn listed(grant: Grant, name: &'static str, many: usize, rest: Value, mut row: Row) -> Response {
    Response::stream(
        grant,
        base::written(async move |pen| {
            pen.text(&format!("{{\"{name}\":["));
            let mut first = true;
            for at in 0..many {
                if let Some(value) = row(at)? {
                    pen.with(|out| {
                        base::comma(out, &mut first);
                        serde_json::to_writer(out, &value)
                    })?;
                }
                pen.pause_at(PIECE_BYTES).await;
            }
            let rest = rest.to_string();
            match rest.strip_prefix('{').filter(|rest| *rest != "}") {
                Some(rest) => pen.text(&format!("],{rest}")),
                None => pen.text("]}"),
            }
            Ok(())
        }),
    )
}

/// The members beside a list: how many rows there are in all, and where the next page begins.
fn beside(page: Page, count: usize, total: usize, next: fn(usize) -> Value) -> Value {
    let mut rest = json!({ "total": total });
    if page.from + count < total && count > 0 {
        rest["next_token"] = next(page.from + count);
    }
    rest
}

/// A truth value in the query. 400 `M_INVALID_PARAM` for what is none.
fn flag(request: &Request, name: &str) -> Result<Option<bool>, ErrorResponse> {
    request.query_as::<bool>(name)
}

/// The answer to a call that was carried out and has nothing to say.
fn done() -> Response {
    Response::json(&json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Profile;

    #[test]
    fn two_lists_fit_beside_a_command_under_every_budget() {
        for name in Profile::names() {
            let profile = Profile::named(name).unwrap();
            // The socket for commands has the place of the next one, whether anybody comes or not.
            let needed = profile.connection_bytes(false) + 2 * CALL_BYTES;
            assert!(needed <= profile.account("admin"), "{name}: {needed} bytes");
        }
    }
}
