// A canvas that shows a picture, with zoom and pan by wheel, drag, pinch and keyboard. Views side by side share these.
const LARGEST = 60, STEP = 1.25, PAN = 48, MOVED = 4;
const TOOLS = 72, EDGE = 12; // space for the toolbar, and beside the picture

export class Transform {
  constructor(changed) {
    Object.assign(this, { k: 1, x: 0, y: 0, fitted: true, changed });
  }

  fit(width, height, picture) {
    const across = Math.max(32, width - 2 * EDGE), down = Math.max(32, height - EDGE - TOOLS);
    this.k = Math.min(across / picture.width, down / picture.height, 16);
    this.x = (width - this.k * picture.width) / 2;
    this.y = EDGE + (down - this.k * picture.height) / 2;
    this.fitted = true;
    this.changed();
  }

  zoom(factor, x, y) {
    const next = Math.min(LARGEST, Math.max(0.02, this.k * factor)), ratio = next / this.k;
    this.x = x - ratio * (x - this.x);
    this.y = y - ratio * (y - this.y);
    this.k = next;
    this.fitted = false;
    this.changed();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.changed();
  }
}

export class View {
  /** `on` has the functions paint(pen, view), pick(x, y), hover(x, y, event), cursor(dx, dy), and key(event). */
  constructor(parent, transform, on) {
    this.transform = transform;
    this.on = on;
    this.root = parent.appendChild(document.createElement("div"));
    this.root.className = "view";
    this.canvas = this.root.appendChild(document.createElement("canvas"));
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.title = this.root.appendChild(document.createElement("span"));
    this.title.className = "name";
    this.pointers = new Map();
    this.waiting = false;
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.root);
    this.listen();
  }

  remove() {
    this.observer.disconnect();
    this.root.remove();
  }

  get size() {
    return [this.root.clientWidth, this.root.clientHeight];
  }

  resize() {
    const [width, height] = this.size, dense = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(width * dense));
    this.canvas.height = Math.max(1, Math.round(height * dense));
    this.on.resized();
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const pen = this.canvas.getContext("2d"), dense = window.devicePixelRatio || 1;
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
      pen.setTransform(dense, 0, 0, dense, 0, 0);
      this.on.paint(pen, this);
    });
  }

  place(event) { // position in the view
    const frame = this.canvas.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  }

  point(x, y) { // position in pixels of the picture
    return [(x - this.transform.x) / this.transform.k, (y - this.transform.y) / this.transform.k];
  }

  listen() {
    const { canvas, pointers, transform } = this;
    let travelled = 0;
    canvas.addEventListener("wheel", event => {
      event.preventDefault();
      transform.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...this.place(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", event => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, this.place(event));
      if (pointers.size === 1) travelled = 0;
    });
    canvas.addEventListener("pointermove", event => {
      const before = pointers.get(event.pointerId), now = this.place(event);
      if (!before) {
        this.on.hover(...this.point(...now), event);
        return;
      }
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      const dx = now[0] - before[0], dy = now[1] - before[1];
      travelled += Math.abs(dx) + Math.abs(dy);
      pointers.set(event.pointerId, now);
      if (other) { // pinch
        const spread = p => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
        transform.zoom(spread(now) / spread(before), ...other);
      } else if (travelled > MOVED) {
        transform.pan(dx, dy);
      }
    });
    const up = event => {
      const known = pointers.delete(event.pointerId);
      if (known && event.type === "pointerup" && travelled <= MOVED && !pointers.size) {
        this.on.pick(...this.point(...this.place(event)), this);
      }
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", () => this.on.hover(NaN, NaN));
    canvas.addEventListener("keydown", event => this.key(event));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [width, height] = this.size, middle = [width / 2, height / 2];
    const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const arrow = arrows[event.key];
    if (arrow) {
      if (!this.on.cursor(-arrow[0], -arrow[1], event.shiftKey)) this.transform.pan(PAN * arrow[0], PAN * arrow[1]);
    } else if (event.key === "+" || event.key === "=") {
      this.transform.zoom(STEP, ...middle);
    } else if (event.key === "-") {
      this.transform.zoom(1 / STEP, ...middle);
    } else if (!this.on.key(event.key)) {
      return;
    }
    event.preventDefault();
  }
}

export { STEP };
