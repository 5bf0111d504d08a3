//! The policy lists that the owner has this server follow: which rooms they are, and what their rules kept out.
//!
//! The rules themselves are kept up where events enter rooms (`append/policy.rs`), and asked for in `remote/barred.rs`. Here the
//! settings become rows: a list that is new has its rules written in steps, one that is gone has them removed. A list is
//! only kept up while somebody here is in its room.

use std::ops::ControlFlow;
use std::time::Duration;

use parking_lot::Mutex;
use ruma::{OwnedRoomAliasId, OwnedRoomId};
use serde::Serialize;
use tokio::sync::Notify;

use super::Rooms;
use super::append::policy as derived;
use super::error::Result;
use crate::base::Worker;
use crate::matrix::policy::{Form, Subject};
use crate::matrix::version;
use crate::store::tables::hex;
use crate::store::tables::room::current_state::{self, StateCursor};
use crate::store::tables::room::event_row::Kind;
use crate::store::tables::room::policy::{self, List};
use crate::store::tables::room::{self, Status, event};
use crate::store::{Get, Read, RoomNum};

pub use policy::LISTS_MAX;

/// State events that a write looks through, and rules that one removes.
const ROWS_A_STEP: usize = 200;
const HITS_A_STEP: usize = 100;
/// What the rules kept out is written down at most so often.
const HITS_PAUSE: Duration = Duration::from_secs(60);
/// When an alias that could not be found is looked up again.
const AGAIN: Duration = Duration::from_secs(3600);
/// Rules that are counted for the report.
const COUNTED_MAX: usize = 200_000;

/// What the settings say, and what came of it.
#[derive(Default)]
pub struct Lists {
    wanted: Mutex<Vec<String>>,
    changed: Notify,
    /// Aliases that lead nowhere at present, each with why.
    missing: Mutex<Vec<(String, String)>>,
}

/// A list as the owner is shown it.
#[derive(Debug, Serialize)]
pub struct PolicyList {
    /// As in the settings.
    pub called: String,
    pub room_id: String,
    /// Whether somebody here is in the room, so that its rules are kept up.
    pub followed: bool,
    pub rules: u64,
    /// Rules that fit everybody, which are not followed.
    pub too_wide: u64,
    /// Rules with patterns; of all lists only so many are looked at.
    pub patterns: u64,
}

/// A rule as the owner is shown it.
#[derive(Debug, Serialize)]
pub struct PolicyRule {
    pub subject: &'static str,
    pub entity: String,
    pub takedown: bool,
    pub reason: String,
    pub ignored: bool,
}

/// What a rule kept out.
#[derive(Debug, Serialize)]
pub struct PolicyHits {
    pub subject: &'static str,
    pub entity: String,
    pub count: u64,
    pub last_ms: u64,
    pub last: String,
}

impl Rooms {
    /// Sets which lists are followed: room ids and aliases. They are as soon as the worker has looked.
    pub fn set_policy_lists(&self, lists: Vec<String>) {
        *self.0.policy_lists.wanted.lock() = lists;
        self.0.policy_lists.changed.notify_one();
    }

    /// Keeps the lists as long as the server runs. A unit of the worker is a step of a list's rules.
    pub async fn keep_policy_lists(&self, worker: &Worker) {
        let (lists, barred) = (&self.0.policy_lists, self.0.parts.remote.barred().clone());
        let clock = &self.0.parts.clock;
        let (mut look, mut waits) = (true, false);
        loop {
            if look {
                worker.works_on("looking at the policy lists");
                match settle(self, worker).await {
                    Ok(()) => worker.done(1),
                    Err(failed) => {
                        tracing::warn!(%failed, "the policy lists could not be settled; this is tried again");
                        worker.failed(&failed);
                        *lists.missing.lock() = vec![("policy lists".to_owned(), failed.to_string())];
                    }
                }
            }
            let again = !lists.missing.lock().is_empty();
            worker.idle();
            look = tokio::select! {
                () = lists.changed.notified() => true,
                () = clock.sleep(AGAIN), if again => true,
                () = barred.has_hits(), if !waits => {
                    (look, waits) = (false, true);
                    continue;
                }
                () = clock.sleep(HITS_PAUSE), if waits => false,
            };
            waits = false;
            if let Err(failed) = self.write_policy_hits().await {
                tracing::warn!(%failed, "what the policy lists kept out could not be written down");
            }
        }
    }

    /// Writes down what the rules kept out.
    pub async fn write_policy_hits(&self) -> Result<()> {
        let hits = self.0.parts.remote.barred().take_hits();
        if hits.is_empty() {
            return Ok(());
        }
        self.write(move |w| {
            for ((subject, entity), hits) in &hits {
                policy::add_hits(w, *subject, entity, hits)?;
            }
            Ok(())
        })
        .await
    }

    /// The lists, with the number of their rules.
    pub async fn policy_lists(&self) -> Result<Vec<PolicyList>> {
        self.reading(|_, read| {
            let mut left = COUNTED_MAX;
            policy::lists(read)?.into_iter().map(|list| overview(read, list, &mut left)).collect()
        })
        .await
    }

    /// What is not all right with the lists, each a sentence. Reads a row or two for each list.
    pub fn policy_findings(&self) -> Result<Vec<String>> {
        let missing = self.0.policy_lists.missing.lock().clone();
        let missing = missing.into_iter().map(|(alias, why)| {
            format!(
                "The policy list {alias} cannot be found, so it is not followed: {why}. This is tried again each hour."
            )
        });
        let read = self.read()?;
        let mut found: Vec<String> = missing.collect();
        for list in policy::lists(&read)? {
            if !is_resident(&read, &list.room_id)? {
                found.push(format!(
                    "Nobody here is in the room of the policy list {}, so it says nothing new to this server: join it with any \
                     account here.",
                    list.called
                ));
            }
        }
        Ok(found)
    }

    /// At most `most` rules of a list behind a place, and where the next begin.
    pub async fn policy_rules(
        &self,
        list: &str,
        after: Option<Vec<u8>>,
        most: usize,
    ) -> Result<(Vec<PolicyRule>, Option<String>)> {
        let list = list.to_owned();
        self.reading(move |_, read| {
            let lists = policy::lists(read)?;
            let found = lists.iter().find(|one| one.room_id == list || one.called == list);
            let found =
                found.ok_or_else(|| super::Error::bad("M_NOT_FOUND", "the settings name no such policy list"))?;
            let Some(num) = room::num(read, &found.room_id)? else { return Ok((Vec::new(), None)) };
            let rules = policy::rules_after(read, num, after.as_deref(), most)?;
            let next = rules.last().filter(|_| rules.len() == most).map(|last| hex(&last.place));
            Ok((rules.into_iter().map(|kept| shown(kept.rule)).collect(), next))
        })
        .await
    }

    /// At most `most` counts of what rules kept out behind a place, and where the next begin.
    pub async fn policy_hits(&self, after: Vec<u8>, most: usize) -> Result<(Vec<PolicyHits>, Option<String>)> {
        self.reading(move |_, read| {
            let keys = policy::hits_after(read, &after, most)?;
            let next = keys.last().filter(|_| keys.len() == most).map(|last| hex(last));
            let mut found = Vec::with_capacity(keys.len());
            for key in &keys {
                let Some((subject, entity)) = of_hit(key) else { continue };
                let Some(hits) = policy::hits(read, subject as u8, &entity)? else { continue };
                let policy::Hits { count, last_ms, last } = hits;
                found.push(PolicyHits { subject: subject.as_str(), entity, count, last_ms, last });
            }
            Ok((found, next))
        })
        .await
    }
}

fn of_hit(key: &[u8]) -> Option<(Subject, String)> {
    let (code, entity) = key.split_first()?;
    Some((Subject::from_code(*code)?, String::from_utf8(entity.to_vec()).ok()?))
}

fn shown(rule: policy::RuleRow) -> PolicyRule {
    let subject = Subject::from_code(rule.subject).map_or("", Subject::as_str);
    let policy::RuleRow { entity, takedown, reason, form, .. } = rule;
    PolicyRule { subject, entity, takedown, reason, ignored: form == Form::TooWide as u8 }
}

fn overview(read: &Read, list: List, left: &mut usize) -> Result<PolicyList> {
    let followed = is_resident(read, &list.room_id)?;
    let List { room_id, called, .. } = list;
    let mut shown = PolicyList { called, room_id, followed, rules: 0, too_wide: 0, patterns: 0 };
    let Some(num) = room::num(read, &shown.room_id)? else { return Ok(shown) };
    policy::count(read, num, left, &mut |form| {
        shown.rules += 1;
        shown.too_wide += u64::from(form == Form::TooWide as u8);
        shown.patterns += u64::from(form == Form::Glob as u8);
    })?;
    Ok(shown)
}

fn is_resident(get: &impl Get, room_id: &str) -> Result<bool> {
    let Some(num) = room::num(get, room_id)? else { return Ok(false) };
    Ok(room::get(get, num)?.is_some_and(|room| room.status == Status::Resident))
}

/// Makes the rows what the settings say.
async fn settle(rooms: &Rooms, worker: &Worker) -> Result<()> {
    let wanted = rooms.0.policy_lists.wanted.lock().clone();
    let before = rooms.reading(|_, read| Ok(policy::lists(read)?)).await?;
    let (mut after, mut missing): (Vec<List>, _) = (Vec::new(), Vec::new());
    for called in wanted.into_iter().take(LISTS_MAX) {
        match find(rooms, &called).await {
            Ok(room_id) => after.push(List { room_id: room_id.to_string(), called, whole: false }),
            Err(failed) => {
                // What it led to before is followed on.
                after.extend(before.iter().find(|list| list.called == called).cloned());
                missing.push((called, failed.to_string()));
            }
        }
    }
    for list in &mut after {
        list.whole = before.iter().any(|one| one.room_id == list.room_id && one.whole);
    }
    let gone: Vec<_> =
        before.iter().filter(|one| !after.iter().any(|list| list.room_id == one.room_id)).cloned().collect();
    if after != before {
        let (after, gone) = (after.clone(), gone.clone());
        rooms
            .write(move |w| {
                gone.iter().try_for_each(|list| policy::remove_list(w, &list.room_id))?;
                after.iter().try_for_each(|list| policy::put_list(w, list))?;
                derived::tell(w);
                Ok(())
            })
            .await?;
    }
    rooms.0.parts.remote.barred().set_any(!after.is_empty());
    for list in gone {
        forget(rooms, &list, worker).await?;
    }
    for list in after.into_iter().filter(|list| !list.whole) {
        build(rooms, list, worker).await?;
    }
    *rooms.0.policy_lists.missing.lock() = missing;
    sweep_hits(rooms).await
}

/// The room that a setting names.
async fn find(rooms: &Rooms, called: &str) -> Result<OwnedRoomId> {
    if let Ok(room_id) = OwnedRoomId::try_from(called) {
        return Ok(room_id);
    }
    let alias = OwnedRoomAliasId::try_from(called)
        .map_err(|_| super::Error::bad("M_INVALID_PARAM", "that is neither a room id nor an alias"))?;
    match alias.server_name() == rooms.server() {
        true => Ok(rooms.resolve_here(&alias).await?.room_id),
        false => Ok(rooms.resolve_remote_alias(&alias).await?.0),
    }
}

/// Writes the rules of a list that is new, from its room's present state. What changes meanwhile is kept up as always, since the list
/// is a row already.
async fn build(rooms: &Rooms, list: List, worker: &Worker) -> Result<()> {
    let mut cursor = StateCursor::default();
    loop {
        let list = list.clone();
        let step = move |w: &mut crate::store::Write<'_>| {
            let next = match room::num(w, &list.room_id)? {
                Some(num) => build_step(w, num, cursor)?,
                None => None,
            };
            if next.is_none() {
                policy::put_list(w, &List { whole: true, ..list })?;
            }
            Ok(next)
        };
        worker.done(1);
        match rooms.write(step).await? {
            Some(next) => cursor = next,
            None => return Ok(()),
        }
    }
}

fn build_step(w: &mut crate::store::Write<'_>, num: RoomNum, after: StateCursor) -> Result<Option<StateCursor>> {
    let Some(version) = version::get(&room::get_of(w, num)?.version) else { return Ok(None) };
    let (mut found, mut next) = (Vec::new(), None);
    current_state::list_state(w, num, Some(Kind::OTHER), after, &mut |at, _, event| {
        found.push(event);
        if found.len() < ROWS_A_STEP {
            return Ok(ControlFlow::Continue(()));
        }
        next = Some(at);
        Ok(ControlFlow::Break(()))
    })?;
    for event in found {
        let row = event::row_of(w, event)?;
        derived::put(w, num, version, event, &row)?;
    }
    Ok(next)
}

/// Removes the rules of a list that is not followed any more.
async fn forget(rooms: &Rooms, list: &List, worker: &Worker) -> Result<()> {
    loop {
        let room_id = list.room_id.clone();
        let removed = rooms.write(move |w| {
            let Some(num) = room::num(w, &room_id)? else { return Ok(0) };
            let removed = policy::forget(w, num, ROWS_A_STEP)?;
            derived::tell(w);
            Ok(removed)
        });
        worker.done(1);
        if removed.await? < ROWS_A_STEP {
            return Ok(());
        }
    }
}

/// Removes the counts of rules that are in no list any more.
async fn sweep_hits(rooms: &Rooms) -> Result<()> {
    let mut after = Vec::new();
    loop {
        let (from, denied) = (after.clone(), rooms.0.parts.remote.barred().denied());
        let keys = rooms.reading(move |_, read| Ok(policy::hits_after(read, &from, HITS_A_STEP)?)).await?;
        let Some(last) = keys.last().cloned() else { return Ok(()) };
        rooms
            .write(move |w| {
                let mut lists = Vec::new();
                for list in policy::lists(w)? {
                    lists.extend(room::num(w, &list.room_id)?);
                }
                for key in keys {
                    let mut is_there = false;
                    if let Some((subject, entity)) = of_hit(&key) {
                        is_there = subject == Subject::Server && denied.contains(&entity);
                        for (list, form) in
                            lists.iter().flat_map(|list| [Form::Exact, Form::Glob, Form::Hash].map(|form| (list, form)))
                        {
                            is_there |= policy::has_rule(w, *list, (subject as u8, form as u8), &entity)?;
                        }
                    }
                    if !is_there {
                        policy::remove_hits(w, &key)?;
                    }
                }
                Ok(())
            })
            .await?;
        after = last;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::base::Workers;
    use crate::remote::Deed;
    use crate::room::error::Error;
    use crate::room::testing::{House, house};

    /// The list as a room of anna's, followed.
    async fn list(house: &House) -> (ruma::OwnedUserId, OwnedRoomId) {
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        (anna, room)
    }

    async fn follow(house: &House, lists: &[&str]) {
        house.rooms.set_policy_lists(lists.iter().map(|list| list.to_string()).collect());
        let worker = Workers::default().add("policy lists", &house.clock);
        settle(&house.rooms, &worker).await.unwrap();
    }

    async fn rule(house: &House, by: &ruma::UserId, room: &ruma::RoomId, kind: &str, key: &str, content: Value) {
        house.send(by, room, kind, Some(key), content).await.unwrap();
    }

    fn ban(entity: &str) -> Value {
        json!({ "entity": entity, "recommendation": "m.ban", "reason": "spam" })
    }

    fn is_named(house: &House, user: &str) -> bool {
        let (read, barred) = (house.read(), house.rooms.0.parts.remote.barred().clone());
        barred.user(&read, user.try_into().unwrap(), Deed::Join).unwrap().is_some()
    }

    async fn is_server_named(house: &House, server: &str) -> bool {
        let barred = house.rooms.0.parts.remote.barred();
        barred.server(server.try_into().unwrap(), Deed::Request).await.is_some()
    }

    #[tokio::test]
    async fn rules_are_followed_as_they_come_change_and_go() {
        let house = house();
        let (anna, room) = list(&house).await;
        rule(&house, &anna, &room, "m.policy.rule.user", "a", ban("@bad:x.example")).await;
        assert!(!is_named(&house, "@bad:x.example"), "nobody has said to follow the list");
        follow(&house, &[room.as_str()]).await;
        assert!(is_named(&house, "@bad:x.example") && is_named(&house, "@BAD:x.example"));
        assert!(!is_named(&house, "@good:x.example"));
        rule(&house, &anna, &room, "org.matrix.mjolnir.rule.server", "b", ban("*.evil.example")).await;
        assert!(is_named(&house, "@any:a.evil.example") && !is_named(&house, "@any:evil.example"));
        assert!(is_server_named(&house, "a.evil.example:8448").await);
        // The answer that was kept is not used any more.
        rule(&house, &anna, &room, "org.matrix.mjolnir.rule.server", "b", json!({})).await;
        assert!(!is_server_named(&house, "a.evil.example:8448").await);
        // Another entity under the same key, and then a redaction.
        rule(&house, &anna, &room, "m.policy.rule.user", "a", ban("@worse:x.example")).await;
        assert!(!is_named(&house, "@bad:x.example") && is_named(&house, "@worse:x.example"));
        let last = house.send(&anna, &room, "m.policy.rule.user", Some("c"), ban("@late:x.example")).await.unwrap();
        assert!(is_named(&house, "@late:x.example"));
        let redaction = json!({ "redacts": last });
        house.send(&anna, &room, "m.room.redaction", None, redaction).await.unwrap();
        assert!(!is_named(&house, "@late:x.example") && is_named(&house, "@worse:x.example"));
        follow(&house, &[]).await;
        assert!(!is_named(&house, "@worse:x.example"));
        assert!(policy::rules_after(&house.read(), house.room_num(&room), None, 10).unwrap().is_empty());
    }

    #[tokio::test]
    async fn nobody_here_is_meant_and_no_rule_means_everybody() {
        let house = house();
        let (anna, room) = list(&house).await;
        follow(&house, &[room.as_str()]).await;
        for (key, kind, entity) in [
            ("1", "m.policy.rule.user", "@*:*"),
            ("2", "m.policy.rule.server", "*"),
            ("3", "m.policy.rule.server", "home.example"),
            ("4", "m.policy.rule.user", "@anna:home.example"),
            ("5", "m.policy.rule.server", "*.example"),
        ] {
            rule(&house, &anna, &room, kind, key, ban(entity)).await;
        }
        assert!(!is_named(&house, anna.as_str()) && !is_server_named(&house, "home.example").await);
        assert!(!is_named(&house, "@a:other.org"));
        assert!(is_named(&house, "@a:other.example"));
        let lists = house.rooms.policy_lists().await.unwrap();
        assert_eq!((lists[0].rules, lists[0].too_wide, lists[0].patterns), (5, 2, 1));
        let (rules, next) = house.rooms.policy_rules(room.as_str(), None, 3).await.unwrap();
        assert_eq!((rules.len(), next.is_some()), (3, true));
    }

    #[tokio::test]
    async fn a_room_that_is_named_is_not_joined_and_that_is_counted() {
        let house = house();
        let (anna, room) = list(&house).await;
        let (bob, other) = (house.user("bob").await, house.public_room(&anna).await);
        follow(&house, &[room.as_str()]).await;
        let hashed = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            <sha2::Sha256 as sha2::Digest>::digest(other.as_str()),
        );
        let takedown = json!({ "org.matrix.msc4205.hashes": { "sha256": hashed }, "recommendation": "m.takedown" });
        rule(&house, &anna, &room, "m.policy.rule.room", "x", takedown).await;
        for _ in 0..2 {
            let refused = house.join(&bob, &other).await;
            assert!(matches!(refused, Err(Error::Forbidden(why)) if why.contains("policy list")));
        }
        house.rooms.write_policy_hits().await.unwrap();
        let refused = house.rooms.knock(&bob, &other, Vec::new(), None).await;
        assert!(matches!(refused, Err(Error::Forbidden(_))));
        house.rooms.write_policy_hits().await.unwrap();
        let (hits, next) = house.rooms.policy_hits(Vec::new(), 10).await.unwrap();
        assert_eq!((hits.len(), next), (1, None));
        assert_eq!((hits[0].count, hits[0].last.as_str()), (3, &*format!("a join of {other}")));
        // With its rule the count goes.
        rule(&house, &anna, &room, "m.policy.rule.room", "x", json!({})).await;
        assert!(house.rooms.policy_hits(Vec::new(), 10).await.unwrap().0.is_empty());
        house.join(&bob, &other).await.unwrap();
    }

    #[tokio::test]
    async fn a_list_that_nobody_is_in_is_said_to_be() {
        let house = house();
        let (anna, room) = list(&house).await;
        follow(&house, &[room.as_str(), "!far:far.example", "#none:home.example"]).await;
        let wrong = house.rooms.policy_findings().unwrap();
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].contains("#none:home.example cannot be found"), "{wrong:?}");
        assert!(wrong[1].contains("Nobody here is in the room of the policy list !far:far.example"), "{wrong:?}");
        rule(&house, &anna, &room, "m.policy.rule.user", "a", ban("@bad:x.example")).await;
        house.rooms.leave(&anna, &room, None).await.unwrap();
        assert_eq!(house.rooms.policy_findings().unwrap().len(), 3);
        assert!(is_named(&house, "@bad:x.example"), "what it said last still holds");
    }
}
