//! User ids to numbers, and back.

use ruma::{OwnedUserId, UserId};

use super::Error;
use crate::store::tables::user;
use crate::store::{Get, UserNum};

/// The number of a local account.
pub(super) fn local(get: &impl Get, user_id: &UserId) -> Result<UserNum, Error> {
    let num = user::num(get, user_id.as_str())?.ok_or(Error::NotFound("account"))?;
    if user::is_local(get, num)? { Ok(num) } else { Err(Error::NotFound("account")) }
}

/// The id of a user number that one of our own rows mentions.
pub(super) fn id_of(get: &impl Get, num: UserNum) -> Result<OwnedUserId, Error> {
    let id = user::id_of(get, num)?;
    OwnedUserId::try_from(id)
        .map_err(|_| crate::store::Error::corrupt(&crate::store::schema::USER_ID, &num.to_key()).into())
}
