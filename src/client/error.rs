//! What goes wrong below, in the client-server API's words.
//!
//! Handlers answer `Result<Response, client::Error>`: `?` takes every error of the parts below. The cause of what is our
//! own fault is logged here, once.

use std::fmt::Display;

use crate::budget::Refused;
use crate::http::{Answer, BadBody, StatusCode};
use crate::matrix::Kind;
use crate::{media, room, user};

/// A refusal to an app.
#[derive(Debug)]
pub struct Error(Answer);

impl From<Error> for Answer {
    fn from(error: Error) -> Answer {
        error.0
    }
}

impl From<Answer> for Error {
    fn from(answer: Answer) -> Error {
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
        use user::Error as E;
        Error(match failed {
            E::NotFound(_) => Answer::not_found(failed.to_string()),
            E::Forbidden(why) => Answer::forbidden(why),
            E::UnknownToken => super::auth::unknown_token(),
            E::Deactivated => Answer::new(StatusCode::FORBIDDEN, "M_USER_DEACTIVATED", failed.to_string()),
            E::Taken => Answer::bad("M_USER_IN_USE", failed.to_string()),
            E::Bad { errcode, message } => Answer::bad(errcode, message),
            E::TooLarge(message) => Answer::too_large(message),
            E::Remote(failed) => remote(&failed.to_string(), failed.is_refusal()),
            E::Refused(refused) => refused.into(),
            E::Store(failed) => stored(&failed, failed.is_full()),
        })
    }
}

impl From<room::error::Error> for Error {
    fn from(failed: room::error::Error) -> Error {
        use crate::room::error::Error as E;
        Error(match failed {
            E::NotFound => Answer::not_found(failed.to_string()),
            E::Forbidden(why) => Answer::forbidden(why),
            E::Reject(reject) => match reject.kind {
                Kind::Json | Kind::Shape => Answer::bad("M_BAD_JSON", reject.to_string()),
                Kind::TooLarge => Answer::too_large(reject.to_string()),
                Kind::Signature | Kind::Key | Kind::Auth => Answer::forbidden(reject.to_string()),
            },
            E::Bad { errcode, message } => Answer::bad(errcode, message),
            E::Taken => Answer::bad("M_ROOM_IN_USE", failed.to_string()),
            E::TooLarge => Answer::too_large(failed.to_string()),
            E::Remote(failed) => other_server(failed.to_string(), failed.errcode(), failed.is_refusal()),
            E::Refused(refused) => refused.into(),
            E::Store(failed) => stored(&failed, failed.is_full()),
        })
    }
}

/// What another server said no to keeps its code where apps know it; its other troubles are a bad gateway.
fn other_server(what: String, errcode: Option<&str>, refused: bool) -> Answer {
    match errcode {
        Some(code @ ("M_FORBIDDEN" | "M_UNABLE_TO_AUTHORISE_JOIN" | "M_UNABLE_TO_GRANT_JOIN")) => {
            Answer::new(StatusCode::FORBIDDEN, code.to_owned(), format!("The other server {what}"))
        }
        Some(code @ ("M_INCOMPATIBLE_ROOM_VERSION" | "M_RESOURCE_LIMIT_EXCEEDED")) => {
            Answer::new(StatusCode::BAD_REQUEST, code.to_owned(), format!("The other server {what}"))
        }
        _ => remote(&what, refused),
    }
}

impl From<media::Error> for Error {
    fn from(failed: media::Error) -> Error {
        use media::Error as E;
        Error(match failed {
            E::NotFound => Answer::not_found(failed.to_string()),
            E::NotYet => Answer::new(StatusCode::GATEWAY_TIMEOUT, "M_NOT_YET_UPLOADED", failed.to_string()),
            E::Forbidden(why) => Answer::forbidden(why),
            E::Taken => Answer::new(StatusCode::CONFLICT, "M_CANNOT_OVERWRITE_MEDIA", failed.to_string()),
            E::TooLarge { .. } => Answer::too_large(failed.to_string()),
            E::Full(_) => Answer::new(StatusCode::FORBIDDEN, "M_RESOURCE_LIMIT_EXCEEDED", failed.to_string()),
            E::Remote(failed) => remote(&failed.to_string(), failed.is_refusal()),
            E::Refused(refused) => refused.into(),
            E::Store(failed) => stored(&failed, failed.is_full()),
            E::Io(_) => Answer::internal(failed),
        })
    }
}

/// A full disk is something its owner can mend, and apps show it in words; the rest is ours alone.
fn stored(failed: impl Display, is_full: bool) -> Answer {
    match is_full {
        true => Answer::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "M_RESOURCE_LIMIT_EXCEEDED",
            "The server's disk is full; what is there can be read",
        ),
        false => Answer::internal(failed),
    }
}

/// Another server gave no usable answer: what it refused is not there for us, the rest is its trouble.
fn remote(what: &str, refused: bool) -> Answer {
    let message = format!("The other server {what}");
    match refused {
        true => Answer::not_found(message),
        false => Answer::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", message),
    }
}
