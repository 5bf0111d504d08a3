//! Access tokens that end and are refreshed (client-server API, "Refreshing access tokens").
//!
//! A refresh token makes a new pair. The pair before it stays good until one of the new ones is shown, since the answer may
//! have been lost; then it ends. A device has two pairs at most: refreshing again with the old one replaces the new one.

use super::session::{Refreshed, Session, check_may_log_in, token_hash};
use crate::store::tables::hex;
use crate::store::tables::user::device::{self, Device, Pair, Token};
use crate::store::{UserNum, Write};
use crate::user::lookup;
use crate::user::{Error, Users};

impl Users {
    /// A new pair of tokens for a refresh token. `UnknownToken` when it is of no device, or was replaced; `Locked`.
    pub async fn refresh(&self, refresh_token: &str, lifetime_ms: u64) -> Result<Session, Error> {
        let old = token_hash(refresh_token);
        let (access_token, refresh_token) = (self.new_token(), self.new_refresh_token());
        let (token_hash, refresh_hash) = (token_hash(&access_token), token_hash(&refresh_token));
        let expires_ms = self.now_ms().saturating_add(lifetime_ms);
        self.write(move |w| {
            let (user, device_id) = device::refresh_token(w, &old)?.ok_or(Error::UnknownToken)?;
            check_may_log_in(w, user).map_err(|closed| match closed {
                Error::Deactivated => Error::UnknownToken,
                other => other,
            })?;
            let mut row = device::get(w, user, &device_id)?.ok_or(Error::UnknownToken)?;
            let is = |hash: &str| hash == hex(&old);
            let refresh = row.refresh.as_ref().ok_or(Error::UnknownToken)?;
            if !is(&refresh.hash) {
                if !refresh.next.as_ref().is_some_and(|next| is(&next.refresh_hash)) {
                    return Err(Error::UnknownToken);
                }
                // The answer with it has arrived, so nobody needs the one before it.
                end_old_pair(w, &mut row)?;
            }
            let next = Pair { token_hash: hex(&token_hash), refresh_hash: hex(&refresh_hash) };
            if let Some(refresh) = &mut row.refresh
                && let Some(lost) = refresh.next.replace(next)
            {
                device::remove_pair(w, Some(&lost.token_hash), Some(&lost.refresh_hash))?;
            }
            device::put(w, user, &device_id, &row)?;
            let token = Token { user, device_id: device_id.clone(), expires_ms: Some(expires_ms), is_unused: true };
            device::put_token(w, &token_hash, &token)?;
            device::put_refresh_token(w, &refresh_hash, user, &device_id)?;
            let refreshed = Some(Refreshed { refresh_token, expires_in_ms: lifetime_ms });
            Ok(Session { user_id: lookup::id_of(w, user)?, device_id, access_token, refreshed })
        })
        .await
    }

    /// A refreshed token is shown for the first time: the pair before it ends.
    pub(super) async fn begin_use(&self, hash: [u8; 32]) -> Result<(), Error> {
        self.write(move |w| {
            let token = device::token(w, &hash)?.ok_or(Error::UnknownToken)?;
            // Another request with it may have been faster.
            if !token.is_unused {
                return Ok(());
            }
            let Token { user, device_id, .. } = &token;
            let mut row = device::get(w, *user, device_id)?.ok_or(Error::UnknownToken)?;
            end_old_pair(w, &mut row)?;
            put(w, *user, device_id, &row)?;
            Ok(device::put_token(w, &hash, &Token { is_unused: false, ..token })?)
        })
        .await
    }
}

fn put(w: &mut Write<'_>, user: UserNum, device_id: &str, row: &Device) -> Result<(), Error> {
    Ok(device::put(w, user, device_id, row)?)
}

/// Makes the pair that was handed out last the one of the device, and removes the one before it.
fn end_old_pair(w: &mut Write<'_>, row: &mut Device) -> Result<(), Error> {
    let Some(refresh) = &mut row.refresh else { return Ok(()) };
    let Some(next) = refresh.next.take() else { return Ok(()) };
    device::remove_pair(w, row.token_hash.as_deref(), Some(&refresh.hash))?;
    if let Some(hash) = device::hash_of(&next.token_hash)
        && let Some(token) = device::token(w, &hash)?
    {
        device::put_token(w, &hash, &Token { is_unused: false, ..token })?;
    }
    refresh.hash = next.refresh_hash;
    row.token_hash = Some(next.token_hash);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::user::tests::{Town, town};
    use crate::user::{Error, Login, Requester, Session};

    const LIFETIME_MS: u64 = 60_000;

    async fn ask(town: &Town, token: &str) -> Result<Requester, Error> {
        town.users.requester(token, [127, 0, 0, 1].into()).await
    }

    async fn is_over(town: &Town, token: &str) -> bool {
        matches!(ask(town, token).await, Err(Error::UnknownToken))
    }

    fn refresh_token(session: &Session) -> String {
        session.refreshed.as_ref().unwrap().refresh_token.clone()
    }

    async fn refresh(town: &Town, session: &Session) -> Result<Session, Error> {
        town.users.refresh(&refresh_token(session), LIFETIME_MS).await
    }

    async fn begun(town: &Town) -> Session {
        let anna = town.person("anna").await;
        let device_id = Some("PHONE".to_owned());
        let login = Login { device_id, lifetime_ms: Some(LIFETIME_MS), ..Login::default() };
        town.users.login(&anna.user_id, login).await.unwrap()
    }

    /// The rows of tokens: the one of another device of hers among them.
    fn rows(town: &Town) -> (usize, usize) {
        let read = town.users.0.parts.store.read().unwrap();
        let count = |table| {
            let mut count = 0;
            crate::store::Get::range(&read, table, &[], None, false, &mut |_, _| {
                count += 1;
                Ok::<_, crate::store::Error>(std::ops::ControlFlow::Continue(()))
            })
            .unwrap();
            count
        };
        (count(&crate::store::schema::TOKEN), count(&crate::store::schema::REFRESH))
    }

    #[tokio::test]
    async fn a_pair_ends_when_the_one_after_it_is_used() {
        let town = town();
        let first = begun(&town).await;
        ask(&town, &first.access_token).await.unwrap();
        let second = refresh(&town, &first).await.unwrap();
        assert_eq!((&second.user_id, &second.device_id), (&first.user_id, &first.device_id));
        // Both are good, until the new one is shown.
        ask(&town, &first.access_token).await.unwrap();
        ask(&town, &second.access_token).await.unwrap();
        ask(&town, &second.access_token).await.unwrap();
        assert!(is_over(&town, &first.access_token).await);
        assert!(matches!(refresh(&town, &first).await, Err(Error::UnknownToken)));
        // The refresh token is used before the access token that came with it.
        let third = refresh(&town, &second).await.unwrap();
        let fourth = refresh(&town, &third).await.unwrap();
        assert!(is_over(&town, &second.access_token).await);
        ask(&town, &third.access_token).await.unwrap();
        ask(&town, &fourth.access_token).await.unwrap();
        assert!(is_over(&town, &third.access_token).await);
        assert_eq!(rows(&town), (2, 1));
    }

    #[tokio::test]
    async fn an_answer_that_was_lost_can_be_asked_for_again_without_end() {
        let town = town();
        let first = begun(&town).await;
        let mut last = refresh(&town, &first).await.unwrap();
        for _ in 0..5 {
            let again = refresh(&town, &first).await.unwrap();
            assert!(is_over(&town, &last.access_token).await, "what was lost is replaced");
            last = again;
            assert_eq!(rows(&town), (3, 2));
        }
        ask(&town, &last.access_token).await.unwrap();
        town.users.logout_all(&first.user_id, None).await.unwrap();
        assert_eq!(rows(&town), (0, 0));
    }

    #[tokio::test]
    async fn a_token_that_has_ended_can_be_refreshed() {
        let town = town();
        let first = begun(&town).await;
        ask(&town, &first.access_token).await.unwrap();
        town.clock.advance(Duration::from_millis(LIFETIME_MS));
        assert!(matches!(ask(&town, &first.access_token).await, Err(Error::ExpiredToken)));
        let second = refresh(&town, &first).await.unwrap();
        ask(&town, &second.access_token).await.unwrap();
        // Who logs in again on the device needs no refreshing, and none is left.
        let login = Login { device_id: Some("PHONE".to_owned()), ..Login::default() };
        let third = town.users.login(&first.user_id, login).await.unwrap();
        assert!(is_over(&town, &second.access_token).await);
        assert!(matches!(refresh(&town, &second).await, Err(Error::UnknownToken)));
        town.clock.advance(Duration::from_millis(LIFETIME_MS * 100));
        ask(&town, &third.access_token).await.unwrap();
        assert_eq!(rows(&town), (2, 0));
    }

    #[tokio::test]
    async fn a_locked_account_gets_no_new_tokens() {
        let town = town();
        let first = begun(&town).await;
        town.users.set_locked(&first.user_id, true).await.unwrap();
        assert!(matches!(refresh(&town, &first).await, Err(Error::Locked)));
        assert!(matches!(town.users.login(&first.user_id, Login::default()).await, Err(Error::Locked)));
        assert!(ask(&town, &first.access_token).await.unwrap().is_locked);
        town.users.set_locked(&first.user_id, false).await.unwrap();
        assert!(!ask(&town, &first.access_token).await.unwrap().is_locked);
        refresh(&town, &first).await.unwrap();
    }
}
