//! The configuration as written: TOML text and variables, each value with the place it came from.

use std::fmt::{self, Display};

use toml::de::{DeTable, DeValue};

use super::Format;
use super::client_variables;
use super::definition::joined;

/// Longest list, of values or of tables. No one writes more by hand; a generator that does has a fault.
const LIST_MAX: usize = 1024;

/// Longest rendering of a refused value or name, in characters, so that a message stays short.
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

    /// The same error, of a configuration whose log has this format.
    pub(super) fn in_format(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// The format of the log in the refused configuration; text if that could not be read.
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

/// One file's text, parsed, and the variables that override it.
pub(super) struct Document<'a> {
    name: &'a str,
    text: &'a str,
    root: DeTable<'a>,
    variables: Vec<Variable<'a>>,
    available: &'a [usize],
}

/// A variable that sets a key. Which of its two readings counts depends on the type of the key.
struct Variable<'a> {
    name: &'a str,
    /// The path of the key's table.
    path: String,
    key: &'static str,
    /// For keys whose type is string.
    text: &'a str,
    /// For the others.
    value: DeValue<'a>,
}

impl<'a> Document<'a> {
    /// Parses `text`, which messages call `name`, and those variables that begin with `GRIDCAST_`.
    /// A variable can set one of `keys`, each of which comes with the path of its table; one that sets
    /// none of them is refused. They are asked for only if there is a variable. `available` are the CPUs
    /// that the process may use.
    pub(super) fn parse(
        text: &'a str,
        name: &'a str,
        environment: &'a [(String, String)],
        keys: impl FnOnce() -> Vec<(String, &'static str)>,
        available: &'a [usize],
    ) -> Result<Self, ConfigError> {
        let root = DeTable::parse(text).map_err(|error| {
            let line = line_of(text, error.span().map_or(0, |span| span.start));
            let reason = error.message().replace('\n', " ");
            ConfigError::new(format!("{name}:{line}"), format!("not TOML: {reason}"))
        })?;
        let variables = variables(environment, keys)?;
        Ok(Self { name, text, root: root.into_inner(), variables, available })
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
    keys: impl FnOnce() -> Vec<(String, &'static str)>,
) -> Result<Vec<Variable<'a>>, ConfigError> {
    let is_key = |name: &str| name.starts_with(PREFIX) && !client_variables::ALL.contains(&name);
    let mut ours = environment.iter().filter(|(name, _)| is_key(name)).peekable();
    if ours.peek().is_none() {
        return Ok(Vec::new());
    }
    let keys = keys();
    let name_of = |(path, key): &(String, &str)| variable_name(path, key);
    let known: Vec<String> = keys.iter().map(name_of).collect();
    let mut variables = Vec::new();
    for (name, text) in ours {
        let Some(at) = known.iter().position(|known| known == name) else {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let reason = format!("unknown variable; {}", suggestion(name, &known));
            return Err(ConfigError::new(cut(name.escape_debug().to_string()), reason));
        };
        let (path, key) = keys[at].clone();
        variables.push(Variable { name, path, key, text, value: variable_value(text) });
    }
    Ok(variables)
}

/// The variable that sets a key of the table at `path`.
pub(super) fn variable_name(path: &str, key: &str) -> String {
    format!("{PREFIX}{path}_{key}").replace('.', "_").to_uppercase()
}

/// `2` and `["a"]` are TOML; what is not TOML stands for the string that it would be in quotes.
fn variable_value(text: &str) -> DeValue<'_> {
    DeValue::parse(text).map_or_else(|_| DeValue::String(text.into()), |value| value.into_inner())
}

/// One table of a [`Document`]. Every method that takes a key gives back what is written for it, by a
/// variable or else by the file, or says where that is and why it is wrong.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    /// Keys from the root, with dots between them.
    path: String,
    /// `None`: the section is not written.
    line: Option<usize>,
    table: Option<&'a DeTable<'a>>,
}

impl<'a> Section<'a> {
    /// The CPUs that the process may use.
    pub(super) fn available_cpus(&self) -> &'a [usize] {
        self.document.available
    }

    /// Refuses the keys that are not `known`, the first as the file goes.
    pub(super) fn refuse_unknown(&self, known: &[&str]) -> Result<(), ConfigError> {
        let keys = self.table.into_iter().flat_map(|table| table.keys());
        let unknown = keys.filter(|key| !known.contains(&key.get_ref().as_ref()));
        match unknown.min_by_key(|key| key.span().start) {
            None => Ok(()),
            Some(key) => {
                let reason = format!("unknown key; {}", suggestion(key.get_ref(), known));
                Err(self.fault(&[key.get_ref()], reason))
            }
        }
    }

    /// Whether the file has the table, even an empty one, or a variable sets a key of the table or of a
    /// table inside it.
    pub(super) fn is_written(&self) -> bool {
        let is_in_table = |path: &str| {
            path.strip_prefix(&self.path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let mut variables = self.document.variables.iter();
        self.table.is_some() || variables.any(|variable| is_in_table(&variable.path))
    }

    /// Refuses `key`, for a reason better than that it is unknown.
    pub(super) fn without(&self, key: &str, reason: &str) -> Result<(), ConfigError> {
        match self.find(key) {
            None => Ok(()),
            Some(_) => Err(self.fault(&[key], reason)),
        }
    }

    /// The table at `key`; one that is not written is empty.
    pub(super) fn table(&self, key: &str) -> Result<Self, ConfigError> {
        let empty =
            Section { document: self.document, path: self.path_of(key), line: None, table: None };
        let expected = format!("one table, [{}]", empty.path);
        let table = self.read(key, &expected, |value| value.as_table())?;
        Ok(Section { line: self.line_of(key), table, ..empty })
    }

    /// The tables in the list at `key`.
    pub(super) fn tables(&self, key: &str) -> Result<Vec<Self>, ConfigError> {
        let path = self.path_of(key);
        let expected = format!("at most {LIST_MAX} tables, [[{path}]]");
        let tables = self.read(key, &expected, |value| {
            let section = |item: &'a toml::Spanned<DeValue<'a>>| {
                Some(Section {
                    document: self.document,
                    path: path.clone(),
                    line: Some(line_of(self.document.text, item.span().start)),
                    table: Some(item.get_ref().as_table()?),
                })
            };
            items_of(value)?.iter().map(section).collect()
        })?;
        Ok(tables.unwrap_or_default())
    }

    /// The items of the list of strings at `key`; `None` if nothing is written there.
    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<&'a DeValue<'a>>>, ConfigError> {
        let expected = format!("a list of at most {LIST_MAX} strings");
        self.read(key, &expected, |value| {
            Some(items_of(value)?.iter().map(|item| item.get_ref()).collect())
        })
    }

    /// Converts the value at `key` with `convert`; `None` if nothing is written there. A value that
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

    /// Converts the string at `key` with `convert`, as [`Self::read`] does. The text of a variable is
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

    /// An error about `value`, which is written at `key` and is not what was `expected`.
    pub(super) fn mismatch(&self, key: &str, expected: &str, value: &DeValue<'_>) -> ConfigError {
        self.fault(&[key], format!("expected {expected}, found {}", shown(value)))
    }

    /// The value at `key`, if one is written.
    pub(super) fn find(&self, key: &str) -> Option<&'a DeValue<'a>> {
        let variable = self.variable(key).map(|variable| &variable.value);
        variable.or_else(|| Some(self.table?.get(key)?.get_ref()))
    }

    fn variable(&self, key: &str) -> Option<&'a Variable<'a>> {
        let mut variables = self.document.variables.iter();
        variables.find(|variable| variable.key == key && variable.path == self.path)
    }

    fn line_of(&self, key: &str) -> Option<usize> {
        let (key, _) = self.table?.get_key_value(key)?;
        Some(line_of(self.document.text, key.span().start))
    }

    fn path_of(&self, key: &str) -> String {
        joined(&self.path, &cut(key.escape_debug().to_string()))
    }
}

/// The items of a list that is not too long.
fn items_of<'a>(value: &'a DeValue<'a>) -> Option<&'a [toml::Spanned<DeValue<'a>>]> {
    value.as_array().filter(|items| items.len() <= LIST_MAX).map(|items| &items[..])
}

/// The integer that `value` is, if `T` can hold it.
pub(super) fn whole_number<T: TryFrom<i64>>(value: &DeValue<'_>) -> Option<T> {
    let integer = value.as_integer()?;
    T::try_from(i64::from_str_radix(integer.as_str(), integer.radix()).ok()?).ok()
}

/// `value` as one would write it, on one line and cut to a length.
fn shown(value: &DeValue<'_>) -> String {
    cut(literal(value))
}

/// `value` as one would write it, on one line.
pub(super) fn literal(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(integer) => integer.to_string(),
        DeValue::Float(float) => float.to_string(),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| literal(item.get_ref())).collect();
            format!("[{}]", items.join(", "))
        }
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// The text, cut to the length that a message shows.
pub(super) fn cut(text: String) -> String {
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

#[cfg(test)]
mod tests;
