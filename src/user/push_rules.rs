//! Push rules: the specification's defaults, and what a user made of them.
//!
//! The rules and how they are put in order are ruma's; here they are kept and bounded.

use ruma::push::{
    Action, InsertPushRuleError, NewConditionalPushRule, NewPatternedPushRule, NewPushRule, NewSimplePushRule,
    PushCondition, RemovePushRuleError, RuleKind, RuleNotFoundError, Ruleset,
};
use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Error, Requester, Users, account};
use crate::store::tables::push_rule;
use crate::store::{Change, UserNum};

/// Rules of one user, defaults included: each is tried for every event of their rooms.
const RULES_MAX: usize = 500;
/// Of all of them together as JSON.
const RULES_BYTES_MAX: usize = 128 << 10;

/// A rule as an app writes it.
#[derive(Deserialize)]
pub struct NewRule {
    #[serde(default)]
    actions: Vec<Action>,
    #[serde(default)]
    conditions: Vec<PushCondition>,
    #[serde(default)]
    pattern: Option<String>,
}

impl Users {
    /// All rules that hold for a user: `{"override": […], …}`.
    pub async fn push_rules(&self, user: UserNum) -> Result<Value, Error> {
        let rules = self.ruleset(user).await?;
        serde_json::to_value(rules).map_err(|wrong| Error::invalid(wrong.to_string()))
    }

    /// One rule.
    pub async fn push_rule(&self, user: UserNum, kind: &str, rule_id: &str) -> Result<Value, Error> {
        let kind = checked_kind(kind)?;
        let rules = self.push_rules(user).await?;
        let of_kind = rules.get(kind.as_str()).and_then(Value::as_array);
        let rule = of_kind.and_then(|rules| rules.iter().find(|rule| rule["rule_id"] == rule_id));
        rule.cloned().ok_or(Error::NotFound("push rule"))
    }

    /// Makes or replaces a rule of the user's own.
    pub async fn set_push_rule(
        &self,
        requester: &Requester,
        kind: &str,
        rule_id: &str,
        rule: NewRule,
        after: Option<String>,
        before: Option<String>,
    ) -> Result<(), Error> {
        let rule = new_rule(&checked_kind(kind)?, rule_id, rule)?;
        self.change_rules(requester, move |rules| {
            rules.insert(rule, after.as_deref(), before.as_deref()).map_err(|wrong| match wrong {
                InsertPushRuleError::UnknownRuleId => Error::NotFound("push rule to put it beside"),
                wrong => Error::invalid(wrong.to_string()),
            })
        })
        .await
    }

    pub async fn remove_push_rule(&self, requester: &Requester, kind: &str, rule_id: &str) -> Result<(), Error> {
        let (kind, rule_id) = (checked_kind(kind)?, rule_id.to_owned());
        self.change_rules(requester, move |rules| {
            rules.remove(kind, &rule_id).map_err(|wrong| match wrong {
                RemovePushRuleError::NotFound => Error::NotFound("push rule"),
                wrong => Error::invalid(wrong.to_string()),
            })
        })
        .await
    }

    pub async fn enable_push_rule(
        &self,
        requester: &Requester,
        kind: &str,
        rule_id: &str,
        enabled: bool,
    ) -> Result<(), Error> {
        let (kind, rule_id) = (checked_kind(kind)?, rule_id.to_owned());
        self.change_rules(requester, move |rules| rules.set_enabled(kind, &rule_id, enabled).map_err(no_rule)).await
    }

    pub async fn set_push_actions(
        &self,
        requester: &Requester,
        kind: &str,
        rule_id: &str,
        actions: Vec<Action>,
    ) -> Result<(), Error> {
        let (kind, rule_id) = (checked_kind(kind)?, rule_id.to_owned());
        self.change_rules(requester, move |rules| rules.set_actions(kind, &rule_id, actions).map_err(no_rule)).await
    }

    async fn ruleset(&self, user: UserNum) -> Result<Ruleset, Error> {
        self.read(move |get| {
            let user_id = account::id_of(get, user)?;
            Ok(push_rule::get(get, user, &user_id)?)
        })
        .await
    }

    async fn change_rules(
        &self,
        requester: &Requester,
        change: impl FnOnce(&mut Ruleset) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (user, user_id) = (requester.user_num, requester.user_id.clone());
        self.write(move |w| {
            let mut rules = push_rule::get(w, user, &user_id)?;
            change(&mut rules)?;
            if rules.iter().count() > RULES_MAX || json!(rules).to_string().len() > RULES_BYTES_MAX {
                return Err(Error::TooLarge(format!("One user may have {RULES_MAX} push rules")));
            }
            push_rule::set(w, user, rules)?;
            w.announce(Change { users: vec![user], ..Change::default() });
            Ok(())
        })
        .await
    }
}

fn no_rule(_: RuleNotFoundError) -> Error {
    Error::NotFound("push rule")
}

fn checked_kind(kind: &str) -> Result<RuleKind, Error> {
    match RuleKind::from(kind) {
        known @ (RuleKind::Override | RuleKind::Underride | RuleKind::Sender | RuleKind::Room | RuleKind::Content) => {
            Ok(known)
        }
        _ => Err(Error::invalid("There is no such kind of push rules")),
    }
}

fn new_rule(kind: &RuleKind, rule_id: &str, rule: NewRule) -> Result<NewPushRule, Error> {
    let id = rule_id.to_owned();
    let wrong = |what: &str| Error::invalid(format!("The id of such a rule is a {what} id"));
    Ok(match kind {
        RuleKind::Override => NewPushRule::Override(NewConditionalPushRule::new(id, rule.conditions, rule.actions)),
        RuleKind::Underride => NewPushRule::Underride(NewConditionalPushRule::new(id, rule.conditions, rule.actions)),
        RuleKind::Sender => {
            let user = OwnedUserId::try_from(id).map_err(|_| wrong("user"))?;
            NewPushRule::Sender(NewSimplePushRule::new(user, rule.actions))
        }
        RuleKind::Room => {
            let room = OwnedRoomId::try_from(id).map_err(|_| wrong("room"))?;
            NewPushRule::Room(NewSimplePushRule::new(room, rule.actions))
        }
        _ => {
            let pattern = rule.pattern.ok_or_else(|| Error::bad("M_MISSING_PARAM", "A content rule has a pattern"))?;
            NewPushRule::Content(NewPatternedPushRule::new(id, pattern, rule.actions))
        }
    })
}
