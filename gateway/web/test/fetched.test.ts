import assert from "node:assert/strict";
import { afterEach, describe, it, mock } from "node:test";
import { FetchedTokens } from "../src/fetched";
import { holdTime } from "./time";

/** Answers of the token route, in turn; the last one stays. Returns how often it was asked. */
function route(...answers: (() => Response | Promise<Response>)[]): () => number {
  let asked = 0;
  mock.method(globalThis, "fetch", (url: string, init: RequestInit) => {
    assert.equal(url, "/token");
    assert.equal(init.method, "POST");
    const answer = answers[Math.min(asked, answers.length - 1)];
    asked += 1;
    assert.ok(answer);
    return Promise.resolve(answer());
  });
  return () => asked;
}

const token = (text: string, expiresIn = 60) => () => Response.json({ token: text, expiresIn });
const refusal = (message: string, retryable: boolean) => () =>
  Response.json({ error: { reason: "R", message, retryable } }, { status: 409 });

describe("tokens from the page's server", () => {
  afterEach(() => mock.reset());

  it("are fetched once for several calls, and kept until they are about to end", async () => {
    const pass = holdTime();
    const asked = route(token("a"), token("b"));
    const tokens = new FetchedTokens("/token", () => undefined);
    assert.deepEqual(await Promise.all([tokens.get(), tokens.get()]), ["a", "a"]);
    pass(49_000);
    assert.equal(await tokens.get(), "a");
    pass(2_000);
    assert.equal(await tokens.get(), "b");
    assert.equal(asked(), 2);
  });

  it("are fetched anew when the service has refused one, but not for an older one", async () => {
    const asked = route(token("a"), token("b"));
    const tokens = new FetchedTokens("/token", () => undefined);
    await tokens.get();
    tokens.refused("a");
    assert.equal(await tokens.get(), "b");
    tokens.refused("a");
    assert.equal(await tokens.get(), "b");
    assert.equal(asked(), 2);
  });

  it("that are refused for now are asked for again, and the user sees why until there is one", async () => {
    const pass = holdTime();
    route(refusal("wait a moment", true), token("a"));
    const shown: (string | undefined)[] = [];
    const tokens = new FetchedTokens("/token", (message) => shown.push(message));
    let told = 0;
    tokens.onChange(() => (told += 1));
    assert.equal(await tokens.get(), undefined);
    assert.deepEqual(shown, ["wait a moment"]);
    pass(2000);
    assert.equal(told, 1);
    assert.equal(await tokens.get(), "a");
    assert.deepEqual(shown, ["wait a moment", undefined]);
  });

  it("that are refused for good are not asked for again", async () => {
    const pass = holdTime();
    route(refusal("never", false));
    const tokens = new FetchedTokens("/token", () => undefined);
    let told = 0;
    tokens.onChange(() => (told += 1));
    await tokens.get();
    pass(3_600_000);
    assert.equal(told, 0);
  });

  it("are not asked for again when the session is over", async () => {
    const pass = holdTime();
    route(() => new Response("<html>log in</html>", { status: 401 }));
    const shown: (string | undefined)[] = [];
    const tokens = new FetchedTokens("/token", (message) => shown.push(message));
    let told = 0;
    tokens.onChange(() => (told += 1));
    await tokens.get();
    pass(3_600_000);
    assert.deepEqual(shown, ["You are not signed in any more. Sign in again; nothing on this page is lost."]);
    assert.equal(told, 0);
  });

  it("survive a lost network and a page where JSON was expected", async () => {
    holdTime();
    route(() => Promise.reject(new TypeError("network")), () => new Response("<html>502</html>"), token("a"));
    const shown: (string | undefined)[] = [];
    const tokens = new FetchedTokens("/token", (message) => shown.push(message));
    assert.equal(await tokens.get(), undefined);
    assert.equal(await tokens.get(), undefined);
    assert.equal(await tokens.get(), "a");
    assert.equal(shown.length, 3);
    assert.ok(shown[0] && shown[1]);
  });
});
