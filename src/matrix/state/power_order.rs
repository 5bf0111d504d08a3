//! Reverse topological power ordering: an event comes after the events it cites; otherwise the sender with more power
//! first, then the earlier time, then the smaller event id.

use super::replay::Replay;
use super::{Member, Source, position};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// The power events of the full conflicted set, with those of their ancestors that are in the set, in order; as
/// positions in `full`.
pub(super) fn sort<S: Source, U: Fn(&str, &str) -> Result<Option<S::Id>, S::Error>>(
    replay: &mut Replay<'_, S, U>,
    full: &[Member<S::Id>],
) -> Result<Vec<u32>, S::Error> {
    let edges = edges(replay.source(), full)?;
    let mut waits: HashMap<u32, u32> = edges.iter().map(|(at, cited)| (*at, cited.len() as u32)).collect();
    let mut citing: Vec<(u32, u32)> = edges.iter().flat_map(|(at, cited)| cited.iter().map(|c| (*c, *at))).collect();
    citing.sort_unstable();

    let mut ready = BinaryHeap::new();
    for at in edges.iter().filter(|(_, cited)| cited.is_empty()).map(|(at, _)| *at) {
        ready.push(Reverse(order_key(replay, full, at)?));
    }
    let mut sorted = Vec::with_capacity(edges.len());
    while let Some(Reverse((.., at))) = ready.pop() {
        sorted.push(at);
        let first = citing.partition_point(|(cited, _)| *cited < at);
        for (_, by) in citing[first..].iter().take_while(|(cited, _)| *cited == at) {
            let waiting = waits.get_mut(by).expect("every event with an edge was counted");
            *waiting -= 1;
            if *waiting == 0 {
                ready.push(Reverse(order_key(replay, full, *by)?));
            }
        }
    }
    Ok(sorted)
}

type OrderKey<'f> = (Reverse<i64>, u64, &'f ruma::EventId, u32);

fn order_key<'f, S: Source, U: Fn(&str, &str) -> Result<Option<S::Id>, S::Error>>(
    replay: &Replay<'_, S, U>,
    full: &'f [Member<S::Id>],
    at: u32,
) -> Result<OrderKey<'f>, S::Error> {
    let member = &full[at as usize];
    Ok((Reverse(replay.sender_level(member.id)?), member.origin_server_ts, &member.event_id, at))
}

/// For each power event, and each of its ancestors in the set, the events of the set it cites directly.
fn edges<S: Source>(source: &S, full: &[Member<S::Id>]) -> Result<Vec<(u32, Vec<u32>)>, S::Error> {
    let mut seen = vec![false; full.len()];
    let mut open: Vec<u32> = (0..full.len() as u32).filter(|at| full[*at as usize].is_power_event).collect();
    open.iter().for_each(|at| seen[*at as usize] = true);
    let mut edges = Vec::with_capacity(open.len());
    let mut cited = Vec::new();
    while let Some(at) = open.pop() {
        cited.clear();
        source.auth_events(full[at as usize].id, &mut cited)?;
        let mut inside: Vec<u32> = cited.iter().filter_map(|id| position(full, id)).collect();
        inside.sort_unstable();
        inside.dedup();
        for next in &inside {
            if !std::mem::replace(&mut seen[*next as usize], true) {
                open.push(*next);
            }
        }
        edges.push((at, inside));
    }
    Ok(edges)
}
