// What /v1/steps answered: the final scores, and below what each step made of the row.
import { make, number } from "./dom.js";

const SHOWN = 8; // values of a wide output that show at once

export function showAnswer(root, answer) {
  const scores = Object.entries(answer.prediction).map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, [value].flat().map(score).join("  "))),
  );
  const rows = answer.steps.map((step) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, step.step),
      make("td", {}, ...step.outputs.map(output)),
      make("td", { class: "number" }, number(step.ms)),
    ),
  );
  const head = make(
    "tr",
    {},
    make("th", { scope: "col" }, "Step"),
    make("th", { scope: "col" }, "Answered"),
    make("th", { scope: "col", class: "number" }, "ms"),
  );
  root.replaceChildren(
    make("dl", { class: "scores" }, ...scores),
    make("h3", {}, "Step by step"),
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)),
  );
}

function output({ name, values }) {
  const text = (some) => some.map(score).join("  ");
  const line = make("div", { class: "values" }, make("b", {}, `${name} `), text(values.slice(0, SHOWN)));
  if (values.length <= SHOWN) return line;
  const rest = make("details", {}, make("summary", {}, `${values.length - SHOWN} more`), text(values.slice(SHOWN)));
  return make("div", { class: "values" }, ...line.childNodes, rest);
}

function score(value) {
  if (value === null) return "NaN";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? String(value) : value.toPrecision(5).replace(/\.?0+$/, "");
}
