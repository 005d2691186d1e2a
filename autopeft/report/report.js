"use strict";
// Everything foreign reaches the page as text nodes, or as plotly text that was escaped when the report was made.

const read = (box) => JSON.parse(box.querySelector('script[type="application/json"]').textContent);

const make = (tag, text, className) => {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (className) element.className = className;
  return element;
};

const choose = new Map(); // what a click on a point of the front does

// --- plots -----------------------------------------------------------------------------------------------------------

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Put columns and colours in the place of their names. Lists are data, save those of objects.
const resolve = (value, columns) => {
  if (typeof value === "string") return value.startsWith("theme:") ? colour(value.slice(6)) : value;
  if (Array.isArray(value)) return value.some((item) => item && typeof item === "object") ? value.map((item) => resolve(item, columns)) : value;
  if (!value || typeof value !== "object") return value;
  if (typeof value.$ === "string") return columns[value.$];
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, columns)]));
};

const styled = (axis, narrow) => ({
  automargin: true, gridcolor: colour("grid"), zeroline: false, linecolor: colour("border"), ...axis,
  title: { font: { size: narrow ? 12 : 14 }, standoff: 12, ...axis.title },
});

const draw = (canvas, data, view) => {
  const narrow = canvas.clientWidth < 640;
  const traces = resolve(view.data, data.columns);
  const layout = resolve(view.layout, data.columns);
  const three = Boolean(layout.scene);
  for (const key of ["xaxis", "yaxis", "yaxis2"]) if (layout[key]) layout[key] = styled(layout[key], narrow);
  for (const key of three ? ["xaxis", "yaxis", "zaxis"] : []) {
    layout.scene[key] = { gridcolor: colour("faint"), showbackground: false, ...layout.scene[key], title: { font: { size: 12 }, ...layout.scene[key].title } };
  }
  for (const trace of traces) {
    if (!narrow || !trace.marker || !trace.marker.colorbar) continue;
    Object.assign(trace.marker.colorbar, { orientation: "h", y: 1.02, yanchor: "bottom", x: 0.5, len: 1, thickness: 8 });
    trace.marker.colorbar.title.side = "top";
  }
  Object.assign(layout, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: { color: colour("text"), family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 13 },
    margin: { l: 20, r: 20, t: narrow ? 20 : 30, b: narrow ? 110 : 90, pad: 4 },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, itemsizing: "constant" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("faint"), activecolor: colour("text") },
    hoverlabel: { align: "left", bgcolor: colour("panel"), bordercolor: colour("border"), font: { color: colour("text") } },
  });
  // plotly offers to share a chart, which sends its data to a server: not from here.
  const config = {
    responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover", showSendToCloud: false,
    plotlyServerURL: "", modeBarButtonsToRemove: ["select2d", "lasso2d", "sendChartToCloud"],
  };
  Plotly.react(canvas, traces, layout, config);
};

document.querySelectorAll("[data-plot]").forEach((box) => {
  const data = read(box);
  const canvas = box.querySelector("[data-canvas]");
  const tabs = box.querySelector("[data-tabs]");
  let current = 0;
  const show = (index) => {
    if (index !== current) Plotly.purge(canvas); // two and three dimensions do not change into each other
    current = index;
    tabs.querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
    draw(canvas, data, data.views[index]);
    canvas.removeAllListeners?.("plotly_click");
    canvas.on("plotly_click", (event) => choose.get("front")?.(event.points[0]?.customdata));
  };
  data.views.forEach((view, index) => {
    const button = tabs.appendChild(make("button", view.name));
    button.type = "button";
    button.addEventListener("click", () => show(index));
  });
  tabs.hidden = data.views.length < 2;
  show(0);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(current));
  let width = canvas.clientWidth;
  addEventListener("resize", () => {
    if ((canvas.clientWidth < 640) !== (width < 640)) show(current);
    width = canvas.clientWidth;
  });
  addEventListener("beforeprint", () => Plotly.Plots.resize(canvas));
});

// --- ranks of any trial of the front ---------------------------------------------------------------------------------

document.querySelectorAll("[data-grids]").forEach((box) => {
  const { order, grids } = read(box);
  const select = box.querySelector("[data-choice]");
  const place = box.querySelector("[data-grid]");
  const show = (number) => {
    const grid = grids[number];
    place.replaceChildren();
    if (grid.rows.length) {
      const table = place.appendChild(make("table", null, "grid"));
      const head = table.createTHead().insertRow();
      ["layer", ...grid.kinds].forEach((kind) => head.appendChild(make("th", kind)));
      const body = table.createTBody();
      grid.rows.forEach((row, layer) => {
        const line = body.insertRow();
        line.appendChild(make("th", layer));
        row.forEach(([text, level]) => {
          const cell = line.insertCell();
          cell.textContent = text;
          if (level) {
            cell.className = level > 0.6 ? "strong" : "on";
            cell.style.setProperty("--level", level);
          }
        });
      });
    }
    if (grid.note) place.appendChild(make("p", grid.note, "muted"));
  };
  order.forEach((number) => { select.appendChild(make("option", grids[number].title)).value = number; });
  select.addEventListener("change", () => show(select.value));
  show(select.value);
  choose.set("front", (number) => {
    if (!(number in grids)) return;
    select.value = number;
    show(number);
    box.scrollIntoView({ block: "center", behavior: "smooth" });
  });
});

// --- all trials ------------------------------------------------------------------------------------------------------

document.querySelectorAll("[data-trials]").forEach((box) => {
  const data = read(box);
  const find = (name) => box.querySelector(`[data-${name}]`);
  const [head, body, search, state, method, only] = ["head", "body", "search", "state", "method", "front"].map(find);
  const columns = data.columns;
  const states = columns.find((column) => column.title === "state").values;
  const length = states.length;
  const perPage = 50;
  const valuesOf = (row) => Object.entries(data.values[row]).map(([index, value]) => [data.names[index], value]);
  const text = (column, row) => String((column.texts || column.values)[row] ?? "");
  const haystack = Array.from({ length }, (_, row) =>
    [...columns.map((column) => text(column, row)), ...valuesOf(row).map(([name, value]) => `${name}=${value}`)].join(" ").toLowerCase());
  let sorted = { column: 0, up: true };
  let page = 0;
  const opened = new Set();

  const compare = (a, b) => {
    const { column, up } = sorted;
    const [x, y] = [columns[column].values[a], columns[column].values[b]];
    const [noX, noY] = [x === null || x === "", y === null || y === ""];
    if (noX || noY) return noX - noY || a - b; // what has no value comes last, whatever the direction
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
    return (up ? order : -order) || a - b;
  };

  const details = (row) => {
    const line = make("tr", null, "open");
    const cell = line.appendChild(make("td"));
    cell.colSpan = columns.length;
    const list = cell.appendChild(make("ul", null, "values"));
    for (const [name, value] of valuesOf(row)) {
      list.appendChild(make("li", `${name} = ${value}`));
    }
    if (data.traceback[row] !== null) {
      const more = cell.appendChild(make("details"));
      more.open = true;
      more.appendChild(make("summary", "Traceback"));
      more.appendChild(make("pre", data.tracebacks[data.traceback[row]]));
    }
    return line;
  };

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = Array.from({ length }, (_, row) => row).filter((row) =>
      (!state.value || states[row] === state.value) && (!method.value || data.methods[row] === method.value)
      && (!only.checked || data.front[row]) && words.every((word) => haystack[row].includes(word))).sort(compare);
    const pages = Math.max(1, Math.ceil(rows.length / perPage));
    page = Math.min(page, pages - 1);
    const lines = [];
    rows.slice(page * perPage, (page + 1) * perPage).forEach((row) => {
      const line = make("tr");
      columns.forEach((column, index) => {
        const cell = line.appendChild(make("td", index ? text(column, row) : null, column.align === "right" ? "right" : ["configuration", "reason"].includes(column.title) ? column.title : ""));
        if (index) return;
        const button = cell.appendChild(make("button", text(column, row), "number"));
        button.type = "button";
        button.setAttribute("aria-expanded", String(opened.has(row)));
        button.title = "show every value of this trial";
        button.addEventListener("click", () => { opened.has(row) ? opened.delete(row) : opened.add(row); show(); });
      });
      lines.push(line);
      if (opened.has(row)) lines.push(details(row));
    });
    body.replaceChildren(...lines);
    find("found").textContent = `${rows.length.toLocaleString("en")} of ${length.toLocaleString("en")} trials`;
    find("page").textContent = `page ${page + 1} of ${pages}`;
    find("previous").disabled = page === 0;
    find("next").disabled = page >= pages - 1;
    head.querySelectorAll("th").forEach((cell, index) =>
      cell.setAttribute("aria-sort", index !== sorted.column ? "none" : sorted.up ? "ascending" : "descending"));
  };

  const top = head.appendChild(make("tr"));
  columns.forEach((column, index) => {
    const cell = top.appendChild(make("th", null, column.align === "right" ? "right" : ""));
    cell.scope = "col";
    const button = cell.appendChild(make("button", column.title));
    button.type = "button";
    button.addEventListener("click", () => {
      sorted = { column: index, up: sorted.column === index ? !sorted.up : true };
      page = 0;
      show();
    });
  });
  const fillChoices = (select, values) =>
    [...new Set(values)].filter(Boolean).sort().forEach((value) => { select.appendChild(make("option", value)).value = value; });
  fillChoices(state, states);
  fillChoices(method, data.methods);
  [search, state, method, only].forEach((control) => control.addEventListener("input", () => { page = 0; show(); }));
  find("previous").addEventListener("click", () => { page -= 1; show(); });
  find("next").addEventListener("click", () => { page += 1; show(); });
  show();
});
