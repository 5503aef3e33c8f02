// The dialog before a revert: what will be lost, whether to keep the present first, and what the machine does then.

import { LossKind, type Loss, type OperationPlan } from "../gen/ravada/snapshot/v1/operation_pb";
import { SnapshotVmState, type Snapshot } from "../gen/ravada/snapshot/v1/snapshot_pb";
import { RunAfter } from "../gen/ravada/snapshot/v1/snapshot_service_pb";
import { age, duration, moment } from "../format";
import { Intention } from "../requests";
import { nameProblem, oneLine } from "../rules";
import { locale, t, type TextKey } from "../text";
import { FormDialog } from "../view/dialog";
import { choice, field, h, type Child } from "../view/dom";
import type { FormContext } from "./context";
import { valid } from "./create";
import { PlanPart } from "./plan";

/** Opens the dialog. */
export function openRevert(context: FormContext, snapshot: Snapshot): FormDialog {
  const intention = new Intention();
  const save = h("input", { type: "checkbox", checked: true, "data-testid": "revert-save-current" });
  const saveName = h("input", { type: "text", autocomplete: "off", dir: "auto", "data-testid": "revert-save-name" });
  const saveNameField = field("revert.saveName", saveName);
  const run = h(
    "select",
    { "data-testid": "revert-run-after" },
    option(RunAfter.AS_RECORDED, t("revert.run.recorded", { state: recordedState(snapshot) })),
    option(RunAfter.RUNNING, t("revert.run.running")),
    option(RunAfter.OFF, t("revert.run.off")),
  );
  const plan = new PlanPart("revert-plan", (answer) => losses(context, answer));
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
      snapshot.createTime && h("p", {}, t("revert.intro", { time: moment(snapshot.createTime), age: age(snapshot.createTime, new Date()) })),
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
  const ask = (signal: AbortSignal) => context.api.planRevert({ ...chosen(), saveName: "" }, signal);
  const refresh = () => plan.refresh(dialog, ask);
  save.addEventListener("change", () => {
    saveNameField.hidden = !save.checked;
    void refresh();
  });
  saveName.addEventListener("input", () => saveName.setCustomValidity(""));
  run.addEventListener("change", () => void refresh());
  // Nobody has asked for the present to be kept yet. Where it cannot be, the dialog says why and what is lost, and the revert is offered.
  void plan.refresh(dialog, async (signal) => {
    try {
      return await ask(signal);
    } catch (error) {
      // A person may have chosen by now.
      if (signal.aborted) {
        throw error;
      }
      save.checked = false;
      try {
        const answer = await ask(signal);
        saveNameField.hidden = true;
        dialog.showError(error);
        return answer;
      } catch {
        save.checked ||= !signal.aborted;
        throw error;
      }
    }
  });
  return dialog;
}

function losses(context: FormContext, plan: OperationPlan): Child[] {
  // A service that does not tell them one by one tells them in its own words.
  const told = plan.lossDetails.map((loss, index) => lossText(context, loss, plan.losses[index] ?? ""));
  const list: string[] = [];
  const changes: string[] = [];
  (told.length > 0 ? told : plan.losses).forEach((text, index) => {
    (plan.lossDetails[index]?.kind === LossKind.DEFINITION ? changes : list).push(text);
  });
  const pause = plan.pauses && plan.predictedPause && duration(plan.predictedPause);
  return [
    ...section("revert.losses", "revert-losses", list),
    list.length === 0 && h("p", { "data-testid": "revert-no-losses" }, t("revert.noLosses")),
    ...section("revert.changes", "revert-changes", changes),
    pause !== undefined && pause !== false && h("p", { class: "rs-small" }, t("revert.pause", { time: pause })),
  ];
}

function section(title: TextKey, testId: string, items: readonly string[]): Child[] {
  return items.length > 0 ? [h("p", {}, t(title)), h("ul", { "data-testid": testId }, ...items.map((item) => h("li", {}, item)))] : [];
}

/** What is lost, in the user's language; in the service's words where this page does not know the kind. */
function lossText(context: FormContext, loss: Loss, words: string): string {
  const name = context.nameOf(loss.snapshot);
  switch (loss.kind) {
    case LossKind.CHANGES:
      return loss.snapshot === "" || !loss.since ? t("loss.all") : t("loss.changes", { name, time: moment(loss.since) });
    case LossKind.RUNNING_STATE:
      return t("loss.running");
    case LossKind.DISK_DETACHED:
      return t("loss.disk", { disk: loss.disk });
    case LossKind.UEFI_VARIABLES:
      return t("loss.uefi");
    case LossKind.TPM_STATE:
      return t("loss.tpm");
    case LossKind.SNAPSHOT:
      return t("loss.snapshot", { name });
    default:
      return words;
  }
}

function option(value: RunAfter, text: string): HTMLOptionElement {
  return h("option", { value }, text);
}

function recordedState(snapshot: Snapshot): string {
  switch (snapshot.vmState) {
    case SnapshotVmState.RUNNING:
      return t("state.RUNNING").toLocaleLowerCase(locale());
    case SnapshotVmState.PAUSED:
      return t("state.PAUSED").toLocaleLowerCase(locale());
    case SnapshotVmState.SHUTOFF:
    case SnapshotVmState.DISK_ONLY:
      return t("state.SHUTOFF").toLocaleLowerCase(locale());
    case SnapshotVmState.UNSPECIFIED:
      return t("state.UNSPECIFIED").toLocaleLowerCase(locale());
  }
}
