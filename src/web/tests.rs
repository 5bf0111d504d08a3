use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;
use crate::http::Router;

/// A folder that is removed again.
struct Site(PathBuf);

impl Site {
    fn new(name: &str) -> Site {
        let folder = std::env::temp_dir().join(format!("snug-web-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let site = Site(folder);
        for (path, text) in [
            ("web/index.html", "<h1>it</h1>"),
            ("web/bundle.3f8a9c2b.js", "let a = 1;"),
            ("web/bundle.3f8a9c2b.js.br", "brotli"),
            ("web/bundle.3f8a9c2b.js.gz", "gzip"),
            ("web/docs/index.html", "docs"),
            ("web/.secret", "secret"),
            ("web/.git/config", "secret"),
            ("web/.well-known/assetlinks.json", "[]"),
            ("web/a b.txt", "spaced"),
            ("outside.txt", "secret"),
            ("app/index.html", "app"),
        ] {
            let file = site.0.join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        symlink(site.0.join("outside.txt"), site.0.join("web/link.txt")).unwrap();
        symlink(&site.0, site.0.join("web/up")).unwrap();
        site
    }

    fn router(&self) -> Router {
        let folders = Folders::new(&Budget::for_tests());
        let mount = |path: &str, folder: &str| Mount { path: path.to_owned(), folder: self.0.join(folder) };
        folders.set(vec![mount("/", "web"), mount("/app", "app")]);
        let mut router = Router::new();
        router.set_fallback(Box::new(folders));
        router
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn get(router: &Router, path: &str, headers: &[(&'static str, &str)]) -> Response {
    let mut request = Request::for_tests(Method::GET, path, "");
    for (name, value) in headers {
        request = request.with_header(name, value);
    }
    router.dispatch(request).await
}

fn said<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_folder_is_served_and_nothing_around_it() {
    let site = Site::new("around");
    let router = site.router();
    for (path, status) in [
        ("/", 200),
        ("/index.html", 200),
        ("/docs/", 200),
        ("/docs", 308),
        ("/app", 308),
        ("/app/", 200),
        ("/apple", 404),
        ("/a%20b.txt", 200),
        ("/.well-known/assetlinks.json", 200),
        ("/.secret", 404),
        ("/%2esecret", 404),
        ("/.git/config", 404),
        ("/link.txt", 404),
        ("/up/outside.txt", 404),
        ("/../outside.txt", 404),
        ("/%2e%2e/outside.txt", 404),
        ("/..%2foutside.txt", 404),
        ("/docs/..%5c..%5coutside.txt", 404),
        ("/a%00b", 404),
        ("/%ff", 404),
        ("/index.html/", 404),
        ("/nothing", 404),
        ("/_matrix/client/versions", 404),
        ("/.well-known/matrix/client", 404),
    ] {
        let response = get(&router, path, &[]).await;
        assert_eq!(response.status().as_u16(), status, "{path}");
        assert!(status != 200 || said(&response, "x-content-type-options") == "nosniff", "{path}");
    }
    // What is the server's own is answered by it, in its own words.
    let own = get(&router, "/_matrix/nothing", &[]).await;
    assert_eq!(said(&own, "content-type"), "application/json");
    let redirected = get(&router, "//evil.example/docs/..", &[]).await;
    assert_eq!(redirected.status().as_u16(), 404);
    assert_eq!(said(&get(&router, "//docs", &[]).await, "location"), "./docs/");
    let posted = router.dispatch(Request::for_tests(Method::POST, "/index.html", "")).await;
    assert_eq!(posted.status().as_u16(), 405);
}

#[tokio::test]
async fn what_a_browser_has_is_not_sent_again() {
    let site = Site::new("caching");
    let router = site.router();
    let bundle = get(&router, "/bundle.3f8a9c2b.js", &[]).await;
    assert_eq!(said(&bundle, "content-type"), "text/javascript; charset=utf-8");
    assert!(said(&bundle, "cache-control").contains("immutable"));
    let index = get(&router, "/", &[]).await;
    assert_eq!((said(&index, "cache-control"), said(&index, "content-type")), ("no-cache", "text/html; charset=utf-8"));
    let (etag, modified) = (said(&index, "etag").to_owned(), said(&index, "last-modified").to_owned());
    for headers in [[("if-none-match", etag.as_str())], [("if-modified-since", modified.as_str())]] {
        assert_eq!(get(&router, "/", &headers).await.status().as_u16(), 304, "{headers:?}");
    }
    assert_eq!(get(&router, "/", &[("if-none-match", "\"other\"")]).await.status().as_u16(), 200);
    let part = get(&router, "/bundle.3f8a9c2b.js", &[("range", "bytes=4-4"), ("accept-encoding", "br")]).await;
    assert_eq!((part.status().as_u16(), said(&part, "content-range")), (206, "bytes 4-4/10"));
    assert_eq!(said(&part, "content-encoding"), "");
    let beyond = get(&router, "/bundle.3f8a9c2b.js", &[("range", "bytes=10-")]).await;
    assert_eq!(beyond.status().as_u16(), 416);
    for (accepted, encoding) in [
        ("gzip, deflate, br", "br"),
        ("gzip;q=0.5", "gzip"),
        ("br;q=0, gzip", "gzip"),
        ("br;q=0.0", ""),
        ("identity", ""),
    ] {
        let response = get(&router, "/bundle.3f8a9c2b.js", &[("accept-encoding", accepted)]).await;
        assert_eq!(said(&response, "content-encoding"), encoding, "{accepted}");
        assert_eq!(said(&response, "content-type"), "text/javascript; charset=utf-8");
    }
}

#[test]
fn any_path_is_inside_or_refused() {
    crate::base::any_bytes::any_bytes(&[b"/a/%2e%2e/b", b"/.x/..", b"/a%2fb/%00"], |bytes| {
        for step in steps(&String::from_utf8_lossy(bytes)).into_iter().flatten() {
            assert!(Path::new(&step).components().count() == 1 && step != ".." && step != ".", "{step}");
        }
    });
}
