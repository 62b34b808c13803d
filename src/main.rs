//! gridcast.
fn main() {}
