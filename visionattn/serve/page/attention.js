// Attention of the backbone from the position that was clicked: one map per layer and head.
import { post } from "./api.js";
import { grayPixels, heatCanvas } from "./decode.js";
import { at, countOf, element, modelOf, state } from "./state.js";

const FINE = 20; // the layer shown at first is the deepest one with a map of at least as many rows and columns

const chosen = new Map(); // name of the model: { layer, head }; head -1 is the mean
const found = new Map(); // name of the model: the answer, and a canvas for the chosen head
let asked = 0;

export const attentionOf = name => (state.attending ? found.get(name) : undefined);

export function clearAttention() {
  asked++;
  found.clear();
  at("attention").replaceChildren();
}

/** Ask for the maps of a position for each model, and show them. */
export async function attend(x, y, changed, report) {
  const picture = state.current, mine = ++asked;
  const names = state.names.filter(name => modelOf(name).attention);
  for (const name of names) found.set(name, { x, y });
  changed();
  if (!names.length) report("This model has no attention maps.");
  for (const name of names) {
    let answer;
    try {
      answer = await post("attention", picture.file, picture.name, { model: name, x, y });
    } catch (error) {
      if (mine !== asked) return;
      found.delete(name);
      report(error.message);
      continue;
    }
    if (mine !== asked) return; // another point or picture was chosen in the meantime
    const layers = await Promise.all(answer.layers.map(readLayer));
    found.set(name, { x, y, layers });
    choose(name, layers);
    show(changed);
    changed();
  }
  if (names.length && mine === asked) report(`Attention from ${Math.round(x)}, ${Math.round(y)} is shown.`);
}

/** Return the square roots of weights, so that small ones remain visible. */
const shades = (weights, peak) => Uint8Array.from(weights, value => Math.round(255 * Math.sqrt(value / peak)));

async function readLayer(layer) {
  const [rows, columns] = layer.grid;
  const heads = (await Promise.all(layer.maps.map(grayPixels))).map(map => map.gray);
  const mean = new Float32Array(rows * columns);
  heads.forEach((head, number) => head.forEach((value, i) => { mean[i] += value * layer.maxima[number]; }));
  const peak = mean.reduce((a, b) => Math.max(a, b), 1e-12);
  return { ...layer, rows, columns, heads: heads.map(head => shades(head, 255)), mean: shades(mean, peak) };
}

function choose(name, layers) {
  const fine = layers.findLastIndex(layer => Math.min(layer.rows, layer.columns) >= FINE);
  const known = chosen.get(name);
  if (!known || known.layer >= layers.length) chosen.set(name, { layer: Math.max(0, fine), head: -1 });
  const { layer, head } = chosen.get(name);
  if (head >= layers[layer].heads.length) chosen.get(name).head = -1;
  const { rows, columns, heads, mean } = layers[layer];
  found.get(name).canvas = heatCanvas(chosen.get(name).head < 0 ? mean : heads[chosen.get(name).head], columns, rows);
}

function show(changed) {
  at("attention").replaceChildren(...[...found].filter(([, entry]) => entry.layers).map(([name, entry]) => {
    const pick = chosen.get(name), layer = entry.layers[pick.layer];
    const slider = element("input", {
      type: "range", min: 0, max: entry.layers.length - 1, step: 1, value: pick.layer,
      "aria-valuetext": `layer ${pick.layer}, ${layer.name}`,
    });
    slider.addEventListener("input", () => {
      pick.layer = Number(slider.value);
      choose(name, entry.layers);
      show(changed);
      changed();
      document.querySelector(`[data-attention="${CSS.escape(name)}"] input`)?.focus();
    });
    const heads = [-1, ...layer.heads.keys()].map(head => headButton(name, entry, layer, head, changed));
    const text = `${layer.name.replace(/^backbone\.(net\.)?(model\.)?/, "")}, ${layer.rows} × ${layer.columns}, `
      + countOf(layer.heads.length, "head");
    return element("section", { className: "block", "aria-label": `Attention of ${name}`, "data-attention": name },
      element("h3", {}, `Attention of ${name}`),
      element("label", { className: "slider" }, "Layer ",
        element("output", {}, `${pick.layer + 1} of ${entry.layers.length}`), slider),
      element("p", { className: "faint" }, text),
      element("div", { className: "heads", role: "group", "aria-label": "Heads" }, ...heads),
      element("img", { className: "scale", src: "page/colors.png", alt: "" }),
      element("p", { className: "faint" }, "The colors go from 0 to the largest weight of the head. They show the square root of the weight, so that small "
        + "weights remain visible: the middle of the scale is a quarter of the largest weight."));
  }));
}

function headButton(name, entry, layer, head, changed) {
  const canvas = heatCanvas(head < 0 ? layer.mean : layer.heads[head], layer.columns, layer.rows);
  canvas.setAttribute("aria-hidden", "true");
  const text = head < 0 ? "mean" : `head ${head}, maximum ${Number(layer.maxima[head].toPrecision(2))}`;
  const button = element("button", {
    type: "button", "aria-pressed": String(chosen.get(name).head === head),
    title: head < 0 ? "mean of the heads" : `head ${head}, largest weight ${layer.maxima[head]}`,
  }, canvas, text);
  button.addEventListener("click", () => {
    chosen.get(name).head = head;
    choose(name, entry.layers);
    show(changed);
    changed();
    document.querySelectorAll(`[data-attention="${CSS.escape(name)}"] .heads button`)[head + 1]?.focus();
  });
  return button;
}
