// A modal dialog with a form: native, so that the keyboard, the focus and screen readers are the browser's business.

import { explain } from "../errors";
import { t } from "../text";
import { errorAlert } from "./alert";
import { button, fill, h, uniqueId, type ButtonKind, type Child } from "./dom";

/** What a dialog is made of. */
export interface DialogParts {
  /** Prefix of the test ids: `revert` gives `revert-dialog`, `revert-confirm`, `revert-cancel`. */
  readonly id: string;
  readonly title: string;
  readonly confirm: string;
  readonly kind: ButtonKind;
  readonly body: readonly Child[];
  /** Does it. The dialog closes when this is done, and shows the error when it fails; false keeps it open. */
  readonly onConfirm: () => Promise<boolean>;
  /** Called once, when the dialog has gone. */
  readonly onClosed: () => void;
}

/** A dialog. Opened at once, gone from the document when closed. */
export class FormDialog {
  readonly #element: HTMLDialogElement;
  readonly #confirm: HTMLButtonElement;
  readonly #error = h("div", { "aria-live": "assertive" });
  readonly #parts: DialogParts;
  #busy = false;
  #ready = true;

  constructor(parent: Element, parts: DialogParts) {
    this.#parts = parts;
    const titleId = uniqueId();
    this.#confirm = button(parts.kind, parts.confirm, { type: "submit", "data-testid": `${parts.id}-confirm` });
    const cancel = button("plain", t("dialog.cancel"), { "data-testid": `${parts.id}-cancel` }, () => this.close());
    const form = h(
      "form",
      { novalidate: true },
      h("h3", { id: titleId }, parts.title),
      ...parts.body,
      this.#error,
      h("div", { class: "rs-dialog-actions" }, cancel, this.#confirm),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#submit();
    });
    this.#element = h(
      "dialog",
      { class: "rs-dialog", "aria-labelledby": titleId, "data-testid": `${parts.id}-dialog` },
      form,
    );
    this.#element.addEventListener("close", () => {
      this.#element.remove();
      parts.onClosed();
    });
    parent.append(this.#element);
    this.#element.showModal();
  }

  /** Whether it is before the user. */
  get isOpen(): boolean {
    return this.#element.open;
  }

  /** Closes the dialog, whatever it is doing. */
  close(): void {
    this.#element.close();
  }

  /** Whether the user may confirm now. */
  setReady(ready: boolean): void {
    this.#ready = ready;
    this.#confirm.disabled = this.#busy || !ready;
  }

  /** Shows what went wrong; undefined takes it away. */
  showError(error: unknown): void {
    fill(this.#error, error !== undefined && errorAlert(explain(error)));
  }

  async #submit(): Promise<void> {
    if (this.#busy || !this.#ready) {
      return;
    }
    this.#setBusy(true);
    this.showError(undefined);
    try {
      if (await this.#parts.onConfirm()) {
        this.close();
      }
    } catch (error) {
      this.showError(error);
    } finally {
      this.#setBusy(false);
    }
  }

  #setBusy(busy: boolean): void {
    this.#busy = busy;
    this.#confirm.disabled = busy || !this.#ready;
    this.#element.toggleAttribute("data-busy", busy);
  }
}
