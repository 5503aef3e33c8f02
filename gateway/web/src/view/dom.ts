// Making elements. Text becomes text nodes, always: nothing a user or a server wrote is ever parsed as HTML.
//
// Controls carry the class names of Bootstrap beside our own, so that inside a page that has Bootstrap they look like
// that page's.

import { t, type TextKey } from "../text";

/** What an element gets: attributes by name; `false` and `undefined` leave one out, `true` sets it empty. */
export type Attributes = Readonly<Record<string, string | number | boolean | undefined>>;
/** What stands in an element. */
export type Child = Node | string | false | undefined;

/** Makes an element. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    setAttribute(element, name, value);
  }
  element.append(...present(children));
  return element;
}

/** Replaces everything in an element. */
export function fill(element: Element, ...children: readonly Child[]): void {
  element.replaceChildren(...present(children));
}

/** Makes these the children, in this order. What is a child already and in its place is not touched. */
export function place(parent: Element, children: readonly Element[]): void {
  const wanted = new Set(children);
  for (const child of [...parent.children]) {
    if (!wanted.has(child)) {
      child.remove();
    }
  }
  let at = parent.firstElementChild;
  for (const child of children) {
    if (child === at) {
      at = at.nextElementSibling;
    } else {
      parent.insertBefore(child, at);
    }
  }
}

/** Sets the text of an element, and leaves the document alone when it is that text already. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

/** Sets, or takes away, an attribute. */
export function setAttribute(element: Element, name: string, value: Attributes[string]): void {
  if (value === undefined || value === false) {
    element.removeAttribute(name);
  } else {
    const text = value === true ? "" : String(value);
    if (element.getAttribute(name) !== text) {
      element.setAttribute(name, text);
    }
  }
}

/** How much a button stands out. */
export type ButtonKind = "primary" | "danger" | "plain" | "inAlert";

const BUTTON_CLASSES: Readonly<Record<ButtonKind, string>> = {
  primary: "btn btn-primary",
  danger: "btn btn-danger",
  plain: "btn btn-outline-secondary btn-sm",
  // On Bootstrap's coloured boxes its grey is too faint to be read.
  inAlert: "btn btn-outline-dark btn-sm",
};

/** Makes a button; of type `button` unless the attributes say otherwise. */
export function button(kind: ButtonKind, text: string, attributes: Attributes, onClick?: () => void): HTMLButtonElement {
  const element = h("button", { type: "button", class: BUTTON_CLASSES[kind], ...attributes }, text);
  if (onClick) {
    element.addEventListener("click", onClick);
  }
  return element;
}

let lastId = 0;

/** An id that no other element of this page has. */
export function uniqueId(): string {
  lastId += 1;
  return `rs-${lastId}`;
}

/** A control with its label above it. */
export function field(label: TextKey, control: HTMLElement): HTMLElement {
  control.id = uniqueId();
  control.classList.add("form-control");
  return h("div", { class: "form-group" }, h("label", { for: control.id }, t(label)), control);
}

/** A checkbox or a radio button with its label beside it. */
export function choice(label: string, control: HTMLInputElement): HTMLElement {
  control.id = uniqueId();
  control.classList.add("form-check-input");
  const text = h("label", { for: control.id, class: "form-check-label" }, label);
  return h("div", { class: "form-check" }, control, text);
}

function present(children: readonly Child[]): (Node | string)[] {
  return children.filter((child): child is Node | string => child !== undefined && child !== false);
}
