//! Servers: with whom we federate, how they do, and which rooms they have to offer.

use askama::Template;
use ruma::{OwnedServerName, ServerName};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::frame::{Form, Frame, LIST_ROWS, NAME_CHARS_MAX, Pages, Visit, sentence};
use super::people::{ago, encoded};
use super::rooms;
use crate::admin::servers::deny;
use crate::admin::{Admin, error::Error};
use crate::base::{bounded, gathered, span};
use crate::http::{ErrorResponse, Response};
use crate::matrix::json::partial;
use crate::remote::{By, Named, Standing, Step, Verdict};
use crate::room::PublicQuery;

/// A longer text to find is cut.
const FIND_CHARS_MAX: usize = 100;
/// Servers that wait for something, on the first page.
const BEHIND_SHOWN: usize = 8;
/// Denied servers on the first page, 3 KiB of the longest names each in a path and a text: the setting shows them all.
const DENIED_SHOWN: usize = 5;
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

impl How {
    /// Of a server with which there are no dealings.
    fn denied(named: &Named) -> How {
        let about = match named.by {
            By::Owner if named.rule == named.name => "nothing is exchanged with it".to_owned(),
            By::Owner => format!("nothing is exchanged with it, as {}", bounded(&named.rule, 255)),
            By::List => format!("nothing is exchanged with it: {}", bounded(named.sentence(), 255)),
        };
        How { about: Some(about), badge: "denied", class: "wrong" }
    }
}

/// How these servers do, in their order.
async fn hows(admin: &Admin, servers: Vec<OwnedServerName>) -> Result<Vec<How>, Error> {
    let now_ms = admin.clock.now_ms();
    let mut denied = Vec::with_capacity(servers.len());
    for server in &servers {
        denied.push(admin.remote.barred().named(server).await);
    }
    let behind = admin.sender.behind_since(servers.clone()).await.map_err(ErrorResponse::internal)?;
    let standings = admin.remote.backoff().standings(servers).await.map_err(ErrorResponse::internal)?;
    let hows = standings.into_iter().zip(behind).map(|(standing, behind)| how(standing, behind, now_ms));
    Ok(hows.zip(denied).map(|(how, denied)| denied.as_ref().map_or(how, How::denied)).collect())
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
    denied: Vec<Denied>,
    more_denied: usize,
}

/// A name or pattern of denied servers.
struct Denied {
    name: String,
    /// Of its page, where it is one server.
    path: Option<String>,
    about: &'static str,
}

impl Denied {
    fn new(name: &str) -> Denied {
        let about = match (name.strip_prefix('!'), name.contains(['*', '?'])) {
            (Some(_), _) => "let in whatever else is denied",
            (None, true) => "every server that fits",
            (None, false) => "nothing is exchanged with it",
        };
        let path = OwnedServerName::try_from(name).ok().map(|server| path(server.as_str()));
        Denied { name: bounded(name, 255), path, about }
    }
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
    let denied = admin.remote.barred().denied();
    let page = Page {
        denied: denied.iter().take(DENIED_SHOWN).map(|name| Denied::new(name)).collect(),
        more_denied: denied.len().saturating_sub(DENIED_SHOWN),
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
    denied: Option<Barrier>,
}

/// Why there are no dealings with a server.
enum Barrier {
    /// It is named itself in the setting: a button lets it in again.
    Named,
    /// By a pattern of the setting.
    Pattern(String),
    /// By a policy list.
    List(String),
}

impl Barrier {
    fn new(named: &Named) -> Barrier {
        match named.by {
            By::Owner if named.rule == named.name => Barrier::Named,
            By::Owner => Barrier::Pattern(bounded(&named.rule, 255)),
            By::List => Barrier::List(sentence(&named.sentence())),
        }
    }
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
        denied: admin.remote.barred().named(server).await.as_ref().map(Barrier::new),
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

/// `POST servers/of/{server}`: tries a server now, denies it or lets it in again, or examines the way to it, which may take a
/// minute, by the field `what`.
pub async fn change(visit: Visit, form: Form) -> Result<Response, Error> {
    let server = server_called(visit.request.param("server"))?;
    let remote = &visit.admin.remote;
    match form.text("what").as_str() {
        "try-now" => {
            remote.backoff().try_now(&server);
            tracing::info!("{} on the page: try {server} now", visit.user_id);
            Ok(visit.done(&path(server.as_str()), "try-now"))
        }
        what @ ("deny-server" | "let-server") => {
            deny(&visit.admin, &server, what == "deny-server").await?;
            tracing::info!("{} on the page: {what} {server}", visit.user_id);
            Ok(visit.done(&path(server.as_str()), what))
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
    /// Servers in rooms with us, while none is asked: the name, and of how many rooms.
    near: Vec<(String, String)>,
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
        near: Vec::new(),
    };
    if server.is_empty() {
        let near = visit.admin.rooms.neighbours("", None, LIST_ROWS).await?;
        page.near = near.into_iter().map(|near| (near.server, rooms::many(near.rooms, "room"))).collect();
    } else {
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
        let rows = page.chunk.iter().enumerate();
        let rows = rows.filter_map(|(at, room)| offered_row(at, room.get().as_bytes())).collect();
        return Ok((rows, page.next_batch));
    }
    let mut asked = gathered::<_, Map<_, _>>([("limit".to_owned(), Value::from(OFFERED_ROWS))]);
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
    let (mut rows, mut next) = (Vec::new(), None);
    let read = partial::each_member(answer, &mut |key, value| {
        match key {
            "chunk" => {
                let mut list = serde_json::Deserializer::from_str(value.get());
                let rooms = partial::first::<OFFERED_ROWS, _, &RawValue>(&mut list).unwrap_or_default();
                let rooms = rooms.into_iter().map(|room| room.get().as_bytes());
                rows = rooms.enumerate().filter_map(|(at, room)| offered_row(at, room)).collect();
            }
            "next_batch" => next = serde_json::from_str::<String>(value.get()).ok(),
            _ => {}
        }
        Ok::<_, serde_json::Error>(())
    });
    drop(read);
    (rows, next.filter(|next| next.len() <= TOKEN_BYTES_MAX))
}

/// None for what is no object.
fn offered_row(at: usize, room: &[u8]) -> Option<OfferedRow> {
    let [mut name, mut alias, mut room_id, mut topic] = <[String; 4]>::default();
    let mut members = 0;
    partial::each_member(room, &mut |key, value| {
        // Another server's text, in whatever way it writes letters.
        let text =
            |most| serde_json::from_str::<String>(value.get()).map(|text| bounded(text, most)).unwrap_or_default();
        match key {
            "name" => name = text(NAME_CHARS_MAX),
            "topic" => topic = text(TOPIC_CHARS_MAX),
            "canonical_alias" => alias = text(255),
            "room_id" => room_id = text(255),
            "num_joined_members" => members = value.get().parse::<u64>().unwrap_or(0),
            _ => {}
        }
        Ok::<_, serde_json::Error>(())
    })
    .ok()?;
    let address = if alias.is_empty() { room_id } else { alias };
    let name = Some(name).filter(|name| !name.trim().is_empty());
    let name = name.unwrap_or_else(|| bounded(&address, NAME_CHARS_MAX));
    Some(OfferedRow {
        id: format!("room{at}"),
        letter: name.trim_start_matches(['#', '!', ' ']).chars().next().unwrap_or('#').to_string(),
        name,
        topic,
        members: rooms::many(members, "member"),
        address,
    })
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
        let apart = format!(
            "\n {{ \"total_room_count_estimate\" : 1 ,\n\t\"chunk\" : [ {} ] , \"next_batch\" : \"n\" }}\n",
            room.replace(':', " : ")
        );
        let (rows, next) = rows_of(apart.as_bytes());
        assert_eq!((rows.len(), next.as_deref(), rows[0].members.as_str()), (1, Some("n"), "1,200 members"));
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
