// Downloads of what is shown, and the code for it.
import { needsToken } from "./api.js";
import { makeCanvas } from "./decode.js";
import { visible } from "./layers.js";
import { paint } from "./paint.js";
import { at, hiddenOf, modelOf, optionsFor, resultOf, state } from "./state.js";

const stem = () => state.current.name.replace(/\.[^.]*$/, "");

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Return the answer for the current picture, with the detections that are shown. */
function shownAnswer(name) {
  const { head, made } = resultOf(state.current, name), { preview, view, lines, ...record } = made.record;
  const all = record.detections, settings = { ...head.settings };
  if (all) {
    record.detections = visible(made, state.threshold, hiddenOf(name)).map(found => all[found.index]);
    settings.score_thr = state.threshold;
  }
  return { ...head, settings, [modelOf(name).records]: [record] };
}

export function saveJson() {
  const answers = state.names.filter(name => resultOf(state.current, name)?.made).map(shownAnswer);
  const text = JSON.stringify(answers.length > 1 ? answers : answers[0], null, 1);
  download(new Blob([text], { type: "application/json" }), `${stem()}.json`);
}

/** Save the picture with its layers at its full size; two models beside each other. */
export function savePng(optionsOf) {
  const picture = state.current, count = state.names.length;
  const made = state.names.map(name => resultOf(picture, name)?.made);
  const larger = optionsOf(state.names[0]).on.has("enlarged") ? made[0]?.record.scale ?? 1 : 1;
  const canvas = makeCanvas(count * larger * picture.width, larger * picture.height), pen = canvas.getContext("2d");
  state.names.forEach((name, side) => {
    const left = side * larger * picture.width;
    pen.save();
    pen.beginPath();
    pen.rect(left, 0, larger * picture.width, larger * picture.height);
    pen.clip();
    const scale = Math.max(0.8, Math.sqrt(picture.width * picture.height) / 800);
    paint(pen, picture, made[side], optionsOf(name), { k: larger, x: left, y: 0 }, scale);
    pen.restore();
  });
  canvas.toBlob(blob => blob && download(blob, `${stem()}.png`), "image/png");
}

const text = value => JSON.stringify(value);
const python = value => value === true ? "True" : text(value);

function pythonCode(name) {
  const model = modelOf(name), made = resultOf(state.current, name)?.made;
  const options = Object.entries(optionsFor(name)).map(([key, value]) => `${key}=${python(value)}`);
  if (model.options.includes("score_thr")) options.unshift(`score_thr=${state.threshold}`);
  const where = model.source === "from_run" ? `work_dirs/${name}` : name;
  const lines = [
    "from visionattn.inference import Predictor", "",
    `predictor = Predictor.${model.source}(${[text(where), ...options].join(", ")})`,
    `prediction = predictor(${text(state.current.name)})`,
  ];
  const hidden = [...hiddenOf(name)].map(label => model.classes[label]);
  if (made?.detections.length && hidden.length && model.input === "image") {
    lines.push(`hidden = ${text(hidden)}`,
      "prediction = prediction.select([i for i, name in enumerate(prediction.names) if name not in hidden])");
  }
  if (model.input === "image") {
    lines.push("", "import cv2", `cv2.imwrite(${text(`${stem()}_${name}.png`)}, prediction.draw())`);
  } else {
    lines.push("print(prediction)");
  }
  return lines.join("\n");
}

function curlCode(name) {
  const quote = value => `'${String(value).replaceAll("'", "'\\''")}'`, model = modelOf(name);
  const fields = { model: name, ...optionsFor(name) };
  if (model.options.includes("score_thr")) fields.score_thr = state.threshold;
  return [
    `curl ${quote(new URL("predict", location.href).href)}`,
    ...(needsToken() ? ['-H "Authorization: Bearer $VISIONATTN_TOKEN"'] : []),
    ...Object.entries(fields).map(([key, value]) => `-F ${quote(`${key}=${value}`)}`),
    `-F ${quote(`files=@${state.current.name}`)}`,
  ].join(" \\\n  ");
}

export function showCode() {
  const make = at("python").getAttribute("aria-selected") === "true" ? pythonCode : curlCode;
  at("code").textContent = state.current ? state.names.map(make).join("\n\n") : "";
}

export function listenForTabs() {
  const tabs = [at("python"), at("curl")];
  const select = chosen => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
    }
    showCode();
  };
  tabs.forEach((tab, number) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", event => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      select(tabs[1 - number]);
      tabs[1 - number].focus();
    });
  });
  at("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(at("code").textContent);
    } catch { // without a secure connection
      getSelection().selectAllChildren(at("code"));
      return;
    }
    at("copy").textContent = "Copied";
    setTimeout(() => { at("copy").textContent = "Copy"; }, 1500);
  });
}
