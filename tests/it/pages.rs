//! The pages for a browser: the front page, and the page that makes the first account.

use snug::base::{Clock, Random};

use crate::server::TestServer;

/// An answer as it came: the status, the head and the page.
struct Page {
    status: u16,
    head: String,
    html: String,
}

async fn ask(house: &TestServer, request: &str, host: &str, more: &str) -> Page {
    let answer = house.raw(&format!("{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}")).await;
    let (head, html) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Page { status, head: head.to_lowercase(), html: html.to_owned() }
}

async fn get(house: &TestServer, path: &str, host: &str) -> Page {
    ask(house, &format!("GET {path}"), host, "\r\n").await
}

async fn post(house: &TestServer, path: &str, form: &str) -> Page {
    let kind = "Content-Type: application/x-www-form-urlencoded";
    let more = format!("{kind}\r\nContent-Length: {}\r\n\r\n{form}", form.len());
    ask(house, &format!("POST {path}"), "192.168.1.20:8008", &more).await
}

async fn first_path(house: &TestServer) -> String {
    format!("/_snug/first/{}", house.server().users.setup_code().await.unwrap().unwrap())
}

fn named(name: &str) -> impl FnOnce(&mut snug::config::Config) + use<> {
    let name = name.try_into().unwrap();
    move |config| config.server_name = name
}

impl Page {
    #[track_caller]
    fn has(&self, texts: &[&str]) {
        for text in texts {
            assert!(self.html.contains(text), "no {text:?} in {}", self.html);
        }
    }
}

/// A browser that went to the address of the server was shown a JSON error.
#[tokio::test]
async fn the_front_page_says_what_this_is_and_how_to_log_in() {
    let house = TestServer::start_with(named("example.org")).await;
    let page = get(&house, "/", "192.168.1.20:8008").await;
    assert_eq!(page.status, 200);
    assert!(page.head.contains("content-type: text/html; charset=utf-8"), "{}", page.head);
    page.has(&["<h1>example.org</h1>", "It works", "Matrix homeserver", "There is no account yet."]);
    page.has(&["<code id=\"address\">http://192.168.1.20:8008</code>", "data-copy=\"address\" hidden"]);
    assert!(!page.html.contains("works on this machine only"), "{}", page.html);
    // An address that leads a phone to itself is said to.
    get(&house, "/", "localhost:8008").await.has(&["http://localhost:8008<", "works on this machine only"]);
    house.register("anna").await;
    let later = get(&house, "/", "192.168.1.20:8008").await;
    later.has(&["Choose in the app to make one"]);
    assert!(!later.html.contains("There is no account yet") && !later.html.contains("anna"), "{}", later.html);
    house.stop().await;
}

#[tokio::test]
async fn the_address_on_a_page_is_the_public_one_or_what_the_browser_used() {
    let house = TestServer::start_with(|config| config.trusted_proxies = vec![[127, 0, 0, 1].into()]).await;
    let proxied = ask(&house, "GET /", "m.example", "X-Forwarded-Proto: https\r\n\r\n").await;
    proxied.has(&["<code id=\"address\">https://m.example</code>"]);
    assert!(!proxied.html.contains("http:// is part of it"), "{}", proxied.html);
    // A host that no browser sends is not shown; the server's name stands there.
    for host in ["\"><b>", "a b", &"x".repeat(300), ""] {
        let page = get(&house, "/", host).await;
        assert!(!page.html.contains("<b>") && !page.html.contains("xxxx"), "{}", page.html);
        assert!(page.status == 400 || page.html.contains("<code id=\"address\">https://localhost<"), "{}", page.html);
    }
    house.stop().await;
    let public = |config: &mut snug::config::Config| config.apps.public_url = Some("https://m.example.org/".to_owned());
    let house = TestServer::start_with(public).await;
    get(&house, "/", "localhost:8008").await.has(&["<code id=\"address\">https://m.example.org</code>"]);
    house.stop().await;
}

/// The page did not say the server's name, and its last one gave an address that apps did not take.
#[tokio::test]
async fn the_first_account_is_made_with_its_whole_name_in_view() {
    let house = TestServer::start_with(named("example.org")).await;
    let path = first_path(&house).await;
    let form = get(&house, &path, "192.168.1.20:8008").await;
    assert_eq!(form.status, 200);
    form.has(&["<span aria-hidden=\"true\">@</span>", "<span id=\"server\">:example.org</span>", "It is for ever"]);
    form.has(&["Snug <span>on example.org</span>", "color-scheme:light dark", "prefers-color-scheme:dark"]);
    assert!(!form.html.contains("for trying things out"), "{}", form.html);
    assert!(form.head.contains("style-src 'sha256-") && !form.head.contains("unsafe"), "{}", form.head);
    let done = post(&house, &path, "name=%40Anna%3Aexample.org&password=correct+horse&again=correct+horse").await;
    assert_eq!(done.status, 200, "{}", done.html);
    done.has(&["@anna:example.org", "Your user name is <strong>anna</strong>"]);
    done.has(&["<code id=\"address\">http://192.168.1.20:8008</code>", "data-copy=\"address\""]);
    let gone = get(&house, &path, "192.168.1.20:8008").await;
    assert_eq!(gone.status, 410);
    gone.has(&["This link was used", "http://192.168.1.20:8008"]);
    house.stop().await;
}

/// An error did not say which character was wrong, and each showed one mistake of several.
#[tokio::test]
async fn mistakes_in_the_form_are_named_and_the_name_stays() {
    let house = TestServer::start().await;
    let path = first_path(&house).await;
    get(&house, &path, "localhost:8008").await.has(&["The name localhost is for trying things out."]);
    // An error that only an app could read was shown.
    let long = post(&house, &path, &format!("name={}", "x".repeat(5_000))).await;
    assert_eq!(long.status, 413);
    long.has(&["<h1>That did not work</h1>"]);
    let wrong = post(&house, &path, "name=Anna+M%C3%BCller&password=correct+horse&again=correct+house").await;
    assert_eq!(wrong.status, 400);
    wrong.has(&[
        "not a space and not \u{201c}\u{fc}\u{201d}.",
        "value=\"Anna M\u{fc}ller\"",
        "passwords are not the same",
    ]);
    assert!(!wrong.html.contains("correct h"), "a password is not sent back: {}", wrong.html);
    let wrong = post(&house, &path, "name=%22%3E%3Cb%3E&password=short&again=short").await;
    wrong.has(&["value=\"&quot;&gt;&lt;b&gt;\"", "not \u{201c}&quot;\u{201d}", "at least 8 characters"]);
    assert!(!wrong.html.contains("<b>"), "{}", wrong.html);
    let long = "p".repeat(600);
    let wrong = post(&house, &path, &format!("name=anna&password={long}&again={long}")).await;
    wrong.has(&["A password has at most 512 bytes", "value=\"anna\""]);
    assert_eq!(post(&house, &path, "").await.status, 400);
    house.stop().await;
}

/// The form was shown for any code, and refused the right answers of somebody with half a link.
#[tokio::test]
async fn a_link_with_another_code_shows_no_form() {
    let house = TestServer::start().await;
    for page in [
        get(&house, "/_snug/first/AAAA", "localhost").await,
        post(&house, "/_snug/first/AAAA", "name=eve&password=correct+horse&again=correct+horse").await,
    ] {
        assert_eq!(page.status, 403);
        page.has(&["This link is not the right one"]);
        assert!(!page.html.contains("<form"), "{}", page.html);
    }
    assert_eq!(house.server().users.count_up_to(1).await.unwrap(), 0);
    // The clock stands still, or a slow machine would earn a try while it makes one.
    let clock = Clock::simulated(1_700_000_000_000);
    let house = TestServer::start_at(clock, Random::os(), |config| config.rate_limits = true).await;
    let mut last = 0;
    for _ in 0..11 {
        last = post(&house, "/_snug/first/AAAA", "").await.status;
    }
    assert_eq!(last, 429);
    post(&house, "/_snug/first/AAAA", "").await.has(&["many tries in a short time"]);
    house.stop().await;
}
