// Tokens from the server of the page that the element is in: it knows who is logged in and what that user may do. It answers
// a POST with `{token, expiresIn}`, or with `{error: {reason, message, retryable}}`.

import { explainReason } from "./errors";
import { t } from "./text";
import type { TokenSource } from "./tokens";

/** How long before its end a token is replaced. */
const MARGIN_MS = 10_000;
const HTTP_UNAUTHORIZED = 401;
const FIRST_PAUSE_MS = 2000;
const LONGEST_PAUSE_MS = 30_000;

/** Why there is no token, to be shown; undefined when there is one. */
export type ShowRefusal = (message: string | undefined) => void;

interface Answer {
  readonly token?: string;
  readonly expiresIn?: number;
  readonly error?: { readonly reason?: string; readonly message?: string; readonly retryable?: boolean };
}

/** A source that fetches a token when one is needed and the last is about to end. */
export class FetchedTokens implements TokenSource {
  readonly #url: string;
  readonly #show: ShowRefusal;
  readonly #listeners = new Set<() => void>();
  #token: string | undefined;
  #goodUntil = 0;
  #fetching: Promise<string | undefined> | undefined;
  #pause = FIRST_PAUSE_MS;

  constructor(url: string, show: ShowRefusal) {
    this.#url = url;
    this.#show = show;
  }

  get(): Promise<string | undefined> {
    if (this.#token !== undefined && Date.now() < this.#goodUntil) {
      return Promise.resolve(this.#token);
    }
    // Several calls at once share one.
    this.#fetching ??= this.#fetch().finally(() => {
      this.#fetching = undefined;
    });
    return this.#fetching;
  }

  refused(token: string): void {
    if (token === this.#token) {
      this.#token = undefined;
    }
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async #fetch(): Promise<string | undefined> {
    const begun = Date.now();
    const answer = await this.#ask();
    if (answer.token !== undefined) {
      this.#token = answer.token;
      // By this clock alone: the server's may differ.
      this.#goodUntil = begun + (answer.expiresIn ?? 0) * 1000 - MARGIN_MS;
      this.#pause = FIRST_PAUSE_MS;
      this.#show(undefined);
      return answer.token;
    }
    this.#token = undefined;
    const { reason = "", message } = answer.error ?? {};
    this.#show(explainReason(reason, message ?? t("error.API_UNAVAILABLE")));
    if (answer.error?.retryable ?? true) {
      setTimeout(() => this.#tell(), this.#pause);
      this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE_MS);
    }
    return undefined;
  }

  async #ask(): Promise<Answer> {
    try {
      const response = await fetch(this.#url, { method: "POST", credentials: "same-origin" });
      if (response.status === HTTP_UNAUTHORIZED) {
        // Often with the login form for a body. Only the user can help: by logging in on this site again.
        return { error: { reason: "SIGNED_OUT", retryable: false } };
      }
      return (await response.json()) as Answer;
    } catch {
      // No network, or a page where JSON was expected: a proxy's own words.
      return {};
    }
  }

  #tell(): void {
    for (const listener of this.#listeners) {
      listener();
    }
  }
}
