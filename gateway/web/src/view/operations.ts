// What is being done to the machine, with its progress, and how it ended.

import { explainOperation } from "../errors";
import { OperationKind, OperationNoteKind, OperationState, type Operation } from "../gen/ravada/snapshot/v1/operation_pb";
import { bytes, duration, percentage } from "../format";
import { outcomes, type Model } from "../state";
import { t, type TextKey } from "../text";
import { errorAlert, notice } from "./alert";
import { button, fill, h, place, setAttribute, setText } from "./dom";

/** What the user can ask for at an operation. */
export interface OperationActions {
  cancel(operation: string): void;
  dismiss(operation: string): void;
  /** Goes back to the snapshot that a revert has made of what was there before it. */
  undo(saved: string): void;
  /** Whether that can be asked for now. */
  canUndo(saved: string): boolean;
}

/** The running operations and the outcomes of those that ended. */
export class OperationsView {
  readonly element = h("div", { class: "rs-operations" });
  readonly #active = h("div");
  // Regions must be there before what is read out from them comes. Of what begins only the name is read, not each percent.
  readonly #begun = h("p", { class: "rs-unseen", role: "status", "data-testid": "operation-begun" });
  readonly #outcomes = h("div", { "aria-live": "polite" });
  readonly #actions: OperationActions;
  readonly #bars = new Map<string, Bar>();
  readonly #boxes = new Map<string, { readonly names: string; readonly element: HTMLElement; readonly undo?: HTMLButtonElement }>();
  /** Display names of snapshots by resource name, kept after the snapshot is gone: its removal is yet to be told. */
  readonly #names = new Map<string, string>();

  constructor(actions: OperationActions) {
    this.#actions = actions;
    this.element.append(this.#begun, this.#active, this.#outcomes);
  }

  /** Brings everything up to date. */
  show(model: Model): void {
    for (const { name, displayName } of model.shown?.snapshots.values() ?? []) {
      this.learn(name, displayName);
    }
    this.#showActive([...(model.shown?.active.values() ?? [])]);
    this.#showOutcomes(outcomes(model));
  }

  /** The name of a snapshot as the user knows it. */
  nameOf(snapshot: string): string {
    return this.#names.get(snapshot) ?? t("operation.noName");
  }

  /** Notes the name of a snapshot before the watch tells of it. */
  learn(snapshot: string, displayName: string): void {
    this.#names.set(snapshot, displayName);
  }

  #showActive(active: readonly Operation[]): void {
    const names = new Set(active.map((operation) => operation.name));
    for (const name of this.#bars.keys()) {
      if (!names.has(name)) {
        this.#bars.delete(name);
      }
    }
    for (const operation of active) {
      let bar = this.#bars.get(operation.name);
      if (!bar) {
        bar = new Bar(() => this.#actions.cancel(operation.name));
        setText(this.#begun, this.#what(operation));
        this.#bars.set(operation.name, bar);
      }
      bar.show(operation, this.#what(operation));
    }
    place(this.#active, [...this.#bars.values()].map((bar) => bar.element));
  }

  #showOutcomes(ended: readonly Operation[]): void {
    const names = new Set(ended.map((operation) => operation.name));
    for (const name of this.#boxes.keys()) {
      if (!names.has(name)) {
        this.#boxes.delete(name);
      }
    }
    for (const operation of ended) {
      // The end may be told before the snapshots it speaks of are: the box is made anew when their names come.
      const spoken = `${this.nameOf(operation.snapshot)}/${this.nameOf(operation.savedSnapshot)}`;
      if (this.#boxes.get(operation.name)?.names !== spoken) {
        const undo = this.#undo(operation);
        this.#boxes.set(operation.name, { names: spoken, element: this.#outcome(operation, undo), ...(undo && { undo }) });
      }
      const { undo } = this.#boxes.get(operation.name) ?? {};
      if (undo) {
        undo.disabled = !this.#actions.canUndo(operation.savedSnapshot);
      }
    }
    place(this.#outcomes, [...this.#boxes.values()].map((box) => box.element));
  }

  /** The way back from a revert that has kept what was there before. */
  #undo(operation: Operation): HTMLButtonElement | undefined {
    const saved = operation.savedSnapshot;
    return operation.state === OperationState.SUCCEEDED && kindName(operation) === "REVERT" && saved !== ""
      ? button("inAlert", t("done.undo"), { "data-testid": "operation-undo" }, () => this.#actions.undo(saved))
      : undefined;
  }

  #outcome(operation: Operation, undo: HTMLButtonElement | undefined): HTMLElement {
    const onDismiss = () => this.#actions.dismiss(operation.name);
    if (operation.state === OperationState.FAILED && operation.error) {
      const title = t("failed.title", { what: this.#what(operation) });
      return errorAlert(explainOperation(operation.error), title, onDismiss);
    }
    if (operation.state === OperationState.CANCELLED) {
      return notice("operation-cancelled", [t(kindName(operation) === "DELETE" ? "done.cancelled.DELETE" : "done.cancelled", { what: this.#what(operation) })], onDismiss);
    }
    const kind = kindName(operation);
    const saved = operation.savedSnapshot;
    const text =
      kind === "REVERT" && saved !== ""
        ? t("done.REVERT.saved", { name: this.nameOf(operation.snapshot), saved: this.nameOf(saved) })
        : t(`done.${kind}`, { name: this.nameOf(operation.snapshot) });
    const pause = operation.pause && ` ${t("done.pause", { time: duration(operation.pause) })}`;
    const clock = operation.notes.some((note) => note.kind === OperationNoteKind.GUEST_CLOCK_NOT_SET) && ` ${t("done.clock")}`;
    return notice("operation-done", [text, pause, clock], onDismiss, undo);
  }

  #what(operation: Operation): string {
    return t(`operation.${kindName(operation)}`, { name: this.nameOf(operation.snapshot) });
  }
}

/** One running operation. */
class Bar {
  readonly element = h("div", { class: "rs-operation", "data-testid": "operation-progress" });
  readonly #what = h("strong", { "data-testid": "operation-what" });
  readonly #phase = h("span", { class: "rs-small", "data-testid": "operation-phase" });
  readonly #percent = h("span", { class: "rs-small", "data-testid": "operation-percent" });
  readonly #bar = h("progress", { max: 100 });
  readonly #cancel: HTMLButtonElement;

  constructor(onCancel: () => void) {
    this.#cancel = button("plain", t("operation.cancel"), { "data-testid": "operation-cancel" }, onCancel);
    const text = h("div", { class: "rs-operation-text" }, this.#what, this.#phase, this.#percent);
    fill(this.element, text, h("div", { class: "rs-operation-bar" }, this.#bar, this.#cancel));
  }

  show(operation: Operation, what: string): void {
    const { progress, state } = operation;
    setAttribute(this.element, "data-operation", operation.name);
    setAttribute(this.element, "data-kind", kindName(operation));
    setAttribute(this.element, "data-state", OperationState[state]);
    setText(this.#what, what);
    setText(this.#phase, state === OperationState.PENDING ? t("operation.pending") : phase(progress?.phase ?? ""));
    setAttribute(this.#bar, "aria-label", what);
    // Without a value the browser shows that something goes on and nobody knows how far it is.
    const percent = progress && progress.percent > 0 ? Math.min(progress.percent, 100) : undefined;
    setAttribute(this.#bar, "value", percent);
    const amount =
      progress && progress.bytesTotal > 0n
        ? t("operation.bytes", { done: bytes(progress.bytesDone), total: bytes(progress.bytesTotal) })
        : "";
    setText(this.#percent, [percent === undefined ? "" : percentage(percent), amount].filter((text) => text !== "").join(" · "));
    this.#cancel.hidden = !operation.cancellable;
  }
}

/** The service's words for what it is at, and ours. */
export const PHASES: Readonly<Record<string, TextKey>> = {
  "saving the disks and the running state": "phase.saveAll",
  "saving the running state and laying overlays on the disks": "phase.saveAll",
  "saving the disks": "phase.saveDisks",
  "laying overlays on the disks": "phase.saveDisks",
  "writing the name and description": "phase.label",
  "going back to the snapshot": "phase.revert",
  "switching the machine off": "phase.off",
  "deleting a snapshot": "phase.delete",
  "merging what deleted snapshots leave": "phase.tidy",
  "removing what nothing needs": "phase.tidy",
  "waiting for libvirt": "operation.pending",
};

/** What is being done, in the user's language where it is known. */
function phase(words: string): string {
  const key = PHASES[words];
  return key ? t(key) : words;
}

function kindName(operation: Operation): keyof typeof OperationKind {
  return (OperationKind[operation.kind] as keyof typeof OperationKind | undefined) ?? "UNSPECIFIED";
}
