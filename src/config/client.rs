//! `[client]`: settings for apps only.

use std::path::PathBuf;

use super::setting::{Setting, optional};

/// `[client]`: settings for apps only.
#[derive(Debug, Clone, Default)]
pub struct Client {
    pub tls_certificate: Option<PathBuf>,
    pub tls_private_key: Option<PathBuf>,
}

pub const SETTINGS: &[Setting] = &[
    optional(
        "client.tls_certificate",
        r#""/etc/snug/tls/fullchain.pem""#,
        "With a certificate and its key the addresses in `listen` speak HTTPS. Read again when the files change. Servers may use \
         the same port, so one port can serve everybody.",
        |config, given| Ok(config.client.tls_certificate = Some(given.path()?)),
    ),
    optional(
        "client.tls_private_key",
        r#""/etc/snug/tls/privkey.pem""#,
        "The certificate's private key.",
        |config, given| {
            config.secret_files.push(given.path()?);
            Ok(config.client.tls_private_key = Some(given.path()?))
        },
    ),
];
