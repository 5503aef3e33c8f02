//! `make demo`, as a person at a terminal has it: what it prints works when it is pasted, and Ctrl-C leaves nothing.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::CommandExt as _;
use tests::tools::{binary, run, wait_for};

/// Ends the demo when the test panics; its own end otherwise comes first.
struct Demo(Child);

impl Demo {
    fn interrupt(&self) {
        // A terminal sends Ctrl-C to the whole group.
        let group = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        let _ = kill_process_group(group, Signal::INT);
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.interrupt();
        let _ = self.0.wait();
    }
}

/// What one of the printed lines answers.
fn paste(line: &str, token: &str) -> String {
    run(Command::new("timeout").args(["30", "bash", "-c", line]).env("TOKEN", token)).unwrap()
}

#[test]
fn the_demo_works_as_it_says_and_leaves_nothing() {
    let mut child = Command::new(binary("demo").unwrap()).stdout(Stdio::piped()).process_group(0).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut demo = Demo(child);
    let mut lines = Vec::new();
    for line in output.by_ref().lines() {
        let line = line.unwrap().trim().to_owned();
        let is_last = line.starts_with("Ctrl-C");
        lines.push(line);
        if is_last {
            break;
        }
    }
    let find =
        |part: &str| lines.iter().find(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part}")).as_str();
    let token = find("TOKEN=ey").strip_prefix("TOKEN=").unwrap();
    for part in ["curl -s", "grpcurl"] {
        let answer = paste(find(part), token);
        assert!(answer.contains("desk-1") && answer.contains("desk-2"), "{part}: {answer}");
    }
    let another = paste(&format!("{}; echo $TOKEN", find("token mint")), "");
    assert!(paste(find("curl -s"), another.trim()).contains("desk-1"));
    let said = paste(find("desk-1.sock wA"), token);
    assert!(said.starts_with("disk=A ram=A"), "{said}");
    let root = find("desk-1.sock").split_whitespace().nth(1).unwrap().split("/images").next().unwrap().to_owned();

    demo.interrupt();
    assert!(demo.0.wait().unwrap().success());
    assert!(!std::path::Path::new(&root).exists(), "{root} is left");
    let left = || run(Command::new("pgrep").args(["--full", "--list-full", &root])).unwrap_or_default();
    // The guests' processes are killed and gone as soon as somebody reaps them.
    wait_for("the end of the guests", Duration::from_secs(10), || Ok(left().is_empty().then_some(()))).unwrap();
}
