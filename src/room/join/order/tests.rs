use std::collections::HashMap;

use super::*;

/// A log in memory, written the way the join writes it.
struct Written {
    events: Vec<(Node, Vec<Node>)>,
    ids: Vec<(Node, u32)>,
    nodes: u32,
    forgetful: bool,
}

impl Log for Written {
    fn events(&mut self, visit: &mut dyn FnMut(Node, &[Node]) -> Result<(), OrderError>) -> Result<(), OrderError> {
        self.events.iter().try_for_each(|(node, parents)| visit(*node, parents))
    }
    fn ids(&mut self, visit: &mut dyn FnMut(Node, &[u8]) -> Result<(), OrderError>) -> Result<(), OrderError> {
        self.ids.iter().try_for_each(|(node, id)| visit(*node, &id.to_be_bytes()))
    }
}

struct Dice(u64);
impl Dice {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % u64::from(n.max(1))) as u32
    }
}

/// Event n refers to some before it; one in three starts a chain of its own.
fn graph(n: u32, dice: &mut Dice) -> Vec<(u32, Vec<u32>)> {
    (0..n).map(|id| (id, (0..if id == 0 { 0 } else { dice.below(4) }).map(|_| dice.below(id)).collect())).collect()
}

fn shuffle(events: &mut [(u32, Vec<u32>)], dice: &mut Dice) {
    for at in (1..events.len()).rev() {
        events.swap(at, dice.below(at as u32 + 1) as usize);
    }
}

fn write(events: &[(u32, Vec<u32>)], memory: &Account) -> Written {
    let mut intern = Intern::new([1; 16], 16, memory).unwrap();
    let mut log = Written { events: Vec::new(), ids: Vec::new(), nodes: 0, forgetful: false };
    let mut node = |id: u32, ids: &mut Vec<(Node, u32)>| {
        let seen = intern.node(&id.to_be_bytes()).unwrap();
        if let Seen::First(node) = seen {
            ids.push((node, id));
        }
        seen.node()
    };
    for (id, parents) in events {
        let own = node(*id, &mut log.ids);
        let parents = parents.iter().map(|parent| node(*parent, &mut log.ids)).collect();
        log.events.push((own, parents));
    }
    log.nodes = intern.nodes();
    log.forgetful = intern.is_forgetful();
    log
}

/// Checks that the order is one, and gives the ids that found no place.
fn check(events: &[(u32, Vec<u32>)], log: &Written, order: &Order) -> Vec<u32> {
    let node_of: HashMap<u32, Node> = log.ids.iter().map(|(node, id)| (*id, *node)).collect();
    let mut places: Vec<u32> = Vec::new();
    let mut without = Vec::new();
    for (id, parents) in events {
        match order.place(node_of[id]) {
            None => without.push(*id),
            Some(place) => {
                places.push(place);
                for parent in parents {
                    assert!(order.place(node_of[parent]).expect("a placed event's parents are placed") < place);
                }
            }
        }
    }
    places.sort();
    assert_eq!(places, (0..order.count()).collect::<Vec<_>>(), "places are contiguous");
    without.sort();
    without
}

fn run(events: &[(u32, Vec<u32>)], left_bytes: Option<u64>) -> (Vec<u32>, usize, bool) {
    let scratch = Scratch::for_tests();
    let rest = left_bytes.map(|left| scratch.memory.try_take(scratch.memory.limit() - left).unwrap());
    let mut log = write(events, &scratch.memory);
    let (nodes, forgetful) = (log.nodes, log.forgetful);
    let order = Order::of(&mut log, nodes, forgetful.then_some([9; 16]), &scratch).unwrap();
    let without = check(events, &log, &order);
    let passes = order.passes();
    drop((order, rest));
    assert_eq!(scratch.memory.used(), 0);
    (without, passes, forgetful)
}

#[test]
fn any_arrival_order_is_put_right_in_one_reading() {
    let mut dice = Dice(3);
    for n in [0, 1, 2, 50, 3000] {
        let mut events = graph(n, &mut dice);
        assert_eq!(run(&events, None), (vec![], 1, false));
        events.reverse();
        assert_eq!(run(&events, None), (vec![], 1, false));
        shuffle(&mut events, &mut dice);
        assert_eq!(run(&events, None), (vec![], 1, false));
    }
}

/// State first and its auth chain behind it, as servers send a room: what a reading of the state needs lay anywhere, since the
/// events were numbered in the order of their parents.
#[test]
fn what_nothing_refers_to_comes_last_in_the_order_it_arrived() {
    let mut dice = Dice(8);
    // Event 0, a hundred that refer to it, and a thousand that refer to two of those.
    let mut chain: Vec<(u32, Vec<u32>)> = (1..=100).map(|id| (id, vec![0])).collect();
    let mut state: Vec<(u32, Vec<u32>)> =
        (101..=1100).map(|id| (id, vec![1 + id % 100, 1 + dice.below(100)])).collect();
    shuffle(&mut chain, &mut dice);
    shuffle(&mut state, &mut dice);
    let events = [&state[..], &chain[..], &[(0, vec![])]].concat();
    let scratch = Scratch::for_tests();
    let mut log = write(&events, &scratch.memory);
    let nodes = log.nodes;
    let order = Order::of(&mut log, nodes, None, &scratch).unwrap();
    check(&events, &log, &order);
    let places: Vec<_> = log.events.iter().map(|(node, _)| order.place(*node).unwrap()).collect();
    assert_eq!(places[..1000], (101..1101).collect::<Vec<_>>());
    assert_eq!(places[1000..1100], (1..101).collect::<Vec<_>>());
}

#[test]
fn tiny_accounts_take_more_readings_and_come_to_the_same() {
    let mut dice = Dice(4);
    let mut events = graph(8000, &mut dice);
    shuffle(&mut events, &mut dice);
    // The table forgets (8,000 ids would take 150 KB), doubles are merged from disk, edges do not fit.
    let (without, passes, forgetful) = run(&events, Some(130_000 + 2 * spill::BUFFER_BYTES as u64));
    assert!(without.is_empty());
    assert!(passes > 1, "{passes}");
    assert!(forgetful);
}

#[test]
fn cycles_and_what_stands_on_missing_events_find_no_place() {
    let events: Vec<(u32, Vec<u32>)> = vec![
        (0, vec![]),
        (1, vec![0, 2]), // 1 and 2 need each other
        (2, vec![1]),
        (3, vec![3]), // itself
        (4, vec![0]),
        (5, vec![4, 99]), // 99 was not sent
        (6, vec![5, 0]),
        (7, vec![4, 4, 0]), // the same parent twice is odd, not wrong
        (4, vec![0]),       // a second copy
    ];
    let scratch = Scratch::for_tests();
    let mut log = write(&events, &scratch.memory);
    let nodes = log.nodes;
    let order = Order::of(&mut log, nodes, None, &scratch).unwrap();
    let node = |id: u32| log.ids.iter().find(|(_, i)| *i == id).unwrap().0;
    for id in [1, 2, 3, 5, 6] {
        assert_eq!(order.fate(node(id)), Fate::Stuck, "{id}");
    }
    assert_eq!(order.fate(node(99)), Fate::Missing);
    assert_eq!(order.missing().collect::<Vec<_>>(), vec![node(99)]);
    assert_eq!(order.count(), 3);
    assert!(order.place(node(7)) > order.place(node(4)));
}

#[test]
fn a_long_chain_backwards_fits_in_little_memory() {
    let chain: Vec<(u32, Vec<u32>)> =
        (0..2000).rev().map(|id| (id, if id == 0 { vec![] } else { vec![id - 1] })).collect();
    assert_eq!(run(&chain, None), (vec![], 1, false));
    let scratch = Scratch::for_tests();
    let mut log = write(&chain, &scratch.memory);
    let left = 10_000 + 2 * spill::BUFFER_BYTES as u64;
    let _rest = scratch.memory.try_take(scratch.memory.limit() - scratch.memory.used() - left).unwrap();
    let nodes = log.nodes;
    let order = Order::of(&mut log, nodes, None, &scratch).unwrap();
    assert!(check(&chain, &log, &order).is_empty());
}

/// Each reading once read the whole log, eight times for a room of 200,000 events.
#[test]
fn the_log_is_read_once_however_little_memory_there_is() {
    struct Once(Written, usize);
    impl Log for Once {
        fn events(&mut self, visit: &mut dyn FnMut(Node, &[Node]) -> Result<(), OrderError>) -> Result<(), OrderError> {
            self.1 += 1;
            self.0.events(visit)
        }
        fn ids(&mut self, visit: &mut dyn FnMut(Node, &[u8]) -> Result<(), OrderError>) -> Result<(), OrderError> {
            self.0.ids(visit)
        }
    }
    let mut dice = Dice(5);
    let mut events = graph(8000, &mut dice);
    // A cycle, an event that was not sent, and the events above them, are carried along and never placed.
    events.extend([(8000, vec![8001]), (8001, vec![8000]), (8002, vec![9999, 5]), (8003, vec![8002])]);
    shuffle(&mut events, &mut dice);
    let scratch = Scratch::for_tests();
    let mut log = Once(write(&events, &scratch.memory), 0);
    let left = 45_000 + 2 * spill::BUFFER_BYTES as u64;
    let _rest = scratch.memory.try_take(scratch.memory.limit() - scratch.memory.used() - left).unwrap();
    let nodes = log.0.nodes;
    let order = Order::of(&mut log, nodes, None, &scratch).unwrap();
    assert_eq!(check(&events, &log.0, &order), [8000, 8001, 8002, 8003]);
    assert!(order.passes() > 2 && log.1 == 1, "{} passes", order.passes());
    let node = |id: u32| log.0.ids.iter().find(|(_, i)| *i == id).unwrap().0;
    assert_eq!((order.fate(node(8000)), order.fate(node(9999))), (Fate::Stuck, Fate::Missing));
    drop(order);
    assert_eq!(scratch.disk.used(), 0);
}

/// More events than fit in memory stood above one that was not sent: the room was refused as too tangled.
#[test]
fn what_stands_on_missing_events_may_be_much() {
    let mut events: Vec<(u32, Vec<u32>)> = (2..8000).map(|id| (id, vec![1, id - 1])).collect();
    events.push((0, vec![]));
    let scratch = Scratch::for_tests();
    let mut log = write(&events, &scratch.memory);
    let left = 45_000 + 2 * spill::BUFFER_BYTES as u64;
    let _rest = scratch.memory.try_take(scratch.memory.limit() - scratch.memory.used() - left).unwrap();
    let nodes = log.nodes;
    let order = Order::of(&mut log, nodes, None, &scratch).unwrap();
    assert_eq!((order.count(), order.passes()), (1, 2));
    assert_eq!(check(&events, &log, &order).len(), 7998);
}
