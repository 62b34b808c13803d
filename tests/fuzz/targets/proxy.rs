//! A PROXY protocol header is found at every split of the input or at none, and the bytes after it do
//! not matter.

use gridcast::protocol::proxy::{self, HEADER_BYTES_MAX};

/// The start of one connection.
pub fn run(data: &[u8]) {
    let whole = proxy::parse(data);
    let decided = (0..=data.len()).find(|&length| proxy::parse(&data[..length]) != Ok(None));
    let Some(length) = decided else {
        assert_eq!(whole, Ok(None));
        assert!(data.len() < HEADER_BYTES_MAX, "a header has to end");
        return;
    };
    let first = proxy::parse(&data[..length]);
    assert_eq!(first, whole);
    if let Ok(Some(header)) = first {
        assert!(header.length == length && length <= HEADER_BYTES_MAX);
    }
}
