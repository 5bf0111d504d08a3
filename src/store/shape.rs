//! How a table's keys and values lie in its pages.
//!
//! redb notes where each key and each value ends, four bytes each, unless they are all of one length. The tables with a
//! row for every event or user declare their lengths and save those bytes. Readers and writers see every shape as bytes
//! to bytes; this file is where they differ.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::ops::{Bound, ControlFlow};
use std::rc::Rc;
use std::sync::Arc;

use redb::{
    Key, ReadTransaction, ReadableTable, ReadableTableMetadata, TableDefinition, TableError, TypeName, Value,
    WriteTransaction,
};

use super::{Result, Table, guard};

/// Lengths of a table's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Any to any.
    Free,
    /// A number to anything.
    Key4,
    /// A room, a byte and a number to a number.
    Key9Value4,
    /// Ten bytes to nothing.
    Key10,
    /// Twelve bytes to nothing.
    Key12,
}

impl Shape {
    /// Whether a row has these lengths.
    pub(super) fn fits(self, key: &[u8], value: &[u8]) -> bool {
        let (keys, values) = self.lengths();
        keys.is_none_or(|length| key.len() == length) && values.is_none_or(|length| value.len() == length)
    }

    /// The lengths of keys and values, each where all are alike.
    pub(super) fn lengths(self) -> (Option<usize>, Option<usize>) {
        match self {
            Shape::Free => (None, None),
            Shape::Key4 => (Some(4), None),
            Shape::Key9Value4 => (Some(9), Some(4)),
            Shape::Key10 => (Some(10), Some(0)),
            Shape::Key12 => (Some(12), Some(0)),
        }
    }
}

/// Bytes of one length.
#[derive(Debug)]
struct Exactly<const N: usize>;

impl<const N: usize> Value for Exactly<N> {
    type SelfType<'a> = &'a [u8];
    type AsBytes<'a> = &'a [u8];

    fn fixed_width() -> Option<usize> {
        Some(N)
    }

    fn from_bytes<'a>(data: &'a [u8]) -> &'a [u8]
    where
        Self: 'a,
    {
        data
    }

    fn as_bytes<'a, 'b: 'a>(value: &'a Self::SelfType<'b>) -> &'a [u8]
    where
        Self: 'b,
    {
        value
    }

    fn type_name() -> TypeName {
        TypeName::new(&format!("snug::bytes{N}"))
    }
}

impl<const N: usize> Key for Exactly<N> {
    fn compare(one: &[u8], other: &[u8]) -> Ordering {
        one.cmp(other)
    }
}

type Any = &'static [u8];

/// A type of keys or values that is bytes to us.
trait Bytes: for<'a> Value<SelfType<'a> = &'a [u8]> + Send + Sync + 'static {}

impl<T: for<'a> Value<SelfType<'a> = &'a [u8]> + Send + Sync + 'static> Bytes for T {}

/// A table in a snapshot.
pub(super) trait ReadRows {
    /// Calls `f` with the value without copying it; false when there is none.
    fn with(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> Result<bool>;
    fn walk(&self, from: &[u8], to_exclusive: Option<&[u8]>, rev: bool, f: Visitor) -> Result<()>;
    /// How many rows the table says it has.
    fn count(&self) -> Result<u64>;
}

/// A table in a snapshot, page by page: rows behind a damaged page are still found.
pub(super) trait SurveyRows: ReadRows {
    /// Calls `f` with each row from `from` on, and reads no page beyond the current one.
    fn onward(&self, from: &[u8], f: Visitor) -> Result<()>;
    /// The same backwards from below `to_exclusive`, or from the end.
    fn backward(&self, to_exclusive: Option<&[u8]>, f: Visitor) -> Result<()>;
}

/// A table in a write.
pub(super) trait WriteRows: ReadRows {
    /// Tells `old` the old value.
    fn put(&mut self, key: &[u8], value: &[u8], old: &mut dyn FnMut(Option<&[u8]>)) -> Result<()>;
    /// Tells `old` the old value; does nothing when there was none.
    fn remove(&mut self, key: &[u8], old: &mut dyn FnMut(&[u8])) -> Result<bool>;
    /// The first key from `from` on.
    fn next_key(&self, from: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Puts rows in rising order that all fall between two neighbours.
    fn put_run<'r>(&mut self, rows: &mut dyn Iterator<Item = (&'r [u8], &'r [u8])>) -> Result<()>;
}

/// `None` when nothing was ever written to the table.
pub(super) fn open_to_read(txn: &ReadTransaction, table: &Table) -> Result<Option<Arc<dyn SurveyRows + Send + Sync>>> {
    match table.shape {
        Shape::Free => to_read::<Any, Any>(txn, table),
        Shape::Key4 => to_read::<Exactly<4>, Any>(txn, table),
        Shape::Key9Value4 => to_read::<Exactly<9>, Exactly<4>>(txn, table),
        Shape::Key10 => to_read::<Exactly<10>, Exactly<0>>(txn, table),
        Shape::Key12 => to_read::<Exactly<12>, Exactly<0>>(txn, table),
    }
}

pub(super) fn open_to_write<'t>(txn: &'t WriteTransaction, table: &Table) -> Result<Rc<RefCell<dyn WriteRows + 't>>> {
    match table.shape {
        Shape::Free => to_write::<Any, Any>(txn, table),
        Shape::Key4 => to_write::<Exactly<4>, Any>(txn, table),
        Shape::Key9Value4 => to_write::<Exactly<9>, Exactly<4>>(txn, table),
        Shape::Key10 => to_write::<Exactly<10>, Exactly<0>>(txn, table),
        Shape::Key12 => to_write::<Exactly<12>, Exactly<0>>(txn, table),
    }
}

fn to_read<K: Key + Bytes, V: Bytes>(
    txn: &ReadTransaction,
    table: &Table,
) -> Result<Option<Arc<dyn SurveyRows + Send + Sync>>> {
    let name = table.name;
    guard::reading(name, || match txn.open_table(TableDefinition::<K, V>::new(name)) {
        Ok(open) => Ok(Some(Arc::new(Snapshot { name, open }) as Arc<dyn SurveyRows + Send + Sync>)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(failed) => Err(failed),
    })
}

fn to_write<'t, K: Key + Bytes, V: Bytes>(
    txn: &'t WriteTransaction,
    table: &Table,
) -> Result<Rc<RefCell<dyn WriteRows + 't>>> {
    let name = table.name;
    let open = guard::calling(name, || txn.open_table(TableDefinition::<K, V>::new(name)))?;
    Ok(Rc::new(RefCell::new(Changing { name, open })))
}

/// A table to read from.
struct Snapshot<K: Key + 'static, V: Value + 'static> {
    name: &'static str,
    open: redb::ReadOnlyTable<K, V>,
}

/// A table to write to.
struct Changing<'t, K: Key + 'static, V: Value + 'static> {
    name: &'static str,
    open: redb::Table<'t, K, V>,
}

// A visitor's own code is not redb's: only the calls themselves are guarded, for each row.

fn with<K: Key + Bytes, V: Bytes>(
    name: &str,
    table: &impl ReadableTable<K, V>,
    key: &[u8],
    f: &mut dyn FnMut(&[u8]),
) -> Result<bool> {
    let Some(found) = guard::reading(name, || table.get(key))? else { return Ok(false) };
    f(seen(name, || found.value())?);
    Ok(true)
}

/// The bytes of a row, which lie in its page.
fn seen<T>(name: &str, look: impl FnOnce() -> T) -> Result<T> {
    guard::calling(name, || Ok::<_, redb::StorageError>(look()))
}

fn walk<K: Key + Bytes, V: Bytes>(
    name: &str,
    table: &impl ReadableTable<K, V>,
    from: &[u8],
    to_exclusive: Option<&[u8]>,
    rev: bool,
    f: Visitor,
) -> Result<()> {
    let bounds = match to_exclusive {
        Some(to) if to <= from => return Ok(()),
        Some(to) => (Bound::Included(from), Bound::Excluded(to)),
        None => (Bound::Included(from), Bound::Unbounded),
    };
    let mut rows = guard::reading(name, || table.range::<&[u8]>(bounds))?;
    while let Some((key, value)) = guard::reading(name, || {
        let row = if rev { rows.next_back() } else { rows.next() };
        row.transpose()
    })? {
        let (key, value) = seen(name, || (key.value(), value.value()))?;
        if f(key, value)?.is_break() {
            break;
        }
    }
    Ok(())
}

impl<K: Key + Bytes, V: Bytes> ReadRows for Snapshot<K, V> {
    fn with(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> Result<bool> {
        with(self.name, &self.open, key, f)
    }

    fn walk(&self, from: &[u8], to_exclusive: Option<&[u8]>, rev: bool, f: Visitor) -> Result<()> {
        walk(self.name, &self.open, from, to_exclusive, rev, f)
    }

    fn count(&self) -> Result<u64> {
        guard::reading(self.name, || self.open.len())
    }
}

impl<K: Key + Bytes, V: Bytes> SurveyRows for Snapshot<K, V> {
    fn onward(&self, from: &[u8], f: Visitor) -> Result<()> {
        let mut cursor = guard::reading(self.name, || self.open.lower_bound(Bound::Included(from)))?;
        while let Some((key, value)) = guard::reading(self.name, || cursor.next())? {
            let (key, value) = seen(self.name, || (key.value(), value.value()))?;
            if f(key, value)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn backward(&self, to_exclusive: Option<&[u8]>, f: Visitor) -> Result<()> {
        let bound = to_exclusive.map_or(Bound::Unbounded, Bound::Excluded);
        let mut cursor = guard::reading(self.name, || self.open.upper_bound(bound))?;
        while let Some((key, value)) = guard::reading(self.name, || cursor.prev())? {
            let (key, value) = seen(self.name, || (key.value(), value.value()))?;
            if f(key, value)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl<K: Key + Bytes, V: Bytes> ReadRows for Changing<'_, K, V> {
    fn with(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> Result<bool> {
        with(self.name, &self.open, key, f)
    }

    fn walk(&self, from: &[u8], to_exclusive: Option<&[u8]>, rev: bool, f: Visitor) -> Result<()> {
        walk(self.name, &self.open, from, to_exclusive, rev, f)
    }

    fn count(&self) -> Result<u64> {
        guard::reading(self.name, || self.open.len())
    }
}

impl<K: Key + Bytes, V: Bytes> WriteRows for Changing<'_, K, V> {
    fn put(&mut self, key: &[u8], value: &[u8], old: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        check::<K, V>(key, value);
        guard::calling(self.name, || {
            let was = self.open.insert(key, value)?;
            old(was.as_ref().map(|was| was.value()));
            Ok::<_, redb::StorageError>(())
        })
    }

    fn remove(&mut self, key: &[u8], old: &mut dyn FnMut(&[u8])) -> Result<bool> {
        guard::calling(self.name, || {
            let was = self.open.remove(key)?;
            was.as_ref().inspect(|was| old(was.value()));
            Ok::<_, redb::StorageError>(was.is_some())
        })
    }

    fn next_key(&self, from: &[u8]) -> Result<Option<Vec<u8>>> {
        guard::reading(self.name, || {
            let mut cursor = self.open.lower_bound(Bound::Included(from))?;
            Ok::<_, redb::StorageError>(cursor.peek_next()?.map(|(key, _)| key.value().to_vec()))
        })
    }

    fn put_run<'r>(&mut self, rows: &mut dyn Iterator<Item = (&'r [u8], &'r [u8])>) -> Result<()> {
        let Some(first) = rows.next() else { return Ok(()) };
        let mut cursor = guard::calling(self.name, || self.open.lower_bound_mut(Bound::Included(first.0)))?;
        let put = guard::calling(self.name, || {
            std::iter::once(first).chain(rows).try_for_each(|(key, value)| {
                check::<K, V>(key, value);
                cursor.insert_before(key, value)
            })
        });
        // Closed or dropped under its own guard: its drop continues work that a panic left half done.
        let closed = guard::calling(self.name, || cursor.close());
        put.and(closed)
    }
}

/// redb does not check the length of a row and would be unable to read a wrong one back.
fn check<K: Key, V: Value>(key: &[u8], value: &[u8]) {
    let fits = |width: Option<usize>, bytes: &[u8]| width.is_none_or(|width| width == bytes.len());
    assert!(fits(K::fixed_width(), key) && fits(V::fixed_width(), value), "a row has its table's lengths");
}

/// A row as key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Called with each row of a range; breaks to stop.
pub type Visitor<'v> = &'v mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>>;
