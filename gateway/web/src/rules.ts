// What the service accepts as a name and a description, checked before it is sent, so that the user hears of it at the
// field and at once. Lengths count characters as the service does: Unicode scalar values, not the halves of UTF-16.

import { t } from "./text";

const NAME_MOST = 128;
const DESCRIPTION_MOST = 4096;

/**
 * What the user typed, as it can be sent: on one line and without characters that are not text. Line breaks become
 * spaces, because the service keeps descriptions on one line.
 */
export function oneLine(text: string): string {
  return text.replace(/[\s\p{Cc}]+/gu, " ").replace(/[\ufffe\uffff\p{Cs}]/gu, "").trim();
}

/** What is wrong with a name, in a sentence; undefined when nothing is. */
export function nameProblem(name: string): string | undefined {
  const n = characters(name);
  if (n === 0) {
    return t("field.name.required");
  }
  return n > NAME_MOST ? t("field.name.long", { n, most: NAME_MOST }) : undefined;
}

/** What is wrong with a description, in a sentence; undefined when nothing is. */
export function descriptionProblem(description: string): string | undefined {
  const n = characters(description);
  return n > DESCRIPTION_MOST ? t("field.description.long", { n, most: DESCRIPTION_MOST }) : undefined;
}

function characters(text: string): number {
  return [...text].length;
}
