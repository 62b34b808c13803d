//! Finds the empty line that ends a head or the trailers, and refuses bytes that no line may contain.

use std::mem;

use memchr::memchr;

use super::{HttpError, RequestLimits};

/// The scan position in a head or trailer section. Each byte is scanned once, however the section is
/// split into reads. An invalid byte is refused when it arrives, before the section is complete.
#[derive(Debug)]
pub(super) struct LineScan {
    // bytes <= RequestLimits::head_bytes
    bytes: usize,
    headers: usize,
    expects: Expects,
    line_is_empty: bool,
    after_carriage_return: bool,
}

/// The kind of the current line.
#[derive(Debug)]
enum Expects {
    /// The request line, or one empty line before it: old clients send one after a body, and RFC 9112,
    /// section 2.2, asks servers to ignore it.
    RequestLineOrEmpty,
    RequestLine,
    HeaderOrEnd,
}

impl LineScan {
    pub(super) const fn head() -> Self {
        Self::starting_with(Expects::RequestLineOrEmpty)
    }

    pub(super) const fn trailers() -> Self {
        Self::starting_with(Expects::HeaderOrEnd)
    }

    const fn starting_with(expects: Expects) -> Self {
        Self { bytes: 0, headers: 0, expects, line_is_empty: true, after_carriage_return: false }
    }

    /// Scans more bytes. Returns how many of them belong to the section, once its end is among them.
    pub(super) fn feed(
        &mut self,
        fresh: &[u8],
        limits: &RequestLimits,
    ) -> Result<Option<usize>, HttpError> {
        let room = limits.head_bytes.saturating_sub(self.bytes);
        let fresh = &fresh[..fresh.len().min(room)];
        let end = self.scan(fresh, limits.headers.min(RequestLimits::HEADERS_MAX))?;
        if end.is_none() && fresh.len() == room {
            return Err(self.too_large());
        }
        self.bytes += fresh.len();
        Ok(end)
    }

    fn scan(&mut self, fresh: &[u8], headers_max: usize) -> Result<Option<usize>, HttpError> {
        let mut at = 0;
        while at < fresh.len() {
            if self.after_carriage_return {
                if fresh[at] != b'\n' {
                    return Err(HttpError::BareCarriageReturn);
                }
                at += 1;
                self.after_carriage_return = false;
                if self.end_line(headers_max)? {
                    return Ok(Some(at));
                }
            } else {
                let carriage_return = memchr(b'\r', &fresh[at..]);
                let line_end = carriage_return.map_or(fresh.len(), |offset| at + offset);
                refuse_control_bytes(&fresh[at..line_end])?;
                self.line_is_empty &= at == line_end;
                self.after_carriage_return = carriage_return.is_some();
                at = line_end + usize::from(self.after_carriage_return);
            }
        }
        Ok(None)
    }

    /// Returns the error for a section that does not end within the limit.
    fn too_large(&self) -> HttpError {
        match self.expects {
            Expects::RequestLineOrEmpty | Expects::RequestLine => HttpError::RequestLineTooLong,
            Expects::HeaderOrEnd => HttpError::HeadTooLarge,
        }
    }

    /// Handles the end of a line. Returns whether it ended the section.
    fn end_line(&mut self, headers_max: usize) -> Result<bool, HttpError> {
        let empty = mem::replace(&mut self.line_is_empty, true);
        match (&self.expects, empty) {
            (Expects::HeaderOrEnd, true) => return Ok(true),
            (Expects::HeaderOrEnd, false) => self.headers += 1,
            (Expects::RequestLineOrEmpty, true) => self.expects = Expects::RequestLine,
            (Expects::RequestLine, true) => return Err(HttpError::EmptyLines),
            (_, false) => self.expects = Expects::HeaderOrEnd,
        }
        if self.headers > headers_max {
            return Err(HttpError::TooManyHeaders);
        }
        Ok(false)
    }
}

pub(super) fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}

/// Whether a part of a line contains a control byte.
pub(super) fn has_control(text: &[u8]) -> bool {
    // No early exit, so the compiler can vectorise the loop.
    text.iter().fold(false, |found, &byte| found | is_control(byte))
}

/// Refuses control bytes in a part of a line. `text` must not contain CR.
fn refuse_control_bytes(text: &[u8]) -> Result<(), HttpError> {
    if !has_control(text) {
        return Ok(());
    }
    match text.iter().find(|&&byte| is_control(byte)) {
        Some(b'\n') => Err(HttpError::BareLineFeed),
        _ => Err(HttpError::ControlByte),
    }
}
