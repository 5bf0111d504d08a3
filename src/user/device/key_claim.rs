//! Claims of one-time keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedServerName, OwnedUserId};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use tokio::task::JoinSet;
use tracing::Instrument;

use super::key_answer::{ANSWER_BYTES, ASKED_AT_ONCE, QUESTION_TIMEOUT, each_in, is_too_deep};
use super::key_answer::{each_of, failure, price};
use super::key_query::Viewer;
use super::keys::{KEY_BYTES_MAX, KEY_NAME_BYTES_MAX};
use crate::base::{gathered, joined};
use crate::budget::Grant;
use crate::remote::Failed;
use crate::remote::service::Service;
use crate::store::Change;
use crate::store::tables::user::e2ee_key::{self, OneTimeKey};
use crate::user::{Error, Users, lookup};

/// The most one-time keys handed out in one write; each is paid for in full before it is taken.
const CLAIMS_PER_WRITE: usize = 24;

/// User → device → algorithm.
pub type Claims = BTreeMap<OwnedUserId, BTreeMap<String, String>>;

/// The answer about one-time keys, in its final shape, with the grant that pays for it.
#[derive(Serialize)]
pub struct Claimed {
    pub one_time_keys: BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>,
    /// Absent in an answer to another server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures: Option<BTreeMap<OwnedServerName, Value>>,
    #[serde(skip)]
    pub grant: Grant,
}

impl Claimed {
    /// The JSON and the grant that pays for it.
    pub fn into_json(self) -> (Vec<u8>, Grant) {
        (serde_json::to_vec(&self).unwrap_or_else(|_| b"{}".to_vec()), self.grant)
    }
}

impl Users {
    /// Hands out a one-time key for each named device, or its fallback key.
    pub async fn keys_claim(
        &self,
        viewer: Viewer,
        wanted: Claims,
        timeout: Option<Duration>,
    ) -> Result<Claimed, Error> {
        let grant = self.0.parts.budget.account("response_bodies").take(ANSWER_BYTES).await?;
        let failures = (viewer != Viewer::OtherServer).then(BTreeMap::new);
        let mut claimed = Claimed { one_time_keys: BTreeMap::new(), failures, grant };
        let server = self.server().to_owned();
        let (here, elsewhere): (Claims, Claims) =
            wanted.into_iter().partition(|(user, _)| user.server_name() == server);
        let here = self.claim_of_services(here, &mut claimed).await;
        self.claim_local(here, &mut claimed).await?;
        if viewer != Viewer::OtherServer {
            self.claim_elsewhere(elsewhere, timeout.unwrap_or(QUESTION_TIMEOUT), &mut claimed).await;
        }
        Ok(claimed)
    }

    /// Asks application services for keys of users that are theirs alone (MSC3983). Answers what they gave no key for.
    async fn claim_of_services(&self, wanted: Claims, claimed: &mut Claimed) -> Claims {
        if self.services().list().is_empty() {
            return wanted;
        }
        let (mut by_service, mut rest) = (BTreeMap::<String, (Arc<Service>, Claims)>::new(), Claims::new());
        for (user, devices) in wanted {
            match self.services().with_keys_of(&user) {
                Some(service) => {
                    let (_, of) = by_service.entry(service.id.clone()).or_insert((service, Claims::new()));
                    of.insert(user, devices);
                }
                None => drop(rest.insert(user, devices)),
            }
        }
        for (service, claims) in by_service.into_values() {
            let algorithms = |devices: &BTreeMap<String, String>| -> BTreeMap<String, [String; 1]> {
                gathered(devices.iter().map(|(device, algorithm)| (device.clone(), [algorithm.clone()])))
            };
            let asked: BTreeMap<&OwnedUserId, _> = gathered(claims.iter().map(|(user, of)| (user, algorithms(of))));
            let body = serde_json::to_value(&asked).unwrap_or_default();
            if let Some(answer) = self.services().claim_keys(&service, &body).await
                && let Ok(told) = serde_json::from_slice::<&RawValue>(&answer.body)
            {
                // What does not fit our memory is left out.
                let _ = claimed.add(&claims, told);
            }
            for (user, mut devices) in claims {
                devices.retain(|device, _| {
                    !claimed.one_time_keys.get(&user).is_some_and(|known| known.contains_key(device))
                });
                if !devices.is_empty() {
                    rest.insert(user, devices);
                }
            }
        }
        rest
    }

    async fn claim_local(&self, wanted: Claims, claimed: &mut Claimed) -> Result<(), Error> {
        let mut claims = wanted.into_iter().flat_map(|(user, devices)| {
            devices.into_iter().map(move |(device, algorithm)| (user.clone(), device, algorithm))
        });
        loop {
            let part: Vec<(OwnedUserId, String, String)> = claims.by_ref().take(CLAIMS_PER_WRITE).collect();
            if part.is_empty() {
                return Ok(());
            }
            // Granted beforehand: a key that was taken but did not fit the answer would be lost.
            let before = claimed.grant.bytes();
            claimed.grant.grow(part.len() as u64 * price(KEY_BYTES_MAX + KEY_NAME_BYTES_MAX))?;
            let taken = self.write(move |w| take_keys(w, part)).await?;
            let paid: u64 = taken.iter().map(|(_, _, key)| price(key.get().len())).sum();
            claimed.grant.shrink((claimed.grant.bytes() - before).saturating_sub(paid));
            for (user, device_id, key) in taken {
                claimed.one_time_keys.entry(user).or_default().insert(device_id, key);
            }
        }
    }

    async fn claim_elsewhere(&self, wanted: Claims, timeout: Duration, claimed: &mut Claimed) {
        let mut by_server: BTreeMap<OwnedServerName, Claims> = BTreeMap::new();
        for (user, devices) in wanted {
            by_server.entry(user.server_name().to_owned()).or_default().insert(user, devices);
        }
        let mut left = by_server.into_iter();
        let mut asked = JoinSet::new();
        loop {
            while asked.len() < ASKED_AT_ONCE
                && let Some((server, claims)) = left.next()
            {
                let users = self.clone();
                let asking = async move {
                    let body = serde_json::to_vec(&BTreeMap::from([("one_time_keys", &claims)])).unwrap_or_default();
                    let answer = users.ask(&server, "/_matrix/federation/v1/user/keys/claim", body, timeout).await;
                    (server, claims, answer)
                };
                asked.spawn(asking.in_current_span());
            }
            let Some(done) = asked.join_next().await else { return };
            let Some((server, claims, answer)) = joined(done) else { continue };
            let taken = answer.and_then(|answer| claimed.add_remote(&claims, &answer.body));
            if let Err(failed) = taken {
                claimed.failures.get_or_insert_default().insert(server, failure(&failed));
            }
        }
    }
}

impl Claimed {
    /// Adds a server's answer about the devices it was asked for; other devices in it are skipped. Keys that are short
    /// enough and fit our memory stay, even when the rest does not.
    pub fn add_remote(&mut self, asked_for: &Claims, told: &[u8]) -> Result<(), Failed> {
        each_of(told, "one_time_keys", &mut |user, devices| self.add_user(asked_for, user, devices))
    }

    /// Adds the keys of devices that were asked for, by user.
    fn add(&mut self, asked_for: &Claims, told: &RawValue) -> Result<(), Failed> {
        each_in(told, &mut |user, devices| self.add_user(asked_for, user, devices))
    }

    fn add_user(&mut self, asked_for: &Claims, user: &str, devices: &RawValue) -> Result<(), Failed> {
        let Some((user, asked)) = asked_for.iter().find(|(name, _)| name.as_str() == user) else { return Ok(()) };
        each_in(devices, &mut |device, key| {
            if asked.contains_key(device) && key.get().len() <= KEY_BYTES_MAX && !is_too_deep(key) {
                self.grant.grow(price(key.get().len()))?;
                self.one_time_keys.entry(user.clone()).or_default().insert(device.to_owned(), key.to_owned());
            }
            Ok(())
        })
    }
}

/// Takes a key for each claim. Answers user, device and `{"algorithm:id": key}`; devices without a key are left out.
fn take_keys(
    w: &mut crate::store::Write<'_>,
    claims: Vec<(OwnedUserId, String, String)>,
) -> Result<Vec<(OwnedUserId, String, Box<RawValue>)>, Error> {
    let mut taken = Vec::new();
    let mut wake = BTreeSet::new();
    for (user_id, device_id, algorithm) in claims {
        let Ok(num) = lookup::local(w, &user_id) else { continue };
        if device_id.contains('\0') || algorithm.contains('\0') {
            continue;
        }
        let key = match e2ee_key::take_one_time(w, num, &device_id, &algorithm)? {
            Some(OneTimeKey { id, key }) => Some((id, key)),
            None => match e2ee_key::fallback(w, num, &device_id, &algorithm)? {
                Some(mut fallback) => {
                    let given = (fallback.id.clone(), fallback.key.clone());
                    if !fallback.used {
                        fallback.used = true;
                        e2ee_key::set_fallback(w, num, &device_id, &algorithm, &fallback)?;
                    }
                    Some(given)
                }
                None => None,
            },
        };
        if let Some((id, key)) = key {
            wake.insert(num);
            let named = to_raw_value(&BTreeMap::from([(format!("{algorithm}:{id}"), key)]));
            taken.push((user_id, device_id, named.map_err(|wrong| Error::invalid(wrong.to_string()))?));
        }
    }
    w.announce(Change { users: wake.into_iter().collect(), ..Change::default() });
    Ok(taken)
}
