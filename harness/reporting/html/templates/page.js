"use strict";
// Charts in the page's colours, tabs, sorting and filtering. Everything else is plain HTML.

const all = (root, selector) => Array.from(root.querySelectorAll(selector));
const charts = JSON.parse(document.getElementById("chart-data").textContent);
let printing = false;
const hidden = new Set(); // configurations whose curves the legend hides

// --- charts -----------------------------------------------------------------------------------------------------------

// Replace every "var(--name)" in a chart by the colour that the page has now.
function resolveColours(value, style) {
  if (typeof value === "string") {
    const match = /^var\((--[a-z]+)\)$/.exec(value);
    return match ? style.getPropertyValue(match[1]).trim() : value;
  }
  if (Array.isArray(value)) return value.map(part => resolveColours(part, style));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, resolveColours(part, style)]));
  }
  return value;
}

function themed(chart, plot) {
  const touch = matchMedia("(pointer: coarse)").matches;
  const bar = { bgcolor: "rgba(0,0,0,0)", color: "var(--soft)", activecolor: "var(--blue)" };
  const line = { gridcolor: "var(--grid)", zerolinecolor: "var(--grid)", linecolor: "var(--soft)", automargin: true };
  const layout = {
    autosize: true, height: Number(plot.dataset.height), dragmode: touch ? false : "zoom", hovermode: "closest",
    paper_bgcolor: "var(--paper)", plot_bgcolor: "var(--paper)", font: { color: "var(--ink)", family: "system-ui, sans-serif", size: 12 },
    margin: { l: 8, r: 12, t: 34, b: 8 }, legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0 },
    hoverlabel: { bgcolor: "var(--card)", bordercolor: "var(--soft)", font: { color: "var(--ink)" } },
    modebar: bar, ...chart.layout,
  };
  for (const key of Object.keys(layout)) if (/^[xy]axis/.test(key)) layout[key] = { ...line, ...layout[key] };
  if (plot.dataset.log) {
    const { rangemode, range, ...rest } = layout.yaxis;
    layout.yaxis = { ...rest, type: "log", dtick: undefined, minor: { showgrid: false }, exponentformat: "power" };
  }
  return resolveColours({ data: chart.data, layout }, getComputedStyle(document.documentElement));
}

function draw(plot) {
  const chart = charts[plot.id];
  if (!window.Plotly || !chart || (!printing && !plot.offsetWidth)) return;
  const { data, layout } = themed(chart, plot);
  data.forEach(trace => { if (hidden.has(trace.legendgroup)) trace.visible = false; });
  if (printing) Object.assign(layout, { autosize: false, width: 660 });
  if (!plot.classList.contains("js-plotly-plot")) plot.replaceChildren();
  // Only buttons that stay within the page: newer versions of Plotly have one that uploads the chart.
  Plotly.react(plot, data, layout, { responsive: true, displaylogo: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]] });
}

// A button below a chart's caption switches its vertical axis to a logarithmic one.
document.addEventListener("click", event => {
  const button = event.target.closest("[data-log]");
  if (!button) return;
  const plot = document.getElementById(button.dataset.log);
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", on);
  if (on) plot.dataset.log = "on"; else delete plot.dataset.log;
  draw(plot);
});

// The legend of several runs: a click hides a configuration, a double-click shows it alone, pointing at it highlights it.
all(document, ".legend").forEach(list => {
  const buttons = all(list, "[data-group]");
  const apply = () => {
    buttons.forEach(button => button.setAttribute("aria-pressed", !hidden.has(button.dataset.group)));
    drawAll(document);
  };
  const highlight = group => all(document, ".js-plotly-plot").forEach(plot => {
    if (!plot.data.some(trace => trace.legendgroup)) return;
    Plotly.restyle(plot, { opacity: plot.data.map(trace => !group || trace.legendgroup === group ? 1 : 0.15) });
  });
  list.addEventListener("click", event => {
    const group = event.target.closest("[data-group]")?.dataset.group;
    if (!group) return;
    if (hidden.has(group)) hidden.delete(group); else hidden.add(group);
    apply();
  });
  list.addEventListener("dblclick", event => {
    const group = event.target.closest("[data-group]")?.dataset.group;
    if (!group) return;
    const others = buttons.map(button => button.dataset.group).filter(other => other !== group);
    const isAlone = others.every(other => hidden.has(other)); // two clicks have left the configuration as it was
    hidden.clear();
    if (!isAlone) others.forEach(other => hidden.add(other));
    apply();
  });
  buttons.forEach(button => {
    button.addEventListener("pointerenter", event => { if (event.pointerType === "mouse") highlight(button.dataset.group); });
    button.addEventListener("pointerleave", () => highlight(""));
  });
});

const drawAll = root => all(root, ".plot").forEach(draw);

// plotly.js is in the page, compressed; a browser that cannot decompress it shows the tables only.
async function unpack() {
  const packed = document.getElementById("plotly");
  if (!packed) return;
  const bytes = Uint8Array.from(atob(packed.textContent.trim()), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  drawAll(document);
  all(document, "[data-log]").forEach(button => { button.hidden = false; });
  document.documentElement.dataset.charts = "drawn";
}

function reportFailure() {
  all(document, ".plot .wait").forEach(text => {
    text.textContent = "This browser cannot draw the chart (a version of 2023 or later can). The tables have the same numbers.";
  });
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(document));
addEventListener("beforeprint", () => {
  printing = true;
  all(document, "details").forEach(part => { part.dataset.was = part.open; part.open = part.open || "print" in part.dataset; });
  drawAll(document);
});
addEventListener("afterprint", () => {
  printing = false;
  all(document, "details").forEach(part => { part.open = part.dataset.was === "true"; });
  drawAll(document);
});

// --- tabs: one in the tab order, arrows between them --------------------------------------------------------------------

function choose(list, chosen) {
  all(list, "[role=tab]").forEach(tab => {
    const on = tab === chosen;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    const panel = document.getElementById(tab.getAttribute("aria-controls"));
    panel.hidden = !on;
    if (on) drawAll(panel);
  });
}

all(document, "[role=tablist]").forEach(list => {
  const tabs = all(list, "[role=tab]");
  list.addEventListener("click", event => {
    const tab = event.target.closest("[role=tab]");
    if (tab) choose(list, tab);
  });
  list.addEventListener("keydown", event => {
    const at = tabs.indexOf(document.activeElement);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    const tab = tabs[(next + tabs.length) % tabs.length];
    tab.focus();
    choose(list, tab);
  });
});

// --- sorting: numbers as numbers, text as text, empty cells last ---------------------------------------------------------

function compare(one, two, sign) {
  if (one === "" || two === "") return (one === "") - (two === "");
  const difference = Number(one) - Number(two);
  return sign * (Number.isNaN(difference) ? one.localeCompare(two, undefined, { numeric: true }) : difference);
}

function sortTable(button) {
  const head = button.closest("th");
  const table = head.closest("table");
  const down = head.getAttribute("aria-sort") === "ascending";
  all(table, "th[aria-sort]").forEach(other => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent.trim();
  const rows = Array.from(table.tBodies[0].rows);
  rows.sort((one, two) => compare(value(one), value(two), down ? -1 : 1));
  table.tBodies[0].append(...rows);
}

document.addEventListener("click", event => {
  const button = event.target.closest("th[aria-sort] button");
  if (button) sortTable(button);
});

// --- galleries ----------------------------------------------------------------------------------------------------------

all(document, "[data-gallery]").forEach(gallery => {
  const list = gallery.querySelector(".tiles");
  const control = name => gallery.querySelector(`select[name=${name}]`);
  const show = () => {
    const [cls, truth, prediction] = ["class", "truth", "prediction"].map(name => control(name).value);
    const tiles = Array.from(list.children);
    let shown = 0;
    tiles.forEach(tile => {
      const data = tile.dataset;
      tile.hidden = !((!cls || data.truth === cls || data.prediction === cls)
        && (!truth || data.truth === truth) && (!prediction || data.prediction === prediction));
      shown += !tile.hidden;
    });
    const [key, way] = control("sort").value.split(" ");
    tiles.sort((one, two) => compare(one.dataset[key], two.dataset[key], way === "down" ? -1 : 1));
    list.append(...tiles);
    gallery.querySelector("[role=status]").textContent = `${shown} of ${tiles.length} shown`;
  };
  gallery.addEventListener("change", show);
  gallery.querySelector("button.all").addEventListener("click", () => {
    all(gallery, "select").forEach(select => { select.selectedIndex = 0; });
    show();
  });
});

// --- enlarged images ----------------------------------------------------------------------------------------------------

const viewer = document.getElementById("viewer");

document.addEventListener("click", event => {
  const button = event.target.closest(".enlarge");
  if (button) {
    const image = button.querySelector("img");
    const caption = button.closest(".tile")?.querySelector("figcaption");
    viewer.querySelector("img").src = image.src;
    viewer.querySelector("img").alt = image.alt;
    viewer.querySelector("p").textContent = [image.alt, caption ? caption.innerText : ""].join("\n");
    viewer.showModal();
  } else if (viewer.open && (event.target === viewer || event.target.closest("#viewer button"))) {
    viewer.close();
  }
});

unpack().catch(reportFailure);
