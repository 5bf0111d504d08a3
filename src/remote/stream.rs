//! A large answer, handed on frame by frame.
//!
//! The number of bytes is capped, the time is not: a large room over a slow line is no failure. Failures are silence
//! ([`Pace::stall`]) and a trickle meant to keep us waiting ([`Pace::bytes_min`]). Only time spent waiting for the peer
//! counts, never the time we took to process.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use ruma::{OwnedServerName, ServerName};

use super::connect::Lease;
use super::contact::Whence;
use super::request::Urgency;
use super::{Failed, Remote};

/// How slow a peer may be.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    /// Until the head of the answer: a resident server may need minutes for a large room.
    pub first: Duration,
    /// Between two frames.
    pub stall: Duration,
    /// Over any stretch of [`Pace::stretch`] spent waiting.
    pub bytes_min: u64,
    pub stretch: Duration,
    /// Of the whole body.
    pub max_bytes: u64,
    pub urgency: Urgency,
}

impl StreamLimits {
    /// For what a person waits for. Ten minutes to begin (Synapse takes 90 s and more for the largest rooms), a minute of silence, 1 KiB/s on average.
    pub fn patient(max_bytes: u64) -> StreamLimits {
        StreamLimits {
            first: Duration::from_secs(600),
            stall: Duration::from_secs(60),
            bytes_min: 60 * 1024,
            stretch: Duration::from_secs(60),
            max_bytes,
            urgency: Urgency::Person,
        }
    }
}

/// A body being received. Dropping it closes the connection; reading it to the end returns the connection to the pool.
pub struct Body {
    remote: Remote,
    server: OwnedServerName,
    incoming: Incoming,
    headers: http::HeaderMap,
    lease: Option<Lease>,
    pace: StreamLimits,
    received: u64,
    length: Option<u64>,
    waited: Duration,
    stretch_bytes: u64,
}

impl Remote {
    /// Asks `server` and returns the answer's body to be read. Never asks twice: a `PUT` with the beginning of an
    /// answer has been processed.
    pub async fn stream(
        &self,
        server: &ServerName,
        method: Method,
        target: &str,
        content: Option<Vec<u8>>,
        pace: StreamLimits,
    ) -> Result<Body, Failed> {
        let contact = self.admit(server, pace.urgency).await?;
        let exchange = self.exchange(server, &method, target, content, true, &contact);
        let outcome = self.0.clock.timeout(pace.first, exchange).await.unwrap_or(Err(Failed::Timeout));
        self.judge(server, self.whence(server, &contact), &outcome);
        let (lease, response) = outcome?;
        let length = response.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > pace.max_bytes) {
            return Err(Failed::TooLarge { max_bytes: pace.max_bytes });
        }
        let (head, incoming) = response.into_parts();
        Ok(Body {
            remote: self.clone(),
            server: server.to_owned(),
            incoming,
            headers: head.headers,
            lease: Some(lease),
            pace,
            received: 0,
            length,
            waited: Duration::ZERO,
            stretch_bytes: 0,
        })
    }
}

impl Body {
    /// The next frame, at most 16 KiB or so; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failed> {
        let frame = self.wait().await;
        if let Err(failed) = &frame {
            self.lease = None;
            self.remote.judge::<()>(&self.server, Whence::Nowhere, &Err(failed.clone()));
        }
        frame
    }

    async fn wait(&mut self) -> Result<Option<Bytes>, Failed> {
        loop {
            let clock = self.remote.0.clock.clone();
            let began = clock.instant();
            let Some(frame) = clock.timeout(self.pace.stall, self.incoming.frame()).await else {
                return Err(Failed::Timeout);
            };
            self.waited += clock.instant().saturating_sub(began);
            let Some(frame) = frame else {
                if let Some(lease) = self.lease.take() {
                    lease.give_back();
                }
                return Ok(None);
            };
            let frame = frame.map_err(|error| Failed::BrokenOff(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                self.count(data.len() as u64)?;
                return Ok(Some(data));
            }
        }
    }

    fn count(&mut self, bytes: u64) -> Result<(), Failed> {
        self.received += bytes;
        self.stretch_bytes += bytes;
        if self.received > self.pace.max_bytes {
            return Err(Failed::TooLarge { max_bytes: self.pace.max_bytes });
        }
        if self.waited >= self.pace.stretch {
            let enough = self.stretch_bytes >= self.pace.bytes_min;
            self.waited = Duration::ZERO;
            self.stretch_bytes = 0;
            return if enough { Ok(()) } else { Err(Failed::Timeout) };
        }
        Ok(())
    }

    /// A header of the answer, when it is text. The connection's buffer bounds them all.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Bytes so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The length that the peer announces for the body, if it does.
    pub fn length(&self) -> Option<u64> {
        self.length
    }
}
