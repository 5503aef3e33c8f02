// The form that takes a snapshot. It stands in the page all the time: the commonest thing needs no dialog.

import { createOffer, createPause, mayChange, snapshotsLeft } from "../capabilities";
import { explain } from "../errors";
import { SnapshotContent } from "../gen/ravada/snapshot/v1/snapshot_pb";
import type { Vm } from "../gen/ravada/snapshot/v1/vm_pb";
import { bytes, duration, number } from "../format";
import type { OperationPlan } from "../gen/ravada/snapshot/v1/operation_pb";
import { Intention } from "../requests";
import { descriptionProblem, nameProblem, oneLine } from "../rules";
import type { Contents } from "../state";
import { t, tn } from "../text";
import { errorAlert } from "../view/alert";
import { button, choice, field, fill, h, setText, uniqueId } from "../view/dom";
import type { FormContext } from "./context";

/** The form. */
export class CreateForm {
  readonly element: HTMLFormElement;
  readonly #context: FormContext;
  readonly #intention = new Intention();
  readonly #name = h("input", { type: "text", required: true, autocomplete: "off", dir: "auto", "data-testid": "create-name" });
  readonly #description = h("textarea", { rows: 1, dir: "auto", "data-testid": "create-description" });
  readonly #memory = h("input", { type: "checkbox", "data-testid": "create-memory" });
  readonly #memoryHint = h("p", { class: "rs-small", id: uniqueId(), "data-testid": "create-memory-hint" });
  readonly #cost = h("p", { class: "rs-small", "data-testid": "create-cost" });
  readonly #left = h("p", { class: "rs-small", "data-testid": "create-left" });
  readonly #reason = h("p", { class: "alert alert-warning", "data-testid": "create-reason", role: "status" });
  readonly #submit = button("primary", t("create.submit"), { type: "submit", "data-testid": "create-submit" });
  readonly #error = h("div", { "aria-live": "assertive" });
  #vm: Vm | undefined;
  #allowed = false;
  #busy = false;
  /** Whether the user has decided about the running state; until then the machine's state does. */
  #chosen = false;
  /** What the service says that taking it will cost, and of which situation that is. */
  #plan: { readonly of: string; readonly answer?: OperationPlan } | undefined;
  #planning: AbortController | undefined;

  constructor(context: FormContext) {
    this.#context = context;
    this.#memory.setAttribute("aria-describedby", this.#memoryHint.id);
    this.#memory.addEventListener("change", () => {
      this.#chosen = true;
      this.#showOffer();
    });
    for (const control of [this.#name, this.#description]) {
      control.addEventListener("input", () => control.setCustomValidity(""));
    }
    this.element = h(
      "form",
      { class: "rs-section rs-create", novalidate: true, "data-testid": "create-form" },
      h("h3", {}, t("create.title")),
      this.#reason,
      field("create.name", this.#name),
      field("create.description", this.#description),
      choice(t("create.memory"), this.#memory),
      this.#memoryHint,
      this.#error,
      h("div", { class: "rs-actions" }, this.#submit, h("div", {}, this.#cost, this.#left)),
    );
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#take();
    });
  }

  /** Brings what is offered up to date with the machine. */
  show(contents: Contents, live: boolean): void {
    this.#vm = contents.vm;
    this.#allowed = mayChange(contents, live);
    this.#showOffer();
  }

  #showOffer(): void {
    const vm = this.#vm;
    if (!vm) {
      return;
    }
    const offer = createOffer(vm);
    this.#reason.hidden = offer.create.possible;
    setText(this.#reason, offer.create.possible ? "" : t("create.impossible", { reason: offer.create.reason }));
    this.#memory.disabled = offer.memory !== "choice";
    if (offer.memory !== "choice" || !this.#chosen) {
      this.#memory.checked = offer.memoryAtFirst;
    }
    // When nothing can be taken, the reason has been said above.
    setText(this.#memoryHint, offer.create.possible ? this.#hint(offer.memory, offer.memoryReason) : "");
    if (offer.create.possible && this.#allowed) {
      void this.#askPlan(vm);
    }
    setText(this.#cost, offer.create.possible ? this.#costs(vm) : "");
    const room = offer.create.possible ? snapshotsLeft(vm) : undefined;
    setText(this.#left, room ? tn("create.left", room.left, { most: number(room.most) }) : "");
    this.#submit.disabled = this.#busy || !this.#allowed || !offer.create.possible;
  }

  /** How long the machine will stand still and how much will be written. */
  #costs(vm: Vm): string {
    const pause = createPause(vm, this.#content());
    const written = this.#plan?.answer?.bytesWritten ?? 0n;
    return [
      pause === undefined ? "" : pause === null ? t("create.pause.unknown") : t("create.pause", { time: duration(pause) }),
      written > 0n ? t("create.size", { size: bytes(written) }) : "",
    ]
      .filter((text) => text !== "")
      .join(" ");
  }

  /** Asks the service what a snapshot would cost now; once for each situation. */
  async #askPlan(vm: Vm): Promise<void> {
    const of = JSON.stringify([vm.name, vm.state, vm.snapshotCount, this.#content()]);
    if (this.#plan?.of === of) {
      return;
    }
    this.#planning?.abort();
    const call = (this.#planning = new AbortController());
    this.#plan = { of };
    try {
      const answer = await this.#context.api.planCreate(vm.name, this.#content(), call.signal);
      if (!call.signal.aborted && answer) {
        this.#plan = { of, answer };
        this.#showOffer();
      }
    } catch {
      // It is only a forecast. What stands in the way of a snapshot is told by the machine's capabilities, or by the click.
    }
  }

  #hint(memory: "choice" | "required" | "impossible", reason: string): string {
    switch (memory) {
      case "choice":
        return t(this.#memory.checked ? "create.memory.on" : "create.memory.off");
      case "required":
        return reason;
      case "impossible":
        return t("create.memory.impossible", { reason });
    }
  }

  #content(): SnapshotContent {
    return this.#memory.checked ? SnapshotContent.DISKS_AND_MEMORY : SnapshotContent.DISKS;
  }

  async #take(): Promise<void> {
    const vm = this.#vm;
    const displayName = oneLine(this.#name.value);
    const description = oneLine(this.#description.value);
    if (!vm || this.#submit.disabled || !valid(this.#name, nameProblem(displayName))) {
      return;
    }
    if (!valid(this.#description, descriptionProblem(description))) {
      return;
    }
    this.#setBusy(true);
    fill(this.#error);
    try {
      const wanted = { displayName, description, content: this.#content() };
      const operation = await this.#context.api.create(vm.name, wanted, this.#intention);
      this.#name.value = "";
      this.#description.value = "";
      this.#chosen = false;
      this.#context.accepted(operation, displayName);
    } catch (error) {
      fill(this.#error, errorAlert(explain(error), undefined, () => fill(this.#error)));
    } finally {
      this.#setBusy(false);
    }
  }

  #setBusy(busy: boolean): void {
    this.#busy = busy;
    this.#showOffer();
  }
}

/** Says what is wrong with a field, at the field; answers whether nothing is. */
export function valid(control: HTMLInputElement | HTMLTextAreaElement, problem: string | undefined): boolean {
  control.setCustomValidity(problem ?? "");
  return control.reportValidity();
}
