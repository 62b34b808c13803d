//! Standard output and standard error of the commands, and what a terminal is asked.
//!
//! Unlike the log of a node, a command waits for whoever reads its output. If the reader is gone, the
//! command ends.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anstream::{AutoStream, ColorChoice};

use super::failure::Failure;
use super::units;

/// The bytes that are written at a time.
const BUFFER_BYTES: usize = 64 * 1024;

/// The time between two changes of a progress line.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

/// Whether text is emphasised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Coloured,
}

impl Style {
    /// The style of standard output: coloured on a terminal, unless NO_COLOR or another such variable says
    /// otherwise.
    pub(super) fn of_output() -> Self {
        match AutoStream::choice(&io::stdout()) {
            ColorChoice::Never => Self::Plain,
            _ => Self::Coloured,
        }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Coloured => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        }
    }
}

/// Buffered standard output.
#[derive(Debug)]
pub(super) struct Output {
    out: BufWriter<Stdout>,
    pub(super) is_terminal: bool,
}

impl Output {
    pub(super) fn new() -> Self {
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        Self { out: BufWriter::with_capacity(BUFFER_BYTES, out), is_terminal }
    }

    /// Writes text, which may wait in the buffer.
    pub(super) fn write(&mut self, text: &str) -> Result<(), Failure> {
        self.out.write_all(text.as_bytes()).map_err(|error| Failure::of_output(&error))
    }

    /// Writes one line of JSON. On a terminal the characters that could control it are escaped, which
    /// leaves the value the same.
    pub(super) fn json(&mut self, text: &str) -> Result<(), Failure> {
        match self.is_terminal {
            true => self.write(&escape_json(text))?,
            false => self.write(text)?,
        }
        self.write("\n")
    }

    /// Writes out what waits in the buffer.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|error| Failure::of_output(&error))
    }
}

/// Escapes characters of JSON that could deceive. They are in strings; control characters are also in the
/// white space between values.
fn escape_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' | '\t' => escaped.push(' '),
            c if is_deceptive(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    escaped.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// Replaces deceptive characters by escapes, so that text from elsewhere can neither control the terminal nor
/// show itself in another order.
pub(super) fn printable(text: &str) -> String {
    if !text.chars().any(is_deceptive) {
        return text.to_owned();
    }
    let escape = |c: char| match is_deceptive(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Whether a character could make a terminal show something else than the text: control characters, those
/// that end a line or change the direction of text, and those that are not shown at all. The joiners of
/// Indic scripts and emoji are harmless.
fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Writes a remark to standard error. A remark that cannot be written does not matter.
pub(super) fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "gridcast: {text}");
}

/// A line on standard error that shows how far a command is. Shown only on a terminal.
#[derive(Debug)]
pub(super) struct ProgressLine {
    is_shown: bool,
    // The text behind the number: what is counted.
    noun: &'static str,
    last: Option<SystemTime>,
}

impl ProgressLine {
    /// Creates a progress line, which counts `noun`. Not shown where `is_silent`: the output would tear
    /// it apart.
    pub(super) fn new(noun: &'static str, is_silent: bool) -> Self {
        Self { is_shown: !is_silent && io::stderr().is_terminal(), noun, last: None }
    }

    /// Shows a number, unless another one was shown a moment ago.
    pub(super) fn show(&mut self, number: u64) {
        let now = SystemTime::now();
        let elapsed = self.last.map(|last| now.duration_since(last).unwrap_or(PROGRESS_PERIOD));
        if self.is_shown && elapsed.is_none_or(|elapsed| elapsed >= PROGRESS_PERIOD) {
            self.last = Some(now);
            let _ = write!(io::stderr(), "\r\u{1b}[K{} {}…", units::count(number), self.noun);
        }
    }
}

impl Drop for ProgressLine {
    /// Removes the line.
    fn drop(&mut self) {
        if self.last.is_some() {
            let _ = write!(io::stderr(), "\r\u{1b}[K");
        }
    }
}

/// Asks for a password on the terminal without showing it.
///
/// # Errors
/// There is no terminal, in words that say what to do.
pub(super) fn ask_password(prompt: &str) -> Result<String, String> {
    if !io::stdin().is_terminal() {
        return Err("there is no terminal to ask for the password".into());
    }
    rpassword::prompt_password(prompt).map_err(|error| error.to_string())
}

/// Returns the time in Unix milliseconds.
pub(super) fn unix_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| elapsed.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_escapes() {
        assert_eq!(printable("a\u{1b}[2J\nb\u{9b}"), "a\\u{1b}[2J\\nb\\u{9b}");
        assert_eq!(printable("Füße"), "Füße");
    }

    #[test]
    fn text_can_neither_change_its_direction_nor_hide() {
        let hidden = ["\u{202e}", "\u{2066}", "\u{200f}", "\u{2028}", "\u{feff}", "\u{e0041}"];
        for hidden in hidden {
            let text = format!("a{hidden}b");
            let escape = hidden.escape_unicode().to_string();
            assert_eq!(printable(&text), format!("a{escape}b"));
            let json = format!("\"{text}\"");
            let escaped = escape_json(&json);
            assert!(!escaped.contains(hidden), "{escaped}");
            assert_eq!(serde_json::from_str::<String>(&escaped).expect("JSON"), text);
        }
        assert_eq!(printable("👩\u{200d}🔧"), "👩\u{200d}🔧");
    }

    #[test]
    fn escaped_json_is_the_same_value() {
        let text = "{\"a\":\t\"\u{7f}\u{9b}ü\"}";
        let escaped = escape_json(text);
        assert!(!escaped.chars().any(char::is_control), "{escaped}");
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(value(&escaped), value(text));
    }

    #[test]
    fn plain_text_has_no_codes() {
        assert_eq!(Style::Plain.red("no"), "no");
        assert_eq!(Style::Coloured.red("no"), "\u{1b}[31mno\u{1b}[0m");
    }
}
