//! Why a join ended before its end.

use super::admission::busy;
use super::order::OrderError;
use crate::budget::Refused;
use crate::budget::spill::SpillError;
use crate::matrix::Reject;
use crate::remote::Failed;
use crate::room::error::Error;
use crate::store::{self};

/// Why a join ended before its end.
#[derive(Debug)]
pub enum Stop {
    Remote(Failed),
    Refused(Refused),
    Store(store::Error),
    Spill(SpillError),
    Order(OrderError),
    /// The resident's answer cannot be what it should.
    Lying(String),
    /// The room is more than was foreseen.
    TooLarge(String),
    Reject(Reject),
    /// Our own files are wrong.
    Corrupt,
    TooManyNodes,
    Cancelled,
    Room(Error),
    /// One of its threads or tasks did; what it said.
    Panicked(String),
}

impl Stop {
    /// Whether asking again may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Stop::Remote(failed) => !failed.is_refusal() && !matches!(failed, Failed::TooLarge { .. }),
            _ => false,
        }
    }

    pub fn into_error(self) -> Error {
        match self {
            Stop::Remote(failed) => Error::Remote(failed),
            Stop::Refused(refused) | Stop::Order(OrderError::Refused(refused)) => busy(refused),
            Stop::Spill(SpillError::Refused(refused)) => busy(refused),
            Stop::Store(failed) | Stop::Order(OrderError::Store(failed)) => Error::Store(failed),
            Stop::Spill(SpillError::Io(failed)) | Stop::Order(OrderError::Spill(SpillError::Io(failed))) => {
                Error::Store(store::Error::from_io(&failed))
            }
            Stop::Order(failed) => Error::Remote(Failed::BadAnswer(failed.to_string())),
            Stop::Lying(why) => Error::Remote(Failed::BadAnswer(why)),
            Stop::TooLarge(why) => Error::Bad {
                errcode: "M_RESOURCE_LIMIT_EXCEEDED",
                message: format!("The room turned out larger than this server takes: {why}"),
            },
            Stop::Reject(reject) => Error::Reject(reject),
            Stop::Corrupt => Error::Store(store::Error::Io("a join's own files are damaged".into())),
            Stop::TooManyNodes => Error::Remote(Failed::BadAnswer("more events than can be counted".into())),
            Stop::Cancelled => Error::Forbidden("the join was cancelled".into()),
            Stop::Room(error) => error,
            Stop::Panicked(what) => Error::Store(store::Error::Panicked(what)),
        }
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stop::Remote(failed) => failed.fmt(f),
            Stop::Refused(refused) => refused.fmt(f),
            Stop::Store(failed) => failed.fmt(f),
            Stop::Spill(failed) => failed.fmt(f),
            Stop::Order(failed) => failed.fmt(f),
            Stop::Lying(why) | Stop::TooLarge(why) => f.write_str(why),
            Stop::Reject(reject) => reject.fmt(f),
            Stop::Corrupt => f.write_str("a scratch file is damaged"),
            Stop::TooManyNodes => f.write_str("there are more events than can be counted"),
            Stop::Cancelled => f.write_str("it was cancelled"),
            Stop::Room(error) => error.fmt(f),
            Stop::Panicked(what) => write!(f, "it panicked: {what}"),
        }
    }
}

impl From<std::io::Error> for Stop {
    fn from(failed: std::io::Error) -> Stop {
        Stop::Spill(SpillError::Io(failed))
    }
}

macro_rules! stop_from {
    ($($from:ty => $variant:ident),*) => {$(
        impl From<$from> for Stop {
            fn from(failed: $from) -> Stop {
                Stop::$variant(failed)
            }
        }
    )*};
}
stop_from!(Failed => Remote, Refused => Refused, store::Error => Store, SpillError => Spill, OrderError => Order,
    Reject => Reject, Error => Room);
