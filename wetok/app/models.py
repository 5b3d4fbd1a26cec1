"""The models that the page offers: loaded once, for all visitors, and no others."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from PIL import Image

from wetok.config import WetokError
from wetok.model.tokenizer import Tokenizer


class Models:
    """Tokenizers by the label that the page shows, and by fingerprint.

    A visitor names one of these labels; whatever else comes from the web is refused, so no path
    and no Hub id is ever opened for a visitor. Who computes with a model holds `lock`.
    """

    def __init__(self, tokenizers: Iterable[Tokenizer]) -> None:
        self.lock = threading.RLock()
        self._by_label: dict[str, Tokenizer] = {}
        for tokenizer in tokenizers:
            self.add(tokenizer)
        if not self._by_label:
            raise WetokError("models: name at least one")

    def add(self, tokenizer: Tokenizer) -> None:
        """Offers another; one that is here already is not offered twice."""
        if self.label_of(tokenizer.fingerprint) is None:
            label = tokenizer.name
            if label in self._by_label:
                label = f"{label} ({tokenizer.fingerprint[:6]})"
            self._by_label[label] = tokenizer

    @property
    def labels(self) -> list[str]:
        """What a visitor may choose from."""
        return list(self._by_label)

    def get(self, label: object) -> Tokenizer:
        """The one of that label.

        Raises:
            WetokError: there is none.
        """
        found = self._by_label.get(label) if isinstance(label, str) else None
        if found is None:
            raise WetokError("There is no such model on this page.")
        return found

    def label_of(self, fingerprint: str) -> str | None:
        """The label of the one with that fingerprint, or None."""
        for label, tokenizer in self._by_label.items():
            if tokenizer.fingerprint == fingerprint:
                return label
        return None

    def warm_up(self) -> None:
        """Runs each once on a small image: the first call sets up memory and threads."""
        with self.lock:
            for tokenizer in self._by_label.values():
                tokenizer.decode(tokenizer.encode(Image.new("RGB", (64, 64))))
