//! The push gateway for UnifiedPush (push gateway API; UnifiedPush, "Gateway"): a homeserver tells it of a
//! notification, and it sends that to the endpoint that each pushkey is.
//!
//! Whoever wants may ask: other homeservers have no name here. So what an endpoint may be is bounded: HTTPS at public
//! addresses alone, whatever the operator allows to people here, whose notifications do not come this way
//! (`deliver/push`).
//!
//! Bounds: [`AT_ONCE_MAX`] requests and one of a network, each with [`DEVICES_MAX`] endpoints after each other; a rate by
//! address.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::{Error, rates};
use crate::base::Clock;
use crate::base::shares::network;
use crate::http::{ErrorResponse, Request, Response, Router, StatusCode};
use crate::matrix::json::partial;
use crate::matrix::push::notice::{ENDPOINT_BYTES_MAX, forwarded};
use crate::remote::Remote;
use crate::remote::unified_push::{self, Sent};
use crate::remote::web::WebFailed;

const PATH: &str = "/_matrix/push/v1/notify";
/// A notification of a homeserver: the content of an event, which is at most 64 KiB, and what is said of it.
const BODY_BYTES_MAX: u64 = 80 << 10;
/// Homeservers name one device in each notification.
const DEVICES_MAX: usize = 2;
const AT_ONCE_MAX: usize = 8;
/// For all endpoints of a request together.
const TIME_MAX: Duration = Duration::from_secs(15);

/// The parts that the gateway uses.
pub struct Gateway {
    remote: Remote,
    clock: Clock,
    /// The networks that are served.
    served: Mutex<HashSet<IpAddr>>,
}

/// One of a few places, and the only one of its network: endpoints that are slow on purpose keep nobody else waiting.
struct Turn<'a> {
    gateway: &'a Gateway,
    network: IpAddr,
}

impl Gateway {
    pub fn new(remote: Remote, clock: Clock) -> Gateway {
        Gateway { remote, clock, served: Mutex::default() }
    }

    fn turn(&self, ip: IpAddr) -> Option<Turn<'_>> {
        let (mut served, network) = (self.served.lock(), network(ip));
        (served.len() < AT_ONCE_MAX && served.insert(network)).then_some(Turn { gateway: self, network })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.gateway.served.lock().remove(&self.network);
    }
}

/// Registers the gateway's endpoints.
pub fn routes(router: &mut Router, gateway: &Arc<Gateway>) {
    router.surface(gateway).get(PATH, discover).post(PATH, notify);
}

/// GET /_matrix/push/v1/notify: says that this is a gateway for UnifiedPush (UnifiedPush, "Gateway discovery").
async fn discover(_: Arc<Gateway>, _: Request) -> Result<Response, Error> {
    Ok(Response::json(&json!({ "gateway": "matrix", "unifiedpush": { "gateway": "matrix" } })))
}

#[derive(Deserialize)]
struct Body {
    notification: Box<RawValue>,
}

#[derive(Deserialize)]
struct Told {
    pushkey: String,
}

/// POST /_matrix/push/v1/notify
///
/// `rejected` names the pushkeys that can never be asked here (no URLs, no HTTPS, a private address), and those whose
/// endpoint answers 404 or 410. 400 `M_BAD_JSON` for what is no notification; 413 `M_TOO_LARGE` for more than two
/// devices; 429 `M_LIMIT_EXCEEDED` over the rate, and while others are served, or another request of the same network;
/// 502 `M_UNKNOWN` when an endpoint took nothing, so that the homeserver tries again.
async fn notify(gateway: Arc<Gateway>, mut request: Request) -> Result<Response, Error> {
    request.limit(&rates::GATEWAY)?;
    let body: Body = request.json_max(BODY_BYTES_MAX).await?;
    let notification = body.notification.get();
    let devices: Option<Vec<Told>> = partial::member(notification.as_bytes(), "devices");
    let devices =
        devices.ok_or_else(|| ErrorResponse::bad("M_BAD_JSON", "notification.devices is missing or wrong"))?;
    if devices.len() > DEVICES_MAX {
        return Err(ErrorResponse::too_large(format!("Only {DEVICES_MAX} devices are told at once")).into());
    }
    let _turn = gateway.turn(request.peer().ip).ok_or_else(|| ErrorResponse::limit_exceeded(1_000))?;
    let message = forwarded(notification);
    debug_assert!(message.len() <= ENDPOINT_BYTES_MAX, "a message is cut to what endpoints take");
    let sending = async {
        let (mut rejected, mut failed) = (Vec::new(), None);
        for Told { pushkey } in devices {
            match unified_push::send(gateway.remote.web(), &pushkey, message.clone(), false).await {
                // Another time it would be no better.
                Ok(Sent::Taken | Sent::Unfit { .. }) => {}
                Ok(Sent::Rejected) | Err(WebFailed::Forbidden(_)) => rejected.push(pushkey),
                Ok(Sent::Failed { status, .. }) => failed = Some(format!("answers with status {status}")),
                Err(why) => failed = Some(why.to_string()),
            }
        }
        (rejected, failed)
    };
    match gateway.clock.timeout(TIME_MAX, sending).await {
        Some((rejected, None)) => Ok(Response::json(&json!({ "rejected": rejected }))),
        Some((rejected, Some(_))) if !rejected.is_empty() => Ok(Response::json(&json!({ "rejected": rejected }))),
        Some((_, Some(why))) => Err(bad_gateway(format!("The endpoint {why}")).into()),
        None => Err(bad_gateway("The endpoints do not answer in time".to_owned()).into()),
    }
}

fn bad_gateway(why: String) -> ErrorResponse {
    ErrorResponse::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", why)
}
