//! Over real sockets on loopback.

use super::*;
use crate::base::{ChunkError, Chunks};
use crate::budget::Profile;
use crate::http::{ErrorResponse, Method, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::UnixListener;

struct Surface {
    budget: Budget,
    /// Requests that wait.
    waiting: Arc<AtomicUsize>,
}

/// Endless pieces, or an error after the third.
struct Pieces(u32, bool);

impl Chunks for Pieces {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        self.0 += 1;
        if self.0 > 3 && self.1 {
            return Err(ChunkError::new("broken on purpose"));
        }
        out.resize(16 * 1024, b'x');
        Ok(self.0 < 2000)
    }
}

async fn own_address(_: Arc<Surface>, request: Request) -> Result<Response, ErrorResponse> {
    Ok(Response::bytes(StatusCode::OK, "text/plain", request.origin().unwrap_or_default()))
}

async fn hello(_: Arc<Surface>, _: Request) -> Result<Response, ErrorResponse> {
    Ok(Response::json(&json!({"hello": "world"})))
}

async fn echo(_: Arc<Surface>, mut request: Request) -> Result<Response, ErrorResponse> {
    let body: Value = request.json().await?;
    Ok(Response::json(&json!({"body": body, "target": request.target()})))
}

/// Waits without an end; without `?whatever`, until the peer leaves.
async fn wait(surface: Arc<Surface>, request: Request) -> Result<Response, ErrorResponse> {
    struct Waiting(Arc<AtomicUsize>);
    impl Drop for Waiting {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    surface.waiting.fetch_add(1, SeqCst);
    let _waiting = Waiting(surface.waiting.clone());
    if request.query("whatever").is_none() {
        request.cancel_when_peer_leaves();
    }
    if request.query("news").is_some() {
        request.note_guest("@guest:here");
        request.hurried().await;
        return Ok(Response::json(&json!({"news": "none"})));
    }
    std::future::pending().await
}

/// Counts as one that waits until it has all of its body.
async fn count(surface: Arc<Surface>, request: Request) -> Result<Response, ErrorResponse> {
    surface.waiting.fetch_add(1, SeqCst);
    let mut stream = request.into_stream(1 << 30)?;
    let mut bytes = 0;
    while let Some(piece) = stream.next().await? {
        bytes += piece.len();
    }
    surface.waiting.fetch_sub(1, SeqCst);
    Ok(Response::json(&json!({ "bytes": bytes })))
}

async fn long(surface: Arc<Surface>, request: Request) -> Result<Response, ErrorResponse> {
    let grant = surface.budget.account("response_bodies").take(64 * 1024).await?;
    Ok(Response::stream(grant, Pieces(0, request.query("break").is_some())))
}

struct Running {
    door: Arc<HttpServer>,
    budget: Budget,
    clock: Clock,
    address: SocketAddr,
    waiting: Arc<AtomicUsize>,
}

async fn start() -> Running {
    start_within(Budget::for_tests()).await
}

/// With so few places that a test may take them all: each is two open files.
async fn start_small() -> Running {
    start_within(Budget::from_profile(Profile::get("pi-zero-2w").unwrap())).await
}

async fn start_within(budget: Budget) -> Running {
    let clock = Clock::simulated(1_700_000_000_000);
    let mut door = HttpServer::new(clock.clone(), &budget, Arc::new(Limits::new(clock.clone())), vec![]);
    // One loopback address is the household's; the others are strangers in networks of their own.
    let origin = |ip: IpAddr, _: Option<IpAddr>, _: &[IpAddr]| match ip == IpAddr::from([127, 0, 0, 1]) {
        true => Origin::Household,
        false => Origin::Outside,
    };
    Arc::get_mut(&mut door).expect("nobody has it yet").origin = origin;
    let (mut router, waiting) = (Router::new(), Arc::new(AtomicUsize::new(0)));
    router.open_to_web_apps(&["/versions"]);
    router
        .surface(&Arc::new(Surface { budget: budget.clone(), waiting: waiting.clone() }))
        .get("/versions", hello)
        .post("/echo", echo)
        .post("/count", count)
        .get("/long", long)
        .get("/wait", wait)
        .get("/origin", own_address);
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.address().unwrap();
    tokio::spawn(door.clone().serve(listener, Arc::new(router)));
    Running { door, budget, clock, address, waiting }
}

impl Running {
    /// Sends bytes as they are and reads until the server hangs up.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn post(&self, path: &str, extra: &str, body: &str) -> String {
        let len = body.len();
        self.raw(&format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len}\r\n{extra}\r\n{body}"
        ))
        .await
    }
}

#[tokio::test]
async fn http_1_0_answers_and_closes() {
    let server = start().await;
    let answer = server.raw("GET /versions HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.contains("access-control-allow-origin: *"), "{answer}");
    assert!(answer.ends_with("{\"hello\":\"world\"}"), "{answer}");
}

/// A client that closes its side after asking, as some versions of nc do.
#[tokio::test]
async fn a_half_closed_connection_is_answered() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /versions HTTP/1.0\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK"), "{answer}");
}

/// With a body, and with an answer that the socket does not take at once.
#[tokio::test]
async fn a_half_closed_connection_is_answered_in_full() {
    let server = start().await;
    for (request, end) in [
        ("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n{\"a\":1}", "\"target\":\"/echo\"}"),
        ("POST /echo HTTP/1.0\r\nContent-Length: 7\r\n\r\n{\"a\":1}", "\"target\":\"/echo\"}"),
        ("GET /long HTTP/1.1\r\nHost: x\r\n\r\n", "\r\n0\r\n\r\n"),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        // Gives the server time to send ahead what it can.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.") && answer.contains(" 200 OK"), "{request}: {answer:.200}");
        assert!(answer.ends_with(end), "{request} was cut off");
    }
    server.door.close(Duration::from_secs(1)).await;
}

/// Half of a body, and a peer that is gone.
#[tokio::test]
async fn a_body_that_ends_early_is_not_waited_for() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    // The clock stands still: no time limit ends it.
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert_eq!(server.budget.account("request_bodies").used(), 0);
}

/// Every reload of a web app left its long poll behind, which kept its connection's place until its timeout.
#[tokio::test]
async fn a_request_that_waits_ends_with_its_peer() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    while server.waiting.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    drop(stream);
    while server.waiting.load(SeqCst) > 0 || server.door.open.load(SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    // A peer that closed its side before the wait began is gone too.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!((server.waiting.load(SeqCst), answer.len()), (0, 0));
}

/// Five abandoned joins of a large room used up all the connections of the app's address, for up to an hour.
#[tokio::test]
async fn nobody_is_answered_long_after_they_closed_their_side() {
    // Also under pressure, when connections are told to go one after the other.
    for is_pressed in [false, true] {
        let server = start().await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /wait?whatever HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let pass = async |length: Duration| {
            let mut left = length;
            while let Some(rest) = left.checked_sub(PRESS_EVERY) {
                left = rest;
                server.clock.advance(PRESS_EVERY);
                if is_pressed {
                    server.door.places.press(1);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        while server.waiting.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        // A peer that stays is served on.
        pass(CLOSED_MAX * 2).await;
        stream.shutdown().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        pass(CLOSED_MAX).await;
        assert_eq!(server.waiting.load(SeqCst), 1);
        pass(LOOK_EVERY * 2).await;
        assert_eq!(server.waiting.load(SeqCst), 0);
        assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = start().await;
    let answer = server
        .raw("GET /versions HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    let (first, second) = (answer.find("200 OK").unwrap(), answer.find("404 Not Found").unwrap());
    assert!(first < second);
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let server = start().await;
    let long = "x".repeat(64 * 1024);
    let answer = server.raw(&format!("GET /x HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn bodies_are_bounded_and_their_memory_returns() {
    let server = start().await;
    let answer = server.post("/echo?x=%2Fa", "", r#"{"a":[1,2]}"#).await;
    assert!(answer.contains(r#""body":{"a":[1,2]}"#) && answer.contains(r#""target":"/echo?x=%2Fa""#), "{answer}");
    let answer = server.post("/echo", "", r#"{"a":"#).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("M_NOT_JSON"), "{answer}");
    let max = server.budget.size("request_body_max") as usize;
    let head = format!("POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", max + 1);
    let answer = server.raw(&head).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("M_TOO_LARGE"), "{answer}");
    server.door.close(Duration::from_secs(1)).await;
    assert_eq!(server.budget.account("request_bodies").used(), 0);
    // The accepting task gives its permit back when it next runs.
    while server.budget.account("connections").used() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_chunked_body_pays_as_it_grows_and_ends_at_the_limit() {
    let server = start().await;
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
    let chunks = server.budget.size("request_body_max") as usize / 0x4000 + 1;
    let head = "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = server.raw(&format!("{head}{}0\r\n\r\n", chunk.repeat(chunks))).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let answer = server.raw(&format!("{head}2\r\n{{\"\r\n6\r\na\": 12\r\n1\r\n}}\r\n0\r\n\r\n")).await;
    assert!(answer.contains(r#"{"a":12}"#), "{answer}");
}

/// A peer that announces a large body and sends none of it holds next to nothing, and blocks no other request.
#[tokio::test]
async fn a_body_that_is_only_announced_costs_little() {
    let server = start().await;
    let (account, max) = (server.budget.account("request_bodies"), server.budget.size("request_body_max"));
    let mut streams = Vec::new();
    for _ in 0..account.limit() / max + 1 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {max}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let before = account.used();
        while account.used() == before {
            tokio::task::yield_now().await;
        }
        streams.push(stream);
    }
    assert!(account.used() <= streams.len() as u64 * 32 * 1024, "{}", account.used());
    let whole = format!("\"{}\"", "x".repeat(300_000));
    assert!(server.post("/echo", "", &whole).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_burst_of_bodies_is_told_when_to_come_back() {
    let server = start().await;
    let account = server.budget.account("request_bodies");
    let all = account.try_take(account.limit() - SMALL_BODIES_BYTES).unwrap();
    // A small body is not concerned, while there are few.
    assert!(server.post("/echo", "", "{}").await.starts_with("HTTP/1.1 200 "));
    let all = (all, account.take_small(SMALL_BODIES_BYTES).await.unwrap());
    let asking = server.post("/echo", "", "{}");
    tokio::pin!(asking);
    let answer = loop {
        tokio::select! {
            answer = &mut asking => break answer,
            () = tokio::task::yield_now() => server.clock.advance(Duration::from_millis(100)),
        }
    };
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("retry-after: ") && answer.contains("retry_after_ms"), "{answer}");
    drop(all);
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{").await.unwrap();
    let mut answer = Vec::new();
    let reading = stream.read_buf(&mut answer);
    tokio::pin!(reading);
    loop {
        tokio::select! {
            read = &mut reading => { read.unwrap(); break }
            () = tokio::task::yield_now() => server.clock.advance(Duration::from_millis(100)),
        };
    }
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 408 "));
}

#[tokio::test]
async fn uploads_stream_through() {
    let server = start().await;
    let answer = server.post("/count", "", &"x".repeat(1 << 20)).await;
    assert!(answer.contains(r#"{"bytes":1048576}"#), "{answer}");
}

/// A whole answer that is not small is charged for as long as it is held.
#[tokio::test]
async fn a_whole_answer_is_paid_for_or_refused() {
    let server = start().await;
    let account = server.budget.account("response_bodies");
    let large = format!("\"{}\"", "x".repeat(100_000));
    assert!(server.post("/echo", "", &large).await.starts_with("HTTP/1.1 200 "));
    assert!(account.high_water() > 100_000);
    server.door.close(Duration::from_secs(1)).await;
    assert_eq!(account.used(), 0);

    let server = start().await;
    let account = server.budget.account("response_bodies");
    let _all = account.try_take(account.limit()).unwrap();
    assert!(server.post("/echo", "", &large).await.starts_with("HTTP/1.1 429 "));
    assert!(server.post("/echo", "", "1").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_long_answer_comes_whole_or_visibly_broken() {
    let server = start().await;
    let whole = server.raw("GET /long HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(whole.ends_with("0\r\n\r\n"));
    assert!(whole.len() > 2000 * 16 * 1024);
    let broken = server.raw("GET /long?break HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(broken.starts_with("HTTP/1.1 200 OK") && !broken.ends_with("0\r\n\r\n"));
    server.door.close(Duration::from_secs(1)).await;
    assert_eq!(server.budget.account("response_bodies").used(), 0);
}

/// The answer is larger than what kernel buffers take, so an unread one blocks; the watch must notice.
#[tokio::test]
async fn a_peer_that_does_not_read_is_hung_up_on() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let account = server.budget.account("response_bodies");
    while account.high_water() == 0 || server.door.connections_open() > 0 {
        tokio::task::yield_now().await;
        server.clock.advance(Duration::from_millis(10));
    }
    assert_eq!(account.used(), 0);
}

#[tokio::test]
async fn connections_wait_for_their_permit() {
    let server = start().await;
    let account = server.budget.account("connections");
    let all = account.try_take(account.limit()).unwrap();
    let asking = server.raw("GET /versions HTTP/1.0\r\n\r\n");
    tokio::pin!(asking);
    for _ in 0..50 {
        tokio::select! {
            answer = &mut asking => panic!("answered without a permit: {answer}"),
            () = tokio::task::yield_now() => {}
        }
    }
    drop(all);
    server.clock.advance(PRESS_EVERY);
    assert!(asking.await.starts_with("HTTP/1.0 200"));
}

/// HTTP/2 without TLS, told by its preface; driven by hyper's own client.
#[tokio::test]
async fn http_2_with_prior_knowledge() {
    let server = start().await;
    let account = server.budget.account("connections");
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (method, path, status) in [
        (Method::GET, "/versions", StatusCode::OK),
        (Method::HEAD, "/versions", StatusCode::OK),
        (Method::GET, "/nothing", StatusCode::NOT_FOUND),
        (Method::POST, "/versions", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let request = hyper::Request::builder()
            .method(method.clone())
            .uri(format!("http://{}{path}", server.address))
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), status, "{method} {path}");
    }
    // The host is in the target and not in a header.
    let request = hyper::Request::get(format!("http://{}/origin", server.address));
    let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let origin = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(origin, format!("http://{}", server.address));
    assert!(account.used() >= HTTP_2_BYTES + server.budget.profile().connection_bytes(false), "it pays for itself");

    // Where little is left, HTTP/1 goes on alone.
    let _most = account.try_take(account.limit() / 4 * 3 - account.used()).unwrap();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
    // A method that begins like the preface, byte by byte.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for piece in ["P", "R", "OPFIND / HTTP/1.0\r\n\r\n"] {
        stream.write_all(piece.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        server.clock.advance(PREFACE_PAUSE);
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    let reading = stream.read_to_string(&mut answer);
    let advancing = async {
        loop {
            server.clock.advance(PREFACE_PAUSE);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! { done = reading => { done.unwrap(); } () = advancing => {} }
    assert!(answer.starts_with("HTTP/1.0 40"), "{answer}");
}

/// One address opens all connections it may and sends no request; others still get in, and so does the owner.
#[tokio::test]
async fn one_address_does_not_take_every_place() {
    let server = start_small().await;
    let account = server.budget.account("connections");
    let socket = std::env::temp_dir().join(format!("snug-door-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&socket);
    let listener = Listener::unix(UnixListener::bind(&socket).unwrap());
    let mut router = Router::new();
    router.surface(&Arc::new(Surface { budget: server.budget.clone(), waiting: Arc::default() })).get("/hello", hello);
    tokio::spawn(server.door.clone().serve(listener, Arc::new(router)));

    let most = account.limit() / 4 * 3 / server.budget.profile().connection_bytes(false);
    let mut held = Vec::new();
    for _ in 0..most {
        held.push(TcpStream::connect(server.address).await.unwrap());
    }
    while server.door.connections_open() < most as usize {
        tokio::task::yield_now().await;
    }
    let mut refused = TcpStream::connect(server.address).await.unwrap();
    let mut told = Vec::new();
    let _ = refused.read_to_end(&mut told).await;
    assert_eq!(String::from_utf8_lossy(&told), NO_PLACE_ANSWER, "one too many is told so");
    assert_eq!(server.door.connections_open(), most as usize);
    // The memory for the next connection is taken before it comes.
    assert!(account.used() <= (most + 1) * server.budget.profile().connection_bytes(false));

    // Strangers have taken the rest; the commands have their own place.
    let _rest = account.try_take(account.limit() - account.used()).unwrap();
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK"), "{answer}");
    let _ = std::fs::remove_file(&socket);
}

/// An idle connection gives way to a new one from the same address.
#[tokio::test]
async fn an_address_at_its_limit_gives_up_what_is_idle() {
    let server = start_small().await;
    let most = server.budget.account("connections").limit() / 4 * 3 / server.budget.profile().connection_bytes(false);
    let mut held = Vec::new();
    for _ in 0..most {
        held.push(TcpStream::connect(server.address).await.unwrap());
    }
    while server.door.connections_open() < most as usize {
        tokio::task::yield_now().await;
    }
    server.clock.advance(Duration::from_millis(1500));
    assert!(server.raw("GET /versions HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 200"));
    assert!(server.door.connections_open() < most as usize + 1);
}

impl Running {
    /// A connection from an address on loopback.
    async fn from(&self, ip: [u8; 4]) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((IpAddr::from(ip), 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// Sends a short request; returns how long on this server's clock the answer takes.
    async fn ask_from(&self, ip: [u8; 4]) -> (String, Duration) {
        let (asked, mut answer) = (self.clock.instant(), String::new());
        let asking = async {
            let mut stream = self.from(ip).await;
            stream.write_all(b"GET /versions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
            stream.read_to_string(&mut answer).await
        };
        // No faster than real time, so that a busy machine is not taken for a long wait.
        tokio::select! { done = asking => { let _ = done; } () = self.go_on(5) => {} }
        (answer, self.clock.instant().saturating_sub(asked))
    }

    /// Lets time pass in steps of five real milliseconds, each counted as `ms`.
    async fn go_on(&self, ms: u64) {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.clock.advance(Duration::from_millis(ms));
        }
    }

    async fn pass(&self, length: Duration) {
        let until = self.clock.instant() + length;
        tokio::select! {
            () = self.go_on(50) => {}
            () = async { while self.clock.instant() < until { tokio::time::sleep(Duration::from_millis(5)).await; } } => {}
        }
    }
}

const HOME: [u8; 4] = [127, 0, 0, 1];
const STRANGER: [u8; 4] = [127, 99, 0, 1];

/// Connections from as many networks as it takes to hold all of the strangers' part, each beginning with some bytes.
async fn crowd(server: &Running, bytes: &[u8]) -> Vec<TcpStream> {
    let most = server.budget.account("connections").limit() / server.budget.profile().connection_bytes(false);
    let mut held = Vec::new();
    for n in 0..most {
        let mut stream = server.from([127, 1 + (n % 64) as u8, 0, 1]).await;
        let _ = stream.write_all(bytes).await;
        held.push(stream);
    }
    held
}

async fn of_small_and_larger(test: impl AsyncFn(Running)) {
    for profile in ["pi-zero-2w", "pi-3"] {
        test(start_within(Budget::from_profile(Profile::get(profile).unwrap())).await).await;
    }
}

/// Apps waited 14 to 44 seconds beside idle connections and slow heads; apps of the household 29 beside four addresses
/// that read slowly.
#[tokio::test]
async fn nobody_waits_beside_those_who_do_nothing() {
    for begin in [&b""[..], b"GET /vers", b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n"] {
        of_small_and_larger(async |server| {
            let crowd = crowd(&server, begin).await;
            let (answer, took) = server.ask_from(HOME).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{begin:?}: {answer}");
            assert!(took <= Duration::from_secs(2), "{took:?}");
            // Until no socket takes any more unread bytes.
            server.pass(Duration::from_secs(20)).await;
            let (answer, took) = server.ask_from(STRANGER).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{:?}: {answer}", String::from_utf8_lossy(begin));
            assert!(took <= Duration::from_secs(2), "{took:?}");
            drop(crowd);
        })
        .await;
    }
}

/// Also bodies that never arrive.
#[tokio::test]
async fn nobody_waits_beside_those_who_send_slowly() {
    of_small_and_larger(async |server| {
        let crowd = crowd(&server, b"POST /count HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nab").await;
        server.pass(Duration::from_secs(3)).await;
        for who in [HOME, STRANGER] {
            let (answer, took) = server.ask_from(who).await;
            assert!(answer.starts_with("HTTP/1.1 200") && took <= Duration::from_secs(2), "{took:?} {answer}");
        }
        drop(crowd);
    })
    .await;
}

/// Strangers with an account on an open server took every place with requests that wait; now those are answered early.
#[tokio::test]
async fn long_polls_of_others_leave_places() {
    of_small_and_larger(async |server| {
        let mut polls = Vec::new();
        for _ in 0..2 {
            polls.extend(crowd(&server, b"GET /wait?news HTTP/1.1\r\nHost: x\r\n\r\n").await);
            server.pass(Duration::from_secs(2)).await;
        }
        for who in [HOME, STRANGER] {
            let (answer, took) = server.ask_from(who).await;
            assert!(answer.starts_with("HTTP/1.1 200") && took <= Duration::from_secs(2), "{took:?} {answer}");
        }
        let mut answered = 0;
        for stream in &mut polls {
            let mut answer = vec![0; 1024];
            if let Ok(read) = stream.try_read(&mut answer)
                && read > 0
            {
                answered += usize::from(String::from_utf8_lossy(&answer[..read]).contains("none"));
            }
        }
        assert!(answered > 0, "who has to go is answered");
    })
    .await;
}

/// Behind a proxy that adds a line of its own, the caller chose the address it was counted under.
#[test]
fn the_last_address_of_the_last_line_counts() {
    let of = |lines: &[&str]| {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        forwarded_for(&headers).map(|ip| ip.to_string())
    };
    for (lines, expected) in [
        (&["203.0.113.1"][..], Some("203.0.113.1")),
        (&["1.1.1.1, 203.0.113.1"], Some("203.0.113.1")),
        (&["1.1.1.1", "203.0.113.1"], Some("203.0.113.1")),
        (&["1.1.1.1, 2.2.2.2", "3.3.3.3,203.0.113.1"], Some("203.0.113.1")),
        (&["1.1.1.1", "2001:db8::1"], Some("2001:db8::1")),
        (&["[2001:db8::1]"], Some("2001:db8::1")),
        (&["[2001:db8::1]:4711"], Some("2001:db8::1")),
        (&["203.0.113.1:80"], Some("203.0.113.1")),
        (&["1.1.1.1", "unknown"], None),
        (&["1.1.1.1", ""], None),
        (&["1.1.1.1,"], None),
        (&[], None),
    ] {
        assert_eq!(of(lines).as_deref(), expected, "{lines:?}");
    }
}

#[tokio::test]
async fn closing_lets_answers_finish_and_refuses_new_connections() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"POST /count HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab").await.unwrap();
    while server.waiting.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let closing = tokio::spawn({
        let door = server.door.clone();
        async move { door.close(Duration::from_secs(3600)).await }
    });
    tokio::task::yield_now().await;
    stream.write_all(b"cd").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains(r#"{"bytes":4}"#), "{answer}");
    closing.await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

/// Waiting syncs were cut off after the grace of three seconds: apps showed an error.
#[tokio::test]
async fn when_the_server_stops_a_request_that_waits_for_news_is_answered() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /wait?news HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    while server.waiting.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let door = server.door.clone();
    let closing = tokio::spawn(async move { door.close(Duration::from_secs(3)).await });
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    // The grace is over for a request that has not answered by now.
    server.clock.advance(Duration::from_secs(3));
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    closing.await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains(r#"{"news":"none"}"#), "{answer:?}");
}

#[test]
fn a_caller_without_a_place_is_told_so_as_an_app_reads_it() {
    let (head, body) = super::NO_PLACE_ANSWER.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    let wanted = ErrorResponse::no_place(super::NO_PLACE_RETRY_MS).into_response();
    assert_eq!((wanted.status().as_u16(), body["errcode"].as_str()), (503, Some("M_LIMIT_EXCEEDED")));
    assert_eq!(body["retry_after_ms"], super::NO_PLACE_RETRY_MS);
}
