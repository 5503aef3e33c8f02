#!/usr/bin/env python3
"""What a test run leaves on the machine: processes, mounts, network namespaces, domains and files.

    leftovers.py record STATE           before the run: writes down what is there
    leftovers.py check STATE [SECONDS]  after it: names what is there and was not, and exits 1 if anything is

Processes that were killed, and those that clean up, get SECONDS (30) to be gone. Nothing is ended or removed here.

The run is known by $TEST_RUN, a word of its own in the environment of all that it starts, and has $TEST_RUN_TMP as its directory
for temporary files. Others may test on the same machine at the same time: what is theirs, by that word, by the target directory of
another tree or by the program that owns a directory rs-* in /tmp or /dev/shm, is not told of. $TEST_RUN_LIBVIRT (/) is the root below which the machine's own libvirt has its directories.
"""

import glob
import json
import os
import re
import sys
import time

TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.environ.get("CARGO_TARGET_DIR") or os.path.join(TREE, "target")
RUN = os.environ.get("TEST_RUN", "")
TMP = os.environ.get("TEST_RUN_TMP", "")
LIBVIRT = os.environ.get("TEST_RUN_LIBVIRT", "/")

# What tests start, by the name of the process.
PROGRAMS = re.compile(
    r"qemu-|libvirtd$|virt(qemu|log|lock|network|storage)d?$|virtlogd|swtpm|dbus-daemon|dbus-launch|chrom(e|ium)|snapshot-|snapctl$"
    r"|(demo|smoke|stage|faults|trespass|versions|say)$"
)
SCRATCH = re.compile(r"/(?:tmp|dev/shm)/rs-[A-Za-z0-9]+")
# Where a private libvirt mounts its directories, in a mount namespace of its own.
PRIVATE = re.compile(r"/(run|var/lib|var/log|var/cache|etc)/libvirt(/|$)")


def text(path):
    try:
        with open(path, "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def link(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""


def scratch_is_ours(directory):
    """Whether a program of this tree owns it; one without an owner, or that is gone, may well be."""
    lines = text(os.path.join(directory, "owner")).splitlines()
    program = lines[1] if len(lines) > 1 else link(f"/proc/{lines[0].split()[0]}/exe") if lines and lines[0] else ""
    return not program or program.startswith(TARGET + "/")


def is_ours(path):
    directories = SCRATCH.findall(path)
    return TARGET + "/" in path or (TMP and TMP in path) or any(scratch_is_ours(it) for it in directories)


def of_another_tree(places):
    """Whether this names the target directory of a workspace that is not this one."""
    trees = re.findall(r"(/[^\s,=:'\"]*)/target/", places)
    return any(os.path.exists(os.path.join(tree, "Cargo.toml")) for tree in trees)


def ancestors(pid):
    """The programs of a process and of those that it descends from."""
    while pid > 1:
        yield link(f"/proc/{pid}/exe")
        stat = text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        pid = int(stat[1]) if len(stat) > 1 else 0


class Process:
    def __init__(self, pid):
        at = f"/proc/{pid}"
        self.pid = pid
        stat = text(f"{at}/stat").rpartition(")")[2].split()
        self.state, self.parent, self.start = (stat[0], int(stat[1]), stat[19]) if len(stat) > 19 else ("X", 0, "")
        self.name = text(f"{at}/comm").strip()
        self.command = text(f"{at}/cmdline").strip()
        self.environment = text(f"{at}/environ")
        self.places = "\n".join([self.command, link(f"{at}/cwd"), link(f"{at}/exe")])
        self.root = link(f"{at}/root")
        self.network, self.mount_namespace = link(f"{at}/ns/net"), link(f"{at}/ns/mnt")
        self.mounts = text(f"{at}/mountinfo")

    def key(self):
        return f"{self.pid} {self.start}"

    def is_alive(self):
        return self.state not in "XZ"

    def is_of_this_run(self):
        words = dict(it.split("=", 1) for it in self.environment.split(" ") if it.startswith("TEST_RUN="))
        if words:
            return words["TEST_RUN"] == RUN
        # In another root tests run on their own (make bare-test).
        if self.root != "/":
            return False
        # libvirt starts QEMU with an environment of its own.
        if is_ours(self.places):
            return True
        apart = self.mounts if self.is_apart() else ""
        if of_another_tree(self.places + apart) or any(map(of_another_tree, ancestors(self.parent))):
            return False
        if SCRATCH.search(self.places + self.environment + apart):
            return is_ours(self.environment + apart)
        return bool(PROGRAMS.match(self.name))

    def is_apart(self):
        """Whether it has a mount namespace of its own."""
        return self.mount_namespace != link("/proc/self/ns/mnt")

    def __str__(self):
        return f"{self.pid} ({self.name}), child of {self.parent}: {self.command[:300]}"


def processes():
    found = [Process(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    by_pid = {process.pid: process for process in found}
    kept, pid = set(), os.getpid()
    while pid in by_pid:
        kept.add(pid)
        pid = by_pid[pid].parent
    return [process for process in found if process.pid not in kept and process.is_alive()]


def mounts(table):
    """Root and place of each mount, which `mountinfo` has in its fourth and fifth column, with the kind of file system."""
    lines = (line.split(" - ") for line in table.splitlines() if " - " in line)
    return {" ".join([*left.split()[3:5], right.split()[0]]) for left, right in lines}


def network_names():
    return {os.path.basename(path) for path in glob.glob("/run/netns/*")}


def domains():
    places = ["etc/libvirt/qemu", "run/libvirt/qemu", "var/lib/libvirt/qemu/snapshot", "var/lib/libvirt/qemu/save"]
    found = set()
    for place in places:
        for folder, _, files in os.walk(os.path.join(LIBVIRT, place)):
            found.update(os.path.join(folder, name) for name in files if name.endswith((".xml", ".save", ".pid")))
    return found


def files():
    """Temporary ones: all of a run's own directory, and what is in target/tmp, and in the directories there, which stay."""
    places = ["/tmp/rs-*", "/dev/shm/rs-*", f"{TARGET}/tmp/*/*"] + ([f"{TMP}/*", f"{TMP}/.[!.]*"] if TMP else [])
    found = {path for place in places for path in glob.glob(place)}
    return found | {path for path in glob.glob(f"{TARGET}/tmp/*") if not os.path.isdir(path)}


def contents(path):
    """What a directory holds, by which its maker is found."""
    names = sorted(os.listdir(path)) if os.path.isdir(path) else []
    more = ", ..." if len(names) > 5 else ""
    return f" with {', '.join(names[:5])}{more}" if names else ""


def present():
    return {
        "processes": [process.key() for process in processes()],
        "mounts": sorted(mounts(text("/proc/self/mountinfo"))),
        "names": sorted(network_names()),
        "networks": sorted({process.network for process in processes()}),
        "domains": sorted(domains()),
        "files": sorted(files()),
    }


def left(before):
    """A line for each thing that is there and was not."""
    known, found = set(before["processes"]), []
    ours = [process for process in processes() if process.key() not in known and process.is_of_this_run()]
    found += [f"process: {process}" for process in ours]
    new = mounts(text("/proc/self/mountinfo")) - set(before["mounts"])
    wrong = (mount for mount in new if is_ours(mount) or PRIVATE.search(mount.split()[1]) or mount.endswith(" nsfs"))
    found += [f"mount: {mount}" for mount in wrong]
    seen = {link("/proc/self/ns/mnt")}
    for process in ours:
        if process.mount_namespace not in seen:
            seen.add(process.mount_namespace)
            apart = [mount for mount in mounts(process.mounts) if is_ours(mount)]
            found += [f"mount: {mount}, in the namespace of process {process.pid}" for mount in apart]
    found += [f"network namespace: {name}" for name in network_names() - set(before["names"])]
    networks = {process.network: process.pid for process in ours if process.network not in before["networks"]}
    found += [f"network namespace: {name} of process {pid}" for name, pid in networks.items()]
    found += [f"domain: {path}" for path in domains() - set(before["domains"])]
    known = set(before["files"])
    # A directory that is told of stands for what is in it.
    new = sorted(path for path in files() - known if is_ours(path))
    return found + [f"file: {path}{contents(path)}" for path in new if os.path.dirname(path) not in new]


def check(state, seconds):
    with open(state, encoding="utf-8") as file:
        before = json.load(file)
    deadline = time.monotonic() + seconds
    while (found := left(before)) and time.monotonic() < deadline:
        time.sleep(1)
    for line in sorted(found):
        print(f"left by the test run: {line}")
    return 1 if found else 0


def main(arguments):
    match arguments:
        case ["record", state]:
            with open(state, "w", encoding="utf-8") as file:
                json.dump(present(), file)
            return 0
        case ["check", state]:
            return check(state, 30)
        case ["check", state, seconds]:
            return check(state, float(seconds))
        case _:
            print(__doc__, file=sys.stderr)
            return 2


sys.exit(main(sys.argv[1:]))
