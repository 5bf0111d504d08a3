//! `GET /_matrix/client/v3/sync`: changes since a token, or everything (client-server API, "Syncing").
//!
//! The handler registers a waiter, then looks for changes, then waits. The answer is written while it is sent, a piece
//! at a time under one grant: its memory does not depend on the number or size of the rooms.
//!
//! `rooms.rs` is the object `rooms`: which rooms stand in it, and each one's layout.

use std::sync::Arc;
use std::time::Duration;

use super::super::{Client, Error, Requester, auth};
use super::user;
use crate::base::{self, ChunkError, ChunkWriter, Chunks};
use crate::budget::Grant;
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::matrix::json;
use crate::room::{ANSWER_BYTES, Filter, Reader, RoomNum, SyncToken};
use crate::user::{ProfileQuery, Syncing, UserSync};
use rooms::{ChangedRoom, RoomSections, Section};

mod presence;
mod rooms;
#[cfg(test)]
pub(crate) mod tests;

/// The longest wait, whatever `timeout` the app asks for: proxies cut idle connections after about this time.
const TIMEOUT_MS_MAX: u64 = 90_000;
/// An answer up to this long is within the share of its connection.
const FIRST_BYTES: usize = 4 * 1024;
/// Memory of one waiting request: its entry in the feed, the request, the task.
const WAITER_BYTES: u64 = 2 * 1024;

/// The parsed request.
struct Query {
    requester: Requester,
    since: Option<SyncToken>,
    /// No news for the app came up to here. What came since its own token and is no news, such as another user's new
    /// devices or a gap in a timeline, belongs in the next answer all the same.
    looked_upto: Option<SyncToken>,
    full_state: bool,
    /// The name under which the state as of a timeline's end is told, when the app asks for it.
    state_after: Option<&'static str>,
    filter: Arc<Filter>,
    timeout: Duration,
    /// Noted as there, for as long as the request is answered.
    _syncing: Option<Syncing>,
}

/// 400 `M_INVALID_PARAM` when `since` or `filter` is not valid; 404 `M_NOT_FOUND` when there is no saved filter of
/// that number.
pub async fn sync(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let mut query = query(&client, &request).await?;
    if let Some(since) = query.since {
        let requester = &query.requester;
        let (user, device) = (requester.user_num, &requester.device_id);
        client.users.to_device_arrived(user, device, since.messages, since.at).await?;
    }
    let slot = client.budget.account("sync_waiters").take(WAITER_BYTES + query.filter.bytes()).await?;
    // Registered before anything is read: a change that lands in between would otherwise be missed. The session may end
    // during any wait.
    let waiter = client.feed.register(query.requester.user_num);
    auth::requester(&client, &request).await?;
    let deadline = client.clock.instant() + query.timeout;
    let mut is_over = query.timeout.is_zero();
    loop {
        if is_over || !is_quiet(&client, &query) {
            match look(&client, &query, is_over, None).await? {
                Looked::News(response) => return Ok(response),
                Looked::NoMemory => break,
                Looked::Nothing { answer, .. } if is_over => return Ok(Response::json_bytes(StatusCode::OK, answer)),
                Looked::Nothing { now, .. } => query.looked_upto = Some(now),
            }
        }
        request.cancel_when_peer_leaves();
        is_over = tokio::select! {
            came = waiter.wait(deadline) => !came,
            // Another connection needs this one's place: answer now.
            () = request.hurried() => true,
        };
        auth::requester(&client, &request).await?;
    }
    drop((waiter, slot));
    let grant = client.budget.account("response_bodies").take(ANSWER_BYTES + query.filter.bytes()).await?;
    auth::requester(&client, &request).await?;
    match look(&client, &query, true, Some(grant)).await? {
        Looked::News(response) => Ok(response),
        Looked::Nothing { answer, .. } => Ok(Response::json_bytes(StatusCode::OK, answer)),
        Looked::NoMemory => Err(ErrorResponse::internal("a sync with a grant asks for none").into()),
    }
}

/// Whether it is known without reading that nothing has changed for the app since the last look, or since its token.
fn is_quiet(client: &Client, query: &Query) -> bool {
    let since = query.looked_upto.filter(|since| !query.full_state && since.messages == since.at);
    let Some(since) = since else { return false };
    let changed = client.feed.rooms_changed(query.requester.user_num, since.at, since.at);
    changed.is_some_and(|rooms| rooms.is_empty())
        && client.users.presence_serial() == since.presence
        && client.rooms.typing_rooms(since.typing).is_some_and(|rooms| rooms.is_empty())
}

async fn query(client: &Client, request: &Request) -> Result<Query, Error> {
    let requester = auth::requester(client, request).await?;
    let since = match request.query("since").filter(|since| !since.is_empty()) {
        Some(since) => Some(
            SyncToken::parse(&since)
                .ok_or_else(|| ErrorResponse::invalid_param("The sync token is not one of this server"))?,
        ),
        None => None,
    };
    // Told by the server as it was before it was restored: everything is told anew.
    let lost = since.and_then(|since| client.rooms.before_loss(since));
    let timeout = request.query_as::<u64>("timeout")?.unwrap_or(0).min(TIMEOUT_MS_MAX);
    let syncing = super::presence::begin(client, &requester, request.query("set_presence")).await?;
    let since = lost.or(since);
    Ok(Query {
        since,
        looked_upto: since,
        full_state: request.query_as("full_state")?.unwrap_or(false) || lost.is_some(),
        state_after: state_after(request)?,
        filter: Arc::new(filter(client, &requester, request).await?),
        timeout: Duration::from_millis(timeout),
        _syncing: syncing,
        requester,
    })
}

/// `use_state_after`, under its own name or the one from before the specification had it; answered in the same naming.
fn state_after(request: &Request) -> Result<Option<&'static str>, ErrorResponse> {
    Ok(match request.query_as::<bool>("use_state_after")? {
        Some(true) => Some("state_after"),
        _ if request.query_as("org.matrix.msc4222.use_state_after")? == Some(true) => {
            Some("org.matrix.msc4222.state_after")
        }
        _ => None,
    })
}

/// The filter in the query, or the saved one whose number the query has.
async fn filter(client: &Client, requester: &Requester, request: &Request) -> Result<Filter, Error> {
    let bad = || ErrorResponse::invalid_param("There is no filter with this ID");
    let text = match request.query("filter") {
        None => return Ok(Filter::default()),
        Some(text) if text.starts_with('{') => text.into_bytes(),
        Some(text) if text.is_empty() => return Ok(Filter::default()),
        Some(number) => client.users.filter(requester.user_num, &number).await?,
    };
    Ok(Filter::parse(&text).ok_or_else(bad)?)
}

/// The outcome of looking for changes.
enum Looked {
    /// The answer, or its beginning: news, or what else is to be told when the answer is due.
    News(Response),
    /// The position that was looked at, and the body of an answer without changes.
    Nothing { now: SyncToken, answer: Vec<u8> },
    /// There is something to tell, and no memory for writing it just now.
    NoMemory,
}

/// Looks for changes and begins to write them, as one blocking job: mostly that is all of the answer. `is_last`: the
/// answer is due, so what is no news is written too.
async fn look(client: &Arc<Client>, query: &Query, is_last: bool, grant: Option<Grant>) -> Result<Looked, Error> {
    let reader = Reader {
        user: query.requester.user_num,
        user_id: query.requester.user_id.clone(),
        device: query.requester.device_id.clone(),
        sees_all: false,
    };
    let (since, looked_upto) = (query.since, query.looked_upto);
    let (full_state, state_after, filter) = (query.full_state, query.state_after, query.filter.clone());
    let (client, requester, looks) = (client.clone(), query.requester.clone(), client.looks.clone());
    looks
        .blocking(move || {
            // Read first, like the typing serial.
            let presence = client.users.presence_serial();
            let mut view = client.rooms.sync_view(reader)?;
            view.now.presence = presence;
            let changes = |since| {
                let mut sections = RoomSections::new(view.clone(), since, full_state, filter.clone());
                sections.state_after = state_after;
                changes_in(&client, sections, &requester)
            };
            let (mut rooms, mut own) = changes(looked_upto)?;
            let has_news = has_news(&rooms, &own)? || !presence::news(&client, &requester, &rooms, &own)?.is_empty();
            if !has_news && !is_last {
                return nothing(&rooms, &own);
            }
            if looked_upto != since {
                (rooms, own) = changes(since)?;
            }
            if !has_news && rooms.only.is_some() {
                return nothing(&rooms, &own);
            }
            let bytes = ANSWER_BYTES + rooms.filter.bytes();
            match grant.map_or_else(|| client.budget.account("response_bodies").try_take(bytes).ok(), Some) {
                Some(grant) if has_news => {
                    let present = presence::Present::new(&client, &requester, &rooms, &own)?;
                    begin(grant, base::written(|pen| write(pen, rooms, own, present)))
                }
                Some(grant) => begin(grant, base::written(|pen| write_no_news(pen, rooms, own))),
                None => Ok(Looked::NoMemory),
            }
        })
        .await
}

/// The changes since the sections' token, in rooms and outside of them.
fn changes_in(
    client: &Client,
    mut rooms: RoomSections,
    requester: &Requester,
) -> Result<(RoomSections, UserSync), Error> {
    rooms.only = changed_rooms(client, &rooms);
    let (rooms, own) = with_own(client, rooms, requester);
    #[cfg(debug_assertions)]
    check_only(client, &rooms, requester)?;
    Ok((rooms, own))
}

/// The rooms that alone can have changed, when the feed and the typing users tell that nothing else has.
fn changed_rooms(client: &Client, rooms: &RoomSections) -> Option<Arc<[RoomNum]>> {
    let since = rooms.since.filter(|since| !rooms.full_state && since.messages == since.at)?;
    let mut only = client.feed.rooms_changed(rooms.view.reader.user, since.at, rooms.view.now.at)?;
    only.extend(rooms.view.typing_rooms(since.typing)?);
    only.sort_unstable();
    only.dedup();
    Some(only.into())
}

fn with_own(client: &Client, rooms: RoomSections, requester: &Requester) -> (RoomSections, UserSync) {
    let (since, received) = rooms.since.map(|since| (since.at, since.messages)).unzip();
    let (read, received, now) = (rooms.view.read.clone(), received.unwrap_or_default(), rooms.view.now.at);
    let own = client.users.own(read, requester, since, received, now);
    let own = if rooms.only.is_some() { own.quiet(&client.users) } else { own };
    (rooms, own)
}

fn has_news(rooms: &RoomSections, own: &UserSync) -> Result<bool, Error> {
    let also = own.rooms(|kind| rooms.filter.room.account_data.wants_type(kind))?;
    let any_profiles = || profiles(rooms).map_or(Ok(false), |(_, query)| own.any_profiles(query));
    Ok(rooms.is_whole()
        || own.any(|kind| rooms.filter.account_data.wants_type(kind))?
        || rooms.any(&also)?
        || any_profiles()?)
}

/// The profiles that are told, and the name they stand under.
fn profiles(rooms: &RoomSections) -> Option<(&'static str, ProfileQuery<'_>)> {
    let (name, fields) = rooms.filter.profiles()?;
    Some((name, ProfileQuery { fields: Some(fields), whole: rooms.is_whole() }))
}

/// What was noted of changes leaves none out: compared with reading everything.
#[cfg(debug_assertions)]
fn check_only(client: &Client, rooms: &RoomSections, requester: &Requester) -> Result<(), Error> {
    let Some(only) = &rooms.only else { return Ok(()) };
    let mut all = rooms.clone();
    all.only = None;
    let (all, own) = with_own(client, all, requester);
    let also = own.rooms(|_| true)?;
    assert!(!own.any(|_| true)? && also.is_empty(), "what changed beside the rooms was noted");
    for section in Section::ALL {
        let mut after = None;
        while let Some(changed) = all.next(section, after, &also)? {
            let num = changed.room.num;
            // Users may type in other rooms by now.
            let is_typing = rooms.view.has_typing(num, rooms.view.now.typing);
            assert!(only.contains(&num) || is_typing, "the change of room {num:?} was noted");
            after = Some(num);
        }
    }
    Ok(())
}

fn nothing(rooms: &RoomSections, own: &UserSync) -> Result<Looked, Error> {
    let now = rooms.view.now;
    let mut answer = format!("{{\"next_batch\":\"{now}\",").into_bytes();
    user::write_keys(&mut answer, own)?;
    answer.push(b'}');
    Ok(Looked::Nothing { now, answer })
}

/// Writes the first piece of an answer, which mostly is the whole.
fn begin(grant: Grant, mut chunks: impl Chunks) -> Result<Looked, Error> {
    let mut first = Vec::with_capacity(FIRST_BYTES);
    let response = match chunks.next(&mut first) {
        Ok(true) => Response::stream(grant, base::begun(first, chunks)),
        Ok(false) if first.len() <= FIRST_BYTES => Response::json_bytes(StatusCode::OK, first),
        Ok(false) => Response::charged(StatusCode::OK, "application/json", first, grant),
        Err(failed) => return Err(ErrorResponse::internal(failed).into()),
    };
    Ok(Looked::News(response))
}

async fn write(
    pen: ChunkWriter,
    rooms: RoomSections,
    own: UserSync,
    present: presence::Present,
) -> Result<(), ChunkError> {
    let now = SyncToken { messages: own.messages_end(usize::MAX)?, ..rooms.view.now };
    pen.text(&format!("{{\"next_batch\":\"{now}\",\"account_data\":{{\"events\":["));
    let wants = |kind: &str| rooms.filter.account_data.wants_type(kind);
    user::write_account_data(&pen, &own, None, rooms.is_whole(), wants, true).await?;
    pen.text("]},\"presence\":{\"events\":[");
    present.write(&pen).await?;
    pen.text("]},\"to_device\":{\"events\":[");
    user::write_to_device(&pen, &own, now.messages).await?;
    pen.text("]},\"device_lists\":{");
    user::write_device_lists(&pen, &own).await?;
    pen.text("},");
    pen.with(|out| user::write_keys(out, &own))?;
    if let Some((name, query)) = profiles(&rooms)
        && own.any_profiles(query)?
    {
        pen.text(&format!(",\"{name}\":"));
        own.write_profile_updates(&pen, query).await?;
    }
    pen.text(",\"rooms\":{");
    let also = own.rooms(|kind| rooms.filter.room.account_data.wants_type(kind))?;
    let mut is_first = true;
    for section in Section::ALL {
        write_rooms(&pen, section, &rooms, &own, &also, &mut is_first).await?;
    }
    pen.text("}}");
    Ok(())
}

/// Writes an answer for an app that waited in vain: it may still have to know of users' devices.
async fn write_no_news(pen: ChunkWriter, rooms: RoomSections, own: UserSync) -> Result<(), ChunkError> {
    pen.text(&format!("{{\"next_batch\":\"{}\",\"device_lists\":{{", rooms.view.now));
    user::write_device_lists(&pen, &own).await?;
    pen.text("},");
    pen.with(|out| user::write_keys(out, &own))?;
    pen.text("}");
    Ok(())
}

/// One section of the rooms; nothing when there are none in it.
async fn write_rooms(
    pen: &ChunkWriter,
    section: Section,
    rooms: &RoomSections,
    own: &UserSync,
    also: &[RoomNum],
    is_first: &mut bool,
) -> Result<(), ChunkError> {
    let mut after = None;
    while let Some(changed) = rooms.next(section, after, also)? {
        match after {
            Some(_) => pen.text(","),
            None => {
                pen.text(if std::mem::take(is_first) { "" } else { "," });
                pen.text(&format!("\"{}\":{{", section.as_str()));
            }
        }
        pen.with(|out| json::write_string(out, &changed.id));
        pen.text(":{");
        rooms.write(pen, section, &changed).await?;
        if section == Section::Join {
            write_account_data(pen, rooms, own, &changed).await?;
        }
        pen.text("}");
        pen.pause().await;
        after = Some(changed.room.num);
    }
    if after.is_some() {
        pen.text("}");
    }
    Ok(())
}

/// A room's account data. Its `m.fully_read` is stored by the room part, the rest by the user part.
async fn write_account_data(
    pen: &ChunkWriter,
    rooms: &RoomSections,
    own: &UserSync,
    changed: &ChangedRoom,
) -> Result<(), ChunkError> {
    let filter = &rooms.filter.room.account_data;
    pen.text(",\"account_data\":{\"events\":[");
    if filter.wants_room(&changed.id) {
        let (num, whole) = (changed.room.num, rooms.is_told_whole(&changed.room));
        let known = rooms.since.filter(|_| !whole).map(|since| since.at);
        let marker = rooms.view.fully_read(num, known)?.filter(|_| filter.wants_type("m.fully_read"));
        if let Some(event_id) = &marker {
            pen.text("{\"type\":\"m.fully_read\",\"content\":{\"event_id\":");
            pen.with(|out| json::write_string(out, event_id));
            pen.text("}}");
        }
        let wants = |kind: &str| filter.wants_type(kind);
        user::write_account_data(pen, own, Some(num), whole, wants, marker.is_none()).await?;
    }
    pen.text("]}");
    Ok(())
}
