//! Two ends over real TLS on the loopback: a peer with the behaviour a test gives it, and us.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use ruma::{OwnedServerName, ServerName};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::matrix::sign::Key;
use crate::store::tables::room::user_room;

/// A made-up certificate authority.
pub(crate) struct Lab {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Lab { issuer: rcgen::Issuer::new(params, key), pem }
    }

    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

pub(crate) type Reply = Response<BoxBody<Bytes, Infallible>>;
pub(crate) type Behaviour = Arc<dyn Fn(Request<()>, Bytes) -> Reply + Send + Sync>;

/// Serves TLS on a loopback port until the test ends.
pub(crate) async fn peer(lab: &Lab, name: &str, behaviour: Behaviour) -> SocketAddr {
    peer_falling_silent(lab, name, behaviour, usize::MAX).await
}

/// The same for so many requests; what comes then is not answered.
pub(crate) async fn peer_falling_silent(lab: &Lab, name: &str, behaviour: Behaviour, answers: usize) -> SocketAddr {
    let left = Arc::new(std::sync::atomic::AtomicUsize::new(answers));
    let acceptor = lab.acceptor(name);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, behaviour, left) = (acceptor.clone(), behaviour.clone(), left.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |request: Request<Incoming>| {
                    let (behaviour, left) = (behaviour.clone(), left.clone());
                    async move {
                        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
                        {
                            std::future::pending::<()>().await;
                        }
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        Ok::<_, Infallible>(behaviour(Request::from_parts(parts, ()), body))
                    }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

pub(crate) fn whole(status: u16, value: &Value) -> Reply {
    let body = Full::new(Bytes::from(value.to_string())).boxed();
    Response::builder().status(status).body(body).unwrap()
}

fn key(name: &str) -> Key {
    Key::from_seed("k", std::array::from_fn(|i| name.as_bytes()[i % name.len()]))
}

pub(crate) fn name(text: &str) -> OwnedServerName {
    text.try_into().unwrap()
}

pub(crate) struct Us {
    pub remote: Remote,
    pub clock: Clock,
    pub store: Store,
}

/// `us.example`, which knows where the named peers are and trusts the first `notaries` of them.
pub(crate) fn us(lab: &Lab, peers: &[(&str, SocketAddr)], notaries: &[&str]) -> Us {
    let mut options = RemoteOptions::new(name("us.example"), Arc::new(key("us.example")));
    options.overrides = peers.iter().map(|(name, address)| (name.to_string(), address.to_string())).collect();
    options.extra_ca_pem = Some(lab.pem.clone().into_bytes());
    options.notaries = notaries.iter().map(|notary| name(notary)).collect();
    let clock = Clock::simulated(1_700_000_000_000);
    let store = Store::in_memory();
    let remote =
        Remote::new(options, clock.clone(), Random::seeded(3), &crate::budget::Budget::for_tests(), store.clone())
            .unwrap();
    Us { remote, clock, store }
}

/// The same with other look-ups, where names lead to private addresses.
pub(crate) fn us_in(lab: &Lab, lookup: Box<dyn lookup::Lookup>, change: impl FnOnce(&mut RemoteOptions)) -> Us {
    let mut options = RemoteOptions::new(name("us.example"), Arc::new(key("us.example")));
    change(&mut options);
    let (clock, store, budget) =
        (Clock::simulated(1_700_000_000_000), Store::in_memory(), crate::budget::Budget::for_tests());
    let roots = connect::roots(Some(lab.pem.as_bytes())).unwrap();
    let dialer = connect::Dialer::new(roots, budget.account("outbound"), clock.clone());
    let web = web::Web::new(Arc::new(dns::Dns::new(16)), dialer.clone(), clock.clone());
    let times = (clock.clone(), Random::seeded(3));
    let remote = Remote::with_lookup(lookup, options, dialer, web, times, store.clone(), &budget);
    Us { remote, clock, store }
}

/// Puts a local user and a user of another server into one room.
pub(crate) async fn share_room(store: &Store, server: &str) {
    use crate::store::tables::room::{self, member};
    use crate::store::tables::user;
    use crate::store::{self, Position};
    let server = server.to_owned();
    let written = store.write(move |w| {
        let num = room::intern(w, &format!("!{server}"), "11")?;
        let user = user::intern(w, "@anna:us.example")?;
        let mine = user_room::Mine::joined(Position(1));
        user_room::set_mine(w, user, num, &mine)?;
        member::put_server(w, num, &server, 1, Position(1))?;
        Ok::<_, store::Error>(())
    });
    written.await.unwrap();
}

async fn ask(us: &Us, server: &str, max_bytes: u64) -> Result<Value, Failed> {
    let options = Options { max_bytes, ..Options::default() };
    us.remote
        .request(&name(server), Method::GET, "/_matrix/x?a=b%20c", None, options)
        .await?
        .json()
        .map(|(said, _)| said)
}

#[tokio::test]
async fn requests_are_signed_over_the_target_and_connections_kept() {
    let lab = Lab::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let behaviour: Behaviour = Arc::new(move |request, body| {
        let text = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        let header = sign::request::parse(&text("authorization")).unwrap();
        let content = (!body.is_empty()).then_some(&body[..]);
        let (method, target) = (request.method().as_str(), request.uri().to_string());
        let peer: &ServerName = "peer.example".try_into().unwrap();
        let checked = sign::request::check(&header, &key("us.example").public(), peer, method, &target, content);
        log.lock().unwrap().push((text("host"), checked.is_ok()));
        whole(200, &json!({ "ok": true }))
    });
    let address = peer(&lab, "peer.example", behaviour).await;
    let us = us(&lab, &[("peer.example", address)], &[]);
    assert_eq!(ask(&us, "peer.example", 1000).await.unwrap(), json!({ "ok": true }));
    let content = Some(b"{\"b\":1,\"a\":[2]}".to_vec());
    us.remote
        .request(&name("peer.example"), Method::PUT, "/_matrix/y/%21z", content, Options::default())
        .await
        .unwrap();
    let expected = ("peer.example".to_owned(), true);
    assert_eq!(*seen.lock().unwrap(), [expected.clone(), expected]);
}

#[tokio::test]
async fn the_wrong_certificate_is_no_peer() {
    let lab = Lab::new();
    let address = peer(&lab, "somebody.example", Arc::new(|_, _| whole(200, &json!({})))).await;
    let us = us(&lab, &[("peer.example", address)], &[]);
    assert!(matches!(ask(&us, "peer.example", 1000).await, Err(Failed::Unreachable { silent: false, .. })));
    assert!(matches!(ask(&us, "peer.example", 1000).await, Err(Failed::BackingOff { .. })), "left alone for a while");
}

#[tokio::test]
async fn errors_carry_their_code_and_large_answers_are_refused() {
    let lab = Lab::new();
    let behaviour: Behaviour = Arc::new(|_, _| whole(403, &json!({ "errcode": "M_FORBIDDEN", "error": "no\u{7}" })));
    let no = peer(&lab, "no.example", behaviour).await;
    let endless: Behaviour = Arc::new(|_, _| {
        let frames = StreamBody::new(Endless);
        Response::new(BodyExt::boxed(frames))
    });
    let endless = peer(&lab, "endless.example", endless).await;
    let us = us(&lab, &[("no.example", no), ("endless.example", endless)], &[]);
    match ask(&us, "no.example", 1000).await {
        Err(Failed::Status { status: 403, errcode, message, .. }) => {
            assert_eq!((errcode.as_str(), message.as_str()), ("M_FORBIDDEN", "no"));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(ask(&us, "endless.example", 100_000).await, Err(Failed::TooLarge { max_bytes: 100_000 })));
    let pace = StreamLimits::patient(1_000_000);
    let mut body = us.remote.stream(&name("endless.example"), Method::GET, "/x", None, pace).await.unwrap();
    let failed = loop {
        match body.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it has no end"),
            Err(failed) => break failed,
        }
    };
    assert!(matches!(failed, Failed::TooLarge { max_bytes: 1_000_000 }));
    assert!(body.received() <= 1_000_000 + 64 * 1024);
}

/// Bytes for ever.
pub(crate) struct Endless;

impl futures_core::Stream for Endless {
    type Item = Result<Frame<Bytes>, Infallible>;
    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b' '; 4096])))))
    }
}

/// A few bytes and then nothing.
struct Stalling(bool);

impl futures_core::Stream for Stalling {
    type Item = Result<Frame<Bytes>, Infallible>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        if std::mem::replace(&mut self.0, true) {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"{\"state\":[")))))
    }
}

/// Half a megabyte of small objects becomes fifty on the heap: that is charged first, and so it is refused.
#[tokio::test]
async fn an_answer_is_not_parsed_into_more_than_there_is() {
    let lab = Lab::new();
    let answer = json!({ "x": vec![json!({ "": 0 }); 60_000] });
    let peer = peer(&lab, "far.example", Arc::new(move |_, _| whole(200, &answer))).await;
    let us = us(&lab, &[("far.example", peer)], &[]);
    assert!(matches!(ask(&us, "far.example", 512 * 1024).await, Err(Failed::Refused(_))));
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_given_up() {
    let lab = Lab::new();
    let behaviour: Behaviour = Arc::new(|_, _| Response::new(BodyExt::boxed(StreamBody::new(Stalling(false)))));
    let address = peer(&lab, "slow.example", behaviour).await;
    let us = us(&lab, &[("slow.example", address)], &[]);
    let mut body =
        us.remote.stream(&name("slow.example"), Method::GET, "/x", None, StreamLimits::patient(1 << 30)).await.unwrap();
    assert!(body.next().await.unwrap().is_some());
    let waiting = tokio::spawn(async move { body.next().await });
    while !waiting.is_finished() {
        us.clock.advance(Duration::from_secs(10));
        tokio::task::yield_now().await;
    }
    assert!(matches!(waiting.await.unwrap(), Err(Failed::Timeout)));
}

/// Two joins through one server took all the connections there may be to it, and its keys and messages waited for the
/// end of the joins.
#[tokio::test]
async fn long_answers_leave_a_connection_for_what_is_asked_meanwhile() {
    let lab = Lab::new();
    let behaviour: Behaviour = Arc::new(|request, _| match request.uri().path() {
        "/long" => Response::new(BodyExt::boxed(StreamBody::new(Stalling(false)))),
        _ => whole(200, &json!({})),
    });
    let address = peer(&lab, "far.example", behaviour).await;
    let us = us(&lab, &[("far.example", address)], &[]);
    let stream = || {
        let remote = us.remote.clone();
        async move { remote.stream(&name("far.example"), Method::GET, "/long", None, StreamLimits::patient(1 << 30)).await }
    };
    let (first, _second) = (stream().await.unwrap(), stream().await.unwrap());
    let third = tokio::spawn(stream());
    ask(&us, "far.example", 1000).await.unwrap();
    assert!(!third.is_finished());
    drop(first);
    third.await.unwrap().unwrap();
}

/// A body that a test sends piece by piece.
struct Piped(tokio::sync::mpsc::UnboundedReceiver<Bytes>);

impl futures_core::Stream for Piped {
    type Item = Result<Frame<Bytes>, Infallible>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[tokio::test]
async fn a_peer_that_drips_is_given_up() {
    let lab = Lab::new();
    let (drip, pipe) = tokio::sync::mpsc::unbounded_channel();
    let pipe = Mutex::new(Some(pipe));
    let behaviour: Behaviour = Arc::new(move |_, _| {
        Response::new(BodyExt::boxed(StreamBody::new(Piped(pipe.lock().unwrap().take().unwrap()))))
    });
    let address = peer(&lab, "slow.example", behaviour).await;
    let us = us(&lab, &[("slow.example", address)], &[]);
    let mut body =
        us.remote.stream(&name("slow.example"), Method::GET, "/x", None, StreamLimits::patient(1 << 30)).await.unwrap();
    // A byte a second: never silent for long, and far too slow.
    let mut seconds = 0;
    let failed = loop {
        let next = async {
            tokio::task::yield_now().await;
            us.clock.advance(Duration::from_secs(1));
            seconds += 1;
            drip.send(Bytes::from_static(b" ")).unwrap();
        };
        match tokio::join!(body.next(), next).0 {
            Ok(Some(_)) => {}
            ended => break ended,
        }
    };
    assert!(matches!(failed, Err(Failed::Timeout)), "{failed:?}");
    assert!((30..=120).contains(&seconds), "{seconds}");
}

/// A server's published keys, signed by it.
fn published(server: &str, key: &Key, valid_until_ms: u64) -> Value {
    let old = Key::from_seed("old", [9; 32]);
    let Value::Object(mut object) = json!({
        "server_name": server,
        "valid_until_ts": valid_until_ms,
        "verify_keys": { key.id(): { "key": key.public().to_base64() } },
        "old_verify_keys": { old.id(): { "key": old.public().to_base64(), "expired_ts": 1000 } },
    }) else {
        unreachable!()
    };
    sign::sign_json(&mut object, server.try_into().unwrap(), key).unwrap();
    Value::Object(object)
}

#[tokio::test]
async fn keys_come_from_their_server_and_are_kept() {
    let lab = Lab::new();
    let until = 1_700_000_000_000 + 1_000_000;
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let behaviour: Behaviour = Arc::new(move |request, _| {
        assert_eq!(request.uri(), "/_matrix/key/v2/server");
        *count.lock().unwrap() += 1;
        whole(200, &published("peer.example", &key("peer.example"), until))
    });
    let address = peer(&lab, "peer.example", behaviour).await;
    let us = us(&lab, &[("peer.example", address)], &[]);
    let (keys, server) = (us.remote.keys(), name("peer.example"));
    let found = keys.get(&server, "ed25519:k", until).await.unwrap().expect("published");
    assert_eq!(*found.key, key("peer.example").public());
    assert!(keys.get(&server, "ed25519:old", 1000).await.unwrap().is_some(), "old, but valid then");
    assert!(keys.get(&server, "ed25519:old", 1001).await.unwrap().is_none(), "expired by then");
    assert_eq!(*asked.lock().unwrap(), 1);
    assert!(keys.get(&server, "ed25519:none", 0).await.unwrap().is_none());
    assert!(keys.get(&server, "ed25519:none", 0).await.unwrap().is_none());
    assert_eq!(*asked.lock().unwrap(), 2, "what nobody has is asked for once");
    assert!(keys.cached(&name("us.example"), "ed25519:k").unwrap().is_some(), "our own");
}

/// A request with a made-up key id in a server's name kept the server's own keys from being fetched, for up to an hour.
#[tokio::test]
async fn a_key_that_does_not_exist_keeps_no_other_from_being_found() {
    let lab = Lab::new();
    let (begin, day) = (1_700_000_000_000, 24 * 3_600_000);
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let behaviour: Behaviour = Arc::new(move |_, _| {
        *count.lock().unwrap() += 1;
        whole(200, &published("peer.example", &key("peer.example"), begin + *count.lock().unwrap() * day))
    });
    let address = peer(&lab, "peer.example", behaviour).await;
    let us = us(&lab, &[("peer.example", address)], &[]);
    let (keys, server) = (us.remote.keys(), name("peer.example"));
    assert!(keys.get(&server, "ed25519:k", begin).await.unwrap().is_some());
    us.clock.advance(Duration::from_millis(day - 1000));
    assert!(keys.get(&server, "ed25519:made_up", us.clock.now_ms()).await.unwrap().is_none());
    us.clock.advance(Duration::from_secs(2));
    assert!(keys.get(&server, "ed25519:k", us.clock.now_ms()).await.unwrap().is_some());
    // A server that does not answer at all is left alone.
    keys.give_up(&server);
    us.clock.advance(Duration::from_secs(30));
    let before = *asked.lock().unwrap();
    assert!(keys.get(&server, "ed25519:k", begin + 3 * day).await.unwrap().is_none());
    assert_eq!(*asked.lock().unwrap(), before);
}

/// A server that had failed once while its key was not stored got "key cannot be found" when it came back, for as long as
/// our own pause lasted.
#[tokio::test]
async fn whoever_speaks_to_us_is_asked_for_its_key_whatever_failed_before() {
    let lab = Lab::new();
    let until = 1_700_000_000_000 + 24 * 3_600_000;
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let behaviour: Behaviour = Arc::new(move |_, _| {
        *count.lock().unwrap() += 1;
        whole(200, &published("peer.example", &key("peer.example"), until))
    });
    let address = peer(&lab, "peer.example", behaviour.clone()).await;
    let other = peer(&lab, "other.example", behaviour).await;
    let us = us(&lab, &[("peer.example", address), ("other.example", other)], &[]);
    let (keys, server) = (us.remote.keys(), name("peer.example"));
    let ask = Options::default();
    let path = "/_matrix/key/v2/server";
    us.remote.request(&server, Method::GET, path, None, ask).await.unwrap();
    us.remote.backoff().failure(&server, Whence::Nowhere, Some(12 * 3_600_000));
    // Asked for somebody else, who may wait: it is left alone, and that does not make its key a missing one.
    keys.refresh(&server, 0).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), 1);
    assert!(keys.get(&server, "ed25519:k", until).await.unwrap().is_some());
    // Its key could not be had while it was away, and now it comes itself.
    let other = name("other.example");
    keys.give_up(&other);
    us.clock.advance(Duration::from_secs(11));
    let before = *asked.lock().unwrap();
    keys.get(&other, "ed25519:k", until).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), before, "nobody waits for it meanwhile");
    keys.get_of_caller(&other, "ed25519:k", until).await.unwrap();
    keys.get_of_caller(&other, "ed25519:k", until).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), before + 1, "once, and not for each request");
}

/// A server's key ran out while it contacted us every minute, and its next request waited in a line with those of
/// unknown servers.
#[tokio::test]
async fn keys_in_use_are_renewed_before_they_run_out() {
    let lab = Lab::new();
    let (begin, day) = (1_700_000_000_000, 24 * 3_600_000);
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let behaviour: Behaviour = Arc::new(move |_, _| {
        *count.lock().unwrap() += 1;
        whole(200, &published("peer.example", &key("peer.example"), begin + *count.lock().unwrap() * day))
    });
    let address = peer(&lab, "peer.example", behaviour).await;
    let us = us(&lab, &[("peer.example", address)], &[]);
    let (keys, server) = (us.remote.keys(), name("peer.example"));
    let valid_until = keys.get(&server, "ed25519:k", begin).await.unwrap().unwrap().valid_until_ms;
    assert!(!keys.is_renewal_due(&server, valid_until));
    us.clock.advance(Duration::from_secs(19 * 3600));
    assert!(keys.is_renewal_due(&server, valid_until) && !keys.is_renewal_due(&server, valid_until), "said once");
    keys.renew_soon(&server);
    keys.renew_soon(&server);
    keys.renew().await.unwrap();
    assert_eq!(*asked.lock().unwrap(), 2);
    assert_eq!(keys.cached(&server, "ed25519:k").unwrap().unwrap().valid_until_ms, begin + 2 * day);
    us.clock.advance(Duration::from_secs(3600));
    assert!(keys.is_renewal_due(&server, valid_until), "it is looked at again later");
    // The number of names is bounded.
    (0..1000).for_each(|n| keys.renew_soon(&name(&format!("s{n}.example"))));
}

#[tokio::test]
async fn a_notary_vouches_for_servers_that_are_gone() {
    let lab = Lab::new();
    let until = 1_700_000_000_000 + 1_000_000;
    let batches = Arc::new(Mutex::new(0));
    let count = batches.clone();
    let behaviour: Behaviour = Arc::new(move |request, body| {
        if request.method() == Method::GET {
            return whole(200, &published("notary.example", &key("notary.example"), until));
        }
        *count.lock().unwrap() += 1;
        let asked: Value = serde_json::from_slice(&body).unwrap();
        let answers = asked["server_keys"].as_object().unwrap().keys().map(|server| {
            // One answer is signed by the server alone, one has another server's key: both are worthless.
            let signer = if server == "liar.example" { "else.example" } else { server };
            let mut answer = published(server, &key(signer), until);
            if server == "liar.example" {
                answer["verify_keys"]["ed25519:k"]["key"] = key("liar.example").public().to_base64().into();
            }
            if server != "unvouched.example" {
                let object = answer.as_object_mut().unwrap();
                sign::sign_json(object, "notary.example".try_into().unwrap(), &key("notary.example")).unwrap();
            }
            answer
        });
        whole(200, &json!({ "server_keys": answers.collect::<Vec<_>>() }))
    });
    let address = peer(&lab, "notary.example", behaviour).await;
    // A port that nobody else gets meanwhile, and on which nobody listens.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let nobody = held.local_addr().unwrap();
    let mut servers: Vec<String> = (0..300).map(|n| format!("gone{n}.example")).collect();
    servers.extend(["liar.example".to_owned(), "unvouched.example".to_owned()]);
    let mut peers: Vec<(&str, SocketAddr)> = servers.iter().map(|server| (server.as_str(), nobody)).collect();
    peers.push(("notary.example", address));
    let us = us(&lab, &peers, &["notary.example"]);
    let names: Vec<keys::Name> = servers.iter().map(|server| (name(server), "ed25519:k".to_owned())).collect();
    us.remote.keys().fetch(&names, until).await.unwrap();
    assert_eq!(*batches.lock().unwrap(), 3);
    for (server, id) in &names {
        let known = us.remote.keys().cached(server, id).unwrap();
        let expected = !matches!(server.as_str(), "liar.example" | "unvouched.example");
        assert_eq!(known.is_some(), expected, "{server}");
    }
}
