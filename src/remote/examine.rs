//! How a server is reached and whether federation with it works, step by step, in sentences: for `snug check` and the page.
//!
//! Everything is looked up anew, past what is kept, and nothing of it counts for or against the server. Inbound: the
//! well-known file, DNS, each address with its port and certificate, the server's key and version. Outbound: a request with
//! our signature, which works only when the server can fetch our key too; and one whose path has letters that proxies like to
//! rewrite. The same is asked of this server itself, at its own public address: so a proxy before it that rewrites paths is
//! found before a message is lost. Bounded by [`EXAMINE_MAX`], [`ADDRESSES_TRIED`] connections and 64 KiB an answer.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use ruma::ServerName;
use serde_json::Value;

use super::Remote;
use super::address::is_private;
use super::connect::CONNECTION_BYTES;
use super::contact::Contact;
use super::keys::check_answer;
use super::lookup::Miss;
use super::request::{Failed, build};
use super::resolve::Target;
use crate::base::{bounded, date};
use crate::matrix::json::partial;
use crate::matrix::sign;

/// All of it.
const EXAMINE_MAX: Duration = Duration::from_secs(60);
/// One look-up, or one request.
const STEP_MAX: Duration = Duration::from_secs(15);
const ADDRESSES_TRIED: usize = 4;
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// A path that is only right as it is: proxies decode `%2F` and `%21`, encode `$`, or join slashes.
const ODD_PATH: &str = "/_matrix/federation/v1/event/%24a%2Fb%21c%3Ad%2Be%20f%252Fg";
/// How the federation of this program refuses a request in its own name whose signature is right.
pub const MYSELF: &str = "The origin of the request is this server itself";
/// Characters of what another server says.
const SAID_CHARS_MAX: usize = 200;
/// Characters of a finding: names of keys, hosts of records and errors in it are others' too.
const STEP_CHARS_MAX: usize = 1_000;

/// Whether a finding is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Good,
    /// Worth knowing.
    Note,
    Bad,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    pub verdict: Verdict,
    pub text: String,
}

/// The findings so far.
#[derive(Default)]
struct Steps(Mutex<Vec<Step>>);

impl Steps {
    fn good(&self, text: impl Into<String>) {
        self.add(Verdict::Good, text.into());
    }

    fn note(&self, text: impl Into<String>) {
        self.add(Verdict::Note, text.into());
    }

    fn bad(&self, text: impl Into<String>) {
        self.add(Verdict::Bad, text.into());
    }

    fn add(&self, verdict: Verdict, text: String) {
        self.0.lock().push(Step { verdict, text: bounded(text, STEP_CHARS_MAX) });
    }
}

/// An answer of any status.
struct Answered {
    status: u16,
    body: Vec<u8>,
}

impl Answered {
    fn errcode(&self) -> String {
        partial::member::<String>(&self.body, "errcode").unwrap_or_default()
    }

    /// Status, code and sentence, bounded.
    fn said(&self) -> String {
        let message = partial::member::<String>(&self.body, "error").unwrap_or_default();
        bounded(format_args!("{} {} {message}", self.status, self.errcode()), SAID_CHARS_MAX)
    }
}

impl Remote {
    /// Examines the way to a server, or to this one as others come to it.
    pub async fn examine(&self, server: &ServerName) -> Vec<Step> {
        let steps = Arc::<Steps>::default();
        if let Some(named) = self.0.barred.named(server).await {
            steps.bad(format!("{}: nothing was asked", named.sentence()));
            return std::mem::take(&mut *steps.0.lock());
        }
        let done = self.0.clock.timeout(EXAMINE_MAX, self.all_steps(server, &steps)).await;
        if done.is_none() {
            steps.bad(format!("The rest was given up after {} s.", EXAMINE_MAX.as_secs()));
        }
        std::mem::take(&mut *steps.0.lock())
    }

    /// The same as somebody whose signature nobody knows.
    pub async fn examine_unsigned(&self, server: &ServerName) -> Vec<Step> {
        let steps = Arc::<Steps>::default();
        let looking = async {
            let Some(target) = self.located(server, &steps).await else { return };
            if let Some(target) = self.reached_at(&target, &steps).await {
                self.unsigned(server, &target, &steps).await;
            }
        };
        if self.0.clock.timeout(EXAMINE_MAX, looking).await.is_none() {
            steps.bad(format!("The rest was given up after {} s.", EXAMINE_MAX.as_secs()));
        }
        std::mem::take(&mut *steps.0.lock())
    }

    /// Sends signed requests to this server itself, the way that others come: a proxy that rewrites them is found.
    pub async fn examine_myself(&self) -> Vec<Step> {
        let steps = Steps::default();
        let server = self.0.server_name.clone();
        let contact = Contact::default();
        let found =
            self.0.clock.timeout(STEP_MAX, self.0.resolver.resolve(&server, self.owner_of(&server).await, &contact));
        match found.await {
            Some(Ok(target)) => self.signed(&server, &target, &steps).await,
            Some(Err(Miss::Absent(why) | Miss::Silent(why))) => {
                steps.bad(format!("Others cannot find {server}: {why}."))
            }
            None => steps.bad(format!("Looking {server} up takes longer than {} s.", STEP_MAX.as_secs())),
        }
        steps.0.into_inner()
    }

    async fn all_steps(&self, server: &ServerName, steps: &Steps) {
        let Some(target) = self.located(server, steps).await else { return };
        let reached = self.reached_at(&target, steps).await;
        let Some(target) = reached else { return };
        self.unsigned(server, &target, steps).await;
        self.signed(server, &target, steps).await;
    }

    /// Where the server is, by the specification's steps, each told.
    async fn located(&self, server: &ServerName, steps: &Steps) -> Option<Target> {
        let contact = Contact::new(STEP_MAX);
        let clock = &self.0.clock;
        if let Some(to) = self.0.resolver.override_of(server) {
            steps.note(format!("federation.overrides leads {server} to {to}; others go by the DNS."));
        } else if !server.is_ip_literal() && server.port().is_none() {
            let lookup = self.0.resolver.lookup();
            let host = server.host();
            let name = match clock.timeout(STEP_MAX, lookup.well_known(host, &contact)).await {
                Some(Ok(found)) => {
                    let led = bounded(&found.server, SAID_CHARS_MAX);
                    steps.good(format!("https://{host}/.well-known/matrix/server leads to {led}."));
                    self.0.resolver.forget(server);
                    <&ServerName>::try_from(found.server.as_str()).map(ToOwned::to_owned).ok()
                }
                Some(Err(Miss::Absent(why))) => {
                    steps.note(format!(
                        "No file says where the server is, which is right where {host} itself is it: {why}."
                    ));
                    None
                }
                Some(Err(Miss::Silent(why))) => {
                    steps.bad(format!("The web server of {host} gives no sign; others wait for it each time: {why}."));
                    None
                }
                None => {
                    steps.bad(format!("The web server of {host} takes longer than {} s.", STEP_MAX.as_secs()));
                    None
                }
            };
            let named = name.as_deref().unwrap_or(server);
            if named.port().is_none() && !named.is_ip_literal() {
                self.services(named.host(), steps).await;
            }
        }
        let owner = self.owner_of(server).await;
        match clock.timeout(STEP_MAX, self.0.resolver.resolve(server, owner, &contact)).await {
            Some(Ok(target)) => {
                let shown: Vec<_> = target.addresses.iter().map(ToString::to_string).collect();
                steps.good(format!("It is looked for at {}, as {}.", shown.join(", "), target.host));
                if target.addresses.iter().all(|address| is_private(address.ip())) {
                    steps.note("That is an address of a home or company network: only machines inside it get there.");
                }
                Some(target)
            }
            Some(Err(Miss::Absent(why) | Miss::Silent(why))) => {
                steps.bad(format!("{server} cannot be found: {why}."));
                None
            }
            None => {
                steps.bad(format!("Looking {server} up takes longer than {} s.", STEP_MAX.as_secs()));
                None
            }
        }
    }

    async fn services(&self, host: &str, steps: &Steps) {
        for (prefix, is_old) in [("_matrix-fed._tcp.", false), ("_matrix._tcp.", true)] {
            let name = format!("{prefix}{host}");
            match self.0.clock.timeout(STEP_MAX, self.0.resolver.lookup().services(&name)).await {
                Some(Ok(found)) if !found.is_empty() => {
                    let shown: Vec<_> =
                        found.iter().take(4).map(|service| format!("{}:{}", service.host, service.port)).collect();
                    let old = if is_old { " (that name is deprecated)" } else { "" };
                    return steps.good(format!("The SRV record {name} leads to {}{old}.", shown.join(", ")));
                }
                Some(Err(Miss::Silent(why))) => {
                    return steps.note(format!("The name server says nothing of {name}: {why}."));
                }
                _ => {}
            }
        }
    }

    /// Tries each address for itself: others take the first that answers them, which may be any. Answers the target with
    /// those that did.
    async fn reached_at(&self, target: &Target, steps: &Steps) -> Option<Target> {
        let mut good = Vec::new();
        for address in target.addresses.iter().take(ADDRESSES_TRIED) {
            let one = Target { addresses: vec![*address], ..target.clone() };
            match self.connection(&one).await {
                Ok(_) => {
                    good.push(*address);
                    steps.good(format!(
                        "{address} answers, with a certificate for {} that everybody trusts.",
                        host_of(target)
                    ));
                }
                Err(failed) => steps.bad(format!("{address}: {failed}.")),
            }
        }
        (!good.is_empty()).then(|| Target { addresses: good, ..target.clone() })
    }

    async fn connection(&self, target: &Target) -> Result<super::connect::Connection, Failed> {
        let grant = self.0.account.take(CONNECTION_BYTES).await?;
        let contact = Contact::new(STEP_MAX);
        let dialled = self.0.clock.timeout(STEP_MAX, self.0.dialer.dial(target, grant, &contact)).await;
        dialled.unwrap_or(Err(Failed::Timeout))
    }

    /// What needs no signature: the server's key, and what it runs.
    async fn unsigned(&self, server: &ServerName, target: &Target, steps: &Steps) {
        match self.ask(server, target, "/_matrix/key/v2/server").await {
            Ok(answer) if answer.status == 200 => match check_answer(&answer.body, self.0.clock.now_ms()) {
                Ok(checked) if *checked.server == *server => {
                    let valid: Option<u64> = partial::member(&answer.body, "valid_until_ts");
                    let until = valid.map_or(String::new(), |ms| format!(", valid until {}", date(ms)));
                    let ids: Vec<&str> = checked.keys.iter().map(|(id, _)| id.as_str()).collect();
                    steps.good(format!("It gives out the key {} of {server}{until}.", ids.join(", ")));
                }
                Ok(checked) => steps.bad(format!(
                    "{} answers there, and not {server}: its name in its own settings is another one.",
                    bounded(&checked.server, SAID_CHARS_MAX)
                )),
                Err(why) => steps.bad(format!("Its keys cannot be used: {why}.")),
            },
            Ok(answer) => steps.bad(format!(
                "It gives out no key (/_matrix/key/v2/server answers {}): what answers there is no Matrix server, or a proxy \
                 that does not pass /_matrix/key on.",
                answer.said()
            )),
            Err(failed) => steps.bad(format!("Asked for its key, it {failed}.")),
        }
        if let Ok(answer) = self.ask(server, target, "/_matrix/federation/v1/version").await {
            let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let word = |field: &str| bounded(said["server"][field].as_str().unwrap_or("?"), 60);
            match answer.status {
                200 => steps.good(format!("It runs {} {}.", word("name"), word("version"))),
                _ => steps.note(format!("It does not say what it runs: {}.", answer.said())),
            }
        }
    }

    /// Requests with our signature.
    async fn signed(&self, server: &ServerName, target: &Target, steps: &Steps) {
        if self.is_me(server) {
            return self.signed_to_myself(target, steps).await;
        }
        let user = super::encode(&format!("@snug-check:{server}"));
        let path = format!("/_matrix/federation/v1/query/profile?user_id={user}&field=displayname");
        match self.ask(server, target, &path).await {
            Ok(answer) if answer.status == 401 => {
                return steps.bad(format!(
                    "It does not accept this server's signature, so it does not reach this server to fetch its key, or a \
                     proxy changes requests: {}.",
                    answer.said()
                ));
            }
            Ok(answer) if answer.errcode().is_empty() && answer.status != 200 => {
                return steps.bad(format!("A signed request gets no answer of a Matrix server: {}.", answer.said()));
            }
            // That there is no such user it says only to whom it believes.
            Ok(_) => steps.good("It accepts a request with this server's signature."),
            Err(failed) => return steps.bad(format!("A signed request fails: it {failed}.")),
        }
        match self.ask(server, target, ODD_PATH).await {
            Ok(answer) if answer.status == 401 => steps.bad(format!(
                "A proxy before it rewrites paths: of two signed requests it accepts the plain one alone ({}).",
                answer.said()
            )),
            Ok(_) => steps.good("Paths with encoded letters get there as they were sent."),
            Err(failed) => steps.bad(format!("A request with encoded letters in its path fails: it {failed}.")),
        }
    }

    async fn signed_to_myself(&self, target: &Target, steps: &Steps) {
        let server = self.0.server_name.clone();
        for (path, what) in [("/_matrix/federation/v1/query/profile", "plain"), (ODD_PATH, "encoded")] {
            let answer = match self.ask(&server, target, path).await {
                Ok(answer) => answer,
                Err(failed) => {
                    return steps.bad(format!(
                        "A signed request to this server's own public address fails: it {failed}. (Some home routers do not \
                         let a machine reach itself from inside; then try from outside.)"
                    ));
                }
            };
            let message = partial::member::<String>(&answer.body, "error").unwrap_or_default();
            match (answer.status, message.as_str(), what) {
                (401, MYSELF, "plain") => {}
                (401, MYSELF, _) => steps.good(
                    "Signed requests get here through the public address as they were sent, also with encoded letters in the path.",
                ),
                (401, _, "plain") => {
                    return steps.bad(format!(
                        "A signed request through the public address gets here changed. Does a proxy drop the Authorization \
                         header, or is another server there? ({})",
                        answer.said()
                    ));
                }
                _ if answer.errcode().is_empty() => {
                    return steps.bad(format!(
                        "What answers at the public address is not this server: {}. A proxy must pass on all of /_matrix.",
                        answer.said()
                    ));
                }
                _ => {
                    return steps.bad(format!(
                        "A reverse proxy rewrites the path of requests, so that signatures of other servers become wrong. It must pass \
                         paths on unchanged (nginx: `proxy_pass` without a path; Apache: `nocanon`): {}",
                        answer.said()
                    ));
                }
            }
        }
    }

    /// One signed request to a target, and its answer whatever its status.
    async fn ask(&self, server: &ServerName, target: &Target, path: &str) -> Result<Answered, Failed> {
        let signed = sign::request::sign(&self.0.key, &self.0.server_name, server, "GET", path, None)
            .map_err(|reject| Failed::Unsendable(reject.to_string()))?;
        let asking = async {
            let mut connection = self.connection(target).await?;
            let request = build(&Method::GET, path, &target.host, &signed, None)?;
            let response = connection.sender.send_request(request).await;
            let response = response.map_err(|error| Failed::BadAnswer(error.to_string()))?;
            let status = response.status().as_u16();
            let body = self.read_small(response.into_body(), ANSWER_BYTES_MAX).await?.body;
            Ok(Answered { status, body })
        };
        self.0.clock.timeout(STEP_MAX, asking).await.unwrap_or(Err(Failed::Timeout))
    }
}

/// The host of a target without its port, which its certificate is for.
fn host_of(target: &Target) -> String {
    <&ServerName>::try_from(target.host.as_str()).map_or(target.host.clone(), |name| name.host().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_whatever_others_say() {
        let steps = Steps::default();
        steps.good(format!("It gives out the key ed25519:\u{1b}[2J\n{}.", "x".repeat(5_000)));
        let said = steps.0.into_inner();
        assert!(said[0].text.chars().count() <= STEP_CHARS_MAX && !said[0].text.contains(char::is_control));
    }
}
