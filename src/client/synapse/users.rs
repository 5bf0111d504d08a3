//! Users: list, get, create or change, deactivate, suspend, passwords, administrators, devices, rooms, account data, pushers.

use std::sync::Arc;

use ruma::OwnedUserId;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{
    Page, administrator, administrator_with_memory, administrator_with_stream, beside, done, flag, local_user, user,
};
use crate::base::unbroken;
use crate::client::{Client, Error};
use crate::flow::{self, Propagate};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::user::{Listed, Login, New, Order, Standing, Wanted};

/// GET /_synapse/admin/v2/users: `deactivated=true` and `locked=true` add those to the others.
pub async fn list(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let deactivated = flag(&request, "deactivated")?.unwrap_or(false);
    listed(client, request, if deactivated { None } else { Some(false) }).await
}

/// GET /_synapse/admin/v3/users: `deactivated` says which of the two are listed, and without it both are.
pub async fn list_v3(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let deactivated = flag(&request, "deactivated")?;
    listed(client, request, deactivated).await
}

async fn listed(client: Arc<Client>, request: Request, deactivated: Option<bool>) -> Result<Response, Error> {
    let (_, grant) = administrator_with_memory(&client, &request).await?;
    let page = Page::of(&request)?;
    let (no_bots, no_others) = left_out(&request);
    let wanted = Wanted {
        no_bots,
        no_others,
        uploaders: false,
        id: request.query("user_id"),
        name: request.query("name"),
        guests: if flag(&request, "guests")?.unwrap_or(true) { None } else { Some(false) },
        admins: flag(&request, "admins")?,
        deactivated,
        locked: if flag(&request, "locked")?.unwrap_or(false) { None } else { Some(false) },
    };
    let order = order(request.query("order_by").as_deref())?;
    let (found, total) = client.users.find(wanted, order, page.backwards, page.from, page.most).await?;
    let rest = beside(page, found.len(), total, |next| next.to_string().into());
    let many = found.len();
    let row = Box::new(move |at: usize| Ok(client.users.listed_now(found[at])?.map(|listed| shown(&listed))));
    Ok(super::listed(grant, "users", many, rest, row))
}

/// What kinds of accounts are left out: an account is a bot's, or of no type, which is the empty word.
fn left_out(request: &Request) -> (bool, bool) {
    let mut left_out = (false, false);
    for kind in request.query_all("not_user_type") {
        left_out.0 |= kind == "bot";
        left_out.1 |= kind.is_empty();
    }
    left_out
}

fn order(name: Option<&str>) -> Result<Order, ErrorResponse> {
    Ok(match name {
        None | Some("name") => Order::Name,
        Some("user_type") => Order::Type,
        Some("shadow_banned") => Order::ShadowBanned,
        Some("is_guest") => Order::Guest,
        Some("admin") => Order::Admin,
        Some("deactivated") => Order::Deactivated,
        Some("displayname") => Order::DisplayName,
        Some("avatar_url") => Order::AvatarUrl,
        Some("creation_ts") => Order::Created,
        Some("last_seen_ts") => Order::LastSeen,
        Some("locked") => Order::Locked,
        Some(_) => return Err(ErrorResponse::invalid_param("order_by names nothing that users can be ordered by")),
    })
}

fn shown(listed: &Listed) -> Value {
    let account = &listed.account;
    json!({
        "name": account.user_id, "displayname": listed.display_name, "avatar_url": listed.avatar_url,
        "is_guest": listed.is_guest, "admin": account.admin, "deactivated": account.standing == Standing::Deactivated,
        "erased": listed.is_erased, "locked": account.locked, "suspended": account.suspended,
        "creation_ts": account.created_ms, "last_seen_ts": listed.seen_ms, "user_type": account.bot.then_some("bot"),
        "shadow_banned": account.shadow_banned,
    })
}

/// GET /_synapse/admin/v2/users/{user_id}
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    Ok(Response::json(&details(&client, &user_id).await?))
}

async fn details(client: &Client, user_id: &OwnedUserId) -> Result<Value, Error> {
    let listed = client.users.listed(user_id).await?;
    let mut value = shown(&listed);
    // As Synapse has it here, in seconds.
    value["creation_ts"] = (listed.account.created_ms / 1_000).into();
    // Who made an account is not kept; without a password it is the service's whose the name is.
    let service = client.users.services().owner_of_user(user_id, None).filter(|_| !listed.account.has_password);
    let service = service.map(|service| service.id.clone());
    let more = json!({
        "threepids": [], "external_ids": [], "appservice_id": service, "consent_server_notice_sent": null,
        "consent_version": null, "consent_ts": null,
    });
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
    Ok(value)
}

#[derive(Deserialize)]
struct Change {
    password: Option<String>,
    #[serde(default = "yes")]
    logout_devices: bool,
    displayname: Option<String>,
    avatar_url: Option<String>,
    admin: Option<bool>,
    deactivated: Option<bool>,
    locked: Option<bool>,
    suspended: Option<bool>,
    #[serde(default)]
    threepids: Vec<Value>,
    #[serde(default)]
    external_ids: Vec<Value>,
    /// `null` takes the type away; without it the type stays.
    #[serde(default, deserialize_with = "given")]
    user_type: Option<Option<String>>,
}

fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}

fn yes() -> bool {
    true
}

/// PUT /_synapse/admin/v2/users/{user_id}: 201 for a new account, else 200.
///
/// 400 `M_UNKNOWN` for an account that was deactivated: its name is never given out again; for addresses and identities of other
/// providers, and for a type of user, but for "bot".
pub async fn put(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let change: Change = request.json().await?;
    let no_place = !change.threepids.is_empty()
        || !change.external_ids.is_empty()
        || change.user_type.iter().flatten().any(|kind| kind != "bot");
    let bot = change.user_type.as_ref().map(Option::is_some);
    if no_place {
        let message = "Accounts of this server have no e-mail addresses, telephone numbers, identities of other providers, or types but \"bot\"";
        return Err(ErrorResponse::bad("M_UNKNOWN", message).into());
    }
    if change.deactivated == Some(true) && change.locked == Some(true) {
        return Err(ErrorResponse::bad("M_UNKNOWN", "An account cannot be closed and locked").into());
    }
    let before = client.users.account(&user_id).await?;
    let takes_own_right =
        change.admin == Some(false) || [change.deactivated, change.locked, change.suspended].contains(&Some(true));
    if by.user_id == user_id && takes_own_right {
        return Err(ErrorResponse::bad("M_UNKNOWN", "You may not take this from yourself").into());
    }
    unbroken(async move {
        let is_new = before.is_none();
        match before {
            None => {
                let localpart = user_id.localpart().to_owned();
                let admin = change.admin.unwrap_or(false);
                client
                    .users
                    .create(New {
                        localpart,
                        password: change.password,
                        admin,
                        agreed: 0,
                        bot: bot == Some(true),
                        token: None,
                    })
                    .await?;
                tracing::info!("{} made the account {user_id}", by.user_id);
            }
            Some(account) if account.standing == Standing::Deactivated => {
                if change.deactivated != Some(true) {
                    let message = "This account was deactivated, which cannot be taken back";
                    return Err(ErrorResponse::bad("M_UNKNOWN", message).into());
                }
            }
            Some(account) => {
                if let Some(bot) = bot.filter(|bot| *bot != account.bot) {
                    client.users.set_bot(&user_id, bot).await?;
                }
                if let Some(password) = &change.password {
                    client.users.set_password(&user_id, password).await?;
                    tracing::info!("{} set the password of {user_id}", by.user_id);
                    if change.logout_devices {
                        client.users.logout_all(&user_id, None).await?;
                    }
                }
                if let Some(admin) = change.admin.filter(|admin| *admin != account.admin) {
                    client.users.set_admin(&user_id, admin).await?;
                    log_admin(&by.user_id, &user_id, admin);
                }
            }
        }
        for (field, value) in [("displayname", change.displayname), ("avatar_url", change.avatar_url)] {
            let Some(value) = value else { continue };
            let value = (!value.is_empty()).then_some(Value::String(value));
            flow::rename(&client.users, &client.rooms, &user_id, field, value, Propagate::All).await?;
        }
        if let Some(locked) = change.locked {
            client.users.set_locked(&user_id, locked).await?;
            tracing::info!("{} {} {user_id}", by.user_id, if locked { "locked" } else { "unlocked" });
        }
        if let Some(suspended) = change.suspended {
            client.users.set_suspended(&user_id, suspended).await?;
            tracing::info!("{} {} {user_id}", by.user_id, if suspended { "suspended" } else { "unsuspended" });
        }
        if change.deactivated == Some(true) {
            flow::deactivate(&client.users, &client.rooms, &user_id, false).await?;
            tracing::info!("{} deactivated {user_id}", by.user_id);
        }
        let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
        Ok(Response::json_with(status, &details(&client, &user_id).await?))
    })
    .await
}

#[derive(Deserialize, Default)]
struct Deactivate {
    #[serde(default)]
    erase: bool,
}

/// POST /_synapse/admin/v1/deactivate/{user_id}
pub async fn deactivate(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let Deactivate { erase } = request.json_or_empty().await?;
    if client.users.is_last_admin(&user_id).await? {
        let message = "This is the last administrator; `snug user deactivate --force` closes the account all the same";
        return Err(ErrorResponse::forbidden(message).into());
    }
    flow::deactivate(&client.users, &client.rooms, &user_id, erase).await?;
    tracing::info!("{} deactivated {user_id}", by.user_id);
    Ok(Response::json(&json!({ "id_server_unbind_result": "success" })))
}

#[derive(Deserialize)]
struct Suspend {
    suspend: bool,
}

/// PUT /_synapse/admin/v1/suspend/{user_id}. 403 `M_FORBIDDEN` for suspending oneself.
pub async fn suspend(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let Suspend { suspend } = request.json().await?;
    if by.user_id == user_id && suspend {
        return Err(ErrorResponse::forbidden("You may not suspend yourself").into());
    }
    client.users.set_suspended(&user_id, suspend).await?;
    tracing::info!("{} {} {user_id}", by.user_id, if suspend { "suspended" } else { "unsuspended" });
    Ok(Response::json(&json!({ format!("user_{user_id}_suspended"): suspend })))
}

#[derive(Deserialize)]
struct Reset {
    new_password: String,
    #[serde(default = "yes")]
    logout_devices: bool,
}

/// POST /_synapse/admin/v1/reset_password/{user_id}
pub async fn reset_password(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let Reset { new_password, logout_devices } = request.json().await?;
    unbroken(async move {
        client.users.set_password(&user_id, &new_password).await?;
        if logout_devices {
            client.users.logout_all(&user_id, None).await?;
        }
        tracing::info!("{} set the password of {user_id}", by.user_id);
        Ok(done())
    })
    .await
}

/// GET /_synapse/admin/v1/users/{user_id}/admin
pub async fn is_admin(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let listed = client.users.listed(&local_user(&client, &request)?).await?;
    Ok(Response::json(&json!({ "admin": listed.account.admin })))
}

#[derive(Deserialize)]
struct IsAdmin {
    admin: bool,
}

/// PUT /_synapse/admin/v1/users/{user_id}/admin
pub async fn set_admin(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let IsAdmin { admin } = request.json().await?;
    if by.user_id == user_id && !admin {
        return Err(ErrorResponse::bad("M_UNKNOWN", "You may not demote yourself.").into());
    }
    client.users.set_admin(&user_id, admin).await?;
    log_admin(&by.user_id, &user_id, admin);
    Ok(done())
}

fn log_admin(by: &OwnedUserId, user_id: &OwnedUserId, admin: bool) {
    let now = if admin { "now" } else { "no longer" };
    tracing::info!("{by} decided that {user_id} is {now} an administrator");
}

/// GET /_synapse/admin/v1/username_available
pub async fn is_available(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let name = request.query("username").ok_or_else(|| ErrorResponse::missing_param("username"))?;
    client.users.is_free(&name).await?;
    Ok(Response::json(&json!({ "available": true })))
}

/// GET /_synapse/admin/v2/users/{user_id}/devices
pub async fn devices(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let devices = client.users.devices_of(&user_id).await?;
    let devices: Vec<_> = devices.into_iter().map(|device| device_shown(&user_id, device)).collect();
    Ok(Response::json(&json!({ "total": devices.len(), "devices": devices })))
}

/// With its owner, and `null` where apps find nothing: what a device calls itself in requests is not kept.
fn device_shown(user_id: &OwnedUserId, mut device: Value) -> Value {
    for field in ["display_name", "last_seen_ip", "last_seen_ts", "last_seen_user_agent"] {
        if device.get(field).is_none() {
            device[field] = Value::Null;
        }
    }
    device["user_id"] = user_id.as_str().into();
    device
}

#[derive(Deserialize)]
struct NewDevice {
    device_id: String,
}

/// POST /_synapse/admin/v2/users/{user_id}/devices: makes a device, which nobody has a token of yet. 201, also where there is one.
pub async fn make_device(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let NewDevice { device_id } = request.json().await?;
    let num = client.users.local_num(&user_id).await?;
    if client.users.create_device(num, &user_id, &device_id, None).await? {
        tracing::info!("{} made a device of {user_id}", by.user_id);
    }
    Ok(Response::json_with(StatusCode::CREATED, &json!({})))
}

/// GET /_synapse/admin/v2/users/{user_id}/devices/{device_id}
pub async fn device(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let num = client.users.local_num(&user_id).await?;
    let device = client.users.device(num, request.param("device_id")).await?;
    Ok(Response::json(&device_shown(&user_id, device)))
}

/// Characters of a device's name that is given by an administrator; Synapse's.
const DEVICE_NAME_CHARS_MAX: usize = 100;

#[derive(Deserialize)]
struct DeviceName {
    display_name: Option<String>,
}

/// PUT /_synapse/admin/v2/users/{user_id}/devices/{device_id}
pub async fn name_device(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let num = client.users.local_num(&user_id).await?;
    let DeviceName { display_name } = request.json_or_empty().await?;
    if display_name.as_ref().is_some_and(|name| name.chars().count() > DEVICE_NAME_CHARS_MAX) {
        let message = format!("A device's name has {DEVICE_NAME_CHARS_MAX} characters at most");
        return Err(ErrorResponse::bad("M_TOO_LARGE", message).into());
    }
    if display_name.is_some() {
        client.users.name_device(num, &user_id, request.param("device_id"), display_name).await?;
    }
    Ok(done())
}

/// DELETE /_synapse/admin/v2/users/{user_id}/devices/{device_id}
pub async fn delete_device(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let num = client.users.local_num(&user_id).await?;
    client.users.remove_devices(num, &user_id, vec![request.param("device_id").to_owned()]).await?;
    Ok(done())
}

#[derive(Deserialize)]
struct Devices {
    devices: Vec<String>,
}

/// POST /_synapse/admin/v2/users/{user_id}/delete_devices
pub async fn delete_devices(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let num = client.users.local_num(&user_id).await?;
    let Devices { devices } = request.json().await?;
    client.users.remove_devices(num, &user_id, devices).await?;
    Ok(done())
}

/// GET /_synapse/admin/v1/users/{user_id}/pushers
pub async fn pushers(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_stream(&client, &request).await?;
    let num = client.users.local_num(&local_user(&client, &request)?).await?;
    Ok(Response::stream(grant, client.users.pushers(num, true).await?))
}

/// GET /_synapse/admin/v1/users/{user_id}/joined_rooms: of a user of another server, the rooms that this server is in too.
pub async fn joined_rooms(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_stream(&client, &request).await?;
    Ok(Response::stream(grant, client.rooms.list_rooms_of(&user(&request)?, false).await?))
}

/// GET /_synapse/admin/v1/users/{user_id}/memberships
pub async fn memberships(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_stream(&client, &request).await?;
    Ok(Response::stream(grant, client.rooms.list_rooms_of(&user(&request)?, true).await?))
}

/// GET /_synapse/admin/v1/whois/{user_id}
pub async fn whois(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    crate::client::admin::whois(client, request).await
}

#[derive(Deserialize, Default)]
struct LogIn {
    valid_until_ms: Option<u64>,
}

/// POST /_synapse/admin/v1/users/{user_id}/login: an access token of the user, of a new device, which the user sees in their
/// list: it is not hidden here that somebody has access.
pub async fn login(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let LogIn { valid_until_ms } = request.json_or_empty().await?;
    if by.user_id == user_id {
        return Err(ErrorResponse::bad("M_UNKNOWN", "Cannot use admin API to login as self").into());
    }
    let now_ms = client.clock.now_ms();
    let lifetime_ms = match valid_until_ms {
        Some(until_ms) if until_ms <= now_ms => {
            return Err(ErrorResponse::invalid_param("valid_until_ms has passed").into());
        }
        Some(until_ms) => Some(until_ms - now_ms),
        None => None,
    };
    let display_name = Some(format!("Administrator {}", by.user_id));
    let login = Login { display_name, lifetime_ms, ip: Some(request.peer().ip), ..Login::default() };
    let session = client.users.login(&user_id, login).await?;
    tracing::warn!("{} logged in as {user_id}", by.user_id);
    Ok(Response::json(&json!({ "access_token": session.access_token })))
}

/// GET /_synapse/admin/v1/users/{user_id}/accountdata
pub async fn account_data(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_stream(&client, &request).await?;
    let num = client.users.local_num(&local_user(&client, &request)?).await?;
    Ok(Response::stream(grant, client.users.all_account_data(num).await?))
}
