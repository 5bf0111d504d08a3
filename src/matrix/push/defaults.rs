//! The rules a user starts with.
//!
//! The specification's, those about polls (MSC3930) and invites to calls (MSC4075), and the one that phones switch on which decrypt everything before they
//! judge it (MSC4028). An event says itself who is mentioned (`m.mentions`): the rules that looked for names in its text left
//! the specification with version 1.17 (MSC4210).

use ruma::UserId;
use ruma::push::{
    Action, ConditionalPushRule, ConditionalPushRuleInit, EventMatchConditionData, EventPropertyIsConditionData,
    PushCondition, RoomMemberCountConditionData, RoomMemberCountIs, Ruleset, SoundTweakValue, Tweak,
};
use ruma::uint;

const ENCRYPTED_EVENT: &str = ".org.matrix.msc4028.encrypted_event";

/// The rules a new user starts with.
pub fn default_rules(user: &UserId) -> Ruleset {
    let mut rules = Ruleset::server_default(user);
    // Behind the one that switches everything off.
    let behind_master = rules.override_.len().min(1);
    rules.override_.shift_insert(behind_master, encrypted_event());
    for (kind, mention) in [("me", ".m.rule.is_user_mention"), ("room", ".m.rule.is_room_mention")] {
        if let Some(place) = rules.override_.get_index_of(mention) {
            let invite = invite_to_call(kind, &rules.override_[place].conditions);
            rules.override_.shift_insert(place, invite);
        }
    }
    rules.override_.insert(poll("poll_response", "response", false, vec![]));
    for event in ["start", "end"] {
        let sound = Action::SetTweak(Tweak::Sound(SoundTweakValue::Default));
        rules.underride.insert(poll(&format!("poll_{event}_one_to_one"), event, true, vec![Action::Notify, sound]));
        rules.underride.insert(poll(&format!("poll_{event}"), event, false, vec![Action::Notify]));
    }
    rules
}

/// A rule about events of polls, in rooms of two or in all.
fn poll(name: &str, event: &str, of_two: bool, actions: Vec<Action>) -> ConditionalPushRule {
    let mut conditions = Vec::new();
    if of_two {
        conditions.push(RoomMemberCountConditionData::new(RoomMemberCountIs::from(uint!(2))).into());
    }
    // As Synapse has it: apps of before there was `event_property_is` know this kind of condition.
    let kind = format!("org.matrix.msc3381.poll.{event}");
    conditions.push(EventMatchConditionData::new("type".to_owned(), kind).into());
    default_rule(&format!(".org.matrix.msc3930.rule.{name}"), conditions, actions)
}

fn is_of_type(kind: &str) -> PushCondition {
    EventPropertyIsConditionData::new("type".to_owned(), kind.to_owned().into()).into()
}

/// A mention that invites to a call rings (MSC4075): before the rule for other such mentions, whose conditions it has too.
fn invite_to_call(whom: &str, mention: &[PushCondition]) -> ConditionalPushRule {
    let kind = EventMatchConditionData::new("type".to_owned(), "org.matrix.msc4075.rtc.invite".to_owned());
    let conditions = std::iter::once(kind.into()).chain(mention.iter().cloned()).collect();
    let ring = Action::SetTweak(Tweak::Sound(SoundTweakValue::from("ring")));
    default_rule(&format!(".org.matrix.msc4075.rule.rtc.invite_for_{whom}"), conditions, vec![Action::Notify, ring])
}

/// Off until an app switches it on.
fn encrypted_event() -> ConditionalPushRule {
    let mut rule = default_rule(ENCRYPTED_EVENT, vec![is_of_type("m.room.encrypted")], vec![Action::Notify]);
    rule.enabled = false;
    rule
}

fn default_rule(id: &str, conditions: Vec<PushCondition>, actions: Vec<Action>) -> ConditionalPushRule {
    ConditionalPushRuleInit { actions, default: true, enabled: true, rule_id: id.to_owned(), conditions }.into()
}
