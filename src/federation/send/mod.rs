//! `PUT /send/{txnId}`: transactions that other servers push to us.
//!
//! Server-server API, "Transactions". The body is charged to `inbound_transactions` before it is read and dropped as
//! soon as it is taken apart. Events are processed room by room, the rooms in parallel, so that trouble in one room
//! holds up no other; EDUs come after the events they may refer to. Processing is finished even when the sender hangs
//! up: it would only send the same again. Where our own memory or disk fails, the whole transaction is put off and not
//! remembered: the sender keeps it, and events already taken are recognised the next time.
//!
//! A server sends one transaction at a time. A repeated one that comes while the first is still processed waits for
//! that, before any of its body is read: a server that is slow to answer our own requests takes no memory from others.

use std::sync::Arc;
use std::time::Duration;

use ruma::ServerName;
use serde_json::json;

use super::error::disk_is_short;
use super::{Error, Federation, auth, rates};
use crate::base::{self, brief};
use crate::budget::{Account, Grant, quoted_bytes_max};
use crate::http::{BadBody, ErrorResponse, Request, Response, StatusCode};
use crate::room;
use transaction::{Transaction, Transactions, begin, process, too_soon};

pub mod large;
pub mod edu;
pub mod transaction;

/// The specification's limits.
pub(super) const PDUS_MAX: usize = 50;
pub(super) const EDUS_MAX: usize = 100;
/// The body, its canonical form twice while the signature is checked, and the signed text.
const COPIES_CHECKED: u64 = 4;
/// The body, and the events and EDUs taken out of it.
const COPIES_KEPT: u64 = 2;
/// This much of a body is paid for before its first byte.
const AHEAD_BYTES_MAX: u64 = 32 * 1024;
/// Answers remembered, one for each server, for known and for unknown servers; and the length of one.
const REMEMBERED_MAX: usize = 96;
const REMEMBERED_STRANGERS_MAX: usize = 32;
const REMEMBERED_BYTES_MAX: usize = 8 * 1024;
/// The wait for the previous transaction of the same server: most senders give up on theirs after so long.
const BEFORE_TIME_MAX: Duration = Duration::from_secs(60);

/// `PUT /send/{txnId}`
pub async fn send(federation: Arc<Federation>, request: Request) -> Result<Response, Error> {
    let id = request.param("txn_id").to_owned();
    let claim = auth::claim(&federation, &request).await?;
    let limits = request.limits();
    let account = federation.budget.account("inbound_transactions");
    // A caller that writes another server's name here learns only whether that one is put off.
    check_intake(&federation, &claim.origin)?;
    wait_for_before(&federation, &claim.origin).await?;
    if large::is_long(&request, account.limit() / COPIES_CHECKED) {
        return large::send(federation, request, claim).await;
    }
    let (body, mut grant) = read(request, &account, &federation.transactions).await?;
    let (origin, valid_until_ms) = (claim.origin.clone(), claim.valid_until_ms());
    let us = federation.server_name.clone();
    let (bytes, quoted) = (body.len() as u64, quoted_bytes_max(&body));
    // A parser's error may quote much of it. The copies that the signature is checked with are gone by then.
    let free = grant.bytes() / COPIES_CHECKED * (COPIES_CHECKED - COPIES_KEPT);
    grant.grow(quoted.saturating_sub(free)).map_err(BadBody::Refused)?;
    let transaction = base::blocking(move || {
        claim.check(&us, &body)?;
        // One more than the limit of each list, which shows that a list is too long.
        let read: Result<Transaction, _> = serde_json::from_slice(&body);
        read.map_err(|wrong| {
            ErrorResponse::bad("M_BAD_JSON", format!("The body is not a transaction: {}", brief(wrong)))
        })
    });
    let transaction = transaction.await?;
    limits.take_server(&rates::TRANSACTION, origin.as_str())?;
    grant.shrink(free.saturating_sub(quoted));
    auth::heard_from(&federation, &origin, valid_until_ms).await;
    if let Some(body) = federation.transactions.get(&origin, &id) {
        return Ok(Response::json_bytes(StatusCode::OK, body));
    }
    let under_way = begin(&federation, &origin)?;
    federation.rooms.charge_intake(&origin, bytes);
    if transaction.pdus.len() > PDUS_MAX || transaction.edus.len() > EDUS_MAX {
        let why = format!("A transaction may have {PDUS_MAX} PDUs and {EDUS_MAX} EDUs at most");
        return Err(ErrorResponse::bad("M_TOO_LARGE", why).into());
    }
    let work = base::unbroken(async move {
        let _under_way = under_way;
        let until = federation.clock.instant() + room::RECEIVE_TIME_MAX;
        let outcomes = process(&federation, &origin, transaction, until).await?;
        let body = json!({ "pdus": outcomes }).to_string().into_bytes();
        // Returned first, so that the answer finds room in the same account.
        drop(grant);
        let owner = federation.remote.owner_of(&origin).await;
        federation.transactions.put(&account, owner, &origin, &id, &body);
        Ok::<_, Error>(body)
    });
    let body = work.await?;
    Ok(Response::json_bytes(StatusCode::OK, body))
}

/// Waits until no transaction of that server is under way. The name is not authenticated yet, so this takes no turn.
async fn wait_for_before(federation: &Federation, origin: &ServerName) -> Result<(), Error> {
    let before = federation.senders.wait(origin.as_str());
    federation.clock.timeout(BEFORE_TIME_MAX, before).await.ok_or_else(too_soon)
}

/// Whether the server may make us store more now: it has a part of its hourly share left, and the remaining disk space
/// is not reserved for the household. Otherwise it is told to retry, and keeps its transactions for us.
pub(super) fn check_intake(federation: &Federation, origin: &ServerName) -> Result<(), Error> {
    federation.rooms.check_intake(origin).map_err(|failed| match failed {
        room::Error::Refused(refused) => refused.into(),
        // Logged when it began.
        _ => disk_is_short(),
    })
}

/// Reads the body with memory for all its copies, charged as it comes.
async fn read(request: Request, account: &Account, remembered: &Transactions) -> Result<(Vec<u8>, Grant), BadBody> {
    let bytes_max = account.limit() / COPIES_CHECKED;
    let price = |bytes: u64| (bytes * COPIES_CHECKED).min(account.limit());
    let most = request.content_length().unwrap_or(bytes_max);
    if most > bytes_max {
        return Err(BadBody::TooLarge { bytes_max });
    }
    // The rest is charged as it comes: a body that is only announced holds no memory.
    let ahead = most.min(AHEAD_BYTES_MAX);
    let first = price(ahead.max(4096));
    let mut grant = match account.try_take(first) {
        Ok(grant) => grant,
        Err(_) => {
            remembered.forget();
            account.take(first).await.map_err(BadBody::Refused)?
        }
    };
    let mut body = Vec::with_capacity(ahead as usize);
    let mut pieces = request.into_stream(bytes_max)?;
    while let Some(piece) = pieces.next().await? {
        let length = body.len() + piece.len();
        if length > body.capacity() {
            let capacity = (length + length / 2).min(most as usize).max(length);
            let wanted = price(capacity as u64).saturating_sub(grant.bytes());
            if grant.grow(wanted).is_err() {
                remembered.forget();
                grant.grow(wanted).map_err(BadBody::Refused)?;
            }
            body.reserve_exact(capacity - body.len());
        }
        body.extend_from_slice(&piece);
    }
    Ok((body, grant))
}

#[cfg(test)]
mod tests {
    use ruma::OwnedUserId;

    use super::*;
    use crate::base::Owner;
    use crate::budget::Budget;
    use crate::matrix::sign::{Key, request};
    use crate::store::tables::server::signing_key;
    use crate::store::{self, MemoryMedium, Store, WriteError};
    use crate::user;

    #[test]
    fn only_the_last_transaction_of_a_server_is_remembered() {
        let account = Budget::for_tests().account("inbound_transactions");
        let (one, two) = (ruma::server_name!("one.example"), ruma::server_name!("two.example"));
        let all = Transactions::default();
        let known = |server: &ServerName| Owner::Known(server.to_string());
        all.put(&account, known(one), one, "a", b"{}");
        all.put(&account, known(two), two, "a", b"{\"pdus\":{}}");
        assert_eq!(all.get(one, "a").as_deref(), Some(&b"{}"[..]));
        assert_eq!(all.get(one, "b"), None);
        all.put(&account, known(one), one, "b", b"[]");
        assert_eq!((all.get(one, "a"), all.get(one, "b").as_deref()), (None, Some(&b"[]"[..])));
        all.put(&account, known(one), one, "c", &[b' '; REMEMBERED_BYTES_MAX]);
        assert_eq!(all.get(one, "c"), None, "a long answer is not worth it");
        // Unknown servers push out only each other.
        for n in 0..2 * REMEMBERED_MAX {
            let name = format!("s{n}.example");
            all.put(&account, Owner::Stranger(name.clone()), &ServerName::parse(name).unwrap(), "x", b"{}");
        }
        assert!(all.get(one, "b").is_some());
        assert!(account.used() <= (REMEMBERED_STRANGERS_MAX as u64 + 2) * (2 + 1 + 256) + 20);
        for n in 0..2 * REMEMBERED_MAX {
            let name = ServerName::parse(format!("k{n}.example")).unwrap();
            all.put(&account, known(&name), &name, "x", b"{}");
        }
        let most = (REMEMBERED_MAX + REMEMBERED_STRANGERS_MAX) as u64;
        assert!(account.used() <= most * (2 + 1 + 256));
    }

    /// A sender that is slow to answer our own requests had two transactions under way, and with them all the memory
    /// there is.
    #[tokio::test]
    async fn a_server_has_one_transaction_under_way() {
        let budget = Budget::for_tests();
        let house = crate::room::testing::house_within(budget.clone());
        let federation = Arc::new(crate::federation::tests::federation(&house, &budget));
        let (one, two) = (ruma::server_name!("one.example"), ruma::server_name!("two.example"));
        let first = begin(&federation, one).ok().unwrap();
        assert!(begin(&federation, one).is_err() && begin(&federation, two).is_ok());
        let waiting = tokio::spawn({
            let federation = federation.clone();
            async move { wait_for_before(&federation, one).await }
        });
        wait_for_before(&federation, two).await.ok().unwrap();
        while !waiting.is_finished() {
            house.clock.pass(Duration::from_secs(5)).await;
        }
        let put_off = ErrorResponse::from(waiting.await.unwrap().unwrap_err());
        assert_eq!(put_off.status, StatusCode::TOO_MANY_REQUESTS);
        drop(first);
        wait_for_before(&federation, one).await.ok().unwrap();
    }

    /// A server with a local user, and another server whose key is known.
    async fn with_server(card: MemoryMedium) -> (crate::room::testing::House, Arc<Federation>, OwnedUserId) {
        let budget = Budget::for_tests();
        let house = crate::room::testing::house_on(budget.clone(), Store::on_memory(card));
        let federation = Arc::new(crate::federation::tests::federation(&house, &budget));
        let new = user::New { localpart: "anna".to_owned(), ..Default::default() };
        let anna = federation.users.create(new).await.unwrap();
        let login = user::Login { device_id: Some("DEVICE".to_owned()), ..Default::default() };
        federation.users.login(&anna, login).await.unwrap();
        for server in ["one.example", "two.example"] {
            let (key, server) = (Key::from_seed("1", [1; 32]), ServerName::parse(server).unwrap());
            let stored =
                signing_key::Stored { key: key.public().to_bytes(), valid_until_ms: u64::MAX / 2, expired: false };
            let known = house.store.write(move |w| signing_key::set(w, &server, key.id(), &stored)).await;
            known.map_err(|failed: WriteError<store::Error>| failed.into_inner()).unwrap();
        }
        (house, federation, anna)
    }

    /// Sends a transaction with one to-device message for anna's device, of about so many bytes.
    async fn sent(federation: &Arc<Federation>, from: &str, id: usize, bytes: usize) -> ErrorResponse {
        let limits = Arc::new(crate::http::Limits::new(federation.clock.clone()));
        sent_under(&limits, federation, from, id, bytes).await
    }

    async fn sent_under(
        limits: &Arc<crate::http::Limits>,
        federation: &Arc<Federation>,
        from: &str,
        id: usize,
        bytes: usize,
    ) -> ErrorResponse {
        let messages = json!({ "@anna:home.example": { "DEVICE": { "text": "z".repeat(bytes) } } });
        let content = json!({
            "sender": format!("@bob:{from}"), "type": "m.x", "message_id": id.to_string(), "messages": messages
        });
        let body = json!({ "edus": [{ "edu_type": "m.direct_to_device", "content": content }] }).to_string();
        let (key, target) = (Key::from_seed("1", [1; 32]), format!("/_matrix/federation/v1/send/{id}"));
        let from = ServerName::parse(from).unwrap();
        let us = &federation.server_name;
        let header = request::sign(&key, &from, us, "PUT", &target, Some(body.as_bytes())).unwrap();
        let asked = Request::for_tests(http::Method::PUT, &target, &body).with_header("authorization", &header);
        let asked = asked.with_limits(limits);
        match send(federation.clone(), asked.with_param("txn_id", &id.to_string())).await {
            Ok(_) => ErrorResponse::new(StatusCode::OK, "", ""),
            Err(refused) => refused.into(),
        }
    }

    /// A server that fetched many events at once could not send its transactions, which took from the same bucket.
    #[tokio::test]
    async fn a_server_that_reads_much_may_still_send() {
        let (_house, federation, _) = with_server(MemoryMedium::default()).await;
        let limits = Arc::new(crate::http::Limits::new(federation.clock.clone()));
        let (key, from) = (Key::from_seed("1", [1; 32]), ServerName::parse("one.example").unwrap());
        let target = "/_matrix/federation/v1/event/%24x";
        let header = request::sign(&key, &from, &federation.server_name, "GET", target, None).unwrap();
        let mut read = 0;
        let refused = loop {
            let asked = Request::for_tests(http::Method::GET, target, "").with_limits(&limits);
            match auth::origin(&federation, &mut asked.with_header("authorization", &header)).await {
                Ok(_) => read += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!((read, &*refused.errcode), (rates::REQUEST.burst as u32, "M_LIMIT_EXCEEDED"));
        assert_eq!(sent_under(&limits, &federation, "one.example", 1, 100).await.status, StatusCode::OK);
    }

    /// A server in one room filled the card, and then local users could not write.
    #[tokio::test]
    async fn what_others_send_is_put_off_while_the_disk_is_short() {
        let card = MemoryMedium::default();
        let (house, federation, anna) = with_server(card.clone()).await;
        let room = house.public_room(&anna).await;
        assert_eq!(sent(&federation, "one.example", 1, 100).await.status, StatusCode::OK);
        card.set_free_bytes(200 << 20);
        let refused = sent(&federation, "one.example", 2, 100).await;
        assert_eq!((refused.status, &*refused.errcode), (StatusCode::SERVICE_UNAVAILABLE, "M_RESOURCE_LIMIT_EXCEEDED"));
        house.say(&anna, &room, "the people here go on").await;
        card.set_free_bytes(400 << 20);
        assert_eq!(sent(&federation, "one.example", 2, 100).await.status, StatusCode::OK, "nothing was lost");
    }

    /// A server wrote 9 MB in each second, for ever.
    #[tokio::test]
    async fn a_server_beyond_its_hour_is_asked_to_come_again() {
        let (house, federation, _) = with_server(MemoryMedium::default()).await;
        house.rooms.set_hourly_bytes_max(100_000);
        let mut taken = 0;
        let refused = loop {
            let answer = sent(&federation, "one.example", taken, 30_000).await;
            match answer.status {
                StatusCode::OK => taken += 1,
                _ => break answer,
            }
        };
        assert_eq!((taken, refused.status, &*refused.errcode), (4, StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED"));
        assert_eq!(sent(&federation, "two.example", 1, 30_000).await.status, StatusCode::OK);
        let retry_ms = refused.extra["retry_after_ms"].as_u64().unwrap();
        assert!((60_000..3_600_000).contains(&retry_ms), "{retry_ms}");
        house.clock.advance(Duration::from_millis(retry_ms));
        assert_eq!(sent(&federation, "one.example", taken, 30_000).await.status, StatusCode::OK, "nothing was lost");
    }

    /// One message of the wrong shape, or nested without end, does not keep those beside it from arriving.
    #[tokio::test]
    async fn an_odd_message_leaves_those_beside_it_alone() {
        let budget = Budget::for_tests();
        let house = crate::room::testing::house_within(budget.clone());
        let federation = Arc::new(crate::federation::tests::federation(&house, &budget));
        let new = user::New { localpart: "anna".to_owned(), ..Default::default() };
        let anna = federation.users.create(new).await.unwrap();
        let login = user::Login { device_id: Some("DEVICE".to_owned()), ..Default::default() };
        federation.users.login(&anna, login).await.unwrap();
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let to_device = |devices: &str| {
            let content = format!(
                r#"{{"sender":"@bob:them.example","type":"m.x","messages":{{"@nobody":7,"{anna}":{{{devices}}},"{anna}x":[]}}}}"#
            );
            format!(r#"{{"edu_type":"m.direct_to_device","content":{content}}}"#)
        };
        let odd = format!(r#""DEVICE":{{"n":{}}},"OTHER":7"#, nested(900));
        let edus = [
            "[]".to_owned(),
            nested(9_000),
            r#"{"edu_type":7,"content":{}}"#.to_owned(),
            r#"{"edu_type":"m.direct_to_device","content":[]}"#.to_owned(),
            to_device(&odd),
            r#"{"edu_type":"m.receipt","content":{"!r:x":7,"what":{},"!s:x":{"m.read":{"@bob:them.example":7}}}}"#
                .to_owned(),
            to_device(&format!(r#""DEVICE":{{"n":{}}}"#, nested(700))),
            to_device(r#""DEVICE":{"n":1}"#),
        ];
        let body = format!(r#"{{"pdus":[7,{{"room_id":"!r:x"}},{}],"edus":[{}]}}"#, nested(9_000), edus.join(","));
        let transaction: Transaction = serde_json::from_str(&body).unwrap();
        let them = ruma::server_name!("them.example");
        let until = federation.clock.instant() + room::RECEIVE_TIME_MAX;
        assert!(process(&federation, them, transaction, until).await.ok().unwrap().is_empty());
        let mut arrived = Vec::new();
        let all = (crate::store::Position(0), crate::store::Position(i64::MAX as u64));
        let (read, num) = (house.read(), house.user_num(&anna));
        crate::store::tables::user::to_device::each(&read, num, "DEVICE", all.0, all.1, &mut |_, message| {
            arrived.push(message.len());
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        assert!(arrived.len() == 2 && arrived[0] > 1_400 && arrived[1] < 100, "{arrived:?}");
    }

    #[tokio::test]
    async fn a_body_is_paid_for_before_it_is_read() {
        let account = Budget::for_tests().account("inbound_transactions");
        let request = |bytes: usize| Request::for_tests(http::Method::PUT, "/send/1", &"x".repeat(bytes));
        let remembered = Transactions::default();
        let read = |request| read(request, &account, &remembered);
        let (body, grant) = read(request(100_000)).await.unwrap();
        assert!(body.len() == 100_000 && grant.bytes() >= 400_000 && account.used() == grant.bytes());
        drop(grant);
        // The largest takes the whole account: remembered answers are dropped for it.
        let one = ruma::server_name!("one.example");
        remembered.put(&account, Owner::Known(one.to_string()), one, "a", b"{}");
        let (_, grant) = read(request((account.limit() / COPIES_CHECKED) as usize)).await.unwrap();
        assert_eq!(grant.bytes(), account.limit());
        drop(grant);
        let too_large = read(request((account.limit() / COPIES_CHECKED) as usize + 1)).await;
        assert!(matches!(too_large, Err(BadBody::TooLarge { .. })));
        let _all = account.try_take(account.limit()).unwrap();
        let declared = request(10).with_header("content-length", "10");
        let refused = tokio::time::timeout(std::time::Duration::from_secs(1), read(declared)).await;
        assert!(refused.is_err() || matches!(refused, Ok(Err(BadBody::Refused(_)))), "nothing is read without memory");
    }

    /// A server sharing no room sent a hundred long messages to devices in each transaction, fifty transactions a second.
    #[tokio::test]
    async fn a_stranger_sends_so_much_and_a_friend_is_heard_all_the_while() {
        use crate::store::Position;
        use crate::store::tables::user::to_device;
        let budget = Budget::for_tests();
        let house = crate::room::testing::house_within(budget.clone());
        let federation = Arc::new(crate::federation::tests::federation(&house, &budget));
        let new = user::New { localpart: "anna".to_owned(), ..Default::default() };
        let anna = federation.users.create(new).await.unwrap();
        let login = user::Login { device_id: Some("DEVICE".to_owned()), ..Default::default() };
        federation.users.login(&anna, login).await.unwrap();
        let send = async |server: &str, bytes: usize| {
            let messages = json!({ anna.as_str(): { "*": { "from": server, "text": "z".repeat(bytes) } } });
            let content = json!({ "sender": format!("@x:{server}"), "type": "m.x", "messages": messages });
            let edu = json!({ "edu_type": "m.direct_to_device", "content": content });
            let edus = vec![serde_json::value::to_raw_value(&edu).unwrap()];
            let origin = ServerName::parse(server).unwrap();
            let transaction = Transaction { pdus: Vec::new(), edus };
            assert!(process(&federation, &origin, transaction, Duration::MAX).await.is_ok());
        };
        let waiting = |server: &str| {
            let (mut count, ends) = (0, (Position(0), Position(i64::MAX as u64)));
            to_device::each(&house.read(), house.user_num(&anna), "DEVICE", ends.0, ends.1, &mut |_, message| {
                count += usize::from(String::from_utf8_lossy(message).contains(&format!("{server}\"")));
                Ok(std::ops::ControlFlow::Continue(()))
            })
            .unwrap();
            count
        };
        send("friend.example", 100).await;
        for n in 0..60 {
            send(&format!("s{n}.evil.example"), 60_000).await;
        }
        send("friend.example", 100).await;
        let taken: usize = (0..60).map(|n| waiting(&format!("s{n}.evil.example"))).sum();
        assert_eq!((waiting("friend.example"), taken), (2, 17), "a million bytes of one neighbourhood");
        house.clock.advance(Duration::from_secs(60));
        send("s1.evil.example", 100).await;
        assert_eq!(waiting("s1.evil.example"), 2);
    }
}
