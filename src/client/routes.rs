//! Every endpoint, in the order of the specification's chapters.

use std::sync::Arc;

use super::{Client, about, history, session, state, sync};
use crate::http::{Method, Router};

/// Registers the whole surface.
pub fn routes(router: &mut Router, client: &Arc<Client>) {
    abouts(router, client);
    accounts(router, client);
    reading(router, client);
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

/// What is new, and what was.
fn reading(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .r0_v3(Method::GET, "/sync", sync::v3::sync)
        .r0_v3(Method::GET, "/rooms/{room_id}/event/{event_id}", history::event)
        .r0_v3(Method::GET, "/rooms/{room_id}/messages", history::messages)
        .r0_v3(Method::GET, "/rooms/{room_id}/context/{event_id}", history::context)
        .get("/_matrix/client/v1/rooms/{room_id}/relations/{event_id}", history::relations)
        .get("/_matrix/client/v1/rooms/{room_id}/relations/{event_id}/{rel_type}", history::relations)
        .get("/_matrix/client/v1/rooms/{room_id}/relations/{event_id}/{rel_type}/{event_type}", history::relations)
        .r0_v3(Method::GET, "/rooms/{room_id}/state", state::state)
        .r0_v3(Method::GET, "/rooms/{room_id}/state/{event_type}/", state::state_event)
        .r0_v3(Method::GET, "/rooms/{room_id}/state/{event_type}/{state_key}", state::state_event)
        .r0_v3(Method::GET, "/rooms/{room_id}/members", state::members)
        .r0_v3(Method::GET, "/rooms/{room_id}/joined_members", state::joined_members)
        .r0_v3(Method::GET, "/joined_rooms", state::joined_rooms);
}
