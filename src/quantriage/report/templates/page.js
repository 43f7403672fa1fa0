"use strict";
// Draws the charts of the page. Figures come as JSON with colours named by CSS variable; they are resolved
// here, again whenever the page turns dark, light or into print. A chart switches views by its buttons.
(async () => {
  const figures = JSON.parse(document.getElementById("charts").textContent);
  const boxes = [...document.querySelectorAll("[data-chart]")];
  const shown = new Map(boxes.map((box) => [box.dataset.chart, 0]));
  const narrow = matchMedia("(max-width: 640px)");

  const unpack = async (base64) => {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  const resolve = (value, colours) => {
    if (typeof value === "string") {
      const found = /^var\((--[\w-]+)\)$/.exec(value);
      return found ? colours.getPropertyValue(found[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, colours));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, colours)]));
    }
    return value;
  };

  const draw = (box) => {
    const figure = resolve(figures[box.dataset.chart][shown.get(box.dataset.chart)], getComputedStyle(document.documentElement));
    const layout = figure.layout;
    if (narrow.matches) {
      layout.font.size = 12;
      layout.margin = { ...layout.margin, l: 2, r: 4 };
      if (!layout.xaxis.tickvals && layout.xaxis.type !== "category") layout.xaxis = { ...layout.xaxis, nticks: 5, tickangle: 0 };
      layout.legend = { ...layout.legend, entrywidth: 0.47, entrywidthmode: "fraction", font: { size: 11 } };
    }
    const plot = box.querySelector(".plot");
    plot.style.minHeight = `${layout.height}px`;
    return Plotly.react(plot, figure.data, layout, { responsive: true, displayModeBar: false });
  };
  const drawAll = () => Promise.all(boxes.map(draw));

  const choose = (box, view) => {
    shown.set(box.dataset.chart, view);
    for (const button of box.querySelectorAll("button[data-view]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.view) === view));
    }
    for (const caption of box.querySelectorAll("figcaption[data-view]")) {
      caption.hidden = Number(caption.dataset.view) !== view;
    }
    draw(box);
  };

  try {
    const library = document.createElement("script");
    library.textContent = await unpack(document.getElementById("plotly-gzip").textContent);
    document.head.append(library);
    await drawAll();
  } catch (error) {
    for (const box of boxes) box.querySelector(".plot").textContent = `This browser cannot draw the chart (${error.message}).`;
    throw error;
  }
  for (const box of boxes) {
    for (const button of box.querySelectorAll("button[data-view]")) {
      button.addEventListener("click", () => choose(box, Number(button.dataset.view)));
    }
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; drawAll(); });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.theme; drawAll(); });
  document.documentElement.dataset.drawn = "yes";
})();
