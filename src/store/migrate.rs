//! The on-disk format and the steps from each released one to the next.

use super::schema::META;
use super::{Error, Get, Result, Write, counters};

/// The format this program writes.
pub const FORMAT: u32 = 4;
/// The oldest format it can read: no released version wrote an older one.
const OLDEST: u32 = 2;
pub(super) const FORMAT_ROW: &[u8] = b"format";

/// One step for each format version; the first takes the oldest to the next. Each is one transaction with the change of the
/// version number in it, so a power cut leaves the format before or after it.
const STEPS: &[fn(&mut Write) -> Result<()>] = &[to_3, to_4];
const _: () = assert!(STEPS.len() as u32 + OLDEST == FORMAT, "there is a step from every format to the next");

/// Takes the database one step nearer to `FORMAT`; true when it has arrived. A new database starts there. A format
/// newer than ours is refused: opening it could lose data that this version does not know.
pub(super) fn step(w: &mut Write) -> Result<bool> {
    match found(w)? {
        None => {
            w.put(&META, FORMAT_ROW, &FORMAT.to_be_bytes())?;
            Ok(true)
        }
        Some(FORMAT) => Ok(true),
        Some(found) => {
            STEPS[(found - OLDEST) as usize](w)?;
            w.put(&META, FORMAT_ROW, &(found + 1).to_be_bytes())?;
            Ok(found + 1 == FORMAT)
        }
    }
}

/// The format of the database, one of those that can be read; `None` for a new one.
pub(super) fn found(get: &impl Get) -> Result<Option<u32>> {
    let Some(row) = get.get(&META, FORMAT_ROW)? else { return Ok(None) };
    check(u32::from_be_bytes(row.try_into().map_err(|_| Error::corrupt(&META, FORMAT_ROW))?)).map(Some)
}

/// The format, if it can be read.
pub(super) fn check(format: u32) -> Result<u32> {
    match format {
        OLDEST..=FORMAT => Ok(format),
        found => Err(Error::Version { found, known: FORMAT }),
    }
}

/// Acknowledged changes may lie in a journal beside the database, which programs of format 2 do not read.
/// The position and the counters are one row.
fn to_3(w: &mut Write) -> Result<()> {
    counters::gather(w)
}

/// New event ids and transaction ids are in tables that programs of format 3 do not look in. What is in the old ones stays
/// there: ids for good, transactions for their day.
fn to_4(_: &mut Write) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{MemoryMedium, Position, Store};

    /// The database as format 2 left it, opened by this program.
    fn from_2(rows: impl FnOnce(&mut Write) -> Result<()> + Send + 'static) -> Store {
        let card = MemoryMedium::default();
        let store = Store::on_memory(card.clone());
        let job = |w: &mut Write| {
            rows(w)?;
            w.remove(&META, b"counters")?;
            w.put(&META, FORMAT_ROW, &2u32.to_be_bytes())
        };
        store.write_blocking(job).unwrap();
        store.close_blocking();
        Store::on_memory(card)
    }

    #[test]
    fn positions_and_numbers_go_on_where_format_2_was() {
        let store = from_2(|w| {
            w.put(&META, b"position", &Position(70_000).to_key())?;
            w.put(&META, b"next/event", &500u32.to_be_bytes())?;
            w.put(&META, b"next/state_node", &9u32.to_be_bytes())
        });
        assert_eq!(store.read().unwrap().position(), Ok(Position(70_000)));
        let job = |w: &mut Write| {
            assert!(!w.has(&META, b"position")? && !w.has(&META, b"next/event")?);
            let numbers = ["event", "state_node", "user"].map(|name| w.next_numbers(name, 1));
            Ok::<_, Error>((w.next_position(), numbers))
        };
        let (position, numbers) = store.write_blocking(job).unwrap().0;
        assert_eq!((position, numbers), (Position(70_001), [Ok(500), Ok(9), Ok(1)]));
    }
}
