"""libvirt's own calls on one warm connection, timed one by one.

    baseline.py URI DOMAIN

Reads `create`, `list`, `revert` or `delete` from standard input, a line each, does it, and answers with the seconds it
took. The list is what a caller needs to show one: every snapshot with its XML.
"""

import sys
import time

import libvirt

SNAPSHOT = "<domainsnapshot><name>bench-libvirt</name><description>bench</description></domainsnapshot>"


def main():
    connection = libvirt.open(sys.argv[1])
    domain = connection.lookupByName(sys.argv[2])
    snapshot = None
    for line in sys.stdin:
        work = line.strip()
        begun = time.monotonic()
        if work == "create":
            snapshot = domain.snapshotCreateXML(SNAPSHOT)
        elif work == "list":
            for listed in domain.listAllSnapshots():
                listed.getXMLDesc()
        elif work == "revert":
            domain.revertToSnapshot(snapshot)
        elif work == "delete":
            snapshot.delete()
        else:
            raise SystemExit(f"unknown work {work!r}")
        print(time.monotonic() - begun, flush=True)


main()
