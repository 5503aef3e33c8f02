// What every form is given by the element it stands in.

import type { Api } from "../api";
import type { Operation } from "../gen/ravada/snapshot/v1/operation_pb";

/** The surroundings of a form. */
export interface FormContext {
  readonly api: Api;
  /** Where dialogs are put. */
  readonly parent: Element;
  /** A mutation was accepted; `displayName` is the snapshot's, where the form knows it before the watch does. */
  accepted(operation: Operation, displayName?: string): void;
  /** The user's name of a snapshot, by its resource name. */
  nameOf(snapshot: string): string;
  /** A dialog has gone. */
  closed(): void;
}
