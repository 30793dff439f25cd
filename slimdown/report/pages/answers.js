// Shows the answers of the page, a few at a time; filters and sorts them. What models wrote is set as text, never as markup.
(() => {
  const { benchmarks, causes, answers } = JSON.parse(document.getElementById("data").textContent);
  const list = document.getElementById("list"), STEP = 40;
  const make = (tag, text, parent, className = "") => {
    const node = document.createElement(tag);
    node.textContent = text;
    node.className = className;
    parent?.append(node);
    return node;
  };
  const count = n => n.toLocaleString("en-US");

  // one answer
  const text = (value, more, parent, className = "") => {
    const node = make("pre", "", parent, `text ${className}`);
    for (const [i, part] of [value].flat().entries()) if (part) i % 2 ? make("mark", part, node) : node.append(part);
    if (!node.textContent.trim()) node.replaceChildren(make("em", "(nothing)"));
    if (more > 0) make("em", ` … ${count(more)} more characters`, node);
    return node;
  };
  const choices = (a, parent) => a.choices.forEach(([name, more, ...shares], i) => {
    const row = make("div", "", parent, "choice"), letter = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[i] ?? i + 1;
    const label = make("span", `${letter} · ${name}${more > 0 ? ` … ${count(more)} more characters` : ""} `, row);
    if (i === a.right_choice) make("span", "right one", label, "badge improved");
    shares.forEach((share, side) => {
      const cell = make("span", "", row, `share ${i === a.right_choice ? "right" : ""}`);
      make("span", ["base", "tuned"][side], cell, "soft");
      if (share !== null) make("i", "", make("span", "", cell, "bar")).style.width = `${share}%`;
      make("span", [share === null ? "" : `${share.toFixed(1)} %`, a.taken[side] === i ? "chosen" : ""].filter(Boolean).join(" · "), cell);
    });
  });
  // A frame such as MLflow's follows no link to a place in itself, so each one is followed here, too.
  const link = (label, key, parent) => {
    const node = make("a", label, parent);
    node.href = `#${encodeURIComponent(key)}`;
    node.onclick = event => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      location.hash = node.hash;
      show(key);
    };
  };
  const card = a => {
    const node = make("article", "", null, "example answer"), head = make("h3", "", node);
    node.id = a.key;
    link(a.key, a.key, head);
    make("span", a.lost ? "↓ lost" : "↑ gained", head, `badge ${a.lost ? "forgotten" : "improved"}`);
    make("span", [causes[a.cause], a.subject].filter(Boolean).join(" · "), head, "mark");
    const [prompt, before] = a.prompt, [target, more] = a.target;
    if (prompt) {
      const details = make("details", "", node);
      make("summary", "prompt", details);
      const shown = text(prompt, 0, details);
      if (before > 0) shown.prepend(make("em", `… ${count(before)} characters before this\n`));
    }
    if (a.choices) {
      choices(a, make("div", "", node));
      make("p", `base · ${a.scores[0]} – tuned · ${a.scores[1]}`, node, "note");
      return node;
    }
    if (target) {
      make("h5", "right answer", node);
      text(target, more, node);
    }
    const sides = make("div", "", node, "sides");
    ["base", "tuned"].forEach((name, side) => {
      const column = make("div", "", sides);
      make("h5", `${name} · ${a.scores[side]}`, column);
      text(a.texts[side], a.more[side], column, a.right[side] ? "right" : "wrong");
    });
    return node;
  };

  // what is chosen
  const form = make("div", "", null, "choose"), state = make("p", "", null, "note"), button = make("button", "", null, "more");
  state.setAttribute("role", "status");
  list.before(form, state);
  list.after(button);
  const choose = (name, options, from = answers) => {
    const select = make("select", ""), present = options.filter(([, fits]) => from.some(fits));
    for (const [label] of [["all"], ...present]) make("option", label, select);
    select.chosen = () => present[select.selectedIndex - 1]?.[1] ?? (() => true);
    if (present.length > 1) make("label", name, form).append(select);
    select.onchange = () => update(true);
    return select;
  };
  const distinct = values => [...new Set(values)].filter(Boolean).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const filters = [
    choose("change", [["lost", a => a.lost], ["gained", a => !a.lost]]),
    choose("benchmark", benchmarks.map((name, i) => [name, a => a.benchmark === i])),
    choose("cause", Object.entries(causes).map(([cause, label]) => [label, a => a.cause === cause])),
    choose("subject", distinct(answers.map(a => a.subject)).map(subject => [subject, a => a.subject === subject])),
  ];
  const known = (f, direction) => [...answers].sort((a, b) => (f(a) === null) - (f(b) === null) || direction * (f(a) - f(b)));
  const grown = a => a.words ? a.words[1] - a.words[0] : null;
  const orders = [
    ["clearest first", () => answers],
    ["question", () => { const by = new Intl.Collator("en", { numeric: true }); return [...answers].sort((a, b) => by.compare(a.key, b.key)); }],
  ];
  if (answers.some(a => a.fall !== null)) orders.push(["most probability lost", () => known(a => a.fall, -1)]);
  if (answers.some(a => a.words)) orders.push(["most words lost", () => known(grown, 1)], ["most words added", () => known(grown, -1)]);
  const order = make("select", "", make("label", "sorted by", form));
  for (const [label] of orders) make("option", label, order);
  order.onchange = () => update(true);
  const search = make("input", "", make("label", "text", form));
  search.type = "search";
  search.oninput = () => update(true);

  const words = a => a.all ??= [a.key, a.subject, a.prompt[0], a.target[0], ...(a.texts ?? []).map(parts => parts.join("")),
    ...(a.choices ?? []).map(choice => choice[0])].join("\n").toLowerCase();
  let shown = [], only = "";
  const extend = () => {
    const n = list.childElementCount;
    list.append(...shown.slice(n, n + STEP).map(card));
    const left = shown.length - list.childElementCount;
    button.hidden = !left;
    button.textContent = `Show ${count(Math.min(STEP, left))} more of ${count(left)}`;
  };
  button.onclick = extend;
  const update = isChosen => {
    if (isChosen && only) {
      only = "";
      location.hash = "";
    }
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean), fits = filters.map(select => select.chosen());
    shown = orders[order.selectedIndex][1]().filter(a => only ? a.key === only : fits.every(f => f(a)) && wanted.every(word => words(a).includes(word)));
    state.textContent = `${count(shown.length)} of ${count(answers.length)} answers on this page. `;
    if (only) link("Show all", "", state);
    list.replaceChildren();
    extend();
  };
  const show = key => {
    const found = answers.some(a => a.key === key) ? key : "";
    if (found === only) return;
    only = found;
    update(false);
    if (only) list.firstElementChild.scrollIntoView();
  };
  const follow = () => {
    try { show(decodeURIComponent(location.hash.slice(1))); } catch { show(""); } // it is no link of this page
  };
  addEventListener("hashchange", follow);
  update(false);
  follow();
})();
