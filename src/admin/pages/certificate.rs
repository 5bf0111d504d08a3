//! The page that offers the root of the house's own authority to phones, and its files.
//!
//! It is on plain addresses too: a phone that has not installed it can read it there without a warning. What it installs
//! may have been exchanged on the way, so the page shows the fingerprint, which the terminal shows too.

use std::sync::Arc;

use crate::admin::{Admin, error::Error};
use crate::certificates::Root;
use crate::http::page::{escaped, page};
use crate::http::{ErrorResponse, Request, Response, StatusCode};

pub const PATH: &str = "/_snug/certificate";

fn root(admin: &Admin) -> Result<&Root, ErrorResponse> {
    admin.certificates.root().ok_or_else(ErrorResponse::unrecognized)
}

/// `GET /_snug/certificate`. 404 unless the server has an authority of its own.
pub async fn show(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    let server = admin.users.server().as_str();
    let fingerprint = root(&admin)?.fingerprint();
    // In halves, so that a phone shows it whole.
    let (first, second) = fingerprint.split_at(fingerprint.len() / 2 + 1);
    let body = format!(
        "<h1>Let this device recognise the server</h1><p class=\"lead\">{} is at home, and no company vouches for it. It has an \
authority of its own instead. Install that once on each phone and computer, and apps connect to it encrypted, without the \
Internet.</p>\
<h2>iPhone, iPad, Mac</h2><ol><li><strong><a href=\"{PATH}.mobileconfig\">Download the profile</a></strong><p class=\"lead\">in Safari, and \
allow it.</p></li><li><strong>Install it</strong><p class=\"lead\">Settings, General, VPN &amp; Device Management. On a Mac: System \
Settings, Privacy &amp; Security, Profiles.</p></li><li><strong>Switch it on</strong><p class=\"lead\">Settings, General, About, \
Certificate Trust Settings. Without this step nothing changes.</p></li></ol>\
<h2>Android</h2><ol><li><strong><a href=\"{PATH}.crt\">Download the certificate</a></strong></li><li><strong>Install it</strong>\
<p class=\"lead\">Settings, Security, More, Encryption &amp; credentials, Install a certificate, CA certificate. The words differ from \
phone to phone; searching the settings for &ldquo;certificate&rdquo; finds it.</p></li></ol>\
<p class=\"note\"><strong>Not every app asks Android&#39;s list.</strong> Browsers do; of Matrix apps, those whose makers allow \
it.</p>\
<h2>Windows, Linux, Firefox</h2><p class=\"lead\"><a href=\"{PATH}.crt\">The certificate</a>, or <a href=\"{PATH}.pem\">as PEM</a>, goes among \
the trusted root authorities of the system or of the browser.</p>\
<h2>What that means</h2><p class=\"lead\">A device with this certificate believes whoever has its key, which lies on this server. The \
certificate is limited: it counts for this server&#39;s names and for addresses at home, and for nothing else on the Internet. \
When the server is gone for good, remove it from your devices.</p>\
<p class=\"lead\">Compare before you install. The terminal where Snug was started, and <code>snug check</code>, show the same \
fingerprint (SHA-256):</p><p><code>{}<wbr>{}</code></p>",
        escaped(server),
        escaped(first),
        escaped(second),
    );
    Ok(page("Let this device recognise the server", server, &body))
}

/// `GET /_snug/certificate.pem`.
pub async fn pem(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    Ok(file("application/x-pem-file", "snug.pem", root(&admin)?.pem()))
}

/// `GET /_snug/certificate.crt`: DER, in the type that phones install from.
pub async fn der(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    Ok(file("application/x-x509-ca-cert", "snug.crt", root(&admin)?.der.clone()))
}

/// `GET /_snug/certificate.mobileconfig`: an Apple configuration profile.
pub async fn profile(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    Ok(file("application/x-apple-aspen-config", "snug.mobileconfig", root(&admin)?.apple_profile()))
}

fn file(kind: &str, name: &str, bytes: impl Into<bytes::Bytes>) -> Response {
    Response::bytes(StatusCode::OK, kind, bytes)
        .header("content-disposition", &format!("attachment; filename=\"{name}\""))
        .header("cache-control", "no-store")
        .header("x-content-type-options", "nosniff")
}
