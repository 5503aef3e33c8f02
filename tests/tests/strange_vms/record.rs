//! What came of it with libvirt and QEMU of other releases of Debian (`make vm-matrix DEBIAN=…`): a record for each, in
//! tests/vm-matrix. The page tells in what these differ from its table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::examine::{COLUMNS, Examined};
use super::forms::Form;
use super::table::row;

const VERSIONS: &str = "versions: ";
const MISSING: &str = "missing packages: ";
const VIOLATED: &str = "violated: ";

/// A release of Debian other than this host's, such as `13-backports`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release(String);

impl Release {
    /// The one in whose root this runs, by `DEBIAN`.
    pub fn of_environment() -> Option<Self> {
        std::env::var("DEBIAN").ok().filter(|name| !name.is_empty()).map(Self)
    }

    fn directory() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("vm-matrix")
    }

    fn path(&self) -> PathBuf {
        Self::directory().join(format!("debian-{}.txt", self.0))
    }
}

/// What came of a run of all forms.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    release: Release,
    versions: String,
    /// Packages that the forms need and that release does not have, with spaces between.
    missing: String,
    /// Forms with a violation.
    violated: Vec<String>,
    /// As they would be in the table.
    pub rows: Vec<String>,
}

impl Record {
    /// That of a run which has just ended.
    pub fn new(release: Release, versions: String, forms: &[Form], examined: &[Examined]) -> Self {
        let both = || forms.iter().zip(examined);
        Self {
            release,
            versions,
            missing: std::env::var("MISSING_PACKAGES").unwrap_or_default(),
            violated: both()
                .filter(|(_, it)| !it.violations.is_empty())
                .map(|(form, _)| form.name.to_owned())
                .collect(),
            rows: both().map(|(form, examined)| row(form, examined)).collect(),
        }
    }

    /// The one that was written for a release.
    pub fn read(release: &Release) -> Option<Self> {
        std::fs::read_to_string(release.path()).ok().map(|text| Self::parse(release.clone(), &text))
    }

    /// Those of all releases, in their order.
    pub fn all() -> Vec<Self> {
        let names =
            std::fs::read_dir(Release::directory()).into_iter().flatten().flatten().map(|file| file.file_name());
        let mut releases: Vec<String> = names
            .filter_map(|name| Some(name.to_str()?.strip_prefix("debian-")?.strip_suffix(".txt")?.to_owned()))
            .collect();
        releases.sort();
        releases.into_iter().filter_map(|name| Self::read(&Release(name))).collect()
    }

    /// Keeps it, in place of a former one of its release.
    pub fn write(&self) {
        std::fs::create_dir_all(Release::directory()).unwrap();
        std::fs::write(self.release.path(), self.text()).unwrap();
    }

    fn text(&self) -> String {
        let mut text = format!("{VERSIONS}{}\n", self.versions);
        if !self.missing.is_empty() {
            let _ = writeln!(text, "{MISSING}{}", self.missing);
        }
        self.violated.iter().for_each(|form| text.push_str(&format!("{VIOLATED}{form}\n")));
        text + &self.rows.join("\n") + "\n"
    }

    fn parse(release: Release, text: &str) -> Self {
        let all = |prefix| text.lines().filter_map(move |line| line.strip_prefix(prefix)).map(str::to_owned);
        Self {
            release,
            versions: all(VERSIONS).collect(),
            missing: all(MISSING).collect(),
            violated: all(VIOLATED).collect(),
            rows: text.lines().filter(|line| line.starts_with('|')).map(str::to_owned).collect(),
        }
    }

    /// A paragraph: what it was run with, and each cell that is not as in this table.
    pub fn beside(&self, table: &str) -> String {
        let here: BTreeMap<&str, Vec<&str>> = table.lines().filter_map(cells).collect();
        let mut differ = Vec::new();
        for (form, there) in self.rows.iter().filter_map(|row| cells(row)) {
            let Some(here) = here.get(form) else {
                differ.push(format!("{form}: not in the table"));
                continue;
            };
            let unlike = COLUMNS.iter().zip(here.iter().zip(&there)).filter(|(_, (here, there))| here != there);
            differ.extend(
                unlike.map(|(column, (here, there))| format!("{form}, {column}: {there}, in the table {here}")),
            );
        }
        let Self { release: Release(release), versions, missing, violated, rows } = self;
        let mut text = format!("\nDebian {release}, with {versions}: {} forms", rows.len());
        if !missing.is_empty() {
            let _ = write!(text, ", without its missing packages {missing}");
        }
        let _ = write!(text, ", violations: {}", violated.len());
        if !violated.is_empty() {
            let _ = write!(text, " ({})", violated.join("; "));
        }
        let _ = writeln!(text, ", cells unlike those of the table: {}.", differ.len());
        text.push_str(if differ.is_empty() { "" } else { "\n" });
        text.extend(differ.iter().map(|it| format!("- {it}\n")));
        text
    }
}

/// The form of a row, and its cells; none of other lines.
fn cells(line: &str) -> Option<(&str, Vec<&str>)> {
    let mut parts = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
    Some((parts.next()?, parts.collect()))
}

#[test]
fn a_record_is_read_as_it_was_written_and_tells_what_differs() {
    let row = |form: &str, first: &str| format!("| {form} | {first}{} |", " | yes".repeat(COLUMNS.len() - 1));
    let record = Record {
        release: Release("13".to_owned()),
        versions: "libvirtd 1 and QEMU 2".to_owned(),
        missing: "ovmf".to_owned(),
        violated: vec!["b".to_owned()],
        rows: vec![row("a", "yes"), row("b", "-"), row("c", "yes")],
    };
    assert_eq!(Record::parse(record.release.clone(), &record.text()), record);
    let table = format!("\n## Group\n\n{}\n{}\n", row("a", "yes"), row("b", "`REASON`"));
    assert_eq!(
        record.beside(&table),
        "\nDebian 13, with libvirtd 1 and QEMU 2: 3 forms, without its missing packages ovmf, violations: 1 (b), \
         cells unlike those of the table: 2.\n\n- b, create, off: -, in the table `REASON`\n- c: not in the table\n"
    );
    let same = Record { missing: String::new(), violated: Vec::new(), rows: vec![row("a", "yes")], ..record };
    assert!(same.beside(&table).ends_with(": 1 forms, violations: 0, cells unlike those of the table: 0.\n"));
}
