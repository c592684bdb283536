// How far the rows of late are from the golden rows, column by column, the furthest first.
import { make, number } from "./dom.js";

const SHOWN = 8; // columns that show at once
const MOVED = 0.1; // above which a population has moved, by custom
const OTHER = 0.25; // above which it is another one

export function showDrift(root, drift) {
  if (!drift.known) {
    root.replaceChildren(quiet("Not known: the gateway needs --repository, and a stack exported with golden rows."));
    return;
  }
  if (!drift.columns.length) {
    root.replaceChildren(quiet(`${drift.rows} rows so far; figures from ${drift.enough} on.`));
    return;
  }
  const rows = drift.columns.map(({ column, side, psi }) => {
    const [words, kind] = psi > OTHER ? ["another population", "bad"] : psi > MOVED ? ["moved", "warn"] : ["stable", ""];
    return make(
      "tr",
      { class: kind },
      make("th", { scope: "row" }, column),
      make("td", {}, side),
      make("td", { class: "number" }, psi.toFixed(3)),
      make("td", {}, words),
    );
  });
  const head = make("tr", {}, ...["Column", "", "PSI", ""].map((name, n) => make(n % 2 ? "td" : "th", n % 2 ? {} : { scope: "col" }, name)));
  const table = (some) => make("table", { class: "drift" }, make("thead", {}, head.cloneNode(true)), make("tbody", {}, ...some));
  const parts = [quiet(`${number(drift.rows)} rows against the golden rows`), table(rows.slice(0, SHOWN))];
  if (rows.length > SHOWN) {
    const open = root.querySelector("details")?.open;
    parts.push(make("details", open ? { open: "open" } : {}, make("summary", {}, `${rows.length - SHOWN} more`), table(rows.slice(SHOWN))));
  }
  root.replaceChildren(...parts);
}

const quiet = (words) => make("p", { class: "quiet" }, words);
