// The page of predictions, in plain JavaScript; text from data goes in as text nodes, never as HTML.
//
// A view, which the workload declares, says how a row is shown (meltr_ray/video/tasks/views.py is one for each task of video):
//   head      column that heads a row                    height   [wide, narrow] of a row, in rem
//   under     parts below it                             search   columns whose words are searched
//   side      parts at the right                         by       column whose values can be chosen, such as a type
//   details   [name, part] pairs of the dialog           shows    more filters: {name, label, column, test}
//   verdict   {show: part, bad: {column, test}, unjudged: only where `correct` is null} in place of right and wrong
//   title, right_label (of that filter), noun            words of the page
// A part is {as: kind, column, ...}; kinds are in KINDS below. A test is is: x, at_most: x, above: x or fraction: true.
// Without a view the rows are a plain table.
"use strict";
const read = id => JSON.parse(document.getElementById(id).textContent);
const { count, columns, view } = read("predictions"), pictures = new Map(Object.entries(read("thumbnails")));
const list = document.getElementById("list"), details = document.getElementById("details");
const controls = document.querySelector("form");
const SPARE = 6;       // rows drawn above and below those in view, so that Tab and arrow keys find the next one
const LONGEST = 400;   // characters of one text in a row; all of it is in the details

// Elements

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children.filter(child => child != null));
  return element;
}
const isNumber = x => typeof x === "number";
const decimal = (x, digits = 2) => isNumber(x) ? x.toFixed(digits).replace("-", "−") : "–";
const percent = x => isNumber(x) ? `${(100 * x).toFixed(0)}\u00a0%` : "–";
const whole = text => text == null ? "–" : String(text) || "(empty)";
const short = text => whole(text).length > LONGEST ? whole(text).slice(0, LONGEST) + "…" : whole(text);
const VERDICTS = new Map([[true, ["good", "✓ right"]], [false, ["bad", "✗ wrong"]]]);
const at = (name, i) => Object.hasOwn(columns, name) ? columns[name][i] ?? null : null;
const quality = i => at("quality", i);
const verdict = i => VERDICTS.get(at("correct", i)) ?? ["", "not judged"];

function frames(clip) {
  if (!pictures.has(clip)) return make("div", "frames none", clip);
  const image = make("img", "frames");
  image.alt = `Frames of ${clip}`;
  image.decoding = "async";
  image.src = `data:image/jpeg;base64,${pictures.get(clip)}`;
  return image;
}
function labelled(label, text, className = "") {
  return make("div", "two one", make("span", "label", label), make("span", className, text));
}
function items(values, tag = "ul") {
  return make(tag, "", ...(values ?? []).map(value => make("li", "", whole(value))));
}
function test(condition, i) {
  const x = at(condition.column, i);
  if ("is" in condition) return x === condition.is;
  if (!isNumber(x)) return false;
  return "at_most" in condition ? x <= condition.at_most : "above" in condition ? x > condition.above : x % 1 !== 0;
}
function say(part, i) {
  const found = at(part.column, i);
  if (found == null && part.optional) return null;
  const x = part.negative && isNumber(found) ? -found : found;
  return (part.before ?? "") + (part.format === "percent" ? percent(x) : part.digits == null ? whole(x) : decimal(x, part.digits));
}
function ranking(part, i) {
  const entries = (at(part.ids, i) ?? []).slice(0, part.shown).map((id, place) => {
    const right = id === columns.id[i];
    const name = make("div", "clip", `${place + 1}${right ? " ✓ right" : ""} · ${decimal(at(part.scores, i)?.[place], 3)}`);
    const entry = make("li", right ? "is" : "", frames(id), name);
    entry.title = id;
    return entry;
  });
  return make("ol", "top", ...entries);
}
function scale(part, i) {
  const mark = (value, name, className) => {
    if (!isNumber(value)) return null;
    const dot = make("i", className);
    dot.style.left = `${100 * (Math.max(part.low, Math.min(part.high, value)) - part.low) / (part.high - part.low)}%`;
    dot.title = name;
    return dot;
  };
  const bar = make("div", "scale", mark(at(part.truth, i), "truth", ""), mark(at(part.predicted, i), "predicted", "guess"));
  bar.setAttribute("aria-hidden", "true");
  return bar;
}
function listed(part, i) {
  const values = at(part.column, i) ?? [], some = document.createDocumentFragment(), more = values.length - part.shown;
  some.append(...values.slice(0, part.shown).map(text => labelled(part.label, short(text))));
  if (more > 0) some.append(make("div", "small", `and ${more} more`));
  return some;
}
function options(part, i) {
  const right = at(part.right, i), chosen = at(part.chosen, i);
  return at(part.column, i) && make("ol", "", ...at(part.column, i).map(option => make("li",
    option === right ? "good" : option === chosen ? "bad" : "",
    whole(option), option === right ? " (answer)" : "", option === chosen ? " (predicted)" : "")));
}
const KINDS = {  // (part, row, whether in the details or at the side, where nothing is cut short) -> text, element, or null for nothing
  value: (part, i) => say(part, i),
  flag: (part, i) => test(part, i) ? part.text : null,
  text: (part, i, full) => full ? whole(at(part.column, i))
    : labelled(part.label, short(at(part.column, i)), part.judged ? verdict(i)[0] : ""),
  words: (part, i) => at(part.column, i) && make("div", "small two", short((part.before ?? "") + at(part.column, i).join(" · "))),
  line: (part, i, full) => {
    const text = part.parts.map(each => render(each, i, true)).filter(each => each != null).join(part.join);
    return full ? text : make("div", "small", text);
  },
  list: listed,
  items: (part, i) => items(at(part.column, i)),
  options,
  ranking,
  scale,
  cell: (part, i) => cell(at(part.column, i)),
};
const render = (part, i, full = false) => (KINDS[part.as] ?? KINDS.value)(part, i, full);

function cell(x) {
  if (typeof x === "boolean") return x ? "yes" : "no";
  if (isNumber(x)) return String(x).replace("-", "−");
  if (Array.isArray(x)) return x.map(cell).join(", ") || "(empty)";
  return x !== null && typeof x === "object" ? JSON.stringify(x) : whole(x);
}

// A row: as the view says, or as cells of a plain table

const plain = !view.head;
const shape = plain ? { head: "id", details: Object.keys(columns).filter(name => !["id", "source", "correct", "quality"].includes(name))
  .map(name => [name, { as: "cell", column: name }]), search: Object.keys(columns) } : view;

function headline(i) {
  const { show, bad, unjudged } = shape.verdict ?? {}, right = at("correct", i) === true;
  if (!show || (unjudged && at("correct", i) != null)) return verdict(i);
  return [right ? "good" : bad && test(bad, i) ? "bad" : "", (right ? "✓ " : "") + render(show, i, true)];
}
const MOST_CELLS = 8;  // columns of the table; the others are in the details
const cells = Object.keys(columns).filter(name => name !== "source" || columns.source.some((source, i) => source !== columns.id[i]))
  .slice(0, MOST_CELLS);
const numbers = new Set(plain ? cells.filter(name => columns[name].every(x => x == null || isNumber(x))) : []);
if (plain) {
  document.documentElement.style.setProperty("--cells", cells.length);
  if (count) controls.append(make("div", "names", ...cells.map(name => make("span", numbers.has(name) ? "amount" : "", name))));
}
function cellOf(name, i, button) {
  if (name === "id") return button;
  const [className, text] = name === "correct" ? verdict(i) : ["", short(cell(at(name, i)))];
  return make("div", `${numbers.has(name) ? "amount " : ""}${className}`, text);
}
function insides(i, button) {
  if (plain) return cells.map(name => cellOf(name, i, button));
  const [className, text] = headline(i), notes = (shape.side ?? []).map(part => render(part, i, true)).filter(Boolean);
  return [
    make("div", "picture", frames(columns.id[i]), pictures.has(columns.id[i]) ? make("div", "clip", columns.id[i]) : null),
    make("div", "words", button, ...(shape.under ?? []).map(part => render(part, i))),
    make("div", "side", make("b", className, text), ...notes.map(note => make("div", "two", note))),
  ];
}
function makeRow(place) {
  const i = shown[place], button = make("button", `open two${plain ? " one" : ""}`, short(at(shape.head, i)));
  button.type = "button";
  button.setAttribute("aria-haspopup", "dialog");
  const row = make("li", plain ? "row cells" : "row", ...insides(i, button));
  row.style.top = `${place * rowHeight}px`;
  row.dataset.place = place;
  row.setAttribute("aria-setsize", shown.length);
  row.setAttribute("aria-posinset", place + 1);
  return row;
}

// The list: as high as all rows would be, with those in view drawn

let shown = [], rowHeight = 1;
const drawn = new Map();  // place in `shown` -> element

function draw() {
  const above = -list.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(above / rowHeight) - SPARE);
  const last = Math.min(shown.length, Math.ceil((above + innerHeight) / rowHeight) + SPARE);
  for (const [place, row] of drawn) {
    if ((place >= first && place < last) || row.contains(document.activeElement)) continue;  // the focus stays on its row
    row.remove();
    drawn.delete(place);
  }
  let next = drawn.get(Math.min(...[...drawn.keys()].filter(place => place >= last))) ?? null;
  for (let place = last - 1; place >= first; place--) {
    if (!drawn.has(place)) {
      drawn.set(place, makeRow(place));
      list.insertBefore(drawn.get(place), next);
    }
    next = drawn.get(place);
  }
}
function measure() {
  const probe = make("li", "row probe");
  list.append(probe);
  rowHeight = probe.getBoundingClientRect().height;
  probe.remove();
}
function lay() {
  measure();
  drawn.clear();
  list.replaceChildren();
  if (!shown.length) list.append(make("li", "nothing", count ? "No prediction matches." : "There are no predictions."));
  list.style.height = shown.length ? `${shown.length * rowHeight}px` : "auto";
  draw();
}
function reveal(place) {
  const row = place * rowHeight, top = list.getBoundingClientRect().top + scrollY;
  const covered = getComputedStyle(controls).position === "sticky" ? controls.offsetHeight : 0;
  if (top + row < scrollY + covered) scrollTo(0, top + row - covered);
  if (top + row + rowHeight > scrollY + innerHeight) scrollTo(0, top + row + rowHeight - innerHeight);
  draw();
  drawn.get(place)?.querySelector(".open").focus({ preventScroll: true });
}

// Search, filters, order

const all = Array.from({ length: count }, (_, i) => i);
const haystacks = all.map(i => ["id", "source", ...(shape.search ?? [])].flatMap(name => at(name, i)).join("\n").toLowerCase());
const judged = all.filter(i => quality(i) != null), rest = all.filter(i => quality(i) == null);  // those without come last
const best = judged.toSorted((i, j) => quality(j) - quality(i)), worst = judged.toSorted((i, j) => quality(i) - quality(j));
const ORDERS = { file: all, best: [...best, ...rest], worst: [...worst, ...rest] };
const SHOWS = {
  all: () => true, right: i => at("correct", i) === true, wrong: i => at("correct", i) === false,
  ...Object.fromEntries((shape.shows ?? []).map(each => [each.name, i => test(each, i)])),
};
const settings = () => Object.fromEntries(new FormData(controls));

function choose({ search, show = "all", type, order }) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean), passes = SHOWS[show];
  const matches = i => words.every(word => haystacks[i].includes(word));
  return ORDERS[order].filter(i => passes(i) && (!type || String(at(shape.by, i)) === type) && matches(i));
}
function refresh() {
  const chosen = settings();
  shown = choose(chosen);
  const known = shown.filter(i => at("correct", i) != null), right = known.filter(i => at("correct", i)).length;
  const share = known.length && chosen.show === "all" ? ` · ${percent(right / known.length)} right` : "";
  controls.querySelector("output").value = `${shown.length.toLocaleString("en")} of ${count.toLocaleString("en")}${share}`;
  const top = list.getBoundingClientRect().top + scrollY - controls.offsetHeight;
  if (scrollY > top) scrollTo(0, top);
  lay();
}
function remember() {  // in the address, so that a view can be kept or sent
  const usual = name => controls.elements[name].options?.[0].value ?? "";
  const changed = Object.entries(settings()).filter(([name, value]) => value !== usual(name));
  history.replaceState(null, "", "#" + new URLSearchParams(changed));
}
function recall() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const control = controls.elements.namedItem(name);
    if (control && (!control.options || [...control.options].some(option => option.value === value))) control.value = value;
  }
}

// Details of one prediction

let place = 0;  // in `shown`, of the row that the details are of

function fill() {
  const i = shown[place], [className, text] = headline(i), facts = make("dl", "");
  const heading = make("h2", "", whole(at(shape.head, i)));
  heading.id = "heading";
  const named = [...(shape.details ?? []).map(([name, part]) => [name, render(part, i, true)]),
    ...(Object.hasOwn(columns, "quality") ? [["quality", decimal(quality(i), 3)]] : []),
    [shape.noun ?? "id", columns.id[i]], ["source", columns.source[i]]];
  for (const [name, value] of named) if (value != null) facts.append(make("dt", "", name), make("dd", "", value));
  const picture = !plain || pictures.has(columns.id[i]) ? [frames(columns.id[i])] : [];
  const judgement = !plain || Object.hasOwn(columns, "correct") ? [make("b", className, text)] : [];
  details.querySelector(".content").replaceChildren(...picture, heading, ...judgement, facts);
  details.querySelector("nav span").textContent = `${(place + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`;
  details.scrollTop = 0;
}
function move(by) {
  if (shown[place + by] === undefined) return;
  place += by;
  fill();
}

list.addEventListener("click", event => {
  const row = event.target.closest(".row");
  if (!row || getSelection().toString()) return;
  place = Number(row.dataset.place);
  fill();
  details.showModal();
});
list.addEventListener("keydown", event => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key], row = event.target.closest(".row");
  if (!by || !row) return;
  event.preventDefault();
  const goal = Number(row.dataset.place) + by;
  if (shown[goal] !== undefined) reveal(goal);
});
details.addEventListener("click", event => {
  const { value } = event.target;
  if (event.target === details || value === "close") details.close();  // the dialog itself: a click on its backdrop
  else if (value) move(Number(value));
});
details.addEventListener("keydown", event => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) move(by);
});
details.addEventListener("close", () => reveal(place));
document.addEventListener("keydown", event => {
  if (event.key !== "/" || details.open || event.target === controls.elements.search) return;
  event.preventDefault();
  controls.elements.search.focus();
});
controls.addEventListener("submit", event => event.preventDefault());
controls.addEventListener("input", () => { refresh(); remember(); });
let waiting = 0;
addEventListener("scroll", () => { waiting ||= requestAnimationFrame(() => { waiting = 0; draw(); }); }, { passive: true });
addEventListener("resize", lay);
recall();
refresh();
