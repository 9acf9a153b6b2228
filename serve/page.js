"use strict";
// Asks for the state of the run every other second and draws it.
const at = (id) => document.getElementById(id);
const make = (tag, attributes, ...children) => {
  const e = /^(svg|path|text|circle|title)$/.test(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
};
const short = (x) => Number(x.toPrecision(4)).toString();
const time = (s) => (s < 100 ? `${Math.round(s)} s` : s < 7200 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);

// chart draws one quantity against the steps; a step without a number is a gap.
function chart({ name, x, y }) {
  const known = y.filter((v) => v !== null);
  if (known.length === 0) return null;
  let low = Math.min(...known), high = Math.max(...known);
  if (low === high) { const pad = Math.abs(low) / 10 || 1; low -= pad; high += pad; }
  const log = low > 0 && high / low > 50;
  const scale = (v) => (log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
  const left = 60, right = 424, top = 12, bottom = 176, first = x[0], last = x[x.length - 1];
  const px = (s) => left + (last > first ? (s - first) / (last - first) : 0.5) * (right - left);
  const py = (v) => bottom - scale(v) * (bottom - top);
  let line = "", open = false;
  x.forEach((s, i) => {
    if (y[i] === null) { open = false; return; }
    line += `${open ? "L" : "M"}${px(s).toFixed(1)} ${py(y[i]).toFixed(1)}`;
    open = true;
  });
  const middle = log ? Math.sqrt(low * high) : (low + high) / 2;
  const label = (v) => [make("path", { class: "rule", d: `M${left} ${py(v)}H${right}` }), make("text", { class: "y", x: left - 6, y: py(v) + 4 }, short(v))];
  let end = y.length - 1;
  while (y[end] === null) end--;
  const svg = make("svg", { viewBox: "0 0 440 210", role: "img", "aria-label": `${name}, between ${short(low)} and ${short(high)}`, "data-name": name, "data-points": x.length, "data-last": y[end] },
    ...[low, middle, high].flatMap(label),
    make("path", { class: "axis", d: `M${left} ${bottom}H${right}` }),
    make("text", { class: "x", x: left, y: bottom + 18 }, String(first)), make("text", { class: "x", x: right, y: bottom + 18 }, String(last)),
    make("text", { class: "name across", x: (left + right) / 2 + 14, y: bottom + 18 }, log ? "step, logarithmic" : "step"),
    make("path", { class: "line c3", d: line }), make("circle", { class: "mark c3", cx: px(x[end]), cy: py(y[end]), r: 4 }));
  return make("figure", { class: "chart" }, make("figcaption", {}, name.replaceAll("_", " "), " ", make("span", { class: "value" }, short(y[end]))), svg);
}

const shots = new Map();
function preview(name) {
  if (!shots.has(name)) {
    const about = `Preview ${name.replace(/\.[a-z]+$/, "").replace(/^step-0*/, "after step ")}`;
    const address = "/previews/" + encodeURIComponent(name);
    shots.set(name, make("figure", { class: "tile" },
      make("label", { class: "veil" }, make("input", { type: "checkbox", autocomplete: "off", "aria-label": `Show ${about}` }),
        make("img", { src: address, alt: about }), make("span", { class: "hint", "aria-hidden": "true" }, "show")),
      make("figcaption", {}, about)));
  }
  return shots.get(name);
}

function draw(s) {
  const what = `${s.kind} ${s.method}`.trim();
  at("title").textContent = `${what}: ${s.name}`;
  const of = s.total > 0 ? `step ${s.done} of ${s.total}` : `step ${s.done}`;
  let status = s.finished ? `Finished after ${s.done} steps.` : `Under way: ${of}`;
  if (!s.finished) status += s.left > 0 ? `, about ${time(s.left)} left.` : ".";
  at("status").textContent = status;
  document.title = s.finished ? `done · ${what}` : `${of} · ${what}`;
  at("progress").hidden = s.total === 0;
  at("progress").max = Math.max(1, s.total);
  at("progress").value = s.done;
  const facts = [s.engine];
  if (s.started) facts.push(`started ${new Date(s.started).toLocaleString()}`);
  if (!s.finished && s.done > 0) facts.push(`last step ${time(s.quiet)} ago`);
  at("facts").textContent = facts.filter(Boolean).join(" · ");
  at("problem").textContent = s.problem || "";
  at("problem").hidden = !s.problem;
  at("charts").replaceChildren(...s.series.map(chart).filter(Boolean));
  at("previews").hidden = s.previews.length === 0;
  const wanted = s.previews.map(preview), there = at("shots").children;
  if (wanted.length !== there.length || wanted.some((e, i) => e !== there[i])) at("shots").replaceChildren(...wanted);
}

async function ask() {
  let wait = 2000;
  try {
    const answer = await fetch("/state");
    const text = await answer.text();
    if (!answer.ok) throw new Error(text);
    const s = JSON.parse(text);
    draw(s);
    if (s.finished) wait = 15000;
  } catch {
    at("status").textContent = "The server does not answer; it may have been ended.";
    wait = 5000;
  }
  setTimeout(ask, wait);
}
ask();
