//! One order: account, names, challenges, request, certificate (RFC 8555, section 7.1).
//!
//! Each step that the authority must remember with us is written down before the next: the account when it is made, the
//! key and the order before the request for the certificate. A server killed in the middle takes up the order.

use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, ExternalAccountKey, Identifier, NewAccount,
    NewOrder, Order, OrderStatus,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};

use super::asking::Asking;
use super::{Challenge, Inner, Pending, State, renewal};
use crate::certificates::new_key;
use crate::http::tls::Pair;

pub use super::said::Missed;
use super::said::{problem_of, refused, said_by};

/// Looks at an order that is not done yet. The pauses between them make five minutes.
const LOOKS_MAX: u32 = 40;
const LOOK_PAUSE_MIN: Duration = Duration::from_secs(1);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(10);
const NONCE_TRIES: u32 = 4;
/// A token is some 43 characters of base64.
const TOKEN_BYTES_MAX: usize = 256;

/// Gets a certificate for the names: the pair, and its text.
pub async fn run(
    inner: &Inner,
    state: &mut State,
    asking: &Asking,
    names: &[String],
) -> Result<(Pair, String), Missed> {
    let mut job = Job { inner, state, asking, names };
    let account = job.account().await?;
    if let Some(done) = job.pending(&account).await? {
        return Ok(done);
    }
    let mut order = job.begin(&account).await?;
    if order.state().status == OrderStatus::Pending {
        job.challenges(&mut order).await?;
        job.wait(&mut order).await?;
    }
    job.finish(order).await
}

struct Job<'a> {
    inner: &'a Inner,
    state: &'a mut State,
    asking: &'a Asking,
    names: &'a [String],
}

impl Job<'_> {
    fn from(&self) -> String {
        self.inner.options.acme.authority()
    }

    fn failed(&self, error: instant_acme::Error) -> Missed {
        said_by(&self.from(), &error)
    }

    /// The account of an earlier order, or a new one.
    async fn account(&mut self) -> Result<Account, Missed> {
        let options = &self.inner.options.acme;
        let contact: Vec<String> = options.email.iter().map(|email| format!("mailto:{email}")).collect();
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let builder = || Account::builder_with_http(Box::new(self.asking.clone()));
        let known = self.state.account.clone();
        if let Some(known) = known.and_then(|known| serde_json::from_value::<AccountCredentials>(known).ok()) {
            let account = builder().from_credentials(known).await.map_err(|error| self.failed(error))?;
            if self.state.email != options.email {
                account.update_contacts(&contact).await.map_err(|error| self.lost(error))?;
                self.state.email = options.email.clone();
                self.state.write().await;
            }
            return Ok(account);
        }
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let external = options.external_account.as_ref().map(|(id, key)| ExternalAccountKey::new(id.clone(), key));
        let mut tries = 0;
        let made = loop {
            let made = builder().create(&new, options.directory.clone(), external.as_ref()).await;
            if !is_nonce_refused(&made, &mut tries) {
                break made;
            }
        };
        let (account, credentials) = made.map_err(|error| self.failed(error))?;
        self.state.account = serde_json::to_value(&credentials).ok();
        self.state.email = options.email.clone();
        self.state.write().await;
        tracing::info!("an account was made at {}", self.from());
        Ok(account)
    }

    /// An account that the authority does not know any more is made anew by the next try.
    fn lost(&mut self, error: instant_acme::Error) -> Missed {
        let is_lost = problem_of(&error).is_some_and(|kind| kind == "accountDoesNotExist");
        let mut missed = self.failed(error);
        if is_lost {
            (self.state.account, self.state.order) = (None, None);
            missed.is_soon = true;
        }
        missed
    }

    /// The certificate of an order whose end an earlier run did not see.
    async fn pending(&mut self, account: &Account) -> Result<Option<(Pair, String)>, Missed> {
        let Some(Pending { url, names, key }) = self.state.order.clone() else { return Ok(None) };
        let is_wanted = names == self.names;
        if is_wanted && let Ok(mut order) = account.order(url).await {
            let is_done = matches!(order.state().status, OrderStatus::Valid | OrderStatus::Processing);
            if is_done && let Ok(done) = self.collect(&mut order, &key).await {
                tracing::info!("the order of an earlier run was taken up");
                return Ok(Some(done));
            }
        }
        self.state.order = None;
        self.state.write().await;
        Ok(None)
    }

    async fn begin(&mut self, account: &Account) -> Result<Order, Missed> {
        let names: Vec<Identifier> = self.names.iter().map(|name| Identifier::Dns(name.clone())).collect();
        // That it takes the place of another spares the authority's limits. Not every authority knows that.
        let is_known = self.state.wanted.is_some_and(|(_, wanted_ms)| wanted_ms.is_some());
        let leaf = self.inner.certificate.leaf().filter(|_| is_known);
        if let Some(replaced) = leaf.and_then(|leaf| renewal::replaced(&leaf))
            && let Ok(order) = account.new_order(&NewOrder::new(&names).replaces(replaced)).await
        {
            return Ok(order);
        }
        let mut tries = 0;
        let begun = loop {
            let begun = account.new_order(&NewOrder::new(&names)).await;
            if !is_nonce_refused(&begun, &mut tries) {
                break begun;
            }
        };
        begun.map_err(|error| self.lost(error))
    }

    /// Shows the answer to a challenge for each name, and says that it is there.
    async fn challenges(&mut self, order: &mut Order) -> Result<(), Missed> {
        let from = self.from();
        let wanted = self.challenge();
        let mut authorizations = order.authorizations();
        let mut left = self.names.len();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| said_by(&from, &error))?;
            if left == 0 {
                return Err(Missed::of(format!("{from} asks about more names than there are.")));
            }
            left -= 1;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let name = authorization.identifier().to_string();
            if !self.names.contains(&name) {
                return Err(Missed::of(format!("{from} asks about a name that is not ours.")));
            }
            let has = |kind: &ChallengeType| authorization.challenges.iter().any(|challenge| challenge.r#type == *kind);
            let Some(kind) = wanted.iter().find(|kind| has(kind)).cloned() else {
                return Err(Missed::of(format!(
                    "{from} offers no way to check {name} that this server knows (HTTP-01 or TLS-ALPN-01)."
                ))
                .about(vec![name]));
            };
            let Some(mut challenge) = authorization.challenge(kind.clone()) else { continue };
            if challenge.token.is_empty() || challenge.token.len() > TOKEN_BYTES_MAX {
                return Err(Missed::of(format!("{from} sent a challenge that cannot be answered.")));
            }
            let answer = challenge.key_authorization();
            match kind {
                ChallengeType::Http01 => {
                    let token = challenge.token.clone();
                    self.inner.acme.answers.lock().push((token, answer.as_str().to_owned()));
                }
                _ => {
                    let shown = challenge_certificate(&name, answer.digest().as_ref())?;
                    self.inner.certificate.answer_challenge(&name, shown);
                }
            }
            let mut tries = 0;
            let ready = loop {
                let ready = challenge.set_ready().await;
                if !is_nonce_refused(&ready, &mut tries) {
                    break ready;
                }
            };
            ready.map_err(|error| said_by(&from, &error))?;
        }
        Ok(())
    }

    /// The kinds of challenges, the wanted one first.
    fn challenge(&self) -> Vec<ChallengeType> {
        let by = |kind| match kind {
            Challenge::Http => ChallengeType::Http01,
            _ => ChallengeType::TlsAlpn01,
        };
        order_of(self.inner.options.acme.challenge, self.inner.acme.is_80_open(), self.state.failures)
            .into_iter()
            .map(by)
            .collect()
    }

    /// Waits until the authority has seen every answer.
    async fn wait(&mut self, order: &mut Order) -> Result<(), Missed> {
        let from = self.from();
        for look in 0..LOOKS_MAX {
            self.inner.parts.clock.sleep(self.pause(look)).await;
            let missed = match order.refresh().await.map(|state| state.status) {
                Ok(OrderStatus::Ready | OrderStatus::Valid) => return Ok(()),
                Ok(OrderStatus::Invalid) => return Err(self.why(order).await),
                Ok(OrderStatus::Pending | OrderStatus::Processing) => continue,
                Err(error) => said_by(&from, &error),
            };
            // A lost connection or a refused nonce is no end of the order: the next look may succeed.
            if !missed.is_soon {
                return Err(missed);
            }
        }
        Err(Missed::soon(format!("{from} has not checked the names in time.")))
    }

    fn pause(&self, look: u32) -> Duration {
        let told = Duration::from_millis(self.asking.told_to_wait_ms().unwrap_or_default());
        told.max(LOOK_PAUSE_MIN * (look + 1)).min(LOOK_PAUSE_MAX)
    }

    /// Which names the authority did not find to be ours, and why.
    async fn why(&self, order: &mut Order) -> Missed {
        let from = self.from();
        let (mut said, mut bad, mut is_limited, mut is_soon) = (Vec::new(), Vec::new(), false, true);
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let name = authorization.identifier().to_string();
            let Ok(state) = authorization.refresh().await else { continue };
            let failed =
                state.challenges.iter().find_map(|challenge| Some((&challenge.r#type, challenge.error.as_ref()?)));
            if let Some((kind, problem)) = failed {
                let missed = refused(&from, &name, kind, problem);
                is_limited |= missed.is_limited;
                is_soon &= missed.is_soon;
                said.push(missed.said);
                bad.push(name);
            }
        }
        if said.is_empty() {
            return Missed::of(format!("{from} gave the order up and does not say why."));
        }
        // Each is bounded; that of every name of a long list would be a page.
        said.truncate(3);
        Missed { is_limited, is_soon, ..Missed::of(said.join(" ")).about(bad) }
    }

    /// Asks for the certificate of an order whose names are checked.
    async fn finish(&mut self, mut order: Order) -> Result<(Pair, String), Missed> {
        let key = new_key().map_err(|error| Missed::of(error.to_string()))?;
        let request = request(self.names, &key)?;
        let text = key.serialize_pem();
        let (url, names) = (order.url().to_owned(), self.names.to_vec());
        self.state.order = Some(Pending { url, names, key: text.clone() });
        self.state.write().await;
        if order.state().status == OrderStatus::Ready {
            let mut tries = 0;
            let finalized = loop {
                let finalized = order.finalize_csr(&request).await;
                if !is_nonce_refused(&finalized, &mut tries) {
                    break finalized;
                }
            };
            finalized.map_err(|error| self.failed(error))?;
        }
        self.collect(&mut order, &text).await
    }

    /// Waits for the certificate, and looks whether it is what was asked for.
    async fn collect(&mut self, order: &mut Order, key: &str) -> Result<(Pair, String), Missed> {
        let from = self.from();
        let mut look = 0;
        let chain = loop {
            let missed = match order.certificate().await {
                Ok(Some(chain)) => break chain,
                Ok(None) => Missed::soon(format!("{from} has not made the certificate in time.")),
                Err(error) => self.failed(error),
            };
            if look == LOOKS_MAX || !missed.is_soon {
                return Err(missed);
            }
            self.inner.parts.clock.sleep(self.pause(look)).await;
            look += 1;
        };
        let unusable = |why: &dyn std::fmt::Display| Missed::of(format!("{from} sent a certificate of no use: {why}."));
        let pair = Pair::parse(chain.as_bytes(), key.as_bytes(), "it").map_err(|error| unusable(&error))?;
        if let Some(name) = self.names.iter().find(|name| !pair.is_for(name)) {
            return Err(unusable(&format_args!("it is not for {name}")));
        }
        match pair.validity_ms() {
            Some((_, until_ms)) if until_ms > self.inner.parts.clock.now_ms() => {
                let line = if chain.ends_with('\n') { "" } else { "\n" };
                Ok((pair, format!("{chain}{line}{key}")))
            }
            Some(_) => Err(unusable(&"it has ended already; is the clock of this machine right?")),
            None => Err(unusable(&"it has no dates")),
        }
    }
}

/// Whether an authority has refused one nonce after the other (RFC 8555, section 6.5), and is asked again; the library asks three
/// times. A loop at each caller: what asks in a closure makes a future that the compiler cannot tell to be `Send` everywhere.
fn is_nonce_refused<T>(done: &Result<T, instant_acme::Error>, tries: &mut u32) -> bool {
    *tries += 1;
    let refused = done.as_ref().err().and_then(problem_of).is_some_and(|kind| kind == "badNonce");
    refused && *tries < NONCE_TRIES
}

/// Which challenges are tried, in order: after a failure the other one comes first, unless one was chosen.
pub(super) fn order_of(chosen: Challenge, is_80_open: bool, failures: u32) -> Vec<Challenge> {
    match chosen {
        Challenge::Any if is_80_open == failures.is_multiple_of(2) => vec![Challenge::Http, Challenge::Tls],
        Challenge::Any => vec![Challenge::Tls, Challenge::Http],
        chosen => vec![chosen],
    }
}

/// What an authority is shown that asks for a name by TLS (RFC 8737, section 3).
fn challenge_certificate(name: &str, digest: &[u8]) -> Result<Pair, Missed> {
    let wrong = |error: &dyn std::fmt::Display| Missed::of(format!("A challenge cannot be answered: {error}."));
    if digest.len() != 32 {
        return Err(wrong(&"its digest has another length"));
    }
    let key = new_key().map_err(|error| wrong(&error))?;
    let mut parameters = CertificateParams::new([name.to_owned()]).map_err(|error| wrong(&error))?;
    parameters.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let made = parameters.self_signed(&key).map_err(|error| wrong(&error))?;
    Pair::of(made.der().clone(), key.serialize_der()).map_err(|error| wrong(&error))
}

/// A certificate signing request for the names.
fn request(names: &[String], key: &KeyPair) -> Result<Vec<u8>, Missed> {
    let wrong = |error: rcgen::Error| Missed::of(format!("A request cannot be made: {error}."));
    let mut parameters = CertificateParams::new(names).map_err(wrong)?;
    parameters.distinguished_name = DistinguishedName::new();
    Ok(parameters.serialize_request(key).map_err(wrong)?.der().to_vec())
}
