// Messages for the tests, from the few fields that a test is about.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { OperationKind, OperationSchema, OperationState, type Operation } from "../src/gen/ravada/snapshot/v1/operation_pb";
import { SnapshotSchema, SnapshotState, type Snapshot } from "../src/gen/ravada/snapshot/v1/snapshot_pb";
import { WatchVmResponseSchema, type WatchVmResponse } from "../src/gen/ravada/snapshot/v1/snapshot_service_pb";
import { VmSchema, VmState, type Vm } from "../src/gen/ravada/snapshot/v1/vm_pb";

/** A machine. */
export function vm(fields: MessageInitShape<typeof VmSchema> = {}): Vm {
  return create(VmSchema, { name: "vms/1", displayName: "desktop", hostReachable: true, state: VmState.SHUTOFF, ...fields });
}

/** A snapshot `name` on top of `parent`; taken at the minute given, or in the order of their names. */
export function snapshot(name: string, parent = "", minute = name.charCodeAt(0), more = {}): Snapshot {
  return create(SnapshotSchema, {
    name,
    displayName: `the ${name}`,
    parentSnapshot: parent,
    createTime: timestampFromMs(minute * 60_000),
    state: SnapshotState.READY,
    ...more,
  });
}

/** An operation. */
export function operation(name: string, state: OperationState, more = {}): Operation {
  return create(OperationSchema, { name, vm: "vms/1", kind: OperationKind.CREATE, state, ...more });
}

/** Messages of a watch, each with a resume token that says which it is: `t1`, `t2`, and so on. */
export function messages(...events: WatchVmResponse["event"][]): WatchVmResponse[] {
  return events.map((event, index) => create(WatchVmResponseSchema, { event, resumeToken: `t${index + 1}` }));
}

export const RESET: WatchVmResponse["event"] = { case: "reset", value: { $typeName: "ravada.snapshot.v1.WatchVmResponse.Reset" } };
export const SYNCED: WatchVmResponse["event"] = { case: "synced", value: { $typeName: "ravada.snapshot.v1.WatchVmResponse.Synced" } };

/** The event that tells a machine. */
export const vmEvent = (value: Vm): WatchVmResponse["event"] => ({ case: "vm", value });
/** The event that tells a snapshot. */
export const snapshotEvent = (value: Snapshot): WatchVmResponse["event"] => ({ case: "snapshot", value });
/** The event that tells that a snapshot is gone. */
export const removedEvent = (value: string): WatchVmResponse["event"] => ({ case: "removedSnapshot", value });
/** The event that tells an operation. */
export const operationEvent = (value: Operation): WatchVmResponse["event"] => ({ case: "operation", value });
