//! How a client of the relay is reached: over UDP, or in a stream of TCP or TLS.
//!
//! What a stream does not take in time is dropped, as a network would: [`QUEUE_BYTES`] of it wait at most.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// Some twenty pieces of video: one picture.
pub const QUEUE_BYTES: usize = 24 * 1024;

#[derive(Clone)]
pub enum Way {
    Datagrams(Arc<UdpSocket>, SocketAddr),
    Stream(Arc<Queue>),
}

/// Bytes on their way into a stream.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Vec<u8>>,
    more: Notify,
}

impl Way {
    pub fn is_stream(&self) -> bool {
        matches!(self, Way::Stream(_))
    }

    /// Sends a message, or drops it when there is no room for it just now.
    pub fn send(&self, message: &[u8]) {
        match self {
            Way::Datagrams(socket, to) => drop(socket.try_send_to(message, *to)),
            Way::Stream(queue) => queue.put(message),
        }
    }
}

impl Queue {
    fn put(&self, message: &[u8]) {
        let mut waiting = self.waiting.lock();
        if waiting.len() + message.len() <= QUEUE_BYTES {
            waiting.reserve_exact(message.len().max(1024));
            waiting.extend_from_slice(message);
            drop(waiting);
            self.more.notify_one();
        }
    }

    /// What waits, once something does.
    pub async fn take(&self) -> Vec<u8> {
        loop {
            let taken = std::mem::take(&mut *self.waiting.lock());
            if !taken.is_empty() {
                return taken;
            }
            self.more.notified().await;
        }
    }
}
