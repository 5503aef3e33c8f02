// Every word the user reads comes through here, by key. The catalogue of a language is one file in text/; the English
// one says which keys there are, and is always there. Another one is a file of its own for the browser, too, and is
// fetched when somebody reads that language.
//
// There is one language for a page, however many elements are on it.

import { en } from "./text/en";
import { LANGUAGES, type Language } from "./text/languages";

/** The keys of the catalogue. */
export type TextKey = keyof typeof en;
/** The keys that have a form for each plural category: `files.one`, `files.other` give `files`. */
export type PluralKey = { [K in TextKey]: K extends `${infer Base}.one` ? Base : never }[TextKey];
/** What stands in a sentence in the place of `{name}`. */
export type Params = Readonly<Record<string, string | number>>;

type PluralForm = `${PluralKey}.${Intl.LDMLPluralRule}`;
/** A language's texts: each key once, and of what is counted the plural forms that the language has. */
export type Catalogue = Readonly<Record<Exclude<TextKey, PluralForm>, string>> &
  Readonly<Record<`${PluralKey}.other`, string>> &
  Readonly<Partial<Record<PluralForm, string>>>;

const ENGLISH: Language = "en";
/** The direction marks that keep a name from turning the sentence around it. */
const ISOLATE = ["\u2068", "\u2069"] as const;

let language: Language = ENGLISH;
let catalogue: Readonly<Record<string, string>> = en;
let plurals = new Intl.PluralRules(ENGLISH);

/** The language of the texts. */
export function textLanguage(): Language {
  return language;
}

/** Which way the texts run. */
export function textDirection(): "ltr" | "rtl" {
  return LANGUAGES[language].rtl ? "rtl" : "ltr";
}

/** Takes the texts of a language into use. When they cannot be fetched, it stays with those it has: better than none. */
export async function useLanguage(wanted: Language): Promise<void> {
  if (wanted === language) {
    return;
  }
  try {
    const texts = (await LANGUAGES[wanted].load()).default;
    // What is missing (the service is newer than the translation) is said in English.
    catalogue = { ...en, ...texts };
    language = wanted;
    plurals = new Intl.PluralRules(wanted);
  } catch (error) {
    console.warn(`ravada-snapshots: no texts for ${wanted}: ${String(error)}`);
  }
}

/** The first of these language tags (`pt-BR`, `zh_TW`) for which there are texts; English when there is none. */
export function chooseLanguage(tags: readonly (string | null | undefined)[]): Language {
  for (const tag of tags) {
    const found = tag ? match(tag) : undefined;
    if (found) {
      return found;
    }
  }
  return ENGLISH;
}

/** The text of a key, with `{name}` replaced by the parameter of that name. */
export function t(key: TextKey, params: Params = {}): string {
  return fill(catalogue[key] ?? key, params);
}

/** The text of a counted thing, in the plural form that the language has for the number; `{n}` is the number. */
export function tn(key: PluralKey, n: number, params: Params = {}): string {
  const text = catalogue[`${key}.${plurals.select(n)}`] ?? catalogue[`${key}.other`] ?? key;
  return fill(text, { n: new Intl.NumberFormat(locale()).format(n), ...params });
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
  return wanted.find((tag) => match(tag) === language) ?? language;
}

function match(tag: string): Language | undefined {
  const parts = tag.toLowerCase().split(/[-_@.]/);
  const traditional = parts.some((part) => ["hant", "tw", "hk", "mo"].includes(part));
  const base = parts[0] ?? "";
  const wanted: string = base === "zh" ? (traditional ? "zh-TW" : "zh-CN") : (OTHER_NAMES[base] ?? base);
  return (Object.keys(LANGUAGES) as Language[]).find((known) => known === wanted);
}

/** Names under which browsers and systems know a language besides its own. */
const OTHER_NAMES: Readonly<Record<string, string>> = { no: "nb", nn: "nb", iw: "he", in: "id" };

function fill(text: string, params: Params): string {
  const [open, close] = textDirection() === "rtl" ? ISOLATE : ["", ""];
  return text.replace(/\{(\w+)\}/g, (whole, name: string) =>
    name in params ? `${open}${String(params[name])}${close}` : whole,
  );
}
