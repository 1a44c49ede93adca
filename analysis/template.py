"""The page of a report: plain HTML and CSS, one file, no script, readable offline and in print."""

CSS = """
:root { --ink: #222; --soft: #666; --line: #ddd; --wash: #f6f7f8; }
body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: var(--ink); max-width: 60rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1, h2, table, figcaption, .answer, .facts, .care, .note { font-family: "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
.facts { color: var(--soft); font-size: .85rem; margin: 0 0 1.5rem; }
.answer { background: var(--wash); border-left: 4px solid #0072B2; padding: .9rem 1.1rem; margin: 0 0 1rem; }
.answer p { margin: 0 0 .4rem; } .answer p:first-child { font-size: 1.15rem; font-weight: 600; } .answer p:last-child { margin: 0; }
.care { border-left: 4px solid #D55E00; background: #fdf5ef; padding: .6rem 1.1rem; } .care p { margin: 0; } .care ul { margin: .3rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; margin: .75rem 0 .35rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th { text-align: left; font-weight: 600; border-bottom: 1.5px solid var(--ink); vertical-align: bottom; }
th, td { padding: .28rem .8rem .28rem 0; } td { border-bottom: 1px solid var(--line); vertical-align: top; }
td:last-child { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0; } img { width: 100%; height: auto; } figcaption, .note { font-size: .85rem; color: var(--soft); }
code { font-size: .85em; overflow-wrap: anywhere; } li { margin: .2rem 0; }
@media print { body { max-width: none; margin: 0; font-size: 11pt; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } .scroll { overflow: visible; } }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>{{ css | safe }}</style></head><body>
<h1>{{ title }}</h1>
<p class="facts">{{ facts }}</p>
<div class="answer">{% for line in answer %}<p>{{ line }}</p>{% endfor %}</div>
{% if care %}<div class="care"><p>What is missing or needs care:</p><ul>{% for line in care %}<li>{{ line }}</li>{% endfor %}</ul></div>{% endif %}
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for text in section.texts %}<p>{{ text }}</p>{% endfor %}
{% if section.figure %}<figure><img alt="{{ section.caption }}" src="data:image/png;base64,{{ section.figure }}"><figcaption>{{ section.caption }}</figcaption></figure>
{% elif section.caption %}<p class="note">The figure is not drawn: there is no data for it yet.</p>{% endif %}
{% for table in section.tables if table %}<div class="scroll"><table>{% if table.caption %}<caption>{{ table.caption }}</caption>{% endif %}
<thead><tr>{% for name in table.header %}<th{% if table.numeric(loop.index0) %} class="number"{% endif %}>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>{% for cell in row %}<td{% if table.numeric(loop.index0) %} class="number"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% if table.note %}<p class="note">{{ table.note }}</p>{% endif %}{% endfor %}
{% if section.items %}<ul>{% for item in section.items %}<li>{{ item }}</li>{% endfor %}</ul>{% endif %}
{% endfor %}
</body></html>
"""
