// A spectrogram and a level: time runs to the left; with reduced motion it stands still and a sweep overwrites it.
const LOW = 70, HIGH = 8000, FLOOR = -95, CEILING = -25; // Hz, dB
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

export class Scope {
  constructor(canvas, meter, number) {
    Object.assign(this, { canvas, meter, number, at: 0, told: 0 });
    this.pen = canvas.getContext("2d", { alpha: false });
    this.coloured = null;
    dark.addEventListener("change", () => this.clear());
    new ResizeObserver(() => this.clear()).observe(canvas);
  }

  // Palette from paper to `colour` (a CSS variable), by way of more contrast.
  palette(colour) {
    if (this.coloured === colour && this.colours) return this.colours;
    const css = getComputedStyle(document.documentElement), rgb = (name) => parse(css.getPropertyValue(name).trim());
    const stops = [rgb("--sunken"), rgb(colour), rgb("--ink")];
    this.colours = Array.from({ length: 256 }, (_, i) => {
      const t = (i / 255) ** 1.4 * 1.25, from = t < 1 ? stops[0] : stops[1], to = t < 1 ? stops[1] : stops[2], f = t < 1 ? t : 2 * (t - 1);
      return from.map((c, k) => Math.round(c + (to[k] - c) * f));
    });
    this.coloured = colour;
    return this.colours;
  }

  clear() {
    const scale = Math.min(2, devicePixelRatio), { clientWidth: w, clientHeight: h } = this.canvas;
    if (!w) return;
    Object.assign(this.canvas, { width: Math.round(w * scale), height: Math.round(h * scale) });
    this.colours = this.rows = null;
    this.at = 0;
    this.pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--sunken");
    this.pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  draw(analyser, colour) {
    const { width, height } = this.canvas, step = Math.max(1, Math.round(devicePixelRatio));
    analyser.smoothingTimeConstant = 0;
    const bins = (this.bins ??= new Float32Array(analyser.frequencyBinCount));
    analyser.getFloatFrequencyData(bins);
    const hz = analyser.context.sampleRate / analyser.fftSize;
    this.rows ??= Array.from({ length: height }, (_, y) => Math.min(bins.length - 2, (LOW * (HIGH / LOW) ** (1 - y / height)) / hz));
    const colours = this.palette(colour), column = this.pen.createImageData(step, height);
    this.rows.forEach((row, y) => {
      const k = Math.floor(row), db = bins[k] + (bins[k + 1] - bins[k]) * (row - k);
      const [r, g, b] = colours[Math.max(0, Math.min(255, Math.round((255 * (db - FLOOR)) / (CEILING - FLOOR))) || 0)];
      for (let x = 0; x < step; x++) column.data.set([r, g, b, 255], 4 * (y * step + x));
    });
    if (still.matches) {
      this.pen.putImageData(column, this.at, 0);
      this.at = (this.at + step) % width;
    } else {
      this.pen.drawImage(this.canvas, -step, 0);
      this.pen.putImageData(column, width - step, 0);
    }
    this.level(analyser);
  }

  level(analyser) {
    const x = (this.wave ??= new Float32Array(analyser.fftSize));
    analyser.getFloatTimeDomainData(x);
    const db = 10 * Math.log10(x.reduce((sum, v) => sum + v * v, 0) / x.length + 1e-9);
    this.shown = Math.max(db, (this.shown ?? -90) - 1.5); // quick up, slow down
    this.meter.firstElementChild.style.transform = `scaleX(${Math.max(0, Math.min(1, 1 + this.shown / 60))})`;
    const now = performance.now();
    if (now - this.told < 400) return;
    this.told = now;
    this.number.textContent = db < -60 ? "silent" : `${Math.round(db)} dB`;
    this.meter.setAttribute("aria-valuenow", Math.round(Math.max(-60, Math.min(0, db))));
  }

  rest() {
    this.meter.firstElementChild.style.transform = "scaleX(0)";
    this.number.textContent = "–";
  }
}

function parse(colour) {
  const hex = colour.match(/^#(..)(..)(..)$/);
  return hex ? hex.slice(1).map((x) => parseInt(x, 16)) : [128, 128, 128];
}
