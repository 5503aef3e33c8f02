// What of others is in a release, and under which terms: node scripts/third-party.mjs FOLDER writes
//
//   FOLDER/THIRD-PARTY.txt   each part with its licence, then every licence's text once, with the parts that come with it
//   FOLDER/sbom.cdx.json     the same parts as CycloneDX 1.5, with where they come from and their hashes
//
// Crates are those that the four programs are linked with on Linux (no build scripts, no macros, nothing for tests); of npm what
// is bundled into the page. It fails at a licence that is not in ALLOWED. The same input gives the same bytes.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const PROGRAMS = ["snapshot-api", "snapshot-agent", "snapshot-gateway", "snapctl"];
const PLATFORM = "x86_64-unknown-linux-gnu";

/** Terms under which a part may be in a program that is AGPL-3.0-or-later as a whole. */
const ALLOWED = new Set([
  "0BSD", "AGPL-3.0-or-later", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC",
  // virt: its third section lets it be used under the GPL of any version, with which the AGPL goes together.
  "LGPL-2.1",
  "MIT", "MIT-0", "Unicode-3.0", "Unlicense", "Zlib",
]);

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const out = process.argv[2];
if (!out) {
  console.error("usage: node scripts/third-party.mjs FOLDER");
  process.exit(2);
}

const run = (command, ...words) => execFileSync(command, words, { cwd: root, encoding: "utf8", maxBuffer: 1 << 28 });
const byName = (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.version < b.version ? -1 : a.version > b.version ? 1 : 0);

/** What Cargo's older spelling of "or" means. */
const expression = (text) => text.replaceAll(/\s*\/\s*/g, " OR ");

/** Whether an SPDX expression can be met by ALLOWED alone. AND binds more tightly than OR. */
function allowed(text) {
  const words = text.match(/\(|\)|[^\s()]+/g) ?? [];
  let at = 0;
  const either = () => {
    let good = both();
    while (words[at] === "OR") { at++; good = both() || good; }
    return good;
  };
  const both = () => {
    let good = one();
    while (words[at] === "AND") { at++; good = one() && good; }
    return good;
  };
  const one = () => {
    if (words[at] === "(") { at++; const good = either(); at++; return good; }
    let name = words[at++];
    if (words[at] === "WITH") { name += ` WITH ${words[at + 1]}`; at += 2; }
    return ALLOWED.has(name);
  };
  return either() && at === words.length;
}

/** The checksums in Cargo.lock, by name and version. */
function checksums() {
  const found = new Map();
  for (const part of readFileSync(join(root, "Cargo.lock"), "utf8").split("[[package]]")) {
    const value = (key) => part.match(new RegExp(`^${key} = "(.*)"$`, "m"))?.[1];
    if (value("checksum")) found.set(`${value("name")} ${value("version")}`, value("checksum"));
  }
  return found;
}

function crates() {
  const metadata = JSON.parse(run("cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", PLATFORM));
  const packages = new Map(metadata.packages.map((one) => [one.id, one]));
  const nodes = new Map(metadata.resolve.nodes.map((one) => [one.id, one]));
  const isMacro = (id) => packages.get(id).targets.some((target) => target.kind.includes("proc-macro"));
  const linked = new Set();
  const visit = (id) => {
    if (linked.has(id) || isMacro(id)) return;
    linked.add(id);
    for (const { pkg, dep_kinds: kinds } of nodes.get(id).deps) {
      if (kinds.some(({ kind }) => kind === null)) visit(pkg);
    }
  };
  metadata.packages.filter((one) => one.source === null && PROGRAMS.includes(one.name)).forEach((one) => visit(one.id));
  const sums = checksums();
  return [...linked].map((id) => packages.get(id)).map((one) => ({
    name: one.name,
    version: one.version,
    ours: one.source === null,
    license: expression(one.license ?? ""),
    url: one.repository ?? undefined,
    purl: `pkg:cargo/${one.name}@${one.version}`,
    hash: sums.has(`${one.name} ${one.version}`) ? { alg: "SHA-256", content: sums.get(`${one.name} ${one.version}`) } : undefined,
    folder: dirname(one.manifest_path),
  }));
}

function modules() {
  const web = join(root, "gateway/web");
  const lock = JSON.parse(readFileSync(join(web, "package-lock.json"), "utf8"));
  return Object.entries(lock.packages).filter(([path, one]) => path !== "" && !one.dev).map(([path, one]) => {
    const name = path.replace(/^.*node_modules\//, "");
    const [kind, sum] = (one.integrity ?? "").split("-");
    return {
      name,
      version: one.version,
      ours: false,
      license: expression(one.license ?? ""),
      purl: `pkg:npm/${name.replace("@", "%40")}@${one.version}`,
      hash: kind === "sha512" ? { alg: "SHA-512", content: Buffer.from(sum, "base64").toString("hex") } : undefined,
      folder: join(web, path),
    };
  });
}

/** The files of licences and notices in a part, of libraries in C that it brings along as well. */
function texts(folder, depth = 2) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder).sort().flatMap((name) => {
    const path = join(folder, name);
    if (statSync(path).isDirectory()) return depth > 0 && !/^(node_modules|target|tests?)$/.test(name) ? texts(path, depth - 1) : [];
    return /^(licen[cs]e|copying|copyright|notice|unlicense)/i.test(name) && !/\.(rs|toml|json|js|go|py|h|c)$/.test(name)
      ? [readFileSync(path, "utf8").replaceAll("\r\n", "\n").trim()]
      : [];
  });
}

const [rust, npm] = [crates().sort(byName), modules().sort(byName)];
const others = [...rust.filter((one) => !one.ours), ...npm];
const refused = others.filter((one) => !allowed(one.license));
if (refused.length > 0) {
  for (const one of refused) console.error(`third-party: ${one.purl}: "${one.license}" is not among the allowed terms`);
  process.exit(1);
}

const by = new Map();
const without = [];
for (const one of others) {
  const found = new Set(texts(one.folder));
  if (found.size === 0) without.push(one);
  for (const text of found) by.set(text, [...(by.get(text) ?? []), one]);
}
const label = (one) => `${one.name} ${one.version}`;
const rule = "=".repeat(100);
const listed = [
  "What of others is in the programs and the page of Ravada Snapshots, which is AGPL-3.0-or-later as a whole.",
  `${others.length} parts, each with its terms:`,
  "",
  ...others.map((one) => `  ${label(one)}: ${one.license}${one.url ? `, ${one.url}` : ""}`),
  "",
  "These come without a file of their terms, which are the standard text of what is named above:",
  "",
  ...without.map((one) => `  ${label(one)}`),
  "",
  ...[...by].sort(([, a], [, b]) => byName(a[0], b[0])).flatMap(([text, parts]) => [rule, parts.map(label).join(", "), rule, "", text, ""]),
].join("\n");

const version = rust.find((one) => one.name === PROGRAMS[0]).version;
const epoch = Number(process.env.SOURCE_DATE_EPOCH ?? run("git", "log", "-1", "--format=%ct"));
const component = (one) => ({
  type: one.ours && PROGRAMS.includes(one.name) ? "application" : "library",
  "bom-ref": one.purl,
  name: one.name,
  version: one.version,
  licenses: [{ expression: one.license }],
  purl: one.purl,
  ...(one.hash ? { hashes: [one.hash] } : {}),
  ...(one.url ? { externalReferences: [{ type: "vcs", url: one.url }] } : {}),
});
const bom = {
  $schema: "http://cyclonedx.org/schema/bom-1.5.schema.json",
  bomFormat: "CycloneDX",
  specVersion: "1.5",
  version: 1,
  metadata: {
    timestamp: new Date(epoch * 1000).toISOString(),
    component: { type: "application", "bom-ref": "ravada-snapshots", name: "ravada-snapshots", version,
      licenses: [{ expression: "AGPL-3.0-or-later" }] },
  },
  components: [...rust, ...npm].map(component),
};
mkdirSync(out, { recursive: true });
writeFileSync(join(out, "THIRD-PARTY.txt"), `${listed}\n`);
writeFileSync(join(out, "sbom.cdx.json"), `${JSON.stringify(bom, null, 1)}\n`);
console.log(`third-party: ${others.length} parts, ${by.size} texts; ${without.length} parts have none of their own`);
