"""libvirt's own way of deleting all snapshots of a machine, on a warm connection.

    cascade.py URI DOMAIN leaf-first|root-first|children

Answers with two numbers: the seconds that all of it took, and the seconds of the longest single call. The snapshots are
in one line, each the child of the one before.
"""

import sys
import time

import libvirt


def main():
    connection = libvirt.open(sys.argv[1])
    domain = connection.lookupByName(sys.argv[2])
    line = domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)
    if sys.argv[3] == "children":
        calls = [lambda: line[0].delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN)]
    else:
        order = line if sys.argv[3] == "root-first" else reversed(line)
        calls = [snapshot.delete for snapshot in order]
    times = []
    for call in calls:
        begun = time.monotonic()
        call()
        times.append(time.monotonic() - begun)
    print(sum(times), max(times))


main()
