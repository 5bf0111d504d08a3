//! The one integration binary; each module is a family of behaviour.
