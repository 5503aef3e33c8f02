// Looks at the page all the time, from inside. What is there for a moment only (progress, a lost connection) would be missed
// by anybody who looks now and then.

/** Runs in the page, before its own scripts. Notes each change in `window.witnessed`. */
export function watchEverything() {
  const witnessed = { connections: [], progress: [] };
  Object.defineProperty(window, "witnessed", { value: witnessed });
  const note = (list, entry) => {
    if (JSON.stringify(list.at(-1)) !== JSON.stringify(entry)) {
      list.push(entry);
    }
  };
  const look = () => {
    const element = document.querySelector("ravada-snapshots[data-connection]");
    if (element) {
      note(witnessed.connections, element.dataset.connection);
    }
    for (const bar of document.querySelectorAll("[data-testid=operation-progress]")) {
      const text = (id) => bar.querySelector(`[data-testid=${id}]`)?.textContent ?? "";
      note(witnessed.progress, {
        kind: bar.dataset.kind,
        what: text("operation-what"),
        phase: text("operation-phase"),
        percent: bar.querySelector("progress")?.getAttribute("value") ?? null,
      });
    }
  };
  new MutationObserver(look).observe(document, {
    subtree: true,
    childList: true,
    attributes: true,
    characterData: true,
  });
  document.addEventListener("securitypolicyviolation", (event) => {
    console.error(`the policy forbids ${event.blockedURI} as ${event.effectiveDirective}`);
  });
}

/** Runs in the page: everything that a person can read there now. */
export function readEverything() {
  const find = (id, root = document) => root.querySelector(`[data-testid="${id}"]`);
  const findAll = (id, root = document) => [...root.querySelectorAll(`[data-testid="${id}"]`)];
  const text = (id, root = document) => {
    const element = find(id, root);
    return element?.checkVisibility() ? element.textContent.trim() : null;
  };
  const rows = findAll("snapshot-row").map((row) => ({
    name: text("snapshot-title", row),
    state: row.dataset.state,
    description: text("snapshot-description", row) ?? "",
    size: text("snapshot-size", row),
    age: row.querySelector(".rs-age")?.textContent ?? null,
    marks: [...row.querySelectorAll("[data-testid^=mark-]")].map((mark) => mark.dataset.testid.slice("mark-".length)),
    depth: depth(row),
    may: ["revert", "edit", "remove"].filter((what) => find(`snapshot-${what}`, row).matches(":enabled")),
  }));
  const here = find("you-are-here");
  const create = find("create-form");
  return {
    address: location.href,
    connection: document.querySelector("ravada-snapshots")?.dataset.connection ?? null,
    banner: text("connection"),
    token: find("token-status")?.dataset.state ?? null,
    tokenText: text("token-status"),
    machines: findAll("machine-item").map((item) => ({
      vm: item.dataset.vm,
      name: item.dataset.vmName,
      text: item.innerText,
      chosen: item.ariaCurrent === "true",
    })),
    machine: find("vm-name")?.checkVisibility() ? { name: text("vm-name"), state: text("vm-state"), host: text("vm-host") } : null,
    orphans: text("vm-orphans"),
    rows,
    count: text("snapshot-count"),
    empty: text("snapshot-empty") !== null,
    // Which snapshot the machine's present follows; empty when it stands alone, null when it is not shown.
    here: here && (here.previousElementSibling?.querySelector(":scope > [data-testid=snapshot-row]")?.dataset.snapshotName ?? ""),
    create: create?.checkVisibility()
      ? {
          possible: !find("create-submit").disabled,
          reason: text("create-reason"),
          memory: find("create-memory").checked,
          name: find("create-name").value,
          nameProblem: find("create-name").validationMessage,
        }
      : null,
    done: findAll("operation-done").map((notice) => notice.querySelector(".rs-alert-text").textContent.trim()),
    cancelled: findAll("operation-cancelled").map((notice) => notice.querySelector(".rs-alert-text").textContent.trim()),
    problems: findAll("error-alert")
      .filter((alert) => alert.checkVisibility())
      .map((alert) => ({
        reason: alert.dataset.reason,
        text: text("error-text", alert),
        next: text("error-next", alert),
        detail: text("error-detail", alert),
      })),
    cost: text("create-cost"),
    left: text("create-left"),
    memory: find("create-memory") && { enabled: !find("create-memory").disabled, hint: text("create-memory-hint") },
    undo: find("operation-undo") && !find("operation-undo").disabled,
    announced: find("operation-begun")?.textContent ?? null,
    stoppable: find("operation-cancel")?.checkVisibility() ?? false,
    access: text("access"),
    loading: text("loading"),
    losses: [...(find("revert-losses")?.children ?? [])].map((item) => item.textContent),
    changes: [...(find("revert-changes")?.children ?? [])].map((item) => item.textContent),
    victims: findAll("remove-item").map((item) => item.textContent),
    dialog: document.querySelector("dialog[open]")?.dataset.testid ?? null,
    running: findAll("operation-progress").map((bar) => text("operation-what", bar)),
    tooWide: document.documentElement.scrollWidth > window.innerWidth,
    witnessed: window.witnessed,
    html: document.documentElement.outerHTML,
  };

  /** How many side lines the row is set in. */
  function depth(row) {
    let lines = 0;
    for (let line = row.closest(".rs-line"); line; line = line.parentElement.closest(".rs-line")) {
      lines += 1;
    }
    return lines - 1;
  }
}
