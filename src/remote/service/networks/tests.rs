use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use ruma::ServerName;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::base::Clock;
use crate::budget::Budget;
use crate::matrix::appservice::Registration;
use crate::remote::connect::{Dialer, roots};
use crate::remote::lookup::{Boxed, Miss, Names};
use crate::remote::web::Web;

/// Bridges in Python write blanks between the members, and everything they found was left out.
#[test]
fn what_fits_is_told_however_it_is_written() {
    let (mut list, mut first) = (Vec::new(), true);
    let spaced =
        br#"[ {"userid": "@irc_b:here.test", "protocol": "irc", "fields": {}}, {"userid": 5, "protocol": "irc"} ]"#;
    assert!(add_fitting(spaced, ThirdParty::User, &mut list, &mut first));
    let compact = br#"[{"protocol":"irc","userid":"@irc_c:here.test"},7,{}]"#;
    assert!(add_fitting(compact, ThirdParty::User, &mut list, &mut first));
    assert!(!add_fitting(br#"{"userid":1}"#, ThirdParty::User, &mut list, &mut first));
    let wanted = br#"{"userid": "@irc_b:here.test", "protocol": "irc", "fields": {}},{"protocol":"irc","userid":"@irc_c:here.test"}"#;
    assert_eq!(list, wanted);
}

/// Services have addresses here.
struct NoNames;

impl Names for NoNames {
    fn all_addresses<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<Vec<IpAddr>, Miss>> {
        Box::pin(async move { Err(Miss::Absent(host.to_owned())) })
    }
}

/// A service that takes every question, and answers while it does not hang.
#[derive(Clone, Default)]
struct Bridge {
    port: u16,
    hangs: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
}

impl Bridge {
    async fn start() -> Bridge {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bridge = Bridge { port: listener.local_addr().unwrap().port(), ..Bridge::default() };
        let this = bridge.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let this = this.clone();
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    let length = stream.read(&mut head).await.unwrap();
                    this.asked.fetch_add(1, SeqCst);
                    if this.hangs.load(SeqCst) {
                        std::future::pending::<()>().await;
                    }
                    let body = match String::from_utf8_lossy(&head[..length]).contains("/thirdparty/protocol/") {
                        true => {
                            let (instances, none) = (json!([{ "network_id": "n", "desc": "N" }]), json!([]));
                            json!({ "user_fields": none, "location_fields": none, "field_types": {}, "instances": instances })
                        }
                        false => json!([{ "userid": "@b:here.test", "alias": "#b:here.test", "protocol": "p" }]),
                    };
                    let body = body.to_string();
                    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(text.as_bytes()).await.unwrap();
                    this.answered.fetch_add(1, SeqCst);
                    std::future::pending::<()>().await;
                });
            }
        });
        bridge
    }

    fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, SeqCst);
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, SeqCst)
    }

    fn service(&self, id: &str) -> Service {
        let text = format!(
            "id: {id}\nurl: http://127.0.0.1:{}\nas_token: a{id}\nhs_token: h{id}\nsender_localpart: {id}bot\nprotocols: \
             [{id}]\nnamespaces:\n  users:\n  - exclusive: true\n    regex: '@{id}_.*'\n",
            self.port
        );
        Service::new(Registration::read(&text, <&ServerName>::try_from("here.test").unwrap()).unwrap())
    }
}

fn services(clock: &Clock) -> Services {
    let account = Budget::for_tests().account("outbound");
    let dialer = Dialer::new(roots(None).unwrap(), account, clock.clone());
    Services::new(Web::new(Arc::new(NoNames), dialer, clock.clone()), clock.clone())
}

/// Lets the network, which is this machine's, go on as far as it does without the clock.
async fn calm() {
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Lets time pass until it is over; answers how much.
async fn over<T>(clock: &Clock, task: JoinHandle<T>) -> (T, Duration) {
    calm().await;
    let began = clock.instant();
    while !task.is_finished() {
        clock.advance(Duration::from_millis(500));
        calm().await;
    }
    (task.await.unwrap(), clock.instant() - began)
}

async fn protocols(services: &Services, clock: &Clock) -> (Vec<String>, Duration) {
    let services = services.clone();
    let asking = async move { services.protocols(None).await.0.into_iter().map(|(name, _)| name).collect() };
    over(clock, tokio::spawn(asking)).await
}

/// A bridge that hung held everybody who opened the directory up for ten seconds, with each of its protocols.
#[tokio::test]
async fn a_service_that_hangs_holds_up_nobody() {
    let clock = Clock::simulated(1_800_000_000_000);
    let (services, good, bad) = (services(&clock), Bridge::start().await, Bridge::start().await);
    services.set(vec![bad.service("bad"), good.service("good")]);
    bad.hang(true);
    let (told, waited) = protocols(&services, &clock).await;
    assert_eq!(told, ["good"]);
    assert!(waited >= LOOK_UP_TIME - Duration::from_secs(1) && waited <= LOOK_UP_TIME + SPARE_TIME, "{waited:?}");
    assert_eq!((bad.asked(), good.asked()), (1, 1), "side by side");
    // It is not waited for again, and what the other said is known.
    assert_eq!(protocols(&services, &clock).await, (vec!["good".to_owned()], Duration::ZERO));
    let look_up = |kind| {
        let services = services.clone();
        tokio::spawn(async move { services.third_party(kind, None, "alias=%23b").await.0 })
    };
    for kind in [ThirdParty::User, ThirdParty::Location] {
        let (found, waited) = over(&clock, look_up(kind)).await;
        assert!(found.starts_with(b"[{") && waited == Duration::ZERO, "{waited:?}");
    }
    assert_eq!((bad.asked(), good.asked()), (0, 2));
    // It works again, and is asked once it may be.
    bad.hang(false);
    clock.advance(Duration::from_millis(SILENT_MS));
    assert_eq!(protocols(&services, &clock).await.0, ["bad", "good"]);
    assert_eq!((bad.asked(), good.asked()), (1, 0));
}

#[tokio::test]
async fn what_a_service_said_of_its_protocols_is_shown_while_it_hangs() {
    let clock = Clock::simulated(1_800_000_000_000);
    let (services, bridge) = (services(&clock), Bridge::start().await);
    services.set(vec![bridge.service("p")]);
    assert_eq!(protocols(&services, &clock).await.0, ["p"]);
    assert_eq!(protocols(&services, &clock).await.0, ["p"]);
    assert_eq!(bridge.asked(), 1, "once an hour");
    clock.advance(Duration::from_millis(FRESH_MS));
    bridge.hang(true);
    assert_eq!(protocols(&services, &clock).await.0, ["p"]);
    assert_eq!(protocols(&services, &clock).await, (vec!["p".to_owned()], Duration::ZERO));
    assert_eq!(bridge.asked(), 1);
    // It starts anew, and says so.
    bridge.hang(false);
    services.poke(&services.list()[0]);
    assert_eq!(protocols(&services, &clock).await.0, ["p"]);
    assert_eq!(bridge.asked(), 1);
    // It is no service of this server any more.
    services.set(Vec::new());
    assert!(protocols(&services, &clock).await.0.is_empty() && services.0.kept.lock().is_empty());
    assert_eq!(services.0.web.account().used(), 0);
}

#[tokio::test]
async fn what_is_kept_is_bounded() {
    let clock = Clock::simulated(1_800_000_000_000);
    let (services, bridge) = (services(&clock), Bridge::start().await);
    let account = services.0.web.account().clone();
    for number in 0..100 {
        let service = bridge.service(&format!("s{number}"));
        for protocol in ["one", "two"] {
            let text = vec![b' '; 4000];
            let paid = account.try_take(4096).unwrap();
            services.keep(&service, protocol, text, paid);
        }
    }
    let bytes: usize = services.0.kept.lock().iter().map(|kept| kept.text.len()).sum();
    assert!((KEPT_BYTES_MAX - 4000..=KEPT_BYTES_MAX).contains(&bytes), "{bytes}");
    assert_eq!(account.used(), bytes as u64);
}

/// One bridge that hangs took all places for making users, and no other bridge made any.
#[tokio::test]
async fn a_service_that_hangs_leaves_a_place_for_making_to_the_others() {
    use super::super::{Asked, MAKING_MAX};
    let clock = Clock::simulated(1_800_000_000_000);
    let (services, good, bad) = (services(&clock), Bridge::start().await, Bridge::start().await);
    services.set(vec![bad.service("bad"), good.service("good")]);
    bad.hang(true);
    let make = |name: String| {
        let services = services.clone();
        tokio::spawn(async move { services.make_user(&ruma::UserId::parse(name).unwrap()).await })
    };
    let waiting: Vec<_> = (0..MAKING_MAX).map(|number| make(format!("@bad_{number}:here.test"))).collect();
    calm().await;
    let (made, waited) = over(&clock, make("@good_x:here.test".to_owned())).await;
    assert_eq!((made, waited), (Asked::Made, Duration::ZERO));
    for one in waiting {
        assert_eq!(over(&clock, one).await.0, Asked::Nothing);
    }
    // Not again at once.
    bad.asked();
    let (made, waited) = over(&clock, make("@bad_y:here.test".to_owned())).await;
    assert_eq!((made, waited, bad.asked()), (Asked::Nothing, Duration::ZERO, 0));
}
