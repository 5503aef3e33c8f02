//! docs/vm-matrix.md: what works with which VM.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tests::tools::run;

use super::examine::{COLUMNS, Examined};
use super::forms::Form;

const BEGIN: &str = "<!-- The rows below are written by `make vm-matrix`. -->";

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vm-matrix.md")
}

fn row(form: &Form, examined: &Examined) -> String {
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

/// Fails where a row is not the one on the page. With `VM_MATRIX=write` a whole table replaces that of the page.
pub fn compare(forms: &[Form], examined: &[Examined], all: bool) {
    let page = page();
    let text = std::fs::read_to_string(&page).unwrap();
    if all && std::env::var("VM_MATRIX").is_ok_and(|value| value == "write") {
        let head = text.split(BEGIN).next().unwrap();
        std::fs::write(&page, format!("{head}{BEGIN}\n{}\n{}", versions(), whole(forms, examined))).unwrap();
        return;
    }
    let differ: Vec<String> = forms
        .iter()
        .zip(examined)
        .map(|(form, examined)| row(form, examined))
        .filter(|row| !text.contains(row.as_str()))
        .collect();
    assert!(
        differ.is_empty(),
        "docs/vm-matrix.md says otherwise (`make vm-matrix` writes it anew):\n{}",
        differ.join("\n")
    );
}

/// What the table was made with.
fn versions() -> String {
    let first = |program: &str| {
        let said = run(std::process::Command::new(program).arg("--version")).unwrap_or_default();
        said.lines().next().unwrap_or_default().to_owned()
    };
    format!("\nMeasured with {} and {}.", first("libvirtd"), first("qemu-system-x86_64"))
}
