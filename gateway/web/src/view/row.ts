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
  readonly revert: Answer;
  readonly remove: Answer;
  readonly now: Date;
}

/** A snapshot in the tree. */
export class Row {
  readonly element = h("div", { class: "rs-row", "data-testid": "snapshot-row" });
  readonly #title = h("bdi", { class: "rs-title", "data-testid": "snapshot-title" });
  readonly #marks = h("span", { class: "rs-marks" });
  readonly #facts = h("p", { class: "rs-facts" });
  readonly #age = h("span", { class: "rs-age" });
  readonly #description = h("bdi", { "data-testid": "snapshot-description" });
  readonly #described = h("p", { class: "rs-description" }, this.#description);
  readonly #revert: HTMLButtonElement;
  readonly #edit: HTMLButtonElement;
  readonly #remove: HTMLButtonElement;
  #shown = "";

  constructor(name: string, actions: RowActions) {
    this.#revert = button("plain", t("row.revert"), { "data-testid": "snapshot-revert" }, () => actions.revert(name));
    this.#edit = button("plain", t("row.edit"), { "data-testid": "snapshot-edit" }, () => actions.edit(name));
    this.#remove = button("plain", t("row.remove"), { "data-testid": "snapshot-remove" }, () => actions.remove(name));
    this.element.append(
      h("div", { class: "rs-row-text" }, h("p", { class: "rs-head" }, this.#title, this.#marks), this.#facts, this.#described),
      h("div", { class: "rs-row-actions" }, this.#revert, this.#edit, this.#remove),
    );
  }

  /** Brings the row up to date. */
  show(snapshot: Snapshot, orphan: boolean, context: RowContext): void {
    const shown = fingerprint(snapshot, orphan);
    if (shown !== this.#shown) {
      this.#shown = shown;
      this.#showSnapshot(snapshot, orphan);
    }
    setText(this.#age, snapshot.createTime ? age(snapshot.createTime, context.now) : "");
    setAttribute(this.#revert, "disabled", !(context.revert.possible && isRevertible(snapshot)));
    setAttribute(this.#edit, "disabled", !isChangeable(snapshot));
    setAttribute(this.#remove, "disabled", !(context.remove.possible && isChangeable(snapshot)));
  }

  #showSnapshot(snapshot: Snapshot, orphan: boolean): void {
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
      orphan && h("span", { "data-testid": "snapshot-orphan" }, t("tree.orphan")),
    );
    setText(this.#description, description);
    this.#described.hidden = description === "";
    // What is written on a button stays the beginning of its name: people speak to it as they see it.
    setAttribute(this.#revert, "aria-label", `${t("row.revert")}: ${name}`);
    setAttribute(this.#edit, "aria-label", `${t("row.edit")}: ${name}`);
    setAttribute(this.#remove, "aria-label", `${t("row.remove")}: ${name}`);
  }
}

/** All of a snapshot that a row shows: one whose depth or parent alone is another looks as before. */
function fingerprint(snapshot: Snapshot, orphan: boolean): string {
  const { displayName, description, createTime, sizeBytes, content, origin, state, stateReason } = snapshot;
  const time = createTime ? machineTime(createTime) : "";
  const size = sizeBytes.toString();
  return JSON.stringify([displayName, description, time, size, content, origin, state, stateReason, snapshot.protected, orphan]);
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
