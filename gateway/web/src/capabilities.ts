// What the user may press now, and why not: from the machine's capabilities, what is being done to it, and whether this
// page is in touch with the service. The service decides again on each request; this is to say it before the click.

import type { Duration } from "@bufbuild/protobuf/wkt";
import { explainReason } from "./errors";
import { OperationMethod } from "./gen/ravada/snapshot/v1/operation_pb";
import { SnapshotContent, SnapshotState, type Snapshot } from "./gen/ravada/snapshot/v1/snapshot_pb";
import { CapabilityKind, VmState, type Capability, type Vm } from "./gen/ravada/snapshot/v1/vm_pb";
import type { Contents } from "./state";

/** Whether a thing may be asked for, and the reason in the user's words when not. */
export interface Answer {
  readonly possible: boolean;
  readonly reason: string;
}

/** How the form for a new snapshot offers the running state. */
export interface CreateOffer {
  /** Whether any snapshot can be taken. */
  readonly create: Answer;
  /** Whether the running state is the user's choice, always kept, or never kept. */
  readonly memory: "choice" | "required" | "impossible";
  /** Why it is not the user's choice; empty when it is. */
  readonly memoryReason: string;
  /** Whether it is kept unless the user decides: as the service does it, not where the disks can be had while the machine runs on. */
  readonly memoryAtFirst: boolean;
}

const YES: Answer = { possible: true, reason: "" };
/** The reason of the service that speaks of a snapshot of the disks alone, and not of the machine. */
const LIVE_DISKS = "LIVE_DISKS_UNSUPPORTED";

/** What kinds of snapshot the machine can have now. */
export function createOffer(vm: Vm): CreateOffer {
  const disks = answer(vm, CapabilityKind.CREATE_DISKS);
  const memory = answer(vm, CapabilityKind.CREATE_DISKS_AND_MEMORY);
  if (disks.possible && memory.possible) {
    return { create: YES, memory: "choice", memoryReason: "", memoryAtFirst: !isLive(vm) };
  }
  if (memory.possible) {
    return { create: YES, memory: "required", memoryReason: disks.reason, memoryAtFirst: true };
  }
  // "Keep the running state too" is no advice where that cannot be kept either: then its own reason is the one to tell.
  const reason = find(vm, CapabilityKind.CREATE_DISKS)?.reason === LIVE_DISKS ? memory.reason : disks.reason;
  const create = disks.possible ? YES : { possible: false, reason };
  return { create, memory: "impossible", memoryReason: memory.reason, memoryAtFirst: false };
}

function isLive(vm: Vm): boolean {
  return vm.state === VmState.RUNNING && find(vm, CapabilityKind.CREATE_DISKS)?.method === OperationMethod.LIVE;
}

/** How many snapshots can still be kept, and of how many: by the machine's limit or the user's, whichever is nearer. */
export function snapshotsLeft(vm: Vm): { left: number; most: number } | undefined {
  const of = (limit: number, used: number) => ({ left: Math.max(0, limit - used), most: limit });
  const user = vm.userQuota;
  // A service from before there were quotas tells the machine's limit alone.
  return [of(vm.snapshotLimit, vm.snapshotCount), of(Number(user?.snapshotLimit ?? 0), Number(user?.snapshotsUsed ?? 0))]
    .filter(({ most }) => most > 0)
    .sort((one, other) => one.left - other.left)[0];
}

/** How long the guest would stand still; undefined when it would not. A null length means that nobody can say. */
export function createPause(vm: Vm, content: SnapshotContent): Duration | null | undefined {
  const kind =
    content === SnapshotContent.DISKS_AND_MEMORY
      ? CapabilityKind.CREATE_DISKS_AND_MEMORY
      : CapabilityKind.CREATE_DISKS;
  const capability = find(vm, kind);
  return capability?.pauses ? (capability.predictedPause ?? null) : undefined;
}

/** Whether the machine can go back to a snapshot at all. */
export function revertAnswer(vm: Vm): Answer {
  return answer(vm, CapabilityKind.REVERT);
}

/** Whether a snapshot of the machine can be removed at all. */
export function removeAnswer(vm: Vm): Answer {
  return answer(vm, CapabilityKind.DELETE);
}

/** Whether this page may ask for changes: in touch, the host reachable, nothing else going on. */
export function mayChange(contents: Contents, live: boolean): boolean {
  const { vm } = contents;
  return live && vm !== undefined && vm.hostReachable && vm.activeOperation === "" && contents.active.size === 0;
}

/** Whether this snapshot can be gone back to, as far as it is itself concerned. */
export function isRevertible(snapshot: Snapshot): boolean {
  return snapshot.state === SnapshotState.READY;
}

/** Whether this snapshot can be removed or edited, as far as it is itself concerned. */
export function isChangeable(snapshot: Snapshot): boolean {
  return snapshot.state === SnapshotState.READY || snapshot.state === SnapshotState.BROKEN;
}

function answer(vm: Vm, kind: CapabilityKind): Answer {
  const capability = find(vm, kind);
  if (!capability || capability.available) {
    return YES;
  }
  return { possible: false, reason: explainReason(capability.reason, capability.message) };
}

function find(vm: Vm, kind: CapabilityKind): Capability | undefined {
  return vm.capabilities.find((capability) => capability.kind === kind);
}
