//! Backups of room keys, encrypted by the user's apps.
//!
//! Client-server API, "Server-side key backups". A key is opaque but for what decides which of two copies is kept. A backup
//! may have a million keys, so nothing here holds all of them: they come in batches, are read by a cursor, and what is
//! deleted is swept in short writes, behind the answer (`Users::keep_backups_swept`).

use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::Notify;

use crate::base::Worker;
use crate::budget::human;
use crate::matrix::json;
use crate::store::tables::user as table;
use crate::store::tables::user::backup::{self, Info, Size, Version, Visit};
use crate::store::{Get, Store, UserNum, Write, WriteError};
use crate::user::{Error, Users};

pub use crate::store::tables::user::backup::{Key, Merit, Scope, Shelf};

/// The most backups of one user; a further one takes the place of the oldest. Only the newest is written to, and apps
/// delete the one before when they make another.
const BACKUPS_MAX: usize = 32;
/// The most keys of one user, all backups together. An app that is in a hundred busy rooms for ten years has a tenth of
/// that.
const KEYS_MAX: u64 = 1_000_000;
/// The most bytes of them: a key that an app stores has 1.4 KB, so this is enough for a million.
const BYTES_MAX: u64 = 2 << 30;
/// On a small card it is this part of the card: a family of five leaves three quarters of it. 400 MB of a card of 8 GB are
/// 280,000 keys.
const CARD_PART: u64 = 20;
/// The longest `session_data`; usual ones have 1.2 KB.
const KEY_BYTES_MAX: usize = 16 << 10;
/// The longest room id or session id.
const NAME_BYTES_MAX: usize = 255;
const ALGORITHM_BYTES_MAX: usize = 255;
/// The longest `auth_data`: a public key, signed by every device of the user.
const AUTH_BYTES_MAX: usize = 32 << 10;
/// The nesting limit of what an app stores: apps get it beside other keys, in one answer.
pub const DEPTH_MAX: u32 = json::EVENT_DEPTH_MAX;
/// What is removed in one write, but for the last key: as many rows as a short write has, in a record that the journal
/// takes whole.
const SWEPT_PER_WRITE: Size = Size { count: 500, bytes: 128 << 10 };
/// The pause between two such writes while an app waits, that while nobody waits, and that after one that failed.
const DELETE_PAUSE: Duration = Duration::from_millis(10);
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
        if version.is_none_or(|version| version.shelf != self.shelf) {
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
        let info = Info { algorithm, auth_data };
        let number = self
            .write(move |w| {
                // The account may have been closed since its token was looked at, and its backups with it.
                let account = table::account(w, user)?;
                if account.is_none_or(|account| account.standing != table::Standing::Active) {
                    return Err(Error::Deactivated);
                }
                let versions = backup::versions(w, user)?;
                if versions.len() >= BACKUPS_MAX
                    && let Some(oldest) = versions.first()
                {
                    backup::remove_version(w, oldest)?;
                }
                Ok(backup::add_version(w, user, &info)?)
            })
            .await?;
        self.backups_are_gone();
        Ok(number)
    }

    /// A version of a user's backup, or the newest; `NotFound` when there is none.
    pub async fn backup(&self, user: UserNum, version: Option<&str>) -> Result<Backup, Error> {
        let number = version.map(number).transpose()?;
        self.read(move |get| {
            let found = match number {
                Some(number) => backup::version(get, user, number)?.ok_or(NOT_FOUND)?,
                None => backup::latest(get, user)?.ok_or(Error::NotFound("backup"))?,
            };
            let version = found.shelf.version;
            let Info { algorithm, auth_data } = backup::info(get, user, version)?.ok_or(NOT_FOUND)?;
            Ok(Backup { version, algorithm, auth_data, kept: Kept::of(&found) })
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
            let info = backup::info(w, user, number)?.ok_or(NOT_FOUND)?;
            if info.algorithm != algorithm {
                return Err(Error::invalid("The algorithm is not that of the backup"));
            }
            Ok(backup::set_info(w, user, number, &Info { algorithm, auth_data })?)
        })
        .await
    }

    /// Deletes a version. One that was deleted before is no error.
    pub async fn delete_backup(&self, user: UserNum, version: &str) -> Result<(), Error> {
        let number = number(version)?;
        self.freeing(move |w| match backup::version(w, user, number)? {
            Some(version) => Ok(backup::remove_version(w, &version)?),
            None if number <= backup::last_number(w, user)? => Ok(()),
            None => Err(NOT_FOUND),
        })
        .await?;
        self.backups_are_gone();
        Ok(())
    }

    /// Puts keys into the newest version, each where it is new or better than the copy there. Blocks. Bounded by the list,
    /// which should have no more than a write's rows. `Full` while the rest of the disk is for messages.
    pub fn put_backed_up(&self, user: UserNum, version: &str, keys: Vec<Key>) -> Result<Kept, Error> {
        let (number, store) = (number(version)?, &self.0.parts.store);
        if !keys.is_empty() {
            store.check_spare()?;
        }
        let most = most(store.total_bytes());
        let put = store.write_blocking(move |w| {
            let mut version = newest(w, user, number)?;
            let better = backup::better(w, version.shelf, keys)?;
            check_growth(backup::size(w, user)?, better.old, better.new, most)?;
            backup::put(w, &mut version, &better)?;
            Ok(Kept::of(&version))
        });
        put.map(|(kept, _)| kept).map_err(WriteError::into_inner)
    }

    /// A cursor over the keys of a version, or of one room of it.
    pub async fn backed_up(&self, user: UserNum, version: &str, scope: Scope) -> Result<BackupKeys, Error> {
        check_scope(&scope)?;
        let (number, store) = (number(version)?, self.0.parts.store.clone());
        self.read(move |get| {
            let shelf = backup::version(get, user, number)?.ok_or(NOT_FOUND)?.shelf;
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
            let shelf = backup::version(get, user, number)?.ok_or(NOT_FOUND)?.shelf;
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
                    let mut version = backup::version(w, user, number)?.ok_or(NOT_FOUND)?;
                    let is_done = match &scope {
                        Scope::All => {
                            backup::clear_version(w, &mut version)?;
                            true
                        }
                        scope => backup::remove(w, &mut version, scope, SWEPT_PER_WRITE)?,
                    };
                    Ok((Kept::of(&version), is_done))
                })
                .await?;
            if is_done {
                self.backups_are_gone();
                return Ok(kept);
            }
            self.0.parts.clock.sleep(DELETE_PAUSE).await;
        }
    }

    /// Removes the keys of what was deleted, as long as the server runs. A unit of the worker is a key. Small backups share
    /// the time between two pauses, or they could be deleted faster than they are swept.
    pub async fn keep_backups_swept(&self, worker: &Worker) {
        let (mut last, mut swept) = (Vec::new(), Size::default());
        loop {
            worker.works_on("removing keys of deleted backups");
            let pause = match self.sweep_backups(&mut last).await {
                Ok(Some(gone)) => {
                    worker.done(gone.count);
                    swept = swept.plus(Size { count: gone.count.max(1), bytes: gone.bytes });
                    if !swept.reaches(SWEPT_PER_WRITE) {
                        continue;
                    }
                    SWEEP_PAUSE
                }
                Ok(None) => {
                    worker.idle();
                    // What was deleted since the look has left a permit here.
                    self.0.backups_gone.0.notified().await;
                    continue;
                }
                Err(failed) => {
                    tracing::warn!(%failed, "keys of deleted backups could not be removed; this is tried again");
                    worker.failed(failed);
                    FAILED_PAUSE
                }
            };
            swept = Size::default();
            self.0.parts.clock.sleep(pause).await;
        }
    }

    /// Removes some keys of what was deleted, and answers how much went; nothing when there is nothing to remove. `last` is
    /// what the call before looked at. Each user gets a turn, and what cannot be read stops nothing behind it.
    pub(in crate::user) async fn sweep_backups(&self, last: &mut Vec<u8>) -> Result<Option<Size>, Error> {
        let before = last.clone();
        let Some(note) = self.read(move |get| Ok(backup::next_gone(get, &before)?)).await? else { return Ok(None) };
        last.clone_from(&note);
        Ok(Some(self.freeing(move |w| Ok(backup::sweep(w, &note, SWEPT_PER_WRITE)?)).await?))
    }

    /// A write that frees more than it adds, also when the disk is full.
    async fn freeing<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Write<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (value, _) = self.0.parts.store.write_freeing(job).await.map_err(WriteError::into_inner)?;
        Ok(value)
    }

    /// Wakes the sweep, after something was deleted.
    pub(in crate::user) fn backups_are_gone(&self) {
        self.0.backups_gone.0.notify_one();
    }
}

/// Deletes all backups of a user. Bounded by the cap on backups of one user; their keys are swept later.
pub(in crate::user) fn forget_backups(w: &mut Write<'_>, user: UserNum) -> Result<(), Error> {
    for version in backup::versions(w, user)? {
        backup::remove_version(w, &version)?;
    }
    Ok(())
}

/// The version that keys may be put into: the newest of the user.
fn newest(get: &impl Get, user: UserNum, number: u32) -> Result<Version, Error> {
    match backup::latest(get, user)? {
        Some(current) if current.shelf.version == number => Ok(current),
        Some(Version { shelf, .. }) if backup::version(get, user, number)?.is_some() => {
            Err(Error::WrongBackup { current: shelf.version })
        }
        _ => Err(NOT_FOUND),
    }
}

/// What the keys of one user may take on a card of so many bytes.
fn most(card_bytes: u64) -> Size {
    Size { count: KEYS_MAX, bytes: BYTES_MAX.min(card_bytes / CARD_PART) }
}

/// Whether a user with this much may have some keys more in place of others. Who has too much already, since the bound was
/// another, may still put what takes no more.
fn check_growth(all: Size, old: Size, new: Size, most: Size) -> Result<(), Error> {
    let then = all.minus(old).plus(new);
    if then.count > most.count.max(all.count) || then.bytes > most.bytes.max(all.bytes) {
        return Err(Error::TooLarge(format!(
            "The backups of one user may have {} keys and {} together",
            most.count,
            human(most.bytes)
        )));
    }
    Ok(())
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

/// Whether a backup can have a key of this session. No event names such a room or session as is refused here; yet a key
/// of one may be sent by anybody to anybody, and the apps of who received it back it up with all others.
pub fn can_be_backed_up(room: &str, session: &str) -> bool {
    check_name(room).is_ok() && session.len() <= NAME_BYTES_MAX
}

/// Whether the `session_data` of a key may be kept.
pub fn check_session_data(data: &[u8]) -> Result<(), Error> {
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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::base::testing::settled;
    use crate::base::{Clock, blocking};
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

    async fn put(town: &Town, user: UserNum, version: &str, keys: Vec<Key>) -> Result<Kept, Error> {
        let (users, version) = (town.users.clone(), version.to_owned());
        blocking(move || users.put_backed_up(user, &version, keys)).await
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
        let mut last = Vec::new();
        while town.users.sweep_backups(&mut last).await.unwrap().is_some() {}
        assert_eq!(rows(town, &BACKUP_GONE), 0);
    }

    /// The number of keys and their bytes are kept in the version's row and never counted, so they have to stay right.
    #[tokio::test]
    async fn the_size_is_that_of_the_rows() {
        let town = town();
        let user = town.person("anna").await.user_num;
        let version = create(&town, user).await.to_string();
        let users = &town.users;
        let put = async |keys| put(&town, user, &version, keys).await.unwrap();
        let gone = async |scope| {
            let deleted = users.delete_backed_up(user, &version, scope);
            let pauses = async {
                loop {
                    town.clock.pass(DELETE_PAUSE).await;
                }
            };
            tokio::select! { kept = deleted => kept.unwrap(), () = pauses => unreachable!() }
        };
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
        let put = async |version: &str| put(&town, user, version, keys("!a", 0..1, false)).await;
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
            put(&town, user, &version, keys("!a", 0..2, false)).await.unwrap();
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
            put(&first, anna, &version, some).await.unwrap();
        }
        create(&first, bob).await;
        put(&first, bob, "1", keys("!a", 0..7, false)).await.unwrap();
        let cursor = first.users.backed_up(anna, &version, Scope::All).await.unwrap();
        first.users.delete_backup(anna, &version).await.unwrap();
        let mut cursor = cursor;
        let cut_off = cursor.next(&mut |_, _, _, _| ControlFlow::Continue(()));
        assert!(matches!(cut_off, Err(Error::NotFound(_))), "half an answer does not look like a whole one");
        let swept = first.users.sweep_backups(&mut Vec::new()).await.unwrap();
        assert_eq!(swept.map(|gone| gone.count), Some(SWEPT_PER_WRITE.count));
        assert_eq!(rows(&first, &BACKUP_KEY), 1_007);
        first.users.0.parts.store.close().await;
        drop(first);

        let second = run(&medium);
        assert!(matches!(second.users.backup(anna, None).await, Err(Error::NotFound(_))));
        let (users, worker) = (second.users.clone(), Worker::new("sweep", &Clock::simulated(0)));
        let sweeping = tokio::spawn(async move { users.keep_backups_swept(&worker).await });
        for _ in 0..500 {
            second.clock.pass(SWEEP_PAUSE).await;
        }
        settled().await;
        assert_eq!((rows(&second, &BACKUP_KEY), rows(&second, &BACKUP_GONE)), (7, 0));
        // It waits for the next deletion.
        second.users.delete_backup(bob, "1").await.unwrap();
        settled().await;
        assert_eq!(rows(&second, &BACKUP_KEY), 0);
        sweeping.abort();
    }

    #[tokio::test]
    async fn a_closed_account_keeps_no_backup() {
        let town = town();
        let anna = town.person("anna").await;
        create(&town, anna.user_num).await;
        put(&town, anna.user_num, "1", keys("!a", 0..7, false)).await.unwrap();
        town.users.close(&anna.user_id, false).await.unwrap();
        assert!(matches!(town.users.backup(anna.user_num, None).await, Err(Error::NotFound(_))));
        swept(&town).await;
        assert_eq!(rows(&town, &BACKUP_KEY), 0);
        // A request whose token was looked at before.
        let auth_data = RawValue::from_string("{}".to_owned()).unwrap();
        let late = town.users.create_backup(anna.user_num, ALGORITHM.to_owned(), auth_data).await;
        assert!(matches!(late, Err(Error::Deactivated)));
    }

    /// One write removed 500 keys of any length, and each small backup took a write and a pause of its own, so that a script
    /// could delete faster than was swept.
    #[tokio::test]
    async fn a_write_of_the_sweep_is_bounded_and_many_small_backups_go_on() {
        let town = town();
        let (anna, bob) = (town.person("anna").await.user_num, town.person("bob").await.user_num);
        let long = |room: &str| {
            let data = format!("\"{}\"", "x".repeat(10_000)).into_bytes();
            keys(room, 0..60, false).into_iter().map(|key| Key { data: data.clone(), ..key }).collect::<Vec<_>>()
        };
        let version = create(&town, anna).await.to_string();
        put(&town, anna, &version, long("!a")).await.unwrap();
        town.users.delete_backed_up(anna, &version, Scope::All).await.unwrap();
        for _ in 0..30 {
            let version = create(&town, bob).await.to_string();
            put(&town, bob, &version, keys("!a", 0..1, false)).await.unwrap();
            town.users.delete_backup(bob, &version).await.unwrap();
        }
        assert_eq!(rows(&town, &BACKUP_GONE), 31);
        let mut last = Vec::new();
        let first = town.users.sweep_backups(&mut last).await.unwrap().unwrap();
        assert!(first.bytes >= 128 << 10 && first.bytes < 140 << 10, "{first:?}");
        let second = town.users.sweep_backups(&mut last).await.unwrap().unwrap();
        assert_eq!(second.count, 1, "the next user has a turn");
        let get = || town.users.0.parts.store.read().unwrap();
        assert_eq!(backup::size(&get(), anna).unwrap().count, 60 - first.count, "what is not swept counts");
        while backup::size(&get(), anna).unwrap().count > 0 {
            town.users.sweep_backups(&mut Vec::new()).await.unwrap();
        }
        // The clock stands still, so this is without a pause.
        let (users, worker) = (town.users.clone(), Worker::new("sweep", &Clock::simulated(0)));
        let sweeping = tokio::spawn(async move { users.keep_backups_swept(&worker).await });
        settled().await;
        assert_eq!(rows(&town, &BACKUP_GONE), 0);
        sweeping.abort();
        assert_eq!(rows(&town, &BACKUP_KEY), 0);
        assert_eq!([anna, bob].map(|user| backup::size(&get(), user).unwrap()), [Size::default(); 2]);
    }

    /// The sweep took the first note each time, and when that could not be read, none behind it.
    #[tokio::test]
    async fn a_note_that_cannot_be_read_stops_no_other() {
        let town = town();
        let anna = town.person("anna").await.user_num;
        let version = create(&town, anna).await.to_string();
        put(&town, anna, &version, keys("!a", 0..3, false)).await.unwrap();
        town.users.delete_backup(anna, &version).await.unwrap();
        let spoil = |w: &mut Write<'_>| w.put(&BACKUP_GONE, &[0, 0, 0], &[]);
        town.users.0.parts.store.write(spoil).await.unwrap();
        let mut last = Vec::new();
        assert!(town.users.sweep_backups(&mut last).await.is_err());
        assert_eq!(town.users.sweep_backups(&mut last).await.unwrap().map(|gone| gone.count), Some(3));
        assert_eq!((rows(&town, &BACKUP_KEY), rows(&town, &BACKUP_GONE)), (0, 1));
    }

    /// A user who had as many keys as fit could not even put better copies of them.
    #[test]
    fn who_is_at_the_limit_may_still_replace() {
        let size = |count, bytes| Size { count, bytes };
        let most = size(100, 10_000);
        let may = |all, old, new| check_growth(all, old, new, most).is_ok();
        assert!(may(size(100, 9_000), size(10, 900), size(10, 950)));
        assert!(!may(size(100, 9_000), size(9, 900), size(10, 900)));
        assert!(!may(size(50, 9_900), size(1, 100), size(1, 300)));
        // The bound was another before.
        assert!(
            may(size(200, 20_000), size(5, 500), size(5, 500)) && !may(size(200, 20_000), size(5, 500), size(5, 501))
        );
    }

    /// One user's keys could fill a card of 2 GiB within the allowance of one user, and keys were taken until the card had
    /// no room for messages.
    #[tokio::test]
    async fn the_card_bounds_what_is_kept() {
        assert_eq!(most(1 << 30), Size { count: KEYS_MAX, bytes: (1 << 30) / 20 });
        assert_eq!(most(u64::MAX).bytes, BYTES_MAX);
        let medium = MemoryMedium::default();
        let town = town_on(Store::on_memory(medium.clone()), Budget::for_tests(), |_| {});
        let anna = town.person("anna").await.user_num;
        let version = create(&town, anna).await.to_string();
        let put = async |numbers| put(&town, anna, &version, keys("!a", numbers, false)).await;
        assert!(put(0..3).await.is_ok());
        medium.set_free_bytes(100 << 20);
        assert!(matches!(put(3..6).await, Err(Error::Store(failed)) if failed.is_full()));
        assert_eq!(put(0..0).await.unwrap().count, 3, "nothing is no more");
        assert!(town.users.delete_backup(anna, &version).await.is_ok());
    }
}
