"""Our reading of BERT's own vocabulary against the ids that the authors' tokeniser (UniVL's) gives, and All-in-one's the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from meltr_ray.video.clips.vocabulary import Vocabulary

BERT = Path(__file__).parents[3] / "shared" / "data" / "formats" / "bert-base-uncased-vocab.txt"
IDS = {
    "a man is driving a car": [1037, 2158, 2003, 4439, 1037, 2482],
    "someone's cooking: 3.14 cups, isn't it?": [2619, 1005, 1055, 8434, 1024, 1017, 1012, 2403, 10268, 1010, 3475, 1005, 1056,
                                                2009, 1029],
    "café naïve résumé Ångström Straße İstanbul": [7668, 15743, 13746, 17076, 15687, 2358, 27807, 9960],
    "日本語 テスト": [1864, 1876, 1950, 1713, 30233, 30240],
    "a man 😀 runs": [1037, 2158, 100, 3216],
    "tab\there\x00nul\x07bell\u200bzero\xadsoft": [21628, 2182, 11231, 20850, 5349, 6290, 19137, 6199],
    "supercalifragilisticexpialidocious": [3565, 9289, 10128, 29181, 24411, 4588, 10288, 19312, 21273, 10085, 6313],
    "a" * 101: [100],
    "don't ’quoted’ #tag @user a_b c-d €100": [2123, 1005, 1056, 1521, 9339, 1521, 1001, 6415, 1030, 5310, 1037, 1035, 1038, 1039,
                                               1011, 1040, 1574, 18613],
    "": [],
    "ＦＵＬＬ\u3000ｗｉｄｔｈ ﬁne": [100, 100, 1984, 2638],
    "\u2028line\xa0nbsp": [2240, 1050, 5910, 2361],
    "한국어 हिन्दी العربية": [1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008, 1339, 29877, 29863, 29861, 29878, 1270, 23673,
                        29830, 17149, 29816, 14498, 19433],
}  # fmt: skip
CLS, SEP = 101, 102


@pytest.mark.skipif(not BERT.is_file(), reason=f"BERT's vocabulary is missing: {BERT}")
def test_ids_are_the_authors():
    words = Vocabulary(BERT)
    assert (len(words), words.pad_id, words.unk_id, words.cls_id, words.sep_id, words.mask_id) == (30522, 0, 100, CLS, SEP, 103)
    for text, ids in IDS.items():
        assert words.encode(text, max_words=64) == [CLS, *ids, SEP], text
        assert words.encode(text, max_words=7) == [CLS, *ids[:5], SEP], text
