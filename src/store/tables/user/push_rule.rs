//! A user's push rules: the account data entry `m.push_rules`, or the server's defaults when nothing was changed.

use ruma::push::{ConditionalPushRule, Ruleset};
use serde::Deserialize;
use serde_json::{Value, json};

use super::account_data::{self, GLOBAL};
use crate::store::schema::ACCOUNT_DATA;
use crate::store::{Error, Get, Position, Result, UserNum, Write};

/// The account data type that holds them.
pub const KIND: &str = "m.push_rules";

/// The content of `m.push_rules`.
#[derive(Debug, Deserialize)]
struct Content {
    global: Ruleset,
}

/// The rules that hold for a user: `defaults`, the server's rules of today, with what the user changed of them and added.
pub fn get(get: &impl Get, user: UserNum, defaults: Ruleset) -> Result<Ruleset> {
    let Some(json) = account_data::get(get, user, GLOBAL, KIND)? else { return Ok(defaults) };
    let mut rules = parse(user, &json)?;
    // ruma leaves this kind out.
    let before = std::mem::take(&mut rules.postcontent);
    let kept = |mut rule: ConditionalPushRule| {
        if let Some(old) = before.get(rule.rule_id.as_str()) {
            (rule.enabled, rule.actions) = (old.enabled, old.actions.clone());
        }
        rule
    };
    let postcontent = defaults.postcontent.iter().cloned().map(kept).collect();
    rules.update_with_server_default(defaults);
    rules.postcontent = postcontent;
    Ok(rules)
}

/// Whether the user changed any rule; a user without changes shares the defaults.
pub fn is_default(get: &impl Get, user: UserNum) -> Result<bool> {
    Ok(account_data::get(get, user, GLOBAL, KIND)?.is_none())
}

pub fn set(w: &mut Write<'_>, user: UserNum, rules: &Ruleset) -> Result<Position> {
    account_data::set(w, user, GLOBAL, KIND, &to_json(rules))
}

/// The content of `m.push_rules` as JSON text.
pub fn to_json(rules: &Ruleset) -> Vec<u8> {
    json!({ "global": by_kind(rules) }).to_string().into_bytes()
}

/// The rules by kind: `{"override": […], …}`. All kinds are there, also when they have no rules.
pub fn by_kind(rules: &Ruleset) -> Value {
    let Ruleset { override_, content, postcontent, room, sender, underride, .. } = rules;
    json!({
        "override": override_, "content": content, "postcontent": postcontent, "room": room, "sender": sender,
        "underride": underride,
    })
}

fn parse(user: UserNum, json: &[u8]) -> Result<Ruleset> {
    let content: Content = serde_json::from_slice(json).map_err(|_| Error::corrupt(&ACCOUNT_DATA, &user.to_key()))?;
    Ok(content.global)
}
