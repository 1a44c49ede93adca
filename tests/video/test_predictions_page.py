"""The page of predictions: what goes in comes out, whatever it says; what is missing is said; a browser shows it in order."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import predictions
from meltr_ray.config import ConfigError
from meltr_ray.results.predictions import write as write_predictions
from meltr_ray.video.tasks.views import COLUMNS, VIEWS
from meltr_ray.workload import Metric

REAL = Path(__file__).parents[3] / "shared" / "data" / "msrvtt_clips"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HARD = [
    "</script><script>alert(1)</script>", "<!-- <script>", "a \"quote\", an 'apostrophe' & an &amp;",
    "two men \U0001f3b8 сидят 坐着",
    "line\u2028separator \\u003c \n new line \t tab", "", "word " * 10_000, "{{ title }} {% raw %}", "__proto__", "toString",
]  # fmt: skip
WORDS = "a man is talking about cars while two women cook pasta in the kitchen and children play guitar outside".split()


def sentences(count, length=9):
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, length)) for _ in range(count)]


def questions(texts, options):
    count, rng = len(texts), np.random.default_rng(1)
    answers, guesses = rng.choice(WORDS, (2, count)).tolist()
    confidence, pairs = rng.random(count), list(zip(answers, guesses, strict=True))
    choices = [[answer, guess, "neither"] if options else None for answer, guess in pairs]
    return {
        "correct": [answer == guess for answer, guess in pairs], "quality": confidence, "confidence": confidence,
        "question_id": [f"q{i}" for i in range(count)], "question": texts, "answer": answers, "predicted": guesses,
        "type": [("what", "who", "how<b>")[i % 3] for i in range(count)], "known": [i % 5 > 0 for i in range(count)],
        "options": pa.array(choices, pa.list_(pa.string())),
    }  # fmt: skip


def retrieval(texts, clips):
    rng = np.random.default_rng(2)
    rank = np.ceil(rng.exponential(8, len(texts))) + 0.5 * (rng.random(len(texts)) < 0.1)
    own = [clips[i % len(clips)] for i in range(len(texts))]
    top = [[clips[j] for j in rng.integers(0, len(clips), 30) if clips[j] != clip] for clip in own]
    for row, clip, r in zip(top, own, rank, strict=True):
        row[:] = (row[: int(r) - 1] + [clip] * int(r <= 10) + row[int(r) - 1 :])[:10]
    return {"correct": rank <= 1, "quality": -rank, "query": texts, "caption_number": pa.array(range(len(texts)), pa.int32()),
            "rank": rank, "video_rank": np.where(rank > 2, rank, np.nan), "top_ids": top, "top_scores": np.sort(rng.normal(size=(len(texts), 10)))[:, ::-1].tolist()}  # fmt: skip


def columns_of(task, texts, clips):
    """Columns of one task whose main text is `texts`; `correct` and `quality` have nulls where a task may have them."""
    count, rng = len(texts), np.random.default_rng(3)
    match task:
        case "retrieval":
            own = retrieval(texts, clips)
        case "captioning":
            own = {"correct": pa.nulls(count, pa.bool_()), "quality": rng.random(count), "caption": texts,
                   "references": pa.array([texts[:20]] * count, pa.list_(pa.string())),
                   "log_probability": -20 * rng.random(count)}  # fmt: skip
        case "sentiment":
            truth, guess = rng.uniform(-3, 3, (2, count))
            own = {"correct": pa.array((truth > 0) == (guess > 0), mask=abs(truth) < 0.2), "quality": -abs(truth - guess),
                   "transcript": texts, "truth": truth, "predicted": guess}  # fmt: skip
        case _:
            own = questions(texts, options=task == "multiple_choice")
    ids = [clips[i % len(clips)] for i in range(count)]
    return {"id": pa.array(ids, pa.string()), "source": pa.array([f"source of {clip}" for clip in ids], pa.string()), **own}


def write(folder, task, texts, clips=("video1", "video2", "video3"), thumbnails=None, metrics=True):
    """A folder of predictions; returns their columns as they are stored."""
    facts = {"split": "test", "data": "MSR-VTT", "checkpoint": "outputs/<run>/best", "notes": HARD[:3],
             "metrics": {"recall_at_10": 37.0123, "MAE": 1.138, "median_rank": np.nan},
             "intervals": {"recall_at_10": [30.2, 44.0]}}  # fmt: skip
    rows = pa.table(columns_of(task, texts, list(clips))).to_pylist()
    declared = {"recall_at_10": Metric("%", label="R@10")}
    write_predictions(folder, "digits_of_test", rows, thumbnails or {}, facts, declared, COLUMNS[task], VIEWS[task])
    if thumbnails is None:
        (folder / "thumbnails.parquet").unlink()
    if not metrics:
        (folder / "metrics.json").unlink()
    return pq.read_table(folder / "predictions.parquet")


class Page(HTMLParser):
    """What a browser's parser finds: tags with their attributes, scripts by id, text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.scripts, self.text, self.inside = [], {}, "", None
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = dict(attributes).get("id", "") if tag == "script" else tag if tag == "style" else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is None:
            self.text += data
        else:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data


def open_page(folder):
    page = Page(predictions.write_page(folder))
    data = json.loads(page.scripts["predictions"], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return page, data, json.loads(page.scripts["thumbnails"])


def rounded(values):
    """Stored values as the page holds them: six digits, no NaN."""
    if isinstance(values, list):
        return [rounded(value) for value in values]
    if isinstance(values, float):
        return None if np.isnan(values) else pytest.approx(values, rel=1e-5)
    return values


@pytest.mark.parametrize("task", COLUMNS)
def test_hard_texts_come_back_from_the_page(tmp_path, task):
    jpegs = {HARD[0]: b"\xff\xd8one", HARD[8]: b"\xff\xd8two"}
    table = write(tmp_path, task, HARD, clips=HARD, thumbnails=jpegs | {"not named": b"\xff\xd8three"})
    page, data, thumbnails = open_page(tmp_path)
    assert (data["view"], data["count"]) == (VIEWS[task], len(HARD)) and set(data["columns"]) == set(table.column_names)
    assert f"Predictions: {task.replace('_', ' ')}" in page.text
    for name in table.column_names:
        assert data["columns"][name] == rounded(table[name].to_pylist()), name
    assert {clip: base64.b64decode(jpeg) for clip, jpeg in thumbnails.items()} == jpegs
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 3 and tags.count("b") == 0  # none came from the data
    for note in HARD[:3]:
        assert note in page.text
    assert not [a for _, a in page.tags if "src" in a or "href" in a], "the page must need nothing from elsewhere"
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_numbers_that_json_lacks(tmp_path):
    table = write(tmp_path, "captioning", ["one", "two", "three"])
    odd = pa.table({**{n: table[n] for n in table.column_names}, "quality": [np.nan, np.inf, None]})
    pq.write_table(odd.replace_schema_metadata(table.schema.metadata), tmp_path / "predictions.parquet")
    assert open_page(tmp_path)[1]["columns"]["quality"] == [None, None, None]


@pytest.mark.parametrize("task", COLUMNS)
def test_a_page_of_nothing(tmp_path, task):
    write(tmp_path, task, [], metrics=False)
    page, data, thumbnails = open_page(tmp_path)
    assert data["count"] == 0 and not any(data["columns"].values()) and thumbnails == {}
    assert "metrics.json is missing" in page.text and "0 predictions" in page.text


def test_what_is_missing_is_said(tmp_path):
    write(tmp_path, "sentiment", ["fine", "bad"], thumbnails={"video1": b"jpeg"})
    text = open_page(tmp_path)[0].text
    assert "Clips without frames here: 1 of 2;" in text and "missing or can't" not in text
    assert re.search(r"R@10\s*37\.01\s*\[30\.2, 44\]\s*MAE\s*1\.138\s*–\s*median rank\s*–\s*–", text)
    facts = json.loads((tmp_path / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(facts | {"count": 7}))
    assert "The metrics are of 7 predictions, the table has 2" in open_page(tmp_path)[0].text
    (tmp_path / "metrics.json").write_text('{"task": "sent')  # a writer that was killed
    assert "metrics.json is missing or can't be read" in open_page(tmp_path)[0].text


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "is not there"),
        (b"not Parquet", "can't be read"),
        (["no", "known", "column"], "lacks id"),
    ],
)
def test_refusals_are_one_line(tmp_path, capsys, content, rule):
    path = tmp_path / "predictions.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        pq.write_table(pa.table({name: [1] for name in content}), path)
    with pytest.raises(ConfigError, match=f"predictions=.*{rule}.*; "):
        predictions.write_page(tmp_path)
    assert predictions.main([str(tmp_path)]) == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "predictions.html").exists()


def test_a_view_of_columns_that_are_not_there(tmp_path):
    table = write(tmp_path, "sentiment", ["fine"])
    other = json.dumps(VIEWS["retrieval"])
    pq.write_table(table.replace_schema_metadata({"view": other}), tmp_path / "predictions.parquet")
    assert (
        "The rows lack what their view names: caption_number, query, rank, top_ids, top_scores, video_rank" in open_page(tmp_path)[0].text
    )


ANY = [
    {"correct": np.bool_(True), "digit": np.int64(7), "votes": [1, 2], "says": HARD[0], "score": np.float32(0.25), "mixed": 3},
    {"correct": None, "digit": 2, "votes": None, "says": HARD[2], "score": float("nan"), "mixed": "text", "late": {"a": 1}},
]
"""Rows of no task of ours."""


def test_any_rows_are_a_plain_table(tmp_path):
    write_predictions(tmp_path, "primes", ANY, {}, {"metrics": {"accuracy": np.float32(50)}, "intervals": {"accuracy": (0.0, 100.0)}})
    page, data, _ = open_page(tmp_path)
    assert data["view"] == {} and data["columns"] == {
        "id": ["0", "1"], "source": ["0", "1"], "correct": [True, None], "digit": [7, 2], "votes": [[1, 2], None],
        "says": [HARD[0], HARD[2]], "score": [0.25, None], "mixed": ["3", "text"], "late": [None, {"a": 1}]}  # fmt: skip
    assert "Predictions: primes" in page.text and re.search(r"accuracy\s*50\s*\[0, 100\]", page.text)
    assert [a.get("class") for tag, a in page.tags if tag == "ul" and a.get("id") == "list"] == ["plain"]
    assert "without frames" not in page.text  # nobody promised any
    assert [a["value"] for tag, a in page.tags if tag == "option"] == ["all", "right", "wrong", "file"]  # nothing to order by


def test_own_names_and_sources_stay(tmp_path):
    write_predictions(tmp_path, "x", [{"id": 12, "source": "film", "quality": 1}, {"id": 13, "source": None, "quality": 2}], {}, {})
    columns = open_page(tmp_path)[1]["columns"]
    assert columns == {"id": ["12", "13"], "source": ["film", "13"], "quality": [1, 2]}


def test_ten_thousand_rows_hold_each_thumbnail_once(tmp_path):
    rng = np.random.default_rng(4)
    thumbnails = {f"video{i}": rng.bytes(4000) for i in range(3000)}
    table = write(tmp_path, "retrieval", sentences(10_000), clips=thumbnails, thumbnails=thumbnails)
    _, data, found = open_page(tmp_path)
    assert data["count"] == len(table) and found.keys() == thumbnails.keys()
    thumbnail_bytes, text_bytes = 3000 * 4000 * 4 / 3, len(json.dumps(data["columns"], separators=(",", ":")))
    assert (tmp_path / "predictions.html").stat().st_size < 1.02 * (thumbnail_bytes + text_bytes) + 100_000


def real_strips():
    """Three frames of each of four real clips, side by side, as JPEG."""
    import av
    from PIL import Image

    strips = {}
    for path in sorted(REAL.glob("*.mp4"))[:4]:
        with av.open(str(path)) as video:
            images = [frame.to_image() for frame in video.decode(video=0)]
        chosen = [images[int(len(images) * (k + 1) / 4)].resize((128, 96)) for k in range(3)]
        strip = Image.new("RGB", (3 * 128, 96))
        for k, image in enumerate(chosen):
            strip.paste(image, (128 * k, 0))
        strip.save(buffer := io.BytesIO(), "JPEG", quality=40)
        strips[path.stem] = buffer.getvalue()
    return strips


def browse(page: Path, tmp_path: Path, view: str) -> str:
    """The document after its script has run."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
             "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,900"]  # fmt: skip
    done = subprocess.run([BROWSER, *flags, "--dump-dom", f"file://{page}#{view}"], capture_output=True, text=True, timeout=120)
    return done.stdout


@pytest.mark.skipif(not BROWSER, reason="no Chromium to show the page")
@pytest.mark.skipif(not REAL.is_dir(), reason="real clips are not at ../shared/data/msrvtt_clips")
def test_a_browser_shows_the_chosen_rows_in_order(tmp_path):
    """Of 2,000: those wrong, of one type, with two words, worst first; only those in view are drawn, with their real frames."""
    strips = real_strips()
    table = write(tmp_path, "open_ended", sentences(1990) + HARD, clips=strips, thumbnails=strips).to_pandas()
    dom = browse(predictions.write_page(tmp_path), tmp_path, "search=pasta+GUITAR&show=wrong&type=how%3Cb%3E&order=worst")
    text = (table.question + " " + table.answer + " " + table.predicted).str
    chosen = table[~table.correct & (table.type == "how<b>") & text.contains("pasta") & text.contains("guitar")]
    chosen = chosen.sort_values("quality", kind="stable")
    heads = re.findall(r'<button class="open two"[^>]*>(.*?)</button>', dom, re.DOTALL)
    expected = chosen.question.tolist()
    assert 5 < len(heads) < 60 < len(expected) and [html.unescape(head) for head in heads] == expected[: len(heads)]
    assert f">{len(expected):,} of 2,000</output>" in dom
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', dom)
    assert len(sources) == len(heads)
    assert [base64.b64decode(source) for source in sources] == [strips[clip] for clip in chosen.id[: len(heads)]]


@pytest.mark.skipif(not BROWSER, reason="no Chromium to show the page")
def test_a_browser_shows_any_rows(tmp_path):
    write_predictions(tmp_path, "primes", ANY, {}, {})
    body = browse(predictions.write_page(tmp_path), tmp_path, "search=alert")
    cells = re.search(r'<li class="row cells".*?</li>', body, re.DOTALL)[0]
    found = [
        html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<(?:button|div)[^>]*>(.*?)</(?:button|div)>", cells, re.DOTALL)
    ]
    assert found == ["0", "✓ right", "7", "1, 2", HARD[0], "0.25", "3", "–"] and ">1 of 2 · 100" in body
    names = re.search(r'<div class="names">(.*?)</div>', body, re.DOTALL)[1]
    assert re.findall(r">([^<]+)</span>", names) == ["id", "correct", "digit", "votes", "says", "score", "mixed", "late"]


@pytest.mark.skipif(not BROWSER, reason="no Chromium to show the page")
def test_a_browser_shows_hard_texts_as_text(tmp_path):
    write(tmp_path, "captioning", HARD, clips=HARD)
    dom = browse(predictions.write_page(tmp_path), tmp_path, "")
    body = dom[dom.index('<ul id="list"') : dom.index("<dialog")]
    heads = [html.unescape(h) for h in re.findall(r'<button class="open two"[^>]*>(.*?)</button>', body, re.DOTALL)]
    shown = [text if 0 < len(text) <= 400 else text[:400] + "…" if text else "(empty)" for text in HARD]
    assert heads == shown[: len(heads)] and len(heads) >= 7
    assert "<script" not in body and "<b>" not in body


def test_command(tmp_path):
    write(tmp_path, "multiple_choice", sentences(5))
    run = [sys.executable, "-m", "analysis.predictions"]
    done = subprocess.run([*run, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "predictions.html")
    assert predictions.main([]) == 2
