// Keeps one machine watched, whatever happens to the connection.
//
// A loop: wait for a token, open the stream where the last one ended, hand on what comes, and when it ends find out what
// that means. A refused token waits for another one. A machine that is not there (or not for this token) waits for
// another token, too. Everything else is a lost connection: tried again after a pause that doubles up to half a minute.
//
// A stream of changes is silent while nothing changes, so a connection that died without a word (a laptop that slept, a
// network that changed) cannot be told from a quiet machine. The browser's own signs are used instead: `online`, and the
// page being looked at again after it was hidden for a while; a page nobody looks at gives its connection back.

import { Code, ConnectError } from "@connectrpc/connect";
import type { Api } from "./api";
import { explain, retryDelayOf, type Problem } from "./errors";
import type { WatchVmResponse } from "./gen/ravada/snapshot/v1/snapshot_service_pb";
import type { TokenSource } from "./tokens";

/** How the watch is doing. */
export type Connection =
  /** `again` says that it was lost before. */
  | { readonly state: "connecting"; readonly again: boolean }
  | { readonly state: "live" }
  /** `retryAt` is a time as of Date.now(). */
  | { readonly state: "lost"; readonly retryAt: number }
  | { readonly state: "no-token"; readonly ended: boolean }
  | { readonly state: "refused"; readonly problem: Problem };

/** Who is told. */
export interface WatchSink {
  /** A message came. */
  message(message: WatchVmResponse): void;
  /** The connection is in another state now. */
  connection(connection: Connection): void;
  /** Where to resume. */
  resumeToken(): string;
  /** The service cannot resume there: the whole state will come. */
  restart(): void;
}

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 30_000;
/** How long an opened stream may take to say that its state is complete. */
const SYNC_DEADLINE_MS = 20_000;
/** After how long out of sight the connection is given back. */
const HIDDEN_MS = 60_000;

/** One watch of one machine, from its construction until `stop`. */
export class Watch {
  readonly #api: Api;
  readonly #tokens: TokenSource;
  readonly #vm: string;
  readonly #sink: WatchSink;
  readonly #end = new AbortController();
  /** Aborted to break whatever the loop is in, and replaced for the next. */
  #turn = new AbortController();
  #failures = 0;
  #hadToken = false;
  /** Whether the page has been out of sight for so long that nothing is asked for it. */
  #resting = false;
  #hideTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(api: Api, tokens: TokenSource, vm: string, sink: WatchSink) {
    this.#api = api;
    this.#tokens = tokens;
    this.#vm = vm;
    this.#sink = sink;
    const { signal } = this.#end;
    const unsubscribe = tokens.onChange(() => this.retryNow());
    signal.addEventListener("abort", unsubscribe);
    window.addEventListener("online", () => this.retryNow(), { signal });
    document.addEventListener("visibilitychange", () => this.#visibility(), { signal });
    this.#visibility();
    void this.#run();
  }

  /** Ends the watch; nothing is told any more. */
  stop(): void {
    clearTimeout(this.#hideTimer);
    this.#end.abort();
    this.#turn.abort();
  }

  /** Opens the stream anew, without waiting. */
  retryNow(): void {
    this.#failures = 0;
    this.#turn.abort();
  }

  async #run(): Promise<void> {
    while (!this.#end.signal.aborted) {
      this.#turn = new AbortController();
      const { signal } = this.#turn;
      if (this.#resting) {
        await pause(signal);
        continue;
      }
      const token = await this.#tokens.get().catch(() => undefined);
      // Stopped, or told of another token while this one was fetched.
      if (this.#end.signal.aborted || signal.aborted) {
        continue;
      }
      if (token === undefined) {
        this.#sink.connection({ state: "no-token", ended: this.#hadToken });
        await pause(signal);
        continue;
      }
      this.#hadToken = true;
      this.#sink.connection({ state: "connecting", again: this.#failures > 0 });
      const failure = await this.#stream(signal);
      if (!this.#end.signal.aborted && !signal.aborted) {
        await this.#after(failure, token, signal);
      }
    }
  }

  /** Reads one stream to its end. Answers with what ended it; undefined for an end without an error. */
  async #stream(signal: AbortSignal): Promise<ConnectError | undefined> {
    const overdue = new AbortController();
    const timer = setTimeout(() => overdue.abort(), SYNC_DEADLINE_MS);
    const stop = () => overdue.abort();
    signal.addEventListener("abort", stop, { once: true });
    try {
      for await (const message of this.#api.watchVm(this.#vm, this.#sink.resumeToken(), overdue.signal)) {
        if (signal.aborted) {
          return undefined;
        }
        this.#sink.message(message);
        if (message.event.case === "synced") {
          clearTimeout(timer);
          this.#failures = 0;
          this.#sink.connection({ state: "live" });
        }
      }
      return undefined;
    } catch (error) {
      return ConnectError.from(error);
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
    }
  }

  async #after(failure: ConnectError | undefined, token: string, signal: AbortSignal): Promise<void> {
    switch (failure?.code) {
      case Code.Unauthenticated:
        // The source has been told. If it has another token already, go on at once with that one.
        if ((await this.#tokens.get().catch(() => undefined)) !== token && this.#failures === 0) {
          this.#failures += 1;
          return;
        }
        break;
      case Code.NotFound:
      case Code.PermissionDenied:
      case Code.Unimplemented:
        this.#sink.connection({ state: "refused", problem: explain(failure) });
        await pause(signal);
        return;
      case Code.InvalidArgument:
      case Code.OutOfRange:
        // Nothing in the request can be wrong but the place to resume from, unless that is not even sent.
        if (this.#sink.resumeToken() === "") {
          this.#sink.connection({ state: "refused", problem: explain(failure) });
          await pause(signal);
          return;
        }
        this.#sink.restart();
        break;
      default:
        break;
    }
    const wait = Math.max(pauseMs(this.#failures, Math.random()), failure ? retryDelayOf(failure) : 0);
    this.#failures += 1;
    this.#sink.connection({ state: "lost", retryAt: Date.now() + wait });
    await pause(signal, wait);
  }

  #visibility(): void {
    clearTimeout(this.#hideTimer);
    if (document.hidden) {
      this.#hideTimer = setTimeout(() => {
        this.#resting = true;
        this.#turn.abort();
      }, HIDDEN_MS);
    } else if (this.#resting) {
      this.#resting = false;
      this.retryNow();
    }
  }
}

/** The pause after so many failures in a row: doubling, with a random part, lest all pages come back at once. */
export function pauseMs(failures: number, random: number): number {
  const most = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(failures, 10));
  return Math.round(most / 2 + (most / 2) * random);
}

/** Waits until the signal fires or, if a time is given, until that has passed. */
function pause(signal: AbortSignal, ms?: number): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve();
      return;
    }
    const timer = ms === undefined ? undefined : setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
    signal.addEventListener("abort", done);
  });
}
