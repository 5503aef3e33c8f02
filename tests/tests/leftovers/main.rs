//! That `scripts/leftovers.py`, which ends `make test`, finds what a test run left, of each kind; and that it does not take for left
//! what was there before or belongs to somebody else.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

mod make_test;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use tests::tools::wait_for;

/// What is written into a directory that this process made, as if a program of some tree had. With another process or time, tests that
/// run beside would sweep it.
fn owned_by(program: &str) -> String {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap();
    format!("{} {start}\n{program}\n", std::process::id())
}

/// A run of tests that is told apart from the one that this test is part of.
struct Run {
    dir: TempDir,
    name: String,
    /// A QEMU of the one test is nobody's to the other.
    _alone: MutexGuard<'static, ()>,
}

/// A process that ends with the test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Run {
    fn start() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let name = format!("leftovers-{}", dir.path().file_name().unwrap().display());
        let run = Self { dir, name, _alone: alone };
        for folder in ["tmp", "libvirt/etc/libvirt/qemu", "target/tmp/agent"] {
            fs::create_dir_all(run.path(folder)).unwrap();
        }
        let (status, told) = run.script(&["record"]);
        assert!(status, "{told}");
        run
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Whether it ended well, and what it said.
    fn script(&self, arguments: &[&str]) -> (bool, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/leftovers.py");
        let (command, rest) = arguments.split_first().unwrap();
        let mut python = Command::new(script);
        self.with_its_environment(&mut python).arg(command).arg(self.path("state.json")).args(rest);
        let output = python.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    fn with_its_environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("TEST_RUN", &self.name).env("TEST_RUN_TMP", self.path("tmp"));
        command.env("TEST_RUN_LIBVIRT", self.path("libvirt")).env("CARGO_TARGET_DIR", self.path("target"))
    }

    /// Others test on this machine, too, and start what is told from ours only when it has ended.
    fn nothing_is_left(&self) {
        let (is_clean, told) = self.script(&["check", "20"]);
        assert!(is_clean && told.is_empty(), "{told}");
    }

    /// What is left, at once.
    fn left(&self) -> Vec<String> {
        let (is_clean, told) = self.script(&["check", "0"]);
        let lines: Vec<String> =
            told.lines().map(|line| line.strip_prefix("left by the test run: ").unwrap().to_owned()).collect();
        assert_eq!(is_clean, lines.is_empty(), "{told}");
        lines
    }

    /// Something that sleeps until the test ends, as a program of that name.
    fn sleeper(&self, name: &str, at: &Path, before: &[&str]) -> Started {
        let program = at.join(name);
        fs::create_dir_all(at).unwrap();
        fs::copy("/bin/sleep", &program).unwrap();
        let mut words: Vec<&str> = before.to_vec();
        words.extend([program.to_str().unwrap(), "600"]);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_remove("TEST_RUN").env_remove("TEST_RUN_TMP").env_remove("TMPDIR");
        let child = command.current_dir("/").process_group(0).stdin(Stdio::null()).spawn().unwrap();
        let started = Started(child);
        let is_it = || {
            let comm = fs::read_to_string(format!("/proc/{}/comm", started.0.id())).unwrap_or_default();
            Ok((comm.trim() == &name[..name.len().min(15)]).then_some(()))
        };
        wait_for("the program to be loaded", Duration::from_secs(20), is_it).unwrap();
        started
    }
}

#[test]
fn a_run_that_left_nothing_is_told_so() {
    Run::start().nothing_is_left();
}

#[test]
fn a_process_that_is_left_is_found() {
    let run = Run::start();
    // By the target directory in its command line, as a guest of the agent's tests.
    let guest = run.sleeper("qemu-system-x86_64", &run.path("target/tmp/agent"), &[]);
    let left = run.left();
    let line = format!("process: {} (qemu-system-x86)", guest.0.id());
    assert!(left.iter().any(|it| it.starts_with(&line)), "{left:?}");
    drop(guest);
    fs::remove_file(run.path("target/tmp/agent/qemu-system-x86_64")).unwrap();
    run.nothing_is_left();
    // By the word in its environment, whatever it is called.
    let mut command = Command::new("sleep");
    run.with_its_environment(command.arg("600")).current_dir("/");
    let sleep = Started(command.spawn().unwrap());
    let (left, line) = (run.left(), format!("process: {} (sleep)", sleep.0.id()));
    assert!(left.iter().any(|it| it.starts_with(&line)), "{left:?}");
}

#[test]
fn what_is_of_another_run_is_not_told_of() {
    let run = Run::start();
    let mut command = Command::new("sleep");
    let _other =
        Started(command.arg("600").env("TEST_RUN", "another").current_dir(run.path("target")).spawn().unwrap());
    // A directory with a living owner of another tree, and a libvirtd in it.
    let theirs = tempfile::Builder::new().prefix("rs-").tempdir_in("/tmp").unwrap();
    fs::write(theirs.path().join("owner"), owned_by("/elsewhere/target/debug/deps/e2e")).unwrap();
    let _libvirtd = run.sleeper("libvirtd", theirs.path(), &[]);
    // A QEMU of another tree's tests of the agent.
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("Cargo.toml"), "").unwrap();
    let _qemu = run.sleeper("qemu-system-x86_64", &tree.path().join("target/tmp/agent"), &[]);
    run.nothing_is_left();
    // And one of this tree.
    let program = run.path("target/debug/deps/e2e");
    fs::write(theirs.path().join("owner"), owned_by(program.to_str().unwrap())).unwrap();
    let left = run.left();
    assert!(left.iter().any(|line| line.contains("(libvirtd)")), "{left:?}");
    let line = format!("file: {} with libvirtd, owner", theirs.path().display());
    assert!(left.contains(&line), "{left:?}");
}

#[test]
fn mounts_and_network_namespaces_that_are_left_are_found() {
    let run = Run::start();
    let place = run.path("target/tmp/mounted");
    fs::create_dir_all(&place).unwrap();
    let script = format!("mount -t tmpfs tmpfs '{}'; exec \"$@\"", place.display());
    let before = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-ec", &script, "sh"];
    let held = run.sleeper("sleeper", &run.path("target/tmp/agent"), &before);
    let left = run.left();
    let found = |kind: &str, what: &str| left.iter().any(|line| line.starts_with(kind) && line.contains(what));
    assert!(found("mount: ", place.to_str().unwrap()), "{left:?}");
    assert!(found("network namespace: net:[", &format!("of process {}", held.0.id())), "{left:?}");
    drop(held);
    // One with a name, and a mount, in the namespace that everybody is in.
    let name = run.name.to_lowercase().replace('.', "-");
    let shared = format!(
        "ip netns add '{name}'; mount -t tmpfs tmpfs '{place}'; \"$@\"; status=$?; umount '{place}'; ip netns del '{name}'; exit $status",
        place = place.display()
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/leftovers.py");
    // Everybody but this test is spared it: a namespace of its own, in which the mounts that are shared with it are looked at.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-c"]);
    let both = format!(
        "mount -t tmpfs tmpfs /run; '{0}' record '{1}' && {shared}",
        script.display(),
        run.path("state.json").display()
    );
    command.args([&both, "bash"]).arg(&script).arg("check").arg(run.path("state.json")).arg("0");
    let output = run.with_its_environment(&mut command).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success(), "{told}");
    assert!(told.contains(&format!("network namespace: {name}")), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains(&format!("mount: / {} tmpfs", place.display())), "{told}");
}

/// It is made by the first test that needs it, and no test can know that it is the last.
#[test]
fn the_empty_directory_in_which_tests_make_theirs_is_not_told_of() {
    let run = Run::start();
    fs::create_dir_all(run.path("target/tmp/another")).unwrap();
    assert_eq!(run.left(), [""; 0]);
}

#[test]
fn domains_and_files_that_are_left_are_found() {
    let run = Run::start();
    let domain = run.path("libvirt/etc/libvirt/qemu/forgotten.xml");
    let files = [run.path("tmp/.tmpAbCdEf"), run.path("target/tmp/agent/4711")];
    fs::write(&domain, "<domain/>").unwrap();
    files.iter().for_each(|file| fs::create_dir(file.as_path()).unwrap());
    fs::write(files[0].join("in-it"), "").unwrap();
    let program = run.path("target/debug/deps/e2e");
    let scratch = ["/tmp", "/dev/shm"].map(|at| {
        let folder = tempfile::Builder::new().prefix("rs-").tempdir_in(at).unwrap();
        fs::write(folder.path().join("owner"), owned_by(program.to_str().unwrap())).unwrap();
        folder
    });
    let mut expected = vec![
        format!("domain: {}", domain.display()),
        format!("file: {} with in-it", files[0].display()),
        format!("file: {}", files[1].display()),
    ];
    expected.extend(scratch.iter().map(|folder| format!("file: {} with owner", folder.path().display())));
    let left = run.left();
    assert!(expected.iter().all(|line| left.contains(line)), "{left:?}");
}
