import assert from "node:assert/strict";
import { test } from "node:test";
import type { Snapshot } from "../src/gen/ravada/snapshot/v1/snapshot_pb";
import { buildTree, subtree, type TreeLine } from "../src/tree";
import { snapshot } from "./make";

/** A line in short: `a b(c | d) *` is b on a, with the side lines c and d, and the present on b. */
function short(lines: readonly TreeLine[]): string {
  return lines
    .map((line) =>
      line
        .map(({ snapshot: one, orphan, branches }) => {
          const side = branches.length > 0 ? `(${short(branches)})` : "";
          return one ? `${orphan ? "?" : ""}${one.name}${side}` : "*";
        })
        .join(" "),
    )
    .join(" | ");
}

function depth(lines: readonly TreeLine[]): number {
  return Math.max(0, ...lines.flat().map((item) => depth(item.branches))) + (lines.length > 0 ? 1 : 0);
}

const tree = (snapshots: Snapshot[], current = "") => short(buildTree(snapshots, current));

test("nothing is an empty tree, without a marker", () => {
  assert.equal(tree([]), "");
});

test("a chain is one line, and the present follows its snapshot", () => {
  assert.equal(tree([snapshot("a"), snapshot("b", "a"), snapshot("c", "b")], "c"), "a b c *");
});

test("the order of arrival does not matter", () => {
  assert.equal(tree([snapshot("c", "b"), snapshot("a"), snapshot("b", "a")], "c"), "a b c *");
});

test("at a fork the line leads to the present", () => {
  const snapshots = [snapshot("a"), snapshot("b", "a"), snapshot("c", "b"), snapshot("d", "c"), snapshot("e", "a")];
  assert.equal(tree(snapshots, "e"), "a(b c d) e *");
  assert.equal(tree(snapshots, "d"), "a(e) b c d *");
});

test("after a revert the present is at its snapshot, and what followed is a side line", () => {
  assert.equal(tree([snapshot("a"), snapshot("b", "a"), snapshot("c", "b")], "a"), "a(b c) *");
});

test("away from the present the line goes into the largest subtree", () => {
  const snapshots = [snapshot("a"), snapshot("b", "a"), snapshot("c", "a"), snapshot("d", "b"), snapshot("z")];
  assert.equal(tree(snapshots, "z"), "a(c) b d | z *");
});

test("a machine that is at no snapshot has its marker in a line of its own", () => {
  assert.equal(tree([snapshot("a"), snapshot("b", "a")]), "a b | *");
  assert.equal(tree([snapshot("a")], "gone"), "a | *");
});

test("a snapshot whose parent is not listed is a root, and marked", () => {
  assert.equal(tree([snapshot("a"), snapshot("c", "b"), snapshot("d", "c")], "a"), "a * | ?c d");
});

test("parents in a circle hide nothing", () => {
  const text = tree([snapshot("a", "c"), snapshot("b", "a"), snapshot("c", "b"), snapshot("d", "d"), snapshot("e")], "b");
  for (const name of ["a", "b", "c", "d", "e", "*"]) {
    assert.equal(text.split(name).length, 2, `${name} is there once in ${text}`);
  }
});

test("snapshots of one moment keep the order of their names", () => {
  assert.equal(tree([snapshot("b", "", 1), snapshot("a", "", 1)], "a"), "a * | b");
});

test("a chain of ten thousand is one line", () => {
  const chain = Array.from({ length: 10_000 }, (_, index) => snapshot(`s${index}`, index ? `s${index - 1}` : "", index));
  const lines = buildTree(chain, "s9999");
  assert.equal(lines[0]?.length, 10_001);
  assert.equal(depth(lines), 1);
});

test("the depth stays small when every snapshot forks", () => {
  const comb = Array.from({ length: 1000 }, (_, index) => [
    snapshot(`s${index}`, index ? `s${index - 1}` : "", index),
    snapshot(`x${index}`, `s${index}`, index),
  ]).flat();
  assert.equal(depth(buildTree(comb, "x999")), 2);
  const binary = Array.from({ length: 1023 }, (_, index) =>
    snapshot(`s${index + 1}`, index ? `s${Math.floor((index + 1) / 2)}` : "", index),
  );
  assert.ok(depth(buildTree(binary, "s1")) <= 11);
});

test("a subtree is a snapshot with all that descend from it", () => {
  const snapshots = [snapshot("a"), snapshot("b", "a"), snapshot("c", "b"), snapshot("d", "a"), snapshot("x")];
  const map = new Map(snapshots.map((one) => [one.name, one]));
  assert.deepEqual(subtree(map, "a").sort(), ["a", "b", "c", "d"]);
  assert.deepEqual(subtree(map, "b").sort(), ["b", "c"]);
  assert.deepEqual(subtree(map, "x"), ["x"]);
});
