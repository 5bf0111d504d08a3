//! Media ids given out before their files.
//!
//! Client-server API, "Content Repository", asynchronous uploads. Each is a row too, so that a restart between the two
//! halves of an upload loses nothing.

use parking_lot::{Mutex, MutexGuard};

use super::{Error, MEDIA_ID_CHARS, Media};
use crate::base::{Owner, Shares, blocking};
use crate::store::tables::media;
use crate::store::{Store, UserNum, WriteError};

/// All of them, each about 150 bytes; beyond that, the user with most ids loses the oldest.
const PROMISED_MAX: usize = 256;
/// Of one user.
const OWN_MAX: usize = 16;
const PROMISED_MS: u64 = 60 * 60 * 1000;
/// Rows whose time is over, removed with one new row.
const OVER_MAX: usize = 300;

/// The media ids without their files yet.
pub(super) struct Promised(Mutex<Shares<String, Promise>>);

pub(super) struct Promise {
    to: UserNum,
    expires_ms: u64,
}

impl Promised {
    /// Those of before the start. Bounded as they were when they were written.
    pub(super) fn load(store: &Store) -> Promised {
        let mut all = Shares::new(PROMISED_MAX, 0);
        let read = store.read().and_then(|read| {
            media::promises(&read, &mut |media_id, to, expires_ms| {
                all.put(Owner::Known(to), media_id, Promise { to, expires_ms });
            })
        });
        if let Err(failed) = read {
            tracing::warn!("media IDs that were given out before the start are lost: {failed}");
        }
        Promised(Mutex::new(all))
    }
}

impl Media {
    /// Gives out a media id whose file comes later. Answers the id and the deadline for the file, in Unix milliseconds.
    /// `TooMany` for a user who has too many of them without files.
    pub async fn promise(&self, to: UserNum) -> Result<(String, u64), Error> {
        let now_ms = self.0.parts.clock.now_ms();
        let expires_ms = now_ms + PROMISED_MS;
        let media_id = self.0.parts.random.token(MEDIA_ID_CHARS);
        {
            let mut all = self.promised();
            let (mut own, mut first) = (0, expires_ms);
            all.retain(|_, promise| {
                let stays = promise.expires_ms > now_ms;
                if stays && promise.to == to {
                    (own, first) = (own + 1, first.min(promise.expires_ms));
                }
                stays
            });
            if own >= OWN_MAX {
                return Err(Error::TooMany { retry_after_ms: first - now_ms });
            }
            all.put(Owner::Known(to), media_id.clone(), Promise { to, expires_ms });
        }
        let id = media_id.clone();
        let written = self.0.parts.store.write(move |w| {
            media::forget_promises_until(w, now_ms, OVER_MAX)?;
            media::promise(w, &id, to, expires_ms)
        });
        written.await.map_err(WriteError::into_inner)?;
        Ok((media_id, expires_ms))
    }

    /// Whether a media id was given out to this user; `Taken` when its file is there already.
    pub async fn check_promise(&self, media_id: &str, user: UserNum) -> Result<(), Error> {
        let now_ms = self.0.parts.clock.now_ms();
        let promised = self.promised().get(media_id).map(|promise| (promise.to, promise.expires_ms));
        match promised {
            Some((to, expires_ms)) if expires_ms > now_ms && to == user => return Ok(()),
            Some((to, _)) if to != user => {
                return Err(Error::Forbidden("This media ID was created by another user".to_owned()));
            }
            _ => {}
        }
        let (media, here, id) = (self.clone(), self.0.parts.server.clone(), media_id.to_owned());
        let known = blocking(move || media.open_blocking(&here, &id)).await?.is_some();
        Err(if known { Error::Taken } else { Error::NotFound })
    }

    pub(super) fn is_promised(&self, media_id: &str) -> bool {
        let now_ms = self.0.parts.clock.now_ms();
        self.promised().peek(media_id).is_some_and(|promise| promise.expires_ms > now_ms)
    }

    pub(super) fn promised(&self) -> MutexGuard<'_, Shares<String, Promise>> {
        self.0.promised.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::Clock;
    use crate::budget::Budget;
    use crate::media::tests::media;

    /// The 256 ids were shared by all users: one user who asked for that many ended the uploads of all others.
    #[tokio::test]
    async fn who_asks_for_many_ids_is_told_to_wait() {
        let clock = Clock::simulated(1_000_000);
        let media = media(&clock, &Budget::for_tests());
        let friends = media.promise(UserNum(1)).await.unwrap().0;
        for _ in 0..OWN_MAX {
            media.promise(UserNum(2)).await.unwrap();
        }
        clock.advance(Duration::from_millis(1000));
        let refused = media.promise(UserNum(2)).await.unwrap_err();
        assert!(matches!(refused, Error::TooMany { retry_after_ms } if retry_after_ms == PROMISED_MS - 1000));
        assert!(media.check_promise(&friends, UserNum(1)).await.is_ok());
        for user in 3..100 {
            for _ in 0..OWN_MAX {
                media.promise(UserNum(user)).await.unwrap();
            }
        }
        assert!(media.promised().len() <= PROMISED_MAX);
        clock.advance(Duration::from_millis(PROMISED_MS));
        for left in (0..6).map(|at| 97_usize * OWN_MAX + 17_usize - at * OVER_MAX) {
            let mut rows = 0;
            media::promises(&media.0.parts.store.read().unwrap(), &mut |_, _, _| rows += 1).unwrap();
            assert_eq!(rows, left, "what is over goes with the next");
            media.promise(UserNum(2)).await.unwrap();
            let (id, _) = media.promised().drain().pop().unwrap();
            media.0.parts.store.write(move |w| media::forget_promise(w, &id)).await.unwrap();
        }
        media.promise(UserNum(2)).await.unwrap();
        assert_eq!(media.promised().len(), 1, "what is over goes first");
        assert_eq!(Promised::load(&media.0.parts.store).0.lock().len(), 1);
    }
}
