//! A real `snug` process under test: its folder, its memory cgroup, what the kernel says of it, and people who use it.

use super::certificates::Certificates;
use super::control;
use super::room::{GUEST, RESIDENT};
use super::wire::{Answer, Client, Target, percent_encode};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The name of the server under test; the lab's certificate covers it.
pub const NAME: &str = "snug.load.test";
/// How long a start may take: opening the database after a kill included.
const START: Duration = Duration::from_secs(300);

/// How to start the server.
#[derive(Clone, Debug)]
pub struct Setup {
    pub binary: PathBuf,
    pub budget: String,
    /// Bytes of the memory cgroup; none: no cgroup.
    pub cap: Option<u64>,
    /// Bytes of a file system of its own for its data; none: it lies in its folder. Gone when the process ends.
    pub disk: Option<u64>,
    /// Where the resident and its guest are found.
    pub resident_port: u16,
    pub log: String,
}

/// A running server and its folder.
pub struct Snug {
    setup: Setup,
    pub folder: PathBuf,
    child: Option<Child>,
    pub client: SocketAddr,
    pub federation: SocketAddr,
    cgroup: Option<Cgroup>,
}

impl Snug {
    /// Starts on a new folder under the load cache.
    pub fn start(setup: &Setup) -> io::Result<Snug> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Relaxed);
        let folder = control::cache().join(format!("snug-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let cgroup = setup.cap.and_then(|cap| Cgroup::new(&format!("snug-load-{}-{number}", std::process::id()), cap));
        let [client, federation] = free_addresses()?;
        let mut snug = Snug { setup: setup.clone(), folder, child: None, client, federation, cgroup };
        snug.write_config()?;
        if snug.cgroup.is_some() {
            snug.setup.binary = untouched(&snug.setup.binary, &snug.folder)?;
        }
        snug.run()?;
        Ok(snug)
    }

    fn write_config(&self) -> io::Result<()> {
        let certificates = Certificates::get(&control::cache().join("certificates"))?;
        let found = format!("127.0.0.1:{}", self.setup.resident_port);
        let config = format!(
            "server_name = \"{NAME}\"\nlisten = [\"{}\"]\ndata_dir = \"data\"\nbudget = \"{}\"\nregistration = \"open\"\nguests = true\n\
             rate_limits = false\nlog = \"{}\"\n\n[federation]\nlisten = [\"{}\"]\ntls_certificate = {:?}\n\
             tls_private_key = {:?}\nextra_ca_file = {:?}\nallow_private_addresses = true\nhourly_bytes_max = \"4 GiB\"\nnotaries = [\"{RESIDENT}\"]\n\n\
             [previews]\nprivate_hosts = [\"127.0.0.1\"]\n\n\
             [federation.overrides]\n\"{RESIDENT}\" = \"{found}\"\n\"{GUEST}\" = \"{found}\"\n",
            self.client,
            self.setup.budget,
            self.setup.log,
            self.federation,
            certificates.certificate_file,
            certificates.key_file,
            certificates.ca_file,
        );
        fs::write(self.folder.join("snug.toml"), config)
    }

    /// Starts the process, also again after [`Snug::kill`] or [`Snug::stop`], and waits until it answers.
    pub fn run(&mut self) -> io::Result<()> {
        let config = self.folder.join("snug.toml");
        let mut command = match (&self.cgroup, self.setup.disk) {
            (None, None) => Command::new(&self.setup.binary),
            (None, Some(bytes)) => {
                fs::create_dir_all(self.data())?;
                let mut shell = own_mounts();
                shell.arg(format!("mount -t tmpfs -o size={bytes} none \"$0\" && exec \"$@\""));
                shell.arg(self.data()).arg(&self.setup.binary);
                shell
            }
            (Some(cgroup), _) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
                shell.arg(cgroup.0.join("cgroup.procs")).arg(&self.setup.binary);
                shell
            }
        };
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log"))?;
        command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn()?);
        let began = Instant::now();
        while began.elapsed() < START {
            let mut client = self.anybody();
            if client.call("GET", "/_matrix/client/versions", &[], None).is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                return Err(io::Error::other(format!("the server ended ({status}):\n{}", self.log_tail())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(io::Error::other(format!("the server does not answer:\n{}", self.log_tail())))
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Its data folder as it sees it, whatever file system that is on.
    pub fn data_seen(&self) -> PathBuf {
        let data = fs::canonicalize(self.data()).unwrap_or_else(|_| self.data());
        Path::new(&format!("/proc/{}/root", self.pid())).join(data.strip_prefix("/").unwrap_or(&data))
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// How the process ended, when it did so by itself.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        Some(status.to_string())
    }

    /// What its log says from a place on; the place is moved to the end.
    pub fn log_since(&self, from: &mut u64) -> String {
        let mut new = Vec::new();
        let read = fs::File::open(self.folder.join("log")).and_then(|mut log| {
            log.seek(SeekFrom::Start(*from))?;
            log.read_to_end(&mut new)
        });
        *from += read.unwrap_or(0) as u64;
        String::from_utf8_lossy(&new).into_owned()
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> io::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        Command::new("kill").arg(child.id().to_string()).status()?;
        let began = Instant::now();
        while child.try_wait()?.is_none() {
            if began.elapsed() > Duration::from_secs(120) {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other("the server does not stop"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Whether the kernel keeps the process under its cap.
    pub fn is_capped(&self) -> bool {
        self.cgroup.is_some()
    }

    /// A connection of nobody in particular.
    pub fn anybody(&self) -> Client {
        Client::new(Target { address: self.client, host: NAME.to_owned(), tls: None })
    }

    /// Where the resident finds it.
    pub fn federation_url(&self) -> String {
        format!("https://{}", self.federation)
    }

    pub fn usage(&self) -> Usage {
        Usage::of(self.pid())
    }

    /// What it says of its memory, over the socket of the commands.
    pub fn budget(&self) -> io::Result<Value> {
        let mut socket = std::os::unix::net::UnixStream::connect(self.data_seen().join(snug::serve::SOCKET))?;
        socket.write_all(b"GET /budget HTTP/1.1\r\nhost: local\r\nconnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer)?;
        let body = memchr::memmem::find(&answer, b"\r\n\r\n").map_or(&[][..], |at| &answer[at + 4..]);
        Ok(serde_json::from_slice(body)?)
    }

    /// Lets [`Usage::peak`] begin anew, where the kernel allows it.
    pub fn reset_peak(&self) {
        // An older kernel refuses; the peak is then the one since the start, which is never less.
        let _ = fs::write(format!("/proc/{}/clear_refs", self.pid()), "5");
    }

    /// Bytes on disk that are really allocated.
    pub fn disk_bytes(&self) -> u64 {
        allocated(&self.data())
    }

    /// A new account.
    pub fn register(&self, name: &str) -> io::Result<Person> {
        let body = json!({"username": name, "password": "correct horse", "auth": {"type": "m.login.dummy"}});
        let answer = self.anybody().call("POST", "/_matrix/client/v3/register", &[], Some(&body))?.good("register")?;
        Ok(Person {
            client: self.anybody().with_timeout(Duration::from_secs(3600)),
            authorization: format!("Bearer {}", answer["access_token"].as_str().unwrap_or_default()),
            user_id: answer["user_id"].as_str().unwrap_or_default().to_owned(),
        })
    }
}

impl Drop for Snug {
    fn drop(&mut self) {
        self.kill();
        if std::env::var_os("SNUG_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A copy of the program whose pages are in no memory, so that the group of whoever runs it pays for its text.
fn untouched(binary: &Path, folder: &Path) -> io::Result<PathBuf> {
    let copy = folder.join("snug");
    fs::copy(binary, &copy)?;
    let file = fs::File::open(&copy)?;
    // Only what is on disk can be dropped.
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(copy)
}

/// A shell that may mount what nobody else sees; what it is to run follows.
fn own_mounts() -> Command {
    let mut shell = Command::new("unshare");
    shell.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    shell
}

/// Whether this machine lets us give a server a file system of its own.
fn can_mount() -> bool {
    let tried = own_mounts().arg("mount -t tmpfs -o size=1m none /tmp").output();
    tried.is_ok_and(|done| done.status.success())
}

/// The environment variable that names, with commas between them, what may be left out: `mounts` (tests that give a server
/// a file system of its own), `cgroups` (memory groups around the server in benchmarks).
pub const LEAVE_OUT: &str = "SNUG_TESTS_LEAVE_OUT";

/// Whether a test that gives a server a file system of its own can run. Where it cannot, the test fails, unless
/// [`LEAVE_OUT`] names `mounts`: then a line that the harness does not hold back says what did not run.
#[track_caller]
pub fn can_mount_or_leave_out(test: &str) -> bool {
    if can_mount() {
        return true;
    }
    let missing = "this machine lets no user mount a file system (`unshare --user --map-root-user --mount`)";
    assert!(
        may_leave_out("mounts"),
        "{test} did not run: {missing}. Run it as root, or leave it out: {LEAVE_OUT}=mounts cargo test"
    );
    // Straight to the terminal: what `eprintln!` writes is kept back for a test that passes.
    let _ = writeln!(io::stderr(), "\nNOT RUN: {test}: {missing}\n");
    false
}

/// Whether [`LEAVE_OUT`] names this.
pub fn may_leave_out(what: &str) -> bool {
    names(&std::env::var(LEAVE_OUT).unwrap_or_default(), what)
}

fn names(list: &str, what: &str) -> bool {
    list.split(',').any(|name| name.trim() == what)
}

/// Two, on a loopback address of this process: connections of others, which come from 127.0.0.1, cannot take the ports before they
/// are listened on.
fn free_addresses() -> io::Result<[SocketAddr; 2]> {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let open = || TcpListener::bind((Ipv4Addr::new(127, 64 | high & 63, middle, low), 0));
    let (one, other) = (open()?, open()?);
    Ok([one.local_addr()?, other.local_addr()?])
}

fn allocated(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    let size = |entry: &fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => allocated(&entry.path()),
        Ok(about) => about.blocks() * 512,
        Err(_) => 0,
    };
    entries.iter().map(size).sum()
}

/// Bytes on disk of a stopped server's database alone.
pub fn database_bytes(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |about| about.blocks() * 512)
}

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Bytes of resident memory now, and at most so far.
    pub resident: u64,
    pub peak: u64,
    /// Of the memory now: pages of the program file.
    pub file: u64,
    /// Seconds of processor time, user and system.
    pub cpu: f64,
    /// Of it: the thread that owns all writing.
    pub writer_cpu: f64,
    /// Bytes it made the kernel write to disk.
    pub written: u64,
    /// Times its threads were taken from a processor, by waiting or by force; threads that ended are not counted.
    pub switches: u64,
}

impl Usage {
    pub fn of_this_process() -> Usage {
        Usage::of(std::process::id())
    }

    fn of(pid: u32) -> Usage {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        let written = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let written = written.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
        let mut usage = Usage {
            resident: field("VmRSS:").unwrap_or(0),
            peak: field("VmHWM:").unwrap_or(0),
            file: field("RssFile:").unwrap_or(0),
            cpu: processor_seconds(Path::new(&format!("/proc/{pid}"))),
            written: written.unwrap_or(0),
            ..Usage::default()
        };
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let switches = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
            usage.switches += switches.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum::<u64>();
            if status.starts_with("Name:\tsnug-writer\n") {
                usage.writer_cpu = processor_seconds(&task.path());
            }
        }
        usage
    }
}

/// What a process or a thread has used.
fn processor_seconds(folder: &Path) -> f64 {
    let stat = fs::read_to_string(folder.join("stat")).unwrap_or_default();
    // Behind the name, which may hold spaces: field 14 and 15 of the whole are 12 and 13 here; ticks are 10 ms.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// A memory cgroup with a hard limit and no swap, where this machine lets us make one.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str, cap: u64) -> Option<Cgroup> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let first = own.lines().find_map(|line| {
            let mut words = line.splitn(3, ':').skip(1);
            words.next()?.split(',').any(|controller| controller == "memory").then(|| words.next())?
        });
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let places = match first {
            Some(own) => [v1.join(own.trim_start_matches('/')), v1.to_owned()],
            None => {
                let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
                [Path::new("/sys/fs/cgroup").join(own), "/sys/fs/cgroup".into()]
            }
        };
        let limit = if first.is_some() { "memory.limit_in_bytes" } else { "memory.max" };
        let no_swap = if first.is_some() { ("memory.swappiness", "0") } else { ("memory.swap.max", "0") };
        places.iter().filter(|place| place.exists()).find_map(|place| {
            let group = Cgroup(place.join(name));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(limit), cap.to_string()).ok()?;
            // A machine without swap has no such file; then there is nothing to forbid.
            let _ = fs::write(group.0.join(no_swap.0), no_swap.1);
            Some(group)
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Somebody with an account.
pub struct Person {
    client: Client,
    pub authorization: String,
    pub user_id: String,
}

impl Person {
    /// The same person on another connection.
    pub fn again(&self, snug: &Snug) -> Person {
        Person {
            client: snug.anybody().with_timeout(Duration::from_secs(3600)),
            authorization: self.authorization.clone(),
            user_id: self.user_id.clone(),
        }
    }

    /// Any answer.
    pub fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
        let authorization = self.authorization.clone();
        self.client.call(method, path, &[("authorization", &authorization)], body)
    }

    /// A good answer.
    pub fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Value> {
        self.ask(method, path, body)?.good(path)
    }

    /// A long answer, handed on as it comes; bytes and status.
    pub fn stream(&mut self, path: &str, piece: &mut dyn FnMut(&[u8])) -> io::Result<(u16, u64)> {
        self.stream_to("GET", path, None, piece)
    }

    /// The same with a body.
    pub fn stream_to(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        piece: &mut dyn FnMut(&[u8]),
    ) -> io::Result<(u16, u64)> {
        let authorization = self.authorization.clone();
        let body = body.map(Value::to_string);
        let mut bytes = 0;
        let (status, _) = self.client.stream(
            method,
            path,
            &[("authorization", &authorization)],
            body.as_deref().map(str::as_bytes),
            &mut |some| {
                bytes += some.len() as u64;
                piece(some);
            },
        )?;
        Ok((status, bytes))
    }

    /// Uploads a file; its server and media id with a slash between.
    pub fn upload(&mut self, content_type: &str, bytes: &[u8]) -> io::Result<String> {
        let authorization = self.authorization.clone();
        let headers = [("authorization", authorization.as_str()), ("content-type", content_type)];
        let mut answer = Vec::new();
        let path = "/_matrix/media/v3/upload";
        let (status, _) =
            self.client.stream("POST", path, &headers, Some(bytes), &mut |some| answer.extend_from_slice(some))?;
        let made: Value = serde_json::from_slice(&answer).unwrap_or_default();
        match made["content_uri"].as_str().and_then(|uri| uri.strip_prefix("mxc://")) {
            Some(id) => Ok(id.to_owned()),
            None => Err(io::Error::other(format!("an upload: {status}"))),
        }
    }

    pub fn create_room(&mut self) -> io::Result<String> {
        let answer = self.call("POST", "/_matrix/client/v3/createRoom", Some(&json!({"preset": "public_chat"})))?;
        Ok(answer["room_id"].as_str().unwrap_or_default().to_owned())
    }

    pub fn join(&mut self, room: &str, via: &str) -> io::Result<Answer> {
        let path = format!("/_matrix/client/v3/join/{}?via={via}", percent_encode(room));
        self.ask("POST", &path, Some(&json!({})))
    }

    pub fn say(&mut self, room: &str, text: &str) -> io::Result<Value> {
        let txn = control_number();
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{txn}", percent_encode(room));
        self.call("PUT", &path, Some(&json!({"msgtype": "m.text", "body": text})))
    }

    pub fn sync(&mut self, since: Option<&str>, timeout_ms: u64) -> io::Result<Value> {
        let mut path = format!("/_matrix/client/v3/sync?timeout={timeout_ms}&filter={LAZY}");
        if let Some(since) = since {
            path += &format!("&since={}", percent_encode(since));
        }
        self.call("GET", &path, None)
    }
}

/// Sliding sync as apps call it.
pub const SLIDING_SYNC: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

/// `{"room":{"state":{"lazy_load_members":true}}}`
const LAZY: &str = "%7B%22room%22%3A%7B%22state%22%3A%7B%22lazy_load_members%22%3Atrue%7D%7D%7D";

fn control_number() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// Adds up what a stream of client events holds: how many events, and a sum of their ids that does not depend on the order.
#[derive(Default)]
pub struct EventIds {
    pub count: u64,
    pub digest: u64,
    window: Vec<u8>,
}

impl EventIds {
    const MARK: &'static [u8] = b"\"event_id\":\"";

    pub fn take(&mut self, piece: &[u8]) {
        self.window.extend_from_slice(piece);
        let mut from = 0;
        while let Some(at) = memchr::memmem::find(&self.window[from..], Self::MARK) {
            let start = from + at + Self::MARK.len();
            let Some(length) = self.window[start..].iter().position(|&byte| byte == b'"') else {
                from += at;
                self.window.drain(..from);
                return;
            };
            self.note(start, length);
            from = start + length;
        }
        let keep = self.window.len().saturating_sub(Self::MARK.len()).max(from);
        self.window.drain(..keep);
    }

    fn note(&mut self, start: usize, length: usize) {
        // FNV-1a: a fingerprint for comparing two runs, nothing more.
        let id = &self.window[start..start + length];
        let hash = id
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        self.count += 1;
        self.digest = self.digest.wrapping_add(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn only_what_is_named_is_left_out() {
        assert!(names("mounts", "mounts") && names("a, mounts", "mounts"));
        assert!(!names("", "mounts") && !names("mountsx,1", "mounts"));
    }
}
