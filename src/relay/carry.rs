//! What passes through the relay: from a client to its peers, and back.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Inner;
use super::message::{Arrived, Class, MESSAGE_BYTES_MAX, Message, Writer, attribute, method, read, write_channel};
use super::table::{Allocation, Client, Place};
use super::way::Way;

/// The longest datagram that is passed on: with what is written around it, a message.
const DATA_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 64;
/// Datagrams in a row, before others have their turn.
const TURN: usize = 16;

impl Inner {
    /// Takes what a client sent. Never waits.
    pub(super) fn arrived(self: &Arc<Inner>, bytes: &[u8], client: Client, way: &Way) {
        match read(bytes) {
            Some(Arrived::Channel(number, data)) => self.channel_data(number, data, client),
            Some(Arrived::Message(message)) => match (message.class, message.method) {
                (Class::Request, _) => self.answer(&message, client, way),
                (Class::Indication, method::SEND) => self.send_indication(&message, client),
                _ => {}
            },
            None => {}
        }
    }

    fn allocation(&self, client: Client) -> Option<Arc<Allocation>> {
        self.table.lock().by_client.get(&client).cloned()
    }

    fn channel_data(self: &Arc<Inner>, number: u16, data: &[u8], client: Client) {
        let Some(allocation) = self.allocation(client) else { return };
        let peer = allocation.state().peer_of(number, self.parts.clock.instant());
        if let Some(peer) = peer {
            self.send_to_peer(&allocation, peer, data);
        }
    }

    fn send_indication(self: &Arc<Inner>, message: &Message<'_>, client: Client) {
        const KNOWN: &[u16] = &[attribute::XOR_PEER_ADDRESS, attribute::DATA];
        let (peer, data) = (message.address(attribute::XOR_PEER_ADDRESS), message.get(attribute::DATA));
        let (Some(peer), Some(data), None) = (peer, data, message.unknown(KNOWN).next()) else { return };
        if let Some(allocation) = self.allocation(client) {
            self.send_to_peer(&allocation, peer, data);
        }
    }

    fn send_to_peer(self: &Arc<Inner>, allocation: &Arc<Allocation>, peer: SocketAddr, data: &[u8]) {
        let place = allocation.state().permitted(peer.ip(), self.parts.clock.instant());
        let Some(place) = place.filter(|_| self.may_pass(allocation, data)) else { return };
        match place {
            Place::Outside => drop(allocation.socket.try_send_to(data, peer)),
            // The other is not reached through a socket: behind a router its address leads out and seldom back in.
            Place::Here => {
                let other = self.table.lock().by_port.get(&(peer.is_ipv6(), peer.port())).cloned();
                if let Some(other) = other.filter(|_| data.len() <= DATA_BYTES_MAX) {
                    self.pass_to_client(&other, allocation.relayed, Place::Here, data);
                }
            }
        }
    }

    /// `place`: where it came from. Other programs of this machine are no peers.
    fn pass_to_client(&self, allocation: &Allocation, peer: SocketAddr, place: Place, data: &[u8]) {
        let now = self.parts.clock.instant();
        let channel = {
            let state = allocation.state();
            if state.permitted(peer.ip(), now) != Some(place) {
                return;
            }
            state.channel_of(peer, now)
        };
        if !self.may_pass(allocation, data) {
            return;
        }
        let mut out = [0; MESSAGE_BYTES_MAX];
        let length = match channel {
            Some(number) => write_channel(&mut out, number, data, allocation.way.is_stream()),
            None => {
                let mut transaction = [0; 12];
                self.parts.random.fill(&mut transaction);
                Writer::new(&mut out, Class::Indication, method::DATA, transaction)
                    .address(attribute::XOR_PEER_ADDRESS, peer)
                    .attribute(attribute::DATA, data)
                    .plain()
            }
        };
        if let Some(length) = length {
            allocation.way.send(&out[..length]);
        }
    }

    /// Counts the bytes for the user and for all.
    fn may_pass(&self, allocation: &Allocation, data: &[u8]) -> bool {
        let (now, bytes, options) = (self.parts.clock.instant(), data.len() as u64, &self.parts.options);
        allocation.bucket.take(bytes, options.user_bytes_max, now) && self.all.take(bytes, options.bytes_max, now)
    }

    /// Passes on what peers send to an allocation until its time is over.
    pub(super) async fn carry(self: Arc<Inner>, allocation: Arc<Allocation>) {
        let mut stopping = self.stopping.subscribe();
        loop {
            let now = self.parts.clock.instant();
            let left = allocation.state().until.saturating_sub(now);
            if left.is_zero() || *stopping.borrow_and_update() {
                break;
            }
            let mut over = std::pin::pin!(self.parts.clock.sleep(left));
            loop {
                tokio::select! {
                    ready = allocation.socket.readable() => match ready {
                        Ok(()) => self.pass(&allocation),
                        // Only while everything is taken down.
                        Err(_) => {
                            allocation.state().until = now;
                            break;
                        }
                    },
                    () = allocation.shortened.notified() => break,
                    () = &mut over => break,
                    _ = stopping.changed() => break,
                }
            }
        }
        self.table.lock().remove(&allocation);
    }

    fn pass(&self, allocation: &Allocation) {
        let mut data = [0; DATA_BYTES_MAX + 1];
        for _ in 0..TURN {
            match allocation.socket.try_recv_from(&mut data) {
                // One that fills the buffer was longer.
                Ok((length, from)) if length <= DATA_BYTES_MAX => {
                    self.pass_to_client(allocation, from, Place::Outside, &data[..length]);
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {}
            }
        }
    }
}
