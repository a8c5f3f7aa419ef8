//! How rows and objects are shown: tables for people, JSON and YAML for programs.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// What a row of a table is.
pub(super) trait Row: Serialize {
    /// Headers.
    const COLUMNS: &'static [&'static str];

    /// Cells, as many as headers.
    fn cells(&self) -> Vec<String>;
}

/// How to show rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// For both
    Yaml,
}

/// How to show what is no list of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum TextFormat {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Rows on standard output.
pub(super) fn rows<R: Row>(rows: &[R], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Table => line(&table(rows)),
        Format::Json => json(&rows),
        Format::Yaml => Ok(write!(io::stdout().lock(), "{}", serde_yaml::to_string(rows)?)?),
    }
}

/// Rows below their headers, columns three spaces apart, without lines.
pub(super) fn table<R: Row>(rows: &[R]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(R::COLUMNS);
    table.add_rows(rows.iter().map(|row| {
        row.cells().into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }).collect::<Vec<_>>()
    }));
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt()
}

/// An object on standard output.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    line(&text)
}

/// A line on standard output.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// Whether the reader of standard output has left, as `head` does: no failure of ours.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A span as `17s`, `5m`, `3h`, `2d`: the two largest units are enough for people.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// The name of an IP protocol, or its number.
pub(super) fn protocol(number: u8) -> String {
    use shunt_common::net::proto;
    match number {
        proto::ICMP => "ICMP".to_owned(),
        proto::TCP => "TCP".to_owned(),
        proto::UDP => "UDP".to_owned(),
        proto::SCTP => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

/// The name of an interface in this network namespace, or its number.
pub(super) fn interface(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok();
    name.and_then(|name| name.into_string().ok()).unwrap_or_else(|| format!("#{index}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Example(&'static str, &'static str);

    impl Row for Example {
        const COLUMNS: &'static [&'static str] = &["NAME", "COUNT"];

        fn cells(&self) -> Vec<String> {
            vec![self.0.to_owned(), self.1.to_owned()]
        }
    }

    #[test]
    fn tables_are_plain() {
        let text = table(&[Example("a-long-name", "1"), Example("b", "")]);
        assert_eq!(text, "NAME          COUNT\na-long-name   1\nb             -");
        assert_eq!(table::<Example>(&[]), "NAME   COUNT");
    }

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m1s"), (3661, "1h1m"), (90_000, "1d1h")] {
            assert_eq!(span(seconds), text);
        }
    }
}
