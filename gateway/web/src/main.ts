// The gateway's own page: a field for the token, the machines it opens, and the element for the chosen one.

import { Api } from "./api";
import { defineElement, VM_EVENT } from "./element";
import { readFragment, writeFragment } from "./fragment";
import type { Vm } from "./gen/ravada/snapshot/v1/vm_pb";
import { chooseLanguage, t, textDirection, textLanguage, useLanguage } from "./text";
import { cleanToken, PastedTokens } from "./tokens";
import { LanguageView, rememberedLanguage } from "./view/language";
import { AccessView } from "./view/access";
import { fill, h } from "./view/dom";
import { MachinesView } from "./view/machines";

/** The API is beside the page, wherever a reverse proxy has put both. */
const ENDPOINT = ".";

const tokens = new PastedTokens(sessionStorage);
takeToken();
await useLanguage(chooseLanguage([rememberedLanguage(), ...navigator.languages]));
document.documentElement.lang = textLanguage();
document.documentElement.dir = textDirection();
document.title = t("page.title");

const api = new Api(new URL(ENDPOINT, document.baseURI).href.replace(/\/$/, ""), tokens);
const access = new AccessView(tokens);
const machines = new MachinesView(choose, () => void list());
const main = place("machine");
const element = h("ravada-snapshots", { endpoint: ENDPOINT });

let chosen: string | undefined;
let listing: AbortController | undefined;

defineElement();
element.tokenSource = tokens;
element.addEventListener(VM_EVENT, (event) => machines.update((event as CustomEvent<Vm>).detail));
fill(place("access"), access.element, new LanguageView().element);
place("machines").setAttribute("aria-label", t("page.machines"));
fill(place("machines"), machines.element);
tokens.onChange(() => void list());
window.addEventListener("hashchange", takeFragment);
takeFragment();
void list();

/** Takes over what the address says. */
function takeFragment(): void {
  takeToken();
  show(readFragment(location.hash).vm);
}

/** Takes a token out of the address, before anything else can see it there. */
function takeToken(): void {
  const { token, vm } = readFragment(location.hash);
  if (token !== undefined) {
    history.replaceState(null, "", `${location.pathname}${location.search}${writeFragment(vm)}`);
    const clean = cleanToken(token);
    if (clean !== undefined) {
      tokens.set(clean);
    }
  }
}

function choose(vm: string): void {
  history.pushState(null, "", `${location.pathname}${location.search}${writeFragment(vm)}`);
  show(vm);
}

function show(vm: string | undefined): void {
  chosen = vm;
  machines.choose(vm);
  if (vm === undefined) {
    element.removeAttribute("vm");
    fill(main, h("p", { class: "rs-empty", "data-testid": "choose" }, t("page.choose")));
    return;
  }
  element.setAttribute("vm", vm);
  if (!element.isConnected) {
    fill(main, element);
  }
}

async function list(): Promise<void> {
  listing?.abort();
  listing = undefined;
  if (tokens.current === undefined) {
    machines.needToken(tokens.ended);
    return;
  }
  const call = new AbortController();
  listing = call;
  machines.loading();
  try {
    const vms = await api.listVms(call.signal);
    if (listing === call) {
      machines.show(vms);
      const [only] = vms;
      // With one machine there is nothing to choose.
      if (chosen === undefined && vms.length === 1 && only) {
        show(only.name.slice("vms/".length));
      }
    }
  } catch (error) {
    // A refused token has been told of already, and the list has been made anew by that.
    if (listing === call && tokens.current !== undefined) {
      machines.failed(error);
    }
  }
}

function place(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (!found) {
    throw new Error(`index.html has no #${id}`);
  }
  return found;
}
