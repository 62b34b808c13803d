//! WebSocket frames (RFC 6455, section 5.2): those of clients are unmasked in place, those of the server are not
//! masked.

use std::ops::Range;

/// A frame of a client.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientFrame {
    /// FIN, the reserved bits and the opcode.
    pub first: u8,
    /// The place of the unmasked payload.
    pub payload: Range<usize>,
}

/// The opcode of a close frame, with FIN.
pub const CLOSE: u8 = 0x88;

/// Finds the frame at the start of `bytes` and unmasks it. Returns `None` if it is not complete.
pub fn take_frame(bytes: &mut [u8]) -> Option<ClientFrame> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (length, head) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize, 10),
        short => (usize::from(short), 2),
    };
    let mask: [u8; 4] = bytes.get(head..head + 4)?.try_into().ok()?;
    let payload = head + 4..(head + 4).checked_add(length)?;
    let masked = bytes.get_mut(payload.clone())?;
    let (words, rest) = masked.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    rest.iter_mut().zip(mask).for_each(|(byte, key)| *byte ^= key);
    Some(ClientFrame { first, payload })
}

/// Appends a frame of the server.
pub fn put_frame(output: &mut Vec<u8>, first: u8, payload: &[u8]) {
    output.push(first);
    match payload.len() {
        length @ ..126 => output.push(length as u8),
        length @ ..0x1_0000 => {
            output.push(126);
            output.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            output.push(127);
            output.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    output.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_a_client_is_unmasked_once_it_is_complete() {
        let mut masked = vec![0x81, 0x85, 1, 2, 3, 4];
        masked.extend(b"hello".iter().zip([1, 2, 3, 4, 1]).map(|(byte, key)| byte ^ key));
        for end in 0..masked.len() {
            assert_eq!(take_frame(&mut masked[..end].to_vec()), None);
        }
        let frame = take_frame(&mut masked).expect("it is complete");
        assert_eq!(frame, ClientFrame { first: 0x81, payload: 6..11 });
        assert_eq!(&masked[frame.payload], b"hello");
    }

    #[test]
    fn the_length_of_a_frame_takes_as_many_bytes_as_it_needs() {
        for (length, head) in [
            (125, vec![0x82, 125]),
            (126, vec![0x82, 126, 0, 126]),
            (65_536, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut output = Vec::new();
            put_frame(&mut output, 0x82, &vec![b'x'; length]);
            assert_eq!(output.len(), head.len() + length);
            assert_eq!(output[..head.len()], head);
        }
    }
}
