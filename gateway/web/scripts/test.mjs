// Compiles test/*.test.ts and runs them with node's own test runner. The files are named one by one, because what
// `node --test <folder>` picks up differs between the versions of node that must work.

import { spawnSync } from "node:child_process";
import { readdir, rm } from "node:fs/promises";
import { build } from "esbuild";

const root = new URL("../", import.meta.url);
const path = (name) => new URL(name, root).pathname;

const sources = (await readdir(path("test"))).filter((name) => name.endsWith(".test.ts")).sort();
await rm(path(".test"), { recursive: true, force: true });
await build({
  absWorkingDir: path(""),
  entryPoints: sources.map((name) => `test/${name}`),
  outdir: ".test",
  outExtension: { ".js": ".mjs" },
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node18",
  sourcemap: "inline",
});
const compiled = sources.map((name) => path(`.test/${name.replace(/\.ts$/, ".mjs")}`));
const run = spawnSync(process.execPath, ["--enable-source-maps", "--test", ...compiled], {
  stdio: "inherit",
  // Times are written in the zone of the machine; the tests want one that is known.
  env: { ...process.env, TZ: "UTC" },
});
process.exit(run.status ?? 1);
