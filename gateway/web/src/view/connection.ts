// Tells when the page is out of touch, and why.

import { milliseconds } from "../format";
import { t } from "../text";
import type { Connection } from "../watch";
import { errorAlert } from "./alert";
import { button, fill, h, setText } from "./dom";

/** The banner about the connection; empty while all is well. */
export class ConnectionView {
  readonly element = h("div", { "data-testid": "connection", "aria-live": "polite" });
  readonly #onRetry: () => void;
  readonly #wait = h("span");
  #connection: Connection = { state: "connecting", again: false };
  #ticker: ReturnType<typeof setInterval> | undefined;

  constructor(onRetry: () => void) {
    this.#onRetry = onRetry;
  }

  /** Shows another state. */
  show(connection: Connection): void {
    this.#connection = connection;
    clearInterval(this.#ticker);
    switch (connection.state) {
      case "live":
        fill(this.element);
        break;
      case "connecting":
        fill(this.element, connection.again && this.#banner(h("span", {}, t("connection.retrying"))));
        break;
      case "lost":
        this.#tick();
        fill(
          this.element,
          this.#banner(
            this.#wait,
            button("inAlert", t("connection.now"), { "data-testid": "connection-retry" }, this.#onRetry),
          ),
        );
        this.#ticker = setInterval(() => this.#tick(), 1000);
        break;
      case "no-token": {
        const text = t(connection.ended ? "connection.token" : "connection.noToken");
        fill(this.element, this.#banner(h("span", { "data-testid": "connection-no-token" }, text)));
        break;
      }
      case "refused":
        fill(this.element, errorAlert(connection.problem));
        break;
    }
  }

  /** Ends the countdown: the banner is not on a page any more. */
  stop(): void {
    clearInterval(this.#ticker);
  }

  #tick(): void {
    if (this.#connection.state === "lost") {
      const seconds = Math.max(1, Math.ceil((this.#connection.retryAt - Date.now()) / 1000));
      setText(this.#wait, t("connection.lost", { time: milliseconds(seconds * 1000) }));
    }
  }

  #banner(...children: HTMLElement[]): HTMLElement {
    return h("div", { class: "alert alert-warning rs-alert" }, ...children);
  }
}
