//! The command `snug notice`.

use std::sync::Arc;

use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::json;

use super::users::user_called;
use super::{Admin, error::Error};
use crate::flow::NOTICE_BYTES_MAX;
use crate::http::{ErrorResponse, Request, Response};
use crate::user::Standing;

/// Accounts told by one request. Each is up to four commits when it is its first notice, so that a page takes some seconds
/// on a slow card.
const TOLD_ROWS: usize = 20;
/// A page of accounts and a text.
const BODY_BYTES_MAX: u64 = 4 * NOTICE_BYTES_MAX as u64;

#[derive(Deserialize)]
struct One {
    user: String,
    text: String,
}

/// `POST /notices`: tells one user something.
pub async fn one(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let One { user, text } = request.json_max(BODY_BYTES_MAX).await?;
    check(&text)?;
    let user_id = user_called(&admin, &user)?;
    admin.notices.tell(&user_id, &text).await?;
    Ok(Response::json(&json!({ "user_id": user_id })))
}

#[derive(Deserialize)]
struct All {
    text: String,
    #[serde(default)]
    after: Option<OwnedUserId>,
}

/// `POST /notices/all`: tells a page of accounts something, those after `after`. `next` is set when more may follow. One
/// who could not be told is in `failed`, and the others are told all the same.
pub async fn all(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let All { text, after } = request.json_max(BODY_BYTES_MAX).await?;
    check(&text)?;
    let found = admin.users.list(after.as_deref(), TOLD_ROWS).await?;
    let next = (found.len() == TOLD_ROWS).then(|| found.last().map(|account| account.user_id.clone())).flatten();
    let (mut told, mut failed) = (0, Vec::new());
    for account in found.iter().filter(|account| account.standing == Standing::Active) {
        if admin.users.sends_notices(&account.user_id).await? {
            continue;
        }
        match admin.notices.tell(&account.user_id, &text).await {
            Ok(_) => told += 1,
            Err(why) => failed.push(json!({ "user_id": account.user_id, "error": why.to_string() })),
        }
    }
    Ok(Response::json(&json!({ "told": told, "failed": failed, "next": next })))
}

fn check(text: &str) -> Result<(), ErrorResponse> {
    match text.trim().len() {
        0 => Err(ErrorResponse::invalid_param("the text of the notice is empty")),
        _ if text.len() > NOTICE_BYTES_MAX => {
            Err(ErrorResponse::invalid_param(format!("a notice has at most {NOTICE_BYTES_MAX} bytes")))
        }
        _ => Ok(()),
    }
}
