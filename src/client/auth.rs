//! Who asks.

use serde_json::Value;

use crate::http::{Answer, Limit, Request, Response, StatusCode};
use crate::user::{self, Demand, Progress};

pub use crate::user::Requester;

use super::{Client, Error};

/// Whom a request speaks for: 401 `M_MISSING_TOKEN` or `M_UNKNOWN_TOKEN` otherwise.
pub async fn requester(client: &Client, request: &Request) -> Result<Requester, Answer> {
    let Some(token) = request.access_token() else {
        return Err(Answer::unauthorized("M_MISSING_TOKEN", "An access token is needed for this"));
    };
    let requester = client.users.requester(&token, request.peer().ip).await.map_err(Error::from)?;
    request.note_guest(requester.user_id.as_str());
    Ok(requester)
}

/// The requester of an endpoint that takes the user in its path: 403 when that is somebody else.
pub async fn own(client: &Client, request: &Request) -> Result<Requester, Answer> {
    let requester = requester(client, request).await?;
    if request.param("user_id") != requester.user_id.as_str() {
        return Err(Answer::forbidden("This belongs to another user"));
    }
    Ok(requester)
}

/// Has somebody prove who they are: nothing when it is done, else what to answer.
pub async fn prove(
    client: &Client,
    request: &Request,
    demand: Demand<'_>,
    auth: Option<&Value>,
) -> Result<Option<Response>, Error> {
    // A password may be tried here as well as at login, and no more often.
    if let Some(user) = demand.user
        && auth.is_some()
    {
        request.limit_for(Limit::Login, user.as_str())?;
    }
    match client.users.prove(demand, request.peer().ip, auth).await? {
        Progress::Done => Ok(None),
        Progress::Ask(what) => Ok(Some(Response::json_with(StatusCode::UNAUTHORIZED, &what))),
    }
}

/// The requester when there is a token, nobody when there is none.
pub async fn maybe(client: &Client, request: &Request) -> Result<Option<Requester>, Answer> {
    match request.access_token() {
        Some(_) => requester(client, request).await.map(Some),
        None => Ok(None),
    }
}

/// The answer to a token that speaks for nobody.
pub fn unknown_token() -> Answer {
    Answer::unauthorized("M_UNKNOWN_TOKEN", user::Error::UnknownToken.to_string()).with("soft_logout", false)
}
