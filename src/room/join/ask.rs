//! Requests to resident servers: which servers may know the room, the event to be signed, the state.

use std::sync::atomic::Ordering::Relaxed;

use http::Method;
use ruma::OwnedServerName;

use super::Join;
use super::error::JoinError;
use super::progress::Phase;
use crate::matrix::version::StateRes;
use crate::matrix::{Event, RoomVersion};
use crate::remote::{Body, StreamLimits, encode};
use crate::room::Joining;
use crate::room::error::{Error, Result};
use crate::room::handshake;
use crate::room::handshake::{Verb, is_no, of_all};
use crate::room::state::servers;
use crate::store::tables::room;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::join::Journal;

/// Servers tried for a template.
const SERVERS_MAX: usize = 8;

/// Servers that may know the room, the best first.
pub struct Candidates {
    servers: Vec<OwnedServerName>,
    /// The first of them were named by the client; the inviter's server is among these. 0 when the client named none.
    named: usize,
}

impl<'a> Join<'a> {
    /// Servers that may know the room: those the client names, the inviter's, the room id's, those in it during our
    /// last stay.
    pub async fn servers(&self, joining: &Joining) -> Result<Candidates, JoinError> {
        let mut servers = joining.via.clone();
        let (user, room_id) = (self.user.to_owned(), self.room_id.to_owned());
        let inviters =
            self.rooms.reading(move |rooms, read| servers::out_of_band_of(rooms, read, &user, &room_id)).await;
        let inviters = inviters.unwrap_or_default();
        // The server of whoever invites comes first there.
        let named: Vec<OwnedServerName> = servers.iter().chain(inviters.first()).cloned().collect();
        let named = if servers.is_empty() { Vec::new() } else { named };
        servers.extend(inviters);
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
        let named = kept.iter().take_while(|server| named.contains(server)).count();
        if kept.is_empty() { Err(JoinError::Room(Error::NotFound)) } else { Ok(Candidates { servers: kept, named }) }
    }

    /// Our signed event, and the servers, with the one that made the template in front. When one that the client named
    /// says no, only the others that it named are asked.
    pub async fn draw_up(
        &self,
        candidates: Candidates,
        joining: Joining,
    ) -> Result<(Event, &'static RoomVersion, Vec<OwnedServerName>), JoinError> {
        let Candidates { mut servers, named } = candidates;
        let mut failures = Vec::new();
        for at in 0..servers.len() {
            if named > 0 && at >= named && failures.iter().any(|(_, failed)| is_no(failed)) {
                break;
            }
            match handshake::ask_template(self.rooms, &servers[at], Verb::Join, self.room_id, self.user).await {
                Ok(template) => {
                    if template.version.state_res == StateRes::V1 {
                        return Err(JoinError::Room(Error::Bad {
                            errcode: "M_UNSUPPORTED_ROOM_VERSION",
                            message:
                                "This server cannot join rooms of version 1: it lacks their state resolution algorithm."
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
                    let event = handshake::sign_template(self.rooms, &template, content)?;
                    servers.remove(at);
                    servers.insert(0, template.server);
                    return Ok((event, template.version, servers));
                }
                Err(failed) => {
                    tracing::info!(server = %servers[at], room_id = %self.room_id, %failed, "the server gave no \
                     template for a join");
                    failures.push((servers[at].clone(), failed));
                }
            }
        }
        Err(of_all(failures).map_or(JoinError::Room(Error::NotFound), JoinError::Remote))
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
        let mut failures = Vec::new();
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
                    tracing::info!(%server, room_id = %self.room_id, %failed, "the server refused the join, or gave \
                     no usable answer");
                    if !failed.is_refusal() {
                        // The server may have accepted our event, with only its answer lost.
                        self.progress.accepted.store(true, Relaxed);
                    }
                    // The server that made our event, or one of those it stands for, does not let it in.
                    let is_last = is_no(&failed) && want == Want::Join && journal.attempt == 0;
                    failures.push((server, failed));
                    if is_last {
                        break;
                    }
                }
            }
        }
        Err(of_all(failures).map_or(JoinError::Room(Error::NotFound), JoinError::Remote))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use ruma::RoomId;
    use serde_json::json;

    use super::*;
    use crate::budget::Budget;
    use crate::remote::tests::{Behaviour, Lab, name, peer, whole};
    use crate::room::testing::house_that;
    use crate::store::Store;

    /// A join that named its servers went on to the server in the room id when all of them refused.
    #[tokio::test]
    async fn when_a_server_that_the_client_names_says_no_others_are_not_looked_for() {
        let lab = Lab::new();
        let says = |status: u16, errcode: &'static str, error: &'static str| -> Behaviour {
            Arc::new(move |_, _| whole(status, &json!({ "errcode": errcode, "error": error })))
        };
        let no = peer(&lab, "no.example", says(403, "M_FORBIDDEN", "you are banned")).await;
        let unable = says(400, "M_UNABLE_TO_GRANT_JOIN", "no local user may invite");
        let unable = peer(&lab, "unable.example", unable).await;
        let gone = peer(&lab, "gone.example", says(404, "M_NOT_FOUND", "no such room")).await;
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let origin: Behaviour = Arc::new(move |_, _| {
            count.fetch_add(1, Relaxed);
            whole(404, &json!({ "errcode": "M_NOT_FOUND", "error": "left long ago" }))
        });
        let origin = peer(&lab, "origin.example", origin).await;
        let house = house_that(Budget::for_tests(), Store::in_memory(), |options| {
            let peers =
                [("no.example", no), ("gone.example", gone), ("unable.example", unable), ("origin.example", origin)];
            options.overrides = peers.iter().map(|(name, at)| (name.to_string(), at.to_string())).collect();
            options.extra_ca_pem = Some(lab.pem.clone().into_bytes());
        });
        let anna = house.user("anna").await;
        let room = <&RoomId>::try_from("!room:origin.example").unwrap();
        let join = async |via: &[&str]| {
            let joining = Joining { via: via.iter().map(|server| name(server)).collect(), ..Joining::default() };
            match house.rooms.join(&anna, room, joining).await {
                Err(Error::Remote(failed)) => failed,
                other => panic!("{other:?}"),
            }
        };
        let failed = join(&["gone.example", "no.example"]).await;
        assert_eq!((failed.errcode(), asked.load(Relaxed)), (Some("M_FORBIDDEN"), 0));
        let said = failed.to_string();
        assert!(said.contains("you are banned (so says no.example; gone.example answers 404"), "{said}");
        let failed = join(&["unable.example"]).await;
        assert_eq!((failed.errcode(), asked.load(Relaxed)), (Some("M_UNABLE_TO_GRANT_JOIN"), 0));
        // A server that does not know the room is no reason not to ask others.
        assert_eq!((join(&["gone.example"]).await.errcode(), asked.load(Relaxed)), (Some("M_NOT_FOUND"), 1));
        join(&[]).await;
        assert_eq!(asked.load(Relaxed), 2);
    }
}
