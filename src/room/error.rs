//! The errors of an operation on a room.

use crate::budget::Refused;
use crate::matrix::Reject;
use crate::remote::{Failed, Named};
use crate::store::{self, WriteError};

/// The reason an operation on a room failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The room, event, alias or user does not exist, or the requester may not know of it.
    #[error("not found, or the user may not see it")]
    NotFound,
    /// Not allowed, with the reason.
    #[error("{0}")]
    Forbidden(String),
    /// The invited user takes no invites from the inviter; with the errcode that says so.
    #[error("the user takes no invites from you")]
    InviteBlocked(&'static str),
    /// Rejected by the protocol's rules.
    #[error(transparent)]
    Reject(Reject),
    /// The request is invalid; the code is the specification's.
    #[error("{message}")]
    Bad { errcode: &'static str, message: String },
    /// The room has a version that this server does not take part in.
    #[error("this server cannot join rooms of version {0}")]
    Version(String),
    /// The alias is in use.
    #[error("the alias is in use")]
    Taken,
    /// Larger than an event may be.
    #[error("the event is larger than the specification allows")]
    TooLarge,
    /// A request to another server failed.
    #[error("the other server {0}")]
    Remote(#[from] Failed),
    /// No memory at present.
    #[error("the memory account {} is used up at present", .0.account)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    pub fn forbidden(why: impl Into<String>) -> Error {
        Error::Forbidden(why.into())
    }

    /// An error when rules of a policy list name somebody.
    pub fn barred(named: Option<Named>) -> Result<()> {
        match named {
            Some(named) => Err(Error::Forbidden(named.sentence())),
            None => Ok(()),
        }
    }

    pub fn bad(errcode: &'static str, message: impl Into<String>) -> Error {
        Error::Bad { errcode, message: message.into() }
    }

    /// Whether the error is our own and temporary: the same request may succeed later. A corrupt row or an aborted job
    /// would fail the next time too.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Refused(refused) | Error::Remote(Failed::Refused(refused)) => !refused.too_large,
            Error::Store(failed) => failed.is_passing(),
            _ => false,
        }
    }
}

impl From<WriteError<Error>> for Error {
    fn from(failed: WriteError<Error>) -> Error {
        failed.into_inner()
    }
}

impl From<Reject> for Error {
    fn from(reject: Reject) -> Error {
        match reject.kind {
            crate::matrix::Kind::TooLarge => Error::TooLarge,
            _ => Error::Reject(reject),
        }
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
