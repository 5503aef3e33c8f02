// The catalogues: each language has every text, with what is to be filled in, and the plural forms that it needs.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, test } from "node:test";
import { en } from "../src/text/en";
import { LANGUAGES, type Language } from "../src/text/languages";
import { chooseLanguage, t, textDirection, tn, useLanguage } from "../src/text";
import { PHASES } from "../src/view/operations";

const FORMS = /\.(zero|one|two|few|many|other)$/;
const languages = Object.keys(LANGUAGES) as Language[];
const texts = new Map<Language, Readonly<Record<string, string>>>();
for (const language of languages) {
  texts.set(language, (await LANGUAGES[language].load()).default as Readonly<Record<string, string>>);
}
const counted = new Set(Object.keys(en).filter((key) => key.endsWith(".one")).map((key) => key.replace(FORMS, "")));
const isCounted = (key: string) => counted.has(key.replace(FORMS, "")) && FORMS.test(key);
const parameters = (text: string) => [...text.matchAll(/\{\w+\}/g)].map((match) => match[0]).sort();

after(() => useLanguage("en"));

test("there are as many languages as were promised, one of them written from the right", () => {
  assert.ok(languages.length >= 18, `only ${languages.length}`);
  assert.ok(languages.some((language) => LANGUAGES[language].rtl));
});

for (const language of languages) {
  test(`${language} has every text once, with the same parameters, and every plural form`, () => {
    const catalogue = texts.get(language) ?? {};
    const categories = new Intl.PluralRules(language).resolvedOptions().pluralCategories;
    const forms = [...counted].flatMap((key) => categories.map((category) => `${key}.${category}`));
    const wanted = [...Object.keys(en).filter((key) => !isCounted(key)), ...forms];
    assert.deepEqual(Object.keys(catalogue).sort(), wanted.sort());
    for (const [key, text] of Object.entries(catalogue)) {
      assert.notEqual(text.trim(), "", key);
      const original = (en as Readonly<Record<string, string>>)[key] ?? "";
      if (!isCounted(key)) {
        assert.deepEqual(parameters(text), parameters(original), key);
      } else {
        // "One snapshot" may do without its number; nothing else may be left out or made up.
        const all = parameters((en as Readonly<Record<string, string>>)[key.replace(FORMS, ".other")] ?? "");
        const given = new Set([...parameters(text), "{n}"]);
        assert.deepEqual([...given].sort(), all.includes("{n}") ? all : [...all, "{n}"].sort(), key);
      }
    }
  });
}

test("no language was left in English", () => {
  for (const language of languages.filter((one) => one !== "en")) {
    const catalogue = texts.get(language) ?? {};
    const same = Object.entries(catalogue).filter(([key, text]) => text === (en as Readonly<Record<string, string>>)[key]);
    // The product's name, an ellipsis, "Snapshots" and "Host" are what they are in several languages.
    assert.ok(same.length < 12, `${language}: ${same.map(([key]) => key).join(", ")}`);
  }
});

test("the plural form is that of the language", async () => {
  await useLanguage("es");
  assert.equal(tn("snapshots", 1), "1 instantánea");
  assert.equal(tn("snapshots", 5), "5 instantáneas");
  await useLanguage("ru");
  assert.equal(tn("snapshots", 21), "21 снимок");
  assert.equal(tn("snapshots", 3), "3 снимка");
  assert.equal(tn("snapshots", 11), "11 снимков");
});

test("a name in a text that runs from right to left does not turn it around", async () => {
  await useLanguage("ar");
  assert.equal(textDirection(), "rtl");
  assert.ok(t("revert.title", { name: "a) b" }).includes("\u2068a) b\u2069"));
  await useLanguage("en");
  assert.equal(textDirection(), "ltr");
  assert.equal(t("edit.title", { name: "x" }), "Edit “x”");
});

test("the language is the first that there are texts in", () => {
  assert.equal(chooseLanguage(["ca"]), "ca");
  assert.equal(chooseLanguage([null, "", "tlh", "pt-BR", "fr"]), "pt");
  assert.equal(chooseLanguage(["no"]), "nb");
  assert.equal(chooseLanguage(["iw-IL"]), "he");
  assert.equal(chooseLanguage(["ca-valencia"]), "ca");
  assert.equal(chooseLanguage(["zh_TW"]), "zh-TW");
  assert.equal(chooseLanguage(["zh-Hant-HK"]), "zh-TW");
  assert.equal(chooseLanguage(["zh"]), "zh-CN");
  assert.equal(chooseLanguage(["tlh"]), "en");
  assert.equal(chooseLanguage([]), "en");
});

test("each phase that the service names is told in the reader's language", () => {
  const source = readFileSync("../../snapshot-core/src/plan/step.rs", "utf8");
  const steps = /impl fmt::Display for Step \{.*?\n\}/s.exec(source)?.[0] ?? "";
  const phases = [...steps.matchAll(/=> "([^"]+)"/g)].map((match) => match[1] ?? "");
  assert.ok(phases.length >= 10, `only ${phases.length} phases were found`);
  for (const phase of phases) {
    assert.ok(PHASES[phase], `"${phase}" has no text`);
  }
});
