// What only a machine measures without tiring: accessibility by axe-core, and where things stand on the screen.

import { readFileSync } from "node:fs";

const AXE = readFileSync(new URL("../node_modules/axe-core/axe.min.js", import.meta.url), "utf8");

/** Everything that axe-core finds wrong on a page, or within the part of it that a selector names, a line each. */
export async function audit(page, within = "html") {
  // Evaluated by the browser's debugger, which the page's Content-Security-Policy does not bind.
  await page.evaluate(AXE);
  return page.evaluate(async (part) => {
    const { violations } = await window.axe.run(part);
    return violations.flatMap(({ id, help, nodes }) =>
      nodes.map(({ target, failureSummary }) => `${id}: ${help}: ${target.join(" ")}: ${failureSummary}`),
    );
  }, within);
}

/** Runs in the page: what sticks out of the window, where rows begin and end, and which way texts run. */
export function measureEverything() {
  const box = (element) => {
    const { left, right, width } = element.getBoundingClientRect();
    return { left: Math.round(left), right: Math.round(right), width: Math.round(width) };
  };
  const name = (element) => `${element.localName}.${element.className} “${element.textContent.trim().slice(0, 40)}”`;
  const isShown = (element) => element.checkVisibility() && !element.closest(".rs-unseen") && element.getClientRects().length > 0;
  const outside = [...document.body.querySelectorAll("*")]
    .filter((element) => isShown(element) && (box(element).right > window.innerWidth + 1 || box(element).left < -1))
    .map(name);
  const rows = [...document.querySelectorAll("[data-testid=snapshot-row]")].map((row) => ({
    name: row.dataset.snapshotName,
    title: box(row.querySelector("[data-testid=snapshot-title]")),
    actions: box(row.querySelector(".rs-row-actions")),
    ...box(row),
  }));
  const root = document.querySelector(".rs-root") ?? document.documentElement;
  const style = getComputedStyle(document.querySelector(".rs-section") ?? document.body);
  return {
    outside,
    scrolls: document.documentElement.scrollWidth > window.innerWidth,
    rows,
    direction: getComputedStyle(root).direction,
    language: root.lang,
    pageLanguage: document.documentElement.lang,
    surface: luminance(style.backgroundColor),
    text: luminance(style.color),
  };

  /** How bright a colour is, from 0 to 1; a canvas knows every notation there is. */
  function luminance(colour) {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d");
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
  }
}

/** Runs in the page: from now on counts what is touched in the list of snapshots. */
export function beginCounting() {
  const counts = { added: 0, removed: 0, changed: 0 };
  window.touched = counts;
  new MutationObserver((records) => {
    for (const record of records) {
      const elements = (nodes) => [...nodes].filter((node) => node.nodeType === 1).length;
      counts.added += elements(record.addedNodes);
      counts.removed += elements(record.removedNodes);
      counts.changed += record.type === "childList" ? 0 : 1;
    }
  }).observe(document.querySelector("[data-testid=snapshot-tree]"), {
    subtree: true,
    childList: true,
    attributes: true,
    characterData: true,
  });
}
