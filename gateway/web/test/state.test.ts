import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationState } from "../src/gen/ravada/snapshot/v1/operation_pb";
import {
  applyAccepted,
  applyAnswer,
  applyMessages,
  currentSnapshot,
  dismiss,
  EMPTY,
  forgetUnsettled,
  outcomes,
  type Model,
} from "../src/state";
import {
  messages,
  operation,
  operationEvent,
  removedEvent,
  RESET,
  snapshot,
  snapshotEvent,
  SYNCED,
  vm,
  vmEvent,
} from "./make";

const { RUNNING, SUCCEEDED, FAILED, PENDING } = OperationState;

/** A machine with the snapshots a and b, told in full. */
function told(): Model {
  return applyMessages(
    EMPTY,
    messages(RESET, vmEvent(vm()), snapshotEvent(snapshot("a")), snapshotEvent(snapshot("b", "a")), SYNCED),
  );
}

const active = (model: Model) => [...(model.shown?.active.keys() ?? [])];
const ended = (model: Model) => outcomes(model).map((one) => [one.name, one.state]);

test("nothing is shown before the whole state is there", () => {
  const half = applyMessages(EMPTY, messages(RESET, vmEvent(vm()), snapshotEvent(snapshot("a"))));
  assert.equal(half.shown, undefined);
  const whole = applyMessages(half, messages(SYNCED));
  assert.deepEqual([...(whole.shown?.snapshots.keys() ?? [])], ["a"]);
  assert.equal(whole.shown?.vm?.displayName, "desktop");
});

test("the resume token is that of the last message", () => {
  assert.equal(told().resumeToken, "t5");
  assert.equal(applyMessages(told(), []).resumeToken, "t5");
});

test("changes are shown at once, and what did not change stays the same object", () => {
  const before = told();
  const after = applyMessages(before, messages(snapshotEvent(snapshot("b", "a", 5, { displayName: "new" }))));
  assert.equal(after.shown?.snapshots.get("b")?.displayName, "new");
  assert.equal(after.shown?.snapshots.get("a"), before.shown?.snapshots.get("a"));
  assert.equal(before.shown?.snapshots.get("b")?.displayName, "the b", "the model before is untouched");
});

test("a removed snapshot is gone; removing it twice is no error", () => {
  const model = applyMessages(told(), messages(removedEvent("b"), removedEvent("b")));
  assert.deepEqual([...(model.shown?.snapshots.keys() ?? [])], ["a"]);
});

test("while a new whole state arrives the old one stays on show", () => {
  const half = applyMessages(told(), messages(RESET, vmEvent(vm({ displayName: "renamed" })), snapshotEvent(snapshot("c"))));
  assert.deepEqual([...(half.shown?.snapshots.keys() ?? [])], ["a", "b"]);
  assert.equal(half.shown?.vm?.displayName, "desktop");
  const whole = applyMessages(half, messages(SYNCED));
  assert.deepEqual([...(whole.shown?.snapshots.keys() ?? [])], ["c"]);
  assert.equal(whole.shown?.vm?.displayName, "renamed");
});

test("a resumed watch sends no reset, and what is known stays", () => {
  const model = applyMessages(told(), messages(snapshotEvent(snapshot("c", "b")), SYNCED));
  assert.deepEqual([...(model.shown?.snapshots.keys() ?? [])], ["a", "b", "c"]);
});

test("a watch that broke in the middle of the whole state goes on where it broke", () => {
  const half = applyMessages(EMPTY, messages(RESET, vmEvent(vm()), snapshotEvent(snapshot("a"))));
  const whole = applyMessages(half, messages(snapshotEvent(snapshot("b", "a")), SYNCED));
  assert.deepEqual([...(whole.shown?.snapshots.keys() ?? [])], ["a", "b"]);
});

test("an event of a kind that is not known changes nothing but the place to resume", () => {
  const before = told();
  const after = applyMessages(before, messages({ case: undefined }));
  assert.deepEqual([...(after.shown?.snapshots.keys() ?? [])], ["a", "b"]);
  assert.equal(after.resumeToken, "t1");
});

test("an operation that was seen running has an outcome when it ends", () => {
  const running = applyMessages(told(), messages(operationEvent(operation("o", RUNNING))));
  assert.deepEqual(active(running), ["o"]);
  const done = applyMessages(running, messages(operationEvent(operation("o", FAILED))));
  assert.deepEqual(active(done), []);
  assert.deepEqual(ended(done), [["o", FAILED]]);
});

test("an operation that nobody here saw running ends without a word", () => {
  const model = applyMessages(told(), messages(operationEvent(operation("o", SUCCEEDED))));
  assert.deepEqual(ended(model), []);
});

test("the answer to a mutation shows its operation before the watch does", () => {
  const model = applyAnswer(told(), operation("o", PENDING));
  assert.deepEqual(active(model), ["o"]);
  assert.deepEqual(ended(applyMessages(model, messages(operationEvent(operation("o", SUCCEEDED))))), [["o", SUCCEEDED]]);
});

test("an answer that comes after the end brings the outcome and not the operation", () => {
  const early = applyMessages(told(), messages(operationEvent(operation("o", SUCCEEDED))));
  const model = applyAnswer(early, operation("o", PENDING));
  assert.deepEqual(active(model), []);
  assert.deepEqual(ended(model), [["o", SUCCEEDED]]);
});

test("an answer that is older than the watch's word does not overwrite it", () => {
  const progress = { progress: { percent: 70 } };
  const running = applyMessages(told(), messages(operationEvent(operation("o", RUNNING, progress))));
  const model = applyAnswer(running, operation("o", PENDING));
  assert.equal(model.shown?.active.get("o")?.progress?.percent, 70);
});

test("an answer that is an end already has its outcome", () => {
  assert.deepEqual(ended(applyAnswer(told(), operation("o", SUCCEEDED))), [["o", SUCCEEDED]]);
});

test("the answer to validate_only has no name and changes nothing", () => {
  const before = told();
  assert.equal(applyAnswer(before, operation("", PENDING)), before);
});

test("an ended operation does not come back to life", () => {
  const done = applyAnswer(told(), operation("o", SUCCEEDED));
  const model = applyMessages(done, messages(operationEvent(operation("o", RUNNING))));
  assert.deepEqual(active(model), []);
});

test("what ran before a lost connection and is not told any more is to be asked for", () => {
  const running = applyMessages(told(), messages(operationEvent(operation("o", RUNNING))));
  const back = applyMessages(running, messages(RESET, vmEvent(vm()), SYNCED));
  assert.deepEqual(back.unsettled, ["o"]);
  const answered = applyAnswer(back, operation("o", SUCCEEDED));
  assert.deepEqual(answered.unsettled, []);
  assert.deepEqual(ended(answered), [["o", SUCCEEDED]]);
  assert.deepEqual(forgetUnsettled(back, "o").unsettled, []);
});

test("what ran before a lost connection and is told as ended has its outcome", () => {
  const running = applyMessages(told(), messages(operationEvent(operation("o", RUNNING))));
  const back = applyMessages(running, messages(RESET, vmEvent(vm()), operationEvent(operation("o", FAILED)), SYNCED));
  assert.deepEqual(back.unsettled, []);
  assert.deepEqual(ended(back), [["o", FAILED]]);
});

test("a dismissed outcome stays dismissed, even when its answer comes late", () => {
  const done = applyAnswer(told(), operation("o", SUCCEEDED));
  const model = applyAnswer(dismiss(done, "o"), operation("o", PENDING));
  assert.deepEqual(ended(model), []);
  assert.deepEqual(active(model), []);
});

test("what a token that was used up did not begin is no news", () => {
  const failed = (name: string, reason: string) => operation(name, OperationState.FAILED, { error: { reason } });
  const model = applyAnswer(applyAnswer(told(), failed("o", "TOKEN_SPENT")), failed("p", "SPACE_LOW"));
  assert.deepEqual(ended(model), [["p", OperationState.FAILED]]);
});

test("only so many outcomes are kept", () => {
  let model = told();
  for (let index = 0; index < 50; index += 1) {
    model = applyAnswer(model, operation(`o${index}`, SUCCEEDED));
  }
  assert.equal(model.ended.length, 20);
  assert.equal(model.ended.at(-1)?.name, "o49");
});

test("the machine says where it is; a snapshot's own mark counts where the machine is silent", () => {
  const snapshots = new Map([["a", snapshot("a")], ["b", snapshot("b", "a", 2, { isCurrent: true })]]);
  const none = new Map();
  assert.equal(currentSnapshot({ vm: vm({ currentSnapshot: "a" }), snapshots, active: none }), "a");
  assert.equal(currentSnapshot({ vm: vm(), snapshots, active: none }), "b");
  assert.equal(currentSnapshot({ vm: vm(), snapshots: new Map([["a", snapshot("a")]]), active: none }), "");
});

test("what was built on a snapshot that goes is built on its parent, before anybody says so", () => {
  const three = applyMessages(told(), messages(snapshotEvent(snapshot("c", "b"))));
  const model = applyMessages(three, messages(removedEvent("b")));
  assert.equal(model.shown?.snapshots.get("c")?.parentSnapshot, "a");
  assert.equal(three.shown?.snapshots.get("c")?.parentSnapshot, "b", "and the state before is as it was");
});

test("what is asked for takes old good news away, and not its own that came before the answer", () => {
  const before = applyMessages(told(), messages(operationEvent(operation("old", RUNNING)), operationEvent(operation("old", SUCCEEDED))));
  const failed = applyMessages(before, messages(operationEvent(operation("bad", RUNNING)), operationEvent(operation("bad", FAILED))));
  const faster = applyMessages(failed, messages(operationEvent(operation("new", RUNNING)), operationEvent(operation("new", SUCCEEDED))));
  const model = applyAccepted(faster, operation("new", PENDING));
  assert.deepEqual(ended(model), [["bad", FAILED], ["new", SUCCEEDED]]);
  assert.deepEqual(active(model), []);
});
