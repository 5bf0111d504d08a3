//! The engine alone: grouping, refusing, ordering. Power cuts and full disks are in `tests/it/crash.rs`.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::RwLock;

use super::schema::{META, STATE_NODE};
use super::*;

mod damage;
mod journal;

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
async fn a_job_that_fails_half_way_leaves_nothing_behind() {
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
    assert!(matches!(panicked, Err(WriteError::Store(Error::Panicked(what))) if what.contains("on purpose")));
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

/// A join's rows land between those of rooms that went on meanwhile: single puts left each page half empty.
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
        // Dense and far apart, over existing rows and beside them.
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

/// Other servers' data filled the card to its last bytes, and then local users could not write.
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

/// A database was cut off between a reader's look at the mark and its write, which hit a page of the database opened after it.
#[test]
fn a_database_is_cut_off_before_or_after_a_write_and_not_in_its_middle() {
    #[derive(Debug)]
    struct Looking(Arc<RwLock<bool>>);
    impl Disk for Looking {
        fn len(&self) -> io::Result<u64> {
            Ok(0)
        }
        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            self.write(0, &[])
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            self.write(0, &[])
        }
        fn sync_data(&self) -> io::Result<()> {
            self.write(0, &[])
        }
        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            match self.0.try_write() {
                Some(_) => Err(io::Error::other("it can be cut off now")),
                None => Ok(()),
            }
        }
    }
    let retired = Arc::new(RwLock::new(false));
    let guarded = disk::Guarded { disk: Box::new(Looking(retired.clone())), retired: retired.clone() };
    guarded.write(0, b"page").unwrap();
    guarded.read(0, &mut [0; 4]).unwrap();
    guarded.set_len(4).and_then(|()| guarded.sync_data()).unwrap();
    *retired.write() = true;
    assert!(guarded.write(0, b"page").is_err() && guarded.read(0, &mut [0; 4]).is_err());
}

/// Jobs that share one commit: they queue while another job keeps the writer busy.
fn together(
    store: &Store,
    jobs: Vec<Box<dyn FnOnce(&mut Write) -> Result<u32> + Send>>,
) -> Vec<Result<(u32, Changes), WriteError<Error>>> {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let held = scope.spawn(move || {
            store.write_blocking(move |_| {
                drop(begun);
                let _ = wait.recv();
                Ok::<_, Error>(())
            })
        });
        let _ = has_begun.recv();
        let mut writes = Vec::new();
        for job in jobs {
            // Each is in the queue before the next, so that they run in this order.
            let before = store.0.queue().capacity();
            writes.push(scope.spawn(move || store.write_blocking(job)));
            while store.0.queue().capacity() == before {
                std::thread::yield_now();
            }
        }
        drop(go);
        held.join().unwrap().unwrap();
        writes.into_iter().map(|write| write.join().unwrap()).collect()
    })
}

/// A panicking write job ended the server, and under test it failed all jobs of its commit: an attacker with such a job
/// could make other people's messages fail.
#[test]
fn a_job_that_panics_is_given_up_alone_with_all_it_wrote() {
    let store = Store::in_memory();
    store
        .write_blocking(|w| ["k", "gone"].iter().try_for_each(|key| w.put(&STATE_NODE, key.as_bytes(), b"0")))
        .unwrap();
    let done = together(
        &store,
        vec![
            Box::new(|w| {
                w.next_position();
                w.put(&STATE_NODE, b"k", b"a").map(|()| 1)
            }),
            Box::new(|w| {
                w.next_position();
                w.announce(Change::default());
                w.put(&STATE_NODE, b"k", b"b1")?;
                w.put(&STATE_NODE, b"k", b"b2")?;
                w.remove(&STATE_NODE, b"gone")?;
                w.next_numbers("event", 5)?;
                let rows: Vec<_> = (0..20u32).map(|n| (n.to_be_bytes(), [1; 40])).collect();
                w.put_sorted(&STATE_NODE, &rows)?;
                panic!("on purpose")
            }),
            Box::new(|_| panic!("before anything")),
            Box::new(|w| {
                assert_eq!(w.get(&STATE_NODE, b"k")?, Some(b"a".to_vec()));
                assert_eq!(w.next_position(), Position(2));
                w.next_numbers("event", 1)
            }),
        ],
    );
    assert_eq!(done[0].as_ref().unwrap().0, 1);
    for (at, said) in [(1, "on purpose"), (2, "before anything")] {
        let Err(WriteError::Store(Error::Panicked(what))) = &done[at] else { panic!("{:?}", done[at]) };
        assert!(what.contains(said), "{what}");
    }
    let (first, changes) = done[3].as_ref().unwrap();
    assert_eq!((*first, changes.position(), changes.list().len()), (1, Position(2), 0));
    let read = store.read().unwrap();
    assert_eq!(read.get(&STATE_NODE, b"gone").unwrap(), Some(b"0".to_vec()));
    assert_eq!(read.get(&STATE_NODE, &3u32.to_be_bytes()).unwrap(), None);
    assert_eq!(store.reopened(), 0);
}

/// A job whose overwritten rows exceed the kept amount fails the jobs before it in the commit, and no others.
#[test]
fn a_large_job_that_panics_takes_its_transaction_and_not_those_behind_it() {
    let store = Store::in_memory();
    let done = together(
        &store,
        vec![
            Box::new(|w| w.put(&STATE_NODE, b"a", b"").map(|()| 1)),
            Box::new(|w| {
                (0..200u32).try_for_each(|n| w.put(&STATE_NODE, &n.to_be_bytes(), &[0; 1000]))?;
                (0..200u32).try_for_each(|n| w.put(&STATE_NODE, &n.to_be_bytes(), &[1; 1000]))?;
                panic!("on purpose")
            }),
            Box::new(|w| w.put(&STATE_NODE, b"c", b"").map(|()| 3)),
        ],
    );
    assert_eq!(done[0], Err(WriteError::Store(Error::Aborted)));
    assert!(matches!(done[1], Err(WriteError::Store(Error::Panicked(_)))));
    assert_eq!(done[2].as_ref().unwrap().0, 3);
    let read = store.read().unwrap();
    let has = |key: &[u8]| read.has(&STATE_NODE, key).unwrap();
    assert!(has(b"c") && !has(b"a") && !has(&7u32.to_be_bytes()));
}

#[test]
fn groups_with_jobs_that_fail_anywhere_match_a_plain_map() {
    let random = Random::seeded(7);
    let store = Store::in_memory();
    let mut model = BTreeMap::new();
    for round in 0..120u32 {
        let mut wanted = Vec::new();
        let mut jobs: Vec<Box<dyn FnOnce(&mut Write) -> Result<u32> + Send>> = Vec::new();
        for number in 0..1 + random.below(8) as u32 {
            let ops: Vec<_> = (0..random.below(12))
                .map(|_| ((random.below(60) as u32).to_be_bytes(), random.below(4), random.u64().to_be_bytes()))
                .collect();
            let end = random.below(4);
            let mut tried = model.clone();
            for (key, op, value) in &ops {
                match op {
                    0 => drop(tried.remove(key)),
                    1 => tried.extend((0..10u8).map(|n| ([key[3], 1, 1, n], *value))),
                    _ => drop(tried.insert(*key, *value)),
                }
            }
            if end > 1 {
                model = tried;
            }
            wanted.push(end);
            jobs.push(Box::new(move |w| {
                for (key, op, value) in &ops {
                    match op {
                        0 => drop(w.remove(&STATE_NODE, key)?),
                        1 => {
                            let rows: Vec<_> = (0..10u8).map(|n| ([key[3], 1, 1, n], *value)).collect();
                            w.put_sorted(&STATE_NODE, &rows)?;
                        }
                        _ => w.put(&STATE_NODE, key, value)?,
                    }
                }
                match end {
                    0 => panic!("on purpose"),
                    1 => Err(Error::Closed),
                    _ => Ok(number),
                }
            }));
        }
        for (number, (done, end)) in together(&store, jobs).into_iter().zip(wanted).enumerate() {
            match end {
                0 => assert!(matches!(done, Err(WriteError::Store(Error::Panicked(_)))), "{done:?}"),
                1 => assert_eq!(done, Err(WriteError::Job(Error::Closed))),
                _ => assert_eq!(done.unwrap().0, number as u32),
            }
        }
        let mut rows = BTreeMap::new();
        let mut visit = |key: &[u8], value: &[u8]| {
            rows.insert(<[u8; 4]>::try_from(key).unwrap(), <[u8; 8]>::try_from(value).unwrap());
            Ok(ControlFlow::Continue(()))
        };
        store.read().unwrap().prefix(&STATE_NODE, b"", &mut visit).unwrap();
        assert!(rows == model, "round {round}");
    }
    assert_eq!(store.reopened(), 0);
}
