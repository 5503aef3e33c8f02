// The dialog before a revert: what will be lost, whether to keep the present first, and what the machine does then.

import type { OperationPlan } from "../gen/ravada/snapshot/v1/operation_pb";
import { SnapshotVmState, type Snapshot } from "../gen/ravada/snapshot/v1/snapshot_pb";
import { RunAfter } from "../gen/ravada/snapshot/v1/snapshot_service_pb";
import { duration, moment } from "../format";
import { Intention } from "../requests";
import { nameProblem, oneLine } from "../rules";
import { t } from "../text";
import { FormDialog } from "../view/dialog";
import { choice, field, h, type Child } from "../view/dom";
import type { FormContext } from "./context";
import { valid } from "./create";
import { PlanPart } from "./plan";

/** Opens the dialog. */
export function openRevert(context: FormContext, snapshot: Snapshot): FormDialog {
  const intention = new Intention();
  const save = h("input", { type: "checkbox", checked: true, "data-testid": "revert-save-current" });
  const saveName = h("input", { type: "text", autocomplete: "off", "data-testid": "revert-save-name" });
  const saveNameField = field("revert.saveName", saveName);
  const run = h(
    "select",
    { "data-testid": "revert-run-after" },
    option(RunAfter.AS_RECORDED, t("revert.run.recorded", { state: recordedState(snapshot) })),
    option(RunAfter.RUNNING, t("revert.run.running")),
    option(RunAfter.OFF, t("revert.run.off")),
  );
  const plan = new PlanPart("revert-plan", losses);
  const chosen = () => ({
    snapshot,
    saveCurrent: save.checked,
    saveName: oneLine(saveName.value),
    runAfter: Number(run.value) as RunAfter,
  });
  const dialog = new FormDialog(context.parent, {
    id: "revert",
    title: t("revert.title", { name: snapshot.displayName }),
    confirm: t("revert.confirm"),
    kind: "primary",
    body: [
      snapshot.createTime && h("p", {}, t("revert.intro", { time: moment(snapshot.createTime) })),
      choice(t("revert.save"), save),
      saveNameField,
      field("revert.run", run),
      plan.element,
    ],
    onConfirm: async () => {
      const wanted = chosen();
      if (wanted.saveCurrent && wanted.saveName !== "" && !valid(saveName, nameProblem(wanted.saveName))) {
        return false;
      }
      context.accepted(await context.api.revert(wanted, intention));
      return true;
    },
    onClosed: () => {
      plan.stop();
      context.closed();
    },
  });
  // The name of the kept snapshot changes nothing in the plan, so that typing it asks nobody.
  const refresh = () => plan.refresh(dialog, (signal) => context.api.planRevert({ ...chosen(), saveName: "" }, signal));
  save.addEventListener("change", () => {
    saveNameField.hidden = !save.checked;
    void refresh();
  });
  saveName.addEventListener("input", () => saveName.setCustomValidity(""));
  run.addEventListener("change", () => void refresh());
  void refresh();
  return dialog;
}

function losses(plan: OperationPlan): Child[] {
  const pause = plan.pauses && plan.predictedPause && duration(plan.predictedPause);
  return [
    plan.losses.length > 0 && h("p", {}, t("revert.losses")),
    plan.losses.length > 0 &&
      h("ul", { "data-testid": "revert-losses" }, ...plan.losses.map((loss) => h("li", {}, loss))),
    plan.losses.length === 0 && h("p", { "data-testid": "revert-no-losses" }, t("revert.noLosses")),
    pause !== undefined && pause !== false && h("p", { class: "rs-small" }, t("revert.pause", { time: pause })),
  ];
}

function option(value: RunAfter, text: string): HTMLOptionElement {
  return h("option", { value }, text);
}

function recordedState(snapshot: Snapshot): string {
  switch (snapshot.vmState) {
    case SnapshotVmState.RUNNING:
      return t("state.RUNNING").toLowerCase();
    case SnapshotVmState.PAUSED:
      return t("state.PAUSED").toLowerCase();
    case SnapshotVmState.SHUTOFF:
    case SnapshotVmState.DISK_ONLY:
      return t("state.SHUTOFF").toLowerCase();
    case SnapshotVmState.UNSPECIFIED:
      return t("state.UNSPECIFIED").toLowerCase();
  }
}
