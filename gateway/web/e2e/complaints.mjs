// What a browser has to complain about and a person never sees. A page is right when there is none of it.

/** Chromium's own words for a request that did not reach a server: what a test that cuts the line must expect. */
const UNREACHED = /^Failed to load resource: net::ERR_/;

/** Gathers the complaints of all tabs. */
export class Complaints {
  /** `errors` are faults of the page; `network` are requests that reached nobody. */
  all = { errors: [], network: [] };

  /** Listens to a page that is to ask nobody but `origin`. */
  listen(page, tab, origin) {
    page.on("console", (message) => {
      // A breach of the Content-Security-Policy is told here, too.
      if (message.type() === "error" || message.type() === "warning") {
        const list = UNREACHED.test(message.text()) ? this.all.network : this.all.errors;
        list.push(`${tab}: ${message.text()} (${message.location().url})`);
      }
    });
    page.on("pageerror", (error) => this.all.errors.push(`${tab}: uncaught ${error.stack ?? error.message}`));
    page.on("crash", () => this.all.errors.push(`${tab}: crashed`));
    page.on("dialog", (dialog) => {
      this.all.errors.push(`${tab}: a ${dialog.type()} that says ${dialog.message()}`);
      void dialog.dismiss();
    });
    page.on("request", (request) => {
      if (new URL(request.url()).origin !== origin) {
        this.all.errors.push(`${tab}: asked ${request.url()}`);
      }
      if (request.url().includes("token=")) {
        this.all.errors.push(`${tab}: sent a token in an address`);
      }
    });
  }
}
