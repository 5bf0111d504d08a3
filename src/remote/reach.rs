//! One attempt to reach a server, and how long it may go on while the server gives no sign.
//!
//! Until the server gives a sign (`contact.rs`), all look-ups and connections of the attempt together have one bound
//! ([`Backoff::admit`] says which). An attempt that takes longer than [`SUSPICION`] has the Internet itself looked at
//! (`outage.rs`), and so has a connection that was kept and gives no answer for so long.
//!
//! [`Backoff::admit`]: super::Backoff

use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use ruma::ServerName;

use super::connect::{Connection, Lease, Outgoing};
use super::contact::{Contact, Whence};
use super::lookup::Miss;
use super::resolve::Target;
use super::{Failed, Remote};
use crate::budget::Grant;

/// A server that has given no sign for so long makes the Internet doubtful.
const SUSPICION: Duration = Duration::from_millis(1500);
/// All steps of finding a server's address, also when its web server gave a sign.
const FIND: Duration = Duration::from_secs(15);

impl Remote {
    /// Finds the server and connects to it. The contact's patience bounds the time without a sign of it; ends early when
    /// it turns out meanwhile that the Internet is gone.
    pub(super) async fn connect(
        &self,
        server: &ServerName,
        grant: Grant,
        contact: &Contact,
    ) -> Result<Connection, Failed> {
        // On the heap: see `Clock::timeout`.
        let work = Box::pin(async {
            let target = self.find(server, contact).await?;
            contact.note_host(&target.host);
            let connection = self.0.dialer.dial(&target, grant, contact).await?;
            contact.note_made();
            self.0.backoff.answered(self.whence(server, contact));
            Ok(connection)
        });
        tokio::select! {
            biased;
            done = work => done,
            failed = self.without_a_sign(server, contact) => Err(failed),
        }
    }

    /// Sends a request over a connection that was kept. Its server may need long to answer; but when it has not begun to
    /// and it turns out that the Internet is gone, that ends early.
    pub(super) async fn send_on_kept(
        &self,
        server: &ServerName,
        lease: &mut Lease,
        request: Request<Outgoing>,
        contact: &Contact,
    ) -> Result<Result<Response<Incoming>, hyper::Error>, Failed> {
        let address = lease.address();
        let response = tokio::select! {
            biased;
            response = lease.send(request) => response,
            failed = self.without_an_answer(server, contact) => return Err(failed),
        };
        if let (Ok(_), Some(address)) = (&response, address) {
            contact.note_answer(address);
            self.0.backoff.answered(self.whence(server, contact));
        }
        Ok(response)
    }

    /// Where an answer came from. Where a server is reached without DNS, that shows nothing about the Internet.
    pub(super) fn whence(&self, server: &ServerName, contact: &Contact) -> Whence {
        match self.0.resolver.is_fixed(server) {
            true => Whence::Nowhere,
            false => contact.whence(),
        }
    }

    /// Ends when the server has given no sign for as long as patience lasts.
    async fn without_a_sign(&self, server: &ServerName, contact: &Contact) -> Failed {
        let (clock, patience) = (&self.0.clock, contact.patience());
        clock.sleep(SUSPICION.min(patience)).await;
        if patience > SUSPICION {
            if !contact.is_made() {
                self.doubt(server, contact);
            }
            tokio::select! {
                () = clock.sleep(patience - SUSPICION) => {}
                failed = self.cut_off(server, contact) => return failed,
            }
        }
        if contact.is_made() {
            return std::future::pending().await;
        }
        Failed::Unreachable { why: format!("no sign of it within {} ms", patience.as_millis()), silent: true }
    }

    /// Ends when the Internet is gone and with it the server at the other end of a kept connection.
    async fn without_an_answer(&self, server: &ServerName, contact: &Contact) -> Failed {
        self.0.clock.sleep(SUSPICION.min(contact.patience())).await;
        self.doubt(server, contact);
        self.cut_off(server, contact).await
    }

    /// Has the Internet looked at, unless the server is reached without it.
    fn doubt(&self, server: &ServerName, contact: &Contact) {
        let is_in_the_house = self.0.resolver.is_fixed(server) || self.0.backoff.is_near(server);
        if !is_in_the_house && contact.whence() != Whence::Far {
            self.suspect();
        }
    }

    /// Ends when the Internet is gone. Never for a server that gave a sign, nor for one that does without the Internet.
    async fn cut_off(&self, server: &ServerName, contact: &Contact) -> Failed {
        self.0.backoff.offline().await;
        let is_there = contact.is_made() || contact.whence() != Whence::Nowhere;
        if is_there || self.0.resolver.is_fixed(server) || !self.0.backoff.is_cut_off(server) {
            return std::future::pending().await;
        }
        self.0.backoff.offline_now()
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
