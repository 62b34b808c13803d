//! The layout of answers. The crate that decodes them takes memory for as many elements as an array says that it has. So
//! an answer is looked through before: each element that an array says it has is there.

/// A part of an answer, in the encoding of versions without tagged fields.
#[derive(Clone, Copy, Debug)]
pub(super) enum AnswerPart {
    /// A field with this number of bytes.
    Fixed(usize),
    /// A length of 16 bits, and so many bytes. Negative: none.
    Text,
    /// A length of 32 bits, and so many bytes. Negative: none.
    Octets,
    /// A count of 32 bits, and so many times these parts, which take at least one byte. Negative: none.
    Array(&'static [Self]),
}

/// Whether the bytes of an answer begin with these parts, each of them whole.
pub(super) fn is_whole(parts: &[AnswerPart], answer: &[u8]) -> bool {
    skip_all(parts, &mut &*answer).is_some()
}

fn skip_all(parts: &[AnswerPart], rest: &mut &[u8]) -> Option<()> {
    parts.iter().try_for_each(|part| skip(*part, rest))
}

fn skip(part: AnswerPart, rest: &mut &[u8]) -> Option<()> {
    match part {
        AnswerPart::Fixed(bytes) => rest.split_off(..bytes).map(drop),
        AnswerPart::Text => {
            let length = i16::from_be_bytes(take(rest)?);
            rest.split_off(..usize::try_from(length).unwrap_or(0)).map(drop)
        }
        AnswerPart::Octets => {
            let length = i32::from_be_bytes(take(rest)?);
            rest.split_off(..usize::try_from(length).unwrap_or(0)).map(drop)
        }
        AnswerPart::Array(parts) => {
            let count = i32::from_be_bytes(take(rest)?);
            // Ends early where elements are missing, as each takes bytes.
            (0..count.max(0)).try_for_each(|_| skip_all(parts, rest))
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    rest.split_off(..N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::AnswerPart::{Array, Fixed, Octets, Text};
    use super::*;

    const PARTS: &[AnswerPart] = &[Fixed(2), Array(&[Text, Fixed(1)]), Octets];

    #[test]
    fn an_answer_is_whole_only_with_all_its_elements() {
        let whole = b"ee\0\0\0\x02\0\x01ax\xff\xffy\0\0\0\x03abc";
        assert!(is_whole(PARTS, whole));
        assert!(is_whole(PARTS, b"ee\xff\xff\xff\xff\xff\xff\xff\xff"), "nothing is there");
        for cut in 0..whole.len() {
            assert!(!is_whole(PARTS, &whole[..cut]), "{cut}");
        }
    }

    #[test]
    fn an_array_that_says_too_much_is_refused_at_once() {
        assert!(!is_whole(PARTS, b"ee\x7f\xff\xff\xff\0\x01ax"));
        assert!(!is_whole(PARTS, b"ee\0\0\0\0\x7f\xff\xff\xffabc"));
    }
}
