// The page: reads pictures, asks for predictions, and connects the views and the panel.
import { getBlob, getJson } from "./api.js";
import { attend, attentionOf, clearAttention } from "./attention.js";
import { loadHeatColors } from "./decode.js";
import { compose } from "./layers.js";
import { paint } from "./paint.js";
import { predictAll, readPicture, unfinished } from "./predict.js";
import { describe, layersOn, showLayers, showResults } from "./results.js";
import { listenForTabs, saveJson, savePng, showCode } from "./save.js";
import { listenForFiles } from "./sources.js";
import { at, countOf, element, hiddenOf, LOWEST, modelOf, resultOf, state } from "./state.js";
import { STEP, Transform, View } from "./view.js";

let views = [];
const transform = new Transform(() => {
  views.forEach(view => view.draw());
  at("zoom").value = `${Math.round(100 * transform.k)}%`;
});

function report(text) {
  at("message").textContent = text ?? "";
  at("message").hidden = !text;
}

const announce = text => { at("status").textContent = text; };

// Pictures

async function add(files) {
  report(null);
  const added = await Promise.all(files.map(readPicture));
  state.pictures.push(...added);
  if (added.length) select(added[0]);
  for (const picture of added) predictAll(picture, predicted);
}

function predicted(picture) {
  if (picture && picture === state.current) {
    const { preview, view } = resultOf(picture, state.names[0])?.made?.record ?? {};
    if (preview || view) createViews();
    if (transform.fitted) fit();
  }
  show();
}

function select(picture) {
  state.current = picture;
  state.active = null;
  state.cursor = null;
  clearAttention();
  createViews();
  fit();
  if (picture) predictAll(picture, predicted);
  show();
}

function remove(picture) {
  const index = state.pictures.indexOf(picture);
  state.pictures.splice(index, 1);
  if (state.current === picture) select(state.pictures[Math.min(index, state.pictures.length - 1)] ?? null);
  else show();
}

// Views

function optionsOf(name) {
  const made = resultOf(state.current, name)?.made;
  const active = state.active?.name === name ? state.active.found : null;
  return {
    on: made ? layersOn(made) : new Set(["picture"]), opacity: state.opacity, active,
    attention: attentionOf(name) ?? (state.attending && state.cursor && modelOf(name).attention ? state.cursor : null),
  };
}

function createViews() {
  views.forEach(view => view.remove());
  views = [];
  at("views").replaceChildren();
  const picture = state.current;
  at("views").hidden = !picture;
  at("empty").hidden = Boolean(picture);
  if (!picture) return;
  at("views").classList.toggle("two", state.names.length > 1);
  for (const name of state.names) {
    const page = resultOf(picture, name)?.made?.record.view;
    if (page) {
      const frame = element("iframe", { src: page, title: `3-D view of the prediction of ${name}` });
      frame.setAttribute("sandbox", "allow-scripts");
      at("views").append(element("div", { className: "view" }, frame));
      continue;
    }
    const view = new View(at("views"), transform, {
      paint: pen => state.current?.bitmap
        && paint(pen, state.current, resultOf(state.current, name)?.made, optionsOf(name), transform),
      resized: () => transform.fitted && fit(),
      pick: (x, y) => pick(name, x, y),
      hover: (x, y, event) => hover(name, x, y, event),
      cursor: moveCursor,
      key: pressed => press(name, pressed),
    });
    view.title.textContent = state.names.length > 1 ? name : "";
    view.title.hidden = state.names.length < 2;
    views.push(view);
  }
}

function fit() {
  if (views.length && state.current?.bitmap) transform.fit(...views[0].size, state.current);
}

function under(name, x, y) { // the smallest object at a position
  const shown = resultOf(state.current, name)?.made?.shown ?? [];
  const area = found => found.box[2] * found.box[3];
  return shown.filter(({ box }) => box && x >= box[0] && x <= box[0] + box[2] && y >= box[1] && y <= box[1] + box[3])
    .sort((a, b) => area(a) - area(b))[0];
}

function pick(name, x, y) {
  const { width, height } = state.current;
  if (!(x >= 0 && y >= 0 && x < width && y < height)) return;
  if (state.attending) {
    state.cursor = { x, y };
    announce("Computing attention …");
    attend(x, y, drawViews, text => announce(text));
  } else {
    const found = under(name, x, y);
    state.active = found ? { name, found } : null;
    show();
    document.querySelector('.found [aria-current="true"]')?.scrollIntoView({ block: "nearest" });
  }
}

function hover(name, x, y, event) {
  const found = state.attending ? null : under(name, x, y), tip = at("tip");
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = `${found.name} ${found.score.toFixed(2)}`;
  const frame = at("stage").getBoundingClientRect();
  tip.style.left = `${Math.min(event.clientX - frame.left + 14, frame.width - tip.offsetWidth - 4)}px`;
  tip.style.top = `${event.clientY - frame.top + 16}px`;
}

function moveCursor(dx, dy, fine) {
  if (!state.attending || !state.current) return false;
  const { width, height } = state.current, step = fine ? 1 : Math.max(1, Math.round(Math.min(width, height) / 24));
  const from = state.cursor ?? { x: width / 2, y: height / 2 }, clamp = (v, end) => Math.max(0, Math.min(end - 1, v));
  clearAttention();
  state.cursor = { x: clamp(from.x + step * dx, width), y: clamp(from.y + step * dy, height) };
  announce(`Position ${Math.round(state.cursor.x)}, ${Math.round(state.cursor.y)}. Press Enter for its attention.`);
  drawViews();
  return true;
}

function press(name, key) {
  if (key === "0") fit();
  else if (key === "a" || key === "A") setAttending(!state.attending);
  else if (key === "Escape" && state.attending) setAttending(false);
  else if (key === "Enter" && state.attending && state.current) {
    const { width, height } = state.current, { x, y } = state.cursor ?? { x: width / 2, y: height / 2 };
    pick(name, x, y);
  } else return false;
  return true;
}

function setAttending(on) {
  if (on && !state.names.some(name => modelOf(name).attention)) return;
  state.attending = on;
  state.cursor = null;
  if (!on) clearAttention();
  show();
}

function mark(name, found, center) {
  if (state.active?.found === found && !center) return;
  state.active = { name, found };
  if (center && views.length && found.box) {
    const [x, y, w, h] = found.box, [width, height] = views[0].size;
    const k = Math.max(transform.k, Math.min(8, 0.25 * Math.min(width / w, height / h)));
    Object.assign(transform, { k, x: width / 2 - k * (x + w / 2), y: height / 2 - k * (y + h / 2), fitted: false });
    transform.changed();
  }
  for (const button of document.querySelectorAll(".found button")) button.removeAttribute("aria-current");
  document.activeElement?.closest(".found button")?.setAttribute("aria-current", "true");
  drawViews();
}

function drawViews() {
  views.forEach(view => {
    view.root.classList.toggle("attend", state.attending);
    view.draw();
  });
}

// The panel

function recompose() {
  state.active = null;
  for (const name of state.names) {
    const made = resultOf(state.current, name)?.made;
    if (made) compose(made, state.threshold, hiddenOf(name));
  }
  show();
}

function show() {
  const { current, pictures } = state;
  const done = current && state.names.some(name => resultOf(current, name)?.made);
  at("strip").hidden = !pictures.length;
  at("tools").hidden = !current?.bitmap || !views.length;
  at("save").hidden = !done;
  at("png").hidden = !current?.bitmap;
  at("attend").setAttribute("aria-pressed", String(state.attending));
  at("attend").hidden = at("rule").hidden = !state.names.some(name => modelOf(name).attention);
  const open = unfinished();
  at("busy").hidden = !open;
  at("busytext").textContent = open > 1 ? `predicting, ${open} left` : "predicting";
  at("thresholdvalue").value = state.threshold.toFixed(2);
  at("opacityvalue").value = `${Math.round(100 * state.opacity)}%`;
  if (!state.attending) announce(describe());
  else if (!state.cursor) announce("Click a point of the picture, or move with the arrow keys and press Enter.");
  const failed = state.names.map(name => current && resultOf(current, name)?.error).filter(Boolean);
  report(failed[0]);
  views.forEach((view, side) => view.canvas.setAttribute("aria-label", `${current.name}, ${state.names[side]}: `
    + `${describe()}. Arrow keys move, plus and minus zoom, 0 fits, A starts attention.`));
  showLayers(show);
  showResults(recompose, mark);
  at("shown").hidden ||= state.attending;
  showStrip();
  showAbout();
  if (done) showCode();
  for (const row of document.querySelectorAll("[data-option]")) {
    row.hidden = !state.names.some(name => modelOf(name).options.includes(row.dataset.option));
  }
  at("options").hidden = !current || [...document.querySelectorAll("[data-option]")].every(row => row.hidden);
  drawViews();
}

function showStrip() {
  at("pictures").replaceChildren(...state.pictures.map(picture => {
    const small = element("canvas", { width: 140, height: 105 }), pen = small.getContext("2d");
    if (picture.bitmap) {
      const k = Math.max(140 / picture.width, 105 / picture.height);
      pen.drawImage(picture.bitmap, (140 - k * picture.width) / 2, (105 - k * picture.height) / 2,
        k * picture.width, k * picture.height);
    }
    const button = element("button", { type: "button", className: "pick", "aria-label": picture.name, title: picture.name },
      small);
    if (picture === state.current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => select(picture));
    const drop = element("button", { type: "button", className: "drop", "aria-label": `Remove ${picture.name}` }, "×");
    drop.addEventListener("click", () => remove(picture));
    return element("li", {}, button, drop);
  }));
}

/** Return the parts of a text, in which backticks enclose code. */
const withCode = text => text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));

function showAbout() {
  at("about").hidden = Boolean(state.current);
  if (state.current) return;
  at("about").replaceChildren(element("h2", {}, "Models"), ...state.names.map(modelOf).map(model => {
    const names = model.classes.slice(0, 12).join(", ") + (model.classes.length > 12 ? ", …" : "");
    const parts = [element("h3", {}, `${model.name}: ${model.title}`)];
    if (model.about) parts.push(element("p", {}, ...withCode(model.about)));
    if (names) parts.push(element("p", { className: "faint" }, `${countOf(model.classes.length, "class", "classes")}: ${names}`));
    return element("section", { className: "block" }, ...parts);
  }));
}

function chooseModels() {
  state.names = [at("model").value, at("other").value].filter((name, index, all) => name && all.indexOf(name) === index);
  at("sample").hidden = !modelOf(at("model").value).sample;
  const inputs = [...new Set(state.names.map(name => modelOf(name).input))];
  at("accepted").textContent = inputs.includes("frame") ? "Point clouds: .bin, .pcd, .npy, .npz"
    : inputs.includes("video") ? "Videos: .mp4, .avi, .webm and others" : "JPEG, PNG, WebP, TIFF and others";
  clearAttention();
  state.cursor = null;
  if (state.attending && !state.names.some(name => modelOf(name).attention)) state.attending = false;
  createViews();
  fit();
  if (state.current) predictAll(state.current, predicted);
  show();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
}

function listen() {
  at("model").addEventListener("change", chooseModels);
  at("other").addEventListener("change", chooseModels);
  at("threshold").addEventListener("input", () => {
    state.threshold = Number(at("threshold").value);
    recompose();
  });
  at("opacity").addEventListener("input", () => {
    state.opacity = Number(at("opacity").value);
    at("opacityvalue").value = `${Math.round(100 * state.opacity)}%`;
    drawViews();
  });
  for (const [id, value] of [["tile", "auto"], ["tta", true]]) {
    at(id).addEventListener("change", () => {
      if (at(id).checked) state.options[id] = value;
      else delete state.options[id];
      if (state.current) predictAll(state.current, predicted);
      show();
    });
  }
  const middle = () => views[0].size.map(side => side / 2);
  at("in").addEventListener("click", () => transform.zoom(STEP, ...middle()));
  at("out").addEventListener("click", () => transform.zoom(1 / STEP, ...middle()));
  at("fit").addEventListener("click", fit);
  at("attend").addEventListener("click", () => setAttending(!state.attending));
  at("json").addEventListener("click", saveJson);
  at("png").addEventListener("click", () => savePng(optionsOf));
  at("sample").addEventListener("click", async () => {
    const name = at("model").value, blob = await getBlob(`samples/${encodeURIComponent(name)}`);
    add([new File([blob], `${name}.${blob.type.split("/")[1].replace("jpeg", "jpg")}`, { type: blob.type })]);
  });
  at("theme").addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
    setTheme(now === "dark" ? "light" : "dark");
  });
  listenForFiles(add, report);
  listenForTabs();
}

async function start() {
  const theme = localStorage.getItem("theme");
  if (theme) setTheme(theme);
  try {
    [state.models] = await Promise.all([getJson("models"), loadHeatColors()]);
  } catch (error) {
    report(error.message);
    return;
  }
  const options = () => state.models.map(model => element("option", { value: model.name }, `${model.name} (${model.title})`));
  at("model").replaceChildren(...options());
  at("other").replaceChildren(element("option", { value: "" }, "no other model"), ...options());
  at("other").parentElement.hidden = state.models.length < 2;
  at("threshold").min = LOWEST;
  listen();
  chooseModels();
}

start();
