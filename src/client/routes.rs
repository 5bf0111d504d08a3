//! Every endpoint, in the order of the specification's chapters.

use std::sync::Arc;

use super::account::{self, account_data, device, fallback, profile, push, push_rules, register, session};
use super::room::{
    create, delayed, directory, membership, old, receipt, send, space, state, thread, timeline, upgrade,
};
use super::{
    Client, admin, calls, dehydrated_device, keys, media, presence, preview, report, room_keys, search, server,
    service, synapse, sync, terms, third_party, to_device,
};
use crate::http::{Method, Router};

/// What web apps of any origin may ask; servers ask none of it (client-server API, "Web Browser Clients").
const OPEN_TO_WEB_APPS: [&str; 6] = [
    "/_matrix/client/",
    "/_matrix/media/",
    "/_matrix/static/",
    "/.well-known/matrix/",
    "/_snug/livekit/",
    "/_synapse/admin/",
];
/// Prefixes of endpoints that were in r0 and are in v3, in the order of their age.
const R0_V3: [&str; 2] = ["/_matrix/client/r0", "/_matrix/client/v3"];
/// Prefixes for single profile fields. The last is from before a release of the specification had them.
const FIELDS: [&str; 3] = ["/_matrix/client/r0", "/_matrix/client/v3", "/_matrix/client/unstable/uk.tcpip.msc4133"];
/// Prefixes for cross-signing and key backups.
const CROSS_SIGNING: [&str; 3] = ["/_matrix/client/r0", "/_matrix/client/v3", "/_matrix/client/unstable"];
const THREADS: [&str; 2] = ["/_matrix/client/unstable/io.element.msc4306", "/_matrix/client/v1"];
/// For the removal of account data.
const REMOVED: [&str; 1] = ["/_matrix/client/unstable/org.matrix.msc3391"];
/// Prefixes for delayed events: the proposal's unstable one, and the one that it asks for.
const DELAYED: [&str; 2] = ["/_matrix/client/unstable/org.matrix.msc4140", "/_matrix/client/v1"];
const DELAYED_ROOMS: [&str; 2] = ["/_matrix/client/unstable/org.matrix.msc4140", "/_matrix/client/v3"];
/// Prefixes of what was called the summary of a room before a release of the specification had it.
const SUMMARY: &str = "/_matrix/client/unstable/im.nheko.summary";
/// Prefixes for locking and suspending. The last is from before a release of the specification had them.
const MODERATION: [&str; 2] = ["/_matrix/client/v1/admin", "/_matrix/client/unstable/uk.timedout.msc4323/admin"];
const DEHYDRATED: [&str; 1] = ["/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"];

/// Prefixes of the media endpoints that need no access token.
const OLD_MEDIA: [&str; 3] = ["/_matrix/media/r0", "/_matrix/media/v1", "/_matrix/media/v3"];

/// Registers the whole surface.
pub fn routes(router: &mut Router, client: &Arc<Client>) {
    router.open_to_web_apps(&OPEN_TO_WEB_APPS);
    abouts(router, client);
    accounts(router, client);
    administration(router, client);
    reading(router, client);
    end_to_end(router, client);
    personal(router, client);
    threads(router, client);
    delayed_events(router, client);
    spaces(router, client);
    rooms(router, client);
    files(router, client);
    if client.options().synapse_admin_api {
        synapse::routes::routes(router, client);
    }
}

/// Versions and capabilities of this server.
fn abouts(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .get("/_matrix/client/versions", server::versions)
        .get("/.well-known/matrix/client", server::well_known_client)
        .get("/.well-known/matrix/support", server::well_known_support)
        .get("/_snug/terms", terms::show)
        .post("/_snug/terms", terms::agree)
        .get("/_snug/terms/{policy}/{language}", terms::text)
        .under(&R0_V3, Method::GET, "/thirdparty/protocols", third_party::protocols)
        .under(&R0_V3, Method::GET, "/thirdparty/protocol/{protocol}", third_party::protocol)
        .under(&R0_V3, Method::GET, "/thirdparty/location", third_party::locations)
        .under(&R0_V3, Method::GET, "/thirdparty/location/{protocol}", third_party::locations)
        .under(&R0_V3, Method::GET, "/thirdparty/user", third_party::users)
        .under(&R0_V3, Method::GET, "/thirdparty/user/{protocol}", third_party::users)
        .post("/_matrix/client/v1/appservice/{service_id}/ping", service::ping)
        .post("/_matrix/client/unstable/fi.mau.msc2659/appservice/{service_id}/ping", service::ping)
        .under(&R0_V3, Method::PUT, "/directory/list/appservice/{network_id}/{room_id}", service::list_room)
        .under(&R0_V3, Method::GET, "/capabilities", server::capabilities)
        .get("/_matrix/client/unstable/org.matrix.msc1763/retention/configuration", server::retention)
        .under(&R0_V3, Method::GET, "/voip/turnServer", calls::turn_server)
        .under(&R0_V3, Method::POST, "/user/{user_id}/openid/request_token", calls::openid_token)
        .get("/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", calls::transports)
        .get("/_matrix/client/v1/rtc/transports", calls::transports)
        .post("/_matrix/client/v1/rtc/livekit/get_token", calls::get_token)
        .post("/_matrix/client/v1/rtc/livekit/delegate_delayed_leave", calls::delegate)
        .post("/_snug/livekit/delegate_delayed_leave", calls::service_delegate)
        .post("/_snug/livekit/sfu/get", calls::sfu_get)
        .post("/_snug/livekit/get_token", calls::service_token);
}

/// Accounts, sessions, devices, profiles.
fn accounts(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .under(&R0_V3, Method::GET, "/login", session::flows)
        .under(&R0_V3, Method::POST, "/login", session::login)
        .post("/_matrix/client/v1/login/get_token", session::login_token)
        .post("/_matrix/client/unstable/org.matrix.msc3882/login/token", session::login_token)
        .under(&R0_V3, Method::POST, "/refresh", session::refresh)
        .under(&R0_V3, Method::POST, "/logout", session::logout)
        .under(&R0_V3, Method::POST, "/logout/all", session::logout_all)
        .under(&R0_V3, Method::GET, "/account/whoami", session::whoami)
        .under(&R0_V3, Method::POST, "/register", register::register)
        .under(&R0_V3, Method::GET, "/auth/{auth_type}/fallback/web", fallback::show)
        .under(&R0_V3, Method::POST, "/auth/{auth_type}/fallback/web", fallback::prove)
        .get("/_matrix/static/client/login/", fallback::login)
        .under(&R0_V3, Method::GET, "/register/available", register::available)
        .get("/_matrix/client/v1/register/m.login.registration_token/validity", register::token_validity)
        .under(&R0_V3, Method::POST, "/account/password", account::password)
        .under(&R0_V3, Method::POST, "/account/deactivate", account::deactivate)
        .under(&R0_V3, Method::GET, "/account/3pid", account::threepids)
        .under(&R0_V3, Method::GET, "/devices", device::list)
        .under(&R0_V3, Method::GET, "/devices/{device_id}", device::get)
        .under(&R0_V3, Method::PUT, "/devices/{device_id}", device::put)
        .under(&R0_V3, Method::DELETE, "/devices/{device_id}", device::delete)
        .under(&R0_V3, Method::POST, "/delete_devices", device::delete_many)
        .under(&R0_V3, Method::GET, "/profile/{user_id}", profile::get)
        .under(&FIELDS, Method::GET, "/profile/{user_id}/{field}", profile::get_field)
        .under(&FIELDS, Method::PUT, "/profile/{user_id}/{field}", profile::put_field)
        .under(&FIELDS, Method::DELETE, "/profile/{user_id}/{field}", profile::delete_field)
        .under(&R0_V3, Method::POST, "/user_directory/search", profile::search)
        .under(&R0_V3, Method::POST, "/rooms/{room_id}/report/{event_id}", report::event)
        .post("/_matrix/client/v3/rooms/{room_id}/report", report::room)
        .post("/_matrix/client/v3/users/{user_id}/report", report::user);
}

/// What administrators ask for from their apps.
fn administration(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .under(&R0_V3, Method::GET, "/admin/whois/{user_id}", admin::whois)
        .under(&MODERATION, Method::GET, "/suspend/{user_id}", admin::suspended)
        .under(&MODERATION, Method::PUT, "/suspend/{user_id}", admin::suspend)
        .under(&MODERATION, Method::GET, "/lock/{user_id}", admin::locked)
        .under(&MODERATION, Method::PUT, "/lock/{user_id}", admin::lock);
}

/// End-to-end keys and messages to devices.
fn end_to_end(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .under(&R0_V3, Method::POST, "/keys/upload", keys::upload)
        .under(&R0_V3, Method::POST, "/keys/upload/{device_id}", keys::upload)
        .under(&R0_V3, Method::POST, "/keys/query", keys::query)
        .under(&R0_V3, Method::POST, "/keys/claim", keys::claim)
        .under(&R0_V3, Method::GET, "/keys/changes", keys::changes)
        .under(&CROSS_SIGNING, Method::POST, "/keys/device_signing/upload", keys::device_signing)
        .under(&CROSS_SIGNING, Method::POST, "/keys/signatures/upload", keys::signatures)
        .under(&R0_V3, Method::PUT, "/sendToDevice/{event_type}/{txn_id}", to_device::send);
    backups(router, client);
    dehydrated(router, client);
}

/// The dehydrated device, which no release of the specification has yet.
fn dehydrated(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .under(&DEHYDRATED, Method::PUT, "", dehydrated_device::put)
        .under(&DEHYDRATED, Method::GET, "", dehydrated_device::get)
        .under(&DEHYDRATED, Method::DELETE, "", dehydrated_device::delete)
        .under(&DEHYDRATED, Method::GET, "/{device_id}/events", dehydrated_device::events)
        .under(&DEHYDRATED, Method::POST, "/{device_id}/events", dehydrated_device::post_events);
}

/// Backups of room keys.
fn backups(router: &mut Router, client: &Arc<Client>) {
    let mut routes = router.surface(client);
    routes
        .under(&CROSS_SIGNING, Method::GET, "/room_keys/version", room_keys::current)
        .under(&CROSS_SIGNING, Method::POST, "/room_keys/version", room_keys::create)
        .under(&CROSS_SIGNING, Method::GET, "/room_keys/version/{version}", room_keys::version)
        .under(&CROSS_SIGNING, Method::PUT, "/room_keys/version/{version}", room_keys::update)
        .under(&CROSS_SIGNING, Method::DELETE, "/room_keys/version/{version}", room_keys::delete);
    for path in ["/room_keys/keys", "/room_keys/keys/{room_id}", "/room_keys/keys/{room_id}/{session_id}"] {
        routes
            .under(&CROSS_SIGNING, Method::GET, path, room_keys::keys)
            .under(&CROSS_SIGNING, Method::PUT, path, room_keys::put_keys)
            .under(&CROSS_SIGNING, Method::DELETE, path, room_keys::delete_keys);
    }
}

/// Account data, tags, filters, push rules.
fn personal(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .under(&R0_V3, Method::GET, "/user/{user_id}/account_data/{kind}", account_data::get)
        .under(&R0_V3, Method::PUT, "/user/{user_id}/account_data/{kind}", account_data::put)
        .under(&R0_V3, Method::GET, "/user/{user_id}/rooms/{room_id}/account_data/{kind}", account_data::get)
        .under(&R0_V3, Method::PUT, "/user/{user_id}/rooms/{room_id}/account_data/{kind}", account_data::put)
        .under(&REMOVED, Method::DELETE, "/user/{user_id}/account_data/{kind}", account_data::delete)
        .under(&REMOVED, Method::DELETE, "/user/{user_id}/rooms/{room_id}/account_data/{kind}", account_data::delete)
        .under(&R0_V3, Method::GET, "/user/{user_id}/rooms/{room_id}/tags", account_data::tags)
        .under(&R0_V3, Method::PUT, "/user/{user_id}/rooms/{room_id}/tags/{tag}", account_data::put_tag)
        .under(&R0_V3, Method::DELETE, "/user/{user_id}/rooms/{room_id}/tags/{tag}", account_data::delete_tag)
        .under(&R0_V3, Method::POST, "/user/{user_id}/filter", account_data::post_filter)
        .under(&R0_V3, Method::GET, "/user/{user_id}/filter/{filter_id}", account_data::get_filter)
        .under(&R0_V3, Method::GET, "/pushrules/", push_rules::all)
        .under(&R0_V3, Method::GET, "/pushrules/global/", push_rules::global)
        .under(&R0_V3, Method::GET, "/pushrules/global/{kind}/{rule_id}", push_rules::get)
        .under(&R0_V3, Method::PUT, "/pushrules/global/{kind}/{rule_id}", push_rules::put)
        .under(&R0_V3, Method::DELETE, "/pushrules/global/{kind}/{rule_id}", push_rules::delete)
        .under(&R0_V3, Method::GET, "/pushrules/global/{kind}/{rule_id}/enabled", push_rules::get_enabled)
        .under(&R0_V3, Method::PUT, "/pushrules/global/{kind}/{rule_id}/enabled", push_rules::put_enabled)
        .under(&R0_V3, Method::GET, "/pushrules/global/{kind}/{rule_id}/actions", push_rules::get_actions)
        .under(&R0_V3, Method::PUT, "/pushrules/global/{kind}/{rule_id}/actions", push_rules::put_actions)
        .under(&R0_V3, Method::GET, "/presence/{user_id}/status", presence::get)
        .under(&R0_V3, Method::PUT, "/presence/{user_id}/status", presence::put)
        .under(&R0_V3, Method::GET, "/pushers", push::pushers)
        .under(&R0_V3, Method::POST, "/pushers/set", push::set)
        .under(&R0_V3, Method::GET, "/notifications", push::notifications);
}

/// Sync, and reading rooms.
fn reading(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .under(&R0_V3, Method::GET, "/sync", sync::v3::sync)
        .post("/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", sync::sliding::unstable)
        .post("/_matrix/client/v4/sync", sync::sliding::v4)
        .under(&R0_V3, Method::GET, "/rooms/{room_id}/event/{event_id}", timeline::event)
        .under(&R0_V3, Method::GET, "/rooms/{room_id}/messages", timeline::messages)
        .under(&R0_V3, Method::GET, "/rooms/{room_id}/context/{event_id}", timeline::context)
        .get("/_matrix/client/v1/rooms/{room_id}/timestamp_to_event", timeline::nearest)
        .get("/_matrix/client/v1/rooms/{room_id}/threads", timeline::threads)
        .get("/_matrix/client/v1/rooms/{room_id}/relations/{event_id}", timeline::relations)
        .get("/_matrix/client/v1/rooms/{room_id}/relations/{event_id}/{rel_type}", timeline::relations)
        .get("/_matrix/client/v1/rooms/{room_id}/relations/{event_id}/{rel_type}/{event_type}", timeline::relations)
        .under(&R0_V3, Method::GET, "/rooms/{room_id}/state", state::state)
        .under(&R0_V3, Method::GET, "/rooms/{room_id}/state/{event_type}/", state::state_event)
        .under(&R0_V3, Method::GET, "/rooms/{room_id}/state/{event_type}/{state_key}", state::state_event)
        .under(&R0_V3, Method::GET, "/rooms/{room_id}/members", state::members)
        .under(&R0_V3, Method::GET, "/rooms/{room_id}/joined_members", state::joined_members)
        .under(&R0_V3, Method::GET, "/joined_rooms", state::joined_rooms)
        .under(&R0_V3, Method::GET, "/events", old::events)
        .under(&R0_V3, Method::GET, "/events/{event_id}", old::event)
        .under(&R0_V3, Method::GET, "/initialSync", old::all)
        .under(&R0_V3, Method::GET, "/rooms/{room_id}/initialSync", old::room)
        .under(&R0_V3, Method::POST, "/search", search::search);
}

/// Subscriptions to threads, which no release of the specification has yet.
fn threads(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .under(&THREADS, Method::GET, "/rooms/{room_id}/thread/{event_id}/subscription", thread::get)
        .under(&THREADS, Method::PUT, "/rooms/{room_id}/thread/{event_id}/subscription", thread::put)
        .under(&THREADS, Method::DELETE, "/rooms/{room_id}/thread/{event_id}/subscription", thread::delete)
        .get("/_matrix/client/unstable/io.element.msc4308/thread_subscriptions", thread::list)
        .get("/_matrix/client/v1/thread_subscriptions", thread::list);
}

/// Events that are sent later, which no release of the specification has yet.
fn delayed_events(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .under(&DELAYED_ROOMS, Method::PUT, "/rooms/{room_id}/delayed_event/{type}/{txn_id}", delayed::put)
        .under(&DELAYED, Method::GET, "/delayed_events", delayed::list)
        .under(&DELAYED, Method::GET, "/delayed_events/{delay_id}", delayed::get)
        .under(&DELAYED, Method::POST, "/delayed_events/{delay_id}", delayed::act)
        .under(&DELAYED, Method::POST, "/delayed_events/{delay_id}/restart", delayed::restart)
        .under(&DELAYED, Method::POST, "/delayed_events/{delay_id}/cancel", delayed::cancel)
        .under(&DELAYED, Method::POST, "/delayed_events/{delay_id}/send", delayed::send);
}

/// Spaces, and rooms seen from outside.
fn spaces(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .get("/_matrix/client/v1/rooms/{room_id}/hierarchy", space::hierarchy)
        .get("/_matrix/client/v1/room_summary/{room_id_or_alias}", space::summary)
        .get(&format!("{SUMMARY}/summary/{{room_id_or_alias}}"), space::old_summary)
        .get(&format!("{SUMMARY}/rooms/{{room_id_or_alias}}/summary"), space::old_summary)
        .get("/_matrix/client/v1/mutual_rooms", space::mutual_rooms)
        .get("/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms", space::mutual_rooms);
}

/// Changing rooms.
fn rooms(router: &mut Router, client: &Arc<Client>) {
    let mut routes = router.surface(client);
    routes
        .under(&R0_V3, Method::POST, "/createRoom", create::create)
        .under(&R0_V3, Method::POST, "/rooms/{room_id}/upgrade", upgrade::upgrade)
        .under(&R0_V3, Method::GET, "/directory/room/{alias}", directory::alias)
        .under(&R0_V3, Method::PUT, "/directory/room/{alias}", directory::set_alias)
        .under(&R0_V3, Method::DELETE, "/directory/room/{alias}", directory::remove_alias)
        .under(&R0_V3, Method::GET, "/rooms/{room_id}/aliases", directory::aliases)
        .under(&R0_V3, Method::GET, "/directory/list/room/{room_id}", directory::visibility)
        .under(&R0_V3, Method::PUT, "/directory/list/room/{room_id}", directory::set_visibility)
        .under(&R0_V3, Method::GET, "/publicRooms", directory::public_rooms)
        .under(&R0_V3, Method::POST, "/publicRooms", directory::search_public_rooms)
        .under(&R0_V3, Method::POST, "/rooms/{room_id}/receipt/{receipt_type}/{event_id}", receipt::receipt)
        .under(&R0_V3, Method::POST, "/rooms/{room_id}/read_markers", receipt::read_markers)
        .under(&R0_V3, Method::PUT, "/rooms/{room_id}/typing/{user_id}", receipt::typing)
        .under(&R0_V3, Method::POST, "/join/{room_id_or_alias}", membership::join)
        .under(&R0_V3, Method::POST, "/knock/{room_id_or_alias}", membership::knock)
        .under(&R0_V3, Method::POST, "/rooms/{room_id}/join", membership::join_by_id)
        .under(&R0_V3, Method::POST, "/rooms/{room_id}/leave", membership::leave)
        .under(&R0_V3, Method::POST, "/rooms/{room_id}/forget", membership::forget)
        .under(&R0_V3, Method::POST, "/rooms/{room_id}/invite", membership::invite)
        .under(&R0_V3, Method::POST, "/rooms/{room_id}/kick", membership::kick)
        .under(&R0_V3, Method::POST, "/rooms/{room_id}/ban", membership::ban)
        .under(&R0_V3, Method::POST, "/rooms/{room_id}/unban", membership::unban)
        .under(&R0_V3, Method::PUT, "/rooms/{room_id}/send/{type}/{txn_id}", send::message)
        .under(&R0_V3, Method::PUT, "/rooms/{room_id}/state/{type}/", send::state)
        .under(&R0_V3, Method::PUT, "/rooms/{room_id}/state/{type}/{state_key}", send::state)
        .under(&R0_V3, Method::PUT, "/rooms/{room_id}/redact/{event_id}/{txn_id}", send::redact);
}

/// Files.
fn files(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .under(&OLD_MEDIA, Method::POST, "/upload", media::upload)
        .post("/_matrix/media/v1/create", media::create)
        .put("/_matrix/media/v3/upload/{server}/{media_id}", media::upload_to)
        .get("/_matrix/client/v1/media/config", media::config)
        .under(&OLD_MEDIA, Method::GET, "/config", media::config)
        .get("/_matrix/client/v1/media/download/{server}/{media_id}", media::download)
        .get("/_matrix/client/v1/media/download/{server}/{media_id}/{name}", media::download)
        .under(&OLD_MEDIA, Method::GET, "/download/{server}/{media_id}", media::download_old)
        .under(&OLD_MEDIA, Method::GET, "/download/{server}/{media_id}/{name}", media::download_old)
        .get("/_matrix/client/v1/media/preview_url", preview::preview_url)
        .under(&OLD_MEDIA, Method::GET, "/preview_url", preview::preview_url)
        .get("/_matrix/client/v1/media/thumbnail/{server}/{media_id}", media::thumbnail)
        .under(&OLD_MEDIA, Method::GET, "/thumbnail/{server}/{media_id}", media::thumbnail_old);
}
