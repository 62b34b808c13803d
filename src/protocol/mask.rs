//! Unmasks the payload of client frames in place (RFC 6455, section 5.3).

/// XORs `data` with `mask`. `phase` is the offset of `data` within the frame's payload, so a payload
/// that arrives in pieces can be unmasked piece by piece.
pub(super) fn unmask(data: &mut [u8], mask: [u8; 4], phase: usize) {
    let mut key = mask;
    key.rotate_left(phase % 4);
    let wide = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (words, tail) = data.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_every_phase_unmasks_like_the_definition() {
        let mask = [0x12, 0x34, 0x56, 0x78];
        for length in 0..40 {
            for phase in 0..9 {
                let plain: Vec<u8> = (0..length).collect();
                let mut data: Vec<u8> = plain
                    .iter()
                    .enumerate()
                    .map(|(at, byte)| byte ^ mask[(at + phase) % 4])
                    .collect();
                unmask(&mut data, mask, phase);
                assert_eq!(data, plain);
            }
        }
    }
}
