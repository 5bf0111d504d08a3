//! Stages of user-interactive authentication in a browser, for apps that do not know them ("Fallback"): GET and POST
//! auth/{type}/fallback/web, for the stages of a registration. And logging in there ("Login fallback"): GET
//! static/client/login/.

use std::sync::Arc;

use super::super::{Client, Error, rates, terms};
use crate::http::page::{self, escaped};
use crate::http::{ErrorResponse, Request, Response};
use crate::user::Stage;

/// The longest form: a token, percent-encoded.
const FORM_BYTES_MAX: u64 = 4096;
/// Tells the app that opened the page; word for word that of the specification.
const DONE: &str = r#"if (window.onAuthDone) {
    window.onAuthDone();
} else if (window.opener && window.opener.postMessage) {
    window.opener.postMessage("authDone", "*");
}"#;

/// GET /_matrix/client/v3/auth/{type}/fallback/web?session={session}: the page of the stage.
///
/// 400 `M_MISSING_PARAM` without a session; 404 `M_NOT_FOUND` for a stage without a page, and for a session that is not
/// there any more or does not ask for it. All of them as pages.
pub async fn show(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    Ok(shown(&client, &request).await.unwrap_or_else(|failed| terms::trouble(&client, failed)))
}

async fn shown(client: &Client, request: &Request) -> Result<Response, Error> {
    request.limit(&rates::REQUIREMENTS)?;
    let (stage, session) = asked(client, request)?;
    match client.users.is_proved(&session, stage) {
        true => Ok(done(client)),
        false => Ok(form(client, request, stage, "")),
    }
}

/// POST of the same: the form of the page. What is wrong with it stands on the page that is shown again.
///
/// As [`show`]; 429 after too many tokens.
pub async fn prove(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    Ok(proved(&client, &mut request).await.unwrap_or_else(|failed| terms::trouble(&client, failed)))
}

async fn proved(client: &Client, request: &mut Request) -> Result<Response, Error> {
    let (stage, session) = asked(client, request)?;
    let body = request.bytes(FORM_BYTES_MAX).await?;
    if stage == Stage::RegistrationToken {
        request.limit(&rates::TOKEN)?;
        let token = page::field(&body, "token");
        let token = token.trim();
        let is_given = client.options().registration_tokens.iter().any(|known| known == token);
        if !is_given && client.users.is_registration_token(token).await? {
            client.users.note_token(&session, token);
        } else if !is_given {
            return Ok(form(client, request, stage, "<p class=\"wrong\" role=\"alert\">This token is not valid.</p>"));
        }
    }
    match client.users.prove(&session, stage) {
        true => Ok(done(client)),
        false => Err(ended().into()),
    }
}

/// The stage in the path and the session in the query. A page for a session that is over would be of no use.
fn asked(client: &Client, request: &Request) -> Result<(Stage, String), ErrorResponse> {
    let session = request.query("session").ok_or_else(|| ErrorResponse::missing_param("session"))?;
    let stage = match request.param("auth_type") {
        "m.login.dummy" => Stage::Dummy,
        "m.login.terms" => Stage::Terms,
        "m.login.registration_token" => Stage::RegistrationToken,
        _ => return Err(ErrorResponse::not_found("This server has no page for this step. The app has to know it.")),
    };
    match client.users.is_registering(&session, stage) {
        true => Ok((stage, session)),
        false => Err(ended()),
    }
}

fn ended() -> ErrorResponse {
    ErrorResponse::not_found("This registration is over, or it took too long. Begin again in the app.")
}

fn form(client: &Client, request: &Request, stage: Stage, wrong: &str) -> Response {
    let server = escaped(client.users.server().as_str());
    let (title, what) = match stage {
        Stage::RegistrationToken => (
            "Your token",
            format!(
                "<h1>Your token</h1><p class=\"lead\">Accounts of {server} are for whom its owner has given a token.</p>\
<form method=\"post\"><label for=\"token\">Token</label><input id=\"token\" name=\"token\" required maxlength=\"64\" \
autocomplete=\"off\" autocapitalize=\"none\" spellcheck=\"false\" autofocus>{wrong}<button>Go on</button></form>"
            ),
        ),
        Stage::Dummy | Stage::Password => (
            "Your account",
            format!(
                "<h1>Your account</h1><p class=\"lead\">You are about to make an account on {server}.</p>\
<form method=\"post\"><button>Go on</button></form>"
            ),
        ),
        Stage::Terms => (
            "Terms",
            format!(
                "<h1>Terms of {server}</h1><p class=\"lead\">These hold for everybody with an account here:</p>{}\
<form method=\"post\"><button>I agree</button></form>",
                client.options().terms.links(&terms::base(client, request))
            ),
        ),
    };
    page::page(title, client.users.server().as_str(), &what)
}

/// GET /_matrix/static/client/login/: a page that logs in by user name and password, for apps that know no way to log in. Its
/// script gives the answer to the app that opened it.
pub async fn login(client: Arc<Client>, _: Request) -> Result<Response, Error> {
    let server = client.users.server().as_str();
    let shown = escaped(server);
    let body = format!(
        "<h1>Log in</h1><p class=\"lead\">With your account on {shown}.</p><form method=\"post\">\
<label for=\"user\">User name</label><input id=\"user\" name=\"user\" required autocomplete=\"username\" autocapitalize=\"none\" \
spellcheck=\"false\" autofocus><label for=\"password\">Password</label><input id=\"password\" name=\"password\" type=\"password\" \
required autocomplete=\"current-password\"><p class=\"wrong\" id=\"wrong\" role=\"alert\" hidden></p><button>Log in</button></form>"
    );
    Ok(page::page_that_asks("Log in", server, &body, include_str!("login.js")))
}

fn done(client: &Client) -> Response {
    let body =
        "<p class=\"works\">Done</p><h1>Thank you</h1><p class=\"lead\">Close this window, and go on in the app.</p>";
    page::page_that("Done", client.users.server().as_str(), body, DONE)
}
