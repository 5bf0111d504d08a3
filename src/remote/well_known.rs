//! `/.well-known/matrix/server` of other servers.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, Response};
use rustls::pki_types;

use super::Failed;
use super::connect::{CONNECTION_BYTES, Connection, Dialer, Outgoing};
use super::dns::Dns;
use super::lookup::{Boxed, Lookup, Miss, Service, WellKnown};
use super::resolve::{Target, kept_ms};
use crate::base::Clock;
use crate::budget::Grant;

const WELL_KNOWN_BYTES_MAX: usize = 50 * 1024;

const WELL_KNOWN_REDIRECTS_MAX: usize = 5;

const WELL_KNOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// The real look-ups of the resolver: DNS, and well-known files over HTTPS.
pub struct World {
    pub dns: Dns,
    pub dialer: Dialer,
    pub clock: Clock,
}

impl Lookup for World {
    fn addresses<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<Vec<std::net::IpAddr>, Miss>> {
        Box::pin(self.dns.addresses(host))
    }

    fn services<'a>(&'a self, name: &'a str) -> Boxed<'a, Result<Vec<Service>, Miss>> {
        Box::pin(self.dns.services(name))
    }

    fn well_known<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<WellKnown, Miss>> {
        Box::pin(async move {
            let url = format!("https://{host}/.well-known/matrix/server");
            match self.clock.timeout(WELL_KNOWN_TIMEOUT, self.fetch_well_known(url)).await {
                Some(found) => found,
                None => Err(Miss::Silent(format!("{host} does not answer for its well-known file"))),
            }
        })
    }
}

impl World {
    async fn fetch_well_known(&self, mut url: String) -> Result<WellKnown, Miss> {
        for _ in 0..=WELL_KNOWN_REDIRECTS_MAX {
            let uri: http::Uri = url.parse().map_err(|_| Miss::Absent(format!("{url} is not a URL")))?;
            let (response, connection) = self.get(&uri).await?;
            match redirect(&uri, &response) {
                Some(next) => url = next,
                None => return read_well_known(response, connection.grant, self.clock.now_ms()).await,
            }
        }
        Err(Miss::Absent(format!("{url} redirects for ever")))
    }

    /// The head of an answer, and the connection its body comes through.
    async fn get(&self, uri: &http::Uri) -> Result<(Response<Incoming>, Connection), Miss> {
        let absent = |why: String| Miss::Absent(format!("{uri}: {why}"));
        let host = uri.host().ok_or_else(|| absent("no host".into()))?;
        if uri.scheme_str() != Some("https") {
            return Err(absent("not https".into()));
        }
        let ips = self.dns.addresses(host).await?;
        let port = uri.port_u16().unwrap_or(443);
        let tls_name = pki_types::ServerName::try_from(host.to_owned()).map_err(|error| absent(error.to_string()))?;
        let target = Target {
            addresses: ips.into_iter().map(|ip| (ip, port).into()).collect(),
            tls_name,
            host: host.to_owned(),
            fixed: false,
        };
        let grant =
            self.dialer.account.take(CONNECTION_BYTES).await.map_err(|refused| Miss::Silent(refused.to_string()))?;
        let mut connection = self.dialer.dial(&target, grant).await.map_err(|failed| match failed {
            Failed::Unreachable { why, silent: true } => Miss::Silent(why),
            other => absent(other.to_string()),
        })?;
        let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header("host", uri.authority().map_or(host, |authority| authority.as_str()))
            .header("user-agent", super::USER_AGENT)
            .body(Outgoing::default())
            .map_err(|error| absent(error.to_string()))?;
        let response = connection.sender.send_request(request).await.map_err(|error| absent(error.to_string()))?;
        Ok((response, connection))
    }
}

/// Where a 30x answer points, made absolute.
fn redirect(from: &http::Uri, response: &Response<Incoming>) -> Option<String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let to = response.headers().get("location")?.to_str().ok()?;
    Some(match to.starts_with('/') {
        true => format!("https://{}{to}", from.authority()?),
        false => to.to_owned(),
    })
}

/// `grant` pays for the connection, and grows with the bytes read.
async fn read_well_known(response: Response<Incoming>, mut grant: Grant, now_ms: u64) -> Result<WellKnown, Miss> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(rename = "m.server")]
        server: String,
    }
    if response.status() != 200 {
        return Err(Miss::Absent(format!("well-known answers {}", response.status())));
    }
    let max_age_ms = kept_ms(response.headers(), now_ms);
    let absent = |why: &dyn std::fmt::Display| Miss::Absent(format!("well-known body: {why}"));
    let (mut frames, mut body) = (response.into_body(), Vec::new());
    while let Some(frame) = frames.frame().await {
        let Ok(data) = frame.map_err(|error| absent(&error))?.into_data() else { continue };
        if body.len() + data.len() > WELL_KNOWN_BYTES_MAX {
            return Err(absent(&"longer than a file of one name"));
        }
        // Twice, since the buffer grows by doubling.
        grant.grow(2 * data.len() as u64).map_err(|refused| Miss::Silent(refused.to_string()))?;
        body.extend_from_slice(&data);
    }
    let file: File = serde_json::from_slice(&body).map_err(|error| absent(&error))?;
    Ok(WellKnown { server: file.server, max_age_ms })
}
