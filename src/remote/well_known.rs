//! `/.well-known/matrix/server` of other servers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::contact::Contact;
use super::dns::Dns;
use super::lookup::{Boxed, Lookup, Miss, Service, WellKnown};
use super::resolve::kept_ms;
use super::web::{Plain, Web, WebFailed, WebLimits, WebRequest};
use crate::base::Random;

/// A web server that gives no sign for so long leaves the other half of an app's patience to the steps after it.
const PATIENCE: Duration = Duration::from_secs(3);
const LIMITS: WebLimits = WebLimits {
    time: Duration::from_secs(10),
    patience: PATIENCE,
    body_bytes_max: 50 * 1024,
    redirects_max: 5,
    plain: Plain::Never,
    allow_private: false,
};

/// The real look-ups of the resolver: DNS, and well-known files over HTTPS.
pub struct World {
    pub dns: Arc<Dns>,
    pub web: Web,
    pub allow_private: bool,
    pub random: Random,
}

impl Lookup for World {
    fn addresses<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<Vec<IpAddr>, Miss>> {
        Box::pin(self.dns.addresses(host))
    }

    fn services<'a>(&'a self, name: &'a str) -> Boxed<'a, Result<Vec<Service>, Miss>> {
        Box::pin(self.dns.services(name))
    }

    fn well_known<'a>(&'a self, host: &'a str, contact: &'a Contact) -> Boxed<'a, Result<WellKnown, Miss>> {
        Box::pin(async move {
            let request = WebRequest::get(format!("https://{host}/.well-known/matrix/server"));
            let limits = WebLimits { allow_private: self.allow_private, ..LIMITS };
            let file = fetch(&self.web, request, limits, contact).await;
            file.map_err(|failed| match failed.is_silence() {
                true => Miss::Silent(format!("well-known of {host}: {failed}")),
                false => Miss::Absent(format!("well-known of {host}: {failed}")),
            })
        })
    }

    fn has_name_server(&self) -> Boxed<'_, bool> {
        Box::pin(self.dns.has_name_server([self.random.u64(), self.random.u64()]))
    }
}

async fn fetch(web: &Web, request: WebRequest, limits: WebLimits, contact: &Contact) -> Result<WellKnown, WebFailed> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(rename = "m.server")]
        server: String,
    }
    let answer = web.ask_noting(request, limits, contact).await?;
    if answer.status != 200 {
        return Err(WebFailed::BadAnswer(format!("the status {}", answer.status)));
    }
    let max_age_ms = kept_ms(&answer.headers, web.now_ms());
    let (body, _grant) = answer.read().await?;
    let file: File = serde_json::from_slice(&body).map_err(|error| WebFailed::BadAnswer(error.to_string()))?;
    Ok(WellKnown { server: file.server, max_age_ms })
}
