//! Push rules: the specification's defaults, and each user's changes.
//!
//! The rules and their matching are ruma's; here they are ordered, stored and bounded.

use ruma::push::{
    Action, ConditionalPushRule, InsertPushRuleError, NewConditionalPushRule, NewPatternedPushRule, NewPushRule,
    NewSimplePushRule, PatternedPushRule, PushCondition, RemovePushRuleError, RuleKind, RuleNotFoundError, Ruleset,
    SimplePushRule,
};
use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::Value;

use crate::matrix::push::default_rules;
use crate::store::tables::user::push_rule;
use crate::store::{Change, UserNum};
use crate::user::lookup;
use crate::user::{Error, Requester, Users};

/// The most rules of one user, defaults included: each is tried for every event of the user's rooms.
pub(super) const RULES_MAX: usize = 500;
/// The limit of one user's rules together, as JSON.
const RULES_BYTES_MAX: usize = 128 << 10;

/// A rule as sent by an app.
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
    /// All rules of a user, all kinds: `{"override": […], …}`.
    pub async fn push_rules(&self, user: UserNum) -> Result<Value, Error> {
        Ok(push_rule::by_kind(&self.ruleset(user).await?))
    }

    /// One rule.
    pub async fn push_rule(&self, user: UserNum, kind: &str, rule_id: &str) -> Result<Value, Error> {
        let kind = checked_kind(kind)?;
        let rules = self.push_rules(user).await?;
        let name = if kind == RuleKind::PostContent { "postcontent" } else { kind.as_str() };
        let of_kind = rules.get(name).and_then(Value::as_array);
        let rule = of_kind.and_then(|rules| rules.iter().find(|rule| rule["rule_id"] == rule_id));
        rule.cloned().ok_or(Error::NotFound("push rule"))
    }

    /// Creates or replaces a user-defined rule.
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
            insert(rules, rule, &Beside { after: after.as_deref(), before: before.as_deref() })
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
            let user_id = lookup::id_of(get, user)?;
            Ok(push_rule::get(get, user, default_rules(&user_id))?)
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
            let mut rules = push_rule::get(w, user, default_rules(&user_id))?;
            change(&mut rules)?;
            if is_too_much(&rules) {
                return Err(Error::TooLarge(format!("A user may have {RULES_MAX} push rules at most")));
            }
            push_rule::set(w, user, &rules)?;
            w.announce(Change { users: vec![user], ..Change::default() });
            Ok(())
        })
        .await
    }
}

/// Whether these are more rules than one user may have.
pub(super) fn is_too_much(rules: &Ruleset) -> bool {
    rules.iter().count() > RULES_MAX || push_rule::to_json(rules).len() > RULES_BYTES_MAX
}

/// The position of a rule: behind one of the user's rules, in front of one, or between two.
#[derive(Clone, Copy, Default)]
struct Beside<'a> {
    after: Option<&'a str>,
    before: Option<&'a str>,
}

/// Puts a user's rule among those of its kind. Without a position a new rule comes first, and an existing one keeps its
/// place. After an error the rules must not be stored.
fn insert(rules: &mut Ruleset, rule: NewPushRule, beside: &Beside<'_>) -> Result<(), Error> {
    check_ids(rule.rule_id(), beside).map_err(|wrong| Error::invalid(wrong.to_string()))?;
    match rule {
        NewPushRule::Override(rule) => {
            // The rule that turns everything off stays in front of all others.
            let first = usize::from(rules.override_.first().is_some_and(|rule| rule.default));
            let list = std::mem::take(&mut rules.override_).into_iter().collect();
            rules.override_ = put(list, ConditionalPushRule::from(rule), first, beside)?.into_iter().collect();
        }
        NewPushRule::Underride(rule) => {
            let list = std::mem::take(&mut rules.underride).into_iter().collect();
            rules.underride = put(list, ConditionalPushRule::from(rule), 0, beside)?.into_iter().collect();
        }
        NewPushRule::Content(rule) => {
            let list = std::mem::take(&mut rules.content).into_iter().collect();
            rules.content = put(list, PatternedPushRule::from(rule), 0, beside)?.into_iter().collect();
        }
        NewPushRule::Room(rule) => {
            let list = std::mem::take(&mut rules.room).into_iter().collect();
            rules.room = put(list, SimplePushRule::from(rule), 0, beside)?.into_iter().collect();
        }
        NewPushRule::Sender(rule) => {
            let list = std::mem::take(&mut rules.sender).into_iter().collect();
            rules.sender = put(list, SimplePushRule::from(rule), 0, beside)?.into_iter().collect();
        }
        _ => return Err(Error::NotFound("kind of push rules")),
    }
    Ok(())
}

fn check_ids(rule_id: &str, beside: &Beside<'_>) -> Result<(), InsertPushRuleError> {
    if rule_id.starts_with('.') {
        return Err(InsertPushRuleError::ServerDefaultRuleId);
    }
    if rule_id.contains(['/', '\\']) {
        return Err(InsertPushRuleError::InvalidRuleId);
    }
    if [beside.after, beside.before].into_iter().flatten().any(|other| other.starts_with('.')) {
        return Err(InsertPushRuleError::RelativeToServerDefaultRule);
    }
    Ok(())
}

/// The list with the rule in it. An existing rule is taken out first, since its position is counted among the others.
fn put<T: Ordered>(mut list: Vec<T>, mut rule: T, first: usize, beside: &Beside<'_>) -> Result<Vec<T>, Error> {
    if [beside.after, beside.before].contains(&Some(rule.id())) {
        return Err(Error::invalid("A push rule cannot be placed before or after itself"));
    }
    let was = list.iter().position(|other| other.id() == rule.id());
    if let Some(was) = was {
        rule.set_enabled(list.remove(was).is_enabled());
    }
    let place_of = |id: &str| {
        let place = list.iter().position(|other| other.id() == id);
        place.ok_or(Error::NotFound("push rule to put it beside"))
    };
    let after = beside.after.map(place_of).transpose()?;
    let before = beside.before.map(place_of).transpose()?;
    let place = match (after, before) {
        (Some(after), Some(before)) if before <= after => {
            return Err(Error::invalid(InsertPushRuleError::BeforeHigherThanAfter.to_string()));
        }
        (_, Some(before)) => before,
        (Some(after), None) => after + 1,
        (None, None) => was.unwrap_or(first.min(list.len())),
    };
    list.insert(place, rule);
    Ok(list)
}

/// The operations on a rule that ordering needs, for every kind.
trait Ordered {
    fn id(&self) -> &str;
    fn is_enabled(&self) -> bool;
    fn set_enabled(&mut self, enabled: bool);
}

impl Ordered for ConditionalPushRule {
    fn id(&self) -> &str {
        &self.rule_id
    }

    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }
}

impl Ordered for PatternedPushRule {
    fn id(&self) -> &str {
        &self.rule_id
    }

    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }
}

impl<T: AsRef<str>> Ordered for SimplePushRule<T> {
    fn id(&self) -> &str {
        self.rule_id.as_ref()
    }

    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
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
        // Under both names: the proposal has the first one (MSC4306).
        _ if kind == "postcontent" => Ok(RuleKind::PostContent),
        RuleKind::PostContent => Ok(RuleKind::PostContent),
        _ => Err(Error::NotFound("kind of push rules")),
    }
}

fn new_rule(kind: &RuleKind, rule_id: &str, rule: NewRule) -> Result<NewPushRule, Error> {
    let id = rule_id.to_owned();
    let wrong = |what: &str| Error::invalid(format!("The ID of a push rule of this kind must be a {what} ID"));
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
        RuleKind::PostContent => return Err(Error::invalid("Only the server has push rules of this kind")),
        _ => {
            let pattern =
                rule.pattern.ok_or_else(|| Error::bad("M_MISSING_PARAM", "A content rule needs a pattern"))?;
            NewPushRule::Content(NewPatternedPushRule::new(id, pattern, rule.actions))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Random;
    use crate::store::tables::user::account_data;
    use ruma::{room_id, user_id};
    use serde_json::json;

    fn content(id: &str) -> NewPushRule {
        NewPushRule::Content(NewPatternedPushRule::new(id.to_owned(), id.to_owned(), Vec::new()))
    }

    fn ids(rules: &Ruleset) -> Vec<String> {
        rules.content.iter().map(|rule| rule.rule_id.clone()).collect()
    }

    /// An app put its first rule behind its last one, and the server crashed: the place was counted with the rule still
    /// in the list, so it lay behind the end. A rule beside itself did the same.
    #[test]
    fn the_first_rule_goes_behind_the_last_and_none_beside_itself() {
        let mut rules = Ruleset::new();
        for id in ["c", "b", "a"] {
            insert(&mut rules, content(id), &Beside::default()).unwrap();
        }
        assert_eq!(ids(&rules), ["a", "b", "c"]);
        insert(&mut rules, content("a"), &Beside { after: Some("c"), before: None }).unwrap();
        assert_eq!(ids(&rules), ["b", "c", "a"]);
        for (after, before) in [(Some("x"), None), (None, Some("x")), (Some("a"), Some("x"))] {
            let wrong = insert(&mut rules.clone(), content("x"), &Beside { after, before });
            assert!(matches!(wrong, Err(Error::Bad { .. })), "{wrong:?}");
        }
        let unknown = insert(&mut rules.clone(), content("a"), &Beside { after: Some("y"), before: None });
        assert!(matches!(unknown, Err(Error::NotFound(_))));
    }

    /// A rule beside the last of the user's own stays in front of the server's, in every kind that has some.
    #[test]
    fn rules_of_the_user_come_before_those_of_the_server() {
        let mut rules = default_rules(user_id!("@a:x"));
        let new = |id: &str| NewConditionalPushRule::new(id.to_owned(), Vec::new(), Vec::new());
        for (id, after) in [("a", None), ("b", Some("a"))] {
            let beside = Beside { after, before: None };
            insert(&mut rules, NewPushRule::Override(new(id)), &beside).unwrap();
            insert(&mut rules, NewPushRule::Underride(new(id)), &beside).unwrap();
            insert(&mut rules, content(id), &beside).unwrap();
        }
        let first = |rules: &ruma::push::Ruleset, kind: &str| {
            let of_kind = push_rule::by_kind(rules)[kind].clone();
            let own = of_kind.as_array().unwrap().iter().filter(|rule| rule["rule_id"] != ".m.rule.master");
            own.take(3).map(|rule| rule["rule_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        for kind in ["override", "underride", "content"] {
            let [a, b, default] = &first(&rules, kind)[..] else { panic!("no default of {kind}") };
            assert_eq!((a.as_str(), b.as_str()), ("a", "b"));
            assert!(default.starts_with('.'), "{default}");
        }
    }

    /// Rules that the server had once are passed by where a user's rules were stored with them.
    #[tokio::test]
    async fn a_stored_rule_that_the_server_has_no_more_is_passed_by() {
        let (store, user) = (crate::store::Store::in_memory(), UserNum(1));
        let gone = |id: &str| json!({ "rule_id": id, "default": true, "enabled": false, "actions": [] });
        let mut of_room = gone(".m.rule.of_old");
        of_room["conditions"] = json!([{ "kind": "event_match", "key": "content.body", "pattern": "@room" }]);
        let mut of_name = gone(".m.rule.name_of_old");
        of_name["pattern"] = json!("a");
        let mut master = gone(".m.rule.master");
        (master["conditions"], master["enabled"]) = (json!([]), json!(true));
        let stored = json!({ "global": { "override": [master, of_room], "content": [of_name] } }).to_string();
        store
            .write(move |w| account_data::set(w, user, account_data::GLOBAL, push_rule::KIND, stored.as_bytes()))
            .await
            .map_err(|failed: crate::store::WriteError<crate::store::Error>| failed.into_inner())
            .unwrap();
        let rules = push_rule::get(&store.read().unwrap(), user, default_rules(user_id!("@a:x"))).unwrap();
        assert!(rules.override_.get(".m.rule.master").unwrap().enabled, "what the user changed of the others holds");
        assert!(rules.override_.get(".m.rule.of_old").is_none() && rules.content.get(".m.rule.name_of_old").is_none());
        assert!(rules.override_.get(".m.rule.is_room_mention").is_some());
    }

    #[test]
    fn no_rule_comes_before_the_one_that_turns_all_off() {
        let user = user_id!("@a:x");
        let new = || NewPushRule::Override(NewConditionalPushRule::new("mine".to_owned(), Vec::new(), Vec::new()));
        for mut rules in [Ruleset::server_default(user), Ruleset::new()] {
            insert(&mut rules, new(), &Beside::default()).unwrap();
            let place = rules.override_.iter().position(|rule| rule.rule_id == "mine").unwrap();
            assert_eq!(place, usize::from(rules.override_.len() > 1));
        }
        let mut rules = Ruleset::server_default(user);
        insert(
            &mut rules,
            NewPushRule::Sender(NewSimplePushRule::new(user.to_owned(), Vec::new())),
            &Beside::default(),
        )
        .unwrap();
        let room = room_id!("!r:x").to_owned();
        insert(&mut rules, NewPushRule::Room(NewSimplePushRule::new(room, Vec::new())), &Beside::default()).unwrap();
        let all = Beside { after: Some(".m.rule.master"), before: None };
        assert!(matches!(insert(&mut rules, new(), &all), Err(Error::Bad { .. })));
    }

    /// Compared with a plain list of names that follows the specification's sentence for each parameter.
    #[test]
    fn any_order_of_moves_is_what_a_plain_list_makes_of_it() {
        let random = Random::seeded(11);
        let names = ["a", "b", "c", "d", "e", "f"];
        let pick = |random: &Random| names[random.below(names.len() as u64) as usize];
        let (mut rules, mut model): (Ruleset, Vec<&str>) = (Ruleset::new(), Vec::new());
        for _ in 0..20_000 {
            let name = pick(&random);
            if random.below(8) == 0 {
                assert_eq!(rules.remove(RuleKind::Content, name).is_ok(), model.contains(&name));
                model.retain(|other| *other != name);
                continue;
            }
            let beside = |random: &Random| (random.below(2) == 0).then(|| pick(random));
            let (after, before) = (beside(&random), beside(&random));
            let wanted = moved(&model, name, after, before);
            let mut tried = rules.clone();
            let put = insert(&mut tried, content(name), &Beside { after, before });
            assert_eq!(put.is_ok(), wanted.is_some(), "{model:?} {name} {after:?} {before:?}");
            if let Some(wanted) = wanted {
                (rules, model) = (tried, wanted);
            }
            assert_eq!(ids(&rules), model);
        }
    }

    fn moved<'a>(model: &[&'a str], name: &'a str, after: Option<&str>, before: Option<&str>) -> Option<Vec<&'a str>> {
        let mut others: Vec<&str> = model.iter().copied().filter(|other| *other != name).collect();
        let place = match (after, before) {
            (None, None) => model.iter().position(|other| *other == name).unwrap_or(0),
            (Some(after), None) => others.iter().position(|other| *other == after)? + 1,
            (None, Some(before)) => others.iter().position(|other| *other == before)?,
            (Some(after), Some(before)) => {
                let after = others.iter().position(|other| *other == after)?;
                let before = others.iter().position(|other| *other == before)?;
                (after < before).then_some(before)?
            }
        };
        others.insert(place, name);
        Some(others)
    }
}
