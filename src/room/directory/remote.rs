//! Aliases and public rooms of other servers.

use http::Method;
use ruma::{OwnedRoomId, OwnedServerName, RoomAliasId, ServerName};
use serde_json::{Map, Value};

use crate::budget::Grant;
use crate::matrix::Reject;
use crate::remote::{Failed, Options, encode};
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::handshake::asking;

/// Servers of a remote alias that are remembered for the join.
const ALIAS_SERVERS_MAX: usize = 20;

impl Rooms {
    /// The room an alias of another server leads to, and the servers in that room.
    pub async fn resolve_remote_alias(&self, alias: &RoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
        #[derive(serde::Deserialize)]
        struct Found {
            room_id: OwnedRoomId,
            #[serde(default)]
            servers: Vec<String>,
        }
        let target = format!("/_matrix/federation/v1/query/directory?room_alias={}", encode(alias.as_str()));
        let answer = self.0.parts.remote.request(alias.server_name(), Method::GET, &target, None, asking()).await;
        let (found, _paid) = not_found(answer)?.json::<Found>()?;
        let servers = found.servers.into_iter().filter_map(|name| OwnedServerName::try_from(name).ok());
        let mut servers: Vec<_> = servers.take(ALIAS_SERVERS_MAX).collect();
        if servers.is_empty() {
            servers.push(alias.server_name().to_owned());
        }
        Ok((found.room_id, servers))
    }

    /// A page of another server's public rooms as that server answers it: one JSON object, with the grant that pays for
    /// it. `asked` is the body of the `POST`.
    pub async fn remote_public_rooms(
        &self,
        server: &ServerName,
        asked: &Map<String, Value>,
    ) -> Result<(Vec<u8>, Grant)> {
        let body = serde_json::to_vec(asked).map_err(|error| Reject::json(error.to_string()))?;
        let target = "/_matrix/federation/v1/publicRooms";
        let options = Options { max_bytes: 512 * 1024, ..asking() };
        let answer = self.0.parts.remote.request(server, Method::POST, target, Some(body), options).await?;
        let (body, grant) = answer.into_parts();
        match serde_json::from_slice::<serde::de::IgnoredAny>(&body) {
            Ok(_) if body.trim_ascii_start().starts_with(b"{") => Ok((body, grant)),
            _ => Err(Error::Remote(Failed::BadAnswer("the list of rooms is not a JSON object".to_owned()))),
        }
    }
}

/// A remote 404 becomes our own `NotFound`.
fn not_found<T>(answer: Result<T, Failed>) -> Result<T> {
    answer.map_err(|failed| match failed.status() {
        Some(404) => Error::NotFound,
        _ => Error::Remote(failed),
    })
}
