//! The extensions of a sliding sync: what is told beside rooms' events.
//!
//! An extension asks [`Look`] for what it needs: the snapshot and its reader (`view`), the user's own part of a sync between
//! the position that the app knows and the snapshot (`own`), that position (`since`, none for a first answer), what the
//! request asked for, and which rooms it concerns ([`Look::concerns`]). [`Plan::rooms`] are the rooms that this answer tells
//! of, the newest first.
//!
//! - [`Extensions::parse`] reads the canonical text of `extensions`, which is kept while the request waits ([`Extensions::bytes`]).
//! - [`Extensions::acknowledge`] comes first of all, before anything is read.
//! - [`Extensions::is_behind`] says that an extension has a position of its own that is older than the connection's: the
//!   account of what changed since the connection's position does not do for it then, and everything is read.
//! - [`Extensions::has_news`] decides whether a request that waits is answered. What it does not count as news may still be
//!   written, when there is an answer for another reason.
//! - [`Extensions::write`] writes the members of the object `extensions`, with a pause after each item of a list. Nothing
//!   that the number of rooms or members decides is kept in memory on the way.
//!
//! An extension whose position is the connection's has no rows of its own: everything after `since` is told by each answer,
//! for all rooms that the connection was told of, whether they stand in a window now or not. So nothing is missed when a room
//! comes back into a window. A room that this answer tells of for the first time ([`Look::is_first_told`]) is told whole.

use std::sync::Arc;

use super::lists::{Look, Plan};
use crate::base::{ChunkError, ChunkWriter};
use crate::client::{Client, Error, Requester};
use crate::http::ErrorResponse;
use crate::room::Position;

/// The parsed object `extensions` of a request.
#[derive(Debug, Default)]
pub struct Extensions {}

impl Extensions {
    /// Reads canonical JSON; unknown extensions are passed over.
    pub fn parse(text: &[u8]) -> Result<Extensions, ErrorResponse> {
        match text.starts_with(b"{") {
            true => Ok(Extensions {}),
            false => Err(super::bad("extensions", "an object")),
        }
    }

    /// The memory it keeps.
    pub fn bytes(&self) -> usize {
        0
    }

    /// Takes note of what the app says it has received.
    pub async fn acknowledge(&self, _: &Arc<Client>, _: &Requester) -> Result<(), Error> {
        Ok(())
    }

    /// The position up to which the app has received its messages, when it says so.
    pub fn received(&self) -> Option<Position> {
        None
    }

    /// Whether something is asked for from before a position.
    pub fn is_behind(&self, at: Position) -> bool {
        self.received().is_some_and(|received| received < at)
    }

    /// Whether there is something for which a waiting request is answered.
    pub fn has_news(&self, _: &Look, _: &Plan) -> Result<bool, Error> {
        Ok(false)
    }

    /// Writes the members of the object `extensions`.
    pub async fn write(&self, _: &ChunkWriter, _: &Look, _: &Plan) -> Result<(), ChunkError> {
        Ok(())
    }
}
