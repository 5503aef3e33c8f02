// Numbers and times as people write them, in the locale of the texts.

import { durationMs, timestampDate, type Duration, type Timestamp } from "@bufbuild/protobuf/wkt";
import { locale } from "./text";

const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] as const;

/** A size in the binary units that disk tools use: `1.5 GiB`. */
export function bytes(count: bigint): string {
  let value = Number(count < 0n ? 0n : count);
  let unit = 0;
  // 1023.95 would be written as 1,024: the next unit is due before that.
  while (value >= 1023.95 && unit < BYTE_UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : 1;
  const number = new Intl.NumberFormat(locale(), { maximumFractionDigits: digits }).format(value);
  return `${number} ${BYTE_UNITS[unit]}`;
}

/** A whole number: `1,024`. */
export function number(value: number): string {
  return new Intl.NumberFormat(locale()).format(value);
}

/** A part of a hundred: `42%`. */
export function percentage(percent: number): string {
  return new Intl.NumberFormat(locale(), { style: "percent" }).format(percent / 100);
}

/** A length of time: `40 ms`, `2.5 s`, `3 min`. */
export function duration(length: Duration): string {
  return milliseconds(durationMs(length));
}

/** As `duration`, from milliseconds. */
export function milliseconds(ms: number): string {
  const [value, unit, digits]: [number, string, number] =
    ms < 995 ? [Math.max(ms, 1), "millisecond", 0]
    : ms < 10_000 ? [ms / 1000, "second", 1]
    : ms < 90_000 ? [ms / 1000, "second", 0]
    : [ms / 60_000, "minute", 0];
  return new Intl.NumberFormat(locale(), {
    style: "unit",
    unit,
    unitDisplay: "short",
    maximumFractionDigits: digits,
  }).format(value);
}

/** A moment in full: `Nov 23, 2026, 5:31 PM`. */
export function moment(time: Timestamp): string {
  return dateTime(timestampDate(time));
}

/** As `moment`, from a Date. */
export function dateTime(date: Date): string {
  return new Intl.DateTimeFormat(locale(), { dateStyle: "medium", timeStyle: "short" }).format(date);
}

/** The time of day: `5:31 PM`. */
export function timeOfDay(date: Date): string {
  return new Intl.DateTimeFormat(locale(), { timeStyle: "short" }).format(date);
}

/** A moment for machines, as in the `datetime` attribute. */
export function machineTime(time: Timestamp): string {
  return timestampDate(time).toISOString();
}

const AGES: readonly (readonly [Intl.RelativeTimeFormatUnit, number])[] = [
  ["year", 31_557_600],
  ["month", 2_629_800],
  ["week", 604_800],
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];

/** How long ago, in the largest unit that fits: `3 minutes ago`, `now`. Clocks may differ: the future counts as now. */
export function age(time: Timestamp, now: Date): string {
  const seconds = Math.max(0, (now.getTime() - timestampDate(time).getTime()) / 1000);
  for (const [unit, length] of AGES) {
    if (seconds >= length) {
      return new Intl.RelativeTimeFormat(locale()).format(-Math.floor(seconds / length), unit);
    }
  }
  // Only here the words of the language: elsewhere they would call 47 hours "yesterday".
  return new Intl.RelativeTimeFormat(locale(), { numeric: "auto" }).format(0, "second");
}

/** The last part of a resource name: `hosts/alpha` gives `alpha`. */
export function lastPart(name: string): string {
  return name.slice(name.lastIndexOf("/") + 1);
}
