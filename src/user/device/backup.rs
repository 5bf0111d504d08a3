//! Backups of room keys, encrypted by the user's apps.
//!
//! Client-server API, "Server-side key backups". A key is opaque but for what decides which of two copies is kept. A backup
//! may have a million keys, so nothing here holds all of them: they come in batches, are read by a cursor, and what is
//! deleted is swept in short writes, behind the answer (`Users::keep_backups_swept`).

use std::ops::ControlFlow;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::Notify;

use crate::base::Worker;
use crate::matrix::json;
use crate::store::tables::user::backup::{self, Size, Version, Visit};
use crate::store::{Get, Store, UserNum, Write, WriteError};
use crate::user::{Error, Users};

pub use crate::store::tables::user::backup::{Key, Merit, Scope, Shelf};

/// The most backups of one user; a further one takes the place of the oldest. Only the newest is written to, and apps
/// delete the one before when they make another.
const BACKUPS_MAX: usize = 32;
/// The most keys of one user, all backups together, and the most bytes of them: a key that an app stores has 1.4 KB, so
/// a million of them fit. An app that is in a hundred busy rooms for ten years has a tenth of that.
const KEYS_MAX: u64 = 1_000_000;
const BYTES_MAX: u64 = 2 << 30;
/// The longest `session_data`; usual ones have 1.2 KB.
pub const KEY_BYTES_MAX: usize = 16 << 10;
/// The longest room id or session id.
pub const NAME_BYTES_MAX: usize = 255;
const ALGORITHM_BYTES_MAX: usize = 255;
/// The longest `auth_data`: a public key, signed by every device of the user.
const AUTH_BYTES_MAX: usize = 32 << 10;
/// The nesting limit of what an app stores: apps get it beside other keys, in one answer.
const DEPTH_MAX: u32 = json::EVENT_DEPTH_MAX;
/// Rows removed in one write.
const SWEPT_PER_WRITE: usize = 500;
/// The pause between two such writes that nobody waits for, and that after one that failed.
const SWEEP_PAUSE: Duration = Duration::from_millis(50);
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// Wakes the sweep when something was deleted.
#[derive(Default)]
pub(in crate::user) struct Gone(Notify);

/// A version of a user's backup as its apps see it.
#[derive(Debug)]
pub struct Backup {
    pub version: u32,
    pub algorithm: String,
    pub auth_data: Box<RawValue>,
    pub kept: Kept,
}

/// The state of a version's keys, which an app compares to see whether it knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub count: u64,
    pub etag: u64,
}

impl Kept {
    fn of(version: &Version) -> Kept {
        Kept { count: version.size.count, etag: version.etag }
    }
}

/// A cursor over keys of a version.
pub struct BackupKeys {
    store: Store,
    shelf: Shelf,
    scope: Scope,
    place: Vec<u8>,
}

impl BackupKeys {
    /// Shows the next keys until `visit` breaks; true when there may be more. Blocks. Each call reads a snapshot of its own,
    /// so that a slow reader keeps none. `NotFound` when the keys were deleted meanwhile.
    pub fn next(&mut self, visit: &mut Visit<'_>) -> Result<bool, Error> {
        let get = self.store.read()?;
        let version = backup::version(&get, self.shelf.user, self.shelf.version)?;
        if version.is_none_or(|version| version.generation != self.shelf.generation) {
            return Err(NOT_FOUND);
        }
        Ok(backup::each(&get, self.shelf, &self.scope, &mut self.place, visit)?)
    }
}

const NOT_FOUND: Error = Error::NotFound("backup version");

impl Users {
    /// Makes a new backup, which is the one that keys are put into from now on, and answers its version.
    pub async fn create_backup(
        &self,
        user: UserNum,
        algorithm: String,
        auth_data: Box<RawValue>,
    ) -> Result<u32, Error> {
        check_info(&algorithm, &auth_data)?;
        let version = Version { algorithm, auth_data, generation: 0, size: Size::default(), etag: 0 };
        let number = self
            .write(move |w| {
                let (mut count, mut oldest) = (0, None);
                backup::each_version(w, user, &mut |number, version| {
                    count += 1;
                    oldest.get_or_insert((number, version));
                    Ok(ControlFlow::Continue(()))
                })?;
                if let Some((number, version)) = oldest.filter(|_| count >= BACKUPS_MAX) {
                    backup::remove_version(w, user, number, &version)?;
                }
                Ok(backup::add_version(w, user, &version)?)
            })
            .await?;
        self.0.backups_gone.0.notify_one();
        Ok(number)
    }

    /// A version of a user's backup, or the newest; `NotFound` when there is none.
    pub async fn backup(&self, user: UserNum, version: Option<&str>) -> Result<Backup, Error> {
        let number = version.map(number).transpose()?;
        self.read(move |get| {
            let (version, found) = match number {
                Some(number) => (number, backup::version(get, user, number)?.ok_or(NOT_FOUND)?),
                None => backup::latest(get, user)?.ok_or(Error::NotFound("backup"))?,
            };
            let kept = Kept::of(&found);
            Ok(Backup { version, algorithm: found.algorithm, auth_data: found.auth_data, kept })
        })
        .await
    }

    /// Sets the `auth_data` of a version. Its algorithm stays.
    pub async fn update_backup(
        &self,
        user: UserNum,
        version: &str,
        algorithm: String,
        auth_data: Box<RawValue>,
    ) -> Result<(), Error> {
        check_info(&algorithm, &auth_data)?;
        let number = number(version)?;
        self.write(move |w| {
            let mut found = backup::version(w, user, number)?.ok_or(NOT_FOUND)?;
            if found.algorithm != algorithm {
                return Err(Error::invalid("The algorithm is not that of the backup"));
            }
            found.auth_data = auth_data;
            Ok(backup::set_version(w, user, number, &found)?)
        })
        .await
    }

    /// Deletes a version. One that was deleted before is no error.
    pub async fn delete_backup(&self, user: UserNum, version: &str) -> Result<(), Error> {
        let number = number(version)?;
        self.freeing(move |w| match backup::version(w, user, number)? {
            Some(version) => Ok(backup::remove_version(w, user, number, &version)?),
            None if number <= backup::last_number(w, user)? => Ok(()),
            None => Err(NOT_FOUND),
        })
        .await?;
        self.0.backups_gone.0.notify_one();
        Ok(())
    }

    /// Puts keys into the newest version, each where it is new or better than the copy there. Bounded by the list, which
    /// should have no more than a write's rows.
    pub async fn put_backed_up(&self, user: UserNum, version: &str, keys: Vec<Key>) -> Result<Kept, Error> {
        let number = number(version)?;
        self.write(move |w| {
            let mut found = newest(w, user, number)?;
            if keys.is_empty() {
                return Ok(Kept::of(&found));
            }
            let shelf = Shelf { user, version: number, generation: found.generation };
            let more_max = keys.iter().map(bytes_of).sum::<u64>();
            let all = backup::size(w, user)?;
            if all.count + keys.len() as u64 > KEYS_MAX || all.bytes + more_max > BYTES_MAX {
                return Err(Error::TooLarge(format!(
                    "The backups of one user may have {KEYS_MAX} keys and {BYTES_MAX} bytes together"
                )));
            }
            let put = backup::put(w, shelf, found.size, keys)?;
            if put.changed {
                found.size = put.size;
                found.etag += 1;
                backup::set_version(w, user, number, &found)?;
            }
            Ok(Kept::of(&found))
        })
        .await
    }

    /// A cursor over the keys of a version, or of one room of it.
    pub async fn backed_up(&self, user: UserNum, version: &str, scope: Scope) -> Result<BackupKeys, Error> {
        check_scope(&scope)?;
        let (number, store) = (number(version)?, self.0.parts.store.clone());
        self.read(move |get| {
            let found = backup::version(get, user, number)?.ok_or(NOT_FOUND)?;
            let shelf = Shelf { user, version: number, generation: found.generation };
            Ok(BackupKeys { store, shelf, scope, place: Vec::new() })
        })
        .await
    }

    /// One key of a version: its merit and the JSON text of its `session_data`.
    pub async fn backed_up_key(
        &self,
        user: UserNum,
        version: &str,
        room: String,
        session: String,
    ) -> Result<(Merit, Vec<u8>), Error> {
        check_name(&room)?;
        let number = number(version)?;
        self.read(move |get| {
            let found = backup::version(get, user, number)?.ok_or(NOT_FOUND)?;
            let shelf = Shelf { user, version: number, generation: found.generation };
            backup::key(get, shelf, room, session)?.ok_or(Error::NotFound("key in this backup"))
        })
        .await
    }

    /// Deletes keys of a version. Those of a room go in short writes, each of which counts by itself; if the power is cut
    /// in between, what is deleted stays deleted.
    pub async fn delete_backed_up(&self, user: UserNum, version: &str, scope: Scope) -> Result<Kept, Error> {
        check_scope(&scope)?;
        let number = number(version)?;
        loop {
            let scope = scope.clone();
            let (kept, is_done) = self
                .freeing(move |w| {
                    let mut found = backup::version(w, user, number)?.ok_or(NOT_FOUND)?;
                    let shelf = Shelf { user, version: number, generation: found.generation };
                    let before = found.size;
                    let is_done = match &scope {
                        Scope::All => {
                            backup::clear_version(w, user, number, &mut found)?;
                            true
                        }
                        scope => {
                            let gone = backup::remove(w, shelf, scope, SWEPT_PER_WRITE)?;
                            found.size = before.minus(gone);
                            (gone.count as usize) < SWEPT_PER_WRITE
                        }
                    };
                    if found.size != before {
                        found.etag += 1;
                        backup::set_version(w, user, number, &found)?;
                    }
                    Ok((Kept::of(&found), is_done))
                })
                .await?;
            if is_done {
                self.0.backups_gone.0.notify_one();
                return Ok(kept);
            }
        }
    }

    /// Removes the keys of what was deleted, as long as the server runs. A unit of the worker is a key.
    pub async fn keep_backups_swept(&self, worker: &Worker) {
        loop {
            worker.works_on("removing keys of deleted backups");
            let pause = match self.sweep_backups().await {
                Ok(0) => None,
                Ok(removed) => {
                    worker.done(removed as u64);
                    Some(SWEEP_PAUSE)
                }
                Err(failed) => {
                    tracing::warn!(%failed, "keys of deleted backups could not be removed; this is tried again");
                    worker.failed(failed);
                    Some(FAILED_PAUSE)
                }
            };
            match pause {
                Some(pause) => self.0.parts.clock.sleep(pause).await,
                None => {
                    worker.idle();
                    // What was deleted since the look has left a permit here.
                    self.0.backups_gone.0.notified().await;
                }
            }
        }
    }

    /// Removes some keys of what was deleted; 0 when there are none.
    pub(in crate::user) async fn sweep_backups(&self) -> Result<usize, Error> {
        let Some(shelf) = self.read(|get| Ok(backup::next_gone(get)?)).await? else { return Ok(0) };
        let removed = self.freeing(move |w| Ok(backup::sweep(w, shelf, SWEPT_PER_WRITE)?)).await?;
        // The note of a version without keys is work too.
        Ok(removed.max(1))
    }

    /// A write that frees more than it adds, also when the disk is full.
    async fn freeing<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Write<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (value, _) = self.0.parts.store.write_freeing(job).await.map_err(WriteError::into_inner)?;
        Ok(value)
    }

    /// Wakes the sweep, after an account was closed.
    pub(in crate::user) fn backups_are_gone(&self) {
        self.0.backups_gone.0.notify_one();
    }
}

/// Deletes all backups of a user. Bounded by the cap on backups of one user; their keys are swept later.
pub(in crate::user) fn forget_backups(w: &mut Write<'_>, user: UserNum) -> Result<(), Error> {
    let mut all = Vec::new();
    backup::each_version(w, user, &mut |number, version| {
        all.push((number, version));
        Ok(ControlFlow::Continue(()))
    })?;
    for (number, version) in all {
        backup::remove_version(w, user, number, &version)?;
    }
    Ok(())
}

/// The version that keys may be put into: the newest of the user.
fn newest(get: &impl Get, user: UserNum, number: u32) -> Result<Version, Error> {
    match backup::latest(get, user)? {
        Some((current, version)) if current == number => Ok(version),
        Some((current, _)) if backup::version(get, user, number)?.is_some() => Err(Error::WrongBackup { current }),
        _ => Err(NOT_FOUND),
    }
}

/// A version as apps name it. What is no version of ours is one that does not exist.
fn number(version: &str) -> Result<u32, Error> {
    let is_plain = version.bytes().all(|byte| byte.is_ascii_digit()) && !version.starts_with('0');
    version.parse().ok().filter(|_| is_plain).ok_or(NOT_FOUND)
}

fn check_info(algorithm: &str, auth_data: &RawValue) -> Result<(), Error> {
    let auth_data = auth_data.get().as_bytes();
    if algorithm.len() > ALGORITHM_BYTES_MAX || auth_data.len() > AUTH_BYTES_MAX {
        return Err(Error::TooLarge(format!("The auth_data of a backup may have {AUTH_BYTES_MAX} bytes at most")));
    }
    if !auth_data.starts_with(b"{") || json::is_deeper_than(auth_data, DEPTH_MAX) {
        return Err(Error::bad("M_BAD_JSON", "auth_data must be a JSON object, not nested too deeply"));
    }
    Ok(())
}

/// Whether a key may be kept.
pub fn check_backed_up(room: &str, session: &str, data: &[u8]) -> Result<(), Error> {
    check_name(room)?;
    if session.len() > NAME_BYTES_MAX {
        return Err(Error::invalid("A session id may have 255 bytes at most"));
    }
    if data.len() > KEY_BYTES_MAX {
        return Err(Error::TooLarge(format!("The session_data of a key may have {KEY_BYTES_MAX} bytes at most")));
    }
    if json::is_deeper_than(data, DEPTH_MAX) {
        return Err(Error::bad("M_BAD_JSON", "session_data is nested too deeply"));
    }
    Ok(())
}

fn check_scope(scope: &Scope) -> Result<(), Error> {
    match scope {
        Scope::All => Ok(()),
        Scope::Room(room) | Scope::Session(room, _) => check_name(room),
    }
}

fn check_name(room: &str) -> Result<(), Error> {
    match room.len() > NAME_BYTES_MAX || room.contains('\0') {
        true => Err(Error::invalid("A room id has no zero byte and 255 bytes at most")),
        false => Ok(()),
    }
}

/// The most bytes that a key adds.
fn bytes_of(key: &Key) -> u64 {
    /// The numbers in its row.
    const REST: usize = 32;
    (key.room.len() + key.session.len() + key.data.len() + REST) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Clock;
    use crate::budget::Budget;
    use crate::store::MemoryMedium;
    use crate::store::schema::{BACKUP_GONE, BACKUP_KEY};
    use crate::user::tests::{Town, town, town_on};

    const ALGORITHM: &str = "m.megolm_backup.v1.curve25519-aes-sha2";

    fn keys(room: &str, numbers: std::ops::Range<u64>, is_verified: bool) -> Vec<Key> {
        let merit = Merit { is_verified, first_message_index: 0, forwarded_count: 0 };
        let one = |n| Key { room: room.to_owned(), session: format!("s{n:06}"), merit, data: b"{}".to_vec() };
        numbers.map(one).collect()
    }

    async fn create(town: &Town, user: UserNum) -> u32 {
        let auth_data = RawValue::from_string(r#"{"public_key":"abc"}"#.to_owned()).unwrap();
        town.users.create_backup(user, ALGORITHM.to_owned(), auth_data).await.unwrap()
    }

    fn rows(town: &Town, table: &crate::store::Table) -> usize {
        let mut count = 0;
        let get = town.users.0.parts.store.read().unwrap();
        get.prefix(table, &[], &mut |_, _| {
            count += 1;
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        count
    }

    async fn swept(town: &Town) {
        while town.users.sweep_backups().await.unwrap() > 0 {}
        assert_eq!(rows(town, &BACKUP_GONE), 0);
    }

    /// The number of keys and their bytes are kept in the version's row and never counted, so they have to stay right.
    #[tokio::test]
    async fn the_size_is_that_of_the_rows() {
        let town = town();
        let user = town.person("anna").await.user_num;
        let version = create(&town, user).await.to_string();
        let users = &town.users;
        let put = async |keys| users.put_backed_up(user, &version, keys).await.unwrap();
        let gone = async |scope| users.delete_backed_up(user, &version, scope).await.unwrap();
        assert_eq!(put(keys("!a", 0..700, false)).await, Kept { count: 700, etag: 1 });
        assert_eq!(put(keys("!a", 0..700, false)).await, Kept { count: 700, etag: 1 }, "nothing is better");
        assert_eq!(put(keys("!a", 690..710, true)).await, Kept { count: 710, etag: 2 });
        assert_eq!(put([keys("!b", 0..3, false), keys("!b", 1..2, true)].concat()).await, Kept { count: 713, etag: 3 });
        assert_eq!(put(Vec::new()).await, Kept { count: 713, etag: 3 });
        let one = |room: &str, session: &str| Scope::Session(room.to_owned(), session.to_owned());
        assert_eq!(gone(one("!b", "nothing")).await, Kept { count: 713, etag: 3 });
        assert_eq!(gone(one("!b", "s000001")).await, Kept { count: 712, etag: 4 });
        // In two writes.
        assert_eq!(gone(Scope::Room("!a".to_owned())).await, Kept { count: 2, etag: 6 });
        assert_eq!(gone(Scope::Room("!".to_owned())).await, Kept { count: 2, etag: 6 });
        let size = backup::size(&users.0.parts.store.read().unwrap(), user).unwrap();
        let mut bytes = 0;
        let get = users.0.parts.store.read().unwrap();
        let add = &mut |key: &[u8], value: &[u8]| {
            bytes += (key.len() + value.len()) as u64;
            Ok(ControlFlow::Continue(()))
        };
        get.prefix(&BACKUP_KEY, &[], add).unwrap();
        assert_eq!(size, Size { count: 2, bytes });
        assert_eq!(gone(Scope::All).await, Kept { count: 0, etag: 7 });
        assert_eq!(put(keys("!a", 0..5, false)).await, Kept { count: 5, etag: 8 });
        swept(&town).await;
        assert_eq!(rows(&town, &BACKUP_KEY), 5, "the sweep leaves what was put after the deletion");
        assert!(matches!(gone_from(&town, user, "2").await, Err(Error::NotFound(_))));
    }

    async fn gone_from(town: &Town, user: UserNum, version: &str) -> Result<Kept, Error> {
        town.users.delete_backed_up(user, version, Scope::All).await
    }

    #[tokio::test]
    async fn only_the_newest_takes_keys_and_no_number_comes_twice() {
        let town = town();
        let user = town.person("anna").await.user_num;
        let users = &town.users;
        let put = async |version: &str| users.put_backed_up(user, version, keys("!a", 0..1, false)).await;
        assert!(matches!(users.backup(user, None).await, Err(Error::NotFound(_))));
        assert!(matches!(put("1").await, Err(Error::NotFound(_))));
        assert_eq!((create(&town, user).await, create(&town, user).await), (1, 2));
        assert!(matches!(put("1").await, Err(Error::WrongBackup { current: 2 })));
        assert!(matches!(put("3").await, Err(Error::NotFound(_))));
        assert!(put("2").await.is_ok());
        users.delete_backup(user, "2").await.unwrap();
        users.delete_backup(user, "2").await.unwrap();
        assert!(matches!(users.delete_backup(user, "3").await, Err(Error::NotFound(_))));
        assert!(matches!(put("2").await, Err(Error::NotFound(_))));
        assert_eq!(users.backup(user, None).await.unwrap().version, 1);
        assert!(put("1").await.is_ok());
        assert_eq!(create(&town, user).await, 3);
        for wrong in ["", "0", "01", "+1", "-1", "x", "99999999999999999999"] {
            assert!(matches!(users.backup(user, Some(wrong)).await, Err(Error::NotFound(_))), "{wrong}");
        }
    }

    #[tokio::test]
    async fn the_oldest_backup_goes_when_there_are_too_many() {
        let town = town();
        let user = town.person("anna").await.user_num;
        for _ in 0..BACKUPS_MAX + 2 {
            let version = create(&town, user).await.to_string();
            town.users.put_backed_up(user, &version, keys("!a", 0..2, false)).await.unwrap();
        }
        assert!(town.users.backup(user, Some("2")).await.is_err() && town.users.backup(user, Some("3")).await.is_ok());
        swept(&town).await;
        assert_eq!(rows(&town, &BACKUP_KEY), 2 * BACKUPS_MAX);
    }

    /// The keys of a deleted backup are removed by and by. What was left when the server ended is removed by the next run.
    #[tokio::test]
    async fn a_deletion_goes_on_after_a_restart() {
        let medium = MemoryMedium::default();
        let run = |medium: &MemoryMedium| town_on(Store::on_memory(medium.clone()), Budget::for_tests(), |_| {});
        let first = run(&medium);
        let (anna, bob) = (first.person("anna").await.user_num, first.person("bob").await.user_num);
        let version = create(&first, anna).await.to_string();
        for from in 0..3 {
            let some = keys("!a", from * 500..from * 500 + 500, false);
            first.users.put_backed_up(anna, &version, some).await.unwrap();
        }
        create(&first, bob).await;
        first.users.put_backed_up(bob, "1", keys("!a", 0..7, false)).await.unwrap();
        let cursor = first.users.backed_up(anna, &version, Scope::All).await.unwrap();
        first.users.delete_backup(anna, &version).await.unwrap();
        let mut cursor = cursor;
        let cut_off = cursor.next(&mut |_, _, _, _| ControlFlow::Continue(()));
        assert!(matches!(cut_off, Err(Error::NotFound(_))), "half an answer does not look like a whole one");
        assert_eq!(first.users.sweep_backups().await.unwrap(), SWEPT_PER_WRITE);
        assert_eq!(rows(&first, &BACKUP_KEY), 1_007);
        first.users.0.parts.store.close().await;
        drop(first);

        let second = run(&medium);
        assert!(matches!(second.users.backup(anna, None).await, Err(Error::NotFound(_))));
        let (users, worker) = (second.users.clone(), Worker::new("sweep", &Clock::simulated(0)));
        let sweeping = tokio::spawn(async move { users.keep_backups_swept(&worker).await });
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            second.clock.advance(SWEEP_PAUSE);
        }
        assert_eq!((rows(&second, &BACKUP_KEY), rows(&second, &BACKUP_GONE)), (7, 0));
        // It waits for the next deletion.
        second.users.delete_backup(bob, "1").await.unwrap();
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if rows(&second, &BACKUP_KEY) == 0 {
                break;
            }
        }
        assert_eq!(rows(&second, &BACKUP_KEY), 0);
        sweeping.abort();
    }

    #[tokio::test]
    async fn a_closed_account_keeps_no_backup() {
        let town = town();
        let anna = town.person("anna").await;
        create(&town, anna.user_num).await;
        town.users.put_backed_up(anna.user_num, "1", keys("!a", 0..7, false)).await.unwrap();
        town.users.close(&anna.user_id, false).await.unwrap();
        assert!(matches!(town.users.backup(anna.user_num, None).await, Err(Error::NotFound(_))));
        swept(&town).await;
        assert_eq!(rows(&town, &BACKUP_KEY), 0);
    }
}
