//! What a user keeps for a room goes on with the room that replaces it: tags, `m.direct`, push rules.
//!
//! Client-server API, "Room Upgrades".

use ruma::push::{ConditionalPushRule, PushCondition, Ruleset};
use ruma::{OwnedRoomId, RoomId, UserId};
use serde_json::{Value, json};

use super::account_data::{DIRECT, TAG, is_large, put_entry};
use super::push_rules::{RULES_MAX, is_too_much};
use crate::matrix::push::default_rules;
use crate::store::tables::room;
use crate::store::tables::user::account_data::{self, GLOBAL};
use crate::store::tables::user::push_rule;
use crate::store::{Change, UserNum, Write};
use crate::user::{Error, Users, lookup};

impl Users {
    /// Copies what a user keeps for a room to the room that replaces it. What the user has set there already stays, and
    /// what would pass a limit is left out.
    pub async fn follow_upgrade(&self, user: UserNum, old: &RoomId, new: &RoomId) -> Result<(), Error> {
        let (old, new) = (old.to_owned(), new.to_owned());
        self.write(move |w| {
            copy_tags(w, user, &old, &new)?;
            copy_direct(w, user, &old, &new)?;
            copy_push_rules(w, user, &old, &new)
        })
        .await
    }
}

impl Users {
    /// Notes that a room is a direct chat of a user with another one. What would pass a limit is left out.
    pub async fn note_direct(&self, user: UserNum, with: &UserId, room_id: &RoomId) -> Result<(), Error> {
        let (with, room_id) = (with.to_owned(), room_id.to_owned());
        self.write(move |w| {
            let json = account_data::get(w, user, GLOBAL, DIRECT)?.unwrap_or_else(|| b"{}".to_vec());
            if is_large(&json) {
                return Ok(());
            }
            let Ok(Value::Object(mut people)) = serde_json::from_slice(&json) else { return Ok(()) };
            let rooms = people.entry(with.as_str()).or_insert_with(|| json!([]));
            match rooms.as_array_mut() {
                Some(rooms) if !rooms.iter().any(|id| id == room_id.as_str()) => rooms.push(room_id.as_str().into()),
                _ => return Ok(()),
            }
            unless_too_large(put_entry(w, user, GLOBAL, DIRECT, json!(people).to_string().as_bytes()))
        })
        .await
    }
}

fn copy_tags(w: &mut Write<'_>, user: UserNum, old: &RoomId, new: &RoomId) -> Result<(), Error> {
    let (Some(old), Some(new)) = (room::num(w, old.as_str())?, room::num(w, new.as_str())?) else { return Ok(()) };
    let Some(tags) = account_data::get(w, user, old, TAG)? else { return Ok(()) };
    if account_data::get(w, user, new, TAG)?.is_some() {
        return Ok(());
    }
    unless_too_large(put_entry(w, user, new, TAG, &tags))
}

/// The new room stands beside the old one for everybody the old one is a direct chat with.
fn copy_direct(w: &mut Write<'_>, user: UserNum, old: &RoomId, new: &RoomId) -> Result<(), Error> {
    let Some(json) = account_data::get(w, user, GLOBAL, DIRECT)?.filter(|json| !is_large(json)) else {
        return Ok(());
    };
    let Ok(Value::Object(mut people)) = serde_json::from_slice(&json) else { return Ok(()) };
    let mut changed = false;
    for rooms in people.values_mut().filter_map(Value::as_array_mut) {
        if rooms.iter().any(|id| id == old.as_str()) && !rooms.iter().any(|id| id == new.as_str()) {
            rooms.push(new.as_str().into());
            changed = true;
        }
    }
    match changed {
        true => unless_too_large(put_entry(w, user, GLOBAL, DIRECT, json!(people).to_string().as_bytes())),
        false => Ok(()),
    }
}

/// The rules of the room, and the user's rules with a condition that names it.
fn copy_push_rules(w: &mut Write<'_>, user: UserNum, old: &RoomId, new: &RoomId) -> Result<(), Error> {
    if push_rule::is_default(w, user)? {
        return Ok(());
    }
    let user_id = lookup::id_of(w, user)?;
    let mut rules = push_rule::get(w, user, default_rules(&user_id))?;
    if !copied(&mut rules, &old.to_owned(), &new.to_owned()) || is_too_much(&rules) {
        return Ok(());
    }
    push_rule::set(w, user, &rules)?;
    w.announce(Change { users: vec![user], ..Change::default() });
    Ok(())
}

/// Whether there was a rule to copy.
fn copied(rules: &mut Ruleset, old: &OwnedRoomId, new: &OwnedRoomId) -> bool {
    let before = rules.iter().count();
    if let Some(rule) = rules.room.iter().find(|rule| rule.rule_id == *old).cloned() {
        let mut rule = rule;
        rule.rule_id = new.clone();
        rules.room.insert(rule);
    }
    for list in [&mut rules.override_, &mut rules.underride] {
        let more: Vec<_> = list
            .iter()
            .filter_map(|rule| Some((rule.rule_id.clone(), moved(rule, old, new)?)))
            .take(RULES_MAX)
            .collect();
        // Each stands before the rule it is a copy of, and so behind the one that turns everything off.
        for (original, rule) in more {
            let place = list.iter().position(|other| other.rule_id == original).unwrap_or(0);
            if !list.contains(&rule) {
                list.shift_insert(place, rule);
            }
        }
    }
    rules.iter().count() != before
}

/// A user's rule about a room, for another room.
fn moved(rule: &ConditionalPushRule, old: &RoomId, new: &RoomId) -> Option<ConditionalPushRule> {
    let is_about = |condition: &PushCondition| matches!(condition, PushCondition::EventMatch(event) if event.key == "room_id" && event.pattern == old.as_str());
    if rule.default || !rule.conditions.iter().any(is_about) {
        return None;
    }
    let mut rule = rule.clone();
    rule.rule_id = match rule.rule_id.contains(old.as_str()) {
        true => rule.rule_id.replace(old.as_str(), new.as_str()),
        false => format!("{} {new}", rule.rule_id),
    };
    for condition in &mut rule.conditions {
        if let PushCondition::EventMatch(event) = condition
            && event.key == "room_id"
            && event.pattern == old.as_str()
        {
            event.pattern = new.to_string();
        }
    }
    Some(rule)
}

fn unless_too_large(put: Result<(), Error>) -> Result<(), Error> {
    match put {
        Err(Error::TooLarge(_)) => Ok(()),
        put => put,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::NewRule;
    use crate::user::tests::town;

    #[tokio::test]
    async fn tags_direct_chats_and_push_rules_go_on_in_the_new_room() {
        let town = town();
        let anna = town.person("anna").await;
        let (old, new) = (RoomId::parse("!old:here.test").unwrap(), RoomId::parse("!new:here.test").unwrap());
        let made = town.users.write(|w| {
            room::intern(w, "!old:here.test", "11")?;
            Ok(room::intern(w, "!new:here.test", "12").map(drop)?)
        });
        made.await.unwrap();
        let users = &town.users;
        users.set_tag(anna.user_num, &old, "m.favourite", Some(serde_json::Map::new())).await.unwrap();
        let direct = serde_json::value::to_raw_value(&json!({ "@bob:far.test": [old], "@eve:far.test": ["!x:y"] }));
        users.set_account_data(anna.user_num, None, DIRECT, direct.unwrap()).await.unwrap();
        let mute: NewRule = serde_json::from_value(json!({ "actions": [] })).unwrap();
        users.set_push_rule(&anna, "room", old.as_str(), mute, None, None).await.unwrap();
        let condition = json!({ "kind": "event_match", "key": "room_id", "pattern": old });
        let silent: NewRule = serde_json::from_value(json!({ "actions": [], "conditions": [condition] })).unwrap();
        users.set_push_rule(&anna, "override", old.as_str(), silent, None, None).await.unwrap();
        for _ in 0..2 {
            users.follow_upgrade(anna.user_num, &old, &new).await.unwrap();
        }
        assert!(users.tags(anna.user_num, &new).await.unwrap()["tags"]["m.favourite"].is_object());
        let kept = users.account_data(anna.user_num, None, DIRECT).await.unwrap();
        let kept: Value = serde_json::from_slice(&kept).unwrap();
        assert_eq!(kept, json!({ "@bob:far.test": [old, new], "@eve:far.test": ["!x:y"] }));
        assert_eq!(users.push_rule(anna.user_num, "room", new.as_str()).await.unwrap()["actions"], json!([]));
        let copy = users.push_rule(anna.user_num, "override", new.as_str()).await.unwrap();
        assert_eq!(copy["conditions"][0]["pattern"], new.as_str());
        let all = users.push_rules(anna.user_num).await.unwrap();
        let ids: Vec<_> = all["override"].as_array().unwrap().iter().map(|rule| rule["rule_id"].clone()).collect();
        assert_eq!(ids[..3], [json!(".m.rule.master"), json!(new), json!(old)]);
        assert_eq!(ids.iter().filter(|id| **id == json!(new)).count(), 1);
    }
}
