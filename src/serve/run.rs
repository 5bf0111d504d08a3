//! The server as a process of its own: signals, the service manager, and starting again by itself.

use std::io::IsTerminal;
use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::greet::greet;
use super::systemd::Manager;
use super::{Failed, GRACE, Server, failed, folder, log, open_files, profile, runtime};
use crate::admin;
use crate::base::{Clock, Random};
use crate::budget::{self, Budget, Granted};
use crate::config::Config;

/// Runs the server until SIGINT or SIGTERM; SIGHUP has it read its settings and the files of application services again, or is
/// the end of its terminal. `command` is how this program was called; advice on the terminal repeats
/// it.
pub fn run(config: Config, command: &str) -> Result<(), Failed> {
    budget::meter::no_huge_pages();
    budget::meter::one_heap_of_c();
    let clock = Clock::real();
    log::to_stderr(&config.log, config.json_log, clock.clone()).map_err(|error| failed("log", error))?;
    let budget = Budget::from_profile(profile(&config)?);
    if let Some(warning) = Granted::now().warning(budget.profile()) {
        tracing::warn!("{warning}");
    }
    open_files(&config).iter().for_each(|open| tracing::warn!("{open}"));
    let runtime = runtime(&budget)?;
    if folder::finish_restore(&config.data_dir)? {
        return Err(Failed("a restore that was interrupted is finished now: start the server again".to_owned()));
    }
    let done = runtime.block_on(async {
        let first = folder::first_file(&config)?;
        // What it says is in force, and no news when the file is read again.
        let config = if first.is_some() {
            Config::load(&config.overrides).map_err(|error| Failed(error.to_string()))?
        } else {
            config
        };
        let (mut signals, mut budget, mut greeting) = (None, Some(budget), Some(Greeting { first, command }));
        loop {
            let budget = match budget.take() {
                Some(budget) => budget,
                None => Budget::from_profile(profile(&config)?),
            };
            if run_once(&config, &clock, budget, &mut signals, greeting.take()).await? == Ended::Stopped {
                return Ok(());
            }
            clock.begin_again();
        }
    });
    // Everything is on disk by now. A thread that still computes something unneeded is not waited for.
    runtime.shutdown_timeout(GRACE);
    done
}

#[derive(PartialEq, Eq)]
enum Ended {
    Stopped,
    /// It is to start again: the clock, which had been far ahead, is right.
    ClockMended,
}

/// What the terminal is told at the first start.
struct Greeting<'a> {
    first: Option<PathBuf>,
    command: &'a str,
}

/// One start and one end of the server. `signals` are kept from the first one on.
async fn run_once(
    config: &Config,
    clock: &Clock,
    budget: Budget,
    signals: &mut Option<Signals>,
    greeting: Option<Greeting<'_>>,
) -> Result<Ended, Failed> {
    let building = Box::pin(Server::build(config, clock.clone(), Random::os(), budget));
    let mut server = match signals {
        None => building.await?,
        Some(signals) => tokio::select! {
            built = building => built?,
            () = signals.stop() => return Ok(Ended::Stopped),
        },
    };
    // Before the ports are open: a signal sent as soon as they are open must not be missed.
    let signals = match signals {
        Some(signals) => signals,
        None => signals.insert(Signals::new()?),
    };
    server.open().await?;
    let manager = Manager::of_environment();
    let what = format!("open as {}", config.server_name);
    manager.ready(&what);
    let (store, door) = (server.store.clone(), server.door.clone());
    let watch = tokio::spawn(manager.clone().keep_watch(clock.clone(), store, door));
    let reload = async |server: &Server| {
        manager.reloading();
        // An error is in the log.
        let _ = admin::Reload::reload(&*server.reloader).await;
        server.registrations.load_and_say().await;
        manager.ready(&what);
    };
    match greeting {
        Some(greeting) => greet(&server, greeting.first.as_deref(), greeting.command).await,
        // What was read again before holds on.
        None => reload(&server).await,
    }
    // Where this start did not help, neither does another.
    let helps = !clock.is_mended();
    let mut mended = Box::pin(async move {
        match helps {
            true => clock.mended().await,
            false => std::future::pending().await,
        }
    });
    let ended = loop {
        tokio::select! {
            told = signals.next() => match told {
                Told::Stop => break Ended::Stopped,
                Told::Reload => reload(&server).await,
            },
            () = &mut mended => break Ended::ClockMended,
        }
    };
    match ended {
        Ended::Stopped => {
            tracing::info!("stopping");
            manager.stopping();
        }
        Ended::ClockMended => {
            tracing::warn!("the clock, which had been far ahead, is right again: the server starts again, to go by it");
            manager.reloading();
        }
    }
    watch.abort();
    let _ = watch.await;
    server.stop().await;
    tracing::info!("stopped");
    Ok(ended)
}

/// What the process is told from outside.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    /// A terminal that is closed says the same as who wants the settings read again, and means that all is over.
    is_at_terminal: bool,
}

impl Signals {
    fn new() -> Result<Signals, Failed> {
        Ok(Signals {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
            is_at_terminal: std::io::stdin().is_terminal(),
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.hangup.recv() => if self.is_at_terminal { Told::Stop } else { Told::Reload },
        }
    }

    async fn stop(&mut self) {
        while self.next().await != Told::Stop {}
    }
}

#[derive(PartialEq, Eq)]
enum Told {
    Stop,
    Reload,
}

fn on(kind: SignalKind) -> Result<Signal, Failed> {
    signal(kind).map_err(|error| failed("signals", error))
}
