// <ravada-snapshots vm="uuid">: the snapshots of one machine, in light DOM, so that it takes on the style of its page.
//
//   attribute  vm        the machine's libvirt UUID; anything else shows nothing
//   attribute  endpoint  where the gateway serves the API; by default the origin of the page
//   attribute  lang      the language of its texts; by default that of the page, or else the browser's
//   property   tokenSource  a TokenSource; without one, nothing is shown
//   event      ravada-vm    bubbles; detail is the machine (Vm) as it is now
//
// It writes how its watch is doing into `data-connection`, for the page's style and for tests.
//
// The element only wires things together: the watch feeds the reducer, the reducer's model is shown by the views, the
// forms ask the service, and what they are answered goes to the reducer again.

import { ConnectError } from "@connectrpc/connect";
import { Api } from "./api";
import { isRevertible, mayChange, revertAnswer } from "./capabilities";
import { explain, isTransport } from "./errors";
import { CreateForm } from "./forms/create";
import type { FormContext } from "./forms/context";
import { openEdit } from "./forms/edit";
import { openRemove } from "./forms/remove";
import { openRevert } from "./forms/revert";
import { isUuid } from "./fragment";
import type { Operation } from "./gen/ravada/snapshot/v1/operation_pb";
import type { Snapshot } from "./gen/ravada/snapshot/v1/snapshot_pb";
import type { WatchVmResponse } from "./gen/ravada/snapshot/v1/snapshot_service_pb";
import type { Vm } from "./gen/ravada/snapshot/v1/vm_pb";
import { applyAccepted, applyAnswer, applyMessages, dismiss, EMPTY, forgetUnsettled, type Model } from "./state";
import { chooseLanguage, t, textDirection, textLanguage, useLanguage } from "./text";
import type { TokenSource } from "./tokens";
import { errorAlert } from "./view/alert";
import { ConnectionView } from "./view/connection";
import type { FormDialog } from "./view/dialog";
import { fill, h, setAttribute } from "./view/dom";
import { MachineView } from "./view/machine";
import { fitSurroundings } from "./view/surroundings";
import { OperationsView } from "./view/operations";
import { TreeView } from "./view/tree";
import { Watch, type Connection } from "./watch";

/** How often the ages ("3 minutes ago") and the colours are brought up to date. */
const AGES_MS = 30_000;

/** The name of the element's event about its machine. */
export const VM_EVENT = "ravada-vm";

/** The element. */
export class RavadaSnapshots extends HTMLElement {
  static readonly observedAttributes: readonly string[] = ["vm", "endpoint", "lang"];

  #tokens: TokenSource | undefined;
  #session: Session | undefined;
  /** Which start is the last; undefined when there is none to wait for. */
  #turn: object | undefined;

  get tokenSource(): TokenSource | undefined {
    return this.#tokens;
  }

  set tokenSource(tokens: TokenSource | undefined) {
    this.#tokens = tokens;
    this.#restart();
  }

  connectedCallback(): void {
    // A property that was set before the element was defined hides the accessor of the class.
    if (Object.hasOwn(this, "tokenSource")) {
      const { tokenSource } = this;
      delete (this as { tokenSource?: TokenSource }).tokenSource;
      this.tokenSource = tokenSource;
      return;
    }
    this.#restart();
  }

  disconnectedCallback(): void {
    this.#end();
  }

  attributeChangedCallback(_name: string, before: string | null, after: string | null): void {
    if (before !== after) {
      this.#restart();
    }
  }

  #restart(): void {
    this.#end();
    // Frameworks set an attribute to their placeholder first and to the value later.
    if (this.isConnected && this.#tokens && isUuid(this.getAttribute("vm") ?? "")) {
      void this.#start(this.#tokens);
    }
  }

  async #start(tokens: TokenSource): Promise<void> {
    const turn = (this.#turn = {});
    await useLanguage(wantedLanguage(this));
    // While the texts were fetched it may have been taken away, or been given another machine.
    if (turn === this.#turn) {
      const vm = `vms/${(this.getAttribute("vm") ?? "").toLowerCase()}`;
      const endpoint = new URL(this.getAttribute("endpoint") ?? "/", document.baseURI).href.replace(/\/$/, "");
      this.#session = new Session(this, new Api(endpoint, tokens), tokens, vm);
    }
  }

  #end(): void {
    this.#turn = undefined;
    this.#session?.stop();
    this.#session = undefined;
  }
}

/** The language that a piece of the page is to be in: what is written on it or around it, else what the browser wants. */
export function wantedLanguage(element: Element): ReturnType<typeof chooseLanguage> {
  const written: (string | null)[] = [];
  for (let around = element.closest("[lang]"); around; around = around.parentElement?.closest("[lang]") ?? null) {
    written.push(around.getAttribute("lang"));
  }
  return chooseLanguage([...written, ...navigator.languages]);
}

/** One machine in the element, from the choice of the machine until the next. */
class Session implements FormContext {
  /** Everything that the element shows, in the language and the direction of its texts. */
  readonly parent = h("div", { class: "rs-root", lang: textLanguage(), dir: textDirection() });
  readonly api: Api;
  readonly #host: HTMLElement;
  readonly #watch: Watch;
  readonly #connectionView = new ConnectionView(() => this.#watch.retryNow());
  readonly #loading = h("p", { class: "rs-empty", "data-testid": "loading" }, t("machine.loading"));
  readonly #main = h("div", { tabindex: -1, class: "rs-main", hidden: true });
  readonly #machine = new MachineView();
  readonly #operations: OperationsView;
  readonly #create: CreateForm;
  readonly #tree: TreeView;
  readonly #error = h("div");
  readonly #ages = setInterval(() => this.#keepUp(), AGES_MS);
  readonly #end = new AbortController();
  readonly #asked = new Set<string>();
  #connection: Connection = { state: "connecting", again: false };
  #model: Model = EMPTY;
  #queue: WatchVmResponse[] = [];
  #told: Vm | undefined;
  #dialog: FormDialog | undefined;
  #stopped = false;

  constructor(host: HTMLElement, api: Api, tokens: TokenSource, vm: string) {
    this.#host = host;
    this.api = api;
    this.#operations = new OperationsView({
      cancel: (operation) => void this.#cancel(operation),
      dismiss: (operation) => {
        this.#update(dismiss(this.#model, operation));
        this.#keepFocus();
      },
      undo: (saved) => this.#open(saved, (snapshot) => openRevert(this, snapshot)),
      canUndo: (saved) => this.#canRevert(saved),
    });
    this.#create = new CreateForm(this);
    this.#tree = new TreeView({
      revert: (name) => this.#open(name, (snapshot) => openRevert(this, snapshot)),
      edit: (name) => this.#open(name, (snapshot) => openEdit(this, snapshot)),
      remove: (name) =>
        this.#open(name, (snapshot) => openRemove(this, snapshot, this.#model.shown?.snapshots ?? new Map())),
    });
    this.#main.append(this.#create.element, this.#tree.element);
    fill(host, this.parent);
    const fit = () => fitSurroundings(this.parent, host);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", fit, { signal: this.#end.signal });
    fit();
    fill(
      this.parent,
      this.#machine.element,
      this.#connectionView.element,
      this.#loading,
      this.#error,
      this.#operations.element,
      this.#main,
    );
    this.#watch = new Watch(api, tokens, vm, {
      message: (message) => this.#receive(message),
      connection: (connection) => this.#connect(connection),
      resumeToken: () => this.#flush().resumeToken,
      restart: () => this.#update({ ...this.#flush(), resumeToken: "" }),
    });
  }

  stop(): void {
    this.#stopped = true;
    this.#watch.stop();
    this.#connectionView.stop();
    clearInterval(this.#ages);
    this.#end.abort();
    this.#dialog?.close();
    setAttribute(this.#host, "data-connection", undefined);
    fill(this.#host);
  }

  accepted(operation: Operation, displayName?: string): void {
    if (displayName !== undefined) {
      this.#operations.learn(operation.snapshot, displayName);
    }
    fill(this.#error);
    this.#update(applyAccepted(this.#flush(), operation));
  }

  nameOf(snapshot: string): string {
    return this.#operations.nameOf(snapshot);
  }

  closed(): void {
    // The browser tells of it a moment later: by then another one may be open.
    if (!this.#dialog?.isOpen) {
      this.#dialog = undefined;
    }
    // The browser gives the focus back to the button that opened the dialog, unless that cannot be pressed any more.
    this.#keepFocus();
  }

  /** Whoever works by the keyboard must not fall out of the element because what had the focus is gone. */
  #keepFocus(): void {
    if (!this.#stopped && (document.activeElement === document.body || document.activeElement === null)) {
      this.#main.focus({ preventScroll: true });
    }
  }

  #open(name: string, open: (snapshot: Snapshot) => FormDialog): void {
    const snapshot = this.#model.shown?.snapshots.get(name);
    if (snapshot && !this.#dialog?.isOpen) {
      this.#dialog = open(snapshot);
    }
  }

  #canRevert(name: string): boolean {
    const { shown } = this.#model;
    const snapshot = shown?.snapshots.get(name);
    return (
      shown?.vm !== undefined &&
      snapshot !== undefined &&
      isRevertible(snapshot) &&
      revertAnswer(shown.vm).possible &&
      mayChange(shown, this.#connection.state === "live")
    );
  }

  async #cancel(operation: string): Promise<void> {
    try {
      this.#update(applyAnswer(this.#flush(), await this.api.cancel(operation)));
    } catch (error) {
      fill(this.#error, errorAlert(explain(error), undefined, () => fill(this.#error)));
    }
  }

  /** What changes without being told of: the ages, and a page that turns dark in the evening. */
  #keepUp(): void {
    fitSurroundings(this.parent, this.#host);
    this.#render();
  }

  /** Messages are gathered until the next frame: the whole state of a machine comes in hundreds of them. */
  #receive(message: WatchVmResponse): void {
    this.#queue.push(message);
    if (this.#queue.length === 1) {
      const flush = () => this.#update(this.#flush());
      // A hidden page has no frames.
      if (document.hidden) {
        setTimeout(flush);
      } else {
        requestAnimationFrame(flush);
      }
    }
  }

  #flush(): Model {
    if (this.#queue.length > 0) {
      const messages = this.#queue;
      this.#queue = [];
      this.#model = applyMessages(this.#model, messages);
    }
    return this.#model;
  }

  #connect(connection: Connection): void {
    this.#connection = connection;
    setAttribute(this.#host, "data-connection", connection.state);
    this.#connectionView.show(connection);
    this.#update(this.#flush());
  }

  #update(model: Model): void {
    this.#model = model;
    if (!this.#stopped) {
      for (const name of model.unsettled) {
        void this.#settle(name);
      }
      this.#render();
    }
  }

  /** Asks how an operation ended that was running when the connection was lost. */
  async #settle(name: string): Promise<void> {
    if (this.#asked.has(name)) {
      return;
    }
    this.#asked.add(name);
    try {
      const operation = await this.api.operation(name);
      this.#asked.delete(name);
      this.#update(applyAnswer(this.#flush(), operation));
    } catch (error) {
      this.#asked.delete(name);
      // When it was the network, the next state that arrives asks again.
      if (!isTransport(ConnectError.from(error))) {
        this.#update(forgetUnsettled(this.#flush(), name));
      }
    }
  }

  #render(): void {
    const { shown } = this.#model;
    const { state } = this.#connection;
    const refused = state === "refused";
    const vm = refused ? undefined : shown?.vm;
    const now = new Date();
    this.#loading.hidden = vm !== undefined || refused || state === "no-token" || state === "lost";
    this.#main.hidden = vm === undefined;
    this.#machine.element.hidden = vm === undefined;
    this.#operations.element.hidden = vm === undefined;
    if (!vm || !shown) {
      return;
    }
    const live = state === "live";
    this.#machine.show(vm, now);
    this.#operations.show(this.#model);
    this.#create.show(shown, live);
    this.#tree.show(shown, live, now);
    if (vm !== this.#told) {
      this.#told = vm;
      this.#host.dispatchEvent(new CustomEvent<Vm>(VM_EVENT, { bubbles: true, detail: vm }));
    }
  }
}

declare global {
  interface HTMLElementTagNameMap {
    "ravada-snapshots": RavadaSnapshots;
  }
}

/** Makes the element known to the browser. */
export function defineElement(element: typeof RavadaSnapshots = RavadaSnapshots): void {
  if (!customElements.get("ravada-snapshots")) {
    customElements.define("ravada-snapshots", element);
  }
}
