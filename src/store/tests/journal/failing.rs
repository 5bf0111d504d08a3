//! A card that fails in the journal, or in the pages that its records change.

use super::*;

#[test]
fn a_journal_that_cannot_be_written_is_done_without() {
    let card = Card::default();
    let store = open(&card);
    write(&store, 1);
    write(&store, 2);
    let (before, lost) = (rows(&store), Arc::new(Lost::default()));
    store.follow(lost.clone());
    card.cells().failing = Some(io::ErrorKind::Other);
    let failed = store.write_blocking(put("a", "1"));
    assert_eq!(*lost.0.lock().unwrap(), [store.read().unwrap().position().unwrap()], "told before the next commit");
    assert!(matches!(failed, Err(WriteError::Store(Error::Io(_)))), "{failed:?}");
    assert!(rows(&store) == before && found(&card.image()) == before);
    assert_eq!((store.reopened(), store.status()), (1, Status::Working));
    // Each commit is durable by itself now.
    for number in 3..6 {
        write(&store, number);
        assert!(on_card(&card.image()) == rows(&store));
    }
    assert_eq!(store.reopened(), 1);
    store.close_blocking();
    assert_eq!(card.cells().aside, 1);
    // A start without a journal, and one that has it again.
    let store = open(&card);
    write(&store, 6);
    assert!(on_card(&card.image()) == rows(&store));
    store.close_blocking();
    card.cells().failing = None;
    let store = open(&card);
    write(&store, 7);
    write(&store, 8);
    assert!(found(&card.image()) == rows(&store) && on_card(&card.image()) != rows(&store));
}

#[test]
fn a_record_that_arrives_late_does_not_follow_commits_without_a_journal() {
    let card = Card::default();
    let store = open(&card);
    write(&store, 1);
    write(&store, 2);
    let [_, mut journal] = card.image();
    card.cells().failing = Some(io::ErrorKind::Other);
    store.write_blocking(put("a", "failed")).unwrap_err();
    store.write_blocking(put("a", "newer")).unwrap();
    let (offset, data) = card.cells().late.take().unwrap();
    journal[offset..][..data.len()].copy_from_slice(&data);
    let found_again = || found(&[card.image()[DATABASE].clone(), journal.clone()]);
    assert!(found_again() == rows(&store));
    assert!(store.compact_blocking().unwrap());
    assert!(found_again() == rows(&store));
}

/// Rows of many pages.
fn fill(w: &mut Write) -> Result<()> {
    (0..2000u32)
        .try_for_each(|n| w.put(&STATE_NAME, &n.to_be_bytes(), format!("name-{n:05}-{}", "x".repeat(80)).as_bytes()))
}

#[test]
fn a_change_that_cannot_be_applied_is_left_out_alone() {
    let card = Card::default();
    let store = open_with(&card, 5, 2 << 20);
    store.write_bulk_blocking(fill).unwrap();
    for number in 0..10 {
        write(&store, number);
        store.write_blocking(move |w| w.put(&STATE_NAME, &(number * 200).to_be_bytes(), b"new")).unwrap();
    }
    let (expected, image) = (rows(&store), card.image());
    let needle = memchr::memmem::find(&image[DATABASE], b"name-01000-").unwrap();
    let killed = Card::of(image);
    killed.cells().gone[DATABASE].push(needle / BLOCK);
    let store = open_with(&killed, 6, 2 << 20);
    assert!(rows(&store) == expected);
    let read = store.read().unwrap();
    for number in (0..10u32).filter(|number| *number != 5) {
        assert_eq!(read.get(&STATE_NAME, &(number * 200).to_be_bytes()).unwrap(), Some(b"new".to_vec()), "{number}");
    }
    assert!(read.get(&STATE_NAME, &1000u32.to_be_bytes()).is_err());
}

#[test]
fn of_a_change_only_the_rows_that_cannot_be_applied_are_left_out() {
    let card = Card::default();
    let store = open_with(&card, 5, 2 << 20);
    store.write_bulk_blocking(fill).unwrap();
    let keys = [3u32, 1000, 1001, 1990];
    for number in 0..4 {
        let job = move |w: &mut Write| {
            w.next_position();
            w.put(&STATE_NODE, &[1, number], b"before")?;
            keys.iter().try_for_each(|key| w.put(&STATE_NAME, &key.to_be_bytes(), &[number]))?;
            w.put(&STATE_NODE, &[2, number], b"behind")
        };
        store.write_blocking(job).unwrap();
    }
    let (expected, image) = (rows(&store), card.image());
    let needle = memchr::memmem::find(&image[DATABASE], b"name-01000-").unwrap();
    let killed = Card::of(image);
    killed.cells().gone[DATABASE].push(needle / BLOCK);
    let store = open_with(&killed, 6, 2 << 20);
    assert!(rows(&store) == expected);
    let read = store.read().unwrap();
    for key in [3u32, 1990] {
        assert_eq!(read.get(&STATE_NAME, &key.to_be_bytes()).unwrap(), Some(vec![3]), "{key}");
    }
    assert!(read.get(&STATE_NAME, &1000u32.to_be_bytes()).is_err());
    write(&store, 9);
    store.close_blocking();
    assert_eq!(rows(&open_with(&killed, 8, 2 << 20)).1, Position(5));
}

#[test]
fn a_block_of_the_journal_that_cannot_be_read_is_its_end() {
    for block in 0..6 {
        let card = Card::default();
        let store = open(&card);
        let mut states = vec![rows(&store)];
        for number in 0..6 {
            write(&store, number);
            states.push(rows(&store));
        }
        let killed = Card::of(card.image());
        killed.cells().gone[JOURNAL].push(block);
        let store = open(&killed);
        // The first commit is in the database; the last block is the one behind the records.
        assert!(rows(&store) == states[block + 1], "block {block}");
        assert_eq!((killed.cells().aside, store.status()), (1, Status::Working));
        write(&store, 50);
        write(&store, 51);
        assert!(found(&killed.image()) == rows(&store));
    }
}

/// A server that could start without a journal starts with one, but for the page where redb lists what to free: without it
/// nothing can be committed, not even in memory.
#[test]
fn a_page_that_cannot_be_read_does_not_keep_a_server_with_a_journal_from_starting() {
    let card = Card::default();
    let store = open_with(&card, 5, 2 << 20);
    (0..40).for_each(|number| write(&store, number));
    store.compact_blocking().unwrap();
    (40..60).for_each(|number| write(&store, number));
    let image = card.image();
    let (mut opened, mut refused) = (0, 0);
    for page in 0..image[DATABASE].len() / BLOCK {
        let opens = |files: Image| {
            let card = Card::of(files);
            card.cells().gone[DATABASE].push(page);
            try_open(&card, 6, 2 << 20).and_then(|store| store.read().map(drop)).is_ok()
        };
        if opens([image[DATABASE].clone(), Vec::new()]) {
            opened += 1;
            refused += u32::from(!opens(image.clone()));
        }
    }
    assert!(opened > 10 && refused <= 1, "{refused} of {opened}");
}

/// Readers that had waited for the database each opened it again, under those that had it already.
#[test]
fn a_database_that_could_not_be_opened_is_opened_again_once() {
    let card = Card::default();
    let store = open(&card);
    write(&store, 1);
    card.cells().gone[DATABASE].push(0);
    card.cells().failing = Some(io::ErrorKind::Other);
    store.write_blocking(put("a", "1")).unwrap_err();
    assert!(matches!(store.status(), Status::Failed(_)) && store.read().is_err());
    card.cells().gone[DATABASE].clear();
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| store.read().unwrap().position().unwrap()))));
    assert_eq!((store.reopened(), store.status()), (1, Status::Working));
    card.cells().failing = None;
    write(&store, 2);
    store.close_blocking();
    assert_eq!((store.read().err(), store.status()), (Some(Error::Closed), Status::Closed));
}

#[test]
fn a_record_of_another_version_is_not_passed_over() {
    const LATER: Table = Table { name: "a_later_table", ..STATE_NODE };
    let card = Card::default();
    let store = open_with(&card, 5, JOURNAL_BYTES);
    write(&store, 1);
    write(&store, 2);
    let before = card.image();
    store.write_blocking(|w| w.put(&LATER, b"a", b"b")).unwrap();
    write(&store, 4);
    let (expected, mut image) = (rows(&store), card.image());
    image[DATABASE] = before[DATABASE].clone();
    for _ in 0..2 {
        let card = Card::of(image.clone());
        assert_eq!(try_open(&card, 6, JOURNAL_BYTES).err(), Some(Error::OtherVersion));
        // Nothing of it is applied, and nothing is lost.
        assert!(card.image()[JOURNAL] == image[JOURNAL]);
        image = card.image();
    }
    store.close_blocking();
    assert!(on_card(&card.image()) == expected);
}
