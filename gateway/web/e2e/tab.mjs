// What a person does on the page, by what stands there: fills in, presses, waits until it is done, reads.

import { audit, beginCounting, measureEverything } from "./audit.mjs";
import { byKeyboard, readFocus } from "./keyboard.mjs";
import { readEverything } from "./witness.mjs";

/** What the test may ask of a tab. */
export const COMMANDS = [
  "read",
  "give",
  "choose",
  "create",
  "submit",
  "revert",
  "edit",
  "remove",
  "cancel",
  "reload",
  "offline",
  "resize",
  "screenshot",
  "choice",
  "picture",
  "close",
  "begin",
  "undo",
  "stop",
  "ask",
  "press",
  "keys",
  "focus",
  "audit",
  "measure",
  "count",
  "counted",
];

/** A tab with the page in it. */
export class Tab {
  #page;

  constructor(page) {
    this.#page = page;
  }

  /** Everything that can be read there now. */
  read() {
    return this.#page.evaluate(readEverything);
  }

  /** Gives a token by the form. */
  async give({ token }) {
    await this.#at("token-input").fill(token);
    await this.#at("token-submit").click();
    return this.read();
  }

  /** Chooses a machine and waits until its snapshots are shown and kept up to date. */
  async choose({ vm }) {
    await this.#page.locator(`[data-testid=machine-item][data-vm="${vm}"]`).click();
    await this.#page.locator("ravada-snapshots[data-connection=live]").waitFor();
    return this.read();
  }

  /** Takes a snapshot by the form. What is left out stays as the form has it. */
  create({ name, description = "", memory, screenshot }) {
    return this.#outcome(async () => {
      await this.#at("create-name").fill(name);
      await this.#at("create-description").fill(description);
      if (memory !== undefined) {
        await this.#at("create-memory").setChecked(memory);
      }
      await this.#shoot(screenshot);
      await this.#at("create-submit").click();
    });
  }

  /** Presses the button of the form with a name in it that nothing can come of. */
  async submit({ name }) {
    await this.#at("create-name").fill(name);
    await this.#at("create-submit").click();
    return this.read();
  }

  /** Goes back by the dialog. Tells what the dialog says will be lost with the present kept and without. */
  async revert({ name, save, screenshot }) {
    const lost = {};
    const outcome = await this.#outcome(async () => {
      await this.#row(name).getByTestId("snapshot-revert").click();
      const keep = this.#at("revert-save-current");
      lost.byDefault = (await keep.isChecked()) ? "kept" : "lost";
      for (const checked of save ? [true, false, true] : [true, false]) {
        await keep.setChecked(checked);
        await this.#planned("revert");
        lost[checked ? "kept" : "unkept"] = await this.#at("revert-losses").locator("li").allTextContents();
      }
      await this.#shoot(screenshot);
      await this.#at("revert-confirm").click();
    });
    return { ...outcome, lost };
  }

  /** Changes what is written about a snapshot. */
  edit({ name, newName, description, protect, screenshot }) {
    return this.#outcome(async () => {
      await this.#row(name).getByTestId("snapshot-edit").click();
      if (newName !== undefined) {
        await this.#at("edit-name").fill(newName);
      }
      if (description !== undefined) {
        await this.#at("edit-description").fill(description);
      }
      if (protect !== undefined) {
        await this.#at("edit-protected").setChecked(protect);
      }
      await this.#shoot(screenshot);
      await this.#at("edit-confirm").click();
    });
  }

  /** Removes by the dialog; `scope` is `only`, `subtree` or `descendants`. Tells what the dialog names as removed. */
  async remove({ name, scope, screenshot }) {
    let named = [];
    const outcome = await this.#outcome(async () => {
      await this.#row(name).getByTestId("snapshot-remove").click();
      const radio = this.#at(`remove-scope-${scope}`);
      // With nothing that follows there is no choice.
      if (await radio.isVisible()) {
        await radio.check();
      }
      await this.#planned("remove");
      named = await this.#at("remove-item").allTextContents();
      await this.#shoot(screenshot);
      await this.#at("remove-confirm").click();
    });
    return { ...outcome, named };
  }

  /** Presses the button of the form and does not wait for the end. */
  async begin({ name }) {
    await this.#at("create-name").fill(name);
    await this.#at("create-submit").click();
    await this.#at("operation-progress").waitFor();
    return this.read();
  }

  /** Takes the way back that the outcome of a revert offers. */
  undo() {
    return this.#outcome(async () => {
      await this.#at("operation-undo").click();
      await this.#planned("revert");
      await this.#at("revert-confirm").click();
    }, "and leave the outcome");
  }

  /** Asks for what goes on to be stopped. */
  async stop() {
    await this.#at("operation-cancel").click();
  }

  /** Opens a dialog (`revert`, `edit`, `remove`) at a snapshot, and leaves it open. */
  async ask({ name, what, screenshot }) {
    await this.#row(name).getByTestId(`snapshot-${what}`).click();
    await this.#page.locator(`[data-testid=${what}-dialog]:not(:has([aria-busy]))`).waitFor();
    await this.#shoot(screenshot, this.#at(`${what}-dialog`));
    return this.#at(`${what}-dialog`).innerText();
  }

  /** Presses whatever has this test id. */
  press({ id }) {
    return this.#at(id).click();
  }

  /** Chooses another language from the page's list, which loads the page anew. */
  async choice({ value }) {
    await Promise.all([this.#page.waitForEvent("load"), this.#at("language").selectOption(value)]);
  }

  /** Works by the keyboard alone; tells what has the focus then. */
  keys({ steps }) {
    return byKeyboard(this.#page, steps);
  }

  /** Tells what has the focus. */
  focus() {
    return this.#page.evaluate(readFocus);
  }

  /** Tells what axe-core finds wrong. */
  audit({ within }) {
    return audit(this.#page, within);
  }

  /** Tells where things stand. */
  measure() {
    return this.#page.evaluate(measureEverything);
  }

  /** Begins to count what is touched in the list of snapshots. */
  count() {
    return this.#page.evaluate(beginCounting);
  }

  /** Tells what has been touched since. */
  counted() {
    return this.#page.evaluate(() => window.touched);
  }

  /** Closes a dialog with its own button. */
  async cancel({ dialog }) {
    await this.#at(`${dialog}-cancel`).click();
    await this.#at(`${dialog}-dialog`).waitFor({ state: "detached" });
  }

  /** Loads the page anew. */
  async reload() {
    await this.#page.reload();
    return this.read();
  }

  /** Cuts the line between the browser and everything, or puts it back. */
  offline({ offline }) {
    return this.#page.context().setOffline(offline);
  }

  /** Makes the window another size. */
  resize({ width, height }) {
    return this.#page.setViewportSize({ width, height });
  }

  /** Makes a picture of what is in the window. */
  async screenshot({ file }) {
    // The pointer and the focus belong to a person, not into a picture.
    await this.#page.mouse.move(0, 0);
    await this.#page.evaluate(() => document.activeElement?.blur());
    await this.#shoot(file);
  }

  /** Closes the tab. */
  close() {
    return this.#page.context().close();
  }

  /** Makes a picture of the part of the page that has this test id. */
  picture({ id, file }) {
    return this.#shoot(file, this.#at(id));
  }

  /** Does something and waits for its end, good or bad; tells what was shown meanwhile. */
  async #outcome(act, leave) {
    const dismiss = this.#at("alert-dismiss");
    while (leave === undefined && (await dismiss.count()) > 0) {
      await dismiss.first().click();
    }
    const before = (await this.read()).witnessed.progress.length;
    await act();
    if (leave !== undefined) {
      // The old outcome goes when the next thing begins.
      await this.#at("operation-undo").first().waitFor({ state: "detached" });
    }
    await this.#page.locator("[data-testid=operation-done], [data-testid=error-alert]").first().waitFor();
    const { done, problems, witnessed } = await this.read();
    return { done, problems, progress: witnessed.progress.slice(before) };
  }

  /** Waits until a dialog has said what it would do. */
  #planned(dialog) {
    const parts = `[data-testid=${dialog}-plan]:not([aria-busy])`;
    const ready = `[data-testid=${dialog}-confirm]:enabled`;
    return this.#page.locator(`[data-testid=${dialog}-dialog]:has(${parts}):has(${ready})`).waitFor();
  }

  async #shoot(path, what = this.#page) {
    if (path !== undefined) {
      await what.screenshot({ path });
    }
  }

  #at(id) {
    return this.#page.getByTestId(id);
  }

  #row(name) {
    return this.#page.locator(`[data-testid=snapshot-row][data-snapshot-name=${JSON.stringify(name)}]`);
  }
}
