//! The errors of an operation on a room.

use crate::budget::Refused;
use crate::matrix::Reject;
use crate::remote::Failed;
use crate::store::{self, WriteError};

/// The reason an operation on a room failed.
#[derive(Debug, Clone)]
pub enum Error {
    /// The room, event, alias or user does not exist, or the requester may not know of it.
    NotFound,
    /// Not allowed, with the reason.
    Forbidden(String),
    /// Rejected by the protocol's rules.
    Reject(Reject),
    /// The request is invalid; the code is the specification's.
    Bad {
        errcode: &'static str,
        message: String,
    },
    /// The alias is in use.
    Taken,
    /// Larger than an event may be.
    TooLarge,
    /// A request to another server failed.
    Remote(Failed),
    /// No memory at present.
    Refused(Refused),
    Store(store::Error),
}

impl Error {
    pub fn forbidden(why: impl Into<String>) -> Error {
        Error::Forbidden(why.into())
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

impl From<store::Error> for Error {
    fn from(failed: store::Error) -> Error {
        Error::Store(failed)
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

impl From<Failed> for Error {
    fn from(failed: Failed) -> Error {
        Error::Remote(failed)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        Error::Refused(refused)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::NotFound => f.write_str("there is no such thing, or it is not yours to see"),
            Error::Forbidden(why) => f.write_str(why),
            Error::Reject(reject) => reject.fmt(f),
            Error::Bad { message, .. } => f.write_str(message),
            Error::Taken => f.write_str("that name is in use"),
            Error::TooLarge => f.write_str("larger than an event may be"),
            Error::Remote(failed) => write!(f, "another server: {failed:?}"),
            Error::Refused(refused) => write!(f, "no memory for it now: {}", refused.account),
            Error::Store(failed) => failed.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

pub type Result<T, E = Error> = std::result::Result<T, E>;
