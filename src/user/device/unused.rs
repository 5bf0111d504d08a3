//! Removes devices that nobody used for long, with what waits for them: messages, keys, tokens.

use std::ops::ControlFlow;

use ruma::UserId;

use crate::store::tables::user::{self as table, device};
use crate::user::{Error, Users};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

impl Users {
    /// Removes the devices of all accounts here that were not used for so many days, a write each; whoever uses one again has to
    /// log in. Dehydrated devices, which nobody uses, stay. Answers how many.
    pub async fn remove_unused_devices(&self, days: u32) -> Result<u64, Error> {
        let before_ms = self.0.parts.clock.settled_ms().saturating_sub(u64::from(days.max(1)) * DAY_MS);
        let (mut after, mut count) = (None, 0);
        loop {
            let found = self.read(move |get| {
                let mut next = None;
                table::accounts_after(get, after, &mut |num, _| {
                    next = Some(num);
                    Ok(ControlFlow::Break(()))
                })?;
                let Some(user) = next else { return Ok(None) };
                let mut unused = Vec::new();
                device::each(get, user, &mut |id, row| {
                    if row.seen_ms.max(row.created_ms) < before_ms {
                        unused.push(id.to_owned());
                    }
                    Ok(ControlFlow::Continue(()))
                })?;
                let mut kept = Vec::new();
                for id in unused {
                    if !device::is_dehydrated(get, user, &id)? {
                        kept.push(id);
                    }
                }
                Ok(Some((user, table::id_of(get, user)?, kept)))
            });
            let Some((user, id, unused)) = found.await? else { return Ok(count) };
            after = Some(user);
            let Ok(user_id) = UserId::parse(&id) else { continue };
            count += unused.len() as u64;
            self.remove_devices(user, &user_id, unused).await?;
        }
    }
}
