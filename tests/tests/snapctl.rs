//! The command for people, on real guests: the story by the command alone, what it asks before something is lost, what it
//! prints for programs, and its exit codes.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::guest::Guest;
use tests::lab::{HOST, Lab, Power};
use tests::tools::{binary, wait_for};

/// The command, settings and all, for somebody with a token.
struct Person {
    endpoint: String,
    ca: String,
    token: String,
    home: String,
}

impl Person {
    fn at(lab: &Lab, token: &str) -> Self {
        let identity = lab.cluster.identity();
        Self {
            // Certificates of the tests are for localhost.
            endpoint: format!("https://localhost:{}", lab.cluster.ports().public),
            ca: identity.ca().display().to_string(),
            token: token.to_owned(),
            home: lab.cluster.folder().display().to_string(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("snapctl").unwrap());
        command.args(arguments).env_clear().env("HOME", &self.home).stdin(Stdio::null());
        command.env("SNAPCTL_ENDPOINT", &self.endpoint).env("SNAPCTL_CA", &self.ca).env("SNAPCTL_TOKEN", &self.token);
        command
    }

    /// The same at a terminal, of which what it shows goes to a file as well.
    fn at_a_terminal(&self, arguments: &str, shown: &Path) -> Command {
        let line = format!("{} {arguments}", binary("snapctl").unwrap().display());
        let mut terminal = Command::new("script");
        terminal.args(["-qefc", &line]).arg(shown).stdin(Stdio::null()).env("TERM", "xterm");
        terminal.envs(self.command(&[]).get_envs().filter_map(|(name, value)| Some((name, value?))));
        terminal
    }

    /// What it printed, and its exit code. It must not have panicked.
    fn tries(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().unwrap();
        parts(&output)
    }

    /// What it printed, when it has to succeed.
    fn does(&self, arguments: &[&str]) -> String {
        let (code, said, complained) = self.tries(arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}{complained}");
        said
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.does(&[arguments, &["--json"]].concat())).unwrap()
    }
}

fn parts(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).unwrap();
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert!(!complained.contains("panicked"), "{complained}");
    (output.status.code().unwrap(), said, complained)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_story_by_the_command_alone() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let person = Person::at(&lab, &lab.cluster.identity().admin_token().unwrap());
    guest.write('A').unwrap();

    assert!(person.does(&["vms"]).contains("student"));
    let vms = person.json(&["vms"]);
    assert_eq!((&vms["vms"][0]["name"], &vms["vms"][0]["state"]), (&guest.vm().into(), &"VM_STATE_RUNNING".into()));
    let made = person.does(&["create", "student", "before exam", "--description", "all installed"]);
    assert!(made.contains("create: succeeded"), "{made}");
    let taken = lab.agreed(&guest).await.unwrap();
    assert_eq!((taken[0].display_name.as_str(), taken[0].description.as_str()), ("before exam", "all installed"));
    assert_eq!(guest.write('B').unwrap().disk, 'B');

    only_what_was_confirmed(&lab, &person, &guest);

    let done = person.json(&["revert", &guest.uuid().to_string(), "before exam", "--yes", "--save-current", "after"]);
    assert_eq!((&done["state"], &done["kind"]), (&"OPERATION_STATE_SUCCEEDED".into(), &"OPERATION_KIND_REVERT".into()));
    assert_eq!(guest.report().unwrap().disk, 'A', "the guest reads what it had written before the snapshot");
    let tree = person.does(&["snapshots", "student"]);
    let lines: Vec<&str> = tree.lines().collect();
    assert!(lines[1].starts_with("*  before exam") && lines[2].contains("└─ after"), "{tree}");
    person.does(&["revert", "student", "after", "--yes"]);
    assert_eq!(guest.report().unwrap().disk, 'B', "what was saved is there too");

    person.does(&["edit", "student", "after", "--name", "the end", "--protect", "yes"]);
    let (code, _, why) = person.tries(&["remove", "student", "the end", "--yes"]);
    assert!(code == 1 && why.contains("SNAPSHOT_PROTECTED") && why.contains("takes the protection away"), "{why}");
    person.does(&["edit", "student", "the end", "--protect", "no"]);
    person.does(&["remove", "student", "before exam", "--scope", "subtree", "--yes"]);
    lab.nothing_left(&guest, &taken[0]).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'B', "a deletion leaves the guest alone");

    let all = person.json(&["operations", "--vm", "student"]);
    let all = all["operations"].as_array().unwrap();
    assert!(all.len() >= 6, "{all:?}");
    let last = all[0]["name"].as_str().unwrap();
    assert!(person.does(&["operations", last, "--follow"]).starts_with("delete: succeeded"));
    assert_eq!(person.json(&["operations", "--most", "2"])["operations"].as_array().unwrap().len(), 2);
    assert_eq!(person.json(&["hosts"])["hosts"][0]["reachable"], true);
    assert!(person.does(&["hosts"]).contains(HOST));
    assert!(person.does(&["reconcile", HOST]).contains("0 corrected"));
}

/// Nothing is lost by a command that nobody confirmed, with and without a terminal.
fn only_what_was_confirmed(lab: &Lab, person: &Person, guest: &Guest) {
    let plan = person.json(&["revert", "student", "before exam", "--dry-run"]);
    assert!(!plan["plan"]["losses"].as_array().unwrap().is_empty(), "{plan}");
    for change in [["revert", "student", "before exam"], ["remove", "student", "before exam"]] {
        let (code, said, why) = person.tries(&change);
        assert_eq!((code, said.as_str()), (5, ""), "{change:?}: {why}");
        assert!(why.contains("lost for good") && why.contains("--yes"), "{change:?}: {why}");
    }
    let mut terminal = person.at_a_terminal("remove student 'before exam'", Path::new("/dev/null"));
    let mut asked = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    asked.stdin.take().unwrap().write_all(b"n\n").unwrap();
    let (code, said, _) = parts(&asked.wait_with_output().unwrap());
    assert!(code == 5 && said.contains("Delete “before exam”? [y/N]") && said.contains("nothing was done"), "{said}");
    assert_eq!(guest.report().unwrap().disk, 'B', "nothing was done");
    assert_eq!(lab.daemon().unwrap().snapshots(guest).unwrap().len(), 1, "nothing was done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_exit_code_is_what_the_help_says() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let identity = lab.cluster.identity();
    let person = Person::at(&lab, &identity.admin_token().unwrap());
    lab.set(&guest, Power::Off).await.unwrap();

    let (code, _, why) = person.tries(&["create", "student", "x", "--content", "memory"]);
    assert!(code == 1 && why.contains("VM_NOT_RUNNING") && why.contains("the machine is off"), "{code}: {why}");
    let (code, said, why) = person.tries(&["create", "student", "x", "--content", "memory", "--json"]);
    let told: Value = serde_json::from_str(&why).unwrap();
    assert_eq!((code, said.as_str(), &told["error"]["reason"]), (1, "", &"VM_NOT_RUNNING".into()));

    assert_eq!(person.tries(&["creat"]).0, 2);
    assert_eq!(person.tries(&["snapshots", "nobody"]).0, 2);
    assert_eq!(person.tries(&["edit", "student", "x"]).0, 2);
    assert_eq!(person.tries(&["--endpoint", "http://192.0.2.1:80", "vms"]).0, 2, "a token in plain text");
    assert_eq!(person.tries(&["--endpoint", "https://localhost:1", "vms"]).0, 3);
    let stranger = identity.of_another_authority("snapshot-api").unwrap();
    let (code, _, why) = person.tries(&["--ca", &stranger.certificate.display().to_string(), "vms"]);
    assert!(code == 3 && why.contains("certificate"), "{code}: {why}");

    let (code, _, why) = Person::at(&lab, "").tries(&["vms"]);
    assert!(code == 4 && why.contains("TOKEN_MISSING") && why.contains("token mint"), "{code}: {why}");
    let (code, _, why) = Person::at(&lab, &identity.expired_token().unwrap()).tries(&["vms"]);
    assert!(code == 4 && why.contains("TOKEN_EXPIRED"), "{code}: {why}");
    let reader = identity.token("alice", &guest.uuid().to_string(), &["read"]).unwrap();
    let reader = Person::at(&lab, &reader);
    assert!(reader.does(&["vms"]).contains("student"));
    let (code, _, why) = reader.tries(&["create", "student", "x"]);
    assert!(code == 4 && why.contains("ACTION_NOT_GRANTED"), "{code}: {why}");
    assert!(lab.agreed(&guest).await.unwrap().is_empty(), "nothing was done");

    // Through the gateway, which is on this machine.
    let gateway = format!("http://127.0.0.1:{}", lab.cluster.ports().gateway);
    assert!(person.does(&["--endpoint", &gateway, "vms"]).contains("student"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_is_followed_with_a_bar_and_waited_for() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let person = Person::at(&lab, &lab.cluster.identity().admin_token().unwrap());
    let shown = lab.cluster.folder().join("terminal");
    // libvirt waits for a QEMU that is stopped, and so does the operation.
    let qemu = Pid::from_raw(lab.daemon().unwrap().qemu_pid(&guest).unwrap()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();
    let mut terminal = person.at_a_terminal("create student held", &shown);
    let mut waiting = terminal.stdout(Stdio::null()).spawn().unwrap();
    let bar = || Ok(std::fs::read_to_string(&shown).is_ok_and(|text| text.contains(" %  ")).then_some(()));
    wait_for("the bar", Duration::from_secs(60), bar).unwrap();

    let active = person.json(&["operations", "--active"]);
    let name = active["operations"][0]["name"].as_str().unwrap().to_owned();
    assert_eq!(active["operations"].as_array().unwrap().len(), 1, "{active}");
    let (code, _, why) = person.tries(&["create", "student", "another"]);
    assert!(code == 1 && why.contains("VM_BUSY") && why.contains(&name), "{code}: {why}");
    let mut following = person.command(&["operations", &name, "--follow", "--json"]);
    let following = following.stdout(Stdio::piped()).spawn().unwrap();
    assert!(waiting.try_wait().unwrap().is_none(), "it waits for the end");

    kill_process(qemu, Signal::CONT).unwrap();
    assert!(waiting.wait().unwrap().success());
    let followed = following.wait_with_output().unwrap();
    let told: Value = serde_json::from_slice(&followed.stdout).unwrap();
    assert!(followed.status.success() && told["state"] == "OPERATION_STATE_SUCCEEDED", "{told}");
    assert!(std::fs::read_to_string(&shown).unwrap().contains("create: succeeded"));
    assert_eq!(lab.agreed(&guest).await.unwrap().len(), 1);

    let begun = person.json(&["create", "student", "not waited for", "--no-wait"]);
    let name = begun["name"].as_str().unwrap();
    assert!(person.does(&["operations", name, "--follow"]).starts_with("create: succeeded"));
    assert_eq!(lab.agreed(&guest).await.unwrap().len(), 2);
}
