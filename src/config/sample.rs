//! The sample file: every key with its documentation, and with the value that it has in a node without a
//! configuration file.

use toml::de::{DeTable, DeValue};

use super::definition::{Definition, Fallback, Form, Key, SubTable, joined};
use super::{Config, DEVELOPMENT};

/// Longest line of a comment, in characters.
const COLUMNS: usize = 100;

const INTRODUCTION: &str = "\
# The configuration of gridcast: every key, with its default.
#
# A line that begins with \"#\" and no space is a setting that is switched off: remove the \"#\" to use it.
# Unchanged, this file has the settings of a node without a file: every listener on loopback, and the
# routes /ws and /echo. `gridcast check --config FILE` checks a file.
";

/// The sample file. A node that reads it runs like one without a file.
pub fn sample_file() -> String {
    let root = DeTable::parse(DEVELOPMENT).expect("the built-in configuration is TOML");
    let mut sample = SampleFile { text: INTRODUCTION.to_owned() };
    sample.put_tables("", &Config::definition(), Some(root.get_ref()), true);
    sample.text
}

struct SampleFile {
    text: String,
}

impl SampleFile {
    /// Puts the tables of a definition. Those that are `written` have the values there. Settings are
    /// comments where the table that they belong to is one.
    fn put_tables(
        &mut self,
        path: &str,
        definition: &Definition,
        written: Option<&DeTable<'_>>,
        is_active: bool,
    ) {
        for table in &definition.tables {
            let path = joined(path, table.name);
            let value = written.and_then(|written| written.get(table.name)).map(|at| at.get_ref());
            let tables: Vec<&DeTable<'_>> = match value {
                Some(DeValue::Table(table)) => vec![table],
                Some(DeValue::Array(items)) => {
                    items.iter().filter_map(|item| item.get_ref().as_table()).collect()
                }
                _ => Vec::new(),
            };
            let (first, others) = match tables.split_first() {
                Some((first, others)) => (Some(*first), others),
                None => (None, &[][..]),
            };
            let is_active = is_active && (first.is_some() || table.form == Form::One);
            self.put_table(&path, table, first, is_active);
            for other in others {
                self.put_values(&path, table, other);
            }
        }
    }

    fn put_table(
        &mut self,
        path: &str,
        table: &SubTable,
        written: Option<&DeTable<'_>>,
        is_active: bool,
    ) {
        self.text.push('\n');
        self.put_comment(&without_marks(&table.doc));
        self.put_line(&table.form.header(path), is_active);
        for key in &table.definition.keys {
            self.put_key(key, written, is_active);
        }
        self.put_tables(path, &table.definition, written, is_active);
    }

    fn put_key(&mut self, key: &Key, written: Option<&DeTable<'_>>, is_active: bool) {
        self.text.push('\n');
        self.put_comment(&without_marks(&key.doc));
        self.put_comment(&format!("Expected: {}.", key.expected));
        let written = written.and_then(|written| written.get(key.name)).map(source);
        let (value, is_set) = match (&key.fallback, written) {
            (_, Some(written)) => (written, true),
            (Fallback::Value(default), None) => (&default[..], true),
            (Fallback::Derived { words, example }, None) => {
                self.put_comment(&format!("Default: {}.", without_marks(words)));
                (*example, false)
            }
            (Fallback::Required { example }, None) => (*example, true),
        };
        self.put_line(&format!("{} = {value}", key.name), is_active && is_set);
    }

    /// Puts one more of a list's tables: only what is written.
    fn put_values(&mut self, path: &str, table: &SubTable, written: &DeTable<'_>) {
        self.text.push('\n');
        self.put_line(&table.form.header(path), true);
        for key in &table.definition.keys {
            if let Some(value) = written.get(key.name) {
                self.put_line(&format!("{} = {}", key.name, source(value)), true);
            }
        }
    }

    fn put_line(&mut self, setting: &str, is_active: bool) {
        if !is_active {
            self.text.push('#');
        }
        self.text.push_str(setting);
        self.text.push('\n');
    }

    fn put_comment(&mut self, text: &str) {
        let mut columns = 0;
        for word in text.split(' ') {
            let length = word.chars().count();
            if columns == 0 || columns + 1 + length > COLUMNS {
                if columns > 0 {
                    self.text.push('\n');
                }
                self.text.push('#');
                columns = 1;
            }
            self.text.push(' ');
            self.text.push_str(word);
            columns += 1 + length;
        }
        self.text.push('\n');
    }
}

/// Markdown as plain text.
fn without_marks(text: &str) -> String {
    text.replace('`', "")
}

/// The text of a value in the built-in configuration.
fn source(value: &toml::Spanned<DeValue<'_>>) -> &'static str {
    &DEVELOPMENT[value.span()]
}
