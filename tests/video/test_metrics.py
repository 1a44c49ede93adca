"""Metrics against the field's own code: pycocoevalcap, scikit-learn, and brute force; random and degenerate predictions."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS
from sklearn.metrics import accuracy_score, f1_score

from meltr_ray.config import ConfigError
from meltr_ray.results import bootstrap
from meltr_ray.video.metrics import answers, captions, meteor, retrieval, sentiment
from meltr_ray.video.metrics import without_java as substitute
from tests.video.caption_cases import CORPUS, PER_VIDEO, PREDICTIONS, REFERENCES

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_java = pytest.mark.skipif(not shutil.which("java"), reason="java isn't installed: nothing to compare with")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real captions are missing: {DATA}")
few = settings(max_examples=60, deadline=None)
levels = st.sampled_from([-1.0, 0.0, 0.5, float("nan")])  # few values, so that ties and NaN are the rule


@few
@given(st.data(), st.integers(1, 4), st.integers(1, 7))
def test_ranks_by_brute_force(data, num_queries, num_videos):
    rows = data.draw(st.lists(st.lists(levels, min_size=num_videos, max_size=num_videos), min_size=num_queries, max_size=num_queries))
    target = data.draw(st.lists(st.integers(0, num_videos - 1), min_size=num_queries, max_size=num_queries))
    expected = []
    for row, t in zip(rows, target):
        others = row[:t] + row[t + 1 :]
        expected.append(1 + sum(not x <= row[t] for x in others) + sum(x == row[t] for x in others) / 2)
    assert retrieval.ranks(np.array(rows), np.array(target)).tolist() == expected


def test_a_constant_similarity_ranks_in_the_middle():
    same, target = np.ones((9, 101)), np.arange(9)
    for similarity in (same, retrieval.dual_softmax(same, 0.01)):
        metrics = retrieval.rank_metrics(retrieval.ranks(similarity, target))
        assert metrics == {"recall_at_1": 0, "recall_at_5": 0, "recall_at_10": 0, "median_rank": 51, "mean_rank": 51}


def test_dual_softmax_is_the_authors():
    s, temp = torch.rand(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.05
    published = s * torch.softmax(s / temp, dim=0) * len(s)
    torch.testing.assert_close(torch.from_numpy(retrieval.dual_softmax(s.numpy(), temp)) * len(s), published)


def test_answers_by_type_with_unknown_ones():
    got = answers.accuracy([True, False, True, True, True], [True, True, True, False, True], ["what", "who", "known", "what", "known"])
    assert got == {
        "accuracy": 60.0, "accuracy_known": 75.0, "num_questions": 5, "num_unknown": 1, "accuracy_type_known": 100.0,
        "num_type_known": 2, "accuracy_what": 50.0, "num_what": 2, "accuracy_who": 0.0, "num_who": 1,
    }  # fmt: skip


def field(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """MMSA's definitions, by scikit-learn."""
    out = {
        "mae": abs(predicted - truth).mean(),
        "accuracy_7": 100 * np.mean(np.round(predicted.clip(-3, 3)) == np.round(truth.clip(-3, 3))),
    }
    out |= {"accuracy_2": 100 * accuracy_score(truth >= 0, predicted >= 0)}
    out |= {"f1": 100 * f1_score(truth >= 0, predicted >= 0, average="weighted", zero_division=0)}
    p, t = predicted[truth != 0] > 0, truth[truth != 0] > 0
    if not len(t):
        return out
    return out | {
        "accuracy_2_non_zero": 100 * accuracy_score(t, p),
        "f1_non_zero": 100 * f1_score(t, p, average="weighted", zero_division=0),
    }


@few
@given(st.lists(st.tuples(*[st.sampled_from([-3.4, -2.5, -1.5, -0.5, -0.0, 0.0, 0.2, 0.5, 1.5, 2.5, 3.0])] * 2), min_size=2, max_size=30))
def test_sentiment_is_the_fields(pairs):
    predicted, truth = np.array(pairs).T
    got = sentiment.metrics(predicted, truth)
    for name, value in field(predicted, truth).items():
        assert got[name] == pytest.approx(value, abs=1e-10), name
    if np.ptp(predicted) and np.ptp(truth):
        assert got["correlation"] == pytest.approx(np.corrcoef(predicted, truth)[0, 1], abs=1e-10)
    else:
        assert np.isnan(got["correlation"])


def test_sentiment_of_nan_is_wrong():
    got = sentiment.metrics([np.nan] * 4, [-1.0, 0.0, 1.0, 2.0])
    assert np.isnan([got.pop("mae"), got.pop("correlation")]).all() and set(got.values()) == {0.0}


def real_captions() -> list[str]:
    lines = [s["caption"] for s in json.loads((DATA / "msrvtt/MSRVTT_data.json").read_text())["sentences"]]
    videos = json.load(gzip.open(DATA / "formats/youcookii_annotations_trainval.json.gz"))["database"].values()
    lines += [part["sentence"] for video in videos for part in video["annotations"]]
    with gzip.open(DATA / "formats/sents_val_lc_nopunc.txt.gz", "rt") as file:
        return lines + [line.rstrip("\n").split("\t")[-1] for line in file]


def tokenize(line: str) -> str:
    return substitute.tokenize(line, PUNCTUATIONS)


def test_tokens_without_java():
    assert tokenize("The man's dog isn't here. It can't run, but (red) cars do!") == (
        "the man 's dog is n't here it ca n't run but -lrb- red -rrb- cars do"
    )
    assert tokenize("") == tokenize("...") == ""


@needs_java
def test_tokens_of_captions_of_ours_are_javas():
    lines = ["A man is playing a guitar.", "The man's dog isn't here; it can't run, but (red) cars do!", "two girls' hats, 3.5 cups & a 10% cut",
             "she said: \"stop\" -- and they'll stop", "a well-known chef cooks fish/chips", "", "..."]  # fmt: skip
    assert list(map(tokenize, lines)) == captions.tokens_by_java(lines, 60)


@pytest.mark.whole
@needs_java
@needs_data
def test_tokens_of_nearly_all_real_captions_are_javas():
    lines = real_captions()
    same = [ours == theirs for ours, theirs in zip(map(tokenize, lines), captions.tokens_by_java(lines, 60), strict=True)]
    assert len(lines) > 34_000 and np.mean(same) > 0.999


@pytest.fixture(scope="module")
def without_java(tmp_path_factory):
    """All caption metrics where `java` is there but broken: Python steps in."""
    broken = tmp_path_factory.mktemp("bin") / "java"
    broken.write_text("#!/bin/sh\necho 'no such machine' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(broken.parent) + os.pathsep + os.environ["PATH"])
        with pytest.raises(RuntimeError, match="no such machine"):
            captions.evaluate(PREDICTIONS, REFERENCES, java=True)
        return captions.evaluate(PREDICTIONS, REFERENCES)


def test_captions_without_java(without_java):
    """Plain captions score as with Java; METEOR's substitute is near, and says what it is."""
    at = [list(PREDICTIONS).index(name) for name in ("cook", "dogs", "band", "same", "none", "word", "order")]
    for name, values in PER_VIDEO.items():
        if name not in ("meteor", "cider"):  # CIDEr's idf is that of all captions, the emoji's among them
            assert without_java.per_video[name][at] == pytest.approx(np.array(values)[at], abs=1e-12), name
    assert np.corrcoef(without_java.per_video["meteor"], PER_VIDEO["meteor"])[0, 1] > 0.8
    assert "no such machine" in without_java.tokenizer and "NLTK" in without_java.meteor


@pytest.mark.slow  # METEOR's jar takes 10 s to read its tables
@needs_java
def test_captions_with_java(capfd):
    got = captions.evaluate(PREDICTIONS, REFERENCES, java=True)
    assert got.corpus == pytest.approx(CORPUS, abs=1e-12)
    for name, values in PER_VIDEO.items():
        assert got.per_video[name] == pytest.approx(values, abs=1e-12), name
    assert (got.num_distinct, got.without_reference, got.videos) == (8, [], list(PREDICTIONS))
    assert (got.tokenizer, got.meteor) == ("PTBTokenizer (Stanford CoreNLP 3.4.1)", "METEOR 1.5 (jar)")
    assert capfd.readouterr().out == ""


@pytest.mark.slow
@needs_java
@needs_data
def test_meteor_without_java_goes_with_the_jars():
    lines = [tokenize(line) for line in real_captions()[:4000]]
    said = lines[::40] + lines[20::40]  # of the right video, and of another
    refs = 2 * [lines[at + 1 : at + 20] for at in range(0, 4000, 40)]
    theirs = meteor.scores(meteor.counts_by_jar(said, refs))
    assert np.corrcoef(substitute.meteor_scores(said, refs), theirs)[0, 1] > 0.85


def test_references_without_words_are_left_out():
    spoken, _ = captions.tokens({"a": "x", "b": "", "c": "y"}, {"a": ["...", "x\nz"], "b": ["!"], "c": []}, False, 1)
    assert spoken == {"a": ("x", ["x z"]), "b": ("", []), "c": ("y", [])}
    with pytest.raises(ConfigError, match="predictions=.'b'.: "):
        captions.evaluate({"a": "x"}, {"a": ["x"], "b": ["y"]}, java=False)
    with pytest.raises(ConfigError, match="references=1: "):
        captions.evaluate({"a": "x"}, {"a": ["."]}, java=False)


def test_resampled_bleu_is_that_of_the_resampled_corpus(without_java):
    names = list(PREDICTIONS)
    drawn = np.random.default_rng(0).integers(len(names), size=len(names))
    said = {i: [tokenize(PREDICTIONS[names[v]])] for i, v in enumerate(drawn)}
    refs = {i: [tokenize(text) for text in REFERENCES[names[v]]] for i, v in enumerate(drawn)}
    expected = Bleu(4).compute_score(refs, said, verbose=0)[0]
    sums = without_java.counts["bleu"][drawn].sum(0)[None]
    assert [captions.corpus_score(name, 10)(sums)[0] for name in captions.BLEU] == pytest.approx(expected, abs=1e-12)
    for name in captions.METRICS:
        low, high = without_java.interval(name)
        assert low < without_java.corpus[name] < high


def test_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(1).normal(size=80) ** 2
    low, high = bootstrap.interval(bootstrap.with_ones(values), range(80), bootstrap.ratio, resamples=20_000)
    expected = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.03 * (expected.high - expected.low))


def test_copies_of_an_example_add_nothing_to_a_video():
    values, videos = np.random.default_rng(2).normal(size=30), list(range(30))
    for counts, score in ((bootstrap.with_ones(values), bootstrap.ratio), bootstrap.histogram(values)):
        once = bootstrap.interval(counts, videos, score)
        assert bootstrap.interval(np.repeat(counts, 20, axis=0), np.repeat(videos, 20), score) == pytest.approx(once)
    assert np.isnan(bootstrap.interval(np.ones((5, 2)), ["one video"] * 5, bootstrap.ratio)).all()


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 99))
def test_median_of_a_resample(values, seed):
    counts, median = bootstrap.histogram(np.array(values))
    drawn = np.random.default_rng(seed).integers(len(values), size=len(values))
    assert median(counts[drawn].sum(0)[None]) == np.median(np.array(values)[drawn])
