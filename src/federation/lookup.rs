//! Turns to look up the keys of servers that callers name.
//!
//! A caller may write any server's name on a request, and each name makes this server look up that server's key. So
//! only few lookups run at once, and they queue in separate lines: servers that are in our rooms, servers whose keys
//! were here before, and all others. In a line each calling address and each name has one turn. A silent server loses
//! its turn when others wait, and after [`LOOKUP_MAX`] in any case. Bounded by the turns; a waiting request holds a
//! connection's place and no more, for [`TURN_MAX`] at most.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use ruma::ServerName;
use tokio::sync::{Notify, Semaphore};

use crate::base::{Clock, KeyedGuard, KeyedLock};

/// How long a caller waits for its turn.
pub const TURN_MAX: Duration = Duration::from_secs(5);
/// A server that has not answered with its key after so long loses its turn when others wait.
const SILENCE_MAX: Duration = Duration::from_millis(2500);
/// …and after so long when no others wait.
const LOOKUP_MAX: Duration = Duration::from_secs(10);

/// The standing of a server that is named, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The server has users in one of our rooms.
    InOurRooms,
    /// The server's keys were here before.
    SeenBefore,
    Stranger,
}

/// Why a lookup was not finished.
#[derive(Debug, PartialEq, Eq)]
pub enum Missed {
    /// No turn became free in time.
    NoTurn,
    /// The server had a turn and did not answer.
    Silent,
}

pub struct Lookups {
    clock: Clock,
    in_our_rooms: Line,
    seen_before: Line,
    strangers: Line,
}

struct Line {
    turns: Semaphore,
    callers: KeyedLock,
    names: KeyedLock,
    waiting: AtomicUsize,
    /// Notified when a request begins to wait.
    more: Notify,
}

impl Lookups {
    /// Most of the `connections_max` connections to other servers are for requests of local users.
    pub fn new(clock: Clock, connections_max: usize) -> Lookups {
        let line = |turns: usize| Line::new(turns.max(1));
        Lookups {
            clock,
            in_our_rooms: line(connections_max / 4),
            seen_before: line(connections_max / 8),
            strangers: line(connections_max / 4),
        }
    }

    /// Does `work`, which looks up `server` because `caller` named it, in a turn. Waits no longer than `patience` for
    /// that turn.
    pub async fn run<T>(
        &self,
        standing: Standing,
        caller: IpAddr,
        server: &ServerName,
        patience: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Missed> {
        let line = match standing {
            Standing::InOurRooms => &self.in_our_rooms,
            Standing::SeenBefore => &self.seen_before,
            Standing::Stranger => &self.strangers,
        };
        let turn = self.clock.timeout(patience, line.turn(caller, server)).await;
        let Some(_turn) = turn.flatten() else { return Err(Missed::NoTurn) };
        let pressed = async {
            self.clock.sleep(SILENCE_MAX).await;
            line.somebody_waits().await;
        };
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = pressed => Err(Missed::Silent),
            () = self.clock.sleep(LOOKUP_MAX) => Err(Missed::Silent),
        }
    }
}

/// A turn, given up by drop.
struct Turn<'a> {
    _caller: KeyedGuard,
    _name: KeyedGuard,
    _turn: tokio::sync::SemaphorePermit<'a>,
}

impl Line {
    fn new(turns: usize) -> Line {
        Line {
            turns: Semaphore::new(turns),
            callers: KeyedLock::default(),
            names: KeyedLock::default(),
            waiting: AtomicUsize::new(0),
            more: Notify::new(),
        }
    }

    /// The turn of the address and of the name first: a request that waits for these does not hold up others.
    async fn turn(&self, caller: IpAddr, server: &ServerName) -> Option<Turn<'_>> {
        let caller = self.callers.take(&network(caller)).await;
        let name = self.names.take(server.as_str()).await;
        let _waiting = Waiting::new(self);
        let turn = self.turns.acquire().await.ok()?;
        Some(Turn { _caller: caller, _name: name, _turn: turn })
    }

    async fn somebody_waits(&self) {
        loop {
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            if self.waiting.load(SeqCst) > 0 {
                return;
            }
            more.await;
        }
    }
}

/// One more waiting request, until it is dropped.
struct Waiting<'a>(&'a Line);

impl<'a> Waiting<'a> {
    fn new(line: &'a Line) -> Waiting<'a> {
        line.waiting.fetch_add(1, SeqCst);
        line.more.notify_waiters();
        Waiting(line)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

/// The block one customer gets: an address, of IPv6 a /64.
fn network(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("{:x}", v6.to_bits() >> 64),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn name(text: &str) -> ruma::OwnedServerName {
        text.try_into().unwrap()
    }

    fn ip(n: u8) -> IpAddr {
        [203, 0, 113, n].into()
    }

    struct Desk {
        clock: Clock,
        lookups: Arc<Lookups>,
    }

    impl Desk {
        fn of(connections_max: usize) -> Desk {
            let clock = Clock::simulated(0);
            Desk { lookups: Arc::new(Lookups::new(clock.clone(), connections_max)), clock }
        }

        /// Looks up a server that answers, or one that never does.
        fn look(
            &self,
            standing: Standing,
            caller: u8,
            server: &str,
            answers: bool,
        ) -> tokio::task::JoinHandle<Result<(), Missed>> {
            let (lookups, server) = (self.lookups.clone(), name(server));
            tokio::spawn(async move {
                let work = async {
                    if !answers {
                        std::future::pending::<()>().await;
                    }
                };
                lookups.run(standing, ip(caller), &server, TURN_MAX, work).await
            })
        }

        async fn pass(&self, length: Duration) {
            let mut left = length;
            while let Some(rest) = left.checked_sub(Duration::from_millis(100)) {
                left = rest;
                self.settle().await;
                self.clock.advance(Duration::from_millis(100));
            }
            self.settle().await;
        }

        async fn settle(&self) {
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Two addresses that named silent servers kept all servers with unknown keys from being heard, for ten seconds at
    /// a time.
    #[tokio::test]
    async fn silence_is_hung_up_on_when_others_wait() {
        for (connections_max, turns) in [(8, 2), (24, 6)] {
            let desk = Desk::of(connections_max);
            let silent: Vec<_> =
                (0..turns).map(|n| desk.look(Standing::Stranger, n, &format!("silent{n}.example"), false)).collect();
            desk.settle().await;
            // Requests in other lines do not wait at all.
            for standing in [Standing::InOurRooms, Standing::SeenBefore] {
                assert_eq!(desk.look(standing, 99, "friend.example", true).await.unwrap(), Ok(()));
            }
            let stranger = desk.look(Standing::Stranger, 99, "stranger.example", true);
            desk.pass(Duration::from_millis(2400)).await;
            assert!(!stranger.is_finished());
            desk.pass(Duration::from_millis(200)).await;
            assert_eq!(stranger.await.unwrap(), Ok(()));
            let ended = silent.iter().filter(|looking| looking.is_finished()).count();
            assert!(ended > 0, "somebody was hung up on");
            desk.pass(LOOKUP_MAX).await;
            for looking in silent {
                assert_eq!(looking.await.unwrap(), Err(Missed::Silent));
            }
        }
    }

    /// Silent servers named from one address, or one silent server named from many, have one turn together.
    #[tokio::test]
    async fn an_address_and_a_name_have_one_turn() {
        let desk = Desk::of(8);
        let mut silent: Vec<_> =
            (0..10).map(|n| desk.look(Standing::Stranger, 1, &format!("s{n}.example"), false)).collect();
        assert_eq!(desk.look(Standing::Stranger, 99, "stranger.example", true).await.unwrap(), Ok(()));
        silent.iter().for_each(|looking| looking.abort());
        desk.settle().await;
        silent = (0..10).map(|n| desk.look(Standing::Stranger, n, "silent.example", false)).collect();
        assert_eq!(desk.look(Standing::Stranger, 99, "stranger.example", true).await.unwrap(), Ok(()));
        desk.pass(TURN_MAX).await;
        let refused = silent.iter().filter(|looking| looking.is_finished()).count();
        assert_eq!(refused, 9, "nobody waits for long");
    }

    #[tokio::test]
    async fn nobody_waits_without_patience() {
        let desk = Desk::of(1);
        let silent = desk.look(Standing::Stranger, 1, "silent.example", false);
        desk.settle().await;
        let server = name("s.example");
        let look = || desk.lookups.run(Standing::Stranger, ip(2), &server, Duration::ZERO, async {});
        assert_eq!(look().await, Err(Missed::NoTurn));
        silent.abort();
        desk.settle().await;
        assert_eq!(look().await, Ok(()));
    }
}
