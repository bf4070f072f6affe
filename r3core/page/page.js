"use strict";
// Texts of models come from the JSON in #data and reach the page through textContent alone, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const PAGE_SIZE = 50;
  let visible = PAGE_SIZE;
  let only = null; // the episode of a link, which is then alone in the list
  let matching = [];

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  // ---- charts

  const theme = {
    background: "transparent",
    view: { stroke: null },
    font: "system-ui, sans-serif",
    axis: {
      labelColor: "currentColor", titleColor: "currentColor", domainColor: "currentColor", tickColor: "currentColor",
      labelFontSize: 11, labelFlush: false, labelOverlap: true, gridColor: "currentColor", gridOpacity: 0.15, domainOpacity: 0.4, tickOpacity: 0.4, titleFontWeight: "normal",
    },
    legend: { labelColor: "currentColor", titleColor: "currentColor" },
    header: { labelColor: "currentColor", titleColor: "currentColor" },
  };
  function drawChart(place, spec) {
    // `ast` interprets expressions instead of compiling them, which the page's security policy forbids
    window.vegaEmbed(place, spec, { renderer: "svg", actions: false, ast: true, config: theme })
      .catch((error) => place.append(element("p", {}, `This chart cannot be shown: ${error.message}`)));
  }

  function against(spec, column) {
    const x = { ...spec.encoding.x, field: column, title: column };
    if (column !== "step") x.axis = { format: "~s", tickCount: 5 };
    return { ...spec, encoding: { ...spec.encoding, x } };
  }

  for (const place of document.querySelectorAll("[data-chart]")) drawChart(place, data.charts[place.dataset.chart]);
  byId("against")?.addEventListener("input", (event) => {
    for (const place of document.querySelectorAll('[data-chart^="curve-"]')) {
      const spec = data.charts[place.dataset.chart];
      if (spec.encoding.tooltip.some((one) => one.field === "generated tokens")) drawChart(place, against(spec, event.target.value));
    }
  });

  // ---- one turn, one conversation

  function verdict(turn) {
    const word = { pass: "passed", fail: "failed", error: "not judged" }[turn.outcome];
    const why = turn.reason ? `: ${turn.reason}` : "";
    return element("span", {}, element("span", { class: turn.outcome }, word), why,
      turn.category && !turn.reason?.startsWith(turn.category) ? element("span", { class: "tag" }, turn.category) : null);
  }

  function ended(turn) {
    const how = { length: "cut off at the token limit", overlong: "its prompt did not fit the context", skipped: "not generated" };
    return turn.stopped ? element("span", { class: "tag" }, how[turn.stopped]) : null;
  }

  function generated(title, turn, { trained = "", extra = [] } = {}) {
    const parts = [];
    if (turn.thinking) {
      const text = trained === "reflection" ? element("span", { class: "trained" }, turn.thinking) : turn.thinking;
      parts.push(element("pre", { class: "thinking", "aria-label": "thinking" }, text));
    }
    const text = turn.text || (turn.thinking ? "" : "(empty)");
    parts.push(element("pre", {}, trained ? element("span", { class: "trained" }, text) : text));
    const tokens = turn.tokens === undefined ? "" : ` · ${turn.tokens} token${turn.tokens === 1 ? "" : "s"}`;
    return element("div", { class: "turn" }, element("h4", {}, title + tokens, ended(turn), ...extra), ...parts,
      turn.outcome ? verdict(turn) : null);
  }

  function message(role, text) {
    return element("div", { class: "turn" }, element("h4", {}, role), element("pre", {}, text));
  }

  function leak(turn) {
    return turn.leaked ? element("span", { class: "tag" }, "contains the answer") : null;
  }

  function afterFailure(run, entry, then) {
    return message("user", `${entry.feedback || run.failed} ${then}`);
  }

  function prompt(problem) {
    return [
      ...problem.prompt.map((one) => message(one.role, one.text)),
      problem.answer ? element("p", { class: "meaning" }, `answer in the dataset: ${problem.answer}`) : null,
    ];
  }

  function conversation(side) {
    const run = data.runs[data.columns[side.column].run];
    const parts = [generated("attempt", side.attempt)];
    const retries = side.retries || {};
    if (side.reflection) {
      const earns = retries.reflect ? element("span", { class: "tag" }, `reward ${reward(retries.reflect)}`) : null;
      parts.push(afterFailure(run, side, run.reflect));
      parts.push(generated("reflection", side.reflection, { trained: run.tokens, extra: [earns, leak(side.reflection)] }));
    }
    if (retries.reflect) parts.push(message("user", run.retry), generated("retry", retries.reflect));
    for (const round of side.rounds || []) {
      parts.push(afterFailure(run, round, run.reflect), generated("reflection", round.reflection, { extra: [leak(round.reflection)] }),
        message("user", run.retry), generated("retry", round.retry));
    }
    const controls = Object.entries(retries).filter(([arm]) => arm !== "reflect");
    if (controls.length) {
      parts.push(element("details", {}, element("summary", {}, `${controls.length} controls`),
        ...controls.map(([arm, turn]) => generated(data.arms[arm] || arm, turn))));
    }
    return element("div", { class: "column" }, element("h3", {}, data.columns[side.column].label,
      element("span", { class: "tag" }, STATES[side.state])), ...parts);
  }

  const STATES = { first: "passed at the first try", fixed: "fixed by the retry", "not fixed": "not fixed", unjudged: "not judged" };

  function reward(turn) {
    if (turn.outcome === "error" || (turn.outcome === "fail" && turn.stopped === "length")) return "none";
    return turn.outcome === "pass" ? "1" : "0";
  }

  function problemBody(problem) {
    return [...prompt(problem), element("div", { class: "columns" }, ...problem.sides.map(conversation))];
  }

  function groupBody(group) {
    const run = data.runs[group.run];
    const parts = [...prompt({ prompt: group.prompt, answer: "" })];
    if (group.attempt) {
      parts.push(generated("attempt", group.attempt), afterFailure(run, group, run.reflect));
    }
    for (const [place, one] of group.reflections.entries()) {
      const earned = element("span", { class: "tag" }, `reward ${one.reward === null ? "none" : Math.round(one.reward * 100) / 100}`);
      const number = `${place + 1} of ${group.reflections.length}`;
      if (one.attempt) parts.push(generated(`new attempt ${number}`, one.attempt, { extra: [earned] }));
      if (one.reflection) {
        const extra = one.attempt ? [leak(one.reflection)] : [earned, leak(one.reflection)];
        parts.push(generated(`reflection ${number}`, one.reflection, { trained: run.tokens, extra }));
      }
      parts.push(...one.retries.map((turn) => generated("retry", turn)));
    }
    return parts;
  }

  // ---- list and filters

  function sidesOf(entry) {
    return entry.sides || [];
  }

  function turnsOf(entry) {
    if (entry.reflections) {
      return [entry.attempt, ...entry.reflections.flatMap((one) => [one.attempt, one.reflection, ...one.retries])].filter(Boolean);
    }
    return sidesOf(entry).flatMap((side) => [side.attempt, side.reflection, (side.retries || {}).reflect,
      ...(side.rounds || []).flatMap((round) => [round.reflection, round.retry])]).filter(Boolean);
  }

  function groupKind(group) {
    const rewards = new Set(group.reflections.map((one) => one.reward).filter((one) => one !== null));
    if (!rewards.size) return "no verdict";
    if (rewards.size > 1) return "different rewards";
    return { 1: "all rewards 1", 0: "all rewards 0" }[[...rewards][0]] || "equal rewards";
  }

  const OUTCOMES = {
    problems: ["newly fixed", "newly broken", "solved by both", "solved by neither", "unjudged",
      ...["base", "trained"].flatMap((model) => ["first", "fixed", "not fixed", "unjudged"].map((state) => `${model}: ${STATES[state]}`))],
    groups: ["different rewards", "all rewards 1", "all rewards 0", "no verdict"],
  };

  function outcomesOf(entry) {
    if (entry.reflections) return [groupKind(entry)];
    return [...(entry.changes || []), ...sidesOf(entry).map((side) => `${data.columns[side.column].model}: ${STATES[side.state]}`)];
  }

  function categoriesOf(entry) {
    return turnsOf(entry).map((turn) => turn.category).filter(Boolean);
  }

  function options(select, values, any) {
    const before = select.value;
    select.replaceChildren(element("option", { value: "" }, any), ...values.map((value) => element("option", { value }, value)));
    select.value = values.includes(before) ? before : "";
  }

  function entries() {
    return byId("kind").value === "groups" ? data.groups : data.problems;
  }

  function fillFilters() {
    const all = entries();
    const present = new Set(all.flatMap(outcomesOf));
    options(byId("outcome"), OUTCOMES[byId("kind").value].filter((one) => present.has(one)), "any");
    options(byId("category"), [...new Set(all.flatMap(categoriesOf))].sort(), "any");
  }

  function textOf(entry) {
    if (!entry.text) {
      const turns = turnsOf(entry).flatMap((turn) => [turn.text, turn.thinking, turn.reason]);
      entry.text = [entry.id, entry.answer, ...entry.prompt.map((one) => one.text), ...turns].filter(Boolean).join("\n").toLowerCase();
    }
    return entry.text;
  }

  function matches(entry) {
    const outcome = byId("outcome").value, category = byId("category").value;
    const wanted = byId("search").value.trim().toLowerCase();
    return (!outcome || outcomesOf(entry).includes(outcome))
      && (!category || categoriesOf(entry).includes(category))
      && (!byId("leaked").checked || turnsOf(entry).some((turn) => turn.leaked))
      && (!byId("truncated").checked || turnsOf(entry).some((turn) => turn.stopped === "length"))
      && (!wanted || textOf(entry).includes(wanted));
  }

  function summary(entry) {
    if (entry.reflections) {
      const rewards = entry.reflections.map((one) => (one.reward === null ? "-" : Math.round(one.reward * 100) / 100)).join(" ");
      const run = data.runs.length > 1 ? `${data.runs[entry.run].name}: ` : "";
      return element("summary", {}, `${run}step ${entry.step}, ${entry.id}${entry.number ? `, group ${entry.number}` : ""}`, element("span", { class: "tag" }, `rewards ${rewards}`));
    }
    const name = entry.sample ? `${entry.id} (attempt ${entry.sample + 1})` : entry.id;
    const tags = data.columns.length > 2
      ? sidesOf(entry).map((side) => `${data.columns[side.column].label}: ${STATES[side.state]}`)
      : [...(entry.changes || []), ...(entry.changes ? [] : sidesOf(entry).map((side) => STATES[side.state]))];
    return element("summary", {}, name, ...tags.map((tag) => element("span", { class: "tag" }, tag)));
  }

  function row(entry) {
    const details = element("details", { class: "episode", "data-key": entry.key }, summary(entry));
    details.addEventListener("toggle", () => {
      if (!details.open || details.children.length > 1) return;
      const link = element("a", { class: "link", href: `#episode=${encodeURIComponent(entry.key)}` }, "link to this episode");
      details.append(element("div", { class: "body" }, link, ...(entry.reflections ? groupBody(entry) : problemBody(entry)).filter(Boolean)));
    });
    return details;
  }

  function draw() {
    matching = only ? [only] : entries().filter(matches);
    byId("list").replaceChildren(...matching.slice(0, visible).map(row));
    byId("found").textContent = `${matching.length.toLocaleString("en")} of ${entries().length.toLocaleString("en")} in this page`;
    byId("more").textContent = only ? "Show all episodes" : "Show more";
    byId("more").hidden = !only && matching.length <= visible;
  }

  function filtered() {
    visible = PAGE_SIZE;
    only = null;
    draw();
    const outcome = byId("outcome").value;
    if (location.hash.startsWith("#filter=") || location.hash.startsWith("#episode=") || outcome) {
      history.replaceState(null, "", outcome ? `#filter=${encodeURIComponent(outcome)}` : "#episodes");
    }
  }

  function clear() {
    for (const id of ["outcome", "category", "search"]) byId(id).value = "";
    for (const id of ["leaked", "truncated"]) byId(id).checked = false;
  }

  // ---- links: #episode=KEY opens one, #filter=OUTCOME shows those of one outcome

  function follow() {
    const [name, ...rest] = location.hash.slice(1).split("=");
    let value = rest.join("=");
    try { value = decodeURIComponent(value); } catch { return; }
    if (name === "filter") {
      clear();
      byId("kind").value = "problems";
      fillFilters();
      byId("outcome").value = value;
      filtered();
      if (byId("outcome").value !== value) {
        byId("list").replaceChildren();
        byId("more").hidden = true;
        byId("found").textContent = `No episode in this page is of the outcome "${value}".`;
      }
      byId("episodes").scrollIntoView();
      byId("outcome").focus({ preventScroll: true });
    } else if (name === "episode") {
      const kind = data.groups.some((group) => group.key === value) ? "groups" : "problems";
      const all = kind === "groups" ? data.groups : data.problems;
      const place = all.findIndex((entry) => entry.key === value);
      if (place < 0) {
        byId("found").textContent = "The episode of this link is not in this page.";
        byId("episodes").scrollIntoView();
        return;
      }
      clear();
      byId("kind").value = kind;
      fillFilters();
      only = all[place];
      draw();
      const details = document.querySelector("details.episode");
      details.open = true;
      byId("episodes").scrollIntoView();
      details.querySelector("summary").focus({ preventScroll: true });
    }
  }

  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["outcome", "category", "leaked", "truncated", "search"]) byId(id).addEventListener("input", filtered);
  byId("kind").addEventListener("input", () => { fillFilters(); filtered(); });
  byId("more").addEventListener("click", () => { if (only) filtered(); else { visible += PAGE_SIZE; draw(); } });
  window.addEventListener("hashchange", follow);
  if (!data.problems.length && data.groups.length) byId("kind").value = "groups";
  fillFilters();
  draw();
  follow();

  // ---- a run in progress: `r3 view` serves this page, and makes it anew when the run has advanced

  const version = document.body.dataset.version;
  if (version !== undefined) {
    window.setInterval(async () => {
      try {
        const now = await (await fetch("version", { cache: "no-store" })).text();
        if (now !== version) location.reload();
      } catch { /* the viewer was stopped: the page stays as it is */ }
    }, 5000);
  }
})();
