//! `scripts/test.sh`, which is `make test`, with programs in the place of cargo, npm and prove that fail in the way that a test wants:
//! that it goes on after failures, lists them all, and looks for what is left, also when it is interrupted.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;
use tests::tools::wait_for;

/// A place with programs, and for what they write.
struct Stage(TempDir);

impl Stage {
    /// `cargo` is what its script says for the words that it gets; npm and prove are the other two.
    fn new(cargo: &str, npm: &str, prove: &str) -> Self {
        let stage = Self(tempfile::tempdir().unwrap());
        for (name, script) in [("cargo", cargo), ("npm", npm), ("prove", prove)] {
            let path = stage.path(name);
            fs::write(
                &path,
                format!("#!/bin/bash\necho \"{name} $*\" >>'{}'\n{script}\n", stage.path("calls").display()),
            )
            .unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self) -> Child {
        let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/test.sh"));
        command.env("PATH", path).env("CARGO_TARGET_DIR", self.path("target")).env("LEFTOVERS_SECONDS", "10");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Whether it ended well, and all that it said.
    fn end(&self, mut child: Child) -> (bool, String) {
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        (child.wait().unwrap().success(), said)
    }

    fn run(&self) -> (bool, String) {
        self.end(self.start())
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }
}

const FAILING: &str = r#"
case "$*" in
  'fmt --all --check') echo 'Diff in a.rs'; exit 1 ;;
  'test --workspace --no-fail-fast')
    printf '     Running unittests src/lib.rs (target/debug/deps/a-1)\ntest one ... ok\ntest two::three ... FAILED\n'
    printf '     Running tests/b.rs (target/debug/deps/b-1)\ntest four ... FAILED\ntest five ... ok\n'
    printf 'error: 2 targets failed:\n    `-p a --lib`\n    `-p b --test b`\n'
    exit 101 ;;
esac"#;

#[test]
fn every_failure_is_listed_at_the_end() {
    let prove = "echo 't/a.t  (Wstat: 256 (exited 1) Tests: 3 Failed: 1)'; exit 1";
    let stage = Stage::new(FAILING, "printf 'ok 1 - a\\nnot ok 2 - the page\\n'; exit 1", prove);
    let (is_well, said) = stage.run();
    assert!(!is_well);
    let (_, list) = said.split_once("make test FAILED:").unwrap();
    let lines: Vec<&str> = list.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let expected = [
        "the page's tests (exit status 1)",
        "not ok 2 - the page",
        "lint (exit status 1)",
        "lint failed: cargo fmt --all --check",
        "cargo test (exit status 101)",
        "src/lib.rs (target/debug/deps/a-1): two::three",
        "tests/b.rs: four",
        "`-p a --lib`",
        "`-p b --test b`",
        "Perl tests (exit status 1)",
        "t/a.t  (Wstat: 256 (exited 1) Tests: 3 Failed: 1)",
    ];
    assert_eq!(lines, expected, "{said}");
    assert!(stage.calls().contains("cargo clippy") && stage.calls().contains("prove -l"), "{}", stage.calls());
}

#[test]
fn a_compiler_that_fails_ends_it() {
    let stage = Stage::new("case \"$*\" in 'test --workspace --no-run') exit 101 ;; esac", "", "");
    let (is_well, said) = stage.run();
    assert!(!is_well && said.contains("build of the tests (exit status 101)"), "{said}");
    assert!(!stage.calls().contains("--no-fail-fast") && !stage.calls().contains("prove"), "{}", stage.calls());
    assert!(said.contains("== nothing is left"), "{said}");
}

#[test]
fn all_is_well_when_all_is_well() {
    let (is_well, said) = Stage::new("", "", "").run();
    assert!(is_well && !said.contains("FAILED") && !said.contains("left by the test run"), "{said}");
}

#[test]
fn what_a_test_leaves_fails_it_and_is_not_ended() {
    let leave = "case \"$*\" in *--no-fail-fast) setsid sleep 600 >/dev/null 2>&1 & mkdir $TMPDIR/forgotten ;; esac";
    let (is_well, said) = Stage::new(leave, "", "").run();
    let left = |kind: &str| said.lines().find_map(|line| line.strip_prefix(kind));
    let process = left("left by the test run: process: ").unwrap_or_else(|| panic!("{said}"));
    let pid = Pid::from_raw(process.split_whitespace().next().unwrap().parse().unwrap()).unwrap();
    let was_alive = test_kill_process(pid).is_ok();
    let _ = kill_process(pid, Signal::KILL);
    assert!(process.contains("(sleep)") && was_alive, "{said}");
    assert!(left("left by the test run: file: /tmp/rt-").is_some_and(|path| path.ends_with("/forgotten")), "{said}");
    assert!(!is_well && said.ends_with("something is left: see above\n"), "{said}");
}

#[test]
fn an_interrupted_run_ends_what_it_started_and_looks_all_the_same() {
    let stage = Stage::new("case \"$*\" in *--no-fail-fast) sleep 600; exit 0 ;; esac", "", "");
    let child = stage.start();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    let begun = || Ok(stage.calls().contains("--no-fail-fast").then_some(()));
    wait_for("the tests", Duration::from_secs(60), begun).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let (is_well, said) = stage.end(child);
    assert!(!is_well && said.contains("\n  interrupted\n") && said.contains("== nothing is left"), "{said}");
    assert!(!said.contains("left by the test run"), "{said}");
}
