// One snapshot in the tree. A row is made once and then only changed where the snapshot did, so that the focus, and
// whatever the user selected, survives what others do to other snapshots.

import type { Answer } from "../capabilities";
import { isChangeable, isRevertible } from "../capabilities";
import { SnapshotContent, SnapshotOrigin, SnapshotState, type Snapshot } from "../gen/ravada/snapshot/v1/snapshot_pb";
import { age, bytes, lastPart, machineTime, moment } from "../format";
import { explainReason } from "../errors";
import { t } from "../text";
import { button, fill, h, setAttribute, setText, type Child } from "./dom";

/** What the user can ask for at a row. */
export interface RowActions {
  revert(snapshot: string): void;
  edit(snapshot: string): void;
  remove(snapshot: string): void;
}

/** What all rows of a tree have in common. */
export interface RowContext {
  /** Whether anything can be asked for now. */
  readonly mayChange: boolean;
  readonly revert: Answer;
  readonly remove: Answer;
  readonly now: Date;
}

/** A snapshot in the tree. */
export class Row {
  readonly element = h("div", { class: "rs-row", "data-testid": "snapshot-row" });
  readonly #title = h("span", { class: "rs-title", dir: "auto", "data-testid": "snapshot-title" });
  readonly #marks = h("span", { class: "rs-marks" });
  readonly #facts = h("p", { class: "rs-facts" });
  readonly #age = h("span", { class: "rs-age" });
  readonly #description = h("p", { class: "rs-description", dir: "auto", "data-testid": "snapshot-description" });
  readonly #revert: HTMLButtonElement;
  readonly #edit: HTMLButtonElement;
  readonly #remove: HTMLButtonElement;
  #shown: Snapshot | undefined;
  #orphan = false;

  constructor(name: string, actions: RowActions) {
    this.#revert = button("plain", t("row.revert"), { "data-testid": "snapshot-revert" }, () => actions.revert(name));
    this.#edit = button("plain", t("row.edit"), { "data-testid": "snapshot-edit" }, () => actions.edit(name));
    this.#remove = button("plain", t("row.remove"), { "data-testid": "snapshot-remove" }, () => actions.remove(name));
    this.element.append(
      h("div", { class: "rs-row-text" }, h("p", { class: "rs-head" }, this.#title, this.#marks), this.#facts, this.#description),
      h("div", { class: "rs-row-actions" }, this.#revert, this.#edit, this.#remove),
    );
  }

  /** Brings the row up to date. */
  show(snapshot: Snapshot, orphan: boolean, context: RowContext): void {
    if (snapshot !== this.#shown || orphan !== this.#orphan) {
      this.#shown = snapshot;
      this.#orphan = orphan;
      this.#showSnapshot(snapshot);
    }
    setText(this.#age, snapshot.createTime ? age(snapshot.createTime, context.now) : "");
    this.#revert.disabled = !(context.mayChange && context.revert.possible && isRevertible(snapshot));
    this.#edit.disabled = !(context.mayChange && isChangeable(snapshot));
    this.#remove.disabled = !(context.mayChange && context.remove.possible && isChangeable(snapshot));
  }

  #showSnapshot(snapshot: Snapshot): void {
    const { displayName: name, description, createTime, sizeBytes } = snapshot;
    setAttribute(this.element, "data-snapshot-name", name);
    setAttribute(this.element, "data-snapshot-id", lastPart(snapshot.name));
    setAttribute(this.element, "data-state", SnapshotState[snapshot.state]);
    setText(this.#title, name);
    fill(this.#marks, ...marks(snapshot));
    fill(
      this.#facts,
      createTime && h("time", { datetime: machineTime(createTime), "data-testid": "snapshot-time" }, moment(createTime)),
      createTime && this.#age,
      sizeBytes > 0n && h("span", { "data-testid": "snapshot-size" }, t("row.size", { size: bytes(sizeBytes) })),
      this.#orphan && h("span", { "data-testid": "snapshot-orphan" }, t("tree.orphan")),
    );
    setText(this.#description, description);
    this.#description.hidden = description === "";
    setAttribute(this.#revert, "aria-label", t("row.revert.label", { name }));
    setAttribute(this.#edit, "aria-label", t("row.edit.label", { name }));
    setAttribute(this.#remove, "aria-label", t("row.remove.label", { name }));
  }
}

function marks(snapshot: Snapshot): Child[] {
  const mark = (id: string, text: string, more?: string, kind = "light") =>
    h(
      "span",
      { class: `badge badge-${kind} rs-badge`, "data-testid": `mark-${id}`, title: more },
      text,
      // What a mouse finds by waiting is there for those who have none, too.
      more !== undefined && h("span", { class: "rs-unseen" }, ` (${more})`),
    );
  const list: Child[] = [];
  if (snapshot.content === SnapshotContent.DISKS_AND_MEMORY) {
    list.push(mark("memory", t("mark.memory")));
  } else if (snapshot.content === SnapshotContent.DISKS) {
    list.push(mark("disks", t("mark.disks")));
  }
  if (snapshot.protected) {
    list.push(mark("protected", t("mark.protected"), t("mark.protected.text")));
  }
  if (snapshot.origin === SnapshotOrigin.FOREIGN) {
    list.push(mark("foreign", t("mark.foreign"), t("mark.foreign.text")));
  }
  switch (snapshot.state) {
    case SnapshotState.BROKEN:
      list.push(mark("broken", t("mark.broken"), explainReason(snapshot.stateReason, t("mark.broken.text")), "danger"));
      break;
    case SnapshotState.CREATING:
      list.push(mark("creating", t("mark.creating"), undefined, "light"));
      break;
    case SnapshotState.DELETING:
      list.push(mark("deleting", t("mark.deleting"), undefined, "light"));
      break;
    default:
      break;
  }
  return list;
}
