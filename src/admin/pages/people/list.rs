//! The list of people.

use askama::Template;
use ruma::OwnedUserId;

use super::{Badge, ago, badges, encoded, letter, path};
use crate::admin::error::Error;
use crate::admin::pages::frame::{Frame, LIST_ROWS, NAME_CHARS_MAX, Visit};
use crate::base::bounded;
use crate::http::Response;
use crate::user::{Person, Standing};

/// A longer text to find is cut.
const FIND_CHARS_MAX: usize = 100;

#[derive(Template)]
#[template(path = "people.html")]
struct People {
    frame: Frame,
    find: String,
    /// The same as it stands in a query.
    found: String,
    rows: Vec<Row>,
    /// Whether users of bridges are among them; `None` where there is no bridge, and for a search, which is among all.
    bridges: Option<bool>,
    /// The query of the next page.
    next: Option<String>,
    is_first: bool,
}

struct Row {
    path: String,
    letter: String,
    name: String,
    user_id: String,
    seen: String,
    badges: Vec<Badge>,
}

impl Row {
    fn new(person: Person, now_ms: u64) -> Row {
        let account = &person.account;
        let user_id = account.user_id.to_string();
        let name = person.display_name.filter(|name| !name.trim().is_empty());
        let name = bounded(name.as_deref().unwrap_or(account.user_id.localpart()), NAME_CHARS_MAX);
        let seen = match (account.standing, person.seen_ms) {
            (Standing::Deactivated, _) => String::new(),
            (_, None) if person.is_service => String::new(),
            (_, Some(seen_ms)) => format!("seen {}", ago(seen_ms, now_ms)),
            (_, None) => "no app logged in".to_owned(),
        };
        Row {
            path: path(&account.user_id),
            letter: letter(&name),
            name,
            user_id,
            seen,
            badges: badges(account, person.link_until_ms.is_some(), person.is_service),
        }
    }
}

/// `GET people/?find=anna&after=@name:server`; with `bridges=1` users of bridges too.
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let after = visit.request.query_as::<OwnedUserId>("after")?;
    let find: String = visit.request.query("find").unwrap_or_default().trim().chars().take(FIND_CHARS_MAX).collect();
    let users = &visit.admin.users;
    let bridges = visit.request.query("bridges").is_some();
    let page = users.people(after.as_deref(), &find, bridges || !find.is_empty(), LIST_ROWS).await?;
    let has_bridges = find.is_empty() && !users.services().list().is_empty();
    let now_ms = visit.admin.clock.now_ms();
    let found = encoded(&find);
    let with = if bridges { "&bridges=1" } else { "" };
    let next = page.next.map(|after| format!("find={found}{with}&after={}", encoded(after.as_str())));
    let rows = page.people.into_iter().map(|person| Row::new(person, now_ms)).collect();
    let frame = visit.frame("people", "People");
    let (bridges, is_first) = (has_bridges.then_some(bridges), after.is_none());
    visit.page(&People { frame, find, found, rows, bridges, next, is_first }).await
}
