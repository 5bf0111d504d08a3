//! The commands of `snug user`.

use std::sync::Arc;

use ruma::{OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::json;

use super::{Admin, PAGE_ROWS, addresses::PASSWORD_PATH, error::Error, page};
use crate::base::{bounded, unbroken};
use crate::budget::parse_bytes;
use crate::flow;
use crate::http::{ErrorResponse, Request, Response};
use crate::user::{Account, Login, New, Pace, QUOTA_UNLIMITED, Standing, Users};

/// `GET /users?after=@name:server`: at most a page of accounts. `next` is set when more may follow.
pub async fn list(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let after = request.query_as::<OwnedUserId>("after")?;
    let found = admin.users.list(after.as_deref(), PAGE_ROWS).await?;
    let next = (found.len() == PAGE_ROWS).then(|| found.last().map(|account| account.user_id.clone())).flatten();
    let uploaded = admin.users.uploaded_by(found.iter().map(|account| account.user_id.clone()).collect()).await?;
    let users: Vec<_> = found.iter().zip(uploaded).map(|(account, bytes)| shown(account, bytes)).collect();
    Ok(page(&admin, &json!({ "users": users, "next": next })).await?)
}

fn shown(account: &Account, uploaded_bytes: u64) -> serde_json::Value {
    let standing = match account.standing {
        Standing::Active if account.locked => "locked",
        Standing::Active if account.suspended => "suspended",
        Standing::Active => "active",
        Standing::Deactivated => "deactivated",
    };
    json!({
        "user_id": account.user_id, "created_ms": account.created_ms, "standing": standing, "admin": account.admin,
        "password": account.has_password, "uploaded_bytes": uploaded_bytes, "bot": account.bot,
    })
}

#[derive(Deserialize)]
struct Add {
    name: String,
    password: Option<String>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    bot: bool,
}

/// `POST /users`. For a bot the answer has its token.
pub async fn add(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let Add { name, password, admin: is_admin, bot } = request.json().await?;
    let localpart = localpart(&admin, &name)?;
    let user_id = admin.users.create(New { localpart, password, admin: is_admin, agreed: 0, bot, token: None }).await?;
    match bot {
        true => {
            let token = new_token(&admin.users, &user_id).await?;
            Ok(Response::json(&json!({ "user_id": user_id, "access_token": token, "device_id": BOT_DEVICE })))
        }
        false => Ok(Response::json(&json!({ "user_id": user_id, "has_admin": admin.users.has_admin().await? }))),
    }
}

/// `POST /users/{user}/token`: another token for a bot's device. The one before ends; the device and its keys stay. 400 for an
/// account that is no bot's.
pub async fn token(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let user_id = named(&admin, &request)?;
    if !account_of(&admin, &user_id).await?.bot {
        let message = format!("{user_id} is not a bot's account: its apps get their tokens by logging in");
        return Err(ErrorResponse::invalid_param(message).into());
    }
    let token = new_token(&admin.users, &user_id).await?;
    Ok(Response::json(&json!({ "user_id": user_id, "access_token": token, "device_id": BOT_DEVICE })))
}

/// The device of a bot's token. It keeps its id, and its keys, when the token is another.
const BOT_DEVICE: &str = "BOT";

async fn new_token(users: &Users, user_id: &UserId) -> Result<String, Error> {
    let login =
        Login { device_id: Some(BOT_DEVICE.to_owned()), display_name: Some("bot".to_owned()), ..Login::default() };
    Ok(users.login(user_id, login).await?.access_token)
}

async fn account_of(admin: &Admin, user_id: &UserId) -> Result<Account, Error> {
    let account = admin.users.account(user_id).await?;
    Ok(account.ok_or_else(|| ErrorResponse::not_found(format!("there is no account {user_id}")))?)
}

/// `GET /users/{user}/limit`: the rate that the account has instead of everybody's; without one `limit` is null. With
/// `messages_per_second` 0 no rate holds for it.
pub async fn limit(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let user_id = named(&admin, &request)?;
    let pace = account_of(&admin, &user_id).await?.pace;
    let limit = pace.map(|pace| json!({ "messages_per_second": pace.per_second, "burst_count": pace.burst }));
    Ok(Response::json(&json!({ "user_id": user_id, "limit": limit })))
}

#[derive(Deserialize)]
struct Limit {
    /// Absent: as everybody.
    messages_per_second: Option<u32>,
    burst_count: Option<u32>,
}

/// `POST /users/{user}/limit`: sets it at once, or with an empty object takes it away.
pub async fn set_limit(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let user_id = named(&admin, &request)?;
    let Limit { messages_per_second, burst_count } = request.json().await?;
    let pace = messages_per_second.map(|per_second| Pace { per_second, burst: burst_count.unwrap_or(per_second) });
    admin.users.set_pace(&user_id, pace).await?;
    Ok(Response::json(&json!({ "user_id": user_id })))
}

/// `GET /users/{user}/quota`: what the files of the account take, and may, in bytes; `bytes_max` is null when nothing but the disk
/// bounds them. `is_own` when that was set for this account; `everybody_max` holds for those for which it was not.
pub async fn quota(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let user_id = named(&admin, &request)?;
    let quota = account_of(&admin, &user_id).await?.quota;
    let used_bytes = admin.users.uploaded_by(vec![user_id.clone()]).await?.pop().unwrap_or(0);
    let everybody_max = admin.media.account_bytes_max();
    let bytes_max = Some(quota.unwrap_or(everybody_max)).filter(|bytes_max| *bytes_max != QUOTA_UNLIMITED);
    Ok(Response::json(&json!({
        "user_id": user_id, "used_bytes": used_bytes, "bytes_max": bytes_max, "is_own": quota.is_some(),
        "everybody_max": everybody_max,
    })))
}

#[derive(Deserialize)]
struct Quota {
    /// [`read_quota`] says how it is written.
    quota: String,
}

/// `POST /users/{user}/quota`: sets it for the next upload on.
pub async fn set_quota(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let user_id = named(&admin, &request)?;
    let Quota { quota } = request.json().await?;
    admin.users.set_quota(&user_id, read_quota(&quota)?).await?;
    Ok(Response::json(&json!({ "user_id": user_id })))
}

/// What an administrator types for a quota: a size such as `2 GiB`, `unlimited`, or `default` for what everybody has. 400 for
/// anything else.
pub fn read_quota(text: &str) -> Result<Option<u64>, ErrorResponse> {
    match text.trim().to_lowercase().as_str() {
        "default" => Ok(None),
        "unlimited" => Ok(Some(QUOTA_UNLIMITED)),
        _ => parse_bytes(text).map(Some).map_err(|_| {
            let typed = bounded(text, QUOTA_CHARS_SHOWN);
            ErrorResponse::invalid_param(format!(
                "{typed:?} is not a size such as \"2 GiB\" or \"500 MiB\", nor unlimited, nor default"
            ))
        }),
    }
}

/// Of what was typed and is no quota, in the error.
const QUOTA_CHARS_SHOWN: usize = 40;

#[derive(Deserialize)]
struct Password {
    password: String,
}

/// `POST /users/{user}/password`. Ends every session of the user, since somebody else may know the old password.
pub async fn password(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let user_id = named(&admin, &request)?;
    let Password { password } = request.json().await?;
    // Not cancelled when the command is interrupted: otherwise sessions made with the old password could stay open after the
    // password has changed.
    let answer = json!({ "user_id": user_id });
    unbroken(async move { admin.users.replace_password(&user_id, &password).await }).await?;
    Ok(Response::json(&answer))
}

#[derive(Deserialize)]
struct IsAdmin {
    admin: bool,
}

/// `POST /users/{user}/admin`
pub async fn admin(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let user_id = named(&admin, &request)?;
    let IsAdmin { admin: is_admin } = request.json().await?;
    admin.users.set_admin(&user_id, is_admin).await?;
    Ok(Response::json(&json!({ "user_id": user_id, "has_admin": admin.users.has_admin().await? })))
}

#[derive(Deserialize)]
struct Restrict {
    /// Absent: as it is.
    locked: Option<bool>,
    suspended: Option<bool>,
}

/// `POST /users/{user}/restrict`: locks an account or suspends it, or takes that back.
pub async fn restrict(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let user_id = named(&admin, &request)?;
    let Restrict { locked, suspended } = request.json().await?;
    if let Some(locked) = locked {
        admin.users.set_locked(&user_id, locked).await?;
    }
    if let Some(suspended) = suspended {
        admin.users.set_suspended(&user_id, suspended).await?;
    }
    Ok(Response::json(&json!({ "user_id": user_id })))
}

/// `GET /users/{user}`: one account, and whether it is the last administrator's.
pub async fn show(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let user_id = named(&admin, &request)?;
    let account = account_of(&admin, &user_id).await?;
    let is_last_admin = admin.users.is_last_admin(&user_id).await?;
    Ok(Response::json(&json!({ "account": shown(&account, 0), "last_admin": is_last_admin })))
}

#[derive(Deserialize)]
struct Deactivate {
    #[serde(default)]
    force: bool,
}

/// `POST /users/{user}/deactivate`. 403 for the last administrator, unless `force` is true.
pub async fn deactivate(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let user_id = named(&admin, &request)?;
    let Deactivate { force } = request.json_or_empty().await?;
    deactivated(&admin, &user_id, force).await?;
    Ok(Response::json(&json!({ "user_id": user_id })))
}

/// Closes an account for good. 403 for the last administrator's, unless `force` is true.
pub async fn deactivated(admin: &Admin, user_id: &UserId, force: bool) -> Result<(), Error> {
    if !force && admin.users.is_last_admin(user_id).await? {
        let message = format!(
            "{user_id} is the last administrator; `snug user deactivate --force` closes the account all the same"
        );
        return Err(ErrorResponse::forbidden(message).into());
    }
    Ok(flow::deactivate(&admin.users, &admin.rooms, user_id, false).await?)
}

/// `POST /users/{user}/link`: a link with which the user chooses a password, at each address of the server.
pub async fn link(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let user_id = named(&admin, &request)?;
    let link = admin.users.make_password_link(&user_id).await?;
    let urls = admin.addresses.get().map(|known| &known.urls[..]).unwrap_or_default();
    let links: Vec<_> = urls.iter().map(|url| format!("{url}{PASSWORD_PATH}{}", link.code)).collect();
    let expires_ms = link.expires_ms;
    Ok(Response::json(&json!({ "user_id": user_id, "links": links, "expires_ms": expires_ms })))
}

/// The user in the path, written as `alice` or `@alice:example.org`.
fn named(admin: &Admin, request: &Request) -> Result<OwnedUserId, Error> {
    user_called(admin, request.param("user"))
}

/// The user of this server that is called `alice` or `@alice:example.org`.
pub fn user_called(admin: &Admin, name: &str) -> Result<OwnedUserId, Error> {
    let localpart = localpart(admin, name)?;
    UserId::parse(format!("@{localpart}:{}", admin.users.server()))
        .map_err(|_| ErrorResponse::invalid_param(format!("{name:?} is not a user name")).into())
}

/// Capital letters are made small, as everywhere that a name is typed: no name of this server has any.
pub fn localpart(admin: &Admin, name: &str) -> Result<String, Error> {
    let Some(rest) = name.strip_prefix('@') else { return Ok(name.to_lowercase()) };
    match rest.split_once(':') {
        None => Ok(rest.to_lowercase()),
        Some((localpart, server)) if server == admin.users.server().as_str() => Ok(localpart.to_lowercase()),
        Some((_, server)) => {
            let message = format!("{name} is a user of {server}; this server is {}", admin.users.server());
            Err(ErrorResponse::invalid_param(message).into())
        }
    }
}
