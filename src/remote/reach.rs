//! One attempt to reach a server, and how long it may go on while the server gives no sign.
//!
//! Until the server gives a sign (`contact.rs`), all look-ups and connections of the attempt together have one bound
//! ([`Backoff::admit`] says which). An attempt that takes longer than [`SUSPICION`] has the Internet itself looked at
//! (`outage.rs`).
//!
//! [`Backoff::admit`]: super::Backoff

use std::time::Duration;

use ruma::ServerName;

use super::connect::Connection;
use super::contact::Contact;
use super::lookup::Miss;
use super::resolve::Target;
use super::{Failed, Remote};
use crate::budget::Grant;

/// A server that has given no sign for so long makes the Internet doubtful.
const SUSPICION: Duration = Duration::from_millis(1500);
/// All steps of finding a server's address, also when its web server gave a sign.
const FIND: Duration = Duration::from_secs(15);

impl Remote {
    /// Finds the server and connects to it. `patience` bounds the time without a sign of it; ends early when it turns
    /// out meanwhile that the Internet is gone.
    pub(super) async fn connect(
        &self,
        server: &ServerName,
        grant: Grant,
        contact: &Contact,
        patience: Duration,
    ) -> Result<Connection, Failed> {
        // On the heap: see `Clock::timeout`.
        let work = Box::pin(async {
            let target = self.find(server, contact).await?;
            contact.note_host(&target.host);
            let connection = self.0.dialer.dial(&target, grant, contact).await?;
            contact.note_made();
            Ok(connection)
        });
        tokio::select! {
            biased;
            done = work => done,
            failed = self.without_a_sign(server, contact, patience) => Err(failed),
        }
    }

    /// Ends when the server has given no sign for `patience`.
    async fn without_a_sign(&self, server: &ServerName, contact: &Contact, patience: Duration) -> Failed {
        let clock = &self.0.clock;
        clock.sleep(SUSPICION.min(patience)).await;
        if patience > SUSPICION {
            let is_cut = !self.0.resolver.is_fixed(server) && !self.0.backoff.is_near(server);
            if is_cut && !contact.is_made() {
                self.suspect();
            }
            tokio::select! {
                () = clock.sleep(patience - SUSPICION) => {}
                () = self.0.backoff.offline(), if is_cut => {
                    if !contact.is_made() {
                        return self.0.backoff.offline_now();
                    }
                }
            }
        }
        if contact.is_made() {
            return std::future::pending().await;
        }
        Failed::Unreachable { why: format!("no sign of it within {} ms", patience.as_millis()), silent: true }
    }

    /// Where a server is reached. At most [`FIND`].
    pub(super) async fn find(&self, server: &ServerName, contact: &Contact) -> Result<Target, Failed> {
        if self.is_me(server) {
            return Err(Failed::BadAnswer("that is this server itself".into()));
        }
        if !self.0.enabled {
            return Err(Failed::BadAnswer("federation is switched off on this server (federation.enabled)".into()));
        }
        let owner = self.owner_of(server).await;
        let found = self.0.clock.timeout(FIND, self.0.resolver.resolve(server, owner, contact)).await;
        let slow = || Miss::Silent(format!("the look-ups for {server} take longer than {} s", FIND.as_secs()));
        Ok(found.unwrap_or_else(|| Err(slow()))?)
    }
}
