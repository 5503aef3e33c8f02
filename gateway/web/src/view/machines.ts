// The list of machines that the token opens.

import { explain } from "../errors";
import { lastPart } from "../format";
import { VmState, type Vm } from "../gen/ravada/snapshot/v1/vm_pb";
import { t, tn } from "../text";
import { errorAlert } from "./alert";
import { button, fill, h, setAttribute } from "./dom";
import { stateDot, vmState } from "./machine";

/** The list. */
export class MachinesView {
  readonly element: HTMLElement;
  readonly #onChoose: (vm: string) => void;
  readonly #body = h("div", { "data-testid": "machines", "aria-live": "polite" });
  readonly #refresh: HTMLButtonElement;
  readonly #items = new Map<string, HTMLButtonElement>();
  #chosen: string | undefined;

  constructor(onChoose: (vm: string) => void, onRefresh: () => void) {
    this.#onChoose = onChoose;
    this.#refresh = button("plain", t("page.machines.refresh"), { "data-testid": "machines-refresh" }, onRefresh);
    const head = h("div", { class: "page-machines-head" }, h("h2", {}, t("page.machines")), this.#refresh);
    this.element = h("div", {}, head, this.#body);
  }

  /** Marks the chosen machine, by its UUID. */
  choose(vm: string | undefined): void {
    this.#chosen = vm;
    for (const [name, item] of this.#items) {
      setAttribute(item, "aria-current", lastPart(name) === vm ? "true" : undefined);
    }
  }

  /** Says that there is no token to list machines with. What was listed stays while only a new token is awaited. */
  needToken(keep: boolean): void {
    this.#refresh.disabled = true;
    if (keep && this.#items.size > 0) {
      return;
    }
    this.#say("machines-need-token", t("page.machines.needToken"));
  }

  /** Says that the list is on its way; what was listed stays until it is there. */
  loading(): void {
    this.#refresh.disabled = true;
    if (this.#items.size === 0) {
      this.#say("machines-loading", t("page.machines.loading"));
    }
  }

  /** Shows what went wrong. */
  failed(error: unknown): void {
    this.#refresh.disabled = false;
    this.#items.clear();
    fill(this.#body, errorAlert(explain(error)));
  }

  /** Shows the machines. */
  show(vms: readonly Vm[]): void {
    this.#refresh.disabled = false;
    if (vms.length === 0) {
      this.#say("machines-empty", t("page.machines.empty"));
      return;
    }
    this.#items.clear();
    const byName = [...vms].sort((a, b) => a.displayName.localeCompare(b.displayName) || (a.name < b.name ? -1 : 1));
    for (const vm of byName) {
      const uuid = lastPart(vm.name);
      const item = h("button", { type: "button", class: "page-machine", "data-testid": "machine-item", "data-vm": uuid });
      item.addEventListener("click", () => this.#onChoose(uuid));
      this.#items.set(vm.name, item);
      this.update(vm);
    }
    fill(this.#body, h("ul", { "data-testid": "machine-list" }, ...[...this.#items.values()].map((item) => h("li", {}, item))));
    this.choose(this.#chosen);
  }

  /** Brings one machine up to date, if it is listed. */
  update(vm: Vm): void {
    const item = this.#items.get(vm.name);
    if (!item) {
      return;
    }
    setAttribute(item, "data-vm-name", vm.displayName);
    setAttribute(item, "data-state", VmState[vm.state]);
    setAttribute(item, "data-reachable", String(vm.hostReachable));
    const facts = [
      vm.hostReachable ? vmState(vm) : t("page.machineUnreachable"),
      lastPart(vm.host),
      tn("snapshots", vm.snapshotCount),
    ];
    fill(
      item,
      stateDot(vm),
      h("span", { class: "page-machine-name" }, vm.displayName),
      h("span", { class: "rs-small" }, facts.join(" · ")),
    );
  }

  #say(testId: string, text: string): void {
    this.#items.clear();
    fill(this.#body, h("p", { class: "rs-empty", "data-testid": testId }, text));
  }
}
