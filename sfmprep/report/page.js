"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // ------------------------------------------------------------------- figures
  const config = { displaylogo: false, responsive: true, displayModeBar: false };

  function draw(id, traces, layout) {
    const element = document.getElementById(id);
    if (!element) return;
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("ink"), family: getComputedStyle(document.body).fontFamily },
      margin: { l: 50, r: 10, t: 30, b: 42 }, showlegend: false,
    };
    Plotly.react(element, traces, { ...base, ...layout }, config);
  }
  const axis = (title, more) => ({ title: { text: title, font: { size: 12 } },
    gridcolor: colour("grid"), zerolinecolor: colour("grid"), automargin: true, ...more });

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  function drawScene() {
    const scene = data.scene;
    if (!scene) return;
    const places = new Int16Array(bytes(scene.points).buffer);
    const rgb = bytes(scene.colours);
    const count = places.length / 3;
    const [x, y, z] = [0, 1, 2].map((k) => Float32Array.from({ length: count },
      (_, i) => scene.low[k] + scene.step * places[3 * i + k]));
    const colours = Array.from({ length: count },
      (_, i) => `rgb(${rgb[3 * i]},${rgb[3 * i + 1]},${rgb[3 * i + 2]})`);
    const traces = [{ type: "scatter3d", mode: "markers", x, y, z, hoverinfo: "skip",
      marker: { size: 2.2, color: colours, opacity: 1 } }];
    for (const [outlier, ink] of [[false, colour("accent")], [true, colour("failed")]]) {
      const rows = scene.names.map((_, i) => i).filter((i) => scene.outlier[i] === outlier);
      if (!rows.length) continue;
      const path = [0, 1, 2, 0, 3, 4, 0, null, 1, 2, 3, 4, 1, null];
      const line = [0, 1, 2].map((k) => rows.flatMap((i) =>
        path.map((corner) => corner === null ? null : scene.frusta[i][corner][k])));
      const centre = [0, 1, 2].map((k) => rows.map((i) => scene.frusta[i][0][k]));
      traces.push({ type: "scatter3d", mode: "lines", x: line[0], y: line[1], z: line[2],
        hoverinfo: "skip", connectgaps: false, line: { color: ink, width: 2 } });
      traces.push({ type: "scatter3d", mode: "markers", x: centre[0], y: centre[1],
        z: centre[2], text: rows.map((i) => safe(scene.names[i])),
        hovertemplate: "%{text}<extra></extra>", marker: { size: 3, color: ink } });
    }
    const extent = scene.high.map((high, k) => high - scene.low[k]);
    const longest = Math.max(...extent);
    const side = (k) => ({ range: [scene.low[k], scene.high[k]], title: { text: "xyz"[k] },
      gridcolor: colour("grid"), zeroline: false, showbackground: false,
      showspikes: false, color: colour("soft") });
    draw("scene", traces, { margin: { l: 0, r: 0, t: 0, b: 0 }, scene: {
      xaxis: side(0), yaxis: side(1), zaxis: side(2), aspectmode: "manual",
      aspectratio: Object.fromEntries(
        extent.map((length, k) => ["xyz"[k], 1.6 * length / longest])),
      dragmode: "turntable",
      camera: startCamera(scene, extent) } });
  }

  // seen from where the photographs were taken, a little from above, all cameras in view
  function startCamera(scene, extent) {
    const unit = 1.6 / Math.max(...extent); // plotly's own, as of the aspect ratio
    const centre = scene.focus.map((f, k) => unit * (f - scene.low[k] - extent[k] / 2));
    const mean = [0, 1].map((k) =>
      scene.frusta.reduce((sum, corners) => sum + corners[0][k], 0) / scene.frusta.length);
    const from = mean.map((m, k) => m - scene.focus[k]);
    const length = Math.hypot(...from);
    const [x, y] = length > 0.1 * scene.radius
      ? from.map((v) => v / length) : [-0.6, -0.8];
    const figure = document.getElementById("scene");
    const narrow = Math.max(1, figure.clientHeight / figure.clientWidth);
    const away = 2.1 * unit * scene.radius * narrow;
    const point = (values) => Object.fromEntries(values.map((v, k) => ["xyz"[k], v]));
    return { up: point([0, 0, 1]), center: point(centre),
      eye: point([centre[0] + 0.87 * away * x, centre[1] + 0.87 * away * y,
        centre[2] + 0.5 * away]) };
  }

  function drawMatrix() {
    const matrix = data.matrix;
    if (!matrix) return;
    const size = matrix.labels.length;
    const labels = matrix.labels.map(safe);
    const shown = (cell) => (cell ? Math.log10(cell) : null);
    const most = Math.max(...matrix.matches.flat());
    const ticks = [1, 10, 100, 1000, 10000]
      .flatMap((t) => [t, 2 * t, 5 * t]).filter((t) => t <= most);
    const every = Math.ceil(size / 12);
    const places = labels.map((_, i) => i).filter((i) => i % every === 0);
    const names = { tickvals: places, ticktext: places.map((i) => safe(shorten(matrix.labels[i]))),
      showgrid: false, zeroline: false };
    // a phone has no room for names below and a scale beside
    const narrow = document.getElementById("matrix").clientWidth < 480;
    const scale = narrow ? { orientation: "h", y: -0.05, yanchor: "top" } : {};
    draw("matrix", [{ type: "heatmap", z: matrix.matches.map((row) => row.map(shown)),
      colorscale: "Viridis", hoverongaps: false,
      customdata: matrix.matches.map((row, i) =>
        row.map((cell, j) => [labels[i], labels[j], cell])),
      hovertemplate: "%{customdata[0]}<br>%{customdata[1]}<br>%{customdata[2]} matches"
        + (matrix.block > 1 ? ` at most, in blocks of ${matrix.block}` : "")
        + "<extra></extra>",
      colorbar: { title: { text: "matches" }, tickvals: ticks.map(Math.log10),
        ticktext: ticks.map(String), thickness: 12, ...scale } }],
    { xaxis: axis("", { ...names, constrain: "domain", tickangle: 45,
        showticklabels: !narrow }),
      yaxis: axis("", { ...names, autorange: "reversed", scaleanchor: "x",
        constrain: "domain" }) });
  }

  function drawHistogram(id, title, xTitle, options = {}) {
    const histogram = data.histograms[id];
    if (!histogram) return;
    let { edges, counts } = histogram;
    let last = counts.length;
    while (last > 1 && !counts[last - 1]) last -= 1;
    counts = counts.slice(0, last);
    const total = counts.reduce((sum, count) => sum + count, 0);
    const whole = options.whole;
    const label = (i) => (whole && edges[i + 1] - edges[i] === 1 ? `${edges[i]}`
      : `${edges[i]} to ${whole ? edges[i + 1] - 1 : edges[i + 1]}`);
    const bins = counts.map((_, i) => i);
    const ticks = bins.filter((i) => i % Math.ceil(bins.length / 8) === 0);
    draw(id, [{ type: "bar", x: bins, y: counts, marker: { color: colour("accent") },
      customdata: counts.map((count, i) => [label(i), (100 * count / total).toFixed(1)]),
      hovertemplate: "%{customdata[0]}: %{y:,} (%{customdata[1]} %)<extra></extra>" }],
    { title: { text: title, font: { size: 14 } }, bargap: 0.08, yaxis: axis(""),
      xaxis: axis(xTitle, { showgrid: false, zeroline: false, tickangle: 0,
        // a whole number is its bin's middle, any other edge its left side
        tickvals: ticks.map((i) => (whole ? i : i - 0.5)),
        ticktext: ticks.map((i) => `${edges[i]}`) }) });
  }

  function drawField(camera, number) {
    const field = camera.residuals;
    const [columns, rows] = [field.num_columns, field.num_rows];
    const [width, height] = [camera.width / columns, camera.height / rows];
    const lengths = field.mean_px.map(([x, y], i) =>
      (field.num_observations[i] >= 10 ? Math.hypot(x, y) : null));
    const most = Math.max(0.2, ...lengths.map((v) => v ?? 0));
    const grow = 0.9 * Math.min(width, height) / most;
    const [x, y] = [[], []];
    field.mean_px.forEach(([dx, dy], i) => {
      if (lengths[i] === null) return;
      const at = [(i % columns + 0.5) * width, (Math.floor(i / columns) + 0.5) * height];
      x.push(at[0], at[0] + dx * grow, null);
      y.push(at[1], at[1] + dy * grow, null);
    });
    const grid = (list) => Array.from({ length: rows },
      (_, row) => list.slice(row * columns, (row + 1) * columns));
    draw(`field${number}`, [
      { type: "heatmap", z: grid(lengths), customdata: grid(field.num_observations),
        x0: width / 2, dx: width, y0: height / 2, dy: height, zmin: 0,
        zmax: Math.max(1, most), hoverongaps: false,
        colorscale: [[0, "#3b6fb6"], [0.35, "#7fc8a9"], [0.6, "#f2cf5b"], [1, "#d1495b"]],
        hovertemplate: "%{z:.2f} px, mean of %{customdata} points<extra></extra>",
        colorbar: { title: { text: "px" }, thickness: 10 } },
      { type: "scatter", mode: "lines", x, y, hoverinfo: "skip",
        line: { color: "#111", width: 1.3 } },
    ], { margin: { l: 46, r: 10, t: 10, b: 40 },
      xaxis: axis("x, px", { range: [0, camera.width], constrain: "domain", showgrid: false }),
      yaxis: axis("y, px", { range: [camera.height, 0], scaleanchor: "x",
        constrain: "domain", showgrid: false }) });
  }

  function drawAll() {
    drawScene();
    drawMatrix();
    drawHistogram("errors", "Reprojection errors", "px from where a point should be");
    drawHistogram("tracks", "Photographs that see a point", "photographs", { whole: true });
    drawHistogram("angles", "Angle between the rays of a point", "degrees");
    data.cameras.forEach(drawField);
  }

  // plotly reads a little HTML in labels
  function safe(name) {
    return name.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }
  function shorten(name) {
    return name.length > 18 ? `…${name.slice(-17)}` : name;
  }

  // --------------------------------------------------------------------- table
  const columns = [
    ["name", ""], ["status", ""], ["keypoints", ""], ["pairs", "verified"],
    ["matches", "verified"], ["points", "seen"], ["error", "px"], ["coverage", "of image"],
    ["sharpness", "of others"], ["rotation ±", "degrees"], ["position ±", "world units"], ["reason", ""],
  ];
  const [NAME, STATUS, COVERAGE, SHARPNESS, REASON] = [0, 1, 7, 8, 11];
  const PAGE = 100;
  const state = { sort: NAME, down: false, limit: PAGE, query: "" };
  const used = columns.map((_, k) =>
    data.images.some((row) => row[k] !== null && row[k] !== ""));

  const shownColumns = columns.map((_, k) => k).filter((k) => used[k]);

  function cellText(row, k) {
    const value = row[k];
    if (value === null) return "";
    if (k === STATUS) return data.statuses[value];
    if (k === COVERAGE || k === SHARPNESS) return `${Math.round(100 * value)} %`;
    if (typeof value !== "number") return value;
    return Number.isInteger(value) ? value.toLocaleString("en") : String(value);
  }

  function drawTable() {
    const head = document.querySelector("#table thead");
    const body = document.querySelector("#table tbody");
    head.replaceChildren(head.insertRow());
    columns.forEach(([title, unit], k) => {
      if (!used[k]) return;
      const cell = document.createElement("th");
      cell.scope = "col";
      if (k === REASON) cell.className = "reason";
      if (state.sort === k) cell.ariaSort = state.down ? "descending" : "ascending";
      const button = Object.assign(document.createElement("button"), { type: "button",
        textContent: title + (state.sort === k ? (state.down ? " ▾" : " ▴") : "") });
      button.append(Object.assign(document.createElement("small"), { textContent: unit }));
      button.onclick = () => {
        state.down = state.sort === k ? !state.down : false;
        state.sort = k;
        drawTable();
        document.querySelectorAll("#table th button")[shownColumns.indexOf(k)].focus();
      };
      cell.append(button);
      head.rows[0].append(cell);
    });
    const query = state.query.toLowerCase();
    const found = data.images.filter((row) => !query || [NAME, STATUS, REASON].some(
      (k) => cellText(row, k).toLowerCase().includes(query)));
    const order = (a, b) => {
      const [p, q] = [a[state.sort], b[state.sort]];
      if (p === q) return 0;
      if (p === null || q === null) return p === null ? 1 : -1; // unknown comes last
      const less = typeof p === "number" ? p < q : p.localeCompare(q, "en",
        { numeric: true }) < 0;
      return less === state.down ? 1 : -1;
    };
    found.sort(order);
    body.replaceChildren(...found.slice(0, state.limit).map((row) => {
      const line = document.createElement("tr");
      if (row[STATUS] !== "registered") line.className = "out";
      columns.forEach((_, k) => {
        if (!used[k]) return;
        const cell = line.insertCell();
        cell.textContent = cellText(row, k);
        if (k === REASON) cell.className = "reason";
      });
      return line;
    }));
    const shown = Math.min(found.length, state.limit);
    document.getElementById("shown").textContent =
      `${shown} of ${data.num_images} shown` +
      (data.images.length < data.num_images
        ? `; the page knows ${data.images.length}, report.json all` : "");
    document.getElementById("more").hidden = shown === found.length;
  }

  document.getElementById("search").oninput = (event) => {
    state.query = event.target.value;
    drawTable();
  };
  document.getElementById("more").onclick = () => {
    state.limit += 10 * PAGE;
    drawTable();
  };
  dark.addEventListener("change", drawAll);
  drawAll();
  drawTable();
})();
