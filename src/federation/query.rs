//! Look-ups by name in this server: profiles, aliases, the list of public rooms.

use std::sync::Arc;

use ruma::{OwnedRoomAliasId, OwnedUserId};
use serde::Deserialize;
use serde_json::json;

use super::{Error, Federation, auth};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::room::{PUBLIC_PAGE_BYTES, PublicQuery};

/// `GET /query/profile?user_id=&field=`
pub async fn profile(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    auth::origin(&federation, &mut request).await?;
    let user: OwnedUserId = request.query_as("user_id")?.ok_or_else(|| ErrorResponse::missing_param("user_id"))?;
    if user.server_name() != federation.server_name {
        return Err(ErrorResponse::invalid_param("The user belongs to another server").into());
    }
    let mut profile = federation.users.local_profile(&user).await?;
    if let Some(field) = request.query("field") {
        profile.retain(|name, _| *name == field);
    }
    Ok(Response::json(&profile))
}

/// `GET /query/directory?room_alias=`
pub async fn directory(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    auth::origin(&federation, &mut request).await?;
    let alias: OwnedRoomAliasId =
        request.query_as("room_alias")?.ok_or_else(|| ErrorResponse::missing_param("room_alias"))?;
    let found = federation.rooms.resolve_here(&alias).await?;
    Ok(Response::json(&json!({ "room_id": found.room_id, "servers": found.servers })))
}

/// `GET /query/{queryType}` for anything else.
pub async fn unknown(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    auth::origin(&federation, &mut request).await?;
    Err(ErrorResponse::not_found("This server does not know this type of query").into())
}

/// `GET /publicRooms`
pub async fn public_rooms(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    auth::origin(&federation, &mut request).await?;
    let query =
        PublicQuery { limit: request.query_as("limit")?, since: request.query("since"), ..PublicQuery::default() };
    page(&federation, query).await
}

/// `POST /publicRooms`
pub async fn search_public_rooms(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    #[derive(Deserialize, Default)]
    struct Filter {
        generic_search_term: Option<String>,
        room_types: Option<Vec<Option<String>>>,
    }
    #[derive(Deserialize)]
    struct Asked {
        limit: Option<usize>,
        since: Option<String>,
        filter: Option<Filter>,
        #[serde(default)]
        include_all_networks: bool,
        third_party_instance_id: Option<String>,
    }
    let (_, asked) = auth::origin_and_json::<Asked>(&federation, &mut request).await?;
    let filter = asked.filter.unwrap_or_default();
    let query = PublicQuery {
        limit: asked.limit,
        since: asked.since,
        search: filter.generic_search_term,
        room_types: filter.room_types,
        network: asked.third_party_instance_id,
        all_networks: asked.include_all_networks,
    };
    page(&federation, query).await
}

async fn page(federation: &Federation, query: PublicQuery) -> Result<Response, Error> {
    let grant = federation.answers.take(PUBLIC_PAGE_BYTES).await?;
    let (page, grant) = federation.rooms.public_rooms(query).await?.into_json(grant);
    Ok(Response::charged(StatusCode::OK, "application/json", page, grant))
}
