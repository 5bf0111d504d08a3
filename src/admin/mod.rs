//! The operator's endpoints: those behind `snug user`, `snug rooms`, `snug budget` and `snug workers`, and the page of
//! the first account.
//!
//! The commands speak HTTP with JSON over a socket in the data folder. A process that may open the socket may do
//! everything. The page of the first account is on the ordinary ports and needs the code in the log. Read `users.rs`,
//! `rooms.rs`, `budget.rs`, `workers.rs`, then `first_account.rs`.

mod budget;
mod error;
mod first_account;
mod rooms;
mod users;
mod workers;

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;

use crate::base::{Clock, Workers};
use crate::budget::Budget;
use crate::deliver::Sender;
use crate::http::{ErrorResponse, Request, Response, Router, StatusCode};
use crate::room::Rooms;
use crate::user::Users;

pub use first_account::FIRST_PATH;

/// Rows of one answer. The command line asks for the following pages.
const PAGE_ROWS: usize = 100;
/// Memory for one page: its rows and its text.
const PAGE_BYTES: u64 = 32 * 1024;

/// The parts that the handlers use.
pub struct Admin {
    pub users: Users,
    pub rooms: Rooms,
    pub sender: Sender,
    pub budget: Budget,
    pub clock: Clock,
    pub workers: Workers,
    pub addresses: Addresses,
}

/// The addresses that the server has open, with the ports that the system chose. Filled while it starts.
pub type Addresses = Arc<Mutex<Vec<SocketAddr>>>;

/// The routes of the commands, for the socket in the data folder.
pub fn routes(router: &mut Router, admin: &Arc<Admin>) {
    let mut routes = router.surface(admin);
    routes
        .get("/users", users::list)
        .post("/users", users::add)
        .get("/users/{user}", users::show)
        .post("/users/{user}/password", users::password)
        .post("/users/{user}/admin", users::admin)
        .post("/users/{user}/deactivate", users::deactivate)
        .get("/rooms", rooms::list)
        .post("/rooms/{room}/allow", rooms::allow)
        .post("/rooms/{room}/cancel", rooms::cancel)
        .get("/budget", budget::table)
        .get("/workers", workers::list)
        .get("/server", server);
}

/// The routes of the page of the first account, for the ordinary ports.
pub fn first_routes(router: &mut Router, admin: &Arc<Admin>) {
    let template = format!("{FIRST_PATH}{{code}}");
    router.surface(admin).get(&template, first_account::show).post(&template, first_account::make);
}

/// `GET /server`: its name and the addresses it has open.
async fn server(admin: Arc<Admin>, _: Request) -> Result<Response, error::Error> {
    let addresses: Vec<_> = admin.addresses.lock().iter().map(ToString::to_string).collect();
    Ok(Response::json(&json!({ "server_name": admin.users.server(), "addresses": addresses })))
}

/// The answer with a page of rows. Its grant is held until it is sent.
async fn page(admin: &Admin, value: &impl Serialize) -> Result<Response, ErrorResponse> {
    let grant = admin.budget.account("admin").take(PAGE_BYTES).await?;
    let text = serde_json::to_vec(value).map_err(ErrorResponse::internal)?;
    Ok(Response::charged(StatusCode::OK, "application/json", text, grant))
}
