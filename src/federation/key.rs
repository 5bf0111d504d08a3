//! Signing keys: ours, and as a notary those of others.
//!
//! `GET /_matrix/key/v2/server`, `GET /_matrix/key/v2/query/{server}`, `POST /_matrix/key/v2/query`. Not signed requests: anyone may
//! ask, also before they know us.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ruma::OwnedServerName;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Federation, auth, lookup::Missed};
use crate::{
    base,
    http::{ErrorResponse, Request, Response},
    matrix::sign,
};

/// Long enough that nobody asks daily, short enough that a stolen key is soon worthless. The specification allows seven days.
const VALID_MS: u64 = 24 * 3_600_000;
/// Servers in one question to us as a notary.
const SERVERS_MAX: usize = 256;
/// Of those, how many we ask on the asker's behalf; the others are answered from what we have.
const FRESH_MAX: usize = 16;
/// …and how long that takes at most.
const FRESH_TIME_MAX: Duration = Duration::from_secs(8);

pub async fn server(federation: Arc<Federation>, _: Request) -> Result<Response, ErrorResponse> {
    Ok(Response::json(&own(&federation)?))
}

/// What this server says about its own keys.
fn own(federation: &Federation) -> Result<Map<String, Value>, ErrorResponse> {
    let old: Map<String, Value> = federation
        .old_keys
        .iter()
        .map(|old| (old.id.clone(), json!({ "key": old.public.to_base64(), "expired_ts": old.expired_ms })))
        .collect();
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
    request.limit(crate::http::Limit::Ask)?;
    let valid_at = request.query_as::<u64>("minimum_valid_until_ts")?.unwrap_or(0);
    answer(&federation, request.peer().ip, vec![(server, valid_at)]).await
}

pub async fn query(federation: Arc<Federation>, mut request: Request) -> Result<Response, ErrorResponse> {
    #[derive(Deserialize)]
    struct Asked {
        server_keys: BTreeMap<OwnedServerName, BTreeMap<String, Criteria>>,
    }
    request.limit(crate::http::Limit::Ask)?;
    let asked: Asked = request.json().await?;
    if asked.server_keys.len() > SERVERS_MAX {
        return Err(ErrorResponse::bad("M_TOO_LARGE", format!("At most {SERVERS_MAX} servers at once")));
    }
    let wanted = asked.server_keys.into_iter().map(|(server, keys)| {
        let valid_at = keys.values().filter_map(|criteria| criteria.minimum_valid_until_ts).max();
        (server, valid_at.unwrap_or(0))
    });
    answer(&federation, request.peer().ip, wanted.collect()).await
}

/// What each server said of itself, countersigned. One answer is at most 32 KiB, and they are streamed one at a time.
async fn answer(
    federation: &Arc<Federation>,
    caller: IpAddr,
    wanted: Vec<(OwnedServerName, u64)>,
) -> Result<Response, ErrorResponse> {
    // What was not asked in time is answered from what is known; whoever asks has other notaries.
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

/// Asks servers for their keys that nobody has asked lately, as far as there are turns. Anybody makes us do this.
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

/// A server's own words with our signature beside its own, as text: nothing in it may change by being parsed.
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
    match &federation.well_known_server {
        Some(server) => Ok(Response::json(&json!({ "m.server": server }))),
        None => Err(ErrorResponse::not_found("This server does not delegate")),
    }
}

/// `GET /_matrix/federation/v1/version`
pub async fn version(_: Arc<Federation>, _: Request) -> Result<Response, ErrorResponse> {
    Ok(Response::json(&json!({ "server": { "name": "Snug", "version": env!("CARGO_PKG_VERSION") } })))
}
