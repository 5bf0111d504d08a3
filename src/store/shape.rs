//! How a table's keys and values lie in its pages.
//!
//! redb notes where each key and each value ends, four bytes each, unless they are all of one length. The tables with a
//! row for every event or user say their lengths, and are spared that. Every shape is bytes to bytes to whoever reads
//! and writes; this file is where they differ.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;

use redb::{Key, ReadTransaction, ReadableTable, TableDefinition, TableError, TypeName, Value, WriteTransaction};

use super::access::Visitor;
use super::{Error, Result, Table};

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
}

/// A table in a write.
pub(super) trait WriteRows: ReadRows {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()>;
    fn remove(&mut self, key: &[u8]) -> Result<bool>;
    /// The first key from `from` on.
    fn next_key(&self, from: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Puts rows in rising order that all fall between two neighbours.
    fn put_run<'r>(&mut self, rows: &mut dyn Iterator<Item = (&'r [u8], &'r [u8])>) -> Result<()>;
}

/// `None` when nothing was ever written to the table.
pub(super) fn open_to_read(txn: &ReadTransaction, table: &Table) -> Result<Option<Arc<dyn ReadRows + Send + Sync>>> {
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
) -> Result<Option<Arc<dyn ReadRows + Send + Sync>>> {
    match txn.open_table(TableDefinition::<K, V>::new(table.name)) {
        Ok(open) => Ok(Some(Arc::new(Snapshot(open)))),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(failed) => Err(Error::of(failed)),
    }
}

fn to_write<'t, K: Key + Bytes, V: Bytes>(
    txn: &'t WriteTransaction,
    table: &Table,
) -> Result<Rc<RefCell<dyn WriteRows + 't>>> {
    let open = txn.open_table(TableDefinition::<K, V>::new(table.name)).map_err(Error::of)?;
    Ok(Rc::new(RefCell::new(open)))
}

/// A table to read from, apart from one to write to.
struct Snapshot<K: Key + 'static, V: Value + 'static>(redb::ReadOnlyTable<K, V>);

fn with<K: Key + Bytes, V: Bytes>(
    table: &impl ReadableTable<K, V>,
    key: &[u8],
    f: &mut dyn FnMut(&[u8]),
) -> Result<bool> {
    match table.get(key).map_err(Error::of)? {
        Some(value) => f(value.value()),
        None => return Ok(false),
    }
    Ok(true)
}

fn walk<K: Key + Bytes, V: Bytes>(
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
    let mut rows = table.range::<&[u8]>(bounds).map_err(Error::of)?;
    while let Some(row) = if rev { rows.next_back() } else { rows.next() } {
        let (key, value) = row.map_err(Error::of)?;
        if f(key.value(), value.value())?.is_break() {
            break;
        }
    }
    Ok(())
}

impl<K: Key + Bytes, V: Bytes> ReadRows for Snapshot<K, V> {
    fn with(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> Result<bool> {
        with(&self.0, key, f)
    }

    fn walk(&self, from: &[u8], to_exclusive: Option<&[u8]>, rev: bool, f: Visitor) -> Result<()> {
        walk(&self.0, from, to_exclusive, rev, f)
    }
}

impl<K: Key + Bytes, V: Bytes> ReadRows for redb::Table<'_, K, V> {
    fn with(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> Result<bool> {
        with(self, key, f)
    }

    fn walk(&self, from: &[u8], to_exclusive: Option<&[u8]>, rev: bool, f: Visitor) -> Result<()> {
        walk(self, from, to_exclusive, rev, f)
    }
}

impl<K: Key + Bytes, V: Bytes> WriteRows for redb::Table<'_, K, V> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        check::<K, V>(key, value);
        self.insert(key, value).map(|_| ()).map_err(Error::of)
    }

    fn remove(&mut self, key: &[u8]) -> Result<bool> {
        redb::Table::remove(self, key).map(|old| old.is_some()).map_err(Error::of)
    }

    fn next_key(&self, from: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut cursor = self.lower_bound(Bound::Included(from)).map_err(Error::of)?;
        Ok(cursor.peek_next().map_err(Error::of)?.map(|(key, _)| key.value().to_vec()))
    }

    fn put_run<'r>(&mut self, rows: &mut dyn Iterator<Item = (&'r [u8], &'r [u8])>) -> Result<()> {
        let Some(first) = rows.next() else { return Ok(()) };
        let mut cursor = self.lower_bound_mut(Bound::Included(first.0)).map_err(Error::of)?;
        for (key, value) in std::iter::once(first).chain(rows) {
            check::<K, V>(key, value);
            cursor.insert_before(key, value).map_err(Error::of)?;
        }
        cursor.close().map_err(Error::of)
    }
}

/// redb takes a row of the wrong length for granted and would be unable to read it back.
fn check<K: Key, V: Value>(key: &[u8], value: &[u8]) {
    let fits = |width: Option<usize>, bytes: &[u8]| width.is_none_or(|width| width == bytes.len());
    assert!(fits(K::fixed_width(), key) && fits(V::fixed_width(), value), "a row has its table's lengths");
}
