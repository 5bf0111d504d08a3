//! What servers reach each other over: a port that leads to another port, until it is cut, and as the weather is.
//!
//! In a storm each connection has a fate, drawn from a seed when it is opened: it is refused, or breaks after so many bytes in
//! the middle of whatever passes, and all that passes is late by so much on the clock of the servers. Since each connection has a
//! lateness of its own, what several servers send overtakes each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use snug::base::{Clock, Random};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How late a connection in a storm may be, in milliseconds for each piece.
const LATE_MS_MAX: u64 = 1_500;
/// A handshake is 3 KB, a transaction with an event 1 KB.
const BREAKS_AFTER_MAX: u64 = 8_000;

/// Ports that lead to other ports. A clone is the same wire.
#[derive(Clone)]
pub struct Wire {
    weather: Arc<watch::Sender<Weather>>,
    clock: Clock,
    random: Random,
    /// Connections that a storm refused or broke.
    lost: Arc<AtomicU64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Weather {
    Calm,
    Storm,
    Cut,
}

/// What becomes of one connection in a storm.
struct Fate {
    is_refused: bool,
    late: Duration,
    /// Bytes until it breaks, both ways together.
    left: AtomicU64,
    is_broken: AtomicBool,
}

impl Wire {
    /// A calm wire. `clock` and `random` are for storms.
    pub fn new(clock: Clock, random: Random) -> Wire {
        let weather = Arc::new(watch::Sender::new(Weather::Calm));
        Wire { weather, clock, random, lost: Arc::default() }
    }

    /// Opens a port that leads to `port`; answers which.
    pub async fn lead_to(&self, port: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let end = listener.local_addr().unwrap().port();
        let wire = self.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let fate = Fate::draw(&wire.random);
                let (clock, lost, weather) = (wire.clock.clone(), wire.lost.clone(), wire.weather.subscribe());
                tokio::spawn(async move {
                    if carry(near, port, fate, clock, weather).await == End::Lost {
                        lost.fetch_add(1, Relaxed);
                    }
                });
            }
        });
        end
    }

    /// Connections that a storm refused or broke so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Breaks what is open, and every attempt until it is mended.
    pub fn cut(&self) {
        self.weather.send_replace(Weather::Cut);
    }

    /// Breaks what is open; what is opened from now on delays, breaks or is refused.
    pub fn storm(&self) {
        self.weather.send_replace(Weather::Storm);
    }

    /// Breaks what is open; what is opened from now on is carried as it is.
    pub fn mend(&self) {
        self.weather.send_replace(Weather::Calm);
    }
}

impl Fate {
    fn draw(random: &Random) -> Fate {
        let (dice, late_ms, bytes) = (random.below(6), random.below(LATE_MS_MAX), random.below(BREAKS_AFTER_MAX));
        let left = if dice == 1 { u64::MAX } else { bytes };
        Fate {
            is_refused: dice == 0,
            late: Duration::from_millis(late_ms),
            left: AtomicU64::new(left),
            is_broken: AtomicBool::new(false),
        }
    }
}

/// How a connection ended.
#[derive(PartialEq)]
enum End {
    /// By a storm.
    Lost,
    /// By itself, or with the weather it was opened in.
    Other,
}

async fn carry(mut near: TcpStream, port: u16, fate: Fate, clock: Clock, mut weather: watch::Receiver<Weather>) -> End {
    let opened_in = *weather.borrow_and_update();
    match opened_in {
        Weather::Cut => return End::Other,
        Weather::Storm if fate.is_refused => return End::Lost,
        _ => {}
    }
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return End::Other };
    let passing = async {
        if opened_in == Weather::Calm {
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            return End::Other;
        }
        let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
        let _ = tokio::try_join!(pass(from_near, to_far, &fate, &clock), pass(from_far, to_near, &fate, &clock));
        if fate.is_broken.load(Relaxed) { End::Lost } else { End::Other }
    };
    tokio::select! {
        end = passing => end,
        _ = weather.wait_for(|now| *now != opened_in) => End::Other,
    }
}

/// Carries one way until the end, or until the connection breaks: with half of what was to pass.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    fate: &Fate,
    clock: &Clock,
) -> std::io::Result<()> {
    let mut piece = [0; 4096];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        clock.sleep(fate.late).await;
        let spent = fate.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(length as u64));
        if spent.is_err() {
            fate.is_broken.store(true, Relaxed);
            to.write_all(&piece[..length / 2]).await?;
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        to.write_all(&piece[..length]).await?;
    }
}
