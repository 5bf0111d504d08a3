//! What guests may do (client-server API, "Guest Access").
//!
//! The specification lists it. Beside that they may ask what the server can do and what changed of keys, read relations, and
//! look at rooms from outside, as other servers let them.

use crate::http::{Method, Request};

/// Method and path, without the prefix of the release.
const ALLOWED: &[(Method, &str)] = &[
    // Events and files.
    (Method::GET, "/rooms/{room_id}/state"),
    (Method::GET, "/rooms/{room_id}/context/{event_id}"),
    (Method::GET, "/rooms/{room_id}/event/{event_id}"),
    (Method::GET, "/rooms/{room_id}/state/{event_type}/"),
    (Method::GET, "/rooms/{room_id}/state/{event_type}/{state_key}"),
    (Method::GET, "/rooms/{room_id}/messages"),
    (Method::GET, "/rooms/{room_id}/members"),
    (Method::GET, "/rooms/{room_id}/initialSync"),
    (Method::GET, "/sync"),
    (Method::GET, "/events"),
    (Method::GET, "/media/download/{server}/{media_id}"),
    (Method::GET, "/media/download/{server}/{media_id}/{name}"),
    (Method::GET, "/media/thumbnail/{server}/{media_id}"),
    (Method::GET, "/rooms/{room_id}/aliases"),
    (Method::GET, "/rooms/{room_id}/hierarchy"),
    (Method::GET, "/rooms/{room_id}/relations/{event_id}"),
    (Method::GET, "/rooms/{room_id}/relations/{event_id}/{rel_type}"),
    (Method::GET, "/rooms/{room_id}/relations/{event_id}/{rel_type}/{event_type}"),
    (Method::GET, "/rooms/{room_id}/timestamp_to_event"),
    (Method::POST, "/publicRooms"),
    // Sending.
    (Method::POST, "/rooms/{room_id}/join"),
    (Method::POST, "/join/{room_id_or_alias}"),
    (Method::POST, "/rooms/{room_id}/leave"),
    (Method::PUT, "/rooms/{room_id}/send/{type}/{txn_id}"),
    (Method::PUT, "/rooms/{room_id}/state/{type}/"),
    (Method::PUT, "/rooms/{room_id}/state/{type}/{state_key}"),
    (Method::PUT, "/sendToDevice/{event_type}/{txn_id}"),
    // Their own account.
    (Method::PUT, DISPLAY_NAME),
    (Method::DELETE, DISPLAY_NAME),
    (Method::GET, "/devices"),
    (Method::GET, "/devices/{device_id}"),
    (Method::PUT, "/devices/{device_id}"),
    (Method::GET, "/account/whoami"),
    (Method::GET, "/capabilities"),
    // Calls: the setting turn.guests decides.
    (Method::GET, "/voip/turnServer"),
    // Encryption.
    (Method::POST, "/keys/upload"),
    (Method::POST, "/keys/upload/{device_id}"),
    (Method::POST, "/keys/query"),
    (Method::POST, "/keys/claim"),
    (Method::GET, "/keys/changes"),
];

/// The one field of a profile that guests may change.
const DISPLAY_NAME: &str = "/profile/{user_id}/{field}";

/// Prefixes of the endpoints, the longer ones of one beginning first.
const PREFIXES: [&str; 5] = [
    "/_matrix/client/r0",
    "/_matrix/client/v3",
    "/_matrix/client/v1",
    "/_matrix/client/unstable/uk.tcpip.msc4133",
    "/_matrix/client/unstable",
];

/// Whether a guest may make this request.
pub fn may_ask(request: &Request) -> bool {
    let path = PREFIXES.iter().find_map(|prefix| request.template().strip_prefix(prefix)).unwrap_or_default();
    let is_listed = ALLOWED.iter().any(|(method, allowed)| method == request.method() && *allowed == path);
    is_listed && (path != DISPLAY_NAME || request.param("field") == "displayname")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_guests_may_do_is_there_under_that_name() {
        let routes = include_str!("routes.rs");
        for (method, path) in ALLOWED {
            assert!(routes.contains(&format!("{path}\"")), "{method} {path}");
        }
        let asks = |method: Method, target: &str| {
            let request = Request::for_tests(method, target, "");
            may_ask(&request)
        };
        assert!(!asks(Method::POST, "/_matrix/client/v3/createRoom"));
        for calls in ["v3/user/@a:b/openid/request_token", "v1/rtc/livekit/get_token"] {
            assert!(!asks(Method::POST, &format!("/_matrix/client/{calls}")));
        }
    }
}
