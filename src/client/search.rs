//! `POST /search`: full-text search in the rooms of a user (client-server API, "Server Side Search").

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::room::timeline::{reader, stream};
use super::{Client, Error, auth, rates};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::{Batch, Context, Events, RESULTS_MAX, SearchKey, SearchQuery};

/// Results when the filter has no limit.
const RESULTS: usize = 10;
/// Events on either side of a result.
const AROUND: usize = 5;
const AROUND_MAX: usize = 50;

#[derive(Deserialize)]
struct Body {
    search_categories: Categories,
}

#[derive(Deserialize)]
struct Categories {
    room_events: Option<RoomEvents>,
}

#[derive(Deserialize)]
struct RoomEvents {
    search_term: String,
    keys: Option<Vec<String>>,
    filter: Option<Box<RawValue>>,
    order_by: Option<String>,
    event_context: Option<EventContext>,
    #[serde(default)]
    include_state: bool,
    #[serde(default)]
    groupings: Groupings,
}

#[derive(Deserialize)]
struct EventContext {
    before_limit: Option<usize>,
    after_limit: Option<usize>,
    #[serde(default)]
    include_profile: bool,
}

#[derive(Default, Deserialize)]
struct Groupings {
    #[serde(default)]
    group_by: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    key: String,
}

/// 400 `M_BAD_JSON` without `room_events`; 400 `M_INVALID_PARAM` for an unknown order or group, a filter that is none, or a
/// token that is not one of this server; 400 `M_UNKNOWN` when the search is switched off.
pub async fn search(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::SEARCH, requester.user_id.as_str())?;
    let body: Body = request.json().await?;
    let batch = match request.query("next_batch").filter(|text| !text.is_empty()) {
        Some(text) => Some(
            Batch::parse(&text)
                .ok_or_else(|| ErrorResponse::invalid_param("next_batch is not a token of a search on this server"))?,
        ),
        None => None,
    };
    let query = query(body, batch)?;
    let found = client.rooms.search(&reader(requester), query).await?;
    stream(&client, found).await
}

fn query(body: Body, batch: Option<Batch>) -> Result<SearchQuery, ErrorResponse> {
    let wrong = |message: &str| ErrorResponse::invalid_param(message);
    let asked = body
        .search_categories
        .room_events
        .ok_or_else(|| ErrorResponse::bad("M_BAD_JSON", "search_categories has no room_events"))?;
    let filter = match &asked.filter {
        Some(filter) => {
            Events::parse(filter.get().as_bytes()).ok_or_else(|| wrong("filter is not a filter of events"))?
        }
        None => Events::default(),
    };
    let by_rank = match asked.order_by.as_deref() {
        None | Some("rank") => true,
        Some("recent") => false,
        Some(_) => return Err(wrong("order_by must be \"rank\" or \"recent\"")),
    };
    let (mut by_room, mut by_sender) = (false, false);
    for group in &asked.groupings.group_by {
        match group.key.as_str() {
            "room_id" => by_room = true,
            "sender" => by_sender = true,
            _ => return Err(wrong("the key of a group must be \"room_id\" or \"sender\"")),
        }
    }
    let keys = match &asked.keys {
        Some(keys) => keys.iter().filter_map(|key| SearchKey::of(key)).take(SearchKey::ALL.len()).collect(),
        None => SearchKey::ALL.to_vec(),
    };
    let around = |limit: Option<usize>| limit.unwrap_or(AROUND).min(AROUND_MAX);
    let context = asked.event_context.map(|context| Context {
        before: around(context.before_limit),
        after: around(context.after_limit),
        profiles: context.include_profile,
    });
    Ok(SearchQuery {
        term: asked.search_term,
        keys,
        limit: filter.limit(RESULTS, RESULTS_MAX),
        filter,
        by_rank,
        context,
        include_state: asked.include_state,
        by_room,
        by_sender,
        batch,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn requests_as_apps_send_them() {
        let parse = |text: Value| {
            let body = serde_json::from_value(json!({ "search_categories": { "room_events": text } })).unwrap();
            query(body, None)
        };
        let element = json!({ "search_term": "hi", "filter": { "limit": 1_000, "rooms": ["!a:b"] }, "order_by": "recent",
            "event_context": { "before_limit": 1, "after_limit": 100, "include_profile": true } });
        let found = parse(element).unwrap();
        assert_eq!((found.limit, found.by_rank, found.keys.len()), (RESULTS_MAX, false, 3));
        let context = found.context.unwrap();
        assert_eq!((context.before, context.after, context.profiles), (1, AROUND_MAX, true));
        let found = parse(json!({ "search_term": "hi", "keys": ["content.name", "content.x"], "groupings":
            { "group_by": [{ "key": "sender" }] } }));
        let found = found.unwrap();
        assert_eq!((found.limit, found.by_rank, found.keys), (RESULTS, true, vec![SearchKey::Name]));
        assert!(found.by_sender && !found.by_room && !found.include_state);
        for wrong in [
            json!({ "search_term": "hi", "order_by": "age" }),
            json!({ "search_term": "hi", "groupings": { "group_by": [{ "key": "type" }] } }),
            json!({ "search_term": "hi", "filter": { "rooms": ["no room"] } }),
        ] {
            assert_eq!(parse(wrong).err().unwrap().errcode, "M_INVALID_PARAM");
        }
        let body = serde_json::from_value(json!({ "search_categories": {} })).unwrap();
        assert_eq!(query(body, None).err().unwrap().errcode, "M_BAD_JSON");
    }
}
