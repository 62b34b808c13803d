//! Messages compressed (permessage-deflate, RFC 7692): what is agreed on in the handshake, and each
//! message deflated or inflated on its own, without those before it. So the connection owns no
//! window, and the same compressed bytes serve every receiver.

use std::fmt;

use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush, Status};

use super::extension::Extension;
use super::frame::{Body, Kind, Violation};

/// How far back the bytes that we compress may refer. Two sizes, whatever clients ask for: so that
/// none of them can make a shard keep seven compressors, or compress one message seven times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// 512 bytes: for a client that asked for less than the whole (RFC 7692, section 7.1.2.1: the
    /// same or a smaller value grants that).
    Small,
    /// 32 KiB.
    Large,
}

impl Window {
    /// How many there are.
    pub const COUNT: usize = 2;

    /// The base-2 logarithm of its size.
    fn bits(self) -> u8 {
        match self {
            Self::Small => 9,
            Self::Large => 15,
        }
    }
}

/// An offer that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// What the client gets is compressed within this.
    pub window: Window,
    // The client asked for a limit: the answer has to name one.
    names_window: bool,
}

impl Agreement {
    /// Takes the first offer that is one of permessage-deflate and can be kept (RFC 7692, section
    /// 5.1).
    pub fn of<'o>(mut offers: impl Iterator<Item = Extension<'o>>) -> Option<Self> {
        offers.find_map(|offer| Self::of_one(&offer))
    }

    /// Declines what has an unknown parameter, a bad value or a parameter twice (section 7.1), and
    /// a window of 256 bytes, which zlib cannot keep to.
    fn of_one(offer: &Extension<'_>) -> Option<Self> {
        if offer.name != "permessage-deflate" {
            return None;
        }
        let mut agreement = Self { window: Window::Large, names_window: false };
        let mut seen = Vec::new();
        for (name, value) in &offer.parameters {
            match (*name, value.as_deref()) {
                // Either way each of our messages stands alone, and each of the client's has to.
                ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
                // We inflate within the largest window: there is nothing to ask for.
                ("client_max_window_bits", None) => {}
                ("client_max_window_bits", Some(value)) => drop(window_bits(value)?),
                ("server_max_window_bits", Some(value)) => {
                    agreement.names_window = true;
                    agreement.window = match window_bits(value)? {
                        8 => return None,
                        15 => Window::Large,
                        _ => Window::Small,
                    };
                }
                _ => return None,
            }
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
        }
        Some(agreement)
    }
}

/// 8 to 15, in decimal without a leading zero (RFC 7692, section 7.1.2).
fn window_bits(value: &str) -> Option<u8> {
    match value {
        "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15" => value.parse().ok(),
        _ => None,
    }
}

/// The value of `Sec-WebSocket-Extensions` in the answer.
impl fmt::Display for Agreement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        )?;
        match self.names_window {
            true => write!(formatter, "; server_max_window_bits={}", self.window.bits()),
            false => Ok(()),
        }
    }
}

/// What a flush ends with; it is not sent (RFC 7692, section 7.2.1).
const MARK: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// What follows a received message: the mark that was not sent, then an empty final block. Only
/// who has read whole blocks up to there takes it for one.
const END: [u8; 9] = [0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF];

/// Messages shorter than this are not compressed: little would be saved.
const MESSAGE_BYTES_MIN: usize = 64;

/// The longest message that is compressed, in bytes: a longer one would take over 2 ms of a turn.
pub const DEFLATED_MAX: usize = 256 * 1024;

/// 1 KiB of JSON becomes 306 bytes in 9 µs; with level 1 it is 418 in 4 µs, with 6 293 in 12 µs.
const LEVEL: i32 = 2;

/// Room for compressed bytes that is kept; what a longer message took is given back with the next.
const KEPT_BYTES: usize = 64 * 1024;

/// The compressors of one shard, made when the first client needs one: 372 KiB for the large
/// window, 246 KiB for the small one.
#[derive(Default)]
pub struct Deflater {
    compressors: [Option<Deflate>; Window::COUNT],
    out: Vec<u8>,
}

impl Deflater {
    /// The message as one may get it who agreed on this window, or on none.
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

    /// The message compressed; `None` if it would hardly be shorter, or is longer than 256 KiB.
    pub fn deflate(&mut self, window: Window, message: &[u8]) -> Option<&[u8]> {
        if !(MESSAGE_BYTES_MIN..=DEFLATED_MAX).contains(&message.len()) {
            return None;
        }
        let compressor = self.compressors[window as usize]
            .get_or_insert_with(|| Deflate::new(LEVEL, false, window.bits()));
        compressor.reset();
        // What does not fit is not shorter: the compressor stops there.
        let room = message.len() + MARK.len();
        if room <= KEPT_BYTES && self.out.len() > KEPT_BYTES {
            self.out = Vec::new();
        }
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        compressor.compress(message, &mut self.out[..room], DeflateFlush::SyncFlush).ok()?;
        let length = compressor.total_out() as usize;
        // A flush is over only if it left room.
        if length == room {
            return None;
        }
        self.out[..length].strip_suffix(&MARK)
    }
}

/// Bytes that come out of the inflater at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// Bytes that one call inflates before it asks to be called again, and up to 16 KiB more: some 50 µs.
/// A message of the default limit is whole after one call.
pub const INFLATED_PER_CALL: usize = 64 * 1024;

/// Pieces, and final blocks in the middle of a message, that one call takes: as dear at most.
const STEPS_PER_CALL: usize = 256;

/// Inflates the compressed messages of one shard. Made when the first comes: 62 KiB.
#[derive(Default)]
pub struct Inflater {
    // None while a message that takes several calls has it.
    idle: Option<Box<Inflate>>,
    piece: Vec<u8>,
}

/// A message as far as it is inflated.
#[derive(Debug)]
pub enum Inflated {
    /// All of it.
    Whole(Vec<u8>),
    /// The first part; [`Inflater::resume`] goes on.
    Unfinished(Box<Inflating>),
}

/// A long message that is half inflated: its own copy of the compressed bytes, what they became so
/// far, and a state of 46 KiB.
pub struct Inflating {
    inflate: Box<Inflate>,
    deflated: Vec<u8>,
    progress: Progress,
}

impl fmt::Debug for Inflating {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deflated, progress, .. } = self;
        let (deflated, inflated) = (deflated.len(), progress.message.len());
        let mut text = formatter.debug_struct("Inflating");
        text.field("deflated", &deflated).field("inflated", &inflated).finish_non_exhaustive()
    }
}

/// How far a message is inflated.
#[derive(Default)]
struct Progress {
    // Bytes of the message, then of END, that were taken.
    taken: usize,
    message: Vec<u8>,
}

impl Inflater {
    /// Inflates a message of these bytes, all its fragments together, up to
    /// [`INFLATED_PER_CALL`]. No more memory is taken than for `bytes_max` bytes, whatever they
    /// would become.
    ///
    /// # Errors
    /// The message is longer than `bytes_max`, or not whole blocks of DEFLATE.
    pub fn inflate(&mut self, deflated: &[u8], bytes_max: usize) -> Result<Inflated, Violation> {
        // RFC 7692, section 7.2.3.6, wants one zero byte; some send nothing.
        if deflated.is_empty() {
            return Ok(Inflated::Whole(Vec::new()));
        }
        let mut inflate = self.idle.take().unwrap_or_else(|| Box::new(Inflate::new(false, 15)));
        inflate.reset(false);
        let mut progress = Progress::default();
        match self.advance(&mut inflate, deflated, &mut progress, bytes_max) {
            Ok(false) => {
                let deflated = deflated.to_vec();
                Ok(Inflated::Unfinished(Box::new(Inflating { inflate, deflated, progress })))
            }
            ended => {
                self.idle = Some(inflate);
                ended.map(|_| Inflated::Whole(progress.message))
            }
        }
    }

    /// Goes on with a message that one call was not enough for.
    ///
    /// # Errors
    /// As for [`Self::inflate`].
    pub fn resume(
        &mut self,
        mut inflating: Box<Inflating>,
        bytes_max: usize,
    ) -> Result<Inflated, Violation> {
        let Inflating { inflate, deflated, progress } = &mut *inflating;
        if !self.advance(inflate, deflated, progress, bytes_max)? {
            return Ok(Inflated::Unfinished(inflating));
        }
        let Inflating { inflate, progress, .. } = *inflating;
        self.idle = Some(inflate);
        Ok(Inflated::Whole(progress.message))
    }

    /// Inflates up to [`INFLATED_PER_CALL`] more bytes; true when the message is whole.
    fn advance(
        &mut self,
        inflate: &mut Inflate,
        deflated: &[u8],
        progress: &mut Progress,
        bytes_max: usize,
    ) -> Result<bool, Violation> {
        self.piece.resize(PIECE_BYTES, 0);
        let until = progress.message.len() + INFLATED_PER_CALL;
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
                // Ours, or one of the sender's, which may use final blocks too (section 7.2.3.4),
                // with a byte behind the last for the mark to go on from, or without.
                if is_at_end {
                    return Ok(true);
                }
                inflate.reset(false);
            } else if progress.taken == deflated.len() + END.len() && piece.is_empty() {
                return Err(Violation::BadDeflate);
            }
            // A piece that is not full is the last, or nearly.
            if piece.len() == PIECE_BYTES && progress.message.len() > until {
                break;
            }
        }
        Ok(false)
    }
}

/// The most bytes of a compressed message that are collected: what does not repeat becomes longer,
/// by up to an eighth in fixed codes, and each block has a head.
pub fn deflated_bytes_max(message_bytes_max: usize) -> usize {
    message_bytes_max + message_bytes_max / 7 + 64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(offers: &str) -> Option<String> {
        let offers = Extension::list(offers.as_bytes()).flatten();
        Agreement::of(offers).map(|agreement| agreement.to_string())
    }

    #[test]
    fn the_first_offer_that_can_be_kept_is_taken() {
        let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let small = format!("{plain}; server_max_window_bits=9");
        let large = format!("{plain}; server_max_window_bits=15");
        let table = [
            ("permessage-deflate", Some(plain)),
            (" permessage-deflate ;\tclient_max_window_bits ", Some(plain)),
            ("permessage-deflate; client_max_window_bits=\"8\"", Some(plain)),
            (
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
                Some(plain),
            ),
            ("permessage-deflate; server_max_window_bits=15", Some(&large)),
            ("permessage-deflate; server_max_window_bits = \"14\"", Some(&small)),
            ("permessage-deflate; server_max_window_bits=9", Some(&small)),
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate", Some(plain)),
            (
                "x-webkit-deflate-frame, permessage-deflate; unknown, permessage-deflate",
                Some(plain),
            ),
            ("permessage-deflate; server_max_window_bits=8", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_max_window_bits=010", None),
            ("permessage-deflate; server_max_window_bits=\"10", None),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; client_max_window_bits=7", None),
            ("permessage-deflate; client_max_window_bits=", None),
            ("permessage-deflate; client_max_window_bits; client_max_window_bits=10", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
            ("permessage-deflate; unknown", None),
            ("permessage-deflate;", None),
            ("Permessage", None),
            ("", None),
        ];
        for (offers, expected) in table {
            assert_eq!(answer(offers).as_deref(), expected, "{offers}");
        }
    }

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
        let mut inflated = inflater.inflate(deflated, bytes_max)?;
        let mut length = 0;
        loop {
            match inflated {
                Inflated::Whole(message) => return Ok(message),
                Inflated::Unfinished(inflating) => {
                    let now = inflating.progress.message.len();
                    assert!((1..=INFLATED_PER_CALL + PIECE_BYTES).contains(&(now - length)));
                    length = now;
                    inflated = inflater.resume(inflating, bytes_max)?;
                }
            }
        }
    }

    /// What another implementation makes of it.
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
            .map(|message| match inflater.inflate(&deflate(message), 1 << 20) {
                Ok(Inflated::Unfinished(inflating)) => inflating,
                other => panic!("whole at once: {other:?}"),
            })
            .collect();
        let mut whole = Vec::new();
        while !open.is_empty() {
            assert_eq!(inflate(&mut inflater, &deflate(&vec![9; 100]), 100), Ok(vec![9; 100]));
            open = open
                .drain(..)
                .filter_map(|inflating| match inflater.resume(inflating, 1 << 20) {
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
        let block = miniz_oxide::deflate::compress_to_vec(b"a", 6);
        let deflated = [block.repeat(1000), vec![0]].concat();
        assert!(matches!(inflater.inflate(&deflated, 1000), Ok(Inflated::Unfinished(_))));
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
}
