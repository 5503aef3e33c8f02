// The snapshots, as nested lists: a list is one line of the tree, a list inside an item is a side line that leaves there.

import { revertAnswer, removeAnswer, mayChange } from "../capabilities";
import { currentSnapshot, type Contents } from "../state";
import { t, tn } from "../text";
import { buildTree, type TreeItem, type TreeLine } from "../tree";
import { fill, h, place, setAttribute, setText } from "./dom";
import { Row, type RowActions, type RowContext } from "./row";

/** The list of snapshots with its title. */
export class TreeView {
  readonly element: HTMLElement;
  readonly #actions: RowActions;
  readonly #count = h("span", { class: "rs-count", "data-testid": "snapshot-count" });
  readonly #blocked = h("div", { class: "rs-small" });
  // Switches the buttons of all rows off and on at once: while something goes on nothing else can be asked for.
  readonly #body = h("fieldset", { role: "none", "data-testid": "snapshot-tree" });
  readonly #rows = new Map<string, Row>();
  /** The lists and items of the tree, by what they are for. */
  readonly #kept = new Map<string, HTMLElement>();
  #structure = "";
  #told = "";

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
      revert: revertAnswer(vm),
      remove: removeAnswer(vm),
      now,
    };
    setAttribute(this.#body, "disabled", !mayChange(contents, live));
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
    const told = any ? `${revert.reason}/${remove.reason}` : "";
    if (told !== this.#told) {
      this.#told = told;
      fill(this.#blocked, ...(any ? reasons : []));
    }
  }

  /**
   * Puts the rows where they belong. Lists and items are kept and only what is new, gone or elsewhere is touched: with
   * hundreds of snapshots one more costs one item. Moving an element takes its focus away, so that is given back.
   */
  #arrange(lines: readonly TreeLine[]): void {
    const focused = document.activeElement;
    const stale = new Set(this.#kept.keys());
    if (lines.length === 0) {
      fill(this.#body, this.#empty());
    } else {
      const tree = this.#keep("tree", () => h("div", { class: "rs-tree" }), stale);
      place(tree, lines.map((line) => this.#line(line, undefined, stale)));
      place(this.#body, [tree]);
    }
    for (const key of stale) {
      this.#kept.delete(key);
    }
    if (focused instanceof HTMLElement && focused !== document.activeElement && this.#body.contains(focused)) {
      focused.focus({ preventScroll: true });
    }
  }

  #line(line: TreeLine, label: string | undefined, stale: Set<string>): HTMLElement {
    const key = `line ${line[0]?.snapshot?.name ?? ""}`;
    const list = this.#keep(key, () => h("ol", { class: "rs-line", role: "list" }), stale);
    setAttribute(list, "aria-label", label);
    place(list, line.map((item) => this.#item(item, stale)));
    return list;
  }

  #item({ snapshot, branches }: TreeItem, stale: Set<string>): HTMLElement {
    if (!snapshot) {
      return this.#keep("here", here, stale);
    }
    const label = t("tree.branch", { name: snapshot.displayName });
    const item = this.#keep(`item ${snapshot.name}`, () => h("li"), stale);
    const row = this.#rows.get(snapshot.name)?.element;
    place(item, [...(row ? [row] : []), ...branches.map((branch) => this.#line(branch, label, stale))]);
    return item;
  }

  /** The element of a key: the one that there is, or a new one. */
  #keep(key: string, make: () => HTMLElement, stale: Set<string>): HTMLElement {
    stale.delete(key);
    const kept = this.#kept.get(key) ?? make();
    this.#kept.set(key, kept);
    return kept;
  }

  #empty(): HTMLElement {
    return h("p", { class: "rs-empty", "data-testid": "snapshot-empty" }, t("tree.empty"));
  }
}

function here(): HTMLElement {
  return h(
    "li",
    { class: "rs-here", "data-testid": "you-are-here", "aria-current": "true" },
    h("strong", {}, t("tree.here")),
    " ",
    h("span", { class: "rs-small" }, t("tree.here.text")),
  );
}

/** What decides where rows stand, and what the labels of side lines say: nothing else needs them moved. */
type Outline = (string | [string, string, Outline[]])[];

function outline(line: TreeLine): Outline {
  return line.map(({ snapshot, branches }) =>
    snapshot ? (branches.length ? [snapshot.name, snapshot.displayName, branches.map(outline)] : snapshot.name) : "",
  );
}
