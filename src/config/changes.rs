//! The differences between two configurations: what a reload changed, and what only a restart can
//! change.

use std::collections::BTreeMap;
use std::fmt;

use super::definition::{Definition, Fallback, Form, Key, SubTable, joined};
use super::document::{ConfigError, Section, cut, literal, whole_number};
use super::file::Contents;

/// The settings of a configuration by their paths, such as `limits.ping_ms` and
/// `edge["0.0.0.0:6790"].route["/ws"].topic`. Settings whose default is not a constant are absent where
/// they are not written.
#[derive(Clone, Default)]
pub struct WrittenSettings(BTreeMap<String, Setting>);

/// One setting.
#[derive(Clone, PartialEq, Eq)]
struct Setting {
    value: SettingValue,
    // If the value is the path of a file.
    contents: Option<Contents>,
    needs_restart: bool,
}

/// The value of a setting as TOML.
#[derive(Clone, PartialEq, Eq)]
enum SettingValue {
    Shown(String),
    Secret(String),
    // The setting is a table that may be absent.
    Table,
}

/// A setting that differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The path of the setting.
    pub path: String,
    /// The difference in words. Shows no secret.
    pub difference: String,
    /// Whether the change takes effect only when the node starts again.
    pub needs_restart: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.difference)
    }
}

impl WrittenSettings {
    /// Collects the settings of a valid document, and what the files hold that it names.
    pub(super) fn collect(
        root: &Section<'_>,
        definition: &Definition,
    ) -> Result<Self, ConfigError> {
        let mut written = Self::default();
        written.put_section("", root, definition)?;
        Ok(written)
    }

    fn put_section(
        &mut self,
        path: &str,
        section: &Section<'_>,
        definition: &Definition,
    ) -> Result<(), ConfigError> {
        for key in &definition.keys {
            let Some(value) = effective(section, key) else { continue };
            let text = section.find(key.name).and_then(|value| value.as_str());
            let contents =
                text.filter(|_| key.is_file).and_then(|file| Contents::read(file.as_ref()));
            let value = if key.is_secret {
                SettingValue::Secret(value)
            } else {
                SettingValue::Shown(value)
            };
            let needs_restart = key.needs_restart;
            self.put(joined(path, key.name), Setting { value, contents, needs_restart });
        }
        for table in &definition.tables {
            self.put_tables(&joined(path, table.name), section, table)?;
        }
        Ok(())
    }

    fn put_tables(
        &mut self,
        path: &str,
        section: &Section<'_>,
        table: &SubTable,
    ) -> Result<(), ConfigError> {
        let sections = match table.form {
            Form::One | Form::Optional => vec![(path.to_owned(), section.table(table.name)?)],
            Form::Many => {
                let sections = section.tables(table.name)?.into_iter();
                let paths = sections.map(|section| {
                    let identity = table.definition.keys.first();
                    let identity = identity.and_then(|key| effective(&section, key));
                    (format!("{path}[{}]", identity.unwrap_or_default()), section)
                });
                numbered(paths.collect())
            }
        };
        for (path, section) in sections {
            if table.form != Form::One {
                if !section.is_written() {
                    continue;
                }
                let (value, needs_restart) = (SettingValue::Table, table.needs_restart);
                self.put(path.clone(), Setting { value, contents: None, needs_restart });
            }
            self.put_section(&path, &section, &table.definition)?;
        }
        Ok(())
    }

    /// Marks a setting as one that needs a restart.
    pub(super) fn fix(&mut self, path: &str) {
        if let Some(setting) = self.0.get_mut(path) {
            setting.needs_restart = true;
        }
    }

    fn put(&mut self, path: String, setting: Setting) {
        self.0.insert(path, setting);
    }

    /// Returns the settings in use after a reload of `new`: those of `new`, except for settings that need a
    /// restart.
    pub fn after_reload(&self, new: &Self) -> Self {
        let mut used = new.clone();
        for Change { path, needs_restart, .. } in self.changes_to(new) {
            if needs_restart {
                used.replace(&path, self);
            }
        }
        used
    }

    /// Replaces a setting, and all settings inside it, by what `other` has.
    fn replace(&mut self, path: &str, other: &Self) {
        let is_inside = |other: &str| is_inside(other, path) || other == path;
        self.0.retain(|path, _| !is_inside(path));
        let kept = other.0.iter().filter(|(path, _)| is_inside(path));
        self.0.extend(kept.map(|(path, setting)| (path.clone(), setting.clone())));
    }

    /// Returns the changes that lead to `new`, in the order of their paths. A table that was added or
    /// removed is one change.
    pub fn changes_to(&self, new: &Self) -> Vec<Change> {
        let mut paths: Vec<&String> = self.0.keys().chain(new.0.keys()).collect();
        paths.sort_unstable();
        paths.dedup();
        let mut changes: Vec<Change> = Vec::new();
        let mut whole_table: Option<&str> = None;
        for path in paths {
            if whole_table.is_some_and(|table| is_inside(path, table)) {
                continue;
            }
            let (before, after) = (self.0.get(path), new.0.get(path));
            let Some(setting) = after.or(before).filter(|_| before != after) else { continue };
            if setting.value == SettingValue::Table {
                whole_table = Some(path);
            }
            changes.push(Change {
                path: path.clone(),
                difference: difference(before, after),
                needs_restart: [before, after].iter().flatten().any(|one| one.needs_restart),
            });
        }
        changes
    }
}

/// Returns the value of a key as TOML: the written one, or a constant default.
fn effective(section: &Section<'_>, key: &Key) -> Option<String> {
    match (section.find(key.name), &key.fallback) {
        // 0x10 and 16 are the same value.
        (Some(value), _) => Some(match whole_number::<i64>(value) {
            Some(number) => number.to_string(),
            None => literal(value),
        }),
        (None, Fallback::Value(default)) => Some(default.clone()),
        (None, _) => None,
    }
}

/// Numbers tables with the same path, such as listeners on port 0, from the second one on.
fn numbered(mut sections: Vec<(String, Section<'_>)>) -> Vec<(String, Section<'_>)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (path, _) in &mut sections {
        let count = counts.entry(path.clone()).or_default();
        *count += 1;
        if *count > 1 {
            *path = format!("{path}[{count}]");
        }
    }
    sections
}

/// Whether a setting belongs to a table.
fn is_inside(path: &str, table: &str) -> bool {
    path.strip_prefix(table).is_some_and(|rest| rest.starts_with(['.', '[']))
}

fn difference(before: Option<&Setting>, after: Option<&Setting>) -> String {
    let value = |setting: Option<&Setting>| setting.map(|setting| setting.value.clone());
    match (value(before), value(after)) {
        (Some(before), Some(after)) if before == after => "the file has changed".to_owned(),
        (None, Some(SettingValue::Table)) => "added".to_owned(),
        (Some(SettingValue::Table), None) => "removed".to_owned(),
        (Some(SettingValue::Shown(before)), Some(SettingValue::Shown(after))) => {
            format!("{} -> {}", cut(before), cut(after))
        }
        (None, Some(SettingValue::Shown(after))) => format!("set to {}", cut(after)),
        (Some(SettingValue::Shown(before)), None) => format!("{} -> not set", cut(before)),
        (None, Some(_)) => "set".to_owned(),
        (Some(_), None) => "no longer set".to_owned(),
        _ => "changed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::document::Document;
    use super::super::tests::Folder;
    use super::super::{Config, DEVELOPMENT};
    use super::*;

    fn written(text: &str) -> WrittenSettings {
        let keys = || Config::definition().single_keys();
        let document = Document::parse(text, "gridcast.toml", &[], keys, &[0, 1]).expect("TOML");
        Config::read_keys(&document.root()).expect("a valid configuration");
        WrittenSettings::collect(&document.root(), &Config::definition())
            .expect("a valid configuration")
    }

    fn changes(before: &str, after: &str) -> Vec<(String, bool)> {
        let changes = written(before).changes_to(&written(after));
        changes.iter().map(|change| (change.to_string(), change.needs_restart)).collect()
    }

    const BEFORE: &str = r#"
        [node]
        id = 7
        drain_s = 10
        [limits]
        ping_ms = 20000
        idle_ms = 50000
        [[api.user]]
        name = "app"
        password = "hushhush"
        [[edge]]
        [[edge.route]]
        path = "/ws"
        subscribe = ["a"]
        [[edge.route]]
        path = "/old"
        messages_per_s = 5
    "#;

    #[test]
    fn equal_configurations_have_no_changes() {
        assert_eq!(changes(BEFORE, BEFORE), []);
        assert_eq!(changes(DEVELOPMENT, DEVELOPMENT), []);
    }

    #[test]
    fn what_needs_a_restart_is_named_again_at_the_next_reload() {
        let after = BEFORE
            .replace("id = 7", "id = 8")
            .replace("ping_ms = 20000", "ping_ms = 20001")
            .replace("[[edge]]", "[[edge]]\nbind = \"127.0.0.1:1\"");
        let (before, after) = (written(BEFORE), written(&after));
        let used = before.after_reload(&after);
        let paths = |changes: Vec<Change>| changes.into_iter().map(|c| c.path).collect::<Vec<_>>();
        let expected = [r#"edge["127.0.0.1:1"]"#, r#"edge["127.0.0.1:6790"]"#, "node.id"];
        assert_eq!(paths(used.changes_to(&after)), expected);
        assert_eq!(paths(before.changes_to(&used)), ["limits.ping_ms"]);
    }

    #[test]
    fn a_changed_file_is_named_by_its_key_without_its_content() {
        let folder = Folder::new();
        let file = |name: &str, text: &str| {
            let path = folder.0.join(name);
            fs::write(&path, text).unwrap();
            format!("{:?}", path.display().to_string())
        };
        let write = |name: &str| {
            let pair = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(["example.org".to_owned()]).unwrap();
            let cert = file(&format!("{name}.pem"), &params.self_signed(&pair).unwrap().pem());
            format!(
                "cert = {cert}\nkey = {}\n",
                file(&format!("{name}.key"), &pair.serialize_pem())
            )
        };
        let secret = file("token", "0123456789abcdef0123456789abcdef");
        let (grid, edge) = (write("grid"), write("edge"));
        let ca = format!("{:?}", folder.0.join("grid.pem").display().to_string());
        let issuer = format!("{{ jwks = \"https://example.org/\", ca = {ca} }}");
        let text = format!(
            "node.id = 1\n[mesh]\nbind = \"127.0.0.1:6788\"\n[mesh.tls]\n{grid}ca = {ca}\n[[edge]]\n[edge.tls]\n{edge}\
             [[edge.route]]\npath = \"/\"\ntoken = {{ algorithm = \"HS256\", key_file = {secret} }}\n\
             [[edge.route]]\npath = \"/ws\"\ntoken = {issuer}\n"
        );
        let before = written(&text);
        assert!(before.changes_to(&written(&text)).is_empty());
        for name in ["grid", "edge"] {
            write(name);
        }
        file("token", "0123456789abcdef0123456789abcdeF");
        let after = written(&text);
        let changes = before.changes_to(&after);
        let changes: Vec<_> =
            changes.iter().map(|change| (change.to_string(), change.needs_restart)).collect();
        let changed =
            |path: &str| (format!("{path}: the file has changed"), path.starts_with("mesh"));
        let edge = "edge[\"127.0.0.1:6790\"]";
        let expected = [
            changed(&format!("{edge}.route[\"/\"].token.key_file")),
            changed(&format!("{edge}.route[\"/ws\"].token.ca")),
            changed(&format!("{edge}.tls.cert")),
            changed(&format!("{edge}.tls.key")),
            changed("mesh.tls.ca"),
            changed("mesh.tls.cert"),
            changed("mesh.tls.key"),
        ];
        assert_eq!(changes, expected);
        // What needs a restart is named again.
        let used = before.after_reload(&after);
        let paths: Vec<_> = used.changes_to(&after).into_iter().map(|change| change.path).collect();
        assert_eq!(paths, ["mesh.tls.ca", "mesh.tls.cert", "mesh.tls.key"]);
    }

    #[test]
    fn each_changed_setting_is_named_without_secrets() {
        let after = r#"
            [node]
            id = 8
            drain_s = 20
            [limits]
            ping_ms = 0x4E20
            answer_ms = 700
            [[api.user]]
            name = "ops"
            token = "sesame"
            [[api.user]]
            name = "app"
            password = "hushhushhush"
            [[edge]]
            bind = "127.0.0.1:6791"
            [[edge.route]]
            path = "/"
            [[edge]]
            bind = "127.0.0.1:6790"
            [[edge.route]]
            path = "/new"
            messages_per_s = 9
            [[edge.route]]
            path = "/ws"
            subscribe = ["a", "b"]
        "#;
        let edge = r#"edge["127.0.0.1:6790"]"#;
        let expected = [
            (r#"api.user["app"].password: changed"#.to_owned(), false),
            (r#"api.user["ops"]: added"#.to_owned(), false),
            (format!(r#"{edge}.route["/new"]: added"#), false),
            (format!(r#"{edge}.route["/old"]: removed"#), false),
            (format!(r#"{edge}.route["/ws"].subscribe: ["a"] -> ["a", "b"]"#), false),
            (r#"edge["127.0.0.1:6791"]: added"#.to_owned(), true),
            ("limits.answer_ms: 1500 -> 700".to_owned(), false),
            ("limits.idle_ms: 50000 -> 60000".to_owned(), false),
            ("node.drain_s: 10 -> 20".to_owned(), false),
            ("node.id: 7 -> 8".to_owned(), true),
        ];
        assert_eq!(changes(BEFORE, after), expected);
    }
}
