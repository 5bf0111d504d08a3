//! The files of application services: read at the start, when a command or SIGHUP says so, and when one of them changed.
//!
//! They are those that the settings name, those in folders that the settings name, and those in the folder `appservices` of
//! the data folder, where `snug appservice add` puts them. A file that cannot be read any more keeps what it said before, so
//! that a slip in an editor takes no bridge away; one that is gone takes its service away.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use ruma::{ServerName, UserId};

use crate::admin::{Registered, Registrations};
use crate::base::{Clock, Worker, blocking, sort_few};
use crate::budget::human;
use crate::config::Config;
use crate::deliver::services::Told;
use crate::remote::service::{BYTES_MAX, PATTERNS_BYTES_MAX, Registration, SERVICES_MAX, Service};
use crate::room::{EventNum, RoomNum, Rooms};
use crate::store::{self, Read, UserNum};
use crate::user::{self, Standing, Users};

/// The folder in the data folder.
const FOLDER: &str = "appservices";
/// How often the files are looked at: their times and sizes, nothing else.
const LOOK: Duration = Duration::from_secs(60);

/// One file of a registration.
#[derive(Debug)]
pub struct Found {
    pub file: PathBuf,
    pub read: Result<Registration, String>,
}

/// The folder for the files that `snug appservice add` brings.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER)
}

/// Every file that the settings name, and what is wrong with folders that they name.
fn files(config: &Config) -> Vec<Result<PathBuf, Found>> {
    let mut files = Vec::new();
    let own = folder(&config.data_dir);
    let named = config.appservices.iter().cloned().chain(own.is_dir().then_some(own));
    for path in named {
        if !path.is_dir() {
            files.push(Ok(path));
            continue;
        }
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => {
                files.push(Err(Found { read: Err(unreadable(&path, &error)), file: path }));
                continue;
            }
        };
        let is_yaml = |path: &PathBuf| path.extension().is_some_and(|is| is == "yaml" || is == "yml");
        let mut inside: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(is_yaml).collect();
        sort_few(&mut inside, Ord::cmp);
        files.extend(inside.into_iter().map(Ok));
    }
    files.truncate(4 * SERVICES_MAX);
    files
}

/// Reads all registrations. Ids and tokens are unique among those that could be read.
pub fn read_all(config: &Config) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for file in files(config) {
        let file = match file {
            Ok(file) => file,
            Err(wrong) => {
                found.push(wrong);
                continue;
            }
        };
        let read = read(&file, &config.server_name).and_then(|registration| check(&found, registration));
        found.push(Found { file, read });
    }
    found
}

fn check(others: &[Found], registration: Registration) -> Result<Registration, String> {
    let (mut count, mut bytes) = (0, registration.patterns_bytes);
    for (other, file) in others.iter().filter_map(|other| Some((other.read.as_ref().ok()?, &other.file))) {
        count += 1;
        bytes += other.patterns_bytes;
        if other.id == registration.id {
            return Err(format!("id: {} has the same id \"{}\"", file.display(), registration.id));
        }
        if other.as_token == registration.as_token {
            return Err(format!("as_token: {} has the same one", file.display()));
        }
    }
    check_patterns(bytes)?;
    match count < SERVICES_MAX {
        true => Ok(registration),
        false => Err(format!("there are {SERVICES_MAX} application services already")),
    }
}

/// Refuses a registration whose patterns, with those of the others, take so many bytes.
pub fn check_patterns(bytes: usize) -> Result<(), String> {
    let human = |bytes: usize| human(bytes as u64);
    match bytes <= PATTERNS_BYTES_MAX {
        true => Ok(()),
        false => Err(format!(
            "namespaces: its patterns, with those of the other application services, take {} of memory, and {} are for them: \
             long repetitions and classes such as (a{{1,10}}b?){{1,60}} take the most",
            human(bytes),
            human(PATTERNS_BYTES_MAX)
        )),
    }
}

/// A user, by whose rights files are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunsAs {
    pub uid: u32,
    pub gids: Vec<u32>,
    /// Nobody said so: these are the groups that this machine's lists give the owner of the data folder.
    pub is_assumed: bool,
}

impl RunsAs {
    /// This process.
    pub fn this() -> RunsAs {
        let mut gids = vec![rustix::process::getegid().as_raw()];
        gids.extend(rustix::process::getgroups().unwrap_or_default().into_iter().map(|gid| gid.as_raw()));
        gids.dedup();
        RunsAs { uid: rustix::process::geteuid().as_raw(), gids, is_assumed: false }
    }

    /// As whom the server would run, as far as that can be known while it does not.
    pub fn assumed(config: &Config) -> Option<RunsAs> {
        let uid = std::fs::metadata(&config.data_dir).ok()?.uid();
        Some(RunsAs { uid, gids: groups_of(uid), is_assumed: true })
    }

    /// Whether it may read a file that this command, perhaps another user's, could find.
    pub fn may_read(&self, file: &Path) -> bool {
        let Ok(path) = file.canonicalize() else { return true };
        path.ancestors().all(|part| {
            let Ok(found) = std::fs::metadata(part) else { return false };
            let bits = if found.is_dir() { 0o1 } else { 0o4 };
            self.uid == 0
                || match (found.uid() == self.uid, self.gids.contains(&found.gid())) {
                    (true, _) => found.mode() & (bits << 6) != 0,
                    (_, true) => found.mode() & (bits << 3) != 0,
                    _ => found.mode() & bits != 0,
                }
        })
    }
}

/// The groups of a user of this machine.
fn groups_of(uid: u32) -> Vec<u32> {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let name = super::user_name(uid);
    let mut groups = Vec::new();
    for line in read("/etc/passwd").lines() {
        let fields: Vec<_> = line.split(':').collect();
        if fields.first() == Some(&name.as_str()) {
            groups.extend(fields.get(3).and_then(|gid| gid.parse::<u32>().ok()));
        }
    }
    for line in read("/etc/group").lines() {
        let fields: Vec<_> = line.split(':').collect();
        if fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name)) {
            groups.extend(fields.get(2).and_then(|gid| gid.parse::<u32>().ok()));
        }
    }
    groups
}

/// Reads one file.
pub fn read(file: &Path, server: &ServerName) -> Result<Registration, String> {
    use std::io::Read as _;
    // A pipe is not even opened: that waits for who writes into it.
    if !std::fs::metadata(file).map_err(|error| unreadable(file, &error))?.is_file() {
        return Err("it is no file".to_owned());
    }
    let (mut bytes, most) = (Vec::new(), BYTES_MAX as u64 + 1);
    let read = std::fs::File::open(file).and_then(|opened| opened.take(most).read_to_end(&mut bytes));
    read.map_err(|error| unreadable(file, &error))?;
    if bytes.len() > BYTES_MAX {
        return Err(format!("the file is longer than {} KiB", BYTES_MAX / 1024));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is no text in UTF-8".to_owned())?;
    Registration::read(&text, server)
}

fn unreadable(file: &Path, error: &std::io::Error) -> String {
    let me = super::user_name(rustix::process::geteuid().as_raw());
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            let (is_folder, file) = (file.is_dir(), file.display());
            let (may, copy) = match is_folder {
                true => ("g+rx", String::new()),
                false => {
                    ("g+r", format!(", or hand over a copy: sudo cat {file} | sudo -u {me} snug appservice add -"))
                }
            };
            format!(
                "{me} may not read it: give it to a group that {me} is in (sudo usermod -aG GROUP {me}; sudo chgrp GROUP {file}; sudo \
                 chmod {may} {file}, and g+x for its folders){copy}"
            )
        }
        _ => error.to_string(),
    }
}

/// The registrations of the running server.
pub struct Files {
    config: Config,
    users: Users,
    last: Mutex<Vec<Last>>,
    /// One reading at a time.
    turn: tokio::sync::Mutex<()>,
}

/// A file as it was read last.
#[derive(Clone)]
struct Last {
    file: PathBuf,
    stamp: Option<(SystemTime, u64)>,
    registration: Option<Registration>,
    error: Option<String>,
    /// It stays from before, since its folder cannot be listed.
    is_unlisted: bool,
}

/// The registrations that count, of the files and of what is kept of some from before. One that is kept may be in another file
/// by now: what was read at present, of the files in `fresh`, comes first, and the kept one goes.
fn in_force(now: &mut [Last], fresh: &[PathBuf]) -> Vec<Registration> {
    let (mut counted, mut bytes): (Vec<Registration>, usize) = (Vec::new(), 0);
    for is_fresh in [true, false] {
        for last in now.iter_mut().filter(|last| fresh.contains(&last.file) == is_fresh) {
            let Some(registration) = last.registration.clone() else { continue };
            let is_there =
                |other: &Registration| other.id == registration.id || other.as_token == registration.as_token;
            let is_too_large = bytes + registration.patterns_bytes > PATTERNS_BYTES_MAX;
            match counted.iter().any(is_there) || counted.len() >= SERVICES_MAX || is_too_large {
                true => last.registration = None,
                false => {
                    bytes += registration.patterns_bytes;
                    counted.push(registration);
                }
            }
        }
    }
    counted
}

fn stamp(file: &Path) -> Option<(SystemTime, u64)> {
    let found = std::fs::metadata(file).ok()?;
    Some((found.modified().ok()?, found.len()))
}

impl Files {
    pub fn new(config: &Config, users: &Users) -> Arc<Files> {
        let (last, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        Arc::new(Files { config: config.clone(), users: users.clone(), last, turn })
    }

    /// Reads all files and makes them the registrations. Answers what is wrong, a sentence for each file.
    pub async fn load(&self) -> Vec<String> {
        let _turn = self.turn.lock().await;
        let (mut now, mut fresh) = (Vec::new(), Vec::new());
        let config = self.config.clone();
        let looked = |found: Found| {
            // One that cannot be looked at is not missing.
            let is_missing = matches!(found.file.try_exists(), Ok(false));
            (stamp(&found.file), found, is_missing)
        };
        let found = blocking(move || read_all(&config).into_iter().map(looked).collect::<Vec<_>>()).await;
        for (stamp, Found { file, read }, is_missing) in found {
            let before =
                self.last.lock().iter().find(|last| last.file == file).and_then(|last| last.registration.clone());
            let (registration, error) = match read {
                Ok(registration) => {
                    fresh.push(file.clone());
                    (Some(registration), None)
                }
                Err(error) => (before.filter(|_| !is_missing), Some(error)),
            };
            // Of a folder that cannot be listed, what was in it stays.
            if error.is_some() && !is_missing {
                let last = self.last.lock();
                let inside = last.iter().filter(|last| last.file.parent() == Some(file.as_path())).cloned();
                now.extend(inside.map(|last| Last { is_unlisted: true, ..last }));
            }
            now.push(Last { stamp, file, registration, error, is_unlisted: false });
        }
        let services: Vec<_> = in_force(&mut now, &fresh).into_iter().map(Service::new).collect();
        for service in &services {
            let sender = &service.sender;
            let wrong = match self.users.create_service_user(sender).await {
                Ok(()) => {
                    tracing::info!("the account {sender} was created for {}", service.id);
                    None
                }
                Err(user::Error::Taken) => self.is_wrong_for(sender).await,
                Err(failed) => Some(format!("sender_localpart: the account {sender} could not be created: {failed}")),
            };
            let is_its = |last: &&mut Last| last.registration.as_ref().is_some_and(|of| of.id == service.id);
            if let Some(last) = now.iter_mut().find(is_its)
                && last.error.is_none()
            {
                last.error = wrong;
            }
        }
        let wrong: Vec<_> =
            now.iter().filter_map(|last| Some(format!("{}: {}", last.file.display(), last.error.as_ref()?))).collect();
        self.users.services().set(services);
        *self.last.lock() = now;
        wrong
    }

    /// Why an account that was there before should not be a service's own; none when it may be.
    async fn is_wrong_for(&self, sender: &UserId) -> Option<String> {
        let account = self.users.account(sender).await.ok().flatten()?;
        if account.standing == Standing::Deactivated {
            return Some(format!(
                "sender_localpart: the account {sender} was closed for good, so the service can do nothing as it: give it \
                 another name"
            ));
        }
        account.has_password.then(|| {
            format!(
                "sender_localpart: {sender} is somebody's account, with a password, and the service may do and read everything \
                 there: give it a name of its own, unless that is what you want"
            )
        })
    }

    /// Reads them again when one changed, came or went. Where there is none, it is looked for the folder in the data folder alone.
    pub async fn keep_current(self: &Arc<Self>, worker: &Worker, clock: &Clock) {
        loop {
            worker.idle_for(LOOK);
            clock.sleep(LOOK).await;
            let files = self.clone();
            if blocking(move || files.has_changed()).await {
                worker.works_on("reading registrations");
                self.load_and_say().await;
                worker.done(1);
            }
        }
    }

    /// Whether there is anything to look at.
    pub fn is_any(&self) -> bool {
        !self.config.appservices.is_empty() || folder(&self.config.data_dir).is_dir()
    }

    fn has_changed(&self) -> bool {
        let (files, last) = (files(&self.config), self.last.lock());
        let last: Vec<&Last> = last.iter().filter(|last| !last.is_unlisted).collect();
        let same = |(file, last): (&Result<PathBuf, Found>, &&Last)| match file {
            Ok(file) => *file == last.file && stamp(file) == last.stamp,
            Err(found) => found.file == last.file,
        };
        files.len() != last.len() || !files.iter().zip(last.iter()).all(same)
    }

    pub async fn load_and_say(&self) {
        let wrong = self.load().await;
        wrong.iter().for_each(|wrong| tracing::error!("application service: {wrong}"));
        let services = self.users.services().list();
        let names: Vec<_> = services.iter().map(|service| service.id.as_str()).collect();
        match names.is_empty() {
            true => tracing::info!("there is no application service"),
            false => tracing::info!("application services: {}", names.join(", ")),
        }
    }
}

impl Registrations for Files {
    fn reload(self: Arc<Self>) -> crate::admin::Reloading {
        Box::pin(async move { self.load().await })
    }

    fn list(&self) -> Vec<Registered> {
        let last = self.last.lock();
        last.iter()
            .map(|last| Registered {
                file: last.file.display().to_string(),
                id: last.registration.as_ref().map(|of| of.id.clone()),
                url: last.registration.as_ref().and_then(|of| of.url.clone()),
                sender: last.registration.as_ref().map(|of| of.sender.to_string()),
                error: last.error.clone(),
            })
            .collect()
    }
}

/// What the rooms and users know of what services are told.
pub struct Facts {
    pub rooms: Rooms,
    pub users: Users,
}

impl Told for Facts {
    fn event(&self, get: &Read, num: EventNum, out: &mut Vec<u8>) -> store::Result<bool> {
        self.rooms.told_event(get, num, out)
    }

    fn invite(&self, get: &Read, user: UserNum, room: RoomNum, out: &mut Vec<u8>) -> store::Result<bool> {
        self.rooms.told_invite(get, user, room, out)
    }

    fn typing(&self, since: u64) -> (u64, Option<Vec<RoomNum>>) {
        self.rooms.typing_since(since)
    }

    fn typists(&self, room: RoomNum) -> Vec<UserNum> {
        self.rooms.typists(room)
    }

    fn presence(&self, since: u64) -> (u64, Vec<UserNum>) {
        self.users.presence_since(since)
    }

    fn presence_event(&self, get: &Read, user: UserNum) -> store::Result<String> {
        match self.users.presence_event(get, user) {
            Ok(event) => Ok(event.to_string()),
            Err(user::Error::Store(failed)) => Err(failed),
            Err(other) => Err(store::Error::Io(other.to_string())),
        }
    }
}

/// Keeps the name of a file short and free of what a path means.
pub fn file_name(id: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '_' };
    let name: String = id.chars().map(plain).take(64).collect();
    format!("{}.yaml", name.trim_start_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::OwnedServerName;

    fn registration(id: &str, token: &str) -> String {
        format!(
            "id: {id}\nurl: null\nas_token: {token}\nhs_token: h{token}\nsender_localpart: {id}\nnamespaces:\n  users:\n  - \
             exclusive: true\n    regex: '@{id}_.*'\n"
        )
    }

    /// A bridge's file was for its own group, which the unit gives the server; `snug check` said that the server may not
    /// read it, though it had.
    #[test]
    fn a_file_is_read_by_the_groups_that_the_server_runs_with() {
        use std::os::unix::fs::PermissionsExt as _;
        let at = std::env::temp_dir().join(format!("snug-runs-as-{}", std::process::id()));
        std::fs::create_dir_all(&at).unwrap();
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = at.join("irc.yaml");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let found = std::fs::metadata(&file).unwrap();
        let runs_as = |uid: u32, gids: &[u32]| RunsAs { uid, gids: gids.to_vec(), is_assumed: false };
        let stranger = found.uid() + 54_321;
        assert!(!runs_as(stranger, &[found.gid() + 1]).may_read(&file));
        assert!(runs_as(stranger, &[found.gid() + 1, found.gid()]).may_read(&file));
        assert!(runs_as(found.uid(), &[]).may_read(&file) && RunsAs::this().may_read(&file));
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!runs_as(stranger, &[found.gid()]).may_read(&file), "a folder above it");
        std::fs::remove_dir_all(&at).unwrap();
    }

    #[test]
    fn files_and_folders_are_read_and_what_is_wrong_is_named() {
        let at = std::env::temp_dir().join(format!("snug-services-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&at);
        std::fs::create_dir_all(at.join("data/appservices")).unwrap();
        let put = |name: &str, text: &str| std::fs::write(at.join(name), text).unwrap();
        put("irc.yaml", &registration("irc", "one"));
        put("data/appservices/b.yaml", &registration("irc", "two"));
        put("data/appservices/c.yml", &registration("other", "three"));
        put("data/appservices/notes.txt", "nothing");
        let config = Config {
            appservices: vec![at.join("irc.yaml"), at.join("missing.yaml")],
            data_dir: at.join("data"),
            server_name: OwnedServerName::try_from("here.test").unwrap(),
            ..Config::default()
        };
        let found = read_all(&config);
        let said: Vec<_> = found.iter().map(|found| found.read.as_ref().map(|read| read.id.as_str())).collect();
        assert_eq!((said[0], said[3]), (Ok("irc"), Ok("other")));
        assert!(said[1].unwrap_err().contains("No such file") && said[2].unwrap_err().contains("same id"));
        let last = |file: &str, token: &str, error: Option<&str>| Last {
            file: file.into(),
            stamp: None,
            registration: Registration::read(&registration("irc", token), &config.server_name).ok(),
            error: error.map(ToOwned::to_owned),
            is_unlisted: false,
        };
        // Renamed in an editor: what the broken file said before held up the new one for ever.
        let mut now = [last("a.yaml", "old", Some("not YAML")), last("b.yaml", "new", None)];
        let counted = in_force(&mut now, &["b.yaml".into()]);
        assert_eq!((counted.len(), counted[0].as_token.as_str()), (1, "new"));
        assert!(now[0].registration.is_none() && now[1].registration.is_some());
        assert_eq!(in_force(&mut [last("a.yaml", "old", Some("not YAML"))], &[]).len(), 1, "kept");
        assert_eq!(file_name("../IRC bridge"), "_IRC_bridge.yaml");
        assert_eq!(read(Path::new("/dev/null"), &config.server_name).unwrap_err(), "it is no file");
        std::fs::remove_dir_all(&at).unwrap();
    }
}
