//! User-interactive authentication: a user proves their identity again, in stages.
//!
//! Client-server API, "User-Interactive Authentication API". Sessions are in memory, few, and short-lived: a client
//! that loses one begins again.

use std::net::IpAddr;

use parking_lot::{Mutex, MutexGuard};
use ruma::{OwnedUserId, UserId};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::base::shares::network;
use crate::base::{KeyedGuard, Owner, Shares};
use crate::matrix::id;
use crate::user::{Error, Users};

/// The most sessions of local users, and as many again of clients that register, each some hundred bytes. Registering
/// clients displace only each other: the network that began most of them loses one. So it is among local users.
const SESSIONS_MAX: usize = 256;
const SESSION_MS: u64 = 15 * 60 * 1000;
const SESSION_CHARS: usize = 24;

/// A stage of the authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// No proof; the session itself is the proof.
    Dummy,
    /// The password of the requesting account.
    Password,
    /// A registration token from the owner.
    RegistrationToken,
    /// To agree to the terms of this server.
    Terms,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::Dummy => "m.login.dummy",
            Stage::Password => "m.login.password",
            Stage::RegistrationToken => "m.login.registration_token",
            Stage::Terms => "m.login.terms",
        }
    }
}

/// What an operation is about, as a digest: the devices to delete, the password to set. A session authenticates this
/// alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Target([u8; 32]);

impl Target {
    /// The order of the parts counts.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Target {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Target(digest.finalize().into())
    }
}

/// The authentication needed before an operation.
pub struct UiaRequest<'a> {
    /// A session authenticates one operation only.
    pub operation: &'static str,
    /// And only for what it was begun for.
    pub target: Target,
    /// The requesting user; none when registering.
    pub user: Option<&'a UserId>,
    pub stages: &'static [Stage],
    /// The valid registration tokens.
    pub tokens: &'a [String],
}

/// The status of an authentication.
#[derive(Debug, PartialEq)]
pub enum Progress {
    /// All stages are complete. The same request sent again, because its answer was lost, is `Done` again.
    Done,
    /// The body of a 401 answer.
    Ask(Value),
    /// The same, after a wrong proof.
    Wrong(Value),
}

/// The account that a session of stages has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub user_id: OwnedUserId,
    /// `None` when no log-in was asked for.
    pub device_id: Option<String>,
}

pub(in crate::user) struct Session {
    operation: &'static str,
    target: Target,
    stages: &'static [Stage],
    made: Option<Made>,
    /// The registration token that was proved.
    token: Option<String>,
    user: Option<OwnedUserId>,
    completed: Vec<Stage>,
    expires_ms: u64,
}

pub(in crate::user) struct Sessions(Mutex<Shares<String, Session>>);

impl Default for Sessions {
    fn default() -> Sessions {
        Sessions(Mutex::new(Shares::new(SESSIONS_MAX, SESSIONS_MAX)))
    }
}

impl Sessions {
    pub(in crate::user) fn lock(&self) -> MutexGuard<'_, Shares<String, Session>> {
        self.0.lock()
    }
}

impl Users {
    /// Evaluates the `auth` of a request from an address. A request without `auth` begins a session. A session with all
    /// stages complete stays, for the same operation and target, until it expires: a request whose answer was lost is
    /// sent again. A completed stage is not proved again: the old password may be another one by then.
    pub async fn authenticate(
        &self,
        demand: UiaRequest<'_>,
        from: IpAddr,
        auth: Option<&Value>,
    ) -> Result<Progress, Error> {
        let Some(auth) = auth.filter(|auth| !auth.is_null()) else {
            let session = self.begin(&demand, from);
            return Ok(Progress::Ask(ask(&demand, &session, &[], None)));
        };
        let session = match auth.get("session").and_then(Value::as_str) {
            Some(session) => session.to_owned(),
            None => self.begin(&demand, from),
        };
        let Some(mut completed) = self.completed(&demand, &session) else {
            let session = self.begin(&demand, from);
            let failed =
                Error::Forbidden("The authentication session has ended; this answer begins a new one".to_owned());
            return Ok(Progress::Ask(ask(&demand, &session, &[], Some(&failed))));
        };
        // Without a `type` an app asks for the status, after a stage completed in a browser.
        if let Some(kind) = auth.get("type").and_then(Value::as_str) {
            let stage = demand.stages.iter().copied().find(|stage| stage.name() == kind);
            if stage == Some(Stage::Password) && self.names_another(&demand, auth) {
                return Err(Error::Forbidden(
                    "The authentication is for another account than the access token".to_owned(),
                ));
            }
            let proved = match stage {
                Some(stage) if completed.contains(&stage) => Ok(stage),
                Some(stage) => self.check_stage(stage, &demand, auth).await.map(|()| stage),
                None => Err(Error::bad("M_UNRECOGNIZED", "The stage is not part of this authentication flow")),
            };
            match proved {
                Ok(stage) if !completed.contains(&stage) => completed.push(stage),
                Ok(_) => {}
                Err(failed @ (Error::Refused(_) | Error::Store(_))) => return Err(failed),
                Err(failed) => return Ok(Progress::Wrong(ask(&demand, &session, &completed, Some(&failed)))),
            }
        }
        if let Some(kept) = self.0.sessions.lock().get(&session) {
            for stage in std::mem::take(&mut kept.completed) {
                // What was proved in a browser meanwhile.
                if !completed.contains(&stage) {
                    completed.push(stage);
                }
            }
            kept.completed.clone_from(&completed);
        }
        if demand.stages.iter().all(|stage| completed.contains(stage)) {
            return Ok(Progress::Done);
        }
        Ok(Progress::Ask(ask(&demand, &session, &completed, None)))
    }

    fn begin(&self, demand: &UiaRequest<'_>, from: IpAddr) -> String {
        let session = self.0.parts.random.token(SESSION_CHARS);
        let (user, now_ms) = (demand.user.map(ToOwned::to_owned), self.now_ms());
        let expires_ms = now_ms + SESSION_MS;
        let owner =
            user.as_ref().map_or(Owner::Stranger(network(from).to_string()), |user| Owner::Known(user.to_string()));
        let (operation, target, stages) = (demand.operation, demand.target, demand.stages);
        let new =
            Session { operation, target, stages, made: None, token: None, user, completed: Vec::new(), expires_ms };
        let mut sessions = self.0.sessions.lock();
        sessions.retain(|_, session| session.expires_ms > now_ms);
        sessions.put(owner, session.clone(), new);
        session
    }

    /// Whether a session with this stage is there, with which somebody registers.
    pub fn is_registering(&self, session: &str, stage: Stage) -> bool {
        self.with_stage(session, stage, |_| ()).is_some()
    }

    /// Whether the stage of a registration is proved.
    pub fn is_proved(&self, session: &str, stage: Stage) -> bool {
        self.with_stage(session, stage, |kept| kept.completed.contains(&stage)) == Some(true)
    }

    /// Notes that a stage of a registration was proved in a browser. False when there is no such session any more.
    pub fn prove(&self, session: &str, stage: Stage) -> bool {
        let prove = |kept: &mut Session| {
            if !kept.completed.contains(&stage) {
                kept.completed.push(stage);
            }
        };
        self.with_stage(session, stage, prove).is_some()
    }

    /// Notes with which registration token somebody registers.
    pub fn note_token(&self, session: &str, token: &str) {
        self.with_stage(session, Stage::RegistrationToken, |kept| kept.token = Some(token.to_owned()));
    }

    /// The registration token that was noted with a session.
    pub fn token_of(&self, session: &str) -> Option<String> {
        self.with_stage(session, Stage::RegistrationToken, |kept| kept.token.clone())?
    }

    fn with_stage<T>(&self, session: &str, stage: Stage, look: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let now_ms = self.now_ms();
        let mut sessions = self.0.sessions.lock();
        let kept = sessions.get(session)?;
        // Nobody is asked for a stage of a registration but without an account.
        let fits = kept.user.is_none() && kept.stages.contains(&stage) && kept.expires_ms > now_ms;
        fits.then(|| look(kept))
    }

    /// Ends a session of stages, for what has to be proved each time.
    pub fn spend(&self, session: &str) {
        self.0.sessions.lock().remove(session);
    }

    /// Waits until no other request registers with this session, and holds the others off.
    pub async fn registering(&self, session: &str) -> KeyedGuard {
        self.0.registering.take(session).await
    }

    /// The account that was made with a session of stages.
    pub fn made_with(&self, session: &str) -> Option<Made> {
        let now_ms = self.now_ms();
        let mut sessions = self.0.sessions.lock();
        sessions.get(session).filter(|kept| kept.expires_ms > now_ms)?.made.clone()
    }

    /// Notes the account that was made with a session, for a request that is sent again.
    pub fn note_made(&self, session: &str, made: Made) {
        if let Some(kept) = self.0.sessions.lock().get(session) {
            kept.made = Some(made);
        }
    }

    /// The stages a session has completed; none when the session is not for this operation and target.
    fn completed(&self, demand: &UiaRequest<'_>, session: &str) -> Option<Vec<Stage>> {
        let now_ms = self.now_ms();
        let mut sessions = self.0.sessions.lock();
        let kept = sessions.get(session)?;
        let fits = kept.operation == demand.operation
            && kept.target == demand.target
            && kept.user.as_deref() == demand.user
            && kept.made.is_none();
        (fits && kept.expires_ms > now_ms).then(|| kept.completed.clone())
    }

    async fn check_stage(&self, stage: Stage, demand: &UiaRequest<'_>, auth: &Value) -> Result<(), Error> {
        let text = |name: &str| auth.get(name).and_then(Value::as_str);
        match stage {
            Stage::Dummy | Stage::Terms => Ok(()),
            Stage::RegistrationToken => {
                let token = text("token").ok_or_else(|| Error::bad("M_MISSING_PARAM", "The token is missing"))?;
                match demand.tokens.iter().any(|known| known == token) {
                    true => Ok(()),
                    false => Err(Error::Forbidden("This registration token is not valid".to_owned())),
                }
            }
            Stage::Password => {
                let Some(user) = demand.user else { return Err(Error::NotFound("account")) };
                let password =
                    text("password").ok_or_else(|| Error::bad("M_MISSING_PARAM", "The password is missing"))?;
                self.check_password(user, password).await
            }
        }
    }

    /// Whether the `auth` names another user than the one to be authenticated.
    fn names_another(&self, demand: &UiaRequest<'_>, auth: &Value) -> bool {
        let named = auth.pointer("/identifier/user").or_else(|| auth.get("user")).and_then(Value::as_str);
        named.is_some_and(|named| id::typed_user(named, self.server()).as_deref() != demand.user)
    }
}

fn ask(demand: &UiaRequest<'_>, session: &str, completed: &[Stage], failed: Option<&Error>) -> Value {
    let names = |stages: &[Stage]| stages.iter().map(|stage| stage.name()).collect::<Vec<_>>();
    let mut ask = json!({
        "session": session,
        "flows": [{ "stages": names(demand.stages) }],
        "params": {},
        "completed": names(completed),
    });
    if let Some(failed) = failed {
        let errcode = match failed {
            Error::Bad { errcode, .. } => errcode,
            _ => "M_FORBIDDEN",
        };
        ask["errcode"] = errcode.into();
        ask["error"] = failed.to_string().into();
    }
    ask
}
