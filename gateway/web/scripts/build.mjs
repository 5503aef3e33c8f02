// Bundles the gateway's own page (app) and the element for other pages (element) into dist/: a handful of files, no other request, nothing inline, so that the gateway can serve them under
// a Content-Security-Policy that allows its own origin only.

import { copyFile, mkdir, readFile, rm } from "node:fs/promises";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

/** The most the script may weigh, gzipped: people open this page over slow lines, too. */
const LIMIT_BYTES = 61 * 1024;

const root = new URL("../", import.meta.url);
const path = (name) => new URL(name, root).pathname;

await rm(path("dist"), { recursive: true, force: true });
await mkdir(path("dist"), { recursive: true });
const scripts = await build({
  absWorkingDir: path(""),
  entryPoints: { app: "src/main.ts", element: "src/embed.ts" },
  outdir: "dist",
  // What both have is one file, and each language is one that only its readers fetch. Their names hold a hash of what is in
  // them, by which the gateway knows that browsers may keep them.
  splitting: true,
  chunkNames: "[name]-[hash]",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  metafile: true,
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
  const files = [...parts(`dist/${name}`)];
  const sizes = await Promise.all(files.map(async (file) => gzipSync(await readFile(path(file)), { level: 9 }).length));
  const size = sizes.reduce((sum, one) => sum + one, 0);
  console.log(`dist/${name}: ${(size / 1024).toFixed(1)} KiB gzipped`);
  if (size > LIMIT_BYTES) {
    console.error(`dist/${name} is over its limit of ${LIMIT_BYTES / 1024} KiB gzipped`);
    process.exit(1);
  }
}

/** A script with all that it needs at once: what it fetches later, a language, is not counted. */
function parts(file, found = new Set()) {
  found.add(file);
  for (const { path: other, kind } of scripts.metafile.outputs[file].imports) {
    if (kind === "import-statement" && !found.has(other)) {
      parts(other, found);
    }
  }
  return found;
}
