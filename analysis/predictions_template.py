"""The page of predictions: HTML and CSS, in the look of a report's page, light or dark as the reader's system asks."""

CSS = """
:root { color-scheme: light dark; --paper: #fff; --right: #005a8f; --wrong: #a84300; --bar: #0072B2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --soft: #a3a3a3; --line: #3a3d40; --wash: #24272a; }
  :root { --paper: #16181a; --right: #6fc0f0; --wrong: #f0a050; --bar: #56B4E9; }
  .care { background: #2c2118; }
}
html { background: var(--paper); scroll-padding: 5rem 0 1rem; } body { max-width: 76rem; margin: 1.5rem auto; }
.controls, #list, dialog, .notes { font-family: "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
.notes { font-size: .85rem; color: var(--soft); padding-left: 1.2rem; }
:focus-visible { outline: 2px solid var(--bar); outline-offset: 2px; }
.controls { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; gap: .4rem .9rem; align-items: center;
  font-size: .85rem; margin-top: 1rem; padding: .6rem 0; background: var(--paper); border-bottom: 1.5px solid var(--ink); }
.controls input, .controls select, dialog button { font: inherit; color: inherit; background: var(--wash);
  border: 1px solid var(--soft); border-radius: 3px; padding: .25rem .45rem; }
.controls input { width: 15rem; max-width: 100%; box-sizing: border-box; } .controls select { max-width: 12rem; }
.controls output { margin-left: auto; color: var(--soft); }
#list { --height: 7rem; position: relative; list-style: none; margin: 0; padding: 0; overflow-anchor: none; }
#list.retrieval { --height: 9.2rem; } #list.multiple_choice { --height: 8.8rem; }
#list.captioning, #list.open_ended { --height: 7.4rem; }
.row { position: absolute; left: 0; right: 0; height: var(--height); box-sizing: border-box; overflow: hidden;
  contain: layout paint; margin: 0; padding: .6rem .3rem; border-bottom: 1px solid var(--line); font-size: .88rem;
  display: grid; grid-template-columns: 17rem minmax(0, 1fr) 6.5rem; gap: 0 1.1rem; align-content: start; line-height: 1.4; }
.row:hover, .row:focus-within { background: var(--wash); } .probe { visibility: hidden; }
.open { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; text-align: left; }
.open::after { content: ""; position: absolute; inset: 0; cursor: pointer; } .open:focus-visible { outline: none; }
.open:focus-visible::after { outline: 2px solid var(--bar); outline-offset: -3px; }
.two { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; overflow-wrap: anywhere; }
.one { -webkit-line-clamp: 1; }
.frames { display: block; width: auto; max-width: 100%; max-height: 5rem; border-radius: 3px;
  outline: 1px solid var(--line); outline-offset: -1px; }
.none { box-sizing: border-box; width: 100%; height: 4.5rem; padding: .3rem .5rem; background: var(--line); color: var(--ink);
  font-size: .75rem; overflow: hidden; overflow-wrap: anywhere; }
.clip, .side, .small { font-size: .75rem; color: var(--soft); overflow: hidden; text-overflow: ellipsis; }
.clip { white-space: nowrap; } .label { color: var(--soft); font-size: .75rem; margin-right: .4rem; }
.side { text-align: right; font-variant-numeric: tabular-nums; } .side b { display: block; font-size: .88rem; }
.good { color: var(--right); } .bad { color: var(--wrong); }
.top { display: flex; gap: .5rem; margin: .35rem 0 0; padding: 0; list-style: none; }
.top li { flex: 0 1 6.4rem; min-width: 0; margin: 0; }
.top .frames { width: 100%; height: 3.6rem; object-fit: cover; border: 3px solid transparent; box-sizing: border-box; }
.top .is .frames { border-color: var(--right); } .top .is .clip { color: var(--right); font-weight: 600; }
.scale { position: relative; height: .5rem; margin: .9rem .5rem .2rem 0; max-width: 24rem; border-radius: 3px;
  background: linear-gradient(var(--soft), var(--soft)) center / 1px 100% no-repeat, var(--line); }
.scale i { position: absolute; top: -.2rem; width: .9rem; height: .9rem; margin-left: -.45rem; box-sizing: border-box;
  border: 2px solid var(--ink); border-radius: 50%; }
.scale i.guess { background: var(--bar); border-color: var(--bar); border-radius: 2px; width: .3rem; margin-left: -.15rem; }
.nothing { color: var(--soft); font-style: italic; padding: 2rem 0; }
dialog { width: 46rem; max-width: calc(100vw - 2rem); max-height: 88vh; box-sizing: border-box; padding: 0;
  color: var(--ink); background: var(--paper); border: 1px solid var(--soft); border-radius: 6px; overscroll-behavior: contain; }
dialog::backdrop { background: rgb(0 0 0 / .45); }
dialog nav { position: sticky; top: 0; z-index: 1; display: flex; gap: .5rem; align-items: center; font-size: .85rem;
  padding: .8rem 1.3rem; background: var(--paper); }
dialog nav span { margin-right: auto; } dialog .content { padding: 0 1.3rem 1rem; } .content > img { max-height: 14rem; }
dialog h2 { margin: .7rem 0; padding: 0; border: 0; overflow-wrap: anywhere; }
dialog dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .35rem 1rem; font-size: .88rem; }
dialog dt { color: var(--soft); } dialog dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
dialog dd ol, dialog dd ul { margin: 0; padding-left: 1.2rem; white-space: normal; }
dialog .top { flex-wrap: wrap; } dialog .top li { flex-shrink: 0; }
@media (max-width: 50rem) {
  html { scroll-padding-top: 1rem; } .controls { position: static; } .controls output { margin-left: 0; width: 100%; }
  .row { grid-template-columns: minmax(0, 1fr) 6.5rem; } .row > .words { grid-column: 1 / -1; margin-top: .3rem; }
  .row > .picture { grid-column: 1; } .row > .side { grid-column: 2; grid-row: 1; }
  #list { --height: 12.5rem; } #list.retrieval { --height: 15.8rem; } #list.multiple_choice { --height: 14.6rem; }
}
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{{ title }}</title><style>{{ css | safe }}</style></head><body>
<h1>{{ title }}</h1>
<p class="facts">{{ facts }}</p>
{% if care %}<div class="care"><p>What is missing or needs care:</p>
<ul>{% for line in care %}<li>{{ line }}</li>{% endfor %}</ul></div>{% endif %}
{% if metrics %}<div class="scroll"><table>
<thead><tr><th>Metric</th><th class="number">Value</th><th class="number">95 % interval</th></tr></thead>
<tbody>{% for name, value, interval in metrics %}<tr><td>{{ name }}</td>
<td class="number">{{ value }}</td><td class="number">{{ interval }}</td></tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if notes %}<ul class="notes">{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
<form class="controls" role="search" aria-label="Predictions">
<label>Search <input type="search" name="search" autocomplete="off" spellcheck="false"
  aria-keyshortcuts="/" placeholder="words, or a clip’s name"></label>
{% if judged %}<label>Show <select name="show"><option value="all">all</option>
<option value="right">right{% if task == "retrieval" %} (rank 1){% endif %}</option><option value="wrong">wrong</option>
{% if task == "retrieval" %}<option value="ten">in first 10</option><option value="beyond">beyond first 10</option>{% endif %}
{% if task == "open_ended" %}<option value="unknown">answer not in vocabulary</option>{% endif %}</select></label>{% endif %}
{% if types %}<label>Type <select name="type"><option value="">all</option>
{% for type, count in types %}<option value="{{ type }}">{{ type }} ({{ count }})</option>{% endfor %}</select></label>{% endif %}
<label>Order <select name="order"><option value="file">as in the file</option><option value="worst">worst first</option>
<option value="best">best first</option></select></label>
<output aria-live="polite"></output></form>
<noscript><p class="care">The predictions are drawn by a script in this page; allow it to see them.</p></noscript>
<ul id="list" class="{{ task }}" role="list" aria-label="Predictions"></ul>
<dialog id="details" aria-labelledby="heading"><nav><span></span>
<button type="button" value="-1" aria-keyshortcuts="ArrowLeft">← Previous</button>
<button type="button" value="1" autofocus aria-keyshortcuts="ArrowRight">Next →</button>
<button type="button" value="close">Close</button></nav><div class="content"></div></dialog>
<script type="application/json" id="predictions">{{ predictions | tojson }}</script>
<script type="application/json" id="thumbnails">{{ thumbnails | tojson }}</script>
<script>{{ script | safe }}</script>
</body></html>
"""
