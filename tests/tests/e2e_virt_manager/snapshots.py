"""A machine's snapshots through the classes by which virt-manager reads and writes their XML, and the calls it makes.

    snapshots.py URI DOMAIN list
    snapshots.py URI DOMAIN create NAME DESCRIPTION
    snapshots.py URI DOMAIN revert|delete NAME

`list` prints a JSON object by name: what virt-manager shows of each snapshot.
"""

import json
import sys

sys.path.insert(0, "/usr/share/virt-manager")

import libvirt
import virtinst


def shown(connection, snapshot):
    parsed = virtinst.DomainSnapshot(connection, snapshot.getXMLDesc(0))
    parsed.validate()
    return {
        "name": parsed.name,
        "first_line": (parsed.description or "").split("\n")[0],
        "parent": parsed.parent,
        "state": parsed.state,
        "memory": parsed.memory_type,
        "disks": {disk.name: disk.snapshot for disk in parsed.disks},
        "current": snapshot.isCurrent(0) == 1,
    }


def main(uri, name, work, *arguments):
    connection = virtinst.VirtinstConnection(uri)
    connection.open(None, None)
    domain = connection.lookupByName(name)
    if work == "list":
        rows = [shown(connection, snapshot) for snapshot in domain.listAllSnapshots()]
        json.dump({row["name"]: row for row in rows}, sys.stdout)
    elif work == "create":
        new = virtinst.DomainSnapshot(connection)
        new.name, new.description = arguments
        domain.snapshotCreateXML(new.get_xml(), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC)
    elif work == "revert":
        domain.revertToSnapshot(domain.snapshotLookupByName(arguments[0]))
    elif work == "delete":
        domain.snapshotLookupByName(arguments[0]).delete(0)
    else:
        raise SystemExit(f"unknown work {work!r}")


main(*sys.argv[1:])
