import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { DOMAIN, explain, explainOperation, explainReason, isAmbiguous, isTransport, retryDelayOf } from "../src/errors";
import { ErrorInfoSchema, RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb";
import { OperationErrorSchema } from "../src/gen/ravada/snapshot/v1/operation_pb";
import { knownKey } from "../src/text";

function refusal(code: Code, reason: string, domain = DOMAIN): ConnectError {
  return new ConnectError("the server's words", code, undefined, [
    { desc: ErrorInfoSchema, value: create(ErrorInfoSchema, { reason, domain }) },
  ]);
}

test("every reason of docs/errors.md has a sentence and an advice", () => {
  const page = readFileSync("../../docs/errors.md", "utf8");
  const reasons = [...page.matchAll(/^\| `([A-Z_]+)` \|/gm)].map((match) => match[1]);
  assert.ok(reasons.length > 30, `only ${reasons.length} reasons were found`);
  for (const reason of reasons) {
    assert.ok(knownKey(`error.${reason}`), `no sentence for ${reason}`);
    assert.ok(knownKey(`next.${reason}`), `no advice for ${reason}`);
  }
});

test("a reason is explained, and the server's words are kept", () => {
  const problem = explain(refusal(Code.Aborted, "VM_BUSY"));
  assert.equal(problem.reason, "VM_BUSY");
  assert.equal(problem.text, "Another change of this machine is going on.");
  assert.equal(problem.next, "Wait until it is done, then try again.");
  assert.equal(problem.detail, "the server's words");
});

test("a reason that is not known is told by its code and in the server's words", () => {
  const problem = explain(refusal(Code.FailedPrecondition, "BRAND_NEW"));
  assert.equal(problem.reason, "BRAND_NEW");
  assert.equal(problem.text, "This did not work.");
  assert.equal(problem.detail, "the server's words");
});

test("a reason of somebody else is not taken for ours", () => {
  assert.equal(explain(refusal(Code.Unavailable, "VM_BUSY", "googleapis.com")).reason, "");
});

test("what the browser threw is a connection that failed", () => {
  assert.equal(explain(new TypeError("Failed to fetch")).text, "The service cannot be reached.");
  assert.equal(explain(new ConnectError("x", Code.Unavailable)).text, "The service cannot be reached.");
});

test("every code has a sentence", () => {
  for (let code = 1; code <= 16; code += 1) {
    const { text, next } = explain(new ConnectError("x", code));
    assert.notEqual(text, "");
    assert.notEqual(next, "");
  }
});

test("the error of an operation is explained as that of a call", () => {
  const error = create(OperationErrorSchema, { code: 8, reason: "SPACE_LOW", message: "1 MiB is free" });
  const problem = explainOperation(error);
  assert.equal(problem.text, "There is not enough free space on the host.");
  assert.equal(problem.detail, "1 MiB is free");
});

test("the reason of a capability is a sentence with its advice, else the server's own", () => {
  assert.match(explainReason("VM_HIBERNATED", "hibernated"), /hibernated\. Start it/);
  assert.equal(explainReason("BRAND_NEW", "the server's words"), "the server's words");
});

test("a request is repeated only where nobody can know whether it was carried out", () => {
  assert.ok(isAmbiguous(new ConnectError("x", Code.Unavailable)));
  assert.ok(isAmbiguous(refusal(Code.Unavailable, "HOST_UNREACHABLE")));
  assert.ok(!isAmbiguous(refusal(Code.FailedPrecondition, "VM_HIBERNATED")));
  assert.ok(isTransport(new ConnectError("x", Code.Unavailable)));
  assert.ok(!isTransport(refusal(Code.Unavailable, "HOST_UNREACHABLE")), "the service itself has spoken");
});

test("the delay that the server asks for is found", () => {
  const error = new ConnectError("x", Code.Unavailable, undefined, [
    { desc: RetryInfoSchema, value: create(RetryInfoSchema, { retryDelay: durationFromMs(2500) }) },
  ]);
  assert.equal(retryDelayOf(error), 2500);
  assert.equal(retryDelayOf(new ConnectError("x")), 0);
});
