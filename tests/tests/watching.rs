//! What is told to an operator is so: every metric and every error in the log is in docs/operations/watching.md, nothing else is, and
//! the alerts and the dashboard ask for metrics that there are.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::lab::{HOST, Lab};
use tests::tools::run;

const SERVERS: [&str; 8] =
    ["snapshot-api", "snapshot-agent", "gateway", "mtls", "limits", "public-port", "capability", "traces"];
const PAGE: &str = "docs/operations/watching.md";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The code of the servers.
fn sources() -> Vec<String> {
    let mut folders: Vec<PathBuf> = SERVERS.iter().map(|name| root().join(name).join("src")).collect();
    let mut texts = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|last| last == "rs") {
                texts.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    texts
}

/// The texts of a table's rows that begin like this one, cell by cell.
fn rows(head: &str) -> Vec<Vec<String>> {
    let page = read(PAGE);
    let table = &page[page.find(head).unwrap()..];
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// Every metric of the page, with its labels.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let word = |text: &str| text.trim_matches('`').to_owned();
    let labels = |cell: &str| cell.split(", ").filter(|it| !it.is_empty()).map(word).collect();
    rows("| Metric |").iter().map(|row| (word(&row[0]), labels(&row[3]))).collect()
}

/// The words of a text that name a metric of ours, without what Prometheus adds.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let bare = |word: &str| {
        let word = word.strip_suffix("_bucket").or_else(|| word.strip_suffix("_sum")).unwrap_or(word);
        word.strip_suffix("_count").unwrap_or(word).to_owned()
    };
    words.filter(|word| word.starts_with("snapshot_")).map(bare).collect()
}

#[test]
fn the_page_has_every_metric_and_no_other() {
    let mut found = BTreeSet::new();
    for text in sources() {
        for call in ["counter!(", "gauge!(", "histogram!("] {
            for (at, _) in text.match_indices(call) {
                let name = text[at + call.len()..].trim_start().strip_prefix('"').and_then(|it| it.split('"').next());
                found.extend(name.map(str::to_owned));
            }
        }
    }
    assert!(found.len() > 15, "{found:?}");
    let documented: BTreeSet<String> = documented().into_keys().collect();
    assert_eq!(documented, found, "left: {PAGE}; right: the code");
}

/// The last text in quotes before the bracket that is open is closed.
fn last_text(code: &str) -> String {
    let (mut depth, mut quoted, mut last) = (1, false, String::new());
    let mut chars = code.chars();
    while let Some(c) = chars.next() {
        match (quoted, c) {
            (true, '\\') => _ = chars.next(),
            (true, '"') => quoted = false,
            (true, c) => last.push(c),
            (false, '"') => (quoted, last) = (true, String::new()),
            (false, '(') => depth += 1,
            (false, ')') if depth == 1 => break,
            (false, ')') => depth -= 1,
            (false, _) => {}
        }
    }
    last
}

#[test]
fn the_page_has_every_error_in_the_log_and_no_other() {
    let mut found = BTreeSet::new();
    for text in sources() {
        for (at, call) in text.match_indices("tracing::error!(") {
            let said = last_text(&text[at + call.len()..]);
            // Up to where it differs from case to case.
            let said = said.split('{').next().unwrap().trim();
            if !said.is_empty() {
                found.insert(said.to_owned());
            }
        }
    }
    assert!(found.len() > 20, "{found:?}");
    let documented: BTreeSet<String> = rows("| Event |").into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(documented, found, "left: {PAGE}; right: the code");
}

#[test]
fn alerts_and_dashboard_ask_for_what_there_is() {
    let documented: BTreeSet<String> = documented().into_keys().collect();
    // Whoever has prometheus on the machine gets more: `promtool check rules`.
    let rules = read("packaging/prometheus/ravada-snapshots.rules.yml");
    let program = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let path = root().join("packaging/prometheus/ravada-snapshots.rules.yml");
    let parsed: Value =
        serde_json::from_str(&run(Command::new("python3").args(["-c", program]).arg(path)).unwrap()).unwrap();
    let alerts = parsed["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(alerts.len(), rules.matches("- alert:").count());
    for alert in alerts {
        let (name, expression) = (alert["alert"].as_str().unwrap(), alert["expr"].as_str().unwrap());
        let named = named(expression);
        assert!(!named.is_empty() || expression.starts_with("up{"), "{name}");
        assert!(named.is_subset(&documented), "{name}: {named:?}");
        assert!(["warning", "critical"].contains(&alert["labels"]["severity"].as_str().unwrap()), "{name}");
        assert!(alert["annotations"]["summary"].is_string() && alert["annotations"]["action"].is_string(), "{name}");
    }
    let dashboard: Value = serde_json::from_str(&read("packaging/grafana/ravada-snapshots.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let shown: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    let shown = named(&shown.join(" "));
    assert!(shown.is_subset(&documented), "{shown:?}");
    let ids: BTreeSet<i64> = panels.iter().map(|panel| panel["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have one id");
    let missing: Vec<_> = documented.difference(&shown).collect();
    assert_eq!(missing, [""; 0], "not on the dashboard");
}

/// What running services export is on the page, with the labels that it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_is_on_the_page_with_its_labels() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let taken = lab.take(&guest, "one").await.unwrap();
    lab.return_to(&taken).await.unwrap();
    lab.client.vm("vms/00000000-0000-4000-8000-000000000000").await.unwrap_err();
    let ports = lab.cluster.ports();
    let mut exported = BTreeMap::new();
    for port in [ports.api_metrics, ports.gateway_metrics, lab.cluster.host(HOST).unwrap().metrics_port()] {
        let text = run(Command::new("curl").args(["-sf", "--max-time", "20", &format!("http://127.0.0.1:{port}/")]));
        for line in text.unwrap().lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let series = line.rsplit_once(' ').unwrap().0;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
            // Prometheus' own, of summaries and histograms.
            let labels: BTreeSet<String> = labels.filter(|label| label != "quantile" && label != "le").collect();
            exported.insert(named(name).pop_first().unwrap_or_else(|| name.to_owned()), labels);
        }
    }
    let documented = documented();
    for (name, labels) in &exported {
        assert_eq!(documented.get(name), Some(labels), "{name}");
    }
    assert!(exported.len() > 14, "{exported:?}");
}
