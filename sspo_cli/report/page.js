// The report's page: a sortable, filterable table of runs, and browsers of completions and of answers to benchmarks.
// Completions and answers are untrusted text: they reach the page as text nodes only.
"use strict";

const byId = (id) => document.getElementById(id);

function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

// ---- runs -------------------------------------------------------------------------------------------------------

function enliven(table) {
  const rows = [...table.querySelectorAll("tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const heads = [...table.querySelectorAll("thead th")];
  const body = table.tBodies[0];

  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      body.append(...rows.toSorted((a, b) => compare(a.cells[column], b.cells[column], direction)));
    });
  });

  const filter = byId("runs-filter");
  function apply() {
    const words = filter.value.toLowerCase().split(/\s+/);
    rows.forEach((row, i) => (row.hidden = !words.every((word) => texts[i].includes(word))));
    const shown = rows.filter((row) => !row.hidden).length;
    byId("runs-count").textContent = shown === rows.length ? `${shown} run${shown === 1 ? "" : "s"}` : `${shown} of ${rows.length} runs`;
  }
  filter.addEventListener("input", apply);
  byId("runs-controls").hidden = false;
  apply();
}

// Sorts numbers by value and other text in natural order. Missing values come last in either direction.
function compare(a, b, direction) {
  const [left, right] = [a, b].map((cell) => cell.textContent.trim());
  const missing = (text) => text === "" || text === "–";
  if (missing(left) || missing(right)) return missing(left) - missing(right);
  const [x, y] = [a, b].map((cell) => Number(cell.dataset.sort ?? NaN));
  const order = Number.isNaN(x - y) ? left.localeCompare(right, "en", { numeric: true }) : x - y;
  return direction * order;
}

// ---- completions ------------------------------------------------------------------------------------------------

// Attenuated tokens in one colour, amplified ones in another. The root makes small departures from 1 visible.
function shade(weight) {
  const strength = Math.min(1, Math.sqrt(Math.abs(1 - weight))) * 0.75;
  return strength === 0 ? "" : `rgba(var(${weight < 1 ? "--down" : "--up"}), ${strength.toFixed(3)})`;
}

function tokenOf(text, hundredths) {
  const finite = hundredths !== null;
  const title = finite ? `w = ${(hundredths / 100).toFixed(2)}` : "w is not finite";
  const token = element("span", { className: "token", title }, text);
  token.style.background = shade(finite ? hundredths / 100 : 0);
  return token;
}

// Splits a text by code points, as it was cut.
function halvesOf(text) {
  const letters = [...text];
  return [letters.slice(0, letters.length / 2).join(""), letters.slice(letters.length / 2).join("")];
}

function textOf(completion) {
  const { pieces, read, weights, opening, left_out: leftOut } = completion;
  const plain = typeof pieces === "string";
  const text = element("pre", { className: "text" });
  if (opening) text.append(element("span", { className: "opening", title: "opened by the prompt template" }, opening));
  const parts = !plain ? pieces : leftOut ? halvesOf(pieces) : [pieces];
  let observation = null;  // a separate block for what the policy reads between two turns
  parts.forEach((piece, i) => {
    if (leftOut && i === parts.length / 2) {
      const amount = `${leftOut.toLocaleString("en")} ${plain ? "characters" : "tokens"}`;
      text.append(element("span", { className: "left-out" }, ` … ${amount} left out … `));
    }
    if (read?.[i]) {
      observation ??= text.appendChild(element("span", { className: "observation", title: "read, not written, by the policy" }));
      observation.append(piece);
      return;
    }
    observation = null;
    text.append(plain ? piece : tokenOf(piece, weights ? weights[i] : 100));
  });
  return text;
}

const option = (value, text, chosen = false) => element("option", { value, textContent: text, selected: chosen });

function fact(label, value, className = "") {
  if (value === null || value === undefined || value === "") return null;
  return element("li", { className }, `${label} `, element("b", {}, String(value)));
}

function weightsOf({ pieces, read, weights }) {
  if (typeof pieces === "string") return fact("weights", "not recorded");
  if (weights === null) return fact("every weight", "1");
  const known = weights.filter((weight, i) => weight !== null && !read?.[i]);
  const mean = known.reduce((sum, weight) => sum + weight, 0) / known.length;
  return fact("weights", `${(mean / 100).toFixed(2)} on average, ${(Math.min(...known) / 100).toFixed(2)} the lowest`);
}

function outcomeOf({ outcome }) {
  if (!outcome) return [];
  return [fact("turns", outcome.turns), fact("calls", outcome.calls), fact("ended by", outcome.ended)];
}

function completionOf(completion, number) {
  const sign = completion.advantage > 0 ? "+" : completion.advantage < 0 ? "−" : "";
  const right = completion.answer > 0;
  const facts = element(
    "ul", { className: "facts" },
    fact("answer reward", completion.answer, right ? "right" : "wrong"),
    fact("format reward", completion.format),
    fact("advantage", sign + Math.abs(completion.advantage).toFixed(2)),
    fact("extracted", completion.extracted ?? "nothing"),
    fact("tokens", completion.truncated ? `${completion.tokens}, cut off` : completion.tokens),
    ...outcomeOf(completion),
    weightsOf(completion),
  );
  const heading = element("h3", {}, `Completion ${number}`);
  return element("article", { className: "completion" }, heading, facts, textOf(completion));
}

function groupOf(group) {
  const facts = element(
    "ul", { className: "facts" },
    ...["step", "rollout", "minibatch", "epoch"].map((name) => fact(name, group[name])),
    fact("gold answer", group.gold),
  );
  const heading = element("h3", {}, `Prompt of ${group.problem}`);
  const prompt = element("div", { className: "prompt" }, heading, facts, element("pre", {}, group.prompt));
  const cards = group.completions.map((completion, i) => completionOf(completion, i + 1));
  return [prompt, element("div", { className: "group" }, ...cards)];
}

// Links a run's name in the table to the run's completions.
function linkRuns(runs) {
  const known = new Set(runs.filter((run) => run.groups.length).map((run) => run.name));
  for (const { cells: [cell] } of document.querySelectorAll("#runs tbody tr")) {
    const name = cell.textContent;
    if (!known.has(name)) continue;
    cell.replaceChildren(element("a", { href: `#${new URLSearchParams({ run: name })}` }, ...cell.childNodes));
  }
}

function browse(runs) {
  const [pickRun, pickStep, pickProblem] = ["pick-run", "pick-step", "pick-problem"].map(byId);
  const [before, after] = ["step-before", "step-after"].map(byId);
  const stepsOf = (run) => [...new Set(run.groups.map((group) => group.step))];
  let run, group;

  // Shows the group nearest to the requested one, and writes it into the page's address.
  function show({ name, step, problem }, remember = true) {
    run = runs.find((candidate) => candidate.name === name) ?? runs.find((candidate) => candidate.groups.length) ?? runs[0];
    const steps = stepsOf(run);
    const wanted = Number.isFinite(step) ? step : steps.at(-1);
    const near = steps.reduce((best, other) => (Math.abs(other - wanted) < Math.abs(best - wanted) ? other : best), steps[0]);
    const same = run.groups.filter((candidate) => candidate.step === near);
    group = same.find((candidate) => candidate.problem === problem) ?? same[0];

    pickRun.value = run.name;
    pickStep.replaceChildren(...steps.map((value) => option(value, value, value === near)));
    pickProblem.replaceChildren(...same.map((value, i) => option(i, value.problem, value === group)));
    for (const pick of [pickStep, pickProblem]) pick.disabled = !group;
    before.disabled = !group || near === steps[0];
    after.disabled = !group || near === steps.at(-1);
    byId("sampled").textContent =
      run.damage ? `The completions of this run cannot be read: ${run.damage}.`
      : !group ? "This run recorded no completions."
      : run.complete ? "All groups that the run recorded are shown."
      : `A sample of the groups that the run recorded, spread evenly over its rollouts; all groups are in ${run.path}/completions.jsonl.`;
    byId("group").replaceChildren(...(group ? groupOf(group) : []));
    if (remember && group) {
      const address = new URLSearchParams({ run: run.name, step: near, problem: group.problem });
      history.replaceState(null, "", `#${address}`);
    }
  }

  function stepBy(places) {
    const steps = stepsOf(run);
    show({ name: run.name, step: steps[steps.indexOf(group.step) + places] });
  }

  function asked() {
    const address = new URLSearchParams(location.hash.slice(1));
    const [name, step, problem] = ["run", "step", "problem"].map((key) => address.get(key));
    return name === null ? null : { name, step: parseInt(step, 10), problem };
  }

  function follow() {
    const wanted = asked();
    if (!wanted) return;
    show(wanted, false);
    byId("completions").scrollIntoView();
  }

  pickRun.append(...runs.map(({ name, label, seed }) => option(name, `${name} · ${label}, seed ${seed}`)));
  pickRun.addEventListener("change", () => show({ name: pickRun.value, step: group?.step }));
  pickStep.addEventListener("change", () => show({ name: run.name, step: Number(pickStep.value) }));
  pickProblem.addEventListener("change", () => {
    const same = run.groups.filter((candidate) => candidate.step === group.step);
    show({ name: run.name, step: group.step, problem: same[pickProblem.value].problem });
  });
  before.addEventListener("click", () => stepBy(-1));
  after.addEventListener("click", () => stepBy(1));
  addEventListener("hashchange", follow);

  const shades = [0, 25, 50, 75, 90, 98, 100, 115].map((weight) => tokenOf((weight / 100).toFixed(2), weight));
  byId("legend").append("Weight", ...shades);
  linkRuns(runs);
  show({}, false);
  follow();
}

// ---- answers ----------------------------------------------------------------------------------------------------

function answerOf(answer) {
  const facts = element(
    "ul", { className: "facts" },
    fact("verdict", answer.right ? "right" : "wrong", answer.right ? "right" : "wrong"),
    fact("extracted", answer.extracted ?? "nothing"),
    fact("format reward", answer.format),
    fact("tokens", answer.finish === "length" ? `${answer.tokens}, cut off` : answer.tokens),
    answer.status === "ok" ? null : fact("check", answer.status),
  );
  const heading = element("h3", {}, `Answer ${answer.sample + 1}`);
  const text = answer.text === null
    ? element("p", { className: "left-out" }, "This version did not record the text.")
    : textOf({ pieces: answer.text, left_out: answer.left_out });
  return element("article", { className: "completion" }, heading, facts, text);
}

function browseAnswers({ questions, sources }) {
  const [pickSource, pickBenchmark, pickVerdict, pickProblem] =
    ["source", "benchmark", "verdict", "problem"].map((name) => byId(`answers-${name}`));
  const [before, after] = ["answer-before", "answer-after"].map(byId);
  let source = sources[0];

  function showSource() {
    source = sources[Number(pickSource.value)];
    const kept = pickBenchmark.selectedOptions[0]?.textContent;  // another run is shown on the same benchmark
    pickBenchmark.replaceChildren(...source.benchmarks.map(({ name }, i) => option(i, name, name === kept)));
    showBenchmark();
  }

  function showBenchmark() {
    const benchmark = source.benchmarks[Number(pickBenchmark.value)];
    const wanted = (answer) => pickVerdict.value === "all" || answer.right === (pickVerdict.value === "right");
    const kept = pickProblem.value;  // another run or verdict is shown on the same problem
    const problems = [...new Set(benchmark?.answers.filter(wanted).map(({ id }) => id))];
    pickProblem.replaceChildren(...problems.map((id) => option(id, id, id === kept)));
    byId("answers-sampled").textContent = [
      source.damage && `Some answers cannot be read: ${source.damage}.`,
      benchmark && saidOf(benchmark, problems.length),
    ].filter(Boolean).join(" ");
    showProblem();
  }

  function saidOf({ answers, file, problems, right, step, total }, shown) {
    const ids = new Set(answers.map(({ id }) => id)).size;
    const counts = `Step ${step}: ${right} of ${total} answers to ${problems} problems are right.`;
    const sampled = answers.length < total
      ? ` A sample of ${answers.length} answers to ${ids} problems is shown, spread evenly; all answers are in ${file}.`
      : " All answers are shown.";
    return counts + sampled + (shown ? "" : ` None of the shown answers is ${pickVerdict.value}.`);
  }

  function showProblem() {
    const place = pickProblem.selectedIndex;
    before.disabled = place <= 0;
    after.disabled = place === pickProblem.length - 1;
    pickProblem.disabled = place < 0;
    const benchmark = source.benchmarks[Number(pickBenchmark.value)];
    const answers = place < 0 ? [] : benchmark.answers.filter(({ id }) => id === pickProblem.value);
    if (!answers.length) return byId("answered").replaceChildren();
    const [{ id, question, gold }] = answers;
    const heading = element("h3", {}, `Question ${id}`);
    const facts = element("ul", { className: "facts" }, fact("gold answer", gold));
    const prompt = element("div", { className: "prompt" }, heading, facts, element("pre", {}, questions[question]));
    byId("answered").replaceChildren(prompt, element("div", { className: "group" }, ...answers.map(answerOf)));
  }

  function stepBy(places) {
    pickProblem.selectedIndex += places;
    showProblem();
  }

  pickSource.append(...sources.map(({ name, label }, i) => option(i, `${name} · ${label}`)));
  pickSource.addEventListener("change", showSource);
  pickBenchmark.addEventListener("change", showBenchmark);
  pickVerdict.addEventListener("change", showBenchmark);
  pickProblem.addEventListener("change", showProblem);
  before.addEventListener("click", () => stepBy(-1));
  after.addEventListener("click", () => stepBy(1));
  showSource();
}

const runsTable = document.querySelector("#runs table");
if (runsTable) enliven(runsTable);
const data = byId("data");
if (data) browse(JSON.parse(data.textContent));
const answersData = byId("answers-data");
if (answersData) browseAnswers(JSON.parse(answersData.textContent));
