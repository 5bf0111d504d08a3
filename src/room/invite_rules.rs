//! Whose invites a user takes (client-server API, "Invite permissions"; and the lists of MSC4155).
//!
//! Apps keep the rules as account data, under the name of the specification or under those from before. An entry has 64 KiB
//! at most; it is read in place, and its patterns are held against two names of 255 bytes, with a bound on what that takes: an invite is
//! judged by the writer too.
//!
//! A sync asks for each invite, of which anybody may send a user many: what came of an inviter under the same rules is remembered
//! ([`Verdicts`]), and where there are no rules, nothing is looked up at all.

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::ignored;
use crate::matrix::acl::glob_matches;
use crate::matrix::id::split_port;
use crate::matrix::json::partial;
use crate::store::tables::user;
use crate::store::tables::user::account_data::{self, GLOBAL};
use crate::store::{Get, Position, Result, UserNum};

/// The types of account data that hold rules, each with the errcode of an invite that they block.
const KINDS: [(&str, &str); 3] = [
    ("m.invite_permission_config", "M_INVITE_BLOCKED"),
    ("org.matrix.msc4380.invite_permission_config", "M_INVITE_BLOCKED"),
    ("org.matrix.msc4155.invite_permission_config", "ORG.MATRIX.MSC4155.M_INVITE_BLOCKED"),
];

/// The lists of patterns in the order in which they are asked, and what the first that fits decides.
const LISTS: [(&str, Action); 6] = [
    ("allowed_users", Action::Allow),
    ("ignored_users", Action::Ignore),
    ("blocked_users", Action::Block),
    ("allowed_servers", Action::Allow),
    ("ignored_servers", Action::Ignore),
    ("blocked_servers", Action::Block),
];

/// Bytes of a longest name. A longer pattern says the same as a shorter one, or nothing.
const PATTERN_BYTES_MAX: usize = 255;
/// Steps that the patterns with wildcards of an entry take at most, counted as bytes of the pattern times those of the name: all of an
/// entry for a name of 32 bytes, and some milliseconds. Patterns beyond that fit nothing.
const STEPS_MAX: usize = 2 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Allow,
    Ignore,
    Block,
}

/// What becomes of an invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// The inviter is told nothing, and neither are the user's apps.
    Ignore,
    /// The inviter is told that it is refused, with this errcode.
    Block(&'static str),
}

/// What a local user's rules make of an invite by the user with the id `inviter`. The account of this server's notices is
/// outside of them: its invites cannot be declined either.
pub fn verdict(get: &impl Get, user: UserNum, inviter: &str) -> Result<Verdict> {
    match ruled(get, user, inviter)? {
        Verdict::Allow => Ok(Verdict::Allow),
        other => match user::notice_room(get, user)? {
            Some((_, by)) if user::id(get, by)?.as_deref() == Some(inviter) => Ok(Verdict::Allow),
            _ => Ok(other),
        },
    }
}

fn ruled(get: &impl Get, user: UserNum, inviter: &str) -> Result<Verdict> {
    let mut verdict = Verdict::Allow;
    for (kind, errcode) in KINDS {
        let Some(rules) = account_data::get(get, user, GLOBAL, kind)? else { continue };
        match action(&rules, inviter) {
            Action::Allow => {}
            Action::Ignore => verdict = Verdict::Ignore,
            Action::Block => return Ok(Verdict::Block(errcode)),
        }
    }
    Ok(verdict)
}

/// The rules of a user as they are now, by when each was set: none where there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    user: UserNum,
    set: [Option<Position>; KINDS.len() + 1],
}

impl Rules {
    /// Reads the entries, and none of what is in them.
    pub fn of(get: &impl Get, user: UserNum) -> Result<Option<Rules>> {
        let mut set = [None; KINDS.len() + 1];
        for (at, kind) in KINDS.iter().map(|(kind, _)| *kind).chain([ignored::KIND]).enumerate() {
            set[at] = account_data::set_at(get, user, GLOBAL, kind)?;
        }
        Ok(set.iter().any(Option::is_some).then_some(Rules { user, set }))
    }
}

/// What rules made of inviters lately: a cell for each of [`VERDICTS`], which the next that falls on it takes. A cell has 62 bits of
/// a keyed hash of the rules and the inviter, and what came of it.
pub struct Verdicts {
    hasher: RandomState,
    cells: Box<[AtomicU64]>,
}

/// 8 KiB: as many invites as a user has who is sent far too many.
const VERDICTS: usize = 1024;
const IGNORED: u64 = 1;
const REFUSED: u64 = 2;

impl Default for Verdicts {
    fn default() -> Verdicts {
        Verdicts { hasher: RandomState::new(), cells: (0..VERDICTS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Verdicts {
    /// Whether a local user's apps are told nothing of an invite: its sender is ignored, or the rules refuse it. It may be in the
    /// room all the same: from before the rules, or because another server sent it there.
    pub fn hide(&self, get: &impl Get, rules: Option<&Rules>, inviter: &str) -> Result<bool> {
        let Some(rules) = rules else { return Ok(false) };
        let hash = self.hasher.hash_one((rules, inviter));
        let cell = &self.cells[hash as usize % VERDICTS];
        let known = cell.load(Relaxed);
        let is_known = known & !(IGNORED | REFUSED) == hash & !(IGNORED | REFUSED);
        let said = match is_known {
            true => known & (IGNORED | REFUSED),
            false => {
                let ignored = if ignored::is_ignored(get, rules.user, inviter)? { IGNORED } else { 0 };
                let refused = if ruled(get, rules.user, inviter)? == Verdict::Allow { 0 } else { REFUSED };
                let said = ignored | refused;
                cell.store(hash & !(IGNORED | REFUSED) | said, Relaxed);
                said
            }
        };
        Ok(match said {
            0 => false,
            // This server's notices are outside of the rules, whenever they began.
            REFUSED => verdict(get, rules.user, inviter)? != Verdict::Allow,
            _ => true,
        })
    }
}

/// What one entry says. An app may have written anything there; rules that are none allow everything.
fn action(rules: &[u8], inviter: &str) -> Action {
    let server = inviter.split_once(':').map_or("", |(_, server)| split_port(server).0).to_ascii_lowercase();
    let (mut fits, mut blocks_all, mut is_off, mut steps) = ([false; LISTS.len()], false, false, 0);
    let read = partial::each_member(rules, &mut |name, value: &RawValue| {
        match name {
            "default_action" => blocks_all = value.get() == "\"block\"",
            "enabled" => is_off = value.get() == "false",
            _ => {
                if let Some(at) = LISTS.iter().position(|(list, _)| *list == name) {
                    let text = if name.ends_with("servers") { &*server } else { inviter };
                    fits[at] = any_fits(value, text, &mut steps)?;
                }
            }
        }
        Ok::<_, serde_json::Error>(())
    });
    if read.is_err() {
        return Action::Allow;
    }
    match fits.iter().position(|fits| *fits).filter(|_| !is_off) {
        _ if blocks_all => Action::Block,
        Some(first) => LISTS[first].1,
        None => Action::Allow,
    }
}

/// Whether a pattern of a list fits; an error when the value is no list of texts.
fn any_fits(list: &RawValue, text: &str, steps: &mut usize) -> serde_json::Result<bool> {
    Patterns { text, steps }.deserialize(&mut serde_json::Deserializer::from_str(list.get()))
}

/// A list of patterns, parsed without being kept.
struct Patterns<'a> {
    text: &'a str,
    /// Taken so far.
    steps: &'a mut usize,
}

impl Patterns<'_> {
    fn fits(&mut self, pattern: &str) -> bool {
        if !pattern.contains(['*', '?']) {
            return pattern == self.text;
        }
        if pattern.len() > PATTERN_BYTES_MAX {
            return false;
        }
        *self.steps = self.steps.saturating_add(pattern.len() * self.text.len());
        *self.steps <= STEPS_MAX && glob_matches(pattern.as_bytes(), self.text.as_bytes())
    }
}

impl<'de> DeserializeSeed<'de> for Patterns<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, list: D) -> std::result::Result<bool, D::Error> {
        list.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Patterns<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of patterns")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> std::result::Result<bool, A::Error> {
        let mut fits = false;
        while let Some(pattern) = list.next_element::<Cow<'de, str>>()? {
            fits = fits || self.fits(&pattern);
        }
        Ok(fits)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_first_list_that_fits_decides() {
        let check = |rules: Value, wanted: Action| {
            assert_eq!(action(rules.to_string().as_bytes(), "@anna:Good.example:8448"), wanted, "{rules}");
        };
        check(json!({}), Action::Allow);
        check(json!({ "default_action": "block" }), Action::Block);
        check(json!({ "default_action": "allow" }), Action::Allow);
        check(json!({ "blocked_servers": ["*"] }), Action::Block);
        check(json!({ "blocked_servers": ["*"], "enabled": false }), Action::Allow);
        check(json!({ "blocked_servers": ["bad.example", "other*"] }), Action::Allow);
        check(json!({ "blocked_servers": ["*"], "allowed_servers": ["good.*"] }), Action::Allow);
        check(json!({ "blocked_servers": ["*"], "ignored_servers": ["good.example"] }), Action::Ignore);
        check(json!({ "allowed_servers": ["*"], "blocked_users": ["@an?a:*"] }), Action::Block);
        check(json!({ "allowed_users": ["@anna:*"], "ignored_users": ["*"] }), Action::Allow);
        check(json!({ "ignored_users": ["@anna:*"], "blocked_users": ["*"] }), Action::Ignore);
        // A list that is none makes the whole entry none.
        check(json!({ "blocked_servers": ["*"], "allowed_users": "@anna:*" }), Action::Allow);
        check(json!({ "blocked_servers": ["*", 5] }), Action::Allow);
    }

    /// An invite that is judged in a write took as long as the rules of who is invited wanted.
    #[test]
    fn patterns_that_take_long_have_a_bound() {
        let inviter = format!("@{}:good.example", "a".repeat(200));
        let check = |patterns: &[String], wanted: Action| {
            let rules = json!({ "blocked_users": patterns }).to_string();
            assert_eq!(action(rules.as_bytes(), &inviter), wanted);
        };
        let slow = format!("*{}b", "a".repeat(120));
        check(&["@a*:good.example".to_owned()], Action::Block);
        check(&vec![slow.clone(); 60], Action::Allow);
        check(&[vec![slow.clone(); 60], vec!["@a*".to_owned()]].concat(), Action::Block);
        check(&[vec![slow; 90], vec!["@a*".to_owned()]].concat(), Action::Allow);
        check(&[format!("{}@a{}", "*".repeat(200), "*".repeat(200))], Action::Allow);
        // Names themselves are as many as there is room for.
        check(&[vec!["@b:good.example".to_owned(); 3000], vec![inviter.clone()]].concat(), Action::Block);
    }

    /// Each invite in each sync had all rules parsed again, of which there may be 192 KiB.
    #[test]
    fn what_came_of_an_inviter_is_known_until_the_rules_change() {
        let (store, verdicts) = (crate::store::Store::in_memory(), Verdicts::default());
        let job = move |w: &mut crate::store::Write<'_>| {
            let user = user::intern(w, "@anna:here.test")?;
            let hides = |w: &crate::store::Write<'_>, inviter: &str| {
                let rules = Rules::of(w, user)?;
                verdicts.hide(w, rules.as_ref(), inviter)
            };
            assert!(Rules::of(w, user)?.is_none() && !hides(w, "@bad:x")?);
            let kind = KINDS[0].0;
            account_data::set(w, user, GLOBAL, kind, br#"{"blocked_users":["@bad:x"]}"#)?;
            for _ in 0..2 {
                assert!(hides(w, "@bad:x")? && !hides(w, "@good:x")?);
            }
            account_data::set(w, user, GLOBAL, kind, br#"{"default_action":"block"}"#)?;
            assert!(hides(w, "@good:x")? && hides(w, "@bad:x")?);
            account_data::remove(w, user, GLOBAL, kind)?;
            assert!(Rules::of(w, user)?.is_none());
            account_data::set(w, user, GLOBAL, ignored::KIND, br#"{"ignored_users":{"@dull:x":{}}}"#)?;
            for _ in 0..2 {
                assert!(hides(w, "@dull:x")? && !hides(w, "@bad:x")?);
            }
            // Somebody else's rules are others.
            let bert = user::intern(w, "@bert:here.test")?;
            assert!(Rules::of(w, bert)?.is_none());
            Ok::<_, crate::store::Error>(())
        };
        store.write_blocking(job).unwrap();
    }

    #[test]
    fn any_bytes_are_rules_or_none() {
        let seed: &[u8] =
            br#"{"enabled":true,"default_action":"block","allowed_users":["@a*:b"],"blocked_servers":["*"]}"#;
        crate::base::any_bytes::any_bytes(&[seed], |bytes| {
            action(bytes, "@anna:good.example");
        });
    }
}
