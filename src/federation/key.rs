//! Signing keys: our own, and as a notary those of other servers.
//!
//! `GET /_matrix/key/v2/server`, `GET /_matrix/key/v2/query/{server}`, `POST /_matrix/key/v2/query`. Not signed
//! requests: any server may ask, also before it knows us.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ruma::OwnedServerName;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Federation, auth, lookup::Missed, rates};
use crate::base::gathered;
use crate::{
    base,
    http::{ErrorResponse, Request, Response},
    matrix::sign,
};

/// Long enough to make daily requests unnecessary, short enough to make a stolen key worthless soon. The specification
/// allows seven days.
const VALID_MS: u64 = 24 * 3_600_000;
/// Servers in one notary query to us.
const SERVERS_MAX: usize = 256;
/// Of those, how many we ask for the requesting server; the others are answered from the store.
const FRESH_MAX: usize = 16;
/// …and the time limit for asking them.
const FRESH_TIME_MAX: Duration = Duration::from_secs(8);

pub async fn server(federation: Arc<Federation>, _: Request) -> Result<Response, ErrorResponse> {
    Ok(Response::json(&own(&federation)?))
}

/// This server's answer about its own keys.
fn own(federation: &Federation) -> Result<Map<String, Value>, ErrorResponse> {
    let old: Map<String, Value> = gathered(
        federation
            .old_keys
            .iter()
            .map(|old| (old.id.clone(), json!({ "key": old.public.to_base64(), "expired_ts": old.expired_ms }))),
    );
    // It would be valid until a day that others have behind them, and they keep what they are told.
    if !federation.clock.is_plausible() {
        let message = "The clock of this server has not been set yet";
        return Err(ErrorResponse::new(crate::http::StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", message));
    }
    let mut said = Map::new();
    said.insert("server_name".into(), federation.server_name.as_str().into());
    said.insert("valid_until_ts".into(), (federation.clock.now_ms() + VALID_MS).into());
    said.insert("verify_keys".into(), json!({ federation.key.id(): { "key": federation.key.public().to_base64() } }));
    said.insert("old_verify_keys".into(), old.into());
    sign::sign_json(&mut said, &federation.server_name, &federation.key).map_err(ErrorResponse::internal)?;
    Ok(said)
}

#[derive(Deserialize, Default)]
struct Criteria {
    minimum_valid_until_ts: Option<u64>,
}

pub async fn query_one(federation: Arc<Federation>, request: Request) -> Result<Response, ErrorResponse> {
    let server: OwnedServerName = request.param_as("server")?;
    request.limit(&rates::NOTARY)?;
    let valid_at = request.query_as::<u64>("minimum_valid_until_ts")?.unwrap_or(0);
    answer(&federation, request.peer().ip, vec![(server, valid_at)]).await
}

pub async fn query(federation: Arc<Federation>, mut request: Request) -> Result<Response, ErrorResponse> {
    #[derive(Deserialize)]
    struct Asked {
        server_keys: BTreeMap<OwnedServerName, BTreeMap<String, Criteria>>,
    }
    request.limit(&rates::NOTARY)?;
    let asked: Asked = request.json().await?;
    if asked.server_keys.len() > SERVERS_MAX {
        return Err(ErrorResponse::bad("M_TOO_LARGE", format!("A request may name {SERVERS_MAX} servers at most")));
    }
    let wanted = asked.server_keys.into_iter().map(|(server, keys)| {
        let valid_at = keys.values().filter_map(|criteria| criteria.minimum_valid_until_ts).max();
        (server, valid_at.unwrap_or(0))
    });
    answer(&federation, request.peer().ip, wanted.collect()).await
}

/// Each server's own answer, countersigned. One answer is at most 32 KiB, and they are streamed one at a time.
async fn answer(
    federation: &Arc<Federation>,
    caller: IpAddr,
    wanted: Vec<(OwnedServerName, u64)>,
) -> Result<Response, ErrorResponse> {
    // Servers that did not answer in time are answered from the store; the requesting server has other notaries.
    let asking = federation.clock.timeout(FRESH_TIME_MAX, refresh(federation, caller, &wanted)).await;
    asking.unwrap_or(Ok(()))?;
    let federation_too = federation.clone();
    let mut grant = federation.answers.take(64 * 1024).await?;
    let answers = base::blocking(move || {
        let mut answers = Vec::new();
        for (server, _) in wanted {
            if let Some(answer) = countersigned(&federation_too, &server)? {
                grant.grow(answer.len() as u64)?;
                answers.push(answer);
            }
        }
        Ok::<_, ErrorResponse>((answers, grant))
    });
    let (answers, grant) = answers.await?;
    let body = format!("{{\"server_keys\":[{}]}}", answers.join(","));
    Ok(Response::charged(crate::http::StatusCode::OK, "application/json", body.into_bytes(), grant))
}

/// Asks servers for keys that have not been asked for lately, as far as there are turns. Any caller can make us do
/// this.
async fn refresh(
    federation: &Federation,
    caller: IpAddr,
    wanted: &[(OwnedServerName, u64)],
) -> Result<(), ErrorResponse> {
    let keys = federation.remote.keys();
    for (server, valid_at) in wanted.iter().take(FRESH_MAX).filter(|(server, _)| !federation.remote.is_me(server)) {
        let standing = auth::standing(federation, server).await?;
        let asking = keys.refresh(server, *valid_at);
        match federation.lookups.run(standing, caller, server, Duration::ZERO, asking).await {
            Ok(asked) => asked.map_err(ErrorResponse::internal)?,
            Err(Missed::NoTurn) => return Ok(()),
            Err(Missed::Silent) => keys.give_up(server),
        }
    }
    Ok(())
}

/// A server's own answer with our signature beside its own, as text: parsing it must not change any of it.
fn countersigned(federation: &Federation, server: &OwnedServerName) -> Result<Option<String>, ErrorResponse> {
    if federation.remote.is_me(server) {
        return Ok(Some(Value::Object(own(federation)?).to_string()));
    }
    let Some((_, raw)) = federation.remote.keys().answer_of(server).map_err(ErrorResponse::internal)? else {
        return Ok(None);
    };
    let Ok(Value::Object(mut said)) = serde_json::from_slice(&raw) else { return Ok(None) };
    sign::sign_json(&mut said, &federation.server_name, &federation.key).map_err(ErrorResponse::internal)?;
    Ok(Some(Value::Object(said).to_string()))
}

/// `GET /.well-known/matrix/server`, for a server that is reached at its own name.
pub async fn well_known(federation: Arc<Federation>, _: Request) -> Result<Response, ErrorResponse> {
    match &*federation.well_known_server.get() {
        Some(server) => Ok(Response::json(&json!({ "m.server": server }))),
        None => Err(ErrorResponse::not_found("This server publishes no delegation (federation.name)")),
    }
}

/// `GET /_matrix/federation/v1/version`
pub async fn version(_: Arc<Federation>, _: Request) -> Result<Response, ErrorResponse> {
    Ok(Response::json(&json!({ "server": { "name": "Snug", "version": env!("CARGO_PKG_VERSION") } })))
}
