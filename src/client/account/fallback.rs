//! Stages of user-interactive authentication in a browser, for apps that do not know them ("Fallback"): GET and POST
//! auth/{type}/fallback/web. There is a page for the stages of a registration that are more than a click.

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
/// there any more. All of them as pages.
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
        if !client.options().registration_tokens.iter().any(|known| known == token.trim()) {
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
    let stage = match request.param("auth_type") {
        "m.login.terms" => Stage::Terms,
        "m.login.registration_token" => Stage::RegistrationToken,
        _ => return Err(ErrorResponse::not_found("This server has no page for this step. The app has to know it.")),
    };
    let session = request.query("session").ok_or_else(|| ErrorResponse::missing_param("session"))?;
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
        _ => (
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

fn done(client: &Client) -> Response {
    let body =
        "<p class=\"works\">Done</p><h1>Thank you</h1><p class=\"lead\">Close this window, and go on in the app.</p>";
    page::page_that("Done", client.users.server().as_str(), body, DONE)
}
