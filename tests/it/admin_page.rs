//! The administrators' page: signing in, forms, people who come by link.

use serde_json::json;
use snug::admin::Reload;
use snug::base::{Clock, Random};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rooms::{create, eventually};
use crate::server::TestServer;

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

/// A browser without scripts.
struct Browser<'a> {
    house: &'a TestServer,
    cookies: Vec<(String, String)>,
}

struct Page {
    status: u16,
    headers: Vec<(String, String)>,
    html: String,
}

impl Page {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    #[track_caller]
    fn has(&self, texts: &[&str]) {
        for text in texts {
            assert!(self.html.contains(text), "no {text:?} in {} {}", self.status, self.html);
        }
    }

    /// The hidden token of the page's forms.
    fn token(&self) -> String {
        let (_, rest) = self.html.split_once("name=\"token\" value=\"").expect("the page has a form");
        rest.split('"').next().unwrap().to_owned()
    }
}

impl Browser<'_> {
    fn new(house: &TestServer) -> Browser<'_> {
        Browser { house, cookies: Vec::new() }
    }

    async fn ask(&mut self, method: &str, path: &str, more: &[(&str, &str)], body: &str) -> Page {
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies = cookies.join("; ");
        let mut headers = vec![("cookie", cookies.as_str()), FORM];
        headers.extend(more);
        let reply = self.house.send(method, path, &headers, body.as_bytes().to_vec()).await;
        let headers: Vec<(String, String)> = reply
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let page = Page { status: reply.status, headers, html: String::from_utf8_lossy(&reply.bytes).into_owned() };
        if let Some((name, value)) = page.header("set-cookie").split(';').next().and_then(|pair| pair.split_once('=')) {
            self.cookies.retain(|(known, _)| known != name);
            if !value.is_empty() {
                self.cookies.push((name.to_owned(), value.to_owned()));
            }
        }
        page
    }

    async fn get(&mut self, path: &str) -> Page {
        self.ask("GET", path, &[], "").await
    }

    async fn post(&mut self, path: &str, token: &str, fields: &str) -> Page {
        self.ask("POST", path, &[], &format!("token={token}&{fields}")).await
    }

    async fn sign_in(&mut self, name: &str, password: &str) -> Page {
        let token = self.get("/_snug/sign-in").await.token();
        let password = password.replace(' ', "+");
        self.post("/_snug/sign-in", &token, &format!("name={name}&password={password}&next=people/")).await
    }
}

const PASSWORD: &str = "correct horse";

async fn with_an_administrator() -> TestServer {
    let house = TestServer::start().await;
    house.server().users.create_first(&code(&house).await, "anna", PASSWORD).await.unwrap();
    house
}

async fn code(house: &TestServer) -> String {
    house.server().users.setup_code().await.unwrap().unwrap()
}

#[tokio::test]
async fn who_is_not_signed_in_sees_the_sign_in_only() {
    let house = with_an_administrator().await;
    let mut browser = Browser::new(&house);
    for (path, next) in [("/_snug/", ""), ("/_snug/people/", "?next=people/"), ("/_snug/no/such", "?next=no/such")] {
        let page = browser.get(path).await;
        assert_eq!((page.status, page.header("location")), (303, format!("/_snug/sign-in{next}").as_str()));
        assert!(page.html.is_empty());
    }
    browser.cookies.push(("snug_page".to_owned(), "made-up".to_owned()));
    assert_eq!(
        browser.post("/_snug/people/add", "x", "name=eve").await.header("location"),
        "/_snug/sign-in?next=people/add"
    );
    let page = browser.get("/_snug/sign-in?next=//evil.example/").await;
    page.has(&["name=\"next\" value=\"\""]);
    assert!(
        page.header("set-cookie").contains("; Path=/_snug; ") && page.header("set-cookie").contains("SameSite=Strict")
    );
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
    house.stop().await;
}

#[tokio::test]
async fn an_administrator_signs_in_and_out() {
    let house = with_an_administrator().await;
    house.register("bert").await;
    let mut browser = Browser::new(&house);
    let wrong = browser.sign_in("anna", "wrong horse").await;
    assert_eq!(wrong.status, 403);
    wrong.has(&["The user name or the password is wrong.", "value=\"anna\""]);
    for eve in ["nobody", "%40anna%3Aelsewhere.example", "%22%3E%3Cb%3E"] {
        let wrong = browser.sign_in(eve, PASSWORD).await;
        assert_eq!(wrong.status, 403);
        assert!(!wrong.html.contains("<b>"), "{}", wrong.html);
    }
    let page = browser.sign_in("anna", PASSWORD).await;
    assert_eq!((page.status, page.header("location")), (303, "/_snug/people/"));
    assert!(page.header("set-cookie").contains("HttpOnly; SameSite=Strict"), "{}", page.header("set-cookie"));
    let home = browser.get("/_snug/").await;
    home.has(&["Memory", "Disk", "<b>anna</b>", "/_snug/people/"]);
    for (name, value) in
        [("x-frame-options", "DENY"), ("referrer-policy", "no-referrer"), ("cache-control", "no-store")]
    {
        assert_eq!(home.header(name), value);
    }
    let policy = home.header("content-security-policy");
    assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"), "{policy}");
    assert!(!home.html.contains("style=\"") && !home.html.contains("<style"), "the policy forbids it");
    let nowhere = browser.get("/_snug/no/such").await;
    assert_eq!(nowhere.status, 404);
    nowhere.has(&["Not found", "Go home"]);
    browser.post("/_snug/sign-out", &home.token(), "").await;
    assert_eq!(browser.get("/_snug/").await.status, 303);
    house.stop().await;
}

#[tokio::test]
async fn who_is_no_administrator_is_told_so_once_the_password_is_right() {
    let house = with_an_administrator().await;
    house.register("bert").await;
    let mut browser = Browser::new(&house);
    assert!(!browser.sign_in("bert", "wrong").await.html.contains("administrators"));
    let told = browser.sign_in("bert", "secret bert").await;
    assert_eq!(told.status, 403);
    told.has(&["this page is for administrators"]);
    assert_eq!(browser.get("/_snug/").await.status, 303);
    house.stop().await;
}

#[tokio::test]
async fn a_form_of_another_site_changes_nothing() {
    let house = with_an_administrator().await;
    let mut browser = Browser::new(&house);
    browser.sign_in("anna", PASSWORD).await;
    let token = browser.get("/_snug/people/add").await.token();
    for token in ["", "0", &"0".repeat(32)] {
        let page = browser.post("/_snug/people/add", token, "name=eve").await;
        assert_eq!(page.status, 403);
        page.has(&["Nothing was changed"]);
    }
    let fields = format!("token={token}&name=eve");
    for site in ["cross-site", "same-site"] {
        assert_eq!(browser.ask("POST", "/_snug/people/add", &[("sec-fetch-site", site)], &fields).await.status, 403);
    }
    // Nor is somebody signed in by another site, as somebody else.
    let page = Browser::new(&house).post("/_snug/sign-in", &token, "name=anna&password=correct+horse").await;
    assert_eq!(page.status, 403);
    assert_eq!(page.header("set-cookie"), "");
    assert_eq!(house.server().users.count_up_to(9).await.unwrap(), 1);
    assert_eq!(
        browser.ask("POST", "/_snug/people/add", &[("sec-fetch-site", "same-origin")], &fields).await.status,
        200
    );
    house.stop().await;
}

#[tokio::test]
async fn a_person_comes_by_link_and_is_looked_after() {
    let house = with_an_administrator().await;
    let mut browser = Browser::new(&house);
    browser.sign_in("anna", PASSWORD).await;
    let token = browser.get("/_snug/people/add").await.token();
    let wrong = browser.post("/_snug/people/add", &token, "name=Bert+B").await;
    assert_eq!(wrong.status, 400);
    wrong.has(&["value=\"Bert B\"", "role=\"alert\""]);
    let made = browser.post("/_snug/people/add", &token, "name=Bert").await;
    made.has(&["<svg class=\"qr\"", "data-copy=\"link\""]);
    let link = made.html.split_once("/_snug/password/").unwrap().1.split('<').next().unwrap().to_owned();
    let link = format!("/_snug/password/{link}");
    browser.get("/_snug/people/").await.has(&["@bert:", "invited", "@anna:", "administrator"]);

    let mut guest = Browser::new(&house);
    guest.get(&link).await.has(&["@bert:", "Welcome to"]);
    let short = guest.ask("POST", &link, &[], "password=short&again=short").await;
    assert_eq!(short.status, 400);
    short.has(&["at least 8 characters"]);
    guest.ask("POST", &link, &[], "password=correct+horse&again=correct+horse").await.has(&["Your password is set"]);
    assert_eq!(guest.get(&link).await.status, 410);
    assert_eq!(guest.ask("POST", &link, &[], "password=correct+house&again=correct+house").await.status, 410);
    let bert = format!("@bert:{}", house.name());
    let bert: &ruma::UserId = bert.as_str().try_into().unwrap();
    house.server().users.check_password(bert, PASSWORD).await.unwrap();

    let its = "/_snug/people/of/bert";
    for (what, now) in [
        ("lock", "locked"),
        ("unlock", "not locked any more"),
        ("suspend", "suspended"),
        ("unsuspend", "not suspended any more"),
        ("make-admin", "administrator&#39;s now"),
        ("unmake-admin", "not an administrator"),
    ] {
        let page = browser.post(its, &token, &format!("what={what}")).await;
        assert_eq!(page.header("location"), format!("{its}?done={what}"));
        browser.get(page.header("location")).await.has(&[now]);
    }
    // What the files may take, and back to what everybody's may.
    for (typed, now) in [
        ("20+GiB", &["of 20.00 GiB", "value=\"20.00 GiB\"", "set for bert alone"][..]),
        ("unlimited", &["as much as there is room for", "value=\"unlimited\""]),
        ("", &["which is the usual", "value=\"\""]),
    ] {
        let page = browser.post(its, &token, &format!("what=quota&size={typed}")).await;
        assert_eq!(page.header("location"), format!("{its}?done=quota"));
        browser.get(page.header("location")).await.has(&["may take is changed"]);
        browser.get(its).await.has(now);
    }
    let wrong = browser.post(its, &token, "what=quota&size=%3Cb%3Emuch").await;
    wrong.has(&["&#60;b&#62;much", "is not a size such as"]);
    assert_eq!((wrong.status, browser.post(its, "x", "what=quota&size=1").await.status), (400, 403));
    assert_eq!(browser.post(its, &token, "what=nonsense").await.status, 400);
    assert_eq!(browser.post("/_snug/people/of/nobody", &token, "what=lock").await.status, 404);
    // The only administrator cannot shut everybody out.
    for what in ["unmake-admin", "lock", "suspend"] {
        assert_eq!(browser.post("/_snug/people/of/anna", &token, &format!("what={what}")).await.status, 403);
    }
    assert_eq!(browser.post("/_snug/people/of/anna/close", &token, "").await.status, 403);
    browser.get(&format!("{its}/close")).await.has(&["This cannot be undone"]);
    browser.post(&format!("{its}/close"), &token, "").await;
    browser.get(its).await.has(&["closed for good"]);
    house.stop().await;
}

#[tokio::test]
async fn wrong_passwords_are_slowed_down() {
    // The clock stands still, or a slow machine would earn a try while it makes one.
    let clock = Clock::simulated(1_700_000_000_000);
    let house = TestServer::start_at(clock, Random::os(), |config| config.rate_limits = true).await;
    house.server().users.create_first(&code(&house).await, "anna", PASSWORD).await.unwrap();
    let mut browser = Browser::new(&house);
    let mut tries = 0;
    while browser.sign_in("anna", "a guess").await.status == 403 {
        tries += 1;
        assert!(tries < 20, "as many tries as one likes");
    }
    let slowed = browser.sign_in("anna", PASSWORD).await;
    assert_eq!(slowed.status, 429);
    slowed.has(&["many tries in a short time"]);
    house.stop().await;
}

#[tokio::test]
async fn the_page_may_be_elsewhere_or_nowhere() {
    let house = TestServer::start_with(|config| config.page.path = "/_house/".to_owned()).await;
    let mut browser = Browser::new(&house);
    assert_eq!(browser.get("/_house/").await.header("location"), "/_house/sign-in");
    browser.get("/_house/sign-in").await.has(&["There is no account yet.", "action=\"/_house/sign-in\""]);
    assert_eq!(browser.get("/_snug/sign-in").await.status, 404);
    house.stop().await;
    let house = TestServer::start_with(|config| config.page.enabled = false).await;
    assert_eq!(Browser::new(&house).get("/_snug/").await.status, 404);
    house.stop().await;
}

/// Each page is there, for administrators alone, and fits what there is.
#[tokio::test]
async fn every_page_is_there() {
    let house = with_an_administrator().await;
    let bert = house.register("bert").await;
    let room = json!({ "name": "The <b>kitchen</b>", "preset": "public_chat", "visibility": "public" });
    let room = house.post("/_matrix/client/v3/createRoom", &bert, room).await.ok();
    let room_id = room["room_id"].as_str().unwrap();
    let in_path: String = form_urlencoded::byte_serialize(room_id.as_bytes()).collect();
    let mut browser = Browser::new(&house);
    let pages =
        ["rooms/", "reports/", "servers/", "servers/rooms", "settings/", "settings/in/general", "workers", "log"];
    for page in pages {
        assert_eq!(browser.get(&format!("/_snug/{page}")).await.status, 303);
    }
    browser.sign_in("anna", PASSWORD).await;
    let name = house.name().to_owned();
    for (page, text) in [
        ("rooms/".to_owned(), "The &#60;b&#62;kitchen&#60;/b&#62;"),
        ("rooms/?find=KITCHEN&order=name".to_owned(), "1 room, by"),
        ("rooms/?find=cellar".to_owned(), "No room has “cellar” in its name"),
        (format!("rooms/of/{in_path}"), "1, 1 of us"),
        ("reports/".to_owned(), "Nobody has reported anything."),
        ("servers/".to_owned(), "share no rooms with people of other servers yet"),
        (format!("servers/of/{name}"), "This is the server itself."),
        (format!("servers/rooms?server={name}&find=kitchen"), "1 member"),
        ("settings/".to_owned(), "Read it again"),
        ("settings/in/general".to_owned(), "server_name"),
        ("workers".to_owned(), "<span class=\"name\">"),
        ("log".to_owned(), "The last lines since the start"),
    ] {
        let page = browser.get(&format!("/_snug/{page}")).await;
        assert_eq!(page.status, 200, "{}", page.html);
        page.has(&[text]);
    }
    for (page, status) in [("rooms/of/%21nowhere%3Ax.org", 404), ("settings/in/none", 404), ("servers/of/%20", 400)] {
        assert_eq!(browser.get(&format!("/_snug/{page}")).await.status, status, "{page}");
    }
    house.stop().await;
}

/// A large room is allowed, a report leads to what is done about it, and no form of another page does anything.
#[tokio::test]
async fn rooms_are_allowed_and_reports_answered() {
    let house = with_an_administrator().await;
    let (bert, carl) = (house.register("bert").await, house.register("carl").await);
    let report = json!({ "reason": "<i>rude</i>" });
    let path = format!("/_matrix/client/v3/users/{}/report", carl.id);
    house.post(&path, &bert, report).await.ok();
    let mut browser = Browser::new(&house);
    browser.sign_in("anna", PASSWORD).await;
    let page = browser.get("/_snug/reports/").await;
    page.has(&["1 report<", "&#60;i&#62;rude&#60;/i&#62;", "people/of/carl", "people/of/bert", "Suspend"]);
    let token = page.token();
    for (path, fields) in [
        ("rooms/", "what=allow-room&room=%21big%3Ax.org"),
        ("reports/", "what=remove-report&number=1"),
        ("servers/of/x.org", "what=try-now"),
        ("settings/", ""),
    ] {
        assert_eq!(browser.post(&format!("/_snug/{path}"), "made-up", fields).await.status, 403, "{path}");
    }
    let done = browser.post("/_snug/reports/", &token, "what=suspend&number=1").await;
    assert_eq!((done.status, done.header("location")), (303, "/_snug/reports/?done=suspend"));
    browser.get("/_snug/reports/").await.has(&["Let write again"]);
    browser.post("/_snug/reports/", &token, "what=remove-report&number=1").await;
    browser.get("/_snug/reports/?done=remove-report").await.has(&["Nobody has reported", "The report is removed."]);
    assert_eq!(browser.post("/_snug/reports/", &token, "what=suspend&number=1").await.status, 404);

    browser.post("/_snug/rooms/", &token, "what=allow-room&room=%21big%3Ax.org").await;
    browser.get("/_snug/rooms/").await.has(&["Allowed whatever their size", "!big:x.org"]);
    browser.post("/_snug/rooms/", &token, "what=disallow-room&room=%21big%3Ax.org").await;
    assert!(!browser.get("/_snug/rooms/").await.html.contains("!big:x.org"));
    assert_eq!(browser.post("/_snug/rooms/", &token, "what=cancel-join&room=%21big%3Ax.org").await.status, 404);
    assert_eq!(browser.post("/_snug/servers/of/x.org", &token, "what=try-now").await.status, 303);
    house.stop().await;
}

/// A room is blocked by its id, before anybody here is in it, and on its own page.
#[tokio::test]
async fn rooms_are_blocked_and_unblocked() {
    let house = with_an_administrator().await;
    let bert = house.register("bert").await;
    let room_id = create(&house, &bert, json!({ "preset": "public_chat", "name": "Attic" })).await;
    let mut browser = Browser::new(&house);
    browser.sign_in("anna", PASSWORD).await;
    let token = browser.get("/_snug/rooms/blocked").await.token();
    let elsewhere = "what=block-room&room=%21far%3Ax.org";
    assert_eq!(browser.post("/_snug/rooms/blocked", "made-up", elsewhere).await.status, 403);
    assert_eq!(browser.post("/_snug/rooms/blocked", &token, elsewhere).await.status, 303);
    assert_eq!(browser.post("/_snug/rooms/blocked", &token, "what=block-room&room=%23far%3Ax.org").await.status, 400);
    browser.get("/_snug/rooms/blocked").await.has(&["!far:x.org", "blocked by @anna:"]);
    let carl = house.register("carl").await;
    house.post("/join/%21far%3Ax.org?via=x.org", &carl, json!({})).await.refused(403, "M_FORBIDDEN");
    browser.post("/_snug/rooms/blocked", &token, "what=unblock-room&room=%21far%3Ax.org").await;
    browser.get("/_snug/rooms/blocked").await.has(&["No room is blocked."]);

    let in_path: String = form_urlencoded::byte_serialize(room_id.as_bytes()).collect();
    let its = format!("/_snug/rooms/of/{in_path}");
    assert_eq!(
        browser.post(&its, &token, "what=block-room").await.header("location"),
        format!("{its}?done=block-room")
    );
    browser.get(&its).await.has(&[">blocked<", "Unblock"]);
    browser.get("/_snug/rooms/").await.has(&[">blocked<"]);
    house.post(&format!("/join/{in_path}"), &carl, json!({})).await.refused(403, "M_FORBIDDEN");
    browser.post(&its, &token, "what=unblock-room").await;
    house.post(&format!("/join/{in_path}"), &carl, json!({})).await.ok();
    house.stop().await;
}

/// A server is denied on its page: the config file says so, and it is in force at once.
#[tokio::test]
async fn servers_are_denied_and_let_in() {
    let house = with_an_administrator().await;
    let file = house.data_dir().join("snug.toml");
    std::fs::write(&file, "# mine\n[federation]\ndenied_servers = [\"*.spam.example\"]\n").unwrap();
    let reloader = house.server().reloader();
    reloader.config.lock().overrides.config = Some(file.clone());
    let _ = reloader.reload().await.unwrap();
    let mut browser = Browser::new(&house);
    browser.sign_in("anna", PASSWORD).await;
    let page = browser.get("/_snug/servers/of/bad.example").await;
    page.has(&["Deny it"]);
    let token = page.token();
    browser.post("/_snug/servers/of/Bad.example", &token, "what=deny-server").await;
    let text = || std::fs::read_to_string(&file).unwrap();
    assert_eq!(text(), "# mine\n[federation]\ndenied_servers = [\"*.spam.example\", \"bad.example\"]\n");
    assert_eq!(*house.server().remote.barred().denied(), ["*.spam.example".to_owned(), "bad.example".to_owned()]);
    browser.get("/_snug/servers/of/bad.example").await.has(&[">denied<", "Let it in again"]);
    browser.get("/_snug/servers/of/a.spam.example").await.has(&[">denied<", "<code>*.spam.example</code>"]);
    browser.get("/_snug/servers/").await.has(&["<h2>Denied</h2>", "bad.example", "every server that fits"]);
    browser.post("/_snug/servers/of/bad.example", &token, "what=let-server").await;
    assert_eq!(text(), "# mine\n[federation]\ndenied_servers = [\"*.spam.example\"]\n");
    let name = house.name().to_owned();
    assert_eq!(browser.post(&format!("/_snug/servers/of/{name}"), &token, "what=deny-server").await.status, 400);
    // The same list as a setting, which is read as any other.
    let field = "what=set&value=bad.example%0D%0A%21friend.example";
    browser.post("/_snug/settings/of/federation.denied_servers", &token, field).await;
    assert_eq!(text(), "# mine\n[federation]\ndenied_servers = [\"bad.example\", \"!friend.example\"]\n");
    let wrong = browser.post("/_snug/settings/of/federation.denied_servers", &token, "what=set&value=a+b").await;
    wrong.has(&["is no server, such as"]);
    // A rate is two numbers, and a policy a word or a list.
    browser.post("/_snug/settings/of/rates.joins", &token, "what=set&value=0.5&burst=30").await;
    assert!(text().ends_with("\n[rates]\njoins = { per_second = 0.5, burst_count = 30 }\n"), "{}", text());
    browser.get("/_snug/settings/of/rates.joins").await.has(&["value=\"0.5\"", "value=\"30\""]);
    let wrong = browser.post("/_snug/settings/of/rates.joins", &token, "what=set&value=0&burst=30").await;
    assert_eq!(wrong.status, 400);
    browser.post("/_snug/settings/of/policies.invite", &token, "what=set&value=@a*:x.org%0A!@ab:x.org").await;
    assert!(text().ends_with("\n[policies]\ninvite = [\"@a*:x.org\", \"!@ab:x.org\"]\n"), "{}", text());
    drop(reloader);
    house.stop().await;
}

/// Who went from page to page held a place of those who look for some twenty seconds after each, and the fifth page then never
/// changed by itself.
#[tokio::test]
async fn the_place_of_who_stops_looking_is_anothers_at_once() {
    let house = with_an_administrator().await;
    let mut browser = Browser::new(&house);
    browser.sign_in("anna", PASSWORD).await;
    let (name, value) = browser.cookies.iter().find(|(name, _)| name == "snug_page").unwrap();
    let asked = format!("GET /_snug/live/rooms HTTP/1.1\r\nHost: a\r\nCookie: {name}={value}\r\n\r\n");
    let look = async || {
        let mut stream = TcpStream::connect(house.address()).await.unwrap();
        stream.write_all(asked.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        (stream, String::from_utf8_lossy(&head[9..]).into_owned())
    };
    let mut watching = Vec::new();
    for _ in 0..4 {
        let (stream, status) = look().await;
        assert_eq!(status, "200");
        watching.push(stream);
    }
    assert_eq!(look().await.1, "204");
    // Nothing changes on the page, so nothing is sent that would show who is gone; ten pages in a row have theirs all the same.
    for _ in 0..10 {
        watching.pop();
        let stream = eventually("the place is free", async || {
            let (stream, status) = look().await;
            (status == "200").then_some(stream)
        })
        .await;
        watching.push(stream);
    }
    house.stop().await;
}
