//! Servers: with whom we federate, how they do, and which rooms they have to offer.

use askama::Template;
use ruma::{OwnedServerName, ServerName};
use serde_json::{Map, Value, json};

use super::frame::{Form, Frame, LIST_ROWS, NAME_CHARS_MAX, Pages, Visit, sentence};
use super::people::{ago, encoded};
use super::rooms;
use crate::admin::{Admin, error::Error};
use crate::base::{bounded, span};
use crate::http::{ErrorResponse, Response};
use crate::matrix::json::read;
use crate::remote::{Standing, Step, Verdict};
use crate::room::PublicQuery;

/// A longer text to find is cut.
const FIND_CHARS_MAX: usize = 100;
/// Servers that wait for something, on the first page.
const BEHIND_SHOWN: usize = 8;
/// Shared rooms on the page of a server.
const ROOMS_SHOWN: usize = 20;
/// Findings of an examination: each of a few hundred letters.
const STEPS_SHOWN: usize = 30;
/// Rooms of a directory on a page, and what is shown of each: 15 of five texts with five bytes for a letter are 40 KiB.
const OFFERED_ROWS: usize = 15;
const TOPIC_CHARS_MAX: usize = 160;
/// A longer token for the next page is none.
const TOKEN_BYTES_MAX: usize = 500;

pub fn routes(pages: &mut Pages<'_>) {
    pages
        .show("servers/", show)
        .show("servers/find", find)
        .show("servers/of/{server}", one)
        .act("servers/of/{server}", change)
        .show("servers/rooms", offered);
}

fn path(server: &str) -> String {
    format!("servers/of/{}", encoded(server))
}

/// A server, and how it does.
struct Row {
    path: String,
    name: String,
    about: String,
    badge: &'static str,
    class: &'static str,
}

impl Row {
    fn new(name: &str, about: Vec<String>, how: &How) -> Row {
        Row {
            path: path(name),
            about: about.into_iter().chain(how.about.clone()).collect::<Vec<_>>().join(" · "),
            badge: how.badge,
            class: how.class,
            name: bounded(name, 255),
        }
    }
}

/// How a server does, in words.
struct How {
    about: Option<String>,
    badge: &'static str,
    class: &'static str,
}

fn how(standing: Standing, behind_since_ms: Option<u64>, now_ms: u64) -> How {
    let waits = behind_since_ms.map(|since_ms| format!("waits for messages since {}", ago(since_ms, now_ms)));
    match standing.failures {
        0 if waits.is_none() => How { about: None, badge: "well", class: "" },
        0 => How { about: waits, badge: "under way", class: "" },
        failures => {
            let next = match standing.retry_at_ms > now_ms {
                true => format!("tried again in {}", span(standing.retry_at_ms - now_ms)),
                false => "tried again with the next message".to_owned(),
            };
            let failed = format!("failed {} in a row; {next}", rooms::many(failures.into(), "time"));
            let about = waits.map_or(failed.clone(), |waits| format!("{waits} · {failed}"));
            let class = if failures < 3 { "look" } else { "wrong" };
            How { about: Some(about), badge: "not reached", class }
        }
    }
}

/// How these servers do, in their order.
async fn hows(admin: &Admin, servers: Vec<OwnedServerName>) -> Result<Vec<How>, Error> {
    let now_ms = admin.clock.now_ms();
    let behind = admin.sender.behind_since(servers.clone()).await.map_err(ErrorResponse::internal)?;
    let standings = admin.remote.backoff().standings(servers).await.map_err(ErrorResponse::internal)?;
    Ok(standings.into_iter().zip(behind).map(|(standing, behind)| how(standing, behind, now_ms)).collect())
}

#[derive(Template)]
#[template(path = "servers.html")]
struct Page {
    frame: Frame,
    is_enabled: bool,
    /// Since when the Internet is gone.
    gone: Option<String>,
    lagging: u64,
    behind: Vec<Row>,
    more_behind: Option<String>,
    find: String,
    found: String,
    rows: Vec<Row>,
    next: Option<String>,
    is_first: bool,
}

/// `GET servers/?find=text&after=name&behind=name`
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let admin = &visit.admin;
    let find: String = visit.request.query("find").unwrap_or_default().trim().chars().take(FIND_CHARS_MAX).collect();
    let after = visit.request.query_as::<OwnedServerName>("after")?;
    let behind_after = visit.request.query_as::<OwnedServerName>("behind")?;
    let is_first = after.is_none() && behind_after.is_none();

    let behind = admin.sender.behind(behind_after, BEHIND_SHOWN).await.map_err(ErrorResponse::internal)?;
    let names: Vec<_> = behind.into_iter().map(|(name, _)| name).collect();
    let more_behind = (names.len() == BEHIND_SHOWN).then(|| names.last().map(|name| encoded(name.as_str()))).flatten();
    let states = hows(admin, names.clone()).await?;
    let behind = names.iter().zip(&states).map(|(name, how)| Row::new(name.as_str(), Vec::new(), how)).collect();

    let neighbours = admin.rooms.neighbours(&find, after.map(String::from), LIST_ROWS).await?;
    let next = (neighbours.len() == LIST_ROWS).then(|| neighbours.last().map(|last| encoded(&last.server))).flatten();
    let neighbours: Vec<_> = neighbours
        .into_iter()
        .filter_map(|near| Some((OwnedServerName::try_from(near.server).ok()?, near.rooms)))
        .collect();
    let states = hows(admin, neighbours.iter().map(|(name, _)| name.clone()).collect()).await?;
    let rows = neighbours
        .iter()
        .zip(&states)
        .map(|((name, rooms), how)| Row::new(name.as_str(), vec![format!("in {}", rooms::many(*rooms, "room"))], how))
        .collect();
    let now_ms = admin.clock.now_ms();
    let page = Page {
        frame: visit.frame("servers", "Servers"),
        is_enabled: admin.remote.is_enabled(),
        gone: admin.remote.backoff().reached().gone_since_ms.map(|since_ms| ago(since_ms, now_ms)),
        lagging: admin.sender.lagging(),
        behind,
        more_behind,
        found: encoded(&find),
        find,
        rows,
        next,
        is_first,
    };
    visit.page(&page).await
}

/// `GET servers/find?server=name`: leads to the page of a server.
pub async fn find(visit: Visit) -> Result<Response, Error> {
    let server = server_called(visit.request.query("server").unwrap_or_default().trim())?;
    Ok(visit.go(&path(server.as_str())))
}

fn server_called(name: &str) -> Result<OwnedServerName, Error> {
    let wrong =
        || ErrorResponse::invalid_param(format!("{:?} is not a server's name, such as matrix.org", bounded(name, 80)));
    Ok(OwnedServerName::try_from(name.to_lowercase()).map_err(|_| wrong())?)
}

#[derive(Template)]
#[template(path = "server.html")]
struct One {
    frame: Frame,
    path: String,
    name: String,
    how: How,
    is_me: bool,
    is_enabled: bool,
    total: String,
    rooms: Vec<(String, String, String)>,
    more_rooms: u64,
    steps: Vec<Found>,
}

/// A finding of an examination.
struct Found {
    class: &'static str,
    text: String,
}

impl Found {
    fn new(step: Step) -> Found {
        let class = match step.verdict {
            Verdict::Good => "fine",
            Verdict::Note => "",
            Verdict::Bad => "wrong",
        };
        Found { class, text: sentence(&bounded(step.text, 300)) }
    }
}

/// `GET servers/of/{server}`
pub async fn one(visit: Visit) -> Result<Response, Error> {
    let server = server_called(visit.request.param("server"))?;
    page(&visit, &server, Vec::new()).await
}

async fn page(visit: &Visit, server: &ServerName, steps: Vec<Step>) -> Result<Response, Error> {
    let admin = &visit.admin;
    let (shared, total) = admin.rooms.rooms_with(server, ROOMS_SHOWN).await?;
    let how = hows(admin, vec![server.to_owned()]).await?.pop();
    let page = One {
        frame: visit.frame("servers", bounded(server, NAME_CHARS_MAX)),
        path: path(server.as_str()),
        how: how.unwrap_or(How { about: None, badge: "", class: "" }),
        is_me: admin.remote.is_me(server),
        is_enabled: admin.remote.is_enabled(),
        more_rooms: total.saturating_sub(shared.len() as u64),
        total: rooms::many(total, "room"),
        rooms: shared
            .into_iter()
            .map(|room| {
                let name = room.name.unwrap_or_else(|| bounded(&room.room_id, NAME_CHARS_MAX));
                (rooms::path(&room.room_id), name, rooms::many(room.users, "member"))
            })
            .collect(),
        steps: steps.into_iter().take(STEPS_SHOWN).map(Found::new).collect(),
        name: server.to_string(),
    };
    visit.page(&page).await
}

/// `POST servers/of/{server}`: tries a server now, or examines the way to it, which may take a minute, by the field `what`.
pub async fn change(visit: Visit, form: Form) -> Result<Response, Error> {
    let server = server_called(visit.request.param("server"))?;
    let remote = &visit.admin.remote;
    match form.text("what").as_str() {
        "try-now" => {
            remote.backoff().try_now(&server);
            tracing::info!("{} on the page: try {server} now", visit.user_id);
            Ok(visit.done(&path(server.as_str()), "try-now"))
        }
        "examine" => {
            let steps = match remote.is_me(&server) {
                true => remote.examine_myself().await,
                false => remote.examine(&server).await,
            };
            page(&visit, &server, steps).await
        }
        _ => Err(ErrorResponse::invalid_param("this page has no such button").into()),
    }
}

#[derive(Template)]
#[template(path = "offered.html")]
struct Offered {
    frame: Frame,
    server: String,
    find: String,
    found: String,
    /// Why the server did not say.
    trouble: Option<String>,
    rows: Vec<OfferedRow>,
    next: Option<String>,
    is_first: bool,
}

#[derive(Default)]
struct OfferedRow {
    /// For the button that copies.
    id: String,
    letter: String,
    name: String,
    topic: String,
    members: String,
    /// With which one joins: the alias, or the id.
    address: String,
}

/// `GET servers/rooms?server=name&find=text&since=token`: the public rooms of a server, as it answers.
pub async fn offered(visit: Visit) -> Result<Response, Error> {
    let text = |name: &str| -> String {
        visit.request.query(name).unwrap_or_default().trim().chars().take(FIND_CHARS_MAX).collect()
    };
    let (server, find) = (text("server"), text("find"));
    let since = visit.request.query("since").filter(|since| since.len() <= TOKEN_BYTES_MAX && !since.is_empty());
    let mut page = Offered {
        frame: visit.frame("servers", "Find rooms"),
        found: format!("server={}&find={}", encoded(&server), encoded(&find)),
        server: server.clone(),
        find: find.clone(),
        trouble: None,
        rows: Vec::new(),
        next: None,
        is_first: since.is_none(),
    };
    if !server.is_empty() {
        match answered(&visit.admin, &server, &find, since).await {
            Ok((rows, next)) => (page.rows, page.next) = (rows, next.map(|next| encoded(&next))),
            Err(failed) => page.trouble = Some(sentence(&ErrorResponse::from(failed).message)),
        }
    }
    visit.page(&page).await
}

/// A page of a server's rooms, and the token of the next one.
async fn answered(
    admin: &Admin,
    server: &str,
    find: &str,
    since: Option<String>,
) -> Result<(Vec<OfferedRow>, Option<String>), Error> {
    let server = server_called(server)?;
    if admin.remote.is_me(&server) {
        let search = (!find.is_empty()).then(|| find.to_owned());
        let query = PublicQuery { limit: Some(OFFERED_ROWS), since, search, ..PublicQuery::default() };
        let page = admin.rooms.public_rooms(query).await?;
        let rows = page.chunk.iter().enumerate().map(|(at, room)| offered_row(at, room.get().as_bytes())).collect();
        return Ok((rows, page.next_batch));
    }
    let mut asked = Map::from_iter([("limit".to_owned(), Value::from(OFFERED_ROWS))]);
    if !find.is_empty() {
        asked.insert("filter".to_owned(), json!({ "generic_search_term": find }));
    }
    if let Some(since) = since {
        asked.insert("since".to_owned(), since.into());
    }
    let (answer, _paid) = admin.rooms.remote_public_rooms(&server, &asked).await?;
    Ok(rows_of(&answer))
}

/// Read in place: what another server sends is shown up to [`OFFERED_ROWS`], each text cut.
fn rows_of(answer: &[u8]) -> (Vec<OfferedRow>, Option<String>) {
    let chunk = read::get(answer, "chunk").filter(|list| list.first() == Some(&b'[')).unwrap_or(b"[]");
    let rooms = read::items(chunk).filter(|room| room.first() == Some(&b'{')).take(OFFERED_ROWS);
    let rows = rooms.enumerate().map(|(at, room)| offered_row(at, room)).collect();
    let next = read::get_text(answer, "next_batch").filter(|next| next.len() <= TOKEN_BYTES_MAX);
    (rows, next.map(|next| next.into_owned()))
}

fn offered_row(at: usize, room: &[u8]) -> OfferedRow {
    // Another server's text, in whatever way it writes letters.
    let text = |key: &str, most: usize| {
        let text = read::get(room, key).and_then(|value| serde_json::from_slice::<String>(value).ok());
        text.map(|text| bounded(text, most)).unwrap_or_default()
    };
    let members = read::get(room, "num_joined_members").and_then(read::integer).unwrap_or(0).max(0) as u64;
    let (alias, room_id) = (text("canonical_alias", 255), text("room_id", 255));
    let address = if alias.is_empty() { room_id } else { alias };
    let name = Some(text("name", NAME_CHARS_MAX)).filter(|name| !name.trim().is_empty());
    let name = name.unwrap_or_else(|| bounded(&address, NAME_CHARS_MAX));
    OfferedRow {
        id: format!("room{at}"),
        letter: name.trim_start_matches(['#', '!', ' ']).chars().next().unwrap_or('#').to_string(),
        name,
        topic: text("topic", TOPIC_CHARS_MAX),
        members: rooms::many(members, "member"),
        address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_servers_list_is_read_up_to_a_page_whatever_it_is() {
        let room =
            r##"{"name":"Caf\u00e9","num_joined_members":1200,"room_id":"!a:x.org","canonical_alias":"#cafe:x.org"}"##;
        let (rows, next) = rows_of(format!(r#"{{"chunk":[7,{room}],"next_batch":"n"}}"#).as_bytes());
        assert_eq!((rows.len(), next.as_deref()), (1, Some("n")));
        let row = &rows[0];
        assert_eq!(
            (row.name.as_str(), row.members.as_str(), row.address.as_str()),
            ("Café", "1,200 members", "#cafe:x.org")
        );
        let many = format!(r#"{{"chunk":[{}{{}}]}}"#, "{},".repeat(5_000));
        assert_eq!(rows_of(many.as_bytes()).0.len(), OFFERED_ROWS);
        for odd in ["{}", r#"{"chunk":{}}"#, r#"{"chunk":[{"num_joined_members":-5,"name":7}],"next_batch":[]}"#] {
            assert!(rows_of(odd.as_bytes()).1.is_none());
        }
    }

    #[test]
    fn how_a_server_does_is_said_in_words() {
        let standing = |failures, retry_at_ms| Standing { failures, retry_at_ms };
        assert_eq!(how(standing(0, 0), None, 1_000_000).badge, "well");
        assert_eq!(how(standing(0, 0), Some(1_000_000), 1_000_000).badge, "under way");
        let failing = how(standing(4, 1_600_000), Some(0), 1_000_000);
        assert_eq!((failing.badge, failing.class), ("not reached", "wrong"));
        assert!(failing.about.unwrap().ends_with("failed 4 times in a row; tried again in 10 min"));
    }
}
