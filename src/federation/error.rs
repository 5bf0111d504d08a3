//! Errors of the parts below, as answers of the server-server API.
//!
//! Handlers return `Result<Response, federation::Error>`: `?` takes every error of the parts below. The cause of an
//! error that is our own fault is logged here, once.

use crate::budget::Refused;
use crate::http::{BadBody, ErrorResponse, StatusCode};
use crate::matrix::Kind;
use crate::remote::Failed;
use crate::{media, room, user};

/// A refusal to another server.
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

impl From<room::Error> for Error {
    fn from(failed: room::Error) -> Error {
        use crate::room::Error as E;
        Error(match failed {
            E::NotFound => ErrorResponse::not_found("Not found, or the asking server is not allowed to see it"),
            E::Forbidden(why) => ErrorResponse::forbidden(why),
            E::InviteBlocked(errcode) => ErrorResponse::new(StatusCode::FORBIDDEN, errcode, failed.to_string()),
            E::Reject(reject) => match reject.kind {
                Kind::Auth | Kind::Missing | Kind::Signature | Kind::Key => {
                    ErrorResponse::forbidden(reject.to_string())
                }
                Kind::TooLarge => ErrorResponse::too_large(reject.to_string()),
                Kind::Json | Kind::Shape => ErrorResponse::bad("M_BAD_JSON", reject.to_string()),
            },
            E::Bad { errcode, message } => ErrorResponse::bad(errcode, message),
            E::Version(ref version) => {
                let version = version.as_str();
                ErrorResponse::bad("M_INCOMPATIBLE_ROOM_VERSION", failed.to_string()).with("room_version", version)
            }
            E::Taken => ErrorResponse::bad("M_ROOM_IN_USE", failed.to_string()),
            E::TooLarge => ErrorResponse::too_large(failed.to_string()),
            E::Remote(Failed::Refused(refused)) | E::Refused(refused) => refused.into(),
            E::Remote(failed) => another_server(&failed),
            E::Store(_) if failed.is_passing() => not_now(failed),
            E::Store(failed) => ErrorResponse::internal(failed),
        })
    }
}

impl From<user::Error> for Error {
    fn from(failed: user::Error) -> Error {
        use user::Error as E;
        Error(match failed {
            E::NotFound(_) | E::Deactivated | E::UnknownToken | E::ExpiredToken | E::Locked => {
                ErrorResponse::not_found(failed.to_string())
            }
            E::Forbidden(why) => ErrorResponse::forbidden(why),
            E::Taken => ErrorResponse::bad("M_USER_IN_USE", failed.to_string()),
            E::Bad { errcode, message } => ErrorResponse::bad(errcode, message),
            E::WrongBackup { .. } => ErrorResponse::forbidden(failed.to_string()),
            E::TooLarge(message) => ErrorResponse::too_large(message),
            E::Remote(Failed::Refused(refused)) | E::Refused(refused) => refused.into(),
            E::Remote(failed) => another_server(&failed),
            E::Store(_) if failed.is_passing() => not_now(failed),
            E::Store(failed) => ErrorResponse::internal(failed),
        })
    }
}

impl From<media::Error> for Error {
    fn from(failed: media::Error) -> Error {
        use media::Error as E;
        Error(match failed {
            E::Refused(refused) => refused.into(),
            E::TooLarge { .. } => ErrorResponse::too_large(failed.to_string()),
            E::NotYet => ErrorResponse::new(StatusCode::GATEWAY_TIMEOUT, "M_NOT_YET_UPLOADED", failed.to_string()),
            // What apps take for a reason to ask again.
            E::Unscanned { why, retry_after_ms } => {
                ErrorResponse::new(StatusCode::GATEWAY_TIMEOUT, "M_NOT_YET_UPLOADED", why)
                    .with("retry_after_ms", retry_after_ms)
            }
            E::Io(_) | E::Store(_) => ErrorResponse::internal(failed),
            _ => ErrorResponse::not_found(failed.to_string()),
        })
    }
}

/// The card is full or failed: a later retry may succeed.
fn not_now(cause: impl std::fmt::Display) -> ErrorResponse {
    tracing::error!("a request of another server was refused with 503 because the database failed: {cause}");
    ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", "This server cannot store anything now")
}

/// The remaining disk space is reserved for local users: a later retry may succeed. The store logs it, once.
pub(super) fn disk_is_short() -> Error {
    let why = "This server's disk is nearly full; try again later";
    ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, "M_RESOURCE_LIMIT_EXCEEDED", why).into()
}

/// A third server failed us while we worked for the requesting server.
fn another_server(failed: &impl std::fmt::Display) -> ErrorResponse {
    ErrorResponse::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", format!("Another server {failed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_this_server_does_not_join_is_named() {
        let Error(answer) = room::Error::Version("99".to_owned()).into();
        assert_eq!((&*answer.errcode, &answer.extra["room_version"]), ("M_INCOMPATIBLE_ROOM_VERSION", &"99".into()));
    }
}
