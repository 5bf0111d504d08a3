//! Errors of the parts below as a sentence for the operator. The command line prints the sentence and ignores the
//! errcode.

use std::fmt::Display;

use crate::budget::Refused;
use crate::flow::NotTold;
use crate::http::{BadBody, ErrorResponse, StatusCode};
use crate::{media, room, user};

/// Why a command was not carried out.
#[derive(Debug)]
pub struct Error(ErrorResponse);

impl From<Error> for ErrorResponse {
    fn from(error: Error) -> ErrorResponse {
        error.0
    }
}

impl From<ErrorResponse> for Error {
    fn from(answer: ErrorResponse) -> Error {
        Error(answer)
    }
}

impl From<BadBody> for Error {
    fn from(bad: BadBody) -> Error {
        Error(bad.into())
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        Error(refused.into())
    }
}

impl From<user::Error> for Error {
    fn from(failed: user::Error) -> Error {
        Error(match failed {
            user::Error::NotFound(_) => ErrorResponse::not_found(failed.to_string()),
            user::Error::Refused(refused) => refused.into(),
            user::Error::Store(failed) => stored(&failed, failed.is_full()),
            user::Error::Remote(failed) => elsewhere(&failed, failed.own_refusal()),
            other => ErrorResponse::bad("M_UNKNOWN", other.to_string()),
        })
    }
}

impl From<room::Error> for Error {
    fn from(failed: room::Error) -> Error {
        Error(match failed {
            room::Error::NotFound => ErrorResponse::not_found("there is no such room"),
            room::Error::Refused(refused) => refused.into(),
            room::Error::Store(failed) => stored(&failed, failed.is_full()),
            room::Error::Remote(failed) => elsewhere(&failed, failed.own_refusal()),
            other => ErrorResponse::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", other.to_string()),
        })
    }
}

impl From<media::Error> for Error {
    fn from(failed: media::Error) -> Error {
        Error(match failed {
            media::Error::Refused(refused) => refused.into(),
            media::Error::Store(failed) => stored(&failed, failed.is_full()),
            other => ErrorResponse { message: other.to_string(), ..ErrorResponse::internal(&other) },
        })
    }
}

impl From<NotTold> for Error {
    fn from(failed: NotTold) -> Error {
        match failed {
            NotTold::User(failed) => failed.into(),
            NotTold::Room(failed) => failed.into(),
        }
    }
}

/// The database failed. The cause is logged, once.
fn stored(failed: impl Display, is_full: bool) -> ErrorResponse {
    let internal = ErrorResponse::internal(failed);
    match is_full {
        true => ErrorResponse {
            status: StatusCode::INSUFFICIENT_STORAGE,
            message: "The server's disk is full: nothing new can be stored until there is room".to_owned(),
            ..internal
        },
        false => ErrorResponse {
            message: "The server could not read or write its database; its log says why".to_owned(),
            ..internal
        },
    }
}

fn elsewhere(failed: impl Display, own_refusal: Option<Refused>) -> ErrorResponse {
    match own_refusal {
        Some(refused) => refused.into(),
        None => ErrorResponse::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", format!("The other server {failed}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store;

    /// A failing card was the operator's mistake, in words that only the code knows.
    #[test]
    fn a_failing_database_is_the_servers_fault_in_plain_words() {
        for failed in
            [Error::from(user::Error::Store(store::Error::Closed)), room::Error::Store(store::Error::Closed).into()]
        {
            let answer = ErrorResponse::from(failed);
            assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
            assert!(!answer.message.contains(&store::Error::Closed.to_string()), "{}", answer.message);
        }
    }
}
