//! What this server knows under a name: profiles, aliases, the list of public rooms.

use std::sync::Arc;

use ruma::OwnedUserId;

use super::{Error, Federation, auth};
use crate::http::{Answer, Request, Response};

/// `GET /query/profile?user_id=&field=`
pub async fn profile(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    auth::origin(&federation, &mut request).await?;
    let user: OwnedUserId = request.query_as("user_id")?.ok_or_else(|| Answer::missing_param("user_id"))?;
    if user.server_name() != federation.server_name {
        return Err(Answer::invalid_param("That user is of another server").into());
    }
    let mut profile = federation.users.local_profile(&user).await?;
    if let Some(field) = request.query("field") {
        profile.retain(|name, _| *name == field);
    }
    Ok(Response::json(&profile))
}

/// `GET /query/{queryType}` for anything else.
pub async fn unknown(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    auth::origin(&federation, &mut request).await?;
    Err(Answer::not_found("There are no such queries here").into())
}
