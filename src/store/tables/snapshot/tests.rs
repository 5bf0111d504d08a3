//! Trees against plain maps.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;
use crate::base::Random;
use crate::store::{Read, Store, Table};

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
        f: crate::store::access::Visitor,
    ) -> Result<()> {
        self.0.range(table, from, to, rev, f)
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
