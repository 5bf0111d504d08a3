//! The message on the terminal when the server has started.

use std::io::Write as _;
use std::path::Path;

use super::{Server, addresses};

/// Prints the message for the operator at the terminal. A closed terminal or pipe is no error: the server runs all the
/// same.
pub async fn greet(server: &Server, first: Option<&Path>, command: &str) {
    let code = server.users.setup_code().await.unwrap_or_else(|error| {
        tracing::error!("the accounts cannot be read: {error}");
        None
    });
    let text = greeting(server, first, code.as_deref(), command);
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn greeting(server: &Server, first: Option<&Path>, code: Option<&str>, command: &str) -> String {
    let config = &server.config;
    let known = server.reached.get().cloned().unwrap_or_default();
    let mut text = format!("\nSnug is open, as {}, at\n\n{}\n", config.server_name, addresses::listed(&known.urls, ""));
    if addresses::is_only_here(config, &known.apps) {
        text += &format!("Only this machine gets there. {}\n", addresses::let_in(config, &known.apps));
    }
    text += &own_certificate(server, &known.plain);
    if let Some(file) = config.file.as_deref().or(first) {
        text += &format!("The settings are in {}.\n", file.display());
    }
    let Some(code) = code else { return text };
    if config.server_name == "localhost" {
        text.push_str(
            "The name localhost is for trying things out. It becomes part of every account's name and cannot be changed after \
             the first\none: set server_name before, if other servers shall find this one.\n",
        );
    }
    text += &format!("\n{}", addresses::first_account(&known.urls, code));
    text + &format!("\nor with this command:\n\n    {command} user add NAME --admin\n\n")
}

/// What is to be known of a certificate that the server gets or makes.
fn own_certificate(server: &Server, plain: &[String]) -> String {
    let (own, status) = (&server.certificates, server.certificates.status());
    if let Some(root) = own.root() {
        let urls = addresses::listed(plain, "/_snug/certificate");
        let place = if plain.is_empty() { "    /_snug/certificate, below the addresses above\n" } else { &urls };
        return format!(
            "Its certificate is from an authority of this house's own. Each phone and computer installs that once, from\n\n{place}\n\
             Its fingerprint is {}\n",
            root.fingerprint()
        );
    }
    match own.certificate() {
        Some(certificate) if !certificate.is_there() => format!(
            "A certificate for {} is being asked for at {}. Until it is there, nobody can connect with HTTPS;\n`snug check` says how it \
             goes.\n",
            status.names.join(", "),
            status.from
        ),
        _ => String::new(),
    }
}
