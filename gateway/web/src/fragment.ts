// The part of the page's address after `#`. It never reaches a server, so a link may carry a token there; it is taken
// out at once, lest it stay in the history or in a bookmark. The chosen machine stays, so that a reload keeps it.

/** What the fragment says. */
export interface Fragment {
  /** A token to take into use; absent when there is none. */
  readonly token?: string;
  /** The chosen machine's UUID; absent when none is chosen. */
  readonly vm?: string;
}

/** Reads `#token=…&vm=…`, in any order, either part absent. */
export function readFragment(hash: string): Fragment {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const token = parts.get("token");
  const vm = parts.get("vm");
  return { ...(token ? { token } : {}), ...(vm && isUuid(vm) ? { vm: vm.toLowerCase() } : {}) };
}

/** Writes the fragment that names a machine; empty for none. A token is never written. */
export function writeFragment(vm: string | undefined): string {
  return vm === undefined ? "" : `#vm=${vm}`;
}

/** Whether a text is a UUID as libvirt writes one. */
export function isUuid(text: string): boolean {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text);
}
