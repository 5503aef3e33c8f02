// The service as the page uses it: gRPC-Web to the origin that served the page, the token on every call, a deadline on
// every call that has one answer.

import { Code, ConnectError, createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import type { Operation, OperationPlan } from "./gen/ravada/snapshot/v1/operation_pb";
import { OperationService } from "./gen/ravada/snapshot/v1/operation_service_pb";
import type { Snapshot, SnapshotContent } from "./gen/ravada/snapshot/v1/snapshot_pb";
import {
  SnapshotService,
  type DeleteScope,
  type RunAfter,
  type WatchVmResponse,
} from "./gen/ravada/snapshot/v1/snapshot_service_pb";
import type { Vm } from "./gen/ravada/snapshot/v1/vm_pb";
import { Intention, newRequestId } from "./requests";
import type { TokenSource } from "./tokens";

/** How long a call may take that only reads or only records: the work itself is an operation. */
const DEADLINE_MS = 20_000;
const PAGE_SIZE = 500;
/** The most pages read of one list: a bound, far above what a page can show. */
const MOST_PAGES = 200;

/** What a snapshot to be taken shall be. */
export interface NewSnapshot {
  readonly displayName: string;
  readonly description: string;
  readonly content: SnapshotContent;
}

/** How to go back to a snapshot. */
export interface RevertChoice {
  readonly snapshot: Snapshot;
  readonly saveCurrent: boolean;
  readonly saveName: string;
  readonly runAfter: RunAfter;
}

/** What to remove. */
export interface RemoveChoice {
  readonly snapshot: Snapshot;
  readonly scope: DeleteScope;
  readonly force: boolean;
}

/** What of a snapshot to change: only what is present. */
export interface SnapshotChange {
  readonly displayName?: string;
  readonly description?: string;
  readonly protected?: boolean;
}

/** The service, for one source of tokens. */
export class Api {
  readonly #snapshots: Client<typeof SnapshotService>;
  readonly #operations: Client<typeof OperationService>;

  /** `endpoint` is the address under which the gateway serves the API, without a slash at its end. */
  constructor(endpoint: string, tokens: TokenSource) {
    const transport = createGrpcWebTransport({
      baseUrl: endpoint,
      useBinaryFormat: true,
      defaultTimeoutMs: DEADLINE_MS,
      interceptors: [bearer(tokens)],
    });
    this.#snapshots = createClient(SnapshotService, transport);
    this.#operations = createClient(OperationService, transport);
  }

  /** All the machines that the token may read. */
  async listVms(signal: AbortSignal): Promise<Vm[]> {
    const vms: Vm[] = [];
    let pageToken = "";
    for (let page = 0; page < MOST_PAGES; page += 1) {
      const answer = await this.#snapshots.listVms({ pageSize: PAGE_SIZE, pageToken }, { signal });
      vms.push(...answer.vms);
      pageToken = answer.nextPageToken;
      if (pageToken === "") {
        break;
      }
    }
    return vms;
  }

  /** The state of a machine, then its changes, until the token ends, the connection breaks, or the signal fires. */
  watchVm(name: string, resumeToken: string, signal: AbortSignal): AsyncIterable<WatchVmResponse> {
    // A deadline of 0 is none: this call has no end of its own.
    return this.#snapshots.watchVm({ name, resumeToken }, { signal, timeoutMs: 0 });
  }

  /** What taking a snapshot would do. It is asked before the user has named it, so under a name of no meaning. */
  async planCreate(vm: string, content: SnapshotContent, signal: AbortSignal): Promise<OperationPlan | undefined> {
    const snapshot = { displayName: "?" };
    return (await this.#snapshots.createSnapshot({ parent: vm, snapshot, content, validateOnly: true }, { signal })).plan;
  }

  /** Takes a snapshot. */
  create(vm: string, wanted: NewSnapshot, intention: Intention): Promise<Operation> {
    return intention.carryOut([vm, wanted], (requestId) =>
      this.#snapshots.createSnapshot({
        parent: vm,
        snapshot: { displayName: wanted.displayName, description: wanted.description },
        content: wanted.content,
        requestId,
      }),
    );
  }

  /** What going back would do. */
  async planRevert(choice: RevertChoice, signal: AbortSignal): Promise<OperationPlan | undefined> {
    const request = { ...revertRequest(choice), requestId: newRequestId(), validateOnly: true };
    return (await this.#snapshots.revertToSnapshot(request, { signal })).plan;
  }

  /** Goes back to a snapshot. */
  revert(choice: RevertChoice, intention: Intention): Promise<Operation> {
    const request = revertRequest(choice);
    return intention.carryOut(request, (requestId) => this.#snapshots.revertToSnapshot({ ...request, requestId }));
  }

  /** What a removal would do. */
  async planRemove(choice: RemoveChoice, signal: AbortSignal): Promise<OperationPlan | undefined> {
    const request = { ...removeRequest(choice), requestId: newRequestId(), validateOnly: true };
    return (await this.#snapshots.deleteSnapshot(request, { signal })).plan;
  }

  /** Removes snapshots. */
  remove(choice: RemoveChoice, intention: Intention): Promise<Operation> {
    const request = removeRequest(choice);
    return intention.carryOut(request, (requestId) => this.#snapshots.deleteSnapshot({ ...request, requestId }));
  }

  /** Changes name, description or protection, if the snapshot is still as it was when the form was opened. */
  update(snapshot: Snapshot, change: SnapshotChange, intention: Intention): Promise<Operation> {
    const paths = updatePaths(change);
    const target = { name: snapshot.name, etag: snapshot.etag, ...change };
    return intention.carryOut([target, paths], (requestId) =>
      this.#snapshots.updateSnapshot({ snapshot: target, updateMask: { paths }, requestId }),
    );
  }

  /** Asks for an operation to be stopped. */
  cancel(operation: string): Promise<Operation> {
    return this.#operations.cancelOperation({ name: operation });
  }

  /** An operation as it is now. */
  operation(name: string): Promise<Operation> {
    return this.#operations.getOperation({ name });
  }
}

/** The field mask of a change: the names the fields have in the API. */
export function updatePaths(change: SnapshotChange): string[] {
  const paths: string[] = [];
  if (change.displayName !== undefined) {
    paths.push("display_name");
  }
  if (change.description !== undefined) {
    paths.push("description");
  }
  if (change.protected !== undefined) {
    paths.push("protected");
  }
  return paths;
}

// The etag stays out of these two: it changes with the name and the description, too, and a revert or a removal that
// the user has confirmed is not made wrong by a description that somebody corrected meanwhile.
function revertRequest(choice: RevertChoice) {
  return {
    name: choice.snapshot.name,
    saveCurrent: choice.saveCurrent,
    saveCurrentDisplayName: choice.saveCurrent ? choice.saveName : "",
    runAfter: choice.runAfter,
  };
}

function removeRequest(choice: RemoveChoice) {
  return { name: choice.snapshot.name, scope: choice.scope, force: choice.force };
}

/** Puts the token on each call, and tells its source when the service refuses it. */
function bearer(tokens: TokenSource): Interceptor {
  return (next) => async (request) => {
    const token = await tokens.get();
    if (token === undefined) {
      throw new ConnectError("no token", Code.Unauthenticated);
    }
    request.header.set("Authorization", `Bearer ${token}`);
    const refusal = (error: unknown): never => {
      if (ConnectError.from(error).code === Code.Unauthenticated) {
        tokens.refused(token);
      }
      throw error;
    };
    const response = await next(request).catch(refusal);
    if (!response.stream) {
      return response;
    }
    // The refusal of a stream comes while it is read: when its token ends, for instance.
    const messages = response.message;
    async function* watched() {
      try {
        yield* messages;
      } catch (error) {
        refusal(error);
      }
    }
    return { ...response, message: watched() };
  };
}
