"use strict";
// Shows what /events says, about four times a second. Text from outside goes in by textContent alone.

const place = (id) => document.getElementById(id);
const number = (x, digits = 3) =>
  x === null || x === undefined ? "-" : x.toLocaleString("en", { maximumSignificantDigits: digits });
const whole = (x) => x.toLocaleString("en");
const share = (x) => (x === null ? "-" : `${number(100 * x, 2)} %`);
// Cut, not rounded: 100 % is all of them.
const most = (x) => (x === null ? "-" : `${(Math.floor(1e4 * x) / 100).toFixed(2)} %`);
const part = (some, all) => (all ? `, ${share(some / all)}` : "");
const megabytes = (x) => (x === null ? "-" : `${whole(Math.round(x / 1e6))} MB`);

const WORDS = {
  unready: "models were not ready", behind: "model was behind, so not waited for",
  no_room: "no room before the deadline", budget: "not worth its price to the budget",
  longer: "its call took longer", waited: "time was up while it waited",
  unsound: "the model gave no number", late: "published late", sink: "a sink took it late",
  stopped: "the agent was stopped", sink_full: "too many waited for a sink",
  time_backwards: "its time went backwards", restart: "in flight at a restart",
  worker: "the models' process died or hung", "for the memory": "none, for the model's memory",
};
const words = (code) => WORDS[code] || code;

function make(tag, text = "", style = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (style) made.className = style;
  return made;
}

function ago(seconds) {
  const s = Math.max(Math.round(seconds), 0);
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
}

// Children of `parent`, one for each item: those that stay are kept, so that a click can land.
function each(parent, items, key, create, update) {
  parent.kept ??= new Map();
  const now = new Map();
  for (const item of items) {
    const name = key(item);
    const element = parent.kept.get(name) || create(item);
    update(element, item);
    now.set(name, element);
  }
  const wanted = [...now.values()];
  if (wanted.length !== parent.children.length || wanted.some((e, n) => parent.children[n] !== e)) {
    parent.replaceChildren(...wanted);
  }
  parent.kept = now;
}

function texts(cells, values) {
  values.forEach((value, n) => { if (cells[n].textContent !== value) cells[n].textContent = value; });
}

// A table of names and numbers under a title, written anew when they have changed.
function card(parent, id, title, rows, empty = "none") {
  parent.cards ??= new Map();
  let box = parent.cards.get(id);
  if (!box) {
    box = make("div");
    box.append(make("h3", title), make("table"));
    parent.cards.set(id, box);
    parent.append(box);
  }
  const content = JSON.stringify(rows);
  if (box.content === content) return;
  box.content = content;
  const lines = rows.map(([name, value]) => {
    const line = make("tr");
    line.append(make("td", name), make("td", value));
    return line;
  });
  if (!lines.length) lines.push(make("tr", empty, "quiet"));
  box.lastChild.replaceChildren(...lines);
}

const counts = (table) => Object.entries(table).map(([code, count]) => [words(code), whole(count)]);

// --- the line of state --------------------------------------------------------------------------

function showState(m) {
  const since = new Date(Date.now() - 1000 * m.running_s);
  const { mode, cause } = m.agent;
  const said = [
    [`running since ${since.toLocaleTimeString()} (${ago(m.running_s)})`, ""],
    [`${number(m.rate_hz)} samples/s`, ""],
    [`${most(m.account.in_time)} answered in time`, m.account.in_time < 0.99 ? "warn" : ""],
    [`governor ${mode}${cause ? `: ${words(cause)}` : ""}`, mode === "NORMAL" ? "" : "warn"],
    m.ready ? ["models ready", ""] : [`preparing the models (${m.preparing}); answers are mandatory`, "warn"],
  ];
  each(place("state"), said, (_) => said.indexOf(_), () => make("span"), (span, [text, style]) => {
    texts([span], [text]);
    span.className = style;
  });
}

// --- streams ------------------------------------------------------------------------------------

function showStreams({ in_all, found, lines }) {
  const body = place("streams").tBodies[0];
  const less = lines.length < found ? `${lines.length} of ${whole(found)}, newest alarms and most misses first` : `${found}`;
  texts([place("shown")], [found < in_all ? `${less} with that in their name, of ${whole(in_all)}` : less]);
  place("find").hidden = in_all <= 8;
  each(body, lines, (line) => line.name, (line) => {
    const row = make("tr"), choose = make("button", line.name);
    choose.title = line.name;
    choose.onclick = () => { location.hash = encodeURIComponent(line.name); };
    row.append(make("td"), ...Array.from({ length: 7 }, () => make("td")));
    row.cells[0].append(choose);
    return row;
  }, (row, line) => {
    row.setAttribute("aria-selected", line.name === chosen());
    texts([...row.cells].slice(1), [
      number(line.rate_hz), line.level, `${number(line.p50_ms, 2)} / ${number(line.p99_ms, 2)}`,
      most(line.in_time), whole(line.missed), whole(line.alarms),
      line.score === null ? "-" : line.score.toFixed(2),
    ]);
    row.cells[2].className = line.level === "mandatory" ? "warn" : "";
    row.cells[5].className = line.missed ? "warn" : "";
  });
}

// --- the chosen stream --------------------------------------------------------------------------

const SECONDS = 10, FEWEST = 240; // of the signal, and samples of slow ones, that are shown
let looked = null; // the plots of the chosen stream, and the points in them
const told = new Map(); // what became of answers to alarms that were given here
const ANSWERS = { 1: "that was one", 0: "nothing" }; // by label

function look(c) {
  for (const one of looked ? [...looked.plots, looked.score] : []) one.remove();
  place("signals").replaceChildren();
  const points = c.points;
  looked = { name: c.name, time: [], data: [[]], channels: c.channels.map(() => [[], [], []]), alarms: [] };
  const alarms = () => looked.alarms;
  looked.plots = c.channels.map((name, n) => {
    const unit = c.units[n] ? ` [${c.units[n]}]` : "";
    place("signals").append(make("h3", `${name}${unit}: values, and the forecast made for them with its usual error`));
    return signalPlot(place("signals"), points.time, alarms);
  });
  looked.scores = [];
  looked.score = scorePlot(place("score"), points.time, alarms);
}

function extend(c) {
  const { time, score, values, forecast, spread } = c.points;
  if (!time.length) return;
  if (looked?.name !== c.name || time[0] < looked.time.at(-1)) look(c);
  const keep = Math.max(FEWEST, SECONDS * Math.min(c.rate_hz, 1024));
  const add = (to, more) => { to.push(...more); if (to.length > keep) to.splice(0, to.length - keep); };
  add(looked.time, time);
  add(looked.scores, score);
  looked.channels.forEach((parts, n) => [values, forecast, spread].forEach((from, k) => add(parts[k], from[n])));
  looked.alarms = c.last_alarms.map((alarm) => alarm.time);
  looked.channels.forEach(([value, ahead, usual], n) => {
    const edge = (sign) => ahead.map((y, k) => (y === null || usual[k] === null ? null : y + sign * usual[k]));
    looked.plots[n].set([looked.time, edge(-1), edge(1), ahead, value]);
  });
  looked.score.set([looked.time, looked.scores]);
}

function showChosen(c, now) {
  place("chosen").hidden = !c;
  if (!c) return;
  const error = c.error_ratio === null ? "" : `; squared error of the forecasts ${share(c.error_ratio)} of that of "it stays as it is"`;
  const more = c.channels.length < c.channels_in_all ? `; the first ${c.channels.length} of ${c.channels_in_all} channels` : "";
  const [least, of] = c.firm, ranks = (c.critical ? "; critical" : "") +
    (least ? `; ${least} of any ${of} answers refined: ${whole(c.broken)} broke that` : "");
  texts([place("chosen-name"), place("chosen-about")], [
    c.name,
    `answered within ${number(c.deadline_ms)} ms${ranks}${error}${more}; ${c.feedback.received} answers and labels, ` +
    `${c.feedback.learned} learned; ${c.dismissed} samples kept quiet as dismissed before`,
  ]);
  extend(c);
  place("no-alarms").hidden = c.last_alarms.length > 0;
  each(place("alarms"), c.last_alarms, (alarm) => `${c.name} ${alarm.time}`, (alarm) => alarmItem(c.name, alarm), (item, alarm) => {
    texts([item.when], [`${ago(now - alarm.at_s)} ago, score ${alarm.score.toFixed(3)}, ${alarm.level}`]);
    const here = told.get(`${c.name} ${alarm.time}`); // unless somebody else has answered since
    item.label = alarm.label;
    texts([item.said], [here && here.label === alarm.label ? here.text
      : alarm.label === null ? "" : `answered: "${ANSWERS[alarm.label]}"`]);
  });
}

function alarmItem(stream, alarm) {
  const item = make("li"), answer = make("div", "", "answer");
  item.when = make("span", "", "quiet");
  item.said = make("span", "", "quiet");
  item.append(make("strong", alarm.reason), make("br"), item.when);
  if (alarm.moments.length) {
    const moments = alarm.moments.map(([samples, weight]) => `${whole(samples)} (${share(weight)})`).join(", ");
    item.append(make("div", `attended to samples ago: ${moments}`, "quiet"));
  }
  if (alarm.channels.length > 1) {
    const parts = alarm.channels.map(([name, weight]) => `${name} ${share(weight)}`).join(", ");
    item.append(make("div", `kept apart from them by: ${parts}`, "quiet"));
  }
  for (const label of [1, 0]) {
    const button = make("button", ANSWERS[label]);
    button.onclick = () => tell(stream, alarm.time, label, item);
    answer.append(button);
  }
  answer.append(item.said);
  item.append(answer);
  return item;
}

async function tell(stream, time, label, item) {
  let text, known = item.label;
  try {
    const reply = await fetch("/feedback", {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ stream, time, label }),
    });
    const found = await reply.json();
    text = reply.ok ? `"${ANSWERS[label]}" ${found.said}; ${found.learned} learned of this stream` : found.error;
    if (reply.ok && found.said === "counted") known = label;
  } catch (error) {
    text = `not told: ${error.message}`;
  }
  told.set(`${stream} ${time}`, { text, label: known });
}

// --- governors ----------------------------------------------------------------------------------

const MINUTE = 62; // [s]

function bankSection(bank) {
  const section = make("section"), head = make("div", "", "head"), plots = make("div", "", "cards"), cards = make("div", "", "cards");
  section.mode = make("span", "", "quiet");
  head.append(make("h2", `Governor of the ${whole(bank.streams)} stream${bank.streams === 1 ? "" : "s"} with ${bank.channels} channel${bank.channels === 1 ? "" : "s"}`), section.mode);
  const box = (title) => { const made = make("div"); made.append(make("h3", title)); plots.append(made); return made; };
  const level = box("Level in use: share of the answers, last minute [%]");
  section.level = sharePlot(level, bank.levels);
  section.legend = make("div", "", "legend");
  level.append(section.legend);
  section.slack = histogramPlot(box("Slack: time that calls had until the first answer was due [ms]"), "");
  const cost = box("Predicted against real cost: what calls took, in times what was expected");
  section.ratio = histogramPlot(cost, "\u00d7");
  section.longer = make("div");
  cost.append(section.longer);
  section.cards = cards;
  section.seen = []; // [when, answers by level]
  section.append(head, plots, cards);
  return section;
}

function showLevels(section, bank) {
  const seen = section.seen, answers = bank.levels.map((name) => bank.answers[name] || 0);
  if (seen.length && bank.at_s - seen.at(-1)[0] < 0.9) return;
  seen.push([bank.at_s, answers]);
  while (seen[0][0] < bank.at_s - MINUTE) seen.shift();
  const steps = seen.slice(1).map(([at, now], n) => [at, now.map((count, k) => count - seen[n][1][k])])
    .map(([at, some]) => [at, some, some.reduce((sum, count) => sum + count, 0)]).filter(([, , sum]) => sum > 0);
  const shares = bank.levels.map((_, k) => steps.map(([, some, sum]) => (100 * some[k]) / sum));
  section.level.set([steps.map(([at]) => at - bank.at_s), ...stacked(shares)]);
  const last = steps.at(-1);
  each(section.legend, bank.levels, (name) => name, (name) => {
    const entry = make("span"), swatch = make("span", "", "swatch");
    swatch.style.background = levelColour(bank.levels.indexOf(name), bank.levels.length);
    entry.append(swatch, make("span"));
    return entry;
  }, (entry, name) => {
    const k = bank.levels.indexOf(name);
    texts([entry.lastChild], [`${name} ${last ? share(last[1][k] / last[2]) : "-"}`]);
  });
}

function showBanks(banks, budgets, now, inAll) {
  each(place("banks"), banks, (bank) => bank.channels, bankSection, (section, bank) => {
    const more = banks.length < inAll ? `; ${inAll - banks.length} more governors are not shown` : "";
    texts([section.mode], [`${bank.mode}${bank.cause ? `: ${words(bank.cause)}` : ""}${more}`]);
    section.mode.className = bank.mode === "NORMAL" ? "quiet" : "warn";
    showLevels(section, bank);
    section.slack.set(binned(bank.slack, 1e3));
    section.ratio.set(binned(bank.ratio, 1));
    texts([section.longer], [`${whole(bank.longer)} of ${whole(bank.sure)} calls that were to be in time took longer than there was${part(bank.longer, bank.sure)}`]);
    const answered = Object.values(bank.answers).reduce((sum, count) => sum + count, 0);
    const cards = section.cards;
    card(cards, "misses", "Answers that missed their deadline, by cause", counts(bank.causes));
    card(cards, "reasons", "Answers that are mandatory alone, by reason", counts(bank.reasons));
    card(cards, "traded", "What was traded away", [
      ["refined answers lost", `${whole(bank.mandatory)}${part(bank.mandatory, answered)}`],
      ["answers below the highest level", `${whole(bank.simpler)}${part(bank.simpler, answered)}`],
      ["samples left out of the model's memory", whole(bank.left_out)],
      ["gradient steps taken", whole(bank.learn_steps)],
      ["gradient steps undone", whole(bank.learn_rejected)],
    ]);
    card(cards, "calls", "Calls to the model by level", counts(bank.calls));
    card(cards, "budgets", "Budgets: spent of what was granted", budgets.map((b) => [
      `${b.name}, at most ${number(b.rate)} ${b.unit}/s, price ${number(b.price)}`,
      `${number(b.spent, 4)} of ${number(b.granted, 4)} ${b.unit}`,
    ]), "nothing but time is limited");
    card(cards, "changes", "Changes of the governor's mode", bank.changes.slice(-6).reverse().map((change) => [
      `${change.mode}${change.cause ? `: ${words(change.cause)}` : ""}`, `${ago(now - change.at_s)} ago`,
    ]));
  });
}

// --- the account, the agent ---------------------------------------------------------------------

function showAccount(a) {
  const terms = [[a.received, "received ="], [a.full, "full +"], [a.mandatory, "mandatory +"], [a.shed, "shed +"], [a.in_flight, "in flight"]];
  each(place("account"), terms, ([, name]) => name, ([, name]) => {
    const term = make("span");
    term.append(make("b"), make("span", ` ${name}`, "quiet"));
    return term;
  }, (term, [count]) => texts([term.firstChild], [whole(count)]));
  const box = place("account-reasons");
  card(box, "mandatory", "Mandatory, by reason", counts(a.reasons));
  card(box, "shed", "Shed, by policy", counts(a.shed_by));
  card(box, "never", "Never received", [
    ["missing in the sequence", whole(a.missing)], ["came twice", whole(a.duplicates)],
    ...counts(a.rejected), ...Object.entries(a.of_no_stream).map(([code, n]) => [`of no stream: ${code}`, whole(n)]),
  ]);
}

function showAgent(g) {
  const box = place("agent");
  card(box, "lag", "How late the event loop is [ms]", [
    ["half of the time at most", number(g["lag_p50_ms"])], ["99 % of the time at most", number(g["lag_p99_ms"])],
    ["99.9 % of the time at most", number(g["lag_p99.9_ms"])], ["at worst", number(g["lag_p100_ms"])],
    ["stalls of about a second", whole(g.stalls)],
  ]);
  const collected = (c) => `${c.full}, longest ${number(c.longest_ms, 2)} ms`;
  card(box, "garbage", "Full collections of garbage", [
    ["the agent's process", collected(g.collections)],
    ...(g.collections_models ? [["the models' process", collected(g.collections_models)]] : []),
  ]);
  card(box, "compiled", "Programs compiled since the start", counts(g.compiled));
  card(box, "memory", "Memory, apart from files", [
    ["held", g.held_bytes ? megabytes(g.held_bytes) : "-"],
    ["allowed", g.allowed_bytes === null ? "no limit" : megabytes(g.allowed_bytes)],
  ]);
}

// --- the connection -----------------------------------------------------------------------------

const chosen = () => decodeURIComponent(location.hash.slice(1));
let connection = null; // to be aborted when something else is to be looked at

function show(m) {
  if (!chosen() && m.streams.lines.length) {
    history.replaceState(null, "", `#${encodeURIComponent(m.streams.lines[0].name)}`);
    return connection.abort("again");
  }
  showState(m);
  showStreams(m.streams);
  showChosen(m.chosen, m.now_s);
  showBanks(m.banks, m.agent.budgets, m.now_s, m.banks_in_all);
  showAccount(m.account);
  showAgent(m.agent);
}

async function listen(signal) {
  const query = new URLSearchParams({ stream: chosen(), find: place("find").value });
  const reply = await fetch(`/events?${query}`, { signal });
  if (reply.status === 404) history.replaceState(null, "", location.pathname); // no such stream
  if (!reply.ok) throw new Error(await reply.text());
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the agent has ended the connection");
    const messages = (text + value).split("\n\n");
    text = messages.pop();
    place("trouble").hidden = true;
    for (const message of messages) show(JSON.parse(message.slice("data: ".length)));
  }
}

async function stay() {
  for (;;) {
    connection = new AbortController();
    try {
      if (!document.hidden) await listen(connection.signal);
    } catch (error) {
      if (!connection.signal.aborted) {
        place("trouble").hidden = false;
        texts([place("trouble")], [`Not connected, what is shown is old: ${error.message || error} Trying again.`]);
        await new Promise((over) => setTimeout(over, 2000));
      }
    }
    if (document.hidden) await new Promise((over) => document.addEventListener("visibilitychange", over, { once: true }));
  }
}

const again = () => connection?.abort("again");
window.addEventListener("hashchange", again);
document.addEventListener("visibilitychange", again);
let typing = 0;
place("find").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(again, 300); });
history.replaceState(null, "", location.pathname + location.hash); // a token is in a cookie by now
stay();
