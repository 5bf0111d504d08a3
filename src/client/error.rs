//! Errors of the parts below as status and errcode of the client-server API.
//!
//! Handlers answer `Result<Response, client::Error>`: `?` takes every error of the parts below. The cause of an
//! internal error is logged here, once.
//!
//! The lists in the handlers' docs leave out what many endpoints have in common:
//! - 401 `M_MISSING_TOKEN` or `M_UNKNOWN_TOKEN` where an access token is needed, 401 `M_USER_LOCKED` for that of a locked
//!   account;
//! - 403 `M_USER_SUSPENDED` or `M_CONSENT_NOT_GIVEN` for what others see, where `auth::speaker` is asked;
//! - 400 `M_INVALID_PARAM` for a path or query parameter that cannot be parsed;
//! - 400 `M_NOT_JSON` or `M_BAD_JSON` for the body, 413 `M_TOO_LARGE` for a body that is too long;
//! - 429 `M_LIMIT_EXCEEDED` when a rate limit or an account of memory is used up;
//! - 507 `M_RESOURCE_LIMIT_EXCEEDED` when the disk is full, 500 `M_UNKNOWN` for internal errors.
//!
//! Another server's error in a matter of rooms: 403 or 400 with the errcodes that `other_server` passes on, 404
//! `M_NOT_FOUND` for its other refusals, 502 `M_UNKNOWN` when it gave no usable answer.

use std::fmt::Display;

use crate::budget::Refused;
use crate::flow::NotTold;
use crate::http::{BadBody, ErrorResponse, StatusCode};
use crate::matrix::Kind;
use crate::{media, room, user};

/// An error as an app sees it.
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
        use user::Error as E;
        Error(match failed {
            E::NotFound(_) => ErrorResponse::not_found(failed.to_string()),
            E::Forbidden(why) => ErrorResponse::forbidden(why),
            E::UnknownToken => super::auth::unknown_token(false),
            E::ExpiredToken => super::auth::unknown_token(true),
            E::Locked => super::auth::locked(),
            E::Deactivated => ErrorResponse::new(StatusCode::FORBIDDEN, "M_USER_DEACTIVATED", failed.to_string()),
            E::Taken => ErrorResponse::bad("M_USER_IN_USE", failed.to_string()),
            E::Bad { errcode, message } => ErrorResponse::bad(errcode, message),
            E::WrongBackup { current } => {
                ErrorResponse::new(StatusCode::FORBIDDEN, "M_WRONG_ROOM_KEYS_VERSION", failed.to_string())
                    .with("current_version", current.to_string())
            }
            E::TooLarge(message) => ErrorResponse::too_large(message),
            E::Remote(failed) => match failed.own_refusal() {
                Some(refused) => refused.into(),
                None if failed.is_barred() => ErrorResponse::forbidden(format!("The other server {failed}")),
                None => remote(&failed.to_string(), failed.is_refusal()),
            },
            E::Refused(refused) => refused.into(),
            E::Store(failed) => stored(&failed, failed.is_full()),
        })
    }
}

impl From<room::Error> for Error {
    fn from(failed: room::Error) -> Error {
        use crate::room::Error as E;
        Error(match failed {
            E::NotFound => ErrorResponse::not_found(failed.to_string()),
            E::Forbidden(why) => ErrorResponse::forbidden(why),
            E::InviteBlocked(errcode) => ErrorResponse::new(StatusCode::FORBIDDEN, errcode, failed.to_string()),
            E::Reject(reject) => match reject.kind {
                Kind::Json | Kind::Shape => ErrorResponse::bad("M_BAD_JSON", reject.to_string()),
                Kind::TooLarge => ErrorResponse::too_large(reject.to_string()),
                Kind::Signature | Kind::Key | Kind::Auth | Kind::Missing => {
                    ErrorResponse::forbidden(reject.to_string())
                }
            },
            E::Bad { errcode, message } => ErrorResponse::bad(errcode, message),
            E::Version(ref version) => {
                let version = version.as_str();
                ErrorResponse::bad("M_INCOMPATIBLE_ROOM_VERSION", failed.to_string()).with("room_version", version)
            }
            E::Taken => ErrorResponse::bad("M_ROOM_IN_USE", failed.to_string()),
            E::TooLarge => ErrorResponse::too_large(failed.to_string()),
            E::Remote(failed) => match failed.own_refusal() {
                Some(refused) => refused.into(),
                None => {
                    let answer = other_server(failed.to_string(), failed.errcode(), failed.is_refusal());
                    match failed.room_version().filter(|_| answer.errcode == "M_INCOMPATIBLE_ROOM_VERSION") {
                        Some(version) => answer.with("room_version", version),
                        None => answer,
                    }
                }
            },
            E::Refused(refused) => refused.into(),
            E::Store(failed) => stored(&failed, failed.is_full()),
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

/// A refusal by another server keeps its errcode where apps know the code; `remote` maps all other failures.
fn other_server(what: String, errcode: Option<&str>, refused: bool) -> ErrorResponse {
    match errcode {
        Some(
            code @ ("M_FORBIDDEN"
            | "M_UNABLE_TO_AUTHORISE_JOIN"
            | "M_UNABLE_TO_GRANT_JOIN"
            | "M_INVITE_BLOCKED"
            | "ORG.MATRIX.MSC4155.M_INVITE_BLOCKED"),
        ) => ErrorResponse::new(StatusCode::FORBIDDEN, code.to_owned(), format!("The other server {what}")),
        Some(code @ ("M_INCOMPATIBLE_ROOM_VERSION" | "M_RESOURCE_LIMIT_EXCEEDED")) => {
            ErrorResponse::new(StatusCode::BAD_REQUEST, code.to_owned(), format!("The other server {what}"))
        }
        _ => remote(&what, refused),
    }
}

impl From<media::Error> for Error {
    fn from(failed: media::Error) -> Error {
        use media::Error as E;
        Error(match failed {
            E::NotFound => ErrorResponse::not_found(failed.to_string()),
            E::NotYet => ErrorResponse::new(StatusCode::GATEWAY_TIMEOUT, "M_NOT_YET_UPLOADED", failed.to_string()),
            // What apps take for a reason to ask again.
            E::Unscanned { why, retry_after_ms } => {
                ErrorResponse::new(StatusCode::GATEWAY_TIMEOUT, "M_NOT_YET_UPLOADED", why)
                    .with("retry_after_ms", retry_after_ms)
            }
            E::Forbidden(why) => ErrorResponse::forbidden(why),
            E::Taken => ErrorResponse::new(StatusCode::CONFLICT, "M_CANNOT_OVERWRITE_MEDIA", failed.to_string()),
            E::TooLarge { .. } => ErrorResponse::too_large(failed.to_string()),
            E::Full(_) => ErrorResponse::new(StatusCode::FORBIDDEN, "M_RESOURCE_LIMIT_EXCEEDED", failed.to_string()),
            E::NoRoom(why) => ErrorResponse::new(StatusCode::INSUFFICIENT_STORAGE, "M_RESOURCE_LIMIT_EXCEEDED", why),
            E::TooMany { retry_after_ms } => {
                ErrorResponse { message: failed.to_string(), ..ErrorResponse::limit_exceeded(retry_after_ms) }
            }
            E::Changed => remote("sent another file than a moment ago", false),
            E::Remote(failed) => match failed.own_refusal() {
                Some(refused) => refused.into(),
                None if failed.is_barred() => ErrorResponse::forbidden(format!("The other server {failed}")),
                None => remote(&failed.to_string(), failed.is_refusal()),
            },
            E::Refused(refused) => refused.into(),
            E::Store(failed) => stored(&failed, failed.is_full()),
            E::Io(_) => ErrorResponse::internal(failed),
        })
    }
}

/// A full disk is reported in words, which apps show: the server's owner can mend it. Other storage errors are
/// internal.
fn stored(failed: impl Display, is_full: bool) -> ErrorResponse {
    match is_full {
        true => ErrorResponse::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "M_RESOURCE_LIMIT_EXCEEDED",
            "The server's disk is full: nothing new can be stored. Its administrator can make room",
        ),
        false => ErrorResponse::internal(failed),
    }
}

/// Another server gave no usable answer. A refusal by it is reported as 404, any other failure as 502.
fn remote(what: &str, refused: bool) -> ErrorResponse {
    let message = format!("The other server {what}");
    match refused {
        true => ErrorResponse::not_found(message),
        false => ErrorResponse::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::Failed;

    #[test]
    fn a_version_this_server_or_another_does_not_join_is_named() {
        let there = Failed::Status {
            status: 400,
            errcode: "M_INCOMPATIBLE_ROOM_VERSION".to_owned(),
            message: "no".to_owned(),
            retry_after_ms: None,
            room_version: Some("99".to_owned()),
        };
        for failed in [room::Error::Version("99".to_owned()), room::Error::Remote(there)] {
            let Error(answer) = failed.into();
            assert_eq!(
                (&*answer.errcode, &answer.extra["room_version"]),
                ("M_INCOMPATIBLE_ROOM_VERSION", &"99".into())
            );
        }
    }
}
