//! docs/vm-matrix.md: what works with which VM.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tests::tools::run;

use super::examine::{COLUMNS, Examined};
use super::forms::Form;
use super::record::{Record, Release};

const BEGIN: &str = "<!-- The rows below are written by `make vm-matrix`. -->";
const MEASURED: &str = "Measured with ";

/// The page, in parts: what people wrote, what the table was made with, and the table.
struct Page {
    head: String,
    versions: String,
    table: String,
}

impl Page {
    fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vm-matrix.md")
    }

    fn read() -> Self {
        let text = std::fs::read_to_string(Self::path()).unwrap();
        let (head, written) = text.split_once(BEGIN).unwrap();
        let (measured, table) = written.split_once("\n## ").unwrap();
        let versions = measured.lines().find_map(|line| line.strip_prefix(MEASURED)?.strip_suffix('.')).unwrap();
        Self { head: head.to_owned(), versions: versions.to_owned(), table: format!("\n## {table}") }
    }

    fn text(&self) -> String {
        let Self { head, versions, table } = self;
        let elsewhere: String = Record::all().iter().map(|record| record.beside(table)).collect();
        format!("{head}{BEGIN}\n\n{MEASURED}{versions}.\n{elsewhere}{table}")
    }

    fn write(&self) {
        std::fs::write(Self::path(), self.text()).unwrap();
    }
}

fn is_to_be_written() -> bool {
    std::env::var("VM_MATRIX").is_ok_and(|value| value == "write")
}

/// A row of the table.
pub fn row(form: &Form, examined: &Examined) -> String {
    let cells: Vec<String> = examined.cells.iter().map(ToString::to_string).collect();
    format!("| {} | {} |", form.name, cells.join(" | "))
}

/// The whole table, with a heading for each group.
fn whole(forms: &[Form], examined: &[Examined]) -> String {
    let mut text = String::new();
    let mut group = "";
    for (form, examined) in forms.iter().zip(examined) {
        if form.group != group {
            group = form.group;
            let _ = write!(
                text,
                "\n## {group}\n\n| VM | {} |\n|---|{}\n",
                COLUMNS.join(" | "),
                "---|".repeat(COLUMNS.len())
            );
        }
        let _ = writeln!(text, "{}", row(form, examined));
    }
    text
}

/// Fails where a row is not the one on the page, or in the record of the release whose libvirt and QEMU these are. With
/// `VM_MATRIX=write` a whole table replaces that of the page, or that record.
pub fn compare(forms: &[Form], examined: &[Examined], all: bool) {
    let (page, release) = (Page::read(), Release::of_environment());
    if all && is_to_be_written() {
        match release {
            Some(release) => {
                Record::new(release, versions(), forms, examined).write();
                page.write();
            }
            None => Page { versions: versions(), table: whole(forms, examined), ..page }.write(),
        }
        return;
    }
    let recorded = release.and_then(|release| Record::read(&release));
    let known = recorded.map_or(page.table, |record| record.rows.join("\n"));
    let differ: Vec<String> = forms
        .iter()
        .zip(examined)
        .map(|(form, examined)| row(form, examined))
        .filter(|row| !known.contains(row.as_str()))
        .collect();
    assert!(
        differ.is_empty(),
        "docs/vm-matrix.md says otherwise (`make vm-matrix` writes it anew):\n{}",
        differ.join("\n")
    );
}

/// What the test runs with.
pub fn versions() -> String {
    let first = |program: &str| {
        let said = run(std::process::Command::new(program).arg("--version")).unwrap_or_default();
        said.lines().next().unwrap_or_default().to_owned()
    };
    format!("{} and {}", first("libvirtd"), first("qemu-system-x86_64"))
}

#[test]
fn the_page_tells_of_each_record() {
    let page = Page::read();
    if is_to_be_written() {
        page.write();
    }
    assert_eq!(std::fs::read_to_string(Page::path()).unwrap(), page.text());
}
