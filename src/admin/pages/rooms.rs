//! Rooms: which there are and what they take, joins under way, and large rooms that wait to be allowed.

mod blocked;
mod remove;

use std::sync::Arc;

use askama::Template;
use ruma::{OwnedRoomId, UserId};

use super::frame::{Form, Frame, NAME_CHARS_MAX, Pages, Pieces, Visit};
use super::people::{self, ago, encoded};
use crate::admin::{Admin, error::Error};
use crate::base::{bounded, span};
use crate::budget::human;
use crate::http::{ErrorResponse, Response};
use crate::room::join::JoinStatus;
use crate::room::{BriefRoom, LeftRooms, RoomOrder, WantedRooms};

/// A longer text to find is cut.
const FIND_CHARS_MAX: usize = 100;
/// Rooms of the list on a page: with ids of 255 bytes that are three each in a path, and names of quotes, they are 22 KiB.
const ROWS: usize = 15;
/// Joins shown, under way and interrupted: 7 KiB with the longest ids.
const JOINS_SHOWN: usize = 5;
/// Rooms shown that wait for a yes, and that have it: 16 KiB with the longest ids.
const ASKED_SHOWN: usize = 5;
/// Characters of a topic.
const TOPIC_CHARS_MAX: usize = 300;
/// Members of this server on the page of a room.
const MEMBERS_SHOWN: usize = 40;

pub fn routes(pages: &mut Pages<'_>) {
    pages
        .show("rooms/", show)
        .act("rooms/", change)
        .show("rooms/blocked", blocked::show)
        .act("rooms/blocked", blocked::change)
        .act("rooms/of/{room}", blocked::change_one)
        .show("rooms/left", remove::ask_left)
        .act("rooms/left", remove::remove_left)
        .show("rooms/of/{room}", one)
        .show("rooms/of/{room}/remove", remove::ask)
        .act("rooms/of/{room}/remove", remove::remove)
        .show("rooms/of/{room}/shorten", remove::ask_shorten)
        .act("rooms/of/{room}/shorten", remove::shorten);
}

/// The page of a room, below the root.
pub fn path(room_id: &str) -> String {
    format!("rooms/of/{}", encoded(room_id))
}

/// A count as people read it: `12,345`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 member`, `12,345 members`.
pub fn many(count: u64, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{} {what}{s}", grouped(count))
}

/// A person, with a link to the page when there is one.
pub struct Who {
    pub name: String,
    pub path: Option<String>,
}

impl Who {
    pub fn new(admin: &Admin, user_id: &str) -> Who {
        let ours = <&UserId>::try_from(user_id).ok().filter(|user_id| user_id.server_name() == admin.users.server());
        Who { name: bounded(user_id, 255), path: ours.map(people::path) }
    }
}

#[derive(Template)]
#[template(path = "rooms.html")]
struct Page {
    frame: Frame,
    joins: String,
    purging: String,
    /// Rooms that nobody here is in, and what they take.
    left: Option<(String, String)>,
    asked: Vec<Asked>,
    allowed: Vec<Asked>,
    /// Others that wait or are allowed.
    more_asked: usize,
    find: String,
    /// The same as it stands in a query.
    found: String,
    orders: Vec<Order>,
    order: &'static str,
    total: String,
    rows: Vec<Row>,
    previous: Option<usize>,
    next: Option<usize>,
    is_any_blocked: bool,
}

struct Order {
    key: &'static str,
    label: &'static str,
    order: RoomOrder,
}

const ORDERS: [Order; 4] = [
    Order { key: "bytes", label: "Bytes", order: RoomOrder::Bytes },
    Order { key: "members", label: "Members", order: RoomOrder::Joined },
    Order { key: "us", label: "Members of ours", order: RoomOrder::LocalJoined },
    Order { key: "name", label: "Name", order: RoomOrder::Name },
];

struct Row {
    path: String,
    letter: String,
    name: String,
    about: String,
    badges: Vec<(&'static str, &'static str)>,
}

impl Row {
    fn new(room: BriefRoom) -> Row {
        let ours = match room.local_joined {
            0 => String::new(),
            count => format!(" · {} of us", grouped(count)),
        };
        let badges = [
            (room.blocked, "blocked", "wrong"),
            (!room.resident || room.local_joined == 0, "nobody here", "look"),
            (room.public, "public", ""),
        ];
        Row {
            path: path(&room.room_id),
            letter: room.name.as_deref().and_then(|name| name.trim().chars().next()).unwrap_or('#').to_string(),
            about: format!(
                "{}{ours} · {} in {}",
                many(room.joined, "member"),
                human(room.bytes),
                many(room.events, "event")
            ),
            name: room.name.unwrap_or_else(|| bounded(&room.room_id, NAME_CHARS_MAX)),
            badges: badges.into_iter().filter(|(is, ..)| *is).map(|(_, word, class)| (word, class)).collect(),
        }
    }
}

/// A room that somebody wants in, or that was allowed.
struct Asked {
    room_id: String,
    about: String,
}

/// `GET rooms/?find=text&order=bytes&from=20`
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let rooms = &visit.admin.rooms;
    let find: String = visit.request.query("find").unwrap_or_default().trim().chars().take(FIND_CHARS_MAX).collect();
    let order = visit.request.query("order").unwrap_or_default();
    let order = ORDERS.iter().find(|known| known.key == order).unwrap_or(&ORDERS[0]);
    let from = visit.request.query_as::<u32>("from")?.unwrap_or(0) as usize;
    let wanted = WantedRooms { term: (!find.is_empty()).then(|| find.clone()), ..WantedRooms::default() };
    let (found_rooms, total) = rooms.find_brief(wanted, order.order, from, ROWS).await?;
    let (mut asked, mut allowed) = (Vec::new(), Vec::new());
    let (now_ms, mut more_asked) = (visit.admin.clock.now_ms(), 0);
    for (room_id, row) in rooms.allowed_rooms().await? {
        let about = match (row.user_id.is_empty(), row.events) {
            (true, _) => format!("allowed {}", ago(row.at_ms, now_ms)),
            (false, 0) => format!("{} asked {}", row.user_id, ago(row.at_ms, now_ms)),
            (false, events) => {
                format!("{} asked {}; about {}", row.user_id, ago(row.at_ms, now_ms), many(events, "event"))
            }
        };
        let list = if row.allowed { &mut allowed } else { &mut asked };
        // An id is whatever somebody asked for; those of rooms that are have no signs of HTML.
        match list.len() < ASKED_SHOWN && !room_id.contains(['<', '>', '&', '"', '\'']) {
            true => list.push(Asked { room_id, about }),
            false => more_asked += 1,
        }
    }
    let next = from + found_rooms.len();
    let LeftRooms { rooms: left, bytes: left_bytes, .. } = rooms.left_rooms().await?;
    let page = Page {
        frame: visit.frame("rooms", "Rooms").live("rooms"),
        joins: joins(&visit.admin, &visit.token).await?,
        purging: remove::under_way(&visit.admin).await?,
        left: (left > 0).then(|| (many(left, "room"), human(left_bytes))),
        asked,
        allowed,
        more_asked,
        found: encoded(&find),
        find,
        orders: ORDERS.into_iter().collect(),
        order: order.key,
        total: many(total as u64, "room"),
        rows: found_rooms.into_iter().map(Row::new).collect(),
        previous: (from > 0).then(|| from.saturating_sub(ROWS)),
        next: (next < total).then_some(next),
        is_any_blocked: !rooms.blocked_rooms("", 1).await?.is_empty(),
    };
    visit.page(&page).await
}

#[derive(Template)]
#[template(path = "joins.html")]
struct Joins<'a> {
    root: &'a str,
    token: &'a str,
    rows: Vec<JoinRow>,
}

struct JoinRow {
    room_id: String,
    user_id: String,
    about: String,
    /// Of a thousand; none where nobody knows.
    done: Option<u64>,
    is_under_way: bool,
}

/// Joins under way, and those that go on with the next start.
async fn joins(admin: &Admin, token: &str) -> Result<String, Error> {
    let mut rows: Vec<_> = admin.rooms.joins().into_iter().take(JOINS_SHOWN).map(JoinRow::new).collect();
    let interrupted = admin.rooms.interrupted_joins().await?.into_iter();
    let more = JOINS_SHOWN - rows.len();
    rows.extend(interrupted.take(more).map(|(room_id, events)| JoinRow {
        room_id,
        user_id: String::new(),
        about: format!("interrupted with {} stored; goes on when the server starts", many(events, "event")),
        done: None,
        is_under_way: false,
    }));
    let page = Joins { root: admin.page.root(), token, rows };
    Ok(page.render().map_err(ErrorResponse::internal)?)
}

impl JoinRow {
    fn new(join: JoinStatus) -> JoinRow {
        let size = match join.bytes_total {
            0 => human(join.bytes),
            total => format!("{} of {}", human(join.bytes), human(total)),
        };
        let speed = match join.seconds {
            0 => String::new(),
            seconds => format!(", {} a second", human(join.bytes / seconds)),
        };
        let left = join.seconds_left.map_or(String::new(), |left| format!(", about {} left", span(left * 1000)));
        JoinRow {
            about: format!(
                "{}: {} stored, {size}{speed}{left}; since {}",
                join.phase,
                many(join.stored, "event"),
                span(join.seconds * 1000)
            ),
            done: done(&join),
            room_id: join.room_id,
            user_id: join.user_id,
            is_under_way: true,
        }
    }
}

/// How much of a join's answer has come, of a thousand.
fn done(join: &JoinStatus) -> Option<u64> {
    let share = |part: u64, of: u64| (u128::from(part) * 1000 / u128::from(of)).min(1000) as u64;
    match (join.bytes_total, join.seconds_left) {
        (0, Some(left)) => Some(share(join.seconds, (join.seconds + left).max(1))),
        (0, None) => None,
        (total, _) => Some(share(join.bytes, total)),
    }
}

/// What changes while somebody looks.
pub async fn pieces(admin: &Arc<Admin>, token: &str) -> Result<Pieces, Error> {
    let purging = remove::under_way(admin).await?;
    Ok(Pieces::from([("joins", joins(admin, token).await?), ("purging", purging)]))
}

/// `POST rooms/`: allows a large room or takes that back, or cancels a join, by the fields `what` and `room`.
pub async fn change(visit: Visit, form: Form) -> Result<Response, Error> {
    let rooms = &visit.admin.rooms;
    let room = form.text("room");
    let room_id: OwnedRoomId = room.parse().map_err(|_| ErrorResponse::invalid_param("this is not a room's id"))?;
    let what = form.text("what");
    match what.as_str() {
        "allow-room" => rooms.allow(&room_id, true).await?,
        "disallow-room" => rooms.allow(&room_id, false).await?,
        "cancel-join" => {
            if !rooms.cancel_join(&room_id).await? {
                return Err(ErrorResponse::not_found(format!("no join of {room_id} is under way")).into());
            }
        }
        _ => return Err(ErrorResponse::invalid_param("this page has no such button").into()),
    }
    tracing::info!("{} on the page: {what} {room_id}", visit.user_id);
    Ok(visit.done("rooms/", &what))
}

#[derive(Template)]
#[template(path = "room.html")]
struct One {
    frame: Frame,
    letter: String,
    name: String,
    room_id: String,
    topic: Option<String>,
    badges: Vec<(&'static str, &'static str)>,
    facts: Vec<(&'static str, String)>,
    members: Vec<Who>,
    more_members: usize,
    resident: bool,
    path: String,
    is_anybody_here: bool,
    /// Who blocked it, and when.
    blocked: Option<String>,
}

/// `GET rooms/of/{room}`
pub async fn one(visit: Visit) -> Result<Response, Error> {
    let rooms = &visit.admin.rooms;
    let room_id: OwnedRoomId = visit.request.param_as("room")?;
    let room = rooms.listed(&room_id).await?;
    let members = rooms.local_members(&room_id).await?;
    let about = &room.description;
    let blocked = rooms.blocked(&room_id).await?.map(|blocked| blocked::by(&visit.admin, &blocked));
    let name = rooms.brief(&room_id).await?.name.unwrap_or_else(|| bounded(&room_id, NAME_CHARS_MAX));
    let said = |text: &Option<String>| text.as_ref().map(|text| bounded(text, 255));
    let facts = [
        ("Members", Some(format!("{}, {} of us", grouped(about.num_joined_members), grouped(room.local_joined)))),
        ("On the disk", Some(format!("{} in {}", human(room.bytes), many(room.events, "event")))),
        ("Address", said(&about.canonical_alias)),
        ("Who may join", said(&about.join_rule).map(|rule| rule_in_words(&rule).to_owned())),
        ("Who may read", said(&room.history_visibility).map(|seen| history_in_words(&seen).to_owned())),
        ("Made by", said(&room.creator)),
        ("Room version", Some(bounded(&room.version, 40))),
        ("Other servers", (!room.federated).then(|| "not let in".to_owned())),
        (
            "Replaced by",
            room.replaced_by.as_ref().map(|by| bounded(by.as_deref().unwrap_or("nothing: it is closed"), 255)),
        ),
    ];
    let badges = [
        (blocked.is_some(), "blocked", "wrong"),
        (!room.resident || room.local_joined == 0, "nobody here", "look"),
        (room.public, "public", ""),
        (about.encryption.is_some(), "encrypted", ""),
        (about.room_type.as_deref() == Some("m.space"), "space", ""),
    ];
    let page = One {
        frame: visit.frame("rooms", name.clone()),
        letter: name.trim_start_matches(['!', '#']).chars().next().unwrap_or('#').to_string(),
        name,
        topic: about
            .topic
            .as_ref()
            .map(|topic| bounded(topic, TOPIC_CHARS_MAX))
            .filter(|topic| !topic.trim().is_empty()),
        badges: badges.into_iter().filter(|(is, ..)| *is).map(|(_, word, class)| (word, class)).collect(),
        facts: facts.into_iter().filter_map(|(what, fact)| Some((what, fact?))).collect(),
        more_members: members.len().saturating_sub(MEMBERS_SHOWN),
        members: members.iter().take(MEMBERS_SHOWN).map(|user| Who::new(&visit.admin, user.as_str())).collect(),
        resident: room.resident,
        path: path(room_id.as_str()),
        is_anybody_here: room.local_joined > 0,
        blocked,
        room_id: room_id.to_string(),
    };
    visit.page(&page).await
}

fn rule_in_words(rule: &str) -> &str {
    match rule {
        "public" => "everybody",
        "invite" => "who is invited",
        "knock" => "who is invited, or knocks and is let in",
        "restricted" => "members of certain rooms, and who is invited",
        "knock_restricted" => "members of certain rooms, who is invited, and who knocks and is let in",
        "private" => "nobody",
        other => other,
    }
}

fn history_in_words(visibility: &str) -> &str {
    match visibility {
        "world_readable" => "everybody, also outside",
        "shared" => "members, everything",
        "invited" => "members, since they were invited",
        "joined" => "members, since they joined",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_and_say_whether_there_is_one() {
        assert_eq!((grouped(0).as_str(), grouped(999).as_str(), grouped(1000).as_str()), ("0", "999", "1,000"));
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!((many(1, "member"), many(2_000, "member")), ("1 member".to_owned(), "2,000 members".to_owned()));
    }

    #[test]
    fn a_bar_shows_what_has_come_where_that_is_known() {
        let join = |bytes, bytes_total, seconds, seconds_left| JoinStatus {
            room_id: String::new(),
            user_id: String::new(),
            phase: "receiving".to_owned(),
            seen: 0,
            checked: 0,
            stored: 0,
            refused: 0,
            pending: 0,
            bytes,
            bytes_total,
            seconds,
            seconds_left,
        };
        assert_eq!(done(&join(5, 10, 0, None)), Some(500));
        assert_eq!(done(&join(u64::MAX, 10, 0, None)), Some(1000));
        assert_eq!(done(&join(5, 0, 30, Some(90))), Some(250));
        assert_eq!(done(&join(5, 0, 0, Some(0))), Some(0));
        assert_eq!(done(&join(5, 0, 30, None)), None);
    }
}
