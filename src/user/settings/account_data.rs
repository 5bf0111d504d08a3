//! Account data, for all rooms together or for one, and room tags.

use ruma::RoomId;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::base::{self, ChunkError, ChunkWriter, Chunks, blocking, comma};
use crate::budget::parsed_bytes_max;
use crate::matrix::json::{self, partial};
use crate::matrix::push::default_rules;
use crate::store::tables::room;
use crate::store::tables::user::account_data::{self, GLOBAL};
use crate::store::tables::user::push_rule;
use crate::store::{Change, Get, Read, RoomNum, UserNum, Write};
use crate::user::{Error, Users};

/// The limits of one user's account data.
const ENTRIES_MAX: usize = 5_000;
const BYTES_MAX: usize = 4 << 20;
const ENTRY_BYTES_MAX: usize = 64 << 10;
/// The most memory that parsed tags may take. Other account data is stored and sent as text.
const PARSED_BYTES_MAX: u64 = 512 << 10;
/// The nesting limit of an entry: apps get it beside others, in one answer.
const DEPTH_MAX: u32 = json::EVENT_DEPTH_MAX;
const TYPE_BYTES_MAX: usize = 255;
const TAGS_MAX: usize = 100;

pub(in crate::user) const TAG: &str = "m.tag";
pub(in crate::user) const DIRECT: &str = "m.direct";
const IGNORED: &str = "m.ignored_user_list";

impl Users {
    /// One entry; `NotFound` when it was never set.
    pub async fn account_data(&self, user: UserNum, room_id: Option<&RoomId>, kind: &str) -> Result<Vec<u8>, Error> {
        let (room_id, kind) = (room_id.map(ToOwned::to_owned), kind.to_owned());
        self.read(move |get| {
            let room = match &room_id {
                Some(room_id) => room::num(get, room_id.as_str())?.ok_or(Error::NotFound("account data"))?,
                None => GLOBAL,
            };
            if room == GLOBAL && kind == push_rule::KIND {
                return push_rules_json(get, user);
            }
            account_data::get(get, user, room, &kind)?.ok_or(Error::NotFound("account data"))
        })
        .await
    }

    /// All entries of a user as `{"account_data": {"global": {…}, "rooms": {…}}}`, a piece at a time.
    pub async fn all_account_data(&self, user: UserNum) -> Result<impl Chunks, Error> {
        let store = self.0.parts.store.clone();
        let read = blocking(move || store.read().map_err(Error::from)).await?;
        Ok(base::written(async move |pen| {
            pen.text("{\"account_data\":{\"global\":{");
            let mut first = true;
            write_entries(&read, &pen, user, GLOBAL, &mut first).await?;
            pen.text("},\"rooms\":{");
            let (mut after, mut first_room) = (None, true);
            while let Some(room) = account_data::next_room(&read, user, after)? {
                after = Some(room);
                let Some(row) = room::get(&read, room)? else { continue };
                let id = serde_json::to_vec(&row.id)?;
                pen.with(|out| {
                    comma(out, &mut first_room);
                    out.extend_from_slice(&id);
                    out.extend_from_slice(b":{");
                });
                let mut first = true;
                write_entries(&read, &pen, user, room, &mut first).await?;
                pen.text("}");
            }
            pen.text("}}}");
            Ok(())
        }))
    }

    /// Sets one entry. Types with endpoints of their own are refused.
    pub async fn set_account_data(
        &self,
        user: UserNum,
        room_id: Option<&RoomId>,
        kind: &str,
        content: Box<RawValue>,
    ) -> Result<(), Error> {
        let json = content.get().as_bytes().to_vec();
        if kind.is_empty() || kind.len() > TYPE_BYTES_MAX || !json.starts_with(b"{") {
            return Err(Error::bad(
                "M_BAD_JSON",
                "Account data must be a JSON object, and its type may have 255 bytes at most",
            ));
        }
        // The same as removing it (MSC3391). Told in any case: apps wait until a sync shows what they set.
        if is_empty(&json) {
            return self.empty_account_data(user, room_id, kind).await;
        }
        if json::is_deeper_than(&json, DEPTH_MAX) || !has_its_shape(kind, &json) {
            return Err(Error::bad("M_BAD_JSON", format!("This is not the shape of {kind}")));
        }
        self.put_account_data(user, room_id, kind, json).await
    }

    /// Removes one entry, if there is one.
    pub async fn remove_account_data(&self, user: UserNum, room_id: Option<&RoomId>, kind: &str) -> Result<(), Error> {
        let (room_id, kind) = (room_id.map(ToOwned::to_owned), kind.to_owned());
        self.write(move |w| {
            let room = room_of(w, room_id.as_deref())?;
            remove_entry(w, user, room, &kind)?;
            Ok(())
        })
        .await
    }

    /// A user's tags for a room: `{"tags": {…}}`.
    pub async fn tags(&self, user: UserNum, room_id: &RoomId) -> Result<Value, Error> {
        match self.account_data(user, Some(room_id), TAG).await {
            Ok(json) => Ok(tags_of(Some(json))),
            Err(Error::NotFound(_)) => Ok(tags_of(None)),
            Err(failed) => Err(failed),
        }
    }

    /// Adds a tag to a room, or removes it.
    pub async fn set_tag(
        &self,
        user: UserNum,
        room_id: &RoomId,
        tag: &str,
        content: Option<Map<String, Value>>,
    ) -> Result<(), Error> {
        if tag.is_empty() || tag.len() > TYPE_BYTES_MAX {
            return Err(Error::invalid("A tag has 1 to 255 bytes"));
        }
        let (room_id, tag) = (room_id.to_owned(), tag.to_owned());
        // Apps remove one tag and add another at the same time: reading and writing in one job keeps both changes.
        self.write(move |w| {
            let room = room::num(w, room_id.as_str())?.ok_or(Error::NotFound("room"))?;
            let mut all = tags_of(account_data::get(w, user, room, TAG)?);
            let Some(tags) = all["tags"].as_object_mut() else { return Err(Error::NotFound("tag")) };
            match content {
                Some(content) => tags.insert(tag, content.into()),
                None => tags.remove(&tag),
            };
            if tags.len() > TAGS_MAX {
                return Err(Error::TooLarge(format!("A room may have {TAGS_MAX} tags at most")));
            }
            put_entry(w, user, room, TAG, all.to_string().as_bytes())
        })
        .await
    }

    async fn empty_account_data(&self, user: UserNum, room_id: Option<&RoomId>, kind: &str) -> Result<(), Error> {
        let (room_id, kind) = (room_id.map(ToOwned::to_owned), kind.to_owned());
        self.write(move |w| {
            account_data::set_empty(w, user, room_of(w, room_id.as_deref())?, &kind)?;
            w.announce(Change { users: vec![user], ..Change::default() });
            Ok(())
        })
        .await
    }

    async fn put_account_data(
        &self,
        user: UserNum,
        room_id: Option<&RoomId>,
        kind: &str,
        json: Vec<u8>,
    ) -> Result<(), Error> {
        let (room_id, kind) = (room_id.map(ToOwned::to_owned), kind.to_owned());
        self.write(move |w| {
            let room = room_of(w, room_id.as_deref())?;
            put_entry(w, user, room, &kind, &json)
        })
        .await
    }
}

/// The number under which entries of a room are, or those of all rooms together.
fn room_of(get: &impl Get, room_id: Option<&RoomId>) -> Result<RoomNum, Error> {
    match room_id {
        Some(room_id) => room::num(get, room_id.as_str())?.ok_or(Error::NotFound("room")),
        None => Ok(GLOBAL),
    }
}

/// Whether the text is an object without members.
fn is_empty(json: &[u8]) -> bool {
    let inner = json.strip_prefix(b"{").and_then(|json| json.strip_suffix(b"}"));
    inner.is_some_and(|inner| inner.trim_ascii().is_empty())
}

/// Whether an entry of a type that many apps and this server read has the specification's shape; other types are free.
fn has_its_shape(kind: &str, content: &[u8]) -> bool {
    let objects_in = |name: &str| match partial::member::<Box<RawValue>>(content, name) {
        Some(all) => each_is(all.get().as_bytes(), |value| value.starts_with('{')),
        None => false,
    };
    match kind {
        TAG => objects_in("tags"),
        IGNORED => objects_in("ignored_users"),
        DIRECT => each_is(content, |rooms| serde_json::from_str::<Vec<Text>>(rooms).is_ok()),
        _ => true,
    }
}

fn each_is(object: &[u8], is_right: impl Fn(&str) -> bool) -> bool {
    let mut all = true;
    let read = partial::each_member(object, &mut |_, value| {
        all &= is_right(value.get());
        Ok::<_, serde_json::Error>(())
    });
    all && read.is_ok()
}

/// Any text, not kept.
struct Text;

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Text, D::Error> {
        String::deserialize(text).map(|_| Text)
    }
}

/// Writes the entries of one room as the members of an object, one after the other.
async fn write_entries(
    read: &Read,
    pen: &ChunkWriter,
    user: UserNum,
    room: RoomNum,
    first: &mut bool,
) -> Result<(), ChunkError> {
    let mut kind = String::new();
    while let Some(next) = account_data::next_kind(read, user, room, &kind)? {
        kind = next;
        let Some(json) = account_data::get(read, user, room, &kind)? else { continue };
        let name = serde_json::to_vec(&kind)?;
        pen.with(|out| {
            comma(out, first);
            out.extend_from_slice(&name);
            out.push(b':');
        });
        pen.long(&json).await;
        pen.pause().await;
    }
    Ok(())
}

/// Whether an entry takes too much memory when it is parsed.
pub(super) fn is_large(json: &[u8]) -> bool {
    parsed_bytes_max(json) > PARSED_BYTES_MAX
}

/// Writes one entry, when it is new and within the user's limits.
pub(super) fn put_entry(w: &mut Write<'_>, user: UserNum, room: RoomNum, kind: &str, json: &[u8]) -> Result<(), Error> {
    if json.len() > ENTRY_BYTES_MAX {
        return Err(Error::TooLarge(format!("An entry of account data may have {ENTRY_BYTES_MAX} bytes at most")));
    }
    if kind == TAG && is_large(json) {
        return Err(Error::TooLarge("The entry of account data has too many members".to_owned()));
    }
    let before = account_data::get(w, user, room, kind)?;
    if before.as_deref() == Some(json) {
        return Ok(());
    }
    let (entries, bytes) = account_data::size(w, user)?;
    let more = json.len().saturating_sub(before.as_ref().map_or(0, Vec::len));
    if (before.is_none() && entries >= ENTRIES_MAX) || bytes + more > BYTES_MAX {
        return Err(Error::TooLarge("The account has reached the limit for account data".to_owned()));
    }
    account_data::set(w, user, room, kind, json)?;
    w.announce(Change { users: vec![user], ..Change::default() });
    Ok(())
}

/// Removes an entry, if there is one, and tells the user's apps.
pub(in crate::user) fn remove_entry(
    w: &mut Write<'_>,
    user: UserNum,
    room: RoomNum,
    kind: &str,
) -> crate::store::Result<()> {
    if account_data::remove(w, user, room, kind)? {
        w.announce(Change { users: vec![user], ..Change::default() });
    }
    Ok(())
}

/// The stored tags of a room. An app may have written anything there; malformed tags count as none.
fn tags_of(kept: Option<Vec<u8>>) -> Value {
    kept.and_then(|json| serde_json::from_slice::<Value>(&json).ok())
        .filter(|all| all["tags"].is_object())
        .unwrap_or_else(|| json!({ "tags": {} }))
}

/// The content of `m.push_rules`, as set or the defaults.
fn push_rules_json(get: &impl Get, user: UserNum) -> Result<Vec<u8>, Error> {
    let user_id = crate::user::lookup::id_of(get, user)?;
    Ok(push_rule::to_json(&push_rule::get(get, user, default_rules(&user_id))?))
}
