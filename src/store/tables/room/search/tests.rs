//! The index against a plain list.

use std::collections::BTreeSet;

use super::*;
use crate::base::Random;
use crate::store::Store;
use crate::store::tables::room::timeline;

/// An event has a few of the words; word 0 is in nearly all.
fn postings(random: &Random, room: u32, order: i64) -> Vec<Posting> {
    let mut hashes: BTreeSet<u32> = (0..4).map(|_| (random.below(60) * random.below(60)) as u32).collect();
    if random.below(10) > 0 {
        hashes.insert(0);
    }
    let of = |hash: u32| Posting { hash: hash * 1_000_003, room: RoomNum(room), down: Down::of(order) };
    hashes.into_iter().map(of).collect()
}

fn found(get: &impl Get, status: &Status, words: &[u32], rooms: &[Place]) -> BTreeSet<Place> {
    let mut found = BTreeSet::new();
    let hashes: Vec<_> = words.iter().map(|word| word * 1_000_003).collect();
    for segment in &status.segments {
        let mut last = None;
        matches(get, segment, &hashes, rooms, &mut |place| {
            assert!(last < Some(place), "places rise");
            last = Some(place);
            assert!(found.insert(place), "an event is in one segment");
            Ok(Onward::Next)
        })
        .unwrap();
    }
    found
}

fn check(get: &impl Get, status: &Status, all: &[Posting], random: &Random) {
    for _ in 0..40 {
        let words: Vec<_> = (0..1 + random.below(3)).map(|_| (random.below(30) * random.below(3)) as u32).collect();
        let rooms: Vec<_> = (0..6)
            .filter(|_| random.below(2) == 0)
            .map(|room| (RoomNum(room), Down::of(random.below(4_000) as i64 - 500)))
            .collect();
        let has = |place: Place, word: u32| {
            all.binary_search(&Posting { hash: word * 1_000_003, room: place.0, down: place.1 }).is_ok()
        };
        let wanted = |place: &Place| rooms.iter().any(|(room, from)| *room == place.0 && place.1 >= *from);
        let places = all.iter().map(|posting| (posting.room, posting.down));
        let expected: BTreeSet<_> =
            places.filter(|place| wanted(place) && words.iter().all(|word| has(*place, *word))).collect();
        assert_eq!(found(get, status, &words, &rooms), expected, "{words:?} {rooms:?}");
    }
}

#[test]
fn words_are_found_in_all_segments_before_during_and_after_merges() {
    let (store, random) = (Store::in_memory(), Random::seeded(9));
    let job = move |w: &mut Write<'_>| {
        let (mut status, mut all, mut order) = (Status::default(), Vec::new(), 0);
        for batch in 0..70 {
            let mut new = Vec::new();
            for _ in 0..40 {
                order += 1 + random.below(3) as i64;
                // Some of them come from before everything else.
                let order = if random.below(5) == 0 { -order } else { order };
                new.extend(postings(&random, random.below(6) as u32, order));
            }
            new.sort_unstable();
            add(w, &mut status, &new, 40)?;
            all.extend(new);
            all.sort_unstable();
            while begin_merge(&mut status, u64::MAX) {
                while !merge_step(w, &mut status, 2)? {
                    if batch % 9 == 0 {
                        check(w, &status, &all, &random);
                    }
                }
                while !sweep(w, &mut status, 3)? {}
            }
            if batch % 10 == 0 {
                check(w, &status, &all, &random);
            }
            // Some lose their text.
            for _ in 0..5 {
                let Posting { room, down, .. } = all[random.below(all.len() as u64) as usize];
                let is = |posting: &&Posting| (posting.room, posting.down) == (room, down);
                let hashes = all.iter().filter(is).map(|posting| posting.hash).collect();
                add_gone(w, &Gone { place: (room, down), hashes })?;
                all.retain(|posting| !is(&posting));
            }
            while let Some(gone) = first_gone(w)? {
                take_out(w, &status, gone, 2)?;
            }
        }
        check(w, &status, &all, &random);
        let levels: BTreeSet<_> = status.segments.iter().map(|segment| segment.level).collect();
        assert!(status.segments.len() < 3 * MERGED && levels.contains(&2), "{levels:?}");
        let mut rows = 0;
        w.prefix(&SEARCH, &[], &mut |_, _| {
            rows += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        assert!(rows < status.bytes() / 500, "{rows} rows, {} bytes", status.bytes());
        while !clear(w, 5)? {}
        assert!(status::get(w)?.is_none() && w.first_in_prefix(&SEARCH, &[])?.is_none());
        Ok::<_, Error>(())
    };
    store.write_blocking(job).unwrap();
}

/// A merge that a power cut ended goes on, also when words were taken out meanwhile.
#[test]
fn words_are_taken_out_of_a_merge_under_way() {
    let (store, random) = (Store::in_memory(), Random::seeded(4));
    let job = move |w: &mut Write<'_>| {
        let (mut status, mut all) = (Status::default(), Vec::new());
        for batch in 0..MERGED as i64 {
            let mut new: Vec<_> = (0..200).flat_map(|n| postings(&random, 1, batch * 200 + n)).collect();
            new.sort_unstable();
            add(w, &mut status, &new, 200)?;
            all.extend(new);
        }
        all.sort_unstable();
        assert!(begin_merge(&mut status, u64::MAX));
        assert!(!merge_step(w, &mut status, 1)?);
        let place = (RoomNum(1), Down::of(700));
        let (gone, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|posting| posting.down == place.1);
        add_gone(w, &Gone { place, hashes: gone.iter().map(|posting| posting.hash).collect() })?;
        status::set(w, Some(&status))?;
        let mut status = status::get(w)?.unwrap();
        while let Some(gone) = first_gone(w)? {
            take_out(w, &status, gone, 100)?;
        }
        while !merge_step(w, &mut status, 1)? {}
        check(w, &status, &kept, &random);
        Ok::<_, Error>(())
    };
    store.write_blocking(job).unwrap();
}

#[test]
fn an_index_that_is_too_large_loses_what_is_oldest() {
    let (store, random) = (Store::in_memory(), Random::seeded(4));
    let job = move |w: &mut Write<'_>| {
        let mut status = Status::default();
        for batch in 0..200i64 {
            let mut new: Vec<_> = (0..40).flat_map(|n| postings(&random, 1, batch * 40 + n)).collect();
            new.sort_unstable();
            add(w, &mut status, &new, 40)?;
            while begin_merge(&mut status, 20_000) {
                while !merge_step(w, &mut status, 4)? {}
            }
        }
        assert!(status.bytes() <= 20_000 && status.is_full && status.bytes() > 5_000, "{}", status.bytes());
        let all = found(w, &status, &[0], &[(RoomNum(1), Down::MIN)]);
        assert!(all.contains(&(RoomNum(1), Down::of(7_999))) || all.len() > 500, "{}", all.len());
        assert!(all.iter().all(|(_, down)| down.order() > 2_000));
        Ok::<_, Error>(())
    };
    store.write_blocking(job).unwrap();
}

/// What a walk finds, and whether it is over, until it is.
fn walk(w: &mut Write<'_>, stale: &stale::Stale, steps_max: usize) -> Result<usize> {
    let (mut from, mut steps) = (Vec::new(), 0);
    while steps < steps_max {
        let (chunks, next) = stale::chunks(w, stale, &from, 3, 2)?;
        assert!(chunks.len() <= 2);
        stale::take_out(w, stale, &chunks)?;
        steps += 1;
        if steps % 4 == 0 {
            let mut status = status::get(w)?.unwrap();
            merge_step(w, &mut status, 1)?;
            status::set(w, Some(&status))?;
        }
        let Some(next) = next else { break };
        from = next;
    }
    Ok(steps)
}

/// The words of rooms that were removed, and of old messages, stayed for as long as there was an index.
#[test]
fn words_of_removed_events_are_taken_out_while_a_merge_goes_on() {
    let (store, random) = (Store::in_memory(), Random::seeded(5));
    let job = move |w: &mut Write<'_>| {
        let (gone, shortened) = (RoomNum(3), RoomNum(4));
        let is_gone = |posting: &Posting| {
            let order = posting.down.order();
            posting.room == gone || posting.room == shortened && order < 800 && order % 7 != 0
        };
        let (mut status, mut all) = (Status { is_checked: true, ..Status::default() }, Vec::new());
        for batch in 0..MERGED as i64 {
            let mut new: Vec<_> =
                (0..200).flat_map(|n| postings(&random, random.below(6) as u32, batch * 200 + n)).collect();
            for posting in new.iter().filter(|posting| !is_gone(posting)) {
                timeline::put(w, posting.room, posting.down.order(), EventNum(1))?;
            }
            new.sort_unstable();
            add(w, &mut status, &new, 200)?;
            all.extend(new);
        }
        all.sort_unstable();
        let segments = status.segments.clone();
        assert!(begin_merge(&mut status, u64::MAX));
        merge_step(w, &mut status, 1)?;
        status::set(w, Some(&status))?;
        assert!(stale::next(w, 9)?.is_none());

        // What has newer places only is not read.
        stale::note(w, shortened, Down::of(799))?;
        let old = stale::next(w, 9)?.unwrap();
        let read: Vec<_> = segments.iter().map(|segment| old.concerns_segment(segment)).collect();
        assert_eq!(read, [true, true, true, true, false, false, false, false]);

        stale::note(w, gone, Down::MIN)?;
        let both = stale::next(w, 9)?.unwrap();
        // The power goes, and the next start begins anew.
        assert_eq!(walk(w, &both, 9)?, 9);
        assert!(walk(w, &both, usize::MAX)? > 8);
        assert!(stale::end(w, &both)? && stale::next(w, 9)?.is_none());
        let mut status = status::get(w)?.unwrap();
        while !merge_step(w, &mut status, 2)? {}
        while !sweep(w, &mut status, 5)? {}
        status::set(w, Some(&status))?;
        let mut removed = all.clone();
        stale::leave_out(w, &mut removed)?;
        all.retain(|posting| !is_gone(posting));
        assert_eq!(removed, all, "what becomes a segment late has none of them");
        check(w, &status, &all, &random);
        let mut bytes = 0;
        w.prefix(&SEARCH, &[], &mut |key, chunk| {
            bytes += (key.len() + chunk.len()) as u64;
            Ok(ControlFlow::Continue(()))
        })?;
        assert_eq!(bytes, status.bytes());

        // An index of an earlier version: every room may have lost something.
        for order in 0..1_600 {
            timeline::remove(w, RoomNum(5), order)?;
        }
        status::set(w, Some(&Status { is_checked: false, ..status }))?;
        let any = stale::next(w, 9)?.unwrap();
        walk(w, &any, usize::MAX)?;
        stale::note(w, shortened, Down::of(900))?;
        assert!(stale::end(w, &any)?);
        all.retain(|posting| posting.room != RoomNum(5));
        check(w, &status::get(w)?.unwrap(), &all, &random);

        // A room that loses more meanwhile stays noted.
        let early = stale::next(w, 9)?.unwrap();
        stale::note(w, shortened, Down::of(900))?;
        assert!(!stale::end(w, &early)? && stale::next(w, 9)?.is_some());
        Ok::<_, Error>(())
    };
    store.write_blocking(job).unwrap();
}
