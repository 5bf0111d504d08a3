//! Joining through another server, against the load generator's resident: what is in the room afterwards is what the
//! room is made of, whatever order, doubles and faults the answer has.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use ruma::{OwnedServerName, RoomId, UserId};
use serde_json::json;
use snug::config::Config;
use snug::room::Joining;
use snug::room::Policy;
use snug::store::tables::room;
use snug::store::tables::room::event;
use snug::store::tables::room::event_row::{Kind, Membership};
use snug::store::{EventNum, Get};

use crate::commands::good;
use crate::lab::certificates::Certificates;
use crate::lab::event::{Hash, hash_of_id};
use crate::lab::hostile::Mode;
use crate::lab::render::Rendered;
use crate::lab::resident::{Dials, Resident, lock};
use crate::lab::room::{self as made, RESIDENT};
use crate::rooms::{PATIENCE, eventually};
use crate::server::{Folder, Reply, TestServer, TestUser};
use snug::store::tables::room::{current_state, join};

/// A resident with one room, and a server that knows where to find it.
struct Visit {
    resident: Resident,
    house: TestServer,
    room_id: String,
    _folder: Folder,
}

const USER: &str = "@alice:joiner.load.test";

impl Visit {
    async fn to(room: made::Dials, dials: Dials, profile: &str) -> Visit {
        Visit::with(room, dials, profile, |_| {}).await
    }

    /// The same with other settings.
    async fn with(room: made::Dials, dials: Dials, profile: &str, settings: impl FnOnce(&mut Config)) -> Visit {
        let folder = Folder::new();
        let certificates = Certificates::get(folder.path()).unwrap();
        let ca_file = certificates.ca_file.clone();
        let rendered = Rendered::get(folder.path(), &room).unwrap();
        let room_id = rendered.room.room_id.clone();
        let resident = Resident::start("127.0.0.1:0", certificates, vec![rendered], dials).unwrap();
        let address = resident.address;
        let change = |config: &mut Config| {
            config.server_name = "joiner.load.test".try_into().unwrap();
            config.federation.enabled = true;
            config.federation.extra_ca_file = Some(ca_file);
            config.federation.allow_private_addresses = true;
            config.federation.overrides = vec![(RESIDENT.to_owned(), address.to_string())];
            config.federation.notaries = vec![RESIDENT.try_into().unwrap()];
            settings(config);
        };
        let house = TestServer::start_under_with(profile, change).await;
        resident.meet("joiner.load.test", &format!("http://{}", house.address())).unwrap();
        Visit { resident, house, room_id, _folder: folder }
    }

    async fn join(&self) -> Result<(), snug::room::Error> {
        let via: Vec<OwnedServerName> = vec![RESIDENT.try_into().unwrap()];
        let joining = Joining { via, ..Joining::default() };
        let (user, room) = (UserId::parse(USER).unwrap(), RoomId::parse(&self.room_id).unwrap());
        self.house.server().rooms.join(&user, &room, joining).await
    }

    /// What the room's state must be by the generator's account: rows of the room.
    fn expected(&self) -> HashSet<Hash> {
        let room = &self.resident.shared.rooms[&self.room_id].rendered.room;
        let dropped: HashSet<Hash> = room
            .faults
            .iter()
            .filter(|fault| fault.expect == "dropped")
            .filter_map(|fault| hash_of_id(&fault.event_id))
            .collect();
        let lost = |row: &u32| {
            let server = room.rows[*row as usize];
            server.user != made::NOBODY
                && room.world.servers[room.home(server.user) as usize].reach == made::Reach::Nowhere
        };
        let state = room.state().into_iter().filter(|row| !lost(row));
        state.map(|row| room.rows[row as usize].id).filter(|id| !dropped.contains(id)).collect()
    }

    fn is_clean(&self) {
        let store = &self.house.server().store;
        let read = store.read().unwrap();
        assert!(join::journals(&read).unwrap().is_empty(), "no journal is left");
        for table in [&snug::store::schema::STAGED, &snug::store::schema::EVENT_BODY, &snug::store::schema::EVENT] {
            let mut rows = 0;
            read.range(table, &[], None, false, &mut |_, _| {
                rows += 1;
                Ok(std::ops::ControlFlow::Continue(()))
            })
            .unwrap();
            assert_eq!(rows, 0, "rows of {} are left", table.name);
        }
    }

    /// The state's event ids, from the materialised rows and from the tree, our own join left out.
    fn check_state(&self) {
        let read = self.house.server().store.read().unwrap();
        let num = room::num(&read, &self.room_id).unwrap().expect("the room is known");
        let row = room::get_of(&read, num).unwrap();
        assert_eq!(row.status, room::Status::Resident);
        let mut nums: Vec<EventNum> = Vec::new();
        let mut joined = 0;
        current_state::list_state(&read, num, None, Default::default(), &mut |_, _, event| {
            nums.push(event);
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        let mut ids = HashSet::new();
        for num in &nums {
            let row = event::row_of(&read, *num).unwrap();
            joined += u64::from(matches!(row.member, Some((Membership::Join, _))) && row.kind == Kind::MEMBER);
            assert_eq!(event::num(&read, &row.id.text()).unwrap(), Some(*num), "an id leads to its number");
            let body = event::body(&read, &row).unwrap();
            if !row.flags.outlier {
                continue; // our own join
            }
            let version =
                snug::matrix::version::get(self.resident.shared.rooms[&self.room_id].version().name()).unwrap();
            let event = snug::matrix::Event::from_wire(version, &body).unwrap();
            assert_eq!(event.id().as_str(), row.id.text());
            assert!(event.is_intact() != row.flags.redacted || row.flags.redacted);
            ids.insert(hash_of_id(&row.id.text()).unwrap());
        }
        let expected = self.expected();
        let missing = expected.difference(&ids).count();
        let more = ids.difference(&expected).count();
        assert_eq!((missing, more), (0, 0), "of {} state events", expected.len());
        assert_eq!(row.joined, joined);
        assert_eq!(nums.len(), expected.len() + 1);
        let mut page = Vec::new();
        snug::store::tables::room::state_tree::page(&read, row.state.unwrap(), None, usize::MAX, &mut page).unwrap();
        let mut tree: Vec<EventNum> = page.iter().map(|entry| entry.event).collect();
        tree.sort_unstable();
        nums.sort_unstable();
        assert_eq!(tree, nums, "the tree and the present state are the same");
    }
}

async fn joins(room: made::Dials, dials: Dials, profile: &str) {
    let visit = Visit::to(room, dials, profile).await;
    visit.join().await.unwrap();
    visit.check_state();
    assert_eq!(*lock(&visit.resident.shared.stats.complaints), Vec::<String>::new());
    visit.house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_room_of_each_version_is_joined() {
    for version in ["10", "11", "12"] {
        let room = made::Dials { version: version.into(), ..made::Dials::xs() };
        joins(room, Dials::default(), "pi-zero-2w").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_left_out_with_what_depends_on_them() {
    joins(made::Dials::xs().with_faults(3), Dials::default(), "pi-zero-2w").await;
}

/// One member who nested their own event 120 deep kept everybody of this server out of the room.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_nested_deep_keeps_nobody_out() {
    let room = made::Dials { nested: vec![120, 700, 900], ..made::Dials::xs() };
    joins(room, Dials::default(), "pi-zero-2w").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_were_left_out_are_fetched_before_the_room_is_there() {
    joins(made::Dials::xs(), Dials { omit_members: true, ..Dials::default() }, "pi-zero-2w").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_asked_for_again() {
    let dials = Dials { cut_at_percent: Some(60), cuts: 2, ..Dials::default() };
    joins(made::Dials::k1(), dials, "pi-zero-2w").await;
}

/// The server stops in the middle of the answer; started again it goes on by itself, without checking signatures twice, once
/// the resident can be reached.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_was_interrupted_goes_on_at_the_next_start() {
    let (mut visit, asked) = hanging().await;
    lock(&visit.resident.shared.dials).deaf = true;
    visit.house = visit.house.restart().await;
    assert!(asked.await.unwrap().is_err());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(stored(&visit.house) >= 500, "what came is kept while nobody answers");
    *lock(&visit.resident.shared.dials) = Dials::default();
    eventually("the join goes on to its end", async || {
        let read = visit.house.server().store.read().unwrap();
        let num = room::num(&read, &visit.room_id).unwrap()?;
        (room::get(&read, num).unwrap()?.status == room::Status::Resident).then_some(())
    })
    .await;
    visit.check_state();
    assert_eq!(*lock(&visit.resident.shared.stats.complaints), Vec::<String>::new());
    visit.house.stop().await;
}

/// A join was ended only by taking back a permission it may never have had.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_under_way_is_cancelled_by_the_command() {
    let (visit, asked) = hanging().await;
    assert!(cancel(visit.house.data_dir(), &visit.room_id).contains("ends at its next step"));
    assert!(asked.await.unwrap().is_err());
    visit.is_clean();
    // It stays on the list until its leave was sent: who asks again meanwhile waits for that.
    let joins = || visit.house.server().rooms.joins();
    eventually("its leave was sent", async || joins().is_empty().then_some(())).await;
    assert!(cancel(visit.house.data_dir(), &visit.room_id).contains("no join of"));
    visit.house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_was_interrupted_is_cancelled_on_the_stopped_server() {
    let (mut visit, asked) = hanging().await;
    let room = visit.room_id.clone();
    let meanwhile = |folder: &Path| loop {
        let listed = of_rooms(folder, &[]);
        let said = cancel(folder, &room);
        // A thread of the run before may still read the database.
        if !said.contains("in use") && !listed.contains("in use") {
            assert!(listed.contains(&format!("joining {room}: interrupted with ")), "{listed}");
            break assert!(said.contains("does not go on"), "{said}");
        }
    };
    visit.house = visit.house.restart_after(meanwhile).await;
    assert!(asked.await.unwrap().is_err());
    no_journals(&visit.house).await;
    visit.is_clean();
    visit.house.stop().await;
}

/// An interrupted join had its turn when the room had been joined anew by then: it cleared the room's present state and put it
/// back to what the old join had been told.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_was_interrupted_leaves_a_room_that_is_here_as_it_is() {
    let (mut visit, asked) = hanging().await;
    let mut old = journals(&visit.house).remove(0).1;
    *lock(&visit.resident.shared.dials) = Dials::default();
    asked.await.unwrap().unwrap();
    no_journals(&visit.house).await;
    (old.batches, old.events, old.bytes, old.nodes) = (0, 0, 0, 0);
    let write = move |w: &mut snug::store::Write<'_>| {
        let num = join::new_join(w)?;
        join::set_journal(w, num, &old)
    };
    visit.house.server().store.write(write).await.unwrap();
    let row = |visit: &Visit| {
        let read = visit.house.server().store.read().unwrap();
        room::get_of(&read, room::num(&read, &visit.room_id).unwrap().unwrap()).unwrap()
    };
    let before = row(&visit);
    visit.house = visit.house.restart().await;
    no_journals(&visit.house).await;
    assert_eq!(row(&visit), before);
    visit.check_state();
    visit.house.stop().await;
}

/// Joins that were interrupted went on one after the other: one whose residents could not be reached kept all others for hours,
/// and whoever asked for one of those meanwhile began a second join beside it.
#[tokio::test(flavor = "multi_thread")]
async fn joins_that_were_interrupted_do_not_wait_for_each_other() {
    let (mut visit, asked) = hanging().await;
    let mut other = journals(&visit.house).remove(0).1;
    other.room_id = "!other:resident.load.test".into();
    (other.batches, other.events) = (0, 1);
    let write = move |w: &mut snug::store::Write<'_>| {
        let num = join::new_join(w)?;
        join::set_journal(w, num, &other)
    };
    visit.house.server().store.write(write).await.unwrap();
    lock(&visit.resident.shared.dials).deaf = true;
    visit.house = visit.house.restart().await;
    assert!(asked.await.unwrap().is_err());
    // A worker reads which there are once the server is open.
    let joins = || visit.house.server().rooms.joins();
    eventually("both go on", async || (joins().len() == 2).then_some(())).await;
    assert!(cancel(visit.house.data_dir(), "!other:resident.load.test").contains("ends at its next step"));
    eventually("one is over", async || (journals(&visit.house).len() == 1).then_some(())).await;
    assert!(stored(&visit.house) >= 500, "the first one waits still");
    let (rooms, user, room) =
        (visit.house.server().rooms.clone(), UserId::parse(USER).unwrap(), RoomId::parse(&visit.room_id).unwrap());
    let via: Vec<OwnedServerName> = vec![RESIDENT.try_into().unwrap()];
    let again = tokio::spawn(async move { rooms.join(&user, &room, Joining { via, ..Joining::default() }).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!again.is_finished() && journals(&visit.house).len() == 1, "whoever asks again waits for it");
    assert!(cancel(visit.house.data_dir(), &visit.room_id).contains("ends at its next step"));
    assert!(again.await.unwrap().is_err());
    visit.is_clean();
    visit.house.stop().await;
}

/// A join whose answer hangs after some hundred events were stored, and what its asker waits for.
async fn hanging() -> (Visit, tokio::task::JoinHandle<Result<(), snug::room::Error>>) {
    let dials = Dials { hang_at_percent: Some(70), ..Dials::default() };
    let visit = Visit::to(made::Dials::k1(), dials, "pi-zero-2w").await;
    let (user, room) = (UserId::parse(USER).unwrap(), RoomId::parse(&visit.room_id).unwrap());
    let rooms = visit.house.server().rooms.clone();
    let via: Vec<OwnedServerName> = vec![RESIDENT.try_into().unwrap()];
    let asked = tokio::spawn(async move { rooms.join(&user, &room, Joining { via, ..Joining::default() }).await });
    while stored(&visit.house) < 500 {
        assert!(!asked.is_finished(), "the join ended: {:?}", asked.await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (visit, asked)
}

/// Events of the join under way.
fn stored(house: &TestServer) -> u64 {
    journals(house).first().map_or(0, |(_, journal)| journal.events)
}

async fn no_journals(house: &TestServer) {
    eventually("no join is under way", async || journals(house).is_empty().then_some(())).await;
}

fn journals(house: &TestServer) -> Vec<(join::JoinNum, join::Journal)> {
    join::journals(&house.server().store.read().unwrap()).unwrap()
}

/// What `snug rooms cancel` says.
fn cancel(folder: &Path, room: &str) -> String {
    of_rooms(folder, &["cancel", room])
}

/// What `snug rooms` with these words says.
fn of_rooms(folder: &Path, words: &[&str]) -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_snug"));
    command.arg("rooms").args(words).args(["--server-name", "joiner.load.test", "--data-dir"]).arg(folder);
    let done = command.output().unwrap();
    String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned()
}

impl Visit {
    async fn ask(&self, who: &TestUser) -> Reply {
        let path = format!("/join/{}?via={RESIDENT}", self.room_id.replace('!', "%21").replace(':', "%3A"));
        self.house.post(&path, who, json!({})).await
    }

    /// A command beside the running server.
    fn command(&self, words: &[&str]) -> String {
        let data = self.house.server().config().data_dir.clone();
        let server = ["--server-name", "joiner.load.test", "--data-dir", data.to_str().unwrap()];
        let words: Vec<&str> = [&server[..], words].concat();
        tokio::task::block_in_place(|| good(data.parent().unwrap(), &words, ""))
    }
}

/// What `rooms.admission` says happens; an admin's word lets one room in.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_room_needs_an_admins_word_where_the_owner_wants_that() {
    for policy in [Policy::Ask, Policy::Refuse] {
        // 46,000 events, by what the resident says.
        let dials = Dials { complexity: Some(40.0), ..Dials::default() };
        let change = |config: &mut Config| config.rooms.admission = policy;
        let visit = Visit::with(made::Dials::xs(), dials, "pi-zero-2w", change).await;
        let alice = visit.house.register("alice").await;
        for _ in 0..2 {
            let refused = visit.ask(&alice).await.refused(400, "M_RESOURCE_LIMIT_EXCEEDED");
            let why = refused["error"].as_str().unwrap();
            assert!(why.contains("about 46000 events") && why.contains("20000"), "{why}");
            assert!(why.contains(&format!("snug rooms allow {}", visit.room_id)), "{why}");
        }
        visit.is_clean();
        let listed = visit.command(&["rooms"]);
        let waits = format!("{} waits for your permission: {} asked on ", visit.room_id, alice.id);
        assert_eq!(listed.contains(&waits), policy == Policy::Ask, "{listed}");

        // Allowed, taken back, and allowed again.
        assert!(visit.command(&["rooms", "allow", &visit.room_id]).contains("may be joined, whatever its size"));
        assert!(visit.command(&["rooms"]).contains("may be joined whatever its size"));
        visit.command(&["rooms", "allow", &visit.room_id, "--remove"]);
        visit.ask(&alice).await.refused(400, "M_RESOURCE_LIMIT_EXCEEDED");
        visit.command(&["rooms", "allow", &visit.room_id]);
        visit.ask(&alice).await.ok();
        visit.check_state();
        visit.house.stop().await;
    }
}

/// Rooms that are not large need nobody's word, and where everything is allowed large ones do not either.
#[tokio::test(flavor = "multi_thread")]
async fn a_room_within_the_measure_is_joined_without_asking() {
    for (policy, complexity) in [(Policy::Ask, Some(15.0)), (Policy::Refuse, None), (Policy::Allow, Some(40.0))] {
        let change = |config: &mut Config| config.rooms.admission = policy;
        let dials = Dials { complexity, ..Dials::default() };
        let visit = Visit::with(made::Dials::xs(), dials, "pi-zero-2w", change).await;
        let alice = visit.house.register("alice").await;
        visit.ask(&alice).await.ok();
        visit.check_state();
        assert!(visit.house.server().rooms.allowed_rooms().await.unwrap().is_empty());
        visit.house.stop().await;
    }
}

/// What the memory or the disk cannot hold no admin can allow.
#[tokio::test(flavor = "multi_thread")]
async fn a_room_above_the_boards_measure_is_refused_whoever_allows_it() {
    let dials = Dials { complexity: Some(1e6), ..Dials::default() };
    let visit = Visit::to(made::Dials::xs(), dials, "pi-zero-2w").await;
    let alice = visit.house.register("alice").await;
    for allowed in [false, true] {
        if allowed {
            visit.command(&["rooms", "allow", &visit.room_id]);
        }
        let refused = visit.ask(&alice).await.refused(400, "M_RESOURCE_LIMIT_EXCEEDED");
        let why = refused["error"].as_str().unwrap();
        assert!(why.starts_with("The room is too large for this server's ") && why.contains(" MB on disk"), "{why}");
        visit.is_clean();
    }
    let joined = visit.house.get("/joined_rooms", &alice).await.ok();
    assert_eq!(joined["joined_rooms"], json!([]));
    visit.house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_honest_server_sends_is_refused_and_leaves_nothing() {
    for mode in [Mode::DeepNesting, Mode::MissingAuth, Mode::Cut, Mode::WrongType, Mode::RepeatedField] {
        let visit = Visit::to(made::Dials::xs(), Dials { hostile: Some(mode), ..Dials::default() }, "pi-zero-2w").await;
        let failed = tokio::time::timeout(PATIENCE, visit.join()).await.expect("it ends");
        assert!(failed.is_err(), "{mode:?}");
        visit.is_clean();
        visit.house.stop().await;
    }
}
