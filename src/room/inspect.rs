//! Rooms as an administrator's tool lists them: filtered, in any order, a page at a time; their members, and a user's rooms.

use std::ops::ControlFlow;

use ruma::{EventId, OwnedUserId, RoomId, UserId};

use super::Rooms;
use super::error::{Error, Result};
use super::state::description::Description;
use super::state::event::load_row;
use super::state::{self, RoomRef};
use crate::base::{self, Chunks, Place, Ranked, bounded, rows_ranked};
use crate::matrix::json;
use crate::store::tables::room::blocked;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::{self, Room, Status, event, member, user_room};
use crate::store::tables::user::{self, device};
use crate::store::{self, Get, Read, RoomNum, UserNum};

/// Characters of a name in a few words.
const NAME_CHARS_MAX: usize = 80;
/// Characters of a word, or an id, out of a room's state: any event of it may have 64 KiB there.
const WORD_CHARS_MAX: usize = 255;
/// Members by whom a room without a name is named.
const WHO_NAMED: usize = 3;
/// Members read at once.
const MEMBERS_A_READ: usize = 200;

/// Which rooms are listed. `None` in a filter lets all pass.
#[derive(Debug, Clone, Default)]
pub struct WantedRooms {
    /// Part of the room's name, of its main alias or its id.
    pub term: Option<String>,
    pub public: Option<bool>,
    /// Whether nobody is joined.
    pub empty: Option<bool>,
}

/// What rooms are put in order by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoomOrder {
    #[default]
    Name,
    Alias,
    Joined,
    LocalJoined,
    Version,
    Creator,
    Encryption,
    Federated,
    Public,
    JoinRule,
    GuestAccess,
    History,
    StateEvents,
    /// The bytes of the events that are stored here.
    Bytes,
}

/// A room with what a list shows of it.
#[derive(Debug, Clone)]
pub struct ListedRoom {
    pub description: Description,
    pub version: String,
    /// Whether this server is in the room; else what is said here is as it was when the last user of this server left.
    pub resident: bool,
    pub local_joined: u64,
    pub creator: Option<String>,
    pub federated: bool,
    pub public: bool,
    pub guest_access: Option<String>,
    pub history_visibility: Option<String>,
    /// The events of the room that are stored here, state and others, and the bytes of their bodies.
    pub events: u64,
    pub bytes: u64,
    /// The room that replaces this one; `Some(None)` when it was closed without another.
    pub replaced_by: Option<Option<String>>,
}

/// A room in a few words, at most 600 bytes.
#[derive(Debug, Clone)]
pub struct BriefRoom {
    pub room_id: String,
    /// Its name; of a room without one who is in it.
    pub name: Option<String>,
    /// Whether this server is in the room.
    pub resident: bool,
    pub joined: u64,
    pub local_joined: u64,
    pub events: u64,
    pub bytes: u64,
    pub public: bool,
    /// Nobody of this server may come into it.
    pub blocked: bool,
}

impl Rooms {
    /// The rooms at the ranks `from..from + most`, and how many there are in all: a few walks over all rooms, one for the first 512.
    /// `most` is at most 512.
    pub async fn find(
        &self,
        wanted: WantedRooms,
        order: RoomOrder,
        backwards: bool,
        from: usize,
        most: usize,
    ) -> Result<(Vec<RoomNum>, usize)> {
        self.reading(move |_, read| ranks(read, &wanted, order, backwards, from, most)).await
    }

    /// The rooms of a page as a list shows them, one at a time, for a long answer: it blocks. Without what a list does not show, which
    /// are topics, pictures, and the rooms whose members may join; names have 255 characters at most. None for one that is not there
    /// any more.
    pub fn listed_now(&self, num: RoomNum) -> Result<Option<ListedRoom>> {
        let read = self.read()?;
        let mut room = match listed(&read, num) {
            Err(Error::NotFound) => return Ok(None),
            found => found?,
        };
        let about = &mut room.description;
        (about.topic, about.avatar_url, about.allowed_room_ids) = (None, None, Vec::new());
        for text in [
            &mut about.name,
            &mut about.canonical_alias,
            &mut about.room_type,
            &mut about.encryption,
            &mut about.join_rule,
        ] {
            *text = text.take().map(word);
        }
        Ok(Some(room))
    }

    /// A room's name and main alias, cut to 255 characters each. Neither for a room that is not here.
    pub async fn names(&self, room_id: &str) -> Result<(Option<String>, Option<String>)> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| names(read, &room_id)).await
    }

    /// The same for a long answer: it blocks.
    pub fn names_now(&self, room_id: &str) -> Result<(Option<String>, Option<String>)> {
        names(&self.read()?, room_id)
    }

    /// The same in a few bounded words about each room, for a page of many.
    pub async fn find_brief(
        &self,
        wanted: WantedRooms,
        order: RoomOrder,
        from: usize,
        most: usize,
    ) -> Result<(Vec<BriefRoom>, usize)> {
        self.reading(move |_, read| {
            let (page, total) = ranks(read, &wanted, order, false, from, most)?;
            let page: Result<Vec<_>> = page.into_iter().map(|num| brief(read, num)).collect();
            Ok((page?, total))
        })
        .await
    }

    /// A room in a few words. `NotFound` when it is not known here, or only by an invite.
    pub async fn brief(&self, room_id: &RoomId) -> Result<BriefRoom> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| {
            let num = room::num(read, room_id.as_str())?.ok_or(Error::NotFound)?;
            brief(read, num)
        })
        .await
    }

    /// One room as a list shows it. `NotFound` when it is not known here, or only by an invite.
    pub async fn listed(&self, room_id: &RoomId) -> Result<ListedRoom> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| {
            let num = room::num(read, room_id.as_str())?.ok_or(Error::NotFound)?;
            listed(read, num)
        })
        .await
    }

    /// The ids of a room's joined members, as `{"members": […], "total": …}`. `NotFound` when it is not known here.
    pub async fn list_members(&self, room_id: &RoomId) -> Result<impl Chunks> {
        let of = room_id.to_owned();
        let num = self.reading(move |_, read| Ok(state::known(read, of.as_str())?.num)).await?;
        let rooms = self.clone();
        Ok(base::written(async move |pen| {
            let (mut after, mut first, mut total) = (None, true, 0u64);
            pen.text("{\"members\":[");
            loop {
                let (last, page) = rooms.some_members(num, after)?;
                let Some(last) = last else { break };
                after = Some(last);
                for id in page {
                    let id = serde_json::to_vec(&id)?;
                    pen.with(|out| {
                        base::comma(out, &mut first);
                        out.extend_from_slice(&id);
                    });
                    total += 1;
                    pen.pause().await;
                }
            }
            pen.text(&format!("],\"total\":{total}}}"));
            Ok(())
        }))
    }

    /// The ids of the next members, and the last of them. Each part is a read of its own: nobody who takes the list slowly keeps
    /// the database from using its pages again.
    fn some_members(&self, room: RoomNum, after: Option<UserNum>) -> Result<(Option<UserNum>, Vec<String>)> {
        let (read, mut page) = (self.read()?, Vec::new());
        member::list(&read, room, Membership::Join, after, &mut |user, _| {
            page.push(user);
            Ok(if page.len() < MEMBERS_A_READ { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        let ids = page.iter().map(|user| user::id_of(&read, *user)).collect::<store::Result<_>>()?;
        Ok((page.last().copied(), ids))
    }

    /// The rooms of a user: those joined as `{"joined_rooms": […], "total": …}`, or with `memberships` all that are known of
    /// as `{"memberships": {…}}`. Of a user of another server, the rooms in which this server is: one lookup for each room here.
    pub async fn list_rooms_of(&self, user_id: &UserId, memberships: bool) -> Result<impl Chunks> {
        let (rooms, of) = (self.clone(), user_id.to_owned());
        let found = self.reading(move |_, read| {
            let user = user::num(read, of.as_str())?;
            let is_local = user.map(|user| user::is_local(read, user)).transpose()?.unwrap_or(false);
            Ok((user, is_local))
        });
        let (user, is_local) = found.await?;
        Ok(base::written(async move |pen| {
            let (mut after, mut first, mut total) = (None, true, 0u64);
            pen.text(if memberships { "{\"memberships\":{" } else { "{\"joined_rooms\":[" });
            while let Some(user) = user
                && let Some((num, row, membership)) = next_room(&rooms, user, is_local, after)?
            {
                after = Some(num);
                if memberships || membership == Membership::Join {
                    let id = serde_json::to_vec(&row.id)?;
                    pen.with(|out| {
                        base::comma(out, &mut first);
                        out.extend_from_slice(&id);
                        if memberships {
                            out.extend_from_slice(format!(":\"{}\"", membership.as_str()).as_bytes());
                        }
                    });
                    total += 1;
                }
                pen.pause().await;
            }
            pen.text(&if memberships { "}}".to_owned() } else { format!("],\"total\":{total}}}") });
            Ok(())
        }))
    }

    /// An event as servers exchange it, with its id, of whichever room. `NotFound` for one that is not here.
    pub async fn stored_event(&self, event_id: &EventId) -> Result<Vec<u8>> {
        let event_id = event_id.to_owned();
        self.reading(move |_, read| {
            let row = event::row_of(read, event::num(read, event_id.as_str())?.ok_or(Error::NotFound)?)?;
            let event = load_row(read, state::known_num(read, row.room)?.version, &row)?;
            let mut text = event.to_federation().to_vec();
            // Canonical JSON has no room for it but at an end.
            text.pop();
            text.extend_from_slice(format!(",\"event_id\":{}}}", serde_json::json!(event_id)).as_bytes());
            Ok(text)
        })
        .await
    }

    /// The events of a room that no other refers to yet: id and depth.
    pub async fn extremities(&self, room_id: &RoomId) -> Result<Vec<(String, u64)>> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| {
            let room = state::known(read, room_id.as_str())?;
            let one = |num: &crate::store::EventNum| Ok((event::id_of(read, *num)?, event::row_of(read, *num)?.depth));
            room.row.extremities.iter().map(one).collect()
        })
        .await
    }

    /// How many devices the joined members of this server have. One walk over those members and their devices.
    pub async fn local_devices(&self, room_id: &RoomId) -> Result<u64> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| {
            let num = room::num(read, room_id.as_str())?.ok_or(Error::NotFound)?;
            let mut devices = 0;
            member::list_local(read, num, &mut |user, membership| {
                if membership == Membership::Join {
                    device::each(read, user, &mut |_, _| {
                        devices += 1;
                        Ok(ControlFlow::Continue(()))
                    })?;
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(devices)
        })
        .await
    }

    /// Who of this server is joined. Bounded by the users of this server.
    pub async fn local_members(&self, room_id: &RoomId) -> Result<Vec<OwnedUserId>> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| {
            let num = room::num(read, room_id.as_str())?.ok_or(Error::NotFound)?;
            let mut users = Vec::new();
            member::list_local(read, num, &mut |user, membership| {
                if membership == Membership::Join {
                    users.push(user);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            let id = |user| user::id_of(read, user)?.try_into().map_err(|_| Error::NotFound);
            users.into_iter().map(id).collect()
        })
        .await
    }
}

/// The next room of a user behind `after`, and what the user is in it. A read of its own, as for the members of a room.
fn next_room(
    rooms: &Rooms,
    user: UserNum,
    is_local: bool,
    after: Option<RoomNum>,
) -> Result<Option<(RoomNum, Room, Membership)>> {
    let read = &rooms.read()?;
    let mut found = None;
    if is_local {
        user_room::list_mine(read, user, after, &mut |num, mine| {
            found = Some((num, mine.membership));
            Ok(ControlFlow::Break(()))
        })?;
        return match found {
            Some((num, membership)) => Ok(Some((num, room::get_of(read, num)?, membership))),
            None => Ok(None),
        };
    }
    let mut found = None;
    room::list_after(read, after, &mut |num, row| {
        if row.status == Status::Resident
            && let Some((membership, _)) = member::get(read, num, user)?
        {
            found = Some((num, row, membership));
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// Visits the wanted rooms in the order in which they became known. Stubs are no rooms yet.
fn each(read: &Read, wanted: &WantedRooms, order: RoomOrder, visit: &mut dyn FnMut(Place)) -> Result<()> {
    let fits = |wanted: Option<bool>, is: bool| wanted.is_none_or(|wanted| wanted == is);
    room::list_after(read, None, &mut |num, row| {
        if row.status == Status::Stub || !fits(wanted.public, row.public) || !fits(wanted.empty, row.joined == 0) {
            return Ok(ControlFlow::Continue(()));
        }
        // A room whose version this program does not know cannot be shown, and hides no other.
        let Ok(room) = state::known_num(read, num) else { return Ok(ControlFlow::Continue(())) };
        let text = |kind, field| Ok::<_, crate::store::Error>(room.view(read).text(kind, field)?.unwrap_or_default());
        if let Some(term) = &wanted.term {
            let lower = term.to_lowercase();
            let alias = text("m.room.canonical_alias", "alias")?;
            let localpart = alias.split(':').next().unwrap_or_default().to_lowercase();
            let name = text("m.room.name", "name")?.to_lowercase();
            if !name.contains(&lower) && !localpart.contains(&lower) && !row.id.contains(term.as_str()) {
                return Ok(ControlFlow::Continue(()));
            }
        }
        // Numbers stand largest first, as Synapse has them.
        let largest = |number: u64| u64::MAX - number;
        let (number, text) = match order {
            RoomOrder::Name => (0, text("m.room.name", "name")?),
            RoomOrder::Alias => (0, text("m.room.canonical_alias", "alias")?),
            RoomOrder::Joined => (largest(row.joined), String::new()),
            RoomOrder::LocalJoined => (largest(local_joined(read, num)?), String::new()),
            RoomOrder::Version => (largest(row.version.parse().unwrap_or(0)), row.version.clone()),
            RoomOrder::Creator => (0, creator(read, &room)?.unwrap_or_default()),
            RoomOrder::Encryption => (0, text("m.room.encryption", "algorithm")?),
            RoomOrder::Federated => (is_federated(read, &room)?.into(), String::new()),
            RoomOrder::Public => (row.public.into(), String::new()),
            RoomOrder::JoinRule => (0, text("m.room.join_rules", "join_rule")?),
            RoomOrder::GuestAccess => (0, text("m.room.guest_access", "guest_access")?),
            RoomOrder::History => (0, text("m.room.history_visibility", "history_visibility")?),
            RoomOrder::StateEvents => (largest(row.events), String::new()),
            RoomOrder::Bytes => (largest(row.bytes), String::new()),
        };
        visit(Place::new(number, &text.to_lowercase(), num.0.into()));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(())
}

/// The rooms of the ranks `from..from + most`, and how many there are in all.
fn ranks(
    read: &Read,
    wanted: &WantedRooms,
    order: RoomOrder,
    backwards: bool,
    from: usize,
    most: usize,
) -> Result<(Vec<RoomNum>, usize)> {
    let Ranked { page, total } = rows_ranked(from, most, backwards, &mut |visit| each(read, wanted, order, visit))?;
    // What was visited are numbers of rooms.
    Ok((page.into_iter().filter_map(|num| num.try_into().ok().map(RoomNum)).collect(), total))
}

fn names(read: &Read, room_id: &str) -> Result<(Option<String>, Option<String>)> {
    let Ok(room) = state::known(read, room_id) else { return Ok((None, None)) };
    let view = room.view(read);
    Ok((view.text("m.room.name", "name")?.map(word), view.text("m.room.canonical_alias", "alias")?.map(word)))
}

fn brief(read: &Read, num: RoomNum) -> Result<BriefRoom> {
    let room = state::known_num(read, num)?;
    let name = room.view(read).text("m.room.name", "name")?.map(|name| bounded(name, NAME_CHARS_MAX));
    let name = match name.filter(|name| !name.trim().is_empty()) {
        Some(name) => Some(name),
        None => who(read, num, room.row.joined)?,
    };
    Ok(BriefRoom {
        name,
        resident: room.is_resident(),
        joined: room.row.joined,
        local_joined: local_joined(read, num)?,
        events: room.row.events,
        bytes: room.row.bytes,
        public: room.row.public,
        blocked: blocked::get(read, &room.row.id)?.is_some(),
        room_id: room.row.id,
    })
}

/// Who is in a room without a name: a few of the joined, such as "anna, tom and 3 others". None when nobody is.
fn who(read: &Read, num: RoomNum, joined: u64) -> Result<Option<String>> {
    let mut some: Vec<UserNum> = Vec::new();
    member::list(read, num, Membership::Join, None, &mut |user, _| {
        some.push(user);
        Ok(if some.len() < WHO_NAMED { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let mut names = Vec::with_capacity(some.len());
    for user in some {
        let id = user::id_of(read, user)?;
        let localpart = id.trim_start_matches('@').split(':').next().unwrap_or_default();
        names.push(bounded(localpart, NAME_CHARS_MAX / WHO_NAMED - 2));
    }
    Ok(match (names.len(), joined.saturating_sub(names.len() as u64)) {
        (0, _) => None,
        (1, 0) => Some(format!("{} alone", names[0])),
        (_, 0) => {
            let last = names.pop().unwrap_or_default();
            Some(format!("{} and {last}", names.join(", ")))
        }
        (_, 1) => Some(format!("{} and another", names.join(", "))),
        (_, more) => Some(format!("{} and {more} others", names.join(", "))),
    })
}

fn listed(read: &Read, num: RoomNum) -> Result<ListedRoom> {
    let room = state::known_num(read, num)?;
    let view = room.view(read);
    let tombstone = view.event("m.room.tombstone", "")?;
    let replaced_by = tombstone.map(|event| {
        json::read::get_text(event.content().as_bytes(), "replacement_room").map(|id| word(id.to_string()))
    });
    Ok(ListedRoom {
        description: Description::whole(read, &room)?,
        version: room.row.version.clone(),
        resident: room.is_resident(),
        local_joined: local_joined(read, num)?,
        creator: creator(read, &room)?,
        federated: is_federated(read, &room)?,
        public: room.row.public,
        guest_access: view.text("m.room.guest_access", "guest_access")?.map(word),
        history_visibility: view.text("m.room.history_visibility", "history_visibility")?.map(word),
        events: room.row.events,
        bytes: room.row.bytes,
        replaced_by,
    })
}

fn word(text: String) -> String {
    bounded(text, WORD_CHARS_MAX)
}

fn creator(read: &Read, room: &RoomRef) -> crate::store::Result<Option<String>> {
    Ok(room.view(read).event("m.room.create", "")?.map(|event| event.sender().to_string()))
}

fn is_federated(read: &Read, room: &RoomRef) -> crate::store::Result<bool> {
    let Some(event) = room.view(read).event("m.room.create", "")? else { return Ok(true) };
    let content: serde_json::Value = serde_json::from_str(event.content()).unwrap_or_default();
    Ok(content["m.federate"].as_bool().unwrap_or(true))
}

/// Bounded by the number of local users.
fn local_joined(get: &impl Get, num: RoomNum) -> crate::store::Result<u64> {
    let mut count = 0;
    member::list_local(get, num, &mut |_, membership| {
        count += u64::from(membership == Membership::Join);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::Create;
    use crate::room::testing::*;

    #[tokio::test]
    async fn rooms_with_long_names_are_listed_in_a_few_bytes_each() {
        let house = house();
        let anna = house.user("anna").await;
        for _ in 0..10 {
            house.clock.advance(std::time::Duration::from_secs(1));
            let (name, topic) = (Some("\u{1f3e0}".repeat(2000)), Some("long".repeat(1000)));
            house.clock.advance(std::time::Duration::from_millis(1));
            house.rooms.create(&anna, Create { name, topic, ..Create::default() }).await.unwrap();
        }
        let find = |backwards, from| house.rooms.find(WantedRooms::default(), RoomOrder::Name, backwards, from, 7);
        let (first, rest) = (find(false, 0).await.unwrap(), find(false, 7).await.unwrap());
        assert_eq!((first.0.len(), first.1, rest.0.len()), (7, 10, 3));
        let mut all = [first.0, rest.0].concat();
        let back = [find(true, 0).await.unwrap().0, find(true, 7).await.unwrap().0].concat();
        all.reverse();
        assert_eq!(all, back);
        for num in all {
            let about = house.rooms.listed_now(num).unwrap().unwrap().description;
            assert_eq!((about.name.unwrap().chars().count(), about.topic), (WORD_CHARS_MAX, None));
        }
    }
}
