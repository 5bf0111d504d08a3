//! Keys of other servers' users: from the kept lists, else asked for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ruma::{OwnedServerName, OwnedUserId, ServerName};
use serde_json::value::RawValue;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::key_answer::{ASKED_AT_ONCE, ENTRY_BYTES};
use super::key_answer::{each_in, each_of, failure, is_too_deep, price};
use super::key_query::Answered;
use super::remote_list::{self, Form, Known};
use crate::base::{gathered, joined};
use crate::budget::Refused;
use crate::remote::{Answer, Failed, Options};
use crate::store::tables::user::remote_list::Key;
use crate::store::{Get, Position, UserNum};
use crate::user::{Error, Users};

/// The number of users in one request to another server; halved when the answer is too long.
const USERS_PER_QUESTION: usize = 50;

/// The number of users that one server is asked for one by one.
const ALONE_MAX: usize = 4;

/// No app decides that a server is waited for longer.
const QUESTION_TIMEOUT_MAX: Duration = Duration::from_secs(30);

impl Users {
    /// Adds the lists that are kept and followed. Answers what is missing, with the position at which it was.
    pub(super) async fn add_kept(
        &self,
        viewer: UserNum,
        wanted: BTreeMap<OwnedUserId, Vec<String>>,
        mut answered: Answered,
    ) -> Result<(Answered, Missing), Error> {
        let (server, day) = (self.server().to_owned(), self.today());
        let (answered, missing, used) = self
            .read(move |get| {
                let (mut missing, mut used) = (Missing { at: get.position()?, users: Vec::new() }, Vec::new());
                for (user_id, devices) in wanted {
                    let known = remote_list::known(get, &server, viewer, &user_id, day)?;
                    match known.filter(|known| known.is_current) {
                        Some(known) => {
                            answered.add_list_or_failure(get, known.user, user_id, &devices)?;
                            used.extend(known.unused.then_some(known.user));
                        }
                        None => missing.users.push(Wanted { user_id, devices, known }),
                    }
                }
                Ok((answered, missing, used))
            })
            .await?;
        self.lists_used(used).await?;
        Ok((answered, missing))
    }

    /// Adds old lists of users whose servers did not answer.
    pub(super) async fn add_old(&self, unanswered: Vec<Wanted>, mut answered: Answered) -> Result<Answered, Error> {
        self.read(move |get| {
            for Wanted { user_id, devices, known } in unanswered {
                if let Some(known) = known.filter(|known| known.is_kept) {
                    answered.add_list_or_failure(get, known.user, user_id, &devices)?;
                }
            }
            Ok(answered)
        })
        .await
    }

    /// Asks the servers of remote users, a few at once, and keeps the lists that can be followed. Answers the users
    /// whose servers did not answer.
    pub(super) async fn ask_keys(
        &self,
        viewer: UserNum,
        missing: Missing,
        timeout: Duration,
        answered: &mut Answered,
    ) -> Vec<Wanted> {
        let Missing { at, users } = missing;
        let (mut questions, mut unanswered) = (questions(users), Vec::new());
        let mut silent = BTreeSet::new();
        let mut asked = JoinSet::new();
        // A server with many lists that must be asked for one by one keeps nobody waiting for longer.
        let clock = &self.0.parts.clock;
        let until = clock.instant() + 2 * timeout.min(QUESTION_TIMEOUT_MAX);
        loop {
            while asked.len() < ASKED_AT_ONCE
                && let Some(question) = questions.pop_front()
            {
                let is_late = clock.instant() >= until;
                if is_late || silent.contains(&question.server) {
                    answered.failures.entry(question.server).or_insert_with(|| failure(&Failed::Timeout));
                    unanswered.extend(question.users);
                    continue;
                }
                let users_here = self.clone();
                let asking = async move {
                    let answer = users_here.ask_question(&question, timeout).await;
                    (question, answer)
                };
                asked.spawn(asking.in_current_span());
            }
            let Some(done) = asked.join_next().await else { return unanswered };
            let Some((mut question, answer)) = joined(done) else { continue };
            match answer {
                Ok(answer) => {
                    if let Err(failed) = answered.add_answer(&question, &answer.body) {
                        answered.failures.insert(question.server, failure(&failed));
                        unanswered.extend(question.users);
                        continue;
                    }
                    let Question { server, users, form } = question;
                    let followed = users.into_iter().filter(Wanted::can_be_followed).map(|one| one.user_id).collect();
                    let kept = self.keep_lists(viewer, &server, followed, at, form, answer.into_parts()).await;
                    if let Err(error) = kept {
                        tracing::debug!(%server, %error, "device lists are not kept");
                    }
                }
                Err(Failed::TooLarge { .. }) if question.users.len() > 1 => {
                    let half = question.users.split_off(question.users.len() / 2);
                    questions.push_front(Question { users: half, server: question.server.clone(), ..question });
                    questions.push_front(question);
                }
                Err(failed) if question.form == Form::Devices && is_about_the_question(&failed) => {
                    questions.push_front(Question { form: Form::Query, ..question });
                }
                Err(failed) => {
                    if !is_about_the_question(&failed) {
                        silent.insert(question.server.clone());
                    }
                    answered.failures.insert(question.server, failure(&failed));
                    unanswered.extend(question.users);
                }
            }
        }
    }

    async fn ask_question(&self, question: &Question, timeout: Duration) -> Result<Answer, Failed> {
        if question.form == Form::Query {
            let wanted: BTreeMap<_, _> = gathered(question.users.iter().map(|one| (&one.user_id, &one.devices)));
            let body = serde_json::to_vec(&BTreeMap::from([("device_keys", wanted)])).unwrap_or_default();
            return self.ask(&question.server, "/_matrix/federation/v1/user/keys/query", body, timeout).await;
        }
        let options = Options { timeout: timeout.min(QUESTION_TIMEOUT_MAX), ..Options::insisting() };
        let user = question.users.first().map_or("", |one| one.user_id.as_str());
        let path = format!("/_matrix/federation/v1/user/devices/{}", utf8_percent_encode(user, NON_ALPHANUMERIC));
        self.0.parts.remote.request(&question.server, http::Method::GET, &path, None, options).await
    }

    pub async fn ask(
        &self,
        server: &ServerName,
        path: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Answer, Failed> {
        let options = Options { timeout: timeout.min(QUESTION_TIMEOUT_MAX), ..Options::insisting() };
        self.0.parts.remote.request(server, http::Method::POST, path, Some(body), options).await
    }
}

impl Answered {
    /// [`Answered::add_list`], but a list that finds no memory any more is left out whole, and its server is named as one
    /// that failed: an app asks again for those.
    fn add_list_or_failure(
        &mut self,
        get: &impl Get,
        user: UserNum,
        user_id: OwnedUserId,
        devices: &[String],
    ) -> Result<(), Error> {
        match self.add_list(get, user, user_id.clone(), devices) {
            Err(Error::Refused(refused)) => {
                self.device_keys.remove(&user_id);
                self.master_keys.remove(&user_id);
                self.self_signing_keys.remove(&user_id);
                let why = failure(&Failed::Refused(refused));
                self.failures.entry(user_id.server_name().to_owned()).or_insert(why);
                Ok(())
            }
            added => added,
        }
    }

    /// Adds a kept list, of all devices where none are named.
    fn add_list(
        &mut self,
        get: &impl Get,
        user: UserNum,
        user_id: OwnedUserId,
        devices: &[String],
    ) -> Result<(), Error> {
        self.grant.grow(ENTRY_BYTES)?;
        remote_list::each_kept(get, user, &mut |key, json| Ok(self.add_key(&user_id, devices, key, json)?))?;
        self.device_keys.entry(user_id).or_default();
        Ok(())
    }

    fn add_key(
        &mut self,
        user_id: &OwnedUserId,
        devices: &[String],
        key: Key<'_>,
        json: Box<RawValue>,
    ) -> Result<(), Refused> {
        self.grant.grow(price(json.get().len()))?;
        match key {
            Key::Device(id) if devices.is_empty() || devices.iter().any(|device| device == id) => {
                self.grant.grow(price(id.len()))?;
                self.device_keys.entry(user_id.clone()).or_default().insert(id.to_owned(), json);
            }
            Key::Device(_) => {}
            Key::Master => drop(self.master_keys.insert(user_id.clone(), json)),
            Key::SelfSigning => drop(self.self_signing_keys.insert(user_id.clone(), json)),
        }
        Ok(())
    }

    /// Adds an answer whole, or nothing of it: what is there of a user would be taken for all of their devices.
    fn add_answer(&mut self, question: &Question, told: &[u8]) -> Result<(), Failed> {
        let before = self.grant.bytes();
        let added = self.add_parts(question, told);
        if added.is_err() {
            for Wanted { user_id, .. } in &question.users {
                self.device_keys.remove(user_id);
                self.master_keys.remove(user_id);
                self.self_signing_keys.remove(user_id);
            }
            self.grant.shrink(self.grant.bytes() - before);
        }
        added
    }

    fn add_parts(&mut self, question: &Question, told: &[u8]) -> Result<(), Failed> {
        if question.form == Form::Query {
            let asked_for = question.users.iter().map(|one| one.user_id.clone()).collect();
            return self.add_remote(&asked_for, told);
        }
        let Some(Wanted { user_id, devices, .. }) = question.users.first() else { return Ok(()) };
        self.device_keys.entry(user_id.clone()).or_default();
        remote_list::each_in_list(told, &mut |key, json| {
            Ok::<_, Failed>(self.add_key(user_id, devices, key, json.to_owned())?)
        })
        .map(drop)
    }

    /// Adds a server's answer about the users it was asked for; other users in it are skipped.
    fn add_remote(&mut self, asked_for: &BTreeSet<OwnedUserId>, told: &[u8]) -> Result<(), Failed> {
        let Answered { device_keys, master_keys, self_signing_keys, grant, .. } = self;
        each_of(told, "device_keys", &mut |user, devices| {
            let Some(user) = asked_for.iter().find(|asked| asked.as_str() == user) else { return Ok(()) };
            grant.grow(ENTRY_BYTES)?;
            let of_user = device_keys.entry(user.clone()).or_default();
            each_in(devices, &mut |device, keys| {
                if is_too_deep(keys) {
                    return Ok(());
                }
                grant.grow(price(device.len() + keys.get().len()))?;
                of_user.insert(device.to_owned(), keys.to_owned());
                Ok(())
            })
        })?;
        for (name, kept) in [("master_keys", master_keys), ("self_signing_keys", self_signing_keys)] {
            each_of(told, name, &mut |user, key| {
                let asked = asked_for.iter().find(|asked| asked.as_str() == user && !is_too_deep(key));
                let Some(user) = asked else { return Ok(()) };
                grant.grow(price(key.get().len()))?;
                kept.insert(user.clone(), key.to_owned());
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// The users whose keys are not known here, at a position.
pub(super) struct Missing {
    at: Position,
    users: Vec<Wanted>,
}

/// A user of another server, and the devices asked for; all when none are named.
#[derive(Clone)]
pub(super) struct Wanted {
    user_id: OwnedUserId,
    devices: Vec<String>,
    known: Option<Known>,
}

impl Wanted {
    fn can_be_followed(&self) -> bool {
        self.devices.is_empty() && self.known.is_some_and(|known| known.shares)
    }
}

/// One request to another server.
struct Question {
    server: OwnedServerName,
    users: Vec<Wanted>,
    form: Form,
}

/// Whether the server did answer, and another question may fare better: a user it does not know, an answer that is too
/// long.
fn is_about_the_question(failed: &Failed) -> bool {
    failed.is_refusal() || matches!(failed, Failed::TooLarge { .. })
}

/// Many users are asked for at once. A list that was followed until an update was missed is asked for by itself: only
/// that answer has the number from which it can be followed on. Beyond [`ALONE_MAX`] such lists of a server have their
/// turn the next time.
fn questions(users: Vec<Wanted>) -> VecDeque<Question> {
    let mut alone_of: BTreeMap<OwnedServerName, usize> = BTreeMap::new();
    let (alone, together): (Vec<_>, Vec<_>) = users.into_iter().partition(|one| {
        if !one.can_be_followed() || !one.known.is_some_and(|known| known.is_kept) {
            return false;
        }
        let count = alone_of.entry(one.user_id.server_name().to_owned()).or_default();
        *count += 1;
        *count <= ALONE_MAX
    });
    let mut by_server: BTreeMap<OwnedServerName, Vec<Wanted>> = BTreeMap::new();
    for one in together {
        by_server.entry(one.user_id.server_name().to_owned()).or_default().push(one);
    }
    let mut questions = VecDeque::new();
    for (server, users) in by_server {
        let parts = users.chunks(USERS_PER_QUESTION);
        questions.extend(parts.map(|part| Question {
            server: server.clone(),
            users: part.to_vec(),
            form: Form::Query,
        }));
    }
    for one in alone {
        let server = one.user_id.server_name().to_owned();
        questions.push_back(Question { server, users: vec![one], form: Form::Devices });
    }
    questions
}
