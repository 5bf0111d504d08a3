//! Requests to resident servers: which servers may know the room, the event to be signed, the state.

use std::sync::atomic::Ordering::Relaxed;

use http::Method;
use ruma::OwnedServerName;

use super::Join;
use super::error::JoinError;
use super::progress::Phase;
use crate::matrix::version::StateRes;
use crate::matrix::{Event, RoomVersion};
use crate::remote::{Body, Failed, StreamLimits, encode};
use crate::room::Joining;
use crate::room::error::{Error, Result};
use crate::room::handshake;
use crate::room::handshake::Verb;
use crate::room::state::servers;
use crate::store::tables::room;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::join::Journal;

/// Servers tried for a template.
const SERVERS_MAX: usize = 8;

impl<'a> Join<'a> {
    /// Servers that may know the room: those the client names, the inviter's, the room id's, those in it during our
    /// last stay.
    pub async fn servers(&self, joining: &Joining) -> Result<Vec<OwnedServerName>, JoinError> {
        let mut servers = joining.via.clone();
        let (user, room_id) = (self.user.to_owned(), self.room_id.to_owned());
        let inviters =
            self.rooms.reading(move |rooms, read| servers::out_of_band_of(rooms, read, &user, &room_id)).await;
        servers.extend(inviters.unwrap_or_default());
        servers.extend(self.room_id.server_name().map(ToOwned::to_owned));
        let room_id = self.room_id.to_owned();
        let left = self.rooms.reading(move |rooms, read| match room::num(read, room_id.as_str())? {
            Some(num) => servers::servers_of(rooms, read, num),
            None => Ok(Vec::new()),
        });
        servers.extend(left.await?);
        let mut kept: Vec<OwnedServerName> = Vec::new();
        for server in servers {
            if !self.rooms.0.parts.remote.is_me(&server) && !kept.contains(&server) && kept.len() < SERVERS_MAX {
                kept.push(server);
            }
        }
        if kept.is_empty() { Err(JoinError::Room(Error::NotFound)) } else { Ok(kept) }
    }

    /// Our signed event, and the servers, with the one that made the template in front.
    pub async fn draw_up(
        &self,
        mut servers: Vec<OwnedServerName>,
        joining: Joining,
    ) -> Result<(Event, &'static RoomVersion, Vec<OwnedServerName>), JoinError> {
        let mut last = None;
        for at in 0..servers.len() {
            match handshake::ask_template(&self.rooms, &servers[at], Verb::Join, self.room_id, self.user).await {
                Ok(template) => {
                    if template.version.state_res == StateRes::V1 {
                        return Err(JoinError::Room(Error::Bad {
                            errcode: "M_UNSUPPORTED_ROOM_VERSION",
                            message:
                                "Rooms of version 1 resolve their state by an algorithm this server does not have \
                                      yet, so it cannot join them."
                                    .into(),
                        }));
                    }
                    let mut content = crate::room::send::member::content_of(Membership::Join, joining.reason.clone());
                    let mut extra = joining.content_extra.clone();
                    extra.remove("join_authorised_via_users_server");
                    extra.remove("membership");
                    content.extend(extra);
                    if let Some(by) = template.authorised_via() {
                        content.insert("join_authorised_via_users_server".into(), by.into());
                    }
                    let user = self.user.to_owned();
                    let content = self
                        .rooms
                        .reading(move |_, read| crate::room::send::member::with_profile(read, &user, content))
                        .await?;
                    let event = handshake::sign_template(&self.rooms, &template, content)?;
                    servers.remove(at);
                    servers.insert(0, template.server);
                    return Ok((event, template.version, servers));
                }
                Err(failed) => {
                    tracing::info!(server = %servers[at], room_id = %self.room_id, %failed, "no template for a join");
                    // A refusal says more about the room than a failure to reach another server.
                    if last.as_ref().is_none_or(|last: &Failed| !last.is_refusal()) || failed.is_refusal() {
                        last = Some(failed);
                    }
                }
            }
        }
        Err(last.map_or(JoinError::Room(Error::NotFound), JoinError::Remote))
    }

    /// Requests the room: with our event, which a resident server that has it already answers again, or by the event's
    /// id.
    pub async fn ask(
        &self,
        journal: &Journal,
        event: &Event,
        want: Want,
        max_bytes: u64,
    ) -> Result<(Body, String), JoinError> {
        self.progress.enter(Phase::Asking);
        let (room, id) = (encode(self.room_id.as_str()), encode(event.id().as_str()));
        let remote = &self.rooms.0.parts.remote;
        let mut last = None;
        for resident in &journal.residents {
            let Ok(server) = OwnedServerName::try_from(resident.as_str()) else { continue };
            let join = format!("/_matrix/federation/v2/send_join/{room}/{id}?omit_members=true");
            let state = format!("/_matrix/federation/v1/state/{room}?event_id={id}");
            let pace = StreamLimits::patient(max_bytes);
            let content = event.to_federation().to_vec();
            let asked = async {
                match want {
                    Want::Join => remote.stream(&server, Method::PUT, &join, Some(content), pace).await,
                    Want::State => remote.stream(&server, Method::GET, &state, None, pace).await,
                }
            };
            let asked = self.progress.unless_cancelled(asked).await?;
            // A resident server that accepted our event may not accept it twice; it can still give the state before it.
            let asked = match asked {
                Err(failed) if failed.is_refusal() && want == Want::Join && journal.attempt > 0 => {
                    let asked = remote.stream(&server, Method::GET, &state, None, pace);
                    self.progress.unless_cancelled(asked).await?
                }
                asked => asked,
            };
            match asked {
                Ok(body) => {
                    self.progress.accepted.store(true, Relaxed);
                    return Ok((body, resident.clone()));
                }
                Err(failed) => {
                    tracing::info!(%server, room_id = %self.room_id, %failed, "the room was not given");
                    if !failed.is_refusal() {
                        // The server may have accepted our event, with only its answer lost.
                        self.progress.accepted.store(true, Relaxed);
                    }
                    if last.as_ref().is_none_or(|last: &Failed| !last.is_refusal()) || failed.is_refusal() {
                        last = Some(failed);
                    }
                }
            }
        }
        Err(last.map_or(JoinError::Room(Error::NotFound), JoinError::Remote))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Want {
    Join,
    State,
}

/// Our event with the resident server's signature beside ours, when the server sent it.
pub fn countersigned(version: &'static RoomVersion, said: Option<&[u8]>, event: Event) -> Event {
    let theirs = said.and_then(|raw| Event::from_wire(version, raw).ok());
    match theirs {
        Some(theirs) if theirs.id() == event.id() && theirs.is_intact() => theirs,
        _ => event,
    }
}
