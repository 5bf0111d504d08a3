//! The message on the terminal when the server has started.

use std::io::{IsTerminal, Write as _};
use std::path::Path;

use qrcode::{Color, EcLevel, QrCode};

use super::{Server, addresses};
use crate::admin;

/// Prints the message for the operator at the terminal. A closed terminal or pipe is no error: the server runs all the
/// same.
pub async fn greet(server: &Server, first: Option<&Path>, command: &str) {
    let code = server.users.setup_code().await.unwrap_or_else(|error| {
        tracing::error!("the accounts cannot be read: {error}");
        None
    });
    let home = server.home_url().await;
    let text = greeting(server, first, code.as_deref(), command, home.as_deref());
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn greeting(server: &Server, first: Option<&Path>, code: Option<&str>, command: &str, home: Option<&str>) -> String {
    let config = &server.config;
    let known = server.reached.get().cloned().unwrap_or_default();
    let mut text = format!("\nSnug is open, as {}, at\n\n{}\n", config.server_name, addresses::listed(&known.urls, ""));
    if addresses::is_only_here(config, &known.apps) {
        text += &format!("Only this machine gets there. {}\n", addresses::let_in(config, &known.apps));
    }
    text += &own_certificate(server, &known.plain);
    if let Some(url) = home {
        text += &format!("Machines of this network find it as {url}\n\n");
    }
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
    let there = known.urls.iter().find(|url| !addresses::is_here(url));
    if let (Some(url), true) = (there, std::io::stdout().is_terminal())
        && let Some(picture) = picture(&format!("{url}{}{code}", admin::FIRST_PATH))
    {
        text += &format!("\nThe camera of a phone in this network opens it:\n\n{picture}");
    }
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

/// Free modules around a picture, which readers need.
const MARGIN: i32 = 2;

/// A QR code for a terminal: two modules in each character, dark on light whichever the terminal is. None for what is too long
/// for a terminal of 80 columns.
fn picture(text: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok().filter(|code| code.width() <= 73)?;
    let (width, modules) = (code.width() as i32, code.to_colors());
    let is_dark = |x: i32, y: i32| {
        let is_inside = (0..width).contains(&x) && (0..width).contains(&y);
        is_inside && modules.get((y * width + x) as usize) == Some(&Color::Dark)
    };
    let mut out = String::new();
    for y in (-MARGIN..width + MARGIN).step_by(2) {
        // Black on white, whatever the terminal's colours.
        out += "    \x1b[30;107m";
        out.extend((-MARGIN..width + MARGIN).map(|x| match (is_dark(x, y), is_dark(x, y + 1)) {
            (true, true) => '\u{2588}',
            (true, false) => '\u{2580}',
            (false, true) => '\u{2584}',
            (false, false) => ' ',
        }));
        out += "\x1b[0m\n";
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_fits_a_terminal() {
        let picture = picture("http://192.168.100.200:8008/_snug/first/abcdefghijklmnopqrstuvwxyz").unwrap();
        let line = picture.lines().nth(1).unwrap();
        let modules = line.trim().trim_start_matches("\x1b[30;107m").trim_end_matches("\x1b[0m");
        // The first row of the finder: seven dark modules over the two that frame the next.
        assert_eq!(
            modules.chars().take(10).collect::<String>(),
            "  \u{2588}\u{2580}\u{2580}\u{2580}\u{2580}\u{2580}\u{2588} "
        );
        assert!(picture.lines().all(|line| line.chars().count() <= 80 + 20));
        assert_eq!(super::picture(&"x".repeat(3000)), None);
    }
}
