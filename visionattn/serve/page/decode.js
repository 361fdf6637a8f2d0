// Masks and maps of an answer as pixels.

/** Return the run lengths of a COCO compressed mask; runs alternate between outside and inside, column by column. */
export function runLengths(counts) {
  const runs = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, code;
    do {
      code = counts.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift; // negative
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** Write a number at each pixel of a mask of `height` rows into an array of rows of `width` pixels. */
export function fillRuns(runs, height, width, number, pixels) {
  let at = 0;
  for (let i = 0; i < runs.length; i++) {
    if (i % 2) {
      for (let p = at; p < at + runs[i]; p++) {
        pixels[(p % height) * width + Math.floor(p / height)] = number;
      }
    }
    at += runs[i];
  }
}

export function loadImage(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(() => image);
}

export function makeCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** Return the first channel of an image, one byte per pixel: of 16 bits, browsers keep the upper 8. */
export async function grayPixels(url) {
  const image = await loadImage(url);
  const canvas = makeCanvas(image.naturalWidth, image.naturalHeight);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  const gray = new Uint8Array(data.length / 4);
  for (let i = 0; i < gray.length; i++) gray[i] = data[4 * i];
  return { width: canvas.width, height: canvas.height, gray };
}

let heatColors = null; // 256 colors, those of the overlays of the package

export async function loadHeatColors() {
  const image = await loadImage("page/colors.png"), canvas = makeCanvas(256, 1);
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  heatColors = pen.getImageData(0, 0, 256, 1).data;
}

/** Return values in 0..255 as a canvas with the colors of heat maps, transparent at 0. */
export function heatCanvas(values, width, height) {
  const canvas = makeCanvas(width, height), pen = canvas.getContext("2d");
  const picture = pen.createImageData(width, height), data = picture.data;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    for (let c = 0; c < 3; c++) data[4 * i + c] = heatColors[4 * value + c];
    data[4 * i + 3] = Math.round(255 * Math.sqrt(value / 255));
  }
  pen.putImageData(picture, 0, 0);
  return canvas;
}

/** Return one canvas with regions filled, and one with their borders.
 *
 * `regions` has a number for each pixel, and `colors` an [r, g, b] for each number, or null where nothing is drawn.
 */
export function regionCanvases(regions, width, height, colors, border = null) {
  const fill = makeCanvas(width, height), lines = makeCanvas(width, height);
  const pens = [fill.getContext("2d"), lines.getContext("2d")];
  const [inside, edge] = pens.map(pen => pen.createImageData(width, height));
  const paints = [inside, edge].map(picture => new Uint32Array(picture.data.buffer));
  const packed = colors.map(c => c && (255 << 24 | c[2] << 16 | c[1] << 8 | c[0]) >>> 0);
  const white = border && (border[3] << 24 | border[2] << 16 | border[1] << 8 | border[0]) >>> 0;
  const thick = Math.max(1, Math.round(Math.sqrt(width * height) / 600));
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const value = regions[i], color = packed[value];
      if (!color) continue;
      paints[0][i] = color;
      for (let t = 1; t <= thick; t++) {
        if ((x < t || regions[i - t] !== value) || (x >= width - t || regions[i + t] !== value)
          || (y < t || regions[i - t * width] !== value) || (y >= height - t || regions[i + t * width] !== value)) {
          paints[1][i] = white ?? color;
          break;
        }
      }
    }
  }
  pens[0].putImageData(inside, 0, 0);
  pens[1].putImageData(edge, 0, 0);
  return { fill, lines };
}
