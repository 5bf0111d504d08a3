//! Some servers on one simulated clock, each reaching each over a wire of its own.

use std::time::Duration;

use snug::base::{Clock, Random};

use crate::lab::certificates::Certificates;
use crate::server::{Folder, TestServer, federates, free_port};
use crate::wire::Wire;

/// Seconds that pass for the servers while one passes here: pauses of minutes are seconds, and a slow machine is still no dead peer.
const TIMES: u32 = 10;
const TICK: Duration = Duration::from_millis(5);
const START_MS: u64 = 1_750_000_000_000;

/// A clock that goes [`TIMES`] times too fast for as long as this lives.
pub struct FastClock {
    pub clock: Clock,
    going: tokio::task::JoinHandle<()>,
}

impl FastClock {
    pub fn start() -> FastClock {
        let clock = Clock::simulated(START_MS);
        let going = tokio::spawn({
            let clock = clock.clone();
            async move {
                loop {
                    tokio::time::sleep(TICK).await;
                    clock.advance(TICK * TIMES);
                }
            }
        });
        FastClock { clock, going }
    }
}

impl Drop for FastClock {
    fn drop(&mut self) {
        self.going.abort();
    }
}

/// Servers called `zero.load.test`, `one.load.test` and so on.
pub struct Net {
    pub servers: Vec<TestServer>,
    /// From whom, to whom, over what.
    wires: Vec<(usize, usize, Wire)>,
    pub time: FastClock,
    _certificates: Folder,
}

const NAMES: [&str; 4] = ["zero.load.test", "one.load.test", "two.load.test", "three.load.test"];

impl Net {
    /// `count` servers (4 at most). Their randomness and that of the wires comes from `seed`.
    pub async fn start(count: usize, seed: u64) -> Net {
        let (folder, time) = (Folder::new(), FastClock::start());
        let certificates = Certificates::get(folder.path()).unwrap();
        let ports: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let random = |part: usize| Random::seeded(seed.wrapping_mul(1000).wrapping_add(part as u64));
        let (mut servers, mut wires) = (Vec::new(), Vec::new());
        for from in 0..count {
            let mut reach = Vec::new();
            for to in (0..count).filter(|to| *to != from) {
                let wire = Wire::new(time.clock.clone(), random(10 + from * count + to));
                reach.push((NAMES[to], wire.lead_to(ports[to]).await));
                wires.push((from, to, wire));
            }
            let change =
                |config: &mut snug::config::Config| federates(config, NAMES[from], ports[from], &reach, &certificates);
            servers.push(TestServer::start_at(time.clock.clone(), random(from), change).await);
        }
        Net { servers, wires, time, _certificates: folder }
    }

    /// What one server reaches another over.
    pub fn wire(&self, from: usize, to: usize) -> &Wire {
        let found = self.wires.iter().find(|(a, b, _)| (*a, *b) == (from, to));
        &found.expect("there is a wire between any two").2
    }

    pub fn wires(&self) -> impl Iterator<Item = &Wire> {
        self.wires.iter().map(|(_, _, wire)| wire)
    }

    /// Waits until so much has passed for the servers.
    pub async fn pass(&self, length: Duration) {
        self.time.clock.sleep(length).await;
    }

    pub async fn stop(self) {
        for server in self.servers {
            server.stop().await;
        }
    }
}
