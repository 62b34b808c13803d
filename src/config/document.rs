//! The configuration as written: TOML text and variables, each value with the place it came from.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;

use toml::de::{DeTable, DeValue};

use super::Format;

/// Longest list, of values or of tables: far more than anyone writes, so a slip in a generated file.
const LIST_MAX: usize = 1024;

/// Longest rendering of a refused value or name, in characters: the message stays one line to read.
const SHOWN_CHARS_MAX: usize = 64;

const PREFIX: &str = "GRIDCAST_";

/// Why a configuration was refused, in one line: the place, the key and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    text: String,
    format: Format,
}

impl ConfigError {
    pub(super) fn new(place: impl Display, reason: impl Display) -> Self {
        Self { text: format!("{place}: {reason}"), format: Format::Text }
    }

    /// The same from a configuration whose log is written so.
    pub(super) fn in_format(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// How the refused configuration has its log written, as far as that was right.
    pub fn format(&self) -> Format {
        self.format
    }
}

impl Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl std::error::Error for ConfigError {}

/// A section's name and its keys.
pub(super) type Keys = (&'static str, &'static [&'static str]);

/// One file's text, parsed, and the variables that override it.
pub(super) struct Document<'a> {
    name: &'a str,
    text: &'a str,
    root: DeTable<'a>,
    variables: Vec<Variable<'a>>,
}

/// A variable that sets a key. Which of its two readings counts depends on the type of the key.
struct Variable<'a> {
    name: &'a str,
    /// For keys whose type is string.
    text: &'a str,
    /// For the others.
    value: DeValue<'a>,
}

impl<'a> Document<'a> {
    /// Parses `text`, which messages call `name`, and those variables that begin with `GRIDCAST_`.
    /// A variable can set the keys of `sections`; one that sets none of them is refused.
    pub(super) fn parse(
        text: &'a str,
        name: &'a str,
        environment: &'a [(String, String)],
        sections: &[Keys],
    ) -> Result<Self, ConfigError> {
        let root = DeTable::parse(text).map_err(|error| {
            let line = line_of(text, error.span().map_or(0, |span| span.start));
            let reason = error.message().replace('\n', " ");
            ConfigError::new(format!("{name}:{line}"), format!("not TOML: {reason}"))
        })?;
        Ok(Self {
            name,
            text,
            root: root.into_inner(),
            variables: variables(environment, sections)?,
        })
    }

    /// The whole file as a section without a name.
    pub(super) fn root(&'a self) -> Section<'a> {
        Section { document: self, path: String::new(), line: None, table: Some(&self.root) }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

fn variables<'a>(
    environment: &'a [(String, String)],
    sections: &[Keys],
) -> Result<Vec<Variable<'a>>, ConfigError> {
    let known: Vec<String> = sections
        .iter()
        .flat_map(|(section, keys)| keys.iter().map(|key| variable_name(section, key)))
        .collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let mut variables = Vec::new();
    for (name, text) in environment.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        if !known.contains(&name.as_str()) {
            let reason = format!("unknown variable; {}", suggestion(name, &known));
            return Err(ConfigError::new(cut(name.escape_debug().to_string()), reason));
        }
        variables.push(Variable { name, text, value: variable_value(text) });
    }
    Ok(variables)
}

fn variable_name(section: &str, key: &str) -> String {
    format!("{PREFIX}{section}_{key}").replace('.', "_").to_uppercase()
}

/// `2` and `["a"]` are TOML; what is not TOML stands for the string that it would be in quotes.
fn variable_value(text: &str) -> DeValue<'_> {
    DeValue::parse(text).map_or_else(|_| DeValue::String(text.into()), |value| value.into_inner())
}

/// One table of a [`Document`], whose keys are known. Every method that takes a key gives back what
/// is written for it, by a variable or else by the file, or says where that is and why it is wrong.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    /// Keys from the root, with dots between them.
    path: String,
    /// `None`: the section is not written.
    line: Option<usize>,
    table: Option<&'a DeTable<'a>>,
}

impl<'a> Section<'a> {
    /// Refuses the keys that are not `known`, the first as the file goes.
    pub(super) fn only(self, known: &[&str]) -> Result<Self, ConfigError> {
        let keys = self.table.into_iter().flat_map(|table| table.keys());
        let unknown = keys.filter(|key| !known.contains(&key.get_ref().as_ref()));
        match unknown.min_by_key(|key| key.span().start) {
            None => Ok(self),
            Some(key) => {
                let reason = format!("unknown key; {}", suggestion(key.get_ref(), known));
                Err(self.fault(&[key.get_ref()], reason))
            }
        }
    }

    /// Whether it is in the file, be it empty.
    pub(super) fn is_written(&self) -> bool {
        self.table.is_some()
    }

    /// Refuses `key`, for a reason better than that it is unknown.
    pub(super) fn without(&self, key: &str, reason: &str) -> Result<(), ConfigError> {
        match self.find(key) {
            None => Ok(()),
            Some(_) => Err(self.fault(&[key], reason)),
        }
    }

    /// The table at `key`; one that is not written is empty.
    pub(super) fn table(&self, key: &str) -> Result<Section<'a>, ConfigError> {
        let empty =
            Section { document: self.document, path: self.path_of(key), line: None, table: None };
        let expected = format!("one table, [{}]", empty.path);
        let table = self.read(key, &expected, |value| value.as_table())?;
        Ok(Section { line: self.line_of(key), table, ..empty })
    }

    /// The tables in the list at `key`.
    pub(super) fn tables(&self, key: &str) -> Result<Vec<Section<'a>>, ConfigError> {
        let path = self.path_of(key);
        let expected = format!("at most {LIST_MAX} tables, [[{path}]]");
        let tables = self.read(key, &expected, |value| {
            let items = value.as_array().filter(|items| items.len() <= LIST_MAX)?;
            let section = |item: &'a toml::Spanned<DeValue<'a>>| {
                Some(Section {
                    document: self.document,
                    path: path.clone(),
                    line: Some(line_of(self.document.text, item.span().start)),
                    table: Some(item.get_ref().as_table()?),
                })
            };
            items.iter().map(section).collect()
        })?;
        Ok(tables.unwrap_or_default())
    }

    /// What `convert` makes of the value at `key`; `None` if nothing is written there. A value that
    /// `convert` refuses is not what was `expected`.
    pub(super) fn read<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a DeValue<'a>) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.find(key) else {
            return Ok(None);
        };
        convert(value).map(Some).ok_or_else(|| self.mismatch(key, expected, value))
    }

    /// What `convert` makes of the string at `key`, as [`Self::read`] does. The text of a variable is
    /// taken as it is: `1234567890123456` and `0x1F` are strings there.
    pub(super) fn read_text<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        if let Some(Variable { text, .. }) = self.variable(key) {
            let mismatch = || self.mismatch(key, expected, &DeValue::String((*text).into()));
            return convert(text).map(Some).ok_or_else(mismatch);
        }
        self.read(key, expected, |value| convert(value.as_str()?))
    }

    /// The string at `key`, which no message shows. What is not a string is an empty one.
    pub(super) fn secret(&self, key: &str) -> Option<&'a str> {
        match self.variable(key) {
            Some(variable) => Some(variable.text),
            None => Some(self.find(key)?.as_str().unwrap_or_default()),
        }
    }

    /// A whole number within `bounds`. `unit` follows the word "number": `" of bytes"`, or nothing.
    pub(super) fn whole<T: TryFrom<i64> + PartialOrd + Display>(
        &self,
        key: &str,
        unit: &str,
        bounds: RangeInclusive<T>,
        default: T,
    ) -> Result<T, ConfigError> {
        let expected = format!("a whole number{unit} from {} to {}", bounds.start(), bounds.end());
        let number = self.read(key, &expected, |value| {
            whole_number(value).filter(|number| bounds.contains(number))
        })?;
        Ok(number.unwrap_or(default))
    }

    /// One of a few words, as what it stands for.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        choices: &[(&str, T)],
        default: T,
    ) -> Result<T, ConfigError> {
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        let expected = words.join(" or ");
        let choice = self.read_text(key, &expected, |written| {
            choices.iter().find(|(word, _)| *word == written).map(|(_, choice)| *choice)
        })?;
        Ok(choice.unwrap_or(default))
    }

    /// Yes or no.
    pub(super) fn switch(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        let value = self.read(key, "true or false", |value| value.as_bool())?;
        Ok(value.unwrap_or(default))
    }

    /// A string that is `valid`.
    pub(super) fn text(
        &self,
        key: &str,
        expected: &str,
        valid: fn(&str) -> bool,
    ) -> Result<Option<String>, ConfigError> {
        self.read_text(key, expected, |text| valid(text).then(|| text.to_owned()))
    }

    /// A list of strings, each `valid`; the message shows the one that is not.
    pub(super) fn texts(
        &self,
        key: &str,
        expected: &str,
        valid: fn(&str) -> bool,
    ) -> Result<Option<Vec<String>>, ConfigError> {
        self.texts_as(key, expected, |text| match valid(text) {
            true => Ok(text.to_owned()),
            false => Err(expected.to_owned()),
        })
    }

    /// A list of strings, each as what `convert` makes of it, or tells to have expected.
    pub(super) fn texts_as<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let list = format!("a list of at most {LIST_MAX} strings");
        let items = self
            .read(key, &list, |value| value.as_array().filter(|items| items.len() <= LIST_MAX))?;
        let Some(items) = items else { return Ok(None) };
        let convert = |item: &DeValue| {
            let text = item.as_str().ok_or_else(|| expected.to_owned());
            let converted = text.and_then(&convert);
            converted.map_err(|expected| self.mismatch(key, &expected, item))
        };
        items.iter().map(|item| convert(item.get_ref())).collect::<Result<_, _>>().map(Some)
    }

    /// Whether anything is written at `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// An error about the first of `keys` that is written, or else about the section's first key.
    pub(super) fn fault(&self, keys: &[&str], reason: impl Display) -> ConfigError {
        let written = keys.iter().find(|key| self.find(key).is_some());
        let key = written.or(keys.first()).expect("callers name a key");
        ConfigError::new(self.place(key), reason)
    }

    /// Where `key` is written, and its whole name: `gridcast.toml:12: limits.ping_ms`.
    pub(super) fn place(&self, key: &str) -> String {
        let path = self.path_of(key);
        if let Some(variable) = self.variable(key) {
            return format!("{}: {path}", variable.name);
        }
        match self.line_of(key).or(self.line) {
            Some(line) => format!("{}:{line}: {path}", self.document.name),
            None => format!("{}: {path}", self.document.name),
        }
    }

    fn mismatch(&self, key: &str, expected: &str, value: &DeValue) -> ConfigError {
        self.fault(&[key], format!("expected {expected}, found {}", shown(value)))
    }

    fn find(&self, key: &str) -> Option<&'a DeValue<'a>> {
        let variable = self.variable(key).map(|variable| &variable.value);
        variable.or_else(|| Some(self.table?.get(key)?.get_ref()))
    }

    fn variable(&self, key: &str) -> Option<&'a Variable<'a>> {
        let wanted = variable_name(&self.path, key);
        self.document.variables.iter().find(|variable| variable.name == wanted)
    }

    fn line_of(&self, key: &str) -> Option<usize> {
        let (key, _) = self.table?.get_key_value(key)?;
        Some(line_of(self.document.text, key.span().start))
    }

    fn path_of(&self, key: &str) -> String {
        let key = cut(key.escape_debug().to_string());
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }
}

/// The integer that `value` is, if `T` can hold it.
pub(super) fn whole_number<T: TryFrom<i64>>(value: &DeValue) -> Option<T> {
    let integer = value.as_integer()?;
    T::try_from(i64::from_str_radix(integer.as_str(), integer.radix()).ok()?).ok()
}

/// `value` as one would write it, on one line and cut to a length.
fn shown(value: &DeValue) -> String {
    let text = match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(integer) => integer.to_string(),
        DeValue::Float(float) => float.to_string(),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| shown(item.get_ref())).collect();
            format!("[{}]", items.join(", "))
        }
        DeValue::Table(_) => "a table".to_owned(),
    };
    cut(text)
}

fn cut(text: String) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Names the known word that `word` most resembles, or all of them if it resembles none.
fn suggestion(word: &str, known: &[&str]) -> String {
    let distance = |other: &&&str| strsim::osa_distance(word, other);
    match known.iter().min_by_key(distance) {
        Some(nearest) if distance(&nearest) <= (word.chars().count() / 5).max(1) => {
            format!("did you mean \"{nearest}\"?")
        }
        _ => format!("known are: {}", known.join(", ")),
    }
}
