//! A very large room, the same every time: who is in it, what they did, and every event that says so, really signed.
//!
//! The history is played forward. Users arrive, change their names, leave, are invited, kicked and banned; moderators change power
//! levels and server lists; now and then two events follow the same one. Each event names exactly the auth events the room
//! version's rules ask for, so a correct server accepts every event but the faults it was given on purpose.
//!
//! The profiles' numbers come from what is known of Matrix HQ: 85,000 state events of which all but some 80 are
//! members, and as many again in the auth chain of earlier memberships.

use super::event::{Draft, Hash, Key, Sealed, Version, event_id};
use super::json::{Json, map};
use super::random::{Stream, Zipf, key_seed};
use std::collections::{BTreeMap, HashMap};

/// Every setting of a room. Two rooms with the same seed share servers and their keys.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Dials {
    pub name: String,
    pub seed: u64,
    /// 10, 11 or 12.
    pub version: String,
    /// Users who are in the room at the end.
    pub joined: u32,
    /// Users who left, were kicked or banned, or never accepted an invitation.
    pub gone: u32,
    pub servers: u32,
    /// Extra member events for each user, on average.
    pub profile_changes: f64,
    /// Share of events that follow two others.
    pub two_prevs: f64,
    pub power_generations: u32,
    /// Moderators each power-levels event adds.
    pub power_added: u32,
    pub acl_changes: u32,
    pub space_children: u32,
    /// State events of about 60 KB.
    pub big_events: u32,
    /// Profile changes of one single user: adds this much to the depth of the auth chain.
    pub serial_changes: u32,
    /// Messages after everything else; in the timeline, in neither state nor auth chain.
    pub messages: u32,
    pub order: Order,
    /// Share of `state` that is repeated in `auth_chain`, where it belongs in both.
    pub duplicates: f64,
    /// How many of each kind of event that a correct server must not take at face value.
    pub faults: u32,
    /// How deep the member events of so many more people are nested. Beyond 800 levels nobody takes one.
    #[serde(default)]
    pub nested: Vec<u32>,
}

/// In which order a body lists its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Order {
    Shuffled,
    ParentsFirst,
    ParentsLast,
}

impl Dials {
    fn of(name: &str, joined: u32, gone: u32, servers: u32) -> Dials {
        Dials {
            name: name.to_owned(),
            seed: 1,
            version: "11".to_owned(),
            joined,
            gone,
            servers,
            profile_changes: 0.70,
            two_prevs: 0.15,
            power_generations: 20,
            power_added: 10,
            acl_changes: 12,
            space_children: 40,
            big_events: 4,
            serial_changes: 30,
            messages: 400,
            order: Order::Shuffled,
            duplicates: 0.01,
            faults: 0,
            nested: Vec::new(),
        }
    }

    /// About 300 events, for tests of the generator and of everything it touches.
    pub fn xs() -> Dials {
        Dials {
            power_generations: 4,
            power_added: 3,
            acl_changes: 3,
            space_children: 4,
            big_events: 1,
            serial_changes: 5,
            messages: 20,
            duplicates: 0.7,
            ..Dials::of("xs", 110, 40, 14)
        }
    }

    /// 1,000 joined: the small room a large one is compared with.
    pub fn k1() -> Dials {
        Dials { messages: 100, ..Dials::of("k1", 1_000, 300, 120) }
    }

    /// 4,000 joined, about 9,000 events: for tests that build without optimisation.
    pub fn m() -> Dials {
        Dials { messages: 100, ..Dials::of("m", 4_000, 800, 400) }
    }

    /// 40,000 joined and 3,000 gone, about 68,000 events.
    pub fn s() -> Dials {
        Dials { profile_changes: 0.43, ..Dials::of("s", 40_000, 3_000, 1_500) }
    }

    /// The shape of Matrix HQ: 40,000 joined, 45,000 gone, about 194,000 events.
    pub fn hq() -> Dials {
        Dials::of("hq", 40_000, 45_000, 3_000)
    }

    /// A million events.
    pub fn xl() -> Dials {
        Dials::of("xl", 206_000, 232_000, 8_000)
    }

    pub fn named(name: &str) -> Option<Dials> {
        [Dials::xs(), Dials::k1(), Dials::m(), Dials::s(), Dials::hq(), Dials::xl()]
            .into_iter()
            .find(|dials| dials.name == name)
    }

    pub fn with_version(self, version: Version) -> Dials {
        Dials { version: version.name().to_owned(), ..self }
    }

    pub fn with_faults(self, faults: u32) -> Dials {
        Dials { faults, ..self }
    }

    pub fn version(&self) -> Version {
        Version::from_name(&self.version).expect("rooms are made in version 10, 11 or 12")
    }

    /// Number 0 is the creator, then come the moderators, the other joined, and the gone.
    fn users(&self) -> u32 {
        self.joined + self.gone
    }

    fn moderators(&self) -> u32 {
        self.power_generations * self.power_added
    }
}

/// When the room's history begins and ends, milliseconds. Fixed, and in the past of anybody who runs this.
const TIME_START: u64 = 1_600_000_000_000;
const TIME_END: u64 = 1_780_000_000_000;
/// The history in ticks; actions are placed on ticks.
const TICKS: u32 = 1_000_000_000;

fn time_of(tick: u32) -> u64 {
    TIME_START + (TIME_END - TIME_START) / u64::from(TICKS) * u64::from(tick)
}

/// Who still knows a server's key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    Live,
    /// The server is gone; notaries still have its key.
    NotaryOnly,
    /// Nobody has the key any more: its events cannot be verified.
    Nowhere,
}

pub struct Server {
    pub name: String,
    pub key: Key,
    /// The key before a rotation and the time of it in milliseconds.
    pub old: Option<(Key, u64)>,
    pub reach: Reach,
}

impl Server {
    /// The server's key at a time in milliseconds.
    pub fn key_at(&self, time: u64) -> &Key {
        match &self.old {
            Some((key, until)) if time < *until => key,
            _ => &self.key,
        }
    }
}

/// The servers of a seed. Number 0 is the resident; the rest come as the room's size asks.
pub struct World {
    pub seed: u64,
    pub servers: Vec<Server>,
}

pub const RESIDENT: &str = "hub.load.test";
/// A server that is in no room at first and joins one of the server under test.
pub const GUEST: &str = "guest.load.test";

impl World {
    pub fn new(seed: u64, servers: u32) -> World {
        World { seed, servers: (0..servers.max(1)).map(|number| Self::server(seed, number)).collect() }
    }

    pub fn guest(seed: u64) -> Key {
        Key::new(GUEST, "guest", key_seed(seed, "guest", 0))
    }

    fn server(seed: u64, number: u32) -> Server {
        let n = u64::from(number);
        let mut names = Stream::new(seed, "server names", n);
        let mut keys = Stream::new(seed, "server keys", n);
        let name = if number == 0 { RESIDENT.to_owned() } else { Self::server_name(&mut names, number) };
        let version = match keys.below(4) {
            0 => "1".to_owned(),
            1 => "auto".to_owned(),
            _ => format!("a_{}", keys.token(4, false)),
        };
        let key = Key::new(&name, &version, key_seed(seed, "current", n));
        let rotated = keys.chance(0.03).then(|| {
            let version = format!("{version}_{}", keys.token(3, true));
            (Key::new(&name, &version, key_seed(seed, "old", n)), time_of(keys.below(TICKS as usize) as u32))
        });
        let reach = match keys.unit() {
            _ if number == 0 => Reach::Live,
            x if x < 0.002 => Reach::Nowhere,
            x if x < 0.012 => Reach::NotaryOnly,
            _ => Reach::Live,
        };
        Server { name, key, old: rotated.filter(|_| number > 0), reach }
    }

    fn server_name(names: &mut Stream, number: u32) -> String {
        let chars = 3 + names.below(8);
        let word = names.token(chars, true);
        let port = if names.chance(0.02) { ":8448" } else { "" };
        match names.below(4) {
            0 => format!("matrix-{word}{number}.load.test{port}"),
            1 => format!("chat-{word}-{number}.load.test{port}"),
            _ => format!("{word}{number}.load.test{port}"),
        }
    }

    pub fn find(&self, name: &str) -> Option<&Server> {
        self.servers.iter().find(|server| server.name == name)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    Create,
    Power,
    JoinRules,
    OtherState,
    Join,
    Leave,
    Ban,
    Invite,
    Knock,
    Message,
}

impl Kind {
    pub const ALL: [Kind; 10] = [
        Kind::Create,
        Kind::Power,
        Kind::JoinRules,
        Kind::OtherState,
        Kind::Join,
        Kind::Leave,
        Kind::Ban,
        Kind::Invite,
        Kind::Knock,
        Kind::Message,
    ];

    pub fn is_member(self) -> bool {
        matches!(self, Kind::Join | Kind::Leave | Kind::Ban | Kind::Invite | Kind::Knock)
    }
}

/// What is remembered of every event; the bytes are in the log.
#[derive(Clone, Copy)]
pub struct Row {
    pub id: Hash,
    pub kind: Kind,
    /// The user a member event is about, `NOBODY` for other events.
    pub user: u32,
    pub depth: u32,
    /// In the state at the end.
    pub in_state: bool,
    /// In the auth chain of the state at the end.
    pub in_chain: bool,
    /// Named by another event and given to nobody.
    pub withheld: bool,
}

pub const NOBODY: u32 = u32::MAX;

/// Ready to be signed and written; may happen on another core and out of order.
pub struct Job {
    pub sealed: Sealed,
    pub signers: Vec<Signer>,
    pub unsigned: Json,
    pub tamper: Tamper,
}

/// A server's number and whether its old key is meant.
#[derive(Clone, Copy)]
pub struct Signer {
    pub server: u32,
    pub old: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tamper {
    No,
    /// One bit of the signature is flipped.
    Signature,
    /// The content says something else than when it was hashed.
    Content,
}

/// An event put in on purpose that must not be taken as it is.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Fault {
    pub event_id: String,
    pub user_id: String,
    pub kind: String,
    /// `dropped`: the user is not in the room. `redacted`: joined, without a display name.
    pub expect: String,
}

/// A room without its bytes.
pub struct Room {
    pub dials: Dials,
    pub world: World,
    pub room_id: String,
    pub rows: Vec<Row>,
    /// Where each row's auth events begin in `auth`; one longer than `rows`.
    auth_starts: Vec<u32>,
    auth: Vec<u32>,
    /// Rows nobody follows yet.
    pub extremities: Vec<u32>,
    pub faults: Vec<Fault>,
    homes: Homes,
}

impl Room {
    pub fn auth_of(&self, row: u32) -> &[u32] {
        &self.auth[self.auth_starts[row as usize] as usize..self.auth_starts[row as usize + 1] as usize]
    }

    pub fn user_id(&self, user: u32) -> String {
        self.homes.user_id(&self.world, user)
    }

    pub fn home(&self, user: u32) -> u32 {
        self.homes.home(&self.world, user)
    }

    /// Rows of the state at the end.
    pub fn state(&self) -> Vec<u32> {
        self.rows_where(|row| row.in_state)
    }

    /// Rows of its auth chain that are not in the state as well.
    pub fn chain_only(&self) -> Vec<u32> {
        self.rows_where(|row| row.in_chain && !row.in_state && !row.withheld)
    }

    fn rows_where(&self, wanted: impl Fn(&Row) -> bool) -> Vec<u32> {
        (0..self.rows.len() as u32).filter(|&row| wanted(&self.rows[row as usize])).collect()
    }

    /// All auth events of `of`, and theirs.
    pub fn chain_of(&self, of: &[u32]) -> Vec<bool> {
        let mut reached = vec![false; self.rows.len()];
        for &row in of {
            for &parent in self.auth_of(row) {
                reached[parent as usize] = true;
            }
        }
        // Parents have smaller numbers, so one pass downwards is enough.
        for row in (0..self.rows.len() as u32).rev() {
            if reached[row as usize] {
                for &parent in self.auth_of(row) {
                    reached[parent as usize] = true;
                }
            }
        }
        reached
    }

    /// How many auth events lie one behind the other at most.
    pub fn auth_depth(&self) -> u32 {
        let mut depths = vec![0u32; self.rows.len()];
        for row in 0..self.rows.len() as u32 {
            depths[row as usize] =
                self.auth_of(row).iter().map(|&parent| depths[parent as usize] + 1).max().unwrap_or(0);
        }
        depths.into_iter().max().unwrap_or(0)
    }

    /// The same room as it was made, from what a cache has kept of it.
    pub fn from_parts(
        dials: Dials,
        room_id: String,
        rows: Vec<Row>,
        extremities: Vec<u32>,
        faults: Vec<Fault>,
    ) -> Room {
        let world = World::new(dials.seed, dials.servers);
        let homes = Homes::new(&dials);
        let auth_starts = vec![0; rows.len() + 1];
        Room { dials, world, room_id, rows, auth_starts, auth: Vec::new(), extremities, faults, homes }
    }
}

/// Which server each user is on and what they are called; computed, not stored.
struct Homes {
    seed: u64,
    zipf: Zipf,
    /// Users below the first number and from the second on never live on a server whose key is lost.
    reliable: (u32, u32),
}

impl Homes {
    fn new(dials: &Dials) -> Homes {
        Homes {
            seed: dials.seed,
            zipf: Zipf::new(dials.servers.max(1) as usize, 1.05, 0.45),
            reliable: (1 + dials.moderators(), dials.users()),
        }
    }

    fn home(&self, world: &World, user: u32) -> u32 {
        if user == 0 {
            return 0;
        }
        let home = self.zipf.pick(&mut Stream::new(self.seed, "homes", user.into())) as u32;
        let reliable = user < self.reliable.0 || user >= self.reliable.1;
        if reliable && world.servers[home as usize].reach == Reach::Nowhere { 0 } else { home }
    }

    fn user_id(&self, world: &World, user: u32) -> String {
        let mut names = Stream::new(self.seed, "localparts", user.into());
        let chars = 2 + names.below(9);
        let word = names.token(chars, true);
        let local = match names.below(8) {
            0 => format!("{word}.{user}"),
            1 => format!("_bridge_{word}={user}"),
            2 => format!("{word}-{user}/x"),
            _ => format!("{word}{user}"),
        };
        format!("@{local}:{}", world.servers[self.home(world, user) as usize].name)
    }
}

/// Plays the room's history and hands each event to `out` in order, parents before children.
pub fn play(dials: &Dials, out: &mut dyn FnMut(Job)) -> Room {
    let mut history = History::new(dials.clone(), out);
    history.found();
    for action in schedule(dials) {
        history.act(action);
    }
    history.add_faults();
    history.add_nested();
    history.chat();
    history.finish()
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Deed {
    Arrive,
    Profile,
    Leave,
    Kick,
    Ban,
    Unban,
    /// Invited and never came.
    Invited,
    Power,
    Rule(u8),
    Acl,
    SpaceChild,
    Big,
    Name,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Action {
    tick: u32,
    user: u32,
    /// Which of the user's or the room's deeds of this kind.
    step: u32,
    deed: Deed,
}

/// Everything that will happen, in order of time.
fn schedule(dials: &Dials) -> Vec<Action> {
    let mut actions = Vec::new();
    for user in 1..dials.users() {
        live(dials, user, &mut actions);
    }
    let mut times = Stream::new(dials.seed, "room times", 0);
    for generation in 1..dials.power_generations {
        actions.push(Action { tick: power_tick(dials, generation), user: NOBODY, step: generation, deed: Deed::Power });
    }
    let rules = [(0.40, 1), (0.415, 0), (0.60, 2), (0.606, 0)];
    for (step, (at, rule)) in rules.into_iter().enumerate() {
        actions.push(Action { tick: tick_at(at), user: NOBODY, step: step as u32, deed: Deed::Rule(rule) });
    }
    for (count, deed) in [
        (dials.acl_changes, Deed::Acl),
        (dials.space_children, Deed::SpaceChild),
        (dials.big_events, Deed::Big),
        (5, Deed::Name),
    ] {
        for step in 0..count {
            actions.push(Action { tick: tick_at(0.1 + 0.88 * times.unit()), user: NOBODY, step, deed });
        }
    }
    actions.sort_unstable();
    actions
}

fn tick_at(share: f64) -> u32 {
    (share * f64::from(TICKS)) as u32
}

/// When the power levels change for the `generation`th time.
fn power_tick(dials: &Dials, generation: u32) -> u32 {
    tick_at(0.02 + 0.95 * f64::from(generation) / f64::from(dials.power_generations))
}

/// One user's life. Moderators come before they get their power and stay.
fn live(dials: &Dials, user: u32, actions: &mut Vec<Action>) {
    let mut times = Stream::new(dials.seed, "times", user.into());
    let mut fates = Stream::new(dials.seed, "fates", user.into());
    let moderator = user <= dials.moderators();
    let arrival = if moderator {
        let generation = 1 + (user - 1) / dials.power_added;
        tick_at(0.015 * times.unit() + 0.7 * times.unit() * f64::from(power_tick(dials, generation)) / f64::from(TICKS))
    } else {
        tick_at(0.005 + 0.96 * times.unit())
    };
    let gone = user >= dials.joined;
    if gone && fates.chance(0.015) {
        actions.push(Action { tick: arrival, user, step: 0, deed: Deed::Invited });
        return;
    }
    let mut deeds = vec![Deed::Profile; fates.geometric(dials.profile_changes) as usize];
    if user == 1 {
        deeds.extend(vec![Deed::Profile; dials.serial_changes as usize]);
    }
    if !gone && !moderator && fates.chance(0.02) {
        deeds.extend([Deed::Leave, Deed::Arrive]);
    }
    if gone {
        match fates.unit() {
            x if x < 0.15 => deeds.push(Deed::Ban),
            x if x < 0.155 => deeds.extend([Deed::Ban, Deed::Unban]),
            x if x < 0.27 => deeds.push(Deed::Kick),
            _ => deeds.push(Deed::Leave),
        }
    }
    let mut ticks: Vec<u32> =
        deeds.iter().map(|_| arrival + (times.unit() * f64::from(tick_at(0.99) - arrival)) as u32).collect();
    ticks.sort_unstable();
    actions.push(Action { tick: arrival, user, step: 0, deed: Deed::Arrive });
    for (step, (tick, deed)) in ticks.into_iter().zip(deeds).enumerate() {
        actions.push(Action { tick, user, step: step as u32 + 1, deed });
    }
}

/// Who may come in at a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Public,
    Knock,
    Restricted,
}

/// The room as it stands after the events so far.
struct History<'a> {
    dials: Dials,
    version: Version,
    world: World,
    homes: Homes,
    out: &'a mut dyn FnMut(Job),
    room_id: String,
    rows: Vec<Row>,
    auth_starts: Vec<u32>,
    auth: Vec<u32>,
    extremities: Vec<u32>,
    /// What the newest event follows and who sent it, while another event may still follow the same.
    fork_at: Option<(Vec<u32>, u32)>,
    create: u32,
    power: Option<u32>,
    join_rules: Option<u32>,
    members: Vec<u32>,
    other_state: HashMap<(String, String), u32>,
    door: Door,
    /// Moderators named in the present power levels.
    powered: u32,
    tick: u32,
    forks: Stream,
    faults: Vec<Fault>,
    tamper: Tamper,
}

/// What differs from event to event.
struct New {
    kind: Kind,
    type_name: &'static str,
    state_key: Option<String>,
    sender: u32,
    /// The user a member event is about.
    target: u32,
    content: Json,
    authorising: Option<u32>,
    /// May stand beside another event after the same one: neither changes what the other needs.
    plain: bool,
}

impl History<'_> {
    fn new(dials: Dials, out: &mut dyn FnMut(Job)) -> History<'_> {
        let version = dials.version();
        History {
            version,
            world: World::new(dials.seed, dials.servers),
            homes: Homes::new(&dials),
            out,
            room_id: String::new(),
            rows: Vec::new(),
            auth_starts: vec![0],
            auth: Vec::new(),
            extremities: Vec::new(),
            fork_at: None,
            create: 0,
            power: None,
            join_rules: None,
            members: vec![NOBODY; (dials.users() + 8 * dials.faults) as usize + dials.nested.len()],
            other_state: HashMap::new(),
            door: Door::Public,
            powered: 0,
            tick: 0,
            forks: Stream::new(dials.seed, "forks", 0),
            faults: Vec::new(),
            tamper: Tamper::No,
            dials,
        }
    }

    fn user_id(&self, user: u32) -> String {
        self.homes.user_id(&self.world, user)
    }

    /// The first events of the room, by user 0.
    fn found(&mut self) {
        let mut content = map([("room_version", self.dials.version.clone().into())]);
        if self.version == Version::V10 {
            content.set("creator", self.user_id(0));
        }
        if self.version != Version::V12 {
            self.room_id = format!(
                "!{}:{RESIDENT}",
                Stream::new(self.dials.seed, &format!("room id {}", self.dials.name), 0).token(18, false)
            );
        }
        self.create = self.state(Kind::Create, "m.room.create", "", content);
        if self.version == Version::V12 {
            self.room_id = event_id(&self.rows[self.create as usize].id).replacen('$', "!", 1);
        }
        self.member(Kind::Join, 0, 0, |_| {});
        self.set_power(0);
        self.set_rule(0);
        self.state(Kind::OtherState, "m.room.history_visibility", "", map([("history_visibility", "shared".into())]));
        self.state(Kind::OtherState, "m.room.guest_access", "", map([("guest_access", "can_join".into())]));
        self.state(Kind::OtherState, "m.room.name", "", map([("name", "Load \"HQ\" \u{1f40c}".into())]));
        let alias = format!("#{}:{RESIDENT}", self.dials.name);
        self.state(Kind::OtherState, "m.room.canonical_alias", "", map([("alias", alias.into())]));
    }

    fn act(&mut self, action: Action) {
        self.tick = self.tick.max(action.tick);
        match action.deed {
            Deed::Arrive => self.arrive(action.user),
            Deed::Profile => self.change_profile(action.user, action.step),
            Deed::Leave => self.leave(action.user, action.user, Kind::Leave),
            Deed::Kick | Deed::Unban => self.leave(self.moderator(action.user), action.user, Kind::Leave),
            Deed::Ban => self.leave(self.moderator(action.user), action.user, Kind::Ban),
            Deed::Invited => self.invite(action.user),
            Deed::Power => self.set_power(action.step),
            Deed::Rule(rule) => self.set_rule(rule),
            Deed::Acl => self.set_acl(action.step),
            Deed::SpaceChild => self.add_space_child(action.step),
            Deed::Big => self.add_big(action.step),
            Deed::Name => {
                let topic = format!("Topic number {}: \u{201c}be kind\u{201d}\n\u{2728}", action.step);
                self.state(Kind::OtherState, "m.room.topic", "", map([("topic", topic.into())]));
            }
        }
    }

    /// Somebody with power over `user`, other than the creator when there is one.
    fn moderator(&self, user: u32) -> u32 {
        match self.powered {
            0 => 0,
            powered => 1 + Stream::new(self.dials.seed, "moderators", user.into()).below(powered as usize) as u32,
        }
    }

    /// Joins by whichever way is open at the time.
    fn arrive(&mut self, user: u32) {
        match self.door {
            Door::Public if Stream::new(self.dials.seed, "invited", user.into()).chance(0.02) => {
                self.invite(user);
                self.join(user, None);
            }
            Door::Public => self.join(user, None),
            Door::Knock => {
                self.member(Kind::Knock, user, user, |content| {
                    content.set("reason", "let me in, \"please\"\t\u{1f6aa}")
                });
                self.invite(user);
                self.join(user, None);
            }
            Door::Restricted => self.join(user, Some(self.moderator(user))),
        }
    }

    fn invite(&mut self, user: u32) {
        let sender = self.moderator(user);
        self.member(Kind::Invite, sender, user, |_| {});
    }

    fn join(&mut self, user: u32, authorising: Option<u32>) {
        let vouched = authorising.map(|by| self.user_id(by));
        let profile = profile(self.dials.seed, user, 0);
        self.member_authorised(Kind::Join, user, user, authorising, |content| {
            if let Some(by) = vouched {
                content.set("join_authorised_via_users_server", by);
            }
            profile.write(content);
        });
    }

    fn change_profile(&mut self, user: u32, step: u32) {
        let profile = profile(self.dials.seed, user, step);
        self.member(Kind::Join, user, user, |content| profile.write(content));
    }

    fn leave(&mut self, sender: u32, user: u32, kind: Kind) {
        let reasoned = sender != user && Stream::new(self.dials.seed, "reasons", user.into()).chance(0.5);
        self.member(kind, sender, user, |content| {
            if reasoned {
                content.set("reason", "Spam \u{1f6ab} \\o/ \"again\"");
            }
        });
    }

    fn set_power(&mut self, generation: u32) {
        let mut users = Vec::new();
        if self.version != Version::V12 {
            users.push((self.user_id(0).into(), Json::Int(100)));
        }
        self.powered = generation * self.dials.power_added;
        for user in 1..=self.powered {
            users.push((self.user_id(user).into(), Json::Int(50)));
        }
        let at = |level: i64| Json::Int(level);
        let events = map([
            ("m.room.name", at(50)),
            ("m.room.power_levels", at(100)),
            ("m.room.history_visibility", at(100)),
            ("m.room.server_acl", at(100)),
            ("m.room.tombstone", at(100)),
            ("m.space.child", at(50)),
        ]);
        let content = map([
            ("users", Json::Map(users)),
            ("users_default", at(0)),
            ("events", events),
            ("events_default", at(0)),
            ("state_default", at(50)),
            ("ban", at(50)),
            ("kick", at(50)),
            ("redact", at(50)),
            ("invite", at(0)),
            ("historical", at(100)),
            ("notifications", map([("room", at(50))])),
        ]);
        let row = self.state(Kind::Power, "m.room.power_levels", "", content);
        self.power = Some(row);
    }

    fn set_rule(&mut self, rule: u8) {
        let (door, content) = match rule {
            0 => (Door::Public, map([("join_rule", "public".into())])),
            1 => (Door::Knock, map([("join_rule", "knock".into())])),
            _ => {
                let allowed = map([("room_id", "!space:hub.load.test".into()), ("type", "m.room_membership".into())]);
                (Door::Restricted, map([("join_rule", "restricted".into()), ("allow", vec![allowed].into())]))
            }
        };
        self.door = door;
        let row = self.state(Kind::JoinRules, "m.room.join_rules", "", content);
        self.join_rules = Some(row);
    }

    fn set_acl(&mut self, step: u32) {
        let deny = (0..=step * 3).map(|n| format!("*.evil-{n}.example").into()).collect::<Vec<Json>>();
        let content =
            map([("allow", vec!["*".into()].into()), ("allow_ip_literals", false.into()), ("deny", deny.into())]);
        self.state(Kind::OtherState, "m.room.server_acl", "", content);
    }

    fn add_space_child(&mut self, step: u32) {
        let child = format!("!{}:{RESIDENT}", Stream::new(self.dials.seed, "children", step.into()).token(18, false));
        let content = map([
            ("via", vec![RESIDENT.into(), "matrix.example".into()].into()),
            ("order", format!("{step:04}").into()),
        ]);
        self.state(Kind::OtherState, "m.space.child", &child, content);
    }

    /// A state event just under the limit of 65,536 bytes.
    fn add_big(&mut self, step: u32) {
        let mut stream = Stream::new(self.dials.seed, "big", step.into());
        let lines = (0..600).map(|_| format!("{} \u{1f4be}", stream.token(88, false)).into()).collect::<Vec<Json>>();
        self.state(Kind::OtherState, "org.example.blob", &format!("blob {step}"), map([("lines", lines.into())]));
    }

    /// Messages at the end of the timeline, by people who are in the room.
    fn chat(&mut self) {
        let mut stream = Stream::new(self.dials.seed, "chat", 0);
        for number in 0..self.dials.messages {
            self.tick += 1 + stream.below(1000) as u32;
            let sender = (0..)
                .map(|_| 1 + stream.below(self.dials.users() as usize - 1) as u32)
                .find(|&user| self.is_reliable(user));
            let body = format!("message {number} of the end: {}", stream.token(20 + (number % 60) as usize, false));
            self.append(New {
                kind: Kind::Message,
                type_name: "m.room.message",
                state_key: None,
                sender: sender.expect("somebody is in the room"),
                target: NOBODY,
                content: map([("body", body.into()), ("msgtype", "m.text".into())]),
                authorising: None,
                plain: true,
            });
        }
    }

    /// In the room, on a server whose key can be had.
    fn is_reliable(&self, user: u32) -> bool {
        let row = self.members[user as usize];
        row != NOBODY
            && self.rows[row as usize].kind == Kind::Join
            && self.world.servers[self.homes.home(&self.world, user) as usize].reach == Reach::Live
    }

    /// Events no correct server takes at face value, each about a user of its own. Nothing good follows them.
    fn add_faults(&mut self) {
        let first = self.dials.users();
        for number in 0..self.dials.faults {
            let user = |kind: u32| first + kind * self.dials.faults + number;
            let [signature, content, ban, missing, big] = [user(0), user(1), user(2), user(3), user(4)];
            let before = self.extremities.clone();
            self.tamper = Tamper::Signature;
            self.join(signature, None);
            self.fault(signature, "signature", "dropped");
            self.extremities.clone_from(&before);
            self.tamper = Tamper::Content;
            self.join(content, None);
            self.fault(content, "content hash", "redacted");
            self.extremities.clone_from(&before);
            self.tamper = Tamper::No;
            // A ban by somebody without the power to.
            self.member(Kind::Ban, self.dials.moderators() + 1 + number, ban, |_| {});
            self.fault(ban, "not allowed", "dropped");
            self.extremities.clone_from(&before);
            self.invite(missing);
            self.rows[self.members[missing as usize] as usize].withheld = true;
            self.join(missing, None);
            self.fault(missing, "auth event missing", "dropped");
            self.extremities.clone_from(&before);
            self.member(Kind::Join, big, big, |content| content.set("org.example.padding", "x".repeat(65_000)));
            self.fault(big, "too large", "dropped");
            self.extremities = before;
            self.fork_at = None;
        }
    }

    fn add_nested(&mut self) {
        let first = self.dials.users() + 8 * self.dials.faults;
        for (user, levels) in (first..).zip(self.dials.nested.clone()) {
            let before = self.extremities.clone();
            let nested = (0..levels).fold(Json::Int(1), |inner, _| map([("a", inner)]));
            self.member(Kind::Join, user, user, |content| content.set("org.example.nested", nested));
            if levels > 800 {
                self.fault(user, "nested too deeply", "dropped");
            }
            self.extremities = before;
            self.fork_at = None;
        }
    }

    fn fault(&mut self, user: u32, kind: &str, expect: &str) {
        let row = self.members[user as usize];
        self.faults.push(Fault {
            event_id: event_id(&self.rows[row as usize].id),
            user_id: self.user_id(user),
            kind: kind.to_owned(),
            expect: expect.to_owned(),
        });
    }

    /// A state event by the creator.
    fn state(&mut self, kind: Kind, type_name: &'static str, state_key: &str, content: Json) -> u32 {
        let row = self.append(New {
            kind,
            type_name,
            state_key: Some(state_key.to_owned()),
            sender: 0,
            target: NOBODY,
            content,
            authorising: None,
            plain: false,
        });
        self.other_state.insert((type_name.to_owned(), state_key.to_owned()), row);
        row
    }

    fn member(&mut self, kind: Kind, sender: u32, target: u32, fill: impl FnOnce(&mut Json)) {
        self.member_authorised(kind, sender, target, None, fill);
    }

    fn member_authorised(
        &mut self,
        kind: Kind,
        sender: u32,
        target: u32,
        authorising: Option<u32>,
        fill: impl FnOnce(&mut Json),
    ) {
        let membership = match kind {
            Kind::Join => "join",
            Kind::Leave => "leave",
            Kind::Ban => "ban",
            Kind::Invite => "invite",
            Kind::Knock => "knock",
            _ => panic!("not a membership"),
        };
        let mut content = map([("membership", membership.into())]);
        fill(&mut content);
        let state_key = Some(self.user_id(target));
        let plain = kind == Kind::Join && authorising.is_none() && target > self.dials.moderators();
        let row = self.append(New {
            kind,
            type_name: "m.room.member",
            state_key,
            sender,
            target,
            content,
            authorising,
            plain,
        });
        self.members[target as usize] = row;
    }

    /// Builds one event on the room as it stands and passes it on.
    fn append(&mut self, new: New) -> u32 {
        let row = self.rows.len() as u32;
        let auth = self.auth_events(&new);
        let prevs = self.choose_prevs(&new, row);
        let depth = prevs.iter().map(|&prev| self.rows[prev as usize].depth + 1).max().unwrap_or(1);
        let time = time_of(self.tick) + u64::from(row % 1000);
        let unsigned = self.unsigned(&new, row);
        let signers = self.signers(&new, time);
        let hashes = |rows: &[u32]| rows.iter().map(|&row| self.rows[row as usize].id).collect::<Vec<Hash>>();
        let draft = Draft {
            kind: new.type_name.into(),
            state_key: new.state_key,
            sender: self.user_id(new.sender),
            room_id: Some(self.room_id.clone()).filter(|_| !(new.kind == Kind::Create && self.version == Version::V12)),
            content: new.content,
            origin_server_ts: time,
            depth: depth.into(),
            prev_events: hashes(&prevs),
            auth_events: hashes(&auth),
        };
        let sealed = draft.seal(self.version);
        self.rows.push(Row {
            id: sealed.id,
            kind: new.kind,
            user: new.target,
            depth,
            in_state: false,
            in_chain: false,
            withheld: false,
        });
        self.auth.extend(auth);
        self.auth_starts.push(self.auth.len() as u32);
        (self.out)(Job { sealed, signers, unsigned, tamper: self.tamper });
        row
    }

    /// The selection of server-server API, "Auth events selection".
    fn auth_events(&self, new: &New) -> Vec<u32> {
        let mut auth = Vec::with_capacity(5);
        if new.kind == Kind::Create {
            return auth;
        }
        if !self.version.room_id_is_create() {
            auth.push(self.create);
        }
        auth.extend(self.power);
        let mut add_member = |user: u32| {
            let row = self.members[user as usize];
            if row != NOBODY && !auth.contains(&row) {
                auth.push(row);
            }
        };
        add_member(new.sender);
        if new.kind.is_member() {
            add_member(new.target);
            if let Some(user) = new.authorising {
                add_member(user);
            }
            if matches!(new.kind, Kind::Join | Kind::Invite | Kind::Knock) {
                auth.extend(self.join_rules);
            }
        }
        auth
    }

    /// What the event follows. Two plain events in a row by different users may follow the same ones; the next follows both.
    fn choose_prevs(&mut self, new: &New, row: u32) -> Vec<u32> {
        // Some events cannot be siblings of the one before; the factor makes up for them.
        let fork = new.plain && self.forks.chance(1.5 * self.dials.two_prevs);
        if let Some((before, _)) = self.fork_at.take().filter(|(_, sender)| fork && *sender != new.sender) {
            self.extremities.push(row);
            return before;
        }
        let prevs = std::mem::replace(&mut self.extremities, vec![row]);
        if new.plain {
            self.fork_at = Some((prevs.clone(), new.sender));
        }
        prevs
    }

    fn signers(&self, new: &New, time: u64) -> Vec<Signer> {
        let mut signers: Vec<Signer> = Vec::with_capacity(2);
        let mut add = |user: u32| {
            let server = self.homes.home(&self.world, user);
            if signers.iter().all(|signer| signer.server != server) {
                let old = self.world.servers[server as usize].old.as_ref().is_some_and(|(_, until)| time < *until);
                signers.push(Signer { server, old });
            }
        };
        add(new.sender);
        if new.kind == Kind::Invite {
            add(new.target);
        }
        if let Some(user) = new.authorising {
            add(user);
        }
        signers
    }

    /// What servers add that no signature covers.
    fn unsigned(&self, new: &New, row: u32) -> Json {
        let mut stream = Stream::new(self.dials.seed, "unsigned", row.into());
        let age = stream.below(1 << 40) as i64;
        let mut unsigned = map([("age", Json::Int(age))]);
        if new.kind.is_member() {
            let before = self.members[new.target as usize];
            if before != NOBODY && stream.chance(0.3) {
                unsigned.set("replaces_state", event_id(&self.rows[before as usize].id));
                unsigned.set(
                    "prev_content",
                    map([("membership", "join".into()), ("displayname", stream.token(9, false).into())]),
                );
                unsigned.set("prev_sender", self.user_id(new.target));
            }
        }
        unsigned
    }

    fn finish(mut self) -> Room {
        let state = self.members.iter().copied().filter(|&row| row != NOBODY).chain(self.other_state.values().copied());
        for row in state.collect::<Vec<_>>() {
            self.rows[row as usize].in_state = true;
        }
        let mut room = Room {
            dials: self.dials,
            world: self.world,
            room_id: self.room_id,
            rows: self.rows,
            auth_starts: self.auth_starts,
            auth: self.auth,
            extremities: self.extremities,
            faults: self.faults,
            homes: self.homes,
        };
        let reached = room.chain_of(&room.state());
        for (row, reached) in room.rows.iter_mut().zip(reached) {
            row.in_chain = reached;
        }
        room
    }
}

/// A display name and an avatar.
struct Profile {
    name: Option<String>,
    avatar: Option<String>,
}

impl Profile {
    fn write(self, content: &mut Json) {
        if let Some(name) = self.name {
            content.set("displayname", name);
        }
        if let Some(avatar) = self.avatar {
            content.set("avatar_url", avatar);
        }
    }
}

/// What a user looks like after `step` changes. Three in four have an avatar; three in ten names are odd.
fn profile(seed: u64, user: u32, step: u32) -> Profile {
    const ODD: [&str; 8] = [
        "\"quoted\" \\ backslash/",
        "\u{1f98a}\u{1f3f3}\u{fe0f}\u{200d}\u{1f308}",
        "tab\tnew\nline\u{8}\u{c}\r\u{1}\u{1f}",
        "\u{202e}right to left",
        "\u{5b57}\u{6f22}\u{5b57} \u{e9}\u{301}",
        "",
        "<b>&amp;</b> 'x' \u{2028}\u{2029}",
        "\u{7f}\u{80}\u{ffff}\u{10ffff}",
    ];
    let mut stream = Stream::new(seed, "profiles", u64::from(user) << 16 | u64::from(step));
    let chars = 3 + stream.below(14);
    let plain = stream.token(chars, false);
    let name = match stream.unit() {
        x if x < 0.30 => Some(format!("{}{plain}", stream.pick(&ODD))),
        x if x < 0.95 => Some(plain),
        _ => None,
    };
    let avatar = stream.chance(0.75).then(|| format!("mxc://{RESIDENT}/{}", stream.token(24, false)));
    Profile { name, avatar }
}

/// How many rows of each kind, for a line of text.
pub fn census(room: &Room) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for row in room.rows.iter().filter(|row| row.in_state || row.in_chain) {
        *counts.entry(format!("{:?}", row.kind).to_lowercase()).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests;
