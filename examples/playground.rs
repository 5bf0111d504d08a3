//! Two servers that federate, with three people in a room, to try an app or a change by hand.
//!
//! `cargo run --example playground`, and `cargo run --example playground -- --help`.

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use snug::base::{Clock, Random};
use snug::budget::{Budget, Profile};
use snug::client::{Options, Registration};
use snug::config::Config;
use snug::serve::{self, Server};

use lab::certificates::Certificates;
use lab::wire::{Client, Target, percent_encode};

/// The certificates of the lab are for these names.
const NAMES: [&str; 2] = ["one.load.test", "two.load.test"];
/// Name and server of each.
const PEOPLE: [(&str, usize); 3] = [("alice", 0), ("bob", 0), ("carol", 1)];
const PASSWORD: &str = "correct horse";
const PORT: u16 = 8101;
const BUDGET: &str = "pi-5";
/// How long the second server may take to show what was said on the first.
const PATIENCE: Duration = Duration::from_secs(30);

const HELP: &str = "Two Snug servers that federate with each other, and three people in one room.

cargo run --example playground -- [FOLDER] [--port PORT] [--log LEVEL]

FOLDER        where their data stays for the next time [default: a temporary folder, removed at the end]
--port PORT   the first of four ports on 127.0.0.1: two for apps, two between the servers [default: 8101]
--log LEVEL   what both servers log, as the setting `log` [default: warn]
Ctrl-C stops both in order.
";

struct Arguments {
    folder: Option<PathBuf>,
    port: u16,
    log: String,
}

fn main() {
    let arguments = match arguments() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return print!("{HELP}"),
        Err(wrong) => fail(&wrong),
    };
    let temporary = std::env::temp_dir().join(format!("snug-playground-{}", std::process::id()));
    let folder = arguments.folder.clone().unwrap_or_else(|| temporary.clone());
    let done = play(&arguments, &folder);
    if arguments.folder.is_none() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    if let Err(wrong) = done {
        fail(&wrong);
    }
}

fn fail(wrong: &str) -> ! {
    eprintln!("playground: {wrong}");
    std::process::exit(1)
}

fn arguments() -> Result<Option<Arguments>, String> {
    let mut arguments = Arguments { folder: None, port: PORT, log: "warn".to_owned() };
    let mut given = std::env::args().skip(1);
    while let Some(word) = given.next() {
        let mut value = || given.next().ok_or(format!("{word} needs a value; see --help"));
        match word.as_str() {
            "--help" | "-h" => return Ok(None),
            "--port" => {
                let port = value()?;
                let first = port.parse().ok().filter(|port: &u16| *port > 0 && *port < u16::MAX - 3);
                arguments.port = first.ok_or(format!("{port:?} is no port"))?;
            }
            "--log" => arguments.log = value()?,
            _ if word.starts_with('-') => return Err(format!("there is no {word}; see --help")),
            _ if arguments.folder.is_some() => return Err("one folder is enough; see --help".to_owned()),
            _ => arguments.folder = Some(PathBuf::from(word)),
        }
    }
    Ok(Some(arguments))
}

fn play(arguments: &Arguments, folder: &Path) -> Result<(), String> {
    let certificates = Certificates::get(&folder.join("certificates"))
        .map_err(|error| format!("{}: {error}", folder.join("certificates").display()))?;
    let configs = [0, 1].map(|nth| config(arguments, folder, &certificates, nth));
    serve::log::to_stderr(&arguments.log, false, snug::base::Clock::real())
        .map_err(|error| format!("--log: {error}"))?;
    let budget = || Budget::from_profile(Profile::get(BUDGET).expect("the shipped profiles add up"));
    let runtime = serve::runtime(&budget()).map_err(|error| error.to_string())?;
    let mut servers = Vec::new();
    for config in &configs {
        let server = runtime.block_on(async {
            let mut server = Server::build(config, Clock::real(), Random::os(), budget()).await?;
            server.open().await?;
            Ok::<_, serve::Failed>(server)
        });
        match server {
            Ok(server) => servers.push(server),
            Err(error) => {
                stop(&runtime, servers);
                return Err(format!("{error}; --port takes other ports, a folder is for one playground at a time"));
            }
        }
    }
    let told = Guests::new(&configs).furnish();
    let done = match &told {
        Ok(room) => {
            greet(&configs, folder, arguments.folder.is_none(), room);
            runtime.block_on(async { tokio::signal::ctrl_c().await.map_err(|error| error.to_string()) })
        }
        Err(error) => Err(error.to_string()),
    };
    println!("\nStopping …");
    stop(&runtime, servers);
    done
}

fn stop(runtime: &tokio::runtime::Runtime, servers: Vec<Server>) {
    for server in servers {
        runtime.block_on(server.stop());
    }
}

/// The settings of one of the two.
fn config(arguments: &Arguments, folder: &Path, certificates: &Certificates, nth: usize) -> Config {
    let address = |offset: usize| SocketAddr::from(([127, 0, 0, 1], arguments.port + offset as u16));
    let other = 1 - nth;
    let mut config = Config {
        server_name: NAMES[nth].try_into().expect("the names are valid"),
        data_dir: folder.join(NAMES[nth]),
        listen: vec![address(nth)],
        apps: Options { registration: Registration::Open, ..Options::default() },
        rate_limits: false,
        log: arguments.log.clone(),
        ..Config::default()
    };
    let federation = &mut config.federation;
    federation.enabled = true;
    federation.listen = vec![address(2 + nth)];
    federation.tls_certificate = Some(certificates.certificate_file.clone());
    federation.tls_private_key = Some(certificates.key_file.clone());
    federation.extra_ca_file = Some(certificates.ca_file.clone());
    federation.allow_private_addresses = true;
    federation.overrides = vec![(NAMES[other].to_owned(), address(2 + other).to_string())];
    config
}

fn greet(configs: &[Config; 2], folder: &Path, is_temporary: bool, room: &str) {
    println!("\nTwo servers run, and {room} has people of both. Log in with any Matrix app, such as Element:\n");
    println!("    {:<26} {:<10} password", "homeserver URL", "user name");
    for (name, nth) in PEOPLE {
        println!("    {:<26} {name:<10} {PASSWORD}", format!("http://{}", configs[nth].listen[0]));
    }
    println!("\nOr by hand:\n");
    println!(
        "    curl -d '{{\"type\":\"m.login.password\",\"user\":\"alice\",\"password\":\"{PASSWORD}\"}}' \\\n        http://{}/_matrix/client/v3/login\n",
        configs[0].listen[0]
    );
    println!("Commands beside them: snug rooms --data-dir {}", configs[0].data_dir.display());
    let stays = if is_temporary { "; it is removed at the end" } else { "" };
    println!("All data is in {}{stays}. Ctrl-C stops both.", folder.display());
}

/// The people, over the client-server API as apps use it.
struct Guests {
    servers: [Client; 2],
    tokens: Vec<String>,
}

impl Guests {
    fn new(configs: &[Config; 2]) -> Guests {
        let client = |config: &Config| {
            Client::new(Target { address: config.listen[0], host: config.listen[0].to_string(), tls: None })
        };
        Guests { servers: [client(&configs[0]), client(&configs[1])], tokens: Vec::new() }
    }

    /// Everybody is in the room and something was said. Where the folder is of an earlier time, all that is there already.
    fn furnish(mut self) -> io::Result<String> {
        let alias = format!("#playground:{}", NAMES[0]);
        for (name, nth) in PEOPLE {
            let token = self.enter(name, nth)?;
            self.tokens.push(token);
        }
        let path = format!("/directory/room/{}", percent_encode(&alias));
        if self.call(0, "GET", &path, None)?.0 == 200 {
            return Ok(alias);
        }
        let new = json!({ "preset": "public_chat", "name": "Playground", "room_alias_name": "playground" });
        let room = text(&self.good(0, "POST", "/createRoom", new)?, "room_id")?;
        let join = format!("/join/{}", percent_encode(&alias));
        self.good(1, "POST", &join, json!({}))?;
        self.good(2, "POST", &join, json!({}))?;
        let said =
            [(0, "Hello from the first server."), (1, "Hello, I am here too."), (2, "And I am on the second one.")];
        for (who, words) in said {
            self.say(who, &room, words)?;
        }
        self.wait_for(0, &room, said[2].1)?;
        Ok(alias)
    }

    /// Logs somebody in, or registers them the first time.
    fn enter(&mut self, name: &str, nth: usize) -> io::Result<String> {
        let login = json!({
            "type": "m.login.password", "identifier": { "type": "m.id.user", "user": name }, "password": PASSWORD,
            "device_id": "PLAYGROUND",
        });
        let path = "/_matrix/client/v3/login";
        let answer = self.servers[nth].call("POST", path, &[], Some(&login))?;
        if answer.status == 200 {
            return text(&answer.json(), "access_token");
        }
        let new = json!({
            "username": name, "password": PASSWORD, "device_id": "PLAYGROUND", "auth": { "type": "m.login.dummy" },
        });
        let answer = self.servers[nth].call("POST", "/_matrix/client/v3/register", &[], Some(&new))?;
        text(&answer.good("register")?, "access_token")
    }

    fn say(&mut self, who: usize, room: &str, words: &str) -> io::Result<()> {
        let path = format!("/rooms/{}/send/m.room.message/hello{who}", percent_encode(room));
        self.good(who, "PUT", &path, json!({ "msgtype": "m.text", "body": words })).map(drop)
    }

    /// Waits until a message is seen in a room.
    fn wait_for(&mut self, who: usize, room: &str, words: &str) -> io::Result<()> {
        let path = format!("/rooms/{}/messages?dir=b&limit=20", percent_encode(room));
        let begun = std::time::Instant::now();
        while begun.elapsed() < PATIENCE {
            let (_, page) = self.call(who, "GET", &path, None)?;
            let mut events = page["chunk"].as_array().into_iter().flatten();
            if events.any(|event| event["content"]["body"] == words) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(io::Error::other("what was said on the second server does not arrive on the first"))
    }

    fn good(&mut self, who: usize, method: &str, path: &str, body: Value) -> io::Result<Value> {
        match self.call(who, method, path, Some(body))? {
            (200, answer) => Ok(answer),
            (status, answer) => Err(io::Error::other(format!("{method} {path}: {status} {answer}"))),
        }
    }

    fn call(&mut self, who: usize, method: &str, path: &str, body: Option<Value>) -> io::Result<(u16, Value)> {
        let (authorization, path) = (format!("Bearer {}", self.tokens[who]), format!("/_matrix/client/v3{path}"));
        let server = &mut self.servers[PEOPLE[who].1];
        let answer = server.call(method, &path, &[("authorization", &authorization)], body.as_ref())?;
        Ok((answer.status, answer.json()))
    }
}

fn text(answer: &Value, field: &str) -> io::Result<String> {
    answer[field].as_str().map(ToOwned::to_owned).ok_or_else(|| io::Error::other(format!("no {field} in {answer}")))
}
