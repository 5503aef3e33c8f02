// The element for another page, such as Ravada's: `<ravada-snapshots vm endpoint lang token-url refresh-url>` and this script.
//
//   attribute  token-url    where tokens come from: it answers a POST of the page's own origin (see fetched.ts)
//   attribute  refresh-url  where the page's server is told, by a POST, that the machine is in another state than before
//
// Nothing is asked for before the element is seen for the first time: in a tab, most visitors never open it. Frameworks may
// put it into the page, fill in its attributes, and take it away, at any time.

import { defineElement, RavadaSnapshots, VM_EVENT } from "./element";
import { FetchedTokens } from "./fetched";
import type { Vm } from "./gen/ravada/snapshot/v1/vm_pb";
import { h } from "./view/dom";

/** The element with tokens of its own. */
class EmbeddedSnapshots extends RavadaSnapshots {
  static override readonly observedAttributes = [...RavadaSnapshots.observedAttributes, "token-url"];

  /** Stands before the element: an empty element has no area that could be seen, and refusals are shown here. */
  readonly #box = h("div", { class: "rs-access", role: "status", "data-testid": "access" });
  #observer: IntersectionObserver | undefined;
  /** Where the tokens in use come from. */
  #source: string | undefined;
  #before: string | undefined;

  constructor() {
    super();
    this.#box.style.minHeight = "1px";
    this.addEventListener(VM_EVENT, (event) => this.#tellChange((event as CustomEvent<Vm>).detail));
  }

  override connectedCallback(): void {
    super.connectedCallback();
    this.#await();
  }

  override disconnectedCallback(): void {
    this.#observer?.disconnect();
    this.#box.remove();
    this.#source = undefined;
    super.disconnectedCallback();
  }

  override attributeChangedCallback(name: string, before: string | null, after: string | null): void {
    if (name !== "token-url") {
      super.attributeChangedCallback(name, before, after);
    } else if (this.isConnected && before !== after) {
      this.#await();
    }
  }

  /** Begins when the element is seen. */
  #await(): void {
    this.#observer?.disconnect();
    const url = this.getAttribute("token-url") ?? "";
    if (url === this.#source) {
      return;
    }
    // Tokens of another address may be for another machine.
    this.#source = undefined;
    this.tokenSource = undefined;
    // A framework's placeholder, which it will exchange for the address.
    if (url === "" || url.includes("{{")) {
      return;
    }
    this.before(this.#box);
    this.#observer = new IntersectionObserver((entries, observer) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        observer.disconnect();
        this.#source = url;
        this.tokenSource = new FetchedTokens(url, (message) => this.#refuse(message));
      }
    });
    this.#observer.observe(this.#box);
  }

  #refuse(message: string | undefined): void {
    this.#box.replaceChildren(...(message === undefined ? [] : [h("div", { class: "alert alert-warning" }, message)]));
  }

  /** Tells the page's server when the machine is in another state than before, so that it looks for itself. */
  #tellChange({ name, state, currentSnapshot }: Vm): void {
    const url = this.getAttribute("refresh-url");
    const now = `${name} ${state} ${currentSnapshot}`;
    if (url !== null && this.#before?.startsWith(`${name} `) && this.#before !== now) {
      // It looks now and then by itself, too.
      fetch(url, { method: "POST", credentials: "same-origin" }).catch(() => undefined);
    }
    this.#before = now;
  }
}

defineElement(EmbeddedSnapshots);
