//! A kick or ban that redacts all events of the user's stay (MSC4293). Here it is only noted; `mass_redaction.rs` of the room
//! part does the work aside, in steps.

use super::derived::{Appended, Derived};
use crate::matrix::auth::Named;
use crate::matrix::json;
use crate::room::error::Error;
use crate::room::state::StateView;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::mass_redaction::{self, MassRedaction};
use crate::store::{Result, Write};

/// The names that the flag has in the content.
pub const FLAGS: [&str; 2] = ["redact_events", "org.matrix.msc4293.redact_events"];

/// Kicks and bans that redact.
pub struct MassRedactions;

impl Derived for MassRedactions {
    fn on_append(&self, w: &mut Write<'_>, appended: &mut Appended<'_>) -> Result<()> {
        let Appended { new, row, num, .. } = appended;
        let Some((Membership::Leave | Membership::Ban, user)) = row.member else { return Ok(()) };
        let Some(before) = row.order.filter(|_| new.is_new() && row.sender != user) else { return Ok(()) };
        let content = new.event.content().as_bytes();
        if !FLAGS.iter().any(|flag| json::read::get(content, flag) == Some(b"true")) {
            return Ok(());
        }
        let sender = new.event.sender();
        let may = StateView::present(w, new.room, new.event.version()).with_powers(|powers| {
            let level = powers.user(sender);
            level >= powers.named(Named::Redact) && level >= powers.event("m.room.redaction", false)
        });
        match may {
            Ok(Some(true)) => {}
            Err(Error::Store(failed)) => return Err(failed),
            _ => return Ok(()),
        }
        appended.change.redacts = true;
        mass_redaction::put(w, &MassRedaction { room: new.room, by: *num, user, before })
    }
}
