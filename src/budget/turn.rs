//! A turn at what only a few may do at a time, with the memory for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Account, Grant, Refused};
use crate::base::Clock;

/// How often memory came when the turn was another's. Each time others went on.
const TRIES: u32 = 8;

/// Waits for both, but for neither with the other in hand: whoever waits for memory with a turn stops all others, and whoever waits for
/// a turn with memory takes it from them. Refused when the memory does not come in the account's time.
pub async fn turn_with_memory(
    clock: &Clock,
    turns: &Arc<Semaphore>,
    account: &Account,
    bytes: u64,
) -> Result<(OwnedSemaphorePermit, Grant), Refused> {
    for _ in 0..TRIES {
        let Ok(turn) = turns.clone().acquire_owned().await else { break };
        // At once, or not at all.
        if let Some(granted) = clock.timeout(Duration::ZERO, account.take(bytes)).await {
            return Ok((turn, granted?));
        }
        drop(turn);
        let grant = account.take(bytes).await?;
        if let Ok(turn) = turns.clone().try_acquire_owned() {
            return Ok((turn, grant));
        }
    }
    let (name, limit) = (account.name().to_owned(), account.limit());
    Err(Refused { account: name, asked: bytes, limit, retry_after_ms: account.row().wait_ms, too_large: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    /// Whoever waited for memory kept the turn, and nobody else had one for half a minute.
    #[tokio::test]
    async fn who_waits_for_memory_leaves_the_turn_to_others() {
        let (clock, account) = (Clock::simulated(1_000_000), Budget::for_tests().account("media"));
        let turns = Arc::new(Semaphore::new(1));
        let all = account.try_take(account.limit() - 10).unwrap();
        let waits = tokio::spawn({
            let (clock, account, turns) = (clock.clone(), account.clone(), turns.clone());
            async move { turn_with_memory(&clock, &turns, &account, 20).await.map(|(_, grant)| grant.bytes()) }
        });
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert_eq!((waits.is_finished(), turns.available_permits()), (false, 1));
        // Its memory comes while another has the turn: it is given back until that one is done.
        let turn = turns.acquire().await.unwrap();
        drop(all);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert_eq!((waits.is_finished(), account.used()), (false, 0));
        drop(turn);
        assert_eq!(waits.await.unwrap(), Ok(20));
        assert_eq!((turns.available_permits(), account.used()), (1, 0));
    }
}
