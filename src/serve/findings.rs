//! What the lower parts have to say when something is not all right; `admin/findings.rs` has the list they go into.

use crate::admin::{Finding, Source};
use crate::base::{Clock, date, span};
use crate::budget::{Card, human};
use crate::flow::Notices;
use crate::media::{Harmful, Media, ScannerAway};
use crate::remote::{Reached, Remote, encode};
use crate::room::Rooms;
use crate::store::{Status, Store};

/// A clock that is so far behind the latest time seen has been set back.
const CLOCK_BEHIND_MS: u64 = 5 * 60_000;
/// A clock that is further ahead than this is worth more than a note: few boards are off for so long.
const OFF_MS_MAX: u64 = 90 * 86_400_000;
/// So many known servers that fail, and none that answers, are worth more than a note.
const ALL_FAIL_MIN: usize = 3;

/// All sources of the parts below `admin`.
pub fn sources(clock: &Clock, store: &Store, remote: &Remote, rooms: &Rooms, media: &Media) -> Vec<Source> {
    let (of_disk, of_database, of_clock, of_servers) = (store.clone(), store.clone(), clock.clone(), clock.clone());
    let (remote, rooms, media) = (remote.clone(), rooms.clone(), media.clone());
    vec![
        Box::new(move || database(&of_database)),
        Box::new(move || {
            let (total_bytes, free_bytes) = (of_disk.total_bytes(), of_disk.free_bytes());
            disk(&Card { total_bytes, free_bytes }).into_iter().collect()
        }),
        Box::new(move || match (clock_doubted(&of_clock), of_clock.was_ahead()) {
            (Some(doubted), _) => vec![doubted],
            (None, true) => vec![clock_was_ahead()],
            (None, false) => {
                clock_set(of_clock.is_plausible(), of_clock.read_ms(), of_clock.now_ms()).into_iter().collect()
            }
        }),
        Box::new(move || match remote.is_enabled() {
            true => servers(&remote.backoff().reached(), of_servers.now_ms()).into_iter().collect(),
            false => Vec::new(),
        }),
        Box::new(move || media.scanner_away().map(|why| scanner_away(&why)).into_iter().collect()),
        Box::new(move || match rooms.policy_findings() {
            Ok(found) => found.into_iter().map(|sentence| Finding::warning("policy lists", sentence)).collect(),
            Err(error) => vec![Finding::warning("policy lists", format!("The policy lists cannot be read: {error}."))],
        }),
    ]
}

fn scanner_away(away: &ScannerAway) -> Finding {
    let (since, asked) = (span(away.since.as_millis() as u64), span(away.asked.as_millis() as u64));
    let again = match away.pause {
        pause if pause.is_zero() => "with the next file".to_owned(),
        pause => format!("with the next file after {}", span(pause.as_millis() as u64)),
    };
    Finding::warning(
        "scanner",
        format!(
            "Files wait for the scanner, which has not answered for {since}: {}. It was last tried {asked} ago, and is tried again \
             {again}.",
            away.why
        ),
    )
}

/// The administrators are told of what the scanner found, in their rooms of notices.
pub fn tell_of_harmful_files(media: &Media, notices: &Notices) {
    let notices = notices.clone();
    media.tell_of_harmful(move |Harmful { server, media_id, found, is_last }| {
        // The id of another server's file is whatever somebody asked for, and may read like a sentence of this server's.
        let media_id = encode(&media_id);
        let more = if is_last { " What it finds in the rest of this hour is in the log alone, since these are many." } else { "" };
        let text = format!(
            "The scanner found {found} in the file mxc://{server}/{media_id}. Nobody gets it any more. If that is a mistake, give it out \
             again with POST /_synapse/admin/v1/media/unquarantine/{server}/{media_id}.{more}"
        );
        let notices = notices.clone();
        tokio::spawn(async move { notices.tell_administrators(&text).await });
    });
}

fn database(store: &Store) -> Vec<Finding> {
    let mut found = Vec::new();
    match store.status() {
        Status::Working | Status::Closed => {}
        Status::Full => found.push(Finding::down(
            "database",
            "Nothing can be stored, since the disk is full: messages are refused until there is room again.",
        )),
        Status::Failed(error) => found.push(Finding::down(
            "database",
            format!("Nothing can be stored: {error}. The server tries again with each request; the log says more."),
        )),
    }
    match store.reopened() {
        0 => {}
        times => found.push(Finding::warning(
            "card",
            format!(
                "The disk failed since the start, and the database was opened again {times} times. The card may be near its \
                 end: make a backup now, and check it with `snug check --database` while the server is stopped."
            ),
        )),
    }
    if store.has_journal_aside() {
        found.push(Finding::warning(
            "card",
            "The disk failed in the journal of the database, which is kept as database.journal-bad: the card may be near its \
             end. Make a backup; remove the file once the card is a new one.",
        ));
    }
    found
}

fn disk(card: &Card) -> Option<Finding> {
    let (free, kept) = (human(card.free_bytes), card.household_bytes());
    match card.spare_bytes() {
        0 => Some(Finding::warning(
            "disk",
            format!(
                "Only {free} are free on the disk: with {} or less, neither events of other servers nor uploads are accepted.",
                human(kept)
            ),
        )),
        // As much again as is kept for the household.
        spare if spare < kept => Some(Finding::note(
            "disk",
            format!(
                "{free} are free on the disk; with {} or less, events of other servers and uploads are refused.",
                human(kept)
            ),
        )),
        _ => None,
    }
}

/// A clock that jumped far ahead, and is doubted.
fn clock_doubted(clock: &Clock) -> Option<Finding> {
    let doubted = clock.doubt()?;
    let sentence = format!(
        "The clock says {}, {} later than this server expects. If that is wrong, set it: the server follows within minutes. If it is right, \
         since the server was off for so long, nothing is to be done. What is removed for its age, such as old backups, stays for \
         {} yet.",
        date(clock.read_ms()),
        span(doubted.ahead_ms),
        span(doubted.left_ms)
    );
    Some(match doubted.ahead_ms > OFF_MS_MAX {
        true => Finding::warning("clock", sentence),
        false => Finding::note("clock", sentence),
    })
}

fn clock_was_ahead() -> Finding {
    Finding::warning(
        "clock",
        "The clock was far ahead and is right again, as it seems, while the server goes on from the time that never was, and what is \
         for other servers waits. It starts again by itself within minutes, and goes by the clock then.",
    )
}

/// `read_ms` is what the clock of the machine says, `now_ms` what the server goes by: never earlier than what it has seen.
fn clock_set(is_plausible: bool, read_ms: u64, now_ms: u64) -> Option<Finding> {
    if !is_plausible {
        let sentence = format!(
            "The clock says {}, which is wrong: set it, or let NTP do it. People here go on chatting; what is for other servers \
             waits.",
            date(read_ms)
        );
        return Some(Finding::warning("clock", sentence));
    }
    let behind_ms = now_ms.saturating_sub(read_ms);
    (behind_ms > CLOCK_BEHIND_MS).then(|| {
        let sentence = format!(
            "The clock is {} behind the latest time that this server has seen: it was set back, or is wrong. The server goes on \
             from the later time.",
            span(behind_ms)
        );
        Finding::warning("clock", sentence)
    })
}

fn servers(reached: &Reached, now_ms: u64) -> Option<Finding> {
    if let Some(since_ms) = reached.gone_since_ms {
        let sentence = format!(
            "No other server can be reached since {}: the Internet connection seems to be gone. People here go on chatting; \
             what is for others waits.",
            span(now_ms.saturating_sub(since_ms))
        );
        return Some(Finding::warning("internet", sentence));
    }
    if reached.failing == 0 {
        return None;
    }
    let (failing, examples) =
        (reached.failing, reached.examples.iter().map(|server| server.as_str()).collect::<Vec<_>>());
    let examples = examples.join(", ");
    if reached.well == 0 && failing >= ALL_FAIL_MIN {
        let sentence =
            format!("None of {failing} servers that people here chat with can be reached, such as {examples}.");
        return Some(Finding::warning("servers", sentence));
    }
    let sentence = match failing {
        1 => format!("One server that people here chat with cannot be reached: {examples}."),
        _ => format!("{failing} servers that people here chat with cannot be reached, such as {examples}."),
    };
    Some(Finding::note("servers", sentence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Severity;
    use crate::store::MemoryMedium;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_clock_that_is_far_ahead_is_told_of_and_one_that_was() {
        let days = |days: u64| std::time::Duration::from_secs(days * 86_400);
        let said = |ahead: u64| {
            let clock = Clock::simulated(2 * crate::base::EARLIEST_MS);
            clock.settled_ms();
            clock.set_forward(days(ahead));
            clock_doubted(&clock).map(|finding| (finding.severity, finding.sentence))
        };
        assert_eq!(said(5), None);
        assert!(matches!(said(30), Some((Severity::Note, sentence)) if sentence.contains("30 d later")));
        assert!(matches!(said(4000), Some((Severity::Warning, sentence)) if sentence.contains("stays for 3 d yet")));
    }

    #[test]
    fn a_disk_is_low_before_it_refuses() {
        let said = |free_bytes| disk(&Card { total_bytes: 32 << 30, free_bytes }).map(|finding| finding.severity);
        assert_eq!(said(600 * MIB), None);
        assert_eq!(said(500 * MIB), Some(Severity::Note));
        assert_eq!(said(200 * MIB), Some(Severity::Warning));
    }

    #[tokio::test]
    async fn a_server_that_can_store_nothing_is_down() {
        let medium = MemoryMedium::default();
        let store = Store::on_memory(medium.clone());
        assert_eq!(database(&store), []);
        medium.set_free_bytes(0);
        let job = |_: &mut crate::store::Write| Ok::<_, crate::store::Error>(());
        assert!(store.write(job).await.is_err());
        let found = database(&store);
        assert_eq!((found.len(), found[0].severity, found[0].about), (1, Severity::Down, "database"));
    }

    #[test]
    fn a_clock_that_was_set_back_is_said_to_be() {
        let now_ms = 1_780_000_000_000;
        assert_eq!(clock_set(true, now_ms, now_ms), None);
        assert_eq!(clock_set(true, now_ms - 1_000, now_ms), None);
        assert!(clock_set(true, now_ms - 3_600_000, now_ms).unwrap().sentence.contains("behind"));
        assert!(clock_set(false, 1_000, now_ms).unwrap().sentence.contains("1970-01-01"));
    }

    #[test]
    fn single_servers_that_are_gone_are_no_fault_of_ours() {
        let name = |name: &str| ruma::OwnedServerName::try_from(name).unwrap();
        let mut reached = Reached { well: 3, ..Reached::default() };
        assert_eq!(servers(&reached, 0), None);
        (reached.failing, reached.examples) = (4, vec![name("a.example"), name("b.example")]);
        let said = servers(&reached, 0).unwrap();
        assert_eq!(said.severity, Severity::Note);
        assert!(said.sentence.contains("a.example, b.example"), "{}", said.sentence);
        reached.well = 0;
        assert_eq!(servers(&reached, 0).unwrap().severity, Severity::Warning);
        reached.gone_since_ms = Some(1_000);
        assert!(servers(&reached, 61_000).unwrap().sentence.contains("Internet"));
    }
}
