//! What an attempt to reach a server has come to so far.
//!
//! A sign is a finished TLS handshake, of the server itself or of the web server with its well-known file.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use super::address::is_private;

/// An app's call waits no longer for a server that gives no sign.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Where an answer came from, as far as it shows something about our way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    /// There was none.
    Nowhere,
    /// From an address of a home or company network.
    Near,
    /// From the Internet.
    Far,
}

/// What an attempt has come to so far.
#[derive(Debug)]
pub struct Contact {
    patience: Duration,
    made: AtomicBool,
    whence: AtomicU8,
    /// The `Host` header that the look-ups gave.
    host: OnceLock<String>,
}

impl Default for Contact {
    fn default() -> Contact {
        Contact::new(PATIENCE)
    }
}

impl Contact {
    /// `patience`: how long the attempt may go on without a sign of the server.
    pub fn new(patience: Duration) -> Contact {
        Contact { patience, made: AtomicBool::default(), whence: AtomicU8::default(), host: OnceLock::new() }
    }

    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// A machine at `address` answered, if only with a refusal.
    pub fn note_answer(&self, address: SocketAddr) {
        self.whence.fetch_max(if is_private(address.ip()) { 1 } else { 2 }, Ordering::Relaxed);
    }

    /// The server gave a sign.
    pub fn note_made(&self) {
        self.made.store(true, Ordering::Relaxed);
    }

    pub fn is_made(&self) -> bool {
        self.made.load(Ordering::Relaxed)
    }

    pub fn whence(&self) -> Whence {
        match self.whence.load(Ordering::Relaxed) {
            0 => Whence::Nowhere,
            1 => Whence::Near,
            _ => Whence::Far,
        }
    }

    pub fn note_host(&self, host: &str) {
        let _ = self.host.set(host.to_owned());
    }

    pub fn host(&self) -> Option<&str> {
        self.host.get().map(String::as_str)
    }
}
