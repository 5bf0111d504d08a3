//! Why a join failed.

use super::admission::busy;
use super::order::OrderError;
use crate::budget::Refused;
use crate::budget::spill::SpillError;
use crate::matrix::Reject;
use crate::remote::Failed;
use crate::room::error::Error;
use crate::store;

/// Why a join failed.
#[derive(Debug)]
pub enum JoinError {
    Remote(Failed),
    Refused(Refused),
    Store(store::Error),
    Spill(SpillError),
    Order(OrderError),
    /// The resident server's answer is not what it should be.
    Lying(String),
    /// The room is larger than was foreseen.
    TooLarge(String),
    Reject(Reject),
    /// Our own files are wrong.
    Corrupt,
    TooManyNodes,
    Cancelled,
    Room(Error),
    /// One of its threads or tasks panicked; the message of the panic.
    Panicked(String),
}

impl JoinError {
    /// Whether another attempt may help.
    pub fn is_passing(&self) -> bool {
        match self {
            JoinError::Remote(failed) => !failed.is_refusal() && !matches!(failed, Failed::TooLarge { .. }),
            _ => false,
        }
    }

    pub fn into_error(self) -> Error {
        match self {
            JoinError::Remote(failed) => Error::Remote(failed),
            JoinError::Refused(refused) | JoinError::Order(OrderError::Refused(refused)) => busy(refused),
            JoinError::Spill(SpillError::Refused(refused)) => busy(refused),
            JoinError::Store(failed) | JoinError::Order(OrderError::Store(failed)) => Error::Store(failed),
            JoinError::Spill(SpillError::Io(failed)) | JoinError::Order(OrderError::Spill(SpillError::Io(failed))) => {
                Error::Store(store::Error::from_io(&failed))
            }
            JoinError::Order(failed) => Error::Remote(Failed::BadAnswer(failed.to_string())),
            JoinError::Lying(why) => Error::Remote(Failed::BadAnswer(why)),
            JoinError::TooLarge(why) => Error::Bad {
                errcode: "M_RESOURCE_LIMIT_EXCEEDED",
                message: format!("The room turned out larger than this server takes: {why}"),
            },
            JoinError::Reject(reject) => Error::Reject(reject),
            JoinError::Corrupt => Error::Store(store::Error::Io("a join's own files are damaged".into())),
            JoinError::TooManyNodes => Error::Remote(Failed::BadAnswer("more events than can be counted".into())),
            JoinError::Cancelled => Error::Forbidden("the join was cancelled".into()),
            JoinError::Room(error) => error,
            JoinError::Panicked(what) => Error::Store(store::Error::Panicked(what)),
        }
    }
}

impl std::fmt::Display for JoinError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            JoinError::Remote(failed) => failed.fmt(f),
            JoinError::Refused(refused) => refused.fmt(f),
            JoinError::Store(failed) => failed.fmt(f),
            JoinError::Spill(failed) => failed.fmt(f),
            JoinError::Order(failed) => failed.fmt(f),
            JoinError::Lying(why) | JoinError::TooLarge(why) => f.write_str(why),
            JoinError::Reject(reject) => reject.fmt(f),
            JoinError::Corrupt => f.write_str("a scratch file is damaged"),
            JoinError::TooManyNodes => f.write_str("there are more events than can be counted"),
            JoinError::Cancelled => f.write_str("it was cancelled"),
            JoinError::Room(error) => error.fmt(f),
            JoinError::Panicked(what) => write!(f, "it panicked: {what}"),
        }
    }
}

impl From<std::io::Error> for JoinError {
    fn from(failed: std::io::Error) -> JoinError {
        JoinError::Spill(SpillError::Io(failed))
    }
}

macro_rules! stop_from {
    ($($from:ty => $variant:ident),*) => {$(
        impl From<$from> for JoinError {
            fn from(failed: $from) -> JoinError {
                JoinError::$variant(failed)
            }
        }
    )*};
}
stop_from!(Failed => Remote, Refused => Refused, store::Error => Store, SpillError => Spill, OrderError => Order,
    Reject => Reject, Error => Room);
