// A line chart of the last seconds: lines of [time, value or null], newest at the right.
import { makeSvg, number } from "./dom.js";

export function drawChart(svg, title, seconds, now, lines) {
  const { width, height } = svg.getBoundingClientRect();
  if (width === 0) return;
  const values = lines.flat().map(([, value]) => value).filter((value) => value !== null);
  const most = ceiling(Math.max(...values, 0));
  const [top, bottom] = [14, height - 4];
  const x = (at) => width * (1 - (now - at) / seconds);
  const y = (value) => bottom - ((bottom - top) * value) / most;
  const parts = [
    makeSvg("line", { class: "rule", x1: 0, x2: width, y1: bottom, y2: bottom }),
    makeSvg("line", { class: "rule", x1: 0, x2: width, y1: top, y2: top }),
    makeSvg("text", { x: 0, y: top - 4 }, number(most)),
  ];
  lines.forEach((line, n) => {
    let path = "";
    let open = false;
    for (const [at, value] of line) {
      if (value !== null) path += `${open ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      open = value !== null;
    }
    if (path) parts.push(makeSvg("path", { class: n === 0 ? "a" : "b", d: path }));
  });
  svg.replaceChildren(...parts);
  const last = lines.map((line) => line.at(-1)?.[1] ?? null).map((value) => (value === null ? "none" : number(value)));
  svg.setAttribute("aria-label", `${title}: now ${last.join(" and ")}, at most ${number(Math.max(...values, 0))}`);
}

// The next of 1, 2, 5, 10, ... above a value.
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value);
}
