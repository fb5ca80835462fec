//! Lists: rows that can be a table, JSON or a template's text.

use luna_core::{Error, Kind, Result};
use serde_json::{Map, Value};

use super::{Printer, Template, printable};
use crate::cli::look::ListFlags;

/// A column of the table: its heading and the field it shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column(pub(crate) &'static str, pub(crate) &'static str);

/// How a list was asked for.
#[derive(Clone, Debug)]
pub(crate) struct ListStyle {
    pub(crate) json: bool,
    pub(crate) format: Option<String>,
    /// Print only this field.
    pub(crate) only: Option<&'static str>,
}

impl ListStyle {
    /// A plain table.
    pub(crate) const TABLE: ListStyle = ListStyle {
        json: false,
        format: None,
        only: None,
    };

    pub(crate) fn of(flags: &ListFlags, id: &'static str) -> ListStyle {
        ListStyle {
            json: flags.json,
            format: flags.format.clone(),
            only: flags.quiet.then_some(id),
        }
    }
}

/// Rows with named fields. A row may hold more fields than there are columns.
#[derive(Debug)]
pub(crate) struct List<'a> {
    pub(crate) columns: &'a [Column],
    pub(crate) rows: Vec<Map<String, Value>>,
}

impl List<'_> {
    pub(crate) fn print(self, printer: Printer, style: &ListStyle) -> Result<()> {
        printer.raw(self.text(style)?.as_bytes())
    }

    /// What [`List::print`] prints.
    pub(crate) fn text(self, style: &ListStyle) -> Result<String> {
        if style.json {
            let rows = self.rows.into_iter().map(Value::Object).collect();
            return Ok(format!("{:#}\n", Value::Array(rows)));
        }
        if let Some(field) = style.only {
            return Ok(self.rows.iter().map(|row| cell(row.get(field)) + "\n").collect());
        }
        match style.format.as_deref() {
            None | Some("table" | "") => Ok(self.table()),
            Some("json") => Ok(self
                .rows
                .into_iter()
                .map(|row| Value::Object(row).to_string() + "\n")
                .collect()),
            Some(format) => self.template(format),
        }
    }

    fn table(&self) -> String {
        let headings = self.columns.iter().map(|column| column.0.to_owned()).collect();
        let rows = self.rows.iter().map(|row| {
            self.columns
                .iter()
                .map(|column| cell(row.get(column.1)))
                .collect()
        });
        align(std::iter::once(headings).chain(rows).collect())
    }

    fn template(self, format: &str) -> Result<String> {
        let (format, table) = match format.strip_prefix("table ") {
            Some(rest) => (rest, true),
            None => (format, false),
        };
        let template = Template::parse(format)?;
        let mut lines = Vec::new();
        if table {
            lines.push(template.headings(|field| {
                let known = self.columns.iter().find(|column| column.1 == field);
                known.map_or_else(|| field.to_uppercase(), |column| column.0.to_owned())
            }));
        }
        for row in self.rows {
            lines.push(template.render(&Value::Object(row))?);
        }
        if table {
            return Ok(align(
                lines
                    .iter()
                    .map(|line| line.split('\t').map(str::to_owned).collect())
                    .collect(),
            ));
        }
        Ok(lines.into_iter().map(|line| line + "\n").collect())
    }
}

/// A field as the table shows it.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => printable(text),
        Some(other) => other.to_string(),
    }
}

/// Columns as wide as their widest cell and three spaces apart, as docker has them.
fn align(rows: Vec<Vec<String>>) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (index, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(index) {
                Some(widest) => *widest = (*widest).max(width),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            if index > 0 {
                line.push_str("   ");
            }
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', widths[index] - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `--filter key=value`, checked against the keys there are.
pub(crate) fn filters(texts: &[String], known: &[&str]) -> Result<Vec<(String, String)>> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) if known.contains(&key) => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Error::new(
                Kind::InvalidInput,
                format!("cannot filter by `{}`", text.escape_debug()),
            )
            .hint(format!(
                "write KEY=VALUE with one of the keys {}",
                known.join(", ")
            ))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list() -> List<'static> {
        let row = |id: &str, count: u64| match json!({"ID": id, "Count": count, "More": true}) {
            Value::Object(row) => row,
            _ => unreachable!(),
        };
        List {
            columns: &[Column("IMAGE ID", "ID"), Column("COUNT", "Count")],
            rows: vec![row("a", 1), row("long", 22)],
        }
    }

    fn text(json: bool, format: Option<&str>, only: Option<&'static str>) -> String {
        list()
            .text(&ListStyle {
                json,
                format: format.map(str::to_owned),
                only,
            })
            .unwrap()
    }

    #[test]
    fn one_list_in_every_form() {
        assert_eq!(
            text(false, None, None),
            "IMAGE ID   COUNT\na          1\nlong       22\n"
        );
        assert_eq!(text(false, None, Some("ID")), "a\nlong\n");
        assert_eq!(text(false, Some("{{.ID}}={{.Count}}"), None), "a=1\nlong=22\n");
        assert_eq!(
            text(false, Some("table {{.Count}}\\t{{.ID}}"), None),
            "COUNT   IMAGE ID\n1       a\n22      long\n"
        );
        assert_eq!(text(false, Some("json"), None).lines().count(), 2);
        let all: Value = serde_json::from_str(&text(true, None, None)).unwrap();
        assert_eq!(all[1]["More"], true);
    }
}
