//! The part of Go's templates that people use with docker: fields, and a few functions of one field.
//!
//! ```text
//! text {{.Field.Inner}} {{json .Field}} {{json .}} {{index .Map "key"}} {{len .List}} {{upper .Field}} {{lower .Field}}
//!      {{join .List ", "}}
//! ```
//! `\t` and `\n` stand for a tab and a line break. Loops and conditions are not there and an error; so is a field that
//! does not exist.

use luna_core::{Error, Kind, Result};
use serde_json::Value;

#[derive(Debug)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Text(String),
    Field { function: Function, path: Vec<String> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Function {
    Show,
    Json,
    Upper,
    Lower,
    Len,
    Index(String),
    Join(String),
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Template> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            let (inside, after) = after
                .split_once("}}")
                .ok_or_else(|| invalid(&text, "a `{{` has no `}}`"))?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(action(&text, inside.trim_matches(['-', ' ']))?);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Template { parts })
    }

    pub(crate) fn render(&self, value: &Value) -> Result<String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Field { function, path } => text.push_str(&apply(function, path, value)?),
            }
        }
        Ok(text)
    }

    /// The line over a table: each field replaced by its heading.
    pub(crate) fn headings(&self, heading: impl Fn(&str) -> String) -> String {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Text(plain) => plain.clone(),
                Part::Field { path, .. } => heading(&path.join(".")),
            })
            .collect()
    }
}

fn invalid(text: &str, because: impl Into<String>) -> Error {
    Error::new(
        Kind::InvalidInput,
        format!("cannot read the template `{}`", text.escape_debug()),
    )
    .because(because.into())
    .hint("write fields as `{{.Field}}` or `{{json .Field}}`; `--json` shows which there are")
}

/// What stands between the braces.
fn action(text: &str, inside: &str) -> Result<Part> {
    let words = words(inside).ok_or_else(|| invalid(text, "a quotation mark has no partner"))?;
    let path = |word: &str| -> Result<Vec<String>> {
        let path = word.strip_prefix('.').ok_or_else(|| {
            invalid(
                text,
                format!("`{}` is no field: fields begin with a dot", word.escape_debug()),
            )
        })?;
        Ok(path
            .split('.')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect())
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (function, field) = match words.as_slice() {
        [field] | ["println" | "print", field] => (Function::Show, *field),
        ["json", field] => (Function::Json, *field),
        ["upper", field] => (Function::Upper, *field),
        ["lower", field] => (Function::Lower, *field),
        ["len", field] => (Function::Len, *field),
        ["index", field, key] => (Function::Index((*key).to_owned()), *field),
        ["join", field, between] => (Function::Join((*between).to_owned()), *field),
        _ => {
            return Err(invalid(
                text,
                format!("`{{{{{}}}}}` is not supported", inside.escape_debug()),
            ));
        }
    };
    Ok(Part::Field {
        function,
        path: path(field)?,
    })
}

/// Splits at spaces; quoted words may hold some.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    Some(words)
}

fn apply(function: &Function, path: &[String], value: &Value) -> Result<String> {
    let mut here = value;
    for (depth, name) in path.iter().enumerate() {
        here = here.get(name).ok_or_else(|| {
            let known = match here {
                Value::Object(fields) => fields.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
                _ => "nothing".to_owned(),
            };
            Error::new(
                Kind::InvalidInput,
                format!("cannot find the field `.{}`", path[..=depth].join(".")),
            )
            .hint(format!("there is {known}"))
        })?;
    }
    Ok(match function {
        Function::Show => show(here),
        Function::Json => here.to_string(),
        Function::Upper => show(here).to_uppercase(),
        Function::Lower => show(here).to_lowercase(),
        Function::Len => match here {
            Value::Array(items) => items.len().to_string(),
            Value::Object(fields) => fields.len().to_string(),
            Value::String(text) => text.len().to_string(),
            _ => "0".to_owned(),
        },
        Function::Index(key) => {
            let found = match (here, key.parse::<usize>()) {
                (Value::Array(items), Ok(index)) => items.get(index),
                _ => here.get(key),
            };
            found.map(show).unwrap_or_default()
        }
        Function::Join(between) => match here {
            Value::Array(items) => items.iter().map(show).collect::<Vec<_>>().join(between),
            other => show(other),
        },
    })
}

/// A value as text: strings bare, lists and maps in Go's form.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| format!("{name}:{}", show(value)))
                .collect();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn render(template: &str) -> Result<String> {
        let value = json!({
            "ID": "abc", "State": {"Status": "running", "Code": 0}, "List": ["a", "b"], "Labels": {"x.y": "1"}, "No": null
        });
        Template::parse(template)?.render(&value)
    }

    #[test]
    fn what_people_write() {
        for (template, text) in [
            ("plain", "plain"),
            ("{{.ID}}", "abc"),
            ("{{ .State.Status }}/{{.State.Code}}", "running/0"),
            ("{{json .State}}", r#"{"Code":0,"Status":"running"}"#),
            ("{{json .List}}", r#"["a","b"]"#),
            ("{{.List}} {{len .List}}", "[a b] 2"),
            ("{{join .List \", \"}}", "a, b"),
            ("{{index .Labels \"x.y\"}}", "1"),
            ("{{index .List 1}}", "b"),
            ("{{upper .ID}}\\t{{.No}}", "ABC\t<no value>"),
        ] {
            assert_eq!(render(template).unwrap(), text, "{template}");
        }
        for bad in [
            "{{.ID",
            "{{.Nope}}",
            "{{range .List}}",
            "{{if .ID}}x{{end}}",
            "{{ID}}",
            "{{index .Labels \"x}}",
        ] {
            assert!(render(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(template in "[{}. a-z\"\\\\-]{0,40}") {
            let _ = render(&template);
        }
    }
}
