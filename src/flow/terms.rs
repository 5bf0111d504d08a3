//! New terms: those who have not agreed to them are told, once for each change.

use std::time::Duration;

use ruma::UserId;

use super::{NotTold, Notices};
use crate::base::{Clock, Worker};
use crate::user::{self, Users};

/// Between two who are told: a room may be made for each.
const PAUSE: Duration = Duration::from_secs(1);
/// After an error.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// The terms that people are told of.
#[derive(Debug, Clone)]
pub struct NewTerms {
    /// Of their versions.
    pub digest: u64,
    /// The address of the page on which one agrees.
    pub page: String,
    /// Whether nothing can be sent before.
    pub required_to_send: bool,
}

/// Tells everybody with an app here who has not agreed to the present terms, then rests until the server stops. After a power
/// cut it goes on behind the last who was told.
pub async fn tell_of_terms(users: &Users, notices: &Notices, terms: &NewTerms, clock: &Clock, worker: &Worker) {
    loop {
        worker.works_on("telling people of new terms");
        match tell_all(users, notices, terms, clock, worker).await {
            Ok(()) => {
                worker.idle();
                std::future::pending::<()>().await;
            }
            Err(failed) => {
                tracing::warn!(%failed, "not everybody could be told of the new terms; this is tried again");
                worker.failed(failed);
                worker.idle_for(FAILED_PAUSE);
                clock.sleep(FAILED_PAUSE).await;
            }
        }
    }
}

/// Tells somebody who has just logged in, if that is their first app here and they have not agreed. Whoever is not told all the
/// same is by the refusal of what they send.
pub async fn tell_newcomer(users: &Users, notices: &Notices, terms: &NewTerms, user_id: &UserId) {
    let tell = async {
        if users.is_new_to_terms(user_id, terms.digest).await? {
            let link = users.terms_link(&terms.page, user_id).await?;
            notices.tell(user_id, &text("This server has terms.", &link, terms.required_to_send)).await?;
        }
        Ok::<_, NotTold>(())
    };
    if let Err(failed) = tell.await {
        tracing::info!("{user_id} is not told of the terms: {failed}");
    }
}

async fn tell_all(
    users: &Users,
    notices: &Notices,
    terms: &NewTerms,
    clock: &Clock,
    worker: &Worker,
) -> Result<(), NotTold> {
    let Some(mut after) = users.told_of_terms(terms.digest).await? else { return Ok(()) };
    loop {
        let (untold, last) = users.not_agreed(terms.digest, after).await?;
        for (num, user_id) in untold {
            let link = users.terms_link(&terms.page, &user_id).await?;
            match notices
                .tell(&user_id, &text("The terms of this server are new.", &link, terms.required_to_send))
                .await
            {
                Ok(_) => worker.done(1),
                Err(NotTold::Room(failed)) if failed.is_passing() => return Err(failed.into()),
                Err(NotTold::User(failed @ (user::Error::Refused(_) | user::Error::Store(_)))) => {
                    return Err(failed.into());
                }
                // One of them must not keep the others from being told.
                Err(failed) => tracing::info!("{user_id} is not told of the new terms: {failed}"),
            }
            users.note_told_of_terms(terms.digest, Some(num)).await?;
            clock.sleep(PAUSE).await;
        }
        users.note_told_of_terms(terms.digest, last).await?;
        match last {
            Some(_) => after = last,
            None => return Ok(()),
        }
    }
}

fn text(what: &str, link: &str, required_to_send: bool) -> String {
    let until = if required_to_send { " Until then you can read here, and send nothing." } else { "" };
    format!("{what} Please read them and agree: {link}{until}")
}
