//! The promise itself: the real program, a room of 40,000 members, hostile residents, a full disk, and what the kernel says of
//! its memory.

use crate::lab::certificates::Certificates;
use crate::lab::control;
use crate::lab::drive::{EventIds, NAME, Person, Setup, Snug, can_mount_or_leave_out};
use crate::lab::hostile::{self, Mode};
use crate::lab::push::What;
use crate::lab::render::Rendered;
use crate::lab::resident::{Dials, Resident, lock};
use crate::lab::room;
use crate::lab::together::{self, Amount, Heavy};
use crate::lab::wire::percent_encode;
use serde_json::json;
use snug::budget::Profile;
use snug::store::tables::room::join;
use snug::store::{Store, StoreOptions};
use std::io::{ErrorKind, Write};
use std::time::Duration;

/// Joins, reads every member and serves the room on, under the smallest budget.
#[test]
fn forty_thousand_members_fit_the_smallest_budget() {
    let profile = Profile::get("pi-zero-2w").unwrap();
    let cache = control::cache();
    let rendered = Rendered::get(&cache, &room::Dials::s()).unwrap();
    let (room, joined) = (rendered.room.room_id.clone(), rendered.joined_expected() as u64 + 1);
    let certificates = Certificates::get(&cache.join("certificates")).unwrap();
    let resident = Resident::start("127.0.0.1:0", certificates, vec![rendered], Dials::default()).unwrap();
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
    start_on(None, profile, resident)
}

/// The same with a disk of so many bytes.
fn start_on(disk: Option<u64>, profile: &Profile, resident: &Resident) -> Snug {
    let snug = Snug::start(&Setup {
        binary: env!("CARGO_BIN_EXE_snug").into(),
        budget: profile.name.clone(),
        cap: None,
        disk,
        resident_port: resident.address.port(),
        log: "info".to_owned(),
    })
    .unwrap();
    resident.meet(NAME, &snug.federation_url()).unwrap();
    snug
}

fn check_peak(snug: &Snug, profile: &Profile) {
    // An unoptimised build has more text than any board; the rest stays within what the profile has beside text.
    let (peak, most) = match cfg!(debug_assertions) {
        true => {
            let said = snug.budget().unwrap();
            (said["anonymous_bytes_max"].as_u64().unwrap(), profile.total - profile.fixed("text"))
        }
        false => (snug.usage().peak, profile.total),
    };
    assert!(peak <= most, "{peak} bytes resident at most, the profile allows {most}");
}

/// A join while people log in, sync for the first time, page, upload and poll, and another server sends large events: under every
/// profile the process stays within its total, and what no account pays stays within what the profile says it is.
#[test]
fn everything_at_once_fits_every_budget() {
    let cache = control::cache();
    for name in Profile::names() {
        let profile = Profile::get(name).unwrap();
        let rendered = [room::Dials::m(), room::Dials::xs()].map(|dials| Rendered::get(&cache, &dials).unwrap());
        let [large, small] = [0, 1].map(|at| rendered[at].room.room_id.clone());
        let certificates = Certificates::get(&cache.join("certificates")).unwrap();
        let resident = Resident::start("127.0.0.1:0", certificates, rendered.into(), Dials::default()).unwrap();
        let snug = start(&profile, &resident);
        let amount = Amount::small().within(&profile);
        let heavy = Heavy::new(&snug, &amount).unwrap();
        assert_eq!(snug.register("inside").unwrap().join(&small, room::RESIDENT).unwrap().status, 200);
        let push = || resident.shared.push(&small, What::LargeMessage, 20, 20).map(drop);
        let outcome = together::run(&snug, &heavy, &large, &amount, push).unwrap();
        println!("{name}: {:?} {outcome:?}", snug.usage());
        assert_eq!((outcome.joined, outcome.messages_failed), (200, 0), "{name}\n{}", snug.log_tail());
        assert_eq!(outcome.faults(), [""; 0], "{name}\n{}", snug.log_tail());
        check_peak(&snug, &profile);
        check_fixed(&snug, &profile);
    }
}

/// Stacks and slack, as the server measured them. Text is checked where it is as small as what is shipped: by the bench of the same.
fn check_fixed(snug: &Snug, profile: &Profile) {
    let said = snug.budget().unwrap();
    println!("{}", said["table"].as_str().unwrap());
    let of = |name: &str| said[name].as_u64().unwrap();
    let beside = profile.fixed("stacks") + profile.fixed("slack");
    assert!(of("beside_bytes_max") <= beside, "{}: {} bytes of {beside}", profile.name, of("beside_bytes_max"));
}

/// Whatever a resident answers, the join ends, the memory holds, and nothing is left. (A byte a second, which takes minutes to be
/// given up, has its test with a clock that can be moved: `a_peer_that_drips_is_given_up`.)
#[test]
fn no_answer_to_a_join_breaks_the_budget() {
    let profile = Profile::get("pi-zero-2w").unwrap();
    let cache = control::cache();
    let rendered = Rendered::get(&cache, &room::Dials::k1()).unwrap();
    let room = rendered.room.room_id.clone();
    let certificates = Certificates::get(&cache.join("certificates")).unwrap();
    let resident = Resident::start("127.0.0.1:0", certificates, vec![rendered], Dials::default()).unwrap();
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
        assert!(join::journals(&store.read().unwrap()).unwrap().is_empty(), "{mode:?}: a journal is left");
    }
}

/// The disk fills in the middle of a join: the join ends and takes back what it wrote, what needs no room goes on, and when
/// there is room again so does everything.
#[test]
fn a_disk_that_fills_during_a_join_loses_nothing() {
    if !can_mount_or_leave_out("a disk that fills during a join") {
        return;
    }
    let profile = Profile::get("pi-zero-2w").unwrap();
    let cache = control::cache();
    let rendered = Rendered::get(&cache, &room::Dials::m()).unwrap();
    let (room, members) = (rendered.room.room_id.clone(), rendered.joined_expected() + 1);
    let certificates = Certificates::get(&cache.join("certificates")).unwrap();
    let slow = Dials { bytes_per_second: 1 << 20, ..Dials::default() };
    let resident = Resident::start("127.0.0.1:0", certificates, vec![rendered], slow).unwrap();
    let mut snug = start_on(Some(64 << 20), &profile, &resident);
    let mut alice = snug.register("alice").unwrap();
    let (mut carol, own) = (alice.again(&snug), alice.create_room().unwrap());
    carol.say(&own, "before").unwrap();

    let ballast = snug.data_seen().join("ballast");
    let database = snug.data_seen().join("database");
    let length = || std::fs::metadata(&database).map_or(0, |file| file.len());
    let before = length();
    let via = room.clone();
    let joining = std::thread::spawn(move || alice.join(&via, room::RESIDENT).unwrap());
    wait(|| length() > before + (1 << 20));
    let mut filler = std::fs::File::create(&ballast).unwrap();
    let failed = std::iter::repeat_with(|| filler.write_all(&[1; 4096])).find_map(Result::err).unwrap();
    assert_eq!(failed.kind(), ErrorKind::StorageFull);

    let answer = joining.join().unwrap();
    let said = answer.json();
    let why = (answer.status, &said["errcode"]);
    assert_eq!(why, (507, &json!("M_RESOURCE_LIMIT_EXCEEDED")), "{said}\n{}", snug.log_tail());
    let read = carol.sync(None, 0).unwrap();
    assert!(read["rooms"]["join"][&own].is_object(), "what is there can be read");

    drop(filler);
    std::fs::remove_file(&ballast).unwrap();
    *lock(&resident.shared.dials) = Dials::default();
    wait(|| carol.say(&own, "after").is_ok());
    wait(|| carol.join(&room, room::RESIDENT).unwrap().status == 200);
    assert_eq!(joined(&mut carol, &room), members);
    check_peak(&snug, &profile);
    snug.stop().unwrap();
}

fn joined(who: &mut Person, room: &str) -> usize {
    let path = format!("/_matrix/client/v3/rooms/{}/joined_members", percent_encode(room));
    who.call("GET", &path, None).unwrap()["joined"].as_object().unwrap().len()
}

fn wait(mut is_so: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(600), "it does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}
