"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const charts = read("charts");
const tables = read("tables");

// As many names beside each other as there is room for, right of the names of rows.
function legend(chart, width) {
  const widest = (channel) => {
    const parts = [chart, ...(chart.layer ?? [])];
    const names = parts.flatMap((part) => part.encoding?.[channel]?.scale?.domain ?? []);
    return 7 * Math.max(0, ...names.map((name) => String(name).length)); // pixels, about
  };
  const room = width - Math.max(50, Math.min(180, widest("y")));
  const columns = Math.max(1, Math.min(8, Math.floor(room / (24 + widest("color")))));
  return { ...chart.config.legend, columns, labelLimit: room - 24 };
}

function draw(figure) {
  const chart = { ...charts[figure.dataset.chart], datasets: tables[figure.dataset.tables] };
  const width = figure.querySelector(".plot").clientWidth;
  chart.config = { ...chart.config, legend: legend(chart, width) };
  const controls = figure.querySelector(".controls");
  vegaEmbed(figure.querySelector(".plot"), chart, {
    actions: false,
    renderer: "svg",
    mode: "vega-lite",
    bind: controls,
  }).catch((error) => {
    controls.textContent = `This plot cannot be drawn (${error}); its numbers are in the tables.`;
  });
}

// A long run's plots take a while: each is drawn when it is about to be seen, or printed.
const waiting = new Set(document.querySelectorAll("figure[data-chart]"));
function drawOnce(figure) {
  if (waiting.delete(figure)) draw(figure);
}
const seen = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => drawOnce(target)),
  { rootMargin: "100px" },
);
waiting.forEach((figure) => seen.observe(figure));
window.addEventListener("beforeprint", () => waiting.forEach(drawOnce));
