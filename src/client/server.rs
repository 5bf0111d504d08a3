//! Versions and capabilities of this server: GET versions, capabilities, retention/configuration, `.well-known`.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Client, Error, PresenceMode, auth, calls};
use crate::base::gathered;
use crate::http::{ErrorResponse, Request, Response};
use crate::matrix::version;
use crate::room::{DELAY_MS_MAX, Lifetimes, SCHEDULED_MAX};

/// Releases of the specification that this server supports. 1.17 no longer has the rules for mentions by name (MSC4210);
/// they are still there, as servers may have rules of their own.
const VERSIONS: &[&str] = &[
    "r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10",
    "v1.11", "v1.12", "v1.13", "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
];

/// GET /_matrix/client/versions
pub async fn versions(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let features = json!({
        "com.beeper.msc4169": true,
        "fi.mau.msc2659.stable": true,
        "com.beeper.msc4446": true,
        "computer.gingershaped.msc4466": true,
        "fi.mau.msc2815": client.rooms.redacted_kept_ms() > 0,
        "org.matrix.e2e_cross_signing": true,
        "org.matrix.msc3391": true,
        "org.matrix.msc3026.busy_presence": client.users.presence_mode() != PresenceMode::Off,
        "org.matrix.msc3814": true,
        "org.matrix.msc3874": true,
        "org.matrix.msc3881": true,
        "org.matrix.msc3912": true,
        "org.matrix.msc3916.stable": true,
        "org.matrix.msc4028": true,
        "org.matrix.msc4076": true,
        "org.matrix.msc4155": true,
        "org.matrix.msc4222": true,
        "org.matrix.msc4262": true,
        "org.matrix.msc4380": true,
        "org.matrix.msc4380.stable": true,
        "org.matrix.msc4429": true,
        "org.matrix.msc4140": true,
        "org.matrix.msc4143": !calls::offered(&client, &request).is_empty(),
        "org.matrix.msc4354": true,
        "org.matrix.simplified_msc3575": true,
        "org.matrix.msc4306": true,
        "uk.half-shot.msc2666.query_mutual_rooms": true,
        "uk.half-shot.msc2666.query_mutual_rooms.stable": true,
        "uk.tcpip.msc4133": true,
        "uk.tcpip.msc4133.stable": true,
        "uk.timedout.msc4323": true,
        "uk.timedout.msc4491.create_room_invite_reasons": true,
    });
    // The same as for other servers (MSC4383).
    let server = json!({ "name": "Snug", "version": env!("CARGO_PKG_VERSION") });
    Ok(Response::json(&json!({
        "versions": VERSIONS, "unstable_features": features, "server": server, "net.zemos.msc4383.server": server,
    })))
}

/// GET /_matrix/client/v3/capabilities
pub async fn capabilities(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let available: serde_json::Map<_, _> =
        gathered(version::offered().map(|version| (version.id.to_owned(), json!("stable"))));
    let forgets = client.rooms.forgets_left_rooms();
    let mut capabilities = json!({
        "m.change_password": { "enabled": true },
        "m.room_versions": { "default": client.options().room_version(), "available": available },
        "m.set_displayname": { "enabled": true },
        "m.set_avatar_url": { "enabled": true },
        "m.profile_fields": { "enabled": true },
        "uk.tcpip.msc4133.profile_fields": { "enabled": true },
        "m.forget_forced_upon_leave": { "enabled": forgets },
        "org.matrix.msc4267.forget_forced_upon_leave": { "enabled": forgets },
        "m.preview_url": { "enabled": client.media.makes_previews() },
        "io.element.msc4452.preview_url": { "enabled": client.media.makes_previews() },
        "m.3pid_changes": { "enabled": false },
        "m.get_login_token": { "enabled": true },
        "m.delayed_events": { "max_delay_ms": DELAY_MS_MAX, "max_scheduled": SCHEDULED_MAX },
        "org.matrix.msc4140.delayed_events": { "max_delay_ms": DELAY_MS_MAX, "max_scheduled": SCHEDULED_MAX },
    });
    if requester.is_admin {
        for name in ["m.account_moderation", "uk.timedout.msc4323"] {
            capabilities[name] = json!({ "lock": true, "suspend": true });
        }
    }
    Ok(Response::json(&json!({ "capabilities": capabilities })))
}

/// GET /_matrix/client/unstable/org.matrix.msc1763/retention/configuration: how long the settings let messages live.
pub async fn retention(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    auth::requester(&client, &request).await?;
    Ok(Response::json(&retention_of(client.rooms.lifetimes())))
}

/// Lifetimes as MSC1763 tells them.
fn retention_of(lifetimes: Lifetimes) -> Value {
    let (mut policies, mut limits) = (json!({}), json!({}));
    if let Some(ms) = lifetimes.unsaid_ms {
        policies["*"] = json!({ "max_lifetime": ms });
    }
    for (bound, ms) in [("min", lifetimes.own_min_ms), ("max", lifetimes.own_max_ms)] {
        if let Some(ms) = ms {
            limits["max_lifetime"][bound] = ms.into();
        }
    }
    json!({ "policies": policies, "limits": limits })
}

/// GET /.well-known/matrix/client
///
/// 404 `M_NOT_FOUND` when the setting for the public URL is not set, and the caller did not come to the server's name by HTTPS:
/// some apps find the media server of calls here alone, and apps that were told that name need no other address.
pub async fn well_known_client(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let by_name = || request.origin().filter(|origin| is_https_of(origin, client.users.server().as_str()));
    match client.options().public_url.clone().or_else(by_name) {
        Some(url) => {
            let mut known = json!({ "m.homeserver": { "base_url": url } });
            let media_servers = calls::offered(&client, &request);
            if !media_servers.is_empty() {
                known["org.matrix.msc4143.rtc_foci"] = media_servers.into();
            }
            Ok(Response::json(&known))
        }
        None => Err(ErrorResponse::not_found("This server publishes no address for apps (public_url)").into()),
    }
}

/// Whether a URL is that of HTTPS at a name and the usual port.
fn is_https_of(origin: &str, name: &str) -> bool {
    let host = origin.strip_prefix("https://").map(|host| host.strip_suffix(":443").unwrap_or(host));
    host.is_some_and(|host| host.eq_ignore_ascii_case(name))
}

/// Who helps the people of this server.
#[derive(Debug, Clone, Default)]
pub struct Support {
    pub contacts: Vec<Contact>,
    pub page: Option<String>,
}

/// Somebody to ask about this server, by Matrix, e-mail or both.
#[derive(Debug, Clone, Serialize)]
pub struct Contact {
    pub role: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matrix_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email_address: Option<String>,
}

/// GET /.well-known/matrix/support
///
/// 404 `M_NOT_FOUND` when the settings name neither a contact nor a page.
pub async fn well_known_support(client: Arc<Client>, _: Request) -> Result<Response, Error> {
    let options = client.options();
    let Support { contacts, page } = &options.support;
    let mut answer = serde_json::Map::new();
    if !contacts.is_empty() {
        answer.insert("contacts".to_owned(), json!(contacts));
    }
    if let Some(page) = page {
        answer.insert("support_page".to_owned(), json!(page));
    }
    match answer.is_empty() {
        true => {
            Err(ErrorResponse::not_found("This server names nobody to ask (support.contacts, support.page)").into())
        }
        false => Ok(Response::json(&answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was answered as if nothing ever went, whatever the settings said.
    #[test]
    fn how_long_messages_live_is_told_as_the_settings_say() {
        let told = |unsaid_ms, own_min_ms, own_max_ms| retention_of(Lifetimes { unsaid_ms, own_min_ms, own_max_ms });
        assert_eq!(told(None, None, None), json!({ "policies": {}, "limits": {} }));
        assert_eq!(
            told(Some(9), Some(2), Some(9)),
            json!({ "policies": { "*": { "max_lifetime": 9 } }, "limits": { "max_lifetime": { "min": 2, "max": 9 } } })
        );
        assert_eq!(told(None, Some(2), None), json!({ "policies": {}, "limits": { "max_lifetime": { "min": 2 } } }));
    }

    /// Without a public URL FluffyChat and Cinny did not find the media server of calls.
    #[test]
    fn apps_that_come_by_the_servers_name_are_told_that_address() {
        for (origin, is_it) in [
            ("https://example.org", true),
            ("https://Example.org:443", true),
            ("https://example.org:8448", false),
            ("https://example.org.evil.example", false),
            ("https://192.168.1.5", false),
            ("http://example.org", false),
        ] {
            assert_eq!(is_https_of(origin, "example.org"), is_it, "{origin}");
        }
        assert!(!is_https_of("https://example.org", "example.org:8448"));
    }
}
