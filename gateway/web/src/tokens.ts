// Where the bearer token comes from: `<JWT>~<secret>`, which is sent unchanged. A token expires after minutes, so callers get it
// anew for each call, and `onChange` notifies them of a new one.

/** A source of tokens. */
export interface TokenSource {
  /** The token to send now; undefined when there is none until somebody gives one. */
  get(): Promise<string | undefined>;
  /** The service refused this token: it is not to be given out again. */
  refused(token: string): void;
  /** Calls back whenever `get` may answer otherwise than before, until the returned function is called. */
  onChange(listener: () => void): () => void;
}

/** What a token says about itself. Not verified: for display only. */
export interface TokenClaims {
  readonly subject: string;
  readonly expires: Date;
}

/** What browsers call sessionStorage: one tab's memory, gone when the tab is closed. */
export type TokenStore = Pick<Storage, "getItem" | "setItem" | "removeItem">;

const STORE_KEY = "ravada-snapshots.token";

/** Tokens that the user pastes. Kept for this tab only, never in a cookie or in lasting storage. */
export class PastedTokens implements TokenSource {
  readonly #store: TokenStore;
  readonly #listeners = new Set<() => void>();
  #token: string | undefined;
  #ended = false;

  constructor(store: TokenStore) {
    this.#store = store;
    this.#token = store.getItem(STORE_KEY) ?? undefined;
  }

  /** The token in use. */
  get current(): string | undefined {
    return this.#token;
  }

  /** Whether the last token was refused and no other was given since. */
  get ended(): boolean {
    return this.#ended;
  }

  get(): Promise<string | undefined> {
    return Promise.resolve(this.#token);
  }

  /** Takes a token into use; undefined forgets the present one. */
  set(token: string | undefined): void {
    this.#token = token;
    this.#ended = false;
    this.#save();
  }

  refused(token: string): void {
    // An answer to an older token says nothing about the one in use now.
    if (token === this.#token) {
      this.#token = undefined;
      this.#ended = true;
      this.#save();
    }
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #save(): void {
    if (this.#token === undefined) {
      this.#store.removeItem(STORE_KEY);
    } else {
      this.#store.setItem(STORE_KEY, this.#token);
    }
    for (const listener of this.#listeners) {
      listener();
    }
  }
}

/** What the user pasted, without what copying puts around it; undefined when it cannot be a token. */
export function cleanToken(pasted: string): string | undefined {
  const token = pasted.trim().replace(/^bearer\s+/i, "").replace(/\s+/g, "");
  return /^[\w-]+\.[\w-]+\.[\w-]+(~[\w-]+)?$/.test(token) ? token : undefined;
}

/** Reads what a token says about itself; undefined when it does not say. */
export function claims(token: string): TokenClaims | undefined {
  try {
    const payload = (token.split(".")[1] ?? "").replace(/-/g, "+").replace(/_/g, "/");
    const octets = Uint8Array.from(atob(payload), (character) => character.charCodeAt(0));
    const body: unknown = JSON.parse(new TextDecoder().decode(octets));
    if (typeof body !== "object" || body === null || !("sub" in body) || !("exp" in body)) {
      return undefined;
    }
    const { sub, exp } = body;
    return typeof sub === "string" && typeof exp === "number"
      ? { subject: sub, expires: new Date(exp * 1000) }
      : undefined;
  } catch {
    return undefined;
  }
}
