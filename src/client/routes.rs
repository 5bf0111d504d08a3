//! Every endpoint, in the order of the specification's chapters.

use std::sync::Arc;

use super::Client;
use crate::http::Router;

/// Registers the whole surface.
pub fn routes(router: &mut Router, client: &Arc<Client>) {
    let _routes = router.surface(client);
}
