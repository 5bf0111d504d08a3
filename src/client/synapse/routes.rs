//! Every call of Synapse's administration API that is there.

use std::sync::Arc;

use super::{moderation, register, reports, rooms, server, users};
use crate::client::Client;
use crate::http::{Method, Router};

const V1: [&str; 1] = ["/_synapse/admin/v1"];
const V2: [&str; 1] = ["/_synapse/admin/v2"];

/// Registers them.
pub fn routes(router: &mut Router, client: &Arc<Client>) {
    router
        .surface(client)
        .get("/_synapse/admin/v2/users", users::list)
        .get("/_synapse/admin/v3/users", users::list_v3)
        .under(&V2, Method::GET, "/users/{user_id}", users::get)
        .under(&V2, Method::PUT, "/users/{user_id}", users::put)
        .under(&V2, Method::GET, "/users/{user_id}/devices", users::devices)
        .under(&V2, Method::GET, "/users/{user_id}/devices/{device_id}", users::device)
        .under(&V2, Method::PUT, "/users/{user_id}/devices/{device_id}", users::name_device)
        .under(&V2, Method::DELETE, "/users/{user_id}/devices/{device_id}", users::delete_device)
        .under(&V2, Method::POST, "/users/{user_id}/delete_devices", users::delete_devices)
        .under(&V1, Method::POST, "/deactivate/{user_id}", users::deactivate)
        .under(&V1, Method::PUT, "/suspend/{user_id}", users::suspend)
        .under(&V1, Method::POST, "/reset_password/{user_id}", users::reset_password)
        .under(&V1, Method::GET, "/users/{user_id}/admin", users::is_admin)
        .under(&V1, Method::PUT, "/users/{user_id}/admin", users::set_admin)
        .under(&V1, Method::GET, "/users/{user_id}/override_ratelimit", moderation::pace)
        .under(&V1, Method::POST, "/users/{user_id}/override_ratelimit", moderation::set_pace)
        .under(&V1, Method::DELETE, "/users/{user_id}/override_ratelimit", moderation::unset_pace)
        .under(&V1, Method::POST, "/users/{user_id}/shadow_ban", moderation::shadow_ban)
        .under(&V1, Method::DELETE, "/users/{user_id}/shadow_ban", moderation::shadow_unban)
        .under(&V1, Method::POST, "/user/{user_id}/redact", moderation::redact)
        .under(&V1, Method::GET, "/user/redact_status/{redact_id}", moderation::redact_status)
        .under(&V1, Method::GET, "/users/{user_id}/pushers", users::pushers)
        .under(&V1, Method::GET, "/users/{user_id}/joined_rooms", users::joined_rooms)
        .under(&V1, Method::GET, "/users/{user_id}/memberships", users::memberships)
        .under(&V1, Method::GET, "/users/{user_id}/accountdata", users::account_data)
        .under(&V1, Method::POST, "/users/{user_id}/login", users::login)
        .under(&V1, Method::GET, "/whois/{user_id}", users::whois)
        .under(&V1, Method::GET, "/username_available", users::is_available)
        .under(&V1, Method::GET, "/statistics/users/media", users::media_statistics)
        .under(&V1, Method::GET, "/register", register::nonce)
        .under(&V1, Method::POST, "/register", register::register)
        .under(&V1, Method::GET, "/rooms", rooms::list)
        .under(&V1, Method::GET, "/rooms/{room_id}", rooms::details)
        .under(&V1, Method::GET, "/rooms/{room_id}/members", rooms::members)
        .under(&V1, Method::GET, "/rooms/{room_id}/forward_extremities", rooms::extremities)
        .under(&V1, Method::POST, "/join/{room_id_or_alias}", rooms::join)
        .under(&V1, Method::GET, "/event_reports", reports::list)
        .under(&V1, Method::GET, "/event_reports/{report_id}", reports::get)
        .under(&V1, Method::DELETE, "/event_reports/{report_id}", reports::delete)
        .under(&V1, Method::GET, "/room_reports", reports::of_rooms)
        .under(&V1, Method::GET, "/user_reports", reports::of_users)
        .under(&V1, Method::GET, "/server_version", server::version)
        .under(&V1, Method::POST, "/send_server_notice", server::notice)
        .under(&V1, Method::PUT, "/send_server_notice/{txn_id}", server::notice)
        .under(&V1, Method::GET, "/background_updates/status", server::background_updates);
}
