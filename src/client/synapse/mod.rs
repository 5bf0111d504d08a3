//! Synapse's administration API, `/_synapse/admin/`, as far as what it speaks of exists here: operators come with tools that
//! were written for it. Which calls there are stands in `routes.rs`.
//!
//! Every call needs an administrator's access token, but for the registration with a shared secret. What Snug has no equal for is
//! not answered as if it had been done: it is `M_UNRECOGNIZED`, or an error that says why.

use ruma::OwnedUserId;
use serde_json::json;

use super::{Client, Error, auth};
use crate::budget::Grant;
use crate::http::{ErrorResponse, Request, Response, StatusCode};
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
mod tokens;
mod users;

pub use register::Nonces;

/// Rows of one answer. Who asks for more is given these, and where the next ones begin.
const ROWS_MAX: usize = 100;
/// What rows take in an answer, in bytes: behind the row that reaches it the page ends.
const ROWS_BYTES_MAX: usize = 32 * 1024;
/// Memory of one call. First the keys by which 256 rows are put in order, 232 bytes each at most: 58 KiB, which go before the rows
/// are read. Then the rows of a page, which end behind 32 KiB with the row that reaches it, 60 KiB at most if its members chose all of
/// its texts as long as they can be; each goes when it is written, into a text that is a fifth longer: 112 KiB.
const CALL_BYTES: u64 = 128 * 1024;
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

/// A list as the text of a member of an object, of as many rows as an answer bears; and how many those are.
fn list<T>(name: &str, found: Vec<T>, shown: impl Fn(&T) -> serde_json::Value) -> (String, usize) {
    let (mut text, mut count) = (format!("\"{name}\":["), 0);
    // Each row goes when it is written: there are never two copies of all of them.
    for row in found {
        if count > 0 {
            text.push(',');
        }
        text.push_str(&shown(&row).to_string());
        count += 1;
        if text.len() >= ROWS_BYTES_MAX {
            break;
        }
    }
    text.push(']');
    (text, count)
}

/// A truth value in the query. 400 `M_INVALID_PARAM` for what is none.
fn flag(request: &Request, name: &str) -> Result<Option<bool>, ErrorResponse> {
    request.query_as::<bool>(name)
}

/// An object with a list and some members beside it.
fn answer(list: String, rest: serde_json::Value, grant: Grant) -> Result<Response, Error> {
    let rest = rest.to_string();
    let rest = rest.strip_prefix('{').filter(|rest| *rest != "}");
    let text = match rest {
        Some(rest) => format!("{{{list},{rest}"),
        None => format!("{{{list}}}"),
    };
    Ok(Response::charged(StatusCode::OK, "application/json", text.into_bytes(), grant))
}

/// The answer to a call that was carried out and has nothing to say.
fn done() -> Response {
    Response::json(&json!({}))
}
