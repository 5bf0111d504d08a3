//! Requests to servers on the loopback that behave in every bad way.

use std::collections::HashMap;

use http_body_util::StreamBody;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::budget::Budget;
use crate::remote::connect::roots;
use crate::remote::lookup::Boxed;
use crate::remote::tests::{Behaviour, Endless, Lab, peer, whole};

/// Names with their addresses.
struct Named(HashMap<&'static str, &'static str>);

impl Names for Named {
    fn all_addresses<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<Vec<IpAddr>, Miss>> {
        let found = self.0.get(host).map(|addresses| addresses.split(' ').map(|ip| ip.parse().unwrap()).collect());
        Box::pin(async move { found.ok_or(Miss::Absent(host.to_owned())) })
    }
}

/// In these tests 127.0.0.1 is the Internet and 127.0.0.2 is the home network.
fn web(lab: &Lab) -> Web {
    let names = [("a.example", "127.0.0.1"), ("b.example", "127.0.0.1"), ("home.example", "127.0.0.2")];
    let account = Budget::for_tests().account("outbound");
    let roots = roots(Some(lab.pem.as_bytes())).unwrap();
    let dialer = Dialer::new(roots, account, Clock::real());
    let mut web = Web::new(Arc::new(Named(names.into())), dialer, Clock::real());
    web.is_private = |ip| ip != IpAddr::from([127, 0, 0, 1]);
    web
}

fn get(url: impl Into<String>) -> WebRequest {
    WebRequest::get(url.into())
}

fn open() -> WebLimits {
    WebLimits { plain: Plain::Everywhere, ..WebLimits::default() }
}

/// Sends `pieces` to each caller, one after the other, and then keeps the connection open.
async fn raw(pieces: Vec<Vec<u8>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let pieces = pieces.clone();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                for piece in pieces {
                    let _ = stream.write_all(&piece).await;
                }
                std::future::pending::<()>().await;
            });
        }
    });
    port
}

fn text(answer: &str) -> Vec<Vec<u8>> {
    vec![answer.as_bytes().to_vec()]
}

fn moved(status: u16, to: &str) -> Vec<Vec<u8>> {
    text(&format!("HTTP/1.1 {status} x\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"))
}

async fn fails(web: &Web, url: String, limits: WebLimits) -> WebFailed {
    match web.ask(get(url), limits).await {
        Ok(answer) => panic!("{} answered {}", answer.url, answer.status),
        Err(failed) => failed,
    }
}

#[tokio::test]
async fn a_request_goes_out_whole_and_its_answer_comes_back() {
    let lab = Lab::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let behaviour: Behaviour = Arc::new(move |request, body| {
        let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        log.lock().push((request.method().clone(), request.uri().to_string(), header("x-test"), header("host")));
        whole(201, &json!({ "length": body.len() }))
    });
    let port = peer(&lab, "a.example", behaviour).await.port();
    let web = web(&lab);
    let mut request = get(format!("https://a.example:{port}/p%20q?x=%2F"));
    (request.method, request.body) = (Method::POST, Bytes::from_static(b"hello"));
    request.headers.insert("x-test", HeaderValue::from_static("yes"));
    let answer = web.ask(request, WebLimits::default()).await.unwrap();
    assert_eq!(answer.status, 201);
    let (body, grant) = answer.read().await.unwrap();
    assert_eq!((&body[..], grant.bytes() >= body.len() as u64), (&b"{\"length\":5}"[..], true));
    let expected = (Method::POST, "/p%20q?x=%2F".to_owned(), Some("yes".to_owned()), Some(format!("a.example:{port}")));
    assert_eq!(*seen.lock(), [expected]);
    drop(grant);
    assert_eq!(web.dialer.account.used(), 0, "everything was given back");
}

#[tokio::test]
async fn nothing_leads_to_a_private_address() {
    let lab = Lab::new();
    let mut web = web(&lab);
    let lure = raw(moved(302, "http://home.example/admin")).await;
    let literal = raw(moved(307, "//127.0.0.2:80/")).await;
    for url in [
        "http://home.example/".to_owned(),
        format!("http://a.example:{lure}/"),
        format!("http://a.example:{literal}/"),
        "http://[::1]/".to_owned(),
    ] {
        let failed = fails(&web, url.clone(), open()).await;
        assert!(matches!(failed, WebFailed::Forbidden(_)), "{url}: {failed}");
    }
    // With the addresses as they are, in every way to write them.
    web.is_private = is_private;
    for url in
        ["http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://[::ffff:7f00:1]/", "http://a.example/"]
    {
        let failed = fails(&web, url.to_owned(), open()).await;
        assert!(matches!(failed, WebFailed::Forbidden(_)), "{url}: {failed}");
    }
    // The owner may allow them.
    let port = raw(text("HTTP/1.1 204 x\r\n\r\n")).await;
    let allowed = WebLimits { allow_private: true, ..open() };
    assert_eq!(web.ask(get(format!("http://127.0.0.1:{port}/")), allowed).await.unwrap().status, 204);
}

#[tokio::test]
async fn redirects_are_followed_so_far_and_never_down_to_plain_http() {
    let lab = Lab::new();
    let web = web(&lab);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let behaviour: Behaviour = Arc::new(move |request, body| {
        let proof = request.headers().contains_key("authorization");
        log.lock().push((request.method().clone(), proof, body.len()));
        whole(200, &json!({}))
    });
    let end = peer(&lab, "b.example", behaviour).await.port();
    let ask = async |status, limits| {
        let port = raw(moved(status, &format!("https://b.example:{end}/"))).await;
        let mut request = get(format!("http://a.example:{port}/"));
        (request.method, request.body) = (Method::POST, Bytes::from_static(b"hello"));
        request.headers.insert("authorization", HeaderValue::from_static("Bearer x"));
        web.ask(request, limits).await.map(|answer| answer.status)
    };
    assert_eq!(ask(302, open()).await.unwrap(), 200);
    assert_eq!(ask(307, open()).await.unwrap(), 200);
    assert_eq!(*seen.lock(), [(Method::GET, false, 0), (Method::POST, false, 5)]);
    let unfollowed = WebLimits { redirects_max: 0, ..open() };
    assert_eq!(ask(302, unfollowed).await.unwrap(), 302);
    let endless = raw(moved(301, "/again")).await;
    let failed = fails(&web, format!("http://a.example:{endless}/"), open()).await;
    assert!(matches!(failed, WebFailed::TooManyRedirects), "{failed}");
    let down: Behaviour = Arc::new(|_, _| {
        let body = whole(302, &json!({})).into_body();
        Response::builder().status(302).header("location", "http://a.example/").body(body).unwrap()
    });
    let down = peer(&lab, "a.example", down).await.port();
    let failed = fails(&web, format!("https://a.example:{down}/"), WebLimits { plain: Plain::WhereGiven, ..open() });
    assert!(matches!(failed.await, WebFailed::Forbidden(_)));
}

#[tokio::test]
async fn what_is_no_web_address_is_not_asked() {
    let web = web(&Lab::new());
    let long = format!("https://a.example/{}", "x".repeat(URL_BYTES_MAX));
    for url in ["ftp://a.example/", "file:///etc/passwd", "https://", "no url", "https://me:secret@a.example/", &long] {
        let failed = fails(&web, url.to_owned(), open()).await;
        assert!(matches!(failed, WebFailed::BadUrl(_)), "{failed}");
    }
    let failed = fails(&web, "http://a.example/".into(), WebLimits::default()).await;
    assert!(matches!(failed, WebFailed::Forbidden(_)), "{failed}");
    let failed = fails(&web, "https://unknown.example/".into(), open()).await;
    assert!(matches!(failed, WebFailed::Unreachable { silent: false, .. }), "{failed}");
}

#[tokio::test]
async fn the_wrong_certificate_is_no_web_server() {
    let lab = Lab::new();
    let port = peer(&lab, "b.example", Arc::new(|_, _| whole(200, &json!({})))).await.port();
    let failed = fails(&web(&lab), format!("https://a.example:{port}/"), open()).await;
    assert!(matches!(failed, WebFailed::Unreachable { silent: false, .. }), "{failed}");
    let failed = fails(&web(&Lab::new()), format!("https://b.example:{port}/"), open()).await;
    assert!(matches!(failed, WebFailed::Unreachable { .. }), "another authority: {failed}");
}

#[tokio::test]
async fn long_bodies_and_heads_end_early() {
    let lab = Lab::new();
    let endless: Behaviour = Arc::new(|_, _| Response::new(BodyExt::boxed(StreamBody::new(Endless))));
    let port = peer(&lab, "a.example", endless).await.port();
    let web = web(&lab);
    let limits = WebLimits { body_bytes_max: 100_000, ..open() };
    let answer = web.ask(get(format!("https://a.example:{port}/")), limits).await.unwrap();
    assert!(matches!(answer.read().await, Err(WebFailed::TooLarge { max_bytes: 100_000 })));
    let announced = raw(text("HTTP/1.1 200 x\r\nContent-Length: 100001\r\n\r\n")).await;
    let failed = fails(&web, format!("http://a.example:{announced}/"), limits).await;
    assert!(matches!(failed, WebFailed::TooLarge { .. }), "{failed}");
    let one = format!("HTTP/1.1 200 x\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let many = format!("HTTP/1.1 200 x\r\n{}\r\n", "X: 1\r\n".repeat(1000));
    for head in [one, many, "something else entirely\r\n\r\n".to_owned()] {
        let port = raw(text(&head)).await;
        let failed = fails(&web, format!("http://a.example:{port}/"), limits).await;
        assert!(matches!(failed, WebFailed::BadAnswer(_)), "{failed}");
    }
    assert_eq!(web.dialer.account.used(), 0);
}

/// On a clock that is moved by hand.
#[tokio::test]
async fn slow_answers_end_when_their_time_is_up() {
    let lab = Lab::new();
    let clock = Clock::simulated(1_000_000);
    let mut web = web(&lab);
    web.dialer = Dialer::new(roots(None).unwrap(), Budget::for_tests().account("outbound"), clock.clone());
    web.clock = clock.clone();
    let headless = raw(text("HTTP/1.1 200 x\r\n")).await;
    let dripping = raw(text("HTTP/1.1 200 x\r\nContent-Length: 1000\r\n\r\nxx")).await;
    for port in [headless, dripping] {
        let web = web.clone();
        let asking = tokio::spawn(async move {
            web.ask(get(format!("http://a.example:{port}/")), open()).await?.read().await.map(|(body, _)| body)
        });
        let began = clock.instant();
        while !asking.is_finished() {
            clock.advance(Duration::from_millis(100));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(matches!(asking.await.unwrap(), Err(WebFailed::Timeout)));
        assert!(clock.instant() - began >= open().time);
    }
}
