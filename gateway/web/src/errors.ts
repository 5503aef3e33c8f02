// From what went wrong to what the user is told.
//
// The service gives every refusal a reason (google.rpc.ErrorInfo, docs/errors.md); the catalogue of texts has a
// sentence and an advice for each. What has no reason comes from the network, a proxy or the browser, and is explained
// by its gRPC code. The server's own message is always kept, for the administrator it may be shown to.

import { Code, ConnectError } from "@connectrpc/connect";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb";
import type { OperationError } from "./gen/ravada/snapshot/v1/operation_pb";
import { knownKey, t, type TextKey } from "./text";

/** Whose reasons the catalogue knows. */
export const DOMAIN = "snapshots.ravada";

/** The reason of a request that is made again with another token. */
export const SPENT = "TOKEN_SPENT";

/** What went wrong, in the user's words. */
export interface Problem {
  /** `ErrorInfo.reason`; empty when the answer had none. */
  readonly reason: string;
  /** What happened, in a sentence. */
  readonly text: string;
  /** What to do next, in a sentence. */
  readonly next: string;
  /** The server's own words; empty where they would add nothing. */
  readonly detail: string;
}

/** Explains what a call threw. */
export function explain(error: unknown): Problem {
  const failure = ConnectError.from(error);
  const reason = reasonOf(failure);
  return problem(reason, failure.code, failure.rawMessage);
}

/** Explains why an operation failed. */
export function explainOperation(error: OperationError): Problem {
  return problem(error.reason, error.code, error.message);
}

/** The sentence and the advice for a reason alone, such as the one in a capability; else the server's own sentence. */
export function explainReason(reason: string, message: string): string {
  const say = knownKey(`error.${reason}`);
  const next = knownKey(`next.${reason}`);
  return say && next ? `${t(say)} ${t(next)}` : message;
}

/** `ErrorInfo.reason` of an error; empty when it has none of this service. */
export function reasonOf(error: ConnectError): string {
  return error.findDetails(ErrorInfoSchema).find((info) => info.domain === DOMAIN)?.reason ?? "";
}

/** How long the server asks to wait before trying again, in milliseconds; 0 when it does not say. */
export function retryDelayOf(error: ConnectError): number {
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return delay ? durationMs(delay) : 0;
}

/**
 * Whether the request may have been carried out although its answer is an error. Such a request is repeated under the
 * same request id, so that it cannot be carried out twice.
 */
export function isAmbiguous(error: ConnectError): boolean {
  switch (error.code) {
    case Code.Unavailable:
    case Code.DeadlineExceeded:
    case Code.Unknown:
    case Code.Internal:
    case Code.Canceled:
      return true;
    default:
      return false;
  }
}

/** Whether the token has done all that one may: nothing was done, and another one is needed. */
export function isSpent(error: ConnectError): boolean {
  return reasonOf(error) === SPENT;
}

/** Whether the service itself never spoke: the network, a proxy or the browser did. */
export function isTransport(error: ConnectError): boolean {
  return isAmbiguous(error) && reasonOf(error) === "";
}

function problem(reason: string, code: number, message: string): Problem {
  const say = knownKey(`error.${reason}`);
  const next = knownKey(`next.${reason}`);
  if (say && next) {
    return { reason, text: t(say), next: t(next), detail: message };
  }
  const [sayCode, nextCode] = byCode(code);
  return { reason, text: t(sayCode), next: t(nextCode), detail: message };
}

function byCode(code: number): [TextKey, TextKey] {
  switch (code) {
    case Code.Unavailable:
    case Code.Unknown:
      return ["error.code.unreachable", "next.code.unreachable"];
    case Code.Unauthenticated:
      return ["error.code.unauthenticated", "next.code.unauthenticated"];
    case Code.PermissionDenied:
      return ["error.code.denied", "next.code.denied"];
    case Code.DeadlineExceeded:
      return ["error.code.timeout", "next.code.timeout"];
    default:
      return ["error.code.other", "next.code.other"];
  }
}
