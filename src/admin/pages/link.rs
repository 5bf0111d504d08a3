//! The page where somebody chooses a password, with a link that an administrator sent.

use std::sync::Arc;

use askama::Template;

use super::frame::{Visit, sentence};
use super::{address_for_apps, is_only_here, log_in_steps, or_trouble, qr};
use crate::admin::{Admin, addresses::PASSWORD_PATH, error::Error};
use crate::base::{timestamp, unbroken};
use crate::http::page::{field, page};
use crate::http::{ErrorResponse, Rate, Request, Response, StatusCode};
use crate::user::{self, PASSWORD_CHARS_MIN, PasswordLink, check_new_password};

/// Two passwords, percent-encoded.
const FORM_BYTES_MAX: u64 = 4096;
/// Views of the page, by address: each may be a guess at a code.
const SHOWN: Rate = Rate { name: "password pages", per_second: 0.5, burst: 30.0 };
/// Forms sent, by address.
const SENT: Rate = Rate { name: "password forms", per_second: 0.2, burst: 10.0 };

/// A link as the administrator is shown it.
pub struct Shown {
    pub url: String,
    pub qr: String,
    pub until: String,
    /// The address works on this machine only.
    pub is_only_here: bool,
}

impl Shown {
    pub fn new(visit: &Visit, link: PasswordLink) -> Shown {
        let address = address_for_apps(&visit.admin, &visit.request).url;
        let url = format!("{address}{PASSWORD_PATH}{}", link.code);
        let until = timestamp(link.expires_ms);
        Shown {
            qr: qr::svg(&url, "The link as a QR code"),
            until: format!("{}, {} UTC", &until[..10], &until[11..16]),
            is_only_here: is_only_here(&address),
            url,
        }
    }
}

#[derive(Template, Default)]
#[template(path = "choose_password.html")]
struct Choose {
    user_id: String,
    server: String,
    is_new: bool,
    chars_min: usize,
    wrong: Option<String>,
    wrong_again: Option<String>,
}

/// `GET /_snug/password/{code}`: the form. 410 when the link was used or has ended, 429 after too many.
pub async fn show(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let shown = async {
        request.limit(&SHOWN)?;
        form(&admin, request.param("code"), Choose::default(), StatusCode::OK).await
    };
    Ok(or_trouble(&admin, shown.await))
}

/// `POST /_snug/password/{code}`: sets the password. The code stands for the token of other forms: who has it may do this.
/// 400 and the form again when something is wrong with it, 410 when the link was used or has ended, 429 after too many.
pub async fn set(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let done = chosen(&admin, &mut request).await;
    Ok(or_trouble(&admin, done))
}

async fn chosen(admin: &Admin, request: &mut Request) -> Result<Response, Error> {
    request.limit(&SENT)?;
    let body = request.bytes(FORM_BYTES_MAX).await?;
    let (code, password) = (request.param("code"), field(&body, "password"));
    let mut typed = Choose {
        wrong: check_new_password(&password).err().map(|wrong| sentence(&wrong.to_string())),
        ..Choose::default()
    };
    if typed.wrong.is_none() && password != field(&body, "again") {
        typed.wrong_again = Some("The two passwords are not the same.".to_owned());
    }
    if typed.wrong.is_some() || typed.wrong_again.is_some() {
        return form(admin, code, typed, StatusCode::BAD_REQUEST).await;
    }
    // Not cancelled when the browser goes away: otherwise sessions made with the old password could stay open after the
    // password has changed.
    let (users, code) = (admin.users.clone(), code.to_owned());
    match unbroken(async move { users.set_password_by_link(&code, &password).await }).await {
        Ok(user_id) => {
            tracing::info!("{user_id} has chosen a password by link");
            Ok(done(admin, request, user_id.as_str(), user_id.localpart()))
        }
        Err(user::Error::Forbidden(_) | user::Error::Deactivated) => Ok(ended(admin)),
        Err(failed) => Err(failed.into()),
    }
}

async fn form(admin: &Admin, code: &str, typed: Choose, status: StatusCode) -> Result<Response, Error> {
    let Some((user_id, has_password)) = admin.users.password_link(code).await? else { return Ok(ended(admin)) };
    let server = admin.users.server().to_string();
    let body = Choose {
        user_id: user_id.to_string(),
        server: server.clone(),
        is_new: !has_password,
        chars_min: PASSWORD_CHARS_MIN,
        ..typed
    };
    let body = body.render().map_err(ErrorResponse::internal)?;
    Ok(page("Choose a password", &server, &body).with_status(status))
}

fn done(admin: &Admin, request: &Request, user_id: &str, localpart: &str) -> Response {
    let address = address_for_apps(admin, request);
    let body = format!(
        "<p class=\"works\">Your password is set</p><h1>Welcome, {}</h1><p class=\"lead\">This is your Matrix name. Others find you by \
it.</p><p class=\"name\">{}</p>{}",
        crate::http::page::escaped(localpart),
        crate::http::page::escaped(user_id),
        log_in_steps(&address, Some(localpart)),
    );
    page("Your password is set", admin.users.server().as_str(), &body)
}

fn ended(admin: &Admin) -> Response {
    let body = "<h1>This link has ended</h1><p class=\"lead\">It works once, and for some days. Ask who sent it for another.</p>";
    page("This link has ended", admin.users.server().as_str(), body).with_status(StatusCode::GONE)
}
