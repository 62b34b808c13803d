//! Message compression: permessage-deflate (RFC 7692).
//!
//! The server compresses each message independently of earlier ones ("no context takeover"), so the
//! same compressed bytes serve every receiver. A client is asked to do the same where possible;
//! otherwise its connection keeps the sliding window of its earlier messages ([`History`]).
//!
//! - `deflate.rs`: compresses and inflates messages.
//! - `agreement.rs`: negotiates the extension in the handshake.
//! - `history.rs`: the sliding window of a client.

mod agreement;
mod history;

use std::fmt;

use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush, Status};

use super::frame::{Body, Kind, Violation};
pub use agreement::Agreement;
pub use history::History;

/// The size of the window that the server compresses with. There are two sizes, whatever clients ask
/// for: otherwise clients could make a shard keep seven compressors and compress each message seven
/// times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// 512 bytes, for a client that asked for less than 32 KiB. A smaller window than requested
    /// satisfies the request (RFC 7692, section 7.1.2.1).
    Small,
    /// 32 KiB.
    Large,
}

impl Window {
    /// The number of window sizes.
    pub const COUNT: usize = 2;

    /// Returns the base-2 logarithm of the window's size.
    fn bits(self) -> u8 {
        match self {
            Self::Small => 9,
            Self::Large => 15,
        }
    }
}

/// The bytes that end a sync flush. The sender strips them (RFC 7692, section 7.2.1).
const SYNC_FLUSH_END: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// The bytes appended to a received message before it is inflated: the stripped end of the sync
/// flush, then an empty final block. The inflater reports the end of the stream only if the message
/// consisted of whole blocks.
const END: [u8; 9] = [0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF];

/// The shortest message that is compressed, in bytes. Compressing a shorter one would save little.
const MESSAGE_BYTES_MIN: usize = 64;

/// The longest message that is compressed, in bytes. A longer one would take over 2 ms of a turn.
pub const DEFLATED_MAX: usize = 256 * 1024;

/// The compression level. Measured with 1 KiB of JSON: level 1 gives 418 bytes in 4 µs, level 2 gives
/// 306 bytes in 9 µs, level 6 gives 293 bytes in 12 µs.
const LEVEL: i32 = 2;

/// The largest output buffer that is kept between messages, in bytes. A larger one is freed by the
/// next message that fits in this size.
const KEPT_BYTES: usize = 64 * 1024;

/// The compressors of one shard, created when the first client needs one. The large window takes
/// 372 KiB, the small one 246 KiB.
#[derive(Default)]
pub struct Deflater {
    compressors: [Option<Deflate>; Window::COUNT],
    out: Vec<u8>,
}

impl Deflater {
    /// Returns the message in the form for a client that negotiated `window`: compressed if that
    /// saves bytes. `None`: the client did not negotiate compression.
    pub fn body<'a>(
        &'a mut self,
        window: Option<Window>,
        kind: Kind,
        message: &'a [u8],
    ) -> Body<'a> {
        match window.and_then(|window| self.deflate(window, message)) {
            Some(bytes) => Body { kind, bytes, is_deflated: true },
            None => Body { kind, bytes: message, is_deflated: false },
        }
    }

    /// Compresses a message. Returns `None` if that would not save bytes, or if the message is shorter
    /// than 64 bytes or longer than [`DEFLATED_MAX`].
    pub fn deflate(&mut self, window: Window, message: &[u8]) -> Option<&[u8]> {
        if !(MESSAGE_BYTES_MIN..=DEFLATED_MAX).contains(&message.len()) {
            return None;
        }
        let compressor = self.compressors[window as usize]
            .get_or_insert_with(|| Deflate::new(LEVEL, false, window.bits()));
        compressor.reset();
        // The compressor stops when the output is as long as the input: nothing would be saved.
        let room = message.len() + SYNC_FLUSH_END.len();
        if room <= KEPT_BYTES && self.out.len() > KEPT_BYTES {
            self.out = Vec::new();
        }
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        compressor.compress(message, &mut self.out[..room], DeflateFlush::SyncFlush).ok()?;
        let length = compressor.total_out() as usize;
        // The flush is complete only if it left room in the output.
        if length == room {
            return None;
        }
        self.out[..length].strip_suffix(&SYNC_FLUSH_END)
    }
}

/// The size of the inflater's output buffer, in bytes.
const PIECE_BYTES: usize = 16 * 1024;

/// The bytes that one call inflates before it returns [`Inflated::Unfinished`]; up to 32 KiB more are
/// possible. Takes about 50 µs. A message within the default size limit needs one call.
pub const INFLATED_PER_CALL: usize = 64 * 1024;

/// The most inflate steps of one call. A step fills the output buffer or ends a final block, so this
/// bounds the time that a message of many tiny blocks can take.
const STEPS_PER_CALL: usize = 256;

/// Inflates the compressed messages of one shard. Takes 62 KiB once the first message arrives.
#[derive(Default)]
pub struct Inflater {
    // The reusable inflate state; `None` while an unfinished message owns it.
    idle: Option<Box<Inflate>>,
    piece: Vec<u8>,
}

/// The outcome of one inflate call.
#[derive(Debug)]
pub enum Inflated {
    /// The whole message.
    Whole(Vec<u8>),
    /// A message that needs more calls; pass it to [`Inflater::resume`].
    Unfinished(Box<Inflating>),
}

/// Memory that one inflate state takes, in bytes.
const STATE_BYTES: usize = 46 * 1024;

/// A long message that is partly inflated: a copy of its compressed bytes, its inflated bytes so far,
/// and an inflate state of 46 KiB.
pub struct Inflating {
    inflate: Box<Inflate>,
    deflated: Vec<u8>,
    progress: InflateProgress,
}

impl Inflating {
    /// Returns the memory held, in bytes, including the inflate state.
    pub fn held_bytes(&self) -> usize {
        STATE_BYTES + self.deflated.capacity() + self.progress.message.capacity()
    }
}

impl fmt::Debug for Inflating {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deflated, progress, .. } = self;
        let (deflated, inflated) = (deflated.len(), progress.message.len());
        let mut text = formatter.debug_struct("Inflating");
        text.field("deflated", &deflated).field("inflated", &inflated).finish_non_exhaustive()
    }
}

/// The inflated part of a message, and the position in its compressed bytes.
#[derive(Default)]
struct InflateProgress {
    // Compressed bytes consumed: first those of the message, then those of `END`.
    taken: usize,
    message: Vec<u8>,
}

impl InflateProgress {
    fn end(self, history: Option<&mut History>) -> Inflated {
        if let Some(history) = history {
            history.append(&self.message);
        }
        Inflated::Whole(self.message)
    }
}

impl Inflater {
    /// Inflates a message, at most [`INFLATED_PER_CALL`] bytes of it in this call. `deflated` holds the
    /// payload of all its fragments. Memory is bounded by `bytes_max`, however far the message would
    /// expand. The message may refer back to `history`, and is appended to it.
    ///
    /// # Errors
    /// [`Violation::TooLarge`] if the message is longer than `bytes_max`; [`Violation::BadDeflate`] if
    /// it does not consist of whole DEFLATE blocks.
    pub fn inflate(
        &mut self,
        deflated: &[u8],
        bytes_max: usize,
        history: Option<&mut History>,
    ) -> Result<Inflated, Violation> {
        // RFC 7692, section 7.2.3.6, asks for one zero byte; some clients send none.
        if deflated.is_empty() {
            return Ok(Inflated::Whole(Vec::new()));
        }
        let mut inflate = self.idle.take().unwrap_or_else(|| Box::new(Inflate::new(false, 15)));
        inflate.reset(false);
        if let Some(history) = history.as_ref().filter(|history| !history.bytes().is_empty()) {
            inflate.set_dictionary(history.bytes()).map_err(|_| Violation::BadDeflate)?;
        }
        let mut progress = InflateProgress::default();
        match self.advance(&mut inflate, deflated, &mut progress, bytes_max) {
            Ok(false) => {
                let deflated = deflated.to_vec();
                Ok(Inflated::Unfinished(Box::new(Inflating { inflate, deflated, progress })))
            }
            ended => {
                self.idle = Some(inflate);
                ended.map(|_| progress.end(history))
            }
        }
    }

    /// Continues an unfinished message.
    ///
    /// # Errors
    /// The errors of [`Self::inflate`].
    pub fn resume(
        &mut self,
        mut inflating: Box<Inflating>,
        bytes_max: usize,
        history: Option<&mut History>,
    ) -> Result<Inflated, Violation> {
        let Inflating { inflate, deflated, progress } = &mut *inflating;
        if !self.advance(inflate, deflated, progress, bytes_max)? {
            return Ok(Inflated::Unfinished(inflating));
        }
        let Inflating { inflate, progress, .. } = *inflating;
        self.idle = Some(inflate);
        Ok(progress.end(history))
    }

    /// Inflates up to [`INFLATED_PER_CALL`] more bytes. Returns true when the message is complete.
    fn advance(
        &mut self,
        inflate: &mut Inflate,
        deflated: &[u8],
        progress: &mut InflateProgress,
        bytes_max: usize,
    ) -> Result<bool, Violation> {
        self.piece.resize(PIECE_BYTES, 0);
        // One more piece than the limit: a message that ends within it is completed in this call.
        let until = progress.message.len() + INFLATED_PER_CALL + PIECE_BYTES;
        for _ in 0..STEPS_PER_CALL {
            let input = match deflated.get(progress.taken..) {
                Some(rest) if !rest.is_empty() => rest,
                _ => &END[progress.taken - deflated.len()..],
            };
            let (taken, given) = (inflate.total_in(), inflate.total_out());
            let status = inflate
                .decompress(input, &mut self.piece, InflateFlush::NoFlush)
                .map_err(|_| Violation::BadDeflate)?;
            let consumed = (inflate.total_in() - taken) as usize;
            progress.taken += consumed;
            let piece = &self.piece[..(inflate.total_out() - given) as usize];
            if progress.message.len() + piece.len() > bytes_max {
                return Err(Violation::TooLarge);
            }
            progress.message.extend_from_slice(piece);
            let is_at_end = consumed == input.len();
            if status == Status::StreamEnd {
                // The final block of `END`, or one of the sender's: a sender may use final blocks,
                // with or without a byte after the last one (section 7.2.3.4).
                if is_at_end {
                    return Ok(true);
                }
                inflate.reset(false);
            } else if progress.taken == deflated.len() + END.len() && piece.is_empty() {
                return Err(Violation::BadDeflate);
            }
            if progress.message.len() >= until {
                break;
            }
        }
        Ok(false)
    }
}

/// Returns the most compressed bytes that a message of `message_bytes_max` bytes may take.
/// Incompressible data grows by up to an eighth with fixed Huffman codes, and each block has a header.
pub fn deflated_bytes_max(message_bytes_max: usize) -> usize {
    message_bytes_max + message_bytes_max / 7 + 64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that do not repeat.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        let byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        std::iter::repeat_with(byte).take(length).collect()
    }

    /// Messages that become shorter.
    fn samples() -> Vec<Vec<u8>> {
        let item = |n: u32| format!("{{\"id\":{},\"name\":\"x\"}},", n % 97);
        let text = (0..4000).map(item).collect::<String>().into_bytes();
        let mixed = [&text[..900], &noise(900)].concat();
        vec![text, mixed, vec![b'a'; 200_000], vec![7; 64], b"{\"a\":1}".repeat(10)]
    }

    /// All of a message, in as many calls as it takes.
    fn inflate(
        inflater: &mut Inflater,
        deflated: &[u8],
        bytes_max: usize,
    ) -> Result<Vec<u8>, Violation> {
        let mut inflated = inflater.inflate(deflated, bytes_max, None)?;
        let mut length = 0;
        loop {
            match inflated {
                Inflated::Whole(message) => return Ok(message),
                Inflated::Unfinished(inflating) => {
                    let now = inflating.progress.message.len();
                    assert!((1..=INFLATED_PER_CALL + 2 * PIECE_BYTES).contains(&(now - length)));
                    length = now;
                    inflated = inflater.resume(inflating, bytes_max, None)?;
                }
            }
        }
    }

    /// Inflates with another implementation.
    fn inflated_elsewhere(deflated: &[u8]) -> Vec<u8> {
        miniz_oxide::inflate::decompress_to_vec(&[deflated, &END].concat()).expect("it is DEFLATE")
    }

    #[test]
    fn what_is_deflated_is_shorter_and_inflates_to_what_it_was() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        for message in samples() {
            for window in [Window::Small, Window::Large, Window::Small] {
                let deflated = deflater.deflate(window, &message).expect("it repeats").to_vec();
                assert!(deflated.len() < message.len());
                assert_eq!(inflated_elsewhere(&deflated), message);
                assert_eq!(inflate(&mut inflater, &deflated, message.len()), Ok(message.clone()));
            }
        }
        assert!(deflater.out.len() <= KEPT_BYTES);
    }

    #[test]
    fn nothing_refers_further_back_than_its_window() {
        let mut deflater = Deflater::default();
        for (period, window, reaches) in [
            (200, Window::Small, true),
            (513, Window::Small, false),
            (513, Window::Large, true),
            (32_769, Window::Large, false),
        ] {
            let message = noise(period).repeat(4);
            let deflated = deflater.deflate(window, &message).map_or(message.len(), <[u8]>::len);
            assert_eq!(deflated < 3 * period, reaches, "{period} {window:?}: {deflated}");
        }
    }

    #[test]
    fn what_is_short_or_does_not_repeat_is_left_as_it_is() {
        let mut deflater = Deflater::default();
        assert_eq!(deflater.deflate(Window::Large, &[0; MESSAGE_BYTES_MIN - 1]), None);
        assert!(deflater.compressors.iter().all(Option::is_none));
        assert_eq!(deflater.deflate(Window::Large, &vec![0; DEFLATED_MAX + 1]), None);
        let noise = noise(100_000);
        for length in [64, 65, 1000, 100_000] {
            assert_eq!(deflater.deflate(Window::Large, &noise[..length]), None, "{length}");
        }
    }

    #[test]
    fn what_other_senders_make_is_inflated() {
        let mut inflater = Inflater::default();
        // The examples of RFC 7692, sections 7.2.3.1 to 7.2.3.6.
        let hello: [&[u8]; 5] = [
            &[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00],
            &[0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00],
            &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00],
            &[0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00],
            // A final block without a byte behind it.
            &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00],
        ];
        for deflated in hello {
            assert_eq!(inflate(&mut inflater, deflated, 5), Ok(b"Hello".to_vec()), "{deflated:x?}");
            assert_eq!(inflate(&mut inflater, deflated, 4), Err(Violation::TooLarge));
        }
        for empty in [&[][..], &[0x00], &[0x02, 0x00]] {
            assert_eq!(inflate(&mut inflater, empty, 0), Ok(Vec::new()), "{empty:x?}");
        }
        for message in samples() {
            // Two messages' worth of final blocks in one.
            let half = miniz_oxide::deflate::compress_to_vec(&message, 6);
            let twice = [&half[..], &half, &[0]].concat();
            assert_eq!(inflate(&mut inflater, &twice, 1 << 20), Ok(message.repeat(2)));
        }
    }

    #[test]
    fn what_is_no_deflate_or_breaks_off_is_refused_and_the_next_message_is_read() {
        let mut inflater = Inflater::default();
        let mut deflater = Deflater::default();
        let message = &samples()[1];
        let whole = deflater.deflate(Window::Large, message).unwrap();
        for length in 1..whole.len() {
            let result = inflate(&mut inflater, &whole[..length], message.len());
            assert!(result.is_err() || result.is_ok_and(|read| read.len() < message.len()));
        }
        for broken in [&[0xFF][..], &[0x06], &[0x01, 0x05], b"plain text"] {
            assert_eq!(
                inflate(&mut inflater, broken, 1000),
                Err(Violation::BadDeflate),
                "{broken:x?}"
            );
        }
        assert_eq!(inflate(&mut inflater, whole, message.len()).as_ref(), Ok(message));
    }

    #[test]
    fn messages_that_take_several_calls_do_not_disturb_each_other() {
        let mut inflater = Inflater::default();
        let long: Vec<Vec<u8>> =
            (0..3u8).map(|n| [noise(900), vec![n; 300_000]].concat()).collect();
        let deflate = |message: &Vec<u8>| miniz_oxide::deflate::compress_to_vec(message, 6);
        let mut open: Vec<_> = long
            .iter()
            .map(|message| match inflater.inflate(&deflate(message), 1 << 20, None) {
                Ok(Inflated::Unfinished(inflating)) => inflating,
                other => panic!("whole at once: {other:?}"),
            })
            .collect();
        let mut whole = Vec::new();
        while !open.is_empty() {
            assert_eq!(inflate(&mut inflater, &deflate(&vec![9; 100]), 100), Ok(vec![9; 100]));
            open = open
                .drain(..)
                .filter_map(|inflating| match inflater.resume(inflating, 1 << 20, None) {
                    Ok(Inflated::Unfinished(inflating)) => Some(inflating),
                    Ok(Inflated::Whole(message)) => {
                        whole.push(message);
                        None
                    }
                    Err(violation) => panic!("{violation:?}"),
                })
                .collect();
        }
        assert!(whole == long, "they came out mixed");
    }

    #[test]
    fn a_message_of_many_final_blocks_takes_several_calls() {
        let mut inflater = Inflater::default();
        // Each of them a little less than what the inflater gives at a time.
        let block = miniz_oxide::deflate::compress_to_vec(&vec![0; PIECE_BYTES - 1], 6);
        let deflated = [block.repeat(64), vec![0]].concat();
        let message = vec![0; 64 * (PIECE_BYTES - 1)];
        assert_eq!(inflate(&mut inflater, &deflated, message.len()), Ok(message));
        let block = miniz_oxide::deflate::compress_to_vec(b"a", 6);
        let deflated = [block.repeat(1000), vec![0]].concat();
        assert!(matches!(inflater.inflate(&deflated, 1000, None), Ok(Inflated::Unfinished(_))));
        assert_eq!(inflate(&mut inflater, &deflated, 1000), Ok(vec![b'a'; 1000]));
    }

    #[test]
    fn a_bomb_takes_no_more_memory_than_the_limit() {
        let bomb = miniz_oxide::deflate::compress_to_vec(&vec![0; 10 << 20], 9);
        assert!(bomb.len() < 20_000);
        assert_eq!(inflate(&mut Inflater::default(), &bomb, 65_536), Err(Violation::TooLarge));
    }

    #[test]
    fn whatever_a_message_becomes_is_collected() {
        for length in [0, 1, 100, 65_536] {
            // The codes of these bytes are the longest of the fixed ones.
            let message: Vec<u8> = noise(length).iter().map(|byte| byte | 0x90).collect();
            for level in [0, 1, 6] {
                let deflated = miniz_oxide::deflate::compress_to_vec(&message, level);
                assert!(deflated.len() < deflated_bytes_max(length), "{length} {level}");
            }
        }
    }

    /// The output of clients whose messages refer to earlier ones.
    fn in_one_context(messages: &[Vec<u8>], window_bits: u8) -> Vec<Vec<u8>> {
        let mut compressor = Deflate::new(6, false, window_bits);
        let deflate = |message: &Vec<u8>| {
            let before = compressor.total_out();
            let mut out = vec![0; message.len() * 2 + 64];
            compressor.compress(message, &mut out, DeflateFlush::SyncFlush).expect("there is room");
            out.truncate((compressor.total_out() - before) as usize);
            out.strip_suffix(&SYNC_FLUSH_END).expect("a sync flush ends with these bytes").to_vec()
        };
        messages.iter().map(deflate).collect()
    }

    #[test]
    fn messages_that_refer_to_those_before_them_are_inflated_with_their_history() {
        let (mut inflater, mut referring) = (Inflater::default(), 0);
        let mut messages = samples();
        messages
            .extend((0..50).map(|n| format!("{{\"id\":{n},\"name\":\"a name\"}}").into_bytes()));
        messages.extend([
            noise(20_000),
            noise(20_000),
            noise(500),
            noise(500),
            vec![b'x'; 300_000],
        ]);
        messages.extend(samples());
        for window_bits in [9, 12, 15] {
            let mut history = History::new(1 << window_bits);
            let mut other = History::new(1 << window_bits);
            for (deflated, message) in in_one_context(&messages, window_bits).iter().zip(&messages)
            {
                referring +=
                    usize::from(inflate(&mut inflater, deflated, 1 << 20) != Ok(message.clone()));
                let mut inflated = inflater.inflate(deflated, 1 << 20, Some(&mut history));
                while let Ok(Inflated::Unfinished(inflating)) = inflated {
                    // Somebody else's message comes between the parts of a long one.
                    let hello = [0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00];
                    let between = inflater.inflate(&hello, 5, Some(&mut other));
                    assert!(matches!(between, Ok(Inflated::Whole(text)) if text == b"Hello"));
                    inflated = inflater.resume(inflating, 1 << 20, Some(&mut history));
                }
                assert!(matches!(inflated, Ok(Inflated::Whole(whole)) if whole == *message));
            }
        }
        assert!(referring > 50, "{referring} messages refer to others");
    }
}
