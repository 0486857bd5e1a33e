"use strict";
/* What the page does with the data it carries: draws plots by their specifications, shows one bundle at a time, and
   sorts and searches its layers. Everything is put in as text, never as HTML. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  const drawings = [];

  const rowsOf = (columns) => {
    const keys = Object.keys(columns);
    return (columns[keys[0]] ?? []).map((_, at) => Object.fromEntries(keys.map((key) => [key, columns[key][at]])));
  };

  const draw = (figure, spec, values) => {
    const whole = { ...spec, data: { values }, background: "transparent", autosize: { type: "fit", contains: "padding" } };
    const theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const actions = { export: true, source: false, compiled: false, editor: false };
    const options = { renderer: "svg", actions, tooltip: { theme }, downloadFileName: spec.description };
    figure.dataset.rows = values.length;
    if (!values.length) return figure.querySelector(".canvas").replaceChildren(); // an axis of nothing has no ends
    drawings.push(vegaEmbed(figure.querySelector(".canvas"), whole, options).catch((error) => console.error(error)));
  };

  const fill = (select, options) => {
    select.replaceChildren(...Object.entries(options).map(([value, text]) => new Option(text, value)));
  };

  /* Accuracy against cost */
  const tradeoff = document.querySelector('[data-plot="tradeoff"]');
  if (tradeoff) {
    const [task, cost] = [byId("task"), byId("cost")];
    const show = () => {
      const points = data.points.filter((item) => item.task === task.value && item[cost.value] !== null && item.accuracy !== null);
      draw(tradeoff, data.specs[`tradeoff ${task.value} ${cost.value}`], points);
    };
    const choose = () => { fill(cost, data.costs[task.value]); show(); };
    task.addEventListener("change", choose);
    cost.addEventListener("change", show);
    choose();
  }

  /* Layers of one file: table and bars, sorted and searched together */
  const PLAIN = [["place", "#"], ["layer", "layer"], ["kind", "kind"], ["channels_in", "in"], ["channels_out", "out"], ["weights", "weights"]];
  const si = (value) => {
    for (const [factor, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(value) >= 0.9995 * factor) return Number((value / factor).toPrecision(3)) + unit;
    }
    return String(Number(value.toPrecision(3)));
  };
  const shown = (value, unit) => {
    if (value === null || value === undefined) return "–";
    return unit === "B" ? `${si(value)}B`.replace(/([kMG]?B)$/, " $1") : `${si(value)} ${unit}`.trim();
  };
  const compare = (key, sign) => (a, b) => {
    const [x, y] = [a[key] ?? null, b[key] ?? null];
    if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last, either way
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  };

  const layersOf = (section, entry) => {
    const [file, search] = [section.querySelector(".file-choice"), section.querySelector(".search")];
    const [head, body] = [section.querySelector("thead"), section.querySelector(".layer-table tbody")];
    const state = { key: "place", sign: 1, rows: [], metrics: [] };

    const cell = (row, key, unit, top) => {
      const made = document.createElement(key === "layer" ? "th" : "td");
      const value = row[key];
      made.textContent = key === "place" ? value + 1 : typeof value === "string" ? value : shown(value, unit);
      made.className = key === "layer" ? "file" : key === "kind" ? "" : "number";
      if (key === "layer") made.scope = "row";
      if (top && value > 0) { made.classList.add("bar"); made.style.setProperty("--share", `${(100 * value) / top}%`); }
      return made;
    };

    const header = () => {
      const line = document.createElement("tr");
      for (const [key, title] of [...PLAIN, ...state.metrics.map((item) => [item.key, item.title])]) {
        const [place, button] = [document.createElement("th"), document.createElement("button")];
        place.scope = "col";
        if (!["layer", "kind"].includes(key)) place.className = "number";
        if (key === state.key) place.setAttribute("aria-sort", state.sign > 0 ? "ascending" : "descending");
        button.textContent = title;
        button.dataset.key = key;
        button.addEventListener("click", () => {
          const first = ["place", "layer", "kind"].includes(key) ? 1 : -1; // numbers: the largest first
          state.sign = state.key === key ? -state.sign : first;
          state.key = key;
          show();
          head.querySelector(`[data-key="${key}"]`).focus();
        });
        place.append(button);
        line.append(place);
      }
      head.replaceChildren(line);
    };

    const show = () => {
      const wanted = search.value.trim().toLowerCase();
      const rows = state.rows.filter((row) => `${row.layer} ${row.kind}`.toLowerCase().includes(wanted));
      rows.sort(compare(state.key, state.sign));
      section.querySelector(".count").textContent = `${rows.length} of ${state.rows.length} layers`;
      header();
      const tops = Object.fromEntries(state.metrics.map(({ key }) => [key, Math.max(0, ...state.rows.map((row) => row[key] ?? 0))]));
      body.replaceChildren(...rows.map((row) => {
        const line = document.createElement("tr");
        line.append(...PLAIN.map(([key]) => cell(row, key, "")), ...state.metrics.map((item) => cell(row, item.key, item.unit, tops[item.key])));
        return line;
      }));
      const placed = rows.map((row, place) => ({ ...row, place }));
      state.metrics.forEach((item, at) => draw(plot(`layers ${item.key}`), bars(item.key, at === 0), placed));
      roofline(rows);
    };

    const bars = (key, legend) => {
      const spec = data.specs[`layers ${key}`];
      const color = { ...spec.encoding.color, ...(legend ? {} : { legend: null }) }; // one legend for all of them
      return { ...spec, encoding: { ...spec.encoding, color } };
    };
    const plot = (name) => section.querySelector(`[data-plot="${name}"]`);
    const roofline = (rows) => {
      const placed = rows.filter((row) => row.gmacs_per_s && row.intensity);
      const possible = state.rows.some((row) => row.gmacs_per_s && row.intensity);
      plot("roofline").hidden = !possible;
      const roofs = placed.length ? entry.roofs[file.value] ?? [] : [];
      const spec = data.specs[roofs.length ? "roofline" : "roofline without roofs"];
      if (possible) draw(plot("roofline"), spec, [...placed, ...roofs]);
    };

    const open = () => {
      state.rows = rowsOf(entry.layers[file.value]);
      state.metrics = data.layerMetrics.filter(({ key }) => state.rows.some((row) => (row[key] ?? null) !== null));
      const lacking = data.layerMetrics.filter((item) => !state.metrics.includes(item));
      for (const item of data.layerMetrics) plot(`layers ${item.key}`).hidden = lacking.includes(item);
      const more = state.rows.some((row) => row.gmacs_per_s && row.intensity) ? [] : ["the roofline, which needs time and traffic of layers"];
      const names = [...lacking.map((item) => item.title), ...more];
      section.querySelector(".missing").textContent = names.length ? `Not measured for this file: ${names.join("; ")}.` : "";
      show();
    };

    let waiting;
    search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 120); });
    file.addEventListener("change", open);
    if (file.value) open();
  };

  /* One bundle at a time */
  const articles = [...document.querySelectorAll("article.entry")];
  const drawn = new Set();
  const showEntry = (index) => {
    articles.forEach((article, at) => { article.hidden = at !== index; });
    if (drawn.has(index)) return;
    drawn.add(index);
    const [article, entry] = [articles[index], data.entries[index]];
    layersOf(article.querySelector(".layers"), entry);
    const stages = article.querySelector('[data-plot="stages"]');
    if (stages) draw(stages, data.specs.stages, entry.shares);
    const steps = rowsOf(entry.training);
    for (const name of entry.series) {
      const figure = [...article.querySelectorAll(".plot")].find((item) => item.dataset.plot === `training ${name}`);
      draw(figure, data.specs[`training ${name}`], steps.filter((row) => row.series === name));
    }
  };
  const chooser = byId("entry");
  if (chooser) chooser.addEventListener("change", () => showEntry(Number(chooser.value)));
  showEntry(0);
  /* When all that is seen at first has been drawn, in milliseconds since the page was asked for. */
  Promise.all(drawings).then(() => { document.documentElement.dataset.drawnMs = performance.now(); });

  addEventListener("beforeprint", () => {
    for (const item of document.querySelectorAll("article:not([hidden]) details:not(.vega-embed details)")) item.open = true;
  });
})();
