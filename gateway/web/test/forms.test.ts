// What the forms decide before anything is sent: capabilities, the rules of the fields, request ids, tokens, addresses.

import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { updatePaths } from "../src/api";
import { createOffer, createPause, mayChange, snapshotsLeft } from "../src/capabilities";
import { DOMAIN } from "../src/errors";
import { isUuid, readFragment, writeFragment } from "../src/fragment";
import { ErrorInfoSchema } from "../src/gen/google/rpc/error_details_pb";
import { OperationMethod, OperationState } from "../src/gen/ravada/snapshot/v1/operation_pb";
import { SnapshotContent } from "../src/gen/ravada/snapshot/v1/snapshot_pb";
import { CapabilityKind, VmState } from "../src/gen/ravada/snapshot/v1/vm_pb";
import { Intention, newRequestId } from "../src/requests";
import { descriptionProblem, nameProblem, oneLine } from "../src/rules";
import { claims, cleanToken, PastedTokens } from "../src/tokens";
import { pauseMs } from "../src/watch";
import { operation, vm } from "./make";

// Browsers have it as a global, and so has node from version 20 on.
if (!("crypto" in globalThis)) {
  Object.defineProperty(globalThis, "crypto", { value: webcrypto });
}

const { CREATE_DISKS: DISKS, CREATE_DISKS_AND_MEMORY: MEMORY } = CapabilityKind;
const no = (kind: CapabilityKind, reason: string) => ({ kind, available: false, reason, message: reason });
const yes = (kind: CapabilityKind) => ({ kind, available: true });

test("the running state is offered as the machine allows", () => {
  assert.equal(createOffer(vm({ capabilities: [yes(DISKS), yes(MEMORY)] })).memory, "choice");

  const live = [{ ...yes(DISKS), method: OperationMethod.LIVE }, yes(MEMORY)];
  const atFirst = (state: VmState) => createOffer(vm({ state, capabilities: live })).memoryAtFirst;
  assert.deepEqual([atFirst(VmState.RUNNING), atFirst(VmState.PAUSED)], [false, true]);
  assert.ok(createOffer(vm({ state: VmState.RUNNING, capabilities: [yes(DISKS), yes(MEMORY)] })).memoryAtFirst);

  const running = createOffer(vm({ capabilities: [no(DISKS, "LIVE_DISKS_UNSUPPORTED"), yes(MEMORY)] }));
  assert.equal(running.memory, "required");
  assert.match(running.memoryReason, /cannot be kept while this machine runs/);
  assert.ok(running.create.possible);

  const off = createOffer(vm({ capabilities: [yes(DISKS), no(MEMORY, "VM_NOT_RUNNING")] }));
  assert.equal(off.memory, "impossible");
  assert.match(off.memoryReason, /is off/);
  assert.ok(off.create.possible);

  const raw = createOffer(vm({ capabilities: [no(DISKS, "DISK_FORMAT_UNSUPPORTED"), no(MEMORY, "DISK_FORMAT_UNSUPPORTED")] }));
  assert.ok(!raw.create.possible);
  assert.match(raw.create.reason, /cannot hold snapshots/);
});

test("the pause is that of the kind that would be taken", () => {
  const machine = vm({
    capabilities: [yes(DISKS), { ...yes(MEMORY), pauses: true, predictedPause: durationFromMs(1500) }],
  });
  assert.equal(createPause(machine, SnapshotContent.DISKS), undefined);
  assert.equal(createPause(machine, SnapshotContent.DISKS_AND_MEMORY)?.seconds, 1n);
  const unknown = vm({ capabilities: [{ ...yes(MEMORY), pauses: true }] });
  assert.equal(createPause(unknown, SnapshotContent.DISKS_AND_MEMORY), null);
});

test("nothing can be changed out of touch, while the host is away, or while something goes on", () => {
  const contents = { vm: vm(), snapshots: new Map(), active: new Map() };
  assert.ok(mayChange(contents, true));
  assert.ok(!mayChange(contents, false));
  assert.ok(!mayChange({ ...contents, vm: vm({ hostReachable: false }) }, true));
  assert.ok(!mayChange({ ...contents, vm: vm({ activeOperation: "operations/1" }) }, true));
  assert.ok(!mayChange({ ...contents, active: new Map([["o", operation("o", OperationState.RUNNING)]]) }, true));
});

test("names and descriptions are checked as the service does", () => {
  assert.equal(oneLine("  before\r\n\tthe \u0007exam\u0085 "), "before the exam");
  assert.equal(oneLine("a\ud800b\uffff"), "ab");
  assert.ok(nameProblem(oneLine(" \n ")));
  assert.equal(nameProblem("a".repeat(128)), undefined);
  assert.equal(nameProblem("😀".repeat(128)), undefined, "an emoji is one character");
  assert.match(nameProblem("a".repeat(129)) ?? "", /129/);
  assert.equal(descriptionProblem(""), undefined);
  assert.ok(descriptionProblem("a".repeat(4097)));
});

test("the field mask has the API's names, for what is present", () => {
  assert.deepEqual(updatePaths({ displayName: "x", protected: false }), ["display_name", "protected"]);
  assert.deepEqual(updatePaths({ description: "" }), ["description"]);
});

function intention() {
  let last = 0;
  return new Intention(() => `id${++last}`, () => Promise.resolve());
}
const lost = () => Promise.reject(new ConnectError("connection lost", Code.Unavailable));
const refuse = (code: Code, reason = "X") =>
  Promise.reject(
    new ConnectError("no", code, undefined, [{ desc: ErrorInfoSchema, value: create(ErrorInfoSchema, { reason, domain: DOMAIN }) }]),
  );

test("a request whose answer was lost is repeated under the same id", async () => {
  const ids: string[] = [];
  const answer = await intention().carryOut("a", (id) => {
    ids.push(id);
    return ids.length < 3 ? lost() : Promise.resolve("done");
  });
  assert.equal(answer, "done");
  assert.deepEqual(ids, ["id1", "id1", "id1"]);
});

test("the repeats end, and the next click goes under the same id as long as nobody knows", async () => {
  const one = intention();
  const ids: string[] = [];
  const click = (form: string) => one.carryOut(form, (id) => (ids.push(id), lost())).catch(() => undefined);
  await click("a");
  assert.deepEqual(ids, ["id1", "id1", "id1"]);
  await click("a");
  assert.equal(ids.at(-1), "id1");
  await click("changed");
  assert.equal(ids.at(-1), "id2", "another form is another request");
});

test("after a definite answer the next click has a new id", async () => {
  const one = intention();
  const ids: string[] = [];
  await one.carryOut("a", (id) => (ids.push(id), refuse(Code.FailedPrecondition))).catch(() => undefined);
  await one.carryOut("a", (id) => (ids.push(id), Promise.resolve()));
  await one.carryOut("a", (id) => (ids.push(id), Promise.resolve()));
  assert.deepEqual(ids, ["id1", "id2", "id3"], "and a refusal is not repeated by itself");
});

test("a token that is used up is answered with another one, once, under the same id", async () => {
  const spent = () => refuse(Code.Unauthenticated, "TOKEN_SPENT");
  const ids: string[] = [];
  const answer = await intention().carryOut("a", (id) => (ids.push(id), ids.length < 2 ? spent() : Promise.resolve("done")));
  assert.equal(answer, "done");
  assert.deepEqual(ids, ["id1", "id1"]);
  ids.length = 0;
  await assert.rejects(intention().carryOut("a", (id) => (ids.push(id), spent())));
  assert.equal(ids.length, 2, "and is told when the next one is no better");
});

test("a request id is a UUID", () => {
  assert.ok(isUuid(newRequestId()));
  assert.notEqual(newRequestId(), newRequestId());
});

function store() {
  const kept = new Map<string, string>();
  return {
    kept,
    getItem: (key: string) => kept.get(key) ?? null,
    setItem: (key: string, value: string) => void kept.set(key, value),
    removeItem: (key: string) => void kept.delete(key),
  };
}

test("a pasted token is kept for the tab, and dropped when it is refused", async () => {
  const tab = store();
  const tokens = new PastedTokens(tab);
  let changes = 0;
  const stop = tokens.onChange(() => (changes += 1));
  tokens.set("old");
  tokens.set("new");
  assert.equal(await new PastedTokens(tab).get(), "new", "a reload finds it");
  tokens.refused("old");
  assert.equal(tokens.current, "new", "an answer to an older token says nothing about this one");
  tokens.refused("new");
  assert.equal(await tokens.get(), undefined);
  assert.ok(tokens.ended);
  assert.equal(tab.kept.size, 0);
  assert.equal(changes, 3);
  stop();
  tokens.set("more");
  assert.equal(changes, 3);
  assert.ok(!tokens.ended);
});

test("what is pasted around a token is taken off, and what is no token is refused", () => {
  assert.equal(cleanToken("  Bearer aa.b-b.c_c\n"), "aa.b-b.c_c");
  assert.equal(cleanToken("aa.bb\n.cc~d\nd-_"), "aa.bb.cc~dd-_", "a terminal breaks long lines; the secret is kept");
  assert.equal(cleanToken("aa.bb.cc~"), undefined);
  assert.equal(cleanToken("aa.bb.cc~dd~ee"), undefined);
  assert.equal(cleanToken("hello"), undefined);
  assert.equal(cleanToken("a.b.c.d"), undefined);
  assert.equal(cleanToken(""), undefined);
});

test("what a token says of itself is read, and nonsense is not", () => {
  const payload = Buffer.from(JSON.stringify({ sub: "jürgen", exp: 1_800_000_000 })).toString("base64url");
  assert.equal(claims(`h.${payload}.s`)?.subject, "jürgen");
  assert.equal(claims(`h.${payload}.s`)?.expires.getTime(), 1_800_000_000_000);
  assert.equal(claims("h.nonsense.s"), undefined);
  assert.equal(claims(`h.${Buffer.from("[]").toString("base64url")}.s`), undefined);
});

test("the fragment carries a token in, and never out", () => {
  const uuid = "01234567-89AB-cdef-0123-456789abcdef";
  assert.deepEqual(readFragment("#token=a.b.c~d-_"), { token: "a.b.c~d-_" });
  assert.deepEqual(readFragment(`#token=a.b.c&vm=${uuid}`), { token: "a.b.c", vm: uuid.toLowerCase() });
  assert.deepEqual(readFragment("#vm=../x"), {});
  assert.deepEqual(readFragment(""), {});
  assert.equal(writeFragment(uuid), `#vm=${uuid}`);
  assert.equal(writeFragment(undefined), "");
});

test("the pauses between attempts double, are spread, and have a bound", () => {
  assert.equal(pauseMs(0, 1), 1000);
  assert.equal(pauseMs(0, 0), 500);
  assert.equal(pauseMs(3, 1), 8000);
  assert.equal(pauseMs(1000, 1), 30_000);
});

test("what is left is the nearer of the machine's limit and the user's", () => {
  assert.equal(snapshotsLeft(vm()), undefined);
  assert.deepEqual(snapshotsLeft(vm({ snapshotLimit: 100, snapshotCount: 3 })), { left: 97, most: 100 });
  const machine = { snapshotLimit: 100, snapshotCount: 3 };
  assert.deepEqual(snapshotsLeft(vm({ ...machine, userQuota: { snapshotLimit: 0n, snapshotsUsed: 9n } })), { left: 97, most: 100 });
  assert.deepEqual(snapshotsLeft(vm({ ...machine, userQuota: { snapshotLimit: 5n, snapshotsUsed: 3n } })), { left: 2, most: 5 });
  assert.deepEqual(snapshotsLeft(vm({ ...machine, userQuota: { snapshotLimit: 5n, snapshotsUsed: 9n } })), { left: 0, most: 5 });
});
