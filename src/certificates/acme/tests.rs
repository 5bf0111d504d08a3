use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::json;

use super::order::order_of;
use super::*;
use crate::base::{Clock, Random};
use crate::budget::Budget;
use crate::certificates::tests::House;
use crate::certificates::{Certificates, Source};
use crate::remote::tests::{Lab, Reply, peer, us, whole};

fn state(directory: &str) -> State {
    State { directory: directory.to_owned(), account: Some(Value::Null), ..State::default() }
}

#[test]
fn pauses_grow_to_a_day_and_a_limit_is_kept() {
    let mut state = state("a");
    let missed = Missed::of("no");
    let pauses: Vec<u64> = (0..9).map(|_| state.missed(&missed, 0) / MINUTE_MS).collect();
    assert_eq!(pauses, [1, 12, 40, 120, 360, 720, 1440, 1440, 1440]);
    assert!(!state.is_told_when && state.said.as_deref() == Some("no") && state.failures == 9);
    // At most four checks of a name fail within an hour, with the spread too.
    assert!(pauses[..3].iter().sum::<u64>() < 60 && pauses[..4].iter().sum::<u64>() > 60);
    let spread = state.missed(&missed, u64::MAX);
    assert!(spread <= DAY_MS, "{spread}");
    let mut state = self::state("a");
    let soon: Vec<u64> = (0..7).map(|_| state.missed(&Missed::soon("gone"), 0) / 1000).collect();
    assert_eq!(soon, [20, 60, 300, 900, 1800, 1800, 1800]);
    let limited = Missed { is_limited: true, ..Missed::of("too many") };
    assert_eq!(self::state("a").missed(&limited, 0), HOUR_MS);
    let told = Missed { wait_ms: Some(3 * HOUR_MS), ..limited.clone() };
    assert_eq!(self::state("a").missed(&told, 0), 3 * HOUR_MS);
    let endless = Missed { wait_ms: Some(u64::MAX), ..limited };
    assert_eq!(self::state("a").missed(&endless, 0), DAY_MS);
}

/// With a clock that is weeks ahead a new certificate is due for renewal at once: five of them in as many seconds are all
/// that Let's Encrypt gives in a week.
#[test]
fn a_certificate_is_followed_by_a_pause_whatever_its_dates_are() {
    assert_eq!([90 * DAY_MS, 20 * DAY_MS].map(pause_after), [DAY_MS; 2]);
    // Shorter than the way to the last third, where a renewal is due.
    assert_eq!(pause_after(24 * HOUR_MS), 12 * HOUR_MS);
    assert_eq!([pause_after(0), pause_after(90_000)], [AFTER_SUCCESS_MS, 45_000]);
    let mut done = State { last_ms: 1_000, next_ms: DAY_MS, ..state("a") };
    done.begin("a");
    assert_eq!(done.next_ms, 0, "a start with other names asks at once");
}

/// Who has just forwarded a port starts the server again, and a limit of the authority outlasts that.
#[test]
fn a_start_tries_soon_unless_the_authority_said_when() {
    let waiting = |is_told_when| State { last_ms: 1_000, next_ms: DAY_MS, is_told_when, failures: 5, ..state("a") };
    let mut failed = waiting(false);
    failed.begin("a");
    assert_eq!((failed.next_ms, failed.failures), (1_000 + AFTER_START_MS, 5));
    let mut limited = waiting(true);
    limited.begin("a");
    assert_eq!(limited.next_ms, DAY_MS);
    // Another authority has its own accounts and limits.
    limited.begin("b");
    assert!(limited.next_ms == 0 && limited.account.is_none() && limited.directory == "b");
}

#[test]
fn the_state_is_read_back_and_an_older_one_too() {
    let order = Some(Pending { url: "u".to_owned(), names: vec!["n".to_owned()], key: "k".to_owned() });
    let kept = State { order, issued_by: "a".to_owned(), said: Some("s".to_owned()), ..state("a") };
    let read: State = serde_json::from_str(&serde_json::to_string(&kept).unwrap()).unwrap();
    assert_eq!((read.order.unwrap().key.as_str(), read.issued_by.as_str()), ("k", "a"));
    assert!(serde_json::from_str::<State>(r#"{"directory":"a","later":1}"#).unwrap().order.is_none());
}

/// A new account for each fault of a card would come to the authority's limit of them, and what is in the file would be lost.
#[tokio::test]
async fn a_state_that_cannot_be_read_is_not_replaced() {
    let house = House::new("state");
    let options = Options {
        source: Source::Acme,
        server: "home.example".to_owned(),
        names: vec!["home.example".to_owned()],
        folder: house.folder.clone(),
        acme: AcmeOptions { directory: "https://ca.example/dir".to_owned(), ..AcmeOptions::default() },
        addresses: Vec::new,
    };
    let parts = Parts {
        clock: Clock::real(),
        random: Random::seeded(1),
        web: us(&Lab::new(), &[], &[]).remote.web().clone(),
        account: Budget::for_tests().account("outbound"),
    };
    let certificates = Certificates::new(options, parts).unwrap();
    let file = house.folder.join(STATE);
    std::fs::create_dir(&file).unwrap();
    assert!(certificates.0.known_state().await.is_err());
    std::fs::remove_dir(&file).unwrap();
    assert!(certificates.0.known_state().await.is_ok_and(|state| state.account.is_none()));
    std::fs::write(&file, b"{ damaged \xff").unwrap();
    assert!(certificates.0.known_state().await.is_ok_and(|state| state.account.is_none()));
}

#[test]
fn the_other_challenge_comes_after_a_failure() {
    use Challenge::{Any, Http, Tls};
    assert_eq!([order_of(Any, true, 0), order_of(Any, true, 1)], [vec![Http, Tls], vec![Tls, Http]]);
    assert_eq!([order_of(Any, false, 0), order_of(Any, false, 1)], [vec![Tls, Http], vec![Http, Tls]]);
    assert_eq!([order_of(Http, false, 1), order_of(Tls, true, 1)], [vec![Http], vec![Tls]]);
}

/// What an authority does at one of its steps.
type Odd = fn(&str, &str) -> Option<Reply>;

/// Texts with the place of the authority in them.
fn answer(path: &str, base: &str) -> Reply {
    let at = |path: &str| format!("{base}{path}");
    let mut reply = match path {
        "/dir" => whole(
            200,
            &json!({ "newNonce": at("/nonce"), "newAccount": at("/account"), "newOrder": at("/order"), "revokeCert": at("/x") }),
        ),
        "/account" => whole(201, &json!({ "status": "valid" })),
        "/order" | "/order/1" | "/finalize" => whole(
            if path == "/order" { 201 } else { 200 },
            &json!({
                "status": match path { "/order" => "pending", "/finalize" => "valid", _ => "ready" },
                "authorizations": [at("/authz")], "finalize": at("/finalize"), "certificate": at("/certificate"),
            }),
        ),
        "/authz" => whole(
            200,
            &json!({
                "identifier": { "type": "dns", "value": "home.example" }, "status": "pending",
                "challenges": [{ "type": "http-01", "url": at("/challenge"), "status": "pending", "token": "tok" }],
            }),
        ),
        "/challenge" => {
            whole(200, &json!({ "type": "http-01", "url": at("/challenge"), "status": "processing", "token": "tok" }))
        }
        "/certificate" => {
            let made = rcgen::generate_simple_self_signed(vec!["home.example".to_owned()]).unwrap();
            typed("application/pem-certificate-chain", made.cert.pem())
        }
        _ => whole(200, &json!({})),
    };
    let headers = reply.headers_mut();
    headers.insert("replay-nonce", "nonce".parse().unwrap());
    headers.insert("location", at(if path == "/order" { "/order/1" } else { "/account/1" }).parse().unwrap());
    reply
}

fn typed(kind: &str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Reply::new(Full::new(body.into()).boxed());
    reply.headers_mut().insert("content-type", kind.parse().unwrap());
    reply
}

/// One order at an authority that is odd; what is said of it, and whether the challenge was answered meanwhile.
async fn ordered(name: &'static str, odd: Odd) -> (Result<(), Missed>, bool) {
    let (done, was_asked, _) = ordered_after(name, None, odd).await;
    (done, was_asked)
}

/// The same with an order of an earlier run, at a path; and whether it is still kept.
async fn ordered_after(
    name: &'static str,
    earlier: Option<&'static str>,
    odd: Odd,
) -> (Result<(), Missed>, bool, bool) {
    let (lab, house, was_asked) = (Lab::new(), House::new(name), Arc::new(AtomicBool::new(false)));
    let (asked, place) = (was_asked.clone(), Arc::new(Mutex::new(String::new())));
    let at = place.clone();
    let behaviour = Arc::new(move |request: Request<()>, _: Bytes| {
        let (path, base) = (request.uri().path(), at.lock().clone());
        asked.fetch_or(path == "/challenge", Ordering::Relaxed);
        odd(path, &base).unwrap_or_else(|| answer(path, &base))
    });
    let address = peer(&lab, "127.0.0.1", behaviour).await;
    *place.lock() = format!("https://{address}");
    let options = Options {
        source: Source::Acme,
        server: "home.example".to_owned(),
        names: vec!["home.example".to_owned()],
        folder: house.folder.clone(),
        acme: AcmeOptions {
            directory: format!("https://{address}/dir"),
            root_pem: Some(lab.pem.clone().into_bytes()),
            ..AcmeOptions::default()
        },
        addresses: Vec::new,
    };
    let parts = Parts {
        clock: Clock::real(),
        random: Random::seeded(1),
        web: us(&lab, &[], &[]).remote.web().clone(),
        account: Budget::for_tests().account("outbound"),
    };
    let certificates = Certificates::new(options, parts).unwrap();
    certificates.note_port_80(true);
    let mut state = certificates.0.known_state().await.unwrap();
    state.order = earlier.map(|path| Pending {
        url: format!("https://{address}{path}"),
        names: vec!["home.example".to_owned()],
        key: "k".to_owned(),
    });
    let done = certificates.0.attempt(&mut state, &["home.example".to_owned()]).await;
    assert!(certificates.answer("tok").is_none(), "an answer is gone with its order");
    assert!(!certificates.certificate().unwrap().is_there());
    (done, was_asked.load(Ordering::Relaxed), state.order.is_some())
}

/// A new order for each lost connection would come to the authority's limit of them.
#[tokio::test]
async fn an_order_is_kept_until_the_authority_says_that_it_is_none() {
    let (done, was_asked, is_kept) = ordered_after("kept", Some("/order/1"), |path, _| {
        let problem = json!({ "type": "urn:ietf:params:acme:error:serverInternal", "detail": "maintenance" });
        (path == "/order/1").then(|| whole(503, &problem))
    })
    .await;
    assert!(done.unwrap_err().is_soon && !was_asked && is_kept);
    let (done, was_asked, is_kept) = ordered_after("unknown", Some("/order/none"), |path, _| {
        let problem = json!({ "type": "urn:ietf:params:acme:error:malformed", "detail": "no such order" });
        (path == "/order/none").then(|| whole(404, &problem))
    })
    .await;
    assert!(done.is_err() && was_asked, "another one is begun");
    assert!(is_kept, "and is kept in its turn, though its certificate is of no use");
}

/// A certificate of another key is none, whoever sends it.
#[tokio::test]
async fn what_does_not_fit_is_not_shown() {
    let (done, was_asked) = ordered("unfit", |_, _| None).await;
    let missed = done.unwrap_err();
    assert!(was_asked && missed.said.contains("sent a certificate of no use"), "{missed:?}");
}

/// An authority sends what it likes.
#[tokio::test]
async fn an_authority_that_is_hostile_ends_one_order() {
    let odd: [(&str, &str, Odd); 7] = [
        ("long", "answers", |path, _| (path == "/dir").then(|| typed("application/json", vec![b' '; 100 << 10]))),
        ("parts", "parts", |path, _| {
            (path == "/order").then(|| typed("application/json", format!("[{}]", "1,".repeat(2_000))))
        }),
        ("chain", "answers", |path, _| {
            (path == "/certificate").then(|| typed("application/pem-certificate-chain", vec![b'a'; 200 << 10]))
        }),
        ("certificates", "more than", |path, _| {
            let made = rcgen::generate_simple_self_signed(vec!["home.example".to_owned()]).unwrap();
            (path == "/certificate").then(|| typed("application/pem-certificate-chain", made.cert.pem().repeat(30)))
        }),
        ("names", "not ours", |path, _| {
            let identifier = json!({ "type": "dns", "value": "bank.example" });
            (path == "/authz")
                .then(|| whole(200, &json!({ "identifier": identifier, "status": "pending", "challenges": [] })))
        }),
        ("token", "cannot be answered", |path, base| {
            let challenge = json!({ "type": "http-01", "url": base, "status": "pending", "token": "t".repeat(500) });
            let identifier = json!({ "type": "dns", "value": "home.example" });
            (path == "/authz").then(|| {
                whole(200, &json!({ "identifier": identifier, "status": "pending", "challenges": [challenge] }))
            })
        }),
        // The ACME library adds the time to the clock.
        ("wait", "sent a certificate of no use", |path, base| {
            (path == "/order/1").then(|| {
                let mut reply = answer(path, base);
                reply.headers_mut().insert("retry-after", "18446744073709551615".parse().unwrap());
                reply
            })
        }),
    ];
    for (name, said, odd) in odd {
        let (done, _) = ordered(name, odd).await;
        let missed = done.unwrap_err();
        assert!(missed.said.contains(said) && missed.said.len() < 1_000, "{name}: {missed:?}");
    }
}

#[tokio::test]
async fn an_authority_without_a_fault_of_ours_is_asked_again_soon() {
    let (busy, _) = ordered("busy", |path, _| {
        let problem = json!({ "type": "urn:ietf:params:acme:error:serverInternal", "detail": "maintenance" });
        (path == "/order").then(|| whole(503, &problem))
    })
    .await;
    let missed = busy.unwrap_err();
    assert!(missed.is_soon && missed.said.contains("\u{201c}maintenance\u{201d}"), "{missed:?}");
    let (limited, _) = ordered("limited", |path, _| {
        let problem = json!({ "type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many" });
        let mut reply = whole(429, &problem);
        reply.headers_mut().insert("retry-after", "7200".parse().unwrap());
        (path == "/order").then_some(reply)
    })
    .await;
    let missed = limited.unwrap_err();
    assert!(missed.is_limited && missed.wait_ms == Some(7_200_000), "{missed:?}");
}
