//! Every endpoint, in the order of the specification's chapters.

use std::sync::Arc;

use super::{Federation, calls, history, key, media, membership, query, send, space, state, user};
use crate::http::Router;

/// Registers the whole surface.
pub fn routes(router: &mut Router, federation: &Arc<Federation>) {
    let mut routes = router.surface(federation);
    routes
        .get("/_matrix/key/v2/server", key::server)
        .get("/_matrix/key/v2/query/{server}", key::query_one)
        .post("/_matrix/key/v2/query", key::query)
        .get("/.well-known/matrix/server", key::well_known)
        .get("/_matrix/federation/v1/version", key::version);
    rooms(router, federation);
    people(router, federation);
    files(router, federation);
}

/// Joining, leaving, inviting; states and events.
fn rooms(router: &mut Router, federation: &Arc<Federation>) {
    let mut routes = router.surface(federation);
    routes
        .get("/_matrix/federation/v1/make_join/{room_id}/{user_id}", membership::make_join)
        .put("/_matrix/federation/v1/send_join/{room_id}/{event_id}", membership::send_join_v1)
        .put("/_matrix/federation/v2/send_join/{room_id}/{event_id}", membership::send_join_v2)
        .get("/_matrix/federation/v1/make_leave/{room_id}/{user_id}", membership::make_leave)
        .put("/_matrix/federation/v1/send_leave/{room_id}/{event_id}", membership::send_leave_v1)
        .put("/_matrix/federation/v2/send_leave/{room_id}/{event_id}", membership::send_leave_v2)
        .get("/_matrix/federation/v1/make_knock/{room_id}/{user_id}", membership::make_knock)
        .put("/_matrix/federation/v1/send_knock/{room_id}/{event_id}", membership::send_knock)
        .put("/_matrix/federation/v1/invite/{room_id}/{event_id}", membership::invite_v1)
        .put("/_matrix/federation/v2/invite/{room_id}/{event_id}", membership::invite_v2)
        .get("/_matrix/federation/v1/state/{room_id}", state::state)
        .get("/_matrix/federation/v1/state_ids/{room_id}", state::state_ids)
        .get("/_matrix/federation/v1/event_auth/{room_id}/{event_id}", state::event_auth)
        .get("/_matrix/federation/v1/event/{event_id}", state::event)
        .put("/_matrix/federation/v1/send/{txn_id}", send::send)
        .get("/_matrix/federation/v1/backfill/{room_id}", history::backfill)
        .post("/_matrix/federation/v1/get_missing_events/{room_id}", history::get_missing_events)
        .get("/_matrix/federation/v1/timestamp_to_event/{room_id}", history::nearest)
        .get("/_matrix/federation/v1/hierarchy/{room_id}", space::hierarchy)
        .get("/_matrix/federation/unstable/rooms/{room_id}/complexity", state::complexity);
}

/// Profiles, names, public rooms, devices and keys.
fn people(router: &mut Router, federation: &Arc<Federation>) {
    let mut routes = router.surface(federation);
    routes
        .get("/_matrix/federation/v1/query/profile", query::profile)
        .get("/_matrix/federation/v1/query/directory", query::directory)
        .get("/_matrix/federation/v1/query/{query_type}", query::unknown)
        .get("/_matrix/federation/v1/publicRooms", query::public_rooms)
        .post("/_matrix/federation/v1/publicRooms", query::search_public_rooms)
        .get("/_matrix/federation/v1/user/devices/{user_id}", user::devices)
        .post("/_matrix/federation/v1/user/keys/query", user::query)
        .post("/_matrix/federation/v1/user/keys/claim", user::claim)
        .get("/_matrix/federation/v1/openid/userinfo", calls::userinfo)
        .post("/_matrix/federation/v1/rtc/livekit/get_token", calls::get_token);
}

/// Files.
fn files(router: &mut Router, federation: &Arc<Federation>) {
    let mut routes = router.surface(federation);
    routes
        .get("/_matrix/federation/v1/media/download/{media_id}", media::download)
        .get("/_matrix/federation/v1/media/thumbnail/{media_id}", media::thumbnail);
}
