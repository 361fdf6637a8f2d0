// The layers of one prediction: what is read from a record once, and what depends on the threshold and the classes.
import { fillRuns, grayPixels, heatCanvas, loadImage, regionCanvases, runLengths } from "./decode.js";

const CROWD = 30; // masks of more objects are shown without boxes
const BORDER = [255, 255, 255, 130];

const hues = (h => (r => [0, 8, 4].map(n => { // HSL with saturation 0.75 and lightness 0.58
  const k = (n + h / 30) % 12;
  return Math.round(255 * (0.58 - r * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
}))(0.75 * 0.42));

export const LAYERS = {
  picture: "Picture", enlarged: "Enlarged picture", map: "Class map", heatmap: "Heat map", mask: "Marked area",
  masks: "Masks", boxes: "Boxes", labels: "Labels",
};

/** Read the record of an image: detections, maps and pictures. */
export async function readRecord(record, model) {
  const ids = new Map((model.categories ?? []).map((category, label) => [category.id, label]));
  const detections = (record.detections ?? []).map((found, index) => {
    const label = found.category_id === undefined ? model.classes.indexOf(found.class) : ids.get(found.category_id);
    const runs = found.segmentation ? runLengths(found.segmentation.counts) : null;
    return { index, label, name: model.classes[label] ?? "?", score: found.score, box: found.bbox ?? null, runs };
  });
  const { width, height } = record;
  const made = { record, model, detections, width, height, kinds: ["picture"], lines: record.lines ?? [] };
  if (record.overlay && record.scale) {
    made.enlarged = await loadImage(record.overlay);
    made.kinds.push("enlarged");
  }
  if (record.map) {
    made.map = (await grayPixels(record.map)).gray;
    made.kinds.push("map");
  }
  if (record.heatmap) {
    const found = await grayPixels(record.heatmap);
    made.heatmap = heatCanvas(found.gray, found.width, found.height);
    made.kinds.push("heatmap");
  }
  if (record.mask) {
    const marked = (await grayPixels(record.mask)).gray.map(value => value > 127);
    made.mask = regionCanvases(marked, width, height, [null, model.colors.find(color => color) ?? [255, 82, 70]]);
    made.kinds.push("mask");
  }
  if (detections.some(found => found.runs)) made.kinds.push("masks");
  if (detections.some(found => found.box)) made.kinds.push("boxes", "labels");
  return made;
}

/** Return the layers that are shown at first. */
export function defaultLayers(made) {
  const panoptic = made.record.segments_info !== undefined;
  const crowd = made.detections.filter(found => found.score >= 0.3).length > CROWD && made.kinds.includes("masks");
  const off = new Set([...(panoptic ? ["masks", "boxes", "labels"] : crowd ? ["boxes", "labels"] : [])]);
  if (made.kinds.includes("mask")) off.add("heatmap");
  return made.kinds.filter(kind => !off.has(kind));
}

/** Return the color of a detection: of its class, or where all objects are of one class, its own. */
export function colorOf(made, found) {
  const own = made.model.classes.length === 1 && found.runs;
  return own ? hues((found.index * 137.508) % 360) : made.model.colors[found.label] ?? [255, 82, 70];
}

/** Return the detections that are shown. */
export const visible = (made, threshold, hidden) =>
  made.detections.filter(found => found.score >= threshold && !hidden.has(found.label));

/** Return the class of each legend entry with its count, or its share of the pixels; others only if they are hidden. */
export function legend(made, threshold, hidden) {
  const counts = new Map();
  if (made.map) {
    for (const value of made.map) counts.set(value, (counts.get(value) ?? 0) + 1);
    const all = made.map.length;
    return [...counts].filter(([label]) => made.model.classes[label] !== undefined).sort((a, b) => b[1] - a[1])
      .map(([label, count]) => ({ label, text: `${(100 * count / all).toFixed(1)}%` }));
  }
  for (const found of made.detections) {
    counts.set(found.label, (counts.get(found.label) ?? 0) + (found.score >= threshold ? 1 : 0));
  }
  return [...counts].filter(([label, count]) => count || hidden.has(label)).sort((a, b) => b[1] - a[1])
    .map(([label, count]) => ({ label, text: String(count) }));
}

/** Paint the layers that depend on the threshold and the classes. */
export function compose(made, threshold, hidden) {
  const { width, height } = made;
  made.shown = visible(made, threshold, hidden);
  if (made.kinds.includes("masks")) {
    const regions = new Uint16Array(width * height), colors = [null];
    for (const found of [...made.shown].reverse()) { // the highest score on top
      if (!found.runs) continue;
      fillRuns(found.runs, height, width, colors.length, regions);
      colors.push(colorOf(made, found));
    }
    made.masks = regionCanvases(regions, width, height, colors);
  }
  if (made.map) {
    const colors = Array.from({ length: 256 }, (_, label) => hidden.has(label) ? null : made.model.colors[label]);
    made.classes = regionCanvases(made.map, width, height, colors, BORDER);
  }
}
