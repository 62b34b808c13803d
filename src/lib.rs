//! gridcast.
pub mod address;
pub mod protocol;
