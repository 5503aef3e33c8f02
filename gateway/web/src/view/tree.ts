// The snapshots, as nested lists: a list is one line of the tree, a list inside an item is a side line that leaves there.

import { revertAnswer, removeAnswer, mayChange } from "../capabilities";
import { currentSnapshot, type Contents } from "../state";
import { t, tn } from "../text";
import { buildTree, type TreeItem, type TreeLine } from "../tree";
import { fill, h, setText } from "./dom";
import { Row, type RowActions, type RowContext } from "./row";

/** The list of snapshots with its title. */
export class TreeView {
  readonly element: HTMLElement;
  readonly #actions: RowActions;
  readonly #count = h("span", { class: "rs-count", "data-testid": "snapshot-count" });
  readonly #blocked = h("div", { class: "rs-small" });
  readonly #body = h("div", { "data-testid": "snapshot-tree" });
  readonly #rows = new Map<string, Row>();
  #structure = "";

  constructor(actions: RowActions) {
    this.#actions = actions;
    const title = h("h3", {}, t("tree.title"), " ", this.#count);
    this.element = h("section", { class: "rs-section" }, title, this.#blocked, this.#body);
  }

  /** Brings the list up to date. */
  show(contents: Contents, live: boolean, now: Date): void {
    const { vm, snapshots } = contents;
    if (!vm) {
      return;
    }
    const context: RowContext = {
      mayChange: mayChange(contents, live),
      revert: revertAnswer(vm),
      remove: removeAnswer(vm),
      now,
    };
    setText(this.#count, snapshots.size === 0 ? "" : tn("snapshots", snapshots.size));
    this.#showBlocked(context, snapshots.size > 0);
    for (const name of this.#rows.keys()) {
      if (!snapshots.has(name)) {
        this.#rows.delete(name);
      }
    }
    const lines = buildTree(snapshots.values(), currentSnapshot(contents));
    this.#showRows(lines, context);
    const structure = JSON.stringify(lines.map(outline));
    if (structure !== this.#structure) {
      this.#structure = structure;
      this.#arrange(lines);
    }
  }

  #showRows(lines: readonly TreeLine[], context: RowContext): void {
    for (const item of lines.flat()) {
      if (item.snapshot) {
        const { name } = item.snapshot;
        let row = this.#rows.get(name);
        if (!row) {
          row = new Row(name, this.#actions);
          this.#rows.set(name, row);
        }
        row.show(item.snapshot, item.orphan, context);
      }
      this.#showRows(item.branches, context);
    }
  }

  #showBlocked({ revert, remove }: RowContext, any: boolean): void {
    const reasons = [
      !revert.possible && h("p", { "data-testid": "revert-unavailable" }, t("revert.unavailable", { reason: revert.reason })),
      !remove.possible && h("p", { "data-testid": "remove-unavailable" }, t("remove.unavailable", { reason: remove.reason })),
    ];
    fill(this.#blocked, ...(any ? reasons : []));
  }

  /** Puts the rows where they belong. Moving an element takes its focus away, so that is given back. */
  #arrange(lines: readonly TreeLine[]): void {
    const focused = document.activeElement;
    const list = lines.length === 0 ? this.#empty() : h("div", { class: "rs-tree" }, ...lines.map((line) => this.#line(line)));
    fill(this.#body, list);
    if (focused instanceof HTMLElement && this.#body.contains(focused)) {
      focused.focus({ preventScroll: true });
    }
  }

  #line(line: TreeLine, label?: string): HTMLElement {
    return h("ol", { class: "rs-line", role: "list", "aria-label": label }, ...line.map((item) => this.#item(item)));
  }

  #item(item: TreeItem): HTMLElement {
    const { snapshot, branches } = item;
    if (!snapshot) {
      return h(
        "li",
        { class: "rs-here", "data-testid": "you-are-here", "aria-current": "true" },
        h("strong", {}, t("tree.here")),
        " ",
        h("span", { class: "rs-small" }, t("tree.here.text")),
      );
    }
    const label = t("tree.branch", { name: snapshot.displayName });
    const side = branches.map((branch) => this.#line(branch, label));
    return h("li", {}, this.#rows.get(snapshot.name)?.element, ...side);
  }

  #empty(): HTMLElement {
    return h("p", { class: "rs-empty", "data-testid": "snapshot-empty" }, t("tree.empty"));
  }
}

/** What decides where rows stand, and what the labels of side lines say: nothing else needs them moved. */
type Outline = (string | [string, string, Outline[]])[];

function outline(line: TreeLine): Outline {
  return line.map(({ snapshot, branches }) =>
    snapshot ? (branches.length ? [snapshot.name, snapshot.displayName, branches.map(outline)] : snapshot.name) : "",
  );
}
