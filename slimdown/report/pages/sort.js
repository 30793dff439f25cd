// Sorts the table by a click on a heading and filters it by a click on a value or by text.
(() => {
  const table = document.querySelector("table.findings"), body = table.tBodies[0], rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  const make = (tag, text, parent) => parent.appendChild(Object.assign(document.createElement(tag), { textContent: text }));
  const filters = document.createElement("div"), state = document.createElement("p");
  filters.className = "filters";
  state.className = "note";
  state.setAttribute("role", "status");
  table.parentElement.before(filters, state);

  // null is unknown and comes last in both directions
  const value = (row, i) => {
    const cell = row.cells[i], order = cell.dataset.order;
    if (order === undefined) return ["", "–"].includes(cell.textContent.trim()) ? null : cell.textContent.trim();
    return isNaN(order) ? order : Number(order);
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : typeof a !== typeof b ? (typeof a === "number" ? -1 : 1) : a.localeCompare(b, undefined, { numeric: true });
  let sorted = "";
  const sort = (i, direction) => {
    const keyed = rows.map(row => [value(row, i), row]);
    if (direction) keyed.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : direction * compare(a, b));
    body.append(...keyed.map(([, row]) => row));
    headings.forEach((th, j) => j === i && direction ? th.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending") : th.removeAttribute("aria-sort"));
    sorted = direction ? `Sorted by ${headings[i].querySelector("button").textContent}, ${direction > 0 ? "ascending" : "descending"}. ` : "";
    update();
  };
  headings.forEach((th, i) => {
    const button = document.createElement("button"), unit = th.querySelector("small");
    button.append(...[...th.childNodes].filter(node => node !== unit));
    th.prepend(button);
    const first = unit ? -1 : 1; // changes begin with the largest, all else with the smallest
    button.onclick = () => {
      const was = { ascending: 1, descending: -1 }[th.getAttribute("aria-sort")] || 0;
      sort(i, was === 0 ? first : was === first ? -first : 0);
    };
  });

  const choice = (row, i) => (row.cells[i].querySelector(".badge") ?? row.cells[i]).textContent.replace(/^[=↓↑?] /, "").trim();
  const chosen = new Map();
  const search = document.createElement("input");
  const update = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = (row.textContent + " " + row.title).toLowerCase();
      row.hidden = !words.every(word => text.includes(word)) || [...chosen].some(([i, kept]) => kept.size && !kept.has(choice(row, i)));
    }
    const n = rows.filter(row => !row.hidden).length;
    state.textContent = sorted + (n < rows.length ? `${n} of ${rows.length} rows are shown.` : "");
  };
  headings.forEach((th, i) => {
    const values = [...new Set(rows.map(row => choice(row, i)))];
    if (!("choice" in th.dataset) || values.length < 2 || values.length > 12) return;
    const group = make("span", th.querySelector("button").textContent, filters), chosenValues = new Set();
    chosen.set(i, chosenValues);
    for (const text of values.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }))) {
      const button = make("button", text || "–", group);
      button.setAttribute("aria-pressed", "false");
      button.onclick = () => {
        chosenValues.delete(text) || chosenValues.add(text);
        button.setAttribute("aria-pressed", chosenValues.has(text));
        update();
      };
    }
  });
  const label = make("label", "text", filters);
  search.type = "search";
  search.oninput = update;
  label.append(search);
})();
