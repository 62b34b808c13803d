//! The reference page: every key with its values, default and documentation, as Markdown.

use super::Config;
use super::definition::{Definition, Fallback, Form, Key, SubTable, joined};
use super::document::variable_name;

/// The page `docs/operating/configuration.md`.
pub fn reference_page() -> String {
    let mut page = include_str!("reference.md").to_owned();
    put_tables(&mut page, "", &Config::definition(), true);
    page
}

/// Puts a chapter for each table. Those of tables in lists cannot be set by variables.
fn put_tables(page: &mut String, path: &str, definition: &Definition, is_single: bool) {
    for table in &definition.tables {
        let path = joined(path, table.name);
        let is_single = is_single && table.form != Form::Many;
        put_table(page, &path, table, is_single);
        put_tables(page, &path, &table.definition, is_single);
    }
}

fn put_table(page: &mut String, path: &str, table: &SubTable, is_single: bool) {
    let heading = format!("\n## `{}`\n\n{}\n", table.form.header(path), table.doc);
    page.push_str(&heading);
    match table.form {
        Form::One => {}
        Form::Optional => page.push_str("May be left out.\n"),
        Form::Many => page.push_str("May be written any number of times.\n"),
    }
    page.push_str(&match table.definition.keys.first().filter(|_| is_single) {
        Some(key) => {
            let variable = variable_name(path, key.name);
            format!("The variable for `{path}.{}` is `{variable}`.\n", key.name)
        }
        None => "Variables cannot set its keys.\n".to_owned(),
    });
    page.push_str("\n| key | default | values | what it is for |\n|---|---|---|---|\n");
    table.definition.keys.iter().for_each(|key| page.push_str(&row(key)));
}

fn row(key: &Key) -> String {
    let default = match &key.fallback {
        Fallback::Value(default) => format!("`{default}`"),
        Fallback::Derived { words, .. } => (*words).to_owned(),
        Fallback::Required { .. } => "required".to_owned(),
    };
    let doc = match key.needs_restart {
        true => format!("{} *Needs a restart.*", key.doc),
        false => key.doc.clone(),
    };
    let cells = [&format!("`{}`", key.name), &default, &key.expected, &doc];
    format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
}
