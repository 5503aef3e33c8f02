// The browser of tab.t, driven by Playwright: one command in JSON a line on stdin, one answer a line on stdout. It ends with
// its stdin, and so with the test, however that ends.

import { createInterface } from "node:readline";
import { chromium } from "../../gateway/web/node_modules/playwright-core/index.mjs";

/** How long the page may take: an operation on a guest takes some seconds, with others beside. */
const DEADLINE_MS = 60_000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  headless: true,
  chromiumSandbox: false,
  args: ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const context = await browser.newContext({ locale: "en-GB", reducedMotion: "reduce" });
context.setDefaultTimeout(DEADLINE_MS);
const page = await context.newPage();
const asked = [];
const complaints = [];
page.on("request", (request) => asked.push(`${request.method()} ${new URL(request.url()).pathname}`));
page.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(`uncaught ${error.message}`));

const at = (id) => page.getByTestId(id);
const row = (name) => page.locator(`[data-testid=snapshot-row][data-snapshot-name=${JSON.stringify(name)}]`);
const dialog = async (name, button) => {
  await row(name).getByTestId(`snapshot-${button}`).click();
  await page.locator(`[data-testid=${button}-dialog] [data-testid=${button}-confirm]:enabled`).click();
};
const outcome = async (act) => {
  for (const old of await at("alert-dismiss").all()) {
    await old.click();
  }
  await act();
  await page.locator("[data-testid=operation-done], [data-testid=error-alert]").first().waitFor();
  return { done: await at("operation-done").allTextContents(), problems: await at("error-text").allTextContents() };
};

const commands = {
  go: async ({ url }) => void (await page.goto(url, { waitUntil: "networkidle" })),
  open: async () => {
    await page.locator("#v-pills-snapshots-tab").click();
    await page.locator("ravada-snapshots[data-connection=live]").waitFor();
  },
  refused: async () => {
    await page.locator("#v-pills-snapshots-tab").click();
    await at("access").locator(".alert").waitFor();
    return at("access").textContent();
  },
  create: ({ name }) =>
    outcome(async () => {
      await at("create-name").fill(name);
      await at("create-submit").click();
    }),
  revert: ({ name }) => outcome(() => dialog(name, "revert")),
  remove: ({ name }) => outcome(() => dialog(name, "remove")),
  live: async () => void (await page.locator("ravada-snapshots[data-connection=live]").waitFor()),
  asked: () => asked,
  complaints: () => complaints,
  picture: async ({ file }) => void (await page.screenshot({ path: file })),
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  const answer = await Promise.resolve()
    .then(() => commands[command.do](command))
    .then((ok) => ({ ok: ok ?? null }), (error) => ({ error: String(error?.message ?? error) }));
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
