// The dialog before a removal: how much of the tree, and which snapshots that means, by name.

import type { OperationPlan } from "../gen/ravada/snapshot/v1/operation_pb";
import type { Snapshot } from "../gen/ravada/snapshot/v1/snapshot_pb";
import { DeleteScope } from "../gen/ravada/snapshot/v1/snapshot_service_pb";
import { Intention } from "../requests";
import { t, tn, type TextKey } from "../text";
import { subtree } from "../tree";
import { FormDialog } from "../view/dialog";
import { choice, h, uniqueId, type Child } from "../view/dom";
import type { FormContext } from "./context";
import { PlanPart } from "./plan";

const SCOPES: readonly (readonly [DeleteScope, TextKey, string])[] = [
  [DeleteScope.ONLY, "remove.scope.only", "remove-scope-only"],
  [DeleteScope.SUBTREE, "remove.scope.subtree", "remove-scope-subtree"],
  [DeleteScope.DESCENDANTS, "remove.scope.descendants", "remove-scope-descendants"],
];

/** Opens the dialog. `snapshots` are all of the machine. */
export function openRemove(
  context: FormContext,
  snapshot: Snapshot,
  snapshots: ReadonlyMap<string, Snapshot>,
): FormDialog {
  const intention = new Intention();
  const branch = subtree(snapshots, snapshot.name);
  const group = uniqueId();
  const radios = SCOPES.map(([scope, , testId]) =>
    h("input", {
      type: "radio",
      name: group,
      value: scope,
      checked: scope === DeleteScope.ONLY,
      "data-testid": testId,
    }),
  );
  // Where nothing follows, there is nothing to choose.
  const scopes = h(
    "fieldset",
    { hidden: branch.length === 1 },
    h("legend", {}, t("remove.scope")),
    ...radios.map((radio, index) => choice(t(SCOPES[index]?.[1] ?? "remove.scope.only"), radio)),
  );
  const force = h("input", { type: "checkbox", "data-testid": "remove-force" });
  const forceChoice = choice(t("remove.force"), force);
  forceChoice.hidden = !branch.some((name) => snapshots.get(name)?.protected);
  const plan = new PlanPart("remove-plan", (answer) => victims(context, answer));
  const chosen = () => ({
    snapshot,
    scope: Number(radios.find((radio) => radio.checked)?.value ?? DeleteScope.ONLY) as DeleteScope,
    force: force.checked,
  });
  const dialog = new FormDialog(context.parent, {
    id: "remove",
    title: t("remove.title", { name: snapshot.displayName }),
    confirm: t("remove.confirm"),
    kind: "danger",
    body: [scopes, forceChoice, plan.element],
    onConfirm: async () => {
      context.accepted(await context.api.remove(chosen(), intention));
      return true;
    },
    onClosed: () => {
      plan.stop();
      context.closed();
    },
  });
  const refresh = () => plan.refresh(dialog, (signal) => context.api.planRemove(chosen(), signal));
  for (const control of [...radios, force]) {
    control.addEventListener("change", () => void refresh());
  }
  void refresh();
  return dialog;
}

function victims(context: FormContext, plan: OperationPlan): Child[] {
  const names = plan.deletedSnapshots;
  if (names.length === 0) {
    return [h("p", {}, t("remove.list.none"))];
  }
  return [
    h("p", {}, tn("remove.list", names.length)),
    h(
      "ul",
      { class: "rs-victims", "data-testid": "remove-list" },
      ...names.map((name) => h("li", { "data-testid": "remove-item" }, context.nameOf(name))),
    ),
    h("p", { class: "rs-small" }, t("remove.present")),
  ];
}
