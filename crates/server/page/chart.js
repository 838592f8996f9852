// A small chart of the last minutes: one or two lines from zero, with the last value as text.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100;

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Runs of neighbouring numbers; where there is none the line has a gap.
function runs(values) {
  const found = [];
  let open = null;
  values.forEach((value, index) => {
    if (value === null || value === undefined) {
      open = null;
      return;
    }
    if (!open) found.push((open = []));
    open.push([index, value]);
  });
  return found;
}

export class Chart {
  // `format` makes text of a number; `names` are those of the lines.
  constructor({ title, names, format }) {
    Object.assign(this, { title, names, format });
    this.svg = shape("svg", { role: "img", preserveAspectRatio: "none", viewBox: `0 0 100 ${HEIGHT}` });
    this.value = element("span", { className: "value" });
    this.top = element("span");
    this.span = element("span");
    this.element = element(
      "figure",
      { className: "chart" },
      element("figcaption", {}, element("span", { textContent: title }), this.value),
      this.svg,
      element("p", { className: "ends quiet" }, this.span, this.top),
    );
  }

  // `lines` holds one list for each name, oldest first; `slots` is how many values fit, `minutes` the time they span.
  show(lines, { slots, minutes, top = 0 }) {
    const numbers = lines.flat().filter((value) => value !== null && value !== undefined);
    const greatest = Math.max(top, ...numbers, 0);
    const scale = greatest > 0 ? (HEIGHT - 4) / greatest : 0;
    const x = (index, count) => (((index + slots - count) / Math.max(1, slots - 1)) * 100).toFixed(2);
    const y = (value) => (HEIGHT - value * scale).toFixed(2);
    const parts = [shape("line", { class: "base", x1: 0, x2: 100, y1: HEIGHT, y2: HEIGHT })];
    lines.forEach((values, which) => {
      for (const run of runs(values)) {
        const points = run.map(([index, value]) => `${x(index, values.length)},${y(value)}`);
        const [first, last] = [run[0][0], run.at(-1)[0]].map((index) => x(index, values.length));
        if (which === 0) {
          const area = `${first},${HEIGHT} ${points.join(" ")} ${last},${HEIGHT}`;
          parts.push(shape("polygon", { class: "area", points: area }));
        }
        // A single value would be a line without length.
        if (points.length === 1) points.push(`${Number(last) + 0.6},${y(run[0][1])}`);
        parts.push(shape("polyline", { class: which ? "line second" : "line", points: points.join(" ") }));
      }
    });
    this.svg.replaceChildren(...parts);
    const latest = lines.map((values) => numbersOf(values).at(-1));
    const text = (value) => (value === undefined ? "none yet" : this.format(value));
    this.value.textContent = this.names.map((name, at) => `${name ? `${name} ` : ""}${text(latest[at])}`).join(", ");
    this.top.textContent = numbers.length ? `at most ${this.format(greatest)}` : "";
    this.span.textContent = `${minutes} minutes`;
    const label = `${this.title} over the last ${minutes} minutes: ${this.value.textContent}. ${this.top.textContent}`;
    this.svg.setAttribute("aria-label", label.trim());
  }
}

function numbersOf(values) {
  return values.filter((value) => value !== null && value !== undefined);
}
