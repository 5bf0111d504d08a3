//! Policy lists that a server follows, with another server that they name.

use serde_json::json;

use crate::rooms::{create, eventually, initial, invite, is_invited, join, leave, q, say, sees_text, set};
use crate::server::Pair;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_follows_a_list_that_is_kept_on_another() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob, carol) = (one.register("alice").await, two.register("bob").await, two.register("carol").await);
    // Carol keeps the list, and somebody of the first server is in it: the join brings the rules that are there.
    let ban = |entity: &str| json!({ "entity": entity, "recommendation": "m.ban", "reason": "spam" });
    let first = initial("m.policy.rule.user", ban("@nobody:else.example"));
    let list = create(two, &carol, json!({ "preset": "public_chat", "initial_state": [first] })).await;
    one.server().rooms.set_policy_lists(vec![list.clone()]);
    eventually("nobody is in it", async || {
        let found = one.server().rooms.policy_findings().unwrap();
        found.iter().any(|sentence| sentence.contains("Nobody here is in the room")).then_some(())
    })
    .await;
    join(one, &alice, &list, two).await.ok();
    let lists = one.server().rooms.policy_lists().await.unwrap();
    assert_eq!((lists[0].rules, lists[0].followed), (1, true));
    assert_eq!(one.server().rooms.policy_findings().unwrap(), [""; 0]);

    let open = create(one, &alice, json!({ "preset": "public_chat" })).await;
    let banned = format!("/rooms/{}/state/m.policy.rule.user/bob", q(&list));
    two.put(&banned, &carol, ban(&bob.id)).await.ok();
    eventually("the rule arrives", async || {
        (one.server().rooms.policy_lists().await.unwrap()[0].rules == 2).then_some(())
    })
    .await;
    join(two, &bob, &open, one).await.refused(403, "M_FORBIDDEN");
    let theirs = create(two, &bob, json!({ "preset": "private_chat" })).await;
    let asked = two.post(&format!("/rooms/{}/invite", q(&theirs)), &bob, json!({ "user_id": alice.id })).await;
    asked.refused(403, "M_FORBIDDEN");
    // Others of that server are as welcome as before.
    let hers = create(two, &carol, json!({ "preset": "private_chat" })).await;
    invite(two, &carol, &hers, &alice).await;
    is_invited(one, &alice, &hers).await;
    leave(one, &alice, &hers).await;

    // A list here names that server: nothing is exchanged with it any more, and then it is again.
    let own = create(one, &alice, json!({})).await;
    one.server().rooms.set_policy_lists(vec![list, own.clone()]);
    eventually("both are followed", async || {
        (one.server().rooms.policy_lists().await.unwrap().len() == 2).then_some(())
    })
    .await;
    let rule = format!("/rooms/{}/state/m.policy.rule.server/two", q(&own));
    let host = two.name().split(':').next().unwrap();
    one.put(&rule, &alice, ban(host)).await.ok();
    join(two, &carol, &open, one).await.refused(403, "M_FORBIDDEN");
    join(one, &alice, &hers, two).await.refused(403, "M_FORBIDDEN");
    kept_out(one, "user", bob.id.as_str(), 2).await;
    kept_out(one, "server", host, 1).await;
    set_rule_back(one, &alice, &rule).await;
    join(two, &carol, &open, one).await.ok();
    say(two, &carol, &open, "here again").await;
    sees_text(one, &alice, &open, "here again").await;
    // A room that is named is joined by nobody.
    set(one, &alice, &own, "m.policy.rule.room", ban(&open)).await;
    let dave = one.register("dave").await;
    one.post(&format!("/join/{}", q(&open)), &dave, json!({})).await.refused(403, "M_FORBIDDEN");
    pair.one.stop().await;
    pair.two.stop().await;
}

/// A server that the owner denies: nothing is exchanged with it, whoever begins, and people are told why. Then it is let in again.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_exchanged_with_a_denied_server() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let open = create(one, &alice, json!({ "preset": "public_chat" })).await;
    join(two, &bob, &open, one).await.ok();
    let theirs = create(two, &bob, json!({ "preset": "public_chat" })).await;
    let mine = create(one, &alice, json!({ "preset": "public_chat" })).await;
    say(one, &alice, &open, "before").await;
    sees_text(two, &bob, &open, "before").await;

    let barred = one.server().remote.barred();
    barred.set_denied(vec!["*.load.test".to_owned(), "!one.load.test".to_owned()]);
    say(one, &alice, &open, "not for them").await;
    say(two, &bob, &open, "not for us").await;
    // Their requests: refused with a sentence, which their people are told.
    let carol = two.register("carol").await;
    let refused = join(two, &carol, &mine, one).await.refused(403, "M_FORBIDDEN");
    assert!(refused["error"].as_str().unwrap().contains("wants no dealings"), "{refused}");
    let asked = two.post(&format!("/rooms/{}/invite", q(&theirs)), &bob, json!({ "user_id": alice.id })).await;
    asked.refused(403, "M_FORBIDDEN");
    // Ours: nobody is asked, and people here are told why.
    let refused = join(one, &alice, &theirs, two).await.refused(403, "M_FORBIDDEN");
    assert!(refused["error"].as_str().unwrap().contains("wants no dealings"), "{refused}");
    let asked = one.post(&format!("/rooms/{}/invite", q(&mine)), &alice, json!({ "user_id": carol.id })).await;
    asked.refused(403, "M_FORBIDDEN");
    one.get(&format!("/profile/{}", q(&carol.id)), &alice).await.refused(403, "M_FORBIDDEN");
    kept_out(one, "server", "*.load.test", 1).await;
    for (house, who, text) in [(two, &bob, "not for them"), (one, &alice, "not for us")] {
        let page = house.get(&format!("/rooms/{}/messages?dir=b&limit=50", q(&open)), who).await.ok();
        assert!(!page.to_string().contains(text), "{page}");
    }

    barred.set_denied(Vec::new());
    one.server().remote.backoff().try_now(two.name().try_into().unwrap());
    sees_text(two, &bob, &open, "not for them").await;
    join(two, &carol, &mine, one).await.ok();
    pair.one.stop().await;
    pair.two.stop().await;
}

/// Waits until it is written how often a rule kept somebody out. The worker may be writing it down just now.
async fn kept_out(house: &crate::server::TestServer, subject: &str, entity: &str, least: u64) {
    eventually(&format!("the rule for {entity} kept somebody out"), async || {
        house.server().rooms.write_policy_hits().await.unwrap();
        let (hits, _) = house.server().rooms.policy_hits(Vec::new(), 10).await.unwrap();
        let is_it = |hit: &snug::room::PolicyHits| hit.subject == subject && hit.entity == entity && hit.count >= least;
        hits.iter().any(is_it).then_some(())
    })
    .await;
}

async fn set_rule_back(house: &crate::server::TestServer, who: &crate::server::TestUser, rule: &str) {
    house.put(rule, who, json!({})).await.ok();
}
