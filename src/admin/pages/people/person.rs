//! One person: the account, its devices, and what an administrator may do about them.

use askama::Template;
use ruma::OwnedUserId;
use serde_json::Value;

use super::add::Made;
use super::{Badge, ago, badges, letter, moment, path};
use crate::admin::error::Error;
use crate::admin::pages::frame::{Form, Frame, NAME_CHARS_MAX, Visit};
use crate::admin::pages::link::Shown;
use crate::admin::pages::share::Share;
use crate::admin::users::{deactivated, read_quota, user_called};
use crate::base::{bounded, date, sort_few_by};
use crate::budget::human;
use crate::http::{ErrorResponse, Response};
use crate::user::{Person, QUOTA_UNLIMITED, Standing};

/// Devices on one page, the last seen first; a user has a hundred at most. The ids of twenty may be 25 KiB in HTML.
const DEVICES_SHOWN: usize = 20;

#[derive(Template)]
#[template(path = "person.html")]
struct Page {
    frame: Frame,
    path: String,
    letter: String,
    name: String,
    user_id: String,
    badges: Vec<Badge>,
    is_closed: bool,
    is_admin: bool,
    is_locked: bool,
    is_suspended: bool,
    has_password: bool,
    /// Nobody else could look after the server.
    is_last_admin: bool,
    made: String,
    seen: Option<String>,
    files: Share,
    /// What they may take; none: what there is room for.
    files_max: Option<String>,
    /// That was set for this account, and everybody else's may take this.
    has_quota: bool,
    everybody_max: String,
    link_until: Option<String>,
    devices: Vec<Device>,
    /// Where the devices of the next page begin.
    next_devices: Option<usize>,
    is_first: bool,
}

struct Device {
    id: String,
    name: String,
    seen: String,
    address: String,
}

async fn named(visit: &Visit) -> Result<(OwnedUserId, Person), Error> {
    let user_id = user_called(&visit.admin, visit.request.param("user"))?;
    let person = visit.admin.users.person(&user_id).await?;
    let person = person.ok_or_else(|| ErrorResponse::not_found(format!("there is no account {user_id}")))?;
    Ok((user_id, person))
}

/// `GET people/of/{user}?from=20`: the account, and its devices from the twentieth on.
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let (user_id, person) = named(&visit).await?;
    let (users, now_ms) = (&visit.admin.users, visit.admin.clock.now_ms());
    let mut devices = users.devices_of(&user_id).await?;
    sort_few_by(&mut devices, |device| std::cmp::Reverse(device["last_seen_ts"].as_u64()));
    let account = &person.account;
    let everybody_max = visit.admin.media.account_bytes_max();
    let files_max = account.quota.unwrap_or(everybody_max);
    let name = bounded(person.display_name.as_deref().unwrap_or(user_id.localpart()), NAME_CHARS_MAX);
    let from = visit.request.query_as::<usize>("from")?.unwrap_or(0);
    let until = from.saturating_add(DEVICES_SHOWN);
    let page = Page {
        frame: visit.frame("people", user_id.localpart()),
        path: path(&user_id),
        letter: letter(&name),
        name,
        badges: badges(account, person.link_until_ms.is_some(), person.is_service),
        is_closed: account.standing == Standing::Deactivated,
        is_admin: account.admin,
        is_locked: account.locked,
        is_suspended: account.suspended,
        has_password: account.has_password,
        is_last_admin: users.is_last_admin(&user_id).await?,
        made: date(account.created_ms),
        seen: person.seen_ms.map(|seen_ms| ago(seen_ms, now_ms)),
        files: Share::new(person.uploaded_bytes, files_max),
        files_max: (files_max != QUOTA_UNLIMITED).then(|| human(files_max)),
        has_quota: account.quota.is_some(),
        everybody_max: human(everybody_max),
        link_until: person.link_until_ms.map(moment),
        next_devices: (until < devices.len()).then_some(until),
        is_first: from == 0,
        devices: devices.iter().skip(from).take(DEVICES_SHOWN).map(|device| shown(device, now_ms)).collect(),
        user_id: user_id.to_string(),
    };
    visit.page(&page).await
}

fn shown(device: &Value, now_ms: u64) -> Device {
    let text = |field: &str| device[field].as_str().unwrap_or_default().to_owned();
    let (id, name) = (text("device_id"), text("display_name"));
    Device {
        name: bounded(if name.is_empty() { &id } else { &name }, NAME_CHARS_MAX),
        seen: ago(device["last_seen_ts"].as_u64().unwrap_or(0), now_ms),
        address: text("last_seen_ip"),
        id,
    }
}

/// `POST people/of/{user}`: one change to the account, by the field `what`. 403 for what would leave the server without
/// an administrator.
pub async fn change(visit: Visit, form: Form) -> Result<Response, Error> {
    let (user_id, person) = named(&visit).await?;
    let users = &visit.admin.users;
    let what = form.text("what");
    if matches!(what.as_str(), "unmake-admin" | "lock" | "suspend") && users.is_last_admin(&user_id).await? {
        return Err(last_admin(&user_id).into());
    }
    match what.as_str() {
        "link" => {
            let link = users.make_password_link(&user_id).await?;
            tracing::info!("{} made a link for the password of {user_id} on the page", visit.user_id);
            let frame = visit.frame("people", "Send this link");
            let is_new = !person.account.has_password;
            let (link, path) = (Shown::new(&visit, link), path(&user_id));
            let name = user_id.localpart().to_owned();
            return visit.page(&Made { frame, name, user_id: user_id.to_string(), path, is_new, link }).await;
        }
        "make-admin" => users.set_admin(&user_id, true).await?,
        "unmake-admin" => users.set_admin(&user_id, false).await?,
        "lock" => users.set_locked(&user_id, true).await?,
        "unlock" => users.set_locked(&user_id, false).await?,
        "suspend" => users.set_suspended(&user_id, true).await?,
        "unsuspend" => users.set_suspended(&user_id, false).await?,
        "quota" => users.set_quota(&user_id, quota_typed(&form.text("size"))?).await?,
        "end-session" => users.end_session(&user_id, &form.exact("device")).await?,
        "end-sessions" => users.logout_all(&user_id, None).await?,
        _ => return Err(ErrorResponse::invalid_param("this page has no such button").into()),
    }
    tracing::info!("{} on the page: {what} {user_id}", visit.user_id);
    Ok(visit.done(&path(&user_id), &what))
}

/// What was typed for a quota; nothing is as everybody's.
fn quota_typed(typed: &str) -> Result<Option<u64>, ErrorResponse> {
    read_quota(if typed.is_empty() { "default" } else { typed })
}

fn last_admin(user_id: &OwnedUserId) -> ErrorResponse {
    ErrorResponse::forbidden(format!(
        "{user_id} is the only administrator: without one nobody could open this page. Make somebody else an administrator first"
    ))
}

#[derive(Template)]
#[template(path = "person_close.html")]
struct Close {
    frame: Frame,
    path: String,
    user_id: String,
    is_last_admin: bool,
}

/// `GET people/of/{user}/close`: what closing an account does.
pub async fn ask_close(visit: Visit) -> Result<Response, Error> {
    let (user_id, person) = named(&visit).await?;
    if person.account.standing == Standing::Deactivated {
        return Ok(visit.go(&path(&user_id)));
    }
    let page = Close {
        frame: visit.frame("people", format!("Close {}", user_id.localpart())),
        path: path(&user_id),
        is_last_admin: visit.admin.users.is_last_admin(&user_id).await?,
        user_id: user_id.to_string(),
    };
    visit.page(&page).await
}

/// `POST people/of/{user}/close`. 403 for the last administrator.
pub async fn close(visit: Visit, _: Form) -> Result<Response, Error> {
    let (user_id, _) = named(&visit).await?;
    deactivated(&visit.admin, &user_id, false).await?;
    tracing::info!("{} closed {user_id} on the page", visit.user_id);
    Ok(visit.done(&path(&user_id), "closed"))
}
