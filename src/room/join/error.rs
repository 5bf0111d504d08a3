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
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Remote(#[from] Failed),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Spill(#[from] SpillError),
    #[error(transparent)]
    Order(#[from] OrderError),
    /// The resident server's answer is not what it should be.
    #[error("{0}")]
    Lying(String),
    /// The room is larger than was foreseen.
    #[error("{0}")]
    TooLarge(String),
    #[error(transparent)]
    Reject(#[from] Reject),
    /// Our own files are wrong.
    #[error("a scratch file is damaged")]
    Corrupt,
    #[error("the room has more events than this server can number")]
    TooManyNodes,
    #[error("the join was cancelled")]
    Cancelled,
    #[error(transparent)]
    Room(#[from] Error),
    /// One of its threads or tasks panicked; the message of the panic.
    #[error("the join panicked: {0}")]
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
                message: format!("The room is larger than this server can join: {why}"),
            },
            JoinError::Reject(reject) => Error::Reject(reject),
            JoinError::Corrupt => Error::Store(store::Error::Io("a scratch file of the join is damaged".into())),
            JoinError::TooManyNodes => {
                Error::Remote(Failed::BadAnswer("the room has more events than this server can number".into()))
            }
            JoinError::Cancelled => Error::Forbidden("the join was cancelled".into()),
            JoinError::Room(error) => error,
            JoinError::Panicked(what) => Error::Store(store::Error::Panicked(what)),
        }
    }
}

impl From<std::io::Error> for JoinError {
    fn from(failed: std::io::Error) -> JoinError {
        JoinError::Spill(SpillError::Io(failed))
    }
}
