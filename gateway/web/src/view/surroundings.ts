// Whether the page around is dark. Pages say so in many ways, or do not say it at all: what counts is the colour behind.

const DARK_BELOW = 0.4;

/** Fits the element to what it stands on, unless the page has set its colours itself (`--rs-surface`). */
export function fitSurroundings(root: HTMLElement, host: Element): void {
  if (getComputedStyle(host).getPropertyValue("--rs-surface") !== "") {
    return;
  }
  const behind = backgroundBehind(host);
  root.toggleAttribute("data-dark", brightness(behind) < DARK_BELOW);
  root.style.setProperty("--surface", behind);
}

/** The first colour behind an element that is not see-through; white, as the browser's own, when there is none. */
function backgroundBehind(host: Element): string {
  for (let element: Element | null = host; element; element = element.parentElement) {
    const { backgroundColor } = getComputedStyle(element);
    const [, , , opacity = 1] = channels(backgroundColor);
    if (opacity > 0.5) {
      return backgroundColor;
    }
  }
  return "#ffffff";
}

function brightness(colour: string): number {
  const [red = 255, green = 255, blue = 255] = colour === "#ffffff" ? [] : channels(colour);
  return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
}

/** The numbers of `rgb(…)` and `rgba(…)`, as which browsers tell nearly every colour. */
function channels(colour: string): number[] {
  return (colour.match(/[\d.]+/g) ?? []).map(Number);
}
