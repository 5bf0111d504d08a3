//! Reading the settings again, while the server runs: by SIGHUP, `snug reload` and the page.
//!
//! A setting that is marked so in `config` is in force at once; the others are named, and wait for the next start. A file
//! with a mistake changes nothing. Certificates are read again too, and one that waits to be asked for again is asked for at once.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use ruma::OwnedRoomOrAliasId;

use super::{admin_settings, calls, log, notice_options};
use crate::admin::{Admin, Reload, Reloaded, Setting};
use crate::base::{Live, blocking, gathered};
use crate::client::Client;
use crate::config::{Config, Previews, settings, typed};
use crate::federation::Federation;
use crate::http::tls::Certificate;
use crate::http::{HttpServer, Limits};
use crate::media::{Media, PreviewOptions};
use crate::web::Folders;

/// The parts whose settings may change.
pub struct Reloader {
    /// The settings in force.
    pub config: Mutex<Config>,
    pub client: Arc<Client>,
    pub federation: Option<Arc<Federation>>,
    pub admin: Arc<Admin>,
    pub media: Media,
    pub door: Arc<HttpServer>,
    pub limits: Arc<Limits>,
    /// Rooms that new people join.
    pub auto_join: Arc<Live<Vec<OwnedRoomOrAliasId>>>,
    pub folders: Folders,
    pub certificates: Vec<Arc<Certificate>>,
    /// Set once its ports are open.
    pub relay: OnceLock<calls::OpenRelay>,
    /// One reading at a time.
    pub turn: tokio::sync::Mutex<()>,
}

impl Reload for Reloader {
    fn reload(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<Reloaded, String>> + Send + '_>> {
        Box::pin(async {
            let _turn = self.turn.lock().await;
            self.read_again().await
        })
    }

    fn change(
        &self,
        name: &str,
        typed: Option<&str>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Reloaded, String>> + Send + '_>> {
        let (name, typed) = (name.to_owned(), typed.map(str::to_owned));
        Box::pin(async move {
            let _turn = self.turn.lock().await;
            let config = self.config.lock().clone();
            blocking(move || config.change(&name, typed.as_deref())).await?;
            self.read_again().await
        })
    }

    fn closed(&self) -> Option<String> {
        let config = self.config.lock().clone();
        config.closed()
    }

    fn settings(&self) -> (Option<PathBuf>, Vec<Setting>) {
        let config = self.config.lock();
        let shown = settings().map(|setting| {
            let newer = config.waits.get(setting.name);
            let written = newer.map_or_else(|| config.written.get(setting.name), Option::as_ref);
            let as_typed = match setting.input {
                Some(_) => written.map(String::as_str).or(setting.default).map(typed).unwrap_or_default(),
                None => String::new(),
            };
            let written = written.map(|text| if setting.is_secret() { "…".to_owned() } else { text.clone() });
            let crate::config::Setting { name, default, example, doc, live: is_live, input, removes, .. } = *setting;
            Setting {
                name,
                written,
                default,
                example,
                doc,
                is_live,
                input,
                typed: as_typed,
                removes,
                waits: newer.is_some(),
            }
        });
        (config.file.clone(), shown.collect())
    }
}

impl Reloader {
    /// For whoever has the turn.
    async fn read_again(&self) -> Result<Reloaded, String> {
        let (before, certificates) = (self.config.lock().clone(), self.certificates.clone());
        let overrides = before.overrides.clone();
        let newer = blocking(move || {
            let newer = Config::load(&overrides).map_err(|error| error.to_string())?;
            // What cannot be used is logged, and the one before stays in use.
            certificates.iter().for_each(|certificate| drop(certificate.reread()));
            Ok::<_, String>(newer)
        });
        let newer = newer.await.inspect_err(|wrong| tracing::error!("the settings stay as they are: {wrong}"))?;
        let (changed, restart) = before.changed(&newer);
        self.apply(&newer);
        let waits = gathered(restart.iter().map(|name| (*name, newer.written.get(name).cloned())));
        *self.config.lock() = Config { written: in_force(&before, &newer, &restart), waits, ..newer };
        say(&changed, &restart);
        Ok(Reloaded { changed, restart })
    }

    /// Puts the settings in force that can be.
    fn apply(&self, config: &Config) {
        let client = &self.client;
        log::set_filter(&config.log);
        client.rooms.set_admission(config.rooms.admission);
        client.rooms.set_policies(config.policies.clone());
        self.admin.remote.barred().set_denied(config.federation.denied_servers.clone());
        client.rooms.set_policy_lists(config.moderation.policy_lists.clone());
        client.rooms.set_auto_accept(config.rooms.auto_accept_invites, config.rooms.auto_accept_only_local);
        client.users.set_welcomes(!config.rooms.auto_join.is_empty());
        self.auto_join.set(config.rooms.auto_join.clone());
        client.rooms.set_forgets_left_rooms(config.rooms.forget_left);
        client.rooms.set_redacted_kept(config.rooms.redacted_kept_days);
        client.rooms.set_purges_left_rooms(config.rooms.purge_left);
        client.rooms.set_history_days(config.rooms.history_days, config.rooms.retention_days_min);
        client.rooms.set_hourly_bytes_max(config.federation.hourly_bytes_max);
        client.users.set_reports_to(config.moderation.reports_to.clone());
        client.users.set_presence_mode(config.apps.presence);
        let mut calls = config.apps.calls.clone();
        calls.turn.own = self.relay.get().map(|relay| relay.log_in_by(&calls.turn.login));
        client.users.set_calls(calls);
        if config.apps.calls.livekit.is_some() {
            client.rooms.watch_calls(Arc::new(calls::AtLiveKit(client.users.clone())));
        }
        client.notices.set_options(notice_options(config));
        client.settings.set(config.apps.clone());
        let Previews { enabled, deny, private_hosts, robots_txt, allow_private } = config.previews.clone();
        self.media.set_previews(PreviewOptions { enabled, deny, private_hosts, robots_txt, allow_private });
        self.media.set_scanning(config.media.scan.clone());
        if let Some(federation) = &self.federation {
            federation.well_known_server.set(config.federation.name.clone());
        }
        self.admin.settings.set(admin_settings(config));
        self.limits.set_rates(config.rates.clone());
        self.door.set_trusted_proxies(config.trusted_proxies.clone());
        self.folders.set(config.web.clone());
        self.admin.certificates.try_now();
    }
}

/// What was written of the settings in force: what waits for a restart is as it was at the start, so that it is named
/// again by the next reading.
fn in_force(
    before: &Config,
    newer: &Config,
    restart: &[&'static str],
) -> std::collections::BTreeMap<&'static str, String> {
    let mut written = newer.written.clone();
    for name in restart {
        match before.written.get(name) {
            Some(text) => written.insert(name, text.clone()),
            None => written.remove(name),
        };
    }
    written
}

fn say(changed: &[&str], restart: &[&str]) {
    match changed {
        [] => tracing::info!("the settings were read again; none has changed that needs no restart"),
        changed => tracing::info!("the settings were read again: {} changed", changed.join(", ")),
    }
    if !restart.is_empty() {
        tracing::warn!("these settings are in force with the next start only: {}", restart.join(", "));
    }
}
