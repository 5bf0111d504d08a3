//! Trees against plain maps.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;
use crate::base::Random;
use crate::budget::Budget;
use crate::store::schema::STATE_LOG;
use crate::store::tables::room::timeline;
use crate::store::{Position, Read, RoomNum, Store, Table};

type Model = BTreeMap<u32, u32>;

fn apply(store: &Store, root: Option<Root>, changes: Vec<(u32, Option<u32>)>) -> Root {
    let changes: Vec<_> = changes.into_iter().map(|(key, event)| (StateKeyNum(key), event.map(EventNum))).collect();
    store.write_blocking(move |w| set(w, root, &changes)).unwrap().0
}

fn of_model(store: &Store, model: &Model) -> Root {
    apply(store, None, model.iter().map(|(key, event)| (*key, Some(*event))).collect())
}

fn built(store: &Store, model: &Model, batch: usize) -> Root {
    let entries: Vec<_> =
        model.iter().map(|(key, event)| Entry { key: StateKeyNum(*key), event: EventNum(*event) }).collect();
    let mut builder = Builder::default();
    for batch in entries.chunks(batch) {
        let batch = batch.to_vec();
        builder = store
            .write_blocking(move |w| {
                builder.push(w, &batch)?;
                Ok::<_, Error>(builder)
            })
            .unwrap()
            .0;
    }
    store.write_blocking(move |w| builder.finish(w)).unwrap().0
}

fn content(read: &Read, root: Root, max: usize) -> Model {
    let mut out = Vec::new();
    let mut after = None;
    loop {
        let before = out.len();
        let ended = page(read, root, after, max, &mut out).unwrap();
        assert!(out.len() - before <= max);
        if ended {
            return out.iter().map(|entry| (entry.key.0, entry.event.0)).collect();
        }
        after = out.last().map(|entry| entry.key);
    }
}

/// Keys as rooms have them: neighbours mostly, and some from anywhere.
fn some_key(random: &Random, spread: u64) -> u32 {
    match random.below(10) {
        0 => random.u64() as u32,
        1 => u32::MAX - random.below(40) as u32,
        _ => 1000 + random.below(spread) as u32,
    }
}

#[test]
fn random_changes_match_a_plain_map_and_content_alone_decides_the_root() {
    for seed in 0..30 {
        let random = Random::seeded(seed);
        let spread = [20, 60, 300, 5000][seed as usize % 4];
        let store = Store::in_memory();
        let mut model = Model::new();
        let mut root = None;
        for step in 0..25 {
            let removes = random.below(4);
            let changes: Vec<_> = (0..random.below(60))
                .map(|_| {
                    let known = model.keys().nth(random.below(model.len() as u64 + 1) as usize).copied();
                    let key = known.filter(|_| random.below(2) == 0).unwrap_or_else(|| some_key(&random, spread));
                    (key, (random.below(4) >= removes).then(|| random.below(100_000) as u32 + 1))
                })
                .collect();
            for (key, event) in &changes {
                match event {
                    Some(event) => model.insert(*key, *event),
                    None => model.remove(key),
                };
            }
            let new = apply(&store, root, changes);
            let read = store.read().unwrap();
            assert_eq!(content(&read, new, 1 + random.below(50) as usize), model);
            assert_eq!(new, of_model(&store, &model), "seed {seed}, step {step}");
            assert_eq!(new, built(&store, &model, 37), "seed {seed}, step {step}");
            for key in model.keys().take(20).copied().chain((0..20).map(|_| some_key(&random, spread))) {
                let event = super::get(&read, new, StateKeyNum(key)).unwrap().map(|event| event.0);
                assert_eq!(event, model.get(&key).copied());
            }
            root = Some(new);
        }
    }
}

#[test]
fn conflicts_are_what_plain_maps_disagree_on() {
    for seed in 0..30 {
        let random = Random::seeded(seed);
        let store = Store::in_memory();
        let spread = [20, 300, 3000][seed as usize % 3];
        let base: Model = (0..random.below(400)).map(|_| (some_key(&random, spread), random.below(9) as u32)).collect();
        let models: Vec<Model> = (0..1 + random.below(5))
            .map(|_| {
                let mut model = if random.below(6) == 0 { Model::new() } else { base.clone() };
                for _ in 0..random.below(30) {
                    let key = some_key(&random, spread);
                    if random.below(3) == 0 {
                        model.remove(&key)
                    } else {
                        model.insert(key, random.below(9) as u32)
                    };
                }
                model
            })
            .collect();
        let roots: Vec<_> = models.iter().map(|model| (!model.is_empty()).then(|| of_model(&store, model))).collect();
        let mut expected = BTreeMap::new();
        for key in models.iter().flat_map(|model| model.keys()) {
            let events: Vec<_> = models.iter().map(|model| model.get(key).map(|event| EventNum(*event))).collect();
            if events.iter().any(|event| *event != events[0]) {
                expected.insert(StateKeyNum(*key), events);
            }
        }
        let mut found = Vec::new();
        conflicts(&store.read().unwrap(), &roots, &mut |key, events| {
            found.push((key, events.to_vec()));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        assert!(found.is_sorted());
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "seed {seed}");
    }
}

/// Counts the nodes that are read.
struct Counting(Read, Cell<usize>);

impl Get for Counting {
    fn with(&self, table: &Table, key: &[u8], f: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.1.set(self.1.get() + 1);
        self.0.with(table, key, f)
    }

    fn range(
        &self,
        table: &Table,
        from: &[u8],
        to: Option<&[u8]>,
        rev: bool,
        f: crate::store::shape::Visitor,
    ) -> Result<()> {
        self.0.range(table, from, to, rev, f)
    }

    fn count(&self, table: &Table) -> Result<u64> {
        self.0.count(table)
    }

    fn hash_key(&self) -> &[u8; 16] {
        self.0.hash_key()
    }
}

#[test]
fn a_large_state_is_small_and_compared_by_its_differences() {
    let store = Store::in_memory();
    // Events in an order of their own, as a join numbers them.
    let model: Model = (0..85_000u32).map(|n| (n + 1, n.wrapping_mul(2_654_435_761) % 194_000 + 1)).collect();
    let root = built(&store, &model, 4000);
    let stored = |read: &Read| {
        let mut bytes = 0;
        for table in [&STATE_NODE, &STATE_NAME] {
            read.prefix(table, b"", &mut |key, value| {
                bytes += key.len() + value.len();
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        }
        bytes
    };
    let whole = stored(&store.read().unwrap());
    assert!(whole < 500_000, "{whole} bytes for a whole tree");
    let mut after = root;
    for change in 0..50 {
        after = apply(&store, Some(after), vec![(change * 1_601 + 7, Some(200_000 + change))]);
    }
    let each = (stored(&store.read().unwrap()) - whole) / 50;
    assert!(each < 400, "{each} bytes for a change");
    let counting = Counting(store.read().unwrap(), Cell::new(0));
    let mut seen = 0;
    diff(&counting, Some(root), Some(after), &mut |_, _, _| {
        seen += 1;
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    assert_eq!(seen, 50);
    assert!(counting.1.get() < 2 * 50 * 4, "{} nodes read", counting.1.get());
}

#[test]
fn a_node_that_is_wrong_is_corrupt_and_never_a_circle() {
    let store = Store::in_memory();
    // A branch that is its own child.
    let row = Branch { level: 1, prefix: 0, children: vec![(0, 7), (1, 7)] }.encode();
    store.write_blocking(move |w| w.put(&STATE_NODE, &7u32.to_be_bytes(), &row)).unwrap();
    let read = store.read().unwrap();
    let corrupt = Err(Error::corrupt(&STATE_NODE, &7u32.to_be_bytes()));
    assert_eq!(super::get(&read, Root(7), StateKeyNum(0)), corrupt);
    assert!(matches!(page(&read, Root(7), None, 10, &mut Vec::new()), Err(Error::Corrupt { .. })));
    assert!(matches!(super::get(&read, Root(8), StateKeyNum(0)), Err(Error::Corrupt { .. })));
}

/// The nodes that are stored.
fn nodes(read: &Read) -> usize {
    let (mut nodes, mut names) = (0, 0);
    for (table, count) in [(&STATE_NODE, &mut nodes), (&STATE_NAME, &mut names)] {
        read.prefix(table, b"", &mut |_, _| {
            *count += 1;
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    }
    assert_eq!(nodes, names);
    nodes
}

#[test]
fn a_sweep_frees_what_nothing_names_whatever_happens_meanwhile() {
    for seed in 0..40 {
        let random = Random::seeded(seed);
        let store = Store::in_memory();
        let mut named: BTreeMap<u64, (Model, Root)> = BTreeMap::new();
        let mut at = 0;
        // Names a state, one derived from another or one like a forgotten one; or forgets one.
        let mut live = |named: &mut BTreeMap<u64, (Model, Root)>| {
            let known: Vec<u64> = named.keys().copied().collect();
            let one = known.get(random.below(known.len() as u64 + 1) as usize).copied();
            if let Some(one) = one
                && random.below(2) == 0
            {
                named.remove(&one);
                let remove =
                    move |w: &mut Write| w.remove(&STATE_LOG, &[&1u32.to_be_bytes()[..], &order(one)].concat());
                store.write_blocking(remove).unwrap();
                return;
            }
            at += 1;
            let (mut model, mut root) =
                one.map_or((Model::new(), None), |one| (named[&one].0.clone(), Some(named[&one].1)));
            if random.below(4) == 0 {
                model = (0..random.below(300)).map(|key| (key as u32, 7)).collect();
                root = None;
            }
            let changes: Vec<_> =
                (0..random.below(20)).map(|_| (random.below(300) as u32, random.below(3) as u32)).collect();
            model.extend(changes.iter().copied());
            let changes: Vec<_> = match root {
                Some(_) => changes.into_iter().map(|(key, event)| (StateKeyNum(key), Some(EventNum(event)))).collect(),
                None => model.iter().map(|(key, event)| (StateKeyNum(*key), Some(EventNum(*event)))).collect(),
            };
            let position = Position(at);
            let write = move |w: &mut Write| {
                let root = set(w, root, &changes)?;
                timeline::put_state(w, RoomNum(1), position, root)?;
                Ok::<_, Error>(root)
            };
            named.insert(at, (model, store.write_blocking(write).unwrap().0));
        };
        for _ in 0..4 {
            (0..random.below(30)).for_each(|_| live(&mut named));
            let limit = store.write_blocking(sweep::begin).unwrap().0.unwrap();
            (0..random.below(3)).for_each(|_| live(&mut named));
            let grant = Budget::for_tests().account("state_nodes").try_take(0).unwrap();
            let mut sweep = sweep::Sweep::over(store.read().unwrap(), limit, grant).unwrap();
            while !sweep.mark(1 + random.below(5) as usize).unwrap() {
                live(&mut named);
            }
            loop {
                let most = 1 + random.below(40) as usize;
                let step = store.write_blocking(move |w| {
                    let ended = sweep.free(w, most)?;
                    Ok::<_, Error>((sweep, ended))
                });
                let ended;
                (sweep, ended) = step.unwrap().0;
                if ended {
                    break;
                }
                live(&mut named);
            }
            for (model, root) in named.values() {
                assert_eq!(&content(&store.read().unwrap(), *root, 1000), model, "seed {seed}");
                assert_eq!(of_model(&store, model), *root, "seed {seed}");
            }
        }
        // Two sweeps with no change between leave the reachable nodes and no others.
        for _ in 0..2 {
            let limit = store.write_blocking(sweep::begin).unwrap().0.unwrap();
            let grant = Budget::for_tests().account("state_nodes").try_take(0).unwrap();
            let mut sweep = sweep::Sweep::over(store.read().unwrap(), limit, grant).unwrap();
            assert!(sweep.mark(usize::MAX).unwrap());
            store.write_blocking(move |w| sweep.free(w, usize::MAX)).unwrap();
        }
        let read = store.read().unwrap();
        let mut reached = std::collections::BTreeSet::new();
        let mut open: Vec<u32> = named.values().map(|(_, root)| root.0).collect();
        while let Some(num) = open.pop() {
            if reached.insert(num)
                && let Node::Branch(branch) = load(&read, num).unwrap()
            {
                open.extend(branch.children.iter().map(|child| child.1));
            }
        }
        assert_eq!(nodes(&read), reached.len(), "seed {seed}");
        assert_eq!(sweep::made_since_last(&read).unwrap(), 0);
    }
}

fn order(at: u64) -> [u8; 8] {
    (at ^ (1 << 63)).to_be_bytes()
}

#[test]
fn any_bytes_are_a_node_or_damage() {
    crate::base::any_bytes::any_bytes(&[&[0; 40], &[1; 60], b"\x05\x03\x02\x01"], |bytes| drop(decode(bytes)));
}
