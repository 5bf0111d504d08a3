//! Random forks, stored, and resolved by us and by ruma.

use super::*;
use crate::matrix::state::tests::{Grower, StateMap, ruma_resolves};
use crate::room::append::row_of;
use crate::store::tables::room::{event, state_tree};
use crate::store::{RoomNum, Store};

fn entries(store: &Store, grower: &Grower, nums: &[EventNum], state: &StateMap<u32>) -> Vec<(StateKeyNum, EventNum)> {
    let read = store.read().unwrap();
    let entry = |at: &u32| {
        let event = &grower.room.events[*at as usize];
        let key = state_tree::key(&read, event.kind(), event.state_key().unwrap()).unwrap().unwrap();
        (key, nums[*at as usize])
    };
    state.values().map(entry).collect()
}

fn stored(grower: &Grower) -> (Store, Vec<EventNum>) {
    let (store, events) = (Store::in_memory(), grower.room.events.clone());
    let nums = store.write_blocking(move |w| {
        let mut nums = Vec::new();
        for event in events {
            let row = row_of(w, RoomNum(1), &event)?;
            nums.push(event::insert(w, row, event.to_federation())?.0);
        }
        Ok::<_, store::Error>(nums)
    });
    (store, nums.unwrap().0)
}

#[test]
fn forks_in_the_store_resolve_as_ruma_resolves_them() {
    let budget = Budget::for_tests();
    let means = Means::new(&budget);
    let mut in_parts = 0;
    for seed in 0..400 {
        let mut grower = Grower::new(seed);
        let trunk = grower.trunk();
        let mut states = vec![trunk.clone(); 2 + seed as usize % 3];
        for state in &mut states {
            for _ in 0..grower.rng.below(12) {
                grower.step(state);
            }
        }
        let theirs = ruma_resolves(grower.version, &grower.room, &states).unwrap();
        let (store, nums) = stored(&grower);
        let root = |state: &StateMap<u32>| {
            let changes: Vec<_> =
                entries(&store, &grower, &nums, state).into_iter().map(|(key, event)| (key, Some(event))).collect();
            Some(store.write_blocking(move |w| state_tree::set(w, None, &changes)).unwrap().0)
        };
        let base = root(&trunk);
        // Stored whole, or as the difference from the trunk: the outcome must not depend on it.
        let tree = |(at, state): (usize, &StateMap<u32>)| match (at as u64 + seed) % 2 {
            0 => Tree::stored(root(state)),
            _ => {
                let read = store.read().unwrap();
                let mut tree = Tree::stored(base);
                for (key, event) in entries(&store, &grower, &nums, state) {
                    tree.set(&read, key, Some(event)).unwrap();
                }
                tree
            }
        };
        let trees: Vec<Tree> = states.iter().enumerate().map(tree).collect();
        let read = store.read().unwrap();
        let of = Of { version: grower.version, create: nums[0] };
        let ours = resolve(&read, of, trees.clone(), &means, None).unwrap().unwrap();
        let expected: BTreeMap<StateKeyNum, EventNum> = entries(&store, &grower, &nums, &theirs).into_iter().collect();
        let all = states.iter().flat_map(|state| entries(&store, &grower, &nums, state)).map(|(key, _)| key);
        for key in all.chain(expected.keys().copied()) {
            assert_eq!(ours.get(&read, key).unwrap(), expected.get(&key).copied(), "seed {seed} {}", grower.version.id);
        }
        // In parts, the powers come out the same. The rest may differ where events of different parts decide about each
        // other, which in rooms as small as these nearly all do; but every entry is from one of the states.
        let few = Means { conflicts_max: 5 * trees.len(), ..means.clone() };
        if conflicts(&read, &trees, few.conflicts_max).unwrap().is_none()
            && let Some(parted) = resolve(&read, of, trees.clone(), &few, None).unwrap()
        {
            in_parts += 1;
            for (key, values) in conflicts(&read, &trees, 1000).unwrap().unwrap() {
                let (one, other) = (ours.get(&read, key).unwrap(), parted.get(&read, key).unwrap());
                let kind = event::row_of(&read, distinct_of(&values)[0]).unwrap().kind;
                let decides = [Kind::POWER_LEVELS, Kind::JOIN_RULES].contains(&kind);
                assert!(one == other || !decides, "seed {seed}");
                assert!(other.is_none() || values.contains(&other) || one == other, "seed {seed}");
            }
        }
        // Stored, it is the same state.
        let changes = ours.changes_since(&read, base, 10_000).unwrap().unwrap();
        let (one, other) = store
            .write_blocking(move |w| Ok::<_, store::Error>((ours.write(w)?, state_tree::set(w, base, &changes)?)))
            .unwrap()
            .0;
        assert!(one == other, "seed {seed}");
    }
    assert_eq!(budget.account("state_resolution").used(), 0);
    assert!(in_parts > 10, "{in_parts}");
}

#[test]
fn more_conflicts_than_allowed_are_not_resolved() {
    let mut grower = Grower::new(5);
    let trunk = grower.trunk();
    let mut states = vec![trunk; 2];
    for state in &mut states {
        for _ in 0..30 {
            grower.step(state);
        }
    }
    let (store, nums) = stored(&grower);
    let trees: Vec<Tree> = states.iter().map(|state| Tree::of(entries(&store, &grower, &nums, state))).collect();
    let budget = Budget::for_tests();
    let of = Of { version: grower.version, create: nums[0] };
    let resolved = |conflicts_max| {
        let means = Means { conflicts_max, ..Means::new(&budget) };
        resolve(&store.read().unwrap(), of, trees.clone(), &means, None)
    };
    assert!(resolved(1000).unwrap().is_some());
    assert_eq!(resolved(1).unwrap(), None);
    budget.refuse_nth(1);
    assert!(matches!(resolved(1000), Err(Error::Refused(_))));
}
