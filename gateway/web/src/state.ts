// The state of one machine, as told by WatchVm: a reducer without effects.
//
// A watch begins with a Reset, the whole state, and Synced; changes follow. A watch that resumes leaves the Reset out.
// While the whole state arrives, what was known before stays on show, and is exchanged at Synced: a reconnect must not
// make the page flicker. Operations that were running before and are not in the new state ended while nobody looked:
// they become `unsettled`, for the caller to ask how they ended.

import { SPENT } from "./errors";
import { OperationState, type Operation } from "./gen/ravada/snapshot/v1/operation_pb";
import type { Snapshot } from "./gen/ravada/snapshot/v1/snapshot_pb";
import type { WatchVmResponse } from "./gen/ravada/snapshot/v1/snapshot_service_pb";
import type { Vm } from "./gen/ravada/snapshot/v1/vm_pb";

/** How many ended operations are remembered and reported: older ones are of no interest to anybody. */
const ENDED_KEPT = 20;

/** A machine with its snapshots and what is being done to it, by resource name. */
export interface Contents {
  readonly vm: Vm | undefined;
  readonly snapshots: ReadonlyMap<string, Snapshot>;
  /** Operations that have not ended. */
  readonly active: ReadonlyMap<string, Operation>;
}

/** Everything the page knows of a machine. */
export interface Model {
  /** What to show; undefined until the first Synced. */
  readonly shown: Contents | undefined;
  /** The whole state while it arrives; undefined when none does. */
  readonly incoming: Contents | undefined;
  /** Where a watch resumes; empty for the beginning. */
  readonly resumeToken: string;
  /** Operations that this page saw running and that have ended, oldest first. */
  readonly ended: readonly Operation[];
  /** Names of operations whose end nobody has told yet. */
  readonly unsettled: readonly string[];
  /** Ends that came before the answer that names the operation as ours. */
  readonly early: readonly Operation[];
  /** Names of ended operations whose outcome the user has read. */
  readonly dismissed: readonly string[];
}

/** Nothing known yet. */
export const EMPTY: Model = {
  shown: undefined,
  incoming: undefined,
  resumeToken: "",
  ended: [],
  unsettled: [],
  early: [],
  dismissed: [],
};

interface Draft {
  vm: Vm | undefined;
  snapshots: Map<string, Snapshot>;
  active: Map<string, Operation>;
}

/** The model after some messages of a watch, in their order. Taken together, they cost one copy of the state. */
export function applyMessages(model: Model, messages: readonly WatchVmResponse[]): Model {
  let shown = model.shown && draft(model.shown);
  let incoming = model.incoming && draft(model.incoming);
  let ends: Ends = { ended: model.ended, unsettled: model.unsettled, early: model.early };
  let resumeToken = model.resumeToken;
  const target = (): Draft => incoming ?? shown ?? (incoming = draft());
  for (const { event, resumeToken: token } of messages) {
    resumeToken = token || resumeToken;
    switch (event.case) {
      case "reset":
        incoming = draft();
        break;
      case "vm":
        target().vm = event.value;
        break;
      case "snapshot":
        target().snapshots.set(event.value.name, event.value);
        break;
      case "removedSnapshot":
        removeSnapshot(target().snapshots, event.value);
        break;
      case "operation":
        ends = takeOperation(target().active, shown?.active, ends, event.value);
        break;
      case "synced":
        if (incoming) {
          ends = { ...ends, unsettled: missing(ends, shown?.active, incoming.active) };
        }
        shown = target();
        incoming = undefined;
        break;
      case undefined:
        // A kind of event that a newer service sends and this page does not know.
        break;
    }
  }
  return { ...model, ...ends, shown, incoming, resumeToken };
}

/**
 * The model after the answer to a mutation of ours, or to a question after an unsettled operation. The watch tells the
 * same and may have been faster: what it told stands.
 */
export function applyAnswer(model: Model, operation: Operation): Model {
  if (operation.name === "" || model.ended.some((known) => known.name === operation.name)) {
    return model;
  }
  const unsettled = model.unsettled.filter((name) => name !== operation.name);
  const early = model.early.find((known) => known.name === operation.name);
  const outcome = early ?? (isEnded(operation) ? operation : undefined);
  if (!model.shown) {
    return { ...model, unsettled };
  }
  const active = new Map(model.shown.active);
  if (outcome) {
    active.delete(operation.name);
    return { ...model, shown: { ...model.shown, active }, unsettled, ended: keep(model.ended, outcome) };
  }
  if (!active.has(operation.name)) {
    active.set(operation.name, operation);
  }
  return { ...model, shown: { ...model.shown, active }, unsettled };
}

/**
 * As `applyAnswer`, for what the user has just asked for: good news of before would only stand in the way of what comes
 * now. News of the operation itself are not of before, even if the watch was faster than the answer.
 */
export function applyAccepted(model: Model, operation: Operation): Model {
  const isOld = (ended: Operation) => ended.state !== OperationState.FAILED && ended.name !== operation.name;
  const old = outcomes(model).filter(isOld);
  return applyAnswer(old.reduce((before, ended) => dismiss(before, ended.name), model), operation);
}

/** The model after the user has read how an operation ended. */
export function dismiss(model: Model, name: string): Model {
  // Kept in `ended`, so that an answer that comes late does not bring it up again.
  return { ...model, dismissed: [...model.dismissed, name].slice(-ENDED_KEPT) };
}

/**
 * The ended operations that the user has not yet dismissed, oldest first. One whose token was used up was never begun: who
 * asked for it asks again, or has been told.
 */
export function outcomes(model: Model): Operation[] {
  return model.ended.filter((operation) => !model.dismissed.includes(operation.name) && operation.error?.reason !== SPENT);
}

/** The model without the question how an operation ended, when nobody can tell. */
export function forgetUnsettled(model: Model, name: string): Model {
  return { ...model, unsettled: model.unsettled.filter((unsettled) => unsettled !== name) };
}

/** Whether an operation is over. */
export function isEnded(operation: Operation): boolean {
  return (
    operation.state === OperationState.SUCCEEDED ||
    operation.state === OperationState.FAILED ||
    operation.state === OperationState.CANCELLED
  );
}

/** The name of the snapshot that the machine's present descends from; empty when there is none. */
export function currentSnapshot(contents: Contents): string {
  // The machine's own word first: while a change is being told, two snapshots may say for a moment that they are it.
  const told = contents.vm?.currentSnapshot ?? "";
  if (told !== "") {
    return told;
  }
  for (const snapshot of contents.snapshots.values()) {
    if (snapshot.isCurrent) {
      return snapshot.name;
    }
  }
  return "";
}

/** The part of the model that operations write to when they end. */
interface Ends {
  readonly ended: readonly Operation[];
  readonly unsettled: readonly string[];
  readonly early: readonly Operation[];
}

/**
 * Takes a snapshot out. What was built on it is built on its parent from then on; the service says so as well, before or
 * after, and in between nothing shall look as if it had lost its place.
 */
function removeSnapshot(snapshots: Map<string, Snapshot>, name: string): void {
  const parentSnapshot = snapshots.get(name)?.parentSnapshot ?? "";
  snapshots.delete(name);
  for (const snapshot of snapshots.values()) {
    if (snapshot.parentSnapshot === name) {
      snapshots.set(snapshot.name, { ...snapshot, parentSnapshot });
    }
  }
}

function takeOperation(
  active: Map<string, Operation>,
  before: ReadonlyMap<string, Operation> | undefined,
  ends: Ends,
  operation: Operation,
): Ends {
  const { name } = operation;
  const unsettled = ends.unsettled.filter((other) => other !== name);
  if (!isEnded(operation)) {
    const over = ends.ended.some((other) => other.name === name);
    if (!over) {
      active.set(name, operation);
    }
    return { ...ends, unsettled };
  }
  const seen = active.delete(name) || (before?.has(name) ?? false) || ends.unsettled.includes(name);
  if (ends.ended.some((other) => other.name === name)) {
    return { ...ends, unsettled };
  }
  return seen
    ? { ...ends, unsettled, ended: keep(ends.ended, operation) }
    : { ...ends, unsettled, early: keep(ends.early, operation) };
}

function missing(
  ends: Ends,
  before: ReadonlyMap<string, Operation> | undefined,
  now: ReadonlyMap<string, Operation>,
): string[] {
  const names = new Set([...ends.unsettled, ...(before?.keys() ?? [])]);
  const told = (name: string) => now.has(name) || ends.ended.some((operation) => operation.name === name);
  return [...names].filter((name) => !told(name));
}

function keep(operations: readonly Operation[], operation: Operation): Operation[] {
  return [...operations.filter((known) => known.name !== operation.name), operation].slice(-ENDED_KEPT);
}

function draft(contents?: Contents): Draft {
  return {
    vm: contents?.vm,
    snapshots: new Map(contents?.snapshots),
    active: new Map(contents?.active),
  };
}
