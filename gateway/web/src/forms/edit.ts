// The dialog that changes a snapshot's name, description and protection. Only what was changed is sent, and only if the
// snapshot is still as it was shown: two people must not undo each other's words without knowing.

import type { SnapshotChange } from "../api";
import type { Snapshot } from "../gen/ravada/snapshot/v1/snapshot_pb";
import { Intention } from "../requests";
import { descriptionProblem, nameProblem, oneLine } from "../rules";
import { t } from "../text";
import { FormDialog } from "../view/dialog";
import { choice, field, h } from "../view/dom";
import type { FormContext } from "./context";
import { valid } from "./create";

/** Opens the dialog. */
export function openEdit(context: FormContext, snapshot: Snapshot): FormDialog {
  const intention = new Intention();
  const name = h("input", { type: "text", autocomplete: "off", dir: "auto", "data-testid": "edit-name" });
  const description = h("textarea", { rows: 4, dir: "auto", "data-testid": "edit-description" });
  const protect = h("input", { type: "checkbox", "data-testid": "edit-protected" });
  name.value = snapshot.displayName;
  description.value = snapshot.description;
  protect.checked = snapshot.protected;
  for (const control of [name, description]) {
    control.addEventListener("input", () => control.setCustomValidity(""));
  }
  return new FormDialog(context.parent, {
    id: "edit",
    title: t("edit.title", { name: snapshot.displayName }),
    confirm: t("edit.confirm"),
    kind: "primary",
    body: [field("create.name", name), field("create.description", description), choice(t("edit.protected"), protect)],
    onConfirm: async () => {
      const change = changeOf(snapshot, {
        displayName: oneLine(name.value),
        description: oneLine(description.value),
        protected: protect.checked,
      });
      const nameWrong = change.displayName === undefined ? undefined : nameProblem(change.displayName);
      const descriptionWrong = change.description === undefined ? undefined : descriptionProblem(change.description);
      if (!valid(name, nameWrong) || !valid(description, descriptionWrong)) {
        return false;
      }
      if (Object.keys(change).length > 0) {
        context.accepted(await context.api.update(snapshot, change, intention), change.displayName);
      }
      return true;
    },
    onClosed: () => context.closed(),
  });
}

function changeOf(snapshot: Snapshot, wanted: Required<SnapshotChange>): SnapshotChange {
  return {
    // Compared as it would be sent: a foreign name may hold what cannot be typed here, and stays unless edited.
    ...(wanted.displayName !== oneLine(snapshot.displayName) && { displayName: wanted.displayName }),
    ...(wanted.description !== oneLine(snapshot.description) && { description: wanted.description }),
    ...(wanted.protected !== snapshot.protected && { protected: wanted.protected }),
  };
}
