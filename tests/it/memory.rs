//! The promise itself: the real program, a room of 40,000 members, and what the kernel says of its memory.

use crate::load::control;
use crate::load::drive::{EventIds, NAME, Setup, Snug};
use crate::load::hostile::{self, Mode};
use crate::load::lab::Lab;
use crate::load::render::Rendered;
use crate::load::resident::{Dials, Resident, lock};
use crate::load::room;
use snug::budget::Profile;
use snug::store::tables::staging;
use snug::store::{Store, StoreOptions};

/// Joins, reads every member and serves the room on, under the smallest budget.
#[test]
fn forty_thousand_members_fit_the_smallest_budget() {
    let profile = Profile::get("pi-zero-2w").unwrap();
    let cache = control::cache();
    let rendered = Rendered::get(&cache, &room::Dials::s()).unwrap();
    let (room, joined) = (rendered.room.room_id.clone(), rendered.joined_expected() as u64 + 1);
    let lab = Lab::get(&cache.join("lab")).unwrap();
    let resident = Resident::start("127.0.0.1:0", lab, vec![rendered], Dials::default()).unwrap();
    let snug = start(&profile, &resident);

    let mut alice = snug.register("alice").unwrap();
    let answer = alice.join(&room, room::RESIDENT).unwrap();
    assert_eq!(answer.status, 200, "{:?}\n{}", answer.json(), snug.log_tail());
    let mut found = EventIds::default();
    let (status, _) = alice.stream("/_matrix/client/v3/sync?timeout=0", &mut |piece| found.take(piece)).unwrap();
    assert_eq!(status, 200);
    assert!(found.count >= joined, "{} events of {joined} members", found.count);
    let served = resident.shared.guest_join(&room, "guest", false).unwrap();
    assert!(served.state >= joined, "{} state events served", served.state);

    check_peak(&snug, &profile);
}

fn start(profile: &Profile, resident: &Resident) -> Snug {
    let snug = Snug::start(&Setup {
        binary: env!("CARGO_BIN_EXE_snug").into(),
        budget: profile.name.clone(),
        cap: None,
        resident_port: resident.address.port(),
        log: "info".to_owned(),
    })
    .unwrap();
    resident.meet(NAME, &snug.federation_url()).unwrap();
    snug
}

fn check_peak(snug: &Snug, profile: &Profile) {
    let usage = snug.usage();
    // The pages of the program file itself are what an unoptimised build has more of; they stand in the profile as fixed.
    let (peak, most) = match cfg!(debug_assertions) {
        true => (usage.peak - usage.file, profile.total - profile.fixed),
        false => (usage.peak, profile.total),
    };
    assert!(peak <= most, "{peak} bytes resident at most, the profile allows {most}");
}

/// Whatever a resident answers, the join ends, the memory holds, and nothing is left. (A byte a second, which takes minutes to be
/// given up, has its test with a clock that can be moved: `a_peer_that_drips_is_given_up`.)
#[test]
fn no_answer_to_a_join_breaks_the_budget() {
    let profile = Profile::get("pi-zero-2w").unwrap();
    let cache = control::cache();
    let rendered = Rendered::get(&cache, &room::Dials::k1()).unwrap();
    let room = rendered.room.room_id.clone();
    let lab = Lab::get(&cache.join("lab")).unwrap();
    let resident = Resident::start("127.0.0.1:0", lab, vec![rendered], Dials::default()).unwrap();
    for mode in hostile::ALL.into_iter().filter(|mode| *mode != Mode::Drip) {
        lock(&resident.shared.dials).hostile = Some(mode);
        let mut snug = start(&profile, &resident);
        let mut alice = snug.register("alice").unwrap();
        let began = std::time::Instant::now();
        let answer = alice.join(&room, room::RESIDENT).unwrap();
        println!("{mode:?}: {} {:?} after {:?}", answer.status, answer.json(), began.elapsed());
        assert!(answer.status >= 400, "{mode:?}: {:?}", answer.json());
        check_peak(&snug, &profile);
        snug.stop().unwrap();
        let store = Store::open(StoreOptions::new(snug.folder.join("data/database"))).unwrap();
        assert!(staging::journals(&store.read().unwrap()).unwrap().is_empty(), "{mode:?}: a journal is left");
    }
}
