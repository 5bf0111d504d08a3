//! The terms of this server: policies that whoever makes an account agrees to, and whoever sends (client-server API, "Terms
//! of service at registration", and `M_CONSENT_NOT_GIVEN`).
//!
//! GET and POST /_snug/terms is the page on which somebody with an account agrees; its link is signed, so that nobody
//! agrees for another. GET /_snug/terms/{policy}/{language} shows a policy whose text is a file of this server.

use std::path::PathBuf;
use std::sync::Arc;

use ruma::UserId;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Client, Error, Options, rates};
use crate::base::{blocking, gathered};
use crate::flow;
use crate::http::page::{self, escaped, paragraphs};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::user::Requester;

/// The path of the page on which one agrees.
pub const PATH: &str = "/_snug/terms";
/// The longest form: a name, a signature and a version, percent-encoded.
const FORM_BYTES_MAX: u64 = 4096;
/// The longest text of a policy. A page of it is charged twice that and more: the text, the page, markup for each character.
pub const TEXT_BYTES_MAX: u64 = 64 * 1024;

/// The policies, as the settings have them. Without any, nobody is asked.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    pub policies: Vec<Policy>,
    /// Whether accounts that have not agreed to the present versions must do so before they send something.
    pub required_to_send: bool,
    /// Whether those accounts are told when there are new versions.
    pub notice: bool,
}

/// A policy. Names, versions and languages are those of the settings.
#[derive(Debug, Clone)]
pub struct Policy {
    pub id: String,
    pub version: String,
    pub texts: Vec<PolicyText>,
}

/// A policy in one language.
#[derive(Debug, Clone)]
pub struct PolicyText {
    pub language: String,
    pub name: String,
    pub place: PolicyPlace,
}

/// Where a policy is read.
#[derive(Debug, Clone)]
pub enum PolicyPlace {
    Url(String),
    /// Plain text, which this server shows.
    File(PathBuf),
}

impl Terms {
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// What [`Requester::agreed`] is for who has agreed to these versions; 0 without policies. Names and languages may
    /// change without anybody having to agree again.
    pub fn digest(&self) -> u64 {
        if self.is_empty() {
            return 0;
        }
        let mut digest = Sha256::new();
        for part in self.policies.iter().flat_map(|policy| [&policy.id, &policy.version]) {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        let digest: [u8; 32] = digest.finalize().into();
        digest.first_chunk::<8>().map_or(1, |first| u64::from_be_bytes(*first)).max(1)
    }

    /// The parameters of the stage `m.login.terms`.
    pub fn params(&self, base: &str) -> Value {
        let policy = |policy: &Policy| {
            let mut shown = gathered::<_, Map<_, _>>([("version".to_owned(), Value::from(policy.version.as_str()))]);
            shown.extend(policy.texts.iter().map(|text| {
                let url = text.url(policy, base);
                (text.language.clone(), json!({ "name": text.name, "url": url }))
            }));
            (policy.id.clone(), Value::Object(shown))
        };
        json!({ "policies": gathered::<_, Map<_, _>>(self.policies.iter().map(policy)) })
    }

    /// The policies as links of a page, each in all its languages.
    pub fn links(&self, base: &str) -> String {
        let link = |policy: &Policy, text: &PolicyText| {
            let url = escaped(&text.url(policy, base));
            format!(
                "<a href=\"{url}\" hreflang=\"{}\" target=\"_blank\">{}</a>",
                escaped(&text.language),
                escaped(&text.name)
            )
        };
        let item = |policy: &Policy| {
            let links: Vec<_> = policy.texts.iter().map(|text| link(policy, text)).collect();
            format!("<li>{} ({})</li>", links.join(" · "), escaped(&policy.version))
        };
        format!("<ul>{}</ul>", self.policies.iter().map(item).collect::<String>())
    }
}

impl PolicyText {
    fn url(&self, policy: &Policy, base: &str) -> String {
        match &self.place {
            PolicyPlace::Url(url) => url.clone(),
            PolicyPlace::File(_) => format!("{base}{PATH}/{}/{}", policy.id, self.language),
        }
    }
}

/// Where apps and browsers reach this server: the public address, or the one that the request was sent to.
pub fn base(client: &Client, request: &Request) -> String {
    let public = client.options().public_url.as_ref().map(|url| url.trim_end_matches('/').to_owned());
    public.or_else(|| request.origin()).unwrap_or_else(|| format!("https://{}", client.users.server()))
}

/// 403 `M_CONSENT_NOT_GIVEN`, with the link where to agree, for who has not agreed to the present terms and must.
pub async fn check_agreed(client: &Client, request: &Request, requester: &Requester) -> Result<(), Error> {
    let options = client.options();
    let terms = &options.terms;
    // Bots and a service's users are no people; who runs them has agreed with the operator.
    let is_program = requester.is_bot || requester.service.is_some();
    let is_asked = terms.required_to_send && !terms.is_empty() && !is_program;
    if !is_asked || requester.agreed == terms.digest() {
        return Ok(());
    }
    let page = format!("{}{PATH}", base(client, request));
    let uri = client.users.terms_link(&page, &requester.user_id).await?;
    let message = format!("The terms of this server have to be agreed to before anything is sent: {uri}");
    let answer = ErrorResponse::new(StatusCode::FORBIDDEN, "M_CONSENT_NOT_GIVEN", message);
    Err(answer.with("consent_uri", uri).into())
}

/// Tells somebody who has just logged in of terms that they have not agreed to, where people are told of them: most apps do not
/// show why nothing is sent.
pub async fn tell_newcomer(client: &Client, request: &Request, user_id: &UserId) {
    let options = client.options();
    let terms = &options.terms;
    if !terms.notice || terms.is_empty() {
        return;
    }
    let (digest, page) = (terms.digest(), format!("{}{PATH}", base(client, request)));
    let new = flow::NewTerms { digest, page, required_to_send: terms.required_to_send };
    flow::tell_newcomer(&client.users, &client.notices, &new, user_id).await;
}

/// GET /_snug/terms?u={user}&h={mark}: the policies, and a button. Without a user only the policies.
///
/// 404 when this server has no terms; 403 when the mark is not that of the user.
pub async fn show(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (user, mark) = (request.query("u").unwrap_or_default(), request.query("h").unwrap_or_default());
    Ok(shown(&client, &request, &user, &mark).await.unwrap_or_else(|failed| trouble(&client, failed)))
}

async fn shown(client: &Client, request: &Request, user: &str, mark: &str) -> Result<Response, Error> {
    let options = with_terms(client)?;
    let terms = &options.terms;
    request.limit(&rates::TERMS)?;
    let head = format!(
        "<h1>Terms of {}</h1><p class=\"lead\">These hold for everybody with an account here:</p>{}",
        escaped(client.users.server().as_str()),
        terms.links(&base(client, request))
    );
    if user.is_empty() {
        return Ok(page(client, "Terms", &head));
    }
    let user_id = marked(client, user, mark).await?;
    if client.users.has_agreed(&user_id, terms.digest()).await? {
        return Ok(page(client, "Terms", &format!("{head}<p class=\"works\">You have agreed to them</p>")));
    }
    let body = format!(
        "{head}<form method=\"post\" action=\"{PATH}\"><p class=\"lead\">You are {}.</p><input type=\"hidden\" name=\"u\" value=\"{}\">\
<input type=\"hidden\" name=\"h\" value=\"{}\"><input type=\"hidden\" name=\"v\" value=\"{:016x}\"><button>I agree</button></form>",
        escaped(user_id.as_str()),
        escaped(user),
        escaped(mark),
        terms.digest()
    );
    Ok(page(client, "Terms", &body))
}

/// POST /_snug/terms: the user of the form agrees. Of versions that are not the present ones any more, the page is shown again.
///
/// 404 when this server has no terms; 403 when the mark is not that of the user; 413 when the form is too long.
pub async fn agree(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    Ok(agreed(&client, &mut request).await.unwrap_or_else(|failed| trouble(&client, failed)))
}

async fn agreed(client: &Client, request: &mut Request) -> Result<Response, Error> {
    let digest = with_terms(client)?.terms.digest();
    request.limit(&rates::TERMS)?;
    let body = request.bytes(FORM_BYTES_MAX).await?;
    let [user, mark, version] = ["u", "h", "v"].map(|name| page::field(&body, name));
    let user_id = marked(client, &user, &mark).await?;
    if version != format!("{digest:016x}") {
        return shown(client, request, &user, &mark).await;
    }
    client.users.set_agreed(&user_id, digest).await?;
    let body = "<p class=\"works\">You have agreed</p><h1>Thank you</h1><p class=\"lead\">Go back to your app, and send again what \
                it could not send.</p>";
    Ok(page(client, "You have agreed", body))
}

/// The user of a link, when the link is this server's.
async fn marked(client: &Client, user: &str, mark: &str) -> Result<ruma::OwnedUserId, Error> {
    let wrong = || ErrorResponse::forbidden("Part of this link is missing. The whole one is in the app's message.");
    let user_id = UserId::parse(format!("@{user}:{}", client.users.server())).map_err(|_| wrong())?;
    match client.users.is_terms_mark(&user_id, mark).await? {
        true => Ok(user_id),
        false => Err(wrong().into()),
    }
}

/// GET /_snug/terms/{policy}/{language}
///
/// 404 when there is no such text here; 429 without memory for it.
pub async fn text(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    Ok(read(&client, &request).await.unwrap_or_else(|failed| trouble(&client, failed)))
}

async fn read(client: &Client, request: &Request) -> Result<Response, Error> {
    let (id, language) = (request.param("policy"), request.param("language"));
    let options = client.options();
    let policy = options.terms.policies.iter().find(|policy| policy.id == id);
    let text = policy.and_then(|policy| policy.texts.iter().find(|text| text.language == language));
    let Some((name, PolicyPlace::File(file))) = text.map(|text| (&text.name, &text.place)) else {
        return Err(ErrorResponse::not_found("This server has no such policy").into());
    };
    request.limit(&rates::TERMS)?;
    let grant = client.budget.account("response_bodies").take(page::BYTES + 4 * TEXT_BYTES_MAX).await?;
    let file = file.clone();
    let text = blocking(move || read_file(&file)).await.map_err(ErrorResponse::internal)?;
    let version = policy.map_or("", |policy| &policy.version);
    let body = format!("<h1>{}</h1><p class=\"hint\">{}</p>{}", escaped(name), escaped(version), paragraphs(&text));
    Ok(page(client, name, &body).paid_by(grant))
}

/// The text of a policy, cut at [`TEXT_BYTES_MAX`].
fn read_file(file: &std::path::Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(file)?.take(TEXT_BYTES_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The settings in force, when they have terms.
fn with_terms(client: &Client) -> Result<Arc<Options>, ErrorResponse> {
    let options = client.options();
    match options.terms.is_empty() {
        true => Err(ErrorResponse::not_found("This server has no terms to agree to")),
        false => Ok(options),
    }
}

fn page(client: &Client, title: &str, body: &str) -> Response {
    page::page(title, client.users.server().as_str(), body)
}

/// The page in place of an error that only an app can read.
pub fn trouble(client: &Client, failed: Error) -> Response {
    page::trouble(client.users.server().as_str(), &failed.into())
}
