// The table sorted by a click on a heading, filtered by a click on a value or by what is typed. Without it the page is the same, still.
(() => {
  const table = document.querySelector("table.findings"), body = table.tBodies[0], rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  const make = (tag, text, parent) => parent.appendChild(Object.assign(document.createElement(tag), { textContent: text }));
  const filters = document.createElement("div"), said = document.createElement("p");
  filters.className = "filters";
  said.className = "note";
  said.setAttribute("role", "status");
  table.parentElement.before(filters, said);

  // null is what is not known, and comes last either way
  const value = (row, i) => {
    const cell = row.cells[i], order = cell.dataset.order;
    if (order === undefined) return ["", "–"].includes(cell.textContent.trim()) ? null : cell.textContent.trim();
    return isNaN(order) ? order : Number(order);
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : typeof a !== typeof b ? (typeof a === "number" ? -1 : 1) : a.localeCompare(b, undefined, { numeric: true });
  let sorted = "";
  const sort = (i, way) => {
    const keyed = rows.map(row => [value(row, i), row]);
    if (way) keyed.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : way * compare(a, b));
    body.append(...keyed.map(([, row]) => row));
    headings.forEach((th, j) => j === i && way ? th.setAttribute("aria-sort", way > 0 ? "ascending" : "descending") : th.removeAttribute("aria-sort"));
    sorted = way ? `Sorted by ${headings[i].querySelector("button").textContent}, ${way > 0 ? "ascending" : "descending"}. ${table.parentElement.dataset.note} ` : "";
    say();
  };
  headings.forEach((th, i) => {
    const button = document.createElement("button"), unit = th.querySelector("small");
    button.append(...[...th.childNodes].filter(node => node !== unit));
    th.prepend(button);
    const first = unit ? -1 : 1; // of changes the largest, of all else the smallest
    button.onclick = () => {
      const was = { ascending: 1, descending: -1 }[th.getAttribute("aria-sort")] || 0;
      sort(i, was === 0 ? first : was === first ? -first : 0);
    };
  });

  const choice = (row, i) => (row.cells[i].querySelector(".badge")?.lastChild ?? row.cells[i]).textContent.trim();
  const chosen = new Map();
  const search = document.createElement("input");
  const say = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = (row.textContent + " " + row.title).toLowerCase();
      row.hidden = !words.every(word => text.includes(word)) || [...chosen].some(([i, kept]) => kept.size && !kept.has(choice(row, i)));
    }
    const n = rows.filter(row => !row.hidden).length;
    said.textContent = sorted + (n < rows.length ? `${n} of ${rows.length} rows are shown.` : "");
  };
  headings.forEach((th, i) => {
    const found = [...new Set(rows.map(row => choice(row, i)))];
    if (!("choice" in th.dataset) || found.length < 2 || found.length > 12) return;
    const group = make("span", th.querySelector("button").textContent, filters), kept = new Set();
    chosen.set(i, kept);
    for (const text of found.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }))) {
      const button = make("button", text || "–", group);
      button.setAttribute("aria-pressed", "false");
      button.onclick = () => {
        kept.delete(text) || kept.add(text);
        button.setAttribute("aria-pressed", kept.has(text));
        say();
      };
    }
  });
  const label = make("label", "text", filters);
  search.type = "search";
  search.oninput = say;
  label.append(search);
})();
