//! The program as people start it: the first minute, the commands beside a running server and a stopped one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::lab::certificates::Certificates;
use crate::server::{Folder, free_port};

/// A running program with a folder of its own.
struct Running {
    child: Child,
    address: String,
    /// What it printed until it was open.
    said: String,
}

fn snug(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snug"));
    command.current_dir(folder).stdin(Stdio::null());
    command
}

fn start(folder: &Path) -> Running {
    start_with(folder, &["--listen", "127.0.0.1:0", "--budget", "pi-zero-2w"])
}

fn start_with(folder: &Path, arguments: &[&str]) -> Running {
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let mut child = snug(folder).args(arguments).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let (mut said, mut lines) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
    // The last line of a first start is the command; of a later one, where it is open.
    while !(said.contains("user add NAME") || said.contains("http://localhost:") && folder.join("later").exists()) {
        assert_ne!(lines.read_line(&mut said).unwrap(), 0, "the server says where it is open: {said}");
    }
    let address = said.split("http://localhost:").nth(1).unwrap();
    let port: String = address.chars().take_while(char::is_ascii_digit).collect();
    Running { child, address: format!("127.0.0.1:{port}"), said }
}

impl Running {
    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// As systemd stops it.
    fn stop(mut self) {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        assert!(self.child.wait().unwrap().success());
    }
}

pub fn run(folder: &Path, arguments: &[&str], stdin: &str) -> Output {
    // An account begins a server only where nobody listens; of two tests that look at one port at once, one finds it taken.
    let adds = arguments.starts_with(&["user", "add"]) && !arguments.contains(&"--listen");
    let mut child = snug(folder)
        .args(arguments)
        .args(if adds { &["--listen", "127.0.0.1:0"][..] } else { &[] })
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early is gone before it is told anything.
    let told = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    assert!(told.is_ok() || told.is_err_and(|failed| failed.kind() == std::io::ErrorKind::BrokenPipe));
    child.wait_with_output().unwrap()
}

#[track_caller]
pub fn good(folder: &Path, arguments: &[&str], stdin: &str) -> String {
    let done = run(folder, arguments, stdin);
    let (said, wrong) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{arguments:?}: {said}{wrong}");
    said.into_owned()
}

/// What it says on stderr and stdout, when it fails.
#[track_caller]
fn bad(folder: &Path, arguments: &[&str], stdin: &str) -> String {
    let done = run(folder, arguments, stdin);
    let said = [done.stderr, done.stdout].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(done.status.code(), Some(1), "{arguments:?}: {said}");
    said
}

#[test]
fn the_first_minute() {
    let folder = Folder::new();
    let folder = folder.path();
    let server = start(folder);
    assert!(folder.join("snug-data/snug.toml").exists());
    let answer = server.ask("GET /_matrix/client/versions HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");

    // The link in the greeting is a page with a form, whose answer is an account.
    let link = server.said.split_whitespace().find(|word| word.contains("/_snug/first/")).unwrap();
    let path = &link[link.find("/_snug").unwrap()..];
    let page = server.ask(&format!("GET {path} HTTP/1.0\r\n\r\n"));
    let loads = |page: &str| ["src=", "url(", "@import", "href=\"http"].iter().any(|word| page.contains(word));
    assert!(page.contains("<form method=\"post\">") && !loads(&page), "{page}");
    let post = |path: &str, form: &str| {
        let kind = "application/x-www-form-urlencoded";
        let head = format!("POST {path} HTTP/1.0\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", form.len());
        server.ask(&(head + form))
    };
    let wrong = post("/_snug/first/AAAA", "name=alice&password=correct+horse&again=correct+horse");
    assert!(wrong.starts_with("HTTP/1.0 403"), "{wrong}");
    let wrong = post(path, "name=alice&password=correct+horse&again=correct+house");
    assert!(wrong.contains("not the same"), "{wrong}");
    let done = post(path, "name=alice&password=correct+horse&again=correct+horse");
    assert!(done.contains("@alice:localhost"), "{done}");
    let gone = post(path, "name=eve&password=correct+horse&again=correct+horse");
    assert!(gone.starts_with("HTTP/1.0 410"), "{gone}");

    // The commands, beside the running server and on the stopped one.
    let listed = good(folder, &["user", "list"], "");
    assert!(listed.contains("@alice:localhost") && listed.contains("administrator"), "{listed}");
    let made = good(folder, &["user", "add", "bob"], "a good password\n");
    assert!(made.contains("@bob:localhost was made") && !made.contains("No account here"), "{made}");
    let taken = run(folder, &["user", "add", "bob"], "a good password\n");
    assert!(!taken.status.success() && String::from_utf8_lossy(&taken.stderr).contains("taken"));
    assert!(good(folder, &["budget"], "").contains("resident at most"));
    // The file that the first start wrote says nothing that is not in force.
    let again = good(folder, &["reload"], "");
    assert!(!again.contains("next start"), "{again}");

    // What is reported waits for the administrator.
    let asks = |path: &str, head: &str, body: &str| {
        let head = format!("POST {path} HTTP/1.0\r\n{head}content-length: {}\r\n\r\n", body.len());
        server.ask(&(head + body))
    };
    let login =
        r#"{"type":"m.login.password","identifier":{"type":"m.id.user","user":"bob"},"password":"a good password"}"#;
    let login = asks("/_matrix/client/v3/login", "", login);
    let token = login.split("\"access_token\":\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(good(folder, &["reports"], ""), "Nothing was reported.\n");
    for _ in 0..5 {
        let head = format!("authorization: Bearer {token}\r\n");
        let done = asks("/_matrix/client/v3/users/@alice:localhost/report", &head, r#"{"reason":"rude\u001b[2J"}"#);
        assert!(done.starts_with("HTTP/1.0 200"), "{done}");
    }
    let reports = good(folder, &["reports"], "");
    let said = "@bob:localhost reports the user @alice:localhost\n       reason: rude [2J\n";
    assert_eq!(reports.matches(said).count(), 5, "{reports}");
    assert_eq!(good(folder, &["reports", "remove", "2"], ""), "1 report removed.\n");
    assert!(bad(folder, &["reports", "remove", "2"], "").contains("no such report"));
    assert_eq!(good(folder, &["reports", "remove", "--all"], ""), "4 reports removed.\n");

    assert!(good(folder, &["user", "suspend", "bob"], "").contains("@bob:localhost is suspended"));
    assert!(good(folder, &["user", "list"], "").contains(" suspended "));
    assert!(good(folder, &["user", "lock", "bob"], "").contains("@bob:localhost is locked"));
    assert!(good(folder, &["user", "list"], "").contains(" locked "));
    assert!(good(folder, &["user", "unlock", "bob"], "").contains("not locked"));
    assert!(good(folder, &["user", "unsuspend", "bob"], "").contains("not suspended"));
    assert!(good(folder, &["notice", "bob", "The cellar is wet."], "").contains("@bob:localhost was told"));
    assert!(good(folder, &["notice", "--all", "-"], "It is dry again.\n").contains("2 users were told"));
    assert!(bad(folder, &["notice", "nobody", "Hello"], "").contains("no such account"));
    assert!(bad(folder, &["notice", "Hello"], "").contains("--all"));
    assert!(bad(folder, &["notice", "notices", "Hello"], "").contains("told nothing"));
    let other = good(folder, &["budget", "--budget", "pi-5"], "");
    assert!(other.contains("512.00 MiB") && !other.contains("resident at most"), "{other}");
    assert!(!other.contains("high water"), "no server runs with it: {other}");
    good(folder, &["rooms"], "");
    let workers = good(folder, &["workers"], "");
    assert!(workers.contains("federation sender ") && workers.contains("state sweep "), "{workers}");
    assert!(bad(folder, &["rooms", "cancel", "!no:b.example"], "").contains("no join of !no:b.example is under way"));
    assert!(bad(folder, &["compact"], "").contains("the server is running: stop it first"));
    // It looked at the addresses of the config, not at those in use, and not at a changed name.
    let said = bad(folder, &["check", "--server-name", "other.localhost"], "");
    assert!(said.contains(&format!("{} is open.", server.address)), "{said}");
    assert!(said.contains("The running server is localhost, and the config says other.localhost"), "{said}");
    assert!(said.contains("The config says 127.0.0.1:8008, and the server does not listen there"), "{said}");
    server.stop();
    assert!(bad(folder, &["workers"], "").contains("the server is not running"));
    assert!(good(folder, &["compact"], "").contains("The database took "));
    assert!(good(folder, &["user", "add", "carol"], "\n").contains("The password is "));
    good(folder, &["user", "admin", "carol"], "");
    good(folder, &["user", "password", "carol"], "another password\n");
    good(folder, &["user", "deactivate", "@bob:localhost", "--yes"], "");
    let listed = good(folder, &["user", "list"], "");
    let of = |name: &str| listed.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(of("@carol:").contains("administrator") && of("@bob:").contains("deactivated"), "{listed}");
    assert!(good(folder, &["budget", "--budget", "pi-zero-2w"], "").contains("48.00 MiB"));

    // A second start greets without a link, since there is an account.
    std::fs::write(folder.join("later"), "").unwrap();
    let server = start(folder);
    assert!(!server.said.contains("/_snug/first/"), "{}", server.said);
    server.stop();
}

/// What `snug check` says of a server for others: line by line, and how many things are wrong.
fn checked(folder: &Path) -> (String, bool) {
    let done = run(folder, &["check", "--config", "snug.toml"], "");
    (String::from_utf8_lossy(&done.stdout).into_owned(), done.status.success())
}

/// The settings of a server for others, in a closed network of its own.
fn closed_network(folder: &Path, name: &str, certificates: &Certificates, ports: [u16; 2]) -> String {
    let path = |path: &Path| path.display().to_string();
    let text = format!(
        "server_name = \"{name}\"\ndata_dir = \"{}\"\nlisten = [\"127.0.0.1:{}\"]\nbudget = \"pi-zero-2w\"\n\n[federation]\n\
         listen = [\"127.0.0.1:{}\"]\ntls_certificate = \"{}\"\ntls_private_key = \"{}\"\nextra_ca_file = \"{}\"\n\
         allow_private_addresses = true\noverrides = {{ \"snug.load.test\" = \"127.0.0.1:{}\", \"other.lan\" = \"127.0.0.1:{}\" }}\n",
        path(&folder.join(name)),
        ports[0],
        ports[1],
        path(&certificates.certificate_file),
        path(&certificates.key_file),
        path(&certificates.ca_file),
        ports[1],
        ports[1],
    );
    std::fs::write(folder.join("snug.toml"), &text).unwrap();
    text
}

#[test]
fn a_check_tells_a_newcomer_what_others_will_find() {
    let folder = Folder::new();
    let folder = folder.path();
    let (certificates, ports) = (Certificates::get(&folder.join("certificates")).unwrap(), [free_port(), free_port()]);
    let text = closed_network(folder, "snug.load.test", &certificates, ports);
    let has =
        |said: &str, line: &str| assert!(said.lines().any(|said| said.starts_with(line)), "no {line:?} in\n{said}");
    let (here, there) = (format!("127.0.0.1:{}", ports[0]), format!("127.0.0.1:{}", ports[1]));

    // Before the first start.
    let (said, good) = checked(folder);
    assert!(good && said.ends_with("\nNothing is wrong.\n"), "{said}");
    has(&said, "ok    The memory budget pi-zero-2w adds up: 48.00 MiB at most.");
    has(&said, "ok    The certificate of [federation] is valid until ");
    has(&said, "note  The server is not running.");
    has(&said, &format!("ok    {here} is free."));
    has(&said, &format!("ok    {there} is free."));
    has(&said, &format!("ok    Other servers look for snug.load.test at {there} as snug.load.test."));
    has(&said, "ok    The certificate of [federation] is for snug.load.test.");
    has(&said, "note  Start the server to check whether they can reach it.");

    // Beside the running server.
    let server = start_with(folder, &["serve", "--config", "snug.toml"]);
    let (said, good) = checked(folder);
    assert!(good, "{said}");
    has(&said, "ok    The signing key is ed25519:");
    has(&said, "note  The server is running.");
    has(&said, &format!("ok    {there} is open."));
    has(&said, "ok    This server can be reached in the way other servers reach it.");
    has(&said, &format!("note  Only this machine reaches it, at http://localhost:{}. To let other machines", ports[0]));
    assert!(said.contains("There is no account yet.") && said.contains("/_snug/first/"), "{said}");
    let wrong_port =
        text.replace(&format!("listen = [\"{there}\"]"), &format!("listen = [\"127.0.0.1:{}\"]", free_port()));
    std::fs::write(folder.join("snug.toml"), wrong_port).unwrap();
    let (said, good) = checked(folder);
    assert!(!good && said.ends_with("\nOne thing is wrong.\n"), "{said}");
    assert!(said.contains(", and the server does not listen there: it was started with other settings."), "{said}");
    server.stop();

    // A name the certificate is not for, one that cannot be found, and a port that is taken.
    closed_network(folder, "other.lan", &certificates, ports);
    let (said, good) = checked(folder);
    assert!(!good, "{said}");
    has(&said, "BAD   The certificate of [federation] is not for other.lan, the name that other servers require.");
    closed_network(folder, "nowhere.invalid", &certificates, ports);
    let taken = std::net::TcpListener::bind(&there).unwrap();
    let (said, good) = checked(folder);
    assert!(!good && said.ends_with("\n2 things are wrong.\n"), "{said}");
    has(&said, &format!("BAD   {there} is in use by another program."));
    has(&said, "BAD   Other servers cannot find nowhere.invalid: it cannot be reached: ");
    assert!(
        said.contains("It needs an address in the DNS, or a file https://nowhere.invalid/.well-known/matrix/server")
    );
    drop(taken);

    // A certificate that nobody has renewed.
    let old = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["snug.load.test".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2019, 1, 1), rcgen::date_time_ymd(2020, 3, 1));
    std::fs::write(&certificates.certificate_file, params.self_signed(&old).unwrap().pem()).unwrap();
    std::fs::write(&certificates.key_file, old.serialize_pem()).unwrap();
    closed_network(folder, "snug.load.test", &certificates, ports);
    let (said, good) = checked(folder);
    assert!(!good, "{said}");
    has(&said, "BAD   The certificate of [federation] ended on 2020-03-01.");
    std::fs::remove_file(&certificates.key_file).unwrap();
    let (said, _) = checked(folder);
    has(&said, "BAD   The certificate of [federation] cannot be used: ");
}

#[test]
fn what_is_wrong_is_said() {
    let folder = Folder::new();
    let folder = folder.path();
    std::fs::write(folder.join("wrong.toml"), "server_name = \"localhost\"\nregistratoin = \"open\"\n").unwrap();
    let done = run(folder, &["serve", "--config", "wrong.toml"], "");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(said, "snug: wrong.toml:2: registratoin: there is no such setting; the nearest is registration\n");
    let done = run(folder, &["check", "--config", "wrong.toml"], "");
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stdout).contains("One thing is wrong"));
    assert!(bad(folder, &["rooms", "allow", "big"], "").contains("\"big\" is not a room ID"));
    let missing =
        "server_name = \"localhost\"\n[federation]\ntls_certificate = \"no.pem\"\ntls_private_key = \"no.key\"\n";
    std::fs::write(folder.join("missing.toml"), missing).unwrap();
    let said = bad(folder, &["serve", "--config", "missing.toml", "--listen", "127.0.0.1:0"], "");
    assert!(
        said.contains("snug: federation.tls_certificate and federation.tls_private_key: no.pem: No such file"),
        "{said}"
    );
    let done = run(folder, &["serve", "--budget", "enormous"], "");
    assert!(String::from_utf8_lossy(&done.stderr).contains("known budgets are router-32"));
    assert!(good(folder, &["sample-config"], "").contains("# server_name = "));
}

/// A config that another user may not look at counted as missing, so a command worked on a new server of its own, and said
/// that all went well. Here it is a link to itself, which stops root too.
#[test]
fn a_config_that_cannot_be_looked_at_is_not_missing() {
    let folder = Folder::new();
    let folder = folder.path();
    std::fs::create_dir(folder.join("snug-data")).unwrap();
    symlink("snug.toml", folder.join("snug-data/snug.toml")).unwrap();
    for command in [&["user", "add", "bob"][..], &["user", "list"], &["rooms"], &["budget"], &["check"], &["serve"]] {
        let said = bad(folder, command, "a good password\n");
        assert!(said.contains("snug-data/snug.toml: ") && !said.contains("was made"), "{said}");
    }
    assert!(!folder.join("snug-data/database").exists());
}

/// A command in the wrong folder made a new server there and showed its empty lists.
#[test]
fn only_serve_and_user_add_begin_a_server() {
    let folder = Folder::new();
    let folder = folder.path();
    for command in [&["user", "list"][..], &["user", "password", "bob"], &["rooms"], &["compact"]] {
        let said = bad(folder, command, "a good password\n");
        assert!(said.contains("no server has its data in snug-data"), "{said}");
    }
    assert!(!folder.join("snug-data").exists());
    let said = good(folder, &["user", "add", "bob"], "a good password\n");
    assert!(said.contains("A new server was begun in snug-data, with the name localhost."), "{said}");
    assert!(!good(folder, &["user", "add", "eve"], "a good password\n").contains("A new server"));
}

/// In a folder without data it began another server, beside the one that was meant.
#[test]
fn an_account_is_not_added_to_a_new_server_beside_one_that_runs() {
    let (one, other) = (Folder::new(), Folder::new());
    let server = start(one.path());
    let add = ["user", "add", "bob", "--listen", &server.address];
    let said = bad(other.path(), &add, "a good password\n");
    assert!(said.contains("is in use: a server seems to run with another folder"), "{said}");
    assert!(!other.path().join("snug-data").exists());
    server.stop();
}

/// It closed any account at once, the last administrator's too.
#[test]
fn an_account_is_closed_only_after_a_question() {
    let folder = Folder::new();
    let folder = folder.path();
    good(folder, &["user", "add", "Anna", "--admin"], "a good password\n");
    good(folder, &["user", "add", "bob"], "a good password\n");
    assert!(bad(folder, &["user", "add", "eve"], "short\n").contains("at least 8 characters"));
    assert!(bad(folder, &["user", "password", "bob"], "short\n").contains("at least 8 characters"));
    let said = bad(folder, &["user", "deactivate", "bob"], "\n");
    assert!(said.contains("@bob:localhost leaves every room") && said.contains("nothing was done"), "{said}");
    assert!(good(folder, &["user", "deactivate", "Bob"], "yes\n").contains("@bob:localhost is closed for good."));
    assert!(bad(folder, &["user", "deactivate", "bob", "--yes"], "").contains("is closed already"));
    assert!(bad(folder, &["user", "deactivate", "anna", "--yes"], "").contains("is the last administrator"));
    good(folder, &["user", "deactivate", "anna", "--yes", "--force"], "");
}

#[test]
fn an_empty_list_says_so() {
    let folder = Folder::new();
    let server = start(folder.path());
    assert!(good(folder.path(), &["user", "list"], "").starts_with("There is no account yet."));
    assert_eq!(good(folder.path(), &["rooms"], ""), "No room is known here.\n");
    server.stop();
}

/// The name could be changed beside old accounts: nobody could log in any more, and no room was left.
#[test]
fn a_server_with_accounts_keeps_its_name() {
    let folder = Folder::new();
    let folder = folder.path();
    bad(folder, &["user", "add", "no good name", "--server-name", "try.example"], "a good password\n");
    // Nothing has the name yet.
    good(folder, &["user", "add", "alice", "--server-name", "one.example"], "a good password\n");
    for command in [&["user", "list"][..], &["serve"]] {
        let said = bad(folder, &[command, &["--server-name", "two.example"]].concat(), "");
        assert!(said.contains("the server name is two.example, but the data in snug-data is one.example's"), "{said}");
    }
    // `check` found nothing wrong with it.
    let said = bad(folder, &["check", "--listen", "127.0.0.1:0", "--server-name", "two.example"], "");
    assert!(said.contains("BAD   `snug serve` would not start: the server name is two.example"), "{said}");
    assert!(good(folder, &["user", "list", "--server-name", "one.example"], "").contains("@alice:one.example"));
}

/// `snug serve 2>&1 | head -1` ended the server with the next line that it had to say.
#[test]
fn a_server_outlives_whoever_reads_what_it_says() {
    let folder = Folder::new();
    let mut child = snug(folder.path())
        .args(["serve", "--listen", "127.0.0.1:0", "--budget", "pi-zero-2w"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut said, mut lines) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
    while !said.contains("http://localhost:") {
        assert_ne!(lines.read_line(&mut said).unwrap(), 0, "the server says where it is open: {said}");
    }
    drop((child.stderr.take(), lines));
    let port = said.split("http://localhost:").nth(1).unwrap().trim().to_owned();
    let running = Running { child, address: format!("127.0.0.1:{port}"), said };
    let answer = running.ask("GET /_matrix/client/versions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    running.stop();
}

/// A command run as root on a stopped server left files that the server could not write afterwards.
/// A file whose pages were lost said so with a panic's message, or the server died when somebody asked.
#[test]
fn a_damaged_database_is_said_in_sentences_and_what_can_be_read_is_counted() {
    const PAGE: usize = 4096;
    let folder = Folder::new();
    let data = folder.path().join("snug-data");
    for name in ["alice", "bob"] {
        good(folder.path(), &["user", "add", name], "correct horse battery\n");
    }
    let whole = good(folder.path(), &["check", "--database"], "");
    assert!(whole.contains("ok    account: 2 rows") && whole.contains("Nothing is wrong"), "{whole}");
    let file = data.join("database");
    let bytes = std::fs::read(&file).unwrap();
    // All pages with account rows, also those that are free by now.
    let mut hurt = bytes.clone();
    for (at, page) in bytes.chunks(PAGE).enumerate() {
        if page.windows(12).any(|window| window == b"created_ms\":") && page[0] == 1 {
            hurt[at * PAGE + 4..(at + 1) * PAGE].fill(0xff);
        }
    }
    assert!(hurt != bytes);
    std::fs::write(&file, &hurt).unwrap();
    let said = bad(folder.path(), &["check", "--database"], "");
    assert!(said.contains("BAD   account: 2 rows cannot be read, 0 can"), "{said}");
    assert!(said.contains("Restore the whole data folder from a backup") && !said.contains("panicked"), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), hurt, "a look changes nothing");
    // What needs the page fails, and nothing else does.
    std::fs::write(folder.path().join("later"), "").unwrap();
    let running = start(folder.path());
    let login = r#"{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":"x"}"#;
    let length = login.len();
    let head = "HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    for _ in 0..2 {
        let answer =
            running.ask(&format!("POST /_matrix/client/v3/login {head}content-length: {length}\r\n\r\n{login}"));
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("M_UNKNOWN"), "{answer}\n{log}");
        let answer = running.ask(&format!("GET /_matrix/client/versions {head}\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    running.stop();
    // Nothing at all can be read without the root of it all.
    let mut lost = bytes.clone();
    lost[16..512].fill(0xff);
    std::fs::write(&file, &lost).unwrap();
    let said = bad(folder.path(), &["serve", "--listen", "127.0.0.1:0"], "");
    assert!(
        said.contains("snug-data/database") && said.contains("check --database") && said.contains("backup"),
        "{said}"
    );
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
    let said = bad(folder.path(), &["check", "--database"], "");
    assert!(said.contains("cannot be read at all"), "{said}");
}

#[test]
fn the_data_of_another_user_is_left_alone() {
    let folder = Folder::new();
    let mut theirs = folder.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    if std::os::unix::fs::chown(&theirs, Some(12_345), None).is_err() {
        theirs = "/usr".into(); // not root: there is a folder that is somebody else's
    }
    for command in [&["user", "add", "bob"][..], &["user", "list"], &["serve"], &["compact"]] {
        let said =
            bad(folder.path(), &[command, &["--data-dir", theirs.to_str().unwrap()]].concat(), "a good password\n");
        assert!(said.contains("it belongs to ") && said.contains("Run this as its owner: sudo -u "), "{said}");
    }
    assert!(std::fs::read_dir(folder.path().join("theirs")).unwrap().next().is_none());
}

/// Without leave to ask the running server, `check` took it for stopped, and its ports for another program's.
#[test]
fn check_stops_where_it_may_not_ask() {
    let folder = Folder::new();
    let folder = folder.path();
    good(folder, &["user", "add", "alice"], "a good password\n");
    good(folder, &["check", "--listen", "127.0.0.1:0"], "");
    symlink("admin.sock", folder.join("snug-data/admin.sock")).unwrap();
    let said = bad(folder, &["check", "--listen", "127.0.0.1:0"], "");
    assert!(said.contains("The check stops here: snug-data/admin.sock: "), "{said}");
    assert!(said.contains("One thing is wrong.") && !said.contains("127.0.0.1"), "{said}");
}

#[test]
fn check_says_what_others_may_read() {
    let folder = Folder::new();
    let folder = folder.path();
    good(folder, &["user", "add", "alice"], "a good password\n");
    let open = |file: &str, mode: u32| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.join(file), permissions).unwrap();
    };
    std::fs::write(folder.join("a.toml"), "data_dir = \"snug-data\"\nregistration_tokens = [\"a\"]\n").unwrap();
    open("a.toml", 0o640);
    let check = ["check", "--listen", "127.0.0.1:0", "--config", "a.toml"];
    good(folder, &check, "");
    // A folder that others may list was called a fault, with every file in it private.
    open("snug-data", 0o755);
    let said = good(folder, &check, "");
    assert!(said.contains("note  Other users of this machine may see the names"), "{said}");
    let files = ["snug-data", "snug-data/signing.key", "snug-data/database", "a.toml"];
    for (file, mode) in files.into_iter().zip([0o775, 0o644, 0o640, 0o644]) {
        open(file, mode);
    }
    let said = bad(folder, &check, "");
    assert!(said.contains("4 things are wrong."), "{said}");
    for (file, mend) in files.into_iter().zip(["go=", "go=", "go=", "o="]) {
        assert!(said.contains(&format!(": chmod {mend} {file}\n")), "{file}: {said}");
    }
}

/// The package's script called `snug serve --print-config`, which was never there, and left an empty config.
#[test]
fn what_the_package_calls_is_there() {
    let board = Path::new(env!("CARGO_MANIFEST_DIR")).join("board");
    let mut called = 0;
    for file in ["debian/postinst", "debian/prerm", "debian/postrm", "systemd/snug.service"] {
        let text = std::fs::read_to_string(board.join(file)).unwrap();
        for rest in text.split("/usr/bin/snug ").skip(1) {
            let words =
                rest.split_whitespace().take_while(|word| word.starts_with(|c: char| c.is_alphabetic() || c == '-'));
            let (flags, command): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with('-'));
            let help = good(&board, &[&command[..], &["--help"]].concat(), "");
            for flag in flags {
                assert!(help.contains(&format!(" {flag} ")), "{file} calls {command:?} with {flag}");
            }
            called += 1;
        }
    }
    assert_eq!(called, 4, "the calls were found");
}

/// A start with the key gone made another one, and no other server believed this one; with the database gone it began a new
/// server, and said nothing.
#[test]
fn what_a_server_has_lost_is_made_anew_only_on_purpose() {
    let folder = Folder::new();
    let folder = folder.path();
    let data = folder.join("snug-data");
    for command in ["signing-key", "database"] {
        assert!(bad(folder, &["new", command], "").contains("no server has its data in snug-data"));
        assert!(!data.exists());
    }
    good(folder, &["user", "add", "alice"], "a good password\n");
    let key = std::fs::read_to_string(data.join("signing.key")).unwrap();
    std::fs::remove_file(data.join("signing.key")).unwrap();
    for command in [&["serve"][..], &["user", "list"], &["check", "--listen", "127.0.0.1:0"]] {
        let said = bad(folder, command, "");
        assert!(said.contains("missing") && said.contains("`snug new signing-key`"), "{said}");
    }
    assert!(!data.join("signing.key").exists());
    assert!(good(folder, &["new", "signing-key"], "").contains("The signing key is ed25519:a_"));
    assert_ne!(std::fs::read_to_string(data.join("signing.key")).unwrap(), key);
    assert!(good(folder, &["user", "list"], "").contains("@alice:localhost"));
    // One that is there is retired.
    good(folder, &["new", "signing-key"], "");
    assert_eq!(std::fs::read_to_string(data.join("old-signing-keys")).unwrap().lines().count(), 1);
    good(folder, &["check", "--listen", "127.0.0.1:0"], "");

    assert!(bad(folder, &["new", "database"], "").contains("snug-data has its database"));
    std::fs::remove_file(data.join("database")).unwrap();
    for command in [&["serve"][..], &["user", "add", "bob"], &["check", "--listen", "127.0.0.1:0"]] {
        let said = bad(folder, command, "a good password\n");
        assert!(said.contains("database: it is missing or empty") && said.contains("`snug new database`"), "{said}");
    }
    assert!(!data.join("database").exists());
    assert!(good(folder, &["new", "database"], "").contains("has an empty database now"));
    let made = good(folder, &["user", "add", "bob"], "a good password\n");
    assert!(made.contains("@bob:localhost was made") && made.contains("snug user admin NAME"), "{made}");

    // What others may read is said at the start.
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(data.join("signing.key"), open).unwrap();
    std::fs::write(folder.join("later"), "").unwrap();
    let mut child =
        snug(folder).args(["--listen", "127.0.0.1:0"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let said: Vec<String> = lines.take_while(|line| !line.contains("listening for apps")).collect();
    assert!(said.iter().any(|line| line.contains("(mode 644): chmod go= snug-data/signing.key")), "{said:?}");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// On a board without a screen the one link was for `localhost`, which no other machine can open.
#[test]
fn every_address_is_printed_with_a_link() {
    let folder = Folder::new();
    let folder = folder.path();
    let server = start_with(folder, &["--listen", "0.0.0.0:0", "--budget", "pi-zero-2w"]);
    let port = server.address.rsplit(':').next().unwrap();
    let is_link = |line: &&str| line.trim_start().starts_with("http") && line.contains("/_snug/first/");
    let links: Vec<&str> =
        server.said.lines().filter(is_link).map(|line| line.split_whitespace().next().unwrap()).collect();
    assert!(links.last().unwrap().starts_with(&format!("http://localhost:{port}/_snug/first/")), "{links:?}");
    let checked = good(folder, &["check", "--listen", "0.0.0.0:0"], "");
    for link in links {
        let (url, _) = link.split_once("/_snug").unwrap();
        assert!(server.said.lines().any(|line| line.split_whitespace().next() == Some(url)), "{url}: {}", server.said);
        assert!(checked.contains(link) && checked.contains(url), "{link}: {checked}");
        // Each really leads there.
        let host = url.trim_start_matches("http://");
        assert!(TcpStream::connect(host).is_ok(), "{host}");
    }
    assert!(!server.said.contains("Only this machine"), "{}", server.said);
    server.stop();

    // One that listens for this machine alone says so, and what changes it.
    std::fs::remove_dir_all(folder.join("snug-data")).unwrap();
    let server = start(folder);
    let port = server.address.rsplit(':').next().unwrap();
    let line = format!("write listen = [\"[::]:{port}\"] into snug-data/snug.toml and start Snug again.");
    assert!(server.said.contains("Only this machine gets there.") && server.said.contains(&line), "{}", server.said);
    server.stop();
}

/// What stood on the terminal when a start failed named no way on.
#[test]
fn a_start_that_fails_says_what_to_do() {
    let folder = Folder::new();
    let folder = folder.path();
    let server = start(folder);
    let twice = bad(folder, &["--listen", "127.0.0.1:0", "--budget", "pi-zero-2w"], "");
    assert!(twice.contains("Snug seems to run already: `snug check` says where it is open."), "{twice}");
    let taken = ["--listen", &server.address, "--budget", "pi-zero-2w", "--data-dir", "other"];
    let taken = bad(folder, &taken, "");
    assert!(taken.contains(&format!("cannot listen on {}", server.address)), "{taken}");
    assert!(taken.contains("another program, or another Snug, has this port: stop it, or choose another"), "{taken}");
    server.stop();
    // `/proc` takes no folders, of root neither.
    let nowhere = bad(folder, &["--data-dir", "/proc/snug", "--listen", "127.0.0.1:0"], "");
    assert!(nowhere.contains("the folder /proc/snug cannot be made"), "{nowhere}");
}
