//! Every endpoint, in the order of the specification's chapters.

use std::sync::Arc;

use super::{Client, about, session};
use crate::http::{Method, Router};

/// Registers the whole surface.
pub fn routes(router: &mut Router, client: &Arc<Client>) {
    abouts(router, client);
    accounts(router, client);
}

/// What this server is and can do.
fn abouts(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .get("/_matrix/client/versions", about::versions)
        .get("/.well-known/matrix/client", about::well_known_client)
        .r0_v3(Method::GET, "/capabilities", about::capabilities)
        .r0_v3(Method::GET, "/voip/turnServer", about::turn_server);
}

/// Accounts and sessions.
fn accounts(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .r0_v3(Method::GET, "/login", session::flows)
        .r0_v3(Method::POST, "/login", session::login)
        .r0_v3(Method::POST, "/logout", session::logout)
        .r0_v3(Method::POST, "/logout/all", session::logout_all)
        .r0_v3(Method::GET, "/account/whoami", session::whoami);
}
