// A person without a mouse: the Tab key until the focus is where it is wanted, then Enter, Space, or what is to be typed.

/** How often Tab is pressed before it is clear that there is no way there. */
const MOST_TABS = 150;

/** Takes steps `{to, row, press, type}`: goes to the control (at a snapshot's row), types, presses a key. */
export async function byKeyboard(page, steps) {
  for (const { to, row, press, type } of steps) {
    if (to !== undefined) {
      await goTo(page, to, row);
    }
    if (type !== undefined) {
      await page.keyboard.press("Control+A");
      await page.keyboard.type(type);
    }
    if (press !== undefined) {
      await page.keyboard.press(press);
    }
  }
  return page.evaluate(readFocus);
}

async function goTo(page, id, row) {
  // Nobody tabs to a button that cannot be pressed yet.
  const within = row === undefined ? "" : `[data-snapshot-name=${JSON.stringify(row)}] `;
  await page.locator(`${within}[data-testid=${id}]:enabled`).first().waitFor();
  for (let pressed = 0; pressed < MOST_TABS; pressed += 1) {
    const at = await page.evaluate(readFocus);
    if (at.id === id && (row === undefined || at.row === row)) {
      return;
    }
    await page.keyboard.press("Tab");
  }
  throw new Error(`Tab does not lead to ${id}${row === undefined ? "" : ` of “${row}”`}`);
}

/** Runs in the page: what has the focus, and whether that can be seen. */
export function readFocus() {
  const element = document.activeElement;
  const style = element && getComputedStyle(element);
  return {
    id: element?.dataset.testid ?? element?.className ?? null,
    row: element?.closest("[data-testid=snapshot-row]")?.dataset.snapshotName ?? null,
    dialog: element?.closest("dialog")?.dataset.testid ?? null,
    inside: element?.closest("ravada-snapshots") !== null,
    marked: style ? style.outlineStyle !== "none" || style.boxShadow !== "none" : false,
  };
}
