//! What systemd is told: that the server is ready, what it does, and that it is alive (sd_notify(3), by hand: one line in a
//! datagram).
//!
//! A sign of life is one of the parts that everything depends on: the writer has answered a job, and every listener has
//! taken up a connection. It is given only where the unit has `WatchdogSec=`, at half of that time. Where systemd hears
//! nothing for the whole time, it ends the server and starts it again: nothing that was confirmed is lost.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crate::base::Clock;
use crate::http::HttpServer;
use crate::store::{Error, Store, WriteError};

/// A unit with a shorter `WatchdogSec=` is asked for its sign no more often than this.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The socket of the service manager; nothing where there is none.
#[derive(Clone, Default)]
pub struct Manager(Option<Arc<(UnixDatagram, SocketAddr)>>);

impl Manager {
    /// From `NOTIFY_SOCKET`.
    pub fn of_environment() -> Manager {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Manager::default() };
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(&path),
        };
        let open = || Ok::<_, std::io::Error>((UnixDatagram::unbound()?, address?));
        match open() {
            Ok(found) => Manager(Some(Arc::new(found))),
            Err(failed) => {
                tracing::warn!("the service manager cannot be told anything: {failed}");
                Manager::default()
            }
        }
    }

    pub fn ready(&self, what: &str) {
        self.say(&format!("READY=1\nSTATUS={what}\n"));
    }

    /// The settings are being read again; [`Manager::ready`] follows.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let microseconds = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000;
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n"));
    }

    pub fn stopping(&self) {
        self.say("STOPPING=1\n");
    }

    fn say(&self, lines: &str) {
        let Some(manager) = &self.0 else { return };
        let (socket, address) = &**manager;
        if let Err(failed) = socket.send_to_addr(lines.as_bytes(), address) {
            tracing::debug!("the service manager was not told: {failed}");
        }
    }

    /// Gives signs of life for as long as there are any; ends at once where nobody waits for them.
    pub async fn keep_watch(self, clock: Clock, store: Store, door: Arc<HttpServer>) {
        let Some(limit) = watchdog() else { return };
        let pause = (limit / 2).max(PAUSE_MIN);
        loop {
            let next = match is_alive(&clock, &store, &door, pause / 2).await {
                Ok(()) => {
                    self.say("WATCHDOG=1\n");
                    pause
                }
                // Looked at again soon: there is time for one that was slow.
                Err(dead) => {
                    tracing::error!("no sign of life for systemd: {dead}");
                    (pause / 10).max(PAUSE_MIN)
                }
            };
            clock.sleep(next).await;
        }
    }
}

/// The time of `WatchdogSec=`, when it is meant for this process.
fn watchdog() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|usec| is_ours && *usec > 0).map(Duration::from_micros)
}

/// Whether the writer and all listeners do something within `patience`.
pub async fn is_alive(clock: &Clock, store: &Store, door: &HttpServer, patience: Duration) -> Result<(), String> {
    // It writes nothing, so nothing is committed.
    let wrote = clock.timeout(patience, store.write(|_| Ok::<_, Error>(())));
    // Both at once: a sign comes every three quarters of systemd's time, however slow they are.
    let (wrote, taken_up) = tokio::join!(wrote, door.is_accepting(patience));
    match wrote {
        // An answer is an answer: a full disk is no reason to start again.
        Some(Ok(_) | Err(WriteError::Job(_))) => {}
        Some(Err(WriteError::Store(Error::Closed))) => return Err("the writer of the database has ended".to_owned()),
        Some(Err(WriteError::Store(_))) => {}
        None => return Err(format!("the writer of the database has not answered within {} s", patience.as_secs())),
    }
    taken_up.map_err(|address| format!("nobody has taken up a connection to {address} within {} s", patience.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::http::{Limits, Listener, Router};

    #[test]
    fn the_manager_hears_lines() {
        let folder = std::env::temp_dir().join(format!("snug-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&folder);
        let heard = UnixDatagram::bind(&folder).unwrap();
        let address = SocketAddr::from_pathname(&folder).unwrap();
        let manager = Manager(Some(Arc::new((UnixDatagram::unbound().unwrap(), address))));
        manager.ready("open");
        let mut bytes = [0; 100];
        let length = heard.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"READY=1\nSTATUS=open\n");
        Manager::default().ready("nobody hears");
        let _ = std::fs::remove_file(&folder);
    }

    #[tokio::test]
    async fn a_sign_of_life_is_one_of_the_writer_and_of_every_listener() {
        let (clock, store, budget) = (Clock::real(), Store::in_memory(), Budget::for_tests());
        let limits = Arc::new(Limits::off(clock.clone()));
        let door = HttpServer::new(clock.clone(), &budget, limits, Vec::new());
        // What is alive may be slow here.
        let (patience, short) = (Duration::from_secs(120), Duration::from_millis(300));
        let alive = async |patience| is_alive(&clock, &store, &door, patience).await;
        assert_eq!(alive(patience).await, Ok(()), "nothing listens, and nothing has to");
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let accepting = tokio::spawn(door.clone().serve(listener, Arc::new(Router::new())));
        tokio::task::yield_now().await;
        assert_eq!(alive(patience).await, Ok(()));
        accepting.abort();
        let _ = accepting.await;
        let dead = loop {
            let dead = alive(short).await.expect_err("nobody accepts");
            // On a machine that is busy with other things.
            if !dead.contains("the writer") {
                break dead;
            }
        };
        assert!(dead.contains("127.0.0.1"), "{dead}");
    }
}
