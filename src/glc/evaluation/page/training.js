(function () {
  const store = JSON.parse(document.getElementById("training-data").textContent);
  const byId = (key) => document.getElementById(key);
  const count = store.runs.length;
  runCount = count;
  document.body.classList.toggle("many", count > FEW);
  const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
  const SAVED = "glcReport";

  /* What the reader chose. It survives a reload, in the history's entry: a file has no other storage that is safe. */
  const state = {
    hidden: [], smooth: "0", xLog: false, yLog: false, clip: false, rate: "mean", join: "run", find: "",
    panel: {}, sort: null, paused: false, large: [], closed: matchMedia("(max-width: 60rem)").matches ? ["controls"] : [],
    ...((history.state || {})[SAVED] || {}),
  };
  const hidden = new Set(state.hidden);
  const save = () => {
    state.hidden = [...hidden];
    state.scroll = [window.scrollY, byId("run-list").scrollTop];
    state.focus = document.activeElement ? document.activeElement.id : "";
    state.large = charts.filter((chart) => chart.host.classList.contains("large")).map((chart) => chart.spec.id);
    history.replaceState({ ...(history.state || {}), [SAVED]: state }, "");
  };

  let lit = null;
  const unique = (run) => store.runs.filter((other) => other.short === run.short).length === 1;
  const labels = store.runs.map((run) => (unique(run) ? run.short : run.name));
  const shown = (run) => !hidden.has(store.runs[run].name);
  const view = () => ({ xLog: state.xLog, yLog: state.yLog, smooth: Number(state.smooth), clip: state.clip, lit });
  const charts = [];
  const visible = new Set();
  const stale = new Set();

  /* Charts -------------------------------------------------------------------------------------- */

  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const chart = charts.find((each) => each.host === entry.target);
        if (entry.isIntersecting) {
          visible.add(chart);
          if (stale.delete(chart)) chart.draw(view());
        } else visible.delete(chart);
      }
    },
    { rootMargin: "300px" },
  );

  function redraw() {
    for (const chart of charts) {
      if (visible.has(chart)) chart.draw(view());
      else stale.add(chart);
    }
  }

  function highlight(run) {
    lit = run;
    for (const chart of visible) if (!stale.has(chart)) chart.light(run);
  }

  function add(parent, spec) {
    const chart = new Chart(spec);
    charts.push(chart);
    stale.add(chart);
    if (state.large.includes(spec.id)) chart.host.querySelector(".expand").click();
    parent.append(chart.host);
    watcher.observe(chart.host);
  }

  /* The lines of a chart of values over steps: one per run, and one per rate point for "all". */
  function curves(chart) {
    const keys = Object.keys(chart.variants);
    const chosen = state.rate === "all" ? keys.filter((key) => key !== "mean" || keys.length === 1) : [state.rate];
    const lines = [];
    for (let run = 0; run < count; run += 1) {
      if (!shown(run)) continue;
      for (const variant of keys.length === 1 ? keys : chosen) {
        const found = (store.series[chart.variants[variant]] || {})[run];
        if (!found) continue;
        const many = keys.length > 1 && chosen.length > 1;
        lines.push({
          run,
          label: many ? `${labels[run]}, rate point ${variant}` : labels[run],
          x: store.steps[found[0]],
          y: found[1],
          dash: many ? DASHES[Number(variant) % DASHES.length] : "",
        });
      }
    }
    return lines;
  }

  /* Rate-distortion: a line joins the rate points of a run, or the runs at a rate point. */
  function rateLines(chart) {
    const about = (each) => [
      ["rate point", String(each.point)],
      ...(each.lambda === null ? [] : [["lambda", formatted(each.lambda)]]),
      ["bpp", formatted(each.bpp)],
      [chart.title, formatted(each.value)],
      ["step", String(each.step)],
    ];
    const points = chart.points.filter((each) => shown(each.run));
    const groups = new Map();
    for (const each of points) {
      const key = state.join === "run" ? each.run : each.point;
      groups.set(key, [...(groups.get(key) || []), each]);
    }
    const lines = [];
    for (const [key, group] of groups) {
      const sorted = group.toSorted((a, b) => a.bpp - b.bpp);
      if (state.join === "run") {
        lines.push({
          run: key, label: labels[key], dash: "",
          x: sorted.map((each) => each.bpp), y: sorted.map((each) => each.value), about: (i) => about(sorted[i]),
        });
      } else {
        /* The joining line has the first run's colour, each marker that of its own. */
        lines.push({
          run: sorted[0].run, label: `rate point ${key}`, dash: DASHES[key % DASHES.length],
          x: sorted.map((each) => each.bpp), y: sorted.map((each) => each.value),
          about: (i) => [["run", labels[sorted[i].run]], ...about(sorted[i])],
        });
      }
    }
    return lines;
  }

  function histogramLines(chart) {
    return Object.entries(chart.runs)
      .filter(([run]) => shown(Number(run)))
      .map(([run, [x, y, step]]) => ({
        run: Number(run), label: `${labels[run]}, step ${step}`, x, y, dash: "",
      }));
  }

  for (const group of document.querySelectorAll("[data-charts]")) {
    for (const chart of store.charts.filter((each) => each.group === group.dataset.charts)) {
      add(group, { id: chart.key, title: chart.title, about: chart.key, shift: 1, lines: () => curves(chart) });
    }
  }
  for (const chart of store.rates) {
    add(byId("rate-charts"), { id: `rate ${chart.title}`, title: `${chart.title} over bpp`, markers: true, lines: () => rateLines(chart) });
  }
  for (const chart of store.histograms) {
    add(byId("histogram-charts"), {
      id: `histogram ${chart.title}`, title: chart.title, unit: "codeword", shift: 1, about: "share of the uses, by rank of the codeword",
      lines: () => histogramLines(chart),
    });
  }

  /* Controls ------------------------------------------------------------------------------------ */

  function bind(key, name, property, event, then) {
    const input = byId(key);
    if (!input) return;
    input[property] = state[name];
    input.addEventListener(event, () => {
      state[name] = input[property];
      then();
      save();
    });
  }

  const smoothText = () => {
    byId("smooth-value").textContent = Number(state.smooth).toFixed(2);
  };
  bind("x-log", "xLog", "checked", "change", redraw);
  bind("y-log", "yLog", "checked", "change", redraw);
  bind("clip", "clip", "checked", "change", redraw);
  bind("rate", "rate", "value", "change", redraw);
  bind("join", "join", "value", "change", redraw);
  bind("smooth", "smooth", "value", "input", () => {
    smoothText();
    redraw();
  });
  bind("find", "find", "value", "input", filter);
  smoothText();

  function filter() {
    const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    for (const chart of charts) {
      const text = `${chart.spec.title} ${chart.spec.about || ""}`.toLowerCase();
      chart.host.hidden = !words.every((word) => text.includes(word));
    }
    for (const group of document.querySelectorAll(".charts")) {
      const none = [...group.children].every((host) => host.hidden);
      group.closest("section").classList.toggle("filtered", Boolean(words.length) && none);
    }
  }
  filter();

  for (const part of document.querySelectorAll("aside details")) {
    part.open = !state.closed.includes(part.id);
    part.addEventListener("toggle", () => {
      state.closed = state.closed.filter((id) => id !== part.id).concat(part.open ? [] : [part.id]);
      save();
    });
  }

  /* The list of runs is the legend of all charts. */
  const list = byId("run-list");
  const stages = new Set(store.runs.map((run) => run.stage)).size;
  const boxes = store.runs.map((run, i) => {
    if (stages > 1 && (i === 0 || store.runs[i - 1].stage !== run.stage)) {
      list.append(Object.assign(document.createElement("h3"), { textContent: run.stage || "unknown stage" }));
    }
    const row = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: shown(i), id: `run-${i}` });
    const swatch = document.createElement("i");
    swatch.style.setProperty("--own", colourOf(i));
    const name = Object.assign(document.createElement("span"), { textContent: run.short, title: run.name });
    const progress = Object.assign(document.createElement("small"), { textContent: run.done });
    row.append(box, swatch, name, progress);
    row.addEventListener("mouseenter", () => highlight(i));
    row.addEventListener("mouseleave", () => highlight(null));
    box.addEventListener("focus", () => highlight(i));
    box.addEventListener("blur", () => highlight(null));
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(run.name);
      else hidden.add(run.name);
      chosen();
    });
    list.append(row);
    return box;
  });

  function chosen() {
    boxes.forEach((box, i) => {
      box.checked = shown(i);
      const row = byId("run-table").tBodies[0].querySelector(`[data-run="${i}"]`);
      if (row) row.classList.toggle("off", !shown(i));
    });
    redraw();
    save();
  }
  byId("all-runs").addEventListener("click", () => {
    hidden.clear();
    chosen();
  });
  byId("no-runs").addEventListener("click", () => {
    store.runs.forEach((run) => hidden.add(run.name));
    chosen();
  });
  byId("find-run").addEventListener("input", (event) => {
    const word = event.target.value.toLowerCase();
    boxes.forEach((box, i) => {
      box.parentElement.hidden = !store.runs[i].name.toLowerCase().includes(word);
    });
  });

  /* The table of runs: sorted by a click on its header. */
  const table = byId("run-table");
  const heads = [...table.tHead.rows[0].cells];

  function sort() {
    const [column, descending] = state.sort || [null, false];
    heads.forEach((head, i) => {
      head.setAttribute("aria-sort", i !== column ? "none" : descending ? "descending" : "ascending");
    });
    const body = table.tBodies[0];
    const value = (row) => (column === null ? row.dataset.run : row.cells[column].dataset.value ?? row.cells[column].textContent);
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = Number.isNaN(Number(x)) || Number.isNaN(Number(y)) ? x.localeCompare(y) : Number(x) - Number(y);
      return descending ? -order : order;
    });
    body.append(...rows);
  }
  heads.forEach((head, i) => {
    head.querySelector("button").addEventListener("click", () => {
      state.sort = state.sort && state.sort[0] === i ? (state.sort[1] ? null : [i, true]) : [i, false];
      sort();
      save();
    });
  });
  for (const swatch of table.querySelectorAll("i[data-run]")) swatch.style.setProperty("--own", colourOf(Number(swatch.dataset.run)));
  sort();

  /* Images -------------------------------------------------------------------------------------- */

  const box = byId("panel-slider");
  if (box) {
    const slider = divider(box);
    const sides = ["left", "right"];
    const parts = ["run", "step", "column"];
    const menu = (side, part) => slider.find(`${side}-${part}`);
    const runsWithPanels = [...new Set(store.panels.map((panel) => panel.run))];
    const images = [...new Set(store.panels.map((panel) => panel.image))].sort((a, b) => a - b);
    const chosenPanel = state.panel;
    if (chosenPanel.position) slider.position.value = chosenPanel.position;
    slider.move();
    /* Runs are remembered by name: their numbers change when another run starts. */
    const saved = (side, part) =>
      part === "run" ? store.runs.findIndex((run) => run.name === chosenPanel[`${side}-run`]) : chosenPanel[`${side}-${part}`];

    function update(event) {
      const image = slider.find("image");
      fillMenu(image, images.map((i) => [i, String(i)]), event ? image.value : chosenPanel.image);
      chosenPanel.image = image.value;
      let size = null;
      let thumbs = [];
      for (const side of sides) {
        const lastRun = runsWithPanels.length - 1;
        const keep = (part) => (event ? menu(side, part).value : saved(side, part));
        fillMenu(menu(side, "run"), runsWithPanels.map((run) => [run, labels[run]]), keep("run"), lastRun);
        const run = Number(menu(side, "run").value);
        const panels = store.panels.filter((panel) => panel.run === run && panel.image === Number(image.value));
        /* "last" follows a run that trains. */
        const steps = panels.map((panel) => panel.step).sort((a, b) => a - b);
        fillMenu(menu(side, "step"), [["last", "last"], ...steps.map((step) => [step, String(step)])], keep("step"));
        const step = menu(side, "step").value === "last" ? steps[steps.length - 1] : Number(menu(side, "step").value);
        const panel = panels.find((each) => each.step === step);
        const columns = panel ? panel.columns : [];
        fillMenu(menu(side, "column"), columns.map((column) => [column.name, column.title]), keep("column"), side === "left" ? 0 : columns.length - 1);
        const column = columns.find((each) => each.name === menu(side, "column").value);
        slider.show(side, column && { data: store.images[column.image], caption: column.original ? column.title : `${labels[run]}, step ${step}, ${column.caption}` }, "no such image");
        if (panel) size = size || panel;
        if (side === "right") thumbs = columns.map((each) => thumbnail(each, each === column));
        for (const part of parts) chosenPanel[`${side}-${part}`] = part === "run" ? store.runs[run].name : menu(side, part).value;
      }
      slider.find("thumbs").replaceChildren(...thumbs);
      if (size) slider.resize(size.width, size.height, Math.max(size.width, 540));
      if (event) save();
    }
    /* The images of the strip at the right: a press shows one in the slider. */
    function thumbnail(column, pressed) {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.setAttribute("aria-pressed", String(pressed));
      const caption = Object.assign(document.createElement("span"), { textContent: column.brief });
      button.append(Object.assign(new Image(), { src: store.images[column.image], alt: "" }), caption);
      button.addEventListener("click", (event) => {
        menu("right", "column").value = column.name;
        update(event);
        slider.find("thumbs").querySelector('[aria-pressed="true"]').focus({ preventScroll: true });
      });
      return button;
    }

    for (const name of ["image", ...sides.flatMap((side) => parts.map((part) => `${side}-${part}`))]) {
      slider.find(name).addEventListener("change", update);
    }
    slider.position.addEventListener("change", () => {
      chosenPanel.position = slider.position.value;
      save();
    });
    update(null);
  }

  /* Live mode: the page reloads itself while the command rewrites it -------------------------------- */

  let active = 0;
  let pressed = false;
  for (const name of ["pointerdown", "pointermove", "keydown", "wheel", "input"]) {
    window.addEventListener(name, () => { active = Date.now(); }, { passive: true });
  }
  window.addEventListener("pointerdown", () => { pressed = true; });
  for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, () => { pressed = false; });
  const period = Number(document.body.dataset.reload || 0);
  const live = byId("live");
  if (period && live) {
    const button = live.querySelector("button");
    const text = () => {
      live.classList.toggle("paused", state.paused);
      live.querySelector("span").textContent = state.paused ? "live, paused" : `live, every ${period} s`;
      button.textContent = state.paused ? "resume" : "pause";
    };
    button.addEventListener("click", () => {
      state.paused = !state.paused;
      text();
      save();
    });
    text();
    live.hidden = false;
    const opened = Date.now();
    setInterval(() => {
      const due = Date.now() - opened >= 1000 * period && Date.now() - active > 1500;
      if (!due || state.paused || pressed || document.hidden) return;
      save();
      location.reload();
    }, Math.min(1000, 500 * period));
  }

  if (state.scroll) {
    history.scrollRestoration = "manual";
    window.scrollTo(0, state.scroll[1] === undefined ? 0 : state.scroll[0]);
    list.scrollTop = state.scroll[1] || 0;
    if (state.focus && byId(state.focus)) byId(state.focus).focus({ preventScroll: true });
  }
  chosen();
  window.addEventListener("pagehide", save);
  let resizing = 0;
  window.addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(redraw, 100);
  });
})();
