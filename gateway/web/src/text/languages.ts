// The languages there are texts in, each with how to fetch them. The names of the files are written out, because the
// bundler makes a file of each only where it can read its name.

import type { Catalogue } from "../text";
import { en } from "./en";

interface Texts {
  /** Whether it is written from right to left. */
  readonly rtl?: boolean;
  readonly load: () => Promise<{ readonly default: Catalogue }>;
}

const TEXTS = {
  ar: { rtl: true, load: () => import("./ar") },
  ca: { load: () => import("./ca") },
  cs: { load: () => import("./cs") },
  de: { load: () => import("./de") },
  // Always there: see text.ts.
  en: { load: () => Promise.resolve({ default: en }) },
  es: { load: () => import("./es") },
  eu: { load: () => import("./eu") },
  fa: { rtl: true, load: () => import("./fa") },
  fr: { load: () => import("./fr") },
  gl: { load: () => import("./gl") },
  he: { rtl: true, load: () => import("./he") },
  hi: { load: () => import("./hi") },
  id: { load: () => import("./id") },
  it: { load: () => import("./it") },
  ja: { load: () => import("./ja") },
  ko: { load: () => import("./ko") },
  nb: { load: () => import("./nb") },
  pt: { load: () => import("./pt") },
  ru: { load: () => import("./ru") },
  tr: { load: () => import("./tr") },
  vi: { load: () => import("./vi") },
  "zh-CN": { load: () => import("./zh-CN") },
  "zh-TW": { load: () => import("./zh-TW") },
} satisfies Readonly<Record<string, Texts>>;

/** A language there are texts in, by its BCP 47 tag. */
export type Language = keyof typeof TEXTS;

export const LANGUAGES: Readonly<Record<Language, Texts>> = TEXTS;
