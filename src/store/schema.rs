//! The catalogue: every table, its key and value, and the part that owns it.
//!
//! All tables are bytes to bytes; keys keep their order (`key.rs`). A table is written by its owner only, through the
//! verbs of a file in `store/tables/`. What may be lost in a power cut says so here.

/// One table. `name` is what the file knows it by and never changes; `owner` is the part that writes it.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    pub name: &'static str,
    pub owner: &'static str,
    /// key → value, and what is special about it
    pub doc: &'static str,
}

const fn table(name: &'static str, owner: &'static str, doc: &'static str) -> Table {
    Table { name, owner, doc }
}

// ---- store: the engine itself
pub const META: Table = table("meta", "store", "name → value: format, hash_key, position, counters (next/NAME)");

// ---- room: state trees and the numbers of state keys (tables/snapshot.rs)
pub const STATE_NODE: Table = table("state_node", "room", "16-byte name → node of a state tree (tables/snapshot.rs)");
pub const STATE_KEY: Table = table("state_key", "room", "keyed hash128(type, state key) → StateKeyNum");

/// Every table above, for the sweep, the statistics and the tests. A table is added here when it is made.
pub const TABLES: &[&Table] = &[&META, &STATE_NODE, &STATE_KEY];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = TABLES.iter().map(|table| table.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLES.len());
    }
}
