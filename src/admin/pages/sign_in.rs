//! Signing in on the administrators' page, and out.
//!
//! A wrong password counts as at the log-in of an app: by address, and for the user from all addresses together.

use std::sync::Arc;

use askama::Template;

use super::frame::{BEFORE, Form, SESSION, Visit, cookie, form_before, is_way, see, sentence};
use super::or_trouble;
use crate::admin::{Admin, error::Error};
use crate::http::page::page;
use crate::http::{ErrorResponse, Rate, Request, Response, StatusCode};
use crate::matrix::id;
use crate::user::{self, form_token};

/// Views of the sign-in, by address.
const SHOWN: Rate = Rate { name: "sign-in pages", per_second: 1.0, burst: 60.0 };
/// A browser keeps the cookie of a session for as long as the session may be good, a week, and that of the form for a day.
const SESSION_S: u64 = 7 * 24 * 60 * 60;
const BEFORE_S: u64 = 24 * 60 * 60;
const SECRET_CHARS: usize = 43;

#[derive(Template, Default)]
#[template(path = "sign_in.html")]
struct SignIn {
    server: String,
    root: String,
    token: String,
    /// Where to go afterwards, below the root.
    next: String,
    name: String,
    has_accounts: bool,
    wrong: Option<String>,
}

/// `GET sign-in?next=people/`: the form. 429 after too many.
pub async fn show(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let next = request.query("next").filter(|next| is_way(next)).unwrap_or_default();
    let shown = async {
        request.limit(&SHOWN)?;
        shown(&admin, &request, SignIn { next, ..SignIn::default() }, StatusCode::OK).await
    };
    Ok(or_trouble(&admin, shown.await))
}

/// `POST sign-in`. 403 and the form again when user or password is wrong, or the account is no administrator's; 429 after
/// too many wrong passwords.
pub async fn sign_in(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let answer = signed_in(&admin, &mut request).await;
    Ok(or_trouble(&admin, answer))
}

async fn signed_in(admin: &Admin, request: &mut Request) -> Result<Response, Error> {
    let form = form_before(request).await?;
    let next = Some(form.text("next")).filter(|next| is_way(next)).unwrap_or_default();
    let typed = SignIn { next, name: form.text("name"), ..SignIn::default() };
    let failed = match opened(admin, request, &form).await {
        Ok(secret) => {
            let to = format!("{}{}", admin.page.root(), typed.next);
            return Ok(see(&to).header("set-cookie", &cookie(admin, request, SESSION, &secret, SESSION_S)));
        }
        Err(failed) => ErrorResponse::from(failed),
    };
    let wrong = match failed.status {
        StatusCode::TOO_MANY_REQUESTS => {
            let seconds =
                failed.extra.get("retry_after_ms").and_then(serde_json::Value::as_u64).unwrap_or(0).div_ceil(1000);
            format!("These were many tries in a short time. Wait {} seconds, then try again.", seconds.max(1))
        }
        status if status.is_server_error() => return Err(failed.into()),
        _ => sentence(&failed.message),
    };
    shown(admin, request, SignIn { wrong: Some(wrong), ..typed }, failed.status).await
}

/// The secret of a new session.
async fn opened(admin: &Admin, request: &Request, form: &Form) -> Result<String, Error> {
    let wrong = || ErrorResponse::forbidden("The user name or the password is wrong");
    let user_id = id::typed_user(&form.text("name"), admin.users.server()).ok_or_else(wrong)?;
    if user_id.server_name() != admin.users.server() {
        return Err(wrong().into());
    }
    let counted = request.attempt(&admin.page.passwords, user_id.as_str())?;
    match admin.users.check_password(&user_id, &form.exact("password")).await {
        Err(user::Error::Forbidden(_) | user::Error::Deactivated) => return Err(wrong().into()),
        checked => {
            counted.forgive();
            checked?;
        }
    }
    match admin.users.open_page(&user_id).await {
        Ok(secret) => {
            tracing::info!("{user_id} signed in on the page, from {}", request.peer().ip);
            Ok(secret)
        }
        Err(user::Error::Locked) => Err(ErrorResponse::forbidden("This account is locked").into()),
        Err(user::Error::Forbidden(why)) => {
            let kindly = "The password is right, but this page is for administrators. Your chats are in your app; who looks after this \
                          server can make you an administrator";
            let why = if why.contains("administrator's") { kindly.to_owned() } else { why };
            Err(ErrorResponse::forbidden(why).into())
        }
        Err(failed) => Err(failed.into()),
    }
}

async fn shown(admin: &Admin, request: &Request, sign_in: SignIn, status: StatusCode) -> Result<Response, Error> {
    let server = admin.users.server().to_string();
    let (secret, is_new) = match request.cookie(BEFORE).filter(|secret| secret.len() == SECRET_CHARS) {
        Some(secret) => (secret.to_owned(), false),
        None => (admin.random.token(SECRET_CHARS), true),
    };
    let body = SignIn {
        server: server.clone(),
        root: admin.page.root().to_owned(),
        token: form_token(&secret),
        has_accounts: admin.users.count_up_to(1).await? > 0,
        ..sign_in
    };
    let body = body.render().map_err(ErrorResponse::internal)?;
    let page = page(&format!("Sign in · {server}"), &server, &body).with_status(status);
    Ok(match is_new {
        true => page.header("set-cookie", &cookie(admin, request, BEFORE, &secret, BEFORE_S)),
        false => page,
    })
}

/// `POST sign-out`
pub async fn sign_out(visit: Visit, _: Form) -> Result<Response, Error> {
    if let Some(secret) = visit.request.cookie(SESSION) {
        visit.admin.users.close_page(secret);
    }
    let gone = cookie(&visit.admin, &visit.request, SESSION, "", 0);
    Ok(visit.go("sign-in").header("set-cookie", &gone))
}
