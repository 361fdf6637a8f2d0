// The panel: layers, legend with counts, and the list of detections.
import { colorOf, defaultLayers, LAYERS, legend, visible } from "./layers.js";
import { at, countOf, css, element, hiddenOf, modelOf, resultOf, state } from "./state.js";

const MOST = 300; // entries of the list
const TRANSPARENT = ["map", "heatmap", "mask", "masks"];
const MIXED = "conic-gradient(#e34, #ec4, #3c6, #39e, #a4d, #e34)"; // each object has its own color

/** Return the layers that are shown for a result. */
export function layersOn(made) {
  const chosen = new Set(defaultLayers(made));
  for (const [kind, on] of state.layers) (on ? chosen.add(kind) : chosen.delete(kind));
  return chosen;
}

const madeOf = name => resultOf(state.current, name)?.made;

export function showLayers(changed) {
  const all = state.names.map(madeOf).filter(Boolean);
  const kinds = Object.keys(LAYERS).filter(kind => all.some(made => made.kinds.includes(kind)));
  at("layers").replaceChildren(at("layers").firstElementChild, ...kinds.map(kind => {
    const those = all.filter(made => made.kinds.includes(kind)), on = those.filter(made => layersOn(made).has(kind)).length;
    const box = element("input", { type: "checkbox", checked: on > 0, name: kind });
    box.indeterminate = on > 0 && on < those.length;
    box.addEventListener("change", () => {
      state.layers.set(kind, box.checked);
      changed();
    });
    return element("label", { className: "check" }, box, LAYERS[kind]);
  }));
  at("shown").hidden = !all.length;
  at("layers").hidden = kinds.length < 2;
  at("opacityrow").hidden = !kinds.some(kind => TRANSPARENT.includes(kind));
  at("thresholdrow").hidden = !state.names.some(name => madeOf(name) && modelOf(name).options.includes("score_thr"));
}

export function describe() {
  if (!state.current) return "Results will appear here.";
  return state.names.map(name => {
    const result = resultOf(state.current, name), made = result?.made;
    const who = state.names.length > 1 ? `${name}: ` : "";
    if (result?.error) return `${who}${result.error}`;
    if (!made) return `${who}predicting …`;
    if (!modelOf(name).options.includes("score_thr") || made.map) return who + made.lines.join("; ");
    const shown = visible(made, state.threshold, hiddenOf(name)).length;
    const all = made.detections.filter(found => found.score >= state.threshold).length;
    const count = shown === all ? countOf(all, "object") : `${shown} of ${countOf(all, "object")}`;
    return `${who}${count} with a score of at least ${state.threshold.toFixed(2)}`;
  }).join(". ");
}

/** Show the legend and the list of each model. */
export function showResults(changed, mark) {
  at("results").replaceChildren(...state.names.map(name => block(name, changed, mark)).filter(Boolean));
}

function block(name, changed, mark) {
  const result = resultOf(state.current, name), made = result?.made;
  if (!made) return null;
  const title = element("h3", {}, name), hidden = hiddenOf(name), entries = legend(made, state.threshold, hidden);
  const seconds = made.record.seconds;
  const facts = element("span", { className: "faint" }, seconds === undefined ? "" : `${Math.round(1000 * seconds)} ms`);
  const parts = [element("div", { className: "row" }, title, facts)];
  const scores = Object.entries(made.record.image_scores ?? made.record.class_scores ?? {});
  const best = scores.sort((a, b) => b[1] - a[1]).slice(0, 5).map(([text, score]) => `${text} ${score.toFixed(3)}`);
  const lists = modelOf(name).options.includes("score_thr") && !made.map;
  if (lists && !made.detections.some(found => found.score >= state.threshold)) {
    parts.push(element("p", { className: "faint" }, "nothing found"));
  }
  if (best.length) parts.push(element("p", { className: "lines" }, best.join(", ")));
  if (entries.length) {
    parts.push(element("ul", { className: "legend", "aria-label": `Classes of ${name}` },
      ...entries.map(entry => classRow(made, entry, hidden, changed))));
  }
  if (entries.length > 2) {
    const button = (text, labels) => {
      const made = element("button", { type: "button", className: "quiet" }, text);
      made.addEventListener("click", () => {
        hidden.clear();
        labels.forEach(label => hidden.add(label));
        changed();
      });
      return made;
    };
    parts.push(element("div", {}, button("All classes", []), button("None", entries.map(entry => entry.label))));
  }
  const shown = visible(made, state.threshold, hidden);
  if (shown.length) {
    const list = element("ol", { className: "found", "aria-label": `Objects found by ${name}` },
      ...shown.slice(0, MOST).map(found => listRow(made, name, found, mark)));
    if (shown.length > MOST) list.append(element("li", { className: "faint" }, `and ${shown.length - MOST} more`));
    parts.push(list);
  }
  return element("section", { className: "block", "aria-label": `Results of ${name}` }, ...parts);
}

function classRow(made, entry, hidden, changed) {
  const box = element("input", { type: "checkbox", checked: !hidden.has(entry.label) });
  box.addEventListener("change", () => {
    if (box.checked) hidden.delete(entry.label);
    else hidden.add(entry.label);
    changed();
  });
  const swatch = element("span", { className: "swatch" }), color = made.model.colors[entry.label];
  swatch.style.background = made.kinds.includes("masks") && made.model.classes.length === 1 ? MIXED
    : color ? css(color) : "transparent";
  return element("li", {}, element("label", { className: "check" }, box, swatch,
    element("span", { className: "label" }, made.model.classes[entry.label] ?? "?"),
    element("span", { className: "count" }, entry.text)));
}

function listRow(made, name, found, mark) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = css(colorOf(made, found));
  const box = found.box?.map(Math.round);
  const size = box ? `${box[2]} × ${box[3]} at ${box[0]}, ${box[1]}` : "";
  const button = element("button", { type: "button" }, swatch,
    element("span", { className: "label" }, `${found.name} ${found.score.toFixed(2)}`),
    element("span", { className: "size" }, size));
  if (state.active?.found === found) button.setAttribute("aria-current", "true");
  button.addEventListener("click", () => mark(name, found, true));
  button.addEventListener("focus", () => mark(name, found, false));
  return element("li", {}, button);
}
