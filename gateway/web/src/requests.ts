// Request ids: what makes a mutation safe to repeat.
//
// One click is one id. While it is not known whether the request was carried out (the connection broke before the
// answer came), a repeat of the same request goes under the same id, and the service answers with the operation of the
// first. As soon as there is a definite answer, yes or no, the next click is a new request with a new id.
//
// A token that is used up is no answer to what was asked: its source has been told, and the request is made once more
// with the next one.

import { ConnectError } from "@connectrpc/connect";
import { isAmbiguous, isSpent, isTransport } from "./errors";

/** How long to wait before each repeat that happens by itself, in milliseconds. */
const REPEATS_AFTER_MS: readonly number[] = [500, 1500];

/** The id of one user's intention, for as long as it is open. */
export class Intention {
  #id: string | undefined;
  #of: string | undefined;
  readonly #newId: () => string;
  readonly #sleep: (ms: number) => Promise<void>;

  constructor(
    newId: () => string = newRequestId,
    sleep: (ms: number) => Promise<void> = (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
  ) {
    this.#newId = newId;
    this.#sleep = sleep;
  }

  /**
   * Makes a request, and makes it again under the same id when the network failed. `of` is what is asked for: a
   * changed form is another intention.
   */
  async carryOut<T>(of: unknown, request: (requestId: string) => Promise<T>): Promise<T> {
    const id = this.#idFor(JSON.stringify(of));
    let spent = false;
    for (let repeat = 0; ; repeat += 1) {
      try {
        const answer = await request(id);
        this.#settle();
        return answer;
      } catch (error) {
        const failure = ConnectError.from(error);
        if (!spent && isSpent(failure)) {
          spent = true;
          continue;
        }
        const wait = REPEATS_AFTER_MS[repeat];
        if (wait === undefined || !isTransport(failure)) {
          if (!isAmbiguous(failure)) {
            this.#settle();
          }
          throw error;
        }
        await this.#sleep(wait);
      }
    }
  }

  #idFor(of: string): string {
    if (this.#id === undefined || this.#of !== of) {
      this.#id = this.#newId();
      this.#of = of;
    }
    return this.#id;
  }

  #settle(): void {
    this.#id = undefined;
    this.#of = undefined;
  }
}

/** A fresh UUID. `crypto.randomUUID` exists in secure contexts only, which plain http on a LAN is not. */
export function newRequestId(): string {
  if (typeof crypto.randomUUID === "function") {
    return crypto.randomUUID();
  }
  const octets = crypto.getRandomValues(new Uint8Array(16));
  octets[6] = ((octets[6] ?? 0) & 0x0f) | 0x40;
  octets[8] = ((octets[8] ?? 0) & 0x3f) | 0x80;
  const hex = Array.from(octets, (octet) => octet.toString(16).padStart(2, "0")).join("");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
