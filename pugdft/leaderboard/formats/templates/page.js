"use strict";
{
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  const root = document.documentElement;

  root.classList.add("scripted");
  for (const button of all("button[disabled]")) button.disabled = false;
  for (const hidden of all("#theme, #controls")) hidden.hidden = false;

  // Theme: the system's until somebody chooses.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("pugdft-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const showTheme = () => { one("theme").textContent = isDark() ? "Light theme" : "Dark theme"; };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  one("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("pugdft-theme", root.dataset.theme); } catch { /* a page without storage */ }
    showTheme();
  });
  dark.addEventListener("change", showTheme);
  showTheme();

  // Sorting: numbers as numbers, nothing behind everything, equals in the order they had.
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const compare = (a, b) => {
    for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i] - b[i];
    return 0;
  };
  const keyOf = (body, column, text) => {
    const cell = body.rows[0].cells[column];
    if (text) return cell.scope === "row" ? body.dataset.label : cell.textContent.trim();
    return cell.dataset.sort ? cell.dataset.sort.split(" ").map(Number) : "";
  };
  const sortBy = (heading) => {
    const table = heading.closest("table");
    const now = heading.getAttribute("aria-sort");
    const next = now === "none" ? heading.dataset.first : now === "ascending" ? "descending" : "ascending";
    for (const other of all("thead th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const text = heading.classList.contains("text");
    const keyed = [...table.tBodies].map((body) => [keyOf(body, heading.dataset.column, text), body]);
    keyed.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (text ? collator.compare(a, b) : compare(a, b));
    });
    table.append(...keyed.map(([, body]) => body));
  };
  for (const heading of all("thead th[aria-sort]"))
    heading.querySelector(".sort").addEventListener("click", () => sortBy(heading));

  // Details: with a script a button of the row opens them, so the row below needs no summary.
  for (const button of all("button.more")) {
    const row = one(button.getAttribute("aria-controls"));
    row.hidden = true;
    row.querySelector("details").open = true;
    button.addEventListener("click", () => {
      row.hidden = !row.hidden;
      button.setAttribute("aria-expanded", String(!row.hidden));
    });
  }

  // Filters.
  const bodies = all("tbody[data-entry]");
  const labels = new Map(bodies.map((body) => [body, body.dataset.label.toLowerCase()]));
  const series = new Map();
  for (const shape of all("[data-series]"))
    series.set(shape.dataset.series, [...(series.get(shape.dataset.series) ?? []), shape]);
  const each = (id, change) => (series.get(id) ?? []).forEach(change);
  const legend = new Map(all("button.series").map((button) => [button.dataset.entry, button]));
  const update = () => {
    const words = one("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [dataset, model] = [one("dataset").value, one("model").value];
    let shown = 0;
    for (const group of all("section.group")) {
      const fits = (!dataset || group.dataset.dataset === dataset) && (!model || group.dataset.model === model);
      let inGroup = 0;
      for (const part of all(".measured, .reported", group)) {
        let inPart = 0;
        for (const body of all("tbody[data-entry]", part)) {
          const keep = fits && words.every((word) => labels.get(body).includes(word));
          body.hidden = !keep;
          each(body.dataset.entry, (shape) => shape.classList.toggle("filtered", !keep));
          if (legend.has(body.dataset.entry)) legend.get(body.dataset.entry).parentElement.hidden = !keep;
          inPart += keep;
        }
        part.hidden = !inPart;
        inGroup += inPart;
      }
      group.hidden = !inGroup;
      const link = document.querySelector(`nav [data-group="${group.id}"]`);
      if (link) link.hidden = !inGroup;
      shown += inGroup;
    }
    one("none").hidden = shown > 0;
    one("count").textContent = `${shown} of ${bodies.length} ${bodies.length === 1 ? "entry" : "entries"}`;
  };
  if (one("controls")) {
    one("controls").addEventListener("input", update);
    one("controls").addEventListener("submit", (event) => event.preventDefault());
    one("reset").addEventListener("click", () => { one("controls").reset(); update(); one("filter").focus(); });
    update();
  }

  // A table that goes on to the right fades there.
  for (const scroll of all(".scroll")) {
    const fade = () =>
      scroll.classList.toggle("more-right", scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 2);
    scroll.addEventListener("scroll", fade, { passive: true });
    new ResizeObserver(fade).observe(scroll);
  }

  // Legend: a series on and off, and one among many while somebody points at it or at its row.
  for (const [id, button] of legend)
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      each(id, (shape) => shape.classList.toggle("off", !on));
    });
  const focus = (id) => {
    for (const chosen of all(".charts .chosen")) chosen.classList.remove("chosen");
    for (const charts of all(".charts.choosing")) charts.classList.remove("choosing");
    each(id, (shape) => {
      shape.classList.add("chosen");
      shape.closest(".charts").classList.add("choosing");
    });
  };
  for (const type of ["pointerover", "focusin"])
    document.addEventListener(type, (event) => focus(event.target.closest?.("[data-entry]")?.dataset.entry));
}
