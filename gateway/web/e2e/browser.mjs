// The browser of the page's end-to-end test, driven by Playwright. The test is tests/tests/e2e_page: only there can a
// guest be asked what is on its disk. It steers this program by one command a line on stdin, and reads one answer a line:
//
//   {"do": "open", "tab": "student", "url": "http://127.0.0.1:…/#token=…"}   ->   {"ok": …} or {"error": "…"}
//
// `open` makes a tab with a storage of its own, in a language, a colour scheme and a size if these are given, and with `tokens`
// on a page of somebody else's (host.mjs); every other command is a method of Tab, with the command as its argument.
// The browser is Debian's, or the one that $CHROMIUM names. It ends with stdin, and so with the test, however that ends.

import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { Complaints } from "./complaints.mjs";
import { serveHost } from "./host.mjs";
import { COMMANDS, Tab } from "./tab.mjs";
import { watchEverything } from "./witness.mjs";

/** How long the page may take to show what is waited for: an operation on a guest takes some seconds, with others beside. */
const DEADLINE_MS = 45_000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  headless: true,
  chromiumSandbox: false,
  // The profile is in a folder below $TMPDIR, which the test has put into its own.
  args: [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
const complaints = new Complaints();
const tabs = new Map();

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await answer(line))}\n`);
}
await browser.close();

async function answer(line) {
  try {
    return { ok: (await carryOut(JSON.parse(line))) ?? null };
  } catch (error) {
    return { error: String(error?.message ?? error) };
  }
}

function carryOut(command) {
  if (command.do === "open") {
    return open(command);
  }
  if (command.do === "complaints") {
    return complaints.all;
  }
  const tab = tabs.get(command.tab);
  if (!tab || !COMMANDS.includes(command.do)) {
    throw new Error(`nothing to do for ${JSON.stringify(command)}`);
  }
  return tab[command.do](command);
}

async function open({ tab: name, url, locale = "en-GB", dark = false, width = 1100, height = 720, tokens }) {
  const context = await browser.newContext({
    viewport: { width, height },
    locale,
    timezoneId: "UTC",
    colorScheme: dark ? "dark" : "light",
    reducedMotion: "reduce",
  });
  context.setDefaultTimeout(DEADLINE_MS);
  await context.addInitScript(watchEverything);
  const page = await context.newPage();
  const { origin } = new URL(url);
  complaints.listen(page, name, origin);
  if (tokens !== undefined) {
    await serveHost(page, origin, tokens);
  }
  const tab = new Tab(page);
  tabs.set(name, tab);
  await page.goto(url);
  return tab.read();
}
