//! A very large room joined by a server under its memory cap: `cargo bench --bench join -- --help`.

#[path = "../tests/lab/mod.rs"]
mod lab;

use lab::control::Process;
use lab::drive::{self, EventIds, Person, Setup, Snug, Usage};
use lab::push::What;
use lab::render::Rendered;
use lab::resident::Dials;
use lab::room;
use lab::together::{self, Amount, Heavy};
use lab::wire::percent_encode;
use snug::store::tables::room as tables_room;
use snug::store::tables::room::current_state::{self, StateCursor};
use snug::store::tables::room::event;
use snug::store::tables::room::event_row::Row;
use snug::store::{EventNum, Store};
use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

const USAGE: &str = "\
Joins a very large room under a memory budget and prints what it cost.

    cargo bench --bench join -- [--profile NAME] [--budget BUDGET] [--short] [--only PART]

NAME     xs, k1, m, s (68,000 events), hq (194,000) or xl (a million); s without it
BUDGET   a profile of memory-budgets; pi-zero-2w without it
--short  the join, the long reads and serving the room; without the killed join and the thousand membership changes
--only   `join` stops after the join itself, `resume` does nothing but the killed join, `together` nothing but a join
         beside log-ins, first syncs, uploads and another server's large events, `backup` backs the joined room up, restores it
         and removes it, while others chat

The server runs in a memory cgroup of the profile's total where the machine allows one. Ends with status 1 when a measured peak
is above the total, or when the joined room is not the one it should be.
";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Join,
    Resume,
    Together,
    Backup,
}

struct Arguments {
    profile: String,
    budget: String,
    short: bool,
    only: Option<Part>,
}

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "resident") {
        return lab::control::run(&words[1..]);
    }
    let mut given = Arguments { profile: "s".into(), budget: "pi-zero-2w".into(), short: false, only: None };
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let mut value =
            || rest.next().cloned().ok_or_else(|| io::Error::other(format!("{word} needs a value\n\n{USAGE}")));
        match word.as_str() {
            "--profile" => given.profile = value()?,
            "--budget" => given.budget = value()?,
            "--short" => given.short = true,
            "--only" => {
                given.only = Some(match value()?.as_str() {
                    "join" => Part::Join,
                    "resume" => Part::Resume,
                    "together" => Part::Together,
                    "backup" => Part::Backup,
                    other => return Err(io::Error::other(format!("--only {other} is not known\n\n{USAGE}"))),
                })
            }
            // Given by cargo.
            "--bench" => {}
            "--help" => return Ok(print!("{USAGE}")),
            other => return Err(io::Error::other(format!("{other} is not understood\n\n{USAGE}"))),
        }
    }
    let mut bench = Bench::start(given)?;
    let result = bench.run();
    bench.report();
    if let Err(error) = result {
        eprintln!("\n{error}\n\nthe server's log ends:\n{}", bench.snug.log_tail());
        drop(bench);
        std::process::exit(1);
    }
    if !bench.wrong.is_empty() {
        eprintln!("\nnot as it must be:\n  {}", bench.wrong.join("\n  "));
        drop(bench); // and the server with it, which an exit would leave running
        std::process::exit(1);
    }
    Ok(())
}

/// One line of the table.
struct Line {
    what: String,
    peak: u64,
    cpu: f64,
    wall: f64,
    note: String,
}

struct Bench {
    given: Arguments,
    setup: Setup,
    cap: u64,
    resident: Process,
    snug: Snug,
    room: String,
    small_room: String,
    /// Processor time of reading the room's whole state, by what read it.
    read_cpu: Vec<(&'static str, f64)>,
    lines: Vec<Line>,
    wrong: Vec<String>,
}

impl Bench {
    fn start(given: Arguments) -> io::Result<Bench> {
        let profile =
            snug::budget::Profile::named(&given.budget).map_err(|error| io::Error::other(error.to_string()))?;
        let mut resident = Process::start(&[given.profile.clone(), "k1".into()])?;
        let room_id =
            |resident: &Process, number| resident.room(number)["room_id"].as_str().unwrap_or_default().to_owned();
        let (room, small_room) = (room_id(&resident, 0), room_id(&resident, 1));
        let setup = Setup {
            binary: env!("CARGO_BIN_EXE_snug").into(),
            budget: given.budget.clone(),
            cap: Some(profile.total),
            disk: None,
            resident_port: resident.port,
            log: "info".to_owned(),
        };
        let snug = Snug::start(&setup)?;
        resident.meet(drive::NAME, &snug.federation_url())?;
        println!(
            "{}: {} events, {} MB body; budget {} ({} MiB){}",
            given.profile,
            resident.room(0)["events"],
            resident.room(0)["body_bytes"].as_u64().unwrap_or(0) / 1_000_000,
            profile.name,
            profile.total >> 20,
            if snug.is_capped() { ", kept by a memory cgroup" } else { ", no memory cgroup on this machine" },
        );
        let mut wrong = Vec::new();
        if !snug.is_capped() && !drive::may_leave_out("cgroups") {
            let how = format!("run it as root, or leave that out: {}=cgroups", drive::LEAVE_OUT);
            wrong
                .push(format!("the kernel did not keep the server under its cap: no memory cgroup can be made; {how}"));
        }
        Ok(Bench {
            given,
            setup,
            cap: profile.total,
            resident,
            snug,
            room,
            small_room,
            read_cpu: Vec::new(),
            lines: Vec::new(),
            wrong,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        thread::sleep(Duration::from_secs(2));
        let idle = self.snug.usage();
        self.line("idle after the start", idle.peak, idle.cpu, 2.0, format!("{} resident", mib(idle.resident)));
        let mut alice = self.snug.register("alice")?;
        if self.given.only == Some(Part::Resume) {
            return self.resume();
        }
        if self.given.only == Some(Part::Together) {
            return self.together();
        }
        self.join(&mut alice)?;
        if self.given.only == Some(Part::Join) {
            return Ok(());
        }
        if self.given.only == Some(Part::Backup) {
            return self.backup(&mut alice);
        }
        self.reads(&mut alice)?;
        self.serve()?;
        self.crowd(&mut alice)?;
        self.changes(&mut alice)?;
        self.disk()?;
        self.together()?;
        if !self.given.short {
            self.resume()?;
        }
        Ok(())
    }

    fn line(&mut self, what: &str, peak: u64, cpu: f64, wall: f64, note: String) {
        if peak > self.cap {
            self.wrong.push(format!("{what}: {} resident, the cap is {}", mib(peak), mib(self.cap)));
        }
        println!("  {what:<44} {:>10} {cpu:>9.2} s {wall:>9.2} s   {note}", mib(peak));
        self.lines.push(Line { what: what.to_owned(), peak, cpu, wall, note });
    }

    /// Runs `work` and notes what the server spent on it.
    fn measured<T>(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Self) -> io::Result<(T, String)>,
    ) -> io::Result<(T, f64)> {
        self.snug.reset_peak();
        let (before, began) = (self.snug.usage(), Instant::now());
        let (value, note) = work(self)?;
        let after = self.snug.usage();
        let cpu = after.cpu - before.cpu;
        self.line(what, after.peak, cpu, began.elapsed().as_secs_f64(), note);
        Ok((value, cpu))
    }

    /// The join itself, while two others chat.
    fn join(&mut self, alice: &mut Person) -> io::Result<()> {
        let chat = Chat::start(&self.snug)?;
        let room = self.room.clone();
        let events = self.resident.room(0)["events"].as_u64().unwrap_or(1);
        let (_, cpu) = self.measured("the join", |_| {
            alice.join(&room, room::RESIDENT)?.good("join")?;
            Ok(((), String::new()))
        })?;
        let chatted = chat.stop()?;
        self.line(
            "another room meanwhile",
            0,
            0.0,
            0.0,
            format!(
                "{} messages: send p50 {:.0} p99 {:.0} longest {:.0} ms; sync p50 {:.0} p99 {:.0} longest {:.0} ms",
                chatted.sends.len(),
                at(&chatted.sends, 50),
                at(&chatted.sends, 99),
                at(&chatted.sends, 100),
                at(&chatted.syncs, 50),
                at(&chatted.syncs, 99),
                at(&chatted.syncs, 100),
            ),
        );
        let signatures = signatures_alone(&self.given.profile, events)?;
        self.line(
            "the same signatures alone, in this process",
            0,
            signatures,
            signatures,
            format!(
                "the join's CPU is {:.2} times that; {:.1} µs an event",
                cpu / signatures,
                cpu * 1e6 / events as f64
            ),
        );
        Ok(())
    }

    /// Everything whose length the room decides.
    fn reads(&mut self, alice: &mut Person) -> io::Result<()> {
        let joined = self.resident.room(0)["joined"].as_u64().unwrap_or(0) + 1;
        let room = percent_encode(&self.room);
        for (what, path) in [
            ("initial sync, every member", "/_matrix/client/v3/sync?timeout=0".to_owned()),
            ("/members", format!("/_matrix/client/v3/rooms/{room}/members")),
            ("/state", format!("/_matrix/client/v3/rooms/{room}/state")),
            ("/joined_members", format!("/_matrix/client/v3/rooms/{room}/joined_members")),
        ] {
            let mut found = EventIds::default();
            let mut names = 0u64;
            let (_, cpu) = self.measured(what, |_| {
                let (status, bytes) = alice.stream(&path, &mut |piece| {
                    found.take(piece);
                    names += piece.iter().filter(|&&byte| byte == b'@').count() as u64;
                })?;
                if status != 200 {
                    return Err(io::Error::other(format!("{what}: status {status}")));
                }
                Ok(((), format!("{} MB, {} events", bytes / 1_000_000, found.count)))
            })?;
            self.read_cpu.push((what, cpu));
            let enough = if what == "/joined_members" { names >= joined } else { found.count >= joined };
            if !enough {
                self.wrong.push(format!("{what} has {} events, the room {joined} members", found.count));
            }
        }
        let mut first = String::new();
        self.measured("initial sync, lazy members", |_| {
            let answer = alice.sync(None, 0)?;
            first = answer["next_batch"].as_str().unwrap_or_default().to_owned();
            Ok(((), format!("{} bytes", answer.to_string().len())))
        })?;
        Ok(())
    }

    /// The room served to another server that joins through this one.
    fn serve(&mut self) -> io::Result<()> {
        let room = self.room.clone();
        let (served, cpu) = self.measured("serving send_join of it to another server", |bench| {
            let served = bench.resident.guest_join(&room, "guest", true)?;
            let note = format!(
                "{} MB, {} + {} events, first byte after {:.0} ms",
                served.bytes / 1_000_000,
                served.state,
                served.auth_chain,
                served.seconds_to_first_byte * 1e3
            );
            Ok((served, note))
        })?;
        self.read_cpu.push(("send_join", cpu));
        let state = self.resident.room(0)["state"].as_u64().unwrap_or(0);
        if served.bad > 0 {
            self.wrong.push(format!("{} events served are not what their ids say", served.bad));
        }
        // A few are rightly gone: events whose server's key nobody has, and what rests on them.
        if served.state * 100 < state * 97 {
            self.wrong.push(format!("{} state events are served, the room has {state}", served.state));
        }
        Ok(())
    }

    /// Eight initial syncs of every member at once, and another server's join.
    fn crowd(&mut self, alice: &mut Person) -> io::Result<()> {
        let room = self.room.clone();
        let people: Vec<Person> = (0..8).map(|_| alice.again(&self.snug)).collect();
        self.measured("8 such syncs and another server's join at once", |bench| {
            let threads: Vec<_> = people
                .into_iter()
                .map(|mut person| {
                    thread::spawn(move || person.stream("/_matrix/client/v3/sync?timeout=0", &mut |_| {}))
                })
                .collect();
            let served = bench.resident.guest_join(&room, "second", false)?;
            let mut finished = 0;
            for thread in threads {
                let (status, _) = thread.join().map_err(|_| io::Error::other("a client failed"))??;
                finished += usize::from(status == 200);
            }
            Ok(((), format!("{finished} of 8 syncs, {} MB served", served.bytes / 1_000_000)))
        })?;
        Ok(())
    }

    /// Membership changes from outside, in this room and in a small one.
    fn changes(&mut self, alice: &mut Person) -> io::Result<()> {
        let (room, small) = (self.room.clone(), self.small_room.clone());
        alice.join(&small, room::RESIDENT)?.good("join of the small room")?;
        let count = if self.given.short { 100 } else { 1000 };
        let mut each = Vec::new();
        for (what, room) in [("in a room of 1,000", small), ("in this room", room)] {
            let resident = self.snug.usage().resident;
            let (_, cpu) = self.measured(&format!("{count} membership changes {what}"), |bench| {
                let pushed = bench.resident.push(&room, What::Rename, count, 1)?;
                if let Some(refused) = pushed.refused.first() {
                    bench.wrong.push(format!("a rename was refused: {refused}"));
                }
                Ok(((), format!("{:.2} ms each", pushed.seconds * 1e3 / count as f64)))
            })?;
            let grown = self.snug.usage().resident.saturating_sub(resident);
            each.push(cpu * 1e3 / count as f64);
            self.line(
                "  of that",
                0,
                cpu,
                0.0,
                format!("{:.2} ms CPU each, resident memory grew by {}", cpu * 1e3 / count as f64, mib(grown)),
            );
        }
        self.line("  large against small", 0, 0.0, 0.0, format!("{:.2} times", each[1] / each[0].max(0.001)));
        Ok(())
    }

    /// Bytes on disk, as they lie and compacted.
    fn disk(&mut self) -> io::Result<()> {
        let events = self.resident.room(0)["events"].as_u64().unwrap_or(1);
        let lying = self.snug.disk_bytes();
        self.snug.stop()?;
        let file = self.snug.folder.join("data/database");
        let store = Store::open(snug::store::StoreOptions::new(&file)).map_err(io::Error::other)?;
        self.in_order(&store)?;
        // Each pass moves what the one before made room for.
        for _ in 0..3 {
            store.compact_blocking().map_err(io::Error::other)?;
        }
        store.close_blocking();
        // The file is claimed until the last handle is gone.
        drop(store);
        let compact = drive::database_bytes(&file);
        self.line(
            "on disk",
            0,
            0.0,
            0.0,
            format!("{} as it lies, {} compacted: {} bytes an event", mib(lying), mib(compact), compact / events),
        );
        self.snug.run()
    }

    /// What reading the state's events costs in this process when they come in the order of their bodies, and what the
    /// server's answers cost beside that.
    fn in_order(&mut self, store: &Store) -> io::Result<()> {
        let (mut yardsticks, wrong) = ([0.0; 2], |failed| io::Error::other(format!("the database: {failed}")));
        for (at, what, only_state) in [(0, "the bodies of the state", true), (1, "all bodies of the room", false)] {
            let rows = rows_by_body(store, &self.room, only_state).map_err(wrong)?;
            let (read, began, before) = (store.read().map_err(wrong)?, Instant::now(), Usage::of_this_process().cpu);
            for row in &rows {
                event::body(&read, row).map_err(wrong)?;
            }
            yardsticks[at] = Usage::of_this_process().cpu - before;
            let each = yardsticks[at] * 1e6 / rows.len().max(1) as f64;
            let note = format!("{} events, {each:.1} µs each, in this process", rows.len());
            self.line(&format!("{what}, in order"), 0, yardsticks[at], began.elapsed().as_secs_f64(), note);
        }
        let ratios = std::mem::take(&mut self.read_cpu).into_iter().map(|(what, cpu)| {
            let yardstick = yardsticks[usize::from(what == "send_join")];
            format!("{what} {:.2}", cpu / yardstick)
        });
        let ratios = ratios.collect::<Vec<_>>().join(", ");
        self.line("  the answers beside that", 0, 0.0, 0.0, format!("{ratios} times"));
        Ok(())
    }

    /// The same join on a server of its own, while everything else goes on.
    fn together(&mut self) -> io::Result<()> {
        let (room, small) = (self.room.clone(), self.small_room.clone());
        let snug = Snug::start(&self.setup)?;
        self.resident.meet(drive::NAME, &snug.federation_url())?;
        let profile = snug::budget::Profile::named(&self.given.budget).map_err(io::Error::other)?;
        let amount = Amount::large().within(&profile);
        let heavy = Heavy::new(&snug, &amount)?;
        snug.register("inside")?.join(&small, room::RESIDENT)?.good("join of the small room")?;
        snug.reset_peak();
        let before = snug.usage();
        let resident = &mut self.resident;
        let push = || resident.push(&small, What::LargeMessage, 50, 50).map(drop);
        let outcome = together::run(&snug, &heavy, &room, &amount, push)?;
        let usage = snug.usage();
        let (p99, longest) = (at(&outcome.messages, 99), at(&outcome.messages, 100));
        let note = format!(
            "the join {:.1} s; {} messages of others: p99 {p99:.0} longest {longest:.0} ms; now {} anonymous, {} of files",
            outcome.join_seconds,
            outcome.messages.len(),
            mib(usage.resident - usage.file),
            mib(usage.file),
        );
        self.line("a join and everything else at once", usage.peak, usage.cpu - before.cpu, outcome.join_seconds, note);
        println!("    answers: {:?}", outcome.answers);
        self.check_fixed(&snug)?;
        if outcome.joined != 200 {
            self.wrong.push(format!("beside everything else the join answered {}", outcome.joined));
        }
        if outcome.messages_failed > 0 {
            self.wrong.push(format!("{} messages were not sent beside everything else", outcome.messages_failed));
        }
        self.wrong.extend(outcome.faults());
        self.resident.meet(drive::NAME, &self.snug.federation_url())?;
        Ok(())
    }

    /// What the profile says that no account pays, against what the server measured.
    fn check_fixed(&mut self, snug: &Snug) -> io::Result<()> {
        let said = snug.budget()?;
        let profile = snug::budget::Profile::named(&self.given.budget).map_err(io::Error::other)?;
        let beside = profile.fixed("stacks") + profile.fixed("slack");
        for (what, name, most) in
            [("text", "text_bytes_max", profile.fixed("text")), ("stacks and slack", "beside_bytes_max", beside)]
        {
            let measured = said[name].as_u64().unwrap_or(u64::MAX);
            println!("    {what}: {} of {}", mib(measured), mib(most));
            if measured > most {
                self.wrong.push(format!("{what}: {}, the profile says {}", mib(measured), mib(most)));
            }
        }
        Ok(())
    }

    /// A server that is killed at nine tenths of the body, and started again.
    fn resume(&mut self) -> io::Result<()> {
        let digest = |person: &mut Person, room: &str| -> io::Result<(u64, u64)> {
            let mut ids = EventIds::default();
            let path = format!("/_matrix/client/v3/rooms/{}/members?not_membership=leave", percent_encode(room));
            person.stream(&path, &mut |piece| ids.take(piece))?;
            Ok((ids.count, ids.digest))
        };
        let room = self.room.clone();
        // Two fresh servers: one joins in peace, one is killed.
        let mut calm = Snug::start(&self.setup)?;
        self.resident.meet(drive::NAME, &calm.federation_url())?;
        let mut alice = calm.register("alice")?;
        let before = calm.usage().cpu;
        alice.join(&room, room::RESIDENT)?.good("a second join")?;
        let fresh = calm.usage().cpu - before;
        let own = alice.user_id.clone();
        let expected = digest(&mut alice, &room)?;
        calm.stop()?;
        drop(calm);

        let mut killed = Snug::start(&self.setup)?;
        self.resident.meet(drive::NAME, &killed.federation_url())?;
        // Slow enough to be hit.
        let body = self.resident.room(0)["body_bytes"].as_u64().unwrap_or(0);
        let slow = Dials { bytes_per_second: (body / 10).max(1_000_000), ..Dials::default() };
        self.resident.set(&slow)?;
        let mut alice = killed.register("alice")?;
        let joining = {
            let (mut person, room) = (alice.again(&killed), room.clone());
            thread::spawn(move || person.join(&room, room::RESIDENT))
        };
        let began = Instant::now();
        // Until then the counters are those of the join before.
        let mut is_anew = false;
        loop {
            thread::sleep(Duration::from_millis(50));
            let stats = self.resident.stats()?;
            let (sent, total) = (stats["body_sent"].as_u64().unwrap_or(0), stats["body_total"].as_u64().unwrap_or(0));
            is_anew |= sent * 2 < total;
            if is_anew && total >= body && sent * 10 >= total * 9 {
                break;
            }
            if joining.is_finished() || began.elapsed() > Duration::from_secs(600) {
                return Err(io::Error::other("the join did not come to nine tenths"));
            }
        }
        killed.kill();
        // It cannot have been answered.
        let _ = joining.join();
        self.resident.set(&Dials::default())?;
        killed.run()?;
        let began = Instant::now();
        while !self.joined(&mut alice, &room)? {
            if began.elapsed() > Duration::from_secs(900) {
                return Err(io::Error::other("the join is not resumed"));
            }
            thread::sleep(Duration::from_millis(100));
        }
        let usage = killed.usage();
        let found = digest(&mut alice, &room)?;
        // The joining user's own event differs from one join to the next; everything else may not.
        if found.0 != expected.0 {
            self.wrong.push(format!("after the kill {} members, in peace {} ({own})", found.0, expected.0));
        }
        self.line(
            "resumed after a kill at 90 %",
            usage.peak,
            usage.cpu,
            began.elapsed().as_secs_f64(),
            format!("{:.0} % of a fresh join's CPU ({fresh:.2} s)", usage.cpu * 100.0 / fresh),
        );
        Ok(())
    }

    /// The joined room backed up to a folder, again, and to a sealed file; restored; and removed for good. Others chat.
    fn backup(&mut self, alice: &mut Person) -> io::Result<()> {
        let (folder, budget) = (self.snug.folder.clone(), self.given.budget.clone());
        let command = |words: &[&str]| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_snug"));
            command.current_dir(&folder).args(["--config", "snug.toml", "--budget", &budget]).args(words);
            command.stdin(std::process::Stdio::null());
            command
        };
        let run = |words: &[&str]| {
            let done = command(words).output()?;
            let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).replace('\n', " ");
            if done.status.success() { Ok(said) } else { Err(io::Error::other(format!("{words:?}: {said}"))) }
        };
        let recipient = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
        for (what, words) in [
            ("backup to a folder", &["backup", "to"][..]),
            ("the same again", &["backup", "to"]),
            ("backup to a sealed file", &["backup", "all.tar.zst.age", "--recipient", recipient]),
        ] {
            self.beside_chat(what, |_| run(words))?;
        }
        let began = Instant::now();
        let mut child = command(&["restore", "to", "--data-dir", "restored"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        let mut peak = 0;
        let ended = loop {
            if let Some(ended) = child.try_wait()? {
                break ended;
            }
            peak = peak.max(resident_peak(child.id()));
            thread::sleep(Duration::from_millis(20));
        };
        let bytes = |of: &str| std::fs::metadata(folder.join(of).join("database")).map_or(0, |file| file.len());
        let sizes = format!("the database has {} and had {}", mib(bytes("restored")), mib(bytes("data")));
        self.line("restore, in a process of its own", peak, 0.0, began.elapsed().as_secs_f64(), sizes);
        if !ended.success() {
            return Err(io::Error::other("the restore failed"));
        }
        let room = self.room.clone();
        alice.call(
            "POST",
            &format!("/_matrix/client/v3/rooms/{}/leave", percent_encode(&room)),
            Some(&serde_json::json!({})),
        )?;
        let before = bytes("data");
        self.beside_chat("removing the room", |_| {
            run(&["purge", "room", &room])?;
            let began = Instant::now();
            while !run(&["purge"])?.contains("No room is being removed") {
                if began.elapsed() > Duration::from_secs(3600) {
                    return Err(io::Error::other("the room is not removed after an hour"));
                }
                thread::sleep(Duration::from_secs(1));
            }
            Ok(String::new())
        })?;
        let after = bytes("data");
        self.snug.stop()?;
        let said = run(&["compact"])?;
        let sizes =
            format!("{} before, {} after, {} once compacted ({said})", mib(before), mib(after), mib(bytes("data")));
        self.line("the database's file", 0, 0.0, 0.0, sizes);
        self.snug.run()
    }

    /// Runs `work` while two others chat, and notes how they fared.
    fn beside_chat(&mut self, what: &str, work: impl FnOnce(&mut Self) -> io::Result<String>) -> io::Result<()> {
        let chat = Chat::start(&self.snug)?;
        self.measured(what, |bench| Ok(((), work(bench)?)))?;
        let chatted = chat.stop()?;
        let (sends, syncs) = (&chatted.sends, &chatted.syncs);
        let note = format!(
            "{} messages: send p50 {:.0} p99 {:.0} longest {:.0} ms; sync p50 {:.0} p99 {:.0} longest {:.0} ms",
            sends.len(),
            at(sends, 50),
            at(sends, 99),
            at(sends, 100),
            at(syncs, 50),
            at(syncs, 99),
            at(syncs, 100),
        );
        Ok(self.line("another room meanwhile", 0, 0.0, 0.0, note))
    }

    fn joined(&self, person: &mut Person, room: &str) -> io::Result<bool> {
        let answer = person.call("GET", "/_matrix/client/v3/joined_rooms", None)?;
        Ok(answer["joined_rooms"].as_array().is_some_and(|rooms| rooms.iter().any(|it| it == room)))
    }

    fn report(&self) {
        println!("\n| measure | peak resident | CPU | wall | |\n|---|---|---|---|---|");
        for Line { what, peak, cpu, wall, note } in &self.lines {
            let peak = if *peak == 0 { String::new() } else { mib(*peak) };
            let seconds = |value: f64| if value == 0.0 { String::new() } else { format!("{value:.2} s") };
            println!("| {} | {peak} | {} | {} | {note} |", what.trim(), seconds(*cpu), seconds(*wall));
        }
    }
}

/// The most that a process had resident so far.
fn resident_peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A percentile of milliseconds.
fn at(sorted: &[f64], percent: usize) -> f64 {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// The rows of a room's events, or of its present state, in the order of their bodies.
fn rows_by_body(store: &Store, room_id: &str, only_state: bool) -> snug::store::Result<Vec<Row>> {
    let read = store.read()?;
    let room = tables_room::num(&read, room_id)?.unwrap_or_default();
    let mut state = HashSet::new();
    current_state::list_state(&read, room, None, StateCursor::default(), &mut |_, _, event| {
        state.insert(event);
        Ok(ControlFlow::Continue(()))
    })?;
    let mut rows = Vec::new();
    event::rows_down(&read, EventNum(u32::MAX - 1), &mut |event, row| {
        if row.room == room && (!only_state || state.contains(&event)) {
            rows.push(row);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    rows.sort_unstable_by_key(|row| row.body);
    Ok(rows)
}

/// Seconds of processor time for verifying as many signatures as the room has events, one by one, over messages of their size.
fn signatures_alone(profile: &str, events: u64) -> io::Result<f64> {
    use ed25519_dalek::{Signer, SigningKey};
    const SAMPLE: usize = 20_000;
    let dials = room::Dials::named(profile).ok_or_else(|| io::Error::other("no such room"))?;
    let rendered = Rendered::get(&lab::control::cache(), &dials)?;
    let key = SigningKey::from_bytes(&[7; 32]);
    let public = key.verifying_key();
    let rows = rendered.room.rows.len().min(SAMPLE) as u32;
    let mut signed = Vec::with_capacity(rows as usize);
    for row in 0..rows {
        let message = rendered.event(row)?;
        let signature = key.sign(&message);
        signed.push((message, signature));
    }
    let before = Usage::of_this_process().cpu;
    for (message, signature) in &signed {
        public.verify_strict(message, signature).map_err(io::Error::other)?;
    }
    let spent = Usage::of_this_process().cpu - before;
    Ok(spent * events as f64 / signed.len() as f64)
}

/// Two people in another room: one says something now and then, the other waits for it.
struct Chat {
    stop: Arc<AtomicBool>,
    sends: thread::JoinHandle<io::Result<Vec<f64>>>,
    syncs: thread::JoinHandle<io::Result<Vec<f64>>>,
}

struct Chatted {
    sends: Vec<f64>,
    syncs: Vec<f64>,
}

impl Chat {
    fn start(snug: &Snug) -> io::Result<Chat> {
        static CHATS: AtomicUsize = AtomicUsize::new(0);
        let nth = CHATS.fetch_add(1, Relaxed);
        let (mut bob, mut carol) = (snug.register(&format!("bob{nth}"))?, snug.register(&format!("carol{nth}"))?);
        let room = bob.create_room()?;
        carol.join(&room, drive::NAME)?.good("join")?;
        let since = carol.sync(None, 0)?["next_batch"].as_str().unwrap_or_default().to_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let (sending, waiting) = (stop.clone(), stop.clone());
        let sends = thread::spawn(move || -> io::Result<Vec<f64>> {
            let mut took = Vec::new();
            while !sending.load(Relaxed) {
                let began = Instant::now();
                bob.say(&room, &now_us().to_string())?;
                took.push(began.elapsed().as_secs_f64() * 1e3);
                thread::sleep(Duration::from_millis(40));
            }
            Ok(took)
        });
        let syncs = thread::spawn(move || wait_for_messages(&mut carol, since, &waiting));
        Ok(Chat { stop, sends, syncs })
    }

    fn stop(self) -> io::Result<Chatted> {
        self.stop.store(true, Relaxed);
        let failed = || io::Error::other("a chatting client failed");
        let mut sends = self.sends.join().map_err(|_| failed())??;
        let mut syncs = self.syncs.join().map_err(|_| failed())??;
        sends.sort_by(f64::total_cmp);
        syncs.sort_by(f64::total_cmp);
        Ok(Chatted { sends, syncs })
    }
}

/// Milliseconds from before each message was sent until it was seen.
fn wait_for_messages(person: &mut Person, mut since: String, stop: &AtomicBool) -> io::Result<Vec<f64>> {
    let mut took = Vec::new();
    while !stop.load(Relaxed) {
        let answer = person.sync(Some(&since), 500)?;
        let now = now_us();
        since = answer["next_batch"].as_str().unwrap_or_default().to_owned();
        for room in answer["rooms"]["join"].as_object().into_iter().flat_map(|rooms| rooms.values()) {
            for event in room["timeline"]["events"].as_array().into_iter().flatten() {
                if let Some(sent) = event["content"]["body"].as_str().and_then(|body| body.parse::<u64>().ok()) {
                    took.push(now.saturating_sub(sent) as f64 / 1e3);
                }
            }
        }
    }
    Ok(took)
}

fn now_us() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
