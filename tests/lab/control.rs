//! A resident in a process of its own, and the small plain-HTTP door through which a bench tells it what to do.

use super::certificates::Certificates;
use super::event::Version;
use super::push::{GuestJoin, Pushed, What};
use super::render::{Rendered, describe};
use super::resident::{Dials, Resident, lock};
use super::room;
use super::wire::{Client, Pipe, Target, read_request, write_json};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

pub const USAGE: &str = "\
A Matrix server that is already in a very large room, for loading another one.

    resident [--room NAME[:VERSION[:FAULTS]]]... [--listen ADDRESS] [--cache FOLDER] [--dials JSON]

NAME is xs, k1, m, s, hq or xl; VERSION 10, 11 or 12. Rooms are made once and kept in the cache folder, next to the certificate
authority a server under test has to trust. What it listens on is printed as one line of JSON; it ends with its standard input.
Dials: bytes_per_second, cut_at_percent, cuts, hang_at_percent, omit_members, deaf, hostile (giant-body, tiny-events, deep-nesting,
flood, missing-auth, drip, cut, wrong-type, endless-header, many-headers, repeated-field, silly-chunks, endless-space).
";

/// Where rooms and certificates are kept between runs: beside the build, so that cleaning the build cleans them too.
pub fn cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    target.join("lab")
}

/// `NAME[:VERSION[:FAULTS]]`
fn parse_room(text: &str) -> Option<room::Dials> {
    let mut words = text.split(':');
    let mut dials = room::Dials::named(words.next()?)?;
    if let Some(version) = words.next() {
        dials = dials.with_version(Version::from_name(version)?);
    }
    if let Some(faults) = words.next() {
        dials = dials.with_faults(faults.parse().ok()?);
    }
    Some(dials)
}

/// The whole program.
pub fn run(arguments: &[String]) -> io::Result<()> {
    let (mut rooms, mut listen, mut folder, mut dials) =
        (Vec::new(), "127.0.0.1:0".to_owned(), cache(), Dials::default());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value =
            || words.next().cloned().ok_or_else(|| io::Error::other(format!("{word} needs a value\n\n{USAGE}")));
        match word.as_str() {
            "--room" => {
                let text = value()?;
                rooms.push(
                    parse_room(&text)
                        .ok_or_else(|| io::Error::other(format!("no room is called {text}\n\n{USAGE}")))?,
                );
            }
            "--listen" => listen = value()?,
            "--cache" => folder = value()?.into(),
            "--dials" => dials = serde_json::from_str(&value()?)?,
            "--help" => {
                println!("{USAGE}");
                return Ok(());
            }
            other => return Err(io::Error::other(format!("{other} is not understood\n\n{USAGE}"))),
        }
    }
    if rooms.is_empty() {
        rooms.push(room::Dials::xs());
    }
    serve(&rooms, &listen, &folder, dials)
}

fn serve(rooms: &[room::Dials], listen: &str, folder: &Path, dials: Dials) -> io::Result<()> {
    let mut rendered = Vec::new();
    for dials in rooms {
        let room = Rendered::get(folder, dials)?;
        eprintln!("{}", describe(&room));
        rendered.push(room);
    }
    let about: Vec<Value> = rendered
        .iter()
        .map(|it| {
            json!({
                "name": it.room.dials.name, "room_id": it.room.room_id, "version": it.room.dials.version,
                "events": it.events(), "state": it.room.state().len(), "body_bytes": it.body_bytes(),
                "joined": it.joined_expected(), "folder": it.folder, "faults": it.room.faults,
            })
        })
        .collect();
    let certificates = Certificates::get(&folder.join("certificates"))?;
    let ca_file = certificates.ca_file.clone();
    let resident = Arc::new(Resident::start(listen, certificates, rendered, dials)?);
    let control = TcpListener::bind("127.0.0.1:0")?;
    println!(
        "{}",
        json!({
            "server_name": room::RESIDENT, "guest": room::GUEST, "port": resident.address.port(),
            "control": control.local_addr()?.port(), "ca_file": ca_file, "rooms": about,
        })
    );
    let serving = resident.clone();
    thread::spawn(move || {
        for socket in control.incoming().flatten() {
            let resident = serving.clone();
            thread::spawn(move || controlled(&resident, socket));
        }
    });
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn controlled(resident: &Resident, socket: TcpStream) -> Option<()> {
    let mut pipe: BufReader<Box<dyn Pipe>> = BufReader::new(Box::new(socket));
    while let Some(request) = read_request(&mut pipe).ok()? {
        let (status, body) = match command(resident, &request.target, &request.json()) {
            Ok(body) => (200, body),
            Err(error) => (500, json!({"error": error.to_string()})),
        };
        write_json(pipe.get_mut(), status, &body).ok()?;
    }
    Some(())
}

fn command(resident: &Resident, name: &str, body: &Value) -> io::Result<Value> {
    let text = |field: &str| body[field].as_str().unwrap_or_default();
    let number = |field: &str| body[field].as_u64().unwrap_or(0);
    match name {
        "/stats" => Ok(stats(resident)),
        "/dials" => {
            *lock(&resident.shared.dials) = serde_json::from_value(body.clone())?;
            Ok(json!({}))
        }
        "/meet" => resident.meet(text("name"), text("url")).map(|()| json!({})),
        "/push" => {
            let what: What = serde_json::from_value(body["what"].clone())?;
            Ok(serde_json::to_value(resident.shared.push(text("room"), what, number("count"), number("each"))?)?)
        }
        "/guest_join" => {
            let look = body["look"].as_bool().unwrap_or(false);
            Ok(serde_json::to_value(resident.shared.guest_join(text("room"), text("localpart"), look)?)?)
        }
        _ => Err(io::Error::other("no such command")),
    }
}

fn stats(resident: &Resident) -> Value {
    let stats = &resident.shared.stats;
    json!({
        "calls": *lock(&stats.calls),
        "body_sent": stats.body_sent.load(Relaxed),
        "body_total": stats.body_total.load(Relaxed),
        "cuts": stats.cuts.load(Relaxed),
        "signed": stats.signed.load(Relaxed),
        "forged": stats.forged.load(Relaxed),
        "events_taken": stats.events_taken.load(Relaxed),
        "complaints": *lock(&stats.complaints),
    })
}

/// A resident process, and the hand on its dials.
pub struct Process {
    child: Child,
    control: Client,
    pub port: u16,
    pub ca_file: PathBuf,
    pub about: Value,
}

impl Process {
    /// Starts this very program again as a resident; its `main` has to pass the arguments after `resident` to [`run`].
    pub fn start(rooms: &[String]) -> io::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("resident").stdin(Stdio::piped()).stdout(Stdio::piped());
        for room in rooms {
            command.args(["--room", room]);
        }
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
        let about: Value = serde_json::from_str(&line)?;
        let port = |name: &str| about[name].as_u64().unwrap_or(0) as u16;
        let target =
            Target { address: ([127, 0, 0, 1], port("control")).into(), host: "control".to_owned(), tls: None };
        Ok(Process {
            child,
            control: Client::new(target).with_timeout(Duration::from_secs(3600)),
            port: port("port"),
            ca_file: about["ca_file"].as_str().unwrap_or_default().into(),
            about,
        })
    }

    /// What the resident says of its `number`th room.
    pub fn room(&self, number: usize) -> &Value {
        &self.about["rooms"][number]
    }

    fn tell(&mut self, command: &str, body: &Value) -> io::Result<Value> {
        self.control.call("POST", command, &[], Some(body))?.good(command)
    }

    pub fn stats(&mut self) -> io::Result<Value> {
        self.tell("/stats", &json!({}))
    }

    pub fn set(&mut self, dials: &Dials) -> io::Result<()> {
        self.tell("/dials", &serde_json::to_value(dials)?).map(|_| ())
    }

    pub fn meet(&mut self, name: &str, url: &str) -> io::Result<()> {
        self.tell("/meet", &json!({"name": name, "url": url})).map(|_| ())
    }

    pub fn push(&mut self, room: &str, what: What, count: u64, each: u64) -> io::Result<Pushed> {
        let answer = self.tell("/push", &json!({"room": room, "what": what, "count": count, "each": each}))?;
        Ok(serde_json::from_value(answer)?)
    }

    pub fn guest_join(&mut self, room: &str, localpart: &str, look: bool) -> io::Result<GuestJoin> {
        let answer = self.tell("/guest_join", &json!({"room": room, "localpart": localpart, "look": look}))?;
        Ok(serde_json::from_value(answer)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
