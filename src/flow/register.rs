//! A new account and its first session.

use ruma::OwnedUserId;

use crate::user::{Error, Login, New, Session, Users};

/// What came of it.
#[derive(Debug)]
pub struct Registered {
    pub user_id: OwnedUserId,
    /// None when the app did not want one.
    pub session: Option<Session>,
}

/// Makes an account, and a session when one is wanted. The caller has seen to it that this person may.
pub async fn register(users: &Users, new: New, login: Option<Login>) -> Result<Registered, Error> {
    let user_id = users.create(new).await?;
    tracing::info!("{user_id} has an account now");
    let session = match login {
        Some(login) => Some(users.login(&user_id, login).await?),
        None => None,
    };
    Ok(Registered { user_id, session })
}
