//! The engine alone: grouping, refusing, ordering. Power cuts and full disks are in `tests/it/crash.rs`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::schema::{META, STATE_NODE};
use super::*;

fn put(key: &'static str, value: &'static str) -> impl FnOnce(&mut Write) -> Result<()> + Send {
    move |w| w.put(&STATE_NODE, key.as_bytes(), value.as_bytes())
}

#[tokio::test]
async fn what_was_written_is_read_by_later_snapshots_only() {
    let store = Store::in_memory();
    let before = store.read().unwrap();
    store.write(put("a", "1")).await.unwrap();
    assert_eq!(before.get(&STATE_NODE, b"a").unwrap(), None);
    assert_eq!(store.read().unwrap().get(&STATE_NODE, b"a").unwrap(), Some(b"1".to_vec()));
}

#[tokio::test]
async fn a_job_that_says_no_leaves_its_group_alone() {
    let store = Store::in_memory();
    let writes = (0..100u32).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            store
                .write(move |w| {
                    let position = w.next_position();
                    w.announce(Change { room: Some(RoomNum(n)), ..Change::default() });
                    if n % 3 == 0 {
                        return Err(Error::Closed);
                    }
                    w.put(&STATE_NODE, &n.to_be_bytes(), &position.to_key())
                })
                .await
        })
    });
    let mut written = 0;
    for (n, write) in writes.collect::<Vec<_>>().into_iter().enumerate() {
        match write.await.unwrap() {
            Ok(((), changes)) => {
                written += 1;
                assert_eq!(changes.list()[0].room, Some(RoomNum(n as u32)));
                assert!(n % 3 != 0 && changes.list().len() == 1);
            }
            Err(failed) => assert!(n % 3 == 0 && failed == WriteError::Job(Error::Closed)),
        }
    }
    let read = store.read().unwrap();
    assert_eq!(read.position().unwrap(), Position(written));
    let mut positions = Vec::new();
    read.prefix(&STATE_NODE, b"", &mut |_, value| {
        positions.push(Position::from_key(value).unwrap().0);
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    positions.sort_unstable();
    assert_eq!(positions, (1..=written).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_job_that_fails_half_way_takes_its_commit_with_it() {
    let store = Store::in_memory();
    let failed = store
        .write(|w| {
            w.put(&STATE_NODE, b"half", b"")?;
            Err::<(), _>(Error::Closed)
        })
        .await;
    assert_eq!(failed, Err(WriteError::Job(Error::Closed)));
    assert_eq!(store.read().unwrap().get(&STATE_NODE, b"half").unwrap(), None);
    let panicked = store.write(|_| -> Result<()> { panic!("on purpose") }).await;
    assert_eq!(panicked, Err(WriteError::Store(Error::Aborted)));
    store.write(put("b", "2")).await.unwrap();
}

#[tokio::test]
async fn ranges_both_ways() {
    let store = Store::in_memory();
    store
        .write(|w| ["a1", "a2", "b1", "b2"].iter().try_for_each(|key| w.put(&STATE_NODE, key.as_bytes(), b"")))
        .await
        .unwrap();
    let read = store.read().unwrap();
    let list = |from: &str, to: Option<&str>, rev| {
        let mut keys = Vec::new();
        read.range(&STATE_NODE, from.as_bytes(), to.map(str::as_bytes), rev, &mut |key, _| {
            keys.push(String::from_utf8(key.to_vec()).unwrap());
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        keys
    };
    assert_eq!(list("a2", None, false), ["a2", "b1", "b2"]);
    assert_eq!(list("a", Some("b2"), true), ["b1", "a2", "a1"]);
    assert!(list("b", Some("a"), false).is_empty());
    assert_eq!(read.last_in_prefix(&STATE_NODE, b"a").unwrap().unwrap().0, b"a2");
    assert_eq!(read.first_in_prefix(&STATE_NODE, b"b").unwrap().unwrap().0, b"b1");
    assert_eq!(read.first_in_prefix(&STATE_NODE, b"c").unwrap(), None);
}

#[tokio::test]
async fn numbers_are_given_out_once_and_hashes_are_keyed() {
    let store = Store::in_memory();
    let first = store.write(|w| w.next_numbers("event", 10)).await.unwrap().0;
    let second = store.write(|w| w.next_numbers("event", 1)).await.unwrap().0;
    assert_eq!((first, second), (1, 11));
    let read = store.read().unwrap();
    assert_ne!(read.hash128(&[b"ab", b"c"]), read.hash128(&[b"a", b"bc"]));
    assert!(read.has(&META, b"hash_key").unwrap());
}

#[test]
fn a_closed_store_refuses_and_a_file_opens_again() {
    let folder = std::env::temp_dir().join(format!("snug-store-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("snug.db");
    let store = Store::open(StoreOptions::new(&path)).unwrap();
    assert_eq!(Store::open(StoreOptions::new(&path)).err(), Some(Error::Busy));
    store.write_blocking(put("a", "1")).unwrap();
    let key = *store.read().unwrap().hash_key();
    store.close_blocking();
    assert_eq!(store.write_blocking(put("b", "1")), Err(WriteError::Store(Error::Closed)));
    assert_eq!(store.read().err(), Some(Error::Closed));
    drop(store);
    let store = Store::open(StoreOptions::new(&path)).unwrap();
    assert_eq!(store.read().unwrap().get(&STATE_NODE, b"a").unwrap(), Some(b"1".to_vec()));
    assert_eq!(*store.read().unwrap().hash_key(), key);
    assert!(store.compact_blocking().unwrap());
    store.close_blocking();
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn random_operations_match_a_plain_map() {
    let random = Random::seeded(42);
    let store = Store::in_memory();
    let mut model = BTreeMap::new();
    for _ in 0..200 {
        let batch: Vec<_> = (0..random.below(30))
            .map(|_| (random.below(200).to_be_bytes(), random.below(3) > 0, random.u64().to_be_bytes()))
            .collect();
        for (key, is_put, value) in &batch {
            if *is_put {
                model.insert(*key, *value)
            } else {
                model.remove(key)
            };
        }
        store
            .write_blocking(move |w| -> Result<()> {
                for (key, is_put, value) in &batch {
                    if *is_put { w.put(&STATE_NODE, key, value)? } else { w.remove(&STATE_NODE, key).map(|_| ())? }
                }
                Ok(())
            })
            .unwrap();
        let mut rows = Vec::new();
        let read = store.read().unwrap();
        read.prefix(&STATE_NODE, b"", &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        let expected: Vec<_> = model.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        assert_eq!(rows, expected);
    }
}

/// A join's rows land between those of rooms that went on meanwhile: put one by one they left each page half empty.
#[test]
fn sorted_rows_come_out_as_if_put_one_by_one() {
    let store = Store::in_memory();
    let mut model = BTreeMap::new();
    let mut dice = 7u64;
    let mut number = move |below: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % below
    };
    for round in 0..60u64 {
        // Dense and far apart, over what is there and beside it.
        let (first, step) = (number(5000), 1 + number(40));
        let rows: Vec<_> = (0..number(300))
            .map(|n| ((first + n * step).to_be_bytes().to_vec(), vec![round as u8; 1 + number(90) as usize]))
            .collect();
        model.extend(rows.iter().cloned());
        store.write_blocking(move |w| w.put_sorted(&STATE_NODE, &rows)).unwrap();
    }
    let mut found = BTreeMap::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        found.insert(key.to_vec(), value.to_vec());
        Ok(ControlFlow::Continue(()))
    };
    store.read().unwrap().prefix(&STATE_NODE, b"", &mut visit).unwrap();
    assert!(found == model);
}

/// What others sent filled the card to its last bytes, and then nobody here could write.
#[tokio::test]
async fn what_others_send_stops_before_what_is_written_here() {
    let card = MemoryMedium::default();
    let store = Store::on_memory(card.clone());
    store.write_bulk(put("a", "1")).await.unwrap();
    for (free, spare) in [(300 << 20, 44 << 20), (256 << 20, 0), (280 << 20, 0), (9 << 20, 0), (300 << 20, 44 << 20)] {
        card.set_free_bytes(free);
        assert_eq!(store.spare_bytes(), spare, "{free}");
        let bulk = store.write_bulk(put("b", "1")).await.map(drop);
        assert_eq!(bulk, if spare > 0 { Ok(()) } else { Err(WriteError::Store(Error::Full)) });
        assert_eq!(store.check_spare().is_ok(), spare > 0);
        store.write(put("c", "1")).await.unwrap();
    }
    card.set_free_bytes(FREE_BYTES_MIN - 1);
    assert_eq!(store.write(put("d", "1")).await.map(drop), Err(WriteError::Store(Error::Full)));
}
