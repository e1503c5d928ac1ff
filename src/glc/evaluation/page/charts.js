/* Line charts in SVG, drawn from strings of numbers; text of runs only ever goes through textContent.

   A line: {run, label, x, y, dash, about(i)}; y null: a gap. A view: {xLog, yLog, smooth, clip, lit}. */
const PLOT = { width: 480, height: 230, left: 54, right: 10, top: 8, bottom: 24 };
const SHOWN_VALUES = 12;

function formatted(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-4)) return value.toExponential(2);
  if (size >= 1000) return value.toFixed(0);
  return String(Number(value.toPrecision(4)));
}

/* Texts of ticks, all with the decimals that tell them apart. */
function tickTexts(ticks, log) {
  if (log) return ticks.map((value) => formatted(value));
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : Math.abs(ticks[0]) || 1;
  const most = Math.max(...ticks.map(Math.abs));
  const digit = Math.floor(Math.log10(step) + 1e-9);
  const decimals = Number((step / 10 ** digit).toFixed(3)) % 1 ? 1 : 0;
  if (most >= 1e5 || most < 1e-3) {
    const digits = Math.max(0, Math.floor(Math.log10(most || 1)) - digit + decimals);
    return ticks.map((value) => (Math.abs(value) < step / 1e6 ? "0" : value.toExponential(digits)));
  }
  return ticks.map((value) => value.toFixed(Math.max(0, decimals - digit)));
}

function linearTicks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((size) => size >= raw * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9 && ticks.length < 50; k += 1) ticks.push(k * step);
  return ticks;
}

function logTicks(low, high) {
  const from = Math.floor(Math.log10(low));
  const to = Math.ceil(Math.log10(high));
  const every = Math.max(1, Math.ceil((to - from) / 6));
  const ticks = [];
  for (let power = from; power <= to; power += every) {
    for (const k of to - from <= 2 ? [1, 2, 5] : [1]) {
      const value = k * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) ticks.push(value);
    }
  }
  return ticks.length > 1 ? ticks : linearTicks(low, high, 4);
}

/* The exponential moving average, corrected for its start; gaps stay gaps. */
function smoothed(values, weight) {
  if (!weight) return values;
  let mean = 0;
  let scale = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    scale = weight * scale + (1 - weight);
    return mean / scale;
  });
}

function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(share * (sorted.length - 1))))];
}

class Scale {
  constructor(values, log, from, to, margin) {
    this.log = log;
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (log) [low, high] = [Math.log10(low), Math.log10(high)];
    /* Smoothed constants differ by rounding; ticks between such numbers would have no end. */
    if (high - low < 1e-9 * Math.max(Math.abs(low), Math.abs(high))) low = high;
    const space = high > low ? margin * (high - low) : margin * (Math.abs(high) || 1);
    [this.low, this.high] = [low - space, high + space];
    if (this.low === this.high) this.high += log ? 1 : Math.abs(high) || 1;
    [this.from, this.to] = [from, to];
  }

  at(value) {
    const place = this.log ? Math.log10(value) : value;
    return this.from + ((place - this.low) / (this.high - this.low)) * (this.to - this.from);
  }

  ticks(count) {
    return this.log ? logTicks(10 ** this.low, 10 ** this.high) : linearTicks(this.low, this.high, count);
  }
}

class Chart {
  /* spec: {title, about, markers, shift, lines()}; shift is added to x on a logarithmic axis. */
  constructor(spec) {
    this.spec = spec;
    this.host = document.createElement("figure");
    this.host.className = "chart";
    this.host.innerHTML =
      '<figcaption><span></span><button type="button" class="expand" aria-pressed="false">expand</button></figcaption>' +
      '<svg tabindex="0" role="img"></svg><div class="values" aria-live="polite" hidden></div><p class="empty" hidden></p>';
    [this.caption, this.svg, this.box, this.empty] = [...this.host.children];
    this.caption.firstChild.textContent = spec.title;
    if (spec.about) this.caption.firstChild.title = spec.about;
    const expand = this.caption.lastChild;
    expand.setAttribute("aria-label", `expand ${spec.title}`);
    expand.addEventListener("click", () => {
      const large = this.host.classList.toggle("large");
      expand.setAttribute("aria-pressed", String(large));
      expand.textContent = large ? "shrink" : "expand";
      this.draw(this.view);
    });
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.clear());
    this.svg.addEventListener("blur", () => this.clear());
    this.svg.addEventListener("keydown", (event) => this.press(event));
  }

  draw(view) {
    this.view = view;
    const box = this.svg.getBoundingClientRect();
    this.width = box.width || PLOT.width;
    this.height = box.height || PLOT.height;
    this.clear();
    const { markers, shift = 0 } = this.spec;
    const lines = this.spec.lines().map((line) => {
      const y = markers ? line.y : smoothed(line.y, view.smooth);
      return { ...line, raw: line.y, y, x: view.xLog ? line.x.map((x) => x + shift) : line.x, shown: line.x };
    });
    const xs = lines.flatMap((line) => line.x.filter((x, i) => line.y[i] !== null && (!view.xLog || x > 0)));
    let ys = lines.flatMap((line) => line.y.filter((y) => y !== null));
    const positive = ys.filter((y) => y > 0);
    this.yLog = view.yLog && positive.length > 0;
    if (this.yLog) ys = positive;
    this.lines = lines;
    const none = !xs.length || !ys.length;
    this.empty.hidden = !none;
    this.empty.textContent = lines.length ? "no finite value" : "no selected run has values";
    this.svg.setAttribute("aria-label", none ? `${this.spec.title}: empty` : this.label(lines.length));
    if (none) {
      this.svg.innerHTML = "";
      return;
    }
    if (view.clip && !markers && ys.length > 20) {
      const sorted = ys.toSorted((a, b) => a - b);
      const [low, high] = [quantile(sorted, 0.02), quantile(sorted, 0.98)];
      if (high > low) ys = ys.filter((y) => y >= low && y <= high);
    }
    const margin = markers ? 0.06 : 0;
    this.xScale = new Scale(xs, view.xLog, PLOT.left, this.width - PLOT.right, margin);
    this.yScale = new Scale(ys, this.yLog, this.height - PLOT.bottom, PLOT.top, 0.05);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    const faint = view.smooth && !markers && lines.length <= 12;
    this.svg.innerHTML =
      this.axes() +
      `<svg class="area" x="${PLOT.left}" y="0" width="${this.width - PLOT.left - PLOT.right + 5}" height="${this.height - PLOT.bottom + 1}"` +
      ` viewBox="${PLOT.left} 0 ${this.width - PLOT.left - PLOT.right + 5} ${this.height - PLOT.bottom + 1}">` +
      (faint ? lines.map((line) => this.path(line, line.raw, "faint")).join("") : "") +
      lines.map((line) => this.path(line, line.y, "")).join("") +
      '</svg><g class="cursor"></g>';
    this.light(view.lit);
  }

  label(count) {
    return `${this.spec.title}, ${count} ${count === 1 ? "line" : "lines"}. Left and right arrow keys read the values.`;
  }

  place(line, i, values) {
    const [x, y] = [line.x[i], values[i]];
    if (y === null || (this.yLog && y <= 0) || (this.xScale.log && x <= 0)) return null;
    return [this.xScale.at(x), this.yScale.at(y)];
  }

  path(line, values, kind) {
    let d = "";
    let pen = "M";
    let dots = "";
    for (let i = 0; i < line.x.length; i += 1) {
      const place = this.place(line, i, values);
      if (place) {
        d += `${pen}${place[0].toFixed(1)} ${place[1].toFixed(1)}`;
        const lonely = pen === "M" && (i + 1 >= line.x.length || values[i + 1] === null);
        if (this.spec.markers || lonely) {
          dots += `<circle cx="${place[0].toFixed(1)}" cy="${place[1].toFixed(1)}" r="3.5"/>`;
        }
        pen = "L";
      } else pen = "M";
    }
    return `<g class="line ${kind}" data-run="${line.run}" style="--own:${colourOf(line.run)}"><path d="${d}" stroke-dasharray="${line.dash}"/>${dots}</g>`;
  }

  axes() {
    const { left, right, top, bottom } = PLOT;
    const shift = this.xScale.log ? this.spec.shift || 0 : 0;
    let text = "";
    const yTicks = this.yScale.ticks(5);
    const yTexts = tickTexts(yTicks, this.yLog);
    for (const [i, value] of yTicks.entries()) {
      const y = this.yScale.at(value).toFixed(1);
      text += `<line class="grid" x1="${left}" x2="${this.width - right}" y1="${y}" y2="${y}"/>`;
      text += `<text x="${left - 6}" y="${y}" dy="0.32em" text-anchor="end">${yTexts[i]}</text>`;
    }
    const xTicks = this.xScale.ticks(Math.max(2, Math.floor(this.width / 90)));
    const xTexts = tickTexts(xTicks, this.xScale.log);
    for (const [i, value] of xTicks.entries()) {
      const x = this.xScale.at(value).toFixed(1);
      if (x < left - 1 || x > this.width - right + 1) continue;
      text += `<line class="grid" x1="${x}" x2="${x}" y1="${top}" y2="${this.height - bottom}"/>`;
      const end = x > this.width - right - 14 ? "end" : "middle";
      text += `<text x="${x}" y="${this.height - bottom + 15}" text-anchor="${end}">${shift && value === 1 ? "0" : xTexts[i]}</text>`;
    }
    return text;
  }

  light(run) {
    this.svg.classList.toggle("lit", run !== null);
    for (const line of this.svg.querySelectorAll(".line")) {
      line.classList.toggle("on", line.dataset.run === String(run));
    }
  }

  /* All places where the cursor can be, from left to right. */
  stops() {
    const found = new Map();
    this.lines.forEach((line, k) =>
      line.x.forEach((x, i) => {
        if (line.y[i] === null) return;
        found.set(this.spec.markers ? `${k} ${i}` : x, { x, k, i });
      }),
    );
    return [...found.values()].sort((a, b) => a.x - b.x);
  }

  point(event) {
    if (!this.xScale || !this.empty.hidden) return;
    const box = this.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    for (const stop of this.stops()) {
      const place = this.place(this.lines[stop.k], stop.i, this.lines[stop.k].y);
      if (!place) continue;
      const far = this.spec.markers ? Math.hypot(place[0] - x, place[1] - y) : Math.abs(place[0] - x);
      if (!best || far < best.far) best = { ...stop, far };
    }
    if (best) this.read(best, y);
  }

  press(event) {
    if (!this.xScale || !this.empty.hidden) return;
    if (event.key === "Escape") return this.clear();
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return undefined;
    event.preventDefault();
    const stops = this.stops();
    const same = (stop) => this.stop && stop.x === this.stop.x && (!this.spec.markers || (stop.k === this.stop.k && stop.i === this.stop.i));
    const now = stops.findIndex(same);
    const from = now < 0 && moves[event.key] > 0 ? -1 : now < 0 ? stops.length : now;
    const next = Math.min(stops.length - 1, Math.max(0, from + moves[event.key]));
    this.read(stops[next], null);
    return undefined;
  }

  /* Show the values at a stop; y chooses which are shown if there are too many. */
  read(stop, y) {
    this.stop = stop;
    const place = (line, i) => this.place(line, i, line.y);
    let found;
    let title;
    if (this.spec.markers) {
      const line = this.lines[stop.k];
      found = [{ line, i: stop.i, at: place(line, stop.i) }];
      title = line.label;
    } else {
      const near = this.xScale.at(stop.x);
      found = this.lines.flatMap((line) => {
        let best = -1;
        line.x.forEach((x, i) => {
          if (line.y[i] !== null && (best < 0 || Math.abs(x - stop.x) < Math.abs(line.x[best] - stop.x))) best = i;
        });
        const at = best < 0 ? null : place(line, best);
        return at && Math.abs(at[0] - near) < 12 ? [{ line, i: best, at }] : [];
      });
      title = `${this.spec.unit || "step"} ${formatted(this.lines[stop.k].shown[stop.i])}`;
    }
    const all = found.length;
    let nearest = null;
    if (all > FEW && y !== null) {
      const far = (each) => Math.abs(each.at[1] - y);
      nearest = found.reduce((best, each) => (far(each) < far(best) ? each : best)).line;
      this.light(nearest.run);
    }
    if (all > SHOWN_VALUES && y !== null) found.sort((a, b) => Math.abs(a.at[1] - y) - Math.abs(b.at[1] - y));
    found = found.filter((each) => each.at).slice(0, SHOWN_VALUES).sort((a, b) => a.at[1] - b.at[1]);
    const x = found.length ? this.xScale.at(stop.x) : 0;
    this.svg.querySelector(".cursor").innerHTML =
      `<line x1="${x}" x2="${x}" y1="${PLOT.top}" y2="${this.height - PLOT.bottom}"/>` +
      found.map(({ line, at }) => `<circle cx="${at[0]}" cy="${at[1]}" r="4" style="--own:${colourOf(line.run)}"/>`).join("");
    const heading = document.createElement("b");
    heading.textContent = title;
    const rows = found.flatMap(({ line, i }) => {
      const texts = this.spec.markers ? line.about(i) : [[line.label, formatted(line.y[i])]];
      return texts.map(([name, value]) => {
        const row = document.createElement("div");
        row.classList.toggle("on", line === nearest);
        const swatch = document.createElement("i");
        swatch.style.setProperty("--own", colourOf(line.run));
        row.append(swatch, Object.assign(document.createElement("span"), { textContent: name }), Object.assign(document.createElement("span"), { textContent: value, className: "number" }));
        return row;
      });
    });
    if (all > found.length && !this.spec.markers) {
      rows.push(Object.assign(document.createElement("div"), { textContent: `and ${all - found.length} more` }));
    }
    this.box.replaceChildren(heading, ...rows);
    this.box.hidden = !found.length;
    const leftHalf = x < this.width / 2;
    this.box.style.left = leftHalf ? `${x + 12}px` : "auto";
    this.box.style.right = leftHalf ? "auto" : `${this.width - x + 12}px`;
  }

  clear() {
    this.stop = null;
    this.box.hidden = true;
    const cursor = this.svg.querySelector(".cursor");
    if (cursor) cursor.innerHTML = "";
    if (this.view) this.light(this.view.lit);
  }
}

/* Up to ten runs have colours that are told apart without colour vision; more have a spectrum in their order. */
const FEW = 10;
let runCount = 0;
function colourOf(run) {
  return runCount <= FEW ? `var(--run-${run})` : `oklch(var(--lightness) 0.14 ${(20 + (310 * run) / (runCount - 1)).toFixed(1)})`;
}
