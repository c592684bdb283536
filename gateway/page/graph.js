// The ensemble as cards in layers, each behind those it reads, and curves from card to card.
import { make, makeSvg, number } from "./dom.js";

const NARROW = matchMedia("(max-width: 62rem)");

export class Graph {
  constructor(root, stack) {
    this.root = root;
    this.edges = stack.graph.edges;
    this.cards = new Map();
    this.svg = makeSvg("svg", { "aria-hidden": "true" });
    const names = new Map(stack.graph.steps.map((step) => [step.model, step.step]));
    const layers = layersOf(stack.graph.steps.map((step) => step.model), this.edges);
    const end = (id, title, columns) => {
      const words = columns.length > 4 ? `${columns.length} columns` : columns.map((column) => column.name).join(", ");
      const card = make("li", { class: "node end" }, make("strong", {}, title), make("span", {}, words));
      this.cards.set(id, { card });
      return make("ul", { class: "layer end" }, card);
    };
    root.replaceChildren(
      this.svg,
      end("inputs", "Row", stack.inputs),
      ...layers.map((models) => make("ul", { class: "layer" }, ...models.map((model) => this.card(model, names)))),
      end("outputs", "Answer", stack.outputs),
    );
    this.observer?.disconnect();
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(root);
    for (const { card } of this.cards.values()) this.observer.observe(card);
    this.draw();
  }

  card(model, names) {
    const reads = this.edges.filter(([, to]) => to === model).map(([from]) => names.get(from) ?? "the row");
    const step = names.get(model);
    const parts = {
      model: make("span", { class: "model" }, model),
      fill: make("i", {}),
      share: make("span", {}, "–"),
      ms: make("span", {}, "– ms"),
      calls: make("span", {}, "– calls"),
      errors: make("span", { class: "errors" }, "0 errors"),
    };
    const card = make(
      "li",
      { class: "node" },
      make("strong", {}, step),
      ...(step === model ? [] : [parts.model]),
      make("span", { class: "hidden" }, ` reads ${reads.join(", ")}. `),
      make("div", { class: "bar" }, parts.fill),
      make("div", { class: "facts" }, parts.share, parts.ms),
      make("div", { class: "facts" }, parts.calls, parts.errors),
    );
    this.cards.set(model, { card, ...parts });
    return card;
  }

  update(model, { share, calls, ms, errors, version }) {
    const parts = this.cards.get(model);
    parts.fill.style.transform = `scaleX(${share})`;
    parts.share.textContent = `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
    parts.ms.textContent = ms;
    parts.calls.textContent = calls;
    parts.errors.textContent = errors === 1 ? "1 error" : `${number(errors)} errors`;
    parts.errors.classList.toggle("some", errors > 0);
    parts.model.textContent = version ? `${model} v${version}` : model;
  }

  draw() {
    const root = this.root;
    this.svg.setAttribute("width", 0); // it must not be what makes the graph large
    this.svg.setAttribute("height", 0);
    const origin = root.getBoundingClientRect();
    const at = (id) => {
      const box = this.cards.get(id).card.getBoundingClientRect();
      const [left, top] = [box.left - origin.left + root.scrollLeft, box.top - origin.top + root.scrollTop];
      return { left, top, right: left + box.width, bottom: top + box.height, x: left + box.width / 2, y: top + box.height / 2 };
    };
    const curve = (from, to) => {
      if (NARROW.matches) {
        const bend = (to.top - from.bottom) / 2;
        return `M${from.x} ${from.bottom}C${from.x} ${from.bottom + bend} ${to.x} ${to.top - bend} ${to.x} ${to.top}`;
      }
      const bend = (to.left - from.right) / 2;
      return `M${from.right} ${from.y}C${from.right + bend} ${from.y} ${to.left - bend} ${to.y} ${to.left} ${to.y}`;
    };
    this.svg.setAttribute("width", root.scrollWidth);
    this.svg.setAttribute("height", root.scrollHeight);
    this.svg.replaceChildren(...this.edges.map(([from, to]) => makeSvg("path", { d: curve(at(from), at(to)) })));
    // what scrolls must be reachable from the keyboard
    if (root.scrollWidth > root.clientWidth + 1) root.setAttribute("tabindex", "0");
    else root.removeAttribute("tabindex");
  }
}

// Models in layers: each in the first one behind all that it reads.
function layersOf(models, edges) {
  const depth = new Map();
  for (const model of models) {
    const sources = edges.filter(([from, to]) => to === model && depth.has(from)).map(([from]) => depth.get(from));
    depth.set(model, Math.max(-1, ...sources) + 1);
  }
  const layers = [];
  for (const [model, at] of depth) (layers[at] ??= []).push(model);
  return layers;
}
