//! Freeing state nodes that nothing names any more: what cancelled joins and purged rooms leave.
//!
//! The rules of a sweep are the store's (`store/tables/snapshot/sweep.rs`). Here is its pace: small steps with pauses, so
//! that nobody waits for one of its writes, and a day between two.

use std::time::Duration;

use super::{Error, Result, Rooms};
use crate::base;
use crate::store::tables::snapshot::sweep::{self, Sweep};

const EVERY: Duration = Duration::from_secs(24 * 3600);

/// Longer than anything but a join keeps a state to itself that no row names yet.
const GRACE: Duration = Duration::from_secs(15 * 60);

/// Fewer new nodes than this are not worth a look at every row: 1.5 MB or so, if all of them were to go.
const NODES_MIN: u32 = 20_000;

/// Rows looked at in a step, a few milliseconds on a small board. The snapshot is held over all steps, so the pauses
/// between these are short.
const ROWS_A_STEP: usize = 2000;
const NODES_A_STEP: usize = 500;
const PAUSE: Duration = Duration::from_millis(20);

impl Rooms {
    /// Sweeps now and then, as long as the server runs.
    pub async fn keep_swept(&self) {
        loop {
            self.0.parts.clock.sleep(EVERY).await;
            match self.sweep_if_worthwhile().await {
                Ok(Some(freed)) => tracing::info!(freed, "state nodes nobody used were freed"),
                Ok(None) => {}
                Err(failed) => tracing::warn!(%failed, "sweeping states was given up until tomorrow"),
            }
        }
    }

    async fn sweep_if_worthwhile(&self) -> Result<Option<u64>> {
        let made = self.reading(|_, read| Ok(sweep::made_since_last(read)?)).await?;
        if made < NODES_MIN { Ok(None) } else { self.sweep().await }
    }

    /// One sweep; answers how many nodes it freed, or none when a join is in its way.
    pub async fn sweep(&self) -> Result<Option<u64>> {
        let parts = &self.0.parts;
        let Some(limit) = self.freeing(|w| Ok(sweep::begin(w)?)).await? else { return Ok(None) };
        let grant = parts.budget.account("state_nodes").try_take(sweep::bytes_needed(limit))?;
        parts.clock.sleep(GRACE).await;
        let mut sweep = Sweep::over(parts.store.read()?, limit, grant)?;
        let mut ended = false;
        while !ended {
            (sweep, ended) = base::blocking(move || {
                let ended = sweep.mark(ROWS_A_STEP)?;
                Ok::<_, Error>((sweep, ended))
            })
            .await?;
            parts.clock.sleep(PAUSE).await;
        }
        ended = false;
        while !ended {
            (sweep, ended) = self
                .freeing(move |w| {
                    let ended = sweep.free(w, NODES_A_STEP)?;
                    Ok((sweep, ended))
                })
                .await?;
            parts.clock.sleep(PAUSE).await;
        }
        Ok(Some(sweep.freed()))
    }

    /// A write that is let through when the disk is full.
    async fn freeing<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut crate::store::Write<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        Ok(self.0.parts.store.write_freeing(job).await?.0)
    }
}
