//! Whether the Internet is gone.
//!
//! A server that gives no sign may be at fault itself, or our own way out is. A probe decides: it knocks at a few other
//! servers (those that answered lately, and the notaries) and asks the name server for a name that it cannot know
//! already. When none of them answers, the Internet is gone. From then on no server is waited for that has given no
//! sign: what people ask is tried for [`TRIAL`] and fails, and so is now and then what can wait. One knock every
//! [`PROBE_PAUSE`] finds out when it is over; any answer from the Internet ends it, too.
//!
//! The verdict is not about servers that answer: a server at an address of the home network, one that is reached without
//! DNS, and one that has contacted us meanwhile are asked as always; and their answers do not end the verdict.
//!
//! Bounds: [`GOOD_SERVERS`] and [`SILENT_SERVERS`] names; one probe at a time, [`KNOCKS`] connections of it.

use std::collections::VecDeque;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ruma::{OwnedServerName, ServerName};

use super::connect::CONNECTION_BYTES;
use super::contact::{Contact, PATIENCE, Whence};
use super::request::Urgency;
use super::{Failed, Inner, Remote};

/// As [`PATIENCE`], for what no app waits for.
const PATIENCE_LATER: Duration = Duration::from_secs(15);
/// While the Internet is gone, a server that may be in the home network is given so long.
pub const TRIAL: Duration = Duration::from_millis(800);
/// Such attempts a second; the others fail at once.
const TRIALS_MAX: u32 = 4;
/// The same among what can wait.
const TRIALS_LATER_MAX: u32 = 2;
/// What can wait is tried again at one server after half of the time that the outage has lasted, within these bounds.
const TRIAL_LATER_MS_MIN: u64 = 15_000;
const TRIAL_LATER_MS_MAX: u64 = 5 * 60_000;
/// Servers remembered because they answered, and because they did not.
const GOOD_SERVERS: usize = 8;
const SILENT_SERVERS: usize = 4;
/// A verdict of the probe that the Internet is there, and any answer from it, is believed for so long.
const BELIEVED_MS: u64 = 10_000;
const PROBE_PATIENCE: Duration = Duration::from_millis(2500);
const PROBE_PAUSE: Duration = Duration::from_secs(5);
/// Servers that the first probe knocks at.
const KNOCKS: usize = 3;

#[derive(Default)]
pub(super) struct Internet {
    gone: bool,
    /// The last sign of life, or the last probe that found one, in unix milliseconds.
    there_ms: Option<u64>,
    /// The outages so far: what is remembered of silence during one says nothing after it.
    pub outages: u64,
    /// When the Internet was found gone, in unix milliseconds.
    pub gone_since_ms: u64,
    trials: Trials,
    trials_later: Trials,
    /// Servers that answered lately from the Internet, and whether they are known here.
    good: VecDeque<(OwnedServerName, bool)>,
    /// Servers that were silent since any server last answered.
    silent: VecDeque<OwnedServerName>,
}

/// Attempts while the Internet is gone.
#[derive(Default)]
struct Trials {
    /// In unix time.
    second: u64,
    /// In that second.
    count: u32,
}

impl Trials {
    /// Counts one more, unless the second has had its `most`.
    fn take(&mut self, most: u32, now_ms: u64) -> bool {
        if self.second != now_ms / 1000 {
            *self = Trials { second: now_ms / 1000, count: 0 };
        }
        let has_place = self.count < most;
        self.count += u32::from(has_place);
        has_place
    }
}

impl Internet {
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// How long a server may be without a sign, or that it is not asked. `is_exempt`: the Internet being gone does not
    /// matter to it. `trial_at_ms` is kept for each server: when what can wait is next tried there.
    pub fn admit(
        &mut self,
        is_exempt: bool,
        urgency: Urgency,
        now_ms: u64,
        trial_at_ms: &mut u64,
    ) -> Result<Duration, Failed> {
        if !self.gone || is_exempt {
            return Ok(if urgency == Urgency::Person { PATIENCE } else { PATIENCE_LATER });
        }
        if urgency == Urgency::Later {
            return self.admit_later(now_ms, trial_at_ms);
        }
        if self.trials.take(TRIALS_MAX, now_ms) { Ok(TRIAL) } else { Err(self.offline()) }
    }

    fn admit_later(&mut self, now_ms: u64, trial_at_ms: &mut u64) -> Result<Duration, Failed> {
        let due_ms = (*trial_at_ms).max(self.gone_since_ms + TRIAL_LATER_MS_MIN);
        if now_ms < due_ms {
            return Err(Failed::Offline { retry_after_ms: due_ms - now_ms });
        }
        let lasts_ms = now_ms - self.gone_since_ms;
        let pause_ms = (lasts_ms / 2).clamp(TRIAL_LATER_MS_MIN, TRIAL_LATER_MS_MAX);
        if !self.trials_later.take(TRIALS_LATER_MAX, now_ms) {
            return Err(Failed::Offline { retry_after_ms: pause_ms });
        }
        *trial_at_ms = now_ms + pause_ms;
        Ok(TRIAL)
    }

    pub fn offline(&self) -> Failed {
        Failed::Offline { retry_after_ms: PROBE_PAUSE.as_millis() as u64 }
    }

    /// An answer from the Internet; true when it was gone before.
    pub fn note_sign(&mut self, now_ms: u64) -> bool {
        self.silent.clear();
        self.there_ms = Some(now_ms);
        let was_gone = std::mem::take(&mut self.gone);
        self.outages += u64::from(was_gone);
        was_gone
    }

    /// Unknown servers take only the places of unknown servers: a caller that names servers to us could otherwise
    /// decide which are listed as answering, and for how long.
    pub fn note_good(&mut self, server: &ServerName, is_known: bool) {
        if let Some((_, known)) = self.good.iter_mut().find(|(good, _)| good == server) {
            *known = is_known;
            return;
        }
        if self.good.len() == GOOD_SERVERS {
            let stranger = self.good.iter().position(|(_, known)| !known);
            match stranger.or(is_known.then_some(0)) {
                Some(oldest) => drop(self.good.remove(oldest)),
                None => return,
            }
        }
        self.good.push_back((server.to_owned(), is_known));
    }

    pub fn note_silent(&mut self, server: &ServerName) {
        if !self.silent.iter().any(|silent| silent == server) {
            self.silent.truncate(SILENT_SERVERS - 1);
            self.silent.push_front(server.to_owned());
        }
    }

    #[cfg(test)]
    pub fn is_good(&self, server: &ServerName) -> bool {
        self.good.iter().any(|(good, _)| good == server)
    }

    /// Whether a silence is worth a probe: not while a sign of life is fresh, and not when the verdict stands.
    fn is_doubtful(&self, now_ms: u64) -> bool {
        !self.gone && self.there_ms.is_none_or(|at| now_ms >= at + BELIEVED_MS)
    }

    /// Takes a probe's result; returns whether the Internet is gone, and whether that is new.
    pub fn conclude(&mut self, is_there: bool, now_ms: u64) -> (bool, bool) {
        if is_there {
            return (false, self.note_sign(now_ms));
        }
        // An answer that came meanwhile says more than a probe without one.
        if !self.gone && self.there_ms.is_some_and(|at| now_ms < at + BELIEVED_MS) {
            return (false, false);
        }
        let is_new = !std::mem::replace(&mut self.gone, true);
        if is_new {
            self.gone_since_ms = now_ms;
        }
        (true, is_new)
    }

    /// The servers to knock at in a probe: the first one asks several, each later one the next of all.
    fn candidates(&self, notaries: &[OwnedServerName], round: usize) -> Vec<OwnedServerName> {
        // Of the good ones those known here come first, since strangers choose their own names.
        let known = self.good.iter().filter(|(_, known)| *known);
        let others = self.good.iter().filter(|(_, known)| !known);
        let good = known.chain(others).map(|(server, _)| server);
        if round == 0 {
            let mut chosen: Vec<_> = good.take(KNOCKS - 1).chain(notaries.iter().take(1)).cloned().collect();
            chosen.dedup();
            return chosen;
        }
        let all: Vec<_> = good.chain(notaries).chain(&self.silent).collect();
        all.get(round % all.len().max(1)).into_iter().map(|server| (*server).clone()).collect()
    }
}

impl Remote {
    /// A server gives no sign. Has the Internet looked at, in the background, unless that was done lately.
    pub(super) fn suspect(&self) {
        let now = self.0.clock.now_ms();
        if !self.0.enabled || !self.0.backoff.with_internet(|internet| internet.is_doubtful(now)) {
            return;
        }
        let Ok(turn) = self.0.probing.clone().try_acquire_owned() else { return };
        let remote = std::sync::Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let _turn = turn;
            watch(remote).await;
        });
    }

    async fn probe(&self, round: usize) -> bool {
        let servers = self.0.backoff.with_internet(|internet| internet.candidates(&self.0.notaries, round));
        let mut asking = tokio::task::JoinSet::new();
        for server in servers {
            let remote = self.clone();
            asking.spawn(async move { remote.knock(&server).await });
        }
        let remote = self.clone();
        asking.spawn(async move {
            let answer = remote.0.resolver.has_name_server();
            remote.0.clock.timeout(PROBE_PATIENCE, answer).await.unwrap_or(false)
        });
        while let Some(answered) = asking.join_next().await {
            if answered.unwrap_or(false) {
                return true;
            }
        }
        false
    }

    /// Whether anything in the Internet answers in a server's place.
    async fn knock(&self, server: &ServerName) -> bool {
        let Ok(grant) = self.0.account.try_take(CONNECTION_BYTES) else { return false };
        let contact = Contact::default();
        let attempt = async {
            let target = self.find(server, &contact).await?;
            self.0.dialer.dial(&target, grant, &contact).await.map(drop)
        };
        let _ = self.0.clock.timeout(PROBE_PATIENCE, attempt).await;
        contact.whence() == Whence::Far
    }
}

/// Probes until the Internet is there.
async fn watch(remote: Weak<Inner>) {
    for round in 0.. {
        let Some(remote) = remote.upgrade().map(Remote) else { return };
        let is_there = remote.probe(round).await;
        if remote.0.stopped.load(Ordering::Acquire) || !remote.0.backoff.conclude(is_there) {
            return;
        }
        let clock = remote.0.clock.clone();
        drop(remote);
        clock.sleep(PROBE_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::base::Clock;
    use crate::remote::lookup::{Boxed, Lookup, Miss, Service, WellKnown};
    use crate::remote::tests::{Lab, Us, name, peer, peer_falling_silent, us_in, whole};
    use crate::remote::{Options, RemoteOptions};

    /// The Internet swallows every packet. A name server answers when the switch says so, and `lan.example` is in the
    /// house.
    struct Swallowed(Arc<AtomicBool>);

    impl Lookup for Swallowed {
        fn addresses<'a>(&'a self, host: &'a str, _: bool) -> Boxed<'a, Result<Vec<std::net::IpAddr>, Miss>> {
            Box::pin(async move {
                match host {
                    "lan.example" => Ok(vec![[127, 0, 0, 1].into()]),
                    _ => std::future::pending().await,
                }
            })
        }
        fn services<'a>(&'a self, _: &'a str) -> Boxed<'a, Result<Vec<Service>, Miss>> {
            Box::pin(std::future::pending())
        }
        fn well_known<'a>(&'a self, _: &'a str, _: &'a Contact) -> Boxed<'a, Result<WellKnown, Miss>> {
            Box::pin(std::future::pending())
        }
        fn has_name_server(&self) -> Boxed<'_, bool> {
            let answers = self.0.load(Ordering::Relaxed);
            Box::pin(async move { if answers { true } else { std::future::pending().await } })
        }
    }

    fn home(lab: &Lab, answers: &Arc<AtomicBool>) -> Us {
        us_in(lab, Box::new(Swallowed(answers.clone())), |_: &mut RemoteOptions| {})
    }

    /// How a call of an app ends, and the time it takes on the simulated clock.
    async fn call(us: &Us, server: &str) -> (Failed, Duration) {
        let (remote, server) = (us.remote.clone(), name(server));
        let began = us.clock.instant();
        let asking = tokio::spawn(async move {
            let asked = remote.request(&server, Method::GET, "/x", None, Options::insisting()).await;
            asked.map(drop).expect_err("nothing answers there")
        });
        pass(&us.clock, || asking.is_finished()).await;
        (asking.await.unwrap(), us.clock.instant() - began)
    }

    async fn pass(clock: &Clock, mut until: impl FnMut() -> bool) {
        for _ in 0..10_000 {
            if until() {
                return;
            }
            clock.pass(Duration::from_millis(20)).await;
            // For the network.
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        panic!("it never comes to that");
    }

    /// Every call that touched another server took up to 27 s, each time anew.
    #[tokio::test]
    async fn when_the_internet_is_gone_one_call_finds_out_and_the_next_ones_end_at_once() {
        let lab = Lab::new();
        let answers = Arc::new(AtomicBool::new(false));
        let us = home(&lab, &answers);
        let (failed, took) = call(&us, "a.example").await;
        assert!(matches!(failed, Failed::Offline { .. }) && took <= PATIENCE, "{failed} after {took:?}");
        for server in ["a.example", "b.example", "c.example", "b.example"] {
            let (failed, took) = call(&us, server).await;
            assert!(took <= Duration::from_secs(1), "{server} {failed} after {took:?}");
        }
        let later = us.remote.request(&name("b.example"), Method::GET, "/x", None, Options::default()).await;
        assert!(matches!(later, Err(Failed::Offline { .. })), "what can wait waits");
        // A server in the house goes on, and its answer does not end the verdict.
        let port = peer(&lab, "lan.example", Arc::new(|_, _| whole(200, &json!({})))).await.port();
        us.clock.advance(Duration::from_secs(1));
        let neighbour = name(&format!("lan.example:{port}"));
        for options in [Options::insisting(), Options::default()] {
            us.remote.request(&neighbour, Method::GET, "/x", None, options).await.unwrap();
        }
        assert!(us.remote.backoff().is_offline());
        answers.store(true, Ordering::Relaxed);
        pass(&us.clock, || !us.remote.backoff().is_offline()).await;
    }

    /// Such a request waited for half a minute, and the server was left alone for its silence. An answer on a kept
    /// connection was no sign of anything.
    #[tokio::test]
    async fn a_kept_connection_that_falls_silent_shows_that_the_internet_is_gone() {
        let (lab, us) = (Lab::new(), Arc::new(AtomicBool::new(false)));
        let us = home(&lab, &us);
        let behaviour: crate::remote::tests::Behaviour = Arc::new(|_, _| whole(200, &json!({})));
        let port = peer_falling_silent(&lab, "lan.example", behaviour, 2).await.port();
        let server = name(&format!("lan.example:{port}"));
        let ask = async || us.remote.request(&server, Method::GET, "/x", None, Options::insisting()).await.map(drop);
        ask().await.unwrap();
        // As if it were elsewhere.
        us.remote.backoff().success(&server, Whence::Far);
        ask().await.unwrap();
        assert!(us.remote.backoff().is_near(&server), "the answer shows where it comes from");
        us.remote.backoff().success(&server, Whence::Far);
        us.clock.advance(Duration::from_millis(BELIEVED_MS));
        let (failed, took) = call(&us, server.as_str()).await;
        assert!(matches!(failed, Failed::Offline { .. }) && took <= PATIENCE, "{failed} after {took:?}");
        assert!(us.remote.backoff().is_offline());
        assert_eq!(us.remote.backoff().retry_at_ms(&server).await, 0, "not its fault");
    }

    /// A server that had found a way to us was given up after a second and a half, as if it were behind the outage.
    #[tokio::test]
    async fn who_contacts_us_during_an_outage_is_waited_for_as_always() {
        let us = home(&Lab::new(), &Arc::new(AtomicBool::new(false)));
        let (failed, _) = call(&us, "a.example").await;
        assert!(matches!(failed, Failed::Offline { .. }), "{failed}");
        us.clock.advance(Duration::from_secs(1));
        us.remote.backoff().heard_from(&name("b.example")).await;
        let (failed, took) = call(&us, "b.example").await;
        assert!(matches!(failed, Failed::Unreachable { silent: true, .. }) && took >= PATIENCE, "{failed} {took:?}");
        assert!(us.remote.backoff().is_offline());
    }

    /// A server that takes connections and is too slow for more was a silent one, and the outage went on.
    #[tokio::test]
    async fn a_machine_that_takes_connections_shows_that_the_internet_is_there() {
        let us = home(&Lab::new(), &Arc::new(AtomicBool::new(false)));
        assert!(us.remote.backoff().conclude(false));
        let slow = Err::<(), _>(Failed::Unreachable { why: String::new(), silent: true });
        us.remote.judge(&name("a.example"), Whence::Nowhere, &slow);
        assert!(us.remote.backoff().is_offline());
        us.remote.judge(&name("a.example"), Whence::Far, &slow);
        assert!(!us.remote.backoff().is_offline());
        assert!(us.remote.admit(&name("a.example"), Urgency::Person).await.is_err(), "it is not waited for at once");
    }

    #[tokio::test]
    async fn one_dead_server_is_not_the_internet_and_is_not_waited_for_again() {
        let us = home(&Lab::new(), &Arc::new(AtomicBool::new(true)));
        let (failed, took) = call(&us, "a.example").await;
        assert!(
            matches!(failed, Failed::Unreachable { silent: true, .. }) && took <= PATIENCE * 2,
            "{failed} {took:?}"
        );
        let (failed, took) = call(&us, "a.example").await;
        assert!(matches!(failed, Failed::BackingOff { .. }) && took <= Duration::from_secs(1), "{failed} {took:?}");
        assert!(!us.remote.backoff().is_offline());
    }

    #[test]
    fn a_probe_knocks_at_known_servers_first_and_at_one_after_another_later() {
        let mut internet = Internet::default();
        (0..20).for_each(|n| internet.note_good(&name(&format!("s{n}.evil.example")), false));
        internet.note_good(&name("friend.example"), true);
        (0..20).for_each(|n| internet.note_silent(&name(&format!("t{n}.example"))));
        assert!(internet.good.len() <= GOOD_SERVERS && internet.silent.len() <= SILENT_SERVERS);
        let notaries = [name("notary.example")];
        let first = internet.candidates(&notaries, 0);
        assert_eq!((first.len(), first[0].as_str()), (KNOCKS, "friend.example"));
        assert!(first.contains(&notaries[0]));
        let later: std::collections::BTreeSet<_> = (1..14).flat_map(|n| internet.candidates(&notaries, n)).collect();
        assert!(later.contains(&name("friend.example")) && later.contains(&notaries[0]));
        assert!(Internet::default().candidates(&[], 1).is_empty());
    }
}
