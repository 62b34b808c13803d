//! Definitions of keys. [`section!`] takes one definition per key and makes of it
//!
//! - a field of a struct, with the key's documentation,
//! - the code that reads the key, checks it and falls back to its default,
//! - a [`Key`], from which the reference page and the sample file are written.

/// The keys and tables that one table of the configuration may hold.
#[derive(Clone, Debug)]
pub(super) struct Definition {
    /// The purpose of the table, in Markdown on one line.
    pub doc: String,
    /// The keys with values.
    pub keys: Vec<Key>,
    /// The tables inside the table.
    pub tables: Vec<SubTable>,
}

/// A key with a value.
#[derive(Clone, Debug)]
pub(super) struct Key {
    /// The name, as it is written.
    pub name: &'static str,
    /// The values that are allowed, in words.
    pub expected: String,
    /// The value when the key is not written.
    pub fallback: Fallback,
    /// The purpose of the key, in Markdown on one line.
    pub doc: String,
    /// Whether a change takes effect only when the node starts again.
    pub needs_restart: bool,
    /// Whether no message shows the value.
    pub is_secret: bool,
    /// Whether the value is the path of a file that the node reads.
    pub is_file: bool,
}

/// The value of a key that is not written. An example is TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fallback {
    /// A fixed value, as TOML.
    Value(String),
    /// A value that depends on other keys or on the machine, as `words` describe it.
    Derived {
        /// In words, in Markdown.
        words: &'static str,
        /// A value that one may write.
        example: &'static str,
    },
    /// Nothing: the key has to be written.
    Required {
        /// A value that one may write.
        example: &'static str,
    },
}

/// A table inside a table.
#[derive(Clone, Debug)]
pub(super) struct SubTable {
    /// The name, as it is written.
    pub name: &'static str,
    /// How often the table may be written.
    pub form: Form,
    /// The purpose of the table, in Markdown on one line.
    pub doc: String,
    /// The keys and tables that the table may hold.
    pub definition: Definition,
    /// Whether the table can be added or removed only when the node starts again.
    pub needs_restart: bool,
}

/// How often a table may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Once. A table that is not written has the defaults of its keys.
    One,
    /// Once. Without the table, what it describes does not exist.
    Optional,
    /// Any number of times: `[[name]]`. The first key of the definition tells one table from another.
    Many,
}

impl Form {
    /// How the table at `path` begins.
    pub(super) fn header(self, path: &str) -> String {
        match self {
            Self::One | Self::Optional => format!("[{path}]"),
            Self::Many => format!("[[{path}]]"),
        }
    }
}

impl SubTable {
    /// A table. Without documentation of its own, it has that of its definition.
    pub(super) fn new(
        name: &'static str,
        form: Form,
        doc: &[&str],
        definition: Definition,
    ) -> Self {
        let doc = if doc.is_empty() { definition.doc.clone() } else { one_line(doc) };
        Self { name, form, doc, definition, needs_restart: false }
    }

    /// The table, which may need a restart to appear or disappear.
    pub(super) fn needing_restart(self, needs_restart: bool) -> Self {
        Self { needs_restart, ..self }
    }
}

impl Definition {
    /// The keys that a variable can set, each with the path of its table: those of tables that are not
    /// in lists.
    pub(super) fn single_keys(&self) -> Vec<(String, &'static str)> {
        let mut keys = Vec::new();
        self.collect_single_keys("", &mut keys);
        keys
    }

    fn collect_single_keys(&self, path: &str, keys: &mut Vec<(String, &'static str)>) {
        keys.extend(self.keys.iter().map(|key| (path.to_owned(), key.name)));
        for table in self.tables.iter().filter(|table| table.form != Form::Many) {
            table.definition.collect_single_keys(&joined(path, table.name), keys);
        }
    }
}

/// The whole name of what is called `name` in the table at `path`.
pub(super) fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The name of a key, from that of its field: keywords of Rust have a mark there.
pub(super) fn written_name(field: &'static str) -> &'static str {
    field.strip_prefix("r#").unwrap_or(field)
}

/// The lines of a doc comment as one.
pub(super) fn one_line(lines: &[&str]) -> String {
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    lines.join(" ").trim().to_owned()
}

/// Defines a struct, one field per key or table, with `Struct::read_keys` and `Struct::definition`.
///
/// ```text
/// section! {
///     /// What the section is for.
///     pub struct Name(section, context: &Context) {
///         /// What the key is for.
///         key: Type = shape, fallback;
///         /// What the key is for.
///         other_key: Type = shape, fallback, restart;
///     }
///     tables {
///         /// What the table is for. Without this, the page has the documentation of `Inner`.
///         field as "table": Type = expression that reads it, Form(Inner::definition);
///         /// What the table is for.
///         other as "other": Type = expression that reads it, Form(Inner::definition), restart;
///     }
/// }
/// ```
///
/// A shape is a [`ValueShape`](super::shape::ValueShape). What holds when the key is not written is one of
///
/// - `value(EXPRESSION)`: a constant;
/// - `derived(EXPRESSION, "in words", "example")`: a value that depends on keys that were read before;
/// - `none("in words", "example")`: `None`, for a key whose type is an `Option`;
/// - `required("who needs it", "example")`: an error.
///
/// `restart` marks keys that cannot change while the node runs, and tables that cannot appear or disappear
/// meanwhile. Expressions may name the section, the
/// context and the fields before theirs.
macro_rules! section {
    (
        $(#[$($meta:tt)*])*
        $vis:vis struct $name:ident ($section:ident $(, $context:ident: $context_type:ty)*) {
            $(
                $(#[doc = $doc:literal])*
                $key:ident: $type:ty = $shape:expr, $fallback:ident($($argument:tt)*)
                $(, $restart:ident)?;
            )*
        }
        $(tables {
            $(
                $(#[doc = $table_doc:literal])*
                $table:ident as $table_name:literal: $table_type:ty = $read:expr,
                $form:ident($definition:path)
                $(, $table_restart:ident)?;
            )*
        })?
    ) => {
        $(#[$($meta)*])*
        $vis struct $name {
            $($(#[doc = $doc])* pub $key: $type,)*
            $($(
                #[doc = concat!("The table `", $table_name, "`.\n\n")]
                $(#[doc = $table_doc])*
                pub $table: $table_type,
            )*)?
        }

        impl $name {
            /// Reads the section, and refuses keys that it does not have.
            fn read_keys(
                $section: &$crate::config::document::Section<'_>
                $(, $context: $context_type)*
            ) -> Result<Self, $crate::config::ConfigError> {
                $section.refuse_unknown(&[$($crate::config::definition::written_name(stringify!($key)),)* $($($table_name,)*)?])?;
                $(
                    let found = $crate::config::shape::ValueShape::read(
                        &$shape, $section, $crate::config::definition::written_name(stringify!($key)),
                    )?;
                    let $key: $type = $crate::config::definition::section!(
                        @read found, $section, $key, $fallback($($argument)*)
                    );
                )*
                $($(let $table: $table_type = $read;)*)?
                Ok(Self { $($key,)* $($($table,)*)? })
            }

            /// Returns the keys and tables that the section may hold.
            pub(in $crate::config) fn definition() -> $crate::config::definition::Definition {
                $crate::config::definition::Definition {
                    doc: $crate::config::definition::one_line(&[
                        $($crate::config::definition::section!(@doc $($meta)*)),*
                    ]),
                    keys: vec![$({
                        let (expected, fallback, [is_secret, is_file]) = $crate::config::definition::section!(
                            @describe $type, $shape, $fallback($($argument)*)
                        );
                        $crate::config::definition::Key {
                            name: $crate::config::definition::written_name(stringify!($key)),
                            expected,
                            fallback,
                            doc: $crate::config::definition::one_line(&[$($doc),*]),
                            needs_restart: [$(stringify!($restart))?].contains(&"restart"),
                            is_secret,
                            is_file,
                        }
                    },)*],
                    tables: vec![$($($crate::config::definition::SubTable::new(
                        $table_name,
                        $crate::config::definition::Form::$form,
                        &[$($table_doc),*],
                        $definition(),
                    ).needing_restart([$(stringify!($table_restart))?].contains(&"restart")),)*)?],
                }
            }
        }
    };

    (@doc doc = $doc:literal) => { $doc };
    (@doc $($other:tt)*) => { "" };

    (@read $found:ident, $section:ident, $key:ident, value($default:expr)) => {
        $found.unwrap_or_else(|| $default)
    };
    (@read $found:ident, $section:ident, $key:ident,
        derived($default:expr, $words:literal, $example:literal)) => {
        $found.unwrap_or_else(|| $default)
    };
    (@read $found:ident, $section:ident, $key:ident, none($words:literal, $example:literal)) => {
        $found
    };
    (@read $found:ident, $section:ident, $key:ident, required($who:literal, $example:literal)) => {
        $found.ok_or_else(|| {
            $section.fault(&[$crate::config::definition::written_name(stringify!($key))], concat!("missing; ", $who))
        })?
    };

    (@describe $type:ty, $shape:expr, value($default:expr)) => {{
        let (shape, default): (_, $type) = ($shape, $default);
        let fallback = $crate::config::shape::Literal::literal(&shape, &default);
        (
            $crate::config::shape::ValueShape::expected(&shape),
            $crate::config::definition::Fallback::Value(fallback),
            [$crate::config::shape::is_secret(&shape), $crate::config::shape::is_file(&shape)],
        )
    }};
    (@describe $type:ty, $shape:expr,
        derived($default:expr, $words:literal, $example:literal)) => {(
        $crate::config::shape::expected_of::<$type, _>(&$shape),
        $crate::config::definition::Fallback::Derived { words: $words, example: $example },
        [$crate::config::shape::is_secret(&$shape), $crate::config::shape::is_file(&$shape)],
    )};
    (@describe $type:ty, $shape:expr, none($words:literal, $example:literal)) => {(
        $crate::config::shape::ValueShape::expected(&$shape),
        $crate::config::definition::Fallback::Derived { words: $words, example: $example },
        [$crate::config::shape::is_secret(&$shape), $crate::config::shape::is_file(&$shape)],
    )};
    (@describe $type:ty, $shape:expr, required($who:literal, $example:literal)) => {(
        $crate::config::shape::expected_of::<$type, _>(&$shape),
        $crate::config::definition::Fallback::Required { example: $example },
        [$crate::config::shape::is_secret(&$shape), $crate::config::shape::is_file(&$shape)],
    )};
}

pub(super) use section;
