//! Joins that the server makes by itself: new people to the rooms that the operator names, and invites that are accepted for
//! people.

use std::time::Duration;

use ruma::{OwnedRoomId, OwnedRoomOrAliasId, OwnedServerName, RoomAliasId, RoomId, UserId};
use tokio::task::JoinSet;

use crate::base::{Clock, Live, Worker, unbroken};
use crate::room::{Create, Error, Joining, OpenInvite, Preset, Rooms};
use crate::user::{UserNum, Users};

/// Between two tries of what another server did not answer.
const AGAIN: Duration = Duration::from_secs(60);
/// Before the tries of an invite from elsewhere: it is known here before it is in the room there, where a join is refused until then.
const SOON: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];
/// Tries of a room for one new person, and of one invite: some hours of another server's outage are not waited for.
const TRIES_MAX: u32 = 10;
/// Invites under way at once: each may be a join through another server.
const AT_ONCE: usize = 4;
/// Administrators who are tried for an invite to a room that is not open.
const ADMINISTRATORS_MAX: usize = 8;

/// Until the server stops: joins new people to the rooms that are named. Who is new is a row until it is done, so that a person
/// who was added while the server was down, or as the power went, is joined after the next start.
pub async fn welcome(
    users: &Users,
    rooms: &Rooms,
    named: &Live<Vec<OwnedRoomOrAliasId>>,
    clock: &Clock,
    worker: &Worker,
) {
    let mut tries = 0;
    loop {
        let mut is_left = false;
        let mut after = None;
        loop {
            let user = match users.newcomer(after).await {
                Ok(Some(user)) => user,
                Ok(None) => break,
                Err(failed) => {
                    worker.failed(failed);
                    is_left = true;
                    break;
                }
            };
            after = Some(user);
            match welcome_one(users, rooms, &named.get(), user, worker).await {
                true if tries < TRIES_MAX => is_left = true,
                _ => {
                    if let Err(failed) = users.is_welcomed(user).await {
                        worker.failed(failed);
                        is_left = true;
                    }
                }
            }
        }
        match is_left {
            true => {
                worker.idle_for(AGAIN);
                tokio::select! {
                    () = clock.sleep(AGAIN) => tries += 1,
                    () = users.newcomers() => {}
                }
            }
            false => {
                tries = 0;
                worker.idle();
                users.newcomers().await;
            }
        }
    }
}

/// Joins one person to the rooms. Answers whether some room is to be tried again.
async fn welcome_one(
    users: &Users,
    rooms: &Rooms,
    named: &[OwnedRoomOrAliasId],
    user: UserNum,
    worker: &Worker,
) -> bool {
    let Ok(Some(user_id)) = users.active_id(user).await else { return false };
    let mut is_left = false;
    for room in named {
        worker.works_on(format_args!("joining {user_id} to {room}"));
        let (users, rooms, user_id, room) = (users.clone(), rooms.clone(), user_id.clone(), room.clone());
        let joined = unbroken(async move {
            let joined = join_named(&users, &rooms, &user_id, &room).await;
            if let Err(failed) = &joined {
                tracing::warn!("{user_id} could not be joined to {room}: {failed}");
            }
            joined
        });
        match joined.await {
            Ok(()) => worker.done(1),
            Err(failed) => {
                is_left |= may_pass(&failed);
                worker.failed(failed);
            }
        }
    }
    is_left
}

/// Whether the same may go well later.
fn may_pass(failed: &Error) -> bool {
    failed.is_passing() || matches!(failed, Error::Remote(_))
}

async fn join_named(users: &Users, rooms: &Rooms, user_id: &UserId, room: &OwnedRoomOrAliasId) -> Result<(), Error> {
    let (room_id, via): (OwnedRoomId, Vec<OwnedServerName>) = match <&RoomAliasId>::try_from(&**room) {
        Ok(alias) if alias.server_name() == rooms.server() => match rooms.resolve_here(alias).await {
            Ok(found) => (found.room_id, Vec::new()),
            Err(Error::NotFound) => return make_named(users, rooms, user_id, alias).await,
            Err(failed) => return Err(failed),
        },
        Ok(alias) => rooms.resolve_remote_alias(alias).await?,
        Err(_) => (RoomId::parse(room.as_str()).map_err(|_| Error::NotFound)?, Vec::new()),
    };
    if rooms.is_in_room(user_id, &room_id).await? {
        return Ok(());
    }
    let joining = || Joining { via: via.clone(), by_server: true, ..Joining::default() };
    match rooms.join(user_id, &room_id, joining()).await {
        // A room that is not open: an administrator who is in it may invite.
        Err(refused @ (Error::Reject(_) | Error::Forbidden(_))) => {
            for administrator in users.administrators(ADMINISTRATORS_MAX).await.unwrap_or_default() {
                if rooms.is_in_room(&administrator, &room_id).await?
                    && rooms.invite(&administrator, &room_id, user_id, None).await.is_ok()
                {
                    return rooms.join(user_id, &room_id, joining()).await;
                }
            }
            Err(refused)
        }
        joined => joined,
    }
}

/// Makes the room of an alias that leads nowhere: an administrator's where there is one, who is in it from then on.
async fn make_named(users: &Users, rooms: &Rooms, user_id: &UserId, alias: &RoomAliasId) -> Result<(), Error> {
    let creator = users.administrators(1).await.ok().and_then(|found| found.into_iter().next());
    let creator = creator.unwrap_or_else(|| user_id.to_owned());
    let name = alias.alias().to_owned();
    let create = Create {
        preset: Some(Preset::Public),
        name: Some(name.clone()),
        room_alias_name: Some(name),
        by_server: true,
        ..Create::default()
    };
    let room_id = rooms.create(&creator, create).await?;
    tracing::info!("{room_id} was made as {alias}, by {creator}, for new people");
    match creator == user_id {
        true => Ok(()),
        false => rooms.join(user_id, &room_id, Joining { by_server: true, ..Joining::default() }).await,
    }
}

/// Until the server stops: accepts invites of people here, as the settings want it. What another server does not answer is tried
/// again some times; after a restart all that are open are looked at once.
pub async fn accept_invites(users: &Users, rooms: &Rooms, clock: &Clock, worker: &Worker) {
    let (mut under_way, mut later) = (JoinSet::new(), Vec::new());
    loop {
        loop {
            let found = match rooms.invites_to_accept().await {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(failed) => {
                    tracing::warn!(%failed, "open invites could not be read");
                    worker.failed(failed);
                    clock.sleep(AGAIN).await;
                    continue;
                }
            };
            for invite in found {
                while under_way.len() >= AT_ONCE {
                    ended(under_way.join_next().await, &mut later, worker);
                }
                worker.works_on(format_args!("accepting an invite for {}", invite.user_id));
                under_way.spawn(accept(users.clone(), rooms.clone(), clock.clone(), invite, 1));
            }
        }
        let waits = (under_way.is_empty(), later.is_empty());
        if waits == (true, true) {
            worker.idle();
        }
        tokio::select! {
            () = rooms.invited() => {}
            done = under_way.join_next(), if !waits.0 => ended(done, &mut later, worker),
            () = clock.sleep(AGAIN), if !waits.1 && waits.0 => {
                for (invite, tries) in later.drain(..).take(AT_ONCE) {
                    under_way.spawn(accept(users.clone(), rooms.clone(), clock.clone(), invite, tries + 1));
                }
            }
        }
    }
}

type Accepted = (OpenInvite, u32, Result<(), Error>);

/// Takes note of the end of one.
fn ended(done: Option<Result<Accepted, tokio::task::JoinError>>, later: &mut Vec<(OpenInvite, u32)>, worker: &Worker) {
    match done {
        Some(Ok((_, _, Ok(())))) => worker.done(1),
        Some(Ok((invite, tries, Err(failed)))) => {
            let OpenInvite { user_id, room_id, .. } = &invite;
            tracing::info!(%user_id, %room_id, "an invite could not be accepted: {failed}");
            if may_pass(&failed) && tries < TRIES_MAX && later.len() < AT_ONCE * AT_ONCE {
                later.push((invite, tries));
            }
            worker.failed(failed);
        }
        Some(Err(failed)) => worker.failed(failed),
        None => {}
    }
}

async fn accept(users: Users, rooms: Rooms, clock: Clock, invite: OpenInvite, tries: u32) -> Accepted {
    let OpenInvite { user, user_id, room_id, inviter, is_direct } = &invite;
    let via = vec![inviter.server_name().to_owned()];
    let joining = || Joining { via: via.clone(), ..Joining::default() };
    let mut joined = Ok(());
    let is_from_here = inviter.server_name() == rooms.server();
    for pause in SOON.into_iter().skip(usize::from(is_from_here) * (SOON.len() - 1)) {
        if !is_from_here {
            clock.sleep(pause).await;
        }
        joined = rooms.join(user_id, room_id, joining()).await;
        if !matches!(joined, Err(Error::Remote(_) | Error::Reject(_) | Error::Forbidden(_))) {
            break;
        }
    }
    if joined.is_ok() && *is_direct {
        // An app would have noted it with the join.
        if let Err(failed) = users.note_direct(*user, inviter, room_id).await {
            tracing::info!(%user_id, %failed, "a direct chat is not in the list of such");
        }
    }
    (invite, tries, joined)
}
