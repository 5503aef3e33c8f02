// The form that takes a snapshot. It stands in the page all the time: the commonest thing needs no dialog.

import { createOffer, createPause, mayChange } from "../capabilities";
import { explain } from "../errors";
import { SnapshotContent } from "../gen/ravada/snapshot/v1/snapshot_pb";
import type { Vm } from "../gen/ravada/snapshot/v1/vm_pb";
import { duration } from "../format";
import { Intention } from "../requests";
import { descriptionProblem, nameProblem, oneLine } from "../rules";
import type { Contents } from "../state";
import { t } from "../text";
import { errorAlert } from "../view/alert";
import { button, choice, field, fill, h, setText, uniqueId } from "../view/dom";
import type { FormContext } from "./context";

/** The form. */
export class CreateForm {
  readonly element: HTMLFormElement;
  readonly #context: FormContext;
  readonly #intention = new Intention();
  readonly #name = h("input", { type: "text", required: true, autocomplete: "off", "data-testid": "create-name" });
  readonly #description = h("textarea", { rows: 1, "data-testid": "create-description" });
  readonly #memory = h("input", { type: "checkbox", "data-testid": "create-memory" });
  readonly #memoryHint = h("p", { class: "rs-small", id: uniqueId(), "data-testid": "create-memory-hint" });
  readonly #pause = h("p", { class: "rs-small", "data-testid": "create-pause" });
  readonly #reason = h("p", { class: "alert alert-warning", "data-testid": "create-reason", role: "status" });
  readonly #submit = button("primary", t("create.submit"), { type: "submit", "data-testid": "create-submit" });
  readonly #error = h("div", { "aria-live": "assertive" });
  #vm: Vm | undefined;
  #allowed = false;
  #busy = false;
  /** Whether the user has decided about the running state; until then the machine's state does. */
  #chosen = false;

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
      h("div", { class: "rs-actions" }, this.#submit, this.#pause),
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
    if (offer.memory !== "choice") {
      this.#memory.checked = offer.memory === "required";
    } else if (!this.#chosen) {
      this.#memory.checked = true;
    }
    // When nothing can be taken, the reason has been said above.
    setText(this.#memoryHint, offer.create.possible ? this.#hint(offer.memory, offer.memoryReason) : "");
    const pause = createPause(vm, this.#content());
    setText(
      this.#pause,
      pause === undefined || !offer.create.possible ? ""
      : pause === null ? t("create.pause.unknown")
      : t("create.pause", { time: duration(pause) }),
    );
    this.#submit.disabled = this.#busy || !this.#allowed || !offer.create.possible;
  }

  #hint(memory: "choice" | "required" | "impossible", reason: string): string {
    switch (memory) {
      case "choice":
        return t(this.#memory.checked ? "create.memory.on" : "create.memory.off");
      case "required":
        return t("create.memory.required", { reason });
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
