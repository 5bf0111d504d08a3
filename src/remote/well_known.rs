//! `/.well-known/matrix/server` of other servers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::contact::Contact;
use super::dns::Dns;
use super::lookup::{Boxed, Lookup, Miss, Service, WellKnown};
use super::resolve::kept_ms;
use super::web::{Plain, Web, WebFailed, WebLimits, WebRequest};
use crate::base::{Random, brief};

/// A web server that gives no sign for so long is not waited for.
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
    fn addresses<'a>(&'a self, host: &'a str, allow_private: bool) -> Boxed<'a, Result<Vec<IpAddr>, Miss>> {
        Box::pin(self.dns.addresses(host, allow_private))
    }

    fn services<'a>(&'a self, name: &'a str) -> Boxed<'a, Result<Vec<Service>, Miss>> {
        Box::pin(self.dns.services(name))
    }

    fn well_known<'a>(&'a self, host: &'a str, contact: &'a Contact) -> Boxed<'a, Result<WellKnown, Miss>> {
        Box::pin(async move {
            let request = WebRequest::get(format!("https://{host}/.well-known/matrix/server"));
            // The rest of the attempt's time is for the steps that follow a silence.
            let patience = PATIENCE.min(contact.patience() * 3 / 5);
            let limits = WebLimits { patience, allow_private: self.allow_private, ..LIMITS };
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
    let file: File = serde_json::from_slice(&body).map_err(|error| WebFailed::BadAnswer(brief(error)))?;
    Ok(WellKnown { server: file.server, max_age_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Clock;
    use crate::budget::Budget;
    use crate::remote::connect::{Dialer, roots};
    use crate::remote::lookup::Names;
    use crate::remote::outage::TRIAL;

    /// A name server that never answers.
    struct Silent;

    impl Names for Silent {
        fn all_addresses<'a>(&'a self, _: &'a str) -> Boxed<'a, Result<Vec<IpAddr>, Miss>> {
            Box::pin(std::future::pending())
        }
    }

    /// While the Internet was gone, a server in the house was given up while its silent web server was still waited for.
    #[tokio::test]
    async fn a_silent_web_server_leaves_time_for_the_steps_after_it() {
        let clock = Clock::simulated(1);
        let dialer = Dialer::new(roots(None).unwrap(), Budget::for_tests().account("outbound"), clock.clone());
        let web = Web::new(Arc::new(Silent), dialer, clock.clone());
        let world = World { dns: Arc::new(Dns::new(16)), web, allow_private: true, random: Random::seeded(1) };
        let contact = Contact::new(TRIAL);
        let asking = async {
            let asked = world.well_known("a.example", &contact).await;
            (asked, clock.instant())
        };
        let passing = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
                clock.advance(TRIAL / 8);
            }
        };
        let began = clock.instant();
        let ((asked, ended), ()) = tokio::join!(asking, passing);
        assert!(matches!(asked, Err(Miss::Silent(_))) && ended - began < TRIAL, "{asked:?} {:?}", ended - began);
    }
}
