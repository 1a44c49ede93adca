"""The script of the page of predictions: plain JavaScript; text from data goes in as text nodes, never as HTML."""

SCRIPT = r"""
"use strict";
const read = id => JSON.parse(document.getElementById(id).textContent);
const { task, count, columns } = read("predictions"), pictures = new Map(Object.entries(read("thumbnails")));
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
const quality = i => columns.quality[i];
const verdict = i => VERDICTS.get(columns.correct[i]) ?? ["", "not judged"];

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
function topList(i, number) {
  const entries = (columns.top_ids[i] ?? []).slice(0, number).map((clip, place) => {
    const right = clip === columns.id[i];
    const name = make("div", "clip", `${place + 1}${right ? " ✓ right" : ""} · ${decimal(columns.top_scores[i]?.[place], 3)}`);
    const entry = make("li", right ? "is" : "", frames(clip), name);
    entry.title = clip;
    return entry;
  });
  return make("ol", "top", ...entries);
}
function scale(i) {
  const mark = (value, name, className) => {
    const dot = make("i", className);
    dot.style.left = `${100 * (Math.max(-3, Math.min(3, value)) + 3) / 6}%`;
    dot.title = name;
    return dot;
  };
  const { truth, predicted } = columns;
  const bar = make("div", "scale", isNumber(truth[i]) ? mark(truth[i], "truth", "") : null,
    isNumber(predicted[i]) ? mark(predicted[i], "predicted", "guess") : null);
  bar.setAttribute("aria-hidden", "true");
  return bar;
}
function items(values, tag = "ul") {
  return make(tag, "", ...(values ?? []).map(value => make("li", "", whole(value))));
}

// What each task shows: the text that heads a row, what stands under it, its side notes, its details and the texts searched

const question = {
  head: i => columns.question[i],
  under: i => [labelled("predicted", short(columns.predicted[i]), verdict(i)[0]), labelled("answer", short(columns.answer[i])),
    columns.options[i] && make("div", "small two", short(`of ${columns.options[i].join(" · ")}`))],
  side: i => [`confidence ${percent(columns.confidence[i])}`, columns.type[i],
    columns.known[i] === false ? "answer not in vocabulary" : null],
  details: i => ({
    predicted: whole(columns.predicted[i]), answer: whole(columns.answer[i]), confidence: percent(columns.confidence[i]),
    options: columns.options[i] && make("ol", "", ...columns.options[i].map(option => make("li",
      option === columns.answer[i] ? "good" : option === columns.predicted[i] ? "bad" : "",
      whole(option), option === columns.answer[i] ? " (answer)" : "", option === columns.predicted[i] ? " (predicted)" : ""))),
    type: columns.type[i], question: columns.question_id[i],
    vocabulary: columns.known[i] === false ? "the answer is not in it, so the model can't give it" : null,
  }),
  texts: i => [...["question", "answer", "predicted", "question_id"].map(name => columns[name][i]),
    ...(columns.options[i] ?? [])],
};
const TASKS = {
  multiple_choice: question,
  open_ended: question,
  retrieval: {
    head: i => columns.query[i],
    under: i => [topList(i, 5)],
    verdict: i => [columns.correct[i] ? "good" : columns.rank[i] > 10 ? "bad" : "",
      `${columns.correct[i] ? "✓ " : ""}rank ${whole(columns.rank[i])}`],
    side: i => [`caption ${whole(columns.caption_number[i])}`, columns.rank[i] % 1 ? "tied" : null],
    details: i => ({ "first ten": topList(i, 10), rank: whole(columns.rank[i]) + (columns.rank[i] % 1 ? " (tied)" : ""),
      "video to text": columns.video_rank[i] && `rank ${columns.video_rank[i]}`,
      "caption number": whole(columns.caption_number[i]) }),
    texts: i => [columns.query[i], ...(columns.top_ids[i] ?? [])],
  },
  captioning: {
    head: i => columns.caption[i],
    under: i => {
      const references = columns.references[i] ?? [], more = references.length - 2;
      return [...references.slice(0, 2).map(text => labelled("reference", short(text))),
        more > 0 ? make("div", "small", `and ${more} more`) : null];
    },
    verdict: i => columns.correct[i] == null ? ["", `CIDEr ${decimal(quality(i))}`] : verdict(i),
    side: i => [`log p ${decimal(columns.log_probability[i])}`],
    details: i => ({ "log probability": decimal(columns.log_probability[i], 3), references: items(columns.references[i]) }),
    texts: i => [columns.caption[i], ...(columns.references[i] ?? [])],
  },
  sentiment: {
    head: i => columns.transcript[i],
    under: i => [scale(i),
      make("div", "small", `truth ○ ${decimal(columns.truth[i])} · predicted ▮ ${decimal(columns.predicted[i])}`)],
    side: i => [isNumber(columns.truth[i]) && isNumber(columns.predicted[i])
      ? `error ${decimal(Math.abs(columns.truth[i] - columns.predicted[i]))}` : null],
    details: i => ({ truth: decimal(columns.truth[i]), predicted: decimal(columns.predicted[i]), scale: scale(i) }),
    texts: i => [columns.transcript[i]],
  },
};
const view = TASKS[task];

const headline = view.verdict ?? verdict;

function makeRow(place) {
  const i = shown[place], button = make("button", "open two", short(view.head(i))), [className, text] = headline(i);
  button.type = "button";
  button.setAttribute("aria-haspopup", "dialog");
  const row = make("li", "row",
    make("div", "picture", frames(columns.id[i]), pictures.has(columns.id[i]) ? make("div", "clip", columns.id[i]) : null),
    make("div", "words", button, ...view.under(i)),
    make("div", "side", make("b", className, text), ...view.side(i).filter(Boolean).map(note => make("div", "two", note))));
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
const haystacks = all.map(i => [columns.id[i], columns.source[i], ...view.texts(i)].join("\n").toLowerCase());
const judged = all.filter(i => quality(i) != null), rest = all.filter(i => quality(i) == null);  // those without come last
const best = judged.toSorted((i, j) => quality(j) - quality(i)), worst = judged.toSorted((i, j) => quality(i) - quality(j));
const ORDERS = { file: all, best: [...best, ...rest], worst: [...worst, ...rest] };
const SHOWS = {
  all: () => true, right: i => columns.correct[i] === true, wrong: i => columns.correct[i] === false,
  ten: i => columns.rank[i] <= 10, beyond: i => columns.rank[i] > 10, unknown: i => columns.known[i] === false,
};
const settings = () => Object.fromEntries(new FormData(controls));

function choose({ search, show = "all", type, order }) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean), passes = SHOWS[show];
  const matches = i => words.every(word => haystacks[i].includes(word));
  return ORDERS[order].filter(i => passes(i) && (!type || columns.type[i] === type) && matches(i));
}
function refresh() {
  const chosen = settings();
  shown = choose(chosen);
  const known = shown.filter(i => columns.correct[i] != null), right = known.filter(i => columns.correct[i]).length;
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
  const heading = make("h2", "", whole(view.head(i)));
  heading.id = "heading";
  const named = { ...view.details(i), quality: decimal(quality(i), 3), clip: columns.id[i], source: columns.source[i] };
  for (const [name, value] of Object.entries(named)) if (value != null) facts.append(make("dt", "", name), make("dd", "", value));
  details.querySelector(".content").replaceChildren(frames(columns.id[i]), heading, make("b", className, text), facts);
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
"""
