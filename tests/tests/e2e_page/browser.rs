//! A real browser with the real page in it, steered through `gateway/web/e2e/browser.mjs`.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tests::tools::{build_dir, wait_for};

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../gateway/web/e2e/browser.mjs");
/// How long a command may take. The program's own deadlines, which say what was waited for, come before.
const ANSWER: Duration = Duration::from_secs(120);
/// How long the page may take to show what happened elsewhere.
const TOLD: Duration = Duration::from_secs(30);
/// How long the browser may take to end.
const END: Duration = Duration::from_secs(10);

/// A browser. It ends when this is dropped, and also when the test is killed, because its stdin ends then.
pub struct Browser {
    child: Child,
    answers: Receiver<String>,
    errors: PathBuf,
    tabs: RefCell<Vec<String>>,
}

impl Browser {
    /// Starts one whose profile is in `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        let home = folder.join("browser");
        fs::create_dir_all(&home)?;
        let errors = home.join("stderr.log");
        let mut command = Command::new("node");
        command.arg(PROGRAM);
        // Whatever Chromium writes anywhere goes where the test ends with it.
        for name in ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            command.env(name, &home);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&errors)?);
        let mut child = command.spawn().context("cannot start node")?;
        let lines = BufReader::new(child.stdout.take().context("node's stdout")?).lines();
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { child, answers, errors, tabs: RefCell::default() })
    }

    /// Opens an address in a tab that shares nothing with the others.
    pub fn open(&self, name: &str, url: &str) -> Result<(Tab<'_>, Seen)> {
        self.open_as(name, url, json!({}))
    }

    /// As [`Browser::open`], for somebody with other wishes: `locale`, `dark`, `width`, `height`, or, with `tokens` by
    /// machine, on a page of somebody else's.
    pub fn open_as(&self, name: &str, url: &str, mut how: Value) -> Result<(Tab<'_>, Seen)> {
        self.tabs.borrow_mut().push(name.to_owned());
        (how["do"], how["tab"], how["url"]) = ("open".into(), name.into(), url.into());
        let seen = self.ask(&how)?;
        Ok((Tab { browser: self, name: name.to_owned() }, Seen(seen)))
    }

    /// What the browser has to complain about: faults of the page, and requests that reached nobody.
    pub fn complaints(&self) -> Result<(Vec<String>, Vec<String>)> {
        let all = self.ask(&json!({"do": "complaints"}))?;
        Ok((texts(&all["errors"]), texts(&all["network"])))
    }

    fn ask(&self, command: &Value) -> Result<Value> {
        let mut stdin = self.child.stdin.as_ref().context("node's stdin")?;
        let sent = writeln!(stdin, "{command}");
        let answer = sent.map_err(anyhow::Error::from).and_then(|()| Ok(self.answers.recv_timeout(ANSWER)?));
        let answer = answer.with_context(|| format!("the browser's program: {}", self.log()))?;
        let mut answer: Value = serde_json::from_str(&answer)?;
        match answer["error"].as_str() {
            Some(error) => bail!("{command}: {error}"),
            None => Ok(answer["ok"].take()),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

impl Drop for Browser {
    #[expect(clippy::print_stderr, reason = "a failing test shows the browser's side on its stderr")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.tabs.take() {
                let tab = Tab { browser: self, name };
                eprintln!("{}: {:#}", tab.name, tab.seen().map(|seen| seen.0).unwrap_or_default());
                let _ = tab.screenshot(&format!("failed-{}", tab.name));
            }
            eprintln!("{}", self.log());
        }
        // Its end is the order to end.
        drop(self.child.stdin.take());
        let ended = wait_for("the browser to end", END, || Ok(self.child.try_wait()?));
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Where pictures are put: `target/screenshots`.
pub fn pictures() -> Result<PathBuf> {
    let build = build_dir()?;
    let folder = build.parent().unwrap_or(&build).join("screenshots");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A tab with the page in it, and a person before it.
pub struct Tab<'a> {
    browser: &'a Browser,
    name: String,
}

impl Tab<'_> {
    /// Lets the person do something; see `gateway/web/e2e/tab.mjs` for what and how.
    pub fn act(&self, what: &str, mut how: Value) -> Result<Value> {
        how["do"] = what.into();
        how["tab"] = self.name.as_str().into();
        self.browser.ask(&how)
    }

    /// As [`Tab::act`], for what ends with an outcome on the page.
    pub fn change(&self, what: &str, how: Value) -> Result<Outcome> {
        self.act(what, how).map(Outcome)
    }

    /// What is on the page now.
    pub fn seen(&self) -> Result<Seen> {
        self.act("read", json!({})).map(Seen)
    }

    /// Waits until the page shows something by itself.
    pub fn until(&self, what: &str, is_so: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let mut last = None;
        let waited = wait_for(what, TOLD, || {
            let seen = self.seen()?;
            let so = is_so(&seen);
            Ok(so.then_some(last.insert(seen).clone()))
        });
        waited.with_context(|| format!("{} shows {last:?}", self.name))
    }

    /// Closes it: each open one works on.
    pub fn close(self) -> Result<()> {
        self.act("close", json!({}))?;
        self.browser.tabs.borrow_mut().retain(|name| *name != self.name);
        Ok(())
    }

    /// Fails unless axe-core finds nothing wrong.
    pub fn audit(&self, state: &str) -> Result<()> {
        self.audit_within("html", state)
    }

    /// As [`Tab::audit`], for a part of the page: what somebody else's page does wrong is theirs.
    pub fn audit_within(&self, part: &str, state: &str) -> Result<()> {
        let wrong = texts(&self.act("audit", json!({ "within": part }))?);
        if wrong.is_empty() { Ok(()) } else { bail!("{}: {state}: {wrong:#?}", self.name) }
    }

    /// Makes a picture in `target/screenshots`.
    pub fn screenshot(&self, name: &str) -> Result<PathBuf> {
        let file = pictures()?.join(format!("{name}.png"));
        self.act("screenshot", json!({"file": file}))?;
        Ok(file)
    }
}

/// What can be read on the page; see `readEverything` in `gateway/web/e2e/witness.mjs`.
#[derive(Clone)]
pub struct Seen(Value);

impl std::fmt::Debug for Seen {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut short = self.0.clone();
        short["html"] = Value::Null;
        write!(formatter, "{short:#}")
    }
}

impl std::ops::Index<&str> for Seen {
    type Output = Value;

    fn index(&self, key: &str) -> &Value {
        &self.0[key]
    }
}

impl Seen {
    /// Snapshots' names with how many side lines they are set in, from the top.
    pub fn tree(&self) -> Vec<(String, u64)> {
        let rows = self.0["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
        rows.iter().map(|row| (text(&row["name"]), row["depth"].as_u64().unwrap_or(u64::MAX))).collect()
    }

    /// Snapshots' names, from the top.
    pub fn names(&self) -> Vec<String> {
        self.tree().into_iter().map(|(name, _)| name).collect()
    }

    /// What is told of a snapshot.
    pub fn row(&self, name: &str) -> Value {
        let rows = self.0["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
        rows.iter().find(|row| row["name"] == name).cloned().unwrap_or_default()
    }

    /// Which snapshot "you are here" follows.
    pub fn here(&self) -> &str {
        self.0["here"].as_str().unwrap_or("nowhere")
    }

    /// Whether the page is in touch with the service.
    pub fn is_live(&self) -> bool {
        self.0["connection"] == "live"
    }

    /// The machines that are listed.
    pub fn machines(&self) -> Vec<String> {
        self.0["machines"].as_array().into_iter().flatten().map(|machine| text(&machine["name"])).collect()
    }

    /// The states the connection has been in, without repeats.
    pub fn connections(&self) -> Vec<String> {
        texts(&self.0["witnessed"]["connections"])
    }

    /// The reasons of the errors that are shown.
    pub fn reasons(&self) -> Vec<String> {
        self.0["problems"].as_array().into_iter().flatten().map(|problem| text(&problem["reason"])).collect()
    }
}

/// How something that was done ended, and what was shown meanwhile.
#[derive(Debug)]
pub struct Outcome(Value);

impl Outcome {
    /// The good news. What the page says besides is an error.
    pub fn done(&self) -> Result<String> {
        match texts(&self.0["done"]).as_slice() {
            [done] if self.0["problems"] == json!([]) => Ok(done.clone()),
            _ => bail!("not done: {:#}", self.0),
        }
    }

    /// The one error that is shown: its reason, what happened, and what to do next.
    pub fn problem(&self) -> Result<(String, String, String)> {
        match self.0["problems"].as_array().map(Vec::as_slice) {
            Some([problem]) => Ok((text(&problem["reason"]), text(&problem["text"]), text(&problem["next"]))),
            _ => bail!("not one problem: {:#}", self.0),
        }
    }

    /// What was said to be going on, from the progress that was shown.
    pub fn progress(&self) -> Vec<String> {
        self.0["progress"].as_array().into_iter().flatten().map(|progress| text(&progress["what"])).collect()
    }

    /// What the dialog said before it was confirmed.
    pub fn said(&self, what: &str) -> &Value {
        &self.0[what]
    }
}

/// The texts in a JSON array.
pub fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
