"""What UniVL's batches hold for each task: the text of a clip, which all losses but the task's own read, and what comes beside it.

B: clips, L: word pieces, T: rows of audio, A: audio feature size, U: different texts of options, O: options of a question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from meltr_ray.video.backbones.univl.features import pad_rows
from meltr_ray.video.clips.clip import Clip, Question

if TYPE_CHECKING:
    from meltr_ray.video.backbones.univl.inputs import UniVLInputs

Arrays = dict[str, np.ndarray]
NO_ANSWER = -1
"""Number of a right answer that isn't among the answers."""


class Retrieval:
    """The text is a caption, and nothing comes beside it; the other tasks say what they have otherwise."""

    says_captions: ClassVar[bool] = False
    """Whether the decoder says a caption, else the text."""

    def reads_transcripts(self, read: UniVLInputs) -> bool:
        """Whether the text is what is said in the clip, empty where nothing is: then predictions take it, too."""
        return False

    def text(self, read: UniVLInputs, clip: Clip, caption: str) -> list[int]:
        """Ids of the text of a clip of which `caption` was drawn."""
        return read.encode((clip.transcript or "") if self.reads_transcripts(read) else caption)

    def num_rows(self, read: UniVLInputs) -> int:
        """Rows of frames at least."""
        return 0

    def own(self, read: UniVLInputs, clips: list[Clip]) -> Arrays:
        """What comes without chance, for training and for predictions."""
        return {}


class Captioning(Retrieval):
    """A caption too, or, as published, the transcript (`backbone.auxiliary_text`).

    Captions are generated from the transcript in both cases, never from a caption.
    """

    says_captions = True

    def reads_transcripts(self, read: UniVLInputs) -> bool:
        return read.backbone.auxiliary_text == "transcript"

    def own(self, read: UniVLInputs, clips: list[Clip]) -> Arrays:
        words = read.vocabulary
        special = np.array([words.pad_id, words.unk_id, words.cls_id, words.sep_id, words.mask_id])
        if self.reads_transcripts(read):
            return dict(special_ids=special)
        ids, mask = read.pad([read.encode(clip.transcript or "") for clip in clips])
        return dict(special_ids=special, context_ids=ids, context_mask=mask)


class Questions(Retrieval):
    """A caption, or, of a clip without any, the question with its right answer."""

    def text(self, read: UniVLInputs, clip: Clip, caption: str) -> list[int]:
        return read.encode(caption) if clip.captions else join(read, clip.question, clip.question.answer)


class MultipleChoice(Questions):
    def own(self, read: UniVLInputs, clips: list[Clip]) -> Arrays:
        questions = [clip.question for clip in clips]
        rows: dict[tuple[int, ...], int] = {}
        options = np.full((len(questions), max(len(question.options) for question in questions)), -1)
        for row, question in enumerate(questions):
            for column, option in enumerate(question.options):
                options[row, column] = rows.setdefault(tuple(join(read, question, option)), len(rows))
        ids, mask = read.pad([list(pair) for pair in rows])
        right = np.array([NO_ANSWER if question.right is None else question.right for question in questions])
        return dict(option_ids=ids, option_mask=mask, options=options, answer=right)


class OpenEnded(Questions):
    def own(self, read: UniVLInputs, clips: list[Clip]) -> Arrays:
        questions = [clip.question for clip in clips]
        ids, mask = read.pad([read.encode(question.question) for question in questions])
        numbers = [read.answers.number(question.answer) for question in questions]
        return dict(question_ids=ids, question_mask=mask, answer=np.array([NO_ANSWER if n is None else n for n in numbers]))


class Sentiment(Retrieval):
    """The transcript, and beside it audio, where the data set has any."""

    def reads_transcripts(self, read: UniVLInputs) -> bool:
        return True

    def num_rows(self, read: UniVLInputs) -> int:
        # audio follows the frames, so that its place must not depend on the other clips of the batch
        return read.data.max_frames if read.audio else 0

    def own(self, read: UniVLInputs, clips: list[Clip]) -> Arrays:
        arrays = dict(score=np.array([clip.score for clip in clips], dtype=np.float32))
        if read.audio:
            rows = [None if clip.audio is None else read.audio(clip.audio) for clip in clips]
            arrays["audio"], arrays["audio_mask"] = pad_rows(rows, read.data.max_frames, len(read.audio.mean))
        return arrays


TASKS: dict[str, Retrieval] = {
    "retrieval": Retrieval(),
    "multiple_choice": MultipleChoice(),
    "open_ended": OpenEnded(),
    "captioning": Captioning(),
    "sentiment": Sentiment(),
}


def join(read: UniVLInputs, question: Question, answer: str) -> list[int]:
    """[CLS], question, [SEP], answer, [SEP], without a question [CLS], answer, [SEP]; of a long pair, the question is cut."""
    ids = read.encode(answer)
    room = read.data.max_words - len(ids) + 1
    if not question.question or room < 3:
        return ids
    return [*read.vocabulary.encode(question.question, room), *ids[1:]]
