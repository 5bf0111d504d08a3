//! The table of paths.
//!
//! Surfaces register handlers under a method and a template with `{param}`s. The table is built once at start and never
//! changes; a look-up is one walk down a prefix tree.

use super::tally::{Counts, Tally};
use super::{ErrorResponse, Method, Request, Response, StatusCode};
use crate::base::{self, StopWatch};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use tracing::Instrument;

type Handler = Arc<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync>;

/// Every path this server answers.
#[derive(Default)]
pub struct Router {
    /// Normalised template → index into `paths`. Methods of one path may name its parameters differently.
    tree: matchit::Router<usize>,
    index: HashMap<String, usize>,
    paths: Vec<Path>,
    /// Prefixes of the paths that web apps of any origin may ask.
    open: Vec<&'static str>,
    /// Who answers what has no route.
    fallback: Option<Box<dyn Fallback>>,
    /// Counts of the answers.
    tally: Tally,
    /// Those of what has no route.
    others: OnceLock<Arc<Counts>>,
}

/// Who answers for paths that have no route, and for `/` in place of its route.
pub trait Fallback: Send + Sync {
    /// Whether a path is one of its.
    fn claims(&self, path: &str) -> bool;

    fn respond(&self, request: Request) -> Pin<Box<dyn Future<Output = Response> + Send>>;
}

/// One path with its methods; few, so a list.
#[derive(Default)]
struct Path {
    methods: Vec<(Method, Route)>,
}

struct Route {
    template: String,
    params: Vec<String>,
    handler: Handler,
    /// Made when the route is first asked for.
    counts: OnceLock<Arc<Counts>>,
}

/// Registers the endpoints of one surface; made by [`Router::surface`].
pub struct Routes<'a, S> {
    router: &'a mut Router,
    surface: Arc<S>,
}

impl Router {
    pub fn new() -> Self {
        Self::default()
    }

    /// Endpoints added through the result get `surface` with every request.
    pub fn surface<S: Send + Sync + 'static>(&mut self, surface: &Arc<S>) -> Routes<'_, S> {
        Routes { router: self, surface: surface.clone() }
    }

    /// Lets web apps of any origin ask what is below one of these prefixes, and see the answer: a refusal too, and that
    /// there is no such path.
    pub fn open_to_web_apps(&mut self, prefixes: &[&'static str]) {
        self.open.extend(prefixes);
    }

    /// Has `fallback` answer what has no route.
    pub fn set_fallback(&mut self, fallback: Box<dyn Fallback>) {
        self.fallback = Some(fallback);
    }

    /// How often each route was asked.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Answers one request, and counts it: the handler's response, or 404 or 405 `M_UNRECOGNIZED`. A handler that panics
    /// ends its own request only, as 500.
    pub async fn dispatch(&self, mut request: Request) -> Response {
        let watch = StopWatch::start();
        let cors = self.is_open(request.path());
        let method = request.method().clone();
        let found = self.find(&method, request.path());
        let may_fall_back = match &found {
            Found::Route(route, _) => route.template == "/",
            Found::Nothing => true,
            Found::OtherMethod => false,
        };
        let fallback = self.fallback.as_ref().filter(|fallback| may_fall_back && fallback.claims(request.path()));
        let mut counts = None;
        let response = match (fallback, found) {
            (Some(fallback), _) => whole(fallback.respond(request)).await,
            (None, Found::Route(route, values)) => {
                counts = Some(route.counts.get_or_init(|| self.tally.of(method.as_str(), &route.template)));
                request.set_route(&route.template, &route.params, values);
                let span = request.span();
                whole((route.handler)(request)).instrument(span).await
            }
            _ if method == Method::OPTIONS && cors => Response::empty(StatusCode::NO_CONTENT),
            (None, Found::OtherMethod) => ErrorResponse::wrong_method().into_response(),
            (None, Found::Nothing) => ErrorResponse::unrecognized().into_response(),
        };
        let counts = counts.unwrap_or_else(|| self.others.get_or_init(|| self.tally.of("any", "other")));
        counts.note(response.status(), watch.elapsed());
        let response = if method == Method::HEAD { response.into_head() } else { response };
        if cors { with_cors(response) } else { response }
    }

    /// A refusal of a request for `path` that no handler sees; web apps of other origins may see it.
    pub(super) fn refuse(&self, path: &str, answer: ErrorResponse) -> Response {
        let response = answer.into_response();
        if self.is_open(path) { with_cors(response) } else { response }
    }

    /// Every registered template with its method, for tests and tools.
    pub fn list(&self) -> impl Iterator<Item = (&Method, &str)> {
        self.paths.iter().flat_map(|path| path.methods.iter().map(|(method, route)| (method, route.template.as_str())))
    }

    fn is_open(&self, path: &str) -> bool {
        self.open.iter().any(|prefix| path.starts_with(prefix))
    }

    fn find(&self, method: &Method, path: &str) -> Found<'_> {
        let Ok(found) = self.tree.at(path) else { return Found::Nothing };
        let methods = &self.paths[*found.value].methods;
        let of = |wanted: &Method| methods.iter().find(|(method, _)| method == wanted).map(|(_, route)| route);
        let route = of(method).or_else(|| if method == Method::HEAD { of(&Method::GET) } else { None });
        let Some(route) = route else { return Found::OtherMethod };
        Found::Route(route, found.params.iter().map(|(_, value)| value.to_owned()).collect())
    }

    fn insert_under(&mut self, prefixes: &[&str], method: Method, rest: &str, handler: Handler) {
        for prefix in prefixes {
            self.insert_both(method.clone(), &format!("{prefix}{rest}"), handler.clone());
        }
    }

    /// Inserts a template, and also without the `/` at its end.
    fn insert_both(&mut self, method: Method, template: &str, handler: Handler) {
        if let Some(bare) = template.strip_suffix('/').filter(|bare| !bare.is_empty()) {
            self.insert(method.clone(), bare, handler.clone());
        }
        self.insert(method, template, handler);
    }

    fn insert(&mut self, method: Method, template: &str, handler: Handler) {
        let (normal, params) = normalise(template);
        let at = match self.index.get(&normal) {
            Some(&at) => at,
            None => self.insert_path(normal),
        };
        let known = self.paths[at].methods.iter().any(|(known, _)| *known == method);
        assert!(!known, "{method} {template} is registered once");
        self.paths[at]
            .methods
            .push((method, Route { template: template.to_owned(), params, handler, counts: OnceLock::new() }));
    }

    fn insert_path(&mut self, normal: String) -> usize {
        let at = self.paths.len();
        self.paths.push(Path::default());
        if let Err(conflict) = self.tree.insert(&normal, at) {
            panic!("every template fits beside the others: {normal}: {conflict}");
        }
        self.index.insert(normal, at);
        at
    }
}

enum Found<'a> {
    Route(&'a Route, Vec<String>),
    OtherMethod,
    Nothing,
}

impl<S: Send + Sync + 'static> Routes<'_, S> {
    /// Registers a handler. A template that ends in `/` is also answered without it.
    ///
    /// Handlers are `async fn(Arc<S>, Request) -> Result<Response, E>`, where the surface's `E` becomes an [`ErrorResponse`].
    pub fn add<F, Fut, E>(&mut self, method: Method, template: &str, handler: F) -> &mut Self
    where
        F: Fn(Arc<S>, Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, E>> + Send + 'static,
        E: Into<ErrorResponse> + 'static,
    {
        self.router.insert_both(method, template, boxed(self.surface.clone(), handler));
        self
    }

    pub fn get<F, Fut, E>(&mut self, template: &str, handler: F) -> &mut Self
    where
        F: Fn(Arc<S>, Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, E>> + Send + 'static,
        E: Into<ErrorResponse> + 'static,
    {
        self.add(Method::GET, template, handler)
    }

    pub fn put<F, Fut, E>(&mut self, template: &str, handler: F) -> &mut Self
    where
        F: Fn(Arc<S>, Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, E>> + Send + 'static,
        E: Into<ErrorResponse> + 'static,
    {
        self.add(Method::PUT, template, handler)
    }

    pub fn post<F, Fut, E>(&mut self, template: &str, handler: F) -> &mut Self
    where
        F: Fn(Arc<S>, Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, E>> + Send + 'static,
        E: Into<ErrorResponse> + 'static,
    {
        self.add(Method::POST, template, handler)
    }

    pub fn delete<F, Fut, E>(&mut self, template: &str, handler: F) -> &mut Self
    where
        F: Fn(Arc<S>, Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, E>> + Send + 'static,
        E: Into<ErrorResponse> + 'static,
    {
        self.add(Method::DELETE, template, handler)
    }

    /// Registers one handler under each of several prefixes; `rest` begins with a slash.
    pub fn under<F, Fut, E>(&mut self, prefixes: &[&str], method: Method, rest: &str, handler: F) -> &mut Self
    where
        F: Fn(Arc<S>, Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, E>> + Send + 'static,
        E: Into<ErrorResponse> + 'static,
    {
        self.router.insert_under(prefixes, method, rest, boxed(self.surface.clone(), handler));
        self
    }
}

/// The answer, or 500 in place of a panic.
async fn whole(answering: Pin<Box<dyn Future<Output = Response> + Send>>) -> Response {
    base::caught_in(answering)
        .await
        .unwrap_or_else(|panicked| ErrorResponse::internal(format_args!("a panic: {}", panicked.say())).into_response())
}

fn boxed<S, F, Fut, E>(surface: Arc<S>, handler: F) -> Handler
where
    S: Send + Sync + 'static,
    F: Fn(Arc<S>, Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, E>> + Send + 'static,
    E: Into<ErrorResponse> + 'static,
{
    Arc::new(move |request| {
        let answered = handler(surface.clone(), request);
        Box::pin(async move { answered.await.unwrap_or_else(|error| error.into().into_response()) })
    })
}

/// `/rooms/{room_id}/x` → `/rooms/{0}/x` and `["room_id"]`; a catch-all keeps its star.
fn normalise(template: &str) -> (String, Vec<String>) {
    let mut params = Vec::new();
    let parts: Vec<String> = template
        .split('/')
        .map(|part| match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(name) => {
                let star = if name.starts_with('*') { "*" } else { "" };
                params.push(name.trim_start_matches('*').to_owned());
                format!("{{{star}p{}}}", params.len())
            }
            None => part.to_owned(),
        })
        .collect();
    (parts.join("/"), params)
}

/// The headers the client-server API's section "Web Browser Clients" asks for.
fn with_cors(response: Response) -> Response {
    response
        .header("access-control-allow-origin", "*")
        .header("access-control-allow-methods", "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH")
        .header("access-control-allow-headers", "X-Requested-With, Content-Type, Authorization, Date")
        .header("access-control-expose-headers", "Retry-After")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    const OLD_NEW: [&str; 2] = ["/app/old", "/app/new"];

    async fn echo(_: Arc<Nothing>, request: Request) -> Result<Response, ErrorResponse> {
        let all: Vec<String> = ["room", "kind", "key", "rest"]
            .iter()
            .filter_map(|name| request.param_maybe(name).map(|value| format!("{name}={value}")))
            .collect();
        Ok(Response::bytes(StatusCode::OK, "text/plain", all.join(" ")))
    }

    fn router() -> Router {
        let mut router = Router::new();
        let surface = Arc::new(Nothing);
        router.open_to_web_apps(&["/app/"]);
        router
            .surface(&surface)
            .under(&OLD_NEW, Method::GET, "/rooms/{room}/state/{kind}/", echo)
            .under(&OLD_NEW, Method::GET, "/rooms/{room}/state/{kind}/{key}", echo)
            .under(&OLD_NEW, Method::PUT, "/rooms/{room_id}/state/{event_type}/{state_key}", echo)
            .get("/servers/version", echo)
            .get("/_snug/{*rest}", echo);
        router
    }

    async fn check(method: Method, target: &str, status: u16, body: &str) -> Response {
        let response = router().dispatch(Request::for_tests(method, target, "")).await;
        assert_eq!(response.status().as_u16(), status, "{target}");
        if let Some(bytes) = response.body_bytes().filter(|bytes| !bytes.starts_with(b"{")) {
            assert_eq!(String::from_utf8_lossy(bytes), body, "{target}");
        }
        response
    }

    #[tokio::test]
    async fn paths_find_their_handlers() {
        let get = Method::GET;
        check(get.clone(), "/app/new/rooms/%21a%2Fb:c/state/m.x/k%20k", 200, "room=!a/b:c kind=m.x key=k k").await;
        check(get.clone(), "/app/old/rooms/!a/state/m.x/?q=1", 200, "room=!a kind=m.x").await;
        check(get.clone(), "/app/old/rooms/!a/state/m.x", 200, "room=!a kind=m.x").await;
        check(get.clone(), "/_snug/a/b", 200, "rest=a/b").await;
        check(get.clone(), "/app/new/nothing", 404, "").await;
        check(Method::PATCH, "/app/new/rooms/!a/state/m.x/k", 405, "").await;
        check(Method::OPTIONS, "/app/new/nothing", 204, "").await;
        check(Method::OPTIONS, "/servers/version", 405, "").await;
    }

    /// One request that panicked ended the whole server: the release build aborted.
    #[tokio::test]
    async fn a_handler_that_panics_is_a_500_and_the_next_request_is_answered() {
        async fn breaks(_: Arc<Nothing>, request: Request) -> Result<Response, ErrorResponse> {
            match request.param("how") {
                "here" => panic!("on purpose"),
                "job" => Ok(base::blocking(|| panic!("on purpose")).await),
                _ => Ok(base::unbroken(async { panic!("on purpose") }).await),
            }
        }
        let mut router = router();
        router.surface(&Arc::new(Nothing)).get("/app/new/break/{how}", breaks);
        for how in ["here", "job", "task"] {
            let request = Request::for_tests(Method::GET, &format!("/app/new/break/{how}"), "");
            let response = router.dispatch(request).await;
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert!(response.headers().contains_key("access-control-allow-origin"));
            let body: serde_json::Value = serde_json::from_slice(response.body_bytes().unwrap()).unwrap();
            assert_eq!(body, serde_json::json!({ "errcode": "M_UNKNOWN", "error": "Internal server error" }));
        }
        let request = Request::for_tests(Method::GET, "/servers/version", "");
        assert_eq!(router.dispatch(request).await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn only_open_paths_have_cors() {
        let cors = "access-control-allow-origin";
        let response = check(Method::GET, "/app/new/nothing", 404, "").await;
        assert_eq!(response.headers().get(cors).unwrap(), "*");
        let response = check(Method::GET, "/servers/version", 200, "").await;
        assert!(response.headers().get(cors).is_none());
    }

    #[tokio::test]
    async fn head_is_get_without_a_body() {
        let response = check(Method::HEAD, "/_snug/abc", 200, "").await;
        assert_eq!(response.headers().get("content-length").unwrap(), "8");
    }
}
