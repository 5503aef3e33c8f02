// Bundles the gateway's own page (app) and the element for other pages (element) into dist/: a handful of files, no other request, nothing inline, so that the gateway can serve them under
// a Content-Security-Policy that allows its own origin only.

import { copyFile, mkdir, readFile, rm } from "node:fs/promises";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

/** The most the script may weigh, gzipped: people open this page over slow lines, too. */
const LIMIT_BYTES = 60 * 1024;

const root = new URL("../", import.meta.url);
const path = (name) => new URL(name, root).pathname;

await rm(path("dist"), { recursive: true, force: true });
await mkdir(path("dist"), { recursive: true });
await build({
  absWorkingDir: path(""),
  entryPoints: { app: "src/main.ts", element: "src/embed.ts" },
  outdir: "dist",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
});
await build({
  absWorkingDir: path(""),
  entryPoints: { app: "src/app.css", element: "src/element.css" },
  outdir: "dist",
  bundle: true,
  minify: true,
  target: ["chrome111", "firefox113", "safari16.4"],
});
for (const name of ["index.html", "icon.svg"]) {
  await copyFile(path(`src/${name}`), path(`dist/${name}`));
}

for (const name of ["app.js", "element.js"]) {
  const size = gzipSync(await readFile(path(`dist/${name}`)), { level: 9 }).length;
  console.log(`dist/${name}: ${(size / 1024).toFixed(1)} KiB gzipped`);
  if (size > LIMIT_BYTES) {
    console.error(`dist/${name} is over its limit of ${LIMIT_BYTES / 1024} KiB gzipped`);
    process.exit(1);
  }
}
