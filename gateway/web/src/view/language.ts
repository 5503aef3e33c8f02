// The choice of the page's language, for whom the browser's wishes are not their own.

import { textLanguage, t } from "../text";
import { LANGUAGES } from "../text/languages";
import { h, uniqueId } from "./dom";

const STORE_KEY = "ravada-snapshots.language";

/** The language that was chosen in this browser before; null when none was. */
export function rememberedLanguage(): string | null {
  return localStorage.getItem(STORE_KEY);
}

/** A list of the languages, each called what its speakers call it. */
export class LanguageView {
  readonly element: HTMLElement;

  constructor() {
    const select = h("select", { class: "form-control", id: uniqueId(), "data-testid": "language" });
    for (const tag of Object.keys(LANGUAGES)) {
      const name = new Intl.DisplayNames([tag], { type: "language", languageDisplay: "standard" }).of(tag) ?? tag;
      select.append(h("option", { value: tag, lang: tag, selected: tag === textLanguage() }, name));
    }
    select.addEventListener("change", () => {
      localStorage.setItem(STORE_KEY, select.value);
      // Every text is written when its part of the page is made.
      location.reload();
    });
    this.element = h("p", { class: "page-language" }, h("label", { for: select.id }, t("page.language")), select);
  }
}
