//! Accounts and devices: local users, their sessions, keys, to-device messages, account data, push rules.
//!
//! Owns every row that belongs to a user rather than to a room. Never reads or writes an event: the effect of a new
//! name in rooms is for `flow`. The users a change concerns are read from the memberships in the store.
//!
//! Lowest floor first: `lookup.rs` (users by id), `sharing.rs` (users who share rooms), `settings/` (account data,
//! filters, push rules), `device/` (devices, keys, to-device messages), `account/` (passwords, sessions, profiles, the
//! user directory), `reports.rs` (what users report to the
//! administrator, and `reports_told.rs` a bot), `presence/` (who is there), `calls/` (what calls
//! need), `sync.rs`, `sliding.rs` (connections of sliding syncs).

mod account;
mod calls;
mod presence;
mod sharing;
mod device;
mod reports;
mod reports_told;
mod sliding;
mod sync;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ruma::{OwnedServerName, ServerName};

use crate::base::{Clock, KeyedLock, Random, blocking, brief};
use crate::budget::{Budget, Refused};
use crate::feed::Feed;
use crate::remote::{Failed, Remote};
use crate::store::{self, Read, Store, Write, WriteError};

pub use crate::remote::service::{Service, Services, ThirdParty, instance_id as network_instance};
pub use crate::remote::web::WebFailed as ServiceFailed;
pub use crate::store::{Position, UserNum};
pub use account::directory::SEARCH_BYTES;
pub use account::find::{Listed, Order, Wanted};
pub use account::login_token::LOGIN_TOKEN_MS;
pub use account::page_session::form_token;
pub use account::password::{PASSWORD_CHARS_MIN, check_new_password};
pub use account::password_link::PasswordLink;
pub use account::people::{PeoplePage, Person};
pub use account::registration_token::{RegistrationToken, TOKEN_CHARS_MAX, TOKENS_MAX};
pub use account::service::exclusive;
pub use account::session::{Login, Refreshed, Requester, Session};
pub use account::uia::{Made, Progress, Stage, Target, UiaRequest};
pub use account::{Account, New, Pace, QUOTA_UNLIMITED, Standing};
pub use calls::openid::OPENID_MS;
pub use calls::{CallMember, Calls, LiveKit, OwnRelay, Turn, TurnLogin, livekit};
pub use device::announce::restored as announce_restored;
pub use device::backup::{Backup, BackupKeys, DEPTH_MAX as BACKUP_DEPTH_MAX, can_be_backed_up, check_session_data};
pub use device::backup::{Kept as BackupKept, Key as BackupKey, Merit as BackupMerit, Scope as BackupScope};
pub use device::cross_signing::{CrossKeys, Upload as CrossUpload};
pub use device::dehydrated::{DehydratedMessages, NewDehydrated};
pub use device::key_claim::Claims;
pub use device::key_query::{Answered, Viewer};
pub use device::keys::Upload as KeyUpload;
pub use device::remote_list::News;
pub use device::to_device::{Messages, Txn};
pub use presence::{PresenceMode, PresenceStatus, Syncing};
pub use reports::{REASON_CHARS_MAX, Report, Reported};
pub use settings::push_rules::NewRule;
pub use settings::pushers::SetPusher;
pub use sliding::{Answer, NOTED_ROOMS, Noted, STATE_BYTES_MAX, SlidingConnection, Told};
pub use sync::{ProfileQuery, UserSync};

/// The parts the accounts are built from.
pub struct Parts {
    pub store: Store,
    pub feed: Feed,
    pub clock: Clock,
    pub random: Random,
    pub budget: Budget,
    pub remote: Remote,
    pub server: OwnedServerName,
}

/// The accounts. Cheap to clone.
#[derive(Clone)]
pub struct Users(Arc<Inner>);

struct Inner {
    parts: Parts,
    known: Arc<account::known::Known>,
    seen: account::session::Seen,
    sliding: sliding::Newest,
    emptied: device::to_device::Emptied,
    presence: presence::Board,
    desk: calls::Desk,
    backups_gone: device::backup::Gone,
    sessions: account::uia::Sessions,
    login_tokens: account::login_token::LoginTokens,
    page_sessions: account::page_session::PageSessions,
    /// The sessions of stages with which an account is being made.
    registering: KeyedLock,
    hand: reports_told::Hand,
    /// There are rooms that new people join; and there is somebody new.
    welcomes: AtomicBool,
    newcomers: tokio::sync::Notify,
}

impl Users {
    pub fn new(parts: Parts) -> Users {
        let known = Arc::new(account::known::Known::default());
        parts.store.follow(known.clone());
        let presence = presence::Board::new(parts.budget.account("ephemeral"), parts.clock.now_ms());
        let desk = calls::Desk::new(&parts.random);
        Users(Arc::new(Inner {
            parts,
            desk,
            known,
            seen: account::session::Seen::default(),
            sliding: sliding::Newest::default(),
            emptied: device::to_device::Emptied::default(),
            presence,
            backups_gone: device::backup::Gone::default(),
            sessions: account::uia::Sessions::default(),
            login_tokens: account::login_token::LoginTokens::default(),
            page_sessions: account::page_session::PageSessions::default(),
            registering: KeyedLock::default(),
            hand: reports_told::Hand::default(),
            welcomes: AtomicBool::new(false),
            newcomers: tokio::sync::Notify::new(),
        }))
    }

    pub fn server(&self) -> &ServerName {
        &self.0.parts.server
    }

    fn now_ms(&self) -> u64 {
        self.0.parts.clock.now_ms()
    }

    /// Reads a snapshot, off the threads that wait on sockets.
    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Read) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.0.parts.store.clone();
        blocking(move || look(&store.read()?)).await
    }

    /// Runs a job in the next commit.
    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Write<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (value, _) = self.0.parts.store.write(job).await.map_err(WriteError::into_inner)?;
        Ok(value)
    }
}

/// The reason an operation on an account failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The named thing does not exist: an account, device, key or rule.
    #[error("no such {0}")]
    NotFound(&'static str),
    #[error("{0}")]
    Forbidden(String),
    /// The token is of no device, or no longer.
    #[error("unknown access token")]
    UnknownToken,
    /// The token has ended, and its device can have another.
    #[error("the access token has ended")]
    ExpiredToken,
    #[error("this account has been locked; its owner may ask the administrators of this server")]
    Locked,
    /// The account was closed for good.
    #[error("this account has been deactivated")]
    Deactivated,
    /// The name belongs to another account.
    #[error("this user name is taken")]
    Taken,
    /// The request is invalid; the code is the specification's.
    #[error("{message}")]
    Bad { errcode: &'static str, message: String },
    /// Keys may only be put into the newest backup.
    #[error("this is not the newest backup version")]
    WrongBackup { current: u32 },
    /// More than one account may store here.
    #[error("{0}")]
    TooLarge(String),
    #[error("the other server {0}")]
    Remote(#[from] Failed),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// Whether the error is our own and temporary: the same request may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Refused(refused) | Error::Remote(Failed::Refused(refused)) => !refused.too_large,
            Error::Store(failed) => failed.is_passing(),
            _ => false,
        }
    }

    fn bad(errcode: &'static str, message: impl Into<String>) -> Error {
        Error::Bad { errcode, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Error {
        Error::bad("M_INVALID_PARAM", message)
    }
}

impl From<serde_json::Error> for Error {
    fn from(wrong: serde_json::Error) -> Error {
        Error::invalid(brief(wrong))
    }
}

#[cfg(test)]
mod tests;
mod settings;
mod lookup;
