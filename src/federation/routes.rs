//! Every endpoint, in the order of the specification's chapters.

use std::sync::Arc;

use super::{Federation, key};
use crate::http::Router;

/// Registers the whole surface.
pub fn routes(router: &mut Router, federation: &Arc<Federation>) {
    let mut routes = router.surface(federation);
    routes
        .get("/_matrix/key/v2/server", key::server)
        .get("/_matrix/key/v2/query/{server}", key::query_one)
        .post("/_matrix/key/v2/query", key::query)
        .get("/.well-known/matrix/server", key::well_known)
        .get("/_matrix/federation/v1/version", key::version);
}
