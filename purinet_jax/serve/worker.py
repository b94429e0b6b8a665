"""Pictures made for many at once: threads read and finish them, and one thread alone asks the network, for all whose
pictures are waiting when it gets round to them. Memory is bounded by a budget of pixels. Needs no web server.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from purinet_jax.data.augment import resize_image
from purinet_jax.data.images import TooManyPixels, count_pixels, encode, read_srgb
from purinet_jax.devices import usable_cores
from purinet_jax.errors import InputError
from purinet_jax.prediction.rendering import Style, render
from purinet_jax.prediction.stream import checked_size

# A page that shows what is wrong with a file needs no JAX, and neither do tests with another network in its place.
if TYPE_CHECKING:
    from purinet_jax.prediction.predictor import Predictor


@dataclass
class _Question:
    """A square that the network is asked about, uint8 [size, size, 3], and its answer to be."""

    square: np.ndarray
    attention: bool
    answer: Future[Any] = field(default_factory=Future)


class Worker:
    """Makes pictures of uploaded files; `close` it in the end."""

    def __init__(
        self,
        predictor: "Predictor",
        *,
        batch_size: int = 1,
        pixels: int = 64_000_000,
        asked: Callable[[int], object] = lambda pictures: None,
    ) -> None:
        """Compiles the network's programs, for 1, 2, 4, … pictures at a time and for attention, and starts the threads.

        Args:
          predictor: the network.
          batch_size: how many pictures the network takes at once, at most.
          pixels: how many pixels all the pictures that are being made may have together, and thus one alone; about
            20 bytes of memory each.
          asked: called, in the network's thread, with the number of pictures in each batch.

        Raises:
          InputError: `batch_size` or the predictor's size is not positive.
        """
        if batch_size < 1:
            raise InputError(f"batch_size: must be at least 1, not {batch_size}")
        self.attention = bool(predictor.model.attention)
        """Whether the network has attention to be shown."""
        self.size = checked_size(predictor.size)
        """Side of the square that pictures are squashed to, pixels."""
        self.pixels = pixels
        self._predictor = predictor
        self._batch_size = batch_size
        self._asked = asked
        self._budget = _Budget(pixels)
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        black = np.zeros((self.size, self.size, 3), np.uint8)
        for count in _powers_of_two(batch_size):
            predictor.square_maps([black] * count, count)
        if self.attention:
            predictor.square_finest_maps([black], 1)
        self._network = threading.Thread(target=self._answer_questions, name="network", daemon=True)
        self._network.start()
        # Those of a batch wait together for its answer, while others read and finish.
        self._pool = ThreadPoolExecutor(usable_cores() + batch_size, thread_name_prefix="picture")

    @property
    def alive(self) -> bool:
        """Whether the network still answers."""
        return self._network.is_alive()

    def submit(self, data: bytes, style: Style) -> Future[bytes]:
        """Begins to make the picture of an image's file, in the style's format.

        Args:
          data: the file's bytes. They are let go of when the picture is made, or its future cancelled.
          style: what to make.

        Returns:
          The picture's file to be: the very bytes that `purinet predict` writes, as long as the network answers for
          one picture at a time (in a batch, its numbers are rounded otherwise, and a grey level may differ by one). Or
          an InputError: the file is no image, or damaged; `TooManyPixels`: it has more than `pixels`, or than the
          format holds.
        """
        waiting = [data]
        # A cancelled task stays in the pool's queue until its turn comes; its upload must not.
        future = self._pool.submit(self._make, waiting, style)
        future.add_done_callback(lambda _: waiting.clear())
        return future

    def close(self) -> None:
        """Ends the threads, when what they are at is done; what has not begun is cancelled."""
        self._pool.shutdown(cancel_futures=True)
        self._questions.put(None)
        self._network.join()

    def _make(self, waiting: list[bytes], style: Style) -> bytes:
        data = waiting.pop()
        pixels = count_pixels(data)
        if pixels > self.pixels:
            raise TooManyPixels(f"image: has {pixels:,} pixels, more than {self.pixels:,}")
        with self._budget.of(pixels):
            image, alpha = read_srgb(data)
            del data
            question = _Question(resize_image(image, self.size, self.size), style.kind == "attention")
            self._questions.put(question)
            answer = question.answer.result()
            picture = render(style, answer, question.square, image.shape, image, alpha)
            return encode(picture, style.ending, style.ending[1:])

    def _answer_questions(self) -> None:
        while (first := self._questions.get()) is not None:
            batch = [first]
            closing = False
            # Nobody is waited for: who comes while a batch is under way is in the next one.
            while len(batch) < self._batch_size and not closing and not self._questions.empty():
                following = self._questions.get()
                if following is None:
                    closing = True
                else:
                    batch.append(following)
            self._answer([question for question in batch if not question.attention])
            for question in batch:
                if question.attention:  # seldom asked for, and large: one at a time
                    self._answer([question])
            if closing:
                return

    def _answer(self, questions: Sequence[_Question]) -> None:
        if not questions:
            return
        squares = [question.square for question in questions]
        ask: Any = self._predictor.square_finest_maps if questions[0].attention else self._predictor.square_maps
        try:
            room = next(count for count in _powers_of_two(self._batch_size) if count >= len(squares))
            answers = ask(squares, room)
        except Exception as error:  # such as a device out of memory: those who wait are told, and the next may be lucky
            for question in questions:
                question.answer.set_exception(error)
            return
        for question, answer in zip(questions, answers, strict=True):
            question.answer.set_result(answer)
        self._asked(len(questions))


class _Budget:
    """So much of something as is shared; who takes part of it waits, in turn, until there is as much."""

    def __init__(self, amount: int) -> None:
        self._left = amount
        self._entrance = threading.Lock()  # held by who waits next: many small ones cannot keep out a large one
        self._returned = threading.Condition()

    @contextmanager
    def of(self, amount: int) -> Iterator[None]:
        """Takes an amount, at most the whole, for as long as the context lasts."""
        with self._entrance, self._returned:
            self._returned.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._returned:
                self._left += amount
                self._returned.notify()


def _powers_of_two(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself."""
    powers = [1]
    while powers[-1] * 2 < most:
        powers.append(powers[-1] * 2)
    return powers if most == powers[-1] else [*powers, most]
