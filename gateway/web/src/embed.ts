// The element for another page, such as Ravada's: `<ravada-snapshots vm endpoint token-url refresh-url>` and this script.
// Tokens come from `token-url`, which answers a POST of the page's own origin (see fetched.ts). Nothing is asked for
// before the element is seen for the first time: in a tab, most visitors never open it.

import { defineElement, VM_EVENT, type RavadaSnapshots } from "./element";
import { FetchedTokens } from "./fetched";
import type { Vm } from "./gen/ravada/snapshot/v1/vm_pb";
import { h } from "./view/dom";

defineElement();
for (const element of document.querySelectorAll("ravada-snapshots")) {
  const url = element.getAttribute("token-url");
  if (url !== null) {
    new IntersectionObserver((entries, observer) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        observer.disconnect();
        start(element, url);
      }
    }).observe(visible(element));
  }
}

/** An empty element has no area, so what stands before it is looked at: the box for refusals, a pixel high. */
function visible(element: RavadaSnapshots): HTMLElement {
  const box = h("div", { class: "rs-access", role: "status", "data-testid": "access" });
  box.style.minHeight = "1px";
  element.before(box);
  return box;
}

function start(element: RavadaSnapshots, url: string): void {
  const box = element.previousElementSibling;
  element.tokenSource = new FetchedTokens(url, (message) => {
    box?.replaceChildren(...(message === undefined ? [] : [h("div", { class: "alert alert-warning" }, message)]));
  });
  const refresh = element.getAttribute("refresh-url");
  if (refresh !== null) {
    tellChanges(element, refresh);
  }
}

/** Tells the host page's server when the machine is in another state than before, so that it looks for itself. */
function tellChanges(element: RavadaSnapshots, url: string): void {
  let before: string | undefined;
  element.addEventListener(VM_EVENT, (event) => {
    const { state, currentSnapshot } = (event as CustomEvent<Vm>).detail;
    const now = `${state} ${currentSnapshot}`;
    if (before !== undefined && before !== now) {
      // It looks now and then by itself, too.
      fetch(url, { method: "POST", credentials: "same-origin" }).catch(() => undefined);
    }
    before = now;
  });
}
