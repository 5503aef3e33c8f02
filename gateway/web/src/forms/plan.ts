// The part of a dialog that says what confirming will do. The service is asked (`validate_only`) as soon as the dialog
// opens and again at each change of a choice; what is not known yet cannot be confirmed.

import { Code, ConnectError } from "@connectrpc/connect";
import type { OperationPlan } from "../gen/ravada/snapshot/v1/operation_pb";
import { t } from "../text";
import type { FormDialog } from "../view/dialog";
import { fill, h, setAttribute, type Child } from "../view/dom";

/** Shows a plan, and asks for another when told to. */
export class PlanPart {
  readonly element: HTMLElement;
  readonly #render: (plan: OperationPlan) => readonly Child[];
  #call: AbortController | undefined;

  constructor(testId: string, render: (plan: OperationPlan) => readonly Child[]) {
    this.element = h("div", { class: "rs-plan", "aria-live": "polite", "data-testid": testId });
    this.#render = render;
  }

  /** Asks for a plan, shows it, and lets the dialog be confirmed then. An answer to an older question is dropped. */
  async refresh(dialog: FormDialog, load: (signal: AbortSignal) => Promise<OperationPlan | undefined>): Promise<void> {
    this.stop();
    const call = new AbortController();
    this.#call = call;
    dialog.setReady(false);
    dialog.showError(undefined);
    setAttribute(this.element, "aria-busy", "true");
    fill(this.element, h("p", { class: "rs-small" }, t("dialog.planning")));
    try {
      const plan = await load(call.signal);
      if (!call.signal.aborted) {
        fill(this.element, ...(plan ? this.#render(plan) : []));
        dialog.setReady(true);
      }
    } catch (error) {
      if (!call.signal.aborted && ConnectError.from(error).code !== Code.Canceled) {
        fill(this.element);
        dialog.showError(error);
      }
    } finally {
      if (!call.signal.aborted) {
        setAttribute(this.element, "aria-busy", undefined);
      }
    }
  }

  /** Drops the question that is open, if one is. */
  stop(): void {
    this.#call?.abort();
  }
}
