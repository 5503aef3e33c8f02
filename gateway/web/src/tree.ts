// From a set of snapshots to lines that can be drawn.
//
// Snapshots make a forest. Most of it is one long chain, so a chain is drawn as one line that does not indent, and
// only a fork opens side lines under the snapshot they leave from. At a fork the line goes on towards the machine's
// present if that lies there, else into the largest subtree; a side line then holds at most half of the subtree it
// leaves, so that the depth grows with the logarithm of the number of snapshots, whatever their shape.

import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { Snapshot } from "./gen/ravada/snapshot/v1/snapshot_pb";

/** A snapshot in its place, or the marker of the machine's present. */
export interface TreeItem {
  /** Absent in the marker "you are here". */
  readonly snapshot: Snapshot | undefined;
  /** Whether its parent is named but not listed: it is drawn as a root. */
  readonly orphan: boolean;
  /** The lines that leave from here, oldest first. The item that follows in the same line continues it. */
  readonly branches: readonly TreeLine[];
}

/** Items of which each was taken on top of the one before. */
export type TreeLine = readonly TreeItem[];

interface Node {
  readonly snapshot: Snapshot;
  readonly orphan: boolean;
  readonly children: Node[];
  size: number;
  leadsHere: boolean;
}

/**
 * The lines of all roots, oldest root first. The marker of the present follows the snapshot named `current`; without
 * such a snapshot it is a line of its own at the end, unless there is nothing at all.
 */
export function buildTree(snapshots: Iterable<Snapshot>, current: string): TreeLine[] {
  const { roots, nodes } = link(snapshots);
  if (nodes.size === 0) {
    return [];
  }
  const order = measure(roots, current);
  const lines = roots.map((root) => line(root, current));
  if (!order.some((node) => node.snapshot.name === current)) {
    lines.push([HERE]);
  }
  return lines;
}

/** The names of a snapshot and of all that descend from it. */
export function subtree(snapshots: ReadonlyMap<string, Snapshot>, name: string): string[] {
  const children = new Map<string, string[]>();
  for (const snapshot of snapshots.values()) {
    const siblings = children.get(snapshot.parentSnapshot) ?? [];
    siblings.push(snapshot.name);
    children.set(snapshot.parentSnapshot, siblings);
  }
  const found = new Set([name]);
  // A Set is iterated in the order of insertion, and what is added meanwhile is reached, too.
  for (const one of found) {
    for (const child of children.get(one) ?? []) {
      found.add(child);
    }
  }
  return [...found];
}

const HERE: TreeItem = { snapshot: undefined, orphan: false, branches: [] };

function link(snapshots: Iterable<Snapshot>): { roots: Node[]; nodes: Map<string, Node> } {
  const sorted = [...snapshots].sort(byAge);
  const known = new Set(sorted.map((snapshot) => snapshot.name));
  const nodes = new Map<string, Node>();
  for (const snapshot of sorted) {
    const orphan = snapshot.parentSnapshot !== "" && !known.has(snapshot.parentSnapshot);
    nodes.set(snapshot.name, { snapshot, orphan, children: [], size: 1, leadsHere: false });
  }
  const roots: Node[] = [];
  for (const node of nodes.values()) {
    const parent = nodes.get(node.snapshot.parentSnapshot);
    if (parent) {
      parent.children.push(node);
    } else {
      roots.push(node);
    }
  }
  cutCycles(roots, nodes);
  return { roots, nodes };
}

/** Nothing may vanish from the page: what no root reaches (parents in a circle) is cut loose and becomes a root. */
function cutCycles(roots: Node[], nodes: Map<string, Node>): void {
  const reached = new Set<Node>();
  const visit = (root: Node) => {
    const open = [root];
    for (let node = open.pop(); node; node = open.pop()) {
      reached.add(node);
      open.push(...node.children);
    }
  };
  roots.forEach(visit);
  for (const [name, node] of nodes) {
    if (!reached.has(node)) {
      const parent = nodes.get(node.snapshot.parentSnapshot);
      parent?.children.splice(parent.children.indexOf(node), 1);
      const root = { ...node, orphan: true };
      nodes.set(name, root);
      roots.push(root);
      visit(root);
    }
  }
}

/** Sets the size of each subtree and whether the present lies in it. Not recursive: a chain may be thousands long. */
function measure(roots: readonly Node[], current: string): Node[] {
  const order: Node[] = [];
  const open = [...roots];
  for (let node = open.pop(); node; node = open.pop()) {
    order.push(node);
    open.push(...node.children);
  }
  for (const node of [...order].reverse()) {
    node.leadsHere = node.snapshot.name === current || node.children.some((child) => child.leadsHere);
    node.size = 1 + node.children.reduce((sum, child) => sum + child.size, 0);
  }
  return order;
}

function line(first: Node, current: string): TreeLine {
  const items: TreeItem[] = [];
  for (let node: Node | undefined = first; node; ) {
    const here: boolean = node.snapshot.name === current;
    // Where the present is, the line ends with it; all that was taken on top of it before are side lines.
    const next: Node | undefined = here ? undefined : mainChild(node.children);
    const branches = node.children.filter((child) => child !== next).map((child) => line(child, current));
    items.push({ snapshot: node.snapshot, orphan: node.orphan, branches });
    if (here) {
      items.push(HERE);
    }
    node = next;
  }
  return items;
}

function mainChild(children: readonly Node[]): Node | undefined {
  let best: Node | undefined;
  for (const child of children) {
    if (!best || child.leadsHere || (!best.leadsHere && child.size >= best.size)) {
      best = child;
    }
  }
  return best;
}

function byAge(a: Snapshot, b: Snapshot): number {
  const difference = (a.createTime ? timestampMs(a.createTime) : 0) - (b.createTime ? timestampMs(b.createTime) : 0);
  return difference || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
}
