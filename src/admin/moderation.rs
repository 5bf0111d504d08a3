//! The commands of `snug moderation`: the policy lists that the server follows, and whom their rules kept out.

use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::{Admin, error::Error, page};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::{PolicyHits, PolicyList, PolicyRule, Rooms};

/// Rules of one answer: of the longest, 700 bytes each, the rows and their text are 32 KiB.
const ROWS: usize = 20;

/// What the owner is shown first.
#[derive(Debug, Serialize)]
pub struct Followed {
    pub lists: Vec<PolicyList>,
    /// What is not all right with them, a sentence each.
    pub wrong: Vec<String>,
}

/// The lists that are followed, with the number of their rules.
pub async fn followed(rooms: &Rooms) -> Result<Followed, Error> {
    let (lists, rooms) = (rooms.policy_lists().await?, rooms.clone());
    Ok(Followed { lists, wrong: crate::base::blocking(move || rooms.policy_findings()).await? })
}

/// `GET /moderation`
pub async fn lists(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    Ok(page(&admin, &followed(&admin.rooms).await?).await?)
}

/// `GET /moderation/hits?after=…`: what rules kept out, and how often.
pub async fn hits(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let after = place(&request)?.unwrap_or_default();
    admin.rooms.write_policy_hits().await?;
    let (hits, next): (Vec<PolicyHits>, _) = admin.rooms.policy_hits(after, ROWS).await?;
    Ok(page(&admin, &json!({ "hits": hits, "next": next })).await?)
}

/// `GET /moderation/rules/{list}?after=…`
pub async fn rules(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let after = place(&request)?;
    let (rules, next): (Vec<PolicyRule>, _) = admin.rooms.policy_rules(request.param("list"), after, ROWS).await?;
    Ok(page(&admin, &json!({ "rules": rules, "next": next })).await?)
}

/// The key behind which the page begins, in hex.
fn place(request: &Request) -> Result<Option<Vec<u8>>, ErrorResponse> {
    let Some(text) = request.query_as::<String>("after")? else { return Ok(None) };
    let digits = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    Ok(Some((0..text.len()).step_by(2).map_while(digits).collect()))
}
