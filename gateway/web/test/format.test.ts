import assert from "node:assert/strict";
import { test } from "node:test";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { age, bytes, duration, lastPart, machineTime, milliseconds, moment } from "../src/format";
import { t, tn } from "../src/text";

// Between number and unit, and before PM, Intl may write a space that does not break.
const plain = (text: string) => text.replace(/[\u00a0\u202f]/g, " ");

test("sizes are in binary units, with a decimal where it says something", () => {
  assert.equal(bytes(0n), "0 B");
  assert.equal(bytes(1023n), "1,023 B");
  assert.equal(bytes(1024n), "1 KiB");
  assert.equal(bytes(1536n), "1.5 KiB");
  assert.equal(bytes(1024n ** 2n - 1n), "1 MiB");
  assert.equal(bytes(700n * 1024n ** 2n), "700 MiB");
  assert.equal(bytes(3n * 1024n ** 4n), "3 TiB");
  assert.equal(bytes(-5n), "0 B");
});

test("lengths of time are in the unit that fits", () => {
  assert.equal(plain(milliseconds(0)), "1 ms");
  assert.equal(plain(duration(durationFromMs(42))), "42 ms");
  assert.equal(plain(duration(durationFromMs(2540))), "2.5 sec");
  assert.equal(plain(milliseconds(12_400)), "12 sec");
  assert.equal(plain(milliseconds(180_000)), "3 min");
});

test("moments are written for people and for machines", () => {
  const time = timestampFromMs(Date.UTC(2026, 10, 23, 17, 31, 5));
  assert.equal(plain(moment(time)), "Nov 23, 2026, 5:31 PM");
  assert.equal(machineTime(time), "2026-11-23T17:31:05.000Z");
});

test("ages are in the largest unit that fits, and the future is now", () => {
  const now = new Date(Date.UTC(2026, 10, 23, 12));
  const ago = (seconds: number) => age(timestampFromMs(now.getTime() - seconds * 1000), now);
  assert.equal(ago(5), "now");
  assert.equal(ago(-60), "now");
  assert.equal(ago(60), "1 minute ago");
  assert.equal(ago(3599), "59 minutes ago");
  assert.equal(ago(47 * 3600), "1 day ago");
  assert.equal(ago(15 * 86_400), "2 weeks ago");
  assert.equal(ago(800 * 86_400), "2 years ago");
});

test("the last part of a resource name", () => {
  assert.equal(lastPart("hosts/alpha"), "alpha");
  assert.equal(lastPart("vms/1/snapshots/snap-2"), "snap-2");
});

test("texts are filled in, and a name that looks like a parameter is left alone", () => {
  assert.equal(t("revert.title", { name: "$& {time} <b>" }), "Revert to “$& {time} <b>”");
  assert.equal(tn("snapshots", 1), "1 snapshot");
  assert.equal(tn("snapshots", 0), "0 snapshots");
});
