//! How often one server or address may do what.
//!
//! A rate is for one thing: a server that reads much is not kept from sending.

use crate::http::Rate;

/// Requests signed in another server's name, by address, before the signature is checked.
pub const CLAIM: Rate = Rate { name: "claims", per_second: 100.0, burst: 400.0 };
/// Requests that make this server look for the server they name, by address.
pub const STRANGER: Rate = Rate { name: "unknown servers", per_second: 0.1, burst: 10.0 };
/// Transactions, by server.
pub const TRANSACTION: Rate = Rate { name: "transactions", per_second: 50.0, burst: 200.0 };
/// All other signed requests, by server.
pub const REQUEST: Rate = Rate { name: "federation requests", per_second: 50.0, burst: 200.0 };
/// Invites, by the server that brings them.
pub const INVITE: Rate = Rate { name: "invites from elsewhere", per_second: 1.0, burst: 100.0 };
/// Questions whose an OpenID token is, by address.
pub const OPENID: Rate = Rate { name: "OpenID tokens", per_second: 10.0, burst: 100.0 };
/// Questions about the keys of other servers, by address.
pub const NOTARY: Rate = Rate { name: "keys of other servers", per_second: 10.0, burst: 100.0 };
/// Notifications for UnifiedPush endpoints, by address: those of a homeserver's people come from one.
pub const GATEWAY: Rate = Rate { name: "push gateway", per_second: 5.0, burst: 100.0 };
