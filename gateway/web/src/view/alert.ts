// What went wrong, and how operations ended: boxes that are read out when they appear.

import type { Problem } from "../errors";
import { t } from "../text";
import { button, h, type Child } from "./dom";

/** A problem, in the user's words first and in the server's last. */
export function errorAlert(problem: Problem, title?: string, onDismiss?: () => void): HTMLElement {
  return h(
    "div",
    { class: "alert alert-danger rs-alert", role: "alert", "data-testid": "error-alert", "data-reason": problem.reason },
    h(
      "div",
      { class: "rs-alert-text" },
      title !== undefined && h("strong", {}, title),
      h("p", { "data-testid": "error-text" }, problem.text),
      h("p", { "data-testid": "error-next" }, problem.next),
      problem.detail !== "" &&
        h("p", { class: "rs-small", "data-testid": "error-detail" }, t("alert.server", { message: problem.detail })),
    ),
    onDismiss && dismissButton(onDismiss),
  );
}

/** News that need nothing from the user. */
export function notice(testId: string, text: readonly Child[], onDismiss: () => void, more?: HTMLElement): HTMLElement {
  return h(
    "div",
    { class: "alert alert-success rs-alert", "data-testid": testId },
    h("div", { class: "rs-alert-text" }, ...text),
    h("div", { class: "rs-alert-actions" }, more, dismissButton(onDismiss)),
  );
}

function dismissButton(onDismiss: () => void): HTMLElement {
  return button("inAlert", t("alert.dismiss"), { "data-testid": "alert-dismiss" }, onDismiss);
}
