//! Who is new here, until they have been joined to the rooms that new people join.

use std::sync::atomic::Ordering;

use ruma::OwnedUserId;

use super::Standing;
use super::id_of;
use crate::store::UserNum;
use crate::store::tables::user;
use crate::user::{Error, Users};

impl Users {
    /// Sets whether there are rooms that new people join: without any, nothing is noted of them.
    pub fn set_welcomes(&self, welcomes: bool) {
        self.0.welcomes.store(welcomes, Ordering::Relaxed);
    }

    pub(super) fn welcomes(&self) -> bool {
        self.0.welcomes.load(Ordering::Relaxed)
    }

    /// The first newcomer behind one.
    pub async fn newcomer(&self, after: Option<UserNum>) -> Result<Option<UserNum>, Error> {
        self.read(move |get| Ok(user::newcomer_after(get, after)?)).await
    }

    /// The one is no newcomer any more.
    pub async fn is_welcomed(&self, user: UserNum) -> Result<(), Error> {
        self.write(move |w| Ok(user::set_newcomer(w, user, false)?)).await
    }

    /// Waits until there may be another newcomer.
    pub async fn newcomers(&self) {
        self.0.newcomers.notified().await;
    }

    /// The id of an account that may join rooms: none for a guest, and for one that is closed, locked or suspended.
    pub async fn active_id(&self, num: UserNum) -> Result<Option<OwnedUserId>, Error> {
        self.read(move |get| match user::account(get, num)? {
            Some(row) if row.standing != Standing::Active || row.locked || row.suspended => Ok(None),
            Some(_) if !user::is_guest(get, num)? => Ok(Some(id_of(get, num)?)),
            _ => Ok(None),
        })
        .await
    }
}
