// The head of the element: which machine, what it is doing, where, and whether its host answers.

import { VmState, type Vm } from "../gen/ravada/snapshot/v1/vm_pb";
import { age, bytes, lastPart } from "../format";
import { t, tn } from "../text";
import { fill, h } from "./dom";

/** What a machine is doing, in a word. */
export function vmState(vm: Vm): string {
  const name = VmState[vm.state] as keyof typeof VmState | undefined;
  return t(`state.${name ?? "UNSPECIFIED"}`);
}

/** A coloured dot for the state; it says nothing that is not written beside it. */
export function stateDot(vm: Vm): HTMLElement {
  const name = vm.hostReachable ? (VmState[vm.state] ?? "UNSPECIFIED") : "UNREACHABLE";
  return h("span", { class: "rs-dot", "data-state": name, "aria-hidden": "true" });
}

/** The head of the element. */
export class MachineView {
  readonly element = h("header", { class: "rs-machine", "data-testid": "machine-header" });
  #shown: Vm | undefined;

  /** Shows a machine; the same one costs nothing. */
  show(vm: Vm, now: Date): void {
    if (vm === this.#shown) {
      return;
    }
    this.#shown = vm;
    const host = lastPart(vm.host);
    const since = vm.observeTime ? age(vm.observeTime, now) : "";
    fill(
      this.element,
      h("h2", {}, h("bdi", { "data-testid": "vm-name" }, vm.displayName)),
      h(
        "p",
        { class: "rs-facts" },
        h("span", { "data-testid": "vm-state", "data-state": VmState[vm.state] }, stateDot(vm), vmState(vm)),
        h("span", { "data-testid": "vm-host" }, t("machine.on", { host })),
        h(
          "span",
          { "data-testid": "vm-reachable", "data-reachable": String(vm.hostReachable) },
          t(vm.hostReachable ? "machine.reachable" : "machine.unreachable"),
        ),
      ),
      // Nobody else would tell where the space is.
      vm.orphans &&
        h("p", { class: "rs-facts", "data-testid": "vm-orphans" }, tn("machine.orphans", vm.orphans.count, { size: bytes(vm.orphans.allocationBytes) })),
      !vm.hostReachable &&
        h(
          "div",
          { class: "alert alert-warning rs-alert", role: "status", "data-testid": "host-unreachable" },
          t("machine.unreachable.since", { host, time: since }),
        ),
    );
  }
}
