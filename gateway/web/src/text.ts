// Every word the user reads comes through here, by key. The catalogue of a language is one file in text/; the English
// one says which keys there are.

import { en } from "./text/en";

/** The keys of the catalogue. */
export type TextKey = keyof typeof en;
/** The keys that have a form for each plural category: `files.one`, `files.other` give `files`. */
export type PluralKey = { [K in TextKey]: K extends `${infer Base}.other` ? Base : never }[TextKey];
/** What stands in a sentence in the place of `{name}`. */
export type Params = Readonly<Record<string, string | number>>;

const LANGUAGE = "en";
const catalogue: Readonly<Record<string, string>> = en;
const plurals = new Intl.PluralRules(LANGUAGE);

/** The text of a key, with `{name}` replaced by the parameter of that name. */
export function t(key: TextKey, params: Params = {}): string {
  return fill(catalogue[key] ?? key, params);
}

/** The text of a counted thing, in the plural form that the language has for the number; `{n}` is the number. */
export function tn(key: PluralKey, n: number, params: Params = {}): string {
  const text = catalogue[`${key}.${plurals.select(n)}`] ?? catalogue[`${key}.other`] ?? key;
  return fill(text, { n, ...params });
}

/** The key, if the catalogue has it: for keys that are put together from what the server says. */
export function knownKey(key: string): TextKey | undefined {
  return Object.hasOwn(catalogue, key) ? (key as TextKey) : undefined;
}

/**
 * The locale in which numbers and times are written: the reader's own where it is of the language of the texts (so that
 * a British reader gets British dates), else the language itself, lest one sentence be in two languages.
 */
export function locale(): string {
  const wanted = typeof navigator === "undefined" ? [] : (navigator.languages ?? []);
  return wanted.find((tag) => tag === LANGUAGE || tag.startsWith(`${LANGUAGE}-`)) ?? LANGUAGE;
}

function fill(text: string, params: Params): string {
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => (name in params ? String(params[name]) : whole));
}
