//! A value that may be replaced while others use it: the settings that change without a restart.

use std::sync::Arc;

use parking_lot::RwLock;

/// The value that is in force now.
#[derive(Default)]
pub struct Live<T>(RwLock<Arc<T>>);

impl<T> Live<T> {
    pub fn new(value: T) -> Live<T> {
        Live(RwLock::new(Arc::new(value)))
    }

    /// The value in force; it stays as it is for who holds it.
    pub fn get(&self) -> Arc<T> {
        self.0.read().clone()
    }

    pub fn set(&self, value: T) {
        let value = Arc::new(value);
        *self.0.write() = value;
    }
}
