// Draw a picture with its layers. Boxes and labels are drawn in pixels of the screen, so that they stay sharp.
import { colorOf } from "./layers.js";

const css = color => `rgb(${color[0]} ${color[1]} ${color[2]})`;

function ink(color) { // black or white, whichever contrasts more (relative luminance of WCAG 2)
  const [r, g, b] = color.map(c => c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000" : "#fff";
}

/** Draw the layers `on` of a prediction.
 *
 * `to` has the scale `k` and the position `x`, `y` of the picture; `scale` is the size of lines and text.
 */
export function paint(pen, picture, made, options, to, scale = 1) {
  const { on, opacity, attention, active } = options;
  const area = [to.x, to.y, to.k * picture.width, to.k * picture.height];
  const draw = (canvas, alpha, smooth = true) => {
    pen.globalAlpha = alpha;
    pen.imageSmoothingEnabled = smooth && to.k < 3;
    pen.drawImage(canvas, ...area);
    pen.globalAlpha = 1;
  };
  if (on.has("picture") && picture.bitmap) draw(picture.bitmap, 1);
  if (attention) {
    pen.fillStyle = "rgb(0 0 0 / 45%)";
    pen.fillRect(...area);
    if (attention.canvas) draw(attention.canvas, 0.9, false);
    drawCross(pen, to.x + to.k * attention.x, to.y + to.k * attention.y, scale);
    return;
  }
  if (!made) return;
  if (on.has("enlarged") && made.enlarged) draw(made.enlarged, 1);
  if (on.has("map") && made.classes) {
    draw(made.classes.fill, opacity);
    draw(made.classes.lines, Math.min(1, 1.5 * opacity));
  }
  if (on.has("heatmap") && made.heatmap) draw(made.heatmap, opacity);
  for (const [name, layer] of [["mask", made.mask], ["masks", made.masks]]) {
    if (!on.has(name) || !layer) continue;
    draw(layer.fill, opacity);
    draw(layer.lines, 1);
  }
  const placed = made.shown ?? [];
  if (on.has("boxes")) {
    for (const found of [...placed].reverse()) drawBox(pen, made, found, to, 1.75 * scale);
  }
  if (active) drawBox(pen, made, active, to, 3.5 * scale);
  if (on.has("labels")) drawLabels(pen, made, placed, to, scale, area);
}

function drawBox(pen, made, found, to, line) {
  if (!found.box) return;
  const [x, y, w, h] = found.box;
  pen.lineJoin = "round";
  for (const [width, color] of [[line + 1.5, "rgb(0 0 0 / 35%)"], [line, css(colorOf(made, found))]]) {
    pen.lineWidth = width;
    pen.strokeStyle = color;
    pen.strokeRect(to.x + to.k * x, to.y + to.k * y, to.k * w, to.k * h);
  }
}

function drawLabels(pen, made, detections, to, scale, area) {
  const size = 12.5 * scale, taken = [];
  pen.font = `500 ${size}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  for (const found of detections) {
    if (!found.box) continue;
    const [bx, by, bw, bh] = found.box, text = `${found.name} ${found.score.toFixed(2)}`;
    const width = pen.measureText(text).width + 8 * scale, height = size + 6 * scale;
    if (to.k * bw < 0.3 * width && detections.length > 12) continue; // larger than the object: zoom in to see it
    const x = Math.max(area[0], Math.min(to.x + to.k * bx - scale, area[0] + area[2] - width));
    const above = to.y + to.k * by - height, inside = to.y + to.k * by, below = to.y + to.k * (by + bh);
    const free = y => y >= area[1] - 1 && y + height <= area[1] + area[3] + 1
      && !taken.some(o => x < o[0] + o[2] && o[0] < x + width && y < o[1] + height && o[1] < y + height);
    const y = [above, inside, below].find(free);
    if (y === undefined) continue;
    taken.push([x, y, width]);
    const color = colorOf(made, found);
    pen.fillStyle = css(color);
    pen.beginPath();
    pen.roundRect(x, y, width, height, 3 * scale);
    pen.fill();
    pen.fillStyle = ink(color);
    pen.fillText(text, x + 4 * scale, y + height / 2 + 0.5);
  }
}

function drawCross(pen, x, y, scale) {
  for (const [width, color] of [[4, "#000"], [1.75, "#fff"]]) {
    pen.lineWidth = width * scale;
    pen.strokeStyle = color;
    pen.beginPath();
    pen.arc(x, y, 7 * scale, 0, 2 * Math.PI);
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 4 * scale * dx, y + 4 * scale * dy);
      pen.lineTo(x + 12 * scale * dx, y + 12 * scale * dy);
    }
    pen.stroke();
  }
}
