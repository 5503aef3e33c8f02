#!/usr/bin/env python3
"""Mutation tests of snapshot-agent's ownership, merge and clean-up code: docs/mutants.md.

    agent.py [--units] [--jobs N] [REGEX]

1. The mutants are those that `cargo mutants` lists for FILES; REGEX leaves those whose name matches.
2. All of them are written into a copy of the sources (`schemata`), which is built once.
3. Each test runs once and alone: how long it takes, and which mutants it reaches.
4. Each mutant is run against the unit tests that reach it, all at once; and unless --units is given, what these leave against the tests on
   a libvirt daemon that reach it, the shortest first, until one fails. One that takes five times as long, and half a minute, has failed.

Everything is in target/mutants-agent; what survived is in survived.txt.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

import schemata

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "target" / "mutants-agent"
TREE = OUT / "tree"
AGENT = "snapshot-agent/src/"
FILES = [AGENT + name for name in (
    "owned.rs", "owned/**/*.rs", "shared_storage.rs", "shared_storage/*.rs", "hypervisor/directory_images.rs", "hypervisor/beyond.rs",
    "hypervisor/other_hosts.rs", "hypervisor/overlays.rs", "hypervisor/libvirt/merge.rs", "hypervisor/libvirt/files.rs",
    "execute/merge.rs", "execute/external.rs", "execute/orphans.rs", "execute/vanished.rs", "watch/leftovers.rs",
    "machines/dependents.rs", "machines/sharing.rs",
)]
# Of the tests of the agent on a daemon those that are about files.
DAEMON = ["operations::", "ownership::", "external::", "images::sharing", "left_behind", "drift::files"]
BUILD = ["-p", "snapshot-agent", "--lib", "--message-format=json"]
LOCK = threading.Lock()


def listed():
    """The mutants; those that are their own type each time (`impl`) fit into no program with another."""
    command = ["cargo", "mutants", "--list", "--json", "--no-config", "-p", "snapshot-agent", "-e", "**/*tests.rs"]
    command += [word for name in FILES for word in ("-f", name)]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    found = [one for one in found if "impl " not in ((one["function"] or {}).get("return_type") or "")]
    return [{**one, "id": number} for number, one in enumerate(found, 1)]


def copy():
    """The tracked files, and those that are new; what is the same is left alone, so that it is not built again."""
    names = subprocess.run(["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        source, target = ROOT / name, TREE / name
        if source.is_file() and (not target.exists() or target.read_bytes() != source.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode)


def build(mutants, with_daemon):
    """Returns the numbers of the mutants that compile, and the tests' programs."""
    copy()
    size, left_out = max(one["id"] for one in mutants) + 1, set()
    lib = TREE / AGENT / "lib.rs"
    lib.write_text("#![allow(warnings, clippy::all)]\n" + lib.read_text() + schemata.RUNTIME % (size, size))
    environment = {**os.environ, "CARGO_TARGET_DIR": str(OUT / "build")}
    while True:
        written = schemata.write(mutants, ROOT, TREE, left_out)
        checked = subprocess.run(["cargo", "check", *BUILD], cwd=TREE, env=environment, stdout=subprocess.PIPE, text=True)
        if checked.returncode == 0:
            break
        new, others = schemata.failing(checked.stdout, TREE)
        if not new - left_out:
            sys.exit("\n".join(others) or "the sources do not compile")
        left_out |= new
    command = ["cargo", "test", "--no-run", *BUILD, *(["--test", "agent"] if with_daemon else [])]
    built = subprocess.run(command, cwd=TREE, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    programs, kinds = {}, {"snapshot_agent": "unit", "agent": "daemon"}
    for line in built.stdout.splitlines():
        artifact = json.loads(line) if line.startswith("{") else {}
        if artifact.get("executable") and "snapshot-agent" in artifact["package_id"] and artifact["profile"]["test"]:
            programs[kinds[artifact["target"]["name"]]] = artifact["executable"]
    return written, programs


def run(program, tests, within, **environment):
    """Whether the tests pass, fail or hang, and how long it took."""
    start = time.monotonic()
    process = subprocess.Popen(
        [program, "--exact", *tests], cwd=TREE / "snapshot-agent", start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, **environment, "PROPTEST_MAX_SHRINK_ITERS": "0"},
    )
    try:
        verdict = "passed" if process.wait(within) == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        verdict = "hung"
    return verdict, time.monotonic() - start


def trace(programs, jobs):
    """By kind and name of a test: seconds, and the mutants that it reaches."""
    traced = {}

    def one(kind, test):
        with tempfile.NamedTemporaryFile() as file:
            verdict, seconds = run(programs[kind], [test], 900, MUTANT_TRACE=file.name)
            reached = {int(line) for line in pathlib.Path(file.name).read_text().split()}
        if verdict == "passed":
            traced[kind, test] = (seconds, reached)
        else:
            print(f"{test} {verdict} without any mutant, and is left out", flush=True)

    for kind, filters in (("unit", [""]), ("daemon", DAEMON)):
        found = {}
        for only in filters if kind in programs else ():
            names = subprocess.run([programs[kind], "--list", only], capture_output=True, text=True, check=True).stdout
            found.update({line.removesuffix(": test"): None for line in names.splitlines() if line.endswith(": test")})
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda test: one(kind, test), found))
    return traced


def judge(mutant, programs, traced):
    """Who notices a mutant: "unit", the name of a test on a daemon, "nothing" or "unreached"."""
    reaching = sorted((seconds, kind, test) for (kind, test), (seconds, reached) in traced.items() if mutant["id"] in reached)
    units = [(seconds, test) for seconds, kind, test in reaching if kind == "unit"]
    within = lambda seconds: 5 * seconds + 30
    if units:
        tests = [test for _, test in units]
        if run(programs["unit"], tests, within(sum(seconds for seconds, _ in units)), MUTANT=str(mutant["id"]))[0] != "passed":
            return "unit"
    for seconds, kind, test in reaching:
        if kind == "daemon" and run(programs[kind], [test], within(seconds), MUTANT=str(mutant["id"]))[0] != "passed":
            return test
    return "nothing" if reaching else "unreached"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--units", action="store_true", help="leave out the tests on a daemon")
    arguments.add_argument("--jobs", type=int, default=2, help="how many tests run at a time")
    arguments.add_argument("pattern", nargs="?", default="", help="a regular expression of names of mutants")
    given = arguments.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    everything = listed()
    # What is known of mutants of the same sources is gone on with; what survived is run again, against tests that are new.
    kept = OUT / f"results-{hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:12]}.json"
    mutants = [one for one in everything if re.search(given.pattern, one["name"])]
    written, programs = build(mutants, not given.units)
    traced = trace(programs, given.jobs)
    results = json.loads(kept.read_text()) if kept.exists() else {}

    def one(mutant):
        verdict = judge(mutant, programs, traced)
        with LOCK:
            results[mutant["name"]] = verdict
            kept.write_text(json.dumps(results, indent=1))

    todo = [one for one in mutants if one["id"] in written and results.get(one["name"], "nothing") in ("nothing", "unreached")]
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(one, todo))
    verdicts = {one["name"]: results[one["name"]] for one in mutants if one["id"] in written}
    survived = sorted(name for name, verdict in verdicts.items() if verdict in ("nothing", "unreached"))
    (OUT / "survived.txt").write_text("".join(f"{name}\n" for name in survived))
    counts = collections.Counter(verdict if verdict in ("unit", "nothing", "unreached") else "daemon" for verdict in verdicts.values())
    print(f"{len(mutants)} mutants, {len(mutants) - len(written)} do not compile;", ", ".join(f"{kind} {count}" for kind, count in counts.items()))


if __name__ == "__main__":
    main()
