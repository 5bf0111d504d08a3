//! Events: an id's small number, the columns the rules read, and the body.
//!
//! An event is three rows. The *row* holds the columns, under the event's number; numbers are topological within a
//! room (an event's auth events have smaller ones, asserted at insertion), so auth chains and differences are one
//! descending pass over neighbouring rows. The *body* is under an arrival number of its own, so that a join can store
//! bodies as they stream in and number them when their order is known. The *id* leads from a keyed hash to the number
//! (`event_id.rs`).

use std::ops::ControlFlow;

use super::body::{self, Known, Wants};
use super::event_id;
use super::event_row::{Id, Membership, Row};
use crate::base::shares::{Held, of_the_busiest};
use crate::store::num::KEYS_OF_A_KIND_MAX;
use crate::store::schema::{EVENT, EVENT_BODY, FOLLOWED, REDACTION_PENDING, STATE_KEY};
use crate::store::tables::{room, user};
use crate::store::{BodyNum, EventNum, RoomNum, StateKeyNum};
use crate::store::{Error, Get, Result, Write};

/// More auth events than this are no event: the specification's authorisation rules need at most five kinds, and
/// `matrix::format` refuses longer lists before they get here.
pub const AUTH_EDGES_MAX: usize = 64;

/// Sets aside `count` event numbers and answers the first; they are never given out again, used or not.
pub fn reserve(w: &mut Write, count: u32) -> Result<EventNum> {
    w.next_numbers("event", count).map(EventNum)
}

/// Sets aside `count` body numbers and answers the first.
pub fn reserve_bodies(w: &mut Write, count: u32) -> Result<BodyNum> {
    w.next_numbers("body", count).map(BodyNum)
}

/// The number of an event id, when the event is stored.
pub fn num(get: &impl Get, id: &str) -> Result<Option<EventNum>> {
    event_id::find(get, id, &|num| Ok(stored_id(get, num)?.is_some_and(|stored| stored.text() == id)))
}

/// An event's columns.
pub fn row(get: &impl Get, num: EventNum) -> Result<Option<Row>> {
    let Some(row) = get.get(&EVENT, &num.to_key())? else { return Ok(None) };
    Row::decode(num, &row).map(Some).ok_or_else(|| Error::corrupt(&EVENT, &num.to_key()))
}

/// The columns of an event that one of our own rows mentions.
pub fn row_of(get: &impl Get, num: EventNum) -> Result<Row> {
    row(get, num)?.ok_or_else(|| Error::corrupt(&EVENT, &num.to_key()))
}

/// The id of an event that one of our own rows mentions.
pub fn id_of(get: &impl Get, num: EventNum) -> Result<String> {
    let id = stored_id(get, num)?.ok_or_else(|| Error::corrupt(&EVENT, &num.to_key()))?;
    Ok(id.text())
}

fn stored_id(get: &impl Get, num: EventNum) -> Result<Option<Id>> {
    let mut id = None;
    if get.with(&EVENT, &num.to_key(), &mut |row| id = Row::decode_id(row))? && id.is_none() {
        return Err(Error::corrupt(&EVENT, &num.to_key()));
    }
    Ok(id)
}

/// Writes an event's columns. Its auth events are stored already: their numbers are smaller.
pub fn put_row(w: &mut Write, num: EventNum, row: &Row) -> Result<()> {
    w.put(&EVENT, &num.to_key(), &row.encode(num))
}

/// Writes the columns of many events, in the order of their numbers.
pub fn put_rows<'r>(w: &mut Write, sorted: impl Iterator<Item = (EventNum, &'r Row)>) -> Result<()> {
    let rows: Vec<_> = sorted.map(|(num, row)| (num.to_key(), row.encode(num))).collect();
    w.put_sorted(&EVENT, &rows)
}

/// Makes the id lead to the number.
pub fn put_id(w: &mut Write, id: &str, num: EventNum) -> Result<()> {
    event_id::put(w, id, num)
}

/// The same for many ids, whose hashes a large join has sorted.
pub fn put_id_hashes(w: &mut Write, sorted: &[([u8; 16], EventNum)]) -> Result<()> {
    event_id::put_hashes(w, sorted)
}

/// Forgets a body that no row names.
pub fn remove_body(w: &mut Write, num: BodyNum) -> Result<()> {
    w.remove(&EVENT_BODY, &num.to_key()).map(drop)
}

/// A body as it is stored.
pub fn stored_body(get: &impl Get, num: BodyNum) -> Result<Vec<u8>> {
    get.get(&EVENT_BODY, &num.to_key())?.ok_or_else(|| Error::corrupt(&EVENT_BODY, &num.to_key()))
}

/// Forgets an event's row and id, and leaves its body: for taking back a failed join.
pub fn remove_row(w: &mut Write, num: EventNum) -> Result<()> {
    let Some(row) = row(w, num)? else { return Ok(()) };
    event_id::remove(w, &row.id.text(), num)?;
    w.remove(&EVENT, &num.to_key()).map(drop)
}

/// Writes bodies packed by [`body::encode`] under numbers in a row.
pub fn put_bodies<'b>(w: &mut Write, first: BodyNum, bodies: impl Iterator<Item = &'b [u8]>) -> Result<()> {
    let rows: Vec<_> = bodies.zip(first.0..).map(|(stored, num)| (BodyNum(num).to_key(), stored)).collect();
    w.put_sorted(&EVENT_BODY, &rows)
}

/// Writes a body packed by [`body::encode`].
pub fn put_body(w: &mut Write, num: BodyNum, stored: &[u8]) -> Result<()> {
    w.put(&EVENT_BODY, &num.to_key(), stored)
}

/// An event's canonical JSON, restored exactly. About 64 KiB at most.
pub fn body(get: &impl Get, row: &Row) -> Result<Vec<u8>> {
    restored(get, row, true, &mut KnownIds::default())
}

/// The same for one of many events of a room.
pub fn body_of_many(get: &impl Get, row: &Row, known: &mut KnownIds) -> Result<Vec<u8>> {
    restored(get, row, true, known)
}

/// An event's JSON for reading what apps are shown of it. Its room's id, auth events, hashes and signatures are empty in
/// it, which costs less to restore than [`body`].
pub fn shown(get: &impl Get, row: &Row) -> Result<Vec<u8>> {
    restored(get, row, false, &mut KnownIds::default())
}

fn restored(get: &impl Get, row: &Row, is_whole: bool, known: &mut KnownIds) -> Result<Vec<u8>> {
    let corrupt = || Error::corrupt(&EVENT_BODY, &row.body.to_key());
    let stored = stored_body(get, row.body)?;
    let opened = body::open(&stored).ok_or_else(corrupt)?;
    let wants = if is_whole { opened.wants() } else { opened.wants().of_shown() };
    let said = Said::of(get, row, wants, known)?;
    let lacks = |wanted, text: &str| wanted && text.is_empty();
    if lacks(wants.room_id(), &said.room_id)
        || lacks(wants.sender(), &said.sender)
        || lacks(wants.target(), &said.target)
    {
        return Err(corrupt());
    }
    let restore = |known: &Known<'_>| if is_whole { opened.restore(known) } else { opened.restore_shown(known) };
    said.with(row, restore).ok_or_else(corrupt)
}

/// Ids that the events of a room name again and again: the room's own, and those of its auth events. Some 6 KiB; without
/// memory by default.
#[derive(Default)]
pub struct KnownIds {
    room: Option<(RoomNum, String)>,
    /// Each event has one place.
    events: Vec<(EventNum, String)>,
}

const KNOWN_EVENTS: usize = 64;

impl KnownIds {
    pub fn new() -> KnownIds {
        KnownIds { room: None, events: vec![(EventNum(0), String::new()); KNOWN_EVENTS] }
    }

    fn room(&mut self, get: &impl Get, num: RoomNum) -> Result<String> {
        if let Some((known, id)) = &self.room
            && *known == num
        {
            return Ok(id.clone());
        }
        let id = room::id(get, num)?.unwrap_or_default();
        self.room = Some((num, id.clone()));
        Ok(id)
    }

    fn event(&mut self, get: &impl Get, num: EventNum) -> Result<String> {
        match self.events.get_mut(num.0 as usize % KNOWN_EVENTS) {
            Some((known, id)) if *known == num => Ok(id.clone()),
            Some(place) => {
                let id = id_of(get, num)?;
                *place = (num, id.clone());
                Ok(id)
            }
            None => id_of(get, num),
        }
    }
}

/// The contents of a row, in words.
struct Said {
    room_id: String,
    sender: String,
    target: String,
    auth: Vec<String>,
}

impl Said {
    fn of(get: &impl Get, row: &Row, wants: Wants, known: &mut KnownIds) -> Result<Said> {
        let user = |wanted, num| if wanted { user::id(get, num) } else { Ok(None) };
        let (_, target) = row.member.unwrap_or((Membership::Join, row.sender));
        Ok(Said {
            room_id: if wants.room_id() { known.room(get, row.room)? } else { String::new() },
            sender: user(wants.sender(), row.sender)?.unwrap_or_default(),
            target: user(wants.target() && target != row.sender, target)?.unwrap_or_default(),
            auth: match wants.auth() {
                true => row.auth.iter().map(|num| known.event(get, *num)).collect::<Result<_>>()?,
                false => Vec::new(),
            },
        })
    }

    fn with<T>(&self, row: &Row, work: impl FnOnce(&Known<'_>) -> T) -> T {
        let auth: Vec<_> = self.auth.iter().map(String::as_str).collect();
        work(&Known {
            room_id: &self.room_id,
            sender: &self.sender,
            target: &self.target,
            depth: row.depth,
            origin_server_ts: row.origin_server_ts,
            auth: &auth,
        })
    }
}

fn pack_body(get: &impl Get, row: &Row, canonical: &[u8]) -> Result<Vec<u8>> {
    Ok(Said::of(get, row, Wants::ALL, &mut KnownIds::default())?
        .with(row, |known| body::encode(canonical, known, false)))
}

/// The ids of several events. Meant for auth and extremity lists, which are short.
pub fn ids(get: &impl Get, nums: &[EventNum]) -> Result<Vec<String>> {
    nums.iter().map(|&num| id_of(get, num)).collect()
}

/// Stores a whole event under a new number: body, row and id. The row's `body` number is given out here.
pub fn insert(w: &mut Write, mut row: Row, canonical: &[u8]) -> Result<(EventNum, Row)> {
    assert!(row.auth.len() <= AUTH_EDGES_MAX, "the format check bounds the number of auth events");
    let packed = pack_body(w, &row, canonical)?;
    row.body = reserve_bodies(w, 1)?;
    put_body(w, row.body, &packed)?;
    let num = reserve(w, 1)?;
    put_row(w, num, &row)?;
    put_id(w, &row.id.text(), num)?;
    Ok((num, row))
}

/// Puts another body in an event's place: its redacted form. The old bytes are gone with the commit.
pub fn replace_body(w: &mut Write, row: &Row, canonical: &[u8]) -> Result<()> {
    let packed = pack_body(w, row, canonical)?;
    put_body(w, row.body, &packed)
}

/// Forgets an event wholly, also what it said before it was redacted. Only for rooms that are being purged: nothing may refer
/// to it any more.
pub fn remove(w: &mut Write, num: EventNum) -> Result<()> {
    let Some(row) = row(w, num)? else { return Ok(()) };
    event_id::remove(w, &row.id.text(), num)?;
    w.remove(&EVENT_BODY, &row.body.to_key())?;
    w.remove(&EVENT, &num.to_key())?;
    super::redacted::remove(w, num)
}

/// The number of (type, state key), when any event ever used it. A member's is their own number.
pub fn state_key(get: &impl Get, kind: &str, state_key: &str) -> Result<Option<StateKeyNum>> {
    if is_of_user(kind, state_key) {
        return Ok(user::num(get, state_key)?.map(StateKeyNum::of_member));
    }
    let hash = get.hash128(&[kind.as_bytes(), state_key.as_bytes()]);
    let Some(value) = get.get(&STATE_KEY, &hash)? else { return Ok(None) };
    StateKeyNum::from_key(&value).map(Some).ok_or_else(|| Error::corrupt(&STATE_KEY, &hash))
}

/// The number of (type, state key), given out now when it had none.
pub fn intern_state_key(w: &mut Write, kind: &str, state_key: &str) -> Result<StateKeyNum> {
    if is_of_user(kind, state_key) {
        return user::intern(w, state_key).map(StateKeyNum::of_member);
    }
    let hash = w.hash128(&[kind.as_bytes(), state_key.as_bytes()]);
    if let Some(value) = w.get(&STATE_KEY, &hash)? {
        return StateKeyNum::from_key(&value).ok_or_else(|| Error::corrupt(&STATE_KEY, &hash));
    }
    let nth = w.next_numbers_below("state_key", 1, KEYS_OF_A_KIND_MAX)?;
    let num = StateKeyNum::of_other(nth);
    w.put(&STATE_KEY, &hash, &num.to_key())?;
    Ok(num)
}

/// Whether a state key stands for a user. A state key that is no user id is a text like those of other types.
fn is_of_user(kind: &str, state_key: &str) -> bool {
    kind == "m.room.member" && state_key.starts_with('@') && state_key.contains(':')
}

/// Redactions that wait for one event.
const PENDING_MAX: usize = 16;

/// Remembers a redaction whose target is not here yet, so that the target is redacted as it arrives. Which redactions
/// are allowed is not known before. When there are too many, the oldest one of the server that sent most is dropped.
pub fn add_pending_redaction(w: &mut Write, room: RoomNum, target: &str, redaction: EventNum) -> Result<()> {
    let hash = w.hash128(&[&room.to_key(), target.as_bytes()]);
    let mut waiting = w.get(&REDACTION_PENDING, &hash)?.unwrap_or_default();
    let key = redaction.to_key();
    if waiting.len() >= PENDING_MAX * key.len() {
        let events = waiting.chunks_exact(key.len()).filter_map(EventNum::from_key).collect();
        let gone = of_the_busiest_server(w, events, redaction, 1)?;
        let kept = waiting.chunks_exact(key.len());
        let kept = kept.filter(|one| EventNum::from_key(one).is_none_or(|num| !gone.contains(&num)));
        waiting = kept.flatten().copied().collect();
    }
    waiting.extend_from_slice(&key);
    w.put(&REDACTION_PENDING, &hash, &waiting)
}

/// Chooses the events to forget to make room for one more: `count` times the oldest event of the server with most. The
/// new event counts already and stays.
pub(in crate::store::tables) fn of_the_busiest_server(
    get: &impl Get,
    events: Vec<EventNum>,
    new: EventNum,
    count: usize,
) -> Result<Vec<EventNum>> {
    let mut all = Vec::with_capacity(events.len() + 1);
    for (age, num) in events.iter().copied().chain([new]).enumerate() {
        let sender = match row(get, num)? {
            Some(row) => user::id(get, row.sender)?.unwrap_or_default(),
            None => String::new(),
        };
        let server = sender.split_once(':').map_or("", |(_, server)| server);
        let [a, b, c, d, ..] = get.hash128(&[server.as_bytes()]);
        let age = if age < events.len() { age as u64 } else { u64::MAX };
        all.push(Held { owner: u32::from_be_bytes([a, b, c, d]), within: 0, age, weight: 1, key: num });
    }
    Ok(of_the_busiest(all, count as u64))
}

/// Takes the redactions that were waiting for an event of the room, oldest first.
pub fn take_pending_redactions(w: &mut Write, room: RoomNum, target: &str) -> Result<Vec<EventNum>> {
    let hash = w.hash128(&[&room.to_key(), target.as_bytes()]);
    let Some(value) = w.get(&REDACTION_PENDING, &hash)? else { return Ok(Vec::new()) };
    w.remove(&REDACTION_PENDING, &hash)?;
    let waiting = value.chunks(EventNum(0).to_key().len()).map(EventNum::from_key);
    waiting.collect::<Option<_>>().ok_or_else(|| Error::corrupt(&REDACTION_PENDING, &hash))
}

/// Remembers that an event of the room has followers here and no place of its own yet.
pub fn set_followed(w: &mut Write, room: RoomNum, id: &str) -> Result<()> {
    let hash = w.hash128(&[&room.to_key(), id.as_bytes()]);
    w.put(&FOLLOWED, &hash, &[])
}

pub fn is_followed(get: &impl Get, room: RoomNum, id: &str) -> Result<bool> {
    let hash = get.hash128(&[&room.to_key(), id.as_bytes()]);
    Ok(get.get(&FOLLOWED, &hash)?.is_some())
}

/// The event gets its place. Answers whether it had followers.
pub fn take_followed(w: &mut Write, room: RoomNum, id: &str) -> Result<bool> {
    let hash = w.hash128(&[&room.to_key(), id.as_bytes()]);
    let was_followed = w.get(&FOLLOWED, &hash)?.is_some();
    if was_followed {
        w.remove(&FOLLOWED, &hash)?;
    }
    Ok(was_followed)
}

/// Visits the columns of the events numbered from `from` down to 1, all rooms mixed, until the visitor breaks.
pub fn rows_down(
    get: &impl Get,
    from: EventNum,
    visit: &mut dyn FnMut(EventNum, Row) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let end = EventNum(from.0.saturating_add(1)).to_key();
    get.range(&EVENT, &[], Some(&end), true, &mut |key, value| {
        let corrupt = || Error::corrupt(&EVENT, key);
        let num = EventNum::from_key(key).ok_or_else(corrupt)?;
        visit(num, Row::decode(num, value).ok_or_else(corrupt)?)
    })
}

/// Visits the columns of the events numbered from `from` on, all rooms mixed, until the visitor breaks.
pub fn rows_up(
    get: &impl Get,
    from: EventNum,
    visit: &mut dyn FnMut(EventNum, Row) -> Result<ControlFlow<()>>,
) -> Result<()> {
    get.range(&EVENT, &from.to_key(), None, false, &mut |key, value| {
        let corrupt = || Error::corrupt(&EVENT, key);
        let num = EventNum::from_key(key).ok_or_else(corrupt)?;
        visit(num, Row::decode(num, value).ok_or_else(corrupt)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::UserNum;
    use crate::store::tables::room::body;
    use crate::store::tables::room::event_row::IdForm;
    use crate::store::tables::room::event_row::Kind;
    use crate::store::tables::room::event_row::NAMES;
    use crate::store::tables::room::event_row::{Flags, Root};

    fn row() -> Row {
        Row {
            room: RoomNum(3),
            body: BodyNum(70_000),
            id: Id::Hash([7; 32]),
            kind: Kind::MEMBER,
            state_key: Some(StateKeyNum(40_000)),
            sender: UserNum(39_000),
            member: Some((Membership::Join, UserNum(39_000))),
            flags: Flags::default(),
            depth: 90_000,
            origin_server_ts: 1_700_000_000_000,
            auth: vec![EventNum(1), EventNum(80_000), EventNum(5)],
            before: None,
            order: None,
            redacted_by: None,
        }
    }

    /// An attacker who knew the id of a message before it came kept other users' redactions of it from being
    /// remembered, and pushed out the relations of others to it.
    #[test]
    fn what_waits_for_an_event_is_no_ones_alone() {
        use crate::store::tables::room::relation::{self, Rel};
        let job = |w: &mut Write<'_>| {
            let (friend, evil) = (user::intern(w, "@f:friend.example")?, user::intern(w, "@e:evil.example")?);
            let room = RoomNum(3);
            for n in 1..=400 {
                let sender = if n == 1 || n == 300 { friend } else { evil };
                put_row(w, EventNum(n), &Row { sender, auth: Vec::new(), ..row() })?;
            }
            for n in 1..=400 {
                add_pending_redaction(w, room, "$x", EventNum(n))?;
                relation::add_pending(w, room, "$x", Rel::OTHER, EventNum(n))?;
            }
            let redactions = take_pending_redactions(w, room, "$x")?;
            let related: Vec<_> = relation::take_pending(w, room, "$x")?.into_iter().map(|(_, num)| num).collect();
            for (kept, most) in [(redactions, PENDING_MAX), (related, 256)] {
                let has = |n| kept.contains(&EventNum(n));
                assert!(has(1) && has(300) && has(400) && !has(2) && kept.len() <= most, "{kept:?}");
            }
            Ok::<_, Error>(())
        };
        Store::in_memory().write_blocking(job).unwrap();
    }

    #[test]
    fn a_row_comes_back_as_it_was() {
        let num = EventNum(100_000);
        for change in 0..32u32 {
            let mut row = row();
            if change & 1 != 0 {
                row.before = Some(Root(90_000));
                row.order = Some(-12);
                row.flags.guessed = true;
            }
            if change & 2 != 0 {
                row.flags = Flags {
                    rejected: true,
                    soft_failed: true,
                    redacted: true,
                    outlier: true,
                    guessed: change & 1 != 0,
                };
                row.redacted_by = Some(EventNum(100_001));
                row.id = Id::Named("$abc:example.org".to_owned());
            }
            if change & 8 != 0 {
                row.member = Some((Membership::Ban, UserNum(7)));
            }
            if change & 16 != 0 {
                row.state_key = row.member.map(|(_, target)| StateKeyNum::of_member(target));
            }
            if change & 4 != 0 {
                row.state_key = None;
                row.member = None;
                row.auth.clear();
                row.kind = Kind::OTHER;
            }
            let packed = row.encode(num);
            assert_eq!(Row::decode(num, &packed).as_ref(), Some(&row));
            assert_eq!(Row::decode_id(&packed), Some(row.id));
        }
    }

    #[test]
    fn a_member_event_of_a_joined_room_takes_little_room() {
        let mut row = row();
        row.state_key = Some(StateKeyNum::of_member(row.sender));
        let packed = row.encode(EventNum(100_000));
        assert!(packed.len() <= 62, "{}", packed.len());
        assert_eq!(Row::decode(EventNum(100_000), &packed), Some(row));
    }

    /// A few bits of a hash lead to an event: another event under the same bits is told apart by its row.
    #[test]
    fn an_id_is_found_among_others_of_its_hash() {
        let store = Store::in_memory();
        let id = |n: u8| Id::Hash([n; 32]).text();
        let job = move |w: &mut Write<'_>| {
            for n in 1..=3u8 {
                let row = Row { id: Id::Hash([n; 32]), auth: Vec::new(), ..row() };
                put_row(w, EventNum(n.into()), &row)?;
                (1..=3).try_for_each(|other| put_id(w, &id(other), EventNum(n.into())))?;
            }
            for n in 1..=3u8 {
                assert_eq!(num(w, &id(n))?, Some(EventNum(n.into())));
            }
            remove_row(w, EventNum(2))?;
            assert_eq!((num(w, &id(1))?, num(w, &id(2))?), (Some(EventNum(1)), None));
            assert_eq!(num(w, &id(4))?, None);
            Ok::<_, Error>(())
        };
        store.write_blocking(job).unwrap();
    }

    #[test]
    fn a_body_comes_back_through_its_row() {
        let store = Store::in_memory();
        let text = r#"{"auth_events":[],"content":{"avatar_url":"mxc://example.org/abc","membership":"ban"},"depth":90000,"hashes":{"sha256":"x"},"origin_server_ts":1700000000000,"prev_events":["$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"],"room_id":"!r:example.org","sender":"@a:example.org","signatures":{},"state_key":"@b:example.org","type":"m.room.member"}"#;
        let job = move |w: &mut Write<'_>| {
            let (sender, target) = (user::intern(w, "@a:example.org")?, user::intern(w, "@b:example.org")?);
            let state_key = intern_state_key(w, "m.room.member", "@b:example.org")?;
            assert_eq!(state_key, StateKeyNum::of_member(target));
            let told = Row {
                room: room::intern(w, "!r:example.org", "11")?,
                sender,
                member: Some((Membership::Ban, target)),
                state_key: Some(state_key),
                auth: Vec::new(),
                ..row()
            };
            let (num, told) = insert(w, told, text.as_bytes())?;
            assert_eq!(row_of(w, num)?, told);
            let packed = stored_body(w, told.body)?;
            let wants = body::open(&packed).unwrap().wants();
            assert!(wants.room_id() && wants.sender() && wants.target() && packed.len() < 100, "{}", packed.len());
            assert_eq!(body(w, &told)?, text.as_bytes());

            // A row that disagrees with the packed body is corruption, not another event.
            let stranger = Row { sender: UserNum(77), ..told };
            assert!(body(w, &stranger).is_err());
            Ok::<_, Error>(())
        };
        store.write_blocking(job).unwrap();
    }

    #[test]
    fn a_member_event_of_no_user_has_a_state_key_like_others() {
        let store = Store::in_memory();
        let job = |w: &mut Write<'_>| {
            for text in ["", "nobody", "@nobody"] {
                let num = intern_state_key(w, "m.room.member", text)?;
                assert_eq!(state_key(w, "m.room.member", text)?, Some(num));
                assert!((1..2000).all(|user| num != StateKeyNum::of_member(UserNum(user))));
                assert_ne!(intern_state_key(w, "m.room.name", text)?, num);
            }
            assert_eq!(state_key(w, "m.room.member", "@a:b")?, None);
            Ok::<_, Error>(())
        };
        store.write_blocking(job).unwrap();
    }

    #[test]
    fn ids_come_back_exactly() {
        for form in [IdForm::Hash, IdForm::HashStandard, IdForm::Named] {
            for id in [
                "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk",
                "$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg",
                "$Rqnc0F0dvnEYJTyHq0iKxU2bZ1CI920kuZq3a5lr5Zg",
                "$143273582443PhrSn:example.org",
                "$notbase64notbase64notbase64notbase64notbas!",
            ] {
                assert_eq!(Id::read(form, id).text(), id);
            }
        }
    }

    /// Most ids that are base64 in one alphabet are in the other, and an event that cites one must find it.
    #[test]
    fn an_id_is_what_its_rooms_version_says() {
        let hash: [u8; 32] = std::array::from_fn(|n| n as u8);
        let (later, third) = (Id::Hash(hash), Id::HashStandard(hash));
        assert_eq!(later.text(), third.text());
        assert_eq!(Id::read(IdForm::Hash, &later.text()), later);
        assert_eq!(Id::read(IdForm::HashStandard, &third.text()), third);
        assert_eq!(Id::read(IdForm::Named, &third.text()), Id::Named(third.text()));
    }

    #[test]
    fn every_code_has_one_name() {
        for (kind, name) in NAMES {
            assert_eq!(Kind::of(name), kind);
            assert_eq!(kind.name(), Some(name));
        }
        assert_eq!(Kind::of("com.example"), Kind::OTHER);
        assert_eq!(Kind::OTHER.name(), None);
    }
}
