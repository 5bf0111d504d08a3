//! `[metrics]`: who may watch the server.

use super::setting::{Setting, optional, setting};
use crate::http::Network;
use crate::http::page::Input;

/// Shorter ones could be guessed.
const TOKEN_CHARS_MIN: usize = 16;

/// `[metrics]`.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub enabled: bool,
    pub allow: Vec<Network>,
    pub token: Option<String>,
}

pub const SETTINGS: &[Setting] = &[
    setting(
        "metrics.enabled",
        "true",
        "Whether /_snug/metrics answers with figures for Prometheus and its like (OpenMetrics), to those named below. \
         /_snug/health answers everybody: 200 or 503 with a sentence.",
        |config, given| Ok(config.metrics.enabled = given.flag()?),
    )
    .on_page(Input::Flag)
    .live(),
    setting(
        "metrics.allow",
        r#"["loopback"]"#,
        "Who may read the figures without a token: addresses, networks such as \"192.168.1.0/24\", \"loopback\" (this machine) or \
         \"private\" (all home and company networks; not in a container whose ports are published, since everybody seems to come \
         from there). Whoever comes through a proxy needs the token.",
        |config, given| {
            let mut allow = Vec::new();
            for text in given.texts()? {
                match text {
                    "loopback" => allow.extend(Network::LOOPBACK),
                    "private" => allow.extend(Network::PRIVATE),
                    text => allow.push(text.parse()?),
                }
            }
            Ok(config.metrics.allow = allow)
        },
    )
    .live(),
    optional(
        "metrics.token",
        r#""a long random word""#,
        "Whoever sends this as a bearer token may read the figures from anywhere: `authorization: { credentials: … }` in \
         Prometheus.",
        |config, given| {
            let token = given.text()?.to_owned();
            if token.chars().count() < TOKEN_CHARS_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
                return Err(format!("needs {TOKEN_CHARS_MIN} or more letters, digits and signs, such as `openssl rand -hex 16` prints"));
            }
            Ok(config.metrics.token = Some(token))
        },
    )
    .live(),
];
