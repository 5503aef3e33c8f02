// The field for the token, and what is known of the one in use.

import { timeOfDay } from "../format";
import { t } from "../text";
import { claims, cleanToken, type PastedTokens } from "../tokens";
import { button, h, setAttribute, setText, uniqueId } from "./dom";

/** The part of the page's head that is about access. */
export class AccessView {
  readonly element: HTMLElement;
  readonly #tokens: PastedTokens;
  readonly #input = h("input", {
    // Hidden from onlookers, and of no use to a password manager: it is good for minutes.
    type: "password",
    class: "form-control",
    autocomplete: "off",
    spellcheck: "false",
    id: uniqueId(),
    "data-testid": "token-input",
  });
  readonly #hint = h("p", { class: "rs-small", id: uniqueId() }, t("page.token.hint"));
  readonly #status = h("p", { class: "page-status", role: "status", "data-testid": "token-status" });
  readonly #forget: HTMLButtonElement;

  constructor(tokens: PastedTokens) {
    this.#tokens = tokens;
    this.#forget = button("plain", t("page.token.forget"), { "data-testid": "token-forget" }, () => tokens.set(undefined));
    setAttribute(this.#input, "aria-describedby", this.#hint.id);
    const form = h(
      "form",
      { class: "page-token", novalidate: true, "data-testid": "token-form" },
      h("label", { for: this.#input.id }, t("page.token")),
      this.#input,
      button("primary", t("page.token.use"), { type: "submit", "data-testid": "token-submit" }),
      this.#forget,
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#take();
    });
    this.#input.addEventListener("input", () => this.#input.setCustomValidity(""));
    this.element = h("div", {}, form, this.#status, this.#hint);
    tokens.onChange(() => this.#show());
    this.#show();
  }

  #take(): void {
    const token = cleanToken(this.#input.value);
    if (token === undefined) {
      this.#input.setCustomValidity(t("page.token.malformed"));
      this.#input.reportValidity();
      return;
    }
    this.#input.value = "";
    this.#tokens.set(token);
  }

  #show(): void {
    const { current, ended } = this.#tokens;
    this.#forget.hidden = current === undefined;
    this.#hint.hidden = current !== undefined || ended;
    setAttribute(this.#status, "data-state", current === undefined ? (ended ? "ended" : "none") : "held");
    setText(this.#status, this.#statusText(current, ended));
  }

  #statusText(current: string | undefined, ended: boolean): string {
    if (current === undefined) {
      return t(ended ? "page.token.ended" : "page.token.none");
    }
    const told = claims(current);
    return told
      ? t("page.token.until", { subject: told.subject, time: timeOfDay(told.expires) })
      : t("page.token.held");
  }
}
