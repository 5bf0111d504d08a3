//! Credentials for a TURN server (client-server API, "Voice over IP").
//!
//! With a shared secret they are made for each user and end: the user name has the time of the end in it, and the password is
//! that name under HMAC-SHA1, as coturn and others check it (draft-uberti-behave-turn-rest).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ruma::UserId;

use crate::user::Users;

/// The settings.
#[derive(Clone, Default)]
pub struct Turn {
    /// `turn:` and `turns:` addresses; none when there is no TURN server.
    pub uris: Vec<String>,
    pub login: TurnLogin,
    /// How long credentials are valid, in seconds.
    pub ttl_s: u64,
    /// Whether guests get credentials too.
    pub guests: bool,
    /// The relay inside this server, if there is one.
    pub own: Option<OwnRelay>,
}

/// The relay inside this server, as it was opened.
#[derive(Clone, Default)]
pub struct OwnRelay {
    /// Of UDP and TCP.
    pub port: Option<u16>,
    pub tls_port: Option<u16>,
    /// As it checks it.
    pub login: TurnLogin,
}

impl Turn {
    /// The addresses that an app is told, which reaches this server at `host`: those of the settings, or else those of the relay
    /// inside this server there.
    pub fn uris_at(&self, host: Option<&str>) -> Vec<String> {
        let (Some(own), Some(host), true) = (&self.own, host, self.uris.is_empty()) else { return self.uris.clone() };
        let plain = own
            .port
            .into_iter()
            .flat_map(|port| ["udp", "tcp"].map(|transport| format!("turn:{host}:{port}?transport={transport}")));
        plain.chain(own.tls_port.map(|port| format!("turns:{host}:{port}?transport=tcp"))).collect()
    }

    /// How people log in at these addresses.
    fn login_there(&self) -> &TurnLogin {
        match &self.own {
            Some(own) if self.uris.is_empty() => &own.login,
            _ => &self.login,
        }
    }
}

/// How people log in there.
#[derive(Clone, Default)]
pub enum TurnLogin {
    /// Without a name.
    #[default]
    Open,
    /// With names made from the secret that the TURN server has too.
    Secret(String),
    /// All with the same name.
    Fixed { username: String, password: String },
}

/// A secret is nobody's to read.
impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("uris", &self.uris).field("ttl_s", &self.ttl_s).finish_non_exhaustive()
    }
}

impl Users {
    /// The name and password with which a user logs in at the TURN server of [`Turn::uris_at`].
    pub fn turn_credentials(&self, turn: &Turn, user: &UserId) -> (String, String) {
        match turn.login_there() {
            TurnLogin::Open => (String::new(), String::new()),
            TurnLogin::Fixed { username, password } => (username.clone(), password.clone()),
            TurnLogin::Secret(secret) => credentials(secret, self.now_ms() / 1000 + turn.ttl_s, user.as_str()),
        }
    }
}

fn credentials(secret: &str, until_s: u64, user: &str) -> (String, String) {
    let username = format!("{until_s}:{user}");
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    let password = STANDARD.encode(hmac::sign(&key, username.as_bytes()));
    (username, password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relay_inside_is_where_the_server_is_reached() {
        let login = TurnLogin::Secret("of this run".to_owned());
        let own = Some(OwnRelay { port: Some(3478), tls_port: Some(5349), login });
        let mut turn = Turn { own, ..Turn::default() };
        assert!(matches!(turn.login_there(), TurnLogin::Secret(secret) if secret == "of this run"));
        let there =
            ["turn:h.test:3478?transport=udp", "turn:h.test:3478?transport=tcp", "turns:h.test:5349?transport=tcp"];
        assert_eq!(turn.uris_at(Some("h.test")), there);
        assert!(turn.uris_at(None).is_empty());
        turn.uris = vec!["turn:else.test".to_owned()];
        assert_eq!(turn.uris_at(Some("h.test")), ["turn:else.test"]);
        assert!(matches!(turn.login_there(), TurnLogin::Open), "the settings' own, and the relay's again without them");
    }

    /// Compared with `openssl dgst -sha1 -hmac`.
    #[test]
    fn a_password_is_what_coturn_makes_of_the_name() {
        let (username, password) = credentials("north", 1_700_000_000, "@anna:here.test");
        assert_eq!(username, "1700000000:@anna:here.test");
        assert_eq!(password, "HzVIsp0nLh7c5SOiI7nIifNOYWs=");
    }
}
