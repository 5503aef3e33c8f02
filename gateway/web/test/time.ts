import { mock } from "node:test";

/**
 * Stops the clock and what waits for it, until `mock.reset()`. Returns what lets time pass, in milliseconds. Node's own
 * `mock.timers` cannot hold dates before Node 20, and Debian 12 has 18.
 */
export function holdTime(): (ms: number) => void {
  let now = 0;
  let waiting: { at: number; call: () => void }[] = [];
  mock.method(Date, "now", () => now);
  mock.method(globalThis, "setTimeout", (call: () => void, ms = 0) => waiting.push({ at: now + ms, call }));
  return (ms) => {
    now += ms;
    const due = waiting.filter(({ at }) => at <= now);
    waiting = waiting.filter(({ at }) => at > now);
    due.forEach(({ call }) => call());
  };
}
