//! What watches the server: its figures, its health, its settings read again, and its way to others and itself.

use snug::admin::Reload;
use snug::http::Network;
use snug::remote::Step;

use crate::server::{Pair, TestServer};

async fn get(house: &TestServer, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let reply = house.send("GET", path, headers, Vec::new()).await;
    (reply.status, String::from_utf8(reply.bytes).unwrap())
}

/// The value of a sample, by its name and labels as they are written.
fn sample(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn figures_are_for_this_machine_and_whoever_has_the_token() {
    let token = "0123456789abcdef";
    let house = TestServer::start_with(|config| config.metrics.token = Some(token.to_owned())).await;
    let anna = house.register("anna").await;
    house.get("/_matrix/client/v3/sync?timeout=0", &anna).await.ok();
    let (status, text) = get(&house, "/_snug/metrics", &[]).await;
    assert_eq!(status, 200, "{text}");
    assert!(text.ends_with("# EOF\n"));
    let sync = "{method=\"GET\",route=\"/_matrix/client/v3/sync\"";
    assert_eq!(sample(&text, &format!("snug_http_requests_total{sync},status=\"2xx\"}}")), 1.0);
    assert_eq!(sample(&text, &format!("snug_http_request_seconds_bucket{sync},le=\"+Inf\"}}")), 1.0);
    assert_eq!(sample(&text, "snug_syncs_waiting"), 0.0);
    assert_eq!(sample(&text, "snug_database_writable"), 1.0);
    assert!(sample(&text, "process_resident_memory_bytes") > 0.0);
    assert!(sample(&text, "snug_account_used_bytes{account=\"connections\"}") > 0.0);
    // Each family has one head, and all its samples below it.
    let heads: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    let once: std::collections::BTreeSet<_> = heads.iter().collect();
    assert_eq!(heads.len(), once.len());
    for secret in ["anna", house.name(), "@"] {
        assert!(!text.contains(secret), "{secret} is in the figures");
    }
    // Whoever comes through a proxy is no caller of this machine.
    for header in ["x-forwarded-for", "forwarded", "via", "x-real-ip"] {
        assert_eq!(get(&house, "/_snug/metrics", &[(header, "127.0.0.1")]).await.0, 403, "{header}");
    }
    let bearer = format!("Bearer {token}");
    let given = [("x-forwarded-for", "203.0.113.1"), ("authorization", bearer.as_str())];
    assert_eq!(get(&house, "/_snug/metrics", &given).await.0, 200);
    assert_eq!(get(&house, "/_snug/metrics", &[("authorization", "Bearer other")]).await.0, 403);
    house.stop().await;
    let house =
        TestServer::start_with(|config| config.metrics.allow = vec!["192.0.2.0/24".parse::<Network>().unwrap()]).await;
    assert_eq!(get(&house, "/_snug/metrics", &[]).await.0, 403);
    let (status, text) = get(&house, "/_snug/health", &[]).await;
    assert_eq!((status, text.as_str()), (200, "ok: this server works\n"));
    house.stop().await;
    let house = TestServer::start_with(|config| config.metrics.enabled = false).await;
    assert_eq!(get(&house, "/_snug/metrics", &[]).await.0, 404);
    house.stop().await;
}

/// Old monitors, and load balancers, speak HTTP/1.0 and name no host.
#[tokio::test]
async fn the_old_http_is_answered_too() {
    let house = TestServer::start().await;
    for (path, has) in [("/_snug/health", "ok: this server works"), ("/_snug/metrics", "# EOF")] {
        let answer = house.raw(&format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200 ") && !head.to_lowercase().contains("chunked"), "{head}");
        assert!(body.contains(has), "{body}");
    }
    house.stop().await;
}

#[tokio::test]
async fn settings_are_read_again_and_what_needs_a_restart_is_named() {
    let house = TestServer::start().await;
    let file = house.data_dir().join("snug.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("registration = \"open\"\n");
    let reloader = house.server().reloader();
    // As if the server had been started with this file.
    reloader.config.lock().overrides.config = Some(file.clone());
    let _ = reloader.reload().await.unwrap();
    assert_eq!(get(&house, "/_matrix/client/v3/register/available?username=bob", &[]).await.0, 200);
    write(
        "registration = \"closed\"\nlisten = [\"127.0.0.1:1\"]\nweb = { \"/\" = \"site\" }\n[support]\npage = \"https://a.example\"\n",
    );
    std::fs::create_dir(house.data_dir().join("site")).unwrap();
    std::fs::write(house.data_dir().join("site/index.html"), "a client").unwrap();
    let reloaded = reloader.reload().await.unwrap();
    assert!(
        reloaded.restart.contains(&"listen") && !reloaded.restart.contains(&"registration"),
        "{:?}",
        reloaded.restart
    );
    assert_eq!(reloaded.changed, ["registration", "web", "support.page"]);
    assert_eq!(get(&house, "/_matrix/client/v3/register/available?username=bob", &[]).await.0, 403);
    let front = async || house.raw("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(front().await.ends_with("a client"));
    assert!(get(&house, "/.well-known/matrix/support", &[]).await.1.contains("https://a.example"));
    // Named until the restart; a mistake changes nothing.
    assert_eq!(reloader.reload().await.unwrap().restart, ["listen"]);
    write("registration = \"maybe\"\n");
    assert!(reloader.reload().await.unwrap_err().contains("registration"));
    assert!(front().await.ends_with("a client"));
    drop(reloader);
    house.stop().await;
}

/// Two servers examine each other, and themselves at their public address.
#[tokio::test]
async fn the_way_to_a_server_is_examined_with_a_signature() {
    let pair = Pair::start_with(|config| {
        let myself = (config.server_name.to_string(), config.federation.listen[0].to_string());
        config.federation.overrides.push(myself);
    })
    .await;
    let said = |steps: &[Step]| -> Vec<String> {
        steps.iter().map(|step| format!("{:?} {}", step.verdict, step.text)).collect()
    };
    let remote = &pair.one.server().remote;
    let other: ruma::OwnedServerName = pair.two.name().try_into().unwrap();
    let found = said(&remote.examine(&other).await);
    assert!(!found.iter().any(|step| step.starts_with("Bad")), "{found:#?}");
    for wanted in
        ["gives out the key", "It runs Snug", "accepts a request with this server's signature", "encoded letters"]
    {
        assert!(found.iter().any(|step| step.contains(wanted)), "{wanted}: {found:#?}");
    }
    let found = said(&remote.examine_myself().await);
    assert!(found.len() == 1 && found[0].starts_with("Good Signed requests get here"), "{found:#?}");
    let nobody: ruma::OwnedServerName = "127.0.0.1:1".try_into().unwrap();
    let found = said(&remote.examine(&nobody).await);
    assert!(found.iter().any(|step| step.starts_with("Bad 127.0.0.1:1: cannot be reached")), "{found:#?}");
    let Pair { one, two, .. } = pair;
    one.stop().await;
    two.stop().await;
}
