//! A queue whose capacity is in bytes.
//!
//! The capacity is taken from the account when the queue is made, so a queue cannot be refused later: a sender waits
//! for room instead. Dropping both ends gives the capacity back.

use tokio::sync::mpsc;

use super::account::{Account, Grant, Refused};

/// The least charge for an item: its place in the queue costs memory too.
const ITEM_BYTES_MIN: u64 = 64;

/// Places in the queue at most, whatever its bytes; the channel allocates them as they are used.
const ITEMS_MAX: u64 = 4096;

pub struct Sender<T> {
    room: Account,
    items: mpsc::Sender<Item<T>>,
}

pub struct Receiver<T> {
    items: mpsc::Receiver<Item<T>>,
    _capacity: Grant,
}

struct Item<T> {
    value: T,
    room: Grant,
}

/// Why an item was not queued; the item comes back.
pub enum NotSent<T> {
    /// The receiver is gone.
    Closed(T),
    /// It is larger than the whole queue, or the wait for room was too long.
    Refused(T, Refused),
}

/// A queue of at most `capacity_bytes`, paid for by `account` as long as the receiver lives.
pub fn channel<T: Send>(account: &Account, capacity_bytes: u64) -> Result<(Sender<T>, Receiver<T>), Refused> {
    let capacity = account.try_take(capacity_bytes)?;
    let (tx, rx) = mpsc::channel((capacity_bytes / ITEM_BYTES_MIN).clamp(1, ITEMS_MAX) as usize);
    let room = Account::part_of(account, capacity_bytes);
    Ok((Sender { room, items: tx }, Receiver { items: rx, _capacity: capacity }))
}

impl<T: Send> Sender<T> {
    /// Waits for room for `bytes`, at most as long as the account waits, and queues the value.
    pub async fn send(&self, value: T, bytes: u64) -> Result<(), NotSent<T>> {
        let room = match self.room.take(bytes.max(ITEM_BYTES_MIN)).await {
            Ok(room) => room,
            Err(refused) => return Err(NotSent::Refused(value, refused)),
        };
        self.items.send(Item { value, room }).await.map_err(|back| NotSent::Closed(back.0.value))
    }

    /// The same on a thread that may block.
    pub fn send_blocking(&self, value: T, bytes: u64) -> Result<(), NotSent<T>> {
        let room = match self.room.take_blocking(bytes.max(ITEM_BYTES_MIN)) {
            Ok(room) => room,
            Err(refused) => return Err(NotSent::Refused(value, refused)),
        };
        self.items.blocking_send(Item { value, room }).map_err(|back| NotSent::Closed(back.0.value))
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { room: self.room.clone(), items: self.items.clone() }
    }
}

impl<T> Receiver<T> {
    /// The next value with the room it took: keep the grant as long as the value's bytes are in memory, so that the
    /// sender does not run ahead. `None` when every sender is gone and the queue is empty.
    pub async fn recv(&mut self) -> Option<(T, Grant)> {
        self.items.recv().await.map(|item| (item.value, item.room))
    }

    pub fn recv_blocking(&mut self) -> Option<(T, Grant)> {
        self.items.blocking_recv().map(|item| (item.value, item.room))
    }

    pub fn try_recv(&mut self) -> Option<(T, Grant)> {
        self.items.try_recv().ok().map(|item| (item.value, item.room))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    #[tokio::test]
    async fn a_full_queue_makes_the_sender_wait() {
        let budget = Budget::for_tests();
        let account = budget.account("join");
        let (tx, mut rx) = channel::<u32>(&account, 1000).unwrap();
        tx.send(1, 800).await.ok().unwrap();
        let second = tokio::spawn(async move { tx.send(2, 800).await.is_ok() });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        let (first, room) = rx.recv().await.unwrap();
        assert_eq!((first, account.used()), (1, 1000));
        drop(room);
        assert!(second.await.unwrap());
        assert_eq!(rx.recv().await.unwrap().0, 2);
        assert!(rx.recv().await.is_none());
        drop(rx);
        assert_eq!(account.used(), 0);
    }
}
