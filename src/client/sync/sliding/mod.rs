//! `POST …/sync`: a sliding sync (MSC4186), in the form of its unstable name and of `/v4`.
//!
//! An app has connections, and each remembers what it was told (`user/sliding.rs`). A request names the answer that it
//! builds upon and the rooms that it wants: windows of lists by activity, and subscriptions. The handler registers a waiter,
//! then looks for news, then waits. The answer is written while it is sent, a piece at a time under one grant; what it told
//! is noted just before its end, so an answer that is cut off told nothing.
//!
//! `request.rs` reads a request, `required.rs` what it asks of a room's state, `filters.rs` which rooms a list has. `lists.rs`
//! decides which rooms are told, `rooms.rs` is a room's layout, `extensions.rs` what is told beside rooms.

use std::sync::{Arc, OnceLock};

use super::super::{Client, Error, Requester, auth};
use crate::base::{self, ChunkError, ChunkWriter, Chunks};
use crate::budget::Grant;
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::matrix::json;
use crate::room::{ANSWER_BYTES, Reader, RoomNum, SlidingToken, SyncToken};
use crate::user::{SlidingConnection, UserSync};
use extensions::Extensions;
use lists::{Look, Plan, Seen};
use request::{Asked, BODY_BYTES_MAX, Form, RoomConfig, unknown_pos};
use rooms::Notes;

mod extensions;
mod filters;
mod lists;
mod request;
mod required;
mod rooms;

/// An answer up to this long is within the share of its connection.
const FIRST_BYTES: usize = 4 * 1024;
/// Memory of one waiting request: its entry in the feed, the request, the task.
const WAITER_BYTES: u64 = 2 * 1024;
/// Reading a body holds its canonical form, and once more what of it has to be sorted.
const READING_TIMES: u64 = 2;

/// A request that is being answered.
#[derive(Clone)]
struct Query {
    requester: Requester,
    asked: Arc<Asked>,
    extensions: Arc<Extensions>,
    subscriptions: Arc<[(RoomNum, RoomConfig)]>,
    connection: Arc<SlidingConnection>,
    since: Option<SlidingToken>,
    /// What is known from the answer before, if it was asked for the same, or from the last look.
    seen: Option<Arc<Seen>>,
}

/// POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync
///
/// 400 `M_UNKNOWN_POS` when the connection is not known any more; 400 `M_INVALID_PARAM` for more lists, subscriptions or
/// required state than a request may have.
pub async fn unstable(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    sync(client, request, Form::Unstable).await
}

/// POST /_matrix/client/v4/sync; errors as [`unstable`].
pub async fn v4(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    sync(client, request, Form::V4).await
}

async fn sync(client: Arc<Client>, mut request: Request, form: Form) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let (mut asked, extensions, work) = read(&mut request, form, &requester).await?;
    let _syncing = super::presence::begin(&client, &requester, asked.presence.take()).await?;
    extensions.acknowledge(&client, &requester).await?;
    let _waiting =
        client.budget.account("sync_waiters").take(WAITER_BYTES + (asked.bytes() + extensions.bytes()) as u64).await?;
    // Registered before anything is read: a change that lands in between would otherwise be missed. The session may end
    // during any wait.
    let waiter = client.feed.register(requester.user_num);
    auth::requester(&client, &request).await?;
    let timeout = asked.timeout;
    let mut query = query(&client, requester, asked, extensions).await?;
    drop(work);
    let deadline = client.clock.instant() + timeout;
    // Whoever begins has nothing to wait for.
    let mut is_over = timeout.is_zero() || query.since.is_none();
    loop {
        if is_over || !is_quiet(&client, &query) {
            let mut looked = look(&client, &query, is_over, None).await?;
            if let Looked::NoMemory = looked {
                let grant = client.budget.account("response_bodies").take(answer_bytes(&query)).await?;
                auth::requester(&client, &request).await?;
                looked = look(&client, &query, is_over, Some(grant)).await?;
            }
            match looked {
                Looked::Answer(response) => return Ok(response),
                Looked::Nothing(seen) => query.seen = Some(Arc::new(seen)),
                Looked::NoMemory => {
                    return Err(ErrorResponse::internal("a sync with a grant asks for none").into());
                }
            }
        }
        request.cancel_when_peer_leaves();
        is_over = tokio::select! {
            came = waiter.wait(deadline) => !came,
            // Another connection needs this one's place: answer now.
            () = request.hurried() => true,
        };
        auth::requester(&client, &request).await?;
        if client.users.is_overtaken(&query.connection) {
            return Err(unknown_pos().into());
        }
    }
}

/// Reads the request's body, which is given back then; the grant pays for the ids of rooms among what was read.
async fn read(
    request: &mut Request,
    form: Form,
    requester: &Requester,
) -> Result<(Asked, Arc<Extensions>, Grant), Error> {
    let body = request.bytes(BODY_BYTES_MAX).await?;
    let work = request.pay(READING_TIMES * body.len() as u64).await?;
    let (asked, extensions) = Asked::parse(form, request, &body, requester)?;
    let extensions = Extensions::parse(&extensions)?;
    drop((body, request.take_grant()));
    Ok((asked, Arc::new(extensions), work))
}

/// Finds the connection, and the rooms that are subscribed to.
async fn query(
    client: &Arc<Client>,
    requester: Requester,
    mut asked: Asked,
    extensions: Arc<Extensions>,
) -> Result<Query, Error> {
    let (reading, of) = (client.clone(), requester.clone());
    let ids = std::mem::take(&mut asked.subscriptions);
    let (asked, connection, subscriptions) = client
        .looks
        .blocking(move || {
            let view = reading.rooms.sync_view(reader(&of))?;
            let since = asked.pos;
            // A position from the future comes from a database that was since restored.
            if since.is_some_and(|since| since.at > view.now.at || reading.rooms.is_lost(since.at)) {
                return Err(unknown_pos().into());
            }
            let num = since.map(|since| since.num);
            let connection = reading.users.sliding_connection(&of, &asked.conn_id, num)?.ok_or_else(unknown_pos)?;
            let mut subscriptions = Vec::with_capacity(ids.len());
            for (id, config) in ids {
                subscriptions.extend(view.room_num(&id)?.map(|num| (num, config)));
            }
            subscriptions.sort_unstable_by_key(|(num, _)| *num);
            Ok::<_, Error>((asked, connection, subscriptions))
        })
        .await?;
    let since = asked.pos;
    let answer = &connection.answer;
    let seen = since.filter(|since| answer.asked == asked.hash && !extensions.is_behind(*since));
    let seen = seen.map(|upto| Arc::new(Seen { upto, counts: answer.counts.clone(), settled: answer.settled }));
    let (asked, connection, subscriptions) = (Arc::new(asked), Arc::new(connection), subscriptions.into());
    Ok(Query { requester, asked, extensions, subscriptions, connection, since, seen })
}

fn reader(requester: &Requester) -> Reader {
    Reader {
        user: requester.user_num,
        user_id: requester.user_id.clone(),
        device: requester.device_id.clone(),
        sees_all: false,
    }
}

/// 400 `M_BAD_JSON`: a member of the body has another shape.
fn bad(name: &str, shape: &str) -> ErrorResponse {
    ErrorResponse::bad("M_BAD_JSON", format!("{name}: this should be {shape}"))
}

/// Whether it is known without reading that nothing has changed for the app since the last look, or since its position.
fn is_quiet(client: &Client, query: &Query) -> bool {
    let Some(upto) = query.seen.as_ref().filter(|seen| seen.settled).map(|seen| seen.upto) else { return false };
    let changed = client.feed.rooms_changed(query.requester.user_num, upto.at, upto.at);
    changed.is_some_and(|rooms| rooms.is_empty())
        && client.rooms.typing_rooms(upto.typing).is_some_and(|rooms| rooms.is_empty())
}

/// The outcome of looking for changes.
enum Looked {
    /// The answer, or its beginning.
    Answer(Response),
    /// No news, and what was found instead.
    Nothing(Seen),
    /// There is no memory just now for finding out, or for writing what there is to tell. Never with a grant.
    NoMemory,
}

/// The grant for an answer, and for finding what it tells.
fn answer_bytes(query: &Query) -> u64 {
    ANSWER_BYTES + lists::window_bytes(&query.asked, usize::MAX)
}

/// Looks for changes and begins to write them, as one blocking job: mostly that is all of the answer. `is_last`: the answer
/// is due.
async fn look(client: &Arc<Client>, query: &Query, is_last: bool, grant: Option<Grant>) -> Result<Looked, Error> {
    let (client, query) = (client.clone(), query.clone());
    let looks = client.looks.clone();
    looks
        .blocking(move || {
            let bodies = client.budget.account("response_bodies");
            let view = client.rooms.sync_view(reader(&query.requester))?;
            let now = view.now;
            let look = looking(&client, &query, view);
            // Large windows take memory while they are looked for.
            let windows = match look.window_bytes()? {
                bytes if bytes > 0 && grant.is_none() => match bodies.try_take(bytes) {
                    Ok(windows) => Some(windows),
                    Err(_) => return Ok(Looked::NoMemory),
                },
                _ => None,
            };
            let plan = look.plan()?;
            drop(windows);
            #[cfg(debug_assertions)]
            check_few(&look, &query, &plan)?;
            let has_news =
                query.since.is_none() || !plan.rooms.is_empty() || query.extensions.has_news(&look, &plan)?;
            if !has_news && !is_last {
                let num = query.connection.answer.num;
                let extensions = query.extensions.asked().0;
                let upto = SlidingToken { num, at: now.at, typing: now.typing, complete: plan.complete, extensions };
                return Ok(Looked::Nothing(Seen { upto, counts: plan.counts, settled: plan.settled }));
            }
            match grant.map_or_else(|| bodies.try_take(ANSWER_BYTES).ok(), Some) {
                Some(grant) => begin(grant, base::written(|pen| write(pen, look, plan, query.extensions.clone()))),
                None => Ok(Looked::NoMemory),
            }
        })
        .await
}

fn looking(client: &Arc<Client>, query: &Query, view: crate::room::SyncView) -> Look {
    let since = query.since;
    let changed = |upto: SlidingToken| {
        let mut only = client.feed.rooms_changed(query.requester.user_num, upto.at, view.now.at)?;
        only.extend(view.typing_rooms(upto.typing)?);
        only.sort_unstable();
        only.dedup();
        Some(only.into())
    };
    let only = query.seen.as_ref().and_then(|seen| Some((seen.clone(), changed(seen.upto)?)));
    // What came before the last look and was no news is told all the same when there is an answer.
    let is_first_look = |(seen, _): &(Arc<Seen>, _)| since.is_some_and(|since| since.at == seen.upto.at);
    let own = own(client, query, &view);
    let own = if only.as_ref().is_some_and(is_first_look) { own.quiet(&client.users) } else { own };
    Look {
        client: client.clone(),
        view,
        own: Arc::new(own),
        asked: query.asked.clone(),
        subscriptions: query.subscriptions.clone(),
        connection: query.connection.clone(),
        since,
        only,
        direct: Arc::new(OnceLock::new()),
        spaces: Arc::new(OnceLock::new()),
    }
}

/// The user's own part of the answer.
fn own(client: &Client, query: &Query, view: &crate::room::SyncView) -> UserSync {
    let since = query.since.map(|since| since.at);
    let received = query.extensions.received().unwrap_or_else(|| since.unwrap_or_default());
    client.users.own(view.read.clone(), &query.requester, since, received, view.now.at)
}

/// What was found among the few rooms that changed is what is found among all.
#[cfg(debug_assertions)]
fn check_few(look: &Look, query: &Query, plan: &Plan) -> Result<(), Error> {
    if look.only.is_none() {
        return Ok(());
    }
    // Later looks tell what came before the last one too.
    if look.own.is_quiet() {
        let own = Arc::new(own(&look.client, query, &look.view));
        let everything = Look { only: None, own, ..look.clone() };
        extensions::check_few(&query.extensions, look, &everything, plan)?;
    }
    let all = Look { only: None, ..look.clone() }.plan()?;
    let nums = |plan: &Plan| plan.rooms.iter().map(|room| (room.num, room.lists)).collect::<Vec<_>>();
    // Among all, a room stands there too in which only what is not shown happened.
    assert!(nums(plan).iter().all(|room| nums(&all).contains(room)), "{plan:?} and not more than {all:?}");
    assert_eq!(plan.counts, all.counts, "lists keep their length while no membership changes");
    Ok(())
}

/// Writes the first piece of an answer, which mostly is the whole.
fn begin(grant: Grant, mut chunks: impl Chunks) -> Result<Looked, Error> {
    let mut first = Vec::with_capacity(FIRST_BYTES);
    let response = match chunks.next(&mut first) {
        Ok(true) => Response::stream(grant, base::begun(first, chunks)),
        Ok(false) if first.len() <= FIRST_BYTES => Response::json_bytes(StatusCode::OK, first),
        Ok(false) => Response::charged(StatusCode::OK, "application/json", first, grant),
        Err(failed) => {
            return Err(match failed.into_inner().downcast::<crate::user::Error>() {
                Ok(failed) => Error::from(*failed),
                Err(failed) => ErrorResponse::internal(failed).into(),
            });
        }
    };
    Ok(Looked::Answer(response))
}

async fn write(pen: ChunkWriter, look: Look, plan: Plan, extensions: Arc<Extensions>) -> Result<(), ChunkError> {
    pen.with(|out| {
        out.extend_from_slice(b"{\"lists\":{");
        let mut first = true;
        for (list, count) in look.asked.lists.iter().zip(&plan.counts) {
            base::comma(out, &mut first);
            json::write_string(out, &list.name);
            out.extend_from_slice(format!(":{{\"count\":{count}}}").as_bytes());
        }
    });
    pen.text("},\"rooms\":{");
    let (mut notes, mut first) = (Notes::new(&look, &plan), true);
    for planned in &plan.rooms {
        rooms::write(&pen, &look, &plan, &mut notes, planned, &mut first).await?;
    }
    pen.text("},\"extensions\":{");
    extensions.write(&pen, &look, &plan, &notes.starts).await?;
    let SyncToken { at, typing, .. } = look.view.now;
    let pos =
        SlidingToken { num: notes.finish()?, at, typing, complete: plan.complete, extensions: extensions.asked().0 };
    pen.text(&format!("}},\"pos\":\"{pos}\"}}"));
    Ok(())
}
