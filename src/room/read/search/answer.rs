//! The answer to a search. Holds one event at a time.

use super::find::{Found, Hit, Views};
use super::{Batch, Context, SearchQuery};
use crate::base::{ChunkError, ChunkWriter};
use crate::matrix::json;
use crate::room::read::RoomView;
use crate::room::read::event_json::{self, Detail};
use crate::room::read::filter::Events;
use crate::room::read::state::StateList;
use crate::store::tables::room::event_row::Root;
use crate::store::tables::room::{self, event, state_tree};
use crate::store::tables::user;
use crate::store::{self, UserNum};

/// The longest name or picture's address in a profile: others choose their length.
const PROFILE_BYTES_MAX: usize = 1_000;

/// Writes the whole answer.
pub async fn write(pen: ChunkWriter, mut views: Views, query: SearchQuery, found: Found) -> Result<(), ChunkError> {
    pen.text(&format!("{{\"search_categories\":{{\"room_events\":{{\"count\":{},\"highlights\":[", found.count));
    pen.with(|out| list(out, found.words.iter().map(String::as_str)));
    pen.text("]");
    let within = query.batch.and_then(|batch| batch.within);
    if let Some(next) = found.next {
        pen.text(&format!(",\"next_batch\":\"{}\"", Batch { within, ..next }));
    }
    write_groups(&pen, &views, &query, &found)?;
    pen.text(",\"results\":[");
    for (nth, hit) in found.hits.iter().enumerate() {
        pen.text(if nth == 0 { "{" } else { ",{" });
        pen.text(&format!("\"rank\":{:.6},\"result\":", hit.rank));
        let view = views.of(hit.at.room)?;
        view.write_event(&pen, hit.num, Detail::Timeline, &mut true)?;
        pen.pause().await;
        pen.text(",\"context\":{");
        if let Some(context) = query.context {
            write_context(&pen, view, hit, context).await?;
        }
        pen.text("}}");
        pen.pause().await;
    }
    pen.text("]");
    if query.include_state {
        write_states(&pen, &mut views, &found).await?;
    }
    pen.text("}}}");
    Ok(())
}

fn list<'a>(out: &mut Vec<u8>, texts: impl Iterator<Item = &'a str>) {
    for (nth, text) in texts.enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        json::write_string(out, text);
    }
}

/// The results by room or sender. The group with the first result has the highest order.
fn write_groups(pen: &ChunkWriter, views: &Views, query: &SearchQuery, found: &Found) -> store::Result<()> {
    if !query.by_room && !query.by_sender {
        return Ok(());
    }
    let read = &**views.read();
    pen.text(",\"groups\":{");
    if query.by_room {
        let ids = of_each(&found.hits, |hit| hit.at.room);
        pen.text("\"room_id\":{");
        write_group(
            pen,
            &found.hits,
            &ids,
            |hit| hit.at.room,
            |out, num| {
                json::write_string(out, &room::id(read, num)?.unwrap_or_default());
                Ok(found.next.map(|next| Batch { within: Some(num), ..next }))
            },
        )?;
        pen.text("}");
    }
    if query.by_sender {
        let ids = of_each(&found.hits, |hit| hit.sender);
        pen.text(if query.by_room { ",\"sender\":{" } else { "\"sender\":{" });
        write_group(
            pen,
            &found.hits,
            &ids,
            |hit| hit.sender,
            |out, num: UserNum| {
                json::write_string(out, &user::id_of(read, num)?);
                Ok(None)
            },
        )?;
        pen.text("}");
    }
    pen.text("}");
    Ok(())
}

fn of_each<K: PartialEq>(hits: &[Hit], key: impl Fn(&Hit) -> K) -> Vec<K> {
    let mut keys = Vec::new();
    for key in hits.iter().map(key) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

fn write_group<K: PartialEq + Copy>(
    pen: &ChunkWriter,
    hits: &[Hit],
    keys: &[K],
    of: impl Fn(&Hit) -> K,
    name: impl Fn(&mut Vec<u8>, K) -> store::Result<Option<Batch>>,
) -> store::Result<()> {
    for (nth, key) in keys.iter().enumerate() {
        pen.with(|out| {
            out.extend_from_slice(if nth == 0 { b"" } else { b"," });
            let next = name(out, *key)?;
            out.extend_from_slice(format!(":{{\"order\":{},", keys.len() - nth).as_bytes());
            if let Some(next) = next {
                out.extend_from_slice(format!("\"next_batch\":\"{next}\",").as_bytes());
            }
            out.extend_from_slice(b"\"results\":[");
            list(out, hits.iter().filter(|hit| of(hit) == *key).map(|hit| hit.id.as_str()));
            out.extend_from_slice(b"]}");
            Ok::<_, store::Error>(())
        })?;
    }
    Ok(())
}

/// The events around a result, the nearest first, and where their pages go on.
async fn write_context(pen: &ChunkWriter, view: &mut RoomView, hit: &Hit, context: Context) -> Result<(), ChunkError> {
    let filter = Events::default();
    let around = view.around_place(hit.num, hit.at.order, context.before, context.after, &filter)?;
    let (start, end) = around.edges();
    pen.text(&format!("\"start\":\"{start}\",\"end\":\"{end}\""));
    let mut senders = vec![hit.sender];
    for (name, page) in [("events_before", &around.before), ("events_after", &around.after)] {
        pen.text(&format!(",\"{name}\":["));
        senders.extend(view.write_events(pen, &page.events).await?);
        pen.text("]");
    }
    if context.profiles {
        senders.sort_unstable();
        senders.dedup();
        let last = around.after.events.last().map_or(hit.num, |(_, num)| *num);
        let root = event::row_of(&*view.read, last)?.before.or(view.root()?);
        pen.text(",\"profile_info\":{");
        let mut first = true;
        for sender in senders {
            write_profile(pen, view, root, sender, &mut first)?;
            pen.pause().await;
        }
        pen.text("}");
    }
    Ok(())
}

/// The name and picture that a user had in the room then.
fn write_profile(
    pen: &ChunkWriter,
    view: &RoomView,
    root: Option<Root>,
    sender: UserNum,
    first: &mut bool,
) -> store::Result<()> {
    let read = &*view.read;
    let id = user::id_of(read, sender)?;
    let Some((root, key)) = root.zip(state_tree::key(read, "m.room.member", id.as_str())?) else { return Ok(()) };
    let Some(member) = state_tree::get(read, root, key)? else { return Ok(()) };
    let content = event_json::content(read, &event::row_of(read, member)?)?;
    pen.with(|out| {
        crate::base::comma(out, first);
        json::write_string(out, id.as_str());
        out.extend_from_slice(b":{");
        let mut first = true;
        for name in ["displayname", "avatar_url"] {
            if let Some(text) = json::read::get_text(&content, name).filter(|text| text.len() <= PROFILE_BYTES_MAX) {
                crate::base::comma(out, &mut first);
                json::write_string(out, name);
                out.push(b':');
                json::write_string(out, &text);
            }
        }
        out.push(b'}');
    });
    Ok(())
}

/// The state of each room with a result, as the user may see it.
async fn write_states(pen: &ChunkWriter, views: &mut Views, found: &Found) -> Result<(), ChunkError> {
    pen.text(",\"state\":{");
    for (nth, num) in of_each(&found.hits, |hit| hit.at.room).into_iter().enumerate() {
        let id = room::id(&**views.read(), num)?.unwrap_or_default();
        pen.text(if nth == 0 { "" } else { "," });
        pen.with(|out| json::write_string(out, &id));
        pen.text(":[");
        let view = views.of(num)?;
        let root = view.root()?;
        view.write_state(pen, &StateList { root, ..StateList::default() }).await?;
        pen.text("]");
    }
    pen.text("}");
    Ok(())
}
