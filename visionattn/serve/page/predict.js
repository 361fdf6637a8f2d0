// Pictures, and the requests for their predictions.
import { post } from "./api.js";
import { compose, readRecord } from "./layers.js";
import { hiddenOf, LOWEST, modelOf, optionsFor, resultKey, resultOf, state } from "./state.js";

const TOGETHER = 2; // requests at one time
const waiting = [];
let running = 0;

/** Return the number of predictions that are not finished. */
export const unfinished = () => running + waiting.length;

export async function readPicture(file) {
  const picture = { name: file.name || "pasted.png", file, bitmap: null, width: 0, height: 0, results: new Map() };
  try {
    await setBitmap(picture, file);
  } catch { /* the server returns a preview, or it is no image */ }
  return picture;
}

async function setBitmap(picture, blob) {
  picture.bitmap = await createImageBitmap(blob);
  Object.assign(picture, { width: picture.bitmap.width, height: picture.bitmap.height });
}

/** Ask for the predictions of the chosen models that are missing; `changed(picture)` is called for each. */
export function predictAll(picture, changed) {
  for (const name of state.names) {
    if (resultOf(picture, name)) continue;
    const result = {};
    picture.results.set(resultKey(name), result);
    waiting.push(() => predict(picture, name, result, optionsFor(name)).then(() => changed(picture)));
  }
  work(changed);
}

function work(changed) {
  while (running < TOGETHER && waiting.length) {
    running++;
    waiting.shift()().finally(() => {
      running--;
      work(changed);
      changed();
    });
  }
}

async function predict(picture, name, result, options) {
  const model = modelOf(name), other = model.input !== "image"; // a point cloud or a video
  const ask = { model: name, view: other, overlay: other, ...options };
  if (model.options.includes("score_thr")) ask.score_thr = LOWEST;
  const send = async preview => {
    const { [model.records]: [record], ...head } = await post("predict", picture.file, picture.name, { ...ask, preview });
    result.head = head;
    return record;
  };
  try {
    let record = await send(!picture.bitmap);
    if (picture.bitmap && record.width && (record.width !== picture.width || record.height !== picture.height)) {
      record = await send(true); // the browser decodes this file in another way
    }
    const shown = record.preview ?? (other ? record.overlay : null);
    if (shown) await setBitmap(picture, blobOf(shown));
    result.made = await readRecord(record, model);
    compose(result.made, state.threshold, hiddenOf(name));
  } catch (error) {
    result.error = error.message;
  }
}

function blobOf(url) { // of a data URL; fetch() would need a weaker content policy
  const [head, content] = url.split(","), bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}
