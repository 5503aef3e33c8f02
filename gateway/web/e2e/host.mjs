// A page of somebody else's with the element in it, as Ravada's are made: AngularJS 1.8 and Bootstrap 4. Its files, and tokens as
// its server would give them, are put under the gateway's origin, where a reverse proxy would have both.

import { readFile } from "node:fs/promises";

const FILES = {
  "page.html": ["host/page.html", "text/html; charset=utf-8"],
  "app.js": ["host/app.js", "text/javascript"],
  "dark.html": ["host/dark.html", "text/html; charset=utf-8"],
  "dark.js": ["host/dark.js", "text/javascript"],
  "dark.css": ["host/dark.css", "text/css"],
  "angular.js": ["../node_modules/angular/angular.min.js", "text/javascript"],
  "bootstrap.css": ["../node_modules/bootstrap/dist/css/bootstrap.min.css", "text/css"],
};
// As strict as a page with AngularJS can be; with ng-csp it needs no more.
const POLICY = "default-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self' data:";

/** Serves the host's pages; `tokens` are by machine's UUID. */
export async function serveHost(page, origin, tokens) {
  await page.route(`${origin}/host/**`, async (route) => {
    const path = new URL(route.request().url()).pathname.slice("/host/".length);
    if (path.startsWith("token/") && route.request().method() === "POST") {
      const token = tokens[path.slice("token/".length)];
      const refusal = { error: { reason: "VM_IS_BASE", message: "is a base", retryable: false } };
      await route.fulfill(token ? { json: { token, expiresIn: 600 } } : { status: 409, json: refusal });
      return;
    }
    const [file, kind] = FILES[path] ?? [];
    if (file === undefined) {
      await route.fulfill({ status: 404 });
      return;
    }
    const body = await readFile(new URL(file, import.meta.url), "utf8");
    await route.fulfill({ body, headers: { "content-type": kind, "content-security-policy": POLICY } });
  });
}
