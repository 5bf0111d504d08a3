//! What carries calls: the relay of this server, and how delayed events are joined to what the media server knows.

use std::net::SocketAddr;

use super::{Failed, Server, failed};
use crate::base::Live;
use crate::http::tls::Certificate;
use crate::relay::{Login, Parts, Relay};
use crate::remote;
use crate::room::{Asked, CallWatch};
use crate::user::{OwnRelay, TurnLogin, Users};

/// Asks the LiveKit server of the settings.
pub struct AtLiveKit(pub Users);

impl CallWatch for AtLiveKit {
    fn is_there<'a>(&'a self, alias: &'a str, identity: &'a str) -> Asked<'a> {
        Box::pin(self.0.is_at_livekit(alias, identity))
    }
}

/// The relay of this server, whose ports are open.
pub struct OpenRelay {
    relay: Relay,
    own: OwnRelay,
    /// Of this run, for settings that have none.
    secret: String,
}

impl OpenRelay {
    /// Has people log in as the settings say now. Answers what apps are told of the relay.
    pub fn log_in_by(&self, settings: &TurnLogin) -> OwnRelay {
        let (login, told) = logins(settings, &self.secret);
        self.relay.set_login(login);
        OwnRelay { login: told, ..self.own.clone() }
    }
}

/// How the relay is logged in at, and what apps are told of that.
fn logins(settings: &TurnLogin, of_this_run: &str) -> (Login, TurnLogin) {
    match settings {
        TurnLogin::Fixed { username, password } => {
            (Login::Fixed { username: username.clone(), password: password.clone() }, settings.clone())
        }
        TurnLogin::Secret(secret) => (Login::Secret(secret.clone()), settings.clone()),
        TurnLogin::Open => (Login::Secret(of_this_run.to_owned()), TurnLogin::Secret(of_this_run.to_owned())),
    }
}

impl Server {
    /// Opens the ports of the relay, when the settings name any, and has apps told of them. Without a secret in the settings
    /// it has one of this run.
    pub(super) async fn open_relay(&mut self) -> Result<(), Failed> {
        let options = self.config.relay.clone();
        if options.listen.is_empty() && options.listen_tls.is_empty() {
            return Ok(());
        }
        let mut calls = (*self.users.calls()).clone();
        let secret = self.random.token(32);
        let (login, told) = logins(&calls.turn.login, &secret);
        let tls = match (&self.client_certificate, options.listen_tls.is_empty()) {
            (_, true) => None,
            (Some(certificate), false) => {
                Some(Certificate::server_config(certificate).map_err(|error| Failed(error.to_string()))?)
            }
            (None, false) => {
                return Err(failed("turn.listen_tls", "needs a certificate: set client.tls_certificate and its key"));
            }
        };
        let relay = Relay::new(Parts {
            clock: self.clock.clone(),
            random: self.random.clone(),
            account: self.budget.account("relay"),
            realm: self.config.server_name.to_string(),
            login: Live::new(login),
            is_private: remote::is_private,
            options: options.clone(),
        });
        let mut own = OwnRelay { login: told, ..OwnRelay::default() };
        for address in options.listen {
            let wrong = |error| failed("turn.listen", format_args!("cannot listen on {address}: {error}"));
            let (opened, udp) = relay.serve_udp(address).await.map_err(wrong)?;
            // One port for both, whichever the system chose.
            let (_, tcp) = relay.serve_tcp(SocketAddr::new(address.ip(), opened.port()), None).await.map_err(wrong)?;
            self.endless.extend([udp, tcp]);
            own.port.get_or_insert(opened.port());
            tracing::info!("listening for calls on {opened}");
        }
        for address in options.listen_tls {
            let wrong = |error| failed("turn.listen_tls", format_args!("cannot listen on {address}: {error}"));
            let (opened, task) = relay.serve_tcp(address, tls.clone()).await.map_err(wrong)?;
            self.endless.push(task);
            own.tls_port.get_or_insert(opened.port());
            tracing::info!("listening for calls on {opened} with TLS");
        }
        calls.turn.own = Some(own.clone());
        self.users.set_calls(calls);
        self.relay = Some(relay.clone());
        // Set once: the ports are opened once.
        let _ = self.reloader.relay.set(OpenRelay { relay, own, secret });
        Ok(())
    }
}
