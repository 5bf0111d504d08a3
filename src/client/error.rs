//! What goes wrong below, in the client-server API's words.
//!
//! Handlers answer `Result<Response, client::Error>`: `?` takes every error of the parts below. The cause of what is our
//! own fault is logged here, once.

use crate::budget::Refused;
use crate::http::{Answer, BadBody, StatusCode};
use crate::{matrix, media, room, user};

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
            E::Store(failed) => Answer::internal(failed),
        })
    }
}

impl From<room::Error> for Error {
    fn from(failed: room::Error) -> Error {
        use room::Error as E;
        Error(match failed {
            E::NotFound => Answer::not_found(failed.to_string()),
            E::Forbidden(why) => Answer::forbidden(why),
            E::Reject(reject) if reject.kind == matrix::Kind::Auth => Answer::forbidden(reject.to_string()),
            E::Reject(reject) => Answer::bad("M_BAD_JSON", reject.to_string()),
            E::Bad { errcode, message } => Answer::bad(errcode, message),
            E::Taken => Answer::new(StatusCode::CONFLICT, "M_ROOM_IN_USE", failed.to_string()),
            E::TooLarge => Answer::too_large(failed.to_string()),
            E::Remote(failed) => match (failed.errcode(), failed.is_refusal()) {
                (Some("M_FORBIDDEN"), true) => Answer::forbidden(format!("The other server {failed}")),
                (_, refused) => remote(&failed.to_string(), refused),
            },
            E::Refused(refused) => refused.into(),
            E::Store(failed) => Answer::internal(failed),
        })
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
            E::Io(_) | E::Store(_) => Answer::internal(failed),
        })
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
