//! A new account and its first session.

use ruma::OwnedUserId;

use crate::user::{Error, Login, New, Session, Users};

/// The result of a registration.
#[derive(Debug)]
pub struct Registered {
    pub user_id: OwnedUserId,
    /// `None` when no session was asked for.
    pub session: Option<Session>,
}

/// Makes an account, and a session when `login` is given. The caller has checked that the account may be made.
pub async fn register(users: &Users, new: New, login: Option<Login>) -> Result<Registered, Error> {
    // Before there is an account, which would stay.
    login.as_ref().map_or(Ok(()), Login::check)?;
    let user_id = users.create(new).await?;
    tracing::info!("the account {user_id} was created");
    let session = match login {
        Some(login) => Some(users.login(&user_id, login).await?),
        None => None,
    };
    Ok(Registered { user_id, session })
}

/// Makes a guest's account and its session.
pub async fn register_guest(users: &Users, localpart: &str, login: Login) -> Result<Session, Error> {
    let user_id = users.create_guest(localpart).await?;
    tracing::info!("{user_id} came as a guest");
    users.login(&user_id, login).await
}

/// Makes a guest's account an ordinary one with a password, and a session when `login` is given. The caller has checked that it is the
/// guest who asks.
pub async fn upgrade_guest(
    users: &Users,
    guest: OwnedUserId,
    new: New,
    login: Option<Login>,
) -> Result<Registered, Error> {
    login.as_ref().map_or(Ok(()), Login::check)?;
    users.upgrade_guest(&guest, &new.password.unwrap_or_default()).await?;
    if new.agreed != 0 {
        users.set_agreed(&guest, new.agreed).await?;
    }
    tracing::info!("the guest {guest} made an account");
    let session = match login {
        Some(login) => Some(users.login(&guest, login).await?),
        None => None,
    };
    Ok(Registered { user_id: guest, session })
}
