use super::*;

/// Encodes a masked frame whose first byte is `first`.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    crate::protocol::frame::put_head(&mut out, Opcode::Ping, payload.len());
    out[0] = first;
    out[1] |= 0x80;
    out.extend_from_slice(&[9, 8, 7, 6]);
    let start = out.len();
    out.extend_from_slice(payload);
    unmask(&mut out[start..], [9, 8, 7, 6], 0);
    out
}

fn describe(received: Received<'_>) -> String {
    match received {
        Received::Message(kind, data) => {
            format!("{kind:?} {}", String::from_utf8_lossy(&data))
        }
        Received::Ping(data) => format!("ping {}", String::from_utf8_lossy(&data)),
        Received::Pong => "pong".into(),
        Received::Close(closed) => format!("close {:?} {}", closed.code, closed.reason),
        Received::Inflating => "inflating".into(),
    }
}

/// Feeds `bytes` in pieces, split at `cuts`. Returns what was received, a violation last.
fn feed(bytes: &[u8], cuts: &[usize], max: usize) -> Vec<String> {
    feed_with(None, bytes, cuts, max)
}

fn feed_with(
    mut inflater: Option<&mut Inflater>,
    bytes: &[u8],
    cuts: &[usize],
    max: usize,
) -> Vec<String> {
    let mut assembler = Assembler::default();
    let mut out = Vec::new();
    let mut from = 0;
    for &to in cuts.iter().chain([&bytes.len()]) {
        let mut piece = bytes[from..to].to_vec();
        let mut input = &mut piece[..];
        from = to;
        loop {
            match assembler.read(&mut input, max, inflater.as_deref_mut()) {
                Ok(Some(received)) => out.push(describe(received)),
                Ok(None) => break,
                Err(violation) => {
                    out.push(format!("{violation:?}"));
                    return out;
                }
            }
        }
        assert!(input.is_empty());
    }
    out
}

fn assert_at_every_split(bytes: &[u8], expected: &[&str], max: usize) {
    assert_with_at_every_split(None, bytes, expected, max);
}

fn assert_with_at_every_split(
    mut inflater: Option<&mut Inflater>,
    bytes: &[u8],
    expected: &[&str],
    max: usize,
) {
    let mut feed = |cuts: &[usize]| feed_with(inflater.as_deref_mut(), bytes, cuts, max);
    assert_eq!(feed(&[]), expected, "whole");
    let every: Vec<usize> = (1..bytes.len()).collect();
    assert_eq!(feed(&every), expected, "byte by byte");
    for cut in 1..bytes.len() {
        assert_eq!(feed(&[cut]), expected, "split at {cut}");
        for second in cut..bytes.len().min(cut + 20) {
            assert_eq!(feed(&[cut, second]), expected, "{cut} {second}");
        }
    }
}

/// A message compressed by another implementation.
fn deflated(message: &[u8]) -> Vec<u8> {
    [&miniz_oxide::deflate::compress_to_vec(message, 6)[..], &[0]].concat()
}

#[test]
fn messages_and_control_frames_come_out_the_same_at_every_split() {
    let bytes = [
        frame(0x81, "grüße".as_bytes()),
        frame(0x82, &[0x41; 300]),
        frame(0x89, b"are you there"),
        frame(0x8A, b""),
        frame(0x81, b""),
        frame(0x88, &[0x03, 0xE8, b'b', b'y', b'e']),
    ]
    .concat();
    let binary = format!("Binary {}", "A".repeat(300));
    let expected =
        ["Text grüße", &binary, "ping are you there", "pong", "Text ", "close Some(1000) bye"];
    assert_at_every_split(&bytes, &expected, 1000);
}

#[test]
fn fragments_are_put_together_with_control_frames_between_them() {
    let text = "añb€c😀".as_bytes();
    let bytes = [
        frame(0x01, &text[..2]),
        frame(0x89, b"!"),
        frame(0x00, &text[2..6]),
        frame(0x00, b""),
        frame(0x80, &text[6..]),
        frame(0x82, b"z"),
    ]
    .concat();
    assert_at_every_split(&bytes, &["ping !", "Text añb€c😀", "Binary z"], 1000);
}

#[test]
fn what_breaks_the_protocol_is_named_at_every_split() {
    let cases: [(Vec<Vec<u8>>, &[&str]); 9] = [
        (vec![frame(0x80, b"x")], &["NothingToContinue"]),
        (vec![frame(0x01, b"x"), frame(0x81, b"y")], &["MessageInsideMessage"]),
        (vec![frame(0x81, &[0xFF])], &["NotUtf8"]),
        (vec![frame(0x81, &[0xE2, 0x82])], &["NotUtf8"]),
        (vec![frame(0x01, &[0xE2, 0x82]), frame(0x80, &[0x41])], &["NotUtf8"]),
        (vec![frame(0x88, &[0x03])], &["BadClose"]),
        (vec![frame(0x88, &[0x03, 0xED])], &["BadClose"]),
        (vec![frame(0x88, &[0x03, 0xE8, 0xFF])], &["NotUtf8"]),
        (vec![frame(0x81, b"fine"), frame(0xA1, b"")], &["Text fine", "ReservedBits"]),
    ];
    for (frames, expected) in cases {
        assert_at_every_split(&frames.concat(), expected, 1000);
    }
}

#[test]
fn invalid_text_is_refused_before_its_message_is_whole() {
    let whole = frame(0x81, &[b'a', 0xFF, b'b', b'b', b'b', b'b']);
    assert_eq!(feed(&whole[..8], &[], 1000), ["NotUtf8"]);
}

#[test]
fn the_limit_counts_the_bytes_of_all_fragments_and_not_their_number() {
    let fragments = |count: usize| {
        let mut frames = vec![frame(0x02, b"x")];
        frames.extend((1..count - 1).map(|_| frame(0x00, b"x")));
        frames.push(frame(0x80, b"x"));
        frames.concat()
    };
    assert_eq!(feed(&fragments(500), &[], 500).len(), 1);
    assert_eq!(feed(&fragments(501), &[], 500), ["TooLarge"]);
    assert_at_every_split(&frame(0x82, &[0; 11]), &["TooLarge"], 10);
}

#[test]
fn compressed_messages_come_out_the_same_at_every_split_between_those_that_are_not() {
    let mut inflater = Inflater::default();
    let (text, long) = ("grüße ".repeat(9), "a".repeat(1000));
    let (first, second) = (deflated(text.as_bytes()), deflated(long.as_bytes()));
    let bytes = [
        frame(0xC1, &first),
        frame(0x81, b"plain"),
        frame(0x42, &second[..3]),
        frame(0x89, b"!"),
        frame(0x00, &second[3..5]),
        frame(0x80, &second[5..]),
        frame(0xC1, &[0]),
        frame(0x82, b"z"),
    ]
    .concat();
    let (text, long) = (format!("Text {text}"), format!("Binary {long}"));
    let expected = [&text[..], "Text plain", "ping !", &long, "Text ", "Binary z"];
    assert_with_at_every_split(Some(&mut inflater), &bytes, &expected, 1000);
    assert_at_every_split(&bytes, &["ReservedBits"], 1000);
}

#[test]
fn what_is_wrong_with_a_compressed_message_is_named_at_every_split() {
    let mut inflater = Inflater::default();
    let not_utf8 = deflated(&[b'a', 0xFF]);
    let bomb = deflated(&[0; 101]);
    let incompressible = [vec![0, 100, 0, 0x9B, 0xFF], vec![b'x'; 100], vec![0]].concat();
    let cases: [(Vec<Vec<u8>>, &str); 8] = [
        (vec![frame(0xC1, &not_utf8)], "NotUtf8"),
        (vec![frame(0x41, &not_utf8[..2]), frame(0x80, &not_utf8[2..])], "NotUtf8"),
        (vec![frame(0xC2, b"no DEFLATE")], "BadDeflate"),
        (vec![frame(0xC2, &bomb)], "TooLarge"),
        (vec![frame(0x42, &bomb[..2]), frame(0x80, &bomb[2..])], "TooLarge"),
        (vec![frame(0xC2, &[0; 200])], "TooLarge"),
        (vec![frame(0x42, &[0; 100]), frame(0x00, &[0; 100])], "TooLarge"),
        (vec![frame(0x42, &bomb[..2]), frame(0xC0, &bomb[2..])], "ReservedBits"),
    ];
    for (frames, expected) in cases {
        assert_with_at_every_split(Some(&mut inflater), &frames.concat(), &[expected], 100);
    }
    let expected = format!("Binary {}", "x".repeat(100));
    let whole = frame(0xC2, &incompressible);
    assert_with_at_every_split(Some(&mut inflater), &whole, &[&expected], 100);
}

#[test]
fn a_message_is_unfinished_since_its_first_byte_whatever_control_frames_come_between() {
    let mut assembler = Assembler::default();
    let mut feed = |now_ms, bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let mut input = &mut bytes[..];
        while assembler.read(&mut input, 100, None).unwrap().is_some() {}
        assembler.note_unfinished(now_ms);
        assembler.unfinished().map(|unfinished| (unfinished.since_ms, unfinished.bytes))
    };
    assert_eq!(feed(1, &frame(0x81, b"whole")), None);
    assert_eq!(feed(2, &frame(0x01, b"abc")), Some((2, 3)));
    assert_eq!(feed(3, &frame(0x89, b"?")), Some((2, 3)));
    assert_eq!(feed(4, &frame(0x89, b"?")[..3]), Some((2, 3)));
    assert_eq!(feed(5, &frame(0x89, b"?")[3..]), Some((2, 3)));
    assert_eq!(feed(6, &frame(0x00, b"")), Some((2, 3)));
    assert_eq!(feed(7, &frame(0x80, b"de")), None);
    assert_eq!(feed(8, &frame(0x89, b"?")[..2]), Some((8, 0)));
    assert_eq!(feed(9, &frame(0x89, b"?")[2..]), None);
    // The next one begins in the bytes that end the one before.
    assert_eq!(feed(10, &frame(0x01, b"a")), Some((10, 1)));
    assert_eq!(feed(11, &[frame(0x80, b"b"), frame(0x01, b"c")].concat()), Some((11, 1)));
}

#[test]
fn a_connection_between_frames_keeps_no_buffer() {
    let mut assembler = Assembler::default();
    let mut bytes = [frame(0x01, b"a"), frame(0x80, b"b")].concat();
    let (mut first, mut second) = bytes.split_at_mut(3);
    assert!(assembler.read(&mut first, 10, None).unwrap().is_none());
    assert!(assembler.partial.is_some());
    assert!(assembler.read(&mut second, 10, None).unwrap().is_some());
    assert!(assembler.partial.is_none());
}
