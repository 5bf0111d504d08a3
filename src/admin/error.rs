//! Errors of the parts below as a sentence for the operator. The command line prints the sentence and ignores the
//! errcode.

use crate::http::{BadBody, ErrorResponse, StatusCode};
use crate::{room, user};

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

impl From<user::Error> for Error {
    fn from(failed: user::Error) -> Error {
        Error(match failed {
            user::Error::NotFound(_) => ErrorResponse::not_found(failed.to_string()),
            user::Error::Refused(refused) => refused.into(),
            other => ErrorResponse::bad("M_UNKNOWN", other.to_string()),
        })
    }
}

impl From<room::Error> for Error {
    fn from(failed: room::Error) -> Error {
        Error(match failed {
            room::Error::NotFound => ErrorResponse::not_found("there is no such room"),
            room::Error::Refused(refused) => refused.into(),
            other => ErrorResponse::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", other.to_string()),
        })
    }
}
