//! Finds pings and close frames of a paused WebSocket connection, behind data frames that are not
//! processed yet. Frame headers are not masked, so their lengths are enough to skip from one to the
//! next.

use super::assembler::parse_close;
use super::close::Closed;
use super::frame::{Head, Opcode, Violation};
use super::mask::unmask;

/// The scan position in the unread bytes of a paused connection.
#[derive(Debug)]
pub struct ControlScanner {
    // Bytes scanned so far: headers and payloads of data frames.
    at: usize,
    // Payload bytes of the current data frame that have not arrived yet.
    skip: u64,
    // Scanning ended at a close frame that was left in place, or at an invalid frame.
    is_over: bool,
    // A close frame was taken out. Bytes after it are dropped.
    is_closed: bool,
}

/// The control frames that a scan found and removed from the unread bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ControlFrames {
    /// The payload of the last ping. One pong answers all pings before it (RFC 6455, section 5.5.3).
    pub ping: Option<Vec<u8>>,
    /// The peer's close frame. Bytes after it were dropped.
    pub close: Option<Result<Closed, Violation>>,
}

impl ControlScanner {
    /// Creates a scanner for unread bytes whose first `frame_left` bytes belong to a data frame that
    /// was partly read before.
    pub fn new(frame_left: u64) -> Self {
        Self { at: 0, skip: frame_left, is_over: false, is_closed: false }
    }

    /// Notes that `count` bytes were removed from the front. Returns `None` if some of them had not been
    /// scanned: the scanner then no longer knows where frames begin.
    pub fn forget(mut self, count: usize) -> Option<Self> {
        self.at = self.at.checked_sub(count)?;
        Some(self)
    }

    /// Scans the bytes that were appended since the last call. Removes complete control frames from
    /// `bytes` and leaves data frames in place. A close frame is removed only if `takes_close`.
    pub fn scan(
        &mut self,
        bytes: &mut Vec<u8>,
        may_deflate: bool,
        takes_close: bool,
    ) -> ControlFrames {
        let mut found = ControlFrames::default();
        // at <= read: the bytes between them were removed.
        let mut read = self.at;
        if self.is_closed {
            bytes.truncate(self.at);
        }
        while !self.is_over && !self.is_closed {
            let passed = self.skip.min((bytes.len() - read) as u64) as usize;
            if read > self.at {
                bytes.copy_within(read..read + passed, self.at);
            }
            (self.at, read, self.skip) =
                (self.at + passed, read + passed, self.skip - passed as u64);
            if self.skip > 0 {
                break;
            }
            let head = match Head::parse(&bytes[read..], may_deflate) {
                Ok(Some(head)) => head,
                Ok(None) => break,
                Err(_) => {
                    // The assembler reports the violation when it gets here, after the frames before.
                    self.is_over = true;
                    break;
                }
            };
            if !head.opcode.is_control() {
                self.skip = head.size as u64 + head.length;
                continue;
            }
            let end = read + head.size + head.length as usize;
            let Some(payload) = bytes.get_mut(read + head.size..end) else { break };
            match head.opcode {
                Opcode::Close if takes_close => {
                    unmask(payload, head.mask, 0);
                    found.close = Some(parse_close(payload));
                    self.is_closed = true;
                    read = bytes.len();
                }
                Opcode::Close => self.is_over = true,
                Opcode::Ping => {
                    unmask(payload, head.mask, 0);
                    found.ping = Some(payload.to_vec());
                    read = end;
                }
                _ => read = end,
            }
        }
        bytes.drain(self.at..read);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes a masked frame whose first byte is `first`. The payload looks like frames.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match u8::try_from(payload.len()) {
            Ok(length @ 0..=125) => out.push(0x80 | length),
            _ => {
                out.push(0xFE);
                out.extend((payload.len() as u16).to_be_bytes());
            }
        }
        let mask = [0x89, 0x80, 7, 0x88];
        out.extend(mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        out
    }

    fn data() -> Vec<Vec<u8>> {
        let like_frames = [0x89, 0x80, 1, 2, 3, 4].repeat(50);
        vec![frame(0x81, b"a"), frame(0x02, &like_frames), frame(0x80, b""), frame(0x82, &[0; 200])]
    }

    /// Scans pieces as they come: what was heard, and what is left.
    fn scan(pieces: &[&[u8]], takes_close: bool) -> (Vec<ControlFrames>, Vec<u8>) {
        let (mut scanner, mut bytes, mut all) = (ControlScanner::new(0), Vec::new(), Vec::new());
        for piece in pieces {
            bytes.extend_from_slice(piece);
            let heard = scanner.scan(&mut bytes, false, takes_close);
            if heard != ControlFrames::default() {
                all.push(heard);
            }
        }
        (all, bytes)
    }

    fn closed(code: u16) -> Option<Result<Closed, Violation>> {
        Some(Ok(Closed { code: Some(code), reason: "bye".into() }))
    }

    #[test]
    fn control_frames_are_found_at_every_split_and_data_stays_as_it_is() {
        let close = frame(0x88, &[&4001u16.to_be_bytes()[..], b"bye"].concat());
        let [one, two, three, four] = &data()[..] else { panic!("four frames") };
        let (ping, pong) = (frame(0x89, b"are you there"), frame(0x8A, b"yes"));
        let all = [one, &ping, two, &pong, three, four, &close, one].map(|part| &part[..]).concat();
        let left = data().concat();
        for at in 0..=all.len() {
            let (heard, bytes) = scan(&[&all[..at], &all[at..]], true);
            let pings: Vec<_> = heard.iter().filter_map(|heard| heard.ping.as_deref()).collect();
            assert_eq!(pings, [b"are you there"], "{at}");
            assert_eq!(heard.last().unwrap().close, closed(4001), "{at}");
            assert_eq!(bytes, left, "{at}");
        }
        let single: Vec<&[u8]> = all.chunks(1).collect();
        assert_eq!(scan(&single, true).1, left);
    }

    #[test]
    fn the_last_ping_of_many_is_answered() {
        let pings: Vec<u8> = (0..9).flat_map(|number| frame(0x89, &[number])).collect();
        let (heard, bytes) = scan(&[&pings], true);
        assert_eq!(heard, [ControlFrames { ping: Some(vec![8]), close: None }]);
        assert_eq!(bytes, b"");
    }

    #[test]
    fn what_is_no_frame_and_a_close_frame_that_is_not_wanted_stay_with_all_behind_them() {
        let behind = frame(0x89, b"?");
        for (first, takes_close) in [(frame(0x88, b""), false), (vec![0xFF], true)] {
            let all = [frame(0x81, b"a"), first, behind.clone()].concat();
            assert_eq!(
                scan(&[&all, &behind], takes_close),
                (Vec::new(), [all, behind.clone()].concat())
            );
        }
    }

    #[test]
    fn a_close_frame_that_is_wrong_is_told() {
        let (heard, _) = scan(&[&frame(0x88, b"x")], true);
        assert_eq!(heard[0].close, Some(Err(Violation::BadClose)));
    }

    #[test]
    fn scanning_begins_within_a_frame_and_goes_on_while_the_front_is_read() {
        let like_a_ping = frame(0x89, b"no");
        let mut scanner = ControlScanner::new(like_a_ping.len() as u64 + 1);
        let mut bytes = [&like_a_ping[..], b"x", &frame(0x81, b"data")].concat();
        assert_eq!(scanner.scan(&mut bytes, false, true), ControlFrames::default());
        bytes.drain(..like_a_ping.len() + 1);
        let mut scanner = scanner.forget(like_a_ping.len() + 1).expect("all of it was scanned");
        bytes.extend(frame(0x89, b"yes"));
        assert_eq!(scanner.scan(&mut bytes, false, true).ping.as_deref(), Some(&b"yes"[..]));
        assert_eq!(bytes, frame(0x81, b"data"));
        assert!(scanner.forget(bytes.len() + 1).is_none());
    }
}
