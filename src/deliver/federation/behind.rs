//! Which servers do not have everything yet, for the operator: as their positions were last written down, twenty seconds ago
//! at most.

use std::ops::ControlFlow;

use ruma::OwnedServerName;

use super::Sender;
use crate::base;
use crate::store;
use crate::store::tables::server;

impl Sender {
    /// At most `most` servers that lag, by name behind `after`, and since when each does, in unix milliseconds.
    pub async fn behind(
        &self,
        after: Option<OwnedServerName>,
        most: usize,
    ) -> Result<Vec<(OwnedServerName, u64)>, String> {
        let store = self.0.store.clone();
        let looked = base::blocking(move || {
            let mut behind = Vec::new();
            server::cursors(&store.read()?, after.as_deref(), &mut |name, cursor| {
                behind.push((name, cursor.since_ms));
                Ok(if behind.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            Ok::<_, store::Error>(behind)
        });
        looked.await.map_err(|failed| failed.to_string())
    }

    /// Since when each of these servers lags; `None` has everything. A lookup for each.
    pub async fn behind_since(&self, servers: Vec<OwnedServerName>) -> Result<Vec<Option<u64>>, String> {
        let store = self.0.store.clone();
        let looked = base::blocking(move || {
            let read = store.read()?;
            let since = |name: OwnedServerName| Ok(server::cursor(&read, &name)?.map(|cursor| cursor.since_ms));
            servers.into_iter().map(since).collect::<Result<_, store::Error>>()
        });
        looked.await.map_err(|failed| failed.to_string())
    }
}
