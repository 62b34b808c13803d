//! The part of JSON Schema that the two documents use.

use std::fs;
use std::path::Path;

use serde_json::Value;

pub struct Document(Value);

/// Keywords that say nothing of a value's form, or what schemathesis checks.
const SKIPPED: [&str; 9] = [
    "description",
    "default",
    "title",
    "pattern",
    "maxLength",
    "minLength",
    "propertyNames",
    "maxProperties",
    "format",
];

impl Document {
    pub fn read(file: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = fs::read_to_string(path).expect("the document is there");
        Self(serde_json::from_str(&text).expect("it is JSON"))
    }

    /// Returns the value at a JSON pointer.
    #[track_caller]
    pub fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or_else(|| panic!("there is no {pointer}"))
    }

    pub fn schema(&self, name: &str) -> &Value {
        self.at(&format!("/components/schemas/{name}"))
    }

    /// Returns the schemas of integers that a schema is made of.
    pub fn integers<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        let parts: Vec<&Value> = match schema {
            Value::Array(items) => items.iter().collect(),
            Value::Object(keywords) => {
                let target = keywords.get("$ref").and_then(Value::as_str);
                let target = target.and_then(|text| text.strip_prefix('#')).map(|at| self.at(at));
                keywords.values().chain(target).collect()
            }
            _ => Vec::new(),
        };
        let is_integer = match &schema["type"] {
            Value::Array(types) => types.iter().any(|one| one == "integer"),
            one => one == "integer",
        };
        let of_parts = parts.into_iter().flat_map(|part| self.integers(part));
        is_integer.then_some(schema).into_iter().chain(of_parts).collect()
    }

    /// Whether a value is of a schema's form; why not.
    pub fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let Some(keywords) = schema.as_object() else { return Ok(()) };
        for (keyword, rule) in keywords {
            let is_right = match &keyword[..] {
                "$ref" => {
                    let pointer = rule.as_str().and_then(|text| text.strip_prefix('#'));
                    self.check(self.at(pointer.expect("a reference into the document")), value)?;
                    true
                }
                "type" => match rule {
                    Value::Array(types) => types.iter().any(|one| is_of(one, value)),
                    one => is_of(one, value),
                },
                "enum" => rule.as_array().expect("a list").contains(value),
                "const" => rule == value,
                "oneOf" => self.fitting(rule, value) == 1,
                "anyOf" => self.fitting(rule, value) > 0,
                "required" => {
                    let fields = rule.as_array().expect("a list").iter();
                    let mut fields = fields.filter_map(Value::as_str);
                    !value.is_object() || fields.all(|field| value.get(field).is_some())
                }
                "properties" | "additionalProperties" => {
                    self.check_fields(keywords.get("properties"), schema, value)?;
                    true
                }
                "items" => self.check_all(value, |_| Some(rule))?,
                "prefixItems" => self.check_all(value, |at| rule.get(at))?,
                "minItems" => length(value).is_none_or(|length| length >= number(rule)),
                "maxItems" => length(value).is_none_or(|length| length <= number(rule)),
                "minimum" => value.as_f64().is_none_or(|value| value >= number(rule)),
                "maximum" => value.as_f64().is_none_or(|value| value <= number(rule)),
                known if SKIPPED.contains(&known) => true,
                unknown => panic!("the keyword {unknown} is not known here"),
            };
            if !is_right {
                return Err(format!("{keyword} {rule} does not hold of {value}"));
            }
        }
        Ok(())
    }

    fn fitting(&self, schemas: &Value, value: &Value) -> usize {
        let schemas = schemas.as_array().expect("a list").iter();
        schemas.filter(|schema| self.check(schema, value).is_ok()).count()
    }

    fn check_fields(
        &self,
        known: Option<&Value>,
        schema: &Value,
        value: &Value,
    ) -> Result<(), String> {
        let Some(fields) = value.as_object() else { return Ok(()) };
        for (name, field) in fields {
            match (known.and_then(|known| known.get(name)), &schema["additionalProperties"]) {
                (Some(schema), _) => self.check(schema, field)?,
                (None, Value::Bool(false)) => return Err(format!("the field {name} is unknown")),
                (None, further) => self.check(further, field)?,
            }
        }
        Ok(())
    }

    fn check_all<'a>(
        &self,
        value: &Value,
        schema: impl Fn(usize) -> Option<&'a Value>,
    ) -> Result<bool, String> {
        for (at, item) in value.as_array().into_iter().flatten().enumerate() {
            if let Some(schema) = schema(at) {
                self.check(schema, item)?;
            }
        }
        Ok(true)
    }

    pub fn check_references(&self) {
        self.check_references_in(&self.0);
    }

    fn check_references_in(&self, value: &Value) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, field)| match field.as_str() {
                Some(target) if name == "$ref" => {
                    self.at(target.strip_prefix('#').expect("a reference into the document"));
                }
                _ => self.check_references_in(field),
            }),
            Value::Array(items) => items.iter().for_each(|item| self.check_references_in(item)),
            _ => {}
        }
    }
}

fn is_of(name: &Value, value: &Value) -> bool {
    match name.as_str().expect("the name of a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type is called {other}"),
    }
}

fn length(value: &Value) -> Option<f64> {
    value.as_array().map(|items| items.len() as f64)
}

fn number(rule: &Value) -> f64 {
    rule.as_f64().expect("a number")
}

#[test]
fn values_of_another_form_are_refused() {
    let document = super::async_api();
    let refused = [
        ("Done", serde_json::json!({ "s": false })),
        ("Done", serde_json::json!({ "s": true, "x": 1 })),
        ("Published", serde_json::json!({ "s": 1 })),
        ("Frame", serde_json::json!({ "type": "blob", "data": "", "finish": true })),
        ("Popped", serde_json::json!({ "n": 1024, "c": "1", "t": "x", "d": {} })),
        ("Call", serde_json::json!({ "c": "1", "f": "subscribe", "a": [] })),
    ];
    for (schema, value) in refused {
        assert!(document.check(document.schema(schema), &value).is_err(), "{schema} {value}");
    }
}
