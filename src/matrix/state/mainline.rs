//! Mainline ordering: by how far back along the chain of power levels an event belongs, then time, then event id.

use super::{Member, Source};
use std::collections::HashMap;

/// The members of `full` marked in `rest`, in order, as positions in `full`. `levels`: the power levels reached so far, from
/// which the mainline runs back.
pub(super) fn sort<S: Source>(
    source: &S,
    full: &[Member<S::Id>],
    rest: Vec<bool>,
    levels: Option<S::Id>,
) -> Result<Vec<u32>, S::Error> {
    let mut depth = mainline(source, levels)?;
    let mut sorted = Vec::new();
    for at in (0..full.len()).filter(|at| rest[*at]) {
        sorted.push((branches_at(source, full[at].id, &mut depth)?, at as u32));
    }
    sorted.sort_unstable_by(|(a, x), (b, y)| {
        let (x, y) = (&full[*x as usize], &full[*y as usize]);
        (a, x.origin_server_ts, &x.event_id).cmp(&(b, y.origin_server_ts, &y.event_id))
    });
    Ok(sorted.into_iter().map(|(_, at)| at).collect())
}

/// The chain of power levels back from `levels`: the oldest has depth 1, the newest the greatest.
fn mainline<S: Source>(source: &S, levels: Option<S::Id>) -> Result<HashMap<S::Id, u32>, S::Error> {
    let mut chain = Vec::new();
    let mut next = levels;
    while let Some(id) = next {
        chain.push(id);
        next = cited_levels(source, id)?;
    }
    Ok(chain.into_iter().rev().zip(1..).collect())
}

/// The depth at which an event's own chain of power levels meets the mainline; 0, which is before all others, if it
/// never does. Depths found on the way are remembered in `depth`, so that a long chain is walked once.
fn branches_at<S: Source>(source: &S, id: S::Id, depth: &mut HashMap<S::Id, u32>) -> Result<u32, S::Error> {
    let mut path = Vec::new();
    let mut next = Some(id);
    let found = loop {
        let Some(id) = next else { break 0 };
        if let Some(found) = depth.get(&id) {
            break *found;
        }
        path.push(id);
        next = cited_levels(source, id)?;
    };
    // The event itself is asked only once; only the power levels on its chain are worth remembering.
    depth.extend(path.into_iter().skip(1).map(|id| (id, found)));
    Ok(found)
}

fn cited_levels<S: Source>(source: &S, id: S::Id) -> Result<Option<S::Id>, S::Error> {
    let mut cited = Vec::with_capacity(10);
    source.auth_events(id, &mut cited)?;
    for id in cited {
        if source.is_power_levels(id)? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}
