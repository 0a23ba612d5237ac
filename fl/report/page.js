"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const charts = read("charts");
const tables = read("tables");

function draw(figure) {
  const chart = { ...charts[figure.dataset.chart], datasets: tables[figure.dataset.tables] };
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
