//! The front hall: everything between a socket and a handler.
//!
//! It owns connections, requests, responses and their memory. It knows no endpoint, no user and no room: surfaces
//! register handlers in a [`Router`] and get [`Request`]s whose bodies are charged before they are read. Read
//! `route.rs` first (what a surface does), then `request.rs`, `response.rs`, `error.rs`; `body.rs` has both directions
//! of streaming; `listen/` the sockets and timeouts, `connection_limits.rs` (with `caller.rs`, `guests.rs` and
//! `peer_watch.rs`) the sharing of connections; `file.rs` answers with a file, `page/` with a page for a browser; `limit.rs`, `tls.rs` and `x509.rs` stand alone.

mod body;
mod error;
mod guests;
mod limit;
mod listen;
pub mod page;
mod connection_limits;
mod network;
mod request;
mod response;
mod route;
mod tally;
pub mod tls;
mod turned_away;
pub mod x509;
mod peer_watch;
pub mod file;
mod caller;

pub use body::{Body, BodySender, channel, file, stream, stream_of};
pub use error::{BadBody, ErrorResponse};
pub use limit::{AttemptRates, Limits, Rate, Try};
pub use listen::socket::Listener;
pub use listen::{HttpServer, Sizes, from_here};
pub use network::Network;
pub use request::{Peer, Request, encoded};
pub use response::Response;
pub use route::{Fallback, Router, Routes};
pub use tally::{BOUNDS_MS, CLASSES, Counts, Tally};

pub use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
